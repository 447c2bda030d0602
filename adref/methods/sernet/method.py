"""SeRNet: segment large defects, repair them from a similar normal image, reconstruct the rest.

"SeRNet: Segmentation Helps Reconstruction for Anomaly Detection", Applied Sciences 2026, 16(4), 1670. The text that was
at hand has lost every formula, every symbol, all figures, table 1 and the experiments; no code of its authors is known.
All equations below are therefore reconstructed, from its words and from the works that it builds on, and each guess is
a record in DEVIATIONS. "U" marks a value from those works: DRAEM, EdgRec (the anomaly map), RIAD (SSIM loss, MSGMS),
ImageHash.

A reconstruction network does not remove large defects. So a first network, trained on large pseudo-anomalies (PPA),
segments them; what is large enough is pasted over with the pixels of the training image that looks most alike (by
perceptual hash); a second network, trained on large and small (DPA) pseudo-anomalies behind the frozen first,
reconstructs the normal image. The map compares structure and colour of the image with that.

What an audit should know before it trusts the article:
- Repaired from the image itself (D13), a training sample shows the second network no other image's pixels: the seams
  of pasting that it is said to remove come from mistakes of the first network alone.
- The "16-bit hash" has 64 bits, 16 hexadecimal digits (D15); 3,416 training images are not MVTec AD's 3,629 (D16).
- A defect that the first network misses, or that is smaller than the area, is pasted over by nothing; what the similar
  image has in another place (turned or moved parts) is pasted in: the map then shows the difference of two good parts.
- Squared error and SSIM of a mask that is mostly empty (equation 3) have an easy answer, the empty mask; at three times
  the default rate it is found, and kept (D31).
- Gradient similarity has no sign: an inverted picture scores as normal but for its colour, and its frame (D21).

Symbols
    I, I_a, M      normal image, with pseudo-anomaly, its mask    S, beta    source image, blending weight
    M_p, M_b       predicted mask, mask of what is repaired       I_s, I_r   similar image, repaired image
    X, Y           image, its reconstruction                      b, c_k     change of brightness, of channel k
    S_g, S_c       differences of structure and colour            c          weight of colour

Equations (reconstructed, numbered here)
    (1) I_a = (1 - M) I + (1 - beta) M S + beta M I          pseudo_anomaly.blend_source
    (2) I_a = (1 - M) I + M clip(I + b + c_k)                pseudo_anomaly.shift_colour
    (3) L(A, B) = mean (A - B)^2 + 1 - SSIM(A, B)            SeRNet.terms, losses.ssim
    (4) I_r = M_b I_s + (1 - M_b) I_a                        repair
    (5) S_c = box((a_X - a_Y)^2 + (b_X - b_Y)^2)             SeRNet.colour_term, image.cielab
    (6) S_g = box(1 - MSGMS(X, Y))                           SeRNet.structure_term, image.msgms
    (7) A = S_g + c S_c, score max A                         SeRNet.compare

Algorithms and tables
    (Algorithm 1) threshold, drop small regions, paste       repair_mask, repair
    (Algorithm 2) the nearest of all hashes                  SeRNet.find_similar, image.nearest

Not built
    The article's experiments, whose section is lost: ABLATIONS has variants of what its text speaks of.
"""

import warnings
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adref.layers.unet import PlainUNet
from adref.method import Context, Method, Sources, Stage, Stream, check_images
from adref.methods.sernet.anomalies import paste, spread
from adref.methods.sernet.map import cielab, edgrec_colour, msgms
from adref.methods.sernet.options import ABLATIONS, PRESETS, Options, check
from adref.methods.sernet.similar import Bank, perceptual_hash, similar_index
from adref.ops.filters import gaussian_smooth, mean_filter
from adref.ops.image import remove_small
from adref.ops.losses import ssim
from adref.ops.texture_anomaly import rotate_randomly
from adref.options import Notice, UserError


class Batch(NamedTuple):
    clean: Tensor  # (B, 3, H, W) in [0, 1]
    corrupted: Tensor  # (B, 3, H, W)
    mask: Tensor  # (B, 1, H, W), 1 = corrupted
    similar: Tensor  # (B, 3, H, W), what the repair pastes


# -- the corrupted image: all of the method's randomness --------------------------------------------------------------


