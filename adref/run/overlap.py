"""Files while a network is at work: pictures read ahead of it, results written behind it, maps read when asked for."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from adref.data.reader import THREADS, read_image

AHEAD = 4  # pictures that are read, or wait to be written, while the network is at another one


def read_ahead(paths: Iterable[Path]) -> Iterator[Future]:
    """For each path, in order, a future of `read_image`: a few are read while the caller is at work.

    Its `result()` raises the UserError of a damaged file, so that the caller may go on with the next one.
    """
    waiting, pool = deque(), ThreadPoolExecutor(THREADS)
    try:
        for path in paths:
            waiting.append(pool.submit(read_image, path))
            if len(waiting) > AHEAD:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def write_behind() -> Iterator[Callable]:
    """A function `later(function, *arguments)`: calls are made by a thread, one by one, while the caller goes on.

    What a call raises is raised by a later `later`, or at the end; before what stops the caller, since it came first.
    """
    waiting, pool = deque(), ThreadPoolExecutor(1)

    def finish(left: int = 0) -> None:
        while len(waiting) > left:
            try:
                waiting.popleft().result()
            except Exception:
                waiting.clear()  # the first failure is the one to tell
                raise

    def later(function: Callable, *arguments) -> None:
        waiting.append(pool.submit(function, *arguments))
        finish(AHEAD)

    try:
        yield later
        finish()
    except Exception:
        finish()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


class Lazy(Sequence):
    """A sequence that makes an item each time it is asked for, so that one at a time is in memory."""

    def __init__(self, make: Callable, sources: Sequence):
        self.make, self.sources = make, sources

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int):
        return self.make(self.sources[index])
