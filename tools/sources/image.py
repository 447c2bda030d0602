"""Prints other programs' numbers for tests/ops/test_image.py: `PYTHONPATH=tools python tools/sources/image.py`.

Needs scikit-image and opencv-python-headless; adref is not imported.
"""

import importlib.metadata
import zlib

import cv2
import numpy as np
from skimage.filters import threshold_otsu

y, x = np.mgrid[0:96, 0:128]
disc = (x - 50) ** 2 + (y - 40) ** 2 < 900
pictures = {
    "disc": 40 + (7 * x + 11 * y + x * y // 3) % 61 + 90 * disc,
    "ramp": (x * x + 3 * y * y) // 170,
    "tiles": x % 32 * (y % 24) // 3,
}
masks = {
    "dots": (x % 17 - 8) ** 2 + (y % 13 - 6) ** 2 < x * y // 7 % 60,
    "stripes": (x + 2 * y + x * y // 50) % 14 < 8,
}

print("scikit-image", importlib.metadata.version("scikit-image"))
for name, picture in pictures.items():
    print(f"  threshold_otsu, {name}:", int(threshold_otsu(picture.astype(np.uint8))))
print("OpenCV", importlib.metadata.version("opencv-python-headless"))
for name, picture in pictures.items():
    threshold, _ = cv2.threshold(picture.astype(np.uint8), 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    print(f"  threshold with THRESH_OTSU, {name}:", int(threshold))
levels = {"two levels": {50: 600, 200: 400}, "five levels": {10: 100, 30: 700, 90: 60, 150: 80, 220: 60}}
levels |= {f"one level, {value}": {value: 20} for value in (0, 1, 2, 255)}
columns = {name: np.repeat(list(counts), list(counts.values()))[:, None] for name, counts in levels.items()}
negatives = {f"255 - {name}": 255 - picture for name, picture in pictures.items()}
for name, picture in (pictures | negatives | columns).items():
    found = [
        int(cv2.threshold(picture.astype(np.uint8), 0, 255, code)[0]) for code in (cv2.THRESH_TRIANGLE, cv2.THRESH_OTSU)
    ]
    print(f"  threshold with THRESH_TRIANGLE and THRESH_OTSU, {name}:", *found)
colours = np.stack(list(pictures.values()), axis=2).astype(np.uint8)
result = cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY)
print(f"  cvtColor, RGB2GRAY: sum {result.sum(dtype=int)}, crc32 of the bytes {zlib.crc32(result.tobytes())}")
square = np.ones((3, 3), np.uint8)
for name, mask in masks.items():
    print(f"  mask {name}: {mask.sum()} pixels")
    for operation, code in (("closing", cv2.MORPH_CLOSE), ("opening", cv2.MORPH_OPEN)):
        result = cv2.morphologyEx(mask.astype(np.uint8), code, square)
        print(f"  morphologyEx, {operation}: {result.sum()} pixels, crc32 of the bytes {zlib.crc32(result.tobytes())}")
