"""RealNet: reconstructs selected features of a frozen network and segments the selected residuals.

X. Zhang, M. Xu, X. Zhou, "RealNet: A Feature Selection Network with Realistic Synthetic Anomaly for Anomaly Detection",
CVPR 2024 (arXiv 2403.05897). Code of the authors: github.com/cnulab/RealNet (commit ab75012), called "code" below.
Source: HTML text without formulas; all equations are reconstructed from its words and the code. Numbers are the
article's; those of the equations with names are not known, or there are none.

A normal image gets a synthetic anomaly under a mask. A frozen network with ImageNet weights gives features of four
layers, of which anomaly-aware feature selection (AFS) keeps the channels that respond to anomalies alone. Networks
reconstruct the normal image's features from the corrupted one's. For each image, reconstruction residuals selection
(RRS) takes the squared residuals with the largest maxima and means, and a small network segments them. The article's
anomalies are drawn by a diffusion model (SDAS), here the method `sdas`.

An audit should know
- The published numbers are those of the best of many checkpoints on the test set.
- With the default widths AFS keeps all of layers 1 and 2: it acts on layers 3 and 4 alone.
- Channel j of the discriminator's input is "rank j of this image", no fixed feature; channels that are among both the
  largest maxima and the largest means come twice.
- The discriminator's last ReLU has 4 channels. In small trainings (128 x 128) all 4 were 0 at every pixel with some
  seeds, once after 90 steps: then no gradient passes, and the map stays constant (`discriminator_slope`).
- RRS's batch norm has PyTorch's momentum 0.9: nine tenths of its statistics in evaluation are the last batch's.

Symbols
    I, A, M        normal image, corrupted image, mask           P, delta      anomalous picture, its opacity
    phi_k          features of block k after AFS                 G_k           network that reconstructs them
    E_k, E         residuals of block k, of all blocks           m_k           channels that AFS keeps of layer k
    S              channels of E that RRS selects                D             the discriminator

Equations
    (blending) A = (1 - M) I + (1 - delta) M I + delta M P                        anomalies.blend
    (4) L_AFS(i) = mean (F((phi_{k,i}(A) - phi_{k,i}(I))^2) - M)^2, F min-max normalises    selection.afs_losses
    (5) L_rec = sum_k |G_k(phi_k(A)) - phi_k(I)|^2                                RealNet.loss
    (residuals) E_k = (phi_k(A) - G_k(phi_k(A)))^2                                RealNet.residuals
    (residual selection) S: channels of E with the largest maxima, then means     selection.ResidualSelection.rank
    (anomaly map) map = softmax(D(S)), L_seg its cross-entropy with M             RealNet.anomaly_map, RealNet.loss
    (6) L = L_rec + L_seg                                                         RealNet.loss
    (score) score = max(box(map))                                                 RealNet.image_scores

Algorithms and tables
    (Table of selections) AFS, RDR, RLPR, with RRS and without                    ABLATIONS
    (Table of anomaly sources) SDAS, DTD, NSA, CutPaste                           ABLATIONS
    (Table of strengths) s of the SDAS images                                     ABLATIONS
    (Table of widths) ResNet34, EfficientNet-B4, and half the widths              PRESETS
    (Table of architectures) A, B, C, half the widths, high resolution            ABLATIONS

Not built
    The choice of the best checkpoint on the test set, and the flipping of an AUROC below 0.5.
    The unpublished recipe of the table of many categories: preset multi-class guesses.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adref.layers.backbones import build_backbone
from adref.method import Context, Evaluation, Method, Sources, Stage, Stream, training_length
from adref.methods.realnet.anomalies import add_anomaly, to_bytes
from adref.methods.realnet.foreground import foreground_rule
from adref.methods.realnet.networks import BLOCKS, Discriminator, FeatureUNet, SimpleNetwork, enlarge
from adref.methods.realnet.options import ABLATIONS, PRESETS, Options, check
from adref.methods.realnet.selection import ResidualSelection, afs_losses, min_max, select
from adref.options import Notice

ANOMALY_PROBABILITY = 0.5  # share of examples that are corrupted (section on synthesis)
SIMPLE_DEPTH = 12  # residual units of the simple network for EfficientNet-B4 (the authors' issues)
SCALED = 64  # images that measure the scales of features; a guess
EXAMPLES = 2  # synthetic anomalies of each source that are kept for the report


class Batch(NamedTuple):
    clean: Tensor  # I, (B, 3, H, W)
    corrupted: Tensor  # A, (B, 3, H, W)
    mask: Tensor  # M, (B, 1, H, W), 1 = anomalous


def corrupt(image: Tensor, rng: np.random.Generator, options: Options, sources: Sources,
            kinds: Sequence[str] | None = None, probability: float = ANOMALY_PROBABILITY) -> Batch:  # fmt: skip
    """Corrupts an image, (3, H, W) in [0, 1] of 8-bit values, with a probability, by one of `kinds` of anomalies.

    `kinds` is --anomaly-sources unless given. `sources` needs `statistics`, `categories` and `index`, and `anomalies`,
    `textures` or `images` for some kinds. In a normal example the images are equal and the mask (1, H, W) is 0.
    """
    if rng.random() >= probability:
        return Batch(image, image, torch.zeros(1, *image.shape[1:]))
    kinds = kinds or options.anomaly_sources
    kind = kinds[int(rng.integers(len(kinds)))]
    if sources.notes is not None:
        sources.notes.append({f"from_{name}": int(name == kind) for name in kinds})
    corrupted, mask = add_anomaly(image, rng, options, sources, kind)
    return Batch(image, corrupted, mask[None])


class Outcome(NamedTuple):
    """Results of one forward pass."""

    rebuilt: list[Tensor]  # G_k(phi_k), (B, C_k, h_k, w_k)
    residuals: Tensor  # E, (B, C, h, w)
    chosen: Tensor  # S, (B, N, h, w)
    indices: Tensor | None  # (B, N), channels of E; None: all
    logits: Tensor  # (B, 2, H, W)


class RealNet(Method):
    """Selects and reconstructs features, selects residuals, segments them."""

    Options = Options
    presets = PRESETS
    ablations = ABLATIONS
    changeable = ("score_window",)
    evaluation = Evaluation(aupro="realnet")
    corrupt = staticmethod(corrupt)
    statistics = staticmethod(foreground_rule)

    def __init__(self, options: Options = Options()):
        super().__init__(options)
        o = self.options
        self.backbone, self.blocks = build_backbone(o.backbone).requires_grad_(False), BLOCKS[o.architecture]
        check(o, self.backbone)
        self.needs = {"backbone": f"{o.backbone} needs ImageNet weights, {self.backbone.published}"}
        needs = {"anomalies": "sdas", "textures": "textures"}
        self.needs |= {k: f"--anomaly-sources has {v}" for k, v in needs.items() if v in o.anomaly_sources}
        self.stages, self.projections = (Stage("train", *training_length(o.epochs, o.steps)),), nn.ModuleList()
        for k, (width, channels) in enumerate(zip(o.widths, self.backbone.channels)):
            drawn = torch.randperm(channels)[:width].sort().values if o.selection == "random" else torch.arange(width)
            self.register_buffer(f"selected_{k}", drawn)
            self.register_buffer(f"afs_losses_{k}", torch.zeros(channels))
            if o.selection == "projection":
                self.projections.append(nn.Conv2d(channels, width, 1).requires_grad_(False))
        self.register_buffer("scales", torch.ones(len(o.widths)) if o.feature_scale == "unit" else None)  # of layers
        self.widths = [sum(o.widths[k] for k in block) for block in self.blocks]
        self.networks = nn.ModuleList(SimpleNetwork(w, depth=SIMPLE_DEPTH) if o.network == "simple"
                                      else FeatureUNet(w, groups=o.groups) for w in self.widths)  # fmt: skip
        count, self.rrs = sum(self.widths), None
        if o.residuals != "all":
            parts = o.residuals.split("+")
            each = max(1, round(o.retention * count / len(parts)))
            by = {f"by_{name}": each * (name in parts) for name in ("max", "mean")}
            self.rrs = ResidualSelection(count, **by, normalised=o.rrs_forward == "normalised")
            count = each * len(parts)
        side = 3 if o.discriminator == "convolutions" else 1
        self.discriminator = Discriminator(count, size=o.size, side=side, slope=o.discriminator_slope)
        kept = EXAMPLES * len(o.anomaly_sources)
        for name, channels in (("clean", 3), ("corrupted", 3), ("mask", 1)):
            self.register_buffer(f"example_{name}", torch.zeros(kept, channels, *o.size, dtype=torch.uint8))

    def train(self, mode: bool = True) -> "RealNet":
        """Sets the mode of all parts but the backbone, which stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    @torch.no_grad()
    def prepare(self, sources: Sources, stage: str, stream: Stream) -> None:
        """Draws the report's example anomalies, measures the features' scales, selects channels by AFS."""
        o, device = self.options, self.example_clean.device
        order = stream("afs order").permutation(len(sources.images))

        def draw(number: int, rng: np.random.Generator, kinds: Sequence[str]) -> Batch:
            index = int(order[number % len(order)])
            return corrupt(sources.images[index].float() / 255, rng, o, sources._replace(index=index), kinds, 1.0)

        for i, kind in enumerate(np.repeat(o.anomaly_sources, EXAMPLES).tolist()):
            rng = stream("examples", i)
            for _ in range(51):  # until a mask is not empty
                example = draw(i, rng, (kind,))
                if example.mask.any():
                    break
            for name, part in example._asdict().items():
                getattr(self, f"example_{name}")[i] = to_bytes(part).to(device)
        self.eval()
        if self.scales is not None:
            chosen = torch.stack([sources.images[i] for i in order[:SCALED].tolist()]).to(device)
            layers = zip(*(self.backbone(part.to(self.scales) / 255) for part in chosen.split(o.batch_size)))
            self.scales = torch.stack([torch.cat(parts).square().mean().sqrt() for parts in layers])
        if o.selection != "afs":
            return
        images = o.afs_batches * o.batch_size
        warnings.warn(f"AFS looks at {images} corrupted images before the first step", Notice, stacklevel=2)
        self.eval()
        for numbers in np.arange(images).reshape(o.afs_batches, -1).tolist():
            examples = [draw(number, stream("afs", 0, number), o.anomaly_sources) for number in numbers]
            self.add_afs_losses(*(torch.stack(part).to(device) for part in zip(*examples)))
        for k, width in enumerate(o.widths):
            getattr(self, f"selected_{k}").copy_(select(getattr(self, f"afs_losses_{k}"), width))

    def add_afs_losses(self, clean: Tensor, corrupted: Tensor, mask: Tensor) -> None:
        """Adds equation 4 of one of `afs_batches` batches to the buffers `afs_losses_k`; arguments as in `Batch`."""
        pairs, o = list(zip(self.backbone(corrupted), self.backbone(clean))), self.options
        for k, finest in ((k, block[0]) for block in self.blocks for k in block):
            a, b = (enlarge(layer, pairs[finest][0].shape[2:]) for layer in pairs[k])
            getattr(self, f"afs_losses_{k}").add_(afs_losses((a - b).square(), mask, o.afs_align) / o.afs_batches)

    @torch.no_grad()
    def features(self, images: Tensor) -> list[Tensor]:
        """Computes phi_k of each block: (B, 3, H, W) in [0, 1] -> (B, C_k, h_k, w_k)."""
        layers = self.backbone(images)
        if self.scales is not None:
            layers = [layer / scale for layer, scale in zip(layers, self.scales)]
        if self.projections:
            layers = [project(layer) for project, layer in zip(self.projections, layers)]
        else:
            layers = [layer[:, getattr(self, f"selected_{k}")] for k, layer in enumerate(layers)]
        blocks = ([enlarge(layers[k], layers[block[0]].shape[2:]) for k in block] for block in self.blocks)
        return [torch.cat(block, dim=1) for block in blocks]

    def residuals(self, features: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Computes the reconstructions, and E at the size of the finest block (B, sum C_k, h, w)."""
        rebuilt = [network(phi).float() for network, phi in zip(self.networks, features)]
        squares = ((phi - g).square() for phi, g in zip(features, rebuilt))
        return rebuilt, torch.cat([enlarge(e, features[0].shape[2:]) for e in squares], dim=1)

    def forward(self, images: Tensor) -> Outcome:
        """Runs all parts on (B, 3, H, W) in [0, 1]."""
        rebuilt, residuals = self.residuals(self.features(images))
        chosen, indices = self.rrs(residuals) if self.rrs else (residuals, None)
        return Outcome(rebuilt, residuals, chosen, indices, self.discriminator(chosen).float())

    def loss(self, batch: Batch, stage: str = "train") -> dict[str, Tensor]:
        """Computes equations 5 and 6: "reconstruction" (a mean for each block, summed), "segmentation", their "total".

        The statistics "kept/layer_k" are the shares of the layers in the channels that RRS selects.
        """
        target, outcome = self.features(batch.clean), self(batch.corrupted)
        terms = {"reconstruction": sum(F.mse_loss(g, phi.float()) for g, phi in zip(outcome.rebuilt, target)),
                 "segmentation": F.cross_entropy(outcome.logits, batch.mask[:, 0].long())}  # fmt: skip
        terms["total"] = sum(terms.values())
        return terms | {f"kept/{name}": share.mean() for name, share in self.layer_shares(outcome).items()}

    def layer_shares(self, outcome: Outcome) -> dict[str, Tensor]:
        """Computes the share of each layer in the channels that RRS selects, "layer_k" -> (B,); empty without RRS."""
        if outcome.indices is None:
            return {}
        ends = torch.tensor(self.options.widths, device=outcome.indices.device).cumsum(0)
        layer = torch.bucketize(outcome.indices, ends, right=True)
        return {f"layer_{k + 1}": (layer == k).float().mean(dim=1) for k in range(len(ends))}

    def optimizer(self, stage: str = "train"):
        """Makes Adam at a constant rate for the reconstruction networks and the discriminator."""
        parameters = [*self.networks.parameters(), *self.discriminator.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=self.options.learning_rate)
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)

    def anomaly_map(self, images: Tensor, context: Context = Context()) -> Tensor:
        """Computes the map, the softmax's anomalous channel: (B, 3, H, W) in [0, 1] -> (B, 1, H, W) in [0, 1]."""
        images = self.admit(images, size=self.options.size)
        return self(images).logits.softmax(dim=1)[:, 1:]

    def image_scores(self, maps: Tensor) -> dict[str, Tensor]:
        """Computes the score, the largest mean of a window inside the map, and the article's score, the maximum."""
        scores = {"score": F.avg_pool2d(maps, self.options.score_window, stride=1).amax(dim=(1, 2, 3))}
        return scores | ({"max": maps.amax(dim=(1, 2, 3))} if self.options.score_window > 1 else {})

    @torch.no_grad()
    def figures(self, image: Tensor | None = None, context: Context = Context()) -> dict[str, Tensor]:
        """Shows E of one image, averaged over each block and over what RRS selects; or see `selection_figures`."""
        if image is None:
            return self.selection_figures()
        outcome, shown = self(image), {}
        shares = {name: float(share[0]) for name, share in self.layer_shares(outcome).items()}
        for block, residuals in zip(self.blocks, outcome.residuals[0].split(self.widths)):
            name = f"residual of layer {'+'.join(str(k + 1) for k in block)}"
            if shares:
                name += f", {100 * sum(shares[f'layer_{k + 1}'] for k in block):.0f} % of the kept"
            shown[name] = mean_picture(residuals)
        if self.rrs:
            parts = zip(("maximum", "mean"), outcome.chosen[0].split((self.rrs.by_max, self.rrs.by_mean)))
            shown |= {f"kept by {name}": mean_picture(part) for name, part in parts if len(part)}
        return shown

    def selection_figures(self) -> dict[str, Tensor]:
        """Shows example anomalies of every source, and the channels that AFS keeps and drops for the first of them."""
        shown, sources = {}, self.options.anomaly_sources
        for i, kind in enumerate(np.repeat(sources, EXAMPLES).tolist()):
            for name in Batch._fields:
                shown[f"{kind} {i % EXAMPLES + 1}: {name}"] = getattr(self, f"example_{name}")[i] / 255
        if self.options.selection == "afs":
            layers = (self.backbone(part[:1] / 255) for part in (self.example_corrupted, self.example_clean))
            for k, (a, b) in enumerate(zip(*layers)):
                normalised = min_max((a - b)[0].square(), (1, 2))
                kept = torch.zeros(len(normalised), dtype=torch.bool, device=normalised.device)
                kept[getattr(self, f"selected_{k}")] = True
                for chosen, words in ((kept, "channels that AFS keeps"), (~kept, "that it drops")):
                    if chosen.any():
                        name = f"layer {k + 1}, {sources[0]} 1: the {int(chosen.sum())} {words}"
                        shown[name] = normalised[chosen].mean(0, True)
        return shown


def mean_picture(maps: Tensor) -> Tensor:
    """Averages maps (C, h, w) over the channels and divides by the maximum: (1, h, w) in [0, 1]."""
    mean = maps.float().mean(dim=0, keepdim=True)
    return (mean / mean.amax().clamp_min(1e-12)).clamp(0, 1)
