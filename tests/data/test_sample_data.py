"""The generated data set: the same bits on every run, the layout of MVTec AD, and masks that are the changed pixels."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from adref.data.sample import AREA, CATEGORIES, DEFECTS, draw, generated_textures, write_sample_data
from adref.options import UserError

KINDS = [(category, defect) for category in CATEGORIES for defect in DEFECTS[category]]
FEW = {"size": 64, "train": 2, "test": 1, "per_defect": 1}


def hashes(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def pictures(root):
    return {name: value for name, value in hashes(root).items() if name.endswith(".png")}


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return write_sample_data(tmp_path_factory.mktemp("few") / "data", seed=3, **FEW)


# -- determinism ------------------------------------------------------------------------------------------------------


def test_two_runs_write_the_same_bits(few, tmp_path):
    assert hashes(write_sample_data(tmp_path / "other", seed=3, **FEW)) == hashes(few)


def test_a_picture_does_not_depend_on_how_many_others_are_made(few, tmp_path):
    more = {"size": 64, "train": 3, "test": 2, "per_defect": 2}
    bigger = pictures(write_sample_data(tmp_path / "bigger", seed=3, categories=("nut",), **more))
    smaller = {name: value for name, value in pictures(few).items() if name.startswith("nut/")}
    assert len(bigger) > len(smaller)
    assert {name: bigger[name] for name in smaller} == smaller


def test_no_two_pictures_are_equal_and_the_seed_counts(few, tmp_path):
    images = {name: value for name, value in pictures(few).items() if "ground_truth" not in name}
    assert len(set(images.values())) == len(images)
    other = pictures(write_sample_data(tmp_path / "seed", seed=4, **FEW))
    assert not set(images.values()) & set(other.values())


def test_the_type_of_the_integers_does_not_count():
    plain, _ = draw("nut", 1, None, 2, 64)
    numpy, _ = draw("nut", np.int64(1), None, np.int32(2), 64)
    assert np.array_equal(plain, numpy)


# -- the layout on disk -----------------------------------------------------------------------------------------------


def test_layout_is_that_of_mvtec_ad(few):
    expected = {"recipe.json"}
    for category, kinds in DEFECTS.items():
        expected |= {f"{category}/train/good/{i:03d}.png" for i in range(2)} | {f"{category}/test/good/000.png"}
        expected |= {f"{category}/test/{kind}/000.png" for kind in kinds}
        expected |= {f"{category}/ground_truth/{kind}/000_mask.png" for kind in kinds}
    assert set(hashes(few)) == expected
    assert sorted(path.name for path in few.parent.iterdir()) == [few.name]  # no temporary folder is left behind


def test_files_hold_what_draw_returns(few):
    image, mask = draw("board", 0, "short", 3, 64, "test/short")
    assert image.dtype == np.uint8 and image.shape == (64, 64, 3) and mask.dtype == bool and mask.shape == (64, 64)
    stored = Image.open(few / "board/test/short/000.png")
    assert stored.mode == "RGB" and np.array_equal(np.asarray(stored), image)
    stored = Image.open(few / "board/ground_truth/short/000_mask.png")
    assert stored.mode == "L" and np.array_equal(np.asarray(stored), np.where(mask, 255, 0))


def test_categories_and_kinds():
    assert len(CATEGORIES) >= 3 and all(3 <= len(DEFECTS[category]) <= 4 for category in CATEGORIES)


# -- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("category", "defect"), KINDS)
@pytest.mark.parametrize("size", [64, 128])
def test_mask_is_where_the_defect_changes_the_picture(category, defect, size):
    for index in range(4):
        image, mask = draw(category, index, defect, 0, size, "test")
        clean, nothing = draw(category, index, None, 0, size, "test")
        change = np.abs(image.astype(int) - clean).max(axis=-1)
        assert not nothing.any()
        assert not change[~mask].any()  # outside the mask not one bit differs
        assert AREA[0] <= mask.mean() <= AREA[1]
        assert (change[mask] >= 5).mean() > 0.6  # the rest: pinholes that are closed
        assert np.percentile(change[mask], 90) > 20  # a person sees it


@pytest.mark.parametrize(("category", "defect"), KINDS)
def test_the_mask_leaves_no_strong_change_out(category, defect, monkeypatch):
    """Against the untouched photographs: what `draw` throws away outside the mask is weak or tiny."""
    import adref.data.sample as module

    photographs = []
    photograph = module.photograph
    monkeypatch.setattr(module, "photograph", lambda *given: photographs.append(photograph(*given)) or photographs[-1])
    for index in range(4):
        photographs.clear()
        _, mask = draw(category, index, defect, 0, 128, "test")
        strong = np.abs(photographs[-1] - photographs[0]).max(axis=-1) > 20 / 255
        assert strong.any() and mask[strong].mean() >= 0.95


def test_defects_differ_in_size_and_place():
    for category, defect in KINDS:
        masks = [draw(category, index, defect, 0, 64, "test")[1] for index in range(6)]
        assert len({mask.tobytes() for mask in masks}) > 1
    areas = [draw("fabric", index, "hole", 0, 64, "test")[1].mean() for index in range(8)]
    assert max(areas) > 2 * min(areas)


@pytest.mark.parametrize("category", CATEGORIES)
def test_good_pictures_vary_but_stay_alike(category):
    images = np.stack([draw(category, index, None, 0, 64)[0] for index in range(8)]).astype(float)
    means = images.mean(axis=(1, 2, 3))
    assert np.ptp(means) > 2  # lighting
    assert means.std() < 0.15 * means.mean()
    assert np.abs(images[0] - images[1]).mean() > 3  # noise, place, rotation
    assert images.std() > 15  # no grey nothing


@pytest.mark.parametrize("category", CATEGORIES)
def test_shapes_scale_with_the_size(category):
    small = draw(category, 0, None, 0, 128)[0]
    large = Image.fromarray(draw(category, 0, None, 0, 256)[0]).resize((128, 128), Image.Resampling.BOX)
    assert np.corrcoef(small.ravel(), np.asarray(large).ravel())[0, 1] > 0.8


def test_nuts_turn_by_any_angle():
    """The phase of the hexagon's outline, modulo 60 degrees, is spread around the circle."""
    phases = []
    for index in range(24):
        y, x = np.nonzero(draw("nut", index, None, 0, 64)[0].mean(axis=-1) > 75)
        place = (x - x.mean()) + 1j * (y - y.mean())
        moment = (place**6).sum()
        phases.append(moment / abs(moment))
    assert abs(np.mean(phases)) < 0.5


