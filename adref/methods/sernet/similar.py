"""SeRNet's similar pictures: perceptual hashes and the bank of training images."""

from collections.abc import Callable, Sequence

import numpy as np
import scipy
import torch
from PIL import Image
from torch import Tensor, nn

from adref.method import Sources
from adref.methods.sernet.anomalies import any_other
from adref.methods.sernet.options import Options
from adref.options import UserError

# -- similar pictures -------------------------------------------------------------------------------------------------


def perceptual_hash(image: np.ndarray) -> np.ndarray:
    """64 bits that pictures which look alike share for the most part, as eight bytes: uint8 (8,).

    The bits of ImageHash's `phash` (J. Buchner; the method is N. Krawetz's): grey values, resized to 32 x 32 with
    Lanczos' filter, two-dimensional DCT-II without normalisation, Y_k = 2 sum_n x_n cos(pi k (2 n + 1) / 64) along
    each axis; a bit for each of the 8 x 8 lowest frequencies, 1 where it is above their median. Row by row, the first
    bit is the highest of the first byte; `.tobytes().hex()` is ImageHash's string.

    Pictures of one colour and pure gradients have coefficients that are 0 but for rounding: their bits mean nothing.

    Args:
        image: uint8 (H, W, 3) or grey (H, W), at its own size: another size has other bits.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)) or image.size == 0:
        raise ValueError(f"expected uint8 (H, W, 3) or (H, W), got {image.dtype} {image.shape}")
    small = Image.fromarray(np.ascontiguousarray(image)).convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    # "ortho" would scale the first row and column, and change bits.
    waves = scipy.fft.dct(scipy.fft.dct(np.asarray(small, np.float64), axis=0), axis=1)[:8, :8]
    return np.packbits(waves > np.median(waves))


def hamming(hashes: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Numbers of bits, 0 to 64, in which hashes, uint8 (n, 8), differ from one, uint8 (8,): (n,)."""
    return _BIT_COUNT[hashes ^ own].sum(axis=1)


def nearest(hashes: np.ndarray, own: np.ndarray, but: int | None = None) -> tuple[int, int]:
    """Index of the nearest of hashes (n, 8), the first of several, and its distance; never that of index `but`.

    Raises:
        ValueError: there is none.
    """
    if len(hashes) <= (but is not None):
        raise ValueError("expected at least one hash to search")
    distances = hamming(hashes, own)
    if but is not None:
        distances[but] = 65
    index = int(distances.argmin())
    return index, int(distances[index])


class Bank(nn.Module):
    """Pictures to be searched by perceptual hash, which travel with a network's weights.

    Buffers, as long as what `fill` was given: `file_hashes` and `picture_hashes` (n, 8), of the files at their own size
    and of the pictures; `pictures` (n, 3, H, W), or else `paths`, the files' names joined by zeros; uint8 all.

    Args:
        size: (H, W).
    """

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        shapes = {"file_hashes": (0, 8), "picture_hashes": (0, 8), "pictures": (0, 3, *size), "paths": (0,)}
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.uint8))

    def __len__(self) -> int:
        return len(self.picture_hashes)

    def fill(
        self, pictures: Sequence[Tensor], files: Sequence | None = None, paths: Sequence[str] | None = None
    ) -> None:
        """Takes pictures in place of what was there.

        Args:
            pictures: uint8 (3, H, W) each.
            files: the hash of each picture's file, if it has another size; items may be None.
            paths: names of the files, which are kept in place of the pictures.
        """
        device, own = self.pictures.device, [_hash(picture) for picture in pictures]
        files = [None] * len(own) if files is None else files
        hashes = [h if file is None else file for h, file in zip(own, files, strict=True)]
        self.file_hashes, self.picture_hashes = (torch.from_numpy(np.stack(h)).to(device) for h in (hashes, own))
        names = bytearray("\0".join(paths or ()).encode("utf-8", "surrogateescape"))
        self.paths = torch.frombuffer(names, dtype=torch.uint8).to(device) if names else self.paths.new_empty(0)
        kept = torch.stack(list(pictures)) if paths is None else self.pictures.new_empty(0, *self.pictures.shape[1:])
        self.pictures = kept.to(device)

    def search(self, image: np.ndarray | Tensor) -> tuple[int, int]:
        """Index and distance of the nearest picture; of several the first.

        Args:
            image: the hash of a file, compared with those of files; or a picture (3, H, W) in [0, 1], which is hashed
                in 8 bits and compared with the pictures.
        """
        known, own = self.file_hashes, image
        if isinstance(image, Tensor):
            known, own = self.picture_hashes, _hash((image * 255).round().byte())
        return nearest(known.cpu().numpy(), own)

    def picture(self, index: int, open_picture: Callable[[str], Tensor] | None = None) -> Tensor:
        """A picture, uint8 (3, H, W).

        Args:
            index: from `search`.
            open_picture: reads a file, where the bank has paths.

        Raises:
            UserError: there is nothing to read the file with, or it is not what it was.
        """
        if len(self.pictures):
            return self.pictures[index]
        path = self.paths.cpu().numpy().tobytes().decode("utf-8", "surrogateescape").split("\0")[index]
        if open_picture is None:
            raise UserError(f"{path} of the bank cannot be read: this method does not come from `adref.load`")
        try:
            picture = open_picture(path)
        except UserError as error:
            raise UserError(f"the bank of similar pictures holds paths, and needs their files: {error}") from None
        if not np.array_equal(_hash(picture), self.picture_hashes[index].cpu().numpy()):
            raise UserError(f"{path} is not the picture that it was in training: its hash differs")
        return picture

    def _load_from_state_dict(self, state: dict, prefix: str, *rest) -> None:
        for name, buffer in self.named_buffers():  # as large as the training set was
            if prefix + name in state:
                setattr(self, name, torch.empty_like(state[prefix + name], device=buffer.device))
        super()._load_from_state_dict(state, prefix, *rest)


def _hash(picture: Tensor) -> np.ndarray:
    """The hash of a picture, uint8 (3, H, W)."""
    return perceptual_hash(picture.permute(1, 2, 0).cpu().numpy())


_BIT_COUNT = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.int64)


def similar_index(rng: np.random.Generator, o: Options, sources: Sources) -> int:
    """The training image that repairs a sample: the nearest other by its look, or any other (D13, D25)."""
    count = len(sources.images)
    if o.train_similar == "random" or count == 1:
        return any_other(rng, count, sources.index)
    if sources.index is None or sources.hashes is None:
        raise ValueError("expected Sources.index and Sources.hashes for --train-similar phash")
    return nearest(np.stack(sources.hashes), sources.hashes[sources.index], but=sources.index)[0]
