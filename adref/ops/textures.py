"""Augmentation of DRAEM's textures: ten operations on 8-bit RGB images, (H, W, 3) uint8 -> (H, W, 3) uint8.

The public code of V. Zavrtanik et al., "DRAEM", ICCV 2021 (`data_loader.py`) calls imgaug 0.4; seven of the ten are the
paper's (`PAPER_OPERATIONS`). The arithmetic on 8-bit values is imgaug's, or Pillow's where imgaug follows Pillow; the
colour spaces are OpenCV's. `draw_operations` draws all random numbers, as plain values; the rest is pure.
"""

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from adref.ops.perlin import rotate

Drawn = tuple[tuple[str, tuple], ...]  # names of operations with their numbers, in the order of application


def draw_operations(rng: np.random.Generator, count: int = 3, operations: Iterable[str] | None = None) -> Drawn:
    """Draws `count` different operations (names of `operations`; None: all) in random order, and their numbers."""
    names = tuple(OPERATIONS if operations is None else operations)
    chosen = [names[i] for i in rng.choice(len(names), size=count, replace=False)]
    return tuple((name, OPERATIONS[name].draw(rng)) for name in chosen)


def apply_operations(texture: np.ndarray, drawn: Drawn, channel_order: Literal["rgb", "bgr"] = "rgb") -> np.ndarray:
    """Applies drawn operations to a texture (H, W, 3) uint8 RGB one after the other.

    "bgr" repeats a mistake of DRAEM's code, which passes BGR arrays to operations that expect RGB: red and blue are
    swapped in the colour spaces (and in the order of gamma's exponents).
    """
    if texture.dtype != np.uint8 or texture.ndim != 3 or texture.shape[2] != 3:
        raise ValueError(f"expected a texture (H, W, 3) uint8, got {texture.shape} {texture.dtype}")
    step = -1 if channel_order == "bgr" else 1
    texture = np.ascontiguousarray(texture[..., ::step])
    for name, numbers in drawn:
        texture = OPERATIONS[name].apply(texture, *numbers)
    return np.array(texture[..., ::step])


def gamma(texture: np.ndarray, *exponents: float) -> np.ndarray:
    """Computes floor(255 (x / 255)^g), one exponent g a channel (imgaug GammaContrast)."""
    level = np.linspace(0, 1, 256, dtype=np.float32)
    tables = [np.floor(255 * level ** np.float32(g)).astype(np.uint8) for g in exponents]
    return np.stack([table[texture[..., i]] for i, table in enumerate(tables)], axis=2)


def brightness(texture: np.ndarray, space: str, factor: float, addend: int, multiply_first: bool) -> np.ndarray:
    """Changes luminance: y -> floor(y factor) and y -> y + addend, clipped each time (MultiplyAndAddToBrightness)."""
    converted, channel = to_space(texture, space), {"HSV": 2, "HLS": 1}.get(space, 0)  # where V, L, Y or L stands
    table = np.arange(256, dtype=np.float32)
    for multiply in (multiply_first, not multiply_first):
        table = np.clip(np.floor(table * np.float32(factor)) if multiply else table + addend, 0, 255)
    converted[..., channel] = table.astype(np.uint8)[converted[..., channel]]
    return from_space(converted, space)


def hue_and_saturation(texture: np.ndarray, hue: int, saturation: int) -> np.ndarray:
    """Adds trunc(180 hue / 255) to H modulo 180 and saturation to S, clipped (imgaug AddToHueAndSaturation)."""
    hsv, level = to_space(texture, "HSV"), np.arange(256)
    hsv[..., 0] = ((level + int(180 * hue / 255)) % 180).astype(np.uint8)[hsv[..., 0]]
    hsv[..., 1] = np.clip(level + saturation, 0, 255).astype(np.uint8)[hsv[..., 1]]
    return from_space(hsv, "HSV")


class Operation(NamedTuple):
    """A function of a texture x and some numbers, and how to draw these."""

    draw: Callable[[np.random.Generator], tuple]
    apply: Callable[..., np.ndarray]


SPACES = ("YCrCb", "HSV", "HLS", "Lab", "Luv", "YUV")

