"""Training and evaluation in several processes, started by torchrun; rank 0 writes all files, a restart is a resume.

    torchrun --nproc-per-node 2 -m adref.train srdad --data ROOT --category NAME --out RUN

The images of a batch are divided among the ranks, DistributedDataParallel averages the gradients, and batch norm uses
the statistics of the whole batch. So two processes have the losses of one, up to rounding. Exceptions: dropout differs
on each rank, and every rank computes the whole of a last batch with fewer images than there are processes.
"""

import gc
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from adref.ops.all_reduce import all_reduce_mean
from adref.options import Notice, UserError


def launch() -> str:
    """Names the torchrun that started this process, the same in all its restarts; empty without one."""
    if not dist.is_available() or not dist.is_torchelastic_launched():
        return ""
    agent = os.getppid() if os.environ["GROUP_WORLD_SIZE"] == "1" else ""  # on several machines they differ
    return f"{os.environ['TORCHELASTIC_RUN_ID']} {agent}"


@contextmanager
def process_group() -> Iterator[None]:
    """Joins the processes that torchrun started, of which rank 0 alone prints; does nothing without torchrun."""
    if not launch() or dist.is_initialized():
        yield
        return
    store, rank, size = next(dist.rendezvous("env://"))
    # A restart on the same machine finds the addresses of dead processes in the store: each try has a prefix.
    store = dist.PrefixStore(f"try {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    own_gpu = int(os.environ["LOCAL_WORLD_SIZE"]) <= torch.cuda.device_count()
    backend = "cpu:gloo,cuda:nccl" if own_gpu else "gloo"  # NCCL takes no two processes on one GPU
    wait = timedelta(days=7)  # the others wait while rank 0 evaluates; torchrun ends them if it dies
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=wait)
    try:
        with warnings.catch_warnings(), redirect_stdout(open(os.devnull, "w") if rank else sys.stdout):
            warnings.filterwarnings("ignore", "Grad strides do not match|`broadcast_buffers` is deprecated")
            warnings.simplefilter("ignore" if rank else "default", Notice)
            yield
    except UserError:
        if rank == 0:
            raise
        raise SystemExit(2) from None  # rank 0 prints it
    except RuntimeError as error:
        if "gloo" not in str(error) and not isinstance(error, dist.DistBackendError):
            raise
        raise SystemExit(f"stopped: rank {rank} has lost another process") from None
    finally:
        gc.collect()  # objects that refer to the group would keep its threads alive
        dist.destroy_process_group()


def count() -> int:
    """Returns the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Returns the number of this process; rank 0 writes all files."""
    return dist.get_rank() if count() > 1 else 0


def gather(value) -> list:
    """Returns the values of all ranks, in their order."""
    values = [value] * count()
    if count() > 1:
        dist.all_gather_object(values, value)
    return values


def on_rank_zero(function: Callable):
    """Runs a function on rank 0 and broadcasts its result; every rank ends if it raises."""
    if count() == 1:
        return function()
    value = error = None
    try:
        value = function() if rank() == 0 else None
    except Exception as raised:
        error = raised
    value, failed = gather((value, error is not None))[0]
    if failed:
        raise error or SystemExit(2)  # rank 0 prints why
    return value


def shard(items: Sequence, whole: bool = False) -> Sequence:
    """Returns every n-th item for n processes; all items if `whole` and there are fewer items than processes."""
    return items if whole and len(items) < count() else items[rank() :: count()]


class _Loss(nn.Module):
    """The loss of a method as the forward pass of a module, for DistributedDataParallel."""

    def __init__(self, method: nn.Module):
        super().__init__()
        self.method = method

    def forward(self, batch, stage: str) -> dict[str, Tensor]:
        return self.method.loss(batch, stage)


def parallel_loss(method: nn.Module) -> Callable:
    """Returns (batch, stage) -> `method.loss`, whose gradients, if there are any, are averaged over the ranks."""
    if count() == 1 or not any(p.requires_grad for p in method.parameters()):
        return method.loss
    synchronise_batch_norm(method)
    # Buffers need no broadcast: all ranks compute the same ones.
    more = {"find_unused_parameters": len(method.stages) > 1, "broadcast_buffers": False}
    return nn.parallel.DistributedDataParallel(_Loss(method), **more)


def synchronise_batch_norm(module: nn.Module) -> None:
    """Replaces batch norms by torch's SyncBatchNorm; by `SyncBatchNormCPU` on the CPU, where torch has none."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            kind = SyncBatchNormCPU if child.weight.device.type == "cpu" else nn.SyncBatchNorm
            synced = kind(child.num_features, child.eps, child.momentum).to(child.weight.device).train(child.training)
            synced._parameters, synced._buffers = child._parameters, child._buffers  # the same tensors and names
            setattr(module, name, synced)
        else:
            synchronise_batch_norm(child)


class SyncBatchNormCPU(nn.BatchNorm2d):
    """Batch norm over the images of all ranks: (B, C, H, W) -> the same shape."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        values, count = x.float(), x[:, 0].numel()
        mean, total = all_reduce_mean(values.mean((0, 2, 3)), count)
        centred = values - mean[:, None, None]
        variance, _ = all_reduce_mean(centred.square().mean((0, 2, 3)), count)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (total / (total - 1)), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)
