"""SeRNet's search: the perceptual hash against ImageHash, the nearest of hashes, the bank."""

import io

import numpy as np
import pytest
import scipy.fft
import torch
from conftest import golden
from PIL import Image

from adref.methods.sernet.similar import Bank, hamming, nearest, perceptual_hash
from adref.ops.image import grey

# Sourced: ImageHash 4.3.2's phash (Pillow 13.0.0, scipy 1.17.1) of mosaic(size, height, width);
# `PYTHONPATH=tools python tools/sources/sernet.py`, 2026-11-24. No coefficient is nearer to its median than 3e-5 of the
# largest. Its `--check` found the same bits on 1000 of 1000 pictures of other sizes, decoded from ten kinds of files.
SOURCED_HASHES = (
    "3x5 9aed4912b6ed486c", "3x32 96e3071cf8e307e2", "3x64 89c94936b6c949eb", "3x301 d41838e7c71d3c1d",
    "7x5 ad185865bcd2a7b8", "7x32 e956f08b09f0323f", "7x64 e72952e9679c3232", "7x301 89e7a9585c0707af",
    "32x5 98b23d92b84d4f2d", "32x32 b86b36d2e9172629", "32x64 9416380f53ababd6", "32x301 e9b82987a95256f8",
    "33x5 f84d25adf20d4d52", "33x32 89cdc7c710e8eb38", "33x64 98b6c976e71819a9", "33x301 f6f84783708d893c",
    "100x5 d8f9d20d3819c7d2", "100x32 f836e719b60449e6", "100x64 d4b876693c0bc792", "100x301 d8b64722188ee7dc",
    "257x5 8dcd58a70db8f258", "257x32 a772e916891276e9", "257x64 876716b858a3a747", "257x301 e7c7589858a6a761",
)  # fmt: skip


