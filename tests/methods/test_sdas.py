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
from adref.methods.sdas.schedule import linear_betas, respace, schedule_of, spaced_steps
from adref.options import Notice, UserError
from adref.run.directory import open_run
from adref.run.sampling import draw_strength
from adref.synthesize import main as synthesize
from adref.train import main as train

LEAST = {"size": (16, 16), "width": 32, "multipliers": (1, 1), "blocks": 1, "attention_factors": (2,), "head_width": 32,
         "categories": ("a", "b"), "batch_size": 4, "accumulation": 1, "classifier_width": 32}  # fmt: skip
FLAGS = ["--size", "16,16", "--width", "32", "--multipliers", "1,1", "--blocks", "1", "--attention-factors", "2",
         "--head-width", "32", "--batch-size", "4", "--accumulation", "2", "--epochs", "3", "--workers", "0",
         "--device", "cpu"]  # fmt: skip
TABLE = respace(schedule_of(linear_betas()), spaced_steps(1000, 20))


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


# -- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.holds("sdas", "2")
def test_schedule():
    table = schedule_of(linear_betas())
    rows = {
        "beta": (1e-4, 1.1991992e-4, 0.01005996, 0.02),
        "abar": (0.9999, 0.99978009, 0.077796658, 4.0358298e-5),
        "variance": (0, 5.4531877e-5, 0.010051336, 0.019999984),
        "log_variance": (-9.8167251, -9.8167251, -4.6000497, -3.9120238),
        "c1": (1, 0.5452915, 0.0030580571, 1.2835149e-4),
        "c2": (0, 0.4547085, 0.99410435, 0.98994868),
    }
    for name, numbers in rows.items():
        found = getattr(table, name)
        assert found.dtype == torch.float64
        assert found[[0, 1, 500, 999]].tolist() == pytest.approx(numbers, rel=1e-6, abs=1e-12), name
    assert linear_betas(250)[[0, -1]].tolist() == pytest.approx([4e-4, 0.08])


@pytest.mark.holds("sdas", "2")
def test_respacing():
    kept = spaced_steps(1000, 20)
    assert kept == list(range(0, 1000, 50))
    table = respace(schedule_of(linear_betas()), kept)
    assert table.steps.tolist() == kept
    assert table.beta[[0, 1, 19]].tolist() == pytest.approx([1e-4, 0.029951502, 0.60760785], rel=1e-6)
    assert float(torch.prod(1 - table.beta)) == pytest.approx(1.0604183e-4, rel=1e-6)
    betas = (1e-4, 0.0299515, 0.0771275, 0.122053, 0.164833, 0.205568, 0.244354, 0.281283, 0.316441, 0.349912, 0.381775,
             0.412107, 0.440978, 0.468459, 0.494614, 0.519507, 0.543197, 0.565742, 0.587195, 0.607608)  # fmt: skip
    assert table.beta.tolist() == pytest.approx(betas, rel=3e-6)
    assert table.variance[:3].tolist() == pytest.approx([0, 9.96772e-5, 0.0221019], rel=1e-5)
    assert float(table.variance[-1]) == pytest.approx(0.607508, rel=1e-5)
    assert float(table.beta[1] / table.variance[1]) == pytest.approx(300, rel=0.01)


def test_numbers_of_steps():
    assert spaced_steps(10, 10) == list(range(10)) and spaced_steps(1000, 4) == [0, 250, 500, 750]
    for wrong in (0, 11, 7):
        with pytest.raises(ValueError, match="expected"):
            spaced_steps(10, wrong)


@pytest.mark.holds("sdas", "4")
def test_learned_variance():
    method, ends = SDAS(Options(**LEAST)), (math.log(TABLE.beta[10]), float(TABLE.log_variance[10]))
    found = [math.exp(float(method.log_variance(torch.tensor(v), *ends))) for v in (1.0, -1.0, 0.0)]
    assert found == pytest.approx([0.38177541, 0.36188682, 0.37169811], rel=1e-6)
    direct = small(variance="direct")
    found = [math.exp(float(direct.log_variance(torch.tensor(v), *ends))) for v in (1.0, 0.0)]
    assert found == pytest.approx([0.38177541, 0.36188682])


