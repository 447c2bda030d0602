"""Convolutional U-Nets (O. Ronneberger et al., MICCAI 2015): the two of DRAEM (V. Zavrtanik et al., ICCV 2021), tensor
by tensor those of its released checkpoints, and a plain one.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def convolution_block(*widths: int) -> nn.Sequential:
    """Applies 3x3 convolution (with bias), batch norm, ReLU from each number of channels to the next."""
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        layers += [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def upsampling_block(channels_in: int, channels_out: int) -> nn.Sequential:
    """Doubles the sides (bilinear, corners aligned), then applies one convolution, batch norm, ReLU."""
    upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
    return nn.Sequential(upsample, *convolution_block(channels_in, channels_out))


def init_convolutions(module: nn.Module) -> None:
    """Initialises as DRAEM does, for `network.apply`: convolution weights N(0, 0.02), their biases as PyTorch does;
    batch-norm weights N(1, 0.02), biases 0.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


class Encoder(nn.Module):
    """Applies convolution blocks with 2x2 max-pooling between them, `widths` the channels of each level."""

    def __init__(self, channels: int, widths: tuple[int, ...]):
        super().__init__()
        self.blocks = nn.ModuleList(convolution_block(i, o, o) for i, o in pairwise((channels, *widths)))
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Returns the map after each level, (B, widths[i], H / 2^i, W / 2^i)."""
        levels = []
        for i, block in enumerate(self.blocks):
            x = block(x if i == 0 else self.pool(x))
            levels.append(x)
        return levels


class Autoencoder(nn.Module):
    """Reconstructs an image (DRAEM's reconstructive network): no skips, no output activation.

    The five levels have b, 2b, 4b, 8b, 8b channels, b = `width`.
    """

    stride = 16  # sides must be multiples of it: four poolings

    def __init__(self, width: int):
        super().__init__()
        b = width
        self.encoder = Encoder(3, (b, 2 * b, 4 * b, 8 * b, 8 * b))
        ins, outs = (8 * b, 4 * b, 2 * b, b), (4 * b, 2 * b, b, b)
        self.ups = nn.ModuleList(upsampling_block(i, i) for i in ins)
        # the width falls in the second convolution, unlike in the discriminator
        self.blocks = nn.ModuleList(convolution_block(i, i, o) for i, o in zip(ins, outs))
        self.out = nn.Conv2d(b, 3, 3, padding=1)
        self.apply(init_convolutions)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, 3, H, W) to the same shape; H and W multiples of 16."""
        x = self.encoder(x)[-1]  # (B, 8b, H/16, W/16)
        for up, block in zip(self.ups, self.blocks):
            x = block(up(x))
        return self.out(x)


class UNet(nn.Module):
    """Segments two stacked images (DRAEM's discriminative network) with concatenated skips.

    The six levels have c, 2c, 4c, 8c, 8c, 8c channels, c = `width`.
    """

    stride = 32

    def __init__(self, width: int):
        super().__init__()
        c = width
        self.encoder = Encoder(6, (c, 2 * c, 4 * c, 8 * c, 8 * c, 8 * c))
        ins, outs, skips = (8 * c, 8 * c, 4 * c, 2 * c, c), (8 * c, 4 * c, 2 * c, c, c), (8 * c, 8 * c, 4 * c, 2 * c, c)
        self.ups = nn.ModuleList(upsampling_block(i, o) for i, o in zip(ins, outs))
        self.blocks = nn.ModuleList(convolution_block(o + skip, o, o) for o, skip in zip(outs, skips))
        self.out = nn.Conv2d(c, 2, 3, padding=1)
        self.apply(init_convolutions)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, 6, H, W) to logits (B, 2, H, W), normal and anomalous; H and W multiples of 32."""
        *skips, x = self.encoder(x)  # x (B, 8c, H/32, W/32)
        for up, block, skip in zip(self.ups, self.blocks, reversed(skips)):
            x = block(torch.cat((up(x), skip), dim=1))
        return self.out(x)


class PlainUNet(nn.Module):
    """Applies a U-Net of convolutions, 2 x 2 max-pooling and bilinear up-sampling; no activation at the end.

        widths (b, 2b, 4b): b@H | 2b@H/2 | 4b@H/4 | up, skip: 6b -> 2b | up, skip: 3b -> b | output 3 x 3

    Initialised as DRAEM's networks, with all biases 0. `channels` are the output's, `widths` those of each level;
    `skip`: "concat" (up-sampled map first), "add" (after a 1 x 1 convolution where the widths differ) or "none".
    """

    def __init__(self, *, channels: int, widths: Sequence[int], skip: str):
        super().__init__()
        self.skip, self.stride = skip, 2 ** (len(widths) - 1)  # sides must be multiples of the stride
        self.encoder = Encoder(3, tuple(widths))
        steps = list(pairwise(widths[::-1]))  # channels that come up to a level, and of the level
        inputs = {"concat": [a + b for a, b in steps], "add": widths[-2::-1], "none": widths[:0:-1]}[skip]
        self.blocks = nn.ModuleList(convolution_block(i, o, o) for i, (_, o) in zip(inputs, steps))
        matches = (nn.Conv2d(a, b, 1) if skip == "add" and a != b else nn.Identity() for a, b in steps)
        self.matches = nn.ModuleList(matches)
        self.out = nn.Conv2d(widths[0], channels, 3, padding=1)
        self.apply(init_convolutions)
        for convolution in (module for module in self.modules() if isinstance(module, nn.Conv2d)):
            nn.init.zeros_(convolution.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, 3, H, W) to (B, channels, H, W); ValueError where the poolings do not divide the sides."""
        if x.shape[2] % self.stride or x.shape[3] % self.stride:
            raise ValueError(f"expected sides that are multiples of {self.stride}, got {tuple(x.shape[2:])}")
        *skips, x = self.encoder(x)
        for block, match, skip in zip(self.blocks, self.matches, reversed(skips)):
            x = match(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))
            if self.skip != "none":
                x = torch.cat((x, skip), dim=1) if self.skip == "concat" else x + skip
            x = block(x)
        return self.out(x)
