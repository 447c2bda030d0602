"""The ViT autoencoder: golden checks G1, G2, G8 to G10, G12, G14, every option built and trained, printed averages."""

import dataclasses
import itertools
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import check_readings, golden, once
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import nn

from adref import options as option_tools
from adref.layers.memory import Recall, address, entropy
from adref.method import EarlyStop, Sources
from adref.methods.vit_autoencoder.decoder import Decoder
from adref.methods.vit_autoencoder.method import Batch, ViTAutoencoder, corrupt
from adref.methods.vit_autoencoder.options import ABLATIONS, PRESETS, Options
from adref.ops.filters import gaussian_smooth
from adref.ops.losses import ssim_map
from adref.options import Notice, UserError

LEAST = {
    "size": (32, 32), "patch": 8, "width": 32, "depth": 1, "heads": 2, "memory_items": 20, "decoder_width": 32,
    "map_sigma": 1.0, "score_sigma": 2.0,
}  # fmt: skip

# Sourced: mean, standard deviation and the means of the products with two lists of hashed numbers, of scipy 1.17.1's
# gaussian_filter(picture, sigma, mode="reflect", truncate=4), picture = hashed("map", 40, 56), float64;
# `PYTHONPATH=tools python tools/sources/vit_autoencoder.py`, 2026-11-24. At sigma 15 the reach of 60 is longer than both sides.
SOURCED_SMOOTHING = {
    2: [0.4910930577, 0.04286095695, 0.2467658755, 0.2451259736],
    6: [0.4910930577, 0.01644582966, 0.2468482459, 0.2451076634],
    15: [0.4910930577, 0.005755287873, 0.246883424, 0.2451274601],
}
# Sourced: scikit-image 0.26.0's structural_similarity (Gaussian weights, sigma 1.5, no sample covariance, range 1,
# full=True), with which a few lines of scipy 1.17.1 agree to 8e-15: the same four numbers of its map, or its mean;
# `PYTHONPATH=tools python tools/sources/vit_autoencoder.py`, 2026-11-24. I is the picture of G8.
SOURCED_SSIM = {
    ("0.9 I + 0.05", "reflect"): [0.992671962, 0.003516880343, 0.4963441939, 0.4950774785],
    ("0.9 I + 0.05", "zero"): [0.9931486941, 0.004476218793, 0.4965883691, 0.4953149609],
    ("0.9 I + 0.05", "valid"): [0.99267561],
    ("1 - I", "reflect"): [-0.6689366237, 0.1747087858, -0.3351103665, -0.3330298939],
    ("1 - I", "zero"): [-0.5066114464, 0.4010646554, -0.2527164457, -0.2519352125],
    ("1 - I", "valid"): [-0.67398610],
}  # fmt: skip


def digest(output: torch.Tensor) -> list[float]:
    """Mean, standard deviation, and the means of the products with two lists of hashed numbers."""
    flat = output.detach().double().flatten()
    products = [(flat * golden.hashed(name, len(flat))).mean().item() for name in ("first", "second")]
    return [flat.mean().item(), flat.std(correction=0).item(), *products]


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def tiny(**changes) -> ViTAutoencoder:
    """The method at a tiny size, always of the same weights."""
    torch.manual_seed(0)
    return ViTAutoencoder(Options(**{**LEAST, **changes}))


def images_of(method: ViTAutoencoder, count: int = 2) -> torch.Tensor:
    return golden.hashed("images", count, 3, *method.options.size)


def answering(reconstruction: torch.Tensor, recall: Recall | None = None, **changes) -> ViTAutoencoder:
    """A method whose networks return what they are told to."""
    method = tiny(**{"size": tuple(reconstruction.shape[2:]), **changes})
    method.forward = lambda images: (reconstruction, recall)
    return method


def picture_of_g8() -> torch.Tensor:
    """I of G8: u[k, r, c] = ((7 r + 13 c + 29 k) mod 256) / 255, float64 (1, 3, 64, 64)."""
    k, r, c = np.mgrid[:3, :64, :64]
    return torch.from_numpy((7 * r + 13 * c + 29 * k) % 256 / 255)[None]


def changed(picture: torch.Tensor, how: str) -> torch.Tensor:
    return 0.9 * picture + 0.05 if how == "0.9 I + 0.05" else 1 - picture


# -- networks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ablation", "anovit", "pow2"),
    [("base", 88_253_571, 92_418_563), ("+m", 89_789_571, 93_954_563), ("+ca", 88_310_475, 92_475_467),
     ("+m+ca", 89_846_475, 94_011_467)],
)  # fmt: skip
@pytest.mark.holds("vit_autoencoder", "Table of the ablation")
def test_totals_of_the_paper_preset(ablation, anovit, pow2):
    """G1: the table of section 7; 2000 items, 12 blocks. Encoder, block and CA also after timm 1.0.31 (2026-11-24)."""
    for decoder, total, its_own in (("anovit", anovit, 2_163_075), ("pow2", pow2, 6_328_067)):
        chosen = option_tools.build(Options, PRESETS, ABLATIONS, "paper", ablation, {"decoder": decoder})
        with torch.device("meta"):
            method = ViTAutoencoder(chosen)
        assert parameters(method) == total and parameters(method.decoder) == its_own
        assert parameters(method.encoder) == 86_090_496 and parameters(method.encoder.blocks[0]) == 7_087_872
        assert parameters(method.coordinate_attention) == (56_904 if "ca" in ablation else 0)
        assert not chosen.memory or parameters(method.memory) == 1_536_000


def test_parts_of_the_decoders():
    """G1, layer by layer (section 6), and the exact lineage: 2,162,083."""
    with torch.device("meta"):
        anovit, pow2 = Decoder(768, (384, 384)), Decoder(768, (384, 384), "pow2")
        lineage = Decoder(768, (384, 384), norm="instance", last_block="norm_relu")
        both = ViTAutoencoder(Options(coordinate_attention="both"))
    convolutions = [parameters(m) for m in anovit.layers if isinstance(m, nn.ConvTranspose2d)]
    assert convolutions == [1_769_728, 295_040, 73_792, 18_464, 4_624, 435]
    assert sum(parameters(m) for m in anovit.layers if isinstance(m, nn.BatchNorm2d)) == 992
    convolutions = [parameters(m) for m in pow2.layers if isinstance(m, nn.ConvTranspose2d)]
    assert convolutions == [3_539_456, 2_097_408, 524_416, 131_136, 32_800, 867]
    assert sum(parameters(m) for m in pow2.layers if isinstance(m, nn.BatchNorm2d)) == 1_984
    assert parameters(lineage) == 2_162_083 and not any(
        name.split(".")[-1] == "running_mean" for name in lineage.state_dict()
    )
    assert parameters(both.coordinate_attention) == 2 * 56_904
    kinds = [type(m).__name__ for m in anovit.layers]
    assert kinds == ["ConvTranspose2d", "BatchNorm2d", "ReLU"] * 5 + ["ConvTranspose2d"]
    kinds = [type(m).__name__ for m in lineage.layers]
    assert kinds == ["ConvTranspose2d", "InstanceNorm2d", "ReLU"] * 6


@pytest.mark.parametrize(
    ("kind", "sides"), [("anovit", [26, 28, 30, 59, 117, 233]), ("pow2", [24, 48, 96, 192, 384, 384])]
)
@pytest.mark.holds("vit_autoencoder", "d")
def test_sides_of_the_decoders(kind, sides):
    """G2; the output is 384 in both."""
    found = []
    with torch.device("meta"):
        decoder = Decoder(768, (384, 384), kind)
        for layer in decoder.layers:
            if isinstance(layer, nn.ConvTranspose2d):
                layer.register_forward_hook(lambda module, given, output: found.append(tuple(output.shape[2:])))
        assert decoder(torch.empty(2, 768, 24, 24)).shape == (2, 3, 384, 384)
    assert found == [(side, side) for side in sides]


@pytest.mark.parametrize("cells", [(1, 1), (4, 6), (9, 5)])
def test_anovit_layers_give_8_n_and_41(cells):
    decoder = Decoder(8, (8 * cells[0], 8 * cells[1]), first=16).eval()
    maps = torch.rand(1, 8, *cells)
    inner = decoder.layers(maps)
    assert inner.shape[2:] == (8 * cells[0] + 41, 8 * cells[1] + 41)
    expected = F.interpolate(inner, decoder.size, mode="bilinear", align_corners=True).tanh()
    assert torch.equal(decoder(maps), expected)
    assert torch.allclose(expected[..., 0, 0], inner[..., 0, 0].tanh())  # the corners are aligned
    assert torch.allclose(expected[..., -1, -1], inner[..., -1, -1].tanh())


