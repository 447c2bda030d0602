"""The image reader, digest, random streams, resizing and examples of adref.data; layouts are in test_data.py."""

import io
import os
import pickle
import shutil
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from test_data import NOISE, defect_mask, mvtec, only, png, save, tiff

from adref.data import examples as samples
from adref.data import layouts as data
from adref.data import reader as data_reader
from adref.data.examples import Images, TrainingSet, random_stream, resize
from adref.data.layouts import Record
from adref.method import Sources
from adref.options import UserError

# Pictures: a case is (file name, bytes or Pillow image, expected first pixels as RGB)


def palette(transparency=None) -> bytes:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    file = io.BytesIO()
    image.save(file, "PNG", **({} if transparency is None else {"transparency": transparency}))
    return file.getvalue()


def encoded(mode: str, pixels: list, kind: str = "PNG", **options) -> bytes:
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


DEEP = [0, 128, 129, 255, 256, 300, 32768, 65406, 65407, 65535]
DEEP_8 = [0, 0, 1, 1, 1, 1, 128, 254, 255, 255]  # round(v / 257), e.g. 128 / 257 = 0.498, 129 / 257 = 0.502
DEEP_ARRAY = np.array([DEEP])


def grey(values: list[int]) -> list[list[int]]:
    return [[value] * 3 for value in values]


MODES = {
    "RGB": (encoded("RGB", [(1, 2, 3), (250, 0, 9)]), [[1, 2, 3], [250, 0, 9]]),
    "BMP": (encoded("RGB", [(1, 2, 3)], "BMP"), [[1, 2, 3]]),
    "WebP": (encoded("RGB", [(1, 2, 3)], "WEBP", lossless=True), [[1, 2, 3]]),
    "TIFF": (encoded("RGB", [(1, 2, 3)], "TIFF"), [[1, 2, 3]]),
    "L": (encoded("L", [0, 7, 255]), grey([0, 7, 255])),
    "1": (encoded("1", [0, 255]), grey([0, 255])),
    "L, JPEG": (encoded("L", [200] * 8, "JPEG", quality=100), grey([200] * 8)),
    "P": (palette(), [[10, 20, 30], [40, 50, 60], [70, 80, 90]]),
    "P with a transparent entry": (palette(1), [[10, 20, 30], [255] * 3, [70, 80, 90]]),
    # 10 * 128 + 255 * 127 = 33665, / 255 = 132.02; 20 gives 137.04, 30 gives 142.06
    "P with alpha": (palette(bytes([128, 255, 0])), [[132, 137, 142], [40, 50, 60], [255] * 3]),
    "RGBA": (
        encoded("RGBA", [(10, 20, 30, 128), (9, 9, 9, 0), (1, 2, 3, 255)]),
        [[132, 137, 142], [255] * 3, [1, 2, 3]],
    ),
    "RGBA, WebP": (encoded("RGBA", [(9, 9, 9, 0), (1, 2, 3, 255)], "WEBP", lossless=True), [[255] * 3, [1, 2, 3]]),
    # 12 * 100 + 255 * 155 = 40725, / 255 = 159.7
    "LA": (encoded("LA", [(10, 128), (12, 100), (0, 0), (7, 255)]), grey([132, 160, 255, 7])),
    "RGB with a transparent colour": (
        encoded("RGB", [(1, 2, 3), (4, 5, 6)], transparency=(1, 2, 3)),
        [[255] * 3, [4, 5, 6]],
    ),
    "L with a transparent value": (encoded("L", [5, 6], transparency=5), grey([255, 6])),
    "CMYK": (encoded("CMYK", [(0, 0, 0, 0), (0, 0, 0, 255)], "TIFF"), grey([255, 0])),
    "16-bit PNG": (png(16, 0, 10, [DEEP_ARRAY.astype(">u2").tobytes()]), grey(DEEP_8)),
    "I;16 TIFF": (tiff(DEEP_ARRAY.astype("<u2"), 16, 1), grey(DEEP_8)),
    "I;16B TIFF": (encoded("I;16B", DEEP, "TIFF"), grey(DEEP_8)),
    # with colour or alpha Pillow keeps the high byte: 300 // 256 = 1, 514 // 256 = 2, 767 // 256 = 2
    "16-bit RGB PNG": (png(16, 2, 1, [struct.pack(">3H", 300, 514, 767)]), [[1, 2, 2]]),
    "16-bit RGBA PNG": (png(16, 6, 1, [struct.pack(">4H", 300, 514, 767, 65535)]), [[1, 2, 2]]),
}


