"""Pins golden values: numbers of this code, kept to notice change.

python tools/golden.py            compares every case with tests/golden/*.json; exit code 1 where one differs
python tools/golden.py --write    replaces them and prints the largest change of each

Inputs and weights come from an integer hash (hash_recipe.py). The kit of conformance.py holds float32 cases with
tolerances for other machines; these numbers are float64, and gradients and steps of the optimizer are among them.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from unittest import mock

import hash_recipe
import numpy as np
import torch
from conformance_cases import reconstructions

from adref.layers.aspp import ASPP
from adref.layers.channel_cross_attention import CrossAttentionLayer, CrossFusion
from adref.layers.coordinate_attention import CoordinateAttention
from adref.layers.diffusion_unet import (
    AttentionPool,
    DiffusionUNet,
    NoisyClassifier,
    ResidualBlock,
    SelfAttention,
    Step,
    step_embedding,
)
from adref.layers.efficientnet import EfficientNetB4, InvertedResidual, SqueezeExcite
from adref.layers.memory import Memory, entropy
from adref.layers.mobilenet import EfficientNetLite0, LinearBottleneck, MobileNetV2, SameConvolution
from adref.layers.resnet import ResNet, ResNetBlock
from adref.layers.selective_kernel import SelectiveKernelFusion
from adref.layers.swin import MLP, PatchExpanding, PatchMerging, SwinBlock, WindowAttention
from adref.layers.unet import Autoencoder, PlainUNet, UNet
from adref.layers.vit import Attention, Block, PatchEmbedding, VisionTransformer
from adref.method import Sources
from adref.methods.draem.method import DRAEM, Batch
from adref.methods.noise_to_norm import method as noise_method
from adref.methods.noise_to_norm.loss import ms_ssim_l1
from adref.methods.noise_to_norm.method import NoiseToNorm
from adref.methods.noise_to_norm.network import MNet, ResidualAttention, SelectiveDense
from adref.methods.patchcore.method import PatchCore
from adref.methods.realnet import method as realnet_method
from adref.methods.realnet.cut_paste import CutPasteNumbers, cut_paste
from adref.methods.realnet.foreground import RULES, foreground, triangle
from adref.methods.realnet.method import RealNet
from adref.methods.realnet.networks import Discriminator, FeatureResidual, FeatureUNet, ResidualUnit, SimpleNetwork
from adref.methods.realnet.nsa import NSAPatch, NSARule, nsa
from adref.methods.realnet.selection import ResidualSelection, afs_losses
from adref.methods.sdas import method as sdas_method
from adref.methods.sdas.method import SDAS
from adref.methods.sernet import method as sernet_method
from adref.methods.sernet.anomalies import SourceNumbers, blend_source, recombine, shift_colour, transform
from adref.methods.sernet.map import cielab, msgms
from adref.methods.sernet.method import SeRNet
from adref.methods.sernet.similar import perceptual_hash
from adref.methods.srdad.anomalies import Alteration, alter, object_mask
from adref.methods.srdad.discriminator import ResSE, ResSEUNet
from adref.methods.srdad.method import SRDAD
from adref.methods.srdad.reconstructor import SWIN_UNET, GatedSkip, Stage, SwinUNet
from adref.methods.vit_autoencoder import method as vit_method
from adref.methods.vit_autoencoder.decoder import Decoder
from adref.methods.vit_autoencoder.method import ViTAutoencoder
from adref.ops.filters import gaussian_smooth, mean_filter
from adref.ops.image import grey, morphology, otsu
from adref.ops.losses import focal, ssim
from adref.ops.metrics import pixel_metrics
from adref.ops.perlin import perlin
from adref.ops.poisson import poisson_blend
from adref.ops.texture_anomaly import blend
from adref.ops.textures import OPERATIONS, apply_operations

FOLDER = Path(__file__).parent.parent / "tests" / "golden"
TOLERANCE = 2e-5  # relative; of what stays in float32, sums in another order on another processor are below it
SINGLE = {"sdas": 2e-4}  # cases that compute in float32, whatever they are given


def hashed(name: str, *shape: int) -> torch.Tensor:
    """Computes hashed numbers in the default type."""
    return hash_recipe.hashed(name, *shape).to(torch.get_default_dtype())


def fill(module: torch.nn.Module) -> torch.nn.Module:
    """Fills a module with hashed weights in the default type."""
    return hash_recipe.fill(module, torch.get_default_dtype())


def numbers_of(name: str) -> list[float]:
    """Computes the numbers of a case in float64.

    In float32, gradients through batch norm differ by several per cent between two kinds of processor.
    """
    single = torch.Tensor.float
    if name not in SINGLE:
        torch.set_default_dtype(torch.float64)
        torch.Tensor.float = torch.Tensor.double  # losses convert half precision with it
    try:
        return CASES[name]()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.Tensor.float = single


def digest(*tensors: torch.Tensor) -> list[float]:
    """Returns mean, standard deviation and nine elements of each tensor: enough to notice any change."""
    numbers = []
    for tensor in tensors:
        flat = torch.as_tensor(tensor).detach().double().flatten()
        picks = torch.linspace(0, flat.numel() - 1, 9).long()
        numbers += [flat.mean().item(), flat.std(correction=0).item(), *flat[picks].tolist()]
    return numbers


# -- the cases: name -> numbers ---------------------------------------------------------------------------------------


def autoencoder() -> list[float]:
    network = fill(Autoencoder(4))
    return digest(network(hashed("images", 2, 3, 32, 48)))


def unet() -> list[float]:
    return digest(fill(UNet(4))(hashed("pairs", 2, 6, 64, 32)))


def losses() -> list[float]:
    a, b = hashed("a", 2, 3, 24, 20), hashed("b", 2, 3, 24, 20)
    probabilities, mask = hashed("logits", 2, 2, 24, 20).softmax(1), (hashed("mask", 2, 1, 24, 20) > 0.8).float()
    windows = [ssim(a, b, window=w, padding=p).item() for w in ("gaussian", "uniform") for p in ("zero", "valid")]
    return [*windows, focal(probabilities, mask).item(), focal(probabilities, mask, alpha=0.25, smooth=0).item()]


def metrics() -> list[float]:
    maps = hashed("maps", 3, 20, 20).numpy()
    masks = (torch.nn.functional.avg_pool2d(hashed("defects", 3, 20, 20), 3, 1, 1) > 0.6).numpy()
    return [value for _, value in sorted(pixel_metrics(list(maps), list(masks)).items())]


def synthesis() -> list[float]:
    angles = hashed("angles", 5, 9).double().numpy() * 2 * np.pi
    texture = (hashed("texture", 32, 32, 3) * 256).byte().numpy()
    numbers = {
        "gamma": (0.7, 1.0, 1.6), "brightness": ("Lab", 1.1, -12, True), "sharpness": (1.7,),
        "hue_and_saturation": (25, -30), "solarise": (90,), "posterise": (3,), "invert": (), "autocontrast": (8,),
        "equalise": (), "rotate": (21.0,),
    }  # fmt: skip
    changed = [torch.from_numpy(apply_operations(texture, ((name, numbers[name]),)).copy()) for name in OPERATIONS]
    mask = (hashed("mask", 1, 32, 32) > 0.7).float()
    mixed = blend(hashed("image", 3, 32, 32), hashed("texture", 3, 32, 32), mask, 0.6)
    return digest(torch.from_numpy(perlin(angles, (32, 48))), mixed, *changed)


def swin() -> list[float]:
    """Runs each piece of layers/swin.py, on rectangles and with shifted windows."""
    maps, windows = hashed("map", 2, 8, 16, 12), hashed("windows", 2, 3, 16, 12)
    layers = (PatchMerging(12), PatchExpanding(12, 2, 6), MLP(12, 20),
              *(SwinBlock(width=12, heads=3, size=(8, 16), window=4, shifted=s) for s in (False, True)))  # fmt: skip
    return digest(fill(WindowAttention(12, 3, (4, 4)))(windows), *(fill(layer)(maps) for layer in layers))


def swin_unet() -> list[float]:
    """Runs SRDAD's form, Swin-Unet's, and the pieces of both."""
    images, maps = hashed("images", 1, 3, 64, 128), hashed("map", 2, 8, 8, 12)
    own = {"size": (64, 128), "width": 12, "window": 4, "aspp_width": 24, "residual": "level", "skips": "final_sum",
           "skip_levels": 4, "gates": "channel"}  # fmt: skip
    networks = (SwinUNet(**{**own, **changes}) for changes in ({}, {"aspp_width": 8, "skips": "inline"}, SWIN_UNET))
    stage = fill(Stage(width=12, heads=3, size=(8, 8), window=4, depth=2, residual="level"))
    gate = fill(GatedSkip(width=12, gates="channel"))
    return digest(stage(maps), gate(maps, hashed("decoded", 2, 8, 8, 12)), *(fill(n)(images) for n in networks))


def aspp() -> list[float]:
    layers = [ASPP(width=16, branch_width=width, rates=(1, 2, 6)) for width in (4, 5)]
    return digest(*(fill(layer)(hashed("map", 2, 16, 8, 6)) for layer in layers))


def channel_cross_attention() -> list[float]:
    widths = (2, 4, 6)
    tokens = [hashed(f"tokens {c}", 2, 12, c) for c in widths]
    maps = [hashed(f"map {c}", 2, c, 32 // 2**i, 64 // 2**i) for i, c in enumerate(widths)]
    code = {"heads": 4, "attention": "channel", "scale": "sum", "instance_norm": True, "residual": "official",
            "output": True, "bias": False}  # fmt: skip
    text = {"heads": 2, "attention": "token", "scale": "own", "instance_norm": False, "residual": "eq14",
            "output": False, "bias": False}  # fmt: skip
    layers = [CrossAttentionLayer(widths=widths, dropout=0.1, **form) for form in (code, text)]
    outputs = [output for layer in layers for output in fill(layer)(tokens)]
    form = {"size": (32, 64), "patches": (16, 8, 4), "layers": 2, "add_input": True, "dropout": 0.1, **code}
    return digest(*outputs, *fill(CrossFusion(widths=widths, **form))(maps))


def res_se_unet() -> list[float]:
    form = {
        "heads": 4,
        "attention": "channel",
        "scale": "sum",
        "instance_norm": True,
        "residual": "official",
        "output": True,
        "bias": False,
        "patches": (16, 8, 4, 2),
        "layers": 1,
        "add_input": True,
        "dropout": 0.1,
    }
    fusion = CrossFusion(size=(64, 32), widths=(4, 8, 16, 32), **form)
    network = fill(ResSEUNet(width=4, fusion=fusion))
    return digest(network(hashed("pairs", 1, 6, 64, 32)), fill(ResSE(32))(hashed("map", 2, 32, 6, 10)))


def poisson() -> list[float]:
    """Blends with both kinds of boundary and of gradient, in a rectangle and in another region."""
    source, target = (hashed(name, 3, 20, 24).double().numpy() for name in ("source", "target"))
    y, x = np.mgrid[:20, :24]
    regions = ((y > 2) & (y < 17) & (x > 3), (abs(y - 9) + abs(x - 12) < 9) | (x < 6))
    blends = [poisson_blend(source, target, region, stiffness, mixed).values
              for region in regions for stiffness in (None, 1.0) for mixed in (False, True)]  # fmt: skip
    return digest(*map(torch.from_numpy, blends))


def image() -> list[float]:
    picture = (hashed("picture", 24, 20, 3) * 256).byte().numpy()
    values = grey(picture)
    mask = values > otsu(values).threshold
    masks = [torch.from_numpy(morphology(mask, kind).astype(np.float32)) for kind in ("closing", "opening")]
    return [*map(float, otsu(values)), *digest(torch.from_numpy(values), *masks)]


def vit() -> list[float]:
    """Runs each piece of layers/vit.py, and encoders on a rectangle."""
    tokens, images = hashed("tokens", 2, 7, 12), hashed("images", 2, 3, 32, 48)
    form = {"size": (32, 48), "patch": 8, "width": 12, "depth": 2, "heads": 3}
    encoders = [VisionTransformer(**form, class_token=token) for token in ("drop", "add", "none")]
    pieces = (fill(Attention(12, 3))(tokens), fill(Block(12, 3))(tokens), fill(PatchEmbedding(8, 12))(images))
    return digest(*pieces, *(fill(encoder)(images) for encoder in encoders))


def memory() -> list[float]:
    """Reads a memory by both ways to address, and without any item left."""
    maps = hashed("map", 2, 12, 3, 5) - 0.5
    form = {"width": 12, "items": 30, "addressing": "cosine", "temperature": 1.0, "threshold": None}
    changes = ({}, {"addressing": "dot", "threshold": 0.0025}, {"temperature": 0.1}, {"threshold": 0.9})
    recalls = [fill(Memory(**form | c))(maps) for c in changes]
    return digest(*(t for r in recalls for t in (r.output, r.weights, entropy(r.weights), r.empty.float())))


def coordinate_attention() -> list[float]:
    maps = hashed("map", 2, 40, 6, 10) - 0.5
    return digest(fill(CoordinateAttention(width=40, reduction=4))(maps))


def selective_kernel() -> list[float]:
    maps = [hashed(f"map {i}", 2, 24, 6, 10) - 0.5 for i in range(4)]
    return digest(fill(SelectiveKernelFusion(width=24, count=4, reduction=8))(maps))


def residual_attention() -> list[float]:
    maps = hashed("map", 2, 12, 6, 10) - 0.5
    blocks = (ResidualAttention(12, 16, reduction=8, convolutions=True, padding="zeros"),
              SelectiveDense(12, 16, reduction=8, padding="zeros"))  # fmt: skip
    return digest(*(fill(block)(maps) for block in blocks))


def multi_scale() -> list[float]:
    """Computes MS-SSIM and L1 of noise-to-norm, and the Gaussian filter of maps."""
    a, b = hashed("a", 2, 3, 40, 48), hashed("b", 2, 3, 40, 48)
    windows = {"sigmas": (0.5, 1.0, 2.0, 4.0, 8.0), "constants": (0.01**2, 0.03**2)}
    pair = ms_ssim_l1(a, 0.7 * a + 0.3 * b, **windows)
    return digest(*pair, gaussian_smooth(a, 1.5), gaussian_smooth(a, 15.0))


def draem() -> list[float]:
    """Runs DRAEM at a small size; see `one_step`."""
    options = DRAEM.Options(
        size=(64, 64), reconstruction_width=4, discriminator_width=4, learning_rate=1e-3, score_window=5
    )
    return one_step(fill(DRAEM(options)), ("0.weight",), ("reconstructor.out", "discriminator.out"))


def srdad() -> list[float]:
    """Runs SRDAD at a small size, its altered patch and its mask of the object; see `one_step`."""
    options = SRDAD.Options(
        size=(64, 64), width=12, window=4, aspp_width=24, discriminator_width=4, learning_rate=1e-3, score_window=5,
        attention_dropout=0.0,
    )  # fmt: skip
    patch, noise = (hashed(name, 3, 9, 13).double().numpy() for name in ("patch", "noise"))
    warped = alter(patch, Alteration(0.1 * noise, 1.1, 0.05, 0.7, 1.15))
    y, x = np.mgrid[:64, :64]
    part = np.where((y - 30) ** 2 + (x - 34) ** 2 < 400, 0.7, 0.1) + 0.1 * hashed("part", 3, 64, 64).double().numpy()
    pictures = [warped.values, warped.support.astype(float), object_mask(part, options, "bright").astype(float)]
    stepped = one_step(fill(SRDAD(options)), ("0.weight", "qkv.weight"), ("reconstructor.out", "discriminator.out"))
    return [*digest(*map(torch.from_numpy, pictures)), *stepped]


def vit_autoencoder() -> list[float]:
    """Runs the ViT autoencoder at a small size, both decoders; see `train_step`."""
    own = {"size": (32, 64), "width": 24, "depth": 1, "heads": 2, "memory_items": 20, "decoder_width": 32}
    method = fill(ViTAutoencoder(ViTAutoencoder.Options(**own, patch=8, learning_rate=1e-3)))
    images = hashed("images", 2, 3, 32, 64)
    rebuilt, recall = method(images)
    numbers = [*digest(rebuilt, recall.output, recall.weights, *method.score(images), method.anomaly_map(images)),
               *digest(fill(Decoder(width=24, size=(32, 64), kind="pow2", first=32, norm="batch", last_block="plain"))(
                   hashed("map", 2, 24, 2, 4)))]  # fmt: skip
    return numbers + train_step(method, vit_method.Batch(images), ("qkv.weight", "memory.weight"), ("encoder.norm",))


def noise_to_norm() -> list[float]:
    """Runs noise-to-norm at a small size, M-nets with every block; see `train_step`."""
    options = NoiseToNorm.Options(size=(32, 64), width=8, sigmas=(0.5, 1.0, 2.0), learning_rate=1e-3)
    method, images = fill(NoiseToNorm(options)), hashed("images", 2, 3, 32, 64)
    noisy = noise_method.blend(images, hashed("noise", 2, 3, 32, 64), options)
    form = {"width": 8, "levels": 3, "level0": True, "padding": "zeros"}
    networks = [fill(MNet(kind=kind, **form))(images) for kind in ("full", "min", "conv1x1", "skrdb")]
    numbers = digest(method(noisy), *networks, *method.score(images), reconstructions(method, images))
    batch = noise_method.Batch(images, noisy)
    return numbers + train_step(method, batch, ("shortcut.weight",), ("network.last", "network.stems.0"))


def plain_unet() -> list[float]:
    """Runs SeRNet's U-Net with every kind of skip."""
    images = hashed("images", 2, 3, 32, 48)
    networks = [PlainUNet(channels=2, widths=(4, 6, 8), skip=skip) for skip in ("concat", "add", "none")]
    return digest(*(fill(network)(images) for network in networks))


