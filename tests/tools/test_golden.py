"""Pinned golden values, and that no layer or method is without a case."""

import ast
import json
from pathlib import Path

import pytest
import torch
from conftest import golden

import adref
from adref.methods import METHODS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", golden.CASES)
def test_pinned_numbers_have_not_moved(name):
    stored = json.loads((ROOT / "tests" / "golden" / f"{name}.json").read_text())
    assert golden.largest_change(stored, golden.numbers_of(name)) < golden.SINGLE.get(name, golden.TOLERANCE)


def test_every_layer_and_method_has_a_case():
    tool = (ROOT / "tools" / "golden.py").read_text()
    for path in (Path(adref.__file__).parent / "layers").glob("[a-z]*.py"):
        for node in ast.parse(path.read_text()).body:
            tuples = isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "NamedTuple" for base in node.bases)
            if isinstance(node, ast.ClassDef) and not tuples and node.name not in ("Encoder", "LinearBottlenecks"):
                assert f"{node.name}(" in tool, f"{path.name}: {node.name} has no case in tools/golden.py"
    assert set(METHODS) <= set(golden.CASES)


def test_hash_recipe_by_hand():
    """The recipe in plain Python integers, for one name and two indices."""
    import zlib

    def value(name, i):
        x = (zlib.crc32(name.encode()) + 0x9E3779B9 * (i + 1)) % 2**32
        x = ((x ^ (x >> 16)) * 0x85EBCA6B) % 2**32
        x = ((x ^ (x >> 13)) * 0xC2B2AE35) % 2**32
        return ((x ^ (x >> 16)) >> 8) / 2**24

    found = golden.hashed("images", 2, 500)
    assert found.flatten()[[0, 777]].tolist() == [value("images", 0), value("images", 777)]
    assert abs(found.mean() - 0.5) < 0.03 and torch.linalg.matrix_rank(golden.hashed("w", 40, 40)) == 40


def test_a_changed_number_is_noticed():
    assert golden.largest_change([1.0, 2.0], [1.0, 2.001]) > golden.TOLERANCE
    assert golden.largest_change([1.0], [1.0, 2.0]) == float("inf")
