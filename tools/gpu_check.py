"""Measures one GPU in minutes: steps and maps of every method, who waits for whom, and DRAEM after half of the time.

python tools/gpu_check.py [--data ROOT --category NAME] [--device cuda] [--preset paper] [--seconds 470] [--out FILE.md]
                          [--json FILE]

Prints tables in Markdown. It keeps to its seconds: what no longer fits is left out, and a row that fails holds the
reason. Steps and maps are timed as by tools/speed.py, in another process, with random weights and generated pictures.
Then `python -m adref.train` trains DRAEM on the category, briefly with 2 workers, and for half of the seconds with 8,
four minutes at most; it is interrupted and evaluated. Compiled forms come last, as far as time allows.
"""

import argparse
import csv
import gc
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path

import speed
import torch

import adref
from adref.data.layouts import find_category
from adref.data.sample import write_sample_data
from adref.method import Stage, Trainable
from adref.methods import METHODS
from adref.options import UserError
from adref.run.directory import read_log

FORMS = {"fp32": {}, "bf16": {"precision": "bf16"}, "compiled": {}, "any order": {"free": True}}
COLUMNS = {  # of a process that measures methods: what is measured, in which forms
    "eager": (("step", ("fp32", "bf16", "any order")), ("map", ("fp32", "bf16")), ("16 maps", ("fp32",))),
    "compiled": (("step", ("compiled",)), ("map", ("compiled",))),
}
ROWS_SHARE, TRAINING_SHARE, SHORT_SHARE = 0.27, 0.5, 0.04  # of the seconds
LONGEST, EVALUATION = 240, 60  # seconds of training, at most, and those that are kept for its evaluation
WARM_STEPS = 3  # of a training, which choose kernels and start workers
NO_TIME, DONE = "left out: no time", "done"
PRINTED = {  # figures of speed that the papers have
    "srdad": "11.8 (85 ms; TITAN Xp; its text)",
    "realnet": "31.93, in 4 GB (architecture A; RTX 3090; table of efficiency)",
    "sdas": "0.46 (10,000 in 6 hours; RTX 3090; text of RealNet)",
}


def plan(columns: str, device: str) -> list[tuple[str, str]]:
    """Lists what a process measures, and in which form."""
    found = [(what, label) for what, forms in COLUMNS[columns] for label in forms]
    return [(what, label) for what, label in found if label != "any order" or device.startswith("cuda")]


def cells_of(name: str, columns: str, preset: str, device: torch.device, data: Path) -> Iterator[tuple[str, str, dict]]:
    """Measures a method: yields the row, the column and the cell of each measurement."""
    bench = speed.open_bench(name, preset, find_category(data, "fabric"), device, False)
    method = bench.method(compiled=columns == "compiled")
    rows = {stage: f"{name}, {stage.name}" for stage in method.stages}
    for what, label in plan(columns, device.type):
        form = FORMS[label]
        if what == "step":
            for stage in (stage for stage in rows if stage.length):
                yield rows[stage], f"{what}, {label}", measure_step(bench, stage, method, form)
        else:
            method.zero_grad()
            make = partial(speed.inference, bench, method, **form, count=16 if what == "16 maps" else 1)
            yield list(rows.values())[-1], f"{what}, {label}", measure(make, device)


