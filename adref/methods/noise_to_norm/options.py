"""The constants of noise-to-norm: options with their sources, presets, ablations, and departures from the paper."""

import math
from dataclasses import dataclass
from typing import Literal

from adref.method import Deviation
from adref.options import UserError, option

INF = math.inf


@dataclass(frozen=True)
class Options:
    """The constants of noise-to-norm and their other readings; the defaults are the paper preset."""

    size: tuple[int, int] = option(
        (256, 256),
        "height,width of the network's input, multiples of 2^(levels - 1)",
        "section Experiments",
        (2, 65536),
    )
    resize: Literal["bilinear", "antialias"] = option("antialias", "filter that brings a picture to --size", "D25")
    # the noise
    noise_share: float = option(0.3, "lambda, the share of the noise in the blend", "section Experiments", (0, 1))
    noise_mean: float = option(0.5, "mean of the noise", "section Method; D1", (-10, 10))
    noise_std: float = option(0.5, "standard deviation of the noise", "section Method; D1", (0, 10))
    noise_domain: Literal["normalised", "pixel"] = option(
        "normalised", "where mean and deviation hold: in [-1, 1], or in [0, 1]", "D2"
    )
    test_noise: bool = option(True, "noise at test time", "section Method; D3")
    noise_repeats: int = option(1, "draws of the noise at test time", "D3", (1, 10**6))
    average: Literal["reconstruction", "map"] = option(
        "reconstruction", "what the mean of several draws is taken of", "D3"
    )
    # the network
    width: int = option(96, "channels of the first level", "U (SRMNet); D5", (4, 65536))
    levels: int = option(4, "levels", "four maps are fused; D5", (2, 12))
    down: Literal["bilinear", "bicubic", "nearest"] = option("bilinear", "how the input is shrunk", "U (SRMNet); D4")
    shared_stem: bool = option(True, "one first convolution for the input at all levels", "U (SRMNet); D6")
    block: Literal["full", "min", "conv1x1", "skrdb"] = option(
        "full", "residual attention with 3x3 convolutions, without; one 1x1 convolution; SRMNet's block", "D7"
    )
    block_level0: bool = option(True, "a block on the first level of the encoder, too", "D8")
    attention_reduction: int = option(8, "narrowing of attention and fusion", "U (SRMNet); D9", (1, INF))
    activation: Literal["relu", "leaky_relu", "prelu", "gelu"] = option("relu", "of the blocks full and min", "D9")
    padding: Literal["zeros", "reflect"] = option("zeros", "outside of the 3x3 convolutions", "U (SRMNet); D26")
    global_residual: bool = option(False, "add the noisy input to the output", "D11")
    output_activation: Literal["none", "tanh"] = option("none", "of the output", "D11")
    # loss and map
    alpha: float = option(0.84, "share of MS-SSIM in the loss; the rest is L1", "U (Zhao et al.); D12", (0, 1))
    sigmas: tuple[float, ...] = option(
        (0.5, 1.0, 2.0, 4.0, 8.0), "of the Gaussian windows, ascending, pixels", "U (PL4NN); D13", (0.01, 1000)
    )
    ssim_constants: Literal["squared", "literal"] = option(
        "squared", "C1, C2 are 0.01, 0.03, or their squares (times 4 where the range is 2)", "D14"
    )
    ms_ssim: Literal["windows", "pyramid"] = option(
        "windows",
        "of the loss: Zhao et al.'s, or Wang et al.'s pyramid (sides above 160, its own constants, windows, border)",
        "D13",
    )
    loss_range: Literal["unit", "network"] = option("unit", "loss of values in [0, 1], or in [-1, 1]", "D16")
    border: Literal["reflect", "zero"] = option("reflect", "windows at the border", "D17")
    channels: Literal["mean", "product", "port_groups"] = option(
        "mean", "mean of the colours' maps, their product as in PORT, or PORT with its mistake", "D17"
    )
    # training
    epochs: int = option(500, "passes over the training images, at most", "section Experiments", (0, INF))
    batch_size: int = option(4, "images a step", "D21", (1, INF))
    learning_rate: float = option(1e-4, "AdamW's step size at the start", "U (SRMNet); D18", (1e-12, 1e6))
    least_rate: float = option(1e-6, "the step size where the cosine ends", "section Experiments; D18", (0, INF))
    cosine_epochs: int = option(100, "half a period of the cosine", "section Experiments", (1, INF))
    hold_after_cosine: bool = option(False, "stay at --least-rate then, in place of rising again", "D19")
    betas: tuple[float, float] = option((0.5, 0.999), "AdamW's decay rates", "section Experiments", (0, 0.999999))
    weight_decay: float = option(0.01, "AdamW's weight decay", "U (torch); D21", (0, 1))
    patience: int | None = option(
        20,
        "epochs without a new minimum that end training; none: all images train, all epochs, last weights",
        "section Experiments; D20",
        (1, INF),
    )
    monitor: Literal["validation", "train"] = option("validation", "of which loss", "D20")
    validation_share: float = option(
        0.2, "share of the training images that validate and do not train", "section Experiments; D20", (0.001, 0.9)
    )
    # the map
    map_alpha: float | None = option(None, "share of MS-SSIM in the map; none: --alpha", "D22", (0, 1))
    map_sigma: float = option(0.0, "Gaussian filter of the map, pixels at --size; 0: none", "D22", (0, 1000))
    image_score: Literal["max", "mean"] = option("max", "how a map becomes a score", "D22")


