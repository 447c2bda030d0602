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
from adref.layers.efficientnet import EfficientNetB4, timm_name
from adref.layers.mobilenet import MobileNetV2, SameConvolution
from adref.layers.published import normalise
from adref.layers.resnet import ResNet

RESNETS = ("resnet18", "resnet34", "resnet50", "wide_resnet50_2")
NAMES = (*RESNETS, "efficientnet_b4", "mobilenet_v2")

# Sourced: mean and ten elements of each tap, timm 1.0.31 (torch 2.13.0, float64), from which transformers 5.23.0
# differs by exactly 0; `PYTHONPATH=tools python tools/sources/backbones.py`, 2026-11-24. The flag: an image of
# 61 x 99, else 64 x 96.
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


# -- pieces of EfficientNet -------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(("size", "side", "stride"), [((5, 7), 3, 2), ((6, 5), 5, 2), ((8, 4), 3, 1), ((2, 3), 4, 3)])
def test_same_padding_by_a_slow_loop(size, side, stride):
    layer, linear = (golden.fill(SameConvolution(2, 2, side, stride, activate=a)).double() for a in (True, False))
    convolution = linear.get_submodule("0")
    x = golden.hashed("same", 1, 2, *size).double()
    rows, columns = math.ceil(size[0] / stride), math.ceil(size[1] / stride)
    # TensorFlow: total = max((out - 1) * stride + side - in, 0), its smaller half in front.
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
        found, clipped = linear(x)[0].numpy(), layer(x * 50)[0].numpy()
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


# -- published weights ------------------------------------------------------------------------------------------------

ENDS = {
    "resnet18": {"fc.weight": (1000, 512), "fc.bias": (1000,)},
    "efficientnet_b4": {
        "conv_head.weight": (1792, 448, 1, 1), "bn2.weight": (1792,), "classifier.weight": (1000, 1792),
        "classifier.bias": (1000,),
    },
    "mobilenet_v2": {"features.18.0.weight": (1280, 320, 1, 1), "features.18.0.bias": (1280,)},
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_published_weights_load(name):
    """In every wrapping and float type; classifier and head are ignored with a note, counters are optional."""
    network = build(name)
    state = hashed_state(network)
    ends = {key: torch.zeros(shape) for key, shape in ENDS[name].items()}
    counters = {key: torch.tensor(9) for key in network.state_dict() if key.endswith("num_batches_tracked")}
    prefixed = {f"module.{key}": value for key, value in {**state, **ends, **counters}.items()}
    half = {key: value.half() for key, value in {**state, **ends}.items()}
    for given, kind in (
        (state, None), ({**state, **ends}, None), (prefixed, None), ({"state_dict": {"model": prefixed}}, None),
        (half, torch.float16), ({key: value.double() for key, value in state.items()}, torch.float64),
    ):  # fmt: skip
        with torch.no_grad():
            for tensor in own_state(network).values():
                tensor.fill_(0.25)
        notes, first = network.load_published(given), list(ends)[:3]
        ignored = len(ends) if given is not state and kind != torch.float64 else 0
        assert notes == ([f"{', '.join(first)} ({ignored} in all) are of no use to the features"] if ignored else [])
        for key, value in own_state(network).items():
            expected = state[key] if kind is None else state[key].to(kind).float()
            assert value.dtype == torch.float32 and torch.equal(value, expected)


SPOILT = {
    "missing": (
        lambda s, last: {k: v for k, v in s.items() if k != last},
        r"1 names are missing \['fc'\], 0 are unknown",
    ),
    "unknown": (lambda s, last: {**s, "extra": torch.zeros(2)}, r"0 names are missing .*1 are unknown \['extra'"),
    "shape": (lambda s, last: {**s, last: s[last][:1]}, r"fc has the shape \(1,\), expected \(512,\)"),
    "nan": (lambda s, last: {**s, last: s[last] * math.nan}, "not finite: fc"),
    "too large": (lambda s, last: {**s, last: s[last].double() + 1e300}, "not finite: fc"),
    "list": (lambda s, last: list(s.values()), "no dictionary of tensors"),
    "numbers": (lambda s, last: {**s, last: 3.0}, "no dictionary of tensors"),
    "other place": (lambda s, last: {"weights": s}, "no dictionary of tensors"),
    "no text": (lambda s, last: {0: torch.zeros(1)}, "no dictionary of tensors"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_weights_that_do_not_fit_change_nothing(small, how):
    state = hashed_state(small)
    last, before = list(state)[-1], {key: value.clone() for key, value in own_state(small).items()}
    change, words = SPOILT[how]
    with pytest.raises(ValueError, match=words.replace("fc", last)) as caught:
        small.load_published(change(state, last))
    assert "resnet18" in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in own_state(small).items())


def test_weights_of_another_network(small):
    before = {key: value.clone() for key, value in own_state(small).items()}
    with torch.device("meta"):
        states = {name: own_state(build(name)) for name in NAMES if name != "resnet18"}
    for state in states.values():
        with pytest.raises(ValueError, match="the weights do not fit resnet18"):
            small.load_published(state)
    # Names that fit and shapes that do not: they differ in nothing but the inner width.
    with torch.device("meta"):
        narrow = ResNet("resnet50")
    wide = {key: torch.zeros(()).expand(value.shape) for key, value in states["wide_resnet50_2"].items()}
    with pytest.raises(ValueError, match=r"resnet50: layer1.0.conv1.weight has the shape \(128, 64, 1, 1\), expected"):
        narrow.load_published(wide)
    assert all(torch.equal(value, before[key]) for key, value in own_state(small).items())


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
