"""SeRNet's U-Net."""

import pytest
import torch
from conftest import golden
from torch import nn

from adref.layers.unet import PlainUNet


@pytest.mark.parametrize("skip", ["concat", "add", "none"])
def test_plain_unet_written_out(skip):
    """Derived: the same weights in torch's functions, one line a layer; up-sampled map first, skip second."""
    network = golden.fill(PlainUNet(channels=2, widths=(4, 6, 10), skip=skip))
    x = golden.hashed("images", 2, 3, 16, 32)
    up = nn.Upsample(scale_factor=2, mode="bilinear")
    pool = nn.MaxPool2d(2)
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


def test_initialisation_of_the_plain_unet():
    """Weights N(0, 0.02), batch-norm weights N(1, 0.02), biases 0."""
    torch.manual_seed(0)
    for module in PlainUNet(channels=1, widths=(32, 64, 128), skip="concat").modules():
        if isinstance(module, nn.Conv2d):
            assert not module.bias.any()
            assert module.weight.numel() < 5000 or module.weight.std().item() == pytest.approx(0.02, rel=0.05)
        if isinstance(module, nn.BatchNorm2d):
            assert not module.bias.any() and abs(module.weight.mean() - 1) < 0.02