def similarity() -> list[float]:
    """Computes perceptual hash, CIELAB, MSGMS and the mean filter."""
    x, y = hashed("x", 2, 3, 32, 48), hashed("y", 2, 3, 32, 48)
    own = [torch.from_numpy(perceptual_hash((255 * p.permute(1, 2, 0)).byte().numpy())) for p in (*x, *y)]
    maps = [msgms(x, y, 3, padding=padding) for padding in ("zero", "replicate", "none")] + [msgms(x, y, 2, grey=True)]
    return digest(*own, cielab(x), *maps, *(mean_filter(x, 7, border) for border in ("zero", "reflect")))


def pseudo_anomaly() -> list[float]:
    """Applies given draws of PPA and DPA."""
    numbers = SourceNumbers((2, 0, 3, 1), (1.2, 0.8, 1.1), 30.0, 0.9, (0.05, -0.08))
    source = transform(recombine([(255 * hashed(f"{i}", 3, 32, 48)).byte() for i in range(4)], numbers.order), numbers)
    image, mask = hashed("image", 3, 32, 48), (hashed("mask", 1, 32, 48) > 0.5).float()
    shifted = shift_colour(image, mask, (0.2, -0.1, 0.15))
    return digest(source, *(blend_source(image, source, mask, 0.3, on) for on in ("original", "source")), shifted)


