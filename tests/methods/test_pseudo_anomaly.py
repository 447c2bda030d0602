"""SeRNet's pseudo-anomalies: golden checks G2 to G4, the halves that draw and those that apply."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from adref.methods.sernet.anomalies import (
    Rectangle,
    SourceNumbers,
    Spread,
    blend_source,
    draw_large_mask,
    draw_shift,
    draw_source,
    draw_spread,
    recombine,
    shift_colour,
    spread_mask,
    transform,
)
from adref.ops.image import remove_small

UNCHANGED = SourceNumbers((0, 1, 2, 3), (1.0, 1.0, 1.0), 0.0, 1.0, (0.0, 0.0))


def areas(mask: np.ndarray, connectivity: int = 8) -> list[int]:
    labels, count = ndimage.label(mask, np.ones((3, 3)) if connectivity == 8 else None)
    return [int((labels == i + 1).sum()) for i in range(count)]


def bytes_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


# -- PPA --------------------------------------------------------------------------------------------------------------


def test_shares_of_masks_that_the_filter_leaves():
    """G2: measured acceptance per draw at 256 x 256 by smallest area, and the mean coverage of what is kept."""
    rng = np.random.default_rng(0)
    masks = [draw_large_mask(rng, (256, 256), 0, tries=1)[0] > 0 for _ in range(1500)]
    for least, accepted, coverage in (
        (0, 0.957, 0.052),
        (200, 0.819, 0.044),
        (655, 0.515, 0.048),
        (1638.4, 0.228, 0.067),
    ):
        kept = [mask for mask in (remove_small(m, least) for m in masks) if mask.any()]
        assert len(kept) / 1500 == pytest.approx(accepted, abs=0.03)
        assert np.mean([mask.mean() for mask in kept]) == pytest.approx(coverage, abs=0.007)


@pytest.mark.parametrize("connectivity", [8, 4])
def test_no_region_of_a_large_mask_is_small(connectivity):
    """G2, and the mask is drawn again until one is left."""
    rng = np.random.default_rng(1)
    for _ in range(40):
        mask, tries = draw_large_mask(rng, (96, 128), 300, connectivity=connectivity)
        assert mask.dtype == np.float32 and set(np.unique(mask)) == {0, 1} and 1 <= tries <= 50
        assert min(areas(mask, connectivity)) >= 300


def test_same_stream_same_mask_and_a_last_try():
    first, second, other = (draw_large_mask(np.random.default_rng(s), (64, 64), 50)[0] for s in (3, 3, 4))
    assert np.array_equal(first, second) and not np.array_equal(first, other)
    mask, tries = draw_large_mask(np.random.default_rng(0), (64, 64), 64 * 64, tries=7)
    assert tries == 7 and not mask.any()


def test_an_order_of_quarters_is_never_their_own():
    rng = np.random.default_rng(0)
    drawn = [draw_source(rng) for _ in range(600)]
    orders = {d.order for d in drawn}
    assert len(orders) == 23 and (0, 1, 2, 3) not in orders  # 4! - 1
    factors, shifts = np.array([d.factors for d in drawn]), np.array([d.shift for d in drawn])
    assert 0.7 <= factors.min() < 0.72 and 1.28 < factors.max() <= 1.3
    assert -0.1 <= shifts.min() < -0.09 and 0.09 < shifts.max() <= 0.1
    assert max(abs(d.degrees) for d in drawn) <= 45 and all(0.8 <= d.scale <= 1.2 for d in drawn)


def test_quarters_come_to_their_places():
    picture = bytes_of(3, 8, 12)
    top, bottom, left, right = slice(0, 4), slice(4, 8), slice(0, 6), slice(6, 12)
    mixed = recombine([picture] * 4, (3, 0, 2, 1))
    assert torch.equal(mixed[:, top, left], picture[:, bottom, right])
    assert torch.equal(mixed[:, top, right], picture[:, top, left])
    assert torch.equal(mixed[:, bottom, left], picture[:, bottom, left])
    assert torch.equal(mixed[:, bottom, right], picture[:, top, right])
    assert torch.equal(recombine([picture] * 4, (0, 1, 2, 3)), picture)
    several = [torch.full((3, 4, 4), i, dtype=torch.uint8) for i in range(4)]
    assert recombine(several, (1, 1, 1, 1))[0, ::2, ::2].tolist() == [[0, 1], [2, 3]]


def test_no_change_changes_nothing():
    picture = bytes_of(3, 32, 48)
    assert torch.allclose(transform(picture, UNCHANGED) * 255, picture.float(), atol=0.01)


@pytest.mark.parametrize("degrees", [0.0, 30.0, -45.0, 90.0])
@pytest.mark.parametrize("scale", [1.0, 0.8, 1.25])
def test_place_against_scipy(degrees, scale):
    """Derived: scipy's affine_transform (order 1, mode "reflect") of a rectangle; pixel coordinates, y downwards."""
    picture, shift = bytes_of(3, 32, 48), (0.1, -0.05)
    found = transform(picture, UNCHANGED._replace(degrees=degrees, scale=scale, shift=shift)).numpy()
    cos, sin = math.cos(math.radians(degrees)) / scale, math.sin(math.radians(degrees)) / scale
    matrix = np.array([[cos, sin], [-sin, cos]])  # (row, column) of a pixel -> of where it comes from
    centre, moved = np.array([15.5, 23.5]), np.array([0.1 * 32, -0.05 * 48])
    offset = centre - matrix @ (centre + moved)
    for channel, values in zip(found, picture.numpy() / 255):
        expected = ndimage.affine_transform(values, matrix, offset, order=1, mode="reflect")
        assert np.abs(channel - expected).max() < 1e-4


