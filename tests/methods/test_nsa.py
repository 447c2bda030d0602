"""NSA: its table of constants, distributions and conditions of what is drawn, blending, labels."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from adref.methods.realnet.nsa import NSA_RULES, NSAPatch, NSARule, draw_nsa, nsa, object_pixels
from adref.ops.poisson import poisson_blend

TEXTURES = ("carpet", "grid", "leather", "tile", "wood")
SHAPE = (128, 160)


def picture(shape: tuple[int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    """Smooth blobs and grain, in colour."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(3, *shape)), (0, 6, 6))
    noise = 0.5 + 0.15 * noise / noise.std() + rng.normal(0, 0.02, (3, *shape))
    return np.clip(noise, 0, 1).astype(np.float32)


# -- rules ------------------------------------------------------------------------------------------------------------


def test_half_width_bounds_are_those_of_the_specification():
    whole = ((0.03, 0.4), (0.03, 0.4))
    expected = dict.fromkeys(("bottle", "metal_nut", "transistor", *TEXTURES), whole)
    expected |= {
        "cable": ((0.05, 0.4), (0.05, 0.4)),
        "capsule": ((0.03, 0.15), (0.03, 0.4)),
        "hazelnut": ((0.03, 0.35), (0.03, 0.35)),
        "pill": ((0.03, 0.2), (0.03, 0.4)),
        "screw": ((0.03, 0.12), (0.03, 0.12)),
        "toothbrush": ((0.03, 0.4), (0.03, 0.2)),
        "zipper": ((0.03, 0.4), (0.03, 0.2)),
    }
    assert {name: (rule.height, rule.width) for name, rule in NSA_RULES.items()} == expected


def test_other_constants_are_those_of_the_specification():
    for name, rule in NSA_RULES.items():
        texture = name in TEXTURES
        assert rule.patches == (4 if texture or name in ("screw", "zipper") else 3)
        assert rule.scale == ((0.5, 2.0) if texture else (0.7, 1.3)) and rule.mixed == texture
        assert rule.least_overlap == 0.25
    assert {name: rule.background for name, rule in NSA_RULES.items() if rule.background} == {
        **dict.fromkeys(("bottle", "screw", "capsule", "zipper"), (200, 60)),
        **dict.fromkeys(("hazelnut", "pill", "toothbrush", "metal_nut"), (20, 20)),
    }
    assert {name: rule.least_object for name, rule in NSA_RULES.items() if rule.background} == {
        **dict.fromkeys(("bottle", "capsule", "hazelnut", "pill", "zipper"), 0.7),
        **dict.fromkeys(("metal_nut", "screw"), 0.5),
        "toothbrush": 0.25,
    }
    assert NSARule() == ((0.03, 0.4), (0.03, 0.4), 3, (0.7, 1.3), None, 0.0, 0.25, False)


# -- drawing ----------------------------------------------------------------------------------------------------------


def draws(rule: NSARule, count: int, shape=SHAPE, **settings) -> list[list[NSAPatch]]:
    rng, image, other = np.random.default_rng(1), picture(shape), picture(shape, 1)
    return [draw_nsa(rng, image, other, rule, **settings) for _ in range(count)]


@pytest.mark.parametrize(("most", "shares"), [(3, [0.25, 0.5, 0.25]), (4, [0.125, 0.375, 0.375, 0.125]), (1, [1.0])])
def test_each_further_patch_has_probability_one_half(most, shares):
    counts = np.bincount([len(drawn) for drawn in draws(NSARule(patches=most), 1500, (64, 64))], minlength=5)
    np.testing.assert_allclose(counts[1:] / 1500, np.pad(shares, (0, 4 - most)), atol=0.04)
    assert counts[0] == 0


