"""Layouts, checks and the command of adref.data, on tiny generated data sets; the rest is in test_data_reader.py."""

import io
import json
import os
import shutil
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adref.data import __main__ as data___main__
from adref.data import layouts as data
from adref.data import reader as data_reader
from adref.data.examples import Images
from adref.data.layouts import check, find_categories, find_category
from adref.options import UserError

RNG = np.random.default_rng(1)
NOISE = RNG.integers(0, 256, (40, 50, 3), np.uint8)


def save(path: Path, array: np.ndarray | None = None, **options) -> Path:
    """A picture file; by default 8 x 6 pixels of a noise that no other picture has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = RNG.integers(0, 256, (6, 8, 3), np.uint8) if array is None else array
    Image.fromarray(array).save(path, **options)
    return path


def defect_mask(value: int = 255) -> np.ndarray:
    mask = np.zeros((6, 8), np.uint8)
    mask[2:4, 3:5] = value
    return mask


def mvtec(root: Path, suffix: str = "_mask") -> Path:
    """Three good training images, two good test images, two defects with two images and masks each."""
    for name in ("000", "001", "002"):
        save(root / "train/good" / f"{name}.png")
    for name in ("000", "001"):
        save(root / "test/good" / f"{name}.png")
        for defect in ("crack", "hole"):
            save(root / "test" / defect / f"{name}.png")
            save(root / "ground_truth" / defect / f"{name}{suffix}.png", defect_mask())
    return root


def png(depth: int, colour: int, width: int, rows: list[bytes]) -> bytes:
    """A PNG by hand, for what Pillow cannot write; colour 0 grey, 2 RGB, 4 grey + alpha, 6 RGBA."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def tiff(array: np.ndarray, bits: int, sample: int, photometric: int = 1, orientation: int = 1) -> bytes:
    """A little-endian grey TIFF by hand; sample 1 unsigned, 2 signed, 3 float."""
    (height, width), pixels = array.shape, array.tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (274, orientation)]
    tags += [(277, 1), (278, height), (279, len(pixels)), (339, sample)]
    body = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    head = b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels
    return head + struct.pack("<H", len(tags)) + body + struct.pack("<I", 0)


def only(root: Path) -> data.Category:
    return find_category(root, None)


def counts(category: data.Category) -> tuple[int, int, int, int]:
    """(train, good test, anomalous test, masks)."""
    labels = [record.label for record in category.test]
    assert not any(record.label for record in category.train)
    return len(category.train), labels.count(0), labels.count(1), sum(r.mask is not None for r in category.test)


# Layouts


@pytest.mark.parametrize("suffix", ["_mask", ""])
def test_mvtec(tmp_path, suffix):
    for name in ("bottle", "cable"):
        mvtec(tmp_path / name, suffix)
        (tmp_path / name / "license.txt").write_text("beside the folders of images a text is no problem")
    (tmp_path / "readme.txt").write_text("nor here")
    categories = find_categories(tmp_path)
    assert list(categories) == ["bottle", "cable"]
    bottle = categories["bottle"]
    assert (bottle.layout, bottle.name, bottle.notes, counts(bottle)) == ("MVTec AD", "bottle", (), (3, 2, 4, 4))
    assert [record.defect for record in bottle.test] == ["crack", "crack", "good", "good", "hole", "hole"]
    assert all(r.mask.stem == r.path.stem + suffix and r.mask.parent.name == r.defect for r in bottle.test if r.label)
    assert check(bottle) == []
    data.require_sound(bottle)
    assert find_category(tmp_path / "bottle", None) == bottle == find_category(tmp_path / "bottle", "bottle")


def test_btad(tmp_path):
    for name, kind in (("01", "png"), ("03", "bmp")):
        for index in range(3):
            save(tmp_path / name / "train/ok" / f"{index:04}.bmp")
        save(tmp_path / name / "test/ok/0000.bmp")
        save(tmp_path / name / "test/ko/0001.bmp")
        save(tmp_path / name / "ground_truth/ko" / f"0001.{kind}", defect_mask())
    for category in find_categories(tmp_path).values():
        assert (category.layout, counts(category), check(category)) == ("BTAD", (3, 1, 1, 1), [])
        assert [(record.label, record.defect) for record in category.test] == [(1, "ko"), (0, "good")]


