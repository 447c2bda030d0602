"""DRAEM: a discriminatively trained reconstruction embedding for surface anomaly detection.

V. Zavrtanik, M. Kristan, D. Skocaj, "DRAEM - A Discriminatively Trained Reconstruction Embedding for Surface Anomaly
Detection", ICCV 2021. Code of the authors: github.com/VitjanZ/DRAEM (commit 2dbf673), called "code" below. Where
paper and code differ, the default is the code, because the released weights come from it; `--ablation literal` takes
every value as the paper prints it.

A texture is pasted into a clean image under a mask of thresholded Perlin noise. An autoencoder restores the clean
image; a U-Net that sees both images side by side predicts which pixels were corrupted.

Symbols
    I, I_r      image, reconstruction               A, M, b    texture, mask, share of the image under the mask
    I_a         corrupted image                     M_o        softmax map of the anomalous class
    L_rec       l2 + SSIM loss                      eta        image score

Equations (source: the code; the article's own numbers are not known, these follow the order of its sections)
    (1) L_ssim = mean(1 - SSIM(I, I_r))                         DRAEM.loss, losses.ssim
    (2) L_rec = lambda L_ssim + |I - I_r|^2                     DRAEM.loss
    (3) L = L_rec + L_seg(M, M_o), L_seg the focal loss         DRAEM.loss, losses.focal
    (4) I_a = (1 - M) I + M ((1 - beta) I + beta A)             corrupt, texture_anomaly.blend
    (5) eta = max(M_o * f), f a mean filter                     DRAEM.image_scores, filters.filtered_maximum

Algorithms and tables
    (Mask) M = [Perlin noise, rotated, > t]                     texture_anomaly.draw_mask, perlin.perlin, perlin.rotate,
                                                                perlin.threshold

Not built
    The article's ablations and comparisons.
    imgaug and OpenCV, from which the code takes its operations: they are written out in ops/textures.py.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adref.layers.unet import Autoencoder, UNet
from adref.method import Context, Evaluation, Method, Sources, Stage, training_length
from adref.methods.draem.options import ABLATIONS, PRESETS, Options, check
from adref.ops.filters import filtered_maximum
from adref.ops.losses import channel_signs, focal, ssim
from adref.ops.texture_anomaly import paste_texture, rotate_randomly
from adref.options import UserError

ANOMALY_PROBABILITY = 0.5  # the code: share of examples that are corrupted


class Batch(NamedTuple):
    clean: Tensor  # (B, 3, H, W)
    corrupted: Tensor  # (B, 3, H, W)
    mask: Tensor  # (B, 1, H, W), 1 = labelled as corrupted


def corrupt(image: Tensor, rng: np.random.Generator, options: Options, sources: Sources) -> Batch:
    """Pastes a texture under a Perlin mask into half of the images (equation 4); see `Trainable.corrupt`.

    Needs `sources.textures`, and `images` where --own-texture-share is above 0. In a normal example the mask is 0 and
    corrupted equal to clean.
    """
    o = options
    image = rotate_randomly(image, rng, o.rotation_probability, o.rotation_degrees)
    if rng.random() >= ANOMALY_PROBABILITY:
        return Batch(image, image, torch.zeros(1, *image.shape[1:]))
    corrupted, mask = paste_texture(
        image, rng, sources.textures, sources.images, own_share=o.own_texture_share, operations=o.texture_operations,
        channel_order=o.channel_order, colours=o.texture_colours, exponents=o.perlin_exponents,
        thresholds=o.mask_threshold, weights=o.texture_weight, visible=o.visible)  # fmt: skip
    return Batch(image, corrupted, mask)


class DRAEM(Method):
    """Reconstructs the clean image, then segments what differs."""

    Options = Options
    presets = PRESETS
    ablations = ABLATIONS
    changeable = ("score_window",)
    needs = {"textures": "its anomalies are textures"}
    # The U-Nets upsample with aligned corners, so a tile's map is near that of the whole image, not equal to it.
    evaluation = Evaluation(tile_unit=UNet.stride)
    corrupt = staticmethod(corrupt)

    def __init__(self, options: Options = Options()):
        super().__init__(options)
        check(options)
        self.stages = (Stage("train", *training_length(options.epochs, options.steps), order="replacement"),)
        self.reconstructor = Autoencoder(options.reconstruction_width)
        self.discriminator = UNet(options.discriminator_width)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, 3, H, W) to the reconstruction (B, 3, H, W) and logits (B, 2, H, W)."""
        reconstruction = self.reconstructor(images)
        return reconstruction, self.discriminator(torch.cat((reconstruction, images), dim=1))

    def loss(self, batch: Batch, stage: str = "train") -> dict[str, Tensor]:
        """Computes equations 1 to 3: "l2", "ssim" (lambda L_ssim, lambda 1 in the code), "focal" and their "total"."""
        reconstruction, logits = self(batch.corrupted)
        reconstruction, probabilities = reconstruction.float(), logits.float().softmax(dim=1)
        value_range = 1.0 if self.options.ssim_range == "one" else "auto"
        similarity = ssim(reconstruction, batch.clean, "gaussian", padding="zero", value_range=value_range)
        segmentation = focal(probabilities, batch.mask, gamma=2.0, alpha=None, smooth=1e-5)  # constants of the code
        terms = {"l2": F.mse_loss(reconstruction, batch.clean), "ssim": 1 - similarity, "focal": segmentation}
        return {**terms, "total": sum(terms.values()), **channel_signs(reconstruction, batch.clean)}

    def optimizer(self, stage: str = "train"):
        """Makes Adam; the rate falls by `milestone_factor` at each milestone."""
        o = self.options
        optimizer = torch.optim.Adam(self.parameters(), lr=o.learning_rate)
        milestones = [round(share * self.stages[0].length) for share in o.milestones]
        return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, o.milestone_factor)

    def anomaly_map(self, images: Tensor, context: Context = Context()) -> Tensor:
        """Maps (B, 3, H, W) in [0, 1] to M_o (B, 1, H, W) in [0, 1], the softmax's anomalous channel."""
        images = self.admit(images, UNet.stride)
        return self(images)[1].float().softmax(dim=1)[:, 1:]

    def image_scores(self, maps: Tensor) -> dict[str, Tensor]:
        """Computes equation 5, the maximum of a mean filter with zeros outside: (B, 1, H, W) -> (B,)."""
        return {"score": filtered_maximum(maps, self.options.score_window)}

    def figures(self, image: Tensor | None = None, context: Context = Context()) -> dict[str, Tensor]:
        """Shows I_r of one image, clamped to [0, 1]."""
        return {} if image is None else {"reconstruction": self.reconstructor(image).float().clamp(0, 1)[0]}

    def load_weights(self, states: list[dict], part: str = "method") -> None:
        """Loads the authors' two released files, reconstructive, then discriminative; UserError if they do not fit."""
        if len(states) != 2:
            raise UserError(f"--weights takes two files for draem, NAME.pckl and NAME_seg.pckl; got {len(states)}")
        load_released(self.reconstructor, states[0], "")
        load_released(self.discriminator, states[1], "_segment")


