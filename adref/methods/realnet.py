"""RealNet: reconstruct selected features of a frozen network, and let a small network judge the selected residuals.

X. Zhang, M. Xu, X. Zhou, "RealNet: A Feature Selection Network with Realistic Synthetic Anomaly for Anomaly Detection",
CVPR 2024 (arXiv 2403.05897). Code of the authors: github.com/cnulab/RealNet (commit ab75012), called "code". The text
that was at hand had lost its formulas; equations 4 to 6 bear the article's numbers and are reconstructed from its words
and the code, the others are numbered here.

A normal image gets a synthetic anomaly under a mask. A network with ImageNet weights, which never trains, gives
features of four layers, of which anomaly-aware selection (AFS) keeps the channels that answer to anomalies and to
nothing else. U-Nets rebuild the normal image's features from the corrupted one's. Of the squared residuals, selection
for each image (RRS) keeps the channels with the largest maximum and the largest mean, and a small network turns them
into a map. The diffusion model that makes the article's anomalies (SDAS) is the method `sdas`.

What an audit should know before it trusts the article:
- The published numbers are those of the best of many checkpoints on the test set (D12), both AUROCs are flipped where
  they are below 0.5, and its PRO depends on the scale of the scores and can exceed 1 (D13). None of that is done here.
- With the default widths AFS keeps all of layers 1 and 2: it acts on layers 3 and 4 alone (D9).
- The discriminator's channel j is "rank j of this image", no fixed feature (D7); channels that are among both the
  largest maxima and the largest means come twice.
- The batch norm before the ranking has momentum 0.9 in the sense of PyTorch: when it is evaluated, its statistics are
  those of the last batch, by nine tenths (D6).

Symbols
    I, A, M        normal image, with anomaly, its mask          P, delta      anomalous picture, its opacity
    phi_k          features of block k after AFS                 G_k           network that rebuilds them
    E_k, E         residuals of block k, of all                  m_k           channels that AFS keeps of layer k
    S              channels of E that RRS passes on              D             the discriminator

Equations
    (1) A = (1 - M) I + (1 - delta) M I + delta M P                                         blend
    (2) E_k = (phi_k(A) - G_k(phi_k(A)))^2                                                  RealNet.residuals
    (3) score = max(box(map))                                                               RealNet.image_score
    (4) L_AFS(i) = mean (F((phi_{k,i}(A) - phi_{k,i}(I))^2) - M)^2, F min-max normalises    feature_selection.afs_losses
    (5) L_rec = sum_k |G_k(phi_k(A)) - phi_k(I)|^2                                          RealNet.loss
    (6) L = L_rec + L_seg                                                                   RealNet.loss
    (7) S: channels of E, largest maxima, then means   residual_selection.ResidualSelection.rank
    (8) map = softmax(D(S)), L_seg its cross-entropy with M                         RealNet.anomaly_map, RealNet.loss

Algorithms and tables
    (Table of selections) AFS, RDR, RLPR, with RRS and without                              ABLATIONS
    (Table of anomaly sources) SDAS, DTD, NSA, CutPaste                                     ABLATIONS
    (Table of architectures) A, B, C, and half the widths                                   ABLATIONS

Not built
    The choice of the best checkpoint on the test set, and the flipping of an AUROC below 0.5.
    The recipe of the table of many categories, which no text gives: preset multi-class guesses (D2).
"""

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adref.layers.efficientnet import EfficientNetB4
from adref.layers.feature_selection import afs_losses, min_max, select
from adref.layers.feature_unet import FeatureUNet, SimpleNetwork
from adref.layers.mobilenet import MobileNetV2
from adref.layers.residual_selection import Discriminator, ResidualSelection, enlarge
from adref.layers.resnet import ResNet
from adref.losses import focal
from adref.method import Deviation, Method, Sources, check_images
from adref.methods.draem import draw_mask, draw_texture
from adref.options import Notice, UserError, option, require_ascending
from adref.synthesis.cut_paste import cut_paste, draw_rectangle, draw_scar
from adref.synthesis.foreground import Rule, choose_rule, foreground
from adref.synthesis.nsa import NSA_RULES, NSARule, draw_nsa, nsa

