"""Prints the sourced golden numbers of SeRNet's hash, colour and structure for tests/methods/test_sernet_*.py.

    pip install torch ImageHash scikit-image opencv-python-headless colour-science
    PYTHONPATH=tools python tools/sources/sernet.py [--check]

Perceptual hash: ImageHash. CIELAB: scikit-image with sRGB's matrix to seven digits, and colour-science where it is
installed, which has CIE 15's exact constants (dark colours). MSGMS: Prewitt's kernel and the median by scipy, means and
enlargement by scikit-image, and OpenCV's enlargement. Mean filter: scipy. Inputs: the hash of tools/hash_recipe.py,
float64.

adref is imported with --check only, which compares it with these programs, among others on 1000 images of many sizes
and modes, and prints the largest differences.
"""

import sys
import tempfile
from collections import Counter
from pathlib import Path

import cv2
import imagehash
import numpy as np
import scipy
import skimage
import torch
from hash_recipe import hashed, report
from PIL import Image
from scipy import ndimage
from skimage.color import colorconv
from skimage.measure import block_reduce
from skimage.transform import resize

MODES = ("RGB", "L", "1", "P", "CMYK", "YCbCr", "RGBA", "LA", "I;16 PNG", "I;16 TIFF")
SIZES = [(h, w) for h in (3, 7, 32, 33, 100, 257) for w in (5, 32, 64, 301)]
MATRIX = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
WHITE = np.array((0.95047, 1, 1.08883))


def mosaic(name: str, height: int, width: int) -> np.ndarray:
    """Makes five by five hashed tiles under a quarter of hashed noise, uint8 (H, W, 3), in whole numbers."""
    tiles, noise = ((256 * hashed(f"{name} {part}", *shape, 3)).long().numpy() for part, shape in
                    (("tiles", (5, 5)), ("noise", (height, width))))  # fmt: skip
    tiles = tiles[np.arange(height) * 5 // height][:, np.arange(width) * 5 // width]
    return ((3 * tiles + noise) // 4).astype(np.uint8)


def margin(image: Image.Image) -> float:
    """Computes the least distance of a coefficient from the median, relative to the largest without the mean's."""
    small = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS))
    waves = scipy.fftpack.dct(scipy.fftpack.dct(small, axis=0), axis=1)[:8, :8]
    away = np.abs(waves - np.median(waves)).ravel()
    return away.min() / max(away[1:].max(), 1e-9)


def hashes() -> None:
    """Prints the hashes of images of many sizes; they differ, and no bit depends on rounding."""
    print("phash of mosaic(name, height, width), name HEIGHTxWIDTH:")
    for height, width in SIZES:
        image = Image.fromarray(mosaic(f"{height}x{width}", height, width))
        print(f"  ({height}, {width}): {imagehash.phash(image)}, margin {margin(image):.1g}")


def lab_pictures() -> dict[str, np.ndarray]:
    """Makes colours of all kinds, and dark ones: (24, 40, 3), the last below 0.09 and often below 0.04045."""
    colours = hashed("colours", 24, 40, 3).double().numpy()
    return {"bright": 0.5 + 0.5 * colours, "all": colours, "dark": 0.09 * hashed("dark", 24, 40, 3).double().numpy()}


