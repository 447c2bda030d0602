"""The Vision Transformer encoder: timm's numbers, token order, class token, attention by hand, loading timm's state."""

import math

import numpy as np
import pytest
import torch
from conftest import golden
from figures import figures, parameters
from torch import nn

from adref.layers.vit import Attention, Block, PatchEmbedding, VisionTransformer

# Sourced: mean, standard deviation and the means of the products with two lists of hashed numbers, of the map of timm
# 1.0.31's vision transformer (torch 2.13.0, float64; 94,800 parameters), with which transformers 5.23.0 agrees to
# 2e-15. `PYTHONPATH=tools python tools/sources/vit_autoencoder.py`, 2026-11-24.
SOURCED = [-0.02971258835, 0.9708350156, -0.009418701502, -0.005979384694]
SIZE = {"size": (64, 96), "patch": 16, "width": 48, "depth": 2, "heads": 4}
BASE = {"size": (384, 384), "patch": 16, "width": 768, "depth": 12, "heads": 8}

# Sourced: the same four numbers of what timm 1.0.31's timm.layers.pos_embed.resample_abs_pos_embed(table, grid,
# num_prefix_tokens=1) makes of a table of 4 x 4 positions and a class token, which is hashed("pos_embed", 1, 17, 8) -
# 0.5; `hashed` and `report` are those of tools/sources/vit_autoencoder.py; torch 2.13.0, float64, 2026-11-24.
SOURCED_POSITIONS = {
    (6, 6): [0.001650145068, 0.2571558844, 0.004131964415, 0.003054574338],
    (4, 6): [0.00233229998, 0.2782163129, 0.004709909514, 0.008762694967],
    (2, 3): [0.007021981491, 0.1730633108, 0.007741628975, -0.008165840439],
    (2, 8): [0.00480979252, 0.1822131974, 0.002106433867, -0.002053724913],
    (8, 2): [-0.0004009940013, 0.1827712279, -0.001829295261, -0.004553807932],
}


def small(**changes) -> VisionTransformer:
    form = {"size": (64, 64), "patch": 16, "width": 8, "depth": 1, "heads": 2, "class_token": "drop"}
    return VisionTransformer(**{**form, **changes})


@pytest.mark.holds("vit_autoencoder", "4", "5", "6")
def test_encoder_equals_timms():
    network = golden.fill(small(**SIZE)).double()
    output = network(golden.hashed("images", 2, 3, 64, 96).double())
    assert output.shape == (2, 48, 4, 6) and parameters(network) == 94_800
    assert figures(output) == pytest.approx(SOURCED, rel=1e-9, abs=1e-12)


def test_parameter_counts():
    """timm 1.0.31 has the same two numbers (tools/sources/vit_autoencoder.py, 2026-11-24)."""
    with torch.device("meta"):
        network = small(**BASE)
    assert parameters(network) == 86_090_496 and {parameters(block) for block in network.blocks} == {7_087_872}
    assert parameters(network.patch_embed) == 590_592 and network.pos_embed.shape == (1, 577, 768)
    assert network.pos_embed.numel() == 443_136 and parameters(network.norm) == 1_536 and len(network.blocks) == 12
    with torch.device("meta"):  # independent of the number of heads
        assert parameters(Block(768, 12)) == 7_087_872


def test_initialisation():
    torch.manual_seed(0)
    network = small(width=192, depth=2, heads=3)
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.02) and abs(module.weight.mean()) < 3e-4
            assert not module.bias.any()
        elif isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-6 and (module.weight == 1).all() and not module.bias.any()
    assert network.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert network.cls_token.std().item() == pytest.approx(0.02, rel=0.2)


def test_patches_are_in_row_major_order():
    """From the image on and on a rectangle: the mean of each patch is the number of its token."""
    embedding = PatchEmbedding(8, 1)
    nn.init.constant_(embedding.proj.weight, 1 / (3 * 64))
    nn.init.zeros_(embedding.proj.bias)
    numbers = torch.arange(15.0).view(3, 5)
    images = numbers.repeat_interleave(8, 0).repeat_interleave(8, 1).expand(1, 3, 24, 40)
    assert torch.allclose(embedding(images)[0, :, 0], torch.arange(15.0), atol=1e-5)


def test_class_token():
    """ "drop" leaves it out of the map, "add" adds it to every position, "none" has none."""
    tokens = golden.hashed("tokens", 2, 25, 8)
    dropped, added = (small(size=(64, 96), class_token=token).to_map(tokens) for token in ("drop", "add"))
    assert torch.equal(dropped[:, :, 2, 5], tokens[:, 1 + 2 * 6 + 5])
    assert torch.equal(added, dropped + tokens[:, 0, :, None, None])
    assert torch.equal(small(size=(64, 96), class_token="none").to_map(tokens[:, 1:]), dropped)
    with_token, without = small(), small(class_token="none")
    assert with_token.pos_embed.shape == (1, 17, 8) and without.pos_embed.shape == (1, 16, 8)
    assert set(with_token.state_dict()) - set(without.state_dict()) == {"cls_token"}


