"""The studies t-SNE, complexity and synthesis: their algorithms against other programs, hands and loops; what they say.

Numbers named "sourced" are from `python tools/source_studies.py`: scikit-learn 1.9.1.
"""

import dataclasses
import json
import math
import re
from collections import namedtuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import rows_of, write_category
from PIL import Image
from scipy import linalg, optimize
from source_studies import noise, points
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from adref import options as option_tools
from adref.config import Flags
from adref.data import Record, find_category, read_image
from adref.methods import METHODS
from adref.options import UserError
from adref.report import STYLE
from adref.run import load, method_arguments, read_config
from adref.samples import resize, to_tensor
from adref.studies import Opened, complexity, synthesis, tsne
from adref.study import NAMES, main
from adref.train import split

TWO, THREE = np.arange(48) < 10, np.array([0] * 10 + [1] * 37 + [2])


def call(name: str, run, out, *words) -> dict:
    """study.json of a study that has to work."""
    assert main([name, str(run), "--out", str(out), "--device", "cpu", *map(str, words)]) == 0
    assert (out / "index.html").stat().st_size > 5000
    return json.loads((out / "study.json").read_text())


@pytest.fixture(scope="module")
def opened(small_run) -> Opened:
    config = read_config(small_run)
    category = find_category(config["flags"]["data"], config["category"])
    return Opened("small", small_run, config, load(small_run), category, torch.device("cpu"))


def arguments_of(module, *words):
    """Parsed options of a study."""
    parser = option_tools.Parser()
    parser.add_argument("--seed", type=int, default=0)
    module.add_arguments(parser)
    return parser.parse_args(list(words))


# -- t-SNE: the algorithm ---------------------------------------------------------------------------------------------


def test_tsne_ends_where_scikit_learn_does():
    """Sourced. At exaggeration 1 both stay together for 1000 steps, up to the float32 distances of scikit-learn."""
    embedding, divergence = tsne.exact_tsne(points(1, 48, 60), 12.0, exaggeration=1.0)
    theirs = [[10.9899, 1.1026], [-5.9866, -1.9482], [3.5749, 1.1397]]
    assert abs(divergence - 0.3941880700964247) < 2e-6
    assert np.abs(embedding[[0, 20, 47]] - theirs).max() < 0.06
    # With it rounding decides between minima that are about as good.
    assert abs(tsne.exact_tsne(points(1, 48, 60), 12.0)[1] - 0.40220559766389397) < 0.02


def test_tsne_exaggerates_for_250_steps():
    """Three groups stay knots while affinities are exaggerated, which costs divergence, and spread after that."""
    x = points(4, 48, 60)
    ends = {steps: tsne.exact_tsne(x, 12.0, steps)[1] for steps in (240, 250, 251, 300)}
    assert min(ends[240], ends[250]) > 1.5 > 1 > ends[300]  # of seven inputs on two processors: 2.0 and more, 0.95
    assert ends[250] - ends[251] > 0.1


def test_tsne_is_repeatable_and_refuses_what_has_no_map():
    x = points(3, 20, 4)
    first, again = tsne.exact_tsne(x, 5.0, 30)[0], tsne.exact_tsne(x, 5.0, 30)[0]
    assert np.array_equal(first, again) and first.shape == (20, 2)
    assert np.isfinite(tsne.exact_tsne(x[:, :1], 5.0, 30)[0]).all()  # one component: the other starts at 0
    assert np.isfinite(tsne.exact_tsne(np.repeat(x[:4], 5, axis=0), 5.0, 300)[0]).all()  # equal points
    for features, perplexity in ((x[:3], 1.0), (x, 19.0), (x, 0.5), (x[0], 1.0)):
        with pytest.raises(ValueError, match="expected"):
            tsne.exact_tsne(features, perplexity)


def test_affinities_have_the_perplexity():
    """Each p_.|i by itself, its width found by scipy; and the sum of both directions."""
    x, perplexity = points(1, 24, 5), 7.0
    conditional = np.zeros((24, 24))
    for i in range(24):
        d = np.delete(((x[i] - x) ** 2).sum(axis=1), i)

        def entropy(beta, d=d):
            p = np.exp(-beta * (d - d.min()))
            p = p / p.sum()
            return -(p * np.log(p + 1e-300)).sum()

        beta = optimize.brentq(lambda b, f=entropy: f(b) - math.log(perplexity), 1e-6, 1e3, xtol=1e-13)
        p = np.exp(-beta * (d - d.min()))
        conditional[i, np.arange(24) != i] = p / p.sum()
    found = tsne.affinities(tsne.squared_distances(x), perplexity)
    assert np.abs(found - (conditional + conditional.T) / 48).max() < 2e-5 * found.max()
    assert abs(found.sum() - 1) < 1e-12 and (np.diag(found) == 0).all()


def test_gradient_is_that_of_the_divergence():
    x, y = points(1, 12, 5), points(2, 12, 3)[:, 1:] / 3
    p = tsne.affinities(tsne.squared_distances(x), 3.0)
    kernel = {(i, j): 1 / (1 + ((y[i] - y[j]) ** 2).sum()) for i in range(12) for j in range(12) if i != j}
    total = sum(kernel.values())
    by_hand = sum(p[pair] * math.log(p[pair] / (k / total)) for pair, k in kernel.items() if p[pair] > 0)
    assert abs(tsne.divergence(p, y) - by_hand) < 1e-12
    slope = np.zeros_like(y)
    for place in np.ndindex(y.shape):
        step = np.zeros_like(y)
        step[place] = 1e-5
        slope[place] = (tsne.divergence(p, y + step) - tsne.divergence(p, y - step)) / 2e-5
    assert np.abs(tsne.divergence_gradient(p, y) - slope).max() < 1e-8 < np.abs(slope).max() / 1000


