"""RealNet: sizes, equations, AFS, RRS, training, tables of the article, commands."""

import dataclasses
import json
import math
import re
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import at_step, golden, interrupt, picture, rows_of, write_category
from PIL import Image
from torch import nn

from adref import load
from adref import options as option_tools
from adref.data.examples import random_stream
from adref.method import Sources
from adref.methods.realnet import anomalies
from adref.methods.realnet.anomalies import blend, to_bytes
from adref.methods.realnet.foreground import RULES, Rule, foreground_rule
from adref.methods.realnet.method import Batch, RealNet, corrupt
from adref.methods.realnet.networks import Discriminator, FeatureUNet, SimpleNetwork, enlarge
from adref.methods.realnet.options import ABLATIONS, PRESETS, Options
from adref.methods.realnet.selection import ResidualSelection, afs_losses, select
from adref.ops.texture_anomaly import draw_mask
from adref.options import Notice, UserError
from adref.synthesize import main as synthesize
from adref.train import main as train

LEAST = {"size": (128, 128), "backbone": "mobilenet_v2", "widths": (16, 16, 32, 16), "groups": 4, "afs_batches": 2,
         "batch_size": 2, "anomaly_sources": ("textures",), "perlin_exponents": (2, 3), "score_window": 8,
         "learning_rate": 1e-3}  # fmt: skip
FLAGS = {"--size": "128,128", "--backbone": "mobilenet_v2", "--widths": "16,16,32,16", "--groups": 4,
         "--afs-batches": 2, "--batch-size": 2, "--anomaly-sources": "textures,cut_paste"}  # fmt: skip
TRAIN = {"--workers": 0, "--device": "cpu", "--backbone-weights": "random", "--epochs": 2}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def on_meta(**changes) -> RealNet:
    with torch.device("meta"):
        return RealNet(Options(**changes))


def small(**changes) -> RealNet:
    torch.manual_seed(0)
    return RealNet(Options(**{**LEAST, **changes}))


def pictures(number: int, size=(128, 128)) -> list[torch.Tensor]:
    return [torch.from_numpy(picture(i, *size)).permute(2, 0, 1).contiguous() for i in range(number)]


def sources_of(options: Options, number: int = 6) -> Sources:
    images = pictures(number, options.size)
    textures = (255 * golden.hashed("textures", 4, 3, *options.size)).byte()
    return Sources(
        images=images, categories=["part"] * number, anomalies={"part": [255 - image for image in images[:3]]},
        textures=textures, statistics={"part": foreground_rule(images, "part", options)},
    )  # fmt: skip


def anomalous(image: torch.Tensor, seed, options: Options, sources: Sources, index: int = 0) -> Batch:
    rng, given = np.random.default_rng(seed), sources._replace(index=index)
    return corrupt(image, rng, options, given, options.anomaly_sources, probability=1.0)


def batch_of(method: RealNet, number: int = 2) -> Batch:
    sources = sources_of(method.options)
    examples = [anomalous(sources.images[i].float() / 255, i, method.options, sources, i) for i in range(number)]
    return Batch(*(torch.stack(fields) for fields in zip(*examples)))


def stream(purpose: str, *key: int) -> np.random.Generator:
    return random_stream(0, purpose, *key)


@pytest.mark.holds("realnet", "Table of widths")
def test_parameter_counts_of_parts():
    with torch.device("meta"):
        numbers = {64: 3_250_944, 128: 12_975_616, 256: 51_846_144, 512: 207_271_936, 768: 466_277_376}
        assert {m: count(FeatureUNet(m, groups=32)) for m in numbers} == numbers
        simple = [count(SimpleNetwork(c, depth=12)) for c in (24, 32, 56, 160)]
        assert simple == [815_328, 1_449_344, 4_438_112, 36_225_920]
        judges = {n: Discriminator(n, size=(256, 256), side=3) for n in (512, 256, 192, 136, 1536)}
    assert [*map(count, judges.values())] == [5_872_662, 1_645_590, 998_422, 566_550, 48_995_350]
    d = judges[512]
    assert (count(d.units) + count(d.reduce[:3]), count(d.reduce[3:]), count(d.out)) == (5_833_088, 39_208, 366)
    half, r34, tiny = (on_meta(**PRESETS[name]) for name in ("half", "resnet34", "tiny"))
    assert [(m.rrs.by_max, m.rrs.by_mean) for m in (half, r34, tiny)] == [(128, 128), (96, 96), (32, 32)]
    assert (count(r34.networks), count(r34.discriminator), count(r34)) == (81_048_320, 998_422, 103_331_414)
    b4 = on_meta(**PRESETS["b4"])
    assert (count(b4.networks), count(b4.discriminator), count(b4)) == (42_928_704, 566_550, 60_237_470)
    assert count(on_meta(backbone="resnet34", widths=(64, 128, 256, 256)).networks) == 119_918_848


