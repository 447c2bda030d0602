"""The porter's kit: arrays that a port to another language or framework must reproduce.

python tools/conformance.py export DIR                  writes manifest.json, README.md and cases/*.npz
python tools/conformance.py verify DIR                  this code against a kit
python tools/conformance.py verify DIR --outputs OTHER  somebody's OTHER/cases/*.npz against a kit

Inputs and weights are not in it: an integer hash of (array name, index) gives them in any language, without torch, a
random number generator or a file. What the kit holds are the outputs of every layer, loss, metric, image operation and
synthesis step, and of every method at its preset `tiny` from end to end, with what its parts gave on the way. The cases
stand in conformance_cases.py; the README of a kit says the rest.
"""

import argparse
import functools
import json
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

import audit
import numpy as np
import torch
from conformance_cases import REASONS, TOLERANCES, Arrays, Case, all_cases, described
from hash_recipe import hashed

from adref import __version__
from adref.methods import METHODS
from adref.options import UserError

FORMAT = 1
WHOLE = {"trace": 512, "out": 2**17}  # elements up to which an array is kept whole
SAMPLES = 128

README = """# Conformance kit of adref {version}

{count} cases, made with torch {torch}. `manifest.json` lists them in an order in which a port can be written: losses
and metrics, image operations and synthesis, layers, whole methods. Each case has a function or class of adref, what
it computes, the equations that it stands for, inputs, options, weights, and the arrays that must come out, in the
order in which they arise.

## Inputs and weights

All integers are unsigned, have 32 bits and wrap around. h(name, i) is the value at flat index i (row-major) of an
array:

    x = crc32(name as UTF-8) + 0x9E3779B9 * (i + 1)
    x = (x xor (x >> 16)) * 0x85EBCA6B
    x = (x xor (x >> 13)) * 0xC2B2AE35
    x = x xor (x >> 16)
    h(name, i) = (x >> 8) / 2^24                                  in [0, 1), exact in float32

For control: h("images", 0) = {control}.

An input, wherever it stands among inputs or options, is `{{"hash": name, "shape": [...], "dtype": ...}}` with one of
`scale` and `shift` (scale h + shift, computed in float64, rounded once), `above` (1 where h is above it, else 0),
`levels` n (floor(n h) / n), or none of them for `uint8` (floor(256 h)). Or it is `{{"values": [...]}}`. The inputs
are the arguments of the function, or of the module's forward, in their order; a list of arrays is one argument.

A weight is an entry of `weights` (its key in adref, which is the public checkpoint's where there is one, and its
shape). With h of its key, and n the number of elements divided by the first side:

    two or more axes                            (h - 0.5) * sqrt(12 / n)
    one or none, key ends in weight             0.5 + h
    one or none, key ends in running_var        0.5 + h
    one or none, any other key                  (h - 0.5) * 0.2

Tensors of integers lie in the case's file as `state/KEY`. Linear weights are (out, in), convolutions (out, in,
height, width), transposed ones (in, out, height, width), as in PyTorch. Batch norms use their running statistics,
except in training steps. Options that are not listed have adref's defaults; those of a method are listed all.

## What must come out

`cases/NAME.npz` holds it, under the names of `arrays`. `kept` says how: `whole`; `digest` for the large ones: mean,
root mean square, mean of the products with h("probe", i) - 0.5, then the {samples} elements at flat indices floor(i n
/ {samples}); `picked`: the elements at flat indices `INDEX/NAME`, those with the largest gradients (where the
gradient is next to zero, Adam's first step is the sign of rounding). `allowed` is the largest difference of an
element (of NaN and NaN there is none): the case's tolerance times the largest absolute value of the array, and for
the norm of a gradient times the largest norm of the stage. Names begin with

    trace/PART            what a part of the module gave (PART as in `weights`; #2 is its second call)
    out, out:FIELD        the result, or one of several
    loss/STAGE:TERM       of a training step on the same inputs, from the same weights: the terms of the loss,
    gradient/STAGE/KEY    the norm of each gradient,
    step/STAGE/KEY        the weights after one step of the optimiser

A port writes OTHER/cases/NAME.npz with the same names, always whole arrays. It may leave out cases, and everything
but `out`.

    python tools/conformance.py verify DIR --outputs OTHER

prints for each case the first array that departs, and by how much; its exit code is 1 where there is one.
"""


