"""Loss of noise-to-norm: PL4NN's numbers, printed values, a slow loop, gradients, precision."""

import math

import pytest
import torch
from conftest import digest, golden

from adref.methods.noise_to_norm.loss import ms_ssim_l1
from adref.ops.losses import gaussian_window

# Sourced: NVlabs/PL4NN, src/loss.py, stored at commit d39c202 (class MSSSIML1, a patch around every pixel; numpy
# 2.4.6, float64); `PYTHONPATH=tools python tools/sources/noise_to_norm.py --pl4nn src/loss.py`, 2026-11-24. Label a,
# output 0.3 b + 0.7 a. For alpha: mean, standard deviation and the means of the products with two lists of hashed
# numbers of the map, each channel by itself; its maximum; the mean of the inner 32 x 32; the same four numbers of the
# gradient of the mean for the output, times 12288.
PL4NN = {
    0.025: ([0.1100091489, 0.00433689252, 0.05501600931, 0.05486106582], 0.1305320884, 0.1091326477,
            [-0.00814150489, 1.113374638, -0.002984066411, -0.002156563679]),
    0.84: ([0.413934831, 0.08583036723, 0.2072880681, 0.2064563879], 0.9240047097, 0.4082235851,
           [-0.002649660594, 5.463366554, -0.002849879198, 0.01417153644]),
}  # fmt: skip
PL4NN_PATCH = 0.1099179236  # the same source: one patch 33 x 33 from (16, 16), three channels, alpha 0.025
PL4NN_CENTRES = [0.786570707, 0.3989422783, 0.1994711402, 0.09973909953, 0.05189331192]  # the same source

# Sourced: PL4NN as above, on `striped`: alpha, constants; mean, maximum over the channels' maps, its (channel, row,
# column), value at (0, 0, 0).
SQUARED, PRINTED = (0.01**2, 0.03**2), (0.01, 0.03)
IMAGES = [
    ("half", 0.84, SQUARED, 0.6247222545, 0.6670857889, (2, 62, 61), 0.5930285967),
    ("half", 0.84, PRINTED, 0.4751762898, 0.62060733, (2, 62, 61), 0.3702940939),
    ("half", 1.0, SQUARED, 0.695977947, 0.7364149739, (2, 63, 1), 0.66396211),
    ("half", 1.0, PRINTED, 0.5179470366, 0.6915218384, (2, 63, 1), 0.3988019876),
    ("half", 0.025, SQUARED, 0.2617635707, 0.3180788974, (2, 63, 63), 0.2317110133),
    ("inverted", 0.84, SQUARED, 1.162883639, 1.756237159, (2, 63, 1), 0.9446928626),
    ("inverted", 1.0, SQUARED, 1.28927134, 1.9715371, (2, 63, 1), 1.049332312),
    ("flatter", 0.84, SQUARED, 0.02476206998, 0.02789661173, (2, 63, 0), 0.02242284372),
]
SIGMAS = (0.5, 1.0, 2.0, 4.0, 8.0)


def close(values):
    """Ten printed digits."""
    return pytest.approx(values, rel=1e-9, abs=1e-11)


def hashed_pair() -> tuple[torch.Tensor, torch.Tensor]:
    """a, and 0.3 b + 0.7 a: (1, 3, 64, 64) float64, as the sourced numbers have them."""
    a, b = (golden.hashed(name, 3, 64, 64)[None].double() for name in ("a", "b"))
    return a, 0.3 * b + 0.7 * a


def striped() -> torch.Tensor:
    """I: u[k, y, x] = ((7 y + 13 x + 29 k) mod 256) / 255, float64 (1, 3, 64, 64)."""
    k, y, x = torch.meshgrid(torch.arange(3), torch.arange(64), torch.arange(64), indexing="ij")
    return ((7 * y + 13 * x + 29 * k) % 256).double()[None] / 255


def changed(u: torch.Tensor, change: str) -> torch.Tensor:
    return {"half": u / 2, "inverted": 1 - u, "flatter": 0.9 * u + 0.05}[change]


def compare(a: torch.Tensor, b: torch.Tensor, sigmas=SIGMAS, constants=SQUARED) -> tuple[torch.Tensor, torch.Tensor]:
    return ms_ssim_l1(a, b, sigmas=sigmas, constants=constants)


def mixed(a: torch.Tensor, b: torch.Tensor, alpha: float = 0.84, constants=SQUARED) -> torch.Tensor:
    """Computes the loss at every pixel, (B, 1, H, W)."""
    similarity, error = compare(a, b, constants=constants)
    return alpha * (1 - similarity) + (1 - alpha) * error


