"""python -m adref.synthesize METHOD [--data ROOT --category NAME] --out DIR [--n 16] [options of the method]
python -m adref.synthesize RUN --out DIR [--n 16] [--strength 0.1 0.2] [options of the sampler]
python -m adref.synthesize --sizes-from MASKS --out FILE.csv

The first form shows the synthetic anomalies that a method trains on: the first corrupted examples that `python -m
adref.train` draws with the same flags, as DIR/sheet.png, one picture a step in DIR/examples, DIR/statistics.json, and
statistics.csv with a row an example. The second draws N images for each category from a trained diffusion model
(sdas): DIR/CATEGORY/000000.png and so on; the same command goes on where an earlier one stopped. The third measures the
defects in a folder of masks, for `--patch-size histogram`.
"""

import itertools
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from adref.run.threads import bound_spinning

if __name__ == "__main__":
    bound_spinning()  # before torch is loaded

import numpy as np
import scipy
import torch
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from adref.data.examples import random_stream, stage_examples
from adref.data.layouts import find_category, inspect, list_images, raise_if_any
from adref.data.reader import read_mask
from adref.method import Sampler, Sources, Stage, Trainable
from adref.methods import METHODS, find_method
from adref.ops.filters import grain
from adref.ops.metrics import average_precision
from adref.options import Parser, UserError, add_flags, add_variants, flag, flags_given, parse, parse_known, replace
from adref.run import files
from adref.run.cli import Progress, entry_point
from adref.run.config import RunSettings, new_config
from adref.run.directory import build, find_device, open_run, read_config
from adref.run.scoring import as_bytes
from adref.run.sources import open_sources, read_images, split

SETTINGS = ("data", "category", "textures", "defect_sizes", "anomaly_images", "seed", "holdout", "memory_limit")
CHANGED = 1 / 255  # mean over the channels; a smaller change is none
SHEET_ROWS = 32
TRIES = 100  # draws for each example that is asked for
BATCH = 16  # images that a model draws at a time


class Example(NamedTuple):
    """One corrupted example, and how it was drawn."""

    pictures: dict[str, np.ndarray]  # name -> uint8 (H, W, 3)
    numbers: dict[str, float]


@entry_point
def main(argv: list[str]) -> int:
    """Finds out which form of the command is meant, and runs it."""
    if argv and argv[0] not in METHODS and Path(argv[0]).is_dir():
        return draw_images(Path(argv[0]), argv[1:])
    if argv and os.sep in argv[0]:
        raise UserError(f"{argv[0]} is no run directory, and no method")
    name = argv[0] if argv and not argv[0].startswith("-") else None
    method = find_method(name) if name else Trainable
    parser = Parser(prog="python -m adref.synthesize", description=__doc__, allow_abbrev=False)
    parser.add_argument("method", nargs="?", help=f"one of: {', '.join(METHODS)}; must stand first")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder to make (a file, for sizes)")
    parser.add_argument("--n", metavar="N", default="16", help="corrupted examples to show [16]")
    parser.add_argument("--stage", metavar="NAME", help="stage of training, for methods with several [the first]")
    parser.add_argument("--sizes-from", metavar="MASKS", type=Path, help="folder of masks to measure")
    add_variants(parser, method.presets, method.ablations)
    add_flags(parser, RunSettings, "flags", "settings, as for python -m adref.train", SETTINGS)
    if name:
        add_flags(parser, method.Options, "options", f"options of {name} (meaning, default, source)")
    arguments = parse_known(parser, argv)
    if arguments.sizes_from:
        return write_sizes(arguments.sizes_from, arguments.out)
    if name is None:
        raise UserError(f"a method must stand first, one of: {', '.join(METHODS)}")
    return preview(arguments)


def preview(arguments) -> int:
    """Writes the first corrupted examples of a training; UserError if there are none, or options do not fit."""
    count = parse("n", int, arguments.n)
    if count < 1:
        raise UserError(f"--n takes 1 or more; got {count}")
    files.refuse_existing(arguments.out, "give another name")
    config = new_config(arguments)
    settings = replace(RunSettings(), config["flags"])
    category = find_category(settings.data, config["category"])
    raise_if_any(inspect(category).problems, category.name)
    with torch.device("meta"):  # no weight is needed
        method = build(config)
    stages = {stage.name: stage for stage in method.stages}
    stage = arguments.stage or method.stages[0].name
    if stage not in stages:
        raise UserError(f"--stage takes one of {', '.join(stages)}; got {stage!r}")
    training = split(category, settings)[0]
    images = read_images(method, training, settings)
    sources, _ = open_sources(method, images, [record.category for record in training], settings)
    examples, failed = [], []  # failed: was meant to have an anomaly, of which nothing remained
    drawn = draw_examples(method, stages[stage], sources._replace(stage=stage, notes=[]), settings.seed)
    for total, (example, notes) in enumerate(drawn, start=1):
        examples += [example] if example else []
        failed += [notes] if notes and not example else []
        if len(examples) == count or total == TRIES * count:
            break
    kinds = [key for key, value in failed[0].items() if not np.ndim(value)] if failed else []
    reasons = {key: sum(notes[key] for notes in failed) for key in kinds}
    if not examples:
        why = f"{len(failed)} came out empty: {reasons}" if failed else "see the options that mix in clean images"
        raise UserError(f"{arguments.method} corrupted none of {total} examples; {why}")
    statistics = {**{key: config[key] for key in ("method", "category", "preset", "ablation", "changed")},
                  "seed": settings.seed, "statistics": sources.statistics, "examples": total,
                  "corrupted": len(examples), "came_out_empty": len(failed), "empty_because": reasons,
                  **summarise(examples)}  # fmt: skip
    write(arguments.out, examples, {**statistics, "options": config["options"]})
    for key, value in statistics.items():
        print(f"{key}: {value}")
    print(f"Sheet: {(arguments.out / 'sheet.png').resolve()}")
    return 0


