"""SRDAD's anomalies: altered patches of the object, blended in elsewhere on it (equations 1 to 5); or DRAEM's."""

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy
import torch
from torch import Tensor

from adref.method import Sources
from adref.methods.srdad.options import Options
from adref.ops import patches
from adref.ops.image import frame_share, grey, morphology, otsu
from adref.ops.poisson import poisson_blend
from adref.ops.texture_anomaly import blend, draw_mask, draw_texture
from adref.options import UserError

BRIGHTNESS = 0.2  # equation 4: delta from U(-0.2, 0.2)
SCALE = (0.8, 1.2)  # equation 4: s from U(0.8, 1.2)

# Guesses of this code where the paper is silent; see DEVIATIONS.
SEPARABILITY = 0.75  # Otsu's eta below which auto takes the full image
OBJECT_SHARES = (0.03, 0.97)  # shares of the object outside which auto takes the full image
LEAST_OBJECT = 64  # pixels, below which the full image is taken
# of a patch's sides, in pixels of an image of side 256
LOGNORMAL = {"median": 28.0, "sigma": 0.75, "limits": (4.0, 128.0), "aspect_sigma": 0.4, "aspect_limit": 3.0,
             "longest": 160.0}  # fmt: skip

# NSA's code.
MOST_PATCHES = (3, 4)  # n of N = 1 + Binomial(n - 1, 0.5), on an object and on a full image
GAMMA_LIMITS = (0.03, 0.4)  # of half a patch's side, as a share of the image's
SOURCE_SHARE = 0.5  # least share of a patch that lies on the object where it is cut
PLACE_SHARE = 0.25  # and where it is set in
TRIES = 200  # draws of a place before a patch is skipped
# Side of Otsu's threshold on which MVTec AD's objects lie, by category, from NSA's background settings.
MVTEC_OBJECTS = {
    **dict.fromkeys(("bottle", "capsule", "screw", "zipper"), "dark"),
    **dict.fromkeys(("hazelnut", "metal_nut", "pill", "toothbrush"), "bright"),
    **dict.fromkeys(("cable", "transistor", "carpet", "grid", "leather", "tile", "wood"), "full"),
}


