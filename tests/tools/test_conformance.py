"""The porter's kit: it is complete, a port to NumPy passes, and a mistake is found and named."""

import ast
import importlib
import importlib.util
import inspect
import json
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from types import ModuleType

import conformance
import conformance_cases
import conformance_verify
import numpy as np
import pytest
from torch import nn

import adref
from adref.methods import METHODS

pytestmark = pytest.mark.slow

PACKAGE = Path(adref.__file__).parent
PORT = Path(__file__).parent.parent / "ports" / "numpy_port.py"


def load_port() -> ModuleType:
    """A fresh copy of the port, which a test may change."""
    spec = importlib.util.spec_from_file_location("numpy_port", PORT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def kit(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("conformance") / "kit"
    assert conformance.main(["export", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def outputs(kit, tmp_path_factory) -> Path:
    """The port's results."""
    folder = tmp_path_factory.mktemp("port")
    load_port().main(kit, folder)
    return folder


def manifest(kit: Path) -> dict[str, dict]:
    return {case["name"]: case for case in json.loads((kit / "manifest.json").read_text())["cases"]}


def test_every_layer_loss_metric_operation_and_method_has_a_case():
    """Except what draws, what only runs inside another case, and curves behind a metric."""
    targets = {case.where for case in conformance_cases.all_cases()}
    inner = {
        "Encoder", "Step", "Bank",  # run inside Autoencoder and UNet, DiffusionUNet, the method sernet
        "LinearBottlenecks",  # the base of MobileNetV2 and EfficientNetLite0
        "rotate_randomly", "paste_texture", "ppa", "dpa", "foreground_rule", "bootstrap_auroc",  # draw, or look up
        "solve_rectangle", "solve_charges", "divergence",  # ways to one solution: poisson_blend
        "overlap", "undefined_reason", "bounding_box", "box", "resize", "median",  # inside others
        "window_products", "ssim_factors", "local_mean",  # inside ssim_map and ms_ssim_l1
    }  # fmt: skip
    operations = {*(PACKAGE / "ops").glob("[a-z]*.py")} - {PACKAGE / "ops" / f"{name}.py" for name in
                                                           ("pixels", "textures", "all_reduce")}  # fmt: skip
    operations |= {PACKAGE / "methods" / f"{name}.py" for name in
                   ("realnet/cut_paste", "realnet/foreground", "realnet/nsa", "sernet/anomalies")}  # fmt: skip
    modules = {*(PACKAGE / "layers").glob("[a-z]*.py"), *(PACKAGE / "methods").glob("*/[a-z]*.py")}
    for path in sorted(operations | modules):
        module = importlib.import_module(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
        for name, value in vars(module).items():
            own = getattr(value, "__module__", None) == module.__name__ and not name.startswith(("_", "draw_"))
            layer = inspect.isclass(value) and issubclass(value, nn.Module)
            if own and (layer or (path in operations and inspect.isfunction(value))) and name not in inner:
                assert f"{module.__name__}.{name}" in targets, f"{module.__name__}.{name} has no case"
    assert {f"adref.methods.{name}.method.{kind.__name__}" for name, kind in METHODS.items()} <= targets


def test_a_kit_is_small_and_complete(kit):
    cases = manifest(kit)
    assert sum(path.stat().st_size for path in kit.rglob("*") if path.is_file()) < 20e6
    assert len(cases) == len(list((kit / "cases").glob("*.npz"))) == len(list(conformance_cases.all_cases()))
    for name, case in cases.items():
        assert case["function"] and len(case["documentation"]) > 20, name
        assert all(kind["reason"] for kind in case["tolerance"].values()), name
        stored = conformance_verify.read_arrays(kit / "cases" / f"{name}.npz")
        results = [stored[row["name"]] for row in case["arrays"] if row["name"].partition(":")[0] == "out"]
        assert any(result.size == 1 or result.min() < result.max() for result in results), f"{name} is constant"
        for row in case["arrays"]:
            assert row["allowed"] >= 0 and np.isfinite(stored[row["name"]].astype(float)).all(), (name, row)
            if row["kept"] == "digest":  # its samples are not of one row, column or channel
                where = np.unravel_index(conformance_verify.places(int(np.prod(row["shape"]))), row["shape"])
                assert all(len(np.unique(axis)) > 1 for axis, side in zip(where, row["shape"]) if side > 1), row["name"]
    assert cases["losses.focal"]["defaults"]["smooth"] == 1e-5 and "alpha" in cases["losses.focal"]["defaults"]
    assert "softmax" in cases["memory.Memory.cosine"]["documentation"]  # of `address`, which it names
    assert cases["aspp.ASPP.4"]["equations"] == ["srdad (7) F_ASPP = [conv_3, conv_6, conv_12, mean](E_4)"]
    assert len(cases["method.draem"]["equations"]) == 4
    assert "adref.layers.swin" in json.loads((kit / "manifest.json").read_text())["files"]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_there_from_end_to_end(kit, name):
    case, stored = manifest(kit)[f"method.{name}"], conformance_verify.read_arrays(kit / "cases" / f"method.{name}.npz")
    names = [row["name"] for row in case["arrays"]]
    method = next(c for c in conformance_cases.methods() if c.target is METHODS[name]).built()
    trained = {stage.name for stage in method.stages if stage.length}
    parts = {"trace", "out", *(("loss", "gradient", "step") if trained else ())}
    assert {n.partition("/")[0].partition(":")[0] for n in names} == parts
    stages = {n.split("/")[1].partition(":")[0] for n in names if n.startswith("loss/") and n.endswith(":total")}
    assert stages == trained
    for result in ["out:pictures"] if name == "sdas" else ["out:scores", "out:maps"]:
        assert stored[result].std() > 0, result
    steps = [row["name"] for row in case["arrays"] if row["kept"] == "picked"]
    assert (len(steps) > 10) == bool(trained) and all(
        stored[f"INDEX/{step}"].size == stored[step].size > 0 for step in steps
    )


def test_the_recipe_of_the_readme_is_true(kit):
    """Read from the README, and computed in plain integers."""
    text = (kit / "README.md").read_text()
    constants = [int(c, 16) for c in re.findall(r"0x[0-9A-F]{8}", text)]
    shifts = [int(s) for s in re.findall(r">> (\d+)", text)]
    x = (zlib.crc32(b"images") + constants[0]) % 2**32
    for constant, shift in zip([*constants[1:], 1], shifts):
        x = ((x ^ (x >> shift)) * constant) % 2**32
    assert (x >> shifts[3]) / 2**24 == float(re.search(r'h\("images", 0\) = (\S+)\.\n', text).group(1))


def imported(path: Path) -> set[str]:
    """The packages that a file imports, without the standard library."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names)


def test_the_port_passes_by_the_kits_verifier_and_both_need_numpy_only(kit, outputs, capsys):
    assert imported(PORT) == imported(kit / "verify.py") == {"numpy"}
    ported, cases = len(load_port().PORTED), len(manifest(kit))
    summary = f"{ported} of {cases} cases agree, 0 depart, {cases - ported} were left out"
    assert conformance.main(["verify", str(kit), "--outputs", str(outputs)]) == 0
    assert capsys.readouterr().out.startswith(summary)
    run = subprocess.run([sys.executable, str(kit / "verify.py"), str(outputs)], capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.startswith(summary)


def wrong_axis(port):
    softmax = port.softmax
    port.softmax = lambda x, axis: softmax(x, 1 if axis == 0 else axis)


def wrong_border(port):
    pad = port.pad
    port.pad = lambda x, reach, mode="constant": pad(x, reach, "symmetric" if mode == "reflect" else mode)


def wrong_eps(port):
    normalise = port.Case.normalise
    port.Case.normalise = lambda case, name, x: normalise(case, name, x, eps=1e-3)


def wrong_channels(port):
    port.pixel_unshuffle = lambda x: np.concatenate([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=1)


@pytest.mark.parametrize(("mistake", "case", "array"), [
    (wrong_axis, "selective_kernel.SelectiveKernelFusion", "out"),
    (wrong_border, "noise_to_norm.loss.ms_ssim_l1", "out:0"),
    (wrong_eps, "coordinate_attention.CoordinateAttention", "trace/bn1"),
    (wrong_channels, "method.noise_to_norm", "trace/network.downs.0"),
])  # fmt: skip
def test_a_mistake_of_a_port_is_found_and_named(kit, tmp_path, capsys, mistake, case, array):
    port = load_port()
    mistake(port)
    port.PORTED = {case: port.PORTED[case]}
    port.main(kit, tmp_path)
    assert conformance.main(["verify", str(kit), "--outputs", str(tmp_path)]) == 1
    first = capsys.readouterr().out.splitlines()[0]
    pattern = rf"{re.escape(case)} \(adref\.[\w.]+\): {re.escape(array)} (is|has the .+) \S+ in place of \S+ "
    assert re.match(pattern, first), first


DECODER = "vit_autoencoder.decoder.Decoder.anovit"


@pytest.mark.parametrize(("change", "says"), [
    (lambda arrays: arrays.pop("out"), "out is missing; 1 depart, 16 compared; the result departs"),
    (lambda arrays: arrays.update(out=arrays["out"][:1]), "out has the shape [1, 3, 32, 64] in place of [2, 3, 32, 64"),
    (lambda arrays: arrays["out"].__setitem__((1, 2, 3, 4), np.nan), "out is nan in place of "),
    (lambda arrays: arrays["out"].__setitem__((1, 2, 3, 4), 7), "at (1, 2, 3, 4), allowed is "),
    (lambda arrays: arrays.update(out=arrays["out"].astype("S8")), "out holds |S8, no numbers"),
    (lambda arrays: arrays.update({"trace/layer.0": arrays["out"]}), " no array trace/layer.0; it has trace/layers.0"),
    (lambda arrays: arrays.update(out=arrays["out"][::-1]), "; the same values in another order?; "),
    (lambda arrays: arrays.update({"trace/layers.0": arrays["trace/layers.0"] * 1.001}), "; the result agrees"),
    (lambda arrays: [arrays.pop(name) for name in list(arrays) if name != "out"], None),  # all except out are optional
])  # fmt: skip
def test_verify_names_what_is_wrong(kit, outputs, tmp_path, capsys, change, says):
    arrays = conformance_verify.read_arrays(outputs / "cases" / f"{DECODER}.npz")
    change(arrays)
    (tmp_path / "cases").mkdir()
    np.savez(tmp_path / "cases" / f"{DECODER}.npz", **arrays)
    assert conformance.main(["verify", str(kit), "--outputs", str(tmp_path)]) == (says is not None)
    assert says is None or says in capsys.readouterr().out.splitlines()[0]


def some_cases(*names: str):
    return [case for case in conformance_cases.all_cases() if case.name in names]


def test_this_code_is_verified_too(kit, monkeypatch, capsys):
    names = ("losses.focal", "memory.Memory.sharp", "swin.SwinBlock.shifted")
    monkeypatch.setattr(conformance, "all_cases", lambda: some_cases(*names))
    assert conformance.main(["verify", str(kit), "--only", "losses.focal"]) == 0
    assert conformance.main(["verify", str(kit)]) == 1  # a case that this code lacks departs
    assert f"\n3 of {len(manifest(kit))} cases agree, {len(manifest(kit)) - 3} depart" in capsys.readouterr().out
    from adref.layers import memory

    monkeypatch.setattr(memory.F, "normalize", lambda x, dim, eps: x / x.norm(dim=dim, keepdim=True) * 1.001)
    assert conformance.main(["verify", str(kit), "--only", "memory.Memory.sharp"]) == 1
    assert capsys.readouterr().out.startswith("memory.Memory.sharp (adref.layers.memory.Memory): out:output is ")


def test_mistakes_of_the_user(kit, outputs, tmp_path, capsys, monkeypatch):
    def refused(*arguments) -> str:
        assert conformance.main(list(map(str, arguments))) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1 and not captured.out
        return captured.err

    assert "exists already" in refused("export", kit)
    assert "is no kit" in refused("verify", tmp_path)
    assert "found none" in refused("verify", kit, "--outputs", tmp_path)
    damaged = shutil.copytree(kit, tmp_path / "damaged")
    (damaged / "cases" / "losses.focal.npz").write_bytes(b"PK nothing")
    monkeypatch.setattr(conformance, "all_cases", lambda: some_cases("losses.focal"))
    assert "losses.focal.npz cannot be read: it is no .npz" in refused("verify", damaged, "--only", "losses.focal")
    text = (damaged / "manifest.json").read_text().replace('"format": 1', '"format": 7')
    (damaged / "manifest.json").write_text(text)
    assert "has format 7, this program reads 1" in refused("verify", damaged)
    other = shutil.copytree(outputs, tmp_path / "other")  # a damaged and a misnamed file hide no other
    (other / "cases" / "memory.Memory.sharp.npz").write_bytes(b"PK nothing")
    (other / "cases" / "memory.Memory.sharpe.npz").write_bytes(b"")
    assert conformance.main(["verify", str(kit), "--outputs", str(other)]) == 1
    text = capsys.readouterr().out
    assert "memory.Memory.sharpe.npz is no case of this kit; memory.Memory.sharp is one" in text
    assert "memory.Memory.sharp: " in text and f"7 of {len(manifest(kit))} cases agree, 1 depart" in text


def test_a_kit_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def broken():
        yield from some_cases("losses.focal")
        raise RuntimeError("planted")

    monkeypatch.setattr(conformance, "all_cases", broken)
    with pytest.raises(RuntimeError, match="planted"):
        conformance.main(["export", str(tmp_path / "kit")])
    assert not list(tmp_path.iterdir())
