"""Options of RealNet with their sources and readings, presets, ablations, and departures that are no option."""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from adref.method import STEPS, Deviation
from adref.methods.realnet.networks import BLOCKS, FeatureUNet
from adref.options import UserError, option, require_ascending

SOURCE = Literal["sdas", "textures", "nsa", "cut_paste", "scar"]


@dataclass(frozen=True)
class Options:
    """The defaults are the paper preset, with the code's values where the article is silent or has others."""

    # fmt: off
    size: tuple[int, int] = option((256, 256), "height,width of the input", "code", limits=(16, 65536))
    resize: Literal["antialias", "bilinear"] = option("antialias", "filter that resizes images to --size", "code")
    source_resize: Literal["bilinear", "antialias"] = option("bilinear", "filter for textures and SDAS images", "code")
    categories: tuple[str, ...] = option((), "names of the categories, sorted", "--category", is_flag=False)
    backbone: Literal[
        "wide_resnet50_2", "resnet50", "resnet34", "resnet18", "efficientnet_b4", "efficientnet_lite0",
        "mobilenet_v2"] = option(
        "wide_resnet50_2", "frozen network that gives the features", "section on implementation", kind="silent",
        paper="ImageNet weights", why="the user's file, whose hash is recorded: the code takes timm 0.5.4's files, "
        "mostly not torchvision's, with other features, selection and results. efficientnet_lite0 and mobilenet_v2 are "
        "extensions for CPUs")
    widths: tuple[int, ...] = option((256, 512, 512, 256), "m_k, channels kept of each layer", "table of widths",
        limits=(1, 4096), kind="silent", paper="a width for each layer", why="the code's, which keep layers 1 and 2 "
        "whole. ResNet34's fourth is 128 in the table (preset resnet34), 256 in a configuration of the authors")
    architecture: Literal["A", "B", "C"] = option("A", "G_k for each layer, for all, or for two", "table of efficiency")
    network: Literal["unet", "simple"] = option("unet", "G_k: U-Net, or the network that only the code has", "code",
        kind="contradiction", paper="one architecture for all backbones", why="the authors use the simple one for "
        "EfficientNet-B4 and for many categories (their issues); its widths and depth there are a guess")
    groups: int = option(32, "groups of the U-Nets' norms; heads have twice as many channels", "code", limits=(1, 1024))
    feature_scale: Literal["none", "unit"] = option("none", "unit: the root of each layer's mean square becomes 1",
        "code", kind="substitution", paper="features as they are", why="the code's; unit at tiny: the layers of its "
        "network end without an activation, with deviations from 2 to 11")
    selection: Literal["afs", "random", "projection"] = option(
        "afs", "channels by AFS, at random (RDR), or mixed by a random projection (RLPR)", "table of selections",
        kind="silent", paper="random projection, no details", why="a frozen 1 x 1 convolution at its default "
        "initialisation; a random subset is drawn once and sorted as AFS's")
    afs_batches: int = option(64, "batches from which AFS selects", "section on implementation", limits=(1, 100000))
    afs_align: Literal["mask", "feature"] = option("mask", "resizes mask to feature (nearest), or feature to mask",
        "code", kind="contradiction", paper="the feature map is normalised and aligned to the mask", why="the code's")
    residuals: Literal["max+mean", "max", "mean", "all"] = option(
        "max+mean", "statistics by which RRS ranks; all: no selection", "section on RRS")
    retention: float = option(1 / 3, "share of all channels that RRS selects, half by each statistic", "code",
        limits=(1e-06, 1), kind="ambiguous", paper="retention ratio r", why="the size of the half-width model agrees")
    rrs_forward: Literal["raw", "normalised"] = option("raw", "residuals that RRS passes on", "code", kind="ambiguous",
        paper="batch norm, then selection", why="in the code the batch norm only ranks")
    discriminator: Literal["convolutions", "mlp"] = option("convolutions", "3 x 3 or 1 x 1 convolutions", "code",
        kind="contradiction", paper="a basic MLP with up-sampling layers", why="the code's 5.9 million parameters")
    discriminator_slope: float = option(0.0, "slope below 0 of the discriminator's activations", "code", limits=(0, 1),
        kind="substitution", paper="ReLU (code)", why="the code's; .1 at tiny: with some seeds the last 4 channels are "
        "0 everywhere, and nothing trains")
    epochs: int = option(1000, "passes over the training images", "code", limits=(0, 10**9), kind="silent",
        paper="two hours", why="the code tests every 5 epochs and keeps the best on the test set; here the last count")
    steps: int | None = option(None, STEPS, "adref", limits=(1, 10**9))
    batch_size: int = option(16, "images a step", "code", limits=(1, 10**6))
    learning_rate: float = option(1e-4, "Adam's step size, constant", "code", limits=(0, 1e9))
    anomaly_sources: tuple[SOURCE, ...] = option(
        ("sdas",), f"sources of anomalies, in equal shares ({'|'.join(get_args(SOURCE))})", "table of anomaly sources")
    texture_opacity: tuple[float, float] = option((0.2, 1.0), "delta of textures, drawn uniformly from here", "code",
        limits=(0, 1), kind="contradiction", paper="U(0.5, 1) for all anomalies", why="the code's")
    foreground: Literal["rules", "none", "bright", "dark", "auto"] = option(
        "rules", "where anomalies lie: by the code's rule for a known category, everywhere, in Otsu's upper or lower "
        "class, or in the one that holds less of the frame", "code", kind="ambiguous", paper="an adaptive threshold",
        why="the code's table, made for images of 256 pixels; the sides of its squares are not scaled")
    perlin_exponents: tuple[int, int] = option(
        (0, 5), "the noise lattice has 2^i x 2^j cells, i and j from here", "code", limits=(0, 12))
    own_texture_share: float = option(0.0, "share of textures that are moved training images", "adref", limits=(0, 1),
        kind="substitution", paper="textures come from another data set", why="an addition, as in DRAEM; .5 at tiny")
    score_window: int = option(16, "side of the score's mean filter, inside the map; 1: none", "code",
        limits=(1, 65536), kind="contradiction", paper="the maximum of the map", why="the code's; both are reported")
    # fmt: on


