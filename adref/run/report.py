"""One self-contained report.html for one evaluated run: numbers, curves, every decision, pictures.

The page opens from disk, loads nothing and knows nothing about any method. An image is called anomalous when its score
is at least the threshold. Text that is not ours passes `html.escape` once.
"""

import base64
import hashlib
import io
import json
import math
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
import scipy
from PIL import Image

from adref.run.files import write_atomically

# Colours at equal distances from 0 to 1. Their luminance rises all the way, so that brighter is always more.
COLOURS = np.array([(0, 0, 0), (66, 16, 108), (154, 38, 104), (224, 84, 48), (250, 164, 32), (255, 246, 150)])
PICTURES_LIMIT = 5_500_000  # characters of all embedded pictures; above it they are made smaller
SIDES = (256, 192, 128)  # the longest side of an embedded picture
LABELS = {
    "image_auroc": "Image AUROC", "image_ap": "Image AP", "image_best_f1": "Best F1 on test",
    "pixel_auroc": "Pixel AUROC", "pixel_ap": "Pixel AP", "aupro_0.3": "AUPRO 0.3", "aupro_0.05": "AUPRO 0.05",
}  # fmt: skip


class Picture(NamedTuple):
    """One test image and what the method made of it."""

    name: str  # the path as shown, e.g. "crack/003.png"
    defect: str  # "good" or the defect type
    label: int  # 0 good, 1 anomalous
    score: float
    image: np.ndarray  # uint8 (H, W, 3)
    steps: dict[str, np.ndarray]  # caption -> uint8 (h, w, 3), in any size: what lies between image and map
    mask: np.ndarray | None  # bool (H, W), True = anomalous
    anomaly_map: np.ndarray  # float32 (H, W)


def overlay(image: np.ndarray, anomaly_map: np.ndarray, low: float, high: float) -> np.ndarray:
    """The anomaly map in colour over the grey image, uint8 (H, W, 3).

    Args:
        image: uint8 (H, W, 3).
        anomaly_map: (H, W), no NaN.
        low, high: map values of the first and the last colour; the same for all pictures that are compared.
    """
    if image.shape != (*anomaly_map.shape, 3) or np.isnan(anomaly_map).any() or not low <= high:
        got = f"{image.shape}, {anomaly_map.shape} with {np.isnan(anomaly_map).sum()} NaN, {low}, {high}"
        raise ValueError(f"expected image (H, W, 3), map (H, W) without NaN, low <= high; got {got}")
    position = np.clip((anomaly_map.astype(np.float64) - low) / max(high - low, 1e-12), 0, 1)
    colour = [np.interp(position, np.linspace(0, 1, len(COLOURS)), channel) for channel in COLOURS.T]
    grey = image @ np.array([0.299, 0.587, 0.114])
    # One opacity everywhere: were it to grow with the map, a bright pixel would darken before it brightens.
    return np.rint(0.35 * grey[..., None] + 0.65 * np.stack(colour, axis=-1)).astype(np.uint8)


