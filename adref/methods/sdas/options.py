"""The constants of SDAS: options with their sources, presets, ablations, and departures from the paper."""

import math
from dataclasses import dataclass
from typing import Literal

from adref.method import Deviation
from adref.methods.sdas.schedule import spaced_steps
from adref.options import UserError, flag, option


@dataclass(frozen=True)
class Options:
    """The constants of SDAS; the defaults are the code's for MVTec AD, at full size."""

    size: tuple[int, int] = option((256, 256), "height,width of the pictures", "code", limits=(8, 65536))
    resize: Literal["antialias", "bilinear"] = option("antialias", "filter that brings a picture to --size", "code")
    categories: tuple[str, ...] = option((), "names of the categories, by the alphabet", "--category", is_flag=False)
    # TODO here: D4: one model for all categories of --category, with labels
    conditional: bool = option(
        True, "a label for each of several categories; false: one model without labels", "adref", kind="silent",
        paper="one model or one a category is not said", why="the code's; a single category has no label",
    )  # fmt: skip
    width: int = option(
        256, "channels of the U-Net at full resolution, a multiple of --groups", "code", limits=(2, math.inf),
    )  # fmt: skip
    # TODO here: D15: 32; tiny: 8
    groups: int = option(
        32, "of every group norm", "code", limits=(1, 4096), kind="substitution",
        paper="32 groups, as in guided diffusion",
        why="32 channels in 32 groups are normalised one by one: the network cannot tell the mean of the noise, "
        "which at the first step back counts 97 times in x_0, and every picture gets a hue of its own",
    )  # fmt: skip
    multipliers: tuple[int, ...] = option(
        (1, 1, 2, 2, 4, 4), "channels of each level, as multiples; each level halves the sides", "code",
        limits=(1, math.inf),
    )  # fmt: skip
    blocks: int = option(2, "residual blocks of a level", "code", limits=(1, 64))
    # TODO here: D2: at sides divided by 8, 16, 32
    attention_factors: tuple[int, ...] = option(
        (8, 16, 32), "sides are divided by this where it attends", "code", kind="mistake",
        paper="attention at resolutions 32, 16, 8",
        why="the code takes the numbers of its configuration for factors, guided diffusion converts resolutions: "
        "both agree at 256 pixels alone",
    )  # fmt: skip
    head_width: int = option(64, "channels of a head of the attention", "code", limits=(1, math.inf))
    dropout: float = option(0.0, "in residual blocks", "code", limits=(0, 0.99))
    steps: int = option(1000, "T, steps of the diffusion", "code", limits=(2, 1000000))
    betas: tuple[float, float] = option(
        (0.0001, 0.02), "first and last beta of 1000 steps", "code", limits=(1e-09, 0.999),
    )  # fmt: skip
    # TODO here: D5: f = (v + 1) / 2, not clamped
    variance: Literal["half_shift", "direct"] = option(
        "half_shift", "f of equation 4: (v + 1) / 2, or v itself as the text has it", "code", kind="ambiguous",
        paper="Sigma = exp(v log beta + (1 - v) log btilde)",
        why="code and guided diffusion, whose weights it starts from",
    )  # fmt: skip
    vlb_weight: float = option(0.001, "lambda of the variational term", "section on SDAS", limits=(0, math.inf))
    # TODO here: D6: 0.001 T = 1 times the term of the drawn step, in bits
    vlb_weight_mode: Literal["sum", "per_step"] = option(
        "sum", "lambda weighs the sum over all T steps, or the step that is drawn", "code", kind="ambiguous",
        paper="L = L_simple + 0.001 L_vlb",
        why="L_vlb is a sum over T steps; the code adds the drawn term with weight 1. 'per_step' is the common "
        "mistake",
    )  # fmt: skip
    # TODO see ['D6']
    vlb_unit: Literal["bits", "nats"] = option("bits", "unit of the variational term", "code")
    # TODO here: D1: 240 passes
    epochs: int = option(
        240, "passes over the training images", "adref", limits=(0, math.inf), kind="silent", paper="no length",
        why="the released MVTec model's; the code runs up to 1000 and its authors stop by eye, others at 120, 375 "
        "and 825. For the classifier nothing is known",
    )  # fmt: skip
    batch_size: int = option(60, "images an update", "code: 5 on each of 4 GPUs, 3 times", limits=(1, math.inf))
    # TODO see ['D3']
    accumulation: int = option(
        12, "parts of a batch, one after the other: memory for time", "adref", limits=(1, math.inf),
    )  # fmt: skip
    # TODO here: D3: the mean over the batch, clipped once; in 12 parts of 5 images
    accumulation_rule: Literal["mean", "code"] = option(
        "mean", "the gradient of the whole batch is clipped once, or the sum after every part", "adref",
        kind="silent", paper="nothing said",
        why="the code adds three gradients of 20 images and clips what there is after each: 'code', with "
        "--accumulation 3. (It also updates once after the first part alone.) Adam hides the scale, not the clip",
    )  # fmt: skip
    learning_rate: float = option(0.0001, "Adam's step size, constant", "code", limits=(0, math.inf))
    clip: float = option(1.0, "largest norm of the gradient; 0: any", "code", limits=(0, math.inf))
    ema_decay: float = option(0.9999, "decay of the average of the weights, which draws", "code", limits=(0, 1))
    # TODO here: D9: decay min(0.9999, (1 + n)/(10 + n))
    ema_warmup: bool = option(
        True, "a smaller decay in the beginning, (1 + n) / (10 + n)", "adref", kind="substitution",
        paper="as in guided diffusion",
        why="a fixed decay keeps 91 % of random first weights after 1000 updates; from ImageNet weights it is "
        "harmless",
    )  # fmt: skip
    classifier_width: int = option(128, "width of the classifier that guides", "code", limits=(2, math.inf))
    # TODO here: D16: it trains on the batches, at the rate and with the clipping of the diffusion model
    classifier_epochs: int = option(
        240, "passes of its training; none where the scale is 0", "adref", limits=(0, math.inf), kind="substitution",
        paper="no word of a classifier",
        why="the code has batches of 20 on each of two GPUs, the rest alike, and starts from 256x256_classifier.pt",
    )  # fmt: skip
    # TODO here: D8: none
    guidance_scale: float = option(
        0.0, "weight of the classifier's gradient; 0: no classifier", "adref", limits=(0, math.inf),
        kind="contradiction", paper="no word of guidance",
        why="the code guides with scale 1 unless told not to; its authors call it unnecessary",
    )  # fmt: skip
    # What `python -m adref.synthesize RUN` may set anew:
    strength: tuple[float, ...] = option(
        (0.1, 0.2), "s, or two ends of its range", "section on SDAS", limits=(0, math.inf),
    )  # fmt: skip
    # TODO here: D7: one s for each picture
    strength_per: Literal["image", "batch"] = option(
        "image", "for what one s is drawn", "adref", kind="contradiction", paper="s uniform in [0.1, 0.2]",
        why="the code draws one for each batch of 16",
    )  # fmt: skip
    sampling_steps: int = option(20, "steps back", "section on SDAS", limits=(1, 1000000))
    # TODO here: D10: 0, 50, ..., 950, which the network is given
    spacing: Literal["leading", "trailing", "even"] = option(
        "leading", "which of the T steps: 0, 50, ..., 950; 49, ..., 999; or from 0 to 999", "code", kind="silent",
        paper="20 steps", why="the code's 'ddim20', for both samplers: it never starts from t = 999",
    )  # fmt: skip
    sampler: Literal["ancestral", "ddim"] = option("ancestral", "equation 7 or 8", "section on SDAS")
    # TODO here: D11: the learned one
    ddim_variance: Literal["learned", "beta", "beta_tilde"] = option(
        "learned", "V of equation 8", "code", kind="ambiguous", paper="three variances for DDIM",
        why="which three is reconstructed; the code has this one alone, and strengths of 0.01 to 0.03",
    )  # fmt: skip
    ddim_eta: float = option(0.0, "randomness of DDIM itself", "code", limits=(0, 1))
    # TODO here: D12: 0
    last_steps_fixed_small: int = option(
        0, "last steps that take btilde for Sigma", "adref", limits=(0, 1000000), kind="substitution",
        paper="nothing",
        why="an addition, off: little training leaves too much variance in the last steps, which shows as grain",
    )  # fmt: skip
    draw_batch: int = option(16, "pictures drawn at a time", "code", limits=(1, math.inf))
    # TODO here: D13: PNG
    file_format: Literal["png", "jpeg75"] = option(
        "png", "files of the pictures", "adref", kind="contradiction", paper="no format",
        why="the code writes JPEG of quality 75, whose blocks an anomaly detector could learn",
    )  # fmt: skip


