"""Studies of pictures: tiny, robustness, reconstruction, each against hand-built maps, formulas in plain numpy and
methods whose answers are known."""

import argparse
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import SMALL, write_category
from PIL import Image
from torch import Tensor

from adref.data import Record, find_category, read_image
from adref.evaluate import main as evaluate_main
from adref.losses import ssim_map
from adref.method import Method
from adref.methods import METHODS
from adref.options import UserError
from adref.run import load, read_config
from adref.samples import random_stream, resize, to_tensor
from adref.studies import Opened, column, reconstruction, robustness, tiny
from adref.study import main
from adref.train import main as train_main

RUN_SEED = 7


class Options(NamedTuple):
    size: tuple[int, int] = (64, 64)
    resize: str = "bilinear"


class Fake(Method):
    """Answers with functions of its inputs that a test can compute by hand, and remembers what it was given."""

    def __init__(self, map_of=None, size=(64, 64)):
        torch.nn.Module.__init__(self)
        self.options, self.map_of, self.seen = Options(size), map_of, []
        self.weight = torch.nn.Parameter(torch.zeros(1))  # says which device

    @staticmethod
    def look(image, options):
        return image.shape

    def anomaly_map(self, images, rngs=None, looks=None):
        self.seen.append((images, looks))
        return self.map_of(images, rngs)


class Rebuilder(Fake):
    def __init__(self, rebuild, size=(64, 64)):
        super().__init__(lambda images, rngs: images[:, :1], size)
        self.rebuild = rebuild

    def reconstruct(self, images, rngs=None, looks=None):
        self.seen.append((images, looks))
        return self.rebuild(images, rngs)


def opened(method: Method, root: Path, name: str = "fake", **flags) -> Opened:
    flags = {"data": str(root), "seed": RUN_SEED, "holdout": 0.0, **flags}
    config = {"method": "fake", "flags": flags, "category": "part"}
    return Opened(name, root, config, method, find_category(root, "part"), torch.device("cpu"))


def given(**values) -> argparse.Namespace:
    return argparse.Namespace(**{"seed": 0, **values})


def remove_anomalous(root: Path) -> Path:
    shutil.rmtree(root / "part/test/spot")
    shutil.rmtree(root / "part/ground_truth/spot")
    return root


def remove_normal(root: Path) -> Path:
    shutil.rmtree(root / "part/test/good")
    return root


@pytest.fixture(scope="module")
def noisy_run(tmp_path_factory) -> Path:
    """A run of a method whose maps depend on the pictures, and on noise that it draws at test time."""
    root = tmp_path_factory.mktemp("noisy")
    write_category(root / "data")
    flags = ["--size", "64,64", "--width", "4", "--sigmas", "0.5,1,2", "--epochs", "1", "--workers", "0"]
    words = ["noise_to_norm", "--data", root / "data", "--out", root / "run", "--device", "cpu", "--seed", 11, *flags]
    assert train_main(list(map(str, words))) == 0
    return root / "run"


# -- tiny -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [1, 2, 3, 4])
def test_a_block_is_where_the_article_has_it(side):
    """Rows and columns 126 to 126 + k - 1 of 256 x 256, and nothing else."""
    images = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.2
    before = images.clone()
    for colour, expected in {"black": (0, 0, 0), "white": (1, 1, 1), "red": (1, 0, 0), "invert": None}.items():
        changed = tiny.set_block(images, side, colour)
        rows, columns = np.nonzero((changed != images).any(dim=1)[0].numpy())
        assert set(rows) == set(columns) == set(range(126, 126 + side)) and len(rows) == side**2
        block = changed[0, :, 126 : 126 + side, 126 : 126 + side]
        wanted = 1 - images[0, :, 126 : 126 + side, 126 : 126 + side]
        if expected:
            wanted = torch.tensor(expected).float().view(3, 1, 1).expand_as(block)
        assert torch.equal(block, wanted), colour
    assert torch.equal(images, before)


def test_a_block_in_other_sizes():
    assert (
        tiny.corner((256, 256)) == (126, 126) and tiny.corner((64, 48)) == (30, 22) and tiny.corner((65, 7)) == (30, 1)
    )
    changed = tiny.set_block(torch.ones(1, 3, 64, 48), 2, "black")[0, 0].numpy()
    assert np.argwhere(changed == 0).tolist() == [[30, 22], [30, 23], [31, 22], [31, 23]]
    assert torch.equal(tiny.set_block(torch.ones(1, 3, 8, 8), 0, "black"), torch.ones(1, 3, 8, 8))


@pytest.mark.parametrize("side", [0, 1, 4])
@pytest.mark.parametrize("place", ["top", "bottom", "left", "right"])
def test_near_reaches_five_pixels_on_every_side(side, place):
    """The block of 64 x 48 begins at 30, 22."""
    last = (30 + side - 1, 22 + side - 1)
    for distance, near in ((5, True), (6, False)):
        row, column = {"top": (30 - distance, 22), "bottom": (last[0] + distance, 22), "left": (30, 22 - distance),
                       "right": (30, last[1] + distance)}[place]  # fmt: skip
        anomaly_map = np.full((64, 48), 0.25)
        anomaly_map[row, column] = 0.75
        assert tiny.measure(anomaly_map, side, 0.5) == ((0.75, True, True) if near else (0.25, False, False))


