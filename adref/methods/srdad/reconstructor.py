"""SRDAD's reconstructive network: Swin-Unet with ASPP, a residual decoder and gated skips; or plain Swin-Unet.

H. Cao et al., "Swin-Unet", ECCV-W 2022; SRDAD, Scientific Reports 2025, equations 6 to 10. Maps are (B, H, W, C).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adref.layers.aspp import ASPP
from adref.layers.swin import PatchExpanding, PatchMerging, SwinBlock, init_linears

PATCH = 4  # equation 6: pixels a token's side
ASPP_RATES = (3, 6, 12)  # equation 7
DEPTHS = (2, 2, 2)  # blocks of each stage, in encoder and decoder (Swin-Unet's code, without its bottleneck)
HEADS = (3, 6, 12)  # attention heads of each stage (Swin Transformer's code)

# Arguments of `SwinUNet` that make it Swin-Unet.
SWIN_UNET = {"bottleneck_depth": 2, "aspp_width": None, "residual": "none", "skips": "concat", "skip_tap": "pre"}


class Stage(nn.Module):
    """Computes D = Stage(X) + W X (equation 8): the `depth` Swin blocks of one level, every second one shifted.

    `residual` "level": as above; "block": the same around each block; "none": without W. `form`: as in `SwinBlock`.
    """

    def __init__(self, *, width: int, depth: int, residual: str, **form):
        super().__init__()
        self.residual = residual
        self.blocks = nn.ModuleList(SwinBlock(width=width, shifted=i % 2 == 1, **form) for i in range(depth))
        count = {"none": 0, "level": 1, "block": depth}[residual]
        self.residuals = nn.ModuleList(nn.Linear(width, width) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        start = x
        for i, block in enumerate(self.blocks):
            x = block(x) + self.residuals[i](x) if self.residual == "block" else block(x)
        return x + self.residuals[0](start) if self.residual == "level" else x


class GatedSkip(nn.Module):
    """Gates the encoder's map by the decoder's: F = sigmoid(W1 [E, D]) * (W2 E) (equation 9).

    `gates` "channel": one for each of `width` channels, as the equation; "spatial": one a token, as the caption.
    """

    def __init__(self, *, width: int, gates: str):
        super().__init__()
        self.gate = nn.Linear(2 * width, width if gates == "channel" else 1)  # W1
        self.value = nn.Linear(width, width)  # W2

    def forward(self, encoded: Tensor, decoded: Tensor) -> Tensor:
        return torch.sigmoid(self.gate(torch.cat((encoded, decoded), dim=-1))) * self.value(encoded)


class SwinUNet(nn.Module):
    """Reconstructs images: patch embedding, encoder, bottleneck, ASPP, decoder, fourfold expansion to pixels.

    Args:
        size: (H, W) in pixels; see `next_valid_side`.
        width: channels C of the first level; level l has C 2^(l - 1) at 1 / (4 2^(l - 1)) of the sides.
        window: side of a window in tokens.
        aspp_width: channels of a branch of ASPP (equation 7); None: no ASPP.
        residual, gates: as in `Stage` (of the decoder) and `GatedSkip`.
        skips: "final_sum": the gated skips of all levels are brought to level 1 and added there (equation 10);
            "inline": each is added at its level; "concat": no gates, linear(2C -> C) on [D, E], as Swin-Unet.
        skip_levels: gated levels, 4 (with the pair before and after ASPP) or 3.
        skip_tap: "post": E is a stage's output; "pre": its input, as Swin-Unet's code.
        depths, bottleneck_depth: blocks of each stage, in encoder and decoder, and at the deepest level.
    """

    def __init__(self, *, size: tuple[int, int], width: int, window: int, aspp_width: int | None, residual: str,
                 skips: str, skip_levels: int, gates: str, skip_tap: str = "post",
                 depths: tuple[int, int, int] = DEPTHS, bottleneck_depth: int = 0):  # fmt: skip
        super().__init__()
        self.skips, self.skip_tap = skips, skip_tap
        levels = len(depths)
        widths = [width * 2**level for level in range(levels + 1)]
        sizes = [tuple(side // PATCH // 2**level for side in size) for level in range(levels + 1)]
        heads, blocks = (*HEADS, 2 * HEADS[-1]), (*depths, bottleneck_depth)  # the last is the bottleneck

        def stage(level: int, residual: str) -> Stage:
            return Stage(width=widths[level], heads=heads[level], size=sizes[level], window=window,
                         depth=blocks[level], residual=residual)  # fmt: skip

        self.embed = nn.Conv2d(3, width, PATCH, stride=PATCH)
        self.embed_norm = nn.LayerNorm(width)
        self.stages = nn.ModuleList(stage(i, "none") for i in range(levels))
        self.merges = nn.ModuleList(PatchMerging(width=w) for w in widths[:-1])
        self.bottleneck = stage(levels, "none")
        self.norm = nn.LayerNorm(widths[-1])
        self.aspp = ASPP(width=widths[-1], branch_width=aspp_width, rates=ASPP_RATES) if aspp_width else None
        self.expands = nn.ModuleList(PatchExpanding(width=2 * w, scale=2, width_out=w) for w in widths[:-1])
        self.decoder = nn.ModuleList(stage(i, residual) for i in range(levels))
        gated = skip_levels if skips != "concat" else 0
        self.gated = nn.ModuleList(GatedSkip(width=widths[i], gates=gates) for i in range(gated))
        self.fuse = nn.ModuleList(nn.Linear(2 * w, w) for w in (widths[:-1] if skips == "concat" else ()))
        self.align = nn.ModuleList(nn.Linear(w, width) for w in (widths[1:gated] if skips == "final_sum" else ()))
        self.decoder_norm = nn.LayerNorm(width)
        self.final_expand = PatchExpanding(width=width, scale=PATCH, width_out=width)
        self.out = nn.Linear(width, 3, bias=skips != "concat")  # Swin-Unet's has none
        self.apply(init_linears)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructs images: (B, 3, H, W) -> (B, 3, H, W), not clamped."""
        x = self.embed_norm(self.embed(x).permute(0, 2, 3, 1))  # equation 6: (B, H/4, W/4, C)
        encoded = []  # E_1, E_2, E_3, E_4
        for stage, merge in zip(self.stages, self.merges):
            before, x = x, stage(x)
            encoded.append(before if self.skip_tap == "pre" else x)
            x = merge(x)
        encoded.append(self.norm(self.bottleneck(x)))  # (B, H/32, W/32, 8C)
        x = encoded[-1]
        if self.aspp is not None:
            x = self.aspp(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        skipped = []  # F_4, F_3, F_2, F_1
        for level in reversed(range(len(encoded))):
            if level < len(self.decoder):
                x = self.expands[level](x)
                if self.skips == "concat":
                    x = self.fuse[level](torch.cat((x, encoded[level]), dim=-1))
                x = self.decoder[level](x)
            if level < len(self.gated):
                gated = self.gated[level](encoded[level], x)
                x = x + gated if self.skips == "inline" else x
                skipped.append(gated)
        if self.skips == "final_sum":
            x = self.sum_skips(x, skipped)
        return self.out(self.final_expand(self.decoder_norm(x))).permute(0, 3, 1, 2)

    def sum_skips(self, decoded: Tensor, skipped: list[Tensor]) -> Tensor:
        """Adds the gated skips, F_1 last, to D_1 (B, H/4, W/4, C) by linears and bilinear upsampling (equation 10)."""
        *deep, total = skipped
        for align, gated in zip(reversed(self.align), deep):
            aligned = align(gated).permute(0, 3, 1, 2)
            total = total + F.interpolate(aligned, decoded.shape[1:3], mode="bilinear").permute(0, 2, 3, 1)
        return decoded + total

    def load_swin(self, state: dict[str, Tensor]) -> None:
        """Loads the encoder's weights from a Swin Transformer's state dict with its authors' key names.

        A deeper stage gives its first blocks. A bias table of another window is resized bicubically, as its authors do.
        ValueError for missing keys (the first three named), or a shape that differs.
        """
        parts = {"embed": "patch_embed.proj", "embed_norm": "patch_embed.norm"}
        for i in range(len(self.stages)):
            parts |= {f"stages.{i}": f"layers.{i}", f"merges.{i}": f"layers.{i}.downsample"}
        parts |= {"bottleneck": f"layers.{len(self.stages)}", "norm": "norm"}
        names = {f"{ours}.{key}": f"{theirs}.{key}" for ours, theirs in parts.items()
                 for key in self.get_submodule(ours).state_dict()}  # fmt: skip
        if missing := [theirs for theirs in names.values() if not isinstance(state.get(theirs), Tensor)]:
            raise ValueError("no Swin checkpoint, tensors by name or the same under 'model': "
                             f"{len(missing)} keys are missing, the first {missing[:3]}")  # fmt: skip
        loaded, expected = {}, self.state_dict()
        for ours, theirs in names.items():
            layer, _, tensor = ours.rpartition(".")
            given, shape = state[theirs], expected[ours].shape
            resized = tensor == "relative_position_bias_table" and given.ndim == 2
            loaded[ours] = resize_bias_table(given, self.get_submodule(layer).window) if resized else given
            if loaded[ours].shape != shape:
                raise ValueError(f"{theirs} has shape {tuple(given.shape)}, expected {tuple(shape)}")
        self.load_state_dict(loaded, strict=False)


def resize_bias_table(table: Tensor, window: tuple[int, int]) -> Tensor:
    """Resizes the bias table of a square window v to another window: ((2v - 1)^2, K) -> ((2h - 1)(2w - 1), K)."""
    side, size = round(table.shape[0] ** 0.5), (2 * window[0] - 1, 2 * window[1] - 1)
    if (side, side) == size or side * side != table.shape[0]:
        return table
    return F.interpolate(table.T.reshape(1, -1, side, side), size, mode="bicubic").flatten(2)[0].T


def next_valid_side(side: int, window: int, bottleneck_depth: int) -> int:
    """Finds the smallest image side of `side` pixels or more that halves at each level and fills whole windows.

    A map no longer than the window is one window; the deepest level needs none without blocks.
    """
    levels, step = len(DEPTHS) + (bottleneck_depth > 0), PATCH * 2 ** len(DEPTHS)
    side = step * max(math.ceil(side / step), 1)
    while any(tokens > window and tokens % window for tokens in (side // PATCH >> i for i in range(levels))):
        side += step
    return side