def test_principal_components():
    x = points(1, 30, 6)
    found = tsne.principal_components(x, 3)
    values = linalg.eigh(np.cov(x.T), eigvals_only=True)[::-1]
    assert np.allclose(np.cov(found.T), np.diag(values[:3])) and np.abs(found.mean(axis=0)).max() < 1e-12
    assert np.allclose(tsne.principal_components(-x, 3), -found)  # the sign is the data's, not the solver's
    assert tsne.principal_components(x, 50).shape == (30, 6)


def test_silhouette():
    """Sourced; and by hand: groups {0, 1} and {4}: (4 - 1) / 4, (3 - 1) / 3, 0 for the single point."""
    x = points(1, 48, 60)
    assert abs(tsne.silhouette(x, TWO) - 0.06412950975483576) < 1e-12
    assert abs(tsne.silhouette(x, THREE) - -0.07945820078101641) < 1e-12
    by_hand = tsne.silhouette(np.array([[0.0], [1.0], [4.0]]), np.array([0, 0, 1]))
    assert abs(by_hand - (3 / 4 + 2 / 3) / 3) < 1e-12


def test_compare_puts_both_anomalous_kinds_against_normal_ones():
    labels = np.array(["normal"] * 4 + ["anomalous"] * 3 + ["synthetic"] * 2)
    place = np.array([0.0] * 4 + [5.0] * 3 + [9.0] * 2)[:, None] + np.linspace(0, 0.5, 9)[:, None]
    first, second = tsne.compare(place, -place[::-1], labels)
    assert (first["first"], first["second"], second["first"], second["second"]) == (4, 5, 3, 2)
    assert first["silhouette"] == tsne.silhouette(place, labels == "normal")
    assert first["silhouette_of_map"] == tsne.silhouette(-place[::-1], labels == "normal") != first["silhouette"]
    assert second["silhouette"] == tsne.silhouette(place[4:], labels[4:] == "anomalous")
    without = tsne.compare(place[:7], place[:7], labels[:7])
    assert without[1]["silhouette"] is None and without[0]["second"] == 3


# -- t-SNE: the features ----------------------------------------------------------------------------------------------


def test_pooled_means_over_all_places():
    x = torch.rand(2, 5, 4, 8)
    assert torch.allclose(tsne.pooled(x, (64, 128)), x.mean(dim=(2, 3)))
    assert torch.allclose(tsne.pooled(x.permute(0, 2, 3, 1), (64, 128)), x.mean(dim=(2, 3)))  # Swin: channels last
    assert torch.allclose(tsne.pooled(x[:, :, :2, :4], (60, 100)), x[:, :, :2, :4].mean(dim=(2, 3)))  # rounded up
    with pytest.raises(UserError, match=r"\(64, 16, 24\) is no map"):
        tsne.pooled(torch.rand(2, 64, 16, 24), (64, 64))  # windows of tokens
    cube = torch.rand(2, 4, 4, 4)
    assert torch.allclose(tsne.pooled(cube, (64, 64)), cube.mean(dim=(2, 3)))  # both fit
    assert torch.allclose(tsne.pooled(x[:, :, 0], (64, 128)), x[:, :, 0].mean(dim=1))  # tokens
    assert torch.equal(tsne.pooled(x[:, :, 0, 0], (64, 128)), x[:, :, 0, 0])


def test_standardised():
    x = np.array([[1.0, 5.0, 2.0], [3.0, 5.0, 6.0]])
    assert np.array_equal(tsne.standardised(x), [[-1, -1], [1, 1]])


def unbuilt(name: str, preset: str, ablation: str | None = None) -> Opened:
    """A run whose method has no weights."""
    method = METHODS[name]
    with torch.device("meta"):
        built = method(option_tools.build(method.Options, method.presets, method.ablations, preset, ablation, {}))
    return Opened("r", None, {"method": name}, built, None, torch.device("cpu"))


def test_every_method_that_scores_has_its_layer():
    for name, layers in tsne.LAYERS.items():
        assert tsne.find_layer(unbuilt(name, "tiny"), None) == layers[0]
    assert {*tsne.LAYERS, "sdas"} == set(METHODS)
    assert tsne.find_layer(unbuilt("srdad", "tiny", "draem"), None) == "discriminator.encoder.blocks.5"
    level, *_ = (unbuilt("srdad", "paper").method.get_submodule(name) for name in tsne.LAYERS["srdad"][:1])
    with torch.device("meta"):
        assert level(torch.zeros(1, 320, 16, 16)).shape == (1, 320, 16, 16)  # level 5 has 320 values


def test_features_are_those_of_the_layer(opened):
    record = opened.category.test[0]
    images, *_ = method_arguments(opened.method, read_image(record.path), 0, 0)
    with torch.inference_mode():
        pair = torch.cat((opened.method.reconstructor(images), images), dim=1)
        levels = opened.method.discriminator.encoder(pair)
    found = tsne.read_features(opened, [record, opened.category.test[1]], "discriminator.encoder.blocks.5")
    assert found.shape == (2, 32) and found.dtype == np.float64 and (found[0] != found[1]).any()
    assert np.allclose(found[0], levels[5].mean(dim=(2, 3))[0].numpy(), atol=1e-6)
    drawn = np.asarray(images[0].permute(1, 2, 0) * 255).round().astype(np.uint8)
    assert np.allclose(tsne.read_features(opened, [drawn], "discriminator.encoder.blocks.5")[0], found[0], atol=1e-5)


def test_files_are_looked_at_and_synthetic_pictures_are_not(opened, monkeypatch):
    """What a method saw of a file is not what it would see of a picture that was made of it."""
    seen, score, arguments = [], opened.method.score, tsne.method_arguments
    monkeypatch.setattr(tsne, "method_arguments", lambda *a: (*arguments(*a)[:2], ["look"]))
    monkeypatch.setattr(opened.method, "score", lambda *a: seen.append(a[2]) or score(*a), raising=False)
    drawn = np.zeros((64, 64, 3), np.uint8)
    tsne.read_features(opened, [opened.category.test[0], drawn], "reconstructor.out")
    assert seen == [["look"], None]


