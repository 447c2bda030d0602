"""SRDAD's natural anomalies: altered patches of the object, blended in elsewhere on it (equations 1 to 5)."""

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
from adref.ops import patches as natural
from adref.ops.image import fill_holes, frame_share, grey, morphology, otsu
from adref.ops.poisson import poisson_blend
from adref.ops.texture_anomaly import blend, draw_mask, draw_texture, rotate_randomly
from adref.options import UserError

# Where MVTec AD's objects are, by category (NSA's background settings); see --mask-polarity mvtec.
MVTEC_OBJECTS = {
    **dict.fromkeys(("bottle", "capsule", "screw", "zipper"), "dark"),
    **dict.fromkeys(("hazelnut", "metal_nut", "pill", "toothbrush"), "bright"),
    **dict.fromkeys(("cable", "transistor", "carpet", "grid", "leather", "tile", "wood"), "full"),
}


class Batch(NamedTuple):
    clean: Tensor  # (B, 3, H, W)
    corrupted: Tensor  # (B, 3, H, W)
    mask: Tensor  # (B, 1, H, W), 1 = corrupted


def texture_anomaly(image: Tensor, rng: np.random.Generator, options: Options, sources: Sources) -> Batch:
    """Makes a training example with DRAEM's anomalies: its code's constants at full size, whatever the preset (D44)."""
    image = rotate_randomly(image, rng, options.rotation_probability, options.rotation_degrees)
    if rng.random() >= options.anomaly_probability:
        return Batch(image, image, torch.zeros(1, *image.shape[1:]))
    texture = draw_texture(
        rng,
        sources.textures,
        sources.images,
        own_share=options.own_texture_share,
        operations="code",
        operation_count=3,
        channel_order="rgb",
    )
    mask = draw_mask(rng, tuple(image.shape[1:]), exponents=(0, 5), degrees=90.0, thresholds=(0.5, 0.5))
    mask = torch.from_numpy(mask).unsqueeze(0)
    return Batch(image, blend(image, texture, mask, rng.uniform(0.2, 1.0)), mask)


def natural_anomaly(
    image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, options: Options, sources: Sources
) -> tuple[np.ndarray, np.ndarray]:
    """Patches cut out, altered and blended in elsewhere (equations 3 to 5), in float64.

    Args:
        image: (3, H, W) in [0, 1].
        mask: M, (H, W) bool, not empty.
        rng, options, sources: as in `corrupt`.

    Returns:
        the image with them (3, H, W), equal to `image` wherever no patch lies; Y (H, W) bool.
    """
    pixels, blended, covered = natural.ObjectPixels(mask), image.copy(), np.zeros(mask.shape, bool)
    count = draw_count(rng, options, whole=bool(mask.all()))
    notes = {"object": mask, "patches": count, "no_source": 0, "no_place": 0, "too_small": 0, "solve_milliseconds": 0.0}
    for _ in range(count):
        drawn = draw_patch(image, rng, pixels, options, sources)
        if isinstance(drawn, str):
            notes[drawn] += 1
            continue
        (values, support), corner = drawn
        there, here = natural.overlap(corner, support.shape, mask.shape)
        region = support[here] & mask[there] if options.object_constraint == "clip_region" else support[here]  # D14
        target, began = blended[(slice(None), *there)], time.perf_counter()
        source, stiffness, mixed = values[(slice(None), *here)], options.poisson_lambda, options.mixed_gradients
        result = poisson_blend(source, target, region, stiffness, mixed)  # equation 5; D12, D13
        notes["solve_milliseconds"] += 1000 * (time.perf_counter() - began)
        notes["too_small"] += not result.solved.any()
        inside = np.clip(result.values[:, result.solved], 0, 1)
        target[:, result.solved] = np.rint(255 * inside) / 255 if options.quantise else inside  # D52
        covered[there] |= result.solved
    blended = np.where(mask, blended, image)  # after all patches (D14)
    covered &= mask
    if options.label == "changed":  # D15
        covered &= np.abs(blended - image).mean(axis=0) > 1 / 255
        covered = scipy.ndimage.median_filter(covered, size=5, mode="nearest") & mask
    if sources.notes is not None:
        sources.notes.append(notes)
    return (blended if covered.any() else image), covered


def draw_count(rng: np.random.Generator, options: Options, whole: bool) -> int:
    """N, the patches of one image; `whole`: the object fills the picture (D5)."""
    if options.patch_count == "binomial":
        return 1 + int(rng.binomial(options.patch_most[int(whole)] - 1, 0.5))
    return int(rng.integers(options.patch_range[0], options.patch_range[1] + 1))


def draw_patch(
    image: np.ndarray, rng: np.random.Generator, pixels: natural.ObjectPixels, options: Options, sources: Sources
) -> tuple[natural.Warped, tuple[int, int]] | str:
    """An altered patch and the top and left of its new place; or what was not found: "no_source", "no_place" (D51)."""
    size, donor, source = draw_size(rng, image.shape[1:], options, sources), image, pixels
    if options.patch_source == "other":  # D7
        index, count = int(rng.integers(len(sources.images))), len(sources.images)
        if np.array_equal(sources.images[index].numpy(), np.rint(255 * image)):  # the image itself: the next one
            index = (index + 1) % count
        donor = sources.images[index].numpy() / 255.0
        source = natural.ObjectPixels(object_mask(donor, options, sources.statistics))
    corner = natural.draw_source(rng, source, size, options.source_share, options.place_tries)
    if corner is None:
        return "no_source"
    patch = donor[:, corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]
    altered = alter(patch, draw_alteration(rng, patch.shape, options), options.clip_patch)
    corner = natural.draw_place(rng, pixels, altered.support, options.place_share, options.place_tries)
    return "no_place" if corner is None else (altered, corner)


