"""Classical image operations on numpy arrays: grey values, Otsu's threshold, morphology."""

from typing import Literal, NamedTuple

import numpy as np


def grey(image: np.ndarray, rule: Literal["luma", "opencv"] = "luma") -> np.ndarray:
    """Converts to grey values: uint8 (H, W, 3) -> uint8 (H, W).

    "luma": ITU-R 601, 0.299 R + 0.587 G + 0.114 B, in the 16-bit fixed point of Pillow's mode "L", bit for bit;
    "opencv": the same in the 15 bits of OpenCV's cvtColor, bit for bit, which differs by 1 at most.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or rule not in ("luma", "opencv"):
        raise ValueError(f"expected uint8 (H, W, 3), luma or opencv; got {image.dtype} {image.shape}, {rule!r}")
    weights, bits = ((19595, 38470, 7471), 16) if rule == "luma" else ((9798, 19235, 3735), 15)
    # In units of 1 / 2^bits all numbers are integers below 2^24: exact in float32, whose product is the fastest.
    return (image.astype(np.float32) @ (np.float32(weights) / 2**bits) + np.float32(0.5)).astype(np.uint8)


class Otsu(NamedTuple):
    """Otsu's threshold and how well it separates the grey values."""

    threshold: int  # tau: the upper class is grey > tau
    between: float  # sigma_b^2(tau), the variance between the classes
    separability: float  # eta = sigma_b^2(tau) / total variance, in [0, 1]; 0 for an image of one grey value


def otsu(image: np.ndarray) -> Otsu:
    """Finds the threshold that maximises the variance between two classes of grey values; the first of several.

    N. Otsu, "A threshold selection method from gray-level histograms", IEEE SMC 1979. With the histogram p and mean mT,
    w0 = sum_{i <= t} p_i and m = sum_{i <= t} i p_i,

        sigma_b^2(t) = (mT w0 - m)^2 / (w0 (1 - w0)),   0 where a class is empty.

    `image` is uint8 of any shape. With two values a < b only, sigma_b^2 is constant from a to b - 1, and tau is a.
    """
    p, levels = np.bincount(image.ravel(), minlength=256) / image.size, np.arange(256)
    w0, m = np.cumsum(p), np.cumsum(levels * p)
    spread = w0 * (1 - w0)
    filled = (w0 > 0) & (np.cumsum(p[::-1])[::-1] - p > 0)  # neither class is empty
    between = np.divide((m[-1] * w0 - m) ** 2, spread, out=np.zeros(256), where=filled & (spread > 0))
    # Rounding must not lift a later point of a plateau above its first.
    tau = int(np.argmax(between >= between.max() * (1 - 1e-12)))
    total = float(((levels - m[-1]) ** 2 * p).sum())
    return Otsu(tau, float(between[tau]), min(float(between[tau] / total), 1.0) if total > 0 else 0.0)


def morphology(mask: np.ndarray, operation: Literal["closing", "opening", "none"] = "closing") -> np.ndarray:
    """Closes (dilates, then erodes) or opens a bool (H, W) with a 3 x 3 square, once.

    Pixels outside count as 0 for the dilation and as 1 for the erosion, as in OpenCV: an object that touches the frame
    is not eroded there (as scipy's `binary_closing` would).
    """
    if operation not in ("closing", "opening", "none"):
        raise ValueError(f"expected closing, opening or none, got {operation!r}")
    dilate, erode = (np.logical_or, False), (np.logical_and, True)  # what joins a pixel with its neighbours; outside
    for join, outside in {"closing": (dilate, erode), "opening": (erode, dilate), "none": ()}[operation]:
        mask = np.pad(mask, 1, constant_values=outside)
        mask = join(join(mask[:-2], mask[1:-1]), mask[2:])
        mask = join(join(mask[:, :-2], mask[:, 1:-1]), mask[:, 2:])
    return mask


def frame_share(mask: np.ndarray, width: int = 5) -> float:
    """Returns the share of a bool (H, W) that is set within the frame, `width` pixels wide."""
    inner = mask[width:-width, width:-width]
    return float((mask.sum() - inner.sum()) / (mask.size - inner.size))
