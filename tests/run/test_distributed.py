"""Two processes, as torchrun starts them: the losses of one, what is shared, a process that dies, SIGTERM."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import checkpoint, same_weights, without_times, write_category
from torch import nn

from adref import load, train
from adref.data.examples import Schedule
from adref.method import Stage
from adref.run import distributed, loop
from adref.run.directory import read_log
from adref.train import main

slow = pytest.mark.slow
COMMON = ["--batch-size", "3", "--workers", "0", "--device", "cpu"]
METHODS = {
    "draem": ["--size", "64,64", "--reconstruction-width", "4", "--discriminator-width", "4", "--score-window", "5"],
    "srdad": ["--size", "64,64", "--width", "12", "--window", "4", "--aspp-width", "24",
              "--discriminator-width", "4", "--score-window", "5", "--attention-dropout", "0"],
    "vit_autoencoder": ["--preset", "tiny", "--size", "64,64", "--width", "16", "--depth", "1", "--heads", "2",
                        "--memory-items", "8", "--decoder-width", "16"],
    "sernet": ["--size", "32,32", "--width", "4", "--msgms-scales", "2", "--smooth-side", "5", "--ppa-exponents",
               "0,2"],
    "noise_to_norm": ["--size", "32,32", "--width", "4", "--levels", "2", "--sigmas", "0.5,1"],
    "sdas": ["--size", "16,16", "--width", "32", "--multipliers", "1,1", "--blocks", "1", "--attention-factors", "2",
             "--head-width", "32", "--accumulation", "2", "--batch-size", "4"],
    "realnet": ["--size", "128,128", "--backbone", "mobilenet_v2", "--widths", "16,16,32,16", "--groups", "4",
                "--afs-batches", "2", "--anomaly-sources", "textures,cut_paste",
                "--backbone-weights", "random", "--rrs-forward", "normalised"],
}  # fmt: skip


def command(name: str, data: Path, textures: Path, out: Path) -> list[str]:
    more = ["--textures", str(textures)] if name in ("draem", "realnet") else []
    more += ["--steps", "5"] if name == "sdas" else ["--epochs", "2"]
    return [name, "--data", str(data), "--out", str(out), *COMMON, *METHODS[name], *more]


def torchrun(*words, options=()) -> subprocess.Popen:
    """Two processes of a script or module."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*launch, *map(str, words)], env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes)


def run(process: subprocess.Popen) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=300)
    return process.returncode, out, error


# Keeps the gradients of a run's first step. DRAEM and SRDAD train in float64: small networks with batch norm make so
# much of rounding that in float32 a batch whose images only change places has gradients that are 17 % apart.
NOTE = """
import torch
from adref import train
from adref.run import distributed, loop
add, parallel, move, fit, gradients = loop.add_gradients, distributed.parallel_loss, loop.to_device, train.fit, []
single, noted = torch.Tensor.float, set()
def exact(method):
    return type(method).__name__ in ("DRAEM", "SRDAD")
def noting(method, *rest):
    if exact(method):
        torch.Tensor.float = torch.Tensor.double
        loop.to_device = lambda *args: (lambda b: type(b)(*(field.double() for field in b)))(move(*args))
    result = add(method, *rest)
    torch.Tensor.float, loop.to_device = single, move
    if method not in noted:
        noted.add(method)
        gradients.append({name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None})
    return result
loop.add_gradients = noting
train.fit = lambda run, *rest: (fit(run, *rest), run.method.float())[0]
distributed.parallel_loss = lambda method: parallel(method.double() if exact(method) else method)
"""

# Trains a ViT autoencoder whose loss does something first.
PATCHED = """
import os, signal, sys, time
from adref import train
from adref.methods import METHODS
method, seen = METHODS["vit_autoencoder"], []
loss = method.loss
def patched(*rest):
    seen.append(1)
    {}
    return loss(*rest)
method.loss = patched
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory, textures) -> Path:
    """Every method trained by one process (NAME-1) and by two (NAME-2)."""
    root = tmp_path_factory.mktemp("distributed")
    data, script, found = write_category(root / "data"), root / "all.py", {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "add_gradients", loop.add_gradients)  # what it puts back
        patch.setattr(distributed, "parallel_loss", distributed.parallel_loss)
        patch.setattr(train, "fit", train.fit)
        exec(NOTE, found)
        for name in METHODS:
            assert main(command(name, data, textures, root / f"{name}-1")) == 0
    torch.save(dict(zip(METHODS, found["gradients"])), root / "gradients-1.pt")
    commands = [command(name, data, textures, root / f"{name}-2") for name in METHODS]
    script.write_text(f"""{NOTE}
import json, sys
with distributed.process_group():
    code = max(train.main(argv) for argv in json.loads(sys.argv[1]))
    if distributed.rank() == 0:
        torch.save(dict(zip({list(METHODS)}, gradients)), {str(root / "gradients-2.pt")!r})
