"""Selective kernel feature fusion: MIRNet's and SRMNet's numbers, a slow loop, identities."""

import math

import pytest
import torch
from conftest import golden
from figures import figures

from adref.layers.selective_kernel import SelectiveKernelFusion


def build(width: int, count: int = 4, reduction: int = 8) -> SelectiveKernelFusion:
    return SelectiveKernelFusion(width=width, count=count, reduction=reduction)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def maps_of(count: int = 4, width: int = 12) -> list[torch.Tensor]:
    return list(noise(count, 2, width, 5, 7))


# Sourced: SKFF(width, height=4) of swz30/MIRNet networks/MIRNet_model.py, commit 26e0be1, and of FanChiMao/SRMNet
# SRMNet.py, commit 1e8ee80: both print the same numbers. torch 2.13.0, float64; weights hashed by parameter names,
# which are ours. `PYTHONPATH=tools python tools/sources/noise_to_norm.py --mirnet F --srmnet F`, 2026-11-24. Width 32
# has 4 inner channels; width 40 has 5 and tells width // 8 from the least, 4.
SOURCED = {
    32: [6.099167682e-05, 0.1453257268, 0.000884343559, -0.0001536437265],
    40: [-0.0007021418594, 0.1449407742, 9.491121987e-05, -0.000968792397],
}


@pytest.mark.parametrize("width", SOURCED)
@pytest.mark.holds("noise_to_norm", "Fusion")
def test_against_mirnet_and_srmnet(width):
    fusion = golden.fill(build(width, 4)).double()
    maps = [golden.hashed(f"map {i}", 2, width, 6, 10).double() - 0.5 for i in range(4)]
    assert figures(fusion(maps)) == pytest.approx(SOURCED[width], rel=1e-9, abs=1e-13)


def test_parameters_have_mirnets_names_and_shapes():
    found = {name: tuple(p.shape) for name, p in build(40, 4).named_parameters()}
    matrices = {f"fcs.{i}.weight": (40, 5, 1, 1) for i in range(4)}
    assert found == {"conv_du.0.weight": (5, 40, 1, 1), "conv_du.1.weight": (1,), **matrices}


@pytest.mark.holds("noise_to_norm", "Fusion")
def test_zero_last_weights_give_the_arithmetic_mean():
    fusion, maps = build(12, 4).double(), maps_of()
    for fc in fusion.fcs:
        torch.nn.init.zeros_(fc.weight)
    torch.testing.assert_close(fusion(maps), torch.stack(maps).mean(dim=0), rtol=0, atol=1e-14)


@pytest.mark.holds("noise_to_norm", "Fusion")
def test_against_a_slow_loop():
    """s, z, logits and softmax in numbers, one channel after the other; the slope of the PReLU is one for all."""
    fusion, maps = golden.fill(build(12, 3, 2)).double(), maps_of(3)
    narrow, slope = fusion.conv_du[0].weight[:, :, 0, 0].tolist(), fusion.conv_du[1].weight.item()
    wide = [fc.weight[:, :, 0, 0].tolist() for fc in fusion.fcs]
    assert len(narrow) == 6  # max(12 // 2, 4)
    result, negative = fusion(maps), 0
    for n in range(2):
        s = [sum(m[n, c].mean().item() for m in maps) for c in range(12)]
        z = [sum(w * x for w, x in zip(row, s)) for row in narrow]
        negative += sum(x < 0 for x in z)
        z = [x if x > 0 else slope * x for x in z]
        for c in range(12):
            powers = [math.exp(sum(w * x for w, x in zip(matrix[c], z))) for matrix in wide]
            expected = sum(m[n, c] * p / sum(powers) for m, p in zip(maps, powers))
            torch.testing.assert_close(result[n, c], expected, rtol=0, atol=1e-14)
    assert negative > 0


def test_weights_know_no_position():
    """Though the paper's text says so: shuffled pixels get the weights that they had."""
    fusion, maps = golden.fill(build(12, 4)).double(), [9 * m for m in maps_of()]
    assert fusion.weights(maps).std(dim=0).min() > 0
    order = torch.randperm(35, generator=torch.Generator().manual_seed(1))
    shuffled = [m.flatten(2)[:, :, order].view_as(m) for m in maps]
    torch.testing.assert_close(fusion.weights(shuffled), fusion.weights(maps), rtol=0, atol=1e-14)


def test_another_number_of_maps_is_refused():
    with pytest.raises(ValueError, match="zip"):
        build(12, 4)([m.float() for m in maps_of(3)])
