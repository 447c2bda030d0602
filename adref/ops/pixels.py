"""Pixel scores of many images, read one image at a time, sorted once or counted in bins, and the metrics over them.

`ops/metrics.py` states the sums. Images may be of several kinds, e.g. defects: counts over kinds add up, so that the
good images are read and sorted once for all of them.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import scipy

NAN = float("nan")
BLOCK = 2**14  # scores at a time: bounds the memory of temporary arrays


def count_pixels(maps: Sequence, masks: Sequence, ndim: int = 2) -> tuple[np.ndarray, np.dtype]:
    """Checks all images; returns the good and anomalous scores of each, (n, 2), and the type that holds all scores."""
    if len(maps) != len(masks):
        raise ValueError(f"expected as many maps as masks, got {len(maps)} and {len(masks)}")
    counts, bad, types = np.zeros((len(maps), 2), int), 0, {np.dtype(np.bool_)}
    for i, (scores, mask) in enumerate(zip(maps, masks)):
        scores = np.asarray(scores)
        mask = np.broadcast_to(False, scores.shape) if mask is None else np.asarray(mask)
        if scores.shape != mask.shape or scores.ndim != ndim:
            raise ValueError(f"expected {ndim}-D scores and labels of one shape, got {scores.shape} and {mask.shape}")
        if mask.dtype != bool and not np.array_equal(mask, mask.astype(bool)):
            raise ValueError(f"expected labels of 0 and 1, got values from {mask.min()} to {mask.max()}")
        anomalous = np.count_nonzero(mask)
        counts[i] = scores.size - anomalous, anomalous
        bad += scores.size - int(np.count_nonzero(np.isfinite(scores)))
        types.add(scores.dtype)
    if bad:
        raise ValueError(f"expected finite scores, got {bad} of {counts.sum()} that are NaN or infinite")
    return counts, np.result_type(*types)


def pairs(maps: Sequence, masks: Sequence) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yields scores and mask (bool) of checked images; the mask is None where no pixel is anomalous."""
    for scores, mask in zip(maps, masks):
        mask = None if mask is None else np.asarray(mask).astype(bool, copy=False)
        yield np.asarray(scores), mask if mask is not None and mask.any() else None


