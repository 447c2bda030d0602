"""Prints the sourced golden numbers of noise-to-norm: loss, SKFF, SRMNet's block, schedule, noise (no adref).

    pip install torch
    PYTHONPATH=tools python tools/sources/noise_to_norm.py [--pl4nn FILE] [--mirnet FILE] [--srmnet FILE]

    --pl4nn   src/loss.py of NVlabs/PL4NN, stored at commit d39c202
    --mirnet  networks/MIRNet_model.py of swz30/MIRNet, commit 26e0be1
    --srmnet  SRMNet.py of FanChiMao/SRMNet, commit 1e8ee80

Each file is optional; without it its numbers are left out. Weights and inputs: the hash of tools/hash_recipe.py by
these programs' parameter names, in float64. Mocks stand for the packages that the files import and that these numbers
do not need (caffe, thop, MIRNet's utils).
"""

import argparse
import sys
import types
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch
import torch.nn.functional as F
from hash_recipe import digits, fill, hashed, report
from torch import nn


def load(path: str) -> types.ModuleType:
    """Imports a stored file; PL4NN's Python 2 (tabs among spaces, whole-number `width/2`) becomes Python 3."""
    for name in ("caffe", "thop", "utils", "utils.antialias"):
        sys.modules.setdefault(name, MagicMock(Layer=object))
    text = Path(path).read_text().expandtabs(8).replace("width/2", "width//2")
    module = types.ModuleType(Path(path).stem)
    exec(compile(text, path, "exec"), module.__dict__)
    return module


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a, and 0.3 b + 0.7 a: three channels of 64 x 64 in [0, 1)."""
    a, b = (hashed(name, 3, 64, 64).double() for name in ("a", "b"))
    return a, 0.3 * b + 0.7 * a


# -- MS-SSIM + L1 by Zhao et al. --------------------------------------------------------------------------------------


class Zhao:
    """PL4NN's layer MSSSIML1 on windows of 33 x 33: it knows one patch, its Gaussians as large as the patch.

    It defines no border. One patch around every pixel of a padded image gives the map.
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
        """Computes the loss of one patch, channels x side x side."""
        self.bottom[0].data[0], self.bottom[1].data[0] = output, label
        self.layer.forward(self.bottom, self.top)
        return float(self.top[0].data[0])

    def gradient(self) -> np.ndarray:
        """Computes the gradient for the output of the last call."""
        self.layer.backward(self.top, [True, False], self.bottom)
        return self.bottom[0].diff[0].copy()

    def map(self, output: np.ndarray, label: np.ndarray, border: str, gradient: bool = False) -> tuple:
        """Computes the loss of the patch around every pixel, channel by channel, and the gradient of its mean."""
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
    """Prints PL4NN's numbers of one patch, of the map by patches, and of images by formulas."""
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
    print("  images by formulas: mean, maximum, (channel, row, column) of the maximum, value at (0, 0, 0)")
    for name, label, output, parameters, border in cases:
        losses, _ = Zhao(path, **parameters).map(output, label, border)
        place = tuple(map(int, np.unravel_index(losses.argmax(), losses.shape)))
        print(f"  {name}: {digits(losses.mean(), losses.max())} {place} {digits(losses[0, 0, 0])}")


# -- the network ------------------------------------------------------------------------------------------------------


def skff(name: str, module: types.ModuleType) -> None:
    """Runs selective kernel feature fusion of four maps; width 40 tells floor(w / 8) from the least, 4."""
    for width in (32, 40):
        fusion = fill(module.SKFF(width, height=4))
        maps = [hashed(f"map {i}", 2, width, 6, 10).double() - 0.5 for i in range(4)]
        report(f"  {name} SKFF, width {width}", fusion(maps))
    print("  parameters:", {key: tuple(value.shape) for key, value in fusion.state_dict().items()})


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def srmnet(path: str) -> None:
    """Runs SRMNet's block and the whole network, whose output contains its input (global residual)."""
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


# -- training ---------------------------------------------------------------------------------------------------------


def schedule() -> None:
    """Prints a step an epoch; after T_max the rate rises again."""
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
    """Prints the frozen legacy stream, and its spread after bilinear halvings."""
    print("numpy", np.__version__, "RandomState(0).normal(0.5, 0.5, (3, 256, 256))")
    values = np.random.RandomState(0).normal(0.5, 0.5, (3, 256, 256))
    print("  first four, mean, standard deviation:", digits(*values[0, 0, :4], values.mean(), values.std()))
    half = F.interpolate(torch.from_numpy(values)[None], scale_factor=0.5, mode="bilinear")
    quarter = F.interpolate(half, scale_factor=0.5, mode="bilinear")
    print("  unbiased standard deviation after one and two halvings:", digits(half.std(), quarter.std()))


def main() -> None:
    """Prints everything that the given files allow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("pl4nn", "mirnet", "srmnet"):
        parser.add_argument(f"--{name}")
    paths = parser.parse_args()
    if paths.pl4nn:
        zhao(paths.pl4nn)
    if paths.mirnet:
        print("MIRNet")
        skff("MIRNet", load(paths.mirnet))
    if paths.srmnet:
        srmnet(paths.srmnet)
    schedule()
    noise()


if __name__ == "__main__":
    main()
