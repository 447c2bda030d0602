"""The house rules: what may import what, file length, docstrings; tools/audit.py holds those of a method's header."""

import ast
import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import adref.config
from adref.methods import METHODS

PACKAGE = Path(adref.__file__).parent
ROOT = Path(__file__).parent.parent
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
ALLOWED = {"torch", "numpy", "PIL", "scipy"}
# Lower layers first; a file imports from lower ones only. Commands may import one another.
ORDER = (
    {"options"},
    {"method"},
    {"layers", "pixels"},
    {"image", "losses", "metrics"},
    {"synthesis"},
    {"methods"},
    {"data", "sample_data", "files"},
    {"distributed", "tiles"},
    {"samples", "overlap"},
    {"run", "report", "claims"},
    {"config", "journal"},
    {"train", "evaluate", "predict", "synthesize", "benchmark", "site", "study", "studies", "summary"},
)


def rank(name: str) -> int:
    return next(i for i, names in enumerate(ORDER) if name in names)


def imports(path: Path) -> list[str]:
    """Dotted names that a file imports, those inside functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_only_downwards_and_only_four_packages(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for name in imports(path):
        top, *rest = name.split(".")
        if top != "adref":
            assert top in ALLOWED or top in sys.stdlib_module_names, f"{path}: imports {name}"
        elif own != "__init__" and rest[0] != "__version__":  # adref/__init__ imports inside a function
            assert rank(rest[0]) <= rank(own), f"{path}: {own} imports {name}, which is above it"
            same_layer = rest[0] != own and rank(rest[0]) == rank(own)
            assert not same_layer or rank(own) == len(ORDER) - 1, f"{path}: {own} imports {name} of its own layer"
        if own == "layers" and top != "adref":
            assert top == "torch" or top in sys.stdlib_module_names, f"{path}: layers import torch only, not {name}"


def test_methods_import_no_other_but_the_baseline():
    """The papers start their ablations from DRAEM, and a row of a table that is DRAEM has to be that method itself."""
    for name in METHODS:
        found = [i for i in imports(PACKAGE / "methods" / f"{name}.py") if i.startswith("adref.methods")]
        others = [i for i in found if not i.startswith("adref.methods.draem") or name == "draem"]
        assert not others, f"{name} imports {others}"


def code_lines(path: Path) -> int:
    """Lines of a file without its header and its tables of options and deviations, which grow with what a paper has and
    leaves open."""
    tables = [
        node.end_lineno - node.lineno + 1
        for node in ast.parse(path.read_text()).body
        if (isinstance(node, ast.ClassDef) and node.name == "Options")
        or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "DEVIATIONS")
        or isinstance(node, ast.Expr)
    ]
    return len(path.read_text().splitlines()) - sum(tables)


def test_every_file_is_under_500_lines():
    lengths = {str(path.relative_to(PACKAGE)): code_lines(path) for path in FILES}
    longest = max(lengths, key=lengths.get)
    print(f"longest: {longest}, {lengths[longest]} lines; all files: {sum(lengths.values())}")
    assert lengths[longest] < 500, f"{longest} has {lengths[longest]} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_happens_at_import_but_definitions_and_no_assert(path):
    tree = ast.parse(path.read_text())
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for node in tree.body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        main = isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        assert isinstance(node, allowed) or docstring or main, f"{path}:{node.lineno}: runs at import"
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree)), f"{path}: assert"
    torchrun = path.name == "distributed.py"  # it says everything by environment variables
    assert torchrun or "environ" not in path.read_text(), f"{path}: environment variable"


def public_functions(path: Path):
    for node in ast.parse(path.read_text()).body:
        members = node.body if isinstance(node, ast.ClassDef) else []
        for item in [node, *members]:
            if isinstance(item, ast.FunctionDef | ast.ClassDef) and not item.name.startswith("_"):
                yield item


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_public_functions_and_classes_have_docstrings(path):
    assert ast.get_docstring(ast.parse(path.read_text())) or not path.read_text().strip(), f"{path}: no header"
    bare = [n.name for n in public_functions(path) if not ast.get_docstring(n) and n.name != "forward"]
    known = {"Batch", "Options"}  # their fields are commented one by one
    assert not set(bare) - known, f"{path}: no docstring: {bare}"


@pytest.mark.parametrize("name", METHODS)
def test_paper_preset_is_the_defaults(name):
    assert METHODS[name].presets["paper"] == {}


def test_flags_of_train_have_sources():
    tags = {deviation.tag for deviation in adref.config.DEVIATIONS}
    for field in fields(adref.config.Flags):
        assert field.metadata["source"] == "adref" or field.metadata["source"] in tags, field.name


def test_readme_and_ci_run_the_same_two_commands():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    for command in re.findall(r"^\.venv/bin/pip install.*$|^python3 -m venv.*$", ci, flags=re.M):
        assert command.replace(" -q", "") in readme, command


def test_setup_needs_the_four_packages_only():
    text = (ROOT / "setup.py").read_text()
    needed = re.search(r"install_requires=\[(.*?)\]", text, flags=re.S).group(1)
    assert {re.match(r"\w+", item.strip().strip('"')).group(0) for item in needed.split(",")} == {
        "torch", "numpy", "pillow", "scipy"}  # fmt: skip


def test_no_file_speaks_of_a_machine():
    words = re.compile(r"/(work|tmp|root|home)/|session|https?://(?!github\.com|www\.w3\.org)", re.I)
    for path in [*FILES, *(ROOT / "tools").glob("*.py"), ROOT / "README.md"]:
        hits = [line for line in path.read_text().splitlines() if words.search(line)]
        assert not hits, f"{path}: {hits[:3]}"
