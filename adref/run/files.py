"""Files that are whole or not there, and errors that name them."""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from adref.options import UserError


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError from inside says which file it is about; a write to an open file does not."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch.save hides a full disk
        if not isinstance(cause, OSError):
            raise
        cause.strerror = cause.strerror or f"not written whole, as on a full disk ({cause})"  # numpy's has none
        cause.filename = cause.filename or str(path)
        raise cause from None


def write_atomically(path: Path, write) -> None:
    """Calls `write(file)` on a temporary file beside `path`, flushes it to the disk, then renames it.

    A reader, or the next run after a crash, sees the old file or the new one, never a part.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with naming(path), open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # on a full disk its room is wanted
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def write_json(path: Path, value) -> None:
    """`value` as indented JSON, atomically; NaN is written as null, which every reader of JSON takes."""
    text = json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, lambda file: file.write(text.encode(errors="surrogateescape")))


def read_json(path: Path, **kinds) -> dict:
    """What `write_json` wrote.

    Args:
        path: the file.
        kinds: what must be there: key=type.

    Raises:
        UserError: the file is damaged, or one of the keys is not there or of another type.
    """
    try:
        value = json.loads(path.read_text())
        if not isinstance(value, dict):
            raise ValueError("it is no object")
        for key, kind in kinds.items():
            if key not in value or not isinstance(value[key], kind):
                raise ValueError(f"{key} is not what it should be" if key in value else f"it has no {key}")
    except (ValueError, RecursionError) as error:
        raise damaged(path, error) from None
    return value


def damaged(path: Path, reason) -> UserError:
    """What is said of a file that a command can make again."""
    return UserError(f"{path} is damaged ({reason}); delete it, and run the command again")


def is_number(value) -> bool:
    """Whether a value from JSON is a number that can be shown."""
    return isinstance(value, int | float) and abs(value) < 1e15  # no NaN


def _plain(value):
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.integer) else value


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if sys.version_info >= (3, 11) else _digest(file)


def _digest(file) -> str:  # Python 3.10
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