PRESETS = {
    "paper": {},
    "literal": {"learning_rate": 1e-6},  # D18
    # Half the side, so the windows shrink with it; a sixth of the width.
    "tiny": {
        "size": (128, 128), "width": 16, "sigmas": (0.5, 1.0, 2.0, 4.0), "epochs": 100, "learning_rate": 1e-3,
    },
}  # fmt: skip


ABLATIONS = {
    # the table of noise shares, and table 5. D24: what 'no-attention' is; D23: on which images of VisA
    **{f"lambda-{share}": {"noise_share": float(share)} for share in ("0", "0.2", "0.3", "0.4")},
    "no-attention": {"block": "conv1x1"},
}


DEVIATIONS = (
    Deviation("D1", "Options.noise_mean", "ambiguous", "noise N(0.5, 0.5)", "mean 0.5, standard deviation 0.5",
              "the second number is called sigma in the same paragraph"),
    Deviation("D2", "Options.noise_domain", "ambiguous",
              "images brought to mean and deviation 0.5, noise 'from the same distribution'",
              "N(0.5, 0.5) is added to the image in [-1, 1]",
              "the formula; it shifts the picture by half of lambda. 'pixel': N(0.5, 0.5) in [0, 1], which is N(0, "
              "1) in [-1, 1], twice as strong and centred"),
    Deviation("D3", "Options.noise_repeats", "silent", "noise at test time, too", "one draw, fixed for each image",
              "no seed and no number of draws is given; a frozen generator (numpy's RandomState) makes it repeatable"),
    Deviation("D4", "Options.down", "silent", "the input is shrunk", "bilinear by half, noise first",
              "SRMNet; for a factor of two it is the mean of 2 x 2 pixels"),
    Deviation("D5", "Options.width", "silent", "an M-net", "96 channels, 4 levels", "SRMNet; 'four feature maps'"),
    Deviation("D6", "Options.shared_stem", "silent", "nothing said", "one convolution for all levels", "SRMNet"),
    Deviation("D7", "Options.block", "silent",
              "a figure that is missing; residual, pooling, convolutions, a 1x1 in both paths",
              "1x1 on one path; 1x1, 3x3, ReLU, 3x3 and channel attention on the other",
              "inferred: a published drop of 28.7 points from a mere 1x1 speaks for spatial convolutions in the block"),
    Deviation("D8", "Options.block_level0", "ambiguous", "after each concatenation", "on level 0 of the encoder, too",
              "there is no concatenation; SRMNet has its block there"),
    Deviation("D9", "Options.attention_reduction", "silent", "nothing said", "8, ReLU, sigmoid", "SRMNet's ratio"),
    Deviation("D10", "SelectiveKernelFusion", "mistake", "kernels chosen for each position",
              "weights for each channel, from a mean over all positions", "the module that is cited"),
    Deviation("D11", "Options.global_residual", "silent", "nothing said", "the output is the reconstruction itself",
              "SRMNet adds its input, which would hand a defect through"),
    Deviation("D12", "Options.alpha", "silent", "alpha, no value", "0.84",
              "Zhao et al.'s article, as recalled; the code of PL4NN and PORT has 0.025"),
    Deviation("D13", "Options.sigmas", "silent", "sigma_1 to sigma_M", "0.5, 1, 2, 4, 8; windows of 33 x 33",
              "PL4NN; Wang et al.'s five levels and exponents are another measure ('pyramid', for the loss alone: it "
              "has no value for a pixel)"),
    Deviation("D14", "Options.ssim_constants", "ambiguous", "C1 = 0.01, C2 = 0.03", "their squares",
              "in PL4NN numbers of those names and values are squared when they are read"),
    Deviation("D15", "ms_ssim_l1", "mistake", "G times L1, a filter times a number", "the filter applied to |u - v|",
              "PL4NN and PORT"),
    Deviation("D16", "Options.loss_range", "silent", "nothing said", "[0, 1], not clipped",
              "SSIM's constants expect it"),
    Deviation("D17", "Options.border", "silent", "nothing said", "mirrored; mean of the colours' maps",
              "zeros make the border of every map bright"),
    Deviation("D18", "Options.learning_rate", "contradiction", "1e-6, annealed to 1e-6", "1e-4 to 1e-6",
              "as printed the rate is constant and the network hardly moves; SRMNet's values"),
    Deviation("D19", "Options.hold_after_cosine", "ambiguous", "T_max 100, 500 epochs", "the rate rises again",
              "as torch does; the option holds it"),
    Deviation("D20", "Options.monitor", "ambiguous", "stop when 'the loss' is no better for 20 epochs; 20 % validate",
              "the validation loss, with noise that is fixed for each image; the best weights are kept",
              "the 20 % would be idle otherwise; at least one image validates where there are two, a single one "
              "trains by its own loss; the share is of what --holdout leaves. 'train': all train"),
    Deviation("D21", "Options.batch_size", "silent", "nothing said", "4; decay 0.01", "fits 8 GB; torch's default"),
    Deviation("D22", "Options.map_alpha", "silent", "MS-SSIM and L1 error of each pixel",
              "the loss as a map, its maximum", "no weights, no filter and no score are given"),
    Deviation("D23", "adref.data", "silent", "90 % of VisA's normal images train", "the lists of VisA's authors",
              "no list is named; their split_csv files are read where they are"),
    Deviation("D24", "ABLATIONS", "silent", "the body of the last table is lost", "'no-attention': 1x1 convolutions",
              "as its text says"),
    Deviation("D25", "Options.resize", "silent", "256 x 256", "bilinear with antialiasing", "no filter is named"),
    Deviation("D26", "Options.padding", "silent", "nothing said", "zeros",
              "SRMNet; the network then errs at the edge of the picture, and the map shows it (reflect is the other "
              "way)"),
    Deviation("D27", "corrupt", "silent", "nothing said", "new noise for each image in each epoch, no augmentation",
              "one noise for all could be learned; none is mentioned"),
)  # fmt: skip


