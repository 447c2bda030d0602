"""Prints the sourced golden numbers of tests/ops/test_metrics.py, from other programs only (adref is not imported).

    pip install scikit-learn scikit-image opencv-python-headless torch torchmetrics kornia matplotlib
    pip install --no-deps anomalib adeval lightning-utilities
    PYTHONPATH=tools python tools/sources/metrics.py

scikit-learn gives AUROC, AP and F1. AUPRO has two sources: anomalib (float32; all distinct thresholds) and the MVTec
3D-AD evaluation code that ADEval carries (float64; thresholds at ranks of the good scores: with as many ranks as
good pixels, none of them tied, at most 1/(2 limit) good pixels' FPR above the exact value). No package offers the two
step conventions, so loops over scikit-image regions follow the descriptions of the published codes.
"""

import importlib.metadata
import importlib.util
import sys
import types

import numpy as np
from skimage import measure
from sklearn import metrics


def noise(seed: int, size: int) -> np.ndarray:
    """Computes `size` 32-bit integers by a multiply-and-shift hash of the index, the same in any language."""
    x = np.arange(size, dtype=np.uint64) + np.uint64(seed * 1_000_003)
    for shift, factor in ((16, 0x45D9F3B), (16, 0x45D9F3B), (16, 1)):
        x = ((x ^ (x >> np.uint64(shift))) * np.uint64(factor)) & np.uint64(0xFFFFFFFF)
    return x


def case(ties: bool) -> tuple[np.ndarray, np.ndarray]:
    """Makes four maps and masks of 48 x 48, exact in float32: regions and holes that touch at corners, a good image."""
    masks = np.zeros((4, 48, 48), np.uint8)
    masks[0, 5:12, 5:15] = masks[0, 12:20, 15:20] = masks[0, 40, 40] = 1
    masks[1, 10:31, 10:31] = 1
    masks[1, 14:27, 14:27] = 0
    masks[2, 30:34, 2:46] = masks[2, 3:6, 3:6] = masks[2, 47, 0:3] = 1
    masks[2, (9, 10, 10, 11, 11, 12, 12, 13), (22, 21, 23, 20, 24, 21, 23, 22)] = 1
    near = np.roll(masks, (1, 2), (1, 2))  # the highest part of the map: the masks, shifted
    high = noise(1, masks.size).reshape(masks.shape)
    level, unit = (high % 64, 64) if ties else (high >> 9, 2**23)
    return ((level + near * np.uint64(unit // 2)) / (2 * unit)).astype(np.float32), masks


def best_f1(scores, labels):
    precision, recall, thresholds = metrics.precision_recall_curve(labels, scores)
    f1 = 2 * precision[:-1] * recall[:-1] / np.maximum(precision[:-1] + recall[:-1], 1e-300)
    return f1.max(), thresholds[f1 >= f1.max() - 1e-12].max()


def anomalib_aupro():
    """Imports anomalib's class without the rest of anomalib: its two helpers for batches and plots are empty."""
    root = importlib.util.find_spec("anomalib").submodule_search_locations[0]
    package, base, plots = (types.ModuleType("anomalib.metrics" + end) for end in ("", ".base", ".utils"))
    package.__path__, base.AnomalibMetric, plots.plot_metric_curve = [root + "/metrics"], type("Empty", (), {}), None
    sys.modules.update({module.__name__: module for module in (package, base, plots)})
    from anomalib.metrics.aupro import _AUPRO

    return _AUPRO


def by_steps(maps, masks, thresholds, kept, filled):
    """Computes AUPRO threshold by threshold, region by region, as RD4AD and RealNet describe it."""
    labels = [measure.label(mask, connectivity=2) for mask in masks]
    fpr, pro = [], []
    for threshold in thresholds:
        above = maps > threshold
        fpr.append(above[masks == 0].mean())
        overlaps = []
        for image, label in zip(above, labels):
            for region in measure.regionprops(label):
                top, left, bottom, right = region.bbox
                shape = region.image_filled if filled else region.image
                overlaps.append((image[top:bottom, left:right] & shape).sum() / region.area)
        pro.append(np.mean(overlaps))
    fpr, pro = np.array(fpr), np.array(pro)
    fpr, pro = fpr[kept(fpr)], pro[kept(fpr)]
    return metrics.auc((fpr - fpr.min()) / (fpr.max() - fpr.min()) if filled else fpr / fpr.max(), pro)


def main():
    import torch
    from adeval.au_pro import calculate_au_pro

    names = "scikit-learn", "scikit-image", "anomalib", "ADEval", "numpy"
    print("#", ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names))
    for ties in (True, False):
        maps, masks = case(ties)
        scores, labels = maps.ravel(), masks.ravel()
        result = {"auroc": metrics.roc_auc_score(labels, scores)}
        result["average_precision"] = metrics.average_precision_score(labels, scores)
        result["best_f1"], result["threshold"] = best_f1(scores, labels)
        for limit in (0.3, 0.05):
            metric = anomalib_aupro()(fpr_limit=limit)
            metric.update(torch.from_numpy(maps), torch.from_numpy(masks))
            result[f"anomalib {limit}"] = metric.compute()
            for count in (100, 5000, int((masks == 0).sum())):
                result[f"{count} ranks {limit}"] = calculate_au_pro(list(masks), list(maps), limit, count)[0]
        low, high = float(maps.min()), float(maps.max())
        rising = low + np.arange(200) * (high - low) / 200
        falling = high - np.arange(1000) * (high - low) / 1000
        result["200-step 0.3"] = by_steps(maps, masks, rising, lambda fpr: fpr < 0.3, filled=False)
        result["realnet 0.3"] = by_steps(maps, masks, falling, lambda fpr: fpr <= 0.3, filled=True)
        print(f"ties={ties}:", *(f'    "{name}": {float(value)!r},' for name, value in result.items()), sep="\n")


if __name__ == "__main__":
    main()
