"""The ViT autoencoder: parameter counts, decoder, losses, map and score against slow, sourced and printed numbers."""

import itertools
import json
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import digest, golden
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import nn

from adref import options as option_tools
from adref.layers.memory import Recall, address, entropy
from adref.method import Context, EarlyStop, Sources
from adref.methods.vit_autoencoder import method as vit_method
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
# `PYTHONPATH=tools python tools/sources/vit_autoencoder.py`, 2026-11-24. At sigma 15 the reach of 60 is longer than
# both sides.
SOURCED_SMOOTHING = {
    2: [0.4910930577, 0.04286095695, 0.2467658755, 0.2451259736],
    6: [0.4910930577, 0.01644582966, 0.2468482459, 0.2451076634],
    15: [0.4910930577, 0.005755287873, 0.246883424, 0.2451274601],
}
# Sourced: scikit-image 0.26.0's structural_similarity (Gaussian weights, sigma 1.5, no sample covariance, range 1,
# full=True), with which a few lines of scipy 1.17.1 agree to 8e-15: the same four numbers of its map, or its mean;
# `PYTHONPATH=tools python tools/sources/vit_autoencoder.py`, 2026-11-24. I is `striped`.
SOURCED_SSIM = {
    ("0.9 I + 0.05", "reflect"): [0.992671962, 0.003516880343, 0.4963441939, 0.4950774785],
    ("0.9 I + 0.05", "zero"): [0.9931486941, 0.004476218793, 0.4965883691, 0.4953149609],
    ("0.9 I + 0.05", "valid"): [0.99267561],
    ("1 - I", "reflect"): [-0.6689366237, 0.1747087858, -0.3351103665, -0.3330298939],
    ("1 - I", "zero"): [-0.5066114464, 0.4010646554, -0.2527164457, -0.2519352125],
    ("1 - I", "valid"): [-0.67398610],
}  # fmt: skip


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def decoder(**changes) -> Decoder:
    form = {"width": 768, "size": (384, 384), "kind": "anovit", "first": None, "norm": "batch", "last_block": "plain"}
    return Decoder(**form | changes)


def tiny(**changes) -> ViTAutoencoder:
    """Makes the method at a tiny size, always with the same weights."""
    torch.manual_seed(0)
    return ViTAutoencoder(Options(**{**LEAST, **changes}))


def images_of(method: ViTAutoencoder, count: int = 2) -> torch.Tensor:
    return golden.hashed("images", count, 3, *method.options.size)


def answering(reconstruction: torch.Tensor, recall: Recall | None = None, **changes) -> ViTAutoencoder:
    """Makes a method whose networks return these values."""
    method = tiny(**{"size": tuple(reconstruction.shape[2:]), **changes})
    method.forward = lambda images: (reconstruction, recall)
    return method


def striped() -> torch.Tensor:
    """I: u[k, r, c] = ((7 r + 13 c + 29 k) mod 256) / 255, float64 (1, 3, 64, 64)."""
    k, r, c = np.mgrid[:3, :64, :64]
    return torch.from_numpy((7 * r + 13 * c + 29 * k) % 256 / 255)[None]


def changed(image: torch.Tensor, how: str) -> torch.Tensor:
    return 0.9 * image + 0.05 if how == "0.9 I + 0.05" else 1 - image


def recall_of(weights, empty=None) -> Recall:
    """Makes the memory's result for one image whose map is a row of as many cells as there are lists of weights."""
    weights = torch.as_tensor(weights, dtype=torch.float32)
    weights = weights.reshape(1, 1, -1, weights.shape[-1])
    empty = torch.zeros(weights.shape[:3], dtype=torch.bool) if empty is None else torch.tensor([[empty]])
    return Recall(torch.zeros(1, 32, *weights.shape[1:3]), weights, empty)