def draw_examples(method: Trainable, stage: Stage, sources: Sources, seed: int) -> Iterator[tuple]:
    """Yields the examples of a stage in its order, None for a clean one, with the notes of `corrupt`."""
    data, order = stage_examples(method, stage, sources, seed)
    for key in itertools.chain.from_iterable(part for step in itertools.count(1) for part in order.parts(step)):
        sources.notes.clear()
        began = time.perf_counter()
        batch = data[key]._asdict()
        seconds = time.perf_counter() - began
        if "corrupted" not in batch:
            raise UserError(f"{type(method).__name__} trains on clean images alone: there is nothing to draw")
        mask = batch.get("mask", torch.ones_like(batch["clean"][:1]))  # noise is everywhere
        notes = {name: value for entry in sources.notes for name, value in entry.items()}
        yield describe(batch["clean"], batch["corrupted"], mask, seconds, notes) if mask.any() else None, notes


def describe(clean: Tensor, corrupted: Tensor, mask: Tensor, seconds: float, notes: dict) -> Example:
    """Makes pictures and numbers of one corrupted example: clean and corrupted (3, H, W), mask (1, H, W).

    "changed_share_of_mask" compares with the clean picture, which nobody has of a real defect. The average precision
    of `grain` asks whether the anomaly can be told in the corrupted picture alone. It cannot where the value is about
    "mask_share", or, on an object that is part of the picture, about the value without noise.
    """
    change = (corrupted - clean).abs()
    shown = {"clean": clean, **{k: torch.from_numpy(v)[None] for k, v in notes.items() if np.ndim(v)},
             "corrupted": corrupted.clamp(0, 1), "mask": mask, "change x 4": (4 * change).clamp(0, 1)}  # fmt: skip
    changed = (change.mean(dim=0) > CHANGED)[mask[0] > 0].float().mean().item()
    numbers = {"mask_share": mask.mean().item(), "changed_share_of_mask": changed, "milliseconds": 1000 * seconds}
    for kind, found in zip(("colour", "grey"), grain(corrupted[None]) if not mask.all() else ()):
        numbers[f"ap_of_{kind}_grain"] = average_precision(found.numpy(), mask[None].numpy())
    return Example(as_bytes(shown), numbers | {k: float(v) for k, v in notes.items() if not np.ndim(v)})


def summarise(examples: list[Example]) -> dict[str, dict[str, float]]:
    """Computes mean, smallest, median and largest of every number."""
    columns = {key: np.array([example.numbers[key] for example in examples]) for key in examples[0].numbers}
    functions = (("mean", np.mean), ("least", np.min), ("median", np.median), ("most", np.max))
    return {key: {word: round(float(f(column)), 5) for word, f in functions} for key, column in columns.items()}


def write(out: Path, examples: list[Example], statistics: dict) -> None:
    """Writes the folder whole or not at all."""
    with files.new_folder(out) as partial:
        (partial / "examples").mkdir()
        for i, example in enumerate(examples):
            for name, picture in example.pictures.items():
                Image.fromarray(picture).save(partial / "examples" / f"{i:04d}_{name.replace(' ', '_')}.png")
        sheet(examples[:SHEET_ROWS]).save(partial / "sheet.png")
        files.write_json(partial / "statistics.json", statistics)
        rows = [["example", *examples[0].numbers], *([i, *e.numbers.values()] for i, e in enumerate(examples))]
        files.write_text(partial / "statistics.csv", files.csv_text(rows))


def sheet(examples: list[Example]) -> Image.Image:
    """Draws a contact sheet: a row an example, a column a picture, names above."""
    names = list(examples[0].pictures)
    (height, width), gap, head = examples[0].pictures[names[0]].shape[:2], 4, 16
    page = Image.new("RGB", ((width + gap) * len(names) - gap, head + (height + gap) * len(examples) - gap), "white")
    for column, name in enumerate(names):
        ImageDraw.Draw(page).text((column * (width + gap) + 2, 2), name, fill="black")
        for row, example in enumerate(examples):
            page.paste(Image.fromarray(example.pictures[name]), (column * (width + gap), head + row * (height + gap)))
    return page


