"""Options of SeRNet with their sources and readings, presets, ablations, and departures that are no option."""

from dataclasses import dataclass
from math import inf
from typing import Literal

from adref.method import STEPS, Deviation
from adref.options import UserError, flag, option, require_ascending


@dataclass(frozen=True)
class Options:
    """The defaults are the paper preset; EdgRec, DRAEM and RIAD are works that the article builds on."""

    # fmt: off
    size: tuple[int, int] = option((256, 256), "height,width of the networks' input; multiples of 16", "EdgRec, DRAEM",
        limits=(32, 65536), kind="silent", paper="size lost", why="as there")
    resize: Literal["bilinear", "antialias"] = option("antialias", "filter that resizes images to --size", "adref",
        kind="silent", paper="no filter", why="it keeps thin parts")
    segmentation: bool = option(True, "whether the first network runs; false: nothing is repaired", "section Method")
    width: int = option(64, "channels of the first level of both networks", "EdgRec, DRAEM", limits=(1, 65536),
        kind="silent", paper="3 and 5 convolutional layers; widths lost", why="as there")
    segmentation_skip: Literal["concat", "add", "none"] = option("concat", "skip connections of the first network",
        "adref", kind="ambiguous", paper="skips are named for the reconstruction network; both are 'classical U-Nets'",
        why="a U-Net has them; 'add' needs a 1 x 1 convolution where the widths differ, which is ours")
    threshold: float = option(0.5, "probabilities from here on are repaired", "adref", limits=(0, 1), kind="silent",
        paper="below the threshold 0, above 1; its value is lost", why="the middle")
    area: float = option(0.025, "connected components of a smaller share of the pixels are neither repaired nor drawn "
        "(--ppa-area)", "adref", limits=(0, 1), kind="silent", paper="regions below an area are dropped; value and "
        "unit are lost", why="the only scale in the text is DPA's 2.5 %")
    repair: Literal["similar", "zero", "mean", "none"] = option("similar",
        "what replaces a region: a similar image, 0, the image's mean colour, nothing", "section Method")
    similar: Literal["phash", "random", "first", "self"] = option("phash", "the training image that repairs a test "
        "image; self: the test image, so that nothing changes", "algorithm 2", kind="silent", paper="the image with "
        "the smallest distance", why="pasted without alignment, as none is described: a moved part gets one elsewhere")
    train_similar: Literal["self", "phash", "random", "none"] = option("self", "what repairs a training example: its "
        "clean image, the nearest other, any other, nothing", "adref", kind="ambiguous", paper="'the corresponding "
        "region' of an image repairs it", why="no search is described for training; 'phash' is closer to the test")
    segment_mix: tuple[float, float, float] = option((1.0, 0.0, 1.0), "shares of PPA, DPA, clean images: first network",
        "section Training", limits=(0, 1e6), kind="silent", paper="PPA; proportions lost", why="DRAEM corrupts half")
    reconstruct_mix: tuple[float, float, float] = option((1.0, 1.0, 1.0), "the same of the second network",
        "section Training", limits=(0, 1e6), kind="silent", paper="PPA and DPA; shares lost", why="equal; all repaired")
    rotation_probability: float = option(0.0, "share of clean images that are first rotated by U(-90, 90) degrees",
        "adref", limits=(0, 1), kind="silent", paper="no augmentation mentioned", why="DRAEM rotates 0.3 of them")
    ppa_source: Literal["category", "textures"] = option("category", "images that PPA pastes; textures: --textures, as "
        "DRAEM", "section Method", kind="ambiguous", paper="another image of the category", why="any other, uniformly")
    ppa_pieces: Literal["one", "several"] = option("one", "recombines the quarters of one image, or of four", "adref",
        kind="ambiguous", paper="'four pieces, recombined at random'", why="the article speaks of one other image")
    ppa_exponents: tuple[int, int] = option((0, 5),
        "the noise lattice has 2^i x 2^j cells of 2 pixels or more, i and j from here", "DRAEM", limits=(0, 12))
    ppa_area: float | None = option(None, "components of the PPA mask of a smaller share of the pixels are removed; "
        "none: --area", "adref", limits=(0, 1), kind="silent", paper="small regions of the Perlin mask are removed; "
        "the area is lost", why="the first network learns what the repair keeps")
    ppa_beta_on: Literal["original", "source"] = option("original", "the image that beta weighs", "DRAEM",
        kind="ambiguous", paper="a weight in [0, 0.8], a complement mask, a product", why="DRAEM's; confidence high")
    dpa_attached_to: Literal["total", "each"] = option("total", "two to four attached rectangles in all, or a base",
        "adref", kind="ambiguous", paper="one or two rectangles, two to four adjacent ones", why="the smaller reading")
    dpa_limit: Literal["bases", "union"] = option("bases", "area that stays below 2.5 % of the image", "adref",
        kind="ambiguous", paper="one or two rectangles below 2.5 %, two to four adjacent ones", why="said of the bases")
    dpa_colour: Literal["any", "picture"] = option("any", "largest change of colour: 0.2, or the picture's mean range "
        "over the channels, if less", "adref", kind="silent", paper="no range", why="as written; colour shows in grey")
    segmentation_loss: Literal["mse+ssim", "bce"] = option("mse+ssim", "loss of the first network", "section Method")
    mask_bias: float = option(0.0, "bias of the first network's last convolution at the start", "adref",
        limits=(-20, 20), kind="silent", paper="no word on initial weights", why="as all biases; for tiny see PRESETS")
    output: Literal["sigmoid", "linear"] = option("sigmoid", "last activation of the second network", "adref",
        kind="silent", paper="no word on it", why="EdgRec's and DRAEM's have none; a channel can then settle at its "
        "negative, where SSIM is high, too (NOTES.md)")
    epochs: int = option(800, "passes over the training images, for each network", "EdgRec", limits=(0, inf),
        kind="silent", paper="trained one after the other; all else is lost", why="all else is EdgRec's and DRAEM's")
    steps: int | None = option(None, f"of each network: {STEPS}", "adref", limits=(1, inf))
    batch_size: int = option(8, "images a step", "EdgRec", limits=(1, inf))
    learning_rate: float = option(1e-4, "Adam's step size", "EdgRec", limits=(0, inf))
    score: Literal["sum", "structure", "colour"] = option("sum", "terms of the map", "section Method")
    colour_weight: float = option(0.001, "c, the weight of colour", "section Method", limits=(0, 1e6))
    weight_on: Literal["colour", "structure"] = option("colour", "the term that c weighs", "EdgRec", kind="ambiguous",
        paper="c = 0.001 balances the terms", why="squared differences of colour are the larger by far")
    colour: Literal["squared", "absolute", "edgrec"] = option("squared", "differences of a and b; edgrec:"
        " its 8-bit code, which overflows, with its filter", "EdgRec", kind="ambiguous", paper="difference of the "
        "channels a and b in CIELAB", why="EdgRec squares; confidence medium to high. Its 8 bits make 16^2 = 0")
    msgms_variant: Literal["edgrec", "replicate", "riad"] = option("edgrec", "per channel, zero or replicate padding; "
        "riad: grey, median-filtered, no padding", "EdgRec", kind="ambiguous", paper="multi-scale gradient "
        "magnitude similarity (RIAD)", why="its sources differ; riad is a port of RIAD. Zero padding marks the frame")
    msgms_scales: int = option(2, "scales of MSGMS", "EdgRec", limits=(1, 12), kind="silent",
        paper="number of scales not given", why="EdgRec's code, as all else of the map; RIAD has 4, a copy of it 3")
    smooth_side: int = option(21, "side of the mean filters, odd, in pixels", "section Method", limits=(1, 65535))
    # fmt: on


