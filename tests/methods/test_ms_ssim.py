"""MS-SSIM in both forms: PL4NN, a PyTorch port of it and pytorch-msssim, G8 to G11 and G13, a slow loop, gradients."""

import math

import pytest
import torch
from conftest import golden

from adref.methods.noise_to_norm.loss import ms_ssim, ms_ssim_l1, port_groups
from adref.ops.losses import gaussian_window

# Sourced: NVlabs/PL4NN, src/loss.py, stored at commit d39c202 (class MSSSIML1, a patch around every pixel; numpy
# 2.4.6, float64); `PYTHONPATH=tools python tools/sources/noise_to_norm.py --pl4nn src/loss.py`, 2026-11-24. Label a, output
# 0.3 b + 0.7 a. For alpha and border: mean, standard deviation and the means of the products with two lists of hashed
# numbers of the map, each channel by itself; its maximum; the mean of the inner 32 x 32; the same four numbers of the
# gradient of the mean for the output, times 12288.
PL4NN = {
    (0.025, "reflect"): ([0.1100091489, 0.00433689252, 0.05501600931, 0.05486106582], 0.1305320884, 0.1091326477,
                         [-0.00814150489, 1.113374638, -0.002984066411, -0.002156563679]),
    (0.84, "reflect"): ([0.413934831, 0.08583036723, 0.2072880681, 0.2064563879], 0.9240047097, 0.4082235851,
                        [-0.002649660594, 5.463366554, -0.002849879198, 0.01417153644]),
    (0.84, "zero"): ([0.3702704987, 0.1014963838, 0.1854606028, 0.1846183971], None, 0.4082235851, None),
}  # fmt: skip
PL4NN_PATCH = 0.1099179236  # the same source: one patch 33 x 33 from (16, 16), three channels, alpha 0.025
PL4NN_CENTRES = [0.786570707, 0.3989422783, 0.1994711402, 0.09973909953, 0.05189331192]  # the same source

# Sourced: PL4NN as above, the specification's images: alpha, constants, border; mean, maximum over the channels' maps,
# its (channel, row, column), value at (0, 0, 0).
SQUARED, LITERAL = (0.01**2, 0.03**2), (0.01, 0.03)
IMAGES = [
    ("half", 0.84, SQUARED, "reflect", 0.6247222545, 0.6670857889, (2, 62, 61), 0.5930285967),
    ("half", 0.84, LITERAL, "reflect", 0.4751762898, 0.62060733, (2, 62, 61), 0.3702940939),
    ("half", 1.0, SQUARED, "reflect", 0.695977947, 0.7364149739, (2, 63, 1), 0.66396211),
    ("half", 1.0, LITERAL, "reflect", 0.5179470366, 0.6915218384, (2, 63, 1), 0.3988019876),
    ("half", 0.025, SQUARED, "reflect", 0.2617635707, 0.3180788974, (2, 63, 63), 0.2317110133),
    ("inverted", 0.84, SQUARED, "reflect", 1.162883639, 1.756237159, (2, 63, 1), 0.9446928626),
    ("inverted", 1.0, SQUARED, "reflect", 1.28927134, 1.9715371, (2, 63, 1), 1.049332312),
    ("flatter", 0.84, SQUARED, "reflect", 0.02476206998, 0.02789661173, (2, 63, 0), 0.02242284372),
    ("flatter", 0.84, SQUARED, "zero", 0.02133105073, 0.2709746802, (0, 0, 0), 0.2709746802),
]

# Sourced: psyrocloud/MS-SSIM_L1_LOSS, MS_SSIM_L1_loss.py at commit 8cbb65f (torch 2.13.0, float64 with float64
# windows, zeros around the picture); `PYTHONPATH=tools python tools/sources/noise_to_norm.py --port MS_SSIM_L1_loss.py`, 2026-11-24. For
# alpha and compensation: the loss of a and 0.3 b + 0.7 a, its gradient for the second picture times 12288, and the loss
# of the first channel taken three times.
PORT = {
    (0.025, 200.0): (20.14647379, [-1.529500203, 187.9427684, -0.5334319637, -0.5120325216], 20.19910705),
    (0.84, 1.0): (0.6787710134, [-0.0565877867, 5.046598566, -0.03234075406, -0.01109925603], 0.6750365666),
}
PORT_FLOAT32 = 20.14647484  # the same source: as it is, float32, alpha 0.025, compensation 200
# The same source: channels 1, 10, 100 as its 15 filters see them.
PORT_SEES = [1.0] * 5 + [10.0] * 5 + [100.0] * 5

