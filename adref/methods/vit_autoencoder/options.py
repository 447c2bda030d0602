"""The constants of the ViT autoencoder: options with their sources, presets, ablations, departures from the paper."""

import math
from dataclasses import dataclass
from typing import Literal

from adref.method import Deviation
from adref.options import UserError, option

INF = math.inf


@dataclass(frozen=True)
class Options:
    """The constants of the ViT autoencoder and their other readings; the defaults are the paper preset."""

    size: tuple[int, int] = option(
        (384, 384), "height,width of the network's input, multiples of --patch", "section Experiments",
        limits=(8, 65536),
    )  # fmt: skip
    # TODO here: D27: bilinear with antialiasing
    resize: Literal["bilinear", "antialias"] = option(
        "antialias", "filter that brings a picture to --size", "adref", kind="silent", paper="384 x 384",
        why="no filter is named",
    )  # fmt: skip
    # TODO here: D17: the network works in [-1, 1], losses in [0, 1]
    normalise: Literal["symmetric", "category"] = option(
        "symmetric", "the network sees 2 u - 1, or (u - mean) / std of the category", "adref", kind="silent",
        paper="no word on the range of values",
        why="tanh's range; AnoViT's code takes mean and standard deviation of the category, which tanh cannot reach",
    )  # fmt: skip
    # the encoder
    patch: int = option(16, "side of a patch in pixels", "section Experiments", limits=(1, 4096))
    width: int = option(768, "channels of a token", "section Experiments", limits=(1, 65536))
    # TODO here: D1: 12
    depth: int = option(
        12, "blocks", "adref", limits=(0, 1000), kind="silent", paper="L blocks",
        why="ViT-Base, as width and the work it builds on imply",
    )  # fmt: skip
    # TODO here: D2: 8
    heads: int = option(
        8, "attention heads", "section Experiments", limits=(1, INF), kind="contradiction",
        paper="8 heads of width 96",
        why="ViT-Base has 12 of 64: pretrained weights mean something else with 8, and the command says so",
    )  # fmt: skip
    # TODO here: D4: kept in attention, dropped before the map
    class_token: Literal["drop", "add", "none"] = option(
        "drop", "attends and is dropped, is added to every patch, or is left out", "Eq 4", kind="contradiction",
        paper="a class token, which Eq 4 leaves out", why="its table of positions has a row for it",
    )  # fmt: skip
    # memory and coordinate attention
    memory: bool = option(True, "the memory module", "section Method")
    # TODO here: D5: 2000
    memory_items: int = option(
        2000, "items K", "U (MemAE)", limits=(2, 10 ** 7), kind="silent",
        paper="N items, N also the number of patches",
        why="MemAE's default; 576 comes only from reading both N as one",
    )  # fmt: skip
    # TODO here: D6: cosine
    addressing: Literal["cosine", "dot"] = option(
        "cosine", "cosine, or the plain product of MemAE's code", "Eq 7", kind="contradiction", paper="cosine",
        why="MemAE's code takes the plain product, which grows with the query",
    )  # fmt: skip
    # TODO here: D7: 1
    temperature: float = option(
        1.0, "tau of the softmax over the items", "Eq 8", limits=(1e-06, INF), kind="silent",
        paper="softmax of the cosines", why="nothing else is printed",
    )  # fmt: skip
    # TODO here: D8: 1 / K
    shrinkage: float | None = option(
        None, "threshold lambda of the shrinkage, none: 1 / K", "Eq 10", limits=(0, 1), kind="ambiguous",
        paper="1 / N, and weights that become sparse",
        why="the mean of the weights: about half of the items survive; above 7.4 / K none would",
    )  # fmt: skip
    # TODO here: D9: zeros, and the share is logged
    on_empty: Literal["zero", "soft"] = option(
        "zero", "what a query gets for which no item survives: zeros, or unshrunk weights", "adref", kind="silent",
        paper="nothing said", why="the renormalisation divides by 0 there; it happens when all items coincide",
    )  # fmt: skip
    # TODO here: D11: only what it recalls goes on
    memory_residual: bool = option(
        False, "add the encoder's map to what the memory returns", "adref", kind="silent", paper="the memory gets F",
        why="a way around it would hand the defect through",
    )  # fmt: skip
    # TODO here: D12: behind the memory
    coordinate_attention: Literal["after_memory", "before_memory", "both", "none"] = option(
        "after_memory", "where it stands", "adref", kind="contradiction",
        paper="between encoder and memory (two sentences); behind the memory (list of steps, figures, data flow)",
        why="the data flow",
    )  # fmt: skip
    # TODO here: D13: 32, h-swish
    ca_reduction: int = option(
        32, "narrowing r of coordinate attention", "U (CA)", limits=(1, INF), kind="silent",
        paper="C / r, an unnamed activation", why="the code of coordinate attention",
    )  # fmt: skip
    # TODO see ['D13']
    ca_activation: Literal["h_swish", "relu"] = option("h_swish", "its activation", "U (CA)")
    # the decoder
    # TODO here: D14: AnoViT's: 26, 28, 30, 59, 117, 233, then a bilinear resize
    decoder: Literal["anovit", "pow2"] = option(
        "anovit", "3 steps of +2 pixels, 3 doublings, a resize; or 4 doublings", "U (AnoViT)", kind="ambiguous",
        paper="six transposed convolutions that enlarge, 24 to 384", why="four doublings would do: 'pow2'",
    )  # fmt: skip
    # TODO see ['D14']
    decoder_width: int | None = option(
        None, "channels behind the first layer, halved by each that follows [anovit 256, pow2 512]", "adref",
        limits=(16, INF),
    )  # fmt: skip
    # TODO here: D15: batch norm
    decoder_norm: Literal["batch", "instance"] = option(
        "batch", "normalisation of its layers", "adref", kind="ambiguous",
        paper="a normalisation that works on mini-batches", why="AnoViT's code has instance norm without weights",
    )  # fmt: skip
    # TODO here: D16: neither after the sixth
    last_block: Literal["plain", "norm_relu"] = option(
        "plain", "what follows the sixth layer before tanh", "adref", kind="contradiction",
        paper="normalisation and ReLU after each layer, tanh last",
        why="tanh(ReLU(x)) is never negative: no value below mid grey could be rebuilt",
    )  # fmt: skip
    # losses
    # TODO see ['D17']
    loss_range: Literal["unit", "network"] = option(
        "unit", "losses and map of values in [0, 1], or of the network's (SSIM then with a range of 2)", "adref",
    )  # fmt: skip
    # TODO here: D18: summed over the channels, too
    l2_reduction: Literal["sum", "mean"] = option(
        "sum", "sum over the channels, or their mean", "Eq 11", kind="ambiguous",
        paper="a sum over W and H, divided by W H", why="Eq 11 as printed has a vector's square",
    )  # fmt: skip
    # TODO here: D20: 1
    ssim_weight: float = option(
        1.0, "lambda of SSIM, in loss and map", "Eq 13", limits=(0, INF), kind="silent",
        paper="lambda, found by a grid search", why="no value is given",
    )  # fmt: skip
    # TODO here: D19: Gaussian 11, sigma 1.5, mirrored border
    ssim_window: Literal["gaussian", "uniform"] = option(
        "gaussian", "weights of SSIM's window", "adref", kind="silent", paper="SSIM of blocks",
        why="Wang et al. 2004; Eq 12 sums over all W H positions, so each needs a value; of 'valid' the map's border "
        "repeats the nearest value",
    )  # fmt: skip
    # TODO see ['D19']
    ssim_size: int = option(11, "side of the window, odd, pixels", "adref", limits=(3, 255))
    # TODO see ['D19']
    ssim_sigma: float = option(1.5, "standard deviation of the Gaussian window, pixels", "adref", limits=(0.1, 100))
    # TODO see ['D19']
    ssim_padding: Literal["reflect", "zero", "valid"] = option("reflect", "SSIM at the border", "adref")
    reconstruction_weight: float = option(1.0, "lambda_recon", "Eq 15; section Experiments", limits=(0, INF))
    entropy_weight: float = option(0.001, "lambda_ent", "Eq 15; section Experiments", limits=(0, INF))
    # TODO here: D21: -sum of w ln w, minimised
    entropy_sign: Literal["corrected", "literal"] = option(
        "corrected", "minimise the entropy, or maximise it as printed", "Eq 14", kind="mistake",
        paper="sum of w ln w, minimised",
        why="as printed, minimising makes the weights uniform, the opposite of what the text wants",
    )  # fmt: skip
    # training
    epochs: int = option(200, "passes over the training images", "section Experiments", limits=(0, INF))
    batch_size: int = option(8, "images a step", "section Experiments", limits=(1, INF))
    # TODO see ['D22']
    learning_rate: float = option(0.0002, "Adam's step size, constant", "section Experiments", limits=(0, 1000000.0))
    # TODO here: D22: betas 0.5, 0.999; no decay, constant rate
    betas: tuple[float, float] = option(
        (0.5, 0.999), "Adam's decay rates", "U (AnoViT)", limits=(0, 0.999999), kind="silent", paper="Adam, 2e-4",
        why="a public copy of AnoViT's script",
    )  # fmt: skip
    # TODO see ['D22']
    weight_decay: float = option(0.0, "Adam's weight decay, as L2", "adref", limits=(0, 1))
    # TODO here: D23: the last epoch
    patience: int | None = option(
        None, "epochs without a better validation loss that end training, none: all epochs, last weights", "adref",
        limits=(1, INF), kind="silent", paper="200 epochs",
        why="AnoViT stops after 12 epochs without a better squared error of validation images: --patience 12 watches "
        "the whole loss; its share is not known",
    )  # fmt: skip
    # TODO see ['D23']
    validation_share: float = option(
        0.1, "share of the training images kept for that; 0: the training loss decides", "adref", limits=(0, 0.9),
    )  # fmt: skip
    # the map
    # TODO here: D24: mean squared error of the channels + lambda (1 - SSIM)
    score: Literal["l2", "l2+ssim", "l2+ssim+entropy"] = option(
        "l2+ssim", "what the map is made of", "adref", kind="silent", paper="'the three losses define the score'",
        why="no formula; AnoViT takes the squared error",
    )  # fmt: skip
    # TODO here: D25: sigma 6 for the map, 15 for the score
    map_sigma: float = option(
        6.0, "Gaussian filter of the map, pixels at --size", "U (AnoViT)", limits=(0, 1000), kind="silent",
        paper="Gaussian smoothing", why="AnoViT's code, as scipy filters: truncated at 4 sigma, mirrored",
    )  # fmt: skip
    # TODO see ['D25']
    score_sigma: float = option(
        15.0, "Gaussian filter of the map that the image score comes from", "U (AnoViT)", limits=(0, 1000),
    )  # fmt: skip
    # TODO here: D26: the maximum
    image_score: Literal["max", "mean", "top"] = option(
        "max", "how a map becomes a score", "adref", kind="silent", paper="nothing said", why="as AnoViT",
    )  # fmt: skip
    # TODO see ['D26']
    top_share: float = option(0.01, "share of the pixels in --image-score top", "adref", limits=(0, 1))


