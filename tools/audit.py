"""The auditor's table: where is an equation, what was assumed, which test holds it?

python tools/audit.py                            every method, as text (or METHOD ... for some)
python tools/audit.py --markdown tools/AUDIT.md  as a page, which the README links
python tools/audit.py --json FILE                as data
python tools/audit.py --check                    exit code 1, and a line for each gap

There is no second list to keep true. Read are: the header of a method's file ("Equations", "Algorithms and tables",
"Not built"), its options and deviations, the text of the functions that the header names, and the tests' own marks:
`@pytest.mark.holds("srdad", "7", "8")` on a test says which equations it holds, and while it runs, tests/conftest.py
looks whether it calls one of the functions that the header names for each.
"""

import argparse
import ast
import dataclasses
import functools
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import NamedTuple, get_args

import torch

import adref
from adref import options as option_tools
from adref.method import Trainable
from adref.methods import METHODS

PACKAGE = Path(adref.__file__).parent
TESTS = Path(__file__).parent.parent / "tests"
PAGE = Path(__file__).parent / "AUDIT.md"
KINDS = ("silent", "ambiguous", "contradiction", "mistake", "substitution")
READS = re.compile(r"\b(?:o|options)\.(\w+)")  # an option that is read
SECTIONS = ("Symbols", "Equations", "Not built")


class Entry(NamedTuple):
    """An equation, an algorithm or a table of a paper."""

    label: str  # "7", "Algorithm 1"
    formula: str
    places: tuple[str, ...]  # "SRDAD.loss", "losses.ssim", as the header has them


class Place(NamedTuple):
    """What a name of a header stands for."""

    file: str  # "adref/losses.py"
    name: str  # "ssim", "SRDAD.loss", "ABLATIONS"
    text: str


# -- reading ----------------------------------------------------------------------------------------------------------


@functools.cache
def source_files() -> dict[str, Path]:
    """Module name -> file, for every file of the package."""
    found = {path.stem: path for path in PACKAGE.rglob("*.py") if path.parent.parent.name != "methods"}
    return found | {path.parent.name: path for path in PACKAGE.glob("methods/*/method.py")}


def file_of(module: str, method: str) -> Path | None:
    """The file of a module that a header names: of the paper's own folder first."""
    own = source_files()[method].with_name(f"{module}.py")
    return own if own.exists() else source_files().get(module)


def section(header: str, title: str) -> list[str]:
    """The indented lines below a title of a header; a line that is indented more goes on with the one before."""
    lines: list[str] = []
    inside = False
    for line in header.splitlines():
        if not line.startswith(" "):
            inside = line.startswith(title) if line else inside
        elif inside and line.startswith("     "):
            lines[-1] += (" " if lines[-1].endswith(",") else "  ") + line.strip()
        elif inside:
            lines.append(line.strip())
    return lines


@functools.cache
def tree_of(text: str) -> ast.Module:
    """A file's syntax tree; not to be changed."""
    return ast.parse(text)


def entries(header: str) -> list[Entry]:
    """Equations, algorithms and tables of a header, in order; one whose line names no function has no places."""
    found = []
    for line in section(header, "Equations") + section(header, "Algorithms and tables"):
        label, text = re.fullmatch(r"\(([^)]+)\) (.*)", line).groups()
        formula, _, places = text.rpartition("  ")
        found.append(Entry(label, (formula or places).strip(), tuple(places.split(", ")) if formula else ()))
    return found


def find(place: str, own: Path, text: str) -> Place | None:
    """What "function", "Class.function" or "NAME" stands for, in the method's own file or the module before it."""
    module, _, rest = place.partition(".")
    file, path = own, place
    if rest and (found := file_of(module, own.parent.name)):
        file, path = found, rest
        text = file.read_text()
    nodes, node = tree_of(text).body, None
    for name in path.split("."):
        names = ((getattr(n, "name", None) or ast.unparse(getattr(n, "targets", [n])[0]), n) for n in nodes)
        node = next((n for found, n in names if found == name), None)
        nodes = getattr(node, "body", [])
    if not isinstance(node, ast.FunctionDef | ast.Assign):
        return None
    return Place(str(file.relative_to(PACKAGE.parent)), path, ast.get_source_segment(text, node))


