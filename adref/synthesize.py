"""python -m adref.synthesize METHOD [--data ROOT --category NAME] --out DIR [--n 16] [options of the method]
python -m adref.synthesize RUN --out DIR [--n 16] [--strength 0.1 0.2] [options of the sampler]

Shows what a method trains on: the first corrupted examples that `python -m adref.train` would see with the same flags,
as DIR/sheet.png, one picture a step in DIR/examples, DIR/statistics.json, and .csv with a row an example. With
--sizes-from MASKS --out FILE.csv it writes the sizes of the defects in a folder of masks instead, for
`--patch-size histogram`.

RUN is a trained diffusion model of pictures (sdas): it draws N for each category, DIR/CATEGORY/000000.png and so on.
The same command goes on where an earlier one stopped, and no picture is ever written twice.
"""

import csv
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy
import torch
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from adref import options as option_tools
from adref.data.examples import random_stream
from adref.data.layouts import find_category, list_images, require_sound
from adref.data.reader import read_mask
from adref.method import Sources, Trainable
from adref.methods import METHODS, find_method
from adref.methods.sdas.method import to_bytes
from adref.options import UserError
from adref.run.cli import Progress, guarded
from adref.run.config import Flags, choose_categories
from adref.run.directory import find_device, load, read_config, refuse_existing
from adref.run.files import sha256, write_atomically, write_json
from adref.run.loop import training_set
from adref.run.sources import open_sources, split

FLAGS = ("data", "category", "textures", "defect_sizes", "anomaly_images", "seed", "holdout", "memory_limit")
VISIBLE = 1 / 255  # mean over the channels; a change of less is none
SHEET_ROWS = 32
TRIES = 100  # draws for each example that is asked for


class Example(NamedTuple):
    """One corrupted example and how it came about."""

    pictures: dict[str, np.ndarray]  # name -> uint8 (H, W, 3)
    numbers: dict[str, float]


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    return guarded(lambda: run_command(argv))


def run_command(argv: list[str]) -> int:
    """What `main` does when nothing goes wrong."""
    if argv and argv[0] not in METHODS and Path(argv[0]).is_dir():
        return generate(Path(argv[0]), argv[1:])
    if argv and os.sep in argv[0]:
        raise UserError(f"{argv[0]} is no run directory, and no method")
    name = argv[0] if argv and not argv[0].startswith("-") else None
    method = find_method(name) if name else None
    parser = option_tools.Parser(
        prog="python -m adref.synthesize", description=__doc__.split("\n\n", 1)[1], allow_abbrev=False
    )
    parser.add_argument("method", nargs="?", help=f"one of: {', '.join(METHODS)}; must stand first")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder to make (a file, for sizes)")
    parser.add_argument("--n", metavar="N", default="16", help="corrupted examples to show [16]")
    parser.add_argument("--preset", help="as for python -m adref.train [paper; tiny for the sample data]")
    parser.add_argument("--ablation", help="as for python -m adref.train")
    parser.add_argument("--stage", metavar="NAME", help="stage of training, for methods with several [the first]")
    parser.add_argument("--sizes-from", metavar="MASKS", type=Path, help="folder of masks to measure")
    option_tools.add_flags(parser, Flags, "run", "flags, as for python -m adref.train", FLAGS)
    if method:
        option_tools.add_flags(parser, method.Options, "option", f"options of {name} (meaning, default, source)")
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        known = ["out", "n", "preset", "ablation", "stage", "sizes_from", *FLAGS]
        option_tools.refuse_unknown(
            unknown[0].split("=")[0], known + (option_tools.names(method.Options) if method else [])
        )
    if arguments.sizes_from:
        return write_sizes(arguments.sizes_from, arguments.out)
    if method is None:
        raise UserError(f"a method must stand first, one of: {', '.join(METHODS)}")
    count = option_tools.parse("n", int, arguments.n)
    if count < 1:
        raise UserError(f"--n takes 1 or more; got {count}")
    refuse_existing(arguments.out, "give another name")
    flags = option_tools.replace(Flags(), option_tools.flags_given(arguments, "run"))
    preset = arguments.preset or ("paper" if flags.data else "tiny")
    changes = option_tools.flags_given(arguments, "option")
    options = option_tools.build(method.Options, method.presets, method.ablations, preset, arguments.ablation, changes)
    root, category, options = choose_categories(method, options, flags)
    category = find_category(root, category)
    require_sound(category)
    with torch.device("meta"):  # no weight is needed
        built = method(options)
    stage = arguments.stage or built.stages[0].name
    names = [one.name for one in built.stages]
    if stage not in names:
        raise UserError(f"--stage takes one of {', '.join(names)}; got {stage!r}")
    sources, _ = open_sources(built, split(category, flags)[0], flags)
    examples, failed, total = [], [], 0
    for example, notes in draw_examples(built, sources._replace(stage=stage, notes=[]), flags.seed):
        total += 1
        examples += [example] if example else []
        failed += [notes] if notes and not example else []
        if len(examples) == count or total == TRIES * count:
            break
    kinds = [key for key, value in failed[0].items() if not np.ndim(value)] if failed else []
    reasons = {key: sum(notes[key] for notes in failed) for key in kinds}
    if not examples:
        why = (
            f"{len(failed)} came out empty: {reasons}"
            if failed
            else "see the options that mix anomalies and clean examples"
        )
        raise UserError(f"{name} corrupted none of {total} examples; {why}")
    statistics = {
        "method": name, "category": category.name, "preset": preset, "ablation": arguments.ablation, "changed": changes,
        "seed": flags.seed, "survey": sources.statistics, "examples": total, "corrupted": len(examples),
        "came_out_empty": len(failed), "empty_because": reasons, **summarise(examples),
    }  # fmt: skip
    write(arguments.out, examples, {**statistics, "options": option_tools.to_json(built.options)})
    for key, value in statistics.items():
        print(f"{key}: {value}")
    print(f"Sheet: {(arguments.out / 'sheet.png').resolve()}")
    return 0