def write_report(
    path, *, title: str, facts: dict[str, str], metrics: dict, curves: dict, history: list[dict],
    pictures: list[Picture], threshold: float | None, map_scale: tuple[float, float],
    scores: list[tuple[str, str, int, float]], max_pictures: int = 80,
    portraits: dict[str, np.ndarray] | None = None, open_picture: Callable[[Picture], Picture] | None = None,
) -> None:  # fmt: skip
    """Writes the page, atomically: under another name beside `path`, then renamed.

    Args:
        facts: what a reader needs to repeat the run.
        metrics: number by name, "<name>_interval" (low, high) at 95 %, "reasons" (name -> why it is NaN),
            "by_defect" and perhaps "by_category" (name -> numbers by name, "n", perhaps "reasons").
        curves: "roc" (false-alarm rate, recall) and "pro" (pixel FPR, overlap), lists of points; may be empty.
        history: the lines of metrics.jsonl: stage, step, "loss/<term>" and other numbers whose names have a slash.
        pictures: test images to show; the first `max_pictures` in the order of `ordered`.
        threshold: the stored threshold of the image score, None where there is none.
        map_scale: map values at the two ends of the colours, the same for all pictures.
        scores: (name, defect, label, score) of all test images, not of the shown ones alone.
        portraits: caption -> uint8 (h, w, 3), in any size: what the method shows before any test image.
        open_picture: gives one of `pictures` its arrays, if they have none yet: one at a time is in memory.

    Raises:
        ValueError: there is no score, or a score or the threshold is not finite.
    """
    rows = [(str(name), str(defect), int(label), float(score)) for name, defect, label, score in scores]
    values = [row[3] for row in rows] + ([] if threshold is None else [float(threshold)])
    if not rows or not np.isfinite(values).all():
        raise ValueError(f"expected at least one score, all finite; got {len(rows)} and the threshold {threshold}")
    margin = max(0.04 * (max(values) - min(values)), 1e-3 * max(map(abs, values))) or 1.0
    low, high = min(values) - margin, max(values) + margin  # room to call all or none anomalous
    start = (low + high) / 2 if threshold is None else float(threshold)
    slider = f'<input type="range" aria-label="Threshold" min="{low!r}" max="{high!r}" step="any">'
    sections = {
        "Results": _cards(metrics),
        "Decisions": _decisions(rows, start, threshold is not None, low, high, slider),
        "Categories": _groups(metrics, "by_category", "Category"),
        "Defects": _groups(metrics, "by_defect", "Defect"),
        "Curves": _curves(curves),
        "Training": _training(history),
        "Method": _portraits(portraits or {}),
        "Run": table(f'<th scope="row">{escape(k)}</th><td>{escape(str(v))}</td>' for k, v in facts.items()),
        "Pictures": _pictures(ordered(pictures, start)[:max_pictures], len(rows), map_scale, slider, open_picture),
    }
    data = {"scores": rows, "start": start, "low": low, "high": high}
    write_page(path, title, sections, SCRIPT, data)


def write_page(path, title: str, sections: dict[str, str], script: str = "", data=None) -> None:
    """Writes a page that loads nothing, atomically: under another name beside `path`, then renamed.

    Args:
        title: text of the heading.
        sections: name (text) -> markup, linked at the top; empty ones are left out.
        script: runs at the end, and alone: a digest of it is in the page's policy.
        data: what the script reads as JSON from the element of the id "data".
    """
    shown = {name: (escape(name), part) for name, part in sections.items() if part}
    links = "".join(f'<a href="#{quote(name)}">{text}</a>' for name, (text, _) in shown.items())
    body = "".join(f'<section id="{text}"><h2>{text}</h2>{part}</section>\n' for text, part in shown.values())
    # No name can end the script element; the policy lets this one script run and nothing load, a second wall.
    data = json.dumps(data).replace("<", "\\u003c")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    note = "<noscript>What answers to a click needs JavaScript; all other numbers stand as they are.</noscript>"
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="generator" content="adref">
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<title>{escape(title)}</title><style>{STYLE}</style></head>
<body><header><h1>{escape(title)}</h1><nav aria-label="Sections">{links}</nav></header>
{note if script else ""}<main>{body}</main>
<script type="application/json" id="data">{data}</script><script>{script}</script></body></html>
"""
    # file names may hold broken UTF-8
    write_atomically(Path(path), lambda file: file.write(page.encode(errors="replace")))


def _value(name: str, numbers: dict, reasons: dict) -> str:
    """Three decimals; for NaN "n/a" and the reason."""
    if math.isfinite(value := math.nan if numbers.get(name) is None else numbers[name]):
        return f"<b>{value:.3f}</b>"
    return f"<b>n/a</b> <small>{escape(reasons.get(name, 'no reason was given'))}</small>"


def label(name: str) -> str:
    """A metric's name for the eye; another reading of one is called after it: "aupro_0.3_realnet"."""
    known = next((key for key in LABELS if name.startswith(f"{key}_")), None)
    return LABELS.get(name) or (f"{LABELS[known]}, {name[len(known) + 1 :]}" if known else name)