def transposed(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """Each pixel (C, h, w) puts its window down; windows overlap, and `padding` pixels are cut off all around."""
    side, (_, height, width) = weight.shape[2], x.shape
    out = np.zeros((len(bias), (height - 1) * stride + side, (width - 1) * stride + side))
    for y, z in np.ndindex(height, width):
        window = np.einsum("c,coij->oij", x[:, y, z], weight)
        out[:, y * stride : y * stride + side, z * stride : z * stride + side] += window
    return out[:, padding : out.shape[1] - padding, padding : out.shape[2] - padding] + bias[:, None, None]


@pytest.mark.parametrize("last_block", ["plain", "norm_relu"])
@pytest.mark.parametrize("kind", ["anovit", "pow2"])
@pytest.mark.holds("vit_autoencoder", "d")
def test_decoder_by_slow_sums(kind, last_block):
    """Equation d in evaluation mode: six transposed convolutions, five norms and ReLUs (or six), a resize, tanh."""
    cells, size = (2, 3), {"anovit": (48, 72), "pow2": (32, 48)}[kind]
    decoder = golden.fill(Decoder(6, size, kind, 16, last_block=last_block)).double()
    maps = golden.hashed("maps", 1, 6, *cells).double() * 4 - 2
    x, steps = maps[0].numpy(), {"anovit": [(1, 0)] * 3 + [(2, 1)] * 3, "pow2": [(1, 1), *[(2, 1)] * 4, (1, 1)]}[kind]
    convolutions = [m for m in decoder.layers if isinstance(m, nn.ConvTranspose2d)]
    norms = [m for m in decoder.layers if isinstance(m, nn.BatchNorm2d)]
    assert [m.out_channels for m in convolutions] == [16, 8, 4, 2, 1, 3] and len(norms) == 5 + (last_block != "plain")
    for i, (convolution, (stride, padding)) in enumerate(zip(convolutions, steps, strict=True)):
        x = transposed(x, convolution.weight.detach().numpy(), convolution.bias.detach().numpy(), stride, padding)
        if i < len(norms):
            mean, variance, gain, shift = (
                t.detach().numpy()[:, None, None]
                for t in (norms[i].running_mean, norms[i].running_var, norms[i].weight, norms[i].bias)
            )
            x = np.maximum((x - mean) / np.sqrt(variance + 1e-5) * gain + shift, 0)
    rows, columns = (np.linspace(0, a - 1, b) for a, b in zip(x.shape[1:], size))  # the corners are aligned
    places = np.meshgrid(rows, columns, indexing="ij")
    x = np.tanh([map_coordinates(channel, places, order=1, mode="nearest") for channel in x])
    found = decoder(maps)[0].detach().numpy()
    assert found.shape == (3, *size) and found.std() > 0.01
    assert np.abs(found - x).max() < 1e-10


def test_range_of_the_decoder():
    """G12: with "norm_relu" nothing is below 0, and no pixel of u_hat below mid grey; "plain" reaches -0.1."""
    torch.manual_seed(0)
    for norm in ("batch", "instance"):
        maps = 10 * torch.randn(2, 8, 4, 4)
        lineage = Decoder(8, (32, 32), first=16, norm=norm, last_block="norm_relu")
        assert lineage(maps).min() >= 0
        plain = Decoder(8, (32, 32), first=16, norm=norm)
        nn.init.constant_(plain.layers[-1].bias, -1.0)
        assert plain(maps).min() < -0.1
    method = tiny(last_block="norm_relu")
    assert method(images_of(method))[0].min() >= 0.5


@pytest.mark.holds("vit_autoencoder", "Table of the ablation")
def test_ablations_share_encoder_and_decoder_and_base_has_neither_module():
    """G14."""
    keys = {}
    for name, changes in ABLATIONS.items():
        keys[name] = set(tiny(**changes).state_dict())
    parts = {name: {key.split(".")[0] for key in found} for name, found in keys.items()}
    assert not [key for key in keys["base"] if "memory" in key or key.startswith(("coordinate_attention", "ca"))]
    assert parts["base"] == {"encoder", "decoder", "mean", "std"}
    assert parts["+m"] == parts["base"] | {"memory"} and parts["+ca"] == parts["base"] | {"coordinate_attention"}
    assert parts["+m+ca"] == parts["base"] | {"memory", "coordinate_attention"}
    for found in keys.values():
        assert {k for k in found if k.startswith(("encoder", "decoder"))} == {
            k for k in keys["base"] if k.startswith(("encoder", "decoder"))
        }


def test_data_flow():
    """Encoder, [CA], memory, [CA], decoder; each gets what the one before gave (section 1 and D12)."""
    orders = {"after_memory": "EMCD", "before_memory": "ECMD", "both": "ECMCD", "none": "EMD"}
    seen = []
    for place, order in orders.items():
        method = tiny(coordinate_attention=place).eval()
        seen.clear()
        parts = {"E": [method.encoder], "M": [method.memory], "C": method.coordinate_attention.values(),
                 "D": [method.decoder]}  # fmt: skip
        for letter, modules in parts.items():
            for module in modules:
                module.register_forward_hook(lambda m, given, output, x=letter: seen.append((x, given[0], output)))
        output, recall = method(images_of(method))
        assert "".join(letter for letter, _, _ in seen) == order
        for (letter, _, before), (_, given, _) in itertools.pairwise(seen):
            assert given is (before.output if letter == "M" else before)
        assert torch.equal(output, seen[-1][2] * 0.5 + 0.5) and recall.weights.shape == (2, 4, 4, 20)
        assert torch.equal(seen[0][1], (images_of(method) - 0.5) / 0.5)  # [-1, 1]


def test_without_a_memory_both_places_are_the_same():
    images = images_of(tiny())
    before, after = (
        tiny(memory=False, coordinate_attention=place).eval() for place in ("before_memory", "after_memory")
    )
    after.load_state_dict({k.replace("before", "after"): v for k, v in before.state_dict().items()})
    assert torch.equal(before(images)[0], after(images)[0]) and before(images)[1] is None


def test_memory_residual_adds_the_map():
    """D11; without it only what is recalled goes on."""
    for residual in (False, True):
        method, given = tiny(memory_residual=residual, coordinate_attention="none").eval(), []
        method.decoder.register_forward_hook(lambda module, inputs, output, into=given: into.append(inputs[0]))
        maps = method.encoder(2 * images_of(method) - 1)
        _, recall = method(images_of(method))
        assert torch.equal(given[0], maps + recall.output if residual else recall.output)


def test_recall_is_that_of_the_options():
    method = tiny(addressing="dot", temperature=0.5, shrinkage=0.06, on_empty="soft")
    maps = method.encoder(2 * images_of(method) - 1)
    expected = address(maps.permute(0, 2, 3, 1), method.memory.weight, "dot", 0.5, 0.06, "soft")
    assert torch.equal(method(images_of(method))[1].weights, expected.weights)


def test_initialisation():
    """Truncated normal 0.02 in the encoder, N(0, 0.02^2) in the decoder (D28), the memory uniform."""
    torch.manual_seed(0)
    method = ViTAutoencoder(Options(size=(64, 64), width=192, depth=1, heads=2, memory_items=100))
    for module in method.decoder.layers:
        if isinstance(module, nn.ConvTranspose2d) and module.weight.numel() > 10_000:
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.02)
            assert module.weight.abs().max() > 0.06 and not module.bias.any()
    assert method.encoder.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert method.memory.weight.abs().max().item() == pytest.approx(192**-0.5, rel=1e-3)


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    method = tiny(entropy_weight=1.0, coordinate_attention="both", ca_reduction=1)
    method.loss(Batch(images_of(method, 4)))["total"].backward()
    for name, parameter in method.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        # a bias in front of a batch norm has no effect
        assert parameter.grad.abs().max() > 0 or name.endswith(".bias"), name


# -- losses ------------------------------------------------------------------------------------------------------------


