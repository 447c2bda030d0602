"""Reconstruction: how well methods restore what lay under synthetic anomalies, and keep what lay beside them.

After SRDAD (Scientific Reports 2025, s41598-025-10303-8), section on reconstructions, which compares three methods by
eye; the numbers are ours. Synthetic anomalies Y are drawn, as one of the runs draws them in training, on normal
pictures that no run trained on; the clean picture is the truth. Errors of a picture are its means inside Y and outside:

mse   squared difference of pixels in [0, 1], mean of the colours
psnr  -10 log10 mse, decibels
ssim  structural similarity, Gaussian windows of 11 x 11 pixels that may reach across the edge of Y
"""

import argparse
import itertools

import numpy as np
import torch
from torch import Tensor

from adref import options as option_tools
from adref.config import Flags
from adref.data import read_image
from adref.evaluate import bytes_of, name_of
from adref.losses import ssim_map
from adref.method import Method
from adref.options import UserError
from adref.run import Progress, method_arguments
from adref.samples import random_stream, to_tensor
from adref.studies import Figure, Opened, Result, column
from adref.synthesize import TRIES, draw_examples
from adref.train import open_sources, split

MEASURES = tuple(f"{name}_{where}" for where in ("inside", "outside") for name in ("mse", "psnr", "ssim"))
AREAS = ("< 1 %", "1 to 5 %", "> 5 %")  # share of the picture that Y covers
INPUT = "(the input itself)"
WIDTH, SHOWN = 160, 6  # pixels of a shown picture; how many are shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this study."""
    parser.add_argument("--n", type=int, default=64, help="synthetic anomalies to draw [64]")
    parser.add_argument("--anomaly-from", metavar="RUN", help="name of the run whose kind of anomaly it is [the first]")


def study(runs: list[Opened], arguments: argparse.Namespace) -> Result:
    """The same inputs through every run that reconstructs pictures.

    Raises:
        UserError: runs of several sizes or categories, none that reconstructs, or no anomaly that leaves a part clean.
    """
    if arguments.n < 1:
        raise UserError(f"--n takes 1 or more; got {arguments.n}")
    able = [run for run in runs if type(run.method).reconstruct is not Method.reconstruct]
    others = [f"{run.name} ({run.config['method']})" for run in runs if run not in able]
    if not able:
        raise UserError(f"no run reconstructs pictures: {', '.join(others)}")
    for what, values in (
        ("sizes", ["{} x {}".format(*run.method.options.size) for run in runs]),
        ("categories", [run.category.name for run in runs]),
    ):
        if len(set(values)) > 1:
            named = ", ".join(f"{run.name} {value}" for run, value in zip(runs, values))
            raise UserError(f"the runs must get the same inputs, but have several {what}: {named}")
    source = next((run for run in runs if run.name == (arguments.anomaly_from or runs[0].name)), None)
    if source is None:
        names = ", ".join(run.name for run in runs)
        raise UserError(f"--anomaly-from takes the name of a run, one of: {names}; got {arguments.anomaly_from}")
    examples = draw_anomalies(runs, source, arguments.n, arguments.seed)
    rows, figures = measure_runs(able, examples, arguments.seed)
    notes = [
        f"{len(examples)} anomalies of {source.name} ({source.config['method']}) on normal pictures that no run "
        "trained on: those of the test set, and those that every run held out. What else anomalies are made of, such "
        "as textures, training has seen.",
        "Area: share of the picture that the anomaly covers. Means over the pictures of such a share; psnr is n/a "
        "where one of them has no error at all.",
        f"{INPUT}: the corrupted picture against the truth, what a method gets that changes nothing.",
        "A method that trained on this kind of anomaly is at home here, others are not.",
        *([f"No reconstruction of pictures: {', '.join(others)}."] if others else []),
    ]
    settings = {"n": arguments.n, "anomaly_from": source.name, "seed": arguments.seed}
    return Result(settings, rows, notes, figures | real(able), {})


