"""Scores, metrics, threshold decisions and result files of a run."""

import csv
import io
import math
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from adref.data.examples import random_stream, resize, to_tensor
from adref.data.layouts import Category, Record, digest
from adref.data.reader import read_image, read_mask
from adref.method import Context, Method
from adref.ops import metrics as metric
from adref.ops.pixels import PixelScores
from adref.options import UserError
from adref.run import distributed, tiles
from adref.run.cli import Progress, is_out_of_memory
from adref.run.directory import TrainingError, load, load_checkpoint, read_config, read_log, versions
from adref.run.files import is_number, naming, write_json
from adref.run.overlap import Lazy, read_ahead, write_behind
from adref.run.report import Picture, write_report
from adref.run.tiles import Cut


def method_arguments(method: Method, image: np.ndarray, seed: int, index: int) -> tuple:
    """One picture, uint8 (H, W, 3) at its own size, as `Method.score` wants it, beside its random stream and look.

    `seed`, with `index`, the picture's number in its list, names the stream of a method that draws at test time.
    """
    resized = resize(to_tensor(image), method.options.size, method.options.resize)
    device, own = next(method.parameters()).device, method.image_hash(image, method.options)
    batch = resized.unsqueeze(0).to(device, memory_format=torch.channels_last).float() / 255
    return batch, Context([random_stream(seed, "test", index)], None if own is None else [own])


@torch.inference_mode()
def score_image(method: Method, image: np.ndarray, seed: int, index: int) -> tuple[float, torch.Tensor]:
    """Score and raw map of one picture, by itself, so that no other picture can change them.

    Args:
        method: from `load`.
        image: uint8 (H, W, 3) at its own size.
        seed: as `index`, of `method_arguments`.
        index: number of the image in its list.

    Returns:
        image score, map (1, 1, h, w) float32 on the CPU at the method's size.

    Raises:
        UserError: a score or map that is not finite.
        TrainingError: no memory for it.
    """
    try:
        scores, maps = method.score(*method_arguments(method, image, seed, index))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        size = ",".join(map(str, method.options.size))
        raise TrainingError(
            f"memory does not suffice to score a picture at --size {size}; a new run with a smaller --size may fit, "
            "or --tile"
        ) from None
    score = float(scores)
    if not math.isfinite(score) or not torch.isfinite(maps).all():
        raise UserError(f"image {index} of the list gets the score {score}: the weights of this run are not usable")
    return score, maps.float().cpu()


def to_size(anomaly_map: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """A map (1, 1, h, w) at another size (H, W): bilinear, half-pixel centres; float32."""
    return F.interpolate(anomaly_map, size, mode="bilinear", align_corners=False)[0, 0].numpy()


FPR_LIMITS = (0.3, 0.05)


def evaluate(
    run: Path,
    category: Category,
    device: torch.device,
    resolution: str = "native",
    gt_mode: str = "nearest",
    convention: str | None = None,
    shown: int = 80,
    cut: Cut = Cut(),
) -> dict:
    """Scores the test images, writes RUN/evaluation and RUN/report.html; returns what metrics.json holds.

    Nothing is selected here: no epoch, no threshold, no normalisation over the test images.

    Args:
        run: a trained run's directory.
        category: its data, checked.
        device: where the networks run.
        resolution: "native" or "method", the pixels that pixel metrics count.
        gt_mode: how masks come to the method's size: "nearest", or "draem" (see `method_mask`).
        convention: a reading of AUPRO that is reported beside the exact one; None: that of the method.
        shown: how many pictures the report embeds.
        cut: at which size and in which tiles.
    """
    method, new = load(run, str(device)), run / "evaluation.new"
    cut = tiles.apply(cut, method)
    distributed.first(lambda: shutil.rmtree(new, ignore_errors=True))
    seed, indices = read_config(run)["flags"]["seed"], distributed.every(range(len(category.test)))
    try:
        own = score_pictures(method, category, indices, seed, new, small=resolution == "method")
        rows = [row for part in distributed.gather(own) for row in part]
        more = device, resolution, gt_mode, convention, shown, cut
        return distributed.first(lambda: conclude(run, method, category, rows, *more))
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)  # on a full disk its room is wanted
        raise


