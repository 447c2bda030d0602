"""Scoring in tiles: a large picture in overlapping pieces, for methods that need not see the whole of it.

Of an overlap each tile gives up the part at its own edge, and in the middle, `Method.tile_unit` pixels wide, the two
maps are blended linearly. For a method whose map at a pixel depends on nothing but its surroundings, up to a reach of r
pixels, an overlap of 2 r + `tile_unit` gives the map of the whole picture, up to rounding.
"""

import argparse
import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from adref.method import Method
from adref.options import Notice, UserError


class Cut(NamedTuple):
    """How pictures are scored: at which size, in which tiles."""

    size: tuple[int, int] | None = None  # (height, width) to which they are resized; None: the method's
    tile: tuple[int, int] | None = None  # (height, width); None: the whole picture at once
    overlap: int | None = None  # pixels that neighbours share, at least; None: a quarter of a tile's shorter side


def add_flags(parser: argparse.ArgumentParser) -> None:
    """--size, --tile and --overlap, whose values `cut_of` takes."""

    def sides(text: str) -> tuple[int, int]:
        height, width = map(int, text.split(","))
        return height, width

    for flag, text in (
        ("--size", "height and width to which pictures are resized [those of the run]"),
        ("--tile", "scores in tiles of this height and width, multiples of 32 from 64 on: DRAEM alone"),
    ):
        parser.add_argument(flag, type=sides, metavar="H,W", help=text)
    overlap = "pixels that two tiles share, a multiple of 32 [a quarter of a tile's shorter side, or 32]"
    parser.add_argument("--overlap", type=int, metavar="N", help=overlap)


def cut_of(arguments: argparse.Namespace) -> Cut:
    """What the flags of `add_flags` say."""
    return Cut(arguments.size, arguments.tile, arguments.overlap)


def apply(cut: Cut, method: Method) -> Cut:
    """Makes a method from `load` score so from now on; returns what will be done, with the overlap that is used.

    Raises:
        UserError: the method has to see the whole picture, or sides that do not fit.
    """
    size, tiles, overlap = cut
    name, unit = type(method).__name__, method.evaluation.tile_unit
    if (size or tiles) and unit is None:
        raise UserError(f"{'--tile' if tiles else '--size'}: {name} takes whole pictures of one size: {unit is None}")
    for flag, sides in (("--size", size), ("--tile", tiles)) if unit else ():
        least = 2 * unit if flag == "--tile" else unit  # two tiles share something, and not all
        if sides and any(side < least or side % unit for side in sides):
            more = f"multiples of {unit} from {least} on"
            raise UserError(f"{flag} takes height,width, {more}; got {','.join(map(str, sides))}")
    if overlap is not None and not tiles:
        raise UserError("--overlap needs --tile")
    if size:
        method.options = dataclasses.replace(method.options, size=size)
    if size or tiles:
        warnings.warn("the threshold was set on whole pictures at the run's own size", Notice, stacklevel=2)
    if not tiles:
        return cut._replace(size=method.options.size)
    overlap = max(unit, min(tiles) // 4 // unit * unit) if overlap is None else overlap
    if overlap % unit or not unit <= overlap < min(tiles):
        raise UserError(f"--overlap takes multiples of {unit} below the sides of a tile; got {overlap}")
    for part in ("anomaly_map",):
        whole = getattr(method, part)
        setattr(method, part, lambda images, *_, f=whole, **__: tiled(f, images, tiles, overlap, unit))
    return Cut(method.options.size, tiles, overlap)


def starts(length: int, side: int, overlap: int) -> list[int]:
    """Where the tiles along one side of a picture begin; the last ends with it, and may share more than the others."""
    count = 1 + max(0, math.ceil((length - side) / (side - overlap)))
    return [max(0, min(i * (side - overlap), length - side)) for i in range(count)]


def weights(start: int, length: int, side: int, overlap: int, blend: int) -> Tensor:
    """Of a tile's pixels along one side: 1, and to 0 along a ramp in the middle of each overlap."""
    place, given_up = torch.arange(min(side, length)) + 0.5, (overlap - blend) / 2
    ramp = torch.ones(len(place))
    if start > 0:
        ramp = torch.minimum(ramp, ((place - given_up) / blend).clamp(0, 1))
    if start + side < length:
        ramp = torch.minimum(ramp, ((side - place - given_up) / blend).clamp(0, 1))
    return ramp


def tiled(function: Callable, images: Tensor, tiles: tuple[int, int], overlap: int, blend: int) -> Tensor:
    """What a function makes of images, tile by tile.

    Args:
        function: (B, 3, h, w) -> (B, C, h, w).
        images: (B, 3, H, W), of any sides.
        tiles: (height, width) of a tile.
        overlap: pixels that neighbours share, at least.
        blend: the width of the ramp between two tiles, at most the overlap.

    Returns:
        (B, C, H, W).
    """
    total, weight = 0.0, torch.zeros(images.shape[2:], device=images.device)
    (height, width), (tall, wide) = images.shape[2:], tiles
    for top in starts(height, tall, overlap):
        for left in starts(width, wide, overlap):
            place = (slice(top, top + tall), slice(left, left + wide))
            down, across = weights(top, height, tall, overlap, blend), weights(left, width, wide, overlap, blend)
            own = (down[:, None] * across).to(images.device)
            found = own * function(images[(..., *place)])
            if isinstance(total, float):
                total = found.new_zeros(*found.shape[:2], height, width)
            total[(..., *place)] += found
            weight[place] += own
    return total / weight
