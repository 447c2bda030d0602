"""SDAS: schedule, samplers, loss, networks, averaging, public weights, drawing images."""

import dataclasses
import json
import math
import signal
import warnings

import numpy as np
import pytest
import torch
from conftest import golden, picture, write_category
from PIL import Image
from torch import nn

from adref import options as option_tools
from adref.layers.diffusion_unet import DiffusionUNet, NoisyClassifier
from adref.method import Sources
from adref.methods.sdas import method as module
from adref.methods.sdas.method import SDAS, Batch, corrupt, to_bytes
from adref.methods.sdas.options import ABLATIONS, PRESETS, SAMPLING, Options
from adref.methods.sdas.schedule import linear_betas, schedule_of
from adref.options import Notice, UserError
from adref.run.directory import open_run
from adref.synthesize import main as synthesize
from adref.train import main as train

LEAST = {"size": (16, 16), "width": 32, "multipliers": (1, 1), "blocks": 1, "attention_factors": (2,), "head_width": 32,
         "categories": ("a", "b"), "batch_size": 4, "accumulation": 1, "classifier_width": 32}  # fmt: skip
FLAGS = ["--size", "16,16", "--width", "32", "--multipliers", "1,1", "--blocks", "1", "--attention-factors", "2",
         "--head-width", "32", "--batch-size", "4", "--accumulation", "2", "--steps", "8", "--workers", "0",
         "--device", "cpu"]  # fmt: skip


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def small(**changes) -> SDAS:
    torch.manual_seed(0)
    return SDAS(Options(**{**LEAST, **changes}))


def batch_of(method: SDAS, number: int = 4) -> Batch:
    pictures, names = golden.hashed("pictures", number, 3, *method.options.size), ["a", "b"] * number
    sources = Sources(categories=names)
    examples = [
        corrupt(p, np.random.default_rng(i), method.options, sources._replace(index=i)) for i, p in enumerate(pictures)
    ]
    return Batch(*(torch.stack(fields) for fields in zip(*examples)))


def streams(number: int) -> list[np.random.Generator]:
    return [np.random.default_rng(i) for i in range(number)]


@pytest.mark.holds("sdas", "S1")
def test_learned_variance():
    """At the eleventh of 20 steps; at the second, t = 50, the variance spans a factor of 300."""
    table = small().sampling_schedule()
    assert float(table.beta[1] / table.variance[1]) == pytest.approx(300, rel=0.01)
    ends = math.log(table.beta[10]), float(table.log_variance[10])
    for variance, v, expected in (("half_shift", (1.0, -1.0, 0.0), [0.38177541, 0.36188682, 0.37169811]),
                                  ("direct", (1.0, 0.0), [0.38177541, 0.36188682])):  # fmt: skip
        found = small(variance=variance).log_variance(torch.tensor(v), *ends).exp()
        assert found.tolist() == pytest.approx(expected, rel=1e-6)


# -- the sampler ------------------------------------------------------------------------------------------------------


class Oracle(nn.Module):
    """The best guess of the noise for pixels from N(0, 0.05^2), with a fixed v."""

    def __init__(self, v: float):
        super().__init__()
        self.v, self.seen, self.abar = nn.Parameter(torch.tensor(v)), [], schedule_of(linear_betas()).abar

    def forward(self, x, steps, labels):
        assert labels is None and len(set(steps.tolist())) == 1
        self.seen.append(int(steps[0]))
        abar = float(self.abar[self.seen[-1]])
        eps = math.sqrt(1 - abar) / (abar * 0.05**2 + 1 - abar) * x
        return torch.cat((eps, self.v.expand_as(x)), dim=1)


def deviation(v: float, strength: float, sampler: str) -> float:
    """The standard deviation of 16 images that the oracle draws in 20 steps."""
    method = small(size=(64, 64), categories=(), sampler=sampler)
    method.average = Oracle(v)
    found = method.sample([0] * 16, streams(16), [strength] * 16)
    assert method.average.seen == list(range(950, -1, -50))
    return float(found.std())


