"""Makes inputs and weights from an integer hash, the same in any language; nothing of adref is imported."""

import importlib.util
import sys
import zlib
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import numpy as np
import torch
from torch import nn


def hashed(name: str, *shape: int) -> torch.Tensor:
    """Computes float32 values in [0, 1), 24 bits each, by 32-bit integer arithmetic.

    With h = crc32(name), the element at flat index i is, modulo 2^32 in every step,
        x = h + 0x9E3779B9 * (i + 1);  x = (x ^ (x >> 16)) * 0x85EBCA6B;  x = (x ^ (x >> 13)) * 0xC2B2AE35;
        x = x ^ (x >> 16);  value = (x >> 8) / 2^24
    (the finaliser of MurmurHash3; A. Appleby, public domain).
    """
    x = (np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * 0x9E3779B9 + zlib.crc32(name.encode())) & 0xFFFFFFFF
    x = ((x ^ (x >> np.uint64(16))) * 0x85EBCA6B) & 0xFFFFFFFF
    x = ((x ^ (x >> np.uint64(13))) * 0xC2B2AE35) & 0xFFFFFFFF
    x = x ^ (x >> np.uint64(16))
    return torch.from_numpy((x >> np.uint64(8)).astype(np.float64) / 2**24).float().reshape(shape)


@torch.no_grad()
def fill(module: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Gives every floating tensor of a module hashed values, in float32: weights scaled by fan-in, variances positive.

    Returns the module in evaluation mode and of type `dtype`.
    """
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and tensor.numel():
            values = hashed(name, *tensor.shape)
            if tensor.ndim > 1:
                values = (values - 0.5) * (12 / tensor[0].numel()) ** 0.5  # variance 1 / fan-in
            else:
                values = 0.5 + values if name.endswith(("running_var", "weight")) else (values - 0.5) * 0.2
            tensor.copy_(values)
    return module.to(dtype).eval()


def digits(*values: float) -> list[float]:
    """Rounds each value to ten significant digits."""
    return [float(f"{float(v):.10g}") for v in values]


def report(case: str, output: torch.Tensor | np.ndarray) -> None:
    """Prints mean, standard deviation, and the means of the products with two lists of hashed numbers."""
    flat = torch.as_tensor(output).detach().flatten()
    products = [(flat * hashed(name, len(flat))).mean().item() for name in ("first", "second")]
    print(f"{case}: {digits(flat.mean(), flat.std(correction=0), *products)}")


def load_file(path: str, name: str | None = None) -> ModuleType:
    """Imports one file of another program under a name, that of the file unless given."""
    spec = importlib.util.spec_from_file_location(name or Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stand_in_for_torchvision() -> None:
    """Puts mocks in place of torchvision, where it is missing; timm imports it, no number here needs it."""
    if importlib.util.find_spec("torchvision") is None:
        for part in ("", ".datasets", ".ops", ".ops.misc", ".transforms", ".transforms.functional"):
            sys.modules[f"torchvision{part}"] = MagicMock()
