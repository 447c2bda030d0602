"""Memory module: each query is replaced by a convex combination of learned items.

D. Gong et al., "Memorizing Normality to Detect Anomaly: Memory-augmented Deep Autoencoder for Unsupervised Anomaly
Detection" (MemAE), ICCV 2019, Eqs 3 to 8. Its text addresses by cosine, its code by the dot product; both are here.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Recall(NamedTuple):
    """The result of addressing a memory."""

    output: Tensor  # like the queries
    weights: Tensor  # (..., K) of each query over the items, after shrinkage and renormalisation
    empty: Tensor  # (...) bool: dead queries, for which no item survived the shrinkage


def address(queries: Tensor, items: Tensor, *, addressing: str, temperature: float, threshold: float | None) -> Recall:
    """Recalls a mixture of items for each query: soft addressing, hard shrinkage, renormalisation.

        w = softmax(d(z, m_i) / tau),  s_i = max(w_i - lambda, 0) w_i / (|w_i - lambda| + eps),  w_hat = s / sum s,
        z_hat = sum_i w_hat_i m_i,     eps = 1e-12

    With the cosine and tau = 1 no weight is more than e^2 = 7.4 times another: at lambda = 1 / K, the mean, about half
    of the items survive, and the result is the softmax over the survivors. An item that survives for no query gets next
    to no gradient. A query for which nothing survives (all weights are 1 / K, up to rounding) gets zeros.

    `queries` are (..., C), `items` (K, C), combined as they are, not normalised; `addressing` is d, the "cosine" of the
    angle or the inner product, "dot"; `temperature` tau, 1 in MemAE; `threshold` lambda, None for 1 / K; 0 leaves the
    weights as they are. Returns output (..., C), weights (..., K) and empty (...), at least float32.
    """
    if items.ndim != 2 or queries.shape[-1] != items.shape[-1]:
        shapes = f"{tuple(queries.shape)}, {tuple(items.shape)}"
        raise ValueError(f"expected queries (..., C) and items (K, C), got {shapes}")
    if addressing not in ("cosine", "dot"):
        raise ValueError(f"expected cosine|dot, got {addressing}")
    threshold = 1 / len(items) if threshold is None else threshold
    # The weights are near 1 / K and are compared with 1 / K: half precision could not tell them apart.
    with torch.autocast(queries.device.type, enabled=False):
        kind = torch.promote_types(queries.dtype, torch.float32)
        z, m = queries.to(kind), items.to(kind)
        a, b = (F.normalize(x, dim=-1, eps=1e-12) for x in (z, m)) if addressing == "cosine" else (z, m)
        soft = (a @ b.T / temperature).softmax(dim=-1)
        excess = soft - threshold
        kept = excess.relu() * soft / (excess.abs() + 1e-12)  # clamp_min would pass a gradient of 1e12 on at exactly 0
        # Scores of equal items differ in their last bits: a largest weight that is above the threshold by no more than
        # that is at it, and nothing survives.
        rounding = 16 * torch.finfo(kind).eps * (1 + a.norm(dim=-1, keepdim=True) * b.norm(dim=-1).max()) / temperature
        largest = soft.amax(dim=-1, keepdim=True)
        if threshold > 0:
            kept = torch.where(largest - threshold > rounding.clamp_max(1e-3) * largest, kept, 0)
        total = kept.sum(dim=-1, keepdim=True)
        weights = kept / total.clamp_min(1e-12)
        return Recall(weights @ m, weights, (total == 0).squeeze(-1))


def entropy(weights: Tensor) -> Tensor:
    """Computes -sum_i w_i ln(w_i + 1e-12) over the items, in nats: (..., K) -> (...)."""
    return -(weights * (weights + 1e-12).log()).sum(dim=-1)


class Memory(nn.Module):
    """Addresses K = `items` items at every position of a map of C = `width` channels, in the form of `address`."""

    def __init__(self, *, width: int, items: int, **form):
        super().__init__()
        self.form = form
        self.weight = nn.Parameter(torch.empty(items, width).uniform_(-(width**-0.5), width**-0.5))

    def forward(self, maps: Tensor) -> Recall:
        """Maps (B, C, H, W) to output (B, C, H, W), weights (B, H, W, K), empty (B, H, W)."""
        recall = address(maps.permute(0, 2, 3, 1), self.weight, **self.form)
        return recall._replace(output=recall.output.permute(0, 3, 1, 2))
