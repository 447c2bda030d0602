"""Accidents: after each, one sentence is said, nothing is lost, and --resume ends with the weights of a calm run."""

import builtins
import errno
import io
import multiprocessing
import os
import pickle
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import at_step, checkpoint, interrupt, picture, same_weights, save_checkpoint, without_times
from PIL import Image
from test_train import arguments

from adref import evaluate, load, predict, train
from adref.methods.draem import DRAEM
from adref.options import UserError
from adref.run import distributed
from adref.run.directory import lock

FULL = "No space left on device"


def check(code: int, said: str, expected: int, words: str) -> None:
    """The command ended with this code, in one sentence with these words."""
    assert code == expected and words in said, (code, said)
    assert said.count("\n") == 1 and "Traceback" not in said, said


@pytest.fixture(scope="module")
def stopped(small_run, textures, tmp_path_factory) -> Path:
    """A run like `small_run` that was stopped after three of its six steps; tests must not change it."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, DRAEM, 3, interrupt)
        assert train.main(arguments(small_run.parent / "data", textures, run)) == 130
    return run


@pytest.fixture
def half(stopped, tmp_path) -> Path:
    return shutil.copytree(stopped, tmp_path / "half")


def resume(run: Path, *more) -> int:
    return train.main(["--resume", "--out", str(run), *map(str, more)])


def check_goes_on(run: Path, small_run: Path) -> None:
    """Resumed, the run ends as one that nothing disturbed, and no temporary file is left."""
    assert not multiprocessing.active_children()
    assert resume(run) == 0
    assert same_weights(run, small_run) and without_times(run) == without_times(small_run)
    assert not [path for path in run.rglob("*") if path.suffix in (".tmp", ".new", ".old", ".partial")]


class FullDisk(io.FileIO):
    """A file on a disk that has room for 100 bytes more."""

    room = 100

    def write(self, data):
        part = super().write(bytes(data)[: self.room])
        if not part and len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as the system says it: without a name
        self.room -= part
        return part

    def fileno(self):
        raise io.UnsupportedOperation  # numpy and Pillow would write past this class


def fill_disk(patch, name: str) -> None:
    """Every file whose name ends so, opened to be written, is on a full disk."""

    def opened(path, mode="r", *rest, real=builtins.open, **more):
        if isinstance(path, int) or not Path(path).name.endswith(name) or not set(mode) & set("wax"):
            return real(path, mode, *rest, **more)
        file = io.BufferedWriter(FullDisk(path, mode.strip("bt")))
        return file if "b" in mode else io.TextIOWrapper(file, "utf-8", more.get("errors"))

    patch.setattr(builtins, "open", opened)
    patch.setattr(io, "open", opened)  # pathlib's


@pytest.mark.parametrize("name", ["checkpoint.pt.tmp", "metrics.jsonl"])
def test_full_disk_in_training(name, half, small_run, monkeypatch, capsys):
    before = (half / "checkpoint.pt").read_bytes()
    with monkeypatch.context() as patch:
        fill_disk(patch, name)
        code = resume(half, "--checkpoint-steps", 1)
    check(code, capsys.readouterr().err, 2, f"{half / name.removesuffix('.tmp')}: {FULL}")
    assert (half / "checkpoint.pt").read_bytes() == before
    check_goes_on(half, small_run)


@pytest.mark.parametrize("name", ["001.png.npy", "scores.csv.tmp", "metrics.json.tmp", "report.html.tmp"])
def test_full_disk_in_an_evaluation(name, small_run, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(small_run, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        fill_disk(patch, name)
        code = evaluate.main([str(run), "--device", "cpu"])
    check(code, capsys.readouterr().err, 2, FULL)
    kept = before if name != "report.html.tmp" else [run / "report.html", run / "checkpoint.pt"]
    assert all(path.read_bytes() == before[path] for path in kept) and not (run / "evaluation.new").exists()


@pytest.mark.parametrize("name", ["001.png.npy.tmp", "001.png.png.tmp", "scores.csv.tmp"])
def test_full_disk_in_a_prediction(name, small_run, tmp_path, monkeypatch, capsys):
    words = [str(small_run), str(small_run.parent / "data/part/test/spot"), "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        fill_disk(patch, name)
        code = predict.main([*words, "--device", "cpu"])
    said = capsys.readouterr().err
    assert code == 2 and f"error: {tmp_path / 'out'}/" in said and f"{name.removesuffix('.tmp')}: {FULL}" in said
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_full_disk_for_a_new_run(data, textures, tmp_path, monkeypatch, capsys):
    fill_disk(monkeypatch, "checkpoint.pt.tmp")
    run = tmp_path / "new/run"
    code = train.main(arguments(data, textures, run))
    said = capsys.readouterr().err
    check(code, said, 2, f"error: {run}/")
    assert f"checkpoint.pt: {FULL}" in said
    assert not list(run.parent.iterdir())


@pytest.fixture
def in_background():
    """Starts a command in a process of its own; `process.exitcode` is its exit code."""
    started = []

    def start(main, *words) -> multiprocessing.Process:
        def run():
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os._exit(main(list(map(str, words))))

        started.append(multiprocessing.get_context("fork").Process(target=run))
        started[-1].start()
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.join()


def wait(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_sigterm(half, small_run, tmp_path, in_background, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        at_step(patch, DRAEM, 2, lambda: ((tmp_path / "here").touch(), time.sleep(2)))
        process = in_background(train.main, "--resume", "--out", half, "--workers", 1)
        wait((tmp_path / "here").exists)
        os.kill(process.pid, signal.SIGTERM)
        process.join(60)
    assert process.exitcode == 130 and "Interrupted and saved. Go on with:" in capfd.readouterr().out
    assert checkpoint(half)["step"] == 5
    check_goes_on(half, small_run)


@pytest.mark.slow
def test_killed_data_worker(half, small_run, monkeypatch, capsys):
    def kill():
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)
        time.sleep(10)  # until the news comes

    with monkeypatch.context() as patch:
        at_step(patch, DRAEM, 2, kill)
        code = resume(half, "--workers", 1, "--checkpoint-steps", 1)
    said = capsys.readouterr().err
    check(code, said, 1, "stopped: a data worker died")
    assert f"{half} keeps its last checkpoint" in said and checkpoint(half)["step"] == 4
    check_goes_on(half, small_run)


def test_a_restart_resumes_the_run_of_its_own_torchrun_alone(half, small_run, textures, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setattr(distributed, "launch", lambda: "job 1")
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "count", lambda: 1)
    new = arguments(small_run.parent / "data", textures, half)
    for before in ("", "job 2"):  # who wrote there last
        (half / ".lock").write_text(before)
        code = train.main(new)
        check(code, capsys.readouterr().err, 2, f"--out {half} exists already")
    with lock(half):
        pass
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: False)
    monkeypatch.setattr(distributed, "process_group", io.StringIO)  # a context that does nothing
    assert train.main(new) == 0 and same_weights(half, small_run)


def test_other_commands_refuse_torchrun(small_run, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "launch", lambda: "job 1")
    code = predict.main([str(small_run), "x", "--out", "-"])
    check(code, capsys.readouterr().err, 2, "torchrun starts adref.train and adref.evaluate")


@pytest.mark.slow
def test_two_processes_on_one_run(half, small_run, in_background, monkeypatch, capsys):
    images = str(small_run.parent / "data/part/test/spot")
    with monkeypatch.context() as patch:
        at_step(patch, DRAEM, 1, lambda: ((half / "here").touch(), time.sleep(60)))
        process = in_background(train.main, "--resume", "--out", half)
        wait((half / "here").exists)
    for command, *words in ((train.main, "--resume", "--out", str(half)), (evaluate.main, str(half))):
        check(command(words), capsys.readouterr().err, 2, f"{half} is in use by another process")
    assert predict.main([str(half), images, "--out", "-", "--device", "cpu"]) == 0  # it only reads
    process.kill()
    process.join()
    (half / "here").unlink()
    check_goes_on(half, small_run)


@pytest.mark.parametrize("words", ["cannot be opened (No such file", "has changed since the command began"])
def test_a_training_file_that_goes_or_changes(words, small_run, textures, tmp_path, monkeypatch, capsys):
    data, run = shutil.copytree(small_run.parent / "data", tmp_path / "data"), tmp_path / "run"
    folder = data / "part/train/good"
    shutil.copytree(folder, tmp_path / "kept")

    def disturb():
        for path in folder.iterdir():
            Image.fromarray(picture(50)).save(path)
            if "No such file" in words:
                path.unlink()

    with monkeypatch.context() as patch:
        at_step(patch, DRAEM, 1, disturb)
        code = train.main(arguments(data, textures, run, "--memory-limit", "0"))
    said = capsys.readouterr().err
    check(code, said, 2, words)
    assert said.startswith(f"error: {folder}/00")
    shutil.copytree(tmp_path / "kept", folder, dirs_exist_ok=True)
    check_goes_on(run, small_run)


def no_memory(kind: str) -> None:
    if kind == "Python":
        np.empty(10**14)
    if kind == "CPU":
        torch.empty(10**14)
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


@pytest.mark.parametrize("kind", ["Python", "CPU", "CUDA"])
def test_out_of_memory(kind, half, small_run, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        at_step(patch, DRAEM, 2, lambda: no_memory(kind))
        code = resume(half, "--checkpoint-steps", 1)
    said = capsys.readouterr().err
    check(code, said, 1, "--batch-size 1 in a new run is the first thing")
    assert f"{half} keeps its last checkpoint" in said and checkpoint(half)["step"] == 4
    check_goes_on(half, small_run)
    with monkeypatch.context() as patch:
        patch.setattr(DRAEM, "anomaly_map", lambda *_: no_memory(kind))
        code = evaluate.main([str(half), "--device", "cpu"])
    check(code, capsys.readouterr().err.splitlines()[-1] + "\n", 1, "to score a picture at --size 64,64")


def test_nan_in_the_data(half, small_run, monkeypatch, capsys):
    def poisoned(image, rng, options, sources, corrupt=DRAEM.corrupt):
        example = corrupt(image, rng, options, sources)
        return example._replace(corrupted=example.corrupted * torch.nan)

    with monkeypatch.context() as patch:
        patch.setattr(DRAEM, "corrupt", staticmethod(poisoned))
        check(resume(half), capsys.readouterr().err, 1, "stopped: loss/l2 is nan")
    assert checkpoint(half)["step"] == 3
    check_goes_on(half, small_run)


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def damage(run: Path, kind: str) -> str:
    """Damages a run; returns the words that the error must hold."""
    config, path, state = run / "config.json", run / "checkpoint.pt", checkpoint(run)
    whole, made = path.read_bytes(), run.parent / "made"
    text = config.read_text()
    if kind in (edits := {
        "no config": ("", "is no run directory: it has no config.json"),
        "cut config": (text[:100], "config.json cannot be read"),
        "config of something else": ('{"a": 1}', "is not of a run of this version: method, preset"),
        "unknown option": (text.replace('"batch_size"', '"batch_sise"'), "unknown option --batch-sise; known: --b"),
        "unknown method": (text.replace('"method": "draem"', '"method": "dream"'), "unknown method dream"),
        "another width": (text.replace('nator_width": 4', 'nator_width": 8'), "not of these options"),
    }):  # fmt: skip
        config.write_text(edits[kind][0])
        if kind == "no config":
            config.unlink()
        return edits[kind][1]
    if kind == "no checkpoint":
        path.unlink()
        return "checkpoint.pt is missing"
    if kind == "NaN in a weight":
        list(state["model"].values())[3].view(-1)[0] = torch.nan
        save_checkpoint(state, run)
        return "is not finite"
    if kind == "a bit of a weight":  # which torch would load
        place = whole.index(state["model"]["reconstructor.out.bias"].numpy().tobytes()) + 1
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert not torch.equal(
            checkpoint(run)["model"]["reconstructor.out.bias"], state["model"]["reconstructor.out.bias"]
        )
        return "is damaged"
    if kind == "code":
        torch.save(state | {"best": Code(made)}, path)
    elif kind == "code in a plain pickle":
        path.write_bytes(pickle.dumps({"model": {}, "step": 0, "best": Code(made)}))
    else:
        path.write_bytes(whole[: int(kind)])
    return "checkpoint.pt is"


DAMAGES = ("no config", "cut config", "config of something else", "unknown option", "unknown method", "another width",
           "no checkpoint", "NaN in a weight", "a bit of a weight", "code", "code in a plain pickle", "0", "100",
           "2000", "-1")  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_runs_are_refused_by_every_command(kind, small_run, tmp_path, capsys):
    run, images = shutil.copytree(small_run, tmp_path / "run"), str(small_run.parent / "data/part/test/spot")
    words = damage(run, kind)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for command, *given in ((evaluate.main, str(run)), (predict.main, str(run), images, "--out", "-"),
                            (train.main, "--resume", "--out", str(run))):  # fmt: skip
        check(command([*given, "--device", "cpu"]), capsys.readouterr().err, 2, words)
    with pytest.raises(UserError):
        load(run)
    assert all(path.read_bytes() == text for path, text in before.items() if path.name != "config.json")
    assert not (tmp_path / "made").exists(), "code of a checkpoint was executed"


def test_damaged_log(half, small_run, capsys):
    log = half / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text(lines[0] + "5\n" + lines[2])
    check(resume(half), capsys.readouterr().err, 2, "metrics.jsonl, line 2 is damaged")
    log.write_text("".join(lines) + lines[2][:30])  # a crash leaves this: no damage
    check_goes_on(half, small_run)


def test_moved_run(half, small_run, tmp_path, monkeypatch):
    images = small_run.parent / "data/part/test/spot"
    (tmp_path / "new/place").mkdir(parents=True)
    half.rename(tmp_path / "new/place/run")
    monkeypatch.chdir(tmp_path / "new")
    run = Path("place/run")
    assert predict.main([str(run), os.path.relpath(images), "--out", "out", "--device", "cpu"]) == 0
    assert evaluate.main([str(run), "--device", "cpu"]) == 0 and load(run).method.options.epochs == 2
    check_goes_on(run, small_run)
