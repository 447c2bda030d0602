"""Network of noise-to-norm: an M-net, and its block in four readings (the figure of the paper's block is missing).

SRMNet, where the paper starts: C.-M. Fan et al., "Selective Residual M-Net for Real Image Denoising", EUSIPCO 2022.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adref.layers.selective_kernel import SelectiveKernelFusion

REDUCTION = 8  # of channels in attention and fusion: SRMNet


class MNet(nn.Module):
    """Reconstructs an image by a U-Net that gets the shrunk input at every level and fuses the outputs of all levels.

    `width` (even) 2^i channels at level i; sides of the input that are multiples of 2^(levels - 1). Down: pixel
    unshuffle, 1x1 convolution; up: pixel shuffle, 1x1 convolution. `kind` of the blocks: see `block`; `level0`: one
    after the first level's stem, too; `padding` "zeros" or "reflect". As SRMNet, but the input is not added to the
    output (no global residual).
    """

    def __init__(self, *, width: int, levels: int, kind: str, level0: bool, padding: str):
        super().__init__()
        widths, inner = [width * 2**i for i in range(levels)], range(levels - 1)
        conv3x3 = partial(nn.Conv2d, kernel_size=3, padding=1, padding_mode=padding)
        make = partial(block, kind, padding=padding)
        self.stems = nn.ModuleList([conv3x3(3, width)])  # one for all levels; a list keeps the names of stored weights
        self.encoder = nn.ModuleList([make(width, width) if level0 else nn.Identity()])
        self.encoder.extend(make(widths[i] + width, widths[i + 1]) for i in inner)
        self.downs = nn.ModuleList(nn.Conv2d(4 * widths[i], widths[i], 1) for i in inner)
        self.ups = nn.ModuleList(nn.Conv2d(widths[i + 1] // 4, widths[i], 1) for i in inner)
        self.skips = nn.ModuleList(conv3x3(widths[i], widths[i]) for i in inner)
        self.decoder = nn.ModuleList(make(2 * widths[i], widths[i]) for i in inner)
        self.outs = nn.ModuleList(conv3x3(c, width) for c in widths)
        self.fusion = SelectiveKernelFusion(width=width, count=levels, reduction=REDUCTION)
        self.last = conv3x3(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructs an image: (B, 3, H, W) in [-1, 1] -> (B, 3, H, W)."""
        maps, f = [], self.encoder[0](self.stems[0](x))
        for i, down in enumerate(self.downs):
            maps.append(f)
            x = F.interpolate(x, scale_factor=0.5, mode="bilinear")  # the mean of 2 x 2 pixels
            down = down(F.pixel_unshuffle(f, 2))
            f = self.encoder[i + 1](torch.cat((down, self.stems[0](x)), dim=1))  # (B, w 2^(i+1), ...)
        outputs, g = [self.enlarge(len(self.downs), f)], f
        for i in reversed(range(len(self.downs))):
            up = self.ups[i](F.pixel_shuffle(g, 2))
            g = self.decoder[i](torch.cat((up, self.skips[i](maps[i])), dim=1))
            outputs.append(self.enlarge(i, g))
        return self.last(self.fusion(outputs))  # the deepest level's map comes first

    def enlarge(self, level: int, g: Tensor) -> Tensor:
        """Computes m_i, a level's input to the fusion: (B, w 2^i, H / 2^i, W / 2^i) -> (B, w, H, W)."""
        m = self.outs[level](g)
        return F.interpolate(m, scale_factor=2**level, mode="bilinear", align_corners=False) if level else m


def block(kind: str, width_in: int, width_out: int, *, padding: str) -> nn.Module:
    """Makes one of four blocks.

    "full" and "min" are `ResidualAttention` with and without 3x3 convolutions, "conv1x1" is the ablation's 1x1
    convolution, "skrdb" SRMNet's block (`SelectiveDense`).
    """
    if kind == "conv1x1":
        return nn.Conv2d(width_in, width_out, 1)
    if kind == "skrdb":
        return SelectiveDense(width_in, width_out, reduction=REDUCTION, padding=padding)
    return ResidualAttention(width_in, width_out, reduction=REDUCTION, convolutions=kind == "full", padding=padding)


class ResidualAttention(nn.Module):
    """Adds two pathways from C_in to C_out channels, one of them gated by channel attention: r + a v.

        r = conv1x1(x);  v = conv3x3(ReLU(conv3x3(conv1x1(x))));  a = sigmoid(conv1x1(ReLU(conv1x1(mean v))))

    The attention has max(C_out // reduction, 4) inner channels; without `convolutions` v is the 1x1 convolution alone.
    """

    def __init__(self, width_in: int, width_out: int, *, reduction: int, convolutions: bool, padding: str):
        super().__init__()
        inner = max(width_out // reduction, 4)
        self.shortcut = nn.Conv2d(width_in, width_out, 1)
        self.body = nn.Sequential(nn.Conv2d(width_in, width_out, 1))
        if convolutions:
            conv3x3 = partial(nn.Conv2d, width_out, width_out, 3, padding=1, padding_mode=padding)
            self.body.extend([conv3x3(), nn.ReLU(), conv3x3()])
        self.attention = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width_out, inner, 1), nn.ReLU(),
                                       nn.Conv2d(inner, width_out, 1), nn.Sigmoid())  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Computes r + a v, as reconstructed from the text: (B, C_in, H, W) -> (B, C_out, H, W)."""
        v = self.body(x)
        return self.shortcut(x) + self.attention(v) * v


class SelectiveDense(nn.Module):
    """Applies SRMNet's block: x <- fusion(x, ReLU(conv3x3(x))) three times, then 1x1 to C_out, plus 1x1 of x."""

    def __init__(self, width_in: int, width_out: int, *, reduction: int, padding: str):
        super().__init__()
        self.shortcut = nn.Conv2d(width_in, width_out, 1)
        conv3x3 = partial(nn.Conv2d, width_in, width_in, 3, padding=1, padding_mode=padding)
        fusion = partial(SelectiveKernelFusion, width=width_in, count=2, reduction=reduction)
        self.convolutions = nn.ModuleList(conv3x3() for _ in range(3))
        self.fusions = nn.ModuleList(fusion() for _ in range(3))
        self.out = nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C_in, H, W) to (B, C_out, H, W)."""
        shortcut = self.shortcut(x)
        for convolution, fusion in zip(self.convolutions, self.fusions):
            x = fusion([x, convolution(x).relu()])
        return shortcut + self.out(x)
