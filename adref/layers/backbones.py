"""The frozen feature extractors by name."""

from torch import nn

from adref.layers.efficientnet import EfficientNetB4
from adref.layers.mobilenet import EfficientNetLite0, MobileNetV2
from adref.layers.resnet import ResNet


def build_backbone(name: str) -> nn.Module:
    """Builds an extractor, randomly initialised.

    It maps RGB (B, 3, H, W) in [0, 1] to four maps of `channels` at `strides`; `load_published` takes the weights that
    `published` describes, and `package` names the file of a pip package that has them.
    """
    others = {"efficientnet_b4": EfficientNetB4, "efficientnet_lite0": EfficientNetLite0, "mobilenet_v2": MobileNetV2}
    return others[name]() if name in others else ResNet(name)
