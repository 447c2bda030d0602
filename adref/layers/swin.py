"""Swin Transformer blocks: attention in windows that shift from block to block, patch merging, patch expanding.

Z. Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021 (W-MSA, Eqs 3, 4);
patch expanding: H. Cao et al., "Swin-Unet: Unet-like Pure Transformer for Medical Image Segmentation", ECCV-W 2022.
Maps are (B, H, W, C) with the channels last. Parameter names are those of both papers' public checkpoints.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def relative_position_index(window: tuple[int, int]) -> Tensor:
    """Indexes the bias table for each pair of tokens: (N, N) int64, N = h w tokens of a window in row-major order.

    index(i, j) = (r_i - r_j + h - 1)(2w - 1) + (c_i - c_j + w - 1), token i at row r_i and column c_i.
    """
    h, w = window
    rows, columns = torch.arange(h).repeat_interleave(w), torch.arange(w).repeat(h)
    dr, dc = rows[:, None] - rows[None], columns[:, None] - columns[None]
    return (dr + h - 1) * (2 * w - 1) + dc + w - 1


def shift_mask(size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """Makes the mask that a shifted block adds to its scores: 0, or -100 between tokens that are no neighbours.

    After the roll by (-shift), a window at the far edge holds parts of opposite sides of the map. Each axis of length
    L has the parts [0, L - window), [L - window, L - shift), [L - shift, L); only tokens of one part may attend.

    `size` is (H, W) of the map in tokens, `window` (h, w), dividing it, `shift` the rows and columns of the roll; 0
    leaves an axis whole. Returns (number of windows, N, N) float32, windows in row-major order.
    """
    parts = []
    for length, side, roll in zip(size, window, shift):
        place = torch.arange(length)
        parts.append((place >= length - side).long() + (place >= length - roll).long() if roll else 0 * place)
    regions = split_windows((3 * parts[0][:, None] + parts[1][None])[None, :, :, None], window)[0, :, :, 0]
    return torch.where(regions[:, :, None] == regions[:, None, :], 0.0, -100.0)


def split_windows(x: Tensor, window: tuple[int, int]) -> Tensor:
    """Splits (B, H, W, C) into (B, windows, N, C), windows and the tokens in them in row-major order."""
    (b, height, width, c), (h, w) = x.shape, window
    return x.view(b, height // h, h, width // w, w, c).transpose(2, 3).reshape(b, -1, h * w, c)


def join_windows(x: Tensor, window: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Inverts `split_windows`: (B, windows, N, C) -> (B, H, W, C)."""
    (h, w), (height, width) = window, size
    x = x.view(x.shape[0], height // h, width // w, h, w, x.shape[-1])
    return x.transpose(2, 3).reshape(x.shape[0], height, width, -1)


class WindowAttention(nn.Module):
    """Attends within windows of (h, w) tokens: K heads of C / K channels, learned bias by relative position (Eq 4)."""

    def __init__(self, width: int, heads: int, window: tuple[int, int]):
        super().__init__()
        self.heads, self.window = heads, tuple(window)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window[0] - 1) * (2 * window[1] - 1), heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Maps (B, windows, N, C), with None or (windows, N, N) from `shift_mask`, to (B, windows, N, C)."""
        b, windows, n, c = x.shape
        q, k, v = self.qkv(x).view(b, windows, n, 3, self.heads, c // self.heads).permute(3, 0, 1, 4, 2, 5)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)  # (K, N, N)
        bias = bias if mask is None else bias + mask[:, None]  # (windows, K, N, N)
        bias = bias.expand(windows, -1, -1, -1).flatten(0, 1)  # windows and heads are one axis: no copy for each image
        q, k, v = (t.flatten(1, 2) for t in (q, k, v))  # (B, windows K, N, C / K)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.proj(x.view(b, windows, self.heads, n, -1).transpose(2, 3).reshape(b, windows, n, c))


class MLP(nn.Module):
    """Applies linear, GELU (erf), linear: (..., C) -> (..., C)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """Computes x + Attention(LN x), then x + MLP(LN x), of (B, H, W, C) (Eq 3), in windows that may be shifted.

    `width` and `heads` are C and K, `size` (H, W) of the map and `window` the side of a window, in tokens; `shifted`
    rolls by half of it before attending. Along an axis no longer than the window, the window is the axis and nothing
    shifts; a longer one must be a multiple of it, or ValueError.
    """

    def __init__(self, *, width: int, heads: int, size: tuple[int, int], window: int, shifted: bool):
        super().__init__()
        self.size, self.window = tuple(size), tuple(min(window, side) for side in size)
        self.shift = tuple(window // 2 if shifted and side > window else 0 for side in size)
        if any(side % w for side, w in zip(size, self.window)):
            raise ValueError(f"expected sides of at most, or multiples of, the window {window}, got {self.size}")
        self.norm1, self.attn = nn.LayerNorm(width), WindowAttention(width, heads, self.window)
        self.norm2, self.mlp = nn.LayerNorm(width), MLP(width, 4 * width)
        mask = shift_mask(self.size, self.window, self.shift) if any(self.shift) else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        windows = self.norm1(x)
        if any(self.shift):
            windows = windows.roll((-self.shift[0], -self.shift[1]), dims=(1, 2))
        windows = self.attn(split_windows(windows, self.window), self.mask)
        attended = join_windows(windows, self.window, self.size)
        if any(self.shift):
            attended = attended.roll(self.shift, dims=(1, 2))
        x = x + attended
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Halves both sides and doubles the channels: concatenates each 2 x 2 square, LN, linear 4C -> 2C."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, H/2, W/2, 2C)."""
        # (row, column): even even, odd even, even odd, odd odd
        squares = torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=-1)
        return self.reduction(self.norm(squares))


class PatchExpanding(nn.Module):
    """Enlarges both sides: linear without bias, channels become `scale` x `scale` pixels, LN (Swin-Unet).

    There `width_out`, the channels of the output, is C / 2 at scale 2 and C at the final scale 4.
    """

    def __init__(self, width: int, scale: int, width_out: int):
        super().__init__()
        self.scale, self.expand = scale, nn.Linear(width, scale * scale * width_out, bias=False)
        self.norm = nn.LayerNorm(width_out)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, scale H, scale W, width_out)."""
        (b, h, w, _), s = x.shape, self.scale
        # channel (p1 s + p2) C + c goes to pixel (s h + p1, s w + p2)
        pixels = self.expand(x).view(b, h, w, s, s, -1).transpose(2, 3).reshape(b, h * s, w * s, -1)
        return self.norm(pixels)


def init_linears(module: nn.Module) -> None:
    """Initialises a linear as Swin does, weights truncated normal, std 0.02, biases 0; for `network.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
