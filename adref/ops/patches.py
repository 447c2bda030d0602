"""Rectangular patches of an image: random sizes and places on an object, and a warp that rotates and scales.

The steps of SRDAD's natural anomalies (Scientific Reports 2025, equations 3 to 5); sizes and rules of acceptance after
NSA: H. Schlueter et al., "Natural Synthetic Anomalies for Self-Supervised Anomaly Detection and Localization", ECCV
2022. Only functions named `draw_...` use random numbers. Images are (C, H, W).
"""

import math
from typing import NamedTuple

import numpy as np


def draw_lognormal_size(rng: np.random.Generator, *, median: float, sigma: float, limits: tuple[float, float],
                        aspect_sigma: float, aspect_limit: float, longest: float) -> tuple[float, float]:  # fmt: skip
    """Draws height and width of a patch, not rounded.

    The equivalent side d = exp(N(ln median, sigma^2)) is clipped to `limits`, the aspect a = exp(N(0, aspect_sigma^2))
    to [1 / aspect_limit, aspect_limit]; width = d sqrt(a), height = d / sqrt(a), both clipped to [limits[0], longest].
    """
    d = float(np.clip(math.exp(rng.normal(math.log(median), sigma)), *limits))
    a = float(np.clip(math.exp(rng.normal(0.0, aspect_sigma)), 1 / aspect_limit, aspect_limit))
    return tuple(np.clip((d / math.sqrt(a), d * math.sqrt(a)), limits[0], longest).tolist())


def draw_gamma_size(rng: np.random.Generator, height: tuple[float, float],
                    width: tuple[float, float]) -> tuple[float, float]:  # fmt: skip
    """Draws NSA's shares of height and width: half of each is 0.03 + Gamma(2, scale 0.05), clipped to its limits."""
    half = np.clip(0.03 + rng.gamma(2.0, 0.05, size=2), *zip(height, width))
    return tuple((2 * half).tolist())


def draw_listed_size(rng: np.random.Generator, sizes: np.ndarray, jitter: float) -> tuple[float, float]:
    """Draws a row of `sizes`, (n, 3) height, width and weight, by weight; each side times U(1 - jitter, 1 + jitter)."""
    row = sizes[rng.choice(len(sizes), p=sizes[:, 2] / sizes[:, 2].sum())]
    return tuple((row[:2] * rng.uniform(1 - jitter, 1 + jitter, size=2)).tolist())


class ObjectPixels:
    """Draws pixels of a mask (H, W) bool, not empty, and computes the mask's share of rectangles in constant time."""

    def __init__(self, mask: np.ndarray):
        self.mask, self.places = mask, np.flatnonzero(mask)
        self.table = np.pad(mask, ((1, 0), (1, 0))).astype(np.int64).cumsum(axis=0).cumsum(axis=1)  # summed areas

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """Draws row and column of a pixel of the mask, uniformly."""
        return divmod(int(self.places[rng.integers(len(self.places))]), self.mask.shape[1])

    def share(self, top: int, left: int, height: int, width: int) -> float:
        """Computes the mask's share of a rectangle inside the image."""
        table, bottom, right = self.table, top + height, left + width
        return (table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]) / (height * width)


def draw_place(rng: np.random.Generator, pixels: ObjectPixels, support: np.ndarray, share: float,
               tries: int) -> tuple[int, int] | None:  # fmt: skip
    """Draws top and left of a patch that is centred on the object, then shifted inward to fit the image.

    A patch larger than the image covers all of it: its top or left is negative. At least `share` of the patch's pixels,
    `support` (h, w) bool, lies on the object, `pixels`; None is returned after `tries` draws.
    """
    for _ in range(tries):
        sides = zip(pixels.draw(rng), support.shape, pixels.mask.shape)
        corner = tuple(sorted((0, centre - side // 2, length - side))[1] for centre, side, length in sides)
        in_image, in_patch = overlap(corner, support.shape, pixels.mask.shape)
        if np.count_nonzero(pixels.mask[in_image] & support[in_patch]) >= share * np.count_nonzero(support):
            return corner
    return None


def overlap(corner: tuple[int, int], size: tuple[int, int], shape: tuple[int, int]) -> tuple[tuple, tuple]:
    """Intersects a rectangle with the image: (rows, columns) slices of the image and of the rectangle."""
    starts = [max(place, 0) for place in corner]
    ends = [max(min(place + side, n), start) for place, side, n, start in zip(corner, size, shape, starts)]
    in_image = tuple(slice(start, end) for start, end in zip(starts, ends))
    return in_image, tuple(slice(s - place, e - place) for s, e, place in zip(starts, ends, corner))


class Warped(NamedTuple):
    """Holds a rotated and scaled patch."""

    values: np.ndarray  # (C, h', w') float64, 0 outside the support
    support: np.ndarray  # (h', w') bool: all source pixels of non-zero weight lie inside the patch


def warp(patch: np.ndarray, angle: float, scale: float) -> Warped:
    """Rotates a patch about its centre, counter-clockwise on a screen, and scales it in one bilinear interpolation.

    The canvas has h' = ceil(s (h |cos| + w |sin|)) rows and w' = ceil(s (w |cos| + h |sin|)) columns, s = `scale`;
    pixel centres have integer coordinates, and both centres coincide. `patch` is (C, h, w), its sides at least 2;
    `angle` is in radians.
    """
    (h, w), cos, sin = patch.shape[1:], math.cos(angle), math.sin(angle)
    # Whole numbers up to rounding stay whole: a rotation by 90 degrees must not add a row.
    height = math.ceil(scale * (h * abs(cos) + w * abs(sin)) - 1e-9)
    width = math.ceil(scale * (w * abs(cos) + h * abs(sin)) - 1e-9)
    v, u = np.arange(height)[:, None] - (height - 1) / 2, np.arange(width) - (width - 1) / 2
    y, x = (sin * u + cos * v) / scale + (h - 1) / 2, (cos * u - sin * v) / scale + (w - 1) / 2
    support = (y > -1e-9) & (y < h - 1 + 1e-9) & (x > -1e-9) & (x < w - 1 + 1e-9)
    y, x = np.clip(y[support], 0, h - 1), np.clip(x[support], 0, w - 1)
    row, column = np.minimum(y.astype(np.int64), h - 2), np.minimum(x.astype(np.int64), w - 2)
    a, b = y - row, x - column
    flat, corner = patch.reshape(len(patch), -1), row * w + column
    values = np.zeros((len(patch), height, width))
    upper = (1 - a) * ((1 - b) * flat[:, corner] + b * flat[:, corner + 1])
    values[:, support] = upper + a * ((1 - b) * flat[:, corner + w] + b * flat[:, corner + w + 1])
    return Warped(values, support)
