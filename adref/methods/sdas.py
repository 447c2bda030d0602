"""SDAS: anomalous pictures from a diffusion model of normal ones, by a little too much noise on the way back.

X. Zhang, M. Xu, X. Zhou, "RealNet: A Feature Selection Network with Realistic Synthetic Anomaly for Anomaly Detection",
CVPR 2024 (arXiv 2403.05897), section on strength-controllable diffusion anomaly synthesis. Code of the authors:
github.com/cnulab/RealNet (commit ab75012), called "code". The text that was at hand had lost its formulas; they are
reconstructed from its words, the code and the works that it builds on: DDPM (Ho et al., 2020), improved DDPM (Nichol,
Dhariwal, 2021), guided diffusion (Dhariwal, Nichol, 2021), DDIM (Song et al., 2021).

A diffusion model learns the normal pictures of one or of many categories. Sampled with its reverse variance multiplied
by 1 + s, it makes whole pictures that depart from them; `python -m adref.synthesize RUN` writes them as files, and
`realnet` blends their pixels into normal images. It is a model of pictures and scores none.

What an audit should know before it trusts the article:
- s multiplies the variance, hence sqrt(1 + s) the standard deviation, in text and code alike (equation 7).
- At t = 50 of 20 steps the upper end of the learned variance is 300 times the lower one, and the last step that follows
  removes noise of std 0.01 at most: grainy samples at s = 0 mean that variance or average are not trained yet.
- Equation 6 weighs a sum over all T steps with 0.001; the loss of one drawn step therefore weighs 0.001 T = 1 (D6).
- With the code's fixed decay 23 % of the first weights are still in the average after 14,560 updates: harmless from
  ImageNet weights, useless from random ones (D9).

Symbols
    x_0, x_t, t    image in [-1, 1], noisy image, step           beta, abar    noise of a step, product of 1 - beta
    eps, v         predicted noise, predicted variance           btilde        variance of q(x_{t-1} | x_t, x_0)
    s              strength of the anomaly                       Sigma         variance of a step back

Equations (reconstructed, numbered here)
    (1) x_t = sqrt(abar) x_0 + sqrt(1 - abar) noise                          SDAS.loss
    (2) q(x_{t-1} | x_t, x_0) = N(c1 x_0 + c2 x_t, btilde)                   schedule_of
    (3) x_0 = (x_t - sqrt(1 - abar) eps) / sqrt(abar), mu = c1 x_0 + c2 x_t; x_0 is clamped in sampling
                                                                             SDAS.variational, SDAS.sample
    (4) Sigma = exp(f log beta + (1 - f) log btilde), f = (v + 1) / 2        SDAS.log_variance
    (5) L_t = KL(q || N(mu, Sigma)), L_0 = -log p(x_0 | mu, Sigma)           SDAS.variational
    (6) L = |noise - eps|^2 + lambda sum_t L_t                               SDAS.loss
    (7) x_{t-1} = mu + sqrt((1 + s) Sigma) noise                             SDAS.sample
    (8) eta = 0: x_{t-1} = sqrt(abar_{t-1}) x_0 + sqrt(1 - abar_{t-1}) eps + sqrt(s V) noise   SDAS.sample

Algorithms and tables
    (Algorithm 1) the perturbed way back, step by step                       SDAS.sample
    (Algorithm S1) the same on DDIM's deterministic steps                    SDAS.sample

Not built
    Table S6, whose values are not in the text at hand; adref.study synthesis has Frechet distances, no perceptual ones.
"""

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adref.layers.backbone import published_state
from adref.layers.diffusion_unet import DiffusionUNet, NoisyClassifier
from adref.method import Deviation, Sources, Trainable
from adref.options import Notice, UserError, flag, option


