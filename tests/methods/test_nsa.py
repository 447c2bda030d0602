"""NSA: its table of constants, distributions and conditions of the draws, blending, labels."""

import numpy as np
import pytest
from scipy import ndimage

from adref.methods.realnet.nsa import NSA_RULES, NSAPatch, NSARule, box, draw_nsa, nsa, object_pixels
from adref.ops.poisson import poisson_blend

TEXTURES = ("carpet", "grid", "leather", "tile", "wood")
SHAPE = (128, 160)


def picture(shape: tuple[int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    """Smooth blobs and grain, in colour."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(3, *shape)), (0, 6, 6))
    noise = 0.5 + 0.15 * noise / noise.std() + rng.normal(0, 0.02, (3, *shape))
    return np.clip(noise, 0, 1).astype(np.float32)


def disc(centre: tuple[int, int], radius: int, inside: float = 0.3, outside: float = 200 / 255):
    """An object on a plain background, and where it is."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    mask = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
    return np.where(mask, inside, outside).astype(np.float32)[None].repeat(3, axis=0), mask


def draws(rule: NSARule, count: int, shape=SHAPE) -> list[list[NSAPatch]]:
    rng, image, other = np.random.default_rng(1), picture(shape), picture(shape, 1)
    return [draw_nsa(rng, image, other, rule) for _ in range(count)]


def test_constants_are_those_of_the_authors_code():
    bounds = dict.fromkeys(("bottle", "metal_nut", "transistor", *TEXTURES), ((0.03, 0.4), (0.03, 0.4)))
    bounds |= {
        "cable": ((0.05, 0.4), (0.05, 0.4)), "capsule": ((0.03, 0.15), (0.03, 0.4)),
        "hazelnut": ((0.03, 0.35), (0.03, 0.35)), "pill": ((0.03, 0.2), (0.03, 0.4)),
        "screw": ((0.03, 0.12), (0.03, 0.12)), "toothbrush": ((0.03, 0.4), (0.03, 0.2)),
        "zipper": ((0.03, 0.4), (0.03, 0.2)),
    }  # fmt: skip
    assert {name: (rule.height, rule.width) for name, rule in NSA_RULES.items()} == bounds
    for name, rule in NSA_RULES.items():
        texture = name in TEXTURES
        assert rule.patches == (4 if texture or name in ("screw", "zipper") else 3)
        assert rule.scale == ((0.5, 2.0) if texture else (0.7, 1.3)) and rule.mixed == texture
        assert rule.least_overlap == 0.25
    found = {name: (rule.background, rule.least_object) for name, rule in NSA_RULES.items() if rule.background}
    assert found == {
        **dict.fromkeys(("bottle", "capsule", "zipper"), ((200, 60), 0.7)), "screw": ((200, 60), 0.5),
        **dict.fromkeys(("hazelnut", "pill"), ((20, 20), 0.7)), "metal_nut": ((20, 20), 0.5),
        "toothbrush": ((20, 20), 0.25),
    }  # fmt: skip
    assert NSARule() == ((0.03, 0.4), (0.03, 0.4), 3, (0.7, 1.3), None, 0.0, 0.25, False)


def test_each_further_patch_has_probability_one_half():
    for most, shares in ((3, [0, 0.25, 0.5, 0.25]), (4, [0, 0.125, 0.375, 0.375, 0.125])):
        counts = np.bincount([len(drawn) for drawn in draws(NSARule(patches=most), 1500, (64, 64))])
        np.testing.assert_allclose(counts / 1500, shares, atol=0.04)
        assert counts[0] == 0


@pytest.mark.parametrize("name", ["capsule", "carpet"])
def test_sides_keep_their_bounds(name):
    rule = NSA_RULES[name]._replace(background=None)
    patches = [p for drawn in draws(rule, 100, (256, 300)) for p in drawn]
    for axis, (limits, side) in enumerate(zip((rule.height, rule.width), (256, 300))):
        whole, pasted = (np.array([getattr(p, field)[axis] for p in patches]) for field in ("size", "resized"))
        low, high = (round(2 * b * side) for b in limits)
        assert low <= whole.min() < low + 12 and whole.max() <= high
        low, high = round(max(limits[0] * side, 7)), round(limits[1] * side)  # half bounds bound the resized whole
        assert low <= pasted.min() and 0.7 * high < pasted.max() <= high
        assert all(0 <= p.source[axis] <= side - p.size[axis] for p in patches)
        assert all(0 <= p.place[axis] <= side - p.resized[axis] for p in patches)


def test_sizes_places_and_scales():
    """Gamma law; uniform and independent places; N(1, 0.5^2), whose shares beyond the limits stand at them."""
    patches = [p for drawn in draws(NSARule(), 900, (256, 256)) for p in drawn]
    for sides in np.array([p.size for p in patches]).T:
        np.testing.assert_allclose(np.quantile(sides, [0.05, 0.5, 0.95]), [24, 58, 137], rtol=0.07)
    shares = np.array([
        [c / (256 - s) for corner, size in ((p.source, p.size), (p.place, p.resized)) for c, s in zip(corner, size)]
        for p in patches
    ])  # fmt: skip
    np.testing.assert_allclose(np.quantile(shares, [0, 0.25, 0.5, 0.75, 1], axis=0).T,
                               [[0, 0.25, 0.5, 0.75, 1]] * 4, atol=0.05)  # fmt: skip
    assert np.abs(np.corrcoef(shares.T) - np.eye(4)).max() < 0.07
    for scale, ends in (((0.7, 1.3), (0.274, 0.274)), ((0.5, 2.0), (0.159, 0.023))):
        drawn = draws(NSARule((0.0, 1.6), (0.0, 1.6), scale=scale), 600, (300, 300))
        patches = [p for d in drawn for p in d if min(p.size) > 20 and max(p.size) < 150]
        factors = np.array([np.array(p.resized) / p.size for p in patches])
        assert np.abs(factors[:, 0] - factors[:, 1]).max() < 0.06  # of rounding
        for limit, share in zip(scale, ends):
            assert (np.abs(factors[:, 0] - limit) < 0.03).mean() == pytest.approx(share, abs=0.05)
        assert scale[0] - 0.03 < factors.min() and factors.max() < scale[1] + 0.03


def test_conditions_on_the_object():
    (image, there), (other, here) = disc((60, 50), 40), disc((70, 100), 45)
    for share, overlap in ((0.7, 0.25), (0.5, 0.8)):
        rule = NSARule((0.03, 0.15), (0.03, 0.15), background=(200, 60), least_object=share, least_overlap=overlap)
        rng, shares, overlaps = np.random.default_rng(2), [], []
        for p in (p for _ in range(300) for p in draw_nsa(rng, image, other, rule)):
            patch = here[box(p.source, p.size)[1:]]
            shares.append(patch.mean())
            rows, columns = (((np.arange(n) + 0.5) * s / n).astype(int) for n, s in zip(p.resized, p.size))
            moved = patch[np.ix_(rows, columns)]
            overlaps.append((moved & there[box(p.place, p.resized)[1:]]).sum() / moved.sum())
        assert share - 0.03 < min(shares) < share + 0.1 and overlap - 0.06 < min(overlaps) < overlap + 0.1
        assert len(shares) > 400


def test_without_object_there_is_no_patch():
    """A share must be exceeded; an empty source gives no patch, an empty target takes none."""
    half = np.full((3, 64, 64), 200 / 255, np.float32)
    half[:, 32:] = 0.2
    rule = NSARule((0.5, 0.5), (0.1, 0.1), patches=1, background=(200, 60), least_object=0.5)
    assert draw_nsa(np.random.default_rng(3), half, half, rule) == []
    assert len(draw_nsa(np.random.default_rng(3), half, half, rule._replace(least_object=0.49))) == 1
    whole = rule._replace(height=(0.1, 0.1), least_object=0.9, least_overlap=1.0)
    assert draw_nsa(np.random.default_rng(3), half, half, whole) == []
    empty, (full, _) = np.full((3, *SHAPE), 200 / 255, np.float32), disc((60, 70), 50)
    rule = NSARule(background=(200, 60), least_object=0.3, patches=1)
    for image, other in ((full, empty), (empty, full)):
        drawn = draw_nsa(np.random.default_rng(4), image, other, rule)
        corrupted, mask = nsa(image, other, drawn, rule)
        assert drawn == [] and corrupted is not image and mask.sum() == 0 and mask.dtype == np.float32
        np.testing.assert_array_equal(corrupted, image)
    assert draw_nsa(np.random.default_rng(4), full, full, rule)


def test_object_pixels_differ_from_the_background():
    for centre, radius in (((60, 70), 40), ((3, 156), 30)):  # the second in the corner: outermost pixels are repeated
        image, mask = disc(centre, radius)
        image[:, 5, 5], image[:, 60, 70] = 0, 200 / 255  # a speck, and a hole of one pixel: the median removes both
        far = np.abs(255 * image.astype(np.float64).mean(axis=0) - 200) > 60
        found = object_pixels(image, (200, 60))
        assert found.dtype == bool
        np.testing.assert_array_equal(found, ndimage.median_filter(far, 7, mode="nearest"))
        assert (found != mask).mean() < 0.005 and not found[5, 5] and far[5, 5]
    assert object_pixels(image, None).all()
    image = np.zeros((3, 20, 20))
    image[0] = 120 / 255  # the mean is 40, luma 36; the threshold must be exceeded
    assert not object_pixels(image, (20, 20.01)).any() and object_pixels(image, (20, 19.99)).all()


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
        region, source = np.zeros(SHAPE, bool), np.zeros_like(expected)
        region[y : y + p.resized[0], x : x + p.resized[1]] = True
        source[:, region] = slow_resize(other[:, a : a + h, b : b + w], p.resized).reshape(3, -1)
        expected = np.clip(poisson_blend(source, expected, region, mixed=mixed, solver="sparse").values, 0, 1)
    corrupted, mask = nsa(image, other, patches, NSARule(mixed=mixed))
    np.testing.assert_allclose(corrupted, expected, rtol=0, atol=1e-10)
    changed = 255 * np.abs(expected - image).mean(axis=0) > 1
    np.testing.assert_array_equal(mask, ndimage.median_filter(changed, 5, mode="nearest"))
    assert mask.dtype == np.float32 and 0 < mask.mean() < 0.3 and (mask != changed).any()


@pytest.mark.parametrize(("name", "shape"), [("cable", (70, 64)), ("carpet", (128, 160))])
def test_masks_match_the_changed_pixels(name, shape):
    rng, rule, seen = np.random.default_rng(6), NSA_RULES[name], 0
    for seed in range(12):
        image, other = picture(shape, seed), picture(shape, seed + 50)
        kept = np.stack((image, other))
        patches = draw_nsa(rng, image, other, rule)
        corrupted, mask = nsa(image, other, patches, rule)
        np.testing.assert_array_equal(kept, np.stack((image, other)))
        assert corrupted.dtype == np.float32 and corrupted.min() >= 0 and corrupted.max() <= 1
        inside = np.zeros(shape, bool)
        for p in patches:  # without their outermost pixels
            inside[box((p.place[0] + 1, p.place[1] + 1), (p.resized[0] - 2, p.resized[1] - 2))[1:]] = True
        np.testing.assert_array_equal(corrupted[:, ~inside], image[:, ~inside])
        change = 255 * np.abs(corrupted.astype(np.float64) - image).mean(axis=0)
        assert not mask.any() or (change[mask > 0] > 1).mean() > 0.75
        seen += mask.any()
    assert seen >= 11


def test_labels_leave_out_what_is_object_in_neither_image():
    """Each patch cuts an object, so that its ground changes, too; the second one decides where both lie."""
    (image, there), (other, here) = disc((60, 50), 30), disc((64, 110), 30, inside=0.1)
    patches = [NSAPatch((40, 60), (40, 50), (40, 50), (45, 60)), NSAPatch((20, 60), (30, 40), (30, 40), (70, 80))]
    rule, region = NSARule(background=(200, 60)), np.zeros(SHAPE, bool)
    there, here = (ndimage.median_filter(mask, 7, mode="nearest") for mask in (there, here))
    for p in patches:
        at = box(p.place, p.resized)[1:]
        region[at] = there[at] | here[box(p.source, p.size)[1:]]
    corrupted, mask = nsa(image, other, patches, rule)
    same, every = nsa(image, other, patches)  # without a background everything is object
    np.testing.assert_array_equal(corrupted, same)
    changed = 255 * np.abs(corrupted.astype(np.float64) - image).mean(axis=0) > 1
    np.testing.assert_array_equal(mask, ndimage.median_filter(changed & region, 5, mode="nearest"))
    np.testing.assert_array_equal(every, ndimage.median_filter(changed, 5, mode="nearest"))
    assert 0 < mask.sum() < 0.8 * every.sum()


def test_single_colours_are_no_anomaly():
    image, other = np.full((3, 64, 64), 0.3, np.float32), np.full((3, 64, 64), 0.7, np.float32)
    for name in (None, "carpet", "bottle", "hazelnut"):
        rule = NSA_RULES.get(name, NSARule())
        corrupted, mask = nsa(image, other, draw_nsa(np.random.default_rng(9), image, other, rule), rule)
        np.testing.assert_array_equal(corrupted, image)
        assert mask.sum() == 0


def test_other_shapes_are_refused():
    for shapes in (((3, 64, 64), (3, 64, 65)), ((1, 64, 64), (1, 64, 64))):
        with pytest.raises(ValueError, match=r"expected \(3, H, W\) in \[0, 1\] twice, got"):
            nsa(*(np.zeros(shape, np.float32) for shape in shapes), [])
