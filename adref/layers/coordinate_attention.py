"""Coordinate attention: gates for the rows and for the columns of a map.

Q. Hou, D. Zhou, J. Feng, "Coordinate Attention for Efficient Mobile Network Design", CVPR 2021, Eqs 4 to 9. Parameter
names are those of the authors' code, whose activation is h-swish, v relu6(v + 3) / 6, and whose reduction is 32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CoordinateAttention(nn.Module):
    """Gates (B, C, H, W): out[c, i, j] = x[c, i, j] g_h[c, i] g_w[c, j], gates in (0, 1) of means of rows and columns.

    With all weights zero the output is x / 4. The batch norm keeps statistics: test in evaluation mode. The inner layer
    has max(8, C // reduction) channels, C = `width`.
    """

    def __init__(self, *, width: int, reduction: int):
        super().__init__()
        inner = max(8, width // reduction)
        self.conv1, self.bn1 = nn.Conv2d(width, inner, 1), nn.BatchNorm2d(inner)
        self.conv_h, self.conv_w = nn.Conv2d(inner, width, 1), nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        rows, columns = x.mean(dim=3, keepdim=True), x.mean(dim=2, keepdim=True)  # (B, C, H, 1), (B, C, 1, W)
        y = torch.cat((rows, columns.transpose(2, 3)), dim=2)  # (B, C, H + W, 1)
        rows, columns = F.hardswish(self.bn1(self.conv1(y))).split((height, width), dim=2)
        return x * self.conv_h(rows).sigmoid() * self.conv_w(columns.transpose(2, 3)).sigmoid()