# Sourced: pytorch-msssim 1.0.0 (torch 2.13.0, float64) of a and 0.7 a + 0.3 b, 2 x 3 x 176 x 192;
# `PYTHONPATH=tools python tools/sources/noise_to_norm.py`, 2026-11-24: its window in float64, and in float32 as it makes it.
WANG, WANG_FLOAT32_WINDOW = [0.9057556338, 0.9089883189], [0.9057561097, 0.9089887732]


def close(values):
    """Ten printed digits."""
    return pytest.approx(values, rel=1e-9, abs=1e-11)


def eight(values):
    """Eight printed decimals, as the specification has them."""
    return pytest.approx(values, abs=5.1e-9)


def digest(output: torch.Tensor) -> list[float]:
    """Mean, standard deviation, and the means of the products with two lists of hashed numbers."""
    flat = output.detach().flatten()
    products = [(flat * golden.hashed(name, len(flat))).mean().item() for name in ("first", "second")]
    return [flat.mean().item(), flat.std(correction=0).item(), *products]


def hashed_pair() -> tuple[torch.Tensor, torch.Tensor]:
    """a, and 0.3 b + 0.7 a: (1, 3, 64, 64) float64, as the sourced numbers have them."""
    a, b = (golden.hashed(name, 3, 64, 64)[None].double() for name in ("a", "b"))
    return a, 0.3 * b + 0.7 * a


def image() -> torch.Tensor:
    """The specification's image I, (1, 3, 64, 64) float64."""
    k, y, x = torch.meshgrid(torch.arange(3), torch.arange(64), torch.arange(64), indexing="ij")
    return ((7 * y + 13 * x + 29 * k) % 256).double()[None] / 255


def changed(u: torch.Tensor, change: str) -> torch.Tensor:
    return {"same": u, "half": u / 2, "inverted": 1 - u, "flatter": 0.9 * u + 0.05}[change]


def mixed(a: torch.Tensor, b: torch.Tensor, alpha: float = 0.84, **options) -> torch.Tensor:
    """The loss at every pixel, (B, 1, H, W)."""
    similarity, error = ms_ssim_l1(a, b, **options)
    return alpha * (1 - similarity) + (1 - alpha) * error


def by_channel(a: torch.Tensor, b: torch.Tensor, alpha: float = 0.84, **options) -> torch.Tensor:
    """The loss of each channel by itself, (C, H, W), of two (1, C, H, W)."""
    return mixed(a.transpose(0, 1), b.transpose(0, 1), alpha, **options)[:, 0]


def place_of_maximum(values: torch.Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in torch.unravel_index(values.argmax(), values.shape))


def grey(value: float) -> torch.Tensor:
    return torch.full((1, 1, 64, 64), value, dtype=torch.float64)


# -- Zhao et al.: PL4NN ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "padding"), PL4NN)
def test_maps_and_gradients_equal_the_pl4nn_authors_file(alpha, padding):
    numbers, maximum, inner, gradient = PL4NN[alpha, padding]
    label, output = hashed_pair()
    maps = by_channel(label, output, alpha, padding=padding)
    assert digest(maps) == close(numbers)
    assert maps[:, 16:-16, 16:-16].mean().item() == close(inner)
    assert mixed(label, output, alpha, padding=padding)[0, 0].numpy() == close(maps.mean(dim=0).numpy())
    if maximum is not None:
        assert maps.max().item() == close(maximum)
        output.requires_grad_()
        mixed(label, output, alpha, padding=padding).mean().backward()
        assert digest(output.grad * output.numel()) == close(gradient)


