"""Prints the sourced golden numbers of noise-to-norm: loss, SKFF, SRMNet's block, schedule, noise (no adref).

    pip install torch pytorch-msssim pillow scipy
    PYTHONPATH=tools python tools/sources/noise_to_norm.py [--pl4nn src/loss.py of NVlabs/PL4NN, as stored at commit d39c202]
        [--port MS_SSIM_L1_loss.py of psyrocloud/MS-SSIM_L1_LOSS, 8cbb65f]
        [--mirnet networks/MIRNet_model.py of swz30/MIRNet, 26e0be1] [--srmnet SRMNet.py of FanChiMao/SRMNet, 1e8ee80]

Each file is optional; what it would print is left out without it. Inputs and weights: the hash of tools/golden.py by
these programs' parameter names, as tools/hash_recipe.py writes it out again. Everything is float64 where no line says
float32. Mocks stand for the packages that the files import and that these numbers do not need (caffe, thop, MIRNet's
own utils).
"""

import argparse
import importlib.metadata
import sys
import types
from pathlib import Path
from unittest.mock import MagicMock, patch

import numpy as np
import pytorch_msssim
import torch
import torch.nn.functional as F
from hash_recipe import digits, fill, hashed, report
from PIL import Image
from torch import nn


def load(path: str) -> types.ModuleType:
    """A stored file as a module; PL4NN's Python 2 (tabs among spaces, whole-number `width/2`) becomes Python 3."""
    for name in ("caffe", "thop", "utils", "utils.antialias"):
        sys.modules.setdefault(name, MagicMock(Layer=object))
    text = Path(path).read_text().expandtabs(8).replace("width/2", "width//2")
    module = types.ModuleType(Path(path).stem)
    exec(compile(text, path, "exec"), module.__dict__)
    return module


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """a, and 0.3 b + 0.7 a: three channels of 64 x 64 in [0, 1)."""
    a, b = (hashed(name, 3, 64, 64).double() for name in ("a", "b"))
    return a, 0.3 * b + 0.7 * a


# -- MS-SSIM + L1 by Zhao et al. --------------------------------------------------------------------------------------


class Zhao:
    """PL4NN's layer MSSSIML1 on windows of 33 x 33: it knows one patch, its Gaussians as large as the patch.

    It says nothing of borders. Whoever cuts one patch around every pixel of a padded picture gets the map.
    """

    def __init__(self, path: str, side: int = 33, channels: int = 1, **parameters: float) -> None:
        self.layer = load(path).MSSSIML1()
        shape = (1, channels, side, side)
        self.bottom = [
            types.SimpleNamespace(
                data=np.zeros(shape),
                diff=np.zeros(shape),
                num=1,
                channels=channels,
                width=side,
                count=channels * side**2,
            )
            for _ in range(2)
        ]
        self.top = [types.SimpleNamespace(data=np.zeros(1), reshape=lambda _: None)]
        self.layer.param_str = str(parameters)
        self.layer.setup(self.bottom, self.top)
        self.layer.reshape(self.bottom, self.top)

    def __call__(self, output: np.ndarray, label: np.ndarray) -> float:
        """The loss of one patch, channels x side x side."""
        self.bottom[0].data[0], self.bottom[1].data[0] = output, label
        self.layer.forward(self.bottom, self.top)
        return float(self.top[0].data[0])

    def gradient(self) -> np.ndarray:
        """For the output of the last call."""
        self.layer.backward(self.top, [True, False], self.bottom)
        return self.bottom[0].diff[0].copy()

    def map(self, output: np.ndarray, label: np.ndarray, border: str, gradient: bool = False) -> tuple:
        """Channel by channel: the loss of the patch around every pixel; the gradient of their mean, if reflected."""
        pads = ((0, 0), (16, 16), (16, 16))
        padded = [np.pad(image, pads, mode=border) for image in (output, label)]
        losses, whole = np.zeros(output.shape), np.zeros(padded[0].shape)
        for c, y, x in np.ndindex(losses.shape):
            cut = np.s_[c, y : y + 33, x : x + 33]
            losses[c, y, x] = self(padded[0][cut], padded[1][cut])
            if gradient:
                whole[cut] += self.gradient()[0] / losses.size
        folded = np.zeros(output.shape)
        rows, columns = (np.pad(np.arange(n), 16, mode="reflect") for n in output.shape[1:])
        for c in range(len(folded)):
            np.add.at(folded[c], (rows[:, None], columns), whole[c])
        return losses, folded