def check(o: Options) -> None:
    """Raises UserError for options that cannot work together."""
    if list(o.sigmas) != sorted(o.sigmas) or not o.sigmas:
        raise UserError(f"--sigmas takes numbers in ascending order; got {','.join(map(str, o.sigmas)) or 'none'}")
    stride, reach = 2 ** (o.levels - 1), math.ceil(2 * max(o.sigmas))
    if o.width % 2:
        raise UserError(f"--width takes an even number, as the pixel shuffle quarters 2 x width; got {o.width}")
    for axis, side in zip(("height", "width"), o.size):
        if side % stride:
            fits = math.ceil(side / stride) * stride
            raise UserError(
                f"--size: {o.levels} levels need multiples of {stride}; the {axis} is {side}, {fits} would do"
            )
        if o.border == "reflect" and side <= reach:
            raise UserError(f"--size: a {axis} of {side} is not above {reach}, the reach of the widest of --sigmas")
        if o.padding == "reflect" and side < 2 * stride:
            raise UserError(
                f"--size: --padding reflect needs two pixels at the deepest level; a {axis} of {side} has one"
            )
        if o.ms_ssim == "pyramid" and side <= 160:
            raise UserError(f"--size: a {axis} of {side} is not above 160, as --ms-ssim pyramid needs")
