"""Finds the images, labels and masks of a data set in one of four folder layouts, and checks them before training.

Masks are paired with images by file name without suffix (VisA: by its table), never by position in a list. A pixel is
anomalous where the mask is `> 0` at native size: VisA's masks hold class ids 1, 2, ... and look black.
"""

import csv
import difflib
import hashlib
import io
import json
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from adref.data.reader import THREADS, decode_image, decode_mask, read_bytes, read_text
from adref.options import Notice, UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm",
            ".pbm", ".pnm", ".jp2", ".j2k", ".jpx")  # fmt: skip
HIDDEN = ("thumbs.db", "desktop.ini", "__macosx", "@eadir", "#recycle")  # of systems and NAS, as dot files
COLUMNS = ("object", "split", "label", "image", "mask")  # of VisA's split_csv
LAYOUTS = ("MVTec AD (CATEGORY/train/good, test/good, test/DEFECT, ground_truth/DEFECT/STEM_mask.png), "
           "BTAD (CATEGORY/train/ok, test/ok, test/ko, ground_truth/ko/STEM.png), VisA (split_csv/1cls.csv), "
           "a plain folder (good/, DEFECT/, masks/DEFECT/STEM.png) or a folder of good images")  # fmt: skip


class Record(NamedTuple):
    """An image of a data set: label 1 = anomalous; `defect` is "good" or the data set's name of the defect."""

    path: Path
    label: int
    defect: str
    mask: Path | None
    category: str = ""


class Problem(NamedTuple):
    """A reason not to use a data set as it is, with the file or folder at fault."""

    path: Path
    reason: str


