"""Tests what the papers claim for their parts, by pairs of runs at a size that a CPU trains.

python tools/claims.py commands --data ROOT ... --categories NAME ... --out DIR [WORDS] [-- FLAGS] | sh -e
python tools/claims.py table DIR

A claim has one metric and two arms, which differ in the options that it names and in nothing else; a few have one arm
and hold one of its metrics against another. `commands` prints what trains the arms of all claims, each once for each
category and seed: WORDS are those of adref.benchmark, such as --devices, FLAGS those of adref.train, such as --textures
FOLDER or --backbone-weights FILE. Printed again, the commands go on where they stopped. `table` reads DIR and writes
tools/CLAIMS.md, at any time; a claim of which DIR has no pairs keeps its line.
"""

import argparse
import collections
import csv
import itertools
import math
import shlex
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

from scipy.special import stdtrit

from adref import benchmark
from adref.options import UserError, flag
from adref.run.cli import entry_point
from adref.run.config import FREE_ON_RESUME
from adref.run.directory import read_config
from adref.run.files import safe_name, write_text
from adref.run.summary import read_cells, read_metrics


class Claim(NamedTuple):
    """A sentence of a paper, or what its method implies, that two numbers decide."""

    method: str
    words: str  # what the paper says, shortened
    source: str
    figure: tuple[float, float] | None  # the paper's numbers of both arms, means over its categories
    arms: tuple[str | None, str | None]  # ablations; None: the default
    options: tuple[str, ...]  # in which the arms differ
    metric: str
    against: str | None = None  # takes the place of the second arm: another metric of the first


