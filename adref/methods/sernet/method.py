"""SeRNet: segment large defects, repair them from a similar normal image, reconstruct the rest.

"SeRNet: Segmentation Helps Reconstruction for Anomaly Detection", Applied Sciences 2026, 16(4), 1670. Source: HTML text
without formulas, symbols, figures, table 1 and experiments; no code of the authors is known. All equations are
reconstructed from its words and the works that it builds on: DRAEM, EdgRec (map), RIAD (SSIM loss, MSGMS), ImageHash.

A reconstruction network does not remove large defects. So a first network, trained on large pseudo-anomalies (PPA),
segments them, and each large region is replaced by the pixels of the most similar training image (by perceptual hash).
A second network, trained on large and small (DPA) pseudo-anomalies behind the frozen first, reconstructs the normal
image. The map compares structure and colour of the input with it.

What an audit should know
- Repaired from the image itself (--train-similar self), a training example shows the second network no other image's
  pixels: the seams of pasting that it is said to remove come from mistakes of the first network alone.
- The "16-bit hash" has 64 bits, 16 hexadecimal digits; 3,416 training images are not MVTec AD's 3,629.
- A defect that the first network misses, or that is smaller than the area, is not repaired. Pasting is not aligned:
  the map then shows the difference of two normal images.
- Squared error and SSIM of a mask that is mostly empty have an easy answer, the empty mask; at three times
  the default rate it is found, and kept.
- Gradient similarity has no sign: the negative of an image has no structure term. SSIM has a second maximum there,
  in which a channel of a network without final activation can settle (--output linear).

Symbols
    I, I_a, M      normal image, with pseudo-anomaly, its mask    S, beta    source image, blending weight
    M_p, M_b       predicted mask, mask of the repair             I_s, I_r   similar image, repaired image
    X, Y           image, its reconstruction                      b, c_k     change of brightness, of channel k
    S_g, S_c       differences of structure and colour            c          weight of colour

Equations (reconstructed; their numbers are lost)
    (PPA) I_a = (1 - M) I + (1 - beta) M S + beta M I        anomalies.blend_source
    (DPA) I_a = (1 - M) I + M clip(I + b + c_k)              anomalies.shift_colour
    (Loss) L(A, B) = mean (A - B)^2 + 1 - SSIM(A, B)         SeRNet.terms, losses.ssim
    (Repair) I_r = M_b I_s + (1 - M_b) I_a                   repair
    (Colour) S_c = box((a_X - a_Y)^2 + (b_X - b_Y)^2)        SeRNet.colour_term, map.cielab
    (Structure) S_g = box(1 - MSGMS(X, Y))                   SeRNet.structure_term, map.msgms
    (Map) A = S_g + c S_c, score max A                       SeRNet.compare

Algorithms and tables
    (Algorithm 1) threshold, drop small regions, paste       repair_mask, repair
    (Algorithm 2) the nearest of all hashes                  SeRNet.find_similar, similar.nearest

Not built
    The article's experiments, whose section is lost: ABLATIONS has variants of what its text names.
"""

import warnings
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adref.layers.unet import PlainUNet
from adref.method import Context, Method, Sources, Stage, Stream, training_length
from adref.methods.sernet.anomalies import dpa, ppa, remove_small
from adref.methods.sernet.map import cielab, edgrec_colour, msgms
from adref.methods.sernet.options import ABLATIONS, PRESETS, Options, check
from adref.methods.sernet.similar import Bank, draw_similar, perceptual_hash
from adref.ops.filters import mean_filter
from adref.ops.losses import channel_signs, ssim
from adref.ops.texture_anomaly import rotate_randomly
from adref.options import Notice, UserError

MILESTONES, MILESTONE_FACTOR = (0.8, 0.9), 0.2  # EdgRec: the rate falls at these shares of the length
MSGMS_VARIANTS = {"edgrec": (False, "zero"), "replicate": (False, "replicate"), "riad": (True, "none")}  # grey, padding


