"""report.html: numbers, order of images, charts, escaping of names, and the page in a real browser."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from adref.run import report
from adref.run.measures import Lazy
from adref.run.report import Picture, ordered, overlay, write_report

EVIL = (
    "crack/<img src=x onerror=document.title='pwned'>.png",
    "crack/</script><script>document.title='pwned'</script>.png",
    "crack/\"' onmouseover=document.title='pwned' &amp; \u202e\udcff.png",
)


def make_picture(name: str, label: int, score: float, size=(40, 48), **changes) -> Picture:
    rng, (height, width) = np.random.default_rng(len(name)), size
    image, step = (rng.integers(0, 256, (*shape, 3), np.uint8) for shape in (size, (height // 2, width // 3)))
    mask = np.arange(height)[:, None] * np.ones(width) < height / 4 * label
    fields = (name, "crack" if label else "good", label, score, image, {"reconstruction": step}, mask)
    return Picture(*fields, rng.random(size, np.float32))._replace(**changes)


def make_pictures() -> list[Picture]:
    good = [make_picture(f"good/{i}.png", 0, 0.10 + 0.05 * i) for i in range(12)]
    return good + [make_picture(f"crack/{i}.png", 1, 0.38 + 0.06 * i) for i in range(9)]


def write(folder, pictures=None, **changes) -> str:
    """Writes a full report, some arguments changed; returns the page."""
    pictures = make_pictures() if pictures is None else pictures
    arguments = {
        "title": "A method on a category", "facts": {"Seed": "7", "Note": "<i>odd</i>"},
        "metrics": {
            "image_auroc": 0.97149, "image_auroc_interval": [0.9412, 0.9931], "aupro_0.3": float("nan"),
            "reasons": {"aupro_0.3": "no test image has a <mask>"}, "map_scale": (0.0, 1.0),
            "by_defect": {"crack": {"n": 9, "image_auroc": 0.8125, "pixel_ap": float("nan")}},
        },
        "curves": {
            "roc": [(0.0, 0.0), (0.0, 0.8), (1.0, 1.0)], "pro": [(i / 999, (i / 999) ** 0.5) for i in range(1000)],
        },
        "history": [{"stage": stage, "step": i, "lr": 1e-3, "loss/total": 10.0 ** (-i / 100)}
                    for stage in ("bank", "train") for i in range(320)],
        "figures": {}, "pictures": pictures, "threshold": 0.5,
    }  # fmt: skip
    if "scores" not in changes:
        changes["scores"] = [tuple(p[:4]) for p in pictures]
    write_report(folder / "report.html", **{**arguments, **changes})
    return (folder / "report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Elements with attributes, text and embedded JSON of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.elements, self.text, self.scripts, self.inside = [], "", [], ""
        self.feed(page)
        self.data = json.loads(self.scripts[0])

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        self.scripts += [data] if self.inside == "script" else []
        self.text += data if self.inside not in ("script", "style") else ""

    def find(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]

    def images(self) -> dict[str, np.ndarray]:
        decode = {a["class"]: base64.b64decode(a["src"].split(",", 1)[1]) for a in self.find("img")}
        return {name: np.asarray(Image.open(io.BytesIO(data))) for name, data in decode.items()}


def test_overlay_is_a_fixed_scale_over_the_grey_image():
    """By hand: 0.35 x grey + 0.65 x colour: the table's first, the mean of its middle two, its last."""
    image = np.full((1, 5, 3), 100, np.uint8)
    got = overlay(image, np.array([[-9.0, 2.0, 3.0, 4.0, 99.0]]), 2.0, 4.0)
    middle, top = [round(35 + 0.65 * x) for x in (189, 61, 76)], [201, 195, 132]
    assert got.dtype == np.uint8 and got.tolist() == [[[35] * 3, [35] * 3, middle, top, top]]
    luminance = overlay(image.repeat(40, 1), np.linspace(0, 1, 200)[None], 0.0, 1.0) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > -0.75).all()  # rounding to uint8 may take back less than one step
    assert (overlay(image, np.ones((1, 5)), 1.0, 1.0) == 35).all()
    for bad, low in ((np.ones((5, 1)), 0.0), (np.full((1, 5), np.nan), 0.0), (np.ones((1, 5)), 2.0)):
        with pytest.raises(ValueError, match=r"expected image \(H, W, 3\)"):
            overlay(image, bad, low, 1.0)


