"""SeRNet: networks, repair, loss, map, search, separation of the stages, runs."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import at_step, golden, interrupt, picture, rows_of, without_times, write_category

from adref import load
from adref.evaluate import main as evaluate
from adref.layers.unet import PlainUNet
from adref.method import Context, Sources
from adref.methods.sernet.anomalies import remove_small
from adref.methods.sernet.map import cielab
from adref.methods.sernet.method import Batch, SeRNet, corrupt, repair, repair_mask
from adref.methods.sernet.options import Options
from adref.methods.sernet.similar import perceptual_hash
from adref.ops.losses import channel_signs, ssim
from adref.options import Notice, UserError
from adref.predict import main as predict
from adref.run.directory import read_log
from adref.train import main

LEAST = {"size": (32, 32), "width": 4, "msgms_scales": 2, "smooth_side": 5, "ppa_exponents": (0, 2)}
SMALL = ["--size", "32,32", "--width", "4", "--msgms-scales", "2", "--smooth-side", "5", "--ppa-exponents", "0,2",
         "--batch-size", "2", "--workers", "0", "--device", "cpu", "--epochs", "2",
         "--learning-rate", "0.01"]  # fmt: skip


def tiny(**changes) -> SeRNet:
    torch.manual_seed(0)
    return SeRNet(Options(**{**LEAST, **changes}))


def pictures_of(count: int = 3) -> torch.Tensor:
    return (255 * golden.hashed("pictures", count, 3, 32, 32)).byte()


def with_bank(count: int = 3, **changes) -> SeRNet:
    """Makes a method with a bank and hashed weights, whose masks are larger than those of small ones."""
    method = golden.fill(tiny(**changes)).eval()
    method.bank.fill(pictures_of(count), [perceptual_hash(picture(i)) for i in range(count)])
    return method


def test_parameter_counts():
    def parameters(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):
        for b, segmentation, reconstruction in ((32, 473_089, 4_902_723), (64, 1_886_209, 19_592_835),
                                                (128, 7_532_545, 78_335_235)):  # fmt: skip
            method = SeRNet(Options(width=b))
            assert (parameters(method.segmenter), parameters(method.reconstructor)) == (segmentation, reconstruction)
        assert parameters(SeRNet(Options(segmentation_skip="none")).segmenter) == 1_701_889
        assert parameters(PlainUNet(channels=3, widths=(64, 128, 256, 512, 1024), skip="concat")) == 31_392_387
    with pytest.raises(ValueError, match="expected pictures of"):
        tiny().score(torch.rand(1, 3, 32, 48))


@pytest.mark.holds("sernet", "Loss")
def test_loss_of_the_golden_picture():
    """0.9 I + 0.05 against I, with SSIM's zero padding, and its value with a reflected border."""
    k, r, c = torch.meshgrid(torch.arange(3), torch.arange(64), torch.arange(64), indexing="ij")
    image, method = (((7 * r + 13 * c + 29 * k) % 256).double() / 255).unsqueeze(0), tiny()
    terms = method.terms(0.9 * image + 0.05, image)
    found = [terms[name].item() for name in ("mse", "ssim", "total")]
    assert found == pytest.approx([0.00083278, 1 - 0.99314869, 0.00768409], abs=5e-9)
    mirrored = ssim(0.9 * image + 0.05, image, padding="reflect").item()
    assert [mirrored, found[0] + 1 - mirrored] == pytest.approx([0.99267196, 0.00816082], abs=5e-9)
    assert method.terms(image, image)["total"].item() == pytest.approx(0, abs=1e-12)
    assert method.terms(*torch.zeros(2, 1, 1, 64, 64))["total"] == 0
    p, mask = golden.hashed("p", 2, 1, 8, 8) * 0.8 + 0.1, (golden.hashed("m", 2, 1, 8, 8) > 0.5).float()
    expected = -(mask * p.log() + (1 - mask) * (1 - p).log()).mean()
    assert torch.allclose(method.terms(p, mask, "bce")["total"], expected)


def example(seed: int = 0, stage: str = "reconstruct", notes=None, pictures=None, index=1, **changes) -> Batch:
    pictures, o = pictures_of() if pictures is None else pictures, Options(**{**LEAST, **changes})
    hashes = [perceptual_hash(p.permute(1, 2, 0).numpy()) for p in pictures]
    sources = Sources(images=pictures, hashes=hashes, stage=stage, index=index, notes=notes)
    return corrupt(pictures[index].float() / 255, np.random.default_rng(seed), o, sources)


def batch_of(stage: str, **changes) -> Batch:
    examples = [example(i, stage, index=i, **changes) for i in range(3)]
    return Batch(*(torch.stack(fields) for fields in zip(*examples)))


