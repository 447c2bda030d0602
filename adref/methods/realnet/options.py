"""The constants of RealNet: options with their sources, presets, ablations, and departures from the paper."""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from adref.method import Deviation
from adref.methods.realnet.networks import BLOCKS, FeatureUNet
from adref.options import UserError, option, require_ascending

SOURCE = Literal["sdas", "textures", "nsa", "cut_paste", "scar"]


@dataclass(frozen=True)
class Options:
    """The constants of RealNet that a reading or a size could set otherwise; the defaults are the paper preset."""

    size: tuple[int, int] = option((256, 256), "height,width of the input", "code", limits=(16, 65536))
    resize: Literal["antialias", "bilinear"] = option("antialias", "filter that brings a picture to --size", "code")
    source_resize: Literal["bilinear", "antialias"] = option("bilinear", "the same for foreign pictures", "code")
    categories: tuple[str, ...] = option((), "names of the categories, by the alphabet", "--category", is_flag=False)
    # TODO here: D1: the user's file, whose hash is recorded
    backbone: Literal["wide_resnet50_2", "resnet50", "resnet34", "resnet18", "efficientnet_b4", "mobilenet_v2"] = option(
        "wide_resnet50_2", "the frozen network", "section on implementation", kind="silent", paper="ImageNet weights",
        why="the code takes timm 0.5.4's files, which are not torchvision's for most networks: features, selection "
        "and results differ with them. mobilenet_v2 is an extension, for want of a GPU",
    )  # fmt: skip
    # TODO here: D9: 256,512,512,256, which keeps layers 1 and 2 whole
    widths: tuple[int, ...] = option(
        (256, 512, 512, 256), "m_k, channels kept of each layer", "article: widths", limits=(1, 4096), kind="silent",
        paper="a width for each layer",
        why="the code's. ResNet34's fourth is 128 in the table, 256 in a configuration of the authors",
    )  # fmt: skip
    architecture: Literal["A", "B", "C"] = option(
        "A", "one network a layer, one for all, or one for two", "article: efficiency",
    )  # fmt: skip
    # TODO here: D2: the U-Net; the 'simple' network for EfficientNet-B4 and many categories
    network: Literal["unet", "simple"] = option(
        "unet", "G_k; simple is in the code alone", "code", kind="contradiction",
        paper="one architecture for all backbones",
        why="the authors say so in their issues, with 12 units for B4; how many for many categories is not known, "
        "nor which widths: preset multi-class guesses",
    )  # fmt: skip
    # TODO see ['D2']
    depth: int = option(12, "residual units of the simple network", "code (issue)", limits=(0, 1000))
    groups: int = option(32, "of the U-Nets' group norms", "code", limits=(1, 1024))
    head_width: int = option(64, "channels of a head of their attention", "code", limits=(1, 4096))
    # TODO here: D3: 1 x 1 convolution, frozen, default initialisation
    selection: Literal["afs", "random", "projection"] = option(
        "afs", "channels by AFS, at random (RDR), or mixed by a random projection (RLPR)", "article: ablations",
        kind="silent", paper="random projection, no details",
        why="a random subset is drawn once and sorted, like AFS's",
    )  # fmt: skip
    afs_batches: int = option(64, "batches that AFS looks at", "section on implementation", limits=(1, 100000))
    # TODO here: D4: the same 64 for all blocks, a last short batch being filled up from the start
    afs_pass: Literal["shared", "per_block"] = option(
        "shared", "the same batches for all blocks, or own ones", "adref", kind="contradiction", paper="64 batches",
        why="the code draws 64 new ones for each block, which is the same in law",
    )  # fmt: skip
    # TODO here: D5: the mask comes to the feature's size, by its top left pixels; min-max over the batch, + 1e-4
    afs_align: Literal["mask", "feature"] = option(
        "mask", "which of the two comes to the other's size", "code", kind="contradiction",
        paper="the feature map is normalised and aligned to the mask",
        why="the code's; both other readings are options",
    )  # fmt: skip
    # TODO see ['D5']
    afs_range: Literal["batch", "image"] = option("batch", "over what AFS takes minimum and maximum", "code")
    residuals: Literal["max+mean", "max", "mean", "all"] = option(
        "max+mean", "what RRS ranks by; all: no selection", "section on RRS",
    )  # fmt: skip
    # TODO here: D8: r = channels passed on / channels there are, half of them by each rank
    retention: float = option(
        1 / 3, "share of the channels that RRS passes on", "code", limits=(1e-06, 1), kind="ambiguous",
        paper="retention ratio r",
        why="the published size of the half-width model agrees; the segmentation loss also trains G_k through the "
        "values that pass, as in the code",
    )  # fmt: skip
    # TODO here: D6: it ranks, and raw residuals pass; momentum 0.9
    rrs_forward: Literal["raw", "normalised"] = option(
        "raw", "which residuals RRS passes on", "code", kind="ambiguous", paper="batch norm, then selection",
        why="the code's",
    )  # fmt: skip
    # TODO see ['D6']
    rrs_momentum: float = option(0.9, "of the batch norm that RRS ranks by", "code", limits=(0, 1))
    # TODO here: D7: in descending order, maxima first, means after them, duplicates kept; of equal ones the smaller index first
    rrs_order: Literal["rank", "index"] = option(
        "rank", "order of the channels that RRS passes on", "code", kind="silent", paper="sets of channels",
        why="the code's, but for the last point",
    )  # fmt: skip
    # TODO see ['D8']
    stop_gradient: bool = option(False, "the segmentation loss does not train G_k", "code")
    # TODO here: D10: bilinear with aligned corners
    align_corners: bool = option(
        True, "of every bilinear enlargement", "code", kind="silent", paper="up-sampling", why="the code's",
    )  # fmt: skip
    # TODO here: D11: 3 x 3 convolutions; unweighted cross-entropy
    discriminator: Literal["convolutions", "mlp"] = option(
        "convolutions", "3 x 3 or 1 x 1 convolutions", "code", kind="contradiction",
        paper="a basic MLP with up-sampling layers",
        why="the code's 5.9 million parameters. 'mlp' has 1 x 1 ones; the code's focal loss is unused",
    )  # fmt: skip
    # TODO see ['D11']
    segmentation_loss: Literal["cross_entropy", "focal"] = option("cross_entropy", "L_seg", "code")
    reconstruction_weight: float = option(1.0, "weight of L_rec", "equation 6", limits=(0, 1000000000.0))
    segmentation_weight: float = option(1.0, "weight of L_seg", "equation 6", limits=(0, 1000000000.0))
    # TODO here: D12: 1000 passes at 1e-4, the last weights
    epochs: int = option(
        1000, "passes over the training images", "code", limits=(0, 10 ** 9), kind="silent",
        paper="two hours, no length, no rate",
        why="the code keeps the best of all tests on the test set, every 5 passes: not built, as nothing here is "
        "chosen on test images",
    )  # fmt: skip
    batch_size: int = option(16, "images a step", "code", limits=(1, 10**6))
    # TODO see ['D12']
    learning_rate: float = option(0.0001, "Adam's step size, constant", "code", limits=(0, 1000000000.0))
    anomaly_sources: tuple[SOURCE, ...] = option(
        ("sdas",), f"where anomalies come from, in equal shares ({'|'.join(get_args(SOURCE))})", "article: sources",
    )  # fmt: skip
    anomaly_probability: float = option(
        0.5, "share of samples that are corrupted", "section on synthesis", limits=(0, 1),
    )  # fmt: skip
    # TODO see ['D14']
    sdas_opacity: tuple[float, float] = option((0.5, 1.0), "delta of SDAS pictures, uniform", "code", limits=(0, 1))
    # TODO here: D14: U(0.2, 1) for textures
    texture_opacity: tuple[float, float] = option(
        (0.2, 1.0), "delta of textures, uniform", "code", limits=(0, 1), kind="contradiction",
        paper="opacity U(0.5, 1)", why="the code's; for SDAS both agree",
    )  # fmt: skip
    # TODO here: D15: a rule a category, everywhere for others
    foreground: Literal["rules", "none", "bright", "dark", "auto"] = option(
        "rules",
        "where anomalies may lie: the code's rule of a category it knows, everywhere, Otsu's upper or lower class, "
        "or that of the two which the frame is not", "code", kind="ambiguous", paper="an adaptive threshold",
        why="the code's table, written for pictures of 256 pixels; the sides of its squares are not scaled",
    )  # fmt: skip
    perlin_exponents: tuple[int, int] = option(
        (0, 5), "the noise has 2^i x 2^j cells, i and j from here", "code", limits=(0, 12),
    )  # fmt: skip
    perlin_rotation: float = option(90.0, "the noise turns by U(-d, d) degrees", "code", limits=(0, 180))
    mask_threshold: tuple[float, float] = option((0.5, 0.5), "mask = noise > t, t from here", "code", limits=(-1, 1))
    texture_operations: Literal["code", "paper"] = option("code", "10 kinds of operation, or DRAEM's 7", "code")
    texture_operation_count: int = option(3, "different operations on each texture", "code", limits=(0, 10))
    channel_order: Literal["rgb", "bgr"] = option("rgb", "order that colour operations believe in", "code")
    # TODO here: D16: 0; tiny: 0.5
    own_texture_share: float = option(
        0.0, "share of textures that are moved training images", "adref", limits=(0, 1), kind="substitution",
        paper="textures come from another data set",
        why="an addition, as in this package's DRAEM (its D13); tiny also has no SDAS pictures, which need a run "
        "first",
    )  # fmt: skip
    # TODO here: D17: the maximum of a 16 x 16 mean
    score_window: int = option(
        16, "side of the score's mean filter, inside the map only; 1: its maximum", "adref", limits=(1, 65536),
        kind="contradiction", paper="the maximum of the map", why="the code's; the maximum is reported beside it",
    )  # fmt: skip


