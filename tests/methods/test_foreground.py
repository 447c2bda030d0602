"""Foreground rules: the table of RealNet's code, thresholds, and morphology with squares."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from adref.methods.realnet.foreground import RULES, Rule, foreground, triangle
from adref.ops.image import grey, otsu

# The categories of the four data sets and their rule, None for all foreground.
TABLE = [
    ("carpet leather tile wood cable transistor", None),
    ("pill", ("otsu", "grey", "bright", 6, 6)),
    ("hazelnut metal_nut toothbrush", ("triangle", "grey", "bright", 6, 6)),
    ("bottle capsule grid screw zipper", ("otsu", "grey", "dark", 6, 6)),
    ("capsules", None),
    ("pcb1 pcb2 pcb3 pcb4", ("triangle", "blue", "bright", 8, 3)),
    ("candle cashew chewinggum fryum macaroni1 macaroni2 pipe_fryum", ("otsu", "grey", "bright", 3, 3)),
    ("bracket_black bracket_brown connector", ("otsu", "green", "dark", 6, 1)),
    ("bracket_white tubes", ("otsu", "blue", "bright", 6, 1)),
    ("metal_plate", ("otsu", "grey", "dark", 6, 1)),
    ("02", None),
    ("01 03", ("otsu", "grey", "bright", 15, 6)),
]


def test_rules_are_those_of_the_table():
    assert {name: rule for names, rule in TABLE for name in names.split()} == RULES  # a Rule equals its tuple
    assert Rule._fields == ("threshold", "channel", "object", "closing", "opening") and len(RULES) == 15 + 12 + 6 + 3


@pytest.mark.parametrize(("threshold", "channel"), [("otsu", "grey"), ("otsu", "red"), ("triangle", "green"),
                                                    ("triangle", "blue")])  # fmt: skip
def test_threshold_channel_and_side(threshold, channel):
    rng = np.random.default_rng(1)
    noise = ndimage.gaussian_filter(rng.normal(size=(60, 70, 3)), (3, 3, 0))
    noise = 128 + 60 * noise / noise.std(axis=(0, 1)) + rng.normal(0, 10, (60, 70, 3))
    image = np.clip(noise, 0, 255).astype(np.uint8)
    values = grey(image, "opencv") if channel == "grey" else image[..., ("red", "green", "blue").index(channel)]
    level = otsu(values).threshold if threshold == "otsu" else triangle(values)
    bright, dark = (foreground(image, Rule(threshold, channel, side, 1, 1)) for side in ("bright", "dark"))
    np.testing.assert_array_equal(bright, values.astype(int) > level)
    np.testing.assert_array_equal(dark, ~bright)


def two_levels(mask: np.ndarray) -> np.ndarray:
    return np.repeat(np.where(mask, 200, 40).astype(np.uint8)[:, :, None], 3, axis=2)


def slow_closing(mask: np.ndarray, side: int) -> np.ndarray:
    """Fills the background that no square of background covers: the definition, far from the frame."""
    covered = np.zeros_like(mask)
    for y, x in np.ndindex(mask.shape[0] - side + 1, mask.shape[1] - side + 1):
        if not mask[y : y + side, x : x + side].any():
            covered[y : y + side, x : x + side] = True
    return ~covered


@pytest.mark.parametrize("side", [3, 6])
def test_closing_and_opening_are_an_adjunction(side):
    """closing >= input >= opening, both idempotent; and away from the frame each is its definition."""
    added, removed, inner = 0, 0, (slice(2 * side, -2 * side),) * 2
    for seed in range(3):
        noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(100, 110)), 2 + side / 4)
        mask = noise > np.quantile(noise, 0.4 + 0.1 * seed)
        closing, opening = Rule("otsu", "grey", "bright", side, 1), Rule("otsu", "grey", "bright", 1, side)
        closed, opened = (foreground(two_levels(mask), rule) for rule in (closing, opening))
        assert not (mask & ~closed)[inner].any() and not (opened & ~mask)[inner].any()
        np.testing.assert_array_equal(closed[inner], slow_closing(mask, side)[inner])
        np.testing.assert_array_equal(opened[inner], ~slow_closing(~mask, side)[inner])
        for first, rule in ((closed, closing), (opened, opening)):
            np.testing.assert_array_equal(foreground(two_levels(first), rule)[inner], first[inner])
        added, removed = added + (closed & ~mask)[inner].sum(), removed + (mask & ~opened)[inner].sum()
    assert added > 0 and removed > 0


def test_closing_comes_first():
    """Two bars with a gap are joined, then survive the opening; opened first, they would vanish."""
    mask, expected = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    mask[10:30, 14:18] = mask[10:30, 20:24] = mask[4, 4] = expected[10:30, 14:24] = True
    np.testing.assert_array_equal(foreground(two_levels(mask), Rule("otsu", "grey", "bright", 3, 6)), expected)


def test_an_image_of_one_colour_is_all_or_nothing():
    """Otsu's threshold is 0; the triangle's is below the value, except for 0."""
    for name, value in itertools.product(("pill", "hazelnut", "bottle", "pcb1"), (0, 1, 255)):
        found = foreground(np.full((30, 33, 3), value, np.uint8), RULES[name])
        assert found.all() == ((value > 0) == (RULES[name].object == "bright")) and found.all() == found.any()
    with pytest.raises(ValueError, match=r"expected uint8 \(H, W, 3\), got"):
        foreground(np.zeros((4, 5, 3)), RULES["pill"])
