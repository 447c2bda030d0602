"""From images to batches: random streams, resized images, training examples, the order of a stage."""

import hashlib
import math
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adref.data.layouts import Problem
from adref.data.reader import THREADS, decode_image, read_bytes, read_unchanged
from adref.method import Sources, Stage, Trainable
from adref.options import UserError


def random_stream(seed: int, purpose: str, *key: int) -> np.random.Generator:
    """Returns an independent random stream for each seed in [0, 2**64), purpose, and key of numbers in [0, 2**32).

    PCG64 is named because `default_rng` may change. The key is SeedSequence's spawn key, not its entropy, which is
    padded with zeros: there (1,) and (1, 0) would be one stream.
    """
    if not 0 <= seed < 2**64 or not all(0 <= number < 2**32 for number in key):
        raise ValueError(f"expected seed in [0, 2**64) and key in [0, 2**32), got {seed} and {key}")
    sequence = np.random.SeedSequence(seed, spawn_key=(zlib.crc32(purpose.encode()), *key))
    return np.random.Generator(np.random.PCG64(sequence))


def to_tensor(image: np.ndarray) -> Tensor:
    """Views (H, W, 3) uint8 as (3, H, W) uint8."""
    return torch.from_numpy(image).permute(2, 0, 1)


def resize(image: Tensor, size: tuple[int, int], filter: str = "bilinear") -> Tensor:
    """Resizes (3, H, W) uint8 to (3, *size) in float arithmetic, then rounds half to even.

    "bilinear": half-pixel centres, four neighbours, no smoothing, as OpenCV's INTER_LINEAR of float images;
    "antialias": when shrinking, a triangle two steps wide, as Pillow's BILINEAR of float images. For 8-bit
    images both programs count in integers and may differ from this by 1.
    """
    if image.dtype != torch.uint8 or image.ndim != 3 or filter not in ("bilinear", "antialias"):
        raise ValueError(f"expected (3, H, W) uint8, bilinear or antialias; got {image.shape}, {filter!r}")
    # Channels-last memory: twice as fast. Of a large image one channel at a time is in memory as floats.
    parts = image[None].split(3 if image[0].numel() <= 2**24 else 1, dim=1)
    parts = [F.interpolate(x.float(), size, mode="bilinear", antialias=filter == "antialias")[0] for x in parts]
    return torch.cat(parts).round().clamp(0, 255).byte().contiguous()


class Images(Sequence):
    """Decoded, resized images, uint8 (3, height, width) each; every file is read once by the constructor.

    `digests` are the SHA-256 of the files, `hashes` what `image_hash` returned, `problems` the files that cannot be
    read. If all images fit into `memory_limit` bytes they are kept in one tensor. Forked workers share its pages; for
    spawned ones torch moves it to shared memory when it is sent. (It does not start there: a container's /dev/shm is
    often 64 MB, and writing past its end kills the process.) Otherwise files are read again when they are used, and
    one that has changed raises UserError. `image_hash` is called with each image at full resolution, uint8 (H, W, 3).
    """

    def __init__(self, paths: Sequence[Path], size: tuple[int, int], filter: str = "bilinear",
                 memory_limit: float = 2 * 2**30, image_hash: Callable | None = None):  # fmt: skip
        self.paths, self.size, self.filter = [Path(path) for path in paths], tuple(size), filter
        self.in_memory = len(self.paths) * 3 * size[0] * size[1] <= memory_limit
        self.pixels = torch.empty((len(self.paths) if self.in_memory else 0, 3, *self.size), dtype=torch.uint8)

        def read(index: int) -> tuple:
            path = self.paths[index]
            try:
                data = read_bytes(path)
                image, digest = decode_image(data, path), hashlib.sha256(data).hexdigest()
            except UserError as error:
                return None, None, Problem(path, str(error).removeprefix(f"{path}: "))
            if self.in_memory:
                self.pixels[index] = resize(to_tensor(image), self.size, self.filter)
            return digest, image_hash and image_hash(image), None

        with ThreadPoolExecutor(THREADS) as pool:
            rows = list(pool.map(read, range(len(self.paths))))
        self.digests, self.hashes, problems = map(list, zip(*rows)) if rows else ([], [], [])
        self.problems: list[Problem] = [problem for problem in problems if problem]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        if self.in_memory:
            return self.pixels[index]
        path = self.paths[index]
        image = decode_image(read_unchanged(path, self.digests[index]), path)
        return resize(to_tensor(image), self.size, self.filter)


class TrainingSet(torch.utils.data.Dataset):
    """Examples by (epoch, position, index); neither order nor workers change one. `purpose`: of the random streams.

    `images`, uint8 (3, H, W) each, take the place of those of the sources: `corrupt` then gets no index.
    """

    def __init__(self, corrupt: Callable, options, sources: Sources, seed: int, purpose: str,
                 images: Sequence[Tensor] | None = None):  # fmt: skip
        self.corrupt, self.options, self.sources, self.seed, self.purpose = corrupt, options, sources, seed, purpose
        self.images, self.indexed = sources.images if images is None else images, images is None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int, int]) -> NamedTuple:
        epoch, position, index = key
        rng = random_stream(self.seed, self.purpose, epoch, position)
        sources = self.sources._replace(index=index) if self.indexed else self.sources
        return self.corrupt(self.images[index].float() / 255, rng, self.options, sources)


class Schedule:
    """The order of a stage: the examples of each step, as keys (epoch, position in the epoch, image index).

    `images` is their number, `batch_size` the images a step, fewer in the last step of an epoch.
    """

    def __init__(self, stage: Stage, images: int, batch_size: int, seed: int):
        self.stage, self.images, self.batch_size, self.seed = stage, images, batch_size, seed
        self.per_epoch = math.ceil(images / batch_size)  # steps
        self.period = self.per_epoch if stage.unit == "epochs" else 1  # steps between two steps of the learning rate
        self.last_step = stage.length * self.period
        self.order = lru_cache(maxsize=2)(self._order)

    def _order(self, epoch: int) -> np.ndarray:
        rng = random_stream(self.seed, f"order {self.stage.name}", epoch)
        replacement = self.stage.order == "replacement"
        return rng.integers(self.images, size=self.images) if replacement else rng.permutation(self.images)

    def parts(self, step: int) -> list[list[tuple[int, int, int]]]:
        """Returns the micro-batches of a step; the first step is 1."""
        epoch, number = divmod(step - 1, self.per_epoch)
        order, begin = self.order(epoch), number * self.batch_size
        batch = [(epoch, begin + i, int(index)) for i, index in enumerate(order[begin : begin + self.batch_size])]
        size = math.ceil(len(batch) / self.stage.parts)
        return [batch[i : i + size] for i in range(0, len(batch), size)]


def stage_examples(method: Trainable, stage: Stage, sources: Sources, seed: int) -> tuple[TrainingSet, Schedule]:
    """Makes the training examples of a stage, and their order."""
    purpose = "corrupt" if stage == method.stages[0] else f"corrupt {stage.name}"
    data = TrainingSet(method.corrupt, method.options, sources, seed, purpose)
    return data, Schedule(stage, len(data), method.options.batch_size, seed)
