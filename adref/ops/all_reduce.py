"""The mean over all processes of a distributed run."""

import torch
import torch.distributed as dist
from torch import Tensor


class AllReduceSum(torch.autograd.Function):
    """Sums a tensor over all processes, and its gradient likewise."""

    @staticmethod
    def forward(context, x: Tensor) -> Tensor:
        """Returns the sum over the processes, of x's shape."""
        x = x.clone()
        dist.all_reduce(x)
        return x

    backward = forward  # x enters the sum of every process


def all_reduce_mean(mean: Tensor, count: int) -> tuple[Tensor, int | Tensor]:
    """Combines the means of all processes, weighted by their numbers of elements, with a gradient.

    Args:
        mean: (C,), means over the elements of this process.
        count: the number of these elements.

    Returns:
        the mean (C,) over the elements of all processes, and their number. Without torch.distributed, the arguments.
    """
    if not dist.is_available() or not dist.is_initialized():
        return mean, count
    sums = torch.cat([mean.double() * count, mean.new_full((1,), count, dtype=torch.float64)])
    sums = AllReduceSum.apply(sums)
    return (sums[:-1] / sums[-1]).to(mean.dtype), sums[-1].detach()
