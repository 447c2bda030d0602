"""Prints the sourced golden numbers of tests/layers/test_backbones.py, from timm and from transformers.

    pip install torch timm transformers
    pip install --no-deps efficientnet-lite-pytorch
    PYTHONPATH=tools python tools/sources/backbones.py

Every case runs in two packages (torch 2.13.0, timm 1.0.31, transformers 5.23.0; 2026-11-24; EfficientNet-Lite0, which
transformers has not, in efficientnet-lite-pytorch 0.1.0; 2026-11-29), on the same weights. The numbers are timm's in
float64: of each tap its mean and ten elements. Behind them: the largest difference, relative to the largest value of
the tap, of the other package to timm and of adref to timm in float64, of adref to timm in float32.

Weights and inputs: the hash of tools/hash_recipe.py by torchvision's (EfficientNet: timm's) name of each tensor, the
batch norms' means and variances too; a tensor of more than 65,537 numbers repeats its first 65,537. MobileNetV2 has its
batch norms folded: there mean 0, variance 1 - eps, weight 1, and the convolution's bias as theirs.

Three things make transformers' models the same networks: EfficientNet's zeros stand on all four sides (its own
convention is TensorFlow's) and its eps is 1e-5; the bottleneck of Wide ResNet reduces by 2 instead of 4. In timm
MobileNetV2 gets the padding "same" and loses its batch norm's eps to the variance.
"""

import functools
import re
from collections.abc import Callable

import numpy as np
import torch
import transformers
from efficientnet_lite_pytorch import EfficientNet as PackagedLite
from hash_recipe import digits, hashed, stand_in_for_torchvision
from torch import nn
from transformers.models.efficientnet import modeling_efficientnet as hf_efficientnet
from transformers.models.mobilenet_v2 import modeling_mobilenet_v2 as hf_mobilenet
from transformers.models.resnet import modeling_resnet as hf_resnet

from adref.layers.efficientnet import EfficientNetB4
from adref.layers.mobilenet import EfficientNetLite0, MobileNetV2
from adref.layers.resnet import ResNet

stand_in_for_torchvision()
import timm  # noqa: E402

MEAN, STD = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
RESNETS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "wide_resnet50_2": (3, 4, 6, 3),
}
B4_BLOCKS = (2, 4, 4, 6, 6, 8, 2)
V2_STAGES = (1, 2, 3, 4, 3, 3, 1)
LITE0_STAGES = (1, 2, 2, 3, 3, 4, 1)