@pytest.mark.parametrize("mode", MODES)
def test_read_image(tmp_path, mode):
    text, expected = MODES[mode]
    (tmp_path / "picture.png").write_bytes(text)  # the suffix does not decide, the content does
    image = data_reader.read_image(tmp_path / "picture.png")
    assert image.dtype == np.uint8 and image.shape == (1, len(expected), 3) and image.flags.writeable
    assert image[0].tolist() == expected


def test_16_bit_values_are_scaled_by_the_range_of_their_type(tmp_path):
    values = np.arange(65536).reshape(256, 256)
    (tmp_path / "a.png").write_bytes(png(16, 0, 256, [row.tobytes() for row in values.astype(">u2")]))
    expected = np.floor(values / 257 + 0.5)
    assert (data_reader.read_image(tmp_path / "a.png") == expected[:, :, None]).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "TIFF, 16 bit"])
def test_exif_orientation_is_applied_once(tmp_path, kind):
    stored = np.zeros((4, 6), np.uint8)
    stored[0, 0] = 255  # orientation 6: turn by 90 degrees clockwise to see it upright; this corner goes top right
    if kind.startswith("TIFF"):
        deep = kind != "TIFF"
        pixels = (stored.astype("<u2") * 257) if deep else stored
        (tmp_path / "a").write_bytes(tiff(pixels, 16 if deep else 8, 1, orientation=6))
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(stored).save(
            tmp_path / "a", format=kind, exif=exif, **({"quality": 100} if kind == "JPEG" else {})
        )
    image = data_reader.read_image(tmp_path / "a")
    assert image.shape == (6, 4, 3) and image[0, 3, 0] > 200 and image[:, :3].max() < 50
    if kind == "PNG":
        assert data_reader.read_mask(tmp_path / "a").shape == (4, 6)


def test_a_camera_jpeg_with_a_preview_is_read(tmp_path):
    first, second = Image.new("RGB", (8, 8), (200, 200, 200)), Image.new("RGB", (8, 8))
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second], quality=100)
    assert data_reader.read_image(tmp_path / "a.jpg").min() > 190


def test_read_mask(tmp_path):
    def mask(text: bytes) -> list[bool]:
        (tmp_path / "mask.png").write_bytes(text)
        values = data_reader.read_mask(tmp_path / "mask.png")
        assert values.dtype == bool and values.ndim == 2
        return values[0].tolist()

    assert mask(encoded("L", [0, 1, 2, 127, 255])) == [False, True, True, True, True]
    assert mask(encoded("1", [0, 255])) == [False, True]
    assert mask(encoded("RGB", [(0, 0, 0), (0, 0, 1)])) == [False, True]
    assert mask(encoded("RGBA", [(0, 0, 0, 255), (1, 0, 0, 0)])) == [False, True]
    assert mask(encoded("LA", [(0, 255), (1, 0)])) == [False, True]
    assert mask(png(16, 0, 2, [struct.pack(">2H", 0, 1)])) == [False, True]
    assert mask(tiff(np.array([[0.0, 0.5]], "<f4"), 32, 3)) == [False, True]
    assert mask(palette()) == [True, True, True]  # entry 0 is a colour here, not black


# Digest, streams, sizes, examples


def test_digest(tmp_path):
    mvtec(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "far/away/b")
    here, there = only(tmp_path / "a"), only(tmp_path / "far/away/b")
    assert data.digest(here.test) == data.digest(there.test) != data.digest(here.train)
    assert len(data.digest([])) == len(data.digest(here.train[:1])) == 64
    changes = [there.test[:-1], there.test[::-1], [there.test[0]._replace(label=0), *there.test[1:]]]
    save(there.test[0].mask, defect_mask(254))
    changes.append(there.test)
    assert len({data.digest(records) for records in (here.test, *changes)}) == 5
    with pytest.raises(UserError, match="cannot be opened"):
        data.digest([Record(tmp_path / "gone.png", 0, "good", None)])


