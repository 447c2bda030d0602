"""Several processes that train one model, as torchrun starts them; one process alone pays nothing for any of this.

    torchrun --nproc-per-node 2 -m adref.train srdad --data ROOT --category NAME --out RUN

The batch stays the method's own: its images are dealt out, gradients are averaged by DistributedDataParallel with the
weights of the shares, and the statistics of batch norm and RRS are those of the whole batch. So a run with several
processes has the losses of a run with one, up to rounding: 1e-5 after some steps, of small networks with batch norm in
float64 only, which make more of rounding in float32 (DRAEM: 4e-3 after five steps). Exceptions: dropout draws apart in
each process, the statistics `memory/dead_items` and `repair/found` are means of the processes' own, and `--ssim-range
auto` looks at a process's own share.
"""

import gc
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from adref.methods.realnet.selection import ResidualSelection
from adref.options import Notice


def launch() -> str:
    """Names the torchrun that started this process, alike in all its restarts; empty without one."""
    if not dist.is_available() or not dist.is_torchelastic_launched():
        return ""
    agent = os.getppid() if os.environ["GROUP_WORLD_SIZE"] == "1" else ""  # of many machines each has its own
    return f"{os.environ['TORCHELASTIC_RUN_ID']} {agent}"


@contextmanager
def processes() -> Iterator[None]:
    """Joins the processes that torchrun started, of which the first alone prints; without torchrun, nothing."""
    if not launch() or dist.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, rank, world_size = next(dist.rendezvous("env://"))
    if os.environ["GROUP_WORLD_SIZE"] == "1":  # on one machine a restart finds the addresses of the dead in the store
        store = dist.PrefixStore(f"restart {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    patience = timedelta(days=7)  # the others wait while one evaluates; torchrun ends them if it dies
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=patience)
    try:
        with warnings.catch_warnings(), redirect_stdout(open(os.devnull, "w") if rank else sys.stdout):
            warnings.filterwarnings("ignore", "Grad strides do not match")  # a copy more, and no mistake
            if rank:
                warnings.simplefilter("ignore", Notice)
            yield
    except RuntimeError as error:
        if "gloo" not in str(error) and not isinstance(error, dist.DistBackendError):
            raise
        raise SystemExit(f"stopped: process {rank} has lost another one") from None
    finally:
        gc.collect()  # of what refers to the group: else its threads live on, and may abort the end of Python
        dist.destroy_process_group()


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process; 0 writes all files."""
    return dist.get_rank() if count() > 1 else 0


def is_restart() -> bool:
    """Whether torchrun starts the processes once more, because one of them had died."""
    if not launch() or not dist.is_initialized():
        return False
    return any(gather(os.environ["TORCHELASTIC_RESTART_COUNT"] != "0"))  # each machine counts its own


def gather(value) -> list:
    """A plain value of every process, in the order of their ranks."""
    values = [value] * count()
    if count() > 1:
        dist.all_gather_object(values, value)
    return values


def first(action: Callable):
    """Process 0 acts; all get what it returns, and all end where it fails."""
    if count() == 1:
        return action()
    value = error = None
    if rank() == 0:
        try:
            value = action()
        except Exception as caught:
            error = caught
    value, failed = gather((value, error is not None))[0]
    if failed:
        raise error or SystemExit(2)  # process 0 says why
    return value


def own_device(device: torch.device) -> torch.device:
    """The GPU of this process, where "cuda" leaves it open."""
    if count() == 1 or device.type != "cuda" or device.index is not None:
        return device
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)  # for NCCL
    return device


def every(items: Sequence) -> Sequence:
    """What this process does of items that each may do alone: every n-th."""
    return items[rank() :: count()]


def share(items: Sequence) -> Sequence:
    """What this process does of the images of a batch: every n-th, or all where they are fewer than the processes."""
    return every(items) if len(items) >= count() else items


def parts(images: int, number: int) -> list[slice]:
    """Cuts `images` into `number` parts of one size; the last may be smaller, and there may be fewer."""
    size = math.ceil(images / number)
    return [slice(begin, min(begin + size, images)) for begin in range(0, images, size)]


class Shared(nn.Module):
    """The loss of a method as DistributedDataParallel wants it: as the forward pass of a module."""

    def __init__(self, method: nn.Module):
        super().__init__()
        self.method = method
        self.layers = [m for m in method.modules() if isinstance(m, SharedBatchNorm2d | ResidualSelection)]

    def forward(self, batch, stage: str, divided: bool) -> dict[str, Tensor]:
        for layer in self.layers:
            layer.pool = pool if divided else alone
        return self.method.loss(batch, stage)


def parallel(method: nn.Module) -> Callable:
    """(batch, stage, divided) -> the method's loss, whose gradients are averaged over the processes.

    `divided`: the batch is this process's share; else every process has the whole of it.
    """
    if count() == 1:
        return lambda batch, stage, divided: method.loss(batch, stage)
    share_batch_norm(method)
    partly = len(method.stages) > 1  # a stage trains a part of the parameters
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # buffers need no broadcast: all compute the same ones
        return nn.parallel.DistributedDataParallel(
            Shared(method), find_unused_parameters=partly, broadcast_buffers=False
        )


def share_batch_norm(module: nn.Module) -> None:
    """Puts `SharedBatchNorm2d` in the place of every batch norm; parameters, buffers and their names stay."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            shared = SharedBatchNorm2d(child.num_features, child.eps, child.momentum, child.affine).train(
                child.training
            )
            shared.weight, shared.bias = child.weight, child.bias
            for buffer in ("running_mean", "running_var", "num_batches_tracked"):
                setattr(shared, buffer, getattr(child, buffer))
            setattr(module, name, shared)
        else:
            share_batch_norm(child)


def alone(mean: Tensor, elements: int) -> tuple[Tensor, int]:
    """What `pool` is in one process."""
    return mean, elements


class Sum(torch.autograd.Function):
    """The sum over the processes, which all get; a gradient, too, is summed."""

    @staticmethod
    def forward(context, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    backward = forward  # of a sum, to which every process adds


def pool(mean: Tensor, elements: int) -> tuple[Tensor, int]:
    """Means over the elements of all processes from those of this one, with a gradient, and how many elements.

    Args:
        mean: (C,), of this process.
        elements: how many it is the mean of.
    """
    sums = torch.cat([mean.double() * elements, mean.new_full((1,), elements, dtype=torch.float64)])
    sums = Sum.apply(sums)
    return (sums[:-1] / sums[-1]).to(mean.dtype), sums[-1].detach()


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics are those of all processes' images; torch's own (SyncBatchNorm) needs CUDA."""

    pool = staticmethod(alone)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.pool is alone:
            return super().forward(x)
        own, elements = x.float(), x[:, 0].numel()
        mean, total = self.pool(own.mean((0, 2, 3)), elements)
        centred = own - mean[:, None, None]
        variance, _ = self.pool(centred.square().mean((0, 2, 3)), elements)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (total / (total - 1)).float(), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)
