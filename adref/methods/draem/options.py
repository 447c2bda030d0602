"""The constants of DRAEM: options with their sources, presets, ablations, and departures from the paper."""

import math
from dataclasses import dataclass
from typing import Literal

from adref.method import Deviation
from adref.options import option


@dataclass(frozen=True)
class Options:
    """The constants of DRAEM that a reading or a size could set otherwise; the defaults are the paper preset."""

    size: tuple[int, int] = option(
        (256, 256), "height,width of the network's input; multiples of 32", "code", (64, 65536)
    )
    resize: Literal["bilinear", "antialias"] = option("bilinear", "filter that brings a picture to --size", "code; D1")
    reconstruction_width: int = option(128, "channels of the autoencoder's first level", "code", (1, math.inf))
    discriminator_width: int = option(64, "channels of the U-Net's first level", "code", (1, math.inf))
    epochs: int = option(700, "passes over the training images", "code", (0, math.inf))
    batch_size: int = option(8, "images a step", "code (README)", (1, math.inf))
    learning_rate: float = option(1e-4, "Adam's step size", "code", (0, math.inf))
    milestones: tuple[float, ...] = option(
        (0.8, 0.9), "shares of the epochs after which the rate falls", "code; D2", (0, 1)
    )
    milestone_factor: float = option(0.2, "factor by which it falls there", "code; D2", (0, 1))
    sampling: Literal["replacement", "shuffle"] = option("replacement", "how an epoch draws its images", "code; D3")
    ssim_weight: float = option(1.0, "weight of the SSIM loss", "code", (0, math.inf))
    ssim_range: Literal["one", "auto"] = option("one", "value range L of SSIM; auto: guessed as the code does", "D4")
    ssim_window: Literal["gaussian", "uniform"] = option("gaussian", "weights of SSIM's 11 x 11 window", "code")
    ssim_padding: Literal["zero", "valid"] = option("zero", "SSIM at the border: zeros outside, or inside only", "code")
    focal_alpha: float | None = option(None, "weight of the anomalous class, none: both weigh 1", "code", (0, 1))
    focal_gamma: float = option(2.0, "focusing exponent of the focal loss", "code", (0, math.inf))
    focal_smooth: float = option(1e-5, "clamp of the one-hot mask and addend of p_t", "code", (0, 0.5))
    anomaly_probability: float = option(0.5, "share of samples that are corrupted", "code", (0, 1))
    rotation_probability: float = option(0.3, "share of clean images that are rotated first", "code", (0, 1))
    rotation_degrees: float = option(90.0, "they turn by U(-d, d), black fill", "code; D5", (0, 180))
    perlin_exponents: tuple[int, int] = option(
        (0, 5), "the noise lattice has 2^i x 2^j cells, i and j from here", "code", (0, 12)
    )
    perlin_rotation: float = option(90.0, "the noise turns by U(-d, d) degrees", "code", (0, 180))
    mask_threshold: tuple[float, float] = option(
        (0.5, 0.5),
        "mask = noise > t, t drawn uniformly from here (write --mask-threshold=-0.1,0.5 where it is negative)",
        "code; D6",
        (-1, 1),
    )
    texture_weight: tuple[float, float] = option(
        (0.2, 1.0), "share of the texture under the mask, drawn uniformly from here", "code; D7", (0, 1)
    )
    own_texture_share: float = option(0.0, "share of textures that are moved training images", "D13", (0, 1))
    texture_operations: Literal["code", "paper"] = option("code", "10 kinds of operation, or the paper's 7", "D8")
    texture_operation_count: int = option(3, "different operations on each texture, in random order", "code", (0, 10))
    channel_order: Literal["rgb", "bgr"] = option("rgb", "order that colour operations believe in", "D9")
    discriminator_input: Literal["reconstruction_first", "image_first"] = option(
        "reconstruction_first", "order of the two pictures in the U-Net's six channels", "code"
    )
    score_window: int = option(21, "side of the score's mean filter, odd, pixels at --size", "code", (1, math.inf))


PRESETS = {
    "paper": {},
    # Half the side, so lattices and score window shrink with it; an eighth of the widths; more steps, larger ones.
    "tiny": {
        "size": (128, 128),
        "reconstruction_width": 16,
        "discriminator_width": 8,
        "epochs": 100,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "rotation_probability": 0.0,
        "perlin_exponents": (0, 4),
        "own_texture_share": 0.5,
        "score_window": 11,
    },
}


ABLATIONS = {
    "paper": {
        "milestones": (4 / 7, 6 / 7),
        "milestone_factor": 0.1,
        "rotation_degrees": 45.0,
        "mask_threshold": (0.0, 1.0),
        "texture_weight": (0.1, 1.0),
        "texture_operations": "paper",
    },
}


DEVIATIONS = (
    Deviation("D1", "Options.resize", "silent", "resize to 256 x 256", "bilinear, half-pixel centres, no antialias",
              "cv2.resize's default in the code; rounded once to 8 bits, where OpenCV uses fixed-point weights"),
    Deviation("D2", "Options.milestones", "contradiction", "rate x0.1 after 400 and 600 of 700 epochs",
              "x0.2 at 80 % and 90 % of the epochs", "the code's values made the released weights"),
    Deviation("D3", "Options.sampling", "silent", "nothing said", "each draw is any training image, with replacement",
              "the code's loader ignores the index that it is asked for"),
    Deviation("D4", "Options.ssim_range", "mistake", "images in [0, 1]", "L = 1",
              "the code guesses L from its first argument, the network's output: 1, 2, 255 or 256 early in training"),
    Deviation("D5", "Options.rotation_degrees", "contradiction", "rotation of normal images by +-45 degrees",
              "+-90 degrees, for 30 % of the images", "the code's values; the share is from the code alone"),
    Deviation("D6", "Options.mask_threshold", "contradiction", "a random uniform threshold, its range not given",
              "fixed at 0.5", "the code's value; the ablation 'paper' draws from U(0, 1), which is a guess"),
    Deviation("D7", "Options.texture_weight", "contradiction", "beta of the texture from U(0.1, 1.0)",
              "U(0.2, 1.0]", "the code weighs the image with 0.8 u, hence the texture with 1 - 0.8 u"),
    Deviation("D8", "Options.texture_operations", "contradiction", "seven kinds of operation",
              "ten: gamma, invert and rotation too", "the code's list"),
    Deviation("D9", "Options.channel_order", "mistake", "RGB", "colour operations see RGB",
              "the code hands BGR arrays to operations that take them for RGB; 'bgr' repeats that"),
    Deviation("D10", "adref.synthesis.textures", "substitution", "imgaug and OpenCV, 8-bit tables",
              "own formulas in float32, rounded once; Pillow's bilinear rotation",
              "two dependencies fewer; colour spaces agree with OpenCV within 2 grey levels on a colour grid (Luv of "
              "codes that are no colour aside); OpenCV's rotation interpolates at 1/32 pixel and blends into black; a "
              "rotated clean image stays unrounded here"),
    Deviation("D11", "draw_mask", "silent", "noise at 256 x 256", "lattice cells are never finer than 2 pixels",
              "below 64 pixels the code's finest lattices have no pixel between their points, or fail"),
    Deviation("D12", "PAPER_OPERATIONS", "ambiguous", "an operation called colour", "hue and saturation",
              "it stands in that operation's place in the code's list"),
    Deviation("D13", "Options.own_texture_share", "substitution", "textures come from another data set", "0; tiny: 0.5",
              "an addition, off at full size: a short training on foreign textures learns colour and little else, and "
              "never meets a defect made of the part's own material, such as a short circuit"),
)  # fmt: skip
