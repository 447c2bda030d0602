"""Layouts, problems, digests and the command of adref.data, on small generated data sets."""

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
from adref.data.layouts import Record, check_images, digest, find_categories, find_category, inspect
from adref.options import UserError

RNG = np.random.default_rng(1)
NOISE = RNG.integers(0, 256, (40, 50, 3), np.uint8)
MASK = np.zeros((6, 8), np.uint8)
MASK[2:4, 3:5] = 255


def save(path: Path, array: np.ndarray | None = None) -> Path:
    """Writes an image file, by default 6 x 8 pixels of new noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (6, 8, 3), np.uint8) if array is None else array).save(path)
    return path


def mvtec(root: Path, suffix: str = "_mask") -> Path:
    """Writes three good training images, two good test images, two defects with two images and masks each."""
    for name in ("train/good/000", "train/good/001", "train/good/002", "test/good/000", "test/good/001"):
        save(root / f"{name}.png")
    for name in ("crack/000", "crack/001", "hole/000", "hole/001"):
        save(root / f"test/{name}.png")
        save(root / f"ground_truth/{name}{suffix}.png", MASK)
    return root


def png(depth: int, colour: int, width: int, rows: list[bytes]) -> bytes:
    """Encodes a PNG that Pillow cannot write; colour 0 grey, 2 RGB, 6 RGBA."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

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


def only(root: Path) -> layouts.Category:
    return find_category(root, None)


def problems(root: Path) -> list[layouts.Problem]:
    return inspect(only(root))[0]


def counts(category: layouts.Category) -> tuple[int, int, int, int]:
    """Counts training images, good and anomalous test images, masks."""
    labels = [record.label for record in category.test]
    assert not any(record.label for record in category.train)
    return len(category.train), labels.count(0), labels.count(1), sum(r.mask is not None for r in category.test)


# Layouts


@pytest.mark.parametrize("suffix", ["_mask", ""])
def test_mvtec(tmp_path, suffix):
    for name in ("bottle", "cable"):
        mvtec(tmp_path / name, suffix)
        (tmp_path / name / "license.txt").write_text("text is no problem here")
    (tmp_path / "readme.txt").write_text("nor here")
    categories = find_categories(tmp_path)
    assert list(categories) == ["bottle", "cable"]
    bottle = categories["bottle"]
    assert (bottle.layout, bottle.name, bottle.notes, counts(bottle)) == ("MVTec AD", "bottle", (), (3, 2, 4, 4))
    assert [record.defect for record in bottle.test] == ["crack", "crack", "good", "good", "hole", "hole"]
    assert all(r.mask.stem == r.path.stem + suffix and r.mask.parent.name == r.defect for r in bottle.test if r.label)
    layouts.require_sound(bottle)
    assert find_category(tmp_path / "bottle", None) == bottle == find_category(tmp_path / "bottle", "bottle")


def test_btad(tmp_path):
    for name, kind in (("01", "png"), ("03", "bmp")):
        for file in ("train/ok/0.bmp", "train/ok/1.bmp", "test/ok/0.bmp", "test/ko/1.bmp"):
            save(tmp_path / name / file)
        save(tmp_path / name / f"ground_truth/ko/1.{kind}", MASK)
    for category in find_categories(tmp_path).values():
        assert (category.layout, counts(category), inspect(category)[0]) == ("BTAD", (2, 1, 1, 1), [])
        assert [(record.label, record.defect) for record in category.test] == [(1, "ko"), (0, "good")]


