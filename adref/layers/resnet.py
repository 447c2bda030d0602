"""ResNet and Wide ResNet as feature extractors.

K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; S. Zagoruyko, N. Komodakis, "Wide Residual
Networks", BMVC 2016. The stride is in the 3 x 3 convolution of a bottleneck, as in torchvision and timm; tensors have
the same names as there.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from adref.layers.published import load_published, normalise

# Blocks of each stage, bottlenecks or not, factor of their inner width; default file of timm 0.5.4, torchvision's first
FORMS = {
    "resnet18": ((2, 2, 2, 2), False, 1, "resnet18-5c106cde", "resnet18-f37072fd"),
    "resnet34": ((3, 4, 6, 3), False, 1, "resnet34-43635321", "resnet34-b627a593"),
    "resnet50": ((3, 4, 6, 3), True, 1, "resnet50_a1_0-14fe96d1", "resnet50-0676ba61"),
    "wide_resnet50_2": ((3, 4, 6, 3), True, 2, "wide_resnet50_racm-8234f177", "wide_resnet50_2-95faca4d"),
}


class ResNetBlock(nn.Module):
    """Adds a residual: ReLU(x' + f(x)), x' = x or its strided 1 x 1 convolution and batch norm.

    f is two 3 x 3 convolutions, or (bottleneck) 1 x 1, 3 x 3 with the stride, 1 x 1; batch norm after each. `channels`,
    `width` and `out` are those of the input, the inner convolutions and the output.
    """

    def __init__(self, channels: int, width: int, out: int, stride: int, bottleneck: bool):
        super().__init__()
        forms = ((channels, width, 3, stride), (width, out, 3, 1))
        if bottleneck:
            forms = ((channels, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1))
        self.count = len(forms)
        for i, (before, after, side, step) in enumerate(forms, start=1):
            self.add_module(f"conv{i}", nn.Conv2d(before, after, side, step, side // 2, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(after))
        self.downsample = None
        if stride > 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, channels, H, W) to (B, out, H / stride, W / stride)."""
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = y.relu() if i < self.count else y
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet(nn.Module):
    """Returns the features after each of the four stages; no classifier.

    Random weights are Kaiming's (fan out), with the last batch norm of each block at 1/2: in evaluation mode, where
    fresh statistics normalise nothing, the sum of many blocks would otherwise grow from layer to layer.

    `name` is a key of FORMS; the stages have 64, 128, 256, 512 channels, four times as many with bottlenecks.
    """

    strides = (4, 8, 16, 32)

    def __init__(self, name: str):
        super().__init__()
        depths, bottleneck, factor, *files = FORMS[name]
        self.name, expansion = name, 4 if bottleneck else 1
        self.published = "{}.pth of timm 0.5.4, or torchvision's {}.pth".format(*files)
        self.channels = tuple(64 * 2**i * expansion for i in range(4))
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1, self.maxpool = nn.BatchNorm2d(64), nn.MaxPool2d(3, 2, 1)
        before = 64
        for i, (depth, out) in enumerate(zip(depths, self.channels)):
            blocks = []
            for j in range(depth):
                blocks.append(ResNetBlock(before, 64 * 2**i * factor, out, 2 if i > 0 and j == 0 else 1, bottleneck))
                before = out
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, ResNetBlock):
                nn.init.constant_(getattr(module, f"bn{module.count}").weight, 0.5)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps RGB (B, 3, H, W) in [0, 1] to four maps (B, channels[i], H / strides[i], W / strides[i])."""
        layers = [self.maxpool(self.bn1(self.conv1(normalise(images))).relu())]
        for i in range(1, 5):
            layers.append(getattr(self, f"layer{i}")(layers[-1]))
        return layers[1:]

    def load_published(self, state: Mapping) -> list[str]:
        """Loads weights with torchvision's or timm's names, without the classifier; see `published.load_published`."""
        return load_published(self, state, self.name, ("fc.",))
