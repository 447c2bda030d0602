"""python -m adref.synthesize: it shows what training sees; sheet, statistics, sizes; mistakes at the keyboard."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from adref.data.examples import Images, random_stream
from adref.data.layouts import find_category
from adref.method import Sources
from adref.methods.srdad import anomalies
from adref.methods.srdad.anomalies import object_side
from adref.methods.srdad.method import corrupt
from adref.methods.srdad.options import Options
from adref.run.config import RunSettings
from adref.run.sources import read_sizes, split
from adref.synthesize import main
from adref.train import main as train_main

SMALL = ["--size", "64,64", "--window", "4", "--width", "12"]


def call(*words) -> int:
    return main(list(map(str, words)))


def test_shows_the_examples_of_training(data, tmp_path, capsys):
    out = tmp_path / "out"
    assert call("srdad", "--data", data, "--out", out, "--n", 5, "--seed", 3, *SMALL) == 0
    told = json.loads((out / "statistics.json").read_text())
    assert told["corrupted"] == 5 <= told["examples"] and told["options"]["recipe"] == "srdad"
    rows = (out / "statistics.csv").read_text().splitlines()
    assert len(rows) == 6 and rows[0].startswith("example,mask_share,changed_share_of_mask,milliseconds,ap_of_c")
    assert "Sheet: " in capsys.readouterr().out
    assert set(told) >= {"mask_share", "changed_share_of_mask", "milliseconds", "ap_of_colour_grain", "patches",
                         "ap_of_grey_grain", "no_source", "no_place", "too_small", "solve_milliseconds"}  # fmt: skip
    # The first corrupted example, made again from the parts of training.
    category = find_category(data, "part")
    options = Options(size=(64, 64), window=4, width=12)
    images = Images([r.path for r in split(category, RunSettings(seed=3))[0]], options.size)
    sources = Sources(images=images, statistics=object_side(images, "part", options))
    order = random_stream(3, "order train", 0).permutation(len(images))
    for position, index in enumerate(order):
        batch = corrupt(images[int(index)].float() / 255, random_stream(3, "corrupt", 0, position), options, sources)
        if batch.mask.any():
            break
    shown = np.asarray(Image.open(out / "examples/0000_corrupted.png"))
    assert np.array_equal(shown, (batch.corrupted * 255).round().byte().permute(1, 2, 0).numpy())
    mask = np.asarray(Image.open(out / "examples/0000_mask.png"))
    assert np.array_equal(mask[..., 0] == 255, batch.mask[0].numpy() > 0)
    names = {path.name[5:] for path in (out / "examples").glob("0004_*")}
    assert names == {f"{n}.png" for n in ("clean", "object", "corrupted", "mask", "change_x_4")}
    assert Image.open(out / "sheet.png").size == (5 * 68 - 4, 16 + 5 * 68 - 4)


def test_works_for_draem_and_for_the_sample_data(data, textures, tmp_path, monkeypatch):
    arguments = ["--data", data, "--textures", textures, "--size", "64,64", "--n", 2]
    assert call("draem", *arguments, "--out", tmp_path / "a") == 0
    assert {path.name[5:] for path in (tmp_path / "a/examples").glob("0001_*")} == {
        "clean.png", "corrupted.png", "mask.png", "change_x_4.png"}  # fmt: skip
    assert call("srdad", *arguments, "--anomaly", "draem", "--out", tmp_path / "b") == 0
    sheets = [np.asarray(Image.open(tmp_path / name / "sheet.png")) for name in "ab"]
    assert sheets[0].shape == sheets[1].shape
    monkeypatch.chdir(tmp_path)
    assert call("srdad", "--n", 1, "--out", tmp_path / "c") == 0
    assert json.loads((tmp_path / "c/statistics.json").read_text())["category"] == "fabric"


def test_no_weights_are_made(data, tmp_path, monkeypatch):
    """The paper preset of DRAEM has 97 million of them."""
    made = []
    monkeypatch.setattr(torch.nn.init, "normal_", lambda tensor, *_: made.append(tensor.device.type))
    flags = ["--ablation", "draem", "--anomaly", "natural", "--n", 1]
    assert call("srdad", *flags, "--data", data, "--out", tmp_path / "o") == 0 and set(made) == {"meta"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dream"], "unknown method dream; known: patchcore, draem, srdad"),
        ([], "a method must stand first"),
        (["srdad", "--n", "0"], "--n takes 1 or more; got 0"),
        (["srdad", "--patch-siz", "histogram"], "unknown option --patch-siz; known: --patch-size"),
        (["srdad", "--out", "DATA"], "--out DATA exists already"),
        (["srdad", "--data", "DATA/none"], "DATA/none"),
        (["srdad", "--rotation", "-10,10"], "--rotation: expected at least one argument (a value that begins with"),
        (["srdad", "--patch-size", "histogram"], "this method needs --defect-sizes FILE"),
        (["srdad", "--size", "200,64", "--window", "8"], "--size: a height of 200 does not fit"),
        (["--sizes-from", "DATA/part/test/none"], "DATA/part/test/none"),
        (["--sizes-from", "DATA/part/ground_truth", "--out", "DATA/part"], "--out DATA/part exists already"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refuses(arguments, words, data, tmp_path, capsys):
    arguments = [word.replace("DATA", str(data)) for word in arguments]
    base = {"--data": data, "--n": 1, "--out": tmp_path / "out"}
    if arguments and arguments[0] == "srdad":
        base |= dict(zip(SMALL[::2], SMALL[1::2]))
    before = sorted(tmp_path.rglob("*"))
    arguments += [word for key, value in base.items() if key not in arguments for word in (key, value)]
    assert call(*arguments) == 2
    error = capsys.readouterr().err
    assert words.replace("DATA", str(data)) in error and error.startswith("error: ") and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before, "something was written"


def test_counts_what_came_out_empty(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(anomalies, "SOURCE_SHARE", 1.1)
    assert call("srdad", "--data", data, "--n", 1, "--out", tmp_path / "out", *SMALL) == 2
    assert "came out empty: {'patches'" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_sizes_of_masks(tmp_path, capsys):
    """Boxes of 8-connected regions, as if the picture had 256 x 256 pixels; a test set's masks are warned of."""
    for folder, warned in (("masks", False), ("ground_truth", True)):
        (tmp_path / folder).mkdir()
        mask = np.zeros((64, 128), np.uint8)
        mask[3:8, 10:30] = 255
        mask[20, 20] = mask[21, 21] = 1  # joined at a corner
        Image.fromarray(mask).save(tmp_path / folder / "a_mask.png")
        out = tmp_path / f"{folder}.csv"
        assert call("--sizes-from", tmp_path / folder, "--out", out) == 0
        assert out.read_text() == "height,width,weight\n20,40,1\n8,4,1\n"
        assert ("leak the test set" in capsys.readouterr().err) == warned
    assert read_sizes(out)[0].tolist() == [[20, 40, 1], [8, 4, 1]]
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "masks/a_mask.png")
    assert call("--sizes-from", tmp_path / "masks", "--out", tmp_path / "none.csv") == 2
    assert "no pixel of 1 masks is above 0" in capsys.readouterr().err


@pytest.mark.slow
def test_sizes_of_defects_come_from_a_file(data, tmp_path, capsys):
    base = ["srdad", "--preset", "tiny", "--size", "64,64", "--data", data, "--epochs", 1, "--device", "cpu",
            "--patch-size", "histogram", "--out", tmp_path / "run"]  # fmt: skip

    def train(*words) -> int:
        return train_main(list(map(str, (*base, *words))))

    assert train() == 2 and "needs --defect-sizes FILE" in capsys.readouterr().err
    table = tmp_path / "sizes.csv"
    for text in ("", "1,2,3\n4,5,x", "1,2,-3", "1e308,1e308,1e308"):
        table.write_text(text)
        assert train("--defect-sizes", table) == 2
        assert f"{table}: expected rows of height,width,weight" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    table.write_text("\ufeffHeight, Width, Weight\n20, 30, 1\n\n8,8,2.5\n", encoding="utf-8")
    assert train("--defect-sizes", table) == 0