def corrupt(image: Tensor, rng: np.random.Generator, options: Options, sources: Sources) -> Batch:
    """One training example: a large pseudo-anomaly (PPA), a small one (DPA), or none, by the mix of the stage (D18).

    Args:
        image: (3, H, W) in [0, 1].
        rng: the stream of this example.
        options: the method's options.
        sources: `images`, or `textures`, to paste from; `stage`; `index`, lest an image is pasted into itself, and
            `hashes` where --train-similar wants them.

    Returns:
        clean, corrupted and similar image (3, H, W), mask (1, H, W).
    """
    o = options
    image = rotate_randomly(image, rng, o.rotation_probability, o.rotation_degrees)  # D19
    stage = sources.stage or ("segment" if o.segmentation else "reconstruct")
    mix = np.array(o.segment_mix if stage == "segment" else o.reconstruct_mix)
    kind = (paste, spread, None)[rng.choice(3, p=mix / mix.sum())]
    corrupted, mask = image, np.zeros(image.shape[1:], np.float32)
    if kind:
        corrupted, mask, draws = kind(image, rng, o, sources)
        if sources.notes is not None:
            sources.notes.append({"ppa": int(kind is paste), "draws": draws})
    similar = image
    if o.train_similar != "self":  # D13
        similar = sources.images[similar_index(rng, o, sources)].float() / 255
    return Batch(image, corrupted, torch.from_numpy(mask)[None], similar)


# -- the repair -------------------------------------------------------------------------------------------------------


def repair_mask(
    probabilities: Tensor, threshold: float = 0.5, area: float = 0.0, connectivity: int = 8, inclusive: bool = True
) -> Tensor:
    """M_b of Algorithm 1: what is to be repaired (D11, D12).

    Args:
        probabilities: M_p, (B, 1, H, W) in [0, 1].
        threshold: pixels above it count; those equal to it, if `inclusive`.
        area: connected regions of fewer pixels than this do not.
        connectivity: 8 or 4.

    Returns:
        (B, 1, H, W) in {0, 1}, in the type of `probabilities`.
    """
    binary = (probabilities >= threshold if inclusive else probabilities > threshold).cpu().numpy()
    kept = np.stack([remove_small(mask[0], area, connectivity) for mask in binary])
    return torch.from_numpy(kept).unsqueeze(1).to(probabilities)


def repair(images: Tensor, similar: Tensor, mask: Tensor) -> Tensor:
    """Equation 4: M_b I_s + (1 - M_b) I_a; exactly I_s where the mask is 1, exactly I_a where it is 0."""
    return mask * similar + (1 - mask) * images


# -- the method -------------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What SeRNet makes of a batch, step by step."""

    probabilities: Tensor  # M_p, (B, 1, H, W) in [0, 1]
    mask: Tensor  # M_b, (B, 1, H, W) in {0, 1}; between them where it is feathered
    repaired: Tensor  # I_r, (B, 3, H, W)
    reconstruction: Tensor  # Y, (B, 3, H, W), not clipped


