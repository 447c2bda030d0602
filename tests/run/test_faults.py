"""What goes wrong outside of the code: the list of faults, what each command then says, and that nothing is lost.

After every fault in training `--resume` must end with the weights and the log of a run that nothing disturbed.
"""

import ast
import builtins
import errno
import io
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import picture
from PIL import Image
from test_train import arguments, same_weights, without_times

from adref import evaluate, load, predict, train
from adref.methods.draem.method import DRAEM
from adref.options import UserError
from adref.run import distributed
from adref.run.directory import in_use, load_checkpoint, read_log


class Fault(NamedTuple):
    """A row of the list."""

    fault: str
    planted: str
    sentence: str  # or what it must hold
    code: int  # of the command
    test: str  # file::function, or a function of this file


FULL = "No space left on device"
FAULTS = [
    Fault("full disk: checkpoint", "no room for checkpoint.pt", f"RUN/checkpoint.pt: {FULL}", 2, "test_full_disk"),
    Fault("full disk: log", "no room for metrics.jsonl", f"RUN/metrics.jsonl: {FULL}", 2, "test_full_disk"),
    Fault("full disk: map", "no room for evaluation.new/maps", f"maps/good/001.npy: {FULL}", 2, "test_full_disk"),
    Fault("full disk: scores", "no room for scores.csv", f"scores.csv: {FULL}", 2, "test_full_disk"),
    Fault("full disk: numbers", "no room for metrics.json", f"metrics.json: {FULL}", 2, "test_full_disk"),
    Fault("full disk: report", "no room for report.html", f"RUN/report.html: {FULL}", 2, "test_full_disk"),
    Fault("full disk: map of predict", "no room for OUT/maps", f"cannot be written: {FULL}", 2, "test_full_disk"),
    Fault("full disk: overlay", "no room for OUT/overlays", f"cannot be written: {FULL}", 2, "test_full_disk"),
    Fault("full disk: table", "no room for OUT/scores.csv", f"OUT/scores.csv: {FULL}", 2, "test_full_disk"),
    Fault("full disk: new run", "no room for the first checkpoint", f"--out RUN cannot be written: {FULL}", 2,
          "test_full_disk_for_a_new_run"),
    Fault("full disk, a real one", "a file system of 12 MB, filled up", "full disk", 2, "test_a_real_full_disk"),
    Fault("full disk: folder of a run", "numpy.save raises", FULL, 2,
          "test_cli.py::test_files_that_cannot_be_written_are_named"),
    Fault("read-only run", "every open file refuses", "RUN/.lock: Read-only file system", 2, "test_read_only_run"),
    Fault("read-only run, a real one", "a read-only mount", "RUN/.lock: Read-only file system", 2,
          "test_a_real_read_only_run"),
    Fault("--out below a file", "a path component that is a file", "cannot be written", 2,
          "test_cli.py::test_train_refuses"),
    Fault("scheduler's end", "SIGTERM while training", "Interrupted and saved. Go on with:", 130, "test_sigterm"),
    Fault("Ctrl-C", "SIGINT while training", "python -m adref.train --resume --out", 130,
          "test_train.py::test_interrupt_saves_and_says_how_to_go_on"),
    Fault("killed", "SIGKILL at random moments", "", 0,
          "test_train.py::test_killed_at_random_moments_and_resumed_ends_bit_equal"),
    Fault("scheduler's end of a benchmark", "SIGTERM to its whole group", "interrupted", 130,
          "test_benchmark.py::test_an_interrupted_command_saves_and_goes_on"),
    Fault("killed data worker", "SIGKILL to it", "stopped: a data worker died", 1, "test_killed_data_worker"),
    Fault("too many open files", "Too many open files. Communication with the workers is no longer possible.",
          "stopped: too many files are open (ulimit -n); ", 1, "test_data_workers_have_no_room"),
    Fault("no shared memory", "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)",
          "no shared memory is left for what the data workers send", 1, "test_data_workers_have_no_room"),
    Fault("no run of torchrun's to go on with", "a restart, --out of another", "--out RUN exists already", 2,
          "test_a_restart_goes_on_with_its_own_run_alone"),
    Fault("torchrun of another command", "predict under torchrun", "torchrun starts adref.train and adref.evaluate", 2,
          "test_torchrun_of_another_command"),
    Fault("training file is gone", "moved away in the first epoch", ".png: cannot be opened (No such file", 2,
          "test_training_file_that_goes_or_changes"),
    Fault("training file changes", "written anew in the first epoch", ".png has changed since the command began", 2,
          "test_training_file_that_goes_or_changes"),
    Fault("training files changed before --resume", "another picture", "not those that", 2,
          "test_train.py::test_resume_refuses_other_training_images"),
    Fault("no memory: Python", "numpy asks for 800 TB", "--batch-size 1 in a new run is the first thing", 1,
          "test_out_of_memory"),
    Fault("no memory: CPU", "torch asks for 400 TB", "--batch-size 1 in a new run is the first thing", 1,
          "test_out_of_memory"),
    Fault("no memory: CUDA", "CUDA's error", "--batch-size 1 in a new run is the first thing", 1, "test_out_of_memory"),
    Fault("no memory for one picture", "the same at --batch-size 1", "a smaller --size in a new run", 1,
          "test_out_of_memory_at_batch_size_1"),
    Fault("no memory for an absurd size", "--size 65536,65536, 4 GB of addresses", "--batch-size 1 in a new run", 1,
          "test_absurd_size"),
    Fault("no memory: scores", "torch asks for 400 TB", "to score a picture at --size 64,64; a new run with a smaller",
          1, "test_out_of_memory_when_scoring"),
    Fault("NaN in the loss", "in one term, or in weights", "is nan", 1,
          "test_train.py::test_first_non_finite_value_stops_and_keeps_the_last_checkpoint"),
    Fault("NaN in the data", "in a corrupted picture", "stopped: loss/l2 is nan", 1, "test_nan_in_the_data"),
    Fault("NaN in a checkpoint", "in one weight", "is not finite", 2, "test_nan_in_a_checkpoint"),
    Fault("cut checkpoint", "at 100 random places", "checkpoint.pt is", 2, "test_cut_checkpoint"),
    Fault("rotten checkpoint", "a bit of a weight", "checkpoint.pt is damaged", 2, "test_rotten_checkpoint"),
    Fault("checkpoint with code", "a pickle that makes a file", "is no checkpoint of adref", 2,
          "test_code_is_never_executed"),
    Fault("other damaged files of a run", "cut, empty, of something else", "cannot be read", 2,
          "test_cli.py::test_damaged_runs_are_refused_by_every_command"),
    Fault("damaged log", "a line of another kind", "metrics.jsonl, line 2 is damaged", 2, "test_damaged_log"),
    Fault("moved run", "another place, relative paths", "", 0, "test_moved_run"),
    Fault("moved data", "another place", "", 0, "test_train.py::test_resume_allows_a_data_set_that_moved"),
    Fault("two processes on one run", "a training, an evaluation goes on", "RUN is in use by another process", 2,
          "test_two_processes_on_one_run"),
    Fault("lock of a killed process", "SIGKILL while its data worker lives", "", 0,
          "test_a_killed_process_locks_nothing"),
    Fault("bad data set", "cut picture, missing mask", "problems", 2,
          "test_cli.py::test_training_refuses_a_bad_data_set_with_the_words_of_the_check"),
    Fault("damaged files of any kind", "seeded mutations", "", 2, "test_fuzz.py::test_mutated_files"),
]  # fmt: skip
HERE = {row.fault: row for row in FAULTS if "::" not in row.test}


