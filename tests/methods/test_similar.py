"""Similar pictures, colour and structure: golden checks G5, G7 to G10 and G12, other programs' numbers, the bank."""

import io
import os

import numpy as np
import pytest
import scipy.fft
import torch
from conftest import golden
from PIL import Image

from adref.methods.sernet.map import cielab, msgms
from adref.methods.sernet.similar import Bank, hamming, nearest, perceptual_hash
from adref.ops.filters import mean_filter
from adref.ops.image import grey, remove_small
from adref.options import UserError

# Sourced: ImageHash 4.3.2's phash (Pillow 13.0.0, scipy 1.17.1) of mosaic(size, height, width);
# `PYTHONPATH=tools python tools/sources/sernet.py`, 2026-11-24. No coefficient is nearer to its median than 3e-5 of the largest. Its
# `--check` found the same bits on 1000 of 1000 pictures of other sizes, decoded from ten kinds of files.
SOURCED_HASHES = (
    "3x5 9aed4912b6ed486c", "3x32 96e3071cf8e307e2", "3x64 89c94936b6c949eb", "3x301 d41838e7c71d3c1d",
    "7x5 ad185865bcd2a7b8", "7x32 e956f08b09f0323f", "7x64 e72952e9679c3232", "7x301 89e7a9585c0707af",
    "32x5 98b23d92b84d4f2d", "32x32 b86b36d2e9172629", "32x64 9416380f53ababd6", "32x301 e9b82987a95256f8",
    "33x5 f84d25adf20d4d52", "33x32 89cdc7c710e8eb38", "33x64 98b6c976e71819a9", "33x301 f6f84783708d893c",
    "100x5 d8f9d20d3819c7d2", "100x32 f836e719b60449e6", "100x64 d4b876693c0bc792", "100x301 d8b64722188ee7dc",
    "257x5 8dcd58a70db8f258", "257x32 a772e916891276e9", "257x64 876716b858a3a747", "257x301 e7c7589858a6a761",
)  # fmt: skip
# Sourced: mean, standard deviation and the means of the products with two lists of hashed numbers, of colour-science
# 0.4.7's XYZ_to_Lab after its sRGB decoding, seven digits of the matrix; `PYTHONPATH=tools python tools/sources/sernet.py`, 2026-11-24.
# scikit-image 0.26.0's rgb2lab with that matrix agrees to 2e-13 on "bright", and to its rounded constants elsewhere.
SOURCED_LAB = {
    ("bright", "L"): [77.89605785, 9.966755375, 38.50843079, 39.24108312],
    ("bright", "a"): [2.015300891, 24.25226298, 0.8283461728, 0.9853715942],
    ("bright", "b"): [1.300543877, 24.17376243, 0.607785643, 0.9410003248],
    ("all", "L"): [57.2947303, 19.98603482, 28.36680783, 28.92300124],
    ("all", "a"): [7.272880388, 44.22143974, 3.312885358, 3.59479409],
    ("all", "b"): [4.829720094, 45.85708299, 2.293442868, 2.992363403],
    ("dark", "L"): [3.419716363, 1.682427588, 1.681091295, 1.714126674],
    ("dark", "a"): [-0.119258023, 3.874784546, -0.01458772882, -0.05850812444],
    ("dark", "b"): [0.02640264803, 3.75853967, -0.08351144311, -0.02517978969],
}  # fmt: skip
# Sourced: the same four numbers of the mean over scales and channels, with scipy 1.17.1's prewitt and median_filter
# and scikit-image 0.26.0's block_reduce and resize, with which OpenCV 5.0.0's resize agrees to 2e-15;
# `PYTHONPATH=tools python tools/sources/sernet.py`, 2026-11-24. Height (of 48 x 64, or 45 x 55), scales, grey, padding.
SOURCED_MSGMS = {
    (48, 1, False, "zero"): [0.9091199297, 0.07450734161, 0.4563099012, 0.4556844523],
    (48, 2, False, "zero"): [0.916332849, 0.04737874765, 0.4596963024, 0.4596715075],
    (48, 3, False, "zero"): [0.9264751947, 0.03726358612, 0.4646235536, 0.4649286587],
    (48, 4, False, "zero"): [0.9407074264, 0.02948256037, 0.4717118435, 0.4721411911],
    (48, 1, True, "zero"): [0.8964372814, 0.129810284, 0.4489773174, 0.4501021714],
    (48, 2, True, "zero"): [0.9127564214, 0.07785315763, 0.4570795897, 0.4581693176],
    (48, 3, True, "zero"): [0.9340201422, 0.05480579299, 0.4677990191, 0.4689007948],
    (48, 4, True, "zero"): [0.9487253065, 0.04147710938, 0.4753132434, 0.4763032378],
    (48, 1, False, "replicate"): [0.9026848515, 0.0739720323, 0.4532288028, 0.4523919237],
    (48, 2, False, "replicate"): [0.9060393021, 0.04431713428, 0.4546191461, 0.4543713636],
    (48, 3, False, "replicate"): [0.9118266329, 0.03198141874, 0.4573968524, 0.4574110564],
    (48, 4, False, "replicate"): [0.9252799905, 0.02454039259, 0.4641027854, 0.4642411413],
    (48, 1, True, "replicate"): [0.889621772, 0.1311416232, 0.4455741986, 0.4465184759],
    (48, 2, True, "replicate"): [0.9054484105, 0.07694125336, 0.4533164756, 0.4543058199],
    (48, 3, True, "replicate"): [0.9257704599, 0.0543435915, 0.4635706344, 0.4645455074],
    (48, 4, True, "replicate"): [0.9415029027, 0.04087468294, 0.4716204888, 0.472518255],
    (48, 1, False, "none"): [0.9030202077, 0.05124104983, 0.4528167044, 0.4534100527],
    (48, 2, False, "none"): [0.9072621024, 0.03550047657, 0.4550232692, 0.4555428994],
    (48, 3, False, "none"): [0.9139085919, 0.02670849158, 0.4582222195, 0.4588531982],
    (48, 4, False, "none"): [0.9271677381, 0.02027463608, 0.4648380622, 0.4654951724],
    (48, 1, True, "none"): [0.8886379535, 0.09923476519, 0.4460679528, 0.4456954568],
    (48, 2, True, "none"): [0.9031000534, 0.0642604719, 0.4525234392, 0.4530910908],
    (48, 3, True, "none"): [0.9246943487, 0.04544417266, 0.4632984807, 0.4639789618],
    (48, 4, True, "none"): [0.9399579207, 0.03377987321, 0.4710576093, 0.4717297891],
    (45, 3, False, "zero"): [0.9283514826, 0.0381788733, 0.4652497021, 0.4645179514],
    (45, 3, True, "zero"): [0.9352094442, 0.0547364138, 0.4683461545, 0.4678078861],
}  # fmt: skip
# Sourced: the same of scipy 1.17.1's uniform_filter(hashed("map", 40, 56), 21), mode "mirror" and "constant", float64;
# `PYTHONPATH=tools python tools/sources/sernet.py`, 2026-11-24.
SOURCED_MEAN = {
    "reflect": [0.4904026433, 0.01600081823, 0.2464999526, 0.2448134416],
    "zero": [0.3852633908, 0.0964585423, 0.1927613439, 0.1917744886],
}  # fmt: skip