def test_a_hit_is_above_the_quantile_and_argmax_is_of_the_whole_map():
    anomaly_map = np.zeros((64, 64))
    anomaly_map[31, 31], anomaly_map[0, 0] = 0.5, 0.6
    assert tiny.measure(anomaly_map, 1, 0.5) == (0.5, False, False)  # equal is not above
    assert tiny.measure(anomaly_map, 1, 0.4999) == (0.5, True, False)
    small = np.zeros((8, 8))
    small[0, 0] = 1
    assert tiny.measure(small, 4, 0.5) == (1.0, True, True)  # near reaches over the edges


def darkness(images: Tensor, rngs) -> Tensor:
    """1 in the middle of 3 x 3 black pixels, and 0.5 in two pixels of a corner."""
    black = (images.sum(dim=1, keepdim=True) == 0).float()
    maps = (torch.nn.functional.avg_pool2d(black, 3, 1, 1) > 0.99).float()
    maps[..., 0, :2] += 0.5
    return maps


def test_a_method_that_sees_three_black_pixels_finds_blocks_from_three_on(data):
    fake = Fake(darkness)
    found = tiny.study([opened(fake, data)], given(sizes="4,1,2,3,3", colour="black"))
    assert [row["block"] for row in found.rows] == [0, 1, 2, 3, 4]
    for row in found.rows:
        seen = row["block"] >= 3
        assert row == {
            "run": "fake", "block": row["block"], "pictures": 3, "highest_near": float(seen), "hit_rate": float(seen),
            "argmax_share": float(seen), "clean_quantile": 0.0, "score": 1.0 if seen else 0.5, "clean_score": 0.5,
        }  # fmt: skip
    # No file has the block: no look at one.
    assert len(fake.seen) == 3 * 5 and all(looks is None for _, looks in fake.seen)
    first = resize(to_tensor(read_image(data / "part/test/good/000.png")), (64, 64)).float() / 255
    for (images, _), side in zip(fake.seen, (0, 1, 2, 3, 4)):
        assert torch.equal(images, tiny.set_block(first[None], side, "black"))
    white = tiny.study([opened(Fake(darkness), data)], given(sizes="4", colour="white"))
    assert white.rows[1]["hit_rate"] == 0 and white.settings == {"sizes": [4], "colour": "white"}


def test_the_quantile_is_that_of_the_picture_without_block(data):
    """Maps of known values: a ramp, whose 99.9 % quantile is between its fifth and fourth largest value of 4096."""

    def ramp(images, rngs):
        maps = torch.arange(4096.0).view(1, 1, 64, 64)
        return maps + 5000 * (images.sum(dim=1, keepdim=True) == 0)

    rows = tiny.study([opened(Fake(ramp), data)], given(sizes="1", colour="black")).rows
    assert all(row["clean_quantile"] == pytest.approx(0.999 * 4095) for row in rows)
    # The control: rows 25 to 34, columns 25 to 34. The block: row and column 30.
    assert [row["highest_near"] for row in rows] == [34 * 64 + 34, 30 * 64 + 30 + 5000]
    assert [row["hit_rate"] for row in rows] == [0, 1] and [row["clean_score"] for row in rows] == [4095, 4095]
    assert [row["score"] for row in rows] == [4095, 30 * 64 + 30 + 5000]


def test_rates_are_over_the_pictures(data):
    """A method that finds blocks where the rest is bright; only some of the pictures are."""

    def gated(images, rngs):
        black = (images.sum(dim=1, keepdim=True) == 0).float()
        return black * (images[0, 0, 0, 0] > limit)

    firsts = [read_image(path)[0, 0, 0] / 255 for path in sorted((data / "part/test/good").iterdir())]
    limit = sorted(firsts)[1]
    row = tiny.study([opened(Fake(gated), data)], given(sizes="1", colour="black")).rows[1]
    assert row["hit_rate"] == row["argmax_share"] == row["highest_near"] == row["score"] == pytest.approx(1 / 3)


def test_a_hit_need_not_be_the_highest(data):
    def second(images, rngs):
        maps = 0.3 * (images.sum(dim=1, keepdim=True) == 0).float()
        maps[..., 0, :2] = 0.5
        return maps

    row = tiny.study([opened(Fake(second), data)], given(sizes="2", colour="black")).rows[1]
    assert (row["hit_rate"], row["argmax_share"], row["clean_quantile"]) == (1, 0, 0)


def test_every_block_gets_the_noise_of_its_picture(data):
    """The stream of evaluation: of the run's seed and the picture's place among all test pictures."""
    fake = Fake(lambda images, rngs: torch.full((1, 1, 64, 64), float(rngs[0].random())))
    rows = tiny.study([opened(fake, data)], given(sizes="1,2", colour="black")).rows
    expected = np.mean([random_stream(RUN_SEED, "test", index).random() for index in range(3)])
    for row in rows:
        assert row["score"] == row["clean_score"] == pytest.approx(expected, abs=1e-7)
        assert row["highest_near"] == pytest.approx(expected, abs=1e-7)
    category = find_category(data, "part")
    mixed = opened(fake, data)._replace(category=category.__class__(**{**vars(category), "test": category.test[::-1]}))
    expected = np.mean([random_stream(RUN_SEED, "test", index).random() for index in (3, 4, 5)])
    row = tiny.study([mixed], given(sizes="1", colour="black")).rows[0]
    assert row["score"] == pytest.approx(expected, abs=1e-7)