OPERATIONS: dict[str, Operation] = {
    "gamma": Operation(lambda rng: tuple(rng.uniform(0.5, 2.0, size=3).tolist()), gamma),
    "brightness": Operation(lambda rng: (SPACES[rng.integers(len(SPACES))], rng.uniform(0.8, 1.2),
                                         int(rng.integers(-30, 31)), bool(rng.random() < 0.5)), brightness),
    # s + factor (x - s), s = x smoothed by (1 1 1, 1 5 1, 1 1 1) / 13 (Pillow's sharpness enhancer)
    "sharpness": Operation(lambda rng: (rng.uniform(0.0, 2.0),),
                           lambda x, factor: np.asarray(ImageEnhance.Sharpness(Image.fromarray(x)).enhance(factor))),
    "hue_and_saturation": Operation(lambda rng: tuple(rng.integers(-50, 51, size=2).tolist()), hue_and_saturation),
    # values of at least a threshold are inverted (imgaug Solarize); None changes nothing
    "solarise": Operation(lambda rng: (int(rng.integers(32, 128)) if rng.random() < 0.5 else None,),
                          lambda x, level: x if level is None else np.where(x >= level, 255 - x, x)),
    # the top bits of the 8 bits are kept (imgaug Posterize)
    "posterise": Operation(lambda rng: (int(rng.integers(1, 9)),), lambda x, bits: x & np.uint8(256 - 2 ** (8 - bits))),
    "invert": Operation(lambda rng: (), lambda x: 255 - x),  # imgaug Invert
    # each channel linearly from its range, less `cutoff` % of its pixels at each end, to [0, 255] (Pillow)
    "autocontrast": Operation(lambda rng: (int(rng.integers(0, 21)),),
                              lambda x, cutoff: np.asarray(ImageOps.autocontrast(Image.fromarray(x), cutoff=cutoff))),
    # each channel by its histogram h: x -> (q // 2 + sum_{i < x} h_i) // q, at most 255 (Pillow);
    # q = (number of pixels - h at the highest value) // 255; a channel with q = 0 stays
    "equalise": Operation(lambda rng: (), lambda x: np.asarray(ImageOps.equalize(Image.fromarray(x)))),
    "rotate": Operation(lambda rng: (rng.uniform(-45.0, 45.0),), rotate),
}  # fmt: skip

# The paper's "colour change" is read as hue_and_saturation, which stands in its place in the authors' code.
PAPER_OPERATIONS = ("posterise", "sharpness", "solarise", "equalise", "brightness", "hue_and_saturation",
                    "autocontrast")  # fmt: skip

# Colour spaces: OpenCV's 8-bit conventions (its documentation, "Color conversions"), channels in the order of the name.
# HSV and HLS keep half the hue angle, 0 to 179;
# Lab is (255/100 L, a + 128, b + 128), Luv (255/100 L, 255/354 (u + 134), 255/262 (v + 140)).
# Computed in float32 and rounded once, where OpenCV has whole-number tables.

_DIFFERENCES = {  # scales of R - Y and B - Y; then of their way back: V to R, V to G, U to G, U to B
    "YCrCb": (0.713, 0.564, 1.403, -0.714, -0.344, 1.773),
    "YUV": (0.877, 0.492, 1.140, -0.581, -0.395, 2.032),
}
_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))  # linear sRGB
_WHITE_X, _WHITE_Z = 0.950456, 1.088754  # D65, Y = 1
_WHITE_U, _WHITE_V = 0.19783940, 0.46834220  # u' and v' of that white


