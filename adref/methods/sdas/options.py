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

    size: tuple[int, int] = option((256, 256), "height,width of the pictures", "code", (8, 65536))
    resize: Literal["antialias", "bilinear"] = option("antialias", "filter that brings a picture to --size", "code")
    categories: tuple[str, ...] = option((), "names of the categories, by the alphabet", "--category", is_flag=False)
    conditional: bool = option(True, "a label for each of several categories; false: one model without labels", "D4")
    width: int = option(256, "channels of the U-Net at full resolution, a multiple of --groups", "code", (2, math.inf))
    groups: int = option(32, "of every group norm", "code; D15", (1, 4096))
    multipliers: tuple[int, ...] = option(
        (1, 1, 2, 2, 4, 4), "channels of each level, as multiples; each level halves the sides", "code", (1, math.inf)
    )
    blocks: int = option(2, "residual blocks of a level", "code", (1, 64))
    attention_factors: tuple[int, ...] = option((8, 16, 32), "sides are divided by this where it attends", "code; D2")
    head_width: int = option(64, "channels of a head of the attention", "code", (1, math.inf))
    dropout: float = option(0.0, "in residual blocks", "code", (0, 0.99))
    steps: int = option(1000, "T, steps of the diffusion", "code", (2, 1_000_000))
    betas: tuple[float, float] = option((1e-4, 0.02), "first and last beta of 1000 steps", "code", (1e-9, 0.999))
    variance: Literal["half_shift", "direct"] = option(
        "half_shift", "f of equation 4: (v + 1) / 2, or v itself as the text has it", "code; D5"
    )
    vlb_weight: float = option(1e-3, "lambda of the variational term", "section on SDAS", (0, math.inf))
    vlb_weight_mode: Literal["sum", "per_step"] = option(
        "sum", "lambda weighs the sum over all T steps, or the step that is drawn", "code; D6"
    )
    vlb_unit: Literal["bits", "nats"] = option("bits", "unit of the variational term", "code; D6")
    epochs: int = option(240, "passes over the training images", "D1", (0, math.inf))
    batch_size: int = option(60, "images an update", "code: 5 on each of 4 GPUs, 3 times", (1, math.inf))
    accumulation: int = option(12, "parts of a batch, one after the other: memory for time", "D3", (1, math.inf))
    accumulation_rule: Literal["mean", "code"] = option(
        "mean", "the gradient of the whole batch is clipped once, or the sum after every part", "D3"
    )
    learning_rate: float = option(1e-4, "Adam's step size, constant", "code", (0, math.inf))
    clip: float = option(1.0, "largest norm of the gradient; 0: any", "code", (0, math.inf))
    ema_decay: float = option(0.9999, "decay of the average of the weights, which draws", "code", (0, 1))
    ema_warmup: bool = option(True, "a smaller decay in the beginning, (1 + n) / (10 + n)", "D9")
    classifier_width: int = option(128, "width of the classifier that guides", "code", (2, math.inf))
    classifier_epochs: int = option(240, "passes of its training; none where the scale is 0", "D1; D16", (0, math.inf))
    guidance_scale: float = option(0.0, "weight of the classifier's gradient; 0: no classifier", "D8", (0, math.inf))
    # What `python -m adref.synthesize RUN` may set anew:
    strength: tuple[float, ...] = option((0.1, 0.2), "s, or two ends of its range", "section on SDAS", (0, math.inf))
    strength_per: Literal["image", "batch"] = option("image", "for what one s is drawn", "D7")
    sampling_steps: int = option(20, "steps back", "section on SDAS", (1, 1_000_000))
    spacing: Literal["leading", "trailing", "even"] = option(
        "leading", "which of the T steps: 0, 50, ..., 950; 49, ..., 999; or from 0 to 999", "code; D10"
    )
    sampler: Literal["ancestral", "ddim"] = option("ancestral", "equation 7 or 8", "section on SDAS")
    ddim_variance: Literal["learned", "beta", "beta_tilde"] = option("learned", "V of equation 8", "code; D11")
    ddim_eta: float = option(0.0, "randomness of DDIM itself", "code", (0, 1))
    last_steps_fixed_small: int = option(0, "last steps that take btilde for Sigma", "D12", (0, 1_000_000))
    draw_batch: int = option(16, "pictures drawn at a time", "code", (1, math.inf))
    file_format: Literal["png", "jpeg75"] = option("png", "files of the pictures", "D13")


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
    Deviation("D1", "Options.epochs", "silent", "no length", "240 passes",
              "the released MVTec model's; the code runs up to 1000 and its authors stop by eye, others at "
              "120, 375 and 825. For the classifier nothing is known"),
    Deviation("D2", "Options.attention_factors", "mistake", "attention at resolutions 32, 16, 8",
              "at sides divided by 8, 16, 32",
              "the code takes the numbers of its configuration for factors, guided diffusion converts "
              "resolutions: both agree at 256 pixels alone"),
    Deviation("D3", "Options.accumulation_rule", "silent", "nothing said",
              "the mean over the batch, clipped once; in 12 parts of 5 images",
              "the code adds three gradients of 20 images and clips what there is after each: 'code', with "
              "--accumulation 3. (It also updates once after the first part alone.) Adam hides the scale, not "
              "the clip"),
    Deviation("D4", "Options.conditional", "silent", "one model or one a category is not said",
              "one model for all categories of --category, with labels", "the code's; a single category has no label"),
    Deviation("D5", "Options.variance", "ambiguous", "Sigma = exp(v log beta + (1 - v) log btilde)",
              "f = (v + 1) / 2, not clamped", "code and guided diffusion, whose weights it starts from"),
    Deviation("D6", "Options.vlb_weight_mode", "ambiguous", "L = L_simple + 0.001 L_vlb",
              "0.001 T = 1 times the term of the drawn step, in bits",
              "L_vlb is a sum over T steps; the code adds the drawn term with weight 1. 'per_step' is the "
              "common mistake"),
    Deviation("D7", "Options.strength_per", "contradiction", "s uniform in [0.1, 0.2]", "one s for each picture",
              "the code draws one for each batch of 16"),
    Deviation("D8", "Options.guidance_scale", "contradiction", "no word of guidance", "none",
              "the code guides with scale 1 unless told not to; its authors call it unnecessary"),
    Deviation("D9", "Options.ema_warmup", "substitution", "as in guided diffusion",
              "decay min(0.9999, (1 + n)/(10 + n))",
              "a fixed decay keeps 91 % of random first weights after 1000 updates; from ImageNet weights it "
              "is harmless"),
    Deviation("D10", "Options.spacing", "silent", "20 steps", "0, 50, ..., 950, which the network is given",
              "the code's 'ddim20', for both samplers: it never starts from t = 999"),
    Deviation("D11", "Options.ddim_variance", "ambiguous", "three variances for DDIM", "the learned one",
              "which three is reconstructed; the code has this one alone, and strengths of 0.01 to 0.03"),
    Deviation("D12", "Options.last_steps_fixed_small", "substitution", "nothing", "0",
              "an addition, off: little training leaves too much variance in the last steps, which shows as grain"),
    Deviation("D13", "Options.file_format", "contradiction", "no format", "PNG",
              "the code writes JPEG of quality 75, whose blocks an anomaly detector could learn"),
    Deviation("D14", "SDAS.load_weights", "mistake", "starts from ImageNet weights",
              "all must fit but the table of labels, which is then named",
              "the code skips what does not fit without a word: its table of labels stays random"),
    Deviation("D15", "Options.groups", "substitution", "32 groups, as in guided diffusion", "32; tiny: 8",
              "32 channels in 32 groups are normalised one by one: the network cannot tell the mean of the "
              "noise, which at the first step back counts 97 times in x_0, and every picture gets a hue of its " "own"),
    Deviation("D16", "Options.classifier_epochs", "substitution", "no word of a classifier",
              "it trains on the batches, at the rate and with the clipping of the diffusion model",
              "the code has batches of 20 on each of two GPUs, the rest alike, and starts from "
              "256x256_classifier.pt"),
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
