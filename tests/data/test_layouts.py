"""Layouts, problems, digests and the command of adref.data, on small generated data sets."""

import hashlib
import io
import json
import os
import shutil
import struct
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adref.data import __main__ as command
from adref.data import layouts, reader
from adref.data.layouts import Record, check_files, digest, find_categories, find_category, inspect
from adref.options import Notice, UserError

RNG = np.random.default_rng(1)
NOISE = RNG.integers(0, 256, (40, 50, 3), np.uint8)
MASK = np.zeros((6, 8), np.uint8)
MASK[2:4, 3:5] = 255


def save(path: Path, array: np.ndarray | None = None) -> Path:
    """Writes an image file, by default 6 x 8 pixels of new noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (6, 8, 3), np.uint8) if array is None else array).save(path)
    return path


def make(root: Path, *names: str) -> Path:
    """Writes image files; those in a folder for masks are masks."""
    for name in names:
        save(root / name, MASK if name.startswith(("ground_truth/", "mask")) else None)
    return root


def mvtec(root: Path, suffix: str = "_mask") -> Path:
    """Writes three good training images, two good test images, two defects with two images and masks each."""
    make(root, *(f"train/good/00{index}.png" for index in range(3)))
    for index in range(2):
        make(root, *(f"test/{name}/00{index}.png" for name in ("good", "crack", "hole")))
        make(root, *(f"ground_truth/{name}/00{index}{suffix}.png" for name in ("crack", "hole")))
    return root


def visa(root: Path, table: str = "1cls.csv", extra: str = "") -> Path:
    """Writes VisA's layout with one table; `extra` is its eighth line. Masks hold class ids 1 and 2."""
    make(root, "0.JPG", "1.JPG", "2.JPG", "3.JPG", "4.JPG", "5.JPG", "extra.JPG", "mask/extra.png")
    rows = ["object,split,label,image,mask", *(f"candle,train,normal,{index}.JPG," for index in range(3))]
    rows += ["candle,test,normal,3.JPG,", *(f"candle,test,anomaly,{index}.JPG,mask/{index}.png" for index in (4, 5))]
    for index in (4, 5):
        save(root / f"mask/{index}.png", MASK // 255 * (index - 3))
    (root / "split_csv").mkdir()
    (root / "split_csv" / table).write_text("\n".join([*rows, extra]), encoding="utf-8-sig")
    return root


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(depth: int, colour: int, width: int, rows: list[bytes]) -> bytes:
    """Encodes a PNG that Pillow cannot write; colour 0 grey, 2 RGB, 6 RGBA."""
    head = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def tiff(array: np.ndarray, bits: int, sample: int, photometric: int = 1, orientation: int = 1) -> bytes:
    """Encodes a little-endian grey TIFF; sample 1 unsigned, 2 signed, 3 float."""
    (height, width), pixels = array.shape, array.tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (274, orientation)]
    tags += [(277, 1), (278, height), (279, len(pixels)), (339, sample)]
    body = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    head = b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels
    return head + struct.pack("<H", len(tags)) + body + struct.pack("<I", 0)