def test_counter_clockwise_as_seen_on_a_screen():
    picture = bytes_of(3, 32, 32)
    turned = transform(picture, UNCHANGED._replace(degrees=90.0))
    assert torch.allclose(turned * 255, torch.rot90(picture, 1, (1, 2)).float(), atol=0.01)


def test_factors_come_in_the_order_brightness_contrast_saturation():
    """By hand, on two colours whose changes do not commute: Pillow's arithmetic, rounded after each step."""
    picture = torch.tensor([200, 100, 50, 20, 40, 60], dtype=torch.uint8).view(2, 3, 1).permute(1, 0, 2).repeat(1, 2, 4)
    found = transform(picture, UNCHANGED._replace(factors=(1.2, 0.8, 1.3))) * 255
    values = np.array([[200, 100, 50], [20, 40, 60]], float)

    def blended(a, b, factor):
        return np.clip(np.floor(a + factor * (b - a)), 0, 255)

    def grey(v):
        return np.floor((v @ np.array([19595, 38470, 7471]) + 32768) / 65536)

    values = blended(0, values, 1.2)
    mean = np.floor(grey(values).mean() + 0.5)
    values = blended(mean, values, 0.8)
    values = blended(grey(values)[:, None], values, 1.3)
    assert np.abs(found[:, :2, 0].numpy().T - values).max() <= 1.01  # Pillow's own rounding


@pytest.mark.holds("sernet", "1")
def test_blend_of_one_pixel():
    """G3: 0.2, 0.9, beta 0.25 -> 0.725, or 0.375; the image itself outside, bit for bit; beta 0 pastes."""
    image, source = torch.full((3, 2, 2), 0.2), torch.full((3, 2, 2), 0.9)
    mask = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    for beta_on, value in (("original", 0.725), ("source", 0.375)):
        found = blend_source(image, source, mask, 0.25, beta_on)
        assert found[:, 0, 0].tolist() == pytest.approx([value] * 3)
        assert torch.equal(found[:, 1], image[:, 1]) and torch.equal(found[:, 0, 1], image[:, 0, 1])
    assert torch.equal(blend_source(image, source, mask, 0.0)[:, 0, 0], source[:, 0, 0])
    assert torch.equal(blend_source(image, source, mask, 1.0), image)


# -- DPA --------------------------------------------------------------------------------------------------------------


def grown(r: Rectangle, mask: np.ndarray) -> bool:
    """Whether the rectangle shares an edge with what the mask has."""
    own = np.zeros_like(mask)
    own[r.top : r.top + r.height, r.left : r.left + r.width] = 1
    return bool((ndimage.binary_dilation(own) & (mask > 0)).any())


