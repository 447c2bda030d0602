"""Noise-to-norm: an M-net rebuilds the normal image from one that noise has half hidden.

"Noise-to-Norm Reconstruction for Industrial Anomaly Detection and Localization", Applied Sciences 2023, 13(22), 12436
(preprint arXiv 2307.02836). No code of its authors is known: this is the article's text without its figures, the works
that it builds on, and a record in DEVIATIONS for every guess. "U" marks a value from those works: SRMNet (the M-net),
MIRNet (its fusion), PL4NN (the loss of Zhao et al.), PORT (a PyTorch port of that).

A normal image is blended with Gaussian noise and rebuilt by a U-Net that also gets the shrunk input at every level and
fuses the outputs of all levels. At test time the same noise hides a defect as well; loss and map are one expression.
The noise shares of the paper's table are `--ablation lambda-0` to `lambda-0.4`, its last one `no-attention`.

What an audit should know before it trusts the article:
- The rate 1e-6, annealed to 1e-6, is constant, and hardly moves the network (D18; `--preset literal` takes it).
- A cosine of period 100 in up to 500 epochs makes the rate rise again after epoch 100 (D19).
- Noise of mean 0.5 is added to images in [-1, 1]: it pulls the picture towards 0.75 of [0, 1], not mid grey (D2).
- Its MS-SSIM is not the one in common packages: five windows at full resolution, no pyramid (D13).
- A widely copied port of that loss filters each colour with other windows than it means to (`--channels port_groups`).
- The fusion that it calls spatial has one weight for each channel (D10). The module behind its last ablation is only
  described (D7), and that table's body is lost: 66.26 and 88.86 are computed from the text's gains (D24).

Symbols
    u, v           image and reconstruction in [0, 1]     x_0, x    image in [-1, 1], with noise
    eps, lambda    noise, its share                       f_i, g_i  maps of encoder and decoder at level i
    m_i            what level i hands to the fusion       l, cs_j   luminance; contrast and structure
    G_M            Gaussian mean of the widest window

Equations (the article's numbers were not at hand, but for 9; the others are in its order)
    (1) x = (1 - lambda) x_0 + lambda eps                              blend
    (2) f_i = B_i[Down f_(i-1), S(x_i)], x_i the input shrunk i times  MNet.forward
    (3) g_i = D_i[Up g_(i+1), conv f_i], the deepest g_i is f_i        MNet.forward
    (4) r + a v, a from the mean of v                                  residual_attention.ResidualAttention.forward
    (5) sum_i softmax_i(A_i z) m_i                                     selective_kernel.SelectiveKernelFusion.forward
    (6) l = (2 mu_u mu_v + C1) / (mu_u^2 + mu_v^2 + C1)                losses.ms_ssim_l1
    (7) cs = (2 cov_uv + C2) / (var_u + var_v + C2)                    losses.ms_ssim_l1
    (8) MS-SSIM = l_M prod_j cs_j                                      losses.ms_ssim_l1
    (9) alpha (1 - MS-SSIM) + (1 - alpha) G_M |u - v|                  NoiseToNorm.loss, NoiseToNorm.map_of,
                                                                       losses.ms_ssim_l1

Algorithms and tables
    (Table of noise shares) lambda 0, 0.2, 0.3, 0.4                    ABLATIONS
    (Table 5) without residual attention                               ABLATIONS

Not built
    What its missing figure shows of the attention block, beyond four readings of the text (D7).
    The methods that its tables of MPDD and VisA compare with.
"""

import math
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adref.layers.residual_attention import block
from adref.layers.selective_kernel import SelectiveKernelFusion
from adref.losses import ms_ssim, ms_ssim_l1
from adref.method import Deviation, EarlyStop, Method, Rngs, Sources, check_images, gaussian_smooth
from adref.options import Notice, UserError, option

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


class Batch(NamedTuple):
    clean: Tensor  # (B, 3, H, W) in [0, 1]
    corrupted: Tensor  # (B, 3, H, W), with noise; may leave [0, 1]


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


