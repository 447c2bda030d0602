"""Classical image operations: grey values, Otsu's threshold, morphology.

Pictures are numpy arrays with the channels last; masks are bool.
"""

from typing import Literal, NamedTuple

import numpy as np
from scipy import ndimage


def grey(image: np.ndarray, rule: Literal["luma", "mean"] = "luma") -> np.ndarray:
    """One grey value a pixel: uint8 (H, W, 3) -> uint8 (H, W).

    "luma": ITU-R 601, 0.299 R + 0.587 G + 0.114 B, in the 16-bit fixed point of Pillow's mode "L", bit for bit; "mean":
    of the three channels, rounded to the nearest.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or rule not in ("luma", "mean"):
        raise ValueError(f"expected uint8 (H, W, 3), luma or mean; got {image.dtype} {image.shape}, {rule!r}")
    r, g, b = np.moveaxis(image, 2, 0).astype(np.uint32)
    if rule == "luma":
        return ((19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16).astype(np.uint8)
    return ((r + g + b + 1) // 3).astype(np.uint8)


class Otsu(NamedTuple):
    """Otsu's threshold and how well it parts the grey values."""

    threshold: int  # tau: the upper class is grey > tau
    between: float  # sigma_b^2(tau), the variance between the classes
    separability: float  # eta = sigma_b^2(tau) / total variance, in [0, 1]; 0 for a picture of one grey value


def otsu(image: np.ndarray) -> Otsu:
    """The threshold that maximises the variance between two classes of grey values; of several, the first.

    N. Otsu, "A threshold selection method from gray-level histograms", IEEE SMC 1979 (SRDAD, Eq 1). With the histogram
    p, w0 = sum_{i <= t} p_i, m = sum_{i <= t} i p_i and the mean mT,

        sigma_b^2(t) = (mT w0 - m)^2 / (w0 (1 - w0)),   0 where a class is empty.

    Args:
        image: uint8, any shape. Values a < b alone make a plateau from a to b - 1, whose first element is a.
    """
    p = np.bincount(image.ravel(), minlength=256) / image.size
    levels = np.arange(256)
    w0, m = np.cumsum(p), np.cumsum(levels * p)
    spread = w0 * (1 - w0)
    filled = (w0 > 0) & (np.cumsum(p[::-1])[::-1] - p > 0)  # pixels on both sides of t
    between = np.divide((m[-1] * w0 - m) ** 2, spread, out=np.zeros(256), where=filled & (spread > 0))
    # Rounding must not lift a later point of a plateau above its first.
    tau = int(np.argmax(between >= between.max() * (1 - 1e-12)))
    total = float(((levels - m[-1]) ** 2 * p).sum())
    return Otsu(tau, float(between[tau]), min(float(between[tau] / total), 1.0) if total > 0 else 0.0)


def morphology(mask: np.ndarray, operation: Literal["closing", "opening", "none"] = "closing") -> np.ndarray:
    """Closing (dilate, then erode) or opening of a bool (H, W) with a 3 x 3 square, once.

    Pixels outside count as 0 for the dilation and as 1 for the erosion, as in OpenCV: an object that touches the frame
    is not eroded there (as scipy's `binary_closing` would).
    """
    if operation not in ("closing", "opening", "none"):
        raise ValueError(f"expected closing, opening or none, got {operation!r}")
    if operation == "closing":
        return _erode(_dilate(mask))
    return _dilate(_erode(mask)) if operation == "opening" else mask


def _dilate(mask: np.ndarray) -> np.ndarray:
    for axis in (0, 1):
        grown, lower, upper = mask.copy(), *_neighbours(axis)
        grown[lower] |= mask[upper]
        grown[upper] |= mask[lower]
        mask = grown
    return mask


def _erode(mask: np.ndarray) -> np.ndarray:
    return ~_dilate(~mask)


def _neighbours(axis: int) -> tuple[tuple, tuple]:
    """All rows (axis 0) or columns (axis 1) but the last, and all but the first."""
    every = (slice(None),) * axis
    return (*every, slice(None, -1)), (*every, slice(1, None))


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Background that does not reach the frame becomes object; bool (H, W)."""
    return ndimage.binary_fill_holes(mask)