SAMPLING = ("strength", "strength_per", "sampling_steps", "spacing", "sampler", "ddim_variance", "ddim_eta",
            "last_steps_fixed_small", "guidance_scale", "draw_batch", "file_format")  # fmt: skip


PRESETS = {
    "paper": {},
    # The published multipliers for 64 pixels; one GPU or patience.
    "64": {
        "size": (64, 64),
        "width": 64,
        "multipliers": (1, 2, 3, 4),
        "attention_factors": (4, 8),
        "batch_size": 32,
        "accumulation": 1,
    },
    "tiny": {
        "size": (64, 64),
        "width": 32,
        "multipliers": (1, 2, 2, 4),
        "attention_factors": (4, 8),
        "head_width": 32,
        "groups": 8,
        "epochs": 50,
        "batch_size": 8,
        "accumulation": 1,
        "learning_rate": 5e-4,
        "classifier_width": 32,
        "classifier_epochs": 20,
    },
}


ABLATIONS = {
    "code": {
        "accumulation": 3,
        "accumulation_rule": "code",
        "ema_warmup": False,
        "guidance_scale": 1.0,
        "strength_per": "batch",
        "file_format": "jpeg75",
    },
    "unconditional": {"conditional": False},
    "text": {"variance": "direct"},
}


DEVIATIONS = (
    # D14
    Deviation(
        "SDAS.load_weights", "mistake", "starts from ImageNet weights",
        "all must fit but the table of labels, which is then named",
        "the code skips what does not fit without a word: its table of labels stays random",
    ),
)  # fmt: skip