def encoded(kind: str, image: Image.Image = Image.fromarray(NOISE), **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def only(root: Path) -> layouts.Category:
    return find_category(root, None)


def problems(root: Path) -> list[layouts.Problem]:
    return inspect(only(root))[0]


def refusal(root: Path) -> str:
    """Returns the message that refuses an unsound category."""
    with pytest.raises(UserError) as error:
        layouts.raise_if_any(problems(root), "part")
    return str(error.value)


def counts(category: layouts.Category) -> tuple[int, int, int, int]:
    """Counts training images, good and anomalous test images, masks."""
    labels = [record.label for record in category.test]
    assert not any(record.label for record in category.train)
    return len(category.train), labels.count(0), labels.count(1), sum(r.mask is not None for r in category.test)


TWELVE = " ".join(f"good/{index:02}" for index in range(12)) + " scratch/0 scratch/1"
LAYOUTS = [  # PNG files; layout; numbers of training images, test images, masks; good test images; words of a note
    ("train/good/0 test/good/1 test/hole/1 ground_truth/hole/1_mask", "MVTec AD", (1, 2, 1), ["1"], ""),
    ("train/good/0 test/good/1 test/hole/1 ground_truth/hole/1", "MVTec AD", (1, 2, 1), ["1"], ""),
    ("train/good/0 test/good/1 test/hole/1", "MVTec AD", (1, 2, 0), ["1"], "no masks: image-level metrics only"),
    ("train/good/0 test/good/1 test/hole/1 good/3", "MVTec AD", (1, 2, 0), ["1"], "not read: good"),
    ("train/ok/0 test/ok/0 test/ko/1 ground_truth/ko/1", "BTAD", (1, 2, 1), ["0"], ""),
    ("Ä a A 2 10", "plain folder", (5, 0, 0), [], "AUROC is undefined: 0 test images"),
    ("good/0 good/1 good/2 good/3 good/4 good/5", "plain folder", (6, 0, 0), [], "AUROC is undefined"),
    (f"{TWELVE} masks/scratch/0_mask masks/scratch/1_mask", "plain folder", (10, 4, 2), ["04", "09"], "every fifth"),
    (f"{TWELVE} masks/scratch/0 masks/scratch/1", "plain folder", (10, 4, 2), ["04", "09"], "every fifth"),
    (TWELVE, "plain folder", (10, 4, 0), ["04", "09"], "no masks: image-level metrics only"),
]


@pytest.mark.parametrize("names, layout, numbers, good, note", LAYOUTS)
def test_layouts_of_folders(tmp_path, names, layout, numbers, good, note):
    category = only(make(tmp_path / "my part", *(f"{name}.png" for name in names.split())))
    train, test = ([record.path for record in some] for some in (category.train, category.test))
    assert (category.name, category.layout, inspect(category)[0]) == ("my part", layout, [])
    assert numbers == (len(train), len(test), sum(record.mask is not None for record in category.test))
    assert [record.path.stem for record in category.test if not record.label] == good
    assert not set(train) & set(test) and [sorted(train), sorted(test)] == [train, test]  # by code points
    assert all(record.label == (record.defect != "good") for record in category.test)
    assert all(record.mask.parent.name == record.defect for record in category.test if record.mask)
    assert any(note in told for told in category.notes) if note else category.notes == ()


def test_several_categories(tmp_path):
    for name in ("bottle", "cable", "capsule"):
        mvtec(tmp_path / name)
    for file in ("readme.txt", "bottle/license.txt"):
        (tmp_path / file).write_text("no problem")
    categories = find_categories(tmp_path)
    assert list(categories) == ["bottle", "cable", "capsule"]
    assert find_category(tmp_path / "bottle", None) == categories["bottle"] == find_category(tmp_path, "bottle")
    for name, words in {
        "cabel": "got 'cabel'; there are: cable, .*bottle",
        None: "give --category, one of: bottle",
    }.items():
        with pytest.raises(UserError, match=words):
            find_category(tmp_path, name)
    merged = find_category(tmp_path, "cable,bottle")
    assert merged.name == "bottle,cable" and counts(merged) == (6, 4, 8, 8)
    assert merged.test[0].defect == "bottle/crack" and merged.test[8].defect == "cable/good"


def test_visa(tmp_path):
    category = only(visa(tmp_path / "candles"))
    assert (category.name, category.layout, counts(category)) == ("candle", "VisA", (3, 1, 2, 2))
    assert inspect(category)[0] == [] and {r.defect for r in category.test if r.label} == {"anomaly"}
    assert all((reader.read_mask(record.mask) == (MASK > 0)).all() for record in category.test if record.label)
    root = visa(tmp_path / "two", "2cls_fewshot.csv", "candle,train,anomaly,extra.JPG,mask/extra.png")
    (root / "split_csv/2cls_highshot.csv").write_text("not read")
    assert counts(only(root)) == (3, 1, 2, 2)  # no defect is for training
    assert "2cls_highshot.csv is not read" in only(root).notes[0] and "1 anomalous training" in only(root).notes[1]


VISA = [  # the eighth line of the table, key words of the problem
    ("candle,train,normal,gone.JPG,", "line 8: no such file"),
    ("candle,train,good,extra.JPG,", "line 8: expected train or test, normal or anomaly"),
    ("candle,val,normal,extra.JPG,", "got val"),
    ("candle,train,normal,,", "an image; got"),
    ("candle,test,normal,0.JPG,", "is listed 2 times"),
    ("candle,test,anomaly,extra.JPG,mask/4.png", "different stems"),
    ("candle,test,anomaly,extra.JPG,", "without mask"),
    ("candle,test,anomaly,extra.JPG,extra.png", "no such file: extra.png"),
    ("pcb1,test,normal,extra.JPG,", "pcb1 has no good training images"),
]


def test_visa_problems(tmp_path):
    for index, (line, words) in enumerate(VISA):
        categories = find_categories(visa(tmp_path / str(index), extra=line)).values()
        assert any(words in reason for category in categories for _, reason in inspect(category).problems), words
    for text in (b"object,split\ncandle,train\n", b"", b"\xff\xfe\x00", b"object,split,label,image,mask\n"):
        (tmp_path / "0/split_csv/1cls.csv").write_bytes(text)
        with pytest.raises(UserError, match=r"1cls\.csv: (cannot be read as a table|expected rows with object,split)"):
            find_categories(tmp_path / "0")


def test_entries_that_are_ignored_or_not(tmp_path):
    mvtec(tmp_path)
    for folder in ("train/good", "test/crack", "test", "ground_truth/crack", "."):
        for name in (".DS_Store", "._000.png", "Thumbs.db", "desktop.ini"):
            (tmp_path / folder / name).write_text("x")
        (tmp_path / folder / "__MACOSX").mkdir()
    assert problems(tmp_path) == [] and counts(only(tmp_path)) == (3, 2, 4, 4)
    assert only(tmp_path).notes == (
        "hidden entries are not read: .DS_Store, ._000.png, Thumbs.db, __MACOSX, desktop.ini",
    )
    plain = make(tmp_path / "plain", "good/0.png", "1.png")  # an image beside the folders is none of them
    assert [problem.path for problem in problems(plain)] == [plain / "1.png"]


def test_masks_are_paired_by_the_whole_stem(tmp_path):
    root, masks = mvtec(tmp_path / "Täfelchen 磁砖"), ("10", "100", "ß" * 100, "n" * 240, "a b'c\"d", "裂纹")
    make(root, *(f"test/crack/{name}.jpg" for name in ("1", "11", *masks)))
    make(root, *(f"ground_truth/crack/{name}_mask.png" for name in masks))
    found = {r.path.stem: r.mask and r.mask.stem for r in only(root).test if r.path.suffix == ".jpg"}
    assert found == {"1": None, "11": None} | {name: f"{name}_mask" for name in masks}
    assert [problem.path.stem for problem in problems(root)] == ["1", "11"]


def test_list_images(tmp_path):
    names = ["a/b.JPG", "a/c/1.png", "a/c/10.png", "a/c/2.webp", "z.tif"]
    root = make(tmp_path / "all", *names, ".hidden/1.png", "__MACOSX/1.png", "a/.1.png", "text/1.png")
    (root / "text/1.png").rename(root / "text/1.txt")
    (root / "a/loop").symlink_to(root)
    (root / "empty").mkdir()
    with pytest.warns(Notice, match=r"all: 5 entries are left out: \.hidden, __MACOSX, \.1\.png, loop, 1\.txt$"):
        assert [path.relative_to(root).as_posix() for path in layouts.list_images(root)] == names
    for folder, words in {"empty": "no images; expected", "none": "No such", "text": "no images; .*: 1.txt"}.items():
        with pytest.raises(UserError, match=words):
            layouts.list_images(root / folder)


def test_roots_that_are_no_data_set(tmp_path):
    make(tmp_path, "deep/b/c/d.png", "plain/parts/good/1.png", "file.png")
    mvtec(tmp_path / "nested/sets/bottle")
    (tmp_path / "empty").mkdir()
    for root, words in (
        ("missing", r"missing: cannot be listed as a folder \(No such file"),
        ("file.png", r"file\.png: cannot be listed as a folder \(Not a directory"),
        ("empty", "an empty folder"),
        ("deep", r"known layouts: MVTec AD .*BTAD .*VisA .*plain folder"),
        ("nested", "hold data sets: sets"),
        ("plain", "hold data sets: parts"),
    ):
        with pytest.raises(UserError, match=words):
            find_categories(tmp_path / root)


ROW = np.zeros((2, 4))
BOMB = png(1, 0, 65536, [b""] * 65536)
NINE, TEST, HOLE = "train/good/9.png", "test/good/000.png", "ground_truth/hole/000_mask.png"
KINDS = [  # a file of a sound category; its bytes or pixels, or a function of its path; key words of the problem
    (HOLE, b"", "zero bytes"),
    *((TEST, encoded(kind)[: len(encoded(kind)) // 2], "damaged") for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP")),
    (TEST, BOMB[:12], "header is damaged"),
    (TEST, encoded("ICO"), "not an image"),
    (TEST, BOMB, "65536 x 65536 pixels, too many"),
    (NINE, tiff(ROW.astype("<f4"), 32, 3), "TIFF mode F; expected 8-bit"),
    (NINE, tiff(ROW.astype("<i4"), 32, 2), "TIFF mode I; expected 8-bit"),
    (NINE, tiff(ROW.astype("<i2"), 16, 2), "TIFF mode I; expected 8-bit"),
    (NINE, tiff(ROW.astype("<u2"), 16, 1, 0), "16-bit grey with 0 as black"),
    (NINE, tiff(ROW[:1].astype("<u2"), 12, 1), "mode I;16; expected 8-bit"),  # 4 pixels, 6 bytes, 2 are left over
    (NINE, encoded("TIFF", save_all=True, append_images=[Image.new("L", (8, 6))]), "2 pages or frames"),
    ("ground_truth/good/000.tif", encoded("TIFF", Image.new("CMYK", (8, 6))), "mode CMYK"),
    (HOLE, np.ones((6, 9), np.uint8), "mask is 6x9, its image 6x8 ("),
    (HOLE, MASK * 0, "an empty mask"),
    ("ground_truth/good/000.png", MASK, "a mask of defects for a good image"),
    ("ground_truth/good/000.jpg", MASK * 0, "JPEG mask"),
    ("ground_truth/hole/7_mask.png", MASK, "a mask without image"),
    ("test/hole/7.png", NOISE, "without mask"),
    ("test/hole/000.png", lambda path: make(path.parents[2], "ground_truth/hole/000.png"), "has two masks"),
    (HOLE, lambda path: make(path.parents[2], "test/hole/000_mask.png"), "a mask of two images"),
    ("train/good/000.png", lambda path: save(path.with_suffix(".jpg")), "has the same stem as 000.jpg"),
    ("test/hole/notes.txt", b"x", "not an image file; expected .png"),
    ("test/notes.txt", b"x", "cannot be listed as a folder (Not a directory)"),
    ("test/hole/more", Path.mkdir, "a folder where only images"),
    (NINE, lambda path: path.symlink_to("9.png"), "broken link"),
    ("test/loop/loop", lambda path: path.symlink_to(path.parent), "a folder where only images"),
    ("test/dent", Path.mkdir, "an empty folder"),
    ("train/good", shutil.rmtree, "cannot be listed as a folder (No such file"),
    ("train/hole", Path.mkdir, "not read: training images lie in train/good"),
    ("ground_truth/dent", Path.mkdir, "masks without a folder"),
    ("test/ok", Path.mkdir, "named like good images"),
]


@pytest.mark.parametrize("file, spoilt, words", KINDS)
def test_every_problem_is_told_with_its_file(tmp_path, file, spoilt, words, monkeypatch):
    monkeypatch.setattr(reader, "MEMORY", 2**30)
    assert problems(mvtec(tmp_path)) == []
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(spoilt):
        spoilt(path)
    else:
        path.write_bytes(spoilt) if isinstance(spoilt, bytes) else save(path, spoilt)
    assert any(f"{path}: " in line and words in line for line in refusal(tmp_path).splitlines())


def test_first_problems_and_notes_of_a_category(tmp_path):
    shutil.copy(mvtec(tmp_path) / "train/good/001.png", tmp_path / "test/good/000.png")
    found, notes, _, sizes = inspect(only(tmp_path))
    assert found == [] and sizes == [(6, 8)] * 9
    assert [note.split(":")[0][:19] for note in notes] == [f"masks of {tmp_path.name}"[:19], "1 test images have "]
    for index in range(13):
        (tmp_path / "train/good" / f"x{index:02}.txt").write_text("x")
    lines = refusal(tmp_path).split("\n")
    assert len(lines) == 12 and "x09.txt" in lines[10] and lines[11].strip() == "and 3 more"


def test_digest(tmp_path):
    """Pinned 2026-11-29: a run refuses to resume if the digest of its data has changed."""
    for name in ("a/test/good/0.png", "a/test/hole/1.png", "a/truth/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name[-5:].encode())
    shutil.copytree(tmp_path / "a", tmp_path / "far/b")
    for root in (tmp_path / "a", tmp_path / "far/b"):  # the place does not count
        good = Record(root / "test/good/0.png", 0, "good", None, "part")
        hole = Record(root / "test/hole/1.png", 1, "hole", root / "truth/1.png", "part")
        hashes = check_files([good, hole]).digests
        assert digest([good, hole], hashes) == "7a414bf01864e0e2441adc86574e96fb1d720e515ce4c5d845c1414183d89754"
        assert digest([good], hashes) == "a7455c8c1b5a90cc55758c4dbfbea5d10936a6235c98aa6a7d02cfca775cd200"
    changes = [[], [hole], [hole, good], [good, hole._replace(label=0)], [good, hole._replace(defect="dent")]]
    found = {digest(records, hashes) for records in [[good, hole], *changes]}
    assert len(found | {digest([good, hole], hashes | {hole.mask: "0"})}) == 7


def test_each_file_is_read_once(tmp_path, monkeypatch):
    category, read = only(mvtec(tmp_path)), []
    monkeypatch.setattr(layouts, "read_bytes", lambda path: (read.append(path), reader.read_bytes(path))[1])
    found, _, digests, sizes = check_files(category.test)
    assert found == [] and sizes == [(6, 8)] * 6
    assert Counter(read) == Counter(path for r in category.test for path in (r.path, r.mask) if path)
    assert all(hashlib.sha256(r.path.read_bytes()).hexdigest() == digests[r.path] for r in category.test)


def test_command(tmp_path, capsys, monkeypatch):
    for name in ("bottle", "裂纹"):
        mvtec(tmp_path / name)
    save(tmp_path / "bottle/train/good/9.png", NOISE)
    assert command.main([str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for words in ("category: bottle", "layout: MVTec AD", "train: 4", "'crack': 2", "masks: 4", "heights: 6..40"):
        assert words in shown
    (tmp_path / "裂纹/test/good/000.png").write_bytes(b"")
    assert command.main([str(tmp_path), "--category", "bottle", "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["test"] == {"crack": 2, "good": 2, "hole": 2} and report["masks"] == 4
    assert (report["heights"], report["widths"], report["problems"]) == ("6..40", "8..50", [])
    assert command.main([str(tmp_path)]) == 2
    assert f"problems: {tmp_path / '裂纹/test/good/000.png'}: a file of zero bytes" in capsys.readouterr().out
    for arguments in ([str(tmp_path / "none")], [str(tmp_path), "--category", "nut"]):
        assert command.main(arguments) == 2
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.startswith("error: ") and shown.err.count("\n") == 1
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    command.main([str(tmp_path)])
    sys.stdout.flush()
    assert b"\\u88c2\\u7eb9" in sys.stdout.buffer.getvalue()


REAL = {  # category: training images, good and anomalous test images, masks; defects (as the folder's sources tell)
    "magnetic_tile/magnetic_tile": ((220, 80, 224, 224), {"blowhole", "break", "crack", "fray", "uneven"}),
    "bsdata/ball_screw": ((180, 60, 80, 80), {"pitting"}),
    "crackforest/pavement": ((150, 60, 60, 60), {"crack"}),
    "lookout/alien": ((38, 20, 60, 0), {"anomaly"}),
    "elpv/mono": ((110, 40, 40, 0), {"defective"}),
}


@pytest.mark.skipif("ADREF_TEST_DATA" not in os.environ, reason="ADREF_TEST_DATA names no folder of data sets")
def test_real_data_sets():
    root = Path(os.environ["ADREF_TEST_DATA"])
    with pytest.raises(UserError, match=r"hold data sets: bsdata, crackforest.* magnetic_tile"):
        find_categories(root)
    with pytest.raises(UserError, match="known layouts"):
        find_categories(root / "dtd_subset")
    for place, (numbers, defects) in REAL.items():
        category = find_category(root / Path(place).parent, Path(place).name)
        assert (counts(category), inspect(category)[0]) == (numbers, [])
        assert {record.defect for record in category.test} == {"good", *defects}
