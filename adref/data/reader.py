"""Reads the files of users: images and masks into arrays, the only reader of adref, and text."""

import hashlib
import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from adref.options import UserError

FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000")  # by the content, not by the suffix
THREADS = 4  # Pillow releases the interpreter lock while it decodes; more threads would wait for the disk
BYTES = 12  # that a pixel takes, or a little more, from its file to its map and overlay
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if os.name == "posix" else 2**34  # bytes
TEXTS = (b"iCCP", b"tEXt", b"zTXt", b"iTXt", b"\xe1http", b"\xe2ICC_", b"\xe2MPF\0")  # chunks of PNG and of JPEG
_OPENING = threading.Lock()


def read_image(path: str | Path) -> np.ndarray:
    """Reads an image file as RGB, uint8 (H, W, 3), by these rules.

    - 8-bit RGB is returned unchanged; grey and 1-bit values are repeated in three channels; palettes are looked up;
      Pillow converts CMYK and YCbCr. The EXIF orientation is applied; profiles, gamma, texts and previews are ignored.
    - Alpha (RGBA, LA, a transparent palette entry or colour) is composited over white and rounded: product photos are
      cut out on white, and the colour stored under alpha 0 must never reach a method.
    - 16-bit grey is scaled by the range of the type, round(value / 257), never by the content: images stay comparable,
      and 12-bit data in 16-bit words stays dark. With colour or alpha Pillow keeps the high byte, value // 256.
    - Refused: float, 32-bit and other modes, 12-bit and white-is-zero 16-bit TIFF, several pages or frames, more pixels
      than memory can hold. Each refusal and each damaged file is a UserError that names the file.
    """
    return decode_image(read_bytes(path), path)


def read_mask(path: str | Path) -> np.ndarray:
    """Reads a mask file as bool (H, W) at native size: True (anomalous) where any colour channel is > 0.

    The EXIF orientation is applied, palettes are looked up. Alpha is ignored unless there is one colour and alpha alone
    has a shape: then True where it is > 0. UserError for lossy files, negative values, CMYK, YCbCr, LAB and HSV.
    """
    return decode_mask(read_bytes(path), path) > 0


