"""SRDAD's discriminative network: a U-Net with residual squeeze-and-excitation blocks and channel cross attention.

SRDAD, Scientific Reports 2025, which gives the name Res-SE and no layout; squeeze and excitation: J. Hu et al., CVPR
2018; U-Net and its initialisation as in DRAEM (`layers/unet.py`); cross attention: `layers/channel_cross_attention.py`.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from adref.layers.channel_cross_attention import CrossFusion
from adref.layers.unet import convolution_block, init_convolutions, upsampling_block


class ResSE(nn.Module):
    """relu(shortcut(x) + s * u): u two convolutions of x, s one factor a channel, from the means of u.

    s = sigmoid(V2 relu(V1 mean(u))), V1: C -> max(C // ratio, 1), V2 back, no biases.

    Args:
        channels_in: of the input.
        channels: C of the output.
        ratio: by which V1 narrows.
        projected: the shortcut is a 1x1 convolution with batch norm, not the input itself.
    """

    def __init__(self, channels_in: int, channels: int, ratio: int = 16, projected: bool = False):
        super().__init__()
        self.body = convolution_block(channels_in, channels)[:-1]  # the last ReLU comes after the sum
        narrow = max(channels // ratio, 1)
        self.squeeze = nn.Linear(channels, narrow, bias=False)
        self.excite = nn.Linear(narrow, channels, bias=False)
        projection = (nn.Conv2d(channels_in, channels, 1), nn.BatchNorm2d(channels)) if projected else ()
        self.shortcut = nn.Sequential(*projection)  # empty: the identity

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, H, W) -> (B, C, H, W)."""
        u = self.body(x)
        s = torch.sigmoid(self.excite(torch.relu(self.squeeze(u.mean(dim=(2, 3))))))
        return torch.relu(self.shortcut(x) + s[:, :, None, None] * u)


class ResSEUNet(nn.Module):
    """Five levels c, 2c, 4c, 8c, 8c with max-pooling between them, and skips from the first four.

    Args:
        width: channels c of the first level.
        res_se: "entry": convolution, then Res-SE; "projected": Res-SE alone, its shortcut projected; "none": two
            convolutions.
        se_ratio: of the squeeze.
        fusion: what the skips pass through, built for the widths (c, 2c, 4c, 8c); None: plain skips.
        channels: of the input (two pictures side by side in the channel axis).
        classes: output channels.
    """

    stride = 16

    def __init__(
        self,
        width: int = 40,
        res_se: Literal["entry", "projected", "none"] = "entry",
        se_ratio: int = 16,
        fusion: CrossFusion | None = None,
        channels: int = 6,
        classes: int = 2,
    ):
        super().__init__()
        c = width
        widths = (c, 2 * c, 4 * c, 8 * c, 8 * c)

        def level(i: int, o: int) -> nn.Module:
            if res_se == "none":
                return convolution_block(i, o)
            if res_se == "projected":
                return ResSE(i, o, se_ratio, projected=True)
            return nn.Sequential(*convolution_block(i, o, 1), ResSE(o, o, se_ratio))

        self.levels = nn.ModuleList(level(i, o) for i, o in zip((channels, *widths), widths))
        self.pool = nn.MaxPool2d(2)
        self.fusion = fusion
        steps = ((8 * c, 4 * c, 8 * c), (4 * c, 2 * c, 4 * c), (2 * c, c, 2 * c), (c, c, c))  # in, out, skip
        self.ups = nn.ModuleList(upsampling_block(i, o) for i, o, _ in steps)
        self.blocks = nn.ModuleList(convolution_block(o + skip, o) for _, o, skip in steps)
        self.out = nn.Conv2d(c, classes, 3, padding=1)
        self.apply(init_convolutions)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> logits (B, classes, H, W)."""
        skips = []
        for i, level in enumerate(self.levels):
            x = level(x if i == 0 else self.pool(x))
            skips.append(x)  # X_1 .. X_5, (B, widths[i], H / 2^i, W / 2^i)
        x = skips.pop()
        if self.fusion is not None:
            skips = self.fusion(skips)
        for up, block, skip in zip(self.ups, self.blocks, reversed(skips)):
            x = block(torch.cat((up(x), skip), dim=1))
        return self.out(x)