def write_sizes(masks: Path, out: Path) -> int:
    """Writes height,width,weight of each 8-connected component of the masks, scaled to images of 256 x 256 pixels."""
    files.refuse_existing(out, "give another name")
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
    files.write_text(out, "\n".join(rows) + "\n")
    print(f"{len(rows) - 1} components of {len(paths)} masks: {out}")
    return 0


def draw_images(folder: Path, argv: list[str]) -> int:
    """Draws images from a run of a `Sampler`: DIR/CATEGORY/000000.png and so on, without those that are there."""
    kind = find_method(read_config(folder)["method"])
    if not issubclass(kind, Sampler):
        raise UserError(f"{folder} holds {kind.__name__}, which draws no images; expected a run of sdas")
    parser = Parser(prog="python -m adref.synthesize RUN", allow_abbrev=False)
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder to make, or to go on with")
    parser.add_argument("--n", metavar="N", default="16", help="images of each category [16]")
    parser.add_argument("--category", metavar="NAME", nargs="+", help="some of the categories [all]")
    parser.add_argument("--seed", default="0", help="seed of all randomness [0]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    title = "options of the sampler (as the run has them, unless given; defaults of the method in brackets)"
    add_flags(parser, kind.Options, "options", title, kind.changeable)
    arguments = parse_known(parser, argv)
    count, seed = (parse(name, int, getattr(arguments, name)) for name in ("n", "seed"))
    if count < 1 or not 0 <= seed < 2**63:
        raise UserError(f"--n takes 1 or more, --seed 0 to 2^63 - 1; got {count}, {seed}")
    run = open_run(folder, find_device(arguments.device), Sampler, flags_given(arguments, "options"))
    method, options, known, out = run.method, run.method.options, run.method.labels, arguments.out
    chosen = sorted(set(",".join(arguments.category).split(","))) if arguments.category else known
    if unknown := sorted(set(chosen) - set(known)):
        raise UserError(f"--category: {folder} draws {', '.join(known)}; got {unknown[0]}")
    begin(out, {"run": str(folder.resolve()), "checkpoint_sha256": run.sha256, "seed": seed,
                **{name: getattr(options, name) for name in kind.changeable}})  # fmt: skip
    suffix = {"png": ".png", "jpeg75": ".jpg"}[options.file_format]
    names = {(name, i): f"{files.safe_name(name)}/{i:06d}" for name in chosen for i in range(count)}
    places = {key: files.result_path(out, name, suffix) for key, name in names.items()}
    missing = [key for key, path in places.items() if not path.exists()]
    progress = Progress(len(missing))
    for start in range(0, len(missing), BATCH):
        batch = missing[start : start + BATCH]
        strengths = [draw_strength(options, seed, *key) for key in batch]
        streams = [random_stream(seed, f"sample {name}", i) for name, i in batch]
        images = method.sample_images([known.index(name) for name, _ in batch], streams, strengths)
        for key, strength, image in zip(batch, strengths, images.permute(0, 2, 3, 1).cpu().numpy()):
            save_image(places[key], image, strength)
        progress(start + len(batch), "images")
    print(f"{len(missing)} images drawn, {len(places) - len(missing)} were there already: {out.resolve()}")
    return 0


def draw_strength(options, seed: int, category: str, index: int) -> float:
    """Draws the strength of an image, uniform in its range, for each image or for each 16."""
    low, high = options.strength[0], options.strength[-1]
    key = index if options.strength_per == "image" else index // BATCH
    return float(random_stream(seed, f"strength {category}", key).uniform(low, high)) if high > low else low


def begin(out: Path, settings: dict) -> None:
    """Makes the folder with settings.json; UserError if an earlier command began it with other settings."""
    path = out / "settings.json"
    if not path.exists():
        files.refuse_existing(out, "give another name")
        with files.new_folder(out) as partial:
            files.write_json(partial / path.name, settings)
        return
    before, now = files.read_json(path), {key: list(v) if isinstance(v, tuple) else v for key, v in settings.items()}
    if wrong := next((key for key in now if key != "run" and before.get(key) != now[key]), None):
        change = f"{flag(wrong)} {before.get(wrong)}, now {now[wrong]}"
        change = "another checkpoint" if wrong == "checkpoint_sha256" else change
        raise UserError(f"--out {out} was begun with {change}; give another name")


def save_image(path: Path, image: np.ndarray, strength: float) -> None:
    """Writes an image (H, W, 3) uint8 with its strength as a comment."""
    text, notes = f"strength {strength:.6g}", PngInfo()
    notes.add_text("Comment", text)
    kinds = {".jpg": {"format": "JPEG", "quality": 75, "comment": text}, ".png": {"format": "PNG", "pnginfo": notes}}
    files.write_atomically(path, lambda file: Image.fromarray(image).save(file, **kinds[path.suffix]))


if __name__ == "__main__":
    sys.exit(main())
