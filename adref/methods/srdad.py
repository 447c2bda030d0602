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

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import scipy
import torch
import torch.nn.functional as F
from torch import Tensor

from adref.image import fill_holes, frame_share, grey, morphology, otsu
from adref.layers.channel_cross_attention import CrossFusion
from adref.layers.res_se_unet import ResSEUNet
from adref.layers.swin_unet import SwinUNet, next_valid_side
from adref.layers.unet import Autoencoder, UNet
from adref.losses import focal, ssim
from adref.method import Deviation, Method, Sources, check_images, filtered_maximum
from adref.methods import draem
from adref.methods.draem import Batch
from adref.options import UserError, option, require_ascending
from adref.synthesis import natural
from adref.synthesis.poisson import poisson_blend

INF = math.inf


@dataclass(frozen=True)
class Options:
    """The constants of SRDAD and their other readings; the defaults are the paper preset. Patch sizes are pixels of a
    picture whose shorter side is 256."""

    size: tuple[int, int] = option(
        (256, 256), "height,width of the networks' input", "section Experiments", (32, 65536)
    )
    resize: Literal["bilinear", "antialias"] = option("bilinear", "filter that brings a picture to --size", "U; D49")
    # the object
    mask_mode: Literal["auto", "object", "full"] = option(
        "auto", "Otsu's mask, the whole picture, or by its limits", "D3"
    )
    mask_grey: Literal["luma", "mean"] = option("luma", "grey value for Otsu's threshold", "D1")
    mask_polarity: Literal["auto", "literal", "bright", "dark", "mvtec"] = option(
        "auto", "side of the threshold that is the object; mvtec: MVTEC_OBJECTS by the category's name", "Eq 1; D2"
    )
    mask_separability: float = option(0.75, "Otsu's eta below which auto takes the whole picture", "D3", (0, 1))
    mask_share: tuple[float, float] = option((0.03, 0.97), "shares of object outside which auto does", "D3", (0, 1))
    mask_morphology: Literal["closing", "opening", "none"] = option("closing", "3 x 3, once", "Eq 2; D4")
    mask_fill_holes: bool = option(False, "fill the object's holes", "D4")
    # the anomalies
    anomaly: Literal["natural", "draem"] = option(
        "natural", "patches of the part, or DRAEM's textures", "section Method; D44"
    )
    anomaly_probability: float = option(0.5, "share of samples that are corrupted", "U (DRAEM); D16", (0, 1))
    rotation_probability: float | None = option(
        None, "share of clean images that turn first; none: --recipe's", "D17", (0, 1)
    )
    rotation_degrees: float = option(90.0, "they turn by U(-d, d), black fill", "U (DRAEM); D17", (0, 180))
    own_texture_share: float = option(0.0, "DRAEM's anomalies: share of moved training images", "DRAEM's D13", (0, 1))
    patch_count: Literal["binomial", "uniform"] = option(
        "binomial", "patches: 1 + Binomial(n - 1, 0.5), or uniform", "D5"
    )
    patch_most: tuple[int, int] = option(
        (3, 4), "n of the binomial on objects, on whole pictures", "U (NSA); D5", (1, 99)
    )
    patch_range: tuple[int, int] = option((1, 3), "least and most patches, uniform", "D5", (1, 99))
    patch_source: Literal["same", "other"] = option("same", "image that a patch is cut from", "section Method; D7")
    patch_size: Literal["lognormal", "nsa_gamma", "histogram"] = option(
        "lognormal", "distribution of patch sizes; histogram: of --defect-sizes", "D6"
    )
    patch_side: float = option(28.0, "lognormal: median of the equivalent side", "D6", (1, 256))
    patch_side_sigma: float = option(0.75, "lognormal: standard deviation of its logarithm", "D6", (0, 9))
    patch_side_limits: tuple[float, float] = option((4.0, 128.0), "lognormal: clipped to these", "D6", (2, 256))
    patch_longest: float = option(160.0, "lognormal: limit of a side", "D6", (2, 256))
    patch_aspect_sigma: float = option(0.4, "lognormal: standard deviation of the aspect's logarithm", "D6", (0, 9))
    patch_aspect_limit: float = option(3.0, "lognormal: largest aspect", "D6", (1, 99))
    gamma_height: tuple[float, float] = option(
        (0.03, 0.4), "nsa_gamma: half of the height in heights", "U; D6", (0, 0.5)
    )
    gamma_width: tuple[float, float] = option((0.03, 0.4), "nsa_gamma: half of the width in widths", "U; D6", (0, 0.5))
    source_share: float = option(
        0.5, "share of a patch that lies on the object where it is cut", "U (NSA); D51", (0, 1)
    )
    place_share: float = option(0.25, "share that lies on the object where it is set in", "U (NSA); D51", (0, 1))
    place_tries: int = option(200, "tries before a patch is skipped", "D51", (1, 10**6))
    photometric_mode: Literal["both", "one"] = option("both", "noise and brightness, or one of them", "Eq 3; D10")
    noise: Literal["fixed", "drawn", "variance"] = option("fixed", "what N(0, noise_level) is: see D8", "Eq 4; D8")
    noise_level: float = option(0.05, "the noise's standard deviation", "Eq 4", (0, 1))
    brightness: float = option(0.2, "brightness changes by U(-b, b)", "Eq 4", (0, 1))
    brightness_mode: Literal["multiply", "add"] = option("multiply", "P (1 + delta), or P + delta", "Eq 4; D9")
    clip_patch: bool = option(False, "clip the patch to [0, 1] before it is blended", "D9")
    geometric_mode: Literal["both", "one"] = option("both", "rotation and scale, or one of them", "Eq 3; D10")
    rotation: tuple[float, float] = option(
        (0.0, 360.0), "degrees, drawn uniformly from here (write --rotation=-10,10)", "Eq 4; D11", (-360, 360)
    )
    scale: tuple[float, float] = option((0.8, 1.2), "drawn uniformly from here", "Eq 4", (0.1, 10))
    poisson_lambda: float | None = option(None, "lambda of Eq 5; none: infinite", "Eq 5; D12", (1e-6, 1e12))
    mixed_gradients: bool = option(False, "keep the larger of both gradients", "Eq 5; D13")
    quantise: bool = option(False, "round what is blended to 8 bits", "D52")
    object_constraint: Literal["multiply", "clip_region"] = option(
        "multiply", "cut to the object after blending, or before", "section Method; D14"
    )
    label: Literal["region", "changed"] = option("region", "Y: the blended region, or where it changed visibly", "D15")
    # the reconstructor
    reconstructor: Literal["srdad", "draem"] = option("srdad", "Swin-UNet, or DRAEM's autoencoder", "table 4")
    autoencoder_width: int = option(128, "channels of the autoencoder's first level", "U (DRAEM)", (1, INF))
    width: int = option(96, "channels of the Swin-UNet's first level", "Eq 6", (1, INF))
    depths: tuple[int, int, int] = option((2, 2, 2), "blocks of each stage, encoder and decoder", "U; D18", (1, 1000))
    bottleneck_depth: int = option(0, "blocks at the deepest level", "D18", (0, 1000))
    heads: tuple[int, int, int] = option((3, 6, 12), "attention heads of each stage", "U (Swin); D19", (1, INF))
    window: int = option(8, "side of an attention window in tokens", "U; D19", (2, INF))
    drop_path: float = option(0.0, "stochastic depth", "D18", (0, 0.99))
    aspp: bool = option(True, "ASPP after the deepest stage", "Eq 7")
    aspp_width: int = option(192, "channels of each branch of ASPP", "D20", (1, INF))
    aspp_rates: tuple[int, int, int] = option((3, 6, 12), "dilations", "Eq 7", (1, INF))
    aspp_batch_norm: bool = option(True, "batch norm after the dilated convolutions", "D20")
    aspp_project: bool = option(False, "a 1x1 convolution behind ASPP even where the widths fit", "D20")
    residual: Literal["level", "block", "none"] = option("level", "where the decoder's W stands", "Eq 8; D21")
    gates: Literal["channel", "spatial"] = option("channel", "a gate for each channel, or for each token", "Eq 9; D22")
    skips: Literal["final_sum", "inline", "concat"] = option("final_sum", "where gated skips join", "Eq 10; D23")
    skip_levels: int = option(4, "gated levels", "Eq 10; D24", (3, 4))
    skip_tap: Literal["post", "pre"] = option("post", "skips from behind the stages, or from before", "D25")
    output_activation: Literal["none", "sigmoid"] = option("none", "of the reconstruction", "U (DRAEM); D26")
    # the discriminator
    discriminator: Literal["srdad", "draem"] = option("srdad", "with Res-SE and cross attention, or DRAEM's", "table 4")
    unet_width: int = option(64, "channels of the first level of DRAEM's", "U (DRAEM)", (1, INF))
    discriminator_width: int = option(40, "channels of the first level of SRDAD's", "D28", (1, INF))
    res_se: Literal["entry", "projected", "none"] = option("entry", "layout of the Res-SE levels", "D29")
    se_ratio: int = option(16, "narrowing of squeeze and excitation", "D29", (1, INF))
    cross_attention: bool = option(True, "cross attention on the skips", "Eqs 11 to 14")
    attention_layers: int = option(4, "layers of it", "U; D34", (1, 1000))
    attention_heads: int = option(4, "heads, averaged", "U; D34", (1, INF))
    attention: Literal["channel", "token"] = option("channel", "what attends to what", "Eq 12; D30")
    attention_scale: Literal["sum", "own"] = option("sum", "scores over sqrt(S), or over sqrt(d)", "U; D31")
    attention_instance_norm: bool = option(True, "psi: normalise each matrix of scores", "U; D32")
    attention_residual: Literal["official", "eq14"] = option("official", "UCTransNet's code, or Eq 14", "Eq 14; D33")
    attention_patches: tuple[int, int, int, int] = option((16, 8, 4, 2), "pixels a token's side", "U; D34", (1, INF))
    attention_add_input: bool = option(True, "add X_i to what attention returns", "U; D35")
    attention_dropout: float = option(0.1, "on tokens and attention", "U (UCTransNet); D34", (0, 0.99))
    discriminator_input: Literal["image_first", "reconstruction_first"] = option(
        "image_first", "order of the two pictures in the six channels", "section Method; D36"
    )
    output: Literal["softmax", "sigmoid"] = option("softmax", "two logits, or one", "U (DRAEM); D37")
    score_window: int = option(21, "side s of the score's mean filter, odd, pixels at --size", "Eq 15; D38", (1, INF))
    detach: bool = option(False, "no gradient of the focal loss reaches the reconstructor", "U (DRAEM); D50")
    # losses and schedule; "none" takes the value of --recipe
    recipe: Literal["srdad", "draem"] = option("srdad", "values of the options below that are none", "D44")
    l2_weight: float | None = option(None, "weight of the squared error [srdad 0.9, draem 1]", "Eq 18", (0, INF))
    ssim_weight: float | None = option(None, "weight of the SSIM loss [srdad 0.1, draem 1]", "Eq 18", (0, INF))
    ssim_window: Literal["gaussian", "uniform"] = option("gaussian", "weights of SSIM's 11 x 11 window", "Eq 17; D40")
    ssim_padding: Literal["zero", "valid"] = option("zero", "SSIM at the border", "Eq 17; D40")
    ssim_range: Literal["one", "auto"] = option("one", "value range L of SSIM; auto: guessed as DRAEM's code", "D40")
    focal_gamma: float = option(2.0, "focusing exponent of the focal loss", "Eq 19", (0, INF))
    focal_alpha: tuple[float, ...] | None = option(
        None,
        "weight alpha of the anomalous class (normal: 1 - alpha), or of both, normal first",
        "Eq 19; D41",
        (0, INF),
    )
    focal_smooth: float = option(1e-5, "clamp of the one-hot mask and addend of p_t", "U (DRAEM); D41", (0, 0.5))
    epochs: int | None = option(None, "length of training [srdad 500, draem 700]", "section Experiments; D42", (0, INF))
    length_unit: Literal["epochs", "iterations"] = option("epochs", "what --epochs counts", "D42")
    batch_size: int = option(8, "images a step", "section Experiments", (1, INF))
    sampling: Literal["shuffle", "replacement"] | None = option(None, "how an epoch draws its images", "D44")
    optimizer: Literal["adamw", "adam"] | None = option(None, "the optimiser", "section Experiments")
    learning_rate: float = option(1e-4, "its step size", "section Experiments", (0, INF))
    weight_decay: float | None = option(None, "weight decay (of Adam: as L2) [srdad 0.01, draem 0]", "D43", (0, 1))
    milestones: tuple[float, ...] | None = option(
        None,
        "shares of the length after which the rate falls [srdad 0.8, draem 0.8,0.9]",
        "section Experiments",
        (0, 1),
    )
    milestone_factor: float | None = option(
        None, "by which it falls [srdad 0.1, draem 0.2]", "section Experiments", (0, 1)
    )