def test_literal_loss_of_g8():
    """G8: to the accuracy of float32, in which `loss` works."""
    image = picture_of_g8()
    for how, mse, similarity, total in (
        ("0.9 I + 0.05", 0.00083278, 0.99267196, 0.00982638),
        ("1 - I", 0.33311291, -0.66893662, 2.66827534),
    ):
        method = answering(changed(image, how).float())
        error, found = method.compare(image.float(), changed(image, how).float())
        assert error.shape == found.shape == (1, 3, 64, 64)
        assert error.mean().item() == pytest.approx(mse, rel=1e-7, abs=1.2e-8)
        assert found.mean().item() == pytest.approx(similarity, abs=1e-6)
        terms = method.loss(Batch(image.float()))
        assert terms["l2"].item() == pytest.approx(3 * mse, abs=4e-8)
        assert terms["total"].item() == pytest.approx(total, abs=1e-6) and terms["total"].dtype == torch.float32
    same = answering(image.float()).loss(Batch(image.float()))
    assert [same[name].item() for name in ("l2", "ssim", "total")] == pytest.approx([0, 0, 0], abs=1e-6)


@pytest.mark.holds("vit_autoencoder", "11", "13")
def test_literal_loss_of_g8_in_float64():
    """G8, all eight decimals."""
    image = picture_of_g8()
    for how, l2, total in (("0.9 I + 0.05", 0.00249835, 0.00982638), ("1 - I", 3 * 0.33311291, 2.66827534)):
        terms = answering(changed(image, how)).double().loss(Batch(image))
        assert terms["l2"].item() == pytest.approx(l2, abs=1.6e-8)
        assert terms["total"].item() == pytest.approx(total, abs=6e-9)


@pytest.mark.parametrize(("how", "border"), SOURCED_SSIM)
@pytest.mark.holds("vit_autoencoder", "12")
def test_ssim_equals_scikit_images(how, border):
    """G8: 0.99267196 (reflect), 0.99314869 (zero), 0.99267561 (valid), in float64 and through `loss`."""
    image, numbers = picture_of_g8(), SOURCED_SSIM[how, border]
    found = digest(ssim_map(changed(image, how), image, "gaussian", 11, 1.5, border))
    if border == "valid":  # eight printed decimals, of the mean alone
        assert found[0] == pytest.approx(numbers[0], abs=5.1e-9)
    else:
        assert found == pytest.approx(numbers, rel=1e-9, abs=1e-11)
    terms = answering(changed(image, how).float(), ssim_padding=border).loss(Batch(image.float()))
    assert terms["ssim"].item() == pytest.approx(1 - numbers[0], abs=1e-6)


def test_window_of_g8():
    """G8: the taps of the Gaussian, through an impulse in the local means."""
    taps = [0.00102838, 0.00759876, 0.03600077, 0.10936069, 0.21300554, 0.26601172]
    a = torch.zeros(1, 1, 31, 31, dtype=torch.float64)
    a[0, 0, 15, 15] = 1e3
    # With b = 0 the map is c1 c2 / ((mu^2 + c1)(var + c2)), mu = 1000 w_i w_j and var = 10^6 w_i w_j - mu^2.
    found = ssim_map(a, torch.zeros_like(a), "gaussian", 11, 1.5, "reflect")[0, 0, 15, 10:16]
    w = torch.tensor(taps, dtype=torch.float64) * taps[5]
    expected = 1e-4 * 9e-4 / ((1e6 * w * w + 1e-4) * (1e6 * w - 1e6 * w * w + 9e-4))
    assert found.tolist() == pytest.approx(expected.tolist(), rel=2e-5)


def range_trap(kind: torch.dtype) -> dict[str, list[float]]:
    """Mean SSIM and squared error of the constants 0.4 and 0.5, in either range."""
    images, reconstruction, found = torch.full((1, 3, 32, 32), 0.4, dtype=kind), torch.full((1, 3, 32, 32), 0.5), {}
    for where in ("unit", "network"):
        error, similarity = tiny(loss_range=where).to(kind).compare(images, reconstruction.to(kind))
        found[where] = [similarity.mean().item(), error.mean().item()]
    return found


def test_range_trap():
    """G9: 0.4 and 0.5 give 0.97561570 in [0, 1]; the same colours in [-1, 1] with a range of 2 give 0.00990099.

    Here in float32, whose rounding of a variance of zero is 1e-4 of C2.
    """
    found = range_trap(torch.float32)
    assert found["unit"] == pytest.approx([0.97561570, 0.01], rel=1e-4)
    assert found["network"] == pytest.approx([0.00990099, 0.04], rel=1e-4)


def test_range_trap_in_float64():
    """G9, all eight decimals."""
    found = range_trap(torch.float64)
    assert found["unit"] == pytest.approx([0.97561570, 0.01], abs=6e-9)
    assert found["network"] == pytest.approx([0.00990099, 0.04], abs=6e-9)


def test_range_trap_of_the_ssim_map():
    """G9, all eight decimals."""
    for low, high, value_range, similarity in ((0.4, 0.5, 1.0, 0.97561570), (-0.2, 0.0, 2.0, 0.00990099)):
        a, b = (torch.full((1, 3, 32, 32), value, dtype=torch.float64) for value in (low, high))
        found = ssim_map(a, b, padding="reflect", value_range=value_range)
        assert (found - similarity).abs().max() < 6e-9


@pytest.mark.holds("vit_autoencoder", "11", "13", "14", "15")
def test_terms_and_their_weights():
    """Equations 11 to 15: total is the sum of the terms, and each has its weight."""
    image, recall = picture_of_g8().float(), recall_of([[0.5, 0.5, 0, 0], [1, 0, 0, 0]])
    settings = {"reconstruction_weight": 0.7, "ssim_weight": 0.3, "entropy_weight": 0.2}
    terms = answering(changed(image, "0.9 I + 0.05"), recall, **settings).loss(Batch(image))
    assert terms["l2"].item() == pytest.approx(0.7 * 0.00249835, abs=2e-8)
    assert terms["ssim"].item() == pytest.approx(0.7 * 0.3 * (1 - 0.99267196), abs=2e-7)
    assert terms["entropy"].item() == pytest.approx(0.2 * math.log(2) / 2, rel=1e-5)
    assert terms["total"] == terms["l2"] + terms["ssim"] + terms["entropy"]
    mean = answering(changed(image, "0.9 I + 0.05"), recall, **settings, l2_reduction="mean").loss(Batch(image))
    assert mean["l2"].item() == pytest.approx(terms["l2"].item() / 3, rel=1e-6)
    assert all("/" not in name for name in ("l2", "ssim", "entropy", "total"))


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.holds("vit_autoencoder", "15", "Table of the ablation")
def test_total_is_the_sum_of_the_terms(ablation):
    method = tiny(**ABLATIONS[ablation])
    terms = method.loss(Batch(images_of(method)))
    named = [value for name, value in terms.items() if "/" not in name and name != "total"]
    assert terms["total"] == sum(named) and terms["total"].requires_grad
    statistics = {name for name in terms if "/" in name}
    if method.options.memory:
        assert set(terms) - statistics == {"l2", "ssim", "entropy", "total"} and statistics == {
            "memory/survivors", "memory/entropy", "memory/dead_queries", "memory/dead_items"}  # fmt: skip
        assert not any(terms[name].requires_grad for name in statistics)
    else:
        assert set(terms) == {"l2", "ssim", "total"}  # no entropy term in `base` and `+ca`
    assert all(value.ndim == 0 and value.dtype == torch.float32 for value in terms.values())


@pytest.mark.holds("vit_autoencoder", "14")
def test_both_signs_of_the_entropy():
    """G4's entropy 1.0854, -1.0854 as printed; and what a step of either does to it (D21)."""
    weights = torch.tensor([0.2693, 0.3289, 0, 0, 0.4018])
    for sign, factor in (("corrected", 1), ("literal", -1)):
        image = torch.rand(1, 3, 32, 32)
        terms = answering(image, recall_of(weights), entropy_weight=1.0, entropy_sign=sign).loss(Batch(image))
        assert terms["entropy"].item() == pytest.approx(factor * 1.0854, abs=1e-4)
        assert terms["memory/entropy"].item() == pytest.approx(1.0854, abs=1e-4)  # the statistic keeps its sign
    after = {}
    for sign in ("corrected", "literal"):
        method = tiny(entropy_weight=1.0, reconstruction_weight=0.0, entropy_sign=sign, learning_rate=1e-2,
                      shrinkage=0.0, temperature=0.3)  # fmt: skip
        optimizer, _ = method.optimizer()
        for _ in range(20):
            terms = method.loss(Batch(images_of(method)))
            optimizer.zero_grad()
            terms["total"].backward()
            optimizer.step()
        after[sign] = terms["memory/entropy"].item()
    assert after["corrected"] < 2.4 and after["literal"] == pytest.approx(math.log(20), abs=0.05)


