"""ViT autoencoder: a Vision Transformer autoencoder with a memory module and coordinate attention.

"An Unsupervised Method for Industrial Image Anomaly Detection with Vision Transformer-Based Autoencoder", Sensors 2024,
24(8), 2440. The authors published no code that we know of; where the text is silent the values come from the works that
it builds on: AnoViT (the same decoder), MemAE, coordinate attention.

A ViT turns the image into a map of patch vectors; a memory replaces each vector by a combination of learned items;
coordinate attention gates rows and columns; six transposed convolutions reconstruct the image. It trains on normal
images alone and compares each image with its reconstruction. The rows of the paper's ablation table are
`--ablation base|+m|+ca|+m+ca`; `--ablation literal` takes every value as the paper prints it.

Symbols
    u, u_hat    image and reconstruction in [0, 1]       z, m_i, K    query, memory item, number of items
    F, F', F''  map of the encoder, the memory, CA       w, s, w_hat  weights, after shrinkage, with sum 1
    g_h, g_w    gates of rows and columns                lambda       threshold of the shrinkage

Equations (source: HTML text)
    (1) softmax(Q K^T / sqrt(d)) V                            vit.Attention.forward
    (2) head = (1) of its own Q, K, V, linear in the tokens   vit.Attention.forward
    (3) MSA = [head_1, ..., head_8] W                         vit.Attention.forward
    (4) z_0 = [class token, patches E] + E_pos                vit.VisionTransformer.forward
    (5) z' = z + MSA(LN(z))                                   vit.Block.forward, vit.VisionTransformer.forward
    (6) z = z' + MLP(LN(z'))                                  vit.Block.forward, vit.VisionTransformer.forward
    (7) d = cosine(z, m_i)                                    memory.address
    (8) w = softmax(d)                                        memory.address
    (9) z_hat = sum_i w_hat_i m_i                             memory.address
    (10) s = max(w - lambda, 0) w / (|w - lambda| + eps)      memory.address
    (11) L2 = sum over pixels and channels / (H W)            ViTAutoencoder.loss
    (12) L_SSIM = mean(1 - SSIM)                              ViTAutoencoder.loss, losses.ssim_map
    (13) L_recon = L2 + lambda_ssim L_SSIM                    ViTAutoencoder.loss
    (14) L_ent = -mean sum_i w_hat_i ln w_hat_i               ViTAutoencoder.loss, memory.entropy
    (15) L = lambda_recon L_recon + lambda_ent L_ent          ViTAutoencoder.loss
    (16) PRO = mean over regions of |found| / |region|        metrics.aupro
How (1) to (3) divide multi-head attention is a guess.

Algorithms and tables
    (Coordinate attention) F''(i, j) = F'(i, j) g_h(i) g_w(j), g = sigmoid(W act(BN(W [row means, column means])))
                                                              coordinate_attention.CoordinateAttention.forward
    (Decoder) u_hat = tanh(6 transposed convolutions of F'')  decoder.Decoder.forward
    (Map) blur of (15) / lambda_recon at each pixel           ViTAutoencoder.error_map, ViTAutoencoder.score
    (Table of the ablation) base, +M, +CA, +M+CA              ABLATIONS

An audit should know
    An image score is the maximum of an error that is smoothed more than the map: not `image_scores(anomaly_map())`.
    Cosine addressing without a temperature is all but uniform: no weight is more than e^2 = 7.4 times another, and a
    threshold of 1 / K keeps about half of the items for every query: the text's "sparse addressing" is not reached.
    The entropy loss (14) is printed without the minus sign: minimised as printed, it makes addressing uniform.
    Normalisation and ReLU after each of the six layers, then tanh, cannot produce a value below mid grey.
    Coordinate attention is said to stand before the memory, and after it.
    Printed averages and gains differ from the paper's tables: image AUROC 91.2 is 91.39, +20.9 PRO for the memory is
    10.9. Its counts of BTAD's images are swapped.

Not built
    The ImageNet-21k weights of AnoViT's encoder: `--weights` takes a file that has them.
    The methods that the tables of MVTec AD and BTAD compare with.
"""