def visa(root: Path, table: str, extra: str = "") -> Path:
    """Writes VisA's layout with one table; `extra` is its eighth line. Masks hold class ids 1 and 2."""
    rows = ["object,split,label,image,mask"]
    for name in ("N/0", "N/1", "N/2", "N/3", "A/0", "A/1"):
        save(root / f"{name}.JPG")
        anomaly = f"anomaly,{name}.JPG,mask/{name}.png" if name[0] == "A" else f"normal,{name}.JPG,"
        rows.append(f"candle,{'train' if name in ('N/0', 'N/1', 'N/2') else 'test'},{anomaly}")
    for index in (0, 1):
        save(root / f"mask/A/{index}.png", MASK // 255 * (index + 1))
    save(root / "extra.JPG")
    save(root / "extra_mask.png", MASK)
    (root / "split_csv").mkdir()
    (root / "split_csv" / table).write_text("\n".join([*rows, extra]), encoding="utf-8-sig")
    return root


def test_visa(tmp_path):
    category = only(visa(tmp_path / "one", "1cls.csv"))
    assert (category.name, category.layout, counts(category)) == ("candle", "VisA", (3, 1, 2, 2))
    assert inspect(category)[0] == [] and {r.defect for r in category.test if r.label} == {"anomaly"}
    assert all((reader.read_mask(record.mask) == (MASK > 0)).all() for record in category.test if record.label)
    root = visa(tmp_path / "two", "2cls_fewshot.csv", "candle,train,anomaly,extra.JPG,extra_mask.png")
    (root / "split_csv/2cls_highshot.csv").write_text("not read")
    assert counts(only(root)) == (3, 1, 2, 2)  # no defect is for training
    assert "2cls_highshot.csv is not read" in only(root).notes[0] and "1 anomalous training" in only(root).notes[1]


VISA = [  # the eighth line of the table, key words of the problem
    ("candle,train,normal,gone.JPG,", "line 8: no such file"),
    ("candle,train,good,extra.JPG,", "line 8: expected train or test, normal or anomaly"),
    ("candle,val,normal,extra.JPG,", "got val"),
    ("candle,train,normal,,", "an image; got"),
    ("candle,test,normal,N/0.JPG,", "is listed 2 times"),
    ("candle,test,anomaly,extra.JPG,mask/A/0.png", "different stems"),
    ("candle,test,anomaly,extra.JPG,", "without mask"),
    ("candle,test,anomaly,extra.JPG,extra.png", "no such file: extra.png"),
    ("pcb1,test,normal,extra.JPG,", "category pcb1 has no good training images"),
]


def test_visa_problems(tmp_path):
    for index, (line, words) in enumerate(VISA):
        categories = find_categories(visa(tmp_path / str(index), "1cls.csv", line)).values()
        assert any(words in problem.reason for category in categories for problem in category.problems), words
    for text in (b"object,split\ncandle,train\n", b"", b"\xff\xfe\x00", b"object,split,label,image,mask\n"):
        (tmp_path / "0/split_csv/1cls.csv").write_bytes(text)
        with pytest.raises(UserError, match=r"1cls\.csv: (cannot be read as a table|expected rows with object,split)"):
            find_categories(tmp_path / "0")


def test_plain_folder_of_good_images(tmp_path):
    for name in ("10.PNG", "2.png", "A.png", "a.png", "Ä.png")[::-1]:
        save(tmp_path / "my parts" / name)
    category = only(tmp_path / "my parts")
    assert (category.name, category.layout, counts(category)) == ("my parts", "plain folder", (5, 0, 0, 0))
    assert [record.path.name for record in category.train] == ["10.PNG", "2.png", "A.png", "a.png", "Ä.png"]
    assert "AUROC is undefined: 0 test images" in category.notes[0]
    shutil.move(tmp_path / "my parts", tmp_path / "good")  # a folder `good` without defects: all train
    assert counts(only(tmp_path)) == (5, 0, 0, 0) and problems(tmp_path) == []


@pytest.mark.parametrize("suffix", ["_mask", "", None])
def test_plain_folder_with_defects_keeps_every_fifth_good_image_for_testing(tmp_path, suffix):
    for index in range(12):
        save(tmp_path / "good" / f"{index:02}.png")
    for index in range(3):
        save(tmp_path / "scratch" / f"{index}.png")
        if suffix is not None:
            save(tmp_path / "masks/scratch" / f"{index}{suffix}.png", MASK)
    category = only(tmp_path)
    assert counts(category) == (10, 2, 3, 0 if suffix is None else 3)
    assert [record.path.stem for record in category.test if not record.label] == ["04", "09"]
    assert not {record.path for record in category.train} & {record.path for record in category.test}
    assert "every fifth good image" in category.notes[0] and problems(tmp_path) == []
    assert ("no masks: image-level metrics only" in category.notes) == (suffix is None)


def test_entries_that_are_not_read(tmp_path):
    root = mvtec(tmp_path / "split")
    for folder in ("train/good", "test/crack", "test", "ground_truth/crack", "."):
        for name in (".DS_Store", "._000.png", "Thumbs.db", "desktop.ini"):
            (root / folder / name).write_text("x")
        (root / folder / "__MACOSX").mkdir()
    assert problems(root) == [] and counts(only(root)) == (3, 2, 4, 4) and only(root).notes == ()
    save(root / "good/000.png")  # beside train/ and test/ this is no plain folder
    assert only(root).notes == ("the folder good is not read",)
    shutil.rmtree(root / "ground_truth")
    assert problems(root) == [] and counts(only(root)) == (3, 2, 4, 0)
    assert only(root).notes[1:] == ("no masks: image-level metrics only",)
    save(tmp_path / "plain/good/000.png")
    loose = save(tmp_path / "plain/001.png")
    assert [problem.path for problem in problems(tmp_path / "plain")] == [loose]


def test_masks_are_paired_by_the_whole_stem(tmp_path):
    root, masks = mvtec(tmp_path / "Täfelchen 磁砖"), ("10", "100", "ß" * 100, "n" * 240, "a b'c\"d", "裂纹")
    for name in ("1", "11", *masks):
        save(root / "test/crack" / f"{name}.jpg")
    for name in masks:
        save(root / "ground_truth/crack" / f"{name}_mask.png", MASK)
    found = {r.path.stem: r.mask and r.mask.stem for r in only(root).test if r.path.suffix == ".jpg"}
    assert found == {"1": None, "11": None} | {name: f"{name}_mask" for name in masks}
    assert [problem.path.stem for problem in problems(root)] == ["1", "11"]


def test_list_images(tmp_path):
    names = ["a/b.JPG", "a/c/1.png", "a/c/10.png", "a/c/2.webp", "z.tif"]
    for name in [*names, ".hidden/1.png", "__MACOSX/1.png", "a/.1.png"]:
        save(tmp_path / "all" / name)
    for name in ("all/empty", "text"):
        (tmp_path / name).mkdir()
    (tmp_path / "text/1.txt").write_text("x")
    (tmp_path / "all/a/loop").symlink_to(tmp_path / "all")
    assert [path.relative_to(tmp_path / "all").as_posix() for path in layouts.list_images(tmp_path / "all")] == names
    refused = {"all/empty": "an empty folder; expected .png", "none": "No such file", "text": "holds no images"}
    for folder, words in refused.items():
        with pytest.raises(UserError, match=words):
            layouts.list_images(tmp_path / folder)


def test_roots_that_are_no_data_set(tmp_path):
    (tmp_path / "empty").mkdir()
    save(tmp_path / "file/a.png")
    save(tmp_path / "deep/b/c/d.png")
    mvtec(tmp_path / "nested/sets/bottle")
    save(tmp_path / "plain/parts/good/1.png")
    refused = {
        "missing": r"missing: cannot be listed as a folder \(No such file",
        "file/a.png": r"a\.png: cannot be listed as a folder \(Not a directory",
        "empty": "an empty folder",
        "deep": r"known layouts: MVTec AD .*BTAD .*VisA .*plain folder",
        "nested": "hold data sets: sets",
        "plain": "hold data sets: parts",
    }
    for root, words in refused.items():
        with pytest.raises(UserError, match=words):
            find_categories(tmp_path / root)


def test_names_of_categories(tmp_path):
    for name in ("bottle", "cable", "capsule"):
        mvtec(tmp_path / name)
    with pytest.raises(UserError, match=r"got 'cabel'; there are: cable, .*bottle"):
        find_category(tmp_path, "cabel")
    with pytest.raises(UserError, match="got None; there are: bottle, cable, capsule"):
        find_category(tmp_path, None)
    merged = find_category(tmp_path, "cable,bottle")
    assert merged.name == "bottle,cable" and counts(merged) == (6, 4, 8, 8)
    assert merged.test[0].defect == "bottle/crack" and merged.test[8].defect == "cable/good"


# Problems


def encoded(kind: str, image: Image.Image = Image.fromarray(NOISE), **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def half(kind: str) -> bytes:
    return encoded(kind)[: len(encoded(kind)) // 2]


ROW = np.zeros((2, 4))
BOMB = png(1, 0, 65536, [b""] * 65536)
NINE, TEST, HOLE = "train/good/9.png", "test/good/000.png", "ground_truth/hole/000_mask.png"
KINDS = [  # a file of a sound category; its bytes or pixels, or a function of its path; key words of the problem
    ("train/good/000.png", b"", "zero bytes"),
    (HOLE, b"", "zero bytes"),
    *((TEST, half(kind), "damaged") for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP")),
    (TEST, BOMB[:12], "header is damaged"),
    (TEST, b"hello", "not an image"),
    (TEST, encoded("GIF"), "not an image"),
    (TEST, BOMB, "decompression bomb"),
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
    ("test/hole/000.png", lambda path: save(path.parents[2] / "ground_truth/hole/000.png", MASK), "has two masks"),
    (HOLE, lambda path: save(path.parents[2] / "test/hole/000_mask.png"), "a mask of two images"),
    ("train/good/000.png", lambda path: save(path.with_suffix(".jpg")), "has the same stem as 000.jpg"),
    ("test/hole/notes.txt", b"x", "not an image file; expected .png"),
    ("test/notes.txt", b"x", "cannot be listed as a folder (Not a directory)"),
    ("test/hole/more", Path.mkdir, "a folder where only images"),
    (NINE, Path.mkdir, "a folder where only images"),
    (NINE, lambda path: path.symlink_to("gone.png"), "broken link"),
    (NINE, lambda path: path.symlink_to("9.png"), "broken link"),
    ("test/loop/loop", lambda path: path.symlink_to(path.parent), "a folder where only images"),
    ("test/dent", Path.mkdir, "an empty folder"),
    ("train/good", shutil.rmtree, "cannot be listed as a folder (No such file"),
    ("train/hole", Path.mkdir, "not read: training images lie in train/good"),
    ("ground_truth/dent", Path.mkdir, "masks without a folder"),
    ("test/ok", Path.mkdir, "named like good images"),
]


@pytest.mark.parametrize("file, spoilt, words", KINDS)
def test_every_problem_is_told_with_its_file(tmp_path, file, spoilt, words):
    path = mvtec(tmp_path) / file
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(spoilt):
        spoilt(path)
    else:
        path.write_bytes(spoilt) if isinstance(spoilt, bytes) else save(path, spoilt)
    with pytest.raises(UserError) as error:
        layouts.require_sound(only(tmp_path))
    assert any(f"{path}: " in line and words in line for line in str(error.value).splitlines())


def test_the_first_ten_problems_are_told_and_the_rest_counted(tmp_path):
    for index in range(13):
        (mvtec(tmp_path) / "train/good" / f"x{index:02}.txt").write_text("x")
    with pytest.raises(UserError) as error:
        layouts.require_sound(only(tmp_path))
    lines = str(error.value).split("\n")
    assert len(lines) == 12 and "x09.txt" in lines[10] and lines[11].strip() == "and 3 more"


def test_same_bytes_in_train_and_test_are_a_note(tmp_path):
    shutil.copy(mvtec(tmp_path) / "train/good/001.png", tmp_path / "test/good/000.png")
    found, notes, sizes = inspect(only(tmp_path))
    assert found == [] and sizes == [(6, 8)] * 9
    assert len(notes) == 1 and notes[0].startswith("1 test images have the bytes of a training image")


# Digests


def test_digest(tmp_path):
    """Pinned 2026-11-29: a run refuses to resume if the digest of its data has changed."""
    for name in ("a/test/good/0.png", "a/test/hole/1.png", "a/truth/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name[-5:].encode())
    shutil.copytree(tmp_path / "a", tmp_path / "far/b")
    for root in (tmp_path / "a", tmp_path / "far/b"):  # the place does not count
        good = Record(root / "test/good/0.png", 0, "good", None, "part")
        hole = Record(root / "test/hole/1.png", 1, "hole", root / "truth/1.png", "part")
        assert digest([good, hole]) == "7a414bf01864e0e2441adc86574e96fb1d720e515ce4c5d845c1414183d89754"
        assert digest([good]) == "a7455c8c1b5a90cc55758c4dbfbea5d10936a6235c98aa6a7d02cfca775cd200"
    changes = [[], [hole], [hole, good], [good, hole._replace(label=0)], [good, hole._replace(defect="dent")]]
    found = {digest(records) for records in [[good, hole], *changes]}
    hole.mask.write_bytes(b"other")
    assert len(found | {digest([good, hole])}) == 7
    with pytest.raises(UserError, match="cannot be opened"):
        digest([Record(tmp_path / "gone.png", 0, "good", None)])


def test_each_file_is_read_once(tmp_path, monkeypatch):
    """The check of the images gives the hashes; with them the digest opens no file."""
    category, read = only(mvtec(tmp_path)), []
    expected = digest(category.test)
    monkeypatch.setattr(layouts, "read_bytes", lambda path: (read.append(path), reader.read_bytes(path))[1])
    found, digests = check_images(category.test)
    assert found == [] and digest(category.test, digests) == expected
    assert Counter(read) == Counter(path for r in category.test for path in (r.path, r.mask) if path)
    assert all(reader.read_file(r.path).sha256 == digests[r.path] for r in category.test)


# The command


def test_command(tmp_path, capsys):
    for name in ("bottle", "cable"):
        mvtec(tmp_path / name)
    save(tmp_path / "bottle/train/good/9.png", NOISE)
    assert command.main([str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for words in ("category: bottle", "layout: MVTec AD", "train: 4", "'crack': 2", "masks: 4", "heights: 6..40"):
        assert words in shown
    (tmp_path / "cable/test/good/000.png").write_bytes(b"")
    assert command.main([str(tmp_path), "--category", "bottle", "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["test"] == {"crack": 2, "good": 2, "hole": 2} and report["masks"] == 4
    assert (report["heights"], report["widths"], report["problems"]) == ("6..40", "8..50", [])
    assert command.main([str(tmp_path)]) == 2
    assert f"problems: {tmp_path / 'cable/test/good/000.png'}: a file of zero bytes" in capsys.readouterr().out
    for arguments in ([str(tmp_path / "none")], [str(tmp_path), "--category", "nut"]):
        assert command.main(arguments) == 2
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.startswith("error: ") and shown.err.count("\n") == 1


def test_command_on_a_terminal_that_knows_ascii_only(tmp_path, monkeypatch):
    mvtec(tmp_path / "裂纹")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert command.main([str(tmp_path)]) == 0
    sys.stdout.flush()
    assert b"\\u88c2\\u7eb9" in sys.stdout.buffer.getvalue()


PCB = ("mousebite", "open", "pin_hole", "short", "spur", "spurious_copper")
REAL = {  # category: (train good, test good, anomalous by defect, masks), as the folder's list of sources tells
    "magnetic_tile/magnetic_tile": (220, 80, {"blowhole": 45, "break": 45, "crack": 57, "fray": 32, "uneven": 45}, 224),
    "bsdata/ball_screw": (180, 60, {"pitting": 80}, 80),
    "deeppcb/board_50600": (116, 50, dict.fromkeys(PCB, 12), 72),
    "deeppcb/board_12300": (139, 50, dict.fromkeys(PCB, 12), 72),
    "crackforest/pavement": (150, 60, {"crack": 60}, 60),
    "lookout/alien": (38, 20, {"anomaly": 60}, 0),
    "elpv/mono": (110, 40, {"defective": 40}, 0),
}


@pytest.mark.skipif("ADREF_TEST_DATA" not in os.environ, reason="ADREF_TEST_DATA names no folder of data sets")
def test_real_data_sets():
    root = Path(os.environ["ADREF_TEST_DATA"])
    with pytest.raises(UserError, match=r"hold data sets: bsdata, crackforest.* magnetic_tile"):
        find_categories(root)
    with pytest.raises(UserError, match="known layouts"):
        find_categories(root / "dtd_subset")
    for place, (train, good, defects, masks) in REAL.items():
        category = find_category(root / Path(place).parent, Path(place).name)
        found = dict(Counter(record.defect for record in category.test if record.label))
        assert (found, inspect(category)[0]) == (defects, [])
        assert counts(category)[:2] == (train, good) and counts(category)[3] == masks