# -- statistics of the memory ------------------------------------------------------------------------------------------


def recall_of(weights, empty=None) -> Recall:
    """A recall of one image whose map is a row of as many cells as there are lists of weights."""
    weights = torch.as_tensor(weights, dtype=torch.float32)
    weights = weights.reshape(1, 1, -1, weights.shape[-1])
    empty = torch.zeros(weights.shape[:3], dtype=torch.bool) if empty is None else torch.tensor([[empty]])
    return Recall(torch.zeros(1, 32, *weights.shape[1:3]), weights, empty)


def test_statistics_of_known_weights():
    """Four queries over five items: 3 + 1 + 2 + 0 of 20 survive; items 3 and 4 for none; one query is dead."""
    rows = [[0.5, 0.25, 0.25, 0, 0], [1, 0, 0, 0, 0], [0, 0.5, 0.5, 0, 0], [0, 0, 0, 0, 0]]
    image = torch.rand(1, 3, 32, 32)
    terms = answering(image, recall_of(rows, [False, False, False, True])).loss(Batch(image))
    assert terms["memory/survivors"].item() == pytest.approx(6 / 20)
    assert terms["memory/dead_queries"].item() == pytest.approx(1 / 4)
    assert terms["memory/dead_items"].item() == pytest.approx(2 / 5)
    assert terms["memory/entropy"].item() == pytest.approx((1.5 * math.log(2) + math.log(2)) / 4, abs=1e-6)
    assert terms["entropy"].item() == pytest.approx(0.001 * 2.5 * math.log(2) / 4, rel=1e-5)


def equal_items(method: ViTAutoencoder) -> ViTAutoencoder:
    with torch.no_grad():
        method.memory.weight.copy_(method.memory.weight[:1].expand_as(method.memory.weight))
    return method


@pytest.mark.parametrize("addressing", ["cosine", "dot"])
def test_statistics_of_equal_items(addressing):
    """G6: every query is dead, and every item."""
    method = equal_items(tiny(addressing=addressing))
    terms = method.loss(Batch(images_of(method)))
    assert terms["memory/dead_queries"] == 1 and terms["memory/survivors"] == 0 and terms["memory/dead_items"] == 1
    assert terms["memory/entropy"] == 0 and torch.isfinite(terms["total"])


def test_dead_items():
    """7 of 20 items stand against all queries, which are all but one direction; 13 along it."""
    method = tiny()
    direction = golden.hashed("direction", 32) - 0.5
    maps = direction[:, None, None] + 0.01 * golden.hashed("map", 2, 32, 4, 4)
    method.encoder.forward = lambda images: maps
    with torch.no_grad():
        method.memory.weight[:7], method.memory.weight[7:] = -direction, direction
    terms = method.loss(Batch(images_of(method)))
    assert terms["memory/dead_items"].item() == pytest.approx(7 / 20, abs=1e-6)
    assert terms["memory/survivors"].item() == pytest.approx(13 / 20, abs=1e-6) and terms["memory/dead_queries"] == 0


def test_statistics_of_equal_items_with_soft_weights():
    """G6 with "soft": the counts are of what survives the shrinkage."""
    method = equal_items(tiny(on_empty="soft"))
    terms = method.loss(Batch(images_of(method)))
    assert terms["memory/dead_queries"] == 1
    assert terms["memory/survivors"] == 0 and terms["memory/dead_items"] == 1


def test_soft_weights_recall_the_item_where_all_are_equal():
    method = equal_items(tiny(on_empty="soft"))
    _, recall = method(images_of(method))
    assert torch.allclose(recall.output, method.memory.weight[0, :, None, None].expand_as(recall.output), atol=1e-6)


# -- maps and scores ---------------------------------------------------------------------------------------------------


def test_smoothing_of_an_impulse():
    """G10: peaks at the centre and at the corner, sum 1."""
    for sigma, place, peak in ((6, 192, 0.0044213553), (15, 192, 0.0007074329), (6, 0, 0.0174423294)):
        maps = torch.zeros(1, 1, 384, 384, dtype=torch.float64)
        maps[0, 0, place, place] = 1
        smooth = gaussian_smooth(maps, sigma)
        assert smooth.max().item() == smooth[0, 0, place, place].item() == pytest.approx(peak, abs=5.1e-11)
        assert smooth.sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("sigma", SOURCED_SMOOTHING)
def test_smoothing_equals_scipys(sigma):
    picture = golden.hashed("map", 40, 56).double()
    assert digest(gaussian_smooth(picture, sigma)) == pytest.approx(SOURCED_SMOOTHING[sigma], rel=1e-9, abs=1e-12)
    for odd in (0.4, sigma + 0.37):
        direct = gaussian_filter(picture.numpy(), odd, mode="reflect", truncate=4.0)
        assert np.abs(gaussian_smooth(picture, odd).numpy() - direct).max() < 1e-14
    assert gaussian_smooth(picture, 0) is picture


def smoothed(maps: torch.Tensor, sigma: float) -> np.ndarray:
    """By scipy, each map by itself."""
    return np.stack([gaussian_filter(m, sigma, mode="reflect", truncate=4.0) for m in maps[:, 0].double().numpy()])


@torch.no_grad()
@pytest.mark.holds("vit_autoencoder", "e")
def test_scores_and_maps():
    """D24 to D26: one error, smoothed by --map-sigma for the map and by --score-sigma for the score."""
    method = tiny(map_sigma=1.5, score_sigma=4.0, ssim_weight=0.6).eval()
    images = images_of(method)
    reconstruction, _ = method(images)
    similarity = ssim_map(reconstruction, images, padding="reflect")
    error = ((images - reconstruction) ** 2 + 0.6 * (1 - similarity)).mean(1, keepdim=True)
    assert torch.allclose(method.error_map(images), error, atol=1e-6)
    scores, maps = method.score(images)
    assert maps.shape == (2, 1, 32, 32) and scores.shape == (2,)
    assert torch.equal(method.anomaly_map(images), maps)
    assert np.abs(maps[:, 0].numpy() - smoothed(error, 1.5)).max() < 2e-6
    assert np.abs(scores.numpy() - smoothed(error, 4.0).max((1, 2))).max() < 2e-6
    assert not torch.allclose(scores, method.image_score(maps), rtol=1e-3)  # the score is not the map's
    method.options = dataclasses.replace(method.options, map_sigma=0.0, score_sigma=0.0)
    scores, maps = method.score(images)
    assert torch.equal(maps, method.error_map(images)) and torch.equal(scores, maps.amax((1, 2, 3)))


@pytest.mark.holds("vit_autoencoder", "e")
def test_reductions_of_the_image_score():
    maps = golden.hashed("maps", 3, 1, 32, 32)
    ordered = maps.flatten(1).sort(descending=True).values
    assert torch.equal(tiny().image_score(maps), ordered[:, 0])
    assert torch.allclose(tiny(image_score="mean").image_score(maps), maps.mean((1, 2, 3)))
    for share, count in ((0.01, 11), (0.25, 256), (0.0, 1), (1.0, 1024)):  # 10.24 pixels are 11
        found = tiny(image_score="top", top_share=share).image_score(maps)
        assert torch.allclose(found, ordered[:, :count].mean(1)), share
    assert tiny().image_score(torch.full((2, 1, 32, 32), 0.3)).tolist() == pytest.approx([0.3, 0.3])


@torch.no_grad()
def test_what_the_map_is_made_of():
    image = picture_of_g8().float()
    rebuilt = changed(image, "0.9 I + 0.05")
    cells = address(golden.hashed("queries", 1, 8, 8, 16) - 0.5, golden.hashed("items", 20, 16) - 0.5, "dot", 0.3)
    settings = {"ssim_weight": 0.5, "entropy_weight": 0.2, "reconstruction_weight": 0.8}
    l2, both, all_three = (
        answering(rebuilt, cells, score=score, **settings).error_map(image)
        for score in ("l2", "l2+ssim", "l2+ssim+entropy")
    )
    assert l2.shape == both.shape == all_three.shape == (1, 1, 64, 64)
    assert torch.allclose(l2, ((image - rebuilt) ** 2).mean(1, keepdim=True), atol=1e-8)
    lost = 1 - ssim_map(rebuilt, image, padding="reflect").mean(1, keepdim=True)
    assert torch.allclose(both - l2, 0.5 * lost, atol=1e-6)
    doubts = F.interpolate(entropy(cells.weights)[:, None], (64, 64), mode="bilinear", align_corners=False)
    assert doubts.std() > 0.01
    assert torch.allclose(all_three - both, 0.25 * doubts, atol=1e-6)  # lambda_ent / lambda_recon


