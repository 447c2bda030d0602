"""The studies run on a small run and write their tables; multiply-adds are those of the papers' sizes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import rows_of

STUDIES = Path(__file__).parents[2] / "tools" / "studies"
sys.path.append(str(STUDIES))
import common  # noqa: E402
import complexity  # noqa: E402
import synthesis  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("name", "multiply_adds"), [("draem", 197_954_371_584), ("srdad", 33_783_477_312)])
def test_multiply_adds_at_the_papers_sizes(name, multiply_adds):
    method = complexity.make(name)
    counted = complexity.count(method, torch.zeros(1, 3, *method.options.size), 1)
    assert counted[""] == multiply_adds and sum(counted.values()) <= 2 * multiply_adds


@pytest.mark.parametrize(("study", "flags", "rows"), [
    ("complexity", ("--repeats", "1"), 3),
    ("tiny", ("--sizes", "2,4"), 3),
    ("robustness", ("--limit", "5"), 15),
    ("reconstruction", ("--n", "2"), None),
    ("synthesis", ("--n", "3"), 9),
])  # fmt: skip
def test_a_study_writes_its_table(small_run, tmp_path, study, flags, rows):
    command = [sys.executable, STUDIES / f"{study}.py", small_run, "--out", tmp_path, *flags]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = rows_of(tmp_path / f"{study}.csv")
    assert len(found) == rows or (rows is None and found)
    assert all(row["run"] in (str(small_run), "(input)") for row in found)


def test_tsne(small_run, tmp_path):
    pytest.importorskip("sklearn")
    command = [sys.executable, STUDIES / "tsne.py", small_run, "--out", tmp_path, "--synthetic", "3"]
    assert subprocess.run(list(map(str, command))).returncode == 0
    assert {row["kind"] for row in rows_of(tmp_path / "tsne_points.csv")} == {"normal", "anomalous", "synthetic"}
    assert (tmp_path / "tsne_0.png").exists()


def test_distances_by_hand():
    x = np.array([[0.0, 0], [2, 0], [0, 2], [2, 2]])
    assert synthesis.frechet_distance(x, x) == pytest.approx(0, abs=1e-12)
    assert synthesis.frechet_distance(x, x + np.array([3, 4])) == pytest.approx(25)
    assert synthesis.frechet_distance(x, 2 * x) == pytest.approx(2 + 2 * 4 / 3)  # variances 4/3 and 16/3 on both axes
    assert synthesis.diversity(x) == pytest.approx((4 * 2 + 2 * 8**0.5) / 6)


def test_layers_are_averaged_over_their_places():
    maps = torch.arange(12.0).reshape(1, 2, 2, 3)
    expected = maps.mean(dim=(2, 3))
    for output in (maps, maps.permute(0, 2, 3, 1), maps.flatten(2).transpose(1, 2), expected):
        assert torch.equal(common.pooled(output, (20, 30)), expected)
