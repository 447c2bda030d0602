"""Prints what an auditor asks of a method: where is an equation, which test holds it, where does the code depart?

python tools/audit.py [METHOD ...]       as text; --markdown or --json prints the same in another form
python tools/audit.py --check            prints a line for each gap; exit code 1 if there is one

Everything is read where it stands: the header of adref/methods/NAME/method.py, the records in options.py, and the
marks of the tests. `@pytest.mark.holds("srdad", "7", "8")` says which equations a test holds; the test, or a helper in
its file that it uses, has to name one of the functions that the header lists for each, or one that uses it in its file.
"""

import argparse
import ast
import dataclasses
import functools
import importlib
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

import torch

import adref
from adref import options as option_tools
from adref.methods import METHODS

PACKAGE = Path(adref.__file__).parent
TESTS = Path(__file__).parent.parent / "tests"


class Entry(NamedTuple):
    """An equation, an algorithm or a table of a paper."""

    label: str  # "7", "Algorithm 1"
    formula: str
    places: tuple[str, ...]  # the functions as the header names them: "DRAEM.loss", "losses.ssim"


# -- the header -------------------------------------------------------------------------------------------------------


def section(header: str, title: str) -> list[str]:
    """Returns the indented lines below a title; a line that is indented more continues the one before."""
    lines: list[str] = []
    inside = False
    for line in header.splitlines():
        if not line.startswith(" "):
            inside = line.startswith(title) if line else inside
        elif inside and line.startswith("     ") and lines:
            lines[-1] += (" " if lines[-1].endswith(",") else "  ") + line.strip()
        elif inside:
            lines.append(line.strip())
    return lines


def entries(header: str) -> list[Entry]:
    """Lists equations, algorithms and tables of a header in order; a line that names no function has no places."""
    found = []
    for line in section(header, "Equations") + section(header, "Algorithms and tables"):
        label, text = re.fullmatch(r"\(([^)]+)\) (.*)", line).groups()
        formula, _, places = text.rpartition("  ")
        found.append(Entry(label, (formula or places).strip(), tuple(places.split(", ")) if formula else ()))
    return found


