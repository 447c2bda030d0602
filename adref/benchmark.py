"""python -m adref.benchmark --methods M... --data ROOT... --out DIR [--categories ...] [--seeds 0 1 2] [-- FLAGS]

Trains and evaluates every method on every category with every seed, a cell each, and writes DIR/index.html,
summary.md, summary.csv, cells.csv and summary.json: our numbers beside the published ones. A finished cell is skipped;
what was killed goes on. Start the command several times, also on machines that share DIR, and they divide the cells.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from adref import options as option_tools
from adref import train
from adref.data.layouts import find_categories, require_sound
from adref.method import Method, Trainable
from adref.methods import METHODS, find_method
from adref.options import UserError, flag
from adref.run.claims import ELSEWHERE, claimed, is_free, put
from adref.run.cli import guarded
from adref.run.config import FREE_ON_RESUME, PATHS, Flags
from adref.run.directory import find_device, load_checkpoint, read_log
from adref.run.files import read_json, write_json
from adref.run.site import METRICS, clock
from adref.run.summary import summarise

OWN_FLAGS = ("data", "category", "seed", "device")  # what cells are made of; the rest may follow --


class Cell(NamedTuple):
    """One training with its evaluation."""

    folder: Path  # DIR/VARIANT/CATEGORY/seed-N
    argv: tuple[str, ...]  # of adref.train, without --out and --device

    @property
    def result(self) -> Path:
        """The file that says how it ended."""
        return self.folder / "result.json"


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    return guarded(lambda: run_command(argv))


def run_command(argv: list[str]) -> int:
    """What `main` does when nothing goes wrong; 1 where a cell failed."""
    end = argv.index("--") if "--" in argv else len(argv)
    arguments, extra = parse_arguments(argv[:end]), argv[end + 1 :]
    cells, places, out = plan(arguments, extra), devices(arguments.device), arguments.out
    out.mkdir(parents=True, exist_ok=True)
    for cell in cells:
        begin(cell, arguments.retry)
    left = [cell for cell in cells if not cell.result.exists()]
    print(f"{len(cells)} cells, {len(cells) - len(left)} of them ended before. Folder: {out}")
    try:
        work_off(left, places, arguments, out)
    finally:
        rows = summarise(out)
    own = {cell.folder.relative_to(out).parts for cell in cells}
    failed = [row for row in rows if row["state"] == "failed"
              and (row["variant"], row["category"], f"seed-{row['seed']}") in own]  # fmt: skip
    for row in failed:  # --retry is for these
        print(f"failed: {row['variant']} {row['category']} seed {row['seed']}: {row['reason']}", file=sys.stderr)
    if failed:
        print("Failed cells are tried again with --retry", file=sys.stderr)
    print(f"Table: {(out / 'index.html').resolve()}")
    return 1 if failed else 0


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """The command line without what follows `--`."""
    parser = option_tools.Parser(
        prog="python -m adref.benchmark", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__.split("\n\n", 1)[1],
        epilog="FLAGS go to adref.train, each to the methods that know it: -- --textures FOLDER --epochs 50",
    )  # fmt: skip
    scoring = [name for name, method in METHODS.items() if issubclass(method, Method)]
    parser.add_argument("--methods", nargs="+", metavar="M", default=scoring,
                        help=f"METHOD or METHOD:PRESET; of {', '.join(scoring)} [all]")  # fmt: skip
    parser.add_argument("--data", nargs="+", metavar="ROOT", required=True, help="folders of data sets")
    parser.add_argument("--categories", nargs="+", metavar="NAME", help="[all that the folders have]")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="[0]")
    parser.add_argument("--preset", default="paper", help="of methods that are named without one [paper]")
    parser.add_argument("--ablations", nargs="+", default=[], metavar="NAME",
                        help="cells beside the plain ones, of the methods that have them")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder of all cells")
    parser.add_argument("--device", nargs="+", default=["auto"], help="auto is every GPU, or the CPU [auto]")
    parser.add_argument("--jobs", type=int, metavar="N", help="cells at once [one a GPU, or one a core of the CPU]")
    parser.add_argument("--threads", type=int, default=1, metavar="N",
                        help="of a cell on a CPU; another number changes last digits [1]")  # fmt: skip
    parser.add_argument("--retry", action="store_true", help="try failed cells again")
    return parser.parse_args(argv)


# -- cells ------------------------------------------------------------------------------------------------------------


def plan(arguments: argparse.Namespace, extra: list[str]) -> list[Cell]:
    """Every cell, the first seed of all categories and methods first.

    Raises:
        UserError: a method, preset, ablation, category or flag that there is not, or data that cannot be read.
    """
    for name in ("jobs", "threads"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise UserError(f"--{name} takes a number above 0; got {value}")
    if arguments.out.resolve() == Path.cwd() or (arguments.out.exists() and not arguments.out.is_dir()):
        raise UserError(f"--out takes a folder of its own; got {arguments.out}")
    if "" in arguments.data:
        raise UserError("--data takes paths; got an empty name")
    roots = find_roots([Path(root) for root in arguments.data], arguments.categories)
    variants, given = [], flags_of(extra)
    for word in dict.fromkeys(arguments.methods):
        name, _, preset = word.partition(":")
        method = find_method(name)
        if word.endswith(":"):
            raise UserError(f"--methods: {word} names no preset")
        if not issubclass(method, Method):
            raise UserError(f"--methods: {name} scores no images")
        own = [ablation for ablation in arguments.ablations if ablation in method.ablations]
        variants += [(name, preset or arguments.preset, ablation) for ablation in (None, *dict.fromkeys(own))]
    methods = {name: find_method(name) for name, _, _ in variants}
    for ablation in arguments.ablations:
        if not any(ablation in method.ablations for method in methods.values()):
            known = sorted({name for method in methods.values() for name in method.ablations})
            raise UserError(f"--ablations: none of the methods has {ablation}; known: {', '.join(known) or 'none'}")
    for name in given:
        known = {key for method in methods.values() for key in known_flags(method)}
        if name not in known:
            option_tools.refuse_unknown(flag(name), known)
    values = {key: ",".join(words) for key, words in given.items()}
    run_flags = {key: value for key, value in values.items() if key in option_tools.names(Flags)}
    for seed in arguments.seeds:
        option_tools.replace(Flags(), {**run_flags, "seed": seed})
    for name, preset, ablation in variants:
        method = methods[name]
        changes = {key: value for key, value in values.items() if key in option_tools.names(method.Options)}
        option_tools.build(method.Options, method.presets, method.ablations, preset, ablation, changes)
    cells = []
    for seed, (category, root) in itertools.product(dict.fromkeys(arguments.seeds), roots.items()):
        for name, preset, ablation in variants:
            argv = [name, "--data", os.path.abspath(root), "--category", category, "--seed", str(seed)]
            argv += ["--preset", preset, *(["--ablation", ablation] if ablation else [])]
            for key, words in given.items():
                argv += [flag(key), *words] if key in known_flags(methods[name]) else []
            variant = "-".join(part for part in (name, preset, ablation) if part)
            cells.append(Cell(arguments.out / variant / category / f"seed-{seed}", tuple(argv)))
    return cells


def find_roots(roots: list[Path], wanted: list[str] | None) -> dict[str, Path]:
    """Category -> the folder of its data set."""
    found = {}
    for root in roots:
        for name in find_categories(root):
            if name in found and (wanted is None or name in wanted):
                raise UserError(f"--data: {found[name]} and {root} both have a category {name}")
            found[name] = root
    for name in wanted or []:
        if name not in found:
            raise UserError(f"--categories: there is no {name}; known: {', '.join(sorted(found)) or 'none'}")
    chosen = {name: found[name] for name in (dict.fromkeys(wanted) if wanted else found)}
    for name, root in chosen.items():
        require_sound(find_categories(root)[name])
    return chosen


def flags_of(words: list[str]) -> dict[str, list[str]]:
    """What follows `--`: name of a flag of adref.train -> its values.

    Raises:
        UserError: what is no flag, a flag of the benchmark itself, or a file that is not there.
    """
    if words and not words[0].startswith("--"):
        raise UserError(f"what follows -- are flags of adref.train; got {words[0]!r}")
    found = grouped(words)
    for name, values in found.items():
        if name in (*OWN_FLAGS, "out", "resume", "preset", "ablation"):
            raise UserError(f"{flag(name)} stands before --: every cell has its own")
        path = ",".join(values)
        if name in PATHS and not Path(path).exists() and (name, path) != ("backbone_weights", "random"):
            raise UserError(f"{flag(name)}: there is no {path or 'empty name'}")
    return found


def grouped(words: Sequence[str]) -> dict[str, list[str]]:
    """Flags and their values: `--a=1 --b-c 2 3` -> a: 1, b_c: 2, 3."""
    found: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            values = found[name.replace("-", "_")] = [value] if value else []
        else:
            values.append(word)
    return found


def known_flags(method: type[Trainable]) -> set[str]:
    """The flags of adref.train that a method makes use of."""
    known = {*option_tools.names(Flags), *option_tools.names(method.Options)}
    return known - (set() if method.load_backbone is not Trainable.load_backbone else {"backbone_weights"})


def begin(cell: Cell, retry: bool) -> None:
    """The folder of a cell, which keeps what it was asked for.

    Raises:
        UserError: it is there, for other flags.
    """
    cell.folder.mkdir(parents=True, exist_ok=True)
    path = cell.folder / "cell.json"
    if put(path, json.dumps({"argv": cell.argv})):
        return
    before, state = read_json(path, argv=list)["argv"], None
    if cell.result.exists():
        state = read_json(cell.result, state=str, reason=str | None)["state"]
    run = cell.folder / "run"
    old, new = meaning(before), meaning(cell.argv)
    if old != new:
        if run.exists():
            ours, theirs = (spoken({key: words for key, words in some.items() if other.get(key) != words})
                            for some, other in ((new, old), (old, new)))  # fmt: skip
            raise UserError(f"{cell.folder} was made with {theirs}, now {ours}; give another --out")
        write_json(path, {"argv": cell.argv})  # nothing was trained
        retry = True
    if retry and state == "failed":
        cell.result.unlink()
        try:
            load_checkpoint(run)
        except UserError:  # from the beginning
            shutil.rmtree(run, ignore_errors=True)


def meaning(argv: Sequence[str]) -> dict[str, list[str]]:
    """The flags of adref.train, without those that a resumed run may be given anew."""
    return {name: words for name, words in grouped(argv[1:]).items() if name not in FREE_ON_RESUME}


def resumed(argv: Sequence[str]) -> list[str]:
    """The command line with which a cell goes on."""
    free = {name: words for name, words in grouped(argv[1:]).items() if name in FREE_ON_RESUME}
    return ["--resume", *(word for name, words in free.items() for word in (flag(name), *words))]


def spoken(flags: dict[str, list[str]]) -> str:
    """Flags as they are typed."""
    return shlex.join(word for name, words in flags.items() for word in (flag(name), *words)) or "the defaults"


# -- work -------------------------------------------------------------------------------------------------------------


def devices(names: list[str]) -> list[str]:
    """Devices of cells: every GPU, or the CPU, for auto. Raises UserError for one that is not there."""
    for name in names:
        find_device(name)
    every = [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]
    return every if names == ["auto"] else names


def work_off(cells: list[Cell], places: list[str], arguments: argparse.Namespace, out: Path) -> None:
    """Runs cells, each in a process of its own, which may die alone; returns when all have a result.

    Cells that others have claimed are looked at again, until they are finished or their claims are dead.
    """
    jobs, threads = arguments.jobs or len(places), arguments.threads
    if arguments.jobs is None and places == ["cpu"]:
        jobs = max(1, (os.cpu_count() or 1) // threads)
    context, running, began = multiprocessing.get_context("spawn"), {}, time.monotonic()
    waiting, total, said = list(cells), len(cells), False

    def stop(*_) -> None:
        for process, _ in running.values():
            process.terminate()  # it saves
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        while waiting or running:
            waiting = [cell for cell in waiting if not cell.result.exists()]
            for slot in [slot for slot in range(jobs) if slot not in running]:
                if cell := next((cell for cell in waiting if is_free(cell.folder)), None):
                    waiting.remove(cell)
                    device = places[slot % len(places)]
                    process = context.Process(target=work, args=(cell, device, threads if device == "cpu" else None))
                    process.start()
                    running[slot] = process, cell
            if waiting and not running:
                if not said:
                    print(f"waiting for {len(waiting)} cells that other processes have claimed, such as "
                          f"{waiting[0].folder}", flush=True)  # fmt: skip
                said = True
                time.sleep(1)
            for slot, (process, cell) in list(running.items()):
                process.join(0.2)
                if process.exitcode is None:
                    continue
                del running[slot]
                if process.exitcode == ELSEWHERE:
                    waiting.append(cell)
                elif process.exitcode == 130:
                    raise KeyboardInterrupt
                else:
                    if not cell.result.exists():
                        failed(cell, f"its process ended with code {process.exitcode}, as without memory")
                    done = total - len(waiting) - len(running)
                    print(f"{done}/{total}, {clock(time.monotonic() - began)}: {headline(cell, out)}", flush=True)
    finally:
        signal.signal(signal.SIGTERM, before)
        for process, _ in running.values():
            process.join()  # Ctrl-C reached it, too, and it saves


def work(cell: Cell, device: str, threads: int | None) -> None:
    """Trains, or goes on, and evaluates; ends the process with 0, 1 (failed), 130 (interrupted) or `ELSEWHERE`."""
    with claimed(cell.folder) as ours:
        if not ours or cell.result.exists():
            sys.exit(ELSEWHERE)
        log = cell.folder / "log.txt"
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        if threads:
            torch.set_num_threads(threads)
        run = cell.folder / "run"
        argv = resumed(cell.argv) if (run / "config.json").exists() else list(cell.argv)
        try:
            code = train.main([*argv, "--out", str(run), "--device", device])
        except Exception as error:  # whatever it is, the other cells go on
            failed(cell, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        if code == 130:
            sys.exit(130)
        if code:
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            failed(cell, (lines or ["no word"])[-1].partition(": ")[2] or lines[-1])
            sys.exit(1)
        metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
        config = json.loads((run / "config.json").read_text())
        kept = {name: metrics.get(name) for name in METRICS} | {"reasons": metrics["reasons"]}
        seconds = sum(line["seconds"] for line in read_log(run))
        write_json(cell.result, {"state": "done", "reason": None, "metrics": kept, "checkpoint": metrics["checkpoint"],
                                 "train_seconds": seconds, "images": metrics["images"], "device": config["device"],
                                 "machine": socket.gethostname(), "torch": config["torch"]})  # fmt: skip


def failed(cell: Cell, reason: str) -> None:
    """The result of a cell that ended without one."""
    write_json(cell.result, {"state": "failed", "reason": reason, "machine": socket.gethostname()})


def headline(cell: Cell, out: Path) -> str:
    """How a cell ended, in a line."""
    result, name = json.loads(cell.result.read_text()), cell.folder.relative_to(out)
    if result["state"] == "failed":
        return f"{name} failed: {result['reason']} (see {cell.folder / 'log.txt'})"
    value = result["metrics"]["image_auroc"]
    return f"{name}, image AUROC {'n/a' if value is None else f'{value:.3f}'}, {clock(result['train_seconds'])}"


if __name__ == "__main__":
    sys.exit(main())
