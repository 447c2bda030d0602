"""Times training steps, inference, corruption of examples and parts of an evaluation, method by method.

python tools/speed.py [METHOD ...] [--preset tiny] [--device cuda] [--compile] [--threads 1] [--rounds 15] [--json FILE]
python tools/speed.py --load 2 --threads 2 [--rounds 15] [--json FILE]

Each row: median milliseconds, 5th and 95th percentile, ratio to the first row of its group. The rows of a group take
turns, so that a slow moment of the machine meets all of them. Steps and inference run in float32 with contiguous and
with channels-last memory (as the commands do), under bf16 autocast, and through torch.compile where asked for. Images
are generated and 256 x 256; weights are random. The second form times a step of DRAEM at tiny, alone and beside busy
loops, under three ways in which OpenMP's threads wait for each other, each in a process of its own.
"""

import argparse
import json
import os
import sys

if __name__ == "__main__":  # numpy and torch read these when they are imported
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--threads", default="1")
    threads = early.parse_known_args()[0].threads
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)

import math
import platform
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from adref.data.examples import random_stream, resize, to_tensor
from adref.data.layouts import Category, find_category
from adref.data.reader import read_image, read_mask
from adref.data.sample import generated_textures, write_sample_data
from adref.method import Context, Method, Sampler, Sources, Stage, Trainable
from adref.methods import METHODS
from adref.ops.metrics import pixel_metrics
from adref.options import Notice, build, names
from adref.run.loop import add_gradients, compile_networks, repeatable
from adref.run.scoring import at_size

FORMS = {  # label -> precision, memory format, whether compiled
    "fp32, contiguous": ("fp32", torch.contiguous_format, False),
    "fp32, channels_last": ("fp32", torch.channels_last, False),
    "bf16, channels_last": ("bf16", torch.channels_last, False),
    "compiled, fp32, channels_last": ("fp32", torch.channels_last, True),
}
WAITING = {  # label -> what OpenMP reads; the commands set the first one
    "bounded": {"GOMP_SPINCOUNT": "50000"},
    "libgomp's own": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
}
LIMIT = 10.0  # seconds after which a row is not repeated
Rows = dict[str, Callable[[int], object]]  # label -> what is timed, called with the number of the round


class Bench(NamedTuple):
    """A method with its images, shared by all of its rows."""

    kind: type[Trainable]
    options: object
    sources: Sources
    category: Category
    device: torch.device
    compiled: bool

    def forms(self) -> dict[str, tuple]:
        """Returns the forms to time."""
        return {label: form for label, form in FORMS.items() if self.compiled or not form[2]}

    def stages(self) -> tuple[Stage, ...]:
        """Lists the stages of training."""
        with torch.device("meta"):
            return self.kind(self.options).stages

    def method(self, form: torch.memory_format = torch.channels_last, compiled: bool = False) -> Trainable:
        """Builds the method with random weights, its buffers filled from the images."""
        torch.manual_seed(0)
        method = self.kind(self.options)
        method.to(self.device, memory_format=form)
        for stage in method.stages:
            method.prepare(self.sources._replace(stage=stage.name), stage.name, partial(random_stream, 0))
        if compiled:
            compile_networks(method)
        return method


def open_bench(name: str, preset: str, category: Category, device: torch.device, compiled: bool,
               changes: dict | None = None) -> Bench:  # fmt: skip
    """Reads the images of a category as a method needs them; `changes` are of options that it has."""
    kind = METHODS[name]
    several = "categories" in names(kind.Options, all_fields=True)
    changes = {"categories": (category.name,), "afs_batches": 1, **(changes or {})}  # 64 batches of AFS take minutes
    changes = {key: value for key, value in changes.items() if key in names(kind.Options, all_fields=True)}
    options = build(kind.Options, kind.presets, {}, preset, None, changes)
    pictures = [read_image(record.path) for record in category.train]
    images = [resize(to_tensor(picture), options.size, options.resize) for picture in pictures]
    hashes = [kind.image_hash(picture, options) for picture in pictures]
    textures = torch.from_numpy(generated_textures(10, max(options.size), seed=0))
    statistics = kind.statistics(images, category.name, options)
    sources = Sources(
        images=images, hashes=None if hashes[0] is None else hashes, categories=[category.name] * len(images),
        textures=textures[:, :, : options.size[0], : options.size[1]], anomalies={category.name: images},
        statistics={category.name: statistics} if several else statistics,
    )  # fmt: skip
    return Bench(kind, options, sources, category, device, compiled)


def make_batch(bench: Bench, stage: Stage, size: int, first: int = 0) -> NamedTuple:
    """Corrupts `size` images, as in training."""
    images, examples = bench.sources.images, []
    for number in range(first, first + size):
        index = number % len(images)
        sources, rng = bench.sources._replace(stage=stage.name, index=index), random_stream(0, "speed", number)
        examples.append(bench.kind.corrupt(images[index].float() / 255, rng, bench.options, sources))
    return default_collate(examples)