@pytest.mark.parametrize("name", sorted(NSA_RULES))
@pytest.mark.parametrize("bounds", [1.0, 2.0])
def test_sides_keep_their_bounds(name, bounds):
    rule = NSA_RULES[name]._replace(background=None)
    patches = [p for drawn in draws(rule, 100, (256, 300), bounds=bounds) for p in drawn]
    for axis, limits in enumerate((rule.height, rule.width)):
        side = (256, 300)[axis]
        whole, pasted = (np.array([getattr(p, field)[axis] for p in patches]) for field in ("size", "resized"))
        low, high = (round(2 * b * side) for b in limits)
        assert low <= whole.min() < low + 12 and whole.max() <= high
        low, high = round(max(limits[0] * bounds * side, 7)), round(limits[1] * bounds * side)
        assert low <= pasted.min() and pasted.max() <= high
        if bounds == 1.0:  # the limit bites
            assert pasted.max() > 0.7 * high
        assert all(0 <= p.source[axis] <= side - p.size[axis] for p in patches)
        assert all(0 <= p.place[axis] <= side - p.resized[axis] for p in patches)


def test_sizes_are_those_of_the_gamma_law():
    patches = [p for drawn in draws(NSARule(), 900, (256, 256)) for p in drawn]
    for sides in np.array([p.size for p in patches]).T:
        np.testing.assert_allclose(np.quantile(sides, [0.05, 0.5, 0.95]), [24, 58, 137], rtol=0.07)


@pytest.mark.parametrize(("scale", "ends"), [((0.7, 1.3), (0.274, 0.274)), ((0.5, 2.0), (0.159, 0.023))])
def test_scales_are_normal_and_clipped(scale, ends):
    """Of N(1, 0.5^2) the shares beyond the limits stand at them; the aspect is kept where no bound is met."""
    rule = NSARule((0.0, 0.4), (0.0, 0.4), scale=scale)
    patches = [p for drawn in draws(rule, 600, (300, 300), bounds=4.0, least=3) for p in drawn if max(p.size) < 150]
    factors = np.array([np.array(p.resized) / p.size for p in patches])
    assert np.abs(factors[:, 0] - factors[:, 1]).max() < 0.06  # of rounding
    for limit, share in zip(scale, ends):
        assert (np.abs(factors[:, 0] - limit) < 0.03).mean() == pytest.approx(share, abs=0.05)
    assert scale[0] - 0.03 < factors.min() and factors.max() < scale[1] + 0.03


@pytest.mark.parametrize("narrow", [0, 1])
def test_the_aspect_is_kept_where_a_side_meets_its_limit(narrow):
    limits = [(0.01, 0.4), (0.01, 0.4)]
    limits[narrow] = (0.01, 0.06)
    clipped = 0
    for p in (p for drawn in draws(NSARule(*limits), 150, (400, 400)) for p in drawn):
        clipped += p.resized[narrow] == 24
        if 8 < p.resized[1 - narrow] < 159:
            factors = np.array(p.resized) / p.size
            assert abs(factors[0] - factors[1]) < (0.6 / np.array(p.size)).sum()  # of rounding
    assert clipped > 50


def test_places_are_uniform_and_independent():
    patches = [p for drawn in draws(NSARule(), 1500) for p in drawn]
    shares = np.array([
        [c / (n - s) for corner, size in ((p.source, p.size), (p.place, p.resized))
         for c, s, n in zip(corner, size, SHAPE)] for p in patches
    ])  # fmt: skip
    np.testing.assert_allclose(np.quantile(shares, [0, 0.25, 0.5, 0.75, 1], axis=0).T,
                               [[0, 0.25, 0.5, 0.75, 1]] * 4, atol=0.05)  # fmt: skip
    assert np.abs(np.corrcoef(shares.T) - np.eye(4)).max() < 0.06