def digest(output: torch.Tensor) -> list[float]:
    """Mean, standard deviation, and the means of the products with two lists of hashed numbers."""
    flat = output.flatten()
    products = [(flat * golden.hashed(name, len(flat))).mean().item() for name in ("first", "second")]
    return [flat.mean().item(), flat.std(correction=0).item(), *products]


def mosaic(name: str, height: int, width: int) -> np.ndarray:
    """The picture of tools/sources/sernet.py: five by five hashed tiles under a quarter of hashed noise."""
    tiles, noise = ((256 * golden.hashed(f"{name} {part}", *shape, 3)).long().numpy() for part, shape in
                    (("tiles", (5, 5)), ("noise", (height, width))))  # fmt: skip
    tiles = tiles[np.arange(height) * 5 // height][:, np.arange(width) * 5 // width]
    return ((3 * tiles + noise) // 4).astype(np.uint8)


def text(image: np.ndarray) -> str:
    """The hash as ImageHash writes it."""
    return perceptual_hash(image).tobytes().hex()


def slow_distance(a: np.ndarray, b: np.ndarray) -> int:
    """Hamming's distance, one byte after the other."""
    return sum(bin(int(x) ^ int(y)).count("1") for x, y in zip(a, b, strict=True))


# -- perceptual hash --------------------------------------------------------------------------------------------------

ROWS, COLUMNS = np.mgrid[:256, :256]
PICTURES = {
    "disc": np.where((ROWS - 128) ** 2 + (COLUMNS - 128) ** 2 < 4096, 255, 0),
    "shifted disc": np.where((ROWS - 118) ** 2 + (COLUMNS - 140) ** 2 < 4096, 255, 0),
    "grey": (7 * ROWS + 13 * COLUMNS) % 256,
    "colour": np.stack((5 * ROWS + 3 * COLUMNS, 2 * ROWS + 11 * COLUMNS + 40, ROWS * COLUMNS // 256), 2) % 256,
    "noise": np.random.RandomState(0).randint(0, 256, (256, 256, 3), np.uint8),
}
PICTURES = {name: picture.astype(np.uint8) for name, picture in PICTURES.items()}
LARGE = np.asarray(Image.fromarray(PICTURES["colour"]).resize((1024, 1024), Image.Resampling.BICUBIC))
PICTURES |= {"enlarged": LARGE}
PICTURES |= {"reduced": np.asarray(Image.fromarray(LARGE).resize((256, 256), Image.Resampling.BILINEAR))}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("disc", "9e65619696d99865"),
        ("shifted disc", "9e9e61699666989a"),
        ("grey", "dcaa54aa54aa75aa"),
        ("colour", "8a7df57daa007d01"),
        ("noise", "c9495a31d7a452af"),
        ("enlarged", "a87df47daa007f01"),
        ("reduced", "aa7d7d7daa007501"),
    ],
)
def test_golden_hashes(name, expected):
    """G7: ImageHash 4.3.1's strings, 32 ones each; a grey picture of three channels has the hash of one."""
    assert text(PICTURES[name]) == expected
    assert int(expected, 16).bit_count() == 32
    if PICTURES[name].ndim == 2:
        assert text(np.repeat(PICTURES[name][:, :, None], 3, axis=2)) == expected


def test_hashes_are_those_of_imagehash():
    found = []
    for case in SOURCED_HASHES:
        height, width = map(int, case.split()[0].split("x"))
        found.append(f"{height}x{width} {text(mosaic(f'{height}x{width}', height, width))}")
    assert found == list(SOURCED_HASHES)


def test_the_distance_of_the_discs_and_the_trap_of_ortho():
    """G7: 30 bits; with norm "ortho" the shifted disc would have another string."""
    first, second = (perceptual_hash(PICTURES[name]) for name in ("disc", "shifted disc"))
    assert hamming(first[None], second).tolist() == [30]
    small = np.asarray(Image.fromarray(PICTURES["shifted disc"]).resize((32, 32), Image.Resampling.LANCZOS), float)
    hexes = {}
    for norm in (None, "ortho"):
        waves = scipy.fft.dctn(small, norm=norm)[:8, :8]
        hexes[norm] = np.packbits(waves > np.median(waves)).tobytes().hex()
    assert hexes == {None: "9e9e61699666989a", "ortho": "9e9e616986e6989a"}


def test_the_hash_by_slow_sums():
    """The formula of the docstring, without a DCT: bits of a hashed picture, row by row, the highest bit first."""
    image = mosaic("sums", 50, 70)
    small = np.asarray(Image.fromarray(grey(image)).resize((32, 32), Image.Resampling.LANCZOS), float)
    n, k = np.arange(32), np.arange(8)
    table = 2 * np.cos(np.pi * k[:, None] * (2 * n + 1) / 64)  # (8, 32)
    waves = np.einsum("kr,rc,lc->kl", table, small, table).ravel()
    median = np.sort(waves)[31:33].mean()
    number = sum(2 ** (63 - i) for i, wave in enumerate(waves) if wave > median)
    assert text(image) == f"{number:016x}"


def test_grey_levels_and_transform_of_the_golden_check():
    """G7: L of four colours, and the unnormalised DCT-II of 1, 2, 3, 4, as scipy gives it and as a slow sum."""
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 100, 50]]], np.uint8)
    assert np.asarray(Image.fromarray(colours).convert("L")).tolist() == [[76, 150, 29, 124]]
    assert grey(colours).tolist() == [[76, 150, 29, 124]]
    expected = [20, -6.30864406, 0, -0.44834153]
    assert scipy.fft.dct(np.arange(1.0, 5)).tolist() == pytest.approx(expected, abs=5e-9)
    n = np.arange(4)
    sums = [2 * ((n + 1) * np.cos(np.pi * k * (2 * n + 1) / 8)).sum() for k in range(4)]
    assert sums == pytest.approx(expected, abs=5e-9)


