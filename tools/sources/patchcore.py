"""Prints the sourced golden numbers of tests/methods/test_patchcore.py, from anomalib, faiss and scipy.

    pip install torch scipy faiss-cpu
    pip install --no-deps anomalib
    PYTHONPATH=tools python tools/sources/patchcore.py

torch 2.13.0, anomalib 2.7.0, faiss 1.15.1, scipy 1.17.1; 2026-11-29. anomalib averages each channel over 3 x 3 places,
joins the layers, and has equation 7; its file is loaded alone, with stand-ins for what it imports for other purposes.
The map is, as in the authors' code, scipy's Gaussian of the squares that faiss returns. Inputs: the hash of
tools/hash_recipe.py. adref is not imported.
"""

import importlib.metadata
import importlib.util
import sys
import types

import faiss
import numpy as np
import scipy.ndimage
import torch
import torch.nn.functional as F
from hash_recipe import digits, hashed, load_file
from torch import nn

LAYERS = {"layer2": hashed("layer 2", 2, 12, 8, 6), "layer3": hashed("layer 3", 2, 20, 4, 3)}
BANK = hashed("bank", 40, 32)
SIZE = (32, 24)


def anomalib_model(neighbours: int):
    """Builds anomalib's PatchcoreModel without the rest of anomalib; its features are LAYERS."""
    extractor = type("Extractor", (nn.Module,), {"__init__": lambda self, **_: nn.Module.__init__(self),
                                                 "forward": lambda self, images: dict(LAYERS)})  # fmt: skip
    members = {
        "anomalib.data": {"InferenceBatch": types.SimpleNamespace},
        "anomalib.models.components": {"DynamicBufferMixin": type("Mixin", (), {}), "KCenterGreedy": object,
                                       "TimmFeatureExtractor": extractor},
        "anomalib.utils": {"deprecate": lambda **_: lambda function: function},
        "stub.anomaly_map": {"AnomalyMapGenerator": lambda: lambda scores, size: scores},
    }  # fmt: skip
    for name, known in {"stub": {}, **members}.items():
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__dict__.update(known)
    folder = importlib.util.find_spec("anomalib").submodule_search_locations[0]
    module = load_file(f"{folder}/models/image/patchcore/torch_model.py", "stub.torch_model")
    model = module.PatchcoreModel(layers=list(LAYERS), num_neighbors=neighbours).eval()
    model.memory_bank = BANK
    return model


def main() -> None:
    """Prints image scores for two numbers of neighbours, patch distances, features, and the code's map."""
    packages = ("torch", "anomalib", "faiss-cpu", "scipy")
    print({name: importlib.metadata.version(name) for name in packages})
    for neighbours in (1, 3, 9):
        model = anomalib_model(neighbours)
        result = model(torch.zeros(2, 3, *SIZE))
        print(f"scores, b {neighbours}:", digits(*result.pred_score))
    pooled = model.generate_embedding({name: model.feature_pooler(layer) for name, layer in LAYERS.items()})
    flat = pooled.flatten()
    print("features:", digits(flat.mean(), *flat[torch.linspace(0, len(flat) - 1, 10).long()]))
    index = faiss.IndexFlatL2(BANK.shape[1])
    index.add(BANK.numpy())
    squares, _ = index.search(np.ascontiguousarray(model.reshape_embedding(pooled).numpy()), 1)
    maps = F.interpolate(torch.from_numpy(squares).view(2, 1, 8, 6), size=SIZE, mode="bilinear", align_corners=False)
    smooth = np.stack([scipy.ndimage.gaussian_filter(one, sigma=4) for one in maps[:, 0].numpy()])
    print("the code's map:", digits(smooth.mean(), *torch.from_numpy(smooth)[:, ::15, ::11].flatten()))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
