"""Robustness: image and pixel AUROC where test pictures are noisy, of other contrast or brightness, or blurred.

After SRDAD (Scientific Reports 2025, s41598-025-10303-8), section on robustness, which shows pictures and no numbers;
the levels here are ours. Training is untouched. Each test picture x in [0, 1] is changed at its own size, clipped and
rounded to 8 bits, as a camera would deliver it:

noise       x + N(0, level), for each pixel and colour
contrast    (x - mean) * level + mean, the mean over all pixels and colours of the picture
brightness  x + level
blur        Gaussian, level is sigma in pixels of the picture's own size
"""

import argparse
from collections.abc import Sequence

import numpy as np
import scipy

from adref.data import Record, read_image, read_mask
from adref.evaluate import map_scale, name_of, native_mask, steps
from adref.metrics import auroc, pixel_metrics
from adref.options import UserError
from adref.report import overlay
from adref.run import Progress, score_image, to_size
from adref.samples import random_stream, resize, to_tensor
from adref.studies import Figure, Opened, Result, column

LEVELS = {"noise": (0.02, 0.05, 0.10), "contrast": (0.6, 0.8, 1.2, 1.4), "brightness": (-0.2, -0.1, 0.1, 0.2),
          "blur": (0.5, 1.0, 2.0)}  # fmt: skip
WIDTH = 160  # pixels of a shown picture


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this study."""
    parser.add_argument("--limit", type=int, metavar="N", help="test pictures, drawn from all kinds of them [all]")


def study(runs: list[Opened], arguments: argparse.Namespace) -> Result:
    """Every corruption at every level for every run.

    Raises:
        UserError: a test set without normal or without anomalous pictures, or a limit below its number of kinds.
    """
    chosen = [choose(run, arguments.limit, arguments.seed) for run in runs]
    rows, figures = [], {}
    for run, indices in zip(runs, chosen):
        own, figures[f"Pictures of {run.name}"] = measure_run(run, indices, arguments.seed)
        rows += own
    notes = [
        "Change: the difference to the pictures as they are. Pixel AUROC counts pixels of the files; n/a: no masks.",
        "Level: standard deviation of the noise, factor of the contrast, summand of the brightness, sigma of the blur "
        "in pixels of the file. The levels are ours; SRDAD's article shows pictures only.",
        "AUROC is about order: where all scores rise alike it stays, and a stored threshold is of no use all the same; "
        "where a map is at its limit everywhere, all scores are equal and the image AUROC is 0.5.",
        "Noise is drawn once a picture and scaled by the level; all runs of a category get the same pictures.",
    ]
    return Result({"limit": arguments.limit, "seed": arguments.seed}, rows, notes, figures, {})


def choose(run: Opened, limit: int | None, seed: int) -> list[int]:
    """Places in the test set, ascending: all, or `limit` of them, drawn so that each kind keeps its share.

    Raises:
        UserError: see `study`.
    """
    records, kinds = run.category.test, {}
    if len({record.label for record in records}) < 2:
        raise UserError(f"{run.name}: {run.category.name} has no normal and anomalous test pictures to tell apart")
    for index, record in enumerate(records):
        kinds.setdefault((record.category, record.defect), []).append(index)
    if limit is None:
        return list(range(len(records)))
    if limit < len(kinds):
        raise UserError(f"--limit takes {len(kinds)} or more, one of each kind of test picture; got {limit}")
    rng, places = random_stream(seed, "limit"), []
    for indices in kinds.values():  # the first of each kind has place 0, its last nearly 1
        places += [(place / len(indices), int(index)) for place, index in enumerate(rng.permutation(indices))]
    return sorted(index for _, index in sorted(places)[:limit])


def corrupt(image: np.ndarray, kind: str, level: float, rng: np.random.Generator) -> np.ndarray:
    """A picture, uint8 (H, W, 3), as a worse camera would deliver it: alike; `rng` is for noise alone."""
    x = image / 255
    if kind == "noise":
        x = x + level * rng.standard_normal(x.shape)
    elif kind == "contrast":
        x = (x - x.mean()) * level + x.mean()
    elif kind == "brightness":
        x = x + level
    else:
        x = scipy.ndimage.gaussian_filter(x, (level, level, 0))
    return np.rint(255 * np.clip(x, 0, 1)).astype(np.uint8)


def open_corrupted(record: Record, index: int, kind: str, level: float | None, seed: int) -> np.ndarray:
    """A test picture with a corruption; "none" leaves it as it is."""
    image = read_image(record.path)
    # The stream knows no level: weak and strong noise are the same noise, and differences are due to strength alone.
    return image if kind == "none" else corrupt(image, kind, level, random_stream(seed, f"corruption {kind}", index))


def choose_shown(test: Sequence[Record], indices: list[int]) -> int:
    """The anomalous picture to show, the same for all runs: that of the largest mask; without masks, the first."""
    anomalous = [index for index in indices if test[index].label]
    return max(anomalous, key=lambda index: 0 if test[index].mask is None else read_mask(test[index].mask).mean())


def measure_run(run: Opened, indices: list[int], seed: int) -> tuple[list[dict], list[Figure]]:
    """The rows of a run, clean pictures first; and what it makes of one anomalous picture."""
    cases = [("none", None), *((kind, level) for kind, levels in LEVELS.items() for level in levels)]
    test, own_seed, progress = run.category.test, run.config["flags"]["seed"], Progress()  # its seed, as in evaluation
    labels = np.array([test[index].label for index in indices])
    shown = choose_shown(test, indices)
    rows, figures = [], []
    for kind, level in cases:
        words = kind if level is None else f"{kind} {level:g}"
        scores, maps, masks = [], [], []
        for index in indices:
            progress(f"{run.name}: {words}, picture {len(scores) + 1}/{len(indices)}", final=index == indices[-1])
            image = open_corrupted(test[index], index, kind, level, seed)
            score, small = score_image(run.method, image, own_seed, index)
            scores.append(score)
            maps.append(to_size(small, image.shape[:2]))
            masks.append(native_mask(test[index], image.shape[:2]))
            if index == shown:
                picture, between, at = image, steps(run.method, image, own_seed, index), small[0, 0].numpy()
        known = [i for i, mask in enumerate(masks) if mask is not None]
        pixel = pixel_metrics([maps[i] for i in known], [masks[i] for i in known])["pixel_auroc"]
        area, pixel = auroc(np.array(scores), labels), pixel if np.isfinite(pixel) else None
        if not rows:
            clean, pixel_clean, scale = area, pixel, map_scale(maps)  # one scale for all pictures of a run
        rows.append({
            "run": run.name, "corruption": kind, "level": level, "pictures": len(indices),
            "image_auroc": area, "image_change": area - clean,
            "pixel_auroc": pixel, "pixel_change": None if pixel is None else pixel - pixel_clean,
        })  # fmt: skip
        seen = resize(to_tensor(picture), run.method.options.size, run.method.options.resize).permute(1, 2, 0).numpy()
        order = ", ".join(["input", *between, "map"])
        parts = [seen, *between.values(), overlay(seen, at, *scale)]
        figures.append(Figure(f"{name_of(test[shown])}, {words}: {order}", column(parts, WIDTH)))
    return rows, figures
