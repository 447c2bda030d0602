"""Prediction on single pictures and folders."""

import csv
import io
import shutil

import numpy as np
import torch
from conftest import checkpoint, picture, rows_of, save_checkpoint
from PIL import Image

from adref import load
from adref.predict import main, name_images


def run(small_run, *arguments) -> int:
    return main([str(small_run), *map(str, arguments), "--device", "cpu"])


def test_scores_maps_and_overlays_of_a_folder(small_run, tmp_path, capsys):
    folder = small_run.parent / "data/part/test"
    assert run(small_run, folder, "--out", tmp_path / "out") == 0
    rows = rows_of(tmp_path / "out/scores.csv")
    evaluated = {r["path"]: r for r in rows_of(small_run / "evaluation/scores.csv")}
    assert len(rows) == 6
    for row in rows:
        name = f"test/{row['path'][len(str(folder)) + 1 :]}"
        assert (row["score"], row["decision"]) == (evaluated[name]["score"], evaluated[name]["decision"])
        array = np.load(tmp_path / "out/maps" / f"{name[5:]}.npy")
        assert np.array_equal(array, np.load(small_run / "evaluation/maps" / f"{name}.npy"))
        assert Image.open(tmp_path / "out/overlays" / f"{name[5:]}.png").size == (48, 40)


def test_csv_on_stdout_writes_no_file(small_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(small_run, small_run.parent / "data/part/test/spot/000.png", "--out", "-") == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert float(row["score"]) >= 0 and not list(tmp_path.iterdir())


def test_bad_files_are_named_and_the_others_done(small_run, tmp_path, capsys):
    for i in range(3):
        Image.fromarray(picture(i)).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:300])
    assert run(small_run, tmp_path, tmp_path / "absent.png", "--out", tmp_path / "out") == 2
    errors = capsys.readouterr().err
    assert f"{tmp_path / '1.png'}" in errors and f"{tmp_path / 'absent.png'}: no such file" in errors
    rows = rows_of(tmp_path / "out/scores.csv")
    assert [row["path"] for row in rows] == [str(tmp_path / "0.png"), str(tmp_path / "2.png")]


def test_no_result_overwrites_another(tmp_path):
    files = [tmp_path / "a" / "1.png", tmp_path / "b" / "1.png", tmp_path / "1.jpg", tmp_path / "c" / "1.png"]
    for path in files:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    names, problems = name_images(files)
    assert list(names.values()) == files and len(names) == 4 and not problems
    names, _ = name_images([tmp_path / "a", tmp_path / "b"])
    assert len(names) == 2


def test_any_size_and_mode_is_scored_at_its_own_size(small_run, tmp_path):
    Image.fromarray(picture(1, 300, 37)).convert("L").save(tmp_path / "tall.png")
    Image.fromarray(picture(2, 31, 200)).convert("RGBA").save(tmp_path / "wide.png")
    assert run(small_run, tmp_path, "--out", tmp_path / "out") == 0
    assert np.load(tmp_path / "out/maps/tall.png.npy").shape == (300, 37)
    assert np.load(tmp_path / "out/maps/wide.png.npy").shape == (31, 200)


def test_the_embedding_example_of_the_readme(small_run):
    run = load(small_run)
    with torch.inference_mode():
        scores, maps = run.method.score(torch.rand(2, 3, 64, 64))
    assert maps.shape == (2, 1, 64, 64) and scores.shape == (2,) and not run.method.training
    assert run.method.options.epochs == 2 and run.threshold > 0 and run.state.finished


def test_a_run_without_an_end_makes_no_decisions(small_run, tmp_path, capsys):
    shutil.copytree(small_run, tmp_path / "run")
    save_checkpoint(checkpoint(small_run) | {"calibration": None, "finished": False}, tmp_path / "run")
    assert run(tmp_path / "run", small_run.parent / "data/part/test/spot", "--out", "-") == 0
    captured = capsys.readouterr()
    assert "stores no threshold" in captured.err
    assert all(row["decision"] == "" for row in csv.DictReader(io.StringIO(captured.out)))


def test_results_of_an_earlier_call_are_no_pictures(small_run, tmp_path):
    Image.fromarray(picture(1)).save(tmp_path / "a.png")
    for _ in range(2):
        assert run(small_run, tmp_path, "--out", tmp_path / "out") == 0
        assert len(rows_of(tmp_path / "out/scores.csv")) == 1