# -- the sampler ------------------------------------------------------------------------------------------------------


class Oracle(nn.Module):
    """The best guess of the noise for pixels from N(0, 0.05^2), with a fixed v."""

    def __init__(self, v: float, variance: float = 0.05**2):
        super().__init__()
        self.v, self.variance, self.seen = nn.Parameter(torch.tensor(v)), variance, []
        self.abar = schedule_of(linear_betas()).abar

    def forward(self, x, steps, labels):
        assert labels is None and len(set(steps.tolist())) == 1
        self.seen.append(int(steps[0]))
        abar = float(self.abar[self.seen[-1]])
        eps = math.sqrt(1 - abar) / (abar * self.variance + 1 - abar) * x
        return torch.cat((eps, self.v.expand_as(x)), dim=1)


def drawn(average: nn.Module, strength: float, number: int = 16, side: int = 64, **changes) -> torch.Tensor:
    method = small(**{"size": (side, side), "categories": (), **changes})
    method.average = average
    return method.sample([0] * number, streams(number), [strength] * number)


@pytest.mark.parametrize(
    ("v", "numbers"),
    [
        (0.0, (0.043632, 0.045761, 0.047796, 0.053437, 0.061704)),
        (-1.0, (0.016464, 0.017267, 0.018035, 0.020164, 0.023283)),
        (1.0, (0.168017, 0.176218, 0.184054, 0.205778, 0.237612)),
    ],
)
@pytest.mark.holds("sdas", "7", "Algorithm 1")
def test_strengths_of_the_oracle(v, numbers):
    for s, expected in zip((0.0, 0.1, 0.2, 0.5, 1.0), numbers):
        oracle = Oracle(v)
        assert float(drawn(oracle, s).std()) == pytest.approx(expected, rel=0.01)
        assert oracle.seen == list(range(950, -1, -50))


@pytest.mark.parametrize(("s", "expected"), [(0.0, 0.022153), (0.01, 0.023580), (0.03, 0.026202)])
@pytest.mark.holds("sdas", "8", "Algorithm S1")
def test_strengths_of_ddim(s, expected):
    assert float(drawn(Oracle(0.0), s, sampler="ddim").std()) == pytest.approx(expected, rel=0.01)


