"""Noise-to-norm: an M-net reconstructs the normal image from one that is half hidden by noise.

"Noise-to-Norm Reconstruction for Industrial Anomaly Detection and Localization", Applied Sciences 2023, 13(22), 12436
(preprint arXiv 2307.02836). The authors published no code that we know of; where the text is silent the values come
from the works that it builds on: SRMNet (the M-net), MIRNet (its fusion), PL4NN (code of Zhao et al., the loss).

A normal image is blended with Gaussian noise and reconstructed by a U-Net that also gets the shrunk input at every
level and fuses the outputs of all levels. At test time the same noise hides a defect as well; loss and map are one
expression. The rows of the paper's tables are `--ablation lambda-0|lambda-0.2|lambda-0.3|lambda-0.4|no-attention`;
`--ablation literal` takes every value as the paper prints it.

Symbols
    u, v           image and reconstruction in [0, 1]     x_0, x    image in [-1, 1], with noise
    eps, lambda    noise, its share                       f_i, g_i  maps of encoder and decoder at level i
    m_i            input of the fusion from level i       l, cs_j   luminance; contrast and structure
    G, G_M         Gaussian mean of a window, the widest  mu, var, cov  weighted by G

Equations (source: text without figures)
    (1) x = (1 - lambda) x_0 + lambda eps                blend
    (2) l = (2 mu_u mu_v + C1) / (mu_u^2 + mu_v^2 + C1)  loss.ms_ssim_l1, losses.ssim_factors
    (3) mu_u = G u                                       loss.ms_ssim_l1, losses.local_mean
    (4) cs = (2 cov_uv + C2) / (var_u + var_v + C2)      loss.ms_ssim_l1, losses.ssim_factors
    (5) var_u = G u^2 - mu_u^2                           loss.ms_ssim_l1, losses.ssim_factors
    (6) cov_uv = G (u v) - mu_u mu_v                     loss.ms_ssim_l1, losses.ssim_factors
    (7) MS-SSIM = l_M prod_j cs_j                        loss.ms_ssim_l1
    (8) L_MS-SSIM = 1 - MS-SSIM                          NoiseToNorm.loss, NoiseToNorm.map_of
    (9) L = alpha L_MS-SSIM + (1 - alpha) G_M |u - v|    NoiseToNorm.loss, NoiseToNorm.map_of, loss.ms_ssim_l1

Algorithms and tables (the network has no numbered equation)
    (Encoder) f_i = B_i[Down f_(i-1), S(x shrunk i times)]  network.MNet.forward
    (Decoder) g_i = D_i[Up g_(i+1), conv f_i], the last f_i  network.MNet.forward
    (Residual attention) r + a v, a from the mean of v   network.ResidualAttention.forward
    (Fusion) sum_i softmax_i(A_i z) m_i                  selective_kernel.SelectiveKernelFusion.forward
    (Table of noise shares) lambda 0, 0.2, 0.3, 0.4      ABLATIONS
    (Table 5) without residual attention                 ABLATIONS

An audit should know
    The rate 1e-6, annealed to 1e-6, is constant, and hardly moves the network.
    A cosine of period 100 in up to 500 epochs makes the rate rise again after epoch 100.
    Noise of mean 0.5 is added to images in [-1, 1]: it pulls the image towards 0.75 of [0, 1], not mid grey.
    Its MS-SSIM is not the one in common packages: five windows at full resolution, no pyramid; constants not squared.
    The fusion that it calls spatial has one weight for each channel.
    The module behind its last ablation is only described, and the body of that table is lost: 66.26 and 88.86 are
    computed from the text's gains.

Not built
    The attention block of the missing figure, beyond four readings of the text.
    The methods that the tables of MPDD and VisA compare with.
"""

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from adref.method import Context, EarlyStop, Method, Sources, Stage, training_length
from adref.methods.noise_to_norm.loss import ms_ssim_l1
from adref.methods.noise_to_norm.network import MNet
from adref.methods.noise_to_norm.options import ABLATIONS, PRESETS, Options, check
from adref.ops.losses import channel_signs
from adref.options import Notice

NOISE_MEAN, NOISE_STD = 0.5, 0.5  # section Method
ALPHA = 0.84  # share of MS-SSIM in the loss: Zhao et al.
LEAST_RATE, COSINE_EPOCHS = 1e-6, 100  # end and half period of the cosine: section Experiments
VALIDATION_SHARE = 0.2  # of the training images: section Experiments


class Batch(NamedTuple):
    clean: Tensor  # (B, 3, H, W) in [0, 1]
    corrupted: Tensor  # (B, 3, H, W), with noise; may leave [0, 1]


def corrupt(image: Tensor, rng: np.random.Generator, options: Options, sources: Sources) -> Batch:
    """Blends an image (3, H, W) in [0, 1] with fresh noise."""
    return Batch(image, blend(image, draw_noise(rng, tuple(image.shape)), options))


def draw_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    """Draws eps, float32 of a shape (3, H, W), from a generator that numpy has frozen, seeded by one draw of `rng`."""
    frozen = np.random.RandomState(int(rng.integers(2**32)))
    return torch.from_numpy(frozen.normal(NOISE_MEAN, NOISE_STD, shape)).float()


