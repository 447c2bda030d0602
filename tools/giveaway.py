"""Tests which property of SRDAD's synthetic anomalies its discriminator has learned: python tools/giveaway.py RUN

Draws anomalies on the normal test images of a trained run, as trained and with one property removed at a time, and
prints the pixel AP of the run's maps on them. Where the AP falls to the share of anomalous pixels, the discriminator
has learned that property and nothing else. No real defect is used.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from unittest import mock

import torch

from adref import load
from adref.data.examples import Images, random_stream
from adref.data.layouts import find_category
from adref.method import Sources
from adref.methods.srdad import anomalies
from adref.methods.srdad import method as srdad
from adref.ops.metrics import average_precision

CHANGES = {  # name -> options, constants of anomalies.py
    "as trained": ({}, {}),
    "no noise": ({"noise_level": 0.0}, {}),
    "no brightness": ({}, {"BRIGHTNESS": 0.0}),
    "neither": ({"noise_level": 0.0}, {"BRIGHTNESS": 0.0}),
    "no rotation, no scale": ({"rotation": (0.0, 0.0)}, {"SCALE": (1.0, 1.0)}),
}


@torch.no_grad()
def main() -> int:
    """Prints a line for each change; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--n", type=int, default=32, help="images [32]")
    arguments = parser.parse_args()
    run = load(arguments.run)
    category = find_category(run.config["flags"]["data"], run.config["category"])
    paths = [record.path for record in category.test if not record.label]
    normal = Images(paths, run.method.options.size, run.method.options.resize)
    statistics = run.method.statistics(normal, category.name, run.method.options)
    sources = Sources(images=normal, statistics=statistics)
    for name, (changes, constants) in CHANGES.items():
        options, scores, labels = dataclasses.replace(run.method.options, **changes), [], []
        with mock.patch.dict(vars(anomalies), constants), mock.patch.object(srdad, "ANOMALY_PROBABILITY", 1.0):
            for i in range(arguments.n):
                image = normal[i % len(normal)].float() / 255
                batch = srdad.corrupt(image, random_stream(7, "giveaway", i), options, sources)
                scores.append(run.method.anomaly_map(batch.corrupted[None]).flatten())
                labels.append(batch.mask.flatten())
        ap = average_precision(torch.cat(scores).numpy(), torch.cat(labels).numpy())
        print(f"{name:24s} AP {ap:.3f}, anomalous pixels {torch.cat(labels).mean():.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
