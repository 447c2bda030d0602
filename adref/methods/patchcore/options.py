"""Options of PatchCore with their sources and readings, presets, ablations, and departures that are no option."""

from dataclasses import dataclass
from math import inf
from typing import Literal

from torch import nn

from adref.method import Deviation
from adref.options import UserError, option


@dataclass(frozen=True)
class Options:
    """The defaults are the paper's, of its row PatchCore-10%; "code" is the authors' code."""

    # fmt: off
    size: tuple[int, int] = option((224, 224), "height,width of the input", "section 4.1", limits=(16, 65536),
        kind="substitution", paper="resized to 256 x 256, the central 224 x 224 are kept", why="the whole image at "
        "224: a border of 16 pixels that nobody looks at would count as normal, and masks are not cropped here")
    resize: Literal["antialias", "bilinear"] = option("antialias", "filter that resizes images to --size", "code")
    backbone: Literal["wide_resnet50_2", "resnet50", "resnet34", "resnet18", "efficientnet_b4", "efficientnet_lite0",
                      "mobilenet_v2"] = option(
        "wide_resnet50_2", "frozen network that gives the features", "section 4.1, appendix A", kind="substitution",
        paper="ImageNet weights, in the code torchvision's", why="the user's file, whose hash is recorded; nothing is "
        "downloaded. timm's file of the same network gives other features. All but the two of 50 layers are extensions")
    layers: tuple[int, ...] = option((2, 3), "j, layers that are joined, 1 to 4, ascending", "section 4.4.1",
                                     limits=(1, 4))
    neighbourhood: int = option(3, "p, side of the neighbourhood of a feature, odd", "section 4.4.1", limits=(1, 15))
    width: int | None = option(1024, "numbers that describe a patch; none: the mean of each channel", "code",
        limits=(1, 65536), kind="ambiguous", paper="adaptive average pooling to a dimensionality d", why="the code "
        "pools each layer's neighbourhoods to 1024, then both together. none is the mean of p x p, as in anomalib")
    coreset: float = option(0.1, "share of the patches that is kept; 1: all", "table 1", limits=(1e-6, 1))
    neighbours: int = option(9, "b, neighbours of m*, itself one, that weight the image's score; 1: no weight (code)",
        "equation 7", limits=(1, 10000), kind="silent", paper="b is a hyperparameter, without a value",
        why="anomalib's; the authors' code has no equation 7 at all, which would give 0 for b = 1")
    map_distance: Literal["plain", "squared"] = option("plain", "distance of which the map is made", "equation 6",
        kind="contradiction", paper="the distance", why="the code's map has squares, which its search library returns")
    batch_size: int = option(8, "images at a time while the memory is filled; changes last bits at most", "adref",
                             limits=(1, inf))
    # fmt: on


# Features that come by pip or are small, at 256 pixels, and a memory that is chosen in a minute; small has the paper's.
TINY = {"size": (256, 256), "backbone": "efficientnet_lite0", "width": None, "coreset": 0.01}
PRESETS = {"paper": {}, "tiny": TINY, "small": {**TINY, "coreset": 0.1}}

ABLATIONS = {
    # tables 1 and 5; the default is PatchCore-10%
    "patchcore-25": {"coreset": 0.25}, "patchcore-1": {"coreset": 0.01}, "patchcore-100": {"coreset": 1.0},
    # the authors' code
    "code": {"neighbours": 1, "map_distance": "squared"},
}  # fmt: skip

DEVIATIONS = (
    Deviation("bank.patch_features", "silent", "neighbourhoods at the border", "zeros outside, which count",
              "the code's"),
    Deviation("bank.greedy_coreset", "silent", "algorithm 1 starts with an empty set", "from the feature that is "
              "farthest from ten random ones; their mean distances bound all later ones", "the code's; its other "
              "sampler starts from the largest norm of all distances, for which it keeps the square of their number"),
    Deviation("bank.greedy_coreset", "mistake", "chooses among M without M_C", "no feature twice, one at least",
              "the code may choose one again where all others are its copies, and none of fewer than ten"),
    Deviation("bank.draw_projection", "silent", "a random linear projection", "uniform, to 128 dimensions; none for "
              "features of 128 numbers", "the code's"),
    Deviation("PatchCore.score", "ambiguous", "N_b(m*), the b nearest in M to m*", "nearest in the coreset M_C; m* is "
              "one of them", "anomalib's; after algorithm 1 M is M_C"),
    Deviation("SMOOTHING", "silent", "a Gaussian of width 4", "scipy's, cut off at 4 widths, mirrored", "the code's"),
)  # fmt: skip


def check(o: Options, backbone: nn.Module) -> None:
    """Raises UserError for options that do not fit together."""
    if not o.layers or list(o.layers) != sorted(set(o.layers)):
        raise UserError(f"--layers takes different numbers in ascending order; got {','.join(map(str, o.layers))}")
    if o.neighbourhood % 2 == 0:
        raise UserError(f"--neighbourhood takes an odd number; got {o.neighbourhood}")
    if o.width and o.width > (least := min(backbone.channels[j - 1] for j in o.layers) * o.neighbourhood**2):
        raise UserError(f"--width takes none, or up to {least}, a neighbourhood of {o.backbone}; got {o.width}")