@dataclass(frozen=True)
class Options:
    """The constants of SDAS; the defaults are the code's for MVTec AD, at full size."""

    size: tuple[int, int] = option((256, 256), "height,width of the pictures", "code", (8, 65536))
    resize: Literal["antialias", "bilinear"] = option("antialias", "filter that brings a picture to --size", "code")
    categories: tuple[str, ...] = option((), "names of the categories, by the alphabet", "--category", is_flag=False)
    conditional: bool = option(True, "a label for each of several categories; false: one model without labels", "D4")
    width: int = option(256, "channels of the U-Net at full resolution, a multiple of --groups", "code", (2, math.inf))
    groups: int = option(32, "of every group norm", "code; D15", (1, 4096))
    multipliers: tuple[int, ...] = option(
        (1, 1, 2, 2, 4, 4), "channels of each level, as multiples; each level halves the sides", "code", (1, math.inf)
    )
    blocks: int = option(2, "residual blocks of a level", "code", (1, 64))
    attention_factors: tuple[int, ...] = option((8, 16, 32), "sides are divided by this where it attends", "code; D2")
    head_width: int = option(64, "channels of a head of the attention", "code", (1, math.inf))
    dropout: float = option(0.0, "in residual blocks", "code", (0, 0.99))
    steps: int = option(1000, "T, steps of the diffusion", "code", (2, 1_000_000))
    betas: tuple[float, float] = option((1e-4, 0.02), "first and last beta of 1000 steps", "code", (1e-9, 0.999))
    variance: Literal["half_shift", "direct"] = option(
        "half_shift", "f of equation 4: (v + 1) / 2, or v itself as the text has it", "code; D5"
    )
    vlb_weight: float = option(1e-3, "lambda of the variational term", "section on SDAS", (0, math.inf))
    vlb_weight_mode: Literal["sum", "per_step"] = option(
        "sum", "lambda weighs the sum over all T steps, or the step that is drawn", "code; D6"
    )
    vlb_unit: Literal["bits", "nats"] = option("bits", "unit of the variational term", "code; D6")
    epochs: int = option(240, "passes over the training images", "D1", (0, math.inf))
    batch_size: int = option(60, "images an update", "code: 5 on each of 4 GPUs, 3 times", (1, math.inf))
    accumulation: int = option(12, "parts of a batch, one after the other: memory for time", "D3", (1, math.inf))
    accumulation_rule: Literal["mean", "code"] = option(
        "mean", "the gradient of the whole batch is clipped once, or the sum after every part", "D3"
    )
    learning_rate: float = option(1e-4, "Adam's step size, constant", "code", (0, math.inf))
    clip: float = option(1.0, "largest norm of the gradient; 0: any", "code", (0, math.inf))
    ema_decay: float = option(0.9999, "decay of the average of the weights, which draws", "code", (0, 1))
    ema_warmup: bool = option(True, "a smaller decay in the beginning, (1 + n) / (10 + n)", "D9")
    classifier_width: int = option(128, "width of the classifier that guides", "code", (2, math.inf))
    classifier_epochs: int = option(240, "passes of its training; none where the scale is 0", "D1; D16", (0, math.inf))
    guidance_scale: float = option(0.0, "weight of the classifier's gradient; 0: no classifier", "D8", (0, math.inf))
    # What `python -m adref.synthesize RUN` may set anew:
    strength: tuple[float, ...] = option((0.1, 0.2), "s, or two ends of its range", "section on SDAS", (0, math.inf))
    strength_per: Literal["image", "batch"] = option("image", "for what one s is drawn", "D7")
    sampling_steps: int = option(20, "steps back", "section on SDAS", (1, 1_000_000))
    spacing: Literal["leading", "trailing", "even"] = option(
        "leading", "which of the T steps: 0, 50, ..., 950; 49, ..., 999; or from 0 to 999", "code; D10"
    )
    sampler: Literal["ancestral", "ddim"] = option("ancestral", "equation 7 or 8", "section on SDAS")
    ddim_variance: Literal["learned", "beta", "beta_tilde"] = option("learned", "V of equation 8", "code; D11")
    ddim_eta: float = option(0.0, "randomness of DDIM itself", "code", (0, 1))
    last_steps_fixed_small: int = option(0, "last steps that take btilde for Sigma", "D12", (0, 1_000_000))
    draw_batch: int = option(16, "pictures drawn at a time", "code", (1, math.inf))
    file_format: Literal["png", "jpeg75"] = option("png", "files of the pictures", "D13")


SAMPLING = ("strength", "strength_per", "sampling_steps", "spacing", "sampler", "ddim_variance", "ddim_eta",
            "last_steps_fixed_small", "guidance_scale", "draw_batch", "file_format")  # fmt: skip

