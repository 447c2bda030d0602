"""CutPaste: distributions of what is drawn, a slow loop for what is pasted, colours against colorsys."""

import cmath
import colorsys
import math

import numpy as np
import pytest
import torch

from adref.methods.realnet.cut_paste import CutPasteNumbers, change_colour, cut_paste, draw_rectangle, draw_scar

PLAIN = (1.0, 1.0, 1.0)


def picture(shape: tuple[int, int] = (40, 50), seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((3, *shape)).astype(np.float32))


def box(numbers: CutPasteNumbers) -> tuple[int, int]:
    """Of the turned piece, from its four corners."""
    turn = cmath.exp(1j * math.radians(numbers.degrees))
    corners = [turn * complex(x, y) for x in (0, numbers.size[1]) for y in (0, numbers.size[0])]
    heights, widths = [c.imag for c in corners], [c.real for c in corners]
    return tuple(math.ceil(max(side) - min(side) - 1e-9) for side in (heights, widths))


# -- drawing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(256, 256), (300, 200), (64, 64)])
def test_rectangles_have_the_areas_and_aspects_of_the_paper(shape):
    rng = np.random.default_rng(1)
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


@pytest.mark.parametrize(("shape", "unit"), [((256, 256), 1), ((512, 700), 2), ((1024, 1024), 4)])
def test_scars_have_the_sizes_of_the_paper(shape, unit):
    rng = np.random.default_rng(2)
    drawn = [draw_scar(rng, shape) for _ in range(3000)]
    lengths, widths = np.array([n.size for n in drawn]).T / unit
    for sides, low, high in ((lengths, 10, 25), (widths, 2, 16)):
        assert low - 1e-9 <= sides.min() < low + 0.6 and high - 0.6 < sides.max() <= high
        np.testing.assert_allclose(np.quantile(sides, [0.25, 0.5, 0.75]), np.linspace(low, high, 5)[1:4], atol=0.6)
    degrees = np.array([n.degrees for n in drawn])
    np.testing.assert_allclose(np.quantile(degrees, [0, 0.25, 0.5, 0.75, 1]), [-45, -22.5, 0, 22.5, 45], atol=2)
    assert abs(np.corrcoef(lengths, widths)[0, 1]) < 0.06


@pytest.mark.parametrize("draw", [draw_rectangle, draw_scar])
@pytest.mark.parametrize("shape", [(64, 64), (128, 90), (30, 200), (8, 8)])
def test_what_is_drawn_lies_in_the_picture_and_elsewhere(draw, shape):
    rng = np.random.default_rng(3)
    places, sources = [], []
    for _ in range(1500):
        n = draw(rng, shape)
        assert min(n.size) >= 1 and n.place != n.source
        for corner, sides in ((n.source, n.size), (n.place, box(n))):
            assert all(start >= 0 and start + side <= length for start, side, length in zip(corner, sides, shape))
        assert all(type(v) is int for v in (*n.source, *n.size, *n.place))
        sources.append([c / max(s - side, 1) for c, s, side in zip(n.source, shape, n.size)])
        places.append([c / max(s - side, 1) for c, s, side in zip(n.place, shape, box(n))])
    for shares in (np.array(sources), np.array(places)):  # uniform over what fits
        assert shares.min() == 0 and shares.max() == 1
        if min(shape) > 60:
            np.testing.assert_allclose(np.quantile(shares, 0.5, axis=0), 0.5, atol=0.06)
    if min(shape) > 60:  # in a small one the other place is often drawn anew
        assert abs(np.corrcoef(np.array(sources)[:, 0], np.array(places)[:, 0])[0, 1]) < 0.1


@pytest.mark.parametrize("draw", [draw_rectangle, draw_scar])
def test_colours_are_drawn_uniformly(draw):
    rng = np.random.default_rng(4)
    drawn = [draw(rng, (64, 64)) for _ in range(2000)]
    numbers = np.array([[*n.factors, n.hue] for n in drawn]) - [1, 1, 1, 0]
    assert numbers.shape == (2000, 4) and np.abs(numbers).max() <= 0.1
    np.testing.assert_allclose(np.quantile(numbers, [0.02, 0.25, 0.5, 0.75, 0.98], axis=0).T,
                               [[-0.096, -0.05, 0, 0.05, 0.096]] * 4, atol=0.008)  # fmt: skip
    assert np.abs(np.corrcoef(numbers.T) - np.eye(4)).max() < 0.1
    none = draw(rng, (64, 64), jitter=0.0)
    assert none.factors == PLAIN and none.hue == 0
    assert max(abs(draw(rng, (64, 64), jitter=0.4).hue) for _ in range(50)) > 0.3