def sernet() -> list[float]:
    """Runs SeRNet at a small size, a search in the bank, the repair, and a step of each stage; see `train_step`."""
    own = {"size": (32, 64), "width": 4, "msgms_scales": 3, "smooth_side": 5, "learning_rate": 1e-3, "threshold": 0.505}
    method, images = fill(SeRNet(SeRNet.Options(**own))), hashed("images", 2, 3, 32, 64)
    method.bank.fill([(255 * picture).byte() for picture in hashed("bank", 3, 3, 32, 64)])
    similar, _ = method.find_similar(images)
    numbers = digest(similar, *method(images, similar), *method.score(images), reconstructions(method, images))
    mask = (hashed("mask", 2, 1, 32, 64) > 0.9).float()
    batch = sernet_method.Batch(images, hashed("corrupted", 2, 3, 32, 64), mask, similar)
    for stage, part in (("reconstruct", "reconstructor"), ("segment", "segmenter")):
        numbers += train_step(method, batch, ("blocks.0.3.weight",), (f"{part}.out",), stage)
    return numbers


def diffusion_unet() -> list[float]:
    """Runs each piece of layers/diffusion_unet.py, with and without labels."""
    x, steps, labels = hashed("x", 2, 3, 16, 24), torch.tensor([950, 3]), torch.tensor([0, 2])
    maps, embedding = hashed("maps", 2, 32, 8, 12), hashed("embedding", 2, 128)
    blocks = [ResidualBlock(32, 32 * (1 + i), 128, resample=kind, groups=32)
              for i, kind in enumerate(("none", "down", "up"))]  # fmt: skip
    form = {"width": 32, "multipliers": (1, 2), "blocks": 1, "attention": (2,), "head_width": 32, "groups": 32}
    return digest(
        step_embedding(steps, 32),
        *(fill(block)(maps, embedding) for block in blocks),
        fill(SelfAttention(32, head_width=16, groups=32))(maps),
        fill(Step(blocks[0]))(maps, embedding),
        fill(AttentionPool(32, 96, 5, head_width=16))(maps),
        fill(DiffusionUNet(**form))(x, steps),
        fill(DiffusionUNet(**form, classes=3))(x, steps, labels),
        fill(NoisyClassifier(3, (16, 24), **form))(x, steps),
    )


