"""The building blocks that tools/speed.py times beside their references and peers, and the limits of the machine.

What a label says: "adref ..." is this package; a label in round brackets marks what is no equal of it (a floor, another
definition, an inexact result); all others are peers that compute the same. Where both return their result, the command
compares them.
"""

import copy
import importlib
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage

from adref.data.examples import random_stream, resize, to_tensor
from adref.data.reader import read_image
from adref.layers.aspp import ASPP
from adref.layers.channel_cross_attention import CrossAttentionLayer
from adref.layers.coordinate_attention import CoordinateAttention
from adref.layers.memory import Memory
from adref.layers.published import normalise
from adref.layers.resnet import ResNet
from adref.layers.swin import SwinBlock, explicit_attention
from adref.layers.vit import Block
from adref.method import Sources
from adref.methods.noise_to_norm.loss import ms_ssim, ms_ssim_l1
from adref.methods.realnet.cut_paste import cut_paste, draw_rectangle, draw_scar
from adref.methods.realnet.foreground import RULES, foreground
from adref.methods.realnet.nsa import NSA_RULES, draw_nsa, nsa
from adref.methods.realnet.selection import ResidualSelection
from adref.methods.sernet.map import cielab, msgms
from adref.methods.sernet.similar import nearest, perceptual_hash
from adref.methods.srdad import method as srdad
from adref.methods.srdad import options as srdad_options
from adref.ops.filters import gaussian_smooth, mean_filter
from adref.ops.image import grey, morphology, otsu
from adref.ops.losses import focal, gaussian_window, ssim
from adref.ops.metrics import pixel_metrics
from adref.ops.perlin import PerlinNumbers, perlin
from adref.ops.poisson import poisson_blend
from adref.studies import complexity
from adref.studies.tsne import exact_tsne


class Row(NamedTuple):
    """One thing to time."""

    run: Callable[[int], object]  # called with the number of the round
    flop: float = 0.0  # floating-point operations of a call, two a multiply-add; 0: they are not counted
    precision: str = "fp32"  # whose limit counts: fp32 or bf16
    note: Callable[[dict[str, float]], str] = lambda medians: ""  # says something of the group's medians


DRAWN = "natural anomaly, 256 x 256"  # the group whose sizes differ from round to round: it needs more of them
Rows = dict[str, Callable[[int], object] | Row]  # by label; a bare function is a row without the rest