def test_random_stream_is_pinned():
    """Our own numbers, pinned 2026-11-23 with NumPy 2.4.6: they must never change, or no run can be repeated."""
    assert random_stream(0, "corrupt", 0, 0).bit_generator.random_raw(3).tolist() == [
        8240326791102438527,
        13515311386224469474,
        16391348022105597419,
    ]
    assert random_stream(7, "corrupt", 3, 11).bit_generator.random_raw(3).tolist() == [
        6296736262568272122,
        10883750936568572778,
        18111426079725049385,
    ]
    assert random_stream(7, "corrupt", 3, 11).integers(0, 1000, 5).tolist() == [932, 341, 929, 590, 631]


def test_random_streams_differ_by_seed_purpose_and_key():
    keys = [(0, "a"), (1, "a"), (0, "b"), (2**32, "a"), (2**64 - 1, "a")]
    keys += [(0, "a", *key) for key in ((0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (2**32 - 1,))]
    first = {key: tuple(random_stream(*key).bit_generator.random_raw(2).tolist()) for key in keys}
    assert len(set(first.values())) == len(keys)
    assert all(tuple(random_stream(*key).bit_generator.random_raw(2).tolist()) == first[key] for key in keys)
    draws = np.stack([random_stream(5, "corrupt", 0, position).normal(size=2000) for position in range(8)])
    assert np.abs(np.corrcoef(draws) - np.eye(8)).max() < 0.1  # 4.5 standard errors of 1 / sqrt(2000)


@pytest.mark.parametrize("seed, key", [(-1, ()), (2**64, ()), (0, (-1,)), (0, (2**32,))])
def test_random_stream_refuses_keys_that_would_collide(seed, key):
    with pytest.raises(ValueError, match="expected seed in"):
        random_stream(seed, "a", *key)


PICTURE = np.array([[(37 * y * y + 91 * x + 53 * x * y) % 256 for x in range(7)] for y in range(5)], np.uint8)
# Sourced: tools/sources/resize.py, 2026-11-23, OpenCV 4.14.0 (INTER_LINEAR of float32) and Pillow 13.0.0 (BILINEAR of
# mode F), Python 3.11. Both programs' 8-bit results differ from these, rounded, by at most 1.
OPENCV_3_4 = [
    [53.0833, 136.5833, 102.75, 122.25],
    [125.875, 54.625, 175.375, 72.125],
    [90.0, 141.3333, 43.3333, 73.3333],
]
OPENCV_3_4_8_BIT = [[53, 137, 103, 122], [126, 55, 175, 72], [90, 141, 43, 73]]
PILLOW_3_4 = [
    [70.1973, 123.6514, 126.6228, 138.7687],
    [103.7407, 97.4756, 143.6533, 94.6402],
    [91.4354, 129.2286, 68.5886, 65.4218],
]
PILLOW_3_4_8_BIT = [[70, 124, 127, 138], [104, 98, 144, 95], [92, 130, 68, 65]]
OPENCV_8_10_ROW_1 = [16.1875, 78.9906, 130.9219, 132.4531, 113.1844, 103.5156, 110.6469, 190.5781, 155.3094, 77.3125]


@pytest.mark.parametrize(
    "filter, expected, eight_bit",
    [("bilinear", OPENCV_3_4, OPENCV_3_4_8_BIT), ("antialias", PILLOW_3_4, PILLOW_3_4_8_BIT)],
)
def test_resize_has_the_numbers_of_opencv_and_pillow(filter, expected, eight_bit):
    image = torch.from_numpy(np.stack([PICTURE, PICTURE // 2, 255 - PICTURE]))
    small = resize(image, (3, 4), filter)
    assert small.dtype == torch.uint8 and small.shape == (3, 3, 4)
    assert small[0].tolist() == np.rint(expected).tolist()
    assert small[2].tolist() == np.rint(255 - np.array(expected)).tolist()
    assert np.abs(small[0].int().numpy() - np.array(eight_bit)).max() <= 1
    assert resize(image, (8, 10), filter)[0, 1].tolist() == np.rint(OPENCV_8_10_ROW_1).tolist()
    assert torch.equal(resize(image, (5, 7), filter), image)


def test_resize_rounds_half_to_even():
    pair = torch.tensor([[[0, 1], [0, 1]], [[1, 2], [1, 2]], [[254, 255], [254, 255]]], dtype=torch.uint8)
    assert resize(pair, (1, 1)).flatten().tolist() == [0, 2, 254]  # 0.5, 1.5, 254.5


def test_resize_refuses_what_it_does_not_take():
    for image, filter in ((torch.zeros(3, 4, 4), "bilinear"), (torch.zeros(3, 4, 4).byte(), "cubic")):
        with pytest.raises(ValueError, match=r"expected \(3, H, W\) uint8"):
            resize(image, (2, 2), filter)


@pytest.fixture
def paths(tmp_path):
    return [save(tmp_path / f"{index}.png", NOISE[index : index + 9, : 12 + index]) for index in range(5)]


def test_images_are_the_same_in_memory_and_on_demand(paths):
    eager, lazy = Images(paths, (7, 8)), Images(paths, (7, 8), memory_limit=5 * 3 * 7 * 8 - 1)
    assert eager.in_memory and not lazy.in_memory and len(eager) == len(lazy) == 5
    assert Images(paths, (7, 8), memory_limit=5 * 3 * 7 * 8).in_memory
    for index, path in enumerate(paths):
        expected = resize(samples.to_tensor(data_reader.read_image(path)), (7, 8))
        assert torch.equal(eager[index], expected) and torch.equal(lazy[index], expected)
    assert len(list(eager)) == 5 and not torch.equal(Images(paths, (7, 8), "antialias")[0], eager[0])
    paths[0].unlink()
    assert eager[0].shape == (3, 7, 8)  # read once
    with pytest.raises(UserError, match=r"0\.png: cannot be opened"):
        lazy[0]
    with pytest.raises(UserError, match=r"0\.png: cannot be opened"):
        Images(paths, (7, 8))


def sizes_and_sum(image: np.ndarray) -> tuple:
    """A look."""
    return image.shape, int(image.sum(dtype=np.int64))


@pytest.mark.parametrize("limit", [2**30, 0])
def test_pictures_are_looked_at_in_their_own_size(paths, limit):
    """In the order of the files, whether they fit into memory or not; read once where they do."""
    images = Images(paths, (4, 4), memory_limit=limit, look=sizes_and_sum)
    assert images.looks == [sizes_and_sum(data_reader.read_image(path)) for path in paths]
    assert images.in_memory == (limit > 0) and torch.equal(images[2], Images(paths, (4, 4))[2])


class Example(data.NamedTuple):
    image: torch.Tensor
    noise: torch.Tensor


def corrupt(image, rng, options, sources):
    """At module level, as a spawned worker needs it."""
    return Example(
        image * options["gain"], torch.from_numpy(rng.random(3)) + (100 if sources.index is None else sources.index)
    )


KEYS = [(0, 0, 3), (0, 1, 1), (1, 0, 3), (1, 1, 3)]


def test_training_set(paths):
    images = Images(paths, (4, 4))
    training = TrainingSet(images, corrupt, {"gain": 0.5}, Sources(images=images), seed=3)
    examples = [training[key] for key in KEYS]
    assert len(training) == 5 and torch.equal(examples[0].image, images[3].float() / 255 * 0.5)
    drawn = torch.from_numpy(random_stream(3, "corrupt", 0, 1).random(3))
    assert torch.equal(examples[1].noise, drawn + 1)  # of the image with index 1
    validating = TrainingSet(images, corrupt, {"gain": 0.5}, Sources(images=Images(paths[:2], (4, 4))), seed=3)
    assert torch.equal(validating[KEYS[1]].noise, drawn + 100)  # it is none of those that train
    assert len({tuple(example.noise.tolist()) for example in examples}) == 4
    again = pickle.loads(pickle.dumps(training))
    assert all(torch.equal(again[key].noise, example.noise) for key, example in zip(KEYS, examples))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_training_set_in_workers_gives_the_same_numbers(paths, context):
    if context == "fork" and not hasattr(os, "fork"):
        pytest.skip("no fork here")
    images = Images(paths, (4, 4))
    training = TrainingSet(images, corrupt, {"gain": 0.5}, Sources(images=images), seed=3)
    workers = {"num_workers": 2 if context == "fork" else 1, "multiprocessing_context": context}
    loaded = list(torch.utils.data.DataLoader(training, batch_size=None, sampler=KEYS, **workers))
    for key, example in zip(KEYS, loaded, strict=True):
        assert torch.equal(example.image, training[key].image) and torch.equal(example.noise, training[key].noise)
    assert training.images.pixels.is_shared() == (context == "spawn")  # sent as shared memory, not copied
