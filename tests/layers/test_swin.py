"""Swin blocks and SRDAD's reconstructive network: its golden checks 1 to 4, peers' numbers, every alternative."""

import math

import pytest
import torch
from conftest import golden

from adref.layers.swin import (
    MLP,
    PatchExpanding,
    PatchMerging,
    SwinBlock,
    WindowAttention,
    collect,
    drop_path,
    explicit_attention,
    join_windows,
    relative_position_index,
    shift_mask,
    split_windows,
    spread,
)
from adref.methods.srdad.reconstructor import SWIN_UNET as PLAIN
from adref.methods.srdad.reconstructor import GatedSkip, Stage, SwinUNet, next_valid_side, resize_bias_table, valid_side

PAPER = {"size": (256, 256), "width": 96, "window": 8, "aspp_width": 192, "residual": "level", "skips": "final_sum",
         "skip_levels": 4, "gates": "channel"}  # fmt: skip
SMALL = {**PAPER, "size": (64, 128), "width": 12, "window": 4, "aspp_width": 24}

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
SOURCED_ENCODER = [
    0.02068067873, 1.010198555, 1.291531535, 1.726455631, 1.558298203, 1.382258621, 1.474168993, 1.515450375,
    1.220125765, 1.472477366, 1.371854314]  # fmt: skip
SOURCED_INDEX = {
    (8, 8): ([112, 0, 224, 111, 97], 224538.1766937971),
    (4, 8): ([52, 0, 104, 51, 37], 26117.2354722023),
}  # elements, and the sum of all, each times a hashed number
SOURCED_MASKED_PAIRS = {
    ((16, 16), (8, 8), (4, 4)): [0, 2048, 2048, 3072],
    ((8, 16), (4, 4), (2, 2)): [0, 0, 0, 128, 128, 128, 128, 192],
    ((4, 16), (4, 8), (0, 4)): [0, 512],
}


def close(values):
    """To what a sum in another order changes in float64; the numbers have ten digits."""
    return pytest.approx(values, rel=1e-8, abs=1e-9)


def parameters(module) -> int:
    return sum(p.numel() for p in module.parameters())


def traced(network, images) -> tuple[dict, torch.Tensor]:
    """Inputs and output of each module by its name, and the network's output."""
    seen = {}
    for name, module in network.named_modules():
        module.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: (*inputs, output)}))
    with torch.no_grad():
        return seen, network(images)


def resampling(before: int, after: int, kernel) -> torch.Tensor:
    """What resizing an axis multiplies it by: (after, before), pixel centres aligned, edges repeated."""
    matrix = torch.zeros(after, before, dtype=torch.float64)
    for i in range(after):
        at = (i + 0.5) * before / after - 0.5
        for tap in range(math.floor(at) - 1, math.floor(at) + 3):
            matrix[i, min(max(tap, 0), before - 1)] += kernel(abs(at - tap))
    return matrix


# -- windows and attention ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", SOURCED_INDEX)
def test_relative_index_is_that_of_the_specification_and_of_the_peers(window):
    elements, weighted = SOURCED_INDEX[window]
    index = relative_position_index(window)
    assert index[[0, 0, -1, 0, 0], [0, -1, 0, 1, 8]].tolist() == elements
    assert (index * golden.hashed("pairs", *index.shape).double()).sum().item() == pytest.approx(weighted, rel=1e-12)
    assert index.min() == 0 and index.max() == (2 * window[0] - 1) * (2 * window[1] - 1) - 1


def test_masks_of_the_specification():
    """Golden check 3."""
    mask = shift_mask((64, 64), (8, 8), (4, 4))
    assert mask.shape == (64, 64, 64) and set(mask.unique().tolist()) == {-100.0, 0.0}
    assert (mask != 0).any(-1).any(-1).sum() == 15 and (mask != 0).sum() == 31_744
    block = SwinBlock(12, 3, (64, 64), 8, shifted=True)
    assert torch.equal(block.mask, mask)