def digest(array: np.ndarray) -> np.ndarray:
    """What is kept of a large array."""
    flat = array.astype(np.float64).ravel()
    probe = flat @ (hashed("probe", flat.size).double().numpy() - 0.5) / flat.size
    samples = flat[np.arange(SAMPLES) * flat.size // SAMPLES]
    return np.concatenate([[flat.mean(), np.sqrt((flat**2).mean()), probe], samples])


def reduce(array: np.ndarray, kept: str, index: np.ndarray | None) -> np.ndarray:
    """A whole array as the kit keeps it."""
    if kept == "picked":
        return array.ravel()[index]
    return digest(array) if kept == "digest" else array


# -- writing ----------------------------------------------------------------------------------------------------------


@functools.cache
def cited() -> list[tuple[str, audit.Entry]]:
    """(method, entry) for every line of every header."""
    texts = ((method, audit.source_files()[method].read_text().split('"""')[1]) for method in METHODS)
    return [(method, entry) for method, header in texts for entry in audit.entries(header)]


def equations(where: str) -> list[str]:
    """The lines of headers that name a function, or a function of a class: "srdad (7) F_ASPP = ..."."""
    module, _, name = where.removeprefix("adref.").rpartition(".")
    found = []
    for method, entry in cited():
        own = name if module == f"methods.{method}" else f"{module.rpartition('.')[2]}.{name}"
        if any(place == own or place.startswith(f"{own}.") for place in entry.places):
            found.append(f"{method} ({entry.label}) {entry.formula}")
    return found


def describe(case: Case, arrays: Arrays, state: dict) -> tuple[dict, Arrays]:
    """One case's entry of the manifest, and what its file holds."""
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
        largest = np.abs(array[np.isfinite(array)].astype(np.float64)).max(initial=0.0)
        if name.startswith("gradient/"):
            largest = norms[name.split("/")[1]]
        tolerance = TOLERANCES[case.kind(name, array)]
        rows.append({"name": name, "shape": list(array.shape), "dtype": str(array.dtype), "kept": kept,
                     "allowed": float(f"{tolerance * (largest or 1.0):.3g}")})  # fmt: skip
    kinds = {case.kind(name, array) for name, array in arrays.items() if not name.startswith("INDEX/")}
    tolerance = {kind: {"relative": TOLERANCES[kind], "reason": REASONS[kind]} for kind in sorted(kinds)}
    options = case.method_options() if case.is_method else case.options
    return {
        "name": case.name, "function": case.where, "computes": case.about, "source": case.source,
        "equations": equations(case.where),
        "inputs": described(case.inputs), "options": described(options),
        "weights": {key: value for key, value in state.items() if not isinstance(value, np.ndarray)},
        "tolerance": tolerance, "arrays": rows,
    }, kept_arrays  # fmt: skip


def compact(text: str) -> str:
    """Indented JSON with innermost lists and objects on one line each."""
    for innermost in (r"\[[^][{}]*\]", r"\{[^{}]*\}"):
        text = re.sub(innermost, lambda match: re.sub(r"\s+", " ", match.group()), text)
    return text


def write_kit(folder: Path) -> None:
    """All cases, the manifest and the README, into an empty folder."""
    (folder / "cases").mkdir(parents=True)
    rows = []
    for case in all_cases():
        row, arrays = describe(case, *case.run())
        np.savez_compressed(folder / "cases" / f"{case.name}.npz", **arrays)
        rows.append(row)
    manifest = {"format": FORMAT, "adref": __version__, "torch": torch.__version__, "samples": SAMPLES, "cases": rows}
    (folder / "manifest.json").write_text(compact(json.dumps(manifest, indent=1)) + "\n")
    words = {"version": __version__, "torch": torch.__version__, "samples": SAMPLES}
    (folder / "README.md").write_text(README.format(count=len(rows), control=float(hashed("images", 1)), **words))


def export(folder: Path) -> int:
    """Writes a kit; nothing is left where it fails.

    Raises:
        UserError: the folder is there already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already; a kit wants a new folder")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        write_kit(partial)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sizes = [path.stat().st_size for path in folder.rglob("*.*")]
    print(f"{len(list(folder.glob('cases/*')))} cases, {sum(sizes) / 1e6:.1f} MB: {folder}")
    return 0


# -- verifying --------------------------------------------------------------------------------------------------------


def read_kit(folder: Path) -> dict:
    """A kit's manifest.

    Raises:
        UserError: there is none, or one of another format.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        found = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is no kit: its manifest.json cannot be read ({error})") from None
    if found != FORMAT:
        raise UserError(f"{folder}: the kit has format {found}, this program reads {FORMAT}")
    return manifest


def read_arrays(path: Path) -> Arrays:
    """The arrays of a case's file.

    Raises:
        UserError: a damaged file.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as .npz: {error}") from None


def difference(row: dict, expected: np.ndarray, given: np.ndarray, index: np.ndarray | None) -> float | str:
    """The largest difference of an array to the kit's, or in words why it cannot be told."""
    if list(given.shape) != row["shape"]:
        return f"has the shape {list(given.shape)} in place of {row['shape']}"
    if given.dtype.kind not in "biuf":
        return f"holds {given.dtype}, no numbers"
    mine, theirs = (np.asarray(a, np.float64).ravel() for a in (expected, reduce(given, row["kept"], index)))
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        apart = np.where(mine == theirs, 0.0, np.abs(mine - theirs))
    apart = np.where(np.isnan(mine) & np.isnan(theirs), 0.0, np.where(np.isnan(apart), np.inf, apart))
    return float(apart.max(initial=0.0))


def compare(case: dict, expected: Arrays, given: Arrays) -> tuple[list[str], int, tuple[float, str]]:
    """What departs, in the order of a case's arrays; how many were compared; what comes nearest to departing."""
    lines, compared, nearest = [], 0, (0.0, "")
    for row in case["arrays"]:
        name = row["name"]
        if name not in given:
            if name.partition(":")[0] == "out":
                lines.append(f"{name} is missing")
            continue
        compared += 1
        apart = difference(row, expected[name], given[name], expected.get(f"INDEX/{name}"))
        if isinstance(apart, str):
            lines.append(f"{name} {apart}")
        elif apart > row["allowed"]:
            lines.append(f"{name} differs by {apart:.3g}, allowed is {row['allowed']:g}")
        elif apart:
            nearest = max(nearest, (apart / row["allowed"], f"{case['name']}: {name}"))
    unknown = sorted(set(given) - {row["name"] for row in case["arrays"]} - set(expected))
    return lines + [f"{name} is no array of this case" for name in unknown], compared, nearest


def verify(folder: Path, outputs: Path | None) -> int:
    """Compares this code, or what a port has written, with a kit; 1 where something departs.

    Raises:
        UserError: no kit, or outputs of which no file is a case's.
    """
    manifest, own = read_kit(folder), {case.name: case for case in all_cases()}
    if outputs and not any((outputs / "cases" / f"{case['name']}.npz").is_file() for case in manifest["cases"]):
        raise UserError(f"{outputs}: expected cases/NAME.npz of at least one case of {folder}; found none")
    failed, left_out, nearest = 0, [], (0.0, "none")
    for case in manifest["cases"]:
        name = case["name"]
        path = outputs / "cases" / f"{name}.npz" if outputs else None
        if (path and not path.is_file()) or (not path and name not in own):
            left_out.append(name)
            continue
        given = read_arrays(path) if path else own[name].run()[0]
        lines, compared, own_nearest = compare(case, read_arrays(folder / "cases" / f"{name}.npz"), given)
        nearest = max(nearest, own_nearest)
        if lines:
            failed += 1
            print(f"{name} ({case['function']}): {lines[0]}; {len(lines)} of {compared} arrays depart")
    print(f"{len(manifest['cases']) - failed - len(left_out)} of {len(manifest['cases'])} cases agree, {failed} depart"
          + (f", {len(left_out)} were left out" if left_out else ""))  # fmt: skip
    print(f"nearest to departing: {nearest[1]}, by {nearest[0]:.2g} of what is allowed")
    return int(failed > 0 or (left_out != [] and outputs is None))


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 1 where something departs, 2 for a mistake of the person at the keyboard."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("export").add_argument("folder", type=Path, metavar="DIR")
    verifying = commands.add_parser("verify")
    verifying.add_argument("folder", type=Path, metavar="DIR")
    verifying.add_argument("--outputs", type=Path, metavar="OTHER")
    given = parser.parse_args(arguments)
    try:
        return export(given.folder) if given.command == "export" else verify(given.folder, given.outputs)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
