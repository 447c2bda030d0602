"""The report of an evaluation: one HTML file with metrics, curves, decisions and images, which loads nothing.

`report.html` beside this module is its template; text from names and data passes `html.escape` once.
"""

import base64
import hashlib
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy
from PIL import Image

from adref.data.reader import by_rows, read_text
from adref.run.files import write_text

# Colours at equal distances from 0 to 1; their luminance rises monotonically.
COLOURS = np.array([(0, 0, 0), (66, 16, 108), (154, 38, 104), (224, 84, 48), (250, 164, 32), (255, 246, 150)])
SIDE = 256  # longest side of an embedded image
LABELS = {"image_auroc": "Image AUROC", "image_ap": "Image AP", "image_best_f1": "Best F1 on test",
          "pixel_auroc": "Pixel AUROC", "pixel_ap": "Pixel AP", "aupro_0.3": "AUPRO 0.3",
          "aupro_0.05": "AUPRO 0.05"}  # fmt: skip


class Picture(NamedTuple):
    """One test image with its score and map."""

    name: str  # the path as shown, e.g. "crack/003.png"
    defect: str  # "good" or the defect type
    label: int  # 0 good, 1 anomalous
    score: float
    image: np.ndarray  # uint8 (H, W, 3)
    steps: dict[str, np.ndarray]  # caption -> uint8 (h, w, 3) of any size: the method's intermediate images
    mask: np.ndarray | None  # bool (H, W), True = anomalous
    anomaly_map: np.ndarray  # float32 (H, W)


def overlay(image: np.ndarray, anomaly_map: np.ndarray, low: float, high: float) -> np.ndarray:
    """Blends the colours of a map (H, W), from value `low` to `high`, with the greys of an image, uint8 (H, W, 3)."""
    if image.shape != (*anomaly_map.shape, 3) or np.isnan(anomaly_map).any() or not low <= high:
        got = f"{image.shape}, {anomaly_map.shape} with {np.isnan(anomaly_map).sum()} NaN, {low}, {high}"
        raise ValueError(f"expected image (H, W, 3), map (H, W) without NaN, low <= high; got {got}")

    def blend(image: np.ndarray, part: np.ndarray) -> np.ndarray:
        position = np.clip((part.astype(np.float64) - low) / max(high - low, 1e-12), 0, 1)
        colour = [np.interp(position, np.linspace(0, 1, len(COLOURS)), channel) for channel in COLOURS.T]
        grey = image @ np.array([0.299, 0.587, 0.114])
        # Constant opacity: if it grew with the map, a bright pixel would become darker before it becomes brighter.
        return np.rint(0.35 * grey[..., None] + 0.65 * np.stack(colour, axis=-1))

    return by_rows(blend, image, anomaly_map)