def test_layers_that_give_no_features_are_refused(opened):
    with pytest.raises(UserError, match=r"no layer discriminator.encoder.block.5; .*discriminator.encoder.blocks.5"):
        tsne.find_layer(opened, "discriminator.encoder.block.5")
    with pytest.raises(UserError, match="puts out no map"):
        tsne.read_features(opened, opened.category.test[:1], "discriminator.encoder")  # a list of maps
    with pytest.raises(UserError, match="takes no part"):
        tsne.read_features(opened, opened.category.test[:1], "discriminator.ups")  # a list of layers
    assert not opened.method.discriminator.encoder._forward_hooks


def test_which_pictures_are_shown(opened, monkeypatch):
    """Normal ones of the test set first, then held out, then training; anomalies are made on others."""
    seen, bases = [], []
    monkeypatch.setattr(tsne, "read_features", lambda run, pictures, layer: seen.append(pictures) or np.zeros((1, 1)))
    draw = tsne.draw_anomalies
    monkeypatch.setattr(
        tsne, "draw_anomalies", lambda m, records, *rest: bases.extend(records) or draw(m, records, *rest)
    )
    _, words, shown = tsne.gather(opened, {"normal": 5, "anomalous": 2, "synthetic": 4}, "", 0)
    training, held_out = split(opened.category, option_tools.replace(Flags(), opened.config["flags"]))
    good = [record for record in opened.category.test if not record.label]
    normal, anomalous, synthetic = seen
    assert set(normal[:3]) == set(good) and normal[3] == held_out[0] and normal[4] in training
    assert len(anomalous) == 2 and all(record.label for record in anomalous)
    assert words == ("5 normal, 2 anomalous, 4 synthetic; of the normal ones 3 of the test set, 1 held out, "
                     "1 that trained")  # fmt: skip
    assert len(bases) == 4 and set(bases) == set(training) - {normal[4]}
    assert len(shown) == 4 and np.array_equal(shown[1].picture, synthetic[1]) and synthetic[1].shape == (64, 64, 3)
    everything = {"normal": 99, "anomalous": 99, "synthetic": 9}
    assert "9 normal, 3 anomalous, 9 synthetic" in tsne.gather(opened, everything, "", 0)[1]
    orders = [[r.path.name for r in seen[i]] for i in (0, 3) if tsne.gather(opened, everything, "", i) or True]
    assert orders[0] != orders[1]


def test_methods_without_anomalies_have_none(opened, monkeypatch):
    monkeypatch.setattr(tsne, "read_features", lambda run, pictures, layer: np.zeros((len(pictures), 1)))
    for name in ("vit_autoencoder", "noise_to_norm"):
        run = opened._replace(
            method=METHODS[name](option_tools.replace(METHODS[name].Options(), METHODS[name].presets["tiny"]))
        )
        groups, words, shown = tsne.gather(run, {"normal": 5, "anomalous": 2, "synthetic": 4}, "", 0)
        assert len(groups["synthetic"]) == 0 and not shown and "0 synthetic" in words


def test_the_page_of_tsne(small_run, tmp_path):
    found = call("tsne", small_run, tmp_path / "t", "--synthetic", 4, "--perplexity", 3)
    page = (tmp_path / "t/index.html").read_text()
    assert [row["groups"] for row in found["rows"]] == ["normal : anomalous and synthetic", "anomalous : synthetic"]
    assert [(row["first"], row["second"]) for row in found["rows"]] == [(9, 7), (3, 4)]
    assert all(row["values"] <= 32 and row["perplexity"] == 3 and row["divergence"] > 0 for row in found["rows"])
    assert all(-1 <= row[key] <= 1 for row in found["rows"] for key in ("silhouette", "silhouette_of_map"))
    assert any("not independent evidence" in note for note in found["notes"]) and "not independent evidence" in page
    for kind, count in (("normal", 9), ("anomalous", 3), ("synthetic", 4)):
        style, path = re.search(rf'data-kind="{kind}" style="([^"]*)" d="([^"]*)"', page).groups()
        places = [tuple(map(float, place)) for place in re.findall(r"M([\d.]+) ([\d.]+)", path)]
        assert len(set(places)) == count and all(0 < x < 100 and 0 < y < 100 for x, y in places)
        assert f"{kind} {count}</b>" in page and f"{re.search(r'--[a-z]+', style).group()}:" in STYLE
    assert len(rows_of(tmp_path / "t/rows.csv")) == 2


def test_scatter_keeps_left_and_right_and_up_and_down():
    labels = np.array(["normal", "normal", "anomalous"])
    markup = tsne.scatter(np.array([[0.0, 0.0], [10.0, 5.0], [5.0, 20.0]]), labels, "")
    low, high = 100 * 0.04 / 1.08, 100 * 1.04 / 1.08
    assert f"M{low:.2f} {high:.2f}h0M{high:.2f} " in markup and f"M50.00 {low:.2f}m" in markup


