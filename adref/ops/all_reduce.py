"""The mean over all processes of a distributed run."""

import torch
import torch.distributed as dist
from torch import Tensor


class AllReduceSum(torch.autograd.Function):
    """Sums a tensor over all processes, and its gradient likewise."""

    @staticmethod
    def forward(context, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    backward = forward  # x enters the sum of every process


def all_reduce_mean(mean: Tensor, count: int) -> tuple[Tensor, int | Tensor]:
    """Combines means (C,) over the `count` elements of each process, with a gradient: mean and count over all of them.

    Without torch.distributed it returns the arguments.
    """
    if not dist.is_available() or not dist.is_initialized():
        return mean, count
    sums = AllReduceSum.apply(torch.cat([mean.double() * count, mean.new_full((1,), count, dtype=torch.float64)]))
    return (sums[:-1] / sums[-1]).to(mean.dtype), sums[-1].detach()
