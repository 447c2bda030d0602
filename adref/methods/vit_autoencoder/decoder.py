"""Decoder of the ViT autoencoder: transposed convolutions from the patch map to the image."""

import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = {"anovit": 256, "pow2": 512}  # channels after the first layer
# Kernel, stride and padding of each layer.
STEPS = {"anovit": [(3, 1, 0)] * 3 + [(3, 2, 1)] * 3, "pow2": [(3, 1, 1), *[(4, 2, 1)] * 4, (3, 1, 1)]}


class Decoder(nn.Module):
    """Reconstructs an image by six transposed convolutions, normalisation and ReLU between them, and tanh.

    Sides of the maps of either kind, from 24 to 384:
        anovit: 24, 26, 28, 30, 59, 117, 233 (n to 8 n + 41), then a bilinear resize, corners aligned, to `size`
        pow2:   24, 24, 48, 96, 192, 384, 384

    `width` is C of the map, `size` (H, W) of the image, `first` the channels after the first layer (None: WIDTHS); each
    that follows has half as many, the last 3. `norm`: "batch", or "instance", without weights and statistics.
    `last_block`: "norm_relu" adds both after the last layer, too. `init`: "normal", N(0, 0.02^2), or "torch", its own.
    """

    def __init__(self, *, width: int, size: tuple[int, int], kind: str, first: int | None, norm: str, last_block: str,
                 init: str = "normal"):  # fmt: skip
        super().__init__()
        widths = [width, *(max(1, (first or WIDTHS[kind]) >> i) for i in range(5)), 3]
        self.size, self.layers = tuple(size), nn.Sequential()
        for i, (kernel, stride, padding) in enumerate(STEPS[kind]):
            layer = nn.ConvTranspose2d(widths[i], widths[i + 1], kernel, stride, padding)
            if init == "normal":
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
            self.layers.append(layer)
            if i < 5 or last_block == "norm_relu":
                self.layers.append((nn.BatchNorm2d if norm == "batch" else nn.InstanceNorm2d)(widths[i + 1]))
                self.layers.append(nn.ReLU())

    def forward(self, maps: Tensor) -> Tensor:
        """Reconstructs an image: (B, C, h, w) -> (B, 3, H, W) in (-1, 1)."""
        maps = self.layers(maps)
        if maps.shape[2:] != self.size:
            maps = F.interpolate(maps, self.size, mode="bilinear", align_corners=True)
        return maps.tanh()
