"""SRDAD's anomalies: altered patches of the object, blended in elsewhere on it (equations 1 to 5)."""

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy
from torch import Tensor

from adref.method import Sources
from adref.methods.srdad.options import Options
from adref.ops import patches
from adref.ops.image import frame_share, grey, morphology, otsu
from adref.ops.poisson import poisson_blend

SCALE, BRIGHTNESS = (0.8, 1.2), 0.2  # equations 3 and 4: s from U(0.8, 1.2), delta from U(-0.2, 0.2)

# Guesses of this code where the paper is silent; see DEVIATIONS.
SEPARABILITY = 0.75  # median of Otsu's eta, below which auto takes the full image
FRAME_SHARES = (0.2, 0.8)  # shares of the frame on the brighter side, between which auto takes the full image
LEAST_OBJECT = 64  # pixels, below which the full image is taken
# of a patch's sides, in pixels of an image of side 256
LOGNORMAL = {"median": 28.0, "sigma": 0.75, "limits": (4.0, 128.0), "aspect_sigma": 0.4, "aspect_limit": 3.0,
             "longest": 160.0}  # fmt: skip
THIN = {"aspect_sigma": 1.2, "aspect_limit": 12.0}
RIM = 3  # pixels by which a patch is cut larger: the warp takes one a side in all, dR up to one on each

# NSA's code.
MOST_PATCHES = (3, 4)  # n of N = 1 + Binomial(n - 1, 0.5), on an object and on a full image
GAMMA_LIMITS = (0.03, 0.4)  # of half a patch's side, as a share of the image's
SOURCE_SHARE, PLACE_SHARE = 0.5, 0.25  # least shares of a patch on the object where it is cut, and where it is set in
TRIES = 200  # draws of a place before a patch is skipped
# Side of Otsu's threshold on which MVTec AD's objects lie, by category, from NSA's background settings.
MVTEC_OBJECTS = {
    **dict.fromkeys(("bottle", "capsule", "screw", "zipper"), "dark"),
    **dict.fromkeys(("hazelnut", "metal_nut", "pill", "toothbrush"), "bright"),
    **dict.fromkeys(("cable", "transistor", "carpet", "grid", "leather", "tile", "wood"), "full")}  # fmt: skip


def object_side(images: Sequence[Tensor], category: str, options: Options) -> str:
    """Decides on which side of Otsu's threshold the objects of a category are: "bright", "dark" or "full".

    "auto" measures the frame, 5 pixels wide, of every training image: if almost all of it is on one side, that side is
    the ground, else the full image is taken. MVTec AD's names have their side, unless the frames show the opposite.
    """
    if options.anomaly == "draem":  # needs no object
        return "full"
    if options.object_mask != "auto":
        return options.object_mask
    shares, separabilities = [], []
    for image in images:
        values = grey(image.permute(1, 2, 0).numpy(), "luma")
        found = otsu(values)
        shares.append(frame_share(values > found.threshold))
        separabilities.append(found.separability)
    share, (low, high) = np.mean(shares), FRAME_SHARES
    side = "dark" if share > high else "bright"
    if low <= share <= high or np.median(separabilities) < SEPARABILITY:
        side = "full"
    known = MVTEC_OBJECTS.get(category, side)
    return side if {side, known} == {"dark", "bright"} else known


def object_mask(image: np.ndarray, options: Options, polarity: str) -> np.ndarray:
    """Segments the object by Otsu's threshold and closes its mask M (equations 1 and 2).

    The image is (3, H, W) in [0, 1], M (H, W) bool, of 64 pixels or more (fewer only in a smaller image); `polarity`
    is what `object_side` returns.
    """
    if polarity not in ("bright", "dark", "full"):
        raise ValueError(f"expected bright, dark or full (Sources.statistics), got {polarity!r}")
    everything = np.ones(image.shape[1:], bool)
    if polarity == "full":
        return everything
    values = grey(np.rint(image.transpose(1, 2, 0) * 255).astype(np.uint8), "luma")
    bright = values > otsu(values).threshold
    mask = morphology(bright if polarity == "bright" else ~bright, options.mask_morphology)
    return mask if mask.sum() >= LEAST_OBJECT else everything


def new_notes(mask: np.ndarray, count: int) -> dict:
    """Makes the notes of an example with `count` patches on an object's mask, nothing counted yet."""
    return {"object": mask, "patches": count, "no_source": 0, "no_place": 0, "too_small": 0, "solve_milliseconds": 0.0}