PRESETS = {
    "paper": {},
    # The published multipliers for 64 pixels; one GPU or patience.
    "64": {
        "size": (64, 64),
        "width": 64,
        "multipliers": (1, 2, 3, 4),
        "attention_factors": (4, 8),
        "batch_size": 32,
        "accumulation": 1,
    },
    "tiny": {
        "size": (64, 64),
        "width": 32,
        "multipliers": (1, 2, 2, 4),
        "attention_factors": (4, 8),
        "head_width": 32,
        "groups": 8,
        "epochs": 50,
        "batch_size": 8,
        "accumulation": 1,
        "learning_rate": 5e-4,
        "classifier_width": 32,
        "classifier_epochs": 20,
    },
}

ABLATIONS = {
    "code": {
        "accumulation": 3,
        "accumulation_rule": "code",
        "ema_warmup": False,
        "guidance_scale": 1.0,
        "strength_per": "batch",
        "file_format": "jpeg75",
    },
    "unconditional": {"conditional": False},
    "text": {"variance": "direct"},
}


class Batch(NamedTuple):
    image: Tensor  # x_0, (B, 3, H, W) in [-1, 1]
    noise: Tensor  # (B, 3, H, W), standard normal
    step: Tensor  # t, (B,) int64 below T
    label: Tensor  # (B,) int64, place of the category among `Options.categories`


DEVIATIONS = (
    Deviation("D1", "Options.epochs", "silent", "no length", "240 passes",
              "the released MVTec model's; the code runs up to 1000 and its authors stop by eye, others at "
              "120, 375 and 825. For the classifier nothing is known"),
    Deviation("D2", "Options.attention_factors", "mistake", "attention at resolutions 32, 16, 8",
              "at sides divided by 8, 16, 32",
              "the code takes the numbers of its configuration for factors, guided diffusion converts "
              "resolutions: both agree at 256 pixels alone"),
    Deviation("D3", "Options.accumulation_rule", "silent", "nothing said",
              "the mean over the batch, clipped once; in 12 parts of 5 images",
              "the code adds three gradients of 20 images and clips what there is after each: 'code', with "
              "--accumulation 3. (It also updates once after the first part alone.) Adam hides the scale, not "
              "the clip"),
    Deviation("D4", "Options.conditional", "silent", "one model or one a category is not said",
              "one model for all categories of --category, with labels", "the code's; a single category has no label"),
    Deviation("D5", "Options.variance", "ambiguous", "Sigma = exp(v log beta + (1 - v) log btilde)",
              "f = (v + 1) / 2, not clamped", "code and guided diffusion, whose weights it starts from"),
    Deviation("D6", "Options.vlb_weight_mode", "ambiguous", "L = L_simple + 0.001 L_vlb",
              "0.001 T = 1 times the term of the drawn step, in bits",
              "L_vlb is a sum over T steps; the code adds the drawn term with weight 1. 'per_step' is the "
              "common mistake"),
    Deviation("D7", "Options.strength_per", "contradiction", "s uniform in [0.1, 0.2]", "one s for each picture",
              "the code draws one for each batch of 16"),
    Deviation("D8", "Options.guidance_scale", "contradiction", "no word of guidance", "none",
              "the code guides with scale 1 unless told not to; its authors call it unnecessary"),
    Deviation("D9", "Options.ema_warmup", "substitution", "as in guided diffusion",
              "decay min(0.9999, (1 + n)/(10 + n))",
              "a fixed decay keeps 91 % of random first weights after 1000 updates; from ImageNet weights it "
              "is harmless"),
    Deviation("D10", "Options.spacing", "silent", "20 steps", "0, 50, ..., 950, which the network is given",
              "the code's 'ddim20', for both samplers: it never starts from t = 999"),
    Deviation("D11", "Options.ddim_variance", "ambiguous", "three variances for DDIM", "the learned one",
              "which three is reconstructed; the code has this one alone, and strengths of 0.01 to 0.03"),
    Deviation("D12", "Options.last_steps_fixed_small", "substitution", "nothing", "0",
              "an addition, off: little training leaves too much variance in the last steps, which shows as grain"),
    Deviation("D13", "Options.file_format", "contradiction", "no format", "PNG",
              "the code writes JPEG of quality 75, whose blocks an anomaly detector could learn"),
    Deviation("D14", "SDAS.load_weights", "mistake", "starts from ImageNet weights",
              "all must fit but the table of labels, which is then named",
              "the code skips what does not fit without a word: its table of labels stays random"),
    Deviation("D15", "Options.groups", "substitution", "32 groups, as in guided diffusion", "32; tiny: 8",
              "32 channels in 32 groups are normalised one by one: the network cannot tell the mean of the "
              "noise, which at the first step back counts 97 times in x_0, and every picture gets a hue of its " "own"),
    Deviation("D16", "Options.classifier_epochs", "substitution", "no word of a classifier",
              "it trains on the batches, at the rate and with the clipping of the diffusion model",
              "the code has batches of 20 on each of two GPUs, the rest alike, and starts from "
              "256x256_classifier.pt"),
)  # fmt: skip


