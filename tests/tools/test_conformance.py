"""The porter's kit: it is complete, a port to NumPy passes, and whoever errs is told where."""

import ast
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

import adref.layers
from adref import method
from adref.data import examples as samples
from adref.methods import METHODS
from adref.methods.realnet import cut_paste, foreground, nsa
from adref.methods.sernet import anomalies as pseudo_anomaly
from adref.ops import image, losses, metrics, perlin, poisson, textures
from adref.ops import patches as natural

PORT = Path(__file__).parent.parent / "ports" / "numpy_port.py"


def load_port() -> ModuleType:
    """A fresh copy of the port, which a test may spoil."""
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
    """What the port computes."""
    folder = tmp_path_factory.mktemp("port")
    load_port().main(kit, folder)
    return folder


def manifest(kit: Path) -> dict[str, dict]:
    return {case["name"]: case for case in json.loads((kit / "manifest.json").read_text())["cases"]}


# -- what is in a kit -------------------------------------------------------------------------------------------------


def test_every_layer_loss_metric_operation_and_method_has_a_case():
    """Left out: what draws, what only another part calls or builds, and curves behind a metric."""
    targets = {case.where for case in conformance_cases.all_cases()}
    inner = {
        "Encoder", "Step", "Bank",  # run inside of Autoencoder and UNet, of DiffusionUNet, of the method sernet
        "port_groups", "choose_rule", "overlap", "to_tensor", "random_stream", "check_images", "undefined_reason",
        "bootstrap_auroc", "ppa", "dpa",  # draw
        "divergence", "solve_rectangle", "solve_charges",  # ways to one solution: poisson_blend
        *(name for name in vars(textures) if not name.startswith(("_", "apply"))),  # run by apply_operations
    }  # fmt: skip
    files = [
        losses,
        metrics,
        image,
        method,
        samples,
        cut_paste,
        foreground,
        natural,
        nsa,
        perlin,
        poisson,
        pseudo_anomaly,
    ]
    layers = [importlib.import_module(f"adref.layers.{path.stem}") for path in
              Path(adref.layers.__file__).parent.glob("[a-z]*.py")]  # fmt: skip
    for module in [*files, textures, *layers]:
        for name, value in vars(module).items():
            own = getattr(value, "__module__", None) == module.__name__ and not name.startswith(("_", "draw_"))
            function = inspect.isfunction(value) and module not in layers
            layer = inspect.isclass(value) and issubclass(value, conformance_cases.nn.Module) and module is not method
            if own and (function or layer) and name not in inner:
                assert f"{module.__name__}.{name}" in targets, f"{module.__name__}.{name} has no case"
    assert {f"adref.methods.{name}.{kind.__name__}" for name, kind in METHODS.items()} <= targets


def test_a_kit_is_small_and_says_everything(kit):
    size = sum(path.stat().st_size for path in kit.rglob("*") if path.is_file())
    cases = manifest(kit)
    assert size < 20e6 and len(cases) == len(list((kit / "cases").glob("*.npz"))) == len(
        list(conformance_cases.all_cases())
    )
    for name, case in cases.items():
        assert case["function"] and len(case["documentation"]) > 20, name
        assert all(kind["reason"] for kind in case["tolerance"].values()), name
        assert any(row["name"].partition(":")[0] == "out" for row in case["arrays"]), name
        stored = conformance_verify.read_arrays(kit / "cases" / f"{name}.npz")
        results = [stored[row["name"]] for row in case["arrays"] if row["name"].partition(":")[0] == "out"]
        assert any(result.size == 1 or result.min() < result.max() for result in results), (
            f"{name}: a constant would do"
        )
        for row in case["arrays"]:
            assert row["allowed"] >= 0 and np.isfinite(stored[row["name"]].astype(float)).all(), (name, row)
    assert cases["losses.focal"]["defaults"]["smooth"] == 1e-5 and "alpha" in cases["losses.focal"]["defaults"]
    assert "softmax" in cases["memory.Memory.cosine"]["documentation"]  # of `address`, which it names
    assert cases["aspp.ASPP.4"]["equations"] == ["srdad (7) F_ASPP = [conv_3, conv_6, conv_12, mean](E_4)"]
    assert len(cases["method.draem"]["equations"]) == 4
    assert set(json.loads((kit / "manifest.json").read_text())["files"]) >= {"adref.layers.swin", "adref.losses"}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_there_from_end_to_end(kit, name):
    case, stored = manifest(kit)[f"method.{name}"], conformance_verify.read_arrays(kit / "cases" / f"method.{name}.npz")
    parts = {row["name"].partition("/")[0].partition(":")[0] for row in case["arrays"]}
    assert parts == {"trace", "out", "loss", "gradient", "step"}
    stages = {row["name"].split("/")[1].partition(":")[0] for row in case["arrays"] if row["name"].startswith("loss/")}
    assert stages == set(next(c for c in conformance_cases.methods() if c.target is METHODS[name]).built().stages)
    names = [row["name"] for row in case["arrays"]]
    assert any(n.startswith("loss/") and n.endswith(":total") for n in names)
    for result in ["out:pictures"] if name == "sdas" else ["out:scores", "out:maps"]:
        assert stored[result].std() > 0, result
    steps = [row["name"] for row in case["arrays"] if row["kept"] == "picked"]
    assert len(steps) > 10 and all(stored[f"INDEX/{step}"].size == stored[step].size > 0 for step in steps)


