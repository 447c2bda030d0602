"""Maps features of normal, anomalous and synthetic images to two dimensions by t-SNE, and measures their separation.

python tools/studies/tsne.py RUN ... --out FOLDER [--layer discriminator.levels.4]      needs pip install '.[peers]'

After SRDAD (Scientific Reports 2025, s41598-025-10303-8), section on t-SNE, which shows 120 normal, 50 anomalous and 50
synthetic images of a category and does not name the layer; here a layer's output is averaged over the image, for SRDAD
level 5 of the discriminator. Normal images are those of the test set, then those of the training set. Writes tsne.csv
(silhouettes; 1: separate, 0: mixed), tsne_points.csv and a scatter plot for each run: normal blue, anomalous red,
synthetic yellow. The network was trained to separate synthetic anomalies from normal images: that it does so is no
evidence that they look real.
"""

import sys

import numpy as np
from common import draw_anomalies, open_runs, parser_of, pooled_features, read_small, run_study, write_rows
from PIL import Image, ImageDraw

from adref.options import UserError

LAYERS = {  # without --layer
    "draem": "discriminator.encoder.blocks.5",
    "srdad": "discriminator.levels.4",
    "vit_autoencoder": "encoder.norm",
    "sernet": "reconstructor.encoder.blocks.4",
    "noise_to_norm": "network.encoder.2",
    "realnet": "discriminator.units",
}
COLOURS = {"normal": (60, 110, 190), "anomalous": (200, 50, 50), "synthetic": (220, 170, 20)}
SIDE = 640  # pixels of the plot


def study(arguments) -> list[dict]:
    """Maps every run's images; returns a row a run."""
    try:
        from sklearn.manifold import TSNE
        from sklearn.metrics import silhouette_score
    except ImportError:
        raise UserError("scikit-learn is missing: pip install '.[peers]'") from None
    rows, points = [], []
    for number, run in enumerate(open_runs(arguments)):
        rng = np.random.default_rng(arguments.seed)
        normal = [*rng.permutation(len(run.normal)), *(len(run.normal) + rng.permutation(len(run.category.train)))]
        normal = [[*run.normal, *run.category.train][i] for i in normal[: arguments.normal]]
        anomalous = [run.anomalous[i] for i in rng.permutation(len(run.anomalous))[: arguments.anomalous]]
        images = {"normal": normal, "anomalous": anomalous}
        images = {kind: [read_small(r, run.method.options).float() / 255 for r in found]
                  for kind, found in images.items()}  # fmt: skip
        images["synthetic"] = []
        if arguments.synthetic:
            drawn = draw_anomalies(run.method, run.category.train, arguments.seed, arguments.textures)
            images["synthetic"] = [corrupted for _, (_, corrupted, _) in zip(range(arguments.synthetic), drawn)]
        kinds = np.repeat(list(images), [len(found) for found in images.values()])
        layer = arguments.layer or LAYERS[run.kind]
        features = pooled_features(run, [image for found in images.values() for image in found], layer)
        features = (features - features.mean(0)) / np.maximum(features.std(0), 1e-12)
        perplexity = min(arguments.perplexity, (len(features) - 1) / 3)
        embedding = TSNE(perplexity=perplexity, init="pca", random_state=arguments.seed).fit_transform(features)
        row = {"run": run.name, "layer": layer, "values": features.shape[1], "images": len(features)}
        for name, other in (("anomalous", "normal"), ("synthetic", "normal"), ("synthetic", "anomalous")):
            used = np.isin(kinds, (name, other))
            both = len(set(kinds[used])) == 2
            row[f"silhouette_{name}_{other}"] = silhouette_score(features[used], kinds[used]) if both else None
        rows.append(row)
        points += [{"run": run.name, "kind": kind, "x": x, "y": y} for kind, (x, y) in zip(kinds, embedding)]
        scatter(embedding, kinds).save(arguments.out / f"tsne_{number}.png")
    write_rows(arguments.out / "tsne_points.csv", points)
    return rows


def scatter(embedding: np.ndarray, kinds: np.ndarray) -> Image.Image:
    """Draws a dot an image at its place (N, 2)."""
    low, high = embedding.min(0), embedding.max(0)
    places = 10 + (embedding - low) / np.maximum(high - low, 1e-9) * (SIDE - 20)
    picture = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    for (x, y), kind in zip(places.tolist(), kinds):
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=COLOURS[kind])
    return picture


if __name__ == "__main__":
    parser = parser_of(__doc__)
    for kind, count in (("normal", 120), ("anomalous", 50), ("synthetic", 50)):
        parser.add_argument(f"--{kind}", type=int, default=count, metavar="N", help=f"images at most [{count}]")
    parser.add_argument("--perplexity", type=float, default=30.0, help="at most a third of the images [30]")
    parser.add_argument("--layer", help="of method.named_modules() [by method]")
    parser.add_argument("--textures", metavar="FOLDER", help="for synthetic anomalies of DRAEM and RealNet [generated]")
    sys.exit(run_study(study, "tsne", parser.parse_args()))