def classes_of(o: Options) -> int:
    """How many labels there are; 0: none, as a single category needs none."""
    return len(o.categories) if o.conditional and len(o.categories) > 1 else 0


def check(o: Options) -> None:
    """Raises UserError for options that do not fit together."""
    stride = 2 ** (len(o.multipliers) - 1)
    if any(side % stride for side in o.size):
        raise UserError(f"--size takes multiples of {stride}, with {len(o.multipliers)} levels; got {o.size}")
    factors = {2**level: o.width * m for level, m in enumerate(o.multipliers)}
    for factor in o.attention_factors:
        if factor not in factors:
            raise UserError(f"--attention-factors takes some of {', '.join(map(str, factors))}; got {factor}")
    attends = {2**level for level in range(len(o.multipliers))} & {*o.attention_factors, stride}
    for name, width in (("width", o.width), ("classifier_width", o.classifier_width)):
        if width % o.groups or width % 2:
            raise UserError(f"{flag(name)} takes even multiples of {o.groups} (--groups); got {width}")
        channels = sorted(width * o.multipliers[factor.bit_length() - 1] for factor in attends)
        if wrong := [c for c in channels if c % o.head_width and (name == "width" or o.guidance_scale > 0)]:
            raise UserError(
                f"--head-width {o.head_width} does not divide the {wrong[0]} channels where {flag(name)} attends"
            )
    if o.betas[0] > o.betas[1] or 1000 / o.steps * o.betas[1] >= 1:
        raise UserError(f"--betas takes two ascending numbers, below 1 when scaled by 1000 / steps; got {o.betas}")
    if not 1 <= len(o.strength) <= 2 or list(o.strength) != sorted(o.strength):
        raise UserError(f"--strength takes one number, or two in ascending order; got {o.strength}")
    try:
        spaced_steps(o.steps, o.sampling_steps, o.spacing)
    except ValueError as error:
        raise UserError(f"--sampling-steps: {error}") from None
    if o.guidance_scale > 0 and not classes_of(o):
        raise UserError("--guidance-scale needs several categories and --conditional true: there is nothing to tell")
    if o.accumulation > o.batch_size:
        raise UserError(f"--accumulation takes up to --batch-size, {o.batch_size}; got {o.accumulation}")
