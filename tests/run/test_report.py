"""report.html: what it says, in what order, how it looks in a real browser, and that nothing in it can run or load."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from adref.run import files, report
from adref.run.report import Picture, ordered, overlay, write_report

EVIL = (
    "crack/<img src=x onerror=document.title='pwned'>.png",
    "crack/</script><script>document.title='pwned'</script>.png",
    "crack/\"' onmouseover=document.title='pwned' &amp; \u202e\udcff.png",
)


def make_picture(name: str, label: int, score: float, size=(40, 48), **changes) -> Picture:
    rng = np.random.default_rng(len(name))
    height, width = size
    fields = {
        "image": rng.integers(0, 256, (height, width, 3), np.uint8),
        "steps": {"reconstruction": rng.integers(0, 256, (height // 2, width // 3, 3), np.uint8)},
        "mask": np.arange(height)[:, None] * np.ones(width) < height / 4 * label,
        "anomaly_map": rng.random((height, width), np.float32),
    }
    return Picture(name, "crack" if label else "good", label, score, **{**fields, **changes})


def make_pictures() -> list[Picture]:
    good = [make_picture(f"good/{i}.png", 0, 0.10 + 0.05 * i) for i in range(12)]
    return good + [make_picture(f"crack/{i}.png", 1, 0.38 + 0.06 * i) for i in range(9)]


def write(folder, pictures=None, **changes) -> str:
    """Writes a full report, some arguments changed; returns the page."""
    pictures = make_pictures() if pictures is None else pictures
    history = [
        {"stage": stage, "epoch": i // 10, "step": i, "lr": 1e-3, "seconds": 1.0, "loss/total": 10.0 ** (-i / 100)}
        for stage in ("bank", "train")
        for i in range(320)
    ]
    arguments = {
        "title": "A method on a category", "facts": {"Seed": "7", "Note": "<i>odd</i>"},
        "metrics": {
            "image_auroc": 0.97149, "image_auroc_interval": [0.9412, 0.9931], "aupro_0.3": float("nan"),
            "reasons": {"aupro_0.3": "no test image has a <mask>"},
            "by_defect": {"crack": {"n": 9, "image_auroc": 0.8125, "pixel_ap": float("nan")}},
        },
        "curves": {
            "roc": [(0.0, 0.0), (0.0, 0.8), (1.0, 1.0)], "pro": [(i / 999, (i / 999) ** 0.5) for i in range(1000)],
        },
        "history": history, "pictures": pictures, "threshold": 0.5, "map_scale": (0.0, 1.0),
        "scores": [tuple(p[:4]) for p in pictures],
    }  # fmt: skip
    path = folder / "report.html"
    write_report(path, **{**arguments, **changes})
    return path.read_text(encoding="utf-8")


class Page(HTMLParser):
    """What a browser would make of the page: elements with attributes, text, and the embedded JSON."""

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
        if self.inside == "script":
            self.scripts.append(data)
        elif self.inside != "style":
            self.text += data

    def find(self, tag: str, **attributes) -> list[dict]:
        return [a for t, a in self.elements if t == tag and all(a.get(k) == v for k, v in attributes.items())]


def decode(source: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1])))


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_overlay_is_a_fixed_scale_over_the_grey_image():
    """By hand: 0.35 x grey + 0.65 x colour: the table's first, the mean of its middle two, its last."""
    image = np.full((1, 5, 3), 100, np.uint8)
    got = overlay(image, np.array([[-9.0, 2.0, 3.0, 4.0, 99.0]]), 2.0, 4.0)
    middle = [round(35 + 0.65 * x) for x in (189, 61, 76)]
    top = [201, 195, 132]
    assert got.dtype == np.uint8
    assert got.tolist() == [[[35] * 3, [35] * 3, middle, top, top]]


def test_overlay_gets_brighter_with_the_map_on_any_image():
    image = np.random.default_rng(0).integers(0, 256, (16, 1, 3), np.uint8).repeat(200, axis=1)
    coloured = overlay(image, np.tile(np.linspace(0, 1, 200), (16, 1)), 0.0, 1.0)
    luminance = coloured @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance, axis=1) > -0.75).all()  # rounding to uint8 may take back less than one step
    assert (luminance[:, -1] - luminance[:, 0] > 140).all()


