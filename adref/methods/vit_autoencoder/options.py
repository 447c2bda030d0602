"""Options of the ViT autoencoder with their sources and readings, presets, ablations, and other departures."""

from dataclasses import dataclass
from math import ceil, inf
from typing import Literal

from adref.method import STEPS, Deviation
from adref.options import UserError, option


@dataclass(frozen=True)
class Options:
    """The defaults are the paper preset; "AnoViT" and "MemAE" are the code of these earlier works."""

    # fmt: off
    size: tuple[int, int] = option((384, 384), "height,width of the network's input, multiples of --patch",
                                   "section Experiments", limits=(11, 65536))
    resize: Literal["bilinear", "antialias"] = option("antialias", "filter that resizes images to --size", "adref",
        kind="silent", paper="384 x 384", why="no filter is named")
    patch: int = option(16, "side of a patch in pixels", "section Experiments", limits=(1, 4096))
    width: int = option(768, "channels of a token", "section Experiments", limits=(1, 65536))
    depth: int = option(12, "transformer blocks", "adref", limits=(0, 1000), kind="silent", paper="L blocks",
                        why="ViT-Base, as the width and AnoViT imply")
    heads: int = option(8, "attention heads", "section Experiments", limits=(1, inf), kind="contradiction",
                        paper="8 heads at width 768, hence of 96 channels",
                        why="as printed; ViT-Base has 12 of 64: its weights would mean another function")
    class_token: Literal["drop", "add", "none"] = option("drop", "the class token attends and is dropped, is added to "
        "every patch, or is left out", "Eq 4", kind="contradiction", paper="introduces a class token, which Eq 4 "
        "leaves out", why="the table of positions has a row for it")
    memory: bool = option(True, "use the memory module", "section Method")
    memory_items: int = option(2000, "memory items K", "MemAE", limits=(2, 10**7), kind="silent", paper="N items; N "
        "also counts the patches", why="MemAE's default; 576 only if both N are one number")
    addressing: Literal["cosine", "dot"] = option(
        "cosine", "similarity of query and item: cosine, or inner product", "Eq 7", kind="contradiction",
        paper="cosine", why="as printed; MemAE's code takes the inner product, which grows with the query")
    temperature: float = option(1.0, "temperature of the softmax over the items", "Eq 8", limits=(1e-6, inf),
        kind="contradiction", paper="a softmax of cosines, without a temperature, and sparse weights",
        why="as printed; only a temperature near .05 makes the weights sparse")
    shrinkage: float | None = option(None, "threshold lambda of the shrinkage; none: 1 / K", "Eq 10", limits=(0, 1),
        kind="ambiguous", paper="1 / N, and weights that become sparse", why="1 / K is the mean weight: about half of "
        "the items survive; above 7.4 / K none would")
    coordinate_attention: Literal["after_memory", "before_memory", "both", "none"] = option("after_memory", "place of "
        "coordinate attention", "figures", kind="contradiction", paper="between encoder and memory (two sentences); "
        "after the memory (list of steps, figures, data flow)", why="the data flow")
    decoder: Literal["anovit", "pow2"] = option("anovit", "3 steps of +2 pixels, 3 doublings and a resize; or 4 "
        "doublings", "AnoViT", kind="ambiguous", paper="six transposed convolutions that enlarge, 24 to 384",
        why="all six enlarge; four doublings would do")
    decoder_width: int | None = option(None, "channels after the first layer, halved by each that follows; none: "
        "anovit 256, pow2 512", "AnoViT", limits=(16, inf), kind="silent", paper="no widths", why="AnoViT's")
    decoder_norm: Literal["batch", "instance"] = option(
        "batch", "normalisation of its layers", "adref", kind="ambiguous",
        paper="a normalisation that works on mini-batches", why="AnoViT has instance norm without weights")
    decoder_init: Literal["normal", "torch"] = option("normal", "first weights: N(0, 0.02^2), or torch's", "AnoViT",
        kind="silent", paper="no word on it", why="a helper in AnoViT's file; if it is called there is not known")
    last_block: Literal["plain", "norm_relu"] = option("plain", "layers between the sixth convolution and tanh",
        "adref", kind="contradiction", paper="normalisation and ReLU after each layer, tanh last",
        why="tanh(ReLU(x)) is never negative: nothing below mid grey could be reconstructed")
    l2_reduction: Literal["sum", "mean"] = option(
        "sum", "sum of the squared error over the channels, or mean, in loss and map", "Eq 11", kind="ambiguous",
        paper="a sum over W and H, divided by W H", why="Eq 11 as printed squares a vector")
    ssim_weight: float = option(1.0, "lambda_ssim, weight of 1 - SSIM in loss and map", "adref",
        limits=(0, 1e6), kind="silent", paper="found by a grid search, no value", why="the neutral choice")
    entropy_sign: Literal["corrected", "literal"] = option("corrected", "minimise the entropy; literal: maximise it; "
        "the map has the sign, too", "Eq 14", kind="mistake", paper="sum of w ln w, minimised", why="this makes the "
        "weights uniform, the opposite of the stated purpose")
    epochs: int = option(200, "passes over the training images", "section Experiments", limits=(0, inf))
    steps: int | None = option(None, STEPS, "adref", limits=(1, inf))
    batch_size: int = option(8, "images a step", "section Experiments", limits=(1, inf))
    learning_rate: float = option(2e-4, "Adam's step size", "section Experiments", limits=(0, 1e6))
    decay: float = option(0.0, "share of the training, at its end, in which the step size falls to 0", "adref",
        limits=(0, 1), kind="silent", paper="no schedule", why="none is mentioned; it ends a short training better")
    patience: int | None = option(None, "stop after so many epochs without a lower validation loss; none: last "
        "weights", "adref", limits=(1, inf), kind="silent", paper="200 epochs", why="AnoViT: at most 200, stops "
        "after 12 without a lower squared error on validation images")
    score: Literal["l2+ssim", "l2+ssim+entropy"] = option(
        "l2+ssim+entropy", "terms of the anomaly map; without a memory there is no entropy", "its contributions",
        kind="ambiguous", paper="'the three losses define the score', without a formula", why="weighed as in the loss; "
        "a patch's entropy is interpolated bilinearly; AnoViT takes the squared error alone")
    map_sigma: float = option(6.0, "Gaussian filter of the map, standard deviation in pixels at --size", "AnoViT",
        limits=(0, 1000), kind="silent", paper="Gaussian smoothing", why="AnoViT; as scipy: cut at 4 sigma, mirrored")
    score_sigma: float = option(15.0, "the same of the error whose maximum is the score", "AnoViT", limits=(0, 1000),
        kind="silent", paper="no word on the score", why="AnoViT's")
    # fmt: on