def write_report(path: Path, *, title: str, facts: dict[str, str], metrics: dict, curves: dict, history: list[dict],
                 figures: dict[str, np.ndarray], scores: list[tuple[str, str, int, float]], pictures: Sequence[Picture],
                 threshold: float | None, most: int = 80) -> None:  # fmt: skip
    """Writes the page atomically; ValueError if there is no score, or a score or the threshold is not finite.

    Args:
        facts: what a reader needs to repeat the run, by name.
        metrics: the content of metrics.json: numbers by name, "<name>_interval" (low, high) at 95 %, "reasons" (name ->
            why it is NaN), "by_defect" and perhaps "by_category" (name -> numbers by name, "n"), and "map_scale", the
            map values of the first and the last colour.
        curves: "roc" (false-alarm rate, recall) and "pro" (pixel FPR, overlap), lists of points; may be empty.
        history: the lines of metrics.jsonl: stage, step, "loss/<term>" and other numbers whose names have a slash.
        figures: caption -> uint8 (h, w, 3) of any size: what the method has learned, before any test image.
        scores, pictures: (name, defect, label, score) of all test images; an image for each, perhaps lazy.
        threshold, most: the stored threshold, None if there is none; images to show, in the order of `ordered`.
    """
    values = [row[3] for row in scores] + ([] if threshold is None else [threshold])
    if not scores or not np.isfinite(values).all():
        raise ValueError(f"expected at least one score, all finite; got {len(scores)} and the threshold {threshold}")
    margin = max(0.04 * (max(values) - min(values)), 1e-3 * max(map(abs, values))) or 1.0
    low, high = min(values) - margin, max(values) + margin  # the slider can call all or no images anomalous
    start = (low + high) / 2 if threshold is None else threshold
    facts = (f'<th scope="row">{escape(name)}</th><td>{escape(str(fact))}</td>' for name, fact in facts.items())
    sections = {"Categories": _group_table(metrics, "by_category", "Category"),
                "Defects": _group_table(metrics, "by_defect", "Defect"), "Curves": _curves(curves),
                "Training": _training(history), "Method": _figures(figures), "Run": _table(facts)}  # fmt: skip
    sections = {name: content for name, content in sections.items() if content}
    data = {"scores": scores, "start": start, "low": low, "high": high, "stored": threshold is not None}
    shown = ordered(scores, start)[:most]
    cards, (map_low, map_high) = [_try_card(pictures, i, scores[i], metrics) for i in shown], metrics["map_scale"]
    columns = max((card.count("<figure>") for card in cards), default=0) or 1
    template = read_text(Path(__file__).with_suffix(".html"))
    script = re.search(r"<script>(.*?)</script>", template, flags=re.S)[1]
    values = {
        "title": escape(title),
        "links": "".join(f'<a href="#{k}">{k}</a>' for k in ("Results", "Decisions", *sections, "Pictures")),
        "metrics": _metric_cards(metrics), "score_labels": _x_labels(low, high),
        "sections": "\n".join(f'<section id="{k}"><h2>{k}</h2>{v}</section>' for k, v in sections.items()),
        "low": repr(low), "high": repr(high), "map_low": f"{map_low:.4g}", "map_high": f"{map_high:.4g}",
        "count": len(scores), "shown": len(shown), "left_out": len(scores) - len(shown),
        "colours": ",".join(f"rgb{tuple(map(int, colour))}" for colour in COLOURS),
        "cards": "".join(cards), "columns": columns if columns <= 4 else math.ceil(columns / 2),
        # a name cannot end the script element, and the policy in the head allows this script only
        "data": json.dumps(data).replace("<", "\\u003c"),
        "script_digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }  # fmt: skip
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: str(values[match[1]]), template)
    write_text(path, page.encode(errors="surrogateescape").decode(errors="replace"))  # names may be broken UTF-8


def label(name: str) -> str:
    """Returns the displayed name of a metric, e.g. "AUPRO 0.3, realnet" for "aupro_0.3_realnet"."""
    known = next((key for key in LABELS if name.startswith(f"{key}_")), None)
    return LABELS.get(name) or (f"{LABELS[known]}, {name[len(known) + 1 :]}" if known else name)


def _number(name: str, numbers: dict, reasons: dict) -> str:
    """Formats a metric with three decimals, NaN as "n/a" with its reason."""
    if math.isfinite(value := math.nan if numbers.get(name) is None else numbers[name]):
        return f"<b>{value:.3f}</b>"
    return f"<b>n/a</b> <small>{escape(reasons.get(name, 'no reason was given'))}</small>"


def _table(rows: Iterable[str]) -> str:
    """Joins rows of cells to a table that scrolls sideways in its box; "" if there is no row."""
    body = "</tr><tr>".join(rows)
    return body and f'<div class="scroll" tabindex="0"><table><tr>{body}</tr></table></div>'


def _metric_cards(metrics: dict) -> str:
    cards = ""
    for name in metrics:
        if name in LABELS or (name.startswith(("aupro_", "image_auroc_")) and "interval" not in name):
            interval = metrics.get(f"{name}_interval")
            note = "<small>95 % interval {:.3f} to {:.3f}</small>".format(*interval) if interval else ""
            number = _number(name, metrics, metrics["reasons"])
            cards += f"<div><dt>{escape(label(name))}</dt><dd>{number}{note}</dd></div>"
    return cards


def _group_table(metrics: dict, key: str, head: str) -> str:
    """Makes a table with a row a category, or a row a defect type with the count that follows the slider."""
    groups, found = metrics.get(key, {}), ["Found"] * (key == "by_defect")
    names = [name for name in LABELS if any(name in row for row in groups.values())]
    rows = ["".join(f'<th scope="col">{word}</th>' for word in [head, "Images", *found, *map(LABELS.get, names)])]
    for group, row in groups.items():
        cells = '<td class="found"></td>' * len(found)
        cells += "".join(f"<td>{_number(name, row, metrics['reasons'])}</td>" for name in names)
        rows.append(f'<th scope="row">{escape(group)}</th><td>{row["n"]}</td>{cells}')
    note = "Each with all good images of its category. Found: called anomalous at the threshold of the slider."
    note = note if found else "Each by its images alone; the numbers above are of all images together."
    return _table(rows) + f'<p class="note">{note}</p>' if groups else ""


