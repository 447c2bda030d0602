"""Evaluation: what it writes, the numbers against independent ones, masks at other sizes, missing classes."""

import dataclasses
import json
import shutil
import tracemalloc

import numpy as np
import pytest
import torch
from conftest import rows_of

from adref import load
from adref.data.layouts import Record, check_files, find_category
from adref.data.reader import read_image, read_mask
from adref.evaluate import main
from adref.ops import metrics
from adref.run.evaluation import Rules, conclude, score_test_images
from adref.run.measures import Lazy, all_metrics, resized_mask
from adref.run.scoring import at_size, decision, map_scale, score_image, stored_map_scale
from adref.train import main as train


def test_run_directory_holds_what_the_architecture_says(small_run):
    names = {path.name for path in small_run.iterdir()}
    assert names == {".lock", "config.json", "metrics.jsonl", "checkpoint.pt", "evaluation", "report.html"}
    maps = sorted(str(p.relative_to(small_run / "evaluation/maps")) for p in small_run.rglob("*.npy"))
    assert maps == [f"test/{d}/{i:03d}.png.npy" for d in ("good", "spot") for i in range(3)]
    array = np.load(small_run / "evaluation/maps/test/spot/001.png.npy")
    assert array.dtype == np.float32 and array.shape == (40, 48)


def test_scores_and_maps_are_those_of_the_loaded_method(small_run):
    run = load(small_run)
    rows = rows_of(small_run / "evaluation/scores.csv")
    assert [row["path"] for row in rows] == [f"test/{d}/{i:03d}.png" for d in ("good", "spot") for i in range(3)]
    for index, row in enumerate(rows):
        image = read_image(small_run.parent / "data/part" / row["path"])
        score, small = score_image(run.method, image, 0, index)
        assert float(row["score"]) == score
        assert row["decision"] == ("anomalous" if score >= run.threshold else "good")
        stored = np.load(small_run / "evaluation/maps" / f"{row['path']}.npy")
        assert np.array_equal(stored, at_size(small, (40, 48)))


def test_metrics_are_recomputed_from_the_published_files(small_run):
    """Scores and maps suffice to compute every number again."""
    written = json.loads((small_run / "evaluation/metrics.json").read_text())
    rows = rows_of(small_run / "evaluation/scores.csv")
    scores, labels = np.array([float(r["score"]) for r in rows]), np.array([int(r["label"]) for r in rows])
    assert written["image_auroc"] == metrics.auroc(scores, labels)
    maps, masks = [], []
    for row in rows:
        maps.append(np.load(small_run / "evaluation/maps" / f"{row['path']}.npy"))
        mask = small_run.parent / "data/part" / row["path"].replace("test", "ground_truth").replace(".png", "_mask.png")
        masks.append(read_mask(mask) if mask.exists() else np.zeros(maps[-1].shape, bool))
    again = metrics.pixel_metrics(maps, masks, (0.3, 0.05))
    for name in ("pixel_auroc", "pixel_ap", "aupro_0.3", "aupro_0.05"):
        assert written[name] == again[name] and written["by_defect"]["spot"][name] == again[name]
    low, high = written["image_auroc_interval"]
    assert 0 <= low <= written["image_auroc"] <= high <= 1
    assert written["images"] == {"good": 3, "spot": 3} and written["resolution"] == "native"


def test_resolution_and_conventions_are_recorded(small_run, tmp_path):
    shutil.copytree(small_run, tmp_path / "run")
    more = ["--resolution", "method", "--gt-mode", "draem", "--convention", "200-step", "--device", "cpu"]
    assert main([str(tmp_path / "run"), *more]) == 0
    written = json.loads((tmp_path / "run/evaluation/metrics.json").read_text())
    native = json.loads((small_run / "evaluation/metrics.json").read_text())
    assert (written["resolution"], written["gt_mode"]) == ("method", "draem") and "aupro_0.3_200-step" in written
    assert written["image_auroc"] == native["image_auroc"] and written["pixel_ap"] != native["pixel_ap"]
    # maps on disk stay at the pictures' own size
    assert np.load(tmp_path / "run/evaluation/maps/test/good/000.png.npy").shape == (40, 48)


def test_draem_masks_lose_their_boundary():
    """Bilinear resizing, then only pixels equal to 1 count."""
    mask = np.zeros((8, 8), bool)
    mask[1:6, 1:6] = True  # 5 x 5: halving puts the left edge between two pixels
    assert resized_mask(mask, (8, 8), "draem").sum() == resized_mask(mask, (8, 8), "nearest").sum() == 25
    halved = resized_mask(mask, (4, 4), "draem")
    assert halved.tolist() == [[False] * 4, [False, True, True, False], [False, True, True, False], [False] * 4]
    assert resized_mask(mask, (4, 4), "nearest").sum() == 9


def records(labels):
    return [Record(f"{i}.png", label, "spot" if label else "good", None) for i, label in enumerate(labels)]


def test_a_missing_class_gives_nan_with_a_reason():
    maps, masks = [np.random.rand(4, 4) for _ in range(3)], [np.zeros((4, 4), bool)] * 3
    result, curve = all_metrics(records([0, 0, 0]), [0.1, 0.2, 0.3], maps, masks, 0, "exact")
    for name in ("image_auroc", "pixel_auroc", "aupro_0.3"):
        assert np.isnan(result[name]) and len(result["reasons"][name]) > 10
    assert "image_auroc_interval" not in result and curve[0].size == 0


