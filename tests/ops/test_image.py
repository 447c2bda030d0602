"""Grey values, Otsu's threshold and morphology against hand values, slow loops and other programs."""

import itertools
import math
import zlib
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from adref.ops.image import grey, morphology, otsu

CORNERS = np.array(list(itertools.product((0, 1, 2, 126, 127, 128, 129, 253, 254, 255), repeat=3)), np.uint8)[None]


def test_grey_is_that_of_pillow_bit_for_bit():
    image = np.random.default_rng(0).integers(0, 256, (67, 300, 3), dtype=np.uint8)
    for colours in (image, CORNERS, image[::2, ::-3]):
        values = grey(colours)
        assert values.dtype == np.uint8
        np.testing.assert_array_equal(values, np.asarray(Image.fromarray(np.ascontiguousarray(colours)).convert("L")))


def test_grey_weighs_red_green_and_blue_by_itu_601():
    np.testing.assert_array_equal(grey(255 * np.eye(3, dtype=np.uint8)[None]), [[76, 150, 29]])
    np.testing.assert_array_equal(grey(np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2))[0], range(256))


def test_unknown_names_are_refused():
    for image, rule in ((np.zeros((4, 5, 3), np.uint8), "lumma"), (np.zeros((4, 5, 3)), "luma"),
                        (np.zeros((3, 4, 5), np.uint8), "luma")):  # fmt: skip
        with pytest.raises(ValueError, match=r"expected uint8 \(H, W, 3\), luma or opencv; got"):
            grey(image, rule)
    with pytest.raises(ValueError, match="expected closing, opening or none, got 'close'"):
        morphology(np.zeros((4, 5), bool), "close")


def levels(counts: dict[int, int]) -> np.ndarray:
    """A picture with so many pixels of each grey value, shuffled."""
    values = np.repeat(list(counts), list(counts.values())).astype(np.uint8)
    return np.random.default_rng(0).permutation(values)


def slow_otsu(image: np.ndarray) -> tuple[int, Fraction, Fraction]:
    """tau, sigma_b^2 and eta in exact arithmetic: for every t, the two classes and their means."""
    values = [int(v) for v in image.ravel()]
    n, mean = len(values), Fraction(sum(values), len(values))
    total = sum(values.count(v) * (v - mean) ** 2 for v in set(values)) / n
    best = (0, Fraction(0))
    for t in range(256):
        low, high = [v for v in values if v <= t], [v for v in values if v > t]
        if low and high:
            apart = Fraction(sum(low), len(low)) - Fraction(sum(high), len(high))
            between = Fraction(len(low) * len(high), n * n) * apart**2
            if between > best[1]:
                best = (t, between)
    return *best, best[1] / total if total else Fraction(0)


def test_otsu_of_two_levels():
    found = otsu(levels({50: 3000, 200: 1000}))
    assert found.threshold == 50
    assert found.between == pytest.approx(4218.75, abs=1e-9)
    assert found.separability == pytest.approx(1, abs=1e-12)


def test_of_several_maxima_the_first_is_taken():
    """Two values a < b: every t from a to b - 1 separates them; three, symmetric: two plateaus of one height."""
    rng = np.random.default_rng(1)
    for _ in range(50):
        a, b = sorted(rng.choice(256, 2, replace=False).tolist())
        counts = rng.integers(1, 9000, 2).tolist()
        assert otsu(levels({a: counts[0], b: counts[1]})).threshold == a
        middle, reach = rng.integers(100, 150), rng.integers(2, 100)
        three = {middle - reach: counts[0], middle: counts[1], middle + reach: counts[0]}
        assert otsu(levels(three)).threshold == middle - reach
    assert otsu(levels({0: 1, 255: 65535})).threshold == 0 and otsu(levels({0: 65535, 255: 1})).threshold == 0
    assert otsu(np.full((9, 11), 7, np.uint8)) == (0, 0.0, 0.0)


def test_separability_of_known_histograms():
    normal = {v: round(2e4 * math.exp(-((v - 127.5) ** 2) / (2 * 25**2))) for v in range(256)}
    assert otsu(levels(normal)).separability == pytest.approx(2 / math.pi, abs=5e-4)  # 0.637
    uniform = otsu(levels(dict.fromkeys(range(256), 40)))
    assert uniform.threshold == 127 and uniform.between == pytest.approx(64**2, abs=1e-9)
    assert uniform.separability == pytest.approx(64**2 * 12 / (256**2 - 1), abs=1e-12)  # 0.75


