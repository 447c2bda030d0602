"""The constants of SeRNet: options with their sources, presets, ablations, and departures from the paper."""

import math
from dataclasses import dataclass
from typing import Literal

from adref.method import Deviation
from adref.options import UserError, flag, option, require_ascending

INF = math.inf


@dataclass(frozen=True)
class Options:
    """The constants of SeRNet and their other readings; the defaults are the paper preset."""

    # TODO here: D1: 256 x 256, bilinear with antialiasing, [0, 1]
    size: tuple[int, int] = option(
        (256, 256), "height,width of the input, multiples of 16", "adref", limits=(32, 65536), kind="silent",
        paper="nothing in what was at hand", why="EdgRec's and DRAEM's size",
    )  # fmt: skip
    # TODO see ['D1']
    resize: Literal["bilinear", "antialias"] = option("antialias", "filter that brings a picture to --size", "adref")
    # the two networks
    segmentation: bool = option(True, "the first network; false: nothing is repaired", "section Method")
    # TODO here: D2: 64, doubled up to 512; two convolutions, each with batch norm and ReLU, a layer
    width: int = option(
        64, "channels of the first level of both networks", "adref", limits=(1, 65536), kind="silent",
        paper="U-Nets of 3 and 5 convolutional layers; widths lost",
        why="the blocks of DRAEM and EdgRec; 1 convolution and 16 times the width at the bottom are options",
    )  # fmt: skip
    # TODO see ['D2']
    bottom_factor: int = option(8, "channels of the second network's last level, in --width", "adref", limits=(1, 64))
    # TODO see ['D2']
    convolutions: int = option(2, "convolutions in a convolutional layer", "adref", limits=(1, 8))
    # TODO here: D3: concatenated in both
    segmentation_skip: Literal["concat", "add", "none"] = option(
        "concat", "skips of the first network", "adref", kind="ambiguous",
        paper="skips are named for the reconstruction network; both are 'classical U-Nets'",
        why="a U-Net has them; added skips need a 1 x 1 convolution where the widths differ, which is ours",
    )  # fmt: skip
    # TODO see ['D3']
    reconstruction_skip: Literal["concat", "add", "none"] = option("concat", "of the second", "section Method")
    # TODO here: D29: bilinear, half-pixel centres
    align_corners: bool = option(
        False, "bilinear up-sampling with aligned corners", "adref", kind="silent", paper="up-sampling",
        why="DRAEM and EdgRec align the corners, an option",
    )  # fmt: skip
    # TODO here: D4: sigmoid for the mask; none, clipped for the map alone
    output_activation: Literal["none", "sigmoid"] = option(
        "none", "of the second network", "adref", kind="silent",
        paper="masks in [0, 1]; nothing about the reconstruction", why="EdgRec and DRAEM have none",
    )  # fmt: skip
    # repair and the similar image
    # TODO here: D11: 0.5, equality counts as above; equation 4, reconstructed: a hard paste
    threshold: float = option(
        0.5, "of the predicted mask", "adref", limits=(0, 1), kind="silent",
        paper="below the threshold 0, above 1; its value is lost", why="the middle; confidence of the form high",
    )  # fmt: skip
    # TODO see ['D11']
    threshold_inclusive: bool = option(True, "a value equal to the threshold is repaired", "adref")
    # TODO here: D12: 0.025 of the pixels, 8-connected
    area: float = option(
        0.025, "regions of a smaller share of the pixels are not repaired (nor made, see --ppa-area)", "adref",
        limits=(0, 1), kind="silent",
        paper="regions below an area are dropped; value, unit and connectivity are lost",
        why="the only scale in the text is DPA's 2.5 %",
    )  # fmt: skip
    # TODO see ['D12']
    connectivity: int = option(
        8, "a region's pixels touch at sides and corners (8), or sides (4)", "adref", limits=(4, 8),
    )  # fmt: skip
    repair: Literal["similar", "zero", "mean", "none"] = option(
        "similar", "what replaces a region: a similar image, 0, the image's mean colour, nothing", "section Method",
    )  # fmt: skip
    # TODO see ['D11']
    feather: float = option(
        0.0, "sigma of the Gaussian that softens the pasted mask, pixels", "adref", limits=(0, 1000),
    )  # fmt: skip
    # TODO here: D27: pasted as it is, without alignment
    similar: Literal["phash", "random", "first", "self"] = option(
        "phash", "the training image that repairs a test image; self: the test image, so that nothing changes",
        "Alg. 2", kind="silent", paper="the image with the smallest distance",
        why="none is described: turned or moved parts get a part in another place",
    )  # fmt: skip
    # TODO here: D14: of the picture in the file at its own size, as it is read here: alpha over white, turned by EXIF, 16 bits scaled
    hash_on: Literal["file", "resized"] = option(
        "file", "hash a picture at its own size, or at --size", "adref", kind="silent",
        paper="perceptual hashes of images",
        why="a resized copy has other bits; what lies under alpha is no picture. Where only tensors are at hand "
        "(`anomaly_map` without looks), hashes of the resized training images are searched, like with like",
    )  # fmt: skip
    # TODO here: D26: hashes and resized pictures, 8 bits, in the checkpoint; the first of equal distances
    bank: Literal["pictures", "paths"] = option(
        "pictures", "what a checkpoint holds of the training images beside their hashes", "adref", kind="silent",
        paper="hashes of all training images are stored",
        why="a trained run then needs no data set; --bank paths stores names. Held-out images (T1) are not in it",
    )  # fmt: skip
    # TODO here: D13: the normal image itself
    train_similar: Literal["self", "phash", "random"] = option(
        "self", "what repairs a training sample: the normal image itself, the nearest other, any other", "adref",
        kind="ambiguous", paper="'the corresponding region' of an image repairs a training sample",
        why="no search is described for training; 'phash' is nearer to the test",
    )  # fmt: skip
    # pseudo-anomalies
    # TODO see ['D18']
    segment_mix: tuple[float, float, float] = option(
        (1.0, 0.0, 1.0), "shares of PPA, DPA and clean samples of the first network", "section Training",
        limits=(0, 1000000.0),
    )  # fmt: skip
    # TODO here: D18: half PPA, half clean; thirds of PPA, DPA, clean. All of them pass the first network and the repair
    reconstruct_mix: tuple[float, float, float] = option(
        (1.0, 1.0, 1.0), "the same of the second", "section Training", limits=(0, 1000000.0), kind="silent",
        paper="PPA trains the first network, PPA and DPA the second; proportions lost",
        why="DRAEM corrupts every other image",
    )  # fmt: skip
    # TODO see ['D19']
    rotation_probability: float = option(0.0, "share of clean images that are rotated first", "adref", limits=(0, 1))
    # TODO see ['D19']
    rotation_degrees: float = option(90.0, "by U(-d, d), black fill", "U (DRAEM)", limits=(0, 180))
    # TODO here: D25: any other training image, uniform; itself where it is the only one (so for --train-similar, too)
    ppa_source: Literal["category", "textures"] = option(
        "category", "pictures that are pasted: of the category, or of --textures", "section Method", kind="ambiguous",
        paper="another image of the category", why="no choice is described",
    )  # fmt: skip
    # TODO here: D6: the quarters of one picture, in another order
    ppa_pieces: Literal["one", "several"] = option(
        "one", "four quarters of one picture, or of four", "adref", kind="ambiguous",
        paper="'four pieces, recombined at random'", why="pieces of several pictures are the other reading",
    )  # fmt: skip
    ppa_exponents: tuple[int, int] = option(
        (0, 5), "the noise lattice has 2^i x 2^j cells of 2 pixels or more, i and j from here", "U (DRAEM)",
        limits=(0, 12),
    )  # fmt: skip
    ppa_noise_degrees: float = option(90.0, "the noise turns by U(-d, d)", "U (DRAEM)", limits=(0, 180))
    ppa_level: float = option(0.5, "the mask is where the noise is above it", "U (DRAEM)", limits=(-1, 1))
    # TODO here: D5: those below --area; at most 50 draws
    ppa_area: float | None = option(
        None, "regions of the mask of a smaller share of the pixels are dropped; none: --area", "adref",
        limits=(0, 1), kind="silent", paper="small regions of the Perlin mask are removed; how small is lost",
        why="the first network shall learn what the repair keeps",
    )  # fmt: skip
    # TODO see ['D5']
    draws: int = option(50, "draws of a mask before the sample stays clean", "adref", limits=(1, 1000))
    # TODO here: D7: factors 0.7 to 1.3 (Pillow, 8 bits), 45 degrees, scale 0.8 to 1.2, shift 0.1; bilinear, mirrored outside
    ppa_factors: tuple[float, float] = option(
        (0.7, 1.3), "factor of brightness, contrast and saturation of the source, from here", "adref",
        limits=(0, 100), kind="silent", paper="random brightness, contrast, colour and affine change",
        why="no range is given",
    )  # fmt: skip
    # TODO see ['D7']
    ppa_degrees: float = option(45.0, "the source turns by U(-d, d)", "adref", limits=(0, 180))
    # TODO see ['D7']
    ppa_scale: tuple[float, float] = option((0.8, 1.2), "its scale, from here", "adref", limits=(0.01, 100))
    # TODO see ['D7']
    ppa_shift: float = option(0.1, "it moves by U(-s, s) of each side", "adref", limits=(0, 1))
    ppa_beta: tuple[float, float] = option((0.0, 0.8), "beta, from here", "section Method", limits=(0, 1))
    # TODO here: D8: equation 1, reconstructed: beta weighs the original under the mask
    ppa_beta_on: Literal["original", "source"] = option(
        "original", "what beta weighs", "adref", kind="ambiguous",
        paper="a weight in [0, 0.8], a complement mask, a product", why="DRAEM's form; confidence high",
    )  # fmt: skip
    # TODO see ['D9']
    dpa_area: tuple[float, float] = option(
        (0.002, 0.025),
        "a base covers from the first to the second share (divided by the bases), 2 x 2 pixels at least",
        "section Method", limits=(1e-06, 1),
    )  # fmt: skip
    # TODO see ['D9']
    dpa_aspect: float = option(
        3.0, "its height / width is between 1 / a and a, uniform in the logarithm", "adref", limits=(1, 100),
    )  # fmt: skip
    dpa_bases: tuple[int, int] = option((1, 2), "number of bases, from here", "section Method", limits=(1, 1000))
    dpa_attached: tuple[int, int] = option(
        (2, 4), "number of attached rectangles; in all, one for each base at least", "section Method",
        limits=(0, 1000),
    )  # fmt: skip
    # TODO see ['D9']
    dpa_attached_to: Literal["total", "each"] = option("total", "that is of all, or of each base", "adref")
    # TODO see ['D9']
    dpa_sides: tuple[float, float] = option((0.3, 1.0), "their sides, in those of the base", "adref", limits=(0, 10))
    # TODO here: D9: the bases together stay below; two to four in all, with 0.3 to 1 times a base's sides, clipped at the border
    dpa_limit: Literal["bases", "union"] = option(
        "bases", "what stays below the second of --dpa-area", "adref", kind="ambiguous",
        paper="one or two rectangles below 2.5 % of the area, two to four adjacent ones",
        why="sum, union or each; total or each: not said. Areas, aspects and sides are ours",
    )  # fmt: skip
    # TODO here: D10: equation 2, reconstructed: both are added; +-0.3 and +-0.2, one channel by 0.1 at least
    dpa_mode: Literal["additive", "multiplicative"] = option(
        "additive", "the colour moves by a value, or a share", "adref", kind="silent",
        paper="'a random brightness and a random colour value'",
        why="confidence medium: the terms are named, how they act is not",
    )  # fmt: skip
    # TODO see ['D10']
    dpa_brightness: float = option(0.3, "b from U(-b, b), all channels", "adref", limits=(0, 1))
    # TODO see ['D10']
    dpa_colour: float = option(0.2, "c from U(-c, c), each channel", "adref", limits=(0, 1))
    # TODO see ['D10']
    dpa_least: float = option(0.1, "drawn again while no channel moves that far", "adref", limits=(0, 1))
    # losses and training
    # TODO see ['D17']
    mse_weight: float = option(1.0, "weight of the squared error", "adref", limits=(0, INF))
    # TODO here: D17: equation 3, reconstructed: weights 1 and 1; Gaussian 11, sigma 1.5, zeros outside, range 1
    ssim_weight: float = option(
        1.0, "weight of 1 - SSIM", "adref", limits=(0, INF), kind="silent",
        paper="mean squared error and SSIM for both networks",
        why="RIAD's SSIM; confidence high, of the weights medium",
    )  # fmt: skip
    # TODO see ['D17']
    ssim_padding: Literal["zero", "reflect"] = option("zero", "SSIM's 11 x 11 window at the border", "U (RIAD)")
    # TODO see ['D17']
    segmentation_loss: Literal["mse+ssim", "bce"] = option("mse+ssim", "of the first network", "section Method")
    # TODO here: D19: Adam at 1e-4, batch 8, 800 epochs each, rate x0.2 at 80 % and 90 %; no rotation; the last epoch
    epochs: int = option(
        800, "passes over the training images, for each network", "U (EdgRec)", limits=(0, INF), kind="silent",
        paper="trained one after the other; all else is lost",
        why="EdgRec's and DRAEM's; DRAEM turns 30 % of the images, an option here",
    )  # fmt: skip
    # TODO see ['D19']
    batch_size: int = option(8, "images a step", "U (EdgRec)", limits=(1, INF))
    # TODO see ['D19']
    learning_rate: float = option(0.0001, "Adam's step size", "U (EdgRec)", limits=(0, INF))
    # TODO see ['D19']
    milestones: tuple[float, ...] = option(
        (0.8, 0.9), "shares of the epochs after which the rate falls", "U (EdgRec)", limits=(0, 1),
    )  # fmt: skip
    # TODO see ['D19']
    milestone_factor: float = option(0.2, "by which it falls there", "U (EdgRec)", limits=(0, 1))
    # the map
    score: Literal["sum", "structure", "colour"] = option("sum", "what the map is", "Eq 7")
    colour_weight: float = option(0.001, "c", "section Method", limits=(0, 1000000.0))
    # TODO here: D23: equation 7, reconstructed: c weighs the colour
    weight_on: Literal["colour", "structure"] = option(
        "colour", "the term that c weighs", "adref", kind="ambiguous", paper="c = 0.001 balances the terms",
        why="EdgRec; squared differences of colour are the larger by far",
    )  # fmt: skip
    # TODO here: D20: equation 5, reconstructed: squared, in unrounded CIELAB (D65)
    colour: Literal["cielab", "edgrec"] = option(
        "cielab", "a and b, or EdgRec's way in 8 bits, which overflows and has its own filter (for comparisons)",
        "adref", kind="ambiguous", paper="difference of the channels a and b",
        why="EdgRec squares; its code works in 8 bits, where 16^2 is 0 and sums overflow; confidence medium to high. "
        "Our 8-bit Lab is within 2 of OpenCV's, so 'edgrec' is near its code, not equal to it",
    )  # fmt: skip
    # TODO see ['D20']
    colour_norm: Literal["squared", "absolute"] = option("squared", "of their differences", "U (EdgRec)")
    # TODO here: D21: equation 6, reconstructed: 4 scales, each channel, zeros outside
    msgms_scales: int = option(
        4, "scales of the gradient similarity", "U (RIAD)", limits=(1, 12), kind="silent",
        paper="multi-scale gradient magnitude similarity",
        why="RIAD has 4, EdgRec's code 2; confidence high, of the scales low. Zero padding marks the frame (an "
        "option)",
    )  # fmt: skip
    # TODO see ['D21']
    msgms_grey: bool = option(
        False, "of grey values after a median filter (a port of RIAD, with --msgms-padding none)", "adref",
    )  # fmt: skip
    # TODO see ['D21']
    msgms_padding: Literal["zero", "replicate", "none"] = option("zero", "its border", "adref")
    # TODO here: D22: a mean filter, mirrored at the border
    smooth: Literal["mean", "gaussian"] = option(
        "mean", "filter of both terms; the Gaussian has sigma side / 3", "adref", kind="silent",
        paper="filters of size 21",
        why="EdgRec and DRAEM; a port of RIAD has a Gaussian of sigma 7. EdgRec mirrors colour and pads structure "
        "with zeros: --colour edgrec --smooth-border zero",
    )  # fmt: skip
    smooth_side: int = option(21, "its side, odd, pixels at --size", "section Method", limits=(1, 65535))
    # TODO see ['D22']
    smooth_border: Literal["reflect", "zero"] = option("reflect", "the mean filter at the border", "adref")