def test_one_pixel_equals_one_patch_of_pl4nn():
    assert mixed(*hashed_pair(), 0.025)[0, 0, 32, 32].item() == close(PL4NN_PATCH)


@pytest.mark.parametrize(("change", "alpha", "constants", "padding", "mean", "maximum", "place", "corner"), IMAGES)
@pytest.mark.holds("noise_to_norm", "6", "7", "8")
def test_images_equal_the_pl4nn_authors_file(change, alpha, constants, padding, mean, maximum, place, corner):
    u = image()
    maps = by_channel(u, changed(u, change), alpha, constants=constants, padding=padding)
    assert [maps.mean().item(), maps.max().item(), maps[0, 0, 0].item()] == close([mean, maximum, corner])
    assert place_of_maximum(maps) == place


# -- golden checks -----------------------------------------------------------------------------------------------------


def test_equal_pictures_lose_nothing():
    # G8
    u = image()
    similarity, error = ms_ssim_l1(u, u)
    assert similarity.shape == error.shape == (1, 1, 64, 64)
    assert torch.equal(error, torch.zeros_like(error)) and (similarity - 1).abs().max() < 1e-12
    assert mixed(u, u).mean().item() == eight(0)


@pytest.mark.parametrize(
    ("change", "constants", "similarity", "loss", "maximum"),
    [
        ("half", SQUARED, 0.30402205, 0.62472225, 0.66708579),
        ("half", LITERAL, 0.48205296, 0.47517629, 0.62060733),
        ("inverted", SQUARED, -0.28927134, 1.16288364, 1.75623716),
    ],
)
@pytest.mark.holds("noise_to_norm", "8")
def test_loss_values(change, constants, similarity, loss, maximum):
    # G8: the maximum is that of one channel by itself
    u = image()
    v = changed(u, change)
    assert ms_ssim_l1(u, v, constants=constants)[0].mean().item() == eight(similarity)
    assert mixed(u, v, constants=constants).mean().item() == eight(loss)
    single = [mixed(u[:, c : c + 1], v[:, c : c + 1], constants=constants).max().item() for c in range(3)]
    assert max(single) == eight(maximum) and single.index(max(single)) == 2
    assert mixed(u, v, constants=constants).max() < maximum  # the mean of three channels is milder


def test_loss_values_of_a_flatter_picture_and_of_a_small_alpha():
    # G8
    u = image()
    assert mixed(u, changed(u, "flatter")).mean().item() == eight(0.02476207)
    assert mixed(u, changed(u, "flatter"), padding="zero").mean().item() == eight(0.02133105)
    assert mixed(u, u / 2, 0.025).mean().item() == eight(0.26176357)


def test_zeros_inflate_the_border():
    """Section 4 of the specification: image I, v = 0.9 u + 0.05."""
    u = image()
    zero, reflect = (mixed(u, changed(u, "flatter"), padding=padding)[0, 0] for padding in ("zero", "reflect"))
    assert [zero[0, 0].item(), reflect[0, 0].item()] == pytest.approx([0.110, 0.022], abs=5.1e-4)
    assert (zero - reflect)[16:-16, 16:-16].abs().max() < 1e-13 < (zero - reflect)[:, 15].abs().max()


@pytest.mark.parametrize(
    ("u", "v", "constants", "similarity", "loss", "printed"),
    [
        # The last column: PL4NN's ten digits of the loss, sourced as IMAGES.
        (0.4, 0.5, SQUARED, 0.97561570, 0.03648281, 0.03648280907),
        (0.4, 0.5, LITERAL, 0.97619048, 0.03600000, 0.036),
        (0.0, 1.0, SQUARED, 9.999e-5, 0.99991601, 0.9999160084),
    ],
)
@pytest.mark.holds("noise_to_norm", "6")
def test_constants(u, v, constants, similarity, loss, printed):
    # G9
    maps = ms_ssim_l1(grey(u), grey(v), constants=constants)
    by_hand = (2 * u * v + constants[0]) / (u**2 + v**2 + constants[0])
    assert by_hand == eight(similarity)
    assert (maps[0] - by_hand).abs().max() < 1e-11 and (maps[1] - abs(u - v)).abs().max() < 1e-14
    values = mixed(grey(u), grey(v), constants=constants)
    assert [values.min().item(), values.max().item()] == eight([loss, loss])
    assert values.mean().item() == close(printed)


