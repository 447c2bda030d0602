"""python -m adref.study NAME RUN... --out DIR: a study of trained methods

tiny            smallest block that is found, at the middle of normal test pictures
robustness      AUROC where test pictures are noisy, blurred, brighter, of other contrast
tsne            features of normal, anomalous and synthetic pictures in two dimensions
reconstruction  errors inside and outside of synthetic anomalies, several runs side by side
complexity      parameters, multiply-adds layer by layer, images a second, memory
synthesis       how near synthetic anomalies are to real ones: Frechet distance, diversity

Writes DIR/study.json, DIR/rows.csv and DIR/index.html, a page with pictures that opens from disk.
"""

import argparse
import csv
import importlib
import io
import os
import shutil
import sys
from html import escape
from pathlib import Path

from adref import options as option_tools
from adref.data.layouts import find_category, require_sound
from adref.options import UserError
from adref.run.cli import guarded
from adref.run.directory import find_device, load, load_checkpoint, read_config, refuse_existing, versions
from adref.run.files import write_atomically, write_json
from adref.run.report import embed_array, table, write_page
from adref.studies import Opened, Result

NAMES = ("tiny", "robustness", "tsne", "reconstruction", "complexity", "synthesis")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    return guarded(lambda: run_command(argv))


def run_command(argv: list[str]) -> int:
    """What `main` does when nothing goes wrong."""
    name = argv[0] if argv else ""
    if name not in NAMES and name not in ("-h", "--help"):
        raise UserError(f"the first word names the study, one of: {', '.join(NAMES)}; got {name or 'nothing'}")
    module = importlib.import_module(f"adref.studies.{name}") if name in NAMES else None
    parser = option_tools.Parser(
        prog=f"python -m adref.study {name if module else 'NAME'}", allow_abbrev=False,
        description=(module or sys.modules[__name__]).__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories of python -m adref.train")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder that is not there yet")
    parser.add_argument("--data", type=Path, metavar="ROOT", help="the data set, if it is no longer where it was")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn [0]")
    if module:
        module.add_arguments(parser)
    arguments = parser.parse_args(argv[1:] if module else argv)
    refuse_existing(arguments.out, "give another name")
    if not 0 <= arguments.seed < 2**63:
        raise UserError(f"--seed takes 0 to 2^63 - 1; got {arguments.seed}")
    runs = open_runs(arguments.runs, arguments.data, arguments.device)
    partial = arguments.out.with_name(f".{arguments.out.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a study that was killed
        partial.mkdir(parents=True)  # now, and not after minutes of work
        result = module.study(runs, arguments)
        write(partial, name, runs, result)
        os.replace(partial, arguments.out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(text_table(result.rows))
    print("\n".join(result.notes))
    print(f"Page: {(arguments.out / 'index.html').resolve()}")
    return 0


def open_runs(folders: list[Path], data: Path | None, device: str) -> list[Opened]:
    """Runs by names that differ, as short as can be.

    Raises:
        UserError: no run, data that are not there, or the same run twice.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("the same RUN is named twice")
    place, opened, known = find_device(device), [], {}
    parts = [folder.resolve().parts for folder in folders]
    names = [next("/".join(own[-k:]) for k in range(1, len(own) + 1) if [p[-k:] for p in parts].count(own[-k:]) == 1)
             for own in parts]  # fmt: skip
    for folder, name in zip(folders, names):
        config, method = read_config(folder), load(folder, str(place))
        key = str(data or config["flags"]["data"]), config["category"]
        if key not in known:
            if not Path(key[0]).exists():
                raise UserError(f"the data set {key[0]} is not there; --data takes where it is now")
            known[key] = find_category(Path(key[0]), config["category"])
            require_sound(known[key])
        if "calibration" not in load_checkpoint(folder):
            print(f"note: {folder} has not finished training", file=sys.stderr)
        opened.append(Opened(name, folder, config, method, known[key], place))
    return opened


def text_table(rows: list[dict]) -> str:
    """Rows for a terminal."""
    cells = [list(rows[0]), *([shown(value) for value in row.values()] for row in rows)] if rows else []
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in cells)


def shown(value) -> str:
    """A number with four digits, a whole one in groups of three, text as it is, "n/a" for None."""
    if type(value) is int:
        return f"{value:,}"
    return "n/a" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def write(out: Path, name: str, runs: list[Opened], result: Result) -> None:
    """The three files of a study, in a folder that is there."""
    about = {"study": name, **versions(), "runs": {run.name: str(run.folder.resolve()) for run in runs}}
    about |= {"settings": result.settings, "rows": result.rows, "notes": result.notes}
    write_json(out / "study.json", about)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(result.rows[0]) if result.rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(result.rows)
    write_atomically(out / "rows.csv", lambda file: file.write(text.getvalue().encode(errors="surrogateescape")))
    head = "".join(f'<th scope="col">{escape(key.replace("_", " "))}</th>' for key in (result.rows or [{}])[0])
    lines = ("".join(f"<td>{escape(shown(value))}</td>" for value in row.values()) for row in result.rows)
    sections = {"Numbers": "".join(f'<p class="note">{escape(note)}</p>' for note in result.notes)}
    sections["Numbers"] += table([head, *lines]) if result.rows else ""
    sections |= {escape(word): f'<div class="charts wide">{markup}</div>' for word, markup in result.charts.items()}
    for heading, figures in result.figures.items():
        parts = ((embed_array(figure.picture, figure.caption), escape(figure.caption)) for figure in figures)
        markup = "".join(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>" for picture, caption in parts)
        line = min(max(len(figures), 1), 8)  # what stands in a line where the page is wide
        least = f"clamp(110px, calc(100% / {line} - 16px), 150px)"
        style = f"grid-template-columns:repeat(auto-fill,minmax({least},1fr))"
        sections[heading] = f'<div class="portraits" style="{style}">{markup}</div>'
    facts = {**{f"run {run.name}": str(run.folder) for run in runs}, **result.settings, **versions()}
    sections["Run"] = table(f'<th scope="row">{escape(str(k))}</th><td>{escape(str(v))}</td>' for k, v in facts.items())
    write_page(out / "index.html", f"{name}: {', '.join(run.name for run in runs)}", sections)


if __name__ == "__main__":
    sys.exit(main())
