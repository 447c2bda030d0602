"""NSA: patches of another normal picture, resized, blended in by Poisson editing.

H. Schlueter, J. Tan, B. Hou, B. Kainz, "Natural Synthetic Anomalies for Self-Supervised Anomaly Detection and
Localization", ECCV 2022; the rules of each category are those of its authors' code. `draw_nsa` spends the random
numbers, the rest is pure. Pictures are numpy arrays (3, H, W) in [0, 1]. What differs from that code: a patch is cut
whole, not cut off at the frame; Poisson's equation is solved for the rectangle, not as OpenCV's seamlessClone has it;
nothing is rounded to 8 bits.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy
import torch
import torch.nn.functional as F

from adref.ops.patches import ObjectPixels, draw_gamma_size
from adref.ops.poisson import poisson_blend


class NSARule(NamedTuple):
    """The constants of a category; the defaults are for one that is unknown."""

    height: tuple[float, float] = (0.03, 0.4)  # bounds of half of a patch's height, in heights of the picture
    width: tuple[float, float] = (0.03, 0.4)  # of half of its width, in widths
    patches: int = 3  # at most
    scale: tuple[float, float] = (0.7, 1.3)  # bounds of the factor by which a patch is resized
    background: tuple[float, float] | None = None  # grey b and threshold (of 255): |grey - b| > threshold is object
    least_object: float = 0.0  # a patch has more than this share of object, if there is a background
    least_overlap: float = 0.25  # and more than this share of its object comes to lie on object
    mixed: bool = False  # mixed gradients, or the patch's own


# By the name of the category in MVTec AD.
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

    source: tuple[int, int]  # top and left in the other picture
    size: tuple[int, int]  # height and width there
    resized: tuple[int, int]  # height and width where it is pasted
    place: tuple[int, int]  # top and left there


def object_pixels(image: np.ndarray, background: tuple[float, float] | None, window: int = 7) -> np.ndarray:
    """Where the mean of the channels is far from the background, median filtered: (3, H, W) -> bool (H, W).

    Args:
        image: (3, H, W) in [0, 1].
        background: see `NSARule`; None: everything is object.
        window: side of the median filter, odd.
    """
    if background is None:
        return np.ones(image.shape[1:], bool)
    far = np.abs(255 * image.mean(axis=0, dtype=np.float64) - background[0]) > background[1]
    return _median(far, window)


def draw_nsa(
    rng: np.random.Generator,
    image: np.ndarray,
    other: np.ndarray,
    rule: NSARule = NSARule(),
    tries: int = 200,
    bounds: float = 1.0,
    least: int = 7,
) -> list[NSAPatch]:
    """Draws the patches of one picture: the first always, each further one with probability 1/2.

    A patch of the size of `draw_gamma_size`, anywhere in `other`, is resized by N(1, 0.5^2), clipped to `rule.scale`.
    Both its places are uniform, and drawn again while the rule refuses them.

    Args:
        rng: the stream of this sample.
        image: (3, H, W) in [0, 1], which gets the patches.
        other: alike, which gives them.
        rule: of the category.
        tries: of each place; after which the patch is left out.
        bounds: the resized sides are clipped to the rule's bounds times this, the aspect being kept where both fit. 1
            as the authors' code has it, where bounds of halves bound the whole; 2: bounds of the whole.
        least: pixels of the shortest side: of a smaller patch the label's median filter leaves nothing.
    """
    if image.ndim != 3 or image.shape[0] != 3 or image.shape != other.shape:
        raise ValueError(f"expected (3, H, W) in [0, 1] twice, got {image.shape} and {other.shape}")
    target, pixels = object_pixels(image, rule.background), ObjectPixels(object_pixels(other, rule.background))
    count = 1 + int(rng.binomial(rule.patches - 1, 0.5))
    drawn = [_draw_patch(rng, target, pixels, rule, tries, bounds, least) for _ in range(count)]
    return [patch for patch in drawn if patch is not None]


def _draw_patch(
    rng: np.random.Generator,
    target: np.ndarray,
    pixels: ObjectPixels,
    rule: NSARule,
    tries: int,
    bounds: float,
    least: int,
) -> NSAPatch | None:
    """One patch, or None where no place is found; target (H, W) bool and pixels: where both pictures have object."""
    shape, shares = target.shape, draw_gamma_size(rng, rule.height, rule.width)
    size = tuple(min(max(round(share * n), least), n) for share, n in zip(shares, shape))
    factor = float(np.clip(rng.normal(1.0, 0.5), *rule.scale))
    limits = [np.clip((bounds * low * n, bounds * high * n), least, n) for (low, high), n in zip(rule[:2], shape)]
    height = np.clip(factor * size[0], *limits[0])
    width = np.clip(height / size[0] * size[1], *limits[1])
    height = np.clip(width / size[1] * size[0], *limits[0])  # the width may have met a limit
    resized = (round(float(height)), round(float(width)))

    def holds_object(corner: tuple[int, int]) -> bool:
        return rule.background is None or pixels.share(*corner, *size) > rule.least_object

    source = _draw_corner(rng, size, shape, holds_object, tries)
    if source is None:
        return None
    moved = _resize(pixels.mask[None][_box(source, size)].astype(np.float64), resized)[0] >= 0.5

    def meets_object(corner: tuple[int, int]) -> bool:
        common = np.count_nonzero(target[None][_box(corner, resized)] & moved)
        return rule.background is None or common > rule.least_overlap * np.count_nonzero(moved)

    place = _draw_corner(rng, resized, shape, meets_object, tries)
    return None if place is None else NSAPatch(source, size, resized, place)


def _draw_corner(
    rng: np.random.Generator,
    size: tuple[int, int],
    shape: tuple[int, int],
    accepts: Callable[[tuple[int, int]], bool],
    tries: int,
) -> tuple[int, int] | None:
    """Top and left of a rectangle inside the picture, uniform over those that are accepted."""
    for _ in range(tries):
        corner = tuple(int(rng.integers(n - side + 1)) for side, n in zip(size, shape))
        if accepts(corner):
            return corner
    return None


def nsa(
    image: np.ndarray,
    other: np.ndarray,
    patches: Sequence[NSAPatch],
    mixed: bool = False,
    least_change: float = 1.0,
    window: int = 5,
) -> tuple[np.ndarray, np.ndarray]:
    """Blends the patches in, one after the other; the outermost pixels of each keep the picture's colours.

    Args:
        image: (3, H, W) in [0, 1].
        other: alike, where the patches are cut.
        patches: from `draw_nsa`.
        mixed: the larger in magnitude of both pictures' differences (`NSARule.mixed`), or those of the patch.
        least_change: the label is where the mean absolute change of the channels is above this (of 255),
        window: after a median filter with this side, odd.

    Returns:
        corrupted (3, H, W), of `image`'s dtype; mask (H, W) float32 in {0, 1}. Where the mask is empty, `image` itself
        is returned, as a copy.
    """
    if image.ndim != 3 or image.shape[0] != 3 or image.shape != other.shape:
        raise ValueError(f"expected (3, H, W) in [0, 1] twice, got {image.shape} and {other.shape}")
    corrupted = image.astype(np.float64)
    for patch in patches:
        values, there = _resize(other[_box(patch.source, patch.size)], patch.resized), _box(patch.place, patch.resized)
        blend = poisson_blend(values, corrupted[there], np.ones(patch.resized, bool), mixed=mixed)
        corrupted[there] = np.clip(blend.values, 0, 1)
    mask = _median(255 * np.abs(corrupted - image).mean(axis=0) > least_change, window)
    return (corrupted.astype(image.dtype) if mask.any() else image.copy()), mask.astype(np.float32)


def _box(corner: tuple[int, int], size: tuple[int, int]) -> tuple[slice, slice, slice]:
    """The index of a rectangle in a picture (C, H, W)."""
    return slice(None), *(slice(start, start + side) for start, side in zip(corner, size))


def _resize(patch: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear with half-pixel centres, no antialias: (C, h, w) -> (C, *size), float64."""
    values = torch.from_numpy(patch.astype(np.float64))[None]
    return F.interpolate(values, size, mode="bilinear", align_corners=False)[0].numpy()


def _median(mask: np.ndarray, window: int) -> np.ndarray:
    """The majority in a square around each pixel of a bool (H, W), whose outermost pixels are repeated."""
    counts = scipy.ndimage.correlate1d(mask.astype(np.int32), np.ones(window), axis=0, mode="nearest")
    return 2 * scipy.ndimage.correlate1d(counts, np.ones(window), axis=1, mode="nearest") > window**2