# -- refusals and reuse -----------------------------------------------------------------------------------------------


def test_the_same_recipe_is_reused_untouched(few):
    before = {path: path.stat().st_mtime_ns for path in few.rglob("*")}
    assert write_sample_data(few, seed=3, **FEW) == few
    assert {path: path.stat().st_mtime_ns for path in few.rglob("*")} == before


@pytest.mark.parametrize("change", [{"seed": 5}, {"size": 96}, {"train": 1}, {"categories": ("nut",)}])
def test_another_recipe_is_refused(few, change):
    before = hashes(few)
    with pytest.raises(UserError, match="data exists"):
        write_sample_data(few, **{"seed": 3, **FEW, **change})
    assert hashes(few) == before


def test_recipe_of_another_version_is_refused(tmp_path):
    root = write_sample_data(tmp_path / "data", categories=("nut",), **FEW)
    recipe = json.loads((root / "recipe.json").read_text())
    (root / "recipe.json").write_text(json.dumps({**recipe, "version": recipe["version"] + 1}))
    with pytest.raises(UserError, match="exists"):
        write_sample_data(root, categories=("nut",), **FEW)


def test_a_strangers_folder_is_refused(tmp_path):
    (tmp_path / "holiday.txt").write_text("mine")
    with pytest.raises(UserError, match=str(tmp_path)):
        write_sample_data(tmp_path, **FEW)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.txt"]


def test_wrong_arguments_are_named(tmp_path):
    for given, word in (
        ({"categories": ("nut", "bolt")}, "bolt"),
        ({"size": 32}, "32"),
        ({"size": 1024}, "1024"),
        ({"train": 0}, "0"),
    ):
        with pytest.raises(UserError, match=word):
            write_sample_data(tmp_path / "data", **{**FEW, **given})
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="expected a defect of nut"):
        draw("nut", 0, "hole", 0, 64)


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    import adref.data.sample as module

    def interrupted(category, index, *rest):
        if index == 1:
            raise KeyboardInterrupt
        return draw(category, index, *rest)

    monkeypatch.setattr(module, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_sample_data(tmp_path / "data", **FEW)
    assert not list(tmp_path.iterdir())


# -- textures ---------------------------------------------------------------------------------------------------------


def test_textures_are_deterministic_and_independent_of_their_number():
    textures = generated_textures(24, 64, seed=1)
    assert textures.dtype == np.uint8 and textures.shape == (24, 3, 64, 64)
    assert np.array_equal(textures[:7], generated_textures(7, 64, seed=1))
    assert not np.array_equal(textures, generated_textures(24, 64, seed=2))


def test_textures_vary_in_colour_contrast_and_scale():
    textures = generated_textures(120, 64, seed=0).astype(float)
    brightness, contrast = textures.mean(axis=(1, 2, 3)), textures.mean(axis=1).std(axis=(1, 2))
    assert np.percentile(brightness, 90) - np.percentile(brightness, 10) > 100
    assert np.percentile(contrast, 90) > 4 * np.percentile(contrast, 10)
    tint = textures.mean(axis=(2, 3)) - brightness[:, None]
    assert np.linalg.matrix_rank(tint, tol=100) == 2 and np.ptp(tint, axis=0).min() > 60
    # Scale: half of a coarse texture's power lies at low frequencies, little of a fine one's.
    power = np.abs(np.fft.fft2(textures.mean(axis=1) - textures.mean(axis=(1, 2, 3))[:, None, None])) ** 2
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))
    low = power[:, frequency < 0.08].sum(axis=1) / power.sum(axis=(1, 2))
    assert (low > 0.7).mean() > 0.15 and (low < 0.1).mean() > 0.15
    assert contrast.min() > 0.2  # none is one flat colour