class Still(nn.Module):
    """Predicts no noise and v = 0, and keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.p, self.inputs = nn.Parameter(torch.zeros(())), []

    def forward(self, x, steps, labels):
        self.inputs.append(x)
        return torch.zeros(len(x), 6, *x.shape[2:])


@pytest.mark.parametrize("s", [0.0, 0.1, 0.2, 1.0])
@pytest.mark.holds("sdas", "3", "7", "Algorithm 1")
def test_one_step_has_the_perturbed_variance(s):
    """At t = 500 of two steps, and none at t = 0."""
    still = Still()
    found = drawn(still, s, number=16, side=64, sampling_steps=2)
    before, after = still.inputs
    table = respace(schedule_of(linear_betas()), [0, 500])
    guess = (before / math.sqrt(float(table.abar[1]))).clamp(-1, 1)
    noise = after - float(table.c1[1]) * guess - float(table.c2[1]) * before
    sigma = math.exp((math.log(table.beta[1]) + float(table.log_variance[1])) / 2)
    assert float(noise.var()) / sigma == pytest.approx(1 + s, rel=0.01)
    assert torch.equal(found, (after / math.sqrt(0.9999)).clamp(-1, 1))  # c1 = 1, c2 = 0


def test_each_picture_has_its_own_strength_and_stream():
    method = small(categories=())
    golden.fill(method.average)
    both = method.sample([0, 0], streams(2), [0.0, 0.5])
    alone = [method.sample([0], [np.random.default_rng(i)], [s]) for i, s in ((0, 0.0), (1, 0.5))]
    assert torch.allclose(both, torch.cat(alone), atol=1e-4)
    assert not torch.allclose(both[1:], method.sample([0], [np.random.default_rng(1)], [0.0]), atol=1e-2)


def test_the_three_variances_of_ddim():
    """With v = 1 the learned one is beta, with v = -1 btilde."""
    found = {
        (v, name): float(drawn(Oracle(v), 0.5, sampler=name).std())
        for v in (-1.0, 0.0, 1.0)
        for name in ("ddim", "ddim-beta", "ddim-btilde")
    }
    assert found[-1.0, "ddim-btilde"] < found[0.0, "ddim"] < found[1.0, "ddim-beta"]
    assert found[1.0, "ddim"] == pytest.approx(found[1.0, "ddim-beta"], rel=1e-4)
    assert found[-1.0, "ddim"] == pytest.approx(found[-1.0, "ddim-btilde"], rel=1e-4)


def test_images_are_truncated_to_bytes():
    values = torch.tensor([-1.2, -1.0, -0.9961, 0.0, 0.999, 1.0, 1.3])
    assert to_bytes(values).tolist() == [0, 0, 0, 127, 254, 255, 255]
    method, (a, b) = small(), (([0, 1], streams(2), [0.1, 0.2]) for _ in range(2))
    assert torch.equal(method.sample_images(*a), to_bytes(method.sample(*b)))
    assert method.labels == ["a", "b"] and small(categories=("a",)).labels == ["a"]
    assert small(conditional=False).labels == small(categories=()).labels == ["all"]


# -- the loss ---------------------------------------------------------------------------------------------------------


def exact_terms(step: int, v: float, method: SDAS) -> float:
    """The variational term where the noise is known exactly."""
    image = golden.hashed("image", 2, 3, 16, 16) * 2 - 1
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal(image.shape, np.float32))
    steps = torch.full((2,), step)
    abar = float(method.schedule.abar[step])
    noisy = math.sqrt(abar) * image + math.sqrt(1 - abar) * noise
    return float(method.variational(image, noisy, steps, noise, torch.full_like(image, v)).mean())


@pytest.mark.holds("sdas", "5")
def test_variational_term():
    method = small()
    found = [exact_terms(1, v, method) for v in (-1.0, 0.0, 1.0)]
    assert found == pytest.approx([0, 0.0493116, 0.1751248], abs=2e-6)
    assert all(abs(exact_terms(500, v, method)) < 1e-6 for v in (-1.0, 0.0, 1.0))


@pytest.mark.holds("sdas", "6")
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
    terms = method.loss(batch)
    assert float(terms["simple"]) == pytest.approx(float(batch.noise.square().mean()), rel=1e-6)


def test_examples_have_uniform_steps_normal_noise_and_labels():
    options = Options(**LEAST)
    image, steps, labels = torch.full((3, 16, 16), 1.0), [], []
    for i in range(2000):
        sources = Sources(categories=["b", "a"], index=i % 2)
        example = corrupt(image, np.random.default_rng(i), options, sources)
        steps.append(int(example.step))
        labels.append(int(example.label))
        assert example.noise.dtype == torch.float32 and float(example.image[0, 0, 0]) == 1.0
    assert labels[:4] == [1, 0, 1, 0]
    assert min(steps) < 10 and max(steps) > 989 and np.mean(steps) == pytest.approx(499.5, rel=0.05)
    assert abs(float(example.noise.mean())) < 0.15 and float(example.noise.std()) == pytest.approx(1, rel=0.1)
    assert float(corrupt(0 * image, np.random.default_rng(0), options, sources).image.max()) == -1.0


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
        assert (
            count(DiffusionUNet(**FULL | {"width": 64, "multipliers": (1, 1, 2, 3, 4), "attention": (8, 16)}))
            == 26_004_230
        )
        assert count(DiffusionUNet(**FULL | {"width": 64})) == 34_615_686


def test_labels_are_needed_where_there_are_some():
    method = small()
    x = torch.zeros(1, 3, 16, 16)
    with pytest.raises(ValueError, match="expected labels"):
        method.network(x, torch.zeros(1))
    with pytest.raises(ValueError, match="expected no labels"):
        small(conditional=False).network(x, torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    golden.fill(method.network)
    pair = [method.network(x, torch.zeros(1), torch.tensor([label])) for label in (0, 1)]
    assert not torch.allclose(*pair)
    assert small(categories=("a",)).classes == 0 and small().classes == 2


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
    method = small(classifier_epochs=1)
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
        ({**LEAST, "size": (32, 32), "classifier_epochs": 1, "width": 64, "head_width": 64},
         "--head-width 64 does not divide the 32 channels where --classifier-width attends"),
        ({"strength": (0.2, 0.1)}, "--strength takes one number, or two in ascending order"),
        ({"sampling_steps": 600}, "--sampling-steps: expected a number of steps that a whole stride gives, got 600"),
        ({"classifier_epochs": 1}, "--classifier-epochs needs several categories"),
        ({"guidance_scale": 1.0}, "trained with --classifier-epochs above 0"),
        ({"accumulation": 100}, "--accumulation takes up to --batch-size, 60; got 100"),
    ],
)  # fmt: skip
def test_options_that_cannot_work_are_refused(changes, words):
    with pytest.raises(UserError, match=words), torch.device("meta"):
        SDAS(Options(**changes))
    assert set(SAMPLING) <= {field.name for field in dataclasses.fields(Options)}


# -- public weights ---------------------------------------------------------------------------------------------------


def test_public_names_load(tmp_path):
    """Names and shapes as in 256x256_diffusion.pt, or with the authors' prefix; its table of labels has 1000 rows."""
    method = small()
    state = {name: golden.hashed(name, *t.shape) for name, t in method.network.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.load_weights([state])
    assert all(torch.equal(method.average.state_dict()[name], state[name]) for name in state)
    theirs = {"state_dict": {f"module.{name}": value for name, value in state.items()}}
    theirs["state_dict"]["module.label_emb.weight"] = torch.zeros(1000, 128)
    for model, given, words in (
        (small(), theirs, r"label_emb.weight is \(1000, 128\) in the file, \(2, 128\) here"),
        (small(categories=()), state, "none here"),
        (small(), {n: t for n, t in state.items() if n != "label_emb.weight"}, "none in the file"),
    ):
        with pytest.warns(Notice, match=words):
            model.load_weights([given])
        assert torch.equal(model.average.state_dict()["out.2.bias"], state["out.2.bias"])
    renamed = {("out.3.bias" if n == "out.2.bias" else n): t for n, t in state.items()}
    for model, given, words in (
        (small(), [renamed], r"1 names are missing .*'out.2.bias'.* 1 are unknown .*'out.3.bias'"),
        (small(width=64), [{n: t for n, t in state.items() if n != "label_emb.weight"}], "has the shape"),
        (small(), [state, state], "--weights takes 1 file"),
        *((small(), [wrong], "no dictionary of tensors") for wrong in ([state], torch.zeros(1), {"a": 1})),
    ):
        with pytest.raises(UserError, match=words):
            model.load_weights(given)
    guided = small(classifier_epochs=1)
    given = {name: golden.hashed(name, *t.shape) for name, t in guided.classifier.state_dict().items()}
    guided.load_weights([state, given])
    name = "out.2.positional_embedding"
    assert torch.equal(guided.classifier.state_dict()[name], given[name])


# -- commands ---------------------------------------------------------------------------------------------------------


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
    arguments = ["sdas", "--data", root, "--category", "part", "other", "--out", run, *FLAGS]
    assert train(list(map(str, arguments))) == 0
    return run


def call(*arguments) -> int:
    return synthesize(list(map(str, arguments)))


@pytest.mark.slow
def test_a_stopped_run_ends_with_the_same_weights_and_average(run, root, tmp_path, monkeypatch):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 9 and {"loss/simple", "loss/vlb", "loss/total"} <= set(lines[0])  # 9 images, none held out
    original, calls = SDAS.after_backward, []

    def stop(self, stage, last):
        original(self, stage, last)
        calls.append(stage)
        if len(calls) == 9:  # two parts a step
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(SDAS, "after_backward", stop)
    arguments = ["sdas", "--data", root, "--category", "other", "part", "--out", tmp_path / "r", *FLAGS]
    assert train(list(map(str, arguments))) == 130
    assert train(["--resume", "--out", str(tmp_path / "r"), "--category", "part", "other"]) == 0  # another order
    a, b = (open_run(path).method for path in (run, tmp_path / "r"))
    assert int(a.updates) == 9 and a.labels == ["other", "part"]
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))
    x = torch.zeros(1, 3, 16, 16)
    assert not torch.equal(*(a.average(x, torch.tensor([500]), torch.tensor([i])) for i in (0, 1)))