# A third of the side, patches of half the side, smaller filters; an eighth of the width. 1 - SSIM is
# near 1 in all grain: its weight is small. torch's first weights soon reach values above mid grey (see NOTES.md).
TINY = {"size": (128, 128), "patch": 8, "width": 96, "depth": 2, "heads": 4, "memory_items": 200,
        "decoder_width": 128, "decoder_init": "torch", "ssim_weight": 0.1, "steps": 2000, "batch_size": 4,
        "learning_rate": 1e-3, "decay": 0.5, "map_sigma": 3.0, "score_sigma": 3.0}  # fmt: skip
# small is a guess: two thirds of the side, the paper's patches, a quarter of its width, tiny's filters for that side.
PRESETS = {
    "paper": {}, "tiny": TINY,
    "small": {**TINY, "size": (256, 256), "patch": 16, "width": 192, "depth": 4, "steps": 6000, "map_sigma": 6.0,
              "score_sigma": 6.0},
}  # fmt: skip

ABLATIONS = {
    # the paper's table
    "base": {"memory": False, "coordinate_attention": "none"},
    "+m": {"coordinate_attention": "none"},
    "+ca": {"memory": False},
    "+m+ca": {},
    # places that its text mentions, without numbers
    "ca-before-memory": {"coordinate_attention": "before_memory"},
    "ca-both": {"coordinate_attention": "both"},
    "dot-addressing": {"addressing": "dot"},  # MemAE's code
    "literal": {"last_block": "norm_relu", "entropy_sign": "literal"},
}