def draw_examples(method: Trainable, sources: Sources, seed: int) -> Iterator[tuple[Example | None, dict]]:
    """The examples of training in its order, None for a clean one; and what `corrupt` told in `sources.notes`.

    A clean example with notes was meant to be an anomaly, of which nothing came.
    """
    data, epoch = training_set(method, sources, seed), 0
    while True:
        order = method.order(len(data), random_stream(seed, f"order {sources.stage}", epoch))
        for position, index in enumerate(order):
            sources.notes.clear()
            began = time.perf_counter()
            batch = data[epoch, position, int(index)]
            seconds = time.perf_counter() - began
            if not hasattr(batch, "corrupted"):
                raise UserError(f"{type(method).__name__} trains on clean pictures alone: there is nothing to draw")
            mask = getattr(batch, "mask", torch.ones_like(batch.clean[:1]))  # noise, for one, is everywhere
            notes = {key: value for entry in sources.notes for key, value in entry.items()}
            yield describe(batch.clean, batch.corrupted, mask, seconds, notes) if mask.any() else None, notes
        epoch += 1


def describe(clean: Tensor, corrupted: Tensor, mask: Tensor, seconds: float, notes: dict) -> Example:
    """Pictures and numbers of one corrupted example: clean and corrupted (3, H, W), mask (1, H, W)."""
    change = (corrupted - clean).abs()
    shown = {"clean": clean, **{k: torch.from_numpy(v)[None] for k, v in notes.items() if np.ndim(v)},
             "corrupted": corrupted.clamp(0, 1), "mask": mask, "change x 4": (4 * change).clamp(0, 1)}  # fmt: skip
    visible = (change.mean(dim=0) > VISIBLE)[mask[0] > 0].float().mean().item()
    numbers = {"mask_share": mask.mean().item(), "visible_share_of_mask": visible, "milliseconds": 1000 * seconds}
    return Example(
        {k: (v.expand(3, -1, -1).float() * 255).round().byte().permute(1, 2, 0).numpy() for k, v in shown.items()},
        numbers | {key: float(value) for key, value in notes.items() if not np.ndim(value)},
    )


def summarise(examples: list[Example]) -> dict[str, dict[str, float]]:
    """Mean, smallest, median and largest of every number."""
    columns = {key: np.array([example.numbers[key] for example in examples]) for key in examples[0].numbers}
    functions = (("mean", np.mean), ("least", np.min), ("median", np.median), ("most", np.max))
    return {key: {word: round(float(f(column)), 5) for word, f in functions} for key, column in columns.items()}