def zhao(path: str) -> None:
    """PL4NN: one patch as it stands, the map by patches, and the images of the specification's G8 to G11."""
    print("PL4NN's MSSSIML1 (a: label; 0.3 b + 0.7 a: output, which the gradient is for)")
    label, output = (image.numpy() for image in pair())
    for side in (33, 31):
        cut = np.s_[:, 16 : 16 + side, 16 : 16 + side]
        layer = Zhao(path, side, channels=3)
        print(
            f"  patch {side} x {side} from (16, 16), alpha {layer.layer.alpha}:", digits(layer(output[cut], label[cut]))
        )
        report(f"  gradient of the patch {side} x {side}", layer.gradient())
    centres = [float(w[0, 0, 16, 16]) ** 0.5 for w in Zhao(path).layer.w]
    print("  centre weights, one-dimensional:", digits(*centres))

    for alpha in (0.025, 0.84):
        losses, gradient = Zhao(path, alpha=alpha).map(output, label, "reflect", gradient=True)
        print(f"  map, reflect, alpha {alpha}: mean and maximum", digits(losses.mean(), losses.max()))
        report("  map", losses)
        report("  gradient of its mean, times 12288", gradient * gradient.size)
        inner = losses[:, 16:-16, 16:-16]
        print("  mean of the inner 32 x 32, which see no border:", digits(inner.mean()))
    losses, _ = Zhao(path, alpha=0.84).map(output, label, "constant")
    report("  map, zeros, alpha 0.84", losses)

    k, y, x = np.ogrid[:3, :64, :64]
    u = (7 * y + 13 * x + 29 * k) % 256 / 255
    grey = np.full((1, 64, 64), 0.4)
    spot = grey.copy()
    spot[0, 32, 32] = 0.9
    literal = {"C1": 0.01**0.5, "C2": 0.03**0.5}  # the layer squares what it is given
    own, ms, small = {"alpha": 0.84}, {"alpha": 1.0}, {"alpha": 0.025}
    cases = (
        ("v = u / 2", u, u / 2, own, "reflect"),
        ("v = u / 2, literal constants", u, u / 2, own | literal, "reflect"),
        ("v = u / 2, 1 - MS alone", u, u / 2, ms, "reflect"),
        ("v = u / 2, 1 - MS alone, literal constants", u, u / 2, ms | literal, "reflect"),
        ("v = u / 2, alpha 0.025", u, u / 2, small, "reflect"),
        ("v = 1 - u", u, 1 - u, own, "reflect"),
        ("v = 1 - u, 1 - MS alone", u, 1 - u, ms, "reflect"),
        ("v = 0.9 u + 0.05", u, 0.9 * u + 0.05, own, "reflect"),
        ("v = 0.9 u + 0.05, zeros", u, 0.9 * u + 0.05, own, "constant"),
        ("u = 0.4, v = 0.5", grey, 0 * grey + 0.5, own, "reflect"),
        ("u = 0.4, v = 0.5, literal constants", grey, 0 * grey + 0.5, own | literal, "reflect"),
        ("u = 0, v = 1", 0 * grey, 0 * grey + 1, own, "reflect"),
        ("u = 0.4, v = 0.4 but 0.9 at (32, 32)", grey, spot, own, "reflect"),
    )
    print("  the specification's images: mean, maximum, (channel, row, column) of the maximum, value at (0, 0, 0)")
    for name, label, output, parameters, border in cases:
        losses, _ = Zhao(path, **parameters).map(output, label, border)
        place = tuple(map(int, np.unravel_index(losses.argmax(), losses.shape)))
        print(f"  {name}: {digits(losses.mean(), losses.max())} {place} {digits(losses[0, 0, 0])}")


