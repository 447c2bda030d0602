"""SRDAD's discriminative network: golden check 1 row by row, formulas, another program's block, every alternative."""

import pytest
import torch
import torch.nn.functional as F
from conftest import golden
from torch import nn

from adref.layers.channel_cross_attention import CrossFusion
from adref.methods.srdad.discriminator import ResSE, ResSEUNet

# Sourced: mean, standard deviation and two hash-weighted means of timm 1.0.31's ResNet BasicBlock with its SEModule
# (torch 2.13.0, float64), by input channels; `PYTHONPATH=tools python tools/sources/attention.py`, 2026-11-24.
SOURCED = {
    48: [0.1341377024, 0.1757640021, 0.06742469571, 0.06726317607],
    6: [0.1282399591, 0.2058522117, 0.06361766345, 0.06451306872],
}


def parameters(*modules) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def fusion(width: int, size=(256, 256), **changes) -> CrossFusion:
    return CrossFusion(size, (width, 2 * width, 4 * width, 8 * width), **changes)


# -- parameters -------------------------------------------------------------------------------------------------------


def test_parameters_of_each_part_at_width_40():
    with torch.device("meta"):
        network = ResSEUNet(40, fusion=fusion(40))
        assert [parameters(level) for level in network.levels] == [31_480, 145_520, 580_640, 2_319_680, 2_780_480]
        assert parameters(*network.ups) == 620_160 and parameters(*network.blocks) == 1_254_720
        assert parameters(network.out) == 722 and parameters(network.fusion) == 20_550_000
        assert parameters(network) == 28_283_402


@pytest.mark.parametrize(
    ("total", "width", "fused", "changes"),
    [
        (28_283_402, 40, True, {}),
        (28_283_041, 40, True, {"classes": 1}),
        (18_133_026, 32, True, {}),
        (40_680_722, 48, True, {}),
        (7_733_402, 40, False, {}),
        (26_105_282, 40, True, {"res_se": "none"}),
        (5_555_282, 40, False, {"res_se": "none"}),
        (14_210_690, 64, False, {"res_se": "none"}),
        (26_307_642, 40, True, {"res_se": "projected"}),
    ],
)
def test_parameters_of_the_variants(total, width, fused, changes):
    """The table of spec 3.3."""
    with torch.device("meta"):
        assert parameters(ResSEUNet(width, fusion=fusion(width) if fused else None, **changes)) == total


@pytest.mark.parametrize(("channels", "ratio", "narrow"), [(40, 16, 2), (320, 16, 20), (15, 16, 1), (1, 16, 1),
                                                           (40, 4, 10), (47, 16, 2)])  # fmt: skip
def test_squeeze_narrows_to_a_sixteenth_and_at_least_one(channels, ratio, narrow):
    block = ResSE(channels, channels, ratio)
    assert block.squeeze.weight.shape == (narrow, channels) and block.excite.weight.shape == (channels, narrow)
    assert block.squeeze.bias is None and block.excite.bias is None
    body = 2 * (9 * channels * channels + channels) + 4 * channels
    assert parameters(block) == body + 2 * channels * narrow
    projected = ResSE(3, channels, ratio, projected=True)
    assert parameters(projected.shortcut) == 3 * channels + channels + 2 * channels


def test_ratio_reaches_every_level():
    network = ResSEUNet(8, se_ratio=4)
    narrow = [level[-1].squeeze.out_features for level in network.levels]
    assert narrow == [2, 4, 8, 16, 16]
    narrow = [level.squeeze.out_features for level in ResSEUNet(8, "projected", se_ratio=8).levels]
    assert narrow == [1, 2, 4, 8, 8]


# -- Res-SE -----------------------------------------------------------------------------------------------------------


