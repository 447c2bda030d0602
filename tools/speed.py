"""Times building blocks beside their references and peers: ratios from one run, on one thread, interleaved.

    python tools/speed.py [--rounds 15] [--json FILE] [NAME ...]

Each row: median milliseconds, 5th and 95th percentile, and the ratio to the first row of its group (below 1: faster).
Peers that are not installed are left out (extra `peers`; timm where its parts can be imported).
"""

import os

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")  # before numpy

import argparse
import importlib
import json
import platform
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from adref.image import cielab, grey, morphology, msgms, nearest, otsu, perceptual_hash
from adref.layers.coordinate_attention import CoordinateAttention
from adref.layers.memory import Memory
from adref.layers.residual_selection import ResidualSelection
from adref.layers.swin import SwinBlock, explicit_attention
from adref.layers.vit import Block
from adref.losses import ms_ssim, ms_ssim_l1
from adref.method import Sources, gaussian_smooth, mean_filter
from adref.methods import METHODS, sernet, srdad
from adref.samples import random_stream
from adref.synthesis.cut_paste import cut_paste, draw_rectangle, draw_scar
from adref.synthesis.foreground import RULES, foreground
from adref.synthesis.nsa import NSA_RULES, draw_nsa, nsa
from adref.synthesis.poisson import poisson_blend

Rows = dict[str, Callable[[int], object]]  # label -> what to time, called with the number of the round


def picture(side: int = 256) -> np.ndarray:
    """A disc with a texture on a dark ground, uint8 (side, side, 3)."""
    y, x = np.mgrid[:side, :side] / side
    inside = (y - 0.5) ** 2 + (x - 0.5) ** 2 < 0.16
    waves = 0.6 + 0.2 * np.sin(60 * x) * np.cos(45 * y)
    shades = np.where(inside, waves, 0.08)[..., None] * np.array([1.0, 0.9, 0.8])
    noise = np.random.default_rng(0).normal(0, 0.02, shades.shape)
    return np.rint(255 * np.clip(shades + noise, 0, 1)).astype(np.uint8)


def generation() -> Rows:
    """One anomalous example of SRDAD at 256 x 256 with the default sizes: the sparse reference, and as it is."""
    image = torch.from_numpy(picture()).permute(2, 0, 1).float() / 255
    options = srdad.resolve(srdad.Options(anomaly_probability=1.0))

    def generate(solver: str, i: int):
        srdad.poisson_blend = partial(poisson_blend, solver=solver)
        return srdad.corrupt(image, random_stream(0, "speed", i), options, Sources(survey="bright"))

    return {"sparse LU": partial(generate, "sparse"), "fast": partial(generate, "fast")}


def blend(side: int, degrees: float) -> Rows:
    """Three channels in a square region, upright or turned."""
    region = np.pad(ndimage.rotate(np.ones((side, side)), degrees, order=1) > 0.99, 2)
    source, target = np.random.default_rng(0).random((2, 3, *region.shape))
    rows: Rows = {
        "sparse LU": lambda _: poisson_blend(source, target, region, solver="sparse"),
        "fast": lambda _: poisson_blend(source, target, region),
    }
    if cv2 := peer("cv2"):  # another problem: its boundary is the frame of the box
        patch, place = (np.rint(255 * a).astype(np.uint8).transpose(1, 2, 0) for a in (source, target))
        place, mask = np.pad(place, ((8, 8), (8, 8), (0, 0))), 255 * region.astype(np.uint8)
        centre = (place.shape[1] // 2, place.shape[0] // 2)
        rows["OpenCV seamlessClone (inexact)"] = lambda _: cv2.seamlessClone(
            patch, place, mask, centre, cv2.NORMAL_CLONE
        )
    return rows


def object_mask() -> Rows:
    """Grey values, Otsu's threshold and closing of a 256 x 256 picture."""
    image = picture()
    rows: Rows = {}
    if filters := peer("skimage.filters"):
        values, square = grey(image), np.ones((3, 3))
        rows["scikit-image, scipy"] = lambda _: ndimage.binary_closing(values > filters.threshold_otsu(values), square)
    rows["adref, from RGB"] = lambda _: morphology((values := grey(image)) > otsu(values).threshold)
    if cv2 := peer("cv2"):

        def opencv(_):
            values = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
            mask = cv2.threshold(values, 0, 1, cv2.THRESH_OTSU)[1]
            return cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))

        rows["OpenCV, from RGB"] = opencv
    return rows


