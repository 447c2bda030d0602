"""Every method as ONNX, some as programs of torch.export, all as arrays: what they give is what the method gives."""

import functools
import importlib.util
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import golden

from adref.method import Trainable
from adref.methods import METHODS, find_method
from adref.methods.noise_to_norm.method import draw_noise
from adref.methods.sernet.method import repair_mask
from adref.options import UserError, to_json
from adref.run.directory import CONFIG_TYPES, create, load, load_tensors
from adref.run.files import sha256

SPEC = importlib.util.spec_from_file_location("export_tool", Path(__file__).parents[2] / "tools" / "export.py")
export = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(export)

# As small as a method can be: an exporter takes seconds for every hundred operations.
SMALL = {
    "draem": {"size": (64, 64), "reconstruction_width": 4, "discriminator_width": 4, "score_window": 5},
    "srdad": {
        "size": (64, 64), "width": 12, "window": 4, "aspp_width": 24,
        "unet_width": 4, "score_window": 5,
    },
    "vit_autoencoder": {
        "size": (32, 64), "width": 24, "depth": 1, "heads": 2, "memory_items": 20, "decoder_width": 32, "patch": 8,
        "score": "l2+ssim+entropy",
    },
    "sernet": {"size": (32, 64), "width": 4, "msgms_scales": 1, "smooth_side": 5, "threshold": 0.505},
    "noise_to_norm": {"size": (32, 64), "width": 8, "levels": 2, "sigmas": (0.5,)},
    "sdas": {
        "size": (16, 24), "width": 32, "multipliers": (1,), "blocks": 1, "attention_factors": (1,), "head_width": 32,
        "categories": ("a", "b"),
    },
    "realnet": {
        "size": (128, 128), "backbone": "resnet18", "widths": (16, 16, 32, 16), "network": "simple", "depth": 2,
        "head_width": 16, "score_window": 8,
    },
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def fast():
    """Draws each graph once for all formats, and lets the exporter build its table of operations (2 s) once."""
    draw, known = export.draw, {}

    def drawn(stage):
        key = type(stage.module), type(stage.module.method)
        if key not in known or key[0] is Planted:
            known[key] = draw(stage)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "draw", drawn)
        # Lest pytest listens, and thousands of lines are made for it.
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
        method = find_method(name)
        method = golden.fill(method(method.Options(**SMALL[name])))
        if name == "sernet":
            method.bank.fill([(255 * picture).byte() for picture in golden.hashed("bank", 3, 3, 32, 64)])
        config = {key: {str: "", bool: False, dict: {}, int: 1}.get(kind) for key, kind in CONFIG_TYPES.items()}
        config |= {"method": name, "options": to_json(method.options)}
        config["flags"] = {"data": "", "seed": 0, "precision": "fp32"}
        state = {"model": method.state_dict(), "step": 1, "calibration": {"threshold": 0.25}}
        create(run := tmp_path_factory.mktemp("runs") / name, config, state)
        return run

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
    """Outputs of a file in another program."""
    runtime = pytest.importorskip("onnxruntime")
    program = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    arrays = {known.name: tensor.numpy() for known, tensor in zip(program.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(array) for array in program.run(None, arrays)]


def pt2(path: Path, *inputs: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.export.load(path).module()(*inputs))


RUN = {"onnx": onnx, "pt2": pt2}


def assert_near(found, wanted):
    """Scores and maps, or what there is, within 1e-4; the last is not constant."""
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert (a - b).abs().max() < 1e-4, float((a - b).abs().max())
    assert wanted[-1].std() > 1e-3


def test_every_method_is_here():
    assert set(SMALL) == set(METHODS)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "onnx") for name in ("draem", "srdad", "vit_autoencoder", "realnet")),
        ("draem", "pt2"),
        ("realnet", "pt2"),
    ],
)
@torch.no_grad()
def test_scores_and_maps(name, kind, run_of, tmp_path, capsys):
    about, method = exported(run_of(name), kind, tmp_path / "out"), load(run_of(name))
    said = capsys.readouterr()
    assert re.match(rf"score\.{kind}: scores \de[-+]\d\d, maps \de[-+]\d\d from the method\n", said.out), said.out
    assert said.err == "" and sorted(p.name for p in (tmp_path / "out").iterdir()) == ["export.json", f"score.{kind}"]
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
    assert about["checkpoint_sha256"] == sha256(run_of(name) / "checkpoint.pt")


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
@torch.no_grad()
def test_noise_comes_from_outside(kind, run_of, tmp_path):
    run, method = run_of("noise_to_norm"), load(run_of("noise_to_norm"))
    (stage,) = exported(run, kind, tmp_path / "out")["stages"]
    assert stage["inputs"][1]["shape"] == [1, "batch", 3, "height", "width"] and "N(0.5, 0.5^2)" in stage["note"]
    images, noise, streams = noisy(method, 36, 40)
    assert_near(RUN[kind](tmp_path / "out" / f"score.{kind}", images, noise), method.score(images, streams))


