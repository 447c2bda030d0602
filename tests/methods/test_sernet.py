"""SeRNet: golden checks G1, G5, G6, G10, G12, G13, its two stages, its bank, every option built and trained."""

import contextlib
import dataclasses
import json
import os
import pickle
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import check_readings, golden, once, picture, rows_of, write_category
from PIL import Image
from test_train import same_weights, without_times

from adref import load
from adref import options as option_tools
from adref.evaluate import main as evaluate
from adref.layers.unet import PlainUNet
from adref.method import Sources
from adref.methods.sernet.anomalies import any_other
from adref.methods.sernet.map import edgrec_colour
from adref.methods.sernet.method import Batch, SeRNet, corrupt, repair, repair_mask
from adref.methods.sernet.options import ABLATIONS, PRESETS, Options
from adref.methods.sernet.similar import perceptual_hash
from adref.options import Notice, UserError
from adref.predict import main as predict
from adref.run.directory import load_checkpoint
from adref.run.scoring import method_arguments
from adref.synthesize import main as synthesize
from adref.train import main

LEAST = {"size": (32, 32), "width": 4, "msgms_scales": 2, "smooth_side": 5, "ppa_exponents": (0, 2)}
SMALL = ["--size", "32,32", "--width", "4", "--msgms-scales", "2", "--smooth-side", "5", "--ppa-exponents", "0,2",
         "--batch-size", "2", "--workers", "0", "--device", "cpu", "--epochs", "2",
         "--learning-rate", "0.01"]  # fmt: skip


def tiny(**changes) -> SeRNet:
    """The method at a tiny size, always of the same weights."""
    torch.manual_seed(0)
    return SeRNet(Options(**{**LEAST, **changes}))


def pictures_of(method: SeRNet, count: int = 3) -> torch.Tensor:
    return (255 * golden.hashed("pictures", count, 3, *method.options.size)).byte()


def with_bank(count: int = 3, **changes) -> SeRNet:
    """With hashed weights, which predict more than small ones, and a bank."""
    method = golden.fill(tiny(**changes))
    pictures = pictures_of(method, count)
    files = [picture(i) for i in range(count)]
    looks = [method.look(file, method.options) for file in files]
    with pytest.warns(Notice) if method.needs_bank else contextlib.nullcontext():
        method.prepare(Sources(images=pictures, looks=looks, paths=list(map(str, range(count)))), method.stages[0])
    return method


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# -- the networks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "segmentation", "reconstruction"),
    [
        ({"width": 32}, 473_089, 4_902_723),
        ({"convolutions": 1}, 925_825, 10_959_363),
        ({}, 1_886_209, 19_592_835),
        ({"width": 128}, 7_532_545, 78_335_235),
        ({"segmentation_skip": "none"}, 1_701_889, 19_592_835),
        ({"bottom_factor": 16}, 1_886_209, 31_392_387),
    ],
)
def test_parameter_counts(changes, segmentation, reconstruction):
    """G1: the table of section 3."""
    with torch.device("meta"):
        method = SeRNet(Options(**changes))
    assert (parameters(method.segmenter), parameters(method.reconstructor)) == (segmentation, reconstruction)


def test_shapes_of_every_level():
    """G1: section 3's row of shapes, at an eighth of the width on a rectangle."""
    method, shapes = tiny(size=(64, 96), width=8).eval(), []
    for network in (method.segmenter, method.reconstructor):
        for block in (*network.encoder.blocks, *network.blocks):
            block.register_forward_hook(lambda m, given, out: shapes.append((given[0].shape[1], *out.shape[1:])))
    images = torch.rand(1, 3, 64, 96)
    outcome = method(images, images)
    assert shapes[:5] == [(3, 8, 64, 96), (8, 16, 32, 48), (16, 32, 16, 24), (48, 16, 32, 48), (24, 8, 64, 96)]
    assert shapes[5:10] == [(3, 8, 64, 96), (8, 16, 32, 48), (16, 32, 16, 24), (32, 64, 8, 12), (64, 64, 4, 6)]
    assert shapes[10:] == [(128, 64, 8, 12), (96, 32, 16, 24), (48, 16, 32, 48), (24, 8, 64, 96)]
    assert outcome.probabilities.shape == (1, 1, 64, 96) and outcome.reconstruction.shape == (1, 3, 64, 96)


@pytest.mark.parametrize("skip", ["concat", "add", "none"])
@pytest.mark.parametrize("align", [False, True])
def test_plain_unet_written_out(skip, align):
    """Derived: the same weights in torch's functions, one line a layer; up-sampled map first, skip second."""
    network = golden.fill(PlainUNet(2, (4, 6, 10), skip, convolutions=1, align_corners=align))
    x = golden.hashed("images", 2, 3, 16, 32)
    up = torch.nn.Upsample(scale_factor=2, mode="bilinear", align_corners=align)
    pool = torch.nn.MaxPool2d(2)
    first = network.encoder.blocks[0](x)
    second = network.encoder.blocks[1](pool(first))
    third = network.encoder.blocks[2](pool(second))
    join = {
        "concat": lambda i, a, b: torch.cat((a, b), 1), "add": lambda i, a, b: network.matches[i](a) + b,
        "none": lambda i, a, b: a,
    }[skip]  # fmt: skip
    y = network.blocks[0](join(0, up(third), second))
    y = network.blocks[1](join(1, up(y), first))
    assert torch.allclose(network(x), network.out(y), atol=1e-6)


def test_initialisation():
    """D30."""
    torch.manual_seed(0)
    network = PlainUNet(1, (32, 64, 128))
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            assert not module.bias.any()
            assert module.weight.numel() < 5000 or module.weight.std().item() == pytest.approx(0.02, rel=0.05)
        if isinstance(module, torch.nn.BatchNorm2d):
            assert not module.bias.any() and abs(module.weight.mean() - 1) < 0.02


# -- losses -----------------------------------------------------------------------------------------------------------


