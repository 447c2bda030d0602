"""Prints OpenCV's and Pillow's numbers for the resize case of tests/data/test_examples.py (sourced goldens).

    pip install opencv-python-headless==4.14.0.94 pillow && PYTHONPATH=tools python tools/sources/resize.py

It imports nothing of adref: the picture comes from a formula, the numbers from the other programs.
"""

import cv2
import numpy as np
import PIL
from PIL import Image

picture = np.array([[(37 * y * y + 91 * x + 53 * x * y) % 256 for x in range(7)] for y in range(5)], np.uint8)

if __name__ == "__main__":
    print("picture", picture.tolist())
    for height, width in ((3, 4), (8, 10)):
        print(f"\nto height {height}, width {width}")
        for kind in (np.float32, np.uint8):
            linear = cv2.resize(picture.astype(kind), (width, height), interpolation=cv2.INTER_LINEAR)
            print(f"OpenCV {cv2.__version__} INTER_LINEAR {kind.__name__}:", np.round(linear, 4).tolist())
        for mode in ("F", "L"):
            image = Image.fromarray(picture).convert(mode).resize((width, height), Image.Resampling.BILINEAR)
            print(f"Pillow {PIL.__version__} BILINEAR mode {mode}:", np.round(np.asarray(image), 4).tolist())
