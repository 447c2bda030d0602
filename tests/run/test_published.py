"""What the papers print, adref/published.csv: its form, its arithmetic, and cells typed here a second time."""

import csv
import io
import re
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest

import adref
from adref.methods import METHODS
from adref.run.site import METRICS

HEADER = ["method", "ablation", "preset", "dataset", "category", "metric", "value", "source"]
DATA = (Path(adref.__file__).parent / "published.csv").read_bytes()
ROWS = list(csv.DictReader(io.StringIO(DATA.decode("utf-8"))))
KEY = HEADER[:6]
CATEGORIES = {
    "MVTec AD": {
        "bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw", "tile",
        "toothbrush", "transistor", "wood", "zipper",
    },
    "BTAD": {"01", "02", "03"},
    "MPDD": {"bracket_black", "bracket_brown", "bracket_white", "connector", "metal_plate", "tubes"},
    "VisA": {
        "candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2", "pcb1", "pcb2", "pcb3", "pcb4",
        "pipe_fryum",
    },
}  # fmt: skip
# Columns of which some categories are known: those that SRDAD's text names (its table is lost), and where the two
# papers that print DRAEM's image AUROC on VisA agree.
PARTIAL = {
    ("srdad", "", "paper", "MVTec AD", "image_auroc"): {
        "bottle", "grid", "hazelnut", "leather", "metal_nut", "toothbrush", "zipper",
    },
    ("draem", "", "paper", "VisA", "image_auroc"): {"fryum"},
}  # fmt: skip
# Columns whose printed mean is not the rounded mean of their printed categories: (printed, recomputed).
EXCEPTIONS = {
    ("draem", "", "paper", "BTAD", "pixel_auroc"): ("0.856", "0.8587"),
    ("realnet", "", "paper", "BTAD", "pixel_auroc"): ("0.979", "0.9797"),
    ("realnet", "dtd", "paper", "BTAD", "image_auroc"): ("0.957", "0.9563"),  # within the categories' own rounding
    ("realnet", "half", "paper", "MVTec AD", "pixel_auroc"): ("0.9907", "0.9908"),
    ("vit_autoencoder", "", "paper", "MVTec AD", "image_auroc"): ("0.912", "0.9139"),
}
COUNTS = {
    ("draem", "BTAD"): 12,
    ("draem", "MVTec AD"): 48,
    ("draem", "VisA"): 15,
    ("noise_to_norm", "MPDD"): 70,
    ("noise_to_norm", "VisA"): 13,
    ("realnet", "BTAD"): 16,
    ("realnet", "MPDD"): 63,
    ("realnet", "MVTec AD"): 311,
    ("realnet", "VisA"): 52,
    ("sernet", "MVTec AD"): 1,
    ("srdad", "MVTec AD"): 9,
    ("vit_autoencoder", "BTAD"): 12,
    ("vit_autoencoder", "MVTec AD"): 60,
}
# In percent as in the papers, to the last digit: method, ablation, preset, data set, category, then image AUROC, pixel
# AUROC and a third number, "-" where nothing is printed or known. The third is PRO; for DRAEM on MVTec AD, pixel AP.
SPOT = """
draem           |              | paper       | MVTec AD | cable         | 91.8   94.7  52.4
draem           |              | paper       | MVTec AD | transistor    | 93.1   90.9  50.7
draem           |              | paper       | MVTec AD | leather       | 100    98.6  75.3
draem           |              | paper       | MVTec AD | mean          | 98.0   97.3  68.4
draem           |              | paper       | BTAD     | 02            | 68.6   73.4  39.0
draem           |              | paper       | VisA     | pcb1          | -      88.7  -
draem           |              | paper       | VisA     | mean          | 88.7   93.5  -
srdad           |              | paper       | MVTec AD | zipper        | 100    -     -
srdad           |              | paper       | MVTec AD | mean          | 98.6   98.0  -
vit_autoencoder |              | paper       | MVTec AD | screw         | 100.0  97.7  100.0
vit_autoencoder |              | paper       | MVTec AD | transistor    | 86.8   85.0  81.0
vit_autoencoder |              | paper       | MVTec AD | mean          | 91.2   93.0  92.3
vit_autoencoder |              | paper       | BTAD     | 02            | 85.0   89.4  89.0
vit_autoencoder | +ca          | paper       | MVTec AD | mean          | 84.5   86.4  85.7
vit_autoencoder | base         | paper       | MVTec AD | mean          | 82.2   83.8  79.6
sernet          |              | paper       | MVTec AD | mean          | 99.6   -     -
noise_to_norm   |              | paper       | MPDD     | bracket_white | 89.33  97.82 -
noise_to_norm   |              | paper       | VisA     | candle        | 83.7   -     -
noise_to_norm   |              | paper       | VisA     | pcb3          | 98.7   -     -
noise_to_norm   | lambda-0     | paper       | MPDD     | tubes         | 39.45  85.88 -
noise_to_norm   | lambda-0.2   | paper       | MPDD     | bracket_white | 92.78  98.35 -
noise_to_norm   | lambda-0.4   | paper       | MPDD     | mean          | 91.82  97.54 -
realnet         |              | paper       | MVTec AD | pill          | 99.13  99.02 91.04
realnet         |              | paper       | MVTec AD | mean          | 99.65  99.03 93.07
realnet         |              | paper       | MPDD     | bracket_white | 88.78  97.44 84.00
realnet         |              | paper       | BTAD     | 02            | 88.6   96.3  -
realnet         |              | paper       | VisA     | chewinggum    | 99.9   99.8  -
realnet         |              | paper       | VisA     | macaroni2     | 95.2   99.6  -
realnet         |              | b4          | MVTec AD | screw         | 92.95  99.05 92.68
realnet         |              | multi-class | MVTec AD | mean          | 97.3   98.4  -
realnet         | b            | paper       | MVTec AD | mean          | 98.44  98.17 94.27
realnet         | c            | paper       | MVTec AD | mean          | 99.62  98.90 94.71
realnet         | half         | paper       | MVTec AD | transistor    | 99.79  98.26 83.34
realnet         | dtd          | paper       | VisA     | capsules      | 88.1   97.6  -
realnet         | dtd          | paper       | MPDD     | tubes         | 92.62  99.01 96.49
realnet         | cut-paste    | paper       | MPDD     | bracket_black | 66.42  96.67 56.53
realnet         | cut-paste    | paper       | MVTec AD | screw         | 92.74  98.53 79.63
realnet         | nsa          | paper       | MVTec AD | wood          | 97.63  93.30 87.20
realnet         | no-rrs       | paper       | MVTec AD | mean          | 96.86  96.32 84.13
realnet         | rdr          | paper       | MVTec AD | mean          | 99.39  98.66 92.01
realnet         | rdr-no-rrs   | paper       | MVTec AD | mean          | 94.46  93.38 79.81
realnet         | rlpr         | paper       | MVTec AD | mean          | 99.09  98.22 88.38
realnet         | rlpr-no-rrs  | paper       | MVTec AD | mean          | 95.67  95.84 82.26
"""