def disc(centre: tuple[int, int], radius: int, shape=SHAPE, inside: float = 0.3, outside: float = 200 / 255):
    """An object on a plain background, and where it is."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    mask = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
    return np.where(mask, inside, outside).astype(np.float32)[None].repeat(3, axis=0), mask


@pytest.mark.parametrize(("share", "overlap"), [(0.7, 0.25), (0.25, 0.25), (0.5, 0.8)])
def test_conditions_on_the_object(share, overlap):
    (image, there), (other, here) = disc((60, 50), 40), disc((70, 100), 45)
    rule = NSARule((0.03, 0.15), (0.03, 0.15), background=(200, 60), least_object=share, least_overlap=overlap)
    rng, shares, overlaps = np.random.default_rng(2), [], []
    for _ in range(300):
        for p in draw_nsa(rng, image, other, rule):
            (y, x), (h, w) = p.source, p.size
            patch = here[y : y + h, x : x + w]
            shares.append(patch.mean())
            rows, columns = (((np.arange(n) + 0.5) * s / n).astype(int) for n, s in zip(p.resized, p.size))
            moved, (y, x), (h, w) = patch[np.ix_(rows, columns)], p.place, p.resized
            overlaps.append((moved & there[y : y + h, x : x + w]).sum() / moved.sum())
    assert share - 0.03 < min(shares) < share + 0.1 and overlap - 0.06 < min(overlaps) < overlap + 0.1
    assert len(shares) > 400


def test_a_share_must_be_exceeded():
    """Half of every column is object: a share of exactly a half is not more than a half."""
    image = np.full((3, 64, 64), 200 / 255, np.float32)
    image[:, 32:] = 0.2
    rule = NSARule((0.5, 0.5), (0.1, 0.1), patches=1, background=(200, 60), least_object=0.5)
    assert draw_nsa(np.random.default_rng(3), image, image, rule) == []
    assert len(draw_nsa(np.random.default_rng(3), image, image, rule._replace(least_object=0.49))) == 1
    whole = rule._replace(height=(0.1, 0.1), least_object=0.9, least_overlap=1.0)
    assert draw_nsa(np.random.default_rng(3), image, image, whole) == []


def test_conditions_hold_for_both_pictures_alone():
    """No object in the other picture: no patch can be cut. None in the picture: none can be set in."""
    empty, (full, _) = np.full((3, *SHAPE), 200 / 255, np.float32), disc((60, 70), 50)
    rule = NSARule(background=(200, 60), least_object=0.3)
    for image, other in ((full, empty), (empty, full)):
        rng = np.random.default_rng(4)
        drawn = draw_nsa(rng, image, other, rule)
        assert drawn == []
        corrupted, mask = nsa(image, other, drawn)
        np.testing.assert_array_equal(corrupted, image)
        assert corrupted is not image and mask.sum() == 0 and mask.dtype == np.float32
    assert draw_nsa(np.random.default_rng(4), full, full, rule)


@pytest.mark.parametrize("tries", [1, 5, 200])
def test_after_the_tries_there_is_none(tries):
    image = np.full((3, 64, 64), 200 / 255, np.float32)
    rule, rng, other = NSARule(patches=1, background=(200, 60)), np.random.default_rng(5), np.random.default_rng(5)
    assert draw_nsa(rng, image, image, rule, tries=tries) == []
    other.binomial(0, 0.5)
    size = np.clip(0.03 + other.gamma(2.0, 0.05, size=2), 0.03, 0.4) * 2 * 64
    size = [min(max(round(float(s)), 7), 64) for s in size]
    other.normal(1.0, 0.5)
    for _ in range(tries):
        for side in size:
            other.integers(64 - side + 1)
    assert rng.bit_generator.state == other.bit_generator.state


# -- the object -------------------------------------------------------------------------------------------------------


def test_object_is_what_differs_from_the_background():
    image, mask = disc((60, 70), 40)
    image[:, 5, 5] = 0  # a speck, and a hole of one pixel: the median removes both
    image[:, 60, 70] = 200 / 255
    specked, found = image, object_pixels(image, (200, 60))
    assert found.dtype == bool
    expected = ndimage.median_filter(np.abs(255 * image.astype(np.float64).mean(axis=0) - 200) > 60, 7, mode="nearest")
    np.testing.assert_array_equal(found, expected)
    assert (found != mask).mean() < 0.005 and not found[5, 5] and found[60, 70]
    image, _ = disc((3, 156), 30)  # in the corner: the outermost pixels are repeated
    expected = ndimage.median_filter(np.abs(255 * image.astype(np.float64).mean(axis=0) - 200) > 60, 7, mode="nearest")
    np.testing.assert_array_equal(object_pixels(image, (200, 60)), expected)
    image = np.full((3, 30, 30), 200 / 255)
    image[:, 3:27, -2:] = image[:, 3:27, :2] = image[:, -2:, 3:27] = image[:, :2, 3:27] = 0  # thin
    found = object_pixels(image, (200, 60))
    assert found[15, 0] and found[15, 29] and found[0, 15] and found[29, 15]
    assert object_pixels(image, None).all()
    unfiltered = object_pixels(specked, (200, 60), window=1)
    assert unfiltered[5, 5] and not unfiltered[60, 70]


def test_grey_is_the_mean_and_the_threshold_must_be_exceeded():
    image = np.zeros((3, 20, 20))
    image[0] = 120 / 255  # the mean is 40; luma 36
    assert not object_pixels(image, (20, 20.01)).any() and object_pixels(image, (20, 19.99)).all()
    white = np.ones((3, 20, 20))
    assert object_pixels(white, (200, 54.9)).all() and not object_pixels(white, (200, 55.1)).any()


# -- blending ---------------------------------------------------------------------------------------------------------


def slow_resize(patch: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, half-pixel centres, the outermost pixels repeated: two passes of np.interp."""
    for axis, n in ((1, size[0]), (2, size[1])):
        old = patch.shape[axis]
        at = (np.arange(n) + 0.5) * old / n - 0.5
        patch = np.apply_along_axis(lambda line, at=at, old=old: np.interp(at, np.arange(old), line), axis, patch)
    return patch