TINY = {
    "size": (128, 128), "backbone": "resnet18", "widths": (64, 64, 64, 64), "afs_batches": 16, "epochs": 40,
    "batch_size": 4, "learning_rate": 1e-3, "anomaly_sources": ("textures", "nsa"), "perlin_exponents": (0, 4),
    "own_texture_share": 0.5, "score_window": 8,
}  # fmt: skip


PRESETS = {
    "paper": {},
    "half": {"widths": (128, 256, 256, 128)},
    "c": {"architecture": "C"},
    "b4": {"backbone": "efficientnet_b4", "widths": (24, 32, 56, 160), "network": "simple", "retention": 0.5},
    "multi-class": {
        "backbone": "resnet50", "network": "simple", "anomaly_sources": ("textures",), "foreground": "none",
    },
    "tiny": TINY,
    "tiny-mobilenet": {**TINY, "backbone": "mobilenet_v2", "widths": (24, 32, 64, 64), "groups": 4, "head_width": 8},
}  # fmt: skip


ABLATIONS = {
    # the table of selections
    "rdr": {"selection": "random"},
    "rlpr": {"selection": "projection"},
    "rdr-no-rrs": {"selection": "random", "residuals": "all"},
    "rlpr-no-rrs": {"selection": "projection", "residuals": "all"},
    "no-rrs": {"residuals": "all"},
    "rrs-max": {"residuals": "max"},
    "rrs-mean": {"residuals": "mean"},
    # the table of anomaly sources; SDAS is the default
    "dtd": {"anomaly_sources": ("textures",)},
    "nsa": {"anomaly_sources": ("nsa",)},
    "cut-paste": {"anomaly_sources": ("cut_paste",)},
    # the table of architectures
    "b": {"architecture": "B"},
    "c": {"architecture": "C"},
    "half": {"widths": (128, 256, 256, 128)},
    # where paper and code part
    "paper": {
        "afs_align": "feature", "rrs_forward": "normalised", "texture_opacity": (0.5, 1.0), "discriminator": "mlp",
        "score_window": 1,
    },
    "code": {"afs_pass": "per_block"},
}  # fmt: skip


