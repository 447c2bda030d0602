"""AUROC, average precision, best F1, PRO and AUPRO: exact, from one sort, and never repaired.

Each is a sum over the few anomalous scores s, given two counts of good scores for each of them:

    before(s) = #{good > s},   after(s) = #{good >= s};   N good and P anomalous scores, R regions in all.

While the threshold passes s, the false positive rate (FPR) runs from before/N to after/N on a straight line: tied
scores move together. With detected(s) = #{anomalous >= s} and area(s) = pixels of the region that holds s:

    AUROC = 1/(P N) sum [N - (before + after)/2]       (a tie counts one half: the Mann-Whitney statistic)
    AP    = 1/P sum detected / (detected + after)      (the step-wise sum over distinct thresholds)
    F1    = max 2 detected / (detected + after + P)    (no threshold between anomalous scores can be better)
    AUPRO = 1/R sum 1/area * mean over FPR in [0, limit] of the ramp from 0 at before/N to 1 at after/N

The last line is the trapezoid area under the PRO curve over all distinct scores, interpolated at the limit and
divided by it, but taken pixel by pixel: no grid of thresholds, and any number of limits from one sort.

Scores: higher is more anomalous; any finite real type, compared as it comes (float32 as float32). Labels and masks: 0,
or 1 for anomalous. Maps and masks: sequences of 2-D arrays whose sizes may differ, or one (B, H, W) array each; a mask
may be None where no pixel is anomalous. Sequences may be lazy: no function here holds more than one map and mask, or
asks for one more than four times. All functions raise ValueError for scores that are not finite, labels other than 0
and 1, and shapes that differ, and return NaN where a class is missing.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import scipy

from adref.ops.pixels import NAN, PixelScores, count_pixels, curve, detected_at, false_positives, label, pairs


def undefined_reason(labels: np.ndarray) -> str | None:
    """Explains why AUROC, AP and F1 are NaN for the labels of some images; None where they are defined."""
    total, anomalous = labels.size, np.count_nonzero(labels)
    if 0 < anomalous < total:
        return None
    found = f"all {total} images are {'anomalous' if anomalous else 'good'}" if total else "there are no images"
    return f"undefined: it takes good and anomalous images, and {found}"


def _split(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Sorts good and anomalous scores; None where one of the two is empty."""
    scores, labels = np.ravel(scores), np.ravel(labels)
    counts, _ = count_pixels([scores], [labels], ndim=1)
    labels = labels.astype(bool, copy=False)
    return (np.sort(scores[~labels]), np.sort(scores[labels])) if counts.all() else None


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Computes the area under the ROC curve, ties by mid-rank, in integers up to the one division; never flipped."""
    if (split := _split(scores, labels)) is None:
        return NAN
    before, after = false_positives(*split)
    pairs = 2 * split[0].size * split[1].size
    return (pairs - int(before.sum()) - int(after.sum())) / pairs


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Sums (step of recall) * precision over the distinct thresholds; in (0, 1]."""
    if (split := _split(scores, labels)) is None:
        return NAN
    detected = detected_at(split[1])
    return float(np.mean(detected / (detected + false_positives(*split)[1])))