# -- tables -----------------------------------------------------------------------------------------------------------


class Schedule(NamedTuple):
    """What a diffusion does at each of its steps; (n,) float64 each."""

    steps: Tensor  # the original steps, int64, which the network is given
    beta: Tensor
    abar: Tensor  # product of 1 - beta up to this step
    abar_before: Tensor  # up to the one before, 1 at the first
    variance: Tensor  # btilde, 0 at the first
    log_variance: Tensor  # log btilde; at the first, that of the second
    c1: Tensor
    c2: Tensor


def linear_betas(steps: int = 1000, ends: tuple[float, float] = (1e-4, 0.02)) -> Tensor:
    """Evenly spaced betas, (steps,) float64; the ends are those of 1000 steps and scale with 1000 / steps."""
    return torch.linspace(*(1000 / steps * end for end in ends), steps, dtype=torch.float64)


def schedule_of(beta: Tensor, steps: Tensor | None = None) -> Schedule:
    """All tables of a diffusion, equation 2, from its betas (n,).

    btilde = beta (1 - abar') / (1 - abar),  c1 = beta sqrt(abar') / (1 - abar),
    c2 = (1 - abar') sqrt(1 - beta) / (1 - abar),   abar' the product up to the step before
    """
    abar = torch.cumprod(1 - beta, dim=0)
    before = torch.cat((abar.new_ones(1), abar[:-1]))
    variance = beta * (1 - before) / (1 - abar)
    logs = torch.cat((variance[1:2], variance[1:])).log() if len(beta) > 1 else beta.log()
    c1, c2 = beta * before.sqrt() / (1 - abar), (1 - before) * (1 - beta).sqrt() / (1 - abar)
    return Schedule(torch.arange(len(beta)) if steps is None else steps, beta, abar, before, variance, logs, c1, c2)


def spaced_steps(total: int, count: int, spacing: str = "leading") -> list[int]:
    """`count` of `total` steps, ascending.

    "leading": 0, i, 2 i, ... with the smallest i that gives so many; "trailing": the last step and every i-th before
    it, i = total / count; "even": from the first to the last step, rounded.

    Raises:
        ValueError: more steps than there are, or no whole i.
    """
    if not 1 <= count <= total:
        raise ValueError(f"expected 1 to {total} steps, got {count}")
    if spacing == "leading":
        stride = next((i for i in range(1, total + 1) if len(range(0, total, i)) == count), None)
        if stride is None:
            raise ValueError(f"expected a number of steps that a whole stride gives, got {count} of {total}")
        return list(range(0, total, stride))
    if spacing == "trailing":
        return [round(total - i * total / count) - 1 for i in reversed(range(count))]
    return [round(i * (total - 1) / max(count - 1, 1)) for i in range(count)]


def respace(schedule: Schedule, kept: Sequence[int]) -> Schedule:
    """The diffusion that only visits some steps: its betas keep abar there, 1 - abar(tau_j) / abar(tau_{j-1})."""
    steps = torch.tensor(kept)
    abar = schedule.abar[steps]
    return schedule_of(1 - abar / torch.cat((abar.new_ones(1), abar[:-1])), schedule.steps[steps])