def test_locality():
    # G10; ten digits: PL4NN, sourced as IMAGES
    spot = grey(0.4)
    spot[..., 32, 32] = 0.9
    values = mixed(grey(0.4), spot)[0, 0]
    assert place_of_maximum(values) == (32, 32)
    assert [values.max().item(), values.mean().item()] == eight([0.84021107, 0.06217808])
    assert [values.max().item(), values.mean().item()] == close([0.8402110669, 0.06217807679])
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    far = ((rows - 32).abs() > 16) | ((columns - 32).abs() > 16)
    assert values[far].abs().max() < 1e-11 and values[~far].min() > 1e-6


def test_centre_weights():
    # G11
    windows = [gaussian_window(33, sigma) for sigma in (0.5, 1.0, 2.0, 4.0, 8.0)]
    centres = [window[16].item() for window in windows]
    assert centres == eight([0.78657071, 0.39894228, 0.19947114, 0.09973910, 0.05189331])
    assert centres == close(PL4NN_CENTRES)
    assert [window.sum().item() for window in windows] == pytest.approx([1.0] * 5, abs=1e-15)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0, 4.0, 8.0])
@pytest.mark.holds("noise_to_norm", "9")
def test_windows_act_as_they_are(sigma):
    """G11 inside the loss: with one scale and a spot, `error` is the widest window."""
    spot = grey(0.0)
    spot[..., 32, 32] = 1.0
    error = ms_ssim_l1(grey(0.0), spot, sigmas=(sigma, 8.0) if sigma < 8 else (8.0,))[1][0, 0]
    window = gaussian_window(33, 8.0)
    assert (error[16:49, 16:49] - torch.outer(window, window)).abs().max() < 1e-15
    assert error.sum().item() == close(1.0)
    reach = math.ceil(2 * sigma)
    alone = ms_ssim_l1(grey(0.0), spot, sigmas=(sigma,))[1][0, 0]
    window = gaussian_window(2 * reach + 1, sigma)
    cut = slice(32 - reach, 33 + reach)
    assert (alone[cut, cut] - torch.outer(window, window)).abs().max() < 1e-15


def test_a_window_reaches_two_sigma_rounded_up():
    spot = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    spot[..., 4, 4] = 1
    error = ms_ssim_l1(spot, 0 * spot, (0.75,), padding="zero")[1][0, 0]
    window = gaussian_window(5, 0.75)
    assert torch.allclose(error[2:7, 2:7], torch.outer(window, window), rtol=0, atol=1e-15)
    with pytest.raises(ValueError, match="sides above 2 pixels"):
        ms_ssim_l1(spot[..., :2], spot[..., :2], (0.75,))


def test_filters_of_the_port_see_the_wrong_channels():
    # G13
    groups = port_groups(5)
    assert len(groups) == 15 and [channel for channel, _ in groups] == [k // 5 for k in range(15)]
    assert [[1.0, 10.0, 100.0][channel] for channel, _ in groups] == PORT_SEES
    sigmas = [(0.5, 1, 2, 4, 8)[scale] for _, scale in groups]
    assert sigmas == [0.5, 0.5, 0.5, 1, 1, 1, 2, 2, 2, 4, 4, 4, 8, 8, 8]
    assert port_groups(5, 1) == [(0, scale) for scale in range(5)]
    assert sorted(port_groups(3)) == [(0, 0)] * 3 + [(1, 1)] * 3 + [(2, 2)] * 3


def test_filters_of_a_grouped_convolution_see_these_channels():
    # G13: torch's own grouping, unit filters
    colours = torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1, 1)
    seen = torch.nn.functional.conv2d(colours, torch.ones(15, 1, 1, 1), groups=3).flatten()
    assert seen.tolist() == [colours[0, channel, 0, 0].item() for channel, _ in port_groups(5)] == PORT_SEES