# Small features with the network that the authors give EfficientNet; fewer steps, larger ones.
TINY = {"backbone": "efficientnet_lite0", "widths": (24, 40, 64, 64), "network": "simple", "afs_batches": 16,
        "feature_scale": "unit", "discriminator_slope": 0.1, "steps": 1500, "batch_size": 4, "learning_rate": 1e-3,
        "anomaly_sources": ("textures", "nsa"), "own_texture_share": 0.5, "score_window": 8}  # fmt: skip
PRESETS = {
    "paper": {},
    "half": {"widths": (128, 256, 256, 128)},
    "c": {"architecture": "C"},
    "resnet34": {"backbone": "resnet34", "widths": (64, 128, 256, 128)},
    "b4": {"backbone": "efficientnet_b4", "widths": (24, 32, 56, 160), "network": "simple", "retention": 0.5},
    "multi-class": {"backbone": "resnet50", "network": "simple", "anomaly_sources": ("textures",),
                    "foreground": "none"},
    "tiny": TINY, "small": {**TINY, "steps": 8000},  # a guess: what an hour trains
}  # fmt: skip

ABLATIONS = {
    # table of selections
    "rdr": {"selection": "random"}, "rdr-no-rrs": {"selection": "random", "residuals": "all"},
    "rlpr": {"selection": "projection"}, "rlpr-no-rrs": {"selection": "projection", "residuals": "all"},
    "no-rrs": {"residuals": "all"}, "rrs-max": {"residuals": "max"}, "rrs-mean": {"residuals": "mean"},
    # table of anomaly sources; SDAS is the default of the paper preset
    "sdas": {"anomaly_sources": ("sdas",)}, "dtd": {"anomaly_sources": ("textures",)},
    "nsa": {"anomaly_sources": ("nsa",)}, "cut-paste": {"anomaly_sources": ("cut_paste",)},
    # table of strengths; the strength is that of the images in --anomaly-images
    "strength-0": {}, "strength-0.1": {}, "strength-0.2": {},
    # table of architectures
    "b": {"architecture": "B"}, "c": PRESETS["c"], "half": PRESETS["half"], "high-resolution": {"size": (512, 512)},
    "literal": {"afs_align": "feature", "rrs_forward": "normalised", "texture_opacity": (0.5, 1.0),
                "discriminator": "mlp", "score_window": 1},
}  # fmt: skip

