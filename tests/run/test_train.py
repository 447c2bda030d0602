"""Training: determinism over workers, kills and resumes; refusals; NaN; interrupts; the threshold."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, at_step, checkpoint, interrupt, same_weights, without_times, write_category

from adref import evaluate, load
from adref.data.layouts import Category, Record, find_category
from adref.data.reader import read_image
from adref.methods.draem import DRAEM
from adref.run import distributed, loop
from adref.run.cli import TrainingError
from adref.run.config import RunSettings
from adref.run.directory import Run, read_log
from adref.run.loop import average_over_ranks, calibrate, finish_stage
from adref.run.scoring import score_image
from adref.run.sources import read_images, split
from adref.train import main


def arguments(data, textures, out, *more) -> list[str]:
    return list(map(str, ["draem", "--data", data, "--textures", textures, "--out", out, *SMALL, *more]))


@pytest.mark.parametrize(
    "more",
    [("--workers", 1), ("--workers", 2, "--start-method", "spawn", "--checkpoint-steps", 1), ("--memory-limit", 0)],
    ids=lambda more: " ".join(map(str, more)),
)
def test_no_number_depends_on_workers_or_checkpoints(more, small_run, textures, tmp_path):
    run = tmp_path / "run"
    assert main(arguments(small_run.parent / "data", textures, run, *more)) == 0
    assert without_times(run) == without_times(small_run) and len(without_times(run)) == 6
    assert same_weights(run, small_run)


def test_another_seed_is_another_run(small_run, textures, tmp_path):
    assert main(arguments(small_run.parent / "data", textures, tmp_path / "run", "--seed", 1)) == 0
    assert not same_weights(tmp_path / "run", small_run)


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_ends_bit_equal(small_run, textures, tmp_path):
    """SIGKILL again and again, in the middle of epochs too; whatever is there is loadable, and the end is the same."""
    run, rng = tmp_path / "run", np.random.default_rng(int(time.time()))
    slow = """if True:
        import sys, time, torch
        torch.set_num_threads(1)  # as in the run that it is compared with: sums over threads differ in their last bits
        from adref import train
        from adref.methods.draem import DRAEM
        loss = DRAEM.loss
        DRAEM.loss = lambda *rest: (time.sleep(0.15), loss(*rest))[1]
        sys.exit(train.main(sys.argv[1:]))"""
    kills = 0
    for _ in range(4):
        rest = ["--resume", "--out", str(run)]
        if not run.exists():
            rest = arguments(small_run.parent / "data", textures, run, "--checkpoint-steps", 1)
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen([sys.executable, "-c", slow, *rest], **quiet)
        deadline = time.time() + 60
        while time.time() < deadline and process.poll() is None and not (run / "checkpoint.pt").exists():
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 4))
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert checkpoint(run)["step"] <= 6  # never left unloadable
    assert kills > 0
    assert main(["--resume", "--out", str(run)]) == 0
    assert same_weights(run, small_run) and without_times(run) == without_times(small_run)
    assert (run / "report.html").exists()


def test_interrupt_saves_and_says_how_to_go_on(small_run, textures, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, DRAEM, 4, interrupt)  # in the middle of the second epoch
        assert main(arguments(small_run.parent / "data", textures, run)) == 130
    assert checkpoint(run)["step"] == 4
    assert f"python -m adref.train --resume --out {run}" in capsys.readouterr().out
    assert main(["--resume", "--out", str(run)]) == 0
    assert same_weights(run, small_run) and without_times(run) == without_times(small_run)


@pytest.mark.parametrize("term", ["focal", "weights"])
def test_a_value_that_is_not_finite_stops_and_keeps_the_checkpoint(term, data, textures, tmp_path, monkeypatch, capsys):
    loss, seen = DRAEM.loss, []

    def poisoned(self, *rest):
        seen.append(1)
        terms = loss(self, *rest)
        if len(seen) == 4 and term == "focal":
            terms["focal"] = terms["focal"] * math.nan
        if len(seen) == 4 and term == "weights":
            self.reconstructor.out.bias.data.fill_(math.inf)
        return terms

    monkeypatch.setattr(DRAEM, "loss", poisoned)
    run = tmp_path / "run"
    assert main(arguments(data, textures, run, "--checkpoint-steps", 1)) == 1
    message = capsys.readouterr().err
    assert ("loss/focal is nan" if term == "focal" else "weight reconstructor.out.bias is not finite") in message
    state = checkpoint(run)
    assert state["step"] == 3 and all(torch.isfinite(t).all() for t in state["model"].values())
    assert [line["step"] for line in read_log(run)][:3] == [1, 2, 3]


@pytest.mark.parametrize(
    ("change", "words"),
    [(["--learning-rate", "0.5"], "--learning-rate was 0.0001, now 0.5"), (["--seed", "3"], "--seed was 0, now 3"),
     (["--epochs", "9"], "--epochs was 2, now 9"), (["--precision", "bf16"], "--precision was fp32"),
     (["--preset", "tiny"], "preset was paper, now tiny"), (["--holdout", "0.5"], "--holdout was 0.1")],
    ids=lambda value: value if isinstance(value, str) else value[0],
)  # fmt: skip
def test_resume_refuses_changed_options_and_says_which(change, words, small_run, capsys):
    assert main(["--resume", "--out", str(small_run), *change]) == 2
    assert words in capsys.readouterr().err


def test_resume_refuses_other_training_images_or_textures(small_run, tmp_path, capsys):
    data = shutil.copytree(small_run.parent / "data", tmp_path / "data")
    shutil.copy(data / "part/test/good/000.png", data / "part/train/good/000.png")
    for flag, folder, words in (
        ("--data", data, "training images"),
        ("--textures", data / "part/test/good", "textures"),
    ):
        assert main(["--resume", "--out", str(small_run), flag, str(folder)]) == 2
        assert f"the {words} are not those that" in capsys.readouterr().err


def test_resume_allows_a_data_set_that_moved(small_run, tmp_path):
    shutil.copytree(small_run, tmp_path / "run")
    shutil.copytree(small_run.parent / "data", tmp_path / "moved")
    assert main(["--resume", "--out", str(tmp_path / "run"), "--data", str(tmp_path / "moved"), "--workers", "1"]) == 0
    assert same_weights(tmp_path / "run", small_run)


def test_configuration_and_log_hold_what_an_audit_needs(small_run):
    config, line = json.loads((small_run / "config.json").read_text()), read_log(small_run)[0]
    assert set(config) >= {"adref", "torch", "method", "preset", "options", "changed", "flags", "data_digest",
                           "weights_sha256"}  # fmt: skip
    assert config["changed"]["epochs"] == "2" and config["options"]["epochs"] == 2
    assert {"stage", "epoch", "step", "lr", "seconds", "data_seconds", "loss/l2", "loss/total"} <= set(line)


def test_threshold_is_a_quantile_of_held_out_images(small_run, tmp_path):
    """20 held-out images at a rate of 0.1: rank ceil(0.9 * 21) = 19."""
    shutil.copytree(small_run, tmp_path / "run")
    records, run = find_category(write_category(tmp_path / "more", train=20), "part").train, load(tmp_path / "run")
    calibrate(run, read_images(run.method, records, RunSettings()), RunSettings(false_alarm_rate=0.1))
    scores = sorted(score_image(run.method, read_image(r.path), 0, 0)[0] for r in records)
    assert run.threshold == np.nextafter(np.float32(scores[18]), np.float32(np.inf)) > scores[18]
    assert not torch.tensor(scores[18]) >= run.threshold  # in float32, too
    calibration = checkpoint(tmp_path / "run")["calibration"]
    assert calibration["images"] == 20 and calibration["false_alarm_rate"] == 0.1


def test_no_held_out_image_no_threshold(data, textures, tmp_path):
    assert main(arguments(data, textures, tmp_path / "run", "--holdout", 0, "--epochs", 1)) == 0
    run = load(tmp_path / "run")
    assert run.threshold is None and run.state.finished


def test_only_good_pictures_train_and_set_a_threshold(data, textures, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(arguments(data / "part/train/good", textures, run, "--epochs", 1)) == 0
    assert "no test image: nothing to evaluate" in capsys.readouterr().out
    assert load(run).threshold is not None and not (run / "report.html").exists()


def test_an_unfinished_run_says_so(small_run, textures, tmp_path, monkeypatch, capsys):
    at_step(monkeypatch, DRAEM, 1, interrupt)
    run = tmp_path / "run"
    assert main(arguments(small_run.parent / "data", textures, run)) == 130
    assert evaluate.main([str(run), "--device", "cpu"]) == 0
    written = json.loads((run / "evaluation/metrics.json").read_text())
    assert written["checkpoint"] == "step 1: training is not finished"
    assert "none is stored: step 1: training is not finished" in (run / "report.html").read_text()


def test_published_weights_are_loaded_and_hashed(data, textures, tmp_path):
    from test_draem import authors_state

    states = authors_state(4, 3, 3, 5, ""), authors_state(4, 6, 2, 6, "_segment")
    files, run = [str(tmp_path / name) for name in ("a.pckl", "a_seg.pckl")], tmp_path / "run"
    for state, path in zip(states, files):
        torch.save(state, path)
    assert main(arguments(data, textures, run, "--weights", ",".join(files), "--epochs", 0)) == 0
    found = checkpoint(run)["model"]["discriminator.out.bias"]
    assert torch.equal(found, torch.load(files[1])["decoder_segment.fin_out.0.bias"])
    assert set(json.loads((run / "config.json").read_text())["weights_sha256"]) == set(files)
    assert f"{files[1]}: " in (run / "report.html").read_text()  # a name of a file is no name of an option
    for path in files:
        os.remove(path)
    assert main(["--resume", "--out", str(run)]) == 0  # the checkpoint has all it needs


def test_bf16_stays_near_fp32(small_run, textures, tmp_path):
    assert main(arguments(small_run.parent / "data", textures, tmp_path / "run", "--precision", "bf16")) == 0
    for low, high in zip(without_times(tmp_path / "run"), without_times(small_run)):
        assert low["loss/total"] == pytest.approx(high["loss/total"], rel=0.03)


def test_each_category_keeps_its_share_for_the_threshold():
    counts = {"a": 20, "b": 1, "c": 5}
    records = [Record(Path(f"{name}/{i}"), 0, "good", None, name) for name in counts for i in range(counts[name])]
    category = Category("a,b,c", "MVTec AD", Path("."), tuple(records), (), (), ())
    for seed in range(5):
        training, held_out = split(category, RunSettings(seed=seed))
        assert [sum(r.category == name for r in held_out) for name in "abc"] == [2, 0, 1]
        assert sorted([*training, *held_out]) == sorted(records)


def test_compile_is_asked_of_every_network(small_run, textures, tmp_path, monkeypatch):
    """torch.compile itself takes minutes; what it makes of the networks has other last bits, and the same names."""
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda network: compiled.append(type(network).__name__))
    more = ("--compile", "true", "--epochs", 1)
    assert main(arguments(small_run.parent / "data", textures, tmp_path / "run", *more)) == 0
    assert compiled == ["Autoencoder", "UNet"]
    compiled.clear()
    loop.compile_networks(torch.nn.ModuleDict({"a": torch.nn.ModuleList([torch.nn.ReLU()]), "b": torch.nn.GELU()}))
    assert compiled == ["ReLU", "GELU"]


def test_a_negative_channel_stops_a_run_and_its_resume(small_run, textures, tmp_path, monkeypatch, capsys):
    loss, run = DRAEM.loss, tmp_path / "run"
    signs = {"sign/red": torch.tensor(0.9), "sign/green": torch.tensor(-0.8), "sign/blue": torch.tensor(0.9)}
    monkeypatch.setattr(DRAEM, "loss", lambda *rest: loss(*rest) | signs)
    monkeypatch.setattr(loop, "SETTLED_STEPS", 6)
    for argv in (arguments(small_run.parent / "data", textures, run), ["--resume", "--out", str(run)]):
        assert main(argv) == 1
        said = capsys.readouterr().err
        assert f"{run}: the reconstructed green channel is its negative (sign/green is -0.80)" in said
        assert "try another --seed" in said and said.count("\n") == 1
    assert checkpoint(run)["step"] == 6 and evaluate.main([str(run), "--device", "cpu"]) == 0


@pytest.mark.parametrize(("signs", "handed"), [
    ([-0.9] * 99, -0.9), ([-0.4] * 100, None), ([-0.05] * 100, -0.05), ([-0.9] * 90 + [0.9, 0.7] * 5, 0.8),
    ([0.9] * 90 + [-0.9, -0.2] * 5, None), ([0.5] * 100 + [-0.9], 0.36),
])  # fmt: skip
def test_only_a_settled_channel_is_called_negative(signs, handed, tmp_path):
    """The last ten steps, an epoch's, count, after 100 of a stage; else their mean is handed to the method."""
    lines = [{"stage": name, "epoch": i // 10, "step": i, "sign/red": sign}
             for i, (name, sign) in enumerate([("train", s) for s in signs] + [("next", -0.9)] * 10)]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    method, seen = torch.nn.Identity(), []
    method.finish = lambda *given: seen.append(given)
    with pytest.raises(TrainingError, match="red channel") if handed is None else nullcontext():
        finish_stage(Run(tmp_path, {}, method), "train")
    assert seen == ([] if handed is None else [("train", {"sign/red": pytest.approx(handed)})])


def test_statistics_that_are_nan_on_any_rank_are_not_logged(monkeypatch):
    values = {"loss/total": 2.0, "repair/found": math.nan, "repair/replaced": 0.5}
    terms = {name: torch.tensor(value) for name, value in values.items()}
    assert average_over_ranks(terms, False) == ({"loss/total": 2.0, "repair/replaced": 0.5}, False)
    monkeypatch.setattr(distributed, "gather", lambda value: [value, ([4.0, 0.9, 0.0], True)])
    assert average_over_ranks(terms, False) == ({"loss/total": 3.0, "repair/replaced": 0.25}, True)


def test_a_run_of_another_version_is_refused(small_run, tmp_path, capsys):
    """Its options would silently have today's defaults."""
    run = shutil.copytree(small_run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    del config["options"]["score_window"]
    (run / "config.json").write_text(json.dumps(config))
    for command in (main, evaluate.main):
        assert command(["--resume", "--out", str(run)] if command is main else [str(run)]) == 2
        assert "another version of adref: it lacks --score-window" in capsys.readouterr().err
