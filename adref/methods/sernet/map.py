"""The terms of SeRNet's anomaly map: CIELAB and multi-scale gradient magnitude similarity."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adref.ops.textures import to_space

_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
_WHITE = (0.95047, 1.0, 1.08883)  # D65, 2 degrees


def cielab(images: Tensor) -> Tensor:
    """Converts sRGB to CIELAB under D65: (B, 3, H, W) in [0, 1] -> L in [0, 100], a and b.

    IEC 61966-2-1 and CIE 15. With linear light v = c / 12.92 up to 0.04045, else ((c + 0.055) / 1.055)^2.4, and X, Y, Z
    relative to white, f(t) = t^(1/3) above (6/29)^3, else ((29/3)^3 t + 16) / 116:

        L = 116 f(Y) - 16,  a = 500 (f(X) - f(Y)),  b = 200 (f(Y) - f(Z))

    OpenCV and scikit-image round the matrix: their a and b differ by up to 0.005.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected (B, 3, H, W) in [0, 1], got {tuple(images.shape)}")
    light = torch.where(images <= 0.04045, images / 12.92, ((images + 0.055) / 1.055) ** 2.4).unbind(1)
    xyz = [sum(share * c for share, c in zip(row, light)) / white for row, white in zip(_XYZ, _WHITE)]
    f_x, f_y, f_z = (torch.where(t > 216 / 24389, t.clamp_min(216 / 24389) ** (1 / 3), (24389 / 27 * t + 16) / 116)
                     for t in xyz)  # fmt: skip
    return torch.stack((116 * f_y - 16, 500 * (f_x - f_y), 200 * (f_y - f_z)), dim=1)


def msgms(x: Tensor, y: Tensor, scales: int = 4, grey: bool = False, padding: str = "zero") -> Tensor:
    """Computes multi-scale gradient magnitude similarity: (B, C, H, W) in [0, 1] twice -> (B, 1, H, W), 1 where equal.

    W. Xue et al., "Gradient Magnitude Similarity Deviation", IEEE TIP 2014; over scales: V. Zavrtanik et al.,
    "Reconstruction by inpainting for visual anomaly detection" (RIAD), Pattern Recognition 2021. With Prewitt's
    gradients (a column of thirds, minus the third after it, and the transpose), g = sqrt(gx^2 + gy^2 + 1e-12),

        GMS = (2 g_x g_y + c) / (g_x^2 + g_y^2 + c),   c = 0.0026 = 170 / 255^2

    of both images, averaged 2 x 2 for every further scale; the maps, enlarged to H x W (bilinear, half-pixel
    centres), are averaged over the scales, then over the channels. The gradient has no sign: the negative of an image
    scores 1, too, except in the frame with zero padding.

    Sides are 3 x 2^(scales - 1) pixels or more. `grey` takes the mean of the channels, after a 3 x 3 median filter with
    zero padding at every scale. `padding` before the gradient: "zero", "replicate" or "none", with which the map is
    enlarged from one pixel less a side.
    """
    min_side = 3 * 2 ** (scales - 1)
    if x.ndim != 4 or x.shape != y.shape or scales < 1 or min(x.shape[2:]) < min_side:
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(f"expected two (B, C, H, W) of one shape, sides of {min_side} or more, got {shapes}")
    size, total = x.shape[2:], 0.0
    pair = [images.mean(dim=1, keepdim=True) if grey else images for images in (x, y)]
    for scale in range(scales):
        pair = [F.avg_pool2d(images, 2) if scale else images for images in pair]
        a, b = (_gradient(_median(images) if grey else images, padding) for images in pair)  # (B, C, h, w)
        similarity = ((2 * a * b + 0.0026) / (a * a + b * b + 0.0026)).mean(dim=1, keepdim=True)
        # The mean of the channels commutes with the enlargement.
        total = total + F.interpolate(similarity, size, mode="bilinear", align_corners=False)
    return total / scales


def _gradient(images: Tensor, padding: str) -> Tensor:
    """Computes Prewitt's gradient magnitude of (B, C, H, W): the same shape, or two pixels less a side."""
    if padding != "none":
        images = F.pad(images, (1, 1, 1, 1), mode={"zero": "constant", "replicate": "replicate"}[padding])
    rows = (images[..., :-2, :] + images[..., 1:-1, :] + images[..., 2:, :]) / 3
    columns = (images[..., :-2] + images[..., 1:-1] + images[..., 2:]) / 3
    across, down = rows[..., :-2] - rows[..., 2:], columns[..., :-2, :] - columns[..., 2:, :]
    return torch.sqrt(across * across + down * down + 1e-12)


def _median(images: Tensor) -> Tensor:
    """Filters (..., H, W) with the median of 3 x 3 pixels, zero padding."""
    return F.pad(images, (1, 1, 1, 1)).unfold(-2, 3, 1).unfold(-2, 3, 1).flatten(-2).median(dim=-1).values


def edgrec_colour(x: Tensor, y: Tensor) -> Tensor:
    """Computes EdgRec's difference of colour: (B, 3, H, W) in [0, 1] twice -> (B, 1, H, W) whole numbers below 256.

    Its code (github.com/liutongkun/EdgRec, ColorlossLab.py, test.py) truncates 180 x to 8 bits, takes OpenCV's 8-bit
    Lab, and subtracts, squares and adds in 8 bits: modulo 256. The Lab here is within 2 of OpenCV's integer tables,
    which after the modulo can be any difference.
    """
    a, b = (to_space((180 * z).permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8), "Lab")[..., 1:] for z in (x, y))
    difference = (a - b) * (a - b)
    return torch.from_numpy(difference[..., 0] + difference[..., 1]).unsqueeze(1).to(x)
