"""Frozen feature extractors: numbers of two other packages, names of published files, details one by one."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import golden

from adref.data.reader import read_image
from adref.layers.efficientnet import STAGES, EfficientNetB4, InvertedResidual, SqueezeExcite, timm_name
from adref.layers.mobilenet import LinearBottleneck, MobileNetV2, SameConvolution, same_convolution
from adref.layers.published import load_published, normalise
from adref.layers.resnet import ResNet, ResNetBlock
from adref.options import UserError

RESNETS = ("resnet18", "resnet34", "resnet50", "wide_resnet50_2")
NAMES = (*RESNETS, "efficientnet_b4", "mobilenet_v2")

# Sourced: mean and ten elements of each tap, timm 1.0.31 (torch 2.13.0, float64), from which transformers 5.23.0
# differs by exactly 0; `PYTHONPATH=tools python tools/sources/backbones.py`, 2026-11-24. The flag: a picture of 61 x 99, else 64 x 96.
SOURCED = {
    ("resnet18", False): [
        [2.876062203, 0.0, 2.663343669, 0.0, 0.8156434166, 2.246717791, 6.101529835, 2.068892101, 5.645111098,
         4.798221424, 0.0],
        [3.382561087, 2.068159339, 4.158833827, 2.714346832, 3.08386075, 0.0, 3.315517619, 10.01228953, 3.491073585,
         7.805559088, 0.0],
        [3.432893457, 0.0, 4.457829112, 0.0, 20.12481612, 3.43390988, 1.630358037, 3.299484641, 6.934347359, 0.0,
         6.52747713],
        [2.496097383, 0.6620561696, 9.272615375, 1.994405743, 0.0, 0.0, 2.300412985, 7.025485168, 0.0, 0.0,
         3.514703228],
    ],
    ("resnet34", False): [
        [3.06700408, 0.0, 4.986635772, 0.0, 0.0, 0.0, 3.476740283, 1.906916507, 2.674302875, 6.566792917, 2.822213079],
        [6.151655587, 0.8693337228, 5.51219043, 0.0, 4.951951229, 0.7796994835, 2.626852435, 12.15826147, 4.645911437,
         0.0, 0.0],
        [10.44292363, 5.009767446, 12.00790064, 11.65121257, 0.0, 21.16245125, 0.0, 6.967478708, 9.11846118,
         21.49469408, 28.59959313],
        [7.849081457, 9.131145646, 33.70430848, 0.0, 0.687122248, 0.0, 0.0, 23.14998502, 0.0, 8.714627362, 15.24154718],
    ],
    ("resnet50", False): [
        [1.431887973, 0.6503019383, 1.574704612, 3.656403013, 0.121017869, 0.242629351, 4.023240935, 1.954503904,
         2.431384902, 0.0, 3.062114214],
        [2.043574554, 1.005252467, 0.0, 1.555572007, 0.0, 3.957489038, 0.0, 0.0, 3.587788182, 0.0, 2.817979386],
        [3.605975446, 6.186693768, 4.785195975, 0.0, 10.73502753, 0.0, 0.0, 3.342217195, 0.0, 1.014146662, 0.0],
        [3.252253875, 0.0, 0.0, 1.572509296, 1.259101007, 4.34921374, 0.0, 0.0, 1.627328233, 0.0, 22.87902402],
    ],
    ("wide_resnet50_2", False): [
        [1.695269444, 0.3177951224, 1.744721125, 3.858885544, 0.1509456272, 0.4996057135, 2.182553053, 0.9665587494,
         0.0, 0.0, 1.75169287],
        [2.843661034, 0.0, 0.5945482415, 1.492521798, 3.193544724, 0.1657022984, 1.761649214, 0.0, 0.0, 4.150082148,
         4.334619913],
        [4.858640901, 11.63418405, 4.423602098, 5.168294052, 4.225423647, 0.0, 6.916907718, 0.0, 18.4040991, 0.0,
         0.08887999048],
        [4.324849742, 0.0, 0.0, 0.0, 3.167846216, 3.131817861, 6.47886831, 0.0, 0.0, 5.384978297, 4.397433819],
    ],
    ("efficientnet_b4", False): [
        [0.0358994611, 0.05306080893, -0.9685193061, 0.7366948959, 0.06403777403, -0.3743203443, 0.1720783346,
         0.1489167183, -0.1064955756, 0.3373560762, -0.007077724193],
        [-0.01305262373, -0.1221375634, -0.1393511421, -0.05155728379, -0.2100390395, 0.1666598462, 0.1329662536,
         -0.07450996189, -0.05418299656, -0.153787593, 0.05844587036],
        [-0.02508459636, -0.1101993255, 0.02861803124, -0.3608872131, -0.2386792524, -0.2968311269, 0.005928667267,
         0.3465585653, 0.2388703194, 0.106539285, 0.1975873391],
        [0.02696292351, -0.05369024612, -0.1988061266, 0.01573799434, -0.1728399113, 0.05973086243, 0.2523965419,
         0.409716258, 0.02867780021, 0.02785082457, -0.251370226],
    ],
    ("mobilenet_v2", False): [
        [-0.02374619168, 0.0003040854098, 0.2140086753, -0.2186651527, 0.01534558305, -0.1488296498, -0.2164658985,
         -0.08264734697, 0.003708884774, -0.0350495181, 0.005386169011],
        [0.0301776099, 0.02827749453, 0.2371469711, 0.1375839765, 0.06336388027, -0.1856007525, 0.3040324788,
         -0.255405289, -0.1018181641, 0.093191829, 0.04952767994],
        [-0.006204115884, 0.001130642732, -0.1443864543, -0.3437596272, 0.1420654788, -0.08607596041, -0.118747565,
         0.1003789619, -0.1344905613, -0.02860781389, 0.1142619804],
        [-0.00885660391, -0.1192042116, 0.04468021742, -0.02532084937, 0.116565333, -0.1083891557, -0.1599658124,
         -0.02756915339, 0.243855745, -0.1704084914, -0.1153153294],
    ],
    ("efficientnet_b4", True): [
        [0.03806538867, 0.06637387401, -0.5781018067, 0.1199380881, -0.4073367709, 0.006005010148, 0.1689784001,
         -0.03915743577, -0.1012812665, -0.4954510448, -0.1766511776],
        [-0.01264557503, -0.1213821826, -0.09842086505, -0.0298017526, -0.1483513677, 0.2401913866, 0.1540468501,
         -0.1382850844, -0.06295211411, -0.1658745876, -0.1141827127],
        [-0.02477292862, -0.1125891426, 0.01864959483, -0.358810701, -0.2390217721, -0.341365224, 0.01566672989,
         0.3625942577, 0.2349222202, 0.1153948581, 0.1986450451],
        [0.02708679707, -0.05384419445, -0.198757942, 0.01522106492, -0.1977415416, 0.06113134848, 0.2543399332,
         0.4062173323, 0.02219933098, 0.02536485623, -0.2511906336],
    ],
    ("mobilenet_v2", True): [
        [-0.02055744692, 0.03444531189, -0.04547152325, -0.2028589598, 0.01215245424, -0.1389502415, -0.1314391335,
         -0.06338013795, -0.03568778633, -0.0252468789, 0.0401556204],
        [0.03155807738, 0.09228581113, 0.2422163167, 0.08180418359, 0.01914851716, -0.1373381565, 0.2347477418,
         -0.1903454883, -0.08167626238, 0.007682437212, 0.1051545989],
        [-0.006716032437, -0.0005224323366, -0.1820574731, -0.3767577787, 0.1514885884, -0.09374575031, -0.1394593588,
         0.09643066417, -0.1176572333, -0.05075382122, 0.1164602185],
        [-0.008925180893, -0.1413975082, 0.04815588168, -0.03341887011, 0.1318722018, -0.1088036377, -0.1530414838,
         -0.0456539802, 0.2427272938, -0.1656375568, -0.1170421211],
    ],
}  # fmt: skip


def build(name: str) -> torch.nn.Module:
    other = {"efficientnet_b4": EfficientNetB4, "mobilenet_v2": MobileNetV2}
    return other[name]() if name in other else ResNet(name)


@torch.no_grad()
def recipe(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Hashed values of one tensor as tools/sources/backbones.py gives them."""
    values = golden.hashed(name, min(tensor.numel(), 65537)).numpy()
    values = torch.from_numpy(np.resize(values, tuple(tensor.shape)))
    if tensor.ndim > 1:
        return (values - 0.5) * (12 / tensor[0].numel()) ** 0.5
    return 0.5 + values if name.endswith(("running_var", "weight")) else (values - 0.5) * 0.2


