"""Measures how near synthetic anomalies are to real ones, for each kind that the methods make.

python tools/studies/synthesis.py RUN ... --out FOLDER --backbone-weights FILE

After RealNet (CVPR 2024), supplement, section on the quality of synthesis, which compares 1,000 images a method with
the real anomalies of MVTec AD by Inception's Frechet distance and by LPIPS; here features are averages of a backbone's
deepest maps, and the test set limits their number. Each kind is drawn by its method on the normal test images.

frechet    |m - m'|^2 + Tr(C + C' - 2 (C C')^(1/2)), m and C of the features (M. Heusel et al., NeurIPS 2017); too large
           for few images, so all rows have the same number
kernel     unbiased squared mean discrepancy with (x.y / D + 1)^3 (M. Binkowski et al., ICLR 2018); may be below 0
diversity  mean distance between the features of two images of a row

To real: to the anomalous test images. To normal: to training images. Random features measure no likeness to the eye.
"""

import sys

import numpy as np
import torch
from common import Opened, draw_anomalies, open_runs, parser_of, read_small, run_study
from torch import Tensor, nn

from adref.data.examples import resize
from adref.layers.backbones import build_backbone
from adref.methods import METHODS
from adref.options import UserError, build, replace
from adref.run.directory import load_tensors

KINDS = {  # name -> method, and options that make every anomaly one of this kind
    "draem": ("draem", {}),
    "srdad": ("srdad", {}),
    "sernet ppa": ("sernet", {"segment_mix": (1, 0, 0), "reconstruct_mix": (1, 0, 0)}),
    "sernet dpa": ("sernet", {"segment_mix": (0, 1, 0), "reconstruct_mix": (0, 1, 0)}),
    **{f"realnet {source}": ("realnet", {"anomaly_sources": (source,)}) for source in ("textures", "nsa", "cut_paste")},
}


@torch.inference_mode()
def features_of(backbone: nn.Module, images: list[Tensor]) -> np.ndarray:
    """Averages the deepest maps of images (3, H, W) in [0, 1]: (N, C) float64."""
    return np.stack([backbone(image[None])[-1].double().mean(dim=(2, 3))[0].numpy() for image in images])


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Computes the Frechet distance of features (M, D) and (N, D).

    With C = A^T A and C' = B^T B, the trace of the root is the sum of the singular values of A B^T, which needs no root
    of a matrix that few samples make singular.
    """
    a, b = ((z - z.mean(axis=0)) / np.sqrt(len(z) - 1) for z in (x, y))
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    gap = x.mean(axis=0) - y.mean(axis=0)
    return float(gap @ gap + (a * a).sum() + (b * b).sum() - 2 * root)


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Estimates the squared maximum mean discrepancy of (M, D) and (N, D) without bias (A. Gretton, JMLR 13, 2012)."""
    within = 0.0
    for z in (x, y):
        kernel = (z @ z.T / z.shape[1] + 1) ** 3
        within += (kernel.sum() - np.trace(kernel)) / (len(z) * (len(z) - 1))
    return float(within - 2 * ((x @ y.T / x.shape[1] + 1) ** 3).mean())


def diversity(x: np.ndarray) -> float:
    """Computes the mean Euclidean distance of two of the features (N, D)."""
    first, second = np.triu_indices(len(x), 1)
    return float(np.linalg.norm(x[first] - x[second], axis=1).mean())


def gather(run: Opened, count: int, preset: str, seed: int, textures: str | None) -> dict[str, list[Tensor]]:
    """Collects real and synthetic images at the run's size by kind, `count` of each."""
    o = run.method.options
    records = {"real": run.anomalous, "normal": run.normal, "trained": list(run.category.train)}
    images = {kind: [read_small(record, o).float() / 255 for record in found[:count]]
              for kind, found in records.items()}  # fmt: skip
    for name, (method_name, changes) in KINDS.items():
        kind = METHODS[method_name]
        options = build(kind.Options, kind.presets, kind.ablations, preset, None, {})
        if method_name == run.kind:
            options = o
        with torch.device("meta"):
            method = kind(replace(options, changes))
        drawn = draw_anomalies(method, run.normal, seed, textures)
        found = [corrupted for _, (_, corrupted, _) in zip(range(count), drawn)]
        images[name] = [resize((255 * image).round().byte(), o.size).float() / 255 for image in found]
    return images


def study(arguments) -> list[dict]:
    """Compares every kind with real anomalies and normal images, run by run."""
    torch.manual_seed(arguments.seed)
    backbone, rows = build_backbone(arguments.backbone).eval(), []
    if arguments.backbone_weights:
        backbone.load_published(load_tensors(arguments.backbone_weights, "--backbone-weights cannot be read")[0])
    for run in open_runs(arguments):
        count = min(arguments.n, len(run.anomalous), len(run.normal), len(run.category.train))
        if count < 3:
            raise UserError(
                f"{run.name}: three real anomalous, normal and training images are needed; there are {count}"
            )
        images = gather(run, count, arguments.preset, arguments.seed, arguments.textures)
        found = {name: features_of(backbone, group) for name, group in images.items()}
        trained = found.pop("trained")
        for name, values in found.items():
            row = {"run": run.name, "images": name, "n": len(values)}
            for to, others in (("real", found["real"]), ("normal", trained)):
                row[f"frechet_to_{to}"] = frechet_distance(values, others)
                row[f"kernel_to_{to}"] = kernel_distance(values, others)
            rows.append({**row, "diversity": diversity(values)})
    return rows


if __name__ == "__main__":
    parser = parser_of(__doc__)
    parser.add_argument("--n", type=int, default=100, help="images a row, as far as there are [100]")
    parser.add_argument("--backbone", default="mobilenet_v2", help="of RealNet's backbones [mobilenet_v2]")
    parser.add_argument("--backbone-weights", metavar="FILE", help="as for adref.train realnet [random weights]")
    parser.add_argument("--preset", default="tiny", help="of methods other than the run's [tiny]")
    parser.add_argument("--textures", metavar="FOLDER", help="for the anomalies of DRAEM and RealNet [generated]")
    sys.exit(run_study(study, "synthesis", parser.parse_args()))