@pytest.mark.parametrize(
    ("ablation", "anovit", "pow2"),
    [("base", 88_253_571, 92_418_563), ("+m", 89_789_571, 93_954_563), ("+ca", 88_310_475, 92_475_467),
     ("+m+ca", 89_846_475, 94_011_467)],
)  # fmt: skip
@pytest.mark.holds("vit_autoencoder", "Table of the ablation")
def test_totals_of_the_paper_preset(ablation, anovit, pow2):
    """2000 items, 12 blocks; encoder, block and coordinate attention as counted with timm 1.0.31 (2026-11-24)."""
    for kind, total, decoders in (("anovit", anovit, 2_163_075), ("pow2", pow2, 6_328_067)):
        chosen = option_tools.build(Options, PRESETS, ABLATIONS, "paper", ablation, {"decoder": kind})
        with torch.device("meta"):
            method = ViTAutoencoder(chosen)
        assert parameters(method) == total and parameters(method.decoder) == decoders
        assert parameters(method.encoder) == 86_090_496 and parameters(method.encoder.blocks[0]) == 7_087_872
        assert parameters(method.coordinate_attention) == (56_904 if "ca" in ablation else 0)
        assert not chosen.memory or parameters(method.memory) == 1_536_000


def test_parts_of_the_decoders():
    """Layer by layer; AnoViT's exact decoder has 2,162,083 parameters."""
    with torch.device("meta"):
        anovit, pow2 = decoder(), decoder(kind="pow2")
        lineage = decoder(norm="instance", last_block="norm_relu")
        both = ViTAutoencoder(Options(coordinate_attention="both"))
    counts = [parameters(m) for m in anovit.layers if isinstance(m, nn.ConvTranspose2d)]
    assert counts == [1_769_728, 295_040, 73_792, 18_464, 4_624, 435]
    assert sum(parameters(m) for m in anovit.layers if isinstance(m, nn.BatchNorm2d)) == 992
    counts = [parameters(m) for m in pow2.layers if isinstance(m, nn.ConvTranspose2d)]
    assert counts == [3_539_456, 2_097_408, 524_416, 131_136, 32_800, 867]
    assert sum(parameters(m) for m in pow2.layers if isinstance(m, nn.BatchNorm2d)) == 1_984
    assert parameters(lineage) == 2_162_083 and not any("running" in name for name in lineage.state_dict())
    assert parameters(both.coordinate_attention) == 2 * 56_904
    assert [type(m).__name__ for m in lineage.layers] == ["ConvTranspose2d", "InstanceNorm2d", "ReLU"] * 6


def test_first_weights_of_the_decoder():
    """Standard deviation 0.02 with biases 0; or torch's: uniform within 1 / sqrt(9 x output channels)."""
    for init, deviation, bias in (("normal", 0.02, 0.0), ("torch", 144**-0.5 / 3**0.5, 144**-0.5)):
        layer = tiny(decoder_init=init, decoder_width=16).decoder.layers[0]
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.03)
        assert 0.7 * bias <= layer.bias.abs().max() <= bias


@pytest.mark.holds("vit_autoencoder", "Decoder")
def test_sides_of_the_decoders():
    for kind, sides in (("anovit", [26, 28, 30, 59, 117, 233]), ("pow2", [24, 48, 96, 192, 384, 384])):
        found = []
        with torch.device("meta"):
            network = decoder(kind=kind)
            for layer in network.layers:
                if isinstance(layer, nn.ConvTranspose2d):
                    layer.register_forward_hook(lambda _, given, output, f=found: f.append(tuple(output.shape[2:])))
            assert network(torch.empty(2, 768, 24, 24)).shape == (2, 3, 384, 384)
        assert found == [(side, side) for side in sides]
    for h, w in ((1, 1), (4, 6)):
        network = decoder(width=8, size=(8 * h, 8 * w), first=16).eval()
        assert network.layers(torch.rand(1, 8, h, w)).shape[2:] == (8 * h + 41, 8 * w + 41)


