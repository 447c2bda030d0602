"""AUROC, average precision, best F1, PRO and AUPRO: exact, from one sort, and never nicer than they are.

Each is a sum over the few anomalous scores s, once two counts of good scores are known for each of them:

    before(s) = #{good > s},   after(s) = #{good >= s};   N good and P anomalous scores, R regions in all.

While the threshold passes s, the false positive rate (FPR) runs from before/N to after/N on a straight line: tied
scores move together. With detected(s) = #{anomalous >= s} and area(s) = pixels of the region that holds s:

    AUROC = 1/(P N) sum [N - (before + after)/2]       (a tie counts one half: the Mann-Whitney statistic)
    AP    = 1/P sum detected / (detected + after)      (the step-wise sum over distinct thresholds)
    F1    = max 2 detected / (detected + after + P)    (no threshold between anomalous scores can be better)
    AUPRO = 1/R sum 1/area * mean over FPR in [0, limit] of the ramp from 0 at before/N to 1 at after/N

The last line is the trapezoid area under the PRO curve over all distinct scores, interpolated at the limit and
divided by it, but taken pixel by pixel: no grid of thresholds, and any number of limits from one sort.

Scores: higher is more anomalous; any finite real type, compared as it comes (float32 as float32). Labels and
masks: 0 or 1 (1 = anomalous). Maps and masks: sequences of 2-D arrays whose sizes may differ from image to image,
or one (B, H, W) array each. Where a class is missing the value is NaN, and `undefined_reason` says why.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from scipy import integrate, ndimage

NAN = float("nan")


def undefined_reason(labels: Sequence | np.ndarray, unit: str = "image") -> str | None:
    """Why AUROC, AP, F1 and AUPRO are NaN for these labels; None where they are defined.

    Args:
        labels: an array of 0 and 1, or a list of masks.
        unit: what has a label, for the sentence: "image" or "pixel".
    """
    parts = [labels] if isinstance(labels, np.ndarray) else labels
    total, anomalous = sum(np.size(part) for part in parts), sum(np.count_nonzero(part) for part in parts)
    if 0 < anomalous < total:
        return None
    found = f"all {total} {unit}s are {'anomalous' if anomalous else 'good'}" if total else f"there are no {unit}s"
    return f"undefined: it takes good and anomalous {unit}s, and {found}"


def _checked(maps: Sequence, masks: Sequence, ndim: int) -> tuple[list, list, int, int]:
    """Lists of score arrays and of boolean masks, and how many good and anomalous scores they hold."""
    maps, masks = [np.asarray(part) for part in maps], [np.asarray(part) for part in masks]
    if len(maps) != len(masks):
        raise ValueError(f"expected as many maps as masks, got {len(maps)} and {len(masks)}")
    total = anomalous = bad = 0
    for i, (scores, mask) in enumerate(zip(maps, masks)):
        if scores.shape != mask.shape or scores.ndim != ndim:
            raise ValueError(f"expected {ndim}-D scores and labels alike, got {scores.shape} and {mask.shape}")
        masks[i] = mask.astype(bool, copy=False)
        if mask.dtype != bool and not np.array_equal(mask, masks[i]):
            raise ValueError(f"expected labels of 0 and 1, got values from {mask.min()} to {mask.max()}")
        total, anomalous = total + scores.size, anomalous + int(np.count_nonzero(masks[i]))
        bad += scores.size - int(np.count_nonzero(np.isfinite(scores)))
    if bad:
        raise ValueError(f"expected finite scores, got {bad} of {total} that are NaN or infinite")
    return maps, masks, total - anomalous, anomalous


def _sorted(maps: list, masks: list, N: int, P: int) -> tuple[np.ndarray, np.ndarray]:
    """All good and all anomalous scores, each sorted upwards: one copy of the maps and nothing more."""
    dtype = np.result_type(np.bool_, *{part.dtype for part in maps})
    good, anomalous = np.empty(N, dtype), np.empty(P, dtype)
    i = j = 0
    for scores, mask in zip(maps, masks):
        found = scores[mask]
        rest = scores[~mask] if found.size else scores.reshape(-1)
        good[i : i + rest.size], anomalous[j : j + found.size] = rest, found
        i, j = i + rest.size, j + found.size
    good.sort()
    anomalous.sort()
    return good, anomalous


def _split(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Sorted good and anomalous scores; None where one of the two is empty."""
    good, anomalous = _sorted(*_checked([np.ravel(scores)], [np.ravel(labels)], ndim=1))
    return (good, anomalous) if good.size and anomalous.size else None


