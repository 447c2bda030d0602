"""Claims: one winner, and the dead are found."""

import json
import multiprocessing
import os
import signal
import threading
import time

import pytest

from adref.run import claims
from adref.run.claims import claimed, is_dead, is_free, last_claim


def test_one_at_a_time(tmp_path):
    assert is_free(tmp_path)
    with claimed(tmp_path) as first:
        assert first and not is_free(tmp_path)
        with claimed(tmp_path) as second:
            assert not second
    assert [path.name for path in tmp_path.iterdir()] == ["claim.1"]
    # its process is alive, so that the folder stays claimed to the end of that process
    assert not is_free(tmp_path)


def hold(folder, began, heartbeat):
    claims.HEARTBEAT = heartbeat
    with claimed(folder) as ours:
        if ours:
            began.set()
        time.sleep(60)


def holder(folder, heartbeat=claims.HEARTBEAT) -> multiprocessing.Process:
    """A process that has claimed a folder."""
    context = multiprocessing.get_context("fork")
    began = context.Event()
    process = context.Process(target=hold, args=(folder, began, heartbeat))
    process.start()
    assert began.wait(20)
    return process


def test_a_killed_process_holds_nothing(tmp_path):
    process = holder(tmp_path)
    assert not is_free(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    while not is_free(tmp_path):  # dead before anyone has asked for its exit code
        time.sleep(0.01)
    with claimed(tmp_path) as ours:
        assert ours and last_claim(tmp_path) == 2
    process.join()


def race(folder, start, wins):
    start.wait()
    with claimed(folder) as ours:
        wins.put(ours)
        time.sleep(1)


@pytest.mark.parametrize("dead", [False, True])
def test_of_six_that_start_at_once_one_wins(tmp_path, dead):
    if dead:
        write_claim(tmp_path, pid=2**22 + 7)
    context = multiprocessing.get_context("fork")
    start, wins = context.Event(), context.Queue()
    racers = [context.Process(target=race, args=(tmp_path, start, wins)) for _ in range(6)]
    for racer in racers:
        racer.start()
    start.set()
    assert sorted(wins.get(timeout=20) for _ in racers) == [False] * 5 + [True]
    for racer in racers:
        racer.join()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["claim.1", "claim.2"][: 1 + dead]


def write_claim(folder, **changes) -> None:
    own = {"machine": claims.machine(), "pid": os.getpid(), "started": claims.started(os.getpid())}
    (folder / "claim.1").write_text(json.dumps(own | changes))


def test_a_number_that_another_process_has_now_is_dead(tmp_path):
    write_claim(tmp_path)
    assert not is_dead(tmp_path / "claim.1")
    write_claim(tmp_path, started="1")
    assert is_dead(tmp_path / "claim.1")


def test_another_machine_is_dead_when_it_gives_no_sign_of_life(tmp_path):
    write_claim(tmp_path, machine="elsewhere", pid=1, started="1")
    path = tmp_path / "claim.1"
    assert not is_dead(path)
    for age, dead in ((claims.PATIENCE - 5, False), (claims.PATIENCE + 5, True)):
        os.utime(path, (time.time() - age,) * 2)
        assert is_dead(path) == dead
    assert [p.name for p in tmp_path.iterdir()] == ["claim.1"]


def test_files_that_are_no_claims(tmp_path):
    for text in ("", "garbage", "[]", "{}"):
        (tmp_path / "claim.1").write_text(text)
        assert is_free(tmp_path)
    (tmp_path / "claim.7~").touch()
    assert last_claim(tmp_path) == 1


def test_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "HEARTBEAT", 0.02)
    with claimed(tmp_path):
        path = tmp_path / "claim.1"
        os.utime(path, (1, 1))
        for _ in range(500):
            if path.stat().st_mtime > 1:
                break
            time.sleep(0.01)
        assert time.time() - path.stat().st_mtime < 20
    threads = threading.active_count()
    os.utime(path, (1, 1))
    time.sleep(0.1)
    assert path.stat().st_mtime == 1 and threading.active_count() <= threads


def test_who_was_thought_dead_stops(tmp_path):
    process = holder(tmp_path, heartbeat=0.02)
    (tmp_path / "claim.2").write_text((tmp_path / "claim.1").read_text())
    process.join(20)
    assert process.exitcode == claims.ELSEWHERE