def test_a_slope_lets_the_gradient_pass_where_all_last_channels_are_below_0():
    for slope, passes in ((0.0, False), (0.1, True)):
        judge = golden.fill(Discriminator(12, size=(32, 32), side=3, slope=slope))
        judge.out[0].bias.data.fill_(-1e6)
        judge(golden.hashed("residuals", 2, 12, 16, 16)).square().mean().backward()
        assert bool(judge.reduce[0].weight.grad.any()) == passes


def test_untrained_networks_reconstruct_0():
    method = small()
    images = batch_of(method).clean
    features = method.features(images)
    assert all(rebuilt.abs().max() == 0 for rebuilt in method.residuals(features)[0])
    loss = method.loss(Batch(images, images, torch.zeros(2, 1, 128, 128)))["reconstruction"].item()
    assert loss == pytest.approx(sum(phi.square().mean().item() for phi in features), rel=1e-5)


@pytest.mark.holds("realnet", "residuals")
def test_residuals():
    """(phi - G(phi))^2 of every block, the coarser ones enlarged: bilinear, corners aligned, weights written out."""
    method, sizes = golden.fill(small()), ((16, 24), (8, 12), (4, 8), (4, 4))
    features = [2 * golden.hashed(f"phi {k}", 2, width, *size) - 1
                for k, (width, size) in enumerate(zip(method.options.widths, sizes))]  # fmt: skip

    def weights(before, after):
        places = np.arange(after)[:, None] * (before - 1) / (after - 1)
        return np.maximum(0, 1 - np.abs(places - np.arange(before)))

    with torch.no_grad():
        rebuilt, residuals = method.residuals(features)
        again = [network(phi) for network, phi in zip(method.networks, features)]
    assert all(torch.equal(a, b) for a, b in zip(rebuilt, again)) and min(g.std() for g in again) > 0.1
    for phi, g, found in zip(features, again, residuals.split(method.options.widths, dim=1)):
        rows, columns = (weights(a, b) for a, b in zip(phi.shape[2:], sizes[0]))
        squares = (phi.double().numpy() - g.double().numpy()) ** 2
        expected = np.einsum("yi,xj,bcij->bcyx", rows, columns, squares)
        assert np.allclose(found, expected, rtol=1e-5, atol=1e-5 * expected.max())


def test_areas_of_masks():
    """The authors' code: 5.0 % of the pixels, 4.3 % empty, over 1,500 masks."""
    form = {"exponents": (0, 5), "degrees": 90.0, "thresholds": (0.5, 0.5)}
    areas = np.array([draw_mask(random_stream(0, "areas", i), (256, 256), **form).mean() for i in range(2000)])
    assert areas.mean() == pytest.approx(0.050, abs=0.003) and (areas == 0).mean() == pytest.approx(0.043, abs=0.015)


@pytest.mark.holds("realnet", "blending")
def test_blending():
    image, other = torch.full((3, 4, 4), 100 / 255), torch.full((3, 4, 4), 201, dtype=torch.uint8)
    mask = torch.zeros(4, 4)
    mask[:2] = 1
    mixed = blend(image, other, mask, 0.5)
    assert to_bytes(mixed)[0, :, 0].tolist() == [150, 150, 100, 100]  # 150.5 is truncated
    assert to_bytes(blend(image, other, mask, 0.75))[0, 0, 0] == 175  # 175.75, of 25 + 150.75, too
    assert torch.equal(mixed[:, 2:], image[:, 2:]) and to_bytes(blend(image, other, mask, 1.0))[0, 0, 0] == 201
    every = (torch.arange(256).float() / 255).view(1, 16, 16).expand(3, -1, -1)
    assert torch.equal(blend(every, 0 * to_bytes(every), torch.zeros(16, 16), 0.7), every)
    assert torch.equal(blend(every, to_bytes(every), torch.ones(16, 16), 1.0), every)


