"""Benchmark: the cells of a command line, means and published numbers, resuming, sharing with other processes."""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SMALL, write_category

from adref import benchmark
from adref.options import UserError
from adref.run import summary

FLAGS = ["--", *SMALL[: SMALL.index("--device")], "--score-window", "5", "--checkpoint-steps", "1"]


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> list[str]:
    """Two data sets of one category each; "bottle" is one of MVTec AD's."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("bottle", "washer"):
        write_category(folder / name)
        (folder / name / "part").rename(folder / name / name)
    return [str(folder / "bottle"), str(folder / "washer")]


def make_cells(roots, out, words: str, flags: str = "") -> dict[str, list[str]]:
    """Returns the arguments of each cell by its folder, without the data."""
    arguments = benchmark.parse_arguments(["--data", *roots, "--out", str(out), *words.split()])
    cells = benchmark.make_cells(arguments, benchmark.group_flags(flags.split()))
    return {str(cell.run.relative_to(out)): [*cell.argv[:1], *cell.argv[3:]] for cell in cells}


def test_cells_and_shards(roots, tmp_path):
    words = "--methods draem noise_to_norm:tiny --seeds 3 1 --ablations lambda-0"
    found = make_cells(roots, tmp_path, words)
    variants = ["draem-paper", "noise_to_norm-tiny", "noise_to_norm-tiny-lambda-0"]
    assert list(found) == [f"{v}/{c}/seed-{s}" for s in (3, 1) for c in ("bottle", "washer") for v in variants]
    argv = found["noise_to_norm-tiny-lambda-0/washer/seed-1"]
    assert " ".join(argv) == "noise_to_norm --category=washer --seed 1 --preset tiny --ablation lambda-0"
    shards = [list(make_cells(roots, tmp_path, f"{words} --shard {i}/5")) for i in (1, 2, 3, 4, 5)]
    assert sorted(name for part in shards for name in part) == sorted(found)
    assert [len(part) for part in shards] == [3, 3, 2, 2, 2]
    assert not list(tmp_path.iterdir())


def test_each_method_that_scores_gets_the_flags_that_it_has(roots, tmp_path):
    flags = "--texture-weight=0.5,1 --memory-items 4 --size 128,128 --backbone-weights random"
    found = make_cells(roots, tmp_path, "--preset tiny --categories washer", flags)
    ends = {argv[0]: argv[argv.index("tiny") + 1 :] for argv in found.values()}
    assert list(ends) == ["patchcore", "draem", "srdad", "vit_autoencoder", "sernet", "noise_to_norm", "realnet"]
    assert ends["draem"] == ["--texture-weight", "0.5,1", "--size", "128,128"]
    assert ends["vit_autoencoder"] == ["--memory-items", "4", "--size", "128,128"]
    assert ends["realnet"] == ["--size", "128,128", "--backbone-weights", "random"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--methods drem", "unknown method drem"),
        ("--methods sdas", "scores no images"),
        ("--methods draem:tony", "unknown --preset tony"),
        ("--methods draem --ablations rdr", "no method has rdr"),
        ("--categories nut", "there is no nut; known: bottle, washer"),
        ("--shard 4/3", "invalid shard value"),
        ("--methods draem -- --memory-items 4", "unknown option --memory-items"),
        ("--methods draem -- --epochs 0.5", "--epochs takes a whole number"),
        ("--methods draem -- --seed 3", "--seed cannot stand after --"),
        ("--methods draem -- 5", "got '5'"),
        ("--methods draem --seeds -3", "--seed takes 0 to"),
    ],
)
def test_mistakes_are_found_before_any_work(words, message, roots, tmp_path, capsys):
    assert benchmark.main(["--data", *roots, "--out", str(tmp_path / "out"), *words.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_two_data_sets_with_one_category(roots, tmp_path):
    with pytest.raises(UserError, match="both have a category bottle"):
        make_cells([roots[0], roots[0]], tmp_path, "--methods draem")


def test_only_a_finished_run_has_metrics(small_run, tmp_path):
    (tmp_path / "evaluation").mkdir()
    shutil.copy(small_run / "config.json", tmp_path)
    assert summary.read_metrics(tmp_path) is None
    for text, found in (('{"finished": false}', False), ('{"finished": true}', True), ('{"finished": tr', False)):
        (tmp_path / "evaluation/metrics.json").write_text(text)
        assert (summary.read_metrics(tmp_path) is not None) == found
    (tmp_path / "config.json").write_text("{}")  # a damaged cell does not cost the tables
    assert summary.read_metrics(tmp_path) is None


def start(roots, out, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "adref.benchmark", "--data", *roots, "--out", str(out), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.fixture(scope="module")
def finished(roots, tmp_path_factory) -> tuple[Path, list[str]]:
    """A benchmark of DRAEM and RealNet on two categories; RealNet takes no images of this size. And its words."""
    out, words = tmp_path_factory.mktemp("benchmark") / "out", ["--methods", "draem:tiny", "realnet:tiny"]
    process = start(roots, out, *words, "--devices", "cpu", "cpu", *FLAGS)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 1 and error.count("failed: ") == error.count("--size takes multiples of 128") == 2
    return out, ["--data", *roots, "--out", str(out), *words]


@pytest.mark.slow
def test_failed_cells_stop_no_other_and_finished_ones_are_skipped(finished, capsys, monkeypatch):
    out, words = finished
    cells = {(cell["variant"], cell["category"]): cell for cell in summary.read_cells(out)}
    for category in ("bottle", "washer"):
        cell = cells["draem-tiny", category]
        metrics = json.loads((out / "draem-tiny" / category / "seed-0/evaluation/metrics.json").read_text())
        assert cell["reason"] is None and cell["image_auroc"] == metrics["image_auroc"] is not None
        assert "multiples of 128" in cells["realnet-tiny", category]["reason"]
        for name in ("summary.md", "index.html"):
            link = f"draem-tiny/{category}/seed-0/report.html"
            assert link in (out / name).read_text() and (out / link).exists()
    started = []
    monkeypatch.setattr(benchmark, "run_cells", lambda cells, devices: started.extend(cells) or [])
    assert benchmark.main([*words, "--devices", "cpu", *FLAGS, "--workers", "0"]) == 0
    assert [cell.argv[0] for cell in started] == ["realnet", "realnet"]
    assert benchmark.main([*words, *FLAGS, "--epochs", "3"]) == 2
    assert "was begun with --epochs 2, now 3; give another --out" in capsys.readouterr().err


def steps_of(run: Path) -> int:
    log = run / "metrics.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


@pytest.mark.slow
def test_an_interrupted_command_saves_and_goes_on(finished, roots, tmp_path):
    """SIGTERM, then SIGKILL, then to the end: the same numbers."""
    run, log = tmp_path / "draem-tiny/washer/seed-0", tmp_path / "draem-tiny/washer/seed-0.log"
    words = ["--methods", "draem:tiny", "--categories", "washer", *FLAGS]
    for number in (signal.SIGTERM, signal.SIGKILL):
        steps, process = steps_of(run), start(roots, tmp_path, *words)
        while steps_of(run) == steps and process.poll() is None:
            time.sleep(0.02)
        os.killpg(process.pid, number)
        _, error = process.communicate(timeout=60)
        if number == signal.SIGTERM:
            assert process.returncode == 130 and error.endswith("interrupted\n")
            assert "Interrupted and saved" in summary.last_line(log) and summary.read_metrics(run) is None
    process = start(roots, tmp_path, *words)
    assert process.communicate(timeout=300)[1] == "" and process.returncode == 0
    first, second = (summary.read_metrics(out / "draem-tiny/washer/seed-0") for out in (finished[0], tmp_path))
    assert {name: first[name] for name in summary.METRICS[:-1]} == {name: second[name] for name in summary.METRICS[:-1]}


@pytest.mark.slow
def test_a_cell_in_use_is_left_to_its_process(finished, roots, tmp_path):
    run = tmp_path / "draem-tiny/washer/seed-0"
    code = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    run.mkdir(parents=True)
    for name in ("config.json", "checkpoint.pt", "metrics.jsonl"):
        (run / name).write_bytes((finished[0] / "draem-tiny/washer/seed-0" / name).read_bytes())
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(run / ".lock")], **pipes) as holder:
        holder.stdout.readline()
        process = start(roots, tmp_path, "--methods", "draem:tiny", "--categories", "washer", *FLAGS)
        output, _ = process.communicate(timeout=60)
        holder.communicate(b"\n")
    assert process.returncode == 0 and "in use by another process" in output


def cell(method, category, seed, value, preset="paper", ablation=None, reason=None) -> dict:
    variant = "-".join(filter(None, (method, preset, ablation)))
    names = {"variant": variant, "method": method, "preset": preset, "ablation": ablation, "category": category}
    return {**names, "seed": seed, "reason": reason, **dict.fromkeys(summary.METRICS), "image_auroc": value}


def entry(category, value, dataset="BTAD", preset="paper", ablation="") -> dict:
    return {"method": "realnet", "ablation": ablation, "preset": preset, "dataset": dataset, "category": category,
            "metric": "image_auroc", "value": value, "source": f"table of {dataset}"}  # fmt: skip


PUBLISHED = [
    *(entry(f"0{i}", 0.9 + i / 100) for i in (1, 2, 3)), entry("mean", 0.92), entry("mean", 0.8, "MPDD"),
    entry("tubes", 0.7, "MPDD"), entry("01", 0.5, preset="half"), entry("01", 0.4, ablation="b"),
]  # fmt: skip


def lines_of(cells) -> dict[str, dict]:
    lines = summary.aggregate(cells, PUBLISHED)
    return {line["category"]: line for line in lines if line["metric"] == "image_auroc"}


def test_means_deviations_and_gaps():
    values = {"01": (0.9, 0.8, 0.7), "02": (0.6, 0.9, 0.9), "03": (1.0, 0.5, None)}
    cells = [cell("realnet", name, seed, value, reason=None if value else "stopped")
             for name, three in values.items() for seed, value in enumerate(three)]  # fmt: skip
    lines = lines_of(cells)
    assert lines["01"]["mean"] == pytest.approx(0.8) and lines["01"]["deviation"] == pytest.approx(0.1)
    assert lines["01"]["published"] == 0.91 and lines["01"]["gap"] == pytest.approx(-0.11)
    means = [(0.9 + 0.6 + 1.0) / 3, (0.8 + 0.9 + 0.5) / 3]  # the two seeds that have all categories
    assert lines["mean"]["mean"] == pytest.approx(statistics.fmean(means)) and lines["mean"]["seeds"] == 2
    assert (lines["mean"]["published"], lines["mean"]["source"]) == (0.92, "table of BTAD")
    head, rows = summary.table(cells, summary.aggregate(cells, PUBLISHED))
    assert head == ["run", "category", "Image AUROC", "reports by seed"]
    assert rows[0][0] == ["realnet-paper", "01", "0.800 ± 0.100 [0.910, -0.110]"]
    assert rows[2][1][1:] == [("1", "realnet-paper/03/seed-1/report.html"),
                              ("2 not finished", "realnet-paper/03/seed-2.log")]  # fmt: skip
    assert "| realnet-paper | mean | 0.783 ± 0.071 [0.920, -0.137] |  |\n" in summary.markdown(head, rows)


@pytest.mark.parametrize(
    ("changes", "published"),
    [({}, 0.91), ({"preset": "half"}, 0.5), ({"preset": "tiny"}, 0.91), ({"ablation": "b"}, 0.4),
     ({"ablation": "c"}, None)],
)  # fmt: skip
def test_which_published_number(changes, published):
    lines = lines_of([cell("realnet", name, 0, 0.6, **changes) for name in ("01", "02")])
    assert lines["01"]["published"] == published
    assert lines["mean"]["published"] is None  # two of three categories are no data set


def test_a_metric_that_a_category_cannot_have():
    cells = [cell("draem", "plain", 0, None), cell("draem", "masked", 0, 0.5)]
    assert lines_of(cells)["mean"]["mean"] == 0.5
    cells[0]["reason"] = "stopped"  # it could have had it
    assert lines_of(cells)["mean"]["mean"] is None


def test_names_are_escaped():
    cells = [cell("realnet", "a|<b>", 0, 0.5)]
    found = summary.table(cells, summary.aggregate(cells, []))
    assert "a\\|<b>" in summary.markdown(*found) and "a|&lt;b&gt;" in summary.html(*found)
    assert '"realnet-paper/a%7C%3Cb%3E/seed-0/report.html"' in summary.html(*found)
