"""The evaluation of a run: metrics.json, scores.csv, maps and report.html.

Nothing is selected on test images: no epoch, no threshold, no normalisation of scores. Two departures from the papers:
maps are resized to each image's full resolution, where no rule for resizing masks is needed (--resolution method: the
other way); the numbers of several categories are of all images together, and their mean, which papers print, beside it.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from adref.data.layouts import Category, Problem, Record, check_files, digest, raise_if_any
from adref.data.reader import decode_image, decode_mask, read_unchanged
from adref.ops import metrics as metric
from adref.options import UserError, flag
from adref.run import distributed
from adref.run.cli import Progress
from adref.run.directory import Run, read_log
from adref.run.files import csv_text, result_path, with_filename, write_json, write_text
from adref.run.measures import Lazy, all_metrics, resized_mask
from adref.run.report import Picture, write_report
from adref.run.scoring import as_batch, as_bytes, at_size, decision, map_scale, resize_and_hash, score_image
from adref.run.tiles import Tiling


class Rules(NamedTuple):
    """How a test set is evaluated."""

    resolution: str = "native"  # the pixels that pixel metrics count: the images' ("native") or the "method"'s
    gt_mode: str = "nearest"  # how masks are resized to the method's size: "nearest" or "draem" (`resized_mask`)
    convention: str | None = None  # a reading of AUPRO, reported beside the exact one; None: the method's
    tiling: Tiling = Tiling()
    shown: int = 80  # pictures that the report embeds


def check_test_set(category: Category, problems: Sequence[Problem] = ()) -> dict[Path, str]:
    """Reads all test images and masks, prints notes, returns the SHA-256 of each file; UserError for any problem."""
    found = distributed.on_rank_zero(lambda: check_files(category.test))
    raise_if_any([*category.problems, *problems, *found.problems], category.name)
    for note in (*category.notes, *found.notes):
        print(f"{category.name}: {note}")
    return found.digests


def evaluate(run: Run, category: Category, digests: dict[Path, str], rules: Rules = Rules()) -> dict:
    """Scores the test images (digests: from `check_test_set`), writes evaluation and report, returns metrics.json."""
    folder = run.folder / "evaluation.new"
    if not category.test and (run.folder / "evaluation").exists():
        raise UserError(f"{category.root} has no test image; {run.folder} keeps its evaluation")
    distributed.on_rank_zero(lambda: shutil.rmtree(folder, ignore_errors=True))
    try:
        scored = score_test_images(run, category, digests, distributed.shard(range(len(category.test))), rules)
        rows = [row for _, row in sorted(item for part in distributed.gather(scored) for item in part)]
        return distributed.on_rank_zero(lambda: conclude(run, category, digests, rows, rules))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # a full disk needs the room
        raise


def score_test_images(run: Run, category: Category, digests: dict[Path, str], indices: Sequence[int],
                      rules: Rules) -> list[tuple[int, dict[str, float]]]:  # fmt: skip
    """Scores the test images at some indices, writes their maps, and returns (index, image scores by name) of each."""
    rows, progress, seed = [], Progress(len(indices)), run.config["flags"]["seed"]
    for done, index in enumerate(indices, start=1):
        record = category.test[index]
        image = read_test_file(record.path, digests, decode_image)
        score, anomaly_map = score_image(run.method, image, seed, index, rules.tiling)
        scores = {name: float(value) for name, value in run.method.image_scores(anomaly_map).items()}
        rows.append((index, {**scores, next(iter(scores)): score}))
        sizes = {"maps": image.shape[:2]}
        if rules.resolution == "method":
            sizes["maps.small"] = anomaly_map.shape[2:]
        for part, size in sizes.items():
            path = result_path(run.folder / "evaluation.new" / part, category.name_of(record), ".npy")
            path.parent.mkdir(parents=True, exist_ok=True)
            with with_filename(path):
                np.save(path, at_size(anomaly_map, size))
        progress(done, f"images of {category.name} evaluated")
    return rows


def read_test_file(path: Path | None, digests: dict[Path, str], decode: Callable) -> np.ndarray | None:
    """Reads a test image or mask, None without one; UserError if it is no longer the file that was checked."""
    return None if path is None else decode(read_unchanged(path, digests[path]), path)


def conclude(run: Run, category: Category, digests: dict[Path, str], rows: list[dict[str, float]],
             rules: Rules) -> dict:  # fmt: skip
    """Makes the results of an evaluation from its maps and `rows`, the image scores by name; else as `evaluate`."""
    method, test, native, state = run.method, category.test, rules.resolution == "native", run.state
    new, old, final = (run.folder / f"evaluation{suffix}" for suffix in (".new", ".old", ""))
    size, part = rules.tiling.size or method.options.size, new / ("maps" if native else "maps.small")
    scores, labels = [next(iter(row.values())) for row in rows], np.array([record.label for record in test])
    others = list(rows[0])[1:] if rows else []

    def known_mask(record: Record) -> np.ndarray | None:
        mask = read_test_file(record.mask, digests, decode_mask)
        return mask if mask is None else mask > 0 if native else resized_mask(mask > 0, size, rules.gt_mode)

    checkpoint = f"step {state.step}" + (", the last" if state.finished else ": training is not finished")
    if state.finished and state.selected_steps:
        last = list(state.selected_steps.values())[-1]
        checkpoint = f"step {last} of {state.step}, the least loss on normal images"
    maps = Lazy(lambda record: np.load(result_path(part, category.name_of(record), ".npy")), test)
    seed, convention = run.config["flags"]["seed"], rules.convention or method.evaluation.aupro
    numbers, curve = all_metrics(test, scores, maps, Lazy(known_mask, test), seed, convention)
    metrics = {
        "method": run.config["method"], "category": category.name, "selected_on_test": "nothing", "size": size,
        "device": str(next(method.parameters()).device), "checkpoint": checkpoint, "finished": state.finished,
        "resolution": rules.resolution, "gt_mode": None if native else rules.gt_mode, "tile": rules.tiling.tile,
        "overlap": rules.tiling.overlap, "changed_after_training": run.changed, "test_digest": digest(test, digests),
        "map_scale": map_scale(maps), **numbers, "calibration": None if run.changed else state.calibration,
        **{f"image_auroc_{name}": metric.auroc(np.array([row[name] for row in rows]), labels) for name in others},
    }  # fmt: skip
    table = [(category.name_of(r), r.defect, r.label, score) for r, score in zip(test, scores)]
    lines = [(name, label, defect, repr(s), decision(s, run.threshold)) for name, defect, label, s in table]
    new.mkdir(exist_ok=True)
    write_text(new / "scores.csv", csv_text([("path", "label", "defect", "score", "decision"), *lines]))
    shutil.rmtree(new / "maps.small", ignore_errors=True)
    write_json(new / "metrics.json", metrics)
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    new.rename(final)
    shutil.rmtree(old, ignore_errors=True)
    if test:
        report(run, metrics, category, digests, table, curve, rules)
    return metrics


@torch.inference_mode()
def report(run: Run, metrics: dict, category: Category, digests: dict[Path, str], rows: list[tuple], curve: tuple,
           rules: Rules) -> None:  # fmt: skip
    """Writes RUN/report.html; image, mask and map of the images that are shown are read again, one after the other."""
    tiling, method, maps = rules.tiling, run.method, run.folder / "evaluation" / "maps"

    def picture(index: int) -> Picture:
        record = category.test[index]
        image = read_test_file(record.path, digests, decode_image)
        steps = {}
        if not tiling.tile:
            inputs = resize_and_hash(method, image, tiling)
            steps = as_bytes(method.figures(*as_batch(method, *inputs, run.config["flags"]["seed"], index)))
        values = read_test_file(record.mask, digests, decode_mask)
        mask = values > 0 if values is not None else None if record.label else np.zeros(image.shape[:2], bool)
        return Picture(*rows[index], image, steps, mask, np.load(result_path(maps, rows[index][0], ".npy")))

    curves, labels = {}, np.array([row[2] for row in rows])
    if len(set(labels)) == 2:
        curves["roc"] = list(zip(*metric.roc_curve(np.array([row[3] for row in rows]), labels, points=400)))
    if curve[0].size:
        curves["pro"] = list(zip(*curve))
    write_report(
        run.folder / "report.html", title=f"{run.config['method']} on {category.name}", facts=facts(run, metrics),
        metrics=metrics, curves=curves, history=read_log(run.folder), figures=as_bytes(method.figures()), scores=rows,
        pictures=Lazy(picture, range(len(rows))), threshold=run.threshold, most=rules.shown)  # fmt: skip


def facts(run: Run, metrics: dict) -> dict[str, str]:
    """Lists, for the report, all that is needed to repeat the evaluation and the run."""
    calibration, tile, (height, width) = run.state.calibration, metrics["tile"], metrics["size"]
    threshold = f"none is stored: {'no image was held out' if run.state.finished else metrics['checkpoint']}"
    if calibration:
        value, count, rate = (calibration[key] for key in ("threshold", "images", "false_alarm_rate"))
        threshold = f"{value:.6g}: {count} held-out normal images, false-alarm rate {rate:.3g} asked for "
        threshold += f"({count} can promise no less than 1 in {count + 1})"
        changed = ", ".join(f"{flag(name)} {value}" for name, value in run.changed.items())
        threshold += f"; no decisions, as {changed} is of this evaluation alone" if changed else ""
    if tile or [height, width] != list(run.config["options"]["size"]):
        threshold += ", set on whole images at the run's size"
    pixels = f"{metrics['resolution']} resolution" + (f" ({metrics['gt_mode']} masks)" if metrics["gt_mode"] else "")
    if metrics.get("error_bound"):
        pixels += f", binned: within {metrics['error_bound']:.1e} of the exact numbers"
    tiles = f", in tiles of {tile[0]} x {tile[1]} that share {metrics['overlap']}" if tile else ""
    told = {"Checkpoint": f"{metrics['checkpoint']}; nothing was selected on test images", "Threshold": threshold,
            "Pixel metrics at": pixels, "Input": f"{height} x {width} (height x width){tiles}",
            "Test images": ", ".join(f"{count} {name}" for name, count in metrics["images"].items()),
            "SHA-256 of test images": metrics["test_digest"], "Device of the evaluation": metrics["device"],
            "Parameters": f"{sum(p.numel() for p in run.method.parameters()):,}"}  # fmt: skip
    for name, value in run.config.items():
        items = value.items() if isinstance(value, dict) else ()
        listed = ", ".join(f"{key}: {item}" for key, item in items) or "none"
        told[name.replace("_", " ").capitalize()] = listed if isinstance(value, dict) else str(value)
    return told


def summary(metrics: dict, folder: Path) -> str:
    """Formats the headline numbers, one line each, and names the report in `folder`; one sentence without images."""
    if not metrics["images"]:
        return "no test image: nothing to evaluate"
    names = [name for name in metrics if name.startswith("image_auroc") and "interval" not in name]
    names += ["image_ap", "image_best_f1", "pixel_auroc", "pixel_ap", *(n for n in metrics if n.startswith("aupro_"))]
    reasons, mean = metrics["reasons"], metrics.get("by_category", {}).get("mean of categories", {})
    changed = (f"changed after training: {k} {v}; no decisions" for k, v in metrics["changed_after_training"].items())
    return "\n".join([*changed, *(
        f"{name:14s} " + (f"n/a: {reasons[name]}" if name in reasons else f"{metrics[name]:.4f}")
        + (f"   mean of the categories {mean[name]:.4f}" if name in mean else "") for name in names
    ), f"Report: {(folder / 'report.html').resolve()}"])  # fmt: skip