def test_the_second_stage_changes_nothing_of_the_first():
    """Weights, running statistics and counters of the first network; in the first stage they move."""

    def step(stage):
        method.train()  # as the loop does
        optimizer, _ = method.optimizer(stage)
        method.loss(batch_of(stage), stage)["total"].backward()
        optimizer.step()
        return {name: tensor.clone() for name, tensor in method.state_dict().items()}

    method = with_bank()
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    second = step("reconstruct")
    assert all(p.grad is None for p in method.segmenter.parameters())
    first = step("segment")
    for name in before:
        part, running = name.partition(".")[0], "running" in name
        assert part != "segmenter" or torch.equal(second[name], before[name])
        assert part != "reconstructor" or torch.equal(first[name], second[name])
        assert not running or not torch.equal(first[name], before[name])


def test_start_and_end_of_the_networks():
    """The mask starts at the sigmoid of its bias; the reconstruction is a sigmoid, or none."""
    images = golden.hashed("images", 2, 3, 32, 32)
    for bias, start in ((0.0, 0.5), (3.0, 1 / (1 + np.exp(-3)))):
        probabilities = tiny(mask_bias=bias, width=2).eval()(images, images).probabilities
        assert probabilities.mean().item() == pytest.approx(start, abs=0.02)
    linear = with_bank(output="linear")(images, images).reconstruction
    assert torch.equal(with_bank()(images, images).reconstruction, linear.sigmoid()) and not 0 <= linear.min() < 1


def test_statistics_of_the_second_stage():
    method, batch = with_bank(), batch_of("reconstruct", reconstruct_mix=(0, 1, 0))
    terms = method.loss(batch, "reconstruct")
    _, mask, _, reconstruction = method(batch.corrupted, batch.similar)
    assert {name: terms[name] for name in terms if "sign" in name} == channel_signs(reconstruction, batch.clean)
    assert 0 < mask.mean() < 1, "nothing or all repaired: the test says nothing"
    assert terms["repair/replaced"].item() == pytest.approx(mask.mean().item())
    assert terms["repair/found"].item() == pytest.approx(mask[batch.mask > 0].mean().item())
    clean = method.loss(batch._replace(mask=torch.zeros_like(batch.mask)), "reconstruct")
    assert clean["repair/found"].isnan() and clean["repair/replaced"] == terms["repair/replaced"]


def test_notice_where_hardly_anything_is_repaired(recwarn):
    tiny().finish("reconstruct", {"repair/found": 0.05})
    for changes in ({"repair": "none"}, {"segmentation": False}, {"reconstruct_mix": (0, 1, 1)}):
        tiny(**changes).finish("reconstruct", {"repair/found": 0.01})
    tiny().finish("segment", {"loss/total": 1.0})
    assert not recwarn.list
    with pytest.warns(Notice, match=r"pixels 4\.0% is repaired, at --threshold 0\.5"):
        tiny().finish("reconstruct", {"repair/found": 0.04})


def test_training_lowers_the_losses_of_both_stages():
    changes = {"segment_mix": (0, 1, 0), "segmentation_loss": "bce"}
    method = tiny(learning_rate=0.01, **changes)
    for stage in ("segment", "reconstruct"):
        optimizer, batch, totals = method.optimizer(stage)[0], batch_of(stage, **changes), []
        method.train()
        for _ in range(25):
            totals.append(method.loss(batch, stage)["total"])
            optimizer.zero_grad()
            totals[-1].backward()
            optimizer.step()
        assert totals[-1] < 0.6 * totals[0], stage


def test_optimizer_and_schedule():
    """Adam over the stage's network alone; the rate falls to a fifth at 80 % and again at 90 %."""
    method, rates = tiny(epochs=20), []
    for stage, network in (("segment", method.segmenter), ("reconstruct", method.reconstructor)):
        optimizer, schedule = method.optimizer(stage)
        assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in network.parameters()}
        for _ in range(20):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert optimizer.defaults["betas"] == (0.9, 0.999) and optimizer.defaults["weight_decay"] == 0
    assert rates == pytest.approx(2 * ([1e-4] * 16 + [2e-5] * 2 + [4e-6] * 2))


