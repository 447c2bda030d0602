"""Mistakes at the keyboard: one clear sentence each, exit code 2, no traceback, nothing half-written.

Mistakes in a data set are in test_data.py."""

import ast
import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import SMALL

from adref import evaluate as evaluate_evaluate
from adref import load, predict, train
from adref.data import __main__ as data_command
from adref.options import UserError
from adref.run import scoring as evaluate

TRAIN_MISTAKES = [
    (["dream"], "unknown method dream; known: draem, srdad"),
    (["draem", "--learnin-rate", "1"], "unknown option --learnin-rate; known: --learning-rate"),
    (["draem", "--zzz=1"], "unknown option --zzz"),
    (["draem", "extra"], "unknown argument 'extra'"),
    (["draem", "--prest", "tiny"], "unknown option --prest; known: --preset"),
    (["draem", "--texture-weight", "1,0.2"], "--texture-weight takes two numbers in ascending order; got 1.0,0.2"),
    (["draem", "--perlin-exponents", "5,0"], "--perlin-exponents takes two numbers in ascending order"),
    (["draem", "--device", "meta"], "--device takes auto, cpu, cuda or cuda:N"),
    (["draem", "--data", ""], "--data takes a path; got an empty name"),
    (["draem", "--preset", "huge"], "unknown --preset huge; known: paper, tiny"),
    (["draem", "--ablation", "none"], "unknown --ablation none; known: paper"),
    (["draem", "--epochs", "many"], "--epochs takes a whole number; got 'many'"),
    (["draem", "--epochs", "-1"], "--epochs takes 0 or more; got -1"),
    (["draem", "--batch-size", "0"], "--batch-size takes 1 or more; got 0"),
    (["draem", "--learning-rate", "nan"], "--learning-rate takes a number; got 'nan'"),
    (["draem", "--learning-rate", "-1"], "--learning-rate takes 0 or more; got -1"),
    (["draem", "--size", "100,64"], "--size takes multiples of 32; got 100,64"),
    (["draem", "--size", "64"], "--size takes 2 values joined by commas; got '64'"),
    (["draem", "--size", "32,32"], "--size takes 64 to 65536; got 32,32"),
    (["draem", "--score-window", "4"], "--score-window takes an odd number"),
    (["draem", "--mask-threshold", "0,2"], "--mask-threshold takes -1 to 1; got 0,2"),
    (["draem", "--anomaly-probability", "1.5"], "--anomaly-probability takes 0 to 1; got 1.5"),
    (["draem", "--resize", "nearest"], "--resize takes one of bilinear, antialias; got 'nearest'"),
    (["draem", "--texture-operation-count", "11"], "--texture-operation-count takes 0 to 10; got 11"),
    (["draem", "--texture-operation-count", "8", "--texture-operations", "paper"], "takes 0 to 7, the number of kinds"),
    (["draem", "--seed", "-3"], "--seed takes 0 to"),
    (["draem", "--seed", "one"], "--seed takes a whole number; got 'one'"),
    (["draem", "--workers", "-1"], "--workers takes 0 to 256; got -1"),
    (["draem", "--holdout", "1"], "--holdout takes 0 to 0.9; got 1"),
    (["draem", "--false-alarm-rate", "0"], "--false-alarm-rate takes 1e-06 to 1; got 0"),
    (["draem", "--precision", "fp16"], "--precision takes one of fp32, bf16; got 'fp16'"),
    (["draem", "--device", "tpu"], "--device takes auto, cpu, cuda or cuda:N that is there; got 'tpu'"),
    (["draem", "--device", "cuda:99"], "--device takes"),
    (["draem", "--start-method", "thread"], "--start-method takes one of fork, spawn, forkserver"),
    (["draem", "--data", "DATA/absent"], "DATA/absent"),
    (["draem", "--category", "prat"], "part"),
    (["draem", "--textures", "DATA/absent"], "DATA/absent"),
    (["draem", "--textures", "DATA/part/train"], None),  # a folder of folders of pictures is fine
    (["draem", "--weights", "DATA/absent.pckl,DATA/absent.pckl"], "--weights DATA/absent.pckl cannot be read"),
    (["draem", "--weights", "DATA/part/train/good/000.png"], "--weights DATA/part/train/good/000.png cannot be read"),
    (
        ["draem", "--out", "DATA/part"],
        "--out DATA/part exists already; give --resume to go on with it, or another name",
    ),
    (["draem", "--out", "DATA/part/train/good/000.png/run"], "cannot be written"),
    (["--resume"], "--resume needs --out RUN"),
    (["--resume", "--out", "DATA/absent"], "DATA/absent is no run directory: it has no config.json"),
    (["--resume", "--out", "DATA/part"], "DATA/part is no run directory"),
]


