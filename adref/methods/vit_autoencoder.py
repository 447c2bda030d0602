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
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adref.layers.coordinate_attention import CoordinateAttention
from adref.layers.memory import Memory, Recall, entropy
from adref.layers.vit import VisionTransformer
from adref.losses import ssim_map
from adref.method import Deviation, EarlyStop, Method, Sources, check_images, gaussian_smooth
from adref.options import Notice, UserError, option

INF = math.inf


@dataclass(frozen=True)
class Options:
    """The constants of the ViT autoencoder and their other readings; the defaults are the paper preset."""

    size: tuple[int, int] = option(
        (384, 384), "height,width of the network's input, multiples of --patch", "section Experiments", (8, 65536)
    )
    resize: Literal["bilinear", "antialias"] = option("antialias", "filter that brings a picture to --size", "D27")
    normalise: Literal["symmetric", "category"] = option(
        "symmetric", "the network sees 2 u - 1, or (u - mean) / std of the category", "D17"
    )
    # the encoder
    patch: int = option(16, "side of a patch in pixels", "section Experiments", (1, 4096))
    width: int = option(768, "channels of a token", "section Experiments", (1, 65536))
    depth: int = option(12, "blocks", "D1", (0, 1000))
    heads: int = option(8, "attention heads", "section Experiments; D2", (1, INF))
    class_token: Literal["drop", "add", "none"] = option(
        "drop", "attends and is dropped, is added to every patch, or is left out", "Eq 4; D4"
    )
    # memory and coordinate attention
    memory: bool = option(True, "the memory module", "section Method")
    memory_items: int = option(2000, "items K", "U (MemAE); D5", (2, 10**7))
    addressing: Literal["cosine", "dot"] = option("cosine", "cosine, or the plain product of MemAE's code", "Eq 7; D6")
    temperature: float = option(1.0, "tau of the softmax over the items", "Eq 8; D7", (1e-6, INF))
    shrinkage: float | None = option(None, "threshold lambda of the shrinkage, none: 1 / K", "Eq 10; D8", (0, 1))
    on_empty: Literal["zero", "soft"] = option(
        "zero", "what a query gets for which no item survives: zeros, or unshrunk weights", "D9"
    )
    memory_residual: bool = option(False, "add the encoder's map to what the memory returns", "D11")
    coordinate_attention: Literal["after_memory", "before_memory", "both", "none"] = option(
        "after_memory", "where it stands", "D12"
    )
    ca_reduction: int = option(32, "narrowing r of coordinate attention", "U (CA); D13", (1, INF))
    ca_activation: Literal["h_swish", "relu"] = option("h_swish", "its activation", "U (CA); D13")
    # the decoder
    decoder: Literal["anovit", "pow2"] = option(
        "anovit", "3 steps of +2 pixels, 3 doublings, a resize; or 4 doublings", "U (AnoViT); D14"
    )
    decoder_width: int | None = option(
        None, "channels behind the first layer, halved by each that follows [anovit 256, pow2 512]", "D14", (16, INF)
    )
    decoder_norm: Literal["batch", "instance"] = option("batch", "normalisation of its layers", "D15")
    last_block: Literal["plain", "norm_relu"] = option("plain", "what follows the sixth layer before tanh", "D16")
    # losses
    loss_range: Literal["unit", "network"] = option(
        "unit", "losses and map of values in [0, 1], or of the network's (SSIM then with a range of 2)", "D17"
    )
    l2_reduction: Literal["sum", "mean"] = option("sum", "sum over the channels, or their mean", "Eq 11; D18")
    ssim_weight: float = option(1.0, "lambda of SSIM, in loss and map", "Eq 13; D20", (0, INF))
    ssim_window: Literal["gaussian", "uniform"] = option("gaussian", "weights of SSIM's window", "D19")
    ssim_size: int = option(11, "side of the window, odd, pixels", "D19", (3, 255))
    ssim_sigma: float = option(1.5, "standard deviation of the Gaussian window, pixels", "D19", (0.1, 100))
    ssim_padding: Literal["reflect", "zero", "valid"] = option("reflect", "SSIM at the border", "D19")
    reconstruction_weight: float = option(1.0, "lambda_recon", "Eq 15; section Experiments", (0, INF))
    entropy_weight: float = option(0.001, "lambda_ent", "Eq 15; section Experiments", (0, INF))
    entropy_sign: Literal["corrected", "literal"] = option(
        "corrected", "minimise the entropy, or maximise it as printed", "Eq 14; D21"
    )
    # training
    epochs: int = option(200, "passes over the training images", "section Experiments", (0, INF))
    batch_size: int = option(8, "images a step", "section Experiments", (1, INF))
    learning_rate: float = option(2e-4, "Adam's step size, constant", "section Experiments; D22", (0, 1e6))
    betas: tuple[float, float] = option((0.5, 0.999), "Adam's decay rates", "U (AnoViT); D22", (0, 0.999999))
    weight_decay: float = option(0.0, "Adam's weight decay, as L2", "D22", (0, 1))
    patience: int | None = option(
        None,
        "epochs without a better validation loss that end training, none: all epochs, last weights",
        "D23",
        (1, INF),
    )
    validation_share: float = option(
        0.1, "share of the training images kept for that; 0: the training loss decides", "D23", (0, 0.9)
    )
    # the map
    score: Literal["l2", "l2+ssim", "l2+ssim+entropy"] = option("l2+ssim", "what the map is made of", "D24")
    map_sigma: float = option(6.0, "Gaussian filter of the map, pixels at --size", "U (AnoViT); D25", (0, 1000))
    score_sigma: float = option(
        15.0, "Gaussian filter of the map that the image score comes from", "U (AnoViT); D25", (0, 1000)
    )
    image_score: Literal["max", "mean", "top"] = option("max", "how a map becomes a score", "D26")
    top_share: float = option(0.01, "share of the pixels in --image-score top", "D26", (0, 1))