@pytest.mark.parametrize("stage", ["segment", "reconstruct"])
def test_mix_of_the_stages(stage):
    """Halves of PPA and clean images, then thirds of PPA, DPA and clean ones; nothing changes outside the mask."""
    counts = {"none": 0, "ppa": 0, "dpa": 0}
    for seed in range(300):
        notes = []
        batch = example(seed, stage, notes, area=0.0)
        kind = "none" if not notes else "ppa" if notes[0]["ppa"] else "dpa"
        counts[kind] += 1
        assert torch.equal(batch.similar, batch.clean)
        outside = batch.mask.expand(3, -1, -1) == 0
        assert torch.equal(batch.corrupted[outside], batch.clean[outside])
        assert batch.mask.any() == (kind != "none") and set(batch.mask.unique().tolist()) <= {0, 1}
        assert kind == "none" or (batch.corrupted - batch.clean).abs().amax() > 0.01
    shares = (1 / 2, 1 / 2, 0) if stage == "segment" else (1 / 3, 1 / 3, 1 / 3)
    assert [count / 300 for count in counts.values()] == pytest.approx(shares, abs=0.09)


def test_similar_image_of_a_training_example():
    """Itself, the nearest other (a duplicate, if there is one), any other, or nothing, which changes no pixel."""
    first, second = pictures_of(2)

    def repairs(index, kind, pictures=(first, second, first)):
        similar = example(pictures=pictures, index=index, train_similar=kind).similar
        return {i for i, p in enumerate(pictures) if torch.equal(similar, p.float() / 255)}

    assert repairs(0, "phash") == repairs(2, "phash") == repairs(1, "phash") == {0, 2}
    assert repairs(1, "self") == {1} and repairs(1, "random") == {0, 2} and repairs(0, "phash", (first,)) == {0}
    batch = example(train_similar="none", reconstruct_mix=(0, 1, 0))
    assert not torch.equal(batch.corrupted, batch.clean) and torch.equal(batch.similar, batch.corrupted)
    with pytest.raises(ValueError, match=r"Sources\.index"):
        corrupt(first / 255, np.random.default_rng(1), tiny(train_similar="phash").options, Sources(images=[first] * 2))


@pytest.mark.holds("sernet", "Repair", "Algorithm 1")
def test_repair_of_the_toy():
    """12 pixels >= 0.5, 11 above; areas 10 and 1, or 9, 1 and 1 if 4-connected; I_s in the mask, else I_a."""
    toy = torch.zeros(1, 1, 8, 8)
    toy[0, 0, 1:4, 1:4], toy[0, 0, 4, 4], toy[0, 0, 6, 6], toy[0, 0, 0, 7] = 0.9, 0.7, 0.8, 0.5
    assert [int(repair_mask(toy, t, area=0).sum()) for t in (0.5, 0.55, 0.75, 1.0)] == [12, 11, 10, 0]
    assert [int(repair_mask(toy, 0.55, area).sum()) for area in (9, 10, 11)] == [10, 10, 0]
    for connectivity, kept in ((8, [11, 11, 10, 10, 10, 0]), (4, [11, 11, 9, 9, 0, 0])):
        assert [remove_small(toy[0, 0].numpy() > 0.5, a, connectivity).sum() for a in (0, 1, 2, 9, 10, 11)] == kept
    images, similar = golden.hashed("a", 2, 3, 8, 8), golden.hashed("s", 2, 3, 8, 8)
    mask = repair_mask(toy, 0.5, 9).expand(2, -1, -1, -1)
    found, inside = repair(images, similar, mask), mask.expand_as(images) > 0
    assert torch.equal(found[inside], similar[inside]) and torch.equal(found[~inside], images[~inside])


def answering(**changes) -> SeRNet:
    """Makes a method whose first network predicts two squares and whose second returns its input."""
    method, mask = tiny(output="linear", **changes).eval(), torch.zeros(1, 1, 32, 32)
    mask[..., 8:20, 4:16] = mask[..., 28:30, 28:30] = 0.9  # 144 pixels, and 4, below 0.025 * 1024
    logits = torch.special.logit(mask, 1e-7)
    method.segmenter.forward = lambda images: logits.expand(len(images), -1, -1, -1)
    method.reconstructor.forward = lambda images: images
    return method


def test_replacement_of_a_region():
    images, similar = torch.rand(2, 2, 3, 32, 32)
    pasted = {"similar": similar, "zero": torch.zeros_like(images), "none": images,
              "mean": images.mean(dim=(2, 3), keepdim=True).expand_as(images)}  # fmt: skip
    for kind, replacement in pasted.items():
        outcome, expected = answering(repair=kind)(images, similar), images.clone()
        expected[..., 8:20, 4:16] = replacement[..., 8:20, 4:16]
        assert torch.equal(outcome.repaired, expected) and torch.equal(outcome.reconstruction, expected)
        assert outcome.mask.sum() == (0 if kind == "none" else 2 * 144)
    method = tiny(segmentation=False).eval()
    outcome = method(images, similar)
    assert method.segmenter is None and [stage.name for stage in method.stages] == ["reconstruct"]
    assert outcome.repaired is images and not outcome.mask.any()
    assert set(method.figures(images[:1])) == {"reconstruction"}  # no bank, and none needed


