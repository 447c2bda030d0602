"""Counts parameters, multiply-adds, seconds and memory of scoring one image.

python tools/studies/complexity.py RUN ... --out FOLDER         trained runs
python tools/studies/complexity.py draem:paper ... --out FOLDER  METHOD:PRESET, with random weights

Multiply-adds are half of the floating-point operations that torch's FlopCounterMode counts: convolutions, linear
layers, matrix products and attention. Sums, normalisation, activations, pooling and interpolation are not counted.
complexity.csv has a row for each part of the network down to --depth. Published: SRDAD (Scientific Reports 2025)
gives 26.5 M parameters for DRAEM, whose code has 97,422,725, and 47.2 M and 85 ms (256 x 256, TITAN Xp) for SRDAD;
RealNet (CVPR 2024) gives 31.93 images a second for A, 40.42 for half, 22.39 for C and 10.83 for B (RTX 3090).
"""

import contextlib
import statistics
import sys
import time
from pathlib import Path

import torch
from common import open_runs, parser_of, run_study
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from adref.method import Method
from adref.methods import METHODS
from adref.options import UserError, build


def make(name: str) -> nn.Module | None:
    """Builds METHOD:PRESET in evaluation mode; None: `name` is no method."""
    method, _, preset = name.partition(":")
    if method not in METHODS:
        return None
    kind = METHODS[method]
    if not issubclass(kind, Method):
        raise UserError(f"{method} scores no images")
    model = kind(build(kind.Options, kind.presets, kind.ablations, preset or "paper", None, {})).eval()
    if method == "sernet":
        model.bank.fill([torch.zeros(3, *model.options.size, dtype=torch.uint8)])
    return model


@torch.no_grad()
def count(method: Method, images: torch.Tensor, depth: int) -> dict[str, int]:
    """Counts multiply-adds of a call of `score` by part of the network; "" is the whole."""
    with FlopCounterMode(display=False, depth=None) as counter:
        method.score(images)
    root = type(method).__name__
    found = {name.removeprefix(root).lstrip("."): sum(operations.values()) // 2
             for name, operations in counter.get_flop_counts().items() if name != "Global"}  # fmt: skip
    found[""] = counter.get_total_flops() // 2
    return {name: value for name, value in found.items() if not name or name.count(".") < depth}


@torch.inference_mode()
def measure(method: Method, images: torch.Tensor, repeats: int) -> tuple[float, float]:
    """Measures the median seconds of a call of `score`, and its peak memory in MiB above that before the call."""
    seconds, is_cuda = [], images.is_cuda
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forgets the highest use so far
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    before = memory(is_cuda)
    for _ in range(repeats + 1):  # the first warms up
        if is_cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        method.score(images)
        if is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:] or seconds), memory(is_cuda) - before


def memory(is_cuda: bool) -> float:
    """Returns the highest memory use so far in MiB: of CUDA tensors, else of the process (NaN where unknown)."""
    if is_cuda:
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), float("nan"))


def study(arguments) -> list[dict]:
    """Counts and measures every run or METHOD:PRESET."""
    rows = []
    for name in arguments.runs:
        method = make(name)
        if method is None:
            (run,) = open_runs(type(arguments)(**{**vars(arguments), "runs": [name]}))
            method = run.method
        method = method.to(arguments.device)
        images = torch.rand(1, 3, *method.options.size, generator=torch.Generator().manual_seed(arguments.seed))
        images = images.to(arguments.device)
        parts = {}
        for part, multiply_adds in count(method, images, arguments.depth).items():
            parameters = sum(p.numel() for p in method.get_submodule(part).parameters())
            parts[part] = {"run": name, "part": part or "whole", "parameters": parameters,
                           "multiply_adds": multiply_adds, "seconds": "", "peak_mib": ""}  # fmt: skip
        if arguments.repeats:
            parts[""]["seconds"], parts[""]["peak_mib"] = measure(method, images, arguments.repeats)
        rows += parts.values()
    return rows


if __name__ == "__main__":
    parser = parser_of(__doc__)
    parser.add_argument("--depth", type=int, default=1, help="parts of a layer's name [1]")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls; 0: none [5]")
    sys.exit(run_study(study, "complexity", parser.parse_args()))