def test_overlay_takes_a_flat_scale_and_refuses_what_it_cannot_show():
    image, flat = np.zeros((4, 6, 3), np.uint8), np.ones((4, 6), np.float32)
    assert (overlay(image, flat, 1.0, 1.0) == 0).all()
    for bad in (flat.T, flat * np.nan):
        with pytest.raises(ValueError, match=r"expected image \(H, W, 3\)"):
            overlay(image, bad, 0.0, 1.0)
    with pytest.raises(ValueError, match="low <= high"):
        overlay(image, flat, 1.0, 0.0)


def test_order_is_worst_mistakes_first_then_closest_calls():
    cases = [("far hit", 1, 0.9), ("near hit", 1, 0.52), ("near miss", 1, 0.45), ("far miss", 1, 0.1),
             ("false alarm", 0, 0.7), ("alarm at the threshold", 0, 0.5), ("near pass", 0, 0.49), ("far pass", 0, 0.0),
             ("hit at the threshold", 1, 0.5)]  # fmt: skip
    pictures = [Picture(name, "", label, score, None, None, None, None) for name, label, score in cases]
    assert [p.name for p in ordered(pictures, 0.5)] == [
        "far miss", "false alarm", "near miss", "alarm at the threshold",
        "hit at the threshold", "near pass", "near hit", "far hit", "far pass",
    ]  # fmt: skip


def test_small_pictures_keep_a_mask_thinner_than_their_pixel(tmp_path):
    mask = np.zeros((512, 2048), bool)
    mask[100, 3:2000] = True
    picture = make_picture("crack/thin.png", 1, 0.1, mask.shape, mask=mask)
    page = Page(write(tmp_path, [picture]))
    sizes = {a["class"]: decode(a["src"]).size for a in page.find("img")}
    assert sizes == dict.fromkeys(("input", "reconstruction", "mask", "map", "outline"), (256, 64))
    shown = np.asarray(decode(page.find("img", **{"class": "mask"})[0]["src"]))
    assert shown.sum(axis=0).tolist() == [1] * 250 + [0] * 6  # 2048 / 256 = 8: the columns 0 to 249 hold a pixel
    outline = np.asarray(decode(page.find("img", **{"class": "outline"})[0]["src"]))[..., 3] > 0
    assert outline[:, 100].tolist() == [y in (10, 11, 13, 14) for y in range(64)]  # beside row 12, never on it


def test_eighty_noisy_pictures_stay_under_six_megabytes(tmp_path):
    noise = make_picture("crack/0.png", 1, 0.4, (256, 256))
    noise = noise._replace(steps={"reconstruction": noise.image[::-1]})
    assert len(write(tmp_path, [noise._replace(name=f"crack/{i}.png") for i in range(80)])) < 6e6


# -- the page ---------------------------------------------------------------------------------------------------------


def test_numbers_intervals_and_reasons(tmp_path):
    page = Page(write(tmp_path))
    cards = re.sub(r"\s+", " ", page.text)
    assert "Image AUROC0.97195 % interval 0.941 to 0.993" in cards
    assert "AUPRO 0.3n/a no test image has a <mask>" in cards
    assert "crack90.812n/a no reason was given" in cards  # 9 images; half to even
    assert "Seed7Note<i>odd</i>" in cards
    assert "nan" not in cards.lower()


def test_text_of_a_user_is_shown_and_never_parsed(tmp_path):
    pictures = [make_picture(name, 1, 0.1 * i)._replace(defect=f"<b>{i}") for i, name in enumerate(EVIL)]
    bad = EVIL[1]
    page = Page(
        write(
            tmp_path, pictures, title=bad, facts={bad: bad},
            history=[{"stage": bad, "epoch": 0, "step": i, f"loss/{bad}": float(i)} for i in range(3)],
            metrics={"image_auroc": float("nan"), "reasons": {"image_auroc": bad}, "by_defect": {bad: {"n": 1}}},
        )
    )  # fmt: skip
    assert [row[0] for row in page.data["scores"]] == list(EVIL)
    assert all(name.replace("\udcff", "?") in page.text for name in EVIL)
    assert page.text.count(bad) == 9  # title 2, fact 2, stage, loss term, reason, defect type, picture
    assert "<b>2, score 0.2" in page.text
    assert len(page.scripts) == 2
    assert all(a["src"].startswith("data:image/") for a in page.find("img"))
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]


def test_nothing_is_loaded_from_anywhere(tmp_path):
    text = write(tmp_path)
    assert "http:" not in text and "https:" not in text and "@import" not in text
    for tag, attributes in Page(text).elements:
        for key in ("src", "href"):
            assert attributes.get(key, "#").startswith(("data:", "#")), (tag, attributes)
    assert not re.search(r"url\((?!#)", text)


