"""Perlin gradient noise, its rotation and threshold.

K. Perlin, "Improving noise", SIGGRAPH 2002 (the fade polynomial); as anomaly masks: V. Zavrtanik et al., "DRAEM",
ICCV 2021, section 3.3. `draw_perlin` draws all random numbers; the rest is pure.
"""

import math

import numpy as np
from PIL import Image


def draw_perlin(rng: np.random.Generator, shape: tuple[int, int], min_exponent: int = 0,
                max_exponent: int = 5) -> np.ndarray:  # fmt: skip
    """Draws directions of gradients at the corners of a lattice of 2^i x 2^j cells: (2^i + 1, 2^j + 1), in radians.

    i and j are independent and uniform, `min_exponent` and `max_exponent` included. A cell is at least 2 pixels wide,
    as finer noise would be sampled at its zeros only: this lowers `max_exponent` along a side of `shape` (H, W) of less
    than 2^(max_exponent + 1) pixels.
    """
    limits = [min(max_exponent, int(math.log2(max(side, 2))) - 1) for side in shape]
    rows, columns = (2 ** int(rng.integers(min(min_exponent, limit), limit + 1)) for limit in limits)
    return rng.uniform(0.0, 2.0 * math.pi, size=(rows + 1, columns + 1))


def perlin(angles: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Computes gradient noise times sqrt(2); zero at the lattice points, (rows + 1, columns + 1) directions `angles`.

    A pixel at (u, v) in the lattice sums over the corners (a, b) of its cell, g their unit gradients:

        n = sqrt(2) sum_ab w(u - a) w(v - b) (g_ab . (u - a, v - b)),   w(t) = 1 - (6 |t|^5 - 15 |t|^4 + 10 |t|^3)

    Row y of H stands at u = y rows / H, also where rows does not divide H; where it does, this is the classic noise
    with H / rows pixels a cell. The noise is (H, W) float32 in [-1, 1].
    """
    rows, columns = (points - 1 for points in angles.shape)
    g_u, g_v = np.cos(angles), np.sin(angles)
    # The sum over a first, at the lattice's columns only.
    g_u = sum(moment[:, None] * g_u[a] for a, _, moment in _corners(shape[0], rows))
    g_v = sum(weight[:, None] * g_v[a] for a, weight, _ in _corners(shape[0], rows))
    noise = sum(weight * g_u[:, b] + moment * g_v[:, b] for b, weight, moment in _corners(shape[1], columns))
    return (math.sqrt(2.0) * noise).astype(np.float32)


def _corners(length: int, cells: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Returns a, w(t - a) and (t - a) w(t - a) along one axis, for the lower, then the upper corner a of each cell."""
    pixel = np.arange(length)
    # Whole numbers up to the last division: a pixel on a lattice point has t = 0 exactly.
    cell, t = pixel * cells // length, (pixel * cells % length) / length
    fade = t * t * t * (t * (t * 6 - 15) + 10)
    return [(cell, 1 - fade, t * (1 - fade)), (cell + 1, fade, (t - 1) * fade)]


def threshold(noise: np.ndarray, level: float = 0.5) -> np.ndarray:
    """Thresholds noise (H, W): a mask (H, W) float32, 1 where the noise is above `level`."""
    return (noise > level).astype(np.float32)


def rotate(array: np.ndarray, degrees: float) -> np.ndarray:
    """Rotates an array counter-clockwise, as seen on a screen, about its centre; bilinear, same size.

    A pixel from outside the array is 0; in the last half pixel before that the edge repeats. The array is (H, W) or
    (H, W, C); uint8 stays so, rounded to the nearest; other types become float32.
    """
    if array.ndim == 3:
        return np.stack([rotate(array[..., i], degrees) for i in range(array.shape[2])], axis=2)
    image = Image.fromarray(np.ascontiguousarray(array, dtype=np.float32))  # Pillow would truncate 8-bit values
    rotated = np.array(image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=0))
    return np.rint(rotated).astype(np.uint8) if array.dtype == np.uint8 else rotated
