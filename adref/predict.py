"""python -m adref.predict RUN IMAGE_OR_FOLDER... --out DIR

Scores images with a trained run: DIR/scores.csv (path, score, decision), DIR/maps/NAME.npy (float32, at the image's
full resolution) and DIR/overlays/NAME.png. `--out -` writes the CSV to stdout and no files. All preprocessing comes
from the run. An image that cannot be read is named and skipped; the others are scored, and the exit code is 2.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from adref.data.layouts import list_images
from adref.data.reader import read_image
from adref.options import UserError
from adref.run import tiles
from adref.run.cli import Progress, run_cli
from adref.run.directory import find_device, load
from adref.run.files import csv_text, explain_out, write_atomically
from adref.run.report import overlay
from adref.run.scoring import at_size, decision, map_scale, score_image, stored_map_scale


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m adref.predict", description=__doc__.split("\n\n", 1)[1])
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory of python -m adref.train")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE_OR_FOLDER")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results; - for CSV on stdout only")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    tiles.add_flags(parser)
    arguments = parser.parse_args(argv)
    return run_cli(lambda: run_command(arguments))


def run_command(arguments: argparse.Namespace) -> int:
    """Scores every image; returns 0 when all were read, 2 when some were not."""
    run = load(arguments.run, find_device(arguments.device))
    tiling, out = tiles.tiling_of(arguments, run.method), None if arguments.out == "-" else Path(arguments.out)
    names, problems = name_images(arguments.images, out)
    scale, progress, rows = stored_map_scale(run.folder), Progress(len(names)), []
    if run.threshold is None:
        words = "stores no threshold (training not finished, or no image held out): no decisions"
        print(f"{run.folder} {words}", file=sys.stderr)
    if scale is None and out:
        words = "was not evaluated with its own options: each overlay has a colour scale of its own"
        print(f"{run.folder} {words}", file=sys.stderr)
    for index, (name, path) in enumerate(names.items()):
        try:
            image = read_image(path)
            score, scored = score_image(run.method, image, run.config["flags"]["seed"], index, tiling)
        except UserError as error:
            problems.append(str(error))
            continue
        rows.append((str(path), repr(score), decision(score, run.threshold)))
        if out:
            write_result(out, name, image, at_size(scored, image.shape[:2]), scale)
        progress(index + 1, name)
    table = csv_text([("path", "score", "decision"), *rows])
    if out is None:
        sys.stdout.write(table)
    elif rows:
        write(out, "scores.csv", lambda file: file.write(table.encode(errors="surrogateescape")))
        count = sum(row[2] == "anomalous" for row in rows)
        decided = "not decided" if run.threshold is None else f"{count} anomalous"
        print(f"{len(rows)} images scored, {decided}: {out}/scores.csv")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 2 if problems else 0


def name_images(images: list[Path], out: Path | None = None) -> tuple[dict[str, Path], list[str]]:
    """Returns result name -> file, and the problems of the arguments; folders are searched and keep their structure.

    Files below `out` are results of an earlier call and left out. Of two files that would share a name (a/1.png and
    b/1.png given apart, or 1.png beside 1.jpg) the second gets its suffix and then a number.
    """
    names, problems = {}, []
    for given in images:
        try:
            if not given.exists():
                raise UserError(f"{given}: no such file or folder")
            files = list_images(given) if given.is_dir() else [given]
        except UserError as error:
            problems.append(str(error))
            continue
        for path in files:
            if out and path.resolve().is_relative_to(out.resolve()):
                continue
            base = path.relative_to(given).with_suffix("") if given.is_dir() else Path(path.stem)
            name, number = str(base), 2
            if name in names:
                name = f"{base}{path.suffix}"
            while name in names:
                name, number = f"{base}{path.suffix}-{number}", number + 1
            names[name] = path
    return names, problems


def write_result(out: Path, name: str, image: np.ndarray, anomaly_map: np.ndarray, scale: tuple | None) -> None:
    """Writes the map (H, W) and the overlay of an image."""
    picture = Image.fromarray(overlay(image, anomaly_map, *(scale or map_scale([anomaly_map]))))
    write(out, f"maps/{name}.npy", lambda file: np.save(file, anomaly_map))
    write(out, f"overlays/{name}.png", lambda file: picture.save(file, format="PNG"))


def write(out: Path, name: str, action) -> None:
    """Writes a result atomically, making its folder."""
    with explain_out(out):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out / name, action)


if __name__ == "__main__":
    sys.exit(main())
