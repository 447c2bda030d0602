"""Settings of a run: from a command line for a new run, from config.json and a command line for a resumed one."""

import argparse
import dataclasses
import itertools
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adref import options as option_tools
from adref.data.layouts import find_category
from adref.data.sample import CATEGORIES, write_sample_data
from adref.method import Trainable
from adref.methods import METHODS, find_method
from adref.options import UserError, flag, flags_given, option, replace, to_json
from adref.run.directory import read_config
from adref.run.files import refuse_existing, safe_name


@dataclass(frozen=True)
class RunSettings:
    """Settings of a training run that belong to no method."""

    data: str | None = option(None, "folder of the data set; none: generated sample pictures", "adref")
    category: tuple[str, ...] = option((), "category, needed where there are several; some methods take more", "adref")
    textures: str | None = option(
        None, "folder of texture pictures; none: generated textures", "adref", kind="substitution",
        paper="DTD, a data set of photographs", why="nothing is downloaded; the command says so")  # fmt: skip
    defect_sizes: str | None = option(
        None, "CSV of height,width,weight (python -m adref.synthesize --sizes-from MASKS)", "adref")  # fmt: skip
    anomaly_images: str | None = option(None, "folder of whole anomalous pictures (python -m adref.synthesize RUN), "
                                        "perhaps one a category", "adref")  # fmt: skip
    weights: tuple[str, ...] = option((), "published weights to start from, files joined by commas", "adref")
    backbone_weights: str | None = option(
        None, "published weights of a frozen feature extractor, or random (for tests)", "adref")  # fmt: skip
    seed: int = option(0, "seed of all randomness", "adref", limits=(0, 2**63 - 1))
    device: str = option("auto", "auto, cpu, cuda or cuda:N", "adref")
    precision: Literal["fp32", "bf16"] = option("fp32", "bf16: networks under autocast, losses in fp32", "adref")
    compile: bool = option(False, "torch.compile for the networks: a slow start, other last bits", "adref")
    holdout: float = option(
        0.1, "share of the normal training images kept for the threshold", "adref", limits=(0, 0.9),
        kind="substitution", paper="all normal images train",
        why="a decision threshold must come from neither training nor test images; 0 is the papers' way")  # fmt: skip
    false_alarm_rate: float = option(
        0.05, "share of normal images that the threshold may call anomalous", "adref", limits=(1e-6, 1))  # fmt: skip
    workers: int = option(1, "processes that corrupt images; changes no number", "adref", limits=(0, 256))
    start_method: Literal["fork", "spawn", "forkserver"] = option("fork", "how they start; changes no number", "adref")
    memory_limit: float = option(2.0, "GiB of decoded pictures kept in memory", "adref", limits=(0, math.inf))
    checkpoint_seconds: float = option(60.0, "seconds between checkpoints", "adref", limits=(0, math.inf))
    checkpoint_steps: int = option(0, "steps between checkpoints; 0: by time alone", "adref", limits=(0, math.inf))


PATHS = ("data", "textures", "defect_sizes", "anomaly_images", "backbone_weights")
# A resumed run may change these: no weight depends on them, and contents are compared by digest.
FREE_ON_RESUME = ("data", "textures", "defect_sizes", "anomaly_images", "device", "compile", "workers", "start_method",
                  "memory_limit", "checkpoint_seconds", "checkpoint_steps", "false_alarm_rate")  # fmt: skip


def parse_arguments(argv: list[str], description: str) -> argparse.Namespace:
    """Parses the command line of adref.train, with the options of its method: the first word, or that of the run."""
    folder = option_tools.Parser(add_help=False, allow_abbrev=False)
    folder.add_argument("--out", metavar="RUN", type=Path, help="run directory [runs/CATEGORY-METHOD]")
    folder.add_argument("--resume", action="store_true", help="go on with the run in --out")
    known, name = folder.parse_known_args(argv)[0], "draem"
    if argv and not argv[0].startswith("-"):
        name = argv[0]
    elif known.resume and known.out:
        name = read_config(known.out)["method"]
    method, words = find_method(name), {"description": description, "parents": [folder], "allow_abbrev": False}
    parser = option_tools.Parser(prog="python -m adref.train", **words)
    parser.add_argument("method", nargs="?", help=f"one of: {', '.join(METHODS)} [draem]; must stand first")
    option_tools.add_variants(parser, method.presets, method.ablations)
    option_tools.add_flags(parser, RunSettings, "flags", "run settings")
    option_tools.add_flags(parser, method.Options, "options", f"options of {name} (meaning, default, source)")
    return option_tools.parse_known(parser, argv)


