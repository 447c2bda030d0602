"""Commands: errors that end as one sentence with an exit code, and the progress line."""

import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adref.options import Notice, UserError
from adref.run import distributed
from adref.run.directory import TrainingError


def guarded(command, shared: bool = False) -> int:
    """Runs a command and turns what stops it into one sentence and an exit code.

    2 for a mistake at the keyboard or a file that cannot be read or written, 1 for work that cannot go on, as without
    memory, 130 for Ctrl-C (while training, `train.Interrupt` is there first and saves). `shared`: the processes that
    torchrun starts may share its work.
    """
    sys.stdout.reconfigure(errors="backslashreplace")  # a file name may hold what the terminal cannot show
    try:
        with warnings.catch_warnings():
            shown = warnings.showwarning
            warnings.showwarning = lambda text, kind, *rest: (
                print(f"note: {text}", file=sys.stderr) if issubclass(kind, Notice) else shown(text, kind, *rest)
            )
            if distributed.launch() and not shared:
                raise UserError("torchrun starts adref.train and adref.evaluate; this command runs in one process")
            return command()
    except UserError as error:
        text = str(error)
        if "Original Traceback" in text:  # from a data worker it comes inside that worker's traceback, as its last line
            text = text.strip().splitlines()[-1].removeprefix("adref.options.UserError: ")
        print(f"error: {text}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, TrainingError) and not is_out_of_memory(error):
            raise
        print(f"stopped: {error if isinstance(error, TrainingError) else 'memory does not suffice'}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def is_out_of_memory(error: Exception) -> bool:
    """Whether Python, the CPU's allocator or CUDA's has no memory left."""
    words = ("allocate memory", "not enough memory", "out of memory")  # and fork's "Cannot allocate memory"
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


@contextmanager
def explained(run: Path, options: dict) -> Iterator[None]:
    """Memory that does not suffice, or trouble with data workers, becomes a TrainingError that says what to try."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        kept = f"; {run} keeps its last checkpoint" if (run / "checkpoint.pt").exists() else ""
        if isinstance(error, TrainingError):
            raise
        if is_out_of_memory(error):
            size, count = ",".join(map(str, options["size"])), options["batch_size"]
            smaller = f"--batch-size {count // 2}" if count > 1 else "a smaller --size"
            raise TrainingError(
                f"memory does not suffice for --size {size} --batch-size {count}{kept}. "
                f"{smaller} in a new run is the first thing to try"
            ) from None
        text = str(error).strip()
        reasons = {
            "shared memory": "no shared memory is left for what the data workers send (/dev/shm)",
            "Too many open files": "too many files are open (ulimit -n)",
            "DataLoader worker (pid": f"a data worker died, as it does when memory runs out ({text})",
        }
        for words, reason in reasons.items():
            if words in text:
                again = f"python -m adref.train --resume --out {shlex.quote(str(run))} --workers 0"
                raise TrainingError(f"{reason}{kept}. Go on with: {again}") from None
        raise


class Progress:
    """One line on stderr that is rewritten at most five times a second; silent when stderr is no terminal."""

    def __init__(self):
        self.shown, self.last = sys.stderr.isatty(), 0.0

    def __call__(self, text: str, final: bool = False) -> None:
        if self.shown and (final or time.monotonic() - self.last > 0.2):
            self.last = time.monotonic()
            width = shutil.get_terminal_size().columns - 1
            print("\r" + text[:width].ljust(width), end="\n" if final else "", file=sys.stderr, flush=True)
