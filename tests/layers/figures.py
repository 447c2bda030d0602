"""Numbers that a module's output and weights are compared by."""

import torch
from conftest import golden


def figures(output: torch.Tensor) -> list[float]:
    """Mean, standard deviation, and the means of the products with two lists of hashed numbers, as in tools/sources."""
    flat = output.detach().double().flatten()
    products = [(flat * golden.hashed(name, len(flat))).mean().item() for name in ("first", "second")]
    return [flat.mean().item(), flat.std(correction=0).item(), *products]


def parameters(*modules) -> int:
    """Counts the parameters."""
    return sum(p.numel() for module in modules for p in module.parameters())


@torch.no_grad()
def fill_by(names: dict[str, list[str]], module: torch.nn.Module) -> torch.nn.Module:
    """Fills a module with the hash of another program's names, one or several below one another for each of ours."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            parts = []
            for theirs in names[name]:
                part = golden.hashed(theirs, tensor.shape[0] // len(names[name]), *tensor.shape[1:])
                if tensor.ndim > 1:
                    part = (part - 0.5) * (12 / part[0].numel()) ** 0.5
                else:
                    part = 0.5 + part if name.endswith(("running_var", "weight")) else (part - 0.5) * 0.2
                parts.append(part)
            tensor.copy_(torch.cat(parts))
    return module