def rows(function: str) -> list[str]:
    """The faults that a test of this file shows."""
    return [fault for fault, row in HERE.items() if row.test == function]


def check(fault: str, code: int, said: str, **places: Path) -> None:
    """The command ended as the list has it, in one sentence."""
    sentence = HERE[fault].sentence
    for name, path in places.items():
        sentence = sentence.replace(name, str(path))
    assert code == HERE[fault].code and sentence in said, said
    assert said.count("\n") == 1 and "Traceback" not in said, said


def test_the_list_is_complete():
    """Every test that a row names exists, and every test of this file is named."""
    for row in FAULTS:
        file, _, function = row.test.rpartition("::")
        path = Path(__file__).with_name(file or Path(__file__).name)
        found = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
        assert function in found, row
    own = {node.name for node in ast.parse(Path(__file__).read_text()).body if isinstance(node, ast.FunctionDef)}
    tests = {name for name in own if name.startswith("test_")} - {"test_the_list_is_complete"}
    assert tests == {row.test for row in HERE.values()} and len({row.fault for row in FAULTS}) == len(FAULTS)


# -- runs to plant faults in ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(small_run, textures, tmp_path_factory) -> Path:
    """A run like `small_run` that was stopped after three of its six steps; tests must not change it."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert train.main(arguments(small_run.parent / "data", textures, run)) == 130
    return run


@pytest.fixture
def half(stopped, tmp_path) -> Path:
    """A copy of `stopped`."""
    return shutil.copytree(stopped, tmp_path / "half")


def at_step(patch, step: int, action) -> None:
    """Something happens while the loss of a step, counted from now, is computed."""
    loss, seen = DRAEM.loss, []

    def disturbed(self, *rest):
        seen.append(1)
        if len(seen) == step:
            action()
        return loss(self, *rest)

    patch.setattr(DRAEM, "loss", disturbed)


def check_goes_on(run: Path, small_run: Path, *more: str) -> None:
    """Resumed, the run ends as one that nothing disturbed, and nothing is left over, of the fault neither."""
    assert not multiprocessing.active_children()
    assert train.main(["--resume", "--out", str(run), *more]) == 0
    assert same_weights(run, small_run) and without_times(run) == without_times(small_run)
    check_whole(run)


def check_whole(folder: Path) -> None:
    assert not [path for path in folder.rglob("*") if path.suffix in (".tmp", ".new", ".old", ".partial")]


# -- disks ------------------------------------------------------------------------------------------------------------


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
    """Every file of that name, opened to be written, is on a full disk."""

    def opened(path, mode="r", *rest, real=builtins.open, **more):
        if isinstance(path, int) or Path(path).name != name or not set(mode) & set("wax"):
            return real(path, mode, *rest, **more)
        file = io.BufferedWriter(FullDisk(path, mode.strip("bt")))
        return file if "b" in mode else io.TextIOWrapper(file, "utf-8", more.get("errors"))

    patch.setattr(builtins, "open", opened)
    patch.setattr(io, "open", opened)  # pathlib's


@pytest.mark.parametrize("fault", rows("test_full_disk"))
def test_full_disk(fault, half, small_run, tmp_path, monkeypatch, capsys):
    name = {"checkpoint": "checkpoint.pt.tmp", "log": "metrics.jsonl", "map": "001.npy", "scores": "scores.csv",
            "numbers": "metrics.json.tmp", "report": "report.html.tmp", "map of predict": "001.npy.tmp",
            "overlay": "001.png.tmp", "table": "scores.csv.tmp"}[fault.partition(": ")[2]]  # fmt: skip
    run, out = half, tmp_path / "out"
    command = [train.main, "--resume", "--out", str(run), "--checkpoint-steps", "1"]
    if name.partition(".")[0] not in ("checkpoint", "metrics") or name == "metrics.json.tmp":
        run = shutil.copytree(small_run, tmp_path / "run")
        command = [evaluate.main, str(run), "--device", "cpu"]
    if out_is_meant := name in ("001.npy.tmp", "001.png.tmp", "scores.csv.tmp"):
        pictures = str(small_run.parent / "data/part/test/spot")
        command = [predict.main, str(run), pictures, "--out", str(out), "--device", "cpu"]
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        fill_disk(patch, name)
        code = command[0](command[1:])
    check(fault, code, capsys.readouterr().err, RUN=run, OUT=out)
    check_whole(out if out_is_meant else run / "evaluation")
    assert not (run / "evaluation.new").exists()
    kept = [path for path in before if path.name not in ("metrics.jsonl", "config.json")]  # a resumed run may write
    if name == "report.html.tmp":  # the evaluation is done by then
        kept = [run / "report.html", run / "checkpoint.pt"]
    assert all(path.read_bytes() == before[path] for path in kept)
    if run == half:
        check_goes_on(run, small_run)
    else:
        assert command[0](command[1:]) == 0
        check_whole(tmp_path)


def test_full_disk_for_a_new_run(data, textures, tmp_path, monkeypatch, capsys):
    fill_disk(monkeypatch, "checkpoint.pt.tmp")
    run = tmp_path / "new/run"
    code = train.main(arguments(data, textures, run))
    check("full disk: new run", code, capsys.readouterr().err, RUN=run)
    assert not list(run.parent.iterdir())


@pytest.fixture
def mount(tmp_path):
    """Mounts a file system on a new folder; skipped where that is not allowed."""
    folders = []

    def make(*words: str) -> Path:
        folder = tmp_path / f"mount{len(folders)}"
        folder.mkdir()
        if not shutil.which("mount") or subprocess.run(["mount", *words, str(folder)], capture_output=True).returncode:
            pytest.skip("needs the right to mount file systems")
        folders.append(folder)
        return folder

    yield make
    for folder in folders:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_real_full_disk(half, small_run, mount, capsys):
    disk = mount("-t", "tmpfs", "-o", "size=12m", "tmpfs")
    run, pictures = shutil.copytree(half, disk / "run"), str(small_run.parent / "data/part/test")
    commands = {
        "checkpoint.pt": [train.main, "--resume", "--out", str(run), "--checkpoint-steps", "1"],
        "evaluation.new": [evaluate.main, str(run), "--device", "cpu"],
        "out": [predict.main, str(run), pictures, "--out", str(disk / "out"), "--device", "cpu"],
    }
    for name, (command, *words) in commands.items():
        with open(disk / "ballast", "wb", buffering=0) as file:
            free = shutil.disk_usage(disk).free - 20_000
            assert file.write(bytes(free)) == free
        code, said = command(words), capsys.readouterr().err.splitlines()[-1]
        assert code == 2 and said.startswith("error: ") and name in said, said
        assert FULL in said or "as on a full disk" in said
        os.remove(disk / "ballast")
        load(run)
        shutil.rmtree(disk / "out", ignore_errors=True)
        assert evaluate.main([str(run), "--device", "cpu"]) == 0  # in spite of what may be left
        check_whole(disk)
    check_goes_on(run, small_run)


def test_read_only_run(half, small_run, monkeypatch, capsys):
    def opened(path, mode="r", *rest, real=builtins.open, **more):
        if not isinstance(path, int) and set(mode) & set("wax") and half in Path(path).parents:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, mode, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", opened)
        for command, *words in ((train.main, "--resume", "--out", str(half)), (evaluate.main, str(half))):
            check("read-only run", command(words), capsys.readouterr().err, RUN=half)
    check_goes_on(half, small_run)


def test_a_real_read_only_run(half, small_run, mount, tmp_path, capsys):
    folder = mount("--bind", str(half))
    if subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], capture_output=True).returncode:
        pytest.skip("needs the right to mount file systems")
    for command, *words in ((train.main, "--resume", "--out", str(folder)), (evaluate.main, str(folder))):
        check("read-only run, a real one", command(words), capsys.readouterr().err, RUN=folder)
    pictures = str(small_run.parent / "data/part/test/spot")
    assert predict.main([str(folder), pictures, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0


# -- processes --------------------------------------------------------------------------------------------------------


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


def test_sigterm(half, small_run, tmp_path, in_background, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: ((tmp_path / "here").touch(), time.sleep(2)))
        process = in_background(train.main, "--resume", "--out", half, "--workers", 1)
        wait((tmp_path / "here").exists)
        os.kill(process.pid, signal.SIGTERM)
        process.join(60)
    row = HERE["scheduler's end"]
    assert process.exitcode == row.code and row.sentence in capfd.readouterr().out
    assert load_checkpoint(half)["step"] == 5
    check_goes_on(half, small_run)


def test_killed_data_worker(half, small_run, monkeypatch, capsys):
    def kill():
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)
        time.sleep(10)  # until the news comes

    with monkeypatch.context() as patch:
        at_step(patch, 2, kill)
        code = train.main(["--resume", "--out", str(half), "--workers", "1", "--checkpoint-steps", "1"])
    said = capsys.readouterr().err
    check("killed data worker", code, said)
    assert f"{half} keeps its last checkpoint" in said and load_checkpoint(half)["step"] == 4
    words = re.search(r"python -m adref.train (.*)", said).group(1).split()
    check_goes_on(half, small_run, *words[3:])


@pytest.mark.parametrize("fault", rows("test_data_workers_have_no_room"))
def test_data_workers_have_no_room(fault, half, small_run, monkeypatch, capsys):
    def refuse():
        raise RuntimeError(HERE[fault].planted)

    with monkeypatch.context() as patch:
        at_step(patch, 2, refuse)
        code = train.main(["--resume", "--out", str(half)])
    check(fault, code, capsys.readouterr().err)
    check_goes_on(half, small_run)


def test_a_restart_goes_on_with_its_own_run_alone(half, small_run, textures, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "is_restart", lambda: True)
    monkeypatch.setattr(distributed, "processes", lambda: lambda action: action)
    monkeypatch.setattr(distributed, "launch", lambda: "job 1")
    new = arguments(small_run.parent / "data", textures, half)
    for before in ("", "job 2"):  # who wrote there last
        (half / ".lock").write_text(before)
        code = train.main(new)
        check("no run of torchrun's to go on with", code, capsys.readouterr().err, RUN=half)
    with in_use(half):
        pass
    assert train.main(new) == 0 and same_weights(half, small_run)


def test_torchrun_of_another_command(small_run, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "launch", lambda: "job 1")
    check("torchrun of another command", predict.main([str(small_run), "x", "--out", "-"]), capsys.readouterr().err)


def test_two_processes_on_one_run(half, small_run, tmp_path, in_background, monkeypatch, capsys):
    run, fault = shutil.copytree(small_run, tmp_path / "run"), "two processes on one run"
    pictures = str(small_run.parent / "data/part/test/spot")
    save = np.save
    with monkeypatch.context() as patch:  # each stays until it is killed
        at_step(patch, 1, lambda: ((half / "here").touch(), time.sleep(60)))
        patch.setattr(np, "save", lambda *_: ((run / "here").touch(), time.sleep(60)))
        others = {half: in_background(train.main, "--resume", "--out", half),
                  run: in_background(evaluate.main, run, "--device", "cpu")}  # fmt: skip
        for place in others:
            wait((place / "here").exists)
    assert np.save is save
    for place, process in others.items():
        for command, *words in ((train.main, "--resume", "--out", str(place)), (evaluate.main, str(place))):
            check(fault, command(words), capsys.readouterr().err, RUN=place)
        assert predict.main([str(place), pictures, "--out", "-", "--device", "cpu"]) == 0  # it only reads
        capsys.readouterr()
        process.kill()
        process.join()
        (place / "here").unlink()
    assert evaluate.main([str(run), "--device", "cpu"]) == 0
    check_goes_on(half, small_run)


def test_a_killed_process_locks_nothing(half, small_run, tmp_path, in_background, monkeypatch):
    def report():
        (worker,) = multiprocessing.active_children()
        (tmp_path / "worker").write_text(str(worker.pid))
        time.sleep(60)

    with monkeypatch.context() as patch:
        at_step(patch, 2, report)
        process = in_background(train.main, "--resume", "--out", half, "--workers", 1)
        wait(lambda: (tmp_path / "worker").exists() and (tmp_path / "worker").read_text())
    worker = int((tmp_path / "worker").read_text())
    os.kill(worker, signal.SIGSTOP)  # or it might end before we look
    try:
        process.kill()
        process.join()
        os.kill(worker, 0)
        with in_use(half):
            pass
        check_goes_on(half, small_run)
    finally:
        os.kill(worker, signal.SIGKILL)


# -- data and memory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("fault", rows("test_training_file_that_goes_or_changes"))
def test_training_file_that_goes_or_changes(fault, workers, small_run, textures, tmp_path, monkeypatch, capsys):
    data, run = shutil.copytree(small_run.parent / "data", tmp_path / "data"), tmp_path / "run"
    folder = data / "part/train/good"

    shutil.copytree(folder, tmp_path / "kept")

    def disturb():
        for path in folder.iterdir():
            Image.fromarray(picture(50)).save(tmp_path / "other.png")
            os.replace(tmp_path / "other.png", path)  # at once, as a worker may be reading
            if fault == "training file is gone":
                path.unlink()

    with monkeypatch.context() as patch:
        at_step(patch, 1, disturb)
        code = train.main(arguments(data, textures, run, "--memory-limit", "0", "--workers", workers))
    said = capsys.readouterr().err
    check(fault, code, said)
    assert said.startswith(f"error: {folder}/00")
    shutil.copytree(tmp_path / "kept", folder, dirs_exist_ok=True)
    check_goes_on(run, small_run)


def no_memory(kind: str) -> None:
    if kind == "no memory: Python":
        np.empty(10**14)
    if kind == "no memory: CPU":
        torch.empty(10**14)
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


@pytest.mark.parametrize("fault", rows("test_out_of_memory"))
def test_out_of_memory(fault, half, small_run, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: no_memory(fault))
        code = train.main(["--resume", "--out", str(half), "--checkpoint-steps", "1", "--workers", "1"])
    said = capsys.readouterr().err
    check(fault, code, said)
    assert f"{half} keeps its last checkpoint" in said and load_checkpoint(half)["step"] == 4
    check_goes_on(half, small_run)


def test_out_of_memory_at_batch_size_1(data, textures, tmp_path, monkeypatch, capsys):
    at_step(monkeypatch, 1, lambda: no_memory("no memory: CPU"))
    code = train.main(arguments(data, textures, tmp_path / "run", "--batch-size", "1"))
    check("no memory for one picture", code, capsys.readouterr().err)


def test_absurd_size(data, textures, tmp_path, capsys):
    """What the allocators really say, under a limit that keeps them from taking what there is."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**32, before[1]))
    try:
        code = train.main(arguments(data, textures, tmp_path / "run", "--size", "65536,65536"))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    check("no memory for an absurd size", code, capsys.readouterr().err)