def test_the_hash_is_taken_at_the_size_that_is_given_and_of_any_memory():
    """A turned view without its own memory has the hash of its copy; another size has other bits (G7)."""
    view = PICTURES["noise"][::-1, ::2].transpose(1, 0, 2)
    assert text(view) == text(view.copy()) != text(PICTURES["noise"])
    assert len({text(PICTURES[name]) for name in ("colour", "enlarged", "reduced")}) == 3
    assert perceptual_hash(view).shape == (8,) and perceptual_hash(view).dtype == np.uint8


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 5, 3)),
        np.zeros((4, 5, 3), np.uint16),
        np.zeros((4, 5, 4), np.uint8),
        np.zeros((4, 5, 1), np.uint8),
        np.zeros((3, 4, 5), np.uint8),
        np.zeros(5, np.uint8),
        np.zeros((0, 5), np.uint8),
        np.zeros((4, 0, 3), np.uint8),
    ],
    ids=["floats", "16 bits", "four channels", "one channel", "channels first", "a row", "no rows", "no columns"],
)
def test_what_is_no_picture_is_refused(image):
    with pytest.raises(ValueError, match=r"expected uint8 \(H, W, 3\) or \(H, W\), got"):
        perceptual_hash(image)


# -- search -----------------------------------------------------------------------------------------------------------