PRESETS = {
    "paper": {},
    # A third of the side, patches of half the side, so the filters shrink with it; an eighth of the width.
    "tiny": {
        "size": (128, 128), "patch": 8, "width": 96, "depth": 4, "heads": 4, "memory_items": 200, "decoder_width": 128,
        "epochs": 100, "batch_size": 4, "learning_rate": 5e-4, "map_sigma": 2.0, "score_sigma": 5.0,
    },
}  # fmt: skip

ABLATIONS = {  # the table of the ablation, and the places of coordinate attention that the text speaks of
    "base": {"memory": False, "coordinate_attention": "none"},
    "+m": {"coordinate_attention": "none"},
    "+ca": {"memory": False},
    "+m+ca": {},
    "ca-before-memory": {"coordinate_attention": "before_memory"},
    "ca-both": {"coordinate_attention": "both"},
}


class Batch(NamedTuple):
    clean: Tensor  # (B, 3, H, W)


DEVIATIONS = (
    Deviation("D1", "Options.depth", "silent", "L blocks", "12", "ViT-Base, as width and the work it builds on imply"),
    Deviation("D2", "Options.heads", "contradiction", "8 heads of width 96", "8",
              "ViT-Base has 12 of 64: pretrained weights mean something else with 8, and the command says so"),
    Deviation("D3", "ViTAutoencoder.load_weights", "contradiction", "trained from scratch; compared with AnoViT",
              "from scratch: truncated normal, std 0.02",
              "AnoViT starts from ImageNet-21k; --weights takes a ViT with timm's names"),
    Deviation("D4", "Options.class_token", "contradiction", "a class token, which Eq 4 leaves out",
              "kept in attention, dropped before the map", "its table of positions has a row for it"),
    Deviation("D5", "Options.memory_items", "silent", "N items, N also the number of patches", "2000",
              "MemAE's default; 576 comes only from reading both N as one"),
    Deviation("D6", "Options.addressing", "contradiction", "cosine", "cosine",
              "MemAE's code takes the plain product, which grows with the query"),
    Deviation("D7", "Options.temperature", "silent", "softmax of the cosines", "1", "nothing else is printed"),
    Deviation("D8", "Options.shrinkage", "ambiguous", "1 / N, and weights that become sparse", "1 / K",
              "the mean of the weights: about half of the items survive; above 7.4 / K none would"),
    Deviation("D9", "Options.on_empty", "silent", "nothing said", "zeros, and the share is logged",
              "the renormalisation divides by 0 there; it happens when all items coincide"),
    Deviation("D10", "Recall.weights", "mistake", "w in R^(1 x C)", "(..., K)", "a weight for each item"),
    Deviation("D11", "Options.memory_residual", "silent", "the memory gets F", "only what it recalls goes on",
              "a way around it would hand the defect through"),
    Deviation("D12", "Options.coordinate_attention", "contradiction",
              "between encoder and memory (two sentences); behind the memory (list of steps, figures, data flow)",
              "behind the memory", "the data flow"),
    Deviation("D13", "Options.ca_reduction", "silent", "C / r, an unnamed activation", "32, h-swish",
              "the code of coordinate attention"),
    Deviation("D14", "Options.decoder", "ambiguous", "six transposed convolutions that enlarge, 24 to 384",
              "AnoViT's: 26, 28, 30, 59, 117, 233, then a bilinear resize", "four doublings would do: 'pow2'"),
    Deviation("D15", "Options.decoder_norm", "ambiguous", "a normalisation that works on mini-batches", "batch norm",
              "AnoViT's code has instance norm without weights"),
    Deviation("D16", "Options.last_block", "contradiction", "normalisation and ReLU after each layer, tanh last",
              "neither after the sixth", "tanh(ReLU(x)) is never negative: no value below mid grey could be rebuilt"),
    Deviation("D17", "Options.normalise", "silent", "no word on the range of values",
              "the network works in [-1, 1], losses in [0, 1]",
              "tanh's range; AnoViT's code takes mean and standard deviation of the category, which tanh cannot reach"),
    Deviation("D18", "Options.l2_reduction", "ambiguous", "a sum over W and H, divided by W H",
              "summed over the channels, too", "Eq 11 as printed has a vector's square"),
    Deviation("D19", "Options.ssim_window", "silent", "SSIM of blocks", "Gaussian 11, sigma 1.5, mirrored border",
              "Wang et al. 2004; Eq 12 sums over all W H positions, so each needs a value; of 'valid' the map's "
              "border repeats the nearest value"),
    Deviation("D20", "Options.ssim_weight", "silent", "lambda, found by a grid search", "1", "no value is given"),
    Deviation("D21", "Options.entropy_sign", "mistake", "sum of w ln w, minimised", "-sum of w ln w, minimised",
              "as printed, minimising makes the weights uniform, the opposite of what the text wants"),
    Deviation("D22", "Options.betas", "silent", "Adam, 2e-4", "betas 0.5, 0.999; no decay, constant rate",
              "a public copy of AnoViT's script"),
    Deviation("D23", "Options.patience", "silent", "200 epochs", "the last epoch",
              "AnoViT stops after 12 epochs without a better squared error of validation images: --patience 12 "
              "watches the whole loss; its share is not known"),
    Deviation("D24", "Options.score", "silent", "'the three losses define the score'",
              "mean squared error of the channels + lambda (1 - SSIM)", "no formula; AnoViT takes the squared error"),
    Deviation("D25", "Options.map_sigma", "silent", "Gaussian smoothing", "sigma 6 for the map, 15 for the score",
              "AnoViT's code, as scipy filters: truncated at 4 sigma, mirrored"),
    Deviation("D26", "Options.image_score", "silent", "nothing said", "the maximum", "as AnoViT"),
    Deviation("D27", "Options.resize", "silent", "384 x 384", "bilinear with antialiasing", "no filter is named"),
    Deviation("D28", "Decoder", "silent", "nothing said", "weights from N(0, 0.02^2), biases 0",
              "a helper in AnoViT's file; whether it is called there is not known"),
    Deviation("D29", "evaluate --convention", "ambiguous", "mean overlap of regions when FPR is below 0.3",
              "area under it up to 0.3, divided by 0.3; 8-connected regions",
              "the usual meaning; 'point' is the other"),
    Deviation("D30", "adref.data", "mistake", "BTAD: 1000 images of product 2, 399 of product 3", "folders as found",
              "they hold 399 and 1000"),
    Deviation("D31", "corrupt", "silent", "nothing said", "no augmentation", "none is mentioned"),
)  # fmt: skip


