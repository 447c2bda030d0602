"""Early stopping: it ends training, keeps the best weights, survives interrupts, and looks at no test image."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import at_step, checkpoint, interrupt, picture, same_weights, without_times, write_category
from PIL import Image

from adref import train
from adref.data import examples as examples_module
from adref.data.examples import random_stream, resize, to_tensor
from adref.data.layouts import find_category, list_images
from adref.data.reader import read_bytes, read_image
from adref.method import EarlyStop, Sources
from adref.methods.noise_to_norm import NoiseToNorm, Options
from adref.methods.noise_to_norm import method as noise_method
from adref.run import loop
from adref.run.config import RunSettings
from adref.run.loop import split_validation, validate
from adref.run.sources import read_images, split
from adref.train import main

SMALL = ["--size", "32,32", "--width", "4", "--levels", "2", "--sigmas", "0.5,1", "--batch-size", "2", "--workers", "0",
         "--device", "cpu", "--epochs", "12", "--learning-rate", "0.02"]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_category(tmp_path_factory.mktemp("early") / "data", train=12)


def call(data: Path, out: Path, *more) -> int:
    return main(list(map(str, ["noise_to_norm", "--data", data, "--out", out, *SMALL, *more])))


def run_of(data: Path, out: Path, *more) -> Path:
    assert call(data, out, *more) == 0
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
    state = checkpoint(whole)
    assert last == len(found) - 1 < 11, "the run must end early, or this test says nothing"
    assert state["finished_stages"] == {"train": 5 * (last + 1)} and state["step"] == 5 * (last + 1)
    assert state["selected_steps"] == {"train": 5 * (best + 1)} and best < last
    words = f"step {5 * (best + 1)} of {state['step']}, the least loss on normal images"
    assert json.loads((whole / "evaluation" / "metrics.json").read_text())["checkpoint"] == words
    page = (whole / "report.html").read_text()
    assert words in page and "validation/total" in page


def test_the_best_weights_are_the_result(whole, data):
    """They give the loss that was logged at that step, which is the least."""
    state, best = checkpoint(whole), checkpoint(whole)["selected_steps"]["train"]
    assert best != state["step"]
    settings = RunSettings(seed=0)
    options = Options(size=(32, 32), width=4, levels=2, sigmas=(0.5, 1.0), batch_size=2, learning_rate=0.02)
    method = NoiseToNorm(options)
    method.load_state_dict(state["model"])
    images = read_images(method, split(find_category(data, "part"), settings)[0], settings)
    _, validation = split_validation(method, Sources(images=images), method.stages[0].early_stop, 0)
    again = validate(method, validation, "train", torch.autocast("cpu", enabled=False))
    assert again == pytest.approx(watched(whole)[best], abs=1e-6)
    assert again == pytest.approx(min(watched(whole).values()))
    assert method.training  # `validate` goes back to training mode


def script(monkeypatch, losses: list[float]) -> list[int]:
    """Lets `validate` return one number after the other; what comes back counts its calls."""
    calls = []
    monkeypatch.setattr(loop, "validate", lambda *_: (calls.append(1), losses[len(calls) - 1])[1])
    return calls


def test_patience_counts_from_the_first_of_equal_minima(data, tmp_path, monkeypatch):
    """An equal loss is no new minimum; epochs 4 and 5 have none. The result are the weights after epoch 3: those of
    a run over 4 epochs, whose split, noise and rates are the same."""
    losses = [5.0, 4.0, 4.0, 3.0, 3.0, 3.5, 1.0]
    calls = script(monkeypatch, losses)
    run = run_of(data, tmp_path / "run", "--patience", 2)
    state = checkpoint(run)
    assert len(calls) == 6 and state["finished_stages"] == {"train": 30} and state["selected_steps"] == {"train": 20}
    assert watched(run) == dict(zip(range(5, 31, 5), losses))
    script(monkeypatch, losses)
    shorter = run_of(data, tmp_path / "shorter", "--patience", 9, "--epochs", 4)
    assert same_weights(shorter, run) and without_times(shorter) == without_times(run)[:20]
    script(monkeypatch, [5.0, 4.0, 3.0, 2.0, 1.0])
    longer = run_of(data, tmp_path / "longer", "--patience", 9, "--epochs", 5)
    assert not same_weights(longer, run) and checkpoint(longer)["selected_steps"] == {"train": 25}
    script(monkeypatch, losses)
    assert watched(run_of(data, tmp_path / "steps", "--steps", 12)) == dict(zip((5, 10, 12), losses))


def test_a_resumed_run_knows_the_best_weights_of_before(data, tmp_path, monkeypatch):
    """The minimum lies before the interrupt, so only the checkpoint has its weights, and from when patience counts."""
    losses = [1.0, 2.0, 3.0, 4.0]
    script(monkeypatch, losses)
    whole = run_of(data, tmp_path / "whole", "--patience", 2)
    calls = script(monkeypatch, losses)
    first = run_of(data, tmp_path / "first", "--patience", 2, "--epochs", 1)
    calls.clear()
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, NoiseToNorm, 8, interrupt)  # in the middle of the second epoch
        assert call(data, run, "--patience", 2) == 130
    state, best = checkpoint(run), checkpoint(first)["model"]
    kept = state["best"].pop("model")
    assert state["step"] == 8 and state["best"] == {"loss": 1.0, "epoch": 0, "step": 5}
    assert kept.keys() == best.keys() and all(torch.equal(kept[k], best[k]) for k in best)
    assert main(["--resume", "--out", str(run)]) == 0
    assert checkpoint(run)["selected_steps"] == {"train": 5} and checkpoint(run)["finished_stages"] == {"train": 15}
    assert same_weights(run, whole) and same_weights(run, first) and without_times(run) == without_times(whole)


def validation_of(data: Path, share: float = 0.2) -> tuple[list[Path], list[Path]]:
    """Files that train, and that validate, with seed 0."""
    records = split(find_category(data, "part"), RunSettings(seed=0))[0]
    files = Sources(images=[record.path for record in records])
    train, validation = split_validation(NoiseToNorm(Options(width=4)), files, EarlyStop(9, share), 0)
    return list(train.images), list(validation.images)


def test_the_validation_loss_is_the_mean_over_images_of_fixed_noise(data, tmp_path, monkeypatch):
    """Written out: three images in batches of two, each with the noise of its own place."""
    monkeypatch.setattr(noise_method, "VALIDATION_SHARE", 0.3)
    run = run_of(data, tmp_path / "run", "--epochs", 1)
    options = Options(size=(32, 32), width=4, levels=2, sigmas=(0.5, 1.0))
    method, losses = NoiseToNorm(options).eval(), []
    method.load_state_dict(checkpoint(run)["model"])
    for i, path in enumerate(validation_of(data, 0.3)[1]):
        image = resize(to_tensor(read_image(path)), (32, 32), "antialias").float() / 255
        example = NoiseToNorm.corrupt(image, random_stream(0, "validation", 0, i), options, Sources())
        losses.append(method.loss(type(example)(*(field[None] for field in example)))["total"].item())
    assert len(losses) == 3 and np.ptp(losses) > 1e-3
    assert watched(run)[max(watched(run))] == pytest.approx(np.mean(losses), rel=1e-5)


def test_pictures_that_validate_change_no_step_of_training(data, tmp_path):
    """Other pictures in their place change the validation loss alone; in the place of others they change training."""
    more, runs, parts = ["--epochs", 2, "--patience", 9], {}, ("none", "train", "validation")
    for part in parts:
        write_category(tmp_path / part, train=12)
        train, validation = validation_of(tmp_path / part)
        assert (len(train), len(validation)) == (9, 2)
        for i, path in enumerate({"none": [], "train": train[:2], "validation": validation}[part]):
            Image.fromarray(255 - picture(500 + i)).save(path)
        runs[part] = run_of(tmp_path / part, tmp_path / f"run {part}", *more)

    def training(run):
        return [{k: v for k, v in line.items() if k != "validation/total"} for line in without_times(run)]

    assert training(runs["validation"]) == training(runs["none"]) != training(runs["train"])
    assert list(watched(runs["validation"])) == list(watched(runs["none"])) == [5, 10]
    assert watched(runs["validation"]) != watched(runs["none"])


def test_a_validation_loss_that_is_no_number_stops_training(data, tmp_path, monkeypatch, capsys):
    script(monkeypatch, [1.0, math.nan])
    run = tmp_path / "run"
    assert call(data, run, "--checkpoint-steps", 1) == 1
    assert "validation/total is nan (train, step 10)" in capsys.readouterr().err
    state = checkpoint(run)
    assert state["step"] == 9 and state["best"]["step"] == 5


def test_images_that_validate_do_not_train():
    images = [torch.full((3, 4, 4), i, dtype=torch.uint8) for i in range(23)]
    every, method = Sources(images=images, hashes=list(range(23))), NoiseToNorm(Options(width=4))
    train, validation = split_validation(method, every, EarlyStop(3, 0.2), seed=5)
    assert train.hashes == [int(image[0, 0, 0]) for image in train.images]
    found = [{int(image[0, 0, 0]) for image in part} for part in (train.images, validation.images)]
    assert len(found[1]) == 4 and not found[0] & found[1] and found[0] | found[1] == set(range(23))
    again, other = (split_validation(method, every, EarlyStop(3, 0.2), seed)[1] for seed in (5, 6))
    assert again.images.indices == validation.images.indices != other.images.indices
    for stop, count, kept in ((None, 23, 0), (EarlyStop(3, 0.0), 23, 0), (EarlyStop(3, 0.2), 2, 1),
                              (EarlyStop(3, 0.2), 1, 0), (EarlyStop(3, 0.9), 2, 1)):  # fmt: skip
        train, validation = split_validation(method, Sources(images=images[:count]), stop, 0)
        assert (len(train.images), len(validation)) == (count - kept, kept)


@pytest.mark.parametrize("at", [3, 5, 12])  # in the middle of an epoch, at its end, in the middle of a later one
def test_interrupted_and_resumed_ends_bit_equal(at, whole, data, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, NoiseToNorm, at, interrupt)
        assert call(data, run, "--patience", 1) == 130
    assert checkpoint(run)["step"] == at
    assert main(["--resume", "--out", str(run)]) == 0
    assert same_weights(run, whole) and without_times(run) == without_times(whole)
    first, second = ({**checkpoint(r), "model": None} for r in (whole, run))
    assert first == second


def test_interrupted_in_the_step_that_ends_training(whole, data, tmp_path, monkeypatch):
    """Ctrl-C while the last epoch is validated: saved, and nothing is left to train."""
    original, last, calls, run = loop.validate, len(watched(whole)), [], tmp_path / "run"

    def validate_and_interrupt(*rest):
        calls.append(1)
        if len(calls) == last:
            interrupt()
        return original(*rest)

    monkeypatch.setattr(loop, "validate", validate_and_interrupt)
    assert call(data, run, "--patience", 1) == 130
    assert main(["--resume", "--out", str(run)]) == 0 and len(calls) == last
    assert same_weights(run, whole) and without_times(run) == without_times(whole)
    assert checkpoint(run)["calibration"] == checkpoint(whole)["calibration"]


@pytest.mark.parametrize("at", [2, 7])
def test_the_training_loss_can_decide_too(at, data, tmp_path, monkeypatch):
    """Its mean over an epoch, also where the epoch was interrupted; all 11 images train: 6 steps an epoch."""
    more = ["--monitor", "train", "--patience", 1, "--epochs", 3]
    run = run_of(data, tmp_path / "whole", *more)
    found, lines = watched(run, "epoch/total"), without_times(run)
    assert min(found) == 6 and not watched(run)
    for step, value in found.items():
        assert value == pytest.approx(np.mean([line["loss/total"] for line in lines[step - 6 : step]]))
    other = tmp_path / "other"
    with monkeypatch.context() as patch:
        at_step(patch, NoiseToNorm, at, interrupt)
        assert call(data, other, *more) == 130
    assert main(["--resume", "--out", str(other)]) == 0
    assert without_times(other) == lines and same_weights(run, other)


def test_one_image_trains_by_its_own_loss(tmp_path):
    write_category(tmp_path / "data", train=1)
    run = run_of(tmp_path / "data", tmp_path / "run", "--epochs", 3, "--patience", 1)
    assert watched(run, "epoch/total") and not watched(run)


def test_each_training_file_is_read_once_and_no_test_image_scored_before_evaluation(data, tmp_path, monkeypatch):
    read, trained, evaluate = [], [], train.evaluate
    monkeypatch.setattr(examples_module, "read_bytes", lambda path: (read.append(str(path)), read_bytes(path))[1])
    monkeypatch.setattr(train, "evaluate", lambda *rest: (trained.append(list(read)), evaluate(*rest))[1])
    run_of(data, tmp_path / "run", "--epochs", 2, "--patience", 1)
    assert len(trained[0]) == len(set(trained[0])) == len(list_images(data / "part" / "train")) == 12
    assert not [path for path in trained[0] if re.search(r"/test/", path)]