def by_channel(a: torch.Tensor, b: torch.Tensor, *form) -> torch.Tensor:
    """Computes the loss of each channel by itself, (C, H, W), of two (1, C, H, W)."""
    return mixed(a.transpose(0, 1), b.transpose(0, 1), *form)[:, 0]


def grey(value: float) -> torch.Tensor:
    return torch.full((1, 1, 64, 64), value, dtype=torch.float64)


@pytest.mark.parametrize("alpha", PL4NN)
def test_maps_and_gradients_equal_the_pl4nn_authors_file(alpha):
    numbers, maximum, inner, gradient = PL4NN[alpha]
    label, output = hashed_pair()
    maps = by_channel(label, output, alpha)
    assert digest(maps) == close(numbers) and maps.max().item() == close(maximum)
    assert maps[:, 16:-16, 16:-16].mean().item() == close(inner)
    assert mixed(label, output, alpha)[0, 0].numpy() == close(maps.mean(dim=0).numpy())
    output.requires_grad_()
    mixed(label, output, alpha).mean().backward()
    assert digest(output.grad * output.numel()) == close(gradient)
    assert mixed(*hashed_pair(), 0.025)[0, 0, 32, 32].item() == close(PL4NN_PATCH)


@pytest.mark.parametrize(("change", "alpha", "constants", "mean", "maximum", "place", "corner"), IMAGES)
@pytest.mark.holds("noise_to_norm", "2", "4", "7")
def test_images_equal_the_pl4nn_authors_file(change, alpha, constants, mean, maximum, place, corner):
    u = striped()
    maps = by_channel(u, changed(u, change), alpha, constants)
    assert [maps.mean().item(), maps.max().item(), maps[0, 0, 0].item()] == close([mean, maximum, corner])
    assert maps[place] == maps.max()


@pytest.mark.holds("noise_to_norm", "2")
def test_constants():
    for u, v, constants, similarity, printed in (  # the last: PL4NN's ten digits of the loss, sourced as IMAGES
        (0.4, 0.5, SQUARED, 0.97561570, 0.03648280907), (0.4, 0.5, PRINTED, 0.97619048, 0.036),
        (0.0, 1.0, SQUARED, 9.999e-5, 0.9999160084),
    ):  # fmt: skip
        maps = compare(grey(u), grey(v), constants=constants)
        by_hand = (2 * u * v + constants[0]) / (u**2 + v**2 + constants[0])
        assert by_hand == pytest.approx(similarity, abs=5.1e-9)
        assert (maps[0] - by_hand).abs().max() < 1e-11 and (maps[1] - abs(u - v)).abs().max() < 1e-14
        values = mixed(grey(u), grey(v), constants=constants)
        assert [values.min().item(), values.max().item()] == close([printed, printed])


def test_locality():
    """Ten digits: PL4NN, sourced as IMAGES."""
    spot = grey(0.4)
    spot[..., 32, 32] = 0.9
    values = mixed(grey(0.4), spot)[0, 0]
    assert values[32, 32] == values.max()
    assert [values.max().item(), values.mean().item()] == close([0.8402110669, 0.06217807679])
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    far = ((rows - 32).abs() > 16) | ((columns - 32).abs() > 16)
    assert values[far].abs().max() < 1e-11 and values[~far].min() > 1e-6


@pytest.mark.holds("noise_to_norm", "9")
def test_windows():
    """Centre weights; inside the loss, the error of a spot is the widest window, cut at twice its sigma."""
    windows = [gaussian_window(33, sigma) for sigma in SIGMAS]
    assert [window[16].item() for window in windows] == close(PL4NN_CENTRES)
    assert [window.sum().item() for window in windows] == pytest.approx([1.0] * 5, abs=1e-15)
    spot = grey(0.0)
    spot[..., 32, 32] = 1.0
    for sigmas in (*((sigma,) for sigma in SIGMAS), (0.5, 8.0), (0.75,)):
        reach = math.ceil(2 * sigmas[-1])
        error, window = compare(grey(0.0), spot, sigmas)[1][0, 0], gaussian_window(2 * reach + 1, sigmas[-1])
        cut = slice(32 - reach, 33 + reach)
        assert (error[cut, cut] - torch.outer(window, window)).abs().max() < 1e-15
        assert error.sum().item() == close(1.0)


def mirrored(index: int, length: int) -> int:
    """Reflects an index; the outermost pixel is not repeated."""
    return -index if index < 0 else 2 * (length - 1) - index if index >= length else index


