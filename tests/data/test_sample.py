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
# Means of an image without and with each defect, pinned 2026-11-29 with NumPy 2.4.6 and SciPy 1.17.1.
MEANS = {
    "fabric": [104.6604, 105.8547, 102.7687, 103.4609, 103.828],
    "nut": [76.349, 75.3347, 76.2191, 75.0284, 76.2251],
    "board": [65.7547, 66.2486, 65.4356, 66.0444, 66.9902],
}
TEXTURES = [58.0822, 137.6182, 147.979, 74.3667, 27.487, 84.3071, 162.9373, 95.4325, 178.7586, 145.6256]


def hashes(root, pattern="*"):
    files = sorted(path for path in root.rglob(pattern) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return write_sample_data(tmp_path_factory.mktemp("few") / "data", seed=3, **FEW)


def test_pixels_are_pinned():
    """A change of these needs a new `VERSION`."""
    for category, means in MEANS.items():
        found = [draw(category, 0, defect, 0, 64, "test")[0].mean() for defect in (None, *DEFECTS[category])]
        assert found == pytest.approx(means, abs=0.01)
    assert [image.mean() for image in generated_textures(10, 64, 0)] == pytest.approx(TEXTURES, abs=0.01)
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


def test_nuts_lie_at_any_angle():
    """The phase of the hexagon's outline, modulo 60 degrees, is spread around the circle."""
    phases = []
    for index in range(24):
        y, x = np.nonzero(draw("nut", index, None, 0, 64)[0].mean(axis=-1) > 75)
        moment = (((x - x.mean()) + 1j * (y - y.mean())) ** 6).sum()
        phases.append(moment / abs(moment))
    assert abs(np.mean(phases)) < 0.5


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


def test_nothing_is_left_of_wrong_arguments_and_interruptions(tmp_path, monkeypatch):
    for given, word in (({"categories": ("bolt",)}, "bolt"), ({"size": 32}, "32"), ({"size": 1024}, "1024"),
                        ({"train": 0}, "0")):  # fmt: skip
        with pytest.raises(UserError, match=word):
            write_sample_data(tmp_path / "data", **{**FEW, **given})
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
    tint = textures.mean(axis=(2, 3)) - brightness[:, None]
    assert np.linalg.matrix_rank(tint, tol=100) == 2 and np.ptp(tint, axis=0).min() > 60
    # Scale: low frequencies hold half of the power of a coarse texture, little of that of a fine one.
    power = np.abs(np.fft.fft2(textures.mean(axis=1) - textures.mean(axis=(1, 2, 3))[:, None, None])) ** 2
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))
    low = power[:, frequency < 0.08].sum(axis=1) / power.sum(axis=(1, 2))
    assert (low > 0.7).mean() > 0.15 and (low < 0.1).mean() > 0.15