def swin_block() -> Rows:
    """A shifted block on 64 x 64 x 96, batch 2, forward and backward."""
    x = torch.rand(2, 64, 64, 96, requires_grad=True)

    def run(block, _):
        return block(x).sum().backward()

    def explicit(block, _):
        fused = torch.nn.functional.scaled_dot_product_attention
        torch.nn.functional.scaled_dot_product_attention = lambda q, k, v, attn_mask: explicit_attention(
            q, k, v, attn_mask
        )
        try:
            return run(block, _)
        finally:
            torch.nn.functional.scaled_dot_product_attention = fused

    block, rows = SwinBlock(96, 3, (64, 64), 8, shifted=True), {}
    if timm := peer("timm.models.swin_transformer"):
        other = timm.SwinTransformerBlock(96, (64, 64), 3, window_size=8, shift_size=4)
        rows["timm"] = partial(run, other)
    return rows | {"explicit attention": partial(explicit, block), "adref": partial(run, block)}


def vit_block() -> Rows:
    """A ViT-Base block on 577 tokens, forward and backward."""
    x, rows = torch.rand(1, 577, 768, requires_grad=True), {}
    if timm := peer("timm.models.vision_transformer"):
        other = timm.Block(768, 8, qkv_bias=True)
        rows["timm"] = lambda _: other(x).sum().backward()
    block = Block(768, 8)
    return rows | {"adref": lambda _: block(x).sum().backward()}


def memory() -> Rows:
    """2000 items for the 24 x 24 positions of one image, forward and backward; the floor is its two matrix products."""
    x, module = torch.rand(1, 768, 24, 24, requires_grad=True), Memory(768, 2000)
    flat = x.flatten(2).transpose(1, 2)
    return {
        "two matrix products": lambda _: (flat @ module.weight.T @ module.weight).sum().backward(retain_graph=True),
        "adref": lambda _: module(x).output.sum().backward(),
    }


def attention_maps() -> Rows:
    """Coordinate attention on (8, 768, 24, 24), forward and backward."""
    x, rows = torch.rand(8, 768, 24, 24, requires_grad=True), {}
    if timm := peer("timm.layers.coord_attn"):
        other = timm.CoordAttn(768, rd_channels=24, bias=True)
        rows["timm"] = lambda _: other(x).sum().backward()
    module = CoordinateAttention(768)
    return rows | {"adref": lambda _: module(x).sum().backward()}


def pyramid() -> Rows:
    """Both forms of MS-SSIM of two batches (4, 3, 256, 256), forward and backward."""
    a, b = torch.rand(2, 4, 3, 256, 256)
    a.requires_grad_()
    rows: Rows = {}
    if other := peer("pytorch_msssim"):
        rows["pytorch-msssim, pyramid"] = lambda _: other.ms_ssim(a, b, data_range=1.0).backward()
    rows["adref, pyramid"] = lambda _: ms_ssim(a, b).mean().backward()
    rows["adref, five windows and L1"] = lambda _: sum(maps.mean() for maps in ms_ssim_l1(a, b)).backward()
    return rows


def smoothing() -> Rows:
    """A Gaussian filter of sigma 6 on a map of 384 x 384."""
    maps = torch.rand(1, 1, 384, 384)
    return {
        "scipy": lambda _: ndimage.gaussian_filter(maps[0, 0].numpy(), 6),
        "adref": lambda _: gaussian_smooth(maps, 6.0),
    }


def phash(side: int) -> Rows:
    """The perceptual hash of a decoded picture."""
    image, rows = picture(side), {}
    if other := peer("imagehash"):
        rows["ImageHash"] = lambda _: other.phash(Image.fromarray(image))
    return rows | {"adref": lambda _: perceptual_hash(image)}


def search() -> Rows:
    """The nearest of 3,416 hashes, as many as SeRNet's paper counts; ImageHash subtracts one after the other."""
    hashes, rows = np.random.default_rng(0).integers(0, 256, (3416, 8), np.uint8), {}
    own = hashes[1700] ^ np.uint8(1)
    if other := peer("imagehash"):
        known, sought = ([other.hex_to_hash(h.tobytes().hex()) for h in part] for part in (hashes, own[None]))
        rows["ImageHash"] = lambda _: min(range(len(known)), key=lambda i: known[i] - sought[0])
    return rows | {"adref": lambda _: nearest(hashes, own)}


def similarity() -> Rows:
    """The two terms of SeRNet's map of a picture of 256 x 256, filtered."""
    x, y = torch.rand(2, 1, 3, 256, 256)
    return {
        "colour": lambda _: mean_filter(
            (cielab(x) - cielab(y))[:, 1:].square().sum(dim=1, keepdim=True), 21, "reflect"
        ),
        "structure": lambda _: mean_filter(1 - msgms(x, y), 21, "reflect"),
    }