class Row(NamedTuple):
    """What a test picture got beside its map."""

    index: int  # its place in the test set
    score: float
    others: dict[str, float]  # `Method.other_scores`


def score_pictures(
    method: Method, category: Category, indices: Sequence[int], seed: int, folder: Path, small: bool = False
) -> list[Row]:
    """Scores some test pictures and writes their maps below `folder`, where `map_file` says.

    Row and map depend on the run, the picture and its index alone: of n processes each may score its own indices.

    Args:
        method, category: from `load` and `find_category`.
        indices: places in the test set.
        seed: that of the run.
        folder: the evaluation that is being made.
        small: writes the maps at the method's size, too.
    """
    rows, progress = [], Progress()
    with write_behind() as later:
        for index, image in zip(indices, read_ahead(category.test[i].path for i in indices)):
            image = image.result()
            score, scored = score_image(method, image, seed, index)
            others = {name: float(value) for name, value in list(method.image_scores(scored).items())[1:]}
            rows.append(Row(index, score, others))
            later(save_map, map_file(folder, category.test[index]), scored, image.shape[:2])
            if small:
                later(save_map, map_file(folder, category.test[index], small), scored, scored.shape[2:])
            last = len(rows) == len(indices)
            progress(f"evaluating {category.name}: image {len(rows)}/{len(indices)}", final=last)
    return rows


def map_file(folder: Path, record: Record, small: bool = False) -> Path:
    """Where an evaluation's folder holds the map of a picture, at its own size or at the method's."""
    return folder / ("maps.small" if small else "maps") / record.defect / (record.path.stem + ".npy")


def save_map(path: Path, scored: torch.Tensor, size: tuple[int, int]) -> None:
    """A map (1, 1, h, w) at a size (H, W) as a file of float32 (H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path):
        np.save(path, to_size(scored, size))


def conclude(
    run: Path,
    method: Method,
    category: Category,
    rows: Sequence[Row],
    device: torch.device,
    resolution: str,
    gt_mode: str,
    convention: str | None,
    shown: int,
    cut: Cut,
) -> dict:
    """Makes RUN/evaluation and RUN/report.html of the rows of all test pictures, in any order, and their maps.

    Args and result as for `evaluate`.
    """
    config, test, native, new = read_config(run), category.test, resolution == "native", run / "evaluation.new"
    rows, seed = sorted(rows), config["flags"]["seed"]
    scores = [row.score for row in rows]
    maps = Lazy(lambda record: np.load(map_file(new, record, small=not native)), test)
    masks = Lazy(lambda record: known_mask(record, None if native else method.options.size, gt_mode), test)
    numbers, curve = all_metrics(test, scores, maps, masks, seed, convention or method.evaluation.aupro)
    state = load_checkpoint(run)
    calibration, step, chosen = state.get("calibration"), f"step {state['step']}", state.get("chosen")
    if chosen:
        step = f"step {list(chosen.values())[-1]} of {state['step']}, the least loss on normal images"
    elif "calibration" in state:
        step += ", the last"
    metrics = {
        "method": config["method"], "category": category.name, "selected_on_test": "nothing", "device": str(device),
        "checkpoint": step if "calibration" in state else f"{step}: training is not finished",
        "resolution": resolution, "gt_mode": None if native else gt_mode, "test_digest": digest(test),
        "size": method.options.size, "tile": cut.tile, "overlap": cut.overlap,
        "map_scale": map_scale(maps), **numbers,
    }  # fmt: skip
    labels = np.array([record.label for record in test])
    for name in rows[0].others if rows else ():
        metrics[f"image_auroc_{name}"] = metric.auroc(np.array([row.others[name] for row in rows]), labels)
    metrics["calibration"] = calibration
    threshold = calibration["threshold"] if calibration else None
    table = [(name_of(r), r.defect, r.label, s) for r, s in zip(test, scores)]
    new.mkdir(exist_ok=True)
    write_scores(new / "scores.csv", table, threshold)
    shutil.rmtree(new / "maps.small", ignore_errors=True)
    write_json(new / "metrics.json", metrics)
    old = run / "evaluation.old"
    shutil.rmtree(old, ignore_errors=True)
    if (run / "evaluation").exists():
        (run / "evaluation").rename(old)
    new.rename(run / "evaluation")
    shutil.rmtree(old, ignore_errors=True)
    if test:
        report(run, config, metrics, method, category, table, curve, threshold, shown)
    return metrics


def native_mask(record: Record, size: tuple[int, int]) -> np.ndarray | None:
    """The mask at the file's own size: none of a good image's pixels is anomalous; None for a defect without one."""
    if record.mask is not None:
        return read_mask(record.mask)
    return None if record.label else np.zeros(size, bool)


def known_mask(record: Record, size: tuple[int, int] | None, gt_mode: str) -> np.ndarray | None:
    """The mask for the metrics, at the method's size if one is given; None where there is no file of one."""
    mask = None if record.mask is None else read_mask(record.mask)
    return mask if mask is None or size is None else method_mask(mask, size, gt_mode)