def transposed(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """Adds the window of each pixel (C, h, w) at its place, then cuts `padding` pixels off all around."""
    side, (_, height, width) = weight.shape[2], x.shape
    out = np.zeros((len(bias), (height - 1) * stride + side, (width - 1) * stride + side))
    for y, z in np.ndindex(height, width):
        window = np.einsum("c,coij->oij", x[:, y, z], weight)
        out[:, y * stride : y * stride + side, z * stride : z * stride + side] += window
    return out[:, padding : out.shape[1] - padding, padding : out.shape[2] - padding] + bias[:, None, None]


@pytest.mark.parametrize(("kind", "last_block"), [("anovit", "plain"), ("pow2", "norm_relu")])
@pytest.mark.holds("vit_autoencoder", "Decoder")
def test_decoder_by_slow_sums(kind, last_block):
    """In evaluation mode: six transposed convolutions, five norms and ReLUs (or six), a resize, tanh."""
    cells, size = (2, 3), {"anovit": (48, 72), "pow2": (32, 48)}[kind]
    network = golden.fill(decoder(width=6, size=size, kind=kind, first=16, last_block=last_block)).double()
    maps = golden.hashed("maps", 1, 6, *cells).double() * 4 - 2
    x, steps = maps[0].numpy(), {"anovit": [(1, 0)] * 3 + [(2, 1)] * 3, "pow2": [(1, 1), *[(2, 1)] * 4, (1, 1)]}[kind]
    convolutions = [m for m in network.layers if isinstance(m, nn.ConvTranspose2d)]
    norms = [m for m in network.layers if isinstance(m, nn.BatchNorm2d)]
    assert [m.out_channels for m in convolutions] == [16, 8, 4, 2, 1, 3] and len(norms) == 5 + (last_block != "plain")
    for i, (convolution, (stride, padding)) in enumerate(zip(convolutions, steps, strict=True)):
        x = transposed(x, convolution.weight.detach().numpy(), convolution.bias.detach().numpy(), stride, padding)
        if i < len(norms):
            tensors = (norms[i].running_mean, norms[i].running_var, norms[i].weight, norms[i].bias)
            mean, variance, gain, shift = (t.detach().numpy()[:, None, None] for t in tensors)
            x = np.maximum((x - mean) / np.sqrt(variance + 1e-5) * gain + shift, 0)
    rows, columns = (np.linspace(0, a - 1, b) for a, b in zip(x.shape[1:], size))  # the corners are aligned
    places = np.meshgrid(rows, columns, indexing="ij")
    x = np.tanh([map_coordinates(channel, places, order=1, mode="nearest") for channel in x])
    found = network(maps)[0].detach().numpy()
    assert found.shape == (3, *size) and found.std() > 0.01
    assert np.abs(found - x).max() < 1e-10


def test_range_of_the_decoder():
    """With "norm_relu" no pixel of u_hat is below mid grey; "plain" reaches -0.1."""
    torch.manual_seed(0)
    for norm in ("batch", "instance"):
        form, maps = {"width": 8, "size": (32, 32), "first": 16, "norm": norm}, 10 * torch.randn(2, 8, 4, 4)
        assert decoder(**form, last_block="norm_relu")(maps).min() >= 0
        plain = decoder(**form)
        nn.init.constant_(plain.layers[-1].bias, -1.0)
        assert plain(maps).min() < -0.1
    method = tiny(last_block="norm_relu")
    assert method(images_of(method))[0].min() >= 0.5


@pytest.mark.holds("vit_autoencoder", "Table of the ablation")
def test_ablations_share_encoder_and_decoder_and_base_has_neither_module():
    keys = {name: set(tiny(**ABLATIONS[name]).state_dict()) for name in ("base", "+m", "+ca", "+m+ca")}
    parts = {name: {key.split(".")[0] for key in found} for name, found in keys.items()}
    assert parts["base"] == {"encoder", "decoder", "mean", "std"}
    assert parts["+m"] == parts["base"] | {"memory"} and parts["+ca"] == parts["base"] | {"coordinate_attention"}
    assert parts["+m+ca"] == parts["base"] | {"memory", "coordinate_attention"}
    assert all(keys["base"] <= found for found in keys.values())


def test_data_flow():
    """Encoder, [CA], memory, [CA], decoder; each gets the output of the one before."""
    orders = {"after_memory": "EMCD", "before_memory": "ECMD", "both": "ECMCD", "none": "EMD"}
    seen = []
    for place, order in orders.items():
        method = tiny(coordinate_attention=place).eval()
        seen.clear()
        parts = [("E", method.encoder), ("M", method.memory), ("D", method.decoder)]
        for letter, module in [*parts, *(("C", m) for m in method.coordinate_attention.values())]:
            module.register_forward_hook(lambda m, given, output, x=letter: seen.append((x, given[0], output)))
        output, recall = method(images_of(method))
        assert "".join(letter for letter, _, _ in seen) == order
        for (letter, _, before), (_, given, _) in itertools.pairwise(seen):
            assert given is (before.output if letter == "M" else before)
        assert torch.equal(output, seen[-1][2] * 0.5 + 0.5) and recall.weights.shape == (2, 4, 4, 20)
        assert torch.equal(seen[0][1], (images_of(method) - 0.5) / 0.5)  # [-1, 1]


def test_options_reach_the_memory():
    method = tiny(addressing="dot", temperature=0.5, shrinkage=0.06)
    maps = method.encoder(2 * images_of(method) - 1)
    form = {"addressing": "dot", "temperature": 0.5, "threshold": 0.06}
    expected = address(maps.permute(0, 2, 3, 1), method.memory.weight, **form)
    assert torch.equal(method(images_of(method))[1].weights, expected.weights)


def test_initialisation():
    """Truncated normal 0.02 in the encoder, N(0, 0.02^2) in the decoder, the memory uniform."""
    torch.manual_seed(0)
    method = ViTAutoencoder(Options(size=(64, 64), width=192, depth=1, heads=2, memory_items=100))
    first = method.decoder.layers[0]
    assert first.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert first.weight.abs().max() > 0.06 and not first.bias.any()
    assert method.encoder.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert method.memory.weight.abs().max().item() == pytest.approx(192**-0.5, rel=1e-3)


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    method = tiny(coordinate_attention="both")
    method.loss(Batch(images_of(method, 4)))["total"].backward()
    for name, parameter in method.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        # a bias in front of a batch norm has no effect
        assert parameter.grad.abs().max() > 0 or name.endswith(".bias"), name


@pytest.mark.holds("vit_autoencoder", "11", "13")
def test_loss_values():
    """All eight decimals."""
    image = striped()
    values = {"0.9 I + 0.05": (0.00083278, 0.99267196, 0.00982638), "1 - I": (0.33311291, -0.66893662, 2.66827534)}
    for how, (mse, similarity, total) in values.items():
        method = answering(changed(image, how)).double()
        error, found = method.compare(image, changed(image, how))
        assert error.shape == found.shape == (1, 1, 64, 64)
        assert error.mean().item() == pytest.approx(3 * mse, abs=1.6e-8)
        assert found.mean().item() == pytest.approx(similarity, abs=5.1e-9)
        terms = method.loss(Batch(image))
        assert terms["l2"].item() == pytest.approx(3 * mse, abs=1.6e-8)
        assert terms["total"].item() == pytest.approx(total, abs=6e-9)
    assert answering(image).double().loss(Batch(image))["total"].item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("how", "border"), SOURCED_SSIM)