def test_pictures_of_blocks(data):
    """One below the other: the input; its middle, 24 pixels of 64, each block pixel enlarged; the map over it."""
    found = tiny.study([opened(Fake(darkness), data)], given(sizes="3", colour="red"))
    (figures,) = found.figures.values()
    assert [figure.caption for figure in figures] == [
        f"good/000.png, block {side}: input, its middle enlarged, map" for side in (0, 3)]  # fmt: skip
    for figure, side in zip(figures, (0, 3)):
        picture = figure.picture
        assert picture.shape == (64 * 3 + 8, 64, 3) and picture.dtype == np.uint8
        red = (picture == (255, 0, 0)).all(axis=-1)
        assert red[:64].sum() == side**2 and red[30 : 30 + side, 30 : 30 + side].all()
        rows, columns = np.nonzero(red[68:132])  # the block begins 10 of 24 pixels from the middle's corner
        assert (len(rows) == 64) == (side == 3) and red[132:].sum() == 0
        if side:
            assert (rows.min(), rows.max(), columns.min(), columns.max()) == (27, 34, 27, 34)
    assert np.ptp(figures[0].picture[136:].astype(int)) > 20


def test_the_brightest_colour_is_the_quantile_of_the_clean_map(data):
    def steps(images, rngs):
        maps = torch.zeros(1, 1, 64, 64)
        maps[..., :32] = 0.5
        return maps + (images.sum(dim=1, keepdim=True) == 0).float()

    figures = tiny.study([opened(Fake(steps), data)], given(sizes="4", colour="black")).figures["Pictures of fake"]
    grey = read_image(data / "part/test/good/000.png")
    bright = 0.65 * np.array([255, 246, 150])
    for figure in figures:
        left, right = figure.picture[136:, :20].astype(float), figure.picture[136:, 44:].astype(float)
        assert (left >= bright - 1).all() and (right[..., 2] < 0.36 * grey.max()).all()


@pytest.mark.parametrize("sizes", ["0", "1,35", "-1"])
def test_tiny_refuses_blocks_that_do_not_fit(sizes, data):
    assert tiny.study([opened(Fake(darkness), data)], given(sizes="34", colour="black")).rows[1]["hit_rate"] == 1
    with pytest.raises(UserError, match=r"--sizes takes 1 to 34, as fake has it; got"):
        tiny.study([opened(Fake(darkness), data)], given(sizes=sizes, colour="black"))


def test_tiny_refuses_what_it_cannot_measure(data):
    with pytest.raises(UserError, match=r"fake gives the score nan to test image 0: its weights are not usable"):
        tiny.study(
            [opened(Fake(lambda images, rngs: images[:, :1] * float("nan")), data)], given(sizes="1", colour="red")
        )
    infinite = Fake(lambda images, rngs: images[:, :1] - torch.tensor([0.0, float("inf")]).repeat(32))
    with pytest.raises(UserError, match="its weights are not usable"):
        tiny.study([opened(infinite, data)], given(sizes="1", colour="red"))
    broken = Fake(darkness)
    broken.image_score = lambda maps: maps.amax(dim=(1, 2, 3)) * float("inf")
    with pytest.raises(UserError, match="fake gives the score inf to test image 0"):
        tiny.study([opened(broken, data)], given(sizes="1", colour="red"))
    with pytest.raises(UserError, match="fake: part has no normal test picture"):
        tiny.study([opened(Fake(darkness), remove_normal(data))], given(sizes="1", colour="black"))


def test_tiny_without_block_is_what_evaluation_says(noisy_run, tmp_path):
    assert main(["tiny", str(noisy_run), "--out", str(tmp_path / "out"), "--sizes", "2", "--device", "cpu"]) == 0
    row = json.loads((tmp_path / "out/study.json").read_text())["rows"][0]
    lines = (noisy_run / "evaluation/scores.csv").read_text().splitlines()[1:]
    expected = np.mean([float(line.split(",")[3]) for line in lines if line.startswith("good")])
    assert row["score"] == row["clean_score"] == pytest.approx(expected, abs=1e-9) and row["pictures"] == 3


# -- robustness -------------------------------------------------------------------------------------------------------


