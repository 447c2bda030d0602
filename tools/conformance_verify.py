"""Compares the arrays of a port, OTHER/cases/*.npz, with a conformance kit of adref.

python verify.py OTHER [--only PATTERN]

Needs numpy alone; every kit holds a copy. For each case that departs it prints the first array that does, in the order
of computation, with place and difference, and whether the result agrees nevertheless. Exit code: 0; 1 where a case
departs; 2 for a folder that is no kit or has no case of it.
"""

import argparse
import difflib
import fnmatch
import json
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

FORMAT = 1
SAMPLES = 128  # elements that are kept of a large array
MOMENTS = ("mean", "root mean square", "mean product with the probe")
Arrays = dict[str, np.ndarray]


class KitError(ValueError):
    """A mistake that the user can mend: one sentence."""


def hashed(name: str, count: int) -> np.ndarray:
    """Computes h(name, 0) to h(name, count - 1) of the kit's README, float64."""
    x = (np.arange(1, count + 1, dtype=np.uint64) * 0x9E3779B9 + zlib.crc32(name.encode())) & 0xFFFFFFFF
    x = ((x ^ (x >> np.uint64(16))) * 0x85EBCA6B) & 0xFFFFFFFF
    x = ((x ^ (x >> np.uint64(13))) * 0xC2B2AE35) & 0xFFFFFFFF
    return ((x ^ (x >> np.uint64(16))) >> np.uint64(8)).astype(np.float64) / 2**24


def places(count: int) -> np.ndarray:
    """Returns the flat indices that are kept of a large array: a hashed one in each of SAMPLES equal parts."""
    return ((np.arange(SAMPLES) + hashed("samples", SAMPLES)) * count / SAMPLES).astype(np.int64)


def reduce(array: np.ndarray, kept: str, index: np.ndarray | None) -> np.ndarray:
    """Reduces a whole array to the form in which the kit keeps it."""
    if kept == "whole":
        return array
    flat = array.ravel()
    if kept == "picked":
        return flat[index]
    exact = flat.astype(np.float64)
    probe = exact @ (hashed("probe", exact.size) - 0.5) / exact.size
    return np.concatenate([[exact.mean(), np.sqrt((exact**2).mean()), probe], exact[places(exact.size)]])


def compare_array(row: dict, expected: np.ndarray, given: np.ndarray, index: np.ndarray | None) -> tuple[float, str]:
    """Measures how far an array is from the kit's, as a share of the allowed difference, and says it in words."""
    if list(given.shape) != row["shape"]:
        scalar = " (a scalar)" if not row["shape"] else ""
        return np.inf, f"has the shape {list(given.shape)} in place of {row['shape']}{scalar}"
    if given.dtype.kind not in "biuf":
        return np.inf, f"holds {given.dtype}, no numbers"
    mine, theirs = (np.asarray(a, np.float64).ravel() for a in (expected, reduce(given, row["kept"], index)))
    digest = row["kept"] == "digest"
    allowed = np.full(mine.shape, row["allowed"])
    allowed[: 3 if digest else 0] /= 10  # the errors of many elements all but cancel in a mean
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = np.abs(mine - theirs)
        shares = np.where(apart == 0, 0.0, apart / allowed)
    shares[np.isnan(shares)] = np.inf
    if not shares.size:
        return 0.0, ""
    worst = int(shares.argmax())
    values = f"{theirs[worst]:.7g} in place of {mine[worst]:.7g}"
    if digest and worst < 3:
        words = f"has the {MOMENTS[worst]} {values}"
    else:
        flat = places(given.size)[worst - 3] if digest else index[worst] if index is not None else worst
        place = ", ".join(str(int(i)) for i in np.unravel_index(flat, given.shape))
        words = f"is {values} at ({place})" if given.ndim else f"is {values}"
    if digest:
        turned = shares[:2].max() <= 1 < shares[3:].max()
    else:
        turned = given.size > 1 and np.all(np.abs(np.sort(mine) - np.sort(theirs)) <= allowed)
    hint = "; the same values in another order?" if turned and shares[worst] > 1 else ""
    return float(shares[worst]), f"{words}, allowed is {allowed[worst]:.3g}{hint}"