class Category(NamedTuple):
    """One kind of object; `train` holds good images only, `problems` those visible from names (see `check_files`)."""

    name: str
    layout: str
    root: Path
    train: tuple[Record, ...]
    test: tuple[Record, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    def name_of(self, record: Record) -> str:
        """Returns the path of an image below the root, by which it is known everywhere."""
        return Path(os.path.relpath(record.path, self.root)).as_posix()


def find_categories(root: str | Path) -> dict[str, Category]:
    """Finds the categories of a data set, by name; `root` may also be the folder of one category. Opens no image."""
    root, refused = Path(root), []
    entries = _entries(root, refused)
    if not entries:
        raise UserError(f"{root}: {refused[0].reason}")
    tables = sorted((root / "split_csv").glob("[12]cls*.csv"))
    if tables:
        return _visa(root, tables)
    split = [root] if _is_split(root) else [entry for entry in entries if _is_split(entry)]
    if split != [root] and (others := [entry.name for entry in entries if split and entry not in split]):
        warnings.warn(f"{root}: {len(others)} entries are no categories: {', '.join(others[:5])}", Notice, 2)
    if split or os.path.isdir(root / "good") or any(entry.suffix.lower() in SUFFIXES for entry in entries):
        return {category.name: category for category in map(_folder_category, split or [root])}
    nested = [e.name for e in entries if any(i.name in ("good", "split_csv") or _is_split(i) for i in _entries(e, []))]
    hint = f"its folders hold data sets: {', '.join(nested)}" if nested else f"known layouts: {LAYOUTS}"
    raise UserError(f"{root}: no data set recognised; {hint}")


def find_category(root: str | Path, name: str | None, trained: bool = False) -> Category:
    """Finds one category, or merges several (names joined by commas) into one in alphabetical order.

    No `name`: the only one. In a merged one, `defect` is CATEGORY/DEFECT or CATEGORY/good. `trained`: that of a run,
    whose folder may be called otherwise now if it is the only one.
    """
    categories = find_categories(root)
    if name in categories or (name is None and len(categories) == 1):
        return categories[name or next(iter(categories))]
    if trained and len(categories) == 1 and "," not in name:
        (found,) = categories.values()
        warnings.warn(f"{root}: the category {found.name} is taken for {name}, the only one there", Notice, 2)
        train, test = (tuple(r._replace(category=name) for r in some) for some in (found.train, found.test))
        return found._replace(name=name, train=train, test=test)
    if name is None:
        raise UserError(f"{root} holds several categories; give --category, one of: {', '.join(sorted(categories))}")
    names = sorted(set(name.split(",")))
    if unknown := [n for n in names if n not in categories]:
        known = ", ".join(sorted(categories, key=lambda c: -difflib.SequenceMatcher(None, unknown[0], c).ratio()))
        raise UserError(f"{root}: expected the name of a category, got {unknown[0]!r}; there are: {known}")
    chosen, parts = [categories[n] for n in names], ("train", "test", "problems", "notes")
    merged = {part: sum((getattr(category, part) for category in chosen), ()) for part in parts}
    merged["test"] = tuple(record._replace(defect=f"{record.category}/{record.defect}") for record in merged["test"])
    return chosen[0]._replace(name=",".join(names), root=Path(root), **merged)


def list_images(folder: str | Path, without: Sequence[Path] = ()) -> list[Path]:
    """Lists the images in a folder, not in links or the folders `without`; a Notice names the rest; none: UserError."""
    found, left_out, unread = [], [], []
    for base, folders, files in os.walk(folder, onerror=unread.append):
        paths = [Path(base, name) for name in folders + files if not _is_hidden(name)]
        images = [p for p in paths if p.suffix.lower() in SUFFIXES and os.path.isfile(p)]
        inner = [p for p in paths if os.path.isdir(p) and not os.path.islink(p) and p.resolve() not in without]
        left_out += [*{Path(base, name) for name in folders + files} - {*images} - {*inner}]
        found, folders[:] = found + images, [p.name for p in inner]
    left_out += [Path(error.filename) for error in unread]
    shown = ", ".join(path.name for path in sorted(left_out)[:5])
    if not found:
        reason = unread[0].strerror if unread else "holds no images"
        raise UserError(f"{folder}: {reason}; expected {' '.join(SUFFIXES)}; left out: {shown or 'nothing'}")
    if left_out:
        warnings.warn(f"{folder}: {len(left_out)} entries are left out: {shown}", Notice, 2)
    return sorted(found, key=Path.as_posix)


def _is_hidden(name: str) -> bool:
    return name[0] == "." or name.lower() in HIDDEN


def _is_split(folder: Path) -> bool:
    return os.path.isdir(folder / "train") or os.path.isdir(folder / "test")


def _entries(folder: Path, problems: list[Problem]) -> list[Path]:
    """Lists the visible entries of a folder by code points: the same order on every system."""
    try:
        names = sorted(name for name in os.listdir(folder) if not _is_hidden(name))
    except OSError as error:
        problems.append(Problem(folder, f"cannot be listed as a folder ({error.strerror})"))
        return []
    if not names:
        problems.append(Problem(folder, "an empty folder"))
    return [folder / name for name in names]


def _images(folder: Path, problems: list[Problem]) -> list[Path]:
    """Lists the image files of one folder; every other entry is a problem."""
    images: dict[str, Path] = {}
    for path in _entries(folder, problems):
        if os.path.isdir(path):
            problems.append(Problem(path, "a folder where only images are expected"))
        elif path.suffix.lower() not in SUFFIXES:
            problems.append(Problem(path, f"not an image file; expected {' '.join(SUFFIXES)}"))
        elif not os.path.isfile(path):
            problems.append(Problem(path, "neither a file nor a folder (a broken link?)"))
        elif path.stem in images:
            problems.append(Problem(path, f"has the same stem as {images[path.stem].name}"))
        else:
            images[path.stem] = path
    return list(images.values())


def _pair(images: list[Path], folder: Path, problems: list[Problem]) -> list[Path | None]:
    """Finds the mask of each image, STEM_mask or STEM; whole names must match: 10_mask is not the mask of 1."""
    stems, paired = {image.stem: image for image in images}, {}
    for mask in _images(folder, problems) if os.path.isdir(folder) else ():
        owners = [s for s in dict.fromkeys((mask.stem.removesuffix("_mask"), mask.stem)) if s in stems]
        if len(owners) != 1:
            problems.append(Problem(mask, "a mask of two images" if owners else "a mask without image"))
        for stem in owners:
            if stem in paired:
                problems.append(Problem(stems[stem], f"has two masks: {paired[stem].name} and {mask.name}"))
            paired[stem] = mask
    return [paired.get(stem) for stem in stems]


def _folder_category(root: Path) -> Category:
    """Reads labels from folder names; a plain folder with defects keeps every fifth good image by name for testing."""
    problems, notes, test, masked = [], [], [], False
    split = _is_split(root)
    plain = not split and os.path.isdir(root / "good")
    btad = split and (os.path.isdir(root / "train" / "ok") or os.path.isdir(root / "test" / "ko"))
    layout = "BTAD" if btad else "MVTec AD" if split else "plain folder"
    good, masks = "ok" if btad else "good", root / ("ground_truth" if split else "masks")
    used = ("train", "test", "ground_truth") if split else (good, "masks")
    others = [entry for entry in _entries(root, []) if entry.name not in used]
    # In a plain folder an image beside the folders is listed with them, so that `_images` objects to it.
    folders = [path for path in others if plain and (os.path.isdir(path) or path.suffix.lower() in SUFFIXES)]
    if split:
        folders = _entries(root / "test", problems) if os.path.isdir(root / "test") else []
        unread = [entry for entry in _entries(root / "train", []) if entry.name != good]
        problems += [Problem(entry, f"not read: training images lie in train/{good}") for entry in unread]
    if beside := [entry.name for entry in others if entry not in folders and (plain or split)]:
        notes.append(f"not read: {', '.join(beside[:5])}")
    source = root / "train" / good if split else root / "good" if plain else root
    found = _images(source, problems) if not split or os.path.isdir(root / "train") else []  # a test set alone
    train = [Record(path, 0, "good", None) for path in found]
    hidden = sorted({n for _, dirs, files in os.walk(root) for n in dirs + files if _is_hidden(n)})
    notes += [f"hidden entries are not read: {', '.join(hidden[:5])}"] if hidden else []
    for folder in folders:
        label, images = int(folder.name != good), _images(folder, problems)
        masked |= bool(label) and os.path.isdir(masks / folder.name)
        if label and folder.name.lower() in ("good", "ok", "normal"):
            problems.append(Problem(folder, f"named like good images, but their folder is {good}"))
        pairs = zip(images, _pair(images, masks / folder.name, problems), strict=True)
        test += [Record(image, label, folder.name if label else "good", mask) for image, mask in pairs]
    if plain and folders:
        test, train = test + train[4::5], [record for i, record in enumerate(train) if i % 5 != 4]
        notes.append("plain folder: every fifth good image by name is for testing, not for training")
    known = [good, *(folder.name for folder in folders)]
    listed = _entries(masks, problems) if os.path.isdir(masks) else []
    problems += [Problem(entry, "masks without a folder of images") for entry in listed if entry.name not in known]
    return _category(os.path.basename(os.path.abspath(root)), layout, root, train, test, masked, problems, notes)


def _visa(root: Path, tables: list[Path]) -> dict[str, Category]:
    """Reads a table of VisA (Zou et al., ECCV 2022), split_csv/*.csv: images, labels, split and masks."""
    table, groups = tables[0], {}  # 1cls.csv, the protocol that trains on good images only, sorts first
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(table))))
    except (OSError, csv.Error) as error:
        raise UserError(f"{table}: cannot be read as a table ({error})") from error
    if not rows or not all(set(COLUMNS) <= set(row) and row["object"] for row in rows):
        raise UserError(f"{table}: expected rows with {','.join(COLUMNS)}; found {len(rows)}, the first: {rows[:1]}")
    listed = Counter(os.path.normpath((row["image"] or "").strip()) for row in rows)
    for line, row in enumerate(rows, start=2):
        name, split, label, image, mask = ((row[column] or "").strip() for column in COLUMNS)
        train, test, problems, left_out = groups.setdefault(name, ([], [], [], []))
        missing = [file for file in (image, mask) if file and not os.path.isfile(root / file)]
        if split not in ("train", "test") or label not in ("normal", "anomaly") or not image:
            reason = f"expected train or test, normal or anomaly, an image; got {split}, {label}, {image}"
        elif missing:
            reason = f"no such file: {missing[0]}"
        elif listed[os.path.normpath(image)] > 1:
            reason = f"{image} is listed {listed[os.path.normpath(image)]} times"
        elif outside := [file for file in (image, mask) if ".." in Path(file).parts or Path(file).is_absolute()]:
            reason = f"expected a path below {root}; got {outside[0]}"
        elif mask and Path(mask).stem.removesuffix("_mask") != Path(image).stem:
            reason = f"image and mask have different stems: {image}, {mask}"
        else:
            good = label == "normal"
            record = Record(root / image, int(not good), "good" if good else label, root / mask if mask else None)
            (test if split == "test" else train if good else left_out).append(record)
            continue
        problems.append(Problem(table, f"line {line}: {reason}"))
    categories, unread = {}, "".join(f", {other.name} is not read" for other in tables[1:])
    for name, (train, test, problems, left_out) in sorted(groups.items()):
        notes = [f"split: {table.name}{unread}"]
        if left_out:  # the 2-class protocols train on defects too, which no method here may see
            notes.append(f"{len(left_out)} anomalous training images are left out: only good ones train")
        categories[name] = _category(name, "VisA", root, train, test, any(r.mask for r in test), problems, notes)
    return categories


