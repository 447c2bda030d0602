"""Options: precedence, parsing, refusals."""

from dataclasses import dataclass
from typing import Literal

import pytest

from adref.options import UserError, build, option, replace, to_json


@dataclass(frozen=True)
class Options:
    size: tuple[int, int] = option((256, 256), "height,width", "table 1")
    rates: tuple[float, ...] = option((0.1,), "rates", "table 1")
    rate: float = option(1e-4, "rate", "section 4")
    epochs: int = option(700, "epochs", "section 4")
    steps: int | None = option(None, "steps", "section 4")
    kind: Literal["a", "b"] = option("a", "kind", "section 4")
    on: bool = option(False, "switch", "section 4")
    folder: str | None = option(None, "folder", "section 4")


PRESETS = {"paper": {}, "tiny": {"epochs": 3, "rate": 0.5}}
ABLATIONS = {"b": {"kind": "b", "rate": 0.25}}


def test_precedence_is_default_preset_ablation_flag():
    assert build(Options, PRESETS, ABLATIONS, "paper", None, {}) == Options()
    tiny = build(Options, PRESETS, ABLATIONS, "tiny", None, {})
    assert (tiny.epochs, tiny.rate) == (3, 0.5)
    both = build(Options, PRESETS, ABLATIONS, "tiny", "b", {"epochs": "9"})
    assert (both.epochs, both.rate, both.kind) == (9, 0.25, "b")


def test_epochs_on_the_command_line_replace_the_steps_of_preset_and_ablation():
    presets, ablations = {"tiny": {"epochs": 3, "steps": 800}}, {"literal": {"steps": 500}}
    for flags, wanted in (({}, (3, 800)), ({"epochs": "50"}, (50, None)), ({"steps": "9"}, (3, 9)),
                          ({"epochs": "50", "steps": "9"}, (50, 9))):  # fmt: skip
        found = build(Options, presets, ablations, "tiny", None, flags)
        assert (found.epochs, found.steps) == wanted
    assert build(Options, presets, ablations, "tiny", "literal", {}).steps == 500
    assert build(Options, presets, ablations, "tiny", "literal", {"epochs": "50"}).steps is None


def test_values_are_parsed_and_survive_json():
    text = {"size": "64,32", "rates": "0.5,0.25,1", "rate": "1e-3", "on": "true", "folder": "x"}
    options = replace(Options(), text)
    assert options.size == (64, 32) and options.rates == (0.5, 0.25, 1.0) and options.on is True
    assert replace(Options(), to_json(options)) == options
    assert replace(options, {"folder": "none"}).folder is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": "3.5"}, "--epochs takes a whole number; got '3.5'"),
        ({"rate": "fast"}, "--rate takes a number; got 'fast'"),
        ({"on": "yes"}, "--on takes true or false; got 'yes'"),
        ({"size": "64,x"}, "--size takes a whole number; got 'x'"),
        ({"zzzz": "1"}, "unknown option --zzzz"),
    ],
)
def test_refusals_name_option_expected_and_found(changes, words):
    with pytest.raises(UserError, match=words):
        replace(Options(), changes)


def test_unknown_preset_and_ablation_list_the_known():
    for names, words in (
        (("huge", None), "--preset huge; known: paper, tiny"),
        (("tiny", "c"), "--ablation c; known: b"),
    ):
        with pytest.raises(UserError, match=f"unknown {words}"):
            build(Options, PRESETS, ABLATIONS, *names, {})