DEVIATIONS = (
    # D13
    Deviation(
        "RealNet.aupro_convention", "contradiction", "PRO as defined by Bergmann et al.",
        "the exact one, the code's beside it",
        "the code has 1000 even thresholds, holes count as hits, and the range is stretched. It also turns an AUROC "
        "x below 0.5 into 1 - x, and takes labels from resized masks: not built",
    ),
    # D18
    Deviation(
        "nsa_anomaly", "silent", "NSA, no details",
        "its authors' sizes and conditions; other categories: the widest bounds, no condition",
        "as in their code the bounds of half a side bound the whole resized side, and 1 + Binomial(n - 1, 1/2) "
        "patches are drawn; other than there, patches are whole, at least 7 pixels wide, and the equation is solved "
        "on their rectangle. The label is NSA's own, not the Perlin mask; an anomaly that it leaves out is none",
    ),
    # D19
    Deviation(
        "cut_paste_anomaly", "silent", "CutPaste, no details",
        "its rectangles, labelled whole unless no pixel changed; scars are a source of their own",
        "its label is not told; colours change as in its code, in a fixed order",
    ),
    # D20
    Deviation(
        "RealNet.__init__", "substitution", "square inputs", "rectangles, too",
        "the code takes the size within its decoder from the width alone",
    ),
    # D21
    Deviation(
        "corrupt", "silent", "an empty mask", "the sample stays normal",
        "as in the code: 4 % of all masks, and more where the foreground is small",
    ),
    # D22
    Deviation(
        "RealNet.loss", "ambiguous", "a norm of the difference, its scale unclear",
        "the mean over each block, summed over blocks", "the code's",
    ),
)  # fmt: skip