# Where MVTec AD's objects are, by category (NSA's background settings); see --mask-polarity mvtec.
MVTEC_OBJECTS = {
    **dict.fromkeys(("bottle", "capsule", "screw", "zipper"), "dark"),
    **dict.fromkeys(("hazelnut", "metal_nut", "pill", "toothbrush"), "bright"),
    **dict.fromkeys(("cable", "transistor", "carpet", "grid", "leather", "tile", "wood"), "full"),
}

RECIPES = {  # what an option that is None takes
    "srdad": {
        "l2_weight": 0.9, "ssim_weight": 0.1, "epochs": 500, "optimizer": "adamw", "weight_decay": 0.01,
        "milestones": (0.8,), "milestone_factor": 0.1, "sampling": "shuffle", "rotation_probability": 0.0,
    },
    "draem": {
        "l2_weight": 1.0, "ssim_weight": 1.0, "epochs": 700, "optimizer": "adam", "weight_decay": 0.0,
        "milestones": (0.8, 0.9), "milestone_factor": 0.2, "sampling": "replacement", "rotation_probability": 0.3,
    },
}  # fmt: skip

PRESETS = {
    "paper": {},
    # Half the side, a quarter of the first width, windows of 4: as `draem --preset tiny` in size, steps and rate. No
    # noise on patches, or so short a training learns to find noise alone (D8); no label where nothing shows (D15, D53).
    "tiny": {
        "size": (128, 128), "width": 24, "window": 4, "aspp_width": 48, "discriminator_width": 8, "epochs": 100,
        "autoencoder_width": 16, "unet_width": 8, "batch_size": 4, "learning_rate": 1e-3, "score_window": 11,
        "rotation_probability": 0.0, "own_texture_share": 0.5, "noise_level": 0.0, "label": "changed",
    },
}  # fmt: skip

