"""Early stopping: it ends training, keeps the best weights, survives kills, and looks at no test image."""

import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_category
from test_train import same_weights, without_times

from adref import data as data_module
from adref import train as train_module
from adref.config import Flags
from adref.data import Images, TrainingSet, list_images
from adref.method import EarlyStop, Sources
from adref.methods.noise_to_norm import NoiseToNorm, Options
from adref.run import load_checkpoint
from adref.train import main, split_validation, validate

SMALL = ["--size", "32,32", "--width", "4", "--levels", "2", "--sigmas", "0.5,1", "--batch-size", "2", "--workers", "0",
         "--device", "cpu", "--epochs", "12", "--learning-rate", "0.02"]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_category(tmp_path_factory.mktemp("early") / "data", train=12)


def run_of(data: Path, out: Path, *more) -> Path:
    assert main(list(map(str, ["noise_to_norm", "--data", data, "--out", out, *SMALL, *more]))) == 0
    return out


@pytest.fixture(scope="module")
def whole(data) -> Path:
    """A run that was never interrupted, with a patience that ends it."""
    return run_of(data, data.parent / "whole", "--patience", 1)


def watched(run: Path, name: str = "validation/total") -> dict[int, float]:
    """Step -> the loss that decides."""
    return {line["step"]: line[name] for line in without_times(run) if name in line}


def expected_end(losses: list[float], patience: int) -> tuple[int, int]:
    """Index of the last epoch and of the best one, by the rule written out."""
    for i in range(len(losses)):
        best = losses[: i + 1].index(min(losses[: i + 1]))
        if i - best >= patience:
            return i, best
    return len(losses) - 1, losses.index(min(losses))


def test_training_ends_after_patience_epochs_without_a_new_minimum(whole):
    """11 images train, 2 of them validate: 9 in batches of 2 are 5 steps an epoch."""
    found = watched(whole)
    assert list(found) == [5 * (i + 1) for i in range(len(found))]
    last, best = expected_end(list(found.values()), 1)
    state = load_checkpoint(whole)
    assert last == len(found) - 1 < 11, "the run must end early, or this test says nothing"
    assert state["ended"] == {"train": 5 * (last + 1)} and state["chosen"] == {"train": 5 * (best + 1)}
    assert state["step"] == 5 * (last + 1) and best < last


def test_the_best_weights_are_the_result(whole, data, tmp_path):
    """They are those of a run that ends at that step, and give the loss that was logged."""
    state, best = load_checkpoint(whole), load_checkpoint(whole)["chosen"]["train"]
    shorter = run_of(data, tmp_path / "run", "--patience", "none", "--epochs", best // 5, "--monitor", "validation")
    assert best != state["step"] and not same_weights(shorter, whole)  # without early stopping all images train
    flags = Flags(seed=0)
    options = Options(size=(32, 32), width=4, levels=2, sigmas=(0.5, 1.0), batch_size=2, learning_rate=0.02)
    method = NoiseToNorm(options)
    method.load_state_dict(state["model"])
    names = train_module.split(data_module.find_category(data, "part"), flags)[0]
    images = Images([record.path for record in names], (32, 32), "antialias", 2**30)
    _, validation = split_validation(images, method.early_stop(), 0)
    samples = TrainingSet(validation, NoiseToNorm.corrupt, options, Sources(), 0, "validation")
    again = validate(method, samples, "train", flags, torch.device("cpu"))
    assert again == pytest.approx(watched(whole)[best], abs=1e-6) and again == pytest.approx(
        min(watched(whole).values())
    )
    assert method.training  # `validate` goes back to training mode


def test_report_and_metrics_say_which_step_was_chosen(whole):
    state = load_checkpoint(whole)
    words = f"step {state['chosen']['train']} of {state['step']}, the least loss on normal images"
    assert json.loads((whole / "evaluation" / "metrics.json").read_text())["checkpoint"] == words
    page = (whole / "report.html").read_text()
    assert words in page and "validation/total" in page


def test_images_that_validate_do_not_train():
    images = [torch.full((3, 4, 4), i, dtype=torch.uint8) for i in range(23)]
    train, validation = split_validation(images, EarlyStop(3, 0.2), seed=5)
    found = [{int(part[i][0, 0, 0]) for i in range(len(part))} for part in (train, validation)]
    assert len(found[1]) == 4 and not found[0] & found[1] and found[0] | found[1] == set(range(23))
    again = split_validation(images, EarlyStop(3, 0.2), seed=5)[1]
    assert again.indices == validation.indices != split_validation(images, EarlyStop(3, 0.2), seed=6)[1].indices
    for stop, count, kept in ((None, 23, 0), (EarlyStop(3, 0.0), 23, 0), (EarlyStop(3, 0.2), 2, 1),
                              (EarlyStop(3, 0.2), 1, 0), (EarlyStop(3, 0.9), 2, 1)):  # fmt: skip
        part = split_validation(images[:count], stop, 0)
        assert [len(p) for p in part] == [count - kept, kept]


@pytest.mark.parametrize("at", [3, 5, 12])  # in the middle of an epoch, at its end, in the middle of a later one
def test_interrupted_and_resumed_ends_bit_equal(at, whole, data, tmp_path, monkeypatch):
    loss, seen = NoiseToNorm.loss, []

    def interrupted(self, batch, stage):
        seen.append(self.training)
        if sum(seen) == at and self.training:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(self, batch, stage)

    monkeypatch.setattr(NoiseToNorm, "loss", interrupted)
    run = tmp_path / "run"
    assert main(list(map(str, ["noise_to_norm", "--data", data, "--out", run, *SMALL, "--patience", 1]))) == 130
    assert load_checkpoint(run)["step"] == at
    monkeypatch.setattr(NoiseToNorm, "loss", loss)
    assert main(["--resume", "--out", str(run)]) == 0
    first, second = load_checkpoint(whole), load_checkpoint(run)
    assert same_weights(run, whole) and without_times(run) == without_times(whole)
    assert [first[k] for k in ("ended", "chosen", "step")] == [second[k] for k in ("ended", "chosen", "step")]
    assert first["calibration"] == second["calibration"]


def test_interrupted_in_the_step_that_ends_training(whole, data, tmp_path, monkeypatch):
    """Ctrl-C while the last epoch is validated: saved, and nothing is left to train."""
    original, last = train_module.validate, len(watched(whole))
    calls = []

    def validate_and_interrupt(*rest):
        calls.append(1)
        if len(calls) == last:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*rest)

    monkeypatch.setattr(train_module, "validate", validate_and_interrupt)
    run = tmp_path / "run"
    assert main(list(map(str, ["noise_to_norm", "--data", data, "--out", run, *SMALL, "--patience", 1]))) == 130
    assert main(["--resume", "--out", str(run)]) == 0 and len(calls) == last
    assert same_weights(run, whole) and without_times(run) == without_times(whole)
    assert load_checkpoint(run)["calibration"] == load_checkpoint(whole)["calibration"]