PRESETS = {
    "paper": {},
    # Half the side, so filter, lattices and scales shrink with it; a quarter of the width; fewer steps, larger ones. At
    # that rate squared error and SSIM soon make every mask empty, and nothing brings it back (D31).
    "tiny": {
        "size": (128, 128), "width": 16, "ppa_exponents": (0, 4), "segmentation_loss": "bce", "epochs": 100,
        "batch_size": 4, "learning_rate": 1e-3, "msgms_scales": 3, "smooth_side": 11,
    },
}  # fmt: skip


ABLATIONS = {
    "no-segmentation": {"segmentation": False},
    **{f"repair-{kind}": {"repair": kind} for kind in ("none", "zero", "mean")},
    "ppa": {"segment_mix": (1, 0, 1), "reconstruct_mix": (2, 0, 1)},
    "dpa": {"segment_mix": (0, 1, 1), "reconstruct_mix": (0, 2, 1)},
    "segment-both": {"segment_mix": (1, 1, 2)},
    "segment-dpa": {"segment_mix": (0, 1, 1)},
    "reconstruct-ppa": {"reconstruct_mix": (2, 0, 1)},
    "reconstruct-dpa": {"reconstruct_mix": (0, 2, 1)},
    "no-ppa-filter": {"ppa_area": 0.0},
    "textures": {"ppa_source": "textures"},
    **{f"threshold-{share}": {"threshold": float(share)} for share in ("0.3", "0.7")},
    **{f"area-{share}": {"area": float(share), "ppa_area": 0.025} for share in ("0", "0.005", "0.01", "0.05")},
    **{f"similar-{kind}": {"similar": kind} for kind in ("random", "first", "self")},
    **{f"score-{kind}": {"score": kind} for kind in ("structure", "colour")},
    **{f"c-{share}": {"colour_weight": float(share)} for share in ("0", "1e-4", "1e-2")},
}