@pytest.mark.parametrize("case", SOURCED_MASKED_PAIRS)
def test_mask_parts_tokens_that_are_no_neighbours(case):
    """Two tokens of a window attend only where they also lie within a window's reach before the roll."""
    (height, width), (h, w), (down, right) = case
    mask = shift_mask(*case)
    assert (mask != 0).sum((1, 2)).tolist() == SOURCED_MASKED_PAIRS[case]
    for n in range(len(mask)):
        top, left = n // (width // w) * h, n % (width // w) * w
        places = [((top + y + down) % height, (left + x + right) % width) for y in range(h) for x in range(w)]
        for i, (y1, x1) in enumerate(places):
            for j, (y2, x2) in enumerate(places):
                neighbours = abs(y1 - y2) < h and abs(x1 - x2) < w
                assert mask[n, i, j] == (0 if neighbours else -100), (n, i, j)


def test_splitting_and_joining_windows():
    maps = torch.arange(2 * 8 * 12 * 3).view(2, 8, 12, 3)
    windows = split_windows(maps, (4, 6))
    assert windows.shape == (2, 4, 24, 3)
    for n, (y, x) in enumerate(((0, 0), (0, 6), (4, 0), (4, 6))):
        for token in range(24):
            assert torch.equal(windows[:, n, token], maps[:, y + token // 6, x + token % 6]), (n, token)
    assert torch.equal(join_windows(windows, (4, 6), (8, 12)), maps)


@pytest.mark.parametrize("masked", (False, True))
def test_attention_against_the_peers_the_formula_and_a_slow_loop(masked):
    attention = golden.fill(WindowAttention(12, 3, (4, 4))).double()
    x = golden.hashed("windows", 2, 8, 16, 12).double()
    mask = shift_mask((8, 16), (4, 4), (2, 2)).double() if masked else None
    with torch.no_grad():
        out = attention(x, mask)
        assert golden.digest(out) == close(SOURCED_ATTENTION[masked])

        # (2 images, 8 windows, 3 heads, 16 tokens, 4 channels)
        q, k, v = (t.unflatten(-1, (3, 4)).transpose(2, 3) for t in attention.qkv(x).chunk(3, dim=-1))
        table = attention.relative_position_bias_table
        bias = table[relative_position_index((4, 4))].permute(2, 0, 1) + (mask[:, None] if masked else 0)
        explicit = explicit_attention(q, k, v, bias).transpose(2, 3).flatten(3)
        assert torch.allclose(attention.proj(explicit), out, rtol=0, atol=1e-6)

        last = (1, 7)  # the second image's last window, which the mask cuts into four
        slow = torch.zeros(16, 12, dtype=torch.float64)
        for head in range(3):
            for i in range(16):
                weights = []
                for j in range(16):
                    dot = sum((q[last][head, i, c] * k[last][head, j, c]).item() for c in range(4))
                    row = (i // 4 - j // 4 + 3) * 7 + i % 4 - j % 4 + 3
                    score = dot / math.sqrt(4) + table[row, head].item()
                    weights.append(math.exp(score + (mask[7, i, j].item() if masked else 0)))
                for j, weight in enumerate(weights):
                    slow[i, 4 * head : 4 * head + 4] += weight / sum(weights) * v[last][head, j]
        assert torch.allclose(attention.proj(slow), out[last], rtol=0, atol=1e-12)


def test_attention_stays_in_its_window():
    attention = golden.fill(WindowAttention(12, 3, (4, 4)))
    x = golden.hashed("windows", 2, 8, 16, 12)
    changed = x.clone()
    changed[1, 5, 3] += 1
    with torch.no_grad():
        moved = (attention(x) != attention(changed)).any(-1).all(-1)
    assert moved.nonzero().tolist() == [[1, 5]]


@pytest.mark.parametrize("case", SOURCED)
def test_blocks_against_the_peers(case):
    size, window, shifted = case
    block = golden.fill(SwinBlock(12, 3, size, window, shifted)).double()
    with torch.no_grad():
        out = block(golden.hashed("map", 2, *size, 12).double())
    assert out.shape == (2, *size, 12) and golden.digest(out) == close(SOURCED[case])


def test_a_shifted_block_does_not_leak_over_the_edges():
    """Golden check 4."""
    block = golden.fill(SwinBlock(12, 3, (16, 16), 8, shifted=True))
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
    block = SwinBlock(12, 3, (4, 16), 8, shifted=True)
    assert (block.window, block.shift) == ((4, 8), (0, 4))
    assert block.attn.relative_position_bias_table.shape == (7 * 15, 3)
    block = SwinBlock(12, 3, (8, 8), 8, shifted=True)
    assert (block.window, block.shift, block.mask) == ((8, 8), (0, 0), None)
    block = SwinBlock(12, 3, (2, 4), 8, shifted=True)
    assert (block.window, block.shift, block.mask) == ((2, 4), (0, 0), None)
    block = SwinBlock(12, 3, (14, 28), 7, shifted=True)
    assert (block.window, block.shift) == ((7, 7), (3, 3))


@pytest.mark.parametrize("size", [(12, 16), (16, 12), (9, 8), (64, 100)])
def test_a_map_that_windows_do_not_fill_is_refused(size):
    with pytest.raises(ValueError, match=rf"expected .* window 8, got \({size[0]}, {size[1]}\)"):
        SwinBlock(12, 3, size, 8)


def test_mlp_is_linear_gelu_linear():
    mlp = golden.fill(MLP(5, 7)).double()
    x = golden.hashed("tokens", 2, 3, 5).double()
    hidden = x @ mlp.fc1.weight.T + mlp.fc1.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))  # not the tanh form
    assert torch.allclose(mlp(x), hidden @ mlp.fc2.weight.T + mlp.fc2.bias, rtol=0, atol=1e-12)
    assert SwinBlock(12, 3, (8, 8), mlp_ratio=2.5).mlp.fc1.out_features == 30


# -- merging and expanding ---------------------------------------------------------------------------------------------


def test_merging_order_and_numbers():
    """Golden check 2, and the peers."""
    merged = collect(torch.arange(16).view(1, 4, 4, 1))
    assert merged[0].tolist() == [[[0, 4, 1, 5], [2, 6, 3, 7]], [[8, 12, 9, 13], [10, 14, 11, 15]]]
    with torch.no_grad():
        out = golden.fill(PatchMerging(12)).double()(golden.hashed("map", 2, 8, 16, 12).double())
    assert out.shape == (2, 4, 8, 24) and golden.digest(out) == close(SOURCED_MERGING)


@pytest.mark.parametrize("scale", (2, 4))
def test_spreading_puts_each_channel_where_the_paper_says(scale):
    channels = 3
    x = torch.arange(2 * 2 * 3 * scale**2 * channels).view(2, 2, 3, -1)
    out = spread(x, scale)
    assert out.shape == (2, 2 * scale, 3 * scale, channels)
    for h in range(2):
        for w in range(3):
            for p1 in range(scale):
                for p2 in range(scale):
                    own = x[:, h, w, (p1 * scale + p2) * channels : (p1 * scale + p2 + 1) * channels]
                    assert torch.equal(out[:, scale * h + p1, scale * w + p2], own), (h, w, p1, p2)


def test_collecting_and_spreading_are_inverse_up_to_the_order_of_the_four():
    """Golden check 2: expanding counts along rows (p1 2 + p2), merging along columns, so two of the four swap."""
    x = golden.hashed("map", 2, 6, 10, 8)
    a, b, c, d = collect(x).chunk(4, dim=-1)
    assert torch.equal(spread(torch.cat((a, c, b, d), dim=-1), 2), x)
    a, b, c, d = x.chunk(4, dim=-1)
    assert torch.equal(collect(spread(x, 2)), torch.cat((a, c, b, d), dim=-1))


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


# -- stochastic depth --------------------------------------------------------------------------------------------------


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    torch.manual_seed(0)
    x = 1 + golden.hashed("images", 4000, 2, 3)
    assert drop_path(x, 0.3, training=False) is x and drop_path(x, 0.0, training=True) is x
    out = drop_path(x, 0.3, training=True)
    dropped = (out == 0).flatten(1)
    assert torch.equal(dropped.all(1), dropped.any(1))
    kept = ~dropped.any(1)
    assert torch.allclose(out[kept], x[kept] / 0.7)
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.03)  # four standard errors
    assert out.mean().item() == pytest.approx(x.mean().item(), rel=0.04)


