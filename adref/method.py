"""The contract of a method, between its paper and everything that knows no paper.

A method is one class built from one frozen `Options` dataclass. All randomness of its training enters in `corrupt`,
which data workers call with a random stream keyed by (seed, purpose, epoch, position); `loss` is a pure function of
weights and batch. So neither workers nor a resume change a number.

A new method is a folder in `methods/` with method.py (the class), options.py (`Options`, PRESETS with "paper" and
"tiny", ABLATIONS, DEVIATIONS) and an `__init__` as the others have, and a line in methods/__init__.py. One that does
not train has `Stage("train", 0)` and an optimizer of any parameter. One with a frozen feature extractor has it as
`backbone`, of layers/backbones.py, and names it in `needs`.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from adref.options import Notice, UserError, replace, to_json

STEPS = "length in training steps; none: --epochs decides; --epochs on the command line sets a preset's steps to none"
Stream = Callable[..., np.random.Generator]  # (purpose, number, ...) -> the random stream of these for a run's seed


class Deviation(NamedTuple):
    """One departure from a paper, or one guess where it is silent, that is no option (see `options.option`)."""

    where: str  # the function, class or constant
    kind: Literal["silent", "ambiguous", "contradiction", "mistake", "substitution"]
    paper: str  # what the paper says
    here: str  # what this code does
    why: str


class EarlyStop(NamedTuple):
    """Stops a stage after `patience` epochs without improvement and restores the best weights."""

    patience: int | None  # None: the stage runs its whole length, and the best weights are restored
    share: float  # of the training images, held out to measure the loss; 0: the training loss decides


class Stage(NamedTuple):
    """One stage of training, as data."""

    name: str
    length: int  # in `unit`s; the schedule steps once a unit
    unit: Literal["epochs", "steps"] = "epochs"
    order: Literal["permutation", "replacement"] = "permutation"  # how an epoch draws its images
    early_stop: EarlyStop | None = None
    parts: int = 1  # micro-batches of a batch, whose gradients are added: memory for time


def training_length(epochs: int, steps: int | None) -> tuple[int, Literal["epochs", "steps"]]:
    """Returns the length of a stage and its unit: `steps`, or `epochs` where they are None."""
    return (epochs, "epochs") if steps is None else (steps, "steps")


class Sources(NamedTuple):
    """Inputs of `corrupt` besides the image; None: unused."""

    images: Sequence[Tensor] | None = None  # the clean training images, uint8 (3, H, W) each, at the method's size
    hashes: Sequence | None = None  # `image_hash` of each of `images`
    categories: Sequence[str] | None = None  # the category of each of `images`
    textures: Sequence[Tensor] | None = None  # uint8 (3, H, W) each, at the method's size
    anomalies: dict[str, Sequence[Tensor]] | None = None  # category -> anomalous pictures, as `textures`
    sizes: np.ndarray | None = None  # (n, 3) float64: height, width (in a picture of 256 x 256) and weight
    statistics: Any = None  # `statistics` of the category; category -> statistics for a method of several categories
    stage: str | None = None  # name of the training stage; None: the first
    index: int | None = None  # of the image among `images`; None for an image that is not among them
    notes: list[dict] | None = None  # `corrupt` appends numbers and (H, W) masks that describe what it drew


class Context(NamedTuple):
    """Inputs of scoring that only some methods use, one item an image."""

    # for methods that draw at test time, e.g. data.examples.random_stream(seed, "test", index); None: one fixed stream
    rngs: Sequence[np.random.Generator] | None = None
    hashes: Sequence | None = None  # `image_hash` of each image's file; None: the images themselves are hashed


class Evaluation(NamedTuple):
    """Facts that an evaluation needs to know about a method."""

    tile_unit: int | None = None  # sides and overlaps of tiles are multiples of it; None: the whole image is needed
    aupro: str = "exact"  # the paper's reading of AUPRO, reported beside the exact one (ops.metrics.aupro)


class Trainable(nn.Module):
    """A model that `python -m adref.train` can train.

    `Options` has `size` (height, width), `resize`, `batch_size`, `learning_rate` if it trains, `categories` if a model
    can learn several, `source_resize` if textures and anomalous images are resized in another way than others.
    """

    Options: type
    presets: dict[str, dict] = {}  # changes to the defaults; "paper" is the defaults themselves
    ablations: dict[str, dict] = {}
    stages: tuple[Stage, ...]  # set by the constructor
    changeable: tuple[str, ...] = ()  # options that may differ after training: they make no module, fill no buffer
    needs: dict[str, str] = {}  # "textures", "sizes", "anomalies" or "backbone" -> why, for a message

    def __init__(self, options):
        """Raises UserError for a value that its option does not take."""
        super().__init__()
        self.options = replace(options, to_json(options))

    @staticmethod
    def corrupt(image: Tensor, rng: np.random.Generator, options, sources: Sources) -> NamedTuple:
        """Makes one training example of one clean image (3, H, W) in [0, 1]; runs in data workers."""
        raise NotImplementedError

    @staticmethod
    def image_hash(image: np.ndarray, options) -> np.ndarray | None:
        """Hashes an image at its full resolution, uint8 (H, W, 3), before it is resized; None: not needed."""
        return None

    @staticmethod
    def statistics(images: Sequence[Tensor], category: str, options) -> Any:
        """Computes, once before training, what `corrupt` needs to know of all normal images of a category."""
        return None

    def prepare(self, sources: Sources, stage: str, stream: Stream) -> None:
        """Fills buffers from the training images, those of `sources`, before a stage begins."""

    def loss(self, batch: NamedTuple, stage: str) -> dict[str, Tensor]:
        """Computes named loss terms and their weighted sum "total", each a scalar in float32.

        A name with a slash ("memory/entropy") is a statistic: logged, no part of "total", NaN where there is none.
        """
        raise NotImplementedError

    def optimizer(self, stage: str) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """Makes the optimizer of a stage and its schedule."""
        raise NotImplementedError

    def after_backward(self, stage: str, last: bool) -> None:
        """Changes the gradients after each micro-batch, e.g. clips them; `last`: the optimizer steps next."""

    def finish(self, stage: str, statistics: dict[str, float]) -> None:
        """Looks at a finished stage and may give a Notice; `statistics`: means of an epoch's number of last steps."""

    def load_weights(self, states: list[dict], part: Literal["method", "backbone"] = "method") -> None:
        """Loads published weights before training; UserError for keys or shapes that do not fit.

        `states` are the dictionaries of `--weights`, in order, or, for the frozen feature extractor `backbone`, that of
        `--backbone-weights`, whose ignored names become notices.
        """
        if part != "backbone":
            raise UserError(f"{type(self).__name__} has no published weights that could be loaded")
        try:
            notes = self.backbone.load_published(states[0])
        except ValueError as error:
            raise UserError(str(error)) from None
        for note in notes:
            warnings.warn(f"--backbone-weights: {note}", Notice, stacklevel=2)