def _ticks(low: float, high: float, log: bool = False) -> dict[float, str]:
    """Places about five round numbers: position in per cent -> text. If `log`, `low` and `high` are exponents of 10."""
    if log:
        digits = (1, 2, 5) if high - low < 2.2 else (1,)
        decades = range(math.floor(low), math.ceil(high), 1 + int(high - low) // 6)
        values = {decade + math.log10(digit): digit * 10.0**decade for decade in decades for digit in digits}
    else:
        power = 10.0 ** math.floor(math.log10((high - low) / 5))
        step = next(power * digit for digit in (1, 2, 5, 10) if power * digit * 5.001 >= high - low)
        values = {i * step: i * step for i in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)}
    return {100 * (x - low) / (high - low): f"{text:.6g}" for x, text in values.items() if low <= x <= high}


def _x_labels(low: float, high: float) -> str:
    return "".join(f'<i class="x" style="left:{x:.2f}%">{text}</i>' for x, text in _ticks(low, high).items())


def chart(caption: str, x_label: str, points: Sequence, x_range, y_range, shapes: str = "", log: bool = False) -> str:
    """Draws a line through at most 400 of `points` (n, 2), over `shapes` (SVG in 100 x 100 units); returns markup."""
    (x0, x1), (y0, y1), y_ticks = x_range, y_range, _ticks(*y_range, log)
    kept = (points[i] for i in np.unique(np.linspace(0, len(points) - 1, 400).astype(int)))
    places = " ".join(f"{100 * (x - x0) / (x1 - x0):.2f},{100 * (y1 - y) / (y1 - y0):.2f}" for x, y in kept)
    grid = "".join(f'<path class="grid" d="M0 {100 - y:.2f}H100"/>' for y in y_ticks)
    labels = "".join(f'<i class="y" style="top:{100 - y:.2f}%">{text}</i>' for y, text in y_ticks.items())
    return f"""<figure class="chart"><figcaption>{caption}</figcaption><div><svg viewBox="0 0 100 100"
 preserveAspectRatio="none" aria-hidden="true">{grid}{shapes}<polyline points="{places}"/></svg>{labels}
{_x_labels(x0, x1)}</div><small>{x_label}</small></figure>"""


def _curves(curves: dict) -> str:
    shapes = {"roc": '<path class="chance" d="M0 100L100 0"/><path class="dot"/>',
              "pro": '<path class="limit" d="M0 0H30V100H0"/>'}  # fmt: skip
    texts = {"roc": ("<b>ROC</b> recall; the dot is the threshold", "false-alarm rate"),
             "pro": ("<b>PRO</b> overlap of regions; shaded up to 0.3", "false-positive rate of pixels")}  # fmt: skip
    unit = (0.0, 1.0)
    figures = "".join(chart(*texts[k], curves[k], unit, unit, shapes[k]) for k in shapes if curves.get(k))
    return figures and f'<div class="charts wide">{figures}</div>'


def _training(history: list[dict]) -> str:
    """Draws a chart for each stage and logged number: means of at most 160 equal groups of steps."""
    parts = ""
    for stage in dict.fromkeys(line["stage"] for line in history):
        lines, figures = [line for line in history if line["stage"] == stage], ""
        for term in dict.fromkeys(key for line in lines for key in line if "/" in key):
            steps = np.array([(line["step"], line[term]) for line in lines if term in line], np.float64)
            points = np.array([group.mean(axis=0) for group in np.array_split(steps, min(160, len(steps)))])
            (x0, low), (x1, high) = points.min(axis=0), points.max(axis=0)
            caption = f"<b>{escape(term.removeprefix('loss/').replace('_', ' '))}</b> last {points[-1, 1]:.3g}"
            if log := low > 0 and high / low > 20:  # a linear scale is easier to read below that
                points[:, 1], low, high = np.log10(points[:, 1]), math.log10(low), math.log10(high)
                caption += ", log scale"
            margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
            ranges = (x0, max(x1, x0 + 1)), (low - margin, high + margin)
            figures += chart(caption, "step", points, *ranges, log=log)
        note = f"{len(lines)} steps, drawn as means of {math.ceil(len(lines) / 160)}"
        parts += f'<h3>Stage {escape(stage)}</h3><p class="note">{note}</p><div class="charts">{figures}</div>'
    return parts


