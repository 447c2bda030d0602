"""Writes the tables of results from the runs of adref.benchmark.

python tools/results.py DIR ...    adds the finished runs of folders to tools/results.csv, then goes on as without DIR
python tools/results.py            writes the tables of README.md and tools/RESULTS.md from that file

results.csv has a line for each method, preset, category and seed; a new run takes the place of the same one before.
"""

import csv
import itertools
import statistics
import sys
from pathlib import Path

from adref.methods import METHODS
from adref.options import UserError, flag
from adref.run.cli import entry_point
from adref.run.directory import read_config
from adref.run.files import csv_text, write_text
from adref.run.summary import find_published, read_cells, read_published

TOOLS = Path(__file__).parent
FILE = TOOLS / "results.csv"
PRESETS = ("tiny", "small")
KEYS = ("method", "preset", "category", "seed")
METRICS = {"image_auroc": "image AUROC", "image_ap": "image AP", "pixel_auroc": "pixel AUROC", "pixel_ap": "pixel AP",
           "aupro_0.3": "AUPRO 0.3", "aupro_0.05": "AUPRO 0.05"}  # fmt: skip
AUROC = ("image_auroc", "pixel_auroc")
MARKS = "<!-- tools/results.py -->\n", "<!-- end -->\n"


def collect(folders: list[Path]) -> list[dict]:
    """Reads a row for each finished run without ablation; metrics are None without masks."""
    rows = []
    for out in folders:
        found = [cell for cell in read_cells(out) if cell["reason"] is None and not cell["ablation"]]
        if not found:
            raise UserError(f"{out}: expected finished runs, found none")
        for cell in found:
            run = out / cell["variant"] / cell["category"] / f"seed-{cell['seed']}"
            if changed := read_config(run)["changed"]:
                raise UserError(f"{run}: expected its preset as it is, found {flag(next(iter(changed)))} changed")
        rows += [{key: cell[key] for key in (*KEYS, *METRICS)} for cell in found]
    if others := sorted({row["preset"] for row in rows} - set(PRESETS)):
        raise UserError(f"expected runs of the presets {' and '.join(PRESETS)}, found {', '.join(others)}")
    if len({tuple(row[key] for key in KEYS) for row in rows}) < len(rows):
        raise UserError(f"expected each run once, found one twice: {', '.join(map(str, folders))}")
    return rows


def read_rows() -> list[dict]:
    """Reads results.csv."""
    rows = csv.DictReader(FILE.read_text().splitlines())
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


def pair(rows: list[dict], **where: str) -> str:
    """Formats image / pixel AUROC, means over the rows that have the given values; image alone without masks."""
    found = [number(values_of(rows, name, **where)) for name in AUROC]
    return found[0] if found[1] == "n/a" else " / ".join(found)


def overview(rows: list[dict]) -> str:
    """Makes the table of README.md: `tiny`, its mean over the categories, `small` on the grid, what is printed."""
    methods, categories = names_of([row for row in rows if row["preset"] == "tiny"])
    lines, published = [], read_published()
    for method in methods:
        own = {"method": method, "preset": "tiny"}
        means = [values_of(rows, AUROC[0], **own, category=category) for category in categories]
        mean = number([] if [] in means else [statistics.fmean(values) for values in means])
        found = (find_published({"method": method, "preset": "paper", "ablation": None}, "grid", name, set(), published)
                 for name in AUROC)  # fmt: skip
        printed = " / ".join(number([entry["value"]]) for entry in found if entry) or "none"
        small = pair(rows, method=method, preset="small", category="grid")
        lines.append([f"`{method}`", *(pair(rows, **own, category=category) for category in categories), mean, small,
                      printed])  # fmt: skip
    return markdown(["", *categories, "mean image", "grid at `small`", "printed"], lines)


def every_metric(rows: list[dict]) -> str:
    """Makes the table of RESULTS.md: a line for each category, preset and method, mean ± deviation over seeds."""
    methods, categories = names_of(rows)
    lines = []
    for category, preset, method in itertools.product(categories, PRESETS, methods):
        where = {"method": method, "preset": preset, "category": category}
        if count := len(values_of(rows, "image_auroc", **where)):
            cells = [number(values_of(rows, name, **where), spread=True) for name in METRICS]
            lines.append([category, f"`{method}`", preset, str(count), *cells])
    return markdown(["category", "method", "preset", "seeds", *METRICS.values()], lines)


PAGES = {TOOLS.parent / "README.md": overview, TOOLS / "RESULTS.md": every_metric}


def with_table(page: Path, rows: list[dict]) -> str:
    """Reads a page and replaces what stands between its two marks by its table."""
    before, rest = page.read_text().split(MARKS[0])
    return before + MARKS[0] + PAGES[page](rows) + MARKS[1] + rest.split(MARKS[1])[1]


@entry_point
def main(argv: list[str]) -> int:
    """Runs the command line; returns its exit code."""
    if argv[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    found = [*read_rows(), *collect([Path(word) for word in argv])]
    found = {tuple(str(row[key]) for key in KEYS): row for row in found}
    rows = [found[key] for key in sorted(found)]
    pages = {page: with_table(page, rows) for page in PAGES}
    for path, text in {FILE: csv_text([[*KEYS, *METRICS], *(row.values() for row in rows)]), **pages}.items():
        write_text(path, text)
    print(f"{len(rows)} runs: {FILE.resolve()}, {', '.join(page.name for page in PAGES)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
