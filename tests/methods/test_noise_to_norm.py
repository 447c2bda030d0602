"""Noise-to-norm: network, noise, scores and training against printed, sourced and slow numbers."""

import dataclasses
import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import digest, golden

from adref import options as option_tools
from adref.method import Context, EarlyStop, Sources
from adref.methods.noise_to_norm.loss import ms_ssim_l1
from adref.methods.noise_to_norm.method import Batch, NoiseToNorm, blend, corrupt, draw_noise
from adref.methods.noise_to_norm.network import MNet, ResidualAttention, SelectiveDense, block
from adref.methods.noise_to_norm.options import ABLATIONS, PRESETS, Options
from adref.options import Notice, UserError

LEAST = {"size": (32, 32), "width": 8, "sigmas": (0.5, 1.0, 2.0)}
KINDS = ("full", "min", "conv1x1", "skrdb")
ZERO = SimpleNamespace(integers=lambda _: 0)  # a generator whose first draw is 0


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


def m_net(width: int, levels: int = 4, **changes) -> MNet:
    return MNet(**{"width": width, "levels": levels, "kind": "full", "level0": True, "padding": "zeros", **changes})


def small(**changes) -> NoiseToNorm:
    torch.manual_seed(0)
    return NoiseToNorm(Options(**{**LEAST, **changes}))


def images_of(number: int) -> torch.Tensor:
    return golden.hashed("images", number, 3, 32, 32)


def batch_of(method, number: int = 2) -> Batch:
    pictures = golden.hashed("pictures", number, 3, *method.options.size)
    examples = [corrupt(p, np.random.default_rng(i), method.options, Sources()) for i, p in enumerate(pictures)]
    return Batch(*(torch.stack(fields) for fields in zip(*examples)))


def fill(module: torch.nn.Module, names) -> torch.nn.Module:
    """Fills a module with the hashed weights of the names that another program gives to its parameters, float64."""
    renamed = {names(ours): tensor for ours, tensor in module.state_dict().items()}
    return golden.hash_recipe.fill(SimpleNamespace(state_dict=lambda: renamed, to=module.to))


COUNTS = {32: [2_619_036, 663_836, 533_828, 4_180_729], 48: [5_888_200, 1_490_056, 1_198_660, 9_401_833],
          64: [10_463_796, 2_645_812, 2_128_772, 16_710_105],
          96: [23_534_284, 5_945_932, 4_784_836, 37_588_153]}  # fmt: skip


def test_parameter_counts():
    with torch.device("meta"):
        assert {width: [count(m_net(width, kind=k)) for k in KINDS] for width in COUNTS} == COUNTS
        method = NoiseToNorm(Options())
        m = method.network
        assert count(m_net(8)) == 165_204 and count(method) == 23_534_284
    assert (count(m.stems), count(m.downs), count(m.ups), count(m.skips)) == (2_688, 774_816, 97_440, 1_742_496)
    assert [count(b) for b in m.encoder] == [187_116, 747_480, 2_914_224, 11_505_504]
    assert [count(b) for b in m.decoder] == [205_548, 821_208, 3_282_864]
    assert (count(m.outs[3]), sum(count(o) for o in m.outs[:3])) == (663_648, 580_896)
    assert (count(m.fusion), count(m.last)) == (5_761, 2_595)


def test_trace_of_channels_and_sides():
    with torch.device("meta"):
        network, seen = m_net(64), {}
        for name, module in network.named_modules():
            module.register_forward_hook(lambda _, given, out, n=name: seen.update({n: (given[0], out)}))
        assert network(torch.zeros(1, 3, 256, 256)).shape == (1, 3, 256, 256)
    sides = {"encoder.0": (64, 64, 256), "encoder.1": (128, 128, 128), "encoder.2": (192, 256, 64),
             "encoder.3": (320, 512, 32), "decoder.2": (512, 256, 64), "decoder.1": (256, 128, 128),
             "decoder.0": (128, 64, 256), "downs.0": (256, 64, 128), "ups.2": (128, 256, 64)}  # fmt: skip
    for name, (c_in, c_out, side) in sides.items():
        shapes = [tuple(t.shape) for t in seen[name]]
        assert shapes == [(1, c_in, side, side), (1, c_out, side, side)], name