@pytest.mark.slow
def test_drawing_goes_on_and_never_overwrites(run, tmp_path, capsys):
    out = tmp_path / "drawn"
    assert call(run, "--n", 2, "--strength", 0.1, 0.2, "--out", out, "--device", "cpu") == 0
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.png")) == [
        "other/000000.png", "other/000001.png", "part/000000.png", "part/000001.png"]  # fmt: skip
    first = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.rglob("*.png")}
    with Image.open(out / "part/000001.png") as file:
        assert file.size == (16, 16) and file.mode == "RGB"
        assert 0.1 <= float(file.text["Comment"].removeprefix("strength ")) <= 0.2
    gone = out / "other/000001.png"
    gone.unlink()
    assert call(run, "--n", 3, "--strength", 0.1, 0.2, "--out", out, "--device", "cpu") == 0
    assert "3 images drawn, 3 were there already" in capsys.readouterr().out and len(list(out.rglob("*.png"))) == 6
    for path, (data, time) in first.items():
        assert path.read_bytes() == data and (path.stat().st_mtime_ns == time or path == gone)
    assert call(run, "--n", 3, "--strength", 0.3, "--out", out) == 2
    assert "was begun with --strength [0.1, 0.2], now [0.3]; give another name" in capsys.readouterr().err
    arguments = ("--n", 1, "--category", "part", "--file-format", "jpeg75", "--out", tmp_path / "j")
    assert call(run, *arguments) == 0 and [p.name for p in (tmp_path / "j").rglob("*.jpg")] == ["000000.jpg"]


