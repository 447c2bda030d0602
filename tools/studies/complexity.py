"""Complexity: parameters, multiply-adds layer by layer, images a second and memory, when pictures are scored.

Multiply-adds are those of convolutions, linear layers, matrix products and attention, padding included, of one picture
at the method's size through `score`; half of what is called FLOPs elsewhere. Sums, biases, normalisation, activations,
pooling and interpolation are not counted. Whatever reaches PyTorch is, in a layer or not: an operation belongs to the
innermost layer that is running.
"""

import argparse
import ctypes
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from adref.data import read_image
from adref.options import UserError
from adref.run import method_arguments
from adref.studies import Opened, Result

WARM_UP = 2  # calls before those that are timed
REALNET = "RealNet, CVPR 2024, table of efficiency; 256 x 256"
SRDAD = "SRDAD, Scientific Reports 2025"
PUBLISHED = (  # method, what, figure, source
    ("draem", "parameters", "26.5 M", f"{SRDAD}; its authors' code has 97,422,725"),
    ("srdad", "parameters", "47.2 M (19.4 M + 27.8 M)", SRDAD),
    ("srdad", "time of a picture, 256 x 256", "85 ms (11.8 images/s), TITAN Xp", SRDAD),
    ("realnet", "images a second, preset paper (A)", "31.93, RTX 3090", REALNET),
    ("realnet", "images a second, preset half", "40.42, RTX 3090", REALNET),
    ("realnet", "images a second, preset c", "22.39, RTX 3090", REALNET),
    ("realnet", "images a second, --ablation b", "10.83, RTX 3090", REALNET),
    ("realnet", "size with backbone, paper, half, c, b", "2.20, 0.74, 3.75, 7.22 GB (GiB, float32)", REALNET),
    ("realnet", "GPU memory for inference, preset paper", "4 GB suffice", "RealNet, CVPR 2024, section on efficiency"),
)


