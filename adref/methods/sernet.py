"""SeRNet: segment large defects, repair them from a similar normal image, reconstruct the rest.

"SeRNet: Segmentation Helps Reconstruction for Anomaly Detection", Applied Sciences 2026, 16(4), 1670. The text that was
at hand has lost every formula, every symbol, all figures, table 1 and the experiments; no code of its authors is known.
All equations below are therefore reconstructed, from its words and from the works that it builds on, and each guess is
a record in DEVIATIONS. "U" marks a value from those works: DRAEM, EdgRec (the anomaly map), RIAD (SSIM loss, MSGMS),
ImageHash.

A reconstruction network does not remove large defects. So a first network, trained on large pseudo-anomalies (PPA),
segments them; what is large enough is pasted over with the pixels of the training image that looks most alike (by
perceptual hash); a second network, trained on large and small (DPA) pseudo-anomalies behind the frozen first,
reconstructs the normal image. The map compares structure and colour of the image with that.

What an audit should know before it trusts the article:
- Repaired from the image itself (D13), a training sample shows the second network no other image's pixels: the seams
  of pasting that it is said to remove come from mistakes of the first network alone.
- The "16-bit hash" has 64 bits, 16 hexadecimal digits (D15); 3,416 training images are not MVTec AD's 3,629 (D16).
- A defect that the first network misses, or that is smaller than the area, is pasted over by nothing; what the similar
  image has in another place (turned or moved parts) is pasted in: the map then shows the difference of two good parts.
- Squared error and SSIM of a mask that is mostly empty (equation 3) have an easy answer, the empty mask; at three times
  the default rate it is found, and kept (D31).
- Gradient similarity has no sign: an inverted picture scores as normal but for its colour, and its frame (D21).

Symbols
    I, I_a, M      normal image, with pseudo-anomaly, its mask    S, beta    source image, blending weight
    M_p, M_b       predicted mask, mask of what is repaired       I_s, I_r   similar image, repaired image
    X, Y           image, its reconstruction                      b, c_k     change of brightness, of channel k
    S_g, S_c       differences of structure and colour            c          weight of colour

Equations (reconstructed, numbered here)
    (1) I_a = (1 - M) I + (1 - beta) M S + beta M I          pseudo_anomaly.blend_source
    (2) I_a = (1 - M) I + M clip(I + b + c_k)                pseudo_anomaly.shift_colour
    (3) L(A, B) = mean (A - B)^2 + 1 - SSIM(A, B)            SeRNet.terms, losses.ssim
    (4) I_r = M_b I_s + (1 - M_b) I_a                        repair
    (5) S_c = box((a_X - a_Y)^2 + (b_X - b_Y)^2)             SeRNet.colour_term, image.cielab
    (6) S_g = box(1 - MSGMS(X, Y))                           SeRNet.structure_term, image.msgms
    (7) A = S_g + c S_c, score max A                         SeRNet.compare

Algorithms and tables
    (Algorithm 1) threshold, drop small regions, paste       repair_mask, repair
    (Algorithm 2) the nearest of all hashes                  SeRNet.find_similar, image.nearest

Not built
    The article's experiments, whose section is lost: ABLATIONS has variants of what its text speaks of.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adref.image import Bank, cielab, msgms, nearest, perceptual_hash, remove_small
from adref.layers.unet import PlainUNet
from adref.losses import ssim
from adref.method import Deviation, Looks, Method, Rngs, Sources, check_images, gaussian_smooth, mean_filter
from adref.methods.draem import turn
from adref.options import Notice, UserError, flag, option, require_ascending
from adref.synthesis.pseudo_anomaly import (
    blend_source,
    draw_large_mask,
    draw_shift,
    draw_source,
    draw_spread,
    recombine,
    shift_colour,
    spread_mask,
    transform,
)
from adref.synthesis.textures import to_space

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


class Batch(NamedTuple):
    clean: Tensor  # (B, 3, H, W) in [0, 1]
    corrupted: Tensor  # (B, 3, H, W)
    mask: Tensor  # (B, 1, H, W), 1 = corrupted
    similar: Tensor  # (B, 3, H, W), what the repair pastes


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


# -- the corrupted image: all of the method's randomness --------------------------------------------------------------


def corrupt(image: Tensor, rng: np.random.Generator, options: Options, sources: Sources) -> Batch:
    """One training example: a large pseudo-anomaly (PPA), a small one (DPA), or none, by the mix of the stage (D18).

    Args:
        image: (3, H, W) in [0, 1].
        rng: the stream of this example.
        options: the method's options.
        sources: `images`, or `textures`, to paste from; `stage`; `index`, lest an image is pasted into itself, and
            `looks` where --train-similar wants them.

    Returns:
        clean, corrupted and similar image (3, H, W), mask (1, H, W).
    """
    o = options
    image = turn(image, rng, o.rotation_probability, o.rotation_degrees)  # D19
    stage = sources.stage or ("segment" if o.segmentation else "reconstruct")
    mix = np.array(o.segment_mix if stage == "segment" else o.reconstruct_mix)
    kind = (paste, spread, None)[rng.choice(3, p=mix / mix.sum())]
    corrupted, mask = image, np.zeros(image.shape[1:], np.float32)
    if kind:
        corrupted, mask, draws = kind(image, rng, o, sources)
        if sources.journal is not None:
            sources.journal.append({"ppa": int(kind is paste), "draws": draws})
    similar = image
    if o.train_similar != "self":  # D13
        similar = sources.images[similar_index(rng, o, sources)].float() / 255
    return Batch(image, corrupted, torch.from_numpy(mask)[None], similar)


def paste(image: Tensor, rng: np.random.Generator, o: Options, sources: Sources) -> tuple[Tensor, np.ndarray, int]:
    """PPA: corrupted image (3, H, W), mask (H, W), draws of the mask. The image itself where no draw left a region."""
    least = (o.area if o.ppa_area is None else o.ppa_area) * image[0].numel()  # D5
    mask, draws = draw_large_mask(rng, tuple(image.shape[1:]), least, o.ppa_exponents, o.ppa_noise_degrees, o.ppa_level,
                                  o.connectivity, o.draws)  # fmt: skip
    if not mask.any():
        return image, mask, draws
    pictures, index = (sources.images, sources.index) if o.ppa_source == "category" else (sources.textures, None)
    if pictures is None:
        raise ValueError(f"expected Sources.{'images' if o.ppa_source == 'category' else 'textures'} to paste from")
    indices = [any_other(rng, len(pictures), index) for _ in range(4 if o.ppa_pieces == "several" else 1)]  # D6, D25
    numbers = draw_source(rng, o.ppa_factors, o.ppa_degrees, o.ppa_scale, o.ppa_shift)  # D7
    quarters = [pictures[i] for i in indices] * (4 // len(indices))
    source = transform(recombine(quarters, numbers.order), numbers)
    return blend_source(image, source, torch.from_numpy(mask), rng.uniform(*o.ppa_beta), o.ppa_beta_on), mask, draws


def spread(image: Tensor, rng: np.random.Generator, o: Options, sources: Sources) -> tuple[Tensor, np.ndarray, int]:
    """DPA: corrupted image (3, H, W), mask (H, W), draws of the mask. The image itself where no draw kept the limit."""
    shape = tuple(image.shape[1:])
    for draws in range(1, o.draws + 1):
        drawn = draw_spread(rng, shape, o.dpa_area, o.dpa_aspect, o.dpa_bases, o.dpa_attached, o.dpa_attached_to,
                            o.dpa_sides)  # fmt: skip
        mask = spread_mask(drawn, shape)
        if o.dpa_limit == "bases" or mask.mean() < o.dpa_area[1]:  # D9
            shift = draw_shift(rng, o.dpa_brightness, o.dpa_colour, o.dpa_least)  # D10
            return shift_colour(image, torch.from_numpy(mask), shift, o.dpa_mode), mask, draws
    return image, np.zeros(shape, np.float32), o.draws


def any_other(rng: np.random.Generator, count: int, index: int | None) -> int:
    """A uniform number below `count`, not `index` where that is known and there is another (D25)."""
    if index is None or count == 1:
        return int(rng.integers(count))
    drawn = int(rng.integers(count - 1))
    return drawn + (drawn >= index)


def similar_index(rng: np.random.Generator, o: Options, sources: Sources) -> int:
    """The training image that repairs a sample: the nearest other by its look, or any other (D13, D25)."""
    count = len(sources.images)
    if o.train_similar == "random" or count == 1:
        return any_other(rng, count, sources.index)
    if sources.index is None or sources.looks is None:
        raise ValueError("expected Sources.index and Sources.looks for --train-similar phash")
    return nearest(np.stack(sources.looks), sources.looks[sources.index], but=sources.index)[0]


# -- the repair -------------------------------------------------------------------------------------------------------


def repair_mask(
    probabilities: Tensor, threshold: float = 0.5, area: float = 0.0, connectivity: int = 8, inclusive: bool = True
) -> Tensor:
    """M_b of Algorithm 1: what is to be repaired (D11, D12).

    Args:
        probabilities: M_p, (B, 1, H, W) in [0, 1].
        threshold: pixels above it count; those equal to it, if `inclusive`.
        area: connected regions of fewer pixels than this do not.
        connectivity: 8 or 4.

    Returns:
        (B, 1, H, W) in {0, 1}, in the type of `probabilities`.
    """
    binary = (probabilities >= threshold if inclusive else probabilities > threshold).cpu().numpy()
    kept = np.stack([remove_small(mask[0], area, connectivity) for mask in binary])
    return torch.from_numpy(kept).unsqueeze(1).to(probabilities)


def repair(images: Tensor, similar: Tensor, mask: Tensor) -> Tensor:
    """Equation 4: M_b I_s + (1 - M_b) I_a; exactly I_s where the mask is 1, exactly I_a where it is 0."""
    return mask * similar + (1 - mask) * images


# -- the method -------------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What SeRNet makes of a batch, step by step."""

    probabilities: Tensor  # M_p, (B, 1, H, W) in [0, 1]
    mask: Tensor  # M_b, (B, 1, H, W) in {0, 1}; between them where it is feathered
    repaired: Tensor  # I_r, (B, 3, H, W)
    reconstruction: Tensor  # Y, (B, 3, H, W), not clipped


