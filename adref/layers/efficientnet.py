"""EfficientNet-B4 as a feature extractor.

M. Tan, Q. Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019, with symmetric
padding. Names of tensors are timm's; torchvision's are translated.
"""

import re
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from adref.layers.published import load_published, normalise

# Each stage: expansion, side of the depthwise convolution, stride, channels, blocks.
STAGES = ((1, 3, 1, 24, 2), (6, 3, 2, 32, 4), (6, 5, 2, 56, 4), (6, 3, 2, 112, 6), (6, 5, 1, 160, 6), (6, 5, 2, 272, 8),
          (6, 3, 1, 448, 2))  # fmt: skip


class SqueezeExcite(nn.Module):
    """Multiplies channels of (B, C, H, W) by sigmoid(conv(SiLU(conv(mean of the map)))), 1 x 1, `squeezed` inside."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.conv_reduce, self.conv_expand = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv_expand(F.silu(self.conv_reduce(x.mean((2, 3), keepdim=True)))).sigmoid()


class InvertedResidual(nn.Module):
    """Expands by 1 x 1 (not at factor 1), convolves each channel, squeezes and excites, projects by 1 x 1 (MBConv).

    Batch norm follows each convolution, SiLU each but the last; a shortcut where the stride is 1 and the widths agree.
    Squeeze and excite narrows to a quarter of `channels`, the input's; `side`, `stride`: of the depthwise convolution.
    """

    def __init__(self, channels: int, out: int, expansion: int, side: int, stride: int):
        super().__init__()
        width = channels * expansion
        forms = [("conv_pw", channels, width, 1, 1)] if expansion > 1 else []
        forms += [("conv_dw", width, width, side, stride), ("conv_pwl" if forms else "conv_pw", width, out, 1, 1)]
        self.convolutions = [form[0] for form in forms]
        for i, (name, before, after, k, step) in enumerate(forms, start=1):
            groups = width if name == "conv_dw" else 1
            self.add_module(name, nn.Conv2d(before, after, k, step, k // 2, groups=groups, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(after))
        self.se = SqueezeExcite(width, channels // 4)
        self.shortcut = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, channels, H, W) to (B, out, H / stride, W / stride)."""
        y = x
        for i, name in enumerate(self.convolutions, start=1):
            y = getattr(self, f"bn{i}")(getattr(self, name)(y))
            if i < len(self.convolutions):
                y = F.silu(y)
            if name == "conv_dw":
                y = self.se(y)
        return x + y if self.shortcut else y


class EfficientNetB4(nn.Module):
    """Returns the features after stages 1, 2, 3 and 5, after their last batch norm; no classifier.

    All seven stages are there, so that published files load; stages 6 and 7 do not run. Random weights compensate SiLU,
    which divides the variance by 2 to 2.8, and a fresh squeeze and excite (by 4), and halve blocks with a shortcut:
    features keep their size without statistics to normalise them.
    """

    channels, strides, taps = (24, 32, 56, 160), (2, 4, 8, 16), (0, 1, 2, 4)
    published = ("timm 0.5.4's efficientnet_b4_ra2_320-7eb33cd5.pth, or torchvision's "
                 "efficientnet_b4_rwightman-23ab8bcd.pth")  # fmt: skip

    def __init__(self):
        super().__init__()
        self.conv_stem, self.bn1 = nn.Conv2d(3, 48, 3, 2, 1, bias=False), nn.BatchNorm2d(48)
        self.blocks, before = nn.Sequential(), 48
        for expansion, side, stride, out, count in STAGES:
            stage = [InvertedResidual(before, out, expansion, side, stride)]
            stage += [InvertedResidual(out, out, expansion, side, 1) for _ in range(count - 1)]
            self.blocks.append(nn.Sequential(*stage))
            before = out
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, module.weight[0].numel() ** -0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in (block for stage in self.blocks for block in stage):
            last = len(block.convolutions)
            for i, name in enumerate(block.convolutions, start=1):
                gain = {"conv_dw": 2.0}.get(name, 1.0) if i < last else 4 * 2.0
                getattr(block, f"bn{i}").weight.data.fill_(gain**0.5 * (0.5 if block.shortcut and i == last else 1))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps RGB (B, 3, H, W) in [0, 1] to four maps (B, channels[i], H / strides[i], W / strides[i])."""
        x = F.silu(self.bn1(self.conv_stem(normalise(images))))
        layers = []
        for i, stage in enumerate(self.blocks[: self.taps[-1] + 1]):
            x = stage(x)
            layers += [x] if i in self.taps else []
        return layers

    def load_published(self, state: Mapping) -> list[str]:
        """Loads timm's or torchvision's weights without head and classifier; see `published.load_published`."""
        return load_published(self, state, "efficientnet_b4", ("conv_head.", "bn2.", "classifier."), timm_name)


def timm_name(name: str) -> str:
    """Translates torchvision's name of a tensor of EfficientNet into timm's; other names stay.

    features.0.{0,1}                 conv_stem, bn1
    features.(S + 1).I.block.J.{0,1} blocks.S.I.{convolution J, bn}, J = expansion, depthwise, (SE), projection
    features.8.{0,1}                 conv_head, bn2
    """
    if match := re.fullmatch(r"features\.([08])\.([01])\.(.*)", name):
        place, part, rest = match.groups()
        return {"00": "conv_stem", "01": "bn1", "80": "conv_head", "81": "bn2"}[place + part] + f".{rest}"
    match = re.fullmatch(r"features\.(\d)\.(\d+)\.block\.(\d)\.(0|1|fc1|fc2)\.(.*)", name)
    if not match:
        return name
    stage, block, place, part, rest = match.groups()
    kinds = ["conv_dw", "se", "conv_pw"] if stage == "1" else ["conv_pw", "conv_dw", "se", "conv_pwl"]
    norm = int(place) + (int(place) < kinds.index("se"))  # SE has none
    kind = {"0": kinds[int(place)], "1": f"bn{norm}", "fc1": "se.conv_reduce", "fc2": "se.conv_expand"}[part]
    return f"blocks.{int(stage) - 1}.{block}.{kind}.{rest}"
