"""Patches: distributions of sizes, rules of places, and warps against slow loops and scipy."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage

from adref.ops.patches import (
    ObjectPixels,
    draw_gamma_size,
    draw_listed_size,
    draw_lognormal_size,
    draw_place,
    overlap,
    warp,
)

LOGNORMAL = dict(median=28.0, sigma=0.75, limits=(4.0, 128.0), aspect_sigma=0.4, aspect_limit=3.0, longest=160.0)
GAMMA = (0.03, 0.4)


def test_quantiles_of_lognormal_sizes():
    rng = np.random.default_rng(0)
    sizes = np.array([draw_lognormal_size(rng, **LOGNORMAL) for _ in range(30000)])
    d = np.sqrt(sizes.prod(axis=1))
    np.testing.assert_allclose(np.quantile(d, [0.05, 0.25, 0.5, 0.75, 0.95]), [8.2, 16.9, 28.0, 46.5, 96.3], rtol=0.03)
    assert d.mean() == pytest.approx(36.1, rel=0.02)
    assert sizes.min() == 4 and sizes.max() == 160
    # The sides of a medium d meet no limit: the logarithm of the aspect is N(0, 0.4^2), clipped, and independent of d.
    medium = (d > 16) & (d < 80)
    log_aspect = np.log(sizes[medium, 1] / sizes[medium, 0])
    assert np.abs(log_aspect).max() == pytest.approx(math.log(3), abs=1e-12)
    np.testing.assert_allclose(np.quantile(log_aspect, [0.159, 0.5, 0.841]), [-0.4, 0, 0.4], atol=0.02)
    assert np.corrcoef(log_aspect, np.log(d[medium]))[0, 1] == pytest.approx(0, abs=0.03)


def above(steps_d: float, steps_a: float):
    """Makes a stream of two normal numbers, this many standard deviations above the mean."""
    steps = iter((steps_d, steps_a))
    return SimpleNamespace(normal=lambda mean, sigma: mean + sigma * next(steps))


def test_lognormal_sizes_by_hand():
    """width = d sqrt(a), height = d / sqrt(a), with every limit in turn."""
    d, root, root3 = 28 * math.exp(0.75), math.exp(0.2), math.sqrt(3)
    for steps, size in (((0, 0), (28, 28)), ((1, 1), (d / root, d * root)), ((1, -1), (d * root, d / root)),
                        ((9, 0), (128, 128)), ((-9, 0), (4, 4)), ((0, 9), (28 / root3, 28 * root3)),
                        ((9, 9), (128 / root3, 160)), ((9, -9), (160, 128 / root3)),
                        ((-9, 9), (4, 4 * root3))):  # fmt: skip
        assert draw_lognormal_size(above(*steps), **LOGNORMAL) == pytest.approx(size, rel=1e-12)
    others = {**LOGNORMAL, "median": 10.0, "sigma": 0.1, "aspect_sigma": 0.6}
    d, root = 10 * math.exp(0.2), math.exp(0.15)
    assert draw_lognormal_size(above(2, 0.5), **others) == pytest.approx((d / root, d * root), rel=1e-12)


def test_quantiles_of_gamma_sizes():
    rng = np.random.default_rng(1)
    sizes = np.array([draw_gamma_size(rng, GAMMA, GAMMA) for _ in range(20000)])
    for side in 256 * sizes.T:  # pixels of an image of side 256
        np.testing.assert_allclose(np.quantile(side, [0.05, 0.5, 0.95]), [24, 58, 137], rtol=0.03)
        assert side.mean() == pytest.approx(66, rel=0.02)
    assert 0.06 < sizes.min() < 0.065 and sizes.max() == 0.8
    assert np.corrcoef(sizes.T)[0, 1] == pytest.approx(0, abs=0.03)
    sizes = np.array([draw_gamma_size(rng, (0.15, 0.2), (0.12, 0.12)) for _ in range(500)])
    assert sizes[:, 0].min() == 0.3 and sizes[:, 0].max() == 0.4 and len(np.unique(sizes[:, 0])) > 50
    assert (sizes[:, 1] == 0.24).all()


def test_listed_sizes_are_drawn_by_weight_with_jitter():
    rng = np.random.default_rng(3)
    rows = np.array([[10.0, 20.0, 1.0], [100.0, 50.0, 6.0], [1000.0, 900.0, 0.0], [3.0, 4.0, 3.0]])
    sizes = np.array([draw_listed_size(rng, rows, jitter=0.1) for _ in range(6000)])
    row = np.abs(np.log(sizes[:, None, 0] / rows[:, 0])).argmin(axis=1)
    np.testing.assert_allclose(np.bincount(row, minlength=4) / len(row), [0.1, 0.6, 0, 0.3], atol=0.02)
    factors = sizes / rows[row, :2]
    for side in factors.T:  # uniform over 0.9 to 1.1
        np.testing.assert_allclose(np.quantile(side, [0, 0.25, 0.5, 0.75, 1]), [0.9, 0.95, 1, 1.05, 1.1], atol=0.006)
    assert factors.min() >= 0.9 and factors.max() <= 1.1
    assert np.corrcoef(factors.T)[0, 1] == pytest.approx(0, abs=0.05)
    assert draw_listed_size(rng, rows[:1], jitter=0.0) == (10, 20)


def blob(shape: tuple[int, int] = (13, 18)) -> np.ndarray:
    mask = ndimage.gaussian_filter(np.random.default_rng(4).normal(size=shape), 2) > 0
    assert 0.2 < mask.mean() < 0.8
    return mask


def test_pixels_are_drawn_uniformly():
    mask, rng, counts = blob(), np.random.default_rng(5), np.zeros((13, 18))
    pixels = ObjectPixels(mask)
    for _ in range(100 * mask.sum()):
        counts[pixels.draw(rng)] += 1
    assert (counts[~mask] == 0).all()
    statistic = ((counts[mask] - 100) ** 2 / 100).sum()  # chi-squared of one degree less than pixels
    freedom = mask.sum() - 1
    assert abs(statistic - freedom) < 4 * math.sqrt(2 * freedom)
    assert {type(v) for v in pixels.draw(rng)} == {int}


def slow_corner(centre, size, shape) -> tuple[int, int]:
    """Moves the rectangle pixel by pixel until it lies in the image or, where it is larger, the image in it."""
    corner = []
    for middle, side, length in zip(centre, size, shape):
        place = middle - side // 2
        while place < min(0, length - side):
            place += 1
        while place > max(0, length - side):
            place -= 1
        corner.append(place)
    return tuple(corner)


def slow_place(rng, mask: np.ndarray, support: np.ndarray, share: float, tries: int):
    """Finds the first accepted corner, pixel by pixel, from the same stream."""
    for _ in range(tries):
        top, left = slow_corner(ObjectPixels(mask).draw(rng), support.shape, mask.shape)
        hits = 0
        for i, j in zip(*np.nonzero(support)):
            y, x = top + i, left + j
            hits += 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x]
        if hits >= share * support.sum():
            return top, left
    return None


@pytest.mark.parametrize(("shape", "share", "density"), [((2, 2), 0.8, 1), ((13, 18), 0.3, 1), ((6, 5), 0.25, 0.7),
                                                         ((20, 6), 0.25, 0.7), ((24, 31), 0.1, 0.7)])  # fmt: skip
def test_places_equal_a_slow_loop(shape, share, density):
    """Also where the patch is larger than the image; from as many draws."""
    mask = blob()
    for seed in range(15):
        support = np.random.default_rng(seed + 100).random(shape) < density
        rng, other = np.random.default_rng(seed), np.random.default_rng(seed)
        found = draw_place(rng, ObjectPixels(mask), support, share, tries=6)
        assert found == slow_place(other, mask, support, share, 6)
        assert rng.bit_generator.state == other.bit_generator.state


def test_shares_of_rectangles():
    mask = blob()
    for top, left, height, width in ((0, 0, 13, 18), (2, 3, 1, 1), (4, 5, 9, 13), (12, 0, 1, 18)):
        share = mask[top : top + height, left : left + width].mean()
        assert ObjectPixels(mask).share(top, left, height, width) == share


def test_a_share_that_is_just_enough_is_accepted():
    mask, rng = np.zeros((4, 6), bool), np.random.default_rng(0)
    mask[:, :3] = True
    for share, place in ((0.5, (0, 0)), (0.51, None)):
        assert draw_place(rng, ObjectPixels(mask), np.ones((4, 6), bool), share, 200) == place


def test_overlap_by_hand():
    at, shape = np.s_, (7, 9)
    for corner, size, in_image, in_patch in (
        ((2, 3), (3, 4), at[2:5, 3:7], at[0:3, 0:4]),
        ((-1, -2), (3, 4), at[0:2, 0:2], at[1:3, 2:4]),
        ((5, 6), (4, 5), at[5:7, 6:9], at[0:2, 0:3]),
        ((-2, -1), (10, 12), at[0:7, 0:9], at[2:9, 1:10]),
    ):
        assert overlap(corner, size, shape) == (in_image, in_patch)
    for corner, size in (((10, 0), (5, 3)), ((-5, 0), (3, 3)), ((0, 9), (2, 2))):  # they do not meet
        ours, theirs = overlap(corner, size, shape)
        assert np.ones(shape)[ours].size == np.ones(size)[theirs].size == 0


@pytest.mark.parametrize(("angle", "scale"), [(0.3, 0.8), (2.2, 1.0), (3.9, 1.2), (5.5, 1.1)])
def test_warp_agrees_with_scipy_on_the_support(angle, scale):
    patch = np.random.default_rng(9).random((3, 15, 22))
    found = warp(patch, angle, scale)
    c, s = math.cos(angle) / scale, math.sin(angle) / scale
    matrix = np.array([[c, s], [-s, c]])  # canvas to patch, (row, column); rows point down
    offset = (np.array(patch.shape[1:]) - 1) / 2 - matrix @ ((np.array(found.support.shape) - 1) / 2)
    for channel, values in zip(patch, found.values):
        expected = ndimage.affine_transform(channel, matrix, offset, found.support.shape, order=1, cval=np.nan)
        np.testing.assert_allclose(values[found.support], expected[found.support], rtol=0, atol=1e-12)
        assert np.isnan(expected[~found.support]).all()  # scipy, too, needs all neighbours inside
    assert found.support.sum() == pytest.approx(scale**2 * 14 * 21, rel=0.1)


def test_rotations_by_quarters_are_exact():
    """Counter-clockwise, as numpy.rot90."""
    for size, quarters in (((2, 3), 1), ((8, 8), 2), ((7, 12), -5), ((31, 64), 101), ((5, 4), 0)):
        patch = np.random.default_rng(9).random((3, *size))
        found, expected = warp(patch, quarters * math.pi / 2, 1.0), np.rot90(patch, quarters, axes=(1, 2))
        assert found.values.shape == expected.shape and found.support.all()
        np.testing.assert_allclose(found.values, expected, rtol=0, atol=0 if quarters == 0 else 1e-11)
        assert not np.shares_memory(found.values, patch)


def test_scale_two_by_hand():
    """Canvas pixel k of 2 n looks at (k - 0.5) / 2: the first and the last lie outside the patch."""
    found = warp(np.arange(6.0).reshape(1, 2, 3), 0.0, 2.0)
    assert found.support.shape == (4, 6)
    inside = np.zeros((4, 6), bool)
    inside[1:3, 1:5] = True
    np.testing.assert_array_equal(found.support, inside)
    expected = [[1.0, 1.5, 2.0, 2.5], [2.5, 3.0, 3.5, 4.0]]
    np.testing.assert_allclose(found.values[0, 1:3, 1:5], expected, rtol=0, atol=1e-13)


def test_size_of_the_canvas():
    for h, w, angle, scale in ((7, 12, 1.0, 1.1), (2, 29, 5.0, 0.8)):
        cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
        expected = (math.ceil(scale * (h * cos + w * sin)), math.ceil(scale * (w * cos + h * sin)))
        assert warp(np.zeros((1, h, w)), angle, scale).values.shape == (1, *expected)
    assert warp(np.zeros((1, 10, 20)), 0.0, 1.2).support.shape == (12, 24)  # 12.000000000000002 is no reason for 13


@pytest.mark.parametrize("angle", [0.0, 2.2, math.pi / 4])
def test_nothing_but_the_patch_enters_the_support(angle):
    """A constant stays bit for bit, and memory around the patch is never read."""
    rng = np.random.default_rng(11)
    for scale in (0.8, 1.0, 1.1, 1.2):
        around = np.full((2, 24, 30), np.nan)
        around[:, 3:-4, 5:-6] = 1
        ones = warp(around[:, 3:-4, 5:-6], angle, scale)
        assert (ones.values[:, ones.support] == 1).all() and (ones.values[:, ~ones.support] == 0).all()
        around[:, 3:-4, 5:-6] = rng.random((2, 17, 19))
        inside = warp(around[:, 3:-4, 5:-6], angle, scale)
        assert np.isfinite(inside.values).all()
        np.testing.assert_array_equal(inside.support, ones.support)
        np.testing.assert_array_equal(inside.values, warp(around[:, 3:-4, 5:-6].copy(), angle, scale).values)
        assert inside.values.min() >= 0 and inside.values.max() <= 1
