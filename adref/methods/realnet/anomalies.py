"""RealNet's anomalies: five sources, each of which changes a clean image under a mask."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from adref.method import Sources
from adref.methods.realnet.cut_paste import cut_paste, draw_rectangle, draw_scar
from adref.methods.realnet.foreground import Rule, choose_rule, foreground
from adref.methods.realnet.nsa import NSA_RULES, NSARule, draw_nsa, nsa
from adref.methods.realnet.options import Options
from adref.ops.texture_anomaly import draw_mask, draw_texture

# Constants of the code; for masks and textures they are those of DRAEM's code.
PERLIN_ROTATION = 90.0  # the noise rotates by U(-d, d) degrees
MASK_THRESHOLD = 0.5  # of the noise
SDAS_OPACITY = (0.5, 1.0)  # delta of SDAS images, uniform; as in the article


def add_anomaly(
    image: Tensor, rng: np.random.Generator, o: Options, sources: Sources, kind: str
) -> tuple[Tensor, Tensor]:
    """Adds an anomaly of one source, `kind`, to an image: corrupted (3, H, W), mask (H, W) in {0, 1}, maybe empty."""
    category, shape = sources.categories[sources.index], tuple(image.shape[1:])
    if kind in ("cut_paste", "scar"):
        return cut_paste(image, (draw_rectangle if kind == "cut_paste" else draw_scar)(rng, shape))
    if kind == "nsa":
        return nsa_anomaly(image, rng, sources, category)
    mask = draw_mask(
        rng, shape, exponents=o.perlin_exponents, degrees=PERLIN_ROTATION, thresholds=(MASK_THRESHOLD, MASK_THRESHOLD)
    )
    mask = mask * foreground(to_bytes(image).permute(1, 2, 0).numpy(), sources.statistics[category])
    if kind == "sdas":
        pictures = sources.anomalies[category]
        picture, opacity = pictures[int(rng.integers(len(pictures)))], SDAS_OPACITY
    else:
        texture = draw_texture(
            rng, sources.textures, sources.images, own_share=o.own_texture_share, operations="code", operation_count=3,
            channel_order="rgb",
        )  # fmt: skip
        picture, opacity = to_bytes(texture), o.texture_opacity
    mask = torch.from_numpy(mask.astype(np.float32))
    return blend(image, picture, mask, rng.uniform(*opacity)), mask


def nsa_anomaly(image: Tensor, rng: np.random.Generator, sources: Sources, category: str) -> tuple[Tensor, Tensor]:
    """Pastes patches of another normal image of the category seamlessly; see `add_anomaly`."""
    same = [i for i, name in enumerate(sources.categories) if name == category and i != sources.index]
    others = same or [sources.index]
    other = sources.images[others[int(rng.integers(len(others)))]].float() / 255
    rule = NSA_RULES.get(category, NSARule())
    patches = draw_nsa(rng, image.numpy(), other.numpy(), rule)
    corrupted, mask = nsa(image.numpy(), other.numpy(), patches, rule.mixed)
    return torch.from_numpy(corrupted), torch.from_numpy(mask)


def blend(image: Tensor, picture: Tensor, mask: Tensor, opacity: float) -> Tensor:
    """Blends a picture P, uint8 (3, H, W), into an image I in [0, 1] (equation 1), in truncated 8-bit values.

    Exactly I where the mask M, (H, W) in {0, 1}, is 0, and P where the opacity delta is 1.
    """
    mixed = ((1 - opacity) * to_bytes(image).double() + opacity * picture.double()).floor().float() / 255
    return torch.where(mask > 0, mixed, image)


def to_bytes(image: Tensor) -> Tensor:
    """Rounds values in [0, 1] to uint8."""
    return (255 * image).round().byte()


def foreground_rule(images: Sequence[Tensor], category: str, options: Options) -> Rule | None:
    """Chooses how to find the foreground in the images (3, H, W) of a category; None: everything is foreground."""
    return choose_rule([image.permute(1, 2, 0).numpy() for image in images], category, options.foreground)