@torch.no_grad()
def test_several_draws_of_the_noise():
    options = METHODS["noise_to_norm"].Options(**SMALL["noise_to_norm"], noise_repeats=3)
    method = golden.fill(METHODS["noise_to_norm"](options))
    images, noise, streams = noisy(method, 32, 64)
    (stage,) = export.stages(method)
    assert stage.inputs["noise"].shape == (3, 2, 3, 32, 64)
    assert_near(stage.module(images, noise), method.score(images, streams))


def noisy(method, *size: int) -> tuple:
    """Images, the noise that adref would draw for them, and the streams that it would draw it from."""
    streams, again = ([np.random.default_rng(i) for i in range(3)] for _ in range(2))
    draws = range(method.options.noise_repeats)
    noise = [torch.stack([draw_noise(rng, (3, *size)) for rng in again]) for _ in draws]
    return golden.hashed("images", 3, 3, *size), torch.stack(noise), streams


@torch.no_grad()
def test_sernet_is_two_stages_with_a_search_between(run_of, tmp_path):
    method, images = load(run_of("sernet")), golden.hashed("images", 3, 3, 32, 64)
    about = exported(run_of("sernet"), "onnx", tmp_path / "out")
    o = method.options
    (probability,) = onnx(tmp_path / "out" / "segment.onnx", images)
    mask = repair_mask(probability, o.threshold, o.area * 32 * 64)
    assert 0 < mask.mean() < 1
    similar, _ = method.find_similar(images)
    assert_near(onnx(tmp_path / "out" / "rebuild.onnx", images, mask, similar), method.score(images))
    for stage in about["stages"]:
        for words in ("repair_mask(probability, 0.505, 0.025 * H * W)", "51.2 pixels", "checkpoint.pt"):
            assert words in stage["note"]


