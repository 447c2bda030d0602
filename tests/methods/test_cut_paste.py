"""CutPaste: distributions of the draws, a slow loop for pasting, colours against colorsys."""

import cmath
import colorsys
import math

import numpy as np
import pytest
import torch

from adref.methods.realnet.cut_paste import (
    CutPasteNumbers,
    change_colour,
    cut_paste,
    draw_piece,
    draw_rectangle,
    draw_scar,
)

PLAIN = (1.0, 1.0, 1.0)


def picture(shape: tuple[int, int] = (40, 50), seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((3, *shape)).astype(np.float32))


def box(numbers: CutPasteNumbers) -> tuple[int, int]:
    """The bounding box of the rotated piece, from its four corners."""
    rotation = cmath.exp(1j * math.radians(numbers.degrees))
    corners = [rotation * complex(x, y) for x in (0, numbers.size[1]) for y in (0, numbers.size[0])]
    heights, widths = [c.imag for c in corners], [c.real for c in corners]
    return tuple(math.ceil(max(side) - min(side) - 1e-9) for side in (heights, widths))


def test_rectangles_have_the_areas_and_aspects_of_the_paper():
    rng, shape = np.random.default_rng(1), (300, 200)
    drawn = [draw_rectangle(rng, shape) for _ in range(4000)]
    h, w = np.array([n.size for n in drawn]).T
    area, aspect = h * w / (shape[0] * shape[1]), w / h
    slack = 2 / min(h.min(), w.min())  # sides are rounded
    assert 0.02 * (1 - slack) < area.min() < 0.023 and 0.147 < area.max() < 0.15 * (1 + slack)
    np.testing.assert_allclose(np.quantile(area, [0.25, 0.5, 0.75]), [0.0525, 0.085, 0.1175], atol=0.004)
    assert 0.3 * (1 - slack) < aspect.min() < 0.32 and 3.2 < aspect.max() < 3.3 * (1 + slack)
    # Half from (0.3, 1), half from (1, 3.3), uniform in each.
    np.testing.assert_allclose(np.quantile(aspect, [0.25, 0.5, 0.75]), [0.65, 1, 2.15], atol=0.1)
    assert abs(np.corrcoef(area, np.log(aspect))[0, 1]) < 0.05
    assert {n.degrees for n in drawn} == {0.0}


def test_scars_have_the_sizes_of_the_paper():
    rng = np.random.default_rng(2)
    drawn = [draw_scar(rng, (512, 700)) for _ in range(3000)]
    lengths, widths = np.array([n.size for n in drawn]).T / 2  # pixels of an image whose shorter side is 256
    for sides, low, high in ((lengths, 10, 25), (widths, 2, 16)):
        assert low - 1e-9 <= sides.min() < low + 0.6 and high - 0.6 < sides.max() <= high
        np.testing.assert_allclose(np.quantile(sides, [0.25, 0.5, 0.75]), np.linspace(low, high, 5)[1:4], atol=0.6)
    degrees = np.array([n.degrees for n in drawn])
    np.testing.assert_allclose(np.quantile(degrees, [0, 0.25, 0.5, 0.75, 1]), [-45, -22.5, 0, 22.5, 45], atol=2)
    assert abs(np.corrcoef(lengths, widths)[0, 1]) < 0.06


@pytest.mark.parametrize("draw", [draw_rectangle, draw_scar])
@pytest.mark.parametrize("shape", [(64, 64), (8, 8)])
def test_pieces_lie_in_the_image_and_elsewhere_and_change_colour(draw, shape):
    rng, places, sources, colours = np.random.default_rng(3), [], [], []
    for _ in range(1500):
        n = draw(rng, shape)
        assert min(n.size) >= 1 and n.place != n.source
        for corner, sides in ((n.source, n.size), (n.place, box(n))):
            assert all(start >= 0 and start + side <= length for start, side, length in zip(corner, sides, shape))
        sources.append([c / max(s - side, 1) for c, s, side in zip(n.source, shape, n.size)])
        places.append([c / max(s - side, 1) for c, s, side in zip(n.place, shape, box(n))])
        colours.append([*(f - 1 for f in n.factors), n.hue])
    for shares in (np.array(sources), np.array(places)):
        assert shares.min() == 0 and shares.max() == 1
    if min(shape) > 60:  # uniform and independent; in a small image the other place is often drawn anew
        np.testing.assert_allclose(np.quantile([*sources, *places], 0.5, axis=0), 0.5, atol=0.06)
        assert abs(np.corrcoef(np.array(sources)[:, 0], np.array(places)[:, 0])[0, 1]) < 0.1
        colours = np.array(colours)
        np.testing.assert_allclose(np.quantile(colours, [0, 0.25, 0.5, 0.75, 1], axis=0).T,
                                   [[-0.1, -0.05, 0, 0.05, 0.1]] * 4, atol=0.01)  # fmt: skip
        assert np.abs(colours).max() <= 0.1 and np.abs(np.corrcoef(colours.T) - np.eye(4)).max() < 0.1