@pytest.mark.parametrize("mixed", [False, True])
def test_blending_is_poissons_with_the_resized_patch(mixed):
    image, other = picture(seed=2).astype(np.float64), picture(seed=3).astype(np.float64)
    patches = [NSAPatch((3, 5), (30, 40), (24, 52), (50, 60)), NSAPatch((60, 20), (20, 20), (31, 17), (55, 90))]
    expected = image.copy()
    for p in patches:
        (a, b), (h, w), (y, x) = p.source, p.size, p.place
        values = slow_resize(other[:, a : a + h, b : b + w], p.resized)
        region = np.zeros(SHAPE, bool)
        region[y : y + p.resized[0], x : x + p.resized[1]] = True
        source = np.zeros_like(expected)
        source[:, region] = values.reshape(3, -1)
        expected = np.clip(poisson_blend(source, expected, region, mixed=mixed, solver="sparse").values, 0, 1)
    corrupted, mask = nsa(image, other, patches, mixed)
    np.testing.assert_allclose(corrupted, expected, rtol=0, atol=1e-10)
    changed = 255 * np.abs(expected - image).mean(axis=0) > 1
    np.testing.assert_array_equal(mask, ndimage.median_filter(changed, 5, mode="nearest"))
    assert mask.dtype == np.float32 and 0 < mask.mean() < 0.3
    assert (mask != changed).any()


@pytest.mark.parametrize("name", ["cable", "carpet"])
@pytest.mark.parametrize("shape", [(64, 64), (128, 160), (70, 64)])
def test_masks_match_what_changed(name, shape):
    rng, rule, seen = np.random.default_rng(6), NSA_RULES[name], 0
    for seed in range(12):
        image, other = picture(shape, seed), picture(shape, seed + 50)
        kept = image.copy(), other.copy()
        patches = draw_nsa(rng, image, other, rule)
        corrupted, mask = nsa(image, other, patches, rule.mixed)
        np.testing.assert_array_equal(np.stack(kept), np.stack((image, other)))
        assert corrupted.dtype == np.float32 and corrupted.shape == image.shape and mask.shape == shape
        assert corrupted.min() >= 0 and corrupted.max() <= 1 and set(np.unique(mask)) <= {0, 1}
        inside = np.zeros(shape, bool)
        for p in patches:
            inside[p.place[0] + 1 : p.place[0] + p.resized[0] - 1, p.place[1] + 1 : p.place[1] + p.resized[1] - 1] = (
                True
            )
        np.testing.assert_array_equal(corrupted[:, ~inside], image[:, ~inside])  # bit for bit
        change = 255 * np.abs(corrupted.astype(np.float64) - image).mean(axis=0)
        assert (change[mask > 0] > 1).mean() > 0.75 if mask.any() else True
        assert not mask[ndimage.uniform_filter((change > 0.9).astype(float), 5, mode="nearest") < 0.3].any()
        again, same = nsa(image, other, patches, rule.mixed)
        np.testing.assert_array_equal(again, corrupted)
        np.testing.assert_array_equal(same, mask)
        seen += mask.any()
    assert seen >= 11


