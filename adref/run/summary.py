"""Tables of a benchmark: every cell, means over seeds, published numbers beside them."""

import csv
import fcntl
import io
import statistics
from html import escape
from pathlib import Path

from adref.run.files import damaged, is_number, read_json, write_atomically, write_json
from adref.run.report import label, table
from adref.run.site import METRICS, clock, write_site


def summarise(out: Path) -> list[dict]:
    """Writes the tables of all cells in a folder; returns a row a cell."""
    with open(out / ".summary.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several commands may end at once
        rows = read_cells(out)
        lines = aggregate(rows, read_published())
        write_json(out / "summary.json", {"cells": rows, "table": lines})
        write_csv(out / "cells.csv", rows)
        write_csv(out / "summary.csv", lines)
        text = markdown(rows, lines)
        write_atomically(out / "summary.md", lambda file: file.write(text.encode()))
        write_site(out, {"Tables": html_tables(rows, lines)})
    return rows


def read_cells(out: Path) -> list[dict]:
    """A row a cell, finished or not."""
    rows = []
    for path in sorted(out.glob("*/*/seed-*/cell.json")):
        variant, category, seed = path.parent.relative_to(out).parts
        if not seed.removeprefix("seed-").isdecimal():  # somebody's copy
            continue
        argv = read_json(path, argv=list)["argv"]
        result = path.with_name("result.json")
        found = {"state": "open", "reason": "not finished"}
        if result.exists():
            found = read_json(result, state=str, reason=str | None)
        if found["state"] == "done":
            found = read_json(result, metrics=dict, checkpoint=str, device=str, machine=str, torch=str)
            shown = [found.get("train_seconds"), *(found["metrics"].get(name) for name in METRICS)]
            if not all(value is None or is_number(value) for value in shown):
                raise damaged(result, "a number is none")
        if not argv or not all(isinstance(word, str) for word in argv) or argv[-1] in ("--preset", "--ablation"):
            raise damaged(path, "argv is no command line")
        preset, ablation = (argv[argv.index(word) + 1] if word in argv else None for word in ("--preset", "--ablation"))
        row = {"variant": variant, "method": argv[0], "preset": preset, "ablation": ablation, "category": category,
               "seed": int(seed.removeprefix("seed-")), "state": found["state"], "reason": found["reason"]}  # fmt: skip
        row |= {name: found.get("metrics", {}).get(name) for name in METRICS}
        row |= {name: found.get(name) for name in ("checkpoint", "train_seconds", "device", "machine", "torch")}
        rows.append(row)
    return rows


def read_published() -> dict[tuple, list[dict]]:
    """(method, ablation, category, metric) -> rows of published.csv: one a preset, of several data sets for "mean"."""
    published = {}
    with open(Path(__file__).parent.with_name("published.csv"), newline="") as file:
        for row in csv.DictReader(file):
            row["value"] = float(row["value"])
            key = row["method"], row["ablation"] or None, row["category"], row["metric"]
            published.setdefault(key, []).append(row)
    return published


def aggregate(rows: list[dict], published: dict) -> list[dict]:
    """A row for each variant, category (and "mean") and metric: mean and deviation over seeds, published, gap."""
    lines = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == variant]
        categories = list(dict.fromkeys(row["category"] for row in own))
        for metric in METRICS:
            without = {row["category"] for row in own if row["state"] == "done" and row[metric] is None}  # no masks
            by_seed = {}
            for category in categories:
                found = {row["seed"]: row[metric] for row in own
                         if row["category"] == category and row[metric] is not None}  # fmt: skip
                lines.append(line(own[0], category, metric, list(found.values()), published, categories))
                for seed, value in found.items():
                    by_seed.setdefault(seed, []).append(value)
            count = len(set(categories) - without)
            complete = [statistics.fmean(values) for values in by_seed.values() if len(values) == count]
            if len(categories) > 1:
                lines.append(line(own[0], "mean", metric, complete, published, categories))
    return lines


def line(row: dict, category: str, metric: str, values: list[float], published: dict, categories: list[str]) -> dict:
    """A line of the summary; `values` are one a seed. The deviation is that of a sample, n - 1."""
    result = {name: row[name] for name in ("variant", "method", "preset", "ablation")}
    result |= {"category": category, "metric": metric, "seeds": len(values)}
    result |= {"mean": statistics.fmean(values) if values else None}
    result |= {"deviation": statistics.stdev(values) if len(values) > 1 else None}
    # RealNet's "half" and "c" are presets and ablations, too: published under the latter
    names = [name for name in (row["ablation"] or row["preset"], row["ablation"])
             if (row["method"], name, category, metric) in published]  # fmt: skip
    found = published[row["method"], names[0], category, metric] if names else []
    if category == "mean":  # of a data set that was run whole
        found = [entry for entry in found if set(categories) == categories_of(entry, published)]
    # a preset that was published itself, else the paper's own; "tiny" is neither
    found = [entry for entry in found if entry["preset"] == row["preset"]] or [
        entry for entry in found if entry["preset"] == "paper"
    ]
    entry = found[0] if found else {"value": None, "dataset": None, "source": None}
    gap = result["mean"] - entry["value"] if found and values else None
    return result | {"published": entry["value"], "gap": gap, "data set": entry["dataset"], "source": entry["source"]}