def method_mask(mask: np.ndarray, size: tuple[int, int], gt_mode: str) -> np.ndarray:
    """A native mask (bool) at the method's size (h, w).

    "nearest" takes the pixel at each new centre. "draem" resizes bilinearly and casts to integers, as DRAEM's test code
    does, so that only pixels of value 1 stay anomalous and every boundary pixel becomes normal.
    """
    field = torch.from_numpy(mask)[None, None].float()
    if gt_mode == "nearest":
        return F.interpolate(field, size, mode="nearest-exact")[0, 0].numpy() > 0
    return F.interpolate(field, size, mode="bilinear", align_corners=False)[0, 0].numpy() >= 1


def name_of(record: Record) -> str:
    """How reports and scores.csv call an image."""
    return f"{record.defect}/{record.path.name}"


def all_metrics(
    records: Sequence[Record], scores: list, maps: Sequence, masks: Sequence, seed: int, convention: str
) -> tuple[dict, tuple[np.ndarray, np.ndarray]]:
    """Every number of metrics.json: over all images, and for each defect type against the good images of its category.

    Where there are several categories, for each of them, too. A defect without a mask counts in image metrics only.

    Args:
        records: the test set.
        scores: image scores.
        maps, masks: as for `metrics.pixel_metrics`; may be lazy. Read as often as `PixelScores` says; of several
            categories twice as often.
        seed: of the bootstrap.
        convention: a reading of AUPRO that is reported beside the exact one.

    Returns:
        the numbers, and the PRO curve for drawing.
    """
    labels, scores = np.array([r.label for r in records], int), np.array(scores, float)
    defects, categories = (np.array([getattr(r, field) for r in records]) for field in ("defect", "category"))
    kinds = [r.defect if r.label else None for r in records]

    def known(indices: Iterable[int], kinds: list | None = None) -> tuple[Lazy, Lazy, list | None]:
        found = [i for i in indices if records[i].mask is not None or not records[i].label]
        return Lazy(maps.__getitem__, found), Lazy(masks.__getitem__, found), kinds and [kinds[i] for i in found]

    several = len(names := sorted(set(categories))) > 1
    pixels = PixelScores(*known(range(len(records)), None if several else kinds))
    result = {"images": {d: int((defects == d).sum()) for d in sorted(set(defects))}, "reasons": {}}
    result |= some_metrics(scores, labels, pixels, None, result["reasons"])
    curve = pixels.pro_curve(points=400)
    if result["image_auroc"] == result["image_auroc"]:  # not NaN
        rng = random_stream(seed, "bootstrap")
        result["image_auroc_interval"] = metric.bootstrap_auroc(scores, labels, rng)
    if convention != "exact" and result["aupro_0.3"] == result["aupro_0.3"]:
        result["aupro_0.3_" + convention] = metric.aupro(*known(range(len(records)))[:2], 0.3, convention)
    by_defect, by_category = {}, {}
    for name in names:
        own = np.flatnonzero(categories == name)
        if several:
            del pixels  # of all categories, or of the one before
            pixels = PixelScores(*known(own, kinds))
            by_category[name] = {"n": len(own), **some_metrics(scores[own], labels[own], pixels, None, {})}
        for defect in {defects[i] for i in own if labels[i]}:
            chosen = own[(defects[own] == defect) | (labels[own] == 0)]
            numbers = some_metrics(scores[chosen], labels[chosen], pixels, [None, defect], {})
            by_defect[str(defect)] = {"n": int((defects[own] == defect).sum()), **numbers}
    result["by_defect"] = dict(sorted(by_defect.items()))
    if several:
        rows = list(by_category.values())
        mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        result["by_category"] = {**by_category, "mean of categories": {**mean, "n": len(records)}}  # T4
    return result, curve


