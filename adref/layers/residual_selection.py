"""RealNet's selection of reconstruction residuals (RRS) and the network that judges them (Zhang et al., CVPR 2024)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adref.layers.feature_unet import ResidualUnit


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


class Discriminator(nn.Module):
    """Residuals (B, N, h, w) -> logits (B, 2, H, W): two residual units, and convolutions between enlargements.

    Args:
        channels: N.
        size: (H, W) of the logits. The last two convolutions run at twice the sides of the residuals.
        side: of the convolutions, 3 or 1.
        align_corners: of the enlargements.
    """

    def __init__(self, channels: int, size: tuple[int, int], side: int = 3, align_corners: bool = True):
        super().__init__()
        self.size, self.align_corners = size, align_corners

        def convolution(before: int, after: int) -> nn.Conv2d:
            return nn.Conv2d(before, after, side, padding=side // 2)

        self.units = nn.Sequential(*(ResidualUnit(channels, channels, side) for _ in range(2)), nn.ReLU())
        self.reduce = nn.Sequential(
            convolution(channels, 128), nn.BatchNorm2d(128), nn.ReLU(),
            convolution(128, 32), nn.ReLU(), convolution(32, 8), nn.ReLU(),
        )  # fmt: skip
        self.out = nn.Sequential(convolution(8, 4), nn.ReLU(), convolution(4, 2))

    def forward(self, residuals: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, 2, *size)."""
        x = self.reduce(self.units(residuals))
        x = self.out(enlarge(x, tuple(2 * side for side in x.shape[2:]), self.align_corners))
        return enlarge(x, self.size, self.align_corners)


def enlarge(x: Tensor, size: tuple[int, int], align_corners: bool = True) -> Tensor:
    """Bilinear resizing of (B, C, h, w) to `size`."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)
