"""Selective kernel feature fusion: a weighted sum of maps, the weights chosen for each channel from a global mean.

S. W. Zamir et al., "Learning Enriched Features for Real Image Restoration and Enhancement" (MIRNet), ECCV 2020, section
3.1, after X. Li et al., "Selective Kernel Networks", CVPR 2019. Parameter names are those of MIRNet's code.
"""

import torch
from torch import Tensor, nn


class SelectiveKernelFusion(nn.Module):
    """Sums maps: sum_i softmax_i(A_i z) m_i with z = PReLU(A mean(sum_i m_i)), softmax over the maps in each channel.

    The weights are the same at every position. `width` is the channels C of every map, `count` the number of maps; z
    has max(C // reduction, 4) channels, `reduction` 8 in MIRNet.
    """

    def __init__(self, *, width: int, count: int, reduction: int):
        super().__init__()
        inner = max(width // reduction, 4)
        self.conv_du = nn.Sequential(nn.Conv2d(width, inner, 1, bias=False), nn.PReLU())
        self.fcs = nn.ModuleList(nn.Conv2d(inner, width, 1, bias=False) for _ in range(count))

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Fuses `count` maps (B, C, H, W) into (B, C, H, W)."""
        return sum(m * w for m, w in zip(maps, self.weights(maps), strict=True))

    def weights(self, maps: list[Tensor]) -> Tensor:
        """Computes the weights (count, B, C, 1, 1); they sum to 1 over the maps."""
        z = self.conv_du(sum(m.mean(dim=(2, 3), keepdim=True) for m in maps))
        return torch.stack([fc(z) for fc in self.fcs]).softmax(dim=0)
