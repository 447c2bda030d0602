"""Where the object is, by a threshold for each category: RealNet's rules, as data.

X. Zhang, M. Xu, X. Zhou, "RealNet: A Feature Selection Network with Realistic Synthetic Anomaly for Anomaly Detection",
CVPR 2024, confines its anomalies to the object; which threshold finds it is in its code only. The rules are made for
pictures of 256 x 256 pixels. Pictures are numpy arrays with the channels last.
"""

import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import scipy

from adref.ops.image import frame_share, grey, otsu
from adref.options import Notice


def triangle(image: np.ndarray) -> int:
    """The threshold farthest below the line from the histogram's peak to the end of its longer tail.

    G. Zack, W. Rogers, S. Latt, "Automatic measurement of sister chromatid exchange frequency", J. Histochem.
    Cytochem. 1977, as OpenCV has it. With the counts h, the peak p (the first) and the last empty level l before the
    tail, mirrored if the tail is on the right, the result is one below the first level i in (l, p] that maximises

        h_p i - (p - l) h_i,   l itself where nothing is above 0

    Args:
        image: uint8, any shape.

    Returns:
        t in [-1, 255]: the upper class is value > t. For a picture of one value v > 1 that is v - 1, so all of it; -1
        for 1, and 1 for 0, as in OpenCV.
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
    """How to find a category's object; the sides are those of squares, in pixels, and 1 changes nothing."""

    threshold: Literal["otsu", "triangle"]
    channel: Literal["grey", "red", "green", "blue"]  # grey: OpenCV's
    object: Literal["bright", "dark"]  # above the threshold, or not above it
    closing: int
    opening: int


# By the name of the category; None: everything is object.
RULES: dict[str, Rule | None] = {
    # MVTec AD
    **dict.fromkeys(("carpet", "leather", "tile", "wood", "cable", "transistor")),
    "pill": Rule("otsu", "grey", "bright", 6, 6),
    **dict.fromkeys(("hazelnut", "metal_nut", "toothbrush"), Rule("triangle", "grey", "bright", 6, 6)),
    **dict.fromkeys(("bottle", "capsule", "grid", "screw", "zipper"), Rule("otsu", "grey", "dark", 6, 6)),
    # VisA
    "capsules": None,
    **dict.fromkeys(("pcb1", "pcb2", "pcb3", "pcb4"), Rule("triangle", "blue", "bright", 8, 3)),
    **dict.fromkeys(
        ("candle", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2", "pipe_fryum"),
        Rule("otsu", "grey", "bright", 3, 3),
    ),
    # MPDD
    **dict.fromkeys(("bracket_black", "bracket_brown", "connector"), Rule("otsu", "green", "dark", 6, 1)),
    **dict.fromkeys(("bracket_white", "tubes"), Rule("otsu", "blue", "bright", 6, 1)),
    "metal_plate": Rule("otsu", "grey", "dark", 6, 1),
    # BTAD
    "02": None,
    **dict.fromkeys(("01", "03"), Rule("otsu", "grey", "bright", 15, 6)),
}


def foreground(image: np.ndarray, rule: Rule | None) -> np.ndarray:
    """The object's pixels: threshold, then closing, then opening with squares; the frame mirrors the mask.

    Args:
        image: uint8 (H, W, 3), RGB.
        rule: of `RULES`; None: everything is object.

    Returns:
        (H, W) bool; all or nothing for a picture of one colour.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected uint8 (H, W, 3), got {image.dtype} {image.shape}")
    if rule is None:
        return np.ones(image.shape[:2], bool)
    channels = {"red": 0, "green": 1, "blue": 2}
    values = grey(image, "opencv") if rule.channel == "grey" else image[:, :, channels[rule.channel]]
    level = otsu(values).threshold if rule.threshold == "otsu" else triangle(values)
    mask = values > level if rule.object == "bright" else values <= level
    # Bytes: scipy's grey morphology moves the origin of an even square between its two steps.
    mask = scipy.ndimage.grey_closing(mask.astype(np.uint8), size=(rule.closing, rule.closing))
    return scipy.ndimage.grey_opening(mask, size=(rule.opening, rule.opening)) > 0


def choose_rule(
    images: Sequence[np.ndarray], name: str, kind: Literal["rules", "none", "bright", "dark", "auto"] = "rules"
) -> Rule | None:
    """The rule for all images of a category; None: everything is object.

    Args:
        images: uint8 (H, W, 3) each; looked at for "auto" alone.
        name: of the category.
        kind: "rules": that of `RULES`, with a notice, as another category may have the same name; everything where it
            has none. "bright" and "dark": Otsu's classes. "auto": that of the two which is not most of the frame, 5
            pixels wide, of the images together.
    """
    if kind == "none":
        return None
    if kind == "rules":
        if name in RULES:
            where = "everywhere" if RULES[name] is None else " ".join(map(str, RULES[name]))
            text = f"anomalies of {name} lie where RealNet's code puts those of its category: {where}"
            warnings.warn(f"{text} (--foreground none: everywhere)", Notice, stacklevel=2)
        return RULES.get(name)
    if kind == "auto":
        shares = []
        for image in images:
            values = grey(image, "opencv")
            shares.append(frame_share(values > otsu(values).threshold))
        kind = "dark" if np.mean(shares) > 0.5 else "bright"
    return Rule("otsu", "grey", kind, 6, 6)
