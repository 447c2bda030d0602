"""Synthesis: how near synthetic anomalies are to real ones, for every way of this package to make them.

After RealNet (CVPR 2024), supplement, section on the quality of synthesis, which compares 1,000 pictures a method with
the real anomalies of MVTec AD by Inception's Frechet distance and by LPIPS within clusters; its table is not in the
text at hand. Here the features are global averages of a backbone's deepest maps, and the test set sets the number.

draem         a texture under Perlin noise          realnet textures    the same on the part, in 8 bits
srdad         patches of the part, set in           realnet nsa         patches of another part, set in
sernet ppa    another picture under Perlin noise    realnet cut_paste   a rectangle of the picture itself
sernet dpa    colour shifted in small rectangles    realnet sdas        --anomaly-images under Perlin noise

Each is made by its method's own `corrupt` on the same normal pictures, one anomaly each: of the test set, then held
out. Noise-to-norm and the ViT autoencoder make no anomalies.

frechet    |m - m'|^2 + Tr(C + C' - 2 (C C')^(1/2)), m and C of the features (M. Heusel et al., NeurIPS 2017)
kernel     unbiased squared mean discrepancy with (x.y / D + 1)^3 (M. Binkowski et al., ICLR 2018); jackknife error
diversity  mean distance of the features of two pictures of a row
"""

import argparse
import dataclasses
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from adref import options as option_tools
from adref.config import Flags
from adref.data import Record, read_mask
from adref.files import sha256
from adref.method import Trainable
from adref.methods import find_method
from adref.methods.realnet import Options as RealNetOptions
from adref.methods.realnet import build_backbone
from adref.options import UserError
from adref.run import Progress, load_tensors
from adref.samples import Images, random_stream, resize, to_tensor
from adref.studies import Figure, Opened, Result
from adref.synthesize import TRIES, draw_examples
from adref.train import open_sources, split