@torch.no_grad()
def test_entropy_of_a_cell_lights_its_own_patch():
    """And not the patch that lies across the diagonal: on a rectangle."""
    weights = torch.zeros(1, 4, 6, 20)
    weights[..., 0] = 1
    weights[0, 1, 4, :2] = 0.5
    image = torch.rand(1, 3, 64, 96)
    recall = Recall(torch.zeros(1, 32, 4, 6), weights, torch.zeros(1, 4, 6, dtype=torch.bool))
    method = answering(image, recall, patch=16, score="l2+ssim+entropy", entropy_weight=1.0)
    found = method.error_map(image)[0, 0]
    place = divmod(int(found.argmax()), 96)
    assert 16 <= place[0] < 32 and 64 <= place[1] < 80
    assert found.max().item() == pytest.approx(math.log(2), rel=0.07) and abs(found[40:, :50]).max() < 1e-5


@torch.no_grad()
def test_border_of_valid_windows():
    """D19: the map's border repeats the nearest value."""
    image = picture_of_g8().float()
    rebuilt = changed(image, "1 - I")
    for size in (11, 5):
        method = answering(rebuilt, score="l2+ssim", ssim_padding="valid", ssim_size=size)
        found = (method.error_map(image) - ((image - rebuilt) ** 2).mean(1, keepdim=True))[0, 0].numpy()
        inner = 1 - ssim_map(rebuilt, image, size=size, padding="valid").mean(1)[0].numpy()
        assert np.abs(found - np.pad(inner, size // 2, mode="edge")).max() < 1e-6


@torch.no_grad()
def test_ssim_options_reach_the_map():
    image = picture_of_g8().float()
    rebuilt = changed(image, "1 - I")
    for settings in (("uniform", 7, 1.5, "zero"), ("gaussian", 9, 2.5, "reflect")):
        named = dict(zip(("ssim_window", "ssim_size", "ssim_sigma", "ssim_padding"), settings))
        _, found = answering(rebuilt, **named).compare(image, rebuilt)
        assert torch.equal(found, ssim_map(rebuilt, image, *settings))


def test_a_good_reconstruction_scores_zero_and_a_defect_where_it_is():
    image = torch.full((1, 3, 64, 96), 0.5)
    assert answering(image).error_map(image).abs().max() < 1e-6
    defect = image.clone()
    defect[..., 20:30, 60:72] = 0.9
    method = answering(image)
    place = divmod(int(method.anomaly_map(defect)[0, 0].argmax()), 96)
    assert 20 <= place[0] < 30 and 60 <= place[1] < 72


def test_each_image_by_itself_in_evaluation_mode():
    method = tiny(coordinate_attention="both").eval()
    with torch.no_grad():
        images = images_of(method, 3)
        together, alone = method.score(images), [method.score(image[None]) for image in images]
    assert torch.allclose(together[0], torch.cat([scores for scores, _ in alone]), atol=1e-5)
    assert torch.allclose(together[1], torch.cat([maps for _, maps in alone]), atol=1e-5)


@torch.no_grad()
def test_public_edge():
    method = tiny(size=(64, 96)).eval()
    for wrong in (torch.rand(1, 3, 64, 64), torch.rand(1, 3, 96, 64), torch.rand(1, 1, 64, 96),
                  2 * torch.rand(1, 3, 64, 96) + 1, torch.rand(3, 64, 96)):  # fmt: skip
        for function in (method.anomaly_map, method.score, method.reconstruct):
            with pytest.raises(ValueError, match="expected"):
                function(wrong)
    shown = method.reconstruct(torch.rand(1, 3, 64, 96))
    assert shown.shape == (1, 3, 64, 96) and shown.min() >= 0 and shown.max() <= 1


@torch.no_grad()
def test_what_is_shown_is_clamped():
    method = answering(torch.linspace(-1, 2, 3 * 32 * 32).view(1, 3, 32, 32))
    assert torch.equal(method.reconstruct(torch.rand(1, 3, 32, 32)), method(None)[0].clamp(0, 1))


# -- normalisation, training, early stopping ---------------------------------------------------------------------------


def test_mean_and_standard_deviation_of_the_category():
    """D17, against numpy; the network sees (u - mean) / std, and its answer is taken back."""
    rng = np.random.default_rng(0)
    drawn = rng.normal((90, 120, 40), (30, 10, 60), (5, 32, 32, 3)).clip(0, 255)
    pictures = drawn.astype(np.uint8).transpose(0, 3, 1, 2)
    every = pictures.astype(np.float64) / 255
    method = tiny(normalise="category").eval()
    method.prepare(Sources(images=[torch.from_numpy(p) for p in pictures]), "train")
    assert method.mean.flatten().tolist() == pytest.approx(every.mean((0, 2, 3)), rel=1e-6)
    assert method.std.flatten().tolist() == pytest.approx(every.std((0, 2, 3)), rel=1e-6)
    seen, rebuilt = [], []
    method.encoder.register_forward_hook(lambda module, given, output: seen.append(given[0]))
    method.decoder.register_forward_hook(lambda module, given, output: rebuilt.append(output))
    images = torch.from_numpy(every[:2]).float()
    found, _ = method(images)
    mean, std = (torch.from_numpy(x(every, axis=(0, 2, 3))).float().view(3, 1, 1) for x in (np.mean, np.std))
    assert torch.allclose(seen[0], (images - mean) / std, atol=1e-5)
    assert torch.allclose(found, rebuilt[0] * std + mean, atol=1e-6)
    other = tiny(normalise="category")
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.mean, method.mean) and torch.equal(other.std, method.std)


def test_network_range_of_a_category():
    """Errors in the network's values: divided by the variance."""
    method = tiny(normalise="category", loss_range="network")
    method.prepare(Sources(images=[torch.randint(0, 200, (3, 32, 32), dtype=torch.uint8) for _ in range(3)]), "train")
    images = torch.rand(1, 3, 32, 32)
    error, _ = method.compare(images, images + 0.1)
    assert torch.allclose(error, (0.1 / method.std).square().expand_as(error), rtol=1e-4)


def test_a_category_of_one_colour_is_no_division_by_zero():
    method = tiny(normalise="category")
    method.prepare(Sources(images=[torch.full((3, 32, 32), 77, dtype=torch.uint8)] * 2), "train")
    assert (method.std > 0).all() and torch.isfinite(method(torch.full((1, 3, 32, 32), 77 / 255))[0]).all()


def test_symmetric_values_need_no_look_at_the_images():
    method = tiny()
    method.prepare(Sources(images=[torch.zeros(3, 32, 32, dtype=torch.uint8)]), "train")
    assert (method.mean == 0.5).all() and (method.std == 0.5).all()


def test_corrupt_gives_the_image_itself():
    image = torch.rand(3, 32, 32)
    batch = corrupt(image, np.random.default_rng(0), Options(), Sources())
    assert batch._fields == ("clean",) and torch.equal(batch.clean, image)
    assert ViTAutoencoder.needs == () and ViTAutoencoder.stages == ("train",)


def test_adam_at_a_constant_rate():
    """Section 9, and what the paper preset says of it."""
    optimizer, schedule = tiny().optimizer()
    assert type(optimizer) is torch.optim.Adam
    assert {k: optimizer.defaults[k] for k in ("lr", "betas", "eps", "weight_decay")} == {
        "lr": 2e-4, "betas": (0.5, 0.999), "eps": 1e-8, "weight_decay": 0.0}  # fmt: skip
    for _ in range(200):
        optimizer.step()
        schedule.step()
        assert optimizer.param_groups[0]["lr"] == 2e-4
    changed_one, _ = tiny(learning_rate=1e-3, betas=(0.9, 0.999), weight_decay=1e-5).optimizer()
    assert (changed_one.defaults["lr"], changed_one.defaults["weight_decay"]) == (1e-3, 1e-5)
    assert changed_one.defaults["betas"] == (0.9, 0.999) and len(optimizer.param_groups) == 1
    listed = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(listed) == len(list(tiny().parameters()))


def test_constants_of_the_paper_preset():
    """Section 1."""
    o = Options()
    assert (o.size, o.patch, o.width, o.heads, o.depth) == ((384, 384), 16, 768, 8, 12)
    assert (o.epochs, o.batch_size, o.learning_rate) == (200, 8, 2e-4)
    assert (o.reconstruction_weight, o.entropy_weight, o.shrinkage, o.memory_items) == (1.0, 0.001, None, 2000)
    assert (o.map_sigma, o.score_sigma, o.ssim_weight) == (6.0, 15.0, 1.0)
    with torch.device("meta"):
        assert ViTAutoencoder().epochs("train") == 200


def test_early_stopping_is_asked_for():
    """D23."""
    assert tiny().early_stop("train") is None
    assert tiny(patience=12).early_stop("train") == EarlyStop(12, 0.1)
    assert tiny(patience=3, validation_share=0.0).early_stop("train") == EarlyStop(3, 0.0)
    assert tiny(validation_share=0.3).early_stop("train") is None


def test_training_lowers_the_loss():
    method = tiny(learning_rate=5e-3, size=(64, 96))
    optimizer, schedule = method.optimizer()
    y, x = torch.meshgrid(torch.linspace(0, 3, 64), torch.linspace(0, 5, 96), indexing="ij")
    images = torch.stack(
        [torch.stack([(y + k + i).sin(), (x - k).cos(), (x * y).sin()]) for i, k in ((0, 0), (1, 0.2))]
    )
    batch, totals = Batch(images / 2 + 0.5), []
    for _ in range(40):
        terms = method.loss(batch)
        optimizer.zero_grad()
        terms["total"].backward()
        optimizer.step()
        schedule.step()
        totals.append(terms["total"].item())
    assert totals[-1] < 0.8 * totals[0]


# -- options -----------------------------------------------------------------------------------------------------------

# The first option of each is the reading; the others are what it needs in order to make a difference.
READINGS = [
    # section 13, rows 1 to 11
    {"depth": 0}, {"depth": 2}, {"heads": 4}, {"heads": 1}, {"class_token": "add"}, {"class_token": "none"},
    {"patch": 4}, {"patch": 16}, {"width": 16}, {"size": (32, 48)}, {"size": (48, 32)}, {"memory": False},
    {"memory_items": 7}, {"addressing": "dot"},
    {"temperature": 0.1}, {"shrinkage": 0.0}, {"shrinkage": 0.051}, {"shrinkage": 1.0},
    {"on_empty": "soft", "shrinkage": 0.9}, {"memory_residual": True},
    # rows 12 to 16
    {"coordinate_attention": "before_memory"}, {"coordinate_attention": "both"}, {"coordinate_attention": "none"},
    {"coordinate_attention": "both", "memory": False}, {"coordinate_attention": "none", "memory": False},
    {"ca_reduction": 2}, {"ca_activation": "relu"}, {"decoder": "pow2", "patch": 16}, {"decoder_width": 48},
    {"decoder_width": None}, {"decoder_width": None, "decoder": "pow2", "patch": 16}, {"decoder_norm": "instance"},
    {"decoder_norm": "instance", "last_block": "norm_relu"}, {"last_block": "norm_relu"},
    {"last_block": "norm_relu", "decoder": "pow2", "patch": 16},
    # rows 17 to 21
    {"normalise": "category"}, {"loss_range": "network"}, {"loss_range": "network", "normalise": "category"},
    {"l2_reduction": "mean"}, {"ssim_weight": 0.1}, {"ssim_weight": 0.0}, {"ssim_window": "uniform"},
    {"ssim_size": 7}, {"ssim_sigma": 3.0}, {"ssim_padding": "zero"}, {"ssim_padding": "valid"},
    {"reconstruction_weight": 0.5}, {"entropy_weight": 0.0}, {"entropy_weight": 2e-4}, {"entropy_sign": "literal"},
    # rows 22 to 26
    {"learning_rate": 1e-3}, {"betas": (0.9, 0.999)}, {"weight_decay": 1e-2}, {"score": "l2"},
    {"score": "l2+ssim+entropy"}, {"map_sigma": 0.0}, {"map_sigma": 6.0}, {"score_sigma": 15.0},
    {"image_score": "mean"}, {"image_score": "top"}, {"top_share": 0.5, "image_score": "top"},
]  # fmt: skip
# What no training step and no score of an image shows.
SILENT = [{"resize": "bilinear"}, {"epochs": 3}, {"batch_size": 1}, {"patience": 12}, {"validation_share": 0.0}]
# Where it is tested.
ELSEWHERE = {
    "resize": "test_data_reader.py", "epochs": "test_constants_of_the_paper_preset",
    "batch_size": "test_a_run_from_the_command", "patience": "test_early_stopping_is_asked_for",
    "validation_share": "test_early_stopping_is_asked_for",
}  # fmt: skip


@once
def outcome(changes: dict) -> list[float]:
    """Two steps of training from hashed weights, which make more of a difference than small ones; then the scores."""
    method = tiny(**changes)
    for part in method.children():
        golden.fill(part)
    o = method.train().options
    pictures = (255 * golden.hashed("pictures", 3, 3, *o.size)).byte()
    method.prepare(Sources(images=pictures), "train")
    examples = [corrupt(p.float() / 255, np.random.default_rng(0), o, Sources()) for p in pictures]
    batch = Batch(*(torch.stack(fields) for fields in zip(*examples)))
    (optimizer, schedule), totals = method.optimizer(), []
    for _ in range(2):
        terms = method.loss(batch, "train")
        optimizer.zero_grad()
        terms["total"].backward()
        optimizer.step()
        schedule.step()
        totals.append(terms["total"].item())
    assert all(torch.isfinite(p).all() for p in method.parameters())
    with torch.no_grad():
        scores, maps = method.eval().score(batch.clean)
    assert scores.shape == (3,) and maps.shape == (3, 1, *o.size)
    found = [*totals, *scores.tolist(), maps.mean().item(), maps.std().item()]
    assert np.isfinite(found).all()
    return found


def named(changes: dict) -> str:
    return " ".join(f"{k}={v}" for k, v in changes.items())


@pytest.mark.parametrize("changes", READINGS, ids=named)
def test_every_reading_builds_trains_scores_and_makes_a_difference(changes):
    context = dict(list(changes.items())[1:])
    assert outcome(changes) != pytest.approx(outcome(context), rel=1e-6)


@pytest.mark.parametrize("changes", SILENT, ids=named)
def test_other_options_build_and_change_no_step(changes):
    assert outcome(changes) == outcome({})


def test_every_option_that_names_readings_has_each_of_them_in_the_table():
    check_readings(Options, [*READINGS, *SILENT])


def test_where_else_options_are_tested():
    here = Path(__file__)
    assert set(ELSEWHERE) == {name for changes in SILENT for name in changes}
    for name, place in ELSEWHERE.items():
        text = (here.parent / place if place.endswith(".py") else here).read_text()
        assert place.endswith(".py") or f"def {place}(" in text, f"{name}: no {place}"
    assert '"antialias"' in (here.parent / "test_data_reader.py").read_text()


@pytest.mark.parametrize("name", [None, *ABLATIONS])
def test_presets_and_ablations_build(name):
    with torch.device("meta"):
        ViTAutoencoder(option_tools.build(Options, PRESETS, ABLATIONS, "paper", name, {}))
    method = ViTAutoencoder(option_tools.build(Options, PRESETS, ABLATIONS, "tiny", name, {}))
    assert torch.isfinite(method.loss(Batch(images_of(method)))["total"])
    assert option_tools.build(Options, PRESETS, ABLATIONS, "paper", "+m+ca", {}) == Options()


@pytest.mark.parametrize("changes", [{}, {"decoder": "pow2", "patch": 16}, {"ssim_padding": "valid"},
                                     {"score": "l2+ssim+entropy"}, {"class_token": "none"}], ids=named)  # fmt: skip
def test_rectangles(changes):
    """64 x 96 and 96 x 64 from end to end."""
    for size in ((64, 96), (96, 64)):
        outcome({"size": size, **changes})  # shapes and finite numbers are asserted there


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": (100, 96)}, r"--size.*multiple.*--patch 16.*height.*100.*112"),
        ({"size": (96, 100)}, r"--size.*multiple.*--patch 16.*width.*100.*112"),
        ({"size": (384, 384), "patch": 14}, r"--size.*multiple.*--patch 14.*384.*392"),
        ({"heads": 5}, "--heads: 5 heads do not divide --width 768"),
        ({"width": 100}, "--heads: 8 heads do not divide --width 100"),
        ({"decoder": "pow2", "patch": 8}, "--decoder pow2 .*--patch 16.*got 8"),
        ({"ssim_size": 10}, "--ssim-size takes an odd number, .*got 10"),
        ({"size": (32, 64), "ssim_size": 33}, "--ssim-size takes .*got 33"),
        ({"size": (64, 32), "ssim_size": 33}, "--ssim-size takes .*got 33"),
        ({"score": "l2+ssim+entropy", "memory": False}, "--score .*entropy needs --memory true"),
        ({"score": "l2+ssim+entropy", "reconstruction_weight": 0.0}, "--score .*needs .*--reconstruction-weight"),
        ({"size": (384,)}, "--size takes 2 values"),
        ({"addressing": "manhattan"}, "--addressing takes one of cosine, dot"),
        ({"shrinkage": 1.5}, "--shrinkage takes 0 to 1"),
        ({"temperature": 0.0}, "--temperature takes"),
        ({"memory_items": 0}, "--memory-items takes 2 to 1e.07"),
        ({"decoder_width": 8}, "--decoder-width takes 16 or more"),
        ({"patience": 0}, "--patience takes 1 or more"),
        ({"depth": "deep"}, "--depth takes a whole number"),
    ],
)  # fmt: skip
def test_options_that_cannot_work_are_refused(changes, words):
    with pytest.raises(UserError, match=words), torch.device("meta"):
        ViTAutoencoder(Options(**changes))


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_map_of_one_cell_trains_or_is_refused(norm):
    try:
        method = tiny(size=(16, 16), patch=16, decoder="pow2", decoder_norm=norm)
    except UserError:
        return
    assert torch.isfinite(method.loss(Batch(torch.rand(1, 3, 16, 16)))["total"])