def feature_unet() -> list[float]:
    """Runs both of RealNet's networks that rebuild features, and their pieces."""
    maps = hashed("maps", 2, 16, 8, 12)
    blocks = [
        FeatureResidual(16, width, kind, 4) for width, kind in ((16, "none"), (24, "none"), (16, "up"), (16, "down"))
    ]
    layers = (*blocks, FeatureUNet(16, groups=4), ResidualUnit(16, 8, side=3), SimpleNetwork(16, depth=2))
    return digest(*(fill(layer)(maps) for layer in layers))


def backbones() -> list[float]:
    """Runs every frozen extractor; batch norms have hashed statistics."""
    outputs = []
    for network in (ResNet("resnet18"), ResNet("resnet50"), EfficientNetB4(), MobileNetV2(), EfficientNetLite0()):
        for name, buffer in fill(network).named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(hashed(name, *buffer.shape) + 0.5 * name.endswith("running_var"))
        outputs += network.eval()(hashed("images", 1, 3, 64, 96))
    maps = hashed("maps", 2, 16, 8, 12)
    pieces = (SqueezeExcite(16, 4), InvertedResidual(16, 16, 6, 5, 1), LinearBottleneck(16, 24, 2),
              SameConvolution(16, 24, 3, 2), ResNetBlock(16, 8, 32, 2, True))  # fmt: skip
    return digest(*outputs, *(fill(piece).eval()(maps) for piece in pieces))


