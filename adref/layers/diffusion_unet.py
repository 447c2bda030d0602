"""U-Net of class-conditional diffusion models with learned variance, and the classifier that can guide them.

P. Dhariwal, A. Nichol, "Diffusion Models Beat GANs on Image Synthesis", NeurIPS 2021. Module names and the layout of
every tensor are those of its public checkpoints (github.com/openai/guided-diffusion: 256x256_diffusion.pt and
256x256_classifier.pt), which load as they are.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def step_embedding(steps: Tensor, width: int) -> Tensor:
    """Embeds diffusion steps: (B,) -> (B, w) float32, [cos(t f_j), sin(t f_j)] with f_j = 10000^(-2 j / w)."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=steps.device, dtype=torch.float32) / half)
    angles = steps[:, None].float() * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=1)


def zeroed(module: nn.Module) -> nn.Module:
    """Sets all parameters of a module to 0 and returns it."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class ResidualBlock(nn.Module):
    """Adds two 3 x 3 convolutions; the embedding of the step modulates the group norm between them (FiLM).

        h = conv(SiLU(GN(x)));  h = GN(h) (1 + scale) + shift;  x' + conv_0(SiLU(h))

    with (scale, shift) = Linear(SiLU(embedding)), conv_0 starting at 0, x' = x or its 1 x 1 convolution.

    `channels`, `width`, `embedding` are those of the input, the output and the embedding. `resample`: before the first
    convolution and in the shortcut, "down" averages 2 x 2 pixels, "up" doubles them.
    """

    def __init__(self, channels: int, width: int, embedding: int, *, groups: int, resample: str = "none"):
        super().__init__()
        self.resample, first = resample, nn.Conv2d(channels, width, 3, padding=1)
        self.in_layers = nn.Sequential(nn.GroupNorm(groups, channels), nn.SiLU(), first)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * width))
        last = zeroed(nn.Conv2d(width, width, 3, padding=1))
        self.out_layers = nn.Sequential(nn.GroupNorm(groups, width), nn.SiLU(), nn.Identity(), last)  # there: dropout
        self.skip_connection = nn.Identity() if channels == width else nn.Conv2d(channels, width, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Maps (B, channels, H, W) and (B, embedding) to (B, width, H', W'), sides halved or doubled by `resample`."""
        h = self.in_layers[1](self.in_layers[0](x))
        if self.resample == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        elif self.resample == "up":
            h, x = (F.interpolate(maps, scale_factor=2, mode="nearest") for maps in (h, x))
        h = self.in_layers[2](h)
        scale, shift = self.emb_layers(embedding)[..., None, None].chunk(2, dim=1)
        h = self.out_layers[0](h) * (1 + scale) + shift
        for layer in self.out_layers[1:]:
            h = layer(h)
        return self.skip_connection(x) + h


class SelfAttention(nn.Module):
    """Adds attention among all pixels of (B, C, H, W), with heads of `head_width` channels, after a group norm.

    The channels of `qkv` are in the public weights' order, [head][q, k, v][channel of a head]; `proj_out` starts at 0.
    """

    def __init__(self, channels: int, *, head_width: int, groups: int):
        super().__init__()
        self.heads, self.norm = channels // head_width, nn.GroupNorm(groups, channels)
        self.qkv, self.proj_out = nn.Conv1d(channels, 3 * channels, 1), zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)  # (B, C, N)
        parts = self.qkv(self.norm(tokens)).unflatten(1, (self.heads, -1)).transpose(2, 3)  # (B, heads, N, 3 d)
        h = F.scaled_dot_product_attention(*parts.chunk(3, dim=3))  # (B, heads, N, d)
        return x + self.proj_out(h.transpose(2, 3).flatten(1, 2)).view_as(x)