def port(path: str) -> None:
    """PORT as it is (zeros at the border, 15 filters in groups that do not fit), its windows float32 or float64."""
    print("PORT's MS_SSIM_L1_LOSS(a, 0.3 b + 0.7 a)")
    a, b = (image[None] for image in pair())
    loss = load(path).MS_SSIM_L1_LOSS
    with patch.object(torch.Tensor, "cuda", lambda self, *_: self):
        single = loss()
        with patch.object(torch, "float", torch.float64):  # it asks for torch.float by name
            torch.set_default_dtype(torch.float64)
            double, mixed = loss(), loss(alpha=0.84, compensation=1.0)
            torch.set_default_dtype(torch.float32)
    print(f"  alpha {double.alpha}, compensation {double.compensation}, C1 {double.C1}, C2 {double.C2}")
    print("  float32:", digits(single(a.float(), b.float())))
    for name, module in (("default", double), ("alpha 0.84, compensation 1", mixed)):
        print(f"  {name}:", digits(module(a, b)))
        leaf = b.clone().requires_grad_()
        module(a, leaf).backward()
        report("  gradient for the second picture, times 12288", leaf.grad * leaf.numel())
        grey = [image[:, :1].expand(-1, 3, -1, -1) for image in (a, b)]
        print("  the first channel three times (the groups do no harm):", digits(module(*grey)))
    flat = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)[None, :, None, None].expand(1, 3, 64, 64)
    seen = F.conv2d(flat, double.g_masks, groups=3, padding=double.pad)[0, :, 32, 32]
    sigmas = [1 / (2 * torch.pi * float(mask[0, 16, 16])) ** 0.5 for mask in double.g_masks]
    print("  channels 1, 10, 100 as its 15 filters see them:", [round(v, 6) for v in seen.tolist()])
    print("  sigma of the 15 filters from the centre weight (0.5 and 1 roughly):", [round(s, 2) for s in sigmas])


# -- MS-SSIM by Wang et al. -------------------------------------------------------------------------------------------


def wang() -> None:
    """pytorch-msssim, its window float32 as it makes it, and float64."""
    print("pytorch-msssim", importlib.metadata.version("pytorch-msssim"), "of a and 0.7 a + 0.3 b, 2 x 3 x 176 x 192")
    a, b = (hashed(name, 2, 3, 176, 192).double() for name in ("a", "b"))
    options = {"data_range": 1, "size_average": False}
    print("  as it is:", digits(*pytorch_msssim.ms_ssim(a, 0.7 * a + 0.3 * b, **options)))
    with patch.object(torch, "float", torch.float64):
        print("  float64 window:", digits(*pytorch_msssim.ms_ssim(a, 0.7 * a + 0.3 * b, **options)))


# -- the network ------------------------------------------------------------------------------------------------------


def skff(name: str, module: types.ModuleType) -> None:
    """Selective kernel feature fusion of four maps; width 40 tells floor(w / 8) from the least, 4."""
    for width in (32, 40):
        fusion = fill(module.SKFF(width, height=4))
        maps = [hashed(f"map {i}", 2, width, 6, 10).double() - 0.5 for i in range(4)]
        report(f"  {name} SKFF, width {width}", fusion(maps))
    print("  parameters:", {key: tuple(value.shape) for key, value in fusion.state_dict().items()})


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def srmnet(path: str) -> None:
    """SRMNet's block and the whole network, whose output holds its input (global residual)."""
    module = load(path)
    print("SRMNet")
    skff("SRMNet", module)
    for width in (16, 24):
        block = fill(module.SK_RDB(16, width, 3))
        report(f"  SK_RDB 16 -> {width}", block(hashed("map", 1, 16, 6, 10).double() - 0.5))
    print("  SK_RDB 96 -> 96 has", count(module.SK_RDB(96, 96, 3)), "parameters:")
    for key, value in module.SK_RDB(96, 96, 3).state_dict().items():
        print(f"    {key} {tuple(value.shape)}")
    network = module.SRMNet()
    print("  SRMNet() has", count(network), "parameters:", {k: count(v) for k, v in network.named_children()})
    print("  by width:", {width: count(module.SRMNet(wf=width)) for width in (32, 48, 64, 96)})
    images = hashed("images", 1, 3, 32, 48).double() * 2 - 1
    network = fill(module.SRMNet(wf=8))
    report("  SRMNet(wf=8)", network(images))
    report("  SRMNet(wf=8) less its input", network(images) - images)
    for key, value in network.state_dict().items():
        if "block." not in key:
            print(f"    {key} {tuple(value.shape)}")


