"""PatchCore: features, coreset, search, score and map; a run from a memory of nothing to a report."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import golden
from scipy.ndimage import gaussian_filter

from adref import load
from adref.evaluate import main as evaluate
from adref.method import Sources
from adref.methods.patchcore import bank as bank_of
from adref.methods.patchcore.bank import draw_projection, greedy_coreset, nearest, patch_features
from adref.methods.patchcore.method import PatchCore
from adref.methods.patchcore.options import ABLATIONS, Options
from adref.options import UserError, replace
from adref.train import main as train

LEAST = {"size": (64, 64), "backbone": "mobilenet_v2", "width": None, "coreset": 0.1}
LAYERS = [golden.hashed("layer 2", 2, 12, 8, 6), golden.hashed("layer 3", 2, 20, 4, 3)]
BANK = golden.hashed("bank", 40, 32)
# Sourced: anomalib 2.7.0 and faiss 1.15.1, `PYTHONPATH=tools python tools/sources/patchcore.py`, 2026-11-29
SCORES = {1: [1.879292011, 1.775334835], 3: [1.358868361, 1.331821203], 9: [1.724150419, 1.643164992]}
FEATURES = [0.3486911356, 0.2665743828, 0.3232141137, 0.2291387469, 0.4588513672, 0.4557536244, 0.2761112452,
            0.5138701797, 0.2403058708, 0.09331377596, 0.1838117391]  # fmt: skip
CODE_MAP = [2.229632616, 2.430681467, 2.066728115, 2.555331945, 2.180409193, 2.091246843, 2.284849644, 2.744133949,
            2.360462666, 2.983977318, 2.69206214, 2.233421803, 2.630478144, 2.2748487, 1.833578944, 2.072049856,
            2.670944929, 2.295103073, 2.779119253]  # fmt: skip


def small(**changes) -> PatchCore:
    torch.manual_seed(0)
    return PatchCore(Options(**{**LEAST, **changes})).eval()


def with_memory(monkeypatch, **changes) -> PatchCore:
    """A method whose features are those of LAYERS, with the memory BANK."""
    method = small(size=(32, 24), **changes)
    monkeypatch.setattr(PatchCore, "features", lambda self, _: patch_features(LAYERS, 3, None))
    method.bank = BANK
    return method


def averages(numbers: np.ndarray, count: int) -> np.ndarray:
    """torch's adaptive pooling of the last axis, in a loop."""
    n = numbers.shape[-1]
    ends = [(i * n // count, math.ceil((i + 1) * n / count)) for i in range(count)]
    return np.stack([numbers[..., a:b].mean(-1) for a, b in ends], axis=-1)


@pytest.mark.holds("patchcore", "1", "2", "3")
def test_features_are_anomalibs():
    flat = patch_features(LAYERS, 3, None).permute(0, 3, 1, 2).flatten()
    found = [flat.mean().item(), *flat[torch.linspace(0, len(flat) - 1, 10).long()].tolist()]
    assert found == pytest.approx(FEATURES, rel=1e-6)


@pytest.mark.holds("patchcore", "1", "2", "3")
def test_the_codes_features_by_a_loop():
    """Neighbourhoods with zeros outside, by channel, row, column; each layer to 10 numbers, then both together."""
    found, wide, fine = patch_features(LAYERS, 3, 10).numpy(), {}, LAYERS[0].double().numpy()
    for name, layer in (("fine", fine), ("coarse", LAYERS[1].double().numpy())):
        padded = np.pad(layer, ((0, 0), (0, 0), (1, 1), (1, 1)))
        around = [[padded[:, :, i : i + 3, j : j + 3].reshape(2, -1) for j in range(layer.shape[3])]
                  for i in range(layer.shape[2])]  # fmt: skip
        wide[name] = averages(np.array(around).transpose(2, 0, 1, 3), 10)  # (B, h, w, 10)
    rows, columns = (np.clip((np.arange(n) + 0.5) / 2 - 0.5, 0, None) for n in (8, 6))
    low, high = rows.astype(int), np.minimum(rows.astype(int) + 1, 3)
    part = (rows - low)[:, None, None]
    enlarged = wide["coarse"][:, low] * (1 - part) + wide["coarse"][:, high] * part
    low, high = columns.astype(int), np.minimum(columns.astype(int) + 1, 2)
    part = (columns - low)[:, None]
    enlarged = enlarged[:, :, low] * (1 - part) + enlarged[:, :, high] * part
    expected = averages(np.concatenate((wide["fine"], enlarged), axis=-1), 10)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.holds("patchcore", "6")
def test_search_in_parts_by_brute_force(monkeypatch):
    queries = golden.hashed("queries", 30, 32)
    distances = np.linalg.norm(queries.double().numpy()[:, None] - BANK.double().numpy(), axis=2)
    monkeypatch.setattr(bank_of, "ROWS", 7)  # six parts
    found, indices = nearest(queries, BANK, 4)
    np.testing.assert_array_equal(indices.numpy(), distances.argsort(axis=1)[:, :4])
    np.testing.assert_allclose(found.numpy(), np.sort(distances, axis=1)[:, :4], rtol=1e-6)
    assert (nearest(BANK, BANK)[0] == 0).all()  # of differences: exactly 0


@pytest.mark.holds("patchcore", "5", "Algorithm 1")
def test_coreset_by_a_loop():
    features, draws = golden.hashed("features", 60, 16), np.random.default_rng(4)
    features[:48] *= 0.1  # most are alike
    chosen = greedy_coreset(features, 12, np.random.default_rng(4)).tolist()
    points = features.double().numpy()
    bound = np.linalg.norm(points[:, None] - points[draws.choice(60, 10, replace=False)], axis=2).mean(1)
    expected = []
    for _ in range(12):
        expected.append(int(bound.argmax()))
        bound = np.minimum(bound, np.linalg.norm(points - points[expected[-1]], axis=1))
    assert chosen == expected and len(set(chosen)) == 12

    def radius(kept: list[int]) -> float:
        return np.linalg.norm(points[:, None] - points[kept], axis=2).min(1).max()

    drawn = [radius(draws.choice(60, 12, replace=False).tolist()) for _ in range(200)]
    assert radius(chosen) < np.quantile(drawn, 0.05)  # it covers the set better than nearly all random choices
    assert sorted(greedy_coreset(torch.zeros(5, 3), 5, draws).tolist()) == [0, 1, 2, 3, 4]  # copies, each once


def test_projection_keeps_distances():
    features = golden.hashed("features", 60, 500)
    psi = draw_projection(np.random.default_rng(0), 500)
    ratio = torch.pdist(features @ psi) / torch.pdist(features)
    assert psi.shape == (500, 128) and psi.abs().max() <= 500**-0.5 and ratio.std() / ratio.mean() < 0.1


@pytest.mark.holds("patchcore", "6", "7")
@pytest.mark.parametrize("neighbours", SCORES)
def test_scores_are_anomalibs(neighbours, monkeypatch):
    method = with_memory(monkeypatch, neighbours=neighbours)
    scores, maps = method.score(torch.zeros(2, 3, 32, 24))
    assert scores.tolist() == pytest.approx(SCORES[neighbours], rel=1e-5)
    torch.testing.assert_close(maps, method.anomaly_map(torch.zeros(2, 3, 32, 24)))


@pytest.mark.holds("patchcore", "Map")
def test_map_is_the_codes_and_the_papers(monkeypatch):
    images, picked = torch.zeros(2, 3, 32, 24), slice(None, None, 15)
    maps = with_memory(monkeypatch, map_distance="squared").anomaly_map(images)[:, 0]
    found = [maps.mean().item(), *maps[:, picked, ::11].flatten().tolist()]
    assert found == pytest.approx(CODE_MAP, rel=1e-5)
    plain = with_memory(monkeypatch)
    distances = nearest(plain.features(None).flatten(0, 2), BANK)[0].view(2, 1, 8, 6)
    enlarged = torch.nn.functional.interpolate(distances, (32, 24), mode="bilinear")[1, 0].numpy()
    np.testing.assert_allclose(plain.anomaly_map(images)[1, 0].numpy(), gaussian_filter(enlarged, 4.0), rtol=1e-5)


def pictures(count: int) -> list[torch.Tensor]:
    return [(255 * golden.hashed(f"picture {i}", 3, 64, 64)).byte() for i in range(count)]


def stream(purpose: str, *key: int) -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.mark.holds("patchcore", "4", "Tables 1 and 5")
@pytest.mark.parametrize(
    ("share", "kept"), [(None, 38), ("patchcore-25", 96), ("patchcore-1", 3), ("patchcore-100", 384)]
)
def test_memory_is_a_share_of_all_patches(share, kept):
    """Six images of 8 x 8 places; what is kept are features of these images."""
    method = small(**({} if share is None else ABLATIONS[share]))
    method.prepare(Sources(images=pictures(6)), "train", stream)
    every = method.features(torch.stack(pictures(6)) / 255).flatten(0, 2)
    assert method.bank.shape == (kept, 32 + 96) and nearest(method.bank, every)[0].max() < 1e-5
    found = method.distances(pictures(1)[0][None] / 255)[1]
    torch.testing.assert_close(found.flatten(), nearest(every[:64], method.bank)[0][:, 0])
    other = small(batch_size=4, coreset=method.options.coreset)
    other.prepare(Sources(images=pictures(6)), "train", stream)
    torch.testing.assert_close(other.bank, method.bank, rtol=1e-5, atol=1e-5)  # the batch plays no part
    assert other.train().training is False
    other = small()
    other.load_state_dict(method.state_dict())  # of any length
    assert torch.equal(other.bank, method.bank)


def test_without_a_memory_and_options_that_do_not_fit():
    with pytest.raises(ValueError, match="the memory is empty"):
        small().score(torch.zeros(1, 3, 64, 64))
    for changes, words in (
        ({"layers": (3, 2)}, "--layers takes different numbers in ascending order; got 3,2"),
        ({"layers": (5,)}, "--layers takes 1 to 4"),
        ({"neighbourhood": 4}, "--neighbourhood takes an odd number; got 4"),
        ({"width": 1024}, "--width takes none, or up to 288, a neighbourhood of mobilenet_v2; got 1024"),
    ):
        with pytest.raises(UserError, match=words):
            PatchCore(replace(Options(), {**LEAST, **changes}))
    with torch.device("meta"):
        assert PatchCore(Options()).bank.shape == (0, 1024)


def test_a_run_from_nothing_to_a_report(data, tmp_path):
    """A second run has the same memory; fewer neighbours can be asked for later."""
    flags = "--size 64,64 --backbone mobilenet_v2 --width none --backbone-weights random --workers 0 --device cpu"
    for name in ("a", "b"):
        assert train(["patchcore", "--data", str(data), *flags.split(), "--out", str(tmp_path / name)]) == 0
    runs = [load(tmp_path / name) for name in ("a", "b")]
    assert torch.equal(*(run.method.bank for run in runs)) and len(runs[0].method.bank) and runs[0].threshold > 0
    assert (tmp_path / "a/report.html").exists()
    assert evaluate([str(tmp_path / "a"), "--neighbours", "1", "--device", "cpu"]) == 0
    metrics = json.loads((tmp_path / "a/evaluation/metrics.json").read_text())
    assert metrics["changed_after_training"] == {"neighbours": 1} and 0 <= metrics["image_auroc"] <= 1