SOURCE = Literal["sdas", "textures", "nsa", "cut_paste", "scar"]


@dataclass(frozen=True)
class Options:
    """The constants of RealNet that a reading or a size could set otherwise; the defaults are the paper preset."""

    size: tuple[int, int] = option((256, 256), "height,width of the input", "code", (16, 65536))
    resize: Literal["antialias", "bilinear"] = option("antialias", "filter that brings a picture to --size", "code")
    source_resize: Literal["bilinear", "antialias"] = option("bilinear", "the same for foreign pictures", "code")
    backbone: Literal[
        "wide_resnet50_2", "resnet50", "resnet34", "resnet18", "efficientnet_b4", "mobilenet_v2"
    ] = option("wide_resnet50_2", "the frozen network", "section on implementation; D1")  # fmt: skip
    widths: tuple[int, ...] = option(
        (256, 512, 512, 256), "m_k, channels kept of each layer", "article: widths; D9", (1, 4096)
    )
    architecture: Literal["A", "B", "C"] = option(
        "A", "one network a layer, one for all, or one for two", "article: efficiency"
    )
    network: Literal["unet", "simple"] = option("unet", "G_k; simple is in the code alone", "code; D2")
    depth: int = option(12, "residual units of the simple network", "code (issue); D2", (0, 1000))
    groups: int = option(32, "of the U-Nets' group norms", "code", (1, 1024))
    head_width: int = option(64, "channels of a head of their attention", "code", (1, 4096))
    selection: Literal["afs", "random", "projection"] = option(
        "afs", "channels by AFS, at random (RDR), or mixed by a random projection (RLPR)", "article: ablations; D3"
    )
    afs_batches: int = option(64, "batches that AFS looks at", "section on implementation", (1, 100_000))
    afs_pass: Literal["shared", "per_block"] = option("shared", "the same batches for all blocks, or own ones", "D4")
    afs_align: Literal["mask", "feature"] = option("mask", "which of the two comes to the other's size", "code; D5")
    afs_range: Literal["batch", "image"] = option("batch", "over what AFS takes minimum and maximum", "code; D5")
    residuals: Literal["max+mean", "max", "mean", "all"] = option(
        "max+mean", "what RRS ranks by; all: no selection", "section on RRS"
    )
    retention: float = option(1 / 3, "share of the channels that RRS passes on", "code; D8", (1e-6, 1))
    rrs_forward: Literal["raw", "normalised"] = option("raw", "which residuals RRS passes on", "code; D6")
    rrs_momentum: float = option(0.9, "of the batch norm that RRS ranks by", "code; D6", (0, 1))
    rrs_order: Literal["rank", "index"] = option("rank", "order of the channels that RRS passes on", "code; D7")
    stop_gradient: bool = option(False, "the segmentation loss does not train G_k", "code; D8")
    align_corners: bool = option(True, "of every bilinear enlargement", "code; D10")
    discriminator: Literal["convolutions", "mlp"] = option("convolutions", "3 x 3 or 1 x 1 convolutions", "code; D11")
    segmentation_loss: Literal["cross_entropy", "focal"] = option("cross_entropy", "L_seg", "code; D11")
    reconstruction_weight: float = option(1.0, "weight of L_rec", "equation 6", (0, 1e9))
    segmentation_weight: float = option(1.0, "weight of L_seg", "equation 6", (0, 1e9))
    epochs: int = option(1000, "passes over the training images", "code; D12", (0, 10**9))
    batch_size: int = option(16, "images a step", "code", (1, 10**6))
    learning_rate: float = option(1e-4, "Adam's step size, constant", "code; D12", (0, 1e9))
    anomaly_sources: tuple[SOURCE, ...] = option(
        ("sdas",), f"where anomalies come from, in equal shares ({'|'.join(get_args(SOURCE))})", "article: sources"
    )
    anomaly_probability: float = option(0.5, "share of samples that are corrupted", "section on synthesis", (0, 1))
    sdas_opacity: tuple[float, float] = option((0.5, 1.0), "delta of SDAS pictures, uniform", "code; D14", (0, 1))
    texture_opacity: tuple[float, float] = option((0.2, 1.0), "delta of textures, uniform", "code; D14", (0, 1))
    foreground: Literal["rules", "none", "bright", "dark", "auto"] = option(
        "rules", "where anomalies may lie: the code's rule of a category it knows, everywhere, Otsu's upper or lower "
        "class, or that of the two which the frame is not", "code; D15"
    )  # fmt: skip
    perlin_exponents: tuple[int, int] = option(
        (0, 5), "the noise has 2^i x 2^j cells, i and j from here", "code", (0, 12)
    )
    perlin_rotation: float = option(90.0, "the noise turns by U(-d, d) degrees", "code", (0, 180))
    mask_threshold: tuple[float, float] = option((0.5, 0.5), "mask = noise > t, t from here", "code", (-1, 1))
    texture_operations: Literal["code", "paper"] = option("code", "10 kinds of operation, or DRAEM's 7", "code")
    texture_operation_count: int = option(3, "different operations on each texture", "code", (0, 10))
    channel_order: Literal["rgb", "bgr"] = option("rgb", "order that colour operations believe in", "code")
    own_texture_share: float = option(0.0, "share of textures that are moved training images", "D16", (0, 1))
    score_window: int = option(
        16, "side of the score's mean filter, inside the map only; 1: its maximum", "D17", (1, 65536)
    )


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


