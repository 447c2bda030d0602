"""DRAEM: its published numbers, simulator, losses, schedule, score, released keys."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import golden
from figures import parameters
from scipy import ndimage
from test_perlin import slow_perlin, slow_rotate

from adref.layers.unet import Autoencoder, UNet
from adref.method import Sources
from adref.methods.draem.method import DRAEM, Batch, corrupt, released_keys
from adref.methods.draem.options import ABLATIONS, PRESETS, Options
from adref.ops.perlin import draw_perlin
from adref.ops.texture_anomaly import blend, draw_mask, draw_texture, match_colours, paste_texture, visible_part
from adref.options import UserError, build

SMALL = Options(size=(64, 64), reconstruction_width=4, discriminator_width=4, score_window=5)


@pytest.fixture
def sources():
    rng = np.random.default_rng(3)
    pictures = torch.from_numpy(rng.integers(0, 256, (5, 3, 64, 64), dtype=np.uint8))
    return Sources(textures=pictures, images=pictures)


@pytest.fixture
def clean():
    return torch.from_numpy(np.random.default_rng(4).random((3, 64, 64), dtype=np.float32))


def batch_of(options, sources, clean, count=4) -> Batch:
    examples = [corrupt(clean, np.random.default_rng(i), options, sources) for i in range(count)]
    return Batch(*(torch.stack(fields) for fields in zip(*examples)))


def test_parameter_counts_of_the_paper_preset():
    with torch.device("meta"):
        method = DRAEM(Options())
        rebuild, segment = method.reconstructor, method.discriminator
        assert parameters(rebuild) == 69_048_579 and parameters(segment) == 28_374_146
        assert parameters(Autoencoder(64)) == 17_271_939 and parameters(Autoencoder(32)) == 4_322_883
    for parts, counts in (
        (rebuild.encoder.blocks, [151_680, 886_272, 3_542_016, 14_161_920, 18_880_512]),
        (rebuild.blocks, [14_160_384, 3_541_248, 885_888, 295_680]),
        (rebuild.ups, [9_440_256, 2_360_832, 590_592, 147_840]),
        (segment.encoder.blocks, [40_704, 221_952, 886_272, 3_542_016, 4_721_664, 4_721_664]),
        (segment.ups, [2_360_832, 1_180_416, 295_296, 73_920, 37_056]),
        (segment.blocks, [7_080_960, 2_360_832, 590_592, 147_840, 110_976]),
    ):
        assert list(map(parameters, parts)) == counts


def test_shapes_of_rectangles_and_ranges():
    method = DRAEM(SMALL).eval()
    images = torch.rand(2, 3, 96, 64)
    reconstruction, logits = method(images)
    assert torch.equal(logits, method.discriminator(torch.cat((method.reconstructor(images), images), dim=1)))
    assert reconstruction.shape == (2, 3, 96, 64) and logits.shape == (2, 2, 96, 64)
    maps = method.anomaly_map(images)
    assert maps.shape == (2, 1, 96, 64) and maps.min() >= 0 and maps.max() <= 1
    assert torch.equal(maps, logits.softmax(1)[:, 1:])


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 3, 60, 64), (1, 3, 64, 64)])
def test_other_images_are_refused(shape):
    with pytest.raises(ValueError, match="expected"):
        DRAEM(SMALL).anomaly_map(torch.full(shape, 200.0 if shape == (1, 3, 64, 64) else 0.5))


@pytest.mark.parametrize("changes", [{"size": (100, 64)}, {"score_window": 4}, {"texture_weight": (1.0, 0.2)}])
def test_options_that_cannot_work_are_refused(changes):
    with pytest.raises(UserError, match="--"):
        DRAEM(Options(**changes))


def test_initialisation():
    torch.manual_seed(0)
    network = UNet(16)
    weights = torch.cat([m.weight.flatten() for m in network.modules() if isinstance(m, torch.nn.Conv2d)])
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    gains = torch.cat([m.weight for m in norms])
    assert abs(weights.std() - 0.02) < 2e-4 and abs(weights.mean()) < 1e-4
    assert abs(gains.mean() - 1) < 2e-3 and abs(gains.std() - 0.02) < 2e-3
    assert all(m.bias.abs().max() == 0 for m in norms)


@pytest.mark.holds("draem", "5")
def test_image_score_golden_values():
    """The maximum of a mean filter of 21 x 21: of one pixel in the middle and in the corner, and of ones."""
    method, maps = DRAEM(Options(reconstruction_width=1, discriminator_width=1)), torch.zeros(3, 1, 64, 64)
    maps[0, 0, 30, 30], maps[1, 0, 0, 0], maps[2] = 1, 1, 1
    assert method.image_scores(maps)["score"].tolist() == pytest.approx([1 / 441, 1 / 441, 1], rel=1e-6)


def test_schedule_falls_at_560_and_630_of_700():
    method, rates = DRAEM(Options(reconstruction_width=1, discriminator_width=1)), []
    assert [stage.order for stage in method.stages] == ["replacement"]
    optimizer, schedule = method.optimizer()
    for _ in range(700):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:560] == [1e-4] * 560
    assert rates[560:630] == pytest.approx([2e-5] * 70) and rates[630:] == pytest.approx([4e-6] * 70)


def test_literal_ablation_is_the_article():
    small = {"reconstruction_width": 1, "discriminator_width": 1}
    options = build(Options, PRESETS, ABLATIONS, "paper", "literal", small)
    _, schedule = DRAEM(options).optimizer()
    assert sorted(schedule.milestones) == [400, 600] and schedule.gamma == 0.1
    assert options.texture_weight == (0.1, 1.0) and options.rotation_degrees == 45


@pytest.mark.holds("draem", "1", "2", "3")
def test_loss_against_scipy_and_numpy(sources, clean):
    """Equations 1 to 3 in float64: SSIM by scipy's filter, the focal loss of a sigmoid."""
    torch.manual_seed(0)
    options = dataclasses.replace(SMALL, mask_threshold=(0.1, 0.1))
    method, batch = DRAEM(options), batch_of(options, sources, clean)
    terms = method.loss(batch)
    reconstruction, logits = (output.detach().double().numpy() for output in method(batch.corrupted))
    image, mask = batch.clean.double().numpy(), batch.mask[:, 0].numpy() > 0
    assert 0.05 < mask.mean() < 0.95
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(taps, taps)[None, None] / taps.sum() ** 2

    def local(x):
        return ndimage.correlate(x, window, mode="constant")  # zeros outside, which count

    mu, nu = local(reconstruction), local(image)
    spread = local(reconstruction**2) - mu**2 + local(image**2) - nu**2
    covariance = local(reconstruction * image) - mu * nu
    similarity = (2 * mu * nu + 1e-4) * (2 * covariance + 9e-4) / ((mu**2 + nu**2 + 1e-4) * (spread + 9e-4))
    anomalous = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    true = np.where(mask, anomalous, 1 - anomalous)
    smooth = (1 - 1e-5) * true + 1e-5 * (1 - true) + 1e-5
    focal = -((1 - smooth) ** 2 * np.log(smooth)).mean()
    expected = {"l2": ((reconstruction - image) ** 2).mean(), "ssim": 1 - similarity.mean(), "focal": focal}
    assert {name: terms[name].item() for name in expected} == pytest.approx(expected, rel=1e-4)
    assert terms["total"].item() == pytest.approx(sum(expected.values()), rel=1e-4)


