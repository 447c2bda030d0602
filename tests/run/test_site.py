"""The page over many runs: a table that sorts, links that lead to reports, pictures of every run."""

import html
import json
import re
import shutil

import numpy as np
import pytest

from adref.data.layouts import Category, Record
from adref.run import site


@pytest.fixture(scope="module")
def runs(small_run, tmp_path_factory):
    """Three evaluated runs in a folder, with numbers and maps that can be told apart, and two that are left out."""
    folder = tmp_path_factory.mktemp("runs")
    for place, name, seed, value in (
        ("one/a", "nine & ten", 0, 0.9),
        ("one/b", "hundred", 0, None),
        ("c", "x", 1, 0.25),
    ):
        shutil.copytree(small_run, run := folder / place)
        config = json.loads((run / "config.json").read_text())
        config["ablation"], config["flags"]["seed"] = name, seed
        (run / "config.json").write_text(json.dumps(config))
        metrics = json.loads((run / "evaluation/metrics.json").read_text())
        (run / "evaluation/metrics.json").write_text(json.dumps(metrics | {"image_auroc": value}))
    shutil.rmtree(folder / "one/b/evaluation/maps/spot")
    (folder / "c/report.html").unlink()
    shutil.copytree(small_run, folder / "one/damaged")
    (folder / "one/damaged/metrics.jsonl").write_text("5\n")
    (folder / "one/unfinished").mkdir()
    (folder / "one/unfinished/config.json").write_text("{}")
    assert site.main([str(folder)]) == 0
    return folder


def test_rows_and_links(runs):
    text = (runs / "index.html").read_text()
    rows = re.findall(r"<tr>(.*?)</tr>", text.partition('id="runs"')[2].partition("</table>")[0])
    assert len(rows) == 4
    cells = [[html.unescape(re.sub("<.*?>", " ", c)).split() for c in re.findall("<t[hd].*?</t[hd]>", r)] for r in rows]
    assert [" ".join(c) for c in cells[0]][:4] == ["Run", "Category", "Seed", "Image AUROC"]
    name, *rest = (" ".join(cell) for cell in cells[1][:4])
    assert name == "draem-paper-x c step 6, the last" and rest == ["part", "1", "0.250"]
    assert cells[2][0][:5] == ["draem-paper-nine", "&", "ten", "one/a", "step"] and cells[3][3] == ["n/a"]
    links = re.findall(r'href="([^#"]*html)"', text)
    assert links == ["one/a/report.html", "one/b/report.html"] and all((runs / link).exists() for link in links)


def test_pictures(runs):
    """Of the two runs of the least seed; what a run lacks is n/a."""
    part = (runs / "index.html").read_text().partition("<h2>Maps of part")[2]
    heads = [html.unescape(word) for word in re.findall(r'<th scope="col">(.*?)</th>', part)]
    assert heads == ["picture", "input", "true mask", "draem-paper-nine & ten", "draem-paper-hundred"]
    rows = part.partition("</tr>")[2].split("</tr>")
    names = [re.search(r'<th scope="row">(.*?)</th>', row)[1] for row in rows if "<th" in row]
    assert names == ["spot/000.png", "spot/001.png", "spot/002.png", "good/000.png"]
    counts = [(row.count("<img"), row.count("n/a")) for row in rows if "<th" in row]
    assert counts == [(3, 1)] * 3 + [(4, 0)]


def test_first_of_every_kind_first():
    records = [Record(f"{kind}{i}", int(kind != "good"), kind, None) for kind in ("a", "b", "good") for i in range(4)]
    found = site.examples(Category(name="x", layout="", root="", train=[], test=records, problems=[], notes=[]))
    assert [record.path for record in found] == ["a0", "b0", "a1", "b1", "a2", "good0"]


def test_small_pictures():
    image = np.zeros((40, 160, 3), np.uint8)
    image[:, :80] = 255
    for factor in (1, 4):
        found = np.asarray(site.small(image.repeat(factor, 0).repeat(factor, 1)))
        assert found.shape == (32, 128, 3) and (found[:, :64] == 255).all() and (found[:, 64:] == 0).all()
    assert np.asarray(site.small(image[:10, 70:90])).shape == (64, 128, 3)


def test_data_that_are_gone(runs, tmp_path):
    run = tmp_path / "runs/a"
    shutil.copytree(runs / "one/a", run)
    config = json.loads((run / "config.json").read_text())
    config["flags"]["data"] = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(config))
    assert site.main([str(tmp_path / "runs")]) == 0
    assert "No pictures: " in (tmp_path / "runs/index.html").read_text()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (None, "is no folder"),
        ([], "has no evaluated run"),
        (["summary.json"], "is a benchmark's"),
        (["index.html"], "is not of this command"),
    ],
)
def test_mistakes(make, said, tmp_path, capsys):
    if make is not None:
        (tmp_path / "f").mkdir()
        for name in make:
            (tmp_path / "f" / name).touch()
    assert site.main([str(tmp_path / "f")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not any(p.stat().st_size for p in tmp_path.glob("f/index.html"))


def test_names_with_signs(runs, tmp_path, browser):
    shutil.copytree(runs / "one/a", tmp_path / "runs #1 & <b>%20")
    sections = {"a <b>&\"' #1%20": "<p>text</p>", "Runs": site.run_table(site.find_runs(tmp_path))}
    site.write_page(tmp_path / "index.html", "<i>t", sections)
    browser.get((tmp_path / "index.html").as_uri())
    assert browser.title == "<i>t"
    first, _, report = browser.find_elements("css selector", "a")
    assert first.text == browser.find_element("css selector", "h2").text == "a <b>&\"' #1%20"
    first.click()
    assert browser.execute_script("return document.querySelector(':target').querySelector('p').textContent") == "text"
    report.click()
    assert browser.title.startswith("draem on part")


def test_a_click_sorts(runs, browser):
    browser.get((runs / "index.html").as_uri())

    def column(i: int) -> list[str]:
        script = (
            "return [...document.querySelectorAll('#runs tr')].slice(1).map(r => r.children[arguments[0]].textContent)"
        )
        return browser.execute_script(script, i)

    def click(i: int) -> None:
        browser.find_elements("css selector", "#runs th button")[i].click()

    click(3)
    assert column(3) == ["0.900", "0.250", "n/a"]
    click(3)
    assert column(3) == ["n/a", "0.250", "0.900"]
    click(0)
    assert [text[:13] for text in column(0)] == ["draem-paper-x", "draem-paper-n", "draem-paper-h"]
    heads = browser.find_elements("css selector", "#runs th[aria-sort]")
    assert [head.text for head in heads] == ["Run"]
    width = browser.execute_script("return [...document.images].map(i => i.complete ? i.naturalWidth : 0)")
    assert width and set(width) == {128}
    assert browser.get_log("browser") == []