def test_shares_and_opacities(monkeypatch):
    opacities = {"sdas": [], "textures": []}
    monkeypatch.setattr(anomalies, "blend", lambda image, picture, mask, opacity: seen.append(opacity) or image)
    monkeypatch.setattr(anomalies, "draw_mask", lambda rng, shape, **o: np.ones(shape, np.float32))
    monkeypatch.setattr(anomalies, "draw_texture", lambda rng, *sources, **o: torch.zeros(3, 8, 8))
    options, image = Options(anomaly_sources=tuple(opacities)), torch.zeros(3, 8, 8)
    sources = Sources(categories=["a"], anomalies={"a": [image.byte()]}, statistics={"a": None}, index=0)
    for i in range(10_000):
        notes, seen = [], []
        corrupt(image, np.random.default_rng(i), options, sources._replace(notes=notes))
        for note in notes:
            opacities["sdas" if note["from_sdas"] else "textures"] += seen
    sdas, textures = opacities.values()
    assert [len(sdas) / 1e4, len(textures) / 1e4] == pytest.approx([0.25, 0.25], abs=0.02)
    assert 0.5 <= min(sdas) < 0.51 and 0.99 < max(sdas) <= 1 and np.mean(sdas) == pytest.approx(0.75, abs=0.01)
    assert 0.2 <= min(textures) < 0.21 and np.mean(textures) == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize("kind", ["sdas", "textures", "nsa", "cut_paste", "scar"])
def test_every_source_changes_the_image_under_its_mask_alone(kind):
    options = Options(**{**LEAST, "anomaly_sources": (kind,)})
    sources, found = sources_of(options), 0
    for i in range(6):
        image = sources.images[i].float() / 255
        example, again = (anomalous(image, i, options, sources, i) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(example, again)) and torch.equal(example.clean, image)
        assert example.mask.shape == (1, 128, 128) and set(example.mask.unique().tolist()) <= {0.0, 1.0}
        assert example.corrupted.min() >= 0 and example.corrupted.max() <= 1
        changed = (example.corrupted != image).any(dim=0)
        assert kind == "nsa" or not (changed & (example.mask[0] == 0)).any()  # NSA labels the visible change
        found += bool(changed.any())
    assert found >= 4


def test_anomalies_come_from_the_images_own_category(monkeypatch):
    monkeypatch.setattr(anomalies, "SDAS_OPACITY", (1.0, 1.0))
    options = Options(**{**LEAST, "anomaly_sources": ("sdas",)})
    flat = {name: [torch.full((3, 128, 128), value, dtype=torch.uint8)] for name, value in (("a", 10), ("b", 200))}
    sources = sources_of(options)._replace(categories=["a", "b"] * 3, anomalies=flat, statistics=dict.fromkeys("ab"))
    for i in range(6):
        example = anomalous(sources.images[i].float() / 255, i, options, sources, i)
        assert set(to_bytes(example.corrupted[:, example.mask[0] > 0]).unique().tolist()) <= {(10, 200)[i % 2]}


def test_foreground_confines_masks_and_is_a_rule_a_category():
    def rule_of(kind: str, images=(), category="part") -> Rule | None:
        return foreground_rule(images, category, Options(**LEAST, foreground=kind))

    image, options = torch.zeros(3, 128, 128, dtype=torch.uint8), Options(**LEAST)
    image[:, 30:90, 40:100] = 220  # a bright object on black
    for kind, inside in (("bright", True), ("dark", False), ("auto", True)):
        given = sources_of(options)._replace(statistics={"part": rule_of(kind, [image])})
        found = sum(anomalous(image.float() / 255, i, options, given).mask[0] for i in range(8)) > 0
        assert found.any() and bool(found[32:88, 42:98].any()) == inside
        assert not (found[:28].any() if inside else found[32:88, 42:98].any())
    assert rule_of("auto", [255 - image]).object == "dark"
    with pytest.warns(Notice, match=r"anomalies of screw lie .*: otsu grey dark 6 6 \(--foreground none"):
        assert rule_of("rules", category="screw") == RULES["screw"] == Rule("otsu", "grey", "dark", 6, 6)
    with pytest.warns(Notice, match="anomalies of tile lie .* everywhere"):
        assert rule_of("rules", category="tile") is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rule_of("rules", category="my part") is None and rule_of("none", category="screw") is None


@pytest.mark.holds("realnet", "4")
def test_afs_losses():
    g = torch.arange(16.0).view(1, 1, 4, 4) / 15
    mask = (g >= 0.5).float()
    difference = torch.cat((mask, 2 * mask, 1 - mask, g.sqrt()), dim=1).square()
    losses = afs_losses(difference, mask, align="mask")
    assert losses.tolist() == pytest.approx([5.0e-9, 3.1e-10, 0.99990, 0.0777856], rel=0.02)
    assert losses.argsort().tolist() == [1, 0, 3, 2]
    assert float(afs_losses(torch.zeros(1, 1, 4, 4), mask, align="mask")) == 0.5
    assert select(losses, 2).tolist() == [0, 1] and select(losses, 4).tolist() == [0, 1, 2, 3]
    assert select(torch.tensor([0.3, math.nan, 0.1, 0.3]), 2).tolist() == [0, 2]  # ties: the smaller index
    assert select(torch.tensor([0.3, math.nan, 0.1, 0.3]), 3).tolist() == [0, 1, 2]  # NaN ties with the largest