def table(rows) -> str:
    """A table that scrolls in its own box; `rows` are markup, each the cells of one row."""
    body = "</tr><tr>".join(rows)
    return body and f'<div class="scroll" tabindex="0"><table><tr>{body}</tr></table></div>'


def _cards(metrics: dict) -> str:
    cards = ""
    for name in (
        n for n in metrics if n in LABELS or (n.startswith(("aupro_", "image_auroc_")) and "interval" not in n)
    ):
        interval = metrics.get(f"{name}_interval")
        note = "<small>95 % interval {:.3f} to {:.3f}</small>".format(*interval) if interval else ""
        shown = _value(name, metrics, metrics.get("reasons", {}))
        cards += f"<div><dt>{escape(label(name))}</dt><dd>{shown}{note}</dd></div>"
    return f'<dl class="cards">{cards}</dl>'


def _groups(metrics: dict, key: str, head: str) -> str:
    """A row a defect type, whose images found are counted as the slider moves, or a row a category."""
    groups, found = metrics.get(key, {}), ["Found"] * (key == "by_defect")
    names = [name for name in LABELS if any(name in row for row in groups.values())]
    rows = ["".join(f'<th scope="col">{word}</th>' for word in [head, "Images", *found, *map(LABELS.get, names)])]
    for group, row in groups.items():
        reasons = {**metrics.get("reasons", {}), **row.get("reasons", {})}
        cells = '<td class="found"></td>' * len(found)
        cells += "".join(f"<td>{_value(name, row, reasons)}</td>" for name in names)
        rows.append(f'<th scope="row">{escape(group)}</th><td>{row["n"]}</td>{cells}')
    text = "Each against all good images of its category. Found: called anomalous at the threshold of the slider."
    note = text if found else "Each by its own images; the numbers above are of all images together."
    return table(rows) + f'<p class="note">{note}</p>' if groups else ""


def _decisions(rows: list[tuple], start: float, stored: bool, low: float, high: float, slider: str) -> str:
    step = (high - low) / 50  # and one edge at the threshold, so that no bar stands on both sides of it
    edges = start + step * np.arange(math.floor((low - start) / step), math.ceil((high - start) / step) + 1)
    counts = [np.histogram([r[3] for r in rows if r[2] == label], edges)[0] for label in (0, 1)]
    top = max(int(count.max()) for count in counts)
    good, anomalous = (  # bars from the middle: good upwards, anomalous downwards
        "".join(f"M{2 * (x - low) / step + 0.2:.2f} 50v{48 * n / top:.2f}h1.6V50Z" for x, n in zip(edges, count) if n)
        for count in (-counts[0], counts[1])
    )
    mark, back = "", "<b>No threshold is stored with this run: the slider starts in the middle.</b>"
    if stored:
        mark = f'<path class="stored" d="M{100 * (start - low) / (high - low):.3f} 0V100"/>'
        back = f'<button id="back">Back to the stored threshold {start:.4g}</button>'
    shapes = f"""<clipPath id="above"><rect width="100" height="100"/></clipPath>
<clipPath id="below"><rect width="100" height="100"/></clipPath>
<path class="correct" d="{good}"/><path class="false" clip-path="url(#above)" d="{good}"/>
<path class="hit" d="{anomalous}"/><path class="miss" clip-path="url(#below)" d="{anomalous}"/>
<path class="stored" d="M0 50H100"/>{mark}<path id="line" d="M0 0V100"/>"""
    caption = f"<b>Scores</b> {sum(counts[0])} good upwards, {sum(counts[1])} anomalous downwards, tallest bar {top}"
    hit, miss, alarm, rest = (
        f'<td class="{kind.split()[0]}"><b data-show="{kind}"></b><small>{short}, {kind}</small></td>'
        for kind, short in {"hit": "TP", "miss": "FN", "false alarm": "FP", "correct pass": "TN"}.items()
    )
    return f"""<div class="split"><div>{chart(shapes, caption, "", (low, high))}{slider}
<p class="row"><span>Threshold <b data-show="threshold"></b></span>{back}</p></div>
<div><table class="confusion"><caption><b>Decisions</b> on all {len(rows)} test images</caption>
<tr><td></td><th scope="col">called anomalous</th><th scope="col">called good</th></tr>
<tr><th scope="row">anomalous</th>{hit}{miss}</tr><tr><th scope="row">good</th>{alarm}{rest}</tr></table>
<p class="row note"><span>Precision <b data-show="precision"></b></span> <span>Recall <b data-show="recall"></b>
</span> <span>False-alarm rate <b data-show="rate"></b></span></p>
<details><summary>Wrong decisions by name</summary><pre data-show="wrong"></pre></details></div></div>
<p class="note">An image is called anomalous when its score is at least the threshold. A threshold picked here, on
the test images, makes these numbers better than they are.</p>"""