def peer(name: str) -> ModuleType | None:
    """A module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def picture(side: int = 256) -> np.ndarray:
    """A disc with a texture on a dark ground, uint8 (side, side, 3)."""
    y, x = np.mgrid[:side, :side] / side
    inside = (y - 0.5) ** 2 + (x - 0.5) ** 2 < 0.16
    waves = 0.6 + 0.2 * np.sin(60 * x) * np.cos(45 * y)
    shades = np.where(inside, waves, 0.08)[..., None] * np.array([1.0, 0.9, 0.8])
    noise = np.random.default_rng(0).normal(0, 0.02, shades.shape)
    return np.rint(255 * np.clip(shades + noise, 0, 1)).astype(np.uint8)


def learn(call: Callable[[], torch.Tensor], *_) -> torch.Tensor:
    """Forward and backward; returns the loss."""
    loss = call()
    loss.backward()
    return loss


# -- floating-point operations and the machine's limits ---------------------------------------------------------------

BACKWARD = {  # multiply-adds of the gradients, beside those that complexity.COUNTS has; a product's are products again
    "aten.convolution_backward": lambda output, gradient, x, weight, *rest: (
        sum(rest[-1][:2]) * complexity.convolution(gradient, x, weight, None, *rest[1:5])
    ),
    **{f"{name}_backward": lambda output, gradient, q, k, v, *_, **__: 2 * complexity.attention(output, q, k, v)
       for name in complexity.COUNTS if "attention" in name},
}  # fmt: skip


def count_flop(call: Callable[[], object]) -> float:
    """Floating-point operations of a call, gradients too: twice the multiply-adds of adref.study complexity."""
    with mock.patch.dict(complexity.COUNTS, BACKWARD), complexity.Counter() as counter:
        call()
    return 2.0 * sum(counter.found.values())


def limits(device: torch.device) -> dict[str, Row]:
    """What the machine can do: a square matrix product, and a 3 x 3 convolution of 64 channels (of 256 on CUDA)."""
    side, width, count = (8192, 256, 64) if device.type == "cuda" else (512, 64, 1)  # small: some CPUs have no bf16
    rows = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = torch.rand(2, side, side, device=device, dtype=dtype)
        rows[f"limit, {precision} matrix product"] = Row(lambda _, a=a, b=b: (a @ b, None)[1], 2.0 * side**3, precision)
        x = torch.rand(count, width, 64, 64, device=device, dtype=dtype)
        weight = torch.rand(width, width, 3, 3, device=device, dtype=dtype)
        for name, form in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
            pair = [t.to(memory_format=form) for t in (x, weight)]
            rows[f"limit, {precision} convolution, {name}"] = Row(
                lambda _, pair=pair: (F.conv2d(*pair, padding=1), None)[1], 18.0 * x.numel() * width, precision
            )
    return rows


def with_limits(rows: dict[str, Row]) -> dict[str, Row]:
    """Rows, and behind them what the machine can do in the precisions that they have."""
    used = {row.precision for row in rows.values()}
    measured = limits(torch.empty(0).device).items()
    return rows | {label: row for label, row in measured if row.precision in used and "contiguous" not in label}


# -- metrics and losses -----------------------------------------------------------------------------------------------


def pixels() -> Rows:
    """Pixel metrics of 32 maps of 256 x 256, half of them with two defects; peers know the area under the ROC alone."""
    rng, masks = np.random.default_rng(0), np.zeros((32, 256, 256), bool)
    masks[::2, 40:80, 50:90], masks[::2, 150:170, 100:200] = True, True
    maps = np.stack([ndimage.gaussian_filter(rng.random((256, 256)), 2) for _ in masks]).astype(np.float32)
    maps += 0.03 * masks * rng.random(masks.shape, np.float32)
    scores, labels = maps.ravel(), masks.ravel()
    rows: Rows = {"one numpy.sort of all scores (floor)": lambda _: (np.sort(scores), None)[1]}
    if other := peer("sklearn.metrics"):
        rows["scikit-learn, AUROC alone"] = lambda _: other.roc_auc_score(labels, scores)
        rows["scikit-learn, AUROC and AP"] = lambda _: (
            other.roc_auc_score(labels, scores), other.average_precision_score(labels, scores))[0]  # fmt: skip
    tensors = torch.from_numpy(scores), torch.from_numpy(labels).long()
    if torcheval := peer("torcheval.metrics.functional"):
        rows["torcheval, AUROC alone"] = lambda _: torcheval.binary_auroc(*tensors)
    if torchmetrics := peer("torchmetrics.functional.classification"):
        rows["torchmetrics, AUROC alone"] = lambda _: torchmetrics.binary_auroc(*tensors)
    return rows | {"adref, AUROC, AP, AUPRO twice": lambda _: pixel_metrics(maps, masks)["pixel_auroc"]}


def pictures(count: int, side: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """Two batches (count, 3, side, side) that are alike; the first asks for gradients."""
    a = torch.rand(count, 3, side, side)
    return (0.8 * a + 0.2 * torch.rand_like(a)).requires_grad_(), a


def similarity(backward: bool) -> Rows:
    """SSIM, windows of 11 x 11 inside the pictures, of two batches (8, 3, 256, 256)."""
    a, b = pictures(8)
    calls = {}
    if msssim := peer("pytorch_msssim"):
        calls["pytorch-msssim"] = lambda: msssim.ssim(a, b, data_range=1.0)
    if piq := peer("piq"):
        calls["piq"] = lambda: piq.ssim(a.clamp(0, 1), b, downsample=False)
    if kornia := peer("kornia.metrics"):
        calls["kornia"] = lambda: kornia.ssim(a, b, 11, padding="valid").mean()
    calls["adref"] = lambda: ssim(a, b, padding="valid")
    return {name: partial(learn, call) if backward else torch.no_grad()(lambda _, call=call: call())
            for name, call in calls.items()}  # fmt: skip


def pyramid() -> Rows:
    """Wang's MS-SSIM of two batches (4, 3, 256, 256), forward and backward."""
    a, b = pictures(4)
    rows: Rows = {}
    if msssim := peer("pytorch_msssim"):
        rows["pytorch-msssim"] = partial(learn, lambda: msssim.ms_ssim(a, b, data_range=1.0))
    if piq := peer("piq"):
        rows["piq"] = partial(learn, lambda: piq.multi_scale_ssim(a.clamp(0, 1), b))
    return rows | {"adref": partial(learn, lambda: ms_ssim(a, b).mean())}


