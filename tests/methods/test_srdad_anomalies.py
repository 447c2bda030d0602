"""SRDAD's anomalies: object masks, alterations, blending, labels, and statistics of many examples."""

import functools
import os
from pathlib import Path

import giveaway
import numpy as np
import pytest
import torch
from scipy import ndimage

from adref.data.examples import Images
from adref.data.layouts import find_category
from adref.method import Sources
from adref.methods.srdad import anomalies
from adref.methods.srdad.anomalies import draw_alteration, natural_anomaly, object_mask, object_side
from adref.methods.srdad.method import corrupt
from adref.methods.srdad.options import Options
from adref.ops.filters import grain
from adref.ops.metrics import average_precision

Y, X = np.mgrid[:64, :64] / 64
DISC = (Y - 0.5) ** 2 + (X - 0.5) ** 2 < 0.12


def part(seed: int = 0, side: int = 64, dark: bool = False) -> np.ndarray:
    """Draws a disc with waves on a flat ground: float64 (3, side, side) in [0, 1], whole numbers of 255ths."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    inside = (y - 0.5) ** 2 + (x - 0.5) ** 2 < 0.12
    waves = 0.75 + 0.08 * np.sin(40 * x + seed) * np.cos(30 * y) + rng.normal(0, 0.01, (3, side, side))
    image = np.where(inside, waves, np.broadcast_to(0.1 + 0.01 * y, waves.shape))
    return np.rint(255 * np.clip(1 - image if dark else image, 0, 1)) / 255


@functools.cache
def parts(dark: bool = False) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.rint(255 * part(i, dark=dark)).astype(np.uint8) for i in range(4)]))


def sources(side: str = "bright", notes=None) -> Sources:
    sizes = np.array([[20.0, 40.0, 3.0], [12.0, 12.0, 1.0]])
    return Sources(textures=parts(), images=parts(), sizes=sizes, statistics=side, notes=notes)


def anomaly(image, seed: int = 0, **changes):
    """Adds an anomaly to an image whose object is bright, or all of it with object_mask="full"."""
    options = Options(**changes)
    mask = object_mask(image, options, "full" if options.object_mask == "full" else "bright")
    return natural_anomaly(image, mask, np.random.default_rng(seed), options, sources())


@pytest.fixture
def sizes(monkeypatch):
    """Sets numbers of the lognormal sizes, in pixels of an image of side 256."""
    return lambda **changes: [monkeypatch.setitem(anomalies.LOGNORMAL, *item) for item in changes.items()]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.holds("srdad", "1")
def test_auto_finds_a_dark_and_a_bright_disc(dark):
    """Equation 1 as printed would take the ground around a dark disc."""
    side = object_side(parts(dark=dark), "part", Options())
    assert side == ("dark" if dark else "bright")
    assert np.mean(object_mask(part(1, dark=dark), Options(), side) == DISC) > 0.995
    literal = Options(object_mask="bright")
    found = object_mask(part(1, dark=dark), literal, object_side(parts(dark=dark), "part", literal))
    assert np.mean(found == (~DISC if dark else DISC)) > 0.995


def test_one_side_is_chosen_for_all_images_of_a_category():
    """Noise separates badly, a part that touches the frame leaves it on both sides: the full image. One doubtful image
    among others is cut as they are."""
    noise = torch.from_numpy(np.random.default_rng(0).normal(128, 25, (6, 3, 64, 64)).clip(0, 255).astype(np.uint8))
    stripes = torch.zeros(4, 3, 64, 64, dtype=torch.uint8)
    stripes[..., :32] = 200
    assert object_side(noise, "x", Options()) == object_side(stripes, "x", Options()) == "full"
    assert object_side(torch.cat((parts(), noise[:1])), "x", Options()) == "bright"
    assert not object_mask(noise[0].numpy() / 255, Options(), "bright").all()
    speck = np.full((3, 64, 64), 0.1)
    speck[:, :6, :6] = 0.9  # 36 pixels
    assert object_mask(speck, Options(), "bright").all() and object_mask(part(), Options(), "full").all()
    with pytest.raises(ValueError, match="expected bright, dark or full"):
        object_mask(part(), Options(), None)


@pytest.mark.holds("srdad", "2")
def test_the_object_is_closed():
    """Equation 2: holes and cuts one pixel wide are filled, a speck stays; opened, it would be the other way round."""
    image, expected = np.full((3, 64, 64), 0.1), np.zeros((64, 64), bool)
    expected[16:48, 16:48] = expected[5, 7] = True
    image[:, expected] = 0.9
    image[:, 30, 20] = image[:, 16:48, 33] = image[:, 47, 40] = 0.1
    assert np.array_equal(object_mask(image, Options(), "bright"), expected)
    assert np.array_equal(object_mask(1 - image, Options(), "dark"), expected)
    assert not object_mask(image, Options(mask_morphology="opening"), "bright")[5, 7]


def test_sides_that_are_known():
    """MVTec AD's names have their side, but not against the images: a toy set has dark hazelnuts on a bright ground."""
    assert len(anomalies.MVTEC_OBJECTS) == 15
    found = {name: object_side(parts(), name, Options()) for name in ("metal_nut", "carpet", "bottle")}
    assert found == {"metal_nut": "bright", "carpet": "full", "bottle": "bright"}
    assert object_side(parts(dark=True), "hazelnut", Options()) == "dark"
    assert object_side(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "screw", Options()) == "dark"
    assert [object_side([], "", Options(object_mask=side)) for side in ("dark", "full")] == ["dark", "full"]