def golden_picture() -> torch.Tensor:
    """Section 14's I: 64 x 64, ((7 r + 13 c + 29 k) mod 256) / 255."""
    k, r, c = torch.meshgrid(torch.arange(3), torch.arange(64), torch.arange(64), indexing="ij")
    return (((7 * r + 13 * c + 29 * k) % 256).double() / 255).unsqueeze(0)


@pytest.mark.holds("sernet", "3")
def test_loss_of_the_golden_picture():
    """G6."""
    image, method = golden_picture(), tiny()
    terms = method.terms(0.9 * image + 0.05, image)
    assert terms["mse"].item() == pytest.approx(0.00083278, abs=5e-9)
    assert terms["ssim"].item() == pytest.approx(1 - 0.99314869, abs=5e-9)
    assert terms["total"].item() == pytest.approx(0.00768409, abs=5e-9)
    mirrored = tiny(ssim_padding="reflect").terms(0.9 * image + 0.05, image)
    assert mirrored["ssim"].item() == pytest.approx(1 - 0.99267196, abs=5e-9)
    assert mirrored["total"].item() == pytest.approx(0.00816082, abs=5e-9)
    assert method.terms(image, image)["total"].item() == pytest.approx(0, abs=1e-12)
    empty = torch.zeros(1, 1, 64, 64)
    assert method.terms(empty, empty)["total"] == 0
    weighted = tiny(mse_weight=2.0, ssim_weight=0.5).terms(0.9 * image + 0.05, image)
    assert weighted["total"].item() == pytest.approx(2 * 0.00083278 + 0.5 * (1 - 0.99314869), abs=2e-8)


def test_cross_entropy_of_the_mask():
    probabilities, mask = golden.hashed("p", 2, 1, 8, 8) * 0.8 + 0.1, (golden.hashed("m", 2, 1, 8, 8) > 0.5).float()
    expected = -(mask * probabilities.log() + (1 - mask) * (1 - probabilities).log()).mean()
    assert torch.allclose(tiny().terms(probabilities, mask, "bce")["total"], expected)


def batch_of(method: SeRNet, stage: str | None, seed: int = 0, **more) -> Batch:
    pictures = pictures_of(method)
    looks = [perceptual_hash(p.permute(1, 2, 0).numpy()) for p in pictures]
    textures = (255 * golden.hashed("textures", 2, 3, *method.options.size)).byte()
    sources = Sources(textures, pictures, looks, stage=stage)
    rng = np.random.default_rng(seed)
    examples = [
        corrupt(p.float() / 255, rng, method.options, sources._replace(index=i)) for i, p in enumerate(pictures)
    ]
    return Batch(*(torch.stack(fields) for fields in zip(*examples)))


def test_the_second_stage_changes_nothing_of_the_first():
    """G13: weights, running statistics and counters of the segmentation network; in the first stage they move."""
    method = with_bank().train()
    before = {name: tensor.clone() for name, tensor in method.segmenter.state_dict().items()}
    optimizer, _ = method.optimizer("reconstruct")
    for _ in range(3):
        method.train()  # as the loop does at the start of a stage
        optimizer.zero_grad()
        method.loss(batch_of(method, "reconstruct"), "reconstruct")["total"].backward()
        optimizer.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in method.segmenter.state_dict().items())
    assert all(p.grad is None for p in method.segmenter.parameters())
    rebuilt = {name: tensor.clone() for name, tensor in method.reconstructor.state_dict().items()}
    optimizer, _ = method.optimizer("segment")
    method.train()
    method.loss(batch_of(method, "segment"), "segment")["total"].backward()
    optimizer.step()
    assert not any(torch.equal(before[n], t) for n, t in method.segmenter.state_dict().items() if "running" in n)
    assert all(torch.equal(rebuilt[name], tensor) for name, tensor in method.reconstructor.state_dict().items())


def test_statistics_of_the_repair():
    """Shares of all pixels, and of the anomalies' pixels, that were replaced; derived from the masks themselves."""
    method = with_bank(reconstruct_mix=(0, 1, 0))
    batch = batch_of(method, "reconstruct")
    terms = method.loss(batch, "reconstruct")
    mask = method(batch.corrupted, batch.similar).mask
    assert 0 < mask.mean() < 1, "nothing or all repaired: the test says nothing"
    assert terms["repair/replaced"].item() == pytest.approx(mask.mean().item())
    assert terms["repair/found"].item() == pytest.approx(mask[batch.mask > 0].mean().item())
    clean = method.loss(batch._replace(mask=torch.zeros_like(batch.mask)), "reconstruct")
    assert clean["repair/found"].isnan() and clean["repair/replaced"] == terms["repair/replaced"]


def test_training_lowers_the_losses_of_both_stages():
    method = tiny(learning_rate=0.01, segment_mix=(0, 1, 0), segmentation_loss="bce")
    for stage in method.stages:
        optimizer, batch, totals = method.optimizer(stage)[0], batch_of(method, stage), []
        method.train()
        for _ in range(25):
            terms = method.loss(batch, stage)
            optimizer.zero_grad()
            terms["total"].backward()
            optimizer.step()
            totals.append(terms["total"].item())
        assert totals[-1] < 0.6 * totals[0], stage


def test_schedule_and_optimiser():
    """D19: Adam over the stage's network alone; the rate falls to a fifth at 80 % and again at 90 %."""
    method = tiny(epochs=20)
    for stage, network in (("segment", method.segmenter), ("reconstruct", method.reconstructor)):
        optimizer, schedule = method.optimizer(stage)
        assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in network.parameters()}
        rates = []
        for _ in range(20):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert rates == pytest.approx([1e-4] * 16 + [2e-5] * 2 + [4e-6] * 2)
        assert optimizer.defaults["betas"] == (0.9, 0.999) and optimizer.defaults["weight_decay"] == 0


# -- repair -----------------------------------------------------------------------------------------------------------


def toy() -> torch.Tensor:
    """G5's predicted mask, 8 x 8."""
    mask = torch.zeros(1, 1, 8, 8)
    mask[0, 0, 1:4, 1:4], mask[0, 0, 4, 4], mask[0, 0, 6, 6], mask[0, 0, 0, 7] = 0.9, 0.7, 0.8, 0.5
    return mask