def test_other_numbers_are_used():
    rng = np.random.default_rng(5)
    for _ in range(200):
        n = draw_rectangle(rng, (200, 200), area=(0.25, 0.25), aspect=(1.0, 1.0))
        assert n.size == (100, 100)
        n = draw_scar(rng, (512, 512), width=(4.0, 4.0), length=(30.0, 30.0), degrees=10.0)
        assert n.size == (60, 8) and abs(n.degrees) <= 10


def test_there_may_be_no_other_place():
    n = draw_rectangle(np.random.default_rng(6), (9, 9), area=(1.0, 1.0), aspect=(1.0, 1.0))
    assert n.size == (9, 9) and n.place == n.source == (0, 0)
    for _ in range(20):  # two places: always the other
        n = draw_rectangle(np.random.default_rng(_), (9, 10), area=(0.9, 0.9), aspect=(1.0, 1.0))
        assert n.size == (9, 9) and n.place == (0, 1 - n.source[1])


def test_the_same_stream_gives_the_same():
    for draw in (draw_rectangle, draw_scar):
        assert draw(np.random.default_rng(7), (64, 64)) == draw(np.random.default_rng(7), (64, 64))
        assert draw(np.random.default_rng(7), (64, 64)) != draw(np.random.default_rng(8), (64, 64))


# -- pasting ----------------------------------------------------------------------------------------------------------


def slow_paste(image: np.ndarray, numbers: CutPasteNumbers) -> tuple[np.ndarray, np.ndarray]:
    """Pixel by pixel, offsets from the box's centre as complex numbers, right + up i; no change of colour."""
    rows, columns = box(numbers)
    corrupted, mask = image.copy(), np.zeros(image.shape[1:], np.float32)
    height, width = numbers.size
    for i, j in np.ndindex(rows, columns):
        offset = complex(j + 0.5 - columns / 2, rows / 2 - i - 0.5) * cmath.exp(-1j * math.radians(numbers.degrees))
        y, x = math.floor(height / 2 - offset.imag), math.floor(width / 2 + offset.real)
        p, q = numbers.place[0] + i, numbers.place[1] + j
        if 0 <= y < height and 0 <= x < width and 0 <= p < image.shape[1] and 0 <= q < image.shape[2]:
            corrupted[:, p, q] = image[:, numbers.source[0] + y, numbers.source[1] + x]
            mask[p, q] = 1
    return corrupted, mask


@pytest.mark.parametrize("degrees", [0.0, 17.3, -31.0, 44.9, -45.0 + 1e-3, 130.0])
@pytest.mark.parametrize("size", [(9, 4), (3, 17), (1, 8), (20, 20)])
def test_pasting_equals_a_slow_loop(degrees, size):
    image = picture()
    numbers = CutPasteNumbers((5, 11), size, degrees, (7, 13), PLAIN, 0.0)
    corrupted, mask = cut_paste(image, numbers)
    wanted, marked = slow_paste(image.numpy(), numbers)
    np.testing.assert_array_equal(mask.numpy(), marked)
    np.testing.assert_allclose(corrupted.numpy(), wanted, rtol=0, atol=1e-6)
    assert mask.sum() == pytest.approx(size[0] * size[1], rel=0.25, abs=4)
    assert corrupted.dtype == torch.float32 and mask.dtype == torch.float32


def test_a_rectangle_by_hand():
    image = picture((20, 30))
    corrupted, mask = cut_paste(image, CutPasteNumbers((2, 3), (5, 7), 0.0, (11, 20), PLAIN, 0.0))
    expected = image.clone()
    expected[:, 11:16, 20:27] = image[:, 2:7, 3:10]
    torch.testing.assert_close(corrupted, expected, rtol=0, atol=1e-6)
    marked = torch.zeros(20, 30)
    marked[11:16, 20:27] = 1
    assert torch.equal(mask, marked)


def test_turned_counter_clockwise():
    """The upper end of an upright bar goes to the left."""
    image = torch.full((3, 60, 60), 0.5)
    image[:, 10:30, 5:9] = 0.0
    image[:, 10:14, 5:9] = 1.0
    corrupted, _ = cut_paste(image, CutPasteNumbers((10, 5), (20, 4), 30.0, (25, 30), PLAIN, 0.0))
    changed = corrupted[0, 25:, 25:]
    (up, left), (low, right) = ((changed == v).nonzero().float().mean(dim=0) for v in (1, 0))
    assert up < low and left < right


