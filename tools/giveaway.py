"""Tests what gives SRDAD's synthetic anomalies away: python tools/giveaway.py RUN [--n 32]

Draws anomalies on the normal test images of a trained run, as trained, with one property changed at a time, and in
other readings of the noise, and prints the pixel AP of the run's maps and of `ops.filters.grain`, which learns nothing.
An AP near the share of anomalous pixels: the map sees nothing of these anomalies. Where removing a property brings the
run's AP down to it, the discriminator has learned that property alone. No real defect is used.
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
from adref.methods.srdad.options import Options
from adref.ops.filters import grain
from adref.ops.metrics import average_precision

EVERY_CHANNEL = {"noise": "fixed", "noise_channels": "each", "transformations": "all"}
CHANGES = {  # name -> options, constants of anomalies.py
    "as trained": ({}, {}),
    "no noise": ({"noise_level": 0.0}, {}),
    "no brightness": ({}, {"BRIGHTNESS": 0.0}),
    "neither": ({"noise_level": 0.0}, {"BRIGHTNESS": 0.0}),
    "no rotation, no scale": ({"rotation": (0.0, 0.0)}, {"SCALE": (1.0, 1.0)}),
    "noise of each channel": ({"noise_channels": "each"}, {}),
    "the same, 0.05 on every patch": (EVERY_CHANNEL, {}),
}


def draw(images: Images, options: Options, statistics: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws anomalies on the first images, over again where there are fewer: (count, 3, H, W) and their masks."""
    sources, drawn = Sources(images=images, statistics=statistics), []
    with mock.patch.object(srdad, "ANOMALY_PROBABILITY", 1.0):
        for i in range(count):
            image = images[i % len(images)].float() / 255
            drawn.append(srdad.corrupt(image, random_stream(7, "giveaway", i), options, sources))
    return torch.stack([batch.corrupted for batch in drawn]), torch.stack([batch.mask for batch in drawn])


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
    print(f"{'AP of':30s}   run  colour grain  grey grain   anomalous pixels")
    for name, (changes, constants) in CHANGES.items():
        options = dataclasses.replace(run.method.options, **changes)
        with mock.patch.dict(vars(anomalies), constants):
            corrupted, masks = draw(normal, options, statistics, arguments.n)
        maps = (torch.cat([run.method.anomaly_map(image[None]) for image in corrupted]), *grain(corrupted))
        aps = [average_precision(found.numpy(), masks.numpy()) for found in maps]
        print(f"{name:30s} {aps[0]:5.3f} {aps[1]:13.3f} {aps[2]:11.3f} {masks.mean():18.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