def training_step(bench: Bench, stage: Stage, method: Trainable, precision: str = "fp32",
                  form: torch.memory_format = torch.channels_last, free: bool = False) -> Callable:  # fmt: skip
    """Makes a training step, which returns its loss; all parts of a batch are the same; `free`: not `repeatable`."""
    optimizer, count = method.train().optimizer(stage.name)[0], bench.options.batch_size
    size = math.ceil(count / stage.parts)
    parts = [list(range(count))[i : i + size] for i in range(0, count, size)]
    batch = make_batch(bench, stage, size)
    moved = (t.to(bench.device) for t in batch)
    own = type(batch)(*(t.contiguous(memory_format=form) if t.ndim == 4 else t for t in moved))
    autocast = torch.autocast(bench.device.type, torch.bfloat16, enabled=precision == "bf16")

    def run(_: int) -> Tensor:
        with nullcontext() if free else repeatable(bench.device):
            optimizer.zero_grad()
            terms, _ = add_gradients(method, method.loss, parts, iter([own] * len(parts)), stage.name, autocast)
            optimizer.step()
        return terms["loss/total"]

    return run


def step_rows(bench: Bench, stage: Stage) -> Rows:
    """Lists a training step in every form, and the corruption of its batch in one process."""
    size = bench.options.batch_size
    rows = {
        label: training_step(bench, stage, bench.method(form, compiled), precision, form)
        for label, (precision, form, compiled) in bench.forms().items()
    }
    return {**rows, f"corrupt {size} images": lambda i: make_batch(bench, stage, size, first=i * size)}


def inference(bench: Bench, method: Trainable, precision: str = "fp32",
              form: torch.memory_format = torch.channels_last, count: int = 1) -> Callable:  # fmt: skip
    """Makes the scoring of `count` images, which returns their maps; or the drawing of as many."""
    images = torch.rand(count, 3, *bench.options.size, generator=torch.Generator().manual_seed(0)).to(bench.device)
    own = images.contiguous(memory_format=form)
    method.eval()

    @torch.inference_mode()
    def run(_: int) -> Tensor:
        rngs = [random_stream(0, "test", index) for index in range(count)]
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=precision == "bf16"):
            if isinstance(method, Sampler):
                return method.sample_images([0] * count, rngs, [bench.options.strength[0]] * count)
            return method.score(own, Context(rngs))[1].float()

    return run


def inference_rows(bench: Bench) -> Rows:
    """Lists score and map of one image in every form."""
    return {
        label: inference(bench, bench.method(form, compiled), precision, form)
        for label, (precision, form, compiled) in bench.forms().items()
    }


def evaluation_rows(bench: Bench) -> Rows:
    """Lists the parts of an evaluation, all test images each; files and report are not written."""
    method, o, records = bench.method().eval(), bench.options, bench.category.test
    pictures = [read_image(record.path) for record in records]
    shapes = [picture.shape[:2] for picture in pictures]
    images = [resize(to_tensor(picture), o.size, o.resize)[None].to(bench.device) for picture in pictures]

    @torch.inference_mode()
    def score(index: int) -> Tensor:
        return method.score(images[index].float() / 255, Context([random_stream(0, "test", index)]))[1].float().cpu()

    def masks(_: int) -> list[np.ndarray]:
        return [read_mask(r.mask) if r.mask else np.zeros(shape, bool) for r, shape in zip(records, shapes)]

    small = [score(index) for index in range(len(images))]
    maps, truth = [at_size(part, shape) for part, shape in zip(small, shapes)], masks(0)
    return {
        "scores and maps": lambda _: [score(index) for index in range(len(images))],
        "reading images": lambda _: [read_image(record.path) for record in records],
        "resizing images": lambda _: [resize(to_tensor(picture), o.size, o.resize) for picture in pictures],
        "reading masks": masks,
        "maps to the images' sizes": lambda _: [at_size(part, shape) for part, shape in zip(small, shapes)],
        "pixel metrics": lambda _: pixel_metrics(maps, truth),
    }