@pytest.mark.holds("vit_autoencoder", "1", "2", "3")
def test_attention_equals_a_slow_formula():
    layer = golden.fill(Attention(12, 3)).double()
    x = golden.hashed("tokens", 2, 5, 12).double() - 0.5
    w, b, p, c = (t.detach().numpy() for t in (layer.qkv.weight, layer.qkv.bias, layer.proj.weight, layer.proj.bias))
    expected = np.empty((2, 5, 12))
    for image, n in np.ndindex(2, 5):
        rows = x[image].numpy() @ w.T + b  # (N, 36): queries, keys, values, each the heads one after the other
        joined = []
        for head in range(3):
            q, k, v = (rows[:, 12 * part + 4 * head : 12 * part + 4 * head + 4] for part in range(3))
            weights = [math.exp(sum(q[n] * k[m]) / math.sqrt(4)) for m in range(5)]
            joined.extend(sum(weights[m] * v[m] for m in range(5)) / sum(weights))
        expected[image, n] = p @ np.array(joined) + c
    assert np.abs(layer(x).detach().numpy() - expected).max() < 1e-12


@pytest.mark.parametrize("changes", [{"size": (60, 64)}, {"size": (64, 72)}, {"heads": 3}])
def test_sides_and_heads_that_do_not_fit(changes):
    with pytest.raises(ValueError, match=r"expected sides in multiples of .* and .* dividing"):
        small(**changes)


def state_of(**changes) -> dict[str, torch.Tensor]:
    return dict(golden.fill(small(**changes)).state_dict())


@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
def test_load_timm_takes_half_precision_and_leaves_the_classifier(size):
    classifier = ("head.weight", "head.bias", "head_dist.weight", "fc_norm.weight", "pre_logits.fc.bias")
    state, network = {name: tensor.half() for name, tensor in state_of(size=size).items()}, small(size=size)
    network.load_timm({**dict.fromkeys(classifier, torch.zeros(8)), **state})
    assert all(torch.equal(tensor, state[name].float()) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "norm.weight"}, r"1 missing \['norm.weight'\], 0 unknown"),
        (lambda s: {**s, "blocks.1.norm1.bias": torch.zeros(8)}, r"1 blocks: .* 1 unknown \['blocks.1.norm1.bias'\]"),
        (lambda s: {**s, "norm.weight": torch.zeros(9)}, r"norm.weight has shape \(9,\), not \(8,\)"),
        (lambda s: {**s, "pos_embed": torch.zeros(17, 8)}, r"pos_embed has shape \(17, 8\)"),
        (lambda s: {**s, "pos_embed": torch.zeros(1, 1, 8)}, r"pos_embed has shape \(1, 1, 8\)"),
        (lambda s: {**s, "pos_embed": torch.zeros(1, 17, 9)}, r"pos_embed has shape \(1, 17, 9\), not \(1, 17, 8\)"),
        (lambda s: {**s, "pos_embed": torch.zeros(1, 25, 8)}, "pos_embed has 24 rows, .* neither .* nor a square"),
    ],
)  # fmt: skip
def test_load_timm_refuses_and_changes_nothing(change, words):
    network = small()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match=words):
        network.load_timm(change(state_of()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


# (2, 8) and (8, 2) have as many rows as the table: timm takes it for a square all the same.
@pytest.mark.parametrize("grid", SOURCED_POSITIONS)
def test_positions_of_another_grid_are_interpolated_as_timm_does(grid):
    network = small(size=(16 * grid[0], 16 * grid[1]))
    table = golden.hashed("pos_embed", 1, 17, 8) - 0.5
    network.load_timm({**state_of(), "pos_embed": table})
    assert torch.equal(network.pos_embed[:, :1], table[:, :1])  # the class token's row stays
    assert network.pos_embed.shape == (1, 1 + grid[0] * grid[1], 8)
    assert figures(network.pos_embed) == pytest.approx(SOURCED_POSITIONS[grid], rel=1e-5, abs=1e-8)  # float32


def test_load_timm_without_a_class_token():
    """The token and its row of the table are left out; a state that has none loads, too."""
    state, network = state_of(), small(class_token="none")
    network.load_timm(state)
    assert torch.equal(network.pos_embed, state["pos_embed"][:, 1:])
    own = state_of(class_token="none")
    network.load_timm(own)
    assert torch.equal(network.pos_embed, own["pos_embed"])
    larger = small(size=(96, 96), class_token="none")
    larger.load_timm(state)
    assert larger.pos_embed.shape == (1, 36, 8)
    complete = small(size=(96, 96))
    complete.load_timm(state)
    assert torch.equal(larger.pos_embed, complete.pos_embed[:, 1:])