PRESETS = {
    "paper": {},
    # A third of the side, patches of half the side, so the filters shrink with it; an eighth of the width.
    "tiny": {
        "size": (128, 128), "patch": 8, "width": 96, "depth": 4, "heads": 4, "memory_items": 200, "decoder_width": 128,
        "epochs": 100, "batch_size": 4, "learning_rate": 5e-4, "map_sigma": 2.0, "score_sigma": 5.0,
    },
}  # fmt: skip


ABLATIONS = {  # the table of the ablation, and the places of coordinate attention that the text speaks of
    "base": {"memory": False, "coordinate_attention": "none"},
    "+m": {"coordinate_attention": "none"},
    "+ca": {"memory": False},
    "+m+ca": {},
    "ca-before-memory": {"coordinate_attention": "before_memory"},
    "ca-both": {"coordinate_attention": "both"},
}


DEVIATIONS = (
    # D3
    Deviation(
        "ViTAutoencoder.load_weights", "contradiction", "trained from scratch; compared with AnoViT",
        "from scratch: truncated normal, std 0.02",
        "AnoViT starts from ImageNet-21k; --weights takes a ViT with timm's names",
    ),
    # D10
    Deviation("Recall.weights", "mistake", "w in R^(1 x C)", "(..., K)", "a weight for each item"),
    # D28
    Deviation(
        "Decoder", "silent", "nothing said", "weights from N(0, 0.02^2), biases 0",
        "a helper in AnoViT's file; whether it is called there is not known",
    ),
    # D29
    Deviation(
        "evaluate --convention", "ambiguous", "mean overlap of regions when FPR is below 0.3",
        "area under it up to 0.3, divided by 0.3; 8-connected regions", "the usual meaning; 'point' is the other",
    ),
    # D30
    Deviation(
        "adref.data", "mistake", "BTAD: 1000 images of product 2, 399 of product 3", "folders as found",
        "they hold 399 and 1000",
    ),
    # D31
    Deviation("corrupt", "silent", "nothing said", "no augmentation", "none is mentioned"),
)  # fmt: skip


def check(o: Options) -> None:
    """Raises UserError for options that cannot work together."""
    for axis, side in zip(("height", "width"), o.size):
        if side % o.patch:
            fits = math.ceil(side / o.patch) * o.patch
            raise UserError(f"--size takes multiples of --patch {o.patch}; the {axis} is {side}, {fits} would do")
    if o.width % o.heads:
        raise UserError(f"--heads: {o.heads} heads do not divide --width {o.width}")
    if o.decoder == "pow2" and tuple(o.size) == (o.patch, o.patch):
        raise UserError("--decoder pow2 normalises over one pixel at that --size; twice the side would do")
    if o.decoder == "pow2" and o.patch != 16:
        raise UserError(f"--decoder pow2 doubles four times, which undoes --patch 16 and no other; got {o.patch}")
    reach = o.ssim_size // 2
    if o.ssim_size % 2 == 0 or min(o.size) <= 2 * reach:
        raise UserError(f"--ssim-size takes an odd number, no more than the sides of --size; got {o.ssim_size}")
    if o.score == "l2+ssim+entropy" and not (o.memory and o.reconstruction_weight):
        raise UserError("--score l2+ssim+entropy needs --memory true and a --reconstruction-weight above 0")
