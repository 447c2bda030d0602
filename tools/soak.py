"""Long training and prediction in one process: does memory grow, do files stay open?

    python tools/soak.py [--steps 2000] [--pictures 2000] [--workers 2] [--bound 16]

Trains a tiny DRAEM, which reads its pictures from the disk again in every epoch, then predicts. Prints resident memory
and open files, data workers included, and ends with 1 where between the second quarter of a phase and its last (the
first is the warm-up) memory has grown by more than --bound MiB, or open files by more than 8: batches on their way from
a worker hold some. Needs /proc (Linux).
"""

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image

from adref import journal, predict, train

SIZE, IMAGES, BATCH = 64, 16, 2
FILES = 8


class Phase:
    """Samples of memory (MiB) and open files while a function is called again and again."""

    def __init__(self, name: str, length: int, every: int):
        self.name, self.length, self.every, self.calls = name, length, every, 0
        self.samples: list[tuple[float, int]] = []

    def watch(self, function):
        """The function, with a sample after every so many calls."""

        def watched(*arguments):
            result = function(*arguments)
            self.calls += 1
            if self.calls % self.every == 0:
                self.samples.append(sample())
                memory, files = self.samples[-1]
                print(f"{self.name} {self.calls}/{self.length}: {memory:.1f} MiB, {files} open files", flush=True)
            return result

        return watched

    def growth(self) -> tuple[float, int]:
        """How much larger the least sample of the last quarter is than that of the second one."""
        quarter = len(self.samples) // 4
        second, last = self.samples[quarter : 2 * quarter], self.samples[-quarter:]
        return tuple(min(values) - min(before) for values, before in zip(zip(*last), zip(*second)))


def sample() -> tuple[float, int]:
    """Resident memory in MiB and open files of this process and its children; shared pages count in each."""
    memory = files = 0
    for pid in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
        memory += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
        files += len(os.listdir(f"/proc/{pid}/fd"))
    return memory / 2**20, files


def main(argv: list[str] | None = None) -> int:
    """Runs both phases; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--bound", type=float, default=16, metavar="MIB")
    parser.add_argument("--every", type=int, default=100, metavar="N", help="calls between two samples")
    arguments = parser.parse_args(argv)
    if min(arguments.steps, arguments.pictures) < 4 * arguments.every:
        parser.error("--steps and --pictures take four times --every or more")
    torch.set_num_threads(1)
    training = Phase("step", arguments.steps, arguments.every)
    prediction = Phase("picture", arguments.pictures, arguments.every)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_pictures(root / "textures", 4)
        write_pictures(root / "good", IMAGES)
        write_pictures(root / "new", IMAGES)
        for i in range(IMAGES, arguments.pictures):
            os.link(root / f"new/{i % IMAGES}.png", root / f"new/{i}.png")
        epochs = -(-arguments.steps * BATCH // IMAGES)
        words = ["draem", "--data", root / "good", "--textures", root / "textures", "--out", root / "run",
                 "--size", f"{SIZE},{SIZE}", "--reconstruction-width", 4, "--discriminator-width", 4,
                 "--score-window", 5, "--batch-size", BATCH, "--epochs", epochs, "--workers", arguments.workers,
                 "--memory-limit", 0, "--holdout", 0, "--device", "cpu",
                 "--checkpoint-steps", arguments.every]  # fmt: skip
        with mock.patch.object(journal, "append_log", training.watch(journal.append_log)):
            if code := train.main(list(map(str, words))):
                return code
        words = [root / "run", root / "new", "--out", root / "out", "--device", "cpu"]
        with mock.patch.object(predict, "score_image", prediction.watch(predict.score_image)):
            if code := predict.main(list(map(str, words))):
                return code
    return max([verdict(phase, arguments.bound) for phase in (training, prediction)])


def write_pictures(folder: Path, count: int) -> None:
    """Noise, as PNG."""
    folder.mkdir()
    rng = np.random.default_rng(count)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(folder / f"{i}.png")


def verdict(phase: Phase, bound: float) -> int:
    """Prints what a phase took at its quarters; 1 where it grew."""
    count = len(phase.samples)
    quarters = ", ".join(f"{phase.samples[count * k // 4 - 1][0]:.1f}" for k in (1, 2, 3, 4))
    memory, files = phase.growth()
    failed = memory > bound or files > FILES
    print(f"{phase.name}: {quarters} MiB at 25, 50, 75, 100 %; growth {memory:+.1f} MiB (bound {bound:g}), "
          f"{phase.samples[-1][1]} open files, growth {files:+d}: {'FAILED' if failed else 'sound'}")  # fmt: skip
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