# -- the noise: all of the method's randomness ------------------------------------------------------------------------


def corrupt(image: Tensor, rng: np.random.Generator, options: Options, sources: Sources) -> Batch:
    """The image (3, H, W) in [0, 1], and blended with fresh noise; no augmentation (D27)."""
    return Batch(image, blend(image, draw_noise(rng, tuple(image.shape), options), options))


def draw_noise(rng: np.random.Generator, shape: tuple[int, ...], options: Options) -> Tensor:
    """eps: float32 noise of a shape (3, H, W), from a generator that numpy has frozen, seeded by one draw of `rng`."""
    frozen = np.random.RandomState(int(rng.integers(2**32)))  # D3
    return torch.from_numpy(frozen.normal(options.noise_mean, options.noise_std, shape)).float()  # D1


def blend(images: Tensor, noise: Tensor, options: Options) -> Tensor:
    """Equation 1 in the units of the image: (1 - lambda) u + lambda n, not clipped.

    eps holds in [-1, 1], where it is n = (eps + 1) / 2 for an image in [0, 1], or is n itself (D2).
    """
    noise = (noise + 1) / 2 if options.noise_domain == "normalised" else noise
    return (1 - options.noise_share) * images + options.noise_share * noise


# -- the method -------------------------------------------------------------------------------------------------------


