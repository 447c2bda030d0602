"""ImageNet's normalisation, and loading of published weights, for frozen feature extractors."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's training images, in [0, 1]


def normalise(images: Tensor) -> Tensor:
    """Subtracts ImageNet's mean from RGB (B, 3, H, W) in [0, 1] and divides by its standard deviation."""
    mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std


def published_state(state: Mapping, refusal: str) -> dict[str, Tensor]:
    """Returns the tensors of a published file by name, those below "state_dict" or "model", without "module." in front.

    A file without a dictionary of tensors raises ValueError(refusal).
    """
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    tensors = isinstance(state, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not tensors:
        raise ValueError(refusal)
    return {key.removeprefix("module."): value for key, value in state.items()}


def load_published(network: nn.Module, state: Mapping, name: str, ignored: tuple[str, ...] = (),
                   rename: Callable[[str], str] | None = None) -> list[str]:  # fmt: skip
    """Copies published weights into a feature extractor, all of them or none; returns a note if names were ignored.

    `state` (see `published_state`) may have any float type; `name` stands in messages; `ignored` are prefixes of names
    that the extractor does not use; `rename` maps the file's names to the extractor's. ValueError: names that are
    missing or unknown, other shapes, values that are not finite.
    """
    state = published_state(state, f"the weights of {name} are no dictionary of tensors")
    state = {rename(key): value for key, value in state.items()} if rename else state
    own = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    left = [key for key in state if key.startswith(ignored)] if ignored else []
    given = {k: v for k, v in state.items() if k not in left and not k.endswith("num_batches_tracked")}
    missing, unknown = sorted(set(own) - set(given)), sorted(set(given) - set(own))
    wrong = f"the weights do not fit {name}: "
    if missing or unknown:
        counts = f"{len(missing)} names are missing {missing[:3]}, {len(unknown)} are unknown {unknown[:3]}"
        raise ValueError(wrong + counts)
    for key, value in own.items():
        if given[key].shape != value.shape:
            raise ValueError(f"{wrong}{key} has the shape {tuple(given[key].shape)}, expected {tuple(value.shape)}")
        if not torch.isfinite(given[key].float()).all():
            raise ValueError(f"the weights of {name} are not finite: {key}")
    network.load_state_dict({key: given[key].float() for key in own}, strict=False)
    return [f"{', '.join(left[:3])} ({len(left)} in all) are of no use to the features"] if left else []