def test_order_is_worst_mistakes_first_then_closest_calls():
    cases = [("far hit", "", 1, 0.9), ("near hit", "", 1, 0.52), ("near miss", "", 1, 0.45), ("far miss", "", 1, 0.1),
             ("false alarm", "", 0, 0.7), ("alarm at the threshold", "", 0, 0.5), ("near pass", "", 0, 0.49),
             ("far pass", "", 0, 0.0), ("hit at the threshold", "", 1, 0.5)]  # fmt: skip
    assert [cases[i][0] for i in ordered(cases, 0.5)] == [
        "far miss", "false alarm", "near miss", "alarm at the threshold",
        "hit at the threshold", "near pass", "near hit", "far hit", "far pass",
    ]  # fmt: skip


def test_small_images_keep_a_mask_thinner_than_their_pixel(tmp_path):
    mask = np.zeros((512, 2048), bool)
    mask[100, 3:2000] = True
    images = Page(write(tmp_path, [make_picture("crack/thin.png", 1, 0.1, mask.shape, mask=mask)])).images()
    assert set(images) == {"input", "reconstruction", "true-mask", "map", "outline"}
    assert {image.shape[:2] for image in images.values()} == {(64, 256)}
    assert images["true-mask"].sum(axis=0).tolist() == [1] * 250 + [0] * 6  # 2048 / 256 = 8: 0 to 249 hold a pixel
    outline = images["outline"][:, 100, 3] > 0
    assert outline.tolist() == [y in (10, 11, 13, 14) for y in range(64)]  # beside row 12, never on it


def test_a_large_image_is_reduced_before_its_overlay(tmp_path, monkeypatch):
    """It looks as if it were reduced afterwards."""
    ramp = np.linspace(0, 1, 1024, dtype=np.float32)[None].repeat(16, 0)
    picture, maps = make_picture("crack/large.png", 1, 0.5, (16, 1024), anomaly_map=ramp), []
    for _ in range(2):
        maps.append(Page(write(tmp_path, [picture])).images()["map"].astype(int))
        monkeypatch.setattr(Image.Image, "reduce", lambda image, factor: image)
    assert maps[0].shape == (4, 256, 3) and np.abs(maps[0] - maps[1]).mean() < 2


def test_images_are_opened_in_order_and_once(tmp_path):
    whole, opened = make_pictures(), []
    scores = [tuple(p[:4]) for p in whole]
    text = write(tmp_path, Lazy(lambda i: (opened.append(i), whole[i])[1], range(21)), scores=scores, most=5)
    assert opened == ordered(scores, 0.5)[:5]
    assert [float(a["data-score"]) for a in Page(text).find("article")] == [whole[i].score for i in opened]
    assert "5 of 21 test images, 16 left out" in text


def test_numbers_intervals_and_reasons(tmp_path):
    text = re.sub(r"\s+", " ", Page(write(tmp_path)).text)
    for part in ("Image AUROC0.97195 % interval 0.941 to 0.993", "AUPRO 0.3n/a no test image has a <mask>",
                 "crack90.812n/a no reason was given", "Seed7Note<i>odd</i>"):  # fmt: skip
        assert part in text
    assert "nan" not in text.lower()


def test_names_are_shown_and_never_parsed_and_nothing_is_loaded(tmp_path):
    pictures = [make_picture(name, 1, 0.1 * i, defect=f"<b>{i}") for i, name in enumerate(EVIL)]
    bad = EVIL[1]
    text = write(
        tmp_path, pictures, title=bad, facts={bad: bad, "{{data}}": "not filled"},
        history=[{"stage": bad, "epoch": 0, "step": i, f"loss/{bad}": float(i)} for i in range(3)],
        metrics={"image_auroc": float("nan"), "reasons": {"image_auroc": bad}, "by_defect": {bad: {"n": 1}},
                 "map_scale": (0.0, 1.0)},
        figures={bad: pictures[0].image},
    )  # fmt: skip
    page = Page(text)
    assert [row[0] for row in page.data["scores"]] == list(EVIL)
    assert all(name.replace("\udcff", "\ufffd") in page.text for name in EVIL)
    assert page.text.count(bad) == 10  # title 2, fact 2, stage, loss term, reason, defect type, image, figure
    assert "<b>2, score 0.2" in page.text and len(page.scripts) == 2 and text.count("{{") == 1
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]
    links = [a.get(key, "#") for _, a in page.elements for key in ("src", "href")]
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"url\((?!#)|@import|https?:", text)


