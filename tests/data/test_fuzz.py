"""Damaged files: each reader returns a result or raises UserError, within bounds of memory and time."""

import resource
import signal
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from adref.data.layouts import find_categories, inspect
from adref.data.reader import read_image, read_mask
from adref.options import UserError

SECONDS, MEMORY = 20, 2**31  # of one reading; bytes beyond those that the process has
CELLS = ["", "nan", "-1", "a" * 200_000, "\0", '"', '"",""', "\n", "\r", ",,,,,,,", "../../x"]


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
    """Applies one to three of: bit flips, an extreme number, a cut, an insertion, a block twice, a block less."""
    text = bytearray(text)
    for kind in rng.integers(0, 6, rng.integers(1, 4)):
        begin = int(rng.integers(0, len(text) + 1))
        end = begin + int(rng.integers(1, 65))
        if kind == 0:
            for place in rng.integers(0, max(1, len(text)), 3):
                text[place : place + 1] = bytes(byte ^ (1 << int(rng.integers(8))) for byte in text[place : place + 1])
        elif kind == 1:
            text[begin : begin + 4] = rng.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\1"])
        elif kind == 3:
            text[begin:begin] = rng.bytes(end - begin)
        elif kind == 4:
            text[end:end] = text[begin:end]
        else:
            del text[begin : end if kind == 5 else None]
    return bytes(text)


def mutate_table(rng, text: bytes) -> bytes:
    """Replaces a cell, repeats or drops a line; one time in four, damages bytes."""
    if rng.random() < 0.25:
        return mutate_bytes(rng, text)
    lines = [line.split(",") for line in text.decode().split("\n")]
    for _ in range(rng.integers(1, 3)):
        line = lines[rng.integers(len(lines))]
        if rng.random() < 0.7:
            line[rng.integers(len(line))] = CELLS[rng.integers(len(CELLS))]
        else:
            lines.append(line) if rng.random() < 0.5 else lines.remove(line)
    return "\n".join(map(",".join, lines)).encode()


def images(folder: Path) -> list[Path]:
    image, paths = Image.fromarray(picture(0, 20, 24)), []
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


def masks(folder: Path) -> list[Path]:
    return [path for path in images(folder) if path.name != "7.jpg"]  # a CMYK mask is refused


def tables(folder: Path) -> list[Path]:
    rows = ["object,split,label,image,mask", "candle,train,normal,0.png,", "candle,train,normal,1.png,",
            "candle,test,normal,2.png,", "candle,test,anomaly,3.png,mask/3.png"]  # fmt: skip
    for name in ("mask", "split_csv"):
        (folder / name).mkdir()
    for i in range(4):
        Image.fromarray(picture(i, 8, 8)).save(folder / f"{i}.png")
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(folder / "mask/3.png")
    (folder / "split_csv/1cls.csv").write_text("\n".join(rows) + "\n")
    return [folder / "split_csv/1cls.csv"]


def read_table(path: Path) -> None:
    for category in find_categories(path.parent.parent).values():
        inspect(category)


READERS = {"image": (images, read_image, mutate_bytes, 40), "mask": (masks, read_mask, mutate_bytes, 40),
           "table of VisA": (tables, read_table, mutate_table, 60)}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged files
@pytest.mark.parametrize("kind", READERS)
def test_mutated_files(kind, tmp_path, bounds):
    make, read, mutate, rounds = READERS[kind]
    refused = 0
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


@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize("side", [100_000, 2**31 - 1])
def test_a_small_file_with_a_huge_size_in_its_header(side, read, tmp_path, bounds):
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(10**6))), (b"IEND", b"")]
    text = b"".join(struct.pack(">I", len(t)) + k + t + struct.pack(">I", zlib.crc32(k + t)) for k, t in chunks)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + text)
    with pytest.raises(UserError, match=r"a\.png: "):
        read(tmp_path / "a.png")
