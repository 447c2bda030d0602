"""What several test files share: a small data set, and the flags that make a run take a second."""

import csv
import dataclasses
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

# Two processes of tests fill two cores, and so do these networks, which are small: more threads wait for one another,
# here and in the commands that tests start. NumPy's library reads this when it is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
from PIL import Image

from adref import options as option_tools

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "tools"), str(HERE.parent / "tools" / "sources"),
                *(str(HERE / name) for name in ("data", "ops", "run", "tools"))]  # fmt: skip
import golden  # noqa: F401  other test files take it from here

SMALL = ["--size", "64,64", "--reconstruction-width", "4", "--discriminator-width", "4", "--batch-size", "2",
         "--epochs", "2", "--workers", "0", "--device", "cpu", "--score-window", "5"]  # fmt: skip


def picture(seed: int, height: int = 40, width: int = 48) -> np.ndarray:
    """A smooth colour picture, uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (3 + 2 * c) + rng.uniform(0, 0.5)) * np.cos(y / 5 + c) for c in range(3)]
    return np.clip(np.stack(waves, 2) * 60 + 120 + rng.normal(0, 4, (height, width, 3)), 0, 255).astype(np.uint8)


def write_category(root: Path, train: int = 6, good: int = 3, defects: int = 3) -> Path:
    """ROOT/part in MVTec AD's layout; defects are white squares with their masks."""
    part = root / "part"
    for folder in ("train/good", "test/good", "test/spot", "ground_truth/spot"):
        (part / folder).mkdir(parents=True)
    for i in range(train):
        Image.fromarray(picture(i)).save(part / f"train/good/{i:03d}.png")
    for i in range(good):
        Image.fromarray(picture(100 + i)).save(part / f"test/good/{i:03d}.png")
    for i in range(defects):
        image, mask = picture(200 + i), np.zeros((40, 48), np.uint8)
        mask[10 + i : 22 + i, 14:28] = 255
        image[mask > 0] = 250
        Image.fromarray(image).save(part / f"test/spot/{i:03d}.png")
        Image.fromarray(mask).save(part / f"ground_truth/spot/{i:03d}_mask.png")
    return root


def rows_of(path: Path) -> list[dict]:
    """A CSV file with a header as dictionaries."""
    return list(csv.DictReader(path.read_text().splitlines()))


def once(outcome: Callable[[dict], list]) -> Callable[[dict], list]:
    """Remembers what came of changes of options: every reading is compared with what most have in common."""
    known = {}

    def remembering(changes: dict) -> list:
        key = repr(changes)
        if key not in known:
            known[key] = outcome(changes)
        return known[key]

    return remembering


def check_readings(options_class, tried: list[dict], elsewhere: tuple = ()) -> None:
    """Nobody adds a reading that no test builds: each value of a choice, both of a switch, none and a number.

    `tried` are changes of options, `elsewhere` values that another test builds.
    """
    types = option_tools.hints(options_class)
    pairs = [pair for changes in tried for pair in changes.items()]
    for field in dataclasses.fields(options_class):
        name, kind = field.name, types[field.name]
        inner = [t for t in getattr(kind, "__args__", ()) if option_tools.choices(t)]
        known = set(option_tools.choices(inner[0] if inner else kind) or ()) - set(elsewhere)
        values = {value for option, value in pairs if option == name}
        assert values, f"{name} is never changed"
        built = values | {field.default}
        built |= {item for value in built if isinstance(value, tuple) for item in value}
        assert known <= built, f"{name}: {known - built} is never built"
        assert kind is not bool or (not field.default) in values, name
        if type(None) in getattr(kind, "__args__", ()):
            assert None in values | {field.default} and any(v is not None for v in values | {field.default}), name


@pytest.fixture
def data(tmp_path) -> Path:
    return write_category(tmp_path / "data")


@pytest.fixture(scope="session")
def textures(tmp_path_factory) -> Path:
    """A folder of four texture pictures."""
    folder = tmp_path_factory.mktemp("textures")
    rng = np.random.default_rng(5)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def small_run(tmp_path_factory, textures) -> Path:
    """A run that was trained and evaluated; tests must not change it."""
    from adref.train import main

    root = tmp_path_factory.mktemp("run")
    write_category(root / "data")
    arguments = ["draem", "--data", root / "data", "--textures", textures, "--out", root / "run", *SMALL]
    assert main(list(map(str, arguments))) == 0
    return root / "run"


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A real Chromium without a window."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    quiet = ("quic", "background-networking", "component-update", "sync", "gpu")
    flags = ["--headless=new", "--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
    for flag in [*flags, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()