# -- weights -----------------------------------------------------------------------------------------------------------


def timm_state(**changes) -> dict[str, torch.Tensor]:
    """As timm names it, with a classifier."""
    encoder = golden.fill(tiny(**changes).encoder).state_dict()
    return {**encoder, "head.weight": torch.zeros(10, 32), "head.bias": torch.zeros(10)}


@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_weights_with_timms_names(key):
    state, method = timm_state(), tiny()
    others = {name: tensor.clone() for name, tensor in method.state_dict().items() if not name.startswith("encoder.")}
    with pytest.warns(Notice, match=r"--weights: public ViTs have heads of 64 channels, --heads 2 makes them 16 wide"):
        method.load_weights([state if key is None else {key: state, "epoch": 3}])
    found = method.state_dict()
    assert all(torch.equal(found[f"encoder.{name}"], tensor) for name, tensor in state.items() if "head" not in name)
    assert all(torch.equal(found[name], tensor) for name, tensor in others.items())


def test_no_warning_where_the_heads_are_those_of_public_models():
    for heads, warned in ((2, False), (1, True), (4, True)):
        method = tiny(width=128, heads=heads)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            method.load_weights([method.encoder.state_dict()])
        assert [w.category for w in caught] == ([Notice] if warned else [])
        if warned:
            assert "public ViTs have heads of 64 channels" in str(caught[0].message) and f"--heads {heads}" in str(
                caught[0].message
            )


