"""SRDAD's discriminative network: a U-Net with residual squeeze-and-excitation blocks and channel cross attention.

SRDAD, Scientific Reports 2025, which gives the name Res-SE and no layout; squeeze and excitation: J. Hu et al., CVPR
2018; U-Net and its initialisation as in DRAEM (`layers/unet.py`); cross attention: `layers/channel_cross_attention.py`.
"""

import torch
from torch import Tensor, nn

from adref.layers.channel_cross_attention import CrossFusion
from adref.layers.unet import convolution_block, init_convolutions, upsampling_block

SE_RATIO = 16  # squeeze and excitation's
TOKEN_SIDES, LAYERS, ATTENTION_HEADS = (16, 8, 4, 2), 4, 4  # UCTransNet's code; a token's side in pixels at each level
UCTRANSNET = {"attention": "channel", "scale": "sum", "instance_norm": True, "residual": "official", "add_input": True,
              "output": True, "bias": False}  # fmt: skip
ATTENTION = {  # reading -> arguments of `CrossFusion`
    "uctransnet": UCTRANSNET,
    "counted": {**UCTRANSNET, "output": False, "bias": True},
    # equations 11 to 14: tokens of d channels from the first layer on, which the last 1 x 1 convolution takes back
    "printed": {"attention": "token", "scale": "own", "instance_norm": False, "residual": "eq14", "add_input": False,
                "output": False, "bias": False},
}  # fmt: skip


class ResSE(nn.Module):
    """Computes relu(x + s * u) of (B, C, H, W): u two convolutions of x, s = sigmoid(V2 relu(V1 mean(u))).

    V1: C -> max(C // 16, 1), V2 back, no biases.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.body = convolution_block(channels, channels, channels)[:-1]  # the last ReLU comes after the sum
        narrow = max(channels // SE_RATIO, 1)
        self.squeeze = nn.Linear(channels, narrow, bias=False)
        self.excite = nn.Linear(narrow, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u = self.body(x)
        s = torch.sigmoid(self.excite(torch.relu(self.squeeze(u.mean(dim=(2, 3))))))
        return torch.relu(x + s[:, :, None, None] * u)


class ResSEUNet(nn.Module):
    """Segments maps on five levels of c, 2c, 4c, 8c, 8c channels, with cross attention on the first four as skips.

    `width` is c; `fusion` the cross attention of the skips, from `cross_fusion`, None for plain skips.
    """

    def __init__(self, *, width: int, fusion: CrossFusion | None, classes: int = 2):
        super().__init__()
        c = width
        levels = ((6, c), (c, 2 * c), (2 * c, 4 * c), (4 * c, 8 * c), (8 * c, 8 * c))  # in, out
        self.levels = nn.ModuleList(nn.Sequential(*convolution_block(i, o), ResSE(o)) for i, o in levels)
        self.pool = nn.MaxPool2d(2)
        self.fusion = fusion
        steps = ((8 * c, 4 * c, 8 * c), (4 * c, 2 * c, 4 * c), (2 * c, c, 2 * c), (c, c, c))  # in, out, skip
        self.ups = nn.ModuleList(upsampling_block(i, o) for i, o, _ in steps)
        self.blocks = nn.ModuleList(convolution_block(o + skip, o, o) for _, o, skip in steps)
        self.out = nn.Conv2d(c, classes, 3, padding=1)
        self.apply(init_convolutions)

    def forward(self, x: Tensor) -> Tensor:
        """Computes logits: (B, 6, H, W) -> (B, classes, H, W)."""
        skips = []
        for i, level in enumerate(self.levels):
            x = level(x if i == 0 else self.pool(x))
            skips.append(x)  # X_1 .. X_5, the i-th at 1 / 2^(i - 1) of the sides
        x = skips.pop()
        if self.fusion is not None:
            skips = self.fusion(skips)
        for up, block, skip in zip(self.ups, self.blocks, reversed(skips)):
            x = block(torch.cat((up(x), skip), dim=1))
        return self.out(x)


def cross_fusion(*, size: tuple[int, int], width: int, attention: str, dropout: float) -> CrossFusion:
    """Builds the cross attention, a key of ATTENTION, of a `ResSEUNet` of this width for images of this size."""
    return CrossFusion(size=size, widths=(width, 2 * width, 4 * width, 8 * width), patches=TOKEN_SIDES, layers=LAYERS,
                       heads=ATTENTION_HEADS, dropout=dropout, **ATTENTION[attention])  # fmt: skip