def test_pictures_are_the_worst_and_the_rest_is_counted(tmp_path):
    pictures = make_pictures()
    text = write(tmp_path, pictures, max_pictures=5)
    shown = [float(a["data-score"]) for a in Page(text).find("article")]
    assert shown == [p.score for p in ordered(pictures, 0.5)[:5]]
    assert "5 of 21 test images, 16 left out" in text


def test_a_report_of_little_is_a_report_of_less(tmp_path):
    """No threshold, mask, reconstruction, curve, history or fact; one class alone."""
    pictures = [make_picture(f"good/{i}.png", 0, 0.3, steps={}, mask=None) for i in range(2)]
    nothing = {"facts": {}, "metrics": {}, "curves": {}, "history": [], "threshold": None}
    page = Page(write(tmp_path, pictures, **nothing))
    assert [a["id"] for a in page.find("section")] == ["Results", "Decisions", "Pictures"]
    assert "No threshold is stored" in page.text and not page.find("button", id="back")
    assert page.data["start"] == pytest.approx((page.data["low"] + page.data["high"]) / 2)
    assert [a["class"] for a in page.find("img")] == ["input", "map"] * 2
    page = Page(write(tmp_path, [], scores=[("a", "good", 0, 0.0)], **nothing))
    assert not page.find("article") and page.data["low"] < 0 < page.data["high"]


