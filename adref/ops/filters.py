"""Smoothing filters of anomaly maps, and one that finds noise."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_smooth(maps: Tensor, sigma: float) -> Tensor:
    """Smooths maps (..., H, W) by a Gaussian, mirrored at their edges with the edge pixels repeated.

    As scipy.ndimage.gaussian_filter (truncate 4, mode "reflect"), by one matrix for each axis, on the maps' device.
    `sigma` in pixels; 0 changes nothing.
    """
    if sigma < 0:
        raise ValueError(f"expected a sigma of 0 or more, got {sigma}")
    if sigma == 0:
        return maps
    reach = int(4 * sigma + 0.5)
    steps, matrices = torch.arange(-reach, reach + 1), []
    weights = torch.exp(-0.5 * (steps.double() / sigma) ** 2)
    weights = weights / weights.sum()
    for length in maps.shape[-2:]:
        place = (torch.arange(length)[:, None] + steps) % (2 * length)  # in the map and its mirror image, repeated
        place = torch.minimum(place, 2 * length - 1 - place)
        matrix = torch.zeros(length, length, dtype=torch.float64).scatter_add_(1, place, weights.expand(length, -1))
        matrices.append(matrix.to(maps))
    with torch.autocast(maps.device.type, enabled=False):
        return matrices[0] @ maps @ matrices[1].T


def mean_filter(maps: Tensor, side: int, border: Literal["zero", "reflect"] = "zero") -> Tensor:
    """Averages `side` x `side` pixels (odd) around each: (B, C, H, W) -> the same shape.

    `border` "zero": zeros outside, which count (the sum is always divided by side^2); "reflect": the map mirrored at
    its outermost pixels, which are not repeated.
    """
    reach = side // 2
    if border == "reflect":
        maps, reach = F.pad(maps, (reach, reach, reach, reach), mode="reflect"), 0
    return F.avg_pool2d(maps, side, stride=1, padding=reach)


def grain(images: Tensor) -> tuple[Tensor, Tensor]:
    """Measures fine noise of the colours and of the brightness around each pixel: (B, 3, H, W) -> two (B, 1, H, W).

    The mean over 7 x 7 pixels of the absolute Laplacian: of R - G and G - B, and of the channels' mean. Nothing in it
    is learned: synthetic anomalies that stand out in it are told by their noise alone.
    """
    red, green, blue = images.unbind(1)
    parts = torch.stack((red - green, green - blue, images.mean(dim=1)), dim=1)
    framed = F.pad(parts, (1, 1, 1, 1), mode="reflect")
    rows = framed[..., :-2, 1:-1] + framed[..., 2:, 1:-1]
    columns = framed[..., 1:-1, :-2] + framed[..., 1:-1, 2:]
    found = mean_filter((4 * parts - rows - columns).abs(), 7, "reflect")
    return found[:, :2].mean(dim=1, keepdim=True), found[:, 2:]


def filtered_maximum(maps: Tensor, side: int) -> Tensor:
    """Takes the maximum of a mean filter with zeros outside: (B, 1, H, W) -> (B,). A lone 1 scores 1 / side^2."""
    return mean_filter(maps, side).amax(dim=(1, 2, 3))
