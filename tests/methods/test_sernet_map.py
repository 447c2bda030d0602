"""The terms of SeRNet's map: CIELAB, MSGMS and the mean filter, by hand and by other programs."""

import numpy as np
import pytest
import torch
from conftest import digest, golden

from adref.methods.sernet.map import cielab, edgrec_colour, msgms
from adref.ops.filters import mean_filter
from adref.ops.textures import to_space

# All numbers below: `PYTHONPATH=tools python tools/sources/sernet.py`, 2026-11-24.
# Sourced: mean, standard deviation and the means of the products with two lists of hashed numbers, of colour-science
# 0.4.7's XYZ_to_Lab after its sRGB decoding, seven digits of the matrix.
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
# and scikit-image 0.26.0's block_reduce and resize, with which OpenCV 5.0.0's resize agrees to 2e-15.
# Height (of 48 x 64, or 45 x 55), scales, grey, padding.
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


def lab_of(*colour: float) -> list[float]:
    return cielab(torch.tensor(colour, dtype=torch.float64).view(1, 3, 1, 1)).flatten().tolist()


@pytest.mark.holds("sernet", "Colour")
def test_colours_by_hand():
    """Seven colours and black; sums of squared differences of a and b, and times c."""
    for colour, expected in (
        ((1, 1, 1), (100, 0, 0)), ((0.5, 0.5, 0.5), (53.38897, 0, 0)), ((1, 0, 0), (53.24079, 80.09246, 67.20320)),
        ((0, 1, 0), (87.73472, -86.18272, 83.17932)), ((0, 0, 1), (32.29701, 79.18752, -107.86016)),
        ((200 / 255, 100 / 255, 50 / 255), (53.62954, 36.30578, 45.37953)),
        ((1 / 255, 2 / 255, 3 / 255), (0.50983, -0.12245, -0.47060)), ((0, 0, 0), (0, 0, 0)),
    ):  # fmt: skip
        assert lab_of(*colour) == pytest.approx(expected, abs=2e-5)
    near = lab_of(200 / 255, 100 / 255, 50 / 255), lab_of(190 / 255, 110 / 255, 60 / 255)
    for (x, y), plain, weighted in ((near, 99.43928, 0.09943928),
                                    ((lab_of(1, 0, 0), lab_of(0, 1, 0)), 27902.6707, 27.9027)):  # fmt: skip
        squares = sum((p - q) ** 2 for p, q in zip(x[1:], y[1:]))
        assert squares == pytest.approx(plain, abs=5e-5) and 0.001 * squares == pytest.approx(weighted, abs=5e-5)


@pytest.mark.holds("sernet", "Colour")
def test_cielab_agrees_with_other_programs():
    colours, dark = (golden.hashed(name, 24, 40, 3).double() for name in ("colours", "dark"))
    images = {"bright": 0.5 + 0.5 * colours, "all": colours, "dark": 0.09 * dark}
    for (name, channel), expected in SOURCED_LAB.items():
        found = cielab(images[name].permute(2, 0, 1)[None])[0, "Lab".index(channel)]
        assert digest(found) == pytest.approx(expected, rel=1e-9, abs=1e-9), (name, channel)


def test_edgrec_overflows_as_its_code_does():
    """In 8 bits a difference of 16 squares to 0, one of 20 to 144, and the sum wraps, too."""
    x, y = golden.hashed("x", 2, 3, 16, 24), golden.hashed("y", 2, 3, 16, 24)
    found = edgrec_colour(x, y)
    assert found.shape == (2, 1, 16, 24) and edgrec_colour(x, x).max() == 0
    for b, r, c in ((0, 0, 0), (1, 7, 3), (0, 15, 23), (1, 2, 20)):
        labs = [to_space((180 * z[b, :, r, c]).numpy().astype(np.uint8)[None], "Lab")[0].astype(int) for z in (x, y)]
        squares = [int(labs[0][i] - labs[1][i]) ** 2 % 256 for i in (1, 2)]
        assert found[b, 0, r, c] == sum(squares) % 256


def difference(x: torch.Tensor, y: torch.Tensor, scales: int = 4, **settings) -> torch.Tensor:
    return 1 - msgms(x, y, scales, **settings)


@pytest.mark.holds("sernet", "Structure")
def test_a_step_against_flat():
    """A unit step at column 32, replicated edges; the filter's border makes no difference to the maximum."""
    step = (torch.arange(64) >= 32).double().expand(1, 3, 64, 64)
    flat = torch.zeros(1, 3, 64, 64).double()
    one, four = (difference(step, flat, scales, padding="replicate") for scales in (1, 4))
    assert one.max().item() == pytest.approx(0.99740475, abs=5e-9)
    assert [one.mean().item(), four.mean().item()] == pytest.approx([0.03116890, 0.11688337], abs=5e-9)
    for border in ("reflect", "zero"):
        boxes = [mean_filter(found, 21, border).max().item() for found in (one, four)]
        assert boxes == pytest.approx([0.09499093, 0.35250540], abs=5e-9)
    assert difference(step, flat, padding="zero").mean().item() == pytest.approx(0.21304050, abs=5e-9)
    for padding in ("zero", "replicate"):
        half = difference(step, step / 2, padding=padding)
        assert half.max().item() == pytest.approx(0.19958486, abs=5e-9)


def test_the_golden_image_against_a_paler_one_and_its_negative():
    """2, 3 and 4 scales; the gradient has no sign, so the negative differs at a border of zeros alone."""
    k, r, c = np.mgrid[:3, :64, :64]
    image = torch.from_numpy((7 * r + 13 * c + 29 * k) % 256 / 255)[None]
    for padding, expected in (("zero", (0.00495024, 0.00470155, 0.00413815)),
                              ("replicate", (0.00518160, 0.00523139, 0.00507469))):  # fmt: skip
        found = [difference(image, 0.9 * image + 0.05, scales, padding=padding).mean().item() for scales in (2, 3, 4)]
        assert found == pytest.approx(expected, abs=5e-9)
    zero, *others = (difference(image, 1 - image, padding=p).max() for p in ("zero", "replicate", "none"))
    assert max(others) < 1e-12 and zero > 0.3


@pytest.mark.holds("sernet", "Structure")
def test_msgms_agrees_with_other_programs():
    for (height, scales, grey, padding), expected in SOURCED_MSGMS.items():
        a, b = (golden.hashed(name, 1, 3, 48, 64).double() for name in ("a", "b"))
        rows, columns = slice(height), slice(64 if height == 48 else 55)
        found = msgms(*(p[..., rows, columns] for p in (a, 0.3 * b + 0.7 * a)), scales, grey, padding)
        assert digest(found) == pytest.approx(expected, abs=1e-9), (height, scales, grey, padding)


def test_images_that_cannot_be_compared_are_refused():
    x = torch.zeros(1, 3, 24, 24)
    for first, second, scales in ((x, x, 5), (x, x[..., :23], 1), (x[0], x[0], 1), (x, x, 0)):
        with pytest.raises(ValueError, match=r"expected two"):
            msgms(first, second, scales)
    with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\)"):
        cielab(x[:, :1])
