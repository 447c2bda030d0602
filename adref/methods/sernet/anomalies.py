"""SeRNet's pseudo-anomalies: Perlin's (PPA), large, of the category's material; diffusion's (DPA), small, recoloured.

"SeRNet: Segmentation Helps Reconstruction for Anomaly Detection", Applied Sciences 2026, 16(4), 1670, section Method
(their formulas are reconstructed, see method.py). Random numbers are used in `ppa`, `dpa` and `draw_...` alone.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance
from torch import Tensor

from adref.method import Sources
from adref.methods.sernet.options import Options
from adref.ops.perlin import draw_perlin, perlin, rotate, threshold

TRIES = 50  # draws of a mask before the example stays clean
NOISE_DEGREES, NOISE_LEVEL = 90.0, 0.5  # DRAEM's code: the noise rotates by U(-d, d) and is thresholded
BETA = (0.0, 0.8)  # section Method: the blending weight is uniform from here
FACTORS, SOURCE_DEGREES, SCALE, SHIFT = (0.7, 1.3), 45.0, (0.8, 1.2), 0.1  # ours (DEVIATIONS)
BASES, ATTACHED = (1, 2), (2, 4)  # section Method: how many, both included
BASE_AREA = (0.002, 0.025)  # section Method: below 2.5 % of the image; the lower bound is ours, as all that follow
ASPECT = 3.0  # height / width of a base is exp(U(-ln ASPECT, ln ASPECT))
ATTACHED_SIDES = (0.3, 1.0)  # in sides of the base
BRIGHTNESS, COLOUR, LEAST_SHIFT = 0.3, 0.2, 0.1


def ppa(image: Tensor, rng: np.random.Generator, o: Options, sources: Sources) -> tuple[Tensor, np.ndarray, int]:
    """Blends another image, cut up and transformed, into an image under large regions of Perlin noise (PPA).

    Returns corrupted (3, H, W), mask (H, W) and the number of its draws; the image itself if no draw left a region.
    """
    min_area = (o.area if o.ppa_area is None else o.ppa_area) * image[0].numel()
    mask, draws = draw_large_mask(rng, tuple(image.shape[1:]), min_area, o.ppa_exponents)
    if not mask.any():
        return image, mask, draws
    pictures, index = (sources.images, sources.index) if o.ppa_source == "category" else (sources.textures, None)
    indices = [draw_other(rng, len(pictures), index) for _ in range(4 if o.ppa_pieces == "several" else 1)]
    numbers = draw_source(rng)
    source = transform(recombine([pictures[i] for i in indices] * (4 // len(indices)), numbers.order), numbers)
    return blend_source(image, source, torch.from_numpy(mask), rng.uniform(*BETA), o.ppa_beta_on), mask, draws


def draw_large_mask(rng: np.random.Generator, shape: tuple[int, int], min_area: float, exponents: tuple[int, int],
                    tries: int = TRIES) -> tuple[np.ndarray, int]:  # fmt: skip
    """Draws DRAEM's Perlin mask (H, W) without components below `min_area` pixels until one is left; counts draws."""
    for count in range(1, tries + 1):
        noise = perlin(draw_perlin(rng, shape, *exponents), shape)
        noise = rotate(noise, rng.uniform(-NOISE_DEGREES, NOISE_DEGREES))
        mask = remove_small(threshold(noise, NOISE_LEVEL) > 0, min_area)
        if mask.any() or count == tries:
            return mask.astype(np.float32), count


def remove_small(mask: np.ndarray, min_area: float, connectivity: int = 8) -> np.ndarray:
    """Removes connected components smaller than `min_area` pixels (8- or 4-connected) from a bool (H, W)."""
    labels, count = scipy.ndimage.label(mask, np.ones((3, 3)) if connectivity == 8 else None)
    kept = np.bincount(labels.ravel(), minlength=count + 1) >= min_area
    kept[0] = False
    return kept[labels]


def draw_other(rng: np.random.Generator, count: int, index: int | None) -> int:
    """Draws a uniform number below `count`, other than `index` if that is known and not the only one."""
    if index is None or count == 1:
        return int(rng.integers(count))
    drawn = int(rng.integers(count - 1))
    return drawn + (drawn >= index)


