"""MobileNetV2 as a feature extractor, with batch norm folded into the convolutions.

M. Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, in TensorFlow's convention:
values in [-1, 1], padding "SAME". Names of tensors are torchvision's. Small enough for ImageNet features on a CPU.
"""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from adref.layers.published import load_published

WIDTHS = (16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320)  # of blocks 1 to 17
HALVED = (2, 4, 7, 14)  # blocks of stride 2


class SameConvolution(nn.Module):
    """Convolves with TensorFlow's padding "SAME", for an output of ceil(side / stride) pixels; ReLU6 if `activate`.

    An axis that needs p zeros has floor(p / 2) of them in front: none where the stride is 2 and the side even.
    """

    def __init__(self, channels: int, width: int, side: int, stride: int = 1, groups: int = 1, activate: bool = True):
        super().__init__()
        self.activate, filters = activate, nn.Conv2d(channels, width, side, stride, groups=groups)
        self.add_module("0", filters)  # its name in torchvision
        nn.init.normal_(filters.weight, 0.0, ((2 if activate else 1) / (channels // groups * side**2)) ** 0.5)
        nn.init.zeros_(filters.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, channels, H, W) to (B, width, ceil(H / stride), ceil(W / stride))."""
        filters, pads = self.get_submodule("0"), []
        for length in (x.shape[3], x.shape[2]):  # F.pad begins with the last axis
            side, stride = filters.kernel_size[0], filters.stride[0]
            need = max((-(-length // stride) - 1) * stride + side - length, 0)
            pads += [need // 2, need - need // 2]
        x = filters(F.pad(x, pads) if any(pads) else x)
        return F.relu6(x) if self.activate else x


class LinearBottleneck(nn.Module):
    """Expands by 6 (1 x 1; not in the first block), convolves each channel (3 x 3), projects (1 x 1, no activation).

    A shortcut where `channels`, of the input, and `out` agree and the `stride` of the depthwise convolution is 1.
    """

    def __init__(self, channels: int, out: int, stride: int, expand: bool = True):
        super().__init__()
        width = 6 * channels if expand else channels
        layers = [SameConvolution(channels, width, 1)] if expand else []
        layers += [SameConvolution(width, width, 3, stride, groups=width)]
        projection = nn.Conv2d(width, out, 1)
        nn.init.normal_(projection.weight, 0.0, width**-0.5)
        nn.init.zeros_(projection.bias)
        self.conv = nn.Sequential(*layers, projection)
        self.shortcut = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, channels, H, W) to (B, out, ceil(H / stride), ceil(W / stride))."""
        y = self.conv(x)
        return x + y if self.shortcut else y


class MobileNetV2(nn.Module):
    """Returns the features after blocks 3, 6, 13 and 17, the last of each size.

    Random weights are Kaiming's (fan in), without the factor 2 where no activation follows.
    """

    channels, strides, taps = (24, 32, 96, 320), (4, 8, 16, 32), (3, 6, 13, 17)
    published = "an .npz with torchvision's names, batch norms folded into the convolutions"

    def __init__(self):
        super().__init__()
        blocks, before = [SameConvolution(3, 32, 3, 2)], 32
        for number, out in enumerate(WIDTHS, start=1):
            blocks.append(LinearBottleneck(before, out, 2 if number in HALVED else 1, expand=number > 1))
            before = out
        self.features = nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps RGB (B, 3, H, W) in [0, 1] to four maps (B, channels[i], H / strides[i], W / strides[i]), rounded up."""
        x, layers = 2 * images - 1, []
        for number, block in enumerate(self.features):
            x = block(x)
            layers += [x] if number in self.taps else []
        return layers

    def load_published(self, state: Mapping) -> list[str]:
        """Loads weights with torchvision's names and folded batch norms; see `published.load_published`."""
        return load_published(self, state, "mobilenet_v2", ("features.18.", "classifier."))
