"""Noise schedule of a diffusion model, and its respacing."""

from typing import NamedTuple

import torch
from torch import Tensor


class Schedule(NamedTuple):
    """The constants of each step of a diffusion; (n,) float64 each."""

    steps: Tensor  # the original steps, int64, which the network is given
    beta: Tensor
    abar: Tensor  # product of 1 - beta up to this step
    abar_before: Tensor  # up to the previous step, 1 at the first
    variance: Tensor  # btilde, 0 at the first
    log_variance: Tensor  # log btilde; at the first step that of the second
    c1: Tensor
    c2: Tensor


def linear_betas(steps: int = 1000) -> Tensor:
    """Returns evenly spaced betas, (steps,) float64; the ends, 1e-4 and 0.02 of 1000 steps, scale with 1000 / steps."""
    return torch.linspace(*(1000 / steps * end for end in (1e-4, 0.02)), steps, dtype=torch.float64)


def schedule_of(beta: Tensor, steps: Tensor | None = None) -> Schedule:
    """Computes the schedule and the posterior from betas (n,) and original steps (n,), by default 0 to n - 1.

    btilde = beta (1 - abar') / (1 - abar),  c1 = beta sqrt(abar') / (1 - abar),
    c2 = (1 - abar') sqrt(1 - beta) / (1 - abar),   abar' the product up to the previous step
    """
    abar = torch.cumprod(1 - beta, dim=0)
    before = torch.cat((abar.new_ones(1), abar[:-1]))
    variance = beta * (1 - before) / (1 - abar)
    logs = torch.cat((variance[1:2], variance[1:])).log() if len(beta) > 1 else beta.log()
    c1, c2 = beta * before.sqrt() / (1 - abar), (1 - before) * (1 - beta).sqrt() / (1 - abar)
    return Schedule(torch.arange(len(beta)) if steps is None else steps, beta, abar, before, variance, logs, c1, c2)


def spaced_steps(total: int, count: int) -> list[int]:
    """Returns `count` of `total` steps: 0, i, 2 i, ... with the smallest i that gives so many, or raises ValueError."""
    for stride in range(1, total + 1):
        if len(range(0, total, stride)) == count:
            return list(range(0, total, stride))
    raise ValueError(f"expected a number of steps that a whole stride gives, got {count} of {total}")


def respace(schedule: Schedule, kept: list[int]) -> Schedule:
    """Returns the diffusion over some of the steps, with the same abar: betas 1 - abar(tau_j) / abar(tau_{j-1})."""
    abar = schedule.abar[kept]
    return schedule_of(1 - abar / torch.cat((abar.new_ones(1), abar[:-1])), schedule.steps[kept])


def at(table: Tensor, index: Tensor) -> Tensor:
    """Looks up a table (n,) at indices (B,): (B, 1, 1, 1) float32. Roots and quotients come before, in float64."""
    return table.to(index.device)[index].float()[:, None, None, None]
