"""Every reader takes any file: it gives a result or raises UserError, and no allocator, stack or clock is at risk."""

import json
import resource
import shutil
import signal
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import picture
from PIL import Image
from test_export import SMALL

from adref import predict
from adref.data import layouts as data
from adref.data import reader as data_reader
from adref.methods import METHODS
from adref.options import UserError, to_json
from adref.run import report, site, summary
from adref.run.directory import build, load, load_checkpoint, read_config, read_log, read_sizes

SEED = 20261127
SECONDS = 20  # after which a reader hangs
MEMORY = 2**31  # bytes beyond what the process has: more than a reader needs, less than an absurd file asks for
ODD = [None, True, -1, 0, 3, 0.5, 2**31, 2**63, 1e308, float("nan"), float("inf"), "", "x", "none", "1,2", "\ud800",
       "\0", "a" * 10_000, [], {}, [1], [None, "a"], {"a": 1}, "DEEP", "HUGE"]  # fmt: skip
NUMBERS = [-1, 0, 1, 2, 3, 5, 12, 1000, 2**31, 2**63, 0.3, 1e308]
CELLS = [
    "",
    "nan",
    "inf",
    "-1",
    "0",
    "1e999",
    "a" * 200_000,
    "\0",
    '"',
    '"",""',
    "\n",
    "\r",
    ",,,,,,,",
    "=1+1",
    "../../x",
]


@pytest.fixture
def bounds():
    """What a reader may take of memory and time."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 2**20
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, handler)
    resource.setrlimit(resource.RLIMIT_AS, before)


# -- mutations --------------------------------------------------------------------------------------------------------


def mutate_bytes(rng, text: bytes) -> bytes:
    """One to three of: bits, extreme numbers, a cut, an insertion, a block twice, a block less."""
    text = bytearray(text)
    for kind in rng.integers(0, 6, rng.integers(1, 4)):
        begin = int(rng.integers(0, len(text) + 1))
        end = begin + int(rng.integers(1, 65))
        if kind == 0:
            for place in rng.integers(0, max(1, len(text)), 3):
                text[place : place + 1] = bytes(byte ^ (1 << int(rng.integers(8))) for byte in text[place : place + 1])
        elif kind == 1:
            text[begin : begin + 4] = rng.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\1"])
        elif kind == 2:
            del text[begin:]
        elif kind == 3:
            text[begin:begin] = rng.bytes(end - begin)
        elif kind == 4:
            text[end:end] = text[begin:end]
        else:
            del text[begin:end]
    return bytes(text)


def places(value, place=()) -> list[tuple]:
    """Where values stand in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place] * bool(place) + [found for key, inner in items for found in places(inner, (*place, key))]


def mutate_json(rng, text: bytes) -> bytes:
    """A value of another kind or size, a key less, another name; one time in four, damaged bytes."""
    if rng.random() < 0.25:
        return mutate_bytes(rng, text)
    value = json.loads(text)
    for _ in range(rng.integers(1, 3)):
        *way, last = (found := places(value))[rng.integers(len(found))]
        inner = value
        for key in way:
            inner = inner[key]
        if rng.random() < 0.8:
            inner[last] = ODD[rng.integers(len(ODD))]
        else:
            moved = inner.pop(last)
            if isinstance(inner, dict) and rng.random() < 0.5:
                inner[f"{last}_"] = moved
        if not places(value):
            break
    return dump(value)


def dump(value) -> bytes:
    """JSON, with lists too deep and numbers too long for Python to hold."""
    text = json.dumps(value).replace('"DEEP"', "[" * 100_000 + "]" * 100_000)
    return text.replace('"HUGE"', "1" + "0" * 5000).encode()


def mutate_lines(rng, text: bytes) -> bytes:
    """A line of JSON changed as above."""
    lines = text.split(b"\n")
    place = rng.integers(len(lines) - 1)
    lines[place] = mutate_json(rng, lines[place])
    return b"\n".join(lines)


def mutate_table(rng, text: bytes) -> bytes:
    """A cell with something odd, a line twice or less; one time in four, damaged bytes."""
    if rng.random() < 0.25:
        return mutate_bytes(rng, text)
    lines = [line.split(",") for line in text.decode().split("\n")]
    for _ in range(rng.integers(1, 3)):
        line = lines[rng.integers(len(lines))]
        if rng.random() < 0.7:
            line[rng.integers(len(line))] = CELLS[rng.integers(len(CELLS))]
        else:
            lines.append(line) if rng.random() < 0.5 else lines.remove(line)
        lines = lines or [[""]]
    return "\n".join(map(",".join, lines)).encode()