@pytest.mark.parametrize(
    ("arguments", "words"), TRAIN_MISTAKES, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_train_refuses(arguments, words, data, textures, tmp_path, capsys):
    arguments = [word.replace("DATA", str(data)) for word in arguments]
    given = [word.split("=")[0] for word in arguments]
    if arguments[0] == "draem":
        base = {"--data": str(data), "--textures": str(textures), "--out": str(tmp_path / "run"), "--epochs": "0"}
        base |= dict(zip(SMALL[::2], SMALL[1::2])) | {"--epochs": "0"}
        arguments += [word for flag, value in base.items() if flag not in given for word in (flag, value)]
    before = sorted(tmp_path.rglob("*"))
    code = train.main(arguments)
    error = capsys.readouterr().err
    if words is None:
        assert code == 0, error
        return
    assert code == 2 and words.replace("DATA", str(data)) in error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before, "something was written"


def damage(run, kind):
    """Damages a copy of a run; returns the words that the error must hold."""
    config, checkpoint = run / "config.json", run / "checkpoint.pt"
    if kind == "no config":
        config.unlink()
        return "is no run directory: it has no config.json"
    if kind == "cut config":
        config.write_text(config.read_text()[:100])
        return "config.json cannot be read"
    if kind == "config of something else":
        config.write_text('{"a": 1}')
        return "config.json cannot be read: keys are missing or damaged"
    if kind == "flags of something else":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"flags": []}))
        return "config.json cannot be read: keys are missing or damaged: flags"
    if kind == "unknown option in config":
        config.write_text(config.read_text().replace('"batch_size"', '"batch_sise"'))
        return "unknown option --batch-sise; known: --batch-size"
    if kind == "unknown method in config":
        config.write_text(config.read_text().replace('"method": "draem"', '"method": "dream"'))
        return "unknown method dream"
    if kind == "no checkpoint":
        checkpoint.unlink()
        return "checkpoint.pt is missing"
    if kind == "cut checkpoint":
        checkpoint.write_bytes(checkpoint.read_bytes()[:2000])
        return "is no checkpoint of adref"
    if kind == "empty checkpoint":
        checkpoint.write_bytes(b"")
        return "is no checkpoint of adref"
    if kind == "checkpoint that carries code":
        torch.save({"model": {}, "step": 0, "evil": UserError("x")}, checkpoint)
        return "is no checkpoint of adref"
    if kind == "weights of another width":
        text = json.loads(config.read_text())
        text["options"]["discriminator_width"] = 8
        config.write_text(json.dumps(text))
        return "the weights do not fit config.json"
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", [
    "no config", "cut config", "config of something else", "flags of something else",
    "unknown option in config", "unknown method in config",
    "no checkpoint", "cut checkpoint", "empty checkpoint", "checkpoint that carries code", "weights of another width",
])  # fmt: skip
def test_damaged_runs_are_refused_by_every_command(kind, small_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    words = damage(run, kind)
    picture = str(small_run.parent / "data/part/test/spot/000.png")
    for command, arguments in (
        (evaluate_evaluate.main, [str(run)]),
        (predict.main, [str(run), picture, "--out", "-"]),
        (train.main, ["--resume", "--out", str(run)]),
    ):
        assert command(arguments) == 2
        error = capsys.readouterr().err
        assert words in error and error.startswith("error: ") and error.count("\n") == 1, error
    with pytest.raises(UserError):
        load(run)


def test_files_that_cannot_be_written_are_named(small_run, tmp_path, capsys, monkeypatch):
    """A full disk, a read-only run: one sentence, and the evaluation that was there stays."""
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    before = (run / "evaluation/scores.csv").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device", str(run / "evaluation.new"))

    monkeypatch.setattr(evaluate.np, "save", full)
    assert evaluate_evaluate.main([str(run), "--device", "cpu"]) == 2
    assert capsys.readouterr().err == f"error: {run}/evaluation.new: No space left on device\n"
    assert (run / "evaluation/scores.csv").read_bytes() == before


def test_ctrl_c_outside_training_is_no_traceback(small_run, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "load", interrupted)
    assert predict.main([str(small_run), str(small_run), "--out", "-"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_predict_refuses_an_output_that_is_a_file(small_run, tmp_path, capsys):
    (tmp_path / "out").touch()
    picture = str(small_run.parent / "data/part/test/spot/000.png")
    assert predict.main([str(small_run), picture, "--out", str(tmp_path / "out")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_predict_names_an_empty_folder(small_run, tmp_path, capsys):
    assert predict.main([str(small_run), str(tmp_path), "--out", "-"]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_training_refuses_a_bad_data_set_with_the_words_of_the_check(data, textures, tmp_path, capsys):
    bad = data / "part/test/spot/001.png"
    bad.write_bytes(bad.read_bytes()[:200])
    (data / "part/ground_truth/spot/002_mask.png").unlink()
    assert data_command.main([str(data)]) == 2
    checked = capsys.readouterr().out
    arguments = ["draem", "--data", str(data), "--textures", str(textures), "--out", str(tmp_path / "run"), *SMALL]
    assert train.main(arguments) == 2
    refused = capsys.readouterr().err
    for path in (bad, data / "part/test/spot/002.png"):
        reason = next(line for line in checked.splitlines() if path.name in line).split(path.name, 1)[1].strip(": ")
        assert reason in refused, (reason, refused)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["train", "evaluate", "predict", "data", "synthesize", "benchmark", "study", "site"])
def test_help_of_every_command(name):
    module = f"adref.{name}"
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and f"python -m {module}" in done.stdout and not done.stderr
    if module == "adref.train":  # meaning, default and source of each option
        assert "--texture-weight" in done.stdout and "[0.2,1.0; code; D7]" in " ".join(done.stdout.split())


def test_quiet_when_stderr_is_no_terminal(small_run, tmp_path):
    command = [sys.executable, "-m", "adref.evaluate", str(small_run), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""


def test_help_loads_no_part_of_scipy_that_it_does_not_need():
    """Half of what --help cost beside torch were modules of scipy; `scipy.NAME` loads each when it is first used."""
    code = "import sys, adref.train; print([name for name in sys.modules if name.startswith('scipy.')])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"scipy.ndimage", "scipy.integrate", "scipy.optimize", "scipy.sparse"} & set(ast.literal_eval(found))
