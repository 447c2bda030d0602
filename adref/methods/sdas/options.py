"""Options of SDAS with their sources and readings, presets, ablations, and departures that are no option."""

from dataclasses import dataclass
from math import inf
from typing import Literal

from adref.method import Deviation
from adref.methods.sdas.schedule import spaced_steps
from adref.options import UserError, flag, option

STEPS = 1000  # T, steps of the diffusion (code)


@dataclass(frozen=True)
class Options:
    """The defaults are the paper preset: the code's values for MVTec AD, at full size."""

    # fmt: off
    size: tuple[int, int] = option((256, 256), "height,width of the images", "code", limits=(8, 65536))
    resize: Literal["antialias", "bilinear"] = option("antialias", "filter that resizes images to --size", "code")
    categories: tuple[str, ...] = option((), "names of the categories, sorted", "--category", is_flag=False)
    conditional: bool = option(True, "a label for each of several categories; false: no labels", "code", kind="silent",
        paper="the scope of a model is not given", why="the code's, one model a data set; one category has no label")
    width: int = option(256, "channels at full resolution, a multiple of --groups", "code", limits=(2, inf))
    groups: int = option(32, "groups of every group norm; tiny: 8", "code", limits=(1, 4096), kind="substitution",
        paper="32 groups, as in guided diffusion", why="with 32 channels in 32 groups the network cannot tell the mean "
        "of the noise, which counts 97 times in x_0 at the first step back: every image gets another hue")
    multipliers: tuple[int, ...] = option((1, 1, 2, 2, 4, 4), "channels of each level, as multiples of --width; each "
        "level halves the sides", "code", limits=(1, inf))
    blocks: int = option(2, "residual blocks of a level", "code", limits=(1, 64))
    attention_factors: tuple[int, ...] = option((8, 16, 32), "attention where the sides are divided by one of these",
        "code", kind="mistake", paper="attention at resolutions 32, 16, 8", why="the code takes the numbers of its "
        "configuration for factors, guided diffusion converts resolutions: both agree at 256 pixels alone")
    head_width: int = option(64, "channels of an attention head", "code", limits=(1, inf))
    variance: Literal["half_shift", "direct"] = option(
        "half_shift", "f of Sigma: (v + 1) / 2, not clamped, or v itself", "code", kind="ambiguous",
        paper="Sigma = exp(v log beta + (1 - v) log btilde)", why="as guided diffusion, from whose weights it starts")
    vlb_weight_mode: Literal["sum", "per_step"] = option("sum", "lambda weighs the sum over T steps, or the drawn step",
        "code", kind="ambiguous", paper="L = L_simple + 0.001 L_vlb", why="L_vlb sums T steps: in the code the drawn "
        "term, in bits, has the weight 0.001 T = 1. per_step is the common mistake")
    steps: int = option(14_560, "updates of the weights, of --batch-size images each, fewer at the end of a pass",
        "released models", limits=(0, inf), kind="silent", paper="no length", why="those of MVTec AD's model: a "
        "third of 43,680 parts, 240 passes; others have 11,250 (375 passes), 12,375 (825), 17,320 (120), by eye")
    batch_size: int = option(60, "images an update", "code: 5 on each of 4 GPUs, 3 times", limits=(1, inf))
    accumulation: int = option(12, "parts of a batch: memory for time", "adref", limits=(1, inf))
    accumulation_rule: Literal["mean", "code"] = option(
        "mean", "clips the gradient of the whole batch once, or the sum after every part", "adref", kind="silent",
        paper="not given", why="the code adds three gradients of 20 images and clips after each: code, with "
        "--accumulation 3. (Its first update has one part alone.) Adam hides the scale, not the clipping")
    learning_rate: float = option(1e-4, "Adam's step size, constant", "code", limits=(0, inf))
    ema_warmup: bool = option(True, "decay of the average at most (1 + n) / (10 + n) after n updates", "adref",
        kind="substitution", paper="as in guided diffusion", why="the fixed decay keeps 91 % of random first weights "
        "after 1000 updates; from ImageNet weights it is harmless")
    classifier_width: int = option(128, "width of the guiding classifier", "code", limits=(2, inf))
    classifier_steps: int = option(0, "updates of its weights, the second stage; 0: none", "adref",
        limits=(0, inf), kind="substitution", paper="no classifier", why="trained as the diffusion model; the "
        "code has batches of 20 on each of 2 GPUs and starts from 256x256_classifier.pt")
    guidance_scale: float = option(0.0, "weight of its gradient in sampling; 0: unguided", "adref", limits=(0, inf),
        kind="contradiction", paper="no guidance", why="the code's default is 1; its authors call it unnecessary")
    strength: tuple[float, ...] = option((0.1, 0.2), "s of sampling, or the two ends of its range", "section on SDAS",
        limits=(0, inf))
    strength_per: Literal["image", "batch"] = option("image", "one s for each image, or for 16 images", "adref",
        kind="contradiction", paper="s uniform in [0.1, 0.2]", why="the code draws one for each batch of 16")
    sampling_steps: int = option(20, "steps of sampling, evenly spaced from 0", "section on SDAS", limits=(1, STEPS))
    sampler: Literal["ancestral", "ddim", "ddim-beta", "ddim-btilde"] = option(
        "ancestral", "Algorithm 1, or S1 with V learned, beta or btilde", "section on SDAS",
        kind="ambiguous", paper="Algorithm 1; S1 with three variances, not named", why="the three are reconstructed; "
        "the code has the learned one alone, with strengths of 0.01 to 0.03")
    file_format: Literal["png", "jpeg75"] = option("png", "format of the sampled files", "adref",
        kind="contradiction", paper="no format", why="the code writes JPEG 75, whose blocks a detector could learn")
    # fmt: on


