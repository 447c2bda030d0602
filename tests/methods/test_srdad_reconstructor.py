"""SRDAD's reconstructive network: parameters and shapes part by part, equations 8 to 10, readings, Swin's weights."""

import math

import pytest
import torch
from conftest import golden

from adref.methods.srdad.reconstructor import SWIN_UNET, GatedSkip, Stage, SwinUNet, next_valid_side, resize_bias_table

PAPER = {"size": (256, 256), "width": 96, "window": 8, "aspp_width": 192, "residual": "level", "skips": "final_sum",
        "skip_levels": 4, "gates": "channel"}  # fmt: skip
SMALL = PAPER | {"size": (64, 128), "width": 12, "window": 4, "aspp_width": 24}

# Sourced: mean, standard deviation and nine elements of the encoder of timm 1.0.31 (torch 2.13.0, float64), with which
# transformers 5.23.0 agrees to 5e-15; `PYTHONPATH=tools python tools/sources/swin.py`, 2026-11-24.
SOURCED_ENCODER = [
    0.02068067873, 1.010198555, 1.291531535, 1.726455631, 1.558298203, 1.382258621, 1.474168993, 1.515450375,
    1.220125765, 1.472477366, 1.371854314]  # fmt: skip


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
    """The matrix (after, before) that resizes an axis, pixel centres aligned, edges repeated."""
    matrix = torch.zeros(after, before, dtype=torch.float64)
    for i in range(after):
        at = (i + 0.5) * before / after - 0.5
        for tap in range(math.floor(at) - 1, math.floor(at) + 3):
            matrix[i, min(max(tap, 0), before - 1)] += kernel(abs(at - tap))
    return matrix


@pytest.mark.parametrize(("changes", "count"), [
    ({}, 19_408_023), ({"residual": "block"}, 19_602_231), ({"aspp_width": 256}, 21_571_927),
    ({"bottleneck_depth": 1}, 26_501_295), ({"bottleneck_depth": 2}, 33_594_567), ({"skips": "inline"}, 19_278_711),
    (SWIN_UNET, 27_175_716), (SWIN_UNET | {"size": (224, 224), "window": 7}, 27_168_324),
    (SWIN_UNET | {"bottleneck_depth": 1}, 20_082_444), (SWIN_UNET | {"bottleneck_depth": 0}, 12_989_172),
    (SWIN_UNET | {"depths": (2, 2, 6)}, 41_393_028),
])  # fmt: skip
def test_parameter_counts(changes, count):
    with torch.device("meta"):
        assert parameters(SwinUNet(**PAPER | changes)) == count


@pytest.mark.holds("srdad", "6")
def test_parameters_and_shapes_of_all_parts():
    with torch.device("meta"):
        network = SwinUNet(**PAPER).eval()
        seen, out = traced(network, torch.empty(2, 3, 256, 256))
    one, two, three, four = (64, 64, 96), (32, 32, 192), (16, 16, 384), (8, 8, 768)
    rows = [
        ("embed", 4_704, (96, 64, 64)), ("embed_norm", 192, one), ("stages.0", 225_030, one),
        ("merges.0", 74_496, two), ("stages.1", 892_428, two), ("merges.1", 296_448, three),
        ("stages.2", 3_554_328, three), ("merges.2", 1_182_720, four), ("bottleneck", 0, four), ("norm", 1_536, four),
        ("aspp", 4_130_112, (768, 8, 8)),
        ("expands.2", 1_180_416, three), ("decoder.2", 3_554_328 + 147_840, three),
        ("expands.1", 295_296, two), ("decoder.1", 892_428 + 37_056, two),
        ("expands.0", 73_920, one), ("decoder.0", 225_030 + 9_312, one),
        ("gated.0", 27_840, one), ("gated.1", 110_976, two), ("gated.2", 443_136, three), ("gated.3", 1_771_008, four),
        ("align.0", 18_528, (32, 32, 96)), ("align.1", 36_960, (16, 16, 96)), ("align.2", 73_824, (8, 8, 96)),
        ("decoder_norm", 192, one), ("final_expand", 147_648, (256, 256, 96)), ("out", 291, (256, 256, 3)),
    ]  # fmt: skip
    for name, count, shape in rows:
        assert (parameters(network.get_submodule(name)), seen[name][-1].shape) == (count, (2, *shape)), name
    assert sum(count for _, count, _ in rows) == parameters(network) == 19_408_023 and out.shape == (2, 3, 256, 256)
    blocks = [[(block.attn.heads, block.shift) for block in stage.blocks] for stage in
              (*network.stages, *network.decoder)]  # fmt: skip
    assert blocks == [[(heads, (0, 0)), (heads, (4, 4))] for heads in (3, 6, 12)] * 2


def test_bottleneck_has_twice_the_heads_of_the_last_stage():
    with torch.device("meta"):
        network = SwinUNet(**PAPER, bottleneck_depth=2)
    assert [(b.attn.heads, b.size, b.shift) for b in network.bottleneck.blocks] == [(24, (8, 8), (0, 0))] * 2