@pytest.mark.holds("realnet", "4")
def test_afs_normalises_over_the_batch_and_samples_the_masks_top_left_pixels():
    difference = golden.hashed("d", 2, 3, 4, 4) * torch.tensor([1.0, 5.0]).view(2, 1, 1, 1)
    mask = (golden.hashed("m", 2, 1, 16, 16) > 0.5).float()
    d = difference.double()
    low, high = d.amin((0, 2, 3), keepdim=True), d.amax((0, 2, 3), keepdim=True)
    normalised = (d - low) / (high - low + 1e-4)
    large = F.interpolate(normalised, (16, 16), mode="bilinear", align_corners=True)
    for align, expected in (("mask", normalised - mask[:, :, ::4, ::4]), ("feature", large - mask)):
        found = afs_losses(difference, mask, align=align)
        assert found.tolist() == pytest.approx(expected.square().mean((0, 2, 3)).tolist(), rel=1e-5)


def test_afs_averages_its_batches_and_keeps_the_smallest_losses():
    """Two batches of two images each, all anomalous, in the drawn order."""
    method = small()
    sources, order, total = sources_of(method.options), stream("afs order").permutation(6), torch.zeros(24)
    method.prepare(sources, "train", stream)
    for numbers in ((0, 1), (2, 3)):
        examples = [corrupt(sources.images[order[n]].float() / 255, stream("afs", 0, n), method.options,
                            sources._replace(index=int(order[n])), probability=1.0) for n in numbers]  # fmt: skip
        clean, corrupted, mask = (torch.stack(part) for part in zip(*examples))
        assert (mask.sum(dim=(1, 2, 3)) > 0).all()
        a, b = method.backbone(corrupted)[0], method.backbone(clean)[0]
        total += afs_losses((a - b).square(), mask, align="mask") / 2
    assert torch.allclose(method.afs_losses_0, total, rtol=1e-5)
    for k, width in enumerate(method.options.widths):
        indices, losses = getattr(method, f"selected_{k}").tolist(), getattr(method, f"afs_losses_{k}")
        assert indices == sorted(set(indices)) and indices != list(range(width))
        assert losses[indices].max() <= losses[[i for i in range(len(losses)) if i not in indices]].min()


def test_random_selection_and_projection():
    method, other = (small(selection="random", widths=(8, 8, 16, 16)) for _ in range(2))
    method.prepare(sources_of(method.options), "train", stream)
    kept, same = ([getattr(m, f"selected_{k}").tolist() for k in range(4)] for m in (method, other))
    assert kept == same and all(i == sorted(set(i)) for i in kept) and kept[0] != list(range(8))
    image = pictures(1)[0][None] / 255
    pairs = zip(method.features(image), method.backbone(image), kept)
    assert all(torch.equal(phi, layer[:, indices]) for phi, layer, indices in pairs)
    method = small(selection="projection")
    assert not any(p.requires_grad for p in method.projections.parameters())
    phi = method.features(image)[0]
    assert torch.allclose(phi, method.projections[0](method.backbone(image)[0])) and phi.shape[1] == 16


def test_unit_scale_makes_the_mean_square_of_each_layer_1():
    method = small(feature_scale="unit", selection="random", widths=(24, 32, 96, 320))
    sources = sources_of(method.options)
    method.prepare(sources, "train", stream)
    for phi in method.eval().features(torch.stack(list(sources.images)) / 255):
        assert phi.square().mean().item() == pytest.approx(1, rel=1e-4)