def random_hashes(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8), dtype=np.uint8)


def test_hamming_equals_a_slow_loop():
    hashes, own = random_hashes(200), random_hashes(1, 1)[0]
    assert hamming(hashes, own).tolist() == [slow_distance(one, own) for one in hashes]
    ends = np.array([own, ~own, own ^ np.array([0, 0, 0, 0, 0, 0, 0, 1], np.uint8)])
    assert hamming(ends, own).tolist() == [0, 64, 1]


@pytest.mark.holds("sernet", "Algorithm 2")
def test_the_nearest_is_that_of_a_slow_loop_and_of_several_the_first():
    hashes = random_hashes(60) & 0x11  # few bits: many ties
    for own in random_hashes(40, 1) & 0x11:
        distances = [slow_distance(one, own) for one in hashes]
        assert nearest(hashes, own) == (distances.index(min(distances)), min(distances))
    assert nearest(np.repeat(hashes[:1], 5, axis=0), hashes[1])[0] == 0


def test_an_index_can_be_left_out():
    hashes = random_hashes(20)
    hashes[[4, 9, 15]] = hashes[4]
    found = {but: nearest(hashes, hashes[4], but) for but in (None, 4, 9, 0)}
    assert found == {None: (4, 0), 4: (9, 0), 9: (4, 0), 0: (4, 0)}
    assert nearest(hashes[:2], hashes[0], but=0) == (1, slow_distance(hashes[0], hashes[1]))
    opposite = np.stack((hashes[0], ~hashes[0]))
    assert nearest(opposite, hashes[0], but=0) == (1, 64)  # however far it is


@pytest.mark.parametrize(("count", "but"), [(0, None), (0, 0), (1, 0)])
def test_nothing_to_search_is_a_value_error(count, but):
    with pytest.raises(ValueError, match="expected at least one hash to search"):
        nearest(random_hashes(count), random_hashes(1)[0], but)


# -- the bank ---------------------------------------------------------------------------------------------------------

SIZE = (24, 40)


def pictures(count: int, name: str = "bank") -> list[torch.Tensor]:
    """Resized pictures as a bank holds them."""
    return [torch.from_numpy(mosaic(f"{name} {i}", *SIZE)).permute(2, 0, 1).contiguous() for i in range(count)]


def hash_of(picture: torch.Tensor) -> np.ndarray:
    return perceptual_hash(picture.permute(1, 2, 0).numpy())


def full(count: int = 5, **changes) -> Bank:
    bank = Bank(SIZE)
    bank.fill(pictures(count), **changes)
    return bank


def same_state(a: Bank, b: Bank) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_picture_of_the_bank_finds_itself():
    """G12: at distance 0, as a float picture and by its hash; what comes back is its bytes; hashes are fresh ones."""
    bank, own = full(), pictures(5)
    assert len(bank) == 5 and bank.pictures.shape == (5, 3, *SIZE) and bank.file_hashes.shape == (5, 8)
    assert {buffer.dtype for buffer in bank.buffers()} == {torch.uint8}
    for i, picture in enumerate(own):
        assert bank.search(picture.float() / 255) == bank.search(picture.double() / 255) == (i, 0)
        assert bank.search(hash_of(picture)) == (i, 0)
        assert torch.equal(bank.picture(i), picture)
        assert bank.file_hashes[i].tolist() == bank.picture_hashes[i].tolist() == hash_of(picture).tolist()


@pytest.mark.holds("sernet", "Algorithm 2")
def test_a_stranger_finds_the_nearest():
    bank = full(12)
    for picture in pictures(8, "strangers"):
        distances = [slow_distance(hash_of(own), hash_of(picture)) for own in pictures(12)]
        assert bank.search(picture.float() / 255) == (distances.index(min(distances)), min(distances))


