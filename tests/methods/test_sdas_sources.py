"""SDAS and RealNet's networks against the programs that they follow: guided diffusion and the authors' own code."""

from types import SimpleNamespace

import pytest
import torch
from conftest import golden

from adref.layers.diffusion_unet import DiffusionUNet, NoisyClassifier, step_embedding
from adref.methods.realnet.networks import Discriminator, FeatureUNet, SimpleNetwork, enlarge
from adref.methods.realnet.selection import ResidualSelection, afs_losses, select
from adref.methods.sdas import method as sdas
from adref.methods.sdas import schedule as sdas_schedule
from adref.methods.sdas.method import SDAS, Batch
from adref.methods.sdas.options import Options

hashed = golden.hashed
SIZE = (16, 16)
LABELS = torch.tensor([2, 0])
LEAST = {"size": SIZE, "width": 32, "multipliers": (1, 2), "blocks": 1, "attention_factors": (2,), "head_width": 32,
         "categories": ("a", "b", "c"), "classifier_width": 32}  # fmt: skip

# Sourced: mean, standard deviation and two hash-weighted means, by `python tools/sources/sdas.py FOLDER`, 2026-11-24,
# torch 2.13.0 on a CPU. From "feature u-net" on, and where marked "(RealNet)": cnulab/RealNet as stored at commit
# c7c14f2; all others: guided diffusion, as in the package guided-diffusion-sdk 1.0.0. Both share U-Net and classifier.
SOURCED = {
    "embedding": [0.2943458841, 0.6429311824, 0.1673520512, 0.1506419027],
    "u-net, labels": [-0.01602107867, 0.6236793527, -0.00473224462, -0.003585679136],
    "u-net": [-0.01066168407, 0.6313125426, -0.006512153419, -0.003463596283],
    "u-net, three levels": [-0.01163736405, 0.642706627, -0.01030896211, -0.01314546394],
    "classifier": [0.01868518007, 0.216226484, 0.006255269467, 0.0323965612],
    "table beta, None": [0.01005, 0.005750382689, 0.004948179906, 0.005021976882],
    "table abar, None": [0.2755132334, 0.3428548556, 0.1367351382, 0.1420445434],
    "table variance, None": [0.01003550561, 0.005764372575, 0.004941051564, 0.005014588059],
    "table log_variance, None": [-4.896907258, 0.9580728093, -2.411456437, -2.465959787],
    "table c1, None": [0.01090002775, 0.04384716388, 0.005087792551, 0.005665672917],
    "table c2, None": [0.9854293899, 0.04316059249, 0.485362931, 0.4944646689],
    "table beta, ddim20": [0.3406402536, 0.1877498734, 0.1824538034, 0.1752191075],
    "table abar, ddim20": [0.3000326022, 0.3577408937, 0.1254610955, 0.1481765313],
    "table variance, ddim20": [0.3166388311, 0.2043216052, 0.170414205, 0.1635522548],
    "table log_variance, ddim20": [-2.092822217, 2.514938182, -0.804552369, -1.109403113],
    "table c1, ddim20": [0.2787801188, 0.3028964475, 0.1145327194, 0.1419105422],
    "table c2, ddim20": [0.5882956642, 0.2241737064, 0.3148325403, 0.3039461708],
    "betas of 400": [0.025125, 0.01439753691, 0.01191535171, 0.01267865883],
    "at": [0.6665734867, 0.4713100975, 0.1333481926, 0.409198003],
    "likelihood": [-4.814259671, 4.839304125, -2.364575957, -2.403758903],
    "log variance": [-7.837396904, 2.303169207, -3.915984531, -3.919631739],
    "classifier's loss": [1.158706427, 0.0, 0.348573662, 0.734899865],
    "two steps (guided diffusion)": [0.02570767445, 0.8938887931, 0.01250094234, -0.003911438529],
    "ancestral (guided diffusion)": [0.06157886422, 0.7817305888, 0.03489698574, 0.03387625307],
    "ancestral, s 0.2 (RealNet)": [0.05713064105, 0.7795629414, 0.0334012815, 0.03165827401],
    "ancestral, guided (guided diffusion)": [0.06042830348, 0.7815394643, 0.03414421932, 0.03361789564],
    "ancestral, guided, s 0.2 (RealNet)": [0.05774885584, 0.7785017092, 0.03347203775, 0.03247547666],
    "ddim (guided diffusion)": [0.03517635863, 0.9653908176, 0.01691285881, -0.004067742843],
    "ddim, s 0.02 (RealNet)": [0.03972242215, 0.9604827025, 0.01672807367, 0.004627694646],
    "ddim, guided (guided diffusion)": [0.03308643915, 0.9653822426, 0.01509132498, -0.003788630427],
    "pull": [-1.267238538e-05, 0.0027220262, -3.561053961e-05, -4.337862046e-05],
    "average": [-0.00187369022, 0.05260767472, -0.0003689636784, -0.001076680387],
    "bytes": [126.9173177, 85.88059669, 62.91973046, 63.38264329],
    "feature u-net": [0.003473455031, 0.6298260282, 0.00184215997, -0.0009520358208],
    "simple network": [0.04605126715, 0.3798733122, 0.02086764328, 0.02264968652],
    "chosen, training False": [0.3702619287, 0.2461750381, 0.1872150419, 0.1834779409],
    "logits, training False": [0.08991243615, 0.1977168115, 0.04465063419, 0.04643024362],
    "running mean, training False": [0.006057367221, 0.06273441862, 0.001061169377, 0.002057985458],
    "running variance, training False": [1.02051692, 0.3109479716, 0.5040796623, 0.5248541942],
    "chosen, training True": [0.3401701004, 0.2275410134, 0.1703679226, 0.1677061993],
    "logits, training True": [0.1564523754, 0.1423705337, 0.07778164455, 0.07984004308],
    "running mean, training True": [0.302727137, 0.04724716521, 0.1485881414, 0.1583980605],
    "running variance, training True": [0.1578108432, 0.04239639866, 0.07799860086, 0.08075021553],
    "logits, finest stride 2": [0.09066477168, 0.1969456517, 0.04615722872, 0.04755455146],
    "AFS both layer1": [0.458698074, 0.02139078808, 0.1744280185, 0.2047015874],
    "AFS both layer2": [0.4892739223, 0.02432140817, 0.210278305, 0.2484319345],
    "AFS own layer2": [0.6600253847, 0.06462179263, 0.2866871265, 0.3378187171],
}