@pytest.mark.holds("vit_autoencoder", "12")
def test_ssim_equals_scikit_images(how, border):
    image, numbers = striped(), SOURCED_SSIM[how, border]
    found = digest(ssim_map(changed(image, how), image, window="gaussian", size=11, sigma=1.5, padding=border))
    if border == "valid":  # eight printed decimals, of the mean alone
        assert found[0] == pytest.approx(numbers[0], abs=5.1e-9)
    else:
        assert found == pytest.approx(numbers, rel=1e-9, abs=1e-11)
    if border == "reflect":
        terms = answering(changed(image, how).float()).loss(Batch(image.float()))
        assert terms["ssim"].item() == pytest.approx(1 - numbers[0], abs=1e-6)


def test_window_of_ssim():
    """The taps of the Gaussian, through an impulse in the local means."""
    taps = [0.00102838, 0.00759876, 0.03600077, 0.10936069, 0.21300554, 0.26601172]
    a = torch.zeros(1, 1, 31, 31, dtype=torch.float64)
    a[0, 0, 15, 15] = 1e3
    # With b = 0 the map is c1 c2 / ((mu^2 + c1)(var + c2)), mu = 1000 w_i w_j and var = 10^6 w_i w_j - mu^2.
    _, found = tiny().double().compare(torch.zeros_like(a), a)
    w = torch.tensor(taps, dtype=torch.float64) * taps[5]
    expected = 1e-4 * 9e-4 / ((1e6 * w * w + 1e-4) * (1e6 * w - 1e6 * w * w + 9e-4))
    assert found[0, 0, 15, 10:16].tolist() == pytest.approx(expected.tolist(), rel=2e-5)