def at(table: Tensor, index: Tensor) -> Tensor:
    """Values of a table (n,) at indices (B,), as (B, 1, 1, 1) float32. Roots and quotients come before, in float64."""
    return table.to(index.device)[index].float()[:, None, None, None]


# -- one training example ---------------------------------------------------------------------------------------------


def corrupt(image: Tensor, rng: np.random.Generator, options: Options, sources: Sources) -> Batch:
    """One training example: an image, a uniform step, noise, and the label of the image's category.

    Args:
        image: (3, H, W) in [0, 1].
        rng: the stream of this example.
        options: the method's options.
        sources: `index` and `categories` are needed where there are labels.
    """
    label = options.categories.index(sources.categories[sources.index]) if classes_of(options) else 0
    step = int(rng.integers(options.steps))
    noise = torch.from_numpy(rng.standard_normal(image.shape, np.float32))
    return Batch(2 * image - 1, noise, torch.tensor(step), torch.tensor(label))


def classes_of(o: Options) -> int:
    """How many labels there are; 0: none, as a single category needs none."""
    return len(o.categories) if o.conditional and len(o.categories) > 1 else 0


# -- the model --------------------------------------------------------------------------------------------------------


class SDAS(Trainable):
    """A diffusion model of normal pictures, and its samplers."""

    Options = Options
    presets = PRESETS
    ablations = ABLATIONS
    deviations = DEVIATIONS
    many_categories = True
    sampling = SAMPLING
    corrupt = staticmethod(corrupt)

    def __init__(self, options: Options = Options()):  # noqa: B008  frozen
        super().__init__(options)
        check(o := self.options)
        self.classes = classes_of(o)  # D4
        form = {"multipliers": o.multipliers, "blocks": o.blocks, "head_width": o.head_width}
        form |= {"attention": o.attention_factors, "groups": o.groups}  # D2, D15
        self.network = DiffusionUNet(o.width, classes=self.classes, dropout=o.dropout, **form)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.classifier = None
        if o.guidance_scale > 0:  # D8
            self.classifier = NoisyClassifier(self.classes, o.size, o.classifier_width, **form)
        self.stages = ("train", "classify") if self.classifier is not None else ("train",)
        self.schedule = schedule_of(linear_betas(o.steps, o.betas))

    # -- training

    def epochs(self, stage: str = "train") -> int:
        """Length of a stage, in passes (D1)."""
        return self.options.epochs if stage == "train" else self.options.classifier_epochs

    def loss(self, batch: Batch, stage: str = "train") -> dict[str, Tensor]:
        """Equation 6 of a drawn step (D6), terms "simple" and "vlb", the latter unweighted; or cross-entropy.

        "total" is simple + weight vlb, weight = lambda T or lambda.
        """
        o, abar = self.options, self.schedule.abar
        kept, added = at(abar.sqrt(), batch.step), at((1 - abar).sqrt(), batch.step)
        noisy = kept * batch.image + added * batch.noise  # equation 1
        if stage == "classify":
            total = F.cross_entropy(self.classifier(noisy, batch.step).float(), batch.label)
            return {"cross_entropy": total, "total": total}
        labels = batch.label if self.classes else None
        eps, v = self.network(noisy, batch.step, labels).float().chunk(2, dim=1)
        simple = F.mse_loss(eps, batch.noise)
        vlb = self.variational(batch.image, noisy, batch.step, eps.detach(), v).mean()
        weight = o.vlb_weight * (o.steps if o.vlb_weight_mode == "sum" else 1)
        return {"simple": simple, "vlb": vlb, "total": simple + weight * vlb}

    def log_variance(self, v: Tensor, log_beta: Tensor | float, log_variance: Tensor | float) -> Tensor:
        """Equation 4: log Sigma from the raw output v and the logarithms of its two ends (D5)."""
        share = (v + 1) / 2 if self.options.variance == "half_shift" else v
        return share * log_beta + (1 - share) * log_variance

    def variational(self, image: Tensor, noisy: Tensor, step: Tensor, eps: Tensor, v: Tensor) -> Tensor:
        """Equation 5 at each image's step: (B,), a mean over pixels and channels, in `vlb_unit`s.

        L_0 is the likelihood of 8-bit values: of the Gaussian, between 1 / 255 below and above; the lowest and the
        highest value take all that lies beyond. x_0 of equation 3 is not clamped here.
        """
        table = self.schedule
        log_variance = self.log_variance(v, at(table.beta.log(), step), at(table.log_variance, step))
        inverse = 1 / table.abar
        guess = at(inverse.sqrt(), step) * noisy - at((inverse - 1).sqrt(), step) * eps  # equation 3
        c1, c2 = at(table.c1, step), at(table.c2, step)
        mean, true_mean = c1 * guess + c2 * noisy, c1 * image + c2 * noisy
        true_log = at(table.log_variance, step)
        kl = true_log - log_variance
        kl = 0.5 * (kl.exp() - kl - 1 + (true_mean - mean) ** 2 * (-log_variance).exp())
        first = -log_likelihood(image, mean, 0.5 * log_variance)
        terms = torch.where(step[:, None, None, None] == 0, first, kl).mean(dim=(1, 2, 3))
        return terms / math.log(2) if self.options.vlb_unit == "bits" else terms

    def optimizer(self, stage: str = "train"):
        """Adam at a constant rate."""
        network = self.network if stage == "train" else self.classifier
        optimizer = torch.optim.Adam(network.parameters(), lr=self.options.learning_rate)
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)

    def micro_batches(self, stage: str = "train") -> int:
        """How many parts a batch has (D3)."""
        return self.options.accumulation

    def after_backward(self, stage: str, last: bool) -> None:
        """Clips the norm of the gradient (D3).

        The gradient of n equal parts is their mean, 1 / n of the code's sum: clipped at 1 / n, it has the code's
        direction. The last, smaller batch of an epoch has parts that weigh by their size.
        """
        o = self.options
        by_code = o.accumulation_rule == "code"
        if o.clip and (last or by_code):
            network = self.network if stage == "train" else self.classifier
            torch.nn.utils.clip_grad_norm_(network.parameters(), o.clip / (o.accumulation if by_code else 1))

    @torch.no_grad()
    def after_step(self, stage: str = "train") -> None:
        """The moving average of the weights: decay d, or min(d, (1 + n) / (10 + n)) after n updates (D9)."""
        if stage != "train":
            return
        self.updates += 1
        share = torch.full_like(self.updates, 1 - self.options.ema_decay, dtype=torch.float64)  # of the new weights
        if self.options.ema_warmup:
            share = (9 / (10 + self.updates.double())).clamp(min=share)  # 1 - (1 + n) / (10 + n)
        share = share.to(next(self.network.parameters()).dtype)
        for average, own in zip(self.average.parameters(), self.network.parameters()):
            average.lerp_(own, share)

    def load_weights(self, states: list[dict]) -> None:
        """Public weights of guided diffusion, `256x256_diffusion.pt` or the authors' files; then of its classifier.

        A table of labels that does not fit is left as it is and named in a notice (D14).

        Raises:
            UserError: another number of files, or keys that do not fit.
        """
        networks = [n for n in (self.network, self.classifier) if n is not None]
        if not 1 <= len(states) <= len(networks):
            raise UserError(f"--weights takes {len(networks)} file(s) at most for sdas; got {len(states)}")
        for network, state in zip(networks, states):
            load_public(network, state)
        self.average.load_state_dict(self.network.state_dict())

    # -- sampling

    @torch.no_grad()
    def sample(
        self,
        labels: Sequence[int],
        rngs: Sequence[np.random.Generator],
        strengths: Sequence[float],
        start: Tensor | None = None,
    ) -> Tensor:
        """Pictures from noise, drawn by the averaged weights with the perturbed reverse process (equations 3, 7, 8).

        Algorithm 1; with `sampler` "ddim" Algorithm S1.

        Every step but the last adds noise. DDIM computes eps anew from the clamped x_0, and adds one noise twice where
        `ddim_eta` is above 0, as the code does.

        Args:
            labels: place of the category of each picture; they tell nothing to a model without labels.
            rngs: the stream of each.
            strengths: s of each.
            start: the noise to begin with, (B, 3, H, W), as from `invert`; None: drawn.

        Returns:
            (B, 3, H, W) in about [-1, 1], not clipped.
        """
        o, table = self.options, self.sampling_schedule()
        device = next(self.average.parameters()).device
        label = torch.tensor(list(labels), device=device)
        s = torch.tensor(list(strengths), device=device, dtype=torch.float32)[:, None, None, None]

        def noise() -> Tensor:
            drawn = [rng.standard_normal((3, *o.size), np.float32) for rng in rngs]
            return torch.from_numpy(np.stack(drawn)).to(device)

        x = noise() if start is None else start
        for j in reversed(range(len(table.steps))):
            beta, abar, before, _, log_least, c1, c2 = (float(row[j]) for row in table[1:])
            step = table.steps[j].to(device).expand(len(x))
            eps, v = self.average(x, step, label if self.classes else None).float().chunk(2, dim=1)
            log_variance = self.log_variance(v, math.log(beta), log_least)
            if j < o.last_steps_fixed_small:  # D12
                log_variance = torch.full_like(v, log_least)
            guess, implied = clamped(x, eps, abar)
            if o.sampler == "ancestral":
                mean = c1 * guess + c2 * x
                if o.guidance_scale:
                    mean = mean + o.guidance_scale * log_variance.exp() * self.classifier_gradient(x, step, label)
                spread = ((1 + s) * log_variance.exp()).sqrt()  # equation 7
            else:
                eps = implied
                if o.guidance_scale:
                    eps = eps - math.sqrt(1 - abar) * o.guidance_scale * self.classifier_gradient(x, step, label)
                    guess = (x - math.sqrt(1 - abar) * eps) / math.sqrt(abar)
                own = o.ddim_eta * math.sqrt((1 - before) / (1 - abar) * (1 - abar / before))
                mean = math.sqrt(before) * guess + math.sqrt(max(1 - before - own**2, 0)) * eps
                fixed = {"beta": math.log(beta), "beta_tilde": log_least}.get(o.ddim_variance)  # D11
                v_t = log_variance if fixed is None else torch.full_like(v, fixed)
                spread = own + (s * v_t.exp()).sqrt()  # equation 8
            x = mean if j == 0 else mean + spread * noise()
        return x

    @torch.no_grad()
    def invert(self, images: Tensor, labels: Sequence[int]) -> Tensor:
        """Noise from which DDIM without noise makes the images: (B, 3, H, W) in [-1, 1] -> the same shape.

        What `sample` makes of it as `start`, with sampler "ddim" and strength 0, looks like the images once the model
        is trained; the authors stop their training by that.
        """
        table, x = self.sampling_schedule(), images
        label = torch.tensor(list(labels), device=x.device)
        after = torch.cat((table.abar[1:], table.abar.new_zeros(1)))
        for j in range(len(table.steps)):
            abar, target = float(table.abar[j]), float(after[j])
            step = table.steps[j].to(x.device).expand(len(x))
            eps = self.average(x, step, label if self.classes else None).float()[:, :3]
            guess, eps = clamped(x, eps, abar)
            x = math.sqrt(target) * guess + math.sqrt(1 - target) * eps
        return x

    def classifier_gradient(self, x: Tensor, step: Tensor, label: Tensor) -> Tensor:
        """The gradient of the classifier's log-probability of the label: (B, 3, H, W)."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            chosen = self.classifier(x, step).float().log_softmax(dim=1).gather(1, label[:, None])
            return torch.autograd.grad(chosen.sum(), x)[0]

    def sampling_schedule(self) -> Schedule:
        """The tables of the steps back (D10)."""
        o = self.options
        return respace(self.schedule, spaced_steps(o.steps, o.sampling_steps, o.spacing))


def clamped(x: Tensor, eps: Tensor, abar: float) -> tuple[Tensor, Tensor]:
    """x_0 of equation 3, clamped to [-1, 1], and the noise that it implies: (B, 3, H, W) all."""
    guess = ((x - math.sqrt(1 - abar) * eps) / math.sqrt(abar)).clamp(-1, 1)
    return guess, (x - math.sqrt(abar) * guess) / math.sqrt(1 - abar)


def log_likelihood(image: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Logarithm of the probability of 8-bit values, scaled to [-1, 1], under Gaussians: element by element.

    The distribution function is 0.5 (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))); probabilities have a floor of 1e-12.
    """
    precision = (-log_scale).exp()

    def below(x: Tensor) -> Tensor:
        z = precision * (x - mean)
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    upper = torch.where(image > 0.999, torch.ones_like(image), below(image + 1 / 255))
    lower = torch.where(image < -0.999, torch.zeros_like(image), below(image - 1 / 255))
    return (upper - lower).clamp_min(1e-12).log()