def slow_pixel(a: list, b: list, row: int, column: int) -> tuple[float, float]:
    """Computes similarity and error of one pixel of two lists of rows, sums written out, variances about the mean."""
    reach, structure = math.ceil(2 * max(SIGMAS)), 1.0
    for sigma in SIGMAS:
        values = []
        for i in range(-reach, reach + 1):
            for j in range(-reach, reach + 1):
                y, x = mirrored(row + i, len(a)), mirrored(column + j, len(a[0]))
                values.append((math.exp(-(i * i + j * j) / (2 * sigma**2)), a[y][x], b[y][x]))
        total = sum(w for w, _, _ in values)
        values = [(w / total, p, q) for w, p, q in values]
        mu_a, mu_b = sum(w * p for w, p, _ in values), sum(w * q for w, _, q in values)
        var_a, var_b = sum(w * (p - mu_a) ** 2 for w, p, _ in values), sum(w * (q - mu_b) ** 2 for w, _, q in values)
        covariance = sum(w * (p - mu_a) * (q - mu_b) for w, p, q in values)
        structure *= (2 * covariance + 0.0009) / (var_a + var_b + 0.0009)
        luminance = (2 * mu_a * mu_b + 0.0001) / (mu_a**2 + mu_b**2 + 0.0001)
        error = sum(w * abs(p - q) for w, p, q in values)
    return luminance * structure, error


@pytest.mark.holds("noise_to_norm", "2", "3", "4", "5", "6", "7")
def test_one_pixel_equals_a_slow_loop():
    """19 x 21: near and far borders, both mirrored where they are close."""
    a, b = (golden.hashed(name, 1, 1, 19, 21).double() for name in ("a", "b"))
    b = 0.3 * b + 0.7 * a
    similarity, error = compare(a, b)
    for row, column in ((0, 0), (2, 20), (12, 17), (18, 20)):
        expected = slow_pixel(a[0, 0].tolist(), b[0, 0].tolist(), row, column)
        assert (similarity[0, 0, row, column].item(), error[0, 0, row, column].item()) == close(expected)


def test_symmetric_and_each_image_by_itself():
    a, b = (golden.hashed(name, 3, 3, 24, 30).double() for name in ("a", "b"))
    both = compare(a, b)
    for ours, swapped, alone in zip(both, compare(b, a), compare(a[1:2], b[1:2])):
        assert ours.shape == (3, 1, 24, 30) and torch.allclose(ours, swapped, rtol=1e-12, atol=1e-15)
        assert torch.allclose(ours[1:2], alone, rtol=1e-12, atol=1e-15)
    similarity, error = compare(a, a)
    assert not error.any() and (similarity - 1).abs().max() < 1e-12


def test_gradient():
    a, b = (golden.hashed(name, 1, 3, 5, 6).double().requires_grad_() for name in ("a", "b"))
    assert torch.autograd.gradcheck(lambda p, q: compare(p, q, (0.5, 1.0)), (a, b))
    for u, v in ((striped(), striped()), (grey(0.0), grey(0.0)), (grey(0.0), grey(1.0))):  # equal, or flat
        v = v.float().requires_grad_()
        mixed(u.float(), v).mean().backward()
        assert v.grad.isfinite().all()


def test_precision():
    """float32 is near float64; autocast changes nothing."""
    for u, v in (hashed_pair(), (striped(), 1 - striped()), (grey(0.4), grey(0.5))):
        for ours, precise in zip(compare(u.float(), v.float()), compare(u, v)):
            assert ours.dtype == torch.float32 and precise.dtype == torch.float64
            assert (ours.double() - precise).abs().max() < 1e-3
            assert (ours.double() - precise).mean().abs() < 1e-4
    u, v = (image.bfloat16() for image in hashed_pair())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = compare(u, v)
    assert all(torch.equal(p, q) for p, q in zip(ours, compare(u.float(), v.float())))


def test_errors():
    for a, b, sigmas in (
        ((1, 3, 20, 20), (1, 3, 20, 21), SIGMAS),
        ((3, 20, 20), (3, 20, 20), SIGMAS),
        ((1, 3, 16, 20), (1, 3, 16, 20), SIGMAS),  # no side above the reach of 16
        ((1, 3, 20, 20), (1, 3, 20, 20), (2.0, 1.0)),
        ((1, 3, 20, 20), (1, 3, 20, 20), ()),
    ):
        with pytest.raises(ValueError, match="expected"):
            compare(torch.zeros(a), torch.zeros(b), sigmas)