LEAST_CATEGORIES, LEAST_SEEDS = 3, 2  # with fewer a claim counts as not measured
CONFIDENCE = 0.95  # of the interval
BLOCKS = (3, 4)  # sides in pixels: SRDAD, section on tiny anomalies
STRENGTHS = (0, 0.1, 0.2, 0.5)  # the first three are those of RealNet's table of strengths
FILES = ("backbone_weights", "textures")  # flags that the table names
PICTURES = 100  # of SDAS for each category, for RealNet's arm sdas
TITLES = {
    "srdad": "SRDAD (Scientific Reports 2025, s41598-025-10303-8)",
    "vit_autoencoder": "ViT autoencoder (Sensors 2024, 24(8), 2440)",
    "sernet": "SeRNet (Applied Sciences 2026, 16(4), 1670)",
    "noise_to_norm": "Noise-to-norm (Applied Sciences 2023, 13(22), 12436)",
    "realnet": "RealNet (CVPR 2024)",
    "sdas": "RealNet's synthesis, SDAS (CVPR 2024)",
}
SCORING = [name for name in TITLES if name != "sdas"]
SWIN, ROWS = "table 4, in words: its body is not in the text", "section Experiments, MVTec AD"
VIT, LOST = "ablation on MVTec AD", "the section of experiments is not in the text"
NOISE, ATTENTION = "noise coefficients on MPDD", "table 5, body not in the text: second number from the printed gain"
SELECTION, STATISTICS = "ablation of AFS and RRS on MVTec AD", "figure 5, values not in the text"
ORIGINS, STRENGTH = "anomaly sources on MVTec AD", "section on SDAS, in words"
DRAEM = ("reconstructor", "discriminator", "discriminator_input", "anomaly", "recipe")
IMAGE, PIXEL = "image_auroc", "pixel_auroc"
# fmt: off
CLAIMS = (
    Claim("srdad", "patches of the part itself are better anomalies than DRAEM's textures", "section Method, in words",
          None, ("srdad", "draem-anomalies"), ("anomaly",), IMAGE),
    Claim("srdad", "its reconstructor in place of DRAEM's autoencoder helps detection", SWIN,
          None, (None, "draem-reconstructor"), ("reconstructor",), IMAGE),
    Claim("srdad", "Res-SE and cross attention in the discriminator help localisation", SWIN,
          None, ("draem+", "draem"), ("discriminator",), PIXEL),
    Claim("srdad", "its additions help plain Swin-Unet with DRAEM's U-Net (row srdad-)", SWIN,
          None, ("srdad", "srdad-"), ("reconstructor", "discriminator"), IMAGE),
    Claim("srdad", "the whole detects better than its row draem", ROWS,
          (0.986, 0.980), ("srdad", "draem"), DRAEM, IMAGE),
    Claim("srdad", "the whole localises better than its row draem", ROWS,
          (0.980, 0.973), ("srdad", "draem"), DRAEM, PIXEL),
    *(Claim("srdad", f"a block of {side} x {side} pixels is found more often than none",
            "section on tiny anomalies", None, (None, None), (), f"found {side}", "found 0") for side in BLOCKS),
    Claim("vit_autoencoder", "the memory helps detection", VIT, (0.857, 0.822), ("+m", "base"), ("memory",), IMAGE),
    Claim("vit_autoencoder", "the memory helps localisation", VIT, (0.918, 0.838), ("+m", "base"), ("memory",), PIXEL),
    Claim("vit_autoencoder", "coordinate attention helps detection", VIT,
          (0.845, 0.822), ("+ca", "base"), ("coordinate_attention",), IMAGE),
    Claim("vit_autoencoder", "both help more than neither", VIT,
          (0.912, 0.822), (None, "base"), ("memory", "coordinate_attention"), IMAGE),
    Claim("vit_autoencoder", "both help more than the memory alone", VIT,
          (0.912, 0.857), (None, "+m"), ("coordinate_attention",), IMAGE),
    Claim("vit_autoencoder", "both help more than coordinate attention alone", VIT,
          (0.912, 0.845), (None, "+ca"), ("memory",), IMAGE),
    Claim("sernet", "segmentation and repair help reconstruction (its title): detection", LOST,
          None, (None, "no-segmentation"), ("segmentation",), IMAGE),
    Claim("sernet", "the same: localisation", LOST, None, (None, "no-segmentation"), ("segmentation",), PIXEL),
    Claim("sernet", "small pseudo-anomalies (DPA) beside large ones help the reconstruction", LOST,
          None, (None, "reconstruct-ppa"), ("reconstruct_mix",), IMAGE),
    Claim("sernet", "large pseudo-anomalies (PPA) beside small ones help the reconstruction", LOST,
          None, (None, "reconstruct-dpa"), ("reconstruct_mix",), IMAGE),
    Claim("sernet", "the most similar image by hash repairs better than a random one", "algorithm 2, in words",
          None, (None, "similar-random"), ("similar",), IMAGE),
    Claim("noise_to_norm", "noise in the input (lambda 0.3) helps detection", NOISE,
          (0.9494, 0.7316), ("lambda-0.3", "lambda-0"), ("noise_share",), IMAGE),
    Claim("noise_to_norm", "noise in the input (lambda 0.3) helps localisation", NOISE,
          (0.9780, 0.8807), ("lambda-0.3", "lambda-0"), ("noise_share",), PIXEL),
    Claim("noise_to_norm", "lambda 0.3 is better than 0.2", NOISE,
          (0.9494, 0.9384), ("lambda-0.3", "lambda-0.2"), ("noise_share",), IMAGE),
    Claim("noise_to_norm", "lambda 0.3 is better than 0.4", NOISE,
          (0.9494, 0.9182), ("lambda-0.3", "lambda-0.4"), ("noise_share",), IMAGE),
    Claim("noise_to_norm", "residual attention in place of 1 x 1 convolutions helps detection", ATTENTION,
          (0.9494, 0.6626), (None, "no-attention"), ("block",), IMAGE),
    Claim("noise_to_norm", "residual attention in place of 1 x 1 convolutions helps localisation", ATTENTION,
          (0.9780, 0.8886), (None, "no-attention"), ("block",), PIXEL),
    Claim("realnet", "channels chosen by AFS are better than random ones", SELECTION,
          (0.9965, 0.9939), (None, "rdr"), ("selection",), IMAGE),
    Claim("realnet", "channels chosen by AFS are better than a random projection", SELECTION,
          (0.9965, 0.9909), (None, "rlpr"), ("selection",), IMAGE),
    Claim("realnet", "residuals selected by RRS are better than all", SELECTION,
          (0.9965, 0.9686), (None, "no-rrs"), ("residuals",), IMAGE),
    *(Claim("realnet", f"RRS by maximum and mean is better than by {one} alone", STATISTICS,
            None, (None, f"rrs-{short}"), ("residuals",), IMAGE) for one, short in (("the maximum", "max"),
                                                                                    ("the mean", "mean"))),
    *(Claim("realnet", f"{ours} are a better source of anomalies than {other}", ORIGINS,
            figure, arms, ("anomaly_sources",), IMAGE) for ours, other, arms, figure in (
        ("pictures of SDAS", "textures", ("sdas", "dtd"), (0.9965, 0.9952)),
        ("pictures of SDAS", "patches of NSA", ("sdas", "nsa"), (0.9965, 0.9935)),
        ("pictures of SDAS", "patches of CutPaste", ("sdas", "cut-paste"), (0.9965, 0.9873)),
        ("textures", "patches of CutPaste", ("dtd", "cut-paste"), (0.9952, 0.9873)))),
    *(Claim("sdas", f"strength {high} draws pictures further from the normal ones than {low}", STRENGTH,
            None, (None, None), (), f"distance {high}", f"distance {low}")
      for low, high in itertools.pairwise(STRENGTHS)),
)
# fmt: on
RULE = f"""\
Each line is a claim, decided by pairs of runs of the same category and seed, trained alike but for the options that
the claim names. The difference is the first arm's metric less the second's: its mean over all pairs, with Student's
interval of {CONFIDENCE:.0%} (n - 1 degrees of freedom). **Holds**: the whole interval is above 0; **does not hold**:
it is below 0; **not decided at this size**: 0 lies in it; **not measured**: pairs are missing of at least
{LEAST_CATEGORIES} categories and {LEAST_SEEDS} seeds. Pairs of one category share their pictures, so the intervals are
too narrow; and of forty parts that bring nothing one would be found to hold. A verdict is about this size, these
categories and this code; the papers' figures are means over their own categories at their own size.

"found", by the row srdad: the share of normal test pictures where the map near a block exceeds the 99.9 % quantile of
the same picture's map without block (`tools/studies/tiny.py`; black or white, whichever differs more from the pixels).
"distance": that from a drawn picture to the nearest normal one, root mean square (`tools/studies/strength.py`).
"""
BY_HAND = "<!-- by hand -->\n"  # what follows it in CLAIMS.md stays
HEAD = ["| claim | where | its figure | arms | metric | categories x seeds | difference | verdict |", "|" + "---|" * 8]


