"""Damaged files: each reader returns a result or raises UserError, within bounds of memory and time."""

import resource
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_layouts import NOISE, visa

from adref.data.layouts import find_categories, inspect
from adref.data.reader import read_image, read_mask
from adref.options import UserError

SECONDS, MEMORY = 20, 2**31  # of one reading; bytes beyond those that the process has
CELLS = [b"", b"nan", b"-1", b"a" * 200_000, b"\0", b'"', b'"",""', b"\n", b"\r", b",,,,,,,", b"../../x"]


@pytest.fixture
def bounds():
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 2**20
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, handler)
    resource.setrlimit(resource.RLIMIT_AS, before)


def mutate_bytes(rng, text: bytes) -> bytes:
    """Applies one to three of: a flipped bit, an extreme number, a cut, an insertion, a block twice, a block less."""
    text = bytearray(text)
    for kind in rng.integers(0, 6, rng.integers(1, 4)):
        begin, length = int(rng.integers(0, len(text) + 1)), int(rng.integers(1, 65))
        block = bytes(text[begin : begin + length])
        number = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\1")[rng.integers(4)]
        flipped = bytes(byte ^ (1 << int(rng.integers(8))) for byte in block[:1])
        end = {0: begin + 1, 1: begin + 4, 2: None, 5: begin + length}.get(int(kind), begin)
        text[begin:end] = (flipped, number, b"", rng.bytes(length), block, b"")[kind]
    return bytes(text)


def mutate_table(rng, text: bytes) -> bytes:
    """Replaces a cell; one time in four, damages bytes."""
    lines = [line.split(b",") for line in text.split(b"\n")]
    line = lines[rng.integers(len(lines))]
    line[rng.integers(len(line))] = CELLS[rng.integers(len(CELLS))]
    return mutate_bytes(rng, text) if rng.random() < 0.25 else b"\n".join(map(b",".join, lines))


def images(folder: Path) -> list[Path]:
    image, paths = Image.fromarray(NOISE[:20, :24]), []
    forms = [("RGB", "png", {}), ("P", "png", {}), ("RGBA", "png", {}), ("1", "png", {}), ("I;16", "png", {}),
             ("RGB", "jpg", {}), ("RGB", "jpg", {"progressive": True}), ("CMYK", "jpg", {}), ("RGB", "bmp", {}),
             ("RGB", "tif", {}), ("L", "tif", {"compression": "tiff_lzw"}), ("RGB", "tif", {"compression": "jpeg"}),
             ("RGB", "webp", {}), ("RGBA", "webp", {"lossless": True})]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = 6
    for i, (mode, suffix, more) in enumerate(forms):
        deep = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        paths.append(folder / f"{i}.{suffix}")
        (deep if mode == "I;16" else image.convert(mode)).save(paths[-1], **({"exif": exif} if i % 2 else {}), **more)
    return paths


def read_pixels(path: Path) -> None:
    image = read_image(path)
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    if path.name in ("5.jpg", "6.jpg", "7.jpg", "11.tif", "12.webp"):  # lossy
        return
    mask = read_mask(path)
    assert mask.dtype == bool and mask.ndim == 2


def read_table(path: Path) -> None:
    for category in find_categories(path.parent.parent).values():
        inspect(category)


READERS = {"image": (images, read_pixels, mutate_bytes, 40),
           "table": (lambda folder: [visa(folder) / "split_csv/1cls.csv"], read_table, mutate_table, 60)}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged files
@pytest.mark.parametrize("kind", READERS)
def test_mutated_files(kind, tmp_path, bounds):
    (make, read, mutate, rounds), refused = READERS[kind], 0
    for i, path in enumerate(make(tmp_path)):
        whole = path.read_bytes()
        read(path)
        for k in range(rounds):
            path.write_bytes(mutate(np.random.default_rng((20261127, i, k)), whole))
            signal.alarm(SECONDS)
            try:
                read(path)
            except UserError as error:
                assert str(error)
                refused += 1
            except BaseException as error:
                raise AssertionError(f"{path}, mutation {k} of file {i}: {path.read_bytes()[:300]}") from error
            finally:
                signal.alarm(0)
        path.write_bytes(whole)
    assert refused > 5
