"""Prints the sourced golden numbers of ASPP, Res-SE and channel cross attention (adref is not imported).

    pip install torch timm transformers
    PYTHONPATH=tools python tools/sources/attention.py [nets/CTrans.py of McGregorWwww/UCTransNet, commit 4cf4b3c]

ASPP: the branches that SRDAD names, of DeepLabv3's in transformers' MobileViT. Res-SE: timm's ResNet block with its
squeeze and excitation. Channel cross attention: the UCTransNet authors' file, where it is given. Weights and inputs:
the hash of tools/hash_recipe.py by these programs' parameter names, in float64.
"""

import sys
from functools import partial
from types import SimpleNamespace

import torch
import transformers
from hash_recipe import fill, hashed, load_file, report, stand_in_for_torchvision
from torch import nn
from transformers.models.mobilevit.modeling_mobilevit import MobileViTASPP

stand_in_for_torchvision()
import timm  # noqa: E402
from timm.layers import SEModule  # noqa: E402
from timm.models.resnet import BasicBlock  # noqa: E402


def main() -> None:
    """Runs ASPP on a square and a rectangle, Res-SE with both shortcuts, the whole channel transformer."""
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
        module = load_file(sys.argv[1])
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