def interval(differences: list[float]) -> tuple[float, float]:
    """Computes Student's interval of the mean of two numbers or more."""
    n, mean = len(differences), statistics.fmean(differences)
    half = stdtrit(n - 1, (1 + CONFIDENCE) / 2) * statistics.stdev(differences) / math.sqrt(n)
    return mean - half, mean + half


def verdict(differences: list[float], expected: int) -> str:
    """Applies RULE to the differences of a claim, of which there should be `expected`."""
    if len(differences) < expected:
        return f"not measured ({len(differences)} of {expected})"
    low, high = interval(differences)
    return "holds" if low > 0 else "does not hold" if high < 0 else "not decided at this size"


def read_runs(out: Path) -> dict[tuple, dict | None]:
    """Reads metrics and configuration by (variant, category, seed), None of an unfinished run.

    What the studies found has the method's name for a variant.
    """
    keys = [(row["variant"], row["category"], row["seed"]) for row in read_cells(out)]
    runs = {key: read_metrics(out / key[0] / key[1] / f"seed-{key[2]}") for key in keys}
    for name, number, value, metric in (("tiny", "block", "hit_rate", "found"),
                                        ("strength", "strength", "distance", "distance")):  # fmt: skip
        path = out / "studies" / f"{name}.csv"
        for row in csv.DictReader(path.read_text().splitlines() if path.exists() else ()):
            parts = Path(row["run"]).parts[-3:]
            settings = read_config(out.joinpath(*parts))
            key = settings["method"], parts[1], settings["flags"]["seed"]
            runs.setdefault(key, settings)[f"{metric} {row[number]}"] = float(row[value])
    return runs


def preset_of(method: str, runs: dict) -> str:
    """Finds the preset of a method's runs; "tiny" where nothing is finished; UserError for several."""
    found = sorted({run["preset"] for run in runs.values() if run and run["method"] == method})
    if len(found) > 1:
        raise UserError(f"expected runs of one preset of {method}, found {', '.join(found)}")
    return found[0] if found else "tiny"


def facts(claim: Claim, run: dict) -> dict:
    """Collects what two arms must share: options and flags by name, and the digests of their inputs."""
    free = {*claim.options, *FREE_ON_RESUME}
    return {**{key: value for key, value in {**run["options"], **run["flags"]}.items() if key not in free},
            "the data set": run.get("data_digest"), **run.get("sources", {})}  # fmt: skip