ABLATIONS = {  # the rows of table 4
    "draem": {
        "reconstructor": "draem", "discriminator": "draem", "anomaly": "draem", "recipe": "draem",
        "discriminator_input": "reconstruction_first",
    },
    "draem+": {"reconstructor": "draem"},
    "srdad-": {
        "discriminator": "draem", "bottleneck_depth": 2, "aspp": False, "residual": "none", "skips": "concat",
        "skip_tap": "pre",
    },
    "srdad": {},
}  # fmt: skip

DEVIATIONS = (
    Deviation("D1", "Options.mask_grey", "silent", "a grey image", "luma of the resized picture, 8 bits",
              "ITU-R 601, as most programs"),
    Deviation("D2", "Options.mask_polarity", "mistake", "the brighter side is the object",
              "decided for each category by its frame",
              "literally, a dark part on a bright ground would have its anomalies on the ground"),
    Deviation("D3", "Options.mask_mode", "silent", "no word on textures or parts that fill the picture",
              "the whole picture where Otsu parts badly or finds next to nothing or all",
              "one Gaussian hump of grey values has eta 0.637, a uniform spread 0.75, two clean levels 1"),
    Deviation("D4", "Options.mask_morphology", "contradiction", "'closing', with the sign of opening", "closing",
              "named so twice; holes stay"),
    Deviation("D5", "Options.patch_count", "silent", "N patches", "1 + Binomial(n - 1, 0.5)",
              "as NSA; n is 4 wherever the object fills the picture, on parts such as MVTec AD's cable too"),
    Deviation("D6", "Options.patch_size", "silent", "an empirical distribution of real defects, not given",
              "lognormal(28, 0.75)",
              "taken from the test set's masks it would leak them; these sizes are guessed, not measured"),
    Deviation("D7", "Options.patch_source", "silent", "patches of the target object", "of the same image",
              "NSA takes another image"),
    Deviation("D8", "Options.noise", "mistake", "sigma ~ N(0, 0.05)", "noise N(0, 0.05^2) for each pixel and channel",
              "a standard deviation cannot be negative; 'drawn': |N(0, 0.05)| a patch; 'variance': 0.05 is the "
              "variance"),
    Deviation("D9", "Options.brightness_mode", "ambiguous", "brightness adjusted by U(-0.2, 0.2)", "P (1 + delta)",
              "P + delta has the same gradients as P: after blending nothing is left of it, unless it clips"),
    Deviation("D10", "Options.photometric_mode", "ambiguous", "a set of transformations", "all of them",
              "or one, drawn evenly"),
    Deviation("D11", "Options.rotation", "contradiction", "U(0, 2 pi), and 'angles seen in production'",
              "U(0, 360) degrees", "the formula"),
    Deviation("D12", "Options.poisson_lambda", "silent", "the symbol lambda", "infinite: the target's values on dR",
              "Perez et al.; 1 would be a finite try"),
    Deviation("D13", "Options.mixed_gradients", "silent", "not in Eq 5", "off", "NSA mixes on textures"),
    Deviation("D14", "Options.object_constraint", "ambiguous", "multiplication with M after blending",
              "the same, once, after all patches", "leaves a seam at the object's edge; clip_region does not"),
    Deviation("D15", "Options.label", "ambiguous", "'precisely marks' the region", "Omega within M",
              "an invisible patch is a false label then; 'changed', as NSA, drops it"),
    Deviation("D16", "Options.anomaly_probability", "silent", "nothing said", "0.5", "DRAEM"),
    Deviation("D17", "Options.rotation_probability", "silent", "nothing said", "clean images are not turned",
              "DRAEM's recipe turns 30 %"),
    Deviation("D18", "Options.depths", "silent", "no depths", "2, 2, 2 and no bottleneck block",
              "Swin-Unet's 2, 2, 2, 2 alone has 27.2 M parameters; this has 19,408,023 for the paper's 19.4 M"),
    Deviation("D19", "Options.window", "silent", "no heads, no window", "3, 6, 12 heads, window 8",
              "Swin; 7 divides no map of 256 pixels"),
    Deviation("D20", "Options.aspp_width", "silent", "no widths", "192 a branch, batch norm, no projection",
              "4 x 192 = 768"),
    Deviation("D21", "Options.residual", "ambiguous", "each decoder block", "a W for each level",
              "in blocks: 19,602,231 parameters"),
    Deviation("D22", "Options.gates", "ambiguous", "element-wise; 'spatial' in a caption", "a gate for each channel",
              "the equation"),
    Deviation("D23", "Options.skips", "mistake", "a sum of maps of four shapes",
              "a linear to 96 channels, bilinear upsampling",
              "the sum is impossible as printed; 'inline' adds at each level, 'concat' is Swin-Unet's way"),
    Deviation("D24", "Options.skip_levels", "ambiguous", "a sum to 4", "the pair before and after ASPP is the fourth",
              "Swin-Unet has three skips"),
    Deviation("D25", "Options.skip_tap", "silent", "nothing said", "behind the stage's blocks",
              "Swin-Unet's code taps before them"),
    Deviation("D26", "Options.output_activation", "silent", "nothing said", "none", "DRAEM"),
    Deviation("D27", "SRDAD.load_weights", "silent", "nothing said", "no pretraining",
              "--weights takes a Swin checkpoint for the encoder"),
    Deviation("D28", "Options.discriminator_width", "ambiguous", "27.8 M parameters, no widths",
              "40 channels: 28,283,402", "the multiple of 8 that comes nearest"),
    Deviation("D29", "Options.res_se", "silent", "the name Res-SE",
              "convolution, then two convolutions with SE, residual; ratio 16", "the name; SE's ratio"),
    Deviation("D30", "Options.attention", "contradiction", "'channel' attention; Q K^T of tokens in Eq 12", "channels",
              "the module that it cites, and Eq 11's unequal widths"),
    Deviation("D31", "Options.attention_scale", "contradiction", "sqrt(d)", "sqrt(S)",
              "UCTransNet; the instance norm, where it is on, cancels it"),
    Deviation("D32", "Options.attention_instance_norm", "ambiguous", "'normalisation omitted'", "on", "UCTransNet"),
    Deviation("D33", "Options.attention_residual", "contradiction", "MCA + MLP(Q + MCA): no path from T itself",
              "H = T + CA, H + MLP(LN H)", "UCTransNet's paper prints the same and its code does this"),
    Deviation("D34", "Options.attention_patches", "silent", "no sizes", "16, 8, 4, 2; dropout 0.1; 4 layers, 4 heads",
              "UCTransNet's shape at 256 pixels; its dropout behind the attention and its start of the MLPs are "
              "left out"),
    Deviation("D35", "Options.attention_add_input", "silent", "nothing said", "X_i is added", "UCTransNet"),
    Deviation("D36", "Options.discriminator_input", "silent", "anomalous and reconstructed", "in that order",
              "DRAEM's code has the other"),
    Deviation("D37", "Options.output", "silent", "an anomaly map", "two logits, softmax",
              "DRAEM; one logit is the same family"),
    Deviation("D38", "Options.score_window", "silent", "the symbol s", "21",
              "DRAEM. A lone k x k response scores at most k^2 / 441"),
    Deviation("D39", "SRDAD.loss", "contradiction", "error of the 'masked patch'", "of the whole image",
              "words left over from another method: nothing is masked here"),
    Deviation("D40", "Options.ssim_window", "silent", "means of the images",
              "local: Gaussian 11 / 1.5, zeros outside, L = 1", "DRAEM, without its guess of L"),
    Deviation("D41", "Options.focal_alpha", "silent", "the symbol alpha_t", "none; smoothing 1e-5", "DRAEM"),
    Deviation("D42", "Options.length_unit", "mistake", "500 iterations", "500 epochs",
              "500 steps are 16 passes; the fall at 400 mirrors DRAEM's epochs"),
    Deviation("D43", "Options.weight_decay", "silent", "nothing said", "0.01", "PyTorch's AdamW"),
    Deviation("D44", "Options.recipe", "silent", "what the rows of table 4 share",
              "row draem wholly DRAEM's, the others SRDAD's",
              "--recipe and --anomaly make these common; --discriminator-input and, at tiny, DRAEM's lattices stay"),
    Deviation("D45", "ABLATIONS", "mistake", "DRAEM has 26.5 M parameters", "97,422,725",
              "counted; srdad- has more in its reconstructor than srdad"),
    Deviation("D46", "SRDAD", "mistake", "heavier than DRAEM", "33.8 against 198.0 G multiply-adds an image",
              "counted, attention's products among them (without: 30.9)"),
    Deviation("D53", "PRESETS", "substitution", "one size",
              "tiny: no noise on patches, labels only where something shows",
              "and a higher rate, at an eighth of the steps and less: with noise it learns nothing else (see D8, D15)"),
    Deviation("D49", "Options.resize", "silent", "resize to 256 x 256", "bilinear, no antialias", "as DRAEM here"),
    Deviation("D50", "Options.detach", "silent", "nothing said", "the focal loss trains both networks", "DRAEM"),
    Deviation("D51", "Options.place_share", "silent", "where patches may lie",
              "half on the object at the source, a quarter at the target",
              "NSA; a canvas larger than the picture overhangs it here"),
    Deviation("D52", "Options.quantise", "silent", "nothing said", "the blend is clipped to [0, 1] and not rounded",
              "OpenCV rounds"),
)  # fmt: skip


