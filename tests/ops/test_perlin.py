"""Perlin noise against a slow loop and its statistics; rotation against a slow loop."""

import math

import numpy as np
import pytest

from adref.ops.perlin import draw_perlin, perlin, rotate, threshold


def slow_perlin(angles: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Perlin's noise pixel by pixel: four dot products, faded between."""

    def fade(t):
        return 6 * t**5 - 15 * t**4 + 10 * t**3

    noise = np.zeros(shape)
    for y, x in np.ndindex(shape):
        u, v = y * (angles.shape[0] - 1) / shape[0], x * (angles.shape[1] - 1) / shape[1]
        i, j = math.floor(u), math.floor(v)
        dot = {}
        for a in (i, i + 1):
            for b in (j, j + 1):
                dot[a - i, b - j] = math.cos(angles[a, b]) * (u - a) + math.sin(angles[a, b]) * (v - b)
        upper = dot[0, 0] + fade(u - i) * (dot[1, 0] - dot[0, 0])
        lower = dot[0, 1] + fade(u - i) * (dot[1, 1] - dot[0, 1])
        noise[y, x] = math.sqrt(2) * (upper + fade(v - j) * (lower - upper))
    return noise


@pytest.mark.parametrize(("shape", "cells"), [((16, 64), (1, 32)), ((37, 50), (4, 16))])
def test_noise_equals_a_slow_loop(shape, cells):  # also where the cells do not divide the image
    angles = np.random.default_rng(0).uniform(0, 2 * math.pi, (cells[0] + 1, cells[1] + 1))
    noise = perlin(angles, shape)
    assert noise.dtype == np.float32 and noise.shape == shape
    np.testing.assert_allclose(noise, slow_perlin(angles, shape), rtol=0, atol=1e-7)


def test_noise_is_zero_at_lattice_points_and_reaches_one():
    noise = perlin(draw_perlin(np.random.default_rng(1), (256, 256), 3, 3), (256, 256))
    assert (noise[::32, ::32] == 0).all()
    assert (noise != 0).mean() > 0.99
    inward = np.array([[math.pi / 4, 3 * math.pi / 4], [-math.pi / 4, -3 * math.pi / 4]])
    inward = perlin(inward.T, (256, 256))
    assert inward.max() == pytest.approx(1, abs=1e-6) and np.unravel_index(inward.argmax(), (256, 256)) == (128, 128)


def test_share_of_noise_above_one_half():  # 5.4 % on average, 4.3 % of the masks empty
    rng = np.random.default_rng(2)
    areas = np.array([threshold(perlin(draw_perlin(rng, (256, 256)), (256, 256))).mean() for _ in range(600)])
    assert areas.mean() == pytest.approx(0.054, abs=0.006)
    assert (areas == 0).mean() == pytest.approx(0.043, abs=0.025)  # three standard deviations of a share of 600


def test_lattice_sizes_are_independent_powers_of_two_and_angles_uniform():
    rng = np.random.default_rng(3)
    drawn = [draw_perlin(rng, (256, 256)).shape for _ in range(1200)]
    pairs, counts = np.unique(np.array(drawn) - 1, axis=0, return_counts=True)
    assert {tuple(pair) for pair in pairs.tolist()} == {(2**i, 2**j) for i in range(6) for j in range(6)}
    assert counts.min() > 10 and counts.max() < 65  # 33 expected
    assert {draw_perlin(rng, (256, 256), 2, 3).shape[0] for _ in range(50)} == {5, 9}
    angles = draw_perlin(rng, (256, 256), 5, 5)
    counts, _ = np.histogram(angles, bins=8, range=(0, 2 * math.pi))
    assert counts.sum() == angles.size == 33**2 and counts.min() > 95 and counts.max() < 180  # 136 expected


def test_small_images_get_cells_of_two_pixels_or_more():
    rng = np.random.default_rng(5)
    shapes = np.array([draw_perlin(rng, (16, 64)).shape for _ in range(300)]) - 1
    assert shapes[:, 0].max() == 8 and shapes[:, 1].max() == 32
    for shape in ((1, 1), (3, 2), (1, 300)):
        assert perlin(draw_perlin(rng, shape), shape).shape == shape


@pytest.mark.holds("draem", "Mask")
def test_threshold_is_strict():
    np.testing.assert_array_equal(threshold(np.array([[0.5, 0.51, -1.0]], np.float32)), [[0, 1, 0]])
    np.testing.assert_array_equal(threshold(np.array([[0.5, 0.51, -1.0]], np.float32), 0.6), [[0, 0, 0]])


def slow_rotate(array: np.ndarray, degrees: float) -> np.ndarray:
    """Bilinear rotation about the centre, from the place that each pixel comes from."""
    height, width = array.shape
    rotated = np.zeros(array.shape)
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    for y, x in np.ndindex(array.shape):
        right, down = x - (width - 1) / 2, y - (height - 1) / 2
        # Counter-clockwise with y downwards: the point at (right, down) comes from the one rotated clockwise.
        from_x, from_y = c * right - s * down + (width - 1) / 2, s * right + c * down + (height - 1) / 2
        if not (-0.5 <= from_x < width - 0.5 and -0.5 <= from_y < height - 0.5):
            continue
        i, j = math.floor(from_y), math.floor(from_x)
        rows, columns = np.clip([i, i + 1], 0, height - 1), np.clip([j, j + 1], 0, width - 1)
        p, q = from_y - i, from_x - j
        (a, b), (d, e) = array[np.ix_(rows, columns)].astype(float)
        rotated[y, x] = (1 - p) * ((1 - q) * a + q * b) + p * ((1 - q) * d + q * e)
    return rotated


@pytest.mark.parametrize(("shape", "degrees"), [((21, 21), 33.3), ((16, 27), -71.0)])
def test_rotation_equals_a_slow_loop(shape, degrees):
    rng = np.random.default_rng(6)
    array = rng.random(shape).astype(np.float32)
    expected = slow_rotate(array, degrees)
    assert (expected == 0).any()
    np.testing.assert_allclose(rotate(array, degrees), expected, rtol=0, atol=1e-6)
    colour = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    for channel, rotated in zip(np.moveaxis(colour, 2, 0), np.moveaxis(rotate(colour, degrees), 2, 0)):
        assert np.abs(slow_rotate(channel, degrees) - rotated).max() <= 0.5 + 1e-6


def test_rotation_by_quarter_turns_is_exact():
    array = np.random.default_rng(7).random((9, 9, 2)).astype(np.float32)
    for quarters in range(-2, 4):
        np.testing.assert_array_equal(rotate(array, 90.0 * quarters), np.rot90(array, quarters))
    assert rotate(array, 10.0).flags.writeable and rotate(array[..., 0], 0.0) is not array
    assert rotate(array.astype(np.float64), 5.0).dtype == np.float32