def natural_anomaly(
    image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, options: Options, sources: Sources
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts out patches, alters them and blends them in elsewhere (equations 3 to 5), in float64.

    Args:
        image: (3, H, W) in [0, 1].
        mask: M, (H, W) bool, not empty.
        rng, options, sources: as in `corrupt`.

    Returns:
        the anomalous image (3, H, W), equal to `image` wherever no patch lies; Y (H, W) bool.
    """
    pixels, blended, covered = patches.ObjectPixels(mask), image.copy(), np.zeros(mask.shape, bool)
    count = 1 + int(rng.binomial(MOST_PATCHES[int(mask.all())] - 1, 0.5))  # N
    notes = {"object": mask, "patches": count, "no_source": 0, "no_place": 0, "too_small": 0, "solve_milliseconds": 0.0}
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
        target, began = blended[(slice(None), *in_image)], time.perf_counter()
        source, stiffness = values[(slice(None), *in_patch)], options.poisson_lambda
        result = poisson_blend(source, target, region, stiffness=stiffness, mixed=False)  # equation 5
        notes["solve_milliseconds"] += 1000 * (time.perf_counter() - began)
        notes["too_small"] += not result.solved.any()
        target[:, result.solved] = np.clip(result.values[:, result.solved], 0, 1)
        covered[in_image] |= result.solved
    blended = np.where(mask, blended, image)
    covered &= mask
    if options.label == "changed":
        covered &= np.abs(blended - image).mean(axis=0) > 1 / 255
        covered = scipy.ndimage.median_filter(covered, size=5, mode="nearest") & mask
    if sources.notes is not None:
        sources.notes.append(notes)
    return (blended if covered.any() else image), covered


def draw_patch(
    image: np.ndarray, rng: np.random.Generator, pixels: patches.ObjectPixels, options: Options, sources: Sources
) -> tuple[patches.Warped, tuple[int, int]] | str:
    """Draws an altered patch and the top and left of its new place; "no_source" or "no_place" where there is none."""
    height, width = draw_size(rng, image.shape[1:], options, sources)
    source = patches.draw_source(rng, pixels, (height, width), SOURCE_SHARE, TRIES)
    if source is None:
        return "no_source"
    patch = image[:, source[0] : source[0] + height, source[1] : source[1] + width]
    altered = alter(patch, draw_alteration(rng, patch.shape, options))
    place = patches.draw_place(rng, pixels, altered.support, PLACE_SHARE, TRIES)
    return "no_place" if place is None else (altered, place)


def draw_size(rng: np.random.Generator, shape: tuple[int, int], options: Options, sources: Sources) -> tuple[int, int]:
    """Draws height and width of a patch in pixels of an image of this shape; at least 2, at most the image's."""
    if options.patch_size == "nsa_gamma":
        height, width = patches.draw_gamma_size(rng, height=GAMMA_LIMITS, width=GAMMA_LIMITS)
        height, width = height * shape[0], width * shape[1]
    elif options.patch_size == "histogram":
        height, width = patches.draw_listed_size(rng, sources.sizes, jitter=0.1)  # of an image of 256 x 256
        height, width = height * shape[0] / 256, width * shape[1] / 256
    else:
        height, width = (min(shape) / 256 * side for side in patches.draw_lognormal_size(rng, **LOGNORMAL))
    return min(max(round(height), 2), shape[0]), min(max(round(width), 2), shape[1])


class Alteration(NamedTuple):
    """Holds the random numbers of one patch (equation 4)."""

    noise: np.ndarray | float  # (3, h, w), added
    factor: float  # of the brightness
    offset: float
    angle: float  # radians, counter-clockwise
    scale: float


def draw_alteration(rng: np.random.Generator, shape: tuple[int, ...], options: Options) -> Alteration:
    """Draws noise, brightness, rotation and scale for a patch (3, h, w) (equation 4).

    All numbers are drawn whether or not they are used, so that a reading changes no later draw.
    """
    level = options.noise_level
    if options.noise == "drawn":
        level = abs(rng.normal(0.0, level))
    elif options.noise == "variance":
        level = math.sqrt(level)
    noise = rng.normal(0.0, level, size=shape)
    delta = rng.uniform(-BRIGHTNESS, BRIGHTNESS)
    angle, scale = math.radians(rng.uniform(*options.rotation)), rng.uniform(*SCALE)
    first, second = rng.random(2) < 0.5
    if options.transformations == "one":
        noise, delta = (noise, 0.0) if first else (0.0, delta)
        angle, scale = (angle, 1.0) if second else (0.0, scale)
    multiply = options.brightness_mode == "multiply"
    return Alteration(noise, 1 + delta if multiply else 1.0, 0.0 if multiply else delta, angle, scale)


def alter(patch: np.ndarray, numbers: Alteration) -> patches.Warped:
    """Changes brightness and noise of a patch (3, h, w), then warps it, which smooths the noise (equations 3 and 4)."""
    return patches.warp(patch * numbers.factor + numbers.offset + numbers.noise, numbers.angle, numbers.scale)


# -- the object -------------------------------------------------------------------------------------------------------


def object_mask(image: np.ndarray, options: Options, polarity: str) -> np.ndarray:
    """Segments the object by Otsu's threshold and closes its mask M (equations 1 and 2).

    Args:
        image: (3, H, W) in [0, 1].
        options: the method's.
        polarity: "bright" or "dark", the object's side of the threshold, or "full", from `object_side`.

    Returns:
        (H, W) bool with at least 64 pixels (fewer only in a smaller image).
    """
    if polarity not in ("bright", "dark", "full"):
        raise ValueError(f"expected bright, dark or full (Sources.statistics), got {polarity!r}")
    everything = np.ones(image.shape[1:], bool)
    if polarity == "full":
        return everything
    values = grey(np.rint(image.transpose(1, 2, 0) * 255).astype(np.uint8), "luma")
    found = otsu(values)
    mask = values > found.threshold if polarity == "bright" else values <= found.threshold
    if options.object_mask == "auto":
        low, high = OBJECT_SHARES
        if found.separability < SEPARABILITY or not low <= mask.mean() <= high:
            return everything
    mask = morphology(mask, options.mask_morphology)
    return mask if mask.sum() >= LEAST_OBJECT else everything


def object_side(images: Sequence[Tensor], category: str, options: Options) -> str:
    """Decides on which side of Otsu's threshold the objects of a category are: "bright", "dark" or "full".

    "auto" measures the frame, 5 pixels wide, of every training image: where more than half of it is on the brighter
    side on average, the ground is bright and the object dark.
    """
    if options.anomaly == "draem":  # needs no object
        return "full"
    if options.object_mask == "mvtec":
        if category not in MVTEC_OBJECTS:
            known = ", ".join(MVTEC_OBJECTS)
            raise UserError(f"--object-mask mvtec knows MVTec AD's categories alone ({known}); got {category}")
        return MVTEC_OBJECTS[category]
    if options.object_mask != "auto":
        return options.object_mask
    shares = []
    for image in images:
        values = grey(image.permute(1, 2, 0).numpy(), "luma")
        shares.append(frame_share(values > otsu(values).threshold))
    return "dark" if np.mean(shares) > 0.5 else "bright"


# -- DRAEM's anomalies ------------------------------------------------------------------------------------------------


def texture_anomaly(
    image: Tensor, rng: np.random.Generator, options: Options, sources: Sources
) -> tuple[Tensor, Tensor]:
    """Pastes a texture under a Perlin mask Y (1, H, W), by the constants of DRAEM's code at full size."""
    texture = draw_texture(
        rng, sources.textures, sources.images, own_share=options.own_texture_share, operations="code",
        operation_count=3, channel_order="rgb",
    )  # fmt: skip
    mask = draw_mask(rng, tuple(image.shape[1:]), exponents=(0, 5), degrees=90.0, thresholds=(0.5, 0.5))
    mask = torch.from_numpy(mask).unsqueeze(0)
    return blend(image, texture, mask, rng.uniform(0.2, 1.0)), mask