def _ticks(low: float, high: float, log: bool = False) -> dict[float, str]:
    """Place in per cent -> text of about five round numbers; `low` and `high` are exponents of 10 if `log`."""
    if log:
        digits = (1, 2, 5) if high - low < 2.2 else (1,)
        decades = range(math.floor(low), math.ceil(high), 1 + int(high - low) // 6)
        values = {decade + math.log10(digit): digit * 10.0**decade for decade in decades for digit in digits}
    else:
        power = 10.0 ** math.floor(math.log10((high - low) / 5))
        step = next(power * digit for digit in (1, 2, 5, 10) if power * digit * 5.001 >= high - low)
        values = {i * step: i * step for i in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)}
    return {100 * (x - low) / (high - low): f"{text:.6g}" for x, text in values.items() if low <= x <= high}


def chart(shapes: str, caption: str, x_label: str, x_range, y_range=None, points=(), log: bool = False) -> str:
    """A figure in 100 x 100 units that stretch with the page: `shapes`, a line through at most 400 points; markup."""
    x_ticks, y_ticks = _ticks(*x_range), _ticks(*y_range, log) if y_range else {}
    if len(points):
        (x0, x1), (y0, y1) = x_range, y_range
        kept = (points[i] for i in np.unique(np.linspace(0, len(points) - 1, 400).astype(int)))
        places = (f"{100 * (x - x0) / (x1 - x0):.2f},{100 * (y1 - y) / (y1 - y0):.2f}" for x, y in kept)
        shapes += f'<polyline points="{" ".join(places)}"/>'
    grid = "".join(f'<path class="grid" d="M0 {100 - y:.2f}H100"/>' for y in y_ticks)
    marks = "".join(f'<i class="y" style="top:{100 - y:.2f}%">{text}</i>' for y, text in y_ticks.items())
    marks += "".join(f'<i class="x" style="left:{x:.2f}%">{text}</i>' for x, text in x_ticks.items())
    return f"""<figure class="chart"><figcaption>{caption}</figcaption><div><svg viewBox="0 0 100 100"
 preserveAspectRatio="none" aria-hidden="true">{grid}{shapes}</svg>{marks}</div><small>{x_label}</small></figure>"""


def _curves(curves: dict) -> str:
    figures, unit = "", (0.0, 1.0)
    if curves.get("roc"):
        shapes = '<path class="chance" d="M0 100L100 0"/><path class="dot"/>'
        caption = "<b>ROC</b> recall; the dot is the threshold"
        figures += chart(shapes, caption, "false-alarm rate", unit, unit, curves["roc"])
    if curves.get("pro"):
        shapes, caption = '<path class="limit" d="M0 0H30V100H0"/>', "<b>PRO</b> overlap of regions; shaded up to 0.3"
        figures += chart(shapes, caption, "false-positive rate of pixels", unit, unit, curves["pro"])
    return figures and f'<div class="charts wide">{figures}</div>'


