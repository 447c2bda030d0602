"""All numbers of an evaluation: image and pixel metrics, for each defect type and category."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from adref.data.examples import random_stream
from adref.data.layouts import Record
from adref.ops import metrics as metric
from adref.ops.pixels import PixelScores

FPR_LIMITS = (0.3, 0.05)


class Lazy(Sequence):
    """A sequence that makes an item each time it is asked for, so that one at a time is in memory."""

    def __init__(self, make: Callable, sources: Sequence):
        self.make, self.sources = make, sources

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int):
        return self.make(self.sources[index])


def resized_mask(mask: np.ndarray, size: tuple[int, int], gt_mode: str) -> np.ndarray:
    """Resizes a mask (bool) to (h, w); "nearest" takes the pixel at each new centre.

    "draem" resizes bilinearly and casts to integers, as DRAEM's test code does: every boundary pixel becomes normal.
    """
    mode = {"nearest": "nearest-exact", "draem": "bilinear"}[gt_mode]
    return F.interpolate(torch.from_numpy(mask)[None, None].float(), size, mode=mode)[0, 0].numpy() >= 1


def all_metrics(records: Sequence[Record], scores: list, maps: Sequence, masks: Sequence, seed: int,
                convention: str) -> tuple[dict, tuple[np.ndarray, np.ndarray]]:  # fmt: skip
    """Computes the numbers of metrics.json over all images, for each defect type and for each of several categories.

    A defect type is measured against the good images of its category. One without a mask counts in image metrics only.
    `maps` and `masks` are as for `PixelScores`, perhaps lazy; `convention` is a reading of AUPRO, reported beside the
    exact one; `seed` is that of the bootstrap. Returns the numbers, and the PRO curve for drawing.
    """
    labels, scores = np.array([r.label for r in records], int), np.array(scores, float)
    defects, categories = (np.array([getattr(r, field) for r in records]) for field in ("defect", "category"))
    kinds = [r.defect if r.label else None for r in records]

    def known(indices, kinds: list | None = None) -> tuple[Lazy, Lazy, list | None]:
        found = [i for i in indices if records[i].mask is not None or not records[i].label]
        return Lazy(maps.__getitem__, found), Lazy(masks.__getitem__, found), kinds and [kinds[i] for i in found]

    several = len(names := sorted(set(categories))) > 1
    pixels = PixelScores(*known(range(len(records)), None if several else kinds))
    result = {"images": {d: int((defects == d).sum()) for d in sorted(set(defects))}, "reasons": {}}
    result |= some_metrics(scores, labels, pixels, None, result["reasons"])
    curve = pixels.pro_curve(points=400)
    if not math.isnan(result["image_auroc"]):
        result["image_auroc_interval"] = metric.bootstrap_auroc(scores, labels, random_stream(seed, "bootstrap"))
    if convention != "exact" and not math.isnan(result["aupro_0.3"]):
        result["aupro_0.3_" + convention] = metric.aupro(*known(range(len(records)))[:2], 0.3, convention)
    by_defect, by_category = {}, {}
    for name in names:
        inside = np.flatnonzero(categories == name)
        if several:
            del pixels  # their memory: of all categories, or of the one before
            pixels = PixelScores(*known(inside, kinds))
            by_category[name] = {"n": len(inside), **some_metrics(scores[inside], labels[inside], pixels, None, {})}
        for defect in {defects[i] for i in inside if labels[i]}:
            chosen = inside[(defects[inside] == defect) | (labels[inside] == 0)]
            numbers = some_metrics(scores[chosen], labels[chosen], pixels, [None, defect], {})
            by_defect[str(defect)] = {"n": int((defects[inside] == defect).sum()), **numbers}
    result["by_defect"] = dict(sorted(by_defect.items()))
    if several:
        mean = {key: float(np.mean([row[key] for row in by_category.values()])) for key in by_category[names[0]]}
        result["by_category"] = {**by_category, "mean of categories": {**mean, "n": len(records)}}
    return result, curve


def some_metrics(scores: np.ndarray, labels: np.ndarray, pixels: PixelScores, kinds, reasons: dict) -> dict:
    """Computes image metrics, and pixel metrics over some kinds of images; `reasons` says why a number is NaN."""
    f1, at = metric.best_f1(scores, labels)
    result = {"image_auroc": metric.auroc(scores, labels), "image_ap": metric.average_precision(scores, labels),
              "image_best_f1": f1, "image_best_f1_threshold": at}  # fmt: skip
    if reason := metric.undefined_reason(labels):
        reasons |= dict.fromkeys(result, reason)
    found = pixels.metrics(FPR_LIMITS, kinds)
    if np.isnan(found["pixel_auroc"]):
        del found["error_bound"]
        anomalous = any(count for _, count in pixels.counts.values())
        reason = "no test pixel is normal" if anomalous else "no test image has a mask of a defect"
        reasons |= dict.fromkeys(found, reason)
    return result | found