def test_tsne_refuses(opened):
    for words, message in ((["--normal", "-1"], "0 or more"), (["--perplexity", "0"], "--perplexity 1 or more"),
                           (["--layer", "none"], "has no layer none"),
                           (["--anomalous", "0", "--synthetic", "0"], "needs two kinds"),
                           (["--normal", "2", "--synthetic", "0", "--anomalous", "2"], "five pictures")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            tsne.study([opened], arguments_of(tsne, *words))


def test_features_that_make_no_map_are_refused(opened, monkeypatch):
    for value in (1.0, np.nan):  # the first column varies in the second case, but the other is no number
        groups = {kind: np.full((3, 2), value) for kind in tsne.KINDS}
        groups["normal"][:, 0] = np.arange(3) if np.isnan(value) else value
        groups["anomalous"][:, 0] = groups["synthetic"][:, 0] = 1.0
        monkeypatch.setattr(tsne, "gather", lambda *_, groups=groups: (groups, "words", []))
        with pytest.raises(UserError, match="not finite, or alike"):
            tsne.study([opened], arguments_of(tsne))


def test_names_are_escaped_and_the_caution_is_about_synthetic_ones(opened, monkeypatch):
    rng = np.random.default_rng(0)
    groups = {kind: rng.normal(size=(3 * (kind != "synthetic"), 4)) for kind in tsne.KINDS}
    monkeypatch.setattr(tsne, "gather", lambda *_: (groups, "words", []))
    result = tsne.study([opened._replace(name="<b>")], arguments_of(tsne))
    assert "<b>&lt;b&gt;</b>" in result.charts["Map"] and not any("Caution" in note for note in result.notes)
    assert result.rows[1]["silhouette"] is None and result.rows[0]["second"] == 3
    points = tsne.standardised(np.concatenate([groups["normal"], groups["anomalous"]]))
    embedding, divergence = tsne.exact_tsne(points, 5 / 3)
    assert result.rows[0]["silhouette"] == tsne.silhouette(points, np.arange(6) < 3)
    assert result.rows[0]["silhouette_of_map"] == tsne.silhouette(embedding, np.arange(6) < 3)
    assert result.rows[0]["divergence"] == divergence and result.rows[0]["values"] == 4


# -- complexity: counting ---------------------------------------------------------------------------------------------


def counted(module: nn.Module, *inputs) -> dict[str, int]:
    layers = complexity.count_layers(module, lambda: module(*inputs))
    return {layer.layer: layer.multiply_adds for layer in complexity.group(layers, 9)}


@pytest.mark.parametrize("module, shape, expected", [
    (nn.Conv2d(6, 9, 3, padding=1), (2, 6, 8, 10), 2 * 9 * 8 * 10 * 6 * 9),
    (nn.Conv2d(6, 9, (3, 1), stride=2, bias=False), (1, 6, 9, 11), 9 * 4 * 6 * 6 * 3),
    (nn.Conv2d(6, 12, 3, groups=3, dilation=2, padding=2), (1, 6, 8, 8), 12 * 64 * 2 * 9),
    (nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1), (1, 4, 5, 7), 4 * 35 * 6 * 16),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (1, 4, 5, 7), 4 * 35 * 3 * 9),
    (nn.Linear(5, 7), (2, 3, 5), 6 * 5 * 7),
    (nn.Linear(5, 7, bias=False), (5,), 5 * 7),
])  # fmt: skip
def test_layers_by_hand(module, shape, expected):
    assert counted(module, torch.rand(shape)) == {"": expected}


@pytest.mark.parametrize("function, expected", [
    (lambda a, b: a @ b.transpose(1, 2), 3 * 4 * 5 * 6),
    (lambda a, b: torch.einsum("bij,bkj->ik", a, b), 4 * 6 * 15),
    (lambda a, b: torch.baddbmm(torch.rand(1), a, b.transpose(1, 2)), 3 * 4 * 5 * 6),
    (lambda a, b: torch.addmm(torch.rand(6), a[0], b[0].T), 4 * 5 * 6),
    (lambda a, b: F.conv2d(a[None], torch.rand(2, 3, 2, 2)), 2 * 3 * 4 * 3 * 4),
    (lambda a, b: torch.dot(a[0, 0], b[0, 0]) + (a[0] @ b[0, 0])[0] + torch.addmv(torch.rand(4), a[0], b[0, 0])[0], 45),
    (lambda a, b: F.scaled_dot_product_attention(a, b, b[..., :2]), 3 * 4 * 6 * (5 + 2)),
    (lambda a, b: F.scaled_dot_product_attention(a[None], b[None], b[None], torch.rand(4, 6)), 3 * 4 * 6 * (5 + 5)),
    (lambda a, b: (a + 1).relu().mean() * F.interpolate(b[None], scale_factor=2).sum(), 0),
])  # fmt: skip
def test_functions_by_hand(function, expected):
    """Products of no layer belong to the module that asks for them."""

    class Holder(nn.Module):
        def forward(self, a, b):
            return function(a, b)

    outer = nn.Sequential()
    outer.add_module("inner", Holder())
    outer.forward = lambda a, b: outer.inner(a, b)
    assert counted(outer, torch.rand(3, 4, 5), torch.rand(3, 6, 5)) == ({"inner": expected} if expected else {})


@pytest.mark.parametrize("kind, more", [
    ("flash", (0.0, False, False)), ("efficient", (None, False)), ("cudnn", (None, False)),
])  # fmt: skip
def test_attention_on_gpus_is_counted(kind, more):
    """What scaled_dot_product_attention becomes there; its shapes alone, without a GPU."""
    operation = getattr(torch.ops.aten, f"_scaled_dot_product_{kind}_attention")
    q, k = torch.zeros(2, 3, 64, 16, device="meta"), torch.zeros(2, 3, 48, 16, device="meta")
    layers = complexity.count_layers(nn.Linear(1, 1), lambda: operation(q, k, k, *more))
    assert layers[0].multiply_adds == 2 * 3 * 64 * 48 * (16 + 16)
    assert complexity.attention(None, q, k, k[..., :5]) == 2 * 3 * 64 * 48 * (16 + 5)