def test_focal_loss_alone_reaches_the_reconstructor(sources, clean):
    """No detach between the two networks, and no parameter without a gradient."""
    torch.manual_seed(0)
    method, batch = DRAEM(SMALL), batch_of(SMALL, sources, clean)
    method.loss(batch)["focal"].backward()
    # A convolution's bias in front of a batch norm has the gradient 0; every other tensor moves.
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0 or name.endswith("bias"), name


def test_corrupted_equals_clean_outside_the_mask(sources, clean):
    anomalous = 0
    for seed in range(200):
        example = corrupt(clean, np.random.default_rng(seed), SMALL, sources)
        outside = (example.mask == 0).expand_as(example.clean)
        assert torch.equal(example.corrupted[outside], example.clean[outside])
        assert example.mask.shape == (1, 64, 64) and set(example.mask.unique().tolist()) <= {0.0, 1.0}
        assert example.corrupted.min() >= 0 and example.corrupted.max() <= 1
        anomalous += bool(example.mask.any())
    assert 70 <= anomalous <= 115  # half of them, less the empty masks


@pytest.mark.holds("draem", "4")
def test_blend_is_equation_4():
    image, texture = torch.full((3, 2, 2), 0.2), torch.full((3, 2, 2), 0.7)
    mask = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    mixed = blend(image, texture, mask, 0.25)
    assert mixed[:, 0, 0].tolist() == pytest.approx([0.75 * 0.2 + 0.25 * 0.7] * 3)
    assert torch.equal(mixed[:, 0, 1], image[:, 0, 1])


