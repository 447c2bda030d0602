"""python -m adref.study: its files, the names of runs, mistakes at the keyboard; what it does whatever the study is."""

import base64
import importlib
import io
import json
import re
import shutil

import numpy as np
import pytest
from conftest import rows_of
from PIL import Image

from adref.studies import Figure, Result, column, tiny
from adref.study import NAMES, main, text_table


def call(*words) -> int:
    return main([*map(str, words), *(() if "--device" in words else ("--device", "cpu"))])


def read_json(path):
    """JSON without NaN and Infinity, which no standard knows."""

    def refuse(word):
        raise AssertionError(f"{path} holds {word}")

    return json.loads(path.read_text(), parse_constant=refuse)


def pictures(page: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in found]


def result(**changes) -> Result:
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    rows = [{"run": "a", "a_number": 0.123456, "none": None, "nan": float("nan")}]
    fields = {"settings": {"n": 3}, "rows": rows, "notes": ["a note"],
              "figures": {"Seen": [Figure("a caption", picture)]}, "charts": {}}  # fmt: skip
    return Result(**{**fields, **changes})


# -- what is written --------------------------------------------------------------------------------------------------


def test_writes_three_files_that_say_the_same(small_run, tmp_path, capsys):
    out = tmp_path / "deep/out"
    assert call("tiny", small_run, "--out", out, "--sizes", "1,4") == 0
    assert {path.name for path in out.iterdir()} == {"study.json", "rows.csv", "index.html"}
    assert {path.name for path in out.parent.iterdir()} == {"out"}
    told, rows = read_json(out / "study.json"), rows_of(out / "rows.csv")
    assert told["study"] == "tiny" and told["runs"] == {"run": str(small_run.resolve())}
    assert told["settings"] == {"sizes": [1, 4], "colour": "black"} and told["torch"] and told["notes"]
    assert [row["block"] for row in told["rows"]] == [0, 1, 4] and all(row["run"] == "run" for row in told["rows"])
    assert [{key: str(value) for key, value in row.items()} for row in told["rows"]] == rows
    printed = capsys.readouterr().out
    page = (out / "index.html").read_text()
    for row in told["rows"]:
        assert all(f"<td>{value:.4g}</td>" in page for value in row.values() if isinstance(value, float))
        assert f"{row['highest_near']:.4g}" in printed
    for note in told["notes"]:
        assert note in printed
    assert str((out / "index.html").resolve()) in printed
    assert "clean quantile" in page and "<h1>tiny: run</h1>" in page


def test_the_page_opens_from_disk_with_pictures_that_show_something(small_run, tmp_path):
    assert call("tiny", small_run, "--out", tmp_path / "out", "--sizes", "4") == 0
    page = (tmp_path / "out/index.html").read_text()
    found = pictures(page)
    assert len(found) == page.count("<img") == page.count("<figcaption>") == 2
    assert all(picture.ndim == 3 and picture.std() > 5 for picture in found)
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page) and "@import" not in page


@pytest.mark.parametrize("name", NAMES)
def test_every_study_has_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"adref.study {name}" in text and "--seed" in text
    first = importlib.import_module(f"adref.studies.{name}").__doc__.splitlines()[0]
    assert first in text


def test_help_of_the_command_names_all_studies(capsys):
    with pytest.raises(SystemExit):
        main(["-h"])
    assert all(re.search(rf"^{name} ", text, re.M) for text in [capsys.readouterr().out] for name in NAMES)


def test_numbers_that_are_none_and_text_that_is_no_markup(small_run, tmp_path, monkeypatch, capsys):
    evil = "<script>1</script>"
    made = result(rows=[{"run": evil, "nan": float("nan"), "none": None, "infinite": float("inf")}], notes=[evil],
                  figures={evil: [Figure(evil, np.zeros((2, 2, 3), np.uint8))]}, settings={evil: evil},
                  charts={evil + "2": "<svg></svg>"})  # fmt: skip
    monkeypatch.setattr(tiny, "study", lambda runs, arguments: made)
    assert call("tiny", small_run, "--out", tmp_path / "out") == 0
    assert read_json(tmp_path / "out/study.json")["rows"] == [
        {"run": evil, "nan": None, "none": None, "infinite": None}
    ]
    page = (tmp_path / "out/index.html").read_text()
    assert evil not in page and page.count("<script") == 2 and "<svg></svg>" in page and "<td>n/a</td>" in page
    assert rows_of(tmp_path / "out/rows.csv")[0]["none"] == "" and "n/a" in capsys.readouterr().out


