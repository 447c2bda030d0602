"""Loss and anomaly map of noise-to-norm: multi-scale SSIM and L1 of Zhao et al."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from adref.ops.losses import gaussian_window, local_mean, ssim_factors, window_products


def ms_ssim_l1(a: Tensor, b: Tensor, *, sigmas: Sequence[float],
               constants: tuple[float, float]) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Computes multi-scale SSIM and blurred absolute error at every pixel (equations 2 to 7, the error of 9).

    H. Zhao et al., "Loss Functions for Image Restoration with Neural Networks", IEEE TCI 2017. The loss is
    alpha (1 - similarity) + (1 - alpha) error with

        similarity = l_M prod_j cs_j,  error = G_M * |a - b|
        l = (2 mu_a mu_b + C1) / (mu_a^2 + mu_b^2 + C1),  cs = (2 cov_ab + C2) / (var_a + var_b + C2)

    The scales are Gaussian windows of sigma_j at full resolution, not levels of a pyramid, and none is raised to a
    power, unlike Wang's MS-SSIM; M is the widest. The border is mirrored at the outermost pixels, unrepeated.

    `a` and `b` are (B, C, H, W) in [0, 1], each side longer than the windows' reach of 2 max(sigmas) pixels; `sigmas`
    ascend, in pixels: every window is cut at twice the widest one and has weights of sum 1; `constants` are C1, C2.
    Returns similarity, 1 where both are equal, at worst about -1, and error: (B, 1, H, W) each, the mean of the
    channels' maps, at least float32.
    """
    if a.dim() != 4 or a.shape != b.shape or not len(sigmas) or list(sigmas) != sorted(sigmas) or sigmas[0] <= 0:
        got = f"{tuple(a.shape)}, {tuple(b.shape)}, {sigmas}"
        raise ValueError(f"expected two (B, C, H, W) of one shape and ascending sigmas above 0; got {got}")
    (c1, c2), reach = constants, math.ceil(2 * max(sigmas))
    if any(side <= reach for side in a.shape[2:]):
        raise ValueError(f"expected sides above {reach} pixels, the reach of the windows, got {tuple(a.shape[2:])}")
    with torch.autocast(device_type=a.device.type, enabled=False):  # variances, as in `ssim_map`
        kind = torch.promote_types(a.dtype, torch.float32)
        a, b = a.to(kind), b.to(kind)
        products, structures = window_products(a, b), []
        for sigma in sigmas:
            inside = min(reach, int(9 * sigma) + 1)  # weights beyond are below the last bit: 1e-17 of the largest
            weight = gaussian_window(2 * reach + 1, sigma)[reach - inside : reach + inside + 1].to(a)
            (mean_top, mean_bottom), (top, bottom) = ssim_factors(products, weight, "reflect", c1, c2)
            structures.append(top / bottom)  # (B, C, H, W)
        similarity = mean_top / mean_bottom * torch.stack(structures).prod(dim=0)  # l of the widest window
        error = local_mean((a - b).abs(), weight, "reflect")
        return similarity.mean(dim=1, keepdim=True), error.mean(dim=1, keepdim=True)
