"""Writes and checks the porter's kit: arrays that a port to another language or framework must reproduce.

python tools/conformance.py export DIR                  writes manifest.json, README.md, verify.py and cases/*.npz
python tools/conformance.py verify DIR                  compares this code with a kit
python tools/conformance.py verify DIR --outputs OTHER  compares a port's OTHER/cases/*.npz with a kit

A kit holds the outputs of every layer, loss, metric, image operation and synthesis step, and of every method at its
preset `tiny` from end to end with the outputs of its parts. It holds neither inputs nor weights: an integer hash of
(array name, index) gives them in any language, without torch, random numbers or files. conformance_cases.py lists the
cases; the README of a kit explains them.
"""

import argparse
import ast
import functools
import inspect
import json
import re
import shutil
import sys
import zlib
from pathlib import Path

import audit
import conformance_verify
import numpy as np
import torch
from conformance_cases import REASONS, TOLERANCES, Case, all_cases, described
from conformance_verify import FORMAT, SAMPLES, Arrays, KitError, hashed, reduce, verify, verify_outputs

from adref import __version__
from adref.methods import METHODS
from adref.options import UserError
from adref.run.files import new_folder, refuse_existing

WHOLE = {"trace": 512, "out": 2**17}  # elements up to which an array is kept whole

README = """# Conformance kit of adref {version}

{count} cases, made with torch {torch}. `manifest.json` lists them in an order in which a port can be written: losses
and metrics, image operations and synthesis, layers, whole methods. A case names a function or class of adref and has
its documentation (`files` has that of its file), the equations of the papers that it computes, inputs, options with
the defaults of those that are not given, weights, and the arrays to reproduce in the order of their computation. Where
the documentation leaves a question open, the source of adref answers it.

## Inputs and weights

All integers are unsigned, have 32 bits and wrap around. h(name, i) is the value at flat index i (row-major) of an
array:

    x = crc32(name as UTF-8) + 0x9E3779B9 * (i + 1)               zlib's crc32; of "images" it is {crc}
    x = (x xor (x >> 16)) * 0x85EBCA6B
    x = (x xor (x >> 13)) * 0xC2B2AE35
    x = x xor (x >> 16)
    h(name, i) = (x >> 8) / 2^24                                  in [0, 1), exact in float32

To check your code: h("images", 0) = {control}.

An array among the inputs or options is `{{"hash": name, "shape": [...], "dtype": ...}}` with one of these rules:
`scale` and `shift` (scale h + shift), `above` (1 where h is above it, else 0), `levels` n (floor(n h) / n), or no rule
for `uint8` (floor(256 h)). Or it has `values` in place of `hash`. With `repeat` [a, b, ...] the sides of the hashed
array are smaller by these factors, and each element is repeated a times along the first axis, b times along the
second. Compute it in float64 and round it to its type once. Inputs are the arguments of the function, or of the
module's forward, in their order. A list of arrays, an object with fields (`{{"angle": ...}}`) and a plain number are
one argument each. Options are the other arguments of the function or class; a method's are listed completely.

`weights` maps each key, which is the public checkpoint's where there is one, to its shape. With h of the key, and n
the number of elements divided by the first side, in float64, rounded to float32:

    two or more axes                            (h - 0.5) * sqrt(12 / n)
    one or none, key ends in weight             0.5 + h
    one or none, key ends in running_var        0.5 + h
    one or none, any other key                  (h - 0.5) * 0.2

Tables of integers that belong to a module are in the case's file as `state/KEY`; most can be computed. Linear weights
are (out, in), convolutions (out, in, height, width), transposed ones (in, out, height, width), as in PyTorch. Batch
norms use their running statistics, except in training steps.

## Arrays to reproduce

`cases/NAME.npz` holds the arrays that the manifest lists under `arrays`. `kept` says in which form: `whole`; `digest`
for large ones: mean, root mean square, mean of the products with h("probe", i) - 0.5, then the {samples} elements at
flat indices floor((k + h("samples", k)) n / {samples}); `picked`: the elements at flat indices `INDEX/NAME`, those
with the largest gradients (where the gradient is next to zero, Adam's first step is the sign of rounding errors).
`allowed` is the largest difference of an element, and ten times that of a mean: the case's tolerance times the largest
absolute value of the array; for the norm of a gradient, times the largest norm of the stage. Types are not compared,
but a float64 case needs float64. Names begin with

    trace/PART            the output of a part of the module (PART as in `weights`; #2 is its second call) in its
                          layout there: inside a Swin block (windows, tokens, channels), windows row by row
    trace/PART<           the input of the part, where no other part computed it
    out, out:FIELD        the result, or one of several, by number where they have no names
    loss/STAGE:TERM       of a training step on the same inputs, from the same weights: the terms of the loss,
    gradient/STAGE/KEY    the norm of each gradient,
    step/STAGE/KEY        the weights after one step of the optimizer

A port writes OTHER/cases/NAME.npz with the same names and whole arrays. It may leave out cases, and every array but
`out`.

    python verify.py OTHER

needs numpy alone. It prints for each case the first array that differs by more than `allowed`, its place and by how
much; the exit code is 1 if there is one.
"""


# -- writing ----------------------------------------------------------------------------------------------------------


def compact(text: str) -> str:
    """Joins the lines of innermost lists and objects of indented JSON."""
    for innermost in (r"\[[^][{}\"]*\]", r"\{[^{}]*\}"):
        text = re.sub(innermost, lambda match: re.sub(r"\n\s*", " ", match.group()), text)
    return text


