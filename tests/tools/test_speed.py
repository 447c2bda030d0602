"""tools/speed.py: rows in turns, ratios, shares of the limits, and that peers compute what adref does. No times."""

import json

import pytest
import speed
import speed_blocks
import speed_methods
import torch
from speed_blocks import BLOCKS, Row, count_flop


def test_rows_take_turns_and_a_peer_that_fails_stops_nobody():
    order = []

    def fail(i):
        raise ValueError("no such thing")

    rows = {"a": lambda i: order.append(("a", i)), "broken": fail, "adref": lambda i: order.append(("adref", i))}
    timings = speed.measure(rows, 2)
    assert order == [(label, i) for i in range(3) for label in ("a", "adref")]
    assert [len(timings[label].milliseconds) for label in rows] == [2, 0, 2]
    entries = speed.summarise(rows, timings)
    assert entries["broken"] == {"failure": "ValueError: no such thing"}
    assert "failed: ValueError: no such thing" in speed.describe("broken", entries["broken"])


def test_ratios_are_to_the_first_row_and_shares_to_the_fastest_limit_of_the_same_precision():
    rows = {
        "plain": Row(print, 2e9), "adref": Row(print, 2e9, "bf16", lambda medians: f"{medians['plain']:g} ms"),
        "limit, a": Row(print, 1e9), "limit, b": Row(print, 4e9), "limit, c": Row(print, 1e9, "bf16"),
    }  # fmt: skip
    timings = {"plain": [30, 20, 10], "adref": [10, 10, 10], "limit, a": [2], "limit, b": [4], "limit, c": [1]}
    found = speed.summarise(rows, {k: speed.Timing(v, 0.25 if k == "plain" else None) for k, v in timings.items()})
    assert found["plain"] == {"median_ms": 20, "p5_ms": 11, "p95_ms": 29, "rounds": 3, "ratio": 1, "gflops": 100,
                              "share_of_limit": 0.1, "difference": 0.25}  # fmt: skip
    adref = found["adref"]
    assert (adref["ratio"], adref["gflops"], adref["share_of_limit"], adref["note"]) == (0.5, 200, 0.2, "20 ms")


def test_only_equal_peers_are_compared_and_the_worst_comes_first():
    def group(**times):
        return {label: {"median_ms": ms, "ratio": 1} for label, ms in times.items()}

    result = {
        "Otsu": group(slow=9, fast=4, adref=8) | group(**{"inexact (another)": 1, "limit, x": 1}),
        "closing": group(other=2, adref=6), "MSGMS": group(adref=1), "training step": group(plain=1, adref=2),
    }  # fmt: skip
    assert list(speed.beside_peers(result).items()) == [("closing", (3, "other")), ("Otsu", (2, "fast"))]


def test_differences_are_shares_of_the_largest_value():
    assert speed.difference(torch.tensor([1.0, 4.5], requires_grad=True), torch.tensor([1.0, 5.0])) == 0.1
    assert speed.difference(torch.ones(2), torch.ones(3)) is None and speed.difference("a", 1.0) is None


@pytest.mark.parametrize("name", [
    "SSIM, forward", "MS-SSIM", "Otsu", "closing", "object mask", "Gaussian filter", "CIELAB",
    "perceptual hash, 256 px", "Perlin noise",
])  # fmt: skip
def test_peers_without_a_bracket_compute_the_same(name):
    rows = BLOCKS[name]()
    found = speed.summarise(rows, speed.measure(rows, 1))
    equal = [label for label in found if not label.startswith("adref") and "(" not in label]
    if not equal:
        pytest.skip("no peer is installed")
    for label in equal:
        assert found[label]["difference"] < 1e-4, label


def test_operations_of_gradients_are_counted():
    x, convolution = torch.rand(2, 3, 8, 8), torch.nn.Conv2d(3, 4, 3)
    forward = 2 * (2 * 4 * 6 * 6) * (3 * 3 * 3)
    assert count_flop(lambda: convolution(x)) == forward
    assert count_flop(lambda: convolution(x).sum().backward()) == 2 * forward  # of the weights
    assert count_flop(lambda: convolution(x.requires_grad_()).sum().backward()) == 3 * forward
    q = torch.rand(1, 2, 5, 4, requires_grad=True)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert count_flop(lambda: attend(q, q, q).sum().backward()) == 3 * 2 * (2 * 5 * 5 * 8)


def test_a_step_says_whether_its_loader_keeps_up_and_an_evaluation_has_parts():
    opened = speed_methods.Opened("vit_autoencoder", "tiny", torch.device("cpu"), compiled=False)
    rows = speed_methods.step(opened, "train")
    labels = [*speed_methods.FORMS, *(f"limit, {kind} {what}" for kind in ("fp32", "bf16")
                                      for what in ("matrix product", "convolution, channels_last"))]  # fmt: skip
    assert list(rows) == [*labels, "corrupt 4 images, one process"]
    before = [p.clone() for p in opened.load().parameters()]
    rows["adref: fp32, channels_last"].run(0)
    rows["corrupt 4 images, one process"].run(0)
    assert all(torch.equal(a, b) for a, b in zip(before, opened.load().parameters()))  # the run itself stays
    verdict, step = rows["corrupt 4 images, one process"].note, "adref: fp32, channels_last"
    assert verdict({"corrupt 4 images, one process": 10, step: 10}) == "2 workers: 0.50 of the step"
    assert verdict({"corrupt 4 images, one process": 30, step: 10}) == "2 workers: 1.50 of the step, which is starved"
    for label, row in speed_methods.shares(opened).items():
        assert row.run(0) is None, label


def test_the_command_writes_its_table_as_json_and_names_what_is_wrong(tmp_path, capsys):
    assert speed.main(["Otsu", "--rounds", "1", "--json", str(tmp_path / "speed.json")]) == 0
    table = json.loads((tmp_path / "speed.json").read_text())
    assert table["threads"] == 1 and table["groups"]["Otsu"]["adref"]["median_ms"] > 0
    assert "Otsu\n" in capsys.readouterr().out
    for argv, words in (["nonsense"], "no group has a name with nonsense"), (["--rounds", "0"], "take 1 or more"), (
        ["Otsu", "--json", str(tmp_path / "no" / "x")], "its folder is not there"), (
        ["--device", "tpu"], "--device takes"):  # fmt: skip
        assert speed.main(argv) == 2
        assert words in capsys.readouterr().err


def test_a_peer_that_is_not_installed_is_none():
    assert speed_blocks.peer("no_such_module") is None
