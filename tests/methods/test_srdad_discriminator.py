"""SRDAD's discriminator: parameter counts, formulas, timm's block, skips and upsampling."""

import pytest
import torch
import torch.nn.functional as F
from conftest import golden
from test_srdad_reconstructor import parameters
from torch import nn

from adref.methods.srdad.discriminator import ResSE, ResSEUNet, cross_fusion

# Sourced: mean, standard deviation and two hash-weighted means of timm 1.0.31's ResNet BasicBlock with its SEModule
# (torch 2.13.0, float64), 48 channels; `PYTHONPATH=tools python tools/sources/attention.py`, 2026-11-24.
SOURCED = [0.1341377024, 0.1757640021, 0.06742469571, 0.06726317607]


def fusion(width: int, size=(256, 256), attention: str = "uctransnet"):
    return cross_fusion(size=size, width=width, attention=attention, dropout=0.1)


def test_parameters_of_each_part_at_width_40():
    with torch.device("meta"):
        network = ResSEUNet(width=40, fusion=fusion(40))
        assert [parameters(level) for level in network.levels] == [31_480, 145_520, 580_640, 2_319_680, 2_780_480]
        assert parameters(network.ups) == 620_160 and parameters(network.blocks) == 1_254_720
        assert parameters(network.out) == 722 and parameters(network.fusion) == 20_550_000
        assert parameters(network) == 28_283_402


def test_parameters_of_the_variants():
    with torch.device("meta"):
        assert parameters(ResSEUNet(width=40, fusion=fusion(40), classes=1)) == 28_283_041
        assert parameters(ResSEUNet(width=32, fusion=fusion(32))) == 18_133_026
        assert parameters(ResSEUNet(width=48, fusion=fusion(48))) == 40_680_722
        assert parameters(ResSEUNet(width=40, fusion=None)) == 7_733_402
        # the article's 27.8 M, and 47.2 M with the 19,408,023 of the reconstructor
        assert parameters(ResSEUNet(width=40, fusion=fusion(40, attention="counted"))) == 27_768_202
        assert 19_408_023 + 27_768_202 == 47_176_225


def test_res_se_against_timm():
    """timm's convolutions have no bias: ours take one each, and the means of the norms behind them grow by it."""
    block = ResSE(48).double().eval()
    names = {"body.0": "conv1", "body.1": "bn1", "body.3": "conv2", "body.4": "bn2", "squeeze": "se.fc1",
             "excite": "se.fc2"}  # fmt: skip
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
    for layer, norm in {"body.0": "body.1", "body.3": "body.4"}.items():
        state[f"{norm}.running_mean"] += state[f"{layer}.bias"]
    with torch.inference_mode():
        flat = block(golden.hashed("map", 2, 48, 6, 10).double() - 0.5).flatten()
    products = [(flat * golden.hashed(name, len(flat))).mean().item() for name in ("first", "second")]
    assert [flat.mean().item(), flat.std(correction=0).item(), *products] == pytest.approx(SOURCED, rel=1e-9)


class Recorder(nn.Module):
    """Replaces a fusion: keeps its input and returns `factor` times it."""

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
        network = golden.fill(ResSEUNet(width=4, fusion=recorder))
        seen = []
        for level in network.levels:
            level.register_forward_hook(lambda module, given, out, seen=seen: seen.append(out))
        with torch.inference_mode():
            outputs[factor] = network(x)
        if recorder is not None:
            assert [tuple(m.shape[1:]) for m in recorder.maps] == [(4, 64, 32), (8, 32, 16), (16, 16, 8), (32, 8, 4)]
            assert all(torch.equal(a, b) for a, b in zip(recorder.maps, seen))
            assert seen[4].shape == (1, 32, 4, 2)
    assert outputs[None].shape == (1, 2, 64, 32) and torch.equal(outputs[None], outputs[1.0])
    assert (outputs[None] - outputs[0.0]).abs().max() > 0.1 and outputs[0.0].std() > 0.01


def identity(network: nn.Module) -> nn.Module:
    """Lets convolutions copy their first input channel, batch norms do nothing, every factor of Res-SE be 1/2."""
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


def test_the_upsampled_map_is_joined_first_and_the_skip_second():
    """The bottom level is copied through: maxima over 16 x 16, times 3/2 for each Res-SE on the way."""
    x = torch.rand(1, 6, 64, 96)
    with torch.inference_mode():
        out = identity(ResSEUNet(width=2, fusion=None))(x)
    maxima = 1.5**5 * F.max_pool2d(x[:, 0], 16)[0]
    assert torch.allclose(out[0, 1, ::63, ::95], maxima[::3, ::5], rtol=1e-5)


def test_initialisation_is_that_of_draem():
    torch.manual_seed(0)
    network = ResSEUNet(width=16, fusion=fusion(16, (64, 64)))
    for group in (network, network.fusion, network.levels):
        gains = torch.cat([m.weight for m in group.modules() if isinstance(m, nn.BatchNorm2d)])
        weights = torch.cat([m.weight.flatten() for m in group.modules() if isinstance(m, nn.Conv2d)])
        assert abs(weights.std() - 0.02) < 0.1 / len(weights) ** 0.5
        assert abs(gains.mean() - 1) < 5 * 0.02 / len(gains) ** 0.5 and abs(gains.std() - 0.02) < 4e-3
    assert all(table.eq(0).all() for table in network.fusion.positions)
