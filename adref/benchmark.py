"""python -m adref.benchmark --methods M... --data ROOT... --out DIR [--categories ...] [--seeds 0 1 2] [-- FLAGS]

Trains and evaluates every method on every category with every seed, each cell by one process of python -m adref.train
whose run directory is DIR/METHOD-PRESET[-ABLATION]/CATEGORY/seed-N. Finished cells are skipped, begun ones are resumed.
Writes summary.md, summary.csv, summary.json and index.html to DIR: results beside published numbers.
"""

import argparse
import itertools
import json
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from adref.run.threads import bound_spinning

if __name__ == "__main__":
    bound_spinning()  # before torch is loaded

import torch

from adref.data.layouts import find_categories
from adref.method import Method
from adref.methods import METHODS, find_method
from adref.options import Parser, UserError, flag, names, refuse_unknown
from adref.run import config
from adref.run.cli import entry_point, signal_handler
from adref.run.directory import lock, read_config
from adref.run.files import no_links, result_path, safe_name
from adref.run.summary import last_line, read_metrics, write_summary


class Cell(NamedTuple):
    """One training run with its evaluation."""

    run: Path  # run directory
    log: Path  # beside it
    argv: list[str]  # arguments of adref.train except --out, --device and --resume
    config: dict  # the configuration that they give