def weights(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Computes hashed values of one tensor, scaled as by `fill` of tools/hash_recipe.py."""
    values = torch.from_numpy(np.resize(hashed(name, min(tensor.numel(), 65537)).numpy(), tuple(tensor.shape)))
    if tensor.ndim > 1:
        return (values - 0.5) * (12 / tensor[0].numel()) ** 0.5
    return 0.5 + values if name.endswith(("running_var", "weight")) else (values - 0.5) * 0.2


def fill(module: nn.Module, rename: Callable[[str], str]) -> nn.Module:
    """Fills every tensor of the state by its published name; in float32, then widened."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(weights(rename(name), tensor))
    return module.double().eval()


def fill_folded(module: nn.Module, rename: Callable[[str], str]) -> nn.Module:
    """Fills a network whose batch norms have only the bias of the folded convolution."""
    module.double().eval()
    for name, part in module.named_modules():
        if isinstance(part, nn.Conv2d):
            part.weight.copy_(weights(f"{rename(name)}.weight", part.weight))
        elif isinstance(part, nn.BatchNorm2d):
            part.bias.copy_(weights(f"{rename(name)}.bias", part.bias))
            part.weight.fill_(1.0), part.running_mean.zero_(), part.running_var.fill_(1.0 - part.eps)
    return module


def resnet_name(name: str) -> str:
    """Translates transformers' name of a tensor of ResNet to torchvision's."""
    name = re.sub(r"encoder\.stages\.(\d)\.layers", lambda m: f"layer{int(m[1]) + 1}", name)
    name = re.sub(r"layer\.(\d)\.(conv|norm)\w+", lambda m: f"{m[2].replace('norm', 'bn')}{int(m[1]) + 1}", name)
    name = name.replace("shortcut.convolution", "downsample.0").replace("shortcut.normalization", "downsample.1")
    return name.replace("embedder.embedder.convolution", "conv1").replace("embedder.embedder.normalization", "bn1")


def efficientnet_name(name: str) -> str:
    """Translates transformers' name of a tensor of EfficientNet-B4 to timm's."""
    for theirs, own in (
        ("embeddings.convolution", "conv_stem"), ("embeddings.batchnorm", "bn1"), ("encoder.top_conv", "conv_head"),
        ("encoder.top_bn", "bn2"),
    ):  # fmt: skip
        name = name.replace(theirs, own)
    if not (match := re.fullmatch(r"encoder\.blocks\.(\d+)\.\w+\.(\w+)\.(\w+)", name)):
        return name
    block, stage = int(match[1]), 0
    while block >= B4_BLOCKS[stage]:
        block, stage = block - B4_BLOCKS[stage], stage + 1
    own = {
        "expand_conv": "conv_pw", "expand_bn": "bn1", "depthwise_conv": "conv_dw", "depthwise_norm": "bn2",
        "reduce": "se.conv_reduce", "expand": "se.conv_expand", "project_conv": "conv_pwl", "project_bn": "bn3",
    }[match[2]]  # fmt: skip
    if stage == 0:
        own = {"conv_pwl": "conv_pw", "bn2": "bn1", "bn3": "bn2"}.get(own, own)
    return f"blocks.{stage}.{block}.{own}.{match[3]}"


def hf_mobilenet_name(name: str) -> str:
    """Translates transformers' name of a layer of MobileNetV2 to torchvision's of the folded convolution."""
    unit = name.rpartition(".")[0]
    if unit.startswith("conv_stem"):
        return {"first_conv": "features.0.0", "conv_3x3": "features.1.conv.0.0", "reduce_1x1": "features.1.conv.1"}[
            unit.split(".")[1]
        ]
    if unit == "conv_1x1":
        return "features.18.0"
    _, index, kind = unit.split(".")
    return (
        f"features.{int(index) + 2}." + {"expand_1x1": "conv.0.0", "conv_3x3": "conv.1.0", "reduce_1x1": "conv.2"}[kind]
    )


def timm_mobilenet_name(name: str, stages: tuple[int, ...] = V2_STAGES) -> str:
    """Translates timm's name of a layer of MobileNetV2 to torchvision's of the folded convolution."""
    if name in ("conv_stem", "bn1"):
        return "features.0.0"
    if name in ("conv_head", "bn2"):
        return f"features.{1 + sum(stages)}.0"
    _, stage, block, part = name.split(".")
    number = 1 + sum(stages[: int(stage)]) + int(block)
    if number == 1:
        return "features.1." + {"conv_dw": "conv.0.0", "bn1": "conv.0.0", "conv_pw": "conv.1", "bn2": "conv.1"}[part]
    place = {"conv_pw": 0, "bn1": 0, "conv_dw": 1, "bn2": 1, "conv_pwl": 2, "bn3": 2}[part]
    return f"features.{number}.conv." + ("0.0", "1.0", "2")[place]


def packaged_lite_name(name: str) -> str:
    """Translates efficientnet-lite-pytorch's name of a layer to torchvision's of the folded convolution."""
    if "_blocks" not in name:
        return "features.0.0" if name in ("_conv_stem", "_bn0") else "features.17.0"
    _, block, part = name.split(".")
    place = {"_expand_conv": 0, "_bn0": 0, "_depthwise_conv": 1, "_bn1": 1, "_project_conv": 2, "_bn2": 2}[part]
    if block == "0":
        return "features.1." + ("conv.0.0" if place == 1 else "conv.1")
    return f"features.{int(block) + 1}.conv." + ("0.0", "1.0", "2")[place]


def tapped(network: nn.Module, modules: list[nn.Module], images: torch.Tensor) -> list[torch.Tensor]:
    """Collects the outputs of modules during a call of the network."""
    layers = []
    handles = [module.register_forward_hook(lambda *given: layers.append(given[-1].clone())) for module in modules]
    network(images)
    for handle in handles:
        handle.remove()
    return layers


def resnet_peers(name: str, images: torch.Tensor) -> list[list[torch.Tensor]]:
    """Computes the taps of a ResNet in timm and in transformers."""
    images = (images - MEAN) / STD
    theirs = fill(timm.create_model(name, num_classes=0), lambda key: key)
    first = tapped(theirs, [theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4], images)
    basic = name in ("resnet18", "resnet34")
    plain = hf_resnet.ResNetBottleNeckLayer
    if name == "wide_resnet50_2":
        hf_resnet.ResNetBottleNeckLayer = functools.partial(plain, reduction=2)
    config = hf_resnet.ResNetConfig(
        depths=RESNETS[name], layer_type="basic" if basic else "bottleneck", downsample_in_bottleneck=False,
        hidden_sizes=[64, 128, 256, 512] if basic else [256, 512, 1024, 2048],
    )  # fmt: skip
    theirs = fill(hf_resnet.ResNetModel(config), resnet_name)
    hf_resnet.ResNetBottleNeckLayer = plain
    return [first, list(theirs(images, output_hidden_states=True).hidden_states[1:])]


def efficientnet_peers(images: torch.Tensor) -> list[list[torch.Tensor]]:
    """Computes the taps of EfficientNet-B4 in both."""
    images = (images - MEAN) / STD
    theirs = fill(timm.create_model("efficientnet_b4", num_classes=0), lambda key: key)
    first = tapped(theirs, [theirs.blocks[i] for i in (0, 1, 2, 4)], images)
    config = hf_efficientnet.EfficientNetConfig(
        width_coefficient=1.4, depth_coefficient=1.8, hidden_dim=1792, batch_norm_eps=1e-5
    )
    theirs = fill(hf_efficientnet.EfficientNetModel(config), efficientnet_name)
    theirs.embeddings.padding = nn.ZeroPad2d(1)
    for block in theirs.encoder.blocks:
        depthwise = block.depthwise_conv
        depthwise.depthwise_conv_pad = nn.ZeroPad2d(depthwise.depthwise_conv.kernel_size[0] // 2)
    theirs.pooler = nn.AdaptiveAvgPool2d(1)
    ends = [sum(B4_BLOCKS[: i + 1]) - 1 for i in (0, 1, 2, 4)]
    return [first, tapped(theirs, [theirs.encoder.blocks[i] for i in ends], images)]


def mobilenet_peers(images: torch.Tensor) -> list[list[torch.Tensor]]:
    """Computes the taps of MobileNetV2 in both."""
    images = images * 2 - 1
    theirs = fill_folded(timm.create_model("mobilenetv2_100", num_classes=0, pad_type="same"), timm_mobilenet_name)
    first = tapped(theirs, [theirs.blocks[i] for i in (1, 2, 4, 6)], images)
    config = hf_mobilenet.MobileNetV2Config(tf_padding=True)
    theirs = fill_folded(hf_mobilenet.MobileNetV2Model(config), hf_mobilenet_name)
    return [first, tapped(theirs, [theirs.layer[i - 2] for i in (3, 6, 13, 17)], images)]


def lite0_peers(images: torch.Tensor) -> list[list[torch.Tensor]]:
    """Computes the taps of EfficientNet-Lite0 in timm and in efficientnet-lite-pytorch."""
    images = (images * 255 - 127) / 128
    named = functools.partial(timm_mobilenet_name, stages=LITE0_STAGES)
    theirs = fill_folded(timm.create_model("tf_efficientnet_lite0", num_classes=0), named)
    first = tapped(theirs, [theirs.blocks[i] for i in (1, 2, 4, 6)], images)
    packaged = PackagedLite.from_name("efficientnet-lite0", image_size=None)
    packaged = fill_folded(packaged, packaged_lite_name)
    return [first, tapped(packaged, [packaged._blocks[i - 1] for i in (3, 5, 11, 16)], images)]


def difference(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """Computes the largest difference, relative to the largest value of each tap."""
    return max(((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, theirs, strict=True))


def report(case: str, peers: list[list[torch.Tensor]], own: nn.Module, images: torch.Tensor) -> None:
    """Prints mean and ten elements of each tap, then the differences."""
    for number, tap in enumerate(peers[0]):
        flat = tap.flatten()
        numbers = digits(flat.mean(), *flat[torch.linspace(0, len(flat) - 1, 10).long()])
        print(f"{case} tap {number} {tuple(tap.shape)}: {numbers}")
    fill(own, lambda key: key)
    double, single = own(images), own.float()(images.float())
    print(
        f"{case}: the other {difference(peers[1], peers[0]):.1e}, adref {difference(double, peers[0]):.1e}, "
        f"adref in float32 {difference(single, peers[0]):.1e}"
    )


def main() -> None:
    """Runs every backbone; those with squeeze and excite or padding "SAME" on odd sides too."""
    print("timm", timm.__version__, "transformers", transformers.__version__, "torch", torch.__version__)
    even, odd = (hashed("images", 1, 3, *size).double() for size in ((64, 96), (61, 99)))
    for name in RESNETS:
        report(name, resnet_peers(name, even), ResNet(name), even)
    for suffix, images in (("", even), (" odd", odd)):
        report(f"efficientnet_b4{suffix}", efficientnet_peers(images), EfficientNetB4(), images)
        report(f"mobilenet_v2{suffix}", mobilenet_peers(images), MobileNetV2(), images)
        report(f"efficientnet_lite0{suffix}", lite0_peers(images), EfficientNetLite0(), images)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