def normed(x, layer, training):
    """Batch norm from its formula."""
    if training:
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    else:
        mean, variance = layer.running_mean, layer.running_var
    mean, scale, shift = (v[:, None, None] for v in (mean, layer.weight / (variance + 1e-5).sqrt(), layer.bias))
    return (x - mean) * scale + shift


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("ratio", [4, 16])
def test_res_se_against_its_formula(ratio, projected, training):
    channels = 5 if projected else 12
    block = golden.fill(ResSE(channels, 12, ratio, projected)).double().train(training)
    x = golden.hashed("map", 3, channels, 6, 5).double() - 0.5
    with torch.no_grad():
        first, norm, _, second, last = block.body
        u = normed(F.conv2d(x, first.weight, first.bias, padding=1), norm, training).clamp(min=0)
        u = normed(F.conv2d(u, second.weight, second.bias, padding=1), last, training)
        factors = torch.zeros(3, 12, dtype=torch.float64)
        for image in range(3):
            means = u[image].flatten(1).sum(1) / 30
            hidden = (block.squeeze.weight @ means).clamp(min=0)
            factors[image] = 1 / (1 + (-(block.excite.weight @ hidden)).exp())
        shortcut = x
        if projected:
            weight = block.shortcut[0].weight[:, :, 0, 0]
            shortcut = torch.einsum("oc,bcyx->boyx", weight, x) + block.shortcut[0].bias[:, None, None]
            shortcut = normed(shortcut, block.shortcut[1], training)
        expected = (shortcut + factors[:, :, None, None] * u).clamp(min=0)
        out = block(x)
    assert (factors - 0.5).abs().max() > 1e-3 and expected.max() > 0.5  # the squeeze is alive
    assert (out - expected).abs().max() < 1e-13


def test_res_se_with_silent_convolutions_is_its_shortcut():
    """u = 0: the input, or its projection, behind the last ReLU; and the input itself stays as it was."""
    x = torch.randn(2, 6, 4, 4)
    kept = x.clone()
    for projected in (False, True):
        block = ResSE(6, 6, projected=projected).eval()
        nn.init.zeros_(block.body[4].weight)
        nn.init.zeros_(block.body[4].bias)
        with torch.inference_mode():
            expected = block.shortcut(x) if projected else x
            assert torch.equal(block(x), expected.clamp(min=0)) and torch.equal(x, kept)
        assert (not list(block.shortcut.parameters())) == (not projected)


@pytest.mark.parametrize("channels", SOURCED)
def test_res_se_against_timm(channels):
    """timm's convolutions have no bias: ours take one each, and the means of the norms behind them grow by it."""
    block = ResSE(channels, 48, projected=channels != 48).double().eval()
    names = {"body.0": "conv1", "body.1": "bn1", "body.3": "conv2", "body.4": "bn2", "squeeze": "se.fc1",
             "excite": "se.fc2", "shortcut.0": "downsample.0", "shortcut.1": "downsample.1"}  # fmt: skip
    norms = {"body.0": "body.1", "body.3": "body.4", "shortcut.0": "shortcut.1"}
    state = block.state_dict()
    for ours, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        layer, kind = ours.rsplit(".", 1)
        values = golden.hashed(f"{names[layer]}.{kind}", *tensor.shape)
        if tensor.ndim > 1:
            values = (values - 0.5) * (12 / tensor[0].numel()) ** 0.5
        else:
            values = 0.5 + values if kind in ("running_var", "weight") else (values - 0.5) * 0.2
        tensor.copy_(values)
    for layer, norm in norms.items():
        if f"{layer}.bias" in state:
            state[f"{norm}.running_mean"] += state[f"{layer}.bias"]
    with torch.inference_mode():
        flat = block(golden.hashed("map", 2, channels, 6, 10).double() - 0.5).flatten()
    products = [(flat * golden.hashed(name, len(flat))).mean().item() for name in ("first", "second")]
    assert [flat.mean().item(), flat.std(correction=0).item(), *products] == pytest.approx(SOURCED[channels], rel=1e-9)