def reason(error: Exception) -> str:
    """Tells an error in a few words."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:90]


def measure(rows: Rows, rounds: int, wait: Callable[[], object] = lambda: None) -> dict[str, dict]:
    """Times rows in turns; the first call of each warms up, and one that raises has its "failure" instead of numbers.

    Args:
        rows: the group.
        rounds: timed calls of each, fewer of slow ones.
        wait: returns when the device has finished.
    """
    times, found = {}, {}
    for label, call in rows.items():
        try:
            call(0)
            times[label] = []
        except Exception as error:  # e.g. of a compiler: the other rows go on
            found[label] = {"failure": reason(error)}
    for number in range(1, rounds + 1):
        for label, taken in times.items():
            if sum(taken) <= LIMIT:
                wait()
                began = time.perf_counter()
                rows[label](number)
                wait()
                taken.append(time.perf_counter() - began)
    for label, taken in times.items():
        low, median, high = 1000 * np.percentile(taken, (5, 50, 95))
        found[label] = {"median_ms": median, "p5_ms": low, "p95_ms": high, "rounds": len(taken)}
        found[label]["ratio"] = median / found[next(iter(times))]["median_ms"]
    return {label: found[label] for label in rows}


def answer_steps(folder: str, threads: int) -> None:
    """Makes a training step of DRAEM for each line of stdin and answers it with one; runs in a process of its own."""
    torch.set_num_threads(threads)
    bench = open_bench("draem", "tiny", find_category(Path(folder), "fabric"), torch.device("cpu"), compiled=False)
    step = training_step(bench, bench.stages()[0], bench.method())
    for _ in sys.stdin:
        step(0)
        print(flush=True)


@contextmanager
def running(code: str, environments: Iterable[dict[str, str]], threads: int = 1) -> Iterator[list[subprocess.Popen]]:
    """Runs Python code in a process for each environment, with pipes as stdin and stdout; ends them all."""
    known = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    known |= {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]), "OMP_NUM_THREADS": str(threads)}
    words, pipes = [sys.executable, "-W", "ignore", "-c", code], dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    with ExitStack() as stack:
        found = []
        for environment in environments:
            process = stack.enter_context(subprocess.Popen(words, env=known | environment, text=True, **pipes))
            stack.callback(process.kill)
            found.append(process)
        yield found


def load_groups(folder: Path, loops: int, threads: int) -> Iterator[tuple[str, Rows]]:
    """Yields a step of DRAEM, in a process for each of WAITING, first alone, then beside busy loops."""

    def step(process: subprocess.Popen, number: int) -> None:
        process.stdin.write("\n")
        process.stdin.flush()
        if not process.stdout.readline():
            raise RuntimeError("the process of the step has ended")

    code = f"import speed; speed.answer_steps({str(folder)!r}, {threads})"
    with running(code, WAITING.values(), threads) as found:
        rows = {label: partial(step, process) for label, process in zip(WAITING, found)}
        yield f"draem, training step, {threads} threads, alone", rows
        with running("while True: pass", [{}] * loops):
            yield f"draem, training step, {threads} threads, beside {loops} busy loops", rows


def name_of(device: torch.device) -> str:
    """Names the GPU or the processor."""
    cpu = platform.processor() or platform.machine()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu


def waiter(device: torch.device) -> Callable[[], object]:
    """Returns a function that waits until the device has finished."""
    return partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None


def groups_of(bench: Bench) -> dict[str, Callable[[], Rows]]:
    """Names the groups of a method."""
    stages = [stage for stage in bench.stages() if stage.length]
    found = {f"training step, {stage.name}": partial(step_rows, bench, stage) for stage in stages}
    if issubclass(bench.kind, Method):
        found |= {"inference": partial(inference_rows, bench), "evaluation": partial(evaluation_rows, bench)}
    return found


def open_groups(given: argparse.Namespace, root: Path, device: torch.device) -> Iterator[tuple[str, Rows]]:
    """Yields the title and the rows of each group that the command line asks for."""
    if given.load:
        yield from load_groups(root, given.load, given.threads)
        return
    category = find_category(root, "fabric")
    for name in given.methods or METHODS:
        if given.preset in METHODS[name].presets:
            bench = open_bench(name, given.preset, category, device, given.compile)
            yield from ((f"{name}, {group}", rows()) for group, rows in groups_of(bench).items())


def main(argv: list[str] | None = None) -> int:
    """Prints the table and writes the JSON; returns the exit code, 1 where a row failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"of {', '.join(METHODS)}; all by default")
    parser.add_argument("--preset", default="tiny", help="methods without it are left out [tiny]")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N [cpu]")
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each row [15]")
    parser.add_argument("--threads", type=int, default=1, help="of torch and numpy [1]")
    parser.add_argument("--compile", action="store_true", help="through torch.compile too: minutes")
    parser.add_argument("--load", type=int, default=0, metavar="N", help="DRAEM's step, alone and beside N busy loops")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the same as JSON")
    given = parser.parse_args(argv)
    if unknown := set(given.methods) - set(METHODS):
        parser.error(f"unknown method {', '.join(sorted(unknown))}; known: {', '.join(METHODS)}")
    if given.load < 0 or (given.load and given.methods):
        parser.error(f"--load takes a number of busy loops, and no METHOD; got {given.load} {' '.join(given.methods)}")
    device = torch.device(given.device)
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore", Notice)
    facts = {"device": name_of(device), "torch": torch.__version__, "threads": given.threads, "preset": given.preset}
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        write_sample_data(Path(folder) / "data", size=256, train=8, test=4, per_defect=2, categories=("fabric",))
        for title, rows in open_groups(given, Path(folder) / "data", device):
            timed = result[title] = measure(rows, given.rounds, waiter(device))
            print(title)
            for label, row in timed.items():
                numbers = row.get("failure") or "{median_ms:10.3f} ms  [{p5_ms:.3f}, {p95_ms:.3f}]  x {ratio:.2f}"
                print(f"  {label:32s} {numbers.format(**row)}", flush=True)
    if given.json:
        given.json.write_text(json.dumps({**facts, "groups": result}, indent=1) + "\n")
    return int(any("failure" in row for timed in result.values() for row in timed.values()))


if __name__ == "__main__":
    sys.exit(main())
