"""RealNet's feature selection (AFS) and reconstruction residual selection (RRS)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


class ResidualSelection(nn.Module):
    """RRS: for each image the residuals with the largest maximum, then those with the largest mean.

    They are ranked behind a batch norm without affine part, whose statistics are kept here. It scales each channel by
    a positive number, so that maximum and mean are normalised in place of all pixels: the same but for rounding.

    Args:
        channels: C of the residuals.
        by_max: how many by the maximum.
        by_mean: how many by the mean.
        momentum: of the running statistics, as of `torch.nn.BatchNorm2d`.
        normalised: passes on normalised residuals, not raw ones.
        ranked: in descending order; else by index.
    """

    # Joins means of a number of elements with those of other processes; adref.distributed puts its own here.
    pool = staticmethod(lambda mean, elements: (mean, elements))

    def __init__(
        self,
        channels: int,
        by_max: int,
        by_mean: int,
        momentum: float = 0.9,
        normalised: bool = False,
        ranked: bool = True,
    ):
        super().__init__()
        self.by_max, self.by_mean, self.momentum = by_max, by_mean, momentum
        self.normalised, self.ranked = normalised, ranked
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def statistics(self, residuals: Tensor) -> tuple[Tensor, Tensor, int]:
        """Mean and variance (C,) of (B, C, H, W) over all pixels of the batch, and how many pixels that are."""
        own = residuals[:, 0].numel()
        mean, pixels = self.pool(residuals.mean((0, 2, 3)), own)
        # three times as fast as torch's var
        variance, _ = self.pool((residuals - mean[:, None, None]).square().mean((0, 2, 3)), own)
        return mean, variance, pixels

    @torch.no_grad()
    def rank(self, residuals: Tensor) -> Tensor:
        """Equation 7: indices (B, by_max + by_mean) of channels of (B, C, H, W); in training, new statistics."""
        mean, variance = self.running_mean, self.running_var
        if self.training:
            mean, variance, pixels = self.statistics(residuals)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * pixels / (pixels - 1), self.momentum)
        scale = (variance + 1e-5).rsqrt()
        lists = []
        for count, values in ((self.by_max, residuals.amax((2, 3))), (self.by_mean, residuals.mean((2, 3)))):
            order = ((values - mean) * scale).sort(dim=1, descending=True, stable=True).indices[:, :count]
            lists.append(order if self.ranked else order.sort(dim=1).values)
        return torch.cat(lists, dim=1)

    def forward(self, residuals: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> selected (B, by_max + by_mean, H, W), and their indices."""
        indices = self.rank(residuals)
        if self.normalised and self.training:  # with a gradient through the statistics
            mean, variance, _ = self.statistics(residuals)
            residuals = (residuals - mean[:, None, None]) * (variance + 1e-5).rsqrt()[:, None, None]
        elif self.normalised:
            residuals = F.batch_norm(residuals, self.running_mean, self.running_var)
        return residuals.gather(1, indices[:, :, None, None].expand(-1, -1, *residuals.shape[2:])), indices
