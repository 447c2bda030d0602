"""Random streams, resizing, decoded images and training examples."""

import hashlib
import os
import pickle
from typing import NamedTuple

import numpy as np
import pytest
import torch
from test_layouts import NOISE, save

from adref.data.examples import Images, TrainingSet, random_stream, resize, to_tensor
from adref.data.reader import read_image
from adref.method import Sources
from adref.options import UserError


def test_random_stream_is_pinned():
    """Pinned 2026-11-23 with NumPy 2.4.6; if these change, no run can be repeated."""
    first = [8240326791102438527, 13515311386224469474, 16391348022105597419]
    other = [6296736262568272122, 10883750936568572778, 18111426079725049385]
    assert random_stream(0, "corrupt", 0, 0).bit_generator.random_raw(3).tolist() == first
    assert random_stream(7, "corrupt", 3, 11).bit_generator.random_raw(3).tolist() == other
    assert random_stream(7, "corrupt", 3, 11).integers(0, 1000, 5).tolist() == [932, 341, 929, 590, 631]


def test_random_streams_differ_by_seed_purpose_and_key():
    keys = [(0, "a"), (1, "a"), (0, "b"), (2**32, "a"), (2**64 - 1, "a")]
    keys += [(0, "a", *key) for key in ((0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (2**32 - 1,))]
    assert len({tuple(random_stream(*key).bit_generator.random_raw(2).tolist()) for key in keys}) == len(keys)
    draws = np.stack([random_stream(5, "corrupt", 0, position).normal(size=2000) for position in range(8)])
    assert np.abs(np.corrcoef(draws) - np.eye(8)).max() < 0.1  # 4.5 standard errors of 1 / sqrt(2000)
    for seed, key in ((-1, ()), (2**64, ()), (0, (-1,)), (0, (2**32,))):
        with pytest.raises(ValueError, match="expected seed in"):
            random_stream(seed, "a", *key)


PICTURE = np.array([[(37 * y * y + 91 * x + 53 * x * y) % 256 for x in range(7)] for y in range(5)], np.uint8)
# Sourced: tools/sources/resize.py, 2026-11-23, OpenCV 4.14.0 (INTER_LINEAR of float32) and Pillow 13.0.0 (BILINEAR of
# mode F), Python 3.11. Both programs' 8-bit results differ from these, rounded, by at most 1.
OPENCV_8_10_ROW_1 = [16.1875, 78.9906, 130.9219, 132.4531, 113.1844, 103.5156, 110.6469, 190.5781, 155.3094, 77.3125]
SHRUNK = {  # 3 x 4 pixels: in float, in 8 bit
    "bilinear": ([[53.0833, 136.5833, 102.75, 122.25], [125.875, 54.625, 175.375, 72.125],
                  [90.0, 141.3333, 43.3333, 73.3333]], [[53, 137, 103, 122], [126, 55, 175, 72], [90, 141, 43, 73]]),
    "antialias": ([[70.1973, 123.6514, 126.6228, 138.7687], [103.7407, 97.4756, 143.6533, 94.6402],
                   [91.4354, 129.2286, 68.5886, 65.4218]],
                  [[70, 124, 127, 138], [104, 98, 144, 95], [92, 130, 68, 65]]),
}  # fmt: skip


@pytest.mark.parametrize("filter", SHRUNK)
def test_resize_has_the_numbers_of_opencv_and_pillow(filter):
    expected, eight_bit = SHRUNK[filter]
    image = torch.from_numpy(np.stack([PICTURE, PICTURE // 2, 255 - PICTURE]))
    small = resize(image, (3, 4), filter)
    assert small.dtype == torch.uint8 and small.shape == (3, 3, 4)
    assert small[0].tolist() == np.rint(expected).tolist()
    assert small[2].tolist() == np.rint(255 - np.array(expected)).tolist()
    assert np.abs(small[0].int().numpy() - np.array(eight_bit)).max() <= 1
    assert resize(image, (8, 10), filter)[0, 1].tolist() == np.rint(OPENCV_8_10_ROW_1).tolist()
    assert torch.equal(resize(image, (5, 7), filter), image)


def test_resize_rounds_half_to_even_and_refuses_other_images():
    pair = torch.tensor([[[0, 1], [0, 1]], [[1, 2], [1, 2]], [[254, 255], [254, 255]]], dtype=torch.uint8)
    assert resize(pair, (1, 1)).flatten().tolist() == [0, 2, 254]  # 0.5, 1.5, 254.5
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
        expected = resize(to_tensor(read_image(path)), (7, 8))
        assert torch.equal(eager[index], expected) and torch.equal(lazy[index], expected)
    assert (
        eager.digests == lazy.digests == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
        and eager.problems == []
    )
    assert len(list(eager)) == 5 and not torch.equal(Images(paths, (7, 8), "antialias")[0], eager[0])
    paths[0].unlink()
    save(paths[1], NOISE)
    assert eager[0].shape == (3, 7, 8)  # read once
    for index, words in enumerate((r"0\.png: cannot be opened", r"1\.png has changed")):
        with pytest.raises(UserError, match=words):
            lazy[index]
    (problem,) = Images(paths, (7, 8)).problems
    assert problem.path == paths[0] and problem.reason.startswith("cannot be opened")


def test_full_resolution_images_are_hashed(paths):
    for limit in (2**30, 0):
        images = Images(paths, (4, 4), memory_limit=limit, image_hash=np.shape)
        assert images.hashes == [(9, 12 + index, 3) for index in range(5)]


class Example(NamedTuple):
    image: torch.Tensor
    noise: torch.Tensor


def corrupt(image, rng, options, sources):
    index = 100 if sources.index is None else sources.index
    return Example(image * options["gain"], torch.from_numpy(rng.random(3)) + index)


KEYS = [(0, 0, 3), (0, 1, 1), (1, 0, 3), (1, 1, 3)]


@pytest.fixture
def training(paths):
    images = Images(paths, (4, 4))
    return TrainingSet(corrupt, {"gain": 0.5}, Sources(images=images), 3, "corrupt")


def test_training_set(training):
    examples = [training[key] for key in KEYS]
    assert len(training) == 5 and torch.equal(examples[0].image, training.images[3].float() / 255 * 0.5)
    drawn = torch.from_numpy(random_stream(3, "corrupt", 0, 1).random(3))
    assert torch.equal(examples[1].noise, drawn + 1)  # of the image with index 1
    validating = TrainingSet(corrupt, {"gain": 0.5}, training.sources, 3, "corrupt", training.images)
    assert torch.equal(validating[KEYS[1]].noise, drawn + 100)  # no training image, so no index
    assert len({tuple(example.noise.tolist()) for example in examples}) == 4
    again = pickle.loads(pickle.dumps(training))
    assert all(torch.equal(again[key].noise, example.noise) for key, example in zip(KEYS, examples))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_training_set_in_workers_gives_the_same_numbers(training, context):
    if context == "fork" and not hasattr(os, "fork"):
        pytest.skip("no fork here")
    workers = {"num_workers": 2 if context == "fork" else 1, "multiprocessing_context": context}
    loaded = list(torch.utils.data.DataLoader(training, batch_size=None, sampler=KEYS, **workers))
    for key, example in zip(KEYS, loaded, strict=True):
        assert torch.equal(example.image, training[key].image) and torch.equal(example.noise, training[key].noise)
    assert training.images.pixels.is_shared() == (context == "spawn")  # sent as shared memory, not copied
