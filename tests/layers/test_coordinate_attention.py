"""Coordinate attention: the numbers of timm and of the authors' file, hand values, a slow formula, evaluation mode."""

import numpy as np
import pytest
import torch
from conftest import golden
from figures import figures, parameters
from torch import nn

from adref.layers.coordinate_attention import CoordinateAttention

# Sourced: channels -> inner channels, parameters, and mean, standard deviation and the means of the products with two
# lists of hashed numbers of the output, of timm 1.0.31's CoordAttn (bias, inner channels given; torch 2.13.0, float64),
# with which coordatt.py of houqb/CoordAttention at commit a3f3490 agrees to 6e-17;
# `PYTHONPATH=tools python tools/sources/vit_autoencoder.py coordatt.py`, 2026-11-24.
SOURCED = {
    40: (8, 1_064, [-0.001242981505, 0.07232602908, -0.0001210732993, -0.0004471563426]),
    512: (16, 25_648, [-2.682312003e-05, 0.07284717097, -0.0001514458707, 0.0001198787664]),
    768: (24, 56_904, [-2.453809994e-05, 0.07263355241, -0.0001710975371, 2.527011793e-05]),
}


def filled(width: int = 40) -> CoordinateAttention:
    return golden.fill(CoordinateAttention(width=width, reduction=32)).double()


def a_map(width: int = 40) -> torch.Tensor:
    return golden.hashed("map", 2, width, 6, 10).double() - 0.5


@pytest.mark.parametrize("width", SOURCED)
@pytest.mark.holds("vit_autoencoder", "Coordinate attention")
def test_output_equals_timms_and_the_authors(width):
    inner, count, numbers = SOURCED[width]
    attention = filled(width)
    assert attention.conv1.out_channels == inner and parameters(attention) == count
    assert figures(attention(a_map(width))) == pytest.approx(numbers, rel=2e-9, abs=1e-13)


def test_parts_and_names():
    attention = CoordinateAttention(width=768, reduction=32)
    counts = {"conv1": 18_456, "bn1": 48, "conv_h": 19_200, "conv_w": 19_200}
    assert {name: parameters(part) for name, part in attention.named_children()} == counts
    assert attention.bn1.eps == 1e-5 and attention.bn1.momentum == 0.1
    assert CoordinateAttention(width=330, reduction=32).conv1.out_channels == 10


@pytest.mark.holds("vit_autoencoder", "Coordinate attention")
def test_all_weights_zero_give_a_quarter():
    """sigmoid(0)^2 = 0.25, and nothing is added."""
    attention = filled()
    for layer in (attention.conv1, attention.conv_h, attention.conv_w):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    x = a_map()
    assert torch.equal(attention(x), 0.25 * x) and torch.equal(attention.train()(x), 0.25 * x)


@pytest.mark.holds("vit_autoencoder", "Coordinate attention")
def test_pools():
    """[[0, 1, 2], [3, 4, 5]] has the row means 1, 4 and the column means 1.5, 2.5, 3.5, in this order."""
    attention, seen = filled(8), []
    attention.conv1.register_forward_hook(lambda module, given, output: seen.append(given[0]))
    attention(torch.arange(6.0, dtype=torch.float64).view(1, 1, 2, 3).repeat(1, 8, 1, 1))
    assert seen[0].shape == (1, 8, 5, 1)
    assert seen[0][0, 0].flatten().tolist() == pytest.approx([1, 4, 1.5, 2.5, 3.5], abs=1e-15)


@pytest.mark.holds("vit_autoencoder", "Coordinate attention")
def test_output_equals_a_slow_formula():
    """out[c, i, j] = x[c, i, j] g_h[c, i] g_w[c, j], one pixel after the other."""
    attention = filled()
    state = {name: tensor.numpy() for name, tensor in attention.state_dict().items()}
    x = a_map()[0].numpy()

    def gate(name: str, pooled: np.ndarray) -> np.ndarray:
        inner = state["conv1.weight"][:, :, 0, 0] @ pooled + state["conv1.bias"]
        inner = (inner - state["bn1.running_mean"]) / np.sqrt(state["bn1.running_var"] + 1e-5)
        inner = inner * state["bn1.weight"] + state["bn1.bias"]
        inner = inner * np.clip(inner + 3, 0, 6) / 6  # h-swish
        return 1 / (1 + np.exp(-(state[f"{name}.weight"][:, :, 0, 0] @ inner + state[f"{name}.bias"])))

    found = attention(a_map())[0].detach().numpy()
    for i, j in np.ndindex(6, 10):
        expected = x[:, i, j] * gate("conv_h", x[:, i].mean(1)) * gate("conv_w", x[:, :, j].mean(1))
        assert np.abs(found[:, i, j] - expected).max() < 1e-14


def test_evaluation_mode_takes_each_image_by_itself_and_training_mode_does_not():
    attention, x = filled(), a_map()
    alone = torch.cat([attention(image[None]) for image in x])
    assert torch.allclose(attention(x), alone, atol=1e-15, rtol=0)
    before = attention.bn1.running_mean.clone()
    assert not torch.equal(attention.train()(x), alone)
    assert not torch.equal(attention.bn1.running_mean, before)  # training moves the statistics


def test_gradients():
    attention = filled(8)
    x = (golden.hashed("map", 1, 8, 3, 4).double() - 0.5).requires_grad_()
    assert torch.autograd.gradcheck(attention, (x,), eps=1e-6, atol=1e-7)