def test_a_study_without_rows_and_pictures(small_run, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "study", lambda runs, arguments: result(rows=[], figures={}))
    assert call("tiny", small_run, "--out", tmp_path / "out") == 0
    assert (
        read_json(tmp_path / "out/study.json")["rows"] == [] and "<img" not in (tmp_path / "out/index.html").read_text()
    )


def test_a_run_may_be_called_like_a_part_of_the_page(small_run, tmp_path):
    for name in ("Numbers", "torch"):
        shutil.copytree(small_run, tmp_path / name)
    assert call("tiny", tmp_path / "Numbers", tmp_path / "torch", "--out", tmp_path / "out", "--sizes", 1) == 0
    page = (tmp_path / "out/index.html").read_text()
    assert page.count("<img") == 4 and "clean quantile" in page and str(tmp_path / "torch") in page
    assert "<h2>Pictures of Numbers</h2>" in page


def test_a_table_for_a_terminal():
    rows = [{"run": "a", "value": 0.5}, {"run": "longer", "value": None}, {"run": "b", "value": 12}]
    assert text_table(rows).splitlines() == ["   run  value", "     a    0.5", "longer    n/a", "     b     12"]
    assert text_table([]) == ""


def test_a_column_of_pictures():
    """By hand: enlarged pixels stay squares, what shrinks is averaged, and white lies between."""
    small = np.array([[[0, 0, 0], [80, 80, 80]]], np.uint8)  # 1 x 2
    large = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    got = column([small, large], 4)
    assert got.dtype == np.uint8 and got.shape == (2 + 4 + 4, 4, 3)
    assert got[:2, :2].max() == 0 and (got[:2, 2:] == 80).all() and (got[2:6] == 255).all()
    means = large.reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
    assert np.abs(got[6:] - means).max() <= 0.5
    assert np.array_equal(column([large], 8), large)


# -- runs -------------------------------------------------------------------------------------------------------------


