"""A Vision Transformer autoencoder with a memory module and coordinate attention.

"An Unsupervised Method for Industrial Image Anomaly Detection with Vision Transformer-Based Autoencoder", Sensors 2024,
24(8), 2440. No code of its authors is known: this is the article's text, the works that it builds on, and a record in
DEVIATIONS for every guess. "U" marks a value from those works: AnoViT (the same decoder), MemAE, coordinate attention.

A ViT turns the image into a map of patch vectors; a memory replaces each vector by a combination of learned items;
coordinate attention gates rows and columns; six transposed convolutions rebuild the image. It trains on normal images
alone and compares each image with its reconstruction. The rows of the paper's ablation are `--ablation`
base|+m|+ca|+m+ca.

What an audit should know before it trusts the article:
- Cosine addressing without a temperature is all but uniform: no weight is more than e^2 = 7.4 times another, and a
  threshold of 1 / K keeps about half of the items for every query. The "sparse addressing" of its text is not reached
  (D6 to D8; `survivors` in the log).
- Its entropy loss (Eq 14) is printed without the minus sign: minimised as printed, it makes addressing uniform (D21).
- A normalisation and ReLU behind each of the six layers, tanh last, could not make a value below mid grey (D16).
- The memory is said to stand before the coordinate attention, and behind it (D12).
- PRO "when FPR is below 0.3" is read as the normalised area (D29); its counts of BTAD's images are swapped (D30).
- Printed averages and gains differ from its own tables: image AUROC 91.2 is 91.39, +20.9 PRO for the memory is 10.9.

Symbols
    u, u_hat    image and reconstruction in [0, 1]       z, m_i, K    query, memory item, number of items
    F, F', F''  map of the encoder, the memory, CA       w, s, w_hat  weights, after shrinkage, with sum 1
    g_h, g_w    gates of rows and columns                lambda       threshold of the shrinkage

Equations (their numbers as far as they are known; those with letters are not numbered in what was at hand)
    (4) z_0 = [class token, patches E] + E_pos                vit.VisionTransformer.forward
    (a) z' = z + MSA(LN(z)), then z' + MLP(LN(z'))            vit.Block.forward, vit.Attention.forward
    (7) d = cosine(z, m_i)                                    memory.address
    (8) w = softmax(d)                                        memory.address
    (9) z_hat = sum_i w_hat_i m_i                             memory.address
    (10) s = max(w - lambda, 0) w / (|w - lambda| + eps)      memory.address
    (b) g = sigmoid(W act(BN(W [row means, column means])))   coordinate_attention.CoordinateAttention.forward
    (c) F''(i, j) = F'(i, j) g_h(i) g_w(j)                    coordinate_attention.CoordinateAttention.forward
    (d) u_hat = tanh(six transposed convolutions of F'')      Decoder.forward
    (11) L2 = sum over pixels and channels / (H W)            ViTAutoencoder.loss
    (12) L_SSIM = mean(1 - SSIM)                              ViTAutoencoder.loss, losses.ssim_map
    (13) L_recon = L2 + lambda_ssim L_SSIM                    ViTAutoencoder.loss
    (14) L_ent = -mean sum_i w_hat_i ln w_hat_i               ViTAutoencoder.loss, memory.entropy
    (15) L = lambda_recon L_recon + lambda_ent L_ent          ViTAutoencoder.loss
    (e) map = blur(mean L2 + lambda_ssim (1 - SSIM)) of each pixel, score = maximum of it blurred more
                                                              ViTAutoencoder.score, ViTAutoencoder.image_score

Algorithms and tables
    (Table of the ablation) base, +M, +CA, +M+CA              ABLATIONS

Not built
    The ImageNet-21k weights of AnoViT's encoder: --weights takes a file that has them.
    The methods that its tables of MVTec AD and BTAD compare with.
"""

import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adref.layers.coordinate_attention import CoordinateAttention
from adref.layers.memory import Memory, Recall, entropy
from adref.layers.vit import VisionTransformer
from adref.method import Context, EarlyStop, Method, Sources, Stage, Stream, check_images
from adref.methods.vit_autoencoder.decoder import Decoder
from adref.methods.vit_autoencoder.options import ABLATIONS, PRESETS, Options, check
from adref.ops.filters import gaussian_smooth
from adref.ops.losses import ssim_map
from adref.options import Notice, UserError


class Batch(NamedTuple):
    clean: Tensor  # (B, 3, H, W)


# -- the method -------------------------------------------------------------------------------------------------------


def corrupt(image: Tensor, rng: np.random.Generator, options: Options, sources: Sources) -> Batch:
    """The clean image itself: (3, H, W) in [0, 1]; no augmentation (D31)."""
    return Batch(image)


