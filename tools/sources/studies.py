"""Prints the sourced golden numbers of tests/test_studies_features.py, from scikit-learn only (adref is not imported).

    pip install "scikit-learn>=1.5"
    PYTHONPATH=tools python tools/sources/studies.py

t-SNE: `TSNE(method="exact")` without its two early ends, on principal components from `PCA`. Once with exaggeration 1,
where the descent is smooth and two programs stay together to the end, once with 12, where rounding decides what it
settles in (the affinities of scikit-learn have float32 distances). Kernel distance: from `polynomial_kernel`.
"""

import importlib.metadata

import numpy as np


def noise(seed: int, size: int) -> np.ndarray:
    """`size` 32-bit integers from a multiply-and-shift hash of the index: any language can rebuild them."""
    x = np.arange(size, dtype=np.uint64) + np.uint64(seed * 1_000_003)
    for shift, factor in ((16, 0x45D9F3B), (16, 0x45D9F3B), (16, 1)):
        x = ((x ^ (x >> np.uint64(shift))) * np.uint64(factor)) & np.uint64(0xFFFFFFFF)
    return x


def points(seed: int, count: int, width: int) -> np.ndarray:
    """Three groups in `width` dimensions: (count, width) float64."""
    x = noise(seed, count * width).reshape(count, width) / 2.0**30
    x[: count // 3, 0] += 6
    x[count // 3 : 2 * count // 3, 1] -= 6
    x[count // 2 :, 2] += 3
    return x


def tsne(x: np.ndarray, perplexity: float, exaggeration: float) -> tuple[np.ndarray, float]:
    from sklearn.decomposition import PCA  # here, for the test takes `points` where there is no scikit-learn
    from sklearn.manifold import TSNE

    components = PCA(min(50, *x.shape), svd_solver="full").fit_transform(x)
    start = PCA(2, svd_solver="full").fit_transform(x)
    model = TSNE(
        method="exact", perplexity=perplexity, init=1e-4 * start / start[:, 0].std(), max_iter=1000,
        learning_rate=max(len(x) / exaggeration / 4, 50), early_exaggeration=exaggeration, min_grad_norm=0,
        n_iter_without_progress=1000,
    )  # fmt: skip
    return model.fit_transform(components), model.kl_divergence_


def main() -> None:
    from sklearn.metrics import silhouette_score
    from sklearn.metrics.pairwise import polynomial_kernel

    print("# scikit-learn", importlib.metadata.version("scikit-learn"), "numpy", importlib.metadata.version("numpy"))
    x = points(1, 48, 60)
    for exaggeration in (1.0, 12.0):
        embedding, divergence = tsne(x, 12.0, exaggeration)
        print(f"t-SNE, exaggeration {exaggeration}: divergence {float(divergence)!r}, rows 0, 20, 47:")
        print("   ", np.round(embedding[[0, 20, 47]], 4).tolist())
    two, three = np.arange(48) < 10, np.array([0] * 10 + [1] * 37 + [2])
    print("silhouette, 10 and 38:", silhouette_score(x, two), " 10, 37 and 1:", silhouette_score(x, three))
    y = points(2, 30, 60) + 0.3
    within = sum((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))
                 for k in (polynomial_kernel(z, z, 3, 1 / 60, 1) for z in (x, y)))  # fmt: skip
    print("kernel distance:", within - 2 * polynomial_kernel(x, y, 3, 1 / 60, 1).mean())


if __name__ == "__main__":
    main()