@pytest.mark.holds("srdad", "1")
def test_otsu_equals_an_exact_slow_loop():
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 256, (8, 40)), rng.choice(rng.integers(0, 256, 4), (10, 30)), rng.integers(0, 256, 3)
    for image in (kind.astype(np.uint8) for kind in kinds):
        found, (tau, between, separability) = otsu(image), slow_otsu(image)
        assert found.threshold == tau
        assert found.between == pytest.approx(float(between), rel=1e-10, abs=1e-10)
        assert found.separability == pytest.approx(float(separability), rel=1e-10, abs=1e-10)


# The pictures and masks of tools/sources/image.py.
Y, X = np.mgrid[0:96, 0:128]
PICTURES = {
    "disc": 40 + (7 * X + 11 * Y + X * Y // 3) % 61 + 90 * ((X - 50) ** 2 + (Y - 40) ** 2 < 900),
    "ramp": (X * X + 3 * Y * Y) // 170,
    "tiles": X % 32 * (Y % 24) // 3,
}
MASKS = {
    "dots": (X % 17 - 8) ** 2 + (Y % 13 - 6) ** 2 < X * Y // 7 % 60,
    "stripes": (X + 2 * Y + X * Y // 50) % 14 < 8,
}


# Sourced: printed by `PYTHONPATH=tools python tools/sources/image.py` on 2026-11-24; scikit-image 0.26.0's
# threshold_otsu and opencv-python-headless 5.0.0.93's threshold with THRESH_OTSU, which agree.
@pytest.mark.parametrize(("name", "expected"), [("disc", 100), ("ramp", 94), ("tiles", 78)])
@pytest.mark.holds("srdad", "1")
def test_otsu_agrees_with_other_programs(name, expected):
    assert otsu(PICTURES[name].astype(np.uint8)).threshold == expected


# Sourced: printed by `PYTHONPATH=tools python tools/sources/image.py` on 2026-11-24; opencv-python-headless 5.0.0.93's
# morphologyEx with a 3 x 3 square of ones. Both masks touch the frame.
@pytest.mark.parametrize(("name", "operation", "pixels", "checksum"), [
    ("dots", "closing", 6105, 4035963439), ("dots", "opening", 2951, 3494466846),
    ("stripes", "closing", 12198, 4043676528), ("stripes", "opening", 583, 361683147),
])  # fmt: skip
def test_morphology_agrees_with_opencv(name, operation, pixels, checksum):
    result = morphology(MASKS[name], operation)
    assert result.sum() == pixels
    assert zlib.crc32(result.astype(np.uint8).tobytes()) == checksum


def slow_square(mask: np.ndarray, grow: bool) -> np.ndarray:
    """Dilation (grow) or erosion with a 3 x 3 square; outside, a pixel has no say."""
    result = np.zeros_like(mask)
    for y, x in np.ndindex(mask.shape):
        square = mask[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        result[y, x] = square.any() if grow else square.all()
    return result


@pytest.mark.parametrize(("shape", "share"), [((14, 17), 0.4), ((14, 17), 0.9), ((1, 9), 0.4), ((2, 2), 0.7)])
def test_morphology_equals_a_slow_loop(shape, share):
    mask = np.random.default_rng(6).random(shape) < share
    kept = mask.copy()
    closed = slow_square(slow_square(mask, grow=True), grow=False)
    opened = slow_square(slow_square(mask, grow=False), grow=True)
    for operation, expected in (("closing", closed), ("opening", opened), ("none", mask)):
        np.testing.assert_array_equal(morphology(mask, operation), expected)
    np.testing.assert_array_equal(mask, kept)  # the argument stays as it was


def test_opencv_grey_by_hand():
    """(9798 R + 19235 G + 3735 B + 16384) / 2^15, rounded down; the weights add up to 2^15."""
    image = np.random.default_rng(8).integers(0, 256, (60, 70, 3), dtype=np.uint8)
    for colours in (image, CORNERS):
        found = grey(colours, "opencv")
        r, g, b = np.moveaxis(colours.astype(np.float64), 2, 0)
        np.testing.assert_array_equal(found, np.floor((9798 * r + 19235 * g + 3735 * b) / 32768 + 0.5))
        assert found.dtype == np.uint8
        assert np.abs(found.astype(int) - grey(colours)).max() <= 1
    assert (grey(image, "opencv") != grey(image)).any()


# Sourced: printed by `PYTHONPATH=tools python tools/sources/image.py` on 2026-11-24; opencv-python-headless 5.0.0.93's
# cvtColor with RGB2GRAY of the three images as red, green and blue.
def test_opencv_grey_agrees_with_opencv():
    found = grey(np.stack(list(PICTURES.values()), axis=2).astype(np.uint8), "opencv")
    assert found.sum(dtype=int) == 1026376 and zlib.crc32(found.tobytes()) == 3885710269
