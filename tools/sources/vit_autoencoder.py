"""Prints the sourced golden numbers of the pieces of the ViT autoencoder with memory (adref is not imported).

    pip install torch timm transformers scikit-image
    PYTHONPATH=tools python tools/sources/vit_autoencoder.py [memory_module.py] [entropy_loss.py] [coordatt.py]

    models/memory_module.py  of donggong1/memae-anomaly-detection, stored at commit 89cb183
    models/entropy_loss.py   of the same, stored at commit ceece77
    coordatt.py              of houqb/CoordAttention, stored at commit a3f3490

Encoder: timm's vision transformer, and transformers'. Memory: the MemAE authors' files, known by their names, where
they are given. Coordinate attention: timm's, and the authors' file where it is given. Smoothing: scipy. SSIM map:
scikit-image, and a few lines of scipy. Weights and inputs: the hash of tools/hash_recipe.py by these programs'
parameter names, in float64.
"""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import scipy
import skimage
import torch
import transformers
from hash_recipe import fill, hashed, load_file, report, stand_in_for_torchvision
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity
from torch import nn

stand_in_for_torchvision()
import timm  # noqa: E402
from timm.layers.coord_attn import CoordAttn  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402


def verdict(case: str, one: torch.Tensor, other: torch.Tensor) -> None:
    """Prints whether two programs agree, and the largest difference."""
    difference = (one - other).abs().max().item()
    print(f"  {case} {'agree' if difference < 1e-12 else 'DISAGREE'}: at most {difference:.1g} apart")