class Method(Trainable):
    """A model that scores images."""

    evaluation = Evaluation()

    def anomaly_map(self, images: Tensor, context: Context = Context()) -> Tensor:
        """Maps images (B, 3, H, W) in [0, 1], each by itself, to scores (B, 1, H, W); higher is more anomalous."""
        raise NotImplementedError

    def admit(self, images: Tensor, stride: int = 1, size: tuple[int, int] | None = None) -> Tensor:
        """Returns images (B, 3, H, W) in [0, 1] in the precision of the weights; ValueError for others."""
        if not isinstance(images, Tensor):
            raise ValueError(f"expected a tensor, got {type(images).__name__}")
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point() or images.numel() == 0:
            raise ValueError(f"expected (B, 3, H, W) floats in [0, 1], got {tuple(images.shape)} {images.dtype}")
        # torch.export traces shapes without values. (torch 2.2 has no is_compiling.)
        if not getattr(torch.compiler, "is_compiling", bool)():
            low, high = torch.aminmax(images)
            if not (low >= 0 and high <= 1):  # NaN, too
                raise ValueError(f"expected values in [0, 1], got {low:g} to {high:g}")
        if size is not None and tuple(images.shape[2:]) != tuple(size):
            raise ValueError(f"expected pictures of {tuple(size)}, got {tuple(images.shape[2:])}")
        if images.shape[2] % stride or images.shape[3] % stride:
            raise ValueError(f"expected sides that are multiples of {stride}, got {tuple(images.shape[2:])}")
        return images.to(next(self.parameters()).dtype)

    def image_scores(self, maps: Tensor) -> dict[str, Tensor]:
        """Reduces maps (B, 1, H, W) to image scores (B,) by name; the first decides, others are reported beside it."""
        return {"score": maps.amax(dim=(1, 2, 3))}

    def score(self, images: Tensor, context: Context = Context()) -> tuple[Tensor, Tensor]:
        """Scores a batch: the deciding image scores (B,) and the anomaly maps (B, 1, H, W)."""
        maps = self.anomaly_map(images, context)
        return next(iter(self.image_scores(maps).values())), maps

    def figures(self, image: Tensor | None = None, context: Context = Context()) -> dict[str, Tensor]:
        """Returns the pictures of a report by caption, (C, h, w) in [0, 1] each.

        With an image (1, 3, H, W) they show the steps between it and its map; without one, what the method has learned.
        """
        return {}


class Sampler(Trainable):
    """Draws images for `python -m adref.synthesize RUN`; `Options` has `strength`, `strength_per`, `file_format`."""

    @property
    def labels(self) -> list[str]:
        """Names the kinds of images that the model draws."""
        raise NotImplementedError

    def sample_images(self, labels: Sequence[int], rngs: Sequence[np.random.Generator],
                      strengths: Sequence[float]) -> Tensor:  # fmt: skip
        """Draws images, uint8 (B, 3, H, W), one for each label (its index in `labels`), stream and strength."""
        raise NotImplementedError