def feature_selection() -> list[float]:
    """Computes AFS losses by both alignments."""
    difference, mask = hashed("difference", 2, 5, 8, 12), (hashed("mask", 2, 1, 32, 48) > 0.7).float()
    return digest(*(afs_losses(difference, mask, align=align) for align in ("mask", "feature")))


def residual_selection() -> list[float]:
    """Runs RRS in training and evaluation, and the discriminator."""
    maps, outputs = hashed("maps", 2, 12, 8, 12), []
    for normalised in (False, True):
        rrs = ResidualSelection(12, by_max=3, by_mean=4, normalised=normalised)
        for mode in (True, False):
            outputs += [t.float() for t in rrs.train(mode)(maps)]
        outputs += [rrs.running_mean, rrs.running_var]
    return digest(*outputs, *(fill(Discriminator(12, size=(32, 48), side=side))(maps) for side in (3, 1)))


def sdas() -> list[float]:
    """Runs SDAS at a small size: tables, a training step, the averaged weights, pictures of both samplers."""
    own = {"size": (16, 24), "width": 32, "multipliers": (1, 2), "blocks": 1, "attention_factors": (2,)}
    options = SDAS.Options(**own, head_width=32, categories=("a", "b"), batch_size=2, accumulation=1)
    method = fill(SDAS(options))
    batch = sdas_method.Batch(2 * hashed("image", 2, 3, 16, 24) - 1, 2 * hashed("noise", 2, 3, 16, 24) - 1,
                              torch.tensor([0, 700]), torch.tensor([0, 1]))  # fmt: skip
    numbers = digest(*method.schedule[1:], *method.sampling_schedule()[1:])
    numbers += train_step(method, batch, ("out.2.weight",), ("network.out.2",))

    class Hashed:
        """Stands for a generator: the same numbers in any language."""

        def __init__(self, name: str):
            self.name, self.calls = name, 0

        def standard_normal(self, shape, kind):
            self.calls += 1
            return (4 * hashed(f"{self.name} {self.calls}", *shape) - 2).numpy().astype(kind)

    for changes in ({}, {"sampler": "ddim"}):
        method.options = dataclasses.replace(options, sampling_steps=4, **changes)
        numbers += digest(method.sample([0, 1], [Hashed("first"), Hashed("second")], [0.0, 0.2]))
    return numbers + digest(method.average.out[2].weight)


