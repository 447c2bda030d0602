"""The benchmark: which cells, what becomes of them, what the tables say; killed, it ends with the same ones."""

import csv
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SMALL, rows_of, write_category

from adref import benchmark
from adref.options import UserError
from adref.run import summary

# What all cells here share; of SMALL what a benchmark says by itself is left out.
FLAGS = [*SMALL[: SMALL.index("--device")], "--score-window", "5", "--checkpoint-steps", "1"]


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> list[Path]:
    """Two data sets with a category each, named as one of MVTec AD's and as none."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("bottle", "washer"):
        write_category(folder / name)
        (folder / name / "part").rename(folder / name / name)
    return [folder / "bottle", folder / "washer"]


def planned(roots, out, *words: str) -> list[tuple[str, tuple]]:
    """Name and arguments of every cell of a command line, without the data."""
    words = [*map(str, words)]
    end = words.index("--") if "--" in words else len(words)
    line = ["--data", *map(str, roots), "--out", str(out), *words[:end]]
    cells = benchmark.plan(benchmark.parse_arguments(line), words[end + 1 :])
    found = []
    for cell in cells:
        place = cell.argv.index("--data")
        assert Path(cell.argv[place + 1]) in roots
        found.append((str(cell.folder.relative_to(out)), (*cell.argv[:place], *cell.argv[place + 2 :])))
    return found


def test_cells(roots, tmp_path):
    found = planned(
        roots, tmp_path, "--methods", "draem", "noise_to_norm:tiny", "--seeds", 3, 1, "--ablations", "lambda-0"
    )
    names = [name for name, _ in found]
    variants = ["draem-paper", "noise_to_norm-tiny", "noise_to_norm-tiny-lambda-0"]
    assert names == [f"{v}/{c}/seed-{s}" for s in (3, 1) for c in ("bottle", "washer") for v in variants]
    assert dict(found)["noise_to_norm-tiny-lambda-0/washer/seed-1"] == (
        "noise_to_norm", "--category", "washer", "--seed", "1", "--preset", "tiny", "--ablation", "lambda-0",
    )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_all_methods_that_score(roots, tmp_path):
    found = planned(roots, tmp_path, "--preset", "tiny", "--categories", "washer")
    methods = ["draem", "srdad", "vit_autoencoder", "sernet", "noise_to_norm", "realnet"]
    assert [name for name, _ in found] == [f"{method}-tiny/washer/seed-0" for method in methods]


def test_a_flag_goes_to_the_methods_that_know_it(roots, tmp_path):
    words = ["--methods", "draem:tiny", "vit_autoencoder:tiny", "realnet:tiny", "--categories", "bottle", "--"]
    flags = ["--discriminator-width=4", "--heads", "2", "--size", "64,64", "--backbone-weights", "random"]
    found = dict(planned(roots, tmp_path, *words, *flags))
    ends = {name.split("-")[0]: argv[argv.index("tiny") + 1 :] for name, argv in found.items()}
    assert ends == {
        "draem": ("--discriminator-width", "4", "--size", "64,64"),
        "vit_autoencoder": ("--heads", "2", "--size", "64,64"),
        "realnet": ("--size", "64,64", "--backbone-weights", "random"),
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--data  --methods draem", "--data takes paths; got an empty name"),
        ("--methods draem:", "--methods: draem: names no preset"),
        ("--methods draem -- --textures /nowhere", "--textures: there is no /nowhere"),
        ("--out . --methods draem", "--out takes a folder of its own; got ."),
        ("--methods drem", "unknown method drem; known: draem, srdad"),
        ("--methods sdas", "--methods: sdas scores no images"),
        ("--methods draem:tony", "unknown --preset tony; known: paper, tiny"),
        ("--preset tiny-mobilenet --methods draem realnet", "unknown --preset tiny-mobilenet"),
        ("--methods draem --ablations rdr", "--ablations: none of the methods has rdr"),
        ("--categories nut", "--categories: there is no nut; known: bottle, washer"),
        ("--jobs 0", "--jobs takes a number above 0; got 0"),
        ("--threads -1", "--threads takes a number above 0; got -1"),
        ("--methods draem -- --heads 2", "unknown option --heads"),
        ("--methods draem -- --epochs 0.5", "--epochs takes a whole number; got '0.5'"),
        ("--methods draem -- --seed 3", "--seed stands before --"),
        ("--methods draem -- 5", "what follows -- are flags of adref.train; got '5'"),
        ("--methods draem -- --holdout 2", "--holdout takes 0 to 0.9; got 2"),
        ("--seeds x", "invalid int value"),
        ("--seeds 0 -3", "--seed takes 0 to"),
        ("--device tpu", "--device takes auto, cpu, cuda"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(words, said, roots, tmp_path, capsys):
    assert benchmark.main(["--data", *map(str, roots), "--out", str(tmp_path / "out"), *words.split(" ")]) == 2
    output = capsys.readouterr()
    assert said in output.err and output.err.startswith("error: ") and output.err.count("\n") == 1
    assert output.out == "" and not list(tmp_path.iterdir())


def test_two_data_sets_with_one_category(roots, tmp_path):
    with pytest.raises(UserError, match="both have a category bottle"):
        planned([roots[0], roots[0]], tmp_path)


def run(roots, out, *words: str, check: int = 0) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "adref.benchmark", "--data", *map(str, roots), "--out", str(out), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == check, done.stdout + done.stderr
    return done


METHODS = ["--methods", "draem:tiny", "vit_autoencoder:tiny"]


@pytest.fixture(scope="module")
def finished(roots, tmp_path_factory) -> Path:
    """Six cells of three methods; the third does not take pictures of this size."""
    out = tmp_path_factory.mktemp("benchmark") / "out"
    done = run(roots, out, *METHODS, "realnet:tiny", "--", *FLAGS, check=1)
    assert done.stderr.count("failed: realnet-tiny") == 2 and "--size takes multiples of 128" in done.stderr
    assert done.stdout.count("image AUROC") == 4 and "6/6, " in done.stdout
    return out


def test_a_failed_cell_is_shown_and_the_others_go_on(finished):
    rows = rows_of(finished / "cells.csv")
    assert [row["state"] for row in rows] == ["done"] * 2 + ["failed"] * 2 + ["done"] * 2
    assert all(row["reason"].startswith("--size takes multiples of 128") for row in rows[2:4])
    for row in rows[:2] + rows[4:]:
        folder = finished / row["variant"] / row["category"] / "seed-0"
        metrics = json.loads((folder / "run/evaluation/metrics.json").read_text())
        for name in summary.METRICS:
            assert row[name] == str(metrics.get(name, ""))
        assert row["checkpoint"] == "step 6, the last" and float(row["train_seconds"]) > 0
    text = (finished / "summary.md").read_text()
    assert "| failed |" in text and "failed: --size takes multiples of 128" in text
    assert "| realnet-tiny | bottle | 0 |" in text


def test_finished_cells_are_skipped_and_failed_ones_tried_again(finished, roots, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    words = ["--data", *map(str, roots), "--out", str(out), *METHODS]
    before = {path: path.stat().st_mtime for path in out.glob("*/*/*/run/checkpoint.pt")}
    assert benchmark.main([*words, "realnet:tiny", "--", *FLAGS]) == 1
    assert "6 cells, 6 of them ended before" in capsys.readouterr().out and not list(out.glob("*/*/*/claim.2"))
    assert benchmark.main([*words, "realnet:tiny", "--retry", "--", *FLAGS]) == 1
    assert "6 cells, 4 of them ended before" in capsys.readouterr().out
    assert len(list(out.glob("*/*/*/claim.2"))) == 2
    assert before == {path: path.stat().st_mtime for path in out.glob("*/*/*/run/checkpoint.pt")}
    assert benchmark.main([*words, "--", *FLAGS, "--epochs", "3"]) == 2
    said = capsys.readouterr().err
    assert "seed-0 was made with --epochs 2, now --epochs 3; give another --out" in said and said.count("\n") == 1
    # another order, and what a resumed run may be given anew
    assert benchmark.main([*words, "--", "--workers", "1", *FLAGS[2:], *FLAGS[:2], "--memory-limit", "1"]) == 0
    assert not list(out.glob("*/*/*/claim.3")) and "ended before" in capsys.readouterr().out
    assert (out / "summary.csv").read_text() == (finished / "summary.csv").read_text()


def numbers(out: Path) -> str:
    """What must not depend on anything: the table."""
    return (out / "summary.csv").read_text()


def rows_with(category: str, out: Path) -> list[str]:
    """The head of the table, and the rows of `METHODS` for a category."""
    head, *rows = numbers(out).splitlines()
    return [head, *(row for row in rows if f",{category}," in row and not row.startswith("realnet"))]


def test_killed_at_random_it_ends_with_the_same_table(finished, roots, tmp_path):
    out, rng = tmp_path / "out", random.Random(os.getpid())
    part = [*METHODS, "--categories", "bottle"]
    command = [sys.executable, "-m", "adref.benchmark", "--data", *map(str, roots), "--out", str(out), *part]
    for jobs in ("1", "2", "2"):
        words = [*command, "--jobs", jobs, "--", *FLAGS]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(words, start_new_session=True, **quiet)
        time.sleep(rng.uniform(1.5, 8))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    run(roots, out, *part, "--", *FLAGS)
    assert numbers(out).splitlines() == rows_with("bottle", finished)


def test_of_two_commands_each_cell_is_run_by_one(finished, roots, tmp_path):
    out = tmp_path / "out"
    words = ["--data", *map(str, roots), "--out", str(out), *METHODS, "--categories", "washer", "--", *FLAGS]
    both = [subprocess.Popen([sys.executable, "-m", "adref.benchmark", *words], stdout=subprocess.PIPE, text=True)
            for _ in range(2)]  # fmt: skip
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(text.count("image AUROC") for text in said) == 2
    assert len(list(out.glob("*/*/*/claim.*"))) == 2
    assert numbers(out).splitlines() == rows_with("washer", finished)


def test_an_interrupted_command_saves_and_goes_on(roots, tmp_path):
    out = tmp_path / "out"
    flags = [*FLAGS, "--epochs", "4000", "--workers", "2"]
    words = ["--methods", "draem:tiny", "--categories", "washer", "--", *flags]
    command = [sys.executable, "-m", "adref.benchmark", "--data", *map(str, roots), "--out", str(out), *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)  # fmt: skip
    log = out / "draem-tiny/washer/seed-0/run/metrics.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < 3:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does: it reaches data workers, too
    assert process.communicate(timeout=60)[1].endswith("interrupted\n") and process.returncode == 130
    assert "Interrupted and saved" in (out / "draem-tiny/washer/seed-0/log.txt").read_text()
    (row,) = rows_of(out / "cells.csv")
    assert (row["state"], row["reason"]) == ("open", "not finished")
    assert "| washer | open |" not in (out / "summary.md").read_text()  # no table of a metric that nobody has


def begun(folder: Path) -> benchmark.Cell:
    """A cell of which nothing was trained yet."""
    cell = benchmark.Cell(folder / "v/c/seed-0", ("draem", "--data", "a", "--seed", "0", "--epochs", "2"))
    benchmark.begin(cell, retry=False)
    return cell


def test_new_flags_for_a_cell_that_was_never_trained(tmp_path):
    cell = begun(tmp_path)
    benchmark.failed(cell, "no such file")
    benchmark.begin(cell, retry=False)
    assert cell.result.exists()
    other = cell._replace(argv=(*cell.argv[:-1], "3"))
    benchmark.begin(other, retry=False)
    assert not cell.result.exists() and json.loads((cell.folder / "cell.json").read_text())["argv"][-1] == "3"
    (cell.folder / "run").mkdir()
    with pytest.raises(UserError, match="was made with --epochs 3, now --epochs 2; give another --out"):
        benchmark.begin(cell, retry=True)


def test_a_cell_goes_on_with_what_may_change():
    argv = ("draem", "--data", "there", "--category", "c", "--workers", "3", "--epochs", "2", "--textures", "T")
    assert benchmark.resumed(argv) == ["--resume", "--data", "there", "--workers", "3", "--textures", "T"]
    assert benchmark.meaning(argv) == {"category": ["c"], "epochs": ["2"]}


def test_a_damaged_checkpoint_is_given_up_on_retry(tmp_path):
    cell = begun(tmp_path)
    benchmark.failed(cell, "damaged")
    (cell.folder / "run").mkdir()
    (cell.folder / "run/checkpoint.pt").write_text("x")
    benchmark.begin(cell, retry=False)
    assert cell.result.exists() and (cell.folder / "run").exists()
    benchmark.begin(cell, retry=True)
    assert not cell.result.exists() and not (cell.folder / "run").exists()


@pytest.mark.parametrize("name", ["result.json", "cell.json"])
@pytest.mark.parametrize("text", ["", "{", "[1]", "{}"])
def test_a_damaged_file_is_named(name, text, finished, roots, tmp_path, capsys):
    shutil.copytree(finished / "draem-tiny", tmp_path / "out/draem-tiny")
    path = tmp_path / "out/draem-tiny/washer/seed-0" / name
    path.write_text(text)
    words = ["--data", *map(str, roots), "--out", str(tmp_path / "out"), *METHODS[:2], "--", *FLAGS]
    assert benchmark.main(words) == 2
    said = capsys.readouterr().err
    assert f"{path} is damaged (" in said and said.endswith("delete it, and run the command again\n")
    assert said.count("\n") == 1


def test_somebodys_copies_are_no_cells_and_damaged_runs_stop_nothing(finished, roots, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(finished / "draem-tiny", out / "draem-tiny")
    shutil.copytree(out / "draem-tiny/washer/seed-0", out / "draem-tiny/washer/seed-0-old")
    (out / "draem-tiny/bottle/seed-0/run/config.json").write_text("{")
    words = ["--data", *map(str, roots), "--out", str(out), *METHODS[:2], "--", *FLAGS]
    assert benchmark.main(words) == 0
    assert "note: left out: " in capsys.readouterr().err and len(rows_of(out / "cells.csv")) == 2


# -- tables -----------------------------------------------------------------------------------------------------------


def cell(method, category, seed, value, preset="paper", ablation=None, state="done") -> dict:
    variant = "-".join(filter(None, (method, preset, ablation)))
    row = {"variant": variant, "method": method, "preset": preset, "ablation": ablation, "category": category,
           "seed": seed, "state": state, "reason": None}  # fmt: skip
    row |= dict.fromkeys(summary.METRICS) | dict.fromkeys(("checkpoint", "train_seconds", "device", "machine", "torch"))
    return row | {"image_auroc": value}


def entry(method, category, value, dataset="BTAD", preset="paper", ablation="") -> dict:
    return {"method": method, "ablation": ablation, "preset": preset, "dataset": dataset, "category": category,
            "metric": "image_auroc", "value": value, "source": f"table of {dataset}"}  # fmt: skip


PUBLISHED = [
    *(entry("realnet", f"0{i}", 0.9 + i / 100) for i in (1, 2, 3)), entry("realnet", "mean", 0.92),
    entry("realnet", "mean", 0.8, "MPDD"), entry("realnet", "tubes", 0.7, "MPDD"),
    entry("realnet", "01", 0.5, preset="half"), entry("realnet", "01", 0.4, ablation="b"),
]  # fmt: skip


def lines_of(rows) -> dict[tuple, dict]:
    published = {}
    for one in PUBLISHED:
        key = one["method"], one["ablation"] or None, one["category"], one["metric"]
        published.setdefault(key, []).append(one)
    found = summary.aggregate(rows, published)
    return {(one["variant"], one["category"]): one for one in found if one["metric"] == "image_auroc"}


def test_means_deviations_and_gaps():
    values = {"01": (0.9, 0.8, 0.7), "02": (0.6, 0.9, 0.9), "03": (1.0, 0.5, None)}
    rows = [cell("realnet", name, seed, value, state="done" if value else "failed")
            for name, three in values.items() for seed, value in enumerate(three)]  # fmt: skip
    lines = lines_of(rows)
    one = lines["realnet-paper", "01"]
    assert one["mean"] == pytest.approx(0.8) and one["deviation"] == pytest.approx(0.1) and one["seeds"] == 3
    assert one["published"] == 0.91 and one["gap"] == pytest.approx(-0.11) and one["source"] == "table of BTAD"
    whole = lines["realnet-paper", "mean"]  # of the two seeds that have all categories
    means = [(0.9 + 0.6 + 1.0) / 3, (0.8 + 0.9 + 0.5) / 3]
    assert whole["mean"] == pytest.approx(statistics.fmean(means)) and whole["seeds"] == 2
    assert whole["deviation"] == pytest.approx(abs(means[0] - means[1]) / 2**0.5)
    assert whole["published"] == 0.92 and whole["data set"] == "BTAD"
    table = summary.grid(rows, summary.aggregate(rows, {}), "image_auroc")
    assert table == [["category", "realnet-paper"], ["01", "0.800 ± 0.100 (3)"], ["02", "0.800 ± 0.173 (3)"],
                     ["03", "0.750 ± 0.354 (2), 1 missing"], ["mean", "0.783 ± 0.071 (2)"]]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "published"),
    [
        ({}, 0.91),
        ({"preset": "half"}, 0.5),
        ({"preset": "tiny"}, 0.91),
        ({"ablation": "b"}, 0.4),
        ({"ablation": "c"}, None),
    ],
)
def test_which_published_number(changes, published):
    rows = [cell("realnet", name, 0, 0.6, **changes) for name in ("01", "02")]
    lines = lines_of(rows)
    (first, _, mean) = lines.values()
    assert first["published"] == published
    assert first["gap"] == (None if published is None else pytest.approx(0.6 - published))
    assert mean["mean"] == pytest.approx(0.6) and mean["published"] is None  # two of three categories are no data set
    text = summary.markdown(rows, list(lines.values()))
    assert ("[0." in text) == (published is not None)


def test_a_metric_that_a_category_cannot_have():
    rows = [cell("draem", "plain", 0, None), cell("draem", "masked", 0, 0.5)]
    lines = summary.aggregate(rows, {})
    table = summary.grid(rows, lines, "image_auroc")
    assert table == [["category", "draem-paper"], ["plain", "n/a"], ["masked", "0.500"], ["mean", "0.500"]]
    rows[0]["state"] = "failed"  # it could have had it
    table = summary.grid(rows, summary.aggregate(rows, {}), "image_auroc")
    assert [cells[1] for cells in table[1:]] == ["failed", "0.500", "n/a"]
    assert summary.grid(rows, lines, "pixel_auroc") == []


def test_the_real_published_numbers_are_found():
    published = summary.read_published()
    assert published["realnet", None, "bottle", "image_auroc"][0]["value"] == 1.0
    with open(Path(summary.__file__).parent.with_name("published.csv"), newline="") as file:
        count = sum(1 for _ in csv.DictReader(file))
    assert sum(map(len, published.values())) == count
    # a category's name says which data set is meant: no method has one name in two of them
    for key, found in published.items():
        assert key[2] == "mean" or len({one["dataset"] for one in found}) == 1, key
