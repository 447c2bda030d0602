"""SeRNet's pseudo-anomalies: numbers that are drawn, and their application."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from adref.method import Sources
from adref.methods.sernet import anomalies
from adref.methods.sernet.anomalies import Rectangle, SourceNumbers, Spread
from adref.methods.sernet.options import Options

UNCHANGED = SourceNumbers((0, 1, 2, 3), (1.0, 1.0, 1.0), 0.0, 1.0, (0.0, 0.0))


def areas(mask: np.ndarray) -> list[int]:
    return np.bincount(ndimage.label(mask, np.ones((3, 3)))[0].ravel())[1:].tolist()


def bytes_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


@pytest.mark.slow
def test_shares_of_masks_that_the_filter_leaves():
    """Measured acceptance per draw at 256 x 256 by smallest area, and the mean coverage of those kept."""
    rng = np.random.default_rng(0)
    masks = [anomalies.draw_large_mask(rng, (256, 256), 0, (0, 5), tries=1)[0] > 0 for _ in range(1500)]
    for area, accepted, coverage in ((0, 0.957, 0.052), (200, 0.819, 0.044), (655, 0.515, 0.048),
                                     (1638.4, 0.228, 0.067)):  # fmt: skip
        kept = [mask for mask in (anomalies.remove_small(m, area) for m in masks) if mask.any()]
        assert len(kept) / 1500 == pytest.approx(accepted, abs=0.03)
        assert np.mean([mask.mean() for mask in kept]) == pytest.approx(coverage, abs=0.007)


def test_large_masks():
    """No component is small; a last try may leave none."""
    rng = np.random.default_rng(1)
    for _ in range(40):
        mask, tries = anomalies.draw_large_mask(rng, (96, 128), 300, (0, 5))
        assert mask.dtype == np.float32 and set(np.unique(mask)) == {0, 1} and 1 <= tries <= 50
        assert min(areas(mask)) >= 300
    mask, tries = anomalies.draw_large_mask(np.random.default_rng(0), (64, 64), 64 * 64, (0, 5), tries=7)
    assert tries == 7 and not mask.any()


def test_draws_of_a_source():
    rng = np.random.default_rng(0)
    drawn = [anomalies.draw_source(rng) for _ in range(600)]
    assert {d.order for d in drawn} == set(itertools.permutations(range(4))) - {(0, 1, 2, 3)}
    factors, shifts = np.array([d.factors for d in drawn]), np.array([d.shift for d in drawn])
    assert 0.7 <= factors.min() < 0.72 and 1.28 < factors.max() <= 1.3
    assert -0.1 <= shifts.min() < -0.09 and 0.09 < shifts.max() <= 0.1
    assert max(abs(d.degrees) for d in drawn) <= 45 and all(0.8 <= d.scale <= 1.2 for d in drawn)
    assert {anomalies.draw_other(rng, 4, 2) for _ in range(100)} == {0, 1, 3} and anomalies.draw_other(rng, 1, 0) == 0
    assert {anomalies.draw_other(rng, 4, None) for _ in range(100)} == {0, 1, 2, 3}


def test_quarters_come_to_their_places():
    picture = torch.tensor([[0, 1], [2, 3]]).repeat_interleave(4, 0).repeat_interleave(6, 1).expand(3, 8, 12)
    mixed = anomalies.recombine([picture] * 4, (3, 0, 2, 1))
    assert mixed[0, ::4, ::6].tolist() == [[3, 0], [2, 1]] and mixed.shape == (3, 8, 12)
    several = [torch.full((3, 4, 4), i, dtype=torch.uint8) for i in range(4)]
    assert anomalies.recombine(several, (1, 1, 1, 1))[0, ::2, ::2].tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize(("degrees", "scale"), [(0.0, 1.0), (30.0, 0.8), (-45.0, 1.25), (90.0, 1.0)])
def test_place_against_scipy(degrees, scale):
    """Derived: scipy's affine_transform (order 1, mode "reflect") of a rectangle; pixel coordinates, y downwards."""
    picture, shift = bytes_of(3, 32, 48), (0.1, -0.05)
    found = anomalies.transform(picture, UNCHANGED._replace(degrees=degrees, scale=scale, shift=shift)).numpy()
    cos, sin = math.cos(math.radians(degrees)) / scale, math.sin(math.radians(degrees)) / scale
    matrix = np.array([[cos, sin], [-sin, cos]])  # (row, column) of the target -> of the source
    centre, moved = np.array([15.5, 23.5]), np.array([0.1 * 32, -0.05 * 48])
    offset = centre - matrix @ (centre + moved)
    for channel, values in zip(found, picture.numpy() / 255):
        expected = ndimage.affine_transform(values, matrix, offset, order=1, mode="reflect")
        assert np.abs(channel - expected).max() < 1e-4


