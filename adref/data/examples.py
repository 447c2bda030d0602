"""What training draws from: random streams, resized pictures, examples, batches."""

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adref.data.reader import THREADS, read_image
from adref.method import Stage
from adref.options import UserError
from adref.run import distributed


def random_stream(seed: int, purpose: str, *key: int) -> np.random.Generator:
    """An independent stream for each seed in [0, 2**64), purpose, and key of numbers in [0, 2**32).

    The same on every platform: PCG64 is named because `default_rng` may change. The key is SeedSequence's
    spawn key and not its entropy, which is padded with zeros: there (1,) and (1, 0) would be one stream.
    """
    if not 0 <= seed < 2**64 or not all(0 <= number < 2**32 for number in key):
        raise ValueError(f"expected seed in [0, 2**64) and key in [0, 2**32), got {seed} and {key}")
    sequence = np.random.SeedSequence(seed, spawn_key=(zlib.crc32(purpose.encode()), *key))
    return np.random.Generator(np.random.PCG64(sequence))


def to_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 to (3, H, W) uint8, the same memory."""
    return torch.from_numpy(image).permute(2, 0, 1)


def resize(image: Tensor, size: tuple[int, int], filter: str = "bilinear") -> Tensor:
    """Resizes (3, H, W) uint8 to (3, *size) in float arithmetic, then rounds half to even.

    "bilinear": half-pixel centres, four neighbours, no smoothing, as OpenCV's INTER_LINEAR of float images;
    "antialias": when shrinking, a triangle two steps wide, as Pillow's BILINEAR of float images. For 8-bit
    images both programs count in integers and may differ from this by 1.
    """
    if image.dtype != torch.uint8 or image.ndim != 3 or filter not in ("bilinear", "antialias"):
        raise ValueError(f"expected (3, H, W) uint8, bilinear or antialias; got {image.shape}, {filter!r}")
    # Channels stay last where they are: twice as fast, and the same bits.
    pixels = F.interpolate(image[None].float(), size, mode="bilinear", antialias=filter == "antialias")
    return pixels[0].round().clamp(0, 255).byte().contiguous()


class Images(Sequence):
    """Decoded, resized images, (3, height, width) uint8 each; one that fails raises UserError with its name.

    If all fit into `memory_limit` bytes they are read once, now, into one tensor. Forked workers share its pages; for
    spawned ones torch moves it to shared memory when it is sent, still one copy. It does not start there: a
    container's /dev/shm is often 64 MB, and writing past its end kills the process. If not, a file that changes from
    now on raises UserError when it is read: what a run trains on is what it began with.
    The threads that read ask `look` about each picture at its own size, (H, W, 3) uint8; `looks` is what it said.
    """

    def __init__(self, paths: Sequence, size: tuple[int, int], filter="bilinear", memory_limit=2 * 2**30, look=None):
        self.paths, self.size, self.filter = [Path(path) for path in paths], tuple(size), filter
        self.in_memory = len(self.paths) * 3 * size[0] * size[1] <= memory_limit
        self.pixels = torch.empty((len(self.paths) if self.in_memory else 0, 3, *self.size), dtype=torch.uint8)

        def read(index: int):
            image = read_image(self.paths[index])
            if self.in_memory:
                self.pixels[index] = resize(to_tensor(image), self.size, self.filter)
            return look and look(image)

        self.stamps = None if self.in_memory else [_stamp(path) for path in self.paths]
        if self.in_memory or look:
            with ThreadPoolExecutor(THREADS) as pool:  # list() raises what a thread raised
                self.looks = list(pool.map(read, range(len(self.paths))))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        if self.in_memory:
            return self.pixels[index]
        image = read_image(self.paths[index])
        if _stamp(self.paths[index]) != self.stamps[index]:
            raise UserError(f"{self.paths[index]} has changed since the command began; expected it to stay as it was")
        return resize(to_tensor(image), self.size, self.filter)


def _stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of the last change of a file, None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


class TrainingSet(torch.utils.data.Dataset):
    """Examples by (epoch, position, index): `corrupt(image, rng, options, sources)`; order and workers change none."""

    def __init__(self, images: Sequence[Tensor], corrupt: Callable, options, sources, seed: int, purpose="corrupt"):
        self.images, self.corrupt, self.options, self.sources, self.seed = images, corrupt, options, sources, seed
        self.purpose = purpose  # of the random streams

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int, int]) -> NamedTuple:
        epoch, position, index = key
        rng = random_stream(self.seed, self.purpose, epoch, position)
        sources = self.sources._replace(index=index if self.images is self.sources.images else None)
        return self.corrupt(self.images[index].float() / 255, rng, self.options, sources)


class Batches:
    """The batches of one stage from a step on, each a list of (epoch, position in the epoch, image index).

    Of several processes each gets its share of every part of a batch.
    """

    def __init__(self, method, plan: Stage, count: int, seed: int, first_step: int):
        self.plan, self.stage, self.count, self.seed, self.first_step = (
            plan,
            plan.name,
            count,
            seed,
            first_step,
        )
        self.size, self.parts = method.options.batch_size, plan.parts
        self.per_epoch = math.ceil(count / self.size)  # the last, smaller batch is kept
        self.period = self.per_epoch if plan.unit == "epochs" else 1  # steps a unit of length
        self.last_step = plan.length * self.period

    def __len__(self) -> int:
        return max(0, self.last_step - self.first_step)

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for epoch in range(self.first_step // self.per_epoch, math.ceil(self.last_step / self.per_epoch)):
            rng = random_stream(self.seed, f"order {self.stage}", epoch)
            drawn = self.plan.order == "replacement"
            order = rng.integers(self.count, size=self.count) if drawn else rng.permutation(self.count)
            keys = [(epoch, position, int(index)) for position, index in enumerate(order)]
            skip = self.first_step % self.per_epoch if epoch == self.first_step // self.per_epoch else 0
            for step in range(skip, min(self.per_epoch, self.last_step - epoch * self.per_epoch)):
                batch = keys[step * self.size : (step + 1) * self.size]
                yield [
                    key for part in distributed.parts(len(batch), self.parts) for key in distributed.share(batch[part])
                ]

    def images(self, step: int) -> int:
        """How many images the batch of a step has, those of all processes; the first step is 1."""
        return min(self.size, self.count - (step - 1) % self.per_epoch * self.size)
