"""The mean filter of anomaly maps."""

import pytest
import torch
from conftest import golden
from figures import figures

from adref.ops.filters import mean_filter

# Sourced: mean, standard deviation and the means of the products with two lists of hashed numbers,
# of scipy 1.17.1's uniform_filter(hashed("map", 40, 56), 21), mode "mirror" and "constant", float64;
# `PYTHONPATH=tools python tools/sources/sernet.py`, 2026-11-24.
SOURCED_MEAN = {
    "reflect": [0.4904026433, 0.01600081823, 0.2464999526, 0.2448134416],
    "zero": [0.3852633908, 0.0964585423, 0.1927613439, 0.1917744886],
}  # fmt: skip


def test_mean_filter_of_ones():
    """1 with the border mirrored; in the corner 11 x 11 of 21 x 21 with zeros."""
    ones = torch.ones(1, 1, 64, 64).double()
    assert mean_filter(ones, 21, "reflect").sub(1).abs().max() < 1e-12
    zero = mean_filter(ones, 21, "zero")
    assert zero[0, 0, 0, 0].item() == pytest.approx(0.27437642, abs=5e-9) == (11 / 21) ** 2
    assert zero[0, 0, 10:-10, 10:-10].sub(1).abs().max() < 1e-12


@pytest.mark.parametrize("border", list(SOURCED_MEAN))
def test_mean_filter_agrees_with_scipy(border):
    found = mean_filter(golden.hashed("map", 1, 1, 40, 56).double(), 21, border)
    assert figures(found) == pytest.approx(SOURCED_MEAN[border], abs=1e-9)
