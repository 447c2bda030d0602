"""Measures whether a method finds blocks of a few pixels in the middle of normal test images.

python tools/studies/tiny.py RUN ... --out FOLDER [--colour black]

After SRDAD (Scientific Reports 2025, s41598-025-10303-8), section on tiny anomalies: blocks of 1 x 1 to 4 x 4 pixels
from row and column 126 of 256 x 256; it says that SRDAD locates them from 3 x 3 on, shows images, and does not give the
colour. The numbers are defined here: a hit is a block near which the map exceeds the 99.9 % quantile of the same
image's map without block. Block 0 is the control. tiny_N.png shows the first image of a run with its maps.
"""

import sys

import numpy as np
import torch
from common import Opened, brightness, open_runs, parser_of, read_small, run_study, score_tensor, write_columns
from torch import Tensor

from adref.options import UserError

NEAR = 5  # pixels around the block in which a maximum counts
QUANTILE = 0.999
COLOURS = {"black": (0.0, 0.0, 0.0), "white": (1.0, 1.0, 1.0), "red": (1.0, 0.0, 0.0), "invert": None, "contrast": None}


def set_block(image: Tensor, side: int, colour: str) -> Tensor:
    """Returns a copy of (3, H, W) in [0, 1] with a block of side x side pixels in the middle."""
    top, left = image.shape[1] // 2 - 2, image.shape[2] // 2 - 2
    changed, value = image.clone(), COLOURS[colour]
    block = np.s_[:, top : top + side, left : left + side]
    if colour == "contrast":
        changed[block] = float(image[block].mean() < 0.5)
    else:
        changed[block] = 1 - image[block] if value is None else image.new_tensor(value)[:, None, None]
    return changed


def measure(anomaly_map: Tensor, side: int, quantile: float) -> tuple[float, bool, bool]:
    """Returns the maximum of a map (h, w) near its block, whether it is a hit, and whether the map peaks there."""
    rows, columns = (np.s_[max(0, n // 2 - 2 - NEAR) : n // 2 - 2 + side + NEAR] for n in anomaly_map.shape)
    highest = float(anomaly_map[rows, columns].max())
    return highest, highest > quantile, highest == float(anomaly_map.max())


@torch.inference_mode()
def measure_run(run: Opened, sizes: list[int], colour: str, path) -> list[dict]:
    """Measures blocks of every size in every normal test image, block 0 first."""
    found, columns = {side: [] for side in sizes}, []
    for index, record in enumerate(run.category.test):
        if record.label:
            continue
        image, quantile = read_small(record, run.method.options).float() / 255, 0.0
        first = not found[0]
        for side in sizes:
            changed = set_block(image, side, colour)
            score, anomaly_map = score_tensor(run, changed, index)
            quantile = float(np.quantile(anomaly_map, QUANTILE)) if side == 0 else quantile
            found[side].append((*measure(anomaly_map, side, quantile), score))
            if first:
                columns.append((changed, brightness(anomaly_map, float(anomaly_map.min()), quantile)))
    if not found[0]:
        raise UserError(f"{run.name}: there is no normal test image")
    write_columns(path, columns)
    names = ("highest_near", "hit_rate", "argmax_share", "score")
    means = {side: dict(zip(names, np.mean(values, axis=0).tolist())) for side, values in found.items()}
    return [{"run": run.name, "block": side, "images": len(found[side]), **values} for side, values in means.items()]


def study(arguments) -> list[dict]:
    """Measures every run."""
    sizes = [0, *map(int, arguments.sizes.split(","))]
    runs = enumerate(open_runs(arguments))
    parts = (measure_run(run, sizes, arguments.colour, arguments.out / f"tiny_{i}.png") for i, run in runs)
    return [row for part in parts for row in part]


if __name__ == "__main__":
    parser = parser_of(__doc__)
    parser.add_argument("--sizes", default="1,2,3,4", metavar="K,...", help="pixels at the method's size [1,2,3,4]")
    parser.add_argument("--colour", choices=COLOURS, default="black", help="of the block; invert: 1 - pixel; "
                        "contrast: black or white, whichever is further from the pixels below [black]")  # fmt: skip
    sys.exit(run_study(study, "tiny", parser.parse_args()))