@pytest.mark.holds("sernet", "Algorithm 1")
def test_binarise_and_filter_the_toy():
    """G5."""
    assert repair_mask(toy(), 0.5).sum() == 12 and repair_mask(toy(), 0.5, inclusive=False).sum() == 11
    counts = {(a, c): int(repair_mask(toy(), 0.5, a, c, False).sum()) for a in (9, 10) for c in (8, 4)}
    assert counts == {(9, 8): 10, (9, 4): 9, (10, 8): 10, (10, 4): 0}
    assert repair_mask(toy(), 0.75).sum() == 10 and repair_mask(toy(), 1.0).sum() == 0


@pytest.mark.holds("sernet", "4", "Algorithm 1")
def test_repair_pastes_exactly():
    """G5: I_s where the mask is 1, I_a elsewhere, bit for bit; an empty mask leaves I_a."""
    images, similar = golden.hashed("a", 2, 3, 8, 8), golden.hashed("s", 2, 3, 8, 8)
    mask = repair_mask(toy(), 0.5, 9).expand(2, -1, -1, -1)
    found, inside = repair(images, similar, mask), mask.expand_as(images) > 0
    assert torch.equal(found[inside], similar[inside]) and torch.equal(found[~inside], images[~inside])
    assert torch.equal(repair(images, similar, torch.zeros_like(mask)), images)


def answering(mask: torch.Tensor, **changes) -> SeRNet:
    """A method whose first network predicts a mask (1, 1, H, W) and whose second returns what it gets."""
    method = tiny(**changes).eval()
    logits = torch.special.logit(mask, 1e-7)
    method.segmenter.forward = lambda images: logits.expand(len(images), -1, -1, -1)
    method.reconstructor.forward = lambda images: images
    return method


def square(value: float = 0.9) -> torch.Tensor:
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:20, 4:16] = value
    mask[..., 28:30, 28:30] = value  # 4 pixels, below 0.025 * 1024
    return mask


@pytest.mark.parametrize("kind", ["similar", "zero", "mean", "none"])
def test_what_replaces_a_region(kind):
    method, images, similar = answering(square(), repair=kind), torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    outcome = method(images, similar)
    pasted = {"similar": similar, "zero": torch.zeros_like(images), "none": images,
              "mean": images.mean(dim=(2, 3), keepdim=True).expand_as(images)}[kind]  # fmt: skip
    expected = images.clone()
    expected[..., 8:20, 4:16] = pasted[..., 8:20, 4:16]
    assert torch.equal(outcome.repaired, expected) and torch.equal(outcome.reconstruction, expected)
    assert torch.allclose(outcome.probabilities, square().expand(2, -1, -1, -1), atol=1e-5)
    assert outcome.mask.sum() == (0 if kind == "none" else 2 * 144)


def test_without_segmentation_nothing_is_repaired():
    method = tiny(segmentation=False)
    images = torch.rand(2, 3, 32, 32)
    outcome = method.eval()(images, torch.rand(2, 3, 32, 32))
    assert method.segmenter is None and method.stages == ("reconstruct",) and not method.needs_bank
    assert outcome.repaired is images and not outcome.mask.any()
    assert method.anomaly_map(images).shape == (2, 1, 32, 32)  # no bank, and none needed
    assert set(method.steps(images[:1])) == {"reconstruction"}


def test_feather_softens_the_edge_alone():
    images, similar = torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)
    hard, soft = (answering(square(), feather=f)(images, similar).repaired for f in (0.0, 1.0))
    assert hard.unique().tolist() == [0, 1] and ((soft > 0) & (soft < 1)).any()
    assert soft[0, 0, 14, 10] == pytest.approx(1, abs=1e-4) and soft[0, 0, 0, 31] == 0


@pytest.mark.holds("sernet", "4", "Algorithm 1")
def test_repair_removes_a_large_defect():
    """A defect in a picture whose clean twin is in the bank: found, replaced, gone; the map marks its place."""
    method = answering(square())
    clean = torch.from_numpy(picture(0, 32, 32)).permute(2, 0, 1)
    with pytest.warns(Notice, match="bank of 2 normal images"):
        method.prepare(Sources(images=[clean, 255 - clean]), "segment")
    image = clean.float() / 255
    image[:, 8:20, 4:16] = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
    assert torch.equal(method.reconstruct(image[None])[0], clean.float() / 255)
    maps = method.anomaly_map(image[None])[0, 0]
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[5:23, 1:19] = True  # the filter and the gradient reach 3 pixels
    assert maps[inside].max() > 1 and maps[13, 9] > 20 * maps[~inside].max()
    captions = list(method.steps(image[None]))
    assert captions[:2] == ["predicted mask", "repaired region"] and captions[3:] == ["repaired", "reconstruction"]
    assert captions[2].startswith("similar image, ") and captions[2].endswith(" of 64 bits apart")


# -- the map ----------------------------------------------------------------------------------------------------------


def two_flats() -> tuple[torch.Tensor, torch.Tensor]:
    """G10's pictures."""
    first = torch.tensor([200.0, 100.0, 50.0]).double().view(1, 3, 1, 1).repeat(1, 1, 64, 64) / 255
    second = first.clone()
    second[:, :, 20:36, 24:44] = torch.tensor([190.0, 110.0, 60.0]).double().view(1, 3, 1, 1) / 255
    return first, second


@pytest.mark.holds("sernet", "5", "6", "7")
def test_map_of_the_golden_pictures():
    """G10."""
    first, second = two_flats()
    own = {"size": (64, 64), "smooth_side": 21}
    for scales, structure, both in ((4, 0.19257728, 0.26473277), (2, 0.14089600, 0.21305149)):
        found = {
            s: tiny(**own, msgms_scales=scales, score=s).compare(first, second) for s in ("sum", "structure", "colour")
        }
        assert found["colour"].max().item() == pytest.approx(72.15548765, abs=2e-6)
        assert found["structure"].max().item() == pytest.approx(structure, abs=5e-8)
        assert found["sum"].max().item() == pytest.approx(both, abs=5e-8) and found["sum"][0, 0, 0, 0] == 0
    assert tiny(**own).compare(first, first).abs().max() == 0