def compare(claim: Claim, runs: dict) -> tuple[dict[tuple, float], int]:
    """Computes the differences of a claim by (category, seed), and how many there should be.

    A category without masks has no pixel metric and is left out. UserError for arms that differ in more than the
    options of the claim.
    """
    preset, places, differences, without = preset_of(claim.method, runs), {key[1:] for key in runs}, {}, set()
    arms = ["-".join(filter(None, (claim.method, preset, arm))) for arm in claim.arms]
    for place in sorted(places):
        ours, other = (runs.get((claim.method if claim.against else arm, *place)) for arm in arms)
        if not ours or not other:
            continue
        (mine, theirs), where = (facts(claim, run) for run in (ours, other)), " seed ".join(map(str, place))
        for name in mine:
            if name in theirs and mine[name] != theirs[name]:
                raise UserError(f"{arms[0]} and {arms[1]}, {where}: expected a difference in "
                                f"{', '.join(claim.options)} alone, found one in {name}")  # fmt: skip
        values = ours.get(claim.metric), other.get(claim.against or claim.metric)
        if None in values:
            without.add(place[0])
        else:
            differences[place] = values[0] - values[1]
    categories, seeds = {category for category, _ in places} - without, {seed for _, seed in places}
    return differences, max(len(categories), LEAST_CATEGORIES) * max(len(seeds), LEAST_SEEDS)


def line(claim: Claim, runs: dict) -> str:
    """Formats a claim as a row of Markdown, which ends with its verdict."""
    found, expected = compare(claim, runs)
    differences = list(found.values())
    text = f"{statistics.fmean(differences):+.3f}" if differences else ""
    text += " ({:+.3f} to {:+.3f})".format(*interval(differences)) if len(differences) > 1 else ""
    text += f", {sum(d > 0 for d in differences)} of {len(differences)} above 0" if differences else ""
    figure = "none" if claim.figure is None else " / ".join(f"{x:.4f}".removesuffix("0") for x in claim.figure)
    arms, metric = [arm or "default" for arm in claim.arms], claim.metric.replace("_auroc", " AUROC")
    if claim.against:
        arms, metric = [claim.metric, claim.against], claim.metric.split()[0]
    places = " x ".join(", ".join(sorted({str(word) for word in part})) for part in zip(*found)) or "none"
    decided = verdict(differences, expected)
    cells = (claim.words, claim.source, figure, f"`{' / '.join(arms)}`", metric, places, text, decided)
    return f"| {' | '.join(cells)} |"


def settings(method: str, runs: dict) -> str:
    """Tells what a method's runs share: preset and flags; "" without runs."""
    own = [run for run in runs.values() if run and run["method"] == method]
    files = ({k: Path(v).name for k in FILES if (v := run["flags"].get(k))} for run in own)
    changed = ({**run["changed"], **named} for run, named in zip(own, files))
    changed = sorted({" ".join(f"{flag(k)} {v}" for k, v in one.items()) for one in changed} - {""})
    return "; ".join([f"Preset {preset_of(method, runs)}", *changed]) + "." if own else ""


def write_table(out: Path, path: Path) -> None:
    """Writes the table of all claims from the runs of a folder.

    A claim of which the folder has no pair keeps its line, unless the file's section is of other settings.
    """
    runs, text, verdicts = read_runs(out), "", collections.Counter()
    before, _, by_hand = (path.read_text() if path.exists() else "").partition(BY_HAND)
    old = {part.split("\n")[0]: part.splitlines() for part in before.split("\n## ")}
    for method, title in TITLES.items():
        lines, shared = old.get(title, [""] * 3), settings(method, runs)
        known = {} if shared and shared != lines[2] else {row.split(" | ")[0]: row for row in lines}
        rows = [line(claim, runs) for claim in CLAIMS if claim.method == method]
        rows = [known.get(row.split(" | ")[0], row) if "| not measured (0 of" in row else row for row in rows]
        text += "\n".join(["", f"## {title}", "", shared or lines[2] or "No runs.", "", *HEAD, *rows, ""])
        verdicts.update(row.split(" | ")[-1].rstrip(" |").split(" (")[0] for row in rows)
    counts = ", ".join(f"{count} {decided}" for decided, count in sorted(verdicts.items()))
    head = f"# What the papers say of their parts\n\nOf {len(CLAIMS)} claims: {counts}.\n"
    head += "Made by `python tools/claims.py table`.\n\n"
    write_text(path, head + RULE + text + (f"\n{BY_HAND}{by_hand}" if by_hand else ""))
    print(f"Of {len(CLAIMS)} claims: {counts}. {path.resolve()}")