def test_layers_shared_parts_and_outputs():
    """A layer that runs twice counts twice, its parameters once; a frozen one is not trained; nested names."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
            self.again, self.unused = nn.Linear(4, 4), nn.Linear(2, 2)
            self.tied = nn.Linear(4, 4)
            self.tied.weight = self.again.weight
            self.body[0].requires_grad_(False)

        def forward(self, x):
            x = self.body(x).mean(dim=(2, 3))
            x = x + (x @ x.T)  # after a layer has ended: its own
            return [x, self.tied(self.again(self.again(x)))]

    module = Twice().eval()
    layers = complexity.count_layers(module, lambda: module(torch.rand(1, 3, 5, 5)))
    assert len(layers) == 7
    assert [tuple(layer) for layer in complexity.group(layers, 2)] == [
        ("", "Twice", "", 0, 0, 4),
        ("body.0", "Conv2d", "4 x 5 x 5", 16, 0, 3 * 4 * 25),
        ("body.1", "BatchNorm2d", "4 x 5 x 5", 8, 8, 0),
        ("again", "Linear", "4", 20, 20, 32),
        ("unused", "Linear", "", 6, 6, 0),
        ("tied", "Linear", "4", 4, 4, 16),
    ]
    assert sum(layer.parameters for layer in layers) == sum(p.numel() for p in module.parameters())
    assert complexity.group(layers, 1)[1] == ("body", "Sequential", "4 x 5 x 5", 24, 8, 300)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())


def test_groups_have_the_output_of_their_own_module_or_of_the_last_in_a_list():
    layer = complexity.Layer
    layers = [
        layer("", "M", "", 0, 0, 7), layer("a", "ModuleList", "", 0, 0, 0), layer("a.0", "Block", "8", 0, 0, 0),
        layer("a.0.x", "Linear", "1", 2, 1, 3), layer("a.1", "Block", "9", 1, 1, 0),
        layer("a.1.y", "Linear", "2", 1, 1, 1), layer("b", "Block", "5", 0, 0, 1),
        layer("b.z", "Linear", "6", 4, 0, 4), layer("c", "ReLU", "3", 0, 0, 0),
    ]  # fmt: skip
    assert complexity.group(layers, 1) == [
        layer("", "M", "", 0, 0, 7), layer("a", "ModuleList", "9", 4, 3, 4), layer("b", "Block", "5", 4, 0, 5),
    ]  # fmt: skip
    assert [row.layer for row in complexity.group(layers, 2)] == ["", "a.0", "a.1", "b", "b.z"]
    assert complexity.group(layers, 2)[1] == layer("a.0", "Block", "8", 2, 1, 3)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "sdas"])
def test_multiply_adds_are_half_of_the_flops_of_pytorch(name):
    """torch.utils.flop_counter; it lacks products with vectors, and attention on CPUs, for which it has a formula."""
    method = METHODS[name]
    built = method(option_tools.build(method.Options, method.presets, {}, "tiny", None, {})).eval()
    if name == "sernet":
        built.bank.fill([torch.zeros(3, 128, 128, dtype=torch.uint8)], None, None)
    images = torch.rand(1, 3, 128, 128)
    layers = complexity.count_layers(built, lambda: built.score(images))
    more = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        torch.ops.aten.mv: lambda a, b, **_: 2 * math.prod(a),
        torch.ops.aten.dot: lambda a, b, **_: 2 * math.prod(a),
    }
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=more) as flops:
        built.score(images)
    assert 2 * sum(layer.multiply_adds for layer in layers) == flops.get_total_flops() > 1e8
    assert sum(layer.parameters for layer in layers) == sum(p.numel() for p in built.parameters())


@pytest.mark.parametrize("name, expected", [
    ("draem", {"reconstructor": 159.9, "discriminator": 38.1}),
    # With windows of 64 tokens, and four layers of four heads between 600 channels; each token is rebuilt once.
    ("srdad", {"reconstructor": 7.4 + 0.35, "discriminator": 23.5 + 2.95 - 0.42}),
    ("realnet", {"backbone": 29.8 / 2, "networks": 151.3 / 2, "discriminator": 48.1 / 2}),
])  # fmt: skip
def test_the_papers_networks(name, expected):
    """G multiply-adds: DRAEM 198.0; SRDAD 30.9 and attention; RealNet 29.8, 151.3 and 48.1 GFLOP."""
    method, images = unbuilt(name, "paper").method.eval(), torch.zeros(1, 3, 256, 256, device="meta")
    layers = complexity.count_layers(method, lambda: method(images))
    found = {row.layer: row.multiply_adds / 1e9 for row in complexity.group(layers, 1)}
    assert found == pytest.approx(expected, abs=0.06)


# -- complexity: measuring --------------------------------------------------------------------------------------------


def test_the_table_of_complexity(small_run, tmp_path, opened):
    found = call("complexity", small_run, tmp_path / "c", "--depth", 1, "--batch", 2, "--repeats", 1)
    layers, total = found["rows"][:-1], found["rows"][-1]
    assert [row["layer"] for row in found["rows"]] == ["reconstructor", "discriminator", "total"]
    for key in ("parameters", "trainable", "multiply_adds"):
        assert total[key] == sum(row[key] for row in layers) > 0
    assert all(row["share"] == row["multiply_adds"] / total["multiply_adds"] for row in found["rows"])
    assert total["parameters"] == sum(p.numel() for p in opened.method.parameters())
    first, second, published, last = found["notes"]
    assert "64 x 64" in first and f"{total['parameters']:,}" in first and "97,422,725" in first
    assert re.search(r"batch 1: [\d.e+]+ images/s, .*; batch 2: [\d.e+]+ images/s, ", second)
    assert "26.5 M" in published and "SRDAD" in published and "no other" in last
    page = (tmp_path / "c/index.html").read_text()
    assert all(f">{row['multiply_adds']:,}<" in page for row in found["rows"])  # in groups of three
    assert found["settings"]["threads"] == torch.get_num_threads() and found["settings"]["device"] == "cpu"


def test_speed_is_the_median_of_calls_after_warming_up(opened, monkeypatch):
    """A clock that runs 1, 5 and 2 seconds in three calls; the memory's call and two more are not timed."""
    ticks, calls = iter([0, 1, 10, 15, 20, 22]), []
    score = opened.method.score
    monkeypatch.setattr(complexity.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(opened.method, "score", lambda *a: calls.append(len(a[0])) or score(*a), raising=False)
    text = complexity.describe_speed(opened, 8, 3)
    assert text.startswith("batch 8: 4 images/s, ") and calls == [8] * 6


def test_a_batch_is_made_of_the_categorys_pictures(opened):
    images, streams, looks = complexity.batch_of(opened, 14)
    records = [*opened.category.test, *opened.category.train]
    assert images.shape == (14, 3, 64, 64) and len(streams) == 14 and looks is None and len(records) == 12
    assert torch.equal(images[13], images[1]) and not torch.equal(images[0], images[1])
    own, *_ = method_arguments(opened.method, read_image(records[7].path), 0, 7)
    assert torch.equal(images[7:8], own)
    sernet = METHODS["sernet"](option_tools.replace(METHODS["sernet"].Options(), METHODS["sernet"].presets["tiny"]))
    assert [look.shape for look in complexity.batch_of(opened._replace(method=sernet), 2)[2]] == [(8,), (8,)]
    with pytest.raises(UserError, match="no picture"):
        complexity.batch_of(opened._replace(category=namedtuple("Nothing", "name test train")("x", (), ())), 1)


def test_memory_of_a_call():
    held = []

    def call():
        held.append(torch.ones(24 * 2**20, dtype=torch.uint8))  # written to, so that it is there
        held.clear()

    for _ in range(4):  # the C library keeps what one call has freed, unless it is told to return it
        text = complexity.peak_memory(call, torch.device("cpu"))
        if text == "memory not measured":
            pytest.skip("needs Linux and its C library")
        assert 20 < int(text.split()[0]) < 30 and "above rest" in text


@pytest.mark.parametrize("words", [("--depth", "0"), ("--batch", "0"), ("--repeats", "-1")])
def test_complexity_refuses(opened, words):
    with pytest.raises(UserError, match="1 or more"):
        complexity.study([opened], arguments_of(complexity, *words))


# -- synthesis: distances ---------------------------------------------------------------------------------------------


def gaussian(mean, covariance, signs) -> np.ndarray:
    """Samples whose mean and covariance (divided by N - 1) are exactly these."""
    x = signs - signs.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(x.T @ x / (len(x) - 1))).T
    return x @ np.linalg.cholesky(covariance).T + mean


