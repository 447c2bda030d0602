"""Image and mask files to arrays: the one reader of adref."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from adref.options import UserError

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")  # Pillow tries no other decoder, whatever a suffix claims


THREADS = 4  # decoding releases Python's lock; more threads than this wait for the disk


def read_image(path: str | Path) -> np.ndarray:
    """An image file as (H, W, 3) uint8 RGB. Every image of adref is read here, by these rules.

    - 8-bit RGB as it is; grey and 1-bit repeated; a palette looked up; CMYK and YCbCr converted by Pillow. Colour
      profiles and gamma are ignored. The EXIF orientation is applied.
    - Alpha (RGBA, LA, a transparent palette entry or colour) is composited over white, rounded: cut-out product
      pictures stand on white, and a hidden colour under alpha 0 must never reach a method.
    - 16-bit grey PNG and TIFF are scaled by the range of the type, round(value / 257), never by content, so that
      images stay comparable; 12-bit data in 16-bit words stays dark. 16-bit PNG with colour or alpha arrives from
      Pillow as 8 bit (the high byte, value // 256).
    - Refused: float, 32-bit and other modes, 12-bit and white-is-zero 16-bit TIFF, several pages or frames (but MPO,
      a camera's JPEG with a preview behind, is read). Each refusal and each damage is a UserError with the file.
    """
    with _decoded(path, _bytes(path)) as picture:
        return _rgb(picture, path)


def read_mask(path: str | Path) -> np.ndarray:
    """A mask file as (H, W) bool at its native size: True (anomalous) where any channel is > 0.

    Alpha and EXIF are ignored, a palette is looked up. CMYK and the like, where 0 is not black, raise UserError.
    """
    with _decoded(path, _bytes(path)) as picture:
        if picture.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
            raise UserError(f"{path}: a mask in mode {picture.mode}; expected grey, 1-bit, palette or RGB")
        values = np.asarray(picture.convert("RGB") if picture.mode in ("P", "PA") else picture) > 0
        return values if values.ndim == 2 else values[..., : 1 if picture.mode == "LA" else 3].any(axis=2)


def _bytes(path: str | Path) -> bytes:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror})") from error
    if not data:
        raise UserError(f"{path}: a file of zero bytes")
    return data


@contextmanager
def _decoded(path: str | Path, data: bytes) -> Iterator[Image.Image]:
    """Pillow's picture, wholly decoded; a failure, here or in the body of the `with`, becomes a UserError."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            frames = getattr(picture, "n_frames", 1)
            if frames > 1 and picture.format != "MPO":
                raise UserError(f"{path}: holds {frames} pages or frames; expected one")
            picture.load()
            yield picture
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not an image, or its head is damaged") from error
    except Exception as error:  # on a damaged file a decoder may raise anything
        raise UserError(f"{path}: truncated, damaged or too large ({error})") from error


def _rgb(picture: Image.Image, path: str | Path) -> np.ndarray:
    mode, kind = picture.mode, picture.format
    deep = mode.startswith("I;16") or (mode == "I" and kind == "PNG")  # "I": 16-bit PNG in Pillow < 10
    plain = mode in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LA", "PA", "RGBA")
    odd = deep and kind == "TIFF" and (picture.tag_v2.get(258), picture.tag_v2.get(262)) != ((16,), 1)
    if odd or not (deep or plain):
        raise UserError(f"{path}: {kind} in mode {mode}; expected 8-bit, 1-bit, or full 16-bit grey with 0 as black")
    if kind != "TIFF":  # Pillow turns a TIFF while loading; old versions keep the tag and would turn it twice
        ImageOps.exif_transpose(picture, in_place=True)
    if deep:
        grey = (np.asarray(picture).astype(np.uint32) + 128) // 257  # round(v / 257); 257 is odd: no ties
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    if mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        rgba = np.asarray(picture.convert("RGBA")).astype(np.uint32)
        colour, alpha = rgba[..., :3], rgba[..., 3:]
        return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))  # a copy: Pillow's is read-only
