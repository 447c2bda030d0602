"""The check of a GPU, on the CPU: its tables, reasons in place of numbers, the command."""

import json

import gpu_check
import pytest
import speed


def test_tables_hold_numbers_or_reasons():
    step = {"median_ms": 1234.5, "gib": 2.0, "batch": 4}
    cells = {"realnet, train": {"step, fp32": step, "step, bf16": {"failure": "no | memory", "batch": 8},
                                "map, fp32": {"median_ms": 50.0}, "16 maps, fp32": {"median_ms": 400.0}}}  # fmt: skip
    waiting = {2: {"failure": "late"}, 8: {"steps": 9, "passes": 1, "seconds": 8, "share_waiting": 0.25,
                                           "step_ms": 100.0, "waiting_ms": 25.0}}  # fmt: skip
    metrics = dict.fromkeys(("image_auroc", "pixel_auroc", "pixel_ap", "aupro_0.3"), 0.5)
    text = gpu_check.report({"device": "a card"}, cells, waiting, metrics, "grid")
    assert "| realnet, train | 4, 8 | 1234 ms, 2.00 GiB |  | no / memory |  | 50 ms |  |  |" in text
    assert "| realnet | 20 | 40 | 31.93, in 4 GB" in text
    assert "| 2 | late |" in text and "| 8 | 9 | 100 | 25 | 25.0% |" in text
    assert "| after 8 s | 9 | 1 | 0.500 | 0.500 | 0.500 | 0.500 |" in text
    assert "| printed (700 passes) |  |  | 0.999 | 0.997 | 0.657 |" in text


def test_a_batch_without_memory_is_halved(monkeypatch):
    sizes = []

    def measured(make, device):
        sizes.append(make.args[0].options.batch_size)
        return {"failure": "CUDA out of memory"} if sizes[-1] > 2 else {"median_ms": 1.0}

    monkeypatch.setattr(gpu_check, "measure", measured)
    kind = gpu_check.METHODS["draem"]
    method = kind(kind.Options(size=(64, 64), reconstruction_width=2, discriminator_width=2))
    bench = speed.Bench(kind, method.options, None, None, None, False)
    assert gpu_check.measure_step(bench, method.stages[0], method, {}) == {"median_ms": 1.0, "batch": 2}
    assert sizes == [8, 4, 2]


@pytest.mark.parametrize(("argv", "words"), [
    (["--device", "cuda:99"], "--device: expected one that is there, got 'cuda:99'"),
    (["--data", "nowhere"], "--data and --category go together"),
    (["--data", "nowhere", "--category", "grid"], "--data: "),
    (["--preset", "huge"], "--preset: expected paper, tiny"), (["--seconds", "0"], "--seconds: expected more than 0"),
])  # fmt: skip
def test_refuses_what_is_not_there(argv, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        gpu_check.main(argv)
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_measures_trains_and_evaluates(tmp_path, monkeypatch, capsys):
    changes = {"METHODS": {"vit_autoencoder": gpu_check.METHODS["vit_autoencoder"]}, "WARM_STEPS": 0, "LONGEST": 4,
               "SHORT_SHARE": 0.005}  # fmt: skip
    for name, value in changes.items():
        monkeypatch.setattr(gpu_check, name, value)
    monkeypatch.setitem(gpu_check.COLUMNS, "compiled", ())  # minutes
    out, numbers = tmp_path / "gpu.md", tmp_path / "gpu.json"
    argv = ["--device", "cpu", "--preset", "tiny", "--seconds", "600", "--out", str(out), "--json", str(numbers)]
    assert gpu_check.main(argv) == 0
    assert out.read_text().strip() in capsys.readouterr().out
    found = json.loads(numbers.read_text())
    row = found["cells"]["vit_autoencoder, train"]
    assert row["step, fp32"]["median_ms"] > 0 and row["step, fp32"]["batch"] == 4 and row["map, bf16"]["median_ms"] > 0
    assert found["waiting"]["2"]["steps"] > 0 and 0 <= found["waiting"]["8"]["share_waiting"] < 1
    assert 0 <= found["metrics"]["image_auroc"] <= 1 and not found["metrics"]["finished"]