# -- the anomalies: all of the method's randomness --------------------------------------------------------------------


def corrupt(image: Tensor, rng: np.random.Generator, options: Options, sources: Sources) -> Batch:
    """One training example: with probability `anomaly_probability` patches of the part where they do not belong.

    Args:
        image: (3, H, W) in [0, 1].
        rng: the stream of this example.
        options: the method's options.
        sources: `survey` is the object's polarity; `images`, `sizes`, `textures` and `journal` as options want them.

    Returns:
        clean and corrupted (3, H, W), mask (1, H, W): Y; all 0 and corrupted equal to clean for a normal example, and
        where no patch could be set in.
    """
    options = resolve(options)
    if options.anomaly == "draem":
        return draem.corrupt(image, rng, simulator(options), sources)
    mask = torch.from_numpy(object_mask(image.numpy(), options, sources.survey))
    both = torch.cat((image, mask[None].float()))  # the object turns with its image: black corners are none of it
    both = draem.turn(both, rng, options.rotation_probability, options.rotation_degrees)  # D17
    image, mask = both[:3], both[3] > 0.5
    if not mask.any() or rng.random() >= options.anomaly_probability:  # D16
        return Batch(image, image, torch.zeros(1, *image.shape[1:]))
    blended, label = natural_anomaly(image.numpy().astype(np.float64), mask.numpy(), rng, options, sources)
    corrupted = torch.from_numpy(blended.astype(np.float32))
    return Batch(image, corrupted, torch.from_numpy(label.astype(np.float32)).unsqueeze(0))