def test_a_float_picture_is_rounded_before_it_is_hashed():
    """Pale pictures, up to 0.4 of a level below their bytes, are still themselves; cut off, they would be others."""
    own, bank = [100 + picture // 32 for picture in pictures(5)], Bank(SIZE)
    bank.fill(own)
    below = [(picture - 0.4 * (torch.arange(40) < 13)).double() / 255 for picture in own]
    assert [bank.search(picture) for picture in below] == [(i, 0) for i in range(5)]
    assert all((hash_of((255 * picture).byte()) != hash_of(whole)).any() for picture, whole in zip(below, own))


def test_files_are_compared_with_files_and_pictures_with_pictures():
    """The files' hashes are those of the pictures in reverse: each kind of question has its own answer."""
    own = pictures(5)
    bank = full(files=[hash_of(picture) for picture in own[::-1]])
    for i, picture in enumerate(own):
        assert bank.search(hash_of(picture)) == (4 - i, 0)
        assert bank.search(picture.float() / 255) == (i, 0)


def test_a_file_without_hash_has_its_pictures():
    own, other = pictures(3), perceptual_hash(mosaic("file", 300, 200))
    bank = full(3, files=[None, other, None])
    assert bank.search(other) == (1, 0) and bank.search(hash_of(own[2])) == (2, 0)
    assert bank.search(hash_of(own[1]))[1] > 0 and bank.search(own[1] / 255) == (1, 0)


def test_of_duplicates_the_first_is_found_and_one_picture_is_a_bank():
    """G12."""
    one, two = pictures(2)
    bank = Bank(SIZE)
    bank.fill([two, one, one, two])
    assert [bank.search(picture / 255) for picture in (one, two)] == [(1, 0), (0, 0)]
    bank = full(1)
    assert bank.search(two / 255) == (0, slow_distance(hash_of(one), hash_of(two)))


def test_an_empty_bank_finds_nothing():
    bank = Bank(SIZE)
    assert len(bank) == 0
    for question in (torch.rand(3, *SIZE), random_hashes(1)[0]):
        with pytest.raises(ValueError, match="expected at least one hash to search"):
            bank.search(question)


NAMES = [
    "good/000.png",
    os.fsdecode(b"caf\xe9/\xff\xfe 001.png"),  # on Linux: bytes that are no UTF-8, as lone surrogates
    " two  spaces .png",
    "a line\nand another\r\n.png",
    "Prüfling 検査 \U0001f4a1.png",
]


def reader(shelf: dict[str, torch.Tensor]):
    """What opens a file by its name."""
    return lambda name: shelf[name]


@pytest.mark.parametrize("kind", ["pictures", "paths", "empty"])
def test_a_bank_travels_with_the_weights(kind):
    """Into a bank of any other length and kind, also through a file that may hold nothing but tensors."""
    bank = Bank(SIZE) if kind == "empty" else full(paths=NAMES if kind == "paths" else None)
    memory = io.BytesIO()
    torch.save(bank.state_dict(), memory)
    memory.seek(0)
    for state in (bank.state_dict(), torch.load(memory, weights_only=True)):
        for target in (Bank(SIZE), full(3), full(2, paths=NAMES[:2])):
            target.load_state_dict(state)
            assert same_state(bank, target)
    if kind == "empty":
        return
    whole = torch.nn.ModuleDict({"bank": Bank(SIZE), "layer": torch.nn.Linear(2, 2)})
    whole.load_state_dict(torch.nn.ModuleDict({"bank": bank, "layer": torch.nn.Linear(2, 2)}).state_dict())
    shelf = dict(zip(NAMES, pictures(5)))
    for i, picture in enumerate(pictures(5)):
        assert whole["bank"].search(picture / 255) == (i, 0)
        assert torch.equal(whole["bank"].picture(i, reader(shelf)), picture)


def test_a_loaded_bank_has_its_own_memory():
    bank, target = full(), Bank(SIZE)
    target.load_state_dict(bank.state_dict())
    target.pictures.zero_()
    assert torch.equal(bank.picture(0), pictures(1)[0])


def test_names_of_files_come_back_as_they_were():
    """A bank of paths holds no picture; bytes that are no UTF-8, spaces and line ends survive."""
    bank, own, asked = full(paths=NAMES), pictures(5), []
    assert len(bank.pictures) == 0 and len(bank) == 5

    def opener(name: str) -> torch.Tensor:
        asked.append(name)
        return own[NAMES.index(name)]

    for i in (3, 1, 4, 0, 2):
        assert torch.equal(bank.picture(i, opener), own[i])
        assert bank.search(own[i] / 255) == (i, 0)
    assert asked == [NAMES[i] for i in (3, 1, 4, 0, 2)]


def test_a_changed_file_is_one_sentence():
    bank = full(paths=NAMES)
    shelf = dict(zip(NAMES, pictures(5, "other")))
    for i in (0, 2, 4):
        with pytest.raises(UserError, match=f"^{NAMES[i]} is not the picture that it was in training"):
            bank.picture(i, reader(shelf))


def test_a_changed_file_is_told_by_the_picture_and_not_by_the_file():
    """The hash of the file plays no part in it."""
    own = pictures(2)
    bank = full(2, files=[hash_of(own[1]), hash_of(own[0])], paths=NAMES[:2])
    shelf = dict(zip(NAMES, own))
    assert torch.equal(bank.picture(0, reader(shelf)), own[0])
    with pytest.raises(UserError, match="is not the picture that it was"):
        bank.picture(0, lambda name: own[1])


def test_without_something_that_opens_files_a_bank_of_paths_is_one_sentence():
    with pytest.raises(UserError, match=r"good/000\.png of the bank cannot be read: this method does not come from"):
        full(paths=NAMES).picture(0)


@pytest.mark.parametrize("kinds", ["pictures, pictures", "paths, paths", "pictures, paths", "paths, pictures"])
def test_filling_again_leaves_nothing_of_what_was_there(kinds):
    """As a bank that was filled once, whatever it held before."""
    first, second = ({"pictures": None, "paths": NAMES[:n]}[kind] for n, kind in zip((3, 5), kinds.split(", ")))
    again = full(3, paths=first)
    again.fill(pictures(5), paths=second)
    assert same_state(again, full(5, paths=second))


# -- regions ----------------------------------------------------------------------------------------------------------


def test_regions_of_the_toy():
    """G5: 12 ones with >=, 11 with >; areas 10 and 1 (8-connected), or 9, 1 and 1 (4-connected)."""
    values = np.zeros((8, 8))
    values[1:4, 1:4], values[4, 4], values[6, 6], values[0, 7] = 0.9, 0.7, 0.8, 0.5
    mask = values > 0.5
    assert (values >= 0.5).sum() == 12 and mask.sum() == 11
    counts = {(least, c): int(remove_small(mask, least, c).sum()) for least in (0, 1, 2, 9, 10, 11) for c in (8, 4)}
    assert counts == {
        (0, 8): 11, (0, 4): 11, (1, 8): 11, (1, 4): 11, (2, 8): 10, (2, 4): 9, (9, 8): 10, (9, 4): 9,
        (10, 8): 10, (10, 4): 0, (11, 8): 0, (11, 4): 0,
    }  # fmt: skip
    assert remove_small(mask, 9, 8)[4, 4] and not remove_small(mask, 9, 4)[4, 4]
    assert remove_small(mask, 9.001, 4).sum() == 0 and not remove_small(np.zeros((3, 4), bool), 0).any()
    assert remove_small(mask, 9).dtype == bool and mask.sum() == 11  # the input is left alone


# -- colour -----------------------------------------------------------------------------------------------------------


def lab_of(*colour: float) -> list[float]:
    return cielab(torch.tensor(colour, dtype=torch.float64).view(1, 3, 1, 1)).flatten().tolist()


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        ((1, 1, 1), (100, 0, 0)),
        ((0.5, 0.5, 0.5), (53.38897, 0, 0)),
        ((1, 0, 0), (53.24079, 80.09246, 67.20320)),
        ((0, 1, 0), (87.73472, -86.18272, 83.17932)),
        ((0, 0, 1), (32.29701, 79.18752, -107.86016)),
        ((200 / 255, 100 / 255, 50 / 255), (53.62954, 36.30578, 45.37953)),
        ((1 / 255, 2 / 255, 3 / 255), (0.50983, -0.12245, -0.47060)),
        ((0, 0, 0), (0, 0, 0)),
    ],
)
@pytest.mark.holds("sernet", "5")
def test_colours_of_the_golden_check(colour, expected):
    """G8."""
    assert lab_of(*colour) == pytest.approx(expected, abs=2e-5)