def test_drop_path_of_a_block_draws_for_each_branch_and_image():
    """The output is one of four sums: neither branch, one of them, both."""
    torch.manual_seed(0)
    block = golden.fill(SwinBlock(12, 3, (4, 4), 4, drop_path=0.5)).train()
    x = golden.hashed("map", 1, 4, 4, 12).expand(64, -1, -1, -1)
    with torch.no_grad():
        attended = join_windows(block.attn(split_windows(block.norm1(x), (4, 4))), (4, 4), (4, 4))
        sums = [y + m * block.mlp(block.norm2(y)) for y in (x, x + 2 * attended) for m in (0, 2)]
        out = block(x)
    hits = torch.stack([(out - y).abs().amax((1, 2, 3)) < 1e-5 for y in sums])
    assert hits.sum(0).tolist() == [1] * 64 and all(5 <= n <= 30 for n in hits.sum(1).tolist())


# -- the network: counts and shapes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "heads", "count"), [(96, 3, 112_515), (192, 6, 446_214), (384, 12, 1_777_164), (768, 24, 7_093_272)]
)
def test_parameter_counts_of_blocks(width, heads, count):
    with torch.device("meta"):
        assert parameters(SwinBlock(width, heads, (8, 8))) == count == 12 * width**2 + 13 * width + 225 * heads


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 19_408_023),
        ({"residual": "block"}, 19_602_231),
        ({"aspp_width": 256}, 21_571_927),
        ({"bottleneck_depth": 1}, 26_501_295),
        ({"bottleneck_depth": 2}, 33_594_567),
        ({"skips": "inline"}, 19_278_711),
        (PLAIN, 27_175_716),
        ({**PLAIN, "size": (224, 224), "window": 7}, 27_168_324),
        ({**PLAIN, "bottleneck_depth": 1}, 20_082_444),
        ({**PLAIN, "bottleneck_depth": 0}, 12_989_172),
        ({**PLAIN, "depths": (2, 2, 6)}, 41_393_028),
    ],
)
def test_parameter_counts_of_the_specification(changes, count):
    with torch.device("meta"):
        assert parameters(SwinUNet(**{**PAPER, **changes})) == count