def test_weights_of_another_grid_are_brought_to_this_one():
    method = tiny(size=(64, 96))
    with pytest.warns(Notice):
        method.load_weights([timm_state()])
    assert method.encoder.pos_embed.shape == (1, 1 + 8 * 12, 32)
    with torch.no_grad():
        assert torch.isfinite(method.eval().score(images_of(method))[0]).all()


def wrong_shape() -> dict:
    return {**timm_state(), "norm.weight": torch.zeros(33)}


@pytest.mark.parametrize(
    ("states", "words"),
    [
        ([], "--weights takes one ViT checkpoint; got 0 files"),
        ([{}, {}], "--weights takes one ViT checkpoint; got 2 files"),
        ([[torch.zeros(2)]], "--weights: no ViT checkpoint: expected tensors of floats by name"),
        ([torch.zeros(2)], "--weights: no ViT checkpoint: expected tensors of floats by name"),
        ([{"model": [1]}], "--weights: no ViT checkpoint: expected tensors of floats by name"),
        ([{"state_dict": {"norm.weight": 3}}], "--weights: no ViT checkpoint: expected tensors of floats by name"),
        ([{"epoch": 3, "optimizer": {}}], "--weights: no ViT checkpoint: expected tensors of floats by name"),
        ([{}], "--weights: .*missing"),
        ([{"layers.0.blocks.0.attn.qkv.weight": torch.zeros(2)}], "--weights: .* unknown"),
        ([wrong_shape], r"--weights: norm.weight has shape \(33,\), not \(32,\)"),
        ([lambda: timm_state(depth=2)], "--weights: keys do not fit a ViT with 1 blocks: 0 missing .* 12 unknown"),
        ([lambda: timm_state(depth=0)], "--weights: keys do not fit a ViT with 1 blocks: 12 missing"),
        ([lambda: timm_state(patch=4)], r"--weights: .*has shape \(32, 3, 4, 4\), not \(32, 3, 8, 8\)"),
        ([{3: torch.zeros(2)}], "--weights: no ViT checkpoint"),
        ([{"norm.weight": torch.zeros(32).to_sparse()}], "--weights: no ViT checkpoint"),
        ([{"norm.weight": torch.zeros(32, dtype=torch.int64)}], "--weights: no ViT checkpoint"),
    ],
)  # fmt: skip
def test_wrong_files_are_refused(states, words):
    method = tiny()
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is said of heads where nothing was loaded
        with pytest.raises(UserError, match=words):
            method.load_weights([state() if callable(state) else state for state in states])
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())


# -- a run -------------------------------------------------------------------------------------------------------------


def test_a_run_from_the_command(data, tmp_path):
    """Training, early stopping, threshold, evaluation and report on a rectangle, statistics in the log."""
    from adref.train import main

    flags = {"size": "32,48", "patch": 8, "width": 32, "depth": 1, "heads": 2, "memory-items": 20, "decoder-width": 16,
             "batch-size": 2, "epochs": 6, "patience": 1, "validation-share": 0.2, "normalise": "category",
             "map-sigma": 1, "score-sigma": 2, "workers": 0, "device": "cpu", "data": data,
             "out": tmp_path / "run"}  # fmt: skip
    arguments = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    assert main(["vit_autoencoder", *arguments]) == 0
    log = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {"loss/l2", "loss/ssim", "loss/entropy", "loss/total", "memory/survivors", "memory/entropy",
            "memory/dead_queries", "memory/dead_items"} <= set(log[0])  # fmt: skip
    assert any("validation/total" in line for line in log)
    metrics = json.loads((tmp_path / "run/evaluation/metrics.json").read_text())
    assert 0 <= metrics["image_auroc"] <= 1 and (tmp_path / "run/report.html").exists()


# -- what the article prints -------------------------------------------------------------------------------------------

CATEGORIES = ("carpet", "grid", "leather", "tile", "wood", "bottle", "cable", "capsule", "hazelnut", "metal_nut",
              "pill", "screw", "toothbrush", "transistor", "zipper")  # fmt: skip
