"""RealNet: reconstruct selected features of a frozen network, and let a small network judge the selected residuals.

X. Zhang, M. Xu, X. Zhou, "RealNet: A Feature Selection Network with Realistic Synthetic Anomaly for Anomaly Detection",
CVPR 2024 (arXiv 2403.05897). Code of the authors: github.com/cnulab/RealNet (commit ab75012), called "code". The text
that was at hand had lost its formulas; equations 4 to 6 bear the article's numbers and are reconstructed from its words
and the code, the others are numbered here.

A normal image gets a synthetic anomaly under a mask. A network with ImageNet weights, which never trains, gives
features of four layers, of which anomaly-aware selection (AFS) keeps the channels that answer to anomalies and to
nothing else. U-Nets rebuild the normal image's features from the corrupted one's. Of the squared residuals, selection
for each image (RRS) keeps the channels with the largest maximum and the largest mean, and a small network turns them
into a map. The diffusion model that makes the article's anomalies (SDAS) is the method `sdas`.

What an audit should know before it trusts the article:
- The published numbers are those of the best of many checkpoints on the test set (D12), both AUROCs are flipped where
  they are below 0.5, and its PRO depends on the scale of the scores and can exceed 1 (D13). None of that is done here.
- With the default widths AFS keeps all of layers 1 and 2: it acts on layers 3 and 4 alone (D9).
- The discriminator's channel j is "rank j of this image", no fixed feature (D7); channels that are among both the
  largest maxima and the largest means come twice.
- The batch norm before the ranking has momentum 0.9 in the sense of PyTorch: when it is evaluated, its statistics are
  those of the last batch, by nine tenths (D6).

Symbols
    I, A, M        normal image, with anomaly, its mask          P, delta      anomalous picture, its opacity
    phi_k          features of block k after AFS                 G_k           network that rebuilds them
    E_k, E         residuals of block k, of all                  m_k           channels that AFS keeps of layer k
    S              channels of E that RRS passes on              D             the discriminator

Equations
    (1) A = (1 - M) I + (1 - delta) M I + delta M P                                         blend
    (2) E_k = (phi_k(A) - G_k(phi_k(A)))^2                                                  RealNet.residuals
    (3) score = max(box(map))                                                               RealNet.image_score
    (4) L_AFS(i) = mean (F((phi_{k,i}(A) - phi_{k,i}(I))^2) - M)^2, F min-max normalises    feature_selection.afs_losses
    (5) L_rec = sum_k |G_k(phi_k(A)) - phi_k(I)|^2                                          RealNet.loss
    (6) L = L_rec + L_seg                                                                   RealNet.loss
    (7) S: channels of E, largest maxima, then means   residual_selection.ResidualSelection.rank
    (8) map = softmax(D(S)), L_seg its cross-entropy with M                         RealNet.anomaly_map, RealNet.loss

Algorithms and tables
    (Table of selections) AFS, RDR, RLPR, with RRS and without                              ABLATIONS
    (Table of anomaly sources) SDAS, DTD, NSA, CutPaste                                     ABLATIONS
    (Table of architectures) A, B, C, and half the widths                                   ABLATIONS

Not built
    The choice of the best checkpoint on the test set, and the flipping of an AUROC below 0.5.
    The recipe of the table of many categories, which no text gives: preset multi-class guesses (D2).
"""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adref.method import Context, Evaluation, Method, Sources, Stage, Stream, check_images
from adref.methods.realnet.anomalies import cut_paste_anomaly, foreground_rule, masked_anomaly, nsa_anomaly, to_bytes
from adref.methods.realnet.networks import BLOCKS, Discriminator, FeatureUNet, SimpleNetwork, build_backbone, enlarge
from adref.methods.realnet.options import ABLATIONS, PRESETS, Options, check
from adref.methods.realnet.selection import ResidualSelection, afs_losses, min_max, select
from adref.ops.losses import focal
from adref.options import Notice, UserError