def windows() -> Rows:
    """MS-SSIM and L1 of noise-to-norm, five windows at full resolution, of two batches (1, 3, 256, 256), both ways."""
    a, b = pictures(1)

    def port() -> torch.Tensor:
        """The public way (psyrocloud/MS-SSIM_L1_LOSS), its groups set right: five convolutions with 33 x 33 weights."""
        weights = [torch.outer(w, w) for w in (gaussian_window(33, s) for s in (0.5, 1.0, 2.0, 4.0, 8.0))]
        weights = torch.stack(weights * 3)[:, None].to(a)

        def mean(x):
            return F.conv2d(F.pad(x, (16,) * 4, "reflect"), weights[-x.shape[1] * 5 :], groups=3).unflatten(1, (3, 5))

        mu_a, mu_b, aa, bb, ab = map(mean, (a, b, a * a, b * b, a * b))
        structure = (2 * (ab - mu_a * mu_b) + 0.03**2) / (aa - mu_a**2 + bb - mu_b**2 + 0.03**2)
        mu_a, mu_b = mu_a[:, :, -1], mu_b[:, :, -1]
        luminance = (2 * mu_a * mu_b + 0.01**2) / (mu_a**2 + mu_b**2 + 0.01**2)
        return (luminance * structure.prod(2)).mean() + mean((a - b).abs())[:, :, -1].mean()

    return {
        "windows of 33 x 33": partial(learn, port),
        "adref": partial(learn, lambda: sum(maps.mean() for maps in ms_ssim_l1(a, b))),
        "adref's pyramid (another definition)": partial(learn, lambda: ms_ssim(a, b).mean()),
    }


def focal_loss() -> Rows:
    """Focal loss of two classes, (8, 2, 256, 256), from logits, forward and backward."""
    logits = torch.randn(8, 2, 256, 256, requires_grad=True)
    mask, rows = (torch.rand(8, 1, 256, 256) > 0.9).float(), {}
    if kornia := peer("kornia.losses"):
        target = mask[:, 0].long()
        rows["kornia"] = partial(learn, lambda: kornia.focal_loss(logits, target, None, 2.0, "sum") / target.numel())
    return rows | {"adref": partial(learn, lambda: focal(logits.softmax(1), mask, smooth=None))}


# -- image operations -------------------------------------------------------------------------------------------------


def reading(suffix: str, filter: str) -> Rows:
    """A file of 1024 x 1024 at 256 x 256: Pillow smooths as "antialias" does, OpenCV takes four neighbours."""
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / f"picture{suffix}"
    Image.fromarray(picture(1024)).save(path, **({"quality": 90} if suffix == ".jpg" else {}))

    def pillow(smooth: bool, _):
        with Image.open(path) as file:
            image = file.convert("RGB")
        return np.asarray(image.resize((256, 256), Image.Resampling.BILINEAR) if smooth else image).transpose(2, 0, 1)

    rows: Rows = {"Pillow, no resizing (floor)": partial(pillow, False)}
    if filter == "antialias":
        rows["Pillow"] = partial(pillow, True)
    elif cv2 := peer("cv2"):
        rows["OpenCV"] = lambda _: cv2.resize(cv2.imread(str(path)), (256, 256))[..., ::-1].transpose(2, 0, 1)
    return rows | {"adref": lambda _, kept=folder: resize(to_tensor(read_image(path)), (256, 256), filter)}


