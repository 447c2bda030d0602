"""CutPaste: a piece of the image, its colours slightly changed, pasted elsewhere in the same image.

C.-L. Li, K. Sohn, J. Yoon, T. Pfister, "CutPaste: Self-Supervised Learning for Anomaly Detection and Localization",
CVPR 2021. `draw_rectangle` and `draw_scar` draw the random numbers, `cut_paste` applies them.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from numpy.random import Generator
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


def draw_rectangle(rng: Generator, shape: tuple[int, int]) -> CutPasteNumbers:
    """Draws a rectangle and another place for it in an image of `shape` (H, W)."""
    pixels = rng.uniform(*AREA) * shape[0] * shape[1]
    ratio = rng.uniform(ASPECT[0], 1.0) if rng.random() < 0.5 else rng.uniform(1.0, ASPECT[1])
    return draw_piece(rng, shape, (math.sqrt(pixels / ratio), math.sqrt(pixels * ratio)), 0.0)


def draw_scar(rng: Generator, shape: tuple[int, int]) -> CutPasteNumbers:
    """Draws a scar, thin, upright in its source and rotated in its place, in an image of `shape` (H, W)."""
    unit = min(shape) / 256
    size = unit * rng.uniform(*SCAR_LENGTH), unit * rng.uniform(*SCAR_WIDTH)
    return draw_piece(rng, shape, size, rng.uniform(-SCAR_DEGREES, SCAR_DEGREES))


def draw_piece(rng: Generator, shape: tuple[int, int], size: tuple[float, float], degrees: float) -> CutPasteNumbers:
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
    """Returns height and width of the upright box around a rotated rectangle; whole numbers up to rounding stay."""
    cos, sin = (abs(f(math.radians(degrees))) for f in (math.cos, math.sin))
    return math.ceil(size[0] * cos + size[1] * sin - 1e-9), math.ceil(size[1] * cos + size[0] * sin - 1e-9)


def cut_paste(image: Tensor, numbers: CutPasteNumbers) -> tuple[Tensor, Tensor]:
    """Cuts a piece of an image (3, H, W) in [0, 1], changes its colours, rotates it (nearest pixel) and pastes it.

    Returns the corrupted image and the mask (H, W), float32: 1 at all pasted pixels, 0 if none of them has changed.
    """
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"expected (3, H, W) in [0, 1], got {tuple(image.shape)}")
    (top, left), (height, width), (rows, columns) = *numbers[:2], bounding_box(numbers.size, numbers.degrees)
    piece = change_colour(image[:, top : top + height, left : left + width], numbers.factors, numbers.hue)
    cos, sin = (f(math.radians(numbers.degrees)) for f in (math.cos, math.sin))
    v = torch.arange(rows, dtype=torch.float64)[:, None] - (rows - 1) / 2
    u = torch.arange(columns, dtype=torch.float64) - (columns - 1) / 2
    y = (sin * u + cos * v + height / 2).floor().long()  # row of the piece at each pixel of the box
    x = (cos * u - sin * v + width / 2).floor().long()
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    i, j = (inside.nonzero() + torch.tensor(numbers.place)).T
    seen = (i < image.shape[1]) & (j < image.shape[2])  # a box larger than the image extends beyond it
    corrupted, mask = image.clone(), torch.zeros(image.shape[1:])
    corrupted[:, i[seen], j[seen]] = piece[:, y[inside][seen], x[inside][seen]]
    mask[i[seen], j[seen]] = float((corrupted != image).any())
    return corrupted, mask


def change_colour(image: Tensor, factors: Sequence[float], hue: float) -> Tensor:
    """Changes brightness, contrast, saturation and hue (in turns) as torchvision's ColorJitter, which shuffles them."""

    def luma(x: Tensor) -> Tensor:
        return 0.2989 * x[0] + 0.587 * x[1] + 0.114 * x[2]

    brightness, contrast, saturation = factors
    image = (brightness * image).clamp(0, 1)
    image = (contrast * image + (1 - contrast) * luma(image).mean()).clamp(0, 1)
    image = (saturation * image + (1 - saturation) * luma(image)).clamp(0, 1)
    high, chroma = image.amax(dim=0), image.amax(dim=0) - image.amin(dim=0)
    r, g, b = (high - image) / torch.where(chroma > 0, chroma, 1.0)
    sixths = torch.where(r == 0, b - g, torch.where(g == 0, 2 + r - b, 4 + g - r)) + 6 * hue
    shifted = [(n + sixths) % 6 for n in (5, 3, 1)]  # of red, green and blue
    return torch.stack([high - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in shifted]).clamp(0, 1)
