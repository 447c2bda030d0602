"""What several test files share: a small data set, and the flags that make a run take a second."""

import csv
import json
import os
import shutil
import signal
import sys
from pathlib import Path

# Two processes of tests fill two cores, and so do these networks, which are small: more threads wait for one another,
# here and in the commands that tests start. NumPy's library reads this when it is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from PIL import Image

from adref.run.directory import fingerprint, read_log

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "tools"), str(HERE.parent / "tools" / "sources"),
                *(str(HERE / name) for name in ("data", "layers", "methods", "ops", "run", "tools"))]  # fmt: skip
import golden  # noqa: E402  other test files take it from here

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


def digest(output: torch.Tensor) -> list[float]:
    """Mean, standard deviation, and the means of the products with two lists of hashed numbers, of float64."""
    flat = output.detach().double().flatten()
    products = [(flat * golden.hashed(name, len(flat))).mean().item() for name in ("first", "second")]
    return [flat.mean().item(), flat.std(correction=0).item(), *products]


def rows_of(path: Path) -> list[dict]:
    """A CSV file with a header as dictionaries."""
    return list(csv.DictReader(path.read_text().splitlines()))


def checkpoint(run: Path) -> dict:
    """The content of a run's checkpoint."""
    return torch.load(run / "checkpoint.pt", weights_only=True)


def save_checkpoint(content: dict, run: Path) -> None:
    """Writes a checkpoint that somebody has changed, with the digest of its new content."""
    content.pop("digest")
    options = json.loads((run / "config.json").read_text())["options"]
    torch.save({**content, "digest": fingerprint([content, options])}, run / "checkpoint.pt")


def same_weights(first: Path, second: Path) -> bool:
    a, b = checkpoint(first)["model"], checkpoint(second)["model"]
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def without_times(run: Path) -> list[dict]:
    """The lines of a run's log without what the clock says."""
    return [{k: v for k, v in line.items() if not k.endswith("seconds")} for line in read_log(run)]


def at_step(patch, method: type, step: int, action) -> None:
    """Calls `action` while the training loss of a step, counted from now, is computed."""
    loss, seen = method.loss, []

    def disturbed(self, *rest):
        seen.append(self.training)
        if sum(seen) == step and self.training:
            action()
        return loss(self, *rest)

    patch.setattr(method, "loss", disturbed)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


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