def test_out_of_memory_when_scoring(small_run, tmp_path, monkeypatch, capsys):
    run, pictures = shutil.copytree(small_run, tmp_path / "run"), str(small_run.parent / "data/part/test/spot")
    monkeypatch.setattr(DRAEM, "anomaly_map", lambda *_: no_memory("no memory: CPU"))
    for command, *words in ((evaluate.main, str(run)), (predict.main, str(run), pictures, "--out", "-")):
        check("no memory: scores", command([*words, "--device", "cpu"]), capsys.readouterr().err)
    assert (run / "evaluation/metrics.json").read_bytes() == (small_run / "evaluation/metrics.json").read_bytes()


def test_nan_in_the_data(half, small_run, monkeypatch, capsys):
    corrupt = DRAEM.corrupt

    def poisoned(image, rng, options, sources):
        example = corrupt(image, rng, options, sources)
        return example._replace(corrupted=example.corrupted * torch.nan)

    with monkeypatch.context() as patch:
        patch.setattr(DRAEM, "corrupt", staticmethod(poisoned))
        check("NaN in the data", train.main(["--resume", "--out", str(half)]), capsys.readouterr().err)
    assert load_checkpoint(half)["step"] == 3
    check_goes_on(half, small_run)


# -- files of a run ---------------------------------------------------------------------------------------------------