# -- Zhao et al.: the port ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "compensation"), PORT)
def test_port_groups_equal_the_port(alpha, compensation):
    loss, gradient, _ = PORT[alpha, compensation]
    a, b = hashed_pair()
    b.requires_grad_()
    ours = compensation * mixed(a, b, alpha, padding="zero", channels="port_groups").mean()
    assert ours.item() == close(loss)
    ours.backward()
    assert digest(b.grad * b.numel()) == close(gradient)


@pytest.mark.parametrize("channels", ["product", "port_groups"])
@pytest.mark.parametrize(("alpha", "compensation"), PORT)
def test_grey_pictures_equal_the_port(alpha, compensation, channels):
    """Where the groups do no harm, its product over channels is ours."""
    a, b = (picture[:, :1].expand(-1, 3, -1, -1) for picture in hashed_pair())
    loss = compensation * mixed(a, b, alpha, padding="zero", channels=channels).mean().item()
    assert loss == close(PORT[alpha, compensation][2])


def test_the_port_in_float32():
    a, b = (picture.float() for picture in hashed_pair())
    loss = 200 * mixed(a, b, 0.025, padding="zero", channels="port_groups").mean().item()
    assert loss == pytest.approx(PORT_FLOAT32, rel=1e-6)


@pytest.mark.parametrize(
    "sigmas",
    [(0.5, 1.0, 2.0, 4.0, 8.0), (1.0, 2.0, 4.0), (1.0, 2.0), (2.0,)],  # of two or one, l is not of blue alone
)
def test_port_groups_by_a_grouped_convolution(sigmas):
    """As the port does it: 3 n filters in three groups; l of the last three, whatever channel they see."""
    a, b = hashed_pair()
    pad = int(2 * sigmas[-1])
    windows = [gaussian_window(2 * pad + 1, sigma) for sigma in sigmas for _ in range(3)]
    filters = torch.stack([torch.outer(w, w) for w in windows])[:, None]

    def seen(x):
        return torch.nn.functional.conv2d(x, filters, groups=3, padding=pad)

    mu, nu = seen(a), seen(b)
    spread = seen(a * a) + seen(b * b) - mu**2 - nu**2
    structure = (2 * (seen(a * b) - mu * nu) + 9e-4) / (spread + 9e-4)
    luminance = (2 * mu * nu + 1e-4) / (mu**2 + nu**2 + 1e-4)
    expected = luminance[:, -3:].prod(dim=1) * structure.prod(dim=1)
    similarity, _ = ms_ssim_l1(a, b, sigmas, padding="zero", channels="port_groups")
    assert torch.allclose(similarity[:, 0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("padding", ["reflect", "zero"])
def test_product_multiplies_the_channels_maps(padding):
    a, b = hashed_pair()
    single = ms_ssim_l1(a.transpose(0, 1), b.transpose(0, 1), padding=padding)
    similarity, error = ms_ssim_l1(a, b, padding=padding, channels="product")
    assert similarity.shape == error.shape == (1, 1, 64, 64)
    assert torch.allclose(similarity[0], single[0].prod(dim=0), rtol=1e-12, atol=1e-15)
    assert torch.allclose(error[0], single[1].mean(dim=0), rtol=1e-12, atol=1e-15)


def test_port_groups_of_each_channel_by_hand():
    """cs of one scale is the similarity of that scale over l; l is blue's, cubed."""
    a, b = hashed_pair()
    sigmas = (0.5, 1.0, 8.0)
    one, two = (ms_ssim_l1(a.transpose(0, 1), b.transpose(0, 1), s)[0][:, 0] for s in ((8.0,), (8.0, 8.0)))
    cs8 = two / one  # (3, H, W): l cs cs over l cs
    luminance = one / cs8
    cs = [ms_ssim_l1(a.transpose(0, 1), b.transpose(0, 1), (s, 8.0))[0][:, 0] / one for s in sigmas]
    expected = cs[0][0] ** 3 * cs[1][1] ** 3 * cs[2][2] ** 3 * luminance[2] ** 3
    assert torch.allclose(ms_ssim_l1(a, b, sigmas, channels="port_groups")[0][0, 0], expected, rtol=1e-9, atol=1e-12)


# -- Zhao et al.: properties -------------------------------------------------------------------------------------------


def mirrored(index: int, length: int) -> int:
    """The outermost pixel is not repeated."""
    return -index if index < 0 else 2 * (length - 1) - index if index >= length else index


def slow_pixel(a: list, b: list, row: int, column: int, sigmas: tuple, padding: str) -> tuple[float, float]:
    """Similarity and error of one pixel of two lists of rows; sums written out, variances about the mean."""
    reach, structure = math.ceil(2 * max(sigmas)), 1.0
    for sigma in sigmas:
        values = []
        for i in range(-reach, reach + 1):
            for j in range(-reach, reach + 1):
                y, x = row + i, column + j
                pair = (0.0, 0.0)
                if padding == "reflect":
                    y, x = mirrored(y, len(a)), mirrored(x, len(a[0]))
                if 0 <= y < len(a) and 0 <= x < len(a[0]):
                    pair = (a[y][x], b[y][x])
                values.append((math.exp(-(i * i + j * j) / (2 * sigma**2)), *pair))
        total = sum(w for w, _, _ in values)
        values = [(w / total, p, q) for w, p, q in values]
        mu_a, mu_b = sum(w * p for w, p, _ in values), sum(w * q for w, _, q in values)
        var_a, var_b = sum(w * (p - mu_a) ** 2 for w, p, _ in values), sum(w * (q - mu_b) ** 2 for w, _, q in values)
        covariance = sum(w * (p - mu_a) * (q - mu_b) for w, p, q in values)
        structure *= (2 * covariance + 0.0009) / (var_a + var_b + 0.0009)
        luminance = (2 * mu_a * mu_b + 0.0001) / (mu_a**2 + mu_b**2 + 0.0001)
        error = sum(w * abs(p - q) for w, p, q in values)
    return luminance * structure, error


@pytest.mark.parametrize("padding", ["reflect", "zero"])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 20), (12, 17), (18, 20)])
@pytest.mark.holds("noise_to_norm", "6", "7", "8")
def test_one_pixel_equals_a_slow_loop(row, column, padding):
    """19 x 21: near and far borders, both mirrored where they are close."""
    sigmas = (0.5, 1.0, 2.0, 4.0, 8.0)
    a, b = (golden.hashed(name, 1, 1, 19, 21).double() for name in ("a", "b"))
    b = 0.3 * b + 0.7 * a
    similarity, error = ms_ssim_l1(a, b, sigmas, padding=padding)
    expected = slow_pixel(a[0, 0].tolist(), b[0, 0].tolist(), row, column, sigmas, padding)
    assert (similarity[0, 0, row, column].item(), error[0, 0, row, column].item()) == close(expected)