@torch.no_grad()
def test_sdas_is_its_averaged_network_with_weights_in_a_file_of_their_own(run_of, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "LARGE", 0)
    method = load(run_of("sdas"), kind=Trainable)
    about = exported(run_of("sdas"), "onnx", tmp_path / "out")
    x, steps, labels = golden.hashed("x", 3, 3, 16, 24), torch.tensor([950, 0, 50]), torch.tensor([1, 0, 1])
    wanted = method.average(x, steps, labels).chunk(2, dim=1)
    assert_near(onnx(tmp_path / "out" / "network.onnx", x, steps, labels), wanted)
    assert not torch.equal(wanted[0], method.network(x, steps, labels)[:, :3])
    files = ["export.json", "network.onnx", "network.onnx.data"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files
    table = method.sampling_schedule()
    assert about["schedule"] == {name: values.tolist() for name, values in table._asdict().items()}
    assert "threshold" not in about and [t["dtype"] for t in about["stages"][0]["inputs"]] == [
        "float32",
        "int64",
        "int64",
    ]


@pytest.mark.parametrize("changes", [{"segmentation": False}, {"repair": "none"}, {"similar": "self"}])
@torch.no_grad()
def test_sernet_without_repair_is_one_stage(changes):
    method = golden.fill(METHODS["sernet"](METHODS["sernet"].Options(**SMALL["sernet"], **changes)))
    (stage,) = export.stages(method)
    images = golden.hashed("images", 3, 3, 32, 64)
    assert_near(stage.module(images), method.score(images))


@pytest.mark.parametrize("changes", [{"repair": "zero"}, {"repair": "mean"}])
@torch.no_grad()
def test_sernet_with_a_repair_that_needs_no_search(changes):
    method = golden.fill(METHODS["sernet"](o := METHODS["sernet"].Options(**SMALL["sernet"], **changes)))
    first, second = export.stages(method)
    images = golden.hashed("images", 3, 3, 32, 64)
    mask = repair_mask(first.module(images)[0], o.threshold, o.area * 32 * 64)
    assert mask.any() and list(second.inputs) == ["images", "mask"]
    assert_near(second.module(images, mask), method.score(images))


@pytest.mark.parametrize("name", METHODS)
def test_weights_come_back(name, run_of, tmp_path):
    about = exported(run_of(name), "npz", tmp_path / "out")
    method, state = load(run_of(name), kind=Trainable), load_tensors(tmp_path / "out" / "weights.npz", "refused")
    own = method.state_dict()
    assert list(state) == list(own) == [row["name"] for row in about["tensors"]]
    assert all(torch.equal(state[key], own[key]) and state[key].dtype == own[key].dtype for key in own)
    for row in about["tensors"]:
        assert row["shape"] == list(own[row["name"]].shape) and row["dtype"] == str(own[row["name"]].dtype)[6:]
    parameters = [row["name"] for row in about["tensors"] if row["kind"] == "parameter"]
    assert parameters == [key for key, _ in method.named_parameters()]


def refused(capsys, folder: Path, *arguments) -> str:
    """The one sentence of a command that ends with code 2 and leaves the folder as it was."""
    before = sorted(folder.rglob("*"))
    assert export.main(list(map(str, arguments))) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1, said
    assert sorted(folder.rglob("*")) == before
    return said.err


def test_mistakes_are_one_sentence(run_of, tmp_path, capsys, monkeypatch):
    run, out = run_of("draem"), tmp_path / "out"
    assert "is no run directory" in refused(capsys, tmp_path, tmp_path, "--format", "npz", "--out", out)
    assert "takes onnx, pt2, npz; got tflite" in refused(capsys, tmp_path, run, "--format", "tflite", "--out", out)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "note").touch()
    said = refused(capsys, tmp_path, run, "--format", "npz", "--out", tmp_path / "there")
    assert "exists already; give another name" in said
    find = importlib.util.find_spec
    for missing in ("onnx", "onnxscript"):
        monkeypatch.setattr(importlib.util, "find_spec", lambda n, *r, m=missing: None if n == m else find(n, *r))
        assert "pip install '.[onnx]'" in refused(capsys, tmp_path, run, "--format", "onnx", "--out", out)
    monkeypatch.undo()
    monkeypatch.setattr(torch, "__version__", "2.2.2")
    assert "needs torch 2.7 or newer; this is 2.2.2" in refused(capsys, tmp_path, run, "--format", "pt2", "--out", out)


class Planted(torch.nn.Module):
    """Gives something else to whoever draws its graph."""

    def __init__(self, method, fault):
        super().__init__()
        self.method, self.fault = method, fault

    def forward(self, images):
        maps = images.mean(dim=1, keepdim=True)
        return maps.amax(dim=(1, 2, 3)), maps + self.fault(images) if torch.compiler.is_compiling() else maps


def plant(monkeypatch, fault) -> None:
    """Puts such a module in place of DRAEM's stage."""
    stages = export.stages
    monkeypatch.setattr(export, "stages", lambda method: [stages(method)[0]._replace(module=Planted(method, fault))])


def test_a_graph_that_differs_leaves_nothing(run_of, tmp_path, capsys, monkeypatch):
    plant(monkeypatch, lambda images: 1e-3)
    assert export.main([str(run_of("draem")), "--format", "pt2", "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert "maps 1e-03 from the method" in said.out and "error: 1e-03 from the method is above 1e-04" in said.err
    assert not list(tmp_path.iterdir())


def test_a_graph_that_cannot_be_drawn_leaves_nothing(run_of, tmp_path, capsys, monkeypatch):
    plant(monkeypatch, lambda images: float(images.sum()))
    said = refused(capsys, tmp_path, run_of("draem"), "--format", "pt2", "--out", tmp_path / "out")
    assert "no pt2 of score: " in said


def test_images_are_looked_at_outside_of_graphs(run_of):
    with pytest.raises(ValueError, match=r"expected values in \[0, 1\]"):
        load(run_of("draem")).score(torch.full((1, 3, 64, 64), 1.5))