def test_differences_of_the_golden_check():
    """G8: a, b squared and added, and times c."""
    pairs = {
        "near": (lab_of(200 / 255, 100 / 255, 50 / 255), lab_of(190 / 255, 110 / 255, 60 / 255)),
        "far": (lab_of(1, 0, 0), lab_of(0, 1, 0)),
    }
    sums = {name: sum((x - y) ** 2 for x, y in zip(a[1:], b[1:])) for name, (a, b) in pairs.items()}
    for name, plain, weighted in (("near", 99.43928, 0.09943928), ("far", 27902.6707, 27.9027)):
        assert sums[name] == pytest.approx(plain, abs=5e-5) and 0.001 * sums[name] == pytest.approx(weighted, abs=5e-5)


@pytest.mark.parametrize("name", ["bright", "all", "dark"])
@pytest.mark.holds("sernet", "5")
def test_cielab_agrees_with_other_programs(name):
    image = golden.hashed("dark" if name == "dark" else "colours", 24, 40, 3).double()
    image = {"bright": 0.5 + 0.5 * image, "all": image, "dark": 0.09 * image}[name]
    found = cielab(image.permute(2, 0, 1)[None])[0]
    for i, channel in enumerate("Lab"):
        assert digest(found[i]) == pytest.approx(SOURCED_LAB[name, channel], rel=1e-9, abs=1e-9)


