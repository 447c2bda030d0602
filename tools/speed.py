"""Times building blocks beside their peers, and whole methods beside the plain path and the machine's limits.

    python tools/speed.py [NAME ...] [--rounds 15] [--device cuda] [--threads 1] [--preset tiny] [--compile] [--json F]

All in one run, the rows of a group in turns. Each row: median milliseconds, 5th and 95th percentile, ratio to the first
row of its group (below 1: faster); where operations are counted, GFLOP/s and the share of what the machine reached
beside it, in the same precision, in a matrix product or a convolution (rows "limit"); the largest difference to the
result of adref, as a share of the largest value. Brackets mark what is no equal of adref. Peers that are not installed
are left out (extra `peers`; timm, torchvision, kornia, piq, torchmetrics and torcheval where they can be imported).
The table ends with adref beside the fastest equal peer of each group.
"""

import argparse
import os
import sys

if __name__ == "__main__":  # numpy and torch read these when they are imported
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--threads", default="1")
    threads = early.parse_known_args()[0].threads
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from speed_blocks import BLOCKS, DRAWN, Row, Rows, limits, peer
from speed_methods import method_groups

from adref.options import UserError
from adref.run.cli import guarded
from adref.run.directory import find_device, write_json

ENOUGH = 10_000.0  # milliseconds that a row takes in all, after which it is called no more


class Timing(NamedTuple):
    """What was found of a row."""

    milliseconds: list[float]  # of each round
    difference: float | None  # of its result to that of adref, as a share of the largest value; None: not comparable
    failure: str = ""  # why there is nothing


def measure(rows: Rows, rounds: int, wait: Callable[[], object] = lambda: None) -> dict[str, Timing]:
    """Times rows in turns, so that a slow moment of the machine meets all; the first call of each warms up.

    Args:
        rows: the group.
        rounds: timed calls of each, fewer of slow ones.
        wait: returns when the device has done what it was told.
    """
    calls = {label: row.run if isinstance(row, Row) else row for label, row in rows.items()}
    results, failures, times = {}, {}, {}
    for label, call in calls.items():
        try:
            results[label], times[label] = call(0), []
        except Exception as error:  # of a peer, or of a compiler: the other rows go on
            failures[label] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:90]}"
    for i in range(1, rounds + 1):
        for label, taken in times.items():
            if sum(taken) > ENOUGH:
                continue
            wait()
            began = time.perf_counter()
            calls[label](i)
            wait()
            taken.append(1000 * (time.perf_counter() - began))
    own = next((results[label] for label in times if label.startswith("adref")), None)
    found = {label: Timing(taken, difference(results[label], own)) for label, taken in times.items()}
    return found | {label: Timing([], None, reason) for label, reason in failures.items()}


def difference(result: object, own: object) -> float | None:
    """The largest difference of two results as a share of the largest value; None where they are no like numbers."""
    numbers = (torch.Tensor, np.ndarray, np.generic, int, float)
    if not isinstance(result, numbers) or not isinstance(own, numbers):
        return None
    a, b = (np.asarray(x.detach().cpu() if isinstance(x, torch.Tensor) else x) for x in (result, own))
    if a.shape != b.shape:
        return None
    return float(np.abs(a.astype(np.float64) - b).max() / max(float(np.abs(b).max()), 1e-300))


def summarise(rows: Rows, timings: dict[str, Timing]) -> dict[str, dict]:
    """What the JSON holds of a group: a dictionary a row."""
    medians = {label: float(np.median(timing.milliseconds)) for label, timing in timings.items() if not timing.failure}
    rates = {label: rows[label].flop / medians[label] / 1e6 for label in medians if getattr(rows[label], "flop", 0)}
    best: dict[str, float] = {}  # GFLOP/s by precision
    for label, rate in rates.items():
        if label.startswith("limit"):
            best[rows[label].precision] = max(rate, best.get(rows[label].precision, 0.0))
    result = {}
    for label in rows:
        if reason := timings[label].failure:
            result[label] = {"failure": reason}
            continue
        low, high = np.percentile(timings[label].milliseconds, (5, 95))
        entry = {"median_ms": medians[label], "p5_ms": float(low), "p95_ms": float(high)}
        entry["rounds"] = len(timings[label].milliseconds)
        entry["ratio"] = medians[label] / next(iter(medians.values()))
        if label in rates:
            entry["gflops"] = rates[label]
            if limit := best.get(rows[label].precision):
                entry["share_of_limit"] = rates[label] / limit
        if timings[label].difference is not None and not label.startswith("adref"):
            entry["difference"] = timings[label].difference
        if isinstance(rows[label], Row) and (note := rows[label].note(medians)):
            entry["note"] = note
        result[label] = entry
    return result