@pytest.mark.parametrize(
    ("v", "numbers"),
    [(0.0, (0.043632, 0.045761, 0.047796, 0.053437, 0.061704)),
     (-1.0, (0.016464, 0.017267, 0.018035, 0.020164, 0.023283)),
     (1.0, (0.168017, 0.176218, 0.184054, 0.205778, 0.237612))],
)  # fmt: skip
@pytest.mark.holds("sdas", "perturbed step", "Algorithm 1")
def test_strengths_of_the_oracle(v, numbers):
    for s, expected in zip((0.0, 0.1, 0.2, 0.5, 1.0), numbers):
        assert deviation(v, s, "ancestral") == pytest.approx(expected, rel=0.01)


@pytest.mark.holds("sdas", "perturbed DDIM step", "Algorithm S1")
def test_strengths_and_variances_of_ddim():
    """With v = 1 the learned variance is beta, with v = -1 btilde."""
    for s, expected in ((0.0, 0.022153), (0.01, 0.023580), (0.03, 0.026202)):
        assert deviation(0.0, s, "ddim") == pytest.approx(expected, rel=0.01)
    upper, lower = deviation(1.0, 0.5, "ddim-beta"), deviation(-1.0, 0.5, "ddim-btilde")
    assert lower < deviation(0.0, 0.5, "ddim") < upper
    assert [deviation(v, 0.5, "ddim") for v in (1.0, -1.0)] == pytest.approx([upper, lower], rel=1e-4)


def test_each_picture_has_its_own_strength_and_stream():
    method = small(categories=())
    golden.fill(method.average)
    both = method.sample([0, 0], streams(2), [0.0, 0.5])
    alone = [method.sample([0], [np.random.default_rng(i)], [s]) for i, s in ((0, 0.0), (1, 0.5))]
    assert torch.allclose(both, torch.cat(alone), atol=1e-4)
    assert not torch.allclose(both[1:], method.sample([0], [np.random.default_rng(1)], [0.0]), atol=1e-2)


def test_drawn_images_and_their_labels():
    method, (a, b) = small(), (([0, 1], streams(2), [0.1, 0.2]) for _ in range(2))
    assert torch.equal(method.sample_images(*a), to_bytes(method.sample(*b)))
    assert method.labels == ["a", "b"] and small(categories=("a",)).labels == ["a"]
    assert small(conditional=False).labels == small(categories=()).labels == ["all"]


# -- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.holds("sdas", "variational term")
def test_variational_term():
    """Where the noise is known exactly: at t = 1, and at t = 500, where both ends of the variance nearly agree."""
    method, image = small(), golden.hashed("image", 2, 3, 16, 16) * 2 - 1
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal(image.shape, np.float32))
    for step, expected in ((1, [0, 0.0493116, 0.1751248]), (500, [0, 0, 0])):
        abar, steps = float(method.schedule.abar[step]), torch.full((2,), step)
        noisy = math.sqrt(abar) * image + math.sqrt(1 - abar) * noise
        v = [torch.full_like(image, value) for value in (-1.0, 0.0, 1.0)]
        found = [float(method.variational(image, noisy, steps, noise, v).mean()) for v in v]
        assert found == pytest.approx(expected, abs=2e-6)


@pytest.mark.holds("sdas", "loss")
def test_the_variational_term_trains_v_alone():
    method = golden.fill(small()).train()
    batch, outputs = batch_of(method), []
    method.network.out.register_forward_hook(lambda *a: (a[2].retain_grad(), outputs.append(a[2]))[1])
    terms = method.loss(batch)
    terms["vlb"].backward()
    gradient = outputs[0].grad
    assert gradient[:, :3].abs().max() == 0 and gradient[:, 3:].abs().max() > 0
    assert terms["total"].item() == pytest.approx((terms["simple"] + terms["vlb"]).item())  # lambda T = 1
    terms = golden.fill(small(vlb_weight_mode="per_step")).loss(batch)
    assert terms["total"].item() == pytest.approx((terms["simple"] + 1e-3 * terms["vlb"]).item())