def test_repair_removes_a_large_defect():
    """A defect in an image whose clean twin is in the bank: found and replaced; the map marks its place."""
    method = answering()
    clean = torch.from_numpy(picture(0, 32, 32)).permute(2, 0, 1)
    with pytest.warns(Notice, match="the 2 normal images of the bank"):
        method.prepare(Sources(images=[clean, 255 - clean]), "segment", None)
    method.prepare(Sources(images=[255 - clean]), "reconstruct", None)  # not filled again
    image = clean.float() / 255
    image[:, 8:20, 4:16] = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
    shown = method.figures(image[None])
    assert torch.equal(shown["reconstruction"], clean.float() / 255)
    assert re.fullmatch(r"predicted mask,repaired region,similar image, \d+ of 64 bits apart,repaired,reconstruction",
                        ",".join(shown))  # fmt: skip
    maps = method.anomaly_map(image[None])[0, 0]
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[5:23, 1:19] = True  # the filter and the gradient reach 3 pixels
    assert maps[inside].max() > 1 and maps[13, 9] > 20 * maps[~inside].max()


@pytest.mark.holds("sernet", "Colour", "Structure", "Map")
def test_map_of_the_golden_pictures():
    first = torch.tensor([200.0, 100.0, 50.0]).double().view(1, 3, 1, 1).repeat(1, 1, 64, 64) / 255
    second = first.clone()
    second[:, :, 20:36, 24:44] = torch.tensor([190.0, 110.0, 60.0]).double().view(1, 3, 1, 1) / 255

    def found(**changes):
        return tiny(**{"size": (64, 64), "smooth_side": 21, **changes}).compare(first, second)

    for scales, structure, both in ((4, 0.19257728, 0.26473277), (2, 0.14089600, 0.21305149)):
        method = tiny(size=(64, 64), smooth_side=21, msgms_scales=scales)
        terms = {"structure": method.structure_term, "colour": method.colour_term, "sum": method.compare}
        maps = {name: term(first, second) for name, term in terms.items()}
        assert maps["colour"].max().item() == pytest.approx(72.15548765, abs=2e-6)
        assert maps["structure"].max().item() == pytest.approx(structure, abs=5e-8)
        assert maps["sum"].max().item() == pytest.approx(both, abs=5e-8) and maps["sum"][0, 0, 0, 0] == 0
    assert method.compare(first, first).abs().max() == 0
    assert all(torch.equal(found(score=name), value) for name, value in maps.items())
    assert torch.allclose(found(colour_weight=0.01), maps["structure"] + 0.01 * maps["colour"])
    assert torch.allclose(found(weight_on="structure"), 0.001 * maps["structure"] + maps["colour"])
    absolute, squared = (found(score="colour", colour=n, smooth_side=1) for n in ("absolute", "squared"))
    difference = (cielab(first) - cielab(second))[:, 1:].abs().sum(dim=1).max()
    assert torch.allclose(absolute.max(), difference) and squared.max().item() == pytest.approx(99.43928, abs=5e-5)


@pytest.mark.holds("sernet", "Map")
def test_the_input_is_compared_and_each_image_by_itself():
    method, images = with_bank(), golden.hashed("test", 3, 3, 32, 32)
    maps = method.anomaly_map(images)
    outcome = method(images, method.find_similar(images)[0])
    assert outcome.mask.any()
    assert torch.allclose(maps, method.compare(images, outcome.reconstruction.clamp(0, 1)))
    assert torch.allclose(maps, torch.cat([method.anomaly_map(image[None]) for image in images]), atol=1e-5)
    assert torch.equal(method.score(images)[0], maps.amax(dim=(1, 2, 3)))


@pytest.mark.holds("sernet", "Algorithm 2")
def test_search_of_the_bank():
    """A training image finds itself, by its file and resized; other choices; empty banks and wrong hashes."""
    method, images = with_bank(4), torch.rand(1, 3, 32, 32)
    pictures = pictures_of(4).float() / 255
    for i in range(4):
        hashed = Context(hashes=[SeRNet.image_hash(picture(i), method.options)])
        for similar, captions in (method.find_similar(pictures[i : i + 1]), method.find_similar(images, hashed)):
            assert torch.equal(similar[0], pictures[i]) and captions == ["0 of 64 bits apart"]
    assert torch.equal(with_bank(similar="first").find_similar(images)[0][0], pictures[0])
    assert with_bank(similar="self").find_similar(images)[0] is images
    method = with_bank(4, similar="random")
    drawn = [method.find_similar(images, Context(rngs=[np.random.default_rng(s)]))[0] for s in range(20)]
    assert {next(i for i in range(4) if torch.equal(one[0], pictures[i])) for one in drawn} == {0, 1, 2, 3}
    for hashes in ([None], [np.zeros(8, np.uint8)] * 2, ["9e65619696d99865"]):
        with pytest.raises(ValueError, match="expected 1 hashes"):
            with_bank().score(images, Context(hashes=hashes))
    with pytest.raises(UserError, match="the bank of normal images is empty"):
        tiny().anomaly_map(images)


