"""The ViT autoencoder's decoder."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

# -- the decoder ------------------------------------------------------------------------------------------------------


class Decoder(nn.Module):
    """Six transposed convolutions, each but the last followed by a normalisation and ReLU; then tanh (D14 to D16).

        anovit: kernel 3, stride 1 three times (+ 2 pixels), stride 2 three times (2 n - 1): from 24 to
                26, 28, 30, 59, 117, 233, in general 8 n + 41; then bilinear, corners aligned, to `size`
        pow2:   kernel 3 stride 1, kernel 4 stride 2 four times, kernel 3 stride 1: 24, 48, 96, 192, 384, 384

    Args:
        width: channels C of the map.
        size: (H, W) of the image.
        kind: "anovit" or "pow2".
        first: channels behind the first layer; each that follows has half as many, the last 3. None: 256, or 512.
        norm: "batch", or "instance", which has no weights and keeps no statistics.
        last_block: "norm_relu": both behind the last layer, too.
    """

    def __init__(
        self,
        width: int,
        size: tuple[int, int],
        kind: Literal["anovit", "pow2"] = "anovit",
        first: int | None = None,
        norm: Literal["batch", "instance"] = "batch",
        last_block: Literal["plain", "norm_relu"] = "plain",
    ):
        super().__init__()
        first = first or {"anovit": 256, "pow2": 512}[kind]
        widths = [width, *(max(1, first >> i) for i in range(5)), 3]
        steps = {"anovit": [(3, 1, 0)] * 3 + [(3, 2, 1)] * 3, "pow2": [(3, 1, 1), *[(4, 2, 1)] * 4, (3, 1, 1)]}[kind]
        self.size, self.layers = tuple(size), nn.Sequential()
        for i, (kernel, stride, padding) in enumerate(steps):
            layer = nn.ConvTranspose2d(widths[i], widths[i + 1], kernel, stride, padding)
            nn.init.normal_(layer.weight, std=0.02)  # D28
            nn.init.zeros_(layer.bias)
            self.layers.append(layer)
            if i < 5 or last_block == "norm_relu":
                self.layers.append((nn.BatchNorm2d if norm == "batch" else nn.InstanceNorm2d)(widths[i + 1]))
                self.layers.append(nn.ReLU())

    def forward(self, maps: Tensor) -> Tensor:
        """Equation d: (B, C, h, w) -> (B, 3, H, W) in (-1, 1)."""
        maps = self.layers(maps)
        if maps.shape[2:] != self.size:
            maps = F.interpolate(maps, self.size, mode="bilinear", align_corners=True)
        return maps.tanh()
