"""Losses that several methods share, SSIM and the focal loss, and a statistic of reconstructions."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_window(size: int, sigma: float) -> Tensor:
    """Computes Gaussian weights (size,) float64 about the middle, of sum 1; `sigma` in pixels."""
    offset = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weight = torch.exp(-(offset**2) / (2 * sigma**2))
    return weight / weight.sum()


def ssim_map(a: Tensor, b: Tensor, window: Literal["gaussian", "uniform"] = "gaussian", size: int = 11,
             sigma: float = 1.5, padding: Literal["zero", "valid", "reflect"] = "zero",
             value_range: float | Literal["auto"] = 1.0) -> Tensor:  # fmt: skip
    """Computes the structural similarity at every pixel of every channel.

    Z. Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 2004, Eq 13:

        (2 mu_a mu_b + C1)(2 cov_ab + C2) / ((mu_a^2 + mu_b^2 + C1)(var_a + var_b + C2))

    with C1 = (0.01 L)^2, C2 = (0.03 L)^2 and the weighted var x = E[x^2] - (E x)^2, without n / (n - 1).

    Args:
        a, b: (B, C, H, W).
        window: weights of the local means.
        size, sigma: side of the window (odd) and standard deviation of the Gaussian one, in pixels.
        padding: "zero" pads both images by zeros and keeps H x W; "reflect" mirrors them at their outermost pixels,
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
    # A variance here is the difference of two nearly equal numbers: half precision would lose it.
    with torch.autocast(device_type=a.device.type, enabled=False):
        kind = torch.promote_types(a.dtype, torch.float32)
        a, b = a.to(kind), b.to(kind)
        (mean_top, mean_bottom), (top, bottom) = ssim_factors(window_products(a, b), weight.to(a), padding, c1, c2)
        return mean_top * top / (mean_bottom * bottom)


def window_products(a: Tensor, b: Tensor) -> Tensor:
    """Stacks the products that SSIM averages, (4, ...): it needs only the sum of the variances."""
    return torch.stack((a, b, a * a + b * b, a * b))


def ssim_factors(products: Tensor, weight: Tensor, padding: str, c1: float, c2: float) -> tuple:
    """Computes luminance, and contrast times structure, each as (numerator, denominator)."""
    mu_a, mu_b, squares, product = local_mean(products, weight, padding)
    mu_squares, mu_product = mu_a * mu_a + mu_b * mu_b, mu_a * mu_b
    return (2 * mu_product + c1, mu_squares + c1), (2 * (product - mu_product) + c2, squares - mu_squares + c2)


def local_mean(x: Tensor, weight: Tensor, padding: str) -> Tensor:
    """Averages (..., H, W) along H, then along W; all leading axes are channels of one convolution."""
    flat, reach = x.reshape(1, -1, *x.shape[-2:]), len(weight) // 2
    if padding == "reflect":
        # CUDA adds up the gradient in any order: with an axis at a time no sum has three terms.
        for frame in ((reach, reach, 0, 0), (0, 0, reach, reach)) if flat.is_cuda else ((reach,) * 4,):
            flat = F.pad(flat, frame, mode="reflect")
    reach, count = reach if padding == "zero" else 0, flat.shape[1]
    weights = weight.expand(count, 1, 1, -1)
    flat = F.conv2d(flat, weights.mT, padding=(reach, 0), groups=count)
    flat = F.conv2d(flat, weights, padding=(0, reach), groups=count)
    return flat.view(*x.shape[:-2], *flat.shape[-2:])


def ssim(a: Tensor, b: Tensor, window: Literal["gaussian", "uniform"] = "gaussian", size: int = 11, sigma: float = 1.5,
         padding: Literal["zero", "valid", "reflect"] = "zero",
         value_range: float | Literal["auto"] = 1.0) -> Tensor:  # fmt: skip
    """Averages `ssim_map` over batch, channels and pixels to a scalar; arguments as there. The loss is 1 - ssim."""
    return ssim_map(a, b, window, size, sigma, padding, value_range).mean()


def channel_signs(output: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Correlates each colour channel of two (B, 3, H, W), the mean over images: statistics "sign/red" and so on.

    Near 1 for a reconstruction; negative for a channel at its negative, where SSIM has a maximum, too, because mean and
    covariance both change sign; 0 for a constant.
    """
    a, b = (x.detach().float().flatten(2) for x in (output, target))
    signs = F.cosine_similarity(a - a.mean(dim=2, keepdim=True), b - b.mean(dim=2, keepdim=True), dim=2).mean(dim=0)
    return dict(zip(("sign/red", "sign/green", "sign/blue"), signs))


def focal(probabilities: Tensor, mask: Tensor, gamma: float = 2.0, alpha: float | None = None,
          smooth: float | None = 1e-5) -> Tensor:  # fmt: skip
    """Computes the focal loss: the mean over pixels of -alpha_t (1 - p_t)^gamma ln p_t.

    T.-Y. Lin et al., "Focal loss for dense object detection", ICCV 2017, Eq 5, p_t being the probability of the true
    class. With `smooth` = s it is p_t = y . p + s as in DRAEM's code, y the one-hot mask clamped to
    [s / (K - 1), 1 - s].

    Args:
        probabilities, mask: (B, K, H, W) after softmax, and (B, 1, H, W), the class of each pixel; 1 is "anomalous".
        gamma: focusing exponent, 0 or more; 0 gives cross-entropy.
        alpha: weight of class 1, and 1 - alpha of class 0, K = 2; None: all weights 1.
        smooth: s; None or 0 takes p_t itself.
    """
    classes = probabilities.shape[1]
    if mask.shape != (probabilities.shape[0], 1, *probabilities.shape[2:]) or classes < 2:
        shapes = f"{tuple(probabilities.shape)} and {tuple(mask.shape)}"
        raise ValueError(f"expected (B, K, H, W), K > 1, and a mask (B, 1, H, W), got {shapes}")
    if alpha is not None and classes != 2:
        raise ValueError(f"expected two classes with alpha, got {classes}")
    with torch.autocast(device_type=probabilities.device.type, enabled=False):
        p = probabilities.to(torch.promote_types(probabilities.dtype, torch.float32))
        true_class = mask.long()
        p_t = p.gather(1, true_class)
        if smooth:
            others = p.sum(1, keepdim=True) - p_t
            p_t = (1 - smooth) * p_t + smooth / (classes - 1) * others + smooth
        # Rounding can lift p_t above 1, where the power is NaN; and ln 0 has no finite gradient.
        loss = -((1 - p_t).clamp_min(0) ** gamma) * p_t.clamp_min(torch.finfo(p.dtype).tiny).log()
        if alpha is not None:
            loss = loss * p.new_tensor((1 - alpha, alpha))[true_class]
        return loss.mean()
