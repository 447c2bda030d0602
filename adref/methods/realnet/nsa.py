"""NSA: patches of another normal image, resized and blended in by Poisson editing.

H. Schlueter, J. Tan, B. Hou, B. Kainz, "Natural Synthetic Anomalies for Self-Supervised Anomaly Detection and
Localization", ECCV 2022, with the constants and rules of its authors' code. `draw_nsa` draws the random numbers, `nsa`
applies them. Differences from that code: a patch is never cut at the frame; Poisson's equation is solved on the
rectangle, unlike OpenCV's seamlessClone; nothing is rounded to 8 bits.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy
import torch
import torch.nn.functional as F
from numpy.random import Generator

from adref.ops.patches import ObjectPixels, draw_gamma_size
from adref.ops.poisson import poisson_blend

TRIES = 200  # attempts at each position; then the patch is left out
LEAST_SIDE = 7  # pixels of a patch's shorter side: the label's median filter erases smaller patches
LEAST_CHANGE = 1.0  # mean absolute change of the channels, of 255, above which a pixel is labelled
OBJECT_MEDIAN, LABEL_MEDIAN = 7, 5  # sides of the median filters, odd


class NSARule(NamedTuple):
    """The constants of a category; the defaults, the widest bounds and no condition, are for unknown categories."""

    height: tuple[float, float] = (0.03, 0.4)  # bounds of half of a patch's height, in heights of the image
    width: tuple[float, float] = (0.03, 0.4)  # bounds of half of its width, in widths
    patches: int = 3  # at most
    scale: tuple[float, float] = (0.7, 1.3)  # bounds of the factor by which a patch is resized
    background: tuple[float, float] | None = None  # grey b and threshold, of 255: object where |grey - b| > threshold
    least_object: float = 0.0  # with a background: share of object pixels that a patch must exceed
    least_overlap: float = 0.25  # with a background: share of the patch's object that must lie on object
    mixed: bool = False  # the larger in magnitude of both images' gradients instead of the patch's


# By the category's name in MVTec AD.
NSA_RULES: dict[str, NSARule] = {
    "bottle": NSARule(background=(200, 60), least_object=0.7),
    "cable": NSARule((0.05, 0.4), (0.05, 0.4)),
    "capsule": NSARule((0.03, 0.15), (0.03, 0.4), background=(200, 60), least_object=0.7),
    "hazelnut": NSARule((0.03, 0.35), (0.03, 0.35), background=(20, 20), least_object=0.7),
    "metal_nut": NSARule(background=(20, 20), least_object=0.5),
    "pill": NSARule((0.03, 0.2), (0.03, 0.4), background=(20, 20), least_object=0.7),
    "screw": NSARule((0.03, 0.12), (0.03, 0.12), patches=4, background=(200, 60), least_object=0.5),
    "toothbrush": NSARule((0.03, 0.4), (0.03, 0.2), background=(20, 20), least_object=0.25),
    "transistor": NSARule(),
    "zipper": NSARule((0.03, 0.4), (0.03, 0.2), patches=4, background=(200, 60), least_object=0.7),
    **dict.fromkeys(("carpet", "grid", "leather", "tile", "wood"), NSARule(patches=4, scale=(0.5, 2.0), mixed=True)),
}


class NSAPatch(NamedTuple):
    """The random numbers of one patch; rows and columns in pixels."""

    source: tuple[int, int]  # top and left in the other image
    size: tuple[int, int]  # height and width there
    resized: tuple[int, int]  # height and width in the corrupted image
    place: tuple[int, int]  # top and left in the corrupted image


def object_pixels(image: np.ndarray, background: tuple[float, float] | None) -> np.ndarray:
    """Finds the pixels far from the background's grey: (3, H, W) in [0, 1] -> bool (H, W), median filtered."""
    if background is None:
        return np.ones(image.shape[1:], bool)
    far = np.abs(255 * image.mean(axis=0, dtype=np.float64) - background[0]) > background[1]
    return median(far, OBJECT_MEDIAN)


def draw_nsa(rng: Generator, image: np.ndarray, other: np.ndarray, rule: NSARule = NSARule()) -> list[NSAPatch]:
    """Draws the patches that `image` gets from `other`: the first always, each further one with probability 1/2.

    A patch of the size of `draw_gamma_size` is resized by N(1, 0.5^2), clipped to `rule.scale`. Source and place are
    uniform, and drawn again while the rule refuses them.
    """
    target, pixels = object_pixels(image, rule.background), ObjectPixels(object_pixels(other, rule.background))
    drawn = (draw_patch(rng, target, pixels, rule) for _ in range(1 + int(rng.binomial(rule.patches - 1, 0.5))))
    return [patch for patch in drawn if patch is not None]