def by_hand(image: np.ndarray, kind: str, level: float, rng) -> np.ndarray:
    """Corruptions written again, pixel by pixel; in [0, 255], not rounded."""
    height, width, _ = image.shape
    x = image.astype(np.float64) / 255
    out = np.empty_like(x)
    mean = x.sum() / x.size
    drawn = rng.standard_normal(x.shape)
    reach = int(4 * level + 0.5)
    kernel = np.array([np.exp(-0.5 * (d / level) ** 2) for d in range(-reach, reach + 1)])
    kernel /= kernel.sum()

    def mirrored(place: int, length: int) -> int:  # d c b a | a b c d | d c b a
        place %= 2 * length
        return place if place < length else 2 * length - 1 - place

    for i, j in np.ndindex(height, width):
        if kind == "noise":
            out[i, j] = x[i, j] + level * drawn[i, j]
        elif kind == "contrast":
            out[i, j] = (x[i, j] - mean) * level + mean
        elif kind == "brightness":
            out[i, j] = x[i, j] + level
        else:
            out[i, j] = sum(
                kernel[di + reach] * kernel[dj + reach] * x[mirrored(i + di, height), mirrored(j + dj, width)]
                for di in range(-reach, reach + 1) for dj in range(-reach, reach + 1)
            )  # fmt: skip
    return np.minimum(np.maximum(out, 0), 1) * 255


@pytest.mark.parametrize(("kind", "level"), [(k, v) for k, levels in robustness.LEVELS.items() for v in levels])
def test_corruptions_by_hand(kind, level):
    image = np.random.default_rng(1).integers(0, 256, (9, 12, 3), np.uint8)
    got = robustness.corrupt(image, kind, level, np.random.default_rng(2))
    expected = by_hand(image, kind, level, np.random.default_rng(2))
    assert got.dtype == np.uint8 and np.abs(got - expected).max() <= 0.5 + 1e-9
    assert np.abs(got.astype(float) - image).mean() > 1


def test_levels_are_those_of_the_study():
    assert robustness.LEVELS == {"noise": (0.02, 0.05, 0.1), "contrast": (0.6, 0.8, 1.2, 1.4),
                                 "brightness": (-0.2, -0.1, 0.1, 0.2), "blur": (0.5, 1.0, 2.0)}  # fmt: skip


def test_noise_is_keyed_by_seed_and_picture_and_scaled_by_the_level(data):
    grey = data / "part/test/good/000.png"
    Image.fromarray(np.full((40, 48, 3), 128, np.uint8)).save(grey)
    record = Record(grey, 0, "good", None)

    def noise(index=0, level=0.1, seed=0, kind="noise"):
        return robustness.open_corrupted(record, index, kind, level, seed).astype(float) - 128

    assert np.array_equal(noise(), noise()) and np.abs(noise() - 2 * noise(level=0.05)).max() <= 1.5
    assert np.std(noise()) == pytest.approx(25.5, rel=0.05)
    for other in (noise(index=1), noise(seed=1)):
        assert abs(np.corrcoef(noise().ravel(), other.ravel())[0, 1]) < 0.1
    assert np.array_equal(noise(kind="none"), np.zeros((40, 48, 3)))
    assert np.array_equal(noise(kind="brightness", level=0.2), np.full((40, 48, 3), 51))


def study_robustness(run: Path, out: Path, *more) -> list[dict]:
    assert main(["robustness", str(run), "--out", str(out), "--device", "cpu", *map(str, more)]) == 0
    return json.loads((out / "study.json").read_text())["rows"]


def test_rows_are_what_evaluation_says_of_corrupted_files(noisy_run, tmp_path):
    """The files are corrupted by hand, and evaluated by the command for that."""
    rows = study_robustness(noisy_run, tmp_path / "out", "--seed", 5)
    cases = [("none", None), *((kind, level) for kind, levels in robustness.LEVELS.items() for level in levels)]
    assert [(row["corruption"], row["level"]) for row in rows] == cases
    first = rows[0]
    for row in rows:
        assert row["run"] == "run" and row["pictures"] == 6
        assert row["image_change"] == row["image_auroc"] - first["image_auroc"]
        assert row["pixel_change"] == row["pixel_auroc"] - first["pixel_auroc"]
    assert len({row["pixel_auroc"] for row in rows}) > 10
    for kind, level in (("none", None), ("brightness", 0.2), ("contrast", 0.6), ("noise", 0.05)):
        data, run = tmp_path / f"{kind}/data", tmp_path / f"{kind}/run"
        shutil.copytree(noisy_run.parent / "data", data)
        shutil.copytree(noisy_run, run)
        for index, record in enumerate(find_category(data, "part").test):
            if level is not None:
                rng = random_stream(5, f"corruption {kind}", index)
                changed = np.round(by_hand(read_image(record.path), kind, level, rng)).astype(np.uint8)
                Image.fromarray(changed).save(record.path)
        assert evaluate_main([str(run), "--data", str(data), "--device", "cpu"]) == 0
        written = json.loads((run / "evaluation/metrics.json").read_text())
        row = rows[cases.index((kind, level))]
        assert (row["image_auroc"], row["pixel_auroc"]) == (written["image_auroc"], written["pixel_auroc"]), kind


