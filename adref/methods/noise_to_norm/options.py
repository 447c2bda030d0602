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
        (256, 256), "height,width of the network's input, multiples of 2^(levels - 1)", "section Experiments",
        limits=(2, 65536),
    )  # fmt: skip
    # TODO here: D25: bilinear with antialiasing
    resize: Literal["bilinear", "antialias"] = option(
        "antialias", "filter that brings a picture to --size", "adref", kind="silent", paper="256 x 256",
        why="no filter is named",
    )  # fmt: skip
    # the noise
    noise_share: float = option(
        0.3, "lambda, the share of the noise in the blend", "section Experiments", limits=(0, 1),
    )  # fmt: skip
    # TODO here: D1: mean 0.5, standard deviation 0.5
    noise_mean: float = option(
        0.5, "mean of the noise", "section Method", limits=(-10, 10), kind="ambiguous", paper="noise N(0.5, 0.5)",
        why="the second number is called sigma in the same paragraph",
    )  # fmt: skip
    # TODO see ['D1']
    noise_std: float = option(0.5, "standard deviation of the noise", "section Method", limits=(0, 10))
    # TODO here: D2: N(0.5, 0.5) is added to the image in [-1, 1]
    noise_domain: Literal["normalised", "pixel"] = option(
        "normalised", "where mean and deviation hold: in [-1, 1], or in [0, 1]", "adref", kind="ambiguous",
        paper="images brought to mean and deviation 0.5, noise 'from the same distribution'",
        why="the formula; it shifts the picture by half of lambda. 'pixel': N(0.5, 0.5) in [0, 1], which is N(0, 1) "
        "in [-1, 1], twice as strong and centred",
    )  # fmt: skip
    # TODO see ['D3']
    test_noise: bool = option(True, "noise at test time", "section Method")
    # TODO here: D3: one draw, fixed for each image
    noise_repeats: int = option(
        1, "draws of the noise at test time", "adref", limits=(1, 10 ** 6), kind="silent",
        paper="noise at test time, too",
        why="no seed and no number of draws is given; a frozen generator (numpy's RandomState) makes it repeatable",
    )  # fmt: skip
    # TODO see ['D3']
    average: Literal["reconstruction", "map"] = option(
        "reconstruction", "what the mean of several draws is taken of", "adref",
    )  # fmt: skip
    # the network
    # TODO here: D5: 96 channels, 4 levels
    width: int = option(
        96, "channels of the first level", "U (SRMNet)", limits=(4, 65536), kind="silent", paper="an M-net",
        why="SRMNet; 'four feature maps'",
    )  # fmt: skip
    # TODO see ['D5']
    levels: int = option(4, "levels", "four maps are fused", limits=(2, 12))
    # TODO here: D4: bilinear by half, noise first
    down: Literal["bilinear", "bicubic", "nearest"] = option(
        "bilinear", "how the input is shrunk", "U (SRMNet)", kind="silent", paper="the input is shrunk",
        why="SRMNet; for a factor of two it is the mean of 2 x 2 pixels",
    )  # fmt: skip
    # TODO here: D6: one convolution for all levels
    shared_stem: bool = option(
        True, "one first convolution for the input at all levels", "U (SRMNet)", kind="silent", paper="nothing said",
        why="SRMNet",
    )  # fmt: skip
    # TODO here: D7: 1x1 on one path; 1x1, 3x3, ReLU, 3x3 and channel attention on the other
    block: Literal["full", "min", "conv1x1", "skrdb"] = option(
        "full", "residual attention with 3x3 convolutions, without; one 1x1 convolution; SRMNet's block", "adref",
        kind="silent", paper="a figure that is missing; residual, pooling, convolutions, a 1x1 in both paths",
        why="inferred: a published drop of 28.7 points from a mere 1x1 speaks for spatial convolutions in the block",
    )  # fmt: skip
    # TODO here: D8: on level 0 of the encoder, too
    block_level0: bool = option(
        True, "a block on the first level of the encoder, too", "adref", kind="ambiguous",
        paper="after each concatenation", why="there is no concatenation; SRMNet has its block there",
    )  # fmt: skip
    # TODO here: D9: 8, ReLU, sigmoid
    attention_reduction: int = option(
        8, "narrowing of attention and fusion", "U (SRMNet)", limits=(1, INF), kind="silent", paper="nothing said",
        why="SRMNet's ratio",
    )  # fmt: skip
    # TODO see ['D9']
    activation: Literal["relu", "leaky_relu", "prelu", "gelu"] = option("relu", "of the blocks full and min", "adref")
    # TODO here: D26: zeros
    padding: Literal["zeros", "reflect"] = option(
        "zeros", "outside of the 3x3 convolutions", "U (SRMNet)", kind="silent", paper="nothing said",
        why="SRMNet; the network then errs at the edge of the picture, and the map shows it (reflect is the other "
        "way)",
    )  # fmt: skip
    # TODO here: D11: the output is the reconstruction itself
    global_residual: bool = option(
        False, "add the noisy input to the output", "adref", kind="silent", paper="nothing said",
        why="SRMNet adds its input, which would hand a defect through",
    )  # fmt: skip
    # TODO see ['D11']
    output_activation: Literal["none", "tanh"] = option("none", "of the output", "adref")
    # loss and map
    # TODO here: D12: 0.84
    alpha: float = option(
        0.84, "share of MS-SSIM in the loss; the rest is L1", "U (Zhao et al.)", limits=(0, 1), kind="silent",
        paper="alpha, no value", why="Zhao et al.'s article, as recalled; the code of PL4NN and PORT has 0.025",
    )  # fmt: skip
    # TODO here: D13: 0.5, 1, 2, 4, 8; windows of 33 x 33
    sigmas: tuple[float, ...] = option(
        (0.5, 1.0, 2.0, 4.0, 8.0), "of the Gaussian windows, ascending, pixels", "U (PL4NN)", limits=(0.01, 1000),
        kind="silent", paper="sigma_1 to sigma_M",
        why="PL4NN; Wang et al.'s five levels and exponents are another measure ('pyramid', for the loss alone: it "
        "has no value for a pixel)",
    )  # fmt: skip
    # TODO here: D14: their squares
    ssim_constants: Literal["squared", "literal"] = option(
        "squared", "C1, C2 are 0.01, 0.03, or their squares (times 4 where the range is 2)", "adref",
        kind="ambiguous", paper="C1 = 0.01, C2 = 0.03",
        why="in PL4NN numbers of those names and values are squared when they are read",
    )  # fmt: skip
    # TODO see ['D13']
    ms_ssim: Literal["windows", "pyramid"] = option(
        "windows",
        "of the loss: Zhao et al.'s, or Wang et al.'s pyramid (sides above 160, its own constants, windows, border)",
        "adref",
    )  # fmt: skip
    # TODO here: D16: [0, 1], not clipped
    loss_range: Literal["unit", "network"] = option(
        "unit", "loss of values in [0, 1], or in [-1, 1]", "adref", kind="silent", paper="nothing said",
        why="SSIM's constants expect it",
    )  # fmt: skip
    # TODO here: D17: mirrored; mean of the colours' maps
    border: Literal["reflect", "zero"] = option(
        "reflect", "windows at the border", "adref", kind="silent", paper="nothing said",
        why="zeros make the border of every map bright",
    )  # fmt: skip
    # TODO see ['D17']
    channels: Literal["mean", "product", "port_groups"] = option(
        "mean", "mean of the colours' maps, their product as in PORT, or PORT with its mistake", "adref",
    )  # fmt: skip
    # training
    epochs: int = option(500, "passes over the training images, at most", "section Experiments", limits=(0, INF))
    # TODO here: D21: 4; decay 0.01
    batch_size: int = option(
        4, "images a step", "adref", limits=(1, INF), kind="silent", paper="nothing said",
        why="fits 8 GB; torch's default",
    )  # fmt: skip
    # TODO here: D18: 1e-4 to 1e-6
    learning_rate: float = option(
        0.0001, "AdamW's step size at the start", "U (SRMNet)", limits=(1e-12, 1000000.0), kind="contradiction",
        paper="1e-6, annealed to 1e-6",
        why="as printed the rate is constant and the network hardly moves; SRMNet's values",
    )  # fmt: skip
    # TODO see ['D18']
    least_rate: float = option(1e-06, "the step size where the cosine ends", "section Experiments", limits=(0, INF))
    cosine_epochs: int = option(100, "half a period of the cosine", "section Experiments", limits=(1, INF))
    # TODO here: D19: the rate rises again
    hold_after_cosine: bool = option(
        False, "stay at --least-rate then, in place of rising again", "adref", kind="ambiguous",
        paper="T_max 100, 500 epochs", why="as torch does; the option holds it",
    )  # fmt: skip
    betas: tuple[float, float] = option(
        (0.5, 0.999), "AdamW's decay rates", "section Experiments", limits=(0, 0.999999),
    )  # fmt: skip
    # TODO see ['D21']
    weight_decay: float = option(0.01, "AdamW's weight decay", "U (torch)", limits=(0, 1))
    # TODO see ['D20']
    patience: int | None = option(
        20, "epochs without a new minimum that end training; none: all images train, all epochs, last weights",
        "section Experiments", limits=(1, INF),
    )  # fmt: skip
    # TODO here: D20: the validation loss, with noise that is fixed for each image; the best weights are kept
    monitor: Literal["validation", "train"] = option(
        "validation", "of which loss", "adref", kind="ambiguous",
        paper="stop when 'the loss' is no better for 20 epochs; 20 % validate",
        why="the 20 % would be idle otherwise; at least one image validates where there are two, a single one trains "
        "by its own loss; the share is of what --holdout leaves. 'train': all train",
    )  # fmt: skip
    # TODO see ['D20']
    validation_share: float = option(
        0.2, "share of the training images that validate and do not train", "section Experiments",
        limits=(0.001, 0.9),
    )  # fmt: skip
    # the map
    # TODO here: D22: the loss as a map, its maximum
    map_alpha: float | None = option(
        None, "share of MS-SSIM in the map; none: --alpha", "adref", limits=(0, 1), kind="silent",
        paper="MS-SSIM and L1 error of each pixel", why="no weights, no filter and no score are given",
    )  # fmt: skip
    # TODO see ['D22']
    map_sigma: float = option(0.0, "Gaussian filter of the map, pixels at --size; 0: none", "adref", limits=(0, 1000))
    # TODO see ['D22']
    image_score: Literal["max", "mean"] = option("max", "how a map becomes a score", "adref")


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
    # D10
    Deviation(
        "SelectiveKernelFusion", "mistake", "kernels chosen for each position",
        "weights for each channel, from a mean over all positions", "the module that is cited",
    ),
    # D15
    Deviation(
        "ms_ssim_l1", "mistake", "G times L1, a filter times a number", "the filter applied to |u - v|",
        "PL4NN and PORT",
    ),
    # D23
    Deviation(
        "adref.data", "silent", "90 % of VisA's normal images train", "the lists of VisA's authors",
        "no list is named; their split_csv files are read where they are",
    ),
    # D24
    Deviation(
        "ABLATIONS", "silent", "the body of the last table is lost", "'no-attention': 1x1 convolutions",
        "as its text says",
    ),
    # D27
    Deviation(
        "corrupt", "silent", "nothing said", "new noise for each image in each epoch, no augmentation",
        "one noise for all could be learned; none is mentioned",
    ),
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