def test_defects_without_masks_have_image_metrics_only():
    maps, masks = [np.random.rand(4, 4) for _ in range(4)], [np.zeros((4, 4), bool)] * 2 + [None] * 2
    result, _ = all_metrics(records([0, 0, 1, 1]), [0.1, 0.2, 0.3, 0.15], maps, masks, 0, "exact")
    assert result["image_auroc"] == 0.75 and np.isnan(result["pixel_auroc"])
    assert result["reasons"]["pixel_auroc"] == "no test image has a mask of a defect"


def test_no_test_image_at_all():
    result, _ = all_metrics([], [], [], [], 0, "exact")
    assert np.isnan(result["image_auroc"]) and result["by_defect"] == {} and map_scale([]) == (0.0, 1.0)


def test_ranks_that_share_the_images_make_the_same_evaluation(small_run, tmp_path):
    category, rules = find_category(small_run.parent / "data", "part"), Rules("method", shown=2)
    digests = check_files(category.test).digests
    for name, ranks in (("whole", 1), ("shared", 3)):
        run, rows = load(shutil.copytree(small_run, tmp_path / name)), []
        for rank in reversed(range(ranks)):
            rows += score_test_images(run, category, digests, range(rank, 6, ranks), rules)
        conclude(run, category, digests, [row for _, row in sorted(rows)], rules)
    files = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("[!.]*") if path.is_file()]
    assert len(files) == 3 + 2 + 6 + 1
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "shared" / file).read_bytes(), file


def test_memory_of_the_numbers_does_not_grow_with_defects_or_categories(tmp_path):
    """Maps and masks are read when asked for: what grows is one copy of the good scores, with any number of groups."""
    rng = np.random.default_rng(0)
    noise, mask = rng.random((5, 64, 64), dtype=np.float32), np.zeros((64, 64), bool)
    mask[:8, :8] = True
    peaks = {}
    for count in (100, 400):
        test = [Record(tmp_path, i % 2, f"{i % 3}" if i % 2 else "good", tmp_path if i % 2 else None, f"{i // 2 % 2}")
                for i in range(count)]  # fmt: skip
        test = [r._replace(defect=f"{r.category}/{r.defect}") for r in test]
        maps, masks = Lazy(lambda i: noise[i % 5] * np.float32(1 + i), range(count)), [r.mask and mask for r in test]
        tracemalloc.start()
        numbers, _ = all_metrics(test, [i % 7 for i in range(count)], maps, masks, 0, "exact")
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(numbers["by_defect"]) == 6 and len(numbers["by_category"]) == 3
    assert peaks[400] - peaks[100] < 1.5 * 300 * 64 * 64 * 4


def test_decision_rule():
    assert decision(0.5, 0.5) == "anomalous" and decision(0.4, 0.5) == "good" and decision(0.4, None) == ""


def test_each_image_is_scored_by_itself(small_run):
    """Its neighbours in a batch change nothing but the last bits."""
    method, images = load(small_run).method, torch.rand(3, 3, 64, 64)
    with torch.inference_mode():
        together, apart = method.anomaly_map(images), torch.cat([method.anomaly_map(i[None]) for i in images])
    assert torch.allclose(together, apart, atol=1e-6)


@pytest.mark.parametrize(
    ("more", "words"),
    [(["--gt-mode", "draem"], "--gt-mode draem needs --resolution method"), (["--device", "tpu"], "--device takes"),
     (["--data", "nowhere"], "nowhere")],
)  # fmt: skip
def test_refusals(more, words, small_run, capsys):
    before = (small_run / "evaluation/metrics.json").read_bytes()
    assert main([str(small_run), *more]) == 2
    assert words in capsys.readouterr().err
    assert (small_run / "evaluation/metrics.json").read_bytes() == before


def test_options_of_the_map_may_be_changed_after_training(data, tmp_path, capsys):
    """Scores are those of the changed options; the stored threshold decides about none of them."""
    run = tmp_path / "run"
    flags = "--size 32,32 --width 4 --levels 2 --sigmas 0.5,1 --epochs 1 --batch-size 2 --workers 0 --device cpu"
    assert train(["noise_to_norm", "--data", str(data), "--out", str(run), "--holdout", "0.3", *flags.split()]) == 0
    assert main([str(run), "--ssim-constants", "printed"]) == 0  # the run's own
    own, rows = json.loads((run / "evaluation/metrics.json").read_text()), rows_of(run / "evaluation/scores.csv")
    assert own["changed_after_training"] == {} and own["calibration"] and all(row["decision"] for row in rows)
    capsys.readouterr()
    assert main([str(run), "--ssim-constants", "squared", "--noise-repeats", "2"]) == 0
    told = [f"changed after training: {name}; no decisions" for name in ("noise_repeats 2", "ssim_constants squared")]
    assert capsys.readouterr().out.splitlines()[1:3] == told
    metrics = json.loads((run / "evaluation/metrics.json").read_text())
    assert metrics["changed_after_training"] == {"noise_repeats": 2, "ssim_constants": "squared"}
    assert metrics["calibration"] is None and stored_map_scale(run) is None
    report = (run / "report.html").read_text()
    assert "no decisions, as --noise-repeats 2, --ssim-constants squared is of this evaluation alone" in report
    assert "ssim_constants: printed" in report  # what the run was trained with
    method, image = load(run).method, read_image(data / "part/test/good/000.png")
    method.options = dataclasses.replace(method.options, ssim_constants="squared", noise_repeats=2)
    first = rows_of(run / "evaluation/scores.csv")[0]
    assert float(first["score"]) == score_image(method, image, 0, 0)[0] != float(rows[0]["score"])
    assert first["decision"] == "" and rows[0]["decision"]
    assert main([str(run), "--width", "8"]) == 2 and "unknown option --width" in capsys.readouterr().err
