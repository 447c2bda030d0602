"""Measures how far the pictures of a diffusion model are from the normal ones, for several strengths.

python tools/studies/strength.py RUN ... --out FOLDER [--strengths 0,0.1,0.2,0.5]

RealNet (CVPR 2024), section on SDAS: a larger strength s draws pictures that depart more from the normal images. It
measures no distance; here it is the root mean square over pixels and channels, in [0, 1], between a drawn picture and
the nearest normal training picture at the model's size, averaged over the pictures. The same noise serves for every
strength. A model of several categories draws its first.
"""

import sys
from pathlib import Path

import torch
from common import parser_of, read_small, run_study
from torch import Tensor

from adref.data.examples import random_stream
from adref.data.layouts import find_category
from adref.method import Sampler
from adref.options import parse
from adref.run.directory import open_run


def nearest(drawn: Tensor, normal: Tensor) -> Tensor:
    """Computes the least root mean square difference of each of (M, ...) to any of (N, ...): (M,) float64."""
    drawn, normal = (images.flatten(1).double() for images in (drawn, normal))
    return torch.cdist(drawn, normal, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1) / drawn.shape[1] ** 0.5


@torch.inference_mode()
def study(arguments) -> list[dict]:
    """Measures every run at every strength."""
    strengths, rows = parse("strengths", tuple[float, ...], arguments.strengths), []
    for name in arguments.runs:
        run = open_run(name, arguments.device, Sampler)
        label = run.method.labels[0]
        category = find_category(Path(arguments.data or run.config["flags"]["data"]), label)
        normal = torch.stack([read_small(record, run.method.options) for record in category.train]) / 255
        for strength in strengths:
            rngs = [random_stream(arguments.seed, f"strength {label}", i) for i in range(arguments.n)]
            drawn = run.method.sample_images([0] * arguments.n, rngs, [strength] * arguments.n).cpu() / 255
            distance = float(nearest(drawn, normal).mean())
            rows.append({"run": name, "strength": f"{strength:g}", "pictures": arguments.n, "distance": distance})
    return rows


if __name__ == "__main__":
    parser = parser_of(__doc__)
    parser.add_argument("--strengths", default="0,0.1,0.2,0.5", metavar="S,...", help="[0,0.1,0.2,0.5]")
    parser.add_argument("--n", type=int, default=32, metavar="N", help="pictures of each strength [32]")
    sys.exit(run_study(study, "strength", parser.parse_args()))
