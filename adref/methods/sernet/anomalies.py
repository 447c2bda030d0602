"""SeRNet's pseudo-anomalies: large ones of the category's own material (PPA), small ones that spread (DPA).

"SeRNet: Segmentation Helps Reconstruction for Anomaly Detection", Applied Sciences 2026, 16(4), 1670. Its formulas are
lost: equations 1 and 2 are reconstructed (see `adref.methods.sernet`). Drawing and applying are apart: the `draw_`
functions spend the random numbers, the rest is pure.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance
from torch import Tensor

from adref.method import Sources
from adref.methods.sernet.options import Options
from adref.ops.image import remove_small
from adref.ops.perlin import draw_perlin, perlin, rotate, threshold

# -- PPA: Perlin pseudo-anomaly ---------------------------------------------------------------------------------------


def draw_large_mask(
    rng: np.random.Generator,
    shape: tuple[int, int],
    least: float,
    exponents: tuple[int, int] = (0, 5),
    degrees: float = 90.0,
    level: float = 0.5,
    connectivity: Literal[8, 4] = 8,
    tries: int = 50,
) -> tuple[np.ndarray, int]:
    """DRAEM's mask of rotated, thresholded Perlin noise without its small regions; drawn again while nothing is left.

    Args:
        rng: the stream of this sample.
        shape: (H, W).
        least: pixels of the smallest region that stays.
        exponents: the lattice has 2^i x 2^j cells, i and j from here.
        degrees: the noise turns by U(-d, d).
        level: noise above it is in the mask.
        connectivity: whether pixels of a region touch at corners too (8).
        tries: draws at most.

    Returns:
        mask (H, W) float32 in {0, 1}, all 0 if no try left anything; the number of tries.
    """
    for count in range(1, tries + 1):
        noise = perlin(draw_perlin(rng, shape, *exponents), shape)
        noise = rotate(noise, rng.uniform(-degrees, degrees))
        mask = remove_small(threshold(noise, level) > 0, least, connectivity)
        if mask.any() or count == tries:
            return mask.astype(np.float32), count


class SourceNumbers(NamedTuple):
    """The random numbers of one source image."""

    order: tuple[int, int, int, int]  # which quarter comes to each place: top left, top right, bottom left and right
    factors: tuple[float, float, float]  # of brightness, contrast, saturation, in this order
    degrees: float  # counter-clockwise, as seen on a screen
    scale: float  # above 1: larger
    shift: tuple[float, float]  # down and to the right, in sides


def draw_source(
    rng: np.random.Generator,
    factors: tuple[float, float] = (0.7, 1.3),
    degrees: float = 45.0,
    scale: tuple[float, float] = (0.8, 1.2),
    shift: float = 0.1,
) -> SourceNumbers:
    """Draws an order of the quarters that is not their own, and uniform changes of colour and place."""
    order = (0, 1, 2, 3)
    while order == (0, 1, 2, 3):
        order = tuple(rng.permutation(4).tolist())
    return SourceNumbers(
        order, tuple(rng.uniform(*factors, 3).tolist()), rng.uniform(-degrees, degrees), rng.uniform(*scale),
        tuple(rng.uniform(-shift, shift, 2).tolist()),
    )  # fmt: skip


def recombine(pictures: Sequence[Tensor], order: Sequence[int]) -> Tensor:
    """Four quarters in another order: (3, H, W) each, with even H and W, -> (3, H, W).

    Args:
        pictures: four, one for each place (top left, top right, bottom left, bottom right).
        order: which quarter of its picture comes to each place.
    """
    height, width = (side // 2 for side in pictures[0].shape[1:])
    corners = [(slice(None), slice(y, y + height), slice(x, x + width)) for y in (0, height) for x in (0, width)]
    parts = [picture[corners[quarter]] for picture, quarter in zip(pictures, order)]
    return torch.cat((torch.cat(parts[:2], dim=2), torch.cat(parts[2:], dim=2)), dim=1)


def transform(picture: Tensor, numbers: SourceNumbers) -> Tensor:
    """Changes colour, then place: uint8 (3, H, W) -> (3, H, W) in [0, 1].

    Brightness, contrast and saturation as Pillow's ImageEnhance has them, on 8 bits; then rotation, scale and shift
    about the centre, bilinear; outside, the picture is mirrored, its outermost pixels repeated.
    """
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    for enhancer, factor in zip((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), numbers.factors):
        image = enhancer(image).enhance(factor)
    picture = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    height, width = picture.shape[1:]
    cos, sin = (f(math.radians(numbers.degrees)) / numbers.scale for f in (math.cos, math.sin))
    # Where each pixel comes from: the inverse turn, in units of half a side, which differ by axis.
    down, right = numbers.shift
    matrix = torch.tensor([[cos, -sin * height / width], [sin * width / height, cos]])
    matrix = torch.cat((matrix, matrix @ torch.tensor([[-2.0 * right], [-2.0 * down]])), dim=1)
    grid = F.affine_grid(matrix[None], [1, 3, height, width], align_corners=False)
    return F.grid_sample(picture[None], grid, "bilinear", "reflection", align_corners=False)[0]


def blend_source(
    image: Tensor, source: Tensor, mask: Tensor, beta: float, beta_on: Literal["original", "source"] = "original"
) -> Tensor:
    """Equation 1: (1 - M) I + (1 - beta) M S + beta M I; equal to I where M is 0.

    Args:
        image: I, (3, H, W).
        source: S, alike.
        mask: M, (1, H, W) in {0, 1}.
        beta: a weight in [0, 1].
        beta_on: whether it weighs the original, or the source.
    """
    weight = beta if beta_on == "original" else 1 - beta
    return torch.where(mask > 0, (1 - weight) * source + weight * image, image)


# -- DPA: diffusion pseudo-anomaly ------------------------------------------------------------------------------------


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


def draw_spread(
    rng: np.random.Generator,
    shape: tuple[int, int],
    area: tuple[float, float] = (0.002, 0.025),
    aspect: float = 3.0,
    bases: tuple[int, int] = (1, 2),
    attached: tuple[int, int] = (2, 4),
    attached_to: Literal["total", "each"] = "total",
    sides: tuple[float, float] = (0.3, 1.0),
) -> Spread:
    """Draws k base rectangles, and rectangles attached to them.

    Args:
        rng: the stream of this sample.
        shape: (H, W).
        area: a base has U(first, second / k) of H W pixels at most, so all together stay below the second share, unless
            that is less than 2 x 2 pixels each.
        aspect: height / width is exp(U(-ln aspect, ln aspect)).
        bases: k is uniform from here, both included.
        attached: how many are attached, uniform from here.
        attached_to: whether that is the number of each base, or the total: then at least one to each.
        sides: an attached rectangle has U(...) of its base's height and width.
    """
    count = int(rng.integers(bases[0], bases[1] + 1))
    roots, owners, grown = [], [], []
    for _ in range(count):
        pixels = rng.uniform(min(area[0], area[1] / count), area[1] / count) * shape[0] * shape[1]
        ratio = math.exp(rng.uniform(-math.log(aspect), math.log(aspect)))
        height = min(shape[0], max(2, math.floor(math.sqrt(pixels * ratio))))
        width = min(shape[1], max(2, math.floor(pixels / height)))
        place = (int(rng.integers(whole - side + 1)) for whole, side in zip(shape, (height, width)))
        roots.append(Rectangle(*place, height, width))
    if attached_to == "each":
        owners = [i for i in range(count) for _ in range(int(rng.integers(attached[0], attached[1] + 1)))]
    else:
        total = max(count, int(rng.integers(attached[0], attached[1] + 1)))
        owners = [*range(count), *(int(rng.integers(count)) for _ in range(total - count))]
    for owner in owners:
        base = roots[owner]
        height, width = (max(1, round(rng.uniform(*sides) * side)) for side in (base.height, base.width))
        side = int(rng.integers(4))
        # Along the shared edge, anywhere with at least one pixel in common.
        if side < 2:
            left = base.left + int(rng.integers(1 - width, base.width))
            top = base.top - height if side == 0 else base.top + base.height
        else:
            top = base.top + int(rng.integers(1 - height, base.height))
            left = base.left - width if side == 2 else base.left + base.width
        first, last = (max(0, top), max(0, left)), (min(shape[0], top + height), min(shape[1], left + width))
        grown.append(Rectangle(*first, max(0, last[0] - first[0]), max(0, last[1] - first[1])))
    return Spread(tuple(roots), tuple(grown), tuple(owners))


def spread_mask(spread: Spread, shape: tuple[int, int]) -> np.ndarray:
    """The union of all rectangles: (H, W) float32 in {0, 1}."""
    mask = np.zeros(shape, np.float32)
    for r in (*spread.bases, *spread.attached):
        mask[r.top : r.top + r.height, r.left : r.left + r.width] = 1
    return mask


def draw_shift(
    rng: np.random.Generator, brightness: float = 0.3, colour: float = 0.2, least: float = 0.1
) -> tuple[float, ...]:
    """b + c: b from U(-brightness, brightness) for all channels, c from U(-colour, colour) for each.

    Drawn again while no channel moves by `least`, which is at most half of what one can move: else draws are many.

    Raises:
        ValueError: it is more.
    """
    if least > (brightness + colour) / 2:
        raise ValueError(f"expected least <= (brightness + colour) / 2, got {least}, {brightness} and {colour}")
    while True:
        shift = rng.uniform(-brightness, brightness) + rng.uniform(-colour, colour, 3)
        if np.abs(shift).max() >= least:
            return tuple(shift.tolist())


def shift_colour(
    image: Tensor, mask: Tensor, shift: Sequence[float], mode: Literal["additive", "multiplicative"] = "additive"
) -> Tensor:
    """Equation 2: (1 - M) I + M clip(I + b + c, 0, 1), or clip(I (1 + b + c), 0, 1); equal to I where M is 0.

    Args:
        image: I, (3, H, W).
        mask: M, (1, H, W) in {0, 1}.
        shift: b + c of each channel.
        mode: whether the shift is added, or a share of the value.
    """
    moved = torch.tensor(shift, dtype=image.dtype).view(3, 1, 1)
    moved = image + moved if mode == "additive" else image * (1 + moved)
    return torch.where(mask > 0, moved.clamp(0, 1), image)


def paste(image: Tensor, rng: np.random.Generator, o: Options, sources: Sources) -> tuple[Tensor, np.ndarray, int]:
    """PPA: corrupted image (3, H, W), mask (H, W), draws of the mask. The image itself where no draw left a region."""
    least = (o.area if o.ppa_area is None else o.ppa_area) * image[0].numel()  # D5
    mask, draws = draw_large_mask(rng, tuple(image.shape[1:]), least, o.ppa_exponents, o.ppa_noise_degrees, o.ppa_level,
                                  o.connectivity, o.draws)  # fmt: skip
    if not mask.any():
        return image, mask, draws
    pictures, index = (sources.images, sources.index) if o.ppa_source == "category" else (sources.textures, None)
    if pictures is None:
        raise ValueError(f"expected Sources.{'images' if o.ppa_source == 'category' else 'textures'} to paste from")
    indices = [any_other(rng, len(pictures), index) for _ in range(4 if o.ppa_pieces == "several" else 1)]  # D6, D25
    numbers = draw_source(rng, o.ppa_factors, o.ppa_degrees, o.ppa_scale, o.ppa_shift)  # D7
    quarters = [pictures[i] for i in indices] * (4 // len(indices))
    source = transform(recombine(quarters, numbers.order), numbers)
    return blend_source(image, source, torch.from_numpy(mask), rng.uniform(*o.ppa_beta), o.ppa_beta_on), mask, draws


def spread(image: Tensor, rng: np.random.Generator, o: Options, sources: Sources) -> tuple[Tensor, np.ndarray, int]:
    """DPA: corrupted image (3, H, W), mask (H, W), draws of the mask. The image itself where no draw kept the limit."""
    shape = tuple(image.shape[1:])
    for draws in range(1, o.draws + 1):
        drawn = draw_spread(rng, shape, o.dpa_area, o.dpa_aspect, o.dpa_bases, o.dpa_attached, o.dpa_attached_to,
                            o.dpa_sides)  # fmt: skip
        mask = spread_mask(drawn, shape)
        if o.dpa_limit == "bases" or mask.mean() < o.dpa_area[1]:  # D9
            shift = draw_shift(rng, o.dpa_brightness, o.dpa_colour, o.dpa_least)  # D10
            return shift_colour(image, torch.from_numpy(mask), shift, o.dpa_mode), mask, draws
    return image, np.zeros(shape, np.float32), o.draws


def any_other(rng: np.random.Generator, count: int, index: int | None) -> int:
    """A uniform number below `count`, not `index` where that is known and there is another (D25)."""
    if index is None or count == 1:
        return int(rng.integers(count))
    drawn = int(rng.integers(count - 1))
    return drawn + (drawn >= index)
