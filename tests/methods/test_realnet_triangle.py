"""The triangle threshold, and Otsu's on the same images, against OpenCV and a slow loop."""

import numpy as np
import pytest

from adref.methods.realnet.foreground import triangle
from adref.ops.image import otsu


def levels(counts: dict[int, int]) -> np.ndarray:
    """A picture with so many pixels of each grey value, shuffled."""
    values = np.repeat(list(counts), list(counts.values())).astype(np.uint8)
    return np.random.default_rng(0).permutation(values)


# The images of tools/sources/image.py.
Y, X = np.mgrid[0:96, 0:128]
PICTURES = {
    "disc": 40 + (7 * X + 11 * Y + X * Y // 3) % 61 + 90 * ((X - 50) ** 2 + (Y - 40) ** 2 < 900),
    "ramp": (X * X + 3 * Y * Y) // 170,
    "tiles": X % 32 * (Y % 24) // 3,
}


LEVELS = {
    "two levels": {50: 600, 200: 400},
    "five levels": {10: 100, 30: 700, 90: 60, 150: 80, 220: 60},
    **{f"one level, {value}": {value: 20} for value in (0, 1, 2, 255)},
}


# Sourced: printed by `PYTHONPATH=tools python tools/sources/image.py` on 2026-11-24; opencv-python-headless 5.0.0.93's
# threshold with THRESH_TRIANGLE and THRESH_OTSU.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("disc", (102, 100)),
        ("ramp", (110, 94)),
        ("tiles", (2, 78)),
        ("255 - disc", (153, 125)),
        ("255 - ramp", (145, 160)),
        ("255 - tiles", (253, 176)),
        ("two levels", (52, 50)),
        ("five levels", (32, 90)),
        ("one level, 0", (1, 0)),
        ("one level, 1", (-1, 0)),
        ("one level, 2", (1, 0)),
        ("one level, 255", (254, 0)),
    ],
)
def test_triangle_and_otsu_agree_with_opencv(name, expected):
    picture = levels(LEVELS[name]) if name in LEVELS else PICTURES[name.removeprefix("255 - ")].astype(np.uint8)
    picture = 255 - picture if name.startswith("255") else picture
    found = triangle(picture)
    assert (found, otsu(picture).threshold) == expected and type(found) is int


def slow_triangle(image: np.ndarray) -> int:
    """OpenCV's rule level by level, in Python's integers."""
    h = [0] * 256
    for value in image.ravel().tolist():
        h[value] += 1
    filled = [i for i in range(256) if h[i]]
    low, high, peak = max(filled[0] - 1, 0), min(filled[-1] + 1, 255), h.index(max(h))
    mirrored = peak - low < high - peak
    if mirrored:
        h, low, peak = h[::-1], 255 - high, 255 - peak
    best, threshold = 0, low
    for i in range(low + 1, peak + 1):
        distance = h[peak] * i + (low - peak) * h[i]
        if distance > best:
            best, threshold = distance, i
    return 255 - (threshold - 1) if mirrored else threshold - 1


@pytest.mark.parametrize("seed", range(3))
def test_triangle_equals_a_slow_loop(seed):
    rng, mirrored = np.random.default_rng(seed), set()
    for _ in range(20):
        centre, width = rng.uniform(0, 255), rng.uniform(0.5, 60)
        for kind in (
            rng.integers(0, 256, (8, 40)),
            rng.choice(rng.integers(0, 256, rng.integers(1, 6)), (10, 30)),
            np.clip(rng.normal(centre, width, (20, 20)), 0, 255),
        ):
            picture = kind.astype(np.uint8)
            found = triangle(picture)
            assert found == slow_triangle(picture)
            mirrored.add(found > np.bincount(picture.ravel()).argmax())
    assert mirrored == {True, False}  # tails on both sides


def test_triangle_of_an_empty_tail_is_its_end():
    """The peak stands at the end: no level lies above it, and 255 values are counted, whatever the shape."""
    assert triangle(np.zeros((3, 4, 5), np.uint8)) == 1
    ramp = np.repeat(np.arange(256), np.arange(1, 257)).astype(np.uint8)
    assert triangle(ramp) == slow_triangle(ramp) and triangle(255 - ramp) == slow_triangle(255 - ramp)
