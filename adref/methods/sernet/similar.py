"""SeRNet's search for similar images: the perceptual hash and the bank of training images (algorithm 2)."""

from collections.abc import Sequence

import numpy as np
import scipy
import torch
from PIL import Image
from torch import Tensor, nn

from adref.method import Sources
from adref.methods.sernet.anomalies import draw_other
from adref.methods.sernet.options import Options


def perceptual_hash(image: np.ndarray) -> np.ndarray:
    """Hashes an image, uint8 (H, W, 3) or (H, W), to 64 bits, most of which similar images have in common: uint8 (8,).

    The bits of ImageHash's `phash` (J. Buchner; the method is N. Krawetz's): grey values, resized to 32 x 32 with
    Lanczos' filter, two-dimensional DCT-II without normalisation, Y_k = 2 sum_n x_n cos(pi k (2 n + 1) / 64) along
    each axis; a bit for each of the 8 x 8 lowest frequencies, 1 where it is above their median. Row by row, the first
    bit is the highest of the first byte; `.tobytes().hex()` is ImageHash's string. Coefficients of images of one colour
    and of pure gradients are 0 up to rounding: their bits are arbitrary. A resized image has other bits.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)) or image.size == 0:
        raise ValueError(f"expected uint8 (H, W, 3) or (H, W), got {image.dtype} {image.shape}")
    small = Image.fromarray(np.ascontiguousarray(image)).convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    # norm="ortho" would scale the first row and column, and change bits.
    waves = scipy.fft.dct(scipy.fft.dct(np.asarray(small, np.float64), axis=0), axis=1)[:8, :8]
    return np.packbits(waves > np.median(waves))


def hamming(hashes: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Counts the bits, 0 to 64, in which hashes, uint8 (n, 8), differ from one, uint8 (8,): (n,)."""
    return np.unpackbits(hashes ^ query, axis=1).sum(axis=1, dtype=np.int64)


def nearest(hashes: np.ndarray, query: np.ndarray, exclude: int | None = None) -> tuple[int, int]:
    """Finds the nearest of hashes (n, 8), the first of several, without index `exclude`: its index and distance."""
    distances = hamming(hashes, query)
    if exclude is not None:
        distances[exclude] = 65
    return int(distances.argmin()), int(distances.min())


class Bank(nn.Module):
    """Training images that can be searched by perceptual hash; they are saved with a network's weights.

    Buffers, uint8, one row an image, none before `fill`: `file_hashes` (n, 8) of the images at full resolution,
    `picture_hashes` (n, 8) of the resized ones, and these, `pictures` (n, 3, H, W), (H, W) = `size`.
    """

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        for name, shape in {"file_hashes": (0, 8), "picture_hashes": (0, 8), "pictures": (0, 3, *size)}.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.uint8))

    def __len__(self) -> int:
        return len(self.pictures)

    def fill(self, pictures: Sequence[Tensor], file_hashes: Sequence[np.ndarray] | None = None) -> None:
        """Replaces the content by uint8 (3, H, W) each; without hashes of their files they were not resized."""
        device, hashes = self.pictures.device, [_hash(picture) for picture in pictures]
        self.picture_hashes = torch.from_numpy(np.stack(hashes)).to(device)
        self.file_hashes = torch.from_numpy(np.stack(hashes if file_hashes is None else file_hashes)).to(device)
        self.pictures = torch.stack(list(pictures)).to(device)

    def search(self, query: np.ndarray | Tensor) -> tuple[int, int]:
        """Finds the nearest picture, the first of several; returns its index and distance.

        The query is the hash of an image at full resolution, compared with `file_hashes`; or an image (3, H, W) in
        [0, 1], which is rounded to 8 bits, hashed and compared with `picture_hashes`.
        """
        if isinstance(query, Tensor):
            return nearest(self.picture_hashes.cpu().numpy(), _hash((query * 255).round().byte()))
        return nearest(self.file_hashes.cpu().numpy(), query)

    def _load_from_state_dict(self, state: dict, prefix: str, *rest) -> None:
        for name, buffer in self.named_buffers():  # take the length of the saved bank
            if prefix + name in state:
                setattr(self, name, torch.empty_like(state[prefix + name], device=buffer.device))
        super()._load_from_state_dict(state, prefix, *rest)


def _hash(picture: Tensor) -> np.ndarray:
    return perceptual_hash(picture.permute(1, 2, 0).cpu().numpy())


def draw_similar(rng: np.random.Generator, o: Options, sources: Sources) -> int:
    """Chooses the training image that repairs a training example: the nearest other by hash, or any other."""
    count = len(sources.images)
    if o.train_similar == "random" or count == 1:
        return draw_other(rng, count, sources.index)
    if sources.index is None or sources.hashes is None:
        raise ValueError("expected Sources.index and Sources.hashes for --train-similar phash")
    return nearest(np.stack(sources.hashes), sources.hashes[sources.index], exclude=sources.index)[0]