class Batch(NamedTuple):
    clean: Tensor  # I, (B, 3, H, W)
    corrupted: Tensor  # A, (B, 3, H, W)
    mask: Tensor  # M, (B, 1, H, W), 1 = anomalous


# -- the corrupted image ----------------------------------------------------------------------------------------------


def corrupt(image: Tensor, rng: np.random.Generator, options: Options, sources: Sources) -> Batch:
    """One training example: with probability `anomaly_probability` an anomaly of one of the sources (D21).

    Args:
        image: (3, H, W) in [0, 1], of 8-bit values.
        rng: the stream of this example.
        options: the method's options.
        sources: `statistics`, `categories` and `index`; and `anomalies`, `textures` or `images`, as the sources need them.

    Returns:
        clean and corrupted (3, H, W), mask (1, H, W); mask all 0 and corrupted equal to clean for a normal example.
    """
    if rng.random() >= options.anomaly_probability:
        return Batch(image, image, torch.zeros(1, *image.shape[1:]))
    kind = options.anomaly_sources[int(rng.integers(len(options.anomaly_sources)))]
    if sources.notes is not None:
        sources.notes.append({f"from_{source}": int(source == kind) for source in options.anomaly_sources})
    make = {"nsa": nsa_anomaly, "cut_paste": cut_paste_anomaly, "scar": cut_paste_anomaly}.get(kind, masked_anomaly)
    corrupted, mask = make(image, rng, options, sources, kind)
    return Batch(image, corrupted, mask[None])


# -- the method -------------------------------------------------------------------------------------------------------


EXAMPLES = 2  # synthetic anomalies of each source that are kept for the report


class Outcome(NamedTuple):
    """What RealNet makes of a batch."""

    rebuilt: list[Tensor]  # G_k(phi_k(A)), (B, C_k, h_k, w_k)
    residuals: Tensor  # E, (B, C, h, w)
    chosen: Tensor  # (B, N, h, w)
    indices: Tensor | None  # (B, N), channels of E; None: all
    logits: Tensor  # (B, 2, H, W)


