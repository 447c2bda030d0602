"""The claims of the papers: each pair of arms, the rule by hand, tables of made-up and of missing runs."""

import collections
import dataclasses
import itertools
import json
import shutil
import sys
from pathlib import Path

import claims
import pytest
import torch

from adref import options as option_tools
from adref.methods import METHODS
from adref.options import UserError
from adref.run.summary import read_published

sys.path.append(str(Path(__file__).parents[2] / "tools" / "studies"))
import strength
import tiny

MEMORY = next(claim for claim in claims.CLAIMS if claim.arms == ("+m", "base") and claim.metric == "image_auroc")
PLACES = [(category, seed) for category in ("a", "b", "c") for seed in (0, 1)]


def options(method, ablation: str | None, preset: str = "tiny"):
    """The options of an arm."""
    return option_tools.build(method.Options, method.presets, method.ablations, preset, ablation, {})


def write_config(run: Path, method: str, options: dict) -> None:
    """The configuration of a run directory .../CATEGORY/seed-N."""
    run.mkdir(parents=True, exist_ok=True)
    config = {"method": method, "preset": "tiny", "category": run.parts[-2], "options": options, "changed": {},
              "flags": {"seed": int(run.name.removeprefix("seed-")), "data": "d"}}  # fmt: skip
    (run / "config.json").write_text(json.dumps(config))


def write_run(out: Path, ablation: str, place: tuple, options: dict | None = None, **metrics) -> None:
    """A finished run of the ViT autoencoder, of which only the files that the table reads are there."""
    run = out / f"vit_autoencoder-tiny-{ablation}" / place[0] / f"seed-{place[1]}"
    (run / "evaluation").mkdir(parents=True)
    run.with_suffix(".log").write_text("done\n")
    (run / "evaluation" / "metrics.json").write_text(json.dumps({**metrics, "finished": True}))
    write_config(run, "vit_autoencoder", {"memory": ablation == "+m", "epochs": 3, **(options or {})})


def test_every_paper_has_three_claims_and_the_table_names_it():
    counts = collections.Counter(claim.method for claim in claims.CLAIMS)
    assert set(counts) == set(claims.TITLES) and min(counts.values()) >= 3 and len(set(claims.CLAIMS)) >= 18


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("claim", claims.CLAIMS, ids=lambda claim: claim.words)
def test_arms_build_and_differ_in_what_the_claim_names(claim):
    method = METHODS[claim.method]
    arms = [options(method, arm) for arm in claim.arms]
    with torch.device("meta"):
        assert all(any(p.numel() for p in method(arm).parameters()) for arm in arms)
    different = {f.name for f in dataclasses.fields(method.Options) if len({getattr(a, f.name) for a in arms}) > 1}
    assert different == set(claim.options) and bool(different) == (claim.against is None)


def test_figures_are_those_of_published_csv():
    means = {(row["method"], row["ablation"], row["metric"]): row["value"] for row in read_published()
             if row["category"] == "mean" and row["preset"] == "paper" and row["dataset"] in ("MVTec AD", "MPDD")
             and not (row["method"] == "realnet" and row["dataset"] == "MPDD")}  # fmt: skip
    # what the paper presets of RealNet and SRDAD are, and DRAEM is a method of its own here
    names = {("realnet", "sdas"): ("realnet", ""), ("srdad", "srdad"): ("srdad", ""), ("srdad", "draem"): ("draem", "")}
    for claim in claims.CLAIMS:
        for arm, figure in zip(claim.arms, claim.figure or ()):
            key = (*names.get((claim.method, arm), (claim.method, arm or "")), claim.metric)
            assert key in means or arm == "no-attention", key
            assert means.get(key, figure) == figure, claim