def best_f1(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Finds the largest F1 over all thresholds (score >= threshold) and the highest threshold that reaches it.

    It is chosen on the labels that judge it: an upper bound for a threshold fixed beforehand.
    """
    if (split := _split(scores, labels)) is None:
        return NAN, NAN
    detected = detected_at(split[1])
    f1 = 2 * detected / (detected + false_positives(*split)[1] + split[1].size)
    best = np.flatnonzero(f1 == f1.max())[-1]
    return float(f1[best]), float(split[1][best])


def bootstrap_auroc(scores: np.ndarray, labels: np.ndarray, rng: np.random.Generator, n: int = 1000,
                    level: float = 0.95) -> tuple[float, float]:  # fmt: skip
    """Computes the percentile bootstrap interval of the AUROC over the test images (Efron 1979).

    Stratified: good and anomalous images are redrawn within their class, as a test set fixes both numbers and a plain
    resample of a small one can lose a class. A draw with replacement is a multinomial draw of counts over distinct
    scores: ties stay exact. Perfect separation gives (1, 1), however few. `n`: resamples; `level`: coverage in (0, 1).
    """
    if (split := _split(scores, labels)) is None:
        return NAN, NAN
    values, pairs = np.unique(np.concatenate(split)), 2 * split[0].size * split[1].size
    shares = [np.bincount(np.searchsorted(values, x), minlength=values.size) / x.size for x in split]
    won, rows = [], max(1, 2**21 // values.size)  # rows at a time: bounds the memory
    for start in range(0, n, rows):
        good, anomalous = (rng.multinomial(x.size, p, min(rows, n - start)) for x, p in zip(split, shares))
        won.append((anomalous * (2 * good.cumsum(1) - good)).sum(1))  # 2 for a good score below, 1 for a tie
    low, high = np.quantile(np.concatenate(won), [(1 - level) / 2, (1 + level) / 2])
    return float(low) / pairs, float(high) / pairs


def roc_curve(scores: np.ndarray, labels: np.ndarray, points: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the corners (fpr, tpr) of the exact ROC curve from (0, 0) to (1, 1); empty where a class is missing.

    `points`, 3 or more, keeps at most so many of them, for drawing.
    """
    if (split := _split(scores, labels)) is None:
        return np.empty(0), np.empty(0)
    before, after = (count[::-1] / split[0].size for count in false_positives(*split))
    return curve(before, after, np.ones(split[1].size), points)


def pro_curve(maps: Sequence, masks: Sequence, connectivity: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Returns the exact PRO curve (fpr, pro), the mean coverage of the regions over the FPR of all good pixels."""
    return PixelScores(maps, masks, connectivity=connectivity).pro_curve()


def pixel_metrics(maps: Sequence, masks: Sequence, fpr_limits: Sequence[float] = (0.3, 0.05), connectivity: int = 8,
                  pixel_limit: int = 2**28, bins: int = 2**18) -> dict[str, float]:  # fmt: skip
    """Computes pixel AUROC, pixel AP and AUPRO at several limits over all pixels of all images.

    Args:
        maps, masks: (H, W) each; good images count for the FPR.
        fpr_limits: ends of the FPR range of AUPRO, each in (0, 1].
        connectivity: 8 or 4. Regions end with their image, all weigh the same, and holes are background.
        pixel_limit: more pixels than this are not sorted but counted in bins (see `pixels.PixelScores` for memory).
        bins: about how many bins. Their edges are a sample of the scores.

    Returns:
        "pixel_auroc", "pixel_ap", "aupro_<limit>" for each limit, and "error_bound": 0 where exact; else no value is
        further than this from the exact one.
    """
    return PixelScores(maps, masks, None, connectivity, pixel_limit, bins).metrics(fpr_limits)


def _at_thresholds(maps, masks, thresholds, connectivity, filled=False) -> tuple[np.ndarray, np.ndarray]:
    """Computes FPR and mean coverage of the regions by score > t, t from the last threshold down to the first.

    With `filled`, the pixels in a region's holes are covered too, though they do not count in its area.
    """
    (false, covered), regions = np.zeros((2, len(thresholds) + 1)), 0
    for scores, mask in pairs(maps, masks):
        good = scores.reshape(-1) if mask is None else scores[~mask]
        false += np.bincount(np.searchsorted(thresholds, good), minlength=false.size)
        labels = label(np.zeros((1, 1), bool) if mask is None else mask, connectivity)
        for k, box in enumerate(scipy.ndimage.find_objects(labels), 1):
            region = labels[box] == k
            area, regions = np.count_nonzero(region), regions + 1
            if filled:
                region = scipy.ndimage.binary_fill_holes(region, np.ones((3, 3)))
            covered += np.bincount(np.searchsorted(thresholds, scores[box][region]), minlength=false.size) / area
    return false[::-1].cumsum()[:-1] / false.sum(), covered[::-1].cumsum()[:-1] / regions


def _steps(maps, masks, fpr_limit, connectivity, count, first, within, filled) -> float:
    ends = np.array([(scores.min(), scores.max()) for scores, _ in pairs(maps, masks) if scores.size], float)
    thresholds = np.linspace(ends.min(), ends.max(), count + 1)[first : first + count]
    fpr, pro = _at_thresholds(maps, masks, thresholds, connectivity, filled)
    fpr, pro = fpr[within(fpr, fpr_limit)], pro[within(fpr, fpr_limit)]
    return float(scipy.integrate.trapezoid(pro, fpr / fpr[-1])) if fpr.size and fpr[-1] else NAN


def _ranks(maps, masks, fpr_limit, connectivity, count) -> float:
    good = PixelScores(maps, masks, connectivity=connectivity, pixel_limit=math.inf).parts[None].good
    ranks = np.linspace(0, good.size - 1, count, dtype=int)
    pro = np.append(_at_thresholds(maps, masks, good[ranks], connectivity)[1], 1)
    fpr = np.append(1 - (ranks[::-1] + 1) / good.size, 1)  # from the rank: tells apart good scores that tie
    end, keep = np.interp(fpr_limit, fpr, pro), fpr <= fpr_limit
    return float(scipy.integrate.trapezoid(np.append(pro[keep], end), np.append(fpr[keep], fpr_limit))) / fpr_limit


CONVENTIONS: dict[str, Callable[[list, list, float, int], float]] = {
    "exact": lambda maps, masks, limit, k: pixel_metrics(maps, masks, (limit,), k)[f"aupro_{limit:g}"],
    "200-step": partial(_steps, count=200, first=0, within=np.less, filled=False),
    "realnet": partial(_steps, count=1000, first=1, within=np.less_equal, filled=True),
    "mvtec3d": partial(_ranks, count=100),
    "ranks": partial(_ranks, count=5000),
    "point": lambda maps, masks, limit, k: float(np.interp(limit, *pro_curve(maps, masks, k))),
}


def aupro(maps: Sequence, masks: Sequence, fpr_limit: float = 0.3, convention: str = "exact",
          connectivity: int = 8) -> float:  # fmt: skip
    """Computes the area under the PRO curve up to an FPR limit (Bergmann et al., CVPR 2020), by convention.

    Each is the scores that count, the area, and in brackets who uses it:

    "exact"     score >= every distinct score; up to the limit, interpolated, divided by it (here; anomalib, NSA)
    "200-step"  score > min + i (max - min)/200, i < 200; points with FPR < limit, divided by the largest FPR among them
                (RD4AD, each image alone; Dinomaly)
    "realnet"   score > max - i (max - min)/1000, i < 1000; points with FPR <= limit, stretched to [0, 1]; holes count
                as overlap, not as area: it can exceed 1 (RealNet, CFLOW-AD)
    "mvtec3d"   score > good scores at 100 even ranks; as "exact", with the FPR of the rank (MVTec 3D-AD code)
    "ranks"     score > good scores at 5000 even ranks; as "mvtec3d" (the same, finer)
    "point"     score >= every distinct score; none: the coverage at FPR = limit (a reading of PRO)

    A strictly rising transform of the scores changes only the two with even steps of the score, which one outlier can
    spoil. "mvtec3d" and "ranks" sort all scores, however many there are.
    NaN also where no step of "200-step" or "realnet" has an FPR above 0 within the limit, which lies in (0, 1].
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"expected a convention of AUPRO ({', '.join(CONVENTIONS)}), got {convention!r}")
    if not 0 < fpr_limit <= 1:
        raise ValueError(f"expected an FPR limit in (0, 1], got {fpr_limit}")
    both = count_pixels(maps, masks)[0].any(0).all()
    return CONVENTIONS[convention](maps, masks, fpr_limit, connectivity) if both else NAN
