"""The evaluation of a run: metrics.json, scores.csv, maps and report.html.

Nothing is selected on test images: no epoch, no threshold, no normalisation of scores.
"""

import csv
import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from adref.data.examples import resize, to_tensor
from adref.data.layouts import Category, Record, digest
from adref.data.reader import read_image, read_mask
from adref.ops import metrics as metric
from adref.run import distributed
from adref.run.cli import Progress
from adref.run.directory import Run, read_log, versions
from adref.run.files import with_filename, write_json
from adref.run.measures import Lazy, all_metrics, known_mask
from adref.run.report import Picture, write_report
from adref.run.scoring import as_batch, at_size, decision, map_scale, score_image
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
    """Scores the test images at some indices, and writes their maps where `map_file` says.

    Returns:
        (index, image scores by name) of each.
    """
    rows, progress, seed = [], Progress(), run.config["flags"]["seed"]
    for done, index in enumerate(indices, start=1):
        record = category.test[index]
        image = read_image(record.path)
        score, anomaly_map = score_image(run.method, image, seed, index, rules.tiling)
        scores = {name: float(value) for name, value in run.method.image_scores(anomaly_map).items()}
        rows.append((index, {**scores, next(iter(scores)): score}))
        sizes = {map_file(folder, record): image.shape[:2]}
        if rules.resolution == "method":
            sizes[map_file(folder, record, small=True)] = anomaly_map.shape[2:]
        for path, size in sizes.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with with_filename(path):
                np.save(path, at_size(anomaly_map, size))
        progress(f"evaluating {category.name}: image {done}/{len(indices)}", final=done == len(indices))
    return rows


def map_file(folder: Path, record: Record, small: bool = False) -> Path:
    """Returns the path of an image's map in an evaluation, at full resolution or at the method's size."""
    return folder / ("maps.small" if small else "maps") / record.defect / (record.path.stem + ".npy")


def conclude(
    run: Run, category: Category, digests: dict[Path, str], rows: list[dict[str, float]], folder: Path, rules: Rules
) -> dict:
    """Makes RUN/evaluation and RUN/report.html from the maps in `folder` and `rows`, the image scores by name.

    Other arguments and result as for `evaluate`.
    """
    method, test, native, tiling = run.method, category.test, rules.resolution == "native", rules.tiling
    size = None if native else tiling.size or method.options.size
    scores = [next(iter(row.values())) for row in rows]
    maps = Lazy(lambda record: np.load(map_file(folder, record, small=not native)), test)
    masks = Lazy(lambda record: known_mask(record, size, rules.gt_mode), test)
    seed, convention = run.config["flags"]["seed"], rules.convention or method.evaluation.aupro
    numbers, curve = all_metrics(test, scores, maps, masks, seed, convention)
    metrics = {
        "method": run.config["method"], "category": category.name, "selected_on_test": "nothing",
        "device": str(next(method.parameters()).device), "checkpoint": checkpoint_words(run),
        "resolution": rules.resolution, "gt_mode": None if native else rules.gt_mode, "finished": run.finished,
        "test_digest": digest(test, digests),
        "size": tiling.size or method.options.size, "tile": tiling.tile, "overlap": tiling.overlap,
        "map_scale": map_scale(maps), **numbers,
    }  # fmt: skip
    labels = np.array([record.label for record in test])
    for name in list(rows[0])[1:] if rows else ():
        metrics[f"image_auroc_{name}"] = metric.auroc(np.array([row[name] for row in rows]), labels)
    metrics["calibration"] = run.state.calibration
    table = [(name_of(r), r.defect, r.label, s) for r, s in zip(test, scores)]
    folder.mkdir(exist_ok=True)
    write_scores(folder / "scores.csv", table, run.threshold)
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


# -- result files -----------------------------------------------------------------------------------------------------


def name_of(record: Record) -> str:
    """Returns the name of an image in reports and scores.csv."""
    return f"{record.defect}/{record.path.name}"