def measure_step(bench: speed.Bench, stage: Stage, method: Trainable, form: dict) -> dict:
    """Measures a training step, at half the batch where memory does not suffice, and so on."""
    size = bench.options.batch_size
    while True:
        smaller = bench._replace(options=replace(bench.options, batch_size=size))
        method.zero_grad()
        make = partial(speed.training_step, smaller, stage, method, **form)
        cell = {**measure(make, bench.device), "batch": size}
        if "out of memory" not in cell.get("failure", "") or size == stage.parts:
            return cell
        size = max(stage.parts, size // 2)


def measure(make: Callable[[], Callable], device: torch.device) -> dict:
    """Times what `make` makes, and measures its peak of memory on a GPU; a failure is a cell, too."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        cell = speed.measure({"": make()}, 10, speed.waiter(device))[""]
    except Exception as error:  # e.g. no memory for the weights
        cell = {"failure": speed.reason(error)}
    if device.type == "cuda" and "failure" not in cell:
        cell["gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return cell


class Clock:
    """Counts the seconds that are left."""

    def __init__(self, seconds: float):
        self.seconds, self.began = seconds, time.monotonic()

    def left(self, reserve: float = 0.0) -> float:
        """Returns the seconds left but for a reserve."""
        return self.seconds - reserve - (time.monotonic() - self.began)


STARTED: list[subprocess.Popen] = []


def start(words: list, log: Path) -> subprocess.Popen:
    """Starts Python, the leader of a new group of processes, that writes to a file and to the same with .err."""
    with open(log, "w") as out, open(f"{log}.err", "w") as error:
        command = [sys.executable, *map(str, words)]
        STARTED.append(subprocess.Popen(command, stdout=out, stderr=error, preexec_fn=os.setpgrp))
    return STARTED[-1]


@contextmanager
def no_survivors() -> Iterator[None]:
    """Ends, at last, what was started and still runs, e.g. after Ctrl-C."""
    try:
        yield
    finally:
        for process in (process for process in STARTED if process.poll() is None):
            os.killpg(process.pid, signal.SIGKILL)


def finish(process: subprocess.Popen, seconds: float, log: Path) -> str:
    """Waits for the end, which it brings about after some seconds; returns why it failed, empty if it did not."""
    try:
        code = process.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"left out: not done after {max(0.0, seconds):.0f} s"
    lines = Path(f"{log}.err").read_text(errors="replace").strip().splitlines() or [f"exit code {code}"]
    return "" if code in (0, 130) else lines[-1][:90]


def measure_methods(columns: str, given: argparse.Namespace, clock: Clock, reserve: float, folder: Path,
                    cells: dict) -> None:  # fmt: skip
    """Measures all methods, in a process of their own, into `cells`, row -> column -> cell.

    A method in which the process dies is left out, and another process goes on with the next.
    """
    names = [name for name in METHODS if given.preset in METHODS[name].presets and plan(columns, given.device)]
    while names:
        log, failure, done = folder / f"{names[0]}-{columns}", NO_TIME, []
        if clock.left(reserve) > 0:
            words = ["--rows", *names, "--columns", columns, "--device", given.device, "--preset", given.preset,
                     "--seconds", given.seconds, "--data", folder / "sample"]  # fmt: skip
            failure = finish(start([__file__, *words], log), clock.left(reserve), log)
            for line in (line for line in log.read_text().splitlines() if line.startswith("[")):
                row, column, cell = json.loads(line)
                if column == DONE:
                    done.append(row)
                else:
                    cells.setdefault(row, {})[column] = cell
        left, names = names[len(done) :], names[len(done) + 1 :]
        for column in map(", ".join, plan(columns, given.device)) if left else ():
            for row in [row for row in cells if row.split(", ")[0] == left[0]] or [left[0]]:
                cells.setdefault(row, {}).setdefault(column, {"failure": failure})


def train(given: argparse.Namespace, workers: int, seconds: float, clock: Clock, reserve: float, run: Path) -> dict:
    """Trains DRAEM for some seconds from the first step on, and tells how long it waits for data."""
    words = ["-m", "adref.train", "draem", "--data", given.data, "--category", given.category, "--preset", given.preset,
             "--device", given.device, "--workers", workers, "--checkpoint-seconds", 1e6, "--out", run]  # fmt: skip
    log, steps = run.with_suffix(".log"), run / "metrics.jsonl"
    if clock.left(reserve) <= 0:
        return {"failure": NO_TIME}
    process = start(words, log)
    while process.poll() is None and clock.left(reserve) > 0 and not (steps.exists() and steps.stat().st_size):
        time.sleep(0.1)
    end = time.monotonic() + min(seconds, clock.left(reserve))
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    failure = finish(process, clock.left() if steps.exists() else 0, log)
    lines = read_log(run)[WARM_STEPS:] if not failure and steps.exists() else []
    if not lines:
        return {"failure": failure or f"fewer than {WARM_STEPS + 1} steps"}
    waited, took = (sum(line[key] for line in lines) for key in ("data_seconds", "seconds"))
    return {"steps": lines[-1]["step"], "passes": lines[-1]["epoch"], "seconds": took, "share_waiting": waited / took,
            "step_ms": 1000 * statistics.median(line["seconds"] for line in lines),
            "waiting_ms": 1000 * waited / len(lines)}  # fmt: skip


def evaluate(given: argparse.Namespace, clock: Clock, run: Path) -> dict:
    """Evaluates an interrupted run."""
    log = run.with_suffix(".evaluation")
    if clock.left() <= 0 or not (run / "checkpoint.pt").exists():
        return {"failure": NO_TIME if clock.left() <= 0 else "nothing was trained"}
    failure = finish(start(["-m", "adref.evaluate", run, "--device", given.device], log), clock.left(), log)
    return {"failure": failure} if failure else json.loads((run / "evaluation/metrics.json").read_text())


def printed_numbers(category: str) -> dict[str, str]:
    """Looks up DRAEM's printed numbers of a category of MVTec AD."""
    with open(Path(adref.__file__).with_name("published.csv"), newline="") as file:
        key = {"method": "draem", "ablation": "", "preset": "paper", "dataset": "MVTec AD", "category": category}
        return {row["metric"]: row["value"] for row in csv.DictReader(file) if key.items() <= row.items()}


def digits(number: float) -> str:
    """Formats a number with three digits or more."""
    return f"{number:.3g}" if abs(number) < 1000 else f"{number:.0f}"


def shown(cell: dict | None) -> str:
    """Formats a cell: its time and memory, or why there is none."""
    if cell is None or "failure" in cell:
        return cell["failure"].replace("|", "/") if cell else ""
    return f"{digits(cell['median_ms'])} ms" + (f", {cell['gib']:.2f} GiB" if "gib" in cell else "")


def table(head: list[str], rows: list[list]) -> str:
    """Formats a table in Markdown."""
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows))


