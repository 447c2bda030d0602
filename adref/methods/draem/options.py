"""Options of DRAEM with their sources and readings, presets, ablations, and departures that are no option."""

from dataclasses import dataclass
from math import inf
from typing import Literal

from adref.layers.unet import UNet
from adref.method import STEPS, Deviation
from adref.options import UserError, option, require_ascending


@dataclass(frozen=True)
class Options:
    """The defaults are the paper preset; "code" is the authors' code."""

    # fmt: off
    size: tuple[int, int] = option((256, 256), "height,width of the network's input; multiples of 32", "code",
                                   limits=(64, 65536))
    resize: Literal["bilinear", "antialias"] = option(
        "bilinear", "filter that resizes images to --size", "code", kind="silent", paper="resize to 256 x 256",
        why="cv2.resize's default: half-pixel centres, no antialias; here rounded once to 8 bits")
    reconstruction_width: int = option(128, "channels of the autoencoder's first level", "code", limits=(1, inf))
    discriminator_width: int = option(64, "channels of the U-Net's first level", "code", limits=(1, inf))
    epochs: int = option(700, "passes over the training images", "code", limits=(0, inf))
    steps: int | None = option(None, STEPS, "adref", limits=(1, inf))
    batch_size: int = option(8, "images a step", "code (README)", limits=(1, inf))
    learning_rate: float = option(1e-4, "Adam's step size", "code", limits=(0, inf))
    milestones: tuple[float, ...] = option(
        (0.8, 0.9), "shares of the length after which the rate falls", "code", limits=(0, 1), kind="contradiction",
        paper="after 400 and 600 of 700 epochs", why="the code's values made the released weights")
    milestone_factor: float = option(0.2, "factor by which the rate falls there", "code", limits=(0, 1),
                                     kind="contradiction", paper="0.1", why="as --milestones")
    ssim_range: Literal["one", "auto"] = option("one", "value range L of SSIM; auto: guessed as the code does", "adref",
        kind="mistake", paper="images in [0, 1]", why="the code guesses L from the network's output: 1, 2, 255 or 256 "
        "early in training")
    rotation_probability: float = option(0.3, "share of clean images that are rotated first", "code", limits=(0, 1))
    rotation_degrees: float = option(90.0, "they rotate by U(-d, d), black fill", "code", limits=(0, 180),
                                     kind="contradiction", paper="+-45 degrees, the share of images not given",
                                     why="the code's values made the released weights")
    perlin_exponents: tuple[int, int] = option(
        (0, 5), "the noise lattice has 2^i x 2^j cells, i and j from here", "code", limits=(0, 12))
    mask_threshold: tuple[float, float] = option((0.5, 0.5), "mask = noise > t, t drawn uniformly from here (write "
        "--mask-threshold=-0.1,0.5)", "code", limits=(-1, 1), kind="contradiction", paper="a random uniform threshold, "
        "its range not given", why="the code fixes it; the ablation literal draws from U(0, 1), which is a guess")
    texture_weight: tuple[float, float] = option((0.2, 1.0), "share of the texture under the mask, drawn uniformly "
        "from here", "code", limits=(0, 1), kind="contradiction", paper="beta of the texture from U(0.1, 1.0)",
        why="the code weighs the image with 0.8 u, hence the texture with 1 - 0.8 u")
    own_texture_share: float = option(0.0, "share of textures that are moved training images", "adref", limits=(0, 1),
        kind="substitution", paper="textures come from another data set", why="an addition, .5 at tiny and "
        "small: a short training on foreign textures learns colour and little else, and never meets a defect made of "
        "the part's own material, such as a short circuit")
    texture_colours: Literal["own", "image"] = option(
        "own", "image: textures lose their colours where the image has none", "adref", kind="substitution",
        paper="textures in colour", why="an addition, image at tiny and small: in grey images foreign colours "
        "alone tell half of the textures, and so short a training learns that first")
    visible: float | None = option(
        None, "grey levels by which a pixel must change to be labelled; none: all under the mask are", "adref",
        limits=(0, 255), kind="substitution", paper="the mask is the label", why="an addition, 8 at tiny and "
        "small: a faint texture, above all of the part itself, is a label that a short training cannot learn")
    texture_operations: Literal["code", "paper"] = option("code", "10 kinds of operation, or the paper's 7", "code",
        kind="contradiction", paper="seven kinds: no gamma, inversion and rotation", why="the code's list")
    channel_order: Literal["rgb", "bgr"] = option(
        "rgb", "channel order that the colour operations assume", "adref", kind="mistake", paper="RGB",
        why="the code hands BGR arrays to operations that take them for RGB; bgr repeats that")
    score_window: int = option(21, "side of the score's mean filter, odd, pixels at --size", "code", limits=(1, inf))
    # fmt: on


# Half the side, so the lattices shrink with it; an eighth of the widths; a small score window for small defects;
# textures and labels are such as so few, larger steps can learn.
TINY = {"size": (128, 128), "reconstruction_width": 16, "discriminator_width": 8, "steps": 1600, "batch_size": 4,
        "learning_rate": 1e-3, "rotation_probability": 0.0, "perlin_exponents": (0, 4), "own_texture_share": 0.5,
        "texture_colours": "image", "visible": 8.0, "score_window": 5}  # fmt: skip
# small is a guess: the paper's side and lattices, tiny's window for that side, and what an hour or two trains.
PRESETS = {
    "paper": {}, "tiny": TINY,
    "small": {**TINY, "size": (256, 256), "reconstruction_width": 24, "discriminator_width": 12, "steps": 6000,
              "perlin_exponents": (0, 5), "score_window": 11},
}  # fmt: skip

ABLATIONS = {
    "literal": {"milestones": (4 / 7, 6 / 7), "milestone_factor": 0.1, "rotation_degrees": 45.0,
                "mask_threshold": (0.0, 1.0), "texture_weight": (0.1, 1.0), "texture_operations": "paper"},
}  # fmt: skip

DEVIATIONS = (
    Deviation("DRAEM.stages", "silent", "the order of the images in an epoch is not given", "each draw is any training "
              "image, with replacement", "the code's loader ignores the index that it is asked for"),
    Deviation("ops.textures", "substitution", "imgaug and OpenCV, 8-bit tables", "formulas in float32, rounded once; "
              "Pillow's bilinear rotation", "two dependencies fewer; colours agree with OpenCV's within 2 grey levels "
              "on a grid (except Luv codes of no colour); OpenCV rotates with 1/32-pixel interpolation into black; a "
              "rotated clean image stays unrounded here"),
    Deviation("ops.perlin.draw_perlin", "silent", "noise at 256 x 256", "lattice cells are never finer than 2 pixels",
              "below 64 pixels the code's finest lattices have no pixel between their points, or fail"),
    Deviation("ops.textures.PAPER_OPERATIONS", "ambiguous", "an operation called colour", "hue and saturation",
              "it stands in that operation's place in the code's list"),
)  # fmt: skip


def check(o: Options) -> None:
    """Raises UserError for options that do not fit together."""
    if o.size[0] % UNet.stride or o.size[1] % UNet.stride:
        raise UserError(f"--size takes multiples of {UNet.stride}; got {o.size[0]},{o.size[1]}")
    require_ascending(o, "perlin_exponents", "mask_threshold", "texture_weight")
    if o.score_window % 2 == 0 or o.score_window > min(o.size):
        raise UserError(f"--score-window takes an odd number of pixels up to {min(o.size)}; got {o.score_window}")