def test_the_rule_by_hand():
    # mean .2, deviation sqrt(.04 / 5) = .0894, its error .0365, t(5) = 2.571 (tables): .0939 to each side
    up = [0.1, 0.2, 0.3, 0.1, 0.2, 0.3]
    assert claims.interval(up) == pytest.approx((0.2 - 0.09387, 0.2 + 0.09387), abs=1e-4)
    assert claims.verdict(up, 6) == "holds"
    assert claims.verdict([-d for d in up], 6) == "does not hold"
    assert claims.verdict([0.1, -0.1, 0.3, -0.2, 0.2, 0.1], 6) == "not decided at this size"
    assert claims.verdict(up[:5], 6) == "not measured (5 of 6)" and claims.verdict([], 6) == "not measured (0 of 6)"


def test_a_table_of_made_up_runs(tmp_path):
    """Six pairs of image AUROC, whose mean, interval and verdict are those of the rule; three of pixel AUROC."""
    for place, gain in zip(PLACES, (0.1, 0.2, 0.3, 0.1, 0.2, 0.3)):
        masks = {} if place[0] == "a" else {"pixel_auroc": 0.5}
        write_run(tmp_path, "base", place, image_auroc=0.5, **masks)
        write_run(tmp_path, "+m", place, image_auroc=0.5 + gain, **masks)
    claims.main(["table", str(tmp_path), "--file", str(tmp_path / "CLAIMS.md")])
    text = (tmp_path / "CLAIMS.md").read_text()
    rows = [row for row in text.splitlines() if row.startswith("| the memory helps")]
    assert "| a, b, c x 0, 1 | +0.200 (+0.106 to +0.294), 6 of 6 above 0 | holds |" in rows[0]
    assert "0.857 / 0.822 | `+m / base`" in rows[0]
    assert "| b, c x 0, 1 | +0.000 (+0.000 to +0.000), 0 of 4 above 0 | not measured (4 of 6) |" in rows[1]
    assert "1 holds" in text and f"{len(claims.CLAIMS) - 1} not measured" in text
    # a run that is missing, and one that was trained otherwise in what the claim does not name
    shutil.rmtree(tmp_path / "vit_autoencoder-tiny-base/b/seed-1")
    assert claims.line(MEMORY, claims.read_runs(tmp_path)).endswith("| not measured (5 of 6) |")
    write_run(tmp_path, "base", ("b", 1), {"epochs": 4}, image_auroc=0.5)
    with pytest.raises(UserError, match="expected a difference in memory alone, found one in epochs"):
        claims.line(MEMORY, claims.read_runs(tmp_path))


def test_a_claim_without_runs_keeps_its_line_and_the_last_part_stays(tmp_path):
    """A table of two folders, one after the other; runs with other settings start the section anew."""
    path, first, second = tmp_path / "CLAIMS.md", tmp_path / "1", tmp_path / "2"
    for place, ablation in itertools.product(PLACES, ("base", "+m")):
        write_run(first, ablation, place, image_auroc=0.5 + 0.1 * len(ablation))
        write_run(second, ablation, place, pixel_auroc=0.5 + 0.1 * len(ablation))

    def table(folder: Path) -> tuple[str, list[str]]:
        claims.write_table(folder, path)
        rows = [row for row in path.read_text().splitlines() if row.startswith("| the memory helps")]
        return path.read_text(), rows

    path.write_text(table(first)[0] + "\n" + claims.BY_HAND + "mine\n")
    text, rows = table(second)
    assert all(row.endswith("| does not hold |") for row in rows) and "-0.200 (-0.200 to -0.200)" in rows[0]
    assert f"Of {len(claims.CLAIMS)} claims: 2 does not hold, {len(claims.CLAIMS) - 2} not measured.\n" in text
    assert "\nPreset tiny.\n" in text
    assert text.endswith("\n" + claims.BY_HAND + "mine\n") and table(tmp_path)[0] == text
    config = second / "vit_autoencoder-tiny-base/a/seed-0/config.json"
    config.write_text(config.read_text().replace('"changed": {}', '"changed": {"steps": "3"}'))
    rows = [row.rpartition(" | ")[2] for row in table(second)[1]]
    assert rows == ["not measured (0 of 6) |", "does not hold |"]