def function_of(place: str, method: str) -> FunctionType | None:
    """The function that a place of a method's header stands for; None for a table of values."""
    module, _, rest = place.partition(".")
    file = file_of(module, method) if rest else None
    file, path = (file, rest) if file else (source_files()[method], place)
    name = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
    value = __import__(name, fromlist=["_"])
    for part in path.split("."):
        value = getattr(value, part)
    value = getattr(value, "__wrapped__", value)  # of a cache or of no_grad
    return value if isinstance(value, FunctionType) else None


def cites(text: str, label: str) -> bool:
    """Whether a function's text names the entry: "equation 7", "equations 3 to 8", "Algorithm 1", "Table 4"."""
    if len(label) == 1 and label.isalpha():
        return re.search(rf"[Ee]quations? (\w+(,| and) )*{label}\b", text) is not None
    if not label[0].isdigit():
        return re.search(rf"\b{re.escape(label)}\b", text, re.I) is not None
    cited = set()
    for words in re.findall(r"[Ee]quations? ([\d, toand]+)", text):
        cited |= set(re.findall(r"\d+", words))
        for low, high in re.findall(r"(\d+) to (\d+)", words):
            cited |= set(map(str, range(int(low), int(high) + 1)))
    return label in cited


@functools.cache
def marks() -> dict[tuple[str, str], list[str]]:
    """(method, label) -> the tests that are marked to hold it, as "test_srdad.py::test_score"."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            for call in getattr(node, "decorator_list", []):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.holds":
                    method, *labels = (ast.literal_eval(argument) for argument in call.args)
                    for label in labels:
                        found.setdefault((method, label), []).append(f"{path.name}::{node.name}")
    return found


def options_for(place: Place, own: str, text: str) -> set[str]:
    """Options that a function of the method's file reads, or that this file hands to a function of another file.

    Where it does not call the function, or the class, it is what it calls of that file that counts; and options that
    are named after that file.
    """
    if place.file == own:
        return set(READS.findall(place.text))
    defined = {getattr(node, "name", "") for node in tree_of((PACKAGE.parent / place.file).read_text()).body}
    handed: dict[str, set[str]] = {}
    for function in (node for node in ast.walk(tree_of(text)) if isinstance(node, ast.FunctionDef)):
        nodes = list(ast.walk(function))
        local = {ast.unparse(n.targets[0]): ast.unparse(n.value) for n in nodes if isinstance(n, ast.Assign)}
        for call in (n for n in nodes if isinstance(n, ast.Call) and ast.unparse(n.func) in defined):
            given = [*call.args, *(keyword.value for keyword in call.keywords)]
            names = {n.id for argument in given for n in ast.walk(argument) if isinstance(n, ast.Name)}
            words = ", ".join([*map(ast.unparse, given), *(local[name] for name in names if name in local)])
            handed.setdefault(ast.unparse(call.func), set()).update(READS.findall(words))
    module = Path(place.file).stem
    named = {option for option in READS.findall(text) if option.startswith(f"{module}_")}
    return named | handed.get(place.name.partition(".")[0], set().union(*handed.values()))


def deviations_of(places: list[Place], method: type[Trainable], own: str, text: str) -> list[str]:
    """Tags of the records that touch functions: a tag in the text, an option of `options_for`, its name in `where`."""
    tags, where = set(), set()
    for place in places:
        tags |= set(re.findall(r"\bD\d+\b", place.text)) if place.file == own else set()
        where |= {f"Options.{option}" for option in options_for(place, own, text)}
        where |= {place.name, *place.name.split(".")}
    return [record.tag for record in method.deviations if record.tag in tags or record.where in where]


def alternatives(method: type[Trainable], field: dataclasses.Field, kind) -> str:
    """What an option takes beside its default: its choices or range, and what presets and ablations set."""
    inner = next((t for t in (kind, *get_args(kind)) if option_tools.choices(t)), None)
    if inner:
        text = " | ".join(map(str, option_tools.choices(inner)))
    elif kind is bool:
        text = "true | false"
    elif field.metadata["limits"]:
        low, high = field.metadata["limits"]
        text = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
    else:
        text = ""
    if type(None) in get_args(kind):
        text = f"{text} | none".removeprefix(" | ")
    tables = [*method.presets.items(), *method.ablations.items()]
    used = [f"{show(c[field.name])} ({name})" for name, c in tables if field.name in c]
    return "; ".join(filter(None, (text, *used)))


def show(value) -> str:
    """A value as it is written on a command line."""
    if isinstance(value, tuple):
        return ",".join(map(show, value))
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


@functools.cache
def parameters(method: type[Trainable]) -> dict[str, dict[str, int]]:
    """Preset -> part -> number of parameters; built without memory for the weights."""
    counts = {}
    for preset in method.presets:
        options = option_tools.build(method.Options, method.presets, method.ablations, preset, None, {})
        with torch.device("meta"):
            model = method(options)
        parts = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
        counts[preset] = {name: count for name, count in parts.items() if count}
    return counts


def audit(name: str, method: type[Trainable], text: str, tests: dict[tuple[str, str], list[str]]) -> dict:
    """All that is known of a method, as plain values.

    Args:
        name: of the method.
        method: its class.
        text: of its file.
        tests: from `marks`.
    """
    header, path = ast.get_docstring(ast.parse(text)), source_files()[name]
    own = str(path.relative_to(PACKAGE.parent))
    kinds, rows = option_tools.hints(method.Options), []
    for entry in entries(header):
        places = {place: find(place, path, text) for place in entry.places}
        known = [place for place in places.values() if place]
        rows.append({
            "label": entry.label, "formula": entry.formula, "functions": [f"{p.file}: {p.name}" for p in known],
            "missing": [place for place, p in places.items() if not p],
            "named": any(cites(p.text, entry.label) for p in known),
            "tests": tests.get((name, entry.label), []), "deviations": deviations_of(known, method, own, text),
        })  # fmt: skip
    code = re.sub(r"^DEVIATIONS = \(.*?^\)", "", text, flags=re.S | re.M)
    return {
        "method": name, "file": own, "title": header.splitlines()[0],
        "sections": [title for title in SECTIONS if section(header, title)],
        "equations": rows,
        "options": [{"name": f.name, "default": show(f.default), "source": f.metadata["source"],
                     "meaning": f.metadata["help"], "alternatives": alternatives(method, f, kinds[f.name])}
                    for f in dataclasses.fields(method.Options)],
        "deviations": [record._asdict() for record in method.deviations],
        "tags": sorted(set(re.findall(r"\bD\d+\b", code)), key=lambda tag: int(tag[1:])),
        "presets": {k: {n: show(v) for n, v in c.items()} for k, c in method.presets.items()},
        "ablations": {k: {n: show(v) for n, v in c.items()} for k, c in method.ablations.items()},
        "parameters": parameters(method),
        "not_built": section(header, "Not built"),
    }  # fmt: skip


# -- checking ---------------------------------------------------------------------------------------------------------


def gaps(found: dict) -> list[str]:
    """One sentence for each thing that an auditor would miss."""
    name, records = found["method"], [record["tag"] for record in found["deviations"]]
    options = {option["name"] for option in found["options"]}
    lines = [f"the header has no section {title!r}" for title in SECTIONS if title not in found["sections"]]
    for row in found["equations"]:
        label = row["label"] if len(row["label"]) > 3 else f"equation {row['label']}"
        lines += [f"{label}: there is no function {place}" for place in row["missing"]]
        if not row["functions"] and not row["missing"]:
            lines.append(f"{label} names no function")
        elif row["functions"] and not row["named"]:
            lines.append(f"{label} is named in none of {', '.join(row['functions'])}")
        if not row["tests"]:
            lines.append(f"{label}: no test is marked to hold it")
    for option in found["options"]:
        lines += [f"option {option['name']} has no {key}" for key in ("source", "meaning") if not option[key]]
        unknown = set(re.findall(r"\bD\d+\b", option["source"])) - set(records)
        lines += [f"option {option['name']}: its source {tag} has no record" for tag in sorted(unknown)]
    lines += [f"tag {tag} has no record" for tag in found["tags"] if tag not in records]
    for record in found["deviations"]:
        tag, where = record["tag"], record["where"]
        if records.count(tag) > 1:
            lines.append(f"{tag} is the tag of {records.count(tag)} records")
        if tag not in found["tags"]:
            lines.append(f"record {tag} has no tag in the code")
        if record["kind"] not in KINDS or not all(record.values()):
            lines.append(f"record {tag} has an unknown kind or an empty field")
        if where.startswith("Options.") and where.removeprefix("Options.") not in options:
            lines.append(f"record {tag}: there is no option {where}")
    for row, changes in [*found["presets"].items(), *found["ablations"].items()]:
        lines += [f"{row}: there is no option {option}" for option in changes if option not in options]
    return [f"{name}: {line}" for line in lines]


def stale_marks(all_found: list[dict], tests: dict[tuple[str, str], list[str]]) -> list[str]:
    """Marks of tests that name what no header has."""
    known = {(found["method"], row["label"]) for found in all_found for row in found["equations"]}
    return [f"{', '.join(names)}: marked to hold {' '.join(key)}, which no header has"
            for key, names in tests.items() if key not in known]  # fmt: skip


# -- showing ----------------------------------------------------------------------------------------------------------


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; bars and line ends in cells are made harmless."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in [heads, *rows]]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:]])


def plain(heads: list[str], rows: list[list[str]]) -> str:
    """A table as text: a row a block, each cell behind its head."""
    return "\n\n".join("\n".join(f"  {h + ':':14s}{cell}" for h, cell in zip(heads, row) if cell) for row in rows)


def page(found: dict, draw: Callable[[list[str], list[list[str]]], str]) -> str:
    """One method's part of the page; `draw` makes a table of heads and rows."""
    records = found["deviations"]
    totals = ((preset, sum(parts.values()), parts) for preset, parts in found["parameters"].items())
    other = {option["name"]: option["alternatives"] for option in found["options"]}
    parts = [
        (None, f"{found['title']}\n\nFile: {found['file']}"),
        ("Equations, algorithms, tables", draw(
            ["", "formula", "function", "tests", "deviations"],
            [[r["label"], r["formula"], "; ".join(r["functions"]), "; ".join(r["tests"]), ", ".join(r["deviations"])]
             for r in found["equations"]])),
        ("Deviations", draw(
            ["tag", "where", "kind", "paper", "here", "why", "other readings"],
            [[*r.values(), other.get(r["where"].removeprefix("Options."), "a record, no option")] for r in records])),
        ("Options", draw(["option", "default", "source", "meaning", "takes; set by"],
                         [[o[k] for k in ("name", "default", "source", "meaning", "alternatives")]
                          for o in found["options"]])),
        ("Parameters", draw(["preset", "total", "parts"],
                            [[p, f"{n:,}", ", ".join(f"{k} {v:,}" for k, v in c.items())] for p, n, c in totals])),
        ("Presets and ablations", draw(["name", "changes"], [
            [name, ", ".join(f"{k} = {v}" for k, v in changes.items()) or "none: the defaults"]
            for name, changes in [*found["presets"].items(), *found["ablations"].items()]])),
        ("Not built", "\n".join(f"* {line}" for line in found["not_built"])),
    ]  # fmt: skip
    return "\n\n".join(f"### {title}\n\n{body}" if title else body for title, body in parts)