class Batch(NamedTuple):
    clean: Tensor  # I, (B, 3, H, W)
    corrupted: Tensor  # A, (B, 3, H, W)
    mask: Tensor  # M, (B, 1, H, W), 1 = anomalous


DEVIATIONS = (
    Deviation("D1", "Options.backbone", "silent", "ImageNet weights", "the user's file, whose hash is recorded",
              "the code takes timm 0.5.4's files, which are not torchvision's for most networks: features, "
              "selection and results differ with them. mobilenet_v2 is an extension, for want of a GPU"),
    Deviation("D2", "Options.network", "contradiction", "one architecture for all backbones",
              "the U-Net; the 'simple' network for EfficientNet-B4 and many categories",
              "the authors say so in their issues, with 12 units for B4; how many for many categories is not "
              "known, nor which widths: preset multi-class guesses"),
    Deviation("D3", "Options.selection", "silent", "random projection, no details",
              "1 x 1 convolution, frozen, default initialisation",
              "a random subset is drawn once and sorted, like AFS's"),
    Deviation("D4", "Options.afs_pass", "contradiction", "64 batches",
              "the same 64 for all blocks, a last short batch being filled up from the start",
              "the code draws 64 new ones for each block, which is the same in law"),
    Deviation("D5", "Options.afs_align", "contradiction", "the feature map is normalised and aligned to the mask",
              "the mask comes to the feature's size, by its top left pixels; min-max over the batch, + 1e-4",
              "the code's; both other readings are options"),
    Deviation("D6", "Options.rrs_forward", "ambiguous", "batch norm, then selection",
              "it ranks, and raw residuals pass; momentum 0.9", "the code's"),
    Deviation("D7", "Options.rrs_order", "silent", "sets of channels",
              "in descending order, maxima first, means after them, duplicates kept; of equal ones the smaller "
              "index first", "the code's, but for the last point"),
    Deviation("D8", "Options.retention", "ambiguous", "retention ratio r",
              "r = channels passed on / channels there are, half of them by each rank",
              "the published size of the half-width model agrees; the segmentation loss also trains G_k "
              "through the values that pass, as in the code"),
    Deviation("D9", "Options.widths", "silent", "a width for each layer",
              "256,512,512,256, which keeps layers 1 and 2 whole",
              "the code's. ResNet34's fourth is 128 in the table, 256 in a configuration of the authors"),
    Deviation("D10", "Options.align_corners", "silent", "up-sampling", "bilinear with aligned corners", "the code's"),
    Deviation("D11", "Options.discriminator", "contradiction", "a basic MLP with up-sampling layers",
              "3 x 3 convolutions; unweighted cross-entropy",
              "the code's 5.9 million parameters. 'mlp' has 1 x 1 ones; the code's focal loss is unused"),
    Deviation("D12", "Options.epochs", "silent", "two hours, no length, no rate",
              "1000 passes at 1e-4, the last weights",
              "the code keeps the best of all tests on the test set, every 5 passes: not built, as nothing "
              "here is chosen on test images"),
    Deviation("D13", "RealNet.aupro_convention", "contradiction", "PRO as defined by Bergmann et al.",
              "the exact one, the code's beside it",
              "the code has 1000 even thresholds, holes count as hits, and the range is stretched. It also "
              "turns an AUROC x below 0.5 into 1 - x, and takes labels from resized masks: not built"),
    Deviation("D14", "Options.texture_opacity", "contradiction", "opacity U(0.5, 1)", "U(0.2, 1) for textures",
              "the code's; for SDAS both agree"),
    Deviation("D15", "Options.foreground", "ambiguous", "an adaptive threshold",
              "a rule a category, everywhere for others",
              "the code's table, written for pictures of 256 pixels; the sides of its squares are not scaled"),
    Deviation("D16", "Options.own_texture_share", "substitution", "textures come from another data set", "0; tiny: 0.5",
              "an addition, as in this package's DRAEM (its D13); tiny also has no SDAS pictures, which need a "
              "run first"),
    Deviation("D17", "Options.score_window", "contradiction", "the maximum of the map", "the maximum of a 16 x 16 mean",
              "the code's; the maximum is reported beside it"),
    Deviation("D18", "nsa_anomaly", "silent", "NSA, no details",
              "its authors' sizes and conditions; other categories: the widest bounds, no condition",
              "as in their code the bounds of half a side bound the whole resized side, and 1 + Binomial(n - "
              "1, 1/2) patches are drawn; other than there, patches are whole, at least 7 pixels wide, and the "
              "equation is solved on their rectangle. The label is NSA's own, not the Perlin mask; an anomaly "
              "that it leaves out is none"),
    Deviation("D19", "cut_paste_anomaly", "silent", "CutPaste, no details",
              "its rectangles, labelled whole unless no pixel changed; scars are a source of their own",
              "its label is not told; colours change as in its code, in a fixed order"),
    Deviation("D20", "RealNet.__init__", "substitution", "square inputs", "rectangles, too",
              "the code takes the size within its decoder from the width alone"),
    Deviation("D21", "corrupt", "silent", "an empty mask", "the sample stays normal",
              "as in the code: 4 % of all masks, and more where the foreground is small"),
    Deviation("D22", "RealNet.loss", "ambiguous", "a norm of the difference, its scale unclear",
              "the mean over each block, summed over blocks", "the code's"),
)  # fmt: skip