def test_symmetric_and_each_picture_by_itself():
    a, b = (golden.hashed(name, 3, 3, 24, 30).double() for name in ("a", "b"))
    for channels in ("mean", "product", "port_groups"):
        both = ms_ssim_l1(a, b, channels=channels)
        for ours, swapped in zip(both, ms_ssim_l1(b, a, channels=channels)):
            assert ours.shape == (3, 1, 24, 30) and torch.allclose(ours, swapped, rtol=1e-12, atol=1e-15)
        for ours, alone in zip(both, ms_ssim_l1(a[1:2], b[1:2], channels=channels)):
            assert torch.allclose(ours[1:2], alone, rtol=1e-12, atol=1e-15)


def test_negative_values_are_kept():
    u = image()
    similarity, error = ms_ssim_l1(u, 1 - u)
    assert similarity.min() < -0.5 and similarity.min() >= -1 and (similarity < 0).double().mean() > 0.8
    assert error.min() >= 0 and mixed(u, 1 - u).max() <= 2 * 0.84 + 0.16
    assert mixed(u, 1 - u).max() > 0.84 + 0.16  # out of reach, were the similarity clamped at 0


@pytest.mark.parametrize("channels", ["mean", "product", "port_groups"])
@pytest.mark.parametrize("padding", ["reflect", "zero"])
def test_gradcheck(padding, channels):
    a, b = (golden.hashed(name, 1, 3, 5, 6).double().requires_grad_() for name in ("a", "b"))
    assert torch.autograd.gradcheck(
        lambda p, q: ms_ssim_l1(p, q, (0.5, 1.0), padding=padding, channels=channels), (a, b)
    )