class Layer(NamedTuple):
    """A module, or all below a name."""

    layer: str  # its name of `named_modules()`
    kind: str  # its class
    output: str  # shape for one picture; of several outputs that of the last
    parameters: int
    trainable: int
    multiply_adds: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this study."""
    parser.add_argument("--depth", type=int, default=2, help="parts of a layer's name that a row has [2]")
    parser.add_argument("--batch", type=int, default=16, help="images a call, timed beside 1 [16]")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls, whose median counts; 0: no timing [5]")


def study(runs: list[Opened], arguments: argparse.Namespace) -> Result:
    """What it costs to score a picture, run by run.

    Raises:
        UserError: numbers out of range, or a run without any picture.
    """
    if arguments.depth < 1 or arguments.batch < 1 or arguments.repeats < 0:
        raise UserError("--depth and --batch take 1 or more, --repeats 0 or more")
    rows, notes = [], []
    for run in runs:
        size = "{} x {}".format(*run.method.options.size)
        one = batch_of(run, 1)
        layers = count_layers(run.method, lambda run=run, one=one: run.method.score(*one))
        total = Layer("total", type(run.method).__name__, "", *(sum(values) for values in list(zip(*layers))[3:]))
        for layer in [*group(layers, arguments.depth), total]:
            share = layer.multiply_adds / max(total.multiply_adds, 1)
            name = layer.layer or "outside of layers"
            rows.append({"run": run.name, **layer._asdict(), "layer": name, "share": share})
        with torch.device("meta"):
            paper = type(run.method)(type(run.method).Options())
        notes.append(
            f"{run.name}, {size}: {total.parameters:,} parameters, {total.trainable:,} of them trainable; "
            f"{total.multiply_adds / 1e9:.4g} G multiply-adds a picture. Preset paper has "
            f"{sum(p.numel() for p in paper.parameters()):,} parameters."
        )
        if arguments.repeats:
            notes.append(f"{run.name}: " + "; ".join(
                describe_speed(run, count, arguments.repeats) for count in dict.fromkeys((1, arguments.batch))
            ) + ".")  # fmt: skip
        notes += [f"{run.name}, published of {method}: {what}: {figure} ({source})."
                  for method, what, figure, source in PUBLISHED if method == run.config["method"]]  # fmt: skip
    notes.append("Published figures stand beside those of a run of that size on such a card, and beside no other.")
    settings = {"depth": arguments.depth, "batch": arguments.batch, "repeats": arguments.repeats}
    settings |= {"device": device_name(runs[0].device), "threads": torch.get_num_threads()}
    return Result(settings, rows, notes, {}, {})


# -- counting ---------------------------------------------------------------------------------------------------------


def convolution(output: Tensor, x: Tensor, weight: Tensor, bias, stride, padding, dilation, transposed, *_) -> int:
    """Each output value sums C_in / groups x kernel products; of a transposed one each input value makes C_out / groups
    x kernel: `weight` is (C_out, C_in / groups, *kernel), or (C_in, C_out / groups, *kernel)."""
    return (x if transposed else output).numel() * math.prod(weight.shape[1:])


def attention(output, q: Tensor, k: Tensor, v: Tensor, *_) -> int:
    """q k^T and its product with v: (..., L, E), (..., S, E), (..., S, V)."""
    return math.prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])


COUNTS = {  # PyTorch's operation -> multiply-adds by its output and arguments
    "aten.mm": lambda output, a, b: a.numel() * b.shape[-1],
    "aten.bmm": lambda output, a, b: a.numel() * b.shape[-1],
    "aten.mv": lambda output, a, b: a.numel(),
    "aten.dot": lambda output, a, b: a.numel(),
    "aten.addmm": lambda output, bias, a, b, **_: a.numel() * b.shape[-1],
    "aten.baddbmm": lambda output, bias, a, b, **_: a.numel() * b.shape[-1],
    "aten.addmv": lambda output, bias, a, b, **_: a.numel(),
    "aten.convolution": convolution,
    "aten._convolution": convolution,
    **{f"aten._scaled_dot_product_{kind}": (lambda output, q, k, v, *_, **__: attention(output, q, k, v))
       for kind in ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")},
}  # fmt: skip


class Counter(TorchDispatchMode):
    """Adds up the multiply-adds of all operations in its scope, by the name that is last in `running`."""

    def __init__(self):
        super().__init__()
        self.running, self.found = [""], {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, count = kwargs or {}, COUNTS.get(str(func.overloadpacket))
        if count is None and func is not torch.ops.prim.device.default:
            with self:
                result = func.decompose(*args, **kwargs)  # a linear layer, for one, is made of what is counted
            if result is not NotImplemented:
                return result
        output = func(*args, **kwargs)
        if count:
            name = self.running[-1]
            self.found[name] = self.found.get(name, 0) + count(output, *args, **kwargs)
        return output


@torch.no_grad()
def count_layers(module: nn.Module, call: Callable) -> list[Layer]:
    """All modules by name, each with what it has and does itself, apart from the modules inside it.

    Args:
        module: whose layers they are.
        call: runs it once, on one picture.
    """
    counter, outputs, hooks, seen, layers = Counter(), {}, [], set(), []

    def leave(name: str, output) -> None:
        counter.running.pop()
        while isinstance(output, list | tuple) and output:
            output = output[-1]
        if isinstance(output, Tensor):
            outputs[name] = " x ".join(map(str, output.shape[1:])) if name else ""  # of the method itself: no layer

    for name, layer in module.named_modules():
        hooks.append(layer.register_forward_pre_hook(lambda *_, name=name: counter.running.append(name)))
        hooks.append(layer.register_forward_hook(lambda *seen, name=name: leave(name, seen[-1])))
    try:
        with counter:
            call()
    finally:
        for hook in hooks:
            hook.remove()
    for name, layer in module.named_modules():
        own = [p for p in layer.parameters(recurse=False) if id(p) not in seen]  # two layers may share one
        seen |= set(map(id, own))
        sizes = sum(p.numel() for p in own), sum(p.numel() for p in own if p.requires_grad)
        kind = type(layer).__name__
        layers.append(Layer(name, kind, outputs.get(name, ""), *sizes, counter.found.get(name, 0)))
    return layers


def group(layers: list[Layer], depth: int) -> list[Layer]:
    """Sums of the layers whose names begin with the same `depth` parts, but for those without parameters and
    multiply-adds; the output is that of the module of this name, or of the last below it where it is a mere list."""
    sums: dict[str, Layer] = {}
    nearest: dict[str, int] = {}  # parts of the name of the layer whose output stands
    for layer in layers:
        parts = layer.layer.split(".")
        name = ".".join(parts[:depth])
        before = sums.setdefault(name, layer._replace(output="", parameters=0, trainable=0, multiply_adds=0))
        stands = layer.output and len(parts) <= nearest.get(name, len(parts))
        nearest |= {name: len(parts)} if stands else {}
        added = (a + b for a, b in zip(before[3:], layer[3:]))
        sums[name] = Layer(name, before.kind, layer.output if stands else before.output, *added)
    return [layer for layer in sums.values() if layer.parameters or layer.multiply_adds]


# -- measuring --------------------------------------------------------------------------------------------------------


def batch_of(run: Opened, count: int) -> tuple[Tensor, list, list | None]:
    """The arguments of `score` for the first `count` pictures of a run's category, again from the first where it has
    fewer.

    Raises:
        UserError: it has none.
    """
    records = [*run.category.test, *run.category.train]
    if not records:
        raise UserError(f"{run.name}: {run.category.name} has no picture")
    chosen = [records[i % len(records)] for i in range(count)]
    parts = [method_arguments(run.method, read_image(r.path), 0, index) for index, r in enumerate(chosen)]
    images, streams, looks = zip(*parts)
    images = torch.cat(images).contiguous(memory_format=torch.channels_last)
    return images, [stream for (stream,) in streams], None if looks[0] is None else [look for (look,) in looks]


@torch.inference_mode()
def describe_speed(run: Opened, count: int, repeats: int) -> str:
    """Images a second in batches of `count`, the median of some calls, and memory, in words; reading is not in it."""
    arguments, seconds = batch_of(run, count), []

    def call() -> None:
        run.method.score(*arguments)
        if run.device.type == "cuda":
            torch.cuda.synchronize(run.device)

    memory = peak_memory(call, run.device)
    for _ in range(WARM_UP):
        call()
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return f"batch {count}: {count / statistics.median(seconds):.4g} images/s, {memory}"


def peak_memory(call: Callable, device: torch.device) -> str:
    """What a call takes at its peak, in words: on CUDA of all tensors, weights too; else what the process grows by."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return f"{torch.cuda.max_memory_allocated(device) / 2**20:.0f} MiB of memory at the peak, weights too"
    try:
        ctypes.CDLL(None).malloc_trim(0)  # or what earlier calls have left in the process would serve this one
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the highest mark
        before = resident("VmRSS")
        call()
        return f"{max(resident('VmHWM') - before, 0) / 1024:.0f} MiB of memory above rest at the peak"
    except (OSError, AttributeError):
        call()
        return "memory not measured"


def resident(field: str) -> int:
    """KiB of the process in memory: now (VmRSS), or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def device_name(device: torch.device) -> str:
    """For a table of settings."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