def test_an_empty_folder_measures_nothing(tmp_path):
    claims.write_table(tmp_path, tmp_path / "CLAIMS.md")
    rows = [row for row in (tmp_path / "CLAIMS.md").read_text().splitlines() if row.endswith("|")]
    assert sum("not measured (0 of 6)" in row for row in rows) == len(claims.CLAIMS) == len(rows) - 12


def test_studies_decide_their_claims(tmp_path):
    """Blocks found in .7 to .9 of the pictures, no block in .4, and distances that grow: from the studies."""
    (tmp_path / "studies").mkdir()
    runs = {name: [tmp_path / folder / c / f"seed-{s}" for c, s in PLACES]
            for name, folder in (("srdad", "srdad-tiny-srdad"), ("sdas", "sdas"))}  # fmt: skip
    for name, run in ((name, run) for name, found in runs.items() for run in found):
        write_config(run, name, {})
    rates = [0.7, 0.8, 0.9, 0.7, 0.8, 0.9]
    blocks = [f"{run},{side},{rate if side else 0.4}" for run, rate in zip(runs["srdad"], rates) for side in (0, 3, 4)]
    drawn = [f"{run},{s:g},{0.2 + s}" for run, s in itertools.product(runs["sdas"], claims.STRENGTHS)]
    (tmp_path / "studies" / "tiny.csv").write_text("\n".join(["run,block,hit_rate", *blocks]))
    (tmp_path / "studies" / "strength.csv").write_text("\n".join(["run,strength,distance", *drawn]))
    found = [claims.line(claim, claims.read_runs(tmp_path)) for claim in claims.CLAIMS if claim.against]
    assert all(row.endswith("| holds |") for row in found) and len(found) == 5
    assert "+0.400 (+0.306 to +0.494)" in found[0] and "`distance 0.1 / distance 0`" in found[2]


def test_commands_train_the_claimed_arms_and_nothing_else(data, tmp_path, capsys):
    words = ["commands", "--data", str(data), "--out", str(tmp_path / "o"), "--devices", "cpu", "--", "--workers", "0"]
    assert claims.main([*words, "--backbone-weights", "random"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[2 if line[1] == "-m" else 1].rpartition("/")[2] for line in lines] == [
        "adref.train", "adref.train", "strength.py", "adref.synthesize", "adref.benchmark", "tiny.py"]  # fmt: skip
    end = lines[4].index("--")
    arguments = claims.benchmark.parse_arguments(lines[4][3:end])
    cells = claims.benchmark.make_cells(arguments, claims.benchmark.group_flags(lines[4][end + 1 :]))
    wanted = {(c.method, arm) for c in claims.CLAIMS for arm in c.arms if c.method != "sdas"}
    assert {(cell.config["method"], cell.config["ablation"]) for cell in cells} == wanted
    assert len(cells) == 2 * len(wanted) and all(cell.config["preset"] == "tiny" for cell in cells)
    assert claims.main([*words[:5], "--methods", "realnet:smal"]) == 2  # found before anything is printed
    printed = capsys.readouterr()
    assert "unknown --preset smal" in printed.err and not printed.out


def test_distance_and_block_by_hand():
    drawn, normal = torch.tensor([[0.0, 0], [3, 4]]), torch.tensor([[0.0, 2], [3, 3], [9, 9]])
    assert strength.nearest(drawn, normal).tolist() == pytest.approx([2 / 2**0.5, 1 / 2**0.5])
    for grey, block in ((0.4, 1.0), (0.6, 0.0)):
        changed = tiny.set_block(torch.full((3, 8, 8), grey), 3, "contrast")
        assert (changed[:, 2:5, 2:5] == block).all() and (changed != grey).sum() == 27
