"""Channel-wise cross fusion transformer: the channels of each scale attend to the channels of all scales.

H. Wang et al., "UCTransNet: Rethinking the Skip Connections in U-Net from a Channel-wise Perspective with Transformer",
AAAI 2022. The first value of a reading is that of its code, the second that of the text of SRDAD (Scientific Reports
2025, Eqs 11 to 14).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adref.layers.swin import MLP


class CrossAttentionLayer(nn.Module):
    """Attends from each scale to the concatenation of all scales, then applies an MLP to each scale.

    Args:
        widths: channels C_i of the scales; S is their sum.
        heads: full-width heads, averaged, not concatenated.
        attention: "channel": softmax(psi(Q_i^T K / scale)), (C_i x S); "token": softmax(psi(Q_i K^T / scale)), (N x N),
            queries, keys, values and results all of width d = S // number of scales.
        scale: "sum": sqrt(S); "own": sqrt(C_i), for tokens sqrt(d).
        instance_norm: psi normalises each (image, head) matrix of scores; else it is the identity.
        residual: "official": H = T + CA, T <- H + MLP(LN H); "eq14": T <- CA + MLP(LN(Q + CA)), Q the mean of the
            queries over the heads, as both papers print it, normalisation omitted: T itself is not added. "token"
            needs "eq14".
        output, bias: a matrix multiplies CA, the mean over the heads; biases of queries, keys and values.
        dropout: rate on the attention matrices.
    """

    def __init__(self, *, widths: tuple[int, ...], heads: int, attention: str, scale: str, instance_norm: bool,
                 residual: str, output: bool, bias: bool, dropout: float):  # fmt: skip
        super().__init__()
        self.heads, self.attention, self.dropout = heads, attention, dropout
        self.instance_norm, self.residual = instance_norm, residual
        total, common = sum(widths), sum(widths) // len(widths)
        inner = widths if attention == "channel" else (common,) * len(widths)  # channels of each query and result
        shared = total if attention == "channel" else common
        self.scales = [(total if scale == "sum" else d) ** 0.5 for d in inner]
        self.norms = nn.ModuleList(nn.LayerNorm(c, eps=1e-6) for c in widths)
        self.norm_all = nn.LayerNorm(total, eps=1e-6)
        self.queries = nn.ModuleList(nn.Linear(c, heads * d, bias=bias) for c, d in zip(widths, inner))
        self.key, self.value = (nn.Linear(total, heads * shared, bias=bias) for _ in range(2))
        self.outs = nn.ModuleList(nn.Linear(d, d, bias=False) if output else nn.Identity() for d in inner)
        self.mlp_norms = nn.ModuleList(nn.LayerNorm(d, eps=1e-6) for d in inner)
        self.mlps = nn.ModuleList(MLP(d, 4 * d) for d in inner)
        self.widths = inner  # of the results

    def forward(self, scales: list[Tensor]) -> list[Tensor]:
        """Maps T_i, (B, N, C_i) each, to the same shapes, or, attending to tokens, to (B, N, d)."""
        everything = self.norm_all(torch.cat(scales, dim=-1))  # T_S, (B, N, S)
        keys, values = self._split(self.key(everything)), self._split(self.value(everything))  # (B, K, N, S or d)
        result = []
        for i, tokens in enumerate(scales):
            queries = self._split(self.queries[i](self.norms[i](tokens)))  # (B, K, N, C_i or d)
            attended = self.outs[i](self.attend(queries, keys, values, self.scales[i]))  # CA_i
            if self.residual == "official":
                tokens = tokens + attended
                result.append(tokens + self.mlps[i](self.mlp_norms[i](tokens)))
            else:
                result.append(attended + self.mlps[i](self.mlp_norms[i](queries.mean(dim=1) + attended)))
        return result

    def weights(self, queries: Tensor, keys: Tensor, scale: float) -> Tensor:
        """Computes the attention matrices (B, K, C_i, S) of channels, or (B, K, N, N) of tokens; rows sum to 1.

        Queries are (B, K, N, C_i or d), keys (B, K, N, S or d); `scale` divides the scores.
        """
        channels = self.attention == "channel"
        scores = (queries.transpose(-2, -1) @ keys if channels else queries @ keys.transpose(-2, -1)) / scale
        if self.instance_norm:
            # Over each whole matrix, without learned scale: it cancels any factor in W_q, W_k, the scale included.
            kind = torch.promote_types(scores.dtype, torch.float32)
            scores = F.layer_norm(scores.to(kind), scores.shape[-2:]).to(scores.dtype)
        return scores.softmax(dim=-1)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """Averages the attended values over the heads: (B, N, C_i or d)."""
        attention = F.dropout(self.weights(queries, keys, scale), self.dropout, self.training)
        channels = self.attention == "channel"  # there (A V^T)^T = V A^T
        return (values @ attention.transpose(-2, -1) if channels else attention @ values).mean(dim=1)

    def _split(self, x: Tensor) -> Tensor:
        """Splits the heads: (B, N, K d) -> (B, K, N, d)."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class CrossFusion(nn.Module):
    """Embeds feature maps as tokens of equal image areas, applies cross-attention layers, and adds the result back.

    Args:
        size, widths: (H, W) of the first, largest map and channels C_i; map i has the sides H / 2^i, W / 2^i.
        patches: side P_i of a token in pixels of map i; all maps must give the same grid of tokens, or ValueError.
        layers, form: number and further arguments of the layers (`CrossAttentionLayer`).
        add_input, dropout: adds X_i to the result; rate on the tokens and the attention matrices.
    """

    def __init__(self, *, size: tuple[int, int], widths: tuple[int, ...], patches: tuple[int, ...], layers: int,
                 add_input: bool, dropout: float, **form):  # fmt: skip
        super().__init__()
        steps = {patch * 2**i for i, patch in enumerate(patches)}
        if len(steps) > 1 or len(patches) != len(widths) or any(side % max(steps) for side in size):
            raise ValueError(f"expected {len(widths)} patches that divide {size} into one grid, got {patches}")
        tokens = (size[0] // max(steps)) * (size[1] // max(steps))
        self.patches, self.add_input, self.dropout = patches, add_input, dropout
        self.embeds = nn.ModuleList(nn.Conv2d(c, c, p, stride=p) for c, p in zip(widths, patches))
        self.positions = nn.ParameterList(nn.Parameter(torch.zeros(1, tokens, c)) for c in widths)
        self.layers, inner = nn.ModuleList(), widths
        for _ in range(layers):
            self.layers.append(CrossAttentionLayer(widths=inner, dropout=dropout, **form))
            inner = self.layers[-1].widths
        self.norms = nn.ModuleList(nn.LayerNorm(d, eps=1e-6) for d in inner)
        pairs = ((nn.Conv2d(d, c, 1), nn.BatchNorm2d(c)) for d, c in zip(inner, widths))
        self.rebuilds = nn.ModuleList(nn.Sequential(*pair, nn.ReLU(inplace=True)) for pair in pairs)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps X_i, (B, C_i, H / 2^i, W / 2^i) each, to the same shapes."""
        grids = [embed(x) for embed, x in zip(self.embeds, maps)]  # (B, C_i, h, w)
        tokens = [g.flatten(2).transpose(1, 2) + position for g, position in zip(grids, self.positions)]  # (B, N, C_i)
        tokens = [F.dropout(t, self.dropout, self.training) for t in tokens]
        for layer in self.layers:
            tokens = layer(tokens)
        outputs = []
        for i, x in enumerate(maps):
            grid = self.norms[i](tokens[i]).transpose(1, 2).unflatten(2, grids[i].shape[2:])
            # Copying pixels commutes with a 1x1 convolution and with batch statistics (except for the factor n/(n - 1)
            # of the running variance): each token is convolved once, not P^2 times.
            back = F.interpolate(self.rebuilds[i](grid), scale_factor=self.patches[i], mode="nearest")
            outputs.append(back + x if self.add_input else back)
        return outputs