def own_state(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}


def hashed_state(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: recipe(key, value) for key, value in own_state(network).items()}


@pytest.fixture(scope="module")
def small() -> torch.nn.Module:
    """ResNet-18 for tests that leave it as it was."""
    return ResNet("resnet18").eval()


def smooth_picture(height: int = 64, width: int = 64) -> torch.Tensor:
    """One picture of soft blobs, its colours correlated as those of photographs are."""
    generator = torch.Generator().manual_seed(3)
    grey, colour = torch.rand(1, 1, 7, 7, generator=generator), torch.rand(1, 3, 4, 4, generator=generator)
    form = {"size": (height, width), "mode": "bilinear", "align_corners": True}
    return 0.75 * F.interpolate(grey, **form) + 0.25 * F.interpolate(colour, **form)


# -- whole networks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count"),
    [("wide_resnet50_2", 66_834_240), ("resnet50", 23_508_032), ("resnet34", 21_284_672), ("resnet18", 11_176_512),
     ("efficientnet_b4", 16_742_216), ("mobilenet_v2", 3_504_872 - 1_281_000 - 412_160 - 15_776)],
)  # fmt: skip
def test_numbers_of_parameters(name, count):
    # Less classifiers and heads. MobileNetV2: torchvision's 3,504,872, less classifier (1,281,000), less the last
    # convolution (409,600 + 2,560), and one number instead of two for each of 15,776 channels with batch norm.
    with torch.device("meta"):
        network = build(name)
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize("name", NAMES)
def test_channels_strides_and_shapes(name):
    channels, strides = {
        "resnet18": ((64, 128, 256, 512), (4, 8, 16, 32)),
        "resnet34": ((64, 128, 256, 512), (4, 8, 16, 32)),
        "resnet50": ((256, 512, 1024, 2048), (4, 8, 16, 32)),
        "wide_resnet50_2": ((256, 512, 1024, 2048), (4, 8, 16, 32)),
        "efficientnet_b4": ((24, 32, 56, 160), (2, 4, 8, 16)),
        "mobilenet_v2": ((24, 32, 96, 320), (4, 8, 16, 32)),
    }[name]
    with torch.device("meta"):
        network = build(name).eval()
        assert (network.channels, network.strides) == (channels, strides)
        for size in ((256, 256), (128, 192)):
            shapes = [tuple(tap.shape) for tap in network(torch.empty(2, 3, *size))]
            assert shapes == [(2, c, size[0] // s, size[1] // s) for c, s in zip(channels, strides)]
        shapes = [tuple(tap.shape[2:]) for tap in network(torch.empty(1, 3, 61, 99))]
        assert shapes == [(math.ceil(61 / s), math.ceil(99 / s)) for s in strides]


@pytest.mark.parametrize(("name", "odd"), list(SOURCED))
def test_taps_agree_with_other_packages(name, odd):
    with torch.device("meta"):
        network = build(name)
    network = network.to_empty(device="cpu")
    state = {key: recipe(key, value) for key, value in own_state(network).items()}
    assert network.load_published(state) == []
    images = golden.hashed("images", 1, 3, *((61, 99) if odd else (64, 96)))
    with torch.inference_mode():
        taps = network.eval()(images)
        exact = network.double()(images.double()) if name != "wide_resnet50_2" else taps
    for tap, fine, expected in zip(taps, exact, SOURCED[name, odd], strict=True):
        scale = fine.abs().max().item()
        for values, tolerance in ((tap, 1e-5), (fine, 1e-8 if fine is not tap else 1e-5)):
            flat = values.flatten()
            found = [flat.mean().item(), *flat[torch.linspace(0, len(flat) - 1, 10).long()].tolist()]
            np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale)
            assert found[0] == pytest.approx(expected[0], rel=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_fresh_weights_give_features_of_a_fair_size(name):
    torch.manual_seed(0)
    network = build(name).eval()
    with torch.inference_mode():
        taps = network(smooth_picture())
    spread = [tap.std().item() for tap in taps]
    assert all(0.03 < value < 10 for value in spread), spread
    # Places differ as well, not channels alone.
    assert all(tap.std((2, 3)).mean() > 0.01 for tap in taps)


def test_fresh_batch_norms_of_resnets_halve_the_last_of_each_block(small):
    for block in small.modules():
        if isinstance(block, ResNetBlock):
            assert (block.bn1.weight == 1).all() and (block.bn2.weight == 0.5).all()
            assert block.downsample is None or (block.downsample[1].weight == 1).all()


def test_pictures_are_independent_and_gradients_reach_them(small):
    torch.manual_seed(0)
    images = torch.rand(2, 3, 32, 64, requires_grad=True)
    small(images)[-1][0].sum().backward()
    assert images.grad[0].abs().max() > 0 and images.grad[1].abs().max() == 0


# -- pieces of ResNet -------------------------------------------------------------------------------------------------


def test_normalise():
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    steps = torch.tensor([-1.0, 0.0, 2.0]).view(1, 1, 1, 3)
    images = mean.view(1, 3, 1, 1) + std.view(1, 3, 1, 1) * steps
    torch.testing.assert_close(normalise(images), steps.expand(1, 3, 1, 3), atol=1e-6, rtol=0)
    assert normalise(torch.zeros(1, 3, 1, 1).double()).flatten().tolist() == pytest.approx(
        [-2.1179039301, -2.0357142857, -1.8044444444], abs=1e-9
    )


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "efficientnet_b4"])
def test_batch_norms(name):
    with torch.device("meta"):
        norms = [module for module in build(name).modules() if isinstance(module, torch.nn.BatchNorm2d)]
        convolutions = [m for m in build(name).modules() if isinstance(m, torch.nn.Conv2d)]
    assert norms and {norm.eps for norm in norms} == {1e-5}
    if name != "efficientnet_b4":  # one behind each convolution, none of which has a bias
        assert len(norms) == len(convolutions) and all(c.bias is None for c in convolutions)
    # Variance 0: the factor is eps^-1/2.
    block = ResNetBlock(1, 1, 1, 1, False).eval()
    block.bn1.running_var.zero_(), block.bn2.running_var.fill_(1 - 1e-5)
    with torch.no_grad():
        block.bn2.weight.fill_(1.0)
        for convolution in (block.conv1, block.conv2):
            convolution.weight.zero_()[0, 0, 1, 1] = 1
        assert block(torch.ones(1, 1, 1, 1)).item() == pytest.approx(1 + 1e5**0.5, rel=1e-5)


