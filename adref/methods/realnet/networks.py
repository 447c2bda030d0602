"""RealNet's reconstruction networks and its discriminator."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adref.layers.diffusion_unet import SelfAttention, zeroed

# Layers that each reconstruction network gets, by architecture (table of efficiency).
BLOCKS = {"A": ((0,), (1,), (2,), (3,)), "B": ((0, 1, 2, 3),), "C": ((0, 1), (2, 3))}


class FeatureUNet(nn.Module):
    """G_k of RealNet: a U-Net on features with m `channels`, whose output is 0 before training.

    Three levels of m / 2, m and 2 m channels, two residual blocks each on the way down, three on the way up; attention
    after every block of the lower two levels, and between the two blocks of the middle. Group norms have `groups`
    groups, heads of the attention twice as many channels (code: 32 and 64).
    """

    stride = 4

    def __init__(self, channels: int, groups: int):
        super().__init__()

        def block(before: int, after: int, attend: bool, upsample: bool = False) -> nn.Sequential:
            layers = [FeatureResidual(before, after, "none", groups)]
            layers += [SelfAttention(after, head_width=2 * groups, groups=groups)] if attend else []
            layers += [FeatureResidual(after, after, "up", groups)] if upsample else []
            return nn.Sequential(*layers)

        w = channels // 2
        levels, skips = (w, 2 * w, 4 * w), [w]  # channels of the levels, and after each step down
        self.down = nn.ModuleList([nn.Conv2d(channels, w, 3, padding=1)])
        for level, width in enumerate(levels):
            for _ in range(2):
                self.down.append(block(skips[-1], width, level > 0))
                skips.append(width)
            if level < 2:
                self.down.append(FeatureResidual(width, width, "down", groups))
                skips.append(width)
        self.middle = nn.Sequential(*block(width, width, True), FeatureResidual(width, width, "none", groups))
        self.up, now = nn.ModuleList(), width
        for level in (2, 1, 0):
            for i in range(3):
                self.up.append(block(now + skips.pop(), levels[level], level > 0, level > 0 and i == 2))
                now = levels[level]
        self.out = nn.Sequential(nn.GroupNorm(groups, w), nn.SiLU(), zeroed(nn.Conv2d(w, channels, 3, padding=1)))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, channels, H, W) to the same shape; H and W multiples of 4."""
        skips = []
        for step in self.down:
            x = step(x)
            skips.append(x)
        x = self.middle(x)
        for step in self.up:
            x = step(torch.cat((x, skips.pop()), dim=1))
        return self.out(x)


class FeatureResidual(nn.Module):
    """Computes x' + conv3x3(R(SiLU(GN(x)))), x' = x, its 1 x 1 convolution where the widths differ, or R'(x).

    `resample` gives R and R': "none"; "down", the mean of 2 x 2 pixels for both; "up", two different 4 x 4 transposed
    convolutions of stride 2, where `width` is `channels`.
    """

    def __init__(self, channels: int, width: int, resample: str, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        if resample == "up":
            self.resample, self.shortcut = (nn.ConvTranspose2d(channels, channels, 4, 2, 1) for _ in range(2))
        elif resample == "down":
            self.resample = self.shortcut = nn.AvgPool2d(2)
        else:
            self.resample = nn.Identity()
            self.shortcut = nn.Identity() if channels == width else nn.Conv2d(channels, width, 1)
        self.convolution = nn.Conv2d(channels, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, channels, H, W) to (B, width, H', W')."""
        return self.shortcut(x) + self.convolution(self.resample(F.silu(self.norm(x))))


class SimpleNetwork(nn.Module):
    """G_k that only the authors' code has: two steps down, `depth` residual units, two steps up with skips."""

    def __init__(self, channels: int, depth: int):
        super().__init__()

        def stage(c: int) -> nn.Sequential:
            first = nn.Conv2d(c, c, 3, padding=1), nn.InstanceNorm2d(c), nn.ReLU()
            second = nn.Conv2d(c, 2 * c, 3, padding=1), nn.InstanceNorm2d(2 * c), nn.ReLU()
            return nn.Sequential(*first, *second, nn.AvgPool2d(2))

        c = channels
        self.first, self.second = stage(c), stage(2 * c)
        self.units = nn.Sequential(*(ResidualUnit(4 * c, 2 * c, side=3) for _ in range(depth)), nn.ReLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(8 * c, 2 * c, 4, 2, 1), nn.ReLU())
        self.out = nn.ConvTranspose2d(4 * c, c, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, channels, H, W) to the same shape; H and W multiples of 4."""
        b1 = self.first(x)  # (B, 2 C, H/2, W/2)
        b2 = self.second(b1)  # (B, 4 C, H/4, W/4)
        x = self.up(torch.cat((self.units(b2), b2), dim=1))  # (B, 2 C, H/2, W/2)
        return self.out(torch.cat((x, b1), dim=1))


class ResidualUnit(nn.Module):
    """Adds conv1x1(ReLU(conv(ReLU(x)))), without biases; `hidden` channels between them, the first of odd `side`."""

    def __init__(self, channels: int, hidden: int, side: int):
        super().__init__()
        first = nn.Conv2d(channels, hidden, side, padding=side // 2, bias=False)
        self.layers = nn.Sequential(nn.ReLU(), first, nn.ReLU(), nn.Conv2d(hidden, channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Discriminator(nn.Module):
    """Turns residuals into logits of `size` by two residual units and convolutions of `side`, two at twice the size.

    All activations behind the residual units have the slope `slope` below 0.
    """

    def __init__(self, channels: int, size: tuple[int, int], side: int, slope: float = 0.0):
        super().__init__()
        act = partial(nn.LeakyReLU, slope)
        self.size, convolution = size, partial(nn.Conv2d, kernel_size=side, padding=side // 2)
        self.units = nn.Sequential(*(ResidualUnit(channels, channels, side) for _ in range(2)), nn.ReLU())
        self.reduce = nn.Sequential(convolution(channels, 128), nn.BatchNorm2d(128), act(), convolution(128, 32),
                                    act(), convolution(32, 8), act())  # fmt: skip
        self.out = nn.Sequential(convolution(8, 4), act(), convolution(4, 2))

    def forward(self, residuals: Tensor) -> Tensor:
        """Maps (B, channels, h, w) to (B, 2, *size)."""
        x = self.reduce(self.units(residuals))
        return enlarge(self.out(enlarge(x, tuple(2 * side for side in x.shape[2:]))), self.size)


def enlarge(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes (B, C, h, w) to `size`, bilinear with aligned corners as everywhere in the code."""
    return x if tuple(x.shape[2:]) == tuple(size) else F.interpolate(x, size, mode="bilinear", align_corners=True)