def draw_size(rng: np.random.Generator, shape: tuple[int, int], options: Options, sources: Sources) -> tuple[int, int]:
    """Height and width of a patch in pixels of a picture of this shape; at least 2, at most the picture's (D6)."""
    unit = min(shape) / 256
    if options.patch_size == "nsa_gamma":
        height, width = natural.draw_gamma_size(rng, options.gamma_height, options.gamma_width)
        height, width = height * shape[0], width * shape[1]
    elif options.patch_size == "histogram":
        height, width = natural.draw_listed_size(rng, sources.sizes)  # a picture of 256 x 256
        height, width = height * shape[0] / 256, width * shape[1] / 256
    else:
        height, width = (unit * side for side in natural.draw_lognormal_size(
            rng, options.patch_side, options.patch_side_sigma, options.patch_side_limits, options.patch_aspect_sigma,
            options.patch_aspect_limit, options.patch_longest,
        ))  # fmt: skip
    return min(max(round(height), 2), shape[0]), min(max(round(width), 2), shape[1])


class Alteration(NamedTuple):
    """The random numbers of one patch (equation 4)."""

    noise: np.ndarray | float  # (3, h, w), added
    factor: float  # of the brightness
    offset: float
    angle: float  # radians, counter-clockwise
    scale: float


def draw_alteration(rng: np.random.Generator, shape: tuple[int, ...], options: Options) -> Alteration:
    """Draws noise, brightness, rotation and scale for a patch (3, h, w); equation 4. All are drawn, used or not."""
    level = options.noise_level
    if options.noise != "fixed":  # D8
        level = abs(rng.normal(0.0, level)) if options.noise == "drawn" else math.sqrt(level)
    noise = rng.normal(0.0, level, size=shape)
    delta = rng.uniform(-options.brightness, options.brightness)
    angle, scale = math.radians(rng.uniform(*options.rotation)), rng.uniform(*options.scale)  # D11
    first, second = rng.random(2) < 0.5
    if options.photometric_mode == "one":  # D10
        noise, delta = (noise, 0.0) if first else (0.0, delta)
    if options.geometric_mode == "one":
        angle, scale = (angle, 1.0) if second else (0.0, scale)
    multiply = options.brightness_mode == "multiply"  # D9
    return Alteration(noise, 1 + delta if multiply else 1.0, 0.0 if multiply else delta, angle, scale)


def alter(patch: np.ndarray, numbers: Alteration, clip: bool = False) -> natural.Warped:
    """Equations 3 and 4: noise and brightness first, then one bilinear warp, which smooths the noise a little."""
    patch = patch * numbers.factor + numbers.offset + numbers.noise
    return natural.warp(np.clip(patch, 0, 1) if clip else patch, numbers.angle, numbers.scale)


# -- the object -------------------------------------------------------------------------------------------------------


def object_mask(image: np.ndarray, options: Options, polarity: str) -> np.ndarray:
    """M: Otsu's brighter or darker side, closed (equations 1 and 2); or the whole picture.

    Args:
        image: (3, H, W) in [0, 1].
        options: the method's.
        polarity: "bright", "dark" or "full", from `object_side`.

    Returns:
        (H, W) bool with at least 64 pixels (fewer only in a smaller picture).
    """
    if polarity not in ("bright", "dark", "full"):
        raise ValueError(f"expected bright, dark or full (Sources.statistics), got {polarity!r}")
    everything = np.ones(image.shape[1:], bool)
    if options.mask_mode == "full" or polarity == "full":
        return everything
    values = grey(np.rint(image.transpose(1, 2, 0) * 255).astype(np.uint8), options.mask_grey)  # D1
    found = otsu(values)
    doubt = options.mask_mode == "auto" and options.mask_polarity == "auto"  # a polarity that is given is believed
    if doubt and found.separability < options.mask_separability:  # D3
        return everything
    mask = values > found.threshold if polarity == "bright" else values <= found.threshold
    share = mask.mean()
    if doubt and not options.mask_share[0] <= share <= options.mask_share[1]:
        return everything
    mask = morphology(mask, options.mask_morphology)  # D4
    mask = fill_holes(mask) if options.mask_fill_holes else mask
    return mask if mask.sum() >= 64 else everything


def object_side(images: Sequence[Tensor], category: str, options: Options) -> str:
    """Which side of Otsu's threshold the object of a category is: "bright", "dark" or "full" (D2).

    "auto" looks at the frame, 5 pixels wide, of every training image: where more than half of it is on the brighter
    side on average, the ground is bright and the object dark.
    """
    if options.mask_polarity == "mvtec":
        if category not in MVTEC_OBJECTS:
            known = ", ".join(MVTEC_OBJECTS)
            raise UserError(f"--mask-polarity mvtec knows MVTec AD's categories alone ({known}); got {category}")
        return MVTEC_OBJECTS[category]
    if options.mask_polarity != "auto" or options.mask_mode == "full" or options.anomaly == "draem":  # no need to look
        return "dark" if options.mask_polarity == "dark" else "bright"
    shares = []
    for image in images:
        values = grey(image.permute(1, 2, 0).numpy(), options.mask_grey)
        shares.append(frame_share(values > otsu(values).threshold))
    return "dark" if np.mean(shares) > 0.5 else "bright"
