"""The contract between a method and everything that knows no paper: training, evaluation, report, prediction.

A method is one class built from one frozen `Options` dataclass. All randomness of its training enters in `corrupt`,
which data workers call with a stream keyed by (seed, epoch, position); `loss` is a pure function of weights and batch.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
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
    looks: Sequence | None = None  # what the method's `look` found in each of `images`
    paths: Sequence[str] | None = None  # the files of `images`
    categories: Sequence[str] | None = None  # the category of each of `images`
    anomalies: dict[str, Sequence[Tensor]] | None = None  # category -> whole anomalous pictures, like `textures`
    sizes: np.ndarray | None = None  # (n, 3) float64: height, width (of a picture of 256 x 256) and weight
    survey: Any = None  # what the method's `survey` found; with `many_categories`, category -> what it found
    stage: str | None = None  # of training, which asks; None: the first
    index: int | None = None  # of the image at hand among `images`
    journal: list[dict] | None = None  # where `corrupt` may tell what it did: numbers and (H, W) masks


Stream = Callable[..., np.random.Generator]

"""(purpose, number, ...) -> the random stream of these, for a run's seed."""


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
    many_categories: bool = False  # whether one model may learn several
    backbone_source: str | None = None  # where the weights of its frozen feature extractor are to be had; None: no such

    def __init__(self, options):
        """Raises UserError for a value that its option does not take."""
        super().__init__()
        self.options = replace(options, to_json(options))

    @staticmethod
    def corrupt(image: Tensor, rng: np.random.Generator, options, sources: Sources) -> NamedTuple:
        """One training example from one clean image (3, H, W) in [0, 1]; runs in data workers."""
        raise NotImplementedError

    @staticmethod
    def look(image: np.ndarray, options) -> Any:
        """What must be known of a picture at its own size, uint8 (H, W, 3), before it is resized; None: nothing.

        Asked for each training image (`Sources.looks`) and each image that is scored.
        """
        return None

    @staticmethod
    def survey(images: Sequence[Tensor], category: str, options) -> Any:
        """What `corrupt` must know of all normal images of a category together, for `Sources.survey`.

        Asked once a category, before training.
        """
        return None

    def prepare(self, sources: Sources, stage: str, stream: Stream | None = None) -> None:
        """A look at what a stage trains on before it begins; what it finds goes into buffers.

        Args:
            sources: of the stage.
            stage: its name.
            stream: gives the random stream of a purpose and numbers, for methods that draw here.
        """

    def early_stop(self, stage: str) -> EarlyStop | None:
        """Whether a loss on normal images may end the stage and choose its weights; None: the last step's are taken."""
        return None

    def order(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """The images of one epoch as indices below `count`; each image once unless a paper says otherwise."""
        return rng.permutation(count)

    def epochs(self, stage: str) -> int:
        """Length of a stage, in `length_unit`s."""
        return self.options.epochs

    def micro_batches(self, stage: str) -> int:
        """How many parts a batch is cut into, whose gradients are added up: memory for time."""
        return 1

    def after_backward(self, stage: str, last: bool) -> None:
        """Called when the gradient of each part of a batch has been added, e.g. to clip it; `last`: a step follows."""

    def after_step(self, stage: str) -> None:
        """Called when the optimiser has stepped, e.g. for an average of the weights."""

    def loss(self, batch: NamedTuple, stage: str) -> dict[str, Tensor]:
        """Named terms and their weighted sum "total", each a scalar in float32.

        A name with a slash ("memory/entropy") is a statistic: logged and drawn beside them, and no part of "total". It
        is NaN where a batch has nothing to count: to ask the batch first would make the host wait for the device.
        """
        raise NotImplementedError

    def optimizer(self, stage: str) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """A new optimiser and its schedule, which the loop steps once a `length_unit`."""
        raise NotImplementedError

    def load_backbone(self, state: dict) -> None:
        """Loads the published weights of the feature extractor, the file of `--backbone-weights`.

        Raises:
            UserError: the keys do not fit.
        """
        raise NotImplementedError

    def load_weights(self, states: list[dict]) -> None:
        """Loads published weights before training; `states` are the files of `--weights`, in order.

        Raises:
            UserError: the method knows no published weights, or the keys do not fit.
        """
        raise UserError(f"--weights: {type(self).__name__} has no published weights that it could load")


Rngs = Sequence[np.random.Generator] | None

"""One stream an image, for methods that draw at test time."""


Looks = Sequence | None

"""What `look` found in each image, for methods that look at pictures at their own size."""


class Method(Trainable):
    """A `Trainable` that scores images."""

    open_picture: Callable[[str], Tensor] | None = None  # reads a file as `Sources.images` has it; `run.load` sets it
    aupro_convention: str = "exact"  # the paper's own reading of AUPRO, reported beside the exact one
    sees_whole: str | None = None  # why no part of a picture will do; None: tiles may be scored (adref.tiles)
    tile_unit: int = 1  # of which sides and overlaps of tiles are multiples

    def anomaly_map(self, images: Tensor, rngs: Rngs = None, looks: Looks = None) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 1, H, W), raw: higher is more anomalous. Each image by itself.

        Args:
            images: a batch at the method's own size.
            rngs: a stream an image, or None; most methods ignore it.
            looks: what `look` found, an item an image, or None; most methods ignore it.
        """
        raise NotImplementedError

    def image_score(self, maps: Tensor) -> Tensor:
        """(B, 1, H, W) -> (B,): the maximum, unless the paper says otherwise."""
        return maps.amax(dim=(1, 2, 3))

    def score(self, images: Tensor, rngs: Rngs = None, looks: Looks = None) -> tuple[Tensor, Tensor]:
        """Image scores (B,), to which decision thresholds belong, and anomaly maps; arguments as of `anomaly_map`."""
        maps = self.anomaly_map(images, rngs, looks)
        return self.image_score(maps), maps

    def other_scores(self, maps: Tensor) -> dict[str, Tensor]:
        """Other readings of the image score, which are reported beside it: name -> (B,)."""
        return {}

    def portraits(self) -> dict[str, Tensor]:
        """What a person wants to see of the method before any test image: caption -> (C, h, w) in [0, 1]."""
        return {}

    def reconstruct(self, images: Tensor, rngs: Rngs = None, looks: Looks = None) -> Tensor | None:
        """What the method makes of images, for the eye: (B, 3, H, W) in [0, 1], or None."""
        return None

    def steps(self, image: Tensor, rngs: Rngs = None, looks: Looks = None) -> dict[str, Tensor]:
        """What a person wants to see between one image (1, 3, H, W) and its map: caption -> (C, h, w) in [0, 1]."""
        rebuilt = self.reconstruct(image, rngs, looks)
        return {} if rebuilt is None else {"reconstruction": rebuilt[0]}


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
    # A graph that torch.export draws knows shapes and no values. (torch 2.2 does not have the question.)
    if not getattr(torch.compiler, "is_compiling", bool)():
        low, high = torch.aminmax(images)
        if not (low >= 0 and high <= 1):  # NaN, too
            raise ValueError(f"expected values in [0, 1], got {low:g} to {high:g}")
    if size is not None and tuple(images.shape[2:]) != tuple(size):
        raise ValueError(f"expected pictures of {tuple(size)}, got {tuple(images.shape[2:])}")
    if images.shape[2] % stride or images.shape[3] % stride:
        raise ValueError(f"expected sides that are multiples of {stride}, got {tuple(images.shape[2:])}")