def test_losses_are_of_values_in_0_to_1():
    """The constants 0.4 and 0.5 have an SSIM of 0.97561570; in [-1, 1] with a range of 2 it would be 0.00990099."""
    a, b = (torch.full((1, 3, 32, 32), value, dtype=torch.float64) for value in (0.4, 0.5))
    error, similarity = tiny().double().compare(a, b)
    assert [similarity.mean().item(), error.mean().item()] == pytest.approx([0.97561570, 0.03], abs=6e-9)
    found = ssim_map(2 * a - 1, 2 * b - 1, padding="reflect", value_range=2.0)
    assert found.mean().item() == pytest.approx(0.00990099, abs=6e-9)


@pytest.mark.holds("vit_autoencoder", "11", "13", "14", "15")
def test_terms_and_their_weights(monkeypatch):
    for name, value in (("LAMBDA_RECON", 0.7), ("LAMBDA_ENT", 0.2)):
        monkeypatch.setattr(vit_method, name, value)
    image, recall = striped().float(), recall_of([[0.5, 0.5, 0, 0], [1, 0, 0, 0]])
    terms = answering(changed(image, "0.9 I + 0.05"), recall, ssim_weight=0.3).loss(Batch(image))
    assert terms["l2"].item() == pytest.approx(0.7 * 0.00249835, abs=2e-8)
    assert terms["ssim"].item() == pytest.approx(0.7 * 0.3 * (1 - 0.99267196), abs=2e-7)
    assert terms["entropy"].item() == pytest.approx(0.2 * math.log(2) / 2, rel=1e-5)
    assert terms["total"] == terms["l2"] + terms["ssim"] + terms["entropy"]
    mean = answering(changed(image, "0.9 I + 0.05"), recall, l2_reduction="mean").loss(Batch(image))
    assert mean["l2"].item() == pytest.approx(terms["l2"].item() / 3, rel=1e-6)


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.holds("vit_autoencoder", "15", "Table of the ablation")
def test_total_is_the_sum_of_the_terms(ablation):
    method = tiny(**ABLATIONS[ablation])
    terms = method.loss(Batch(images_of(method)))
    named = ["l2", "ssim", "entropy"] if method.options.memory else ["l2", "ssim"]
    statistics = [f"memory/{x}" for x in ("survivors", "entropy", "dead_queries", "dead_items")]
    assert set(terms) == {*named, "total", *(statistics if method.options.memory else [])}
    assert terms["total"] == sum(terms[name] for name in named) and terms["total"].requires_grad
    assert all(value.ndim == 0 and value.dtype == torch.float32 for value in terms.values())


@pytest.mark.holds("vit_autoencoder", "14")
def test_both_signs_of_the_entropy(monkeypatch):
    """The value of a known distribution, and the effect of minimising either sign."""
    monkeypatch.setattr(vit_method, "LAMBDA_ENT", 1.0)
    weights, image = torch.tensor([0.2693, 0.3289, 0, 0, 0.4018]), torch.rand(1, 3, 32, 32)
    for sign, factor in (("corrected", 1), ("literal", -1)):
        terms = answering(image, recall_of(weights), entropy_sign=sign).loss(Batch(image))
        assert terms["entropy"].item() == pytest.approx(factor * 1.0854, abs=1e-4)
        assert terms["memory/entropy"].item() == pytest.approx(1.0854, abs=1e-4)  # the statistic keeps its sign
    monkeypatch.setattr(vit_method, "LAMBDA_RECON", 0.0)
    after = {}
    for sign in ("corrected", "literal"):
        method = tiny(entropy_sign=sign, learning_rate=1e-2, shrinkage=0.0, temperature=0.3)
        optimizer, _ = method.optimizer()
        for _ in range(20):
            terms = method.loss(Batch(images_of(method)))
            optimizer.zero_grad()
            terms["total"].backward()
            optimizer.step()
        after[sign] = terms["memory/entropy"].item()
    assert after["corrected"] < 2.4 and after["literal"] == pytest.approx(math.log(20), abs=0.05)