@pytest.mark.holds("sernet", "7")
def test_weights_norms_and_filters_of_the_map():
    first, second = two_flats()

    def found(**changes):
        return tiny(size=(64, 64), **changes).compare(first, second)

    structure, colour = found(score="structure"), found(score="colour")
    assert torch.allclose(found(colour_weight=0.01), structure + 0.01 * colour)
    assert torch.allclose(found(weight_on="structure"), 0.001 * structure + colour)
    absolute = found(score="colour", colour_norm="absolute")
    assert not torch.allclose(absolute, colour) and (absolute >= 0).all()
    wide = found(score="colour", smooth="gaussian", smooth_side=21)
    assert wide.sum().item() == pytest.approx(
        colour.sum().item(), rel=1e-3
    )  # both filters keep the sum, away from edges
    border = found(score="structure", smooth_border="zero", msgms_padding="replicate")
    assert (border <= found(score="structure", msgms_padding="replicate") + 1e-12).all()


@pytest.mark.holds("sernet", "7")
def test_the_original_is_compared_and_each_image_by_itself():
    """D24, and a batch scores as its images do."""
    method = with_bank()
    images = golden.hashed("test", 3, 3, 32, 32)
    maps = method.anomaly_map(images)
    outcome = method(images, method.find_similar(images)[0])
    assert outcome.mask.any()
    assert torch.allclose(maps, method.compare(images, outcome.reconstruction.clamp(0, 1)))
    single = torch.cat([method.anomaly_map(image[None]) for image in images])
    assert torch.allclose(maps, single, atol=1e-5)
    scores, same = method.score(images)
    assert torch.equal(same, maps) and torch.equal(scores, maps.amax(dim=(1, 2, 3)))


def test_edgrec_overflows_as_its_code_does():
    """D20, section 8.5: in 8 bits a difference of 16 squares to 0, one of 20 to 144, and the sum wraps, too."""
    from adref.ops.textures import to_space

    x, y = golden.hashed("x", 2, 3, 16, 24), golden.hashed("y", 2, 3, 16, 24)
    found = edgrec_colour(x, y)
    assert found.shape == (2, 1, 16, 24) and found.min() >= 0 and found.max() <= 255 and (found == found.round()).all()
    for b, r, c in ((0, 0, 0), (1, 7, 3), (0, 15, 23), (1, 2, 20)):
        labs = [to_space((180 * z[b, :, r, c]).numpy().astype(np.uint8)[None], "Lab")[0].astype(int) for z in (x, y)]
        squares = [int(labs[0][i] - labs[1][i]) ** 2 % 256 for i in (1, 2)]
        assert found[b, 0, r, c] == sum(squares) % 256
    assert 16**2 % 256 == 0 and 20**2 % 256 == 144
    assert edgrec_colour(x, x).max() == 0


# -- the bank ---------------------------------------------------------------------------------------------------------


@pytest.mark.holds("sernet", "Algorithm 2")
def test_a_training_image_finds_itself():
    """G12: by its file and by its resized copy, at distance 0; of two equal ones the first."""
    method = with_bank(4)
    pictures = pictures_of(method, 4)
    for i in range(4):
        similar, words = method.find_similar(pictures[i : i + 1].float() / 255)
        assert torch.equal(similar[0], pictures[i].float() / 255) and words == ["0 of 64 bits apart"]
        look = method.look(picture(i), method.options)
        similar, words = method.find_similar(torch.rand(1, 3, 32, 32), looks=[look])
        assert torch.equal(similar[0], pictures[i].float() / 255) and words == ["0 of 64 bits apart"]


def test_of_duplicates_the_first_is_taken():
    method, pictures = tiny(), pictures_of(tiny(), 2)
    with pytest.warns(Notice):
        method.prepare(Sources(images=[pictures[0], pictures[1], pictures[0], pictures[1]]), "segment")
    assert [method.bank.search(p.float() / 255) for p in pictures] == [(0, 0), (1, 0)]


def test_other_choices_of_a_similar_image():
    pictures = pictures_of(tiny(), 3).float() / 255
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(with_bank(similar="first").find_similar(images)[0], pictures[[0, 0]])
    assert with_bank(similar="self").find_similar(images)[0] is images
    method = with_bank(similar="random")
    drawn = [method.find_similar(images, [np.random.default_rng(s), np.random.default_rng(s)])[0] for s in range(20)]
    assert all(torch.equal(pair[0], pair[1]) for pair in drawn)
    places = {next(i for i in range(3) if torch.equal(pair[0], pictures[i])) for pair in drawn}
    assert places == {0, 1, 2}
    assert torch.equal(method.find_similar(images)[0], method.find_similar(images)[0])


def test_the_bank_is_filled_before_the_first_stage_alone():
    method = with_bank(3)
    before = method.bank.pictures.clone()
    method.prepare(Sources(images=255 - pictures_of(method, 4)), "reconstruct")
    assert torch.equal(method.bank.pictures, before)


def test_an_empty_bank_is_one_sentence():
    images = torch.rand(1, 3, 32, 32)
    with pytest.raises(UserError, match="the bank of normal images is empty"):
        tiny().eval().anomaly_map(images)
    for kind in ("zero", "mean", "none"):
        assert tiny(repair=kind).eval().anomaly_map(images).shape == (1, 1, 32, 32)


def test_images_of_another_size_are_refused():
    method, images = with_bank(), torch.rand(1, 3, 32, 48)
    for act in (method.anomaly_map, method.score, method.reconstruct, method.steps):
        with pytest.raises(ValueError, match="expected pictures of"):
            act(images)
    with pytest.raises(ValueError, match="multiples of 16, got"):
        method.reconstructor(torch.rand(1, 3, 40, 32))
    assert method.segmenter(torch.rand(1, 3, 12, 20)).shape == (1, 1, 12, 20)