@pytest.mark.holds("srdad", "3", "4")
def test_alterations_are_drawn_as_equations_3_and_4_say():
    """One of noise and brightness for a patch, the noise alike in the channels, of a deviation from U(0, 0.05)."""
    rng = np.random.default_rng(0)
    found = [draw_alteration(rng, (3, 9, 9), Options()) for _ in range(4000)]
    noisy = [numbers for numbers in found if np.ndim(numbers.noise)]
    assert abs(len(noisy) / 4000 - 0.5) < 0.03 and all(n.noise.shape == (1, 9, 9) and n.factor == 1 for n in noisy)
    levels = np.sqrt([np.square(n.noise).mean() for n in noisy])
    factors = [n.factor for n in found if not np.ndim(n.noise)]
    angles, scales = ([getattr(n, name) for n in found] for name in ("angle", "scale"))
    assert all(numbers.offset == 0 for numbers in found)
    for values, low, high in ((factors, 0.8, 1.2), (angles, 0, 2 * np.pi), (scales, 0.8, 1.2), (levels, 0, 0.05)):
        assert low <= np.min(values) and np.max(values) <= high * 1.25  # a sample's deviation varies
        quarters = [low + (high - low) * share for share in (0.25, 0.5, 0.75)]
        assert np.quantile(values, (0.25, 0.5, 0.75)) == pytest.approx(quarters, abs=0.03 * (high - low))
    every = {"transformations": "all"}
    levels = [draw_alteration(rng, (3, 20, 20), Options(noise="normal", **every)).noise.std() for _ in range(500)]
    assert np.mean(levels) == pytest.approx(0.05 * np.sqrt(2 / np.pi), rel=0.1)  # mean of |N(0, 0.05)|
    for kind, level in (("variance", 0.2236), ("fixed", 0.05)):
        assert draw_alteration(rng, (3, 99, 99), Options(noise=kind, **every)).noise.std() == pytest.approx(
            level, rel=0.03
        )
    counts = [len(draw_alteration(rng, (3, 2, 2), Options(noise_channels="half", **every)).noise) for _ in range(400)]
    assert 150 < counts.count(3) < 250 and counts.count(1) + counts.count(3) == 400
    assert len(draw_alteration(rng, (3, 2, 2), Options(noise_channels="each", **every)).noise) == 3
    one = [draw_alteration(rng, (3, 2, 2), Options(transformations="one_each")) for _ in range(400)]
    assert all((np.ndim(n.noise) == 0) != (n.factor == 1) and (n.angle == 0) != (n.scale == 1) for n in one)


@pytest.mark.holds("srdad", "3", "4", "Transformation")
def test_alteration_by_hand():
    """Equations 3 and 4: P times the factor, plus offset and noise of each pixel; then rotated, or enlarged."""
    rng = np.random.default_rng(0)
    patch, noise = rng.random((3, 5, 8)), rng.normal(0, 0.05, (3, 5, 8))
    changed = 1.1 * patch - 0.03 + noise
    rotated = anomalies.alter(patch, anomalies.Alteration(noise, 1.1, -0.03, np.pi / 2, 1.0))
    assert rotated.support.all() and np.allclose(rotated.values, np.rot90(changed, 1, (1, 2)), rtol=0, atol=1e-12)
    values, support = anomalies.alter(patch, anomalies.Alteration(noise, 1.1, -0.03, 0.0, 2.0))
    assert support.shape == (10, 16) and support[1:-1, 1:-1].all()
    places = np.mgrid[1:9, 1:15] / 2 - 0.25  # centre on centre
    for found, channel in zip(values, changed):
        expected = ndimage.map_coordinates(channel, places, order=1)
        assert np.allclose(found[1:-1, 1:-1], expected, rtol=0, atol=1e-12)