def write_scores(path: Path, rows: list[tuple], threshold: float | None) -> None:
    """Writes scores.csv: path, label, defect, score, decision (empty where no threshold is stored)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label", "defect", "score", "decision"))
    for name, defect, label, score in rows:
        writer.writerow((name, label, defect, repr(score), decision(score, threshold)))
    with with_filename(path):
        path.write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape")


def report(run: Run, metrics: dict, category: Category, rows: list, curve: tuple, rules: Rules) -> None:
    """Writes RUN/report.html; image, mask and map of the images that are shown are read again, one after the other."""
    index, seed = {name: i for i, (name, *_) in enumerate(rows)}, run.config["flags"]["seed"]
    tiling, o = rules.tiling, run.method.options

    @torch.inference_mode()
    def open_picture(picture: Picture) -> Picture:
        record = category.test[i := index[picture.name]]
        image = read_image(record.path)
        resized = resize(to_tensor(image), tiling.size or o.size, o.resize)
        batch, context = as_batch(run.method, resized, run.method.image_hash(image, o), seed, i)
        return picture._replace(
            image=image, steps={} if tiling.tile else as_bytes(run.method.figures(batch, context)),
            mask=read_mask(record.mask) if record.mask else None if record.label else np.zeros(image.shape[:2], bool),
            anomaly_map=np.load(map_file(run.folder / "evaluation", record)),
        )  # fmt: skip

    curves, labels = {}, np.array([row[2] for row in rows])
    if len(set(labels)) == 2:
        curves["roc"] = list(zip(*metric.roc_curve(np.array([row[3] for row in rows]), labels, points=400)))
    if curve[0].size:
        curves["pro"] = list(zip(*curve))
    with torch.inference_mode():
        learned = as_bytes(run.method.figures())
    write_report(
        run.folder / "report.html", title=f"{run.config['method']} on {category.name}", facts=facts(run, metrics),
        metrics=metrics, curves=curves, history=read_log(run.folder), method_figures=learned,
        pictures=[Picture(*row, None, {}, None, None) for row in rows], open_picture=open_picture,
        threshold=run.threshold, map_scale=metrics["map_scale"], scores=rows, max_pictures=rules.shown,
    )  # fmt: skip


def as_bytes(figures: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Converts figures (C, h, w) in [0, 1] by caption to uint8 (h, w, 3)."""
    return {
        caption: (figure.float().expand(3, -1, -1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        for caption, figure in figures.items()
    }


def facts(run: Run, metrics: dict) -> dict[str, str]:
    """Lists, for the report, all that is needed to repeat the run."""
    config, calibration = run.config, run.state.calibration
    flags, full = config["flags"], list(metrics["size"]) == list(config["options"]["size"]) and not metrics["tile"]
    changed = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in config["changed"].items())
    threshold = f"none is stored: {'no image was held out' if run.state.finished else metrics['checkpoint']}"
    if calibration:
        count = calibration["images"]
        threshold = (
            f"{calibration['threshold']:.6g}: {count} held-out normal images, false-alarm rate "
            f"{calibration['false_alarm_rate']:.3g} asked for ({count} can promise no less than 1 in {count + 1})"
        )
    mode = f" ({metrics['gt_mode']} masks)" if metrics["gt_mode"] else ""
    if metrics.get("error_bound"):
        mode += f", binned: within {metrics['error_bound']:.1e} of the exact numbers"
    sources = (("Textures", "textures", "textures"), ("Defect sizes", "sizes", "defect_sizes"),
               ("Anomalous pictures", "anomalies", "anomaly_images"))  # fmt: skip
    return {
        "Method": ", ".join(filter(None, (f"{config['method']}, preset {config['preset']}",
                                          config["ablation"] and f"ablation {config['ablation']}", changed))),
        "Parameters": f"{sum(p.numel() for p in run.method.parameters()):,}",
        "Data": f"{flags['data']}, category {config['category']}" + (" (generated)" if config["generated"] else ""),
        "Test images": ", ".join(f"{count} {name}" for name, count in metrics["images"].items()) or "none",
        **{word: f"{flags[flag] or ''} {config['sources'][name]}".strip()
           for word, name, flag in sources if name in config["sources"]},
        **({"Backbone weights": flags["backbone_weights"]} if flags.get("backbone_weights") else {}),
        **{f"SHA-256 of {Path(name).name}": value for name, value in config["weights_sha256"].items()},
        "Seed, precision": f"{flags['seed']}, {flags['precision']}",
        "Device": f"{config['device']} for training"
        + (f" by {config['processes']} processes" if config["processes"] > 1 else "")
        + f", {metrics['device']} for evaluation",
        "Size of the network's input": " x ".join(map(str, metrics["size"])) + " (height x width)"
        + (f", in tiles of {metrics['tile'][0]} x {metrics['tile'][1]} that share {metrics['overlap']}"
           if metrics["tile"] else ""),
        "Pixel metrics at": f"{metrics['resolution']} resolution{mode}",
        "Checkpoint": f"{metrics['checkpoint']}; nothing was selected on test images",
        "Threshold": threshold + ("" if full else ", set on whole images at the run's size"),
        "SHA-256 of training images": config["data_digest"],
        "SHA-256 of test images": metrics["test_digest"],
        "Versions of training": ", ".join(f"{name} {config[name]}" for name in versions()),
    }  # fmt: skip


def summary(metrics: dict) -> str:
    """Formats the headline numbers, one line each."""
    if not metrics["images"]:
        return "no test image: nothing to evaluate"
    names = [name for name in metrics if name.startswith("image_auroc") and "interval" not in name]
    names += ["image_ap", "image_best_f1", "pixel_auroc", "pixel_ap"]
    names += [name for name in metrics if name.startswith("aupro_")]
    reasons, mean = metrics["reasons"], metrics.get("by_category", {}).get("mean of categories", {})
    return "\n".join(
        f"{name:14s} " + (f"n/a: {reasons[name]}" if name in reasons else f"{metrics[name]:.4f}")
        + (f"   mean of the categories {mean[name]:.4f}" if name in mean else "") for name in names
    )  # fmt: skip