class Step(nn.Sequential):
    """Applies layers in sequence to (B, C, H, W); residual blocks also get the embedding, (B, embedding)."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResidualBlock) else layer(x)
        return x


class DiffusionUNet(nn.Module):
    """Predicts noise and variance of a noisy image: (B, 3, H, W) -> (B, 6, H, W), all 0 before training.

    Each level has `blocks` residual blocks in the encoder and one more in the decoder; between levels a residual block
    resamples. Attention follows the blocks at the factors of `attention`.

    Args:
        width: w, channels at full resolution, a multiple of `groups`; the embedding has 4 w.
        multipliers: channels of each level, as multiples of w; level i runs at 1 / 2^i of the sides.
        blocks: residual blocks of a level.
        attention: factors by which the sides are divided where there is attention (reference code: resolutions).
        head_width: channels of each head; widths with attention are multiples of it.
        groups: of every group norm; if `width` is no larger, a channel is a group: the mean of the noise is lost.
        classes: rows of the table of labels; 0: no labels.
    """

    def __init__(self, *, width: int, multipliers: Sequence[int], blocks: int, attention: Sequence[int],
                 head_width: int, groups: int, classes: int = 0):  # fmt: skip
        super().__init__()
        self.width, e = width, 4 * width
        self.time_embed = nn.Sequential(nn.Linear(width, e), nn.SiLU(), nn.Linear(e, e))
        self.label_emb = nn.Embedding(classes, e) if classes else None
        parts = encoder(width, multipliers, blocks, attention, head_width, groups)
        self.input_blocks, self.middle_block, skips = parts
        channels, self.output_blocks = skips[-1], nn.ModuleList()
        for level in reversed(range(len(multipliers))):
            out = width * multipliers[level]
            for i in range(blocks + 1):
                step = step_of(channels + skips.pop(), out, e, 2**level in attention, head_width, groups)
                if level and i == blocks:
                    step.append(ResidualBlock(out, out, e, groups=groups, resample="up"))
                self.output_blocks.append(step)
                channels = out
        last = zeroed(nn.Conv2d(channels, 6, 3, padding=1))
        self.out = nn.Sequential(nn.GroupNorm(groups, channels), nn.SiLU(), last)

    def forward(self, x: Tensor, steps: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predicts (B, 6, H, W): three channels of noise, three of the raw variance v.

        `x` is (B, 3, H, W) in about [-1, 1], sides multiples of 2^(levels - 1); `steps` (B,) of the original diffusion,
        0 to T - 1; `labels` (B,) integers below `classes`; ValueError unless it is None exactly if `classes` is 0.
        """
        if (labels is None) != (self.label_emb is None):
            raise ValueError(f"expected {'no labels' if self.label_emb is None else 'labels'}, got {labels}")
        embedding = self.time_embed(step_embedding(steps, self.width))
        if labels is not None:
            embedding = embedding + self.label_emb(labels)
        skips = []
        for block in self.input_blocks:
            x = block(x, embedding)
            skips.append(x)
        x = self.middle_block(x, embedding)
        for block in self.output_blocks:
            x = block(torch.cat((x, skips.pop()), dim=1), embedding)
        return self.out(x)


def step_of(channels: int, out: int, embedding: int, attend: bool, head_width: int, groups: int) -> Step:
    """Builds a residual block, followed by attention if the step is to `attend`."""
    step = Step(ResidualBlock(channels, out, embedding, groups=groups))
    return step.append(SelfAttention(out, head_width=head_width, groups=groups)) if attend else step


def encoder(width: int, multipliers: Sequence[int], blocks: int, attention: Sequence[int], head_width: int,
            groups: int) -> tuple[nn.ModuleList, Step, list[int]]:  # fmt: skip
    """Builds encoder, from three channels, and middle; also returns the channels after each step of the encoder."""
    steps, widths, e = nn.ModuleList([Step(nn.Conv2d(3, width, 3, padding=1))]), [width], 4 * width
    for level, multiplier in enumerate(multipliers):
        out = width * multiplier
        for _ in range(blocks):
            steps.append(step_of(widths[-1], out, e, 2**level in attention, head_width, groups))
            widths.append(out)
        if level < len(multipliers) - 1:
            steps.append(Step(ResidualBlock(out, out, e, groups=groups, resample="down")))
            widths.append(out)
    first, last = (ResidualBlock(out, out, e, groups=groups) for _ in range(2))
    return steps, Step(first, SelfAttention(out, head_width=head_width, groups=groups), last), widths


class AttentionPool(nn.Module):
    """Pools (B, C, H, W) of `pixels` pixels to (B, classes): their mean attends to all (CLIP; Radford et al., 2021).

    The channels of `qkv_proj` are in the order [q, k, v][head][channel of the head].
    """

    def __init__(self, channels: int, pixels: int, classes: int, *, head_width: int):
        super().__init__()
        self.heads = channels // head_width
        self.positional_embedding = nn.Parameter(torch.randn(channels, pixels + 1) / channels**0.5)
        self.qkv_proj, self.c_proj = nn.Conv1d(channels, 3 * channels, 1), nn.Conv1d(channels, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)
        x = torch.cat((x.mean(dim=2, keepdim=True), x), dim=2) + self.positional_embedding  # (B, C, N + 1)
        q, k, v = (part.unflatten(1, (self.heads, -1)).transpose(2, 3) for part in self.qkv_proj(x).chunk(3, dim=1))
        return self.c_proj(F.scaled_dot_product_attention(q, k, v).transpose(2, 3).flatten(1, 2))[..., 0]


class NoisyClassifier(nn.Module):
    """Classifies a noisy image of `size` (H, W): the encoder and middle of `DiffusionUNet`, then attention pooling."""

    def __init__(self, classes: int, size: tuple[int, int], *, width: int, multipliers: Sequence[int], blocks: int,
                 attention: Sequence[int], head_width: int, groups: int):  # fmt: skip
        super().__init__()
        self.width, stride = width, 2 ** (len(multipliers) - 1)
        self.time_embed = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))
        parts = encoder(width, multipliers, blocks, attention, head_width, groups)
        self.input_blocks, self.middle_block, widths = parts
        pool = AttentionPool(widths[-1], size[0] // stride * (size[1] // stride), classes, head_width=head_width)
        self.out = nn.Sequential(nn.GroupNorm(groups, widths[-1]), nn.SiLU(), pool)

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        """Maps (B, 3, H, W) in about [-1, 1] and (B,) original steps to logits (B, classes)."""
        embedding = self.time_embed(step_embedding(steps, self.width))
        for block in self.input_blocks:
            x = block(x, embedding)
        return self.out(self.middle_block(x, embedding))