def _training(history: list[dict]) -> str:
    """A chart for each stage, loss term and statistic: the means of at most 160 equal runs of steps."""
    parts = ""
    for stage in dict.fromkeys(line["stage"] for line in history):
        lines, figures = [line for line in history if line["stage"] == stage], ""
        for term in dict.fromkeys(key for line in lines for key in line if "/" in key):
            steps = np.array([(line["step"], line[term]) for line in lines if term in line], np.float64)
            finite = steps[np.isfinite(steps[:, 1])]
            lost = len(steps) - len(finite)
            name = escape(term.removeprefix("loss/").replace("_", " "))
            caption = f"<b>{name}</b>" + f" {lost} steps not finite;" * (lost > 0)
            if len(finite) == 0:
                figures += f"<figure><figcaption>{caption}</figcaption></figure>"
                continue
            points = np.array([run.mean(axis=0) for run in np.array_split(finite, min(160, len(finite)))])
            caption += f" last {points[-1, 1]:.3g}"
            (x0, low), (x1, high) = points.min(axis=0), points.max(axis=0)
            if log := low > 0 and high / low > 20:  # below that a straight scale is the easier to read
                points[:, 1], low, high = np.log10(points[:, 1]), math.log10(low), math.log10(high)
                caption += ", log scale"
            margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
            x_range, y_range = (x0, max(x1, x0 + 1)), (low - margin, high + margin)
            figures += chart("", caption, "step", x_range, y_range, points, log)
        note = f"{len(lines)} steps, drawn as means of {math.ceil(len(lines) / 160)}"
        parts += f'<h3>Stage {escape(stage)}</h3><p class="note">{note}</p><div class="charts">{figures}</div>'
    return parts


def ordered(pictures: list[Picture], threshold: float) -> list[Picture]:
    """Misses and false alarms first, the farthest from the threshold foremost; then the closest calls."""
    excess = [(picture.score - threshold) * (1 if picture.label else -1) for picture in pictures]  # < 0: wrong side
    right = [(picture.score >= threshold) == bool(picture.label) for picture in pictures]
    return [pictures[i] for i in sorted(range(len(pictures)), key=lambda i: (right[i], excess[i]))]


def embed(image: Image.Image, kind: str, name: str) -> str:
    """An image as markup; its class is `kind` up to a comma."""
    word = kind.partition(",")[0].replace(" ", "-")
    source = _source(image, "JPEG" if image.mode == "RGB" else "PNG")
    return f'<img class="{escape(word)}" alt="{escape(kind)} of {escape(name)}" src="{source}">'


def embed_array(picture: np.ndarray, caption: str) -> str:
    """A picture, uint8 (H, W, 3), as markup, without loss: a single pixel may matter."""
    return f'<img alt="{escape(caption)}" src="{_source(Image.fromarray(picture), "PNG")}">'


def _source(image: Image.Image, form: str) -> str:
    image.save(file := io.BytesIO(), form, quality=85)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _portraits(portraits: dict[str, np.ndarray]) -> str:
    """What the method shows of itself, all in one size; maps of a few pixels keep these in sight."""
    figures = ""
    for caption, array in portraits.items():
        picture = Image.fromarray(array)
        scale = 192 / max(picture.size)
        size = [max(1, round(scale * side)) for side in picture.size]
        shown = picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)
        figures += f"<figure>{embed(shown, caption, 'the method')}<figcaption>{escape(caption)}</figcaption></figure>"
    return figures and f'<div class="portraits">{figures}</div>'