def test_pictures_of_corruptions(small_run, tmp_path, data):
    """Input, reconstruction and map of the picture with the largest mask, one below the other, for every row."""
    mask = np.zeros((40, 48), np.uint8)
    mask[5:30] = 255
    Image.fromarray(mask).save(data / "part/ground_truth/spot/002_mask.png")
    run = opened(load(small_run), data, "draem")
    found = robustness.study([run], given(limit=None))
    (figures,) = found.figures.values()
    assert len(figures) == len(found.rows) == 15
    assert figures[0].caption == "spot/002.png, none: input, reconstruction, map"
    assert figures[7].caption == "spot/002.png, contrast 1.4: input, reconstruction, map"
    for figure, row in zip(figures, found.rows[:12]):  # without blur, which takes long by hand
        assert figure.picture.shape == (3 * 160 + 8, 160, 3)
        rng = random_stream(0, f"corruption {row['corruption']}", 5)
        image = read_image(data / "part/test/spot/002.png")
        if row["level"] is not None:
            image = np.round(by_hand(image, row["corruption"], row["level"], rng)).astype(np.uint8)
        seen = column([resize(to_tensor(image), (64, 64)).permute(1, 2, 0).numpy()], 160)
        assert np.abs(figure.picture[:160] - seen.astype(float)).max() <= 1, row  # halves may round either way
        assert all(figure.picture[top : top + 160].std() > 1 for top in (0, 164, 328))


def test_a_method_without_steps_has_input_and_map(data):
    fake = Fake(lambda images, rngs: images[:, :1])
    (figures,) = robustness.study([opened(fake, data)], given(limit=None)).figures.values()
    assert all(f.caption.endswith(": input, map") and f.picture.shape == (324, 160, 3) for f in figures)
    assert all(looks == [(40, 48, 3)] for _, looks in fake.seen)  # corrupted files are looked at
    dark, bright = (f.picture[164:].astype(float).mean() for f in figures[8:12:3])  # one scale for all
    assert bright > dark + 40


def test_what_is_shown_is_made_of_the_corrupted_picture(data):
    fake = Rebuilder(lambda x, rngs: x)
    (figures,) = robustness.study([opened(fake, data)], given(limit=None)).figures.values()
    assert len({figure.picture[:160].tobytes() for figure in figures}) == 15
    assert all(np.array_equal(figure.picture[:160], figure.picture[164:324]) for figure in figures)


def test_defects_without_masks_have_no_pixel_auroc(data):
    shutil.rmtree(data / "part/ground_truth")
    rows = robustness.study([opened(Fake(lambda images, rngs: images[:, :1]), data)], given(limit=None)).rows
    assert all(row["pixel_auroc"] is None and row["pixel_change"] is None for row in rows)
    assert all(0 <= row["image_auroc"] <= 1 for row in rows)
    test = find_category(data, "part").test
    assert robustness.choose_shown(test, [0, 4, 5]) == 4


def test_all_runs_get_the_same_pictures(data):
    drawn = []
    fakes = [Fake(lambda images, rngs: drawn.append(rngs[0].random()) or images[:, :1]) for _ in range(2)]
    runs = [opened(fake, data, name, seed=seed) for fake, name, seed in zip(fakes, "ab", (1, 2))]
    rows = robustness.study(runs, given(limit=4, seed=3)).rows
    assert [row["run"] for row in rows] == ["a"] * 15 + ["b"] * 15 and {row["pictures"] for row in rows} == {4}
    assert len(fakes[0].seen) == 15 * 4
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(fakes[0].seen, fakes[1].seen))
    chosen = robustness.choose(runs[0], 4, 3)
    assert chosen != list(range(4))
    assert drawn == [random_stream(seed, "test", index).random() for seed in (1, 2) for index in chosen * 15]


def test_a_limit_keeps_the_share_of_every_kind():
    kinds = ["good"] * 60 + ["crack"] * 30 + ["hole"] * 9 + ["rust"]
    test = tuple(Record(Path(f"{i}.png"), int(kind != "good"), kind, None) for i, kind in enumerate(kinds))
    run = Opened("r", Path(), {}, None, argparse.Namespace(test=test, name="part"), None)
    for limit, counts in ((100, (60, 30, 9, 1)), (10, (6, 3, 1, 1)), (4, (1, 1, 1, 1)), (50, (30, 15, 5, 1))):
        chosen = robustness.choose(run, limit, 0)
        assert chosen == sorted(set(chosen)) and len(chosen) == limit
        got = [sum(kinds[i] == kind for i in chosen) for kind in dict.fromkeys(kinds)]
        assert all(abs(n - wanted) <= 1 and n > 0 for n, wanted in zip(got, counts)), (limit, got)
    assert robustness.choose(run, None, 0) == robustness.choose(run, 1000, 0) == list(range(100))
    assert robustness.choose(run, 20, 0) == robustness.choose(run, 20, 0) != robustness.choose(run, 20, 1)
    assert {type(i) for i in robustness.choose(run, 20, 0)} == {int}
    with pytest.raises(UserError, match="--limit takes 4 or more, one of each kind of test picture; got 3"):
        robustness.choose(run, 3, 0)


@pytest.mark.parametrize("remove", [remove_normal, remove_anomalous])
def test_robustness_refuses_a_test_set_of_one_class(remove, data):
    fake = Fake(lambda images, rngs: images[:, :1])
    with pytest.raises(UserError, match="fake: part has no normal and anomalous test pictures to tell apart"):
        robustness.study([opened(fake, remove(data))], given(limit=None))
    assert not fake.seen


