"""Classical image operations: grey values, Otsu's and the triangle threshold, morphology, regions; perceptual hash and
its search; CIELAB; gradient magnitude similarity.

Pictures are numpy arrays with the channels last, masks are bool; the last two run where the networks do, on batches
(B, C, H, W).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import scipy
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from adref.options import UserError


def grey(image: np.ndarray, rule: Literal["luma", "mean", "opencv"] = "luma") -> np.ndarray:
    """One grey value a pixel: uint8 (H, W, 3) -> uint8 (H, W).

    "luma": ITU-R 601, 0.299 R + 0.587 G + 0.114 B, in the 16-bit fixed point of Pillow's mode "L", bit for bit;
    "opencv": the same in the 15 bits of OpenCV's cvtColor, bit for bit, which differs by 1 at most; "mean": of the
    three channels, rounded to the nearest.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or rule not in ("luma", "mean", "opencv"):
        raise ValueError(f"expected uint8 (H, W, 3), luma, mean or opencv; got {image.dtype} {image.shape}, {rule!r}")
    if rule == "mean":
        return ((image.sum(2, dtype=np.uint32) + 1) // 3).astype(np.uint8)
    weights, bits = ((19595, 38470, 7471), 16) if rule == "luma" else ((9798, 19235, 3735), 15)
    # In units of 1 / 2^bits all numbers are integers below 2^24, which float32 has: the fastest product, and exact.
    return (image.astype(np.float32) @ (np.float32(weights) / 2**bits) + np.float32(0.5)).astype(np.uint8)


class Otsu(NamedTuple):
    """Otsu's threshold and how well it parts the grey values."""

    threshold: int  # tau: the upper class is grey > tau
    between: float  # sigma_b^2(tau), the variance between the classes
    separability: float  # eta = sigma_b^2(tau) / total variance, in [0, 1]; 0 for a picture of one grey value


def otsu(image: np.ndarray) -> Otsu:
    """The threshold that maximises the variance between two classes of grey values; of several, the first.

    N. Otsu, "A threshold selection method from gray-level histograms", IEEE SMC 1979 (SRDAD, Eq 1). With the histogram
    p, w0 = sum_{i <= t} p_i, m = sum_{i <= t} i p_i and the mean mT,

        sigma_b^2(t) = (mT w0 - m)^2 / (w0 (1 - w0)),   0 where a class is empty.

    Args:
        image: uint8, any shape. Values a < b alone make a plateau from a to b - 1, whose first element is a.
    """
    p = np.bincount(image.ravel(), minlength=256) / image.size
    levels = np.arange(256)
    w0, m = np.cumsum(p), np.cumsum(levels * p)
    spread = w0 * (1 - w0)
    filled = (w0 > 0) & (np.cumsum(p[::-1])[::-1] - p > 0)  # pixels on both sides of t
    between = np.divide((m[-1] * w0 - m) ** 2, spread, out=np.zeros(256), where=filled & (spread > 0))
    # Rounding must not lift a later point of a plateau above its first.
    tau = int(np.argmax(between >= between.max() * (1 - 1e-12)))
    total = float(((levels - m[-1]) ** 2 * p).sum())
    return Otsu(tau, float(between[tau]), min(float(between[tau] / total), 1.0) if total > 0 else 0.0)


def triangle(image: np.ndarray) -> int:
    """The threshold farthest below the line from the histogram's peak to the end of its longer tail.

    G. Zack, W. Rogers, S. Latt, "Automatic measurement of sister chromatid exchange frequency", J. Histochem.
    Cytochem. 1977, as OpenCV has it. With the counts h, the peak p (the first) and the last empty level l before the
    tail, mirrored if the tail is on the right, the result is one below the first level i in (l, p] that maximises

        h_p i - (p - l) h_i,   l itself where nothing is above 0

    Args:
        image: uint8, any shape.

    Returns:
        t in [-1, 255]: the upper class is value > t. For a picture of one value v > 1 that is v - 1, so all of it; -1
        for 1, and 1 for 0, as in OpenCV.
    """
    h = np.bincount(image.ravel(), minlength=256)
    filled, p = np.flatnonzero(h), int(h.argmax())
    low, high = max(int(filled[0]) - 1, 0), min(int(filled[-1]) + 1, 255)
    mirrored = p - low < high - p
    if mirrored:
        h, low, p = h[::-1], 255 - high, 255 - p
    distance = h[p] * np.arange(low, p + 1) - (p - low) * h[low : p + 1]
    distance[0] = 0  # the end of the tail is taken where no level is above it
    threshold = low + int(distance.argmax()) - 1
    return 255 - threshold if mirrored else threshold


def morphology(mask: np.ndarray, operation: Literal["closing", "opening", "none"] = "closing") -> np.ndarray:
    """Closing (dilate, then erode) or opening of a bool (H, W) with a 3 x 3 square, once.

    Pixels outside count as 0 for the dilation and as 1 for the erosion, as in OpenCV: an object that touches the frame
    is not eroded there (as scipy's `binary_closing` would).
    """
    if operation not in ("closing", "opening", "none"):
        raise ValueError(f"expected closing, opening or none, got {operation!r}")
    dilate, erode = partial(_neighbourhood, np.logical_or, False), partial(_neighbourhood, np.logical_and, True)
    if operation == "closing":
        return erode(dilate(mask))
    return dilate(erode(mask)) if operation == "opening" else mask


def _neighbourhood(join: np.ufunc, outside: bool, mask: np.ndarray) -> np.ndarray:
    """Joins each pixel of a bool (H, W) with its eight neighbours."""
    height, width = mask.shape
    framed = np.full((height + 3, width + 2), outside)
    framed[1 : height + 1, 1 : width + 1] = mask
    flat = framed.ravel()  # in which a neighbour is always the same number of steps away: whole arrays are joined
    for step in (1, width + 2):
        flat = join(join(flat[: -2 * step], flat[step:-step]), flat[2 * step :])
    return flat[: height * (width + 2)].reshape(height, width + 2)[:, :width]


def frame_share(mask: np.ndarray, width: int = 5) -> float:
    """The share of a bool (H, W) that is set within the frame, `width` pixels wide."""
    inner = mask[width:-width, width:-width]
    return float((mask.sum() - inner.sum()) / (mask.size - inner.size))


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Background that does not reach the frame becomes object; bool (H, W)."""
    return scipy.ndimage.binary_fill_holes(mask)


def remove_small(mask: np.ndarray, least: float, connectivity: Literal[8, 4] = 8) -> np.ndarray:
    """A bool (H, W) without its regions of fewer than `least` pixels, which touch at sides and corners, or sides."""
    labels, count = scipy.ndimage.label(mask, np.ones((3, 3)) if connectivity == 8 else None)
    kept = np.bincount(labels.ravel(), minlength=count + 1) >= least
    kept[0] = False
    return kept[labels]


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


# -- colour and structure ---------------------------------------------------------------------------------------------

_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
_WHITE = (0.95047, 1.0, 1.08883)  # D65, 2 degrees


def cielab(images: Tensor) -> Tensor:
    """sRGB to CIELAB under D65: (B, 3, H, W) in [0, 1] -> L in [0, 100], a and b.

    IEC 61966-2-1 and CIE 15. With linear light v = c / 12.92 up to 0.04045, else ((c + 0.055) / 1.055)^2.4, and X, Y, Z
    relative to white, f(t) = t^(1/3) above (6/29)^3, else ((29/3)^3 t + 16) / 116:

        L = 116 f(Y) - 16,  a = 500 (f(X) - f(Y)),  b = 200 (f(Y) - f(Z))

    OpenCV and scikit-image round the matrix: their a and b differ by up to 0.005.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected (B, 3, H, W) in [0, 1], got {tuple(images.shape)}")
    light = torch.where(images <= 0.04045, images / 12.92, ((images + 0.055) / 1.055) ** 2.4)
    x, y, z = (
        sum(share * light[:, i : i + 1] for i, share in enumerate(row)) / white for row, white in zip(_XYZ, _WHITE)
    )
    f_x, f_y, f_z = (
        torch.where(t > 216 / 24389, t.clamp_min(216 / 24389) ** (1 / 3), (24389 / 27 * t + 16) / 116)
        for t in (x, y, z)
    )
    return torch.cat((116 * f_y - 16, 500 * (f_x - f_y), 200 * (f_y - f_z)), dim=1)


def msgms(
    x: Tensor,
    y: Tensor,
    scales: int = 4,
    grey: bool = False,
    padding: Literal["zero", "replicate", "none"] = "zero",
) -> Tensor:
    """Multi-scale gradient magnitude similarity: (B, C, H, W) in [0, 1] twice -> (B, 1, H, W), 1 where alike.

    W. Xue et al., "Gradient Magnitude Similarity Deviation", IEEE TIP 2014; over scales: V. Zavrtanik et al.,
    "Reconstruction by inpainting for visual anomaly detection" (RIAD), Pattern Recognition 2021. With Prewitt's
    gradients (a column of thirds, minus the third after it, and the transpose), g = sqrt(gx^2 + gy^2 + 1e-12),

        GMS = (2 g_x g_y + c) / (g_x^2 + g_y^2 + c),   c = 0.0026 = 170 / 255^2

    of both pictures, averaged 2 x 2 for every further scale; the maps, enlarged to H x W (bilinear, half-pixel
    centres), are averaged over the scales, then over the channels. The gradient has no sign: a negative scores 1, too,
    but for the frame where zeros are set around.

    Args:
        x: pictures, sides of at least 3 x 2^(scales - 1) pixels.
        y: like `x`.
        scales: how many.
        grey: of the channels' mean instead, after a 3 x 3 median filter (zeros outside) at every scale.
        padding: around the pictures before the gradient: zeros, the outermost pixels repeated, or nothing: then the map
            has a pixel less on each side before it is enlarged.
    """
    least = 3 * 2 ** (scales - 1)
    if x.ndim != 4 or x.shape != y.shape or scales < 1 or min(x.shape[2:]) < least:
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(f"expected two (B, C, H, W) of one shape, sides of {least} or more, got {shapes}")
    if padding not in ("zero", "replicate", "none"):
        raise ValueError(f"expected zero, replicate or none, got {padding!r}")
    size, pair, total = x.shape[2:], (x, y), 0.0  # apart: the gradients of one of them are often not asked for
    if grey:
        pair = tuple(picture.mean(dim=1, keepdim=True) for picture in pair)
    for scale in range(scales):
        pair = tuple(F.avg_pool2d(picture, 2) for picture in pair) if scale else pair
        a, b = (_gradient(_median(picture) if grey else picture, padding) for picture in pair)  # (B, C, h, w)
        similarity = ((2 * a * b + 0.0026) / (a * a + b * b + 0.0026)).mean(dim=1, keepdim=True)
        # The mean of the channels first: it commutes with the enlargement.
        total = total + F.interpolate(similarity, size, mode="bilinear", align_corners=False)
    return total / scales


def _gradient(pictures: Tensor, padding: str) -> Tensor:
    """Prewitt's gradient magnitude of (n, C, H, W): the same shape, or two pixels less a side."""
    if padding != "none":
        pictures = F.pad(pictures, (1, 1, 1, 1), mode={"zero": "constant"}.get(padding, padding))
    rows = (pictures[..., :-2, :] + pictures[..., 1:-1, :] + pictures[..., 2:, :]) / 3
    columns = (pictures[..., :-2] + pictures[..., 1:-1] + pictures[..., 2:]) / 3
    across, down = rows[..., :-2] - rows[..., 2:], columns[..., :-2, :] - columns[..., 2:, :]
    return torch.sqrt(across * across + down * down + 1e-12)


def _median(pictures: Tensor) -> Tensor:
    """The median of 3 x 3 pixels, zeros outside, of (..., H, W)."""
    padded = F.pad(pictures, (1, 1, 1, 1))
    return padded.unfold(-2, 3, 1).unfold(-2, 3, 1).flatten(-2).median(dim=-1).values