def test_stem_and_pooling_by_hand():
    network = golden.fill(ResNet("resnet18")).double()
    images = golden.hashed("stem", 1, 3, 13, 18).double()
    seen = []
    handle = network.layer1.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.inference_mode():
        network(images)
        handle.remove()
        convolved = F.conv2d(F.pad(normalise(images), (3, 3, 3, 3)), network.conv1.weight, stride=2)
        bn = network.bn1
        scale = (bn.weight / (bn.running_var + 1e-5).sqrt()).view(1, -1, 1, 1)
        x = (convolved - bn.running_mean.view(1, -1, 1, 1)) * scale + bn.bias.view(1, -1, 1, 1)
        x = x.clamp(min=0)[0].numpy()
    assert x.shape[1:] == (7, 9)
    pooled = np.empty((64, 4, 5))
    for i in range(4):
        for j in range(5):
            pooled[:, i, j] = x[:, max(2 * i - 1, 0) : 2 * i + 2, max(2 * j - 1, 0) : 2 * j + 2].max((1, 2))
    np.testing.assert_allclose(seen[0][0].numpy(), pooled, atol=1e-12)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_stride_stands_in_a_3_x_3_convolution(bottleneck):
    torch.manual_seed(0)
    block = ResNetBlock(4, 4, 8, 2, bottleneck).double().eval()
    sides = [(m.kernel_size[0], m.stride[0]) for name, m in block.named_children() if name.startswith("conv")]
    assert sides == ([(1, 1), (3, 2), (1, 1)] if bottleneck else [(3, 2), (3, 1)])
    assert (block.downsample[0].kernel_size, block.downsample[0].stride) == ((1, 1), (2, 2))
    x = torch.rand(1, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    block(x).square().sum().backward()
    assert (x.grad.abs().amax(1) > 0).double().mean() > 0.9  # a strided 1 x 1 convolution sees a quarter of the pixels


def test_residual_units_by_hand():
    x = golden.hashed("unit", 1, 4, 5, 6).double() * 2 - 1

    def norm(y, bn):
        return F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=1e-5)

    with torch.inference_mode():
        for block in (ResNetBlock(4, 3, 8, 2, True), ResNetBlock(4, 3, 4, 1, True)):
            golden.fill(block).double()
            stride = 2 if block.downsample is not None else 1
            y = norm(F.conv2d(x, block.conv1.weight), block.bn1).clamp(min=0)
            y = norm(F.conv2d(y, block.conv2.weight, stride=stride, padding=1), block.bn2).clamp(min=0)
            y = norm(F.conv2d(y, block.conv3.weight), block.bn3)
            short = x
            if stride == 2:
                short = norm(F.conv2d(x, block.downsample[0].weight, stride=2), block.downsample[1])
            torch.testing.assert_close(block(x), (y + short).clamp(min=0), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", RESNETS)
def test_where_shortcuts_are_convolutions(name):
    with torch.device("meta"):
        network = ResNet(name)
    stages = (network.layer1, network.layer2, network.layer3, network.layer4)
    assert [len(stage) for stage in stages] == ([2, 2, 2, 2] if name == "resnet18" else [3, 4, 6, 3])
    own = [[block.downsample is not None for block in stage] for stage in stages]
    first = name not in ("resnet18", "resnet34")  # four times as wide, so that stage 1 needs one
    assert [stage[0] for stage in own] == [first, True, True, True]
    assert not any(any(stage[1:]) for stage in own)
    assert network.layer1[0].downsample is None or network.layer1[0].downsample[0].stride == (1, 1)
    inner = {"resnet18": 64, "resnet34": 64, "resnet50": 64, "wide_resnet50_2": 128}[name]
    assert [stage[0].conv1.out_channels for stage in stages] == [inner * 2**i for i in range(4)]


def test_names_of_resnet():
    with torch.device("meta"):
        keys = set(own_state(ResNet("resnet50")))
    bn = ("weight", "bias", "running_mean", "running_var")
    expected = {"conv1.weight", *(f"bn1.{part}" for part in bn)}
    for stage, depth in enumerate((3, 4, 6, 3), start=1):
        for block in range(depth):
            for i in (1, 2, 3):
                expected |= {f"layer{stage}.{block}.conv{i}.weight"}
                expected |= {f"layer{stage}.{block}.bn{i}.{part}" for part in bn}
        expected |= {f"layer{stage}.0.downsample.0.weight", *(f"layer{stage}.0.downsample.1.{part}" for part in bn)}
    assert keys == expected


# -- pieces of EfficientNet -------------------------------------------------------------------------------------------


def test_squeeze_excite_by_hand():
    layer = golden.fill(SqueezeExcite(6, 2)).double()
    x = golden.hashed("squeeze", 2, 6, 3, 5).double() * 4 - 2
    with torch.inference_mode():
        found = layer(x)
        for b in range(2):
            mean = x[b].mean((1, 2))
            z = layer.conv_reduce.weight[:, :, 0, 0] @ mean + layer.conv_reduce.bias
            z = z / (1 + torch.exp(-z))
            z = layer.conv_expand.weight[:, :, 0, 0] @ z + layer.conv_expand.bias
            torch.testing.assert_close(found[b], x[b] / (1 + torch.exp(-z)).view(6, 1, 1), atol=1e-12, rtol=0)


@pytest.mark.parametrize("form", [(8, 8, 6, 5, 1), (8, 8, 6, 3, 2), (8, 12, 6, 3, 1), (8, 8, 1, 3, 1)])
def test_inverted_residuals_by_hand(form):
    channels, out, expansion, side, stride = form
    block = golden.fill(InvertedResidual(*form)).double()
    x = golden.hashed("block", 1, 8, 7, 6).double() * 4 - 2

    def norm(y, bn):
        return F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=1e-5)

    with torch.inference_mode():
        y, norms = x, [block.bn1, block.bn2] + ([block.bn3] if expansion > 1 else [])
        if expansion > 1:
            y = norm(F.conv2d(y, block.conv_pw.weight), norms.pop(0))
            y = y * torch.sigmoid(y)
        p = (side - 1) // 2
        y = F.conv2d(F.pad(y, (p, p, p, p)), block.conv_dw.weight, stride=stride, groups=channels * expansion)
        y = norm(y, norms.pop(0))
        y = block.se(y * torch.sigmoid(y))
        y = norm(F.conv2d(y, (block.conv_pwl if expansion > 1 else block.conv_pw).weight), norms.pop(0))
        assert y.min() < -0.3  # linear: SiLU never falls below -0.279
        if stride == 1 and channels == out:
            y = y + x
        torch.testing.assert_close(block(x), y, atol=1e-12, rtol=0)