class RealNet(Method):
    """Select, rebuild, select, judge."""

    Options = Options
    presets = PRESETS
    ablations = ABLATIONS
    evaluation = Evaluation(aupro="realnet")  # D13
    corrupt = staticmethod(corrupt)
    statistics = staticmethod(foreground_rule)

    def __init__(self, options: Options = Options()):
        super().__init__(options)
        o = self.options
        self.backbone = build_backbone(o.backbone).requires_grad_(False)
        self.blocks = BLOCKS[o.architecture]
        check(o, self.backbone)
        self.needs = {"backbone": f"{o.backbone} needs ImageNet weights, {self.backbone.published}"}  # D1
        for source, need in (("sdas", "anomalies"), ("textures", "textures")):
            if source in o.anomaly_sources:
                self.needs[need] = f"--anomaly-sources has {source}"
        self.stages = (Stage("train", o.epochs),)
        self.projections = nn.ModuleList()
        for k, (width, channels) in enumerate(zip(o.widths, self.backbone.channels)):
            drawn = torch.randperm(channels)[:width].sort().values if o.selection == "random" else torch.arange(width)
            self.register_buffer(f"selected_{k}", drawn)  # D3
            self.register_buffer(f"afs_losses_{k}", torch.zeros(channels))
            if o.selection == "projection":
                self.projections.append(nn.Conv2d(channels, width, 1).requires_grad_(False))
        widths = [sum(o.widths[k] for k in block) for block in self.blocks]  # D9
        self.networks = nn.ModuleList(  # D2
            FeatureUNet(w, o.groups, o.head_width) if o.network == "unet" else SimpleNetwork(w, o.depth) for w in widths
        )
        total = sum(widths)
        by_max, by_mean = ranks(o, total)
        self.rrs = None
        if o.residuals != "all":
            form = {"normalised": o.rrs_forward == "normalised", "ranked": o.rrs_order == "rank"}
            self.rrs = ResidualSelection(total, by_max, by_mean, o.rrs_momentum, **form)
        count = by_max + by_mean if self.rrs else total
        side = 3 if o.discriminator == "convolutions" else 1
        self.discriminator = Discriminator(count, o.size, side, o.align_corners)  # D20
        kept = EXAMPLES * len(o.anomaly_sources)
        for name, channels in (("clean", 3), ("corrupted", 3), ("mask", 1)):
            self.register_buffer(f"example_{name}", torch.zeros(kept, channels, *o.size, dtype=torch.uint8))

    def train(self, mode: bool = True) -> "RealNet":
        """The backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    # -- before training

    @torch.no_grad()
    def prepare(self, sources: Sources, stage: str, stream: Stream) -> None:
        """Keeps some synthetic anomalies of every source for the report, and lets AFS choose its channels (D4).

        AFS adds up the losses of `afs_batches` batches of corrupted images; it holds the features of one at a time.
        """
        o = self.options
        order = stream("afs order").permutation(len(sources.images))
        device = self.example_clean.device

        def example(options: Options, rng: np.random.Generator, number: int) -> Batch:
            index = int(order[number % len(order)])
            own = sources._replace(index=index, notes=None)
            return corrupt(sources.images[index].float() / 255, rng, options, own)

        anomalous = dataclasses.replace(o, anomaly_probability=1.0)
        for i, kind in enumerate(kind for kind in o.anomaly_sources for _ in range(EXAMPLES)):
            rng, chosen = stream("examples", i), dataclasses.replace(anomalous, anomaly_sources=(kind,))
            drawn = (example(chosen, rng, i) for _ in range(50))  # an empty mask would show nothing
            found = next((batch for batch in drawn if batch.mask.any()), None) or example(chosen, rng, i)
            for name in ("clean", "corrupted", "mask"):
                getattr(self, f"example_{name}")[i] = to_bytes(getattr(found, name)).to(device)
        if o.selection != "afs":
            return
        looked = o.afs_batches * o.batch_size * (1 if o.afs_pass == "shared" else len(self.blocks))
        warnings.warn(f"AFS looks at {looked} corrupted images before the first step", Notice, stacklevel=2)
        self.eval()
        passes = [range(len(self.blocks))] if o.afs_pass == "shared" else [[b] for b in range(len(self.blocks))]
        for number, blocks in enumerate(passes):
            for batch in range(o.afs_batches):
                keys = range(batch * o.batch_size, (batch + 1) * o.batch_size)
                examples = [example(anomalous, stream("afs", number, key), key) for key in keys]
                pair = [torch.stack(part).to(device) for part in zip(*examples)]
                self.add_afs_losses(*pair, blocks)
        for k, width in enumerate(o.widths):
            getattr(self, f"selected_{k}").copy_(select(getattr(self, f"afs_losses_{k}"), width))

    def add_afs_losses(self, clean: Tensor, corrupted: Tensor, mask: Tensor, blocks: Sequence[int]) -> None:
        """Adds equation 4 of one batch to the buffers `afs_losses_k` of the layers of some blocks."""
        o = self.options
        pairs = list(zip(self.backbone(corrupted), self.backbone(clean)))
        for block in blocks:
            layers = self.blocks[block]
            size = pairs[layers[0]][0].shape[2:]
            for k in layers:
                a, b = (enlarge(layer, size, o.align_corners) for layer in pairs[k])
                losses = afs_losses((a - b).square(), mask, o.afs_range, o.afs_align, o.align_corners)
                getattr(self, f"afs_losses_{k}").add_(losses / o.afs_batches)

    def load_weights(self, states: list[dict], part: str = "method") -> None:
        """Loads ImageNet weights with torchvision's or timm's names into the backbone; ignored keys become notices.

        Raises:
            UserError: keys or shapes that do not fit the backbone; weights for another part.
        """
        if part != "backbone":
            super().load_weights(states, part)
        try:
            notes = self.backbone.load_published(states[0])
        except ValueError as error:
            raise UserError(str(error)) from None
        for note in notes:
            warnings.warn(f"--backbone-weights: {note}", Notice, stacklevel=2)

    # -- networks

    def features(self, images: Tensor) -> list[Tensor]:
        """phi_k, for each block: (B, 3, H, W) in [0, 1] -> (B, C_k, h_k, w_k)."""
        with torch.no_grad():
            layers = self.backbone(images)
            if self.projections:
                layers = [project(layer) for project, layer in zip(self.projections, layers)]
            else:
                layers = [layer[:, getattr(self, f"selected_{k}")] for k, layer in enumerate(layers)]
            align = self.options.align_corners
            return [
                torch.cat([enlarge(layers[k], layers[block[0]].shape[2:], align) for k in block], dim=1)
                for block in self.blocks
            ]

    def residuals(self, features: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Equation 2: what the networks rebuild, and E at the size of the finest block (B, sum C_k, h, w) (D10)."""
        rebuilt = [network(phi).float() for network, phi in zip(self.networks, features)]
        size, align = features[0].shape[2:], self.options.align_corners
        squares = ((phi - own).square() for phi, own in zip(features, rebuilt))
        return rebuilt, torch.cat([enlarge(e, size, align) for e in squares], dim=1)

    def forward(self, images: Tensor) -> Outcome:
        """(B, 3, H, W) in [0, 1] through all parts."""
        return self.judge(self.features(images))

    def judge(self, features: list[Tensor]) -> Outcome:
        """What follows the backbone."""
        rebuilt, residuals = self.residuals(features)
        passed = residuals.detach() if self.options.stop_gradient else residuals
        chosen, indices = self.rrs(passed) if self.rrs else (passed, None)
        return Outcome(rebuilt, residuals, chosen, indices, self.discriminator(chosen).float())

    def loss(self, batch: Batch, stage: str = "train") -> dict[str, Tensor]:
        """Equations 5 and 6: "reconstruction" (a mean for each block, summed; D22), "segmentation", and their sum.

        Statistics "kept/layer_k": the share of what RRS passes on that comes from each layer.
        """
        o = self.options
        target, outcome = self.features(batch.clean), self(batch.corrupted)
        pairs = zip(outcome.rebuilt, target)
        terms = {"reconstruction": o.reconstruction_weight * sum(F.mse_loss(own, phi.float()) for own, phi in pairs)}
        if o.segmentation_loss == "focal":
            segmentation = focal(outcome.logits.softmax(dim=1), batch.mask)
        else:
            segmentation = F.cross_entropy(outcome.logits, batch.mask[:, 0].long())
        terms["segmentation"] = o.segmentation_weight * segmentation
        terms["total"] = sum(terms.values())
        return terms | {f"kept/{name}": share.mean() for name, share in self.shares(outcome).items()}

    def shares(self, outcome: Outcome) -> dict[str, Tensor]:
        """The share of each layer in what RRS passes on, "layer_k" -> (B,); nothing where it passes on all."""
        if outcome.indices is None:
            return {}
        layers = [k for block in self.blocks for k in block]
        ends = torch.tensor([self.options.widths[k] for k in layers], device=outcome.indices.device).cumsum(0)
        place = torch.bucketize(outcome.indices, ends, right=True)
        return {f"layer_{k + 1}": (place == i).float().mean(dim=1) for i, k in enumerate(layers)}

    def optimizer(self, stage: str = "train"):
        """Adam on the networks and the discriminator, at a constant rate (D12)."""
        parameters = [*self.networks.parameters(), *self.discriminator.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=self.options.learning_rate)
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)

    # -- inference

    def anomaly_map(self, images: Tensor, context: Context = Context()) -> Tensor:
        """Equation 8, the softmax's anomalous channel: (B, 3, H, W) in [0, 1] -> (B, 1, H, W) in [0, 1]; no filter."""
        check_images(images, size=self.options.size)
        return self(images).logits.softmax(dim=1)[:, 1:]

    def image_scores(self, maps: Tensor) -> dict[str, Tensor]:
        """Computes equation 3, the largest mean of a window inside the map, and the article's, the maximum (D17)."""
        scores = {"score": F.avg_pool2d(maps, self.options.score_window, stride=1).amax(dim=(1, 2, 3))}
        return scores | ({"max": maps.amax(dim=(1, 2, 3))} if self.options.score_window > 1 else {})

    def figures(self, image: Tensor | None = None, context: Context = Context()) -> dict[str, Tensor]:
        """Shows the residuals of one image, as means over each block and over what RRS keeps; else `learned_figures`."""
        return self.learned_figures() if image is None else self.residual_figures(image)

    def residual_figures(self, image: Tensor) -> dict[str, Tensor]:
        """Shows the residuals of one image (1, 3, H, W): their mean over each block, and over what RRS passes on."""
        outcome, shown, first = self(image), {}, 0
        shares = {name: float(share[0]) for name, share in self.shares(outcome).items()}
        for block in self.blocks:
            width = sum(self.options.widths[k] for k in block)
            name = f"residual of layer {'+'.join(str(k + 1) for k in block)}"
            if shares:
                name += f", {100 * sum(shares[f'layer_{k + 1}'] for k in block):.0f} % of the kept"
            shown[name] = picture_of(outcome.residuals[0, first : first + width])
            first += width
        if self.rrs:
            parts = {"maximum": outcome.chosen[0, : self.rrs.by_max], "mean": outcome.chosen[0, self.rrs.by_max :]}
            shown |= {f"kept by {name}": picture_of(part) for name, part in parts.items() if len(part)}
        return shown

    @torch.no_grad()
    def learned_figures(self) -> dict[str, Tensor]:
        """Shows synthetic anomalies of every source, and what AFS keeps and drops of the answer to the first of them."""
        shown = {}
        for i, kind in enumerate(kind for kind in self.options.anomaly_sources for _ in range(EXAMPLES)):
            number = i % EXAMPLES + 1
            shown[f"{kind} {number}: clean"] = self.example_clean[i] / 255
            shown[f"{kind} {number}: corrupted"] = self.example_corrupted[i] / 255
            shown[f"{kind} {number}: mask"] = self.example_mask[i] / 255
        if self.options.selection == "afs":
            a, b = (getattr(self, f"example_{name}")[:1] / 255 for name in ("corrupted", "clean"))
            for k, (x, y) in enumerate(zip(self.backbone(a), self.backbone(b))):
                normalised = min_max((x - y)[0].square(), (1, 2))
                kept = torch.zeros(len(normalised), dtype=torch.bool, device=normalised.device)
                kept[getattr(self, f"selected_{k}")] = True
                name = f"layer {k + 1}, {self.options.anomaly_sources[0]} 1"
                shown[f"{name}: the {int(kept.sum())} channels that AFS keeps"] = normalised[kept].mean(0, True)
                if not kept.all():
                    shown[f"{name}: the {int((~kept).sum())} that it drops"] = normalised[~kept].mean(0, True)
        return shown


def picture_of(maps: Tensor) -> Tensor:
    """The mean of maps (C, h, w), from 0 to its own maximum: (1, h, w) in [0, 1]."""
    mean = maps.float().mean(dim=0, keepdim=True)
    return (mean / mean.amax().clamp_min(1e-12)).clamp(0, 1)


def ranks(o: Options, channels: int) -> tuple[int, int]:
    """How many channels RRS takes by maximum and by mean (D8)."""
    if o.residuals == "max+mean":
        half = max(1, round(o.retention * channels / 2))
        return half, half
    whole = max(1, round(o.retention * channels))
    return (whole, 0) if o.residuals == "max" else (0, whole)