def test_a_report_without_optional_parts(tmp_path):
    """No threshold, mask, intermediate image, curve, history or fact, and one class only."""
    pictures = [make_picture(f"good/{i}.png", 0, 0.3, steps={}, mask=None) for i in range(2)]
    nothing = {"facts": {}, "metrics": {"map_scale": (0, 1)}, "curves": {}, "history": [], "threshold": None}
    page = Page(write(tmp_path, pictures, **nothing))
    assert [a["id"] for a in page.find("section")] == ["Results", "Decisions", "Pictures"]
    assert page.data["start"] == pytest.approx((page.data["low"] + page.data["high"]) / 2)
    assert [a["class"] for a in page.find("img")] == ["input", "map"] * 2
    page = Page(write(tmp_path, [], scores=[("a", "good", 0, 0.0)], most=0, **nothing))
    assert not page.find("article") and page.data["low"] < 0 < page.data["high"]
    for changes in ({"scores": []}, {"scores": [("a", "good", 0, float("nan"))]}, {"threshold": float("inf")}):
        with pytest.raises(ValueError, match="expected at least one score, all finite"):
            write(tmp_path, **changes)


def polylines(text: str) -> list[np.ndarray]:
    found = re.findall(r'<polyline points="([^"]*)"', text)
    return [np.array([pair.split(",") for pair in line.split()], float) for line in found]


def test_curves_and_losses_are_drawn_to_scale(tmp_path):
    """320 steps give 160 means of two; 10 ** (-step / 100) over three decades is a straight line on a log scale."""
    text = write(tmp_path)
    roc, pro, _, loss = polylines(text)
    assert roc.tolist() == [[0, 100], [0, 20], [100, 0]] and len(pro) == 400
    np.testing.assert_allclose(100 - pro[:, 1], 10 * np.sqrt(pro[:, 0]), atol=0.06)
    assert text.count("<h3>Stage ") == 2 and text.count("log scale") == 2 and len(loss) == 160
    np.testing.assert_allclose(loss[:, 0], np.linspace(0, 100, 160), atol=0.006)
    np.testing.assert_allclose(np.diff(loss[:, 1]), 100 / 1.12 / 159, atol=0.011)  # margins of 0.06 above and below
    text = write(tmp_path, history=[{"stage": "s", "step": i, "loss/l": 5.0 + i} for i in range(9)])
    assert "log scale" not in text and len(polylines(text)[-1]) == 9


