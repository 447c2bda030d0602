"""python -m adref.synthesize RUN: drawing goes on where it was stopped; what does not fit is refused."""

import pytest
from conftest import write_category
from PIL import Image

from adref import synthesize as sampling
from adref.evaluate import main as evaluate
from adref.methods.sdas.method import SDAS
from adref.methods.sdas.options import Options
from adref.predict import main as predict
from adref.synthesize import main as synthesize
from adref.train import main as train

FLAGS = ["--size", "8,8", "--width", "8", "--groups", "4", "--multipliers", "1", "--blocks", "1", "--head-width", "8",
         "--attention-factors", "1", "--batch-size", "4", "--accumulation", "1", "--steps", "0", "--workers", "0",
         "--device", "cpu"]  # fmt: skip


def call(command, *words) -> int:
    return command(list(map(str, words)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An untrained diffusion model of the categories "other" and "part"."""
    root = tmp_path_factory.mktemp("sampling")
    (write_category(root / "data") / "part").rename(root / "data/other")
    data = write_category(root / "data")
    assert call(train, "sdas", "--data", data, "--category", "part", "other", "--out", root / "run", *FLAGS) == 0
    return root / "run"


def test_drawing_goes_on_and_writes_no_file_twice(run, tmp_path, capsys, monkeypatch):
    out, draw, calls = tmp_path / "drawn", SDAS.sample_images, []

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(sampling, "BATCH", 3)
    monkeypatch.setattr(SDAS, "sample_images", stopped)
    assert call(synthesize, run, "--n", 2, "--out", out) == 130
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert call(synthesize, run, "--n", 3, "--out", out) == 0
    assert len(before) == 3 and "3 images drawn, 3 were there already" in capsys.readouterr().out
    assert before.items() <= {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}.items()
    names = [f"{name}/00000{i}.png" for name in ("other", "part") for i in range(3)]
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png")) == names
    with Image.open(out / names[-1]) as file:
        assert (file.size, file.mode) == ((8, 8), "RGB")
        assert 0.1 <= float(file.text["Comment"].removeprefix("strength ")) <= 0.2


def test_refuses_other_settings_folders_and_commands(run, small_run, tmp_path, capsys):
    assert call(synthesize, run, "--n", 1, "--category", "part", "--out", tmp_path / "drawn") == 0
    for name, text in (("foreign/a.txt", "a"), ("damaged/settings.json", "{")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    before = sorted(tmp_path.rglob("*"))
    data, new = run.parent / "data", ("--out", tmp_path / "new")
    for sentence, command, *words in (
        ("with --strength [0.1, 0.2], now [0.3]", synthesize, run, "--out", tmp_path / "drawn", "--strength", 0.3),
        ("foreign exists already; give another name", synthesize, run, "--out", tmp_path / "foreign"),
        ("settings.json cannot be read", synthesize, run, "--out", tmp_path / "damaged"),
        ("--n takes 1 or more", synthesize, run, *new, "--n", 0),
        ("draws other, part; got none", synthesize, run, *new, "--category", "none"),
        ("--classifier-steps", synthesize, run, *new, "--guidance-scale", 1),
        ("unknown option --strenght; known: --strength", synthesize, run, *new, "--strenght", 0.3),
        ("DRAEM, which draws no images", synthesize, small_run, *new),
        ("sdas, which scores no images", evaluate, run),
        ("sdas, which scores no images", predict, run, data / "part/test/good", *new),
        ("learns one category, got other, part", train, "draem", "--data", data, "--category", "other,part", *new),
    ):
        assert call(command, *words) == 2
        error = capsys.readouterr().err
        assert sentence in error and error.startswith("error: ") and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_strengths_are_drawn_for_each_image_or_batch():
    drawn = [sampling.draw_strength(Options(), 0, "a", i) for i in range(64)]
    assert len(set(drawn)) == 64 and 0.1 <= min(drawn) < 0.11 and 0.19 < max(drawn) <= 0.2
    drawn = [sampling.draw_strength(Options(strength_per="batch"), 0, "a", i) for i in range(64)]
    assert len(set(drawn)) == 4 and len(set(drawn[:16])) == 1
    assert sampling.draw_strength(Options(strength=(0.3,)), 0, "a", 5) == 0.3
