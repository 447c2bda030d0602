"""RealNet's anomalies: five sources, each of which changes a clean image under a mask."""

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from adref.method import Sources
from adref.methods.realnet.cut_paste import cut_paste, draw_rectangle, draw_scar
from adref.methods.realnet.foreground import foreground
from adref.methods.realnet.nsa import NSA_RULES, NSARule, draw_nsa, nsa
from adref.methods.realnet.options import Options
from adref.ops.texture_anomaly import draw_mask, draw_texture

SDAS_OPACITY = (0.5, 1.0)  # delta of SDAS images, uniform; as in the code and the article


def add_anomaly(image: Tensor, rng: Generator, o: Options, sources: Sources, kind: str) -> tuple[Tensor, Tensor]:
    """Adds an anomaly of one source, `kind`, to an image: corrupted (3, H, W), mask (H, W) in {0, 1}, maybe empty."""
    category, shape = sources.categories[sources.index], tuple(image.shape[1:])
    if kind in ("cut_paste", "scar"):
        return cut_paste(image, (draw_rectangle if kind == "cut_paste" else draw_scar)(rng, shape))
    if kind == "nsa":  # patches of another normal image of the category
        same = [i for i, name in enumerate(sources.categories) if name == category and i != sources.index]
        others, rule = same or [sources.index], NSA_RULES.get(category, NSARule())
        other = (sources.images[others[int(rng.integers(len(others)))]].float() / 255).numpy()
        corrupted, mask = nsa(image.numpy(), other, draw_nsa(rng, image.numpy(), other, rule), rule)
        return torch.from_numpy(corrupted), torch.from_numpy(mask)
    mask = draw_mask(rng, shape, exponents=o.perlin_exponents)  # all else as DRAEM's code, and so is the texture
    inside = foreground(to_bytes(image).permute(1, 2, 0).numpy(), sources.statistics[category])
    mask = torch.from_numpy((mask * inside).astype(np.float32))
    if kind == "sdas":
        pictures = sources.anomalies[category]
        picture, opacity = pictures[int(rng.integers(len(pictures)))], SDAS_OPACITY
    else:
        texture = draw_texture(rng, sources.textures, sources.images, own_share=o.own_texture_share)
        picture, opacity = to_bytes(texture), o.texture_opacity
    return blend(image, picture, mask, rng.uniform(*opacity)), mask


def blend(image: Tensor, picture: Tensor, mask: Tensor, opacity: float) -> Tensor:
    """Blends I in [0, 1] with P, uint8 (3, H, W), under M (H, W), in truncated 8-bit values; exactly I off M."""
    mixed = ((1 - opacity) * to_bytes(image).double() + opacity * picture.double()).floor().float() / 255
    return torch.where(mask > 0, mixed, image)


def to_bytes(image: Tensor) -> Tensor:
    """Rounds values in [0, 1] to uint8."""
    return (255 * image).round().byte()
