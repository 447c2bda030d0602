"""What gives SRDAD's synthetic anomalies away: python tools/giveaway.py RUN

Draws anomalies on the normal test images of a trained run, as trained and with one property taken away at a time, and
prints the pixel AP of the run's maps on them. Where the AP falls to the share of anomalous pixels, the discriminator
has learned that property and nothing else. No real defect is looked at.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import torch

from adref import load
from adref.data.examples import Images, random_stream
from adref.data.layouts import find_category
from adref.method import Sources
from adref.methods.srdad.anomalies import object_side
from adref.methods.srdad.method import corrupt
from adref.ops.metrics import average_precision
from adref.run.directory import read_config

CHANGES = {
    "as trained": {},
    "no noise": {"noise_level": 0.0},
    "no rotation": {"rotation": (0.0, 0.0)},
}


@torch.no_grad()
def main() -> int:
    """Prints a line a change; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--n", type=int, default=32, help="images [32]")
    arguments = parser.parse_args()
    method, config = load(arguments.run), read_config(arguments.run)
    category = find_category(config["flags"]["data"], config["category"])
    normal = Images(
        [record.path for record in category.test if not record.label], method.options.size, method.options.resize
    )
    sources = Sources(images=normal, statistics=object_side(normal, category.name, method.options))
    for name, change in CHANGES.items():
        options = dataclasses.replace(method.options, **change)
        scores, labels = [], []
        for i in range(arguments.n):
            image = normal[i % len(normal)].float() / 255
            drawn = (corrupt(image, random_stream(7, "giveaway", i, j), options, sources) for j in range(100))
            batch = next(batch for batch in drawn if batch.mask.any())
            scores.append(method.anomaly_map(batch.corrupted[None]).flatten())
            labels.append(batch.mask.flatten())
        ap = average_precision(torch.cat(scores).numpy(), torch.cat(labels).numpy())
        print(f"{name:24s} AP {ap:.3f}, anomalous pixels {torch.cat(labels).mean():.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