def write(out: Path, examples: list[Example], statistics: dict) -> None:
    """The folder, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    partial = out.with_name(f".{out.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "examples").mkdir(parents=True)
        for i, example in enumerate(examples):
            for name, picture in example.pictures.items():
                Image.fromarray(picture).save(partial / "examples" / f"{i:04d}_{name.replace(' ', '_')}.png")
        sheet(examples[:SHEET_ROWS]).save(partial / "sheet.png")
        write_json(partial / "statistics.json", statistics)
        names = list(examples[0].numbers)
        rows = [["example", *names]] + [[i, *(e.numbers[n] for n in names)] for i, e in enumerate(examples)]
        with open(partial / "statistics.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
        os.replace(partial, out)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from None


def sheet(examples: list[Example]) -> Image.Image:
    """A row an example, a column a picture, names above."""
    names = list(examples[0].pictures)
    height, width = examples[0].pictures[names[0]].shape[:2]
    gap, head = 4, 16
    page = Image.new("RGB", ((width + gap) * len(names) - gap, head + (height + gap) * len(examples) - gap), "white")
    for column, name in enumerate(names):
        ImageDraw.Draw(page).text((column * (width + gap) + 2, 2), name, fill="black")
        for row, example in enumerate(examples):
            page.paste(Image.fromarray(example.pictures[name]), (column * (width + gap), head + row * (height + gap)))
    return page


# -- pictures from a trained model ------------------------------------------------------------------------------------


def generate(run: Path, argv: list[str]) -> int:
    """Draws pictures from a run of sdas into a folder a category; goes on with a folder that it began.

    Raises:
        UserError: another kind of run, options that do not fit, or a folder that was begun otherwise.
    """
    model = load(run, kind=Trainable)
    if not hasattr(model, "sample"):
        raise UserError(f"{run} holds {read_config(run)['method']}, which draws no pictures; expected a run of sdas")
    parser = option_tools.Parser(prog="python -m adref.synthesize RUN", allow_abbrev=False)
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder to make, or to go on with")
    parser.add_argument("--n", metavar="N", default="16", help="pictures of each category [16]")
    parser.add_argument("--category", metavar="NAME", nargs="+", help="some of the categories [all]")
    parser.add_argument("--seed", default="0", help="seed of all randomness [0]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    title = "options of the sampler (as the run has them, unless given; defaults of the method in brackets)"
    option_tools.add_flags(parser, model.Options, "option", title, model.sampling)
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        option_tools.refuse_unknown(
            unknown[0].split("=")[0], ["out", "n", "category", "seed", "device", *model.sampling]
        )
    count, seed = (option_tools.parse(name, int, getattr(arguments, name)) for name in ("n", "seed"))
    if count < 1 or not 0 <= seed < 2**63:
        raise UserError(f"--n takes 1 or more, --seed 0 to 2^63 - 1; got {count}, {seed}")
    options = option_tools.replace(model.options, option_tools.flags_given(arguments, "option"))
    with torch.device("meta"):
        type(model)(options)  # refuses what does not fit
    if options.guidance_scale and model.classifier is None:
        raise UserError(f"--guidance-scale: {run} was trained without it and has no classifier")
    model.options = options
    model.to(find_device(arguments.device))
    # A single category, or a model that tells none apart, has label 0.
    known = list(options.categories) if model.classes or len(options.categories) == 1 else ["all"]
    chosen = known if arguments.category is None else sorted(set(",".join(arguments.category).split(",")))
    if unknown := sorted(set(chosen) - set(known)):
        raise UserError(f"--category: {run} draws {', '.join(known)}; got {unknown[0]}")
    settings = {
        "run": str(run.resolve()), "checkpoint_sha256": sha256(run / "checkpoint.pt"), "seed": seed,
        **{name: option_tools.to_json(options)[name] for name in model.sampling},
    }  # fmt: skip
    begin(arguments.out, settings)
    suffix, progress, began, drawn = {"png": ".png", "jpeg75": ".jpg"}[options.file_format], Progress(), time.time(), 0
    files = {(name, i): arguments.out / name / f"{i:06d}{suffix}" for name in chosen for i in range(count)}
    missing = [key for key, path in files.items() if not path.exists()]
    for start in range(0, len(missing), options.draw_batch):
        batch = missing[start : start + options.draw_batch]
        strengths = [draw_strength(options, seed, *key) for key in batch]
        streams = [random_stream(seed, f"sample {name}", i) for name, i in batch]
        pictures = to_bytes(model.sample([known.index(name) for name, _ in batch], streams, strengths))
        for key, s, picture in zip(batch, strengths, pictures.permute(0, 2, 3, 1).cpu().numpy()):
            save(files[key], picture, s)
        drawn += len(batch)
        left = int((time.time() - began) / drawn * (len(missing) - drawn))
        progress(f"{drawn}/{len(missing)} pictures, {left // 60}:{left % 60:02d} left", final=drawn == len(missing))
    there = len(files) - len(missing)
    print(f"{drawn} pictures drawn, {there} were there already: {arguments.out.resolve()}")
    return 0


def draw_strength(options, seed: int, category: str, index: int) -> float:
    """s of a picture: uniform in its range, for each picture or each batch by itself."""
    low, high = options.strength[0], options.strength[-1]
    key = index if options.strength_per == "image" else index // options.draw_batch
    return float(random_stream(seed, f"strength {category}", key).uniform(low, high)) if high > low else low


def begin(out: Path, settings: dict) -> None:
    """A folder for these settings, new or begun with them.

    Raises:
        UserError: it was begun with others, or is something else.
    """
    path = out / "settings.json"
    if not path.exists():
        refuse_existing(out, "give another name")
        partial = out.with_name(f".{out.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a command that was killed here
        partial.mkdir(parents=True)
        write_json(partial / "settings.json", settings)
        os.replace(partial, out)
        return
    try:
        before = json.loads(path.read_text())
        if not isinstance(before, dict) or set(before) != set(settings):
            raise ValueError
    except ValueError:
        raise UserError(f"{path} is damaged; give another --out") from None
    now = json.loads(json.dumps(settings))
    if wrong := next((key for key in now if key != "run" and before[key] != now[key]), None):
        what = f"{option_tools.flag(wrong)} {before[wrong]}, now {now[wrong]}"
        what = "another checkpoint" if wrong == "checkpoint_sha256" else what
        raise UserError(f"--out {out} was begun with {what}; give another name")


def save(path: Path, picture: np.ndarray, strength: float) -> None:
    """A picture (H, W, 3) uint8, its strength in the file."""
    path.parent.mkdir(exist_ok=True)
    text = f"strength {strength:.6g}"
    if path.suffix == ".jpg":
        kind = {"format": "JPEG", "quality": 75, "comment": text}
    else:
        chunk = PngInfo()
        chunk.add_text("Comment", text)
        kind = {"format": "PNG", "pnginfo": chunk}
    write_atomically(path, lambda file: Image.fromarray(picture).save(file, **kind))


def write_sizes(masks: Path, out: Path) -> int:
    """FILE.csv with height,width,weight of each 8-connected region of the masks, as if pictures had 256 x 256 pixels.

    Raises:
        UserError: no masks, no region in them, or a file that is there already.
    """
    if out.exists() or not out.parent.is_dir():
        raise UserError(f"--out {out} " + ("exists already; give another name" if out.exists() else "is in no folder"))
    paths = list_images(masks)
    if any(part.lower() == "ground_truth" for path in paths for part in path.resolve().parts):
        print("warning: these look like a test set's masks (ground_truth); their sizes would leak the test set into "
              "training", file=sys.stderr)  # fmt: skip
    rows = ["height,width,weight"]
    for path in paths:
        mask = read_mask(path)
        for box in scipy.ndimage.find_objects(scipy.ndimage.label(mask, np.ones((3, 3)))[0]):
            sides = (256 / side * (part.stop - part.start) for side, part in zip(mask.shape, box))
            rows.append(",".join(f"{side:g}" for side in sides) + ",1")
    if len(rows) == 1:
        raise UserError(f"{masks}: no pixel of {len(paths)} masks is above 0")
    write_atomically(out, lambda file: file.write(("\n".join(rows) + "\n").encode()))
    print(f"{len(rows) - 1} regions of {len(paths)} masks: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