def test_strengths_are_drawn_for_each_image_or_batch():
    drawn = [draw_strength(Options(), 0, "a", i) for i in range(64)]
    assert len(set(drawn)) == 64 and 0.1 <= min(drawn) < 0.11 and 0.19 < max(drawn) <= 0.2
    drawn = [draw_strength(Options(strength_per="batch"), 0, "a", i) for i in range(64)]
    assert len(set(drawn)) == 4 and len(set(drawn[:16])) == 1
    assert draw_strength(Options(strength=(0.3,)), 0, "a", 5) == 0.3


@pytest.mark.slow
def test_drawing_refuses(run, tmp_path, capsys):
    for arguments, words in (
        (["--n", 0], "--n takes 1 or more"),
        (["--category", "none"], "draws other, part; got none"),
        (["--guidance-scale", 1], "--classifier-epochs"),
        (["--sampling-steps", 600], "--sampling-steps"),
        (["--strenght", 0.3], "unknown option --strenght; known: --strength"),
    ):
        assert call(run, *arguments, "--out", tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert words in error and error.startswith("error: ") and error.count("\n") == 1
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_guidance_trains_a_classifier_in_a_second_stage(root, tmp_path):
    run = tmp_path / "guided"
    arguments = ["sdas", "--data", root, "--category", "other", "part", "--out", run, *FLAGS, "--classifier-width", 32,
                 "--classifier-epochs", 1]  # fmt: skip
    assert train(list(map(str, arguments))) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["train"] * 9 + ["classify"] * 3
    assert "loss/cross_entropy" in lines[-1]
    for scale in (0, 1):
        assert call(run, "--n", 1, "--guidance-scale", scale, "--out", tmp_path / str(scale), "--device", "cpu") == 0
    a, b = (np.asarray(Image.open(tmp_path / name / "part/000000.png")) for name in "01")
    assert (a != b).any()
