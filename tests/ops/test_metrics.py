"""Metrics: by hand, by slow loops, and from other programs (tools/sources/metrics.py)."""

import math
import tracemalloc
from collections.abc import Sequence
from itertools import pairwise, product

import numpy as np
import pytest

from adref.ops import pixels
from adref.ops.metrics import (
    CONVENTIONS,
    aupro,
    auroc,
    average_precision,
    best_f1,
    bootstrap_auroc,
    pixel_metrics,
    pro_curve,
    roc_curve,
    undefined_reason,
)
from adref.ops.pixels import PixelScores


def noise(seed: int, size: int) -> np.ndarray:
    """32-bit integers from a hash of the index; the same function as in tools/sources/metrics.py."""
    x = np.arange(size, dtype=np.uint64) + np.uint64(seed * 1_000_003)
    for shift, factor in ((16, 0x45D9F3B), (16, 0x45D9F3B), (16, 1)):
        x = ((x ^ (x >> np.uint64(shift))) * np.uint64(factor)) & np.uint64(0xFFFFFFFF)
    return x


def case(ties: bool) -> tuple[np.ndarray, np.ndarray]:
    """Four maps of 48 x 48; the same function as in tools/sources/metrics.py."""
    masks = np.zeros((4, 48, 48), np.uint8)
    masks[0, 5:12, 5:15] = masks[0, 12:20, 15:20] = masks[0, 40, 40] = 1
    masks[1, 10:31, 10:31] = 1
    masks[1, 14:27, 14:27] = 0
    masks[2, 30:34, 2:46] = masks[2, 3:6, 3:6] = masks[2, 47, 0:3] = 1
    masks[2, (9, 10, 10, 11, 11, 12, 12, 13), (22, 21, 23, 20, 24, 21, 23, 22)] = 1
    near = np.roll(masks, (1, 2), (1, 2))
    high = noise(1, masks.size).reshape(masks.shape)
    level, unit = (high % 64, 64) if ties else (high >> 9, 2**23)
    return ((level + near * np.uint64(unit // 2)) / (2 * unit)).astype(np.float32), masks


def toy() -> tuple[np.ndarray, np.ndarray]:
    """10 x 10: a square, a pixel at its corner and a far pixel; the top row is a false alarm."""
    mask, scores = np.zeros((10, 10), bool), np.zeros((10, 10))
    mask[2:4, 2:4] = mask[4, 4] = mask[7, 7] = True
    scores[2:4, 2:4], scores[4, 4], scores[7, 7], scores[0], scores[9] = 0.9, 0.2, 0.5, 0.6, 0.1
    return scores, mask


def three_maps(power: int) -> tuple[list, list]:
    """64 x 64: two rectangles, a ring, and a good image; scores float32, to a power."""
    y, x = np.mgrid[:64, :64]
    r = np.hypot(y - 32, x - 32)
    masks = [np.zeros((64, 64), bool), (r >= 8) & (r <= 14), np.zeros((64, 64), bool)]
    masks[0][10:20, 10:20] = masks[0][40:50, 30:35] = True
    first = np.exp(-((y - 15) ** 2 + (x - 15) ** 2) / 60)
    second = 0.6 * np.exp(-((y - 45) ** 2 + (x - 34) ** 2) / 40)
    third = 0.3 * np.exp(-((y - 50) ** 2 + (x - 10) ** 2) / 200)
    maps = [np.maximum(first, second), np.exp(-((r - 11) ** 2) / 20), third]
    return [part.astype(np.float32) ** power for part in maps], masks


def random_maps(seed: int, levels: int, dtype=np.float64, shapes=((9, 7), (5, 8), (6, 6), (1, 12))):
    """Small maps of several sizes, many ties, random masks; the last image is good."""
    rng = np.random.default_rng(seed)
    masks = [rng.random(shape) < 0.3 for shape in shapes[:-1]] + [np.zeros(shapes[-1], bool)]
    return [(rng.integers(0, levels, mask.shape) + mask).astype(dtype) for mask in masks], masks


def flood(mask, connectivity):
    """The regions of a mask as lists of pixels, by flood fill."""
    steps = [(i, j) for i, j in product((-1, 0, 1), repeat=2) if 0 < abs(i) + abs(j) <= connectivity // 4]
    left, regions = {tuple(pixel) for pixel in np.argwhere(mask)}, []
    while left:
        region = [left.pop()]
        for i, j in region:
            for near in ((i + di, j + dj) for di, dj in steps):
                if near in left:
                    left.remove(near)
                    region.append(near)
        regions.append(region)
    return regions


def slow_pro_points(maps, masks, connectivity):
    """(FPR, PRO) at every distinct threshold, counted one pixel at a time."""
    regions = [(scores, r) for scores, mask in zip(maps, masks) for r in flood(mask, connectivity)]
    good = [score for scores, mask in zip(maps, masks) for score in scores[~mask].tolist()]
    points = [(0.0, 0.0)]
    for t in sorted({score for scores in maps for score in scores.ravel().tolist()}, reverse=True):
        pro = sum(sum(scores[p] >= t for p in region) / len(region) for scores, region in regions) / len(regions)
        points.append((sum(score >= t for score in good) / len(good), pro))
    return points


def slow_area(points, limit):
    """Trapezoids up to the limit, the last one cut by linear interpolation, over the limit."""
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x1 > limit:
            return (area + (limit - x0) * (y0 + (y0 + (y1 - y0) * (limit - x0) / (x1 - x0))) / 2) / limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def slow_auroc(scores, labels):
    positive, negative = scores[labels], scores[~labels]
    return sum((p > n) + (p == n) / 2 for p in positive for n in negative) / (len(positive) * len(negative))


def slow_ap_and_f1(scores, labels):
    ap, recall, best = 0.0, 0.0, (0.0, None)
    for t in sorted(set(scores.tolist()), reverse=True):
        hits, alarms = sum(labels[scores >= t]), sum(scores >= t)
        ap, recall = ap + (hits / sum(labels) - recall) * hits / alarms, hits / sum(labels)
        best = max(best, (2 * hits / (alarms + sum(labels)), t), key=lambda pair: pair[0])
    return ap, best


@pytest.mark.parametrize(
    ("labels", "scores", "expected"),
    [
        ([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], 0.75),
        ([0, 0, 1, 1], [3, 3, 3, 3], 0.5),
        ([0, 0, 1, 1, 1], [0.2, 0.5, 0.5, 0.5, 0.9], 5 / 6),
        ([1, 1, 0], [0, 1, 2], 0.0),  # never flipped
        ([0, 1], [0.0, -0.0], 0.5),
    ],
)
@pytest.mark.holds("srdad", "21")
def test_auroc_by_hand(labels, scores, expected):
    assert auroc(scores, labels) == expected


def test_average_precision_and_f1_by_hand():
    scores, labels = [0.9, 0.8, 0.8, 0.3, 0.1], [1, 0, 1, 1, 0]
    assert average_precision(scores, labels) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3, abs=1e-15)
    assert best_f1(scores, labels) == (6 / 7, 0.3)
    assert best_f1([3, 2, 1, 0], [1, 0, 0, 1]) == (2 / 3, 3.0)  # 3 and 0 reach 2/3: the higher threshold
    assert average_precision([1, 1, 1, 1], [0, 1, 0, 0]) == 0.25


def test_image_metrics_equal_slow_loops():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 12, 60) / 4, rng.random(60) < 0.4
    ap, (f1, threshold) = slow_ap_and_f1(scores, labels)
    assert auroc(scores, labels) == pytest.approx(slow_auroc(scores, labels), abs=1e-14)
    assert average_precision(scores, labels) == pytest.approx(ap, abs=1e-14)
    assert best_f1(scores, labels) == (pytest.approx(f1, abs=1e-14), threshold)


def test_float32_scores_are_not_merged_or_moved():
    near = np.float32(1) + np.finfo(np.float32).eps
    assert auroc(np.array([1, near], np.float32), [0, 1]) == 1
    assert auroc(np.array([1, 1 + 1e-15]), [0, 1]) == 1  # float64 is not cut to float32
    maps = [np.array([[1, near]], np.float32), np.array([[near - np.float64(1e-12)]])]  # two types in one list
    assert pixel_metrics(maps, [np.array([[0, 1]]), np.array([[0]])])["pixel_auroc"] == 1


@pytest.mark.holds("vit_autoencoder", "16")
def test_pro_toy():
    """94 good pixels; at FPR 10/94 the square is covered, at 10/94 the far pixel too, at 0.3 the rest in part."""
    scores, mask = toy()
    assert aupro([scores], [mask]) == pytest.approx(0.78723404, abs=5e-9)
    assert aupro([scores], [mask], connectivity=4) == pytest.approx(0.76359338, abs=5e-9)
    assert aupro([scores], [mask], convention="ranks") == pytest.approx(0.79787234, abs=5e-9)
    assert pixel_metrics([scores], [mask])["pixel_auroc"] == pytest.approx(0.96453901, abs=5e-9)
    by_hand = (10 / 94 * (4 / 5 / 2) + (0.3 - 10 / 94) * 1) / 0.3  # 4 of 5 pixels of one of two regions, then all
    assert aupro([scores], [mask]) == pytest.approx(by_hand, abs=1e-14)
    assert aupro([scores], [mask], convention="point") == 1


def test_pro_of_constant_and_perfect_maps():
    _, mask = toy()
    for level in (0, 0.25, -3):
        constant = pixel_metrics([np.full((10, 10), level)], [mask])
        expected = {"pixel_auroc": 0.5, "pixel_ap": 0.06, "aupro_0.3": 0.15, "aupro_0.05": 0.025, "error_bound": 0}
        assert constant == pytest.approx(expected, abs=1e-15)
    assert aupro([np.zeros((10, 10))], [mask], convention="ranks") == 0
    for seed in range(5):  # exactly 1, whatever the areas
        _, masks = random_maps(seed, 2)
        found = pixel_metrics([m * 0.1 for m in masks], masks, (0.3, 0.05, 0.7, 1))
        assert found == {name: float(name != "error_bound") for name in found}
    for convention in ("ranks", "mvtec3d", "point"):
        for limit in (0.3, 1):
            assert aupro([mask * 1.0], [mask], limit, convention) == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize(("power", "realnet"), [(1, 1.078895), (4, 0.971808), (12, 0.639526)])
def test_pro_of_three_maps(power, realnet):
    """The exact value stays under a rising transform; RealNet's moves, and exceeds 1."""
    maps, masks = three_maps(power)
    assert aupro(maps, masks) == pytest.approx(0.975092, abs=5e-7)
    assert aupro(maps, masks, convention="realnet") == pytest.approx(realnet, abs=5e-7)
    assert pixel_metrics(maps, masks)["pixel_auroc"] == pytest.approx(0.997926, abs=5e-7)


@pytest.mark.parametrize(("seed", "levels", "connectivity"), [(1, 6, 4), (0, 6, 8), (1, 1000, 8)])
def test_pixel_metrics_equal_slow_loops(seed, levels, connectivity):
    maps, masks = random_maps(seed, levels)
    limits = (0.3, 0.05, 0.02, 0.77, 1)
    found = pixel_metrics(maps, masks, limits, connectivity)
    scores, labels = (np.concatenate([part.ravel() for part in parts]) for parts in (maps, masks))
    points = slow_pro_points(maps, masks, connectivity)
    assert found["pixel_auroc"] == pytest.approx(slow_auroc(scores, labels), abs=1e-12)
    assert found["pixel_ap"] == pytest.approx(slow_ap_and_f1(scores, labels)[0], abs=1e-12)
    for limit in limits:
        assert found[f"aupro_{limit:g}"] == pytest.approx(slow_area(points, limit), abs=1e-12)
        assert aupro(maps, masks, limit, connectivity=connectivity) == found[f"aupro_{limit:g}"]
        at_limit = [y0 if x1 == x0 else y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
                    for (x0, y0), (x1, y1) in pairwise(points) if x0 <= limit <= x1]  # fmt: skip
        assert aupro(maps, masks, limit, "point", connectivity) == pytest.approx(max(at_limit), abs=1e-12)


def test_exact_values_ignore_order_and_rising_transforms():
    maps, masks = random_maps(3, 40)
    expected = pixel_metrics(maps, masks)
    for transform in (np.exp, np.cbrt, lambda s: s.astype(np.int16), lambda s: s.astype(np.float16)):
        assert pixel_metrics([transform(part) for part in maps], masks) == expected
    assert pixel_metrics(maps[::-1], masks[::-1]) == pytest.approx(expected, abs=1e-15)
    typed = [None if mask is masks[-1] else mask.astype(np.uint8) for mask in masks]  # None: a mask of zeros
    assert pixel_metrics(maps, typed) == expected
    for convention in CONVENTIONS:
        assert aupro(maps, typed, convention=convention) == aupro(maps, masks, convention=convention)
    flipped = pixel_metrics([-part for part in maps], masks)
    assert flipped["pixel_auroc"] == pytest.approx(1 - expected["pixel_auroc"], abs=1e-15)
    assert flipped["pixel_auroc"] < 0.5


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_one_outlier_moves_uniform_steps_only(convention):
    maps, masks = three_maps(1)
    before = aupro(maps, masks, convention=convention)
    maps[0][15, 15] = 20  # the highest already, and anomalous
    moved = abs(aupro(maps, masks, convention=convention) - before)
    assert moved > 0.01 if convention in ("200-step", "realnet") else moved == 0


# PYTHONPATH=tools python tools/sources/metrics.py, 2026-11-23: scikit-learn 1.9.1 (AUROC, AP, F1), anomalib 2.7.0
# (AUPRO, float32), ADEval 1.1.0 (the MVTec 3D-AD evaluation code at 100, 5000 and all 8637 ranks), loops over
# scikit-image 0.26.0 regions (200-step, RealNet); numpy 2.4.6.
SOURCED = {
    True: {
        "auroc": 0.7397131432166265,
        "average_precision": 0.2794405693694801,
        "best_f1": (0.3918757467144564, 0.5),
        "anomalib": {0.3: 0.20487025380134583, 0.05: 0.12221235781908035},
        "mvtec3d": {0.3: 0.20054615219408267, 0.05: 0.11887929821194758},
        "ranks": {0.3: 0.19967972374836823, 0.05: 0.11862458962554989},
        "200-step": {0.3: 0.20213259731748037},
        "realnet": {0.3: 0.2272723907002895},
    },
    False: {
        "auroc": 0.746246767782023,
        "average_precision": 0.32986293761270996,
        "best_f1": (0.4502262443438914, 0.5007732510566711),
        "anomalib": {0.3: 0.2812272608280182, 0.05: 0.14075933396816254},
        "all ranks": {0.3: 0.2813042076582488, 0.05: 0.1409600072271445},
        "mvtec3d": {0.3: 0.2821958581103229, 0.05: 0.13955414501138652},
        "ranks": {0.3: 0.28130892293974863, 0.05: 0.14097185951613553},
        "200-step": {0.3: 0.28128793542534936},
        "realnet": {0.3: 0.3020589152886713},
    },
}


@pytest.mark.parametrize("ties", [True, False])
def test_other_programs_agree(ties):
    (maps, masks), expected = case(ties), SOURCED[ties]
    assert auroc(maps, masks) == pytest.approx(expected["auroc"], abs=1e-14)
    assert average_precision(maps, masks) == pytest.approx(expected["average_precision"], abs=1e-14)
    assert best_f1(maps, masks) == pytest.approx(expected["best_f1"], abs=1e-14)
    for limit, value in expected["anomalib"].items():
        assert aupro(maps, masks, limit) == pytest.approx(value, abs=1e-6)
    for convention in ("mvtec3d", "ranks", "200-step", "realnet"):
        for limit, value in expected[convention].items():
            assert aupro(maps, masks, limit, convention) == pytest.approx(value, abs=1e-13)
    # Joining the corners at good scores only cuts half a pixel of FPR off each rise, all in all at most this much:
    for limit, value in expected.get("all ranks", {}).items():
        assert 0 <= value - aupro(maps, masks, limit) <= 1 / (2 * 8637 * limit)


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1], []])
def test_one_class_missing_gives_nan_and_a_reason(labels):
    scores, labels = np.arange(len(labels), dtype=float), np.array(labels, int)
    assert math.isnan(auroc(scores, labels)) and math.isnan(average_precision(scores, labels))
    assert all(map(math.isnan, best_f1(scores, labels)))
    assert all(map(math.isnan, bootstrap_auroc(scores, labels, np.random.default_rng(0))))
    assert roc_curve(scores, labels)[0].size == 0
    maps, masks = [scores.reshape(1, -1)], [labels.reshape(1, -1)]
    found = pixel_metrics(maps, masks)
    assert all(math.isnan(value) for name, value in found.items() if name != "error_bound")
    assert all(math.isnan(aupro(maps, masks, convention=convention)) for convention in CONVENTIONS)
    assert pro_curve(maps, masks)[0].size == 0
    assert math.isnan(pixel_metrics([], [])["pixel_ap"])
    assert undefined_reason(np.eye(2)) is None


