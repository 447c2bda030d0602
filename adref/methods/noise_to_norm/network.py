"""The blocks of noise-to-norm's M-net, in four readings.

"Noise-to-Norm Reconstruction for Industrial Anomaly Detection and Localization", Applied Sciences 2023, 13(22), 12436:
its residual attention module, whose figure is not in the text that was at hand; and SRMNet's block (C.-M. Fan et al.,
"Selective Residual M-Net for Real Image Denoising", EUSIPCO 2022), from which the paper starts.
"""

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adref.layers.selective_kernel import SelectiveKernelFusion

ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": lambda: nn.LeakyReLU(0.2), "prelu": nn.PReLU, "gelu": nn.GELU}


class ResidualAttention(nn.Module):
    """r + a v: two pathways from C_in to C_out channels, one of them gated by channel attention.

        r = conv1x1(x);  v = conv3x3(act(conv3x3(conv1x1(x))));  a = sigmoid(conv1x1(act(conv1x1(mean v))))

    Args:
        width_in, width_out: channels.
        reduction: the attention has max(width_out // reduction, 4) inner channels.
        convolutions: the two 3x3 convolutions; without them v is the 1x1 convolution alone.
        activation: a key of ACTIVATIONS.
        padding_mode: of the 3x3 convolutions.
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        reduction: int = 8,
        convolutions: bool = True,
        activation: str = "relu",
        padding_mode: str = "zeros",
    ):
        super().__init__()
        inner, act = max(width_out // reduction, 4), ACTIVATIONS[activation]
        self.shortcut = nn.Conv2d(width_in, width_out, 1)
        self.body = nn.Sequential(nn.Conv2d(width_in, width_out, 1))
        if convolutions:
            self.body.append(nn.Conv2d(width_out, width_out, 3, padding=1, padding_mode=padding_mode)).append(act())
            self.body.append(nn.Conv2d(width_out, width_out, 3, padding=1, padding_mode=padding_mode))
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(width_out, inner, 1), act(), nn.Conv2d(inner, width_out, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W). Equation 4 of noise-to-norm, as reconstructed."""
        v = self.body(x)
        return self.shortcut(x) + self.attention(v) * v


class SelectiveDense(nn.Module):
    """SRMNet's block: three times x <- fusion(x, ReLU(conv3x3(x))), then 1x1 to C_out, plus 1x1 of the input.

    Args:
        width_in, width_out: channels.
        reduction: of the fusions.
        padding_mode: of the 3x3 convolutions.
    """

    def __init__(self, width_in: int, width_out: int, reduction: int = 8, padding_mode: str = "zeros"):
        super().__init__()
        self.shortcut = nn.Conv2d(width_in, width_out, 1)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(width_in, width_in, 3, padding=1, padding_mode=padding_mode) for _ in range(3)
        )
        self.fusions = nn.ModuleList(SelectiveKernelFusion(width_in, 2, reduction=reduction) for _ in range(3))
        self.out = nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W)."""
        shortcut = self.shortcut(x)
        for convolution, fusion in zip(self.convolutions, self.fusions):
            x = fusion([x, convolution(x).relu()])
        return shortcut + self.out(x)


def block(
    kind: Literal["full", "min", "conv1x1", "skrdb"],
    width_in: int,
    width_out: int,
    reduction: int = 8,
    activation: str = "relu",
    padding_mode: str = "zeros",
) -> nn.Module:
    """One of the four readings: `ResidualAttention` with or without 3x3 convolutions, the ablation's one 1x1
    convolution, or SRMNet's block."""
    if kind == "conv1x1":
        return nn.Conv2d(width_in, width_out, 1)
    if kind == "skrdb":
        return SelectiveDense(width_in, width_out, reduction, padding_mode)
    return ResidualAttention(width_in, width_out, reduction, kind == "full", activation, padding_mode)


# -- the network ------------------------------------------------------------------------------------------------------