@pytest.mark.parametrize("at", [2, 7])
def test_the_training_loss_can_decide_too(at, data, tmp_path, monkeypatch):
    """Its mean over an epoch, also where the epoch was interrupted; all 11 images train: 6 steps an epoch."""
    more = ["--monitor", "train", "--patience", 1, "--epochs", 3]
    run = run_of(data, tmp_path / "whole", *more)
    found, lines = watched(run, "epoch/total"), without_times(run)
    assert min(found) == 6 and not watched(run)
    for step, value in found.items():
        assert value == pytest.approx(
            np.mean([line["loss/total"] for line in lines if step - 6 < line["step"] <= step])
        )
    loss, seen = NoiseToNorm.loss, []

    def interrupted(self, batch, stage):
        seen.append(1)
        if len(seen) == at:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(self, batch, stage)

    monkeypatch.setattr(NoiseToNorm, "loss", interrupted)
    other = tmp_path / "other"
    assert main(list(map(str, ["noise_to_norm", "--data", data, "--out", other, *SMALL, *more]))) == 130
    assert main(["--resume", "--out", str(other)]) == 0
    assert without_times(other) == lines and same_weights(run, other)


def test_one_image_trains_by_its_own_loss(tmp_path):
    write_category(tmp_path / "data", train=1)
    run = run_of(tmp_path / "data", tmp_path / "run", "--epochs", 3, "--patience", 1)
    assert watched(run, "epoch/total") and not watched(run)


def test_no_test_image_is_read_before_evaluation(data, tmp_path, monkeypatch):
    read, trained = [], []
    original, evaluate = data_module.read_image, train_module.evaluate
    monkeypatch.setattr(data_module, "read_image", lambda path: (read.append(str(path)), original(path))[1])
    monkeypatch.setattr(train_module, "read_image", lambda path: (read.append(str(path)), original(path))[1])
    monkeypatch.setattr(train_module, "require_sound", lambda category: None)  # which reads headers of all, once

    def watch(*rest):
        trained.append(list(read))
        return evaluate(*rest)

    monkeypatch.setattr(train_module, "evaluate", watch)
    run_of(data, tmp_path / "run", "--epochs", 2, "--patience", 1)
    assert len(set(trained[0])) == len(list_images(data / "part" / "train")) == 12
    assert not [path for path in trained[0] if re.search(r"/test/", path)]