# Section 12.1: image AUROC on MVTec AD, per category, and the printed average.
IMAGE = {
    "AE_SSIM": ([67, 69, 46, 52, 83, 88, 61, 61, 54, 54, 60, 51, 74, 52, 80], 63),
    "AnoGAN": ([49, 51, 52, 51, 68, 69, 53, 58, 50, 50, 68, 35, 57, 67, 59], 55),
    "L2-CAE": ([54, 78, 77, 85, 98, 77, 66, 67, 88, 42, 68, 100, 41, 88, 71], 73),
    "VAE": ([67, 83, 71, 81, 89, 86, 56, 77, 74, 78, 80, 71, 89, 70, 67], 77),
    "CAVGA": ([73, 75, 71, 70, 85, 89, 63, 83, 84, 67, 88, 77, 91, 73, 87], 78),
    "AnoViT": ([50, 52, 85, 89, 95, 83, 74, 73, 88, 86, 72, 100, 74, 83, 73], 78),
    "MKD": ([79.3, 78.1, 95.1, 91.6, 94.3, 99.4, 89.2, 81.5, 98.4, 73.6, 82.7, 83.3, 92.2, 85.6, 93.2], 87.8),
    "paper": ([85.0, 89.6, 92.0, 92.8, 95.3, 94.0, 93.0, 83.7, 100.0, 89.5, 86.3, 100.0, 93.2, 86.8, 89.7], 91.2),
}  # fmt: skip
# Section 12.2: pixel AUROC and PRO.
PIXEL = {
    "AE_SSIM": ([87, 94, 78, 59, 73, 93, 82, 94, 97, 89, 91, 96, 92, 90, 88], 87.0),
    "AnoGAN": ([54, 58, 64, 50, 62, 86, 78, 84, 87, 76, 87, 80, 90, 80, 78], 74.3),
    "VAE": ([73.5, 96.1, 92.5, 65.4, 83.8, 92.2, 91.0, 91.7, 97.6, 90.7, 93.0, 94.5, 98.5, 91.9, 86.9], 89.3),
    "SCADN": ([75.0, 97.7, 99.3, 96.7, 87.0, 96.8, 89.2, 86.0, 97.1, 97.0, 94.4, 87.0, 93.8, 78.0, 89.2], 91.0),
    "paper": ([88.4, 97.2, 96.6, 92.8, 91.4, 95.1, 92.6, 93.1, 98.2, 91.0, 92.6, 97.7, 89.4, 85.0, 93.2], 93.0),
}  # fmt: skip
PRO = {
    "AE_SSIM": ([64.7, 84.9, 56.1, 17.5, 60.5, 83.4, 47.8, 86.0, 91.6, 60.3, 83.0, 88.7, 78.4, 72.5, 66.5], 69.4),
    "AnoGAN": ([20.4, 22.6, 37.8, 17.7, 38.6, 62.0, 38.3, 30.6, 69.8, 32.0, 77.6, 46.6, 74.9, 54.9, 46.7], 44.3),
    "VAE": ([50.1, 22.4, 63.5, 87.0, 62.8, 89.7, 65.4, 52.6, 87.8, 57.6, 76.9, 55.9, 69.3, 62.6, 54.9], 63.9),
    "MKD": ([87.9, 95.2, 94.5, 94.6, 91.1, 93.1, 81.8, 96.8, 96.5, 94.2, 96.1, 94.2, 93.3, 66.6, 95.1], 91.4),
    "SCADN": ([85.0, 96.8, 98.7, 95.3, 85.3, 92.9, 89.9, 91.4, 93.6, 94.6, 96.0, 90.1, 90.7, 75.3, 89.2], 90.4),
    "VT_ADL": ([77.3, 87.1, 72.8, 79.6, 78.1, 94.9, 77.6, 67.2, 89.7, 72.6, 70.5, 92.8, 90.1, 79.6, 80.8], 80.7),
    "paper": ([88.0, 96.3, 95.0, 93.4, 90.0, 92.1, 91.4, 92.2, 99.0, 89.0, 93.2, 100.0, 90.5, 81.0, 94.0], 92.3),
}  # fmt: skip
# Section 12.3: BTAD, products 01 to 03 and the printed average, each image AUROC, pixel AUROC, PRO.
BTAD = {
    "P-SVDD": ([(95.7, 91.6), (70.3, 92.7), (82.1, 91.0)], (82.7, 91.7)),
    "SSPCAB": ([(96.2, 92.4, 62.8), (69.3, 65.6, 28.6), (99.4, 92.4, 71.0)], (88.3, 83.5, 54.1)),
    "DRAEM": ([(98.5, 91.5, 61.4), (68.6, 73.4, 39.0), (98.6, 92.7, 84.3)], (88.6, 85.6, 61.6)),
    "VT-ADL": ([(97.6, 76.3, 92.0), (71.0, 88.9, 89.0), (82.6, 80.3, 86.0)], (83.7, 81.8, 89.0)),
    "paper": ([(98.7, 93.2, 93.0), (85.0, 89.4, 89.0), (93.0, 93.1, 91.0)], (92.2, 91.9, 91.0)),
}  # fmt: skip
# Section 12.4: means of the ablation, image AUROC, pixel AUROC, PRO.
ABLATION = {
    "base": (82.2, 83.8, 79.6),
    "+m": (85.7, 91.8, 90.5),
    "+ca": (84.5, 86.4, 85.7),
    "+m+ca": (91.2, 93.0, 92.3),
}

# Averages recomputed from the rows, where these are more than 0.3 from what is printed.
EXCEPTIONS = {
    ("image", "AE_SSIM"): 63.47, ("image", "AnoGAN"): 55.80, ("image", "L2-CAE"): 73.33, ("image", "VAE"): 75.93,
    ("image", "CAVGA"): 78.40, ("image", "AnoViT"): 78.47, ("pro", "AnoGAN"): 44.70, ("pro", "SCADN"): 90.99,
}  # fmt: skip


@pytest.mark.parametrize(("measure", "table"), [("image", IMAGE), ("pixel", PIXEL), ("pro", PRO)])
def test_published_averages_of_mvtec(measure, table):
    """Sections 12.1, 12.2, 12.5: within 0.3 of what is printed, but for the exceptions, which are what they are."""
    for name, (values, printed) in table.items():
        assert len(values) == len(CATEGORIES)
        average = np.mean(values)
        if (measure, name) in EXCEPTIONS:
            assert average == pytest.approx(EXCEPTIONS[measure, name], abs=0.0051) and abs(average - printed) > 0.3
        else:
            assert abs(average - printed) <= 0.3, f"{measure} {name}: {average}, printed {printed}"


def test_whole_averages_are_cut_off_not_rounded_and_one_is_wrong():
    """Five of the six columns of image AUROC that are printed as whole numbers are cut off; VAE's 77 is 75.93."""
    whole = {name: (np.mean(values), printed) for name, (values, printed) in IMAGE.items() if isinstance(printed, int)}
    assert [name for name, (average, printed) in whole.items() if math.floor(average) != printed] == ["VAE"]
    assert np.mean(IMAGE["paper"][0]) == pytest.approx(91.39, abs=0.005)  # printed 91.2; within 0.3, but no rounding


def test_published_averages_of_btad():
    """Section 12.3: within 0.3; DRAEM's pixel AUROC of 85.6 is 85.87, further off than any rounding."""
    far = {}
    for name, (products, printed) in BTAD.items():
        for measure, average, value in zip(("image", "pixel", "pro"), np.mean(products, axis=0), printed):
            assert abs(average - value) <= 0.3
            if abs(average - value) > 0.1:
                far[name, measure] = average
    assert far == {("DRAEM", "pixel"): pytest.approx(85.87, abs=0.005)}


def test_published_claims_that_do_not_hold():
    """Section 12.5: gains, ties, and the ablation's last row is the printed average."""
    assert ABLATION["+m"][2] - ABLATION["base"][2] == pytest.approx(10.9)  # the text says 20.9
    assert BTAD["paper"][1][0] - BTAD["P-SVDD"][1][0] == pytest.approx(9.5)  # the text says up to 10.5
    assert ABLATION["+m+ca"] == (IMAGE["paper"][1], PIXEL["paper"][1], PRO["paper"][1])
    ours = np.array(IMAGE["paper"][0])
    best = np.max([values for name, (values, _) in IMAGE.items() if name != "paper"], axis=0)
    assert int((ours >= best).sum()) == 9 and int((ours > best).sum()) == 8  # "best in 9"
    ties = [name for name, a, b in zip(CATEGORIES, ours, IMAGE["AnoViT"][0]) if a <= b]
    assert ties == ["screw"]  # "better than AnoViT in every category"


def test_the_header_tells_what_an_audit_should_know():
    header = Path(ViTAutoencoder.corrupt.__code__.co_filename).read_text().split('"""')[1]
    for words in ("7.4 times", "without the minus sign", "91.39", "10.9", "mid grey", "half of the items"):
        assert words in header
    kinds = {deviation.tag: deviation.kind for deviation in ViTAutoencoder.deviations}
    assert kinds["D21"] == "mistake" and kinds["D12"] == "contradiction" and kinds["D16"] == "contradiction"
