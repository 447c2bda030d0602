"""Exports: ONNX in another program, programs of torch.export and plain arrays give what the method gives."""

import contextlib
import functools
import hashlib
import importlib.util
import json
import logging
import re
from pathlib import Path

import export
import numpy as np
import pytest
import torch
from conftest import golden

from adref.method import Context
from adref.methods import METHODS
from adref.methods.noise_to_norm.method import draw_noise
from adref.methods.sernet.method import repair_mask
from adref.options import UserError, to_json
from adref.run.directory import Run, State, create_run, load_tensors, open_run

pytestmark = pytest.mark.slow

# As small as a method can be: an exporter takes seconds for every hundred operations.
SMALL = {
    "patchcore": {"size": (64, 96), "backbone": "efficientnet_lite0", "width": None},
    "draem": {"size": (64, 64), "reconstruction_width": 4, "discriminator_width": 4, "score_window": 5},
    "srdad": {"size": (64, 64), "width": 12, "window": 4, "aspp_width": 24, "unet_width": 4, "score_window": 5},
    "vit_autoencoder": {"size": (32, 64), "width": 24, "depth": 1, "heads": 2, "memory_items": 20, "decoder_width": 32,
                        "patch": 8},
    "sernet": {"size": (32, 64), "width": 4, "msgms_scales": 1, "smooth_side": 5, "threshold": 0.505},
    "noise_to_norm": {"size": (32, 64), "width": 8, "levels": 2, "sigmas": (0.5,)},
    "sdas": {"size": (16, 24), "width": 32, "multipliers": (1,), "blocks": 1, "attention_factors": (1,),
             "head_width": 32, "categories": ("a", "b")},
    "realnet": {"size": (128, 128), "backbone": "resnet18", "widths": (16, 16, 32, 16), "network": "simple",
                "score_window": 8},
}  # fmt: skip


def made(name: str, **changes):
    """A small method with hashed weights."""
    return golden.fill(METHODS[name](METHODS[name].Options(**SMALL[name], **changes)))


@pytest.fixture(scope="module", autouse=True)
def fast():
    """Traces each graph once for all formats, and lets the exporter build its table of operations (2 s) once."""
    draw, known = export.draw, {}

    def drawn(stage):
        key = type(stage.module), type(stage.module.method)
        if key not in known or key[0] is Planted:
            known[key] = draw(stage)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "draw", drawn)
        # else thousands of log lines are made for pytest
        patch.setattr(logging.getLogger("torch.__trace"), "propagate", True)
        try:
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        except ImportError:  # another torch has another place for it
            pass
        yield


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """Name of a method -> a run directory with hashed weights."""

    @functools.cache
    def make(name: str) -> Path:
        method = made(name)
        if name == "patchcore":
            method.bank = golden.hashed("bank", 40, 152)
        if name == "sernet":
            method.bank.fill([(255 * picture).byte() for picture in golden.hashed("bank", 3, 3, 32, 64)])
        config = {"method": name, "preset": "", "category": "", "options": to_json(method.options), "changed": {},
                  "flags": {"data": "", "seed": 0}}  # fmt: skip
        folder = tmp_path_factory.mktemp("runs") / name
        with contextlib.ExitStack() as locks:
            create_run(folder, config, method, locks)
        Run(folder, config, method, State(step=1, finished=True, calibration={"threshold": 0.25})).save()
        return folder

    return make


def exported(run: Path, kind: str, out: Path) -> dict:
    """The command's export.json."""
    try:
        export.refuse(kind)
    except UserError as error:  # an older torch, or no onnx
        pytest.skip(str(error))
    assert export.main([str(run), "--format", kind, "--out", str(out)]) == 0
    return json.loads((out / "export.json").read_text())