def test_sizes_scale_with_the_image():
    def sizes_of(shape, **changes):
        drawn = [
            anomalies.draw_size(np.random.default_rng(i), shape, Options(**changes), sources()) for i in range(300)
        ]
        return np.array(drawn) - anomalies.RIM

    for shape, unit in (((256, 256), 1.0), ((128, 192), 0.5)):
        assert np.median(np.sqrt(sizes_of(shape).prod(axis=1))) == pytest.approx(28 * unit, rel=0.1)
    aspects = [sizes_of((256, 256), patch_size=kind).T for kind in ("lognormal", "thin")]
    aspects = [np.quantile(np.maximum(h / w, w / h), (0.5, 0.99)) for h, w in aspects]
    assert aspects[0] == pytest.approx([1.31, 2.8], abs=0.3) and aspects[1] == pytest.approx([2.25, 12], abs=0.6)
    listed = sizes_of((256, 256), patch_size="histogram")
    assert all((18 <= h <= 22 and 36 <= w <= 44) or (10 <= h <= 14 and 10 <= w <= 14) for h, w in listed)


@pytest.mark.parametrize("side", [128, 256])
def test_the_labelled_region_has_the_size_that_is_drawn(side, monkeypatch):
    """Warp and dR take the rim that is cut in addition; one patch alone, on the full image."""
    real, sizes = anomalies.draw_size, []
    monkeypatch.setattr(anomalies, "MOST_PATCHES", (1, 1))
    monkeypatch.setattr(anomalies, "draw_size", lambda *given: sizes.append(real(*given)) or sizes[-1])
    image = np.random.default_rng(0).random((3, side, side))
    areas = [anomaly(image, seed, object_mask="full")[1].sum() for seed in range(150)]
    shares = np.array(areas) / np.prod(np.array(sizes) - anomalies.RIM, axis=1)
    assert abs(shares.mean() - 1) < 0.1 and shares.min() > 0.4 and shares.max() < 2.5, (shares.mean(), shares.min())


@pytest.mark.holds("srdad", "5")
def test_a_patch_keeps_its_gradients_and_the_image_its_rim(sizes, monkeypatch):
    """Equation 5 in what is made of an image: inside Omega the Laplacian is that of the image at one displacement, the
    patch's; dR and all other pixels stay."""
    image = 0.45 + 0.1 * np.random.default_rng(5).random((3, 48, 48))
    sizes(median=70.0)
    for name, value in (("MOST_PATCHES", (1, 1)), ("BRIGHTNESS", 0.0), ("SCALE", (1.0, 1.0))):
        monkeypatch.setattr(anomalies, name, value)

    def laplacian(f):
        return 4 * f - sum(np.roll(f, step, axis) for step in (1, -1) for axis in (1, 2))

    for seed in range(3):
        blended, label = anomaly(image, seed, object_mask="full", noise_level=0.0, rotation=(0.0, 0.0))
        assert label.sum() >= 20 and np.array_equal(blended[:, ~label], image[:, ~label])
        found, every = laplacian(blended)[:, label], laplacian(image)
        rows, columns = np.nonzero(label)
        moves = [move for move in np.ndindex(48, 48)
                 if np.abs(found - every[:, rows - move[0], columns - move[1]]).max() < 1e-9]  # fmt: skip
        assert len(moves) == 1 and moves != [(0, 0)]


def test_added_brightness_is_a_no_op(sizes, monkeypatch):
    """With `add` the same images as with no change of brightness, to 1e-9; with `multiply` others."""
    sizes(median=60.0)
    found = {key: [anomaly(part(), seed, **changes)[0] for seed in range(5)] for key, changes in {
        "multiply": {}, "add": {"brightness_mode": "add"}, "soft": {"brightness_mode": "add", "poisson_lambda": 1.0},
    }.items()}  # fmt: skip
    monkeypatch.setattr(anomalies, "BRIGHTNESS", 0.0)
    none = [anomaly(part(), seed)[0] for seed in range(5)]
    soft = [anomaly(part(), seed, poisson_lambda=1.0)[0] for seed in range(5)]
    assert np.abs(np.stack(found["add"]) - none).max() < 1e-9 and np.abs(np.stack(found["soft"]) - soft).max() < 1e-9
    assert np.abs(np.stack(found["multiply"]) - none).max() > 1e-3
    assert sum(np.abs(image - part()).max() > 0.01 for image in none) >= 3  # the patches themselves are there