class SeRNet(Method):
    """Segment, repair, reconstruct."""

    Options = Options
    presets = PRESETS
    ablations = ABLATIONS
    deviations = DEVIATIONS
    sees_whole = "its similar picture is found by a hash of all of it"
    corrupt = staticmethod(corrupt)

    def __init__(self, options: Options = Options()):  # noqa: B008  frozen
        super().__init__(options)
        check(o := self.options)
        b, form = o.width, {"convolutions": o.convolutions, "align_corners": o.align_corners}
        self.stages = ("segment", "reconstruct") if o.segmentation else ("reconstruct",)
        self.needs = ("textures",) if o.ppa_source == "textures" else ()
        # D2, D3, D29, D30
        self.segmenter = PlainUNet(1, (b, 2 * b, 4 * b), o.segmentation_skip, **form) if o.segmentation else None
        widths = (b, 2 * b, 4 * b, 8 * b, o.bottom_factor * b)
        self.reconstructor = PlainUNet(3, widths, o.reconstruction_skip, **form)
        self.bank = Bank(o.size)  # `prepare` fills it

    @staticmethod
    def look(image: np.ndarray, options: Options) -> np.ndarray | None:
        """The perceptual hash of a picture at its own size; at --size, `prepare` and `find_similar` see to it (D14)."""
        return perceptual_hash(image) if options.hash_on == "file" else None

    # -- training

    def loss(self, batch: Batch, stage: str | None = None) -> dict[str, Tensor]:
        """Equation 3 of the mask, or of the reconstruction behind the frozen first network (D28); None: the first.

        Statistics of the second stage: "repair/replaced", the share of pixels that the repair replaced, and
        "repair/found", that of the pseudo-anomalies' pixels (NaN: there are none); small ones are not to be repaired.
        """
        if (stage or self.stages[0]) == "segment":
            probabilities = self.segmenter(batch.corrupted).float().sigmoid()
            return self.terms(probabilities, batch.mask, self.options.segmentation_loss)
        if self.segmenter is not None:
            self.segmenter.eval()
        with torch.no_grad():
            _, mask, repaired = self.segment_and_repair(batch.corrupted, batch.similar)
        anomalous = batch.mask > 0
        statistics = {"repair/replaced": mask.mean(), "repair/found": (mask * anomalous).sum() / anomalous.sum()}
        return self.terms(self.rebuild(repaired), batch.clean) | statistics

    def terms(self, output: Tensor, target: Tensor, kind: str = "mse+ssim") -> dict[str, Tensor]:
        """Equation 3 with its weights, or binary cross-entropy (D17); "total" is the sum."""
        o = self.options
        if kind == "bce":
            with torch.autocast(output.device.type, enabled=False):
                terms = {"bce": F.binary_cross_entropy(output, target)}
        else:
            terms = {
                "mse": o.mse_weight * F.mse_loss(output, target),
                "ssim": o.ssim_weight * (1 - ssim(output, target, padding=o.ssim_padding)),
            }
        return {**terms, "total": sum(terms.values())}

    def optimizer(self, stage: str | None = None):
        """Adam on the network of the stage; the rate falls by `milestone_factor` at each milestone (D19)."""
        o, first = self.options, (stage or self.stages[0]) == "segment"
        network = self.segmenter if first else self.reconstructor
        optimizer = torch.optim.Adam(network.parameters(), lr=o.learning_rate)
        milestones = [round(share * o.epochs) for share in o.milestones]
        return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, o.milestone_factor)

    # -- the bank of normal images

    @property
    def needs_bank(self) -> bool:
        """Whether test images are repaired from training images."""
        return self.options.segmentation and self.options.repair == "similar" and self.options.similar != "self"

    def prepare(self, sources: Sources, stage: str, stream=None) -> None:
        """Fills the bank of Algorithm 2 before the first stage, and says its size: hashes, pictures or paths (D26).

        Raises:
            ValueError: --bank paths, and the pictures have none.
        """
        if stage != self.stages[0] or not self.needs_bank:
            return
        paths = sources.paths if self.options.bank == "paths" else None
        if self.options.bank == "paths" and paths is None:
            raise ValueError("expected Sources.paths for --bank paths")
        self.bank.fill(sources.images, sources.looks, paths)
        size = sum(buffer.numel() for buffer in self.bank.buffers()) / 1e6
        text = f"every checkpoint holds the bank of {len(self.bank)} normal images ({self.options.bank}), {size:.2f} MB"
        warnings.warn(text, Notice, stacklevel=2)

    def find_similar(self, images: Tensor, rngs: Rngs = None, looks: Looks = None) -> tuple[Tensor, list[str]]:
        """Algorithm 2: the normal image that repairs each image.

        Args:
            images: (B, 3, H, W) in [0, 1].
            rngs: a stream an image, for --similar random; None: the same for each.
            looks: hashes of the images' files; None: the images are hashed as they are, and compared with hashes of
                the resized training images (D14).

        Returns:
            (B, 3, H, W), and words for the eye about each.

        Raises:
            UserError: the bank is empty, or a file of --bank paths is not there or not what it was.
            ValueError: `looks` are no hashes, one an image.
        """
        if looks is not None and [getattr(look, "shape", None) for look in looks] != [(8,)] * len(images):
            raise ValueError(f"expected {len(images)} looks, uint8 (8,) arrays from `look`, one an image; got {looks}")
        if not self.needs_bank:
            return images, ["the image itself"] * len(images)
        count, found, words = len(self.bank), [], []
        if count == 0:
            raise UserError(
                "the bank of normal images is empty: the run has saved nothing of its training yet (or, in a program "
                "of one's own, `prepare` was not called)"
            )
        for i, image in enumerate(images):
            if self.options.similar == "phash":
                index, distance = self.bank.search(image if looks is None else looks[i])  # D26, D27
                words.append(f"{distance} of 64 bits apart")
            else:
                rng = rngs[i] if rngs is not None else np.random.default_rng(0)
                index = int(rng.integers(count)) if self.options.similar == "random" else 0
                words.append(f"number {index + 1} of {count}")
            found.append(self.bank.picture(index, self.open_picture).to(images) / 255)
        return torch.stack(found), words

    # -- inference

    def segment_and_repair(self, images: Tensor, similar: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """M_p, M_b and I_r (see `Outcome`) of images and what is pasted into them, (B, 3, H, W) both."""
        o, mask = self.options, images.new_zeros(len(images), 1, *images.shape[2:])
        if self.segmenter is None:
            return mask, mask, images
        probabilities = self.segmenter(images).float().sigmoid()
        if o.repair == "none":
            return probabilities, mask, images
        area = o.area * images[0, 0].numel()
        mask = repair_mask(probabilities, o.threshold, area, o.connectivity, o.threshold_inclusive)
        if o.repair != "similar":
            similar = images.mean(dim=(2, 3), keepdim=True) if o.repair == "mean" else torch.zeros_like(images)
        mask = gaussian_smooth(mask, o.feather)
        return probabilities, mask, repair(images, similar, mask)

    def rebuild(self, repaired: Tensor) -> Tensor:
        """The second network: I_r -> Y, (B, 3, H, W) both (D4)."""
        output = self.reconstructor(repaired).float()
        return output.sigmoid() if self.options.output_activation == "sigmoid" else output

    def forward(self, images: Tensor, similar: Tensor) -> Outcome:
        """(B, 3, H, W) in [0, 1], and what repairs them alike, through all three parts."""
        found = self.segment_and_repair(images, similar)
        return Outcome(*found, self.rebuild(found[-1]))

    def anomaly_map(self, images: Tensor, rngs: Rngs = None, looks: Looks = None) -> Tensor:
        """Equation 7 of each image and its reconstruction, clipped (D24): (B, 3, H, W) in [0, 1] -> (B, 1, H, W)."""
        check_images(images, size=self.options.size)
        outcome = self(images, self.find_similar(images, rngs, looks)[0])
        return self.compare(images, outcome.reconstruction.clamp(0, 1))

    def compare(self, x: Tensor, y: Tensor) -> Tensor:
        """Equation 7: (B, 3, H, W) in [0, 1] twice -> (B, 1, H, W) (D23)."""
        o = self.options
        if o.score != "sum":
            return self.structure_term(x, y) if o.score == "structure" else self.colour_term(x, y)
        weights = (1.0, o.colour_weight) if o.weight_on == "colour" else (o.colour_weight, 1.0)
        return weights[0] * self.structure_term(x, y) + weights[1] * self.colour_term(x, y)

    def structure_term(self, x: Tensor, y: Tensor) -> Tensor:
        """Equation 6, S_g (D21)."""
        o = self.options
        return self.smoothed(1 - msgms(x, y, o.msgms_scales, o.msgms_grey, o.msgms_padding))

    def colour_term(self, x: Tensor, y: Tensor) -> Tensor:
        """Equation 5, S_c, or EdgRec's, which has a filter of its own (D20)."""
        if self.options.colour == "edgrec":
            return mean_filter(edgrec_colour(x, y), 11, "reflect").round()
        difference = (cielab(x) - cielab(y))[:, 1:]
        difference = difference.square() if self.options.colour_norm == "squared" else difference.abs()
        return self.smoothed(difference.sum(dim=1, keepdim=True))

    def smoothed(self, maps: Tensor) -> Tensor:
        """The filter of both terms (D22)."""
        o = self.options
        if o.smooth == "gaussian":
            return gaussian_smooth(maps, o.smooth_side / 3)
        return mean_filter(maps, o.smooth_side, o.smooth_border)

    def reconstruct(self, images: Tensor, rngs: Rngs = None, looks: Looks = None) -> Tensor:
        """Y for the eye: (B, 3, H, W), clamped to [0, 1]."""
        check_images(images, size=self.options.size)
        return self(images, self.find_similar(images, rngs, looks)[0]).reconstruction.clamp(0, 1)

    def steps(self, image: Tensor, rngs: Rngs = None, looks: Looks = None) -> dict[str, Tensor]:
        """What the repair did to one image (1, 3, H, W), step by step, as pictures (C, H, W) in [0, 1]."""
        check_images(image, size=self.options.size)
        similar, words = self.find_similar(image, rngs, looks)
        outcome, shown = self(image, similar), {}
        if self.segmenter is not None:
            shown = {"predicted mask": outcome.probabilities[0], "repaired region": outcome.mask[0]}
            if self.options.repair == "similar":
                shown[f"similar image, {words[0]}"] = similar[0]
            shown["repaired"] = outcome.repaired[0]
        return {**shown, "reconstruction": outcome.reconstruction[0].clamp(0, 1)}


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


def edgrec_colour(x: Tensor, y: Tensor) -> Tensor:
    """EdgRec's difference of colour: (B, 3, H, W) in [0, 1] twice -> (B, 1, H, W) whole numbers below 256 (D20).

    Its code (github.com/liutongkun/EdgRec, ColorlossLab.py, test.py) cuts 180 x off to 8 bits, takes OpenCV's 8-bit
    Lab, and subtracts, squares and adds in 8 bits: modulo 256. A mean filter of 11 x 11, rounded, follows it. The Lab
    here is within 2 of OpenCV's, which has whole-number tables; after the modulo that can be any difference.
    """
    a, b = (to_space((180 * z).permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8), "Lab")[..., 1:] for z in (x, y))
    difference = (a - b) * (a - b)
    return torch.from_numpy(difference[..., 0] + difference[..., 1]).unsqueeze(1).to(x)