def report(facts: dict, cells: dict, waiting: dict[int, dict], metrics: dict, category: str) -> str:
    """Writes all tables."""
    steps = ["step, fp32", "step, any order", "step, bf16", "step, compiled"]
    columns = [*steps, "map, fp32", "map, bf16", "map, compiled"]
    rows, speeds = [], []
    for row, found in cells.items():
        sizes = {cell["batch"] for cell in found.values() if "batch" in cell}
        rows.append([row, ", ".join(map(str, sorted(sizes))), *(shown(found.get(column)) for column in columns)])
        if "map, fp32" in found:
            rates = []
            for column, count in (("map, fp32", 1), ("16 maps, fp32", 16)):
                cell = found.get(column, {"failure": NO_TIME})
                rates.append(shown(cell) if "failure" in cell else digits(1000 * count / cell["median_ms"]))
            speeds.append([name := row.split(", ")[0], *rates, PRINTED.get(name, "")])
    waits = [[n, f["failure"], "", "", ""] if "failure" in f else
             [n, f["steps"], digits(f["step_ms"]), digits(f["waiting_ms"]), f"{f['share_waiting']:.1%}"]
             for n, f in waiting.items()]  # fmt: skip
    names, last = ("image_auroc", "pixel_auroc", "pixel_ap", "aupro_0.3"), list(waiting.values())[-1]
    numbers = [metrics["failure"], "", "", ""] if "failure" in metrics else [f"{metrics[n]:.3f}" for n in names]
    length = [last.get(key, "") for key in ("steps", "passes")]
    quality = [[f"after {last.get('seconds', 0):.0f} s", *length, *numbers]]
    if printed := printed_numbers(category):
        quality.append(["printed (700 passes)", "", "", *(printed.get(n, "") for n in names)])
    return f"""{", ".join(f"{key} {value}" for key, value in facts.items())}.

Milliseconds (medians) and the peak of memory. A step is one of `python -m adref.train`; "any order": without the
algorithms that make a resumed run end bit-equal. A map is the score and the map of one picture; of `sdas`, a drawn
picture.

{table(["method, stage", "batch", *columns], rows)}

Pictures a second, in fp32, beside those that are printed.

{table(["method", "1 at a time", "16 at a time", "printed"], speeds)}

Who waits for whom: a step of DRAEM's training, and how long of it no batch was there.

{table(["workers", "steps", "step, ms", "waiting, ms", "share"], waits)}

DRAEM on {category}, interrupted in the schedule of its preset.

{table(["", "steps", "passes", "image AUROC", "pixel AUROC", "pixel AP", "AUPRO 0.3"], quality)}
"""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code, 1 where nothing could be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="ROOT", help="data set of the training [generated pictures]")
    parser.add_argument("--category", help="its category [fabric of the generated ones]")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu [cuda]")
    parser.add_argument("--preset", default="paper", help="methods without it are left out [paper]")
    parser.add_argument("--seconds", type=float, default=470.0, help="of all after the imports [470]")
    parser.add_argument("--out", type=Path, metavar="FILE", help="writes the tables")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the numbers")
    parser.add_argument("--rows", nargs="+", help=argparse.SUPPRESS)  # a process that measures methods
    parser.add_argument("--columns", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.rows:
        speed.LIMIT = given.seconds / 480
        for name in given.rows:
            for cell in cells_of(name, given.columns, given.preset, torch.device(given.device), given.data):
                print(json.dumps(cell), flush=True)
            print(json.dumps([name, DONE, {}]), flush=True)
        return 0
    if (given.data is None) != (given.category is None):
        parser.error("--data and --category go together: a data set and one of its categories")
    if not any(given.preset in method.presets for method in METHODS.values()):
        parser.error(f"--preset: expected paper, tiny or another of the methods' presets, got {given.preset!r}")
    if given.seconds <= 0:
        parser.error(f"--seconds: expected more than 0, got {given.seconds:g}")
    if given.data is not None:
        try:
            find_category(given.data, given.category)
        except UserError as error:
            parser.error(f"--data: {error}")
    try:
        device = torch.empty(1, device=given.device).device
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device: expected one that is there, got {given.device!r} ({str(error).splitlines()[0]})")
    clock, command = Clock(given.seconds), shlex.join(sys.argv[1:] if argv is None else argv)
    facts = {"device": speed.name_of(device), "torch": torch.__version__, "preset": given.preset, "date": date.today()}
    if device.type == "cuda":
        size = torch.cuda.get_device_properties(device).total_memory / 2**30
        facts |= {"memory": f"{size:.0f} GiB", "CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version(),
                  "TF32 in convolutions": torch.backends.cudnn.allow_tf32}  # fmt: skip
    with tempfile.TemporaryDirectory() as name, no_survivors():
        folder, cells, waiting = Path(name), {}, {}
        write_sample_data(folder / "sample", size=256, train=8, test=4, per_defect=2, categories=("fabric",))
        measure_methods("eager", given, clock, (1 - ROWS_SHARE) * given.seconds, folder, cells)
        if given.data is None:
            given.data, given.category = write_sample_data(folder / "data", categories=("fabric",)), "fabric"
        lengths = {2: SHORT_SHARE * given.seconds, 8: min(LONGEST, TRAINING_SHARE * given.seconds)}  # by workers
        for workers, length in lengths.items():
            reserve = min(EVALUATION, given.seconds / 3)
            waiting[workers] = train(given, workers, length, clock, reserve, folder / f"run-{workers}")
        metrics = evaluate(given, clock, folder / "run-8")
        measure_methods("compiled", given, clock, 0.0, folder, cells)
    facts["seconds"] = f"{given.seconds - clock.left():.0f} of {given.seconds:g}"
    facts["command"] = f"`python tools/gpu_check.py {command}`"
    text = report(facts, cells, waiting, metrics, given.category)
    print(text)
    if given.out:
        given.out.write_text(text)
    if given.json:
        found = {"facts": facts, "cells": cells, "waiting": waiting, "metrics": metrics}
        given.json.write_text(json.dumps(found, indent=1, default=str) + "\n")
    return int(all("median_ms" not in cell for row in cells.values() for cell in row.values()))


if __name__ == "__main__":
    sys.exit(main())