def blend(images: Tensor, noise: Tensor, options: Options) -> Tensor:
    """Computes equation 1 in the range of the image: (1 - lambda) u + lambda n, not clipped.

    n is (eps + 1) / 2 where eps belongs to [-1, 1], and eps itself where it belongs to [0, 1] (`noise_domain`).
    """
    noise = (noise + 1) / 2 if options.noise_domain == "normalised" else noise
    return (1 - options.noise_share) * images + options.noise_share * noise


class NoiseToNorm(Method):
    """Hides a part of the image in noise, reconstructs it, and compares."""

    Options = Options
    presets = PRESETS
    ablations = ABLATIONS
    changeable = ("map_alpha", "ssim_constants", "noise_repeats")
    corrupt = staticmethod(corrupt)

    def __init__(self, options: Options = Options()):
        super().__init__(options)
        o = self.options
        check(o)
        share = VALIDATION_SHARE if o.monitor == "validation" else 0.0
        stop = None if o.patience is None else EarlyStop(o.patience, share)
        self.stages = (Stage("train", *training_length(o.epochs, o.steps), early_stop=stop),)
        self.network = MNet(width=o.width, levels=o.levels, kind=o.block, level0=o.block_level0, padding=o.padding)

    def forward(self, noisy: Tensor) -> Tensor:
        """Maps (B, 3, H, W), [0, 1] and beyond, to v in the same range; the network works in [-1, 1]."""
        return (self.network(2 * noisy - 1).float() + 1) / 2

    def compare(self, images: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the MS-SSIM and the error that equation 9 mixes, of two (B, 3, H, W): (B, 1, H, W) each."""
        constants = (0.01, 0.03) if self.options.ssim_constants == "printed" else (0.01**2, 0.03**2)
        return ms_ssim_l1(reconstruction, images, sigmas=self.options.sigmas, constants=constants)

    def loss(self, batch: Batch, stage: str = "train") -> dict[str, Tensor]:
        """Computes equation 9: the weighted "ms_ssim" and "l1", and their "total"."""
        reconstruction = self(batch.corrupted)
        similarity, error = (maps.mean() for maps in self.compare(batch.clean, reconstruction))
        terms = {"ms_ssim": ALPHA * (1 - similarity), "l1": (1 - ALPHA) * error}
        return {**terms, "total": sum(terms.values()), **channel_signs(reconstruction, batch.clean)}

    def optimizer(self, stage: str = "train"):
        """Makes AdamW, whose rate follows a cosine from `learning_rate` to LEAST_RATE, and back."""
        o = self.options
        if o.learning_rate <= LEAST_RATE:
            text = f"the learning rate does not fall: it goes from {o.learning_rate:g} to {LEAST_RATE:g}"
            warnings.warn(f"{text}; at so small a rate the network hardly moves", Notice, stacklevel=2)
        optimizer = torch.optim.AdamW(self.parameters(), o.learning_rate, betas=(0.5, 0.999), weight_decay=0.01)

        # In steps the cosine has the share of the length that it has in epochs.
        period = COSINE_EPOCHS if o.steps is None else COSINE_EPOCHS * o.steps / max(1, o.epochs)

        def factor(count: int) -> float:
            count = min(count, period) if o.hold_after_cosine else count
            share = (1 + math.cos(math.pi * count / period)) / 2
            return (LEAST_RATE + (o.learning_rate - LEAST_RATE) * share) / o.learning_rate

        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def anomaly_map(self, images: Tensor, context: Context = Context()) -> Tensor:
        """Computes equation 9 of each pixel: (B, 3, H, W) in [0, 1], sides multiples of 2^(levels - 1) -> (B, 1, H, W).

        `context.rngs` has a random stream for the noise of each image; None: all images get the same noise.
        """
        return self.map_of(images, self.reconstruct(images, context.rngs))

    def reconstruct(self, images: Tensor, rngs: Sequence[np.random.Generator] | None) -> Tensor:
        """Blends images with noise and reconstructs them: the mean of all draws, (B, 3, H, W)."""
        o = self.options
        images = self.admit(images, 2 ** (o.levels - 1))
        rngs = [np.random.Generator(np.random.PCG64(0)) for _ in images] if rngs is None else rngs
        if len(rngs) != len(images):
            raise ValueError(f"expected one stream for each of {len(images)} images, got {len(rngs)}")
        draws = range(o.noise_repeats if o.noise_share else 1)
        noises = ([draw_noise(rng, tuple(images.shape[1:])) for rng in rngs] for _ in draws)
        return torch.stack([self(blend(images, torch.stack(n).to(images), o)) for n in noises]).mean(dim=0)

    def map_of(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        """Computes equation 9 of each pixel of (B, 3, H, W) each, with `map_alpha` for alpha: (B, 1, H, W)."""
        similarity, error = self.compare(images, reconstruction)
        return self.options.map_alpha * (1 - similarity) + (1 - self.options.map_alpha) * error

    def figures(self, image: Tensor | None = None, context: Context = Context()) -> dict[str, Tensor]:
        """Shows v of one image, the mean of all draws, clamped to [0, 1]."""
        return {} if image is None else {"reconstruction": self.reconstruct(image, context.rngs).clamp(0, 1)[0]}