def _category(name, layout, root, train, test, masked, problems, notes) -> Category:
    """Makes a category of sorted records; adds the checks of all layouts. `masked`: some defect has masks."""
    defects = [record for record in test if record.label]
    if masked:
        problems += [Problem(r.path, "an anomalous image without mask") for r in defects if not r.mask]
    elif defects:
        notes.append("no masks: image-level metrics only")
    if len(defects) in (0, len(test)):
        notes.append(f"AUROC is undefined: {len(test)} test images, {len(defects)} of them anomalous")
    ordered = (sorted(some, key=lambda record: record.path.as_posix()) for some in (train, test))
    train, test = (tuple(record._replace(category=name) for record in some) for some in ordered)
    return Category(name, layout, root, train, test, tuple(problems), tuple(notes))


def raise_if_any(problems: Sequence[Problem], name: str) -> None:
    """Raises UserError with the first ten of the problems of category `name`; returns if there are none."""
    if problems:
        more = [f"and {len(problems) - 10} more"] if len(problems) > 10 else []
        told = [f"category {name} has problems:", *(f"{path}: {reason}" for path, reason in problems[:10]), *more]
        raise UserError("\n  ".join(told))


class Checked(NamedTuple):
    """Findings in the files of a data set."""

    problems: list[Problem]
    notes: list[str]
    digests: dict[Path, str]  # SHA-256 of each file
    sizes: list[tuple[int, int]]  # (height, width) of each sound image