@entry_point
def main(argv: list[str]) -> int:
    """Runs the cells that are not finished and writes the summary; returns 1 if a cell failed."""
    end = argv.index("--") if "--" in argv else len(argv)
    arguments = parse_arguments(argv[:end])
    cells = make_cells(arguments, group_flags(argv[end + 1 :]))
    for cell in cells:
        check_unchanged(cell)
    waiting = [cell for cell in cells if read_metrics(cell.run) is None]
    print(f"{len(cells)} cells, {len(cells) - len(waiting)} finished before. Folder: {arguments.out}", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        with signal_handler(signal.default_int_handler):  # SIGTERM ends like Ctrl-C
            failed = run_cells(waiting, arguments.devices)
    finally:
        write_summary(arguments.out)
    for cell in failed:
        print(f"failed: {cell.log}: {last_line(cell.log)}", file=sys.stderr)
    print(f"Tables: {(arguments.out / 'index.html').resolve()}")
    return 1 if failed else 0


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Parses the command line up to `--`."""
    parser = Parser(
        prog="python -m adref.benchmark", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
        epilog="FLAGS are those of adref.train; each method gets the ones it has: -- --textures FOLDER --epochs 50",
    )  # fmt: skip
    scoring, add = [name for name, method in METHODS.items() if issubclass(method, Method)], parser.add_argument
    add("--methods", nargs="+", metavar="M", default=scoring,
        help=f"METHOD or METHOD:PRESET; of {', '.join(scoring)} [all]")  # fmt: skip
    add("--data", nargs="+", type=Path, metavar="ROOT", required=True, help="folders of data sets")
    add("--categories", nargs="+", metavar="NAME", help="[all in the folders]")
    add("--seeds", nargs="+", type=int, default=[0], metavar="N", help="[0]")
    add("--preset", default="paper", help="preset of methods given without one [paper]")
    add("--ablations", nargs="+", default=[], metavar="NAME", help="further cells of the methods that have these")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of all cells")
    add("--shard", type=shard, default=(1, 1), metavar="I/N",
        help="every N-th cell from the I-th on, for N machines on one disk [1/1]")  # fmt: skip
    add("--devices", nargs="+", metavar="D", default=[f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"],
        help="one cell at a time runs on each; a device can be given twice, cpu cpu with OMP_NUM_THREADS=1 [every GPU, "
        "or the CPU]")  # fmt: skip
    return parser.parse_args(argv)


def shard(text: str) -> tuple[int, int]:
    """Parses I/N; raises ValueError unless 1 <= I <= N."""
    first, count = map(int, text.split("/"))
    if not 1 <= first <= count:
        raise ValueError
    return first, count


def make_cells(arguments: argparse.Namespace, given: dict[str, list[str]]) -> list[Cell]:
    """Lists the cells of this shard: by seed, then category, then method and ablation; `given`: from `group_flags`."""
    variants, known = [], {}
    for word in dict.fromkeys(arguments.methods):
        name, _, preset = word.partition(":")
        method = find_method(name)
        if not issubclass(method, Method):
            raise UserError(f"--methods: {name} scores no images")
        ablations = [None, *dict.fromkeys(a for a in arguments.ablations if a in method.ablations)]
        variants += [(name, preset or arguments.preset, ablation) for ablation in ablations]
        known[name] = {*names(method.Options), *names(config.RunSettings)}
        known[name] -= set() if "backbone" in known[name] else {"backbone_weights"}
    if unknown := set(arguments.ablations) - {ablation for *_, ablation in variants}:
        raise UserError(f"--ablations: no method has {min(unknown)}")
    every = set().union(*known.values())
    for key in given.keys() - every:
        refuse_unknown(flag(key), every)
    cells, roots = [], find_roots(arguments.data, arguments.categories)
    seeds, (first, count) = dict.fromkeys(arguments.seeds), arguments.shard
    for seed, category, (name, preset, ablation) in itertools.product(seeds, roots, variants):
        argv = [name, "--data", str(roots[category].absolute()), f"--category={category}", "--seed", str(seed)]
        argv += ["--preset", preset, *(["--ablation", ablation] if ablation else [])]
        argv += [word for key, values in given.items() if key in known[name] for word in (flag(key), *values)]
        variant = "-".join(filter(None, (name, preset, ablation)))
        run = result_path(arguments.out, f"{variant}/{safe_name(category)}/seed-{seed}")
        cells.append(Cell(run, run.with_suffix(".log"), argv, config.new_config(config.parse_arguments(argv, ""))))
    return cells[first - 1 :: count]


def find_roots(roots: list[Path], wanted: list[str] | None) -> dict[str, Path]:
    """Maps each category to the folder of its data set; UserError for an unknown one, or one of two data sets."""
    found: dict[str, Path] = {}
    for root in roots:
        for name in find_categories(root):
            if name in found and (wanted is None or name in wanted):
                raise UserError(f"--data: {found[name]} and {root} both have a category {name}")
            found[name] = root
    if unknown := [name for name in wanted or [] if name not in found]:
        raise UserError(f"--categories: there is no {unknown[0]}; known: {', '.join(sorted(found)) or 'none'}")
    return {name: found[name] for name in wanted or found}


def group_flags(words: list[str]) -> dict[str, list[str]]:
    """Groups flags of adref.train with their values: `--a=1 --b-c 2 3` becomes {"a": ["1"], "b_c": ["2", "3"]}."""
    found: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            values = found[name.replace("-", "_")] = [value] if value else []
        elif not found:
            raise UserError(f"flags of adref.train stand after --; got {word!r}")
        else:
            values.append(word)
    for name in ("data", "category", "seed", "device", "out", "resume", "preset", "ablation"):
        if name in found:
            raise UserError(f"{flag(name)} cannot stand after --: the benchmark sets it for each cell")
    return found


def check_unchanged(cell: Cell) -> None:
    """Raises UserError if the cell was begun with other flags, except those that a resumed run may change."""
    if not (cell.run / "config.json").exists():
        return
    both = (read_config(cell.run), json.loads(json.dumps(cell.config)))
    old, new = ({**one["options"], **one["flags"]} for one in both)
    for name, value in new.items():
        if name not in config.FREE_ON_RESUME and old.get(name) != value:
            raise UserError(f"{cell.run} was begun with {flag(name)} {old.get(name)}, now {value}; give another --out")


def run_cells(cells: list[Cell], devices: list[str]) -> list[Cell]:
    """Runs cells, one at a time on each device, unless another process runs them; returns those that failed."""
    waiting, running, free, failed, began = list(cells), {}, list(devices), [], time.monotonic()
    try:
        while waiting or running:
            while waiting and free:
                cell, device = waiting.pop(0), free.pop(0)
                running[start(cell, device)] = cell, device
            time.sleep(0.1)
            for process in [process for process in running if process.poll() is not None]:
                cell, device = running.pop(process)
                free.append(device)
                state = "finished"
                if process.returncode:
                    state = "in use by another process" if is_locked(cell.run) else "failed"
                failed += [cell] if state == "failed" else []
                done, seconds = len(cells) - len(waiting) - len(running), time.monotonic() - began
                print(f"{done}/{len(cells)}, {seconds:.0f} s: {cell.run} {state}", flush=True)
    finally:
        for process in running:
            process.terminate()  # adref.train saves a checkpoint and ends
        for process in running:
            process.wait()
    return failed


def start(cell: Cell, device: str) -> subprocess.Popen:
    """Starts or resumes a cell; its output is appended to its log."""
    command = [sys.executable, "-m", "adref.train", *cell.argv, "--out", str(cell.run), "--device", device]
    command += ["--resume"] if (cell.run / "config.json").exists() else []
    cell.run.parent.mkdir(parents=True, exist_ok=True)
    with open(cell.log, "ab", opener=no_links) as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def is_locked(run: Path) -> bool:
    """Tells whether another process holds the lock of a run directory."""
    try:
        with lock(run) if run.exists() else nullcontext():
            return False
    except UserError:
        return True


if __name__ == "__main__":
    sys.exit(main())