@pytest.mark.parametrize("looks", [[None], [np.zeros(8, np.uint8)] * 2, ["9e65619696d99865"], [np.zeros(64, bool)]])
def test_looks_that_are_no_hashes_are_refused(looks):
    with pytest.raises(ValueError, match="expected 1 looks"):
        with_bank().score(torch.rand(1, 3, 32, 32), looks=looks)


def test_a_method_without_segmentation_has_one_stage():
    method = tiny(segmentation=False)
    assert "total" in method.loss(batch_of(method, None)) and method.optimizer()[0].param_groups


# -- corrupt ----------------------------------------------------------------------------------------------------------


def example(seed: int = 0, stage: str = "reconstruct", journal=None, index=1, **changes):
    method = tiny(**changes)
    pictures = pictures_of(method)
    sources = Sources(images=pictures, stage=stage, index=index, journal=journal,
                      looks=[perceptual_hash(p.permute(1, 2, 0).numpy()) for p in pictures])  # fmt: skip
    clean = pictures[1].float() / 255
    return clean, corrupt(clean, np.random.default_rng(seed), method.options, sources)


@pytest.mark.parametrize(
    ("stage", "shares"),
    [("segment", {"ppa": 1 / 2, "none": 1 / 2}), ("reconstruct", dict.fromkeys(("ppa", "dpa", "none"), 1 / 3))],
)
def test_mix_of_the_stages(stage, shares):
    """D18: halves of PPA and clean images, then thirds of PPA, DPA and clean ones."""
    counts = dict.fromkeys(shares, 0)
    for seed in range(300):
        journal = []
        clean, batch = example(seed, stage, journal, area=0.0)
        kind = "none" if not journal else "ppa" if journal[0]["ppa"] else "dpa"
        counts[kind] += 1
        assert torch.equal(batch.clean, clean) and torch.equal(batch.similar, clean)
        outside = batch.mask.expand(3, -1, -1) == 0
        assert torch.equal(batch.corrupted[outside], clean[outside])
        assert batch.mask.any() == (kind != "none") and set(batch.mask.unique().tolist()) <= {0, 1}
        if kind != "none":
            assert (batch.corrupted - clean).abs().amax() > 0.01
    for kind, share in shares.items():
        assert counts[kind] / 300 == pytest.approx(share, abs=0.09), counts


def test_ppa_has_no_region_below_the_area_and_may_come_out_clean():
    from scipy import ndimage

    areas = []
    for seed in range(40):
        _, batch = example(seed, segment_mix=(1, 0, 0), stage="segment", area=0.05)
        labels, count = ndimage.label(batch.mask[0].numpy(), np.ones((3, 3)))
        areas += [(labels == i + 1).sum() / 1024 for i in range(count)]
    assert 0.05 <= min(areas) < 0.07
    journal = []
    clean, batch = example(0, "segment", journal, segment_mix=(1, 0, 0), ppa_area=1.0, draws=3)
    assert torch.equal(batch.corrupted, clean) and not batch.mask.any() and journal == [{"ppa": 1, "draws": 3}]


def test_spread_below_a_limit_of_the_union():
    """D9: with `union` no mask reaches the share; where none can, the image stays as it is."""
    shares = [example(s, reconstruct_mix=(0, 1, 0), dpa_limit="union")[1].mask.mean().item() for s in range(60)]
    assert min(shares) > 0 and max(shares) < 0.025
    free = [example(s, reconstruct_mix=(0, 1, 0))[1].mask.mean().item() for s in range(60)]
    assert max(free) > 0.025
    clean, batch = example(0, reconstruct_mix=(0, 1, 0), dpa_limit="union", dpa_area=(1e-6, 1e-6), draws=2)
    assert torch.equal(batch.corrupted, clean) and not batch.mask.any()


def test_any_other_image():
    """D25."""
    rng = np.random.default_rng(0)
    assert {any_other(rng, 4, 2) for _ in range(100)} == {0, 1, 3} and {
        any_other(rng, 4, None) for _ in range(100)
    } == {0, 1, 2, 3}
    assert any_other(rng, 1, 0) == 0


def test_what_repairs_a_training_sample():
    """D13: itself, the nearest other (a duplicate, if there is one), or any other."""
    method = tiny(train_similar="phash")
    first, second = pictures_of(method, 2)
    pictures = [first, second, first]
    looks = [perceptual_hash(p.permute(1, 2, 0).numpy()) for p in pictures]

    def repairs(index, **changes):
        options = dataclasses.replace(method.options, **changes)
        sources = Sources(images=pictures, looks=looks, index=index, stage="reconstruct")
        similar = corrupt(pictures[index].float() / 255, np.random.default_rng(1), options, sources).similar
        return {i for i in range(3) if torch.equal(similar, pictures[i].float() / 255)}

    assert repairs(0) == repairs(2) == {0, 2} and repairs(1) == {0, 2}
    assert repairs(1, train_similar="self") == {1} and repairs(1, train_similar="random") == {0, 2}
    lone = Sources(images=[first], looks=looks[:1], index=0, stage="reconstruct")
    similar = corrupt(first.float() / 255, np.random.default_rng(1), method.options, lone).similar
    assert torch.equal(similar, first.float() / 255)
    with pytest.raises(ValueError, match="index"):
        corrupt(first.float() / 255, np.random.default_rng(1), method.options, Sources(images=pictures))


def test_a_missing_source_is_named():
    for changes, words in (({}, "Sources.images"), ({"ppa_source": "textures"}, "Sources.textures")):
        options = Options(**{**LEAST, "segment_mix": (1, 0, 0), "area": 0.0, **changes})
        with pytest.raises(ValueError, match=re.escape(words)):
            corrupt(torch.rand(3, 32, 32), np.random.default_rng(0), options, Sources())


# -- options ----------------------------------------------------------------------------------------------------------