DEVIATIONS = (
    Deviation("corrupt", "silent", "no word on augmentation", "none", "none is mentioned"),
    Deviation("ViTAutoencoder.mean", "silent", "no word on the range of values", "network in [-1, 1], losses in [0, 1]",
              "tanh's range; AnoViT normalises by the category's mean and deviation, values that tanh cannot reach"),
    Deviation("ViTAutoencoder.load_weights", "contradiction", "trained from scratch, compared with AnoViT", "from "
              "scratch: truncated normal, std 0.02", "AnoViT starts from ImageNet-21k; --weights takes timm's names"),
    Deviation("VisionTransformer.norm", "silent", "no normalisation after the blocks", "LayerNorm", "ViT, AnoViT"),
    Deviation("Block.mlp", "silent", "no ratio of the MLP's widths", "4, with GELU; no dropout", "ViT, AnoViT"),
    Deviation("Memory.weight", "silent", "no initial items", "uniform in +-1 / sqrt(C)", "MemAE's code"),
    Deviation("Recall.weights", "mistake", "w in R^(1 x C)", "(..., K)", "one weight for each item"),
    Deviation("memory.address", "silent", "the weights are divided by their sum",
              "zeros where no item survives; logged", "0 / 0; it happens where all items coincide"),
    Deviation("ViTAutoencoder.forward", "silent", "the memory gets F", "only the recalled map goes on",
              "a way around the memory would hand the defect through"),
    Deviation("CA_REDUCTION", "silent", "C / r, an activation", "r = 32, h-swish", "code of coordinate attention"),
    Deviation("ViTAutoencoder.compare", "silent", "SSIM of blocks", "Gaussian window 11, sigma 1.5, mirrored border",
              "Wang et al. 2004; Eq 12 sums over all W H positions, so each needs a value"),
    Deviation("ViTAutoencoder.optimizer", "ambiguous", "Adam, 2e-4; the rest is the network's default configuration",
              "torch's: betas 0.9 and 0.999, no weight decay", "a copy of AnoViT's script has 0.5 and 0.999"),
    Deviation("ViTAutoencoder.score", "silent", "no word on the image score",
              "maximum of the map smoothed by --score-sigma", "AnoViT"),
    Deviation("ops.metrics.aupro", "ambiguous", "mean overlap of regions when FPR is below 0.3",
              "area under the curve up to 0.3, divided by 0.3; 8-connected regions", "the usual meaning"),
    Deviation("adref.data", "mistake", "BTAD: 1000 images of product 2, 399 of product 3", "folders as found",
              "they hold 399 and 1000"),
)  # fmt: skip


def check(o: Options) -> None:
    """Raises UserError for options that do not fit together."""
    for axis, side in zip(("height", "width"), o.size):
        if side % o.patch:
            fits = ceil(side / o.patch) * o.patch
            raise UserError(f"--size takes multiples of --patch {o.patch}; the {axis} is {side}, {fits} would do")
    if o.width % o.heads:
        raise UserError(f"--heads: {o.heads} heads do not divide --width {o.width}")
    if o.decoder == "pow2" and (o.patch != 16 or o.size == (16, 16)):  # a map of one pixel cannot be normalised
        raise UserError(f"--decoder pow2 takes --patch 16 and a --size above 16,16; got {o.patch} and {o.size}")
