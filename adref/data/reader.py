"""Reads image and mask files into arrays: the only reader of adref."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from adref.options import UserError

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")  # the content decides which, not the suffix
THREADS = 4  # Pillow releases the interpreter lock while it decodes; more threads would wait for the disk


def read_file(path: str | Path) -> tuple[np.ndarray, str]:
    """Reads an image file once; returns its pixels, by the rules of `read_image`, and the SHA-256 of its bytes."""
    data = read_bytes(path)
    return decode_image(data, path), hashlib.sha256(data).hexdigest()


def read_image(path: str | Path) -> np.ndarray:
    """Reads an image file as RGB, uint8 (H, W, 3), by these rules.

    - 8-bit RGB is returned unchanged; grey and 1-bit values are repeated in three channels; palettes are looked up;
      Pillow converts CMYK and YCbCr. Colour profiles and gamma are ignored. The EXIF orientation is applied.
    - Alpha (RGBA, LA, a transparent palette entry or colour) is composited over white and rounded: product photos are
      cut out on white, and the colour stored under alpha 0 must never reach a method.
    - 16-bit grey is scaled by the range of the type, round(value / 257), never by the content: images stay comparable,
      and 12-bit data in 16-bit words stays dark. With colour or alpha Pillow keeps the high byte, value // 256.
    - Refused: float, 32-bit and other modes, 12-bit and white-is-zero 16-bit TIFF, several pages or frames (except MPO,
      a camera's JPEG followed by a preview). Each refusal and each damaged file is a UserError that names the file.
    """
    return decode_image(read_bytes(path), path)


def read_mask(path: str | Path) -> np.ndarray:
    """Reads a mask file as bool (H, W) at native size: True (anomalous) where any colour channel is > 0.

    Alpha and EXIF are ignored, palettes looked up. CMYK, YCbCr, LAB and HSV, where 0 is not black, raise UserError.
    """
    return decode_mask(read_bytes(path), path)


def read_bytes(path: str | Path) -> bytes:
    """Reads a file whole; an unreadable or empty one raises UserError."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror})") from error
    if not data:
        raise UserError(f"{path}: a file of zero bytes")
    return data


def decode_image(data: bytes, path: str | Path) -> np.ndarray:
    """Decodes an image file by the rules of `read_image`; errors name `path`."""
    with _decoded(data, path) as picture:
        mode, kind = picture.mode, picture.format
        deep = mode.startswith("I;16") or (mode == "I" and kind == "PNG")  # "I": 16-bit PNG in Pillow < 10
        # TIFF tags: 258 bits a sample, 262 photometric interpretation (1: 0 is black)
        full = kind != "TIFF" or (picture.tag_v2.get(258), picture.tag_v2.get(262)) == ((16,), 1)
        if not (deep and full) and mode not in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LA", "PA", "RGBA"):
            raise UserError(f"{path}: {kind} mode {mode}; expected 8-bit, 1-bit or full 16-bit grey with 0 as black")
        if kind != "TIFF":  # Pillow rotates a TIFF while loading; old versions keep the tag and would rotate it twice
            ImageOps.exif_transpose(picture, in_place=True)
        if deep:
            grey = (np.asarray(picture).astype(np.uint32) + 128) // 257  # round(v / 257); 257 is odd: no ties
            return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
        if mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
            rgba = np.asarray(picture.convert("RGBA")).astype(np.uint32)
            colour, alpha = rgba[..., :3], rgba[..., 3:]
            return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
        return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))  # a copy: Pillow's is read-only


def decode_mask(data: bytes, path: str | Path) -> np.ndarray:
    """Decodes a mask file as `read_mask` does; errors name `path`."""
    with _decoded(data, path) as picture:
        if picture.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
            raise UserError(f"{path}: a mask in mode {picture.mode}; expected grey, 1-bit, palette or RGB")
        values = np.asarray(picture.convert("RGB") if picture.mode in ("P", "PA") else picture) > 0
        return values if values.ndim == 2 else values[..., : 1 if picture.mode == "LA" else 3].any(axis=2)


@contextmanager
def _decoded(data: bytes, path: str | Path) -> Iterator[Image.Image]:
    """Yields the decoded Pillow image; a failure, also in the body of the `with`, becomes a UserError."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":
                raise UserError(f"{path}: holds {picture.n_frames} pages or frames; expected one")
            picture.load()
            yield picture
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not an image, or its header is damaged") from error
    except Exception as error:  # on a damaged file a decoder may raise anything
        raise UserError(f"{path}: truncated, damaged or too large ({error})") from error