def visa(root: Path, table: str = "1cls.csv", extra: str = "") -> Path:
    rows = ["object,split,label,image,mask"]
    for index in range(4):
        image = save(root / f"candle/Data/Images/Normal/000{index}.JPG")
        rows.append(f"candle,{'test' if index == 3 else 'train'},normal,{image.relative_to(root).as_posix()},")
    for index in (0, 1):  # class ids 1 and 2: such a mask looks black
        image = save(root / f"candle/Data/Images/Anomaly/00{index}.JPG")
        mask = save(root / f"candle/Data/Masks/Anomaly/00{index}.png", defect_mask(index + 1))
        rows.append("candle,test,anomaly," + ",".join(p.relative_to(root).as_posix() for p in (image, mask)))
    (root / "split_csv").mkdir()
    (root / "split_csv" / table).write_text("\n".join(rows) + "\n" + extra, encoding="utf-8-sig")
    return root


def test_visa(tmp_path):
    category = only(visa(tmp_path))
    assert (category.name, category.layout, counts(category), check(category)) == ("candle", "VisA", (3, 1, 2, 2), [])
    for record in category.test[:2]:
        assert record.defect == "anomaly" and record.path.parts[-2] == "Anomaly"
        assert data_reader.read_mask(record.mask).tolist() == (defect_mask() > 0).tolist()


def test_visa_two_class_tables_put_no_defect_into_training(tmp_path):
    extra = "candle,train,anomaly,candle/Data/Images/Anomaly/002.JPG,candle/Data/Masks/Anomaly/002.png\n"
    save(tmp_path / "candle/Data/Images/Anomaly/002.JPG")
    save(tmp_path / "candle/Data/Masks/Anomaly/002.png", defect_mask(1))
    visa(tmp_path, "2cls_fewshot.csv", extra)
    (tmp_path / "split_csv/2cls_highshot.csv").write_text("not read")
    category = only(tmp_path)
    assert counts(category) == (3, 1, 2, 2)
    assert "2cls_highshot.csv is not read" in category.notes[0] and "1 anomalous training" in category.notes[1]


@pytest.mark.parametrize(
    "line, words",
    [
        ("candle,train,normal,candle/Data/Images/Normal/9999.JPG,", "line 8: no such file"),
        ("candle,train,good,candle/Data/Images/Normal/0000.JPG,", "line 8: expected train or test, normal or anomaly"),
        ("candle,val,normal,candle/Data/Images/Normal/0000.JPG,", "got val"),
        ("candle,train,normal,,", "an image; got"),
        ("candle,test,normal,candle/Data/Images/Normal/0000.JPG,", "is listed 2 times"),
        ("candle,test,anomaly,extra.JPG,candle/Data/Masks/Anomaly/000.png", "different stems"),
        ("candle,test,anomaly,extra.JPG,", "an anomalous image without mask"),
        ("candle,test,anomaly,extra.JPG,extra.png", "no such file: extra.png"),
        ("pcb1,test,normal,extra.JPG,", "category pcb1 has no good training images"),
    ],
)
def test_visa_problems(tmp_path, line, words):
    save(tmp_path / "extra.JPG")
    categories = find_categories(visa(tmp_path, extra=line + "\n")).values()
    assert any(words in problem.reason for category in categories for problem in category.problems)


@pytest.mark.parametrize(
    "text", [b"object,split\ncandle,train\n", b"", b"\xff\xfe\x00", b"object,split,label,image,mask\n"]
)
def test_visa_table_that_is_no_table(tmp_path, text):
    visa(tmp_path)
    (tmp_path / "split_csv/1cls.csv").write_bytes(text)
    with pytest.raises(UserError, match=r"1cls\.csv: (cannot be read as a table|expected rows with object,split)"):
        find_categories(tmp_path)


