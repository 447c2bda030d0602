"""Seconds and peak memory of `python -m adref.evaluate` on large test sets, with a network that costs nothing.

    python tools/scale.py                                # 10,000 pictures of 256 x 256, 100 of 2048 x 2048
    python tools/scale.py --set 83x1024 --folder FOLDER  # another set, and where its files lie meanwhile

Pictures, masks, checks, maps, metrics and report are those of the command; the map is the mean over the colours. Every
second picture is anomalous, of two kinds in turn, in 3 % of its pixels. 40 pictures have further names. Files: about 4
bytes a pixel.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from adref import evaluate, train
from adref.methods.draem import DRAEM

FLAGS = ["--size", "64,64", "--reconstruction-width", "4", "--discriminator-width", "4", "--batch-size", "2",
         "--epochs", "1", "--workers", "0", "--device", "cpu", "--score-window", "5"]  # fmt: skip


def main() -> None:
    """Each set in a process of its own, whose peak is its own."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--set", dest="sets", nargs="+", default=["10000x256", "100x2048"], metavar="PICTURESxSIDE")
    parser.add_argument("--folder", help="where the files lie, which are deleted afterwards [a temporary folder]")
    arguments = parser.parse_args()
    for name in arguments.sets:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            made = make(Path(folder), *map(int, name.split("x")))
            print(f"{name}: files made in {made:.0f} s", flush=True)
            command = "import sys, scale; scale.measure(sys.argv[1])"
            subprocess.run([sys.executable, "-c", command, folder], check=True, cwd=Path(__file__).parent)


def make(folder: Path, count: int, side: int) -> float:
    """FOLDER/data/part with the test set, and FOLDER/run, trained on four small pictures; seconds that it took."""
    start, rng = time.perf_counter(), np.random.default_rng(0)
    base = Image.fromarray(rng.integers(60, 180, (side // 8, side // 8, 3), np.uint8))
    base = np.asarray(base.resize((side, side), Image.Resampling.BILINEAR))
    width = round(0.3 * side)
    for kind in ("train/good", "test/good", "test/a", "test/b", "ground_truth/a", "ground_truth/b"):
        (folder / "data/part" / kind).mkdir(parents=True)
    for i in range(4):
        Image.fromarray(base[i : 40 + i, :48]).save(folder / f"data/part/train/good/{i}.png")
    shutil.copytree(folder / "data/part/train", folder / "small/part/train")
    for i in range(count):
        kind = ("good", "a", "good", "b")[i % 4]
        files = ["ground_truth", "test"] if kind != "good" else ["test"]
        if i >= 40:
            for part in (folder / "data/part" / file / kind for file in files):
                os.link(part / f"{i % 40:05d}.png", part / f"{i:05d}.png")
            continue
        picture = np.roll(base, rng.integers(side, size=2), (0, 1))
        if kind != "good":
            mask, (y, x) = np.zeros((side, side), bool), rng.integers(side - width, size=2)
            mask[y : y + width // 3, x : x + width] = True
            picture[mask] += 40
            Image.fromarray(mask).save(folder / f"data/part/ground_truth/{kind}/{i:05d}.png")
        Image.fromarray(picture).save(folder / f"data/part/test/{kind}/{i:05d}.png", compress_level=1)
    run = ["draem", "--data", folder / "small", "--textures", folder / "small/part/train/good", "--out", folder / "run"]
    assert train.main(list(map(str, [*run, *FLAGS]))) == 0
    return time.perf_counter() - start


def measure(folder: str) -> None:
    """Evaluates FOLDER/run on FOLDER/data; prints seconds of the parts and peak memory."""
    seconds, start = {}, time.perf_counter()

    def timed(name: str):
        function = getattr(evaluate, name)

        def call(*arguments, **options):
            begun = time.perf_counter()
            result = function(*arguments, **options)
            seconds[name] = seconds.get(name, 0) + time.perf_counter() - begun
            peaks[name] = peak()
            return result

        setattr(evaluate, name, call)

    def peak() -> int:  # of this process alone, on Linux; getrusage counts what the one before it had
        return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024

    peaks = {"imports": peak()}
    for name in ("require_sound", "score_pictures", "all_metrics", "map_scale", "digest", "report"):
        timed(name)
    DRAEM.anomaly_map = lambda self, images, *_: images.mean(1, keepdim=True)
    assert evaluate.main([f"{folder}/run", "--data", f"{folder}/data", "--device", "cpu"]) == 0
    print(f"whole command {time.perf_counter() - start:.0f} s; parts:", {k: round(v, 1) for k, v in seconds.items()})
    print("peak of memory in MiB after each part:", peaks, flush=True)


if __name__ == "__main__":
    main()