def residual_selection() -> Rows:
    """RRS of 1536 channels, whose channel statistics are normalised, beside batch norm of all their pixels."""
    residuals, norm = torch.rand(2, 1536, 64, 64), torch.nn.BatchNorm2d(1536, affine=False, momentum=0.9)
    rrs = ResidualSelection(1536, 256, 256)

    @torch.no_grad()
    def plain(mode, _):
        scores = norm.train(mode)(residuals)
        lists = [s.argsort(1, descending=True)[:, :256] for s in (scores.amax((2, 3)), scores.mean((2, 3)))]
        chosen = torch.cat(lists, 1)[:, :, None, None].expand(-1, -1, 64, 64)
        return residuals.gather(1, chosen)

    return {
        "batch norm, training": partial(plain, True),
        "adref, training": lambda _: rrs.train()(residuals),
        "batch norm, evaluation": partial(plain, False),
        "adref, evaluation": lambda _: rrs.eval()(residuals),
    }


def anomalies() -> Rows:
    """RealNet's sources at 256 x 256, draw and all."""
    image = torch.from_numpy(pixels := picture()).permute(2, 0, 1).float() / 255
    other = image.flip(2).contiguous()

    def nsa_of(name: str):
        rule = NSA_RULES[name]
        a, b = image.numpy(), other.numpy()
        return lambda i: nsa(a, b, draw_nsa(np.random.default_rng(i), a, b, rule), rule.mixed)

    return {
        "CutPaste": lambda i: cut_paste(image, draw_rectangle(np.random.default_rng(i), (256, 256))),
        "scar": lambda i: cut_paste(image, draw_scar(np.random.default_rng(i), (256, 256))),
        "NSA, source gradients": nsa_of("cable"),
        "NSA, mixed gradients": nsa_of("tile"),
        "foreground": lambda _: foreground(pixels, RULES["pill"]),
    }


def step(preset: str = "tiny") -> Rows:
    """A training step of each stage at the preset `tiny`, four images of 128 x 128."""
    images = torch.rand(4, 3, 128, 128).contiguous(memory_format=torch.channels_last)
    batch = sernet.Batch(images, images, (torch.rand(4, 1, 128, 128) > 0.9).float(), images)  # the others take less

    def train(method, stage, optimizer, _):
        optimizer.zero_grad()
        method.loss(batch, stage)["total"].backward()
        optimizer.step()

    rows: Rows = {}
    for method in METHODS.values():
        built = method(method.Options(**method.presets[preset])).to(memory_format=torch.channels_last).train()
        for stage in built.stages:
            rows[f"{method.__name__}, {stage}"] = partial(train, built, stage, built.optimizer(stage)[0])
    return rows


def peer(name: str):
    """A module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


GROUPS = {
    "natural anomaly, 256 x 256": generation,
    **{f"Poisson, {side} px{', 37 degrees' if degrees else ''}": partial(blend, side, degrees)
       for side in (32, 64, 128) for degrees in (0, 37)},
    "object mask, 256 x 256": object_mask,
    "Swin block": swin_block,
    "ViT block": vit_block,
    "memory addressing": memory,
    "coordinate attention": attention_maps,
    "MS-SSIM": pyramid,
    "Gaussian filter": smoothing,
    **{f"perceptual hash, {side} px": partial(phash, side) for side in (256, 1024)},
    "search of 3,416 hashes": search,
    "colour and structure": similarity,
    "residual selection": residual_selection,
    "anomalies of RealNet": anomalies,
    "training step, tiny": step,
}  # fmt: skip


def measure(rows: Rows, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each round; the rows take turns, so that a slow moment of the machine meets all."""
    times: dict[str, list[float]] = {label: [] for label in rows}
    for i in range(rounds + 1):
        for label, run in rows.items():
            began = time.perf_counter()
            run(i)
            times[label].append(1000 * (time.perf_counter() - began))
    return {label: found[1:] for label, found in times.items()}  # the first warms up


def main() -> int:
    """Prints the table, and writes the JSON; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="parts of the names of the groups to run [all]")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, numpy {np.__version__}, one thread"
    )
    result = {}
    for name, group in GROUPS.items():
        if arguments.names and not any(word in name for word in arguments.names):
            continue
        rounds = arguments.rounds * 10 if group is generation else arguments.rounds  # its sizes are drawn
        result[name], first = {}, None
        for label, times in measure(group(), rounds).items():
            low, median, high = np.percentile(times, (5, 50, 95))
            first = first or median
            result[name][label] = {"median_ms": median, "p5_ms": low, "p95_ms": high, "ratio": median / first}
            print(
                f"{name:28s} {label:32s} {median:9.2f} ms  [{low:.2f}, {high:.2f}]  x {median / first:.2f}", flush=True
            )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(result, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
