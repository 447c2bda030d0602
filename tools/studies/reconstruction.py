"""Measures how methods restore the content under synthetic anomalies, and keep the content beside them.

python tools/studies/reconstruction.py RUN ... --out FOLDER

After SRDAD (Scientific Reports 2025, s41598-025-10303-8), section on reconstructions, which compares three methods by
eye; the numbers are defined here. The first RUN's method draws anomalies on the normal test images; the clean image is
the truth. Errors of a reconstruction are means inside the mask and outside:

mse   squared difference of values in [0, 1]
psnr  -10 log10 mse, decibels
ssim  structural similarity, Gaussian windows of 11 x 11 pixels, which may cross the mask's edge

"(input)" is the corrupted image, the result of a method that changes nothing. A method that trained on this kind of
anomaly has an advantage. reconstruction.png has a column an image: input, truth, then every run.
"""

import sys

import numpy as np
import torch
from common import context_of, device_of, draw_anomalies, open_runs, parser_of, run_study, write_columns
from torch import Tensor

from adref.ops.losses import ssim_map
from adref.options import UserError

AREAS = {"< 1 %": (0.0, 0.01), "1 to 5 %": (0.01, 0.05), "> 5 %": (0.05, 1.0)}  # share of the image
SHOWN = 6


def errors(truth: Tensor, other: Tensor, mask: Tensor) -> dict[str, float]:
    """Compares two images (3, H, W) in [0, 1] inside and outside a mask (H, W)."""
    squared = (other - truth).double().square().mean(dim=0)
    similarity = ssim_map(other[None], truth[None], padding="reflect")[0].double().mean(dim=0)
    result = {}
    for where, pixels in (("inside", mask), ("outside", ~mask)):
        mse = squared[pixels].mean()
        values = {"mse": mse, "psnr": -10 * mse.log10(), "ssim": similarity[pixels].mean()}
        result |= {f"{name}_{where}": float(value) for name, value in values.items()}
    return result


@torch.inference_mode()
def study(arguments) -> list[dict]:
    """Passes the same images through every run that reconstructs them."""
    runs = open_runs(arguments)
    if len({(*run.method.options.size, run.category.name) for run in runs}) > 1:
        raise UserError("the runs need the same size and category")
    found, columns, able = {}, [], set()
    drawn = draw_anomalies(runs[0].method, runs[0].normal, arguments.seed, arguments.textures)
    for index, (clean, corrupted, mask) in zip(range(arguments.n), drawn):
        shown = {"(input)": corrupted}
        for run in runs:
            rebuilt = run.method.figures(corrupted[None].to(device_of(run)), context_of(run, index))
            if "reconstruction" in rebuilt:
                shown[run.name] = rebuilt["reconstruction"].float().cpu()
        area = next(name for name, (low, high) in AREAS.items() if low <= mask.float().mean() <= high)
        for name, image in shown.items():
            found.setdefault((name, area), []).append(errors(clean, image, mask))
        able |= set(shown)
        if index < SHOWN:
            columns.append([shown.pop("(input)"), clean, *shown.values()])
    print(f"without reconstruction: {', '.join(run.name for run in runs if run.name not in able) or 'none'}")
    write_columns(arguments.out / "reconstruction.png", columns)
    return [{"run": name, "area": area, "images": len(values),
             **{key: float(np.mean([value[key] for value in values])) for key in values[0]}}
            for (name, area), values in sorted(found.items())]  # fmt: skip


if __name__ == "__main__":
    parser = parser_of(__doc__)
    parser.add_argument("--n", type=int, default=64, help="synthetic anomalies [64]")
    parser.add_argument("--textures", metavar="FOLDER", help="for the anomalies of DRAEM and RealNet [generated]")
    sys.exit(run_study(study, "reconstruction", parser.parse_args()))
