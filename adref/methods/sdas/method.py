"""SDAS: draws anomalous images from a diffusion model of normal ones, whose reverse variance is multiplied by 1 + s.

X. Zhang, M. Xu, X. Zhou, "RealNet: A Feature Selection Network with Realistic Synthetic Anomaly for Anomaly Detection",
CVPR 2024 (arXiv 2403.05897), section on strength-controllable diffusion anomaly synthesis. Code of the authors:
github.com/cnulab/RealNet (commit ab75012), called "code" below. Source: HTML text without formulas; all equations are
reconstructed from its words, the code and the works that it builds on: DDPM (Ho et al., 2020), improved DDPM (Nichol,
Dhariwal, 2021), guided diffusion (Dhariwal, Nichol, 2021), DDIM (Song et al., 2021). They have names here, because the
article's numbers are not known, but for (S1).

A diffusion model learns the normal images of one or of many categories. Sampled with more variance it draws whole
images that depart from them; `python -m adref.synthesize RUN` writes them to files, and `realnet` blends them into
normal images. It scores no images.

An audit should know
- s multiplies the variance, hence sqrt(1 + s) the standard deviation, in text and code.
- At t = 50 of 20 steps the learned variance spans a factor of 300, and the last step, which follows, removes noise of
  std 0.01 at most: grainy images at s = 0 mean that variance or average are not trained yet.
- The loss weighs a sum over all T steps by 0.001; the loss of one drawn step therefore weighs 0.001 T = 1.
- With the code's fixed decay 23 % of the first weights are still in the average after 14,560 updates: harmless from
  ImageNet weights, useless from random ones.

Symbols
    x_0, x_t, t    image in [-1, 1], noisy image, step           beta, abar    noise of a step, product of 1 - beta
    eps, v         predicted noise, predicted variance           btilde        variance of q(x_{t-1} | x_t, x_0)
    s              strength of the anomaly                       Sigma         variance of a reverse step

Equations
    (forward process) x_t = sqrt(abar) x_0 + sqrt(1 - abar) noise                              SDAS.loss
    (posterior) q(x_{t-1} | x_t, x_0) = N(c1 x_0 + c2 x_t, btilde)                             schedule.schedule_of
    (mean) x_0 = (x_t - sqrt(1 - abar) eps) / sqrt(abar), mu = c1 x_0 + c2 x_t; sampling clamps x_0
                                                                                 SDAS.variational, SDAS.sample, clamped
    (S1) Sigma = exp(v log beta + (1 - v) log btilde), by default (v + 1) / 2 for v            SDAS.log_variance
    (variational term) L_t = KL(q || N(mu, Sigma)), L_0 = -log p(x_0 | mu, Sigma)              SDAS.variational
    (loss) L = |noise - eps|^2 + lambda sum_t L_t                                              SDAS.loss
    (perturbed step) x_{t-1} = mu + sqrt((1 + s) Sigma) noise                                  SDAS.sample
    (perturbed DDIM step) x_{t-1} = sqrt(abar_{t-1}) x_0 + sqrt(1 - abar_{t-1}) eps + sqrt(s V) noise
                                                                                               SDAS.sample

Algorithms and tables
    (Algorithm 1) perturbed ancestral sampling                                                 SDAS.sample
    (Algorithm S1) perturbed DDIM sampling                                                     SDAS.sample

Not built
    Table S6 (no values in the source), DDIM with eta above 0, other spacings of the steps.
    DDIM's inversion, by which the authors judge when training may stop.
"""

import copy
import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adref.layers.diffusion_unet import DiffusionUNet, NoisyClassifier
from adref.layers.published import load_published, published_state
from adref.method import Sampler, Sources, Stage
from adref.methods.sdas.options import ABLATIONS, PRESETS, SAMPLING, STEPS, Options, check, classes_of
from adref.methods.sdas.schedule import Schedule, at, linear_betas, respace, schedule_of, spaced_steps
from adref.options import Notice, UserError

