"""CutPaste: a piece of the image, its colours slightly changed, pasted elsewhere in the same image.

C.-L. Li, K. Sohn, J. Yoon, T. Pfister, "CutPaste: Self-Supervised Learning for Anomaly Detection and Localization",
CVPR 2021. A piece is a large rectangle or a scar, which is thin and rotated. `draw_rectangle` and `draw_scar` draw the
random numbers; `cut_paste` applies them.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Constants of the paper; bounds of uniform distributions.
AREA = (0.02, 0.15)  # of a rectangle, in areas of the image
ASPECT = (0.3, 3.3)  # width / height of a rectangle: U(0.3, 1) or U(1, 3.3), with equal probability
SCAR_WIDTH, SCAR_LENGTH = (2.0, 16.0), (10.0, 25.0)  # pixels of an image whose shorter side is 256
SCAR_DEGREES = 45.0  # a scar rotates by U(-d, d)
JITTER = 0.1  # factors of brightness, contrast, saturation from U(1 - j, 1 + j), shift of the hue from U(-j, j)


class CutPasteNumbers(NamedTuple):
    """The random numbers of one pasted piece; rows and columns in pixels."""

    source: tuple[int, int]  # top and left of the piece
    size: tuple[int, int]  # height and width of the piece
    degrees: float  # rotation, counter-clockwise on the screen
    place: tuple[int, int]  # top and left of the bounding box of the rotated piece
    factors: tuple[float, float, float]  # of brightness, contrast, saturation
    hue: float  # shift, in turns of the hue circle


def draw_rectangle(rng: np.random.Generator, shape: tuple[int, int]) -> CutPasteNumbers:
    """Draws a rectangle and another place for it in an image of `shape` (H, W)."""
    pixels = rng.uniform(*AREA) * shape[0] * shape[1]
    ratio = rng.uniform(ASPECT[0], 1.0) if rng.random() < 0.5 else rng.uniform(1.0, ASPECT[1])
    return draw_piece(rng, shape, (math.sqrt(pixels / ratio), math.sqrt(pixels * ratio)), 0.0)


def draw_scar(rng: np.random.Generator, shape: tuple[int, int]) -> CutPasteNumbers:
    """Draws a scar, upright in its source and rotated in its place, in an image of `shape` (H, W)."""
    unit = min(shape) / 256
    size = unit * rng.uniform(*SCAR_LENGTH), unit * rng.uniform(*SCAR_WIDTH)
    return draw_piece(rng, shape, size, rng.uniform(-SCAR_DEGREES, SCAR_DEGREES))


def draw_piece(
    rng: np.random.Generator, shape: tuple[int, int], size: tuple[float, float], degrees: float
) -> CutPasteNumbers:
    """Draws source and place of a piece, both uniform and different if possible, and its change of colour."""
    size = tuple(min(max(round(side), 1), n) for side, n in zip(size, shape))
    source = tuple(int(rng.integers(n - side + 1)) for side, n in zip(size, shape))
    rows, columns = (max(n - side, 0) + 1 for side, n in zip(bounding_box(size, degrees), shape))
    index = int(rng.integers(rows * columns))
    if divmod(index, columns) == source:
        index = (index + rows * columns // 2) % (rows * columns)
    factors = tuple(rng.uniform(1 - JITTER, 1 + JITTER, 3).tolist())
    return CutPasteNumbers(source, size, degrees, divmod(index, columns), factors, rng.uniform(-JITTER, JITTER))


def bounding_box(size: tuple[int, int], degrees: float) -> tuple[int, int]:
    """Returns height and width of the upright box around a rotated rectangle."""
    cos, sin = (abs(f(math.radians(degrees))) for f in (math.cos, math.sin))
    # Whole numbers up to rounding stay whole.
    return math.ceil(size[0] * cos + size[1] * sin - 1e-9), math.ceil(size[1] * cos + size[0] * sin - 1e-9)


def cut_paste(image: Tensor, numbers: CutPasteNumbers) -> tuple[Tensor, Tensor]:
    """Cuts a piece of an image (3, H, W) in [0, 1], changes its colours, rotates it (nearest pixel) and pastes it.

    Returns:
        corrupted (3, H, W), equal to `image` outside the mask; mask (H, W) float32 in {0, 1}, all pasted pixels, or
        none if none of them differs from `image`.

    Raises:
        ValueError: another shape.
    """
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"expected (3, H, W) in [0, 1], got {tuple(image.shape)}")
    (top, left), (height, width) = numbers.source, numbers.size
    piece = change_colour(image[:, top : top + height, left : left + width], numbers.factors, numbers.hue)
    cos, sin = (f(math.radians(numbers.degrees)) for f in (math.cos, math.sin))
    rows, columns = bounding_box(numbers.size, numbers.degrees)
    v = torch.arange(rows, dtype=torch.float64)[:, None] - (rows - 1) / 2
    u = torch.arange(columns, dtype=torch.float64) - (columns - 1) / 2
    y = (sin * u + cos * v + height / 2).floor().long()  # row of the piece at each pixel of the box
    x = (cos * u - sin * v + width / 2).floor().long()
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    i, j = (inside.nonzero() + torch.tensor(numbers.place)).T
    seen = (i < image.shape[1]) & (j < image.shape[2])  # a box larger than the image extends beyond it
    i, j, y, x = i[seen], j[seen], y[inside][seen], x[inside][seen]
    corrupted, mask = image.clone(), torch.zeros(image.shape[1:])
    corrupted[:, i, j] = piece[:, y, x]
    mask[i, j] = float((corrupted != image).any())
    return corrupted, mask


def change_colour(image: Tensor, factors: Sequence[float], hue: float) -> Tensor:
    """Changes brightness, contrast, saturation and hue, in this order: (3, H, W) in [0, 1] -> the same.

    These are the operations of torchvision's ColorJitter, which shuffles them. With `factors` b, c, s, `hue` h in turns
    of the hue circle, G = 0.2989 R + 0.587 G + 0.114 B of a pixel, and clipped to [0, 1] after each step,

        x <- b x,   x <- c x + (1 - c) mean(G),   x <- s x + (1 - s) G,   hue <- hue + h in HSV
    """
    brightness, contrast, saturation = factors
    image = (brightness * image).clamp(0, 1)
    image = (contrast * image + (1 - contrast) * luma(image).mean()).clamp(0, 1)
    image = (saturation * image + (1 - saturation) * luma(image)).clamp(0, 1)
    high, chroma = image.amax(dim=0), image.amax(dim=0) - image.amin(dim=0)
    r, g, b = (high - image) / torch.where(chroma > 0, chroma, 1.0)
    sixths = torch.where(r == 0, b - g, torch.where(g == 0, 2 + r - b, 4 + g - r)) + 6 * hue
    shifted = [(n + sixths) % 6 for n in (5, 3, 1)]  # of red, green and blue
    return torch.stack([high - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in shifted]).clamp(0, 1)


def luma(image: Tensor) -> Tensor:
    """Computes G of `change_colour`: (3, H, W) -> (H, W)."""
    return 0.2989 * image[0] + 0.587 * image[1] + 0.114 * image[2]
