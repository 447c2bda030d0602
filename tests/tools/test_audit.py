"""The audit: it finds nothing missing, and finds each kind of gap when one is planted."""

import ast
import functools
import json
import re

import audit
import pytest

from adref.methods import METHODS
from adref.methods.draem import options as draem_options


@pytest.fixture(autouse=True, scope="module")
def counted_once():
    """Building all methods to count their parameters takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit, "parameters", functools.cache(audit.parameters))
        yield


def test_no_gap(capsys):
    assert audit.main(["--check"]) == 0, capsys.readouterr().out


def draem(change=lambda header: header, tests=None) -> list[str]:
    """The gaps of DRAEM with a changed header."""
    text = (audit.PACKAGE / "methods" / "draem" / "method.py").read_text()
    tests = audit.marked_tests() if tests is None else tests
    return audit.gaps(audit.audit("draem", change(ast.get_docstring(ast.parse(text))), tests), tests)


@pytest.mark.parametrize(("old", "new", "gap"), [
    ("DRAEM.loss, losses.ssim", "DRAEM.lose, losses.ssim", "draem: equation 1: no DRAEM.lose is defined"),
    ("losses.focal", "losses.vocal", "draem: equation 3: no losses.vocal is defined"),
    ("(2) L_rec = lambda L_ssim + |I - I_r|^2                     DRAEM.loss", "(2) L_rec = lambda L_ssim",
     "draem: equation 2 names no function"),
    ("    (5) eta", "    (7) eta", "draem: equation 7: no test is marked to hold it"),
    ("    (5) eta", "    (7) eta", "marked to hold '5', which the header does not list"),
    ("corrupt, texture_anomaly.blend", "DRAEM.load_weights",
     "draem: equation 4: test_draem.py::test_blend_is_equation_4 uses no function that the header names"),
])  # fmt: skip
def test_a_gap_of_the_header_is_found(old, new, gap):
    def planted(header: str) -> str:
        assert old in header
        return header.replace(old, new)

    assert gap in "\n".join(draem(planted)) and gap not in "\n".join(draem())


def test_an_empty_field_of_a_record_is_found(monkeypatch):
    wrong = (draem_options.DEVIATIONS[0]._replace(why=""), draem_options.DEVIATIONS[1]._replace(kind="unsure"))
    monkeypatch.setattr(draem_options, "DEVIATIONS", wrong)
    assert sum("unknown kind or an empty field" in line for line in draem()) == 2


def test_callers_of_the_same_file_count():
    layers, method = audit.PACKAGE / "layers", audit.PACKAGE / "methods" / "draem" / "method.py"
    found = audit.reaching(layers / "channel_cross_attention.py", "CrossAttentionLayer.weights")
    assert {"CrossAttentionLayer", "CrossFusion", "attend"} <= found
    assert audit.reaching(method, "DRAEM.image_scores") == {"image_scores", "score"}  # `score` is of adref/method.py


@pytest.mark.parametrize("name", METHODS)
def test_the_header_has_every_printed_equation_by_its_number(name):
    """equations.json: the paper's numbers in order, of DRAEM in the order of its sections, each with what its formula
    must contain; without numbers in the source (SeRNet) there are none here."""
    printed = json.loads((audit.TESTS / "equations.json").read_text())[name]
    header = ast.get_docstring(ast.parse((audit.PACKAGE / "methods" / name / "method.py").read_text()))
    numbered = {entry.label: entry.formula for entry in audit.entries(header) if re.fullmatch(r"S?\d+", entry.label)}
    assert list(numbered) == list(printed)
    missing = [(n, term) for n, terms in printed.items() for term in terms if term not in numbered[n]]
    assert not missing and all(printed.values())


def test_names_of_helpers_count_and_those_of_other_tests_do_not():
    text = "def helper(x):\n    return ssim(x)\ndef test_a(pair):\n    helper(1)\ndef test_b():\n    m.focal(2)\n"
    functions = {node.name: node for node in ast.parse(text).body}
    assert "ssim" in audit.used_names(functions["test_a"], functions)
    assert {"focal", "m"} == audit.used_names(functions["test_b"], functions)


def test_it_prints_text_markdown_and_json(capsys):
    for flags in (["draem"], ["draem", "--markdown"]):
        assert audit.main(flags) == 0 and capsys.readouterr().out.startswith("## draem: ")
    assert audit.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["method"] for one in found] == list(METHODS)
    assert found[1]["parameters"]["paper"] == {"reconstructor": 69048579, "discriminator": 28374146}