VLB_WEIGHT = 0.001  # lambda of the loss (section on SDAS)
CLIP = 1.0  # largest norm of the gradient; 0: any (code)
EMA_DECAY = 0.9999  # of the moving average of the weights, which samples (code)


class Batch(NamedTuple):
    image: Tensor  # x_0, (B, 3, H, W) in [-1, 1]
    noise: Tensor  # (B, 3, H, W), standard normal
    step: Tensor  # t, (B,) int64 below T
    label: Tensor  # (B,) int64, index of the category in `Options.categories`


def corrupt(image: Tensor, rng: np.random.Generator, options: Options, sources: Sources) -> Batch:
    """Draws a uniform step and noise for an image (3, H, W) in [0, 1], and looks up its category's label."""
    label = options.categories.index(sources.categories[sources.index]) if classes_of(options) else 0
    step = torch.tensor(int(rng.integers(STEPS)))
    noise = torch.from_numpy(rng.standard_normal(image.shape, np.float32))
    return Batch(2 * image - 1, noise, step, torch.tensor(label))


class SDAS(Sampler):
    """A diffusion model of normal images, and its samplers."""

    Options = Options
    presets = PRESETS
    ablations = ABLATIONS
    changeable = SAMPLING
    corrupt = staticmethod(corrupt)

    def __init__(self, options: Options = Options()):
        super().__init__(options)
        check(o := self.options)
        self.classes = classes_of(o)
        form = {"multipliers": o.multipliers, "blocks": o.blocks, "attention": o.attention_factors,
                "head_width": o.head_width, "groups": o.groups}  # fmt: skip
        self.network = DiffusionUNet(width=o.width, classes=self.classes, **form)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.classifier = None
        self.stages = (Stage("train", o.steps, "steps", parts=o.accumulation),)
        if o.classifier_steps:
            self.classifier = NoisyClassifier(self.classes, o.size, width=o.classifier_width, **form)
            self.stages += (Stage("classify", o.classifier_steps, "steps", parts=o.accumulation),)
        self.schedule = schedule_of(linear_betas(STEPS))

    def loss(self, batch: Batch, stage: str = "train") -> dict[str, Tensor]:
        """Computes the loss at the drawn steps ("simple", "vlb" unweighted, "total"), or the classifier's loss."""
        abar = self.schedule.abar
        noisy = at(abar.sqrt(), batch.step) * batch.image + at((1 - abar).sqrt(), batch.step) * batch.noise  # x_t
        if stage == "classify":
            total = F.cross_entropy(self.classifier(noisy, batch.step).float(), batch.label)
            return {"cross_entropy": total, "total": total}
        eps, v = self.network(noisy, batch.step, batch.label if self.classes else None).float().chunk(2, dim=1)
        simple = F.mse_loss(eps, batch.noise)
        vlb = self.variational(batch.image, noisy, batch.step, eps.detach(), v).mean()
        weight = VLB_WEIGHT * (len(abar) if self.options.vlb_weight_mode == "sum" else 1)  # lambda T or lambda
        return {"simple": simple, "vlb": vlb, "total": simple + weight * vlb}

    def log_variance(self, v: Tensor, log_beta: Tensor | float, log_variance: Tensor | float) -> Tensor:
        """Computes log Sigma from the raw output v and the logarithms of its two ends."""
        share = (v + 1) / 2 if self.options.variance == "half_shift" else v
        return share * log_beta + (1 - share) * log_variance

    def variational(self, image: Tensor, noisy: Tensor, step: Tensor, eps: Tensor, v: Tensor) -> Tensor:
        """Computes L_t at each image's step: (B,), a mean over pixels and channels, in bits."""
        table, inverse = self.schedule, 1 / self.schedule.abar
        log_beta, true_log, c1, c2 = (at(t, step) for t in (table.beta.log(), table.log_variance, table.c1, table.c2))
        log_variance = self.log_variance(v, log_beta, true_log)
        guess = at(inverse.sqrt(), step) * noisy - at((inverse - 1).sqrt(), step) * eps  # of x_0, not clamped
        mean, true_mean = c1 * guess + c2 * noisy, c1 * image + c2 * noisy
        kl = true_log - log_variance
        kl = 0.5 * (kl.exp() - kl - 1 + (true_mean - mean) ** 2 * (-log_variance).exp())
        first = -log_likelihood(image, mean, 0.5 * log_variance)
        return torch.where(step[:, None, None, None] == 0, first, kl).mean(dim=(1, 2, 3)) / math.log(2)

    def optimizer(self, stage: str = "train"):
        """Makes Adam at a constant rate; each step updates the moving average of the weights."""
        network = self.network if stage == "train" else self.classifier
        optimizer = torch.optim.Adam(network.parameters(), lr=self.options.learning_rate)
        if stage == "train":
            optimizer.register_step_post_hook(lambda *_: self.update_average())
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)

    def after_backward(self, stage: str, last: bool) -> None:
        """Clips the norm of the gradient, once or after every part of the batch.

        The gradient of n equal parts is their mean, 1 / n of the code's sum: clipped at 1 / n, it has the code's
        direction. The last, smaller batch of an epoch has parts that weigh by their size.
        """
        o, by_code = self.options, self.options.accumulation_rule == "code"
        if CLIP and (last or by_code):
            network = self.network if stage == "train" else self.classifier
            torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP / (o.accumulation if by_code else 1))

    @torch.no_grad()
    def update_average(self) -> None:
        """Updates the moving average of the weights: decay d, or min(d, (1 + n) / (10 + n)) after n updates."""
        self.updates += 1
        share = torch.full_like(self.updates, 1 - EMA_DECAY, dtype=torch.float64)  # of the new weights
        if self.options.ema_warmup:
            share = (9 / (10 + self.updates.double())).clamp(min=share)  # 1 - (1 + n) / (10 + n)
        share = share.to(next(self.network.parameters()).dtype)
        for average, new in zip(self.average.parameters(), self.network.parameters()):
            average.lerp_(new, share)

    def load_weights(self, states: list[dict], part: str = "method") -> None:
        """Loads weights of guided diffusion (256x256_diffusion.pt) or the authors, then a classifier (DEVIATIONS)."""
        networks = [n for n in (self.network, self.classifier) if n is not None]
        if not 1 <= len(states) <= len(networks):
            raise UserError(f"--weights takes {len(networks)} file(s) at most for sdas; got {len(states)}")
        table = "label_emb.weight"
        try:
            for network, state in zip(networks, states):
                state, ours = published_state(state, "a file is no dictionary of tensors"), network.state_dict()
                theirs, here = (tuple(t[table].shape) if table in t else "none" for t in (state, ours))
                if theirs != here:
                    warnings.warn(f"--weights: {table} is {theirs} in the file, {here} here: not loaded", Notice, 2)
                    state = {key: value for key, value in state.items() if key != table}
                    state |= {table: ours[table]} if table in ours else {}
                load_published(network, state, "a network of guided diffusion")
        except ValueError as error:
            raise UserError(f"--weights: {error}") from None
        self.average.load_state_dict(self.network.state_dict())

    @torch.no_grad()
    def sample(self, labels: Sequence[int], rngs: Sequence, strengths: Sequence[float]):
        """Draws images (B, 3, H, W) in about [-1, 1], not clipped, by the averaged weights: Algorithm 1 or S1.

        `labels` (indices of the categories, ignored by a model without labels), `rngs` and `strengths` (s) have
        an item for each image.
        """
        o, table, device = self.options, self.sampling_schedule(), next(self.average.parameters()).device
        label = torch.tensor(list(labels), device=device)
        s = torch.tensor(list(strengths), device=device, dtype=torch.float32)[:, None, None, None]

        def noise() -> Tensor:
            return torch.from_numpy(np.stack([r.standard_normal((3, *o.size), np.float32) for r in rngs])).to(device)

        x = noise()
        for j in reversed(range(len(table.steps))):
            beta, abar, before, _, log_least, c1, c2 = (float(row[j]) for row in table[1:])
            step = table.steps[j].to(device).expand(len(x))
            eps, v = self.average(x, step, label if self.classes else None).float().chunk(2, dim=1)
            log_variance = self.log_variance(v, math.log(beta), log_least)
            guess, eps = clamped(x, eps, abar)
            if o.sampler == "ancestral":
                mean = c1 * guess + c2 * x
                if o.guidance_scale:
                    mean = mean + o.guidance_scale * log_variance.exp() * self.classifier_gradient(x, step, label)
                spread = ((1 + s) * log_variance.exp()).sqrt()  # the perturbed step
            else:
                if o.guidance_scale:
                    eps = eps - math.sqrt(1 - abar) * o.guidance_scale * self.classifier_gradient(x, step, label)
                    guess = (x - math.sqrt(1 - abar) * eps) / math.sqrt(abar)
                mean = math.sqrt(before) * guess + math.sqrt(1 - before) * eps
                fixed = {"ddim-beta": math.log(beta), "ddim-btilde": log_least}.get(o.sampler)
                log_v = log_variance if fixed is None else torch.full_like(v, fixed)
                spread = (s * log_v.exp()).sqrt()  # the perturbed DDIM step
            x = mean if j == 0 else mean + spread * noise()
        return x

    def sample_images(self, labels: Sequence[int], rngs: Sequence, strengths: Sequence[float]) -> Tensor:
        """Draws images by `sample` as uint8 (B, 3, H, W)."""
        return to_bytes(self.sample(labels, rngs, strengths))

    @property
    def labels(self) -> list[str]:
        """The categories; "all" for a model of several categories without labels."""
        return list(self.options.categories) if self.classes or len(self.options.categories) == 1 else ["all"]

    def classifier_gradient(self, x: Tensor, step: Tensor, label: Tensor) -> Tensor:
        """Computes the gradient of the classifier's log-probability of the label: (B, 3, H, W)."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            chosen = self.classifier(x, step).float().log_softmax(dim=1).gather(1, label[:, None])
            return torch.autograd.grad(chosen.sum(), x)[0]

    def sampling_schedule(self) -> Schedule:
        """Returns the schedule of the reverse steps."""
        return respace(self.schedule, spaced_steps(len(self.schedule.steps), self.options.sampling_steps))


def clamped(x: Tensor, eps: Tensor, abar: float) -> tuple[Tensor, Tensor]:
    """Computes x_0 of the mean, clamped to [-1, 1], and the noise that it implies: (B, 3, H, W) all."""
    guess = ((x - math.sqrt(1 - abar) * eps) / math.sqrt(abar)).clamp(-1, 1)
    return guess, (x - math.sqrt(abar) * guess) / math.sqrt(1 - abar)


def log_likelihood(image: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Computes the log-probability of 8-bit values, scaled to [-1, 1], under Gaussians, element by element.

    A value covers 1 / 255 to both sides, the lowest and the highest all beyond. The distribution function is
    approximated as in the code; probabilities are 1e-12 at least.
    """
    precision = (-log_scale).exp()

    def below(x: Tensor) -> Tensor:
        z = precision * (x - mean)
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    upper = torch.where(image > 0.999, torch.ones_like(image), below(image + 1 / 255))
    lower = torch.where(image < -0.999, torch.zeros_like(image), below(image - 1 / 255))
    return (upper - lower).clamp_min(1e-12).log()


def to_bytes(images: Tensor) -> Tensor:
    """Converts images of `sample` to uint8: 127.5 (x + 1), clipped and truncated."""
    return (127.5 * (images + 1)).clamp(0, 255).byte()