def threshold() -> Rows:
    """Otsu's threshold of 256 x 256 grey values."""
    values, rows = grey(picture()), {}
    if filters := peer("skimage.filters"):
        rows["scikit-image"] = lambda _: filters.threshold_otsu(values)
    if cv2 := peer("cv2"):
        rows["OpenCV"] = lambda _: cv2.threshold(values, 0, 1, cv2.THRESH_OTSU)[0]
    return rows | {"adref": lambda _: otsu(values).threshold}


def closing() -> Rows:
    """Closing of a mask of 256 x 256 with a square of 3 x 3."""
    mask, square = np.random.default_rng(0).random((256, 256)) > 0.7, np.ones((3, 3), np.uint8)
    rows: Rows = {"scipy (another border)": lambda _: ndimage.binary_closing(mask, square)}
    if cv2 := peer("cv2"):
        rows["OpenCV"] = lambda _: cv2.morphologyEx(mask.view(np.uint8), cv2.MORPH_CLOSE, square)
    return rows | {"adref": lambda _: morphology(mask)}


def object_mask() -> Rows:
    """Grey values, Otsu's threshold and closing of a 256 x 256 picture."""
    image, square, rows = picture(), np.ones((3, 3), np.uint8), {}
    if filters := peer("skimage.filters"):
        rows["scikit-image, scipy (another border)"] = lambda _: ndimage.binary_closing(
            (values := grey(image)) > filters.threshold_otsu(values), square
        )
    if cv2 := peer("cv2"):

        def opencv(_):
            values = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
            return cv2.morphologyEx(cv2.threshold(values, 0, 1, cv2.THRESH_OTSU)[1], cv2.MORPH_CLOSE, square)

        rows["OpenCV"] = opencv
    return rows | {"adref": lambda _: morphology((values := grey(image, "opencv")) > otsu(values).threshold)}


def smoothing() -> Rows:
    """A Gaussian filter of sigma 6, cut at 24 pixels, on a map of 384 x 384, its edge pixels repeated."""
    plain = np.random.default_rng(0).random((384, 384), np.float32)
    maps, rows = torch.as_tensor(plain, device=torch.empty(0).device)[None, None], {}
    rows["scipy"] = lambda _: ndimage.gaussian_filter(plain, 6)[None, None]
    if cv2 := peer("cv2"):
        rows["OpenCV"] = lambda _: cv2.GaussianBlur(plain, (49, 49), 6, borderType=cv2.BORDER_REFLECT)[None, None]
    if kornia := peer("kornia.filters"):
        rows["kornia (another border)"] = lambda _: kornia.gaussian_blur2d(maps, (49, 49), (6.0, 6.0))
    return rows | {"adref": lambda _: gaussian_smooth(maps, 6.0)}


def colour() -> Rows:
    """sRGB to CIELAB of (8, 3, 256, 256) in float32."""
    images, rows = torch.rand(8, 3, 256, 256), {}
    plain = np.ascontiguousarray(images.permute(0, 2, 3, 1).cpu().numpy())
    if skimage := peer("skimage.color"):
        rows["scikit-image"] = lambda _: skimage.rgb2lab(plain).transpose(0, 3, 1, 2)
    if kornia := peer("kornia.color"):
        rows["kornia"] = lambda _: kornia.rgb_to_lab(images)
    if cv2 := peer("cv2"):
        rows["OpenCV (inexact)"] = lambda _: np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2LAB) for image in plain]
                                                      ).transpose(0, 3, 1, 2)  # fmt: skip
    return rows | {"adref": lambda _: cielab(images)}


def gradients() -> Rows:
    """Multi-scale gradient magnitude similarity of two batches (8, 3, 256, 256), forward and backward."""
    a, b = pictures(8)
    rows: Rows = {}
    if piq := peer("piq"):
        rows["piq (another definition)"] = partial(learn, lambda: piq.multi_scale_gmsd(a.clamp(0, 1), b))
    return rows | {"adref": partial(learn, lambda: msgms(a, b).mean())}


def similar_maps() -> Rows:
    """The two terms of SeRNet's map of a picture of 256 x 256, filtered."""
    x, y = torch.rand(2, 1, 3, 256, 256)

    def colours(_):
        return mean_filter((cielab(x) - cielab(y))[:, 1:].square().sum(dim=1, keepdim=True), 21, "reflect")

    return {"adref, colour": colours, "adref, structure": lambda _: mean_filter(1 - msgms(x, y), 21, "reflect")}


