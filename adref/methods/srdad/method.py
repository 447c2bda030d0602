"""SRDAD: natural anomalies, a Swin-UNet that reconstructs, a U-Net with cross attention that discriminates.

"SRDAD", Scientific Reports 2025, article s41598-025-10303-8. Source: its text, without the bodies of its tables; no
code of its authors is known. What it leaves open comes from the code of the works that it builds on: DRAEM, Swin-Unet,
UCTransNet and NSA. `--ablation literal` takes every value as printed, where that can be run.

A patch of a normal image is altered and blended in elsewhere on the object. A Swin-UNet with ASPP and gated skips
restores the clean image; a U-Net with Res-SE blocks and cross attention sees both images and marks the patches. The
rows of table 4 are the ablations draem, draem+, srdad- and srdad; `--recipe` and `--anomaly` give all rows the same.

An audit should know
- On ASPP's 8 x 8 map only the centre tap of the rate-12 branch reads data: it is a 1x1 convolution (see `ASPP`).
- Brightness as an added constant has no effect: Poisson blending cancels it (option brightness_mode).
- Noise that is drawn for each channel gives the patches away: a filter without parameters finds them (NOTES.md). The
  article names ImgAug, whose noise is alike in the channels: it shows on smooth objects alone.
- A size distribution "of real defects" taken from test masks would leak the test set; the default is a guess.
- The article gives DRAEM 26.5 M parameters and calls SRDAD the heavier; DRAEM's code has 97.4 M and does 5.9 times the
  multiplications. Its 19.4 M and 27.8 M leave few readings of SRDAD's networks (DEPTHS, option discriminator_width).

Symbols
    I, I_ano, I_hat   clean image, with an anomaly, reconstruction    M, Y       masks of the object and of the anomaly
    P, R, Omega, dR   patch, its region, the region's inside, edge    E_l, D_l   maps of encoder and decoder at level l
    T_i, T_S          tokens of scale i and of all scales             M_pre, s   anomaly map, side of the score's filter

Equations
    (1) B = [I > tau], tau by Otsu                              anomalies.object_mask, image.otsu
    (2) M = closing(B)                                          anomalies.object_mask, image.morphology
    (3) T_geom: rotation by theta, scale s                      anomalies.draw_alteration, anomalies.alter
    (4) T_photo in {P + noise, P (1 + delta)}                   anomalies.draw_alteration, anomalies.alter
    (5) min |grad f - grad P_hat|^2 + lambda |f - I|^2 on dR    anomalies.natural_anomaly, poisson.poisson_blend
    (6) patches of 4 x 4 pixels, embedded                       reconstructor.SwinUNet.forward
    (7) F_ASPP = [conv_3, conv_6, conv_12, mean](E_4)           aspp.ASPP.forward
    (8) D = Stage(X) + W X                                      reconstructor.Stage.forward
    (9) F_l = sigmoid(W1 [E_l, D_l]) * (W2 E_l)                 reconstructor.GatedSkip.forward
    (10) I_hat from D_1 + sum of F_l, l = 1 to 4                reconstructor.SwinUNet.sum_skips
    (11) Q_i = T_i W_i, K = T_S W_K, V = T_S W_V                channel_cross_attention.CrossAttentionLayer.forward
    (12) CA_i = softmax(Q_i K^T / sqrt(d)) V; by default
         softmax(psi(Q_i^T K / sqrt(S))) V^T, psi a norm        channel_cross_attention.CrossAttentionLayer.weights
    (13) MCA_i = mean of CA_i over the heads                    channel_cross_attention.CrossAttentionLayer.attend
    (14) T_i <- MCA_i + MLP(Q_i + MCA_i); by default
         T_i <- H + MLP(LN(H)), H = T_i + MCA_i W               channel_cross_attention.CrossAttentionLayer.forward
    (15) score = max of the s x s mean filter of M_pre          SRDAD.image_scores, filters.filtered_maximum
    (16) L_MSE = mean (I - I_hat)^2                             SRDAD.loss
    (17) SSIM(I, I_hat)                                         SRDAD.loss, losses.ssim
    (18) L_rec = 0.9 L_MSE + 0.1 (1 - SSIM)                     SRDAD.loss
    (19) L_focal = mean -alpha_t (1 - p_t)^gamma ln p_t         SRDAD.loss, losses.focal
    (20) L = L_rec + L_focal                                    SRDAD.loss
    (21) AUROC                                                  metrics.auroc

Algorithms and tables
    (Transformation) P_hat = T_geom(T_photo(P))                 anomalies.alter
    (Tokens) T_i embeds X_i, T_S = [T_1, ..., T_4]              channel_cross_attention.CrossFusion.forward
    (Table 4) the four rows and their training recipes          ABLATIONS, RECIPES

Not built
    Algorithm 1, a figure without text. Tables 1 to 3 and all curves: the source has no numbers of them.
    Blending with OpenCV's seamlessClone in place of the exact solution of equation 5.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adref.layers.unet import Autoencoder, UNet
from adref.method import Context, Method, Sources, Stage, training_length
from adref.methods.srdad.anomalies import natural_anomaly, new_notes, object_mask, object_side
from adref.methods.srdad.discriminator import ResSEUNet, cross_fusion
from adref.methods.srdad.options import ABLATIONS, PRESETS, Options, check, recipe_of
from adref.methods.srdad.reconstructor import SWIN_UNET, SwinUNet
from adref.ops.filters import filtered_maximum
from adref.ops.losses import channel_signs, focal, ssim
from adref.ops.texture_anomaly import paste_texture, rotate_randomly
from adref.options import UserError

ANOMALY_PROBABILITY = 0.5  # DRAEM's code: share of examples that are corrupted
DRAEM_SHARE = 0.75  # of the anomalies of --anomaly both; a guess (NOTES.md)


class Batch(NamedTuple):
    clean: Tensor  # (B, 3, H, W)
    corrupted: Tensor  # (B, 3, H, W)
    mask: Tensor  # (B, 1, H, W), 1 = corrupted


def corrupt(image: Tensor, rng: np.random.Generator, options: Options, sources: Sources) -> Batch:
    """Blends patches of the object into half of the images (equations 1 to 5), pastes DRAEM's textures, or either.

    Needs `sources.statistics` (from `object_side`); `sizes` for --patch-size histogram; `textures`, and `images` where
    --own-texture-share is above 0, for --anomaly draem or both. In a normal example, and where no patch finds a place,
    the mask Y is 0 and corrupted equal to clean. With --label changed a faint texture may leave no label.
    """
    mask = torch.from_numpy(object_mask(image.numpy(), options, sources.statistics))
    both = torch.cat((image, mask[None].float()))  # the mask rotates with its image: black corners are no object
    both = rotate_randomly(both, rng, recipe_of(options).rotation_probability, degrees=90.0)  # DRAEM's code
    image, mask = both[:3], both[3] > 0.5
    if not mask.any() or rng.random() >= ANOMALY_PROBABILITY:
        return Batch(image, image, torch.zeros(1, *image.shape[1:]))
    if options.anomaly == "draem" or (options.anomaly == "both" and rng.random() < DRAEM_SHARE):
        if sources.notes is not None and options.anomaly == "both":  # the same columns for both kinds
            sources.notes.append(new_notes(mask.numpy(), 0))
        visible = options.visible if options.label == "changed" else None
        return Batch(image, *paste_texture(image, rng, sources.textures, sources.images, visible=visible,
                     own_share=options.own_texture_share, colours=options.texture_colours))  # fmt: skip
    blended, label = natural_anomaly(image.numpy().astype(np.float64), mask.numpy(), rng, options, sources)
    return Batch(image, torch.from_numpy(blended.astype(np.float32)), torch.from_numpy(label.astype(np.float32))[None])


class SRDAD(Method):
    """Reconstructs the clean image, then segments what differs."""

    Options = Options
    presets = PRESETS
    ablations = ABLATIONS
    changeable = ("score_window",)
    corrupt = staticmethod(corrupt)
    statistics = staticmethod(object_side)

    def __init__(self, options: Options = Options()):
        super().__init__(options)
        o = self.options
        check(o)
        self.recipe = recipe_of(o)
        self.stages = (Stage("train", *training_length(self.recipe.epochs, o.steps), self.recipe.order),)
        if o.anomaly != "natural":
            self.needs = {"textures": "DRAEM's anomalies are textures"}
        if o.anomaly != "draem" and o.patch_size == "histogram":
            self.needs = {**self.needs, "sizes": "--patch-size histogram draws from a table of defect sizes"}
        if o.reconstructor == "draem":
            self.reconstructor = Autoencoder(width=o.autoencoder_width)
        else:
            form = {"size": o.size, "width": o.width, "window": o.window, "aspp_width": o.aspp_width, "gates": o.gates,
                    "residual": o.residual, "skips": o.skips, "skip_levels": o.skip_levels}  # fmt: skip
            if o.reconstructor == "swin_unet":
                form |= {**SWIN_UNET, "bottleneck_depth": 0}  # as srdad's
            self.reconstructor = SwinUNet(**form)
        if o.discriminator == "draem":
            self.discriminator = UNet(o.unet_width)
        else:
            c = o.discriminator_width
            fusion = cross_fusion(size=o.size, width=c, attention=o.attention, dropout=o.attention_dropout)
            self.discriminator = ResSEUNet(width=c, fusion=fusion)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, 3, H, W) to I_hat (B, 3, H, W) and probabilities (B, 2, H, W) of normal and anomalous."""
        reconstruction = self.reconstructor(images)
        pair = [images, reconstruction]  # no detach: the focal loss trains both networks
        if self.options.discriminator_input == "reconstruction_first":
            pair.reverse()
        return reconstruction, self.discriminator(torch.cat(pair, dim=1)).float().softmax(dim=1)

    def loss(self, batch: Batch, stage: str = "train") -> dict[str, Tensor]:
        """Computes equations 16 to 20: "l2" and "ssim" (weighted), "focal" and their "total"."""
        reconstruction, probabilities = self(batch.corrupted)
        reconstruction = reconstruction.float()
        similarity = ssim(reconstruction, batch.clean, "gaussian", padding="zero", value_range=1.0)
        terms = {"l2": self.recipe.l2_weight * F.mse_loss(reconstruction, batch.clean),
                 "ssim": self.recipe.ssim_weight * (1 - similarity),
                 "focal": focal(probabilities, batch.mask, gamma=2.0, alpha=None, smooth=1e-5)}  # fmt: skip
        return {**terms, "total": sum(terms.values()), **channel_signs(reconstruction, batch.clean)}

    def optimizer(self, stage: str = "train"):
        """Makes the recipe's optimizer; the rate falls at each milestone of the length."""
        kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[self.recipe.optimizer]
        optimizer = kind(self.parameters(), lr=self.options.learning_rate, weight_decay=self.recipe.weight_decay)
        milestones = [round(share * self.stages[0].length) for share in self.recipe.milestones]
        return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, self.recipe.milestone_factor)

    def anomaly_map(self, images: Tensor, context: Context = Context()) -> Tensor:
        """Maps (B, 3, H, W) in [0, 1] at --size to M_pre (B, 1, H, W) in [0, 1]."""
        images = self.admit(images, size=self.options.size)
        return self(images)[1][:, 1:]

    def image_scores(self, maps: Tensor) -> dict[str, Tensor]:
        """Computes equation 15, the maximum of a mean filter with zeros outside: (B, 1, H, W) -> (B,)."""
        return {"score": filtered_maximum(maps, self.options.score_window)}

    def figures(self, image: Tensor | None = None, context: Context = Context()) -> dict[str, Tensor]:
        """Shows I_hat of one image, clamped to [0, 1]."""
        return {} if image is None else {"reconstruction": self.reconstructor(image).float().clamp(0, 1)[0]}

    def load_weights(self, states: list[dict], part: str = "method") -> None:
        """Loads a Swin Transformer's checkpoint, its authors' key names, into the encoder; UserError for another."""
        if self.options.reconstructor == "draem":
            raise UserError("--weights is for the Swin encoder, which this run has not: --reconstructor draem")
        if len(states) != 1:
            raise UserError(f"--weights takes one Swin checkpoint; got {len(states)} files")
        state = states[0].get("model", states[0]) if isinstance(states[0], dict) else None
        try:
            self.reconstructor.load_swin(state if isinstance(state, dict) else {})
        except ValueError as error:
            raise UserError(f"--weights: {error}") from None
