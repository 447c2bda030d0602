"""SRDAD's reconstructive network: Swin-Unet with ASPP, a residual decoder and gated skips; or Swin-Unet as it was.

H. Cao et al., "Swin-Unet", ECCV-W 2022 (the plain network: `skips="concat"`, `residual="none"`, `aspp_width=None`,
`bottleneck_depth=2`, `skip_tap="pre"`); SRDAD, Scientific Reports 2025, Eqs 6 to 10. Maps are (B, H, W, C).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adref.layers.aspp import ASPP
from adref.layers.swin import PatchExpanding, PatchMerging, SwinBlock, init_linears


class Stage(nn.Module):
    """Swin blocks of one level, every second one shifted; with residual linears in the decoder (Eq 8).

    Args:
        width, heads, size, window: as in `SwinBlock`.
        rates: stochastic depth of each block; as many blocks.
        residual: "level": Stage(x) + W x; "block": the same around each block; "none": without W.
    """

    def __init__(self, width, heads, size, window, rates, residual: Literal["none", "level", "block"] = "none"):
        super().__init__()
        self.residual = residual
        self.blocks = nn.ModuleList(
            SwinBlock(width, heads, size, window, shifted=i % 2 == 1, drop_path=rate) for i, rate in enumerate(rates)
        )
        count = {"none": 0, "level": 1, "block": len(rates)}[residual]
        self.residuals = nn.ModuleList(nn.Linear(width, width) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C); equation 8: D = Stage(X) + W X."""
        start = x
        for i, block in enumerate(self.blocks):
            x = block(x) + self.residuals[i](x) if self.residual == "block" else block(x)
        return x + self.residuals[0](start) if self.residual == "level" else x


class GatedSkip(nn.Module):
    """F = sigmoid(W1 [E, D]) * (W2 E): the decoder decides what it takes over from the encoder (SRDAD, Eq 9).

    Args:
        width: channels C of both maps.
        gates: "channel": a gate for each channel, as the equation; "spatial": one a token, as the figure's caption.
    """

    def __init__(self, width: int, gates: Literal["channel", "spatial"] = "channel"):
        super().__init__()
        self.gate = nn.Linear(2 * width, width if gates == "channel" else 1)  # W1
        self.value = nn.Linear(width, width)  # W2

    def forward(self, encoded: Tensor, decoded: Tensor) -> Tensor:
        """Equation 9: E and D, (B, H, W, C) each -> F, (B, H, W, C)."""
        return torch.sigmoid(self.gate(torch.cat((encoded, decoded), dim=-1))) * self.value(encoded)


