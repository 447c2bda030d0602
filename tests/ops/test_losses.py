"""SSIM, the signs of channels and focal loss against hand values, slow loops and other programs."""

import itertools
import math

import numpy as np
import pytest
import torch

from adref.ops.losses import channel_signs, focal, gaussian_window, ssim, ssim_map


def grid(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of every pixel as float64."""
    return torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")


def pattern_pair() -> tuple[torch.Tensor, torch.Tensor]:
    """(1, 1, 64, 64) float64."""
    y, x = grid(64, 64)
    return ((x + y) % 16 / 15)[None, None], ((x + 2 * y) % 16 / 15)[None, None]


def hash_pair() -> tuple[torch.Tensor, torch.Tensor]:
    """The pair of tools/sources/losses.py: (1, 1, 48, 64) float64."""
    y, x = grid(48, 64)
    return ((3 * x + 5 * y + x * y) % 17 / 16)[None, None], ((x + 2 * y + x * y // 4) % 16 / 15)[None, None]


def slow_ssim_at(a, b, row, column, weights, reach, value_range=1.0) -> float:
    """SSIM of one window of two lists of rows, zeros outside; sums written out, variances about the mean."""
    values = []
    for i, j in itertools.product(range(-reach, reach + 1), repeat=2):
        inside = 0 <= row + i < len(a) and 0 <= column + j < len(a[0])
        pair = (a[row + i][column + j], b[row + i][column + j]) if inside else (0.0, 0.0)
        values.append((weights[i + reach] * weights[j + reach], *pair))
    mu_a, mu_b = sum(w * p for w, p, _ in values), sum(w * q for w, _, q in values)
    var_a, var_b = sum(w * (p - mu_a) ** 2 for w, p, _ in values), sum(w * (q - mu_b) ** 2 for w, _, q in values)
    covariance = sum(w * (p - mu_a) * (q - mu_b) for w, p, q in values)
    c1, c2 = (0.01 * value_range) ** 2, (0.03 * value_range) ** 2
    luminance = (2 * mu_a * mu_b + c1) / (mu_a**2 + mu_b**2 + c1)
    return luminance * (2 * covariance + c2) / (var_a + var_b + c2)


def test_gaussian_window_is_the_normalised_gaussian():
    weights = [math.exp(-(k**2) / 4.5) for k in range(-5, 6)]
    expected = torch.tensor([w / sum(weights) for w in weights], dtype=torch.float64)
    torch.testing.assert_close(gaussian_window(11, 1.5), expected, rtol=1e-14, atol=0)


def test_ssim_of_two_constants():  # far from the border the structure term is 1
    dark = torch.full((1, 1, 256, 256), 0.25, dtype=torch.float64)
    similarity = ssim_map(dark, 3 * dark)[0, 0]
    assert similarity[128, 128].item() == pytest.approx((2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4), abs=1e-9)
    assert similarity[128, 128].item() == pytest.approx(0.6000640, abs=1e-7)
    assert similarity[0, 0].item() == pytest.approx(0.3616705, abs=1e-7)
    assert similarity.mean().item() == pytest.approx(0.5844963, abs=1e-7)


@pytest.mark.parametrize(("window", "padding", "expected"), [
    ("gaussian", "zero", 0.1008987), ("gaussian", "valid", 0.0166722), ("uniform", "zero", 0.0947893),
    ("uniform", "valid", -0.0286906),
])  # fmt: skip
@pytest.mark.holds("draem", "1")
@pytest.mark.holds("srdad", "17")
def test_ssim_of_the_pattern_pair(window, padding, expected):
    a, b = pattern_pair()
    assert ssim(a, b, window=window, padding=padding).item() == pytest.approx(expected, abs=1e-7)
    assert ssim(a.float(), b.float(), window=window, padding=padding).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("window", ["gaussian", "uniform"])
@pytest.mark.holds("vit_autoencoder", "12")
def test_ssim_map_equals_a_slow_loop(window):
    a, b = torch.rand(2, 1, 2, 9, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weights = gaussian_window(5, 1.0).tolist() if window == "gaussian" else [0.2] * 5
    zero = ssim_map(a, b, window=window, size=5, sigma=1.0, value_range=2.0)
    valid = ssim_map(a, b, window=window, size=5, sigma=1.0, padding="valid", value_range=2.0)
    for c in range(2):
        p, q = a[0, c].tolist(), b[0, c].tolist()
        expected = [[slow_ssim_at(p, q, y, x, weights, 2, 2.0) for x in range(8)] for y in range(9)]
        torch.testing.assert_close(zero[0, c], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(valid, zero[..., 2:-2, 2:-2], rtol=0, atol=1e-12)


# Sourced: printed by `PYTHONPATH=tools python tools/sources/losses.py` on 2026-11-23.
@pytest.mark.parametrize(
    ("settings", "expected", "tolerance"),
    [
        ({}, 0.02055005125854669, 1e-12),  # scikit-image 0.26.0, gaussian_weights, sigma 1.5, no sample covariance
        ({"window": "uniform"}, 0.023334515455417353, 1e-12),  # scikit-image 0.26.0, win_size 11
        ({"window": "uniform", "size": 7}, 0.01806843123598787, 1e-12),  # scikit-image 0.26.0, win_size 7
        ({}, 0.02055020141074548, 5e-7),  # pytorch-msssim 1.0.0, whose window is float32
        ({"size": 7, "sigma": 1.0, "value_range": 2.0}, 0.03397927929036391, 5e-7),  # pytorch-msssim 1.0.0
    ],
)
@pytest.mark.holds("draem", "1")
@pytest.mark.holds("srdad", "17")
@pytest.mark.holds("sernet", "Loss")
def test_ssim_agrees_with_other_programs(settings, expected, tolerance):
    assert ssim(*hash_pair(), padding="valid", **settings).item() == pytest.approx(expected, abs=tolerance)


def test_signs_of_channels():
    """As NumPy's correlation of each image; a negative has -1, and a higher SSIM than an empty image."""
    output, target = torch.rand(2, 2, 3, 9, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    output[:, 1] = 0.3 - 2 * target[:, 1]
    output[:, 2] = target[:, 2] = 0.5
    signs = channel_signs(output.requires_grad_(), target)
    red = np.mean([np.corrcoef(output[i, 0].detach().flatten(), target[i, 0].flatten())[0, 1] for i in range(2)])
    assert [signs[f"sign/{c}"].item() for c in ("red", "green", "blue")] == pytest.approx([red, -1, 0], abs=1e-6)
    assert not any(sign.requires_grad for sign in signs.values())
    image = pattern_pair()[0]
    assert ssim(-image, image) > 0.9 and ssim(0 * image, image) < 0.01


@pytest.mark.parametrize(
    ("low", "high", "value_range"), [(0, 1, 1.0), (-0.6, 1, 2.0), (-0.4, 1, 1.0), (0, 200, 255.0), (-9, 129, 256.0)]
)
def test_automatic_range_is_guessed_from_the_first_image(low, high, value_range):
    a, b = pattern_pair()
    wide = low + (high - low) * a
    assert ssim(wide, b, value_range="auto").item() == ssim(wide, b, value_range=value_range).item()
    assert ssim(b, wide, value_range="auto").item() == ssim(b, wide, value_range=1.0).item()


def test_ssim_stays_in_float32_under_autocast():
    a, b = (image.float() for image in pattern_pair())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, half = ssim(a, b), ssim_map(a.bfloat16(), b.bfloat16())
    assert inside.item() == ssim(a, b).item()
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, ssim_map(a.bfloat16().float(), b.bfloat16().float()), rtol=0, atol=0)


@pytest.mark.parametrize("call", [
    lambda x: ssim(x, x[:, :, 1:]), lambda x: ssim(x[0], x[0]), lambda x: ssim(x, x, window="box"),
    lambda x: ssim(x, x, size=10), lambda x: focal(x, x[:, :2]), lambda x: focal(x[:, :1], x[:, :1]),
    lambda x: focal(x, x[:, :1], alpha=0.25),
])  # fmt: skip
def test_wrong_arguments_say_what_was_expected(call):
    with pytest.raises(ValueError, match="expected"):
        call(torch.zeros(2, 3, 16, 16))


def half_anomalous() -> tuple[torch.Tensor, torch.Tensor]:
    """p = (0.9, 0.1) everywhere, left half anomalous."""
    probabilities = torch.tensor([0.9, 0.1]).view(1, 2, 1, 1).expand(2, 2, 8, 8).double()
    mask = torch.zeros(2, 1, 8, 8)
    mask[..., :4] = 1
    return probabilities, mask


@pytest.mark.holds("draem", "3")
@pytest.mark.holds("srdad", "19")
def test_focal_hand_values():
    probabilities, mask = half_anomalous()
    halves = torch.full((1, 2, 4, 4), 0.5, dtype=torch.float64)
    assert focal(halves, torch.ones(1, 1, 4, 4)).item() == pytest.approx(0.1732749, abs=1e-7)
    assert focal(probabilities, mask).item() == pytest.approx(0.9329635, abs=1e-7)
    assert focal(probabilities, mask, smooth=None).item() == pytest.approx(0.9330738, abs=1e-7)
    by_hand = (0.9**2 * -math.log(0.1) + 0.1**2 * -math.log(0.9)) / 2
    assert focal(probabilities, mask, smooth=0).item() == pytest.approx(by_hand, abs=1e-7)
    assert focal(probabilities, mask, gamma=0, smooth=0).item() == pytest.approx(-math.log(0.09) / 2, abs=1e-7)


@pytest.mark.holds("srdad", "19")
def test_focal_weights():
    probabilities, mask = half_anomalous()
    missed, right = 0.9**2 * -math.log(0.1), 0.1**2 * -math.log(0.9)
    found = focal(probabilities, mask, alpha=0.25, smooth=None).item()
    assert found == pytest.approx((0.25 * missed + 0.75 * right) / 2, abs=1e-7)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.holds("draem", "3")
@pytest.mark.holds("srdad", "19")
def test_focal_equals_a_slow_loop(classes):  # DRAEM's smoothing, one pixel after the other
    generator = torch.Generator().manual_seed(7)
    p = torch.randn(2, classes, 3, 5, generator=generator, dtype=torch.float64).softmax(1)
    mask = torch.randint(classes, (2, 1, 3, 5), generator=generator)
    total, s = 0.0, 1e-2
    for n, y, x in itertools.product(range(2), range(3), range(5)):
        one_hot = [min(max(float(k == mask[n, 0, y, x]), s / (classes - 1)), 1 - s) for k in range(classes)]
        p_t = sum(h * p[n, k, y, x].item() for k, h in enumerate(one_hot)) + s
        total -= (1 - p_t) ** 1.5 * math.log(p_t)
    assert focal(p, mask.float(), gamma=1.5, smooth=s).item() == pytest.approx(total / 30, rel=1e-12)


@pytest.mark.parametrize("smooth", [1e-5, None])
@pytest.mark.parametrize("right", [True, False])
def test_focal_is_finite_where_the_network_is_certain(right, smooth):
    mask = torch.tensor([[[[1.0, 0.0, 1.0]]]])
    anomalous = mask if right else 1 - mask
    probabilities = torch.cat((1 - anomalous, anomalous), dim=1) * (1 + 2**-22)  # as a sum of roundings may be
    probabilities.requires_grad_()
    loss = focal(probabilities, mask, gamma=1.5, smooth=smooth)
    loss.backward()
    assert probabilities.grad.isfinite().all()
    assert loss.item() < 1e-6 if right else 10 < loss.item() < 100
