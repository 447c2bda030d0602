"""python -m adref.predict RUN IMAGE_OR_FOLDER... --out DIR

Scores pictures with a trained run: DIR/scores.csv (path, score, decision), DIR/maps/NAME.npy (float32, at the picture's
own size) and DIR/overlays/NAME.png. `--out -` writes the CSV to stdout and no files. All preprocessing comes from the
run. A picture that cannot be read is named and skipped; the others are done, and the exit code is 2.
"""

import argparse
import csv
import io
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from adref.data.layouts import list_images
from adref.options import UserError
from adref.run import tiles
from adref.run.cli import Progress, guarded
from adref.run.directory import find_device, load, read_config
from adref.run.files import read_json, write_atomically
from adref.run.overlap import read_ahead, write_behind
from adref.run.report import overlay
from adref.run.scoring import decision, map_scale, scale_of, score_image, to_size
from adref.run.tiles import Cut


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m adref.predict", description=__doc__.split("\n\n", 1)[1])
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory of python -m adref.train")
    parser.add_argument("pictures", type=Path, nargs="+", metavar="IMAGE_OR_FOLDER")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results; - for CSV on stdout only")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    tiles.add_flags(parser)
    arguments = parser.parse_args(argv)
    cut = tiles.cut_of(arguments)
    return guarded(lambda: predict(arguments.run, arguments.pictures, arguments.out, arguments.device, cut))


def predict(run: Path, pictures: list[Path], out: str, device: str = "auto", cut: Cut = Cut()) -> int:
    """Scores every picture; 0 when all were read, 2 when some were not.

    Raises:
        UserError: no trained run, no picture at all, or an output folder that cannot be written.
    """
    seed, method = read_config(run)["flags"]["seed"], load(run, str(find_device(device)))
    tiles.apply(cut, method)
    names, missing = name_pictures(pictures, None if out == "-" else Path(out))
    if method.threshold is None:
        print(f"{run} stores no threshold (training not finished, or no image held out): no decisions", file=sys.stderr)
    scale, progress, rows, problems = stored_scale(run), Progress(), [], missing
    if scale is None and out != "-":
        print(f"{run} was not evaluated: each overlay has its own colour scale", file=sys.stderr)
    with write_behind() as later:
        for index, ((name, path), image) in enumerate(zip(names.items(), read_ahead(names.values()))):
            try:
                image = image.result()
                score, scored = score_image(method, image, seed, index)
            except UserError as error:
                problems.append(str(error))
                continue
            rows.append((str(path), repr(score), decision(score, method.threshold)))
            if out != "-":
                later(write_result, out, name, image, scored, scale)
            progress(f"{index + 1}/{len(names)} {name}", final=index + 1 == len(names))
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([("path", "score", "decision"), *rows])
    if out == "-":
        sys.stdout.write(table.getvalue())
    elif rows:
        write(Path(out) / "scores.csv", lambda file: file.write(table.getvalue().encode(errors="surrogateescape")))
        decided = (
            f"{sum(r[2] == 'anomalous' for r in rows)} anomalous" if method.threshold is not None else "not decided"
        )
        print(f"{len(rows)} pictures scored, {decided}: {out}/scores.csv")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 2 if problems else 0


def name_pictures(pictures: list[Path], out: Path | None = None) -> tuple[dict[str, Path], list[str]]:
    """Result name -> file, and what is wrong with the arguments; folders are searched, and their structure is kept.

    Files below `out` are results of an earlier call and left out.

    Two files that would share a name (a/1.png and b/1.png given apart, or 1.png beside 1.jpg) get their suffix and then
    a number, so that no result overwrites another.
    """
    names, problems = {}, []
    for given in pictures:
        if not given.exists():
            problems.append(f"{given}: no such file or folder")
            continue
        try:
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


def stored_scale(run: Path) -> tuple[float, float] | None:
    """The scale of the run's report, so that overlays compare with it; None before an evaluation."""
    try:
        return scale_of(read_json(run / "evaluation" / "metrics.json"))
    except (OSError, UserError):
        return None


def write_result(out: str, name: str, image: np.ndarray, scored: torch.Tensor, scale: tuple | None) -> None:
    """A picture's map and overlay; UserError where they cannot be written."""
    whole = to_size(scored, image.shape[:2])
    low, high = scale or map_scale([whole])
    picture = Image.fromarray(overlay(image, whole, low, high))
    try:
        write(Path(out) / "maps" / f"{name}.npy", lambda file: np.save(file, whole))
        write(Path(out) / "overlays" / f"{name}.png", lambda file: picture.save(file, format="PNG"))
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from None


def write(path: Path, action) -> None:
    """Writes a result atomically, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, action)


if __name__ == "__main__":
    sys.exit(main())
