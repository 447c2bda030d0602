"""The house rules: what may import what, where files are touched, docstrings, plain packages."""

import ast
import re
import sys
from pathlib import Path

import adref

PACKAGE = Path(adref.__file__).parent
ROOT = Path(__file__).parent.parent
FILES = sorted(PACKAGE.rglob("*.py"))
PACKAGES = {"torch", "numpy", "PIL", "scipy"}
COMMANDS = {"train", "evaluate", "predict", "synthesize", "benchmark"}
# Each folder, or file at the root, with what it may import beside itself.
ALLOWED = {
    "options": set(),
    "method": {"options"},
    "ops": set(),
    "layers": set(),
    "methods": {"options", "method", "ops", "layers"},
    "data": {"options", "method"},
    "run": {"options", "method", "ops", "methods", "data", "__version__"},
    **{name: {"options", "method", "ops", "methods", "data", "run", *COMMANDS} for name in COMMANDS},
    "__init__": {"run"},
}


def imports(path: Path) -> list[str]:
    """Dotted names that a file imports, those inside functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{'.' * node.level}{node.module}.{alias.name}" for alias in node.names]
    return found


def test_files_import_only_what_their_folder_may():
    wrong = []
    for path in FILES:
        own = path.relative_to(PACKAGE).with_suffix("").parts
        for name in imports(path):
            top, *rest = name.split(".")
            if top != "adref":
                fine = top in PACKAGES or top in sys.stdlib_module_names
            elif own[-1] == "__main__":
                fine = rest[0] in ALLOWED["train"]
            elif own[0] == "methods" and len(own) > 2 and rest[0] == "methods":
                fine = rest[1] == own[1]  # a paper imports no other paper
            else:
                fine = rest[0] == own[0] or rest[0] in ALLOWED[own[0]]
            if not fine:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_run_names_no_paper():
    from adref.methods import METHODS

    for path in (PACKAGE / "run").glob("*.py"):
        found = [i for i in imports(path) if any(i.startswith(f"adref.methods.{name}") for name in METHODS)]
        assert not found, f"{path.name} imports {found}"


def test_no_file_is_longer_than_350_lines():
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in FILES}
    long = {name: count for name, count in lengths.items() if count > (420 if name == "data/sample.py" else 350)}
    assert not long and sum(lengths.values()) <= 12_185, (long, sum(lengths.values()))


def test_nothing_runs_at_import_and_nothing_is_asserted_or_probed():
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for path in FILES:
        tree = ast.parse(path.read_text())
        for node in tree.body:
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            main = isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
            assert isinstance(node, allowed) or docstring or main, f"{path}:{node.lineno}: runs at import"
        for node in ast.walk(tree):
            assert not isinstance(node, ast.Assert), f"{path}:{node.lineno}: assert"
            assert not (isinstance(node, ast.Name) and node.id == "hasattr"), f"{path}:{node.lineno}: hasattr"


def test_ops_and_layers_touch_no_file_and_raise_no_user_error():
    for folder in ("ops", "layers"):
        for path in (PACKAGE / folder).glob("*.py"):
            names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
            assert not names & {"open", "Path", "UserError"}, f"{path}: {names & {'open', 'Path', 'UserError'}}"


def test_public_functions_and_classes_have_docstrings():
    known = {"Batch", "Options"}  # their fields are commented one by one
    for path in FILES:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree) or not path.read_text().strip(), f"{path}: no header"
        nodes = [item for node in tree.body for item in [node, *(node.body if isinstance(node, ast.ClassDef) else [])]]
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node) or node.name in known | {"forward"}, f"{path}: {node.name}: no docstring"


def test_docstrings_begin_with_a_verb_or_a_noun_of_the_field():
    for path in [*FILES, *(ROOT / "tools").rglob("*.py")]:
        found = re.findall(r'"""(?:What|Who|Where|Of|Whether what) .*', path.read_text())
        assert not found, f"{path}: {found[:3]}"


def test_readme_is_short_and_ci_runs_its_commands():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    assert len(readme.splitlines()) <= 200
    for command in re.findall(r"^\.venv/bin/pip install.*$|^python3 -m venv.*$", ci, flags=re.M):
        assert command.replace(" -q", "") in readme, command


def test_setup_needs_the_four_packages_only():
    text = (ROOT / "setup.py").read_text()
    needed = re.search(r"install_requires=\[(.*?)\]", text, flags=re.S).group(1)
    names = {re.match(r"\w+", item.strip().strip('"')).group(0) for item in needed.split(",")}
    assert names == {"torch", "numpy", "pillow", "scipy"}


def test_no_file_speaks_of_a_machine():
    words = re.compile(r"/(work|tmp|root|home)/|session|https?://(?!github\.com|www\.w3\.org)|at hand", re.I)
    for path in [*FILES, *(ROOT / "tools").rglob("*.*"), *PACKAGE.rglob("*.md"), ROOT / "README.md"]:
        if path.suffix in (".pyc", ".png"):
            continue
        hits = [line for line in path.read_text().splitlines() if words.search(line)]
        assert not hits, f"{path}: {hits[:3]}"
