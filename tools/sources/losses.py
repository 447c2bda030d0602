"""Prints other programs' SSIM for tests/ops/test_losses.py: `PYTHONPATH=tools python tools/sources/losses.py`.

Needs scikit-image and pytorch-msssim; adref is not imported.
"""

import importlib.metadata

import numpy as np
import pytorch_msssim
import torch
from skimage.metrics import structural_similarity

y, x = np.mgrid[0:48, 0:64]
a, b = (3 * x + 5 * y + x * y) % 17 / 16.0, (x + 2 * y + x * y // 4) % 16 / 15.0

plain = {"data_range": 1.0, "use_sample_covariance": False}
print("scikit-image", importlib.metadata.version("scikit-image"))
print("  gaussian, valid:", repr(float(structural_similarity(a, b, gaussian_weights=True, sigma=1.5, **plain))))
print("  uniform 11, valid:", repr(float(structural_similarity(a, b, win_size=11, **plain))))
print("  uniform 7, valid:", repr(float(structural_similarity(a, b, win_size=7, **plain))))
print("pytorch-msssim", importlib.metadata.version("pytorch-msssim"), "with torch", torch.__version__)
images = [torch.from_numpy(array)[None, None] for array in (a, b)]
print("  gaussian, valid:", repr(pytorch_msssim.ssim(*images, data_range=1.0).item()))
print("  gaussian 7, sigma 1, L = 2:", end=" ")
print(repr(pytorch_msssim.ssim(*images, data_range=2.0, win_size=7, win_sigma=1.0).item()))
