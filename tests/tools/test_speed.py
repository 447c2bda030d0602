"""The measuring of times: rows take turns, ratios, failures; the command."""

import json

import pytest
import speed


def test_rows_take_turns_and_a_failure_leaves_the_others():
    order = []
    rows = {"a": lambda i: order.append(("a", i)), "broken": lambda i: 1 / 0, "b": lambda i: order.append(("b", i))}
    found = speed.measure(rows, 2)
    assert order == [(label, i) for i in range(3) for label in ("a", "b")]
    assert list(found) == list(rows) and found["broken"] == {"failure": "ZeroDivisionError: division by zero"}
    assert found["a"]["rounds"] == 2 and found["a"]["ratio"] == 1
    assert found["b"]["ratio"] == found["b"]["median_ms"] / found["a"]["median_ms"]
    assert found["a"]["p5_ms"] <= found["a"]["median_ms"] <= found["a"]["p95_ms"]


def test_a_slow_row_is_repeated_less_often(monkeypatch):
    monkeypatch.setattr(speed, "LIMIT", 0.0)
    assert speed.measure({"a": lambda i: sum(range(1000))}, 5)["a"]["rounds"] == 1


@pytest.mark.slow
def test_the_command_times_steps_inference_and_evaluation(tmp_path, capsys):
    assert speed.main(["vit_autoencoder", "--rounds", "1", "--json", str(tmp_path / "speed.json")]) == 0
    table = json.loads((tmp_path / "speed.json").read_text())
    assert table["threads"] == 1 and list(table["groups"]) == [
        f"vit_autoencoder, {part}" for part in ("training step, train", "inference", "evaluation")
    ]
    for group in table["groups"].values():
        assert all(row["median_ms"] > 0 for row in group.values())
    assert "corrupt 4 images" in table["groups"]["vit_autoencoder, training step, train"]
    assert "vit_autoencoder, inference\n" in capsys.readouterr().out


@pytest.mark.slow
def test_a_step_is_timed_alone_and_under_load(tmp_path):
    assert speed.main(["--load", "1", "--rounds", "1", "--json", str(tmp_path / "speed.json")]) == 0
    groups = json.loads((tmp_path / "speed.json").read_text())["groups"]
    assert [name.split(", ")[-1] for name in groups] == ["alone", "beside 1 busy loops"]
    for rows in groups.values():
        assert list(rows) == list(speed.WAITING) and all(row["median_ms"] > 0 for row in rows.values())
    with pytest.raises(SystemExit):
        speed.main(["draem", "--load", "1"])