def test_frechet_distance_by_hand():
    """Along axes: the sum of (m - m')^2 + (s - s')^2."""
    x, y = noise(1, 18).reshape(9, 2) / 2.0**30, noise(2, 14).reshape(7, 2) / 2.0**30
    a = gaussian([1.0, 2.0], np.diag([4.0, 9.0]), x)
    b = gaussian([1.5, 0.0], np.diag([1.0, 25.0]), y)
    assert abs(synthesis.frechet_distance(a, b) - (0.25 + 4 + (2 - 1) ** 2 + (3 - 5) ** 2)) < 1e-9
    # C = diag(4, 1), C' = [[2.5, 1.5], [1.5, 2.5]] (4 and 1, turned): det(C C') = 16, Tr(C C') = 12.5, and for 2 x 2
    # Tr M^(1/2) = (Tr M + 2 det(M)^(1/2))^(1/2) = (12.5 + 8)^(1/2).
    a, b = gaussian([0, 0], np.diag([4.0, 1.0]), x), gaussian([0, 0], np.array([[2.5, 1.5], [1.5, 2.5]]), y)
    assert abs(synthesis.frechet_distance(a, b) - (5 + 5 - 2 * math.sqrt(20.5))) < 1e-9
    assert abs(synthesis.frechet_distance(a, a[::-1])) < 1e-9


@pytest.mark.parametrize("count, other, width", [(40, 30, 6), (8, 12, 20)])
def test_frechet_distance_of_scipys_root(count, other, width):
    """scipy.linalg.sqrtm; with fewer samples than dimensions, of what a little of the identity regularises."""
    x, y = points(1, count, width), points(2, other, width) + 0.5
    least = 0 if count > width else 1e-9
    c, d = (np.cov(z.T) + least * np.eye(width) for z in (x, y))
    gap = x.mean(axis=0) - y.mean(axis=0)
    expected = gap @ gap + np.trace(c + d - 2 * linalg.sqrtm(c @ d).real)
    assert abs(synthesis.frechet_distance(x, y) - expected) < (1e-9 if least == 0 else 1e-2)
    assert abs(synthesis.frechet_distance(y, x) - synthesis.frechet_distance(x, y)) < 1e-9 * expected


def test_kernel_distance():
    """Sourced; and a double loop."""
    x, y = points(1, 48, 60), points(2, 30, 60) + 0.3
    assert abs(synthesis.kernel_distance(x, y) - 26.309447671996963) < 1e-9
    x, y = points(3, 5, 4), points(4, 7, 4)
    k = lambda a, b: (sum(a * b) / 4 + 1) ** 3  # noqa: E731
    first = [k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    second = [k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j]
    both = [k(a, b) for a in x for b in y]
    assert abs(synthesis.kernel_distance(x, y) - (np.mean(first) + np.mean(second) - 2 * np.mean(both))) < 1e-10


def test_distances_with_their_error():
    x, y = points(1, 9, 3), points(2, 9, 3) + 1
    found = synthesis.distances(x, y, "normal")
    assert list(found) == ["frechet_to_normal", "kernel_to_normal", "error_to_normal"] == list(synthesis.keys("normal"))
    without = [synthesis.kernel_distance(*(z[np.arange(9) != i] for z in (x, y))) for i in range(9)]
    assert abs(found["error_to_normal"] - math.sqrt(8 / 9 * sum((v - np.mean(without)) ** 2 for v in without))) < 1e-9
    assert found["kernel_to_normal"] == synthesis.kernel_distance(x, y)
    assert found["frechet_to_normal"] == synthesis.frechet_distance(x, y)


def test_the_kernel_distance_is_unbiased_and_its_error_is_that_of_repetitions():
    rng = np.random.default_rng(0)
    draws = [synthesis.distances(*rng.normal(size=(2, 20, 3)), "") for _ in range(150)]
    values, errors = (np.array([draw[key] for draw in draws]) for key in ("kernel_to_", "error_to_"))
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(150) and 0.6 < np.median(errors) / values.std() < 1.6
    assert np.mean([draw["frechet_to_"] for draw in draws]) > 0.2  # which is biased


def test_diversity():
    x = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 8.0]])
    assert synthesis.diversity(x) == (5 + 8 + 5) / 3


# -- synthesis: pictures ----------------------------------------------------------------------------------------------


