"""Texture anomalies: textures pasted under masks of thresholded Perlin noise.

V. Zavrtanik, M. Kristan, D. Skocaj, "DRAEM", ICCV 2021, section 3.3. The defaults are those of the authors' code.
"""

from collections.abc import Sequence

import numpy as np
import scipy
import torch
from torch import Tensor

from adref.ops.perlin import draw_perlin, perlin, rotate, threshold
from adref.ops.textures import OPERATIONS, PAPER_OPERATIONS, apply_operations, draw_operations


def rotate_randomly(image: Tensor, rng: np.random.Generator, probability: float, degrees: float) -> Tensor:
    """Rotates an image (3, H, W) by U(-degrees, degrees) about its centre with a probability; black fill."""
    if rng.random() >= probability:
        return image
    rotated = rotate(image.permute(1, 2, 0).numpy(), rng.uniform(-degrees, degrees))
    return torch.from_numpy(rotated).permute(2, 0, 1).contiguous()


def draw_texture(rng: np.random.Generator, textures: Sequence[Tensor] | None, images: Sequence[Tensor] | None, *,
                 own_share: float, operations: str = "code", operation_count: int = 3,
                 channel_order: str = "rgb") -> Tensor:  # fmt: skip
    """Draws a texture and changes it by different operations in random order: (3, H, W) float32 in [0, 1].

    Args:
        textures, images: textures and training images, uint8 (3, H, W) each.
        own_share: share of textures that are training images, moved cyclically; above 0 `images` are needed.
        operations: "code", the ten kinds of the authors' code, or "paper", the seven of the article.
        operation_count, channel_order: how many; "rgb" or "bgr", the order that the colour operations assume.
    """
    own = own_share > 0 and rng.random() < own_share
    pictures = images if own else textures
    texture = pictures[int(rng.integers(len(pictures)))]
    if own:  # moved, because in place it would often equal what it covers
        texture = texture.roll(tuple(int(rng.integers(side)) for side in texture.shape[1:]), (1, 2))
    drawn = draw_operations(rng, operation_count, OPERATIONS if operations == "code" else PAPER_OPERATIONS)
    changed = apply_operations(texture.permute(1, 2, 0).numpy(), drawn, channel_order)
    return torch.from_numpy(np.ascontiguousarray(changed.transpose(2, 0, 1))).float() / 255


def match_colours(texture: Tensor, image: Tensor) -> Tensor:
    """Returns a texture (3, H, W) as it is, or its mean over the channels in each where the image (3, H, W) is grey."""
    grey = torch.equal(image, image[:1].expand_as(image))
    return texture.mean(dim=0, keepdim=True).expand_as(texture) if grey else texture


def draw_mask(rng: np.random.Generator, shape: tuple[int, int], *, exponents: tuple[int, int] = (0, 5),
              degrees: float = 90.0, thresholds: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:  # fmt: skip
    """Draws a mask (H, W) in {0, 1}: Perlin noise, rotated by U(-degrees, degrees), above U(*thresholds).

    The lattice of the noise has 2^i x 2^j cells, i and j drawn from `exponents` (smallest, largest).
    """
    noise = rotate(perlin(draw_perlin(rng, shape, *exponents), shape), rng.uniform(-degrees, degrees))
    return threshold(noise, rng.uniform(*thresholds))


def blend(image: Tensor, texture: Tensor, mask: Tensor, weight: float) -> Tensor:
    """Computes (1 - M) I + M ((1 - weight) I + weight A) of (C, H, W), M (1, H, W); equal to I where M is 0."""
    return torch.where(mask > 0, (1 - weight) * image + weight * texture, image)


def visible_part(mask: Tensor, corrupted: Tensor, clean: Tensor, levels: float) -> Tensor:
    """Keeps the pixels of a mask (1, H, W) in {0, 1} where two images (3, H, W) in [0, 1] differ visibly.

    Visible: by more than `levels` of 255 in the mean of the channels, for most of 3 x 3 pixels.
    """
    changed = ((corrupted - clean).abs().mean(dim=0) > levels / 255).numpy() & (mask[0] > 0).numpy()
    return mask * torch.from_numpy(scipy.ndimage.median_filter(changed, size=3)).to(mask)


def paste_texture(image: Tensor, rng: np.random.Generator, textures: Sequence[Tensor] | None,
                  images: Sequence[Tensor] | None, *, own_share: float, operations: str = "code",
                  channel_order: str = "rgb", colours: str = "own", exponents: tuple[int, int] = (0, 5),
                  thresholds: tuple[float, float] = (0.5, 0.5), weights: tuple[float, float] = (0.2, 1.0),
                  visible: float | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Pastes a texture into an image (3, H, W) in [0, 1]; returns the changed image and its label (1, H, W) in {0, 1}.

    `weights` bound the texture's share; colours "image" is `match_colours`; with `visible` the label is cut to
    `visible_part`. All else is as in `draw_texture` and `draw_mask`.
    """
    texture = draw_texture(rng, textures, images, own_share=own_share, operations=operations,
                           channel_order=channel_order)  # fmt: skip
    if colours == "image":
        texture = match_colours(texture, image)
    mask = torch.from_numpy(draw_mask(rng, tuple(image.shape[1:]), exponents=exponents, thresholds=thresholds))[None]
    changed = blend(image, texture, mask, rng.uniform(*weights))
    return changed, mask if visible is None else visible_part(mask, changed, image, visible)