# -- the method -------------------------------------------------------------------------------------------------------


def corrupt(image: Tensor, rng: np.random.Generator, options: Options, sources: Sources) -> Batch:
    """The clean image itself: (3, H, W) in [0, 1]; no augmentation (D31)."""
    return Batch(image)


class ViTAutoencoder(Method):
    """Rebuild the image from what the memory knows of normal ones, and compare."""

    Options = Options
    presets = PRESETS
    ablations = ABLATIONS
    deviations = DEVIATIONS
    sees_whole = "each patch has a learned position"
    corrupt = staticmethod(corrupt)

    def __init__(self, options: Options = Options()):  # noqa: B008  frozen
        super().__init__(options)
        o = self.options
        check(o)
        self.encoder = VisionTransformer(o.size, o.patch, o.width, o.depth, o.heads, o.class_token)
        if o.memory:
            settings = (o.addressing, o.temperature, o.shrinkage, o.on_empty)
            self.memory = Memory(o.width, o.memory_items, *settings)
        places = {"both": ("before_memory", "after_memory"), "none": ()}
        self.coordinate_attention = nn.ModuleDict(
            {place: CoordinateAttention(o.width, o.ca_reduction, o.ca_activation)
             for place in places.get(o.coordinate_attention, (o.coordinate_attention,))}
        )  # fmt: skip  # D12
        self.decoder = Decoder(o.width, o.size, o.decoder, o.decoder_width, o.decoder_norm, o.last_block)
        self.register_buffer("mean", torch.full((3, 1, 1), 0.5))
        self.register_buffer("std", torch.full((3, 1, 1), 0.5))

    def prepare(self, sources: Sources, stage: str, stream=None) -> None:
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

    def early_stop(self, stage: str = "train") -> EarlyStop | None:
        """None: the last epoch is the result, unless --patience is given (D23)."""
        o = self.options
        return None if o.patience is None else EarlyStop(o.patience, o.validation_share)

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

    def score(self, images: Tensor, rngs=None, looks=None) -> tuple[Tensor, Tensor]:
        """Equation e: image scores (B,) and maps (B, 1, H, W), of the same error, smoothed more and less (D25)."""
        error, o = self.error_map(images), self.options
        return self.image_score(gaussian_smooth(error, o.score_sigma)), gaussian_smooth(error, o.map_sigma)

    def anomaly_map(self, images: Tensor, rngs=None, looks=None) -> Tensor:
        """(B, 3, H, W) in [0, 1] at --size -> (B, 1, H, W), smoothed by --map-sigma."""
        return gaussian_smooth(self.error_map(images), self.options.map_sigma)

    def image_score(self, maps: Tensor) -> Tensor:
        """The maximum, the mean, or the mean of the largest pixels: (B, 1, H, W) -> (B,) (D26).

        `score` takes it of maps that are smoothed by --score-sigma, not of those of `anomaly_map`.
        """
        values = maps.flatten(1)
        count = {"max": 1, "mean": values.shape[1]}.get(self.options.image_score)
        return values.topk(count or math.ceil(self.options.top_share * values.shape[1]) or 1).values.mean(dim=1)

    def reconstruct(self, images: Tensor, rngs=None, looks=None) -> Tensor:
        """u_hat for the eye: (B, 3, H, W), clamped to [0, 1]."""
        check_images(images, size=self.options.size)
        return self(images)[0].clamp(0, 1)

    def load_weights(self, states: list[dict]) -> None:
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