def simulator(options: Options) -> draem.Options:
    """DRAEM's options for its `corrupt`: its code's values at full size, whatever the preset (D44)."""
    return draem.Options(
        size=options.size, anomaly_probability=options.anomaly_probability, rotation_degrees=options.rotation_degrees,
        rotation_probability=options.rotation_probability, own_texture_share=options.own_texture_share,
    )  # fmt: skip


def natural_anomaly(
    image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, options: Options, sources: Sources
) -> tuple[np.ndarray, np.ndarray]:
    """Patches cut out, altered and blended in elsewhere (equations 3 to 5), in float64.

    Args:
        image: (3, H, W) in [0, 1].
        mask: M, (H, W) bool, not empty.
        rng, options, sources: as in `corrupt`.

    Returns:
        the image with them (3, H, W), equal to `image` wherever no patch lies; Y (H, W) bool.
    """
    pixels, blended, covered = natural.ObjectPixels(mask), image.copy(), np.zeros(mask.shape, bool)
    count = draw_count(rng, options, whole=bool(mask.all()))
    notes = {"object": mask, "patches": count, "no_source": 0, "no_place": 0, "too_small": 0, "solve_milliseconds": 0.0}
    for _ in range(count):
        drawn = draw_patch(image, rng, pixels, options, sources)
        if isinstance(drawn, str):
            notes[drawn] += 1
            continue
        (values, support), corner = drawn
        there, here = natural.overlap(corner, support.shape, mask.shape)
        region = support[here] & mask[there] if options.object_constraint == "clip_region" else support[here]  # D14
        target, began = blended[(slice(None), *there)], time.perf_counter()
        source, stiffness, mixed = values[(slice(None), *here)], options.poisson_lambda, options.mixed_gradients
        result = poisson_blend(source, target, region, stiffness, mixed)  # equation 5; D12, D13
        notes["solve_milliseconds"] += 1000 * (time.perf_counter() - began)
        notes["too_small"] += not result.solved.any()
        inside = np.clip(result.values[:, result.solved], 0, 1)
        target[:, result.solved] = np.rint(255 * inside) / 255 if options.quantise else inside  # D52
        covered[there] |= result.solved
    blended = np.where(mask, blended, image)  # after all patches (D14)
    covered &= mask
    if options.label == "changed":  # D15
        covered &= np.abs(blended - image).mean(axis=0) > 1 / 255
        covered = scipy.ndimage.median_filter(covered, size=5, mode="nearest") & mask
    if sources.journal is not None:
        sources.journal.append(notes)
    return (blended if covered.any() else image), covered