def natural_anomaly(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, options: Options,
                    sources: Sources) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Cuts out patches, alters them and blends them in elsewhere (equations 3 to 5), in float64.

    The image is (3, H, W) in [0, 1], the mask M (H, W) bool, not empty. Returns the anomalous image, equal to the
    given one wherever no patch lies, and Y (H, W) bool; appends counts to `sources.notes`.
    """
    pixels, blended, covered = patches.ObjectPixels(mask), image.copy(), np.zeros(mask.shape, bool)
    count = 1 + int(rng.binomial(MOST_PATCHES[int(mask.all())] - 1, 0.5))  # N
    notes = new_notes(mask, count)
    for _ in range(count):
        drawn = draw_patch(image, rng, pixels, options, sources)
        if isinstance(drawn, str):
            notes[drawn] += 1
            continue
        (values, support), corner = drawn
        in_image, in_patch = patches.overlap(corner, support.shape, mask.shape)
        region = support[in_patch]
        if options.object_constraint == "clip_region":
            region = region & mask[in_image]
        target, source = blended[(slice(None), *in_image)], values[(slice(None), *in_patch)]
        began = time.perf_counter()
        result = poisson_blend(source, target, region, stiffness=options.poisson_lambda, mixed=False)  # equation 5
        notes["solve_milliseconds"] += 1000 * (time.perf_counter() - began)
        notes["too_small"] += not result.solved.any()
        target[:, result.solved] = np.clip(result.values[:, result.solved], 0, 1)
        covered[in_image] |= result.solved
    blended = np.where(mask, blended, image)
    covered &= mask
    if options.label == "changed":
        covered &= np.abs(blended - image).mean(axis=0) > options.visible / 255
        side = 2 * round((5 * min(mask.shape) / 256 - 1) / 2) + 1  # 5 pixels of 256, odd
        covered = scipy.ndimage.median_filter(covered, size=side, mode="nearest") & mask
    if sources.notes is not None:
        sources.notes.append(notes)
    return (blended if covered.any() else image), covered


def draw_patch(image: np.ndarray, rng: np.random.Generator, pixels: patches.ObjectPixels, options: Options,
               sources: Sources) -> tuple[patches.Warped, tuple[int, int]] | str:  # fmt: skip
    """Draws an altered patch and the top and left of its new place; "no_source" or "no_place" where there is none."""
    size = draw_size(rng, image.shape[1:], options, sources)
    source = patches.draw_place(rng, pixels, np.ones(size, bool), SOURCE_SHARE, TRIES)
    if source is None:
        return "no_source"
    patch = image[:, source[0] : source[0] + size[0], source[1] : source[1] + size[1]]
    altered = alter(patch, draw_alteration(rng, patch.shape, options))
    place = patches.draw_place(rng, pixels, altered.support, PLACE_SHARE, TRIES)
    return "no_place" if place is None else (altered, place)


def draw_size(rng: np.random.Generator, shape: tuple[int, int], options: Options, sources: Sources) -> tuple[int, int]:
    """Draws height and width to cut in an image of this shape, RIM more than the region's; at most the image's."""
    if options.patch_size == "nsa_gamma":
        units, size = shape, patches.draw_gamma_size(rng, height=GAMMA_LIMITS, width=GAMMA_LIMITS)
    elif options.patch_size == "histogram":
        units, size = [side / 256 for side in shape], patches.draw_listed_size(rng, sources.sizes, jitter=0.1)
    else:
        form = LOGNORMAL | (THIN if options.patch_size == "thin" else {})
        units, size = [min(shape) / 256] * 2, patches.draw_lognormal_size(rng, **form)
    return tuple(min(max(round(unit * n), 1) + RIM, side) for unit, n, side in zip(units, size, shape))


class Alteration(NamedTuple):
    """Holds the random numbers of one patch (equations 3 and 4)."""

    noise: np.ndarray | float  # (3, h, w) or (1, h, w), added
    factor: float  # of the brightness
    offset: float
    angle: float  # radians, counter-clockwise
    scale: float


def draw_alteration(rng: np.random.Generator, shape: tuple[int, ...], options: Options) -> Alteration:
    """Draws noise, brightness, rotation and scale for a patch (3, h, w) (equations 3 and 4).

    All numbers are drawn whether or not they are used, so that a reading changes no later draw.
    """
    o, level = options, options.noise_level
    levels = {"fixed": level, "variance": math.sqrt(level), "uniform": rng.uniform(0.0, level),
              "normal": abs(rng.normal(0.0, level))}  # fmt: skip
    noise, delta = levels[o.noise] * rng.standard_normal(shape), rng.uniform(-BRIGHTNESS, BRIGHTNESS)
    angle, scale = math.radians(rng.uniform(*o.rotation)), rng.uniform(*SCALE)
    first, second, third = rng.random(3) < 0.5
    if o.noise_channels == "alike" or (o.noise_channels == "half" and third):
        noise = noise[:1]
    if o.transformations != "all":
        noise, delta = (noise, 0.0) if first else (0.0, delta)
    if o.transformations == "one_each":
        angle, scale = (angle, 1.0) if second else (0.0, scale)
    factor, offset = (1 + delta, 0.0) if o.brightness_mode == "multiply" else (1.0, delta)
    return Alteration(noise, factor, offset, angle, scale)


def alter(patch: np.ndarray, numbers: Alteration) -> patches.Warped:
    """Changes brightness and noise of a patch (3, h, w), then warps it, which smooths the noise (equations 4, 3)."""
    return patches.warp(patch * numbers.factor + numbers.offset + numbers.noise, numbers.angle, numbers.scale)