def check(o: Options) -> None:
    """Raises UserError for options that cannot work together."""
    for axis, side in zip(("height", "width"), o.size):
        if side % o.patch:
            fits = math.ceil(side / o.patch) * o.patch
            raise UserError(f"--size takes multiples of --patch {o.patch}; the {axis} is {side}, {fits} would do")
    if o.width % o.heads:
        raise UserError(f"--heads: {o.heads} heads do not divide --width {o.width}")
    if o.decoder == "pow2" and tuple(o.size) == (o.patch, o.patch):
        raise UserError("--decoder pow2 normalises over one pixel at that --size; twice the side would do")
    if o.decoder == "pow2" and o.patch != 16:
        raise UserError(f"--decoder pow2 doubles four times, which undoes --patch 16 and no other; got {o.patch}")
    reach = o.ssim_size // 2
    if o.ssim_size % 2 == 0 or min(o.size) <= 2 * reach:
        raise UserError(f"--ssim-size takes an odd number, no more than the sides of --size; got {o.ssim_size}")
    if o.score == "l2+ssim+entropy" and not (o.memory and o.reconstruction_weight):
        raise UserError("--score l2+ssim+entropy needs --memory true and a --reconstruction-weight above 0")


# -- the decoder ------------------------------------------------------------------------------------------------------