def test_many_spreads():
    """G4: bases below 2.5 %, attachments touch their bases, no more regions than bases; measured sizes of the union."""
    rng, shares, large, counts, attached = np.random.default_rng(0), [], 0, [], []
    for i in range(4000):
        spread = draw_spread(rng, (256, 256))
        assert sum(r.height * r.width for r in spread.bases) < 0.025 * 256 * 256
        assert len(spread.bases) <= len(spread.attached) == len(spread.owner) and set(spread.owner) == set(
            range(len(spread.bases))
        )
        mask = spread_mask(spread, (256, 256))
        found = areas(mask)
        assert len(found) <= len(spread.bases)
        if i < 400:
            for r, owner in zip(spread.attached, spread.owner):
                base = spread_mask(Spread((spread.bases[owner],), (), ()), (256, 256))
                assert r.height * r.width == 0 or grown(r, base)
        shares.append(mask.mean())
        large += max(found) >= 1638.4
        counts.append(len(spread.bases))
        attached.append(len(spread.attached))
    assert np.mean(shares) == pytest.approx(0.0247, abs=0.0005) and np.quantile(shares, 0.95) == pytest.approx(
        0.0474, abs=0.002
    )
    assert max(shares) < 0.0875 and large / 4000 == pytest.approx(0.29, abs=0.025)
    assert set(counts) == {1, 2} and set(attached) == {2, 3, 4} and np.mean(counts) == pytest.approx(1.5, abs=0.03)


def test_each_base_has_its_own_number():
    rng = np.random.default_rng(0)
    for _ in range(50):
        spread = draw_spread(rng, (64, 64), bases=(2, 3), attached=(2, 4), attached_to="each")
        per_base = [spread.owner.count(i) for i in range(len(spread.bases))]
        assert all(2 <= n <= 4 for n in per_base) and len(spread.attached) == sum(per_base)


def test_spreads_fit_flat_and_small_pictures():
    rng = np.random.default_rng(0)
    for shape in ((16, 256), (256, 16), (16, 16)):
        for _ in range(100):
            spread = draw_spread(rng, shape)
            for r in (*spread.bases, *spread.attached):
                assert 0 <= r.top <= r.top + r.height <= shape[0] and 0 <= r.left <= r.left + r.width <= shape[1]
            assert spread_mask(spread, shape).any()


def test_union_by_hand():
    spread = Spread((Rectangle(1, 1, 2, 3),), (Rectangle(0, 2, 1, 5),), (0,))
    expected = [[0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 0, 0, 0], [0] * 7]
    assert spread_mask(spread, (4, 7)).tolist() == expected


def test_a_shift_moves_at_least_one_channel():
    rng = np.random.default_rng(0)
    shifts = np.array([draw_shift(rng) for _ in range(3000)])
    assert np.abs(shifts).max(axis=1).min() >= 0.1 and np.abs(shifts).max() <= 0.5
    assert shifts.min() < -0.42 and shifts.max() > 0.42 and abs(shifts.mean()) < 0.02
    with pytest.raises(ValueError, match="least"):
        draw_shift(rng, 0.1, 0.1, 0.2)


@pytest.mark.holds("sernet", "2")
def test_shift_of_colour_by_hand():
    """G4: outside the mask bit for bit; inside added, or multiplied, and clipped."""
    image = torch.tensor([0.5, 0.9, 0.1]).view(3, 1, 1).repeat(1, 1, 2)
    mask = torch.tensor([[[1.0, 0.0]]])
    found = shift_colour(image, mask, (0.2, 0.3, -0.2))
    assert found[:, 0, 0].tolist() == pytest.approx([0.7, 1.0, 0.0]) and torch.equal(found[..., 1], image[..., 1])
    found = shift_colour(image, mask, (0.2, 0.3, -0.2), "multiplicative")
    assert found[:, 0, 0].tolist() == pytest.approx([0.6, 1.0, 0.08]) and torch.equal(found[..., 1], image[..., 1])