def test_initialisation():
    torch.manual_seed(0)
    network = SwinUNet(**SMALL | {"width": 48})
    linears = [m for m in network.modules() if isinstance(m, torch.nn.Linear)]
    weights = torch.cat([m.weight.flatten() for m in linears])
    assert abs(weights.std() - 0.02) < 1e-4 and abs(weights.mean()) < 1e-4
    assert all(m.bias.abs().max() == 0 for m in linears if m.bias is not None)
    tables = torch.cat([m.relative_position_bias_table.flatten() for m in network.modules() if hasattr(m, "qkv")])
    assert abs(tables.std() - 0.02) < 1e-3
    norms = [m for m in network.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert all((m.weight == 1).all() and (m.bias == 0).all() and m.eps == 1e-5 for m in norms)


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
    network = golden.fill(SwinUNet(**SMALL | {"skip_levels": skip_levels})).double()
    decoded = golden.hashed("decoded", 2, 16, 32, 12).double()
    maps = [golden.hashed(f"gated {i}", 2, 16 >> i, 32 >> i, 12 << i).double() for i in range(skip_levels)]
    expected = decoded + maps[0]
    for i in range(1, skip_levels):
        aligned = maps[i] @ network.align[i - 1].weight.T + network.align[i - 1].bias
        rows, columns = (resampling(side >> i, side, lambda d: max(0.0, 1 - d)) for side in (16, 32))
        expected = expected + torch.einsum("yi,xj,bijc->byxc", rows, columns, aligned)
    assert len(network.align) == skip_levels - 1 == len(network.gated) - 1
    assert torch.allclose(network.sum_skips(decoded, maps[::-1]), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("skips", "tap"), [("final_sum", "post"), ("inline", "pre"), ("concat", "pre")])
def test_connections(skips, tap):
    """The input of each module, from a trace of the whole network."""
    network = golden.fill(SwinUNet(**SMALL | {"skips": skips}, bottleneck_depth=1, skip_tap=tap))
    seen, out = traced(network, golden.hashed("images", 1, 3, 64, 128))

    enters, leaves = ({name: tensors[i] for name, tensors in seen.items()} for i in (0, -1))
    expected = {"embed_norm": leaves["embed"].permute(0, 2, 3, 1), "stages.0": leaves["embed_norm"],
                **{f"merges.{i}": leaves[f"stages.{i}"] for i in range(3)},
                **{f"stages.{i}": leaves[f"merges.{i - 1}"] for i in (1, 2)},
                "bottleneck": leaves["merges.2"], "norm": leaves["bottleneck"],
                "aspp": leaves["norm"].permute(0, 3, 1, 2), "final_expand": leaves["decoder_norm"],
                "out": leaves["final_expand"]}  # fmt: skip
    encoded = [(leaves if tap == "post" else enters)[f"stages.{i}"] for i in range(3)] + [leaves["norm"]]
    carried = leaves["aspp"].permute(0, 2, 3, 1)
    for level in (3, 2, 1, 0):
        if level < 3:
            expected[f"expands.{level}"], carried = carried, leaves[f"expands.{level}"]
            if skips == "concat":
                expected[f"fuse.{level}"] = torch.cat((carried, encoded[level]), dim=-1)
                carried = leaves[f"fuse.{level}"]
            expected[f"decoder.{level}"], carried = carried, leaves[f"decoder.{level}"]
        if skips != "concat":
            expected[f"gated.{level}"] = encoded[level]
            assert torch.equal(seen[f"gated.{level}"][1], carried)
        if skips == "inline":
            carried = carried + leaves[f"gated.{level}"]
    if skips == "final_sum":
        carried = network.sum_skips(carried, [leaves[f"gated.{level}"] for level in (3, 2, 1, 0)])
    for name, tensor in {**expected, "decoder_norm": carried}.items():
        assert torch.equal(enters[name], tensor), name
    assert torch.equal(out, leaves["out"].permute(0, 3, 1, 2)) and (network.out.bias is None) == (skips == "concat")


ALTERNATIVES = [
    {}, {"skips": "inline"}, {"skips": "concat"}, {"skip_levels": 3}, {"skip_tap": "pre"}, {"gates": "spatial"},
    {"residual": "block"}, {"residual": "none"}, {"bottleneck_depth": 2}, {"aspp_width": 10}, SWIN_UNET,
]  # fmt: skip


@pytest.mark.parametrize("changes", ALTERNATIVES, ids=str)
def test_alternatives_run_differ_and_train_every_parameter(changes):
    images = golden.hashed("images", 2, 3, 64, 128)
    network = golden.fill(SwinUNet(**SMALL | changes)).train()
    out = network(images)
    assert out.shape == images.shape and out.isfinite().all()
    assert torch.equal(out, golden.fill(SwinUNet(**SMALL)).train()(images)) == (changes == {})
    (out - images).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert not [name for name, p in network.named_parameters() if not p.grad.abs().max() > 0]


@pytest.mark.parametrize(("side", "window", "bottleneck", "found"), [
    (32, 8, 0, 32),  # maps of 8, 4, 2, 1
    (64, 8, 0, 64),  # 16, 8, 4, 2
    (96, 8, 0, 128),  # 24, 12
    (128, 8, 2, 128),  # 32, 16, 8, 4
    (192, 8, 0, 256),  # 48, 24, 12
    (256, 8, 2, 256),  # 64, 32, 16, 8
    (224, 7, 2, 224),  # 56, 28, 14, 7
    (112, 7, 0, 224),  # 28, 14, 7, and 3.5
    (448, 7, 2, 448),  # 112, 56, 28, 14
    (384, 8, 0, 384),  # 96, 48, 24, and 12, where no window is needed
    (384, 8, 1, 512),
    (192, 4, 0, 192),  # 48, 24, 12, and 6
    (192, 4, 2, 256),
    (100, 4, 0, 128), (-64, 8, 0, 32), (1, 8, 0, 32), (65, 8, 0, 128), (257, 8, 0, 384), (257, 8, 2, 512),
    (225, 7, 2, 448),
])  # fmt: skip
def test_next_valid_side(side, window, bottleneck, found):
    assert next_valid_side(side, window, bottleneck) == found


def test_valid_sides_are_those_that_the_network_can_be_built_for():
    valid = []
    for side in range(32, 545, 32):
        try:
            with torch.device("meta"):
                SwinUNet(**PAPER | {"size": (side, 256), "width": 12}, depths=(1, 1, 1), bottleneck_depth=1)
            valid.append(side)
        except ValueError:
            pass
    assert valid == [32, 64, 128, 256, 512]
    assert valid == [side for side in range(32, 545, 32) if next_valid_side(side, 8, 1) == side]


def authors_state(width: int, depths: tuple[int, ...], window: int, side: int) -> dict:
    """A state dict with the keys and shapes of Microsoft's files and hashed values."""
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
    network = SwinUNet(**SMALL | {"size": (128, 128), "bottleneck_depth": 2}).eval()
    network.load_swin(authors_state(12, (2, 2, 2, 2), 4, 128))
    seen, _ = traced(network.double(), golden.hashed("images", 2, 3, 128, 128).double())
    assert golden.digest(seen["norm"][-1]) == pytest.approx(SOURCED_ENCODER, rel=1e-8, abs=1e-9)


def test_loading_a_deeper_swin_of_another_window():
    """Its third layer has six blocks, of which two are taken; tables of window 7 become those of window 8."""
    torch.manual_seed(0)
    network = SwinUNet(**SMALL | {"size": (256, 256), "window": 8}, bottleneck_depth=2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = authors_state(12, (2, 2, 6, 2), 7, 224)
    network.load_swin(state)
    after = network.state_dict()
    pairs = {"embed": "patch_embed.proj", "embed_norm": "patch_embed.norm", "merges.0.norm": "layers.0.downsample.norm",
             "stages.0.blocks.1.norm1": "layers.0.blocks.1.norm1", "stages.2.blocks.1.mlp.fc1":
             "layers.2.blocks.1.mlp.fc1", "bottleneck.blocks.1.attn.qkv": "layers.3.blocks.1.attn.qkv",
             "merges.2.reduction": "layers.2.downsample.reduction", "norm": "norm"}  # fmt: skip
    for ours, theirs in pairs.items():
        assert torch.equal(after[f"{ours}.weight"], state[f"{theirs}.weight"]), ours
    assert torch.equal(after["bottleneck.blocks.1.attn.qkv.bias"], state["layers.3.blocks.1.attn.qkv.bias"])
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


@pytest.mark.parametrize(("damage", "words"), [
    ("one key", r": 1 keys are missing, .*'layers\.3\.blocks\.1\.norm2\.weight'"),
    ("shallow", r": 13 keys are missing, .*'layers\.2\.blocks\.1\.norm1\.weight'"),
    ("other", r"'patch_embed\.proj\.weight', 'patch_embed\.proj\.bias', 'patch_embed\.norm\.weight'"),
    ("wide", r"patch_embed\.proj\.weight has shape \(24, 3, 4, 4\), expected \(12, 3, 4, 4\)"),
    ("heads", r"bias_table has shape \(225, 4\), expected \(225, 3\)"),
])  # fmt: skip
def test_checkpoints_that_do_not_fit_are_refused(damage, words):
    network = SwinUNet(**SMALL | {"size": (256, 256), "window": 8}, bottleneck_depth=2)
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


def test_without_a_bottleneck_the_last_layer_is_not_needed():
    network = SwinUNet(**SMALL | {"size": (256, 256), "window": 8})
    state = {key: t for key, t in authors_state(12, (2, 2, 2, 2), 8, 256).items() if not key.startswith("layers.3")}
    network.load_swin(state)
    assert torch.equal(network.norm.bias, state["norm.bias"])
    assert torch.equal(network.stages[2].blocks[0].attn.proj.weight, state["layers.2.blocks.0.attn.proj.weight"])