class Batch(NamedTuple):
    clean: Tensor  # (B, 3, H, W)
    corrupted: Tensor  # (B, 3, H, W)
    mask: Tensor  # (B, 1, H, W), 1 = corrupted
    similar: Tensor  # (B, 3, H, W), pasted by the repair


def corrupt(image: Tensor, rng: np.random.Generator, options: Options, sources: Sources) -> Batch:
    """Adds a large pseudo-anomaly (PPA), a small one (DPA), or none, by the mix of the stage.

    Needs `sources.images` or `textures` to paste from; uses `stage`, `index`, and `hashes` for --train-similar phash.
    """
    o, stage = options, sources.stage or ("segment" if options.segmentation else "reconstruct")
    image = rotate_randomly(image, rng, o.rotation_probability, degrees=90.0)
    mix = np.array(o.segment_mix if stage == "segment" else o.reconstruct_mix)
    kind = (ppa, dpa, None)[rng.choice(3, p=mix / mix.sum())]
    corrupted, mask = image, np.zeros(image.shape[1:], np.float32)
    if kind is not None:
        corrupted, mask, draws = kind(image, rng, o, sources)
        if sources.notes is not None:
            sources.notes.append({"ppa": int(kind is ppa), "draws": draws})
    similar = {"self": image, "none": corrupted}.get(o.train_similar)  # pasted into itself, an example stays as it is
    if similar is None:
        similar = sources.images[draw_similar(rng, o, sources)].float() / 255
    return Batch(image, corrupted, torch.from_numpy(mask)[None], similar)


def repair_mask(probabilities: Tensor, threshold: float, area: float) -> Tensor:
    """Computes M_b: 1 where M_p (B, 1, H, W) >= `threshold`, if 8-connected in `area` pixels or more (algorithm 1)."""
    kept = np.stack([remove_small(mask[0], area) for mask in (probabilities >= threshold).cpu().numpy()])
    return torch.from_numpy(kept).unsqueeze(1).to(probabilities)


def repair(images: Tensor, similar: Tensor, mask: Tensor) -> Tensor:
    """Computes M_b I_s + (1 - M_b) I_a; exactly I_s where the mask is 1, exactly I_a where it is 0."""
    return mask * similar + (1 - mask) * images


class Outcome(NamedTuple):
    """Holds the results of each part of the method."""

    probabilities: Tensor  # M_p, (B, 1, H, W) in [0, 1]
    mask: Tensor  # M_b, (B, 1, H, W) in {0, 1}
    repaired: Tensor  # I_r, (B, 3, H, W)
    reconstruction: Tensor  # Y, (B, 3, H, W), not clipped