class NoiseToNorm(Method):
    """Hide a part of the image in noise, rebuild it, and compare."""

    Options = Options
    presets = PRESETS
    ablations = ABLATIONS
    deviations = DEVIATIONS
    sees_whole = "its blocks weigh channels by their means over all of it"
    corrupt = staticmethod(corrupt)

    def __init__(self, options: Options = Options()):  # noqa: B008  frozen
        super().__init__(options)
        o = self.options
        check(o)
        self.network = MNet(
            o.width, o.levels, o.block, o.attention_reduction, o.activation, o.block_level0, o.shared_stem, o.down,
            o.global_residual, o.output_activation, o.padding,
        )  # fmt: skip

    def forward(self, noisy: Tensor) -> Tensor:
        """(B, 3, H, W), [0, 1] and beyond -> v alike: the network itself works in [-1, 1]."""
        return (self.network(2 * noisy - 1).float() + 1) / 2

    def compare(self, images: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
        """MS-SSIM and error of each pixel, which equation 9 mixes: (B, 3, H, W) twice -> (B, 1, H, W) twice."""
        o, constants = self.options, (0.01, 0.03)
        if o.ssim_constants == "squared":  # D14
            value_range = 1 if o.loss_range == "unit" else 2  # D16
            constants = ((0.01 * value_range) ** 2, (0.03 * value_range) ** 2)
        images, reconstruction = self.in_range(images, reconstruction)
        return ms_ssim_l1(reconstruction, images, o.sigmas, constants, o.border, o.channels)  # D15, D17

    def in_range(self, *pictures: Tensor) -> tuple[Tensor, ...]:
        """Pictures of [0, 1] in the range that --loss-range asks for (D16)."""
        return pictures if self.options.loss_range == "unit" else tuple(2 * picture - 1 for picture in pictures)

    def loss(self, batch: Batch, stage: str = "train") -> dict[str, Tensor]:
        """Equation 9. Terms, weighted: "ms_ssim" and "l1"; "total" is their sum."""
        o, reconstruction = self.options, self(batch.corrupted)
        similarity, error = (maps.mean() for maps in self.compare(batch.clean, reconstruction))
        if o.ms_ssim == "pyramid":  # D13
            value_range = 1.0 if o.loss_range == "unit" else 2.0
            similarity = ms_ssim(*self.in_range(reconstruction, batch.clean), value_range).mean()
        terms = {"ms_ssim": o.alpha * (1 - similarity), "l1": (1 - o.alpha) * error}
        return {**terms, "total": sum(terms.values())}

    def optimizer(self, stage: str = "train"):
        """AdamW; the rate follows a cosine from `learning_rate` to `least_rate`, and back (D19)."""
        o = self.options
        if o.learning_rate <= o.least_rate:
            text = f"the learning rate does not fall: it goes from {o.learning_rate:g} to {o.least_rate:g}"
            text += "; at so small a rate the network hardly moves" if o.learning_rate < 1e-5 else ""
            warnings.warn(text, Notice, stacklevel=2)
        optimizer = torch.optim.AdamW(self.parameters(), o.learning_rate, o.betas, weight_decay=o.weight_decay)

        def factor(epoch: int) -> float:
            epoch = min(epoch, o.cosine_epochs) if o.hold_after_cosine else epoch
            share = (1 + math.cos(math.pi * epoch / o.cosine_epochs)) / 2
            return (o.least_rate + (o.learning_rate - o.least_rate) * share) / o.learning_rate

        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def early_stop(self, stage: str = "train") -> EarlyStop | None:
        """After `patience` epochs without a new minimum of the loss on normal images; never on test images (D20)."""
        o = self.options
        if o.patience is None:
            return None
        return EarlyStop(o.patience, o.validation_share if o.monitor == "validation" else 0.0)

    def rebuild(self, images: Tensor, rngs: Rngs) -> list[Tensor]:
        """Reconstructions (B, 3, H, W), one for each draw of the noise."""
        o = self.options
        check_images(images, 2 ** (o.levels - 1))
        if o.padding == "reflect" and min(images.shape[2:]) < 2**o.levels:
            raise ValueError(f"expected sides of {2**o.levels} or more, got {tuple(images.shape[2:])}")
        if rngs is not None and len(rngs) != len(images):
            raise ValueError(f"expected one stream for each of {len(images)} images, got {len(rngs)}")
        if not o.test_noise:
            return [self(images)]
        rngs = rngs if rngs is not None else [np.random.Generator(np.random.PCG64(0)) for _ in images]
        draws = range(o.noise_repeats if o.noise_share else 1)  # D3
        noises = ([draw_noise(rng, tuple(images.shape[1:]), o) for rng in rngs] for _ in draws)
        return [self(blend(images, torch.stack(noise).to(images), o)) for noise in noises]

    def anomaly_map(self, images: Tensor, rngs: Rngs = None, looks=None) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 1, H, W): equation 9 of image and reconstruction (D22).

        Args:
            images: sides that are multiples of 2^(levels - 1).
            rngs: a stream an image for its noise; None: every image gets the same.
        """
        return self.map_of(images, self.rebuild(images, rngs))

    def map_of(self, images: Tensor, rebuilt: list[Tensor]) -> Tensor:
        """Equation 9 of images and what became of each draw of their noise: (B, 3, H, W) all -> (B, 1, H, W) (D22)."""
        o = self.options
        if o.average == "reconstruction":
            rebuilt = [torch.stack(rebuilt).mean(dim=0)]
        alpha = o.alpha if o.map_alpha is None else o.map_alpha
        pairs = [self.compare(images, v) for v in rebuilt]
        maps = torch.stack([alpha * (1 - similarity) + (1 - alpha) * error for similarity, error in pairs])
        return gaussian_smooth(maps.mean(dim=0), o.map_sigma)

    def image_score(self, maps: Tensor) -> Tensor:
        """The maximum, or the mean: (B, 1, H, W) -> (B,) (D22)."""
        return maps.amax(dim=(1, 2, 3)) if self.options.image_score == "max" else maps.mean(dim=(1, 2, 3))

    def reconstruct(self, images: Tensor, rngs: Rngs = None, looks=None) -> Tensor:
        """v for the eye, the mean of all draws: (B, 3, H, W), clamped to [0, 1]."""
        return torch.stack(self.rebuild(images, rngs)).mean(dim=0).clamp(0, 1)


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


# -- the network ------------------------------------------------------------------------------------------------------


class MNet(nn.Module):
    """A U-Net that gets the shrunk input at every level and fuses what all levels of its decoder say.

    Channels w 2^i at level i. Down: pixel unshuffle, 1x1 convolution; up: pixel shuffle, 1x1 convolution.

    Args:
        width: w.
        levels: number of levels; both sides of the input must be multiples of 2^(levels - 1).
        kind, reduction, activation: of the blocks, see `residual_attention.block` (D7, D9).
        level0: a block behind the first level's stem, too (D8).
        shared_stem: one first convolution for all scales of the input (D6).
        down: how the input is shrunk (D4).
        global_residual: add the input to the output (D11).
        output_activation: "none" or "tanh".
        padding: of the 3x3 convolutions: "zeros" or "reflect" (D26).
    """

    def __init__(
        self,
        width: int = 96,
        levels: int = 4,
        kind: Literal["full", "min", "conv1x1", "skrdb"] = "full",
        reduction: int = 8,
        activation: Literal["relu", "leaky_relu", "prelu", "gelu"] = "relu",
        level0: bool = True,
        shared_stem: bool = True,
        down: Literal["bilinear", "bicubic", "nearest"] = "bilinear",
        global_residual: bool = False,
        output_activation: Literal["none", "tanh"] = "none",
        padding: Literal["zeros", "reflect"] = "zeros",
    ):
        super().__init__()
        widths, inner = [width * 2**i for i in range(levels)], range(levels - 1)
        self.down, self.global_residual, self.output_activation = down, global_residual, output_activation
        make, conv3x3 = (
            (reduction, activation, padding),
            partial(nn.Conv2d, kernel_size=3, padding=1, padding_mode=padding),
        )
        self.stems = nn.ModuleList(conv3x3(3, width) for _ in range(1 if shared_stem else levels))
        self.encoder = nn.ModuleList([block(kind, width, width, *make) if level0 else nn.Identity()])
        self.encoder.extend(block(kind, widths[i] + width, widths[i + 1], *make) for i in inner)
        self.downs = nn.ModuleList(nn.Conv2d(4 * widths[i], widths[i], 1) for i in inner)
        self.ups = nn.ModuleList(nn.Conv2d(widths[i + 1] // 4, widths[i], 1) for i in inner)
        self.skips = nn.ModuleList(conv3x3(widths[i], widths[i]) for i in inner)
        self.decoder = nn.ModuleList(block(kind, 2 * widths[i], widths[i], *make) for i in inner)
        self.outs = nn.ModuleList(conv3x3(c, width) for c in widths)
        self.fusion = SelectiveKernelFusion(width, levels, reduction)  # D10
        self.last = conv3x3(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Equations 2 and 3: (B, 3, H, W) in [-1, 1] -> alike."""
        image, maps, f = x, [], self.encoder[0](self.stems[0](x))
        for i, down in enumerate(self.downs):
            maps.append(f)
            x = F.interpolate(x, scale_factor=0.5, mode=self.down)
            stem = self.stems[i + 1 if len(self.stems) > 1 else 0](x)
            f = self.encoder[i + 1](torch.cat((down(F.pixel_unshuffle(f, 2)), stem), dim=1))  # (B, w 2^(i+1), ...)
        outputs, g = [self.enlarge(len(self.downs), f)], f
        for i in reversed(range(len(self.downs))):
            up = self.ups[i](F.pixel_shuffle(g, 2))
            g = self.decoder[i](torch.cat((up, self.skips[i](maps[i])), dim=1))
            outputs.append(self.enlarge(i, g))
        y = self.last(self.fusion(outputs))  # the deepest level's map comes first
        y = y + image if self.global_residual else y
        return y.tanh() if self.output_activation == "tanh" else y

    def enlarge(self, level: int, g: Tensor) -> Tensor:
        """What a level's map adds to the fusion: (B, w 2^i, H / 2^i, W / 2^i) -> (B, w, H, W)."""
        m = self.outs[level](g)
        return F.interpolate(m, scale_factor=2**level, mode="bilinear", align_corners=False) if level else m