def resizing() -> None:
    """Pixel unshuffle against a reshape, and bilinear halving against the mean of 2 x 2."""
    print("torch", torch.__version__, "resizing")
    x = hashed("map", 2, 5, 8, 12).double()
    blocks = x.numpy().reshape(2, 5, 4, 2, 6, 2)  # n, c, y, dy, x, dx: the new channel is 4 c + 2 dy + dx
    reshaped = blocks.transpose(0, 1, 3, 5, 2, 4).reshape(2, 20, 4, 6)
    shuffled = F.pixel_shuffle(torch.from_numpy(reshaped), 2)
    print("  pixel unshuffle is the reshape:", bool((F.pixel_unshuffle(x, 2).numpy() == reshaped).all()), end=", ")
    print("pixel shuffle its inverse:", bool((shuffled == x).all()))
    ramp = torch.arange(16, dtype=torch.float64).reshape(1, 1, 4, 4)
    print("  of 0..15 as 4 x 4:", F.pixel_unshuffle(ramp, 2)[0].int().tolist())
    means = torch.from_numpy(blocks.mean(axis=(3, 5)))
    halved = F.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)
    print("  bilinear x0.5 less the mean of 2 x 2, largest:", (halved - means).abs().max().item())
    pillow = np.asarray(Image.fromarray(ramp[0, 0].float().numpy()).resize((2, 2), Image.Resampling.BILINEAR))
    print("  of 0..15 as 4 x 4: torch", F.interpolate(ramp, scale_factor=0.5, mode="bilinear")[0, 0].tolist(), end=", ")
    print("Pillow (with antialias)", pillow.tolist())


# -- training ---------------------------------------------------------------------------------------------------------


def schedule() -> None:
    """One step per epoch; past T_max the rate rises again."""
    print("CosineAnnealingLR, 1e-4 to 1e-6, T_max 100")
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1e-4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100, eta_min=1e-6)
    rates = []
    for _ in range(251):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()
    print(" ", {epoch: digits(rates[epoch])[0] for epoch in (0, 25, 50, 75, 100, 150, 200, 250)})


def noise() -> None:
    """The frozen legacy stream, and its spread after bilinear halvings."""
    print("numpy", np.__version__, "RandomState(0).normal(0.5, 0.5, (3, 256, 256))")
    values = np.random.RandomState(0).normal(0.5, 0.5, (3, 256, 256))
    print("  first four, mean, standard deviation:", digits(*values[0, 0, :4], values.mean(), values.std()))
    half = F.interpolate(torch.from_numpy(values)[None], scale_factor=0.5, mode="bilinear")
    quarter = F.interpolate(half, scale_factor=0.5, mode="bilinear")
    print("  unbiased standard deviation after one and two halvings:", digits(half.std(), quarter.std()))


def main() -> None:
    """Everything the given files allow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("pl4nn", "port", "mirnet", "srmnet"):
        parser.add_argument(f"--{name}")
    paths = parser.parse_args()
    if paths.pl4nn:
        zhao(paths.pl4nn)
    if paths.port:
        port(paths.port)
    wang()
    if paths.mirnet:
        print("MIRNet")
        skff("MIRNet", load(paths.mirnet))
    if paths.srmnet:
        srmnet(paths.srmnet)
    resizing()
    schedule()
    noise()


if __name__ == "__main__":
    main()