def test_labels(sizes):
    """`changed` marks what is visible; `region` the whole inside; a finite lambda the boundary as well."""
    sizes(median=90.0)
    flat = np.full((3, 64, 64), 0.5)
    region, changed, finite = (
        anomaly(flat, object_mask="full", noise_level=0.0, **changes)[1]
        for changes in ({}, {"label": "changed"}, {"poisson_lambda": 1.0})
    )
    assert region.any() and not changed.any()  # a patch of a flat surface is invisible
    assert finite.sum() > region.sum() and finite[region].all()
    noisy, label = anomaly(flat, object_mask="full", label="changed", transformations="all")
    assert label.any() and np.abs(noisy - flat).mean(0)[label].mean() > 1 / 255
    _, strong = anomaly(flat, object_mask="full", label="changed", transformations="all", visible=6.0)
    assert 0 < strong.sum() < label.sum()


def test_constraints_keep_the_ground_and_clip_region_leaves_no_seam(sizes):
    sizes(median=80.0)
    mask, jumps = object_mask(part(), Options(), "bright"), {"multiply": 0.0, "clip_region": 0.0}
    for constraint in jumps:
        for seed in range(20):
            blended, label = anomaly(part(), seed, object_constraint=constraint, noise_level=0.0)
            assert np.array_equal(blended[:, ~mask], part()[:, ~mask])
            rim = label & ~np.roll(mask, 1, 0)  # pixels of Y whose upper neighbour is ground
            jumps[constraint] += np.abs(blended - part()).mean(0)[rim].sum()
    assert jumps["clip_region"] == 0 < jumps["multiply"]


def test_the_constraint_comes_once_after_all_patches(sizes, monkeypatch):
    """Later patches see what earlier ones left on the ground: I_ano = M I_blend + (1 - M) I, at the end."""
    sizes(median=110.0)
    mask, everything = object_mask(part(), Options(), "bright"), np.ones((64, 64), bool)
    real = anomalies.patches.ObjectPixels
    monkeypatch.setattr(anomalies.patches, "ObjectPixels", lambda _: real(mask))  # draws from the object alone
    monkeypatch.setattr(anomalies, "MOST_PATCHES", (4, 4))
    marked = 0
    for seed in range(8):
        whole = natural_anomaly(part(), everything, np.random.default_rng(seed), Options(), sources())[0]
        cut, label = natural_anomaly(part(), mask, np.random.default_rng(seed), Options(), sources())
        assert not label.any() or np.array_equal(cut, np.where(mask, whole, part()))
        marked += bool(label.any())
    assert marked >= 4


def test_patches_that_find_no_place_or_overhang(sizes, monkeypatch):
    notes, clean = [], torch.from_numpy(part()).float()
    sizes(median=250.0, limits=(250.0, 256.0), longest=256.0, aspect_sigma=0.0)
    blended, label = anomaly(part(), object_mask="full", rotation=(45.0, 45.0))
    assert label.any() and np.isfinite(blended).all() and not label[0].any()  # the frame is the boundary
    monkeypatch.setattr(anomalies, "SOURCE_SHARE", 1.0)
    for seed in range(4):
        batch = corrupt(clean, np.random.default_rng(seed), Options(), sources(notes=notes))
        assert not batch.mask.any() and torch.equal(batch.corrupted, clean)
    assert notes and all(note["no_source"] == note["patches"] for note in notes)


