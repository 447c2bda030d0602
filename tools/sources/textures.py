"""Writes OpenCV's 8-bit colour conversions for tests/golden/opencv_colours.json.

    PYTHONPATH=tools python tools/sources/textures.py > tests/golden/opencv_colours.json

Needs opencv-python-headless; adref is not imported. Each string is bytes in hexadecimal: first the space's
codes of 125 colours, then the RGB that OpenCV makes of these codes after 20 was added to the luminance.
"""

import datetime
import json

import cv2
import numpy as np

levels = np.array([0, 50, 115, 190, 255], np.uint8)
colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(1, -1, 3)
golden = {
    "program": "OpenCV cvtColor, uint8",
    "version": cv2.__version__,
    "command": "PYTHONPATH=tools python tools/sources/textures.py",
    "date": datetime.date.today().isoformat(),
    "levels": levels.tolist(),
    "spaces": {},
}
for space in ("YCrCb", "HSV", "HLS", "Lab", "Luv", "YUV"):
    codes = cv2.cvtColor(colours, getattr(cv2, f"COLOR_RGB2{space}"))
    brighter = codes.copy()
    channel = {"HSV": 2, "HLS": 1}.get(space, 0)
    brighter[..., channel] = np.minimum(brighter[..., channel].astype(int) + 20, 255)
    back = cv2.cvtColor(brighter, getattr(cv2, f"COLOR_{space}2RGB"))
    golden["spaces"][space] = [codes.tobytes().hex(), back.tobytes().hex()]
print(json.dumps(golden, indent=1))