def phash(side: int) -> Rows:
    """The perceptual hash of a decoded picture."""
    image, rows = picture(side), {}
    if other := peer("imagehash"):
        rows["ImageHash"] = lambda _: np.packbits(other.phash(Image.fromarray(image)).hash)
    return rows | {"adref": lambda _: perceptual_hash(image)}


def search() -> Rows:
    """The nearest of 3,416 hashes, as many as SeRNet's paper counts; ImageHash subtracts one after the other."""
    hashes, rows = np.random.default_rng(0).integers(0, 256, (3416, 8), np.uint8), {}
    own = hashes[1700] ^ np.uint8(1)
    if other := peer("imagehash"):
        known, sought = ([other.hex_to_hash(h.tobytes().hex()) for h in part] for part in (hashes, own[None]))
        rows["ImageHash"] = lambda _: min(range(len(known)), key=lambda i: known[i] - sought[0])
    return rows | {"adref": lambda _: nearest(hashes, own)[0]}


def embedding() -> Rows:
    """Exact t-SNE of 200 points; scikit-learn ends early where nothing moves any more."""
    points, rows = np.random.default_rng(0).normal(size=(200, 32)), {}
    points[:100] += 1
    if manifold := peer("sklearn.manifold"):
        rows["scikit-learn, exact"] = lambda _: manifold.TSNE(method="exact", init="pca").fit(points).n_iter_
    return rows | {"adref": lambda _: (exact_tsne(points), None)[1]}


# -- synthesis --------------------------------------------------------------------------------------------------------


def noise() -> Rows:
    """Perlin noise of 256 x 256 from a lattice of 8 x 16."""
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, (9, 17))

    def plain(_):
        """DRAEM's and RealNet's code, which is that of P. Vigier's perlin-numpy."""
        gradients, cell = np.dstack((np.cos(angles), np.sin(angles))), (32, 16)
        t = np.stack(np.meshgrid(np.arange(256) / 32 % 1, np.arange(256) / 16 % 1, indexing="ij"), 2)

        def corner(a, b):
            g = gradients[a : a + 8, b : b + 16].repeat(cell[0], 0).repeat(cell[1], 1)
            return (np.dstack((t[..., 0] - a, t[..., 1] - b)) * g).sum(2)

        fade = 6 * t**5 - 15 * t**4 + 10 * t**3
        top, bottom = ((1 - fade[..., 0]) * corner(0, b) + fade[..., 0] * corner(1, b) for b in (0, 1))
        return np.sqrt(2) * ((1 - fade[..., 1]) * top + fade[..., 1] * bottom)

    return {"perlin-numpy's formula": plain, "adref": lambda _: perlin(PerlinNumbers(angles), (256, 256))}


def generation() -> Rows:
    """One anomalous example of SRDAD at 256 x 256 with the default sizes: the sparse reference, and as it is."""
    image = torch.from_numpy(picture()).permute(2, 0, 1).float() / 255
    options = srdad_options.resolve(srdad_options.Options(anomaly_probability=1.0))

    def generate(solver: str, i: int) -> None:
        with mock.patch.object(srdad, "poisson_blend", partial(poisson_blend, solver=solver)):
            srdad.corrupt(image, random_stream(0, "speed", i), options, Sources(survey="bright"))

    return {"sparse LU": partial(generate, "sparse"), "adref": partial(generate, "fast")}