def draw_patch(rng: Generator, target: np.ndarray, pixels: ObjectPixels, rule: NSARule) -> NSAPatch | None:
    """Draws one patch, None if there is no place for it; `target` (H, W) and `pixels` are the objects of both images.

    The rule's bounds of half a side bound the whole resized side, as in the authors' code.
    """
    shape, shares = target.shape, draw_gamma_size(rng, rule.height, rule.width)
    size = tuple(min(max(round(share * n), LEAST_SIDE), n) for share, n in zip(shares, shape))
    factor = float(np.clip(rng.normal(1.0, 0.5), *rule.scale))
    limits = [np.clip((low * n, high * n), LEAST_SIDE, n) for (low, high), n in zip(rule[:2], shape)]
    height = np.clip(factor * size[0], *limits[0])
    width = np.clip(height / size[0] * size[1], *limits[1])
    height = np.clip(width / size[1] * size[0], *limits[0])  # the width may have met a limit
    resized = (round(float(height)), round(float(width)))
    # Without a background everything is object, and every corner is accepted.
    source = draw_corner(rng, size, shape, lambda corner: pixels.share(*corner, *size) > rule.least_object)
    if source is None:
        return None
    moved = resize(pixels.mask[None][box(source, size)], resized)[0] >= 0.5
    least = rule.least_overlap * np.count_nonzero(moved)
    place = draw_corner(rng, resized, shape, lambda c: np.count_nonzero(moved & target[None][box(c, resized)]) > least)
    return None if place is None else NSAPatch(source, size, resized, place)


def draw_corner(rng: Generator, size: tuple, shape: tuple, accepts: Callable[[tuple], bool]) -> tuple[int, int] | None:
    """Draws top and left of a rectangle in an image of `shape`, uniform over those accepted; None after `TRIES`."""
    for _ in range(TRIES):
        corner = tuple(int(rng.integers(n - side + 1)) for side, n in zip(size, shape))
        if accepts(corner):
            return corner
    return None


def nsa(image: np.ndarray, other: np.ndarray, patches: Sequence[NSAPatch],
        rule: NSARule = NSARule()) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Blends patches of `other` into `image`, (3, H, W) in [0, 1], which keeps its colours along a patch's border.

    Returns corrupted (3, H, W) of `image`'s dtype, with an empty mask a copy of it, and the mask (H, W), float32 in
    {0, 1}: visible changes where a patch or the image under it is object. Where patches overlap, the last one decides.
    """
    if image.ndim != 3 or image.shape[0] != 3 or image.shape != other.shape:
        raise ValueError(f"expected (3, H, W) in [0, 1] twice, got {image.shape} and {other.shape}")
    corrupted, labelled = image.astype(np.float64), np.zeros(image.shape[1:], bool)
    target, source = (object_pixels(picture, rule.background) for picture in (image, other))
    for patch in patches:
        values, there = resize(other[box(patch.source, patch.size)], patch.resized), box(patch.place, patch.resized)
        blend = poisson_blend(values, corrupted[there], np.ones(patch.resized, bool), mixed=rule.mixed)
        corrupted[there] = np.clip(blend.values, 0, 1)
        moved = resize(source[None][box(patch.source, patch.size)], patch.resized)[0] >= 0.5
        labelled[there[1:]] = target[there[1:]] | moved
    mask = median(labelled & (255 * np.abs(corrupted - image).mean(axis=0) > LEAST_CHANGE), LABEL_MEDIAN)
    return (corrupted.astype(image.dtype) if mask.any() else image.copy()), mask.astype(np.float32)


def box(corner: tuple[int, int], size: tuple[int, int]) -> tuple[slice, slice, slice]:
    """Returns the index of a rectangle in an image (C, H, W)."""
    return slice(None), *(slice(start, start + side) for start, side in zip(corner, size))


def resize(patch: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes (C, h, w) to (C, *size) float64, bilinear with half-pixel centres, no antialias."""
    values = torch.from_numpy(patch.astype(np.float64))[None]
    return F.interpolate(values, size, mode="bilinear", align_corners=False)[0].numpy()


def median(mask: np.ndarray, side: int) -> np.ndarray:
    """Filters a bool (H, W) by the median of a square around each pixel; the outermost pixels are repeated."""
    return scipy.ndimage.uniform_filter(mask.astype(np.float64), side, mode="nearest") > 0.5
