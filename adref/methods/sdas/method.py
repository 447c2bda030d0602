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
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adref.layers.diffusion_unet import DiffusionUNet, NoisyClassifier
from adref.layers.published import published_state
from adref.method import Sources, Stage, Trainable
from adref.methods.sdas.options import ABLATIONS, PRESETS, SAMPLING, Options, check, classes_of
from adref.methods.sdas.schedule import Schedule, at, linear_betas, respace, schedule_of, spaced_steps
from adref.options import Notice, UserError


class Batch(NamedTuple):
    image: Tensor  # x_0, (B, 3, H, W) in [-1, 1]
    noise: Tensor  # (B, 3, H, W), standard normal
    step: Tensor  # t, (B,) int64 below T
    label: Tensor  # (B,) int64, place of the category among `Options.categories`


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


# -- the model --------------------------------------------------------------------------------------------------------


class SDAS(Trainable):
    """A diffusion model of normal pictures, and its samplers."""

    Options = Options
    presets = PRESETS
    ablations = ABLATIONS
    sampling = SAMPLING
    corrupt = staticmethod(corrupt)

    def __init__(self, options: Options = Options()):
        super().__init__(options)
        check(o := self.options)
        self.classes = classes_of(o)  # D4
        form = {"multipliers": o.multipliers, "blocks": o.blocks, "head_width": o.head_width}
        form |= {"attention": o.attention_factors, "groups": o.groups}  # D2, D15
        self.network = DiffusionUNet(width=o.width, classes=self.classes, dropout=o.dropout, **form)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.classifier = None
        if o.guidance_scale > 0:  # D8
            self.classifier = NoisyClassifier(self.classes, o.size, width=o.classifier_width, **form)
        self.stages = (Stage("train", o.epochs, parts=o.accumulation),)  # D1, D3
        if self.classifier is not None:
            self.stages += (Stage("classify", o.classifier_epochs, parts=o.accumulation),)
        self.schedule = schedule_of(linear_betas(o.steps, o.betas))

    # -- training

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
        """Makes Adam at a constant rate; each step updates the moving average of the weights."""
        network = self.network if stage == "train" else self.classifier
        optimizer = torch.optim.Adam(network.parameters(), lr=self.options.learning_rate)
        if stage == "train":
            optimizer.register_step_post_hook(lambda *_: self.update_average())
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)

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
    def update_average(self) -> None:
        """Updates the moving average of the weights: decay d, or min(d, (1 + n) / (10 + n)) after n updates (D9)."""
        self.updates += 1
        share = torch.full_like(self.updates, 1 - self.options.ema_decay, dtype=torch.float64)  # of the new weights
        if self.options.ema_warmup:
            share = (9 / (10 + self.updates.double())).clamp(min=share)  # 1 - (1 + n) / (10 + n)
        share = share.to(next(self.network.parameters()).dtype)
        for average, own in zip(self.average.parameters(), self.network.parameters()):
            average.lerp_(own, share)

    def load_weights(self, states: list[dict], part: str = "method") -> None:
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


def load_public(network: torch.nn.Module, state: dict) -> None:
    """Copies a public state dict (see `published_state`); a table of labels that does not fit is left, with a notice.

    Raises:
        UserError: missing or unknown keys, or another shape of any tensor but that table (D14).
    """
    try:
        state, table = published_state(state, "--weights: a file is no dictionary of tensors"), "label_emb.weight"
    except ValueError as error:
        raise UserError(str(error)) from None
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