@pytest.mark.holds("realnet", "residual selection")
def test_residual_selection():
    b1, b2 = torch.zeros(2, 3, 4, 4), torch.zeros(2, 2, 2, 2)
    b1[0, 0, 0, 0], b1[0, 1], b1[0, 2] = 9, 1.5, 0.1
    b2[0, 0], b2[0, 1, 0, 0] = 2, 4
    b1[1, 0, 1, 1], b1[1, 2], b2[1, 1] = 5, 3, 0.5
    residuals = torch.cat((b1, enlarge(b2, (4, 4))), dim=1).requires_grad_()
    assert residuals[0, 4, 0].tolist() == pytest.approx([4, 2.66667, 1.33333, 0], abs=1e-5)
    chosen, indices = ResidualSelection(5, by_max=2, by_mean=2, normalised=False).eval()(residuals)
    assert indices.tolist() == [[0, 4, 3, 1], [0, 2, 2, 4]]
    for image, row in enumerate(indices.tolist()):
        assert torch.equal(chosen[image], residuals[image, row])
    chosen.sum().backward()
    expected = torch.tensor([[1, 1, 0, 1, 1], [1, 0, 2, 0, 1.0]])
    assert torch.equal(residuals.grad, expected[:, :, None, None].expand(-1, -1, 4, 4))


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.holds("realnet", "residual selection")
def test_ranking_is_that_of_batch_norm(normalised):
    """In training and evaluation; with the gradient through the statistics where they are applied."""
    norm = nn.BatchNorm2d(12, affine=False, momentum=0.9)
    rrs = ResidualSelection(12, by_max=3, by_mean=4, normalised=normalised)
    for step in range(3):
        x = golden.hashed(f"x{step}", 3, 12, 4, 5) * torch.linspace(0.1, 3, 12).view(1, 12, 1, 1)
        x.requires_grad_()
        if step == 2:
            norm.eval(), rrs.eval()
        y, (chosen, indices) = norm(x), rrs(x)
        lists = (y.amax((2, 3)).argsort(1, descending=True)[:, :3], y.mean((2, 3)).argsort(1, descending=True)[:, :4])
        assert torch.equal(indices, torch.cat(lists, 1))
        expected = (y if normalised else x).gather(1, indices[:, :, None, None].expand(-1, -1, 4, 5))
        assert torch.allclose(chosen, expected, atol=1e-5)
        grads = [torch.autograd.grad((part**2).sum(), x, retain_graph=True)[0] for part in (chosen, expected)]
        assert torch.allclose(*grads, atol=1e-4 * float(grads[1].abs().max()))
    assert torch.allclose(rrs.running_mean, norm.running_mean) and torch.allclose(rrs.running_var, norm.running_var)
    x, rrs = torch.linspace(0, 31, 32), ResidualSelection(1, by_max=1, by_mean=0, normalised=normalised)
    rrs(((x - x.mean()) / x.std() * math.sqrt(88) + 15.5).view(2, 1, 4, 4))
    assert float(rrs.running_mean) == pytest.approx(13.95) and float(rrs.running_var) == pytest.approx(79.3, rel=1e-5)


def test_shares_of_the_layers():
    method = small()
    outcome = method(pictures(1)[0][None] / 255)
    shares, place = method.layer_shares(outcome), outcome.indices[0]
    assert outcome.chosen.shape == (1, 26, 32, 32) and len(place) == 26  # of 80 channels
    assert sum(float(share) for share in shares.values()) == pytest.approx(1)
    assert float(shares["layer_3"]) == pytest.approx(float(((place >= 32) & (place < 64)).float().mean()))