@pytest.mark.parametrize("channels", ["mean", "product", "port_groups"])
def test_gradient_is_finite_where_the_pictures_are_equal_or_flat(channels):
    for u, v in ((image(), image()), (grey(0.0), grey(0.0)), (grey(0.0), grey(1.0))):
        v = v.expand(1, 3, 64, 64).float().requires_grad_()
        u = u.expand(1, 3, 64, 64).float()
        mixed(u, v, channels=channels).mean().backward()
        assert v.grad.isfinite().all()


def test_float32_is_close_to_float64():
    for u, v in (hashed_pair(), (image(), image() / 2), (image(), 1 - image()), (grey(0.4), grey(0.5))):
        for ours, precise in zip(ms_ssim_l1(u.float(), v.float()), ms_ssim_l1(u, v)):
            assert ours.dtype == torch.float32 and precise.dtype == torch.float64
            assert (ours.double() - precise).abs().max() < 1e-3
            assert (ours.double() - precise).mean().abs() < 1e-4


def test_autocast_does_not_change_the_maps():
    u, v = (picture.float() for picture in hashed_pair())
    expected = ms_ssim_l1(u, v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = ms_ssim_l1(u, v)
    assert all(torch.equal(p, q) and p.dtype == torch.float32 for p, q in zip(ours, expected))
    u, v = u.bfloat16(), v.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = ms_ssim_l1(u, v)
    assert all(torch.equal(p, q) for p, q in zip(ours, ms_ssim_l1(u.float(), v.float())))


def test_the_side_may_be_one_above_the_reach():
    a = golden.hashed("a", 1, 1, 17, 17)
    assert ms_ssim_l1(a, a)[0].shape == (1, 1, 17, 17)
    small = golden.hashed("a", 1, 1, 4, 3)
    assert ms_ssim_l1(small, small, padding="zero")[0].shape == (1, 1, 4, 3)


@pytest.mark.parametrize(
    ("a", "b", "options"),
    [
        ((1, 3, 20, 20), (1, 3, 20, 21), {}),
        ((1, 3, 20, 20), (1, 1, 20, 20), {}),
        ((3, 20, 20), (3, 20, 20), {}),
        ((1, 3, 16, 20), (1, 3, 16, 20), {}),
        ((1, 3, 20, 16), (1, 3, 20, 16), {}),
        ((1, 3, 4, 5), (1, 3, 4, 5), {"sigmas": (1.0, 2.0)}),
        ((1, 3, 20, 20), (1, 3, 20, 20), {"sigmas": (2.0, 1.0)}),
        ((1, 3, 20, 20), (1, 3, 20, 20), {"sigmas": ()}),
        ((1, 3, 20, 20), (1, 3, 20, 20), {"padding": "valid"}),
    ],
)
def test_errors(a, b, options):
    with pytest.raises(ValueError):
        ms_ssim_l1(torch.zeros(a), torch.zeros(b), **options)


def test_unknown_channels_are_an_error():
    with pytest.raises(ValueError):
        ms_ssim_l1(torch.zeros(1, 3, 20, 20), torch.zeros(1, 3, 20, 20), channels="sum")


# -- Wang et al. -------------------------------------------------------------------------------------------------------


def wang_pair() -> tuple[torch.Tensor, torch.Tensor]:
    a, b = (golden.hashed(name, 2, 3, 176, 192).double() for name in ("a", "b"))
    return a, 0.7 * a + 0.3 * b


def test_ms_ssim_equals_pytorch_msssim():
    ours = ms_ssim(*wang_pair()).tolist()
    assert ours == close(WANG)
    assert ours == pytest.approx(WANG_FLOAT32_WINDOW, abs=1e-6) and ours != pytest.approx(WANG_FLOAT32_WINDOW, abs=1e-7)


def test_ms_ssim_of_odd_sides_equals_pytorch_msssim():
    """Sourced: pytorch-msssim 1.0.0, float64 window, torch 2.13.0, 2026-11-24: as WANG, but of 2 x 3 x 177 x 191, whose
    halves it pads (`wang` of tools/sources/noise_to_norm.py with that shape)."""
    a, b = (golden.hashed(name, 2, 3, 177, 191).double() for name in ("a", "b"))
    assert ms_ssim(a, 0.7 * a + 0.3 * b).tolist() == close([0.9053041621, 0.9074108232])


def test_ms_ssim_of_another_range():
    a, b = wang_pair()
    assert ms_ssim(255 * a, 255 * b, value_range=255).tolist() == close(WANG)
    assert ms_ssim(255 * a, 255 * b).tolist() != pytest.approx(WANG, rel=1e-6)


def test_ms_ssim_of_flat_pictures_by_hand():
    """cs is 1 and l counts once, with the last exponent."""
    u, v = (torch.full((2, 3, 161, 170), value, dtype=torch.float64) for value in (0.4, 0.5))
    odd = ((2 * 0.2 + 1e-4) / (0.16 + 0.25 + 1e-4)) ** 0.1333
    even = ms_ssim(u[..., :160, :160].repeat(1, 1, 2, 2), v[..., :160, :160].repeat(1, 1, 2, 2))
    assert even.shape == (2,) and even.tolist() == close([odd, odd])
    assert ms_ssim(u, u).tolist() == close([1.0, 1.0])


def test_ms_ssim_identity_symmetry_and_batch():
    a, b = wang_pair()
    assert ms_ssim(a, a).tolist() == close([1.0, 1.0])
    assert ms_ssim(b, a).tolist() == close(ms_ssim(a, b).tolist())
    single = [ms_ssim(a[1:, c : c + 1], b[1:, c : c + 1]).item() for c in range(3)]
    assert ms_ssim(a, b)[1].item() == close(sum(single) / 3)


def test_ms_ssim_where_cs_is_negative():
    """Opposite pictures have a similarity of 0 and a gradient that is a number."""
    for kind in (torch.float32, torch.float64):
        u = golden.hashed("a", 1, 3, 161, 163).to(kind)
        v = (1 - u).requires_grad_()
        value = ms_ssim(u, v)
        assert value.tolist() == [0.0]
        value.sum().backward()
        assert v.grad.isfinite().all()


def test_ms_ssim_where_cs_of_one_channel_is_negative():
    """The other channels keep their values and gradients."""
    a, b = (picture[:1] for picture in wang_pair())
    opposite = torch.cat((b[:, :2], 1 - a[:, 2:]), dim=1).requires_grad_()
    value = ms_ssim(a, opposite)
    rest = ms_ssim(a[:, :2], b[:, :2])
    assert value.item() == close(rest.item() * 2 / 3)
    value.sum().backward()
    assert opposite.grad.isfinite().all() and (opposite.grad[:, :2] != 0).any()


def test_ms_ssim_gradient():
    a, b = (picture[:1, :1] for picture in wang_pair())
    assert torch.autograd.gradcheck(lambda p: ms_ssim(a, p), b.clone().requires_grad_(), fast_mode=True)


def test_ms_ssim_precision():
    a, b = wang_pair()
    expected = ms_ssim(a.float(), b.float())
    assert expected.dtype == torch.float32 and expected.tolist() == pytest.approx(WANG, rel=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ms_ssim(a.float(), b.float()), expected)
        assert ms_ssim(a.bfloat16(), b.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((1, 3, 160, 170), (1, 3, 160, 170)),
        ((1, 3, 170, 160), (1, 3, 170, 160)),
        ((3, 170, 170), (3, 170, 170)),
        ((1, 3, 170, 170), (1, 3, 170, 171)),
        ((1, 3, 170, 170), (1, 1, 170, 170)),
    ],
)
def test_ms_ssim_errors(a, b):
    with pytest.raises(ValueError):
        ms_ssim(torch.zeros(a), torch.zeros(b))