def test_ticks_are_round():
    cases = [(-0.13, 0.29, False, "-0.1 0 0.1 0.2"), (130.0, 2390.0, False, "500 1000 1500 2000"),
             (-1.2, 0.4, True, "0.1 0.2 0.5 1 2"), (-4.5, 0.0, True, "0.0001 0.001 0.01 0.1")]  # fmt: skip
    for low, high, log, texts in cases:
        ticks = report._ticks(low, high, log)
        assert " ".join(ticks.values()) == texts
        values = [np.log10(float(t)) if log else float(t) for t in ticks.values()]
        np.testing.assert_allclose(list(ticks), [100 * (v - low) / (high - low) for v in values], atol=1e-9)


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a report in the browser; afterwards no message may stand in its console."""

    def visit(width=1200, **changes):
        write(tmp_path, **changes)
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get((tmp_path / "report.html").as_uri())
        return browser

    yield visit
    assert browser.get_log("browser") == []


def shown(browser, key: str) -> str:
    """Returns the text of all places that show a number."""
    places = "[...document.querySelectorAll(`[data-show='${arguments[0]}']`)].map(e => e.textContent)"
    (text,) = browser.execute_script(f"return [...new Set({places})]", key)
    return text


def attribute(browser, selector: str, name: str = "d") -> str:
    script = "return document.querySelector(arguments[0]).getAttribute(arguments[1])"
    return browser.execute_script(script, selector, name)


def badges(browser) -> dict[str, str]:
    """Returns name and badge of the visible cards in their order."""
    cards = "[...document.querySelectorAll('article:not([hidden])')]"
    texts = "['h3', '.badge'].map(part => card.querySelector(part).textContent)"
    return dict(browser.execute_script(f"return {cards}.map(card => {texts})"))


@pytest.mark.slow
def test_slider_changes_every_decision(opened):
    browser, pictures = opened(), make_pictures()
    low, high = 0.10 - 0.04 * 0.76, 0.86 + 0.04 * 0.76  # the scores and 4 per cent of their range
    names = {(1, True): "hit", (1, False): "miss", (0, True): "false alarm", (0, False): "correct pass"}
    edge = pictures[13].score  # exactly the score of an image, which is then called anomalous
    script = "const s = document.querySelectorAll('input[type=range]')[arguments[0]];"
    script += "s.value = arguments[1]; s.dispatchEvent(new Event('input'))"
    for threshold, slider in ((0.5, None), (0.31, 0), (edge, 1), (low, 0), (high, 1)):
        if slider is not None:
            browser.execute_script(script, slider, threshold)
        expected = {p.name: names[p.label, p.score >= threshold] for p in pictures}
        count = {kind: list(expected.values()).count(kind) for kind in names.values()}
        assert badges(browser) == expected and {kind: int(shown(browser, kind)) for kind in count} == count
        hit, miss, alarm, _ = count.values()
        precision = float(shown(browser, "precision").replace("n/a", "nan"))
        assert precision == pytest.approx(hit / (hit + alarm) if hit + alarm else np.nan, abs=5.01e-4, nan_ok=True)
        assert (shown(browser, "recall"), shown(browser, "rate")) == (f"{hit / 9:.3f}", f"{alarm / 12:.3f}")
        assert shown(browser, "threshold") == f"{threshold:.4g}"
        assert shown(browser, "summary") == f"misses {miss}, false alarms {alarm}"
        wrong = {f"{kind}: {name}" for name, kind in expected.items() if kind in ("miss", "false alarm")}
        assert set(shown(browser, "wrong").split("\n")) == (wrong or {""})
        assert browser.execute_script("return document.querySelector('.found').textContent") == f"{hit} of 9"
        line, dot = (re.findall(r"[\d.]+", attribute(browser, selector)) for selector in ("#line", ".dot"))
        assert float(line[0]) == pytest.approx(100 * (threshold - low) / (high - low))
        assert [float(x) for x in dot[:2]] == pytest.approx([100 * alarm / 12, 100 * miss / 9])
    browser.find_element("id", "back").click()
    assert shown(browser, "threshold") == "0.5"


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.5, 0.38, None])
def test_no_bar_of_the_histogram_stands_on_both_sides_of_the_threshold(opened, threshold):
    """Heights are 48 x images / tallest bar: the bars on each side add up to the decisions."""
    browser = opened(threshold=threshold)
    start = 0.48 if threshold is None else threshold  # the middle of the scores
    place = 100 * (start - (0.10 - 0.04 * 0.76)) / (0.76 * 1.08)
    for label, kind, sign in ((0, "false", -1), (1, "miss", 1)):
        bars = np.array(re.findall(r"M(\S+) 50v(\S+)h1.6V50Z", attribute(browser, f"path.{kind}")), float)
        scores = np.array([p.score for p in make_pictures() if p.label == label])
        images = sign * bars[:, 1] / 48 * int(shown(browser, "tallest"))
        assert images[bars[:, 0] > place].sum() == pytest.approx((scores >= start).sum())
        assert images[bars[:, 0] + 1.6 < place].sum() == pytest.approx((scores < start).sum())
    assert (shown(browser, "good"), shown(browser, "anomalous")) == ("12", "9")
    assert browser.find_element("id", "back").is_displayed() == (threshold is not None)
    assert browser.find_element("id", "none").is_displayed() == (threshold is None)


@pytest.mark.slow
def test_filter_outline_and_enlarging(opened):
    browser = opened()
    browser.find_element("css selector", "#filter option:nth-child(2)").click()
    assert set(badges(browser).values()) == {"miss"}
    outline = browser.find_element("css selector", "article:not([hidden]) .outline")
    assert outline.is_displayed()
    browser.find_element("id", "outline").click()
    assert not outline.is_displayed()
    tiles = browser.find_element("css selector", "article:not([hidden]) .tiles")
    width = tiles.size["width"]
    tiles.click()
    assert tiles.size["width"] > 1.8 * width


@pytest.mark.slow
def test_no_name_runs_and_a_long_one_does_not_widen_the_page(opened):
    bad = EVIL[1]
    pictures = [make_picture(name, 1, 0.1 * i) for i, name in enumerate((*EVIL, "crack/" + "x" * 300 + ".png"))]
    numbers = {**dict.fromkeys(report.LABELS, 0.5), "n": 3}
    metrics = {"by_defect": {"crack" * 20: numbers, bad: numbers}, "reasons": {}, "map_scale": (0, 1), **numbers}
    browser = opened(390, pictures=pictures, metrics=metrics, facts={bad: EVIL[0], "SHA-256": "0123456789abcdef" * 8})
    assert browser.title == "A method on a category"
    assert [name.replace("\udcff", "\ufffd") for name in EVIL] == list(badges(browser))[:3]
    assert browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []
    browser.execute_script("document.querySelectorAll('.tiles')[0].click()")
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(wide) == 0