class SourceNumbers(NamedTuple):
    """Holds the random numbers of one source image."""

    order: tuple[int, int, int, int]  # see `recombine`
    factors: tuple[float, float, float]  # of brightness, contrast, saturation, in this order
    degrees: float  # counter-clockwise
    scale: float  # above 1: larger
    shift: tuple[float, float]  # down and to the right, in sides of the image


def draw_source(rng: np.random.Generator) -> SourceNumbers:
    """Draws an order of the quarters other than 0, 1, 2, 3, and uniform changes of colour and place."""
    order = (0, 1, 2, 3)
    while order == (0, 1, 2, 3):
        order = tuple(rng.permutation(4).tolist())
    factors, degrees = tuple(rng.uniform(*FACTORS, 3).tolist()), rng.uniform(-SOURCE_DEGREES, SOURCE_DEGREES)
    return SourceNumbers(order, factors, degrees, rng.uniform(*SCALE), tuple(rng.uniform(-SHIFT, SHIFT, 2).tolist()))


def recombine(pictures: Sequence[Tensor], order: Sequence[int]) -> Tensor:
    """Puts quarter `order[i]` of `pictures[i]`, (3, H, W) of even sides, in place i, row by row: four -> (3, H, W)."""
    height, width = (side // 2 for side in pictures[0].shape[1:])
    corners = [(slice(None), slice(y, y + height), slice(x, x + width)) for y in (0, height) for x in (0, width)]
    parts = [picture[corners[quarter]] for picture, quarter in zip(pictures, order)]
    return torch.cat((torch.cat(parts[:2], dim=2), torch.cat(parts[2:], dim=2)), dim=1)


def transform(picture: Tensor, numbers: SourceNumbers) -> Tensor:
    """Changes colour, then place: uint8 (3, H, W) -> (3, H, W) in [0, 1].

    Brightness, contrast and saturation by Pillow's ImageEnhance, on 8 bits; then rotation, scale and shift about the
    centre, bilinear; pixels from outside are mirrored, the outermost pixels repeated.
    """
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    for enhancer, factor in zip((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), numbers.factors):
        image = enhancer(image).enhance(factor)
    picture = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    (height, width), (down, right) = picture.shape[1:], numbers.shift
    # The inverse rotation, target pixel -> source pixel, in units of half a side, which differ by axis.
    cos, sin = (f(math.radians(numbers.degrees)) / numbers.scale for f in (math.cos, math.sin))
    matrix = torch.tensor([[cos, -sin * height / width], [sin * width / height, cos]])
    matrix = torch.cat((matrix, matrix @ torch.tensor([[-2.0 * right], [-2.0 * down]])), dim=1)
    grid = F.affine_grid(matrix[None], [1, 3, height, width], align_corners=False)
    return F.grid_sample(picture[None], grid, "bilinear", "reflection", align_corners=False)[0]


def blend_source(image: Tensor, source: Tensor, mask: Tensor, beta: float, beta_on: str) -> Tensor:
    """Blends S into I, (3, H, W), under M ([1,] H, W) in {0, 1}; beta weighs the "original" or "source"; I off M."""
    weight = beta if beta_on == "original" else 1 - beta
    return torch.where(mask > 0, (1 - weight) * source + weight * image, image)


def dpa(image: Tensor, rng: np.random.Generator, o: Options, sources: Sources) -> tuple[Tensor, np.ndarray, int]:
    """Shifts the colour of an image inside a small group of adjacent rectangles (DPA); returns as `ppa`."""
    shape, spread = tuple(image.shape[1:]), (image.amax(dim=0) - image.amin(dim=0)).mean().item()
    colour = min(COLOUR, spread) if o.dpa_colour == "picture" else COLOUR
    for draws in range(1, TRIES + 1):
        mask = spread_mask(draw_spread(rng, shape, o.dpa_attached_to), shape)
        if o.dpa_limit == "bases" or mask.mean() < BASE_AREA[1]:
            return shift_colour(image, torch.from_numpy(mask), draw_shift(rng, colour)), mask, draws
    return image, np.zeros(shape, np.float32), TRIES


class Rectangle(NamedTuple):
    """Pixels from `top` and `left` on."""

    top: int
    left: int
    height: int
    width: int


class Spread(NamedTuple):
    """The rectangles of one small defect."""

    bases: tuple[Rectangle, ...]
    attached: tuple[Rectangle, ...]  # each shares an edge with its base; clipped at the border
    owner: tuple[int, ...]  # the base of each


def draw_spread(rng: np.random.Generator, shape: tuple[int, int], attached_to: str) -> Spread:
    """Draws base rectangles in (H, W) and two to four attached in all, one to each at least ("total"), or to each."""
    count = int(rng.integers(*BASES, endpoint=True))
    bases = [draw_base(rng, shape, count) for _ in range(count)]
    if attached_to == "each":
        owners = [i for i in range(count) for _ in range(rng.integers(*ATTACHED, endpoint=True))]
    else:
        more = max(count, int(rng.integers(*ATTACHED, endpoint=True))) - count
        owners = [*range(count), *(int(rng.integers(count)) for _ in range(more))]
    return Spread(tuple(bases), tuple(draw_attached(rng, shape, bases[i]) for i in owners), tuple(owners))


def draw_base(rng: np.random.Generator, shape: tuple[int, int], count: int) -> Rectangle:
    """Draws one of `count` bases: U(0.002, 0.025 / count) of the pixels at most, 2 x 2 pixels at least."""
    pixels = rng.uniform(BASE_AREA[0], BASE_AREA[1] / count) * shape[0] * shape[1]
    ratio = math.exp(rng.uniform(-math.log(ASPECT), math.log(ASPECT)))
    height = min(shape[0], max(2, math.floor(math.sqrt(pixels * ratio))))
    width = min(shape[1], max(2, math.floor(pixels / height)))
    return Rectangle(int(rng.integers(shape[0] - height + 1)), int(rng.integers(shape[1] - width + 1)), height, width)


def draw_attached(rng: np.random.Generator, shape: tuple[int, int], base: Rectangle) -> Rectangle:
    """Draws a rectangle beside a base, with at least one pixel of an edge in common; clipped at the border."""
    height, width = (max(1, round(rng.uniform(*ATTACHED_SIDES) * side)) for side in (base.height, base.width))
    side = int(rng.integers(4))
    if side < 2:  # above or below
        left = base.left + int(rng.integers(1 - width, base.width))
        top = base.top - height if side == 0 else base.top + base.height
    else:
        top = base.top + int(rng.integers(1 - height, base.height))
        left = base.left - width if side == 2 else base.left + base.width
    bottom, right = min(shape[0], top + height), min(shape[1], left + width)
    top, left = max(0, top), max(0, left)
    return Rectangle(top, left, max(0, bottom - top), max(0, right - left))


def spread_mask(spread: Spread, shape: tuple[int, int]) -> np.ndarray:
    """Draws the union of all rectangles: (H, W) float32 in {0, 1}."""
    mask = np.zeros(shape, np.float32)
    for r in (*spread.bases, *spread.attached):
        mask[r.top : r.top + r.height, r.left : r.left + r.width] = 1
    return mask


def draw_shift(rng: np.random.Generator, colour: float = COLOUR) -> tuple[float, ...]:
    """Draws b + c of each channel, b ~ U(-.3, .3), c ~ U(-colour, colour), until a channel moves by 0.1 or more."""
    while True:
        shift = rng.uniform(-BRIGHTNESS, BRIGHTNESS) + rng.uniform(-colour, colour, 3)
        if np.abs(shift).max() >= LEAST_SHIFT:
            return tuple(shift.tolist())


def shift_colour(image: Tensor, mask: Tensor, shift: Sequence[float]) -> Tensor:
    """Adds b + c of each channel to I (3, H, W) under M (1, H, W) in {0, 1}, clipped; exactly I where M is 0."""
    moved = image + torch.tensor(shift, dtype=image.dtype).view(3, 1, 1)
    return torch.where(mask > 0, moved.clamp(0, 1), image)