# -- reconstruction ---------------------------------------------------------------------------------------------------


def test_who_reconstructs():
    """RealNet rebuilds features."""
    scoring = {name: kind for name, kind in METHODS.items() if issubclass(kind, Method)}
    assert {name for name, kind in scoring.items() if kind.reconstruct is Method.reconstruct} == {"realnet"}


def test_errors_by_hand():
    rng = np.random.default_rng(0)
    truth, other = rng.random((2, 1, 3, 20, 24)).astype(np.float32)
    mask = np.zeros((20, 24), bool)
    mask[4:9, 3:10] = True
    got = reconstruction.errors(torch.from_numpy(truth), torch.from_numpy(other), torch.from_numpy(mask))
    similarity = ssim_map(torch.from_numpy(truth), torch.from_numpy(other), padding="reflect").numpy()
    for where, pixels in (("inside", mask), ("outside", ~mask)):
        values = [(float(other[0, c, y, x]) - float(truth[0, c, y, x])) ** 2
                  for y, x in np.argwhere(pixels) for c in range(3)]  # fmt: skip
        mse = sum(values) / len(values)
        assert got[f"mse_{where}"] == pytest.approx(mse, rel=1e-5)
        assert got[f"psnr_{where}"] == pytest.approx(20 * np.log10(1 / np.sqrt(mse)), rel=1e-5)
        assert got[f"ssim_{where}"] == pytest.approx(similarity[0][:, pixels].mean(), rel=1e-4)
    assert set(got) == set(reconstruction.MEASURES)


def test_ssim_of_flat_pictures_by_hand():
    """(2 a b + C1) / (a^2 + b^2 + C1) everywhere, at the border too."""
    truth, other, mask = torch.full((1, 3, 16, 16), 0.4), torch.full((1, 3, 16, 16), 0.9), torch.zeros(16, 16) > 0
    mask[0, :3] = True
    got = reconstruction.errors(truth, other, mask)
    expected = (2 * 0.4 * 0.9 + 1e-4) / (0.4**2 + 0.9**2 + 1e-4)
    assert [got["ssim_inside"], got["ssim_outside"]] == pytest.approx([expected] * 2, abs=2e-4)  # single precision
    assert got["mse_inside"] == pytest.approx(0.25) and got["psnr_outside"] == pytest.approx(6.0206, abs=1e-3)
    assert reconstruction.errors(truth, truth, mask)["psnr_inside"] == float("inf")


def test_areas():
    for count, group in ((1, 0), (99, 0), (100, 1), (500, 1), (501, 2), (9999, 2)):
        mask = np.zeros(10_000, bool)
        mask[:count] = True
        assert reconstruction.area(mask.reshape(100, 100)) == reconstruction.AREAS[group], count


def squares(side: int, low: float = 0.0):
    """A way to corrupt: a square of one colour, for `draw_examples`."""

    class Batch(NamedTuple):
        clean: Tensor
        corrupted: Tensor
        mask: Tensor

    def corrupt(image, rng, options, sources):
        mask = torch.zeros(1, *image.shape[1:])
        row, column = (int(rng.integers(length - side + 1)) for length in image.shape[1:])
        mask[:, row : row + side, column : column + side] = 1
        return Batch(image, torch.where(mask > 0, torch.full_like(image, low), image), mask)

    return corrupt


def drawing(method: Fake, corrupt) -> Fake:
    method.corrupt, method.stages = corrupt, ("train",)
    return method


def rows_by(found, *keys) -> dict:
    return {tuple(row[key] for key in keys): row for row in found.rows}


def study_reconstruction(runs, **values):
    return reconstruction.study(runs, given(**{"n": 5, "anomaly_from": None, **values}))


def test_known_reconstructions(data):
    """Black squares of 8 x 8 in 64 x 64 pixels, 1.6 %: left as they are, replaced by grey, and a copy of the truth."""
    truths = {}

    def perfect(images, rngs):
        inside = (images == 0).all(dim=1, keepdim=True)
        best = min(truths, key=lambda key: float(((truths[key] - images).abs() * ~inside).sum()))
        return truths[best]

    for path in sorted((data / "part/test/good").iterdir()):
        truths[path] = resize(to_tensor(read_image(path)), (64, 64))[None].float() / 255
    methods = {"same": lambda x, rngs: x, "grey": lambda x, rngs: torch.full_like(x, 0.5), "perfect": perfect}
    fakes = {name: drawing(Rebuilder(rebuild), squares(8)) for name, rebuild in methods.items()}
    found = study_reconstruction([opened(fake, data, name) for name, fake in fakes.items()])
    rows = rows_by(found, "run", "area")
    assert list(rows) == [(n, a) for n in (reconstruction.INPUT, *methods) for a in reconstruction.AREAS]
    for (_, group), row in rows.items():
        assert row["pictures"] == (5 if group == "1 to 5 %" else 0)
        assert group == "1 to 5 %" or all(row[key] is None for key in reconstruction.MEASURES)
    same, given_ = rows["same", "1 to 5 %"], rows[reconstruction.INPUT, "1 to 5 %"]
    assert {**same, "run": ""} == {**given_, "run": ""} and same["mse_outside"] == 0 and same["psnr_outside"] is None
    right = rows["perfect", "1 to 5 %"]
    assert right["mse_inside"] == 0 and right["ssim_inside"] == pytest.approx(1) and right["psnr_inside"] is None
    # Grey and black against the truth, where the squares were: from what the methods were given.
    inputs = [images for images, looks in fakes["grey"].seen if looks is None]
    assert len(inputs) == 5 and all(torch.equal(a, b) for (a, _), (b, _) in zip(fakes["grey"].seen, fakes["same"].seen))
    squared = {"grey": [], "same": []}
    for images in inputs:
        truth, inside = perfect(images, None)[0].numpy(), (images[0] == 0).all(dim=0).numpy()
        assert inside.sum() == 64
        squared["grey"].append(((truth[:, inside] - 0.5) ** 2).mean())
        squared["same"].append((truth[:, inside] ** 2).mean())
    for name, values in squared.items():
        assert rows[name, "1 to 5 %"]["mse_inside"] == pytest.approx(np.mean(values), rel=1e-4)
        assert rows[name, "1 to 5 %"]["psnr_inside"] == pytest.approx(np.mean(-10 * np.log10(values)), rel=1e-4)