@pytest.mark.parametrize("changes", [{"size": (32, 40)}, {"segment_mix": (0, 0, 0)}, {"smooth_side": 4},
                                     {"smooth_side": 65}, {"ppa_exponents": (2, 0)}, {"msgms_scales": 5}])  # fmt: skip
def test_options_that_do_not_fit(changes):
    with pytest.raises(UserError, match="--" + next(iter(changes)).replace("_", "-")):
        tiny(**changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_category(tmp_path_factory.mktemp("sernet") / "data", train=6)


def train(data: Path, out: Path, *more) -> int:
    return main(list(map(str, ["sernet", "--data", data, "--out", out, *SMALL, *more])))


def content(run: Path) -> tuple[dict, list]:
    return {name: value.tolist() for name, value in load(run).method.state_dict().items()}, without_times(run)


@pytest.fixture(scope="module")
def whole(data) -> Path:
    """Trains a run without interruption: 5 images in batches of 2, 3 steps an epoch, 6 a stage."""
    assert train(data, data.parent / "whole") == 0
    return data.parent / "whole"


def test_both_stages_and_the_bank_of_a_run(whole):
    """One stage after the other; the bank holds the files' hashes in their order, without the held-out image."""
    weights, log = content(whole)
    assert [line["stage"] for line in log] == ["segment"] * 6 + ["reconstruct"] * 6
    assert [line["step"] for line in log] == list(range(1, 13))
    assert all(("repair/replaced" in line) == (line["stage"] == "reconstruct") for line in log)
    known = [perceptual_hash(picture(i)).tolist() for i in range(6)]
    places = [known.index(one) for one in weights["bank.file_hashes"]]
    assert places == sorted(places) and len(set(places)) == 5
    page = (whole / "report.html").read_text()
    assert all(words in page for words in ("predicted mask", "similar image, ", "bits apart", "Stage segment"))


@pytest.mark.slow
@pytest.mark.parametrize("at", [3, 6, 8])  # an epoch's end, a stage's end, inside a stage
def test_interrupted_and_resumed_ends_bit_equal(at, whole, data, tmp_path, monkeypatch):
    """A run that was interrupted in its first stage can be evaluated, too."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, SeRNet, at, interrupt)
        assert train(data, run) == 130 and len(read_log(run)) == at
    if at == 3:
        assert evaluate([str(run)]) == 0 and "not finished" in (run / "report.html").read_text()
    assert main(["--resume", "--out", str(run)]) == 0
    assert content(run) == content(whole)


@pytest.mark.slow
def test_variants_of_a_run(whole, data, textures, tmp_path, capsys):
    """Workers; no segmentation; textures; a single image, which is the only source and bank."""
    assert train(data, tmp_path / "workers", "--workers", 2, "--checkpoint-steps", 1) == 0
    assert content(tmp_path / "workers") == content(whole)
    assert capsys.readouterr().err.count("the 5 normal images of the bank, 0.02 MB") == 1  # once, for two stages
    assert train(data, tmp_path / "none", "--ablation", "no-segmentation") == 0
    assert len(read_log(tmp_path / "none")) == 6 and "of the bank" not in capsys.readouterr().err
    assert train(data, tmp_path / "textures", "--ablation", "textures", "--textures", textures) == 0
    one = write_category(tmp_path / "one", train=1)
    assert train(one, tmp_path / "single") == 0 and len(load(tmp_path / "single").method.bank) == 1


def test_predict_scores_as_evaluate_does(whole, data, tmp_path):
    assert predict([str(whole), str(data / "part/test"), "--out", str(tmp_path / "out")]) == 0
    evaluated = {row["path"]: row["score"] for row in rows_of(whole / "evaluation/scores.csv")}
    for row in rows_of(tmp_path / "out/scores.csv"):
        name = "/".join(Path(row["path"]).parts[-3:])
        assert float(row["score"]) == pytest.approx(float(evaluated[name]), rel=1e-5)