def test_an_untrained_network_is_0():
    method = small()
    batch = batch_of(method)
    assert method.network(batch.image, batch.step, batch.label).abs().max() == 0
    assert method.loss(batch)["simple"].item() == pytest.approx(batch.noise.square().mean().item(), rel=1e-6)


def test_examples_have_uniform_steps_normal_noise_and_labels():
    options, image, steps = Options(**LEAST), torch.full((3, 16, 16), 1.0), []
    for i in range(2000):
        sources = Sources(categories=["b", "a"], index=i % 2)
        example = corrupt(image, np.random.default_rng(i), options, sources)
        steps.append(int(example.step))
        assert int(example.label) == 1 - i % 2 and example.noise.dtype == torch.float32
    assert min(steps) < 10 and max(steps) > 989 and np.mean(steps) == pytest.approx(499.5, rel=0.05)
    assert abs(float(example.noise.mean())) < 0.15 and float(example.noise.std()) == pytest.approx(1, rel=0.1)
    extremes = [
        corrupt(x, np.random.default_rng(0), options, sources).image.unique().tolist() for x in (image, 0 * image)
    ]
    assert extremes == [[1.0], [-1.0]]


# -- the networks -----------------------------------------------------------------------------------------------------


FULL = {"width": 256, "multipliers": (1, 1, 2, 2, 4, 4), "blocks": 2, "attention": (8, 16, 32), "head_width": 64,
        "groups": 32}  # fmt: skip


def test_parameter_counts():
    numbers = {15: 552_829_446, 12: 552_826_374, 6: 552_820_230, 3: 552_817_158, 0: 552_814_086, 1000: 553_838_086}
    with torch.device("meta"):
        assert {classes: count(DiffusionUNet(**FULL, classes=classes)) for classes in numbers} == numbers
        assert count(NoisyClassifier(15, (256, 256), **FULL | {"width": 128})) == 53_591_055
        presets = {name: SDAS(option_tools.build(Options, PRESETS, ABLATIONS, name, None, {})) for name in PRESETS}
        assert count(presets["64"].network) == 25_119_430 and count(presets["tiny"].network) == 5_279_014
        narrow = FULL | {"width": 64}
        assert count(DiffusionUNet(**narrow)) == 34_615_686
        assert count(DiffusionUNet(**narrow | {"multipliers": (1, 1, 2, 3, 4), "attention": (8, 16)})) == 26_004_230


def test_labels_are_needed_where_there_are_some():
    x, step = torch.zeros(1, 3, 16, 16), torch.zeros(1)
    with pytest.raises(ValueError, match="expected labels"):
        small().network(x, step)
    with pytest.raises(ValueError, match="expected no labels"):
        small(categories=("a",)).network(x, step, torch.tensor([0]))
    network = golden.fill(small().network)
    assert not torch.allclose(*(network(x, step, torch.tensor([label])) for label in (0, 1)))


# -- the optimiser's step ---------------------------------------------------------------------------------------------


def test_average_of_the_weights(monkeypatch):
    monkeypatch.setattr(module, "EMA_DECAY", 0.7)
    for warmup, decays in ((False, (0.7, 0.7)), (True, (2 / 11, 3 / 12, 4 / 13))):
        method = small(ema_warmup=warmup)
        for p, value in ((p, v) for n, v in ((method.average, 0.0), (method.network, 1.0)) for p in n.parameters()):
            p.data.fill_(value)
        optimizer, _ = method.optimizer("train")
        for _ in decays:
            optimizer.step()  # no gradient: the weights stay
        assert all(torch.allclose(p, torch.tensor(1 - math.prod(decays))) for p in method.average.parameters())
    method = small(classifier_steps=1)
    optimizer, _ = method.optimizer("classify")
    optimizer.step()
    assert int(method.updates) == 0