def cut_and_paste() -> list[float]:
    """Applies given draws of CutPaste and NSA, and finds the foreground."""
    image, other = hashed("image", 3, 64, 48), hashed("other", 3, 64, 48)
    numbers = CutPasteNumbers((5, 7), (20, 12), 30.0, (30, 20), (1.1, 0.9, 1.05), 0.08)
    patches = [NSAPatch((3, 4), (12, 16), (15, 20), (10, 12)), NSAPatch((30, 20), (10, 9), (8, 7), (40, 30))]
    blends = [torch.from_numpy(x) for mixed in (False, True)
              for x in nsa(image.numpy(), other.numpy(), patches, NSARule(mixed=mixed))]  # fmt: skip
    picture = (255 * image.permute(1, 2, 0)).byte().numpy()
    found = [torch.from_numpy(foreground(picture, RULES[name]).astype(np.float32)) for name in ("pcb1", "01", "pill")]
    return digest(*cut_paste(image, numbers), *blends, *found, torch.tensor([float(triangle(picture[..., 1]))]))


def realnet() -> list[float]:
    """Runs RealNet at its smallest size, both networks; see `train_step`."""
    own = {"size": (128, 128), "backbone": "mobilenet_v2", "widths": (16, 16, 32, 16), "groups": 4}
    numbers = []
    for network in ("simple", "unet"):
        options = RealNet.Options(**own, network=network, learning_rate=1e-3, score_window=8)
        with mock.patch.object(realnet_method, "SIMPLE_DEPTH", 1):
            method = fill(RealNet(options)).eval()
        method.selected_0.copy_(torch.arange(4, 20))
        images, corrupted = (hashed(name, 2, 3, 128, 128) for name in ("images", "corrupted"))
        outcome = method(images)
        numbers += digest(*outcome.rebuilt, outcome.residuals, outcome.chosen, *method.score(images))
        method.add_afs_losses(images, corrupted, mask := (hashed("mask", 2, 1, 128, 128) > 0.9).float())
        numbers += digest(*(getattr(method, f"afs_losses_{k}") for k in range(4)))
        batch = realnet_method.Batch(images, corrupted, mask)
        layers = ("discriminator.out.2", *(["networks.0.out.2"] if network == "unet" else []))
        numbers += train_step(method, batch, ("convolution.weight",), layers)
    return numbers


