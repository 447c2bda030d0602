"""DRAEM's texture operations against slow loops; colour spaces against the standard library, formulas and OpenCV."""

import colorsys
import json
from pathlib import Path

import numpy as np
import pytest

from adref.ops import textures
from adref.ops.textures import OPERATIONS, SPACES, apply_operations, draw_operations, from_space, to_space

LUMINANCE = {"YCrCb": 0, "HSV": 2, "HLS": 1, "Lab": 0, "Luv": 0, "YUV": 0}


def picture(height: int = 24, width: int = 20) -> np.ndarray:
    """Uneven channels with ties, (H, W, 3) uint8."""
    y, x, channel = np.mgrid[0:height, 0:width, 0:3]
    return ((7 * x + 3 * y + x * y // 5) * (channel + 1) % (200 + 20 * channel) + 10 * channel).astype(np.uint8)


def colour_grid(steps: int) -> np.ndarray:
    """(steps, steps^2, 3) uint8: a cube of colours with both ends."""
    levels = np.rint(np.linspace(0, 255, steps)).astype(np.uint8)
    return np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(steps, -1, 3)


def difference(one: np.ndarray, other: np.ndarray, circular: bool = False) -> np.ndarray:
    """Largest absolute difference of each channel; the first one modulo 180 if `circular`."""
    gap = np.abs(one.astype(float) - other.astype(float))
    if circular:
        gap[..., 0] = np.minimum(gap[..., 0], 180 - gap[..., 0])
    return gap.reshape(-1, 3).max(axis=0)


def each_channel(function, texture: np.ndarray) -> np.ndarray:
    """A function of a flat list of values, applied to each channel by itself."""
    return np.stack([np.reshape(function(c.ravel().tolist()), c.shape) for c in np.moveaxis(texture, 2, 0)], axis=2)


def test_gamma():
    texture = picture()
    expected = np.stack([255 * (texture[..., i] / 255) ** g for i, g in enumerate((0.5, 1.0, 1.9))], axis=2)
    changed = textures.gamma(texture, 0.5, 1.0, 1.9)
    assert ((changed <= expected + 1e-3) & (changed > expected - 1)).all()  # cut off, as imgaug does
    np.testing.assert_array_equal(textures.gamma(texture, 1.0, 1.0, 1.0), texture)


@pytest.mark.parametrize(("space", "multiply_first"), [*zip(SPACES, (True, False, False) * 2)])
def test_brightness(space, multiply_first):
    texture, factor, addend = picture(), 1.125, 21  # a factor that float32 holds exactly
    converted = to_space(texture, space)
    for index in np.ndindex(texture.shape[:2]):
        y = int(converted[index][LUMINANCE[space]])
        value = min(int(y * factor), 255) + addend if multiply_first else int(min(y + addend, 255) * factor)
        converted[index][LUMINANCE[space]] = min(value, 255)
    changed = textures.brightness(texture, space, factor, addend, multiply_first)
    np.testing.assert_array_equal(changed, from_space(converted, space))
    darker = textures.brightness(texture, space, 0.8, -30, multiply_first)
    assert darker.sum(dtype=int) < texture.sum(dtype=int) < changed.sum(dtype=int)


def test_sharpness():
    texture = picture()
    x = texture.astype(float)
    smooth = x.copy()  # the outermost pixels stay
    smooth[1:-1, 1:-1] = 4 * x[1:-1, 1:-1]
    for i in range(3):
        for j in range(3):
            smooth[1:-1, 1:-1] += x[i : i + x.shape[0] - 2, j : j + x.shape[1] - 2]
    smooth[1:-1, 1:-1] /= 13
    for factor in (0.0, 0.4, 1.7):
        expected = np.clip(smooth + factor * (x - smooth), 0, 255)
        assert difference(OPERATIONS["sharpness"].apply(texture, factor), expected).max() < 2  # two roundings
    np.testing.assert_array_equal(OPERATIONS["sharpness"].apply(texture, 1.0), texture)


def test_hue_and_saturation():
    texture = picture()
    before = to_space(texture, "HSV").astype(int)
    for hue, saturation in ((17, 0), (-50, 30), (50, -50)):
        shifted = before.copy()
        shifted[..., 0] = (shifted[..., 0] + int(hue * 180 / 255)) % 180
        shifted[..., 1] = np.clip(shifted[..., 1] + saturation, 0, 255)
        expected = from_space(shifted.astype(np.uint8), "HSV")
        np.testing.assert_array_equal(textures.hue_and_saturation(texture, hue, saturation), expected)
    red = np.full((1, 1, 3), (255, 0, 0), np.uint8)
    assert textures.hue_and_saturation(red, 85, 0).tolist() == [[[0, 255, 0]]]  # 85 of 255: a third of the circle
    assert textures.hue_and_saturation(red, 0, -255).tolist() == [[[255, 255, 255]]]


def test_solarise_posterise_invert():
    values = np.arange(255, dtype=np.uint8).reshape(5, 17, 3)
    expected = [255 - v if v >= 100 else v for v in range(255)]
    assert OPERATIONS["solarise"].apply(values, 100).ravel().tolist() == expected
    assert OPERATIONS["solarise"].apply(values, None).ravel().tolist() == list(range(255))
    for bits in range(1, 9):
        step = 2 ** (8 - bits)
        assert OPERATIONS["posterise"].apply(values, bits).ravel().tolist() == [v // step * step for v in range(255)]
    assert OPERATIONS["invert"].apply(values).ravel().tolist() == [255 - v for v in range(255)]


@pytest.mark.parametrize("cutoff", [0, 7])
def test_autocontrast_equals_a_slow_loop(cutoff):
    def stretch(values):
        kept = sorted(values)
        cut = len(values) * cutoff // 100
        low, high = kept[cut], kept[-1 - cut]
        return [min(max((v - low) * 255 / (high - low), 0), 255) for v in values]

    changed, exact = OPERATIONS["autocontrast"].apply(picture(), cutoff), each_channel(stretch, picture())
    assert ((changed <= exact + 1e-9) & (changed > exact - 1 - 1e-9)).all()  # cut off, as Pillow does


def test_equalise_equals_a_slow_loop():
    def spread(values):
        step = (len(values) - values.count(max(values))) // 255
        return [min((step // 2 + sum(v > other for other in values)) // step, 255) for v in values]

    texture = picture(40, 30)
    np.testing.assert_array_equal(OPERATIONS["equalise"].apply(texture), each_channel(spread, texture))
    few = texture[:4, :4]  # fewer than 255 pixels: nothing to spread
    np.testing.assert_array_equal(OPERATIONS["equalise"].apply(few), few)


def test_three_different_operations_in_random_order():
    rng = np.random.default_rng(0)
    drawn = [[name for name, _ in draw_operations(rng)] for _ in range(3000)]
    assert all(len(set(names)) == 3 for names in drawn)
    for place in range(3):  # 300 expected each, at each place
        counts = {name: sum(names[place] == name for names in drawn) for name in OPERATIONS}
        assert len(counts) == 10 and min(counts.values()) > 230 and max(counts.values()) < 370
    some = {name for _ in range(200) for name, _ in draw_operations(rng, 2, textures.PAPER_OPERATIONS)}
    assert some == set(OPERATIONS) - {"gamma", "invert", "rotate"}


def test_ranges_of_the_numbers():
    rng = np.random.default_rng(1)
    drawn = {name: [operation.draw(rng) for _ in range(2000)] for name, operation in OPERATIONS.items()}

    def ends(name, place=0):
        values = [numbers[place] for numbers in drawn[name] if numbers[place] is not None]
        return min(values), max(values)

    for i in range(3):
        assert ends("gamma", i) == pytest.approx((0.5, 2.0), abs=0.01)
    assert {numbers[0] for numbers in drawn["brightness"]} == set(SPACES)
    assert ends("brightness", 1) == pytest.approx((0.8, 1.2), abs=0.01) and ends("brightness", 2) == (-30, 30)
    assert 900 < sum(numbers[3] for numbers in drawn["brightness"]) < 1100
    assert ends("sharpness") == pytest.approx((0, 2), abs=0.01)
    assert ends("hue_and_saturation", 0) == ends("hue_and_saturation", 1) == (-50, 50)
    assert ends("solarise") == (32, 127) and 900 < sum(numbers[0] is None for numbers in drawn["solarise"]) < 1100
    assert ends("posterise") == (1, 8) and ends("autocontrast") == (0, 20)
    assert ends("rotate") == pytest.approx((-45, 45), abs=0.2)
    for name, numbers in drawn.items():  # plain values: a drawn sample can be written down
        assert json.loads(json.dumps(numbers[0])) == list(numbers[0]), name


def test_applying_is_pure_and_follows_the_order():
    texture = picture()
    texture.flags.writeable = False
    for seed in range(5):
        drawn, expected = draw_operations(np.random.default_rng(seed)), texture
        for name, numbers in drawn:
            expected = OPERATIONS[name].apply(expected, *numbers)
        changed = apply_operations(texture, drawn)
        assert changed.dtype == np.uint8 and changed.flags.writeable
        np.testing.assert_array_equal(changed, expected)
    assert not np.shares_memory(apply_operations(texture, ()), texture)
    with pytest.raises(ValueError, match="expected a texture"):
        apply_operations(texture.astype(np.float32), ())


def test_bgr_only_changes_the_order_of_the_channels():
    texture = picture()
    differs = set()
    for seed in range(60):
        drawn = draw_operations(np.random.default_rng(seed), count=1)
        changed = apply_operations(texture, drawn, "bgr")
        np.testing.assert_array_equal(changed, apply_operations(texture[..., ::-1], drawn)[..., ::-1])
        if (changed != apply_operations(texture, drawn)).any():
            differs.add(drawn[0][0])
    assert {"brightness", "hue_and_saturation"} <= differs <= {"brightness", "hue_and_saturation", "gamma"}


def test_hsv_and_hls_agree_with_the_standard_library():
    colours = colour_grid(9)
    for space, function in (("HSV", colorsys.rgb_to_hsv), ("HLS", colorsys.rgb_to_hls)):
        exact = np.apply_along_axis(lambda c, f=function: f(*(c / 255)), 2, colours) * (180, 255, 255)
        codes = to_space(colours, space)
        assert codes[..., 0].max() < 180
        assert difference(codes, exact, circular=True).max() < 0.501
        inverse = colorsys.hsv_to_rgb if space == "HSV" else colorsys.hls_to_rgb
        codes = colour_grid(9)
        codes[..., 0] = codes[..., 0] % 180
        exact = np.apply_along_axis(lambda c, f=inverse: f(*(c / (180, 255, 255))), 2, codes) * 255
        assert difference(from_space(codes, space), exact).max() < 0.501


def test_lab_and_luv_equal_their_formulas():
    colours = colour_grid(9)
    linear = np.where(colours > 10.31475, ((colours / 255 + 0.055) / 1.055) ** 2.4, colours / 255 / 12.92)
    x, y, z = np.moveaxis(linear @ np.array(textures._XYZ).T, 2, 0)

    def f(t):
        return np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)

    lightness = 116 * f(y) - 16
    lab = np.stack((lightness * 2.55, 500 * (f(x / 0.950456) - f(y)) + 128, 200 * (f(y) - f(z / 1.088754)) + 128), -1)
    assert difference(to_space(colours, "Lab"), lab).max() < 0.51
    total = np.maximum(x + 15 * y + 3 * z, 1e-12)
    u_white, v_white = (c / (0.950456 + 15 + 3 * 1.088754) for c in (4 * 0.950456, 9))
    u, v = 13 * lightness * (4 * x / total - u_white), 13 * lightness * (9 * y / total - v_white)
    luv = np.stack((lightness * 2.55, (u + 134) * 255 / 354, (v + 140) * 255 / 262), -1)
    luv[0, 0] = (0, 134 * 255 / 354, 140 * 255 / 262)
    assert difference(to_space(colours, "Luv"), luv).max() < 0.51


OPENCV = json.loads((Path(__file__).parent.parent / "golden" / "opencv_colours.json").read_text())


@pytest.mark.parametrize("space", SPACES)
def test_conversions_agree_with_opencv(space):
    """Sourced: tools/sources/textures.py; version and date stand in the file. Largest differences from OpenCV's 8-bit
    results, in grey levels; its tables differ as much from its float32."""
    levels = np.array(OPENCV["levels"], np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    codes, back = (np.frombuffer(bytes.fromhex(text), np.uint8).reshape(-1, 3) for text in OPENCV["spaces"][space])
    gap = difference(to_space(colours, space), codes, circular=space in ("HSV", "HLS"))
    assert (gap <= ((1, 2, 1) if space == "Lab" else 1)).all()
    brighter = codes.astype(int)
    brighter[:, LUMINANCE[space]] = np.minimum(brighter[:, LUMINANCE[space]] + 20, 255)
    found = from_space(brighter.astype(np.uint8), space)
    assert difference(found, back).max() <= (2 if space in ("Lab", "Luv") else 1)
