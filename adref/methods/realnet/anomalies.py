"""RealNet's anomalies: five sources, blended into a clean image."""

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


def masked_anomaly(image: Tensor, rng, o: Options, sources: Sources, kind: str) -> tuple[Tensor, Tensor]:
    """Equation 1 of an SDAS picture or a texture under Perlin noise on the foreground."""
    mask = draw_mask(
        rng,
        tuple(image.shape[1:]),
        exponents=o.perlin_exponents,
        degrees=o.perlin_rotation,
        thresholds=o.mask_threshold,
    )
    mask = mask * foreground(to_bytes(image).permute(1, 2, 0).numpy(), sources.statistics[category(sources)])  # D15
    if kind == "sdas":
        pictures = sources.anomalies[category(sources)]
        picture, opacity = pictures[int(rng.integers(len(pictures)))], o.sdas_opacity
    else:
        texture = draw_texture(
            rng,
            sources.textures,
            sources.images,
            own_share=o.own_texture_share,  # D16
            operations=o.texture_operations,
            operation_count=o.texture_operation_count,
            channel_order=o.channel_order,
        )
        picture, opacity = to_bytes(texture), o.texture_opacity
    mask = torch.from_numpy(mask.astype(np.float32))
    return blend(image, picture, mask, rng.uniform(*opacity)), mask  # D14


def nsa_anomaly(image: Tensor, rng, o: Options, sources: Sources, kind: str) -> tuple[Tensor, Tensor]:
    """Patches of another normal image of the category, set in without seams (D18)."""
    own = category(sources)
    others = [i for i, name in enumerate(sources.categories) if name == own and i != sources.index] or [sources.index]
    other = sources.images[others[int(rng.integers(len(others)))]].float() / 255
    rule = NSA_RULES.get(own, NSARule())
    patches = draw_nsa(rng, image.numpy(), other.numpy(), rule)
    corrupted, mask = nsa(image.numpy(), other.numpy(), patches, rule.mixed)
    return torch.from_numpy(corrupted), torch.from_numpy(mask)


def cut_paste_anomaly(image: Tensor, rng, o: Options, sources: Sources, kind: str) -> tuple[Tensor, Tensor]:
    """A piece of the image itself, in another place (D19)."""
    draw = draw_rectangle if kind == "cut_paste" else draw_scar
    return cut_paste(image, draw(rng, tuple(image.shape[1:])))


def category(sources: Sources) -> str:
    """The category of the image at hand."""
    return sources.categories[sources.index]


def to_bytes(picture: Tensor) -> Tensor:
    """Values in [0, 1] as the nearest of 8 bits."""
    return (255 * picture).round().byte()


def blend(image: Tensor, picture: Tensor, mask: Tensor, opacity: float) -> Tensor:
    """Equation 1 in 8-bit values, cut off to whole ones as in the code; exactly I where M is 0, P where delta is 1.

    Args:
        image: I, (3, H, W) in [0, 1].
        picture: P, (3, H, W) uint8.
        mask: M, (H, W) in {0, 1}.
        opacity: delta.
    """
    mixed = ((1 - opacity) * to_bytes(image).double() + opacity * picture.double()).floor().float() / 255
    return torch.where(mask > 0, mixed, image)


def foreground_rule(images: Sequence[Tensor], name: str, options: Options) -> Rule | None:
    """The rule of a category's foreground; None: everything (D15)."""
    return choose_rule([image.permute(1, 2, 0).numpy() for image in images], name, options.foreground)