def test_plain_folder_of_good_images(tmp_path):
    for name in "abc":
        save(tmp_path / "my parts" / f"{name}.PNG")
    category = only(tmp_path / "my parts")
    assert (category.name, category.layout, counts(category)) == ("my parts", "plain folder", (3, 0, 0, 0))
    assert check(category) == [] and "AUROC is undefined: 0 test images" in category.notes[0]


def test_plain_folder_without_defects_trains_on_all_good_images(tmp_path):
    for index in range(7):
        save(tmp_path / "good" / f"{index}.png")
    assert counts(only(tmp_path)) == (7, 0, 0, 0)


@pytest.mark.parametrize("suffix", ["_mask", "", None])
def test_plain_folder_with_defects_keeps_every_fifth_good_image_for_testing(tmp_path, suffix):
    for index in range(12):
        save(tmp_path / "good" / f"{index:02}.png")
    for index in range(3):
        save(tmp_path / "scratch" / f"{index}.png")
        if suffix is not None:
            save(tmp_path / "masks/scratch" / f"{index}{suffix}.png", defect_mask())
    category = only(tmp_path)
    assert counts(category) == (10, 2, 3, 0 if suffix is None else 3)
    assert [record.path.stem for record in category.test if not record.label] == ["04", "09"]
    assert not {record.path for record in category.train} & {record.path for record in category.test}
    assert "every fifth good image" in category.notes[0] and check(category) == []
    assert ("no masks: image-level metrics only" in category.notes) == (suffix is None)


def test_folders_and_files_that_are_not_read_are_told(tmp_path):
    save(mvtec(tmp_path / "split") / "good/000.png")  # beside train/ and test/ this is no plain folder
    category = only(tmp_path / "split")
    assert counts(category) == (3, 2, 4, 4) and category.notes == ("the folder good is not read",)
    save(tmp_path / "plain/good/000.png")
    loose = save(tmp_path / "plain/001.png")
    assert [problem.path for problem in check(only(tmp_path / "plain"))] == [loose]


def test_a_category_without_masks_is_no_problem(tmp_path):
    shutil.rmtree(mvtec(tmp_path) / "ground_truth")
    category = only(tmp_path)
    assert counts(category) == (3, 2, 4, 0) and check(category) == []
    assert category.notes == ("no masks: image-level metrics only",)


def test_hidden_files_are_ignored(tmp_path):
    mvtec(tmp_path)
    for folder in ("train/good", "test/crack", "test", "ground_truth/crack", "."):
        for name in (".DS_Store", "._000.png", "Thumbs.db", "desktop.ini"):
            (tmp_path / folder / name).write_text("x")
        (tmp_path / folder / "__MACOSX").mkdir()
    assert check(only(tmp_path)) == [] and counts(only(tmp_path)) == (3, 2, 4, 4)


def test_order_is_that_of_code_points(tmp_path):
    names = ["10.png", "2.png", "A.png", "a.png", "Ä.png"]
    for name in reversed(names):
        save(tmp_path / name)
    assert [record.path.name for record in only(tmp_path).train] == names


def test_masks_are_paired_by_the_whole_stem(tmp_path):
    mvtec(tmp_path)
    for name in ("1", "10", "11", "100"):
        save(tmp_path / "test/crack" / f"{name}.jpg")
    for name in ("10", "100"):
        save(tmp_path / "ground_truth/crack" / f"{name}_mask.png", defect_mask())
    category = only(tmp_path)
    masks = {r.path.stem: r.mask and r.mask.name for r in category.test if r.defect == "crack"}
    assert masks["10"] == "10_mask.png" and masks["100"] == "100_mask.png" and masks["1"] is masks["11"] is None
    assert [p.path.stem for p in check(category)] == ["1", "11"]


def test_names_that_are_long_or_not_ascii(tmp_path, capsys):
    mvtec(tmp_path / "Täfelchen 磁砖")
    for name in ("ß" * 100, "n" * 240, "a b'c\"d", "裂纹"):
        save(tmp_path / "Täfelchen 磁砖/test/crack" / f"{name}.png")
        save(tmp_path / "Täfelchen 磁砖/ground_truth/crack" / f"{name}_mask.png", defect_mask())
    assert check(only(tmp_path)) == [] and counts(only(tmp_path)) == (3, 2, 8, 8)
    assert len(Images([r.path for r in only(tmp_path).test], (4, 4))) == 10