# -- the corrupted image ----------------------------------------------------------------------------------------------


def corrupt(image: Tensor, rng: np.random.Generator, options: Options, sources: Sources) -> Batch:
    """One training example: with probability `anomaly_probability` an anomaly of one of the sources (D21).

    Args:
        image: (3, H, W) in [0, 1], of 8-bit values.
        rng: the stream of this example.
        options: the method's options.
        sources: `survey`, `categories` and `index`; and `anomalies`, `textures` or `images`, as the sources need them.

    Returns:
        clean and corrupted (3, H, W), mask (1, H, W); mask all 0 and corrupted equal to clean for a normal example.
    """
    if rng.random() >= options.anomaly_probability:
        return Batch(image, image, torch.zeros(1, *image.shape[1:]))
    kind = options.anomaly_sources[int(rng.integers(len(options.anomaly_sources)))]
    if sources.journal is not None:
        sources.journal.append({f"from_{source}": int(source == kind) for source in options.anomaly_sources})
    make = {"nsa": nsa_anomaly, "cut_paste": cut_paste_anomaly, "scar": cut_paste_anomaly}.get(kind, masked_anomaly)
    corrupted, mask = make(image, rng, options, sources, kind)
    return Batch(image, corrupted, mask[None])


def masked_anomaly(image: Tensor, rng, o: Options, sources: Sources, kind: str) -> tuple[Tensor, Tensor]:
    """Equation 1 of an SDAS picture or a texture under Perlin noise on the foreground."""
    mask = draw_mask(rng, tuple(image.shape[1:]), o)
    mask = mask * foreground(to_bytes(image).permute(1, 2, 0).numpy(), sources.survey[category(sources)])  # D15
    if kind == "sdas":
        pictures = sources.anomalies[category(sources)]
        picture, opacity = pictures[int(rng.integers(len(pictures)))], o.sdas_opacity
    else:
        picture, opacity = to_bytes(draw_texture(rng, o, sources)), o.texture_opacity  # D16
    mask = torch.from_numpy(mask.astype(np.float32))
    return blend(image, picture, mask, rng.uniform(*opacity)), mask  # D14


