"""The blocks of DRAEM's networks, on cases that can be solved by hand. (Their whole outputs are in test_draem.py.)"""

import torch
from torch import nn

from adref.layers.unet import Autoencoder, Encoder, UNet, convolution_block, upsampling_block


def identity(module: nn.Module) -> nn.Module:
    """Makes every convolution copy its first input channel to all outputs, and every batch norm the identity."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            layer.weight.data[:, 0, 1, 1] = 1
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
            layer.eps = 0
    return module.eval()


def test_upsampling_aligns_corners():
    """A ramp from 0 to 3 on 4 pixels becomes the ramp from 0 to 3 on 8."""
    ramp = torch.linspace(0, 3, 4).expand(1, 2, 4, 4)
    out = identity(upsampling_block(2, 3))(ramp)
    assert out.shape == (1, 3, 8, 8) and torch.allclose(out[0, 0, 5], torch.linspace(0, 3, 8), atol=1e-6)


def test_block_is_convolution_norm_relu_twice():
    block = convolution_block(2, 5, 5)
    assert [type(layer).__name__ for layer in block] == ["Conv2d", "BatchNorm2d", "ReLU"] * 2
    x = torch.tensor([[-1.0, 2.0], [0.5, -3.0]])[None, None].repeat(1, 2, 1, 1)
    assert torch.equal(identity(block)(x)[0, 4], x[0, 0].clamp(min=0))


def test_encoder_pools_maxima_between_levels():
    x = torch.arange(64.0).reshape(1, 1, 8, 8)
    levels = identity(Encoder(1, (2, 2, 2)))(x)
    assert [tuple(level.shape) for level in levels] == [(1, 2, 8, 8), (1, 2, 4, 4), (1, 2, 2, 2)]
    assert levels[2][0, 0].tolist() == [[27, 31], [59, 63]]


def test_unet_joins_the_upsampled_map_first_and_the_skip_second():
    """With every convolution copying its first input, the output is the bottom level's: the maximum over 32 x 32."""
    x = torch.rand(1, 6, 64, 64)
    out = identity(UNet(1))(x)
    maxima = torch.nn.functional.max_pool2d(x[:, :1], 32)
    assert torch.allclose(out[0, 0, ::63, ::63], maxima[0, 0], atol=1e-6)


def test_autoencoder_without_skips_keeps_sixteenths_only():
    x = torch.rand(1, 3, 64, 64)
    out = identity(Autoencoder(1))(x)
    maxima = torch.nn.functional.max_pool2d(x[:, :1], 16)
    assert out.shape == x.shape and torch.allclose(out[0, 0, ::63, ::63], maxima[0, 0, ::3, ::3], atol=1e-5)