def test_groups_of_areas(data):
    """Squares of 6, 8 and 20 pixels a side, drawn in turn: 0.9, 1.6 and 9.8 % of 64 x 64."""
    sides = iter([6, 8, 20] * 3)
    fake = drawing(Rebuilder(lambda x, rngs: x), lambda *rest: squares(next(sides))(*rest))
    found = study_reconstruction([opened(fake, data)], n=7)
    assert [row["pictures"] for row in found.rows] == [3, 2, 2] * 2
    captions = [figure.caption for figure in found.figures["Synthetic anomalies"]]
    assert [caption.partition(" of ")[0] for caption in captions] == ["0.9 %"] * 2 + ["1.6 %"] * 2 + ["9.8 %"] * 2


def test_pictures_of_reconstructions(data):
    fakes = [
        drawing(Rebuilder(lambda x, rngs, level=level: torch.full_like(x, level)), squares(8)) for level in (0.2, 0.8)
    ]
    runs = [opened(fake, data, name) for fake, name in zip(fakes, ("dark", "bright"))]
    found = study_reconstruction(runs)
    figure = found.figures["Synthetic anomalies"][0]
    assert figure.caption == "1.6 % of the picture: input, truth, dark, bright"
    assert figure.picture.shape == (4 * 160 + 12, 160, 3)
    assert (figure.picture[328:488] == 51).all() and (figure.picture[492:] == 204).all()
    assert (figure.picture[:160] == 0).all(axis=-1).sum() == 20 * 20 and (figure.picture[164:324] > 0).all()
    real = found.figures["Real anomalies"]
    assert [figure.caption for figure in real] == [f"spot/{i:03d}.png: input, dark, bright" for i in range(3)]
    assert real[0].picture.shape == (3 * 160 + 8, 160, 3) and (real[0].picture[328:] == 204).all()
    spot = np.asarray(Image.open(data / "part/test/spot/000.png").resize((160, 160), Image.Resampling.BILINEAR))
    assert np.abs(real[0].picture[:160].astype(float) - spot).mean() < 6
    # Synthetic anomalies have no file that could be looked at, real ones have.
    assert [looks for _, looks in fakes[0].seen] == [None] * 5 + [[(40, 48, 3)]] * 3
    without = study_reconstruction([opened(fakes[0], remove_anomalous(data))])
    assert list(without.figures) == ["Synthetic anomalies"]


def test_streams_are_the_same_for_all_runs(data):
    """Each picture has its own."""
    drawn = {"a": [], "b": []}

    def rebuild(name):
        return lambda x, rngs: drawn[name].append(rngs[0].random()) or x

    runs = [opened(drawing(Rebuilder(rebuild(name)), squares(8)), data, name, seed=0) for name in drawn]
    study_reconstruction(runs, seed=4)
    assert drawn["a"] == drawn["b"] and len(set(drawn["a"])) == len(drawn["a"]) == 8
    assert drawn["a"] == [*(random_stream(4, "test", i).random() for i in range(5)),
                          *(random_stream(0, "test", i).random() for i in (3, 4, 5))]  # fmt: skip