@pytest.mark.holds("realnet", "score")
def test_image_score():
    lone = torch.zeros(1, 1, 64, 64)
    lone[0, 0, 30, 30] = 1
    y, x = (t.double() for t in torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij"))
    r = ((y - 32) ** 2 + (x - 32) ** 2).sqrt()
    maps = torch.stack((
        torch.maximum(
            (-((y - 15) ** 2 + (x - 15) ** 2) / 60).exp(), 0.6 * (-((y - 45) ** 2 + (x - 34) ** 2) / 40).exp()),
        (-((r - 11) ** 2) / 20).exp(), 0.3 * (-((y - 50) ** 2 + (x - 10) ** 2) / 200).exp(),
    ))[:, None].float()  # fmt: skip
    method, plain = small(score_window=16), small(score_window=1)
    assert float(method.image_scores(lone)["score"]) == 1 / 256
    assert {name: float(value) for name, value in plain.image_scores(lone).items()} == {"score": 1.0}
    assert method.image_scores(maps)["score"].tolist() == pytest.approx([0.537958, 0.568294, 0.244208], abs=1e-6)
    assert method.image_scores(maps)["max"].tolist() == pytest.approx([1, 1, 0.3], abs=1e-6)


@pytest.mark.holds("realnet", "anomaly map")
def test_map():
    """The anomalous one of two logits, by a sigmoid of their difference; the logits are those of what RRS selects."""
    method, images = golden.fill(small()), torch.stack(pictures(2)).float() / 255
    with torch.no_grad():
        residuals = method.residuals(method.features(images))[1]
        chosen, _ = method.rrs(residuals)
        z, maps = method.discriminator(chosen).double(), method.anomaly_map(images)
    assert chosen.shape[1] == 26 and maps.std() > 1e-3
    assert torch.allclose(maps[:, 0].double(), 1 / (1 + (z[:, 0] - z[:, 1]).exp()), rtol=1e-5)


@pytest.mark.holds("realnet", "5", "6", "anomaly map")
def test_loss_is_equations_5_and_6():
    """In float64: G_k of the corrupted image's features against the clean one's; and cross-entropy."""
    method = golden.fill(small())
    batch = batch_of(method)
    with torch.no_grad():
        terms = method.loss(batch)
        given, target = method.features(batch.corrupted), method.features(batch.clean)
        rebuilt = [network(phi) for network, phi in zip(method.networks, given)]
        z, mask = method(batch.corrupted).logits.double().numpy(), batch.mask[:, 0].numpy() > 0
    assert 0 < mask.mean() < 1 and all(not torch.allclose(a, b, rtol=1e-2) for a, b in zip(given, target))
    reconstruction = sum(((g.double() - phi.double()) ** 2).mean().item() for g, phi in zip(rebuilt, target))
    segmentation = (np.log(np.exp(z[:, 0]) + np.exp(z[:, 1])) - np.where(mask, z[:, 1], z[:, 0])).mean()
    assert terms["reconstruction"].item() == pytest.approx(reconstruction, rel=1e-4)
    assert terms["segmentation"].item() == pytest.approx(segmentation, rel=1e-4)
    assert terms["total"].item() == pytest.approx(reconstruction + segmentation, rel=1e-4)


def test_trained_and_frozen_parts():
    method = small()
    method.prepare(sources_of(method.options), "train", stream)
    batch, before = batch_of(method), {name: t.clone() for name, t in method.state_dict().items()}
    optimizer, _ = method.train().optimizer()
    assert not method.backbone.training and method.discriminator.training
    for _ in range(3):
        optimizer.zero_grad()
        method.loss(batch)["total"].backward()
        optimizer.step()
    moved = {name: not torch.equal(before[name], tensor) for name, tensor in method.state_dict().items()}
    assert not any(moved[n] for n in moved if n.startswith(("backbone", "selected", "afs_losses", "example")))
    for prefix in (*(f"networks.{k}" for k in range(4)), "discriminator"):  # some biases act on nothing
        assert np.mean([moved[n] for n, _ in method.named_parameters() if n.startswith(prefix)]) > 0.9, prefix
    method = golden.fill(small())
    method.train().loss(batch)["segmentation"].backward()  # which trains the reconstruction networks, too
    assert all(p.grad.abs().max() > 0 for p in method.networks[0].out.parameters())


@pytest.mark.slow
def test_training_segments_anomalies():
    """Cross-entropy falls below that of the best constant, about 0.1 nats at this share of pixels."""
    method = small(batch_size=4, learning_rate=3e-3, foreground="none", texture_opacity=(1.0, 1.0))
    sources = sources_of(method.options)
    optimizer, _ = method.train().optimizer()
    seen = []
    for step in range(70):
        examples = [anomalous(sources.images[i].float() / 255, (step, i), method.options, sources, i) for i in range(4)]
        batch = Batch(*(torch.stack(part) for part in zip(*examples)))
        optimizer.zero_grad()
        terms = method.loss(batch)
        terms["total"].backward()
        optimizer.step()
        seen.append((terms["segmentation"].item(), batch.mask.mean().item()))
    losses, shares = np.array(seen).T
    share = shares.mean()
    constant = -(share * math.log(share) + (1 - share) * math.log(1 - share))
    assert losses[-15:].mean() < 0.8 * constant


def row(name: str | None) -> Options:
    return option_tools.build(Options, PRESETS, ABLATIONS, "paper", name, {})


@pytest.mark.parametrize(
    ("name", "selection", "residuals", "passed"),
    [(None, "afs", "max+mean", (256, 256)), ("rdr", "random", "max+mean", (256, 256)),
     ("rlpr", "projection", "max+mean", (256, 256)), ("rdr-no-rrs", "random", "all", None),
     ("rlpr-no-rrs", "projection", "all", None), ("no-rrs", "afs", "all", None), ("rrs-max", "afs", "max", (512, 0)),
     ("rrs-mean", "afs", "mean", (0, 512))],
)  # fmt: skip
@pytest.mark.holds("realnet", "Table of selections")
def test_rows_of_the_table_of_selections(name, selection, residuals, passed):
    """Each differs from the method in nothing else: channels kept of the layers, and selected by RRS of 1536."""
    assert row(name) == dataclasses.replace(Options(), selection=selection, residuals=residuals)
    with torch.device("meta"):
        method = RealNet(row(name))
    assert (method.rrs and (method.rrs.by_max, method.rrs.by_mean)) == passed
    assert count(method.discriminator) == (5_872_662 if passed else 48_995_350)
    pairs = ((256, 256), (512, 512), (1024, 512), (2048, 256)) if selection == "projection" else ()
    assert count(method.projections) == sum(channels * width + width for channels, width in pairs)


@pytest.mark.parametrize(
    ("name", "kind", "field"),
    [(None, "sdas", "anomalies"), ("dtd", "textures", "textures"), ("nsa", "nsa", "images"),
     ("cut-paste", "cut_paste", None)],
)  # fmt: skip
@pytest.mark.holds("realnet", "Table of anomaly sources")
def test_rows_of_the_table_of_anomaly_sources(name, kind, field):
    """Each differs from the method in nothing else, and needs the inputs of its anomalies alone."""
    assert row(name) == dataclasses.replace(Options(), anomaly_sources=(kind,))
    with torch.device("meta"):
        assert set(RealNet(row(name)).needs) == {"backbone", *({field} & {"anomalies", "textures"})}
    options = Options(**{**LEAST, "anomaly_sources": row(name).anomaly_sources})
    every, image = sources_of(options), pictures(1)[0].float() / 255
    alone = Sources(categories=every.categories, statistics=every.statistics)
    given = alone._replace(**{field: getattr(every, field)}) if field else alone
    found = [anomalous(image, i, options, given) for i in range(4)]
    assert sum(bool(batch.mask.any()) and not torch.equal(batch.corrupted, image) for batch in found) >= 2
    if field:
        with pytest.raises(TypeError, match="NoneType"):
            anomalous(image, 0, options, alone)


@pytest.mark.holds("realnet", "Table of strengths")
def test_rows_of_the_table_of_strengths():
    """They differ from the method in the user's images alone."""
    names = [name for name in ABLATIONS if name.startswith("strength-")]
    assert len(names) == 3 and all(row(name) == Options() for name in names)


@pytest.mark.parametrize(
    ("name", "changes", "channels", "networks", "total"),
    [(None, {}, [256, 512, 512, 256], 518_236_160, 590_943_062),
     ("b", {"architecture": "B"}, [1536], 1_864_771_584, 1_937_478_486),
     ("c", {"architecture": "C"}, [768, 768], 932_554_752, 1_005_261_654),
     ("half", {"widths": (128, 256, 256, 128)}, [128, 256, 256, 128], 129_643_520, 198_123_350),
     ("high-resolution", {"size": (512, 512)}, [256, 512, 512, 256], 518_236_160, 590_943_062)],
)  # fmt: skip
@pytest.mark.holds("realnet", "Table of architectures")
def test_rows_of_the_table_of_architectures(name, changes, channels, networks, total):
    """Each differs from the method in nothing else: the channels of each network, and all parameters."""
    assert row(name) == dataclasses.replace(Options(), **changes)
    with torch.device("meta"):
        method = RealNet(row(name))
    assert [network.out[-1].weight.shape[0] for network in method.networks] == channels
    assert (count(method.networks), count(method)) == (networks, total)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"widths": (256, 512, 512)}, "--widths takes four numbers"),
     ({"widths": (512, 512, 512, 256)}, "layer 1 of wide_resnet50_2 has 256 channels; got 512"),
     ({"widths": (256, 512, 512, 200)}, "a multiple of 64 channels"),
     ({"size": (192, 256)}, "--size takes multiples of 128 for wide_resnet50_2, architecture A; got 192,256"),
     ({"anomaly_sources": ()}, "--anomaly-sources takes different ones"),
     ({"anomaly_sources": ("nsa", "nsa")}, "--anomaly-sources takes different ones"),
     ({"texture_opacity": (1.0, 0.5)}, "--texture-opacity takes two numbers in ascending order"),
     ({"score_window": 300}, "--score-window takes up to 256 pixels")],
)  # fmt: skip
def test_options_that_cannot_work_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        on_meta(**changes)