def mosaic(name: str, height: int, width: int) -> np.ndarray:
    """Makes the image of tools/sources/sernet.py: five by five hashed tiles under a quarter of hashed noise."""
    tiles, noise = ((256 * golden.hashed(f"{name} {part}", *shape, 3)).long().numpy() for part, shape in
                    (("tiles", (5, 5)), ("noise", (height, width))))  # fmt: skip
    tiles = tiles[np.arange(height) * 5 // height][:, np.arange(width) * 5 // width]
    return ((3 * tiles + noise) // 4).astype(np.uint8)


def text(image: np.ndarray) -> str:
    """Writes the hash as ImageHash does."""
    return perceptual_hash(image).tobytes().hex()


def slow_distance(a: np.ndarray, b: np.ndarray) -> int:
    """Computes Hamming's distance, one byte after the other."""
    return sum(bin(int(x) ^ int(y)).count("1") for x, y in zip(a, b, strict=True))


ROWS, COLUMNS = np.mgrid[:256, :256]
DISC, SHIFTED, COLOUR = (image.astype(np.uint8) for image in (
    np.where((ROWS - 128) ** 2 + (COLUMNS - 128) ** 2 < 4096, 255, 0),
    np.where((ROWS - 118) ** 2 + (COLUMNS - 140) ** 2 < 4096, 255, 0),
    np.stack((5 * ROWS + 3 * COLUMNS, 2 * ROWS + 11 * COLUMNS + 40, ROWS * COLUMNS // 256), 2) % 256))  # fmt: skip
NOISE = np.random.RandomState(0).randint(0, 256, (256, 256, 3), np.uint8)
LARGE = Image.fromarray(COLOUR).resize((1024, 1024), Image.Resampling.BICUBIC)


def test_golden_hashes():
    """ImageHash 4.3.1's strings, 32 ones each; a grey picture of three channels has the hash of one."""
    reduced = np.asarray(LARGE.resize((256, 256), Image.Resampling.BILINEAR))
    for image, expected in (
        (DISC, "9e65619696d99865"), (SHIFTED, "9e9e61699666989a"), (COLOUR, "8a7df57daa007d01"),
        (((7 * ROWS + 13 * COLUMNS) % 256).astype(np.uint8), "dcaa54aa54aa75aa"), (NOISE, "c9495a31d7a452af"),
        (np.asarray(LARGE), "a87df47daa007f01"), (reduced, "aa7d7d7daa007501"),
        (np.repeat(DISC[:, :, None], 3, axis=2), "9e65619696d99865"),
    ):  # fmt: skip
        assert text(image) == expected and int(expected, 16).bit_count() == 32


def test_hashes_are_those_of_imagehash():
    for name, expected in map(str.split, SOURCED_HASHES):
        assert text(mosaic(name, *map(int, name.split("x")))) == expected, name


def test_distance_of_the_discs_and_norm_ortho():
    """30 bits; with norm "ortho" the shifted disc would have another string."""
    assert hamming(perceptual_hash(DISC)[None], perceptual_hash(SHIFTED)).tolist() == [30]
    small = np.asarray(Image.fromarray(SHIFTED).resize((32, 32), Image.Resampling.LANCZOS), float)
    for norm, expected in ((None, "9e9e61699666989a"), ("ortho", "9e9e616986e6989a")):
        waves = scipy.fft.dctn(small, norm=norm)[:8, :8]
        assert np.packbits(waves > np.median(waves)).tobytes().hex() == expected


def test_the_hash_by_slow_sums():
    """The docstring's formula without a DCT; L of four colours, the DCT-II of 1, 2, 3, 4."""
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 100, 50]]], np.uint8)
    assert np.asarray(Image.fromarray(colours).convert("L")).tolist() == [[76, 150, 29, 124]]
    assert scipy.fft.dct(np.arange(1.0, 5)).tolist() == pytest.approx([20, -6.30864406, 0, -0.44834153], abs=5e-9)
    image = mosaic("sums", 50, 70)
    small = np.asarray(Image.fromarray(grey(image)).resize((32, 32), Image.Resampling.LANCZOS), float)
    n, k = np.arange(32), np.arange(8)
    table = 2 * np.cos(np.pi * k[:, None] * (2 * n + 1) / 64)  # (8, 32)
    waves = np.einsum("kr,rc,lc->kl", table, small, table).ravel()
    median = np.sort(waves)[31:33].mean()
    number = sum(2 ** (63 - i) for i, wave in enumerate(waves) if wave > median)
    assert text(image) == f"{number:016x}"


def test_the_hash_of_a_view_and_of_other_inputs():
    """A rotated view without memory of its own has the hash of its copy; all but 8-bit images are refused."""
    view = NOISE[::-1, ::2].transpose(1, 0, 2)
    assert text(view) == text(view.copy()) != text(NOISE)
    for shape, kind in (((4, 5, 3), float), ((4, 5, 4), np.uint8), ((3, 4, 5), np.uint8), ((0, 5), np.uint8)):
        with pytest.raises(ValueError, match=r"expected uint8 \(H, W, 3\) or \(H, W\), got"):
            perceptual_hash(np.zeros(shape, kind))


def random_hashes(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8), dtype=np.uint8)


@pytest.mark.holds("sernet", "Algorithm 2")
def test_the_nearest_is_that_of_a_slow_loop_and_of_several_the_first():
    hashes = random_hashes(60) & 0x11  # few bits: many ties
    for query in random_hashes(40, 1) & 0x11:
        distances = [slow_distance(one, query) for one in hashes]
        assert hamming(hashes, query).tolist() == distances
        assert nearest(hashes, query) == (distances.index(min(distances)), min(distances))
    hashes = random_hashes(20)
    hashes[[4, 9, 15]] = hashes[4]
    found = {exclude: nearest(hashes, hashes[4], exclude) for exclude in (None, 4, 9, 0)}
    assert found == {None: (4, 0), 4: (9, 0), 9: (4, 0), 0: (4, 0)}
    assert nearest(np.stack((hashes[0], ~hashes[0])), hashes[0], exclude=0) == (1, 64)


SIZE = (24, 40)


def pictures(count: int, name: str = "bank") -> list[torch.Tensor]:
    return [torch.from_numpy(mosaic(f"{name} {i}", *SIZE)).permute(2, 0, 1).contiguous() for i in range(count)]


def hash_of(picture: torch.Tensor) -> np.ndarray:
    return perceptual_hash(picture.permute(1, 2, 0).numpy())


def full(given: list[torch.Tensor], file_hashes=None) -> Bank:
    bank = Bank(SIZE)
    bank.fill(given, file_hashes)
    return bank


@pytest.mark.holds("sernet", "Algorithm 2")
def test_search_of_the_bank():
    """Each picture finds itself; files are compared with files, pictures with pictures; duplicates."""
    own, others = pictures(5), pictures(8, "others")
    known = np.stack([hash_of(picture) for picture in own])
    bank, swapped = full(own), full(own, known[::-1])
    for i, picture in enumerate(own):
        assert bank.search(picture.float() / 255) == bank.search(known[i]) == swapped.search(picture / 255) == (i, 0)
        assert swapped.search(known[i]) == (4 - i, 0) and torch.equal(bank.pictures[i], picture)
    assert bank.file_hashes.tolist() == bank.picture_hashes.tolist() == known.tolist()
    assert [bank.search(picture / 255) for picture in others] == [nearest(known, hash_of(p)) for p in others]
    twice = full([own[1], own[0], own[0], own[1]])
    assert [twice.search(picture / 255) for picture in own[:2]] == [(1, 0), (0, 0)]
    with pytest.raises(ValueError, match="empty"):
        Bank(SIZE).search(known[0])


def test_a_float_picture_is_rounded_before_it_is_hashed():
    """Pale pictures, up to 0.4 of a level below their bytes, still find themselves; truncated, they would not."""
    own = [100 + picture // 32 for picture in pictures(5)]
    below = [(picture - 0.4 * (torch.arange(40) < 13)).double() / 255 for picture in own]
    bank = full(own)
    assert [bank.search(picture) for picture in below] == [(i, 0) for i in range(5)]
    assert all((hash_of((255 * picture).byte()) != hash_of(whole)).any() for picture, whole in zip(below, own))


def test_a_bank_is_saved_with_the_weights():
    """It loads into a bank of any length, in memory of its own, from a file of nothing but tensors."""
    for bank in (Bank(SIZE), full(pictures(5))):
        memory = io.BytesIO()
        torch.save({f"bank.{name}": value for name, value in bank.state_dict().items()}, memory)
        for target in (Bank(SIZE), full(pictures(3))):
            memory.seek(0)
            torch.nn.ModuleDict({"bank": target}).load_state_dict(torch.load(memory, weights_only=True))
            assert all(torch.equal(value, target.state_dict()[name]) for name, value in bank.state_dict().items())
    target.load_state_dict(bank.state_dict())
    target.pictures.zero_()
    assert torch.equal(bank.pictures, torch.stack(pictures(5)))