def draw_count(rng: np.random.Generator, options: Options, whole: bool) -> int:
    """N, the patches of one image; `whole`: the object fills the picture (D5)."""
    if options.patch_count == "binomial":
        return 1 + int(rng.binomial(options.patch_most[int(whole)] - 1, 0.5))
    return int(rng.integers(options.patch_range[0], options.patch_range[1] + 1))


def draw_patch(
    image: np.ndarray, rng: np.random.Generator, pixels: natural.ObjectPixels, options: Options, sources: Sources
) -> tuple[natural.Warped, tuple[int, int]] | str:
    """An altered patch and the top and left of its new place; or what was not found: "no_source", "no_place" (D51)."""
    size, donor, source = draw_size(rng, image.shape[1:], options, sources), image, pixels
    if options.patch_source == "other":  # D7
        index, count = int(rng.integers(len(sources.images))), len(sources.images)
        if np.array_equal(sources.images[index].numpy(), np.rint(255 * image)):  # the image itself: the next one
            index = (index + 1) % count
        donor = sources.images[index].numpy() / 255.0
        source = natural.ObjectPixels(object_mask(donor, options, sources.survey))
    corner = natural.draw_source(rng, source, size, options.source_share, options.place_tries)
    if corner is None:
        return "no_source"
    patch = donor[:, corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]
    altered = alter(patch, draw_alteration(rng, patch.shape, options), options.clip_patch)
    corner = natural.draw_place(rng, pixels, altered.support, options.place_share, options.place_tries)
    return "no_place" if corner is None else (altered, corner)