def nsa_anomaly(image: Tensor, rng, o: Options, sources: Sources, kind: str) -> tuple[Tensor, Tensor]:
    """Patches of another normal image of the category, set in without seams (D18)."""
    own = category(sources)
    others = [i for i, name in enumerate(sources.categories) if name == own and i != sources.index] or [sources.index]
    other = sources.images[others[int(rng.integers(len(others)))]].float() / 255
    rule = NSA_RULES.get(own, NSARule())
    patches = draw_nsa(rng, image.numpy(), other.numpy(), rule)
    corrupted, mask = nsa(image.numpy(), other.numpy(), patches, rule.mixed)
    return torch.from_numpy(corrupted), torch.from_numpy(mask)


def cut_paste_anomaly(image: Tensor, rng, o: Options, sources: Sources, kind: str) -> tuple[Tensor, Tensor]:
    """A piece of the image itself, in another place (D19)."""
    draw = draw_rectangle if kind == "cut_paste" else draw_scar
    return cut_paste(image, draw(rng, tuple(image.shape[1:])))


def category(sources: Sources) -> str:
    """The category of the image at hand."""
    return sources.categories[sources.index]


def to_bytes(picture: Tensor) -> Tensor:
    """Values in [0, 1] as the nearest of 8 bits."""
    return (255 * picture).round().byte()


def blend(image: Tensor, picture: Tensor, mask: Tensor, opacity: float) -> Tensor:
    """Equation 1 in 8-bit values, cut off to whole ones as in the code; exactly I where M is 0, P where delta is 1.

    Args:
        image: I, (3, H, W) in [0, 1].
        picture: P, (3, H, W) uint8.
        mask: M, (H, W) in {0, 1}.
        opacity: delta.
    """
    mixed = ((1 - opacity) * to_bytes(image).double() + opacity * picture.double()).floor().float() / 255
    return torch.where(mask > 0, mixed, image)


def survey(images: Sequence[Tensor], name: str, options: Options) -> Rule | None:
    """The rule of a category's foreground; None: everything (D15)."""
    return choose_rule([image.permute(1, 2, 0).numpy() for image in images], name, options.foreground)


# -- the method -------------------------------------------------------------------------------------------------------

BLOCKS = {"A": ((0,), (1,), (2,), (3,)), "B": ((0, 1, 2, 3),), "C": ((0, 1), (2, 3))}
EXAMPLES = 2  # synthetic anomalies of each source that are kept for the report


class Outcome(NamedTuple):
    """What RealNet makes of a batch."""

    rebuilt: list[Tensor]  # G_k(phi_k(A)), (B, C_k, h_k, w_k)
    residuals: Tensor  # E, (B, C, h, w)
    chosen: Tensor  # (B, N, h, w)
    indices: Tensor | None  # (B, N), channels of E; None: all
    logits: Tensor  # (B, 2, H, W)


