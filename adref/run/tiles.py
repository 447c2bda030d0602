"""Scoring in overlapping tiles, for methods whose map at a pixel depends on its surroundings alone.

In each overlap the two maps are cross-faded linearly over `tile_unit` pixels in its middle; the outer part of each tile
is discarded. If the map depends on no pixel further than r away, an overlap of 2 r + `tile_unit` gives the map of the
whole image, up to rounding.
"""

import argparse
import itertools
import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from adref.method import Context, Method
from adref.options import Notice, UserError


class Tiling(NamedTuple):
    """How images are scored: at which size, in which tiles."""

    size: tuple[int, int] | None = None  # (height, width) to which they are resized; None: the method's
    tile: tuple[int, int] | None = None  # (height, width); None: the whole image at once
    overlap: int = 0  # pixels that neighbours share, at least
    unit: int = 1  # width of the cross-fade


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --size, --tile and --overlap; `tiling_of` reads them."""

    def sides(text: str) -> tuple[int, int]:
        height, width = map(int, text.split(","))
        return height, width

    add = parser.add_argument
    add("--size", type=sides, metavar="H,W", help="height and width to which images are resized [those of the run]")
    add("--tile", type=sides, metavar="H,W", help="scores in tiles of this height and width, multiples of 32 from 64 "
        "on: DRAEM alone")  # fmt: skip
    add("--overlap", type=int, metavar="N", help="pixels that two tiles share, a multiple of 32 [a quarter of a tile's "
        "shorter side, or 32]")  # fmt: skip


def tiling_of(arguments: argparse.Namespace, method: Method) -> Tiling:
    """Reads the flags of `add_flags`; UserError if the method needs the whole image, or for sides that do not fit."""
    size, tile, overlap, unit = arguments.size, arguments.tile, arguments.overlap, method.evaluation.tile_unit
    if overlap is not None and not tile:
        raise UserError("--overlap needs --tile")
    if not size and not tile:
        return Tiling()
    if unit is None:
        given = "--tile" if tile else "--size"
        raise UserError(f"{given}: {type(method).__name__} has to see the whole image at the size of the run")
    for flag, sides, least in (("--size", size, unit), ("--tile", tile, 2 * unit)):
        if sides and any(side < least or side % unit for side in sides):
            raise UserError(f"{flag} takes height,width, multiples of {unit} from {least} on; got "
                            f"{','.join(map(str, sides))}")  # fmt: skip
    warnings.warn("the threshold was set on whole images at the run's size", Notice, stacklevel=2)
    if not tile:
        return Tiling(size)
    overlap = max(unit, min(tile) // 4 // unit * unit) if overlap is None else overlap
    if overlap % unit or not unit <= overlap < min(tile):
        raise UserError(f"--overlap takes multiples of {unit} below the sides of a tile; got {overlap}")
    return Tiling(size, tile, overlap, unit)


def score_tiled(method: Method, images: Tensor, context: Context, tiling: Tiling) -> tuple[Tensor, Tensor]:
    """Scores a batch as `Method.score`, in tiles if there are some."""
    if not tiling.tile:
        return method.score(images, context)
    maps = tiled(method.anomaly_map, images, tiling.tile, tiling.overlap, tiling.unit)
    return next(iter(method.image_scores(maps).values())), maps


def starts(length: int, side: int, overlap: int) -> list[int]:
    """Returns where the tiles along one side of an image begin; the last one ends with the image."""
    count = 1 + max(0, math.ceil((length - side) / (side - overlap)))
    return [max(0, min(i * (side - overlap), length - side)) for i in range(count)]


def weights(start: int, length: int, side: int, overlap: int, blend: int) -> Tensor:
    """Weighs a tile's pixels along one side: 1, and a ramp to 0 in the middle of each overlap."""
    place, discarded = torch.arange(min(side, length)) + 0.5, (overlap - blend) / 2
    ramp = torch.ones(len(place))
    if start > 0:
        ramp = torch.minimum(ramp, ((place - discarded) / blend).clamp(0, 1))
    if start + side < length:
        ramp = torch.minimum(ramp, ((side - place - discarded) / blend).clamp(0, 1))
    return ramp


def tiled(function: Callable, images: Tensor, tile: tuple[int, int], overlap: int, blend: int) -> Tensor:
    """Applies a function (B, 3, h, w) -> (B, C, h, w) to tiles of images (B, 3, H, W); `blend` pixels are faded."""
    (height, width), (tall, wide), total = images.shape[2:], tile, None
    weight = torch.zeros(height, width, device=images.device)
    for top, left in itertools.product(starts(height, tall, overlap), starts(width, wide, overlap)):
        rows, columns = slice(top, top + tall), slice(left, left + wide)
        down, across = weights(top, height, tall, overlap, blend), weights(left, width, wide, overlap, blend)
        inside = (down[:, None] * across).to(images.device)
        found = inside * function(images[..., rows, columns])
        total = found.new_zeros(*found.shape[:2], height, width) if total is None else total
        total[..., rows, columns] += found
        weight[rows, columns] += inside
    return total / weight
