"""The generated data set: the same pixels in every run, MVTec AD's layout, masks that are the changed pixels."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from adref.data import sample
from adref.data.sample import AREA, CATEGORIES, DEFECTS, draw, generated_textures, write_sample_data
from adref.options import UserError

KINDS = [(category, defect) for category in CATEGORIES for defect in DEFECTS[category]]
FEW = {"size": 64, "train": 2, "test": 1, "per_defect": 1}
# `statistic` of an image without and with each defect, pinned 2026-11-29 with NumPy 2.4.6 and SciPy 1.17.1.
IMAGES = {"fabric": [121.6755, 123.7115, 119.8918, 120.3373, 121.2803],
          "nut": [85.7249, 84.6237, 85.9678, 84.4597, 85.9024],
          "board": [80.3601, 80.9066, 80.0913, 80.7365, 82.308]}  # fmt: skip
TEXTURES = [67.3771, 178.7551, 185.2133, 86.897, 39.4713, 101.1679, 192.6813, 98.141, 214.0216, 151.3347]


def statistic(image):
    """Adds the mean of the values and the mean difference of horizontal neighbours."""
    return image.mean() + np.abs(np.diff(image.astype(int), axis=1)).mean()


def hashes(root, pattern="*"):
    files = sorted(path for path in root.rglob(pattern) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return write_sample_data(tmp_path_factory.mktemp("few") / "data", seed=3, **FEW)


def test_pixels_are_pinned():
    """A change of these needs a new `VERSION`."""
    for category, expected in IMAGES.items():
        images = [draw(category, 0, defect, 0, 64, "test")[0] for defect in (None, *DEFECTS[category])]
        assert list(map(statistic, images)) == pytest.approx(expected, abs=0.01)
    textures = generated_textures(10, 64, 0).transpose(0, 2, 3, 1)
    assert list(map(statistic, textures)) == pytest.approx(TEXTURES, abs=0.01)
    assert np.array_equal(draw("nut", 1, None, 2, 64)[0], draw("nut", np.int64(1), None, np.int32(2), 64)[0])


def test_images_depend_on_the_seed_and_not_on_the_number_of_others(few, tmp_path):
    assert hashes(write_sample_data(tmp_path / "again", seed=3, **FEW)) == hashes(few)
    more = {"size": 64, "train": 3, "test": 2, "per_defect": 2, "categories": ("nut",)}
    bigger, smaller = write_sample_data(tmp_path / "bigger", seed=3, **more), hashes(few / "nut")
    assert smaller.items() < hashes(bigger / "nut").items()
    images = [value for name, value in hashes(few, "*.png").items() if "ground_truth" not in name]
    assert len(set(images)) == len(images)
    other = hashes(write_sample_data(tmp_path / "seed", seed=4, **FEW), "*.png")
    assert not set(images) & set(other.values())


def test_layout_is_that_of_mvtec_ad(few):
    expected = {"recipe.json"}
    for category, kinds in DEFECTS.items():
        expected |= {f"{category}/{name}.png" for name in ("train/good/000", "train/good/001", "test/good/000")}
        expected |= {f"{category}/test/{kind}/000.png" for kind in kinds}
        expected |= {f"{category}/ground_truth/{kind}/000_mask.png" for kind in kinds}
    assert set(hashes(few)) == expected
    assert [path.name for path in few.parent.iterdir()] == [few.name]  # no temporary folder is left behind
    image, mask = draw("board", 0, "short", 3, 64, "test/short")
    assert image.dtype == np.uint8 and image.shape == (64, 64, 3) and mask.dtype == bool and mask.shape == (64, 64)
    stored = Image.open(few / "board/test/short/000.png"), Image.open(few / "board/ground_truth/short/000_mask.png")
    assert stored[0].mode == "RGB" and np.array_equal(np.asarray(stored[0]), image)
    assert stored[1].mode == "L" and np.array_equal(np.asarray(stored[1]), np.where(mask, 255, 0))


@pytest.mark.parametrize(("category", "defect"), KINDS)
def test_mask_is_where_the_defect_changes_the_image(category, defect, monkeypatch):
    photographs, photograph = [], sample.photograph
    monkeypatch.setattr(sample, "photograph", lambda *given: photographs.append(photograph(*given)) or photographs[-1])
    masks = set()
    for index, size in enumerate((64, 128, 64, 128, 64)):
        photographs.clear()
        image, mask = draw(category, index, defect, 0, size, "test")
        strong = np.abs(photographs[-1] - photographs[0]).max(axis=-1) > 20 / 255
        assert strong.any() and mask[strong].mean() >= 0.95  # changes outside the mask, which are undone, are weak
        clean, nothing = draw(category, index, None, 0, size, "test")
        change = np.abs(image.astype(int) - clean).max(axis=-1)
        assert not nothing.any() and not change[~mask].any()  # outside the mask the pixels are equal
        assert AREA[0] <= mask.mean() <= AREA[1]
        assert (change[mask] >= 5).mean() > 0.6  # the rest are closed holes
        assert np.percentile(change[mask], 90) > 20  # visible to a person
        masks.add(mask.tobytes())
    assert len(masks) == 5


@pytest.mark.parametrize("category", CATEGORIES)
def test_good_images_vary_a_little_and_scale_with_the_size(category):
    images = np.stack([draw(category, index, None, 0, 64)[0] for index in range(8)]).astype(float)
    means = images.mean(axis=(1, 2, 3))
    assert np.ptp(means) > 2 and means.std() < 0.15 * means.mean()  # lighting
    assert np.abs(images[0] - images[1]).mean() > 3 and images.std() > 15  # noise, place, rotation
    large = Image.fromarray(draw(category, 0, None, 0, 256)[0]).resize((128, 128), Image.Resampling.BOX)
    assert np.corrcoef(draw(category, 0, None, 0, 128)[0].ravel(), np.asarray(large).ravel())[0, 1] > 0.8


def test_an_existing_folder_is_reused_or_refused(few, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in few.rglob("*")}
    assert write_sample_data(few, seed=3, **FEW) == few
    for change in ({"seed": 5}, {"size": 96}, {"train": 1}, {"categories": ("nut",)}):
        with pytest.raises(UserError, match="data exists"):
            write_sample_data(few, **{"seed": 3, **FEW, **change})
    assert {path: path.stat().st_mtime_ns for path in few.rglob("*")} == before
    recipe = json.loads((few / "recipe.json").read_text())
    (tmp_path / "recipe.json").write_text(json.dumps({**recipe, "version": recipe["version"] + 1}))
    with pytest.raises(UserError, match=str(tmp_path)):
        write_sample_data(tmp_path, seed=3, **FEW)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.json"]


def test_nothing_is_left_of_an_interruption(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="expected a defect of nut"):
        draw("nut", 0, "hole", 0, 64)

    def interrupted(category, index, *rest):
        if index == 1:
            raise KeyboardInterrupt
        return draw(category, index, *rest)

    monkeypatch.setattr(sample, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_sample_data(tmp_path / "data", **FEW)
    assert not list(tmp_path.iterdir())


def test_textures_vary_in_colour_contrast_and_scale():
    given = generated_textures(120, 64, seed=0)
    assert given.dtype == np.uint8 and np.array_equal(given[:7], generated_textures(7, 64, seed=0))
    assert not np.array_equal(given[:7], generated_textures(7, 64, seed=2))
    textures = given.astype(float)
    brightness, contrast = textures.mean(axis=(1, 2, 3)), textures.mean(axis=1).std(axis=(1, 2))
    assert np.percentile(brightness, 90) - np.percentile(brightness, 10) > 100
    assert np.percentile(contrast, 90) > 4 * np.percentile(contrast, 10) and contrast.min() > 0.2