def gradient_of(monkeypatch, clip: float, parts: int, **changes) -> torch.Tensor:
    """The gradient after a batch of four in some parts, clipped at `clip`."""
    monkeypatch.setattr(module, "CLIP", clip)
    method = golden.fill(small(accumulation=parts, **changes))
    chunks = list(zip(*(field.chunk(parts) for field in batch_of(method))))
    for i, part in enumerate(chunks):
        (method.loss(Batch(*part))["total"] / parts).backward()
        method.after_backward("train", last=i == parts - 1)
    return torch.cat([p.grad.flatten() for p in method.network.parameters()])


def test_clipping_once_or_after_every_part(monkeypatch):
    free, halves = (gradient_of(monkeypatch, 0.0, parts) for parts in (1, 2))
    assert torch.allclose(halves, free, rtol=1e-3, atol=1e-5)
    least = float(free.norm()) / 10
    once = gradient_of(monkeypatch, least, 2)
    assert torch.allclose(once, least * free / free.norm(), rtol=1e-2, atol=1e-4 * least)
    # The code's rule, step by step: the sum of the clipped gradients so far and the next part's, clipped.
    monkeypatch.setattr(module, "CLIP", 0.0)
    method, total = golden.fill(small()), 0.0
    for part in zip(*(field.chunk(2) for field in batch_of(method))):
        method.zero_grad()
        method.loss(Batch(*part))["total"].backward()
        total = total + torch.cat([p.grad.flatten() for p in method.network.parameters()])
        total = total * min(1.0, least / float(total.norm()))
    code = gradient_of(monkeypatch, least, 2, accumulation_rule="code")
    assert torch.allclose(2 * code, total, rtol=1e-2, atol=1e-4 * least)
    assert not torch.allclose(code / code.norm(), once / once.norm(), rtol=1e-3)


# -- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": (100, 256)}, "--size takes multiples of 32, with 6 levels; got \\(100, 256\\)"),
        ({"width": 48}, "--width takes even multiples of 32"),
        ({"attention_factors": (64,)}, "--attention-factors takes some of 1, 2, 4, 8, 16, 32; got 64"),
        ({"head_width": 96}, "--head-width 96 does not divide the 512 channels"),
        ({**LEAST, "size": (32, 32), "classifier_steps": 1, "width": 64, "head_width": 64},
         "--head-width 64 does not divide the 32 channels where --classifier-width attends"),
        ({"strength": (0.2, 0.1)}, "--strength takes one number, or two in ascending order"),
        ({"sampling_steps": 600}, "--sampling-steps: expected a number of steps that a whole stride gives, got 600"),
        ({"classifier_steps": 1}, "--classifier-steps needs several categories"),
        ({"guidance_scale": 1.0}, "trained with --classifier-steps above 0"),
        ({"accumulation": 100}, "--accumulation takes up to --batch-size, 60; got 100"),
    ],
)  # fmt: skip
def test_options_that_cannot_work_are_refused(changes, words):
    with pytest.raises(UserError, match=words), torch.device("meta"):
        SDAS(Options(**changes))
    assert set(SAMPLING) <= {field.name for field in dataclasses.fields(Options)}


# -- public weights ---------------------------------------------------------------------------------------------------


