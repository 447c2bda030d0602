"""Channel-wise cross fusion transformer: each scale's channels attend to the channels of all scales.

H. Wang et al., "UCTransNet: Rethinking the Skip Connections in U-Net from a Channel-wise Perspective with Transformer",
AAAI 2022; in SRDAD (Scientific Reports 2025): Eqs 11 to 14. SRDAD prints token attention, softmax(Q K^T / sqrt(d)) V,
and calls it channel attention; both are here.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adref.layers.swin import MLP


class CrossAttentionLayer(nn.Module):
    """One layer: queries of each scale, keys and values of all scales side by side; then an MLP for each scale.

    Args:
        widths: channels C_i of the scales; S is their sum.
        heads: full-width heads, averaged, not concatenated.
        attention: "channel": softmax(psi(Q_i^T K / scale)), (C_i x S); "token": softmax(psi(Q_i K^T / scale)), (N x N),
            with queries, keys and values of one common width d = S // number of scales.
        scale: "sum": sqrt(S); "own": sqrt(C_i), for tokens sqrt(d), as Eq 12 prints it.
        instance_norm: psi normalises each (image, head) matrix of scores; else it is the identity.
        residual: "official": H = T + CA, T <- H + MLP(LN H), as UCTransNet's code; "eq14": T <- CA + MLP(LN(Q + CA)), Q
            the mean of the queries over the heads, as both papers print it: nothing of T itself goes on.
        dropout: rate on the attention matrices.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        heads: int = 4,
        attention: Literal["channel", "token"] = "channel",
        scale: Literal["sum", "own"] = "sum",
        instance_norm: bool = True,
        residual: Literal["official", "eq14"] = "official",
        dropout: float = 0.1,
    ):
        super().__init__()
        total, tokens = sum(widths), attention == "token"
        inner = [total // len(widths)] * len(widths) if tokens else list(widths)  # channels of each query
        self.heads, self.attention, self.instance_norm, self.residual = heads, attention, instance_norm, residual
        self.dropout, self.inner = dropout, inner
        self.scales = [(total if scale == "sum" else d) ** 0.5 for d in inner]
        shared = inner[0] if tokens else total
        self.norms = nn.ModuleList(nn.LayerNorm(c, eps=1e-6) for c in widths)
        self.norm_all = nn.LayerNorm(total, eps=1e-6)
        self.queries = nn.ModuleList(nn.Linear(c, heads * d, bias=False) for c, d in zip(widths, inner))
        self.key = nn.Linear(total, heads * shared, bias=False)
        self.value = nn.Linear(total, heads * shared, bias=False)
        self.outs = nn.ModuleList(nn.Linear(d, c, bias=False) for d, c in zip(inner, widths))
        self.mlp_norms = nn.ModuleList(nn.LayerNorm(c, eps=1e-6) for c in widths)
        self.mlps = nn.ModuleList(MLP(c, 4 * c) for c in widths)

    def forward(self, scales: list[Tensor]) -> list[Tensor]:
        """T_i, (B, N, C_i) each -> the same shapes."""
        everything = self.norm_all(torch.cat(scales, dim=-1))  # T_S, (B, N, S)
        keys, values = self._split(self.key(everything)), self._split(self.value(everything))  # (B, K, N, S or d)
        result = []
        for i, tokens in enumerate(scales):
            queries = self._split(self.queries[i](self.norms[i](tokens)))  # (B, K, N, C_i or d)
            attended = self.outs[i](self.attend(queries, keys, values, self.scales[i]))  # CA_i
            if self.residual == "official":
                tokens = tokens + attended
                result.append(tokens + self.mlps[i](self.mlp_norms[i](tokens)))
            else:  # equation 14 as printed
                mean = queries.mean(dim=1)
                mean = self.outs[i](mean) if self.attention == "token" else mean
                result.append(attended + self.mlps[i](self.mlp_norms[i](mean + attended)))
        return result

    def weights(self, queries: Tensor, keys: Tensor, scale: float) -> Tensor:
        """The attention matrices of equation 12, rows summing to 1: of channels (B, K, C_i, S), of tokens (B, K, N, N).

        Args:
            queries: (B, K, N, C_i or d).
            keys: (B, K, N, S or d).
            scale: divisor of the scores.
        """
        if self.attention == "channel":
            scores = queries.transpose(-2, -1) @ keys / scale
        else:
            scores = queries @ keys.transpose(-2, -1) / scale
        if self.instance_norm:
            # Over each whole matrix, without learned scale: it cancels any factor in W_q, W_k, the scale included.
            kind = torch.promote_types(scores.dtype, torch.float32)
            scores = F.layer_norm(scores.to(kind), scores.shape[-2:]).to(scores.dtype)
        return scores.softmax(dim=-1)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """(B, N, C_i or d): equations 12 and 13, the mean over the heads."""
        attention = F.dropout(self.weights(queries, keys, scale), self.dropout, self.training)
        if self.attention == "channel":
            return (values @ attention.transpose(-2, -1)).mean(dim=1)  # (A V^T)^T = V A^T
        return (attention @ values).mean(dim=1)

    def _split(self, x: Tensor) -> Tensor:
        """(B, N, K d) -> (B, K, N, d)."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class CrossFusion(nn.Module):
    """Feature maps to tokens of equal image areas, cross-attention layers, and back, added to the maps (Eqs 11 to 14).

    Args:
        size: (H, W) of the first, largest map; map i is at 1 / 2^i of it.
        widths: channels C_i of the maps.
        patches: side P_i of a token in pixels of map i; all maps must give the same grid of tokens.
        layers: cross-attention layers.
        add_input: adds X_i to what comes back.
        dropout: rate on the tokens and the attention matrices.
        heads, attention, scale, instance_norm, residual: as in `CrossAttentionLayer`.

    Raises:
        ValueError: patches that do not cut all maps into one grid.
    """

    def __init__(
        self,
        size: tuple[int, int],
        widths: tuple[int, ...],
        patches: tuple[int, ...] = (16, 8, 4, 2),
        layers: int = 4,
        heads: int = 4,
        attention: Literal["channel", "token"] = "channel",
        scale: Literal["sum", "own"] = "sum",
        instance_norm: bool = True,
        residual: Literal["official", "eq14"] = "official",
        add_input: bool = True,
        dropout: float = 0.1,
    ):
        super().__init__()
        steps = {patch * 2**i for i, patch in enumerate(patches)}
        if len(steps) > 1 or len(patches) != len(widths) or any(side % max(steps) for side in size):
            raise ValueError(f"expected {len(widths)} patches that cut {size} at halving sides alike, got {patches}")
        tokens = (size[0] // max(steps)) * (size[1] // max(steps))
        self.patches, self.add_input, self.dropout = patches, add_input, dropout
        self.embeds = nn.ModuleList(nn.Conv2d(c, c, p, stride=p) for c, p in zip(widths, patches))
        self.positions = nn.ParameterList(nn.Parameter(torch.zeros(1, tokens, c)) for c in widths)
        self.layers = nn.ModuleList(
            CrossAttentionLayer(widths, heads, attention, scale, instance_norm, residual, dropout)
            for _ in range(layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(c, eps=1e-6) for c in widths)
        self.rebuilds = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, c, 1), nn.BatchNorm2d(c), nn.ReLU(inplace=True)) for c in widths
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """X_i, (B, C_i, H / 2^i, W / 2^i) each -> O_i, the same shapes."""
        grids = [embed(x) for embed, x in zip(self.embeds, maps)]  # equation 11: (B, C_i, h, w)
        tokens = [g.flatten(2).transpose(1, 2) + position for g, position in zip(grids, self.positions)]
        tokens = [F.dropout(t, self.dropout, self.training) for t in tokens]  # (B, N, C_i)
        for layer in self.layers:
            tokens = layer(tokens)
        outputs = []
        for i, x in enumerate(maps):
            grid = self.norms[i](tokens[i]).transpose(1, 2).reshape(grids[i].shape)
            # Copying pixels commutes with a 1x1 convolution and with batch statistics (but for the factor n / (n - 1)
            # of the running variance): each token is convolved once, not P^2 times.
            back = F.interpolate(self.rebuilds[i](grid), scale_factor=self.patches[i], mode="nearest")
            outputs.append(back + x if self.add_input else back)
        return outputs
