"""The mean filter of anomaly maps, and the filter that finds noise."""

import pytest
import torch
from conftest import golden
from figures import figures

from adref.ops.filters import grain, mean_filter

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


def test_grain_by_hand():
    """A lone red pixel: |Laplacian| 4 + 4 x 1 of R - G, none of G - B, a third in grey; averaged over 7 x 7."""
    images = torch.zeros(1, 3, 32, 32).double()
    images[0, 0, 16, 16] = 0.6
    colour, grey = grain(images)
    assert colour.shape == grey.shape == (1, 1, 32, 32)
    assert colour[0, 0, 16, 16].item() == pytest.approx(0.6 * 8 / 49 / 2) and colour[0, 0, 16, 21] == 0
    assert grey[0, 0, 16, 16].item() == pytest.approx(0.2 * 8 / 49)
    slope = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    assert max(part[..., 8:-8, 8:-8].abs().max() for part in grain(slope)) < 1e-6  # a gradient is no noise