def false_positives(good: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts the (sorted) good scores strictly above each score, and those at or above it."""
    right = np.searchsorted(good, scores, "right")
    left, tied = right.copy(), np.flatnonzero((right > 0) & (good[right - 1] == scores))
    left[tied] = np.searchsorted(good, scores[tied], "left")  # the second search is for ties alone
    return good.size - right, good.size - left


def detected_at(anomalous: np.ndarray, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Counts the (sorted) anomalous scores at or above each of those from `start` to `stop`."""
    scores = anomalous[start:stop]
    below = np.arange(start, start + scores.size)
    below[:1] = np.searchsorted(anomalous, scores[:1], "left")
    below[1:][scores[1:] == scores[:-1]] = 0  # ties: as many as for the score before
    return anomalous.size - np.maximum.accumulate(below)


def curve(before, after, weights, points: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Computes the corners of a ROC or PRO curve, at most `points`; each anomalous score, highest first, is a segment.

    `before` and `after` are the FPR above a score, and at or above it (ties are joined), `weights` the rises.
    """
    height = np.cumsum(weights)
    height = height / height[-1]  # ends at exactly 1 in spite of rounding
    last = np.append((np.diff(before) > 0) | (np.diff(after) > 0), True)
    before, after, height = before[last], after[last], height[last]
    starts = np.append(0, height[:-1])
    x, y = (np.concatenate([[0], np.stack(ends, 1).reshape(-1), [1]]) for ends in ((before, after), (starts, height)))
    keep = np.append(True, (np.diff(x) > 0) | (np.diff(y) > 0))
    x, y = x[keep], y[keep]
    if points is not None and x.size > points:  # even steps of x + y, and both ends of a longer segment
        after = np.searchsorted(x + y, np.linspace(0, 2, (points + 1) // 2))
        keep = np.unique(np.maximum([after - 1, after], 0))
        x, y = x[keep], y[keep]
    return x, y


def label(mask: np.ndarray, connectivity: int) -> np.ndarray:
    """Numbers the connected components of a mask from 1; 0 elsewhere."""
    if connectivity not in (4, 8):
        raise ValueError(f"expected connectivity 4 or 8, got {connectivity!r}")
    return scipy.ndimage.label(mask, scipy.ndimage.generate_binary_structure(2, connectivity // 4))[0]


def _regions(mask: np.ndarray, connectivity: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the region of each anomalous pixel, from 0, in the order of `scores[mask]`, and the areas of all."""
    box = tuple(slice(side.argmax(), side.size - side[::-1].argmax()) for side in (mask.any(1), mask.any(0)))
    region = label(mask[box], connectivity)[mask[box]] - 1
    return region, np.bincount(region)


def _ramp(before: np.ndarray, after: np.ndarray, limit: float) -> np.ndarray:
    """Averages over FPR in [0, limit] the function that rises from 0 at `before` to 1 at `after`."""
    run, width = np.clip(limit, before, after) - before, after - before
    slope = np.divide(run**2, 2 * width, out=np.zeros(width.shape), where=width > 0)
    return (slope + np.maximum(limit - after, 0)) / limit


class _Sorted(NamedTuple):
    """Sorted scores of some images: 4 bytes for a good one, 16 for an anomalous one (float32)."""

    good: np.ndarray  # ascending
    anomalous: np.ndarray  # ascending
    region: np.ndarray  # of the anomalous scores as they were read
    order: np.ndarray  # region[order] are those of `anomalous`
    areas: np.ndarray  # of all regions

    @classmethod
    def read(cls, images: Iterator, N: int, P: int, dtype: np.dtype, connectivity: int) -> "_Sorted":
        """Reads N good and P anomalous scores from `pairs` of images."""
        good, anomalous, region, areas = np.empty(N, dtype), np.empty(P, dtype), np.empty(P, np.int32), []
        i = j = count = 0
        for scores, mask in images:
            rest = scores.reshape(-1) if mask is None else scores[~mask]
            good[i : i + rest.size] = rest
            i += rest.size
            if mask is not None:
                found, sizes = _regions(mask, connectivity)
                anomalous[j : j + found.size], region[j : j + found.size] = scores[mask], found + count
                areas.append(sizes)
                j, count = j + found.size, count + sizes.size
        order = anomalous.argsort()
        good.sort()
        anomalous.sort()
        return cls(good, anomalous, region, order, np.concatenate([*areas, np.empty(0, int)]))


def _merge(parts: list[_Sorted]) -> tuple[np.ndarray, ...]:
    """Merges the anomalous scores of all parts: scores, region, order, areas."""
    found = [part for part in parts if part.anomalous.size]
    if len(found) == 1:
        return found[0][1:]
    offsets = np.cumsum([0, *(part.areas.size for part in found)])
    region = np.concatenate([part.region[part.order] + first for part, first in zip(found, offsets)])
    scores, areas = (np.concatenate([part[k] for part in found]) for k in (1, 4))
    order = scores.argsort(kind="stable")  # merges the sorted parts
    scores.sort(kind="stable")
    return scores, region, order, areas


def _above(parts: list[_Sorted], scores: np.ndarray) -> np.ndarray:
    """Sums `false_positives` over the good scores of all parts: (2, n)."""
    return np.sum([false_positives(part.good, scores) for part in parts if part.good.size], axis=0)


def _sorted_values(parts: list[_Sorted], fpr_limits: Sequence[float]) -> tuple[np.ndarray, float]:
    """Computes AUROC, AP and AUPRO at each limit over all parts, exact: with the error 0."""
    anomalous, region, order, areas = _merge(parts)
    N, P, pairs, precision = sum(part.good.size for part in parts), anomalous.size, 0, 0.0
    coverage = np.zeros((len(fpr_limits), areas.size))
    for start in range(0, P, BLOCK):
        scores = anomalous[start : start + BLOCK]
        (before, after), detected = _above(parts, scores), detected_at(anomalous, start, start + BLOCK)
        pairs += int((2 * N - before - after).sum())  # a Python integer: cannot overflow
        precision += float((detected / (detected + after)).sum())
        which = region[order[start : start + BLOCK]]
        for total, limit in zip(coverage, fpr_limits):
            k = np.count_nonzero(before >= limit * N)  # scores that are too low to count: `before` never rises
            total += np.bincount(which[k:], _ramp(before[k:] / N, after[k:] / N, limit), minlength=areas.size)
    # Whole regions: no rounding can lead above 1.
    return np.array([pairs / (2 * P * N), precision / P, *(coverage / areas).mean(1)]), 0.0


class _Binned(NamedTuple):
    """Counts of scores in each bin, and the coverage of regions that the bin adds."""

    good: np.ndarray
    anomalous: np.ndarray
    cover: np.ndarray
    regions: int

    @classmethod
    def read(cls, images: Iterator, edges: np.ndarray, connectivity: int) -> "_Binned":
        """Counts the scores of `pairs` of images."""
        (good, anomalous, cover), regions = np.zeros((3, edges.size + 1)), 0
        for scores, mask in images:
            rest = np.sort(scores.reshape(-1) if mask is None else scores[~mask])  # sorted: searches are faster
            good += np.bincount(np.searchsorted(edges, rest, "right"), minlength=good.size)
            if mask is not None:
                region, areas = _regions(mask, connectivity)
                which = np.searchsorted(edges, scores[mask], "right")
                np.add.at(anomalous, which, 1)
                np.add.at(cover, which, 1 / areas[region])
                regions += areas.size
        return cls(good, anomalous, cover, regions)


def _edges(groups: list[tuple[Iterator, int, int]], bins: int) -> np.ndarray:
    """Samples the edges of about `bins` bins from the scores of all groups of images, each with its N and P.

    A sampled score is one bin, up to the next float: frequent ties stay exact. Half of the sample comes from anomalous
    pixels, where the bins need to be fine, and each group has its share of them.
    """
    sample, total, several = [], sum(N + P for _, N, P in groups), sum(P > 0 for *_, P in groups)
    for images, _, P in groups:
        steps = [max(1, 4 * size // bins) | 1 for size in (total, P * several)]  # odd: no resonance with the width
        for scores, mask in images:
            sample += [scores.reshape(-1)[:: steps[0]].copy()]  # a view would keep the map
            sample += [] if mask is None else [scores[mask][:: steps[1]].copy()]
    sample = np.unique(np.concatenate(sample))
    sample = sample if sample.dtype.kind == "f" else sample.astype(np.float64)
    return np.unique(np.concatenate([sample, np.nextafter(sample, np.inf)]))


def _binned_values(parts: list[_Binned], fpr_limits: Sequence[float], edges: np.ndarray) -> tuple[np.ndarray, float]:
    """Computes the values over all parts as if the scores of a bin were tied, and a bound of the error.

    The bound puts all good scores of each bin below, then all above, its anomalous ones, except in bins of one score.
    """
    good, anomalous, cover = np.sum([part[:3] for part in parts], axis=0)
    N, P, regions = good.sum(), anomalous.sum(), sum(part.regions for part in parts)
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
    # AUROC and AUPRO cannot lie further below than above. AP can, but precision is concave in the rank within a bin:
    # its average is at least the mean of its two ends.
    fall = (anomalous * np.where(pure, 0, precision - first / (first + after)) / 2).sum() / P
    return middle, max(*map(float, rise), float(fall)) + 1e-12  # and rounding


class PixelScores:
    """Sorts all pixels once and computes metrics over all images or over those of some kinds (None: one kind).

    Arguments as for `metrics.pixel_metrics`. Every map and mask is read twice, to check and to sort; above
    `pixel_limit` a third time, to fill the bins. Memory up to `pixel_limit` pixels: 4 bytes for a good score and 16 for
    an anomalous one (float32), and 20 more for an anomalous one while several kinds are merged, 80 for a curve. Above:
    24 bytes for each bin of each kind, and less than 100 MB, however many pixels there are. Besides, one image.
    """

    def __init__(self, maps: Sequence, masks: Sequence, kinds: Sequence[Hashable] | None = None, connectivity: int = 8,
                 pixel_limit: int = 2**28, bins: int = 2**18):  # fmt: skip
        counts, dtype = count_pixels(maps, masks)
        kinds = [None] * len(maps) if kinds is None else kinds
        places = {kind: [i for i, other in enumerate(kinds) if other == kind] for kind in dict.fromkeys(kinds)}
        self.counts = {kind: tuple(map(int, counts[at].sum(0))) for kind, at in places.items()}  # good, anomalous
        self.parts, self.edges, both = {}, None, counts.any(0).all()

        def images(kind):
            return pairs((maps[i] for i in places[kind]), (masks[i] for i in places[kind]))

        if both and counts.sum() > pixel_limit:
            self.edges = _edges([(images(kind), *self.counts[kind]) for kind in places], bins)
            self.parts = {kind: _Binned.read(images(kind), self.edges, connectivity) for kind in places}
        elif both:
            read = partial(_Sorted.read, dtype=dtype, connectivity=connectivity)
            self.parts = {kind: read(images(kind), *self.counts[kind]) for kind in places}

    def _chosen(self, kinds: Iterable[Hashable] | None) -> list:
        """Returns the parts of some kinds (None: all); none where they hold no good or no anomalous pixel."""
        chosen = [kind for kind in (self.counts if kinds is None else kinds) if kind in self.parts]
        both = chosen and np.sum([self.counts[kind] for kind in chosen], axis=0).all()
        return [self.parts[kind] for kind in chosen] if both else []

    def metrics(self, fpr_limits: Sequence[float], kinds: Iterable[Hashable] | None = None) -> dict[str, float]:
        """Computes the result of `metrics.pixel_metrics` over the images of some kinds; None: over all."""
        if not all(0 < limit <= 1 for limit in fpr_limits):
            raise ValueError(f"expected FPR limits in (0, 1], got {fpr_limits}")
        values, bound = [NAN] * (2 + len(fpr_limits)), 0.0
        if parts := self._chosen(kinds):
            given = (parts, fpr_limits)
            values, bound = _sorted_values(*given) if self.edges is None else _binned_values(*given, self.edges)
        names = ["pixel_auroc", "pixel_ap", *(f"aupro_{limit:g}" for limit in fpr_limits), "error_bound"]
        return dict(zip(names, map(float, [*values, bound])))

    def pro_curve(self, points: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Computes the result of `metrics.pro_curve` over all images; the scores of a bin count as tied."""
        if not (parts := self._chosen(None)):
            return np.empty(0), np.empty(0)
        if self.edges is None:
            scores, region, order, areas = _merge(parts)
            before, after = _above(parts, scores)
            weights = 1 / areas[region[order]]
        else:
            good, _, weights = np.sum([part[:3] for part in parts], axis=0)
            after = good[::-1].cumsum()[::-1]
            before, after, weights = (column[weights > 0] for column in (after - good, after, weights))
        N = sum(good for good, _ in self.counts.values())
        return curve(before[::-1] / N, after[::-1] / N, weights[::-1], points)
