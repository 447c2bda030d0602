"""Residual attention (golden check G5), and SRMNet's block against its authors' code."""

import pytest
import torch
import torch.nn.functional as F
from conftest import golden

from adref.methods.noise_to_norm.network import ACTIVATIONS, ResidualAttention, SelectiveDense, block


def numbers(output: torch.Tensor) -> list[float]:
    flat = output.detach().flatten()
    products = [(flat * golden.hashed(name, len(flat))).mean().item() for name in ("first", "second")]
    return [flat.mean().item(), flat.std(correction=0).item(), *products]


def fill(module: torch.nn.Module, names) -> torch.nn.Module:
    """The rule of `golden.fill` with the names that another program gives to the same parameters."""
    for ours, tensor in module.state_dict().items():
        values = golden.hashed(names(ours), *tensor.shape)
        if tensor.ndim > 1:
            values = (values - 0.5) * (12 / tensor[0].numel()) ** 0.5
        else:
            values = 0.5 + values if names(ours).endswith("weight") else (values - 0.5) * 0.2
        tensor.copy_(values)
    return module.double().eval()


def srmnet(name: str) -> str:
    part, *rest = name.split(".")
    if part in ("convolutions", "fusions"):
        return ".".join(("layers", rest[0], {"convolutions": "conv", "fusions": "sk"}[part], *rest[1:]))
    return ".".join(({"shortcut": "identity", "out": "lff"}[part], *rest))


# Sourced: mean, standard deviation and the means of the products with two lists of hashed numbers, of SRMNet's SK_RDB
# with three layers (FanChiMao/SRMNet, commit 1e8ee80); torch 2.13.0, float64; `PYTHONPATH=tools python tools/sources/noise_to_norm.py`,
# 2026-11-24.
@pytest.mark.parametrize(
    ("width", "expected"),
    [(16, [-0.04822129601, 0.3263555703, -0.02185995353, -0.03054760012]),
     (24, [-0.01731993006, 0.3254320764, -0.007535937112, -0.01348247281])],
)  # fmt: skip
def test_dense_block_is_srmnets(width, expected):
    x = golden.hashed("map", 1, 16, 6, 10).double() - 0.5
    assert numbers(fill(SelectiveDense(16, width), srmnet)(x)) == pytest.approx(expected, rel=2e-9)


@pytest.mark.parametrize("convolutions", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.holds("noise_to_norm", "4")
def test_residual_attention_written_out(convolutions, activation):
    torch.manual_seed(0)
    module, x = ResidualAttention(6, 16, 2, convolutions, activation).double(), torch.rand(2, 6, 5, 7).double()
    act = {"relu": F.relu, "leaky_relu": lambda v: F.leaky_relu(v, 0.2), "gelu": F.gelu,
           "prelu": lambda v: torch.where(v > 0, v, 0.25 * v)}[activation]  # fmt: skip
    v = module.body[0](x)
    if convolutions:
        v = module.body[3](act(module.body[1](v)))
    gate = module.attention[3](act(module.attention[1](v.mean(dim=(2, 3), keepdim=True)))).sigmoid()
    assert torch.allclose(module(x), module.shortcut(x) + gate * v, atol=1e-12)
    assert module.attention[1].out_channels == 8


@pytest.mark.holds("noise_to_norm", "4")
def test_half_of_the_path_with_a_zero_gate():  # G5
    module, x = ResidualAttention(6, 16), torch.rand(2, 6, 5, 7)
    torch.nn.init.zeros_(module.attention[3].weight)
    torch.nn.init.zeros_(module.attention[3].bias)
    assert torch.allclose(module(x), module.shortcut(x) + 0.5 * module.body(x), atol=1e-6)
    assert module.attention[1].out_channels == 4  # at least


def test_the_four_kinds():
    kinds = {kind: block(kind, 12, 16) for kind in ("full", "min", "conv1x1", "skrdb")}
    assert len(kinds["full"].body) == 4 and len(kinds["min"].body) == 1
    assert isinstance(kinds["conv1x1"], torch.nn.Conv2d) and isinstance(kinds["skrdb"], SelectiveDense)
    counts = {"full": 187_116, "conv1x1": 9_312, "skrdb": 278_115}  # 96 to 96, the last as SRMNet's
    assert {kind: sum(p.numel() for p in block(kind, 96, 96).parameters()) for kind in counts} == counts
    assert all(module(torch.rand(1, 12, 4, 6)).shape == (1, 16, 4, 6) for module in kinds.values())


@pytest.mark.parametrize("kind", ["full", "skrdb"])
def test_padding(kind):
    torch.manual_seed(0)
    zeros, x = block(kind, 4, 8), torch.ones(1, 4, 9, 9)
    reflect = block(kind, 4, 8, padding_mode="reflect")
    reflect.load_state_dict(zeros.state_dict())
    flat = reflect(x)[0]
    assert (flat - flat[:, :1, :1]).abs().max() < 1e-5  # a flat picture stays flat, its edge too
    assert (zeros(x)[0] - zeros(x)[0][:, :1, :1]).abs().max() > 1e-3