def draw_size(rng: np.random.Generator, shape: tuple[int, int], options: Options, sources: Sources) -> tuple[int, int]:
    """Height and width of a patch in pixels of a picture of this shape; at least 2, at most the picture's (D6)."""
    unit = min(shape) / 256
    if options.patch_size == "nsa_gamma":
        height, width = natural.draw_gamma_size(rng, options.gamma_height, options.gamma_width)
        height, width = height * shape[0], width * shape[1]
    elif options.patch_size == "histogram":
        height, width = natural.draw_listed_size(rng, sources.sizes)  # a picture of 256 x 256
        height, width = height * shape[0] / 256, width * shape[1] / 256
    else:
        height, width = (unit * side for side in natural.draw_lognormal_size(
            rng, options.patch_side, options.patch_side_sigma, options.patch_side_limits, options.patch_aspect_sigma,
            options.patch_aspect_limit, options.patch_longest,
        ))  # fmt: skip
    return min(max(round(height), 2), shape[0]), min(max(round(width), 2), shape[1])


class Alteration(NamedTuple):
    """The random numbers of one patch (equation 4)."""

    noise: np.ndarray | float  # (3, h, w), added
    factor: float  # of the brightness
    offset: float
    angle: float  # radians, counter-clockwise
    scale: float


def draw_alteration(rng: np.random.Generator, shape: tuple[int, ...], options: Options) -> Alteration:
    """Draws noise, brightness, rotation and scale for a patch (3, h, w); equation 4. All are drawn, used or not."""
    level = options.noise_level
    if options.noise != "fixed":  # D8
        level = abs(rng.normal(0.0, level)) if options.noise == "drawn" else math.sqrt(level)
    noise = rng.normal(0.0, level, size=shape)
    delta = rng.uniform(-options.brightness, options.brightness)
    angle, scale = math.radians(rng.uniform(*options.rotation)), rng.uniform(*options.scale)  # D11
    first, second = rng.random(2) < 0.5
    if options.photometric_mode == "one":  # D10
        noise, delta = (noise, 0.0) if first else (0.0, delta)
    if options.geometric_mode == "one":
        angle, scale = (angle, 1.0) if second else (0.0, scale)
    multiply = options.brightness_mode == "multiply"  # D9
    return Alteration(noise, 1 + delta if multiply else 1.0, 0.0 if multiply else delta, angle, scale)


def alter(patch: np.ndarray, numbers: Alteration, clip: bool = False) -> natural.Warped:
    """Equations 3 and 4: noise and brightness first, then one bilinear warp, which smooths the noise a little."""
    patch = patch * numbers.factor + numbers.offset + numbers.noise
    return natural.warp(np.clip(patch, 0, 1) if clip else patch, numbers.angle, numbers.scale)


# -- the object -------------------------------------------------------------------------------------------------------


def object_mask(image: np.ndarray, options: Options, polarity: str) -> np.ndarray:
    """M: Otsu's brighter or darker side, closed (equations 1 and 2); or the whole picture.

    Args:
        image: (3, H, W) in [0, 1].
        options: the method's.
        polarity: "bright", "dark" or "full", from `survey`.

    Returns:
        (H, W) bool with at least 64 pixels (fewer only in a smaller picture).
    """
    if polarity not in ("bright", "dark", "full"):
        raise ValueError(f"expected bright, dark or full (Sources.survey), got {polarity!r}")
    everything = np.ones(image.shape[1:], bool)
    if options.mask_mode == "full" or polarity == "full":
        return everything
    values = grey(np.rint(image.transpose(1, 2, 0) * 255).astype(np.uint8), options.mask_grey)  # D1
    found = otsu(values)
    doubt = options.mask_mode == "auto" and options.mask_polarity == "auto"  # a polarity that is given is believed
    if doubt and found.separability < options.mask_separability:  # D3
        return everything
    mask = values > found.threshold if polarity == "bright" else values <= found.threshold
    share = mask.mean()
    if doubt and not options.mask_share[0] <= share <= options.mask_share[1]:
        return everything
    mask = morphology(mask, options.mask_morphology)  # D4
    mask = fill_holes(mask) if options.mask_fill_holes else mask
    return mask if mask.sum() >= 64 else everything


def survey(images: Sequence[Tensor], category: str, options: Options) -> str:
    """Which side of Otsu's threshold the object of a category is: "bright", "dark" or "full" (D2).

    "auto" looks at the frame, 5 pixels wide, of every training image: where more than half of it is on the brighter
    side on average, the ground is bright and the object dark.
    """
    if options.mask_polarity == "mvtec":
        if category not in MVTEC_OBJECTS:
            known = ", ".join(MVTEC_OBJECTS)
            raise UserError(f"--mask-polarity mvtec knows MVTec AD's categories alone ({known}); got {category}")
        return MVTEC_OBJECTS[category]
    if options.mask_polarity != "auto" or options.mask_mode == "full" or options.anomaly == "draem":  # no need to look
        return "dark" if options.mask_polarity == "dark" else "bright"
    shares = []
    for image in images:
        values = grey(image.permute(1, 2, 0).numpy(), options.mask_grey)
        shares.append(frame_share(values > otsu(values).threshold))
    return "dark" if np.mean(shares) > 0.5 else "bright"


# -- the method -------------------------------------------------------------------------------------------------------