def blend(side: int, degrees: float) -> Rows:
    """Three channels in a square region, upright or turned."""
    region = np.pad(ndimage.rotate(np.ones((side, side)), degrees, order=1) > 0.99, 2)
    source, target = np.random.default_rng(0).random((2, 3, *region.shape))
    rows: Rows = {"sparse LU": lambda _: poisson_blend(source, target, region, solver="sparse")}
    if cv2 := peer("cv2"):  # its boundary is the frame of the box
        patch, place = (np.rint(255 * a).astype(np.uint8).transpose(1, 2, 0) for a in (source, target))
        place, mask = np.pad(place, ((8, 8), (8, 8), (0, 0))), 255 * region.astype(np.uint8)
        centre = (place.shape[1] // 2, place.shape[0] // 2)
        rows["OpenCV seamlessClone (inexact)"] = lambda _: cv2.seamlessClone(
            patch, place, mask, centre, cv2.NORMAL_CLONE
        )
    return rows | {"adref": lambda _: poisson_blend(source, target, region)}


def anomalies() -> Rows:
    """RealNet's sources at 256 x 256, draw and all."""
    image = torch.from_numpy(pixels := picture()).permute(2, 0, 1).float() / 255
    other = image.flip(2).contiguous()

    def nsa_of(name: str):
        rule, a, b = NSA_RULES[name], image.numpy(), other.numpy()
        return lambda i: nsa(a, b, draw_nsa(np.random.default_rng(i), a, b, rule), rule.mixed)

    return {
        "adref, CutPaste": lambda i: cut_paste(image, draw_rectangle(np.random.default_rng(i), (256, 256))),
        "adref, scar": lambda i: cut_paste(image, draw_scar(np.random.default_rng(i), (256, 256))),
        "adref, NSA, source gradients": nsa_of("cable"),
        "adref, NSA, mixed gradients": nsa_of("tile"),
        "adref, foreground": lambda _: foreground(pixels, RULES["pill"]),
    }


# -- layers -----------------------------------------------------------------------------------------------------------


def counted(modules: dict[str, Callable[[], torch.Tensor]]) -> Rows:
    """Forward and backward of what returns a tensor, beside the machine's limits; other weights, so no results."""
    rows = {
        name: Row(lambda _, call=call: call().sum().backward(), count_flop(lambda call=call: call().sum().backward()))
        for name, call in modules.items()
    }
    return with_limits(rows)


def swin_block() -> Rows:
    """A shifted block on 64 x 64 x 96, batch 2, forward and backward."""
    x, block, calls = torch.rand(2, 64, 64, 96, requires_grad=True), SwinBlock(96, 3, (64, 64), 8, shifted=True), {}

    def explicit() -> torch.Tensor:
        def attention(q, k, v, attn_mask):
            return explicit_attention(q, k, v, attn_mask)

        with mock.patch.object(F, "scaled_dot_product_attention", attention):
            return block(x)

    if timm := peer("timm.models.swin_transformer"):
        other = timm.SwinTransformerBlock(96, (64, 64), 3, window_size=8, shift_size=4)
        calls["timm"] = lambda: other(x)
    return counted(calls | {"explicit attention (adref's formula)": explicit, "adref": lambda: block(x)})


def vit_block() -> Rows:
    """A ViT-Base block on 577 tokens, forward and backward."""
    x, block, calls = torch.rand(1, 577, 768, requires_grad=True), Block(768, 8), {}
    if timm := peer("timm.models.vision_transformer"):
        other = timm.Block(768, 8, qkv_bias=True)
        calls["timm"] = lambda: other(x)
    return counted(calls | {"adref": lambda: block(x)})


def memory() -> Rows:
    """2000 items for the 24 x 24 positions of one image, forward and backward; the floor is its two matrix products."""
    x, module = torch.rand(1, 768, 24, 24, requires_grad=True), Memory(768, 2000)
    flat = x.flatten(2).transpose(1, 2)
    return {
        "two matrix products (floor)": lambda _: (
            (flat @ module.weight.T @ module.weight).sum().backward(retain_graph=True)
        ),
        "adref": lambda _: module(x).output.sum().backward(),
    }


def attention_maps() -> Rows:
    """Coordinate attention on (8, 768, 24, 24), forward and backward."""
    x, module, calls = torch.rand(8, 768, 24, 24, requires_grad=True), CoordinateAttention(768), {}
    if timm := peer("timm.layers.coord_attn"):
        other = timm.CoordAttn(768, rd_channels=24, bias=True)
        calls["timm"] = lambda: other(x)
    return counted(calls | {"adref": lambda: module(x)})


def cross_attention() -> Rows:
    """One channel cross attention layer, UCTransNet's widths, on 256 tokens, batch 2, forward and backward."""
    widths = (64, 128, 256, 512)
    scales = [torch.rand(2, 256, width, requires_grad=True) for width in widths]
    layer = CrossAttentionLayer(widths)
    return counted({"adref": lambda: sum(y.sum() for y in layer(scales))})


def atrous() -> Rows:
    """Atrous spatial pyramid pooling of (2, 512, 32, 32), channels_last, forward and backward."""
    x = torch.rand(2, 512, 32, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
    module = ASPP(512, 128).to(memory_format=torch.channels_last)
    calls = {"its convolutions (floor)": lambda: torch.cat([branch[0](x) for branch in module.branches], 1)}
    if torchvision := peer("torchvision.models.segmentation.deeplabv3"):
        other = torchvision.ASPP(512, [3, 6, 12], 128).to(memory_format=torch.channels_last)
        calls["torchvision (another definition)"] = lambda: other(x)
    return counted(calls | {"adref": lambda: module(x)})


def features(name: str) -> Rows:
    """ImageNet features of (2, 3, 256, 256), four maps, weights alike; channels_last where nothing is said."""
    images, own, networks = torch.rand(2, 3, 256, 256), ResNet(name).eval(), {}
    if timm := peer("timm"):
        other = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4)).eval()
        other.load_state_dict(own.state_dict(), strict=False)
        networks["timm"] = lambda network, x: network(normalise(x)), other
    networks["adref"] = lambda network, x: network(x), own
    rows = {}
    for suffix, form in (("", torch.channels_last), (", contiguous", torch.contiguous_format)):
        for label, (run, network) in networks.items():
            pair = copy.deepcopy(network).to(memory_format=form), images.contiguous(memory_format=form)
            call = torch.no_grad()(lambda _, run=run, pair=pair: run(*pair)[-1])
            rows[label + suffix] = Row(call, count_flop(partial(call, 0)))
    return with_limits(rows)


