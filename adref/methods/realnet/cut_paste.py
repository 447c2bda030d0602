"""CutPaste: a piece of the picture, its colours a little changed, pasted elsewhere in the same picture.

C.-L. Li, K. Sohn, J. Yoon, T. Pfister, "CutPaste: Self-Supervised Learning for Anomaly Detection and Localization",
CVPR 2021. Two kinds: a large rectangle, and a scar, which is thin and turned. Both are one record of numbers: the
`draw_` functions spend the random numbers, the rest is pure.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class CutPasteNumbers(NamedTuple):
    """The random numbers of one pasted piece; rows and columns in pixels."""

    source: tuple[int, int]  # top and left of where it is cut
    size: tuple[int, int]  # height and width there
    degrees: float  # counter-clockwise, as seen on a screen
    place: tuple[int, int]  # top and left of the box of the turned piece
    factors: tuple[float, float, float]  # of brightness, contrast, saturation
    hue: float  # in turns of the circle of hues


def draw_rectangle(
    rng: np.random.Generator,
    shape: tuple[int, int],
    area: tuple[float, float] = (0.02, 0.15),
    aspect: tuple[float, float] = (0.3, 3.3),
    jitter: float = 0.1,
) -> CutPasteNumbers:
    """Draws a rectangle, where it is cut, and another place for it.

    Args:
        rng: the stream of this sample.
        shape: (H, W).
        area: U(...) of H W pixels.
        aspect: width / height is U(first, 1) or U(1, second), with equal probability.
        jitter: of the colours, see `change_colour`: factors from U(1 - j, 1 + j), hue from U(-j, j).
    """
    pixels = rng.uniform(*area) * shape[0] * shape[1]
    ratio = rng.uniform(aspect[0], 1.0) if rng.random() < 0.5 else rng.uniform(1.0, aspect[1])
    return _draw(rng, shape, (math.sqrt(pixels / ratio), math.sqrt(pixels * ratio)), 0.0, jitter)


def draw_scar(
    rng: np.random.Generator,
    shape: tuple[int, int],
    width: tuple[float, float] = (2.0, 16.0),
    length: tuple[float, float] = (10.0, 25.0),
    degrees: float = 45.0,
    jitter: float = 0.1,
) -> CutPasteNumbers:
    """Draws a scar: upright where it is cut, turned where it is pasted.

    Args:
        rng: the stream of this sample.
        shape: (H, W).
        width: U(...) pixels of a picture whose shorter side is 256.
        length: U(...), alike.
        degrees: it turns by U(-d, d).
        jitter: as in `draw_rectangle`.
    """
    unit = min(shape) / 256
    size = unit * rng.uniform(*length), unit * rng.uniform(*width)
    return _draw(rng, shape, size, rng.uniform(-degrees, degrees), jitter)


def _draw(
    rng: np.random.Generator, shape: tuple[int, int], size: tuple[float, float], degrees: float, jitter: float
) -> CutPasteNumbers:
    """Where a piece is cut and where it is pasted, both uniform, and its change of colour."""
    size = tuple(min(max(round(side), 1), n) for side, n in zip(size, shape))
    source = tuple(int(rng.integers(n - side + 1)) for side, n in zip(size, shape))
    rows, columns = (max(n - side, 0) + 1 for side, n in zip(_box(size, degrees), shape))
    index = int(rng.integers(rows * columns))
    if divmod(index, columns) == source:  # never where it was, if there is another place
        index = (index + rows * columns // 2) % (rows * columns)
    factors = tuple(rng.uniform(1 - jitter, 1 + jitter, 3).tolist())
    return CutPasteNumbers(source, size, degrees, divmod(index, columns), factors, rng.uniform(-jitter, jitter))


def _box(size: tuple[int, int], degrees: float) -> tuple[int, int]:
    """Height and width of the upright box around a turned rectangle."""
    cos, sin = (abs(f(math.radians(degrees))) for f in (math.cos, math.sin))
    # Whole numbers up to rounding stay whole.
    return math.ceil(size[0] * cos + size[1] * sin - 1e-9), math.ceil(size[1] * cos + size[0] * sin - 1e-9)


def cut_paste(image: Tensor, numbers: CutPasteNumbers) -> tuple[Tensor, Tensor]:
    """Cuts, changes the colours, turns about the centre (each pixel takes the nearest of the piece), and pastes.

    Args:
        image: (3, H, W) in [0, 1].
        numbers: from `draw_rectangle` or `draw_scar`.

    Returns:
        corrupted (3, H, W), equal to `image` where nothing was pasted; mask (H, W) float32 in {0, 1}: all pasted
        pixels, or none where not one of them differs from `image`, as black on black.
    """
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"expected (3, H, W) in [0, 1], got {tuple(image.shape)}")
    (top, left), (height, width) = numbers.source, numbers.size
    piece = change_colour(image[:, top : top + height, left : left + width], numbers.factors, numbers.hue)
    cos, sin = (f(math.radians(numbers.degrees)) for f in (math.cos, math.sin))
    rows, columns = _box(numbers.size, numbers.degrees)
    v = torch.arange(rows, dtype=torch.float64)[:, None] - (rows - 1) / 2
    u = torch.arange(columns, dtype=torch.float64) - (columns - 1) / 2
    y = (sin * u + cos * v + height / 2).floor().long()  # which pixel of the piece lies here
    x = (cos * u - sin * v + width / 2).floor().long()
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    i, j = (inside.nonzero() + torch.tensor(numbers.place)).T
    seen = (i < image.shape[1]) & (j < image.shape[2])  # a box larger than the picture overhangs it
    i, j, y, x = i[seen], j[seen], y[inside][seen], x[inside][seen]
    corrupted, mask = image.clone(), torch.zeros(image.shape[1:])
    corrupted[:, i, j] = piece[:, y, x]
    mask[i, j] = float((corrupted != image).any())
    return corrupted, mask


def change_colour(image: Tensor, factors: Sequence[float], hue: float) -> Tensor:
    """Brightness, contrast, saturation, hue, always in this order: (3, H, W) in [0, 1] -> the same.

    What torchvision's ColorJitter does to floats, but that it shuffles the four. With G = 0.2989 R + 0.587 G + 0.114 B
    of a pixel, and clipped to [0, 1] after each step,

        x <- b x,   x <- c x + (1 - c) mean(G),   x <- s x + (1 - s) G,   hue <- hue + h in HSV

    A grey picture keeps its greys in the last two.

    Args:
        image: (3, H, W) in [0, 1].
        factors: b, c, s; 1 changes nothing.
        hue: h, in turns of the circle of hues.
    """
    brightness, contrast, saturation = factors
    image = (brightness * image).clamp(0, 1)
    image = (contrast * image + (1 - contrast) * _luma(image).mean()).clamp(0, 1)
    image = (saturation * image + (1 - saturation) * _luma(image)).clamp(0, 1)
    high, chroma = image.amax(dim=0), image.amax(dim=0) - image.amin(dim=0)
    r, g, b = (high - image) / torch.where(chroma > 0, chroma, 1.0)
    sixths = torch.where(r == 0, b - g, torch.where(g == 0, 2 + r - b, 4 + g - r)) + 6 * hue
    turned = [(n + sixths) % 6 for n in (5, 3, 1)]  # of red, green and blue
    return torch.stack([high - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in turned]).clamp(0, 1)


def _luma(image: Tensor) -> Tensor:
    return 0.2989 * image[0] + 0.587 * image[1] + 0.114 * image[2]