@functools.cache
def cited() -> list[tuple[str, str]]:
    """Lists (dotted name of a function, line) for every function that a line of a header names."""
    found = []
    for method in METHODS:
        path = audit.PACKAGE / "methods" / method / "method.py"
        for entry in audit.entries(ast.get_docstring(ast.parse(path.read_text()))):
            for file, name in filter(None, (audit.resolve(place, method) for place in entry.places)):
                module = ".".join(file.relative_to(audit.PACKAGE.parent).with_suffix("").parts)
                found.append((f"{module}.{name}", f"{method} ({entry.label}) {entry.formula}"))
    return found


def equations(where: str) -> list[str]:
    """Lists the lines of headers that name a function, or a function of a class: "srdad (7) F_ASPP = ..."."""
    return list(dict.fromkeys(line for name, line in cited() if name == where or name.startswith(f"{where}.")))


def describe(case: Case, arrays: Arrays, state: dict) -> tuple[dict, Arrays]:
    """Makes the entry of a case in the manifest, and the arrays of its file."""
    kept_arrays = {f"state/{key}": value for key, value in state.items() if isinstance(value, np.ndarray)}
    norms: dict[str, float] = {}  # stage -> the largest norm of a gradient
    for name, array in arrays.items():
        if name.startswith("gradient/"):
            norms[name.split("/")[1]] = max(norms.get(name.split("/")[1], 0.0), float(array))
    rows = []
    for name, array in arrays.items():
        if name.startswith("INDEX/"):
            kept_arrays[name] = array
            continue
        index = arrays.get(f"INDEX/{name}")
        limit = WHOLE.get(name.partition("/")[0], WHOLE["out"])
        kept = "picked" if index is not None else "whole" if array.size <= limit else "digest"
        kept_arrays[name] = reduce(array, kept, index)
        largest = max(np.abs(array[np.isfinite(array)].astype(np.float64)).max(initial=0.0), case.scale)
        if name.startswith("gradient/"):
            largest = norms[name.split("/")[1]]
        tolerance = TOLERANCES[case.kind(name, array)]
        rows.append({"name": name, "shape": list(array.shape), "dtype": str(array.dtype), "kept": kept,
                     "allowed": float(f"{tolerance * (largest or 1.0):.3g}")})  # fmt: skip
    kinds = {case.kind(name, array) for name, array in arrays.items() if not name.startswith("INDEX/")}
    options = case.method_options() if case.is_method else case.options
    return {
        "name": case.name, "function": case.where, "documentation": case.documentation,
        "equations": equations(case.where), "inputs": described(case.inputs), "options": described(options),
        "defaults": case.defaults,
        "weights": {key: value for key, value in state.items() if not isinstance(value, np.ndarray)},
        "tolerance": {kind: {"relative": TOLERANCES[kind], "reason": REASONS[kind]} for kind in sorted(kinds)},
        "arrays": rows,
    }, kept_arrays  # fmt: skip


def write_kit(folder: Path) -> None:
    """Writes cases, manifest, README and the program that verifies into an empty folder."""
    (folder / "cases").mkdir(parents=True)
    rows, files = [], {}
    for case in all_cases():
        row, arrays = describe(case, *case.run())
        np.savez_compressed(folder / "cases" / f"{case.name}.npz", **arrays)
        files[case.target.__module__] = inspect.getdoc(inspect.getmodule(case.target))
        rows.append(row)
    manifest = {"format": FORMAT, "adref": __version__, "torch": torch.__version__, "files": files, "cases": rows}
    (folder / "manifest.json").write_text(compact(json.dumps(manifest, indent=1)) + "\n")
    control = {"control": hashed("images", 1)[0], "crc": zlib.crc32(b"images"), "samples": SAMPLES}
    text = README.format(version=__version__, torch=torch.__version__, count=len(rows), **control)
    (folder / "README.md").write_text(text)
    shutil.copy(conformance_verify.__file__, folder / "verify.py")


def export(folder: Path) -> int:
    """Writes a kit, whole or not at all; UserError if the folder exists."""
    refuse_existing(folder, "give a new folder")
    with new_folder(folder) as partial:
        write_kit(partial)
    sizes = [path.stat().st_size for path in folder.rglob("*.*")]
    print(f"{len(list(folder.glob('cases/*')))} cases, {sum(sizes) / 1e6:.1f} MB: {folder}")
    return 0


def verify_own(kit: Path, only: str) -> int:
    """Compares this code with a kit; a case that this code lacks departs."""
    own = {case.name: case for case in all_cases()}
    return verify(kit, lambda case: own[case["name"]].run()[0] if case["name"] in own else {}, only)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 1 where a case departs, 2 for a user's mistake."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("export").add_argument("folder", type=Path, metavar="DIR")
    verifying = commands.add_parser("verify")
    verifying.add_argument("folder", type=Path, metavar="DIR")
    verifying.add_argument("--outputs", type=Path, metavar="OTHER")
    verifying.add_argument("--only", default="*", metavar="PATTERN", help="cases by name, as swin.*")
    given = parser.parse_args(arguments)
    try:
        if given.command == "export":
            return export(given.folder)
        if given.outputs:
            return verify_outputs(given.folder, given.outputs, given.only)
        return verify_own(given.folder, given.only)
    except (KitError, UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
