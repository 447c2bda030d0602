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
    (4) I_a = (1 - M) I + M ((1 - beta) I + beta A)             blend
    (5) eta = max(M_o * f), f a mean filter                     DRAEM.image_score
    (6) M = [Perlin noise, turned, > t]                        draw_mask, perlin.perlin, perlin.rotate, perlin.threshold

Not built
    The article's ablations and comparisons, which was not at hand.
    imgaug and OpenCV, of which the code takes its operations: they are written out in synthesis/textures.py (D10).
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adref.layers.unet import Autoencoder, UNet
from adref.losses import focal, ssim
from adref.method import Deviation, Method, Sources, check_images, filtered_maximum
from adref.options import UserError, option, require_ascending
from adref.synthesis.perlin import draw_perlin, perlin, rotate, threshold
from adref.synthesis.textures import OPERATIONS, PAPER_OPERATIONS, apply_operations, draw_operations


@dataclass(frozen=True)
class Options:
    """The constants of DRAEM that a reading or a size could set otherwise; the defaults are the paper preset."""

    size: tuple[int, int] = option(
        (256, 256), "height,width of the network's input; multiples of 32", "code", (64, 65536)
    )
    resize: Literal["bilinear", "antialias"] = option("bilinear", "filter that brings a picture to --size", "code; D1")
    reconstruction_width: int = option(128, "channels of the autoencoder's first level", "code", (1, math.inf))
    discriminator_width: int = option(64, "channels of the U-Net's first level", "code", (1, math.inf))
    epochs: int = option(700, "passes over the training images", "code", (0, math.inf))
    batch_size: int = option(8, "images a step", "code (README)", (1, math.inf))
    learning_rate: float = option(1e-4, "Adam's step size", "code", (0, math.inf))
    milestones: tuple[float, ...] = option(
        (0.8, 0.9), "shares of the epochs after which the rate falls", "code; D2", (0, 1)
    )
    milestone_factor: float = option(0.2, "factor by which it falls there", "code; D2", (0, 1))
    sampling: Literal["replacement", "shuffle"] = option("replacement", "how an epoch draws its images", "code; D3")
    ssim_weight: float = option(1.0, "weight of the SSIM loss", "code", (0, math.inf))
    ssim_range: Literal["one", "auto"] = option("one", "value range L of SSIM; auto: guessed as the code does", "D4")
    ssim_window: Literal["gaussian", "uniform"] = option("gaussian", "weights of SSIM's 11 x 11 window", "code")
    ssim_padding: Literal["zero", "valid"] = option("zero", "SSIM at the border: zeros outside, or inside only", "code")
    focal_alpha: float | None = option(None, "weight of the anomalous class, none: both weigh 1", "code", (0, 1))
    focal_gamma: float = option(2.0, "focusing exponent of the focal loss", "code", (0, math.inf))
    focal_smooth: float = option(1e-5, "clamp of the one-hot mask and addend of p_t", "code", (0, 0.5))
    anomaly_probability: float = option(0.5, "share of samples that are corrupted", "code", (0, 1))
    rotation_probability: float = option(0.3, "share of clean images that are rotated first", "code", (0, 1))
    rotation_degrees: float = option(90.0, "they turn by U(-d, d), black fill", "code; D5", (0, 180))
    perlin_exponents: tuple[int, int] = option(
        (0, 5), "the noise lattice has 2^i x 2^j cells, i and j from here", "code", (0, 12)
    )
    perlin_rotation: float = option(90.0, "the noise turns by U(-d, d) degrees", "code", (0, 180))
    mask_threshold: tuple[float, float] = option(
        (0.5, 0.5),
        "mask = noise > t, t drawn uniformly from here (write --mask-threshold=-0.1,0.5 where it is negative)",
        "code; D6",
        (-1, 1),
    )
    texture_weight: tuple[float, float] = option(
        (0.2, 1.0), "share of the texture under the mask, drawn uniformly from here", "code; D7", (0, 1)
    )
    own_texture_share: float = option(0.0, "share of textures that are moved training images", "D13", (0, 1))
    texture_operations: Literal["code", "paper"] = option("code", "10 kinds of operation, or the paper's 7", "D8")
    texture_operation_count: int = option(3, "different operations on each texture, in random order", "code", (0, 10))
    channel_order: Literal["rgb", "bgr"] = option("rgb", "order that colour operations believe in", "D9")
    discriminator_input: Literal["reconstruction_first", "image_first"] = option(
        "reconstruction_first", "order of the two pictures in the U-Net's six channels", "code"
    )
    score_window: int = option(21, "side of the score's mean filter, odd, pixels at --size", "code", (1, math.inf))


PRESETS = {
    "paper": {},
    # Half the side, so lattices and score window shrink with it; an eighth of the widths; more steps, larger ones.
    "tiny": {
        "size": (128, 128),
        "reconstruction_width": 16,
        "discriminator_width": 8,
        "epochs": 100,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "rotation_probability": 0.0,
        "perlin_exponents": (0, 4),
        "own_texture_share": 0.5,
        "score_window": 11,
    },
}

ABLATIONS = {
    "paper": {
        "milestones": (4 / 7, 6 / 7),
        "milestone_factor": 0.1,
        "rotation_degrees": 45.0,
        "mask_threshold": (0.0, 1.0),
        "texture_weight": (0.1, 1.0),
        "texture_operations": "paper",
    },
}


class Batch(NamedTuple):
    clean: Tensor  # (B, 3, H, W)
    corrupted: Tensor  # (B, 3, H, W)
    mask: Tensor  # (B, 1, H, W), 1 = corrupted