def patchcore() -> list[float]:
    """Fills a memory and scores by it, with both descriptions of a patch; the coreset itself is drawn elsewhere."""
    numbers, images = [], hashed("images", 2, 3, 64, 64)
    for width in (None, 200):
        o = PatchCore.Options(size=(64, 64), backbone="efficientnet_lite0", width=width, coreset=1)
        method = fill(PatchCore(o))
        pictures = [(255 * hashed(f"picture {i}", 3, 64, 64)).byte() for i in range(3)]
        method.prepare(Sources(images=pictures), "train", lambda *_: np.random.default_rng(0))
        numbers += digest(method.bank, method.features(images), *method.score(images))
    return numbers


def one_step(method, gradients_of: tuple[str, ...], layers: tuple[str, ...]) -> list[float]:
    """Digests outputs, map, score and reconstruction, then `train_step`."""
    images = hashed("images", 2, 3, 64, 64)
    maps = method.anomaly_map(images)
    numbers = digest(*method(images), maps, *method.image_scores(maps).values(), reconstructions(method, images))
    batch = Batch(images, hashed("corrupted", 2, 3, 64, 64), (hashed("mask", 2, 1, 64, 64) > 0.9).float())
    return numbers + train_step(method, batch, gradients_of, layers)


def train_step(
    method, batch, gradients_of: tuple[str, ...], layers: tuple[str, ...], stage: str | None = None
) -> list[float]:
    """Returns every loss term, gradient norms, and digests of weights after one step of the optimizer."""
    stage = stage or method.stages[0].name
    terms = method.train().loss(batch, stage)
    optimizer, _ = method.optimizer(stage)
    terms["total"].backward()
    named = [(name, p) for name, p in method.named_parameters() if p.grad is not None]
    gradients = [p.grad.norm() for name, p in named if name.endswith(gradients_of)]
    optimizer.step()
    return [*(v.item() for v in terms.values()), *map(float, gradients),
            *digest(*(method.get_submodule(layer).weight for layer in layers))]  # fmt: skip