# The first option of each is the reading; the others are what it needs in order to make a difference.
PPA = {"segment_mix": (1, 0, 0), "area": 0.0}
DPA = {"reconstruct_mix": (0, 1, 0)}
REPAIRED = {"area": 0.0}
READINGS = [
    {"size": (32, 48)}, {"segmentation": False}, {"width": 6}, {"bottom_factor": 4}, {"convolutions": 1},
    {"segmentation_skip": "add"}, {"segmentation_skip": "none"}, {"reconstruction_skip": "add"},
    {"reconstruction_skip": "none"}, {"align_corners": True}, {"output_activation": "sigmoid"},
    {"threshold": 0.3, **REPAIRED}, {"area": 0.3}, {"connectivity": 4, "area": 0.01}, {"repair": "zero", **REPAIRED},
    {"repair": "mean", **REPAIRED}, {"repair": "none", **REPAIRED}, {"feather": 1.0, **REPAIRED},
    {"similar": "random", **REPAIRED}, {"similar": "first", **REPAIRED}, {"similar": "self", **REPAIRED},
    {"train_similar": "phash", **REPAIRED}, {"train_similar": "random", **REPAIRED},
    {"segment_mix": (0, 1, 1)}, {"reconstruct_mix": (0, 1, 0)}, {"rotation_probability": 1.0},
    {"rotation_degrees": 10.0, "rotation_probability": 1.0}, {"ppa_source": "textures", **PPA},
    {"ppa_pieces": "several", **PPA}, {"ppa_exponents": (0, 1), **PPA}, {"ppa_noise_degrees": 0.0, **PPA},
    {"ppa_level": 0.2, **PPA}, {"ppa_area": 0.2, **PPA}, {"draws": 1, "segment_mix": (1, 0, 0), "area": 0.2},
    {"ppa_factors": (1.0, 1.0), **PPA}, {"ppa_degrees": 0.0, **PPA}, {"ppa_scale": (1.0, 1.0), **PPA},
    {"ppa_shift": 0.0, **PPA}, {"ppa_beta": (0.5, 0.5), **PPA}, {"ppa_beta_on": "source", **PPA},
    {"dpa_area": (0.01, 0.1), **DPA}, {"dpa_aspect": 1.0, **DPA}, {"dpa_bases": (2, 2), **DPA},
    {"dpa_attached": (0, 0), **DPA}, {"dpa_attached_to": "each", **DPA}, {"dpa_sides": (0.9, 1.0), **DPA},
    {"dpa_limit": "union", **DPA}, {"dpa_mode": "multiplicative", **DPA}, {"dpa_brightness": 0.1, **DPA},
    {"dpa_colour": 0.1, **DPA}, {"dpa_least": 0.25, **DPA}, {"mse_weight": 2.0}, {"ssim_weight": 0.5},
    {"ssim_padding": "reflect"}, {"segmentation_loss": "bce"}, {"learning_rate": 1e-3}, {"score": "structure"},
    {"score": "colour"}, {"colour_weight": 0.01}, {"weight_on": "structure"}, {"colour": "edgrec"},
    {"colour_norm": "absolute"}, {"msgms_scales": 3}, {"msgms_grey": True}, {"msgms_padding": "replicate"},
    {"msgms_padding": "none"}, {"smooth": "gaussian"}, {"smooth_side": 7}, {"smooth_border": "zero"},
]  # fmt: skip
# What no training step and no score of an image shows, and where it is tested.
SILENT = {
    "resize": "bilinear", "threshold_inclusive": False, "hash_on": "resized", "bank": "paths", "epochs": 3,
    "batch_size": 1, "milestones": (0.5,), "milestone_factor": 0.5,
}  # fmt: skip


@once
def outcome(changes: dict) -> list[float]:
    """Two steps of both stages from hashed weights, then the scores of images."""
    method = with_bank(**changes)
    totals = []
    for stage in method.stages:
        optimizer, schedule = method.optimizer(stage)
        method.train()
        for step in range(2):
            terms = method.loss(batch_of(method, stage, seed=step + 3), stage)
            optimizer.zero_grad()
            terms["total"].backward()
            optimizer.step()
            schedule.step()
            totals.append(terms["total"].item())
    assert all(torch.isfinite(p).all() for p in method.parameters())
    with torch.no_grad():
        method.open_picture = lambda path: pictures_of(method)[int(path)]
        images = golden.hashed("images", 2, 3, *method.options.size)
        rngs = [np.random.default_rng(i + 5) for i in range(2)]
        scores, maps = method.eval().score(images, rngs)
        again = method.reconstruct(images, [np.random.default_rng(i + 5) for i in range(2)])
    assert scores.shape == (2,) and maps.shape == (2, 1, *method.options.size) and again.min() >= 0 and again.max() <= 1
    found = [*totals, *scores.tolist(), maps.mean().item(), maps.std().item()]
    assert np.isfinite(found).all()
    return found


def named(changes: dict) -> str:
    return " ".join(f"{k}={v}" for k, v in changes.items())


@pytest.mark.parametrize("changes", READINGS, ids=named)
def test_every_reading_builds_trains_scores_and_makes_a_difference(changes):
    context = dict(list(changes.items())[1:])
    assert outcome(changes) != pytest.approx(outcome(context), rel=1e-6)


@pytest.mark.parametrize("name", SILENT)
def test_other_options_build_and_change_no_step(name):
    assert outcome({name: SILENT[name]}) == outcome({})


def test_every_option_that_names_readings_has_each_of_them_in_the_table():
    check_readings(Options, [*READINGS, SILENT])


@pytest.mark.parametrize("name", [*PRESETS, *ABLATIONS])
def test_presets_and_ablations_build(name):
    table = (PRESETS, ABLATIONS)[name in ABLATIONS]
    with torch.device("meta"):
        method = SeRNet(option_tools.build(Options, PRESETS, ABLATIONS, "paper", None, table[name]))
    assert all(getattr(method.options, key) == value for key, value in table[name].items())


