"""The tables of results: what stands in the pages is what results.csv gives, and that is what runs give."""

import json

import pytest
import results

from adref.options import UserError


@pytest.mark.parametrize("page", list(results.PAGES), ids=lambda page: page.name)
def test_pages_have_the_table_of_the_file(page):
    rows = results.read_rows()
    assert page.read_text() == results.with_table(page, rows) and results.PAGES[page](rows).count("\n") > 3


def test_rows_of_runs_and_their_means(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="found none"):
        results.collect([tmp_path])
    for variant, ablation in (("draem-tiny-literal", "literal"), ("draem-tiny", None)):
        for seed, values in enumerate(({"image_auroc": 0.5, "pixel_auroc": None}, {"image_auroc": 0.7})):
            run = tmp_path / variant / "mono" / f"seed-{seed}"
            (run / "evaluation").mkdir(parents=True)
            run.with_suffix(".log").write_text("done\n")
            (run / "evaluation" / "metrics.json").write_text(json.dumps({**values, "finished": True}))
            config = {"method": "draem", "preset": "tiny", "ablation": ablation, "category": "mono", "options": {},
                      "changed": {}, "flags": {"seed": seed, "data": "d"}}  # fmt: skip
            (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="missing: expected finished runs, found none"):
        results.collect([tmp_path, tmp_path / "missing"])
    with pytest.raises(UserError, match="found one twice"):
        results.collect([tmp_path, tmp_path])
    monkeypatch.setattr(results, "PRESETS", ("small",))
    with pytest.raises(UserError, match="presets small, found tiny"):
        results.collect([tmp_path])
    monkeypatch.undo()
    (run / "config.json").write_text(json.dumps({**config, "changed": {"steps": "3"}}))
    with pytest.raises(UserError, match="mono/seed-1: expected its preset as it is, found --steps changed"):
        results.collect([tmp_path])
    (run / "config.json").write_text(json.dumps(config))
    rows = results.collect([tmp_path])
    assert [(row["seed"], row["image_auroc"], row["pixel_auroc"]) for row in rows] == [(0, 0.5, None), (1, 0.7, None)]
    assert results.overview(rows).splitlines()[2:] == ["| `draem` | .600 | .600 | n/a | .999 / .997 |"]
    rows += [{**row, "preset": "small", "category": "grid", "pixel_auroc": 0.9} for row in rows]
    assert results.overview(rows).endswith("| `draem` | .600 | .600 | .600 / .900 | .999 / .997 |\n")
    assert "| mono | `draem` | tiny | 2 | .600 ± .141 | n/a | n/a |" in results.every_metric(rows)
    # a file with one of these runs, which the new one replaces, and another, which stays
    monkeypatch.setattr(results, "FILE", tmp_path / "results.csv")
    monkeypatch.setattr(results, "PAGES", {})
    head = ",".join([*results.KEYS, *results.METRICS])
    results.FILE.write_text(f"{head}\ndraem,tiny,mono,1,.2,,,,,\ndraem,tiny,alien,1,0.25,,,,,\n")
    assert results.main([str(tmp_path)]) == 0
    lines = results.FILE.read_text().splitlines()
    assert lines == [head, "draem,tiny,alien,1,0.25,,,,,", "draem,tiny,mono,0,0.5,,,,,", "draem,tiny,mono,1,0.7,,,,,"]
