"""The contract between a method and everything that knows no paper: training, evaluation, report, prediction.

A method is one class built from one frozen `Options` dataclass. All randomness of its training enters in `corrupt`,
which data workers call with a stream keyed by (seed, epoch, position); `loss` is a pure function of weights and batch.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adref.options import UserError, replace, to_json


class Deviation(NamedTuple):
    """One departure from a paper, or one guess where it is silent: data, so that an audit can list it."""

    tag: str  # "D1": stands at the line of code, too
    where: str  # "Options.width" or "corrupt"
    kind: Literal["silent", "ambiguous", "contradiction", "mistake", "substitution"]
    paper: str
    here: str
    why: str


class Sources(NamedTuple):
    """What `corrupt` may draw from, and know, beside its image; None where there is no such thing."""

    textures: Sequence[Tensor] | None = None  # uint8 (3, H, W) each, at the method's size
    images: Sequence[Tensor] | None = None  # the clean training images themselves, alike
    sizes: np.ndarray | None = None  # (n, 3) float64: height, width (of a picture of 256 x 256) and weight
    survey: Any = None  # what the method's `survey` found
    journal: list[dict] | None = None  # where `corrupt` may tell what it did: numbers and (H, W) masks


class EarlyStop(NamedTuple):
    """When a stage ends before its length, and that its best weights are its result."""

    patience: int | None  # epochs without a new minimum of the loss after which it ends; None: it never does
    share: float  # of the training images, which do not train: their loss decides; 0: the training loss does


class Trainable(nn.Module):
    """What `python -m adref.train` can train.

    `Options` must have `size` (height, width), `resize`, `epochs` and `batch_size`; the rest is the method's own.
    """

    Options: type
    presets: dict[str, dict] = {}  # noqa: RUF012  changes to the defaults; "paper" is the defaults themselves
    ablations: dict[str, dict] = {}  # noqa: RUF012
    deviations: tuple[Deviation, ...] = ()
    stages: tuple[str, ...] = ("train",)
    length_unit: Literal["epochs", "iterations"] = "epochs"  # what `epochs` counts, and when a schedule steps
    needs: tuple[str, ...] = ()  # fields of `Sources` without which `corrupt` cannot work

    def __init__(self, options):
        """Raises UserError for a value that its option does not take."""
        super().__init__()
        self.options = replace(options, to_json(options))

    @staticmethod
    def corrupt(image: Tensor, rng: np.random.Generator, options, sources: Sources) -> NamedTuple:
        """One training example from one clean image (3, H, W) in [0, 1]; runs in data workers."""
        raise NotImplementedError

    @staticmethod
    def survey(images: Sequence[Tensor], category: str, options) -> Any:
        """What `corrupt` must know of all normal images together, for `Sources.survey`; asked once, before training."""
        return None

    def prepare(self, images: Sequence[Tensor], stage: str) -> None:
        """A look at the training images, uint8 (3, H, W) each, before a stage; what it finds goes into buffers."""

    def early_stop(self, stage: str) -> EarlyStop | None:
        """Whether a loss on normal images may end the stage and choose its weights; None: the last step's are taken."""
        return None

    def order(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """The images of one epoch as indices below `count`; each image once unless a paper says otherwise."""
        return rng.permutation(count)

    def epochs(self, stage: str) -> int:
        """Length of a stage, in `length_unit`s."""
        return self.options.epochs

    def loss(self, batch: NamedTuple, stage: str) -> dict[str, Tensor]:
        """Named terms and their weighted sum "total", each a scalar in float32.

        A name with a slash ("memory/entropy") is a statistic: logged and drawn beside them, and no part of "total".
        """
        raise NotImplementedError

    def optimizer(self, stage: str) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """A new optimiser and its schedule, which the loop steps once a `length_unit`."""
        raise NotImplementedError

    def load_weights(self, states: list[dict]) -> None:
        """Loads published weights before training; `states` are the files of `--weights`, in order.

        Raises:
            UserError: the method knows no published weights, or the keys do not fit.
        """
        raise UserError(f"--weights: {type(self).__name__} has no published weights that it could load")


class Method(Trainable):
    """A `Trainable` that scores images."""

    def anomaly_map(self, images: Tensor, rngs: list[np.random.Generator] | None = None) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 1, H, W), raw: higher is more anomalous. Each image by itself.

        Args:
            images: a batch at the method's own size.
            rngs: one stream an image for methods that draw at test time; the others ignore it.
        """
        raise NotImplementedError

    def image_score(self, maps: Tensor) -> Tensor:
        """(B, 1, H, W) -> (B,): the maximum, unless the paper says otherwise."""
        return maps.amax(dim=(1, 2, 3))

    def score(self, images: Tensor, rngs: list[np.random.Generator] | None = None) -> tuple[Tensor, Tensor]:
        """Image scores (B,), to which decision thresholds belong, and anomaly maps; arguments as of `anomaly_map`."""
        maps = self.anomaly_map(images, rngs)
        return self.image_score(maps), maps

    def reconstruct(self, images: Tensor, rngs: list[np.random.Generator] | None = None) -> Tensor | None:
        """What a person wants to see beside the map: (B, 3, H, W) in [0, 1], or None."""
        return None


def gaussian_smooth(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian filter of maps (..., H, W), mirrored at their edges, edge pixels repeated.

    What scipy.ndimage.gaussian_filter computes (truncate 4, mode "reflect"), as one matrix for each axis, so that it
    runs where the maps are.

    Args:
        maps: floats.
        sigma: in pixels; 0 changes nothing.
    """
    if sigma < 0:
        raise ValueError(f"expected a sigma of 0 or more, got {sigma}")
    if sigma == 0:
        return maps
    reach = int(4 * sigma + 0.5)
    steps = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (steps.double() / sigma) ** 2)
    weights = weights / weights.sum()
    matrices = []
    for length in maps.shape[-2:]:
        place = (torch.arange(length)[:, None] + steps) % (2 * length)  # of a picture and its mirror image, repeated
        place = torch.minimum(place, 2 * length - 1 - place)
        matrix = torch.zeros(length, length, dtype=torch.float64).scatter_add_(1, place, weights.expand(length, -1))
        matrices.append(matrix.to(maps))
    with torch.autocast(maps.device.type, enabled=False):
        return matrices[0] @ maps @ matrices[1].T