def test_the_same_stream_gives_the_same():
    image, other = picture(), picture(seed=1)
    assert draw_nsa(np.random.default_rng(7), image, other) == draw_nsa(np.random.default_rng(7), image, other)
    assert draw_nsa(np.random.default_rng(7), image, other) != draw_nsa(np.random.default_rng(8), image, other)


def test_numbers_of_the_label_are_used():
    image, other = picture(seed=4), picture(seed=5)
    patches = [NSAPatch((5, 5), (50, 60), (50, 60), (40, 40))]
    areas = [nsa(image, other, patches, least_change=least)[1].sum() for least in (0.5, 10, 30)]
    assert areas[0] > areas[1] > areas[2] and areas[0] > 2500
    raw = nsa(image, other, patches, window=1)[1]
    change = 255 * np.abs(nsa(image, other, patches)[0].astype(np.float64) - image).mean(axis=0)
    assert (raw != (change > 1)).mean() < 1e-3


def test_grey_pictures_stay_grey():
    image, other = (np.repeat(picture(seed=s)[:1], 3, axis=0) for s in (6, 7))
    for mixed in (False, True):
        patches = draw_nsa(np.random.default_rng(8), image, other)
        corrupted, mask = nsa(image, other, patches, mixed)
        assert mask.any() and np.ptp(corrupted, axis=0).max() < 1e-6


@pytest.mark.parametrize("name", [None, "carpet", "bottle", "hazelnut"])
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_pictures_of_one_colour_stay_as_they_are(name, value):
    rule = NSA_RULES.get(name, NSARule())
    image, other = np.full((3, 64, 64), value, np.float32), np.full((3, 64, 64), 1 - value, np.float32)
    for source in (image, other):
        patches = draw_nsa(np.random.default_rng(9), image, source, rule)
        corrupted, mask = nsa(image, source, patches, rule.mixed)
        np.testing.assert_array_equal(corrupted, image)
        assert mask.shape == (64, 64) and mask.sum() == 0


def test_a_change_too_faint_to_be_labelled_is_none():
    image, other = picture(seed=8), picture(seed=9)
    patches = [NSAPatch((5, 5), (50, 60), (50, 60), (40, 40))]
    corrupted, mask = nsa(image, other, patches, least_change=255.0)
    np.testing.assert_array_equal(corrupted, image)
    assert not mask.any() and not np.shares_memory(corrupted, image)


@pytest.mark.parametrize("shapes", [((3, 64, 64), (3, 64, 65)), ((1, 64, 64), (1, 64, 64)), ((64, 64), (64, 64))])
def test_other_shapes_are_refused(shapes):
    image, other = (np.zeros(shape, np.float32) for shape in shapes)
    with pytest.raises(ValueError, match=r"expected \(3, H, W\) in \[0, 1\] twice, got"):
        draw_nsa(np.random.default_rng(0), image, other)
    with pytest.raises(ValueError, match=r"expected \(3, H, W\) in \[0, 1\] twice, got"):
        nsa(image, other, [])


def test_no_torch_state_is_touched():
    state = torch.get_rng_state()
    image, other = picture(), picture(seed=1)
    nsa(image, other, draw_nsa(np.random.default_rng(0), image, other))
    assert torch.equal(state, torch.get_rng_state())