def to_bytes(pictures: Tensor) -> Tensor:
    """Pictures of `sample` as uint8: 127.5 (x + 1), clipped, cut off."""
    return (127.5 * (pictures + 1)).clamp(0, 255).byte()


def check(o: Options) -> None:
    """Raises UserError for options that do not fit together."""
    stride = 2 ** (len(o.multipliers) - 1)
    if any(side % stride for side in o.size):
        raise UserError(f"--size takes multiples of {stride}, with {len(o.multipliers)} levels; got {o.size}")
    factors = {2**level: o.width * m for level, m in enumerate(o.multipliers)}
    for factor in o.attention_factors:
        if factor not in factors:
            raise UserError(f"--attention-factors takes some of {', '.join(map(str, factors))}; got {factor}")
    attends = {2**level for level in range(len(o.multipliers))} & {*o.attention_factors, stride}
    for name, width in (("width", o.width), ("classifier_width", o.classifier_width)):
        if width % o.groups or width % 2:
            raise UserError(f"{flag(name)} takes even multiples of {o.groups} (--groups); got {width}")
        channels = sorted(width * o.multipliers[factor.bit_length() - 1] for factor in attends)
        if wrong := [c for c in channels if c % o.head_width and (name == "width" or o.guidance_scale > 0)]:
            raise UserError(
                f"--head-width {o.head_width} does not divide the {wrong[0]} channels where {flag(name)} attends"
            )
    if o.betas[0] > o.betas[1] or 1000 / o.steps * o.betas[1] >= 1:
        raise UserError(f"--betas takes two ascending numbers, below 1 when scaled by 1000 / steps; got {o.betas}")
    if not 1 <= len(o.strength) <= 2 or list(o.strength) != sorted(o.strength):
        raise UserError(f"--strength takes one number, or two in ascending order; got {o.strength}")
    try:
        spaced_steps(o.steps, o.sampling_steps, o.spacing)
    except ValueError as error:
        raise UserError(f"--sampling-steps: {error}") from None
    if o.guidance_scale > 0 and not classes_of(o):
        raise UserError("--guidance-scale needs several categories and --conditional true: there is nothing to tell")
    if o.accumulation > o.batch_size:
        raise UserError(f"--accumulation takes up to --batch-size, {o.batch_size}; got {o.accumulation}")