# Also theirs: L_t at t = 0, 1, 500 in bits (both programs); means of mse, vb and loss at t = 0, 1, T / 2, T - 1. Their
# LossType.MSE, and RealNet's only loss, weigh vb with 1; RESCALED_MSE with T / 1000, which is our weight 0.001 T.
BOUND = [1.375280928, 0.09330421385, 0.0001635681217]
LOSSES = {1000: [1.344852567, 0.8410466909, 2.185899258], 100: [1.345348835, 0.1489669085, 1.494315743]}
PLAIN_LOSS_OF_100 = 2.83501792  # LossType.MSE, T = 100
INDICES = {
    False: [[10, 9, 24, 61, 16, 31, 51, 47, 45, 21, 37, 31, 56, 51, 24, 54, 10, 61, 38, 9, 25, 57],
            [9, 10, 31, 45, 51, 61, 16, 39, 38, 18, 45, 51, 31, 10, 9, 60, 38, 56, 39, 37, 27, 48]],
    True: [[28, 47, 24, 33, 59, 34, 52, 42, 36, 55, 44, 24, 32, 37, 54, 57, 25, 42, 21, 49, 56, 52],
           [33, 28, 34, 40, 30, 47, 59, 39, 36, 29, 50, 62, 45, 35, 43, 33, 53, 60, 51, 55, 28, 40]],
}  # fmt: skip
AFS_INDICES = {"both layer1": [1, 3, 5], "both layer2": [0, 1, 2, 4], "own layer2": [1, 2, 4, 5]}


def hold(case: str, output, relative: float = 1e-5) -> None:
    """Compares with theirs, relative to the largest of the four numbers."""
    flat, expected = torch.as_tensor(output).detach().double().flatten(), SOURCED[case]
    products = [(flat * hashed(name, len(flat))).mean().item() for name in ("first", "second")]
    own = [flat.mean().item(), flat.std(correction=0).item(), *products]
    assert own == pytest.approx(expected, rel=0, abs=relative * max(map(abs, expected)))