def onnx(path: Path, *inputs: torch.Tensor) -> list[torch.Tensor]:
    runtime = pytest.importorskip("onnxruntime")
    program = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    arrays = {known.name: tensor.numpy() for known, tensor in zip(program.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(array) for array in program.run(None, arrays)]


def pt2(path: Path, *inputs: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.export.load(path).module()(*inputs))


RUN = {"onnx": onnx, "pt2": pt2}


def assert_near(found, wanted):
    """All outputs within 1e-4; the last is not constant."""
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype and (a - b).abs().max() < 1e-4, float((a - b).abs().max())
    assert wanted[-1].std() > 1e-3


@pytest.mark.parametrize(("name", "kind"), [
    ("patchcore", "onnx"), ("draem", "onnx"), ("srdad", "onnx"), ("vit_autoencoder", "onnx"), ("realnet", "onnx"),
    ("draem", "pt2"),
])  # fmt: skip
@torch.no_grad()
def test_scores_and_maps(name, kind, run_of, tmp_path, capsys):
    about, method = exported(run_of(name), kind, tmp_path / "out"), open_run(run_of(name)).method
    text = capsys.readouterr()
    assert re.match(rf"score\.{kind}: scores \de[-+]\d\d, maps \de[-+]\d\d from the method\n", text.out), text.out
    assert text.err == "" and sorted(p.name for p in (tmp_path / "out").iterdir()) == ["export.json", f"score.{kind}"]
    size = (96, 160) if name == "draem" else method.options.size
    for count in (1, 3):
        images = golden.hashed("images", count, 3, *size)
        assert_near(RUN[kind](tmp_path / "out" / f"score.{kind}", images), method.score(images))
    sides = ["height", "width"] if name == "draem" else list(size)
    (stage,) = about["stages"]
    assert [t["shape"] for t in stage["inputs"]] == [["batch", 3, *sides]]
    assert [t["shape"] for t in stage["outputs"]] == [["batch"], ["batch", 1, *sides]]
    free = [{"name": side, "multiple": 32, "least": 64} for side in sides] if name == "draem" else []
    assert stage["axes"] == [{"name": "batch", "multiple": 1, "least": 1}, *free]
    assert (about["method"], about["format"], about["threshold"]) == (name, kind, 0.25)
    assert about["options"] == json.loads(json.dumps(to_json(method.options)))
    assert about["checkpoint_sha256"] == hashlib.sha256((run_of(name) / "checkpoint.pt").read_bytes()).hexdigest()


def noisy(method, *size: int) -> tuple:
    """Images, the noise that adref would draw for them, and the context from which it would draw it."""
    streams, again = ([np.random.default_rng(i) for i in range(3)] for _ in range(2))
    noise = [torch.stack([draw_noise(rng, (3, *size)) for rng in again]) for _ in range(method.options.noise_repeats)]
    return golden.hashed("images", 3, 3, *size), torch.stack(noise), Context(streams)


@torch.no_grad()
def test_noise_is_an_input(run_of, tmp_path):
    method = open_run(run_of("noise_to_norm")).method
    (stage,) = exported(run_of("noise_to_norm"), "onnx", tmp_path / "out")["stages"]
    assert stage["inputs"][1]["shape"] == [1, "batch", 3, "height", "width"] and "N(0.5, 0.5^2)" in stage["note"]
    images, noise, context = noisy(method, 36, 40)
    assert_near(onnx(tmp_path / "out" / "score.onnx", images, noise), method.score(images, context))


@torch.no_grad()
def test_several_draws_of_the_noise():
    method = made("noise_to_norm", noise_repeats=3)
    images, noise, context = noisy(method, 32, 64)
    (stage,) = export.stages(method)
    assert stage.inputs["noise"].shape == (3, 2, 3, 32, 64)
    assert_near(stage.module(images, noise), method.score(images, context))


@torch.no_grad()
def test_sernet_is_two_stages_with_a_search_between(run_of, tmp_path):
    method, images = open_run(run_of("sernet")).method, golden.hashed("images", 3, 3, 32, 64)
    about = exported(run_of("sernet"), "onnx", tmp_path / "out")
    (probability,) = onnx(tmp_path / "out" / "segment.onnx", images)
    mask = repair_mask(probability, method.options.threshold, method.options.area * 32 * 64)
    similar, _ = method.find_similar(images)
    assert 0 < mask.mean() < 1
    assert_near(onnx(tmp_path / "out" / "rebuild.onnx", images, mask, similar), method.score(images))
    for words in ("repair_mask(probability, 0.505, 0.025 * H * W)", "51.2 pixels", "checkpoint.pt"):
        assert all(words in stage["note"] for stage in about["stages"])


@pytest.mark.parametrize("changes", [{"segmentation": False}, {"repair": "none"}, {"similar": "self"}])
@torch.no_grad()
def test_sernet_without_repair_is_one_stage(changes):
    (stage,), images = export.stages(method := made("sernet", **changes)), golden.hashed("images", 3, 3, 32, 64)
    assert_near(stage.module(images), method.score(images))


@pytest.mark.parametrize("repair", ["zero", "mean"])
@torch.no_grad()
def test_sernet_with_a_repair_that_needs_no_search(repair):
    first, second = export.stages(method := made("sernet", repair=repair))
    images = golden.hashed("images", 3, 3, 32, 64)
    mask = repair_mask(first.module(images)[0], method.options.threshold, method.options.area * 32 * 64)
    assert mask.any() and list(second.inputs) == ["images", "mask"]
    assert_near(second.module(images, mask), method.score(images))


@torch.no_grad()
def test_sdas_is_its_averaged_network_with_weights_in_another_file(run_of, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "LARGE", 0)
    method = open_run(run_of("sdas")).method
    about = exported(run_of("sdas"), "onnx", tmp_path / "out")
    x, steps, labels = golden.hashed("x", 3, 3, 16, 24), torch.tensor([950, 0, 50]), torch.tensor([1, 0, 1])
    wanted = method.average(x, steps, labels).chunk(2, dim=1)
    assert_near(onnx(tmp_path / "out" / "network.onnx", x, steps, labels), wanted)
    files = ["export.json", "network.onnx", "network.onnx.data"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files
    table = method.sampling_schedule()
    assert about["schedule"] == {name: values.tolist() for name, values in table._asdict().items()}
    assert "threshold" not in about
    assert [t["dtype"] for t in about["stages"][0]["inputs"]] == ["float32", "int64", "int64"]


@pytest.mark.parametrize("name", METHODS)
def test_weights_come_back(name, run_of, tmp_path):
    about = exported(run_of(name), "npz", tmp_path / "out")
    state, _ = load_tensors(tmp_path / "out" / "weights.npz", "")
    own = (method := open_run(run_of(name)).method).state_dict()
    assert list(state) == list(own) == [row["name"] for row in about["tensors"]]
    for row in about["tensors"]:
        tensor = own[row["name"]]
        assert torch.equal(state[row["name"]], tensor) and state[row["name"]].dtype == tensor.dtype
        assert row["shape"] == list(tensor.shape) and row["dtype"] == str(tensor.dtype)[6:]
    parameters = [row["name"] for row in about["tensors"] if row["kind"] == "parameter"]
    assert parameters == [key for key, _ in method.named_parameters()]


def refused(capsys, folder: Path, *arguments) -> str:
    """The one sentence of a command that ends with code 2 and leaves the folder as it was."""
    before = sorted(folder.rglob("*"))
    assert export.main(list(map(str, arguments))) == 2
    text = capsys.readouterr()
    assert text.out == "" and text.err.startswith("error: ") and text.err.count("\n") == 1, text
    assert sorted(folder.rglob("*")) == before
    return text.err


def test_mistakes_are_one_sentence(run_of, tmp_path, capsys, monkeypatch):
    run, out = run_of("draem"), tmp_path / "out"
    assert "no run directory" in refused(capsys, tmp_path, tmp_path, "--format", "npz", "--out", out)
    assert "takes onnx, pt2, npz; got tflite" in refused(capsys, tmp_path, run, "--format", "tflite", "--out", out)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "note").touch()
    assert "exists already" in refused(capsys, tmp_path, run, "--format", "npz", "--out", tmp_path / "there")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *rest: None if n == "onnx" else find(n, *rest))
    assert "pip install '.[onnx]'" in refused(capsys, tmp_path, run, "--format", "onnx", "--out", out)
    monkeypatch.undo()
    monkeypatch.setattr(torch, "__version__", "2.2.2")
    assert "needs torch 2.7 or newer; this is 2.2.2" in refused(capsys, tmp_path, run, "--format", "pt2", "--out", out)