# Problems


def twin(path: Path, ending: str) -> Path:
    """The other file of a pair: the mask STEM + ending of an image, the image STEM + ending of a mask."""
    folder = "ground_truth" if "test" in path.parts[-3] else "test"
    return path.parents[2] / folder / path.parent.name / f"{path.stem.removesuffix('_mask')}{ending}.png"


def write(text: bytes):
    return lambda path: path.write_bytes(text)


def draw(array: np.ndarray):
    return lambda path: save(path, array)


def cut(path: Path) -> None:
    whole = save(path, NOISE).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def two_pages(path: Path) -> None:
    Image.fromarray(NOISE).save(path, save_all=True, append_images=[Image.fromarray(NOISE[::-1])])


ROW = np.zeros((2, 4))
BOMB = png(1, 0, 65536, [b""] * 65536)
KINDS = {  # what is wrong: (the file in question, what is done to it in a sound category, words of the reason)
    "zero bytes": ("train/good/000.png", write(b""), "a file of zero bytes"),
    "zero bytes of a mask": ("ground_truth/hole/000_mask.png", write(b""), "a file of zero bytes"),
    "truncated PNG": ("test/good/000.png", cut, "truncated, damaged or too large (image file is truncated"),
    "truncated JPEG": ("train/good/9.jpg", cut, "truncated, damaged or too large (image file is truncated"),
    "truncated BMP": ("train/good/9.bmp", cut, "truncated, damaged or too large (image file is truncated"),
    "truncated TIFF": ("train/good/9.tif", cut, "damaged"),
    "truncated WebP": ("train/good/9.webp", cut, "damaged"),
    "a head alone": ("train/good/9.png", write(BOMB[:12]), "not an image, or its head is damaged"),
    "a text": ("test/good/000.png", write(b"hello"), "not an image, or its head is damaged"),
    "a GIF named PNG": ("test/good/000.png", lambda p: Image.new("L", (8, 6)).save(p, "GIF"), "not an image"),
    "decompression bomb": ("test/good/000.png", write(BOMB), "could be decompression bomb"),
    "float": ("train/good/9.tif", write(tiff(ROW.astype("<f4"), 32, 3)), "TIFF in mode F; expected 8-bit, 1-bit"),
    "32 bit": ("train/good/9.tif", write(tiff(ROW.astype("<i4"), 32, 2)), "TIFF in mode I; expected 8-bit, 1-bit"),
    "signed": ("train/good/9.tif", write(tiff(ROW.astype("<i2"), 16, 2)), "TIFF in mode I; expected 8-bit, 1-bit"),
    "white as 0": ("train/good/9.tif", write(tiff(ROW.astype("<u2"), 16, 1, 0)), "16-bit grey with 0 as black"),
    # four pixels of 12 bits take six bytes, two are left over
    "12 bit": ("train/good/9.tif", write(tiff(ROW[:1].astype("<u2"), 12, 1)), "I;16; expected 8-bit, 1-bit, or full"),
    "two pages": ("test/good/9.tif", two_pages, "holds 2 pages or frames; expected one"),
    "mask without image": ("ground_truth/hole/7_mask.png", draw(defect_mask()), "a mask without image"),
    "image without mask": ("test/hole/7.png", save, "an anomalous image without mask"),
    "mask size": ("ground_truth/hole/000_mask.png", draw(np.ones((6, 9), np.uint8)), "mask is 6x9, its image 6x8 ("),
    "empty mask": ("ground_truth/hole/000_mask.png", draw(defect_mask(0)), "an empty mask for a defect"),
    "mask of a good image": ("ground_truth/good/000.png", draw(defect_mask()), "a mask of defects for a good image"),
    "CMYK mask": ("ground_truth/good/000.tif", lambda p: Image.new("CMYK", (8, 6)).save(p), "a mask in mode CMYK"),
    "JPEG mask": ("ground_truth/good/000.jpg", draw(defect_mask(0)), "its compression noise would be anomalous"),
    "two masks": ("test/hole/000.png", lambda p: save(twin(p, ""), defect_mask()), "has two masks: 000.png and 000_"),
    "mask of two images": ("ground_truth/hole/000_mask.png", lambda p: save(twin(p, "_mask")), "fits two images"),
    "duplicate stems": ("train/good/000.png", lambda p: save(p.with_suffix(".jpg")), "has the same stem as 000.jpg"),
    "no image file": ("test/hole/notes.txt", write(b"x"), "not an image file; expected .png .jpg"),
    "a folder among images": ("test/hole/more", Path.mkdir, "a folder where only images are expected"),
    "a folder named as an image": ("train/good/7.png", Path.mkdir, "a folder where only images are expected"),
    "a file among folders": ("test/notes.txt", write(b"x"), "cannot be listed as a folder (Not a directory)"),
    "link to nothing": ("train/good/9.png", lambda p: p.symlink_to("gone.png"), "neither file nor folder (a link"),
    "link to itself": ("test/good/9.png", lambda p: p.symlink_to("9.png"), "or to itself)"),
    "folder link loop": ("test/loop/loop", lambda p: p.symlink_to(p.parent), "a folder where only images are expected"),
    "empty folder": ("test/dent", Path.mkdir, "an empty folder"),
    "no training folder": ("train/good", shutil.rmtree, "cannot be listed as a folder (No such file or directory)"),
    "defects in train": ("train/hole", Path.mkdir, "not read, training images lie in train/good"),
    "masks of nothing": ("ground_truth/dent", Path.mkdir, "masks of no known folder of images"),
    "good by another name": ("test/ok", Path.mkdir, "named like good images, but those belong in good"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_problem_is_told_with_its_file(tmp_path, kind):
    file, action, words = KINDS[kind]
    path = mvtec(tmp_path) / file
    path.parent.mkdir(parents=True, exist_ok=True)
    action(path)
    problems = check(only(tmp_path))
    assert any(problem.path == path and words in problem.reason for problem in problems), problems
    with pytest.raises(UserError) as error:
        data.require_sound(only(tmp_path))
    assert words in str(error.value) and str(path) in str(error.value)


def test_there_are_twenty_kinds_of_bad_data_or_more():
    assert len(KINDS) >= 20


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="for root every file is readable")
def test_unreadable_file_and_folder(tmp_path):
    mvtec(tmp_path)
    (tmp_path / "train/good/000.png").chmod(0)
    (tmp_path / "test/hole").chmod(0)
    reasons = {problem.path.name: problem.reason for problem in check(only(tmp_path))}
    (tmp_path / "test/hole").chmod(0o700)
    assert reasons["000.png"] == "cannot be opened (Permission denied)"
    assert reasons["hole"] == "cannot be listed as a folder (Permission denied)"


def test_the_first_ten_problems_are_told_and_the_rest_counted(tmp_path):
    mvtec(tmp_path)
    for index in range(13):
        (tmp_path / "train/good" / f"x{index:02}.txt").write_text("x")
    with pytest.raises(UserError) as error:
        data.require_sound(only(tmp_path))
    lines = str(error.value).split("\n")
    assert len(lines) == 12 and "x09.txt" in lines[10] and lines[11].strip() == "and 3 more"


def test_same_bytes_in_train_and_test_are_a_note(tmp_path):
    mvtec(tmp_path)
    shutil.copy(tmp_path / "train/good/001.png", tmp_path / "test/good/000.png")
    problems, notes, sizes = data.inspect(only(tmp_path))
    assert problems == [] and sizes == [(6, 8)] * 9
    assert len(notes) == 1 and notes[0].startswith("1 test images have the bytes of a training image")


def test_list_images(tmp_path):
    names = ["a/b.JPG", "a/c/1.png", "a/c/10.png", "a/c/2.webp", "z.tif"]
    for name in [*names, ".hidden/1.png", "__MACOSX/1.png", "a/.1.png"]:
        save(tmp_path / "all" / name)
    (tmp_path / "all/a/readme.txt").write_text("no image, and none is expected everywhere")
    (tmp_path / "all/a/loop").symlink_to(tmp_path / "all")
    (tmp_path / "all/empty").mkdir()
    assert [path.relative_to(tmp_path / "all").as_posix() for path in data.list_images(tmp_path / "all")] == names
    (tmp_path / "text").mkdir()
    (tmp_path / "text/1.txt").write_text("x")
    refused = {"all/empty": "an empty folder; expected .png", "none": "No such file", "text": "holds no images"}
    for folder, words in refused.items():
        with pytest.raises(UserError, match=words):
            data.list_images(tmp_path / folder)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda root: root / "missing", r"missing: cannot be listed as a folder \(No such file"),
        (lambda root: save(root / "a.png"), r"a\.png: cannot be listed as a folder \(Not a directory"),
        (lambda root: root, "an empty folder"),
        (lambda root: save(root / "a/b/c/d.png").parents[2], r"known layouts: MVTec AD .*BTAD .*VisA .*plain folder"),
        (lambda root: mvtec(root / "x/sets/bottle").parents[1], "it holds some, give one of them: sets"),
        (lambda root: save(root / "parts/good/1.png").parents[2], "it holds some, give one of them: parts"),
    ],
)
def test_roots_that_are_no_data_set(tmp_path, make, words):
    with pytest.raises(UserError, match=words):
        find_categories(make(tmp_path))