@pytest.mark.parametrize(
    "changes", [{"scores": []}, {"scores": [("a", "good", 0, float("nan"))]}, {"threshold": float("inf")}]
)
def test_no_report_without_finite_scores(tmp_path, changes):
    with pytest.raises(ValueError, match="expected at least one score, all finite"):
        write(tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    old = write(tmp_path)
    monkeypatch.setattr(files.os, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(tmp_path, title="new")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == old


# -- curves -----------------------------------------------------------------------------------------------------------


def polylines(text: str) -> list[np.ndarray]:
    found = re.findall(r'<polyline points="([^"]*)"', text)
    return [np.array([pair.split(",") for pair in line.split()], float) for line in found]


def test_loss_curves_are_means_of_equal_runs_on_a_scale_that_fits(tmp_path):
    """320 steps give 160 means of two; 10 ** (-step / 100) over three decades is a straight line on a log scale."""
    text = write(tmp_path)
    assert text.count("<h3>Stage ") == 2 and text.count("log scale") == 2
    line = polylines(text)[-1]
    assert len(line) == 160
    np.testing.assert_allclose(line[:, 0], np.linspace(0, 100, 160), atol=0.006)
    np.testing.assert_allclose(np.diff(line[:, 1]), 100 / 1.12 / 159, atol=0.011)  # margins of 0.06 above and below
    text = write(tmp_path, history=[{"stage": "s", "epoch": 0, "step": i, "loss/l": 5.0 + i} for i in range(9)])
    assert "log scale" not in text and len(polylines(text)[-1]) == 9


def test_losses_that_are_not_finite_are_counted(tmp_path):
    lines = [{"stage": "s", "epoch": 0, "step": i, "loss/a": float("nan"), "loss/b": None} for i in range(4)]
    lines[0]["loss/b"] = 2.0
    text = write(tmp_path, history=lines)
    assert "<b>a</b> 4 steps not finite;" in text and "<b>b</b> 3 steps not finite; last 2" in text


def test_roc_and_pro_are_drawn_to_scale(tmp_path):
    roc, pro = polylines(write(tmp_path))[:2]
    assert roc.tolist() == [[0, 100], [0, 20], [100, 0]]
    assert len(pro) == 400
    np.testing.assert_allclose(100 - pro[:, 1], 10 * np.sqrt(pro[:, 0]), atol=0.06)


def test_pictures_are_opened_one_by_one_and_once(tmp_path, monkeypatch):
    """In the order of the page, however often they have to be made smaller."""
    whole, names = {p.name: p for p in make_pictures()}, []

    def open_picture(picture):
        names.append(picture.name)
        return whole[picture.name]

    light = [p._replace(image=None, steps={}, mask=None, anomaly_map=None) for p in whole.values()]
    monkeypatch.setattr(report, "PICTURES_LIMIT", 0)
    text = write(tmp_path, light, open_picture=open_picture, max_pictures=7)
    assert names == [p.name for p in ordered(list(whole.values()), 0.5)[:7]]
    assert text == write(tmp_path, list(whole.values()), max_pictures=7)


def test_a_huge_picture_is_drawn_like_a_small_one(tmp_path, monkeypatch):
    """Where it is made smaller before it gets its colours, it looks as if it were afterwards."""
    picture = make_picture("crack/huge.png", 1, 0.5, size=(16, 1024))
    picture = picture._replace(anomaly_map=np.linspace(0, 1, 1024, dtype=np.float32)[None].repeat(16, 0))
    quick = report._draw(picture, (0.0, 1.0))
    monkeypatch.setattr(Image.Image, "reduce", lambda image, factor: image)
    slow = report._draw(picture, (0.0, 1.0))
    for name, image in slow.items():
        assert quick[name].size == image.size == (256, 4)
        np.testing.assert_allclose(np.asarray(quick[name], int), np.asarray(image, int), atol=2)


@pytest.mark.parametrize(
    "low, high, log, texts",
    [
        (0.0, 1.0, False, "0 0.2 0.4 0.6 0.8 1"),
        (-0.13, 0.29, False, "-0.1 0 0.1 0.2"),
        (130.0, 2390.0, False, "500 1000 1500 2000"),
        (-1.2, 0.4, True, "0.1 0.2 0.5 1 2"),
        (-4.5, 0.0, True, "0.0001 0.001 0.01 0.1"),
    ],
)
def test_ticks_are_round(low, high, log, texts):
    ticks = report._ticks(low, high, log)
    assert " ".join(ticks.values()) == texts
    values = [np.log10(float(t)) if log else float(t) for t in ticks.values()]
    np.testing.assert_allclose(list(ticks), [100 * (v - low) / (high - low) for v in values], atol=1e-9)


@pytest.mark.parametrize("threshold", [0.5, 0.38, 0.7, None])
def test_no_bar_of_the_histogram_stands_on_both_sides_of_the_threshold(tmp_path, threshold):
    """Heights are 48 x images / tallest bar: the bars on each side add up to the decisions."""
    text = write(tmp_path, threshold=threshold)
    data = Page(text).data
    place = 100 * (data["start"] - data["low"]) / (data["high"] - data["low"])
    for label, kind, sign in ((0, "false", -1), (1, "miss", 1)):
        path = re.search(rf'<path class="{kind}"[^>]* d="([^"]*)"', text)[1]
        bars = np.array(re.findall(r"M(\S+) 50v(\S+)h1.6V50Z", path), float)
        scores = np.array([p.score for p in make_pictures() if p.label == label])
        images = sign * bars[:, 1] / 48 * int(re.search(r"tallest bar (\d+)", text)[1])
        assert images[bars[:, 0] > place].sum() == pytest.approx((scores >= data["start"]).sum(), abs=0.01)
        assert images[bars[:, 0] + 1.6 < place].sum() == pytest.approx((scores < data["start"]).sum(), abs=0.01)


# -- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a report in the browser; afterwards no message may stand in its console."""

    def visit(width=1200, scheme="light", **changes):
        write(tmp_path, **changes)
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get((tmp_path / "report.html").as_uri())
        return browser

    yield visit
    assert browser.get_log("browser") == []


def slide(browser, place: int, value: float) -> None:
    script = "const s = document.querySelectorAll('input[type=range]')[arguments[0]];"
    browser.execute_script(script + "s.value = arguments[1]; s.dispatchEvent(new Event('input'))", place, value)


def shown(browser, key: str) -> list[str]:
    script = "return [...document.querySelectorAll(`[data-show='${arguments[0]}']`)].map(e => e.textContent)"
    return browser.execute_script(script, key)


def badges(browser) -> dict[str, str]:
    """Name and badge of the cards that are in sight, in their order."""
    cards = "[...document.querySelectorAll('article:not([hidden])')]"
    texts = "['h3', '.badge'].map(part => card.querySelector(part).textContent)"
    return dict(browser.execute_script(f"return {cards}.map(card => {texts})"))


def decisions(threshold: float) -> dict[str, str]:
    """What the page has to say, from the definition."""
    names = {(1, True): "hit", (1, False): "miss", (0, True): "false alarm", (0, False): "correct pass"}
    return {p.name: names[p.label, p.score >= threshold] for p in make_pictures()}


@pytest.mark.parametrize("place", [0, 1])
def test_slider_decides_anew_everywhere(opened, place):
    browser = opened()
    edge = make_pictures()[13].score  # exactly the score of an image, which is then called anomalous
    for threshold in (0.5, 0.31, edge, 0.62):
        if threshold != 0.5:
            slide(browser, place, threshold)
        expected = decisions(threshold)
        count = {kind: list(expected.values()).count(kind) for kind in ("hit", "miss", "false alarm", "correct pass")}
        assert badges(browser) == expected
        assert {kind: shown(browser, kind) for kind in count} == {kind: [str(n)] for kind, n in count.items()}
        hit, miss, alarm, _ = count.values()
        rates = [float(shown(browser, name)[0]) for name in ("precision", "recall", "rate")]
        assert rates == pytest.approx([hit / (hit + alarm), hit / 9, alarm / 12], abs=0.000501)
        assert set(shown(browser, "threshold")) == {f"{threshold:.4g}"}
        assert shown(browser, "summary") == [f"misses {miss}, false alarms {alarm}"]
        wrong = {f"{kind}: {name}" for name, kind in expected.items() if kind in ("miss", "false alarm")}
        assert set(shown(browser, "wrong")[0].split("\n")) == (wrong or {""})
        script = "return document.querySelector(arguments[0])"
        assert browser.execute_script(script + ".textContent", ".found") == f"{hit} of 9"
        low, high = 0.10 - 0.04 * 0.76, 0.86 + 0.04 * 0.76  # the scores and 4 per cent of their range
        line = browser.execute_script(script + ".getAttribute('d')", "#line")
        assert float(re.match(r"M([\d.]+) 0V100", line)[1]) == pytest.approx(100 * (threshold - low) / (high - low))
        dot = re.match(r"M([\d.]+) ([\d.]+)h0", browser.execute_script(script + ".getAttribute('d')", ".dot"))
        assert [float(x) for x in dot.groups()] == pytest.approx([100 * alarm / 12, 100 * miss / 9])
        sliders = browser.find_elements("css selector", "input[type=range]")
        assert [float(slider.get_property("value")) for slider in sliders] == [threshold] * 2
    browser.find_element("id", "back").click()
    assert badges(browser) == decisions(0.5)


def test_all_and_none_can_be_called_anomalous(opened):
    browser = opened()
    slide(browser, 0, -1e9)
    assert (shown(browser, "recall"), shown(browser, "rate")) == (["1.000"], ["1.000"])
    slide(browser, 0, 1e9)
    assert (shown(browser, "recall"), shown(browser, "precision")) == (["0.000"], ["n/a"])


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


def test_nothing_of_a_name_runs(opened):
    bad = EVIL[1]
    pictures = [make_picture(name, 1, 0.1 * i) for i, name in enumerate(EVIL)]
    defects = {"crack": {"n": 3}, bad: {"n": 0}}
    browser = opened(pictures=pictures, facts={bad: EVIL[0]}, metrics={"by_defect": defects})
    assert browser.title == "A method on a category"
    assert [name.replace("\udcff", "?") for name in EVIL] == list(badges(browser))
    assert browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []


@pytest.mark.parametrize("width", [390, 1200])
def test_page_never_scrolls_sideways(opened, width):
    long = [make_picture("crack/" + "x" * 300 + ".png", 1, 0.123456789), *make_pictures()]
    many = {name: 0.5 for name in report.LABELS}
    metrics = {**many, "by_defect": {"crack" * 20: {"n": 9, **many}}}
    browser = opened(width, pictures=long, facts={"SHA-256": "0123456789abcdef" * 8}, metrics=metrics)
    browser.execute_script("document.querySelectorAll('.tiles')[0].click()")
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(wide) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_in_light_and_dark(opened, scheme):
    """WCAG 2.1: at least 4.5 : 1 between a text and the surface it stands on."""
    browser = opened(scheme=scheme)
    colours = browser.execute_script("""
        const style = (s, key) => getComputedStyle(document.querySelector(s))[key];
        const page = style("body", "backgroundColor"), card = style("article", "backgroundColor");
        return [[style("h1", "color"), page], [style("nav a", "color"), page], [style("article .note", "color"), card],
                ...["miss", "false", "hit", "correct"].map(k => [`.badge.${k}`, k]).map(([s]) =>
                    [style(s, "color"), style(s, "backgroundColor")])];""")

    def luminance(text: str) -> float:
        rgb = np.array(re.findall(r"\d+", text)[:3], float) / 255
        return float(np.where(rgb <= 0.03928, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])

    for text, surface in colours:
        low, high = sorted((luminance(text), luminance(surface)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, surface)
    assert (luminance(colours[0][1]) < 0.05) == (scheme == "dark")