def box(top, bottom, left, right, shape=(64, 80)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top, left] = mask[bottom - 1, right - 1] = True
    return mask


@pytest.mark.parametrize("mask, expected", [
    (box(20, 24, 30, 40), (6, 38, 19, 51)),
    (box(10, 50, 20, 30), (10, 50, 5, 45)),
    (box(0, 3, 78, 80), (0, 32, 48, 80)),
    (box(60, 64, 0, 2), (32, 64, 0, 32)),
    (box(10, 20, 0, 80), (0, 64, 0, 80)),
    (box(3, 5, 3, 5, (20, 24)), (0, 20, 0, 24)),
])  # fmt: skip
def test_square_around_an_anomaly(mask, expected):
    rows, columns = synthesis.around(mask)
    inside = [min(part.stop, length) for part, length in zip((rows, columns), mask.shape)]
    assert (rows.start, inside[0], columns.start, inside[1]) == expected
    assert mask[rows, columns].sum() == mask.sum()


def test_masks_keep_thin_scratches_when_they_shrink(tmp_path):
    mask = np.zeros((100, 200), np.uint8)
    mask[37, 20:181] = 1
    Image.fromarray(mask).save(tmp_path / "m.png")
    small = synthesis.read_small_mask(Record("x", 1, "d", tmp_path / "m.png"), (10, 40))
    assert small.sum() == 33 and small[3, 4:37].all()
    with pytest.raises(UserError, match="no mask"):
        synthesis.read_small_mask(Record("x", 1, "d", None), (10, 40))


def test_every_synthesis_is_its_own(opened, tmp_path):
    """Each draws on pictures of the run's size, and what it is called after."""
    Image.new("RGB", (64, 64), (0, 255, 0)).save(tmp_path / "green.png")
    flags = option_tools.replace(Flags(), {**opened.config["flags"], "anomaly_images": str(tmp_path)})
    records, found = [r for r in opened.category.test if not r.label] * 2, {}
    for name, (method_name, changes) in synthesis.SYNTHESES.items():
        method, options = synthesis.prepare(opened, method_name, changes, None)
        assert method.options.size == (64, 64) and options == ("the run's" if name == "draem" else "tiny")
        assert (name != "draem") or method.options.reconstruction_width == 4  # the run's
        found[name] = synthesis.draw_anomalies(method, records, flags, 6, 0)
        assert len(found[name]) == 6 and all((drawn["mask"] > 0).any() for drawn in found[name])
        for drawn in found[name]:
            clean = [to_tensor(read_image(record.path)) for record in records[:3]]
            clean = [resize(image, (64, 64), "bilinear").permute(1, 2, 0).numpy() for image in clean]
            assert any(np.array_equal(drawn["clean"], image) for image in clean)
            assert drawn["corrupted"].shape == (64, 64, 3) and not np.array_equal(drawn["corrupted"], drawn["clean"])

    def share(name):
        return np.array([(drawn["mask"] > 0).mean() for drawn in found[name]])

    assert (share("sernet ppa") >= 0.025).all() and share("sernet dpa").mean() < share("sernet ppa").mean() / 2
    spans = []
    for drawn in found["sernet dpa"]:  # one shift of the colour, where it is not cut off
        inside = drawn["mask"][..., 0] > 0
        change = drawn["corrupted"].astype(int)[inside] - drawn["clean"][inside]
        kept = ((drawn["corrupted"][inside] > 0) & (drawn["corrupted"][inside] < 255)).all(axis=1)
        spans += [np.ptp(change[kept], axis=0).max()] if kept.any() else []
    assert len(spans) > 2 and max(spans) <= 1
    for drawn in found["realnet cut_paste"]:  # one rectangle
        rows, columns = np.nonzero(drawn["mask"][..., 0])
        assert (np.ptp(rows) + 1) * (np.ptp(columns) + 1) == len(rows)
    for drawn in found["realnet sdas"]:  # of the given pictures, which are green
        inside = drawn["mask"][..., 0] > 0
        red, green = (drawn["corrupted"].astype(int) - drawn["clean"])[inside].mean(axis=0)[:2]
        assert red < -30 and green > 30
    assert synthesis.prepare(opened, "srdad", {}, "paper")[0].options.noise_level == 0.05


def test_too_few_anomalies_are_refused(opened):
    method, _ = synthesis.prepare(opened, "draem", {"anomaly_probability": 0.0}, None)
    flags = option_tools.replace(Flags(), opened.config["flags"])
    with pytest.raises(UserError, match="DRAEM made 0 of 1 anomalies in 100 tries"):
        synthesis.draw_anomalies(method, list(opened.category.test), flags, 1, 0)


@pytest.fixture(scope="module")
def groups_of_small(opened) -> dict[str, list[np.ndarray]]:
    return synthesis.gather(opened, arguments_of(synthesis))[0]


class Colours(nn.Module):
    """A backbone whose deepest map is the picture."""

    channels = (1, 3)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return [images[:, :1], self.weight * images]


def test_features_are_means_of_the_deepest_map():
    pictures = [np.random.default_rng(i).integers(0, 256, (8, 10, 3), np.uint8) for i in range(2)]
    found = synthesis.average_features(Colours(), pictures, (8, 10))
    assert np.allclose(found, [picture.mean(axis=(0, 1)) / 255 for picture in pictures], atol=1e-6)
    assert synthesis.average_features(Colours(), [pictures[0][:4, :5]], (8, 10)).shape == (1, 3)  # a region


