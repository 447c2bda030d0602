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
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from adref.method import Context, EarlyStop, Method, Sources, Stage, check_images
from adref.methods.noise_to_norm.loss import ms_ssim, ms_ssim_l1
from adref.methods.noise_to_norm.network import MNet
from adref.methods.noise_to_norm.options import ABLATIONS, PRESETS, Options, check
from adref.ops.filters import gaussian_smooth
from adref.options import Notice


class Batch(NamedTuple):
    clean: Tensor  # (B, 3, H, W) in [0, 1]
    corrupted: Tensor  # (B, 3, H, W), with noise; may leave [0, 1]


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
    corrupt = staticmethod(corrupt)

    def __init__(self, options: Options = Options()):
        super().__init__(options)
        o = self.options
        check(o)
        share = o.validation_share if o.monitor == "validation" else 0.0
        stop = (
            None if o.patience is None else EarlyStop(o.patience, share)
        )  # D20: on normal images, never on test images
        self.stages = (Stage("train", o.epochs, early_stop=stop),)
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

    def rebuild(self, images: Tensor, rngs: Sequence[np.random.Generator] | None) -> list[Tensor]:
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

    def anomaly_map(self, images: Tensor, context: Context = Context()) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 1, H, W): equation 9 of image and reconstruction (D22).

        Args:
            images: sides that are multiples of 2^(levels - 1).
            context: `rngs`, a stream an image for its noise; None: every image gets the same.
        """
        return self.map_of(images, self.rebuild(images, context.rngs))

    def map_of(self, images: Tensor, rebuilt: list[Tensor]) -> Tensor:
        """Equation 9 of images and what became of each draw of their noise: (B, 3, H, W) all -> (B, 1, H, W) (D22)."""
        o = self.options
        if o.average == "reconstruction":
            rebuilt = [torch.stack(rebuilt).mean(dim=0)]
        alpha = o.alpha if o.map_alpha is None else o.map_alpha
        pairs = [self.compare(images, v) for v in rebuilt]
        maps = torch.stack([alpha * (1 - similarity) + (1 - alpha) * error for similarity, error in pairs])
        return gaussian_smooth(maps.mean(dim=0), o.map_sigma)

    def image_scores(self, maps: Tensor) -> dict[str, Tensor]:
        """Computes the maximum, or the mean: (B, 1, H, W) -> (B,) (D22)."""
        maximum = self.options.image_score == "max"
        return {"score": maps.amax(dim=(1, 2, 3)) if maximum else maps.mean(dim=(1, 2, 3))}

    def figures(self, image: Tensor | None = None, context: Context = Context()) -> dict[str, Tensor]:
        """Shows v of one image, the mean of all draws, clamped to [0, 1]."""
        if image is None:
            return {}
        return {"reconstruction": torch.stack(self.rebuild(image, context.rngs)).mean(dim=0).clamp(0, 1)[0]}