class Planted(torch.nn.Module):
    """Computes something else when its graph is traced."""

    def __init__(self, method, fault):
        super().__init__()
        self.method, self.fault = method, fault

    def forward(self, images):
        maps = images.mean(dim=1, keepdim=True)
        return maps.amax(dim=(1, 2, 3)), maps + self.fault(images) if torch.compiler.is_compiling() else maps


def test_a_graph_that_differs_or_cannot_be_traced_leaves_nothing(run_of, tmp_path, capsys, monkeypatch):
    stages, run = export.stages, run_of("draem")
    planted = {"differs": lambda images: 1e-3, "no graph": lambda images: float(images.sum())}

    def plant(fault: str) -> None:
        part = stages(open_run(run).method)[0]
        monkeypatch.setattr(export, "stages", lambda m: [part._replace(module=Planted(m, planted[fault]))])

    plant("differs")
    assert export.main([str(run), "--format", "pt2", "--out", str(tmp_path / "out")]) == 1
    text = capsys.readouterr()
    assert "maps 1e-03 from the method" in text.out and "stopped: 1e-03 from the method is above 1e-04" in text.err
    assert not list(tmp_path.iterdir())
    plant("no graph")
    assert "no pt2 of score: " in refused(capsys, tmp_path, run, "--format", "pt2", "--out", tmp_path / "out")