def released_keys(network: Autoencoder | UNet, suffix: str) -> dict[str, str]:
    """Maps our state-dict keys to those of the authors' checkpoints.

    The suffix is "" for the reconstructive file, "_segment" for the discriminative one.
    """
    steps = ["1", "2", "3", "4"] if suffix == "" else ["_b", "1", "2", "3", "4"]
    parts = {f"encoder.blocks.{i}": f"encoder{suffix}.block{i + 1}" for i in range(len(network.encoder.blocks))}
    for ours, theirs in (("ups", "up"), ("blocks", "db")):
        parts |= {f"{ours}.{i}": f"decoder{suffix}.{theirs}{step}" for i, step in enumerate(steps)}
    parts["out"] = f"decoder{suffix}.fin_out.0"
    return {f"{ours}.{key}": f"{theirs}.{key}" for ours, theirs in parts.items()
            for key in network.get_submodule(ours).state_dict()}  # fmt: skip


def load_released(network: Autoencoder | UNet, state: dict, suffix: str) -> None:
    """Loads one of the authors' state dicts; see `DRAEM.load_weights`."""
    names, expected = released_keys(network, suffix), network.state_dict()
    missing, unknown = sorted(set(names.values()) - set(state)), sorted(set(state) - set(names.values()))
    if missing or unknown:
        raise UserError(f"--weights: keys do not fit DRAEM's released files: {len(missing)} missing {missing[:3]}, "
                        f"{len(unknown)} unknown {unknown[:3]}")  # fmt: skip
    for ours, theirs in names.items():
        if expected[ours].shape != state[theirs].shape:
            raise UserError(f"--weights: {theirs} has shape {tuple(state[theirs].shape)}, which is another width")
    network.load_state_dict({ours: state[theirs] for ours, theirs in names.items()})