class Decoder(nn.Module):
    """Six transposed convolutions, each but the last followed by a normalisation and ReLU; then tanh (D14 to D16).

        anovit: kernel 3, stride 1 three times (+ 2 pixels), stride 2 three times (2 n - 1): from 24 to
                26, 28, 30, 59, 117, 233, in general 8 n + 41; then bilinear, corners aligned, to `size`
        pow2:   kernel 3 stride 1, kernel 4 stride 2 four times, kernel 3 stride 1: 24, 48, 96, 192, 384, 384

    Args:
        width: channels C of the map.
        size: (H, W) of the image.
        kind: "anovit" or "pow2".
        first: channels behind the first layer; each that follows has half as many, the last 3. None: 256, or 512.
        norm: "batch", or "instance", which has no weights and keeps no statistics.
        last_block: "norm_relu": both behind the last layer, too.
    """

    def __init__(
        self,
        width: int,
        size: tuple[int, int],
        kind: Literal["anovit", "pow2"] = "anovit",
        first: int | None = None,
        norm: Literal["batch", "instance"] = "batch",
        last_block: Literal["plain", "norm_relu"] = "plain",
    ):
        super().__init__()
        first = first or {"anovit": 256, "pow2": 512}[kind]
        widths = [width, *(max(1, first >> i) for i in range(5)), 3]
        steps = {"anovit": [(3, 1, 0)] * 3 + [(3, 2, 1)] * 3, "pow2": [(3, 1, 1), *[(4, 2, 1)] * 4, (3, 1, 1)]}[kind]
        self.size, self.layers = tuple(size), nn.Sequential()
        for i, (kernel, stride, padding) in enumerate(steps):
            layer = nn.ConvTranspose2d(widths[i], widths[i + 1], kernel, stride, padding)
            nn.init.normal_(layer.weight, std=0.02)  # D28
            nn.init.zeros_(layer.bias)
            self.layers.append(layer)
            if i < 5 or last_block == "norm_relu":
                self.layers.append((nn.BatchNorm2d if norm == "batch" else nn.InstanceNorm2d)(widths[i + 1]))
                self.layers.append(nn.ReLU())

    def forward(self, maps: Tensor) -> Tensor:
        """Equation d: (B, C, h, w) -> (B, 3, H, W) in (-1, 1)."""
        maps = self.layers(maps)
        if maps.shape[2:] != self.size:
            maps = F.interpolate(maps, self.size, mode="bilinear", align_corners=True)
        return maps.tanh()
