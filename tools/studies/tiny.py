"""Tiny anomalies: which blocks of a few pixels, in the middle of normal test pictures, a method finds.

After SRDAD (Scientific Reports 2025, s41598-025-10303-8), section on tiny anomalies: blocks of 1 x 1 to 4 x 4 pixels,
rows and columns 126 to 126 + k - 1 of 256 x 256; it says that SRDAD locates them from 3 x 3 on and is clear at 4 x 4.
It shows pictures and does not give the colour; the numbers and the control of block 0 are ours.
"""

import argparse

import numpy as np
import torch
from torch import Tensor

from adref import options as option_tools
from adref.data import read_image
from adref.evaluate import bytes_of, name_of
from adref.options import UserError
from adref.report import overlay
from adref.run import Progress, method_arguments
from adref.studies import Figure, Opened, Result, column

NEAR = 5  # pixels around the block, in rows and columns, within which a maximum counts as its own
QUANTILE = 0.999  # of the map without block, which a block has to exceed
COLOURS = {"black": (0.0, 0.0, 0.0), "white": (1.0, 1.0, 1.0), "red": (1.0, 0.0, 0.0), "invert": None}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this study."""
    parser.add_argument("--sizes", metavar="K,...", default="1,2,3,4",
                        help="sides of the blocks, pixels of the method's size [1,2,3,4]")  # fmt: skip
    parser.add_argument("--colour", choices=COLOURS, default="black", help="of the block; invert: 1 - pixel [black]")


def study(runs: list[Opened], arguments: argparse.Namespace) -> Result:
    """Blocks of every size in every normal test picture of every run.

    Raises:
        UserError: no normal test picture, or a block that does not fit into a run's pictures.
    """
    sizes = sorted(set(option_tools.parse("sizes", tuple[int, ...], arguments.sizes)))
    for run in runs:
        most = min(side - start for side, start in zip(run.method.options.size, corner(run.method.options.size)))
        if sizes[0] < 1 or sizes[-1] > most:
            raise UserError(f"--sizes takes 1 to {most}, as {run.name} has it; got {arguments.sizes}")
        if all(record.label for record in run.category.test):
            raise UserError(f"{run.name}: {run.category.name} has no normal test picture into which a block could go")
    rows, figures = [], {}
    for run in runs:
        own, figures[f"Pictures of {run.name}"] = measure_run(run, sizes, arguments.colour)
        rows += own
    notes = [
        f"Highest near: of the map, within {NEAR} pixels of the block. A hit: it exceeds the {100 * QUANTILE:g} % "
        "quantile of the same picture's map without block. Argmax share: the whole map is highest there. All are means "
        "over the pictures.",
        "Block 0 is the control, the picture as it is: what its hit rate has, the place has and not the block.",
        "Pixels are those of the method's size (the article's: 256 x 256), where the block is sharp: no lens and no "
        "resizing has blurred it.",
        "In the maps the brightest colour is that quantile or more.",
    ]
    return Result({"sizes": sizes, "colour": arguments.colour}, rows, notes, figures, {})


def corner(size: tuple[int, int]) -> tuple[int, int]:
    """First row and column of a block: 126, 126 of 256 x 256."""
    return size[0] // 2 - 2, size[1] // 2 - 2


def set_block(images: Tensor, side: int, colour: str) -> Tensor:
    """A copy of (B, 3, H, W) in [0, 1] with a block of side x side pixels in the middle."""
    top, left = corner(images.shape[2:])
    block, changed = (..., slice(top, top + side), slice(left, left + side)), images.clone()
    value = COLOURS[colour]
    changed[block] = 1 - images[block] if value is None else images.new_tensor(value)[:, None, None]
    return changed


def measure(anomaly_map: np.ndarray, side: int, quantile: float) -> tuple[float, bool, bool]:
    """Maximum of a map (H, W) near its block, whether that exceeds `quantile`, and whether all of it is highest there.

    Near are up to `NEAR` rows and columns on all sides of the block. Of equal maxima the first counts, row by row.
    """
    near = np.zeros(anomaly_map.shape, bool)
    near[tuple(slice(max(0, start - NEAR), start + side + NEAR) for start in corner(anomaly_map.shape))] = True
    highest = float(anomaly_map[near].max())
    return highest, highest > quantile, bool(near.flat[anomaly_map.argmax()])


@torch.inference_mode()
def score_block(run: Opened, image: np.ndarray, index: int, side: int, colour: str) -> tuple[Tensor, float, np.ndarray]:
    """A picture, uint8 (H, W, 3) in its own size, with a block: (3, h, w) in [0, 1]; its score and map (h, w).

    Raises:
        UserError: a score or map that is not finite.
    """
    # Streams are made anew for each block: a method that draws gets the same noise every time. What `look` saw in the
    # file is left out: no file has the block, and methods that look compare the picture itself where they have no look.
    images, streams, _ = method_arguments(run.method, image, run.config["flags"]["seed"], index)
    images = set_block(images, side, colour)
    scores, maps = run.method.score(images, streams, None)
    score, anomaly_map = float(scores), maps[0, 0].double().cpu().numpy()
    if not np.isfinite(score) or not np.isfinite(anomaly_map).all():
        raise UserError(f"{run.name} gives the score {score} to test image {index}: its weights are not usable")
    return images[0], score, anomaly_map


def measure_run(run: Opened, sizes: list[int], colour: str) -> tuple[list[dict], list[Figure]]:
    """The rows of a run, block 0 first; and the pictures of its first normal test picture."""
    found: dict[int, list] = {side: [] for side in (0, *sizes)}
    figures, progress = [], Progress()
    normal = [(index, record) for index, record in enumerate(run.category.test) if not record.label]
    for done, (index, record) in enumerate(normal, start=1):
        image, quantile, clean = read_image(record.path), 0.0, 0.0
        for side in found:
            picture, score, anomaly_map = score_block(run, image, index, side, colour)
            if side == 0:
                low, quantile = np.quantile(anomaly_map, (0.01, QUANTILE))
                clean = score
            found[side].append((*measure(anomaly_map, side, quantile), quantile, score, clean))
            if done == 1:
                figures.append(draw(picture, anomaly_map, low, quantile, f"{name_of(record)}, block {side}"))
        progress(f"{run.name}: picture {done}/{len(normal)}", final=done == len(normal))
    names = ("highest_near", "hit_rate", "argmax_share", "clean_quantile", "score", "clean_score")
    means = {side: dict(zip(names, map(float, np.mean(values, axis=0)))) for side, values in found.items()}
    rows = [{"run": run.name, "block": side, "pictures": len(normal), **values} for side, values in means.items()]
    return rows, figures


def draw(picture: Tensor, anomaly_map: np.ndarray, low: float, high: float, name: str) -> Figure:
    """Input, its middle enlarged, and its map, one below the other."""
    image = bytes_of({"": picture})[""]
    reach = min(12, *(side // 2 for side in anomaly_map.shape))
    middle = image[tuple(slice(side // 2 - reach, side // 2 + reach) for side in anomaly_map.shape)]
    parts = [image, middle, overlay(image, anomaly_map, low, max(low, high))]
    return Figure(f"{name}: input, its middle enlarged, map", column(parts, image.shape[1]))
