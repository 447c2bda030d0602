"""Swin blocks, patch merging and expanding: the numbers of timm and transformers, hand values, slow loops."""

import math

import numpy as np
import pytest
import torch
from conftest import golden
from figures import parameters

from adref.layers.swin import (
    MLP,
    PatchExpanding,
    PatchMerging,
    SwinBlock,
    WindowAttention,
    join_windows,
    relative_position_index,
    shift_mask,
    split_windows,
)

# Sourced: mean, standard deviation and nine elements of timm 1.0.31's modules (torch 2.13.0, float64), with which
# transformers 5.23.0 agrees to 5e-15 in all cases but the two of a rectangular window, which it cannot compute;
# `PYTHONPATH=tools python tools/sources/swin.py`, 2026-11-24.
SOURCED = {
    ((16, 16), 8, False): [
        0.5946085009, 0.904431452, 2.449826006, 1.843228217, 2.125428094, 2.245297823, 0.5541333077, 0.7976021387,
        1.556919203, 0.652550503, 0.4891001093],
    ((16, 16), 8, True): [
        0.6026760213, 0.9107021145, 2.439117597, 1.177493142, 2.039930197, 1.948488789, -0.2332171247, 0.9125119525,
        1.525171371, 0.4243699025, 0.7948800335],
    ((8, 16), 4, False): [
        0.5904097952, 0.9469679124, 2.145680283, 1.542936679, 1.321369684, 1.064064765, 1.904688778, 1.731743164,
        2.286194855, 1.694162766, -0.3139358452],
    ((8, 16), 4, True): [
        0.5797442211, 0.9748618104, 0.8504084384, 1.481266973, 1.380926307, 2.77118275, 1.464967013, 0.5193921045,
        1.566199205, 1.523376582, 1.184950573],
    ((4, 16), 8, False): [
        0.5580939675, 0.9328115359, 1.847596192, -0.2147168632, 1.349624223, 0.2361789206, 1.938771977, 1.678627569,
        1.414053314, 1.680055311, 1.956023403],
    ((4, 16), 8, True): [
        0.5844007323, 0.9572834545, 1.992384162, -1.254183208, 1.473606216, -0.5538711356, 1.469196034, 1.549630827,
        1.007241496, 1.586745349, 1.688140854],
}  # fmt: skip
SOURCED_ATTENTION = {
    False: [
        -0.0580825238, 0.5758357285, -0.1482443096, -1.085239267, -0.7868685875, -0.9032091138, -0.8748546394,
        -0.8690194178, -1.068731095, -0.9898823346, -1.128173452],
    True: [
        -0.0579134727, 0.5800657695, -0.1482443096, -1.085239267, -0.7667852713, -0.8308196891, -0.6287164075,
        -0.8690194178, -1.152488214, -1.067532225, -1.041759246],
}  # fmt: skip
SOURCED_MERGING = [
    0.04488405148, 0.9675353793, 1.464627925, -0.4087339761, -1.210834998, -0.4166463405, -0.3863132377, 1.417635417,
    -0.755456821, -0.7297513591, 0.7218307734]  # fmt: skip
SOURCED_INDEX = {
    (8, 8): ([112, 0, 224, 111, 97], 224538.1766937971),
    (4, 8): ([52, 0, 104, 51, 37], 26117.2354722023),
}  # elements, and the sum of all, each times a hashed number
SOURCED_MASKED_PAIRS = {
    ((16, 16), (8, 8), (4, 4)): [0, 2048, 2048, 3072],
    ((8, 16), (4, 4), (2, 2)): [0, 0, 0, 128, 128, 128, 128, 192],
    ((4, 16), (4, 8), (0, 4)): [0, 512],
}


def build(size: tuple[int, int], window: int, shifted: bool = False) -> SwinBlock:
    return SwinBlock(width=12, heads=3, size=size, window=window, shifted=shifted)