class MNet(nn.Module):
    """A U-Net that gets the shrunk input at every level and fuses what all levels of its decoder say.

    Channels w 2^i at level i. Down: pixel unshuffle, 1x1 convolution; up: pixel shuffle, 1x1 convolution.

    Args:
        width: w.
        levels: number of levels; both sides of the input must be multiples of 2^(levels - 1).
        kind, reduction, activation: of the blocks, see `residual_attention.block` (D7, D9).
        level0: a block behind the first level's stem, too (D8).
        shared_stem: one first convolution for all scales of the input (D6).
        down: how the input is shrunk (D4).
        global_residual: add the input to the output (D11).
        output_activation: "none" or "tanh".
        padding: of the 3x3 convolutions: "zeros" or "reflect" (D26).
    """

    def __init__(
        self,
        width: int = 96,
        levels: int = 4,
        kind: Literal["full", "min", "conv1x1", "skrdb"] = "full",
        reduction: int = 8,
        activation: Literal["relu", "leaky_relu", "prelu", "gelu"] = "relu",
        level0: bool = True,
        shared_stem: bool = True,
        down: Literal["bilinear", "bicubic", "nearest"] = "bilinear",
        global_residual: bool = False,
        output_activation: Literal["none", "tanh"] = "none",
        padding: Literal["zeros", "reflect"] = "zeros",
    ):
        super().__init__()
        widths, inner = [width * 2**i for i in range(levels)], range(levels - 1)
        self.down, self.global_residual, self.output_activation = down, global_residual, output_activation
        make, conv3x3 = (
            (reduction, activation, padding),
            partial(nn.Conv2d, kernel_size=3, padding=1, padding_mode=padding),
        )
        self.stems = nn.ModuleList(conv3x3(3, width) for _ in range(1 if shared_stem else levels))
        self.encoder = nn.ModuleList([block(kind, width, width, *make) if level0 else nn.Identity()])
        self.encoder.extend(block(kind, widths[i] + width, widths[i + 1], *make) for i in inner)
        self.downs = nn.ModuleList(nn.Conv2d(4 * widths[i], widths[i], 1) for i in inner)
        self.ups = nn.ModuleList(nn.Conv2d(widths[i + 1] // 4, widths[i], 1) for i in inner)
        self.skips = nn.ModuleList(conv3x3(widths[i], widths[i]) for i in inner)
        self.decoder = nn.ModuleList(block(kind, 2 * widths[i], widths[i], *make) for i in inner)
        self.outs = nn.ModuleList(conv3x3(c, width) for c in widths)
        self.fusion = SelectiveKernelFusion(width, levels, reduction=reduction)  # D10
        self.last = conv3x3(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Equations 2 and 3: (B, 3, H, W) in [-1, 1] -> alike."""
        image, maps, f = x, [], self.encoder[0](self.stems[0](x))
        for i, down in enumerate(self.downs):
            maps.append(f)
            x = F.interpolate(x, scale_factor=0.5, mode=self.down)
            stem = self.stems[i + 1 if len(self.stems) > 1 else 0](x)
            f = self.encoder[i + 1](torch.cat((down(F.pixel_unshuffle(f, 2)), stem), dim=1))  # (B, w 2^(i+1), ...)
        outputs, g = [self.enlarge(len(self.downs), f)], f
        for i in reversed(range(len(self.downs))):
            up = self.ups[i](F.pixel_shuffle(g, 2))
            g = self.decoder[i](torch.cat((up, self.skips[i](maps[i])), dim=1))
            outputs.append(self.enlarge(i, g))
        y = self.last(self.fusion(outputs))  # the deepest level's map comes first
        y = y + image if self.global_residual else y
        return y.tanh() if self.output_activation == "tanh" else y

    def enlarge(self, level: int, g: Tensor) -> Tensor:
        """What a level's map adds to the fusion: (B, w 2^i, H / 2^i, W / 2^i) -> (B, w, H, W)."""
        m = self.outs[level](g)
        return F.interpolate(m, scale_factor=2**level, mode="bilinear", align_corners=False) if level else m
