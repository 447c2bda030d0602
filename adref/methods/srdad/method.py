"""SRDAD: a Swin-UNet reconstructs, a U-Net with cross attention discriminates, anomalies are made of the part itself.

"SRDAD", Scientific Reports 2025, article s41598-025-10303-8. No code of its authors is known: this is the article's
text, the works that it builds on, and a record in DEVIATIONS for every guess. "U" marks a value from those works: DRAEM
(its baseline), Swin-Unet, UCTransNet and NSA.

A patch of a normal image is altered and blended in elsewhere on the object; the reconstructor restores the clean image;
the discriminator sees both pictures and marks the patches. Table 4 of the paper is `--ablation`
draem|draem+|srdad-|srdad; `--recipe` and `--anomaly` put the four under one training recipe and one kind of anomaly.

What an audit should know before it trusts the article:
- On ASPP's 8 x 8 map only the centre tap of the rate-12 branch ever reads data: it is a 1x1 convolution (see `ASPP`).
- Brightness as an added constant has no effect at all: Poisson blending cancels it (D9).
- Noise on every patch gives the patches away: at small sizes the discriminator learns it and nothing else. Trained as
  the paper has it (but small), it finds synthetic patches on unseen pavement with a pixel AP of .997, and the same
  patches without noise with .067, which is below their share of the pixels (`tools/giveaway.py`; D8).
- A size distribution "of real defects" taken from test masks would leak the test set; the default here is not (D6).
- The article gives DRAEM 26.5 M parameters and calls SRDAD the heavier; DRAEM's code has 97.4 M and does 5.9 times the
  multiplications (D45, D46). Its 19.4 M and 27.8 M leave few readings of SRDAD's own networks (D18, D28).

Symbols
    I, I_ano, I_hat   clean image, with an anomaly, reconstruction    M, Y       masks of the object and of the anomaly
    P, R, Omega       patch, its region, the region's inside          E_l, D_l   maps of encoder and decoder at level l
    T_i, T_S          tokens of scale i and of all scales             M_pre, s   anomaly map, side of the score's filter

Equations
    (1) B = [I > tau], tau by Otsu                                   object_mask, image.otsu
    (2) M = closing(B)                                               object_mask, image.morphology
    (3) P_hat = T_geom(T_photo(P))                                   alter
    (4) noise, brightness; rotation, scale                           alter, draw_alteration
    (5) min |grad f - grad P_hat|^2 + lambda |f - I|^2 on dR         natural_anomaly, poisson.poisson_blend
    (6) patches of 4 x 4 pixels, embedded                            swin_unet.SwinUNet.forward
    (7) F_ASPP = [conv_3, conv_6, conv_12, mean](E_4)                aspp.ASPP.forward
    (8) D = Stage(X) + W X                                           swin_unet.Stage.forward
    (9) F_l = sigmoid(W1 [E_l, D_l]) * (W2 E_l)                      swin_unet.GatedSkip.forward
    (10) I_hat from D_1 + sum of F_l, l = 1 to 4                     swin_unet.SwinUNet.sum_skips
    (11) T_i = embedding of X_i, T_S = [T_1, ..., T_4]               channel_cross_attention.CrossFusion.forward,
                                                                     channel_cross_attention.CrossAttentionLayer.forward
    (12) softmax(psi(Q_i^T K / sqrt(S))) V^T                         channel_cross_attention.CrossAttentionLayer.weights
    (13) mean over the heads                                         channel_cross_attention.CrossAttentionLayer.attend
    (14) T_i <- MCA + MLP(Q + MCA)                                   channel_cross_attention.CrossAttentionLayer.forward
    (15) score = max of the s x s mean filter of M_pre               SRDAD.image_score, method.filtered_maximum
    (16) L_MSE = mean (I - I_hat)^2                                  SRDAD.loss
    (17) L_SSIM = 1 - SSIM(I, I_hat)                                 SRDAD.loss, losses.ssim
    (18) L_rec = 0.9 L_MSE + 0.1 L_SSIM                              SRDAD.loss
    (19) L_focal = mean -alpha_t (1 - p_t)^gamma ln p_t              SRDAD.loss, losses.focal
    (20) L = L_rec + L_focal                                         SRDAD.loss

Algorithms and tables
    (Table 4) the four rows, and the recipes under which they compare    ABLATIONS

Not built
    Tables 1 to 3 and all curves: the text at hand has no numbers of them to stand beside ours.
    Blending with OpenCV's seamlessClone in place of the exact solution of equation 5.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adref.layers.channel_cross_attention import CrossFusion
from adref.layers.unet import Autoencoder, UNet
from adref.method import Context, Method, Sources, Stage, check_images
from adref.methods.srdad.anomalies import Batch, natural_anomaly, object_mask, object_side, texture_anomaly
from adref.methods.srdad.discriminator import ResSEUNet
from adref.methods.srdad.options import ABLATIONS, PRESETS, Options, check, resolve
from adref.methods.srdad.reconstructor import SwinUNet
from adref.ops.filters import filtered_maximum
from adref.ops.losses import focal, ssim
from adref.ops.texture_anomaly import rotate_randomly
from adref.options import UserError

# -- the anomalies: all of the method's randomness --------------------------------------------------------------------


def corrupt(image: Tensor, rng: np.random.Generator, options: Options, sources: Sources) -> Batch:
    """One training example: with probability `anomaly_probability` patches of the part where they do not belong.

    Args:
        image: (3, H, W) in [0, 1].
        rng: the stream of this example.
        options: the method's options.
        sources: `statistics`, the side of the object; `images`, `sizes`, `textures`, `notes` as options want them.

    Returns:
        clean and corrupted (3, H, W), mask (1, H, W): Y; all 0 and corrupted equal to clean for a normal example, and
        where no patch could be set in.
    """
    options = resolve(options)
    if options.anomaly == "draem":
        return texture_anomaly(image, rng, options, sources)
    mask = torch.from_numpy(object_mask(image.numpy(), options, sources.statistics))
    both = torch.cat((image, mask[None].float()))  # the object turns with its image: black corners are none of it
    both = rotate_randomly(both, rng, options.rotation_probability, options.rotation_degrees)  # D17
    image, mask = both[:3], both[3] > 0.5
    if not mask.any() or rng.random() >= options.anomaly_probability:  # D16
        return Batch(image, image, torch.zeros(1, *image.shape[1:]))
    blended, label = natural_anomaly(image.numpy().astype(np.float64), mask.numpy(), rng, options, sources)
    corrupted = torch.from_numpy(blended.astype(np.float32))
    return Batch(image, corrupted, torch.from_numpy(label.astype(np.float32)).unsqueeze(0))


class SRDAD(Method):
    """Reconstruct the clean image, then segment what differs (D46)."""

    Options = Options
    presets = PRESETS
    ablations = ABLATIONS
    corrupt = staticmethod(corrupt)
    statistics = staticmethod(object_side)

    def __init__(self, options: Options = Options()):
        super().__init__(options)
        self.options = o = resolve(self.options)
        check(o)
        classes = 2 if o.output == "softmax" else 1
        if o.anomaly == "draem":
            self.needs = {"textures": "DRAEM's anomalies are textures"}
        elif o.patch_size == "histogram":
            self.needs = {"sizes": "--patch-size histogram draws from a table of defect sizes"}
        if o.reconstructor == "draem":
            self.reconstructor = Autoencoder(o.autoencoder_width)
        else:
            self.reconstructor = SwinUNet(
                o.size, o.width, o.depths, o.bottleneck_depth, o.heads, o.window, o.drop_path,
                o.aspp_width if o.aspp else None, o.aspp_rates, o.aspp_batch_norm, o.aspp_project, o.residual, o.skips,
                o.skip_levels,
                o.skip_tap, o.gates, o.output_activation,
            )  # fmt: skip
        if o.discriminator == "draem":
            self.discriminator = UNet(o.unet_width, classes=classes)
        else:
            fusion = CrossFusion(
                o.size, tuple(o.discriminator_width * 2**level for level in range(4)), patches=o.attention_patches,
                layers=o.attention_layers, heads=o.attention_heads, attention=o.attention, scale=o.attention_scale,
                instance_norm=o.attention_instance_norm, residual=o.attention_residual,
                add_input=o.attention_add_input, dropout=o.attention_dropout,
            ) if o.cross_attention else None  # fmt: skip
            self.discriminator = ResSEUNet(o.discriminator_width, o.res_se, o.se_ratio, fusion, 6, classes)
        order = "replacement" if o.sampling == "replacement" else "permutation"
        unit = "steps" if o.length_unit == "iterations" else "epochs"
        self.stages = (Stage("train", o.epochs, unit, order),)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> reconstruction (B, 3, H, W), probabilities (B, 2, H, W) of normal and anomalous."""
        reconstruction = self.reconstructor(images)
        pair = [images, reconstruction.detach() if self.options.detach else reconstruction]  # D50
        if self.options.discriminator_input == "reconstruction_first":  # D36
            pair.reverse()
        logits = self.discriminator(torch.cat(pair, dim=1)).float()
        if self.options.output == "sigmoid":  # D37: the softmax of (0, z)
            logits = torch.cat((torch.zeros_like(logits), logits), dim=1)
        return reconstruction, logits.softmax(dim=1)

    def loss(self, batch: Batch, stage: str = "train") -> dict[str, Tensor]:
        """Equations 16 to 20. Terms: "l2" and "ssim" (weighted), "focal"; "total" is their sum."""
        o = self.options
        reconstruction, probabilities = self(batch.corrupted)
        reconstruction = reconstruction.float()
        alpha = o.focal_alpha[0] if o.focal_alpha and len(o.focal_alpha) == 1 else o.focal_alpha
        similarity = ssim(reconstruction, batch.clean, o.ssim_window, padding=o.ssim_padding,
                          value_range=1.0 if o.ssim_range == "one" else "auto")  # fmt: skip  # D40
        terms = {
            "l2": o.l2_weight * F.mse_loss(reconstruction, batch.clean),  # equations 16, 18: the whole image (D39)
            "ssim": o.ssim_weight * (1 - similarity),  # equations 17, 18
            "focal": focal(probabilities, batch.mask, o.focal_gamma, alpha, o.focal_smooth),  # equation 19; D41
        }
        return {**terms, "total": sum(terms.values())}  # equation 20

    def optimizer(self, stage: str = "train"):
        """AdamW; the rate falls at each milestone of the length."""
        kind = torch.optim.AdamW if self.options.optimizer == "adamw" else torch.optim.Adam
        rate, decay = self.options.learning_rate, self.options.weight_decay
        optimizer = kind(self.parameters(), lr=rate, weight_decay=decay)
        milestones = [round(share * self.options.epochs) for share in self.options.milestones]
        return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, self.options.milestone_factor)

    def anomaly_map(self, images: Tensor, context: Context = Context()) -> Tensor:
        """M_pre: (B, 3, H, W) in [0, 1] at --size -> (B, 1, H, W) in [0, 1]."""
        check_images(images, size=self.options.size)
        return self(images)[1][:, 1:]

    def image_scores(self, maps: Tensor) -> dict[str, Tensor]:
        """Computes equation 15, the maximum of a mean filter with zeros outside: (B, 1, H, W) -> (B,)."""
        return {"score": filtered_maximum(maps, self.options.score_window)}  # D38

    def figures(self, image: Tensor | None = None, context: Context = Context()) -> dict[str, Tensor]:
        """Shows I_hat of one image, clamped to [0, 1]."""
        return {} if image is None else {"reconstruction": self.reconstructor(image).float().clamp(0, 1)[0]}

    def load_weights(self, states: list[dict], part: str = "method") -> None:
        """A Swin Transformer's checkpoint, with the key names of its authors, for the encoder (D27).

        Raises:
            UserError: not one file, another reconstructor, or keys or shapes that do not fit.
        """
        if self.options.reconstructor != "srdad":
            raise UserError("--weights is for the Swin-UNet's encoder, which this run has not: --reconstructor draem")
        if len(states) != 1:
            raise UserError(f"--weights takes one Swin checkpoint; got {len(states)} files")
        state = states[0].get("model", states[0]) if isinstance(states[0], dict) else None
        if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
            raise UserError("--weights: no Swin checkpoint: expected tensors by name, or the same under 'model'")
        try:
            self.reconstructor.load_swin(state)
        except ValueError as error:
            raise UserError(f"--weights: {error}") from None