@pytest.mark.holds("draem", "4")
def test_texture_weight_and_threshold_readings(monkeypatch):
    """The code draws beta from [0.2, 1], the paper from [0.1, 1]; white on black shows it."""
    monkeypatch.setattr("adref.ops.texture_anomaly.draw_operations", lambda *_: ())  # white stays white
    black, white = torch.zeros(3, 64, 64), Sources(textures=torch.full((1, 3, 64, 64), 255, dtype=torch.uint8))

    def weights(low):
        options = Options(size=(64, 64), texture_weight=(low, 1.0))
        drawn = (corrupt(black, np.random.default_rng(i), options, white) for i in range(800))
        return [example.corrupted.max().item() for example in drawn if example.mask.any()]

    assert 0.2 <= min(weights(0.2)) < 0.22 and 0.98 < max(weights(0.2)) <= 1
    assert 0.1 <= min(weights(0.1)) < 0.12
    areas, fixed = (
        [draw_mask(np.random.default_rng(i), (64, 64), exponents=(0, 5), degrees=90.0, thresholds=limits).mean()
         for i in range(300)] for limits in ((0.0, 1.0), (0.5, 0.5))
    )  # fmt: skip
    assert np.mean(areas) > 2 * np.mean(fixed) and max(areas) > 0.4


@pytest.mark.holds("draem", "Mask")
def test_mask_is_rotated_noise_above_a_threshold():
    """The mask from the same random numbers, by slow loops; black outside."""
    areas = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        noise = slow_perlin(draw_perlin(rng, (26, 20), 0, 5), (26, 20))
        rotated = slow_rotate(noise, rng.uniform(-60, 60))
        level = rng.uniform(-0.4, 0.4)
        mask = draw_mask(np.random.default_rng(seed), (26, 20), exponents=(0, 5), degrees=60.0, thresholds=(-0.4, 0.4))
        clear = np.abs(rotated - level) > 1e-5
        assert clear.mean() > 0.5 and np.array_equal(mask[clear], (rotated > level)[clear])
        areas.append(mask.mean())
    assert min(areas) < 0.4 and max(areas) > 0.5


def test_own_textures_are_moved_training_images(clean):
    """Without operations, the texture is the roll of a training image."""
    images = [(clean * 255).byte(), (clean.flip(1) * 255).byte()]
    form = {"own_share": 1.0, "operations": "code", "operation_count": 0, "channel_order": "rgb"}
    texture = draw_texture(np.random.default_rng(0), None, images, **form)
    rows = {tuple(row) for image in images for row in (image[0] / 255).sort(dim=1).values.tolist()}
    assert all(tuple(row) in rows for row in texture[0].sort(dim=1).values.tolist())
    assert not any(torch.equal(texture, image / 255) for image in images)


def test_textures_lose_their_colours_in_grey_images(sources, clean):
    grey, texture = clean[:1].expand(3, -1, -1), clean.flip(2)
    assert torch.equal(match_colours(texture, clean), texture)
    assert torch.equal(match_colours(texture, grey), texture.mean(0, keepdim=True).expand(3, -1, -1))
    for colours, same in (("image", True), ("own", False)):
        options = dataclasses.replace(SMALL, rotation_probability=0.0, texture_colours=colours)
        found = batch_of(options, sources, grey, count=8)
        assert found.mask.any() and torch.equal(found.corrupted[:, 0], found.corrupted[:, 1]) is same


def test_paste_texture_draws_texture_mask_and_weight_in_this_order(sources, clean):
    found, label = paste_texture(clean, np.random.default_rng(3), sources.textures, None, own_share=0.0)
    rng = np.random.default_rng(3)
    texture = draw_texture(rng, sources.textures, None, own_share=0.0)
    mask = torch.from_numpy(draw_mask(rng, tuple(clean.shape[1:])))[None]
    assert torch.equal(label, mask) and torch.equal(found, blend(clean, texture, mask, rng.uniform(0.2, 1.0)))


