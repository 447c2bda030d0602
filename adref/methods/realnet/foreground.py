"""The foreground, to which RealNet confines anomalies: the authors' rules by category, for images of 256 x 256."""

import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import scipy
from torch import Tensor

from adref.methods.realnet.options import Options
from adref.ops.image import frame_share, grey, otsu
from adref.options import Notice


def triangle(image: np.ndarray) -> int:
    """Computes the threshold farthest below the line from the histogram's peak to the end of its longer tail.

    G. Zack, W. Rogers, S. Latt, J. Histochem. Cytochem. 1977, as in OpenCV. With the counts h, the peak p (the first)
    and the last empty level l before the tail, mirrored if the tail is on the right, the result is one below the first
    level i in (l, p] that maximises h_p i - (p - l) h_i, or below l where nothing is above 0.

    The upper class of the uint8 image is above the result. For one value v it is v - 1, -1 for v = 1, and 1 for v = 0.
    """
    h = np.bincount(image.ravel(), minlength=256)
    filled, p = np.flatnonzero(h), int(h.argmax())
    low, high = max(int(filled[0]) - 1, 0), min(int(filled[-1]) + 1, 255)
    mirrored = p - low < high - p
    if mirrored:
        h, low, p = h[::-1], 255 - high, 255 - p
    distance = h[p] * np.arange(low, p + 1) - (p - low) * h[low : p + 1]
    distance[0] = 0  # the end of the tail is taken where no level is above it
    threshold = low + int(distance.argmax()) - 1
    return 255 - threshold if mirrored else threshold


class Rule(NamedTuple):
    """Finds a category's foreground by a threshold, then closing and opening."""

    threshold: Literal["otsu", "triangle"]
    channel: Literal["grey", "red", "green", "blue"]  # grey: OpenCV's
    object: Literal["bright", "dark"]  # above the threshold, or not above it
    closing: int  # side of the square in pixels; 1 changes nothing
    opening: int


# By the category's name; None: everything is foreground.
RULES: dict[str, Rule | None] = {
    # MVTec AD
    **dict.fromkeys(("carpet", "leather", "tile", "wood", "cable", "transistor")),
    "pill": Rule("otsu", "grey", "bright", 6, 6),
    **dict.fromkeys(("hazelnut", "metal_nut", "toothbrush"), Rule("triangle", "grey", "bright", 6, 6)),
    **dict.fromkeys(("bottle", "capsule", "grid", "screw", "zipper"), Rule("otsu", "grey", "dark", 6, 6)),
    # VisA
    "capsules": None,
    **dict.fromkeys(("pcb1", "pcb2", "pcb3", "pcb4"), Rule("triangle", "blue", "bright", 8, 3)),
    **dict.fromkeys(("candle", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2", "pipe_fryum"),
                    Rule("otsu", "grey", "bright", 3, 3)),
    # MPDD
    **dict.fromkeys(("bracket_black", "bracket_brown", "connector"), Rule("otsu", "green", "dark", 6, 1)),
    **dict.fromkeys(("bracket_white", "tubes"), Rule("otsu", "blue", "bright", 6, 1)),
    "metal_plate": Rule("otsu", "grey", "dark", 6, 1),
    # BTAD
    "02": None,
    **dict.fromkeys(("01", "03"), Rule("otsu", "grey", "bright", 15, 6)),
}  # fmt: skip


def foreground(image: np.ndarray, rule: Rule | None) -> np.ndarray:
    """Finds the foreground by a rule, None: everything; uint8 (H, W, 3) RGB -> bool (H, W); one colour: all or none."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected uint8 (H, W, 3), got {image.dtype} {image.shape}")
    if rule is None:
        return np.ones(image.shape[:2], bool)
    values = grey(image, "opencv") if rule.channel == "grey" else image[..., "rgb".index(rule.channel[0])]
    level = otsu(values).threshold if rule.threshold == "otsu" else triangle(values)
    mask = values > level if rule.object == "bright" else values <= level
    # Bytes: scipy's grey morphology moves the origin of an even square between its steps. It mirrors at the frame.
    mask = scipy.ndimage.grey_closing(mask.astype(np.uint8), size=(rule.closing, rule.closing))
    return scipy.ndimage.grey_opening(mask, size=(rule.opening, rule.opening)) > 0


def foreground_rule(images: Sequence[Tensor], category: str, options: Options) -> Rule | None:
    """Chooses the rule for the images of a category, uint8 (3, H, W) each; None: everything is foreground.

    --foreground rules: by `RULES`, with a notice because another category may have the same name; bright, dark: Otsu's
    upper or lower class; auto: the one that holds less of the images' frames, 5 pixels wide; none.
    """
    kind, rule = options.foreground, RULES.get(category)
    if kind == "none" or (kind == "rules" and category not in RULES):
        return None
    if kind == "rules":
        where = "everywhere" if rule is None else " ".join(map(str, rule))
        text = f"anomalies of {category} lie where RealNet's code puts those of its category: {where}"
        warnings.warn(f"{text} (--foreground none: everywhere)", Notice, stacklevel=2)
        return rule
    if kind == "auto":
        values = (grey(image.permute(1, 2, 0).numpy(), "opencv") for image in images)
        kind = "dark" if np.mean([frame_share(v > otsu(v).threshold) for v in values]) > 0.5 else "bright"
    return Rule("otsu", "grey", kind, 6, 6)