class SeRNet(Method):
    """Segment, repair, reconstruct."""

    Options = Options
    presets = PRESETS
    ablations = ABLATIONS
    corrupt = staticmethod(corrupt)

    def __init__(self, options: Options = Options()):
        super().__init__(options)
        check(o := self.options)
        b, form = o.width, {"convolutions": o.convolutions, "align_corners": o.align_corners}
        names = ("segment", "reconstruct") if o.segmentation else ("reconstruct",)
        self.stages = tuple(Stage(name, o.epochs) for name in names)
        self.needs = {"textures": "--ppa-source textures"} if o.ppa_source == "textures" else {}
        # D2, D3, D29, D30
        self.segmenter = PlainUNet(1, (b, 2 * b, 4 * b), skip=o.segmentation_skip, **form) if o.segmentation else None
        widths = (b, 2 * b, 4 * b, 8 * b, o.bottom_factor * b)
        self.reconstructor = PlainUNet(3, widths, skip=o.reconstruction_skip, **form)
        self.bank = Bank(o.size)  # `prepare` fills it

    @staticmethod
    def image_hash(image: np.ndarray, options: Options) -> np.ndarray | None:
        """The perceptual hash of a picture at its own size; at --size, `prepare` and `find_similar` see to it (D14)."""
        return perceptual_hash(image) if options.hash_on == "file" else None

    # -- training

    def loss(self, batch: Batch, stage: str | None = None) -> dict[str, Tensor]:
        """Equation 3 of the mask, or of the reconstruction behind the frozen first network (D28); None: the first.

        Statistics of the second stage: "repair/replaced", the share of pixels that the repair replaced, and
        "repair/found", that of the pseudo-anomalies' pixels (NaN: there are none); small ones are not to be repaired.
        """
        if (stage or self.stages[0].name) == "segment":
            probabilities = self.segmenter(batch.corrupted).float().sigmoid()
            return self.terms(probabilities, batch.mask, self.options.segmentation_loss)
        if self.segmenter is not None:
            self.segmenter.eval()
        with torch.no_grad():
            _, mask, repaired = self.segment_and_repair(batch.corrupted, batch.similar)
        anomalous = batch.mask > 0
        statistics = {"repair/replaced": mask.mean(), "repair/found": (mask * anomalous).sum() / anomalous.sum()}
        return self.terms(self.rebuild(repaired), batch.clean) | statistics

    def terms(self, output: Tensor, target: Tensor, kind: str = "mse+ssim") -> dict[str, Tensor]:
        """Equation 3 with its weights, or binary cross-entropy (D17); "total" is the sum."""
        o = self.options
        if kind == "bce":
            with torch.autocast(output.device.type, enabled=False):
                terms = {"bce": F.binary_cross_entropy(output, target)}
        else:
            terms = {
                "mse": o.mse_weight * F.mse_loss(output, target),
                "ssim": o.ssim_weight * (1 - ssim(output, target, padding=o.ssim_padding)),
            }
        return {**terms, "total": sum(terms.values())}

    def optimizer(self, stage: str | None = None):
        """Adam on the network of the stage; the rate falls by `milestone_factor` at each milestone (D19)."""
        o, first = self.options, (stage or self.stages[0].name) == "segment"
        network = self.segmenter if first else self.reconstructor
        optimizer = torch.optim.Adam(network.parameters(), lr=o.learning_rate)
        milestones = [round(share * o.epochs) for share in o.milestones]
        return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, o.milestone_factor)

    # -- the bank of normal images

    @property
    def needs_bank(self) -> bool:
        """Whether test images are repaired from training images."""
        return self.options.segmentation and self.options.repair == "similar" and self.options.similar != "self"

    def prepare(self, sources: Sources, stage: str, stream: Stream) -> None:
        """Fills the bank of Algorithm 2 before the first stage, and says its size: hashes, pictures or paths (D26).

        Raises:
            ValueError: --bank paths, and the pictures have none.
        """
        if stage != self.stages[0].name or not self.needs_bank:
            return
        paths = sources.paths if self.options.bank == "paths" else None
        if self.options.bank == "paths" and paths is None:
            raise ValueError("expected Sources.paths for --bank paths")
        self.bank.fill(sources.images, sources.hashes, paths)
        size = sum(buffer.numel() for buffer in self.bank.buffers()) / 1e6
        text = f"every checkpoint holds the bank of {len(self.bank)} normal images ({self.options.bank}), {size:.2f} MB"
        warnings.warn(text, Notice, stacklevel=2)

    def find_similar(self, images: Tensor, context: Context = Context()) -> tuple[Tensor, list[str]]:
        """Algorithm 2: the normal image that repairs each image.

        Args:
            images: (B, 3, H, W) in [0, 1].
            context: `rngs` for --similar random; `hashes` of the images' files, without which the images are hashed as
                they are, and compared with hashes of the resized training images (D14).

        Returns:
            (B, 3, H, W), and words for the eye about each.

        Raises:
            UserError: the bank is empty.
            ValueError: the context's hashes are not one uint8 (8,) array an image.
        """
        hashes = context.hashes
        if hashes is not None and [np.shape(one) for one in hashes] != [(8,)] * len(images):
            raise ValueError(f"expected {len(images)} hashes from `image_hash`, uint8 (8,) arrays; got {hashes}")
        if not self.needs_bank:
            return images, ["the image itself"] * len(images)
        count, found, words = len(self.bank), [], []
        if count == 0:
            raise UserError(
                "the bank of normal images is empty: the run has saved nothing of its training yet (or, in a program "
                "of one's own, `prepare` was not called)"
            )
        for i, image in enumerate(images):
            if self.options.similar == "phash":
                index, distance = self.bank.search(image if hashes is None else hashes[i])  # D26, D27
                words.append(f"{distance} of 64 bits apart")
            else:
                rng = context.rngs[i] if context.rngs is not None else np.random.default_rng(0)
                index = int(rng.integers(count)) if self.options.similar == "random" else 0
                words.append(f"number {index + 1} of {count}")
            found.append(self.bank.picture(index, None).to(images) / 255)
        return torch.stack(found), words

    # -- inference

    def segment_and_repair(self, images: Tensor, similar: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """M_p, M_b and I_r (see `Outcome`) of images and what is pasted into them, (B, 3, H, W) both."""
        o, mask = self.options, images.new_zeros(len(images), 1, *images.shape[2:])
        if self.segmenter is None:
            return mask, mask, images
        probabilities = self.segmenter(images).float().sigmoid()
        if o.repair == "none":
            return probabilities, mask, images
        area = o.area * images[0, 0].numel()
        mask = repair_mask(probabilities, o.threshold, area, o.connectivity, o.threshold_inclusive)
        if o.repair != "similar":
            similar = images.mean(dim=(2, 3), keepdim=True) if o.repair == "mean" else torch.zeros_like(images)
        mask = gaussian_smooth(mask, o.feather)
        return probabilities, mask, repair(images, similar, mask)

    def rebuild(self, repaired: Tensor) -> Tensor:
        """The second network: I_r -> Y, (B, 3, H, W) both (D4)."""
        output = self.reconstructor(repaired).float()
        return output.sigmoid() if self.options.output_activation == "sigmoid" else output

    def forward(self, images: Tensor, similar: Tensor) -> Outcome:
        """(B, 3, H, W) in [0, 1], and what repairs them alike, through all three parts."""
        found = self.segment_and_repair(images, similar)
        return Outcome(*found, self.rebuild(found[-1]))

    def anomaly_map(self, images: Tensor, context: Context = Context()) -> Tensor:
        """Equation 7 of each image and its reconstruction, clipped (D24): (B, 3, H, W) in [0, 1] -> (B, 1, H, W)."""
        check_images(images, size=self.options.size)
        outcome = self(images, self.find_similar(images, context)[0])
        return self.compare(images, outcome.reconstruction.clamp(0, 1))

    def compare(self, x: Tensor, y: Tensor) -> Tensor:
        """Equation 7: (B, 3, H, W) in [0, 1] twice -> (B, 1, H, W) (D23)."""
        o = self.options
        if o.score != "sum":
            return self.structure_term(x, y) if o.score == "structure" else self.colour_term(x, y)
        weights = (1.0, o.colour_weight) if o.weight_on == "colour" else (o.colour_weight, 1.0)
        return weights[0] * self.structure_term(x, y) + weights[1] * self.colour_term(x, y)

    def structure_term(self, x: Tensor, y: Tensor) -> Tensor:
        """Equation 6, S_g (D21)."""
        o = self.options
        return self.smoothed(1 - msgms(x, y, o.msgms_scales, o.msgms_grey, o.msgms_padding))

    def colour_term(self, x: Tensor, y: Tensor) -> Tensor:
        """Equation 5, S_c, or EdgRec's, which has a filter of its own (D20)."""
        if self.options.colour == "edgrec":
            return mean_filter(edgrec_colour(x, y), 11, "reflect").round()
        difference = (cielab(x) - cielab(y))[:, 1:]
        difference = difference.square() if self.options.colour_norm == "squared" else difference.abs()
        return self.smoothed(difference.sum(dim=1, keepdim=True))

    def smoothed(self, maps: Tensor) -> Tensor:
        """The filter of both terms (D22)."""
        o = self.options
        if o.smooth == "gaussian":
            return gaussian_smooth(maps, o.smooth_side / 3)
        return mean_filter(maps, o.smooth_side, o.smooth_border)

    def figures(self, image: Tensor | None = None, context: Context = Context()) -> dict[str, Tensor]:
        """Shows the repair of one image step by step."""
        if image is None:
            return {}
        similar, words = self.find_similar(image, context)
        outcome, shown = self(image, similar), {}
        if self.segmenter is not None:
            shown = {"predicted mask": outcome.probabilities[0], "repaired region": outcome.mask[0]}
            if self.options.repair == "similar":
                shown[f"similar image, {words[0]}"] = similar[0]
            shown["repaired"] = outcome.repaired[0]
        return {**shown, "reconstruction": outcome.reconstruction[0].clamp(0, 1)}