def encoder() -> None:
    """Runs two blocks of four heads on a rectangle; the map of the patch tokens after the last norm."""
    images = hashed("images", 2, 3, 64, 96).double()
    size = {"img_size": (64, 96), "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 4}
    network = fill(VisionTransformer(**size, num_classes=0, global_pool=""))
    assert {m.eps for m in network.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}
    for block in network.blocks:
        block.attn.fused_attn = False  # timm's own lines of attention
    tokens = network(images)
    here = tokens[:, 1:].transpose(1, 2).reshape(2, 48, 4, 6)
    (own,) = network.forward_intermediates(images, indices=[1], norm=True, intermediates_only=True)
    report("encoder, timm", here)
    verdict("timm's tokens and timm's own map", here, own)
    print("  parameters:", sum(p.numel() for p in network.parameters()))

    # Not "eager", whose softmax is float32 whatever the input: it stays 2e-7 away.
    config = transformers.ViTConfig(
        image_size=(64, 96), patch_size=16, hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=192, layer_norm_eps=1e-6, attn_implementation="sdpa",
    )  # fmt: skip
    witness = transformers.ViTModel(config, add_pooling_layer=False).double().eval()
    witness.load_state_dict(renamed(network.state_dict()))
    other = witness(images).last_hidden_state[:, 1:].transpose(1, 2).reshape(2, 48, 4, 6)
    report("encoder, transformers", other)
    verdict("timm and transformers", here, other)

    with torch.device("meta"):
        large = VisionTransformer(384, embed_dim=768, depth=12, num_heads=8, num_classes=0, global_pool="")
    counts = [sum(p.numel() for p in module.parameters()) for module in (large, large.blocks[0])]
    print(
        f"encoder at full size, 384 pixels, width 768, 12 blocks, 8 heads: parameters {counts[0]}, a block {counts[1]}"
    )


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Translates timm's names to those of transformers 5, where query, key and value are three layers."""
    names = {
        "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection", "blocks": "layers", "norm1": "layernorm_before",
        "norm2": "layernorm_after", "attn.proj": "attention.o_proj",
    }  # fmt: skip
    result = {}
    for name, tensor in state.items():
        new = name.replace("norm.", "layernorm.") if name.startswith("norm.") else name
        for old, replacement in names.items():
            new = new.replace(old, replacement)
        if "attn.qkv" in new:
            for part, third in zip("qkv", tensor.chunk(3)):
                result[new.replace("attn.qkv", f"attention.{part}_proj")] = third
        else:
            result[new] = tensor
    return result


def memory(module: ModuleType, entropy: ModuleType | None) -> None:
    """Addresses 50 items of width 16 by 30 queries; weights are shrunk and renormalised, outputs mix the raw items."""
    items = (hashed("items", 50, 16).double() - 0.5) * 2
    queries = hashed("queries", 30, 16).double() * 4 - 2
    # The file knows the dot product only. Of rows of unit length that is the cosine; queries of length 1 / tau divide
    # it by tau. Its own output then mixes unit items, so the raw items are mixed here with the weights it returns.
    unit = items / items.norm(dim=1, keepdim=True), queries / queries.norm(dim=1, keepdim=True)
    forms = {"dot": (items, queries), "cosine": unit, "cosine, tau 0.1": (unit[0], unit[1] / 0.1)}
    for form, (rows, asked) in forms.items():
        for name, threshold in (("none", 0), ("1/K", 1 / 50), ("0.0025", 0.0025)):
            unit_module = module.MemoryUnit(50, 16, threshold).double()
            unit_module.weight.copy_(rows)
            answer = unit_module(asked)
            weights = answer["att"]
            output = answer["output"] if form == "dot" else weights @ items
            print(f"memory, {form}, threshold {name}: {int((weights > 0).sum())} of 1500 weights are left")
            nearest = ((asked @ rows.T).softmax(1) - threshold).abs().min().item()
            print(f"  no soft weight is closer to the threshold than {nearest:.2g}")
            report("  weights", weights)
            report("  output", output)
            if entropy is not None:
                print(f"  entropy: {entropy.EntropyLoss()(weights).item():.10g}")
            whole = module.MemModule(50, 16, threshold).double()
            whole.memory.weight.copy_(rows)
            maps = whole(asked.reshape(2, 3, 5, 16).permute(0, 3, 1, 2))  # query t = 15 b + 5 row + column
            assert torch.equal(maps["att"].permute(0, 2, 3, 1).reshape(30, 50), weights)
            if entropy is not None:
                assert torch.equal(entropy.EntropyLossEncap()(maps["att"]), entropy.EntropyLoss()(weights))

    for count in (10, 50, 500, 2000):
        left = []
        for kind in (torch.float32, torch.float64):
            unit_module = module.MemoryUnit(count, 16, 1 / count).to(kind)
            unit_module.weight.copy_(items[:1].expand(count, 16))
            answer = unit_module(queries.to(kind))
            left.append((int((answer["att"] > 0).sum()), answer["output"].abs().max().item()))
        print(f"memory, {count} equal items, dot, 1/K: weights left and largest output, float32 and float64: {left}")


def coordinate_attention(module: ModuleType | None) -> None:
    """Runs coordinate attention on a rectangle; timm's is the paper's form with bias and given width."""
    for channels in (40, 512, 768):
        width = max(8, channels // 32)
        x = hashed("map", 2, channels, 6, 10).double() - 0.5
        attention = fill(CoordAttn(channels, rd_channels=width, bias=True))
        output = attention(x)
        report(f"coordinate attention {channels} -> {width}, timm", output)
        print("  parameters:", sum(p.numel() for p in attention.parameters()))
        if module is not None:
            authors = fill(module.CoordAtt(channels, channels, reduction=32))
            assert authors.state_dict().keys() == attention.state_dict().keys()
            theirs = authors(x)
            report(f"coordinate attention {channels} -> {authors.conv1.out_channels}, authors' file", theirs)
            verdict("timm and the authors' file", theirs, output)


def smoothing() -> None:
    """Smooths by scipy, whose `reflect` repeats the edge pixel; at sigma 15 the radius of 60 exceeds both sides."""
    picture = hashed("map", 40, 56).double().numpy()
    for sigma in (2, 6, 15):
        smooth = gaussian_filter(picture, sigma, mode="reflect", truncate=4.0)
        report(f"smoothing, sigma {sigma}", torch.from_numpy(smooth))


def ssim_maps() -> None:
    """Computes SSIM maps with the edge pixel repeated (numpy: symmetric), or not (numpy and torch: reflect)."""
    k, r, c = np.mgrid[:3, :64, :64]
    image = (7 * r + 13 * c + 29 * k) % 256 / 255
    a, b = (hashed(name, 3, 24, 40).double().numpy() for name in ("a", "b"))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0, "full": True}
    for case, (first, second) in {
        "I and 0.9 I + 0.05": (image, 0.9 * image + 0.05), "I and 1 - I": (image, 1 - image),
        "a and 0.7 a + 0.3 b": (a, 0.7 * a + 0.3 * b),
    }.items():  # fmt: skip
        for border, mode in (("symmetric", "reflect"), ("reflect", "mirror"), ("constant", "constant")):
            # A border of 5 put on by numpy, cut off afterwards, decides about scikit-image's own border (symmetric).
            padded = [np.pad(p, ((0, 0), (5, 5), (5, 5)), mode=border) for p in (first, second)]
            _, full = structural_similarity(*padded, channel_axis=0, **options)
            full = full[:, 5:-5, 5:-5]
            mine = np.stack([scipy_ssim(p, q, mode) for p, q in zip(first, second)])
            report(f"ssim map, {case}, border {border}", torch.from_numpy(full.copy()))
            print(f"  mean {full.mean():.8f}; a few lines of scipy differ by at most {abs(full - mine).max():.2g}")
        inner, own = structural_similarity(first, second, channel_axis=0, **options)
        print(f"  scikit-image's own map {own.mean():.8f} (= symmetric), its own mean, valid windows only, {inner:.8f}")


def scipy_ssim(a: np.ndarray, b: np.ndarray, mode: str) -> np.ndarray:
    """Computes the published formula; scipy says `mirror` where numpy and torch say reflect."""

    def local(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, 1.5, mode=mode, radius=5)

    mean_a, mean_b = local(a), local(b)
    spread = local(a * a) - mean_a**2 + local(b * b) - mean_b**2
    both = local(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    return (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (spread + c2))


def main() -> None:
    """Runs every piece whose source is given."""
    packages = {"timm": timm, "transformers": transformers, "torch": torch, "scipy": scipy, "scikit-image": skimage}
    print(*(f"{name} {package.__version__}" for name, package in {**packages, "numpy": np}.items()), sep=", ")
    files = {Path(path).stem: load_file(path) for path in sys.argv[1:]}
    encoder()
    if "memory_module" in files:
        memory(files["memory_module"], files.get("entropy_loss"))
    coordinate_attention(files.get("coordatt"))
    smoothing()
    ssim_maps()


if __name__ == "__main__":
    with torch.inference_mode():
        main()