sys.exit(code)
""")
    code, out, error = run(torchrun(script, json.dumps(commands)))
    assert code == 0, error
    (root / "out").write_text(out)
    return root


@slow
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_have_the_losses_of_one(name, runs):
    """Batches of 3 are dealt out as 2 and 1, and the last of 2 or 1 images; parts of a batch (SDAS), early stopping
    (noise-to-norm), batch norm and RRS are in it."""
    one, two = (without_times(runs / f"{name}-{n}") for n in (1, 2))
    assert len(one) == len(two) > 3
    apart = {"memory/dead_items", "repair/found"}  # the means of two processes' own, if both have one
    for a, b in zip(one, two):
        assert a.keys() - apart == b.keys() - apart
        assert all(a[key] == b[key] for key in ("stage", "epoch", "step", "lr"))
        for key in a:
            if "/" in key and key not in apart:  # signs divide by the contrast of outputs that have hardly any yet
                assert b[key] == pytest.approx(a[key], rel=1e-5, abs=1e-3 if key.startswith("sign/") else 1e-6), key
    one, two = (torch.load(runs / f"gradients-{n}.pt")[name] for n in (1, 2))
    assert one.keys() == two.keys()
    apart = torch.cat([(one[key] - two[key]).flatten() for key in one]).norm()
    bound = 1e-9 if name in ("draem", "srdad") else 1e-5
    assert apart < bound * torch.cat([gradient.flatten() for gradient in one.values()]).norm()
    first, second = (checkpoint(runs / f"{name}-{n}") for n in (1, 2))
    assert first["model"].keys() == second["model"].keys()
    if name != "sdas":
        assert second["calibration"]["threshold"] == pytest.approx(first["calibration"]["threshold"], rel=1e-3)
        assert (runs / f"{name}-2/report.html").exists()
        assert load(runs / f"{name}-2").threshold == second["calibration"]["threshold"]


@slow
def test_only_the_first_process_prints_and_the_run_says_how_many_there_were(runs):
    assert (runs / "out").read_text().count("normal images train") == len(METHODS)
    assert json.loads((runs / "draem-2/config.json").read_text())["processes"] == 2
    assert ">Processes</th><td>2<" in (runs / "draem-2/report.html").read_text()


@slow
def test_one_of_them_dies_and_they_go_on_from_the_checkpoint(runs, textures, tmp_path):
    script = tmp_path / "dying.py"
    script.write_text(
        PATCHED.format("""
    if len(seen) == 3 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)""")
    )
    argv = [*command("vit_autoencoder", runs / "data", textures, tmp_path / "run"), "--checkpoint-steps", "1"]
    code, _, error = run(torchrun(script, *argv, options=["--max-restarts", "3"]))
    assert code == 0, error
    assert without_times(tmp_path / "run") == without_times(runs / "vit_autoencoder-2")
    assert same_weights(tmp_path / "run", runs / "vit_autoencoder-2")


@slow
def test_sigterm_stops_all_at_one_step_and_one_process_goes_on(runs, textures, tmp_path):
    script, out = tmp_path / "slow.py", tmp_path / "run"
    script.write_text(PATCHED.format("time.sleep(0.5)"))
    argv = [*command("vit_autoencoder", runs / "data", textures, out), "--checkpoint-steps", "1"]
    process = torchrun(script, *argv)
    deadline = time.time() + 120
    while time.time() < deadline and (not (out / "config.json").exists() or checkpoint(out)["step"] < 1):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    code, text, _ = run(process)
    assert code != 0 and "Interrupted and saved" in text
    assert 0 < checkpoint(out)["step"] < 4
    assert main(["--resume", "--out", str(out)]) == 0
    losses, expected = ([line["loss/total"] for line in read_log(r)] for r in (out, runs / "vit_autoencoder-1"))
    assert losses == pytest.approx(expected, rel=1e-5)


def test_several_processes_need_a_name(data, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "count", lambda: 2)
    assert main(["draem", "--data", str(data)]) == 2
    assert "several processes need --out RUN" in capsys.readouterr().err


def test_parts_of_a_batch():
    for images, parts, sizes in ((5, 2, [3, 2]), (2, 4, [1, 1]), (6, 1, [6])):
        found = Schedule(Stage("train", 1, parts=parts), images, images, seed=0).parts(1)
        assert [len(part) for part in found] == sizes
        assert sorted(index for part in found for _, _, index in part) == list(range(images))


def test_batch_norm_keeps_its_tensors_and_names_and_is_torchs_in_one_process():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    names, weight = list(network.state_dict()), network[1][0].weight
    distributed.synchronise_batch_norm(network)
    synced = network[1][0]
    assert type(synced) is distributed.SyncBatchNormCPU and synced.weight is weight
    assert list(network.state_dict()) == names
    x, plain = torch.randn(2, 4, 5, 6), nn.BatchNorm2d(4)
    assert torch.allclose(synced(x), plain(x), atol=1e-6)
    assert torch.allclose(synced.running_var, plain.running_var)
    assert torch.equal(synced.num_batches_tracked, plain.num_batches_tracked)