def load_public(network: torch.nn.Module, state: dict) -> None:
    """Copies a public state dict (see `published_state`); a table of labels that does not fit is left, with a notice.

    Raises:
        UserError: missing or unknown keys, or another shape of any tensor but that table (D14).
    """
    state, table = published_state(state, "--weights: a file is no dictionary of tensors"), "label_emb.weight"
    own = network.state_dict()
    missing, unknown = sorted(set(own) - set(state) - {table}), sorted(set(state) - set(own) - {table})
    if missing or unknown:
        raise UserError(
            f"--weights: keys do not fit guided diffusion's: {len(missing)} missing {missing[:3]}, {len(unknown)} "
            f"unknown {unknown[:3]}; another size has other --multipliers and --attention-factors"
        )
    wrong = [key for key in own if key in state and own[key].shape != state[key].shape]
    left = [f"{key} {tuple(state[key].shape)}, here {tuple(own[key].shape)}" for key in wrong]
    if (table in state) != (table in own):
        left.append(f"{table} is " + ("in the file alone" if table in state else "not in the file"))
    if set(wrong) - {table}:
        raise UserError(f"--weights: {len(wrong)} tensors have another shape, the first: {left[0]}")
    if left:
        warnings.warn(f"--weights: not loaded, left at random: {'; '.join(left)}", Notice, stacklevel=2)
    network.load_state_dict({**own, **{key: state[key] for key in own if key in state and key not in wrong}})