def draw_anomalies(runs: list[Opened], source: Opened, count: int, seed: int) -> list[dict[str, np.ndarray]]:
    """`count` pictures by "clean", "corrupted" and "mask", uint8 (H, W, 3), as the first stage of a run draws them.

    Raises:
        UserError: no normal picture that no run trained on, or no anomaly that leaves a part of a picture clean.
    """
    flags = {run.name: option_tools.replace(Flags(), run.config["flags"]) for run in runs}
    kept = [set(split(run.category, flags[run.name])[1]) for run in runs]
    unseen = [record for record in source.category.test if not record.label]
    unseen += sorted(set.intersection(*kept), key=lambda record: record.path)
    if not unseen:
        raise UserError(f"{source.category.name} has no normal picture that no run trained on")
    sources, _ = open_sources(source.method, unseen, flags[source.name])
    drawn = draw_examples(source.method, sources._replace(stage=source.method.stages[0], journal=[]), seed)
    found, remedy = [], "--anomaly-from takes the name of another run"
    try:
        for _, (example, _) in zip(range(TRIES * count), drawn):
            if example and not (example.pictures["mask"] > 0).all():  # noise, for one, is everywhere
                found.append(example.pictures)
            if len(found) == count:
                break
    except UserError as error:
        raise UserError(f"{source.name}: {error}; {remedy}") from None
    if not found:
        method = source.config["method"]
        raise UserError(f"{source.name} ({method}) draws no anomaly that leaves a part of a picture clean; {remedy}")
    return found


def errors(truth: Tensor, other: Tensor, mask: Tensor) -> dict[str, float]:
    """Errors of a picture against the true one, both (1, 3, H, W) in [0, 1], inside and outside of a mask (H, W)."""
    squared = (other - truth).double().square().mean(dim=1)[0]
    similarity = ssim_map(other, truth, padding="reflect").double().mean(dim=1)[0]  # zeros around would be alike
    result = {}
    for where, pixels in (("inside", mask), ("outside", ~mask)):
        mse = squared[pixels].mean()
        values = {"mse": mse, "psnr": -10 * mse.log10(), "ssim": similarity[pixels].mean()}
        result |= {f"{name}_{where}": float(value) for name, value in values.items()}
    return result


def area(mask: np.ndarray) -> str:
    """The group of `AREAS` of a mask, bool (H, W)."""
    return AREAS[0] if (share := mask.mean()) < 0.01 else AREAS[1] if share <= 0.05 else AREAS[2]


@torch.inference_mode()
def measure_runs(
    runs: list[Opened], examples: list[dict[str, np.ndarray]], seed: int
) -> tuple[list[dict], dict[str, list[Figure]]]:
    """A row a run and area, the input itself first; and the first pictures of every area."""
    found, figures, progress = {}, {group: [] for group in AREAS}, Progress()
    for index, pictures in enumerate(examples):
        mask = pictures["mask"][..., 0] > 0
        group, shown = area(mask), [pictures["corrupted"], pictures["clean"]]
        clean, corrupted = (to_tensor(pictures[key])[None].float() / 255 for key in ("clean", "corrupted"))
        rebuilt = {INPUT: corrupted}
        for run in runs:
            # No look: there is no file that has this anomaly, and the look of the clean one would tell the truth.
            images = corrupted.to(run.device, memory_format=torch.channels_last)
            rebuilt[run.name] = run.method.reconstruct(images, [random_stream(seed, "test", index)], None).float().cpu()
            shown.append(bytes_of({"": rebuilt[run.name][0]})[""])
        for name, picture in rebuilt.items():
            found.setdefault((name, group), []).append(errors(clean, picture, torch.from_numpy(mask)))
        if len(figures[group]) < SHOWN // len(AREAS):
            order = ", ".join(["input", "truth", *(run.name for run in runs)])
            figures[group].append(Figure(f"{100 * mask.mean():.1f} % of the picture: {order}", column(shown, WIDTH)))
        progress(f"picture {index + 1}/{len(examples)}", final=index + 1 == len(examples))
    rows = []
    for name, group in itertools.product(rebuilt, AREAS):
        values = found.get((name, group), [])
        means = {key: float(np.mean([v[key] for v in values])) if values else np.nan for key in MEASURES}
        means = {key: value if np.isfinite(value) else None for key, value in means.items()}
        rows.append({"run": name, "area": group, "pictures": len(values), **means})
    return rows, {"Synthetic anomalies": [*itertools.chain(*figures.values())]}


@torch.inference_mode()
def real(runs: list[Opened]) -> dict[str, list[Figure]]:
    """Anomalous test pictures, at even steps through the test set, and what every run makes of them."""
    test, figures = runs[0].category.test, []
    anomalous = [index for index, record in enumerate(test) if record.label]
    for place in np.unique(np.linspace(0, len(anomalous) - 1, min(SHOWN, len(anomalous))).astype(int)):
        index, shown = anomalous[place], {}
        image = read_image(test[index].path)
        for run in runs:
            images, *rest = method_arguments(run.method, image, run.config["flags"]["seed"], index)
            shown = {"input": images[0], **shown, run.name: run.method.reconstruct(images, *rest)[0]}
        words = f"{name_of(test[index])}: {', '.join(shown)}"
        figures.append(Figure(words, column(list(bytes_of(shown).values()), WIDTH)))
    return {"Real anomalies": figures} if figures else {}