def _false_positives(good: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many good scores lie strictly above each score, and how many at or above it."""
    return good.size - np.searchsorted(good, scores, "right"), good.size - np.searchsorted(good, scores, "left")


def _detected(anomalous: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """How many anomalous scores lie at or above each score."""
    return anomalous.size - np.searchsorted(anomalous, scores, "left")


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve, ties by mid-rank: integers up to the one division, and never flipped.

    Args:
        scores: any shape, higher = more anomalous.
        labels: the same shape, 0 or 1.

    Returns:
        The area in [0, 1]; NaN where a class is missing.

    Raises:
        ValueError: scores that are not finite, labels other than 0 and 1, or shapes that differ.
    """
    if (split := _split(scores, labels)) is None:
        return NAN
    before, after = _false_positives(*split)
    pairs = 2 * split[0].size * split[1].size
    return (pairs - int(before.sum()) - int(after.sum())) / pairs


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Average precision: sum over the distinct thresholds of (step of recall) * precision, no interpolation.

    Args and Raises as for `auroc`. Returns a value in (0, 1]; NaN where a class is missing.
    """
    if (split := _split(scores, labels)) is None:
        return NAN
    detected = _detected(split[1], split[1])
    return float(np.mean(detected / (detected + _false_positives(*split)[1])))


def best_f1(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """The largest F1 over all distinct thresholds, and the highest threshold that reaches it.

    It is chosen on the labels that judge it: an upper bound on what a threshold fixed beforehand can reach.
    Args and Raises as for `auroc`.

    Returns:
        (F1 in (0, 1], threshold), where score >= threshold is called anomalous; (NaN, NaN) as for `auroc`.
    """
    if (split := _split(scores, labels)) is None:
        return NAN, NAN
    detected = _detected(split[1], split[1])
    f1 = 2 * detected / (detected + _false_positives(*split)[1] + split[1].size)
    best = np.flatnonzero(f1 == f1.max())[-1]
    return float(f1[best]), float(split[1][best])


def bootstrap_auroc(
    scores: np.ndarray, labels: np.ndarray, rng: np.random.Generator, n: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the AUROC over the test images (Efron 1979).

    Stratified: good and anomalous images are redrawn each within their class, as a test set fixes both numbers
    and a plain resample of a small one can lose a class. A draw with replacement is a multinomial draw of counts
    over the distinct scores, so ties stay exact. Perfectly separated scores give (1, 1), however few they are.

    Args:
        scores, labels: as for `auroc`.
        rng: the only source of randomness.
        n: how many resamples.
        level: coverage of the interval, in (0, 1).

    Returns:
        (low, high) in [0, 1]; (NaN, NaN) where a class is missing.
    """
    if (split := _split(scores, labels)) is None:
        return NAN, NAN
    values = np.unique(np.concatenate(split))
    shares = [np.bincount(np.searchsorted(values, x), minlength=values.size) / x.size for x in split]
    pairs, rows = [], max(1, 2**21 // values.size)  # rows at a time: bounds the memory
    for start in range(0, n, rows):
        good, anomalous = (rng.multinomial(x.size, p, min(rows, n - start)) for x, p in zip(split, shares))
        pairs.append((anomalous * (2 * good.cumsum(1) - good)).sum(1))  # 2 for a good score below, 1 for a tie
    low, high = np.quantile(np.concatenate(pairs), [(1 - level) / 2, (1 + level) / 2])
    return float(low) / (2 * split[0].size * split[1].size), float(high) / (2 * split[0].size * split[1].size)


def _curve(good, scores, weights, points: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The corners of a ROC or PRO curve: every distinct anomalous score is one slanted or vertical piece."""
    values, which = np.unique(scores, return_inverse=True)
    before, after = (count[::-1] / good.size for count in _false_positives(good, values))
    height = np.bincount(which, weights)[::-1].cumsum()
    height = height / height[-1]  # by itself, so that it ends at 1 in spite of rounding
    x = np.concatenate([[0], np.stack([before, after], 1).reshape(-1), [1]])
    y = np.concatenate([[0], np.stack([np.append(0, height[:-1]), height], 1).reshape(-1), [1]])
    keep = np.append(True, (np.diff(x) > 0) | (np.diff(y) > 0))
    x, y = x[keep], y[keep]
    if points is not None and x.size > points:  # even steps of x + y, and both ends of a piece that is longer
        after = np.searchsorted(x + y, np.linspace(0, 2, (points + 1) // 2))
        keep = np.unique(np.maximum([after - 1, after], 0))
        x, y = x[keep], y[keep]
    return x, y


def roc_curve(scores: np.ndarray, labels: np.ndarray, points: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The exact ROC curve from (0, 0) to (1, 1), to be joined by straight lines.

    Args:
        scores, labels: as for `auroc`.
        points: for drawing, keeps at most so many corners (3 or more); no area here is computed from them.

    Returns:
        (fpr, tpr), neither ever falling; two empty arrays where a class is missing.
    """
    if (split := _split(scores, labels)) is None:
        return np.empty(0), np.empty(0)
    return _curve(*split, np.ones(split[1].size), points)


def pro_curve(
    maps: Sequence, masks: Sequence, connectivity: int = 8, points: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The exact PRO curve: mean coverage of the regions over the FPR of all good pixels of all images.

    Args and Raises as for `pixel_metrics`, `points` and the result (fpr, pro) as for `roc_curve`.
    """
    maps, masks, N, P = _checked(maps, masks, ndim=2)
    if not N or not P:
        return np.empty(0), np.empty(0)
    good, _ = _sorted(maps, masks, N, P)
    parts = [(scores, 1 / areas[region]) for scores, region, areas in _regions(maps, masks, connectivity)]
    return _curve(good, *(np.concatenate(column) for column in zip(*parts)), points)


def _label(mask: np.ndarray, connectivity: int) -> np.ndarray:
    if connectivity not in (4, 8):
        raise ValueError(f"expected connectivity 4 or 8, got {connectivity!r}")
    return ndimage.label(mask, ndimage.generate_binary_structure(2, connectivity // 4))[0]


def _regions(maps: list, masks: list, connectivity: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields for each image with regions its anomalous scores (upwards), the region of each, and all areas."""
    for scores, mask in zip(maps, masks):
        found = scores[mask]
        if found.size:
            region = _label(mask, connectivity)[mask] - 1
            order = np.argsort(found)  # neighbours in a row make the searches several times faster
            yield found[order], region[order], np.bincount(region)


def _ramp(before: np.ndarray, after: np.ndarray, limit: float) -> np.ndarray:
    """Mean over FPR in [0, limit] of the function that rises from 0 at `before` to 1 at `after`."""
    run, width = np.clip(limit, before, after) - before, after - before
    slope = np.divide(run**2, 2 * width, out=np.zeros(width.shape), where=width > 0)
    return (slope + np.maximum(limit - after, 0)) / limit


def pixel_metrics(
    maps: Sequence,
    masks: Sequence,
    fpr_limits: Sequence[float] = (0.3, 0.05),
    connectivity: int = 8,
    pixel_limit: int = 2**28,
    bins: int = 2**18,
) -> dict[str, float]:
    """Pixel AUROC, pixel AP and AUPRO at several limits over all pixels of all images, from one sort.

    Takes the memory of one copy of the maps, and about 100 bytes for each anomalous pixel of one image at a time.

    Args:
        maps: anomaly maps, (H, W) each.
        masks: of the maps' sizes; those of good images are all 0, and their pixels count for the FPR.
        fpr_limits: where the FPR range of AUPRO ends, each in (0, 1].
        connectivity: 8 or 4. Regions end with their image, all weigh the same, and holes are background.
        pixel_limit: more pixels than this are not sorted but counted in bins, with a bound of the error.
        bins: about how many bins. Their edges are a sample of the scores.

    Returns:
        "pixel_auroc", "pixel_ap" and "aupro_<limit>" for each limit (NaN where there is no region or no good
        pixel), and "error_bound": 0 where exact; else no value is further than this from the exact one.

    Raises:
        ValueError: scores that are not finite, masks other than 0 and 1, shapes that differ, a limit outside.
    """
    if not all(0 < limit <= 1 for limit in fpr_limits):
        raise ValueError(f"expected FPR limits in (0, 1], got {fpr_limits}")
    maps, masks, N, P = _checked(maps, masks, ndim=2)
    values, bound = [NAN] * (2 + len(fpr_limits)), 0.0
    if N and P and pixel_limit < N + P:
        values, bound = _binned(maps, masks, N, P, fpr_limits, connectivity, bins)
    elif N and P:
        good, anomalous = _sorted(maps, masks, N, P)
        pairs, precision, pro, regions = 0, 0.0, np.zeros(len(fpr_limits)), 0
        for scores, region, areas in _regions(maps, masks, connectivity):
            scores = scores.astype(good.dtype, copy=False)  # else each search would convert all good scores
            (before, after), detected = _false_positives(good, scores), _detected(anomalous, scores)
            pairs += int((2 * N - before - after).sum())  # a Python integer: cannot overflow
            precision += float((detected / (detected + after)).sum())
            for k, limit in enumerate(fpr_limits):  # whole regions: no rounding can lead above 1
                pro[k] += (np.bincount(region, _ramp(before / N, after / N, limit)) / areas).sum()
            regions += areas.size
        values = [pairs / (2 * P * N), precision / P, *(pro / regions)]
    names = ["pixel_auroc", "pixel_ap", *(f"aupro_{limit:g}" for limit in fpr_limits), "error_bound"]
    return dict(zip(names, map(float, [*values, bound])))


def _binned(maps, masks, N, P, fpr_limits, connectivity, bins) -> tuple[np.ndarray, float]:
    """The values of `pixel_metrics` if the scores of a bin were tied, and how far off that can be at most.

    The bound puts all good scores of each bin below, then all above, its anomalous ones. A sampled score is a bin
    of its own, up to the next float, and free of doubt: frequent ties stay exact. Half of the sample comes from
    anomalous pixels, where the bins need to be fine.
    """
    steps = [max(1, 4 * size // bins) | 1 for size in (N + P, P)]  # odd: no resonance with the image's width
    pairs = zip(maps, masks)
    sample = np.concatenate([x[::k] for m, mask in pairs for x, k in zip((m.reshape(-1), m[mask]), steps)])
    sample = np.unique(sample if sample.dtype.kind == "f" else sample.astype(np.float64))
    edges = np.unique(np.concatenate([sample, np.nextafter(sample, np.inf)]))
    size, regions = edges.size + 1, 0
    good, anomalous, cover = np.zeros(size), np.zeros(size), np.zeros(size)
    for scores, mask in zip(maps, masks):
        good += np.bincount(np.searchsorted(edges, np.sort(scores[~mask]), "right"), minlength=size)
    for scores, region, areas in _regions(maps, masks, connectivity):
        which = np.searchsorted(edges, scores, "right")
        anomalous += np.bincount(which, minlength=size)
        cover += np.bincount(which, 1 / areas[region], minlength=size)
        regions += areas.size
    pure = np.concatenate([[False], np.nextafter(edges[:-1], np.inf) == edges[1:], [False]])
    columns = good, good[::-1].cumsum()[::-1], anomalous, anomalous[::-1].cumsum()[::-1], cover, pure
    good, after, anomalous, detected, cover, pure = (column[anomalous > 0] for column in columns)
    before = after - good

    def values(before, after, precision):
        roc = (anomalous * (2 * N - before - after)).sum() / (2 * P * N)
        pro = [(cover * _ramp(before / N, after / N, limit)).sum() / regions for limit in fpr_limits]
        return np.minimum([roc, (anomalous * precision).sum() / P, *pro], 1)

    precision, first, fewest = detected / (detected + after), detected - anomalous + 1, np.where(pure, after, before)
    middle = values(before, after, precision)
    rise = values(before, fewest, detected / (detected + fewest)) - middle
    # AUROC and AUPRO cannot lie further below than above. AP can, but precision is concave in the rank within a
    # bin, so that it averages to at least the mean of its two ends.
    fall = (anomalous * np.where(pure, 0, precision - first / (first + after)) / 2).sum() / P
    return middle, max(*map(float, rise), float(fall)) + 1e-12  # and rounding


def _at_thresholds(maps, masks, thresholds, connectivity, filled=False) -> tuple[np.ndarray, np.ndarray]:
    """FPR and mean coverage of the regions by score > t, t from the last threshold down to the first.

    With `filled`, the pixels in a region's holes are covered too, though they do not count in its area.
    """
    size, regions = len(thresholds) + 1, 0
    false, covered = np.zeros(size), np.zeros(size)
    for scores, mask in zip(maps, masks):
        false += np.bincount(np.searchsorted(thresholds, scores[~mask]), minlength=size)
        labels = _label(mask, connectivity)
        for k, box in enumerate(ndimage.find_objects(labels), 1):
            region = labels[box] == k
            area, regions = np.count_nonzero(region), regions + 1
            if filled:
                region = ndimage.binary_fill_holes(region, np.ones((3, 3)))
            covered += np.bincount(np.searchsorted(thresholds, scores[box][region]), minlength=size) / area
    return false[::-1].cumsum()[:-1] / false.sum(), covered[::-1].cumsum()[:-1] / regions


def _steps(maps, masks, fpr_limit, connectivity, count, first, within, filled) -> float:
    ends = float(min(part.min() for part in maps)), float(max(part.max() for part in maps))
    thresholds = np.linspace(*ends, count + 1)[first : first + count]
    fpr, pro = _at_thresholds(maps, masks, thresholds, connectivity, filled)
    fpr, pro = fpr[within(fpr, fpr_limit)], pro[within(fpr, fpr_limit)]
    return float(integrate.trapezoid(pro, fpr / fpr[-1])) if fpr.size and fpr[-1] else NAN


def _ranks(maps, masks, fpr_limit, connectivity, count) -> float:
    good, _ = _sorted(*_checked(maps, masks, ndim=2))
    ranks = np.linspace(0, good.size - 1, count, dtype=int)
    pro = np.append(_at_thresholds(maps, masks, good[ranks], connectivity)[1], 1)
    fpr = np.append(1 - (ranks[::-1] + 1) / good.size, 1)  # from the rank: tells apart good scores that tie
    end, keep = np.interp(fpr_limit, fpr, pro), fpr <= fpr_limit
    return float(integrate.trapezoid(np.append(pro[keep], end), np.append(fpr[keep], fpr_limit))) / fpr_limit


CONVENTIONS: dict[str, Callable[[list, list, float, int], float]] = {
    "exact": lambda maps, masks, limit, k: pixel_metrics(maps, masks, (limit,), k)[f"aupro_{limit:g}"],
    "200-step": partial(_steps, count=200, first=0, within=np.less, filled=False),
    "realnet": partial(_steps, count=1000, first=1, within=np.less_equal, filled=True),
    "mvtec3d": partial(_ranks, count=100),
    "ranks": partial(_ranks, count=5000),
    "point": lambda maps, masks, limit, k: float(np.interp(limit, *pro_curve(maps, masks, k))),
}


def aupro(
    maps: Sequence, masks: Sequence, fpr_limit: float = 0.3, convention: str = "exact", connectivity: int = 8
) -> float:
    """Area under the PRO curve up to an FPR limit (Bergmann et al., CVPR 2020), by convention.

    | convention | score >= or > threshold              | area                                 | used by           |
    |------------|--------------------------------------|--------------------------------------|-------------------|
    | "exact"    | >= every distinct score              | up to the limit (interpolated),      | here; anomalib,   |
    |            |                                      | divided by the limit                 | NSA               |
    | "200-step" | > min + i (max - min)/200, i < 200   | points with FPR < limit, divided by  | RD4AD (each image |
    |            |                                      | the largest FPR among them           | alone), Dinomaly  |
    | "realnet"  | > max - i (max - min)/1000, i < 1000 | points with FPR <= limit, stretched  | RealNet, CFLOW-AD |
    |            |                                      | to [0, 1]; holes count as overlap,   |                   |
    |            |                                      | not as area: it can exceed 1         |                   |
    | "mvtec3d"  | > good scores at 100 even ranks      | as "exact", with the FPR of the rank | MVTec 3D-AD code  |
    | "ranks"    | > good scores at 5000 even ranks     | as "mvtec3d"                         | the same, finer   |
    | "point"    | >= every distinct score              | none: the coverage at FPR = limit    | a reading of PRO  |

    A strictly rising transform of the scores moves none of them but the two with even steps of the score, which
    one outlier can spoil.

    Args:
        maps, masks, connectivity: as for `pixel_metrics`.
        fpr_limit: where the FPR range ends, in (0, 1].
        convention: a key of `CONVENTIONS`.

    Returns:
        A value in [0, 1] (above 1 for "realnet" only); NaN where there is no region or no good pixel, and where
        no step of "200-step" or "realnet" has an FPR above 0 within the limit.

    Raises:
        ValueError: an unknown convention, or what `pixel_metrics` refuses.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"expected a convention of AUPRO ({', '.join(CONVENTIONS)}), got {convention!r}")
    if not 0 < fpr_limit <= 1:
        raise ValueError(f"expected an FPR limit in (0, 1], got {fpr_limit}")
    maps, masks, N, P = _checked(maps, masks, ndim=2)
    return CONVENTIONS[convention](maps, masks, fpr_limit, connectivity) if N and P else NAN
