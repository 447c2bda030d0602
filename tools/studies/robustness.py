"""Measures image and pixel AUROC of test images that are noisy, blurred, or of another contrast or brightness.

python tools/studies/robustness.py RUN ... --out FOLDER

After SRDAD (Scientific Reports 2025, s41598-025-10303-8), section on robustness, which shows images and no numbers; the
levels are chosen here. Each test image x in [0, 1] is changed at its full resolution, clipped and rounded to 8 bits:

noise       x + N(0, level) for each pixel and channel; the same noise at every level
contrast    (x - mean) level + mean, the mean over all pixels and channels
brightness  x + level
blur        Gaussian, level is sigma in pixels

AUROC judges the order of scores: where all rise alike it stays, though a stored threshold then fails.
"""

import sys

import numpy as np
import scipy
from common import Opened, open_runs, parser_of, run_study

from adref.data.examples import random_stream
from adref.data.reader import read_image, read_mask
from adref.ops.metrics import auroc, pixel_metrics
from adref.options import UserError
from adref.run.scoring import at_size, score_image

LEVELS = {"none": (0.0,), "noise": (0.02, 0.05, 0.10), "contrast": (0.6, 0.8, 1.2, 1.4),
          "brightness": (-0.2, -0.1, 0.1, 0.2), "blur": (0.5, 1.0, 2.0)}  # fmt: skip


def change(image: np.ndarray, kind: str, level: float, rng: np.random.Generator) -> np.ndarray:
    """Changes an image, uint8 (H, W, 3); `rng` is used for noise only."""
    x = image / 255
    if kind == "noise":
        x = x + level * rng.standard_normal(x.shape)
    elif kind == "contrast":
        x = (x - x.mean()) * level + x.mean()
    elif kind == "brightness":
        x = x + level
    elif kind == "blur":
        x = scipy.ndimage.gaussian_filter(x, (level, level, 0))
    return np.rint(255 * np.clip(x, 0, 1)).astype(np.uint8)


def measure(run: Opened, indices: list[int], kind: str, level: float, seed: int) -> tuple[float, float]:
    """Computes image and pixel AUROC over test images with one change; NaN where masks are missing."""
    scores, labels, maps, masks = [], [], [], []
    for index in indices:
        record = run.category.test[index]
        image = change(read_image(record.path), kind, level, random_stream(seed, f"corruption {kind}", index))
        score, small = score_image(run.method, image, run.seed, index)
        scores.append(score)
        labels.append(record.label)
        if record.mask is not None or not record.label:
            maps.append(at_size(small, image.shape[:2]))
            masks.append(read_mask(record.mask) if record.mask else np.zeros(image.shape[:2], bool))
    return auroc(np.array(scores), np.array(labels)), pixel_metrics(maps, masks)["pixel_auroc"]


def study(arguments) -> list[dict]:
    """Measures every change at every level for every run."""
    rows = []
    for run in open_runs(arguments):
        order = random_stream(arguments.seed, "limit").permutation(len(run.category.test))
        indices = sorted(order[: arguments.limit or len(order)].tolist())
        if len({run.category.test[index].label for index in indices}) < 2:
            raise UserError(f"{run.name}: the test images have to be normal and anomalous ones")
        for kind, levels in LEVELS.items():
            for level in levels:
                image, pixel = measure(run, indices, kind, level, arguments.seed)
                rows.append({"run": run.name, "change": kind, "level": level, "images": len(indices),
                             "image_auroc": image, "pixel_auroc": pixel})  # fmt: skip
    return rows


if __name__ == "__main__":
    parser = parser_of(__doc__)
    parser.add_argument("--limit", type=int, metavar="N", help="test images, drawn at random [all]")
    sys.exit(run_study(study, "robustness", parser.parse_args()))