def test_unknown_category_lists_the_nearest_first(tmp_path):
    for name in ("bottle", "cable", "capsule"):
        mvtec(tmp_path / name)
    with pytest.raises(UserError, match=r"got 'cabel'; there are: cable, .*bottle"):
        find_category(tmp_path, "cabel")
    with pytest.raises(UserError, match="got None; there are: bottle, cable, capsule"):
        find_category(tmp_path, None)


# The command


def test_command_on_sound_data(tmp_path, capsys):
    mvtec(tmp_path / "bottle")
    save(tmp_path / "bottle/train/good/9.png", NOISE)
    assert data___main__.main([str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for words in ("category: bottle", "layout: MVTec AD", "train: 4", "'crack': 2", "masks: 4", "heights: 6..40"):
        assert words in shown
    assert data___main__.main([str(tmp_path), "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["test"] == {"crack": 2, "good": 2, "hole": 2} and report["masks"] == 4
    assert (report["heights"], report["widths"], report["problems"]) == ("6..40", "8..50", [])


def test_command_tells_problems_and_mistakes(tmp_path, capsys):
    for name in ("bottle", "cable"):
        mvtec(tmp_path / name)
    (tmp_path / "cable/test/good/000.png").write_bytes(b"")
    assert data___main__.main([str(tmp_path), "--category", "bottle"]) == 0
    assert "cable" not in capsys.readouterr().out
    assert data___main__.main([str(tmp_path)]) == 2
    assert f"problems: {tmp_path / 'cable/test/good/000.png'}: a file of zero bytes" in capsys.readouterr().out
    for arguments in ([str(tmp_path / "none")], [str(tmp_path), "--category", "nut"]):
        assert data___main__.main(arguments) == 2
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.startswith("error: ") and shown.err.count("\n") == 1


def test_command_on_a_terminal_that_knows_ascii_only(tmp_path, monkeypatch):
    mvtec(tmp_path / "裂纹")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert data___main__.main([str(tmp_path)]) == 0
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
    with pytest.raises(UserError, match=r"it holds some, give one of them: bsdata, crackforest.* magnetic_tile"):
        find_categories(root)
    with pytest.raises(UserError, match="known layouts"):
        find_categories(root / "dtd_subset")
    for place, (train, good, defects, masks) in REAL.items():
        category = find_category(root / Path(place).parent, Path(place).name)
        found = dict(data.Counter(record.defect for record in category.test if record.label))
        assert (found, check(category)) == (defects, [])
        assert counts(category)[:2] == (train, good) and counts(category)[3] == masks