def test_cielab_is_smooth_at_its_two_corners_and_alike_in_float32():
    """Both pieces of either curve meet (the decoding's to 5e-6); a batch is its pictures; single precision will do."""
    grey_of_corner = 1.055 * (216 / 24389) ** (1 / 2.4) - 0.055  # its Y is (6/29)^3, its L 8
    for corner, gap in ((0.04045, 5e-6), (grey_of_corner, 1e-6)):
        below, above = lab_of(*[corner - 1e-10] * 3), lab_of(*[corner + 1e-10] * 3)
        assert below == pytest.approx(above, abs=gap)
    assert lab_of(*[grey_of_corner] * 3)[0] == pytest.approx(8, abs=2e-6)  # a row of the matrix adds up to 1.0000001
    images = golden.hashed("batch", 3, 3, 5, 7)
    single = cielab(images)
    assert single.dtype == torch.float32
    assert torch.allclose(single[1:2], cielab(images[1:2]), rtol=0, atol=1e-4)
    assert torch.allclose(single.double(), cielab(images.double()), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 1, 4, 5), (1, 4, 4, 5)])
def test_what_has_no_three_channels_has_no_colour(shape):
    with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\)"):
        cielab(torch.zeros(shape))


# -- structure --------------------------------------------------------------------------------------------------------


def difference(x: torch.Tensor, y: torch.Tensor, scales: int = 4, **settings) -> torch.Tensor:
    return 1 - msgms(x, y, scales, **settings)


def golden_image() -> torch.Tensor:
    """I, (1, 3, 64, 64)."""
    k, r, c = np.mgrid[:3, :64, :64]
    return torch.from_numpy((7 * r + 13 * c + 29 * k) % 256 / 255)[None]


def step() -> torch.Tensor:
    """A unit step at column 32, (1, 3, 64, 64)."""
    return (torch.arange(64) >= 32).double().expand(1, 3, 64, 64)


@pytest.mark.holds("sernet", "6")
def test_a_step_against_flat():
    """G9: replicated edges; the mean filter's border makes no difference to the maximum."""
    flat = torch.zeros(1, 3, 64, 64).double()
    one, four = (difference(step(), flat, scales, padding="replicate") for scales in (1, 4))
    assert one.max().item() == pytest.approx(0.99740475, abs=5e-9)
    assert [one.mean().item(), four.mean().item()] == pytest.approx([0.03116890, 0.11688337], abs=5e-9)
    for border in ("reflect", "zero"):
        boxes = [mean_filter(found, 21, border).max().item() for found in (one, four)]
        assert boxes == pytest.approx([0.09499093, 0.35250540], abs=5e-9)
    assert difference(step(), flat, padding="zero").mean().item() == pytest.approx(0.21304050, abs=5e-9)
    for padding in ("zero", "replicate"):
        half = difference(step(), step() / 2, padding=padding)
        assert half.max().item() == pytest.approx(0.19958486, abs=5e-9)


@pytest.mark.parametrize(
    ("padding", "expected"),
    [("zero", (0.00495024, 0.00470155, 0.00413815)), ("replicate", (0.00518160, 0.00523139, 0.00507469))],
)
def test_the_golden_image_against_a_paler_one(padding, expected):
    """G9: 2, 3 and 4 scales."""
    image = golden_image()
    found = [difference(image, 0.9 * image + 0.05, scales, padding=padding).mean().item() for scales in (2, 3, 4)]
    assert found == pytest.approx(expected, abs=5e-9)


def test_the_gradient_has_no_sign():
    """G9: an inverted image is alike but at a border of zeros."""
    image = golden_image()
    assert difference(image, 1 - image, padding="replicate").abs().max() < 1e-12
    assert difference(image, 1 - image, padding="none").abs().max() < 1e-12
    assert difference(image, 1 - image).max() > 0.3