def columns() -> dict[tuple, dict[str, Decimal]]:
    """(method, ablation, preset, dataset, metric) -> category -> value."""
    found = {}
    for row in ROWS:
        name = row["method"], row["ablation"], row["preset"], row["dataset"], row["metric"]
        found.setdefault(name, {})[row["category"]] = Decimal(row["value"])
    return found


COLUMNS = columns()
WHOLE = [name for name, values in COLUMNS.items() if set(values) == CATEGORIES.get(name[3], set()) | {"mean"}]


def test_form():
    """Header, order, line ends; no key twice, no stray space, no empty cell but that of the paper's main result."""
    assert DATA.decode().splitlines()[0] == ",".join(HEADER)
    assert b"\r" not in DATA and DATA.endswith(b"\n") and not DATA.startswith(b"\xef\xbb\xbf")
    keys = [tuple(row[name] for name in KEY) for row in ROWS]
    assert keys == sorted(keys) and len(set(keys)) == len(keys)
    for row in ROWS:
        assert list(row) == HEADER  # no cell too many, which DictReader puts under None
        assert all(text == text.strip() for text in row.values())
        assert all(row[name] for name in HEADER if name != "ablation")


def test_names():
    """Methods, ablations, presets and metrics are ours, categories the data set's; no source is a note of our own."""
    for row in ROWS:
        method = METHODS[row["method"]]
        assert row["ablation"] in {"", *method.ablations} and row["preset"] in method.presets
        assert row["metric"] in METRICS
        assert row["category"] in CATEGORIES[row["dataset"]] | {"mean"}
        assert not re.search(r"spec|\.md", row["source"])
    assert [len(known) for known in CATEGORIES.values()] == [15, 3, 6, 12]


def test_values():
    """Fractions, with the two to four digits that percents of no, one or two decimals have."""
    for row in ROWS:
        assert re.fullmatch(r"[01]\.\d{2,4}", row["value"]), row
        assert 0 <= Decimal(row["value"]) <= 1


def test_complete():
    """A column holds its mean and every category, or the mean alone, or what is listed as partial."""
    for name, values in COLUMNS.items():
        assert set(values) - {"mean"} in (CATEGORIES[name[3]], PARTIAL.get(name, set())), name
        assert "mean" in values, name
    assert set(PARTIAL) | set(EXCEPTIONS) <= set(COLUMNS) and set(EXCEPTIONS) <= set(WHOLE)
    assert Counter((row["method"], row["dataset"]) for row in ROWS) == COUNTS


@pytest.mark.parametrize("name", WHOLE, ids=" ".join)
def test_mean(name):
    """The printed mean is that of the printed categories, rounded to its last digit; exceptions show both figures."""
    values = dict(COLUMNS[name])
    printed = values.pop("mean")
    recomputed = sum(values.values()) / len(values)
    step = Decimal(1).scaleb(printed.as_tuple().exponent)
    if name in EXCEPTIONS:
        assert (str(printed), f"{recomputed:.4f}") == EXCEPTIONS[name]
        assert abs(recomputed - printed) > step / 2  # else it is none
    else:
        assert abs(recomputed - printed) <= step / 2 + Decimal("1e-9")


def test_repeated():
    """Rows that a paper prints twice, as its result and inside a table of ablations, agree."""
    again = [name for name in COLUMNS if name[1] in ("lambda-0.3", "+m+ca")]
    assert len(again) == 2 + 3
    for name in again:
        assert COLUMNS[name].items() <= COLUMNS[(name[0], "", *name[2:])].items()


@pytest.mark.parametrize("line", SPOT.strip().splitlines())
def test_spot(line):
    """Cells typed a second time, digit by digit."""
    *name, numbers = (part.strip() for part in line.split("|"))
    found = {row["metric"]: row["value"] for row in ROWS if [row[key] for key in HEADER[:5]] == name}
    third = {"draem MVTec AD": "pixel_ap", f"realnet {name[3]}": "aupro_0.3_realnet"}
    third = third.get(f"{name[0]} {name[3]}", "aupro_0.3")
    expected = {}
    for metric, text in zip(("image_auroc", "pixel_auroc", third), numbers.split()):
        if text != "-":
            expected[metric] = f"{Decimal(text) / 100:.{len(text.partition('.')[2]) + 2}f}"
    assert found == expected
