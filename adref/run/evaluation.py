"""The evaluation of a run: metrics.json, scores.csv, maps and report.html.

Nothing is selected on test images: no epoch, no threshold, no normalisation of scores.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from adref.data.examples import resize, to_tensor
from adref.data.layouts import Category, Record, digest
from adref.data.reader import read_image, read_mask
from adref.ops import metrics as metric
from adref.run import distributed
from adref.run.cli import Progress
from adref.run.directory import Run, read_log, versions
from adref.run.files import csv_text, with_filename, write_json
from adref.run.measures import Lazy, all_metrics, resized_mask
from adref.run.report import Picture, write_report
from adref.run.scoring import as_batch, as_bytes, at_size, decision, map_scale, score_image
from adref.run.tiles import Tiling


class Rules(NamedTuple):
    """How a test set is evaluated."""

    resolution: str = "native"  # the pixels that pixel metrics count: the images' ("native") or the "method"'s
    gt_mode: str = "nearest"  # how masks are resized to the method's size: "nearest" or "draem" (`resized_mask`)
    convention: str | None = None  # a reading of AUPRO, reported beside the exact one; None: the method's
    tiling: Tiling = Tiling()
    shown: int = 80  # pictures that the report embeds


def evaluate(run: Run, category: Category, digests: dict[Path, str], rules: Rules = Rules()) -> dict:
    """Scores the test images, writes RUN/evaluation and RUN/report.html, and returns the content of metrics.json.

    Args:
        run: opened, its method in evaluation mode.
        category: the data.
        digests: SHA-256 of the test images and masks, from `check_images`.
        rules: of the evaluation.
    """
    folder = run.folder / "evaluation.new"
    distributed.on_rank_zero(lambda: shutil.rmtree(folder, ignore_errors=True))
    try:
        scored = score_test_images(run, category, distributed.shard(range(len(category.test))), folder, rules)
        rows = [row for _, row in sorted(item for part in distributed.gather(scored) for item in part)]
        return distributed.on_rank_zero(lambda: conclude(run, category, digests, rows, folder, rules))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # a full disk needs the room
        raise


def score_test_images(
    run: Run, category: Category, indices: Sequence[int], folder: Path, rules: Rules
) -> list[tuple[int, dict[str, float]]]:
    """Scores the test images at some indices and writes their maps; returns (index, image scores by name) of each."""
    rows, progress, seed = [], Progress(), run.config["flags"]["seed"]
    for done, index in enumerate(indices, start=1):
        record = category.test[index]
        image = read_image(record.path)
        score, anomaly_map = score_image(run.method, image, seed, index, rules.tiling)
        scores = {name: float(value) for name, value in run.method.image_scores(anomaly_map).items()}
        rows.append((index, {**scores, next(iter(scores)): score}))
        sizes = {map_file(folder, record): image.shape[:2]}
        if rules.resolution == "method":
            sizes[map_file(folder, record, "maps.small")] = anomaly_map.shape[2:]
        for path, size in sizes.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with with_filename(path):
                np.save(path, at_size(anomaly_map, size))
        progress(f"evaluating {category.name}: image {done}/{len(indices)}", final=done == len(indices))
    return rows


def map_file(folder: Path, record: Record, part: str = "maps") -> Path:
    """Returns the path of an image's map in an evaluation: `maps` at full resolution, `maps.small` at the method's."""
    return folder / part / record.defect / f"{record.path.stem}.npy"


def conclude(
    run: Run, category: Category, digests: dict[Path, str], rows: list[dict[str, float]], folder: Path, rules: Rules
) -> dict:
    """Makes RUN/evaluation and RUN/report.html from the maps in `folder` and `rows`, the image scores by name.

    Other arguments and result as for `evaluate`.
    """
    method, test, native, tiling = run.method, category.test, rules.resolution == "native", rules.tiling
    size, part = tiling.size or method.options.size, "maps" if native else "maps.small"
    scores, labels = [next(iter(row.values())) for row in rows], np.array([record.label for record in test])

    def known_mask(record: Record) -> np.ndarray | None:
        mask = record.mask and read_mask(record.mask)
        return mask if mask is None or native else resized_mask(mask, size, rules.gt_mode)

    maps = Lazy(lambda record: np.load(map_file(folder, record, part)), test)
    seed, convention = run.config["flags"]["seed"], rules.convention or method.evaluation.aupro
    numbers, curve = all_metrics(test, scores, maps, Lazy(known_mask, test), seed, convention)
    metrics = {
        "method": run.config["method"], "category": category.name, "selected_on_test": "nothing",
        "device": str(next(method.parameters()).device), "checkpoint": checkpoint_words(run),
        "resolution": rules.resolution, "gt_mode": None if native else rules.gt_mode, "finished": run.state.finished,
        "test_digest": digest(test, digests), "size": size, "tile": tiling.tile, "overlap": tiling.overlap,
        "map_scale": map_scale(maps), **numbers,
        **{f"image_auroc_{name}": metric.auroc(np.array([row[name] for row in rows]), labels)
           for name in (list(rows[0])[1:] if rows else ())},
        "calibration": run.state.calibration,
    }  # fmt: skip
    table = [(f"{r.defect}/{r.path.name}", r.defect, r.label, score) for r, score in zip(test, scores)]
    lines = [(name, label, defect, repr(s), decision(s, run.threshold)) for name, defect, label, s in table]
    text = csv_text([("path", "label", "defect", "score", "decision"), *lines])
    folder.mkdir(exist_ok=True)
    with with_filename(folder / "scores.csv"):
        (folder / "scores.csv").write_text(text, encoding="utf-8", errors="surrogateescape")
    shutil.rmtree(folder / "maps.small", ignore_errors=True)
    write_json(folder / "metrics.json", metrics)
    old, final = run.folder / "evaluation.old", run.folder / "evaluation"
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    folder.rename(final)
    shutil.rmtree(old, ignore_errors=True)
    if test:
        report(run, metrics, category, table, curve, rules)
    return metrics


def checkpoint_words(run: Run) -> str:
    """Names the weights that are evaluated: "step 900, the last"."""
    state, step = run.state, f"step {run.state.step}"
    if not state.finished:
        return f"{step}: training is not finished"
    if state.selected_steps:
        return f"step {list(state.selected_steps.values())[-1]} of {state.step}, the least loss on normal images"
    return f"{step}, the last"


def report(run: Run, metrics: dict, category: Category, rows: list[tuple], curve: tuple, rules: Rules) -> None:
    """Writes RUN/report.html; image, mask and map of the images that are shown are read again, one after the other."""
    tiling, o, method = rules.tiling, run.method.options, run.method

    @torch.inference_mode()
    def picture(index: int) -> Picture:
        record = category.test[index]
        image = read_image(record.path)
        resized, image_hash = resize(to_tensor(image), tiling.size or o.size, o.resize), method.image_hash(image, o)
        batch, context = as_batch(method, resized, image_hash, run.config["flags"]["seed"], index)
        steps = {} if tiling.tile else as_bytes(method.figures(batch, context))
        mask = read_mask(record.mask) if record.mask else None if record.label else np.zeros(image.shape[:2], bool)
        return Picture(*rows[index], image, steps, mask, np.load(map_file(run.folder / "evaluation", record)))

    curves, labels = {}, np.array([row[2] for row in rows])
    if len(set(labels)) == 2:
        curves["roc"] = list(zip(*metric.roc_curve(np.array([row[3] for row in rows]), labels, points=400)))
    if curve[0].size:
        curves["pro"] = list(zip(*curve))
    with torch.inference_mode():
        figures = as_bytes(method.figures())
    write_report(
        run.folder / "report.html", title=f"{run.config['method']} on {category.name}", facts=facts(run, metrics),
        metrics=metrics, curves=curves, history=read_log(run.folder), figures=figures, scores=rows,
        pictures=Lazy(picture, range(len(rows))), threshold=run.threshold, map_scale=metrics["map_scale"],
        most=rules.shown,
    )  # fmt: skip


def facts(run: Run, metrics: dict) -> dict[str, str]:
    """Lists, for the report, all that is needed to repeat the run."""
    config, flags, calibration = run.config, run.config["flags"], run.state.calibration
    tile, size, count = metrics["tile"], metrics["size"], (calibration or {}).get("images")
    method = [config["method"], f"preset {config['preset']}", config["ablation"] and f"ablation {config['ablation']}"]
    method += [f"--{name.replace('_', '-')} {value}" for name, value in config["changed"].items()]
    threshold = f"none is stored: {'no image was held out' if run.state.finished else metrics['checkpoint']}"
    if calibration:
        threshold = f"{calibration['threshold']:.6g}: {count} held-out normal images, false-alarm rate "
        threshold += (
            f"{calibration['false_alarm_rate']:.3g} asked for ({count} can promise no less than 1 in {count + 1})"
        )
    if tile or list(size) != list(config["options"]["size"]):
        threshold += ", set on whole images at the run's size"
    pixels = f"{metrics['resolution']} resolution" + (f" ({metrics['gt_mode']} masks)" if metrics["gt_mode"] else "")
    if metrics.get("error_bound"):
        pixels += f", binned: within {metrics['error_bound']:.1e} of the exact numbers"
    tiles = f", in tiles of {tile[0]} x {tile[1]} that share {metrics['overlap']}" if tile else ""
    processes = f" by {config['processes']} processes" if config["processes"] > 1 else ""
    files = {"textures": "textures", "sizes": "defect_sizes", "anomalies": "anomaly_images"}
    return {
        "Method": ", ".join(filter(None, method)),
        "Parameters": f"{sum(p.numel() for p in run.method.parameters()):,}",
        "Data": f"{flags['data']}, category {config['category']}" + (" (generated)" if config["generated"] else ""),
        "Test images": ", ".join(f"{count} {name}" for name, count in metrics["images"].items()) or "none",
        **{files[name].replace("_", " ").capitalize(): f"{flags[files[name]] or ''} {digest}".strip()
           for name, digest in config["sources"].items()},
        **({"Backbone weights": flags["backbone_weights"]} if flags.get("backbone_weights") else {}),
        **{f"SHA-256 of {Path(name).name}": value for name, value in config["weights_sha256"].items()},
        "Seed, precision": f"{flags['seed']}, {flags['precision']}",
        "Device": f"{config['device']} for training{processes}, {metrics['device']} for evaluation",
        "Size of the network's input": f"{size[0]} x {size[1]} (height x width){tiles}",
        "Pixel metrics at": pixels,
        "Checkpoint": f"{metrics['checkpoint']}; nothing was selected on test images",
        "Threshold": threshold,
        "SHA-256 of training images": config["data_digest"],
        "SHA-256 of test images": metrics["test_digest"],
        "Versions of training": ", ".join(f"{name} {config[name]}" for name in versions()),
    }  # fmt: skip


def summary(metrics: dict) -> str:
    """Formats the headline numbers, one line each."""
    if not metrics["images"]:
        return "no test image: nothing to evaluate"
    names = [name for name in metrics if name.startswith("image_auroc") and "interval" not in name]
    names += ["image_ap", "image_best_f1", "pixel_auroc", "pixel_ap", *(n for n in metrics if n.startswith("aupro_"))]
    reasons, mean = metrics["reasons"], metrics.get("by_category", {}).get("mean of categories", {})
    return "\n".join(
        f"{name:14s} " + (f"n/a: {reasons[name]}" if name in reasons else f"{metrics[name]:.4f}")
        + (f"   mean of the categories {mean[name]:.4f}" if name in mean else "") for name in names
    )  # fmt: skip