PRESETS = {
    "paper": {},
    # Half the side, so lattices shrink with it and the filter to a third; a quarter of the width; fewer steps, larger
    # ones. Most defects are smaller than 2.5 %: so are the areas; a low threshold, as few steps give low probabilities.
    "tiny": {"size": (128, 128), "width": 16, "ppa_exponents": (0, 4), "segmentation_loss": "bce", "steps": 900,
             "batch_size": 4, "learning_rate": 1e-3, "mask_bias": -3.0, "smooth_side": 7, "area": 0.001,
             "ppa_area": 0.002, "threshold": 0.1, "train_similar": "none", "dpa_colour": "picture",
             "msgms_variant": "replicate"},
}  # fmt: skip

ABLATIONS = {
    # All else that the text prints is the default, except a hash of 16 bits (see DEVIATIONS).
    "literal": {"segmentation_skip": "none", "segmentation_loss": "mse+ssim"},
    "no-segmentation": {"segmentation": False},
    **{f"repair-{kind}": {"repair": kind} for kind in ("zero", "mean")},
    "repair-at-test": {"train_similar": "none"},  # as tiny has it
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
    **{f"c-{share}": {"colour_weight": float(share)} for share in ("1e-4", "1e-2")},
}

DEVIATIONS = (
    Deviation("similar.perceptual_hash", "mistake", "a 16-bit hash", "64 bits", "ImageHash's string has 16 digits"),
    Deviation("similar.Bank", "silent", "hashes of all training images are stored", "hashes of the files at full "
              "resolution, and resized images, in the checkpoint; the first of equal distances", "a resized copy has "
              "other bits; a trained run needs no data set. Held-out images are not in it"),
    Deviation("similar.Bank", "contradiction", "3,416 training images, 217 KB of hashes", "MVTec AD has 3,629",
              "the difference, 213, is the number of transistors; nothing else explains it"),
    Deviation("repair_mask", "silent", "regions; connectivity and equality with the threshold are lost",
              "8-connected components, equality counts as above; a hard paste", "confidence of the form high"),
    Deviation("layers.unet.PlainUNet", "silent", "convolutional layers, up-sampling, skip connections",
              "two 3 x 3 convolutions a layer, each with batch norm and ReLU; bilinear, half-pixel centres; "
              "concatenated; widths b to 8b, 8b; weights N(0, 0.02), batch norm N(1, 0.02), other biases 0",
              "EdgRec's and DRAEM's, which align the corners and whose biases are not 0"),
    Deviation("anomalies.draw_source", "silent", "random brightness, contrast, colour and affine change", "factors 0.7 "
              "to 1.3 (Pillow, 8 bits), 45 degrees, scale 0.8 to 1.2, shift 0.1; bilinear, mirrored outside",
              "no range is given"),
    Deviation("anomalies.dpa", "silent", "rectangles of random proportions; 'a random brightness and a random colour "
              "value'", "bases of 0.2 % or more, up to 3 to 1; attached sides 0.3 to 1 of theirs, clipped at the "
              "border; both values are added, up to 0.3 and 0.2, one channel moves by 0.1",
              "no range is given; the sum: confidence medium"),
    Deviation("SeRNet.terms", "silent", "mean squared error and SSIM", "weights 1 and 1; Gaussian window 11, sigma "
              "1.5, zero padding, range 1", "RIAD's SSIM; confidence high, of the weights medium"),
    Deviation("SeRNet.loss", "silent", "the first network is frozen", "evaluation mode, running statistics included",
              "else the second stage would go on changing it"),
    Deviation("SeRNet.anomaly_map", "silent", "the test image is compared with the reconstruction",
              "the input, not the repaired image; clipped", "the repair would hide what it replaced"),
    Deviation("SeRNet.compare", "silent", "filters of size 21", "a mean filter, mirrored at the border",
              "EdgRec's and DRAEM's; EdgRec pads structure with zeros, a port of RIAD has a Gaussian of sigma 7"),
    Deviation("PRESETS", "substitution", "mean squared error and SSIM for the mask, too; the second network sees "
              "repaired images", "tiny: cross-entropy, bias from -3; images as they are", "at 3e-4 and more the other "
              "loss makes all masks empty, for good. A bias of -3, near the share of anomalous pixels, learns "
              "faster than 3. Behind the repair the second network scored worse (NOTES.md)"),
)  # fmt: skip


def check(o: Options) -> None:
    """Raises UserError for options that do not fit together."""
    if o.size[0] % 16 or o.size[1] % 16:  # four poolings
        raise UserError(f"--size takes multiples of 16; got {o.size[0]},{o.size[1]}")
    require_ascending(o, "ppa_exponents")
    for name in ("segment_mix", "reconstruct_mix"):
        if sum(getattr(o, name)) <= 0:
            raise UserError(f"{flag(name)} takes three shares, one of them above 0; got {getattr(o, name)}")
    if o.smooth_side % 2 == 0 or o.smooth_side // 2 >= min(o.size):
        raise UserError(f"--smooth-side takes an odd number, below twice the sides of --size; got {o.smooth_side}")
    if min(o.size) < (least := 3 * 2 ** (o.msgms_scales - 1)):
        raise UserError(f"--msgms-scales: {o.msgms_scales} scales need sides of {least} pixels")
