"""t-SNE: features of normal, anomalous and synthetic pictures in two dimensions, and how far the groups part.

After SRDAD (Scientific Reports 2025, s41598-025-10303-8), section on t-SNE, which shows 120 normal, 50 anomalous and 50
synthetic pictures of a category and does not say of which layer; here a global average of a layer's output, for SRDAD
of the discriminator's level 5 (320 values at full size). Normal pictures are those of the test set, then those held
out, then those that trained. Synthetic ones are what the run's own training draws, on further normal pictures as far as
there are any. Features are standardised. The silhouettes are ours. SRDAD's levels are discriminator.levels.0 to 4, what
leaves its cross attention discriminator.fusion.rebuilds.0 to 3.
"""

import argparse
import difflib
from collections.abc import Sequence
from html import escape
from typing import get_type_hints

import numpy as np
import torch
from torch import Tensor

from adref import options as option_tools
from adref.config import Flags
from adref.data import Record, read_image
from adref.evaluate import name_of
from adref.options import UserError
from adref.report import chart
from adref.run import Progress, method_arguments
from adref.samples import random_stream
from adref.studies import Figure, Opened, Result
from adref.studies.synthesis import draw_anomalies, prepare
from adref.train import split

KINDS = ("normal", "anomalous", "synthetic")
LAYERS = {  # what is read where no --layer is given: the first that a method has
    "draem": ("discriminator.encoder.blocks.5",),
    "srdad": ("discriminator.levels.4", "discriminator.encoder.blocks.5"),  # with DRAEM's discriminator: its deepest
    "vit_autoencoder": ("encoder.norm",),
    "sernet": ("reconstructor.encoder.blocks.4",),
    "noise_to_norm": ("network.encoder.3", "network.encoder.2", "network.encoder.1"),  # the deepest of its levels
    "realnet": ("discriminator.units",),
}
MARKS = {  # in 100 x 100 units, and a colour of the page's style: a dot, a cross, a plus
    "normal": ("h0", "correct"),
    "anomalous": ("m-.8-1l1.6 2m0-2l-1.6 2", "miss"),
    "synthetic": ("m-1 0h2m-1-1.2v2.4", "mark"),
}
SHOWN = 8  # synthetic pictures on the page


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this study."""
    for kind, count in zip(KINDS, (120, 50, 50)):
        parser.add_argument(
            f"--{kind}", type=int, default=count, metavar="N", help=f"{kind} pictures at most [{count}]"
        )
    parser.add_argument("--perplexity", type=float, default=30.0, help="at most a third of the pictures [30]")
    parser.add_argument("--layer", metavar="NAME", help="of named_modules() [a deep one, by method]")


def study(runs: list[Opened], arguments: argparse.Namespace) -> Result:
    """A map of every run's pictures by the features of a layer.

    Raises:
        UserError: counts or a perplexity that make no map, too few pictures, a layer that a run has not, or features
            that make no map.
    """
    limits = {kind: getattr(arguments, kind) for kind in KINDS}
    if min(limits.values()) < 0 or arguments.perplexity < 1:
        raise UserError("--normal, --anomalous and --synthetic take 0 or more, --perplexity 1 or more")
    layers = {run.name: find_layer(run, arguments.layer) for run in runs}
    rows, notes, figures, maps = [], [], {}, ""
    for run in runs:
        groups, words, shown = gather(run, limits, layers[run.name], arguments.seed)
        found = [kind for kind in KINDS if len(groups[kind])]
        labels = np.repeat(found, [len(groups[kind]) for kind in found])
        if len(labels) < 5 or len(found) < 2:
            raise UserError(f"{run.name}: a map needs two kinds and five pictures; there are {words}")
        points = standardised(np.concatenate([groups[kind] for kind in found]))
        if points.shape[1] == 0:
            raise UserError(f"{run.name}: features of {layers[run.name]} are not finite, or alike in all pictures")
        perplexity = min(arguments.perplexity, (len(labels) - 1) / 3)
        embedding, divergence = exact_tsne(points, perplexity)
        about = {"run": run.name, "layer": layers[run.name], "values": points.shape[1], "perplexity": perplexity}
        rows += [about | row | {"divergence": divergence} for row in compare(points, embedding, labels)]
        notes.append(f"{run.name}: {words}.")
        figures |= {f"{run.name}, synthetic": shown} if shown else {}
        maps += scatter(embedding, labels, f"<b>{escape(run.name)}</b> {layers[run.name]}, divergence {divergence:.3f}")
    notes += [
        "Silhouette: of 1 two groups part, at 0 they mix, below they are nearer to the other group than to their own; "
        "the mean over all pictures of both. It is of the features; that of the map is of what the eye sees, where "
        "distances between groups mean little. Divergence: Kullback-Leibler, in nats, of the map.",
    ]
    if figures:
        notes.append("Caution: the network was trained to merge synthetic anomalies with 'anomalous', so this plot is "
                     "not independent evidence that they are realistic.")  # fmt: skip
    return Result({**limits, "perplexity": arguments.perplexity, "layer": arguments.layer or "by method",
                   "seed": arguments.seed}, rows, notes, figures, {"Map": maps})  # fmt: skip


# -- features ---------------------------------------------------------------------------------------------------------


def find_layer(run: Opened, name: str | None) -> str:
    """The layer to read: `name`, or the first of `LAYERS` that the run has.

    Raises:
        UserError: no such layer; the near ones are listed.
    """
    known = [key for key, _ in run.method.named_modules() if key]
    wanted = (name,) if name else LAYERS.get(run.config["method"], ())
    if found := next((layer for layer in wanted if layer in known), None):
        return found
    near = difflib.get_close_matches(name or "", known, n=5, cutoff=0.4) or known[:5]
    problem = f"has no layer {name}" if name else "has none of the layers that are read by default"
    raise UserError(f"{run.name} {problem}; --layer takes, for example: {', '.join(near)}")


def gather(
    run: Opened, limits: dict[str, int], layer: str, seed: int
) -> tuple[dict[str, np.ndarray], str, list[Figure]]:
    """Features (N, C) by kind, where the pictures come from, in words, and some synthetic ones to look at."""
    flags, rng = option_tools.replace(Flags(), run.config["flags"]), random_stream(seed, "tsne")
    training, held_out = split(run.category, flags)
    test = [record for record in run.category.test if not record.label]
    normal, places = [], {"of the test set": test, "held out": held_out, "that trained": training}
    for records in places.values():
        normal += [records[i] for i in rng.permutation(len(records))]
    anomalous = [record for record in run.category.test if record.label]
    anomalous = [anomalous[i] for i in rng.permutation(len(anomalous))[: limits["anomalous"]]]
    normal, rest = normal[: limits["normal"]], normal[limits["normal"] :]
    parts = (f"{sum(r in records for r in normal)} {place}" for place, records in places.items())
    synthetic = []
    if limits["synthetic"] and "mask" in get_type_hints(run.method.corrupt)["return"]._fields:
        bases = [*rest, *normal][: max(limits["synthetic"], 2)]  # two: some anomalies are cut from another picture
        method, _ = prepare(run, run.config["method"], {}, None)
        synthetic = draw_anomalies(method, bases, flags, limits["synthetic"], seed)
    pictures = {"normal": normal, "anomalous": anomalous, "synthetic": [drawn["corrupted"] for drawn in synthetic]}
    words = ", ".join(f"{len(pictures[kind])} {kind}" for kind in KINDS) + f"; of the normal ones {', '.join(parts)}"
    shown = [Figure(f"synthetic {i + 1}", drawn["corrupted"]) for i, drawn in enumerate(synthetic[:SHOWN])]
    return {kind: read_features(run, pictures[kind], layer) for kind in KINDS}, words, shown


@torch.inference_mode()
def read_features(run: Opened, pictures: Sequence[Record | np.ndarray], layer: str) -> np.ndarray:
    """Global averages (N, C), float64, of what a layer puts out while pictures are scored; of its last call.

    Args:
        run: whose method it is.
        pictures: records of files, or pictures, uint8 (H, W, 3), which have no file that a method could look at.
        layer: a name of `named_modules()`.

    Raises:
        UserError: the layer does not run, or its output is no tensor (B, ...) with two to four axes.
    """
    outputs: list = []
    module = run.method.get_submodule(layer)
    hook = module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    found, progress = [], Progress()
    try:
        for index, picture in enumerate(pictures):
            outputs.clear()
            is_file = isinstance(picture, Record)
            image = read_image(picture.path) if is_file else picture
            images, streams, looks = method_arguments(run.method, image, run.config["flags"]["seed"], index)
            run.method.score(images, streams, looks if is_file else None)
            if not outputs or not isinstance(outputs[-1], Tensor) or not 2 <= outputs[-1].ndim <= 4:
                problem = "puts out no map" if outputs else "takes no part when pictures are scored"
                raise UserError(f"--layer: {layer} of {run.name} {problem}; give another one")
            found.append(pooled(outputs[-1], images.shape[2:])[0].double().cpu().numpy())
            what = name_of(picture) if is_file else "synthetic"
            progress(f"{run.name}: {what} {index + 1}/{len(pictures)}", final=index + 1 == len(pictures))
    finally:
        hook.remove()
    return np.array(found)


def pooled(output: Tensor, size: Sequence[int]) -> Tensor:
    """The mean over all places: (B, C, h, w), (B, h, w, C) as Swin layers have it, tokens (B, N, C), (B, C) -> (B, C).

    Of four axes those two are places whose shape is more like that of the picture (H, W).

    Raises:
        UserError: neither is, but for the rounding of a side.
    """
    if output.ndim == 4:
        skew = [abs(output.shape[i] * size[1] - output.shape[i + 1] * size[0]) for i in (1, 2)]
        if min(skew) >= max(size):
            raise UserError(f"--layer: {tuple(output.shape[1:])} is no map of a picture of {tuple(size)}")
        output = output if skew[0] < skew[1] else output.permute(0, 2, 3, 1)
    return output.flatten(1, -2).mean(dim=1) if output.ndim > 2 else output


def standardised(features: np.ndarray) -> np.ndarray:
    """Features (N, D), each column with mean 0 and standard deviation 1; without those that do not vary.

    No column is left where a number is not finite.
    """
    deviation = features.std(axis=0)
    varied = deviation > 1e-12 * np.abs(features).max()
    return (features - features.mean(axis=0))[:, varied] / deviation[varied]


# -- numbers and picture ----------------------------------------------------------------------------------------------


def compare(points: np.ndarray, embedding: np.ndarray, labels: np.ndarray) -> list[dict]:
    """Silhouettes of normal against all anomalous pictures, and of real against synthetic ones, in both spaces."""
    rows = []
    for name, first, second in (("normal : anomalous and synthetic", ("normal",), ("anomalous", "synthetic")),
                                ("anomalous : synthetic", ("anomalous",), ("synthetic",))):  # fmt: skip
        groups = np.isin(labels, first), np.isin(labels, second)
        used, row = (
            groups[0] | groups[1],
            {"groups": name, "first": int(groups[0].sum()), "second": int(groups[1].sum())},
        )
        for key, space in (("silhouette", points), ("silhouette_of_map", embedding)):
            whole = groups[0].any() and groups[1].any()
            row[key] = silhouette(space[used], groups[0][used]) if whole else None
        rows.append(row)
    return rows


def silhouette(points: np.ndarray, labels: np.ndarray) -> float:
    """The mean of (b - a) / max(a, b) over points (N, D), Euclidean (P. Rousseeuw, J. Comput. Appl. Math. 20, 1987).

    a is a point's mean distance to the others of its group, b the least of its mean distances to the other groups; a
    point that is a group by itself counts 0.
    """
    distances, values = np.sqrt(squared_distances(points)), np.zeros(len(points))
    groups = {label: labels == label for label in np.unique(labels)}
    for label, own in groups.items():
        if own.sum() > 1:
            a = distances[own][:, own].sum(axis=1) / (own.sum() - 1)
            b = np.min([distances[own][:, other].mean(axis=1) for key, other in groups.items() if key != label], axis=0)
            values[own] = (b - a) / np.maximum(np.maximum(a, b), 1e-300)
    return float(values.mean())


def scatter(embedding: np.ndarray, labels: np.ndarray, caption: str) -> str:
    """The map as markup: a dot, a cross or a plus a picture, and a legend."""
    low, high = embedding.min(axis=0), embedding.max(axis=0)
    margin = 0.04 * (high - low) + 1e-9
    low, high = low - margin, high + margin
    places, shapes, legend = 100 * (embedding - low) / (high - low), "", ""
    for kind, (mark, colour) in MARKS.items():
        own = places[labels == kind]
        path = "".join(f"M{x:.2f} {100 - y:.2f}{mark}" for x, y in own)
        width = 8 if kind == "normal" else 2
        shapes += f'<path data-kind="{kind}" style="fill:none;stroke:var(--{colour});stroke-width:{width}" d="{path}"/>'
        sign = {"normal": "●", "anomalous": "✕", "synthetic": "+"}[kind]
        legend += f' <b style="color:var(--{colour})">{sign} {kind} {len(own)}</b>'
    ranges = [(float(a), float(b)) for a, b in zip(low, high)]
    markup = chart(shapes, f"{caption}<br>{legend}", "distances between groups mean little", *ranges)
    return markup.replace("<svg ", '<svg style="height:440px" ')


# -- t-SNE ------------------------------------------------------------------------------------------------------------


def exact_tsne(
    features: np.ndarray, perplexity: float = 30.0, iterations: int = 1000, exaggeration: float = 12.0
) -> tuple[np.ndarray, float]:
    """t-SNE without approximations (L. van der Maaten, G. Hinton, JMLR 9, 2008), in float64; the same every time.

    At most 50 principal components; from the first two, scaled to a standard deviation of 1e-4; 250 steps at
    exaggerated affinities and momentum 0.5, then 0.8; rate max(N / exaggeration / 4, 50) (A. Belkina et al., Nature
    Communications 10, 2019); gains from 0.01.

    Args:
        features: (N, D), N above 3.
        perplexity: effective number of neighbours, from 1 to below N - 1.
        iterations: steps.
        exaggeration: factor of the affinities in the first 250 steps.

    Returns:
        embedding (N, 2), and its Kullback-Leibler divergence in nats.
    """
    count = len(features)
    if features.ndim != 2 or count < 4 or not 1 <= perplexity < count - 1:
        raise ValueError(f"expected (N, D), N above 3, perplexity in [1, N - 1); got {features.shape}, {perplexity}")
    p = affinities(squared_distances(principal_components(features, 50)), perplexity)
    y = principal_components(features, 2)
    y = 1e-4 * np.pad(y, ((0, 0), (0, 2 - y.shape[1]))) / max(y[:, 0].std(), 1e-300)
    rate = max(count / exaggeration / 4, 50.0)
    for first, last, factor, momentum in ((0, 250, exaggeration, 0.5), (250, iterations, 1.0, 0.8)):
        velocity, gains = np.zeros_like(y), np.ones_like(y)
        for _ in range(first, min(last, iterations)):
            gradient = divergence_gradient(factor * p, y)
            gains = np.maximum(np.where(velocity * gradient < 0, gains + 0.2, 0.8 * gains), 0.01)
            velocity = momentum * velocity - rate * gains * gradient
            y = y + velocity
    return y, divergence(p, y)


def principal_components(x: np.ndarray, count: int) -> np.ndarray:
    """The first `count` (or fewer) principal components of (N, D), signs set so that loadings of most size are > 0."""
    left, values, right = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])
    return (left * (values * signs))[:, :count]


def squared_distances(x: np.ndarray) -> np.ndarray:
    """(N, D) -> (N, N), squared Euclidean distances, exactly 0 on the diagonal."""
    norms = (x * x).sum(axis=1)
    distances = np.maximum(norms[:, None] + norms - 2 * x @ x.T, 0)
    np.fill_diagonal(distances, 0)
    return distances


def affinities(distances: np.ndarray, perplexity: float) -> np.ndarray:
    """p_ij = (p_j|i + p_i|j) / 2N, p_j|i Gaussians of the given perplexity, whose logarithm they meet within 1e-5.

    Args:
        distances: (N, N), squared.
        perplexity: exp of the entropy of each p_.|i, found by halving an interval of 1 / (2 sigma^2).
    """
    count = len(distances)
    others = ~np.eye(count, dtype=bool)
    d = distances - np.where(others, distances, np.inf).min(axis=1, keepdims=True)  # cancels; no row is all 0
    beta, low, high = np.ones(count), np.zeros(count), np.full(count, np.inf)
    for _ in range(100):
        p = np.exp(-np.where(others, d, np.inf) * beta[:, None])
        total = p.sum(axis=1)
        excess = np.log(total) + beta * (p * d).sum(axis=1) / total - np.log(perplexity)
        if (np.abs(excess) <= 1e-5).all():
            break
        wide = excess > 0
        low, high = np.where(wide, beta, low), np.where(wide, high, beta)
        beta = np.where(np.isinf(high), 2 * beta, (low + high) / 2)
    p /= p.sum(axis=1, keepdims=True)
    return (p + p.T) / (2 * count)


def divergence_gradient(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of `divergence` by y: 4 sum_j (p_ij - q_ij) (y_i - y_j) / (1 + |y_i - y_j|^2), (N, 2)."""
    kernel = student_kernel(y)
    weights = (p - kernel / kernel.sum()) * kernel
    return 4 * (weights.sum(axis=1)[:, None] * y - weights @ y)


def divergence(p: np.ndarray, y: np.ndarray) -> float:
    """sum p_ij ln(p_ij / q_ij), q_ij the share of a pair in 1 / (1 + |y_i - y_j|^2); in nats."""
    kernel, least = student_kernel(y), np.finfo(float).eps
    q = kernel / kernel.sum()
    return float((p * np.log(np.maximum(p, least) / np.maximum(q, least))).sum())


def student_kernel(y: np.ndarray) -> np.ndarray:
    """1 / (1 + |y_i - y_j|^2), 0 on the diagonal: (N, N)."""
    kernel = 1 / (1 + squared_distances(y))
    np.fill_diagonal(kernel, 0)
    return kernel