def new_config(arguments: argparse.Namespace) -> dict:
    """Makes the configuration of a new run from the command line."""
    settings = replace(RunSettings(), flags_given(arguments, "flags"))
    if "" in settings.weights:
        raise UserError("--weights takes paths joined by commas; got an empty name")
    name, generated = arguments.method or "draem", settings.data is None
    method, changes = find_method(name), flags_given(arguments, "options")
    preset, ablation = arguments.preset or ("tiny" if generated else "paper"), arguments.ablation
    options = option_tools.build(method.Options, method.presets, method.ablations, preset, ablation, changes)
    data, category, options = choose_categories(method, options, settings)
    paths = {key: os.path.abspath(value) for key in PATHS if (value := getattr(settings, key))}  # for any folder
    if settings.backbone_weights == "random":
        del paths["backbone_weights"]
    paths |= {"data": os.path.abspath(data), "weights": tuple(map(os.path.abspath, settings.weights))}
    settings = dataclasses.replace(settings, **paths, category=tuple(category.split(",")))
    return {"method": name, "preset": preset, "ablation": ablation, "changed": changes, "category": category,
            "generated": generated, "options": to_json(options), "flags": to_json(settings)}  # fmt: skip


def choose_categories(method: type[Trainable], options, settings: RunSettings) -> tuple[str | Path, str, object]:
    """Returns the data's folder (generated without --data), its categories joined, and options that hold the names."""
    data, names = settings.data, settings.category
    if data is None:
        if unknown := [name for name in names if name not in CATEGORIES]:
            raise UserError(f"--category {unknown[0]}: the generated sample data has {', '.join(CATEGORIES)}")
        data, names = write_sample_data(Path("runs/sample-data")), names or CATEGORIES[:1]
    chosen = find_category(Path(data), ",".join(names) if names else None)
    if not chosen.train:
        raise UserError(f"category {chosen.name} in {chosen.root} has no normal training image")
    found = tuple(sorted({record.category for record in chosen.train}))
    several = "categories" in option_tools.names(method.Options, all_fields=True)
    if len(found) > 1 and not several:
        raise UserError(f"--category: this method learns one category, got {', '.join(found)}")
    return data, chosen.name, dataclasses.replace(options, categories=found) if several else options


def new_run(arguments: argparse.Namespace) -> tuple[Path, dict]:
    """Makes the folder's name and the configuration of a new run from the command line."""
    if arguments.out:  # now, and not after minutes of reading
        refuse_existing(arguments.out, "give --resume to go on with it, or another name")
    config = new_config(arguments)
    path = Path("runs") / safe_name(f"{config['category'].replace(',', '+')}-{config['method']}")
    names = (path if i == 1 else path.with_name(f"{path.name}-{i}") for i in itertools.count(1))
    return arguments.out or next(name for name in names if not name.exists()), config


def resumed_run(arguments: argparse.Namespace) -> tuple[Path, dict]:
    """Returns the folder and the configuration of a run that is resumed; the command line must not contradict it."""
    if arguments.out is None:
        raise UserError("--resume needs --out RUN, the run directory to go on with")
    config = read_config(arguments.out)
    for name in ("method", "preset", "ablation"):
        if getattr(arguments, name) not in (None, config[name]):
            raise UserError(f"--resume: {name} was {config[name]}, now {getattr(arguments, name)}; start a new run")
    for part, kind in (("flags", RunSettings), ("options", find_method(config["method"]).Options)):
        before, given = replace(kind(), config[part]), flags_given(arguments, part)
        if part == "flags" and set(given.get("category", "").split(",")) == set(before.category):
            del given["category"]  # the same ones in another order
        now = replace(before, given)
        for name in given:
            was, value = getattr(before, name), getattr(now, name)
            if was != value and name not in FREE_ON_RESUME:
                raise UserError(f"--resume: {flag(name)} was {was}, now {value}; start a new run for that")
        config[part] = to_json(now)
    return arguments.out, config