def some_metrics(scores: np.ndarray, labels: np.ndarray, pixels: PixelScores, kinds, reasons: dict) -> dict:
    """Image metrics, and pixel metrics over some kinds of images; `reasons` takes why a number is NaN."""
    f1, at = metric.best_f1(scores, labels)
    result = {"image_auroc": metric.auroc(scores, labels), "image_ap": metric.average_precision(scores, labels),
              "image_best_f1": f1, "image_best_f1_threshold": at}  # fmt: skip
    if reason := metric.undefined_reason(labels):
        reasons |= dict.fromkeys(result, reason)
    found = pixels.metrics(FPR_LIMITS, kinds)
    if np.isnan(found["pixel_auroc"]):
        del found["error_bound"]
        anomalous = any(count for _, count in pixels.counts.values())
        reasons |= dict.fromkeys(
            found, "no test pixel is normal" if anomalous else "no test image has a mask of a defect"
        )
    return result | found


def map_scale(maps: Sequence[np.ndarray]) -> tuple[float, float]:
    """The map values that get the first and last colour in every picture: 1st and 99.9th percentile of all pixels.

    Of a sample of them: about 10,000 of each map, and of more than 200 maps two millions in all.
    """
    if not maps:
        return 0.0, 1.0
    each = max(1, min(10_000, 2_000_000 // len(maps)))
    sample = np.concatenate([m.ravel()[:: max(1, m.size // each)].copy() for m in maps])  # a view would keep the map
    low, high = np.percentile(sample, (1, 99.9))
    return float(low), float(high if high > low else low + 1)


def scale_of(metrics: dict) -> tuple[float, float] | None:
    """The `map_scale` of a metrics.json; None where it is no such pair."""
    pair = metrics.get("map_scale")
    if not isinstance(pair, list) or len(pair) != 2 or not all(map(is_number, pair)) or pair[0] > pair[1]:
        return None
    return tuple(pair)


def write_scores(path: Path, rows: list[tuple], threshold: float | None) -> None:
    """scores.csv: path, label, defect, score, decision (empty where no threshold is stored)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label", "defect", "score", "decision"))
    for name, defect, label, score in rows:
        writer.writerow((name, label, defect, repr(score), decision(score, threshold)))
    with naming(path):
        path.write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape")


def decision(score: float, threshold: float | None) -> str:
    """ "anomalous" when the score is at least the threshold, else "good"; empty without a threshold."""
    return "" if threshold is None else "anomalous" if score >= threshold else "good"


def report(run, config, metrics, method: Method, category, rows, curve, threshold, shown) -> None:
    """RUN/report.html; picture, mask and map are read again, one after the other, for the images that are shown."""
    index = {name: i for i, (name, *_) in enumerate(rows)}

    def open_picture(picture: Picture) -> Picture:
        record = category.test[i := index[picture.name]]
        image = read_image(record.path)
        return picture._replace(
            image=image, steps=steps(method, image, config["flags"]["seed"], i),
            mask=native_mask(record, image.shape[:2]), anomaly_map=np.load(map_file(run / "evaluation", record)),
        )  # fmt: skip

    curves, labels = {}, np.array([row[2] for row in rows])
    if len(set(labels)) == 2:
        curves["roc"] = list(zip(*metric.roc_curve(np.array([row[3] for row in rows]), labels, points=400)))
    if curve[0].size:
        curves["pro"] = list(zip(*curve))
    write_report(
        run / "report.html", title=f"{config['method']} on {category.name}", facts=facts(config, metrics, method),
        metrics=metrics, curves=curves, history=read_log(run), portraits=portraits(method),
        pictures=[Picture(*row, None, {}, None, None) for row in rows], open_picture=open_picture,
        threshold=threshold, map_scale=metrics["map_scale"], scores=rows, max_pictures=shown,
    )  # fmt: skip


@torch.inference_mode()
def steps(method: Method, image: np.ndarray, seed: int, index: int) -> dict[str, np.ndarray]:
    """What the method shows between an image and its map, by caption: uint8 (h, w, 3) each."""
    return bytes_of(method.figures(*method_arguments(method, image, seed, index)))


@torch.inference_mode()
def portraits(method: Method) -> dict[str, np.ndarray]:
    """What the method shows before any test image, alike."""
    return bytes_of(method.figures())


def bytes_of(pictures: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Pictures (C, h, w) in [0, 1] by caption, as uint8 (h, w, 3)."""
    return {
        caption: (picture.float().expand(3, -1, -1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        for caption, picture in pictures.items()
    }


def facts(config: dict, metrics: dict, method: Method) -> dict[str, str]:
    """What a reader needs to repeat the run."""
    flags, calibration = config["flags"], metrics["calibration"]
    changed = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in config["changed"].items())
    unfinished = "not finished" in metrics["checkpoint"]
    threshold = f"none is stored: {metrics['checkpoint'] if unfinished else 'no image was held out'}"
    if calibration:
        count = calibration["images"]
        threshold = (
            f"{calibration['threshold']:.6g}: {count} held-out normal images, false-alarm rate "
            f"{calibration['false_alarm_rate']:.3g} asked for ({count} can promise no less than 1 in {count + 1})"
        )
    own = not metrics["tile"] and list(metrics["size"]) == list(config["options"]["size"])
    mode = f" ({metrics['gt_mode']} masks)" if metrics["gt_mode"] else ""
    if metrics.get("error_bound"):
        mode += f", binned: within {metrics['error_bound']:.1e} of the exact numbers"
    return {
        "Method": f"{config['method']}, preset {config['preset']}"
        + (f", ablation {config['ablation']}" if config["ablation"] else "") + (f", {changed}" if changed else ""),
        "Parameters": f"{sum(p.numel() for p in method.parameters()):,}",
        "Data": f"{flags['data']}, category {config['category']}" + (" (generated)" if config["generated"] else ""),
        "Test images": ", ".join(f"{count} {name}" for name, count in metrics["images"].items()) or "none",
        **{word: f"{flags[flag] or ''} {config[digest]}".strip()
           for word, flag, digest in (("Textures", "textures", "textures_digest"),
                                      ("Defect sizes", "defect_sizes", "sizes_digest"),
                                      ("Anomalous pictures", "anomaly_images", "anomalies_digest")) if config[digest]},
        **({"Backbone weights": flags["backbone_weights"]} if flags.get("backbone_weights") else {}),
        **{f"SHA-256 of {Path(name).name}": digest for name, digest in config["weights_sha256"].items()},
        "Seed, precision": f"{flags['seed']}, {flags['precision']}",
        "Device": f"{config['device']} for training"
        + (f" by {config['processes']} processes" if config["processes"] > 1 else "")
        + f", {metrics['device']} for evaluation",
        "Size of the network's input": " x ".join(map(str, method.options.size)) + " (height x width)"
        + (f", in tiles of {metrics['tile'][0]} x {metrics['tile'][1]} that share {metrics['overlap']}"
           if metrics["tile"] else ""),
        "Pixel metrics at": f"{metrics['resolution']} resolution{mode}",
        "Checkpoint": f"{metrics['checkpoint']}; nothing was selected on test images",
        "Threshold": threshold + ("" if own else ", set on whole pictures at the run's own size"),
        "SHA-256 of training images": config["data_digest"],
        "SHA-256 of test images": metrics["test_digest"],
        "Versions of training": ", ".join(f"{name} {config[name]}" for name in versions()),
    }  # fmt: skip


def summary(metrics: dict) -> str:
    """The headline numbers, one line each."""
    if not metrics["images"]:
        return "no test image: nothing to evaluate"
    names = [name for name in metrics if name.startswith("image_auroc") and "interval" not in name]
    names += ["image_ap", "image_best_f1", "pixel_auroc", "pixel_ap"]
    names += [name for name in metrics if name.startswith("aupro_")]
    reasons = metrics["reasons"]
    mean = metrics.get("by_category", {}).get("mean of categories", {})
    return "\n".join(
        f"{name:14s} " + (f"n/a: {reasons[name]}" if name in reasons else f"{metrics[name]:.4f}")
        + (f"   mean of the categories {mean[name]:.4f}" if name in mean else "") for name in names
    )  # fmt: skip