def document(all_found: list[dict], draw: Callable = table) -> str:
    """The whole page."""
    counts = [[f["method"], len(f["equations"]), sum(len(r["tests"]) for r in f["equations"]), len(f["options"]),
               len(f["deviations"]), *(sum(r["kind"] == k for r in f["deviations"]) for k in KINDS)]
              for f in all_found]  # fmt: skip
    head = ("# Audit\n\nMade from the code by `python tools/audit.py --markdown tools/AUDIT.md`; not to be edited."
            "\nA test calls a function that is named beside it: the tests themselves make sure of that.")  # fmt: skip
    summary = draw(["method", "equations", "tests", "options", "deviations", *KINDS], counts)
    return "\n\n".join([head, summary, *(f"## {f['method']}\n\n{page(f, draw)}" for f in all_found)]) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 1 where there is a gap, 2 for an unknown method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"of {', '.join(METHODS)}; all by default")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args(arguments)
    if unknown := set(given.methods) - set(METHODS):
        parser.error(f"unknown method {', '.join(sorted(unknown))}; known: {', '.join(METHODS)}")
    names, tests = given.methods or list(METHODS), marks()
    all_found = [audit(name, METHODS[name], source_files()[name].read_text(), tests) for name in names]
    for path, text in ((given.markdown, document(all_found)), (given.json, json.dumps(all_found, indent=1))):
        if path:
            path.write_text(text)
    if given.check:
        lines = [line for found in all_found for line in gaps(found)]
        if len(names) == len(METHODS):
            lines += stale_marks(all_found, tests)
            if not PAGE.exists() or PAGE.read_text() != document(all_found):
                lines.append(f"tools/{PAGE.name} is not what the code says; python tools/audit.py --markdown makes it")
        print("\n".join(lines) or f"{len(names)} methods: no gap")
        return int(bool(lines))
    if not given.markdown and not given.json:
        print(document(all_found, plain))
    return 0


if __name__ == "__main__":
    sys.exit(main())
