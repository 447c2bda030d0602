"""Writes the tables of results from the runs of adref.benchmark.

python tools/results.py DIR    reads the finished runs of a folder into tools/results.csv
python tools/results.py        writes the tables of README.md and tools/RESULTS.md from that file

results.csv is written anew: a line for each method, category and seed of that folder, all of one preset.
"""

import csv
import statistics
import sys
from pathlib import Path

from adref.methods import METHODS
from adref.options import UserError
from adref.run.cli import run_cli
from adref.run.files import csv_text, write_text
from adref.run.summary import read_cells

TOOLS = Path(__file__).parent
FILE = TOOLS / "results.csv"
KEYS = ("method", "preset", "category", "seed")
METRICS = {"image_auroc": "image AUROC", "image_ap": "image AP", "pixel_auroc": "pixel AUROC", "pixel_ap": "pixel AP",
           "aupro_0.3": "AUPRO 0.3", "aupro_0.05": "AUPRO 0.05"}  # fmt: skip
MARKS = "<!-- tools/results.py -->\n", "<!-- end -->\n"


def collect(out: Path) -> list[dict]:
    """Reads a row for each finished run without ablation; metrics are None without masks."""
    rows = [{key: cell[key] for key in (*KEYS, *METRICS)} for cell in read_cells(out)
            if cell["reason"] is None and not cell["ablation"]]  # fmt: skip
    presets = sorted({row["preset"] for row in rows})
    if len(presets) != 1:
        raise UserError(f"{out}: expected finished runs of one preset, found {', '.join(presets) or 'none'}")
    return rows


def read_rows(path: Path = FILE) -> list[dict]:
    """Reads results.csv."""
    rows = csv.DictReader(path.read_text().splitlines())
    return [row | {name: float(row[name]) if row[name] else None for name in METRICS} for row in rows]


def number(values: list[float], spread: bool = False) -> str:
    """Formats the mean of numbers in [0, 1], with the deviation of a sample if `spread`; n/a for none."""
    if not values:
        return "n/a"
    parts = [statistics.fmean(values), *([statistics.stdev(values)] if spread and len(values) > 1 else [])]
    return " ± ".join(f"{value:.3f}".removeprefix("0") for value in parts)


def values_of(rows: list[dict], metric: str, **where: str) -> list[float]:
    """Lists a metric of the rows that have the given values."""
    found = (row for row in rows if all(row[key] == value for key, value in where.items()))
    return [row[metric] for row in found if row[metric] is not None]


def names_of(rows: list[dict]) -> tuple[list[str], list[str]]:
    """Returns the methods, in the order of METHODS, and the categories in alphabetical order."""
    methods, categories = ({row[key] for row in rows} for key in ("method", "category"))
    return [name for name in METHODS if name in methods], sorted(categories)


def markdown(head: list[str], lines: list[list[str]]) -> str:
    """Formats a table as Markdown."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *lines))


def overview(rows: list[dict]) -> str:
    """Makes the table of README.md: image / pixel AUROC, means over seeds, and the mean over the categories of all."""
    methods, categories = names_of(rows)
    lines = []
    for method in methods:
        cells, image = [], []
        for category in categories:
            found = [values_of(rows, name, method=method, category=category) for name in ("image_auroc", "pixel_auroc")]
            image += [statistics.fmean(found[0])] if found[0] else []
            cells.append(" / ".join(map(number, found)) if found[1] else number(found[0]))
        lines.append([f"`{method}`", *cells, number(image) if len(image) == len(categories) else "n/a"])
    return markdown(["", *categories, "mean image"], lines)


def every_metric(rows: list[dict]) -> str:
    """Makes the table of RESULTS.md: a line for each category and method, mean ± deviation over seeds."""
    methods, categories = names_of(rows)
    lines = []
    for category in categories:
        for method in methods:
            where = {"method": method, "category": category}
            if count := len(values_of(rows, "image_auroc", **where)):
                cells = [number(values_of(rows, name, **where), spread=True) for name in METRICS]
                lines.append([category, f"`{method}`", str(count), *cells])
    return markdown(["category", "method", "seeds", *METRICS.values()], lines)


PAGES = {TOOLS.parent / "README.md": overview, TOOLS / "RESULTS.md": every_metric}


def with_table(text: str, table: str) -> str:
    """Replaces what stands between the two marks of a page."""
    before, rest = text.split(MARKS[0])
    return before + MARKS[0] + table + MARKS[1] + rest.split(MARKS[1])[1]


def run_command(argv: list[str]) -> int:
    """Runs the command line; returns its exit code."""
    if len(argv) > 1 or argv[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return 0 if len(argv) == 1 else 2
    if argv:
        rows = collect(Path(argv[0]))
        write_text(FILE, csv_text([rows[0].keys(), *map(dict.values, rows)]))
    rows = read_rows()
    for page, table in PAGES.items():
        write_text(page, with_table(page.read_text(), table(rows)))
    print(f"{len(rows)} runs: {FILE.resolve()}, {', '.join(page.name for page in PAGES)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(lambda: run_command(sys.argv[1:])))
