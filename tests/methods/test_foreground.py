"""Foreground rules: the table of RealNet's specification, thresholds, and morphology with squares."""

import numpy as np
import pytest
from scipy import ndimage

from adref.methods.realnet.foreground import RULES, Rule, foreground, triangle
from adref.ops.image import grey, otsu

# Section 2.3 of the specification, row by row: the categories and their rule, None for all foreground.
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
    expected = {name: rule for names, rule in TABLE for name in names.split()}
    assert expected == RULES  # a Rule equals the tuple of its fields
    assert len(RULES) == 15 + 12 + 6 + 3
    assert Rule._fields == ("threshold", "channel", "object", "closing", "opening")
    assert all(rule is None or isinstance(rule, Rule) for rule in RULES.values())


def picture(seed: int = 0, shape: tuple[int, int] = (60, 70)) -> np.ndarray:
    """Blobs that differ from channel to channel."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(*shape, 3)), (3, 3, 0))
    noise = 128 + 60 * noise / noise.std(axis=(0, 1)) + rng.normal(0, 10, (*shape, 3))
    return np.clip(noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("threshold", ["otsu", "triangle"])
@pytest.mark.parametrize("channel", ["grey", "red", "green", "blue"])
def test_threshold_channel_and_side(threshold, channel):
    image = picture(1)
    values = grey(image, "opencv") if channel == "grey" else image[..., ("red", "green", "blue").index(channel)]
    level = otsu(values).threshold if threshold == "otsu" else triangle(values)
    bright = foreground(image, Rule(threshold, channel, "bright", 1, 1))
    assert bright.dtype == bool and bright.shape == image.shape[:2]
    np.testing.assert_array_equal(bright, values.astype(int) > level)
    np.testing.assert_array_equal(foreground(image, Rule(threshold, channel, "dark", 1, 1)), ~bright)


def test_grey_is_opencvs():
    """Half of a colour that Pillow's grey takes for another level than the other half's: OpenCV's sees one level."""
    colours = np.stack(np.mgrid[5:256:5, 5:256:5, 5:256:5].reshape(3, 1, -1), axis=2).astype(np.uint8)
    opencv, pillow = grey(colours, "opencv")[0], grey(colours)[0]
    index = int(np.flatnonzero(opencv != pillow)[0])
    image = np.full((20, 20, 3), opencv[index])
    image[:, :10] = colours[0, index]
    assert foreground(image, Rule("otsu", "grey", "bright", 1, 1)).all()  # Otsu's threshold of one level is 0
    assert len(np.unique(grey(image))) == 2


def two_levels(mask: np.ndarray) -> np.ndarray:
    return np.repeat(np.where(mask, 200, 40).astype(np.uint8)[:, :, None], 3, axis=2)


def slow_closing(mask: np.ndarray, side: int) -> np.ndarray:
    """The background that no square of background covers is filled: far from the frame, by definition."""
    covered = np.zeros_like(mask)
    for y in range(mask.shape[0] - side + 1):
        for x in range(mask.shape[1] - side + 1):
            if not mask[y : y + side, x : x + side].any():
                covered[y : y + side, x : x + side] = True
    return ~covered


@pytest.mark.parametrize("side", [3, 6, 8, 15])
def test_closing_and_opening_are_an_adjunction(side):  # golden check G9
    """closing >= input >= opening, both idempotent; and away from the frame each is its definition."""
    added = removed = 0
    inner = (slice(2 * side, -2 * side),) * 2
    for seed in range(4):
        noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(100, 110)), 2 + side / 4)
        mask = noise > np.quantile(noise, 0.4 + 0.1 * (seed % 3))
        image = two_levels(mask)
        closing, opening = Rule("otsu", "grey", "bright", side, 1), Rule("otsu", "grey", "bright", 1, side)
        closed, opened = foreground(image, closing), foreground(image, opening)
        assert not (mask & ~closed)[inner].any() and not (opened & ~mask)[inner].any()
        np.testing.assert_array_equal(closed[inner], slow_closing(mask, side)[inner])
        np.testing.assert_array_equal(opened[inner], ~slow_closing(~mask, side)[inner])
        for once, rule in ((closed, closing), (opened, opening)):
            np.testing.assert_array_equal(foreground(two_levels(once), rule)[inner], once[inner])
        added, removed = added + (closed & ~mask)[inner].sum(), removed + (mask & ~opened)[inner].sum()
    assert added > 0 and removed > 0


def test_closing_comes_first():
    """Two bars with a gap are joined, then survive the opening; opened first, they would vanish."""
    mask = np.zeros((40, 40), bool)
    mask[10:30, 14:18] = mask[10:30, 20:24] = True
    mask[4, 4] = True
    found = foreground(two_levels(mask), Rule("otsu", "grey", "bright", 3, 6))
    expected = np.zeros_like(mask)
    expected[10:30, 14:24] = True
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", sorted(RULES))
def test_every_rule_runs_and_leaves_its_argument(name):
    image = picture(2)
    kept = image.copy()
    found = foreground(image, RULES[name])
    assert found.shape == (60, 70) and found.dtype == bool
    np.testing.assert_array_equal(image, kept)
    if RULES[name] is None:
        assert found.all()
    else:
        assert found.any() and not found.all()
        np.testing.assert_array_equal(found, foreground(image, RULES[name]))


@pytest.mark.parametrize("value", [0, 1, 2, 128, 255])
@pytest.mark.parametrize("name", ["pill", "hazelnut", "bottle", "pcb1", "01"])
def test_a_picture_of_one_colour_is_all_or_nothing(value, name):
    rule = RULES[name]
    found = foreground(np.full((30, 33, 3), value, np.uint8), rule)
    # Otsu's threshold is 0; the triangle's is below the value, but for 0.
    bright = value > 0
    assert found.all() == (bright == (rule.object == "bright")) and found.all() == found.any()


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 5, 3), (64, 64, 3)])
def test_small_pictures(shape):
    image = np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)
    assert all(foreground(image, rule).shape == shape[:2] for rule in RULES.values())


@pytest.mark.parametrize("image", [np.zeros((4, 5)), np.zeros((3, 4, 5), np.uint8), np.zeros((4, 5, 3))])
@pytest.mark.parametrize("rule", [None, RULES["pill"], RULES["pcb1"]])
def test_other_arrays_are_refused(image, rule):
    with pytest.raises(ValueError, match=r"expected uint8 \(H, W, 3\), got"):
        foreground(image, rule)