def test_visible_part_of_a_label(sources, clean):
    """Steps of 0 to 7 levels in blocks of 8 columns; a lone pixel is not enough."""
    clean, mask = 0.5 * clean, torch.ones(1, 64, 64)
    mask[..., :8] = 0
    steps = (torch.arange(64) // 8).float() / 255
    corrupted = clean + steps
    corrupted[:, 30, 20] += 0.5
    assert torch.equal(visible_part(mask, corrupted, clean, 4.5), mask * (steps > 4.5 / 255))
    options = dataclasses.replace(SMALL, rotation_probability=0.0)
    whole, part = (batch_of(dataclasses.replace(options, visible=v), sources, clean, count=8) for v in (None, 8.0))
    assert torch.equal(whole.corrupted, part.corrupted) and 0 < part.mask.sum() < whole.mask.sum()
    assert ((whole.mask - part.mask) >= 0).all()


def authors_state(width: int, channels: int, classes: int, levels: int, suffix: str) -> dict:
    """A state dict with the keys and shapes of the authors' files, written from their layer list."""
    state = {}

    def conv(key, i, o):
        state[f"{key}.weight"], state[f"{key}.bias"] = torch.rand(o, i, 3, 3) * 0.05, torch.rand(o)

    def norm(key, o):
        for name in ("weight", "bias", "running_mean", "running_var"):
            state[f"{key}.{name}"] = torch.rand(o)
        state[f"{key}.num_batches_tracked"] = torch.tensor(9)

    def double(key, i, middle, o):
        conv(f"{key}.0", i, middle), norm(f"{key}.1", middle), conv(f"{key}.3", middle, o), norm(f"{key}.4", o)

    w = [width * k for k in (1, 2, 4, 8, 8, 8)][:levels]
    for n, (i, o) in enumerate(zip([channels, *w], w), 1):
        double(f"encoder{suffix}.block{n}", i, o, o)
    if suffix:  # U-Net: step, width before, after, of the skip
        for step, i, o, skip in (("_b", 8, 8, 8), ("1", 8, 4, 8), ("2", 4, 2, 4), ("3", 2, 1, 2), ("4", 1, 1, 1)):
            conv(f"decoder{suffix}.up{step}.1", i * width, o * width), norm(f"decoder{suffix}.up{step}.2", o * width)
            double(f"decoder{suffix}.db{step}", (o + skip) * width, o * width, o * width)
    else:
        for step, i, o in (("1", 8, 4), ("2", 4, 2), ("3", 2, 1), ("4", 1, 1)):
            conv(f"decoder.up{step}.1", i * width, i * width), norm(f"decoder.up{step}.2", i * width)
            double(f"decoder.db{step}", i * width, i * width, o * width)
    conv(f"decoder{suffix}.fin_out.0", width, classes)
    return state


# Sourced: mean, standard deviation and four elements of the outputs of anomalib 2.7.0's networks (width 4, evaluation
# mode, torch 2.13.0) with the authors' module names; `PYTHONPATH=tools python tools/sources/draem.py`, 2026-11-23.
SOURCED = {
    "": [1.2430466, 1.5423318, -0.51586598, 0.80617654, 2.6752515, 0.77522159],
    "_segment": [3.2146056, 2.0466294, 0.85709321, 5.3442111, 2.0311413, 5.6240249],
}


@pytest.mark.parametrize("suffix", SOURCED)
def test_networks_and_key_map_against_anomalib(suffix):
    network, channels = (UNet(4), 6) if suffix else (Autoencoder(4), 3)
    names = released_keys(network, suffix)
    for ours, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            values = golden.hashed(names[ours], *tensor.shape)
            tensor.copy_((values - 0.5) * (12 / tensor[0].numel()) ** 0.5 if tensor.ndim > 1 else 0.5 + values)
    with torch.inference_mode():
        out = network.eval()(golden.hashed(f"input {channels}", 1, channels, 64, 96)).double()
    picks = [out[0, c, y, x].item() for c, y, x in ((0, 0, 0), (1, 31, 47), (0, 63, 95), (1, 5, 80))]
    assert [out.mean().item(), out.std().item(), *picks] == pytest.approx(SOURCED[suffix], rel=1e-5)


def test_released_checkpoints_load_key_by_key():
    states = [authors_state(4, 3, 3, 5, ""), authors_state(4, 6, 2, 6, "_segment")]
    method = DRAEM(SMALL)
    method.load_weights(states)
    for network, state, suffix in zip((method.reconstructor, method.discriminator), states, ("", "_segment")):
        names = released_keys(network, suffix)
        assert set(names.values()) == set(state)
        assert all(torch.equal(network.state_dict()[ours], state[theirs]) for ours, theirs in names.items())


@pytest.mark.parametrize("damage", [
    lambda states: states[0].pop("decoder.up1.1.weight"),
    lambda states: states[1].update({"decoder_segment.extra": torch.zeros(1)}),
    lambda states: states[0].update(authors_state(8, 3, 3, 5, "")),
    lambda states: states.reverse(),
    lambda states: states.pop(),
], ids=["missing", "unknown", "width", "swapped", "one file"])  # fmt: skip
def test_released_checkpoints_that_do_not_fit_are_refused(damage):
    states = [authors_state(4, 3, 3, 5, ""), authors_state(4, 6, 2, 6, "_segment")]
    damage(states)
    with pytest.raises(UserError, match="--weights"):
        DRAEM(SMALL).load_weights(states)