@pytest.mark.holds("srdad", "6")
def test_table_of_the_network_row_by_row():
    """Golden check 1: parameters and shapes of all 22 rows at 256 x 256."""
    with torch.device("meta"):
        network = SwinUNet(**PAPER).eval()
        seen, out = traced(network, torch.empty(2, 3, 256, 256))
    rows = [
        ("embed", 4_704, (96, 64, 64)),
        ("embed_norm", 192, (64, 64, 96)),
        ("stages.0", 225_030, (64, 64, 96)),
        ("merges.0", 74_496, (32, 32, 192)),
        ("stages.1", 892_428, (32, 32, 192)),
        ("merges.1", 296_448, (16, 16, 384)),
        ("stages.2", 3_554_328, (16, 16, 384)),
        ("merges.2", 1_182_720, (8, 8, 768)),
        ("bottleneck", 0, (8, 8, 768)),
        ("norm", 1_536, (8, 8, 768)),
        ("aspp", 4_130_112, (768, 8, 8)),
        ("expands.2", 1_180_416, (16, 16, 384)),
        ("decoder.2", 3_554_328 + 147_840, (16, 16, 384)),
        ("expands.1", 295_296, (32, 32, 192)),
        ("decoder.1", 892_428 + 37_056, (32, 32, 192)),
        ("expands.0", 73_920, (64, 64, 96)),
        ("decoder.0", 225_030 + 9_312, (64, 64, 96)),
        ("gated.0", 27_840, (64, 64, 96)),
        ("gated.1", 110_976, (32, 32, 192)),
        ("gated.2", 443_136, (16, 16, 384)),
        ("gated.3", 1_771_008, (8, 8, 768)),
        ("align.0", 18_528, (32, 32, 96)),
        ("align.1", 36_960, (16, 16, 96)),
        ("align.2", 73_824, (8, 8, 96)),
        ("decoder_norm", 192, (64, 64, 96)),
        ("final_expand", 147_648, (256, 256, 96)),
        ("out", 291, (256, 256, 3)),
    ]
    assert [(name, parameters(network.get_submodule(name)), tuple(seen[name][-1].shape)) for name, *_ in rows] == [
        (name, count, (2, *shape)) for name, count, shape in rows
    ]
    assert sum(count for _, count, _ in rows) == parameters(network) == 19_408_023
    assert out.shape == (2, 3, 256, 256)
    heads = [[block.attn.heads for block in stage.blocks] for stage in (*network.stages, *network.decoder)]
    assert heads == [[3, 3], [6, 6], [12, 12]] * 2
    shifts = [[block.shift for block in stage.blocks] for stage in (*network.stages, *network.decoder)]
    assert shifts == [[(0, 0), (4, 4)]] * 6