# -- commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two categories, "other" and "part", with a defect each."""
    root = write_category(tmp_path_factory.mktemp("realnet") / "data", train=5, good=2, defects=2)
    (root / "part").rename(root / "other")
    for path in (root / "other").rglob("*.png"):
        if "ground_truth" not in path.parts:
            Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    return write_category(root, train=5, good=2, defects=2)


def call(command, flags: dict) -> int:
    return command(["realnet", *(str(word) for pair in {**FLAGS, **flags}.items() for word in pair)])


@pytest.fixture(scope="module")
def run(root, textures, tmp_path_factory):
    run, flags = tmp_path_factory.mktemp("runs") / "both", {**TRAIN, "--data": root, "--textures": textures}
    assert call(train, {**flags, "--category": "part,other", "--out": run}) == 0
    return run


@pytest.mark.slow
def test_one_model_of_many_categories(run):
    metrics = json.loads((run / "evaluation/metrics.json").read_text())
    assert {"image_auroc_max", "aupro_0.3_realnet", "aupro_0.3", "image_auroc"} <= set(metrics)
    assert set(metrics["by_defect"]) == {"other/spot", "part/spot"} and metrics["by_category"]["part"]["n"] == 4
    scores = {row["path"]: float(row["score"]) for row in rows_of(run / "evaluation/scores.csv")}
    good, bad = ([scores[f"part/test/{kind}/{i:03d}.png"] for i in range(2)] for kind in ("good", "spot"))
    auroc = np.mean([(b > g) + 0.5 * (b == g) for b in bad for g in good])
    assert metrics["by_category"]["part"]["image_auroc"] == pytest.approx(auroc)
    mean = np.mean([metrics["by_category"][name]["aupro_0.3"] for name in ("other", "part")])
    assert metrics["by_category"]["mean of categories"]["aupro_0.3"] == pytest.approx(mean)
    page = (run / "report.html").read_text()
    for words in ("textures 1: corrupted", "cut_paste 2: mask", "the 304 that it drops", "kept by maximum"):
        assert words in page, words
    assert re.search(r"residual of layer 4, \d+ % of the kept", page)