# -- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("res_se", ["entry", "projected", "none"])
@pytest.mark.parametrize("size", [(64, 64), (64, 32), (48, 80)])
def test_shapes_of_rectangles(res_se, size):
    """Without fusion: any multiples of 16."""
    network = ResSEUNet(4, res_se).eval()
    with torch.inference_mode():
        assert network(torch.rand(2, 6, *size)).shape == (2, 2, *size)
    assert network.stride == 16


def test_levels_are_what_their_names_say():
    kinds = {
        "entry": ["Conv2d", "BatchNorm2d", "ReLU", "ResSE"],
        "none": ["Conv2d", "BatchNorm2d", "ReLU"] * 2,
    }
    for name, expected in kinds.items():
        assert all([type(part).__name__ for part in level] == expected for level in ResSEUNet(4, name).levels)
    assert all(isinstance(level, ResSE) for level in ResSEUNet(4, "projected").levels)
    assert not any(len(level[-1].shortcut) for level in ResSEUNet(4).levels)
    assert all(len(level.shortcut) == 2 for level in ResSEUNet(4, "projected").levels)


class Recorder(nn.Module):
    """In the place of a fusion: keeps what it gets, and gives back `factor` times it."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor, self.maps = factor, []

    def forward(self, maps):
        self.maps = list(maps)
        return [self.factor * x for x in maps]


def test_four_skips_pass_through_the_fusion_and_the_bottom_does_not():
    x, outputs = golden.hashed("pairs", 1, 6, 64, 32), {}
    for factor in (None, 1.0, 0.0):
        recorder = None if factor is None else Recorder(factor)
        network = golden.fill(ResSEUNet(4, fusion=recorder))
        seen = []
        for level in network.levels:
            level.register_forward_hook(lambda module, given, out, seen=seen: seen.append(out))
        with torch.inference_mode():
            outputs[factor] = network(x)
        if recorder is not None:
            assert [tuple(m.shape[1:]) for m in recorder.maps] == [(4, 64, 32), (8, 32, 16), (16, 16, 8), (32, 8, 4)]
            assert all(torch.equal(a, b) for a, b in zip(recorder.maps, seen))
            assert seen[4].shape == (1, 32, 4, 2)
    assert torch.equal(outputs[None], outputs[1.0])
    assert (outputs[None] - outputs[0.0]).abs().max() > 0.1 and outputs[0.0].std() > 0.01


def identity(network: nn.Module) -> nn.Module:
    """Every convolution copies its first input channel, batch norms do nothing, every factor of Res-SE is 1/2."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            layer.weight.data[:, 0, layer.kernel_size[0] // 2, layer.kernel_size[1] // 2] = 1
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
            layer.eps = 0
        elif isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.weight)
    return network.eval()


@pytest.mark.parametrize(("res_se", "factor"), [("none", 1), ("entry", 1.5**5), ("projected", 1.5**5)])
def test_the_upsampled_map_is_joined_first_and_the_skip_second(res_se, factor):
    """What is copied through is the bottom level: maxima over 16 x 16, times 3/2 for each Res-SE on the way."""
    x = torch.rand(1, 6, 64, 96)
    with torch.inference_mode():
        out = identity(ResSEUNet(2, res_se))(x)
    maxima = factor * F.max_pool2d(x[:, 0], 16)[0]
    assert torch.allclose(out[0, 1, ::63, ::95], maxima[::3, ::5], rtol=1e-5)
    # Corners aligned, four times: the same as halving the steps between the first two bottom pixels by hand.
    edge = maxima[0]
    for _ in range(4):
        steps = torch.linspace(0, len(edge) - 1, 2 * len(edge))
        low = steps.floor().long().clamp(max=len(edge) - 2)
        edge = edge[low] + (steps - low) * (edge[low + 1] - edge[low])
    assert torch.allclose(out[0, 0, 0], edge, rtol=1e-5)