def close(values):
    """To what a sum in another order changes in float64; the numbers have ten digits."""
    return pytest.approx(values, rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("window", SOURCED_INDEX)
def test_relative_index_against_the_peers(window):
    elements, weighted = SOURCED_INDEX[window]
    index = relative_position_index(window)
    assert index[[0, 0, -1, 0, 0], [0, -1, 0, 1, 8]].tolist() == elements
    assert (index * golden.hashed("pairs", *index.shape).double()).sum().item() == pytest.approx(weighted, rel=1e-12)
    assert index.min() == 0 and index.max() == (2 * window[0] - 1) * (2 * window[1] - 1) - 1


@pytest.mark.parametrize("case", SOURCED_MASKED_PAIRS)
def test_mask_parts_tokens_that_are_no_neighbours(case):
    """Two tokens of a window attend only where they also lie within a window's reach before the roll."""
    (height, width), (h, w), (down, right) = case
    mask = shift_mask(*case)
    assert (mask != 0).sum((1, 2)).tolist() == SOURCED_MASKED_PAIRS[case]
    for n in range(len(mask)):
        top, left = n // (width // w) * h, n % (width // w) * w
        y = torch.tensor([(top + y + down) % height for y in range(h) for _ in range(w)])
        x = torch.tensor([(left + x + right) % width for _ in range(h) for x in range(w)])
        neighbours = ((y[:, None] - y).abs() < h) & ((x[:, None] - x).abs() < w)
        assert torch.equal(mask[n], torch.where(neighbours, 0.0, -100.0))
    assert (shift_mask((64, 64), (8, 8), (4, 4)) != 0).sum() == 31_744


def test_splitting_and_joining_windows():
    maps = torch.arange(2 * 8 * 12 * 3).view(2, 8, 12, 3)
    windows = split_windows(maps, (4, 6))
    assert windows.shape == (2, 4, 24, 3)
    for n, (y, x) in enumerate(((0, 0), (0, 6), (4, 0), (4, 6))):
        for token in range(24):
            assert torch.equal(windows[:, n, token], maps[:, y + token // 6, x + token % 6]), (n, token)
    assert torch.equal(join_windows(windows, (4, 6), (8, 12)), maps)


@pytest.mark.parametrize("masked", (False, True))
def test_attention_against_the_peers_and_a_slow_loop(masked):
    attention = golden.fill(WindowAttention(12, 3, (4, 4))).double()
    x = golden.hashed("windows", 2, 8, 16, 12).double()
    mask = shift_mask((8, 16), (4, 4), (2, 2)).double() if masked else None
    with torch.no_grad():
        out = attention(x, mask)
        assert golden.digest(out) == close(SOURCED_ATTENTION[masked])

        # 3 heads, 16 tokens, 4 channels of the second image's last window, which the mask cuts into four
        q, k, v = (t.unflatten(-1, (3, 4)).transpose(0, 1) for t in attention.qkv(x[1, 7]).chunk(3, dim=-1))
        table, slow = attention.relative_position_bias_table, torch.zeros(16, 12, dtype=torch.float64)
        for head, i in np.ndindex(3, 16):
            weights = []
            for j in range(16):
                score = (q[head, i] @ k[head, j]).item() / math.sqrt(4)
                score += table[(i // 4 - j // 4 + 3) * 7 + i % 4 - j % 4 + 3, head].item()
                weights.append(math.exp(score + (mask[7, i, j].item() if masked else 0)))
            slow[i, 4 * head : 4 * head + 4] = sum(w / sum(weights) * value for w, value in zip(weights, v[head]))
        assert torch.allclose(attention.proj(slow), out[1, 7], rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", SOURCED)
def test_blocks_against_the_peers(case):
    size, window, shifted = case
    block = golden.fill(build(size, window, shifted)).double()
    with torch.no_grad():
        out = block(golden.hashed("map", 2, *size, 12).double())
    assert out.shape == (2, *size, 12) and golden.digest(out) == close(SOURCED[case])


def test_a_shifted_block_does_not_leak_over_the_edges():
    block = golden.fill(build((16, 16), 8, True))
    x = golden.hashed("map", 1, 16, 16, 12)
    changed = x.clone()
    changed[0, 0, 0] = -changed[0, 0, 0].flip(0)

    def moved() -> set:
        with torch.no_grad():
            difference = (block(x) - block(changed)).abs().amax(-1)[0]
        return set(map(tuple, (difference > 1e-6).nonzero().tolist()))

    near, far = range(4), (*range(4), *range(12, 16))
    assert moved() == {(y, x) for y in near for x in near}
    block.mask = None
    assert moved() == {(y, x) for y in far for x in far}


def test_window_clamps_to_a_short_side_and_does_not_shift_there():
    block = build((4, 16), 8, True)
    assert (block.window, block.shift) == ((4, 8), (0, 4))
    assert block.attn.relative_position_bias_table.shape == (7 * 15, 3)
    block = build((2, 8), 8, True)
    assert (block.window, block.shift, block.mask) == ((2, 8), (0, 0), None)
    block = build((14, 28), 7, True)
    assert (block.window, block.shift) == ((7, 7), (3, 3))
    with pytest.raises(ValueError, match=r"expected .* window 8, got \(64, 100\)"):
        build((64, 100), 8)


def test_mlp_is_linear_gelu_linear():
    mlp = golden.fill(MLP(5, 7)).double()
    x = golden.hashed("tokens", 2, 3, 5).double()
    hidden = x @ mlp.fc1.weight.T + mlp.fc1.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))  # not the tanh form
    assert torch.allclose(mlp(x), hidden @ mlp.fc2.weight.T + mlp.fc2.bias, rtol=0, atol=1e-12)


def test_merging_order_and_numbers():
    merging = PatchMerging(1)
    merging.norm = merging.reduction = torch.nn.Identity()
    merged = merging(torch.arange(16).view(1, 4, 4, 1))
    assert merged[0].tolist() == [[[0, 4, 1, 5], [2, 6, 3, 7]], [[8, 12, 9, 13], [10, 14, 11, 15]]]
    with torch.no_grad():
        out = golden.fill(PatchMerging(12)).double()(golden.hashed("map", 2, 8, 16, 12).double())
    assert out.shape == (2, 4, 8, 24) and golden.digest(out) == close(SOURCED_MERGING)


def spread(x, scale):
    """What expanding does to the output of its linear, before its norm."""
    expanding = PatchExpanding(1, scale, 1)
    expanding.expand = expanding.norm = torch.nn.Identity()
    return expanding(x)


@pytest.mark.parametrize("scale", (2, 4))
def test_spreading_puts_each_channel_where_the_paper_says(scale):
    channels = 3
    x = torch.arange(2 * 2 * 3 * scale**2 * channels).view(2, 2, 3, -1)
    out = spread(x, scale)
    assert out.shape == (2, 2 * scale, 3 * scale, channels)
    for h, w, p1, p2 in np.ndindex(2, 3, scale, scale):
        own = x[:, h, w, (p1 * scale + p2) * channels : (p1 * scale + p2 + 1) * channels]
        assert torch.equal(out[:, scale * h + p1, scale * w + p2], own), (h, w, p1, p2)


@pytest.mark.parametrize(("scale", "width_out"), [(2, 6), (4, 12)])
def test_expanding_is_linear_then_spread_then_norm(scale, width_out):
    expanding = golden.fill(PatchExpanding(12, scale, width_out)).double()
    x = golden.hashed("map", 2, 3, 5, 12).double()
    pixels = spread(x @ expanding.expand.weight.T, scale)
    centred = pixels - pixels.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = normed * expanding.norm.weight + expanding.norm.bias
    assert torch.allclose(expanding(x), expected, rtol=0, atol=1e-12)
    assert expanding(x).shape == (2, 3 * scale, 5 * scale, width_out)


@pytest.mark.parametrize(
    ("width", "heads", "count"), [(96, 3, 112_515), (192, 6, 446_214), (384, 12, 1_777_164), (768, 24, 7_093_272)]
)
def test_parameter_counts_of_blocks(width, heads, count):
    with torch.device("meta"):
        block = SwinBlock(width=width, heads=heads, size=(8, 8), window=8, shifted=False)
    assert parameters(block) == count == 12 * width**2 + 13 * width + 225 * heads