@pytest.mark.slow
def test_a_stopped_run_ends_with_the_same_weights(run, root, textures, tmp_path, monkeypatch):
    at_step(monkeypatch, RealNet, 4, interrupt)
    flags = {**TRAIN, "--data": root, "--textures": textures, "--category": "other,part", "--out": tmp_path / "r"}
    assert call(train, flags) == 130
    assert train(["--resume", "--out", str(tmp_path / "r")]) == 0
    a, b = (load(path).method.state_dict() for path in (run, tmp_path / "r"))
    assert a["example_corrupted"].shape == (4, 3, 128, 128) and len(a["selected_3"]) == 16
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_synthesize_shows_every_source(root, textures, tmp_path):
    kinds = ("sdas", "textures", "nsa", "cut_paste", "scar")
    flags = {"--data": root, "--category": "part", "--textures": textures, "--anomaly-images": textures, "--n": 8}
    assert call(synthesize, {**flags, "--anomaly-sources": ",".join(kinds), "--out": tmp_path / "out"}) == 0
    rows = [[float(row[f"from_{kind}"]) for kind in kinds] for row in rows_of(tmp_path / "out/statistics.csv")]
    assert len(rows) == 8 and all(sum(row) == 1 for row in rows) and np.any(rows, axis=0).sum() >= 3


def test_commands_refuse(root, textures, tmp_path, capsys):
    torch.save({"a": torch.zeros(1)}, tmp_path / "bad.pt")
    (tmp_path / "drawn/other").mkdir(parents=True)
    Image.fromarray(picture(0)).save(tmp_path / "drawn/other/0.png")
    (tmp_path / "drawn/settings.json").write_text("{}")
    flags = {**TRAIN, "--data": root, "--textures": textures, "--category": "part", "--out": tmp_path / "run"}
    for changes, words in (
        ({"--backbone-weights": "none.pth"}, "none.pth cannot be read"),
        ({"--backbone-weights": tmp_path / "bad.pt"}, "the weights do not fit mobilenet_v2"),
        ({"--anomaly-sources": "sdas"}, "--anomaly-images FOLDER"),
        ({"--anomaly-sources": "sdas", "--anomaly-images": tmp_path / "drawn"}, "none of part"),
    ):
        assert call(train, {**flags, **changes}) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert words in error and error.startswith("error: ")
    assert not (tmp_path / "run").exists()


def test_a_weight_file_is_recorded_and_loaded(root, textures, tmp_path):
    torch.manual_seed(3)
    state = {name: t.numpy().astype(np.float16) for name, t in small().backbone.state_dict().items()}
    np.savez(tmp_path / "weights.npz", **state)
    flags = {**TRAIN, "--data": root, "--textures": textures, "--category": "part", "--out": tmp_path / "run"}
    assert call(train, {**flags, "--backbone-weights": tmp_path / "weights.npz", "--epochs": 0}) == 0
    loaded = load(tmp_path / "run").method.backbone.state_dict()
    assert all(np.array_equal(loaded[name].numpy(), value.astype(np.float32)) for name, value in state.items())
    hashes = json.loads((tmp_path / "run/config.json").read_text())["weights_sha256"]
    assert [len(h) for h in hashes.values()] == [64] and str(tmp_path / "weights.npz") in hashes
