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
        (384, 384), "height,width of the network's input, multiples of --patch", "section Experiments", (8, 65536)
    )
    resize: Literal["bilinear", "antialias"] = option("antialias", "filter that brings a picture to --size", "D27")
    normalise: Literal["symmetric", "category"] = option(
        "symmetric", "the network sees 2 u - 1, or (u - mean) / std of the category", "D17"
    )
    # the encoder
    patch: int = option(16, "side of a patch in pixels", "section Experiments", (1, 4096))
    width: int = option(768, "channels of a token", "section Experiments", (1, 65536))
    depth: int = option(12, "blocks", "D1", (0, 1000))
    heads: int = option(8, "attention heads", "section Experiments; D2", (1, INF))
    class_token: Literal["drop", "add", "none"] = option(
        "drop", "attends and is dropped, is added to every patch, or is left out", "Eq 4; D4"
    )
    # memory and coordinate attention
    memory: bool = option(True, "the memory module", "section Method")
    memory_items: int = option(2000, "items K", "U (MemAE); D5", (2, 10**7))
    addressing: Literal["cosine", "dot"] = option("cosine", "cosine, or the plain product of MemAE's code", "Eq 7; D6")
    temperature: float = option(1.0, "tau of the softmax over the items", "Eq 8; D7", (1e-6, INF))
    shrinkage: float | None = option(None, "threshold lambda of the shrinkage, none: 1 / K", "Eq 10; D8", (0, 1))
    on_empty: Literal["zero", "soft"] = option(
        "zero", "what a query gets for which no item survives: zeros, or unshrunk weights", "D9"
    )
    memory_residual: bool = option(False, "add the encoder's map to what the memory returns", "D11")
    coordinate_attention: Literal["after_memory", "before_memory", "both", "none"] = option(
        "after_memory", "where it stands", "D12"
    )
    ca_reduction: int = option(32, "narrowing r of coordinate attention", "U (CA); D13", (1, INF))
    ca_activation: Literal["h_swish", "relu"] = option("h_swish", "its activation", "U (CA); D13")
    # the decoder
    decoder: Literal["anovit", "pow2"] = option(
        "anovit", "3 steps of +2 pixels, 3 doublings, a resize; or 4 doublings", "U (AnoViT); D14"
    )
    decoder_width: int | None = option(
        None, "channels behind the first layer, halved by each that follows [anovit 256, pow2 512]", "D14", (16, INF)
    )
    decoder_norm: Literal["batch", "instance"] = option("batch", "normalisation of its layers", "D15")
    last_block: Literal["plain", "norm_relu"] = option("plain", "what follows the sixth layer before tanh", "D16")
    # losses
    loss_range: Literal["unit", "network"] = option(
        "unit", "losses and map of values in [0, 1], or of the network's (SSIM then with a range of 2)", "D17"
    )
    l2_reduction: Literal["sum", "mean"] = option("sum", "sum over the channels, or their mean", "Eq 11; D18")
    ssim_weight: float = option(1.0, "lambda of SSIM, in loss and map", "Eq 13; D20", (0, INF))
    ssim_window: Literal["gaussian", "uniform"] = option("gaussian", "weights of SSIM's window", "D19")
    ssim_size: int = option(11, "side of the window, odd, pixels", "D19", (3, 255))
    ssim_sigma: float = option(1.5, "standard deviation of the Gaussian window, pixels", "D19", (0.1, 100))
    ssim_padding: Literal["reflect", "zero", "valid"] = option("reflect", "SSIM at the border", "D19")
    reconstruction_weight: float = option(1.0, "lambda_recon", "Eq 15; section Experiments", (0, INF))
    entropy_weight: float = option(0.001, "lambda_ent", "Eq 15; section Experiments", (0, INF))
    entropy_sign: Literal["corrected", "literal"] = option(
        "corrected", "minimise the entropy, or maximise it as printed", "Eq 14; D21"
    )
    # training
    epochs: int = option(200, "passes over the training images", "section Experiments", (0, INF))
    batch_size: int = option(8, "images a step", "section Experiments", (1, INF))
    learning_rate: float = option(2e-4, "Adam's step size, constant", "section Experiments; D22", (0, 1e6))
    betas: tuple[float, float] = option((0.5, 0.999), "Adam's decay rates", "U (AnoViT); D22", (0, 0.999999))
    weight_decay: float = option(0.0, "Adam's weight decay, as L2", "D22", (0, 1))
    patience: int | None = option(
        None,
        "epochs without a better validation loss that end training, none: all epochs, last weights",
        "D23",
        (1, INF),
    )
    validation_share: float = option(
        0.1, "share of the training images kept for that; 0: the training loss decides", "D23", (0, 0.9)
    )
    # the map
    score: Literal["l2", "l2+ssim", "l2+ssim+entropy"] = option("l2+ssim", "what the map is made of", "D24")
    map_sigma: float = option(6.0, "Gaussian filter of the map, pixels at --size", "U (AnoViT); D25", (0, 1000))
    score_sigma: float = option(
        15.0, "Gaussian filter of the map that the image score comes from", "U (AnoViT); D25", (0, 1000)
    )
    image_score: Literal["max", "mean", "top"] = option("max", "how a map becomes a score", "D26")
    top_share: float = option(0.01, "share of the pixels in --image-score top", "D26", (0, 1))


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
    Deviation("D1", "Options.depth", "silent", "L blocks", "12", "ViT-Base, as width and the work it builds on imply"),
    Deviation("D2", "Options.heads", "contradiction", "8 heads of width 96", "8",
              "ViT-Base has 12 of 64: pretrained weights mean something else with 8, and the command says so"),
    Deviation("D3", "ViTAutoencoder.load_weights", "contradiction", "trained from scratch; compared with AnoViT",
              "from scratch: truncated normal, std 0.02",
              "AnoViT starts from ImageNet-21k; --weights takes a ViT with timm's names"),
    Deviation("D4", "Options.class_token", "contradiction", "a class token, which Eq 4 leaves out",
              "kept in attention, dropped before the map", "its table of positions has a row for it"),
    Deviation("D5", "Options.memory_items", "silent", "N items, N also the number of patches", "2000",
              "MemAE's default; 576 comes only from reading both N as one"),
    Deviation("D6", "Options.addressing", "contradiction", "cosine", "cosine",
              "MemAE's code takes the plain product, which grows with the query"),
    Deviation("D7", "Options.temperature", "silent", "softmax of the cosines", "1", "nothing else is printed"),
    Deviation("D8", "Options.shrinkage", "ambiguous", "1 / N, and weights that become sparse", "1 / K",
              "the mean of the weights: about half of the items survive; above 7.4 / K none would"),
    Deviation("D9", "Options.on_empty", "silent", "nothing said", "zeros, and the share is logged",
              "the renormalisation divides by 0 there; it happens when all items coincide"),
    Deviation("D10", "Recall.weights", "mistake", "w in R^(1 x C)", "(..., K)", "a weight for each item"),
    Deviation("D11", "Options.memory_residual", "silent", "the memory gets F", "only what it recalls goes on",
              "a way around it would hand the defect through"),
    Deviation("D12", "Options.coordinate_attention", "contradiction",
              "between encoder and memory (two sentences); behind the memory (list of steps, figures, data flow)",
              "behind the memory", "the data flow"),
    Deviation("D13", "Options.ca_reduction", "silent", "C / r, an unnamed activation", "32, h-swish",
              "the code of coordinate attention"),
    Deviation("D14", "Options.decoder", "ambiguous", "six transposed convolutions that enlarge, 24 to 384",
              "AnoViT's: 26, 28, 30, 59, 117, 233, then a bilinear resize", "four doublings would do: 'pow2'"),
    Deviation("D15", "Options.decoder_norm", "ambiguous", "a normalisation that works on mini-batches", "batch norm",
              "AnoViT's code has instance norm without weights"),
    Deviation("D16", "Options.last_block", "contradiction", "normalisation and ReLU after each layer, tanh last",
              "neither after the sixth", "tanh(ReLU(x)) is never negative: no value below mid grey could be rebuilt"),
    Deviation("D17", "Options.normalise", "silent", "no word on the range of values",
              "the network works in [-1, 1], losses in [0, 1]",
              "tanh's range; AnoViT's code takes mean and standard deviation of the category, which tanh cannot reach"),
    Deviation("D18", "Options.l2_reduction", "ambiguous", "a sum over W and H, divided by W H",
              "summed over the channels, too", "Eq 11 as printed has a vector's square"),
    Deviation("D19", "Options.ssim_window", "silent", "SSIM of blocks", "Gaussian 11, sigma 1.5, mirrored border",
              "Wang et al. 2004; Eq 12 sums over all W H positions, so each needs a value; of 'valid' the map's "
              "border repeats the nearest value"),
    Deviation("D20", "Options.ssim_weight", "silent", "lambda, found by a grid search", "1", "no value is given"),
    Deviation("D21", "Options.entropy_sign", "mistake", "sum of w ln w, minimised", "-sum of w ln w, minimised",
              "as printed, minimising makes the weights uniform, the opposite of what the text wants"),
    Deviation("D22", "Options.betas", "silent", "Adam, 2e-4", "betas 0.5, 0.999; no decay, constant rate",
              "a public copy of AnoViT's script"),
    Deviation("D23", "Options.patience", "silent", "200 epochs", "the last epoch",
              "AnoViT stops after 12 epochs without a better squared error of validation images: --patience 12 "
              "watches the whole loss; its share is not known"),
    Deviation("D24", "Options.score", "silent", "'the three losses define the score'",
              "mean squared error of the channels + lambda (1 - SSIM)", "no formula; AnoViT takes the squared error"),
    Deviation("D25", "Options.map_sigma", "silent", "Gaussian smoothing", "sigma 6 for the map, 15 for the score",
              "AnoViT's code, as scipy filters: truncated at 4 sigma, mirrored"),
    Deviation("D26", "Options.image_score", "silent", "nothing said", "the maximum", "as AnoViT"),
    Deviation("D27", "Options.resize", "silent", "384 x 384", "bilinear with antialiasing", "no filter is named"),
    Deviation("D28", "Decoder", "silent", "nothing said", "weights from N(0, 0.02^2), biases 0",
              "a helper in AnoViT's file; whether it is called there is not known"),
    Deviation("D29", "evaluate --convention", "ambiguous", "mean overlap of regions when FPR is below 0.3",
              "area under it up to 0.3, divided by 0.3; 8-connected regions",
              "the usual meaning; 'point' is the other"),
    Deviation("D30", "adref.data", "mistake", "BTAD: 1000 images of product 2, 399 of product 3", "folders as found",
              "they hold 399 and 1000"),
    Deviation("D31", "corrupt", "silent", "nothing said", "no augmentation", "none is mentioned"),
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