def check_refused(fault: str, run: Path, small_run: Path, capsys) -> None:
    """By every command and by `load`, in one sentence, and nothing is changed."""
    pictures = str(small_run.parent / "data/part/test/spot")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for command, *words in ((evaluate.main, str(run)), (predict.main, str(run), pictures, "--out", "-"),
                            (train.main, "--resume", "--out", str(run))):  # fmt: skip
        check(fault, command([*words, "--device", "cpu"]), capsys.readouterr().err, RUN=run)
    with pytest.raises(UserError):
        load(run)
    assert all(path.read_bytes() == text for path, text in before.items() if path.name != "config.json")


def test_nan_in_a_checkpoint(half, small_run, capsys):
    state = load_checkpoint(half)
    list(state["model"].values())[3].view(-1)[0] = torch.nan
    torch.save(state, half / "checkpoint.pt")
    check_refused("NaN in a checkpoint", half, small_run, capsys)


def test_cut_checkpoint(half, small_run, capsys):
    rng, path = np.random.default_rng(7), half / "checkpoint.pt"
    whole = path.read_bytes()
    for i, length in enumerate(rng.integers(0, len(whole), 100)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"checkpoint\.pt is"):
            load(half)
        if i % 25 == 0:
            check_refused("cut checkpoint", half, small_run, capsys)


