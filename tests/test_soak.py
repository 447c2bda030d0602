"""tools/soak.py finds a leak of memory and of files, and none where there is none."""

import os
import re

import pytest
import soak

from adref import predict

SMALL = ["--steps", "16", "--pictures", "16", "--every", "4", "--workers", "1"]


@pytest.mark.parametrize(
    ("memory", "files", "code"),
    [([99, 1, 1, 1, 1, 1, 1, 1], [9] * 8, 0), ([1, 2, 3, 4, 5, 6, 20, 30], [9] * 8, 1),
     ([1] * 8, [9, 9, 9, 9, 9, 9, 18, 19], 1), ([1, 30, 30, 30, 30, 30, 30, 30], [9, 29] * 4, 0)],
)  # fmt: skip
def test_verdict(memory, files, code):
    phase = soak.Phase("step", 8, 1)
    phase.samples = list(zip(map(float, memory), files))
    assert soak.verdict(phase, bound=16) == code


def test_a_file_that_stays_open_is_found(monkeypatch, capsys):
    """A small run with a planted leak; its training half has none."""
    score, kept = predict.score_image, []

    def leaking(*arguments):
        kept.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(2))
        return score(*arguments)

    monkeypatch.setattr(predict, "score_image", leaking)
    try:
        assert soak.main(SMALL) == 1
    finally:
        for descriptor in kept:
            os.close(descriptor)
    *_, training, prediction = capsys.readouterr().out.splitlines()
    assert training.endswith("sound") and prediction.endswith("FAILED")
    assert int(re.search(r"open files, growth \+(\d+)", prediction)[1]) >= 12  # of 16; batches come and go