def test_the_table_of_synthesis(opened, groups_of_small, monkeypatch):
    """With colours as features, every distance can be computed again from the pictures."""
    monkeypatch.setattr(synthesis, "open_backbone", lambda *_: (Colours(), "colours"))
    result = synthesis.study([opened], arguments_of(synthesis))
    groups = groups_of_small
    names = [name for name in synthesis.SYNTHESES if name != "realnet sdas"]
    assert (
        [row["pictures"] for row in result.rows]
        == [synthesis.REAL, synthesis.NORMAL, *names]
        == [g for g in groups if g]
    )
    means = {name: np.array([p.mean(axis=(0, 1)) / 255 for p in pictures]) for name, pictures in groups.items()}
    for row in result.rows:
        own = means[row["pictures"]]
        assert row["n"] == len(own) == 3 and row["features"] == "random"
        assert abs(row["frechet_to_normal"] - synthesis.frechet_distance(own, means[""])) < 1e-6
        assert abs(row["kernel_to_normal"] - synthesis.kernel_distance(own, means[""])) < 1e-6
        assert abs(row["diversity"] - synthesis.diversity(own)) < 1e-6
        if row["pictures"] == synthesis.REAL:
            assert row["frechet_to_anomalous"] is row["kernel_to_anomalous"] is row["error_to_anomalous"] is None
        else:
            assert abs(row["frechet_to_anomalous"] - synthesis.frechet_distance(own, means[synthesis.REAL])) < 1e-6
    assert {row["pictures"]: row["options"] for row in result.rows}["draem"] == "the run's"
    assert all(len(figures) == 3 for figures in result.figures.values()) and len(result.figures) == len(result.rows)
    assert np.array_equal(result.figures["small, srdad"][1].picture, groups["srdad"][1])
    assert "Random ones are no measure" in result.notes[2] and "colours, 3 values of the whole" in result.notes[2]


def test_which_pictures_are_compared(opened, groups_of_small, monkeypatch):
    """Real ones of the test set; normal ones that did not train, of the test set first; and some that did."""
    groups = groups_of_small
    training, held_out = split(opened.category, option_tools.replace(Flags(), opened.config["flags"]))
    sets = {synthesis.REAL: [r for r in opened.category.test if r.label], "": training,
            synthesis.NORMAL: [r for r in opened.category.test if not r.label]}  # fmt: skip
    for name, records in sets.items():
        known = {resize(to_tensor(read_image(r.path)), (64, 64)).permute(1, 2, 0).numpy().tobytes() for r in records}
        own = {picture.tobytes() for picture in groups[name]}
        assert len(own) == 3 and own <= known
    assert len(held_out) == 1 and len(training) == 5
    used = []
    drawn = {"corrupted": np.zeros((64, 64, 3), np.uint8)}
    monkeypatch.setattr(synthesis, "draw_anomalies", lambda m, records, *rest: used.append(set(records)) or 3 * [drawn])
    synthesis.gather(opened, arguments_of(synthesis))
    assert all(records == set(sets[synthesis.NORMAL]) for records in used) and len(used) == 7


def test_region_features_are_of_squares(opened, groups_of_small):
    groups, _ = synthesis.gather(opened, arguments_of(synthesis, "--region"))
    whole = groups_of_small
    real = groups[synthesis.REAL]
    assert all(picture.shape == (32, 32, 3) for picture in real)  # squares of 12 x 14 pixels in 40 x 48
    for name in (synthesis.REAL, synthesis.NORMAL, ""):  # the same places
        for i in range(3):
            places = [at for at in np.ndindex(33, 33) if np.array_equal(
                whole[name][i][at[0] : at[0] + 32, at[1] : at[1] + 32], groups[name][i])]  # fmt: skip
            assert len(places) == 1
    assert all((picture == 250).all(axis=2).sum() > 300 for picture in real)  # the defect is in
    for name in ("srdad", "sernet dpa"):
        assert all(min(picture.shape[:2]) >= 32 for picture in groups[name])


def test_the_page_of_synthesis(small_run, tmp_path, textures):
    words = ("--n", 3, "--anomaly-images", textures, "--backbone", "resnet18")
    found = call("synthesis", small_run, tmp_path / "s", *words)
    assert [row["pictures"] for row in found["rows"]][-1] == "realnet sdas" and len(found["rows"]) == 10
    assert found["settings"]["features"] == "resnet18, random weights"
    page = (tmp_path / "s/index.html").read_text()
    assert page.count("<img") == 30 and "realnet cut_paste" in page


def test_backbones_are_loaded_or_named_random(tmp_path):
    first, name = synthesis.open_backbone("resnet18", None, 1)
    assert name == "resnet18, random weights" and not first.training
    again, other = synthesis.open_backbone("resnet18", None, 1)[0], synthesis.open_backbone("resnet18", None, 2)[0]
    assert torch.equal(first.conv1.weight, again.conv1.weight) and not torch.equal(
        first.conv1.weight, other.conv1.weight
    )
    torch.save(other.state_dict(), tmp_path / "w.pth")
    loaded, name = synthesis.open_backbone("resnet18", str(tmp_path / "w.pth"), 1)
    assert torch.equal(loaded.layer4[1].conv2.weight, other.layer4[1].conv2.weight)
    assert re.fullmatch(r"resnet18, w\.pth \(SHA-256 [0-9a-f]{12}\)", name)
    with pytest.raises(UserError, match=r"w\.pth: the weights do not fit mobilenet_v2"):
        synthesis.open_backbone("mobilenet_v2", str(tmp_path / "w.pth"), 1)
    with pytest.raises(UserError, match="cannot be read"):
        synthesis.open_backbone("mobilenet_v2", str(tmp_path / "nothing.npz"), 1)


def test_synthesis_refuses(opened, tmp_path):
    with pytest.raises(UserError, match=r"3 or more.*there are 3, 4, 5"):
        synthesis.gather(opened, arguments_of(synthesis, "--n", "2"))
    several = opened._replace(category=find_category(write_category(tmp_path / "d", 4, 2, 1), "part"))
    with pytest.raises(UserError, match="there are 1, "):
        synthesis.gather(several, arguments_of(synthesis))
    pair = dataclasses.replace(opened.category, name="a,b")
    with pytest.raises(UserError, match="several categories"):
        synthesis.gather(opened._replace(category=pair), arguments_of(synthesis))


def test_the_command_knows_these_studies():
    assert {"tsne", "complexity", "synthesis"} <= set(NAMES)