@pytest.mark.parametrize("draw", [draw_rectangle, draw_scar])
@pytest.mark.parametrize("shape", [(64, 64), (96, 70), (256, 256)])
def test_masks_match_what_changed(draw, shape):
    rng = np.random.default_rng(8)
    for seed in range(12):
        image, numbers = picture(shape, seed), draw(rng, shape)
        kept = image.clone()
        corrupted, mask = cut_paste(image, numbers)
        assert torch.equal(image, kept) and corrupted.data_ptr() != image.data_ptr()
        assert corrupted.shape == image.shape and mask.shape == shape
        assert corrupted.min() >= 0 and corrupted.max() <= 1
        changed = (corrupted != image).any(dim=0)
        assert torch.equal(changed, mask > 0)  # noise: no pasted pixel is what was there
        again, same = cut_paste(image, numbers)
        assert torch.equal(again, corrupted) and torch.equal(same, mask)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_piece_that_changes_nothing_is_no_anomaly(value):
    image = torch.full((3, 64, 64), value)
    dark = CutPasteNumbers((0, 0), (9, 9), 0.0, (30, 30), (0.9 if value == 0 else 1.0, 1.0, 1.0), 0.0)
    corrupted, mask = cut_paste(image, dark)
    assert torch.equal(corrupted, image) and mask.sum() == 0
    image[:, 34, 34] = 0.5  # one pixel differs: the whole piece is marked
    assert cut_paste(image, dark)[1].sum() == 81
    visible = dark._replace(factors=(0.9, 1.0, 1.0))
    assert cut_paste(torch.ones(3, 64, 64), visible)[1].sum() == 81


def test_a_box_larger_than_the_picture_overhangs_it():
    n = draw_scar(np.random.default_rng(9), (40, 40), width=(100.0, 100.0), length=(250.0, 250.0), degrees=45.0)
    corrupted, mask = cut_paste(picture((40, 40)), n)
    assert corrupted.shape == (3, 40, 40) and mask.any()


@pytest.mark.parametrize("shape", [(40, 50), (1, 40, 50), (2, 3, 40, 50)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected \(3, H, W\) in \[0, 1\], got"):
        cut_paste(torch.zeros(shape), CutPasteNumbers((0, 0), (3, 3), 0.0, (9, 9), PLAIN, 0.0))


# -- colours ----------------------------------------------------------------------------------------------------------


def slow_colour(image: np.ndarray, factors: tuple[float, float, float], hue: float) -> np.ndarray:
    """torchvision's formulas pixel by pixel; the hue by Python's colorsys."""

    def clip(v):
        return min(max(v, 0.0), 1.0)

    def luma(p):
        return 0.2989 * p[0] + 0.587 * p[1] + 0.114 * p[2]

    pixels = [[clip(factors[0] * float(v)) for v in p] for p in image.reshape(3, -1).T]
    mean = sum(map(luma, pixels)) / len(pixels)
    pixels = [[clip(factors[1] * v + (1 - factors[1]) * mean) for v in p] for p in pixels]
    pixels = [[clip(factors[2] * v + (1 - factors[2]) * luma(p)) for v in p] for p in pixels]
    turned = []
    for p in pixels:
        h, s, v = colorsys.rgb_to_hsv(*p)
        turned.append(colorsys.hsv_to_rgb((h + hue) % 1.0, s, v))
    return np.array(turned).T.reshape(image.shape)


FACTORS = [PLAIN, (1.08, 0.93, 1.07), (0.2, 3.0, 2.5)]
FACTORS += [tuple(f if k == i else 1.0 for k in range(3)) for i in range(3) for f in (0.9, 1.1)]  # one at a time


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("hue", [0.0, 0.1, -0.1, 0.37, -0.5])
def test_colours_equal_a_slow_loop(factors, hue):
    image = picture((7, 9), seed=1).double()
    image[:, 0] = image[:1, 0]  # greys
    image[:, 1, :3] = torch.eye(3, dtype=torch.float64)
    image[:, 1, 3:6] = 1 - torch.eye(3, dtype=torch.float64)
    image[:, 2, 0], image[:, 2, 1] = 0, 1
    found = change_colour(image, factors, hue)
    np.testing.assert_allclose(found.numpy(), slow_colour(image.numpy(), factors, hue), rtol=0, atol=1e-12)


def test_greys_stay_grey_and_one_changes_nothing():
    image = picture((12, 13))
    torch.testing.assert_close(change_colour(image, PLAIN, 0.0), image, rtol=0, atol=1e-6)
    grey = image[:1].expand(3, -1, -1)
    turned = change_colour(grey, (1.0, 1.0, 1.7), 0.3)
    torch.testing.assert_close(turned, grey, rtol=0, atol=1e-3)  # the weights of the luma add up to 0.9999
    assert (turned.amax(dim=0) - turned.amin(dim=0)).max() < 1e-6
    assert torch.isfinite(change_colour(torch.zeros(3, 4, 4), (0.9, 1.1, 0.9), 0.1)).all()