def _draw(picture: Picture, map_scale: tuple[float, float]) -> dict[str, Image.Image]:
    """The images of one card, in one size with no side above SIDES[0]."""
    if (factor := max(picture.image.shape) // (2 * SIDES[0])) > 1:  # colours of millions of pixels take seconds
        small = (np.asarray(Image.fromarray(array).reduce(factor)) for array in (picture.image, picture.anomaly_map))
        picture = picture._replace(**dict(zip(("image", "anomaly_map"), small)))
    size = [math.ceil(n * min(1.0, SIDES[0] / max(picture.image.shape))) for n in picture.image.shape[1::-1]]

    def shrink(array):
        return Image.fromarray(array).resize(size, Image.Resampling.BOX)

    images = {"input": shrink(picture.image), **{caption: shrink(step) for caption, step in picture.steps.items()}}
    if picture.mask is not None:
        images["mask"] = shrink(picture.mask.astype(np.uint8) * 255)
    images["map"] = shrink(overlay(picture.image, picture.anomaly_map, *map_scale))
    return images


def _tiles(images: dict[str, Image.Image], name: str, side: int) -> list[str]:
    """The images of one card as figures, none longer than `side`."""
    size = [math.ceil(n * min(1.0, side / max(images["input"].size))) for n in images["input"].size]
    images, outline = {kind: image.resize(size, Image.Resampling.BOX) for kind, image in images.items()}, ""
    if "mask" in images:
        # BOX, then "above 0": a scratch thinner than a pixel of the small picture stays in sight.
        mask = np.asarray(images["mask"].convert("L")) > 0
        images["mask"] = Image.fromarray(mask)
        edge = scipy.ndimage.binary_dilation(mask, iterations=2) ^ mask
        colour = np.array([90, 235, 255, 255], np.uint8)
        outline = embed(Image.fromarray(edge[..., None] * colour), "outline", name)
    captions = {"mask": "true mask"}
    parts = {kind: embed(image, kind, name) + outline * (kind == "map") for kind, image in images.items()}
    return [
        f"<figure><div>{part}</div><figcaption>{escape(captions.get(k, k))}</figcaption></figure>"
        for k, part in parts.items()
    ]


def _pictures(shown: list[Picture], count: int, map_scale: tuple[float, float], slider: str, open_picture) -> str:
    drawn = [_draw(open_picture(p) if open_picture else p, map_scale) for p in shown]
    for side in SIDES:
        tiles = [_tiles(images, p.name, side) for p, images in zip(shown, drawn)]
        if sum(len(tile) for card in tiles for tile in card) < PICTURES_LIMIT:
            break
    cards = "".join(
        f"""<article data-label="{int(p.label)}" data-score="{float(p.score)!r}"
 style="--ratio:{images["input"].width}/{images["input"].height}"><header><h3>{escape(p.name)}</h3>
<b class="badge"></b></header>
<p class="note">{escape(p.defect)}, score {p.score:.4g}</p>
<button class="tiles" aria-label="Enlarge {escape(p.name)}">{"".join(card)}</button></article>"""
        for p, images, card in zip(shown, drawn, tiles)
    )
    columns = max(map(len, tiles), default=1)
    colours = ",".join(f"rgb{tuple(map(int, colour))}" for colour in COLOURS)
    options = "".join(f"<option>{kind}</option>" for kind in ("miss", "false alarm", "hit", "correct pass"))
    page = f"""<p class="note">{len(shown)} of {count} test images, {count - len(shown)} left out. First the worst
misses and false alarms, then the closest calls.</p><p class="row note">Map, one scale for all: {map_scale[0]:.4g}
<i class="scale" style="background:linear-gradient(90deg,{colours})"></i> {map_scale[1]:.4g}</p>
<div class="bar">{slider}<output><b data-show="threshold"></b> <span data-show="summary"></span></output>
<label>Show <select id="filter"><option value="">all</option>{options}</select></label>
<label><input type="checkbox" id="outline" checked> mask outline</label></div>
<div class="pictures" style="--columns:{columns if columns <= 4 else math.ceil(columns / 2)}">{cards}</div>"""
    return page if shown else ""


STYLE = """
:root { color-scheme: light dark; --page: #fafaf8; --card: #fff; --ink: #1c1e22; --soft: #5b6068; --rule: #dcdcd8;
  --on: #fff; --hit: #0d6a70; --miss: #b3261e; --false: #925600; --correct: #626973; --mark: #3a5bc7 }
@media (prefers-color-scheme: dark) { :root { --page: #131518; --card: #1c1f23; --ink: #e9eaec; --soft: #a4aab3;
  --rule: #34383e; --on: #131518; --hit: #52c1bd; --miss: #ff8b80; --false: #f0b54a; --correct: #9aa2ad;
  --mark: #93adff } }   * { box-sizing: border-box }
body { margin: 0 auto; max-width: 1168px; padding: 40px 24px 96px; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; font-variant-numeric: tabular-nums }
h1, h2, h3, td, pre, .note { overflow-wrap: anywhere; unicode-bidi: isolate } h1 { margin: 0 0 12px; line-height: 1.2 }
h2 { font-size: 20px; margin: 0 0 16px } h3 { font-size: 15px; margin: 0 } section { margin-top: 56px }
.note, small, figcaption, caption, label, output, details, dt, pre, a { color: var(--soft); font-size: 14px }
nav, .row, .bar { display: flex; flex-wrap: wrap; gap: 6px 20px; align-items: center } .note { margin: 8px 0 }
figure, dd { margin: 0 } small { display: block } b { color: var(--ink) } pre { max-height: 240px; overflow: auto }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(146px, 1fr)); gap: 12px; margin: 0 }
.cards div, article { padding: 14px 16px; background: var(--card); border: 1px solid var(--rule); border-radius: 10px }
dd b, .confusion td b { font-size: 28px; font-weight: 600; display: block } #Run th { width: 200px }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-size: 15px }
th, td { text-align: right; padding: 8px; border-bottom: 1px solid var(--rule); vertical-align: top; font-weight: 500 }
tr > :first-child, #Run td, caption { text-align: left } td, td b { font-weight: 400 } #Defects td { min-width: 92px }
#Numbers td { overflow-wrap: break-word }
.split { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 16px 48px }
.confusion { table-layout: fixed } .confusion td { border-top: 3px solid var(--kind, transparent) }
.hit { --kind: var(--hit) } .miss { --kind: var(--miss) } .false { --kind: var(--false) }
.correct { --kind: var(--correct) } .charts + h3, .scroll + h3 { margin-top: 32px }
.chart > small { text-align: center }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 16px 24px }
.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)) } #Defects small { min-width: 140px }
.chart > div { position: relative; margin: 12px 10px 26px 44px } .split .chart > div { margin: 12px 8px 26px }
.chart i { position: absolute; font: 12px/1 system-ui; color: var(--soft) } .limit { fill: var(--mark); opacity: .13 }
.x { top: calc(100% + 8px); transform: translateX(-50%) } .y { right: calc(100% + 8px); transform: translateY(-50%) }
svg { display: block; width: 100%; height: 190px; overflow: visible } svg * { vector-effect: non-scaling-stroke }
polyline, #line { fill: none; stroke: var(--mark); stroke-width: 2; stroke-linejoin: round }
path { fill: var(--kind); stroke-linecap: round } path.hit, path.correct { opacity: .45 }
.grid, .chance { stroke: var(--rule) } .stored { stroke: var(--soft); stroke-dasharray: 3 3 }
.dot { stroke: var(--ink); stroke-width: 10 } input { accent-color: var(--mark); vertical-align: middle }
input[type=range] { flex: 1 1 220px; width: 100%; margin: 0 } output { min-width: 230px }
button, select { font: inherit; padding: 5px 12px; color: inherit; background: var(--card); border-radius: 8px;
  border: 1px solid var(--rule) } .scale { width: 160px; height: 12px }
.bar { position: sticky; top: 0; z-index: 1; padding: 10px 0; background: var(--page) }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 500px), 1fr)); gap: 16px }
article header { display: flex; gap: 12px; justify-content: space-between; align-items: start } .badge { flex: none;
  font-size: 13px; padding: 1px 10px; border-radius: 10px; background: var(--kind); color: var(--on) }
.tiles { display: grid; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); gap: 8px; width: 100%;
  padding: 0; border: 0; background: none; text-align: left } .large { grid-column: 1 / -1 }
.portraits { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 16px }
.portraits img { width: 100% } .tiles div { position: relative; aspect-ratio: var(--ratio) } [hidden] { display: none }
.tiles img { position: absolute; width: 100%; height: 100% } body:has(#outline:not(:checked)) .outline { display: none }
@media (max-width: 720px) { body { padding: 24px 16px 64px } .split { grid-template-columns: minmax(0, 1fr) }
  .tiles { grid-template-columns: 1fr 1fr } .large .tiles { grid-template-columns: 1fr } #Run th { width: 120px } }
"""
SCRIPT = """
"use strict";
const all = selector => [...document.querySelectorAll(selector)];
const set = (selector, key, value) => all(selector).forEach(shape => shape.setAttribute(key, value));
const show = (key, value) => all(`[data-show="${key}"]`).forEach(place => { place.textContent = value; });
const share = (part, whole) => whole ? (part / whole).toFixed(3) : "n/a";
const outcome = (label, score) => score >= threshold ? label ? "hit" : "false alarm" : label ? "miss" : "correct pass";
const data = JSON.parse(all("#data")[0].textContent), sliders = all("input[type=range]");
let threshold = data.start;

function update(value) {
  threshold = value;
  const rows = data.scores.map(([name, defect, label, score]) => ({ name, defect, kind: outcome(label, score) }));
  const count = kind => rows.filter(row => row.kind === kind).length;
  const hit = count("hit"), miss = count("miss"), alarm = count("false alarm"), pass = count("correct pass");
  for (const kind of ["hit", "miss", "false alarm", "correct pass"]) show(kind, count(kind));
  show("precision", share(hit, hit + alarm)), show("recall", share(hit, hit + miss));
  show("rate", share(alarm, alarm + pass)), show("threshold", Number(value.toPrecision(4)));
  show("summary", `misses ${miss}, false alarms ${alarm}`);
  show("wrong", rows.filter(row => /miss|alarm/.test(row.kind)).map(row => `${row.kind}: ${row.name}`).join("\\n"));
  for (const cell of all(".found")) {
    const same = rows.filter(row => row.defect === cell.parentNode.firstElementChild.textContent);
    cell.textContent = `${same.filter(row => row.kind === "hit").length} of ${same.length}`;
  }
  for (const card of all("article")) {
    const kind = outcome(Number(card.dataset.label), Number(card.dataset.score));
    Object.assign(card.querySelector(".badge"), { textContent: kind, className: `badge ${kind.split(" ")[0]}` });
    card.hidden = !["", kind].includes(all("#filter")[0].value);
  }
  const x = Math.max(0, 100 * (value - data.low) / (data.high - data.low));
  set("#line", "d", `M${x} 0V100`), set("#above rect", "x", x), set("#below rect", "width", x);
  set(".dot", "d", `M${100 * alarm / (alarm + pass || 1)} ${100 * miss / (hit + miss || 1)}h0`);
  sliders.forEach(slider => { slider.value = value; });
}

sliders.forEach(slider => { slider.oninput = () => update(Number(slider.value)); });
all("#back").forEach(button => { button.onclick = () => update(data.start); });
all("#filter").forEach(filter => { filter.onchange = () => update(threshold); });
all(".tiles").forEach(tiles => { tiles.onclick = () => tiles.parentNode.classList.toggle("large"); });
update(data.start);
"""
