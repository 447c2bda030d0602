"""Tiled scoring: a scorer that depends on surroundings alone is not changed; DRAEM nearly; the others refuse."""

import argparse
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import rows_of
from torch import nn

from adref import evaluate, predict
from adref.method import Context, Evaluation, Method
from adref.methods import METHODS
from adref.methods.draem import DRAEM
from adref.methods.draem import Options as DRAEMOptions
from adref.options import UserError
from adref.run.tiles import Tiling, score_tiled, starts, tiled, tiling_of, weights


class Local(Method):
    """Three convolutions and a pooling: what is more than 8 pixels away changes nothing."""

    Options, evaluation = DRAEMOptions, Evaluation(tile_unit=4)

    def __init__(self):
        super().__init__(DRAEMOptions())
        torch.manual_seed(0)
        self.network = nn.Sequential(
            nn.Conv2d(3, 4, 5, padding=2), nn.MaxPool2d(4), nn.Upsample(scale_factor=4), nn.Conv2d(4, 1, 7, padding=3)
        )  # fmt: skip

    def anomaly_map(self, images, context=Context()):
        return self.network(images)


@pytest.mark.parametrize(
    ("size", "tile", "overlap"), [((96, 64), (32, 64), 20), ((100, 76), (32, 40), 24), ((64, 64), (64, 64), 20),
                                  ((60, 88), (128, 48), 20)], ids=str)  # fmt: skip
def test_tiles_are_the_whole_where_surroundings_decide(size, tile, overlap):
    method, images = Local(), torch.rand(2, 3, *size)
    with torch.inference_mode():
        scores, whole = method.score(images)
        again, maps = score_tiled(method, images, Context(), Tiling(None, tile, overlap, 4))
        assert torch.allclose(maps, whole, atol=1e-6) and torch.allclose(again, scores, atol=1e-6)
        # too little overlap: pixels near the seams see the edge of their tile
        apart = (score_tiled(method, images, Context(), Tiling(None, tile, 8, 4))[1] - whole).abs().amax((0, 1))
    assert (apart.max() > 1e-4) == (size[0] > tile[0] or size[1] > tile[1])
    inside = [length if length <= side else side - 8 for length, side in zip(size, tile)]  # 8: an overlap, and a reach
    assert apart[: inside[0] - 8, : inside[1] - 8].max() < 1e-6


def test_where_tiles_begin_and_what_their_pixels_weigh():
    assert starts(100, 40, 10) == [0, 30, 60] and starts(101, 40, 10) == [0, 30, 60, 61] and starts(30, 40, 10) == [0]
    assert starts(40, 40, 10) == [0]
    ramp = weights(30, 100, 40, 10, 4)  # an overlap of 10: 3 given up, a ramp of 4, 3 whole
    assert ramp[:3].eq(0).all() and ramp[3:7].tolist() == [0.125, 0.375, 0.625, 0.875] and ramp[7:33].eq(1).all()
    assert torch.equal(ramp, ramp.flip(0))
    left, right = weights(0, 70, 40, 10, 4), weights(30, 70, 40, 10, 4)
    assert left[:30].eq(1).all() and torch.equal(left[30:] + right[:10], torch.ones(10))  # they add up to one
    assert right[-1] == 1  # the picture's own edge


def test_a_constant_stays_and_channels_too():
    images = torch.rand(1, 3, 50, 70)
    assert torch.allclose(tiled(lambda x: x, images, (24, 16), 8, 4), images, atol=1e-6)


@pytest.mark.parametrize("aligned", [True, False])
def test_of_draem_aligned_corners_alone_stand_between_tiles_and_the_whole(aligned):
    """Its U-Nets enlarge so that the corners of a picture stay where they are: where a pixel comes from depends on the
    size of the picture, by up to a pixel of the level. Nothing else depends on more than 269 pixels each way."""
    torch.manual_seed(0)
    method = DRAEM(DRAEMOptions(size=(64, 64), reconstruction_width=2, discriminator_width=2)).double()
    for module in method.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # so that one picture gives every level its statistics
        if isinstance(module, nn.Upsample):
            module.align_corners = aligned
    y, x = torch.arange(1536.0)[:, None], torch.arange(32.0)
    waves = [0.25 * torch.sin(y / scale + x / 7) + 0.5 for scale in (23, 57, 190)]
    images = (torch.stack(waves)[None] + 0.2 * torch.rand(1, 3, 1536, 32)).double()
    with torch.inference_mode():
        method.train()(images)
        whole = method.eval().anomaly_map(images)
        apart = (tiled(method.anomaly_map, images, (1152, 32), 768, 32) - whole).abs()
    assert apart.mean() > 0.1 * whole.std() if aligned else apart.max() < 1e-6


def test_draem_alone_can_be_tiled():
    scorers = {name: method for name, method in METHODS.items() if issubclass(method, Method)}
    assert [name for name, method in scorers.items() if method.evaluation.tile_unit] == ["draem"]
    for flag in ("size", "tile"):
        given = argparse.Namespace(**{"size": None, "tile": None, "overlap": None, flag: (64, 64)})
        with pytest.raises(UserError, match=f"--{flag}: SRDAD has to see the whole image"):
            tiling_of(given, object.__new__(scorers["srdad"]))


def test_commands_score_in_tiles_at_another_size(small_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    flags = ["--size", "128,160", "--tile", "64,64", "--device", "cpu"]
    assert evaluate.main([str(run), *flags]) == 0
    metrics = json.loads((run / "evaluation/metrics.json").read_text())
    assert (metrics["size"], metrics["tile"], metrics["overlap"]) == ([128, 160], [64, 64], 32)
    report = (run / "report.html").read_text()
    assert "128 x 160 (height x width), in tiles of 64 x 64 that share 32" in report
    assert "set on whole images at the run" in report and "note: the threshold" in capsys.readouterr().err
    pictures = small_run.parent / "data/part/test/spot"
    assert predict.main([str(run), str(pictures), "--out", str(tmp_path / "a"), *flags]) == 0
    own = {row["path"].split("/")[-1]: float(row["score"]) for row in rows_of(run / "evaluation/scores.csv")}
    for row in rows_of(tmp_path / "a/scores.csv"):
        assert float(row["score"]) == pytest.approx(own[row["path"].split("/")[-1]], rel=1e-6)
    assert np.load(tmp_path / "a/maps/000.png.npy").shape == (40, 48)


@pytest.mark.parametrize(
    ("flags", "words"),
    [(["--tile", "60,64"], "--tile takes height,width, multiples of 32 from 64 on; got 60,64"),
     (["--size", "0,64"], "--size takes height,width, multiples of 32 from 32 on; got 0,64"),
     (["--tile", "64,32"], "--tile takes height,width, multiples of 32 from 64 on; got 64,32"),
     (["--overlap", "32"], "--overlap needs --tile"),
     (["--tile", "64,64", "--overlap", "64"], "--overlap takes multiples of 32 below the sides of a tile; got 64")],
    ids=str,
)  # fmt: skip
def test_refusals(flags, words, small_run, tmp_path, capsys):
    assert predict.main([str(small_run), str(small_run), "--out", str(tmp_path / "a"), *flags]) == 2
    assert words in capsys.readouterr().err
    assert predict.main([str(small_run), "x", "--out", "-", "--tile", "64"]) == 2
    assert "argument --tile: invalid sides value: '64'" in capsys.readouterr().err