def to_space(texture: np.ndarray, space: str) -> np.ndarray:
    """Converts (..., 3) uint8 RGB to (..., 3) uint8 of one of `SPACES`."""
    r, g, b = np.moveaxis(texture, -1, 0).astype(np.float32)
    if space in _DIFFERENCES:
        red, blue = _DIFFERENCES[space][:2]
        y = np.rint(0.299 * r + 0.587 * g + 0.114 * b)
        v, u = red * (r - y) + 128, blue * (b - y) + 128
        return _pack(y, v, u) if space == "YCrCb" else _pack(y, u, v)
    if space in ("HSV", "HLS"):
        high, low = np.maximum(np.maximum(r, g), b), np.minimum(np.minimum(r, g), b)
        chroma = high - low
        divisor = np.maximum(chroma, 1)  # at chroma 0 the differences are 0, too
        hue = np.where(high == g, 2 + (b - r) / divisor, 4 + (r - g) / divisor)
        hue = np.rint(30 * np.where(high == r, (g - b) / divisor, hue))
        hue += 180 * (hue < 0)
        if space == "HSV":
            return _pack(hue, 255 * chroma / np.maximum(high, 1), high)
        total = high + low
        return _pack(hue, total / 2, 255 * chroma / np.maximum(np.minimum(total, 510 - total), 1))
    s = np.arange(256) / 255  # the 8-bit values of sRGB; then the linear light in [0, 1] of each
    linear = np.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4).astype(np.float32)
    r, g, b = linear[np.moveaxis(texture, -1, 0)]
    x, y, z = (i * r + j * g + k * b for i, j, k in _XYZ)
    root_y = _root(y)
    lightness = 116 * root_y - 16
    if space == "Lab":
        a, b = 500 * (_root(x / _WHITE_X) - root_y) + 128, 200 * (root_y - _root(z / _WHITE_Z)) + 128
        return _pack(2.55 * lightness, a, b)
    divisor = np.maximum(x + 15 * y + 3 * z, 1e-6)  # black: L is 0, and u = v = 0 whatever the quotient is
    u, v = 13 * lightness * (4 * x / divisor - _WHITE_U), 13 * lightness * (9 * y / divisor - _WHITE_V)
    return _pack(2.55 * lightness, 255 / 354 * (u + 134), 255 / 262 * (v + 140))


def from_space(converted: np.ndarray, space: str) -> np.ndarray:
    """Converts (..., 3) uint8 of one of `SPACES` to (..., 3) uint8 RGB, clipped."""
    p, q, s = np.moveaxis(converted, -1, 0).astype(np.float32)
    hue, level = converted[..., 0], np.arange(256, dtype=np.float32)
    if space in _DIFFERENCES:
        red, green_v, green_u, blue = _DIFFERENCES[space][2:]
        v, u = (q - 128, s - 128) if space == "YCrCb" else (s - 128, q - 128)
        return _pack(p + red * v, p + green_v * v + green_u * u, p + blue * u)
    if space == "HSV":
        turns = [(n + level / 30) % 6 for n in (5, 3, 1)]
        return _pack(*(s - s * q / 255 * np.clip(np.minimum(k, 4 - k), 0, 1)[hue] for k in turns))
    if space == "HLS":
        turns = [(n + level / 15) % 12 for n in (0, 8, 4)]
        reach = s / 255 * np.minimum(q, 255 - q)
        return _pack(*(q - reach * np.clip(np.minimum(k - 3, 9 - k), -1, 1)[hue] for k in turns))
    lightness = p / 2.55
    root_y = (lightness + 16) / 116
    y = _cube(root_y)
    if space == "Lab":
        x, z = _WHITE_X * _cube(root_y + (q - 128) / 500), _WHITE_Z * _cube(root_y - (s - 128) / 200)
    else:
        # The limits 1/4 and 2 are OpenCV's; they matter only for codes that are no colour.
        u, v = q * (354 / 255) - 134 + 13 * _WHITE_U * lightness, s * (262 / 255) - 140 + 13 * _WHITE_V * lightness
        quotient = np.clip(0.25 / np.where(v == 0, 1e-6, v), -0.25, 0.25)
        x, z = np.clip((9 * y * u * quotient, y * ((156 * lightness - 3 * u) * quotient - 5)), 0, 2)
    lights = (np.clip(i * x + j * y + k * z, 0, 1) for i, j, k in np.linalg.inv(_XYZ).tolist())  # linear; then sRGB:
    return _pack(*(255 * np.where(t <= 0.0031308, 12.92 * t, 1.055 * t ** np.float32(1 / 2.4) - 0.055) for t in lights))


def _pack(*planes: np.ndarray) -> np.ndarray:
    """Rounds and clips three (...) planes into one (..., 3) uint8 array."""
    return np.stack([np.clip(np.rint(plane), 0, 255).astype(np.uint8) for plane in planes], axis=-1)


def _root(t: np.ndarray) -> np.ndarray:
    """Computes CIE's f(t), a cube root with a linear foot: L = 116 f(Y) - 16."""
    return np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)


def _cube(f: np.ndarray) -> np.ndarray:
    """Inverts `_root`."""
    return np.where(f > 0.206893, f * f * f, (f - 16 / 116) / 7.787)