ALWAYS = {"anomaly_probability": 1.0}
SYNTHESES = {  # name -> method, and what makes every example an anomaly of this kind
    "draem": ("draem", {**ALWAYS, "sampling": "shuffle"}),
    "srdad": ("srdad", {**ALWAYS, "sampling": "shuffle"}),
    "sernet ppa": ("sernet", {"segment_mix": (1, 0, 0), "reconstruct_mix": (1, 0, 0)}),
    "sernet dpa": ("sernet", {"segment_mix": (0, 1, 0), "reconstruct_mix": (0, 1, 0)}),
    **{f"realnet {source}": ("realnet", {**ALWAYS, "anomaly_sources": (source,)})
       for source in ("textures", "nsa", "cut_paste", "sdas")},
}  # fmt: skip
BACKBONES = option_tools.choices(option_tools.hints(RealNetOptions)["backbone"])
LEAST = 32  # side of the smallest square that --region cuts out, pixels
SHOWN = 8
REAL, NORMAL = "real anomalous", "real normal"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this study."""
    parser.add_argument("--n", type=int, default=100, help="pictures of each row, at most those that there are [100]")
    parser.add_argument("--backbone", choices=BACKBONES, default="mobilenet_v2", help="of the features [mobilenet_v2]")
    parser.add_argument(
        "--backbone-weights", metavar="FILE", help="published ones, as for adref.train [random weights]"
    )
    parser.add_argument("--preset", choices=("tiny", "paper"), help="of all methods but RUN's own, which has its own "
                        "options [paper for runs of 256 pixels and more, else tiny]")  # fmt: skip
    parser.add_argument("--region", action="store_true", help="features of a square around the anomaly alone")
    for name in ("textures", "anomaly-images"):
        parser.add_argument(f"--{name}", metavar="FOLDER", help="as for adref.train [RUN's]")


def study(runs: list[Opened], arguments: argparse.Namespace) -> Result:
    """Distances between every kind of synthetic anomaly, the real ones, and normal pictures.

    Raises:
        UserError: a run of several categories, too few pictures, masks that --region lacks, or weights that do not fit.
    """
    backbone, features = open_backbone(arguments.backbone, arguments.backbone_weights, arguments.seed)
    kind = "pretrained" if arguments.backbone_weights else "random"
    rows, figures = [], {}
    for run in runs:
        groups, options = gather(run, arguments)
        progress, found = Progress(), {}
        for name, pictures in groups.items():
            progress(f"{run.name}: features of {name}", final=name == list(groups)[-1])
            found[name] = average_features(backbone.to(run.device), pictures, run.method.options.size)
            if name:
                shown = [Figure(f"{i + 1}", picture) for i, picture in enumerate(pictures[:SHOWN])]
                figures[f"{run.name}, {name}"] = shown
        other = found.pop("")  # normal pictures, none of which stands in a row
        for name, values in found.items():
            row = {"run": run.name, "pictures": name, "options": options.get(name), "n": len(other), "features": kind}
            row |= distances(values, found[REAL], "anomalous") if name != REAL else dict.fromkeys(keys("anomalous"))
            rows.append(row | distances(values, other, "normal") | {"diversity": diversity(values)})
    random = "" if arguments.backbone_weights else " Random ones are no measure of likeness to the eye: give weights."
    cut = "of the whole picture"
    if arguments.region:
        cut = f"of a square around the anomaly, {LEAST} pixels or more, enlarged: a larger anomaly is at another scale"
    notes = [
        "To anomalous: to the real anomalies of the test set. To normal: to other normal pictures, which trained; for "
        f"{NORMAL} that is what is left between pictures of one kind, and its distance to anomalous what a synthesis "
        "gets that changes nothing.",
        "The Frechet distance is that of the samples, nothing is added to covariances; of few samples it is too large, "
        "of varied pictures more so, and so it is taken of equal numbers. The kernel distance is not, and may be below "
        "0; beside it its standard error.",
        f"Features: {features}, {backbone.channels[-1]} values {cut}.{random}",
        "How near is not how useful: an anomaly that is hard to find may train better than one that looks real.",
    ]
    settings = {"n": arguments.n, "features": features, "region": arguments.region, "seed": arguments.seed}
    return Result(settings, rows, notes, figures, {})


# -- pictures ---------------------------------------------------------------------------------------------------------


def gather(run: Opened, arguments: argparse.Namespace) -> tuple[dict[str, list[np.ndarray]], dict[str, str]]:
    """Pictures, uint8 (H, W, 3) at the run's size, by kind, as many of each; and whose options made the synthetic ones.

    "" are normal pictures that trained, apart from all others.
    """
    if "," in run.category.name:
        raise UserError(f"{run.name} learned several categories; this study compares the pictures of one")
    flags, rng = option_tools.replace(Flags(), run.config["flags"]), random_stream(arguments.seed, "synthesis")
    given = {name: getattr(arguments, name) for name in ("textures", "anomaly_images")}
    flags = dataclasses.replace(flags, **{name: folder for name, folder in given.items() if folder})
    training, held_out = split(run.category, flags)
    sets = {
        REAL: [record for record in run.category.test if record.label],
        NORMAL: [record for record in run.category.test if not record.label] + held_out,
        "": training,
    }
    count = min(arguments.n, *map(len, sets.values()))
    if count < 3:
        found = ", ".join(str(len(records)) for records in sets.values())
        raise UserError(f"{run.name}: --n takes 3 or more, and as many anomalous pictures, normal ones that did not "
                        f"train, and normal ones that did are needed; there are {found}")  # fmt: skip
    size, resizing = run.method.options.size, run.method.options.resize
    test = sum(not record.label for record in run.category.test)
    for name, records in sets.items():
        order = rng.permutation(len(records)).tolist()
        order.sort(key=lambda i: name == NORMAL and i >= test)  # held out last
        sets[name] = [records[i] for i in order[:count]]
    groups = {name: pictures_of(Images([r.path for r in records], size, resizing)) for name, records in sets.items()}
    masks = {}
    if arguments.region:
        real = [read_small_mask(record, size) for record in sets[REAL]]
        masks = {name: real for name in groups}  # normal pictures are cut where the anomalies of others are
    options = {}
    for name, (method_name, changes) in SYNTHESES.items():
        if name == "realnet sdas" and not flags.anomaly_images:
            continue
        method, options[name] = prepare(run, method_name, changes, arguments.preset)
        drawn = draw_anomalies(method, sets[NORMAL], flags, count, arguments.seed)
        groups[name] = [pictures["corrupted"] for pictures in drawn]
        masks |= {name: [pictures["mask"][..., 0] > 0 for pictures in drawn]} if masks else {}
    for name, squares in masks.items():
        groups[name] = [picture[around(mask)] for picture, mask in zip(groups[name], squares)]
    return groups, options


def prepare(run: Opened, name: str, changes: dict, preset: str | None) -> tuple[Trainable, str]:
    """A method that corrupts pictures of the run's size and does not turn them first; and whose options it has.

    It has no weights.
    """
    size = run.method.options.size
    preset = preset or ("paper" if min(size) >= 256 else "tiny")
    kind, own = find_method(name), run.config["method"] == name
    options = run.method.options if own else option_tools.build(kind.Options, kind.presets, {}, preset, None, {})
    still = {"rotation_probability": 0.0} if hasattr(options, "rotation_probability") else {}
    with torch.device("meta"):
        method = kind(option_tools.replace(options, still | changes))
    # Behind the check of the networks' own needs: `corrupt` has none of them.
    method.options = dataclasses.replace(method.options, size=size, resize=run.method.options.resize)
    return method, "the run's" if own else preset


def draw_anomalies(
    method: Trainable, records: Sequence[Record], flags: Flags, count: int, seed: int
) -> list[dict[str, np.ndarray]]:
    """Synthetic anomalies as the last stage of training draws them, "clean", "corrupted" and "mask", uint8 (H, W, 3).

    Args:
        method: whose they are.
        records: normal pictures, to corrupt and to cut from.
        flags: of a run; where textures and other pictures are.
        count: of the anomalies.
        seed: of all that is drawn.

    Raises:
        UserError: fewer come, however often it is tried; or pictures that `flags` should name.
    """
    sources, _ = open_sources(method, list(records), flags)
    drawn = draw_examples(method, sources._replace(stage=method.stages[-1], journal=[]), seed)
    found = list(islice((example.pictures for example, _ in islice(drawn, TRIES * count) if example), count))
    if len(found) < count:
        raise UserError(f"{type(method).__name__} made {len(found)} of {count} anomalies in {TRIES * count} tries")
    return found


def pictures_of(images: Sequence[Tensor]) -> list[np.ndarray]:
    """uint8 (3, H, W) each -> uint8 (H, W, 3)."""
    return [images[i].permute(1, 2, 0).numpy() for i in range(len(images))]


def read_small_mask(record: Record, size: tuple[int, int]) -> np.ndarray:
    """The mask of a picture at another size, bool (H, W): wherever a pixel has some of it (enlarged, it has gaps).

    Raises:
        UserError: it has none.
    """
    if record.mask is None or not (mask := read_mask(record.mask)).any():
        raise UserError(f"--region: {record.path} has no mask")
    rows, columns = (np.arange(length) * side // length for length, side in zip(mask.shape, size))
    small = np.zeros(size, bool)
    small[rows[mask.nonzero()[0]], columns[mask.nonzero()[1]]] = True
    return small


def around(mask: np.ndarray) -> tuple[slice, slice]:
    """The smallest square around a mask (H, W), no smaller than `LEAST`, moved into the picture; cut where it must."""
    boxes = [np.flatnonzero(mask.any(axis=1 - axis))[[0, -1]] for axis in (0, 1)]
    side = max(LEAST, *(last - first + 1 for first, last in boxes))
    starts = [min(max((first + last + 1 - side) // 2, 0), max(length - side, 0))
              for (first, last), length in zip(boxes, mask.shape)]  # fmt: skip
    return tuple(slice(int(start), int(start + side)) for start in starts)


# -- features and distances -------------------------------------------------------------------------------------------


def open_backbone(name: str, weights: str | None, seed: int) -> tuple[nn.Module, str]:
    """A feature extractor of RealNet, and what its features are called.

    Raises:
        UserError: weights that do not fit.
    """
    torch.manual_seed(int(random_stream(seed, "synthesis backbone").integers(2**62)))
    backbone = build_backbone(name).eval()
    if weights is None:
        return backbone, f"{name}, random weights"
    try:
        backbone.load_published(load_tensors(weights, f"--backbone-weights {weights} cannot be read"))
    except UserError as error:
        raise UserError(f"--backbone-weights {weights}: {error}") from None
    return backbone, f"{name}, {Path(weights).name} (SHA-256 {sha256(Path(weights))[:12]})"


@torch.inference_mode()
def average_features(backbone: nn.Module, pictures: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Global averages of the deepest maps: uint8 (H, W, 3) each, brought to `size` -> (N, C) float64."""
    device, found = next(backbone.parameters()).device, []
    for picture in pictures:
        image = resize(to_tensor(np.ascontiguousarray(picture)), size)[None].to(device).float() / 255
        found.append(backbone(image)[-1].double().mean(dim=(2, 3))[0].cpu().numpy())
    return np.stack(found)