def test_anomalies_lie_on_pictures_that_no_run_trained_on(tmp_path):
    """Normal test pictures, and those that every run held out."""
    root = write_category(tmp_path, train=12, good=2)
    fake = drawing(Rebuilder(lambda x, rngs: x), squares(8))
    runs = [opened(fake, root, name, seed=seed, holdout=0.5) for name, seed in (("a", 0), ("b", 1))]
    category = runs[0].category
    held = [
        {category.train[i].path.name for i in random_stream(seed, "holdout").permutation(12)[:6]} for seed in (0, 1)
    ]
    common = held[0] & held[1]
    assert 0 < len(common) < 6

    def clean_files(runs) -> set[str]:
        drawn = reconstruction.draw_anomalies(runs, runs[0], 60, 0)
        paths = {f"{path.parent.parent.name}/{path.name}": path for path in (root / "part").glob("t*/good/*.png")}
        files = {name: resize(to_tensor(read_image(path)), (64, 64)) for name, path in paths.items()}
        cleans = [to_tensor(pictures["clean"]) for pictures in drawn]
        assert all(any(torch.equal(file, clean) for file in files.values()) for clean in cleans)
        return {name for name, file in files.items() if any(torch.equal(file, clean) for clean in cleans)}

    test = {"test/000.png", "test/001.png"}
    assert clean_files(runs) == test | {f"train/{name}" for name in common}
    assert clean_files(runs[:1]) == test | {f"train/{name}" for name in held[0]}
    assert clean_files([opened(fake, root, "c")]) == test
    remove_normal(root)
    with pytest.raises(UserError, match="part has no normal picture that no run trained on"):
        study_reconstruction([opened(fake, root, "c")])


def test_a_run_is_refused_or_listed(data):
    fine = drawing(Rebuilder(lambda x, rngs: x), squares(8))
    other, small = Fake(lambda images, rngs: images[:, :1]), Rebuilder(lambda x, rngs: x, (32, 64))
    with pytest.raises(UserError, match=r"^no run reconstructs pictures: fake \(fake\)$"):
        study_reconstruction([opened(other, data)])
    with pytest.raises(UserError, match=r"must get the same inputs, but have several sizes: a 64 x 64, b 32 x 64$"):
        study_reconstruction([opened(fine, data, "a"), opened(small, data, "b")])
    elsewhere = opened(fine, data, "b")
    renamed = elsewhere.category.__class__(**{**vars(elsewhere.category), "name": "nut"})
    with pytest.raises(UserError, match="several categories: a part, b nut"):
        study_reconstruction([opened(fine, data, "a"), elsewhere._replace(category=renamed)])
    with pytest.raises(UserError, match="--anomaly-from takes the name of a run, one of: a; got b"):
        study_reconstruction([opened(fine, data, "a")], anomaly_from="b")
    found = study_reconstruction([opened(fine, data, "a"), opened(other, data, "b")])
    assert {row["run"] for row in found.rows} == {reconstruction.INPUT, "a"}
    assert found.notes[-1] == "No reconstruction of pictures: b (fake)."
    assert not any("No reconstruction" in note for note in study_reconstruction([opened(fine, data, "a")]).notes)


def test_anomalies_of_another_run(data):
    """One that reconstructs nothing may draw; one whose anomalies are everywhere, or none, may not."""
    able = drawing(Rebuilder(lambda x, rngs: x), squares(64))
    source = drawing(Fake(lambda images, rngs: images[:, :1]), squares(8, low=1.0))
    runs = [opened(able, data, "a"), opened(source, data, "b")]
    found = study_reconstruction(runs, anomaly_from="b")
    assert found.settings["anomaly_from"] == "b" and found.notes[0].startswith("5 anomalies of b (fake) on normal")
    with pytest.raises(
        UserError, match=r"^a \(fake\) draws no anomaly that leaves a part of a picture clean; --anomaly"
    ):
        study_reconstruction(runs)


def test_methods_that_draw_no_anomalies_say_so(data, textures, tmp_path, capsys):
    """noise-to-norm's noise is everywhere, the ViT trains on clean pictures; with DRAEM's anomalies both compare."""
    small = {
        "noise_to_norm": ["--size", "64,64", "--width", "4", "--sigmas", "0.5,1,2"],
        "vit_autoencoder": ["--preset", "tiny", "--size", "64,64", "--width", "16", "--depth", "1", "--heads", "2",
                            "--memory-items", "8", "--decoder-width", "16"],
        "draem": SMALL,
    }  # fmt: skip
    for name, flags in small.items():
        flags = [*flags, "--epochs", "1", "--workers", "0", "--device", "cpu", "--batch-size", "2"]
        flags += ["--textures", str(textures)] if name == "draem" else []
        assert train_main([name, "--data", str(data), "--out", str(tmp_path / name), *flags]) == 0
    capsys.readouterr()
    runs = {name: str(tmp_path / name) for name in small}
    words = ["--out", str(tmp_path / "out"), "--n", "6", "--device", "cpu"]
    for name, text in (
        ("noise_to_norm", "draws no anomaly that leaves a part of a picture clean; --anomaly-from"),
        ("vit_autoencoder", "trains on clean pictures alone: there is nothing to draw; --anomaly-from"),
    ):
        assert main(["reconstruction", runs[name], *words]) == 2
        assert text in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main(["reconstruction", *runs.values(), *words, "--anomaly-from", "draem"]) == 0
    rows = json.loads((tmp_path / "out/study.json").read_text())["rows"]
    assert list(dict.fromkeys(row["run"] for row in rows)) == [reconstruction.INPUT, *small]
    for name in (reconstruction.INPUT, *small):
        own = [row for row in rows if row["run"] == name]
        assert sum(row["pictures"] for row in own) == 6
        assert all(row["mse_inside"] > 0 for row in own if row["pictures"])
    assert read_config(tmp_path / "draem")["method"] == "draem"