def test_factors_come_in_the_order_brightness_contrast_saturation():
    """By hand, on two colours whose changes do not commute: Pillow's arithmetic, rounded after each step."""
    picture = torch.tensor([200, 100, 50, 20, 40, 60], dtype=torch.uint8).view(2, 3, 1).permute(1, 0, 2).repeat(1, 2, 4)
    found = anomalies.transform(picture, UNCHANGED._replace(factors=(1.2, 0.8, 1.3))) * 255
    values = np.array([[200, 100, 50], [20, 40, 60]], float)
    for step, factor in enumerate((1.2, 0.8, 1.3)):
        grey = np.floor((values @ np.array([19595, 38470, 7471]) + 32768) / 65536)
        origin = (0, np.floor(grey.mean() + 0.5), grey[:, None])[step]
        values = np.clip(np.floor(origin + factor * (values - origin)), 0, 255)
    assert np.abs(found[:, :2, 0].numpy().T - values).max() <= 1.01  # Pillow's rounding


@pytest.mark.holds("sernet", "PPA")
def test_blend_of_one_pixel():
    """0.2, 0.9, beta 0.25 -> 0.725, or 0.375; the image itself outside, bit for bit; beta 0 pastes."""
    image, source = torch.full((3, 2, 2), 0.2), torch.full((3, 2, 2), 0.9)
    mask = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    for beta_on, value in (("original", 0.725), ("source", 0.375)):
        found = anomalies.blend_source(image, source, mask, 0.25, beta_on)
        assert found[:, 0, 0].tolist() == pytest.approx([value] * 3)
        assert torch.equal(found[:, 1], image[:, 1]) and torch.equal(found[:, 0, 1], image[:, 0, 1])
    assert torch.equal(anomalies.blend_source(image, source, mask, 0.0, "original")[:, 0, 0], source[:, 0, 0])


def test_ppa_keeps_the_area():
    image, rng = bytes_of(3, 32, 32).float() / 255, np.random.default_rng(0)
    sources = Sources(images=list(bytes_of(3, 3, 32, 32, seed=1)), index=0)
    o = Options(size=(32, 32), area=0.05, ppa_exponents=(0, 2))
    found = [anomalies.ppa(image, rng, o, sources)[1] for _ in range(40)]
    assert 0.05 <= min(min(areas(mask)) for mask in found) / 1024 < 0.07
    corrupted, mask, draws = anomalies.ppa(image, rng, Options(ppa_area=1.0), sources)
    assert corrupted is image and not mask.any() and draws == 50


