"""Options of noise-to-norm with their sources and readings, presets, ablations, and other departures."""

from dataclasses import dataclass
from math import ceil, inf
from typing import Literal

from adref.method import STEPS, Deviation
from adref.options import UserError, option


@dataclass(frozen=True)
class Options:
    """The defaults are the paper preset; "SRMNet" and "PL4NN" are the code of these earlier works."""

    # fmt: off
    size: tuple[int, int] = option((256, 256), "height,width of the network's input, multiples of 2^(levels - 1)",
                                   "section Experiments", limits=(2, 65536))
    resize: Literal["bilinear", "antialias"] = option("antialias", "filter that resizes images to --size", "adref",
        kind="silent", paper="256 x 256", why="no filter is named")
    noise_share: float = option(0.3, "lambda, share of the noise in the blend", "section Experiments", limits=(0, 1))
    noise_domain: Literal["normalised", "pixel"] = option(
        "normalised", "range in which the noise is N(0.5, 0.5): [-1, 1], or [0, 1]", "adref", kind="ambiguous",
        paper="images normalised by mean and deviation 0.5, noise 'from the same distribution'",
        why="the formula; pixel is N(0, 1) in [-1, 1]: twice as strong, centred, no shift by lambda / 2")
    noise_repeats: int = option(
        1, "draws of the noise at test time, whose reconstructions are averaged", "adref", limits=(1, 10**6),
        kind="silent", paper="noise at test time, too", why="neither number of draws nor seed is given")
    width: int = option(96, "channels of the first level, even", "SRMNet", limits=(4, 65536), kind="silent",
                        paper="an M-net", why="SRMNet's width")
    levels: int = option(4, "levels of the M-net", "section Method: four maps are fused", limits=(2, 12))
    block: Literal["full", "min", "conv1x1", "skrdb"] = option(
        "full", "residual attention with 3x3 convolutions, without them; one 1x1 convolution; SRMNet's block", "adref",
        kind="silent", paper="residual, global pooling, convolutions, a 1x1 in both paths; the figure is missing",
        why="replacing it by a 1x1 costs 28.7 points, which speaks for spatial convolutions")
    block_level0: bool = option(True, "a block on the encoder's first level, too", "adref", kind="ambiguous",
        paper="after each concatenation", why="that level concatenates nothing; SRMNet has its block there")
    padding: Literal["zeros", "reflect"] = option(
        "zeros", "border of the 3x3 convolutions", "SRMNet", kind="silent", paper="no word on it",
        why="SRMNet; the network then errs at the edge of the image, and the map shows it (see NOTES.md)")
    sigmas: tuple[float, ...] = option((0.5, 1.0, 2.0, 4.0, 8.0), "deviations of the Gaussian windows, ascending, "
        "pixels", "PL4NN", limits=(0.01, 1000), kind="silent", paper="sigma_1 to sigma_M", why="PL4NN")
    map_alpha: float = option(0.84, "share of MS-SSIM in the map, beside the error", "Zhao et al.", limits=(0, 1),
        kind="silent", paper="MS-SSIM and L1 error of each pixel, no weights", why="the guess for the loss, ALPHA")
    ssim_constants: Literal["printed", "squared"] = option(
        "printed", "C1 and C2 are 0.01 and 0.03, or their squares", "section Method", kind="ambiguous",
        paper="C1 = 0.01, C2 = 0.03", why="PL4NN squares numbers of those names and values: see NOTES.md")
    epochs: int = option(500, "passes over the training images, at most", "section Experiments", limits=(0, inf))
    steps: int | None = option(None, STEPS, "adref", limits=(1, inf))
    batch_size: int = option(4, "images a step", "adref", limits=(1, inf), kind="silent", paper="no word on it",
                             why="fits 8 GB")
    learning_rate: float = option(
        1e-4, "AdamW's step size at the start", "SRMNet", limits=(1e-12, 1e6), kind="contradiction",
        paper="1e-6, annealed to 1e-6", why="as printed the network hardly moves; SRMNet's values")
    hold_after_cosine: bool = option(False, "hold the rate after the cosine's 100 epochs (with --steps: after "
        "100 / --epochs of them); false: it rises again", "torch", kind="ambiguous", paper="T_max 100, 500 epochs",
        why="torch's CosineAnnealingLR rises")
    patience: int | None = option(20, "stop after so many epochs without a lower loss; none: all images train, last "
        "weights", "section Experiments", limits=(1, inf))
    monitor: Literal["validation", "train"] = option("validation", "loss that --patience watches; train: no image is "
        "kept for validation", "adref", kind="ambiguous", paper="stop when 'the loss' is no better for 20 epochs; 20 % "
        "validate", why="the 20 % would be idle otherwise; each has fixed noise, and the best weights are kept")
    # fmt: on