def commands(arguments: argparse.Namespace, words: list[str], flags: list[str]) -> list[list[str]]:
    """Lists the commands that train the arms of the claims and measure what no evaluation does."""
    out, module, found = arguments.out, [sys.executable, "-m"], []
    study = [sys.executable, str(Path(__file__).parent / "studies")]
    methods = [word.partition(":")[0] for word in arguments.methods]
    roots, seeds = benchmark.find_roots(arguments.data, arguments.categories), arguments.seeds
    if "realnet" in methods:
        runs = {(c, s): out / "sdas" / safe_name(c) / f"seed-{s}" for s, c in itertools.product(seeds, roots)}
        for (category, seed), run in runs.items():
            words_of = ["--data", roots[category], f"--category={category}", "--seed", seed, "--preset", "tiny"]
            begun = (run / "config.json").exists()
            found.append([*module, "adref.train", *(["--resume"] if begun else ["sdas", *words_of]), "--out", run])
        strengths = ",".join(map(str, STRENGTHS))
        found.append([study[0], f"{study[1]}/strength.py", *runs.values(), "--strengths", strengths, "--out",
                      out / "studies"])  # fmt: skip
        for category in roots:
            found.append([*module, "adref.synthesize", runs[category, seeds[0]], "--n", PICTURES, "--out",
                          out / "pictures" / safe_name(category)])  # fmt: skip
        flags = ["--anomaly-images", out / "pictures", *flags]
    arms = dict.fromkeys(arm for claim in CLAIMS if claim.method in methods for arm in claim.arms if arm)
    given = {"--methods": arguments.methods, "--ablations": arms, "--data": arguments.data, "--categories": roots,
             "--seeds": seeds, "--out": [out]}  # fmt: skip
    given = [str(word) for name, values in given.items() if values for word in (name, *values)] + words
    benchmark.make_cells(benchmark.parse_arguments(given), benchmark.group_flags(list(map(str, flags))))  # checks all
    found.append([*module, "adref.benchmark", *given, "--", *flags])
    for name in (f"{word.replace(':', '-')}-srdad" for word in arguments.methods if word.startswith("srdad:")):
        runs = [out / name / safe_name(category) / f"seed-{seed}" for seed, category in itertools.product(seeds, roots)]
        found.append([study[0], f"{study[1]}/tiny.py", *runs, "--sizes", ",".join(map(str, BLOCKS)), "--colour",
                      "contrast", "--out", out / "studies"])  # fmt: skip
    return [list(map(str, command)) for command in found]


@entry_point
def main(argv: list[str]) -> int:
    """Runs the command line; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    add = kinds.add_parser("commands", help="print what trains the arms and measures").add_argument
    add("--data", nargs="+", type=Path, metavar="ROOT", required=True, help="folders of data sets")
    add("--categories", nargs="+", metavar="NAME", help="[all in the folders]")
    add("--seeds", nargs="+", type=int, default=[0, 1], metavar="N", help="[0 1]")
    add("--out", type=Path, metavar="DIR", required=True, help="folder of all runs")
    add("--methods", nargs="+", default=[f"{name}:tiny" for name in SCORING], metavar="METHOD:PRESET",
        help="realnet brings sdas [all, at tiny]")  # fmt: skip
    add = kinds.add_parser("table", help="write the table of what DIR holds").add_argument
    add("folder", type=Path, metavar="DIR", help="--out of the commands")
    add("--file", type=Path, default=Path(__file__).with_name("CLAIMS.md"), help="[tools/CLAIMS.md]")
    end = argv.index("--") if "--" in argv else len(argv)
    arguments, rest = parser.parse_known_args(argv[:end])
    if arguments.kind == "table":
        if not arguments.folder.is_dir():
            raise UserError(f"expected a folder of runs, found none: {arguments.folder}")
        write_table(arguments.folder, arguments.file)
        return 0
    if wrong := [word for word in arguments.methods if word.count(":") != 1 or word.partition(":")[0] not in SCORING]:
        raise UserError(f"--methods takes METHOD:PRESET, METHOD one of {', '.join(SCORING)}; got {wrong[0]}")
    print("\n".join(map(shlex.join, commands(arguments, rest, argv[end + 1 :]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