@pytest.mark.holds("noise_to_norm", "Encoder", "Decoder")
def test_images_are_halved_and_pixels_unshuffled_and_shuffled():
    """With the numbers 0 to 15 as the first map and no block before the way down; a way up written out."""
    network, seen = m_net(4, 2, level0=False), {}
    torch.nn.init.zeros_(network.stems[0].weight), torch.nn.init.zeros_(network.stems[0].bias)
    network.stems[0].weight.data[:, 0, 1, 1] = 1  # passes the first channel on
    for name, module in network.named_modules():
        module.register_forward_hook(lambda _, given, out, n=name: seen.setdefault(n, []).append((given[0], out)))
    x = torch.zeros(1, 3, 4, 4)
    x[0, 0] = torch.arange(16.0).view(4, 4)
    network(x)
    assert torch.equal(seen["stems.0"][0][0], x)
    assert seen["stems.0"][1][0][0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    expected = [[[0, 2], [8, 10]], [[1, 3], [9, 11]], [[4, 6], [12, 14]], [[5, 7], [13, 15]]]
    assert seen["downs.0"][0][0][0].tolist() == expected * 4
    grouped = seen["encoder.1"][0][1][0].view(2, 2, 2, 2, 2)  # channel, dy, dx, y, x
    assert torch.equal(seen["ups.0"][0][0][0], grouped.permute(0, 3, 1, 4, 2).reshape(2, 4, 4))


def names_of_srmnet(key: str) -> str:
    """Returns SRMNet's name of a parameter of MNet(kind="skrdb", levels=4)."""
    part, *rest = key.split(".")
    if part in ("fusion", "last", "stems"):
        return {"fusion": "final_ff.", "last": "last.", "stems": "conv_01."}[part] + ".".join(rest[part == "stems" :])
    level, tail = int(rest[0]), ".".join(rest[1:])
    if part in ("encoder", "decoder"):
        path = f"down_path.{level}.block" if part == "encoder" else f"up_path.{2 - level}.conv_block.block"
        return f"{path}.{names_of_srmnets_block(tail)}"
    if part == "outs":
        return f"bottom_conv.{tail}" if level == 3 else f"conv_up.{2 - level}.0.{tail}"
    place = {"downs": f"down_path.{level}.downsample.conv1", "ups": f"up_path.{2 - level}.up.conv1",
             "skips": f"skip_conv.{2 - level}"}[part]  # fmt: skip
    return f"{place}.{tail}"


def names_of_srmnets_block(key: str) -> str:
    part, *rest = key.split(".")
    if part in ("convolutions", "fusions"):
        return ".".join(("layers", rest[0], {"convolutions": "conv", "fusions": "sk"}[part], *rest[1:]))
    return ".".join(({"shortcut": "identity", "out": "lff"}[part], *rest))


# Sourced: mean, standard deviation and the means of the products with two lists of hashed numbers, of SRMNet(wf=8)
# (FanChiMao/SRMNet, SRMNet.py, commit 1e8ee80), and of the same less its input; torch 2.13.0, float64;
# `PYTHONPATH=tools python tools/sources/noise_to_norm.py`, 2026-11-24.
SRMNET = [0.01002845016, 0.5905574925, 0.004791772224, 0.004328365754]
SRMNET_LESS_INPUT = [0.01179265433, 0.1406752913, 0.007484514032, 0.005788838197]


@pytest.mark.holds("noise_to_norm", "Encoder", "Decoder")
def test_with_srmnets_block_the_network_is_srmnet_without_its_input():
    x = golden.hashed("images", 1, 3, 32, 48).double() * 2 - 1
    out = fill(m_net(8, kind="skrdb"), names_of_srmnet)(x)
    assert digest(out) == pytest.approx(SRMNET_LESS_INPUT, rel=2e-9)
    assert digest(out + x) == pytest.approx(SRMNET, rel=2e-9)


# Sourced: the same four numbers of SRMNet's SK_RDB with three layers (same commit), from 16 channels to so many.
SK_RDB = {16: [-0.04822129601, 0.3263555703, -0.02185995353, -0.03054760012],
          24: [-0.01731993006, 0.3254320764, -0.007535937112, -0.01348247281]}  # fmt: skip


def test_dense_block_is_srmnets():
    x = golden.hashed("map", 1, 16, 6, 10).double() - 0.5
    for width, expected in SK_RDB.items():
        module = fill(SelectiveDense(16, width, reduction=8, padding="zeros"), names_of_srmnets_block)
        assert digest(module(x)) == pytest.approx(expected, rel=2e-9)


@pytest.mark.parametrize("convolutions", [True, False])
@pytest.mark.holds("noise_to_norm", "Residual attention")
def test_residual_attention_written_out(convolutions):
    torch.manual_seed(0)
    module = ResidualAttention(6, 16, reduction=2, convolutions=convolutions, padding="zeros").double()
    x = torch.rand(2, 6, 5, 7).double()
    v = module.body[0](x)
    v = module.body[3](F.relu(module.body[1](v))) if convolutions else v
    inner = F.relu(module.attention[1](v.mean(dim=(2, 3), keepdim=True)))
    assert inner.shape[1] == 8
    assert torch.allclose(module(x), module.shortcut(x) + module.attention[3](inner).sigmoid() * v, atol=1e-12)


def test_the_four_blocks():
    counts = {"full": 187_116, "conv1x1": 9_312, "skrdb": 278_115}  # 96 to 96, the last as SRMNet's
    assert {kind: count(block(kind, 96, 96, padding="zeros")) for kind in counts} == counts
    torch.manual_seed(0)
    for kind in KINDS:
        zeros, reflect, x = (*(block(kind, 4, 8, padding=p) for p in ("zeros", "reflect")), torch.ones(1, 4, 9, 9))
        reflect.load_state_dict(zeros.state_dict())
        edge, none = ((m(x)[0] - m(x)[0, :, :1, :1]).abs().max() for m in (zeros, reflect))
        assert none < 1e-5 and (edge > 1e-3) == (kind in ("full", "skrdb"))  # mirrored, a flat image stays flat


def test_noise_is_a_frozen_stream():
    noise = draw_noise(ZERO, (3, 256, 256)).double()
    assert noise.flatten()[:4].tolist() == pytest.approx([1.38202617, 0.70007860, 0.98936899, 1.62044660], abs=1e-7)
    assert noise.mean().item() == pytest.approx(0.50174802, abs=1e-7)
    assert noise.std(correction=0).item() == pytest.approx(0.49905483, abs=1e-7)
    half = F.interpolate(noise[None], scale_factor=0.5, mode="bilinear")
    quarter = F.interpolate(half, scale_factor=0.5, mode="bilinear")
    assert [half.std().item(), quarter.std().item()] == pytest.approx([0.25000355, 0.12477458], abs=1e-7)


@pytest.mark.parametrize("domain", ["normalised", "pixel"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.3, 0.4])
@pytest.mark.holds("noise_to_norm", "1", "Table of noise shares")
def test_gain_bias_and_deviation_of_the_noise(share, domain):
    """In [-1, 1]: gain 1 - lambda; bias and deviation lambda / 2, or 0 and lambda."""
    options = option_tools.build(Options, PRESETS, ABLATIONS, "paper", f"lambda-{share:g}", {"noise_domain": domain})
    assert options == Options(noise_share=share, noise_domain=domain)
    clean, noise = golden.hashed("clean", 3, 256, 256), draw_noise(ZERO, (3, 256, 256))
    mixed = blend(clean, noise, options)
    added = 2 * mixed - 1 - (1 - share) * (2 * clean - 1)
    assert torch.allclose(added, share * (noise if domain == "normalised" else 2 * noise - 1), atol=1e-6)
    bias, deviation = (share / 2, share / 2) if domain == "normalised" else (0.0, share)
    assert [added.mean().item(), added.std().item()] == pytest.approx([bias, deviation], abs=0.002)
    assert share > 0 or torch.equal(mixed, clean)


def test_training_noise_is_fresh_and_not_clipped():
    clean = torch.ones(3, 32, 32)
    first, second, again = (corrupt(clean, np.random.default_rng(i), Options(), Sources()) for i in (0, 1, 0))
    assert torch.equal(first.corrupted, again.corrupted) and not torch.equal(first.corrupted, second.corrupted)
    assert torch.equal(first.clean, clean) and first.corrupted.max() > 1


@pytest.mark.holds("noise_to_norm", "Table 5")
def test_row_of_table_5():
    """Every block is one 1x1 convolution: no gate, no pooling."""
    options = option_tools.build(Options, PRESETS, ABLATIONS, "paper", "no-attention", {})
    with torch.device("meta"):
        network = NoiseToNorm(options).network
    assert options == Options(block="conv1x1") and count(network) == 4_784_836
    assert {(type(block), block.kernel_size) for block in [*network.encoder, *network.decoder]} == {
        (torch.nn.Conv2d, (1, 1))
    }


def context(*seeds: int) -> Context:
    return Context(rngs=[np.random.default_rng(seed) for seed in seeds])


def test_scores_depend_on_neither_batch_nor_order():
    method, images = small().eval(), images_of(3)
    with torch.inference_mode():
        scores, maps = method.score(images, context(5, 6, 7))
        flipped, _ = method.score(images.flip(0), context(7, 6, 5))
        alone = [method.score(images[i : i + 1], context(5 + i))[1] for i in range(3)]
    assert torch.allclose(flipped.flip(0), scores, atol=1e-6) and torch.allclose(torch.cat(alone), maps, atol=1e-6)
    assert torch.equal(scores, maps.amax(dim=(1, 2, 3)))


@pytest.mark.holds("noise_to_norm", "8", "9")
def test_the_map_is_the_loss_of_each_pixel():
    """Several draws: the map of the mean reconstruction; the map may have another share of MS-SSIM than the loss."""
    images = images_of(1)
    for repeats, changes in ((1, {}), (3, {"map_alpha": 0.3})):
        method, rng = small(noise_repeats=repeats, **changes).eval(), np.random.default_rng(4)
        draws = [method(corrupt(images[0], rng, method.options, Sources()).corrupted[None]) for _ in range(repeats)]
        mean = sum(draws) / repeats
        similarity, error = ms_ssim_l1(mean, images, sigmas=method.options.sigmas, constants=(0.01, 0.03))
        alpha = changes.get("map_alpha", 0.84)
        expected = alpha * (1 - similarity) + (1 - alpha) * error
        assert torch.allclose(method.anomaly_map(images, context(4)), expected, atol=1e-6)
        shown = method.figures(images, context(4))["reconstruction"]
        assert torch.allclose(shown, mean.clamp(0, 1)[0], atol=1e-6)
    assert not torch.equal(draws[0], draws[1]) and method.figures() == {}
    method = small(noise_share=0.0, noise_repeats=3)
    assert torch.equal(method.reconstruct(images, None), method(images))


def test_sides_and_streams():
    """Without streams every image gets the same noise."""
    method = small()
    (one, same), (first, second) = (
        method.anomaly_map(images_of(1).repeat(2, 1, 1, 1), *c) for c in ([], [context(1, 2)])
    )
    assert torch.equal(one, same) and not torch.allclose(first, second, atol=1e-6)
    assert method.anomaly_map(torch.rand(1, 3, 40, 64)).shape == (1, 1, 40, 64)
    for wrong in (torch.rand(1, 3, 36, 64), 2 * torch.ones(1, 3, 32, 32), torch.full((1, 3, 32, 32), math.nan)):
        with pytest.raises(ValueError, match="expected"):
            method.anomaly_map(wrong)
    with pytest.raises(ValueError, match="expected one stream for each of 2 images"):
        method.anomaly_map(torch.rand(2, 3, 32, 32), context(1))


@pytest.mark.parametrize(("which", "constants"), [("printed", (0.01, 0.03)), ("squared", (0.01**2, 0.03**2))])
@pytest.mark.holds("noise_to_norm", "8", "9")
def test_loss_is_the_sum_of_its_terms(which, constants):
    """Also where v leaves [0, 1]."""
    method = small(ssim_constants=which)
    batch = batch_of(method)
    with torch.no_grad():
        method.network.last.bias.fill_(5.0)
        terms, rebuilt = method.loss(batch), method(batch.corrupted)
        similarity, error = ms_ssim_l1(rebuilt, batch.clean, sigmas=method.options.sigmas, constants=constants)
        with torch.autocast("cpu", torch.bfloat16):
            half = [method(batch.corrupted), *method.loss(batch).values()]
    assert rebuilt.min() > 1 and all(term.dtype == torch.float32 for term in half)
    assert terms["ms_ssim"].item() == pytest.approx(0.84 * (1 - similarity.mean().item()), abs=1e-6)
    assert terms["l1"].item() == pytest.approx(0.16 * error.mean().item(), rel=1e-5)
    assert terms["total"].item() == pytest.approx(terms["ms_ssim"].item() + terms["l1"].item(), abs=1e-6)


def rates(options: Options, epochs: int = 200) -> list[float]:
    optimizer, schedule = NoiseToNorm(options).optimizer()
    found = []
    for _ in range(epochs + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


# Sourced: CosineAnnealingLR of torch 2.13.0; `PYTHONPATH=tools python tools/sources/noise_to_norm.py`, 2026-11-24.
SCHEDULE = {0: 1e-4, 25: 8.550178567e-5, 50: 5.05e-5, 75: 1.549821433e-5, 100: 1e-6, 150: 5.05e-5, 200: 1e-4}


def test_the_rate_falls_and_rises_again():
    options = Options(width=4, levels=2)
    found = rates(options)
    assert {epoch: found[epoch] for epoch in SCHEDULE} == pytest.approx(SCHEDULE, rel=1e-6)
    held = rates(dataclasses.replace(options, hold_after_cosine=True))
    assert held[:101] == pytest.approx(found[:101]) and set(held[100:]) == {held[100]}
    steps = rates(dataclasses.replace(options, steps=1000), 400)  # the paper's 500 epochs have two of them each
    assert steps[::2] == pytest.approx(found) and steps[1] != steps[0]
    optimizer, _ = NoiseToNorm(options).optimizer()
    assert type(optimizer) is torch.optim.AdamW
    assert [optimizer.defaults[k] for k in ("betas", "weight_decay")] == [(0.5, 0.999), 0.01]


def test_the_literal_rate_is_constant_and_says_so():
    options = option_tools.build(Options, PRESETS, ABLATIONS, "paper", "literal", {"width": 4, "levels": 2})
    with pytest.warns(Notice, match="does not fall"):
        assert rates(options) == pytest.approx([1e-6] * 201)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small().optimizer()


def test_early_stopping():
    stops = [small(**o).stages[0].early_stop for o in ({}, {"monitor": "train"}, {"patience": None})]
    assert stops == [EarlyStop(20, 0.2), EarlyStop(20, 0.0), None]


@pytest.mark.slow
def test_a_disc_is_learned():
    """With squared constants the loss begins near 0.80 and ends between 0.07 and 0.12, depending on the seed."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    disc = (0.2 + 0.6 * ((y - 30) ** 2 + (x - 34) ** 2 < 300).float()).expand(3, -1, -1)
    options = Options(size=(64, 64), width=8, learning_rate=1e-3, ssim_constants="squared")
    torch.manual_seed(0)
    method = NoiseToNorm(options)
    optimizer, _ = method.optimizer()
    losses = []
    for step in range(300):
        example = corrupt(disc, np.random.default_rng(step), options, Sources())
        optimizer.zero_grad()
        loss = method.loss(Batch(*(field[None] for field in example)))["total"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(0.80, abs=0.08) and losses[-1] < 0.20


def test_options_that_cannot_work_are_refused():
    for words, changes in {
        "--size: 4 levels need multiples of 8; height 100, 104 would do": {"size": (100, 64)},
        "--size: height 16 is not above 16": {"size": (16, 64)},
        "--sigmas takes numbers in ascending order": {"sigmas": (2.0, 1.0)},
        "--sigmas.*none": {"sigmas": ()},
        "--width takes an even number": {"width": 5},
        "--size: --padding reflect needs two pixels": {"size": (32, 32), "levels": 6, "padding": "reflect"},
    }.items():
        with pytest.raises(UserError, match=words), torch.device("meta"):
            NoiseToNorm(Options(**changes))