def test_bottleneck_has_twice_the_heads_of_the_last_stage():
    with torch.device("meta"):
        network = SwinUNet(**PAPER, bottleneck_depth=2)
    assert [(b.attn.heads, b.size, b.shift) for b in network.bottleneck.blocks] == [(24, (8, 8), (0, 0))] * 2


def test_initialisation():
    torch.manual_seed(0)
    network = SwinUNet(**{**SMALL, "width": 48, "heads": (3, 6, 12)})
    linears = [m for m in network.modules() if isinstance(m, torch.nn.Linear)]
    weights = torch.cat([m.weight.flatten() for m in linears])
    assert abs(weights.std() - 0.02) < 1e-4 and abs(weights.mean()) < 1e-4
    assert all(m.bias.abs().max() == 0 for m in linears if m.bias is not None)
    tables = torch.cat([m.relative_position_bias_table.flatten() for m in network.modules() if hasattr(m, "qkv")])
    assert abs(tables.std() - 0.02) < 1e-3
    norms = [m for m in network.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert all((m.weight == 1).all() and (m.bias == 0).all() and m.eps == 1e-5 for m in norms)


# -- the network: equations 8 to 10, and every alternative -------------------------------------------------------------


@pytest.mark.holds("srdad", "8")
def test_equation_8():
    x = golden.hashed("map", 2, 8, 16, 12)
    with torch.no_grad():
        for residual in ("none", "level", "block"):
            stage = golden.fill(Stage(width=12, heads=3, size=(8, 16), window=4, depth=3, residual=residual))
            assert [block.shift for block in stage.blocks] == [(0, 0), (2, 2), (0, 0)]
            linears = stage.residuals
            assert len(linears) == {"none": 0, "level": 1, "block": 3}[residual]
            expected = x
            for i, block in enumerate(stage.blocks):
                around = expected @ linears[i].weight.T + linears[i].bias if residual == "block" else 0
                expected = block(expected) + around
            if residual == "level":
                expected = expected + x @ linears[0].weight.T + linears[0].bias
            assert torch.allclose(stage(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("gates", ("channel", "spatial"))
@pytest.mark.holds("srdad", "9")
def test_equation_9(gates):
    skip = golden.fill(GatedSkip(width=12, gates=gates)).double()
    encoded, decoded = (golden.hashed(name, 2, 3, 5, 12).double() for name in ("encoded", "decoded"))
    W1, W2 = skip.gate.weight, skip.value.weight
    assert W1.shape == (12 if gates == "channel" else 1, 24)
    score = encoded @ W1[:, :12].T + decoded @ W1[:, 12:].T + skip.gate.bias
    expected = (encoded @ W2.T + skip.value.bias) / (1 + torch.exp(-score))
    assert torch.allclose(skip(encoded, decoded), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("skip_levels", (4, 3))
@pytest.mark.holds("srdad", "10")
def test_equation_10(skip_levels):
    network = golden.fill(SwinUNet(**{**SMALL, "skip_levels": skip_levels})).double()
    decoded = golden.hashed("decoded", 2, 16, 32, 12).double()
    maps = [golden.hashed(f"gated {i}", 2, 16 >> i, 32 >> i, 12 << i).double() for i in range(skip_levels)]
    expected = decoded + maps[0]
    for i in range(1, skip_levels):
        aligned = maps[i] @ network.align[i - 1].weight.T + network.align[i - 1].bias
        rows, columns = (resampling(side >> i, side, lambda d: max(0.0, 1 - d)) for side in (16, 32))
        expected = expected + torch.einsum("yi,xj,bijc->byxc", rows, columns, aligned)
    assert len(network.align) == skip_levels - 1 == len(network.gated) - 1
    assert torch.allclose(network.sum_skips(decoded, maps[::-1]), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tap", ("post", "pre"))
@pytest.mark.parametrize("skips", ("final_sum", "inline", "concat"))
def test_what_goes_where(skips, tap):
    """Each module gets what the specification's section 2.5 says, from a trace of the whole network."""
    network = golden.fill(SwinUNet(**{**SMALL, "skips": skips}, bottleneck_depth=1, skip_tap=tap))
    seen, out = traced(network, golden.hashed("images", 1, 3, 64, 128))

    def output(name):
        return seen[name][-1]

    def enters(name):
        return seen[name][0]

    encoded = [output(f"stages.{i}") if tap == "post" else enters(f"stages.{i}") for i in range(3)] + [output("norm")]
    pooled = output("aspp").permute(0, 2, 3, 1)
    assert torch.equal(enters("aspp"), output("norm").permute(0, 3, 1, 2))
    assert torch.equal(enters("stages.0"), output("embed_norm"))
    assert torch.equal(enters("embed_norm"), output("embed").permute(0, 2, 3, 1))
    assert all(torch.equal(enters(f"merges.{i}"), output(f"stages.{i}")) for i in range(3))
    assert all(torch.equal(enters(f"stages.{i}"), output(f"merges.{i - 1}")) for i in (1, 2))
    assert torch.equal(enters("bottleneck"), output("merges.2")) and torch.equal(enters("norm"), output("bottleneck"))

    carried = pooled
    for level in (3, 2, 1, 0):
        if level < 3:
            assert torch.equal(enters(f"expands.{level}"), carried)
            expanded = output(f"expands.{level}")
            if skips == "concat":
                assert torch.equal(enters(f"fuse.{level}"), torch.cat((expanded, encoded[level]), dim=-1))
                expanded = output(f"fuse.{level}")
            assert torch.equal(enters(f"decoder.{level}"), expanded)
            carried = output(f"decoder.{level}")
        if skips != "concat":
            assert torch.equal(seen[f"gated.{level}"][0], encoded[level])
            assert torch.equal(seen[f"gated.{level}"][1], carried)
        if skips == "inline":
            carried = carried + output(f"gated.{level}")
    if skips == "final_sum":
        carried = network.sum_skips(carried, [output(f"gated.{level}") for level in (3, 2, 1, 0)])
    assert torch.equal(enters("decoder_norm"), carried)
    assert torch.equal(enters("final_expand"), output("decoder_norm"))
    assert torch.equal(out, output("out").permute(0, 3, 1, 2)) and torch.equal(enters("out"), output("final_expand"))
    assert (network.out.bias is None) == (skips == "concat")


ALTERNATIVES = [
    {},
    {"skips": "inline"},
    {"skips": "concat"},
    {"skip_levels": 3},
    {"skip_levels": 3, "skips": "inline"},
    {"skip_tap": "pre"},
    {"gates": "spatial"},
    {"residual": "block"},
    {"residual": "none"},
    {"bottleneck_depth": 2},
    {"aspp_width": None},
    {"aspp_width": 10},
    {"window": 8},
    PLAIN,
]


@pytest.mark.parametrize("changes", ALTERNATIVES, ids=lambda c: " ".join(f"{k}={v}" for k, v in c.items()) or "default")
def test_alternatives_run_differ_and_train_every_parameter(changes):
    torch.manual_seed(0)
    images = golden.hashed("images", 2, 3, 64, 128)
    network = golden.fill(SwinUNet(**{**SMALL, **changes})).train()
    out = network(images)
    assert out.shape == images.shape and out.isfinite().all()
    default = golden.fill(SwinUNet(**SMALL)).train()(images)
    assert torch.equal(out, default) == (changes == {})
    (out - images).square().mean().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not still
    assert all(p.grad.isfinite().all() for p in network.parameters())


# -- sides -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "window", "bottleneck", "valid"),
    [
        (32, 8, 0, True),  # maps of 8, 4, 2, 1
        (64, 8, 0, True),  # 16, 8, 4, 2
        (96, 8, 0, False),  # 24, 12
        (128, 8, 2, True),  # 32, 16, 8, 4
        (192, 8, 0, False),  # 48, 24, 12
        (256, 8, 2, True),  # 64, 32, 16, 8
        (256, 7, 0, False),
        (224, 7, 2, True),  # 56, 28, 14, 7
        (112, 7, 0, False),  # 28, 14, 7, and 3.5
        (448, 7, 2, True),  # 112, 56, 28, 14
        (384, 8, 0, True),  # 96, 48, 24, and 12, where no window is needed
        (384, 8, 1, False),
        (192, 4, 0, True),  # 48, 24, 12, and 6
        (192, 4, 2, False),
        (100, 8, 0, False),
        (0, 8, 0, False),
        (-64, 8, 0, False),
    ],
)
def test_valid_sides(side, window, bottleneck, valid):
    assert valid_side(side, (2, 2, 2), bottleneck, window) is valid


def test_valid_sides_are_those_that_the_network_can_be_built_for():
    valid = []
    for side in range(32, 545, 32):
        try:
            with torch.device("meta"):
                SwinUNet(**{**PAPER, "size": (side, 256), "width": 12}, depths=(1, 1, 1), bottleneck_depth=1)
            valid.append(side)
        except ValueError:
            pass
    assert valid == [32, 64, 128, 256, 512]
    assert valid == [side for side in range(32, 545, 32) if valid_side(side, (1, 1, 1), 1, 8)]


def test_depths_without_blocks_need_no_windows():
    assert valid_side(96, (2, 0, 0), 0, 8) and not valid_side(96, (2, 1, 0), 0, 8)  # 24, 12, 6
    assert valid_side(96, (2,), 0, 8) and not valid_side(96, (2,), 1, 8)  # 24, then 12


@pytest.mark.parametrize(
    ("side", "arguments", "found"),
    [
        (1, ((2, 2, 2), 0, 8), 32),
        (64, ((2, 2, 2), 0, 8), 64),
        (65, ((2, 2, 2), 0, 8), 128),
        (257, ((2, 2, 2), 0, 8), 384),
        (257, ((2, 2, 2), 2, 8), 512),
        (225, ((2, 2, 2), 2, 7), 448),
        (100, ((2, 2, 2), 0, 4), 128),
    ],
)
def test_next_valid_side(side, arguments, found):
    assert next_valid_side(side, *arguments) == found


# -- weights of a Swin Transformer -------------------------------------------------------------------------------------


def authors_state(width: int, depths: tuple[int, ...], window: int, side: int) -> dict:
    """A state dict with the keys and shapes of Microsoft's files, in the values that `golden.fill` gives."""
    state = {}

    def put(key, *shape):
        values = golden.hashed(key, *shape)
        if len(shape) > 1:
            state[key] = (values - 0.5) * (12 / values[0].numel()) ** 0.5
        else:
            state[key] = 0.5 + values if key.endswith("weight") else (values - 0.5) * 0.2

    def pair(key, o, *rest):
        put(f"{key}.weight", o, *rest), put(f"{key}.bias", o)

    pair("patch_embed.proj", width, 3, 4, 4), pair("patch_embed.norm", width)
    for layer, depth in enumerate(depths):
        c = width * 2**layer
        for block in range(depth):
            key = f"layers.{layer}.blocks.{block}"
            if block % 2 and side // 4 // 2**layer > window:
                put(f"{key}.attn_mask", (side // 4 // 2**layer // window) ** 2, window**2, window**2)
            put(f"{key}.attn.relative_position_bias_table", (2 * window - 1) ** 2, 3 * 2**layer)
            state[f"{key}.attn.relative_position_index"] = torch.zeros(window**2, window**2, dtype=torch.int64)
            pair(f"{key}.norm1", c), pair(f"{key}.norm2", c)
            pair(f"{key}.attn.qkv", 3 * c, c), pair(f"{key}.attn.proj", c, c)
            pair(f"{key}.mlp.fc1", 4 * c, c), pair(f"{key}.mlp.fc2", c, 4 * c)
        if layer < len(depths) - 1:
            put(f"layers.{layer}.downsample.reduction.weight", 2 * c, 4 * c)
            pair(f"layers.{layer}.downsample.norm", 4 * c)
    pair("norm", c), pair("head", 1000, c)
    return state


@pytest.mark.holds("srdad", "6")
def test_encoder_with_loaded_weights_against_the_peers():
    """A whole Swin Transformer: embedding, four stages, three merges, norm."""
    torch.manual_seed(0)
    network = SwinUNet(**{**SMALL, "size": (128, 128), "bottleneck_depth": 2}).eval()
    network.load_swin(authors_state(12, (2, 2, 2, 2), 4, 128))
    seen, _ = traced(network.double(), golden.hashed("images", 2, 3, 128, 128).double())
    assert golden.digest(seen["norm"][-1]) == close(SOURCED_ENCODER)


def test_loading_a_deeper_swin_of_another_window():
    """Its third layer has six blocks, of which two are taken; tables of window 7 become those of window 8."""
    torch.manual_seed(0)
    network = SwinUNet(**{**SMALL, "size": (256, 256), "window": 8}, bottleneck_depth=2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = authors_state(12, (2, 2, 6, 2), 7, 224)
    network.load_swin(state)
    after = network.state_dict()
    for ours, theirs in {
        "embed.weight": "patch_embed.proj.weight",
        "embed.bias": "patch_embed.proj.bias",
        "embed_norm.bias": "patch_embed.norm.bias",
        "stages.0.blocks.1.norm1.weight": "layers.0.blocks.1.norm1.weight",
        "stages.2.blocks.1.mlp.fc1.weight": "layers.2.blocks.1.mlp.fc1.weight",
        "merges.0.norm.weight": "layers.0.downsample.norm.weight",
        "merges.2.reduction.weight": "layers.2.downsample.reduction.weight",
        "bottleneck.blocks.1.attn.qkv.bias": "layers.3.blocks.1.attn.qkv.bias",
        "norm.weight": "norm.weight",
    }.items():
        assert torch.equal(after[ours], state[theirs]), ours
    table = after["stages.1.blocks.1.attn.relative_position_bias_table"]
    assert table.shape == (225, 6)
    assert torch.equal(table, resize_bias_table(state["layers.1.blocks.1.attn.relative_position_bias_table"], (8, 8)))
    encoder = ("embed.", "embed_norm.", "stages.", "merges.", "bottleneck.", "norm.")
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]) == (not name.startswith(encoder)), name


def test_resized_tables_are_bicubic():
    def cubic(d, a=-0.75):
        return (a + 2) * d**3 - (a + 3) * d**2 + 1 if d <= 1 else a * (d**3 - 5 * d**2 + 8 * d - 4)

    for before, after in ((7, (8, 8)), (8, (4, 4)), (8, (5, 13))):  # 9 x 25 = 15 x 15 rows: not to be taken as it is
        table = golden.hashed("table", (2 * before - 1) ** 2, 3).double()
        down, along = (resampling(2 * before - 1, 2 * side - 1, cubic) for side in after)
        expected = torch.einsum("yi,xj,ijk->yxk", down, along, table.view(2 * before - 1, -1, 3)).flatten(0, 1)
        assert torch.allclose(resize_bias_table(table, after), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("one key", r": 1 keys are missing, .*'layers\.3\.blocks\.1\.norm2\.weight'"),
        ("shallow", r": 13 keys are missing, .*'layers\.2\.blocks\.1\.norm1\.weight'"),
        ("other", r"'patch_embed\.proj\.weight', 'patch_embed\.proj\.bias', 'patch_embed\.norm\.weight'"),
        ("wide", r"patch_embed\.proj\.weight has shape \(24, 3, 4, 4\), expected \(12, 3, 4, 4\)"),
        ("heads", r"bias_table has shape \(225, 4\), expected \(225, 3\)"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(damage, words):
    network = SwinUNet(**{**SMALL, "size": (256, 256), "window": 8}, bottleneck_depth=2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = authors_state(24 if damage == "wide" else 12, (2, 2, 1 if damage == "shallow" else 2, 2), 8, 256)
    if damage == "one key":
        del state["layers.3.blocks.1.norm2.weight"]
    elif damage == "other":
        state = {f"backbone.{key}": tensor for key, tensor in state.items()}
    elif damage == "heads":
        state["layers.0.blocks.0.attn.relative_position_bias_table"] = torch.zeros(225, 4)
    with pytest.raises(ValueError, match=words):
        network.load_swin(state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_without_a_bottleneck_the_last_layer_is_not_asked_for():
    network = SwinUNet(**{**SMALL, "size": (256, 256), "window": 8})
    state = {key: t for key, t in authors_state(12, (2, 2, 2, 2), 8, 256).items() if not key.startswith("layers.3")}
    network.load_swin(state)
    assert torch.equal(network.norm.bias, state["norm.bias"])
    assert torch.equal(network.stages[2].blocks[0].attn.proj.weight, state["layers.2.blocks.0.attn.proj.weight"])
