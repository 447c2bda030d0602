"""DRAEM: a discriminatively trained reconstruction embedding for surface anomaly detection.

V. Zavrtanik, M. Kristan, D. Skocaj, "DRAEM - A Discriminatively Trained Reconstruction Embedding for Surface Anomaly
Detection", ICCV 2021. Code of the authors: github.com/VitjanZ/DRAEM (commit 2dbf673), called "code" below. Where
paper and code part, the default is the code, because the released weights come from it; `--ablation paper` is the
paper's reading of every such point.

A clean image gets a texture pasted under a mask of thresholded Perlin noise; an autoencoder restores the clean image;
a U-Net that sees both pictures side by side says which pixels were corrupted.

Symbols
    I, I_r      image, reconstruction               A, M, b    texture, mask, share of the image under the mask
    I_a         corrupted image                     M_o        softmax map of the anomalous class
    L_rec       l2 + SSIM loss                      eta        image score

Equations (the article was not at hand: its formulas as the code has them, numbered in the order of its sections)
    (1) L_ssim = mean(1 - SSIM(I, I_r))                         DRAEM.loss, losses.ssim
    (2) L_rec = lambda L_ssim + |I - I_r|^2                     DRAEM.loss
    (3) L = L_rec + L_seg(M, M_o), L_seg the focal loss         DRAEM.loss, losses.focal
    (4) I_a = (1 - M) I + M ((1 - beta) I + beta A)             corrupt, texture_anomaly.blend
    (5) eta = max(M_o * f), f a mean filter                     DRAEM.image_score
    (6) M = [Perlin noise, rotated, > t]                       texture_anomaly.draw_mask, perlin.perlin, perlin.rotate,
                                                                perlin.threshold

Not built
    The article's ablations and comparisons, which was not at hand.
    imgaug and OpenCV, of which the code takes its operations: they are written out in synthesis/textures.py (D10).
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adref.layers.unet import Autoencoder, UNet
from adref.method import Method, Sources, check_images
from adref.methods.draem.options import ABLATIONS, DEVIATIONS, PRESETS, Options
from adref.ops.filters import filtered_maximum
from adref.ops.losses import focal, ssim
from adref.ops.texture_anomaly import blend, draw_mask, draw_texture, rotate_randomly
from adref.ops.textures import OPERATIONS, PAPER_OPERATIONS
from adref.options import UserError, require_ascending


class Batch(NamedTuple):
    clean: Tensor  # (B, 3, H, W)
    corrupted: Tensor  # (B, 3, H, W)
    mask: Tensor  # (B, 1, H, W), 1 = corrupted


# -- the corrupted image: all of the method's randomness --------------------------------------------------------------


def corrupt(image: Tensor, rng: np.random.Generator, options: Options, sources: Sources) -> Batch:
    """One training example: with probability `anomaly_probability` a texture under a Perlin mask (equation 4).

    Args:
        image: (3, H, W) in [0, 1].
        rng: the stream of this example.
        options: the method's options.
        sources: `textures` is needed.

    Returns:
        clean and corrupted (3, H, W), mask (1, H, W); mask all 0 and corrupted equal to clean for a normal example.
    """
    image = rotate_randomly(image, rng, options.rotation_probability, options.rotation_degrees)  # D5
    mask = torch.zeros(1, *image.shape[1:])
    if rng.random() >= options.anomaly_probability:
        return Batch(image, image, mask)
    texture = draw_texture(
        rng,
        sources.textures,
        sources.images,
        own_share=options.own_texture_share,  # D13
        operations=options.texture_operations,  # D8, D10, D12
        operation_count=options.texture_operation_count,
        channel_order=options.channel_order,  # D9
    )
    mask = draw_mask(
        rng,
        tuple(image.shape[1:]),
        exponents=options.perlin_exponents,
        degrees=options.perlin_rotation,
        thresholds=options.mask_threshold,  # D6, D11
    )
    mask = torch.from_numpy(mask).unsqueeze(0)
    return Batch(image, blend(image, texture, mask, rng.uniform(*options.texture_weight)), mask)  # D7


# -- the method -------------------------------------------------------------------------------------------------------


class DRAEM(Method):
    """Reconstruct the clean image, then segment what differs."""

    Options = Options
    presets = PRESETS
    ablations = ABLATIONS
    deviations = DEVIATIONS
    tile_unit = (
        UNet.stride
    )  # the corners of a tile are aligned where the U-Nets enlarge: near the whole, not equal to it
    needs = ("textures",)
    corrupt = staticmethod(corrupt)

    def __init__(self, options: Options = Options()):  # noqa: B008  frozen
        super().__init__(options)
        if options.size[0] % UNet.stride or options.size[1] % UNet.stride:
            raise UserError(f"--size takes multiples of {UNet.stride}; got {options.size[0]},{options.size[1]}")
        require_ascending(options, "perlin_exponents", "mask_threshold", "texture_weight")
        kinds = OPERATIONS if options.texture_operations == "code" else PAPER_OPERATIONS
        if options.texture_operation_count > len(kinds):
            raise UserError(f"--texture-operation-count takes 0 to {len(kinds)}, the number of kinds; got "
                            f"{options.texture_operation_count}")  # fmt: skip
        if options.score_window % 2 == 0:
            raise UserError(f"--score-window takes an odd number of pixels; got {options.score_window}")
        self.reconstructor = Autoencoder(options.reconstruction_width)
        self.discriminator = UNet(6, 2, options.discriminator_width)

    def order(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """The images of an epoch: `count` draws, with replacement as the code does (D3)."""
        return rng.integers(count, size=count) if self.options.sampling == "replacement" else rng.permutation(count)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> reconstruction (B, 3, H, W), logits (B, 2, H, W)."""
        reconstruction = self.reconstructor(images)
        pair = (reconstruction, images)
        if self.options.discriminator_input == "image_first":
            pair = (images, reconstruction)
        return reconstruction, self.discriminator(torch.cat(pair, dim=1))

    def loss(self, batch: Batch, stage: str = "train") -> dict[str, Tensor]:
        """Equations 1 to 3. Terms: "l2", "ssim" (lambda L_ssim), "focal"; "total" is their sum."""
        reconstruction, logits = self(batch.corrupted)
        reconstruction, probabilities = reconstruction.float(), logits.float().softmax(dim=1)
        value_range = 1.0 if self.options.ssim_range == "one" else "auto"  # D4
        similarity = ssim(
            reconstruction,
            batch.clean,
            self.options.ssim_window,
            padding=self.options.ssim_padding,
            value_range=value_range,
        )
        terms = {
            "l2": F.mse_loss(reconstruction, batch.clean),
            "ssim": self.options.ssim_weight * (1 - similarity),  # equations 1, 2
            "focal": focal(
                probabilities, batch.mask, self.options.focal_gamma, self.options.focal_alpha, self.options.focal_smooth
            ),
        }
        return {**terms, "total": sum(terms.values())}  # equation 3

    def optimizer(self, stage: str = "train"):
        """Adam; the rate falls by `milestone_factor` at each milestone (D2)."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.options.learning_rate)
        milestones = [round(share * self.options.epochs) for share in self.options.milestones]
        factor = self.options.milestone_factor
        return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, factor)

    def anomaly_map(self, images: Tensor, rngs=None, looks=None) -> Tensor:
        """M_o: (B, 3, H, W) in [0, 1] -> (B, 1, H, W) in [0, 1], the softmax's anomalous channel."""
        check_images(images, UNet.stride)
        return self(images)[1].float().softmax(dim=1)[:, 1:]

    def image_score(self, maps: Tensor) -> Tensor:
        """Equation 5: the maximum of a mean filter, zeros outside counted: (B, 1, H, W) -> (B,)."""
        return filtered_maximum(maps, self.options.score_window)

    def reconstruct(self, images: Tensor, rngs=None, looks=None) -> Tensor:
        """I_r for the eye: (B, 3, H, W), clamped to [0, 1]."""
        check_images(images, UNet.stride)
        return self.reconstructor(images).float().clamp(0, 1)

    def load_weights(self, states: list[dict]) -> None:
        """The authors' two released files: the reconstructive state dict, then the discriminative one.

        Raises:
            UserError: not two files, or keys or shapes that do not fit `released_keys`.
        """
        if len(states) != 2:
            raise UserError(f"--weights takes two files for draem, NAME.pckl and NAME_seg.pckl; got {len(states)}")
        for network, state, suffix in (
            (self.reconstructor, states[0], ""),
            (self.discriminator, states[1], "_segment"),
        ):
            load_released(network, state, suffix)


