"""Vision Transformer: patches become tokens, all tokens attend to all in pre-norm blocks.

A. Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", ICLR 2021 (Eqs 1 to
4). Parameter names are timm's, so that its checkpoints load.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adref.layers.swin import MLP, init_linears


class Attention(nn.Module):
    """Attends over (B, N, D): softmax(q k^T / sqrt(D / K)) v in each of K heads, then a linear."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)  # (B, K, N, D / K)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))


class Block(nn.Module):
    """Computes z' = z + MSA(LN z), then z' + MLP(LN z'), of (B, N, D) (Eqs 2, 3)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=1e-6), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, eps=1e-6), MLP(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    """Maps each patch of p x p pixels by a linear: (B, 3, H, W) -> (B, N, D), patches in row-major order (Eq 1)."""

    def __init__(self, patch: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """Encodes images into a map of their patches.

    `size` is (H, W) of the images, multiples of `patch`, a patch's side in pixels; `width` is D, `depth` the number of
    blocks, `heads` K, dividing D. `class_token` "drop": a learned token attends with the others and is left out of the
    map; "add": it is added to every position of the map; "none": there is none.
    """

    def __init__(self, *, size: tuple[int, int], patch: int, width: int, depth: int, heads: int, class_token: str):
        super().__init__()
        if any(side % patch for side in size) or width % heads:
            raise ValueError(f"expected sides in multiples of {patch} and {heads} dividing {width}, got {size}")
        self.grid, self.class_token = tuple(side // patch for side in size), class_token
        extra = int(class_token != "none")
        self.patch_embed = PatchEmbedding(patch, width)
        if extra:
            self.cls_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=0.02))
        self.pos_embed = nn.Parameter(torch.empty(1, extra + math.prod(self.grid), width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.patch_embed.proj.weight, std=0.02)
        nn.init.zeros_(self.patch_embed.proj.bias)
        self.apply(init_linears)

    def forward(self, images: Tensor) -> Tensor:
        """Maps (B, 3, H, W) to (B, D, H/p, W/p); cell (r, c) is patch r W/p + c."""
        x = self.patch_embed(images)
        if self.class_token != "none":
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.to_map(self.norm(x))

    def to_map(self, tokens: Tensor) -> Tensor:
        """Reshapes tokens (B, N, D), the class token first if there is one, to (B, D, H/p, W/p)."""
        if self.class_token != "none":
            first, tokens = tokens[:, :1], tokens[:, 1:]
            tokens = tokens + first if self.class_token == "add" else tokens
        return tokens.transpose(1, 2).unflatten(2, self.grid)

    def load_timm(self, state: dict[str, Tensor]) -> None:
        """Loads a checkpoint with timm's names, without its classifier; ValueError where keys or shapes do not fit.

        A table of positions for another (square) grid is interpolated bicubically.
        """
        state = {k: v for k, v in state.items() if not k.startswith(("head.", "head_dist.", "fc_norm.", "pre_logits."))}
        own, unused = self.state_dict(), {"cls_token"} if self.class_token == "none" else set()
        missing, unknown = sorted(set(own) - set(state)), sorted(set(state) - set(own) - unused)
        if missing or unknown:
            found = f"{len(missing)} missing {missing[:3]}, {len(unknown)} unknown {unknown[:3]}"
            raise ValueError(f"keys do not fit a ViT with {len(self.blocks)} blocks: {found}")
        state = {key: state[key] for key in own} | {"pos_embed": self._resized_positions(state["pos_embed"], state)}
        if wrong := [key for key in own if own[key].shape != state[key].shape]:
            raise ValueError(f"{wrong[0]} has shape {tuple(state[wrong[0]].shape)}, not {tuple(own[wrong[0]].shape)}")
        self.load_state_dict(state)

    def _resized_positions(self, table: Tensor, state: dict) -> Tensor:
        extra = int("cls_token" in state)
        if table.ndim != 3 or table.shape[1] <= extra:
            raise ValueError(f"pos_embed has shape {tuple(table.shape)}, not (1, N, {self.pos_embed.shape[2]})")
        first, patches = table[:, :extra], table[:, extra:]
        count, side = patches.shape[1], math.isqrt(patches.shape[1])
        square = side**2 == count
        if not square and count != math.prod(self.grid):
            raise ValueError(f"pos_embed has {count} rows, which is neither {self.grid} nor a square")
        if square and self.grid != (side, side):  # as many rows in another shape are another grid, too
            grid = patches.transpose(1, 2).unflatten(2, (side, side))
            patches = F.interpolate(grid.float(), self.grid, mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
        return patches if self.class_token == "none" else torch.cat((first, patches), dim=1)
