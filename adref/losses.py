"""Losses that several methods share: SSIM, MS-SSIM in two forms, and the focal loss."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_window(size: int, sigma: float) -> Tensor:
    """(size,) float64: Gaussian weights about the middle, sum 1; `sigma` in pixels."""
    offset = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weight = torch.exp(-(offset**2) / (2 * sigma**2))
    return weight / weight.sum()


def ssim_map(
    a: Tensor,
    b: Tensor,
    window: Literal["gaussian", "uniform"] = "gaussian",
    size: int = 11,
    sigma: float = 1.5,
    padding: Literal["zero", "valid", "reflect"] = "zero",
    value_range: float | Literal["auto"] = 1.0,
) -> Tensor:
    """Structural similarity at every pixel of every channel.

    Z. Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 2004, Eq 13:

        (2 mu_a mu_b + C1)(2 cov_ab + C2) / ((mu_a^2 + mu_b^2 + C1)(var_a + var_b + C2))

    with C1 = (0.01 L)^2, C2 = (0.03 L)^2 and the weighted var x = E[x^2] - (E x)^2, without n / (n - 1).

    Args:
        a: (B, C, H, W).
        b: like `a`.
        window: weights of the local means.
        size: side of the window in pixels, odd.
        sigma: standard deviation of the Gaussian window in pixels.
        padding: "zero" sets zeros around both images and keeps H x W; "reflect" mirrors them at their outermost pixels,
            which are not repeated; "valid" takes whole windows only.
        value_range: L. "auto" guesses it from `a` as DRAEM's code does: top 255 if max a > 128, else 1; bottom -1 if
            min a < -0.5, else 0.

    Returns:
        (B, C, H, W), or (B, C, H - size + 1, W - size + 1) if "valid"; at least float32, in [-1, 1].
    """
    if a.dim() != 4 or a.shape != b.shape:
        raise ValueError(f"expected two (B, C, H, W) of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    if window not in ("gaussian", "uniform") or padding not in ("zero", "valid", "reflect") or size % 2 == 0:
        raise ValueError(f"expected gaussian|uniform, zero|valid|reflect, odd size; got {window}, {padding}, {size}")
    if value_range == "auto":
        low, high = torch.aminmax(a.detach())
        value_range = (255.0 if high > 128 else 1.0) - (-1.0 if low < -0.5 else 0.0)
    c1, c2 = (0.01 * value_range) ** 2, (0.03 * value_range) ** 2
    weight = gaussian_window(size, sigma if window == "gaussian" else float("inf"))  # infinite: all weights equal
    # A variance here is the difference of two near equal numbers: half precision would leave nothing of it.
    with torch.autocast(device_type=a.device.type, enabled=False):
        kind = torch.promote_types(a.dtype, torch.float32)
        a, b = a.to(kind), b.to(kind)
        (mean_top, mean_bottom), (top, bottom) = _halves(_products(a, b), weight.to(a), padding, c1, c2)
        return mean_top * top / (mean_bottom * bottom)


def _products(a: Tensor, b: Tensor) -> Tensor:
    """What has to be averaged for SSIM: (4, ...). Only the sum of the variances is needed: four means, not five."""
    return torch.stack((a, b, a * a + b * b, a * b))


def _halves(products: Tensor, weight: Tensor, padding: str, c1: float, c2: float) -> tuple:
    """Luminance, and contrast with structure, each as (numerator, denominator), in one convolution a side."""
    mu_a, mu_b, squares, product = _local_mean(products, weight, padding)
    mu_squares, mu_product = mu_a * mu_a + mu_b * mu_b, mu_a * mu_b
    luminance = 2 * mu_product + c1, mu_squares + c1
    return luminance, (2 * (product - mu_product) + c2, squares - mu_squares + c2)


def _local_mean(x: Tensor, weight: Tensor, padding: str) -> Tensor:
    """Weighted means of (..., H, W) along H, then along W; all leading axes are channels of one convolution."""
    flat, reach = x.reshape(1, -1, *x.shape[-2:]), len(weight) // 2
    if padding == "reflect":
        flat = F.pad(flat, (reach, reach, reach, reach), mode="reflect")
    reach = reach if padding == "zero" else 0
    count = flat.shape[1]
    flat = F.conv2d(flat, weight.view(1, 1, -1, 1).expand(count, -1, -1, -1), padding=(reach, 0), groups=count)
    flat = F.conv2d(flat, weight.view(1, 1, 1, -1).expand(count, -1, -1, -1), padding=(0, reach), groups=count)
    return flat.view(*x.shape[:-2], *flat.shape[-2:])


def ssim(
    a: Tensor,
    b: Tensor,
    window: Literal["gaussian", "uniform"] = "gaussian",
    size: int = 11,
    sigma: float = 1.5,
    padding: Literal["zero", "valid", "reflect"] = "zero",
    value_range: float | Literal["auto"] = 1.0,
) -> Tensor:
    """Mean of `ssim_map` over batch, channels and pixels, a scalar; arguments as there. The loss is 1 - ssim."""
    return ssim_map(a, b, window, size, sigma, padding, value_range).mean()


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


def focal(
    probabilities: Tensor,
    mask: Tensor,
    gamma: float = 2.0,
    alpha: float | Sequence[float] | None = None,
    smooth: float | None = 1e-5,
) -> Tensor:
    """Focal loss: the mean over pixels of -alpha_t (1 - p_t)^gamma ln p_t.

    T.-Y. Lin et al., "Focal loss for dense object detection", ICCV 2017, Eq 5, p_t being the probability of the true
    class. With `smooth` = s it is p_t = y . p + s as in DRAEM's code, y the one-hot mask clamped to
    [s / (K - 1), 1 - s].

    Args:
        probabilities: (B, K, H, W) after softmax; class 1 is "anomalous".
        mask: (B, 1, H, W), the class of each pixel: 1 = anomalous.
        gamma: focusing exponent, 0 or more; 0 gives cross-entropy.
        alpha: None: all weights 1. A number: weight of class 1, and 1 - alpha of class 0 (Lin et al.). A sequence: one
            weight a class.
        smooth: s; None or 0 takes p_t itself.
    """
    classes = probabilities.shape[1]
    if mask.shape != (probabilities.shape[0], 1, *probabilities.shape[2:]) or classes < 2:
        shapes = f"{tuple(probabilities.shape)} and {tuple(mask.shape)}"
        raise ValueError(f"expected (B, K, H, W), K > 1, and a mask (B, 1, H, W), got {shapes}")
    weights = (1 - alpha, alpha) if isinstance(alpha, (int, float)) else alpha
    if weights is not None and len(weights) != classes:
        raise ValueError(f"expected {classes} class weights in alpha, got {len(weights)}")
    with torch.autocast(device_type=probabilities.device.type, enabled=False):
        p = probabilities.to(torch.promote_types(probabilities.dtype, torch.float32))
        true_class = mask.long()
        p_t = p.gather(1, true_class)
        if smooth:
            others = p.sum(1, keepdim=True) - p_t
            p_t = (1 - smooth) * p_t + smooth / (classes - 1) * others + smooth
        # Rounding can lift p_t above 1, whose power is no number; and ln 0 has no gradient to step along.
        loss = -((1 - p_t).clamp_min(0) ** gamma) * p_t.clamp_min(torch.finfo(p.dtype).tiny).log()
        if weights is not None:
            loss = loss * p.new_tensor(weights)[true_class]
        return loss.mean()