def residual_selection(training: bool) -> Rows:
    """RRS of 1536 channels, whose channel statistics are normalised, beside batch norm of all their pixels."""
    residuals, norm = torch.rand(2, 1536, 64, 64), torch.nn.BatchNorm2d(1536, affine=False, momentum=0.9)
    rrs = ResidualSelection(1536, 256, 256).train(training)
    norm.train(training)

    @torch.no_grad()
    def plain(_) -> None:
        scores = norm(residuals)
        lists = [s.argsort(1, descending=True)[:, :256] for s in (scores.amax((2, 3)), scores.mean((2, 3)))]
        residuals.gather(1, torch.cat(lists, 1)[:, :, None, None].expand(-1, -1, 64, 64))

    return {"batch norm of all pixels": plain, "adref": lambda _: (rrs(residuals), None)[1]}


BLOCKS: dict[str, Callable[[], Rows]] = {
    "pixel metrics": pixels,
    "SSIM, forward": partial(similarity, False),
    "SSIM, forward and backward": partial(similarity, True),
    "MS-SSIM": pyramid,
    "MS-SSIM and L1": windows,
    "focal loss": focal_loss,
    **{f"reading {suffix[1:]}, {filter}": partial(reading, suffix, filter)
       for suffix in (".png", ".jpg") for filter in ("bilinear", "antialias")},
    "Otsu": threshold,
    "closing": closing,
    "object mask": object_mask,
    "Gaussian filter": smoothing,
    "CIELAB": colour,
    "MSGMS": gradients,
    "colour and structure": similar_maps,
    **{f"perceptual hash, {side} px": partial(phash, side) for side in (256, 1024)},
    "search of 3,416 hashes": search,
    "t-SNE, 200 points": embedding,
    "Perlin noise": noise,
    DRAWN: generation,
    **{f"Poisson, {side} px{', 37 degrees' if degrees else ''}": partial(blend, side, degrees)
       for side in (32, 64, 128) for degrees in (0, 37)},
    "anomalies of RealNet": anomalies,
    "Swin block": swin_block,
    "ViT block": vit_block,
    "memory addressing": memory,
    "coordinate attention": attention_maps,
    "channel cross attention": cross_attention,
    "ASPP": atrous,
    **{f"features, {name}": partial(features, name) for name in ("resnet18", "wide_resnet50_2")},
    "residual selection, training": partial(residual_selection, True),
    "residual selection, evaluation": partial(residual_selection, False),
}  # fmt: skip
