"""Atrous spatial pyramid pooling.

L.-C. Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017 (DeepLabv3); without its 1x1
branch, as SRDAD (Scientific Reports 2025, Eq 7) describes it.
"""

import torch
from torch import Tensor, nn


class ASPP(nn.Module):
    """Concatenates 3x3 convolutions of several dilations and the mean of a map: (B, C, H, W) -> (B, C, H, W).

    A rate beyond the map's side reaches nothing but zeros with its outer taps: on 8 x 8, at rates 3, 6 and 12, 56 %,
    25 % and 11 % of what the taps read is data. The last is the centre tap alone: that branch is a 1x1 convolution.

    `width` is C of input and output, `branch_width` b of each branch; a 1x1 convolution maps (rates + 1) b to C where
    they differ. `rates` are the dilations in pixels. Batch norm follows each convolution; the pooled branch has none,
    as one value a channel is left there.
    """

    def __init__(self, *, width: int, branch_width: int, rates: tuple[int, ...]):
        super().__init__()
        b = branch_width
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, b, 3, padding=r, dilation=r, bias=False), nn.BatchNorm2d(b), nn.ReLU(True))
            for r in rates
        )
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, b, 1), nn.ReLU(inplace=True))
        total = b * (len(rates) + 1)
        self.project = nn.Conv2d(total, width, 1) if total != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        maps = [*(branch(x) for branch in self.branches), self.pooled(x).expand(-1, -1, *x.shape[2:])]
        return self.project(torch.cat(maps, dim=1))