def ordered(scores: list[tuple], threshold: float) -> list[int]:
    """Sorts the indices of rows (name, defect, label, score): mistakes, the worst first, then the closest decisions."""
    excess = [(score - threshold) * (1 if label else -1) for *_, label, score in scores]  # < 0: wrong side
    right = [(score >= threshold) == bool(label) for *_, label, score in scores]
    return sorted(range(len(scores)), key=lambda i: (right[i], excess[i]))


def _embed(image: Image.Image, kind: str, name: str, form: str = "PNG") -> str:
    """Encodes an image as an element whose class is `kind` up to a comma."""
    image.save(file := io.BytesIO(), form, quality=85)
    source = f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
    word = kind.partition(",")[0].replace(" ", "-")
    return f'<img class="{escape(word)}" alt="{escape(kind)} of {escape(name)}" src="{source}">'


def _figures(figures: dict[str, np.ndarray]) -> str:
    images = {escape(caption): _embed(Image.fromarray(a), caption, "the method") for caption, a in figures.items()}
    parts = (f"<figure>{image}<figcaption>{caption}</figcaption></figure>" for caption, image in images.items())
    return f'<div class="figures">{"".join(parts)}</div>' if figures else ""


def _try_card(pictures: Sequence[Picture], index: int, row: tuple, metrics: dict) -> str:
    """Makes a card as `_card`; one that says why an image or its map cannot be shown, if so."""
    try:
        return _card(pictures[index], metrics["map_scale"])
    except (OSError, ValueError, EOFError) as error:
        name, defect, label, score = row
        text = f'<h3>{escape(name)}</h3><p class="note">{escape(defect)}, score {score:.4g}: {escape(str(error))}</p>'
        return f'<article data-label="{label}" data-score="{score!r}">{text}<b class="badge"></b></article>'


def _card(picture: Picture, map_scale: tuple[float, float]) -> str:
    """Makes the card of an image, its tiles of one size up to `SIDE`."""
    image, anomaly_map, name = picture.image, picture.anomaly_map, escape(picture.name)
    height, width = image.shape[:2]
    if (factor := max(height, width) // (2 * SIDE)) > 1:  # an overlay of millions of pixels takes seconds
        image, anomaly_map = (np.asarray(Image.fromarray(array).reduce(factor)) for array in (image, anomaly_map))
    size = [math.ceil(n * min(1.0, SIDE / max(image.shape))) for n in image.shape[1::-1]]
    arrays = {"input": image, **picture.steps, "map": overlay(image, anomaly_map, *map_scale)}
    small = {kind: Image.fromarray(array).resize(size, Image.Resampling.BOX) for kind, array in arrays.items()}
    tiles = {kind: _embed(tile, kind, picture.name, "JPEG") for kind, tile in small.items()}
    if picture.mask is not None:
        mask = Image.fromarray(picture.mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)
        mask = np.asarray(mask) > 0  # a defect thinner than a pixel stays visible
        edge = scipy.ndimage.binary_dilation(mask, iterations=2) ^ mask
        edge = Image.fromarray(edge[..., None] * np.array([90, 235, 255, 255], np.uint8))
        tiles["true mask"] = _embed(Image.fromarray(mask), "true mask", picture.name)
        tiles["map"] = tiles.pop("map") + _embed(edge, "outline", picture.name)  # the last tile
    tiles = "".join(f"<figure><div>{v}</div><figcaption>{escape(k)}</figcaption></figure>" for k, v in tiles.items())
    return f"""<article data-label="{picture.label}" data-score="{picture.score!r}"
 style="--ratio:{width}/{height}"><header><h3>{name}</h3><b class="badge"></b></header>
<p class="note">{escape(picture.defect)}, score {picture.score:.4g}</p>
<button class="tiles" aria-label="Enlarge {name}">{tiles}</button></article>"""