DEVIATIONS = (
    Deviation("D1", "Options.resize", "silent", "resize to 256 x 256", "bilinear, half-pixel centres, no antialias",
              "cv2.resize's default in the code; rounded once to 8 bits, where OpenCV uses fixed-point weights"),
    Deviation("D2", "Options.milestones", "contradiction", "rate x0.1 after 400 and 600 of 700 epochs",
              "x0.2 at 80 % and 90 % of the epochs", "the code's values made the released weights"),
    Deviation("D3", "Options.sampling", "silent", "nothing said", "each draw is any training image, with replacement",
              "the code's loader ignores the index that it is asked for"),
    Deviation("D4", "Options.ssim_range", "mistake", "images in [0, 1]", "L = 1",
              "the code guesses L from its first argument, the network's output: 1, 2, 255 or 256 early in training"),
    Deviation("D5", "Options.rotation_degrees", "contradiction", "rotation of normal images by +-45 degrees",
              "+-90 degrees, for 30 % of the images", "the code's values; the share is from the code alone"),
    Deviation("D6", "Options.mask_threshold", "contradiction", "a random uniform threshold, its range not given",
              "fixed at 0.5", "the code's value; the ablation 'paper' draws from U(0, 1), which is a guess"),
    Deviation("D7", "Options.texture_weight", "contradiction", "beta of the texture from U(0.1, 1.0)",
              "U(0.2, 1.0]", "the code weighs the image with 0.8 u, hence the texture with 1 - 0.8 u"),
    Deviation("D8", "Options.texture_operations", "contradiction", "seven kinds of operation",
              "ten: gamma, invert and rotation too", "the code's list"),
    Deviation("D9", "Options.channel_order", "mistake", "RGB", "colour operations see RGB",
              "the code hands BGR arrays to operations that take them for RGB; 'bgr' repeats that"),
    Deviation("D10", "adref.synthesis.textures", "substitution", "imgaug and OpenCV, 8-bit tables",
              "own formulas in float32, rounded once; Pillow's bilinear rotation",
              "two dependencies fewer; colour spaces agree with OpenCV within 2 grey levels on a colour grid (Luv of "
              "codes that are no colour aside); OpenCV's rotation interpolates at 1/32 pixel and blends into black; a "
              "rotated clean image stays unrounded here"),
    Deviation("D11", "draw_mask", "silent", "noise at 256 x 256", "lattice cells are never finer than 2 pixels",
              "below 64 pixels the code's finest lattices have no pixel between their points, or fail"),
    Deviation("D12", "PAPER_OPERATIONS", "ambiguous", "an operation called colour", "hue and saturation",
              "it stands in that operation's place in the code's list"),
    Deviation("D13", "Options.own_texture_share", "substitution", "textures come from another data set", "0; tiny: 0.5",
              "an addition, off at full size: a short training on foreign textures learns colour and little else, and "
              "never meets a defect made of the part's own material, such as a short circuit"),
)  # fmt: skip


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
    image = turn(image, rng, options.rotation_probability, options.rotation_degrees)  # D5
    mask = torch.zeros(1, *image.shape[1:])
    if rng.random() >= options.anomaly_probability:
        return Batch(image, image, mask)
    texture = draw_texture(rng, options, sources)
    mask = torch.from_numpy(draw_mask(rng, tuple(image.shape[1:]), options)).unsqueeze(0)
    return Batch(image, blend(image, texture, mask, rng.uniform(*options.texture_weight)), mask)  # D7


def turn(image: Tensor, rng: np.random.Generator, probability: float, most: float) -> Tensor:
    """With a probability, the image (3, H, W) turned by U(-most, most) degrees about its centre; black fill."""
    if rng.random() >= probability:
        return image
    turned = rotate(image.permute(1, 2, 0).numpy(), rng.uniform(-most, most))
    return torch.from_numpy(turned).permute(2, 0, 1).contiguous()


def draw_texture(rng: np.random.Generator, options: Options, sources: Sources) -> Tensor:
    """A texture (3, H, W) in [0, 1] after a few different operations in random order."""
    own = options.own_texture_share > 0 and rng.random() < options.own_texture_share  # D13
    pictures = sources.images if own else sources.textures
    texture = pictures[int(rng.integers(len(pictures)))]
    if own:  # moved, or it would often be equal to what it covers
        texture = texture.roll(tuple(int(rng.integers(side)) for side in texture.shape[1:]), (1, 2))
    operations = OPERATIONS if options.texture_operations == "code" else PAPER_OPERATIONS  # D8, D12
    drawn = draw_operations(rng, options.texture_operation_count, operations)
    changed = apply_operations(texture.permute(1, 2, 0).numpy(), drawn, options.channel_order)  # D9, D10
    return torch.from_numpy(np.ascontiguousarray(changed.transpose(2, 0, 1))).float() / 255


def draw_mask(rng: np.random.Generator, shape: tuple[int, int], options: Options) -> np.ndarray:
    """Equation 6: a mask (H, W) in {0, 1}, rotated Perlin noise above a threshold."""
    noise = perlin(draw_perlin(rng, shape, *options.perlin_exponents), shape)
    noise = rotate(noise, rng.uniform(-options.perlin_rotation, options.perlin_rotation))
    return threshold(noise, rng.uniform(*options.mask_threshold))  # D6, D11


def blend(image: Tensor, texture: Tensor, mask: Tensor, weight: float) -> Tensor:
    """Equation 4: (1 - M) I + M ((1 - beta) I + beta A), with beta = `weight`; equal to I where M is 0."""
    return torch.where(mask > 0, (1 - weight) * image + weight * texture, image)


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
