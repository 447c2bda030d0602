"""The audit has no gap, and finds each kind of gap that is planted."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import audit
import pytest

from adref.methods import METHODS
from adref.methods.draem import DRAEM
from adref.options import option

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def found() -> dict[str, dict]:
    tests = audit.marks()
    return {name: audit.audit(name, kind, audit.source_files()[name].read_text(), tests)
            for name, kind in METHODS.items()}  # fmt: skip


def test_there_is_no_gap(capsys):
    assert audit.main(["--check"]) == 0, capsys.readouterr().out


def check(monkeypatch, text=lambda text: text, tests=None, **changes) -> list[str]:
    """The gaps of DRAEM with something changed."""
    own = audit.source_files()["draem"].read_text()
    monkeypatch.setattr(audit, "parameters", lambda method: {})
    spoiled = type("Spoiled", (DRAEM,), changes)
    return audit.gaps(audit.audit("draem", spoiled, text(own), audit.marks() if tests is None else tests))


def with_option(name: str, source: str):
    """DRAEM's options and one more."""
    return dataclasses.make_dataclass(
        "Options", [(name, int, option(1, "a number", source))], bases=(DRAEM.Options,), frozen=True
    )


def record(old: str, **changes):
    """DRAEM's records, one of them changed."""
    return tuple(r._replace(**changes) if r.tag == old else r for r in DRAEM.deviations)


def put(old: str, new: str):
    """A change of text that must find its place."""

    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return change


@pytest.mark.parametrize(
    ("says", "changes"),
    [
        ("equation 4: there is no function blended", {"text": put("blend\n    (5)", "blended\n    (5)")}),
        ("equation 3: there is no function losses.focl", {"text": put("losses.focal\n", "losses.focl\n")}),
        ("equation 5 names no function", {"text": put("filter                     DRAEM.image_score", "filter")}),
        ("equation 4 is named in none of adref/methods/draem.py: blend", {"text": put('"""Equation 4: ', '"""')}),
        ("equation 2: no test is marked to hold it", {"tests": {}}),
        ("the header has no section 'Not built'", {"text": put("\nNot built\n", "\nNot made\n")}),
        ("the header has no section 'Symbols'", {"text": put("\nSymbols\n", "\nLetters\n")}),
        ("option more has no source", {"Options": with_option("more", "")}),
        ("option more: its source D99 has no record", {"Options": with_option("more", "code; D99")}),
        ("tag D98 has no record", {"text": put("# D7\n", "# D7, D98\n")}),
        ("record D11 has no tag in the code", {"text": put("# D6, D11", "# D6")}),
        ("D4 is the tag of 2 records", {"deviations": record("D5", tag="D4")}),
        ("record D5 has an unknown kind or an empty field", {"deviations": record("D5", kind="guess")}),
        ("record D5 has an unknown kind or an empty field", {"deviations": record("D5", why="")}),
        ("record D5: there is no option Options.turns", {"deviations": record("D5", where="Options.turns")}),
        ("tiny: there is no option pile", {"presets": {"paper": {}, "tiny": {"pile": 3}}}),
        ("row: there is no option pile", {"ablations": {"row": {"pile": 3}}}),
    ],
)  # fmt: skip
def test_a_planted_gap_is_found(monkeypatch, says, changes):
    assert f"draem: {says}" in check(monkeypatch, **changes)
    if "tests" not in changes:
        assert not check(monkeypatch)


def test_a_mark_that_no_header_has_and_a_stale_page_are_found(monkeypatch, capsys, tmp_path, found):
    tests = {("draem", "77"): ["test_x.py::test_y"]}
    assert audit.stale_marks(list(found.values()), tests) == [
        "test_x.py::test_y: marked to hold draem 77, which no header has"
    ]
    monkeypatch.setattr(audit, "PAGE", tmp_path / "AUDIT.md")
    assert audit.main(["--check"]) == 1
    assert capsys.readouterr().out.startswith("tools/AUDIT.md is not what the code says")


def test_a_test_that_does_not_call_what_it_is_marked_with_fails(tmp_path):
    """The hook of conftest.py, in a run of its own."""
    (tmp_path / "test_marks.py").write_text(
        """
import pytest, torch
from adref.losses import focal
from adref.methods.draem import DRAEM, blend

@pytest.mark.holds("draem", "4")
def test_true():
    assert blend(torch.ones(3, 1, 1), torch.zeros(3, 1, 1), torch.ones(1, 1, 1), 0.5).mean() == 0.5

@pytest.mark.holds("draem", "4")
def test_false():
    assert focal(torch.full((1, 2, 1, 1), 0.5), torch.zeros(1, 1, 1, 1)) > 0

@pytest.mark.holds("draem", "44")
def test_unknown():
    pass

@pytest.mark.holds("srdad", "Table 4")
def test_table():
    pass
"""
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "conftest",
        "-c",
        str(HERE.parent / "pyproject.toml"),
        str(tmp_path),
    ]
    run = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(HERE)}, capture_output=True, text=True)
    assert "2 failed, 2 passed" in run.stdout, run.stdout
    assert "marked to hold draem 4, but calls none of blend" in run.stdout
    assert "marked to hold draem 44, which its header does not have" in run.stdout


def test_what_the_audit_tells(found, tmp_path, capsys):
    """One row of each kind, and the same in all three forms."""
    srdad, draem = found["srdad"], found["draem"]
    aspp = next(row for row in srdad["equations"] if row["label"] == "7")
    assert aspp["functions"] == ["adref/layers/aspp.py: ASPP.forward"] and any(
        "test_aspp" in test for test in aspp["tests"]
    )
    score = next(row for row in srdad["equations"] if row["label"] == "15")
    assert "D38" not in score["deviations"] or score["deviations"]
    row = next(o for o in draem["options"] if o["name"] == "texture_weight")
    assert (row["default"], row["source"]) == ("0.2,1", "code; D7") and row["alternatives"] == "0 to 1; 0.1,1 (paper)"
    focal = next(o for o in draem["options"] if o["name"] == "focal_alpha")
    assert focal["alternatives"] == "0 to 1 | none"
    assert draem["parameters"]["paper"] == {"reconstructor": 69048579, "discriminator": 28374146}
    assert sum(srdad["parameters"]["paper"].values()) == 19408023 + 28283402
    assert found["realnet"]["parameters"]["paper"] and len(srdad["deviations"]) == 51
    assert any("Tables 1 to 3" in line for line in srdad["not_built"])
    blend = next(row for row in draem["equations"] if row["label"] == "4")
    noise = next(row for row in found["noise_to_norm"]["equations"] if row["label"] == "1")
    assert {"D2"} <= set(noise["deviations"]) and blend["formula"].startswith("I_a =")

    assert audit.main(["--json", str(tmp_path / "a.json"), "--markdown", str(tmp_path / "a.md")]) == 0
    assert json.loads((tmp_path / "a.json").read_text()) == list(found.values())
    assert (tmp_path / "a.md").read_text() == audit.document(list(found.values()))
    capsys.readouterr()
    assert audit.main(["draem"]) == 0
    text = capsys.readouterr().out
    assert "69,048,579" in text and "I_a = (1 - M) I" in text and "Swin" not in text
    with pytest.raises(SystemExit) as error:
        audit.main(["dream"])
    assert error.value.code == 2 and "unknown method dream; known: draem" in capsys.readouterr().err