def test_constants_of_the_paper_preset():
    o = Options()
    assert (o.size, o.width, o.threshold, o.area, o.connectivity) == ((256, 256), 64, 0.5, 0.025, 8)
    assert (o.epochs, o.batch_size, o.learning_rate, o.milestones, o.milestone_factor) == (
        800,
        8,
        1e-4,
        (0.8, 0.9),
        0.2,
    )
    assert (o.colour_weight, o.smooth_side, o.msgms_scales, o.ppa_beta) == (0.001, 21, 4, (0.0, 0.8))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": (32, 40)}, "--size takes multiples of 16; the width is 40, 48 would do"),
        ({"ppa_beta": (0.8, 0.0)}, "--ppa-beta takes two numbers in ascending order"),
        ({"dpa_bases": (2, 1)}, "--dpa-bases takes two numbers in ascending order"),
        ({"segment_mix": (0, 0, 0)}, "--segment-mix takes three shares"),
        ({"connectivity": 6}, "--connectivity takes 4 or 8"),
        ({"dpa_least": 0.26}, "--dpa-least takes up to the mean of"),
        ({"smooth_side": 4}, "--smooth-side takes an odd number"),
        ({"smooth_side": 65}, "--smooth-side takes an odd number, below twice the sides"),
        ({"msgms_scales": 5}, "--msgms-scales: 5 scales need sides of 48 pixels"),
        ({"train_similar": "phash", "hash_on": "resized"}, "--train-similar phash searches hashes of files"),
        ({"threshold": 1.5}, "--threshold takes 0 to 1"),
    ],
)  # fmt: skip
def test_what_cannot_work_together_is_one_sentence(changes, words):
    with pytest.raises(UserError, match=re.escape(words)):
        tiny(**changes)


def test_a_threshold_that_is_met_exactly():
    """D11."""
    images, similar = torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)
    for inclusive, expected in ((True, 144), (False, 0)):
        method = answering(square(0.5), threshold=0.5, threshold_inclusive=inclusive)
        assert method(images, similar).mask.sum() == expected


# -- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_category(tmp_path_factory.mktemp("sernet") / "data", train=6)


def run_of(data: Path, out: Path, *more) -> Path:
    assert main(list(map(str, ["sernet", "--data", data, "--out", out, *SMALL, *more]))) == 0
    return out


@pytest.fixture(scope="module")
def whole(data) -> Path:
    """A run that was never interrupted: 5 images in batches of 2, 3 steps an epoch, 6 a stage."""
    return run_of(data, data.parent / "whole")


def test_both_stages_run_one_after_the_other(whole):
    lines = without_times(whole)
    assert [line["stage"] for line in lines] == ["segment"] * 6 + ["reconstruct"] * 6
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert all(("repair/replaced" in line) == (line["stage"] == "reconstruct") for line in lines)
    assert any("repair/found" in line for line in lines[6:])
    state = load_checkpoint(whole)
    assert state["ended"] == {"segment": 6, "reconstruct": 6} and state["step"] == 12
    assert state["model"]["bank.pictures"].shape == (5, 3, 32, 32) and state["model"]["bank.file_hashes"].shape == (
        5,
        8,
    )
    page = (whole / "report.html").read_text()
    for words in (
        "predicted mask",
        "repaired region",
        "similar image, ",
        "bits apart",
        "reconstruction",
        "Stage segment",
    ):
        assert words in page, words


def test_the_bank_holds_hashes_of_the_files_in_their_order(whole):
    """And those alone that train: the held-out image is none of them."""
    method = load(whole)
    known = [perceptual_hash(picture(i)).tobytes() for i in range(6)]
    found = [row.numpy().tobytes() for row in method.bank.file_hashes]
    places = [known.index(h) for h in found]
    assert places == sorted(places) and len(set(places)) == 5
    similar, words = method.find_similar(torch.rand(1, 3, 32, 32), looks=[perceptual_hash(picture(places[2]))])
    assert words == ["0 of 64 bits apart"] and torch.equal(similar[0] * 255, method.bank.pictures[2].float())


@pytest.mark.parametrize("at", [2, 3, 6, 7, 11, 12])  # inside a stage, at an epoch's end, at a stage's end, at the end
def test_interrupted_and_resumed_ends_bit_equal(at, whole, data, tmp_path, monkeypatch):
    loss, seen = SeRNet.loss, []

    def interrupted(self, batch, stage):
        seen.append(stage)
        if len(seen) == at:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(self, batch, stage)

    monkeypatch.setattr(SeRNet, "loss", interrupted)
    run = tmp_path / "run"
    assert main(list(map(str, ["sernet", "--data", data, "--out", run, *SMALL]))) == 130
    assert load_checkpoint(run)["step"] == at
    monkeypatch.setattr(SeRNet, "loss", loss)
    assert main(["--resume", "--out", str(run)]) == 0
    assert same_weights(run, whole) and without_times(run) == without_times(whole)
    assert load_checkpoint(run)["calibration"] == load_checkpoint(whole)["calibration"]


def test_workers_change_no_number(whole, data, tmp_path):
    run = run_of(data, tmp_path / "run", "--workers", 2, "--checkpoint-steps", 1)
    assert same_weights(run, whole) and without_times(run) == without_times(whole)


def test_an_unfinished_run_is_evaluated_and_one_that_has_not_begun_is_refused(data, tmp_path, monkeypatch, capsys):
    """In its first stage the bank is there already; before it, one sentence."""
    loss, run = SeRNet.loss, tmp_path / "run"

    def interrupted(self, batch, stage):
        os.kill(os.getpid(), signal.SIGINT)
        return loss(self, batch, stage)

    monkeypatch.setattr(SeRNet, "loss", interrupted)
    assert main(list(map(str, ["sernet", "--data", data, "--out", run, *SMALL]))) == 130
    assert evaluate([str(run)]) == 0 and "not finished" in (run / "report.html").read_text()
    empty, state = tmp_path / "empty", load_checkpoint(run)
    shutil.copytree(run, empty)
    state["model"] |= {"bank.picture_hashes": torch.zeros(0, 8, dtype=torch.uint8)}
    torch.save(state, empty / "checkpoint.pt")
    capsys.readouterr()
    assert evaluate([str(empty)]) == 2
    assert "the bank of normal images is empty" in capsys.readouterr().err


