"""Noise-to-norm's loss: multi-scale SSIM and L1."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from adref.ops.losses import _halves, _local_mean, _products, gaussian_window


def ms_ssim_l1(
    a: Tensor,
    b: Tensor,
    sigmas: Sequence[float] = (0.5, 1.0, 2.0, 4.0, 8.0),
    constants: tuple[float, float] = (0.01**2, 0.03**2),
    padding: Literal["reflect", "zero"] = "reflect",
    channels: Literal["mean", "product", "port_groups"] = "mean",
) -> tuple[Tensor, Tensor]:
    """The two halves of the loss of Zhao et al. at every pixel: multi-scale SSIM, and absolute error.

    H. Zhao et al., "Loss Functions for Image Restoration with Neural Networks", IEEE TCI 2017; equations 6 to 9 of
    noise-to-norm. The loss is alpha (1 - similarity) + (1 - alpha) error with

        similarity = l_M prod_j cs_j,  error = G_M * |a - b|
        l = (2 mu_a mu_b + C1) / (mu_a^2 + mu_b^2 + C1),  cs = (2 cov_ab + C2) / (var_a + var_b + C2)

    The scales are Gaussian windows of sigma_j, not levels of a pyramid: all at full resolution and none raised to a
    power; M is the widest. This is not Wang's MS-SSIM (`ms_ssim`).

    Args:
        a: (B, C, H, W) in [0, 1], each side longer than the windows' reach of 2 max(sigmas) pixels.
        b: like `a`.
        sigmas: ascending, in pixels; every window is cut at twice the widest one and has weights of sum 1.
        constants: C1, C2.
        padding: "reflect" mirrors at the outermost pixels, which are not repeated; "zero" sets zeros around.
        channels: "mean" of the channels' maps; "product": l and cs are multiplied over the channels, too;
            "port_groups": the same, as in a PyTorch port (psyrocloud/MS-SSIM_L1_LOSS) whose filters and channels are
            out of step: see `port_groups`.

    Returns:
        similarity (B, 1, H, W), 1 where both are equal, at worst about -1; error (B, 1, H, W). At least float32.
    """
    if channels not in ("mean", "product", "port_groups") or not len(sigmas) or min(sigmas) <= 0:
        raise ValueError(f"expected mean|product|port_groups and sigmas above 0, got {channels} and {sigmas}")
    if a.dim() != 4 or a.shape != b.shape or list(sigmas) != sorted(sigmas) or padding not in ("reflect", "zero"):
        got = f"{tuple(a.shape)}, {tuple(b.shape)}, {sigmas}, {padding}"
        raise ValueError(f"expected two (B, C, H, W) of one shape, ascending sigmas, reflect|zero; got {got}")
    c1, c2 = constants
    reach = math.ceil(2 * max(sigmas))
    if padding == "reflect" and any(side <= reach for side in a.shape[2:]):
        raise ValueError(f"expected sides above {reach} pixels, the reach of the windows, got {tuple(a.shape[2:])}")
    with torch.autocast(device_type=a.device.type, enabled=False):  # variances, as in `ssim_map`
        kind = torch.promote_types(a.dtype, torch.float32)
        a, b = a.to(kind), b.to(kind)
        products, structures, luminances = _products(a, b), [], []
        for sigma in sigmas:
            inside = min(reach, int(9 * sigma) + 1)  # what is cut is below the last bit, 1e-17 of the largest weight
            weight = gaussian_window(2 * reach + 1, sigma)[reach - inside : reach + inside + 1].to(a)
            (mean_top, mean_bottom), (top, bottom) = _halves(products, weight, padding, c1, c2)
            structures.append(top / bottom)
            luminances.append(mean_top / mean_bottom)  # (B, C, H, W)
        error = _local_mean((a - b).abs(), weight, padding)
        if channels == "port_groups":
            pairs = port_groups(len(sigmas), a.shape[1])
            factors = [structures[scale][:, channel] for channel, scale in pairs]
            factors += [luminances[scale][:, channel] for channel, scale in pairs[-a.shape[1] :]]
            similarity = torch.stack(factors).prod(dim=0).unsqueeze(1)
        else:
            similarity = luminances[-1] * torch.stack(structures).prod(dim=0)  # l of the widest window
            if channels == "product":
                similarity = similarity.prod(dim=1, keepdim=True)
        return similarity.mean(dim=1, keepdim=True), error.mean(dim=1, keepdim=True)


def port_groups(scales: int, channels: int = 3) -> list[tuple[int, int]]:
    """(channel, scale) of each filter in that port's grouped convolution, whose groups and filters are out of step:
    filter k has the scale k // channels, as its author meant, and sees channel k // scales.

    Of three channels and sigmas 0.5, 1, 2, 4, 8, red is filtered with .5, .5, .5, 1, 1, green with 1, 2, 2, 2, 4, and
    blue with 4, 4, 8, 8, 8; l is blue's at 8, cubed.
    """
    return [(k // scales, k // channels) for k in range(scales * channels)]


def ms_ssim(a: Tensor, b: Tensor, value_range: float = 1.0) -> Tensor:
    """Multi-scale SSIM over a pyramid of five levels, each half as large as the one before.

    Z. Wang, E. Simoncelli, A. Bovik, "Multiscale structural similarity for image quality assessment", Asilomar 2003,
    Eq 7, with its weights: l_5^w5 prod_j cs_j^wj of the means over whole 11 x 11 Gaussian windows. A negative mean of
    cs has no power: it is set to 0, as is usual.

    Args:
        a: (B, C, H, W), each side above 160 pixels.
        b: like `a`.
        value_range: L.

    Returns:
        (B,), the mean of the channels.
    """
    if a.dim() != 4 or a.shape != b.shape or min(a.shape[2:]) <= 160:
        raise ValueError(f"expected two (B, C, H, W) with sides above 160, got {tuple(a.shape)} and {tuple(b.shape)}")
    c1, c2 = (0.01 * value_range) ** 2, (0.03 * value_range) ** 2
    exponents = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    result = 1.0
    with torch.autocast(device_type=a.device.type, enabled=False):
        kind = torch.promote_types(a.dtype, torch.float32)
        a, b = a.to(kind), b.to(kind)
        weight = gaussian_window(11, 1.5).to(a)
        for level, exponent in enumerate(exponents):
            if level:
                odd = [side % 2 for side in a.shape[2:]]
                a, b = (F.avg_pool2d(picture, 2, padding=odd) for picture in (a, b))
            (mean_top, mean_bottom), (top, bottom) = _halves(_products(a, b), weight, "valid", c1, c2)
            similarity = top / bottom
            if level == len(exponents) - 1:
                similarity = similarity * mean_top / mean_bottom
            mean = similarity.mean(dim=(2, 3))
            power = mean.clamp_min(torch.finfo(kind).tiny) ** exponent  # 0 ** exponent has no gradient
            result = result * torch.where(mean > 0, power, 0)
    return result.mean(dim=1)
