"""Channel cross attention: UCTransNet's numbers, a slow loop, identities, parameter counts."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import golden
from figures import figures, fill_by, parameters

from adref.layers.channel_cross_attention import CrossAttentionLayer, CrossFusion

PAPER = (40, 80, 160, 320)
SMALL = (6, 8, 10, 12)
PATCHES = (16, 8, 4, 2)
CODE = {"heads": 4, "attention": "channel", "scale": "sum", "instance_norm": True, "residual": "official",
        "output": True, "bias": False}  # fmt: skip
READINGS = [  # each value meets each other value of another reading at least once
    {},
    {"residual": "eq14"},
    {"scale": "own", "instance_norm": False},
    {"attention": "token", "residual": "eq14"},
    {"attention": "token", "scale": "own", "instance_norm": False, "residual": "eq14", "output": False},
    {"output": False, "bias": True},
]

# Sourced: mean, standard deviation and two hash-weighted means of the four outputs of UCTransNet's ChannelTransformer
# (nets/CTrans.py, stored commit 4cf4b3c; torch 2.13.0, float64);
# `PYTHONPATH=tools python tools/sources/attention.py nets/CTrans.py`, 2026-11-24.
SOURCED = [
    [1.485713476, 0.7736406561, 0.7434788012, 0.7408078444],
    [0.7531524032, 0.4654763953, 0.377040238, 0.3778541688],
    [0.8646067663, 0.6159907767, 0.4293653718, 0.4297368649],
    [0.9237607134, 0.7599525087, 0.4624461122, 0.4719788608],
]


def layer_of(widths, **changes) -> CrossAttentionLayer:
    return CrossAttentionLayer(**{"widths": widths, "dropout": 0.1, **CODE, **changes})


def fusion_of(size, widths, **changes) -> CrossFusion:
    form = {"patches": PATCHES, "layers": 4, "add_input": True, "dropout": 0.1, **CODE}
    return CrossFusion(size=size, widths=widths, **{**form, **changes})


def tokens_of(widths, count: int, images: int = 1) -> list[torch.Tensor]:
    """T_i, (images, count, C_i), float32, about 0."""
    return [4 * golden.hashed(f"tokens {i}", images, count, c) - 2 for i, c in enumerate(widths)]


def maps_of(widths, size, images: int = 2) -> list[torch.Tensor]:
    """X_i, (images, C_i, H / 2^i, W / 2^i), float64, about 0."""
    shapes = [(images, c, size[0] // 2**i, size[1] // 2**i) for i, c in enumerate(widths)]
    return [golden.hashed(f"map {i}", *shape).double() - 0.5 for i, shape in enumerate(shapes)]


def gelu(x: float) -> float:
    return x * (1 + math.erf(x / 2**0.5)) / 2


def slow(layer: CrossAttentionLayer, scales, attention, scale, instance_norm, residual, output, bias):
    """Equations 11 to 14 for each image, scale and head, one score and one sum at a time."""
    state = {name: tensor.numpy() for name, tensor in layer.state_dict().items()}
    widths, total = [t.shape[-1] for t in scales], sum(t.shape[-1] for t in scales)

    def norm(x, name):
        centred = x - x.mean(1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(1, keepdims=True) + 1e-6)
        return centred / deviation * state[f"{name}.weight"] + state[f"{name}.bias"]

    def mlp(x, i):
        hidden = x @ state[f"mlps.{i}.fc1.weight"].T + state[f"mlps.{i}.fc1.bias"]
        return np.vectorize(gelu)(hidden) @ state[f"mlps.{i}.fc2.weight"].T + state[f"mlps.{i}.fc2.bias"]

    results = [np.zeros((*t.shape[:2], d)) for t, d in zip(scales, layer.widths)]
    for image in range(len(scales[0])):
        every = [t[image].numpy() for t in scales]
        count, joined = len(every[0]), norm(np.concatenate(every, axis=1), "norm_all")
        for i, tokens in enumerate(every):
            narrow = total // len(widths) if attention == "token" else widths[i]
            wide = narrow if attention == "token" else total
            divisor = math.sqrt(total if scale == "sum" else narrow)
            attended, mean = np.zeros((count, narrow)), np.zeros((count, narrow))
            for n in range(layer.heads):
                own, shared = slice(n * narrow, (n + 1) * narrow), slice(n * wide, (n + 1) * wide)
                q = norm(tokens, f"norms.{i}") @ state[f"queries.{i}.weight"][own].T
                k, v = joined @ state["key.weight"][shared].T, joined @ state["value.weight"][shared].T
                if bias:
                    q = q + state[f"queries.{i}.bias"][own]
                    k, v = k + state["key.bias"][shared], v + state["value.bias"][shared]
                a = np.zeros((narrow, total) if attention == "channel" else (count, count))
                for j, m in np.ndindex(a.shape):
                    pairs = zip(q[:, j], k[:, m]) if attention == "channel" else zip(q[j], k[m])
                    a[j, m] = sum(x * y for x, y in pairs) / divisor
                if instance_norm:
                    a = (a - a.mean()) / math.sqrt(((a - a.mean()) ** 2).mean() + 1e-5)
                for row in a:
                    row[:] = [math.exp(x) for x in row]
                    row /= row.sum()
                for p, j in np.ndindex(attended.shape):
                    pairs = zip(a[j], v[p]) if attention == "channel" else zip(a[p], v[:, j])
                    attended[p, j] += sum(x * y for x, y in pairs) / layer.heads
                mean += q / layer.heads
            out = attended @ state[f"outs.{i}.weight"].T if output else attended
            if residual == "official":
                between = tokens + out
                results[i][image] = between + mlp(norm(between, f"mlp_norms.{i}"), i)
            else:
                results[i][image] = out + mlp(norm(mean + out, f"mlp_norms.{i}"), i)
    return results


@pytest.mark.parametrize("changes", READINGS, ids=str)
@pytest.mark.holds("srdad", "11", "12", "13", "14")
def test_layer_against_a_slow_loop(changes):
    layer = golden.fill(layer_of((2, 3, 5), heads=3, **changes)).double()
    tokens = [t.double() for t in tokens_of((2, 3, 5), 4, 2)]
    form = {name: value for name, value in {**CODE, **changes}.items() if name != "heads"}
    with torch.inference_mode():
        outputs = layer(tokens)
    tolerance = 2e-6 if form["instance_norm"] else 1e-12  # the norm of the scores is taken in float32
    for output, other in zip(outputs, slow(layer, tokens, **form)):
        assert np.abs(output.numpy() - other).max() < tolerance and np.abs(other).max() > 0.5


def authors_names(ours: str, heads: int) -> list[str]:
    """The parameters of UCTransNet that make up one of a CrossFusion, one below the other."""
    part, *rest = ours.split(".")
    if part == "layers":
        number, part, *rest = rest
        prefix, kind = f"encoder.layer.{number}.", rest[-1]
        if part in ("queries", "key", "value"):
            name = f"query{int(rest[0]) + 1}" if part == "queries" else part
            return [f"{prefix}channel_attn.{name}.{n}.weight" for n in range(heads)]
        if part == "norm_all":
            return [f"{prefix}attn_norm.{kind}"]
        stem = {"norms": "attn_norm", "outs": "channel_attn.out", "mlp_norms": "ffn_norm", "mlps": "ffn"}[part]
        return [f"{prefix}{stem}{int(rest[0]) + 1}.{'.'.join(rest[1:])}"]
    scale = int(rest[0]) + 1
    return [{
        "embeds": f"embeddings_{scale}.patch_embeddings.{rest[-1]}",
        "positions": f"embeddings_{scale}.position_embeddings",
        "norms": f"encoder.encoder_norm{scale}.{rest[-1]}",
        "rebuilds": f"reconstruct_{scale}.{'norm' if '1' in rest[1:] else 'conv'}.{rest[-1]}",
    }[part]]  # fmt: skip


@pytest.mark.holds("srdad", "11", "12", "13", "14", "Tokens")
def test_fusion_against_uctransnet():
    """Two layers of four heads, on 64 x 64."""
    widths = (3, 4, 6, 8)
    fusion = fusion_of((64, 64), widths, layers=2)
    fill_by({name: authors_names(name, 4) for name in fusion.state_dict()}, fusion)
    maps = [golden.hashed(f"map {i}", 2, c, 64 // 2**i, 64 // 2**i).double() for i, c in enumerate(widths)]
    with torch.inference_mode():
        outputs = fusion.double().eval()(maps)
    for output, sourced in zip(outputs, SOURCED):
        assert figures(output) == pytest.approx(sourced, rel=1e-7)  # the norm of the scores is taken in float32


@pytest.mark.parametrize(("widths", "heads"), [(PAPER, 4), ((4, 6, 10), 3)])
def test_parameters_of_a_layer(widths, heads):
    total, squares = sum(widths), sum(c * c for c in widths)
    attention = heads * (squares + 2 * total * total)
    rest = squares + 6 * total + 8 * squares + 5 * total  # output linears, norms, MLPs
    with torch.device("meta"):
        assert parameters(layer_of(widths, heads=heads)) == attention + rest
        counted = layer_of(widths, heads=heads, output=False, bias=True)
        assert parameters(counted) == attention + rest - squares + heads * 3 * total
        d, n = total // len(widths), len(widths)  # of tokens: width of queries, keys, values and results
        tokens = heads * 3 * total * d + 4 * total + n * (2 * d + 8 * d * d + 5 * d)
        assert parameters(layer_of(widths, heads=heads, attention="token", output=False)) == tokens


def test_parameters_at_width_40():
    with torch.device("meta"):
        fusion = fusion_of((256, 256), PAPER)
        assert [parameters(layer) for layer in fusion.layers] == [4_654_600] * 4
        assert parameters(fusion.embeds) == 1_639_000 and sum(p.numel() for p in fusion.positions) == 153_600
        assert parameters(fusion.norms) == 1_200 and parameters(fusion.rebuilds) == 137_800
        assert parameters(fusion) == 20_550_000
        assert parameters(fusion_of((256, 256), (64, 128, 256, 512))) == 52_431_744  # CTrans of UCTransNet


def late(fusion: CrossFusion, maps: list[torch.Tensor]) -> list[torch.Tensor]:
    """The order of UCTransNet: tokens are copied to their pixels first, then convolved and normed."""
    tokens, outputs = [], []
    for embed, position, x in zip(fusion.embeds, fusion.positions, maps):
        tokens.append(embed(x).flatten(2).transpose(1, 2) + position)
    for layer in fusion.layers:
        tokens = layer(tokens)
    for i, x in enumerate(maps):
        p, grid = fusion.patches[i], fusion.norms[i](tokens[i]).transpose(1, 2)
        grid = grid.reshape(*grid.shape[:2], x.shape[2] // p, x.shape[3] // p)
        pixels = grid.repeat_interleave(p, 2).repeat_interleave(p, 3)
        outputs.append(fusion.rebuilds[i](pixels) + x)
    return outputs


def test_convolution_and_copying_of_pixels_commute():
    """Outputs and gradients, also where batch norm takes its statistics from the batch: a copied pixel has the same
    mean and biased variance. Only the running variance sees n / (n - 1), with n counted in tokens, not in pixels."""
    size = (64, 128)
    fusion = golden.fill(fusion_of(size, SMALL, layers=1, dropout=0.0, instance_norm=False)).double().train()
    twin, maps = copy.deepcopy(fusion), maps_of(SMALL, size)
    before = [rebuild[1].running_var.clone() for rebuild in fusion.rebuilds]
    weights = [golden.hashed(f"gradient {i}", *x.shape).double() - 0.5 for i, x in enumerate(maps)]
    results = []
    for network, forward in ((fusion, fusion), (twin, lambda x: late(twin, x))):
        outputs = forward(maps)
        sum((output * weight).sum() for output, weight in zip(outputs, weights)).backward()
        results.append((outputs, [p.grad for p in network.parameters()]))
    for first, second in zip(*results):
        for a, b in zip(first, second):
            assert (a - b).abs().max() < 1e-10 * max(1, b.abs().max().item())
    n = 2 * 32  # two images of 4 x 8 tokens
    for old, rebuild, other, p in zip(before, fusion.rebuilds, twin.rebuilds, PATCHES):
        assert torch.allclose(rebuild[1].running_mean, other[1].running_mean, atol=1e-12)
        ours, theirs = (module[1].running_var - 0.9 * old for module in (rebuild, other))
        factor = (n / (n - 1)) / (n * p * p / (n * p * p - 1))
        assert torch.allclose(ours / theirs, torch.full_like(old, factor), rtol=1e-9) and factor > 1.01


def test_add_input():
    maps, form = maps_of(SMALL, (64, 128)), {"size": (64, 128), "widths": SMALL, "layers": 1}
    added, plain = (golden.fill(fusion_of(**form, add_input=add)).double()(maps) for add in (True, False))
    for a, b, x in zip(added, plain, maps):
        assert torch.equal(a, b + x) and b.min() == 0 and b.max() > 0.1  # b comes out of a ReLU


def test_dropout_in_training_only(monkeypatch):
    """On the tokens once and on the attention matrices of each layer, at its rate."""
    calls, dropout = [], F.dropout

    def recorder(x, p=0.5, training=True, inplace=False):
        calls.append((tuple(x.shape), p, training))
        return dropout(x, p, training, inplace)

    monkeypatch.setattr(F, "dropout", recorder)
    size = (32, 64)
    fusion, maps = golden.fill(fusion_of(size, SMALL, layers=2, dropout=0.3)).double(), maps_of(SMALL, size)
    assert all(torch.equal(a, b) for a, b in zip(fusion(maps), fusion(maps)))
    assert len(calls) == 24 and not any(training for *_, training in calls)
    calls.clear()
    fusion.train()
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(fusion(maps), fusion(maps)))
    shapes = [(2, 8, c) for c in SMALL] + [(2, 4, c, 36) for c in SMALL] * 2
    assert calls == [(shape, 0.3, True) for shape in shapes] * 2


@pytest.mark.parametrize(
    ("size", "patches"),
    [((64, 64), (16, 8, 4, 4)), ((64, 64), (16, 8, 4)), ((64, 60), PATCHES), ((64, 64), (128, 64, 32, 16))],
)
def test_patches_that_do_not_fit_are_refused(size, patches):
    with pytest.raises(ValueError, match="expected 4 patches"):
        fusion_of(size, SMALL, patches=patches)


@pytest.mark.parametrize("changes", [READINGS[0], {**READINGS[4], "add_input": False}], ids=("code", "text"))
def test_gradients_reach_every_parameter(changes):
    size = (32, 64)
    fusion, maps = golden.fill(fusion_of(size, SMALL, layers=2, **changes)), maps_of(SMALL, size)
    outputs = fusion([x.float().requires_grad_() for x in maps])
    sum((golden.hashed(f"gradient {i}", *o.shape) * o).sum() for i, o in enumerate(outputs)).backward()
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 1e-5, name