def check(o: Options, backbone: nn.Module) -> None:
    """Raises UserError for options that do not fit together."""
    if len(o.widths) != 4:
        raise UserError(f"--widths takes four numbers, one a layer; got {o.widths}")
    for k, (width, channels) in enumerate(zip(o.widths, backbone.channels)):
        if width > channels:
            raise UserError(f"--widths: layer {k + 1} of {o.backbone} has {channels} channels; got {width}")
    # A network halves the sides of its block twice.
    strides = {FeatureUNet.stride * backbone.strides[block[0]] for block in BLOCKS[o.architecture]}
    coarsest = max(*strides, *backbone.strides)
    if any(side % coarsest for side in o.size):
        what = f"{o.backbone}, architecture {o.architecture}"
        raise UserError(f"--size takes multiples of {coarsest} for {what}; got {o.size[0]},{o.size[1]}")
    for block in BLOCKS[o.architecture]:
        width = sum(o.widths[k] for k in block)
        if o.network == "unet" and (width % (2 * o.groups) or width % o.head_width):
            raise UserError(f"--widths: a U-Net has a multiple of {2 * o.groups} and of {o.head_width} channels "
                            f"(--groups, --head-width); got {width}")  # fmt: skip
    if not o.anomaly_sources or len(set(o.anomaly_sources)) < len(o.anomaly_sources):
        raise UserError(f"--anomaly-sources takes different ones of {', '.join(get_args(SOURCE))}; got none, or twice")
    require_ascending(o, "perlin_exponents", "mask_threshold", "sdas_opacity", "texture_opacity")
    if o.texture_operations == "paper" and o.texture_operation_count > 7:
        raise UserError(f"--texture-operation-count takes 0 to 7, the number of kinds; got {o.texture_operation_count}")
    if o.score_window > min(o.size):
        raise UserError(f"--score-window takes up to {min(o.size)} pixels; got {o.score_window}")