import warnings
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adref.layers.coordinate_attention import CoordinateAttention
from adref.layers.memory import Memory, Recall, entropy
from adref.layers.published import published_state
from adref.layers.vit import VisionTransformer
from adref.method import Context, EarlyStop, Method, Sources, Stage, training_length
from adref.methods.vit_autoencoder.decoder import Decoder
from adref.methods.vit_autoencoder.options import ABLATIONS, PRESETS, Options, check
from adref.ops.filters import gaussian_smooth
from adref.ops.losses import ssim_map
from adref.options import Notice, UserError

LAMBDA_RECON, LAMBDA_ENT = 1.0, 0.001  # section Experiments
SIGNS = {"corrected": 1, "literal": -1}  # of equation 14
CA_REDUCTION = 32  # code of coordinate attention
VALIDATION_SHARE = 0.1  # of the training images, with --patience; a guess


class Batch(NamedTuple):
    clean: Tensor  # (B, 3, H, W)


def corrupt(image: Tensor, rng: np.random.Generator, options: Options, sources: Sources) -> Batch:
    """Returns the clean image (3, H, W) in [0, 1] itself: no augmentation."""
    return Batch(image)


class ViTAutoencoder(Method):
    """Reconstructs the image from memory items learned on normal images, and compares."""

    Options = Options
    presets = PRESETS
    ablations = ABLATIONS
    changeable = ("l2_reduction", "ssim_weight", "score", "map_sigma", "score_sigma")
    corrupt = staticmethod(corrupt)

    def __init__(self, options: Options = Options()):
        super().__init__(options)
        o = self.options
        check(o)
        stop = None if o.patience is None else EarlyStop(o.patience, VALIDATION_SHARE)
        self.stages = (Stage("train", *training_length(o.epochs, o.steps), early_stop=stop),)
        self.encoder = VisionTransformer(size=o.size, patch=o.patch, width=o.width, depth=o.depth, heads=o.heads,
                                         class_token=o.class_token)  # fmt: skip
        if o.memory:
            self.memory = Memory(width=o.width, items=o.memory_items, addressing=o.addressing,
                                 temperature=o.temperature, threshold=o.shrinkage)  # fmt: skip
        places = [p for p in ("before_memory", "after_memory") if o.coordinate_attention in (p, "both")]
        gates = {place: CoordinateAttention(width=o.width, reduction=CA_REDUCTION) for place in places}
        self.coordinate_attention = nn.ModuleDict(gates)
        self.decoder = Decoder(width=o.width, size=o.size, kind=o.decoder, first=o.decoder_width, norm=o.decoder_norm,
                               last_block=o.last_block, init=o.decoder_init)  # fmt: skip
        # The network works in [-1, 1], the range of tanh.
        self.register_buffer("mean", torch.full((3, 1, 1), 0.5))
        self.register_buffer("std", torch.full((3, 1, 1), 0.5))

    def forward(self, images: Tensor) -> tuple[Tensor, Recall | None]:
        """Maps (B, 3, H, W) in [0, 1] to u_hat (B, 3, H, W) in [0, 1] and the memory's result, None without one."""
        maps = self.encoder((images - self.mean) / self.std)  # F, (B, C, H/p, W/p)
        maps, recall = self.attend(maps, "before_memory"), None
        if self.options.memory:
            recall = self.memory(maps)
            maps = recall.output  # F'
        return self.decoder(self.attend(maps, "after_memory")) * self.std + self.mean, recall

    def attend(self, maps: Tensor, place: str) -> Tensor:
        """Applies the coordinate attention of this place, if there is one."""
        return self.coordinate_attention[place](maps) if place in self.coordinate_attention else maps

    def compare(self, images: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
        """Computes what equations 11 and 12 average, squared error and SSIM, of (B, 3, H, W): (B, 1, H, W) each."""
        form = {"window": "gaussian", "size": 11, "sigma": 1.5, "padding": "reflect", "value_range": 1.0}
        similarity = ssim_map(reconstruction, images, **form).mean(dim=1, keepdim=True)
        reduce = torch.sum if self.options.l2_reduction == "sum" else torch.mean
        return reduce((images - reconstruction).square(), dim=1, keepdim=True), similarity

    def loss(self, batch: Batch, stage: str = "train") -> dict[str, Tensor]:
        """Computes equations 11 to 15: the weighted "l2", "ssim", with a memory "entropy", and their "total".

        With a memory also the statistics "memory/survivors", the share of items that survive the shrinkage for a query;
        "memory/entropy" of a query's weights, in nats; the shares of queries for which no item survives
        ("memory/dead_queries") and of items that survive for no query of the batch ("memory/dead_items").
        """
        reconstruction, recall = self(batch.clean)
        error, similarity = self.compare(batch.clean, reconstruction)
        weight = LAMBDA_RECON * self.options.ssim_weight
        terms = {"l2": LAMBDA_RECON * error.mean(), "ssim": weight * (1 - similarity.mean())}
        if recall is None:
            return {**terms, "total": sum(terms.values())}
        uncertainty = entropy(recall.weights).mean()
        terms["entropy"] = LAMBDA_ENT * SIGNS[self.options.entropy_sign] * uncertainty
        used = recall.weights.detach() > 0
        statistics = {"memory/survivors": used.float().mean(), "memory/entropy": uncertainty.detach(),
                      "memory/dead_queries": recall.empty.float().mean(),
                      "memory/dead_items": 1 - used.flatten(0, -2).any(dim=0).float().mean()}  # fmt: skip
        return {**terms, "total": sum(terms.values()), **statistics}

    def optimizer(self, stage: str = "train"):
        """Makes Adam, all else as torch has it; the rate falls to 0 over the last `decay` of the length."""
        optimizer = torch.optim.Adam(self.parameters(), self.options.learning_rate, betas=(0.9, 0.999))
        length = self.stages[0].length
        falling = length * self.options.decay

        def factor(count: int) -> float:
            return min(1.0, max(0, length - count) / falling) if falling else 1.0

        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def error_map(self, images: Tensor) -> Tensor:
        """Computes the map before the blur: (B, 3, H, W) in [0, 1] at --size -> (B, 1, H, W)."""
        images = self.admit(images, size=self.options.size)
        reconstruction, recall = self(images)
        error, similarity = self.compare(images, reconstruction)
        maps = error + self.options.ssim_weight * (1 - similarity)
        if recall is not None and self.options.score == "l2+ssim+entropy":
            uncertainty = SIGNS[self.options.entropy_sign] * entropy(recall.weights).unsqueeze(1)  # (B, 1, H/p, W/p)
            uncertainty = F.interpolate(uncertainty, self.options.size, mode="bilinear", align_corners=False)
            maps = maps + LAMBDA_ENT / LAMBDA_RECON * uncertainty
        return maps

    def score(self, images: Tensor, context: Context = Context()) -> tuple[Tensor, Tensor]:
        """Computes image scores (B,) and maps (B, 1, H, W): not `image_scores` of the maps, which are smoothed less."""
        error, o = self.error_map(images), self.options
        return self.image_scores(gaussian_smooth(error, o.score_sigma))["score"], gaussian_smooth(error, o.map_sigma)

    def anomaly_map(self, images: Tensor, context: Context = Context()) -> Tensor:
        """Maps (B, 3, H, W) in [0, 1] at --size to scores (B, 1, H, W), smoothed less than for `score`."""
        return gaussian_smooth(self.error_map(images), self.options.map_sigma)

    def figures(self, image: Tensor | None = None, context: Context = Context()) -> dict[str, Tensor]:
        """Shows u_hat of one image, clamped to [0, 1]."""
        return {} if image is None else {"reconstruction": self(image)[0].clamp(0, 1)[0]}

    def load_weights(self, states: list[dict], part: str = "method") -> None:
        """Loads a ViT's checkpoint with timm's names into the encoder.

        Warns if the heads are not those of public models of this width: the weights would mean another function. Raises
        UserError if there is not one file, or keys or shapes do not fit.
        """
        if len(states) != 1:
            raise UserError(f"--weights takes one ViT checkpoint; got {len(states)} files")
        refusal = "no ViT checkpoint: expected float tensors by name, or the same under 'model'"
        try:
            state = published_state(states[0], refusal)
            if not all(t.is_floating_point() and t.layout == torch.strided for t in state.values()):
                raise ValueError(refusal)
            self.encoder.load_timm(state)
        except ValueError as error:
            raise UserError(f"--weights: {error}") from None
        heads, width = self.options.heads, self.options.width
        if heads * 64 != width:
            text = f"--weights: public ViTs have heads of 64 channels, --heads {heads} makes them {width // heads} wide"
            warnings.warn(f"{text}: their attention would be another function", Notice, stacklevel=2)
