"""PatchCore: keeps a coreset of normal patch features, and scores each patch by its distance to the nearest.

K. Roth, L. Pemula, J. Zepeda, B. Schölkopf, T. Brox, P. Gehler, "Towards Total Recall in Industrial Anomaly Detection",
CVPR 2022 (arXiv 2106.08265). Code of the authors: github.com/amazon-science/patchcore-inspection (commit fcaa92f),
called "code" below. It is here as a bar: nothing is trained, and a method that is trained for hours should pass it.

A frozen network with ImageNet weights gives features of two layers; each place is described by the features around it.
The descriptions of all normal images are thinned to a coreset that covers them. A test patch is scored by its distance
to the nearest of these, the image by its farthest patch, weighted by how crowded the memory is there.

An audit should know
- The code has no equation 7, and its distances are squared. It looks at the central 224 of 256 pixels alone and takes a
  pixel of a resized mask for anomalous only where it is 1 in full: its pixel metrics do not compare with these.
- Equation 7 has exp of distances as they are: where they are tens, a neighbour that is 5 further away than m* makes the
  weight nearly 1, and the score s*.
- Where in the image a patch lies plays no part: a part that is moved or missing may go unseen.

Symbols
    phi_j          features of layer j                    M, M_C       memory, its coreset
    N_p            neighbourhood of side p                psi          random projection
    m_test, m      feature of a test patch, of M_C        m*           the nearest one of M_C
    s*, s          largest distance, image score          N_b(m*)      the b nearest in M_C to m*

Equations
    (1) N_p(h, w) = {(a, b) : |a - h| <= p / 2, |b - w| <= p / 2}                     bank.patch_features
    (2) phi_j(N_p(h, w)) = f_agg({phi_j(a, b) : (a, b) in N_p(h, w)})                 bank.patch_features
    (3) P(phi_j) = {phi_j(N_p(h, w)) for all h, w}                                    bank.patch_features
    (4) M = union over the normal images of P(phi_j(x_i))                             PatchCore.prepare
    (5) M_C = argmin_{M_C in M} max_{m in M} min_{n in M_C} |m - n|                   bank.greedy_coreset
    (6) m_test*, m* = argmax_{m_test} argmin_m |m_test - m|, s* = |m_test* - m*|      bank.nearest, PatchCore.score
    (7) s = (1 - exp |m_test* - m*| / sum_{m in N_b(m*)} exp |m_test* - m|) s*        PatchCore.score

Algorithms and tables
    (Algorithm 1) greedy coreset of projected features     bank.greedy_coreset, bank.draw_projection
    (Map) distances, enlarged and smoothed                 PatchCore.anomaly_map
    (Tables 1 and 5) shares of 25, 10, 1 and 100 %         ABLATIONS

Not built
    Several networks together (99.6 % in the paper), larger images, equation 8 (a learned substitute of the coreset).
    Strides above 1 in equation 3, which only an ablation has, and the code's mean of several nearest distances.
"""

import warnings
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adref.layers.backbones import build_backbone
from adref.method import Context, Method, Sources, Stage, Stream
from adref.methods.patchcore.bank import PROJECTED, draw_projection, greedy_coreset, nearest, patch_features
from adref.methods.patchcore.options import ABLATIONS, PRESETS, Options, check
from adref.ops.filters import gaussian_smooth
from adref.options import Notice

SMOOTHING = 4.0  # pixels, of the map at the size of the input (section 3.3)


class Batch(NamedTuple):
    image: Tensor  # (B, 3, H, W)


def corrupt(image: Tensor, rng: np.random.Generator, options: Options, sources: Sources) -> Batch:
    """Returns the image as it is: nothing is trained, so nothing is corrupted."""
    return Batch(image)


