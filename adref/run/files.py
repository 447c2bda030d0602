"""Files and folders that are written whole or not at all, and errors that name them."""

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

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
    """Calls `write(file)` on a temporary file beside `path`, flushes it to the disk, then renames it."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with with_filename(path), open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # a full disk needs the room
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def refuse_existing(folder: Path, remedy: str) -> None:
    """Raises UserError if the name of a new folder is taken, unless by an empty one."""
    if folder.resolve() == Path.cwd() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise UserError(f"--out {folder} exists already; {remedy}")


@contextmanager
def explain_out(path: Path) -> Iterator[None]:
    """Turns an OSError inside the block into a UserError: `path`, which --out names, cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--out {path} cannot be written: {error.strerror or error}") from None


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`, which takes this name at the end of the block; UserError if it fails."""
    partial = path.with_name(f".{path.name}.partial")
    with explain_out(path):
        try:
            shutil.rmtree(partial, ignore_errors=True)  # of a command that was killed here
            partial.mkdir(parents=True)
            yield partial
            os.replace(partial, path)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)  # a full disk needs the room
            raise


def write_json(path: Path, value) -> None:
    """Writes indented JSON atomically; NaN becomes null, which every reader of JSON takes."""
    text = json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, lambda file: file.write(text.encode(errors="surrogateescape")))


def csv_text(rows: Iterable[Iterable]) -> str:
    """Formats rows as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def read_json(path: Path) -> dict:
    """Reads an object that `write_json` wrote; UserError for a missing or damaged file."""
    try:
        value = json.loads(path.read_bytes().decode(errors="surrogateescape"))
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


def sha256(path: str | Path) -> str:
    """Computes the hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
