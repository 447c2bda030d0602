"""Noise schedules of a diffusion model, and their respacing."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

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
