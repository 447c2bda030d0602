"""Published numbers, adref/published.csv: form, names, sums of each paper, and that printed means follow."""

import csv
import io
import re
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest

import adref
from adref.methods import METHODS
from adref.run.summary import METRICS, aggregate, read_published

HEADER = ["method", "ablation", "preset", "dataset", "category", "metric", "value", "source"]
TEXT = (Path(adref.__file__).parent / "published.csv").read_text(encoding="utf-8")
ROWS = list(csv.DictReader(io.StringIO(TEXT)))
# method -> number of rows, their sum, and a cell: ablation, preset, data set, category, metric, printed value
KNOWN = {
    "draem": (75, "65.644", ",paper,MVTec AD,cable,pixel_ap,0.524"),
    "noise_to_norm": (83, "77.1377", "lambda-0,paper,MPDD,tubes,image_auroc,0.3945"),
    "patchcore": (104, "102.3496", "patchcore-1,paper,MVTec AD,grid,image_auroc,0.986"),
    "realnet": (502, "480.8517", "cut-paste,paper,MPDD,bracket_black,aupro_0.3_realnet,0.5653"),
    "sernet": (1, "0.996", ",paper,MVTec AD,mean,image_auroc,0.996"),
    "srdad": (9, "8.966", ",paper,MVTec AD,mean,pixel_auroc,0.980"),
    "vit_autoencoder": (72, "65.740", "base,paper,MVTec AD,mean,aupro_0.3,0.796"),
}
SIZES = {"MVTec AD": 15, "BTAD": 3, "MPDD": 6, "VisA": 12}
# Columns whose printed mean is not the rounded mean of their printed categories: (printed, recomputed).
EXCEPTIONS = {
    ("draem", "", "paper", "BTAD", "pixel_auroc"): ("0.856", "0.8587"),
    ("patchcore", "patchcore-1", "paper", "MVTec AD", "pixel_auroc"): ("0.980", "0.9793"),  # within their rounding, too
    ("realnet", "", "paper", "BTAD", "pixel_auroc"): ("0.979", "0.9797"),
    ("realnet", "dtd", "paper", "BTAD", "image_auroc"): ("0.957", "0.9563"),  # within the categories' own rounding
    ("realnet", "half", "paper", "MVTec AD", "pixel_auroc"): ("0.9907", "0.9908"),
    ("vit_autoencoder", "", "paper", "MVTec AD", "image_auroc"): ("0.912", "0.9139"),
}


def test_form_and_names():
    keys = [tuple(row[name] for name in HEADER[:6]) for row in ROWS]
    assert TEXT.splitlines()[0] == ",".join(HEADER) and "\r" not in TEXT
    assert keys == sorted(set(keys))
    for row in ROWS:
        method = METHODS[row["method"]]
        assert list(row) == HEADER and all(text == text.strip() for text in row.values())
        assert row["ablation"] in {"", *method.ablations} and row["preset"] in method.presets
        assert row["metric"] in METRICS and row["source"]
        assert re.fullmatch(r"0\.\d{2,4}|1\.0{2,4}", row["value"]), row
    categories = {(row["dataset"], row["category"]) for row in ROWS if row["category"] != "mean"}
    assert Counter(dataset for dataset, _ in categories) == SIZES


def test_sums_and_one_cell_of_each_paper():
    assert len(ROWS) == 846 and set(KNOWN) == {row["method"] for row in ROWS}
    for method, (count, total, cell) in KNOWN.items():
        rows = [row for row in ROWS if row["method"] == method]
        assert (len(rows), str(sum(Decimal(row["value"]) for row in rows))) == (count, total), method
        assert cell in [",".join(row[name] for name in HEADER[1:7]) for row in rows]


def test_printed_means_are_those_of_the_printed_categories():
    columns, exceptions = {}, {}
    for row in ROWS:
        name = row["method"], row["ablation"], row["preset"], row["dataset"], row["metric"]
        columns.setdefault(name, {})[row["category"]] = Decimal(row["value"])
    for name, values in columns.items():
        printed = values.pop("mean")
        if len(values) == SIZES[name[3]]:
            mean = sum(values.values()) / len(values)
            if abs(mean - printed) > Decimal(1).scaleb(printed.as_tuple().exponent) / 2 + Decimal("1e-9"):
                exceptions[name] = str(printed), f"{mean:.4f}"
    assert exceptions == EXCEPTIONS


@pytest.mark.parametrize(
    ("ablation", "preset", "dataset", "count"),
    [("", "paper", "BTAD", 4), ("", "resnet34", "MVTec AD", 16), ("strength-0.1", "paper", "MVTec AD", 1),
     ("high-resolution", "paper", "MVTec AD", 1)],
)  # fmt: skip
def test_a_run_on_a_whole_data_set_finds_its_column(ablation, preset, dataset, count):
    names = {row["category"] for row in ROWS if row["dataset"] == dataset} - {"mean"}
    cells = [{"variant": "a", "method": "realnet", "preset": preset, "ablation": ablation or None,
              "category": name, "seed": 0, "reason": None, **dict.fromkeys(METRICS, 1)} for name in names]  # fmt: skip
    found = {line["category"]: line["published"] for line in aggregate(cells, read_published())
             if line["metric"] == "image_auroc" and line["published"]}  # fmt: skip
    own = [row for row in ROWS if row["metric"] == "image_auroc" and row["dataset"] == dataset]
    own = [row for row in own if (row["method"], row["ablation"], row["preset"]) == ("realnet", ablation, preset)]
    assert found == {row["category"]: float(row["value"]) for row in own} and len(found) == count