def test_statistics_of_known_weights():
    """Four queries over five items: 3 + 1 + 2 + 0 of 20 survive; items 3 and 4 for none; one query is dead."""
    rows = [[0.5, 0.25, 0.25, 0, 0], [1, 0, 0, 0, 0], [0, 0.5, 0.5, 0, 0], [0, 0, 0, 0, 0]]
    image = torch.rand(1, 3, 32, 32)
    terms = answering(image, recall_of(rows, [False, False, False, True])).loss(Batch(image))
    assert terms["memory/survivors"].item() == pytest.approx(6 / 20)
    assert terms["memory/dead_queries"].item() == pytest.approx(1 / 4)
    assert terms["memory/dead_items"].item() == pytest.approx(2 / 5)
    assert terms["memory/entropy"].item() == pytest.approx(2.5 * math.log(2) / 4, abs=1e-6)
    assert terms["entropy"].item() == pytest.approx(0.001 * 2.5 * math.log(2) / 4, rel=1e-5)


def test_statistics_of_equal_items():
    """Every query is dead, and every item."""
    method = tiny()
    with torch.no_grad():
        method.memory.weight.copy_(method.memory.weight[:1].expand_as(method.memory.weight))
    terms = method.loss(Batch(images_of(method)))
    assert terms["memory/dead_queries"] == 1 and terms["memory/survivors"] == 0 and terms["memory/dead_items"] == 1
    assert terms["memory/entropy"] == 0 and torch.isfinite(terms["total"])


def test_smoothing():
    """An impulse at the centre and at the corner has these peaks and sum 1; otherwise scipy's numbers."""
    for sigma, place, peak in ((6, 192, 0.0044213553), (15, 192, 0.0007074329), (6, 0, 0.0174423294)):
        maps = torch.zeros(1, 1, 384, 384, dtype=torch.float64)
        maps[0, 0, place, place] = 1
        smooth = gaussian_smooth(maps, sigma)
        assert smooth.max().item() == smooth[0, 0, place, place].item() == pytest.approx(peak, abs=5.1e-11)
        assert smooth.sum().item() == pytest.approx(1, abs=1e-12)
    picture = golden.hashed("map", 40, 56).double()
    for sigma, expected in SOURCED_SMOOTHING.items():
        assert digest(gaussian_smooth(picture, sigma)) == pytest.approx(expected, rel=1e-9, abs=1e-12)
        direct = gaussian_filter(picture.numpy(), sigma + 0.37, mode="reflect", truncate=4.0)
        assert np.abs(gaussian_smooth(picture, sigma + 0.37).numpy() - direct).max() < 1e-14
    assert gaussian_smooth(picture, 0) is picture


def smoothed(maps: torch.Tensor, sigma: float) -> np.ndarray:
    """Filters each map by scipy."""
    return np.stack([gaussian_filter(m, sigma, mode="reflect", truncate=4.0) for m in maps[:, 0].double().numpy()])


@torch.no_grad()
@pytest.mark.holds("vit_autoencoder", "Map")
def test_scores_and_maps():
    """One error, smoothed by --map-sigma for the map and by --score-sigma for the score."""
    method = tiny(map_sigma=1.5, score_sigma=4.0, memory=False).eval()  # so there is no entropy
    images = images_of(method)
    reconstruction, _ = method(images)
    similarity = ssim_map(reconstruction, images, padding="reflect")
    error = ((images - reconstruction) ** 2 + (1 - similarity) / 3).sum(1, keepdim=True)
    assert torch.allclose(method.error_map(images), error, atol=1e-6)
    scores, maps = method.score(images)
    assert maps.shape == (2, 1, 32, 32) and scores.shape == (2,)
    assert torch.equal(method.anomaly_map(images), maps)
    assert np.abs(maps[:, 0].numpy() - smoothed(error, 1.5)).max() < 2e-6
    assert np.abs(scores.numpy() - smoothed(error, 4.0).max((1, 2))).max() < 2e-6
    assert not torch.allclose(scores, method.image_scores(maps)["score"], rtol=1e-3)  # the score is not the map's