def read_text(path: str | Path) -> str:
    """Reads text as the system reads names, so that a name in it equals that of its file; without a byte order mark."""
    return os.fsdecode(Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf"))


def read_bytes(path: str | Path) -> bytes:
    """Reads a file whole; an unreadable or empty one raises UserError."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror})") from error
    if not data:
        raise UserError(f"{path}: a file of zero bytes")
    return data


def read_unchanged(path: str | Path, digest: str) -> bytes:
    """Reads a file whole; UserError unless `digest` is the SHA-256 of its bytes, as it was when the command began."""
    data = read_bytes(path)
    if hashlib.sha256(data).hexdigest() != digest:
        raise UserError(f"{path} has changed since the command began; expected it to stay as it was")
    return data


def as_pixels(picture) -> np.ndarray:
    """Makes RGB, uint8 (H, W, 3), of a path, a Pillow image (by the rules of `read_image`) or an array of that form."""
    if isinstance(picture, Image.Image):
        with _OPENING:  # it may be loaded now, by one thread
            picture.load()
        return pillow_pixels(picture if picture.format == "TIFF" else _upright(picture.copy()), "the picture")
    if isinstance(picture, str | Path):
        return read_image(picture)
    pixels = np.asarray(picture).copy()  # in the order that torch takes
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        got = f"{type(picture).__name__} of {pixels.dtype} {pixels.shape}"
        raise ValueError(f"expected a path, a PIL image or RGB as uint8 (H, W, 3); got {got}")
    return pixels


def by_rows(function: Callable, *arrays: np.ndarray) -> np.ndarray:
    """Applies a function of pixels to arrays (H, W, ...), a few rows at a time to save memory: uint8 (H, W, 3)."""
    (height, width), found = arrays[0].shape[:2], np.empty((*arrays[0].shape[:2], 3), np.uint8)
    rows = max(1, 2**18 // width)
    for top in range(0, height, rows):
        found[top : top + rows] = function(*(array[top : top + rows] for array in arrays))
    return found


def decode_image(data: bytes, path: str | Path) -> np.ndarray:
    """Decodes an image file by the rules of `read_image`; errors name `path`."""
    with _decoded(data, path) as picture:
        return pillow_pixels(picture, path)


def pillow_pixels(picture: Image.Image, path: str | Path) -> np.ndarray:
    """Converts an upright Pillow image by the rules of `read_image`; errors name `path`."""
    mode, kind = picture.mode, picture.format
    deep = mode.startswith("I;16") or (mode == "I" and kind == "PNG")  # "I": 16-bit PNG in Pillow < 10
    # TIFF tags: 258 bits a sample, 262 photometric interpretation (1: 0 is black)
    full = kind != "TIFF" or (picture.tag_v2.get(258), picture.tag_v2.get(262)) == ((16,), 1)
    if not (deep and full) and mode not in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LA", "PA", "RGBA"):
        raise UserError(f"{path}: {kind} mode {mode}; expected 8-bit, 1-bit or full 16-bit grey with 0 as black")
    if deep:  # round(v / 257); 257 is odd: no ties
        return by_rows(lambda grey: ((grey.astype(np.uint32) + 128) // 257)[..., None], np.asarray(picture))
    if mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        return by_rows(_over_white, np.asarray(picture.convert("RGBA")))
    return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))  # a copy: Pillow's is read-only


def _upright(picture: Image.Image) -> Image.Image:
    """Turns a loaded image as its EXIF says."""
    if picture.format != "TIFF":  # which Pillow has turned; old versions keep the tag
        with suppress(Exception):  # damaged EXIF says nothing
            ImageOps.exif_transpose(picture, in_place=True)
    return picture


def _over_white(rgba: np.ndarray) -> np.ndarray:
    rgba = rgba.astype(np.uint32)
    colour, alpha = rgba[..., :3], rgba[..., 3:]
    return (colour * alpha + 255 * (255 - alpha) + 127) // 255


def decode_mask(data: bytes, path: str | Path) -> np.ndarray:
    """Decodes the values of a mask file, (H, W), of which `read_mask` asks whether they are > 0; errors name `path`."""
    with _decoded(data, path) as picture:
        mode, kind = picture.mode, picture.format
        if mode in ("CMYK", "YCbCr", "LAB", "HSV"):
            raise UserError(f"{path}: a mask in mode {mode}; expected grey, 1-bit, palette or RGB")
        # VP8: lossy WebP; the last byte of JPEG 2000's coding style: 0 for the wavelet that rounds
        lossy = {"WEBP": b"VP8 " in data, "TIFF": "jpeg" in str(picture.info.get("compression")),
                 "JPEG2000": data[data.find(b"\xff\x52") + 13] == 0, "JPEG": True}  # fmt: skip
        if lossy.get(kind):
            raise UserError(f"{path}: a {kind} mask: its compression noise would count as anomalous")
        alpha = mode in ("LA", "PA", "RGBA") or ("transparency" in picture.info and mode in ("1", "L", "P", "RGB"))
        values = np.asarray(picture.convert("RGBA") if alpha else picture.convert("RGB") if mode == "P" else picture)
        if not (values >= 0).all():
            raise UserError(f"{path}: a mask with negative values or NaN; expected 0 where nothing is anomalous")
        if values.ndim == 2:
            return values
        shape, values = values[..., 3] if alpha else None, values[..., :3].max(axis=2)
        return shape if alpha and np.ptp(values) == 0 < np.ptp(shape) else values


@contextmanager
def _decoded(data: bytes, path: str | Path) -> Iterator[Image.Image]:
    """Yields the decoded Pillow image; a failure, also in the body of the `with`, becomes a UserError."""
    try:
        with _OPENING:  # Pillow has one limit of its own for all threads
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                picture = Image.open(io.BytesIO(_without_text(data)), formats=FORMATS)
            finally:
                Image.MAX_IMAGE_PIXELS = limit
        with picture:
            if BYTES * picture.width * picture.height > MEMORY:
                raise UserError(f"{path}: {picture.width} x {picture.height} pixels, too many for this machine")
            if getattr(picture, "n_frames", 1) > 1:
                raise UserError(f"{path}: holds {picture.n_frames} pages or frames; expected one")
            picture.load()
            yield _upright(picture)
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not an image, or its header is damaged") from error
    except Exception as error:  # on a damaged file a decoder may raise anything
        raise UserError(f"{path}: truncated, damaged or too large ({error})") from error


def _without_text(data: bytes) -> bytes:
    """Drops profiles, texts and previews of a PNG or JPEG file, for which Pillow may refuse the picture."""
    png, at, parts = data[:4] == b"\x89PNG", 8 if data[:4] == b"\x89PNG" else 2, []
    if not png and data[:2] != b"\xff\xd8":
        return data
    while at + 12 <= len(data) and (png or (data[at] == 0xFF and data[at + 1] != 0xDA)):  # DA: a JPEG's pixels follow
        kind = data[at + 4 : at + 8] if png else data[at + 1 : at + 2] + data[at + 4 : at + 8]
        length = data[at : at + 4] if png else data[at + 2 : at + 4]
        end = at + int.from_bytes(length, "big") + (12 if png else 2)
        parts += [] if kind in TEXTS else [data[at:end]]
        at = end
    return b"".join([data[: 8 if png else 2], *parts, data[at:]])