class RealNet(Method):
    """Select, rebuild, select, judge."""

    Options = Options
    presets = PRESETS
    ablations = ABLATIONS
    deviations = DEVIATIONS
    sees_whole = "it selects channels by their maxima and means over all of it"
    many_categories = True
    aupro_convention = "realnet"  # D13
    corrupt = staticmethod(corrupt)
    survey = staticmethod(survey)

    def __init__(self, options: Options = Options()):  # noqa: B008  frozen
        super().__init__(options)
        o = self.options
        self.backbone = build_backbone(o.backbone).requires_grad_(False)
        self.blocks = BLOCKS[o.architecture]
        check(o, self.backbone)
        needs = {"sdas": "anomalies", "textures": "textures"}
        self.needs = tuple(needs[source] for source in o.anomaly_sources if source in needs)
        self.backbone_source = f"{o.backbone} needs ImageNet weights, {self.backbone.published}"  # D1
        self.projections = nn.ModuleList()
        for k, (width, channels) in enumerate(zip(o.widths, self.backbone.channels)):
            drawn = torch.randperm(channels)[:width].sort().values if o.selection == "random" else torch.arange(width)
            self.register_buffer(f"selected_{k}", drawn)  # D3
            self.register_buffer(f"afs_losses_{k}", torch.zeros(channels))
            if o.selection == "projection":
                self.projections.append(nn.Conv2d(channels, width, 1).requires_grad_(False))
        widths = [sum(o.widths[k] for k in block) for block in self.blocks]  # D9
        self.networks = nn.ModuleList(  # D2
            FeatureUNet(w, o.groups, o.head_width) if o.network == "unet" else SimpleNetwork(w, o.depth) for w in widths
        )
        total = sum(widths)
        by_max, by_mean = ranks(o, total)
        self.rrs = None
        if o.residuals != "all":
            form = {"normalised": o.rrs_forward == "normalised", "ranked": o.rrs_order == "rank"}
            self.rrs = ResidualSelection(total, by_max, by_mean, o.rrs_momentum, **form)
        count = by_max + by_mean if self.rrs else total
        side = 3 if o.discriminator == "convolutions" else 1
        self.discriminator = Discriminator(count, o.size, side, o.align_corners)  # D20
        kept = EXAMPLES * len(o.anomaly_sources)
        for name, channels in (("clean", 3), ("corrupted", 3), ("mask", 1)):
            self.register_buffer(f"example_{name}", torch.zeros(kept, channels, *o.size, dtype=torch.uint8))

    def train(self, mode: bool = True) -> "RealNet":
        """The backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    # -- before training

    @torch.no_grad()
    def prepare(self, sources: Sources, stage: str, stream=None) -> None:
        """Keeps some synthetic anomalies of every source for the report, and lets AFS choose its channels (D4).

        AFS adds up the losses of `afs_batches` batches of corrupted images; it holds the features of one at a time.
        """
        o = self.options
        order = stream("afs order").permutation(len(sources.images))
        device = self.example_clean.device

        def example(options: Options, rng: np.random.Generator, number: int) -> Batch:
            index = int(order[number % len(order)])
            own = sources._replace(index=index, journal=None)
            return corrupt(sources.images[index].float() / 255, rng, options, own)

        anomalous = dataclasses.replace(o, anomaly_probability=1.0)
        for i, kind in enumerate(kind for kind in o.anomaly_sources for _ in range(EXAMPLES)):
            rng, chosen = stream("examples", i), dataclasses.replace(anomalous, anomaly_sources=(kind,))
            drawn = (example(chosen, rng, i) for _ in range(50))  # an empty mask would show nothing
            found = next((batch for batch in drawn if batch.mask.any()), None) or example(chosen, rng, i)
            for name in ("clean", "corrupted", "mask"):
                getattr(self, f"example_{name}")[i] = to_bytes(getattr(found, name)).to(device)
        if o.selection != "afs":
            return
        looked = o.afs_batches * o.batch_size * (1 if o.afs_pass == "shared" else len(self.blocks))
        warnings.warn(f"AFS looks at {looked} corrupted images before the first step", Notice, stacklevel=2)
        self.eval()
        passes = [range(len(self.blocks))] if o.afs_pass == "shared" else [[b] for b in range(len(self.blocks))]
        for number, blocks in enumerate(passes):
            for batch in range(o.afs_batches):
                keys = range(batch * o.batch_size, (batch + 1) * o.batch_size)
                examples = [example(anomalous, stream("afs", number, key), key) for key in keys]
                pair = [torch.stack(part).to(device) for part in zip(*examples)]
                self.add_afs_losses(*pair, blocks)
        for k, width in enumerate(o.widths):
            getattr(self, f"selected_{k}").copy_(select(getattr(self, f"afs_losses_{k}"), width))

    def add_afs_losses(self, clean: Tensor, corrupted: Tensor, mask: Tensor, blocks: Sequence[int]) -> None:
        """Adds equation 4 of one batch to the buffers `afs_losses_k` of the layers of some blocks."""
        o = self.options
        pairs = list(zip(self.backbone(corrupted), self.backbone(clean)))
        for block in blocks:
            layers = self.blocks[block]
            size = pairs[layers[0]][0].shape[2:]
            for k in layers:
                a, b = (enlarge(layer, size, o.align_corners) for layer in pairs[k])
                losses = afs_losses((a - b).square(), mask, o.afs_range, o.afs_align, o.align_corners)
                getattr(self, f"afs_losses_{k}").add_(losses / o.afs_batches)

    def load_backbone(self, state: dict) -> None:
        """ImageNet weights, with torchvision's or timm's names; what is ignored is a notice.

        Raises:
            UserError: keys or shapes that do not fit the backbone.
        """
        for note in self.backbone.load_published(state):
            warnings.warn(f"--backbone-weights: {note}", Notice, stacklevel=2)

    # -- networks

    def features(self, images: Tensor) -> list[Tensor]:
        """phi_k, for each block: (B, 3, H, W) in [0, 1] -> (B, C_k, h_k, w_k)."""
        with torch.no_grad():
            layers = self.backbone(images)
            if self.projections:
                layers = [project(layer) for project, layer in zip(self.projections, layers)]
            else:
                layers = [layer[:, getattr(self, f"selected_{k}")] for k, layer in enumerate(layers)]
            align = self.options.align_corners
            return [
                torch.cat([enlarge(layers[k], layers[block[0]].shape[2:], align) for k in block], dim=1)
                for block in self.blocks
            ]

    def residuals(self, features: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Equation 2: what the networks rebuild, and E at the size of the finest block (B, sum C_k, h, w) (D10)."""
        rebuilt = [network(phi).float() for network, phi in zip(self.networks, features)]
        size, align = features[0].shape[2:], self.options.align_corners
        squares = ((phi - own).square() for phi, own in zip(features, rebuilt))
        return rebuilt, torch.cat([enlarge(e, size, align) for e in squares], dim=1)

    def forward(self, images: Tensor) -> Outcome:
        """(B, 3, H, W) in [0, 1] through all parts."""
        return self.judge(self.features(images))

    def judge(self, features: list[Tensor]) -> Outcome:
        """What follows the backbone."""
        rebuilt, residuals = self.residuals(features)
        passed = residuals.detach() if self.options.stop_gradient else residuals
        chosen, indices = self.rrs(passed) if self.rrs else (passed, None)
        return Outcome(rebuilt, residuals, chosen, indices, self.discriminator(chosen).float())

    def loss(self, batch: Batch, stage: str = "train") -> dict[str, Tensor]:
        """Equations 5 and 6: "reconstruction" (a mean for each block, summed; D22), "segmentation", and their sum.

        Statistics "kept/layer_k": the share of what RRS passes on that comes from each layer.
        """
        o = self.options
        target, outcome = self.features(batch.clean), self(batch.corrupted)
        pairs = zip(outcome.rebuilt, target)
        terms = {"reconstruction": o.reconstruction_weight * sum(F.mse_loss(own, phi.float()) for own, phi in pairs)}
        if o.segmentation_loss == "focal":
            segmentation = focal(outcome.logits.softmax(dim=1), batch.mask)
        else:
            segmentation = F.cross_entropy(outcome.logits, batch.mask[:, 0].long())
        terms["segmentation"] = o.segmentation_weight * segmentation
        terms["total"] = sum(terms.values())
        return terms | {f"kept/{name}": share.mean() for name, share in self.shares(outcome).items()}

    def shares(self, outcome: Outcome) -> dict[str, Tensor]:
        """The share of each layer in what RRS passes on, "layer_k" -> (B,); nothing where it passes on all."""
        if outcome.indices is None:
            return {}
        layers = [k for block in self.blocks for k in block]
        ends = torch.tensor([self.options.widths[k] for k in layers], device=outcome.indices.device).cumsum(0)
        place = torch.bucketize(outcome.indices, ends, right=True)
        return {f"layer_{k + 1}": (place == i).float().mean(dim=1) for i, k in enumerate(layers)}

    def optimizer(self, stage: str = "train"):
        """Adam on the networks and the discriminator, at a constant rate (D12)."""
        parameters = [*self.networks.parameters(), *self.discriminator.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=self.options.learning_rate)
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)

    # -- inference

    def anomaly_map(self, images: Tensor, rngs=None, looks=None) -> Tensor:
        """Equation 8, the softmax's anomalous channel: (B, 3, H, W) in [0, 1] -> (B, 1, H, W) in [0, 1]; no filter."""
        check_images(images, size=self.options.size)
        return self(images).logits.softmax(dim=1)[:, 1:]

    def image_score(self, maps: Tensor) -> Tensor:
        """Equation 3: the maximum over all windows that lie inside the map, of their mean (D17)."""
        side = self.options.score_window
        return F.avg_pool2d(maps, side, stride=1).amax(dim=(1, 2, 3))

    def other_scores(self, maps: Tensor) -> dict[str, Tensor]:
        """The article's score, the maximum of the map, where that is not the method's (D17)."""
        return {"max": maps.amax(dim=(1, 2, 3))} if self.options.score_window > 1 else {}

    def steps(self, image: Tensor, rngs=None, looks=None) -> dict[str, Tensor]:
        """The residuals of one image (1, 3, H, W): their mean over each block, and over what RRS passes on."""
        check_images(image, size=self.options.size)
        outcome, shown, first = self(image), {}, 0
        shares = {name: float(share[0]) for name, share in self.shares(outcome).items()}
        for block in self.blocks:
            width = sum(self.options.widths[k] for k in block)
            name = f"residual of layer {'+'.join(str(k + 1) for k in block)}"
            if shares:
                name += f", {100 * sum(shares[f'layer_{k + 1}'] for k in block):.0f} % of the kept"
            shown[name] = picture_of(outcome.residuals[0, first : first + width])
            first += width
        if self.rrs:
            parts = {"maximum": outcome.chosen[0, : self.rrs.by_max], "mean": outcome.chosen[0, self.rrs.by_max :]}
            shown |= {f"kept by {name}": picture_of(part) for name, part in parts.items() if len(part)}
        return shown

    @torch.no_grad()
    def portraits(self) -> dict[str, Tensor]:
        """Synthetic anomalies of every source, and what AFS keeps and drops of the answer to the first of them."""
        shown = {}
        for i, kind in enumerate(kind for kind in self.options.anomaly_sources for _ in range(EXAMPLES)):
            number = i % EXAMPLES + 1
            shown[f"{kind} {number}: clean"] = self.example_clean[i] / 255
            shown[f"{kind} {number}: corrupted"] = self.example_corrupted[i] / 255
            shown[f"{kind} {number}: mask"] = self.example_mask[i] / 255
        if self.options.selection == "afs":
            a, b = (getattr(self, f"example_{name}")[:1] / 255 for name in ("corrupted", "clean"))
            for k, (x, y) in enumerate(zip(self.backbone(a), self.backbone(b))):
                normalised = min_max((x - y)[0].square(), (1, 2))
                kept = torch.zeros(len(normalised), dtype=torch.bool, device=normalised.device)
                kept[getattr(self, f"selected_{k}")] = True
                name = f"layer {k + 1}, {self.options.anomaly_sources[0]} 1"
                shown[f"{name}: the {int(kept.sum())} channels that AFS keeps"] = normalised[kept].mean(0, True)
                if not kept.all():
                    shown[f"{name}: the {int((~kept).sum())} that it drops"] = normalised[~kept].mean(0, True)
        return shown


def picture_of(maps: Tensor) -> Tensor:
    """The mean of maps (C, h, w), from 0 to its own maximum: (1, h, w) in [0, 1]."""
    mean = maps.float().mean(dim=0, keepdim=True)
    return (mean / mean.amax().clamp_min(1e-12)).clamp(0, 1)


def ranks(o: Options, channels: int) -> tuple[int, int]:
    """How many channels RRS takes by maximum and by mean (D8)."""
    if o.residuals == "max+mean":
        half = max(1, round(o.retention * channels / 2))
        return half, half
    whole = max(1, round(o.retention * channels))
    return (whole, 0) if o.residuals == "max" else (0, whole)


def build_backbone(name: str) -> nn.Module:
    """A backbone by name, randomly initialised."""
    if name == "efficientnet_b4":
        return EfficientNetB4()
    return MobileNetV2() if name == "mobilenet_v2" else ResNet(name)


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
