"""RealNet's selection of feature channels (AFS) and of residual channels (RRS)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adref.ops.all_reduce import all_reduce_mean

RRS_MOMENTUM = 0.9  # of the running statistics, in the sense of torch.nn.BatchNorm2d (code)


def min_max(difference: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Normalises (..., h, w) over some axes by F of equation 4: (d - min) / (max - min + 1e-4)."""
    low, high = difference.amin(axes, keepdim=True), difference.amax(axes, keepdim=True)
    return (difference - low) / (high - low + 1e-4)


def afs_losses(difference: Tensor, mask: Tensor, align: str) -> Tensor:
    """Computes equation 4 of one batch, (C,); minimum and maximum are those of a channel in the batch.

    `difference` is squared, of features (B, C, h, w); `mask` is (B, 1, H, W) in {0, 1}; `align` "mask" samples the mask
    at every (H / h)-th pixel, "feature" enlarges the normalised features.
    """
    if align == "mask":
        mask = F.interpolate(mask, difference.shape[2:], mode="nearest")
        return (min_max(difference, (0, 2, 3)) - mask).square().mean((0, 2, 3))
    losses = []
    for part in difference.split(64, dim=1):  # 2048 channels at 256 x 256 would take 8 GB at once
        part = F.interpolate(min_max(part, (0, 2, 3)), mask.shape[2:], mode="bilinear", align_corners=True)
        losses.append((part - mask).square().mean((0, 2, 3)))
    return torch.cat(losses)


def select(losses: Tensor, count: int) -> Tensor:
    """Returns the indices of the `count` smallest losses (C,), ascending; NaN counts as the largest finite loss."""
    finite = losses[losses.isfinite()]
    losses = losses.nan_to_num(nan=float(finite.max()) if len(finite) else 0.0)
    return losses.sort(stable=True).indices[:count].sort().values


class ResidualSelection(nn.Module):
    """RRS: selects, for each image, the `by_max` residuals with the largest maxima and the `by_mean` largest means.

    They are ranked after a batch norm without affine part. It scales each channel by a positive number, so it suffices
    to normalise the maximum and the mean of a channel instead of all its pixels. `normalised` passes on the normalised
    residuals instead of the raw ones.
    """

    def __init__(self, channels: int, by_max: int, by_mean: int, normalised: bool):
        super().__init__()
        self.by_max, self.by_mean, self.normalised = by_max, by_mean, normalised
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    @staticmethod
    def statistics(residuals: Tensor) -> tuple[Tensor, Tensor, int | Tensor]:
        """Returns mean and variance (C,) of (B, C, H, W) over the pixels of all processes, and the number of these."""
        count = residuals[:, 0].numel()
        mean, pixels = all_reduce_mean(residuals.mean((0, 2, 3)), count)
        # three times as fast as torch's var
        variance, _ = all_reduce_mean((residuals - mean[:, None, None]).square().mean((0, 2, 3)), count)
        return mean, variance, pixels

    @torch.no_grad()
    def rank(self, residuals: Tensor) -> Tensor:
        """Ranks the channels of (B, C, H, W) as RRS does; in training it updates the running statistics.

        Returns indices (B, by_max + by_mean), by descending maximum, then mean; a channel may be in both parts.
        """
        mean, variance = self.running_mean, self.running_var
        if self.training:
            mean, variance, pixels = self.statistics(residuals)
            self.running_mean.lerp_(mean, RRS_MOMENTUM)
            self.running_var.lerp_(variance * pixels / (pixels - 1), RRS_MOMENTUM)
        values = torch.stack((residuals.amax((2, 3)), residuals.mean((2, 3))))  # (2, B, C)
        values = (values - mean) * (variance + 1e-5).rsqrt()
        by_max, by_mean = values.sort(dim=2, descending=True, stable=True).indices
        return torch.cat((by_max[:, : self.by_max], by_mean[:, : self.by_mean]), dim=1)

    def forward(self, residuals: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, C, H, W) to the selected residuals (B, by_max + by_mean, H, W) and their indices."""
        indices = self.rank(residuals)
        if self.normalised and self.training:  # with a gradient through the statistics
            mean, variance, _ = self.statistics(residuals)
            residuals = (residuals - mean[:, None, None]) * (variance + 1e-5).rsqrt()[:, None, None]
        elif self.normalised:
            residuals = F.batch_norm(residuals, self.running_mean, self.running_var)
        return residuals.gather(1, indices[:, :, None, None].expand(-1, -1, *residuals.shape[2:])), indices