def test_the_recipe_of_the_readme_is_true(kit):
    """Read out of the README, and computed in plain integers."""
    text = (kit / "README.md").read_text()
    constants = [int(c, 16) for c in re.findall(r"0x[0-9A-F]{8}", text)]
    shifts = [int(s) for s in re.findall(r">> (\d+)", text)]
    x = (zlib.crc32(b"images") + constants[0]) % 2**32
    for constant, shift in zip([*constants[1:], 1], shifts):
        x = ((x ^ (x >> shift)) * constant) % 2**32
    assert (x >> shifts[3]) / 2**24 == float(re.search(r'h\("images", 0\) = (\S+)\.\n', text).group(1))


# -- a port -----------------------------------------------------------------------------------------------------------


def imported(path: Path) -> set[str]:
    """Packages that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found


def test_the_port_needs_numpy_alone():
    assert {name for name in imported(PORT) if name not in sys.stdlib_module_names} == {"numpy"}


def test_the_port_passes(kit, outputs, capsys):
    assert conformance.main(["verify", str(kit), "--outputs", str(outputs)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{len(load_port().PORTED)} of {len(manifest(kit))} cases agree, 0 depart")


def test_the_kit_has_a_verifier_of_its_own_that_needs_numpy_alone(kit, outputs):
    names = {name for name in imported(kit / "verify.py") if name not in sys.stdlib_module_names}
    assert names == {"numpy"}
    command = [sys.executable, str(kit / "verify.py"), str(outputs), "--only", "memory.*"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.startswith("2 of 6 cases agree, 0 depart, 4 were left out")


def test_samples_of_a_large_array_lie_everywhere(kit):
    """No array is looked at in one row, one column or one channel alone, as it would be with an even spacing."""
    for case in manifest(kit).values():
        for row in (row for row in case["arrays"] if row["kept"] == "digest"):
            where = np.unravel_index(conformance_verify.places(int(np.prod(row["shape"]))), row["shape"])
            assert all(len(np.unique(axis)) > 1 for axis, side in zip(where, row["shape"]) if side > 1), row["name"]


def spoil(name: str):
    """A mistake in the port: (module) -> None."""

    def wrong_axis(port):
        own = port.softmax
        port.softmax = lambda x, axis: own(x, 1 if axis == 0 else axis)

    def wrong_border(port):
        own = port.pad
        port.pad = lambda x, reach, mode="constant": own(x, reach, "symmetric" if mode == "reflect" else mode)

    def wrong_padding(port):
        own = port.pad
        port.pad = lambda x, reach, mode="constant": own(x, reach, "edge" if mode == "constant" else mode)

    def wrong_corners(port):
        own = port.resize_matrix
        port.resize_matrix = lambda length, target, aligned: own(length, target, not aligned)

    def wrong_eps(port):
        own = port.Case.normalise
        port.Case.normalise = lambda case, name, x: own(case, name, x, eps=1e-3)

    def wrong_channels(port):
        port.pixel_unshuffle = lambda x: np.concatenate([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=1)

    def wrong_flip(port):
        own = port.convolution
        port.convolution = lambda x, weight, *rest: own(x, weight[:, :, ::-1, ::-1], *rest)

    def wrong_gate(port):
        port.sigmoid = lambda x: np.clip(x / 6 + 0.5, 0, 1)  # the hard one

    def wrong_activation(port):
        port.hard_swish = lambda x: x * port.sigmoid(x)

    def wrong_constants(port):
        own = port.ms_ssim_l1
        port.ms_ssim_l1 = lambda a, b, sigmas, constants, border: own(a, b, sigmas, (0.01, 0.03), border)

    def wrong_mean(port):
        own = port.np.linalg.norm
        port.np = type(
            "np",
            (),
            {
                **vars(np),
                "linalg": type("l", (), {"norm": lambda v, axis, keepdims: own(v, axis=1, keepdims=keepdims)}),
            },
        )

    def wrong_interpolation(port):
        own = port.resize
        port.resize = lambda x, height, width, aligned=False: (
            x[:, :, ::2, ::2] if height * 2 == x.shape[2] else own(x, height, width, aligned)
        )

    return locals()[name]


@pytest.mark.parametrize(
    ("mistake", "case", "array"),
    [
        ("wrong_axis", "selective_kernel.SelectiveKernelFusion", "out"),
        ("wrong_axis", "method.noise_to_norm", "trace/network.fusion"),
        ("wrong_border", "losses.ms_ssim_l1.reflect-mean", "out:0"),
        ("wrong_padding", "method.noise_to_norm", "trace/network.stems.0"),
        ("wrong_corners", "method.noise_to_norm", "trace/network.stems.0#2"),
        ("wrong_corners", "vit_autoencoder.Decoder.anovit", "out"),
        ("wrong_eps", "coordinate_attention.CoordinateAttention.h_swish", "trace/bn1"),
        ("wrong_eps", "vit_autoencoder.Decoder.anovit", "trace/layers.1"),
        ("wrong_channels", "method.noise_to_norm", "trace/network.downs.0"),
        ("wrong_flip", "residual_attention.ResidualAttention.relu", "trace/body.1"),
        ("wrong_gate", "residual_attention.ResidualAttention.relu", "trace/attention.4"),
        ("wrong_activation", "coordinate_attention.CoordinateAttention.h_swish", "trace/conv_h"),
        ("wrong_constants", "losses.ms_ssim_l1.reflect-mean", "out:0"),
        ("wrong_mean", "memory.Memory.cosine", "out:output"),
        ("wrong_interpolation", "method.noise_to_norm", "trace/network.stems.0#2"),
    ],
)
def test_a_mistake_of_a_port_is_found_and_named(kit, tmp_path, capsys, mistake, case, array):
    port = load_port()
    spoil(mistake)(port)
    port.PORTED = {case: port.PORTED[case]}
    port.main(kit, tmp_path)
    assert conformance.main(["verify", str(kit), "--outputs", str(tmp_path)]) == 1
    first = capsys.readouterr().out.splitlines()[0]
    assert re.match(
        rf"{re.escape(case)} \(adref\.[\w.]+\): {re.escape(array)} (is|has the .+) \S+ in place of \S+ ", first
    ), first


# -- what else may be wrong -------------------------------------------------------------------------------------------


def changed(kit: Path, outputs: Path, folder: Path, change) -> Path:
    """OTHER with one case, whose arrays `change` has altered."""
    name = "vit_autoencoder.Decoder.anovit"
    (folder / "cases").mkdir()
    arrays = conformance_verify.read_arrays(outputs / "cases" / f"{name}.npz")
    change(arrays)
    np.savez(folder / "cases" / f"{name}.npz", **arrays)
    return folder


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda arrays: arrays.pop("out"), "out is missing; 1 depart, 16 compared; the result departs"),
        (
            lambda arrays: arrays.update(out=arrays["out"][:1]),
            "out has the shape [1, 3, 32, 64] in place of [2, 3, 32, 64]",
        ),
        (lambda arrays: arrays["out"].__setitem__((1, 2, 3, 4), np.nan), "out is nan in place of "),
        (lambda arrays: arrays["out"].__setitem__((1, 2, 3, 4), 7), "at (1, 2, 3, 4), allowed is "),
        (lambda arrays: arrays.update(out=arrays["out"].astype("S8")), "out holds |S8, no numbers"),
        (
            lambda arrays: arrays.update({"trace/layer.0": arrays["out"]}),
            " has no array trace/layer.0; it has trace/layers.0",
        ),
        (lambda arrays: arrays.update(out=arrays["out"] + 1e-4), "the result departs"),
        (lambda arrays: arrays.update(out=arrays["out"][::-1]), "; the same values in another order?; "),
        (lambda arrays: arrays.update({"trace/layers.0": arrays["trace/layers.0"] + 1e-4}), "has the mean "),
        (lambda arrays: arrays.update({"trace/layers.0": arrays["trace/layers.0"] * 1.001}), "; the result agrees"),
    ],
)
def test_verify_says_what_is_wrong(kit, outputs, tmp_path, capsys, change, says):
    assert conformance.main(["verify", str(kit), "--outputs", str(changed(kit, outputs, tmp_path, change))]) == 1
    assert says in capsys.readouterr().out.splitlines()[0]


def test_what_is_not_given_but_out_is_left_alone(kit, outputs, tmp_path, capsys):
    def only_the_result(arrays):
        for name in [name for name in arrays if name != "out"]:
            del arrays[name]

    assert (
        conformance.main(["verify", str(kit), "--outputs", str(changed(kit, outputs, tmp_path, only_the_result))]) == 0
    )
    assert "1 of" in capsys.readouterr().out


def some_cases(*names: str):
    return [case for case in conformance_cases.all_cases() if case.name in names]


def test_this_code_is_verified_too(kit, monkeypatch, capsys):
    names = ("losses.focal", "memory.Memory.sharp", "swin.SwinBlock.shifted")
    monkeypatch.setattr(conformance, "all_cases", lambda: some_cases(*names))
    assert conformance.main(["verify", str(kit), "--only", "losses.focal"]) == 0
    assert conformance.main(["verify", str(kit)]) == 1  # what this code does not have is no agreement
    assert "\n3 of 211 cases agree, 208 depart" in capsys.readouterr().out
    from adref.layers import memory

    monkeypatch.setattr(memory.F, "normalize", lambda x, dim, eps: x / x.norm(dim=dim, keepdim=True) * 1.001)
    assert conformance.main(["verify", str(kit), "--only", "memory.Memory.sharp"]) == 1
    assert capsys.readouterr().out.startswith("memory.Memory.sharp (adref.layers.memory.Memory): out:output is ")


def test_mistakes_of_the_person_at_the_keyboard(kit, tmp_path, capsys, monkeypatch):
    def refused(*arguments: str) -> str:
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


def test_a_damaged_or_misnamed_file_of_a_port_hides_no_other(kit, outputs, tmp_path, capsys):
    other = shutil.copytree(outputs, tmp_path / "other")
    (other / "cases" / "memory.Memory.sharp.npz").write_bytes(b"PK nothing")
    (other / "cases" / "memory.Memory.sharpe.npz").write_bytes(b"")
    assert conformance.main(["verify", str(kit), "--outputs", str(other)]) == 1
    text = capsys.readouterr().out
    assert "memory.Memory.sharpe.npz is no case of this kit; memory.Memory.sharp is one" in text
    assert "memory.Memory.sharp: " in text and "7 of 211 cases agree, 1 depart" in text


def test_a_kit_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def broken():
        yield from some_cases("losses.focal")
        raise RuntimeError("planted")

    monkeypatch.setattr(conformance, "all_cases", broken)
    with pytest.raises(RuntimeError, match="planted"):
        conformance.main(["export", str(tmp_path / "kit")])
    assert not list(tmp_path.iterdir())