def filtered_maximum(maps: Tensor, side: int) -> Tensor:
    """The maximum of a mean filter: (B, 1, H, W) -> (B,).

    The filter has `side` x `side` pixels (odd), stride 1, and counts zeros outside: it always divides by side^2. So one
    lone pixel of value 1 scores 1 / side^2.
    """
    return F.avg_pool2d(maps, side, stride=1, padding=side // 2).amax(dim=(1, 2, 3))


def check_images(images: Tensor, stride: int = 1, size: tuple[int, int] | None = None) -> None:
    """The public edge of every method.

    Args:
        images: a batch.
        stride: of which both sides must be multiples.
        size: (H, W), the only one that the method takes; None: any.

    Raises:
        ValueError: not (B, 3, H, W) floats in [0, 1], or sides that do not fit.
    """
    if not isinstance(images, Tensor):
        raise ValueError(f"expected a tensor, got {type(images).__name__}")
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point() or images.numel() == 0:
        raise ValueError(f"expected (B, 3, H, W) floats in [0, 1], got {tuple(images.shape)} {images.dtype}")
    low, high = torch.aminmax(images)
    if not (low >= 0 and high <= 1):  # NaN, too
        raise ValueError(f"expected values in [0, 1], got {low:g} to {high:g}")
    if size is not None and tuple(images.shape[2:]) != tuple(size):
        raise ValueError(f"expected pictures of {tuple(size)}, got {tuple(images.shape[2:])}")
    if images.shape[2] % stride or images.shape[3] % stride:
        raise ValueError(f"expected sides that are multiples of {stride}, got {tuple(images.shape[2:])}")
