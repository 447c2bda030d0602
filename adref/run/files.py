"""Files and folders that are written whole or not at all, and errors that name them."""

import csv
import hashlib
import io
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np

from adref.data.reader import read_text
from adref.options import UserError


@contextmanager
def with_filename(path: Path) -> Iterator[None]:
    """Adds `path` to an OSError raised inside the block; the system omits it when writing to an open file fails."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch.save hides a full disk
        if not isinstance(cause, OSError):
            raise
        cause.strerror = cause.strerror or f"not written whole, as on a full disk ({cause})"  # numpy sets none
        cause.filename = cause.filename or str(path)
        raise cause from None


def write_atomically(path: Path, write: Callable) -> None:
    """Calls `write(file)` on a temporary file beside `path`, in a folder that it may make, then renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(4)}-{path.name[-40:]}.tmp")  # of this call alone, and not too long
    try:
        with with_filename(path), open(temporary, "xb") as file:  # follows no link
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # a full disk needs the room
        raise
    with suppress(PermissionError):  # of a folder that may be written and not read
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)  # the rename itself
        os.close(folder)


def refuse_existing(folder: Path, remedy: str) -> None:
    """Raises UserError if the name of a new folder is taken, unless by an empty one or what a kill left unfinished."""
    entries = folder.iterdir() if folder.is_dir() else [folder] * os.path.lexists(folder)
    ours = r"\.lock|\.[0-9a-f]{8}-.*\.tmp|\.[0-9a-f]{16}\.partial|lost\+found"
    if folder.resolve() == Path.cwd() or not all(re.fullmatch(ours, entry.name) for entry in entries):
        raise UserError(f"--out {folder} exists already; {remedy}")


def safe_name(text: str) -> str:
    """Turns a name from data into one path component: the name, or part of it and a digest where it could be none."""
    plain = re.sub(r"[/\\\0]|^\.+", "_", text)
    if text and plain == text and len(os.fsencode(text)) <= 200:
        return text
    return f"{plain[:40]}-{hashlib.sha256(os.fsencode(text)).hexdigest()[:16]}"


def result_path(root: Path, name: str, suffix: str = "") -> Path:
    """Returns a path below `root`, of the parts of `name`, each safe; UserError for a link among its folders."""
    *parents, last = map(safe_name, Path(name).parts)
    path = root.joinpath(*parents, last + suffix)
    if links := [folder for folder in path.parents[: len(parents)] if folder.is_symlink()]:
        raise UserError(f"{links[-1]} is a link; what is written there would lie outside of {root}")
    return path


def no_links(path: str, flags: int) -> int:
    """Opens a file, as `opener` of `open`, unless a link is in its place."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def remove_empty(folder: Path) -> None:
    """Removes a folder if nothing is in it and nothing keeps it."""
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder in `path`, new or empty, whose entries move up at the end, or nothing does."""
    partial = path / f".{secrets.token_hex(8)}.partial"
    with ExitStack() as undo:
        path.parent.mkdir(parents=True, exist_ok=True)
        undo.callback(remove_empty, path)
        path.mkdir(exist_ok=True)  # an empty one may be a mounted volume
        partial.mkdir()
        undo.callback(shutil.rmtree, partial, ignore_errors=True)  # a full disk needs the room
        yield partial
        refuse_existing(path, "another process has written it")
        undo.pop_all()
        for entry in sorted(partial.iterdir(), reverse=True):  # a run's config.json after its log
            entry.rename(path / entry.name)
        partial.rmdir()


def write_text(path: Path, text: str) -> None:
    """Writes text as UTF-8, in which each name has the bytes of its file even if the locale's encoding is another."""
    try:
        (data := os.fsencode(text)).decode()
    except UnicodeError:
        data = text.encode(errors="surrogateescape")
    write_atomically(path, lambda file: file.write(data))


def write_json(path: Path, value) -> None:
    """Writes indented JSON atomically; NaN becomes null, which every reader of JSON takes."""
    write_text(path, json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False))


def csv_text(rows: Iterable[Iterable]) -> str:
    """Formats rows as CSV."""
    lines = []
    for row in rows:
        text = io.StringIO()
        csv.writer(text, lineterminator="\r\n").writerow(map(_disarmed, row))  # quotes a cell with either character
        lines.append(text.getvalue().removesuffix("\r\n") + "\n")
    return "".join(lines)


def _disarmed(cell):
    """Puts an apostrophe before a text that a spreadsheet would compute; numbers stay."""
    armed = isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{cell}" if armed and not re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", cell) else cell


def read_json(path: Path) -> dict:
    """Reads an object that `write_json` wrote; UserError for a missing or damaged file."""
    try:
        value = json.loads(read_text(path))
        if not isinstance(value, dict):
            raise ValueError("no JSON object")
        return value
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _plain(value):
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.integer) else value