# -- the authors' checkpoints -----------------------------------------------------------------------------------------


def released_keys(network: Autoencoder | UNet, suffix: str) -> dict[str, str]:
    """Our state-dict key -> the authors' key.

        encoder.blocks.<i>.*   encoder<suffix>.block<i + 1>.*
        ups.<i>.*, blocks.<i>.*   decoder<suffix>.up<n>.*, .db<n>.*   n = 1, 2, 3, 4; the U-Net's first step is "_b"
        out.*                  decoder<suffix>.fin_out.0.*

    Args:
        network: either network at any width.
        suffix: "" for the reconstructive file, "_segment" for the discriminative one.
    """
    steps = ["1", "2", "3", "4"] if suffix == "" else ["_b", "1", "2", "3", "4"]
    names = {}
    for key in network.state_dict():
        part, *rest = key.split(".")
        if part == "encoder":  # encoder.blocks.<i>.<rest>
            names[key] = ".".join((f"encoder{suffix}", f"block{int(rest[1]) + 1}", *rest[2:]))
        elif part == "out":
            names[key] = ".".join((f"decoder{suffix}", "fin_out", "0", *rest))
        else:
            names[key] = ".".join(
                (f"decoder{suffix}", {"ups": "up", "blocks": "db"}[part] + steps[int(rest[0])], *rest[1:])
            )
    return names


def load_released(network: Autoencoder | UNet, state: dict, suffix: str) -> None:
    """Loads one of the authors' state dicts.

    Raises:
        UserError: missing or unknown keys (named), or a shape that differs (another width).
    """
    names = released_keys(network, suffix)
    missing, unknown = sorted(set(names.values()) - set(state)), sorted(set(state) - set(names.values()))
    if missing or unknown:
        raise UserError(
            f"--weights: keys do not fit DRAEM's released files: {len(missing)} missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]}"
        )
    own = network.state_dict()
    wrong = [theirs for ours, theirs in names.items() if own[ours].shape != state[theirs].shape]
    if wrong:
        raise UserError(f"--weights: {wrong[0]} has shape {tuple(state[wrong[0]].shape)}, which is another width")
    network.load_state_dict({ours: state[theirs] for ours, theirs in names.items()})