class PatchCore(Method):
    """Keeps the features of normal patches and compares others with them."""

    Options = Options
    presets = PRESETS
    ablations = ABLATIONS
    changeable = ("neighbours", "map_distance")
    corrupt = staticmethod(corrupt)

    def __init__(self, options: Options = Options()):
        super().__init__(options)
        o, self.stages = self.options, (Stage("train", 0),)
        self.backbone = build_backbone(o.backbone).requires_grad_(False)
        check(o, self.backbone)
        self.needs = {"backbone": f"{o.backbone} needs ImageNet weights (the paper: torchvision's), "
                                  f"{self.backbone.published}"}  # fmt: skip
        width = o.width or sum(self.backbone.channels[j - 1] for j in o.layers)
        self.register_buffer("bank", torch.zeros(0, width))  # M_C, filled by `prepare`

    def train(self, mode: bool = True) -> "PatchCore":
        """Stays in evaluation mode: the network is frozen."""
        return super().train(False)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Computes P(phi_j), j of `layers`: (B, 3, H, W) in [0, 1] -> (B, h, w, d), at the finest layer's size."""
        layers = self.backbone(images)
        return patch_features([layers[j - 1].to(self.bank.dtype) for j in self.options.layers],
                              self.options.neighbourhood, self.options.width)  # fmt: skip

    @torch.no_grad()
    def prepare(self, sources: Sources, stage: str, stream: Stream) -> None:
        """Fills the memory with the coreset of all patches of the training images."""
        o, images, rng = self.options, sources.images, stream("coreset")
        self.eval()
        found = []
        for begin in range(0, len(images), o.batch_size):
            batch = torch.stack([images[i] for i in range(begin, min(begin + o.batch_size, len(images)))])
            found.append(self.features(batch.to(self.bank.device, self.bank.dtype) / 255).flatten(0, 2))
        features = torch.cat(found)
        count = max(1, int(o.coreset * len(features)))
        text = f"the memory keeps {count} of {len(features)} patches, {count * features[0].nbytes / 2**20:.1f} MiB"
        warnings.warn(text, Notice, stacklevel=2)
        if o.coreset < 1:
            psi = draw_projection(rng, features.shape[1]).to(features)
            projected = features if features.shape[1] == PROJECTED else features @ psi
            features = features[greedy_coreset(projected, count, rng)]
        self.bank = features

    def _load_from_state_dict(self, state: dict, prefix: str, *rest) -> None:
        if len(shape := getattr(state.get(f"{prefix}bank"), "shape", ())) == 2:  # take the length of the saved memory
            self.bank = self.bank.new_empty(shape[0], self.bank.shape[1])
        super()._load_from_state_dict(state, prefix, *rest)

    def loss(self, batch: Batch, stage: str = "train") -> dict[str, Tensor]:
        """Returns 0: nothing is trained."""
        return {"total": batch.image.new_zeros((), requires_grad=True)}

    def optimizer(self, stage: str = "train"):
        """Makes an optimizer that changes nothing, as the contract asks for one."""
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.0)
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)

    def distances(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the features of patches (B, h, w, d), their distances to the memory, and indices of the nearest.

        Distances and indices are (B, h, w); ValueError while the memory is empty.
        """
        if not len(self.bank):
            raise ValueError("the memory is empty: `prepare` fills it from normal images")
        features = self.features(self.admit(images, size=self.options.size))
        distances, indices = nearest(features.flatten(0, 2), self.bank)
        return features, distances.view(features.shape[:3]), indices.view(features.shape[:3])

    def as_map(self, distances: Tensor) -> Tensor:
        """Enlarges distances (B, h, w), or their squares, to the size of the input and smooths them: (B, 1, H, W)."""
        values = distances.square() if self.options.map_distance == "squared" else distances
        enlarged = F.interpolate(values[:, None], self.options.size, mode="bilinear", align_corners=False)
        return gaussian_smooth(enlarged, SMOOTHING)

    def anomaly_map(self, images: Tensor, context: Context = Context()) -> Tensor:
        """Maps (B, 3, H, W) in [0, 1] to smoothed distances (B, 1, H, W), 0 or more."""
        return self.as_map(self.distances(images)[1])

    def score(self, images: Tensor, context: Context = Context()) -> tuple[Tensor, Tensor]:
        """Computes equations 6 and 7, image scores (B,), and maps (B, 1, H, W), of which the scores are not the maxima.

        The weight lies between 1 - 1 / b, where all b neighbours of m* are as near to the test patch as m*, and 1,
        where m* stands alone.
        """
        features, distances, indices = self.distances(images)
        b, place = min(self.options.neighbours, len(self.bank)), distances.flatten(1).argmax(dim=1, keepdim=True)
        score, index = (x.flatten(1).gather(1, place)[:, 0] for x in (distances, indices))  # s*, m*
        if b > 1:
            patches = features.flatten(1, 2).gather(1, place[:, :, None].expand(-1, -1, features.shape[3]))  # (B, 1, d)
            around = self.bank[nearest(self.bank[index], self.bank, b)[1]]  # (B, b, d)
            to_neighbours = (patches - around).norm(dim=2)
            score = score * (1 - (score - to_neighbours.logsumexp(dim=1)).exp())
        return score, self.as_map(distances)
