"""ASPP: a slow loop, DeepLabv3's branches in another program, the reach of its taps."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import golden
from figures import figures, fill_by, parameters
from torch import nn

from adref.layers.aspp import ASPP

RATES = (3, 6, 12)

# Sourced: mean, standard deviation and two hash-weighted means of the branches of transformers 5.23.0's MobileViTASPP
# (torch 2.13.0, float64); `PYTHONPATH=tools python tools/sources/attention.py`, 2026-11-24.
SOURCED = {
    (8, 8): [0.09763591099, 0.174528632, 0.04809805557, 0.04891434708],
    (8, 16): [0.129406054, 0.2076787418, 0.06440419227, 0.06357777643],
}


def build(width: int, branch_width: int, rates: tuple[int, ...] = RATES) -> ASPP:
    return ASPP(width=width, branch_width=branch_width, rates=rates)


@pytest.mark.parametrize(("rate", "percent", "taps"), [(3, 56, 9), (6, 25, 9), (12, 11, 1)])
def test_share_of_reads_that_meet_data_on_8_x_8(rate, percent, taps):
    """Of the 64 x 9 reads (output pixel, tap), counted by a loop and by the convolution with ones for weights."""
    reach = [(i, j) for i in (-rate, 0, rate) for j in (-rate, 0, rate)]
    pixels = [(y, x) for y in range(8) for x in range(8)]
    reads = np.array([[0 <= y + i < 8 and 0 <= x + j < 8 for i, j in reach] for y, x in pixels])
    assert round(100 * reads.sum() / 576) == percent and reads.any(0).sum() == taps
    convolution = build(1, 1, (rate,)).branches[0][0]
    nn.init.ones_(convolution.weight)
    assert convolution(torch.ones(1, 1, 8, 8)).flatten().tolist() == reads.sum(1).tolist()


def test_rate_12_is_a_1x1_convolution_on_8_x_8_and_not_on_16_x_16():
    convolution = golden.fill(build(12, 3)).double().branches[2][0]
    for side, same in ((8, True), (12, True), (13, False), (16, False)):
        x = golden.hashed("map", 1, 12, side, side).double() - 0.5
        small = F.conv2d(x, convolution.weight[:, :, 1:2, 1:2])
        assert torch.allclose(convolution(x), small, atol=1e-12) == same, side


def slow(layer: ASPP, x: np.ndarray) -> np.ndarray:
    """Equation 7 in evaluation mode, pixel by pixel and tap by tap."""
    state = {name: tensor.numpy() for name, tensor in layer.state_dict().items()}
    images, _, height, width = x.shape
    parts = []
    for n, branch in enumerate(layer.branches):
        rate, weight = branch[0].dilation[0], state[f"branches.{n}.0.weight"]
        out = np.zeros((images, len(weight), height, width))
        for b, o, y, z in np.ndindex(out.shape):
            for i, j in np.ndindex(3, 3):
                r, c = y + (i - 1) * rate, z + (j - 1) * rate
                if 0 <= r < height and 0 <= c < width:
                    out[b, o, y, z] += weight[o, :, i, j] @ x[b, :, r, c]
        names = ("running_mean", "running_var", "weight", "bias")
        mean, variance, gain, shift = (state[f"branches.{n}.1.{name}"][:, None, None] for name in names)
        parts.append(np.maximum((out - mean) / np.sqrt(variance + 1e-5) * gain + shift, 0))
    pooled = x.mean((2, 3)) @ state["pooled.1.weight"][:, :, 0, 0].T + state["pooled.1.bias"]
    parts.append(np.maximum(pooled, 0)[:, :, None, None] * np.ones((height, width)))
    out = np.concatenate(parts, axis=1)
    if "project.weight" in state:
        out = np.einsum("oc,bcyx->boyx", state["project.weight"][:, :, 0, 0], out)
        out += state["project.bias"][:, None, None]
    return out


@pytest.mark.parametrize(("width", "branch"), [(8, 2), (8, 3)])
@pytest.mark.holds("srdad", "7")
def test_against_a_slow_loop(width, branch):
    layer = golden.fill(build(width, branch, (1, 2, 5))).double()
    x = golden.hashed("map", 2, width, 6, 4).double() - 0.5
    with torch.inference_mode():
        out = layer(x).numpy()
    assert out.shape == (2, width, 6, 4) and np.abs(out).max() > 0.1
    assert np.abs(out - slow(layer, x.numpy())).max() < 1e-13


def test_pooled_branch_has_no_batch_norm_and_one_image_can_train():
    layer = golden.fill(build(16, 4)).train()
    assert sum(isinstance(part, nn.BatchNorm2d) for part in layer.modules()) == 3
    x = golden.hashed("map", 1, 16, 8, 8)
    out = layer(x)
    out.mean().backward()
    expected = (x.mean((2, 3)) @ layer.pooled[1].weight[:, :, 0, 0].T + layer.pooled[1].bias).clamp(min=0)
    assert expected.max() > 0.01
    assert torch.allclose(out[0, 12:], expected[0, :, None, None].expand(4, 8, 8), atol=1e-6)
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())


def test_parameters():
    with torch.device("meta"):
        assert parameters(build(768, 192)) == 4_130_112 and parameters(build(768, 192).project) == 0
        wide, two = build(768, 256), build(768, 192, (3, 6))
        assert parameters(wide) == 3 * (9 * 768 * 256 + 2 * 256) + 768 * 256 + 256 + 4 * 256 * 768 + 768
        assert parameters(two) == 2 * (9 * 768 * 192 + 384) + 768 * 192 + 192 + 3 * 192 * 768 + 768


@pytest.mark.parametrize("size", SOURCED)
@pytest.mark.holds("srdad", "7")
def test_branches_against_transformers(size):
    layer = build(16, 4)
    names = {"pooled.1.weight": ["convs.4.conv_1x1.convolution.weight"]}
    names["pooled.1.bias"] = ["convs.4.conv_1x1.normalization.bias"]
    for ours in layer.state_dict():
        if ours.startswith("branches"):
            _, number, part, kind = ours.split(".")
            names[ours] = [f"convs.{int(number) + 1}.{('convolution', 'normalization')[int(part)]}.{kind}"]
    with torch.inference_mode():
        out = fill_by(names, layer).double().eval()(golden.hashed("map", 2, 16, *size).double())
    assert figures(out) == pytest.approx(SOURCED[size], rel=1e-9)
