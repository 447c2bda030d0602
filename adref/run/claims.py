"""Claims of folders: processes on several machines that share a disk divide work, and survive the death of any."""

import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HEARTBEAT = 20.0  # seconds between two signs of life of a claim
PATIENCE = 600.0  # seconds without one after which another machine takes the folder
ELSEWHERE = 75  # exit code of a process that finds a folder claimed, or has lost its own claim


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """True where this process alone may work in a folder, from now to its end; False where another does.

    A claim is a file claim.N that is linked into place, which one process can do. Who finds the last claim dead makes
    the next number; nobody ever removes one, so that two who find it dead at once cannot both win. A claim is dead
    when its process is gone, or, on another machine, when its file has not been touched for `PATIENCE` seconds.
    """
    last, own = last_claim(folder), {"machine": machine(), "pid": os.getpid(), "started": started(os.getpid())}
    if last and not is_dead(folder / f"claim.{last}"):
        yield False
        return
    path = folder / f"claim.{last + 1}"
    if not put(path, json.dumps(own)):
        yield False
        return
    over = threading.Event()

    def live() -> None:
        while not over.wait(HEARTBEAT):
            if last_claim(folder) > last + 1:
                os._exit(ELSEWHERE)  # this process was thought dead, as after a long sleep of its machine
            os.utime(path)

    threading.Thread(target=live, daemon=True).start()
    try:
        yield True
    finally:
        over.set()


def put(path: Path, text: str) -> bool:
    """Makes a file, whole from the moment it exists; False where there is one: of several processes one makes it."""
    draft = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    draft.write_text(text)
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    finally:
        draft.unlink()
    return True


def last_claim(folder: Path) -> int:
    """Number of the newest claim, 0 where there is none."""
    numbers = (path.suffix[1:] for path in folder.glob("claim.*"))
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def is_dead(claim: Path) -> bool:
    """Whether nobody works under a claim any more; one that cannot be read is no claim."""
    try:
        owner = json.loads(claim.read_text())
        if owner["machine"] == machine():
            return started(owner["pid"]) != owner["started"]
    except (ValueError, KeyError, TypeError):
        return True
    probe = claim.with_name(f".now-{uuid.uuid4().hex}")
    probe.touch()  # the clock of the machine that holds the files
    now = probe.stat().st_mtime
    probe.unlink()
    return now - claim.stat().st_mtime > PATIENCE


def machine() -> str:
    """The name of this machine, when it was started, and its table of processes: containers may share all but that."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # a system without /proc
        return socket.gethostname()


def started(pid: int) -> str | None:
    """When a process of this machine began, None where there is none: a number is given to another one day."""
    try:
        os.kill(pid, 0)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # dead, and nobody has asked for its exit code
    except ProcessLookupError:
        return None
    except OSError:  # of another user, or a system without /proc
        return "unknown"


def is_free(folder: Path) -> bool:
    """Whether nobody works in a folder."""
    last = last_claim(folder)
    return last == 0 or is_dead(folder / f"claim.{last}")
