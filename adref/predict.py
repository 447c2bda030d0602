"""python -m adref.predict RUN IMAGE_OR_FOLDER... --out DIR

Scores images with a trained run: DIR/scores.csv (path, score, decision), DIR/maps/NAME.npy (float32, at the image's
full resolution) and DIR/overlays/NAME.png. NAME is the image's path in the folder that was given, with its suffix.
`--out -` writes the CSV to stdout and no files. All preprocessing comes from the run. An image that cannot be read is
named and skipped; the others are scored, and the exit code is 2. In the CSV an apostrophe stands before a path that a
spreadsheet would compute.
"""

import os
import sys
from functools import partial
from pathlib import Path

from adref.run.threads import bound_spinning

if __name__ == "__main__":
    bound_spinning()  # before torch is loaded

import numpy as np
from PIL import Image

from adref.data.layouts import list_images
from adref.data.reader import read_text
from adref.options import Parser, UserError, parse
from adref.run import tiles
from adref.run.cli import Progress, entry_point
from adref.run.directory import find_device, load
from adref.run.files import csv_text, result_path, write_atomically, write_text
from adref.run.report import overlay
from adref.run.scoring import map_scale, predict, stored_map_scale

HEAD = "path,score,decision\n"


@entry_point
def main(argv: list[str]) -> int:
    """Scores every image; returns 0 when all were read, 2 when some were not."""
    parser = Parser(prog="python -m adref.predict", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory of python -m adref.train")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE_OR_FOLDER")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results; - for CSV on stdout only")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    parser.add_argument("--threshold", help="score from which an image is anomalous [that of the run]")
    tiles.add_flags(parser)
    arguments = parser.parse_args(argv)
    run = load(arguments.run, find_device(arguments.device))
    tiling, out = tiles.tiling_of(arguments, run.method), None if arguments.out == "-" else Path(arguments.out)
    names, problems = name_images(arguments.images, out)
    if out and (out / "scores.csv").is_file() and not read_text(out / "scores.csv").startswith(HEAD):
        raise UserError(f"--out {out} holds a scores.csv that is no prediction; give another name")
    threshold = run.threshold if (given := arguments.threshold) is None else parse("threshold", float, given)
    scale, progress, rows = stored_map_scale(run.folder), Progress(len(names)), []
    missing = {
        "stores no threshold (training not finished, or no image held out): no decisions": threshold is None,
        "was not evaluated with its own options: each overlay has a colour scale of its own": scale is None and out,
    }
    for words in filter(missing.get, missing):
        print(f"{run.folder} {words}", file=sys.stderr)
    for index, (name, path) in enumerate(names.items()):
        try:
            found, image = predict(run.method, path, threshold, run.config["flags"]["seed"], index, tiling)
        except UserError as error:
            problems.append(str(error))
            continue
        rows.append((str(path), repr(found.score), found.decision))
        if out:
            picture = Image.fromarray(overlay(image, found.map, *(scale or map_scale([found.map]))))
            write_atomically(result_path(out, f"maps/{name}", ".npy"), partial(np.save, arr=found.map))
            write_atomically(result_path(out, f"overlays/{name}", ".png"), partial(picture.save, format="PNG"))
        progress(index + 1, name)
    table = HEAD + csv_text(rows)
    if out is None:
        sys.stdout.reconfigure(errors="surrogateescape")  # names have their own bytes
        sys.stdout.write(table)
    elif rows:
        write_text(out / "scores.csv", table)
        count = sum(row[2] == "anomalous" for row in rows)
        decided = "not decided" if threshold is None else f"{count} anomalous"
        print(f"{len(rows)} images scored, {decided}: {out}/scores.csv")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 2 if problems else 0


def name_images(images: list[Path], out: Path | None = None) -> tuple[dict[str, Path], list[str]]:
    """Returns name -> file, named by the path from the deepest folder that holds all arguments, and problems."""
    files, folders, problems = {}, [], []
    results = [(out / name).resolve() for name in ("maps", "overlays")] if out else []
    for given in images:
        try:
            if not os.path.isfile(given) and not os.path.isdir(given):
                raise UserError(f"{given}: no such file or folder")
            found = list_images(given, results) if given.is_dir() else [given]
        except UserError as error:
            problems.append(str(error))
            continue
        files |= {path.parent.resolve() / path.name: path for path in found}
        folders.append(given.resolve() if given.is_dir() else given.parent.resolve())
    base = os.path.commonpath(folders) if folders else ""
    return {Path(os.path.relpath(path, base)).as_posix(): file for path, file in files.items()}, problems


if __name__ == "__main__":
    sys.exit(main())
