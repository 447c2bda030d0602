"""Prints the sourced golden numbers of ASPP, Res-SE and channel cross attention (adref is not imported).

    pip install torch timm transformers
    python tools/source_attention.py [nets/CTrans.py of McGregorWwww/UCTransNet, as stored at commit 4cf4b3c]

ASPP: transformers' MobileViT has DeepLabv3's; the branches that SRDAD names are taken out of it. Res-SE: timm's ResNet
block with its squeeze and excitation. Channel cross attention: the UCTransNet authors' own file, where one is given.
Everything is float64. Weights and inputs: the hash of tools/golden.py by these programs' parameter names, written out
again here so that no line of adref takes part. Mocks stand for torchvision, which timm imports, where it is missing.
"""

import importlib.util
import sys
import zlib
from functools import partial
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import torch
import transformers
from torch import nn
from transformers.models.mobilevit.modeling_mobilevit import MobileViTASPP

if importlib.util.find_spec("torchvision") is None:
    for part in ("", ".datasets", ".ops", ".ops.misc", ".transforms", ".transforms.functional"):
        sys.modules[f"torchvision{part}"] = MagicMock()
import timm
from timm.layers import SEModule
from timm.models.resnet import BasicBlock


def hashed(name: str, *shape: int) -> torch.Tensor:
    """float32 in [0, 1): see tools/golden.py."""
    x = (np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * 0x9E3779B9 + zlib.crc32(name.encode())) & 0xFFFFFFFF
    x = ((x ^ (x >> np.uint64(16))) * 0x85EBCA6B) & 0xFFFFFFFF
    x = ((x ^ (x >> np.uint64(13))) * 0xC2B2AE35) & 0xFFFFFFFF
    x = x ^ (x >> np.uint64(16))
    return torch.from_numpy((x >> np.uint64(8)).astype(np.float64) / 2**24).float().reshape(shape)


def fill(module: nn.Module) -> nn.Module:
    """Hashed values for every tensor of the state, as `fill` of tools/golden.py."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            values = hashed(name, *tensor.shape)
            if tensor.ndim > 1:
                values = (values - 0.5) * (12 / tensor[0].numel()) ** 0.5
            else:
                values = 0.5 + values if name.endswith(("running_var", "weight")) else (values - 0.5) * 0.2
            tensor.copy_(values)
    return module.double().eval()


def report(case: str, output: torch.Tensor) -> None:
    """Mean, standard deviation, and the means of the products with two lists of hashed numbers."""
    flat = output.flatten()
    products = [(flat * hashed(name, len(flat))).mean().item() for name in ("first", "second")]
    print(f"{case}: {[float(f'{v:.10g}') for v in (flat.mean().item(), flat.std(correction=0).item(), *products)]}")


def main() -> None:
    """ASPP on a square and a rectangle, Res-SE with both shortcuts, the whole channel transformer."""
    print("transformers", transformers.__version__, "timm", timm.__version__, "torch", torch.__version__)
    config = transformers.MobileViTConfig(neck_hidden_sizes=[16, 16], aspp_out_channels=4, atrous_rates=(3, 6, 12))
    aspp = fill(MobileViTASPP(config))
    norm = aspp.convs[4].conv_1x1.normalization  # SRDAD's pooled branch has a bias and no norm: the norm becomes a bias
    norm.running_mean.zero_(), norm.weight.fill_(1), norm.running_var.fill_(1 - norm.eps)
    for size in ((8, 8), (8, 16)):
        x = hashed("map", 2, 16, *size).double()
        report(f"aspp {size}", torch.cat([branch(x) for branch in aspp.convs[1:]], dim=1))

    squeeze = partial(SEModule, rd_ratio=1 / 16, rd_divisor=1, bias=False)
    for channels in (48, 6):
        shortcut = nn.Sequential(nn.Conv2d(channels, 48, 1, bias=False), nn.BatchNorm2d(48)) if channels != 48 else None
        block = fill(BasicBlock(channels, 48, downsample=shortcut, attn_layer=squeeze))
        report(f"res-se {channels} -> 48", block(hashed("map", 2, channels, 6, 10).double() - 0.5))

    if len(sys.argv) > 1:
        spec = importlib.util.spec_from_file_location("ctrans", sys.argv[1])
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        rates = {"embeddings_dropout_rate": 0.1, "attention_dropout_rate": 0.1, "dropout_rate": 0}
        config = SimpleNamespace(transformer={"num_heads": 4, "num_layers": 2, **rates}, KV_size=21, expand_ratio=4)
        widths, patches = (3, 4, 6, 8), (16, 8, 4, 2)
        network = fill(module.ChannelTransformer(config, False, 64, widths, patches))
        maps = [hashed(f"map {i}", 2, c, 64 // 2**i, 64 // 2**i).double() for i, c in enumerate(widths)]
        for i, output in enumerate(network(*maps)[:4]):
            report(f"channel cross attention {i}", output)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
