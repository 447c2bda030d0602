"""ASPP: SRDAD's golden check 5, a slow loop, DeepLabv3's branches in another program, every alternative."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import golden
from torch import nn

from adref.layers.aspp import ASPP

# Sourced: mean, standard deviation and two hash-weighted means of the branches of transformers 5.23.0's MobileViTASPP
# (torch 2.13.0, float64); `PYTHONPATH=tools python tools/sources/attention.py`, 2026-11-24.
SOURCED = {
    (8, 8): [0.09763591099, 0.174528632, 0.04809805557, 0.04891434708],
    (8, 16): [0.129406054, 0.2076787418, 0.06440419227, 0.06357777643],
}


def parameters(module) -> int:
    return sum(p.numel() for p in module.parameters())


def digest(output: torch.Tensor) -> list[float]:
    """As `report` of tools/sources/attention.py."""
    flat = output.flatten()
    products = [(flat * golden.hashed(name, len(flat))).mean().item() for name in ("first", "second")]
    return [flat.mean().item(), flat.std(correction=0).item(), *products]


def reads(side: int, rate: int) -> list[list[bool]]:
    """For each of the side^2 output pixels, whether each of the nine taps lies on the map."""
    taps = [(i, j) for i in (-rate, 0, rate) for j in (-rate, 0, rate)]
    pixels = [(y, x) for y in range(side) for x in range(side)]
    return [[0 <= y + i < side and 0 <= x + j < side for i, j in taps] for y, x in pixels]


def test_outer_taps_of_rate_12_get_no_gradient_on_8_x_8():
    """Spec check 5."""
    torch.manual_seed(0)
    layer = ASPP(16, 4)
    x = torch.randn(4, 16, 8, 8)
    (layer(x) * torch.randn(4, 16, 8, 8)).sum().backward()
    touched = [branch[0].weight.grad.abs().amax((0, 1)) > 0 for branch in layer.branches]
    centre = torch.zeros(3, 3, dtype=torch.bool)
    centre[1, 1] = True
    assert [branch[0].dilation for branch in layer.branches] == [(3, 3), (6, 6), (12, 12)]
    assert touched[0].all() and touched[1].all()
    assert torch.equal(touched[2], centre)
    # Every weight of the centre taps moves, so the rate-12 branch is a 1x1 convolution.
    assert (layer.branches[2][0].weight.grad[:, :, 1, 1] != 0).all()


@pytest.mark.parametrize(("rate", "percent"), [(3, 56), (6, 25), (12, 11)])
def test_share_of_reads_that_meet_data_on_8_x_8(rate, percent):
    """Of the 64 x 9 reads (output pixel, tap), counted by a loop, and by the layer itself with ones for weights."""
    counted = np.array(reads(8, rate)).sum(1).reshape(8, 8)
    assert round(100 * counted.sum() / 576) == percent
    layer = ASPP(1, 1, (rate,), batch_norm=False)
    nn.init.ones_(layer.branches[0][0].weight)
    nn.init.zeros_(layer.branches[0][0].bias)
    assert layer.branches[0](torch.ones(1, 1, 8, 8))[0, 0].tolist() == counted.tolist()


def test_each_tap_reads_some_pixel_at_rates_3_and_6_but_the_centre_alone_at_12():
    assert [int(np.array(reads(8, rate)).any(0).sum()) for rate in (3, 6, 12)] == [9, 9, 1]
    assert np.array(reads(8, 12)).all(0).tolist() == [i == 4 for i in range(9)]


def test_rate_12_is_a_1x1_convolution_on_8_x_8_and_not_on_16_x_16():
    layer = golden.fill(ASPP(12, 3)).double()
    convolution = layer.branches[2][0]
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
        if f"branches.{n}.0.bias" in state:
            out += state[f"branches.{n}.0.bias"][:, None, None]
        if f"branches.{n}.1.weight" in state:
            mean, variance, gain, shift = (
                state[f"branches.{n}.1.{name}"][:, None, None]
                for name in ("running_mean", "running_var", "weight", "bias")
            )
            out = (out - mean) / np.sqrt(variance + 1e-5) * gain + shift
        parts.append(np.maximum(out, 0))
    pooled = x.mean((2, 3)) @ state["pooled.1.weight"][:, :, 0, 0].T + state["pooled.1.bias"]
    parts.append(np.maximum(pooled, 0)[:, :, None, None] * np.ones((height, width)))
    out = np.concatenate(parts, axis=1)
    if "project.weight" in state:
        out = np.einsum("oc,bcyx->boyx", state["project.weight"][:, :, 0, 0], out)
        out += state["project.bias"][:, None, None]
    return out


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize(("width", "branch"), [(8, 2), (8, 3)])
@pytest.mark.holds("srdad", "7")
def test_against_a_slow_loop(width, branch, batch_norm):
    layer = golden.fill(ASPP(width, branch, (1, 2, 5), batch_norm)).double()
    x = golden.hashed("map", 2, width, 6, 4).double() - 0.5
    with torch.inference_mode():
        out = layer(x).numpy()
    assert out.shape == (2, width, 6, 4) and np.abs(out).max() > 0.1
    assert np.abs(out - slow(layer, x.numpy())).max() < 1e-13


@pytest.mark.holds("srdad", "7")
def test_order_is_3_6_12_then_the_mean():
    """Without weights each branch gives its bias; and the mean of the map is alone in seeing all of it."""
    layer = ASPP(8, 2, batch_norm=False).eval()
    for number, convolution in enumerate([*(branch[0] for branch in layer.branches), layer.pooled[1]], 1):
        nn.init.zeros_(convolution.weight)
        nn.init.constant_(convolution.bias, number)
    assert layer(torch.rand(1, 8, 8, 8))[0, :, 5, 2].tolist() == [1, 1, 2, 2, 3, 3, 4, 4]

    layer = golden.fill(ASPP(8, 2, batch_norm=False))
    spot, reach = torch.zeros(1, 8, 32, 32), []
    spot[0, :, 16, 16] = 1
    with torch.inference_mode():
        changed = (layer(spot) != layer(torch.zeros_like(spot)))[0].reshape(4, 2, 32, 32).any(1)
    for part in changed:
        rows, columns = torch.nonzero(part, as_tuple=True)
        reach.append((rows.max() - rows.min()).item())
        assert reach[-1] == (columns.max() - columns.min()).item()
    assert reach == [6, 12, 24, 31]


def test_pooled_branch_has_no_batch_norm_and_one_image_can_train():
    layer = golden.fill(ASPP(16, 4)).train()
    assert [type(part).__name__ for part in layer.pooled] == ["AdaptiveAvgPool2d", "Conv2d", "ReLU"]
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
        assert parameters(ASPP(768, 192)) == 4_130_112
        assert parameters(ASPP(768, 192).project) == 0
        wide = ASPP(768, 256)
        assert parameters(wide.project) == 4 * 256 * 768 + 768
        assert parameters(wide) == 3 * (9 * 768 * 256 + 2 * 256) + 768 * 256 + 256 + 4 * 256 * 768 + 768
        # One bias in the place of a gain and a shift.
        assert parameters(ASPP(768, 192, batch_norm=False)) == 4_130_112 - 3 * 192
        assert parameters(ASPP(768, 192, (3, 6))) == 2 * (9 * 768 * 192 + 384) + 768 * 192 + 192 + 3 * 192 * 768 + 768


@pytest.mark.parametrize("size", SOURCED)
@pytest.mark.holds("srdad", "7")
def test_branches_against_transformers(size):
    layer = ASPP(16, 4)
    names = {"pooled.1.weight": "convs.4.conv_1x1.convolution.weight"}
    names["pooled.1.bias"] = "convs.4.conv_1x1.normalization.bias"
    for ours, tensor in layer.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if ours.startswith("branches"):
            _, number, part, kind = ours.split(".")
            names[ours] = f"convs.{int(number) + 1}.{('convolution', 'normalization')[int(part)]}.{kind}"
        values = golden.hashed(names[ours], *tensor.shape)
        if tensor.ndim > 1:
            values = (values - 0.5) * (12 / tensor[0].numel()) ** 0.5
        else:
            values = 0.5 + values if ours.endswith(("running_var", "weight")) else (values - 0.5) * 0.2
        tensor.copy_(values)
    with torch.inference_mode():
        out = layer.double().eval()(golden.hashed("map", 2, 16, *size).double())
    assert digest(out) == pytest.approx(SOURCED[size], rel=1e-9)


def test_a_projection_may_be_asked_for_where_none_is_needed():
    plain, projected = (sum(p.numel() for p in ASPP(16, 4, project=p).parameters()) for p in (False, True))
    assert projected - plain == 16 * 16 + 16