PRESETS = {
    "paper": {},
    # Half the side, so the windows shrink with it; a sixth of the width. The steps stand for 100 epochs: the rate falls
    # once. At the paper's share of noise the network copies defects. The map has PL4NN's small share of MS-SSIM.
    "tiny": {"size": (128, 128), "width": 16, "sigmas": (0.5, 1.0, 2.0, 4.0), "epochs": 100, "steps": 600,
             "learning_rate": 1e-3, "patience": None, "noise_share": 0.5, "noise_repeats": 4, "padding": "reflect",
             "map_alpha": 0.025},
}  # fmt: skip

ABLATIONS = {
    **{f"lambda-{share}": {"noise_share": float(share)} for share in ("0", "0.2", "0.3", "0.4")},
    "no-attention": {"block": "conv1x1"},  # table 5
    "literal": {"learning_rate": 1e-6},
}

DEVIATIONS = (
    Deviation("corrupt", "silent", "no word on it", "new noise for each image and epoch, no augmentation",
              "one noise for all could be learned"),
    Deviation("NOISE_STD", "ambiguous", "noise N(0.5, 0.5)", "standard deviation 0.5", "called sigma next to it"),
    Deviation("draw_noise", "silent", "no generator", "numpy's RandomState, seeded by one draw of the image's stream",
              "numpy has frozen it: the noise is the same in every version"),
    Deviation("MNet", "silent", "the input is shrunk; stems and output are not described",
              "noise first, then bilinear halving; one stem for all levels; no activation, no residual at the output",
              "SRMNet without its global residual, which would hand the defect through"),
    Deviation("ResidualAttention", "silent", "no ratio, no activation", "8, ReLU, sigmoid", "SRMNet's ratio"),
    Deviation("SelectiveKernelFusion", "mistake", "kernels chosen for each position",
              "weights for each channel, from a mean over all positions", "the module that is cited"),
    Deviation("ms_ssim_l1", "mistake", "G times L1, a filter times a number", "the filter of |u - v|", "PL4NN"),
    Deviation("NoiseToNorm.forward", "silent", "images normalised to [-1, 1]; no range of loss and map",
              "[0, 1], not clipped", "the words suggest [-1, 1], but SSIM takes values from 0 on: l of 0.4 against 0.5 "
              "would be .20, not .98, and negative across mid grey; errors twice, variances four times as large"),
    Deviation("NoiseToNorm.compare", "silent", "no word on border and channels", "mirrored; mean of the channels' maps",
              "zeros make the border of every map bright"),
    Deviation("ALPHA", "silent", "no value", "0.84", "Zhao et al.'s article, as recalled; PL4NN's code has 0.025"),
    Deviation("NoiseToNorm.optimizer", "silent", "AdamW, no weight decay given", "0.01", "torch's default"),
    Deviation("NoiseToNorm.anomaly_map", "silent", "MS-SSIM and L1 error of each pixel; no weights, no image score",
              "the loss of each pixel, without a filter; its maximum", "nothing else is printed"),
    Deviation("PRESETS", "substitution", "stops after 20 epochs without a lower loss",
              "tiny: all its steps, with all images; last weights", "20 epochs of 20 images are 100 steps"),
    Deviation("adref.data", "silent", "90 % of VisA's normal images train", "the lists of VisA's authors (split_csv)",
              "no list is named"),
    Deviation("ABLATIONS", "silent", "table 5, its body is lost", "no-attention: 1x1 convolutions", "as its text says"),
)  # fmt: skip


def check(o: Options) -> None:
    """Raises UserError for options that do not fit together."""
    if list(o.sigmas) != sorted(o.sigmas) or not o.sigmas:
        raise UserError(f"--sigmas takes numbers in ascending order; got {','.join(map(str, o.sigmas)) or 'none'}")
    if o.width % 2:
        raise UserError(f"--width takes an even number, as the pixel shuffle quarters 2 x width; got {o.width}")
    stride, reach = 2 ** (o.levels - 1), ceil(2 * max(o.sigmas))
    for axis, side in zip(("height", "width"), o.size):
        if side % stride:
            fits = ceil(side / stride) * stride
            raise UserError(f"--size: {o.levels} levels need multiples of {stride}; {axis} {side}, {fits} would do")
        if side <= reach:
            raise UserError(f"--size: {axis} {side} is not above {reach}, the reach of the widest of --sigmas")
        if o.padding == "reflect" and side < 2 * stride:
            raise UserError(f"--size: --padding reflect needs two pixels at the deepest level; {axis} {side} has one")