@pytest.mark.parametrize(("height", "scales", "grey", "padding"), list(SOURCED_MSGMS))
@pytest.mark.holds("sernet", "6")
def test_msgms_agrees_with_other_programs(height, scales, grey, padding):
    a, b = (golden.hashed(name, 1, 3, 48, 64).double() for name in ("a", "b"))
    rows, columns = slice(height), slice(64 if height == 48 else 55)
    found = msgms(*(p[..., rows, columns] for p in (a, 0.3 * b + 0.7 * a)), scales, grey, padding)
    assert digest(found) == pytest.approx(SOURCED_MSGMS[height, scales, grey, padding], abs=1e-9)


@pytest.mark.parametrize("padding", ["zero", "replicate", "none"])
@pytest.mark.parametrize("grey", [False, True])
def test_an_image_is_like_itself_and_msgms_is_symmetric(grey, padding):
    """1 everywhere, in float32 too; each picture of a batch by itself."""
    x, y = golden.hashed("x", 2, 3, 24, 40), golden.hashed("y", 2, 3, 24, 40)
    settings = {"grey": grey, "padding": padding}
    for dtype in (torch.float32, torch.float64):
        assert difference(x.to(dtype), x.to(dtype), 3, **settings).abs().max() < 1e-6
    found = msgms(x, y, 3, **settings)
    assert found.shape == (2, 1, 24, 40) and found.min() > 0 and found.max() <= 1 + 1e-6
    assert torch.equal(found, msgms(y, x, 3, **settings))
    assert torch.equal(found[1:], msgms(x[1:], y[1:], 3, **settings))


def test_what_msgms_cannot_compare_is_refused():
    x = torch.zeros(1, 3, 24, 24)
    assert msgms(x, x, 4).shape == (1, 1, 24, 24)
    for first, second, scales in ((x, x, 5), (x, x[..., :23], 1), (x[0], x[0], 1), (x, x, 0), (x[..., :23, :], x, 4)):
        with pytest.raises(ValueError, match=r"expected two \(B, C, H, W\) of one shape"):
            msgms(first, second, scales)
    with pytest.raises(ValueError, match="expected zero, replicate or none, got 'reflect'"):
        msgms(x, x, padding="reflect")


# -- the map ----------------------------------------------------------------------------------------------------------


def two_flats() -> tuple[torch.Tensor, torch.Tensor]:
    """G10's pictures."""
    colours = torch.tensor([[200, 100, 50], [190, 110, 60]]).double().view(2, 1, 3, 1, 1) / 255
    first = colours[0].expand(1, 3, 64, 64)
    second = first.clone()
    second[:, :, 20:36, 24:44] = colours[1]
    return first, second


@pytest.mark.parametrize(("scales", "structure", "both"), [(4, 0.19257728, 0.26473277), (2, 0.14089600, 0.21305149)])
def test_map_of_the_golden_pictures(scales, structure, both):
    """G10: colour, structure and their sum; 0 in the corner, and everywhere of equal pictures."""
    first, second = two_flats()
    colour = mean_filter((cielab(first) - cielab(second))[:, 1:].square().sum(1, keepdim=True), 21, "reflect")
    edges = mean_filter(difference(first, second, scales), 21, "reflect")
    assert colour.max().item() == pytest.approx(72.15548765, abs=5e-9)
    assert edges.max().item() == pytest.approx(structure, abs=5e-9)
    assert (edges + 0.001 * colour).max().item() == pytest.approx(both, abs=5e-9)
    assert abs((edges + 0.001 * colour)[0, 0, 0, 0]) < 1e-15
    assert mean_filter(difference(second, second, scales), 21, "reflect").abs().max() == 0


def test_mean_filter_of_ones():
    """G10: 1 with the border mirrored; in the corner 11 x 11 of 21 x 21 with zeros."""
    ones = torch.ones(1, 1, 64, 64).double()
    assert mean_filter(ones, 21, "reflect").sub(1).abs().max() < 1e-12
    zero = mean_filter(ones, 21, "zero")
    assert zero[0, 0, 0, 0].item() == pytest.approx(0.27437642, abs=5e-9) == (11 / 21) ** 2
    assert zero[0, 0, 10:-10, 10:-10].sub(1).abs().max() < 1e-12
    assert torch.equal(mean_filter(ones, 21), zero)


@pytest.mark.parametrize("border", list(SOURCED_MEAN))
def test_mean_filter_agrees_with_scipy(border):
    found = mean_filter(golden.hashed("map", 1, 1, 40, 56).double(), 21, border)
    assert digest(found) == pytest.approx(SOURCED_MEAN[border], abs=1e-9)