def fill_as(module, name):
    """Fills a module with values that are hashed by RealNet's names."""
    tensors = {name(key): tensor for key, tensor in module.state_dict().items()}
    stand_in = SimpleNamespace(state_dict=lambda: tensors, eval=lambda: stand_in, to=lambda _: stand_in)
    golden.fill(stand_in)
    return module.eval()


def renamed(*pairs: tuple[str, str]):
    """Maps a key: replaces the first words, and, where they begin with a dot, words inside it."""

    def name(key: str) -> str:
        for old, new in pairs:
            key = key.replace(old, new, 1) if old.startswith(".") or key.startswith(old) else key
        return key

    return name


def bytes_of(name: str, count: int) -> torch.Tensor:
    """Images of 8-bit values in [-1, 1], with many at both ends."""
    return ((1.2 * hashed(name, count, 3, *SIZE) - 0.1).clamp(0, 1) * 255).round() / 255 * 2 - 1


def normal(name: str, count: int) -> torch.Tensor:
    return 12**0.5 * (hashed(name, count, 3, *SIZE) - 0.5)


def method_of(**changes) -> SDAS:
    method = SDAS(Options(**{**LEAST, **changes}))
    for network in (method.network, method.average, method.classifier):
        if network is not None:
            golden.fill(network)
    return method


FORM = {"width": 32, "attention": (2,), "head_width": 32, "groups": 32}


@torch.no_grad()
@pytest.mark.parametrize("case, classes, blocks, multipliers", [
    ("u-net, labels", 3, 1, (1, 2)), ("u-net", 0, 2, (1, 2)), ("u-net, three levels", 0, 1, (1, 2, 2)),
])  # fmt: skip
def test_unet_is_guided_diffusions(case, classes, blocks, multipliers):
    network = golden.fill(DiffusionUNet(**FORM, multipliers=multipliers, blocks=blocks, classes=classes))
    labels = (LABELS,) if classes else ()
    hold(case, network(4 * hashed("image", 2, 3, 16, 24) - 2, torch.tensor([7, 950]), *labels))


@torch.no_grad()
def test_classifier_and_embedding_are_guided_diffusions():
    network = golden.fill(NoisyClassifier(3, SIZE, **FORM, multipliers=(1, 2), blocks=1))
    images = (4 * hashed("image", 2, 3, 16, 24) - 2)[..., :16]
    hold("classifier", network(images, torch.tensor([7, 950])))
    hold("embedding", step_embedding(torch.tensor([7, 950]), 32))


@pytest.mark.parametrize("spacing", [None, "ddim20"])
@pytest.mark.holds("sdas", "posterior")
def test_tables_are_guided_diffusions(spacing):
    schedule = sdas_schedule.schedule_of(sdas_schedule.linear_betas())
    schedule = sdas_schedule.respace(schedule, sdas_schedule.spaced_steps(1000, 20)) if spacing else schedule
    for name in ("beta", "abar", "variance", "log_variance", "c1", "c2"):
        hold(f"table {name}, {spacing}", getattr(schedule, name), 1e-9)


def test_other_tables_are_guided_diffusions():
    """ "ddimN" takes 62 numbers of 1000 steps, whose sum is 4565, and ours one more, 1."""
    hold("betas of 400", sdas_schedule.linear_betas(400), 1e-9)
    abar = sdas_schedule.schedule_of(sdas_schedule.linear_betas()).abar
    hold("at", sdas_schedule.at(abar, torch.tensor([0, 1, 999])), 1e-7)
    assert sdas_schedule.spaced_steps(1000, 20) == list(range(0, 1000, 50))
    accepted = []
    for number in range(1, 1001):
        try:
            accepted.append(len(sdas_schedule.spaced_steps(1000, number)))
        except ValueError:
            continue
    assert (len(accepted), sum(accepted)) == (63, 4566)


def test_likelihood_is_guided_diffusions():
    x = bytes_of("bytes", 3).double()
    means, scales = x + 0.1 * (hashed("means", 3, 3, *SIZE) - 0.5), -4 - hashed("scales", 3, 3, *SIZE).double()
    hold("likelihood", sdas.log_likelihood(x, means, scales), 1e-9)


@pytest.mark.holds("sdas", "S1")
def test_log_variance_is_guided_diffusions():
    method, v, t = method_of(), 3 * hashed("v", 3, 3, *SIZE).double() - 1.5, torch.tensor([0, 1, 500])
    ends = (sdas_schedule.at(x, t) for x in (method.schedule.beta.log(), method.schedule.log_variance))
    hold("log variance", method.log_variance(v, *ends), 1e-7)