# -- files and their readers ------------------------------------------------------------------------------------------


def pictures(folder: Path, _) -> list[Path]:
    image, paths = Image.fromarray(picture(0, 20, 24)), []
    forms = [("RGB", "png", {}), ("P", "png", {}), ("RGBA", "png", {}), ("1", "png", {}), ("I;16", "png", {}),
             ("RGB", "jpg", {}), ("RGB", "jpg", {"progressive": True}), ("CMYK", "jpg", {}), ("RGB", "bmp", {}),
             ("RGB", "tif", {}), ("L", "tif", {"compression": "tiff_lzw"}), ("RGB", "tif", {"compression": "jpeg"}),
             ("RGB", "webp", {}), ("RGBA", "webp", {"lossless": True})]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = 6
    for i, (mode, suffix, more) in enumerate(forms):
        own = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257) if mode == "I;16" else None
        paths.append(folder / f"{i}.{suffix}")
        (own or image.convert(mode)).save(paths[-1], **({"exif": exif} if i % 2 else {}), **more)
    return paths


def masks(folder: Path, _) -> list[Path]:
    return [path for path in pictures(folder, _) if path.name != "7.jpg"]  # CMYK is refused as it is


def read_pictures(path: Path) -> None:
    image = data_reader.read_image(path)
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


def read_masks(path: Path) -> None:
    mask = data_reader.read_mask(path)
    assert mask.dtype == bool and mask.ndim == 2


def configs(folder: Path, run: Path) -> list[Path]:
    """One a method, as small as can be."""
    config, paths = json.loads((run / "config.json").read_text()), []
    for name, method in METHODS.items():
        own = config | {"method": name, "options": to_json(method.Options(**SMALL[name]))}
        paths.append(folder / name / "config.json")
        paths[-1].parent.mkdir()
        paths[-1].write_text(json.dumps(own))
    return paths


def read_options(path: Path) -> None:
    config = read_config(path.parent)
    assert config["flags"]["seed"] >= 0
    build(config)


def mutate_options(rng, text: bytes) -> bytes:
    """Options alone, which is where a configuration has most to lose; mostly to numbers where numbers stand."""
    config = json.loads(text)
    options, names = config["options"], list(config["options"])
    for _ in range(rng.integers(1, 3)):
        name = names[rng.integers(len(names))]
        before = options[name]
        first = before[0] if isinstance(before, list) and before else before
        odd = NUMBERS if type(first) in (int, float) and rng.random() < 0.8 else ODD
        value = odd[rng.integers(len(odd))]
        options[name] = [value] * len(before) if isinstance(before, list) else value
    return dump(config)


def checkpoints(folder: Path, run: Path) -> list[Path]:
    shutil.copytree(run, folder / "run")
    return [folder / "run/checkpoint.pt"]


def read_checkpoint(path: Path) -> None:
    load(path.parent)


def logs(folder: Path, run: Path) -> list[Path]:
    return [Path(shutil.copy(run / "metrics.jsonl", folder))]


def read_logs(path: Path) -> None:
    report._training(read_log(path.parent))


def size_tables(folder: Path, _) -> list[Path]:
    path = folder / "sizes.csv"
    path.write_text("height,width,weight\n12,30.5,1\n3,4,0.5\n")
    return [path]


def read_size_table(path: Path) -> None:
    sizes = read_sizes(path)
    assert sizes.shape[1] == 3 and (sizes > 0).all()


def visa(folder: Path, _) -> list[Path]:
    (folder / "split_csv").mkdir()
    rows = ["object,split,label,image,mask"]
    for i, (split, label) in enumerate([("train", "normal")] * 2 + [("test", "normal"), ("test", "anomaly")]):
        Image.fromarray(picture(i, 8, 8)).save(folder / f"{i}.png")
        rows.append(f"candle,{split},{label},{i}.png,{'mask/3.png' if label == 'anomaly' else ''}")
    (folder / "mask").mkdir()
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(folder / "mask/3.png")
    (folder / "split_csv/1cls.csv").write_text("\n".join(rows) + "\n")
    return [folder / "split_csv/1cls.csv"]


