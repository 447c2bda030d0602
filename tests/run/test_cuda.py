"""One CUDA card: resumes bit for bit, the numbers of the CPU, two processes, the papers' presets.

Where there is none, `pytest -m slow` runs the same code on the CPU at small sizes, and a device without numbers shows
which operations would mix devices.
"""

import copy
import math

import pytest
import speed
import torch
from conftest import at_step, interrupt, same_weights, without_times, write_category
from test_distributed import METHODS, command, run, torchrun
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adref.data.examples import random_stream
from adref.data.layouts import find_category
from adref.method import Context, Method
from adref.methods import find_method
from adref.run.directory import read_log
from adref.run.loop import repeatable
from adref.train import main

CARD = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")]
DEVICES = pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=CARD)]
)
NAMES = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(scope="module")
def category(tmp_path_factory):
    return find_category(write_category(tmp_path_factory.mktemp("cuda")), "part")


def small_bench(name, category, device="cpu", preset="tiny"):
    """At a batch of 2, of 12 parts for SDAS at `paper`; without dropout, whose draws differ between devices."""
    size = 12 if (name, preset) == ("sdas", "paper") else 2
    changes = {"batch_size": size, "attention_dropout": 0.0}
    return speed.open_bench(name, preset, category, torch.device(device), False, changes)