def categories_of(entry: dict, published: dict) -> set[str]:
    """The categories over which a published mean goes."""
    keys = (key for key, found in published.items() if any(one["dataset"] == entry["dataset"] for one in found))
    return {category for _, _, category, _ in keys} - {"mean"}


def write_csv(path: Path, rows: list[dict]) -> None:
    """Rows that share their keys, as a table."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda file: file.write(text.getvalue().encode(errors="surrogateescape")))


def grid(rows: list[dict], lines: list[dict], metric: str) -> list[list[str]]:
    """The table of a metric as text: a row a category, a column a variant; no row where nobody has the metric."""
    own = [entry for entry in lines if entry["metric"] == metric]
    variants, categories = (list(dict.fromkeys(entry[key] for entry in own)) for key in ("variant", "category"))
    if all(entry["mean"] is None for entry in own):
        return []
    categories.sort(key=lambda name: name == "mean")
    places = {(entry["variant"], entry["category"]): entry for entry in own}
    states = {}
    for row in rows:
        states.setdefault((row["variant"], row["category"]), []).append(row["state"])
    return [["category", *variants], *(
        [category, *(written(places.get((v, category)), states.get((v, category), [])) for v in variants)]
        for category in categories
    )]  # fmt: skip


def written(entry: dict | None, states: list[str]) -> str:
    """A place of a table: mean, deviation and number of seeds, what was published and how far it is; or why not."""
    if entry is None:
        return ""
    if entry["mean"] is None:
        return "failed" if "failed" in states else "open" if "open" in states else "n/a"
    text = f"{entry['mean']:.3f}"
    text += f" ± {entry['deviation']:.3f} ({entry['seeds']})" if entry["deviation"] is not None else ""
    text += f" [{entry['published']:.3f}, {entry['gap']:+.3f}]" if entry["published"] is not None else ""
    missing = sum(state != "done" for state in states)
    return text + (f", {missing} missing" if missing else "")


NOTE = (
    "Mean ± standard deviation over seeds (their number); in brackets the published number, always of the paper's full "
    "size, found by the category's name, and the gap to it. A mean takes the seeds that finished every category of its "
    "column, but for categories without masks. Nothing was selected on test images: every cell is of the step that its "
    "row names."
)


def cell_table(rows: list[dict]) -> list[list[str]]:
    """What became of each cell: step and rule of its weights, time, or why there is none."""
    head = ["variant", "category", "seed", "weights", "training", "machine"]
    return [head, *(
        [row["variant"], row["category"], str(row["seed"]),
         row["checkpoint"] or f"{row['state']}: {row['reason']}",
         "" if row["train_seconds"] is None else clock(row["train_seconds"]),
         " ".join(filter(None, (row["machine"], row["device"])))] for row in rows
    )]  # fmt: skip


def tables(rows: list[dict], lines: list[dict]) -> dict[str, list[list[str]]]:
    """Heading -> table of text."""
    found = {label(metric): grid(rows, lines, metric) for metric in METRICS}
    return {heading: cells for heading, cells in found.items() if cells} | {"Cells": cell_table(rows)}


def markdown(rows: list[dict], lines: list[dict]) -> str:
    """summary.md."""
    sources = dict.fromkeys(f"{entry['data set']}: {entry['source']}" for entry in lines if entry["source"])
    parts = ["# Benchmark", NOTE]
    for heading, (head, *body) in tables(rows, lines).items():
        lines_of_text = (
            " | ".join(cell.replace("|", "\\|") for cell in cells) for cells in (head, ["---"] * len(head), *body)
        )
        parts += [f"## {heading}", "\n".join(f"| {text} |" for text in lines_of_text)]
    if sources:
        parts += ["## Published numbers", "\n".join(f"* {source}" for source in sources)]
    return "\n\n".join(parts) + "\n"


def html_tables(rows: list[dict], lines: list[dict]) -> str:
    """The same for index.html."""
    markup = f'<p class="note">{escape(NOTE)}</p>'
    for heading, (head, *body) in tables(rows, lines).items():
        cells = ["".join(f'<th scope="col">{escape(word)}</th>' for word in head)]
        cells += ["".join(f"<td>{escape(word)}</td>" for word in words) for words in body]
        markup += f"<h3>{escape(heading)}</h3>{table(cells)}"
    return markup