class ViTAutoencoder(Method):
    """Rebuild the image from what the memory knows of normal ones, and compare."""

    Options = Options
    presets = PRESETS
    ablations = ABLATIONS
    corrupt = staticmethod(corrupt)

    def __init__(self, options: Options = Options()):
        super().__init__(options)
        o = self.options
        check(o)
        self.encoder = VisionTransformer(
            size=o.size, patch=o.patch, width=o.width, depth=o.depth, heads=o.heads, class_token=o.class_token
        )
        if o.memory:
            self.memory = Memory(
                o.width, o.memory_items, addressing=o.addressing, temperature=o.temperature, threshold=o.shrinkage,
                on_empty=o.on_empty,
            )  # fmt: skip
        places = {"both": ("before_memory", "after_memory"), "none": ()}
        self.coordinate_attention = nn.ModuleDict(
            {place: CoordinateAttention(o.width, reduction=o.ca_reduction, activation=o.ca_activation)
             for place in places.get(o.coordinate_attention, (o.coordinate_attention,))}
        )  # fmt: skip  # D12
        self.decoder = Decoder(o.width, o.size, o.decoder, o.decoder_width, o.decoder_norm, o.last_block)
        stop = None if o.patience is None else EarlyStop(o.patience, o.validation_share)  # D23
        self.stages = (Stage("train", o.epochs, early_stop=stop),)
        self.register_buffer("mean", torch.full((3, 1, 1), 0.5))
        self.register_buffer("std", torch.full((3, 1, 1), 0.5))

    def prepare(self, sources: Sources, stage: str, stream: Stream) -> None:
        """Mean and standard deviation of each colour over the images that train, where --normalise asks for them."""
        if self.options.normalise == "category":  # D17
            pictures = (picture.double() / 255 for picture in sources.images)
            moments = [(p.mean(dim=(1, 2)), p.square().mean(dim=(1, 2))) for p in pictures]
            mean, square = (torch.stack(m).mean(dim=0).view(3, 1, 1) for m in zip(*moments))
            self.mean.copy_(mean)
            self.std.copy_((square - mean * mean).clamp_min(1e-12).sqrt())

    def forward(self, images: Tensor) -> tuple[Tensor, Recall | None]:
        """(B, 3, H, W) in [0, 1] -> u_hat alike, and what the memory did."""
        maps = self.encoder((images - self.mean) / self.std)  # F, (B, D, H/p, W/p)
        maps, recall = self.attend(maps, "before_memory"), None
        if self.options.memory:
            recall = self.memory(maps)  # D10
            maps = maps + recall.output if self.options.memory_residual else recall.output  # F'; D11
        return self.decoder(self.attend(maps, "after_memory")) * self.std + self.mean, recall

    def attend(self, maps: Tensor, place: str) -> Tensor:
        """Coordinate attention, where it stands at this place."""
        return self.coordinate_attention[place](maps) if place in self.coordinate_attention else maps

    def compare(self, images: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
        """Squared error and SSIM of each pixel and channel, (B, 3, H, W) each; SSIM has no border if it is "valid"."""
        o, value_range = self.options, 1.0
        if o.loss_range == "network":  # D17
            images, reconstruction = ((x - self.mean) / self.std for x in (images, reconstruction))
            value_range = 2.0
        similarity = ssim_map(
            reconstruction, images, o.ssim_window, o.ssim_size, o.ssim_sigma, o.ssim_padding, value_range
        )  # D19
        return (images - reconstruction).square(), similarity

    def loss(self, batch: Batch, stage: str = "train") -> dict[str, Tensor]:
        """Equations 11 to 15. Terms, weighted: "l2", "ssim", with a memory "entropy"; "total" is their sum.

        Statistics of a memory: the share of the items that survive the shrinkage for a query ("memory/survivors"), the
        entropy of a query's weights in nats, the share of queries for which none survives ("memory/dead_queries"), and
        of items that survive for no query of the batch ("memory/dead_items").
        """
        o = self.options
        reconstruction, recall = self(batch.clean)
        error, similarity = self.compare(batch.clean, reconstruction)
        l2 = error.mean() * (3 if o.l2_reduction == "sum" else 1)  # equation 11; D18
        terms = {
            "l2": o.reconstruction_weight * l2,
            "ssim": o.reconstruction_weight * o.ssim_weight * (1 - similarity.mean()),  # equations 12, 13; D20
        }
        if recall is None:
            return {**terms, "total": sum(terms.values())}
        uncertainty = entropy(recall.weights).mean()  # equation 14
        terms["entropy"] = o.entropy_weight * (uncertainty if o.entropy_sign == "corrected" else -uncertainty)  # D21
        used = (recall.weights.detach() > 0) & ~recall.empty.unsqueeze(-1)
        statistics = {
            "memory/survivors": used.float().mean(), "memory/entropy": uncertainty.detach(),
            "memory/dead_queries": recall.empty.float().mean(),
            "memory/dead_items": 1 - used.flatten(0, -2).any(dim=0).float().mean(),
        }  # fmt: skip
        return {**terms, "total": sum(terms.values()), **statistics}  # equation 15

    def optimizer(self, stage: str = "train"):
        """Adam at a constant rate (D22)."""
        o = self.options
        optimizer = torch.optim.Adam(self.parameters(), o.learning_rate, o.betas, weight_decay=o.weight_decay)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)

    def error_map(self, images: Tensor) -> Tensor:
        """What differs at each pixel, unsmoothed: (B, 3, H, W) in [0, 1] at --size -> (B, 1, H, W) (D24)."""
        check_images(images, size=self.options.size)
        o = self.options
        reconstruction, recall = self(images)
        error, similarity = self.compare(images, reconstruction)
        maps = error.mean(dim=1, keepdim=True)
        if o.score != "l2":
            lost = [(whole - kept) // 2 for whole, kept in zip(error.shape[2:], similarity.shape[2:])]  # "valid"
            edges = (lost[1], lost[1], lost[0], lost[0])
            maps = maps + o.ssim_weight * (1 - F.pad(similarity.mean(dim=1, keepdim=True), edges, mode="replicate"))
        if o.score == "l2+ssim+entropy":
            uncertainty = entropy(recall.weights).unsqueeze(1)  # (B, 1, H/p, W/p)
            uncertainty = F.interpolate(uncertainty, o.size, mode="bilinear", align_corners=False)
            maps = maps + o.entropy_weight / o.reconstruction_weight * uncertainty
        return maps

    def score(self, images: Tensor, context: Context = Context()) -> tuple[Tensor, Tensor]:
        """Equation e: image scores (B,) and maps (B, 1, H, W), of the same error, smoothed more and less (D25)."""
        error, o = self.error_map(images), self.options
        return self.image_scores(gaussian_smooth(error, o.score_sigma))["score"], gaussian_smooth(error, o.map_sigma)

    def anomaly_map(self, images: Tensor, context: Context = Context()) -> Tensor:
        """(B, 3, H, W) in [0, 1] at --size -> (B, 1, H, W), smoothed by --map-sigma."""
        return gaussian_smooth(self.error_map(images), self.options.map_sigma)

    def image_scores(self, maps: Tensor) -> dict[str, Tensor]:
        """The maximum, the mean, or the mean of the largest pixels: (B, 1, H, W) -> (B,) (D26).

        `score` takes it of maps that are smoothed by --score-sigma, not of those of `anomaly_map`.
        """
        values = maps.flatten(1)
        count = {"max": 1, "mean": values.shape[1]}.get(self.options.image_score)
        count = count or math.ceil(self.options.top_share * values.shape[1]) or 1
        return {"score": values.topk(count).values.mean(dim=1)}

    def figures(self, image: Tensor | None = None, context: Context = Context()) -> dict[str, Tensor]:
        """Shows u_hat of one image, clamped to [0, 1]."""
        return {} if image is None else {"reconstruction": self(image)[0].clamp(0, 1)[0]}

    def load_weights(self, states: list[dict], part: str = "method") -> None:
        """A ViT's checkpoint with timm's names, for the encoder (D3).

        Warns where the heads are not those that public models of this width have: the weights would load, and mean
        something else (D2).

        Raises:
            UserError: not one file, or keys or shapes that do not fit.
        """
        if len(states) != 1:
            raise UserError(f"--weights takes one ViT checkpoint; got {len(states)} files")
        state = states[0]
        for name in ("state_dict", "model"):
            state = state.get(name, state) if isinstance(state, dict) else state
        if not isinstance(state, dict) or not all(
            isinstance(name, str) and isinstance(t, Tensor) and t.is_floating_point() and t.layout == torch.strided
            for name, t in state.items()
        ):
            raise UserError(
                "--weights: no ViT checkpoint: expected tensors of floats by name, or the same under 'model'"
            )
        try:
            self.encoder.load_timm(state)
        except ValueError as error:
            raise UserError(f"--weights: {error}") from None
        heads, width = self.options.heads, self.options.width
        if heads * 64 != width:
            text = f"public ViTs have heads of 64 channels, --heads {heads} makes them {width // heads} wide"
            text = f"--weights: {text}: their attention would be another function"
            warnings.warn(text, Notice, stacklevel=2)
