"""Shared parts of the studies: opening runs, reading and corrupting images, tables as CSV and images as PNG."""

import argparse
import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adref import load
from adref.data.examples import random_stream, resize, to_tensor
from adref.data.layouts import Category, Record, find_category, list_images
from adref.data.reader import read_image
from adref.data.sample import generated_textures
from adref.method import Context, Method, Sources, Trainable
from adref.options import UserError, names

TRIES = 100  # draws for each anomaly


class Opened(NamedTuple):
    """A trained run and its data."""

    name: str
    kind: str  # of the method: "draem"
    method: Method  # in evaluation mode
    category: Category
    seed: int

    @property
    def normal(self) -> list[Record]:
        """Returns the normal images of the test set."""
        return [record for record in self.category.test if not record.label]

    @property
    def anomalous(self) -> list[Record]:
        """Returns the anomalous images of the test set."""
        return [record for record in self.category.test if record.label]


def parser_of(documentation: str) -> argparse.ArgumentParser:
    """Makes a parser with the arguments of every study."""
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories of python -m adref.train")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for .csv and .png files")
    parser.add_argument("--data", metavar="ROOT", help="the data set, if it was moved")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N [cpu]")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn [0]")
    return parser


def open_runs(arguments: argparse.Namespace) -> list[Opened]:
    """Opens the runs of a command line."""
    opened = []
    for name in arguments.runs:
        run = load(name, arguments.device)
        flags = run.config["flags"]
        category = find_category(Path(arguments.data or flags["data"]), run.config["category"])
        opened.append(Opened(name, run.config["method"], run.method, category, flags["seed"]))
    return opened


def run_study(study: Callable[[argparse.Namespace], list[dict]], name: str, arguments: argparse.Namespace) -> int:
    """Runs a study, writes its rows to FOLDER/NAME.csv and prints them; returns the exit code."""
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        rows = study(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_rows(arguments.out / f"{name}.csv", rows)
    for row in rows:
        shown = (f"{value:.4g}" if isinstance(value, float) else value for value in row.values())
        print(", ".join(f"{key} {value}" for key, value in zip(row, shown)))
    return 0


def write_rows(path: Path, rows: list[dict]) -> None:
    """Writes dictionaries of the same keys as CSV."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


# -- images -----------------------------------------------------------------------------------------------------------


def read_small(record: Record, options) -> Tensor:
    """Reads an image at a method's size: uint8 (3, H, W)."""
    return resize(to_tensor(read_image(record.path)), options.size, options.resize)


@torch.inference_mode()
def score_tensor(run: Opened, image: Tensor, index: int) -> tuple[float, Tensor]:
    """Scores one image (3, H, W) in [0, 1] that no file holds: its score, and its map (h, w) on the CPU."""
    scores, maps = run.method.score(image[None].to(device_of(run)), context_of(run, index))
    return float(scores), maps[0, 0].float().cpu()


def context_of(run: Opened, index: int) -> Context:
    """Returns the random stream that an evaluation gives to the image of this index; its hash is left to the method."""
    return Context([random_stream(run.seed, "test", index)])


def device_of(run: Opened) -> torch.device:
    """Returns the device of a run's weights."""
    return next(run.method.parameters()).device


def write_columns(path: Path, columns: Sequence[Sequence[Tensor]]) -> None:
    """Writes a PNG of columns of equally large images, (3 or 1, h, w) in [0, 1] each."""
    parts = [torch.cat([image.float().cpu().expand(3, -1, -1) for image in column], dim=1) for column in columns]
    pixels = torch.cat(parts, dim=2).clamp(0, 1) * 255
    Image.fromarray(pixels.round().byte().permute(1, 2, 0).numpy()).save(path)


def brightness(anomaly_map: Tensor, low: float, high: float) -> Tensor:
    """Scales a map (h, w) to a grey image (1, h, w): `low` is black, `high` white."""
    return ((anomaly_map[None] - low) / max(high - low, 1e-12)).clamp(0, 1)


# -- synthetic anomalies ----------------------------------------------------------------------------------------------


def draw_anomalies(
    method: Trainable, records: Sequence[Record], seed: int, textures: str | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Draws anomalies on normal images as the last stage of training does; images without any are skipped.

    Args:
        method: its options decide; no weights are used.
        records: normal images, at least two; anomalies may be cut from others among them.
        seed: of the random streams.
        textures: a folder of images; None: generated textures.

    Yields:
        clean and corrupted (3, H, W) in [0, 1], mask (H, W) bool.

    Raises:
        UserError: the method draws no masks, or needs more than textures.
    """
    o, missing = method.options, set(method.needs) - {"textures", "backbone"}
    if missing:
        raise UserError(f"{type(method).__name__} needs {', '.join(missing)}, which the studies do not provide")
    images, name = [read_small(record, o) for record in records], records[0].category
    hashes = [method.image_hash(read_image(record.path), o) for record in records]
    if "textures" in method.needs and textures:
        files = [Record(path, 0, "texture", None) for path in list_images(Path(textures))]
        drawn = [read_small(record, o) for record in files]
    else:
        drawn = torch.from_numpy(generated_textures(100, max(o.size), seed=0))[:, :, : o.size[0], : o.size[1]]
    statistics = method.statistics(images, name, o)
    several = "categories" in names(type(o), all_fields=True)
    sources = Sources(
        images=images, hashes=None if hashes[0] is None else hashes, categories=[name] * len(images), textures=drawn,
        statistics={name: statistics} if several else statistics, stage=method.stages[-1].name,
    )  # fmt: skip
    for number in range(TRIES * len(images)):
        index = number % len(images)
        rng, clean = random_stream(seed, "study", number), images[index].float() / 255
        batch = method.corrupt(clean, rng, o, sources._replace(index=index))
        if "mask" not in batch._fields:
            raise UserError(f"{type(method).__name__} draws no anomalies with masks")
        if batch.mask.any() and not batch.mask.all():
            yield batch.clean, batch.corrupted, batch.mask[0] > 0


def pooled_features(run: Opened, images: Sequence[Tensor], layer: str) -> np.ndarray:
    """Averages the last output of a layer over its places while images (3, H, W) in [0, 1] are scored: (N, C).

    Raises:
        UserError: there is no layer of this name, or it does not run, or its output is no map or list of tokens.
    """
    if layer not in dict(run.method.named_modules()):
        raise UserError(f"{run.name} has no layer {layer}; see method.named_modules()")
    outputs, found = [], []
    hook = run.method.get_submodule(layer).register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        for index, image in enumerate(images):
            score_tensor(run, image, index)
            if not outputs or not isinstance(outputs[-1], Tensor) or not 2 <= outputs[-1].ndim <= 4:
                raise UserError(f"{run.name}: {layer} gives no map; choose another layer")
            found.append(pooled(outputs[-1], image.shape[1:])[0].double().cpu().numpy())
            outputs.clear()
    finally:
        hook.remove()
    return np.stack(found)


def pooled(output: Tensor, size: Sequence[int]) -> Tensor:
    """Averages (B, C, h, w), (B, h, w, C) as Swin layers have it, tokens (B, N, C) or (B, C) over places: (B, C).

    Of four axes those two are places whose ratio is nearer to that of the image (H, W).
    """
    if output.ndim == 4:
        skew = [abs(output.shape[i] * size[1] - output.shape[i + 1] * size[0]) for i in (1, 2)]
        output = output if skew[0] < skew[1] else output.permute(0, 2, 3, 1)
    return output.flatten(1, -2).mean(dim=1) if output.ndim > 2 else output
