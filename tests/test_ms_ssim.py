"""MS-SSIM in both forms: golden checks G8 to G11 and G13, PL4NN, its PyTorch port, pytorch-msssim, a slow loop."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import golden

from adref.losses import gaussian_window, ms_ssim, ms_ssim_l1, port_groups

LITERAL = (0.01, 0.03)


def image_of_g8() -> torch.Tensor:
    """Image I: (1, 3, 64, 64) float64."""
    k, r, c = torch.meshgrid(*(torch.arange(n) for n in (3, 64, 64)), indexing="ij")
    return (((7 * r + 13 * c + 29 * k) % 256).double() / 255)[None]


def mixed(a, b, alpha=0.84, **more) -> torch.Tensor:
    similarity, error = ms_ssim_l1(a, b, **more)
    return alpha * (1 - similarity) + (1 - alpha) * error


def each_channel(a, b, **more) -> torch.Tensor:
    """(3, 64, 64): the map of each channel by itself."""
    return torch.cat([mixed(a[:, i : i + 1], b[:, i : i + 1], **more)[0] for i in range(3)])


def numbers(output: torch.Tensor) -> list[float]:
    flat = output.detach().flatten()
    products = [(flat * golden.hashed(name, len(flat))).mean().item() for name in ("first", "second")]
    return [flat.mean().item(), flat.std(correction=0).item(), *products]


# G8, G9: mean MS, loss, largest value of a single channel.
@pytest.mark.parametrize(
    ("pair", "constants", "similarity", "loss", "most"),
    [("half", None, 0.30402205, 0.62472225, 0.66708579), ("half", LITERAL, 0.48205296, 0.47517629, 0.62060733),
     ("inverse", None, -0.28927134, 1.16288364, 1.75623716), ("same", None, 1, 0, 0),
     ("0.4, 0.5", None, 0.97561570, 0.03648281, 0.03648281), ("0.4, 0.5", LITERAL, 0.97619048, 0.036, 0.036),
     ("0, 1", None, 9.999e-5, 0.99991601, 0.99991601)],
)  # fmt: skip
def test_golden_values(pair, constants, similarity, loss, most):
    u = image_of_g8()
    pairs = {"half": (u, u / 2), "inverse": (u, 1 - u), "same": (u, u), "0, 1": (0 * u, 0 * u + 1),
             "0.4, 0.5": (0 * u + 0.4, 0 * u + 0.5)}  # fmt: skip
    a, b = pairs[pair]
    more = {"constants": constants} if constants else {}
    assert ms_ssim_l1(a, b, **more)[0].mean().item() == pytest.approx(similarity, abs=6e-9)
    assert mixed(a, b, **more).mean().item() == pytest.approx(loss, abs=6e-9)
    assert each_channel(a, b, **more).max().item() == pytest.approx(most, abs=6e-9)
    assert torch.allclose(mixed(a, b, **more)[0, 0], each_channel(a, b, **more).mean(dim=0))


def test_golden_values_of_other_readings():  # G8
    u = image_of_g8()
    v = 0.9 * u + 0.05
    assert mixed(u, v).mean().item() == pytest.approx(0.02476207, abs=6e-9)
    assert mixed(u, v, padding="zero").mean().item() == pytest.approx(0.02133105, abs=6e-9)
    assert mixed(u, u / 2, alpha=0.025).mean().item() == pytest.approx(0.26176357, abs=6e-9)
    corner = mixed(u, v, padding="zero")[0, 0, 0, 0].item(), mixed(u, v)[0, 0, 0, 0].item()
    assert corner == pytest.approx((0.110, 0.022), abs=5e-4)


def test_one_pixel_that_differs():  # G10
    u = torch.full((1, 3, 64, 64), 0.4, dtype=torch.float64)
    v = u.clone()
    v[..., 32, 32] = 0.9
    found = mixed(u, v)[0, 0]
    assert divmod(found.argmax().item(), 64) == (32, 32)
    assert found.max().item() == pytest.approx(0.84021107, abs=6e-9)
    assert found.mean().item() == pytest.approx(0.06217808, abs=6e-9)


def test_windows():  # G11
    centres = [0.78657071, 0.39894228, 0.19947114, 0.09973910, 0.05189331]
    for sigma, centre in zip((0.5, 1, 2, 4, 8), centres):
        weight = gaussian_window(33, sigma)
        assert weight[16].item() == pytest.approx(centre, abs=6e-9) and weight.sum().item() == pytest.approx(1)


def test_groups_of_the_port():  # G13
    colours = torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1, 1)
    seen = F.conv2d(colours, torch.ones(15, 1, 1, 1), groups=3).flatten().tolist()
    assert seen == [1] * 5 + [10] * 5 + [100] * 5
    assert [colours[0, channel].item() for channel, _ in port_groups(5)] == seen
    sigmas = [(0.5, 1, 2, 4, 8)[scale] for _, scale in port_groups(5)]
    assert sigmas == [0.5, 0.5, 0.5, 1, 1, 1, 2, 2, 2, 4, 4, 4, 8, 8, 8]


def hashed_pair() -> tuple[torch.Tensor, torch.Tensor]:
    """a and 0.3 b + 0.7 a, (1, 3, 64, 64) float64."""
    a = golden.hashed("a", 3, 64, 64).double()
    return a[None], (0.3 * golden.hashed("b", 3, 64, 64).double() + 0.7 * a)[None]


# Sourced: PL4NN's MSSSIML1 (NVlabs/PL4NN, src/loss.py, commit d39c202) on the 33 x 33 patch around each pixel of the
# mirrored pictures: the map of each channel, and the gradient of its mean for the second picture, times 12288;
# `python tools/source_noise_to_norm.py`, 2026-11-24, float64.
@pytest.mark.parametrize(
    ("alpha", "of_map", "of_gradient"),
    [(0.025, [0.1100091489, 0.00433689252, 0.05501600931, 0.05486106582],
      [-0.00814150489, 1.113374638, -0.002984066411, -0.002156563679]),
     (0.84, [0.413934831, 0.08583036723, 0.2072880681, 0.2064563879],
      [-0.002649660594, 5.463366554, -0.002849879198, 0.01417153644])],
)  # fmt: skip
def test_maps_and_gradients_are_pl4nns(alpha, of_map, of_gradient):
    a, b = hashed_pair()
    b.requires_grad_()
    assert numbers(each_channel(a, b, alpha=alpha)) == pytest.approx(of_map, rel=2e-9)
    (gradient,) = torch.autograd.grad(mixed(a, b, alpha).mean(), b)
    assert numbers(12288 * gradient) == pytest.approx(of_gradient, rel=2e-8)


# Sourced: the port (psyrocloud/MS-SSIM_L1_LOSS, commit 8cbb65f), whose windows are float32; its compensation of 200
# multiplies the loss; a grey picture hides its mistake; the same command and date.
def test_the_ports_loss():
    a, b = hashed_pair()
    port = {"channels": "port_groups", "padding": "zero"}
    assert 200 * mixed(a, b, 0.025, **port).mean().item() == pytest.approx(20.14647379, rel=2e-7)
    assert mixed(a, b, 0.84, **port).mean().item() == pytest.approx(0.6787710134, rel=2e-7)
    a, b = (x[:, :1].expand(-1, 3, -1, -1) for x in (a, b))
    for channels in ("port_groups", "product"):
        more = {"channels": channels, "padding": "zero"}
        assert 200 * mixed(a, b, 0.025, **more).mean().item() == pytest.approx(20.19910705, rel=2e-7)
        assert mixed(a, b, 0.84, **more).mean().item() == pytest.approx(0.6750365666, rel=2e-7)


def test_one_pixel_by_a_slow_loop():
    """At the border, mirrored; sums written out, variances about the mean."""
    a, b = torch.rand(2, 1, 1, 12, 14, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sigmas, reach, row, column = (0.5, 1.5), 3, 1, 12

    def mirror(i, n):
        return -i if i < 0 else 2 * n - 2 - i if i >= n else i

    similarity = 1.0
    for sigma in sigmas:
        raw = [math.exp(-(k**2) / (2 * sigma**2)) for k in range(-reach, reach + 1)]
        weights = [w / sum(raw) for w in raw]
        places = [(weights[i + reach] * weights[j + reach], mirror(row + i, 12), mirror(column + j, 14))
                  for i in range(-reach, reach + 1) for j in range(-reach, reach + 1)]  # fmt: skip
        values = [(w, a[0, 0, y, x].item(), b[0, 0, y, x].item()) for w, y, x in places]
        mu, nu = sum(w * p for w, p, _ in values), sum(w * q for w, _, q in values)
        spread = sum(w * ((p - mu) ** 2 + (q - nu) ** 2) for w, p, q in values)
        similarity *= (2 * sum(w * (p - mu) * (q - nu) for w, p, q in values) + 9e-4) / (spread + 9e-4)
    similarity *= (2 * mu * nu + 1e-4) / (mu**2 + nu**2 + 1e-4)
    error = sum(w * abs(p - q) for w, p, q in values)
    found = ms_ssim_l1(a, b, sigmas)
    assert [m[0, 0, row, column].item() for m in found] == pytest.approx([similarity, error], abs=1e-12)


def test_gradients_and_precision():
    a, b = torch.rand(2, 1, 2, 7, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, q: ms_ssim_l1(p, q, (0.5, 1.0)), (a, b))
    a, b = hashed_pair()
    exact = mixed(a, b)
    assert torch.allclose(mixed(a.float(), b.float()).double(), exact, atol=2e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mixed(a.float(), b.float()), mixed(a.float(), b.float()).float())
        inside = ms_ssim_l1(a.float(), b.float())
    assert torch.equal(inside[0], ms_ssim_l1(a.float(), b.float())[0])


def large_pair() -> tuple[torch.Tensor, torch.Tensor]:
    a = golden.hashed("a", 2, 3, 176, 192).double()
    return a, 0.7 * a + 0.3 * golden.hashed("b", 2, 3, 176, 192).double()


def test_the_pyramid_is_pytorch_msssims():
    """Sourced: pytorch-msssim 1.0.0, with a float64 window; `python tools/source_noise_to_norm.py`, 2026-11-24."""
    assert ms_ssim(*large_pair()).tolist() == pytest.approx([0.9057556338, 0.9089883189], abs=2e-10)


def test_the_pyramid_at_its_ends():
    a, _ = large_pair()
    assert ms_ssim(a, a).tolist() == pytest.approx([1, 1])
    inverse = (1 - a).requires_grad_()
    loss = ms_ssim(a, inverse)
    loss.sum().backward()
    assert (loss == 0).all() and torch.isfinite(inverse.grad).all()  # cs is negative: no power, no gradient


@pytest.mark.parametrize(
    "call",
    [lambda x: ms_ssim_l1(x, x[:, :1]), lambda x: ms_ssim_l1(x, x, (2.0, 1.0)), lambda x: ms_ssim_l1(x, x, ()),
     lambda x: ms_ssim_l1(x, x, (0.0, 1.0)), lambda x: ms_ssim_l1(x, x, padding="valid"),
     lambda x: ms_ssim_l1(x, x, channels="sum"), lambda x: ms_ssim_l1(x[..., :16], x[..., :16]),
     lambda x: ms_ssim(x, x), lambda x: ms_ssim(x[0], x[0])],
)  # fmt: skip
def test_wrong_arguments_say_what_was_expected(call):
    with pytest.raises(ValueError, match="expected"):
        call(torch.zeros(2, 3, 40, 40))