def inspect(category: Category) -> Checked:
    """Opens all files of a category; returns all problems and notes, of names and of contents."""
    problems, notes, digests, sizes = check_files(category.train + category.test)
    train = {digests[record.path]: record.path for record in category.train if record.path in digests}
    same = [f"{r.path} and {train[digests[r.path]]}" for r in category.test if digests.get(r.path) in train]
    shared = [f"{len(same)} test images have the bytes of a training image, the first: {same[0]}"] if same else []
    lacking = [] if category.train else [Problem(category.root, f"{category.name} has no good training images")]
    return Checked([*lacking, *category.problems, *problems], [*category.notes, *notes, *shared], digests, sizes)


def check_files(records: Sequence[Record]) -> Checked:
    """Reads all images and masks once."""
    with ThreadPoolExecutor(THREADS) as pool:
        rows = list(pool.map(_check_record, records))
    digests = {path: digest for _, contents, *_ in rows for path, digest in contents.items()}
    notes, known = [], [(r.category, *row[-1], r.mask.name) for row, r in zip(rows, records) if r.mask and row[-1][0]]
    for name in sorted({category for category, *_ in known}):
        masks = [row[1:] for row in known if row[0] == name]
        (least, *_), (most, _, largest), graded = min(masks), max(masks), [mask for _, grey, mask in masks if grey]
        notes.append(f"masks of {name}: {100 * least:.2g} % to {100 * most:.2g} % of a picture's pixels are anomalous")
        if most > 0.5:
            notes.append(f"WARNING: in {largest} more than half of the pixels are above 0: is it inverted?")
        if graded:
            notes.append(f"WARNING: {len(graded)} masks have grey levels, which all count as anomalous: {graded[0]}")
    return Checked([p for found, *_ in rows for p in found], notes, digests, [size for *_, size, _ in rows if size])


def _check_record(record: Record) -> tuple[list[Problem], dict[Path, str], tuple | None, tuple[float, bool]]:
    """Reads an image and its mask: problems, digests, (height, width), (anomalous share, whether it is graded)."""
    problems, digests = [], {}

    def attempt(path, decode):
        try:
            data = read_bytes(path)
            digests[path] = hashlib.sha256(data).hexdigest()
            return decode(data, path)
        except UserError as error:
            problems.append(Problem(path, str(error).removeprefix(f"{path}: ")))

    image, mask = attempt(record.path, decode_image), attempt(record.mask, decode_mask) if record.mask else None
    size, reason, share, graded = None if image is None else image.shape[:2], None, 0.0, False
    if mask is not None:
        share, anomalous, most = float((mask > 0).mean()), mask[mask > 0], mask.max()
        graded = bool((anomalous < most).any() and (most > 31 or mask.dtype.kind == "f"))  # class ids are small
        if size and mask.shape != size:
            reason = "mask is {}x{}, its image {}x{} (height x width)".format(*mask.shape, *size)
        elif bool(share) != bool(record.label):
            reason = "an empty mask for a defect" if record.label else "a mask of defects for a good image"
    return problems + [Problem(record.mask, reason)] * bool(reason), digests, size, (share, graded)


def digest(records: Sequence[Record], digests: Mapping[Path, str]) -> str:
    """Hashes records, in order: labels, defects, paths from their deepest common folder, SHA-256 of their files."""
    base, listing = os.path.commonpath([record.path.parent for record in records]) if records else "", []
    for record in records:
        files = [path for path in (record.path, record.mask) if path]
        entries = [(Path(os.path.relpath(path, base)).as_posix(), digests[path]) for path in files]
        listing.append((record.label, record.defect, *entries))
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()
