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

    size: tuple[int, int] = option((256, 256), "height,width of the input, multiples of 16", "D1", (32, 65536))
    resize: Literal["bilinear", "antialias"] = option("antialias", "filter that brings a picture to --size", "D1")
    # the two networks
    segmentation: bool = option(True, "the first network; false: nothing is repaired", "section Method")
    width: int = option(64, "channels of the first level of both networks", "D2", (1, 65536))
    bottom_factor: int = option(8, "channels of the second network's last level, in --width", "D2", (1, 64))
    convolutions: int = option(2, "convolutions in a convolutional layer", "D2", (1, 8))
    segmentation_skip: Literal["concat", "add", "none"] = option("concat", "skips of the first network", "D3")
    reconstruction_skip: Literal["concat", "add", "none"] = option("concat", "of the second", "section Method; D3")
    align_corners: bool = option(False, "bilinear up-sampling with aligned corners", "D29")
    output_activation: Literal["none", "sigmoid"] = option("none", "of the second network", "D4")
    # repair and the similar image
    threshold: float = option(0.5, "of the predicted mask", "D11", (0, 1))
    threshold_inclusive: bool = option(True, "a value equal to the threshold is repaired", "D11")
    area: float = option(
        0.025, "regions of a smaller share of the pixels are not repaired (nor made, see --ppa-area)", "D12", (0, 1)
    )
    connectivity: int = option(8, "a region's pixels touch at sides and corners (8), or sides (4)", "D12", (4, 8))
    repair: Literal["similar", "zero", "mean", "none"] = option(
        "similar", "what replaces a region: a similar image, 0, the image's mean colour, nothing", "section Method"
    )
    feather: float = option(0.0, "sigma of the Gaussian that softens the pasted mask, pixels", "D11", (0, 1000))
    similar: Literal["phash", "random", "first", "self"] = option(
        "phash", "the training image that repairs a test image; self: the test image, so that nothing changes", "Alg. 2"
    )
    hash_on: Literal["file", "resized"] = option("file", "hash a picture at its own size, or at --size", "D14")
    bank: Literal["pictures", "paths"] = option(
        "pictures", "what a checkpoint holds of the training images beside their hashes", "D26"
    )
    train_similar: Literal["self", "phash", "random"] = option(
        "self", "what repairs a training sample: the normal image itself, the nearest other, any other", "D13"
    )
    # pseudo-anomalies
    segment_mix: tuple[float, float, float] = option(
        (1.0, 0.0, 1.0), "shares of PPA, DPA and clean samples of the first network", "section Training; D18", (0, 1e6)
    )
    reconstruct_mix: tuple[float, float, float] = option(
        (1.0, 1.0, 1.0), "the same of the second", "section Training; D18", (0, 1e6)
    )
    rotation_probability: float = option(0.0, "share of clean images that are rotated first", "D19", (0, 1))
    rotation_degrees: float = option(90.0, "by U(-d, d), black fill", "U (DRAEM); D19", (0, 180))
    ppa_source: Literal["category", "textures"] = option(
        "category", "pictures that are pasted: of the category, or of --textures", "section Method; D25"
    )
    ppa_pieces: Literal["one", "several"] = option("one", "four quarters of one picture, or of four", "D6")
    ppa_exponents: tuple[int, int] = option(
        (0, 5), "the noise lattice has 2^i x 2^j cells of 2 pixels or more, i and j from here", "U (DRAEM)", (0, 12)
    )
    ppa_noise_degrees: float = option(90.0, "the noise turns by U(-d, d)", "U (DRAEM)", (0, 180))
    ppa_level: float = option(0.5, "the mask is where the noise is above it", "U (DRAEM)", (-1, 1))
    ppa_area: float | None = option(
        None, "regions of the mask of a smaller share of the pixels are dropped; none: --area", "D5", (0, 1)
    )
    draws: int = option(50, "draws of a mask before the sample stays clean", "D5", (1, 1000))
    ppa_factors: tuple[float, float] = option(
        (0.7, 1.3), "factor of brightness, contrast and saturation of the source, from here", "D7", (0, 100)
    )
    ppa_degrees: float = option(45.0, "the source turns by U(-d, d)", "D7", (0, 180))
    ppa_scale: tuple[float, float] = option((0.8, 1.2), "its scale, from here", "D7", (0.01, 100))
    ppa_shift: float = option(0.1, "it moves by U(-s, s) of each side", "D7", (0, 1))
    ppa_beta: tuple[float, float] = option((0.0, 0.8), "beta, from here", "section Method", (0, 1))
    ppa_beta_on: Literal["original", "source"] = option("original", "what beta weighs", "D8")
    dpa_area: tuple[float, float] = option(
        (0.002, 0.025),
        "a base covers from the first to the second share (divided by the bases), 2 x 2 pixels at least",
        "section Method; D9", (1e-6, 1),
    )  # fmt: skip
    dpa_aspect: float = option(
        3.0, "its height / width is between 1 / a and a, uniform in the logarithm", "D9", (1, 100)
    )
    dpa_bases: tuple[int, int] = option((1, 2), "number of bases, from here", "section Method", (1, 1000))
    dpa_attached: tuple[int, int] = option(
        (2, 4), "number of attached rectangles; in all, one for each base at least", "section Method", (0, 1000)
    )
    dpa_attached_to: Literal["total", "each"] = option("total", "that is of all, or of each base", "D9")
    dpa_sides: tuple[float, float] = option((0.3, 1.0), "their sides, in those of the base", "D9", (0, 10))
    dpa_limit: Literal["bases", "union"] = option("bases", "what stays below the second of --dpa-area", "D9")
    dpa_mode: Literal["additive", "multiplicative"] = option(
        "additive", "the colour moves by a value, or a share", "D10"
    )
    dpa_brightness: float = option(0.3, "b from U(-b, b), all channels", "D10", (0, 1))
    dpa_colour: float = option(0.2, "c from U(-c, c), each channel", "D10", (0, 1))
    dpa_least: float = option(0.1, "drawn again while no channel moves that far", "D10", (0, 1))
    # losses and training
    mse_weight: float = option(1.0, "weight of the squared error", "D17", (0, INF))
    ssim_weight: float = option(1.0, "weight of 1 - SSIM", "D17", (0, INF))
    ssim_padding: Literal["zero", "reflect"] = option("zero", "SSIM's 11 x 11 window at the border", "U (RIAD); D17")
    segmentation_loss: Literal["mse+ssim", "bce"] = option("mse+ssim", "of the first network", "section Method; D17")
    epochs: int = option(800, "passes over the training images, for each network", "U (EdgRec); D19", (0, INF))
    batch_size: int = option(8, "images a step", "U (EdgRec); D19", (1, INF))
    learning_rate: float = option(1e-4, "Adam's step size", "U (EdgRec); D19", (0, INF))
    milestones: tuple[float, ...] = option(
        (0.8, 0.9), "shares of the epochs after which the rate falls", "U (EdgRec); D19", (0, 1)
    )
    milestone_factor: float = option(0.2, "by which it falls there", "U (EdgRec); D19", (0, 1))
    # the map
    score: Literal["sum", "structure", "colour"] = option("sum", "what the map is", "Eq 7")
    colour_weight: float = option(0.001, "c", "section Method", (0, 1e6))
    weight_on: Literal["colour", "structure"] = option("colour", "the term that c weighs", "D23")
    colour: Literal["cielab", "edgrec"] = option(
        "cielab", "a and b, or EdgRec's way in 8 bits, which overflows and has its own filter (for comparisons)", "D20"
    )
    colour_norm: Literal["squared", "absolute"] = option("squared", "of their differences", "U (EdgRec); D20")
    msgms_scales: int = option(4, "scales of the gradient similarity", "U (RIAD); D21", (1, 12))
    msgms_grey: bool = option(
        False, "of grey values after a median filter (a port of RIAD, with --msgms-padding none)", "D21"
    )
    msgms_padding: Literal["zero", "replicate", "none"] = option("zero", "its border", "D21")
    smooth: Literal["mean", "gaussian"] = option("mean", "filter of both terms; the Gaussian has sigma side / 3", "D22")
    smooth_side: int = option(21, "its side, odd, pixels at --size", "section Method", (1, 65535))
    smooth_border: Literal["reflect", "zero"] = option("reflect", "the mean filter at the border", "D22")


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
    Deviation("D1", "Options.size", "silent", "nothing in what was at hand",
              "256 x 256, bilinear with antialiasing, [0, 1]", "EdgRec's and DRAEM's size"),
    Deviation("D2", "Options.width", "silent", "U-Nets of 3 and 5 convolutional layers; widths lost",
              "64, doubled up to 512; two convolutions, each with batch norm and ReLU, a layer",
              "the blocks of DRAEM and EdgRec; 1 convolution and 16 times the width at the bottom are options"),
    Deviation("D3", "Options.segmentation_skip", "ambiguous",
              "skips are named for the reconstruction network; both are 'classical U-Nets'", "concatenated in both",
              "a U-Net has them; added skips need a 1 x 1 convolution where the widths differ, which is ours"),
    Deviation("D4", "Options.output_activation", "silent", "masks in [0, 1]; nothing about the reconstruction",
              "sigmoid for the mask; none, clipped for the map alone", "EdgRec and DRAEM have none"),
    Deviation("D5", "Options.ppa_area", "silent", "small regions of the Perlin mask are removed; how small is lost",
              "those below --area; at most 50 draws", "the first network shall learn what the repair keeps"),
    Deviation("D6", "Options.ppa_pieces", "ambiguous", "'four pieces, recombined at random'",
              "the quarters of one picture, in another order", "pieces of several pictures are the other reading"),
    Deviation("D7", "Options.ppa_factors", "silent", "random brightness, contrast, colour and affine change",
              "factors 0.7 to 1.3 (Pillow, 8 bits), 45 degrees, scale 0.8 to 1.2, shift 0.1; bilinear, "
              "mirrored outside", "no range is given"),
    Deviation("D8", "Options.ppa_beta_on", "ambiguous", "a weight in [0, 0.8], a complement mask, a product",
              "equation 1, reconstructed: beta weighs the original under the mask", "DRAEM's form; confidence high"),
    Deviation("D9", "Options.dpa_limit", "ambiguous",
              "one or two rectangles below 2.5 % of the area, two to four adjacent ones",
              "the bases together stay below; two to four in all, with 0.3 to 1 times a base's sides, clipped "
              "at the border", "sum, union or each; total or each: not said. Areas, aspects and sides are ours"),
    Deviation("D10", "Options.dpa_mode", "silent", "'a random brightness and a random colour value'",
              "equation 2, reconstructed: both are added; +-0.3 and +-0.2, one channel by 0.1 at least",
              "confidence medium: the terms are named, how they act is not"),
    Deviation("D11", "Options.threshold", "silent", "below the threshold 0, above 1; its value is lost",
              "0.5, equality counts as above; equation 4, reconstructed: a hard paste",
              "the middle; confidence of the form high"),
    Deviation("D12", "Options.area", "silent",
              "regions below an area are dropped; value, unit and connectivity are lost",
              "0.025 of the pixels, 8-connected", "the only scale in the text is DPA's 2.5 %"),
    Deviation("D13", "Options.train_similar", "ambiguous",
              "'the corresponding region' of an image repairs a training sample", "the normal image itself",
              "no search is described for training; 'phash' is nearer to the test"),
    Deviation("D14", "Options.hash_on", "silent", "perceptual hashes of images",
              "of the picture in the file at its own size, as it is read here: alpha over white, turned by "
              "EXIF, 16 bits scaled",
              "a resized copy has other bits; what lies under alpha is no picture. Where only tensors are at "
              "hand (`anomaly_map` without looks), hashes of the resized training images are searched, like "
              "with like"),
    Deviation("D15", "perceptual_hash", "mistake", "a 16-bit hash", "64 bits", "ImageHash's string has 16 digits"),
    Deviation("D16", "adref.evaluate", "contradiction", "3,416 training images, 217 KB of hashes", "MVTec AD has 3,629",
              "the difference, 213, is exactly the transistors; nothing else explains it"),
    Deviation("D17", "Options.ssim_weight", "silent", "mean squared error and SSIM for both networks",
              "equation 3, reconstructed: weights 1 and 1; Gaussian 11, sigma 1.5, zeros outside, range 1",
              "RIAD's SSIM; confidence high, of the weights medium"),
    Deviation("D18", "Options.reconstruct_mix", "silent",
              "PPA trains the first network, PPA and DPA the second; proportions lost",
              "half PPA, half clean; thirds of PPA, DPA, clean. All of them pass the first network and the repair",
              "DRAEM corrupts every other image"),
    Deviation("D19", "Options.epochs", "silent", "trained one after the other; all else is lost",
              "Adam at 1e-4, batch 8, 800 epochs each, rate x0.2 at 80 % and 90 %; no rotation; the last epoch",
              "EdgRec's and DRAEM's; DRAEM turns 30 % of the images, an option here"),
    Deviation("D20", "Options.colour", "ambiguous", "difference of the channels a and b",
              "equation 5, reconstructed: squared, in unrounded CIELAB (D65)",
              "EdgRec squares; its code works in 8 bits, where 16^2 is 0 and sums overflow; confidence medium "
              "to high. Our 8-bit Lab is within 2 of OpenCV's, so 'edgrec' is near its code, not equal to it"),
    Deviation("D21", "Options.msgms_scales", "silent", "multi-scale gradient magnitude similarity",
              "equation 6, reconstructed: 4 scales, each channel, zeros outside",
              "RIAD has 4, EdgRec's code 2; confidence high, of the scales low. Zero padding marks the frame "
              "(an option)"),
    Deviation("D22", "Options.smooth", "silent", "filters of size 21", "a mean filter, mirrored at the border",
              "EdgRec and DRAEM; a port of RIAD has a Gaussian of sigma 7. EdgRec mirrors colour and pads "
              "structure with zeros: --colour edgrec --smooth-border zero"),
    Deviation("D23", "Options.weight_on", "ambiguous", "c = 0.001 balances the terms",
              "equation 7, reconstructed: c weighs the colour",
              "EdgRec; squared differences of colour are the larger by far"),
    Deviation("D24", "SeRNet.anomaly_map", "silent", "the test image is compared with the reconstruction",
              "the image as it came, not the repaired one", "the repair would hide what it replaced"),
    Deviation("D25", "Options.ppa_source", "ambiguous", "another image of the category",
              "any other training image, uniform; itself where it is the only one (so for --train-similar, too)",
              "no choice is described"),
    Deviation("D26", "Options.bank", "silent", "hashes of all training images are stored",
              "hashes and resized pictures, 8 bits, in the checkpoint; the first of equal distances",
              "a trained run then needs no data set; --bank paths stores names. Held-out images (T1) are not in it"),
    Deviation("D27", "Options.similar", "silent", "the image with the smallest distance",
              "pasted as it is, without alignment",
              "none is described: turned or moved parts get a part in another place"),
    Deviation("D28", "SeRNet.loss", "silent", "the first network is frozen",
              "evaluation mode, its running statistics included", "else the second stage would go on changing it"),
    Deviation("D29", "Options.align_corners", "silent", "up-sampling", "bilinear, half-pixel centres",
              "DRAEM and EdgRec align the corners, an option"),
    Deviation("D30", "PlainUNet", "silent", "nothing said",
              "weights N(0, 0.02), batch-norm weights N(1, 0.02), biases 0",
              "DRAEM's, but for the biases of its convolutions"),
    Deviation("D31", "PRESETS", "substitution", "mean squared error and SSIM for the mask, too", "tiny: cross-entropy",
              "at tiny's rate of 1e-3 the other loss makes all masks empty within 200 steps; it does so at "
              "3e-4, not at the paper preset's 1e-4. Found on synthetic defects"),
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