def test_mistakes_are_named():
    scores, mask = toy()
    holes = scores.copy()
    holes[0, :3] = np.nan, np.inf, -np.inf
    for call, words in (
        (lambda: auroc(holes, mask), "got 3 of 100"),
        (lambda: pixel_metrics([scores, holes], [mask, mask]), "got 3 of 200"),
        (lambda: aupro([scores], [mask], convention="exakt"), r"exact, 200-step, realnet, mvtec3d, ranks, point"),
        (lambda: pixel_metrics([scores], [mask * 255]), "0 and 1, got values from 0 to 255"),
        (lambda: aupro([scores], [mask * 0.5]), r"0 and 1, got values from 0\.0 to 0\.5"),
        (lambda: pixel_metrics([scores], [mask[:, 1:]]), r"\(10, 9\)"),
        (lambda: pixel_metrics(scores[None, None], mask[None, None]), "2-D"),
        (lambda: aupro([scores, scores], [mask]), "got 2 and 1"),
        (lambda: aupro([scores], [mask], connectivity=6), "4 or 8"),
        (lambda: aupro([scores], [mask], math.nan), "limit"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_curves_have_the_exact_areas():
    maps, masks = random_maps(4, 9)
    fpr, tpr = roc_curve(np.concatenate([m.ravel() for m in maps]), np.concatenate([m.ravel() for m in masks]))
    found = pixel_metrics(maps, masks, (1,))
    assert np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1])) / 2 == pytest.approx(found["pixel_auroc"], abs=1e-14)
    fpr, pro = pro_curve(maps, masks)
    assert np.sum(np.diff(fpr) * (pro[1:] + pro[:-1])) / 2 == pytest.approx(found["aupro_1"], abs=1e-14)
    slow = np.array(slow_pro_points(maps, masks, 8))
    inside = np.flatnonzero(np.diff(slow[:, 0]) > 0)  # where several points share an FPR, interp gives the last
    np.testing.assert_allclose(np.interp(slow[inside, 0], fpr, pro), slow[inside, 1], atol=1e-14)


