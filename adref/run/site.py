"""python -m adref.site FOLDER: writes FOLDER/index.html over all evaluated runs below it

A table that sorts, with links to every report, and for each category some test pictures with the maps of all runs.
"""

import argparse
import sys
from html import escape
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from PIL import Image

from adref.data.layouts import Category, Record, find_category
from adref.data.reader import read_image
from adref.options import Parser, UserError
from adref.run.cli import guarded
from adref.run.directory import read_config, read_log
from adref.run.files import damaged, is_number, read_json
from adref.run.report import LABELS, embed, label, overlay, table, write_page
from adref.run.scoring import name_of, native_mask, scale_of

# All but the best F1, whose threshold is chosen on test images, and with RealNet's own reading of PRO.
METRICS = [*(name for name in LABELS if name != "image_best_f1"), "aupro_0.3_realnet"]
SIDE = 128  # pixels of the longer side of a small picture
PICTURES = 6  # of a category


class Run(NamedTuple):
    """An evaluated run."""

    folder: Path
    name: str  # its place below the folder of the site
    config: dict
    metrics: dict
    seconds: float  # of training

    @property
    def variant(self) -> str:
        """Method, preset and ablation."""
        return "-".join(filter(None, (self.config["method"], self.config["preset"], self.config["ablation"])))


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = Parser(prog="python -m adref.site", description=__doc__.split(": ", 1)[1],
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a folder with run directories anywhere below it")
    return guarded(lambda: run_command(parser.parse_args(argv).folder))


def run_command(folder: Path) -> int:
    """What `main` does when nothing goes wrong."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder")
    if (folder / "summary.json").exists():
        raise UserError(f"{folder} is a benchmark's, whose command writes this page, tables included")
    page = folder / "index.html"
    if page.exists() and 'name="generator" content="adref"' not in page.read_text(errors="replace"):
        raise UserError(f"{page} is not of this command; move it away")
    if not find_runs(folder):
        raise UserError(f"{folder} has no evaluated run: no evaluation/metrics.json below it")
    print(f"Site: {write_site(folder, {}).resolve()}")
    return 0


def find_runs(folder: Path) -> list[Run]:
    """The evaluated runs below a folder, by their places."""
    runs = []
    for path in sorted(folder.glob("**/evaluation/metrics.json")):
        run = path.parent.parent
        try:
            config, metrics = read_config(run), read_json(path, checkpoint=str)
            values = [metrics.get(name) for name in METRICS]
            if scale_of(metrics) is None or not all(value is None or is_number(value) for value in values):
                raise damaged(path, "a number is none")
            seconds = sum(line["seconds"] for line in read_log(run))
        except UserError as error:  # the others are shown
            print(f"note: left out: {error}", file=sys.stderr)
            continue
        runs.append(Run(run, str(run.relative_to(folder)), config, metrics, seconds))
    return runs


def write_site(folder: Path, before: dict[str, str]) -> Path:
    """Writes index.html; returns its path.

    Args:
        folder: below which runs lie.
        before: sections that stand first, heading -> markup.
    """
    runs = find_runs(folder)
    sections = {**before, "Runs": run_table(runs)}
    for category in dict.fromkeys(run.config["category"] for run in runs):
        sections[f"Maps of {category}"] = maps([run for run in runs if run.config["category"] == category])
    write_page(folder / "index.html", f"Runs in {folder.resolve().name}", sections, SCRIPT)
    return folder / "index.html"


def run_table(runs: list[Run]) -> str:
    """A row a run; a click on a head sorts by its column, another turns the order round."""
    metrics = [name for name in METRICS if any(run.metrics.get(name) is not None for run in runs)]
    heads = ["Run", "Category", "Seed", *map(label, metrics), "Training, s"]
    rows = ["".join(f'<th scope="col"><button>{escape(head)}</button></th>' for head in heads)]
    for run in runs:
        name, place, weights = map(escape, (run.variant, run.name, run.metrics["checkpoint"]))
        link = f'<a href="{quote(run.name)}/report.html">{name}</a>' if (run.folder / "report.html").exists() else name
        values = [run.metrics.get(name) for name in metrics]
        cells = [escape(run.config["category"]), str(run.config["flags"]["seed"])]
        cells += ["n/a" if value is None else f"{value:.3f}" for value in values]
        head = f'<th scope="row">{link}<small>{place}</small><small>{weights}</small></th>'
        rows.append(head + "".join(f"<td>{cell}</td>" for cell in [*cells, f"{run.seconds:.0f}"]))
    return f'<div id="runs">{table(rows)}</div>'


def maps(runs: list[Run]) -> str:
    """Some test pictures of a category: input, true mask, maps in each run's own colours, of the least seed."""
    first = min(run.config["flags"]["seed"] for run in runs)
    shown = [run for run in runs if run.config["flags"]["seed"] == first]
    try:
        category = find_category(Path(shown[0].config["flags"]["data"]), shown[0].config["category"])
    except (UserError, OSError) as error:
        return f'<p class="note">No pictures: {escape(str(error))}</p>'
    known = [run.variant for run in shown]
    names = [run.variant if known.count(run.variant) == 1 else run.name for run in shown]
    rows = ["".join(f'<th scope="col">{escape(word)}</th>' for word in ("picture", "input", "true mask", *names))]
    for record in examples(category):
        image = read_image(record.path)
        mask = native_mask(record, image.shape[:2])
        pictures = {"input": image, "true mask": None if mask is None else np.uint8(255) * mask[..., None].repeat(3, 2)}
        for run, name in zip(shown, names):
            path = run.folder / "evaluation" / "maps" / record.defect / f"{record.path.stem}.npy"
            found = np.load(path) if path.exists() else np.empty(0)
            fits = found.shape == image.shape[:2]  # pictures may have changed since
            pictures[name] = overlay(image, found, *run.metrics["map_scale"]) if fits else None
        place = name_of(record)
        cells = ("n/a" if found is None else embed(small(found), kind, place) for kind, found in pictures.items())
        rows.append(f'<th scope="row">{escape(place)}</th>' + "".join(f"<td>{cell}</td>" for cell in cells))
    return table(rows)


def examples(category: Category) -> list[Record]:
    """A few test pictures: the first of each kind of defect, then the second and so on, and one good one."""
    kinds, good = {}, [record for record in category.test if not record.label]
    for record in category.test:
        if record.label:
            kinds.setdefault(record.defect, []).append(record)
    rank = {record.path: (kinds[defect].index(record), defect) for defect, found in kinds.items() for record in found}
    bad = sorted((record for found in kinds.values() for record in found), key=lambda record: rank[record.path])
    return [*bad[: PICTURES - 1], *good[:1]]


def small(image: np.ndarray) -> Image.Image:
    """A picture, uint8 (H, W, 3), `SIDE` long."""
    scale = SIDE / max(image.shape[:2])
    size = [max(1, round(scale * side)) for side in image.shape[1::-1]]
    return Image.fromarray(image).resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"


SCRIPT = """
"use strict";
const rows = [...document.querySelectorAll("#runs tr")], head = rows.shift();
const value = (row, i) => row.children[i].textContent;
const number = text => text === "n/a" ? -Infinity : Number(text);
[...head.children].forEach((cell, i) => {
  cell.firstElementChild.onclick = () => {
    const down = cell.getAttribute("aria-sort") !== "descending";
    for (const other of head.children) other.removeAttribute("aria-sort");
    cell.setAttribute("aria-sort", down ? "descending" : "ascending");
    const numeric = rows.every(row => value(row, i) === "n/a" || !Number.isNaN(Number(value(row, i))));
    const order = (a, b) => numeric ? number(value(a, i)) - number(value(b, i)) :
      value(a, i).localeCompare(value(b, i));
    rows.sort((a, b) => (down ? -1 : 1) * order(a, b)).forEach(row => head.parentNode.append(row));
  };
});
"""


if __name__ == "__main__":
    sys.exit(main())
