"""Files read ahead of and written behind a network: order, bounds, and whose mistake is told."""

import threading

import pytest
from PIL import Image

from adref.options import UserError
from adref.run import overlap
from adref.run.overlap import AHEAD, Lazy, read_ahead, write_behind


def test_pictures_come_in_order_and_few_are_read_ahead(tmp_path, monkeypatch):
    begun = []

    def read(path):
        begun.append(path)
        return path

    monkeypatch.setattr(overlap, "read_image", read)
    for place, future in enumerate(read_ahead(range(20))):
        assert future.result() == place and len(begun) <= place + AHEAD + 1
    assert sorted(begun) == list(range(20)) and list(read_ahead([])) == []


def test_a_damaged_picture_fails_in_its_place_and_the_others_are_read(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(8)]
    for path in paths:
        Image.new("RGB", (3, 2)).save(path)
    paths[5].write_bytes(b"no picture")
    found = [future.exception() or future.result().shape for future in read_ahead(paths)]
    assert found.pop(5).args[0].startswith(f"{paths[5]}: not an image") and found == [(2, 3, 3)] * 7


def test_who_stops_early_leaves_no_thread(tmp_path):
    before = threading.active_count()
    for _ in (ahead := read_ahead([tmp_path / "absent"] * 9)):
        break
    ahead.close()
    with pytest.raises(KeyboardInterrupt), write_behind() as later:
        later(int)
        raise KeyboardInterrupt
    assert threading.active_count() == before


def test_writing_keeps_the_order_and_is_done_at_the_end():
    done = []
    with write_behind() as later:
        for i in range(20):
            later(done.append, i)
            assert len(done) >= i - AHEAD
    assert done == list(range(20))


def fail(word: str):
    raise OSError(word)


def test_the_first_failure_is_told():
    """A write that failed came before the picture that stopped the caller, and before later writes."""
    with pytest.raises(OSError, match="first"), write_behind() as later:
        for word in ("first", "second", "third"):
            later(fail, word)
        raise UserError("a damaged picture")
    with pytest.raises(OSError, match=r"^0$"), write_behind() as later:
        for i in range(100):
            later(fail, str(i))
            assert i <= AHEAD
    with pytest.raises(UserError, match="damaged"), write_behind() as later:
        later(int)
        raise UserError("a damaged picture")


def test_lazy_items_are_made_anew():
    made = Lazy(lambda x: [x], "abc")
    assert list(made) == [["a"], ["b"], ["c"]] and len(made) == 3 and made[1] is not made[1]