@pytest.mark.parametrize("points", [3, 10, 300])
def test_thinned_curves_keep_ends_and_stay_near(points):
    maps, masks = case(ties=False)
    full, thin = pro_curve(maps, masks), PixelScores(maps, masks).pro_curve(points)
    assert len(full[0]) > 300 >= points >= len(thin[0]) and np.all(np.diff(thin) >= 0)
    assert (thin[0][0], thin[1][0], thin[0][-1], thin[1][-1]) == (0, 0, 1, 1)
    assert set(zip(*thin)) <= set(zip(*full))
    at = np.linspace(0, 1, 500)
    worst = np.abs(np.interp(at, *thin) - np.interp(at, *full)).max()
    assert worst <= 2 / ((points + 1) // 2 - 1)


@pytest.mark.parametrize(("ties", "dtype"), [(False, np.float32), (True, np.float64), (False, np.uint8)])
def test_the_binned_value_is_within_its_bound(ties, dtype):
    maps, masks = case(ties)
    maps = (maps * 255).astype(dtype)
    exact, rough = pixel_metrics(maps, masks), pixel_metrics(maps, masks, pixel_limit=0, bins=400)
    assert 0 < rough["error_bound"] < 0.02 or dtype == np.uint8 or ties
    for name in ("pixel_auroc", "pixel_ap", "aupro_0.3", "aupro_0.05"):
        assert abs(rough[name] - exact[name]) <= rough["error_bound"]
    fine = pixel_metrics(maps, masks, pixel_limit=0, bins=2**18)  # every score is sampled
    assert fine == pytest.approx(exact, abs=1e-11) and fine["error_bound"] == 1e-12


@pytest.mark.parametrize(("n_good", "n_anomalous", "order"), [(1000, 100, 1), (100, 1000, -1)])
def test_the_bound_of_the_worst_bin(n_good, n_anomalous, order):
    """One bin holds all but easy scores, its anomalous ones all above (1) or all below (-1) its good ones."""
    easy, good, anomalous = -np.arange(1.0, 20001), np.linspace(1, 2, n_good), np.linspace(1, 2, n_anomalous)
    anomalous += 3 * order + 3  # the samples that set the edges: two easy scores, and two anomalous ones at 0.1
    good += 3
    anomalous[[0, 4 * n_anomalous // 8 | 1]] = 0.1
    maps = np.concatenate([easy, good, anomalous]).reshape(1, 1, -1)
    masks = np.repeat([0, 1], [20000 + n_good, n_anomalous]).reshape(maps.shape)
    exact, rough = pixel_metrics(maps, masks), pixel_metrics(maps, masks, pixel_limit=0, bins=8)
    error = max(abs(rough[name] - exact[name]) for name in exact if name != "error_bound")
    if order == 1:  # the bound is reached
        assert error == pytest.approx(rough["error_bound"], abs=1e-9) and error > 0.8
    else:
        assert 0.1 < error <= rough["error_bound"] < 0.5


class Made(Sequence):
    """Items that are made when they are asked for, and how often each was."""

    def __init__(self, size: int, make):
        self.make, self.asked = make, [0] * size

    def __len__(self):
        return len(self.asked)

    def __getitem__(self, index):
        self.asked[index] += 1
        return self.make(index)


def made_images(count: int, side: int) -> tuple[Made, Made]:
    """Maps (float32) and masks: every fourth image has a region, a sixteenth of its pixels."""
    region = np.zeros((side, side), bool)
    region[: side // 4, : side // 4] = True

    def scores(i):
        noise = np.random.default_rng(i).random((side, side), dtype=np.float32)
        return noise if i % 4 else noise + np.float32(0.3) * region

    return Made(count, scores), Made(count, lambda i: None if i % 4 else region)


def peak_memory(*arguments, **options) -> int:
    tracemalloc.start()
    pixel_metrics(*arguments, **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_and_reading_of_lazy_images():
    """Sorted: 4 bytes for each good score more, 16 for each anomalous one. Binned: 500 bytes to know an image."""
    pixel_metrics(*case(ties=False))  # what is loaded on first use does not count
    peaks = []
    for count in (40, 160):
        for options, times in (({}, 2), ({"pixel_limit": 0, "bins": 2**12}, 3)):
            maps, masks = made_images(count, 128)
            peaks.append(peak_memory(maps, masks, **options))
            assert max(maps.asked) == max(masks.asked) == times
    per_image = 128 * 128 * (4 + (16 - 4) / 64)
    assert peaks[2] - peaks[0] == pytest.approx(120 * per_image, rel=0.1) and peaks[0] - 40 * per_image < 3_000_000
    assert peaks[3] - peaks[1] < 120 * 500 and peaks[3] < 20_000_000


@pytest.mark.parametrize(("pixel_limit", "levels"), [(2**28, 3), (0, 3), (0, 1000)])
def test_kinds_of_images_are_as_if_alone(levels, pixel_limit):
    """Good images are sorted once for all kinds; what follows is what the images of these kinds alone would give."""
    maps, masks, kinds = [], [], []
    for seed in range(4):
        found = random_maps(seed, levels)
        maps, masks, kinds = maps + found[0], masks + found[1], kinds + ["ab"[seed % 2]] * 3 + [None]
    several = PixelScores(maps, masks, kinds, pixel_limit=pixel_limit, bins=200)
    assert several.counts[None] == (48, 0)
    for chosen in ([None, "a"], [None, "b"], ["b"], ["a", "b", None], None):
        own = [i for i, kind in enumerate(kinds) if chosen is None or kind in chosen]
        expected = pixel_metrics([maps[i] for i in own], [masks[i] for i in own])
        found = several.metrics((0.3, 0.05), chosen)
        bound = found.pop("error_bound")
        assert (bound > 0) == (pixel_limit == 0)
        for name, value in found.items():
            assert value == pytest.approx(expected[name], abs=bound + 1e-15)
    assert all(math.isnan(several.metrics((0.3, 0.05), chosen)["pixel_ap"]) for chosen in ([None], []))
    fine = PixelScores(maps, masks, kinds, pixel_limit=0)  # every score is sampled: its curve is the exact one
    for bins, exact in zip(fine.pro_curve(), pro_curve(maps, masks)):
        np.testing.assert_allclose(bins, exact, atol=1e-12)
    for merged, one in zip(PixelScores(maps, masks, kinds).pro_curve(), pro_curve(maps, masks)):
        np.testing.assert_allclose(merged, one, atol=1e-14)


def test_blocks_of_scores_change_nothing(monkeypatch):
    """Ties that reach over the end of a block, too."""
    maps, masks = random_maps(6, 3)
    whole = pixel_metrics(maps, masks)
    monkeypatch.setattr(pixels, "BLOCK", 4)
    assert pixel_metrics(maps, masks) == pytest.approx(whole, abs=1e-14)
    whole["error_bound"] = 1e-12
    assert pixel_metrics(maps, masks, pixel_limit=0) == pytest.approx(whole, abs=1e-12)


def test_bootstrap_against_loops_and_theory():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [60, 80])
    scores = np.round(rng.normal(size=140) + labels, 1)  # with ties
    low, high = bootstrap_auroc(scores, labels, np.random.default_rng(1), n=4000)
    assert (low, high) == bootstrap_auroc(scores, labels, np.random.default_rng(1), n=4000)
    good, anomalous, areas = scores[labels == 0], scores[labels == 1], []
    for _ in range(2000):  # the same resampling, drawn and ranked one by one
        drawn = np.concatenate([rng.choice(good, 60), rng.choice(anomalous, 80)])
        areas.append(auroc(drawn, labels))
    np.testing.assert_allclose((low, high), np.quantile(areas, (0.025, 0.975)), atol=0.008)
    narrow = bootstrap_auroc(scores, labels, np.random.default_rng(1), n=4000, level=0.5)
    assert low < narrow[0] < auroc(scores, labels) < narrow[1] < high
    assert bootstrap_auroc([0, 0, 1, 1], [0, 0, 1, 1], rng) == (1, 1)
    assert bootstrap_auroc([1, 1, 1, 1], [0, 0, 1, 1], rng) == (0.5, 0.5)


def test_bootstrap_in_blocks():
    """More distinct scores than one block of draws holds rows for: the interval keeps its width."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 3000)
    scores = rng.random(6000) + 0.2 * labels
    low, high = bootstrap_auroc(scores, labels, rng, n=400)
    area = auroc(scores, labels)
    wins = (scores[3000:, None] > scores[:3000]).astype(np.float32)
    deviation = np.sqrt(wins.mean(0).var() / 3000 + wins.mean(1).var() / 3000)  # DeLong et al. 1988
    assert (high - low) / (2 * 1.96 * deviation) == pytest.approx(1, abs=0.15)
    assert low < area < high