def keys(to: str) -> tuple[str, str, str]:
    """The columns of `distances`."""
    return f"frechet_to_{to}", f"kernel_to_{to}", f"error_to_{to}"


def distances(x: np.ndarray, y: np.ndarray, to: str) -> dict[str, float]:
    """Frechet and kernel distance of features (N, D) and (N, D), and the jackknife error of the second."""
    left = [kernel_distance(np.delete(x, i, axis=0), np.delete(y, i, axis=0)) for i in range(len(x))]
    error = np.sqrt((len(x) - 1) * np.var(left))
    return dict(zip(keys(to), (frechet_distance(x, y), kernel_distance(x, y), float(error))))


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """|m - m'|^2 + Tr(C + C' - 2 (C C')^(1/2)) of features (M, D) and (N, D), covariances divided by M - 1, N - 1.

    With C = A^T A and C' = B^T B, the trace of the root is the sum of the singular values of A B^T: no root of a matrix
    is taken that few samples make singular.
    """
    a, b = ((z - z.mean(axis=0)) / np.sqrt(len(z) - 1) for z in (x, y))
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    gap = x.mean(axis=0) - y.mean(axis=0)
    return float(gap @ gap + (a * a).sum() + (b * b).sum() - 2 * root)


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy of (M, D) and (N, D); it may be below 0.

    A. Gretton et al., JMLR 13, 2012, equation 3, with the kernel (x.y / D + 1)^3 of Binkowski et al.
    """
    within = 0.0
    for z in (x, y):
        kernel = (z @ z.T / z.shape[1] + 1) ** 3
        within += (kernel.sum() - np.trace(kernel)) / (len(z) * (len(z) - 1))
    return float(within - 2 * ((x @ y.T / x.shape[1] + 1) ** 3).mean())


def diversity(x: np.ndarray) -> float:
    """The mean Euclidean distance of two of the features (N, D)."""
    first, second = np.triu_indices(len(x), 1)
    return float(np.linalg.norm(x[first] - x[second], axis=1).mean())