def test_statistics_of_2000_samples():
    """Share of anomalous samples, distribution of N, Y inside M, unchanged where Y = 0."""
    notes, clean = [], torch.from_numpy(part()).float()
    mask = torch.from_numpy(object_mask(part(), Options(), "bright"))
    known, rng, anomalous = sources(notes=notes), np.random.default_rng(11), 0
    for _ in range(2000):
        batch = corrupt(clean, rng, Options(), known)
        label = batch.mask[0] > 0
        anomalous += bool(label.any())
        assert not (label & ~mask).any()
        assert torch.equal(batch.corrupted[:, ~label], clean[:, ~label]) and torch.equal(batch.clean, clean)
        assert batch.corrupted.min() >= 0 and batch.corrupted.max() <= 1
    drawn = np.bincount([note["patches"] for note in notes], minlength=4)[1:] / len(notes)
    assert abs(len(notes) / 2000 - 0.5) < 0.03
    assert drawn == pytest.approx([0.25, 0.5, 0.25], abs=0.05)  # 1 + Binomial(2, 0.5)
    assert abs(anomalous / 2000 - 0.5) < 0.05  # at 64 pixels some lone patches are too small to blend


def test_statistics_at_full_size():
    """Every sample that is drawn anomalous is."""
    notes, clean, known = [], torch.from_numpy(part(side=256)).float(), sources()
    labels = [corrupt(clean, np.random.default_rng(i), Options(), known._replace(notes=notes)).mask for i in range(60)]
    assert sum(bool(label.any()) for label in labels) == len(notes) > 20
    assert sum(note["no_place"] for note in notes) == 0 and 0.0025 < torch.stack(labels).mean() < 0.05


def test_the_object_rotates_with_its_image():
    """A dark part on a bright ground: the black corners of a rotated image are no object."""
    clean, chosen, rotated = torch.from_numpy(part(dark=True)).float(), Options(rotation_probability=1.0), 0
    for seed in range(40):
        batch = corrupt(clean, np.random.default_rng(seed), chosen, sources("dark"))
        black = (batch.clean == 0).all(dim=0)
        rotated += bool(black.any())
        assert not (black & (batch.mask[0] > 0)).any()
    assert rotated > 30


@pytest.mark.skipif("ADREF_TEST_DATA" not in os.environ, reason="ADREF_TEST_DATA names no folder of data sets")
@pytest.mark.parametrize(
    ("data_set", "category", "side", "full"),
    [("lookout", "alien", "dark", False),
     ("crackforest", "pavement", "full", True), ("bsdata", "ball_screw", "full", True),
     ("deeppcb", "board_12300", "full", True), ("deeppcb", "board_50600", "full", True)],
)  # fmt: skip
def test_real_objects_and_textures(data_set, category, side, full):
    """A figure on white is found and its ground stays untouched; pavement and close-ups count as full images."""
    train = find_category(Path(os.environ["ADREF_TEST_DATA"]) / data_set, category).train
    images = Images([record.path for record in train[:12]], (128, 128))
    assert object_side(images, category, Options()) == side
    known, marked = Sources(images=images, statistics=side), 0
    for i, pixels in enumerate(images):
        image = pixels.float() / 255
        mask = torch.from_numpy(object_mask(image.numpy(), Options(), side))
        assert bool(mask.all()) is full and (full or 0.1 < mask.float().mean() < 0.4)
        for seed in ((i, 0), (i, 1)):
            batch = corrupt(image, np.random.default_rng(seed), Options(), known)
            assert torch.equal(batch.corrupted[:, ~mask], image[:, ~mask]) and not (batch.mask[0] > 0)[~mask].any()
            marked += bool(batch.mask.any())
    assert marked >= 6


@pytest.mark.skipif("ADREF_TEST_DATA" not in os.environ, reason="ADREF_TEST_DATA names no folder of data sets")
def test_noise_that_is_alike_in_the_channels_shows_no_colour():
    """On photographs: a filter that learns nothing finds noise of each channel, but no patch of the default; nor does
    that of grey values on a surface with grain, which finds them on the smooth toy hazelnuts."""
    found = {}
    for data_set, category, side in (("crackforest", "pavement", "full"), ("hazelnut_toy", "hazelnut", "dark")):
        train = find_category(Path(os.environ["ADREF_TEST_DATA"]) / data_set, category).train
        images = Images([record.path for record in train[:16]], (128, 128))
        for name, changes in (("default", {}), ("each", giveaway.EVERY_CHANNEL)):
            corrupted, masks = giveaway.draw(images, Options(size=(128, 128), **changes), side, 32)
            aps = [average_precision(values.numpy(), masks.numpy()) for values in grain(corrupted)]
            found[category, name] = [ap / masks.mean().item() for ap in aps]  # of colours, of grey
    assert max(found["pavement", "default"]) < 1.5 and found["pavement", "each"][0] > 10, found
    assert found["hazelnut", "default"][1] > 5 and found["hazelnut", "default"][0] < 5, found
