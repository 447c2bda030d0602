"""Tables of a benchmark: metrics of every cell, means over seeds, published numbers beside them."""

import csv
import io
import itertools
import math
import statistics
from html import escape
from pathlib import Path
from urllib.parse import quote

from adref.data.reader import read_text
from adref.options import UserError
from adref.run.directory import lock, read_config
from adref.run.files import csv_text, read_json, write_json, write_text
from adref.run.report import LABELS, label

# Best F1 is left out: its threshold is chosen on test images. The last one is RealNet's reading of AUPRO.
METRICS = [*(name for name in LABELS if name != "image_best_f1"), "aupro_0.3_realnet"]
NOTE = (
    "Mean ± standard deviation over seeds; in brackets the published number, which is always that of the paper's full "
    "size and found by the name of the category, and our difference to it. A mean over categories takes the seeds that "
    "have them all, without the categories that have no masks. Nothing was selected on test images."
)
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Benchmark</title>
<style>body { font: 15px/1.5 system-ui, sans-serif; margin: 32px } p { max-width: 70em }
table { border-collapse: collapse }
td, th { padding: 4px 12px; border-bottom: 1px solid #ccc; text-align: left }</style>
</head><body><h1>Benchmark</h1>
"""


def write_summary(out: Path) -> None:
    """Writes summary.json, summary.csv, summary.md and index.html of all cells in a folder."""
    with lock(out, wait=True):  # several commands may end at the same time
        cells = read_cells(out)
        lines = aggregate(cells, read_published())
        found = table(cells, lines)
        write_json(out / "summary.json", {"cells": cells, "table": lines})
        write_text(out / "summary.csv", csv_text([lines[0].keys() if lines else (), *map(dict.values, lines)]))
        write_text(out / "summary.md", markdown(*found))
        write_text(out / "index.html", html(*found))


def last_line(log: Path) -> str:
    """Reads the last line of a log that is not blank."""
    return next((line for line in reversed(read_text(log).splitlines()) if line.strip()), "no output")


def read_metrics(run: Path) -> dict | None:
    """Reads the metrics and the configuration of a run; None unless its training and its evaluation are finished."""
    try:
        found = read_json(run / "evaluation" / "metrics.json") | read_config(run)
        sound = all(math.isfinite(found[name]) for name in METRICS if found.get(name) is not None)
    except (UserError, TypeError):
        return None
    return found if sound and found.get("finished") else None


def read_cells(out: Path) -> list[dict]:
    """Reads a row for each cell; one that is not finished has the last line of its log as "reason"."""
    rows, keys = [], ("method", "preset", "ablation", "device", "torch", "checkpoint", *METRICS)
    for log in out.glob("*/*/seed-*.log"):
        seed = log.stem.removeprefix("seed-")
        if seed.isdecimal():  # no copy of somebody's
            found = read_metrics(log.with_suffix("")) or {}
            row = {"variant": log.parts[-3], "category": log.parts[-2], "seed": int(seed)}
            row |= {key: found.get(key) for key in keys}
            rows.append({**row, "reason": None if found else last_line(log)})
    return sorted(rows, key=lambda row: (row["variant"], row["category"], row["seed"]))


def read_published() -> list[dict]:
    """Reads published.csv."""
    rows = csv.DictReader(io.StringIO(read_text(Path(__file__).parent.with_name("published.csv"))))
    return [{**row, "value": float(row["value"])} for row in rows]


def aggregate(cells: list[dict], published: list[dict]) -> list[dict]:
    """Averages over seeds: a line for each variant, category and metric, and for the mean of several categories."""
    lines = []
    for variant in dict.fromkeys(cell["variant"] for cell in cells):
        own = [cell for cell in cells if cell["variant"] == variant]
        known = next((cell for cell in own if cell["method"]), own[0])  # unfinished cells have no configuration
        categories = list(dict.fromkeys(cell["category"] for cell in own))
        for metric in METRICS:
            values = {name: {c["seed"]: c[metric] for c in own if c["category"] == name and c[metric] is not None}
                      for name in categories}  # fmt: skip
            without = {cell["category"] for cell in own if cell["reason"] is None and cell[metric] is None}  # no masks
            having = [found for name, found in values.items() if name not in without]
            seeds = set.intersection(*map(set, having)) if having else ()
            if len(categories) > 1:
                values["mean"] = {seed: statistics.fmean(found[seed] for found in having) for seed in sorted(seeds)}
            for category, found in values.items():
                numbers = list(found.values())
                mean = statistics.fmean(numbers) if numbers else None
                entry = find_published(known, category, metric, set(categories), published)
                lines.append({
                    **{name: known[name] for name in ("variant", "method", "preset", "ablation")},
                    "category": category, "metric": metric, "seeds": len(numbers), "mean": mean,
                    "deviation": statistics.stdev(numbers) if len(numbers) > 1 else None,  # of a sample: n - 1
                    "published": entry.get("value"), "gap": mean - entry["value"] if entry and numbers else None,
                    "data set": entry.get("dataset"), "source": entry.get("source"),
                })  # fmt: skip
    return lines


def find_published(cell: dict, category: str, metric: str, categories: set[str], published: list[dict]) -> dict:
    """Finds the row of published.csv to compare with, for a mean only if `categories` are a whole data set; else {}."""
    found = {}
    for row in published:
        if (row["method"], row["category"], row["metric"]) == (cell["method"], category, metric):
            whole = {other["category"] for other in published if other["dataset"] == row["dataset"]} - {"mean"}
            if category != "mean" or categories == whole:
                found[row["ablation"], row["preset"]] = row
    ablation, preset = cell["ablation"] or "", cell["preset"]
    names = (ablation or preset, ablation)  # RealNet's "half" and "c" are presets here and published as ablations
    presets = (preset, "paper")  # one that was not published is compared with the paper's main result
    return next((found[key] for key in itertools.product(names, presets) if key in found), {})


def table(cells: list[dict], lines: list[dict]) -> tuple[list[str], list[tuple]]:
    """Makes a table: its head; for each variant and category its texts, and links (text, path) to reports or logs."""
    metrics = [name for name in METRICS if any(line["metric"] == name and line["seeds"] for line in lines)]
    rows: dict[tuple, tuple] = {(line["variant"], line["category"]): ([], []) for line in lines}
    for line in lines:
        if line["metric"] in metrics:
            rows[line["variant"], line["category"]][0].append(format_line(line))
    for cell in cells:
        run = f"{cell['variant']}/{cell['category']}/seed-{cell['seed']}"
        text, file = (f"{cell['seed']} not finished", ".log") if cell["reason"] else (str(cell["seed"]), "/report.html")
        rows[cell["variant"], cell["category"]][1].append((text, quote(run + file)))
    head = ["run", "category", *map(label, metrics), "reports by seed"]
    return head, [([*names, *texts], links) for names, (texts, links) in rows.items()]


def format_line(line: dict) -> str:
    """Formats a line of the summary: mean, deviation, published number and difference to it."""
    text = "n/a" if line["mean"] is None else f"{line['mean']:.3f}"
    text += "" if line["deviation"] is None else f" ± {line['deviation']:.3f}"
    return text + ("" if line["gap"] is None else f" [{line['published']:.3f}, {line['gap']:+.3f}]")


def markdown(head: list[str], rows: list[tuple]) -> str:
    """Formats a table as Markdown."""
    rows = [[*texts, " ".join(f"[{text}]({link})" for text, link in links)] for texts, links in rows]
    lines = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in (head, ["---"] * len(head), *rows))
    return f"# Benchmark\n\n{NOTE}\n\n" + "".join(f"| {line} |\n" for line in lines)


def html(head: list[str], rows: list[tuple]) -> str:
    """Formats a table as a page that loads nothing."""
    lines = ["".join(f"<th>{escape(text)}</th>" for text in head)]
    for texts, links in rows:
        reports = " ".join(f'<a href="{escape(link)}">{text}</a>' for text, link in links)
        lines.append("".join(f"<td>{cell}</td>" for cell in (*map(escape, texts), reports)))
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return f"{PAGE}<p>{escape(NOTE)}</p>\n<table>\n{body}</table></body></html>\n"