def test_skips_meet_the_level_of_their_size():
    """With the second half of each concatenation copied instead, the last step gives the first level alone."""
    network, x = identity(ResSEUNet(2, "none")), torch.rand(1, 6, 32, 32)
    for block, (start, factor) in zip(network.blocks, ((8, 8), (4, 4), (2, 2), (2, 1))):
        nn.init.zeros_(block[0].weight)
        block[0].weight.data[:, start, 1, 1] = factor
    with torch.inference_mode():
        assert torch.equal(network(x)[0, 0], x[0, 0])
    nn.init.zeros_(network.blocks[3][0].weight)
    network.blocks[3][0].weight.data[:, 0, 1, 1] = 1  # the last one copies what comes up: level 2, doubled
    with torch.inference_mode():
        out = network(x)[0, 0, ::31, ::31]
    assert torch.allclose(out, 2 * F.max_pool2d(x[0, :1], 2)[0, ::15, ::15])


@pytest.mark.parametrize("res_se", ["entry", "projected", "none"])
def test_initialisation(res_se):
    """Convolutions N(0, 0.02) with PyTorch's biases, batch norms N(1, 0.02) and 0, the fusion's too; linears, layer
    norms and position tables as they were."""
    torch.manual_seed(0)
    network = ResSEUNet(16, res_se, fusion=fusion(16, (64, 64), layers=1))
    groups = {"all": network, "fusion": network.fusion, "rebuilds": network.fusion.rebuilds, "levels": network.levels}
    for name, group in groups.items():
        convolutions = [m for m in group.modules() if isinstance(m, nn.Conv2d)]
        norms = [m for m in group.modules() if isinstance(m, nn.BatchNorm2d)]
        weights, gains = (torch.cat([m.weight.flatten() for m in ms]) for ms in (convolutions, norms))
        assert abs(weights.std() - 0.02) < 1.0 / len(weights) ** 0.5 * 0.1, name
        assert abs(weights.mean()) < 5 * 0.02 / len(weights) ** 0.5, name
        assert abs(gains.mean() - 1) < 5 * 0.02 / len(gains) ** 0.5 and abs(gains.std() - 0.02) < 4e-3, name
        assert all(m.bias.abs().max() == 0 for m in norms), name
        biases = [(m.bias.abs().max().item(), (m.in_channels * m.kernel_size[0] ** 2) ** -0.5) for m in convolutions]
        assert all(0 < largest <= bound for largest, bound in biases), name
    for name, linear in network.named_modules():
        if isinstance(linear, nn.Linear):
            bound = linear.in_features**-0.5
            assert linear.weight.abs().max() <= bound and linear.weight.abs().max() > 0.8 * bound, name
        elif isinstance(linear, nn.LayerNorm):
            assert linear.weight.eq(1).all() and linear.bias.eq(0).all(), name
    assert all(table.eq(0).all() for table in network.fusion.positions)


def test_one_class_gives_one_map():
    """The head is the only part that changes."""
    one, two = golden.fill(ResSEUNet(4, classes=1)), golden.fill(ResSEUNet(4))
    x = golden.hashed("pairs", 2, 6, 32, 48)
    two.load_state_dict({name: t for name, t in one.state_dict().items() if "out" not in name}, strict=False)
    two.out.weight.data[1], two.out.bias.data[1] = one.out.weight.data[0], one.out.bias.data[0]
    with torch.inference_mode():
        single, pair = one(x), two(x)
    assert single.shape == (2, 1, 32, 48) and torch.allclose(single[:, 0], pair[:, 1], atol=1e-6)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("res_se", ["entry", "projected", "none"])
@pytest.mark.parametrize("training", [False, True])
def test_gradient_in_every_parameter(res_se, fused, training):
    """In training a convolution's bias in front of a batch norm has the gradient 0. (Ratio 2: a squeeze to one or two
    channels can be negative for all images, and has no gradient then.)"""
    cross = fusion(16, (32, 64), layers=1, heads=2) if fused else None
    network = golden.fill(ResSEUNet(16, res_se, 2, cross)).train(training)
    out = network(golden.hashed("pairs", 2, 6, 32, 64) - 0.5)
    (out * golden.hashed("gradient", *out.shape)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 1e-6 or (training and name.endswith("bias")), name