def read_visa(path: Path) -> None:
    for category in data.find_categories(path.parent.parent).values():
        data.check(category)


def numbers(folder: Path, run: Path) -> list[Path]:
    shutil.copytree(run, folder / "run")
    return [folder / "run/evaluation/metrics.json"]


def read_numbers(path: Path) -> None:
    """As predict takes its scale from it, and as a site shows it."""
    scale = predict.stored_scale(path.parent.parent)
    assert scale is None or scale[0] <= scale[1]
    site.write_site(path.parent.parent.parent, {})


def cells(folder: Path, run: Path) -> list[Path]:
    place = folder / "draem-tiny/part/seed-0"
    shutil.copytree(run, place / "run")
    written = json.loads((run / "evaluation/metrics.json").read_text())
    result = {"state": "done", "reason": None, "metrics": {name: written[name] for name in summary.METRICS[:-1]},
              "checkpoint": "step 6", "train_seconds": 3.5, "images": {"good": 3}, "device": "cpu", "machine": "m",
              "torch": "2"}  # fmt: skip
    (place / "result.json").write_text(json.dumps(result))
    argv = ["draem", "--data", "d", "--category", "part", "--seed", "0", "--preset", "tiny"]
    (place / "cell.json").write_text(json.dumps({"argv": argv}))
    return [place / "result.json", place / "cell.json"]


def read_cell(path: Path) -> None:
    rows = summary.read_cells(path.parents[3])
    lines = summary.aggregate(rows, summary.read_published())
    assert summary.markdown(rows, lines) and summary.html_tables(rows, lines)


READERS = {  # what makes the files, what reads them, how they are changed, how often
    "picture": (pictures, read_pictures, mutate_bytes, 40),
    "mask": (masks, read_masks, mutate_bytes, 40),
    "configuration": (configs, read_options, mutate_json, 15),
    "options": (configs, read_options, mutate_options, 15),
    "checkpoint": (checkpoints, read_checkpoint, mutate_bytes, 40),
    "log": (logs, read_logs, mutate_lines, 60),
    "table of sizes": (size_tables, read_size_table, mutate_table, 60),
    "table of VisA": (visa, read_visa, mutate_table, 60),
    "numbers of an evaluation": (numbers, read_numbers, mutate_json, 30),
    "cell of a benchmark": (cells, read_cell, mutate_json, 30),
}


@pytest.mark.filterwarnings("ignore")  # Pillow's words on damaged files
@pytest.mark.parametrize("kind", READERS)
def test_mutated_files(kind, small_run, tmp_path, capsys, bounds):
    make, read, mutate, rounds = READERS[kind]
    refused = 0
    for i, path in enumerate(make(tmp_path, small_run)):
        whole = path.read_bytes()
        read(path)
        for k in range(rounds):
            path.write_bytes(mutate(np.random.default_rng((SEED, i, k)), whole))
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
    assert refused + capsys.readouterr().err.count("note: left out") > 5  # the mutations do harm


@pytest.mark.parametrize("read", [read_pictures, read_masks])
@pytest.mark.parametrize("side", [100_000, 2**31 - 1])
def test_a_small_file_that_claims_to_be_huge(side, read, tmp_path, bounds):
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(10**6))), (b"IEND", b"")]
    text = b"".join(struct.pack(">I", len(t)) + k + t + struct.pack(">I", zlib.crc32(k + t)) for k, t in chunks)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + text)
    with pytest.raises(UserError, match=r"a\.png: "):
        read(tmp_path / "a.png")


DAMAGE = [("model", None), ("model", [1]), ("model", {}), ("model", {"a": 1}), ("step", None), ("step", -1),
          ("step", 0.5), ("step", True), ("calibration", [1]), ("calibration", {}), ("calibration", {"threshold": "x"}),
          ("calibration", {"threshold": float("nan")})]  # fmt: skip


def test_a_checkpoint_of_another_structure(small_run, tmp_path):
    run, whole = shutil.copytree(small_run, tmp_path / "run"), load_checkpoint(small_run)
    whole = {name: whole[name] for name in ("model", "step", "calibration")}
    for key, value in DAMAGE:
        torch.save({**whole, key: value}, run / "checkpoint.pt")
        with pytest.raises(UserError):
            load(run)
    torch.save(whole, run / "checkpoint.pt")
    load(run)