def describe(label: str, entry: dict) -> str:
    """A line of the table."""
    if "failure" in entry:
        return f"  {label:40s} failed: {entry['failure']}"
    text = f"  {label:40s} {entry['median_ms']:10.3f} ms  [{entry['p5_ms']:.3f}, {entry['p95_ms']:.3f}]"
    text += f"  x {entry['ratio']:.2f}"
    if "gflops" in entry:
        text += f"  {entry['gflops']:.1f} GFLOP/s"
        text += f", {entry['share_of_limit']:.0%} of the limit" if "share_of_limit" in entry else ""
    text += f"  differs by {entry['difference']:.0e}" if "difference" in entry else ""
    return text + (f"  {entry['note']}" if "note" in entry else "")


def beside_peers(result: dict[str, dict]) -> dict[str, tuple[float, str]]:
    """The time of adref as a share of that of the fastest equal peer, and which that is, by group; the worst first."""
    found = {}
    for name, group in result.items():
        own = next((e["median_ms"] for label, e in group.items() if label.startswith("adref") and "ratio" in e), None)
        equal = {label: e["median_ms"] for label, e in group.items()
                 if "ratio" in e and "(" not in label and not label.startswith(("adref", "limit"))}  # fmt: skip
        if own and equal and name in BLOCKS:
            best = min(equal, key=equal.get)
            found[name] = own / equal[best], best
    return dict(sorted(found.items(), key=lambda item: -item[1][0]))


def main(argv: list[str] | None = None) -> int:
    """Prints the table, and writes the JSON; returns the exit code, 1 where a row of adref failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="parts of the names of the groups to run [all]")
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each row [15]")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N, for all that is no numpy [cpu]")
    parser.add_argument("--threads", type=int, default=1, help="of torch, numpy and scipy [1]")
    parser.add_argument("--preset", default="tiny", help="of the methods; those without it are left out [tiny]")
    parser.add_argument("--compile", action="store_true", help="methods through torch.compile too: minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the same goes as JSON")
    arguments = parser.parse_args(argv)
    return guarded(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> int:
    """What `main` does when nothing goes wrong.

    Raises:
        UserError: no such device, group or folder, or numbers out of range.
    """
    if arguments.rounds < 1 or arguments.threads < 1:
        raise UserError("--rounds and --threads take 1 or more")
    if arguments.json and not arguments.json.absolute().parent.is_dir():
        raise UserError(f"--json {arguments.json}: its folder is not there")
    device = find_device(arguments.device)
    torch.set_num_threads(arguments.threads)
    if cv2 := peer("cv2"):
        cv2.setNumThreads(arguments.threads)
    torch.manual_seed(0)
    groups = {"machine": lambda: limits(device), **BLOCKS, **method_groups(arguments.preset, device, arguments.compile)}
    chosen = {
        name: group for name, group in groups.items()
        if not arguments.names or any(word in name for word in arguments.names)
    }  # fmt: skip
    if not chosen:
        raise UserError(f"no group has a name with {' or '.join(arguments.names)}; there are: {'; '.join(groups)}")
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    facts = {"device": machine or platform.machine(), "torch": torch.__version__, "numpy": np.__version__,
             "threads": arguments.threads, "preset": arguments.preset, "rounds": arguments.rounds}  # fmt: skip
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    result = {}
    for name, group in chosen.items():
        with torch.device(device):
            rows = group()
        rounds = arguments.rounds * (10 if name == DRAWN else 1)
        timings = measure(rows, rounds, torch.cuda.synchronize if device.type == "cuda" else lambda: None)
        result[name] = summarise(rows, timings)
        print(name, *(describe(label, entry) for label, entry in result[name].items()), sep="\n", flush=True)
    if compared := beside_peers(result):
        print("adref beside the fastest equal peer: below 1 it is faster")
        print(*(f"  {name:40s} x {ratio:.2f}  {best}" for name, (ratio, best) in compared.items()), sep="\n")
    if arguments.json:
        write_json(arguments.json, {**facts, "groups": result})
    failed = [label for group in result.values() for label, entry in group.items() if "failure" in entry]
    return int(any(label.startswith("adref") for label in failed))


if __name__ == "__main__":
    sys.exit(main())