DEVIATIONS = (
    Deviation("RealNet.evaluation", "contradiction", "PRO as in Bergmann et al.", "that, and the code's beside it",
              "the code's depends on the scale of the scores and can exceed 1: 1000 even thresholds, holes as hits, a "
              "stretched range. Not built: an AUROC x < 0.5 becomes 1 - x, labels come from resized masks"),
    Deviation("ABLATIONS", "silent", "a row of high resolution, no size", "512 x 512", "twice the side; a guess"),
    Deviation("RealNet.prepare", "contradiction", "AFS on 64 batches", "the same 64 for all layers, the last one full",
              "the code draws 64 batches for each block: the same distribution at four times the cost"),
    Deviation("selection", "silent", "normalisation in AFS; sets of channels and a batch norm in RRS",
              "min-max over the batch, 1e-4 added; descending order, maxima first, duplicates kept; momentum 0.9",
              "the code's, whose order among equals is undefined: here the smaller index comes first"),
    Deviation("add_anomaly", "silent", "NSA and CutPaste, no details", "their authors' constants and labels",
              "unknown categories: NSA's widest bounds, no condition; colours change in a fixed order; see nsa.py"),
    Deviation("networks.enlarge", "silent", "up-sampling", "bilinear, corners aligned; rectangles are allowed",
              "the code's; it takes squares only, because its decoder computes its size from the width"),
    Deviation("corrupt", "silent", "an empty mask", "the example stays normal",
              "as in the code: 4 % of all masks, more where the foreground is small"),
    Deviation("RealNet.loss", "ambiguous", "a norm of the difference, scale unclear; a segmentation loss",
              "a mean for each block, summed; unweighted cross-entropy, which trains G_k, too", "the code's"),
)  # fmt: skip


def check(o: Options, backbone: nn.Module) -> None:
    """Raises UserError for options that do not fit together."""
    if len(o.widths) != 4:
        raise UserError(f"--widths takes four numbers, one a layer; got {o.widths}")
    for k, (width, channels) in enumerate(zip(o.widths, backbone.channels)):
        if width > channels:
            raise UserError(f"--widths: layer {k + 1} of {o.backbone} has {channels} channels; got {width}")
    # A reconstruction network halves the sides of its block twice.
    blocks = BLOCKS[o.architecture]
    multiple = max(*(FeatureUNet.stride * backbone.strides[block[0]] for block in blocks), *backbone.strides)
    if any(side % multiple for side in o.size):
        kind = f"{o.backbone}, architecture {o.architecture}"
        raise UserError(f"--size takes multiples of {multiple} for {kind}; got {o.size[0]},{o.size[1]}")
    for width in (sum(o.widths[k] for k in block) for block in blocks):
        if o.network == "unet" and width % (2 * o.groups):
            raise UserError(f"--widths: a U-Net has a multiple of {2 * o.groups} channels (2 --groups); got {width}")
    if not o.anomaly_sources or len(set(o.anomaly_sources)) < len(o.anomaly_sources):
        raise UserError(f"--anomaly-sources takes different ones of {', '.join(get_args(SOURCE))}; got none, or twice")
    require_ascending(o, "perlin_exponents", "texture_opacity")
    if o.score_window > min(o.size):
        raise UserError(f"--score-window takes up to {min(o.size)} pixels; got {o.score_window}")