@torch.no_grad()
@pytest.mark.holds("vit_autoencoder", "Map")
def test_terms_of_the_map(monkeypatch):
    for name, value in (("LAMBDA_RECON", 0.8), ("LAMBDA_ENT", 0.2)):
        monkeypatch.setattr(vit_method, name, value)
    image = striped().float()
    rebuilt = changed(image, "0.9 I + 0.05")
    form = {"addressing": "dot", "temperature": 0.3, "threshold": None}
    cells = address(golden.hashed("queries", 1, 8, 8, 16) - 0.5, golden.hashed("items", 20, 16) - 0.5, **form)
    changes = ({"score": "l2+ssim"}, {"score": "l2+ssim", "l2_reduction": "mean"}, {}, {"entropy_sign": "literal"})
    two, mean, three, literal = (answering(rebuilt, cells, ssim_weight=0.5, **c).error_map(image) for c in changes)
    assert two.shape == three.shape == (1, 1, 64, 64)
    lost, error = 1 - ssim_map(rebuilt, image, padding="reflect").mean(1, keepdim=True), (image - rebuilt) ** 2
    assert torch.allclose(two, error.sum(1, keepdim=True) + 0.5 * lost, atol=1e-6)
    assert torch.allclose(mean, error.mean(1, keepdim=True) + 0.5 * lost, atol=1e-6)
    doubts = F.interpolate(entropy(cells.weights)[:, None], (64, 64), mode="bilinear", align_corners=False)
    assert doubts.std() > 0.01
    assert torch.allclose(three - two, 0.25 * doubts, atol=1e-6)  # lambda_ent / lambda_recon
    assert torch.allclose(literal - two, -0.25 * doubts, atol=1e-6)


@torch.no_grad()
def test_each_image_by_itself_in_evaluation_mode():
    method = tiny(coordinate_attention="both").eval()
    images = images_of(method, 3)
    for together, *alone in zip(method.score(images), *(method.score(image[None]) for image in images)):
        assert torch.allclose(together, torch.cat(alone), atol=1e-5)
    image = torch.full((1, 3, 64, 96), 0.5)
    assert answering(image).error_map(image).abs().max() < 1e-6  # a perfect reconstruction


@torch.no_grad()
def test_public_edge():
    method = tiny(size=(64, 96)).eval()
    for wrong in (torch.rand(1, 3, 64, 64), torch.rand(1, 1, 64, 96), 2 * torch.rand(1, 3, 64, 96) + 1):
        with pytest.raises(ValueError, match="expected"):
            method.score(wrong)
    method = answering(torch.linspace(-1, 2, 3 * 32 * 32).view(1, 3, 32, 32))
    shown = method.figures(torch.rand(1, 3, 32, 32), Context())
    assert torch.equal(shown["reconstruction"], method(None)[0][0].clamp(0, 1)) and method.figures() == {}


def test_adam_at_a_constant_rate():
    method = tiny()
    optimizer, schedule = method.optimizer()
    assert type(optimizer) is torch.optim.Adam
    assert [optimizer.defaults[k] for k in ("betas", "eps", "weight_decay")] == [(0.9, 0.999), 1e-8, 0]
    for _ in range(200):
        optimizer.step()
        schedule.step()
        assert optimizer.param_groups[0]["lr"] == 2e-4
    assert len(optimizer.param_groups[0]["params"]) == len(list(method.parameters()))


def test_rate_falls_in_a_line_at_the_end():
    """Over the last half of eight steps: 1, 3/4, 1/2, 1/4 of it, then 0."""
    optimizer, schedule = tiny(steps=8, decay=0.5, learning_rate=1.0).optimizer()
    found = []
    for _ in range(10):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert found == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0]


def test_example_and_stage():
    image = torch.rand(3, 32, 32)
    assert torch.equal(corrupt(image, np.random.default_rng(0), Options(), Sources()).clean, image)
    with torch.device("meta"):
        (stage,) = ViTAutoencoder().stages
    assert (stage.name, stage.length, stage.unit, stage.early_stop) == ("train", 200, "epochs", None)
    assert tiny(patience=12).stages[0].early_stop == EarlyStop(12, 0.1)