DEVIATIONS = (
    # D15
    Deviation("perceptual_hash", "mistake", "a 16-bit hash", "64 bits", "ImageHash's string has 16 digits"),
    # D16
    Deviation(
        "adref.evaluate", "contradiction", "3,416 training images, 217 KB of hashes", "MVTec AD has 3,629",
        "the difference, 213, is exactly the transistors; nothing else explains it",
    ),
    # D24
    Deviation(
        "SeRNet.anomaly_map", "silent", "the test image is compared with the reconstruction",
        "the image as it came, not the repaired one", "the repair would hide what it replaced",
    ),
    # D28
    Deviation(
        "SeRNet.loss", "silent", "the first network is frozen", "evaluation mode, its running statistics included",
        "else the second stage would go on changing it",
    ),
    # D30
    Deviation(
        "PlainUNet", "silent", "nothing said", "weights N(0, 0.02), batch-norm weights N(1, 0.02), biases 0",
        "DRAEM's, but for the biases of its convolutions",
    ),
    # D31
    Deviation(
        "PRESETS", "substitution", "mean squared error and SSIM for the mask, too", "tiny: cross-entropy",
        "at tiny's rate of 1e-3 the other loss makes all masks empty within 200 steps; it does so at 3e-4, not at "
        "the paper preset's 1e-4. Found on synthetic defects",
    ),
)  # fmt: skip