def test_names_of_runs_differ(small_run, tmp_path, monkeypatch):
    """Folders are called by their last name, by the whole path where that is not enough."""
    seen = []
    monkeypatch.setattr(tiny, "study", lambda runs, arguments: seen.append(runs) or result())
    for folder in ("a/same", "b/same", "other"):
        shutil.copytree(small_run, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    assert call("tiny", "a/same", "b/same", "other", "--out", "out") == 0
    assert [run.name for run in seen[0]] == ["a/same", "b/same", "other"]
    assert list(read_json(tmp_path / "out/study.json")["runs"]) == ["a/same", "b/same", "other"]
    first = seen[0][0]
    assert not first.method.training and first.config["method"] == "draem" and first.device.type == "cpu"
    assert first.category is seen[0][2].category and len(first.category.test) == 6


def test_data_that_moved(small_run, tmp_path, capsys):
    shutil.copytree(small_run, tmp_path / "run")
    shutil.copytree(small_run.parent / "data", tmp_path / "moved")
    config = json.loads((tmp_path / "run/config.json").read_text())
    config["flags"]["data"] = str(tmp_path / "gone")
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    words = ["tiny", tmp_path / "run", "--sizes", "1", "--out", tmp_path / "out"]
    assert call(*words) == 2 and "--data takes where it is now" in capsys.readouterr().err
    assert call(*words, "--data", tmp_path / "moved") == 0
    assert call("tiny", small_run, "--sizes", "1", "--out", tmp_path / "there") == 0
    assert rows_of(tmp_path / "out/rows.csv") == rows_of(tmp_path / "there/rows.csv")


# -- mistakes ---------------------------------------------------------------------------------------------------------

MISTAKES = [
    ([], "the first word names the study, one of: tiny, robustness, "),
    (["tine", "RUN"], "the first word names the study, one of: tiny, robustness, "),
    (["RUN", "tiny"], "the first word names the study"),
    (["tiny"], "the following arguments are required: RUN"),
    (["tiny", "RUN", "RUN"], "the same RUN is named twice"),
    (["tiny", "DATA"], "DATA is no run directory: it has no config.json"),
    (["tiny", "RUN", "DATA/none"], "DATA/none is no run directory"),
    (["tiny", "RUN", "--seed", "-1"], "--seed takes 0 to 2^63 - 1; got -1"),
    (["tiny", "RUN", "--seed", "one"], "argument --seed: invalid int value: 'one'"),
    (["tiny", "RUN", "--device", "tpu"], "--device takes auto, cpu, cuda or cuda:N"),
    (["tiny", "RUN", "--data", "DATA/none"], "the data set DATA/none is not there; --data takes where it is now"),
    (["tiny", "RUN", "--data", "EMPTY"], "EMPTY: an empty folder"),
    (["tiny", "RUN", "--limit", "3"], "unrecognized arguments: --limit 3"),
    (["tiny", "RUN", "--size", "3"], "unrecognized arguments: --size 3"),
    (["tiny", "RUN", "--out", "DATA"], "--out DATA exists already; give another name"),
    (["tiny", "RUN", "--out", "RUN/config.json"], "exists already"),
    (["tiny", "RUN", "--out", "RUN/config.json/out"], "Not a directory"),
    (["tiny", "RUN", "--colour", "blue"], "argument --colour: invalid choice: 'blue'"),
    (["tiny", "RUN", "--sizes", "0,1"], "--sizes takes 1 to 34, as run has it; got 0,1"),
    (["tiny", "RUN", "--sizes", "35"], "--sizes takes 1 to 34, as run has it; got 35"),
    (["tiny", "RUN", "--sizes", "a"], "--sizes takes a whole number; got 'a'"),
    (["tiny", "RUN", "--sizes", ""], "--sizes takes a whole number; got ''"),
    (["robustness", "RUN", "--limit", "1"], "--limit takes 2 or more, one of each kind of test picture; got 1"),
    (["reconstruction", "RUN", "--n", "0"], "--n takes 1 or more; got 0"),
    (["reconstruction", "RUN", "--anomaly-from", "x"], "--anomaly-from takes the name of a run, one of: run; got x"),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_refuses_in_one_sentence_and_writes_nothing(arguments, words, small_run, data, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    places = {"RUN": str(small_run), "DATA": str(data), "EMPTY": str(tmp_path / "empty")}

    def fill(text: str) -> str:
        return re.sub(r"\b(RUN|DATA|EMPTY)(?=[/ :;]|$)", lambda match: places[match[1]], text)

    given = [fill(word) for word in arguments]
    given += ["--out", str(tmp_path / "out")] if arguments and "--out" not in arguments else []
    before = [sorted(folder.rglob("*")) for folder in (tmp_path, small_run)]
    assert call(*given) == 2
    told = capsys.readouterr()
    assert (words if "RUN" in words else fill(words)) in told.err
    assert told.err.startswith("error: ") and told.err.count("\n") == 1 and told.out == ""
    assert [sorted(folder.rglob("*")) for folder in (tmp_path, small_run)] == before


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, OSError(28, "No space left on device"), RuntimeError("a mistake")]
)
def test_a_study_that_fails_leaves_nothing(error, small_run, tmp_path, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr("adref.study.write_page", fail)  # the last of the three files
    words = ["tiny", small_run, "--sizes", "1", "--out", tmp_path / "out"]
    if isinstance(error, RuntimeError):
        with pytest.raises(RuntimeError):
            call(*words)
    else:
        assert call(*words) == (2 if isinstance(error, OSError) else 130)
    assert list(tmp_path.iterdir()) == []