def test_a_bank_of_paths(whole, data, tmp_path, capsys):
    """The same scores from files; a file that is gone, or another picture, is one sentence that names it."""
    copy = shutil.copytree(data, tmp_path / "data")
    run = run_of(copy, tmp_path / "run", "--bank", "paths")
    state = load_checkpoint(run)["model"]
    assert len(state["bank.pictures"]) == 0 and len(state["bank.paths"]) > 0
    names = bytes(state["bank.paths"].tolist()).decode().split("\0")
    assert [Path(name).parent for name in names] == [copy / "part/train/good"] * 5
    scores = [[float(row["score"]) for row in rows_of(r / "evaluation/scores.csv")] for r in (run, whole)]
    assert scores[0] == scores[1]
    for name in names:
        Image.fromarray(255 - picture(50)).save(name)
    capsys.readouterr()
    assert evaluate([str(run)]) == 2
    assert "is not the picture that it was in training" in capsys.readouterr().err
    for name in names:
        Path(name).unlink()
    assert evaluate([str(run), "--data", str(data)]) == 2
    words = "the bank of similar pictures holds paths, and needs their files"
    assert words in capsys.readouterr().err
    assert predict([str(run), str(data / "part/test/good"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count(words) == 3 and not (tmp_path / "out").exists()


def test_hashes_of_files_and_of_resized_copies(data, tmp_path, whole):
    """D14: another reading, and a run whose every look is None."""
    run = run_of(data, tmp_path / "run", "--hash-on", "resized")
    state, other = load_checkpoint(run)["model"], load_checkpoint(whole)["model"]
    assert torch.equal(state["bank.file_hashes"], state["bank.picture_hashes"])
    assert torch.equal(state["bank.picture_hashes"], other["bank.picture_hashes"])
    assert not torch.equal(state["bank.file_hashes"], other["bank.file_hashes"])


def test_one_training_image_and_duplicates(tmp_path):
    """It is its own source and its own bank; nothing is held out. Equal files: the first is found."""
    data = write_category(tmp_path / "one", train=1)
    run = run_of(data, tmp_path / "run")
    assert len(load(run).bank) == 1 and load_checkpoint(run)["calibration"] is None
    data = write_category(tmp_path / "same", train=4)
    for i in range(1, 4):
        shutil.copy(data / "part/train/good/000.png", data / f"part/train/good/{i:03d}.png")
    method = load(run_of(data, tmp_path / "duplicates", "--train-similar", "phash"))
    assert len(method.bank) == 3 and method.bank.search(perceptual_hash(picture(0))) == (0, 0)


def test_a_loaded_method_can_be_pickled(whole):
    method = pickle.loads(pickle.dumps(load(whole)))
    path = next((whole.parent / "data/part/train/good").iterdir())
    assert method.open_picture(str(path)).shape == (3, 32, 32)


def test_a_picture_is_looked_at_in_its_own_size(whole):
    """What evaluation, prediction and the threshold score it with."""
    method = load(whole)
    images, rngs, looks = method_arguments(method, picture(3), 0, 7)
    assert images.shape == (1, 3, 32, 32) and len(rngs) == 1
    assert [look.tolist() for look in looks] == [perceptual_hash(picture(3)).tolist()]
    assert method_arguments(tiny(hash_on="resized"), picture(3), 0, 7)[2] is None


def test_the_stages_draw_from_other_streams(data, tmp_path, monkeypatch):
    """Else the second network would see the very anomalies that the first was trained on."""
    original, drawn = SeRNet.corrupt, {}

    def recording(image, rng, options, sources):
        drawn.setdefault(sources.stage, []).append(rng.bit_generator.state["state"]["state"])
        return original(image, rng, options, sources)

    monkeypatch.setattr(SeRNet, "corrupt", staticmethod(recording))
    run_of(data, tmp_path / "run")
    assert len(drawn["segment"]) == len(drawn["reconstruct"]) == 10
    assert len(set(drawn["segment"] + drawn["reconstruct"])) == 20


def test_predict_scores_as_evaluate_does(whole, data, tmp_path):
    assert predict([str(whole), str(data / "part/test"), "--out", str(tmp_path / "out")]) == 0
    evaluated = {row["path"]: row["score"] for row in rows_of(whole / "evaluation/scores.csv")}
    for row in rows_of(tmp_path / "out/scores.csv"):
        name = "/".join(Path(row["path"]).parts[-2:])
        assert float(row["score"]) == pytest.approx(float(evaluated[name]), rel=1e-5)


def test_without_segmentation_and_with_textures(data, textures, tmp_path, capsys):
    run = run_of(data, tmp_path / "run", "--ablation", "no-segmentation")
    assert load_checkpoint(run)["ended"] == {"reconstruct": 6} and "bank of" not in capsys.readouterr().err
    run_of(data, tmp_path / "textures", "--ablation", "textures", "--textures", textures)
    config = json.loads((tmp_path / "textures/config.json").read_text())
    assert config["textures_digest"] and config["options"]["ppa_source"] == "textures"


def test_the_size_of_the_bank_is_said(data, tmp_path, capsys):
    run_of(data, tmp_path / "run")  # once, although there are two stages
    error = capsys.readouterr().err
    assert error.count("bank of") == 1
    assert re.search(r"note: every checkpoint holds the bank of 5 normal images \(pictures\), 0\.02 MB", error)


def test_synthesize_shows_both_stages(data, tmp_path, capsys):
    common = ["sernet", "--data", str(data), "--size", "32,32", "--ppa-exponents", "0,2", "--msgms-scales", "2",
              "--smooth-side", "5", "--n", "12"]  # fmt: skip
    assert synthesize([*common, "--out", str(tmp_path / "first")]) == 0
    assert synthesize([*common, "--out", str(tmp_path / "second"), "--stage", "reconstruct"]) == 0
    found = [json.loads((tmp_path / name / "statistics.json").read_text()) for name in ("first", "second")]
    assert found[0]["ppa"]["mean"] == 1 and 0 < found[1]["ppa"]["mean"] < 1
    assert synthesize([*common, "--out", str(tmp_path / "third"), "--stage", "paint"]) == 2
    assert "--stage takes one of segment, reconstruct; got 'paint'" in capsys.readouterr().err
