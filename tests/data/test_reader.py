"""The rules of the image and mask reader; files that it refuses are in test_layouts.py."""

import struct

import numpy as np
import pytest
from PIL import Image
from test_layouts import encoded, png, tiff

from adref.data.reader import read_image, read_mask


def pixels(mode: str, values: list, kind: str = "PNG", **options) -> bytes:
    image = Image.new(mode, (len(values), 1))
    image.putdata(values)
    return encoded(kind, image, **options)


def palette(**options) -> bytes:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    return encoded("PNG", image, **options)


def grey(values: list[int]) -> list[list[int]]:
    return [[value] * 3 for value in values]


DEEP = [0, 128, 129, 255, 256, 300, 32768, 65406, 65407, 65535]
DEEP_8 = grey([0, 0, 1, 1, 1, 1, 128, 254, 255, 255])  # round(v / 257), e.g. 128 / 257 = 0.498, 129 / 257 = 0.502
PREVIEW = {"save_all": True, "append_images": [Image.new("RGB", (8, 8))], "quality": 100}  # as cameras add one
RGB, WHITE = [(1, 2, 3), (250, 0, 9)], [255] * 3
MODES = {  # bytes of a file of one row, its pixels as RGB
    "RGB": (pixels("RGB", RGB), RGB),
    "BMP": (pixels("RGB", RGB, "BMP"), RGB),
    "WebP": (pixels("RGB", RGB, "WEBP", lossless=True), RGB),
    "TIFF": (pixels("RGB", RGB, "TIFF"), RGB),
    "L": (pixels("L", [0, 7, 255]), grey([0, 7, 255])),
    "1": (pixels("1", [0, 255]), grey([0, 255])),
    "L, JPEG": (pixels("L", [200] * 8, "JPEG", quality=100), grey([200] * 8)),
    "MPO": (pixels("RGB", [(200, 200, 200)] * 8, "MPO", **PREVIEW), grey([200] * 8)),
    "P": (palette(), [[10, 20, 30], [40, 50, 60], [70, 80, 90]]),
    "P with a transparent entry": (palette(transparency=1), [[10, 20, 30], WHITE, [70, 80, 90]]),
    # 10 * 128 + 255 * 127 = 33665, / 255 = 132.02; 20 gives 137.04, 30 gives 142.06
    "P with alpha": (palette(transparency=bytes([128, 255, 0])), [[132, 137, 142], [40, 50, 60], WHITE]),
    "RGBA": (pixels("RGBA", [(10, 20, 30, 128), (9, 9, 9, 0), (1, 2, 3, 255)]), [[132, 137, 142], WHITE, [1, 2, 3]]),
    "RGBA, WebP": (pixels("RGBA", [(9, 9, 9, 0), (1, 2, 3, 255)], "WEBP", lossless=True), [WHITE, [1, 2, 3]]),
    # 12 * 100 + 255 * 155 = 40725, / 255 = 159.7
    "LA": (pixels("LA", [(10, 128), (12, 100), (0, 0), (7, 255)]), grey([132, 160, 255, 7])),
    "RGB, transparent colour": (pixels("RGB", [(1, 2, 3), (4, 5, 6)], transparency=(1, 2, 3)), [WHITE, [4, 5, 6]]),
    "L with a transparent value": (pixels("L", [5, 6], transparency=5), grey([255, 6])),
    "CMYK": (pixels("CMYK", [(0, 0, 0, 0), (0, 0, 0, 255)], "TIFF"), grey([255, 0])),
    "16-bit PNG": (png(16, 0, 10, [np.array(DEEP, ">u2").tobytes()]), DEEP_8),
    "I;16 TIFF": (tiff(np.array([DEEP], "<u2"), 16, 1), DEEP_8),
    "I;16B TIFF": (pixels("I;16B", DEEP, "TIFF"), DEEP_8),
    # with colour or alpha Pillow keeps the high byte: 300 // 256 = 1, 514 // 256 = 2, 767 // 256 = 2
    "16-bit RGB PNG": (png(16, 2, 1, [struct.pack(">3H", 300, 514, 767)]), [[1, 2, 2]]),
    "16-bit RGBA PNG": (png(16, 6, 1, [struct.pack(">4H", 300, 514, 767, 65535)]), [[1, 2, 2]]),
}


@pytest.mark.parametrize("mode", MODES)
def test_read_image(tmp_path, mode):
    text, expected = MODES[mode]
    (tmp_path / "a.png").write_bytes(text)  # the content decides, not the suffix
    image = read_image(tmp_path / "a.png")
    assert image.dtype == np.uint8 and image.shape == (1, len(expected), 3) and image.flags.writeable
    assert image[0].tolist() == [list(colour) for colour in expected]


def test_16_bit_values_are_scaled_by_their_range(tmp_path):
    values = np.arange(65536).reshape(256, 256)
    (tmp_path / "a.png").write_bytes(png(16, 0, 256, [row.tobytes() for row in values.astype(">u2")]))
    assert (read_image(tmp_path / "a.png") == np.floor(values / 257 + 0.5)[:, :, None]).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "TIFF, 16 bit"])
def test_exif_orientation_is_applied_once(tmp_path, kind):
    stored, exif = np.zeros((4, 6), np.uint8), Image.Exif()
    stored[0, 0] = 255  # orientation 6: the image is upright after a rotation by 90 degrees clockwise
    exif[0x0112] = 6
    texts = {"TIFF": tiff(stored, 8, 1, orientation=6), "TIFF, 16 bit": tiff(stored.astype("<u2") * 257, 16, 1, 1, 6)}
    text = texts.get(kind) or encoded(kind, Image.fromarray(stored), exif=exif, quality=100)
    (tmp_path / "a").write_bytes(text)
    image = read_image(tmp_path / "a")
    assert image.shape == (6, 4, 3) and image[0, 3, 0] > 200 and image[:, :3].max() < 50
    if kind != "JPEG":  # a mask is turned as its picture is
        assert np.argwhere(read_mask(tmp_path / "a")).tolist() == [[0, 3]]


MASKS = [
    (pixels("L", [0, 1, 2, 127, 255]), [False, True, True, True, True]),
    (pixels("1", [0, 255]), [False, True]),
    (pixels("RGB", [(0, 0, 0), (0, 0, 1)]), [False, True]),
    (pixels("RGBA", [(0, 0, 0, 255), (1, 0, 0, 0)]), [False, True]),
    (pixels("LA", [(0, 255), (1, 0)]), [False, True]),
    (png(16, 0, 2, [struct.pack(">2H", 0, 1)]), [False, True]),
    (tiff(np.array([[0.0, 0.5]], "<f4"), 32, 3), [False, True]),
    (palette(), [True, True, True]),  # entry 0 is a colour here, not black
]


@pytest.mark.parametrize("text, expected", MASKS)
def test_read_mask(tmp_path, text, expected):
    (tmp_path / "mask.png").write_bytes(text)
    mask = read_mask(tmp_path / "mask.png")
    assert mask.dtype == bool and mask.tolist() == [expected]