class SeRNet(Method):
    """Segments large defects, repairs them from a similar image, reconstructs the rest."""

    Options = Options
    presets = PRESETS
    ablations = ABLATIONS
    changeable = ("threshold", "area", "score", "colour_weight", "weight_on", "colour", "msgms_variant",
                  "msgms_scales", "smooth_side")  # fmt: skip
    corrupt = staticmethod(corrupt)

    def __init__(self, options: Options = Options()):
        super().__init__(options)
        check(o := self.options)
        names = ("segment", "reconstruct") if o.segmentation else ("reconstruct",)
        self.stages = tuple(Stage(name, *training_length(o.epochs, o.steps)) for name in names)
        self.needs = {"textures": "--ppa-source textures"} if o.ppa_source == "textures" else {}
        b, skip = o.width, o.segmentation_skip
        self.segmenter = PlainUNet(channels=1, widths=(b, 2 * b, 4 * b), skip=skip) if o.segmentation else None
        self.reconstructor = PlainUNet(channels=3, widths=(b, 2 * b, 4 * b, 8 * b, 8 * b), skip="concat")
        if o.segmentation:
            nn.init.constant_(self.segmenter.out.bias, o.mask_bias)
        self.needs_bank = o.segmentation and o.repair == "similar" and o.similar != "self"
        self.bank = Bank(o.size)  # filled by `prepare` with what test images are repaired from

    @staticmethod
    def image_hash(image: np.ndarray, options: Options) -> np.ndarray:
        """Computes the perceptual hash of an image at full resolution."""
        return perceptual_hash(image)

    def segment_and_repair(self, images: Tensor, similar: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Computes M_p, M_b and I_r (see `Outcome`) of images and the similar images, (B, 3, H, W) both."""
        o, mask = self.options, torch.zeros_like(images[:, :1])
        if self.segmenter is None:
            return mask, mask, images
        probabilities = self.segmenter(images).float().sigmoid()
        if o.repair == "none":
            return probabilities, mask, images
        mask = repair_mask(probabilities, o.threshold, o.area * images[0, 0].numel())
        if o.repair != "similar":
            similar = images.mean(dim=(2, 3), keepdim=True) if o.repair == "mean" else torch.zeros_like(images)
        return probabilities, mask, repair(images, similar, mask)

    def rebuild(self, repaired: Tensor) -> Tensor:
        """Applies the second network: I_r -> Y, (B, 3, H, W) both."""
        output = self.reconstructor(repaired).float()
        return output.sigmoid() if self.options.output == "sigmoid" else output

    def forward(self, images: Tensor, similar: Tensor) -> Outcome:
        """Applies all three parts to images and similar images, (B, 3, H, W) in [0, 1] both."""
        found = self.segment_and_repair(images, similar)
        return Outcome(*found, self.rebuild(found[-1]))

    def loss(self, batch: Batch, stage: str) -> dict[str, Tensor]:
        """Computes the loss of the mask, or of the reconstruction behind the frozen first network.

        Statistics of the second stage: "repair/replaced" and "repair/found", the replaced shares of all pixels and of
        those of pseudo-anomalies, small ones included (NaN: no anomaly); `channel_signs` of the reconstruction.
        """
        if stage == "segment":
            probabilities = self.segmenter(batch.corrupted).float().sigmoid()
            return self.terms(probabilities, batch.mask, self.options.segmentation_loss)
        if self.segmenter is not None:
            self.segmenter.eval()
        with torch.no_grad():
            _, mask, repaired = self.segment_and_repair(batch.corrupted, batch.similar)
        anomalous = batch.mask > 0
        statistics = {"repair/replaced": mask.mean(), "repair/found": (mask * anomalous).sum() / anomalous.sum()}
        return self.terms(y := self.rebuild(repaired), batch.clean) | statistics | channel_signs(y, batch.clean)

    def terms(self, output: Tensor, target: Tensor, kind: str = "mse+ssim") -> dict[str, Tensor]:
        """Computes squared error and SSIM, or binary cross-entropy, and their sum "total"."""
        if kind == "bce":
            with torch.autocast(output.device.type, enabled=False):
                terms = {"bce": F.binary_cross_entropy(output, target)}
        else:
            terms = {"mse": F.mse_loss(output, target), "ssim": 1 - ssim(output, target, "gaussian", padding="zero")}
        return {**terms, "total": sum(terms.values())}

    def optimizer(self, stage: str):
        """Makes Adam for the network of the stage; the rate falls by MILESTONE_FACTOR at each milestone."""
        network = self.segmenter if stage == "segment" else self.reconstructor
        optimizer = torch.optim.Adam(network.parameters(), lr=self.options.learning_rate)
        milestones = [round(share * self.stages[0].length) for share in MILESTONES]
        return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, MILESTONE_FACTOR)

    def anomaly_map(self, images: Tensor, context: Context = Context()) -> Tensor:
        """Compares images with their reconstructions, clipped: (B, 3, H, W) in [0, 1] -> A (B, 1, H, W)."""
        images = self.admit(images, size=self.options.size)
        return self.compare(images, self(images, self.find_similar(images, context)[0]).reconstruction.clamp(0, 1))

    def compare(self, x: Tensor, y: Tensor) -> Tensor:
        """Computes A: (B, 3, H, W) in [0, 1] twice -> (B, 1, H, W)."""
        o = self.options
        if o.score != "sum":
            return self.structure_term(x, y) if o.score == "structure" else self.colour_term(x, y)
        weights = (1.0, o.colour_weight) if o.weight_on == "colour" else (o.colour_weight, 1.0)
        return weights[0] * self.structure_term(x, y) + weights[1] * self.colour_term(x, y)

    def structure_term(self, x: Tensor, y: Tensor) -> Tensor:
        """Computes S_g."""
        o = self.options
        return mean_filter(1 - msgms(x, y, o.msgms_scales, *MSGMS_VARIANTS[o.msgms_variant]), o.smooth_side, "reflect")

    def colour_term(self, x: Tensor, y: Tensor) -> Tensor:
        """Computes S_c, or EdgRec's, which has a filter of 11 x 11, rounded."""
        if self.options.colour == "edgrec":
            return mean_filter(edgrec_colour(x, y), 11, "reflect").round()
        difference = (cielab(x) - cielab(y))[:, 1:]
        difference = difference.square() if self.options.colour == "squared" else difference.abs()
        return mean_filter(difference.sum(dim=1, keepdim=True), self.options.smooth_side, "reflect")

    def prepare(self, sources: Sources, stage: str, stream: Stream) -> None:
        """Fills the bank of algorithm 2 before the first stage and warns of its size."""
        if stage != self.stages[0].name or not self.needs_bank:
            return
        self.bank.fill(sources.images, sources.hashes)
        mb = sum(buffer.numel() for buffer in self.bank.buffers()) / 1e6
        warnings.warn(f"every checkpoint holds the {len(self.bank)} normal images of the bank, {mb:.2f} MB", Notice, 2)

    def finish(self, stage: str, statistics: dict[str, float]) -> None:
        """Warns, after the second stage, if less than 5 % of the pseudo-anomalies, large ones too, was repaired."""
        o, found = self.options, statistics.get("repair/found", 1.0)
        if o.segmentation and o.repair != "none" and o.reconstruct_mix[0] and found < 0.05:
            text = f"of the pseudo-anomalies' pixels {found:.1%} is repaired, at --threshold {o.threshold:g}"
            warnings.warn(f"{text} --area {o.area:g}; a lower threshold in a new run may help", Notice, 2)

    def find_similar(self, images: Tensor, context: Context = Context()) -> tuple[Tensor, list[str]]:
        """Finds the normal image that repairs each image (algorithm 2); returns (B, 3, H, W) and a caption of each.

        `context` has `rngs` for --similar random, and `hashes` of the images' files, uint8 (8,) each, without which the
        images, in [0, 1], are hashed and compared with the resized training images. UserError: the bank is empty.
        """
        o, hashes, count = self.options, context.hashes, len(self.bank)
        if hashes is not None and [np.shape(one) for one in hashes] != [(8,)] * len(images):
            raise ValueError(f"expected {len(images)} hashes from `image_hash`, uint8 (8,) arrays; got {hashes}")
        if not self.needs_bank:
            return images, ["the image itself"] * len(images)
        if count == 0:
            raise UserError("the bank of normal images is empty: training has saved nothing yet (or call `prepare`)")
        if o.similar == "phash":
            found = [self.bank.search(query) for query in (images if hashes is None else hashes)]
            indices, captions = [i for i, _ in found], [f"{distance} of 64 bits apart" for _, distance in found]
        else:
            rngs = context.rngs or [np.random.default_rng(0) for _ in images]
            indices = [int(rng.integers(count)) if o.similar == "random" else 0 for rng in rngs]
            captions = [f"number {index + 1} of {count}" for index in indices]
        return self.bank.pictures[indices].to(images) / 255, captions

    def figures(self, image: Tensor | None = None, context: Context = Context()) -> dict[str, Tensor]:
        """Shows the repair of one image step by step."""
        if image is None:
            return {}
        similar, captions = self.find_similar(image, context)
        outcome, shown = self(image, similar), {}
        if self.segmenter is not None:
            shown = {"predicted mask": outcome.probabilities[0], "repaired region": outcome.mask[0]}
            shown |= {f"similar image, {captions[0]}": similar[0]} if self.options.repair == "similar" else {}
            shown["repaired"] = outcome.repaired[0]
        return {**shown, "reconstruction": outcome.reconstruction[0].clamp(0, 1)}