@functools.cache
def definitions(path: Path) -> frozenset[str]:
    """Returns the names that a file defines: functions, classes, methods as "Class.method", constants."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            found.add(ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target))
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return frozenset(found)


def resolve(place: str, method: str) -> tuple[Path, str] | None:
    """Finds the file that defines a place of a header, and its name there; None: there is no such definition.

    "stem.name" is looked for in the paper's folder, in ops/ and in layers/, "name" in the paper's method.py and
    options.py.
    """
    folder, (stem, _, rest) = PACKAGE / "methods" / method, place.partition(".")
    tried = [(part / f"{stem}.py", rest) for part in (folder, PACKAGE / "ops", PACKAGE / "layers")]
    tried += [(folder / "method.py", place), (folder / "options.py", place)]
    return next(((path, name) for path, name in tried if path.exists() and name in definitions(path)), None)


# -- the tests --------------------------------------------------------------------------------------------------------


@functools.cache
def marked_tests() -> dict[tuple[str, str], dict[str, set[str]]]:
    """Maps (method, label) to the tests that hold it, each with the names that it and its helpers use."""
    found: dict[tuple[str, str], dict[str, set[str]]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        functions = {node.name: node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        for name, node in functions.items():
            marks = [call for call in node.decorator_list if ast.unparse(call).startswith("pytest.mark.holds(")]
            for method, *labels in ([ast.literal_eval(argument) for argument in mark.args] for mark in marks):
                for label in labels:
                    found.setdefault((method, label), {})[f"{path.name}::{name}"] = used_names(node, functions)
    return found


def used_names(node: ast.FunctionDef, functions: dict[str, ast.FunctionDef]) -> set[str]:
    """Returns the names and attributes in a function and in those of `functions` that it uses, fixtures included."""
    names, pending = set(), [node]
    while pending:
        for part in ast.walk(pending.pop()):
            name = getattr(part, "id", None) or getattr(part, "attr", None) or getattr(part, "arg", None)
            if isinstance(name, str) and name not in names:
                names.add(name)
                pending += [functions[name]] if name in functions else []
    return names


@functools.cache
def reaching(path: Path, name: str) -> frozenset[str]:
    """Returns the names of a file from which a function is reached by calls in this file or in adref/method.py.

    A class stands for its constructor and `forward`, as a module is called by its object.
    """
    uses: dict[str, set[str]] = {}
    for file in (path, PACKAGE / "method.py"):
        for node in ast.parse(file.read_text()).body:
            inner = [part for part in getattr(node, "body", []) if isinstance(part, ast.FunctionDef)]
            for part in [node] if isinstance(node, ast.FunctionDef) else inner:
                found = used_names(part, {})
                uses.setdefault(part.name, set()).update(found)
                if part.name in ("__init__", "forward"):
                    uses.setdefault(node.name, set()).update(found)
    owner, _, last = name.rpartition(".")
    names = {owner} if last == "forward" else {last}
    while more := {user for user, used in uses.items() if used & names and user not in ("__init__", *names)}:
        names |= more
    return frozenset(names)


# -- one method -------------------------------------------------------------------------------------------------------


def audit(name: str, header: str, tests: dict[tuple[str, str], dict[str, set[str]]]) -> dict:
    """Collects everything that is known of a method as plain values.

    Args:
        name: of the method.
        header: the docstring of its method.py.
        tests: from `marked_tests`.
    """
    method, equations = METHODS[name], []
    for entry in entries(header):
        places = {place: resolve(place, name) for place in entry.places}
        held, names = tests.get((name, entry.label), {}), set()
        for found in filter(None, places.values()):
            names |= reaching(*found)
        equations.append({
            "label": entry.label, "formula": entry.formula, "tests": sorted(held),
            "functions": [f"{found[0].relative_to(PACKAGE.parent)}: {found[1]}" for found in places.values() if found],
            "missing": [place for place, found in places.items() if not found],
            "elsewhere": sorted(test for test, used in held.items() if not used & names),
        })  # fmt: skip
    options = [{"option": field.name, "default": show(field.default), "meaning": field.metadata["help"],
                **{key: field.metadata[key] for key in ("source", "kind", "paper", "why")}}
               for field in dataclasses.fields(method.Options)]  # fmt: skip
    deviations = importlib.import_module(f"adref.methods.{name}.options").DEVIATIONS
    changes = {f"{kind} {key}": {option: show(value) for option, value in row.items()}
               for kind, rows in (("preset", method.presets), ("ablation", method.ablations))
               for key, row in rows.items()}  # fmt: skip
    return {
        "method": name, "title": header.splitlines()[0], "equations": equations, "options": options,
        "deviations": [record._asdict() for record in deviations], "changes": changes,
        "parameters": {preset: parameters(name, preset) for preset in method.presets},
        "not_built": section(header, "Not built"),
    }  # fmt: skip


def parameters(name: str, preset: str) -> dict[str, int]:
    """Counts the parameters of each part of a method at a preset, without memory for the weights."""
    method = METHODS[name]
    with torch.device("meta"):
        model = method(option_tools.build(method.Options, method.presets, method.ablations, preset, None, {}))
    counts = {part: sum(p.numel() for p in child.parameters()) for part, child in model.named_children()}
    counts["outside of its parts"] = sum(p.numel() for p in model.parameters(recurse=False))
    return {part: count for part, count in counts.items() if count}


def show(value) -> str:
    """Writes a value as on a command line."""
    if isinstance(value, tuple):
        return ",".join(map(show, value))
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def gaps(found: dict, tests: dict[tuple[str, str], dict[str, set[str]]]) -> list[str]:
    """Names everything that is missing or wrong in what `audit` found."""
    lines = [] if found["equations"] else ["the header lists no equation"]
    for row in found["equations"]:
        label = row["label"] if len(row["label"]) > 3 else f"equation {row['label']}"
        lines += [f"{label}: no {place} is defined" for place in row["missing"]]
        lines += [] if row["functions"] or row["missing"] else [f"{label} names no function"]
        lines += [] if row["tests"] else [f"{label}: no test is marked to hold it"]
        lines += [f"{label}: {test} uses no function that the header names" for test in row["elsewhere"]]
    for row in found["options"]:
        if not all(row[key] for key in ("meaning", "source", *(("paper", "why") if row["kind"] else ()))):
            lines.append(f"the record of option {row['option']} has an empty field")
    for record in found["deviations"]:
        if record["kind"] not in option_tools.KINDS or not all(record.values()):
            lines.append(f"the record of {record['where']} has an unknown kind or an empty field")
    known = {row["label"] for row in found["equations"]}
    for (method, label), held in tests.items():
        if method == found["method"] and label not in known:
            lines.append(f"{', '.join(held)}: marked to hold {label!r}, which the header does not list")
    return [f"{found['method']}: {line}" for line in lines]


# -- printing ---------------------------------------------------------------------------------------------------------


def table(rows: list[dict], markdown: bool) -> str:
    """Writes dictionaries of the same keys as a Markdown table, or as a block of lines each."""
    if not markdown:
        return "\n\n".join("\n".join(f"  {k + ':':11s}{v}" for k, v in row.items() if v) for row in rows)
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)] if rows else []
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def page(found: dict, markdown: bool) -> str:
    """Writes what `audit` found."""
    equations = [{"label": row["label"], "formula": row["formula"], "functions": "; ".join(row["functions"]),
                  "tests": "; ".join(row["tests"])} for row in found["equations"]]  # fmt: skip
    changes = [{"name": name, "changes": ", ".join(f"{k} = {v}" for k, v in row.items()) or "none"}
               for name, row in found["changes"].items()]  # fmt: skip
    counts = [{"preset": preset, "total": f"{sum(parts.values()):,}",
               "parts": ", ".join(f"{part} {count:,}" for part, count in parts.items())}
              for preset, parts in found["parameters"].items()]  # fmt: skip
    options = [{key: value or "" for key, value in row.items()} for row in found["options"]]
    tables = {"Equations, algorithms, tables": equations, "Options, with departures and guesses": options,
              "Other departures and guesses": found["deviations"], "Presets and ablations": changes,
              "Parameters": counts}  # fmt: skip
    parts = [f"### {title}\n\n{table(rows, markdown)}" for title, rows in tables.items()]
    parts.append("### Not built\n\n" + "\n".join(f"* {line}" for line in found["not_built"]))
    return "\n\n".join([f"## {found['method']}: {found['title']}", *parts])


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 1 where there is a gap."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"of {', '.join(METHODS)}; all by default")
    form = parser.add_mutually_exclusive_group()
    for flag in ("--markdown", "--json", "--check"):
        form.add_argument(flag, action="store_true")
    given = parser.parse_args(arguments)
    if unknown := set(given.methods) - set(METHODS):
        parser.error(f"unknown method {', '.join(sorted(unknown))}; known: {', '.join(METHODS)}")
    names, tests = given.methods or list(METHODS), marked_tests()
    headers = {name: ast.get_docstring(ast.parse((PACKAGE / "methods" / name / "method.py").read_text()))
               for name in names}  # fmt: skip
    found = [audit(name, headers[name], tests) for name in names]
    if given.check:
        lines = [line for one in found for line in gaps(one, tests)]
        print("\n".join(lines) or f"{len(names)} methods: no gap")
        return int(bool(lines))
    print(json.dumps(found, indent=1) if given.json else "\n\n".join(page(one, given.markdown) for one in found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