@DEVICES
@NAMES
def test_a_resumed_run_ends_bit_equal(name, device, data, textures, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    more = ["--device", device, *(["--attention-dropout", "0.1"] if name == "srdad" else [])]
    assert main([*command(name, data, textures, whole), *more]) == 0
    with monkeypatch.context() as patch:
        at_step(patch, find_method(name), 3, interrupt)
        assert main([*command(name, data, textures, broken), *more]) == 130
    assert main(["--resume", "--out", str(broken)]) == 0
    assert same_weights(whole, broken)
    for a, b in zip(without_times(whole), without_times(broken), strict=True):
        # The logged cross-entropy of pixels is a sum that CUDA adds up in any order.
        assert b == (a if device == "cpu" else pytest.approx(a, rel=1e-6, abs=1e-6)), a["step"]


# Float32 is 3.4e-6 of a loss away from float64 on the CPU (DRAEM; the others 4e-8 to 1.7e-6), and the rounding of
# another device is of that size; 30 times that is allowed. Statistics may count a value on either side of a threshold.
# Gradients are no measure: batch norms in small networks magnify rounding (DRAEM's: 57 % away from float64).
@DEVICES
@NAMES
def test_losses_agree_with_those_of_the_cpu(name, device, category, monkeypatch):
    """On the CPU: with those in float64."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # of products it is False already
    bench = small_bench(name, category)
    method = bench.method().train()
    torch.manual_seed(1)
    for parameter in method.parameters():
        if name in ("sdas", "realnet") and not parameter.any():  # else they put out zeros before training
            torch.nn.init.normal_(parameter, 0, 0.02)
    for stage in method.stages:
        batch, other = speed.make_batch(bench, stage, 2), copy.deepcopy(method)
        expected = {key: float(term.detach()) for key, term in method.loss(batch, stage.name).items()}
        if device == "cpu":
            with monkeypatch.context() as patch:
                patch.setattr(torch.Tensor, "float", torch.Tensor.double)
                terms = other.double().loss(
                    type(batch)(*(t.double() if t.is_floating_point() else t for t in batch)), stage.name
                )
        else:
            terms = other.to(device).loss(type(batch)(*(t.to(device) for t in batch)), stage.name)
        assert terms.keys() == expected.keys()
        for key, term in terms.items():
            close = {"rel": 0, "abs": 0.01} if "/" in key else {"rel": 1e-4, "abs": 1e-6}
            assert float(term.detach()) == pytest.approx(expected[key], **close), (stage.name, key)


@DEVICES
@pytest.mark.parametrize("name", ["draem", "sdas", "realnet"])  # batch norm, parts of a batch, RRS
def test_two_processes_on_one_card_have_the_losses_of_one(name, device, data, textures, tmp_path, monkeypatch):
    """Batch norm in small networks magnifies rounding: DRAEM's losses are 4e-3 apart after five steps in float32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")  # the same for the two
    one, two = tmp_path / "one", tmp_path / "two"
    assert main([*command(name, data, textures, one), "--device", device]) == 0
    code, _, error = run(torchrun("-m", "adref.train", *command(name, data, textures, two), "--device", device))
    assert code == 0, error
    first, second = ([line["loss/total"] for line in read_log(folder)] for folder in (one, two))
    assert second[0] == pytest.approx(first[0], rel=1e-4) and second == pytest.approx(first, rel=2e-2)


@pytest.mark.parametrize(("preset", "device"), [pytest.param("tiny", "cpu", marks=pytest.mark.slow),
                                                pytest.param("paper", "cuda", marks=CARD)])  # fmt: skip
@NAMES
def test_every_preset_trains_three_steps_and_scores_a_picture(name, preset, device, category):
    """At full size in a batch of 2 (SDAS: 12 parts of 1); random backbones."""
    bench = small_bench(name, category, device, preset)
    method = bench.method()
    for stage in (stage for stage in method.stages if stage.length):
        step = speed.training_step(bench, stage, method)
        losses = [float(step(number)) for number in range(3)]
        assert all(map(math.isfinite, losses)) and len(set(losses)) == 3, (stage.name, losses)
    maps = speed.inference(bench, method)(0)
    assert maps.device.type == device and torch.isfinite(maps.float()).all()
    assert maps.shape == (1, 1 if issubclass(bench.kind, Method) else 3, *bench.options.size)


def test_only_cuda_is_kept_to_repeatable_algorithms_and_only_for_a_while():
    def state():
        attention = torch.backends.cuda
        return (torch.are_deterministic_algorithms_enabled(), attention.flash_sdp_enabled(),
                attention.mem_efficient_sdp_enabled())  # fmt: skip

    before = state()
    with repeatable(torch.device("cpu")):
        assert state() == before == (False, True, True)
    with pytest.raises(KeyError), repeatable(torch.device("cuda")):
        assert state() == (True, False, False)
        raise KeyError
    assert state() == before


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of two devices, as CUDA does but for numbers and copies, on the device "meta"."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name, kwargs = operation._schema.name, kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if name not in ("aten::copy_", "aten::_to_copy"):
            assert len({t.device for t in tensors if t.ndim}) < 2, f"{name}: {[(t.device, t.shape) for t in tensors]}"
        if tensors and tensors[0].is_meta and name == "aten::_local_scalar_dense":
            return True if tensors[0].dtype == torch.bool else 0.5
        if tensors and tensors[0].is_meta and str(kwargs.get("device")) == "cpu":  # a copy to the CPU
            return torch.zeros(tensors[0].shape, dtype=kwargs.get("dtype") or tensors[0].dtype)
        return operation(*args, **kwargs)


@NAMES
def test_no_operation_mixes_devices(name, category, monkeypatch):
    autocast = torch.autocast  # knows no "meta"
    monkeypatch.setattr(torch, "autocast", lambda device_type, *rest, **words: autocast("cpu", *rest, **words))
    bench = small_bench(name, category)
    method = bench.method()
    with OneDevice():
        method.to("meta", memory_format=torch.channels_last)
        for stage in method.stages:
            batch = speed.make_batch(bench, stage, 2)
            optimizer, _ = method.train().optimizer(stage.name)
            terms = method.loss(type(batch)(*(t.to("meta") for t in batch)), stage.name)
            assert all(term.is_meta and term.dtype == torch.float32 and not term.ndim for term in terms.values())
            terms["total"].backward()
            method.after_backward(stage.name, True)
            optimizer.step()
        rngs, image = [random_stream(0, "test", 0)], torch.rand(1, 3, *bench.options.size).to("meta")
        if isinstance(method, Method):
            scores, maps = method.eval().score(image, Context(rngs))
            assert (
                scores.is_meta
                and maps.is_meta
                and all(p.is_meta for p in method.figures(image, Context(rngs)).values())
            )
        else:
            assert method.sample_images([0], rngs, [0.1]).is_meta
    with pytest.raises(AssertionError, match="aten::add"), OneDevice():
        torch.ones(2, device="meta") + torch.ones(2)
