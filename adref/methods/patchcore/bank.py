"""PatchCore's memory: patch features, their coreset, and the search for the nearest."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

STARTS = 10  # code: features from whose mean distance the coreset starts
PROJECTED = 128  # code: dimensions in which the coreset is chosen
ROWS = 2048  # of the memory that are searched at a time


def patch_features(layers: list[Tensor], side: int, width: int | None) -> Tensor:
    """Describes each place of the first of some layers (B, C_k, h_k, w_k), the finest, by neighbourhoods: (B, h, w, d).

    A neighbourhood is `side` x `side` features (odd), zeros outside. Its C_k side^2 numbers, ordered by channel, then
    row, then column, are averaged to `width`; coarser layers are enlarged (bilinear, half-pixel centres); the widths of
    all layers, one after the other, are averaged to `width` again. With `width` None each channel is averaged over the
    neighbourhood, and d is the sum of the C_k.
    """
    found, size = [], layers[0].shape[2:]
    for layer in layers:
        if width is None:
            x = F.avg_pool2d(layer, side, stride=1, padding=side // 2)
        else:
            patches = F.unfold(layer, side, padding=side // 2).transpose(1, 2)  # (B, h_k w_k, C_k side^2)
            x = F.adaptive_avg_pool1d(patches, width).transpose(1, 2).unflatten(2, layer.shape[2:])
        found.append(x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=False))
    joined = torch.cat(found, dim=1).permute(0, 2, 3, 1)
    return joined if width is None else F.adaptive_avg_pool1d(joined.flatten(1, 2), width).unflatten(1, size)


def draw_projection(rng: np.random.Generator, width: int) -> Tensor:
    """Draws psi of algorithm 1, a random matrix (width, PROJECTED); it keeps ratios of distances nearly as they are."""
    bound = 1 / math.sqrt(width)  # code: torch's initialisation of a linear layer
    return torch.from_numpy(rng.uniform(-bound, bound, (width, PROJECTED)).astype(np.float32))


def greedy_coreset(features: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """Chooses `count` of features (n, d), each the farthest from those before it: equation 5, greedily; (count,) int64.

    The first is the farthest on average from STARTS random ones. No feature's distance to those chosen counts for more
    than this average (code).
    """
    features = features - features.mean(dim=0)  # the distances stay; squares of numbers about 0 lose fewer digits
    starts = features[rng.choice(len(features), min(STARTS, len(features)), replace=False)]
    distances, squares = torch.cdist(features, starts).mean(dim=1), features.square().sum(dim=1)
    chosen = torch.empty(count, dtype=torch.int64, device=features.device)
    for i in range(count):
        chosen[i] = place = distances.argmax()
        found = (squares + squares[place] - features @ (2 * features[place])).clamp(min=0).sqrt()
        distances = torch.minimum(distances, found)
        distances[place] = -1  # never again, even if all that is left are its copies
    return chosen


def nearest(queries: Tensor, bank: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
    """Finds the `count` nearest of a bank (m, d) to each query (n, d): distances, not squared, and indices (n, count).

    `count` is m at most. Holds n x ROWS numbers at a time. The search compares |b|^2 - 2 q b, with the bank's mean as
    the origin: which of two that are nearly as near is found depends on rounding. Distances are those of differences.
    """
    squares, places, centre = [], [], bank.mean(dim=0)
    for begin in range(0, len(bank), ROWS):
        part = bank[begin : begin + ROWS] - centre
        compared = torch.addmm(part.square().sum(dim=1), queries - centre, part.T, alpha=-2)
        least, place = compared.topk(min(count, len(part)), largest=False)
        squares.append(least)
        places.append(place + begin)
    chosen = torch.cat(squares, dim=1).topk(count, largest=False).indices
    indices = torch.cat(places, dim=1).gather(1, chosen)
    distances = torch.stack([(queries - bank[column]).norm(dim=1) for column in indices.unbind(dim=1)], dim=1)
    return distances, indices
