"""Prints the sourced golden numbers of tests/layers/test_swin.py, from timm and transformers (adref is not imported).

    pip install torch timm transformers
    PYTHONPATH=tools python tools/sources/swin.py

Both packages have a port of the Swin authors' code; where both can compute a case, the largest difference between them
is printed behind it. Weights and inputs: the hash of tools/hash_recipe.py by the authors' parameter name, in float64.
"""

import re

import torch
import transformers
from hash_recipe import hashed, stand_in_for_torchvision
from transformers.models.swin import modeling_swin as hf

stand_in_for_torchvision()
import timm  # noqa: E402
from timm.models import swin_transformer as ti  # noqa: E402

WIDTH, HEADS = 12, 3
AUTHORS = (  # transformers' names -> the authors'
    ("attention.o_proj", "attn.proj"), ("attention.relative_position_bias.", "attn."), ("attention.", "attn."),
    ("relative_position_bias.", ""), ("o_proj", "proj"), ("layernorm_before", "norm1"), ("layernorm_after", "norm2"),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"), ("embeddings.norm", "patch_embed.norm"),
    ("encoder.", ""), ("layernorm", "norm"),
)  # fmt: skip


def fill(module: torch.nn.Module) -> torch.nn.Module:
    """Fills every parameter by its authors' name, as `fill` of tools/hash_recipe.py."""
    for name, tensor in module.state_dict().items():
        third, parts = 0, 1
        if isinstance(module, ti.SwinTransformer):  # timm merges before a layer, the authors after it
            name = re.sub(r"layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)
        elif type(module).__module__ == hf.__name__:
            for theirs, authors in AUTHORS:
                name = name.replace(theirs, authors)
            if found := re.search(r"([qkv])_proj", name):
                name, third, parts = name.replace(found[0], "qkv"), "qkv".index(found[1]), 3
        values = hashed(name, parts * tensor.shape[0], *tensor.shape[1:]).chunk(parts)[third]
        if tensor.ndim > 1:
            values = (values - 0.5) * (12 / values[0].numel()) ** 0.5
        else:
            values = 0.5 + values if name.endswith("weight") else (values - 0.5) * 0.2
        tensor.copy_(values)
    return module.eval().double()


def report(case: str, *outputs: torch.Tensor) -> None:
    """Prints mean, standard deviation and nine elements of the first output, as `digest` of tools/golden.py."""
    flat = outputs[0].flatten()
    numbers = [flat.mean().item(), flat.std(correction=0).item(), *flat[torch.linspace(0, len(flat) - 1, 9).long()]]
    agreement = [f"{(outputs[0] - other.reshape(outputs[0].shape)).abs().max():.1e}" for other in outputs[1:]]
    print(f"{case}: {[float(f'{v:.10g}') for v in numbers]}, difference between the packages {agreement or 'unknown'}")


def config(window: int, **more) -> transformers.SwinConfig:
    """Makes the authors' settings; sdpa, as the eager attention computes its softmax in float32."""
    return transformers.SwinConfig(embed_dim=WIDTH, window_size=window, attn_implementation="sdpa", **more)


def main() -> None:
    """Runs each piece, then a whole encoder."""
    print("timm", timm.__version__, "transformers", transformers.__version__, "torch", torch.__version__)
    for window in ((8, 8), (4, 8)):
        index = ti.get_relative_position_index(*window)
        other = hf.SwinRelativePositionBias(HEADS, window).relative_position_index
        weighted = (index * hashed("pairs", *index.shape).double()).sum().item()
        picks = index[[0, 0, -1, 0, 0], [0, -1, 0, 1, 8]].tolist()
        print(f"index {window}: {picks}, weighted sum {weighted!r}, same in both: {index.flatten().equal(other)}")
    blocks = {}
    for size, window in (((16, 16), 8), ((8, 16), 4), ((4, 16), 8)):
        x = hashed("map", 2, *size, WIDTH).double()
        for shift in (0, window // 2):
            blocks[size, shift] = ti.SwinTransformerBlock(WIDTH, size, HEADS, window_size=window, shift_size=shift)
            outputs = [fill(blocks[size, shift])(x)]
            if min(size) > window or min(size) == max(size):  # transformers knows square windows only
                layer = fill(hf.SwinLayer(config(window), WIDTH, size, HEADS, shift_size=shift))
                outputs.append(layer(x.flatten(1, 2), size)[0])
            report(f"block {size} {window} {shift > 0}", *outputs)
        masked = (blocks[size, shift].attn_mask != 0).sum((1, 2)).tolist()
        print(f"mask {size} {window}: masked pairs of each window {masked}")
    windows, mask = hashed("windows", 2, 8, 16, WIDTH).double(), blocks[(8, 16), 2].attn_mask
    peers = fill(ti.WindowAttention(WIDTH, HEADS, window_size=4)), fill(hf.SwinAttention(config(4), WIDTH, HEADS, 4))
    for case, given in (("attention", None), ("attention masked", mask)):
        report(case, peers[0](windows.flatten(0, 1), given), peers[1](windows.flatten(0, 1), given)[0])
    x = hashed("map", 2, 8, 16, WIDTH).double()
    report("merging", fill(ti.PatchMerging(WIDTH))(x), fill(hf.SwinPatchMerging(WIDTH))(x.flatten(1, 2), (8, 16)))
    sizes = {"depths": (2, 2, 2, 2), "num_heads": (3, 6, 12, 24), "drop_path_rate": 0.0}
    x = hashed("images", 2, 3, 128, 128).double()
    whole = fill(ti.SwinTransformer(128, 4, num_classes=0, embed_dim=WIDTH, window_size=4, **sizes))
    other = fill(hf.SwinModel(config(4, image_size=128, **sizes), add_pooling_layer=False))
    report("encoder", whole.forward_features(x), other(x).last_hidden_state)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
