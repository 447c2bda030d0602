"""Scores and maps of single images."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adref.data.examples import random_stream, resize, to_tensor
from adref.data.reader import as_pixels
from adref.method import Context, Method
from adref.options import UserError
from adref.run.cli import TrainingError, is_out_of_memory
from adref.run.files import read_json
from adref.run.tiles import Tiling, score_tiled


def score_image(method: Method, image: np.ndarray, seed: int, index: int,
                tiling: Tiling = Tiling()) -> tuple[float, Tensor]:  # fmt: skip
    """Scores one image by itself, so that no other image can change its score.

    The image is uint8 (H, W, 3) at full resolution; the run's seed and the image's index in its list give the random
    stream of a method that draws at test time. Returns the score, and the map (1, 1, h, w) float32 on the CPU at the
    method's size; UserError if one is not finite, TrainingError if memory does not suffice.
    """
    return score_resized(method, *resize_and_hash(method, image, tiling), seed, index, tiling)


@torch.inference_mode()
def score_resized(method: Method, resized: Tensor, image_hash: np.ndarray | None, seed: int, index: int,
                  tiling: Tiling = Tiling()) -> tuple[float, Tensor]:  # fmt: skip
    """Scores one image that is resized already, uint8 (3, h, w); else as `score_image`."""
    images, context = as_batch(method, resized, image_hash, seed, index)
    try:
        scores, maps = score_tiled(method, images, context, tiling)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        words = f"memory does not suffice to score a picture at --size {','.join(map(str, resized.shape[1:]))}"
        raise TrainingError(f"{words}; a new run with a smaller --size may fit, or --tile") from None
    score = float(scores)
    if not math.isfinite(score) or not torch.isfinite(maps).all():
        raise UserError(f"image {index} of the list gets the score {score}: the weights of this run are not usable")
    return score, maps.float().cpu()


class Prediction(NamedTuple):
    """The result of a trained method for one picture."""

    score: float  # higher is more anomalous
    decision: str  # see `decision`
    map: np.ndarray  # (H, W) float32 at the picture's size


def predict(method: Method, picture, threshold: float | None, seed: int, index: int,
            tiling: Tiling = Tiling()) -> tuple[Prediction, np.ndarray]:  # fmt: skip
    """Scores a path, a Pillow image or an array as `score_image` does; returns also its pixels, uint8 (H, W, 3)."""
    image = as_pixels(picture)
    score, scored = score_image(method, image, seed, index, tiling)
    return Prediction(score, decision(score, threshold), at_size(scored, image.shape[:2])), image


def resize_and_hash(method: Method, image: np.ndarray, tiling: Tiling) -> tuple[Tensor, np.ndarray | None]:
    """Resizes an image, uint8 (H, W, 3), to the size it is scored at: uint8 (3, h, w); and hashes it as it was."""
    o = method.options
    return resize(to_tensor(image), tiling.size or o.size, o.resize), method.image_hash(image, o)


def as_batch(method: Method, resized: Tensor, image_hash: np.ndarray | None, seed: int,
             index: int) -> tuple[Tensor, Context]:  # fmt: skip
    """Makes the batch (1, 3, h, w) in [0, 1] on the method's device, and its context."""
    weight = next(method.parameters())
    images = resized.unsqueeze(0).to(weight.device, memory_format=torch.channels_last).to(weight.dtype) / 255
    return images, Context([random_stream(seed, "test", index)], None if image_hash is None else [image_hash])


def as_bytes(figures: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Converts pictures (C, h, w) in [0, 1] by caption to uint8 (h, w, 3)."""
    pixels = {caption: (figure.float().expand(3, -1, -1) * 255).round().byte() for caption, figure in figures.items()}
    return {caption: figure.permute(1, 2, 0).cpu().numpy() for caption, figure in pixels.items()}


def at_size(anomaly_map: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Resizes a map (1, 1, h, w) to (H, W): bilinear, half-pixel centres; float32."""
    return F.interpolate(anomaly_map, size, mode="bilinear", align_corners=False)[0, 0].numpy()


def decision(score: float, threshold: float | None) -> str:
    """Returns "anomalous" when the score is at least the threshold, else "good"; empty without a threshold."""
    return "" if threshold is None else "anomalous" if score >= threshold else "good"


def map_scale(maps: Sequence[np.ndarray]) -> tuple[float, float]:
    """Returns the map values of the first and last colour: the 1st and 99.9th percentile of a sample of all pixels."""
    if not maps:
        return 0.0, 1.0
    each = max(1, min(10_000, 2_000_000 // len(maps)))  # pixels of a map
    sample = np.concatenate([m.ravel()[:: max(1, m.size // each)].copy() for m in maps])  # a view would keep the map
    low, high = np.percentile(sample, (1, 99.9))
    return float(low), float(high if high > low else low + 1)


def stored_map_scale(folder: Path) -> tuple[float, float] | None:
    """Reads the colour scale of the evaluation, with which overlays compare; None before one by the run's options."""
    try:
        low, high = map(float, (metrics := read_json(folder / "evaluation" / "metrics.json"))["map_scale"])
    except (UserError, KeyError, TypeError, ValueError):
        return None
    return (low, high) if low <= high and not metrics.get("changed_after_training") else None