def test_rotten_checkpoint(half, small_run, capsys):
    """One bit of one weight, which torch would load."""
    path, weight = half / "checkpoint.pt", load_checkpoint(half)["model"]["reconstructor.out.bias"]
    whole, text = path.read_bytes(), weight.numpy().tobytes()
    place = whole.index(text) + 1
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    assert not torch.equal(torch.load(path)["model"]["reconstructor.out.bias"], weight)
    check_refused("rotten checkpoint", half, small_run, capsys)


class Code:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_is_never_executed(half, small_run, tmp_path, capsys):
    path, state = half / "checkpoint.pt", load_checkpoint(half)
    torch.save(state | {"best": Code(tmp_path / "made")}, tmp_path / "zip")
    torch.save(state | {"best": Code(tmp_path / "made")}, tmp_path / "old", _use_new_zipfile_serialization=False)
    (tmp_path / "plain").write_bytes(pickle.dumps({"model": {}, "step": 0, "best": Code(tmp_path / "made")}))
    assert zipfile.is_zipfile(tmp_path / "zip")
    for name in ("zip", "old", "plain"):
        shutil.copy(tmp_path / name, path)
        check_refused("checkpoint with code", half, small_run, capsys)
        assert not (tmp_path / "made").exists()
    torch.load(path, weights_only=False) if name == "zip" else pickle.loads(path.read_bytes())
    assert (tmp_path / "made").exists()  # it would have worked


def test_damaged_log(half, small_run, capsys):
    log = half / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text(lines[0] + "5\n" + lines[2])
    check("damaged log", train.main(["--resume", "--out", str(half)]), capsys.readouterr().err)
    log.write_text("".join(lines) + lines[2][:30])  # what a crash leaves is no damage
    assert read_log(half) == read_log(half) and len(read_log(half)) == 3
    check_goes_on(half, small_run)


def test_moved_run(half, small_run, tmp_path, monkeypatch):
    pictures = small_run.parent / "data/part/test/spot"
    (tmp_path / "new/place").mkdir(parents=True)
    half.rename(tmp_path / "new/place/run")
    monkeypatch.chdir(tmp_path / "new")
    run = Path("place/run")
    assert predict.main([str(run), os.path.relpath(pictures), "--out", "out", "--device", "cpu"]) == 0
    assert evaluate.main([str(run), "--device", "cpu"]) == 0 and load(run).options.epochs == 2
    check_goes_on(run, small_run)
    (run / "report.html").unlink()
    run.rename("moved")
    assert evaluate.main(["moved", "--device", "cpu"]) == 0 and Path("moved/report.html").exists()