@pytest.mark.parametrize("changes", [{}, {"decoder": "pow2", "patch": 16}, ABLATIONS["literal"]], ids=str)
def test_training_lowers_the_loss(changes):
    """On a rectangle; the score of both images is finite afterwards."""
    method = tiny(learning_rate=5e-3, size=(64, 96), **changes)
    optimizer, schedule = method.optimizer()
    y, x = torch.meshgrid(torch.linspace(0, 3, 64), torch.linspace(0, 5, 96), indexing="ij")
    images = torch.stack([torch.stack([(y + i).sin(), (x - 0.2 * i).cos(), (x * y).sin()]) for i in (0, 1)])
    batch, totals = Batch(images / 2 + 0.5), []
    for _ in range(40):
        terms = method.loss(batch)
        optimizer.zero_grad()
        terms["total"].backward()
        optimizer.step()
        schedule.step()
        totals.append(terms["total"].item())
    assert totals[-1] < 0.8 * totals[0]
    with torch.no_grad():
        scores, maps = method.eval().score(batch.clean)
    assert maps.shape == (2, 1, 64, 96) and torch.isfinite(scores).all()


def test_options_that_cannot_work_are_refused():
    for words, changes in {
        r"--size.*--patch 16.*height.*100.*112": {"size": (100, 96)},
        "--heads: 5 heads do not divide --width 768": {"heads": 5},
        "--decoder pow2 .*--patch 16": {"decoder": "pow2", "patch": 8},
        "--decoder pow2 .*--size above 16,16": {"decoder": "pow2", "size": (16, 16)},
    }.items():
        with pytest.raises(UserError, match=words), torch.device("meta"):
            ViTAutoencoder(Options(**changes))


def timm_state(**changes) -> dict[str, torch.Tensor]:
    """Names an encoder's weights as timm does, with a classifier."""
    encoder = golden.fill(tiny(**changes).encoder).state_dict()
    return {**encoder, "head.weight": torch.zeros(10, 32), "head.bias": torch.zeros(10)}


def test_weights_with_timms_names():
    state, others = timm_state(), {k: v for k, v in tiny().state_dict().items() if not k.startswith("encoder.")}
    for file in (state, {"model": state, "epoch": 3}, {"state_dict": state, "epoch": 3}):
        method = tiny()
        with pytest.warns(Notice, match=r"public ViTs have heads of 64 channels, --heads 2 makes them 16 wide"):
            method.load_weights([file])
        found = method.state_dict()
        assert all(torch.equal(found[f"encoder.{k}"], tensor) for k, tensor in state.items() if "head" not in k)
        assert all(torch.equal(found[k], tensor) for k, tensor in others.items())
    public = tiny(width=128, heads=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        public.load_weights([public.encoder.state_dict()])


@pytest.mark.filterwarnings("error")  # no word on heads where nothing was loaded
def test_wrong_files_are_refused():
    method, other = tiny(), r"has shape \(32, 3, 4, 4\), not \(32, 3, 8, 8\)"
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    for states, words in (
        ([{}, {}], "takes one ViT checkpoint; got 2 files"), ([torch.zeros(2)], "no ViT checkpoint"),
        ([{"epoch": 3, "optimizer": {}}], "no ViT checkpoint"),
        ([{"norm.weight": torch.zeros(32).to_sparse()}], "no ViT checkpoint"),
        ([timm_state(depth=2)], "0 missing .* 12 unknown"), ([timm_state(patch=4)], other),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"--weights.*{words}"):
            method.load_weights(states)
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())


def test_a_run_from_the_command(data, tmp_path):
    """Training, early stopping, threshold, evaluation and report on a rectangle, statistics in the log."""
    from adref.train import main

    flags = "--size 32,48 --patch 8 --width 32 --depth 1 --heads 2 --memory-items 20 --decoder-width 16 --batch-size 2"
    flags += f" --epochs 6 --patience 1 --workers 0 --device cpu --data {data} --out {tmp_path / 'run'}"
    assert main(["vit_autoencoder", *flags.split()]) == 0
    log = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {"loss/entropy", "loss/total", "memory/survivors", "memory/dead_items"} <= set(log[0])
    assert any("validation/total" in line for line in log)
    metrics = json.loads((tmp_path / "run/evaluation/metrics.json").read_text())
    assert 0 <= metrics["image_auroc"] <= 1 and (tmp_path / "run/report.html").exists()