class SwinUNet(nn.Module):
    """Patch embedding, encoder stages, bottleneck, decoder stages, and the fourfold expansion to pixels.

    Args:
        size: (H, W) in pixels; see `valid_side`.
        width: channels C of the first level; level l has C 2^(l - 1) at 1 / (4 2^(l - 1)) of the sides.
        depths: blocks of each stage, encoder and decoder alike.
        bottleneck_depth: blocks at the deepest level.
        heads: of each stage; the bottleneck has twice the last number.
        window: side of a window in tokens.
        drop_path: stochastic depth of the deepest encoder block; it grows linearly from 0, and falls in the decoder.
        aspp_width: channels of a branch of ASPP (Eq 7); None: no ASPP.
        aspp_rates, aspp_batch_norm, aspp_project: as in `ASPP`.
        residual: of the decoder stages (Eq 8).
        skips: "final_sum": the gated skips of all levels are brought to level 1 and added there (Eq 10); "inline":
            each is added at its own level; "concat": no gates, linear(2C -> C) on [D, E], as Swin-Unet.
        skip_levels: gated levels, 4 (with the pair before and after ASPP) or 3.
        skip_tap: "post": E is a stage's output; "pre": its input, as Swin-Unet's code.
        gates: as in `GatedSkip`.
        output_activation: "none" or "sigmoid".
    """

    patch = 4

    def __init__(
        self,
        size: tuple[int, int] = (256, 256),
        width: int = 96,
        depths: tuple[int, ...] = (2, 2, 2),
        bottleneck_depth: int = 0,
        heads: tuple[int, ...] = (3, 6, 12),
        window: int = 8,
        drop_path: float = 0.0,
        aspp_width: int | None = 192,
        aspp_rates: tuple[int, ...] = (3, 6, 12),
        aspp_batch_norm: bool = True,
        aspp_project: bool = False,
        residual: Literal["level", "block", "none"] = "level",
        skips: Literal["final_sum", "inline", "concat"] = "final_sum",
        skip_levels: int = 4,
        skip_tap: Literal["post", "pre"] = "post",
        gates: Literal["channel", "spatial"] = "channel",
        output_activation: Literal["none", "sigmoid"] = "none",
    ):
        super().__init__()
        self.skips, self.skip_tap, self.output_activation = skips, skip_tap, output_activation
        levels = len(depths)
        widths = [width * 2**level for level in range(levels + 1)]
        sizes = [tuple(side // self.patch // 2**level for side in size) for level in range(levels + 1)]
        total = sum(depths) + bottleneck_depth
        rates = [drop_path * i / max(total - 1, 1) for i in range(total)]
        rates = [rates[sum(depths[:i]) : sum(depths[:i]) + n] for i, n in enumerate((*depths, bottleneck_depth))]

        self.embed = nn.Conv2d(3, width, self.patch, stride=self.patch)
        self.embed_norm = nn.LayerNorm(width)
        self.stages = nn.ModuleList(Stage(widths[i], heads[i], sizes[i], window, rates[i]) for i in range(levels))
        self.merges = nn.ModuleList(PatchMerging(widths[i]) for i in range(levels))
        self.bottleneck = Stage(widths[-1], 2 * heads[-1], sizes[-1], window, rates[-1])
        self.norm = nn.LayerNorm(widths[-1])
        form = {"rates": aspp_rates, "batch_norm": aspp_batch_norm, "project": aspp_project}
        self.aspp = ASPP(widths[-1], aspp_width, **form) if aspp_width else None
        self.expands = nn.ModuleList(PatchExpanding(widths[i + 1], 2, widths[i]) for i in range(levels))
        self.decoder = nn.ModuleList(
            Stage(widths[i], heads[i], sizes[i], window, rates[i], residual) for i in range(levels)
        )
        gated = skip_levels if skips != "concat" else 0
        self.gated = nn.ModuleList(GatedSkip(widths[i], gates) for i in range(gated))
        self.fuse = nn.ModuleList(nn.Linear(2 * w, w) for w in (widths[:-1] if skips == "concat" else ()))
        self.align = nn.ModuleList(nn.Linear(w, width) for w in (widths[1:gated] if skips == "final_sum" else ()))
        self.decoder_norm = nn.LayerNorm(width)
        self.final_expand = PatchExpanding(width, self.patch, width)
        self.out = nn.Linear(width, 3, bias=skips != "concat")  # Swin-Unet's has none
        self.apply(init_linears)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> reconstruction (B, 3, H, W)."""
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
        x = self.out(self.final_expand(self.decoder_norm(x))).permute(0, 3, 1, 2)
        return torch.sigmoid(x) if self.output_activation == "sigmoid" else x

    def sum_skips(self, decoded: Tensor, skipped: list[Tensor]) -> Tensor:
        """Equation 10: D_1 + the sum of F_l, each brought to level 1 by a linear and bilinear upsampling.

        Args:
            decoded: D_1, (B, H/4, W/4, C).
            skipped: F of the deepest gated level first, F_1 last.
        """
        *deep, total = skipped
        for align, gated in zip(reversed(self.align), deep):
            aligned = align(gated).permute(0, 3, 1, 2)
            total = total + F.interpolate(aligned, decoded.shape[1:3], mode="bilinear").permute(0, 2, 3, 1)
        return decoded + total

    def load_swin(self, state: dict[str, Tensor]) -> None:
        """Takes the encoder's weights from a Swin Transformer's state dict with the key names of its authors.

        patch_embed.proj, .norm -> embed, embed_norm; layers.i.blocks.j -> stages.i.blocks.j (of the last layer:
        bottleneck.blocks.j); layers.i.downsample -> merges.i; norm -> norm. Stages that are deeper there give their
        first blocks. A bias table of another window is resized bicubically, as its authors do.

        Raises:
            ValueError: missing keys (the first three named), or a shape that differs.
        """
        last, loaded, missing = len(self.stages), {}, []
        for name, own in self.state_dict().items():
            part, _, rest = name.partition(".")
            if part in ("stages", "merges"):
                level, _, rest = rest.partition(".")
                theirs = f"layers.{level}.{rest}" if part == "stages" else f"layers.{level}.downsample.{rest}"
            elif part in ("embed", "embed_norm", "bottleneck", "norm"):
                theirs = {"embed": "patch_embed.proj", "embed_norm": "patch_embed.norm", "norm": "norm",
                          "bottleneck": f"layers.{last}"}[part] + f".{rest}"  # fmt: skip
            else:
                continue
            if theirs not in state:
                missing.append(theirs)
                continue
            loaded[name] = state[theirs]
            layer, _, tensor = name.rpartition(".")
            if tensor == "relative_position_bias_table" and loaded[name].ndim == 2:
                loaded[name] = resize_bias_table(loaded[name], self.get_submodule(layer).window)
            if loaded[name].shape != own.shape:
                raise ValueError(f"{theirs} has shape {tuple(state[theirs].shape)}, expected {tuple(own.shape)}")
        if missing:
            raise ValueError(f"no Swin checkpoint: {len(missing)} keys are missing, the first {missing[:3]}")
        self.load_state_dict(loaded, strict=False)


def resize_bias_table(table: Tensor, window: tuple[int, int]) -> Tensor:
    """A bias table of a square window v for another one, bicubic: ((2v - 1)^2, K) -> ((2h - 1)(2w - 1), K)."""
    side, size = round(table.shape[0] ** 0.5), (2 * window[0] - 1, 2 * window[1] - 1)
    if (side, side) == size or side * side != table.shape[0]:
        return table
    return F.interpolate(table.T.reshape(1, -1, side, side), size, mode="bicubic").flatten(2)[0].T


def valid_side(side: int, depths: tuple[int, ...], bottleneck_depth: int, window: int, patch: int = 4) -> bool:
    """Whether an image side in pixels fits: it halves at each level, and windows fill every map that has blocks.

    A map no longer than the window is one window.
    """
    deepest = len(depths)
    if side <= 0 or side % (patch * 2**deepest):
        return False
    lengths = [side // patch // 2**level for level in range(deepest + 1)]
    blocks = (*depths, bottleneck_depth)
    return all(length <= window or length % window == 0 for length, count in zip(lengths, blocks) if count)


def next_valid_side(side: int, *arguments) -> int:
    """The smallest valid side of at least `side`; the further arguments are those of `valid_side`."""
    while not valid_side(side, *arguments):
        side += 1
    return side
