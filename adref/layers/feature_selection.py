"""RealNet's anomaly-aware selection of features (AFS; Zhang et al., CVPR 2024)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def min_max(difference: Tensor, axes: tuple[int, ...]) -> Tensor:
    """F of equation 4: n = (d - min) / (max - min + 1e-4), minimum and maximum over some axes of (..., h, w)."""
    low, high = difference.amin(axes, keepdim=True), difference.amax(axes, keepdim=True)
    return (difference - low) / (high - low + 1e-4)


def afs_losses(
    difference: Tensor, mask: Tensor, over: str = "batch", align: str = "mask", align_corners: bool = True
) -> Tensor:
    """Equation 4 of a batch, for each channel.

    Args:
        difference: squared differences of features (B, C, h, w).
        mask: (B, 1, H, W) in {0, 1}.
        over: "batch" or "image", of which `min_max` takes minimum and maximum.
        align: "mask" takes every (H / h)-th pixel of the mask, "feature" enlarges the features.
        align_corners: of that.

    Returns:
        (C,). A channel that never differs has the mask's share of the pixels.
    """
    axes, losses = (0, 2, 3) if over == "batch" else (2, 3), []
    if align == "mask":
        mask = F.interpolate(mask, difference.shape[2:], mode="nearest")
    for part in difference.split(64 if align == "feature" else difference.shape[1], dim=1):
        part = min_max(part, axes)
        if align == "feature":  # in parts: a layer of 2048 channels at 256 x 256 would be 8 GB
            part = F.interpolate(part, mask.shape[2:], mode="bilinear", align_corners=align_corners)
        losses.append((part - mask).square().mean((0, 2, 3)))
    return torch.cat(losses)


def select(losses: Tensor, count: int) -> Tensor:
    """Indices of the `count` smallest losses (C,), ascending; of equal ones the smaller index, NaN as the largest."""
    finite = losses[losses.isfinite()]
    losses = losses.nan_to_num(nan=float(finite.max()) if len(finite) else 0.0)
    return losses.sort(stable=True).indices[:count].sort().values
