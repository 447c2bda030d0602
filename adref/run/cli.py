"""Commands: expected errors end as one sentence and an exit code; the progress line."""

import errno
import functools
import os
import shlex
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch

from adref.options import Notice, UserError
from adref.run import distributed

STOPS = (signal.SIGINT, signal.SIGTERM)
# Words of the CPU's, fork's, CUDA's, Python's and oneDNN's errors.
OUT_OF_MEMORY = ("allocate memory", "not enough memory", "out of memory", "can't start new thread",
                 "could not create a primitive")  # fmt: skip
WORKERS = {"shared memory": "no shared memory is left for what the data workers send (/dev/shm)",
           "DataLoader worker (pid": "a data worker died, as it does when memory runs out ({})"}  # fmt: skip


class TrainingError(RuntimeError):
    """Work that cannot go on for another reason than a user's mistake: one sentence, exit code 1."""


def run_cli(command: Callable[[], int], processes: bool = False) -> int:
    """Runs a command, prints expected errors as one line, and returns the exit code.

    2 for a user's mistake or a file that cannot be read or written, 1 for work that cannot go on (no memory, a loss
    that is not finite), 130 for Ctrl-C. `processes`: torchrun may start it in several processes.
    """
    out, err = Stream(sys.stdout), Stream(sys.stderr, needed=False)
    with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(reflection_pad2d_backward|nll_loss2d_forward)")  # see `loop.repeatable`
        warnings.simplefilter("default", Notice)  # once each, even where other warnings are errors
        show = warnings.showwarning
        warnings.showwarning = lambda text, kind, *rest: (
            print(f"note: {text}", file=sys.stderr) if issubclass(kind, Notice) else show(text, kind, *rest)
        )
        try:
            if not processes and distributed.launch():
                raise UserError("torchrun starts adref.train and adref.evaluate; this command runs in one process")
            return command()
        except UserError as error:
            text, code = f"error: {error}", 2
            if "Original Traceback" in text:  # from a data worker it comes as the last line of the worker's traceback
                text = text.strip().splitlines()[-1].replace("adref.options.UserError", "error", 1)
        except TrainingError as error:
            text, code = f"stopped: {error}", 1
        except OSError as error:
            text, code = f"error: {error.filename or 'a file'}: {error.strerror or error}", 2
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            text, code = "stopped: memory does not suffice", 1
        except KeyboardInterrupt:
            text, code = "interrupted", 130
        print(text, file=sys.stderr)
        return code


def entry_point(function: Callable[[list[str]], int], processes: bool = False) -> Callable[..., int]:
    """Makes the `main` of a command from a function of its arguments; `main()` takes those of the process."""

    @functools.wraps(function)
    def main(argv: list[str] | None = None) -> int:
        return run_cli(lambda: function(sys.argv[1:] if argv is None else argv), processes)

    return main


class Stream:
    """A standard stream that goes on without its reader, and shows characters that a terminal lacks as escapes."""

    def __init__(self, stream, needed: bool = True):
        self.needed, self.stream = needed, stream or open(os.devnull, "w")  # noqa: SIM115
        self.reconfigure = getattr(self.stream, "reconfigure", lambda **words: None)  # a notebook's has none
        self.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Writes and flushes; where nobody reads any more, or the text is not needed, it is lost and nothing else."""
        try:
            self.stream.write(text)
            getattr(self.stream, "flush", bool)()
        except OSError as error:
            if self.needed and error.errno not in (errno.EPIPE, errno.EBADF):  # a full disk
                error.filename = self.stream.name
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())  # what is left in the buffer goes there
        return len(text)


@contextmanager
def signal_handler(handler: Callable) -> Iterator[None]:
    """Handles Ctrl-C and SIGTERM in the main thread, the only one that may; in another they stay as they are."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in STOPS if main}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def require_open_files(workers: int) -> None:
    """Raises the limit of open files for data workers, which hang without them; TrainingError if that is impossible."""
    if os.name != "posix":
        return
    import resource

    needed, (soft, hard) = 64 + 32 * workers, resource.getrlimit(resource.RLIMIT_NOFILE)
    if workers and 0 <= soft < needed:  # negative: no limit
        if 0 <= hard < needed:
            raise TrainingError(f"--workers {workers} needs {needed} open files, ulimit -n is {hard}; try --workers 0")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def is_out_of_memory(error: Exception) -> bool:
    """Tells whether Python, the CPU's allocator or CUDA's has no memory left."""
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or any(w in str(error) for w in OUT_OF_MEMORY)


@contextmanager
def explain_failures(folder: Path, options: dict) -> Iterator[None]:
    """Turns a lack of memory or a failure of data workers into a TrainingError that says what to try."""
    try:
        yield
    except TrainingError:
        raise
    except (MemoryError, RuntimeError, OSError) as error:
        kept = f"; {folder} keeps its last checkpoint" if (folder / "checkpoint.pt").exists() else ""
        if is_out_of_memory(error):
            size, count = ",".join(map(str, options["size"])), options["batch_size"]
            remedy = f"--batch-size {count // 2}" if count > 1 else "a smaller --size"
            words = f"memory does not suffice for --size {size} --batch-size {count}{kept}"
            raise TrainingError(f"{words}. {remedy} in a new run is the first thing to try") from None
        for words, reason in WORKERS.items():
            if words in str(error):
                again = f"python -m adref.train --resume --out {shlex.quote(str(folder))} --workers 0"
                raise TrainingError(f"{reason.format(str(error).strip())}{kept}. Go on with: {again}") from None
        raise


class Progress:
    """Rewrites one line on stderr, with the time left, five times a second; silent when stderr is no terminal."""

    def __init__(self, total: int, done: int = 0):
        self.total, self.first, self.began, self.last = total, done, time.monotonic(), 0.0
        self.shown = getattr(sys.stderr, "isatty", bool)() and distributed.rank() == 0

    def __call__(self, done: int, text: str, final: bool = False) -> None:
        now, final = time.monotonic(), final or done == self.total
        if self.shown and (final or now - self.last > 0.2):
            left = int((now - self.began) / (done - self.first) * (self.total - done))
            text = f"{done}/{self.total} {text}, {left // 60}:{left % 60:02d} left"
            width, self.last = shutil.get_terminal_size().columns - 1, now
            print("\r" + text[:width].ljust(width), end="\n" if final else "", file=sys.stderr, flush=True)