def check(o: Options) -> None:
    """Raises UserError for options that cannot work together."""
    for axis, side in zip(("height", "width"), o.size):
        if side % 16:  # four poolings
            fits = math.ceil(side / 16) * 16
            raise UserError(f"--size takes multiples of 16; the {axis} is {side}, {fits} would do")
    ranges = (
        "ppa_exponents",
        "ppa_factors",
        "ppa_scale",
        "ppa_beta",
        "dpa_area",
        "dpa_bases",
        "dpa_attached",
        "dpa_sides",
    )
    require_ascending(o, *ranges)
    for name in ("segment_mix", "reconstruct_mix"):
        if sum(getattr(o, name)) <= 0:
            raise UserError(f"{flag(name)} takes three shares, one of them above 0; got {getattr(o, name)}")
    if o.connectivity not in (4, 8):
        raise UserError(f"--connectivity takes 4 or 8; got {o.connectivity}")
    if o.train_similar == "phash" and o.hash_on != "file":
        raise UserError("--train-similar phash searches hashes of files; it needs --hash-on file")
    if o.dpa_least > (o.dpa_brightness + o.dpa_colour) / 2:
        raise UserError(f"--dpa-least takes up to the mean of --dpa-brightness and --dpa-colour; got {o.dpa_least}")
    if o.smooth_side % 2 == 0 or o.smooth_side // 2 >= min(o.size):
        raise UserError(f"--smooth-side takes an odd number, below twice the sides of --size; got {o.smooth_side}")
    if min(o.size) < 3 * 2 ** (o.msgms_scales - 1):
        raise UserError(f"--msgms-scales: {o.msgms_scales} scales need sides of {3 * 2 ** (o.msgms_scales - 1)} pixels")