def compare(case: dict, expected: Arrays, given: Arrays) -> tuple[list[str], float]:
    """Describes the departures of a case; returns also the largest share of the allowed difference among the rest."""
    wrong: list[tuple[str, str]] = []
    compared, nearest = 0, 0.0
    for row in case["arrays"]:
        name = row["name"]
        if name in given:
            share, words = compare_array(row, expected[name], given[name], expected.get(f"INDEX/{name}"))
            compared += 1
        elif name.partition(":")[0] == "out":
            share, words = np.inf, "is missing"
        else:
            continue
        if share > 1:
            wrong.append((name, words))
        else:
            nearest = max(nearest, share)
    lines = []
    if wrong:
        result = any(name.partition(":")[0] == "out" for name, _ in wrong)
        lines.append(f"{case['name']} ({case['function']}): {wrong[0][0]} {wrong[0][1]}; {len(wrong)} depart, "
                     f"{compared} compared; the result {'departs' if result else 'agrees'}")  # fmt: skip
    known = [row["name"] for row in case["arrays"]]
    unknown = sorted(set(given) - set(known) - set(expected))
    for name in unknown[:3]:
        near = difflib.get_close_matches(name, known, n=1)
        lines.append(f"{case['name']} has no array {name}" + (f"; it has {near[0]}" if near else ""))
    if len(unknown) > 3:
        lines.append(f"{case['name']}: {len(unknown) - 3} more such names")
    return lines, nearest


def read_arrays(path: Path) -> Arrays:
    """Reads the arrays of a case's file.

    Raises:
        KitError: a damaged file.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile):
        raise KitError(f"{path} cannot be read: it is no .npz of plain arrays") from None


def read_manifest(kit: Path) -> dict:
    """Reads a kit's manifest.

    Raises:
        KitError: no manifest, or one of another format.
    """
    try:
        manifest = json.loads((kit / "manifest.json").read_text())
        found = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KitError(f"{kit} is no kit: its manifest.json cannot be read ({error})") from None
    if found != FORMAT:
        raise KitError(f"{kit}: the kit has format {found}, this program reads {FORMAT}")
    return manifest


def verify(kit: Path, given: Callable[[dict], Arrays | None], only: str = "*") -> int:
    """Compares the cases of a kit and prints departures; returns the exit code, 1 where there are any.

    Args:
        kit: its folder.
        given: returns the arrays for a case of the manifest; None: it is left out.
        only: pattern of case names.

    Raises:
        KitError: no kit, or a damaged one.
    """
    failed, agreed, nearest = 0, 0, (0.0, "")
    cases = [case for case in read_manifest(kit)["cases"] if fnmatch.fnmatch(case["name"], only)]
    for case in cases:
        try:
            arrays = given(case)
        except KitError as error:
            failed += 1
            print(f"{case['name']}: {error}")
            continue
        if arrays is not None:
            lines, share = compare(case, read_arrays(kit / "cases" / f"{case['name']}.npz"), arrays)
            failed, agreed = failed + bool(lines), agreed + (not lines)
            nearest = max(nearest, (share, case["name"]))
            print("".join(f"{line}\n" for line in lines), end="")
    left = len(cases) - failed - agreed
    print(f"{agreed} of {len(cases)} cases agree, {failed} depart, {left} were left out")
    if nearest[0]:
        print(f"largest difference among the others: {nearest[1]}, {nearest[0]:.2g} of the allowed one")
    return int(failed > 0)


def verify_outputs(kit: Path, outputs: Path, only: str = "*") -> int:
    """Compares the files of a port with a kit.

    Raises:
        KitError: no kit, a damaged one, or no file of `outputs` is a case of it.
    """
    names = {case["name"] for case in read_manifest(kit)["cases"]}
    files = {path.stem: path for path in sorted((outputs / "cases").glob("*.npz"))}
    if not set(files) & names:
        raise KitError(f"{outputs}: expected cases/NAME.npz of at least one case of {kit}; found none")
    for name in sorted(set(files) - names):
        near = difflib.get_close_matches(name, names, n=1)
        print(f"{files[name]} is no case of this kit" + (f"; {near[0]} is one" if near else ""))
    return verify(kit, lambda case: read_arrays(files[case["name"]]) if case["name"] in files else None, only)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outputs", type=Path, metavar="OTHER")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="cases by name, as swin.*")
    given = parser.parse_args(arguments)
    try:
        return verify_outputs(Path(__file__).parent, given.outputs, given.only)
    except KitError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