CASES = {
    f.__name__: f
    for f in (autoencoder, unet, losses, metrics, synthesis, draem, swin, swin_unet, aspp, channel_cross_attention,
              res_se_unet, poisson, image, srdad, vit, memory, coordinate_attention, selective_kernel,
              residual_attention, multi_scale, vit_autoencoder, noise_to_norm, plain_unet, similarity, pseudo_anomaly,
              sernet, diffusion_unet, feature_unet, residual_selection, sdas, backbones,
              feature_selection, cut_and_paste, realnet, patchcore)
}  # fmt: skip


def largest_change(before: list[float], after: list[float]) -> float:
    """Returns the largest relative difference; infinite for lists of different lengths."""
    if len(before) != len(after):
        return float("inf")
    return max(abs(a - b) / max(abs(a), abs(b), 1e-3) for a, b in zip(before, after))


def main() -> int:
    """Compares or writes; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="replace the stored numbers")
    write, failed = parser.parse_args().write, False
    for name in CASES:
        path, numbers = FOLDER / f"{name}.json", numbers_of(name)
        before = json.loads(path.read_text()) if path.exists() else []
        change = largest_change(before, numbers)
        print(f"{name:12s} {len(numbers):4d} numbers, largest relative change {change:.2e}")
        if write:
            path.write_text(json.dumps(numbers) + "\n")
        failed |= change > SINGLE.get(name, TOLERANCE) and not write
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