def test_many_spreads():
    """Bases below 2.5 %, attachments touch their bases, no more components than bases; sizes of the union."""
    rng, drawn = np.random.default_rng(0), []
    for i in range(4000):
        spread = anomalies.draw_spread(rng, (256, 256), "total")
        assert sum(r.height * r.width for r in spread.bases) < 0.025 * 256 * 256
        assert len(spread.bases) <= len(spread.attached) == len(spread.owner)
        assert set(spread.owner) == set(range(len(spread.bases)))
        mask = anomalies.spread_mask(spread, (256, 256))
        found = areas(mask)
        assert len(found) <= len(spread.bases)
        for r, owner in zip(spread.attached, spread.owner) if i < 400 else ():
            base, own = (anomalies.spread_mask(Spread((x,), (), ()), (256, 256)) for x in (spread.bases[owner], r))
            assert not own.any() or (ndimage.binary_dilation(own) & (base > 0)).any()
        drawn.append((mask.mean(), max(found) >= 1638.4, len(spread.bases), len(spread.attached)))
    shares, large, counts, attached = map(np.array, zip(*drawn))
    assert shares.mean() == pytest.approx(0.0247, abs=0.0005)
    assert np.quantile(shares, 0.95) == pytest.approx(0.0474, abs=0.002)
    assert shares.max() < 0.0875 and large.mean() == pytest.approx(0.29, abs=0.025)
    assert set(counts) == {1, 2} and set(attached) == {2, 3, 4} and counts.mean() == pytest.approx(1.5, abs=0.03)


def test_spreads_with_a_number_for_each_base_fit_flat_and_small_images():
    rng = np.random.default_rng(0)
    for shape in ((16, 256), (256, 16), (16, 16)):
        for _ in range(50):
            spread = anomalies.draw_spread(rng, shape, "each")
            per_base = [spread.owner.count(i) for i in range(len(spread.bases))]
            assert all(2 <= n <= 4 for n in per_base) and len(spread.attached) == sum(per_base)
            for r in (*spread.bases, *spread.attached):
                assert 0 <= r.top <= r.top + r.height <= shape[0] and 0 <= r.left <= r.left + r.width <= shape[1]
            assert anomalies.spread_mask(spread, shape).any()


def test_masks_of_spreads():
    spread = Spread((Rectangle(1, 1, 2, 3),), (Rectangle(0, 2, 1, 5),), (0,))
    expected = [[0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 0, 0, 0], [0] * 7]
    assert anomalies.spread_mask(spread, (4, 7)).tolist() == expected
    image, rng = torch.full((3, 32, 32), 0.5), np.random.default_rng(0)
    shares = {limit: [anomalies.dpa(image, rng, Options(dpa_limit=limit), Sources())[1].mean() for _ in range(60)]
              for limit in ("bases", "union")}  # fmt: skip
    assert min(shares["union"]) > 0 and max(shares["union"]) < 0.025 < max(shares["bases"])


@pytest.mark.holds("sernet", "DPA")
def test_shift_of_colour_by_hand():
    """Outside the mask bit for bit; inside added and clipped; at least one channel moves by 0.1."""
    image = torch.tensor([0.5, 0.9, 0.1]).view(3, 1, 1).repeat(1, 1, 2)
    found = anomalies.shift_colour(image, torch.tensor([[[1.0, 0.0]]]), (0.2, 0.3, -0.2))
    assert found[:, 0, 0].tolist() == pytest.approx([0.7, 1.0, 0.0]) and torch.equal(found[..., 1], image[..., 1])
    rng = np.random.default_rng(0)
    shifts = np.array([anomalies.draw_shift(rng) for _ in range(3000)])
    assert np.abs(shifts).max(axis=1).min() >= 0.1 and np.abs(shifts).max() <= 0.5
    assert shifts.min() < -0.42 and shifts.max() > 0.42 and abs(shifts.mean()) < 0.02


def test_grey_pictures_stay_grey_where_colour_is_the_pictures():
    """A small pseudo-anomaly of a grey picture changes all channels alike, of a coloured one each by itself."""
    grey, o = torch.full((3, 32, 32), 0.5), Options(dpa_colour="picture")
    coloured = torch.tensor([0.5, 0.4, 0.6]).view(3, 1, 1).expand(3, 32, 32)
    for seed in range(20):
        found, mask, _ = anomalies.dpa(grey, np.random.default_rng(seed), o, Sources())
        assert mask.any() and torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
        moved = (anomalies.dpa(coloured, np.random.default_rng(seed), o, Sources())[0] - coloured)[:, mask > 0]
        assert not torch.allclose(moved[0], moved[1], atol=1e-4)
        found = anomalies.dpa(grey, np.random.default_rng(seed), Options(), Sources())[0]
        assert not torch.equal(found[0], found[1])