def resolve(options: Options) -> Options:
    """Options in which each value that was left to the recipe stands (D44)."""
    recipe = RECIPES[options.recipe]
    return dataclasses.replace(options, **{n: v for n, v in recipe.items() if getattr(options, n) is None})


class SRDAD(Method):
    """Reconstruct the clean image, then segment what differs (D46)."""

    Options = Options
    presets = PRESETS
    ablations = ABLATIONS
    deviations = DEVIATIONS
    sees_whole = "its windows and its channel attention are laid out for the size of the run"
    corrupt = staticmethod(corrupt)
    survey = staticmethod(survey)

    def __init__(self, options: Options = Options()):  # noqa: B008  frozen
        super().__init__(options)
        self.options = o = resolve(self.options)
        check(o)
        classes = 2 if o.output == "softmax" else 1
        if o.anomaly == "draem":
            self.needs = ("textures",)
        elif o.patch_size == "histogram":
            self.needs = ("sizes",)
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
            self.discriminator = UNet(6, classes, o.unet_width)
        else:
            fusion = CrossFusion(
                o.size, tuple(o.discriminator_width * 2**level for level in range(4)), o.attention_patches,
                o.attention_layers, o.attention_heads, o.attention, o.attention_scale, o.attention_instance_norm,
                o.attention_residual, o.attention_add_input, o.attention_dropout,
            ) if o.cross_attention else None  # fmt: skip
            self.discriminator = ResSEUNet(o.discriminator_width, o.res_se, o.se_ratio, fusion, 6, classes)
        self.length_unit = o.length_unit  # D42

    def order(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """The images of an epoch, each once; in DRAEM's recipe `count` draws with replacement."""
        return rng.integers(count, size=count) if self.options.sampling == "replacement" else rng.permutation(count)

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

    def anomaly_map(self, images: Tensor, rngs=None, looks=None) -> Tensor:
        """M_pre: (B, 3, H, W) in [0, 1] at --size -> (B, 1, H, W) in [0, 1]."""
        check_images(images, size=self.options.size)
        return self(images)[1][:, 1:]

    def image_score(self, maps: Tensor) -> Tensor:
        """Equation 15: the maximum of a mean filter, zeros outside counted: (B, 1, H, W) -> (B,)."""
        return filtered_maximum(maps, self.options.score_window)  # D38

    def reconstruct(self, images: Tensor, rngs=None, looks=None) -> Tensor:
        """I_hat for the eye: (B, 3, H, W), clamped to [0, 1]."""
        check_images(images, size=self.options.size)
        return self.reconstructor(images).float().clamp(0, 1)

    def load_weights(self, states: list[dict]) -> None:
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


def check(o: Options) -> None:
    """Raises UserError for options that cannot work together; parts that are not built are not looked at."""
    swin, attention = o.reconstructor == "srdad", o.discriminator == "srdad" and o.cross_attention
    for axis, side in zip(("height", "width"), o.size):
        fits = next_valid_side(side, o.depths, o.bottleneck_depth, o.window) if swin else side
        if not (swin and o.discriminator == "srdad"):
            fits = math.ceil(fits / UNet.stride) * UNet.stride
        if fits != side:
            why = f"windows of {o.window} tokens at every level" if swin else "the networks' poolings"
            raise UserError(f"--size: a {axis} of {side} does not fit {why}; the next that does is {fits}")
    for level, (heads, width) in enumerate(zip(o.heads, (o.width, 2 * o.width, 4 * o.width))):
        if swin and width % heads:
            raise UserError(f"--heads: {heads} heads do not divide the {width} channels of level {level + 1}")
    if swin and o.aspp and o.aspp_batch_norm and o.size == (32, 32):
        raise UserError("--size 32,32 leaves ASPP's batch norm one pixel; 64,32 is the smallest, or --aspp false")
    patches = [patch * 2**level for level, patch in enumerate(o.attention_patches)]
    if attention and (len(set(patches)) > 1 or any(side % patches[0] for side in o.size) or min(o.size) < patches[0]):
        raise UserError("--attention-patches takes four sides, each half of the one before, the first dividing --size; "
                        f"got {','.join(map(str, o.attention_patches))}")  # fmt: skip
    if attention and o.size == (patches[0], patches[0]):
        raise UserError("--attention-patches leaves one token, and batch norm needs more; take smaller ones")
    pairs = ("mask_share", "patch_range", "patch_side_limits", "gamma_height", "gamma_width", "rotation", "scale")
    require_ascending(o, *pairs)
    if o.focal_alpha and (len(o.focal_alpha) > 2 or (len(o.focal_alpha) == 1 and o.focal_alpha[0] > 1)):
        raise UserError(f"--focal-alpha takes one number from 0 to 1, or two of 0 or more; got {o.focal_alpha}")
    if o.patch_longest < o.patch_side_limits[0]:
        raise UserError(f"--patch-longest takes no less than --patch-side-limits begins with; got {o.patch_longest}")
    if o.score_window % 2 == 0:
        raise UserError(f"--score-window takes an odd number of pixels; got {o.score_window}")