def test_there_may_be_no_other_place():
    assert draw_piece(np.random.default_rng(6), (9, 9), (9.0, 9.0), 0.0)[:4] == ((0, 0), (9, 9), 0.0, (0, 0))
    for seed in range(20):  # two places: always the other
        n = draw_piece(np.random.default_rng(seed), (9, 10), (9.0, 9.0), 0.0)
        assert n.size == (9, 9) and n.place == (0, 1 - n.source[1])
    n = draw_piece(np.random.default_rng(9), (40, 40), (39.0, 16.0), 45.0)  # its box is larger than the image
    corrupted, mask = cut_paste(picture((40, 40)), n)
    assert corrupted.shape == (3, 40, 40) and mask.any()


@pytest.mark.parametrize(("degrees", "size"), [(0.0, (3, 17)), (17.3, (20, 20)), (-45.0 + 1e-3, (3, 17))])
def test_pasting_equals_a_slow_loop(degrees, size):
    """Pixel by pixel, offsets from the box's centre as complex numbers, right + up i."""
    image, n = picture(), CutPasteNumbers((5, 11), size, degrees, (7, 13), PLAIN, 0.0)
    (rows, columns), (height, width), rotation = box(n), size, cmath.exp(-1j * math.radians(degrees))
    wanted, marked = image.numpy().copy(), np.zeros(image.shape[1:], np.float32)
    for i, j in np.ndindex(rows, columns):
        offset = complex(j + 0.5 - columns / 2, rows / 2 - i - 0.5) * rotation
        y, x = math.floor(height / 2 - offset.imag), math.floor(width / 2 + offset.real)
        p, q = n.place[0] + i, n.place[1] + j
        if 0 <= y < height and 0 <= x < width and p < image.shape[1] and q < image.shape[2]:
            wanted[:, p, q] = image.numpy()[:, n.source[0] + y, n.source[1] + x]
            marked[p, q] = 1
    corrupted, mask = cut_paste(image, n)
    np.testing.assert_array_equal(mask.numpy(), marked)
    np.testing.assert_allclose(corrupted.numpy(), wanted, rtol=0, atol=1e-6)
    assert mask.sum() == pytest.approx(size[0] * size[1], rel=0.25, abs=4)
    assert corrupted.dtype == torch.float32 and mask.dtype == torch.float32


def test_a_piece_that_changes_nothing_is_no_anomaly():
    image = picture((96, 70))
    corrupted, mask = cut_paste(image, draw_scar(np.random.default_rng(8), (96, 70)))  # with its colours changed
    assert torch.equal((corrupted != image).any(dim=0), mask > 0) and 0 <= corrupted.min() <= corrupted.max() <= 1
    image, n = torch.zeros(3, 64, 64), CutPasteNumbers((0, 0), (9, 9), 0.0, (30, 30), (0.9, 1.0, 1.0), 0.0)
    corrupted, mask = cut_paste(image, n)
    assert torch.equal(corrupted, image) and mask.sum() == 0
    image[:, 34, 34] = 0.5  # one pixel differs: the whole piece is marked
    assert cut_paste(image, n)[1].sum() == 81 == cut_paste(torch.ones(3, 64, 64), n)[1].sum()
    with pytest.raises(ValueError, match=r"expected \(3, H, W\) in \[0, 1\], got"):
        cut_paste(torch.zeros(1, 40, 50), n)


@pytest.mark.parametrize(
    ("factors", "hue"), [((1.08, 0.93, 1.07), 0.1), ((0.2, 3.0, 2.5), 0.37), ((1.0, 1.0, 0.9), -0.5)]
)
def test_colours_equal_a_slow_loop(factors, hue):
    """torchvision's formulas pixel by pixel; the hue by Python's colorsys."""
    image = picture((7, 9), seed=1).double()
    image[:, 0] = image[:1, 0]  # greys
    image[:, 1, :3], image[:, 1, 3:6] = torch.eye(3, dtype=torch.float64), 1 - torch.eye(3, dtype=torch.float64)
    image[:, 2, 0], image[:, 2, 1] = 0, 1

    luma = np.array([0.2989, 0.587, 0.114])
    pixels = np.clip(factors[0] * image.reshape(3, -1).T.numpy(), 0, 1)
    pixels = np.clip(factors[1] * pixels + (1 - factors[1]) * (pixels @ luma).mean(), 0, 1)
    pixels = np.clip(factors[2] * pixels + (1 - factors[2]) * (pixels @ luma)[:, None], 0, 1)
    hsv = (colorsys.rgb_to_hsv(*p) for p in pixels)
    expected = np.array([colorsys.hsv_to_rgb((h + hue) % 1.0, s, v) for h, s, v in hsv]).T.reshape(image.shape)
    np.testing.assert_allclose(change_colour(image, factors, hue).numpy(), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(change_colour(image, PLAIN, 0.0), image, rtol=0, atol=1e-6)