def test_forms_of_the_blocks_of_efficientnet():
    assert STAGES == (
        (1, 3, 1, 24, 2), (6, 3, 2, 32, 4), (6, 5, 2, 56, 4), (6, 3, 2, 112, 6), (6, 5, 1, 160, 6), (6, 5, 2, 272, 8),
        (6, 3, 1, 448, 2),
    )  # fmt: skip
    with torch.device("meta"):
        network = EfficientNetB4()
    # Within squeeze and excite: a quarter of the BLOCK's input, not of the expanded width.
    squeezed = [[block.se.conv_reduce.out_channels for block in stage] for stage in network.blocks]
    assert squeezed == [
        [12, 6], [6, 8, 8, 8], [8, 14, 14, 14], [14, 28, 28, 28, 28, 28], [28, 40, 40, 40, 40, 40],
        [40, 68, 68, 68, 68, 68, 68, 68], [68, 112],
    ]  # fmt: skip
    assert all(block.se.conv_reduce.in_channels == block.conv_dw.out_channels for s in network.blocks for block in s)
    assert [[block.shortcut for block in stage] for stage in network.blocks] == [
        [False] + [True] * (count - 1) for *_, count in STAGES
    ]
    strides = [[block.conv_dw.stride[0] for block in stage] for stage in network.blocks]
    assert strides == [[stage[2]] + [1] * (stage[4] - 1) for stage in STAGES]
    assert all(c.kernel_size[0] // 2 == c.padding[0] for c in network.modules() if isinstance(c, torch.nn.Conv2d))


def test_stages_behind_the_last_tap_do_not_run():
    network = EfficientNetB4().eval()
    for stage in network.blocks[5:]:
        stage.register_forward_hook(lambda *given: pytest.fail("it ran"))
    with torch.inference_mode():
        taps = network(smooth_picture(32, 32))
    assert len(taps) == 4 and min(tap.min() for tap in taps) < -0.3  # raw, behind batch norm


BN = ("weight", "bias", "running_mean", "running_var")
# torchvision's units of EfficientNet-B4 and timm's names of them; a unit is a convolution or a batch norm.
WRITTEN_OUT = {
    "features.0.0": "conv_stem", "features.0.1": "bn1",
    "features.1.0.block.0.0": "blocks.0.0.conv_dw", "features.1.0.block.0.1": "blocks.0.0.bn1",
    "features.1.0.block.1.fc1": "blocks.0.0.se.conv_reduce", "features.1.0.block.1.fc2": "blocks.0.0.se.conv_expand",
    "features.1.0.block.2.0": "blocks.0.0.conv_pw", "features.1.0.block.2.1": "blocks.0.0.bn2",
    "features.1.1.block.0.0": "blocks.0.1.conv_dw", "features.1.1.block.0.1": "blocks.0.1.bn1",
    "features.1.1.block.1.fc1": "blocks.0.1.se.conv_reduce", "features.1.1.block.1.fc2": "blocks.0.1.se.conv_expand",
    "features.1.1.block.2.0": "blocks.0.1.conv_pw", "features.1.1.block.2.1": "blocks.0.1.bn2",
    "features.2.0.block.0.0": "blocks.1.0.conv_pw", "features.2.0.block.0.1": "blocks.1.0.bn1",
    "features.2.0.block.1.0": "blocks.1.0.conv_dw", "features.2.0.block.1.1": "blocks.1.0.bn2",
    "features.2.0.block.2.fc1": "blocks.1.0.se.conv_reduce", "features.2.0.block.2.fc2": "blocks.1.0.se.conv_expand",
    "features.2.0.block.3.0": "blocks.1.0.conv_pwl", "features.2.0.block.3.1": "blocks.1.0.bn3",
    "features.2.3.block.0.0": "blocks.1.3.conv_pw", "features.2.3.block.0.1": "blocks.1.3.bn1",
    "features.2.3.block.1.0": "blocks.1.3.conv_dw", "features.2.3.block.1.1": "blocks.1.3.bn2",
    "features.2.3.block.2.fc1": "blocks.1.3.se.conv_reduce", "features.2.3.block.2.fc2": "blocks.1.3.se.conv_expand",
    "features.2.3.block.3.0": "blocks.1.3.conv_pwl", "features.2.3.block.3.1": "blocks.1.3.bn3",
    "features.8.0": "conv_head", "features.8.1": "bn2",
}  # fmt: skip


def tensors_of(unit: str) -> list[str]:
    """Names of the tensors of one of torchvision's units."""
    last = unit.rpartition(".")[2]
    return [f"{unit}.{part}" for part in {"0": ("weight",), "1": BN}.get(last, ("weight", "bias"))]


def torchvision_names() -> list[str]:
    """All of torchvision's EfficientNet-B4, less its classifier."""
    units = ["features.0.0", "features.0.1", "features.8.0", "features.8.1"]
    for stage, count in enumerate((2, 4, 4, 6, 6, 8, 2), start=1):
        parts = ("0.0", "0.1", "1.fc1", "1.fc2", "2.0", "2.1")
        if stage > 1:
            parts = ("0.0", "0.1", "1.0", "1.1", "2.fc1", "2.fc2", "3.0", "3.1")
        units += [f"features.{stage}.{i}.block.{part}" for i in range(count) for part in parts]
    return [name for unit in units for name in tensors_of(unit)]


def test_names_of_efficientnet():
    for theirs, own in WRITTEN_OUT.items():
        for name in tensors_of(theirs):
            part = name.rpartition(".")[2]
            assert timm_name(name) == f"{own}.{part}"
            assert timm_name(f"{own}.{part}") == f"{own}.{part}"
    with torch.device("meta"):
        own = set(own_state(EfficientNetB4()))
    theirs = torchvision_names()
    translated = [timm_name(name) for name in theirs]
    assert len(translated) == len(set(translated)) == len(theirs)
    assert set(translated) == own | {"conv_head.weight", *(f"bn2.{part}" for part in BN)}
    assert timm_name("features.1.0.block.0.1.num_batches_tracked") == "blocks.0.0.bn1.num_batches_tracked"
    assert timm_name("classifier.1.weight") == "classifier.1.weight"


def test_torchvision_and_timm_files_load_alike():
    network, other = EfficientNetB4(), EfficientNetB4()
    state = hashed_state(network)
    theirs = {}
    for name in torchvision_names():
        own = timm_name(name)
        theirs[f"module.{name}"] = state[own] if own in state else torch.zeros(3)
        if name.endswith("running_var"):
            theirs["module." + name.replace("running_var", "num_batches_tracked")] = torch.tensor(7)
    theirs["module.classifier.1.weight"] = torch.zeros(1000, 1792)
    assert network.load_published(state) == []
    (note,) = other.load_published({"model": theirs})
    assert "of no use to the features" in note and "7 in all" in note
    found = own_state(other)
    for key, value in own_state(network).items():
        assert torch.equal(value, found[key]) and torch.equal(value, state[key])


# -- pieces of MobileNetV2 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(5, 7), (6, 5), (8, 4), (1, 1), (2, 3)])
@pytest.mark.parametrize(("side", "stride"), [(3, 1), (3, 2), (5, 2), (1, 2), (4, 3)])
def test_same_padding_by_a_slow_loop(size, side, stride):
    convolution = golden.fill(torch.nn.Conv2d(2, 2, side, stride)).double()
    x = golden.hashed("same", 1, 2, *size).double()
    rows, columns = math.ceil(size[0] / stride), math.ceil(size[1] / stride)
    # TensorFlow: total = max((out - 1) * stride + side - in, 0), its smaller half stands before.
    top = max((rows - 1) * stride + side - size[0], 0) // 2
    left = max((columns - 1) * stride + side - size[1], 0) // 2
    weight, bias = convolution.weight.detach().numpy(), convolution.bias.detach().numpy()
    expected = np.zeros((2, rows, columns))
    for o in range(2):
        for i in range(rows):
            for j in range(columns):
                total = bias[o]
                for c in range(2):
                    for a in range(side):
                        for b in range(side):
                            y, z = i * stride - top + a, j * stride - left + b
                            if 0 <= y < size[0] and 0 <= z < size[1]:
                                total += weight[o, c, a, b] * x[0, c, y, z].item()
                expected[o, i, j] = total
    with torch.inference_mode():
        found = same_convolution(x, convolution, activate=False)[0].numpy()
        clipped = same_convolution(x * 50, convolution)[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-12)
    free = (expected - bias[:, None, None]) * 50 + bias[:, None, None]
    np.testing.assert_allclose(clipped, free.clip(0, 6), atol=1e-10)


def test_even_sides_have_their_zeros_behind():
    layer = SameConvolution(1, 1, 3, 2)
    with torch.no_grad():
        layer.get_submodule("0").weight.copy_(torch.arange(9.0).view(1, 1, 3, 3) / 10)
        found = layer(torch.ones(1, 1, 4, 4))[0, 0]
        unlimited = SameConvolution(1, 1, 3, 2, activate=False)
        unlimited.load_state_dict(layer.state_dict())
        negative = unlimited(torch.full((1, 1, 4, 4), -10.0))[0, 0]
        limited = layer(torch.full((1, 1, 4, 4), 10.0))[0, 0]
    torch.testing.assert_close(found, torch.tensor([[3.6, 2.1], [1.5, 0.8]]))
    torch.testing.assert_close(negative, -10 * found)
    assert (limited == 6).all()


@pytest.mark.parametrize(
    ("form", "shortcut"), [((4, 4, 1), True), ((4, 4, 2), False), ((4, 6, 1), False), ((4, 4, 1, False), True)]
)
def test_linear_bottlenecks_by_hand(form, shortcut):
    block = golden.fill(LinearBottleneck(*form)).double()
    x = golden.hashed("bottleneck", 1, 4, 6, 8).double() * 20 - 10
    parameters = [parameter.detach() for parameter in block.parameters()]
    assert len(parameters) == (4 if form[3:] == (False,) else 6)
    y = x
    if len(parameters) == 6:
        y = F.conv2d(y, *parameters[:2]).clamp(0, 6)
    assert len(y[0]) == (24 if len(parameters) == 6 else 4)
    pads = (0, 1, 0, 1) if form[2] == 2 else (1, 1, 1, 1)
    y = F.conv2d(F.pad(y, pads), *parameters[-4:-2], stride=form[2], groups=len(y[0])).clamp(0, 6)
    y = F.conv2d(y, *parameters[-2:])
    assert block.shortcut == shortcut and y.min() < 0
    with torch.inference_mode():
        torch.testing.assert_close(block(x), y + x if shortcut else y, atol=1e-12, rtol=0)


def test_values_of_mobilenet_are_in_minus_one_to_one():
    network = golden.fill(MobileNetV2())
    seen = []
    handle = network.features[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.inference_mode():
        network(torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1).expand(1, 3, 32, 32))
    handle.remove()
    assert seen[0][0, :, 5, 7].tolist() == [-1, 0, 1]


def test_forms_and_names_of_mobilenet():
    with torch.device("meta"):
        network = MobileNetV2()
    expected = {f"features.0.0.{part}": None for part in ("weight", "bias")}
    for number in range(1, 18):
        units = ("conv.0.0", "conv.1") if number == 1 else ("conv.0.0", "conv.1.0", "conv.2")
        expected |= {f"features.{number}.{unit}.{part}": None for unit in units for part in ("weight", "bias")}
    assert list(own_state(network)) == list(expected) and len(expected) == 102
    blocks = list(network.features)[1:]
    depthwise = [block.conv[-2].get_submodule("0") for block in blocks]
    assert [c.stride[0] for c in depthwise] == [1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1]
    assert all(c.groups == c.in_channels == c.out_channels for c in depthwise)
    assert [block.conv[-1].out_channels for block in blocks] == [16] + [24] * 2 + [32] * 3 + [64] * 4 + [96] * 3 + [
        160
    ] * 3 + [320]
    assert [number for number, block in enumerate(blocks, 1) if block.shortcut] == [3, 5, 6, 8, 9, 10, 12, 13, 15, 16]


# -- published weights ------------------------------------------------------------------------------------------------

LIGHT = ("resnet18", "efficientnet_b4", "mobilenet_v2")
ENDS = {
    "resnet18": {"fc.weight": (1000, 512), "fc.bias": (1000,)},
    "efficientnet_b4": {
        "conv_head.weight": (1792, 448, 1, 1), "bn2.weight": (1792,), "classifier.weight": (1000, 1792),
        "classifier.bias": (1000,),
    },
    "mobilenet_v2": {"features.18.0.weight": (1280, 320, 1, 1), "features.18.0.bias": (1280,)},
}  # fmt: skip


@pytest.fixture(scope="module", params=LIGHT)
def light(request) -> tuple[str, torch.nn.Module, dict[str, torch.Tensor]]:
    """A network, fresh, and hashed weights for it."""
    network = build(request.param)
    return request.param, network, hashed_state(network)


@pytest.mark.parametrize("form", ["plain", "module.", "state_dict", "model", "both", "float16", "float64"])
def test_published_weights_load(light, form):
    name, network, state = light
    with torch.no_grad():
        for tensor in own_state(network).values():
            tensor.fill_(0.25)
    given = {**state, **{key: torch.zeros(shape) for key, shape in ENDS[name].items()}}
    expected = state
    if form in ("float16", "float64"):
        given = {key: value.to(getattr(torch, form)) for key, value in given.items()}
        expected = {key: value.to(getattr(torch, form)).float() for key, value in state.items()}
    prefixed = {f"module.{key}": value for key, value in given.items()}
    given = {"module.": prefixed, "state_dict": {"epoch": 3, "state_dict": given}, "model": {"model": prefixed},
             "both": {"state_dict": {"model": given}}}.get(form, given)  # fmt: skip
    (note,) = network.load_published(given)
    ends = list(ENDS[name])
    assert note == f"{', '.join(ends[:3])} ({len(ends)} in all) are of no use to the features"
    found = own_state(network)
    assert all(found[key].dtype == torch.float32 and torch.equal(found[key], expected[key]) for key in expected)


def test_weights_need_no_ends_and_counters_are_optional(light):
    _, network, state = light
    counters = {key: torch.tensor(9) for key in network.state_dict() if key.endswith("num_batches_tracked")}
    assert network.load_published(state) == []
    assert network.load_published({**state, **counters}) == []
    assert network.load_published({f"module.{k}": v for k, v in {**state, **counters}.items()}) == []


def spoilt(state: dict[str, torch.Tensor], how: str):
    """Weights that do not fit, with words of the message."""
    first, last = next(iter(state)), list(state)[-1]
    infinite = state[last].clone()
    infinite.view(-1)[-1] = math.inf
    return {
        "missing": ({k: v for k, v in state.items() if k != last}, rf"1 names are missing \['{last}'\], 0 are unknown"),
        "unknown": ({**state, "extra.weight": torch.zeros(2)}, r"0 names are missing .*1 are unknown \['extra.weight'"),
        "empty": ({}, "names are missing"),
        "shape": ({**state, last: torch.zeros(2, 2)}, rf"{last} has the shape \(2, 2\), expected"),
        "one row": ({**state, last: state[last][:1]}, rf"{last} has the shape"),
        "nan": ({**state, first: state[first] * math.nan}, f"not finite: {first}"),
        "infinite": ({**state, last: infinite}, f"not finite: {last}"),
        "too large": ({**state, last: state[last].double() + 1e300}, f"not finite: {last}"),
        "list": (list(state.values()), "no dictionary of tensors"),
        "none": (None, "no dictionary of tensors"),
        "numbers": ({**state, last: 3.0}, "no dictionary of tensors"),
        "below": ({"state_dict": list(state)}, "no dictionary of tensors"),
        "other place": ({"weights": state}, "no dictionary of tensors"),
    }[how]


@pytest.mark.parametrize(
    "how",
    ["missing", "unknown", "empty", "shape", "one row", "nan", "infinite", "too large", "list", "none", "numbers",
     "below", "other place"],
)  # fmt: skip
def test_weights_that_do_not_fit_change_nothing(light, how):
    name, network, state = light
    with torch.no_grad():
        for tensor in own_state(network).values():
            tensor.fill_(0.25)
    given, words = spoilt(state, how)
    with pytest.raises(UserError, match=words) as caught:
        network.load_published(given)
    assert name in str(caught.value)
    assert all((value == 0.25).all() for value in own_state(network).values())


@pytest.mark.parametrize("keys", [{0: torch.zeros(1)}, {("a", 1): torch.zeros(1)}])
def test_names_that_are_no_text(light, keys):
    with pytest.raises(UserError, match="no dictionary of tensors"):
        light[1].load_published(keys)


def test_weights_of_another_network(small):
    before = {key: value.clone() for key, value in own_state(small).items()}
    with torch.device("meta"):
        states = {name: own_state(build(name)) for name in NAMES if name != "resnet18"}
    for state in states.values():
        with pytest.raises(UserError, match="the weights do not fit resnet18"):
            small.load_published(state)
    # Names that fit and shapes that do not: they differ in nothing but the inner width.
    with torch.device("meta"):
        narrow = ResNet("resnet50")
    wide = {key: torch.zeros(()).expand(value.shape) for key, value in states["wide_resnet50_2"].items()}
    with pytest.raises(UserError, match=r"resnet50: layer1.0.conv1.weight has the shape \(128, 64, 1, 1\), expected"):
        narrow.load_published(wide)
    assert all(torch.equal(value, before[key]) for key, value in own_state(small).items())


def test_ignored_names_are_told_and_only_those():
    layer = torch.nn.Linear(2, 1)
    state = {"weight": torch.ones(1, 2), "bias": torch.ones(1)}
    assert load_published(layer, state, "line") == []
    with pytest.raises(UserError, match=r"the weights do not fit line: .*1 are unknown \['fc.weight'\]"):
        load_published(layer, {**state, "fc.weight": torch.ones(1)}, "line")
    more = {f"fc.{i}": torch.ones(1) for i in range(5)}
    notes = load_published(layer, {**state, **more}, "line", ("fc.",))
    assert notes == ["fc.0, fc.1, fc.2 (5 in all) are of no use to the features"]


def test_published_files_are_named():
    with torch.device("meta"):
        texts = {name: build(name).published for name in NAMES}
    assert texts["resnet18"] == "resnet18-5c106cde.pth of timm 0.5.4, or torchvision's resnet18-f37072fd.pth"
    assert "wide_resnet50_racm-8234f177" in texts["wide_resnet50_2"]
    assert "resnet50_a1_0-14fe96d1" in texts["resnet50"] and "resnet34-43635321" in texts["resnet34"]
    assert "efficientnet_b4_ra2_320-7eb33cd5" in texts["efficientnet_b4"] and ".npz" in texts["mobilenet_v2"]


@pytest.mark.skipif("ADREF_TEST_DATA" not in os.environ, reason="ADREF_TEST_DATA names no folder of data sets")
def test_real_weights_of_mobilenet():
    root = Path(os.environ["ADREF_TEST_DATA"])
    file = root.parent / "weights" / "mobilenet_v2_features_fp16.npz"
    if not file.exists():
        pytest.skip(f"{file} is absent")
    with np.load(file) as arrays:
        state = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    network = MobileNetV2().eval()
    (note,) = network.load_published(state)
    assert "features.18.0" in note and "2 in all" in note
    assert all(torch.equal(value, state[key].float()) for key, value in own_state(network).items())
    places = ("bsdata/ball_screw/train/good", "dtd_subset/images/cobwebbed")
    images = []
    for place in places:
        picture = torch.from_numpy(read_image(sorted((root / place).iterdir())[0])).permute(2, 0, 1)[None].float()
        picture = picture / 255 if picture.max() > 1 else picture
        images.append(F.interpolate(picture, (128, 160), mode="bilinear", antialias=True))
    with torch.inference_mode():
        first, second = (network(image) for image in images)
        again = network(images[0] + 0.002 * torch.rand(1, 3, 128, 160))
    for a, b, c in zip(first, second, again, strict=True):
        assert torch.isfinite(a).all() and torch.isfinite(b).all() and 0.03 < a.std() < 10
        assert (a - b).norm() > 0.3 * a.norm() > (a - c).norm()  # photographs differ, faint noise matters little