def test_public_names_load():
    """Names and shapes as in 256x256_diffusion.pt, or with the authors' prefix; its table of labels has 1000 rows."""
    method, table = small(), "label_emb.weight"
    state = {name: golden.hashed(name, *t.shape) for name, t in method.network.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.load_weights([state])
    assert all(torch.equal(method.average.state_dict()[name], state[name]) for name in state)
    plain = {name: t for name, t in state.items() if name != table}
    theirs = {"state_dict": {f"module.{name}": t for name, t in (plain | {table: torch.zeros(1000, 128)}).items()}}
    for model, given, words in (
        (small(), theirs, r"label_emb.weight is \(1000, 128\) in the file, \(2, 128\) here"),
        (small(categories=()), state, "none here"),
        (small(), plain, "none in the file"),
    ):
        with pytest.warns(Notice, match=words):
            model.load_weights([given])
        assert torch.equal(model.average.state_dict()["out.2.bias"], state["out.2.bias"])
    renamed = {name.replace("out.2.bias", "out.3.bias"): t for name, t in state.items()}
    for changes, given, words in (
        ({}, [renamed], r"1 names are missing .*'out.2.bias'.* 1 are unknown .*'out.3.bias'"),
        ({"width": 64, "categories": ()}, [plain], "has the shape"),
        ({}, [state, state], "--weights takes 1 file"),
        *(({}, [wrong], "no dictionary of tensors") for wrong in ([state], torch.zeros(1), {"a": 1})),
    ):
        with pytest.raises(UserError, match=words):
            small(**changes).load_weights(given)
    guided, name = small(classifier_steps=1), "out.2.positional_embedding"
    given = {key: golden.hashed(key, *t.shape) for key, t in guided.classifier.state_dict().items()}
    guided.load_weights([state, given])
    assert torch.equal(guided.classifier.state_dict()[name], given[name])


# -- commands ---------------------------------------------------------------------------------------------------------


def call(command, *arguments) -> int:
    return command(list(map(str, arguments)))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two categories, "other" and "part"."""
    root = write_category(tmp_path_factory.mktemp("sdas") / "data", train=5)
    (root / "other/train/good").mkdir(parents=True)
    for i in range(4):
        Image.fromarray(255 - picture(50 + i)).save(root / f"other/train/good/{i}.png")
    return root


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "both"
    assert call(train, "sdas", "--data", root, "--category", "part", "other", "--out", run, *FLAGS) == 0
    return run


@pytest.mark.slow
def test_a_stopped_run_ends_with_the_same_weights_and_average(run, root, tmp_path, monkeypatch):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 0, 0, 1, 1, 1, 2, 2]  # 9 images, none held out; it ends in a pass
    assert {"loss/simple", "loss/vlb", "loss/total"} <= set(lines[0])
    original, calls = SDAS.after_backward, []

    def stop(self, stage, last):
        original(self, stage, last)
        calls.append(stage)
        if len(calls) == 9:  # two parts a step
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(SDAS, "after_backward", stop)
    assert call(train, "sdas", "--data", root, "--category", "other", "part", "--out", tmp_path / "r", *FLAGS) == 130
    assert call(train, "--resume", "--out", tmp_path / "r", "--category", "part", "other") == 0  # another order
    a, b = (open_run(path).method for path in (run, tmp_path / "r"))
    assert int(a.updates) == 8 and a.labels == ["other", "part"]
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))
    x = torch.zeros(1, 3, 16, 16)
    assert not torch.equal(*(a.average(x, torch.tensor([500]), torch.tensor([i])) for i in (0, 1)))


@pytest.mark.slow
def test_guidance_trains_a_classifier_in_a_second_stage(root, tmp_path):
    run = tmp_path / "guided"
    given = ["--data", root, "--category", "other", "part", "--classifier-width", 32, "--classifier-steps", 2]
    assert call(train, "sdas", *given, "--out", run, *FLAGS) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["train"] * 8 + ["classify"] * 2
    assert "loss/cross_entropy" in lines[-1]
    for scale in (0, 1):
        assert call(synthesize, run, "--n", 1, "--guidance-scale", scale, "--out", tmp_path / str(scale)) == 0
    a, b = (np.asarray(Image.open(tmp_path / name / "part/000000.png")) for name in "01")
    assert (a != b).any()