@pytest.mark.holds("sdas", "mean", "variational term")
def test_bound_is_theirs():
    method, t, x = method_of(), torch.tensor([0, 1, 500]), bytes_of("bytes", 3).double()
    noise, v = normal("noise", 3).double(), 3 * hashed("v", 3, 3, *SIZE).double() - 1.5
    eps = normal("noise", 3) + 0.5 * (hashed("eps", 3, 3, *SIZE) - 0.5)
    abar = method.schedule.abar[t].double()[:, None, None, None]
    noisy = abar.sqrt().float() * x + (1 - abar).sqrt().float() * noise
    assert method.variational(x, noisy, t, eps.double(), v).tolist() == pytest.approx(BOUND, rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("steps", [1000, 100])
@pytest.mark.holds("sdas", "forward process", "loss")
def test_loss_is_theirs_within_the_rounding_of_small_steps(steps):
    """Ours is RESCALED_MSE at every T; with T = 100 LossType.MSE would be far away."""
    method, drawn = method_of(), torch.tensor([0, 1, steps // 2, steps - 1])
    method.schedule = sdas_schedule.schedule_of(sdas_schedule.linear_betas(steps))
    loss = method.loss(Batch(bytes_of("bytes", 4), normal("noise", 4), drawn, torch.tensor([2, 0, 1, 1])))
    simple, weighted, total = LOSSES[steps]
    assert loss["simple"].item() == pytest.approx(simple, rel=1e-5)
    assert steps / 1000 * loss["vlb"].item() == pytest.approx(weighted, rel=1e-5 if steps == 1000 else 5e-5)
    assert loss["total"].item() == pytest.approx(total, rel=2e-5)
    assert steps == 1000 or abs(loss["total"].item() - PLAIN_LOSS_OF_100) > 1


@torch.no_grad()
def test_loss_of_the_classifier_is_theirs():
    drawn = torch.tensor([0, 1, 500, 999])
    batch = Batch(bytes_of("bytes", 4), normal("noise", 4), drawn, torch.tensor([2, 0, 1, 1]))
    hold("classifier's loss", method_of(classifier_steps=1).loss(batch, "classify")["total"])


class Listed:
    """Stands for a random number generator: hands out one image's part of listed noises."""

    def __init__(self, index: int):
        self.index, self.number = index, 0

    def standard_normal(self, shape, dtype):
        self.number += 1
        return normal(f"noise {self.number - 1}", 2)[self.index].numpy()


PLAIN = {"sampling_steps": 20}
DDIM, GUIDED = {**PLAIN, "sampler": "ddim"}, {"guidance_scale": 20.0, "classifier_steps": 1}


@pytest.mark.parametrize("case, strength, options", [
    ("two steps (guided diffusion)", 0.0, {"sampling_steps": 2}),
    ("ancestral (guided diffusion)", 0.0, PLAIN),
    ("ancestral, s 0.2 (RealNet)", 0.2, PLAIN),
    ("ancestral, guided (guided diffusion)", 0.0, {**PLAIN, **GUIDED}),
    ("ancestral, guided, s 0.2 (RealNet)", 0.2, {**PLAIN, **GUIDED}),
    ("ddim (guided diffusion)", 0.0, DDIM),
    ("ddim, s 0.02 (RealNet)", 0.02, DDIM),
    ("ddim, guided (guided diffusion)", 0.0, {**DDIM, **GUIDED}),
])  # fmt: skip
@pytest.mark.holds("sdas", "mean", "perturbed step", "perturbed DDIM step", "Algorithm 1", "Algorithm S1")
def test_whole_ways_back_are_theirs(case, strength, options):
    hold(case, method_of(**options).sample(LABELS.tolist(), [Listed(0), Listed(1)], [strength] * 2))


def test_gradient_of_guidance_is_theirs():
    images = 4 * hashed("image", 2, 3, *SIZE) - 2
    hold("pull", method_of(classifier_steps=1).classifier_gradient(images, torch.tensor([7, 950]), LABELS))


@torch.no_grad()
def test_average_of_the_weights_is_guided_diffusions(monkeypatch):
    monkeypatch.setattr(sdas, "EMA_DECAY", 0.9)
    method = method_of(ema_warmup=False)
    for parameter in method.network.parameters():
        parameter.mul_(0.5)
    for _ in range(2):
        method.update_average()
    hold("average", method.average.out[2].weight)


def test_bytes_are_realnets():
    hold("bytes", sdas.to_bytes(2.4 * hashed("picture", 2, 3, *SIZE) - 1.2), 1e-9)


SIMPLE = renamed(("first.", "block1."), ("second.", "block2."), ("units.", "_residual_stack._layers."),
                 (".layers.", "._block."), ("up.0.", "upblock1."), ("out.", "upblock2."))  # fmt: skip
DECODER = renamed(("units.", "decoder1.0._layers."), (".layers.", "._block."), ("reduce.0.", "decoder1.1."),
                  ("reduce.1.", "decoder1.2."), ("reduce.3.", "decoder2.0."), ("reduce.5.", "decoder2.2."),
                  ("out.", "decoder3."))  # fmt: skip


@torch.no_grad()
def test_feature_unet_is_realnets():
    network = FeatureUNet(64, groups=32)
    keys = network.state_dict()

    def name(key: str) -> str:
        path, part, last = ("." + key).rsplit(".", 2)
        if f"{path[1:]}.convolution.weight" in keys:  # a residual block, no attention
            up = f"{path[1:]}.resample.weight" in keys
            part = {"norm": "in_layers.0", "convolution": "in_layers.2", "resample": "h_upd.conv",
                    "shortcut": "x_upd.conv" if up else "skip_connection"}[part]  # fmt: skip
        path = path.replace(".down", ".input_blocks").replace(".middle", ".middle_block")
        return f"{path}.{part}.{last}".replace(".up", ".output_blocks")[1:]

    hold("feature u-net", fill_as(network, name)(4 * hashed("features", 2, 64, 8, 12) - 2))


@torch.no_grad()
def test_simple_network_is_realnets():
    network = fill_as(SimpleNetwork(6, depth=3), SIMPLE).double()
    hold("simple network", network(4 * hashed("features", 2, 6, 8, 12).double() - 2), 1e-8)


@torch.no_grad()
@pytest.mark.holds("realnet", "residual selection")
def test_selection_and_discriminator_are_realnets():
    """And the discriminator where the finest stride is 2."""
    rrs = ResidualSelection(64, by_max=10, by_mean=12, normalised=False)
    rrs = fill_as(rrs, renamed(("running", "bn_idx.running"))).double()
    judge, narrow = (fill_as(Discriminator(22, size=(n, n), side=3), DECODER).double() for n in (32, 16))
    blocks = [hashed("e 1", 2, 24, 8, 8).double() ** 2, hashed("e 2", 2, 40, 4, 4).double() ** 2]
    residuals = torch.cat([blocks[0], enlarge(blocks[1], (8, 8))], dim=1)
    hold("logits, finest stride 2", narrow(rrs(residuals)[0]), 1e-8)
    for training in (False, True):
        chosen, indices = rrs.train(training)(residuals)
        assert indices.tolist() == INDICES[training]
        for name, output in (("chosen", chosen), ("logits", judge.train(training)(chosen)),
                             ("running mean", rrs.running_mean), ("running variance", rrs.running_var)):  # fmt: skip
            hold(f"{name}, training {training}", output, 1e-8)


@pytest.mark.parametrize("case, number, channels, side, size", [
    ("both layer1", 1, 6, 8, (8, 8)), ("both layer2", 2, 9, 4, (8, 8)), ("own layer2", 2, 9, 4, (4, 4)),
])  # fmt: skip
@pytest.mark.holds("realnet", "4")
def test_afs_is_realnets(case, number, channels, side, size):
    """Two batches, whose losses add up; layers at their own size and enlarged to that of a block."""
    total = 0
    for i in range(2):
        maps = [hashed(f"{part} {number} {i}", 2, channels, side, side) for part in ("feats", "gt_feats")]
        mask = torch.zeros(2, 1, 32, 32)
        mask[:, :, 5 + i : 20, 8:27] = 1
        a, b = (enlarge(part, size) for part in maps)
        total = total + afs_losses((a - b).square(), mask, align="mask")
    hold(f"AFS {case}", total)
    assert select(total, len(AFS_INDICES[case])).tolist() == AFS_INDICES[case]
