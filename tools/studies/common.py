"""Studies of trained methods, a file each.

A study is a module adref.studies.NAME with the functions
    add_arguments(parser: argparse.ArgumentParser) -> None
    study(runs: list[Opened], arguments: argparse.Namespace) -> Result
of which the second raises UserError. `arguments.seed` is there for all of them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from adref.data import Category
from adref.method import Method


class Opened(NamedTuple):
    """A finished run as studies see it."""

    name: str  # what tables and pictures call it; no other run of the command has it
    folder: Path
    config: dict  # of config.json
    method: Method  # in evaluation mode, on `device`
    category: Category  # checked
    device: torch.device


class Figure(NamedTuple):
    """A picture with its caption."""

    caption: str
    picture: np.ndarray  # uint8 (H, W, 3) in any size


class Result(NamedTuple):
    """What a study found: `adref.study` writes it as study.json, rows.csv and index.html."""

    settings: dict  # what it was told, by name
    rows: list[dict]  # the table: every row has the same keys; numbers, text or None
    notes: list[str]  # sentences: what the numbers mean, and what they do not
    figures: dict[str, list[Figure]]  # heading -> pictures, a line each heading
    charts: dict[str, str]  # heading -> markup of report.chart


def column(pictures: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Pictures, uint8 (h, w, 3) in any size, brought to one width and set one below the other, white between them."""
    parts = []
    for picture in map(Image.fromarray, pictures):
        size = width, max(1, round(picture.height * width / picture.width))
        # Enlarged pixels stay squares: a study may be about a single one.
        filter = Image.Resampling.NEAREST if width > picture.width else Image.Resampling.BOX
        parts += [np.asarray(picture.resize(size, filter)), np.full((4, width, 3), 255, np.uint8)]
    return np.concatenate(parts[:-1])
