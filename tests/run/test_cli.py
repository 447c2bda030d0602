"""Mistakes at the keyboard: one clear sentence each, exit code 2, no traceback, nothing half-written.

Mistakes in a data set are in test_layouts.py."""

import ast
import subprocess
import sys

import pytest
from conftest import SMALL

from adref import predict, train
from adref.data import __main__ as data_command
from adref.methods import METHODS

TRAIN_MISTAKES = [
    (["dream"], "unknown method dream; known: patchcore, draem, srdad"),
    (["draem", "--learnin-rate", "1"], "unknown option --learnin-rate; known: --learning-rate"),
    (["draem", "extra"], "unknown argument 'extra'"),
    (["draem", "--prest", "tiny"], "unknown option --prest; known: --preset"),
    (["draem", "--texture-weight", "1,0.2"], "--texture-weight takes two numbers in ascending order; got 1.0,0.2"),
    (["draem", "--data", ""], "an empty name among the arguments: 'draem' '--data' ''"),
    (["draem", "--preset", "huge"], "unknown --preset huge; known: paper, tiny, small"),
    (["draem", "--ablation", "none"], "unknown --ablation none; known: literal"),
    (["draem", "--epochs", "many"], "--epochs takes a whole number; got 'many'"),
    (["draem", "--epochs", "-1"], "--epochs takes 0 or more; got -1"),
    (["draem", "--learning-rate", "nan"], "--learning-rate takes a number; got 'nan'"),
    (["draem", "--size", "100,64"], "--size takes multiples of 32; got 100,64"),
    (["draem", "--size", "64"], "--size takes 2 values joined by commas; got '64'"),
    (["draem", "--score-window", "4"], "--score-window takes an odd number"),
    (["draem", "--mask-threshold", "0,2"], "--mask-threshold takes -1 to 1; got 0,2"),
    (["draem", "--resize", "nearest"], "--resize takes one of bilinear, antialias; got 'nearest'"),
    (["draem", "--seed", "-3"], "--seed takes 0 to"),
    (["draem", "--holdout", "1"], "--holdout takes 0 to 0.9; got 1"),
    (["draem", "--device", "cuda:99"], "--device takes auto, cpu, cuda or cuda:N that is there; got 'cuda:99'"),
    (["draem", "--data", "DATA/absent"], "DATA/absent"),
    (["draem", "--category", "prat"], "part"),
    (["draem", "--textures", "DATA/absent"], "DATA/absent"),
    (["draem", "--textures", "DATA/part/train"], None),  # a folder of folders of pictures is fine
    (["draem", "--weights", "DATA/absent.pckl,DATA/absent.pckl"], "--weights DATA/absent.pckl cannot be read"),
    (["draem", "--weights", "DATA/part/train/good/000.png"], "--weights DATA/part/train/good/000.png cannot be read"),
    (["draem", "--out", "DATA/part"], "--out DATA/part exists already; give --resume to go on with it, or another"),
    (["draem", "--out", "DATA/part/train/good/000.png/run"], "000.png/run: Not a directory"),
    (["--resume"], "--resume needs --out RUN"),
    (["--resume", "--out", "DATA/absent"], "DATA/absent is no run directory: it has no config.json"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "words"), TRAIN_MISTAKES, ids=str)
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


def test_ctrl_c_outside_training_is_no_traceback(small_run, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "load", interrupted)
    assert predict.main([str(small_run), str(small_run), "--out", "-"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_predict_refuses_an_output_that_is_a_file_and_an_empty_folder(small_run, tmp_path, capsys):
    out, picture = tmp_path / "out", small_run.parent / "data/part/test/spot/000.png"
    out.touch()
    for given, words in ((picture, f"error: {out}/maps: Not a directory"), (tmp_path, f"{tmp_path}: holds no images")):
        assert predict.main([str(small_run), str(given), "--out", str(out)]) == 2
        assert words in capsys.readouterr().err


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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "evaluate", "predict", "data", "synthesize", "benchmark"])
def test_help_of_every_command(name):
    module = f"adref.{name}"
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and f"python -m {module}" in done.stdout and not done.stderr
    if module == "adref.train":  # meaning, default, source and the paper's value of each option
        text = " ".join(done.stdout.split())
        assert "--texture-weight" in text and "[0.2,1.0; code] contradiction, the paper: beta of the texture" in text


@pytest.mark.parametrize("name", METHODS)
def test_help_of_every_method(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        train.main([name, "--help"])
    text = "".join(capsys.readouterr().out.split())  # it breaks lines at hyphens
    assert all(word in text for word in (*METHODS[name].ablations, *METHODS[name].presets, "--batch-size"))


@pytest.mark.slow
def test_quiet_when_stderr_is_no_terminal(small_run, tmp_path):
    command = [sys.executable, "-m", "adref.evaluate", str(small_run), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.slow
def test_help_loads_no_part_of_scipy_that_it_does_not_need():
    """Half of what --help cost beside torch were modules of scipy; `scipy.NAME` loads each when it is first used."""
    code = "import sys, adref.train; print([name for name in sys.modules if name.startswith('scipy.')])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"scipy.ndimage", "scipy.integrate", "scipy.optimize", "scipy.sparse"} & set(ast.literal_eval(found))