SAMPLING = ("strength", "strength_per", "sampling_steps", "sampler", "guidance_scale", "file_format")

PRESETS = {
    "paper": {},
    # The published multipliers for 64 pixels, and as many images as the paper preset sees.
    "64": {"size": (64, 64), "width": 64, "multipliers": (1, 2, 3, 4), "attention_factors": (4, 8), "steps": 27_300,
           "batch_size": 32, "accumulation": 1},
    # 50 passes over the 120 generated sample pictures.
    "tiny": {"size": (64, 64), "width": 32, "groups": 8, "multipliers": (1, 2, 2, 4), "attention_factors": (4, 8),
             "head_width": 32, "classifier_width": 32, "steps": 750, "batch_size": 8, "accumulation": 1,
             "learning_rate": 5e-4},
}  # fmt: skip

ABLATIONS = {
    "code": {"accumulation": 3, "accumulation_rule": "code", "ema_warmup": False, "classifier_steps": 14_560,
             "guidance_scale": 1.0, "strength_per": "batch", "file_format": "jpeg75"},
    "unconditional": {"conditional": False},
    "literal": {"variance": "direct", "ema_warmup": False},
}  # fmt: skip

DEVIATIONS = (
    Deviation("SDAS.load_weights", "mistake", "starts from ImageNet weights", "all must fit except the table of labels",
              "the code silently skips all that does not fit: its table of labels stays random; here a notice says so"),
    Deviation("schedule.spaced_steps", "silent", "20 steps", "0, 50, ..., 950, for both samplers",
              "the code's 'ddim20': sampling never starts from t = 999"),
)  # fmt: skip


def classes_of(o: Options) -> int:
    """Returns the number of labels; 0: none, also for a single category."""
    return len(o.categories) if o.conditional and len(o.categories) > 1 else 0


def check(o: Options) -> None:
    """Raises UserError for options that do not fit together."""
    stride = 2 ** (len(o.multipliers) - 1)
    if any(side % stride for side in o.size):
        raise UserError(f"--size takes multiples of {stride}, with {len(o.multipliers)} levels; got {o.size}")
    factors = {2**level: m for level, m in enumerate(o.multipliers)}
    if unknown := set(o.attention_factors) - set(factors):
        raise UserError(f"--attention-factors takes some of {', '.join(map(str, factors))}; got {min(unknown)}")
    for name, width in (("width", o.width), ("classifier_width", o.classifier_width)):
        if width % o.groups or width % 2:
            raise UserError(f"{flag(name)} takes even multiples of {o.groups} (--groups); got {width}")
        channels = sorted(width * factors[factor] for factor in {*o.attention_factors, stride})
        if wrong := [c for c in channels if c % o.head_width and (name == "width" or o.classifier_steps)]:
            where = f"the {wrong[0]} channels where {flag(name)} attends"
            raise UserError(f"--head-width {o.head_width} does not divide {where}")
    if len(o.strength) not in (1, 2) or list(o.strength) != sorted(o.strength):
        raise UserError(f"--strength takes one number, or two in ascending order; got {o.strength}")
    try:
        spaced_steps(STEPS, o.sampling_steps)
    except ValueError as error:
        raise UserError(f"--sampling-steps: {error}") from None
    if o.classifier_steps and not classes_of(o):
        raise UserError("--classifier-steps needs several categories and --conditional true: there are no labels")
    if o.guidance_scale > 0 and not o.classifier_steps:
        raise UserError("--guidance-scale needs a model that was trained with --classifier-steps above 0")
    if o.accumulation > o.batch_size:
        raise UserError(f"--accumulation takes up to --batch-size, {o.batch_size}; got {o.accumulation}")