def skimage_lab(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Computes scikit-image's rgb2lab with another matrix."""
    kept, colorconv.xyz_from_rgb = colorconv.xyz_from_rgb, np.array(matrix)
    try:
        return colorconv.rgb2lab(image)
    finally:
        colorconv.xyz_from_rgb = kept


def colour_lab(image: np.ndarray) -> np.ndarray | None:
    """Computes CIELAB by colour-science with the same matrix and white; None without it."""
    try:
        import colour
    except ImportError:
        return None
    xyz = colour.cctf_decoding(image, function="sRGB") @ np.array(MATRIX).T
    return colour.XYZ_to_Lab(xyz, illuminant=colour.XYZ_to_xy(WHITE))


def cielab() -> None:
    """Prints each channel by both programs, their difference, and the effect of scikit-image's matrix."""
    for name, image in lab_pictures().items():
        first, second = skimage_lab(image, MATRIX), colour_lab(image)
        own = np.abs(skimage_lab(image, colorconv.xyz_from_rgb) - first).max()
        print(f"CIELAB, {name}: scikit-image's own matrix is up to {own:.2g} away")
        for i, channel in enumerate("Lab"):
            report(f"  {channel}, scikit-image", first[..., i].copy())
            if second is not None:
                report(f"  {channel}, colour-science", second[..., i].copy())
        if second is not None:
            print(f"  they are up to {np.abs(first - second).max():.2g} apart")


def structure_pair() -> tuple[np.ndarray, np.ndarray]:
    """Returns a, and 0.3 b + 0.7 a: (3, 48, 64) in [0, 1)."""
    a, b = (hashed(name, 3, 48, 64).double().numpy() for name in ("a", "b"))
    return a, 0.3 * b + 0.7 * a


def gradient(channel: np.ndarray, padding: str) -> np.ndarray:
    """Computes Prewitt's gradients by scipy; without padding the border is cut off."""
    mode = "nearest" if padding == "replicate" else "constant"
    found = np.sqrt(sum((ndimage.prewitt(channel, axis, mode=mode) / 3) ** 2 for axis in (0, 1)) + 1e-12)
    return found[1:-1, 1:-1] if padding == "none" else found


def msgms(x: np.ndarray, y: np.ndarray, scales: int, grey: bool, padding: str, by_opencv: bool = False) -> np.ndarray:
    """Computes the map of two images (C, H, W): (H, W)."""
    size, maps = x.shape[1:], []
    if grey:
        x, y = x.mean(axis=0, keepdims=True), y.mean(axis=0, keepdims=True)
    for first, second in zip(x, y):
        for scale in range(scales):
            if scale:  # an odd last row or column is left out
                even = tuple(slice(side // 2 * 2) for side in first.shape)
                first, second = (block_reduce(p[even], (2, 2), np.mean) for p in (first, second))
            pair = [ndimage.median_filter(p, 3, mode="constant") if grey else p for p in (first, second)]
            a, b = (gradient(p, padding) for p in pair)
            similarity = (2 * a * b + 0.0026) / (a**2 + b**2 + 0.0026)
            if by_opencv:
                maps.append(cv2.resize(similarity, size[::-1], interpolation=cv2.INTER_LINEAR))
            else:
                maps.append(resize(similarity, size, order=1, mode="edge", anti_aliasing=False, preserve_range=True))
    return np.mean(maps, axis=0)


def structure_cases() -> list[tuple]:
    """Lists images, scales, grey, padding; two cases have odd sides."""
    cases = [(scales, grey, padding) for padding in ("zero", "replicate", "none") for grey in (False, True)
             for scales in (1, 2, 3, 4)]  # fmt: skip
    return [(*structure_pair(), *case) for case in cases] + [
        (*(p[:, :45, :55] for p in structure_pair()), 3, grey, "zero") for grey in (False, True)
    ]


def structure() -> None:
    """Prints every case, and the difference of the enlargements by OpenCV and scikit-image."""
    apart = 0.0
    for x, y, *case in structure_cases():
        found = msgms(x, y, *case)
        report(f"MSGMS, {x.shape[1:]}, scales, grey, padding {tuple(case)}", found)
        apart = max(apart, np.abs(found - msgms(x, y, *case, by_opencv=True)).max())
    print(f"  enlarged by OpenCV: up to {apart:.2g} apart")


def mean_filter(border: str) -> np.ndarray:
    """Filters by scipy, whose "mirror" is torch's and numpy's "reflect"."""
    mode = {"reflect": "mirror", "zero": "constant"}[border]
    return ndimage.uniform_filter(hashed("map", 40, 56).double().numpy(), 21, mode=mode)


def check() -> None:
    """Compares adref with all of these."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from adref.data.reader import read_image
    from adref.methods.sernet import map as sernet_map
    from adref.methods.sernet.similar import perceptual_hash
    from adref.ops import filters

    same, all_of, sound = Counter(), Counter(), 0
    rng = np.random.default_rng(20261124)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(1000):
            mode = MODES[i % len(MODES)]
            path = save(rng, mode, Path(folder))
            pixels = read_image(path)
            own = perceptual_hash(pixels).tobytes().hex()
            picture = Image.fromarray(pixels)
            equal = own == str(imagehash.phash(picture))
            if (pixels == pixels[..., :1]).all():
                equal &= own == perceptual_hash(pixels[..., 0]).tobytes().hex()
            if not equal:
                print(f"  DIFFERENT: {mode} {pixels.shape}, margin {margin(picture):.2g}")
            same[mode], all_of[mode] = same[mode] + equal, all_of[mode] + 1
            sound += margin(picture) > 1e-9
    print(f"equal hashes: {same.total()} of {all_of.total()}, {sound} of which do not hang on rounding; by mode:")
    print(" ", ", ".join(f"{mode}: {same[mode]} of {all_of[mode]}" for mode in MODES))
    for name, image in lab_pictures().items():
        own = sernet_map.cielab(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
        others = {"scikit-image": skimage_lab(image, MATRIX), "colour-science": colour_lab(image)}
        words = [f"{np.abs(own - lab).max():.2g} ({program})" for program, lab in others.items() if lab is not None]
        print(f"CIELAB, {name}: up to {', '.join(words)} apart")
    apart = 0.0
    for x, y, *case in structure_cases():
        own = sernet_map.msgms(*(torch.from_numpy(p.copy())[None] for p in (x, y)), *case)[0, 0].numpy()
        apart = max(apart, np.abs(own - msgms(x, y, *case)).max())
    print(f"MSGMS: up to {apart:.2g} apart")
    for border in ("reflect", "zero"):
        own = filters.mean_filter(hashed("map", 1, 1, 40, 56).double(), 21, border)[0, 0].numpy()
        print(f"mean filter, {border}: up to {np.abs(own - mean_filter(border)).max():.2g} apart")


def save(rng: np.random.Generator, mode: str, folder: Path) -> Path:
    """Saves a smooth field with noise, from 1 x 1 to about 1500 a side, as a file in a mode."""
    height, width = (int(2 ** rng.uniform(0, 10.55)) for _ in range(2))
    field = rng.integers(0, 256, (rng.integers(2, 12), rng.integers(2, 12), 4)).astype(np.float32)
    share = rng.uniform(0, 0.7)
    values = (1 - share) * cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC)
    values = values.reshape(height, width, 4) + share * rng.integers(0, 256, (height, width, 4))
    values = np.clip(values, 0, 255).astype(np.uint8)
    path = folder / ("picture.tif" if mode in ("CMYK", "YCbCr", "I;16 TIFF") else "picture.png")
    if mode.startswith("I;16"):
        deep = values[..., 0] * 257.0 + rng.integers(-120, 120, (height, width))
        picture = Image.fromarray(deep.clip(0, 65535).astype(np.uint16))
    elif mode in ("RGBA", "LA"):
        picture = Image.fromarray(values).convert(mode)
    elif mode == "CMYK":
        picture = Image.frombytes(mode, (width, height), values.tobytes())
    else:
        picture = Image.fromarray(values[..., :3]).convert(mode)
    picture.save(path)
    return path


def main() -> None:
    programs = {"scipy": scipy, "scikit-image": skimage, "OpenCV": cv2, "ImageHash": imagehash, "numpy": np}
    print(*(f"{name} {program.__version__}" for name, program in programs.items()), sep=", ")
    hashes()
    cielab()
    structure()
    for border in ("reflect", "zero"):
        report(f"mean filter of 21 x 21, {border}", mean_filter(border))
    if "--check" in sys.argv[1:]:
        check()


if __name__ == "__main__":
    main()
