"""Cases of the porter's kit: functions and classes, their inputs and options; see conformance.py."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from hash_recipe import fill, hashed
from torch import Tensor, nn

from adref import options as option_tools
from adref.data import examples
from adref.layers import (
    aspp,
    channel_cross_attention,
    coordinate_attention,
    diffusion_unet,
    efficientnet,
    memory,
    mobilenet,
    resnet,
    selective_kernel,
    swin,
    unet,
    vit,
)
from adref.methods import METHODS
from adref.methods.noise_to_norm import loss as noise_to_norm_loss
from adref.methods.noise_to_norm import method as noise_to_norm
from adref.methods.noise_to_norm import network as m_net
from adref.methods.patchcore import bank as patchcore_bank
from adref.methods.patchcore import method as patchcore
from adref.methods.realnet import anomalies as realnet_anomalies
from adref.methods.realnet import cut_paste, foreground, networks, nsa, selection
from adref.methods.realnet import method as realnet
from adref.methods.sdas import method as sdas
from adref.methods.sdas import schedule
from adref.methods.sernet import anomalies as sernet_anomalies
from adref.methods.sernet import map as sernet_map
from adref.methods.sernet import method as sernet
from adref.methods.sernet import similar
from adref.methods.srdad import anomalies as srdad_anomalies
from adref.methods.srdad import discriminator, reconstructor
from adref.methods.srdad import method as srdad
from adref.methods.srdad import options as srdad_options
from adref.methods.vit_autoencoder import decoder
from adref.ops import filters, image, losses, metrics, patches, perlin, poisson, texture_anomaly, textures
from adref.run import scoring

PICKED = 8  # elements of a weight that are compared after a step of the optimiser
REASONS = {
    "exact": "integers and decisions, no ties among the inputs",
    "float64": "sums in another order, in float64",
    "float32": "sums in another order, in float32",
    "variance": "float32 variances as differences of means, which nearly cancel",
    "deep": "float32 through dozens of layers and normalisations",
    "gradient": "float32, forward and back; norms of all gradients of a stage are held to the largest of them",
}
TOLERANCES = {"exact": 0.0, "float64": 1e-9, "float32": 1e-5, "variance": 5e-5, "deep": 1e-4, "gradient": 1e-3}


class Array(NamedTuple):
    """An input: the hash of a name, changed as the kit's README says, or the values themselves."""

    name: str
    shape: tuple[int, ...]
    scale: float = 1.0
    shift: float = 0.0
    above: float | None = None  # 1 where the hash is above it, 0 elsewhere
    levels: int | None = None  # rounded down to so many levels: ties
    dtype: str = "float32"
    numpy: bool = False  # whether adref's function takes a numpy array
    values: tuple | None = None
    repeat: tuple[int, ...] | None = None  # each element of a smaller array so many times along each axis

    def value(self) -> Tensor | np.ndarray:
        """Computes the array."""
        repeat = self.repeat or (1,) * len(self.shape)
        raw = hashed(self.name, *(side // times for side, times in zip(self.shape, repeat))).double().numpy()
        for axis, times in enumerate(repeat):
            raw = raw.repeat(times, axis)
        if self.values is not None:
            raw = np.array(self.values)
        elif self.above is not None:
            raw = raw > self.above
        elif self.levels:
            raw = np.floor(raw * self.levels) / self.levels
        else:
            raw = 256 * raw if self.dtype == "uint8" else self.scale * raw + self.shift
        array = raw.astype(self.dtype)
        return array if self.numpy else torch.from_numpy(array)

    def described(self) -> dict:
        """Describes the array for the manifest."""
        if self.values is not None:
            return {"values": self.values, "shape": self.shape, "dtype": self.dtype}
        rule = {"above": self.above} if self.above is not None else {"levels": self.levels}
        if self.above is None and not self.levels:
            rule = {} if self.dtype == "uint8" else {"scale": self.scale, "shift": self.shift}
        repeat = {"repeat": self.repeat} if self.repeat else {}
        return {"hash": self.name, "shape": self.shape, "dtype": self.dtype, **rule, **repeat}


def h(name: str, *shape: int, **changes) -> Array:
    """Describes an input for torch."""
    return Array(name, shape, **changes)


def hn(name: str, *shape: int, **changes) -> Array:
    """Describes an input for numpy."""
    return Array(name, shape, numpy=True, **changes)


def given(dtype: str, *values, numpy: bool = False) -> Array:
    """Describes an input by its values."""
    return Array("", np.array(values).shape, dtype=dtype, values=values, numpy=numpy)


def resolve(value):
    """Replaces descriptions by arrays, inside tuples too."""
    if isinstance(value, Array):
        return value.value()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(resolve, value))
    return type(value)(map(resolve, value)) if isinstance(value, tuple | list) else value


def described(value) -> Any:
    """Replaces arrays and options by plain values for the manifest."""
    if isinstance(value, Array):
        return value.described()
    if dataclasses.is_dataclass(value):
        return option_tools.to_json(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {field: described(item) for field, item in zip(value._fields, value)}
    if isinstance(value, tuple | list):
        return list(map(described, value))
    return {key: described(item) for key, item in value.items()} if isinstance(value, dict) else value


Arrays = dict[str, np.ndarray]


def named(prefix: str, value) -> Iterator[tuple[str, np.ndarray]]:
    """Names the results of a function: "prefix", or "prefix:FIELD" for each of several; None gives nothing."""
    if isinstance(value, list) and all(isinstance(item, int | float) for item in value):
        value = np.array(value)
    if isinstance(value, Tensor | np.ndarray | float | int | np.generic):
        yield prefix, (value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)).copy()
    elif value is not None:
        fields = value if isinstance(value, dict) else getattr(value, "_fields", range(len(value)))
        for field, item in zip(fields, value.values() if isinstance(value, dict) else value):
            yield from named(f"{prefix}:{field}", item)


def traced(module: nn.Module, call: Callable[[], Any]) -> Arrays:
    """Collects the output of every part of a module during a call, in order, then the result of the call.

    The input of a part without parts ("trace/NAME<") is added where no other part computed it.
    """
    arrays: Arrays = {}
    calls: dict[str, int] = {}

    seen: dict[int, Any] = {}  # alive, or another tensor would get the same id

    def keep(part: nn.Module, inputs: tuple, output, name: str) -> None:
        calls[name] = calls.get(name, 0) + 1
        again = f"#{calls[name]}" if calls[name] > 1 else ""
        for tensor in inputs if not any(part.children()) else ():
            if id(tensor) not in seen:  # computed between two parts
                arrays.update(named(f"trace/{name}{again}<", tensor))
        for tensor in output if isinstance(output, tuple | list) else (output,):
            seen[id(tensor)] = tensor
        arrays.update(named(f"trace/{name}{again}", output))

    hooks = [part.register_forward_hook(partial(keep, name=name)) for name, part in module.named_modules() if name]
    try:
        result = call()
    finally:
        for hook in hooks:
            hook.remove()
    return {**arrays, **dict(named("out", result))}


def state_of(module: nn.Module) -> dict[str, list[int] | np.ndarray]:
    """Maps each weight that the recipe gives to its shape, and any other tensor to its values."""
    state = module.state_dict().items()
    kept = ((key, t) for key, t in state if not key.endswith("num_batches_tracked"))
    return {key: list(t.shape) if t.is_floating_point() else t.numpy().copy() for key, t in kept}


class Case(NamedTuple):
    """One function, layer or method that a port must reproduce."""

    name: str
    target: Any  # a function, or a class of modules or methods
    inputs: dict[str, Any]  # in the order of the function's arguments
    options: dict[str, Any]
    tolerance: str = "float32"  # of TOLERANCES
    scale: float = 0.0  # least absolute value that the tolerance is a share of

    @property
    def where(self) -> str:
        """Returns the dotted name of the target."""
        return f"{self.target.__module__}.{self.target.__qualname__}"

    @property
    def documentation(self) -> str:
        """Joins the docstrings of the target and of the functions of its file that it names."""
        module = inspect.getmodule(self.target)
        parts = [self.target, getattr(self.target, "forward", None)]
        texts = [inspect.getdoc(part) for part in parts if part and inspect.getdoc(part)]
        beside = (vars(module).get(name) for name in re.findall(r"`(\w+)`", "\n".join(texts)))
        texts += [f"{f.__name__}: {inspect.getdoc(f)}" for f in beside if inspect.isfunction(f) and f != self.target]
        return "\n\n".join(texts)

    @property
    def defaults(self) -> dict[str, Any]:
        """Returns the defaults of the options that the case does not give."""
        given = {} if self.is_method else inspect.signature(self.target).parameters
        known = {n: p.default for n, p in given.items() if p.default is not p.empty}
        return {n: described(value) for n, value in known.items() if n not in self.options and n not in self.inputs}

    @property
    def is_method(self) -> bool:
        """Tells whether the target is a whole method; its options are then changes of its preset tiny."""
        return self.target in METHODS.values()

    def method_options(self):
        """Builds the options of a whole method."""
        m = self.target
        return option_tools.build(m.Options, m.presets, m.ablations, "tiny", None, self.options)

    def built(self):
        """Builds a whole method with hashed weights."""
        return fill(self.target(self.method_options()), torch.float32)

    def kind(self, name: str, array: np.ndarray) -> str:
        """Returns the key of TOLERANCES for one of the arrays."""
        if array.dtype.kind in "bui":
            return "exact"
        if array.dtype == np.float32 and self.tolerance == "float64":  # computed in float64, handed over in float32
            return "float32"
        return "gradient" if name.startswith(("gradient/", "step/")) else self.tolerance

    def run(self) -> tuple[Arrays, dict]:
        """Computes the arrays in order, and the weights as `state_of` has them."""
        inputs = {name: resolve(value) for name, value in self.inputs.items()}
        if self.is_method:
            return end_to_end(self.built, inputs)
        with torch.no_grad():
            options = {name: resolve(value) for name, value in self.options.items()}
            if not inspect.isclass(self.target):
                return dict(named("out", self.target(*inputs.values(), **options))), {}
            module = fill(self.target(**options), torch.float32)
            state = state_of(module)
            return traced(module, lambda: module(*inputs.values())), state


# -- whole methods ----------------------------------------------------------------------------------------------------


class HashedStream:
    """Stands for a generator: hashed uniform numbers with the mean and deviation of normal ones."""

    def __init__(self, name: str):
        self.name, self.calls = name, 0

    def standard_normal(self, shape: tuple[int, ...], kind) -> np.ndarray:
        """Computes sqrt(12) (h - 0.5), h of "NAME 1" in the first call, "NAME 2" in the second ..."""
        self.calls += 1
        return Array(f"{self.name} {self.calls}", tuple(shape), 12**0.5, -(3**0.5), numpy=True).value().astype(kind)


def infer(method, x: dict[str, Tensor]) -> dict[str, Any]:
    """Runs a method for its purpose: image scores and maps; SDAS: pictures."""
    if isinstance(method, sdas.SDAS):
        streams = [HashedStream(name) for name in ("first", "second")]
        return {"pictures": method.sample([0, 1], streams, [0.0, 0.2])}
    if isinstance(method, sernet.SeRNet):
        method.bank.fill(list(x["bank"]))
    if isinstance(method, patchcore.PatchCore):
        method.bank = x["bank"]
    return dict(zip(("scores", "maps"), method.score(x["images"])))


def reconstructions(method, images: Tensor) -> Tensor:
    """Rebuilds images (B, 3, H, W) one by one, as a report shows them."""
    return torch.stack([method.figures(image[None])["reconstruction"] for image in images])


def beside(method, x: dict[str, Tensor]) -> dict[str, Any]:
    """Computes the other results of a method: reconstructions, SDAS's schedule, RealNet's losses of AFS."""
    if isinstance(method, sdas.SDAS):
        return {"schedule": method.sampling_schedule()}
    if isinstance(method, realnet.RealNet):
        method.add_afs_losses(x["images"], x["corrupted"], x["mask"])
        return {"afs_losses": [getattr(method, f"afs_losses_{k}") for k in range(len(method.options.widths))]}
    if isinstance(method, patchcore.PatchCore):
        return {"features": method.features(x["images"])}
    return {"reconstruction": reconstructions(method, x["images"])}


def batch_of(method, x: dict[str, Tensor]) -> NamedTuple:
    """Builds the training batch of a method."""
    if isinstance(method, noise_to_norm.NoiseToNorm):
        return noise_to_norm.Batch(x["images"], noise_to_norm.blend(x["images"], x["noise"], method.options))
    kind = inspect.getmodule(type(method)).Batch
    return kind(*(x["images" if field == "clean" else field] for field in kind._fields))


def end_to_end(build: Callable, x: dict[str, Tensor]) -> tuple[Arrays, dict]:
    """Runs inference with hashed weights, and one training step of each stage from the same weights."""
    method = build()
    state = state_of(method)
    with torch.no_grad(), mock.patch.object(noise_to_norm, "draw_noise", lambda *_: x["noise"]):
        arrays = traced(method, lambda: infer(method, x))
        arrays.update(named("out", beside(method, x)))
    for stage in [stage.name for stage in method.stages if stage.length]:
        method = build().train()
        terms = method.loss(batch_of(method, x), stage)
        optimizer, _ = method.optimizer(stage)
        terms["total"].backward()
        arrays.update(named(f"loss/{stage}", terms))
        gradients = {key: p.grad.flatten().clone() for key, p in method.named_parameters() if p.grad is not None}
        arrays.update({f"gradient/{stage}/{key}": g.norm().numpy() for key, g in gradients.items()})
        method.after_backward(stage, True)
        optimizer.step()
        # Adam's first step is the sign of the gradient: of rounding errors where the gradient should be zero, as for a
        # bias before a batch norm
        least = 1e-4 * max(g.norm() for g in gradients.values())
        for key, weight in method.named_parameters():
            if key in gradients and gradients[key].abs().max() > least:
                index = gradients[key].abs().topk(min(PICKED, int((gradients[key].abs() > least).sum()))).indices
                arrays[f"INDEX/step/{stage}/{key}"] = index.sort().values.int().numpy()
                arrays[f"step/{stage}/{key}"] = weight.detach().numpy().copy()
    return arrays, state


def methods() -> Iterator[Case]:
    """Lists every method at its preset tiny, on two images."""
    changes = {
        # dropout would be random; the sampler's twenty steps are four here
        srdad.SRDAD: {"attention_dropout": 0.0},
        sdas.SDAS: {"categories": ("a", "b"), "sampling_steps": 4},
    }
    for name, target in METHODS.items():
        case = Case(f"method.{name}", target, {}, changes.get(target, {}), "deep")
        height, width = case.method_options().size
        pictures = {name: h(name, 2, 3, height, width) for name in ("images", "corrupted", "similar", "noise")}
        inputs = {**pictures, "mask": h("mask", 2, 1, height, width, above=0.9)}
        if target is sernet.SeRNet:
            inputs["bank"] = h("bank", 3, 3, height, width, dtype="uint8")
        if target is patchcore.PatchCore:
            inputs["bank"] = h("bank", 50, 152)
        if target is noise_to_norm.NoiseToNorm:
            inputs["noise"] = h("noise", 3, height, width)
        if target is sdas.SDAS:
            inputs = {"image": h("image", 2, 3, height, width, scale=2, shift=-1),
                      "noise": h("noise", 2, 3, height, width, scale=12**0.5, shift=-(3**0.5)),
                      "step": given("int64", 3, 700), "label": given("int64", 0, 1)}  # fmt: skip
        used = {"sdas": inputs, "patchcore": ("images", "bank"), "vit_autoencoder": ("images",),
                "noise_to_norm": ("images", "noise"),
                "sernet": ("images", "corrupted", "mask", "similar", "bank")}  # fmt: skip
        kept = used.get(name, ("images", "corrupted", "mask"))
        yield case._replace(inputs={key: inputs[key] for key in kept})


# -- pieces -----------------------------------------------------------------------------------------------------------


def piece(label: str, target, inputs: dict, tolerance: str = "float32", **options) -> Case:
    """Makes a case named after its target and a label: losses.ssim, swin.SwinBlock.shifted, srdad.anomalies.alter.

    A paper's folder is part of the name; "method" is left out.
    """
    _, folder, *rest = target.__module__.split(".")
    module = ".".join(rest or [folder]).removesuffix(".method")
    return Case(".".join(filter(None, (module, target.__qualname__, label))), target, inputs, options, tolerance)


def of_losses() -> Iterator[Case]:
    """Lists losses and the filters of maps."""
    pair = {"a": h("a", 2, 3, 24, 20), "b": h("b", 2, 3, 24, 20)}
    for window in ("gaussian", "uniform"):
        for padding in ("zero", "valid", "reflect"):
            yield piece(f"{window}-{padding}", losses.ssim_map, pair, "variance", window=window, padding=padding)
            mean = piece(f"{window}-{padding}", losses.ssim, pair, "variance", window=window, padding=padding)
            yield mean._replace(scale=1.0)  # the mean of noise and noise is next to 0
    yield piece("auto", losses.ssim, pair, value_range="auto")
    yield piece("", losses.gaussian_window, {}, size=11, sigma=1.5)
    yield piece("", losses.channel_signs, {"output": pair["a"], "target": pair["b"]})
    large = {"a": h("a", 2, 3, 40, 48), "b": h("b", 2, 3, 40, 48)}
    windows = {"sigmas": (0.5, 1.0, 2.0, 4.0, 8.0), "constants": (0.01**2, 0.03**2)}
    yield piece("", noise_to_norm_loss.ms_ssim_l1, large, "variance", **windows)
    probabilities = {
        "probabilities": h("p", 2, 2, 24, 20, scale=0.98, shift=0.01),
        "mask": h("m", 2, 1, 24, 20, above=0.8),
    }
    yield piece("", losses.focal, probabilities)
    yield piece("alpha", losses.focal, probabilities, alpha=0.25, gamma=1.5, smooth=0.0)
    maps = {"maps": h("maps", 2, 1, 24, 20)}
    for sigma in (1.5, 15.0):
        yield piece(f"{sigma}", filters.gaussian_smooth, maps, sigma=sigma)
    for border in ("zero", "reflect"):
        yield piece(border, filters.mean_filter, maps, side=7, border=border)
    yield piece("", filters.filtered_maximum, maps, side=5)
    yield piece("", filters.grain, {"images": h("images", 2, 3, 24, 20)})
    yield piece("", scoring.at_size, {"map": h("maps", 1, 1, 24, 20)}, size=(35, 50))


def of_metrics() -> Iterator[Case]:
    """Lists metrics; the scores have ties."""
    own = {"scores": hn("scores", 60, levels=16, dtype="float64"), "labels": hn("labels", 60, above=0.6, dtype="bool")}
    for metric in (metrics.auroc, metrics.average_precision, metrics.best_f1, metrics.roc_curve):
        yield piece("", metric, own, "float64")
    pixels = {"maps": hn("maps", 3, 20, 20, levels=64), "masks": hn("defects", 3, 20, 20, above=0.85, dtype="bool")}
    yield piece("", metrics.pixel_metrics, pixels, "float64")
    yield piece("", metrics.pro_curve, pixels, "float64")
    for convention in metrics.CONVENTIONS:
        yield piece(convention, metrics.aupro, pixels, "float64", convention=convention)


def of_images() -> Iterator[Case]:
    """Lists classical image operations and the resizing of images."""
    picture, plane = hn("picture", 24, 20, 3, dtype="uint8"), hn("plane", 24, 20, dtype="uint8")
    mask, other = hn("mask", 24, 20, above=0.6, dtype="bool"), hn("other", 9, 8, dtype="uint8")
    for rule in ("luma", "opencv"):
        yield piece(rule, image.grey, {"image": picture}, "float64", rule=rule)
    yield piece("", image.otsu, {"image": plane}, "float64")
    yield piece("", foreground.triangle, {"image": plane}, "exact")
    for operation, above in (("closing", 0.6), ("opening", 0.15)):
        speckled = {"mask": hn("mask", 24, 20, above=above, dtype="bool")}
        yield piece(operation, image.morphology, speckled, "exact", operation=operation)
    yield piece("", image.frame_share, {"mask": mask}, "float64", width=3)
    for connectivity in (8, 4):
        small = sernet_anomalies.remove_small
        yield piece(f"{connectivity}", small, {"mask": mask}, "exact", min_area=5, connectivity=connectivity)
    yield piece("", similar.perceptual_hash, {"image": hn("photograph", 75, 101, 3, dtype="uint8")}, "exact")
    hashes = {"hashes": other, "query": hn("own", 8, dtype="uint8")}
    yield piece("", similar.hamming, hashes, "exact")
    yield piece("", similar.nearest, hashes, "exact", exclude=2)
    pair = {"x": h("x", 2, 3, 32, 48), "y": h("y", 2, 3, 32, 48)}
    yield piece("", sernet_map.cielab, {"images": pair["x"]})
    for padding in ("zero", "replicate", "none"):
        yield piece(padding, sernet_map.msgms, pair, scales=3, padding=padding)
    yield piece("grey", sernet_map.msgms, pair, scales=2, grey=True)
    for rule in ("bilinear", "antialias"):
        photograph = {"image": h("photograph", 3, 37, 51, dtype="uint8")}
        yield piece(rule, examples.resize, photograph, "exact", size=(20, 64), filter=rule)


def of_synthesis() -> Iterator[Case]:
    """Lists synthetic anomalies with given random numbers."""
    small, large = h("image", 3, 32, 32), h("image", 3, 64, 48)
    angles = hn("angles", 5, 9, scale=2 * np.pi, dtype="float64")
    yield piece("", perlin.perlin, {"angles": angles}, "float64", shape=(32, 48))
    noise = hn("noise", 32, 48, scale=2, shift=-1, dtype="float64")
    yield piece("", perlin.threshold, {"noise": noise}, "exact", level=0.5)
    yield piece("", perlin.rotate, {"array": hn("array", 32, 48)}, degrees=21.0)
    texture = hn("texture", 32, 32, 3, dtype="uint8")
    numbers = {
        "gamma": (0.7, 1.0, 1.6), "brightness": ("Lab", 1.1, -12, True), "sharpness": (1.7,),
        "hue_and_saturation": (25, -30), "solarise": (90,), "posterise": (3,), "invert": (), "autocontrast": (8,),
        "equalise": (), "rotate": (21.0,),
    }  # fmt: skip
    for name in textures.OPERATIONS:
        yield piece(name, textures.apply_operations, {"texture": texture}, "exact", drawn=((name, numbers[name]),))
    mask = h("mask", 1, 32, 32, above=0.7)
    mixed = {"image": small, "texture": h("texture", 3, 32, 32), "mask": mask}
    yield piece("", texture_anomaly.blend, mixed, weight=0.6)
    for label, channels in (("colours", 3), ("grey", 1)):
        pictures = {"texture": mixed["texture"], "image": h("image", channels, 32, 32)}
        yield piece(label, texture_anomaly.match_colours, pictures)
    changed = {"mask": mask, "corrupted": mixed["texture"], "clean": small}
    yield piece("", texture_anomaly.visible_part, changed, levels=60.0)
    yield piece("", realnet_anomalies.blend, mixed, opacity=0.7)
    rule = noise_to_norm.NoiseToNorm.Options
    for domain in ("normalised", "pixel"):
        pictures = {"images": h("images", 2, 3, 16, 16), "noise": h("noise", 2, 3, 16, 16)}
        yield piece(domain, noise_to_norm.blend, pictures, options=rule(noise_domain=domain))
    source, target = (hn(name, 3, 20, 24, dtype="float64") for name in ("source", "target"))
    region = hn("region", 20, 24, above=0.2, dtype="bool")
    yield piece("", poisson.inner_boundary, {"region": region}, "exact")
    for stiffness in (None, 1.0):
        for mode in (False, True):
            label = f"{'mixed' if mode else 'plain'}-{'hard' if stiffness is None else 'stiff'}"
            inputs = {"source": source, "target": target, "region": region}
            yield piece(label, poisson.poisson_blend, inputs, "float64", stiffness=stiffness, mixed=mode)
    patch, added = (hn(name, 3, 9, 13, dtype="float64") for name in ("patch", "noise"))
    yield piece("", patches.warp, {"patch": patch}, "float64", angle=0.7, scale=1.15)
    yield piece(
        "",
        srdad_anomalies.alter,
        {"patch": patch},
        "float64",
        numbers=srdad_anomalies.Alteration(added, 1.1, 0.05, 0.7, 1.15),
    )
    part = hn("part", 3, 32, 32, repeat=(1, 8, 8), dtype="float64")
    yield piece(
        "", srdad_anomalies.object_mask, {"image": part}, "exact", options=srdad_options.Options(), polarity="bright"
    )
    cut = cut_paste.CutPasteNumbers((5, 7), (20, 12), 30.0, (30, 20), (1.1, 0.9, 1.05), 0.08)
    yield piece("", cut_paste.cut_paste, {"image": large}, numbers=cut)
    yield piece("", cut_paste.change_colour, {"image": large}, factors=(1.1, 0.9, 1.05), hue=0.08)
    drawn_patches = (
        nsa.NSAPatch((3, 4), (12, 16), (15, 20), (10, 12)),
        nsa.NSAPatch((30, 20), (10, 9), (8, 7), (40, 30)),
    )
    pair = {"image": hn("image", 3, 64, 48), "other": hn("other", 3, 64, 48)}
    for label, rule in (("plain", nsa.NSARule()), ("mixed", nsa.NSARule(mixed=True, background=(100.0, 60.0)))):
        yield piece(label, nsa.nsa, pair, patches=drawn_patches, rule=rule)
    yield piece(
        "", nsa.object_pixels, {"image": hn("blocks", 3, 64, 48, repeat=(3, 16, 16))}, "exact", background=(100.0, 60.0)
    )
    for name in ("pcb1", "01", "pill"):
        picture = {"image": hn("picture", 64, 48, 3, repeat=(16, 12, 1), dtype="uint8")}
        yield piece(name, foreground.foreground, picture, "exact", rule=foreground.RULES[name])
    pictures = [h(f"{i}", 3, 32, 48, dtype="uint8") for i in range(4)]
    yield piece("", sernet_anomalies.recombine, {"pictures": pictures}, "exact", order=(2, 0, 3, 1))
    drawn = sernet_anomalies.SourceNumbers((2, 0, 3, 1), (1.2, 0.8, 1.1), 30.0, 0.9, (0.05, -0.08))
    yield piece("", sernet_anomalies.transform, {"picture": pictures[0]}, numbers=drawn)
    own = {"image": small, "source": h("source", 3, 32, 32), "mask": mask}
    for on in ("original", "source"):
        yield piece(on, sernet_anomalies.blend_source, own, beta=0.3, beta_on=on)
    yield piece("", sernet_anomalies.shift_colour, {"image": small, "mask": mask}, shift=(0.2, -0.1, 0.15))
    rectangles = [sernet_anomalies.Rectangle(*sides) for sides in ((3, 4, 6, 5), (20, 30, 4, 9), (8, 8, 3, 3))]
    spread = sernet_anomalies.Spread(tuple(rectangles[:2]), (rectangles[2],), (0,))
    yield piece("", sernet_anomalies.spread_mask, {"spread": spread}, "exact", shape=(32, 48))
    probabilities = h("probabilities", 2, 1, 24, 20)
    yield piece("", sernet.repair_mask, {"probabilities": probabilities}, "exact", threshold=0.55, area=4.0)
    repaired = {"images": small, "similar": h("similar", 3, 32, 32), "mask": mask}
    yield piece("", sernet.repair, repaired)
    table = schedule.linear_betas()
    yield Case("sdas.linear_betas", schedule.linear_betas, {}, {"steps": 1000}, "float64")
    yield Case(
        "sdas.schedule_of",
        schedule.schedule_of,
        {"beta": given("float64", *table.double().tolist())},
        {},
        "float64",
    )
    yield piece("", schedule.spaced_steps, {"total": 1000}, "exact", count=20)
    state = {"x": h("x", 2, 3, 8, 8, scale=4, shift=-2), "eps": h("eps", 2, 3, 8, 8, scale=4, shift=-2)}
    yield piece("", sdas.clamped, state, abar=0.3)
    gaussian = {"image": h("x", 2, 3, 8, 8, scale=2, shift=-1), "mean": h("mean", 2, 3, 8, 8, scale=2, shift=-1),
                "log_scale": h("scale", 2, 3, 8, 8, scale=2, shift=-4)}  # fmt: skip
    yield piece("", sdas.log_likelihood, gaussian)


def of_layers() -> Iterator[Case]:
    """Lists every layer, on rectangles; Swin's are (B, H, W, C), all others (B, C, H, W)."""
    images, maps = {"images": h("images", 2, 3, 32, 48)}, {"maps": h("map", 2, 12, 6, 10, shift=-0.5)}
    wide = {"maps": h("map", 2, 16, 8, 12, shift=-0.5)}
    yield piece("", unet.Autoencoder, images, width=4)
    yield piece("", unet.UNet, {"pairs": h("pairs", 2, 6, 64, 32)}, width=4)
    for skip in ("concat", "add", "none"):
        yield piece(skip, unet.PlainUNet, images, channels=2, widths=(4, 6, 8), skip=skip)

    tokens = {"map": h("tokens", 2, 8, 16, 12, shift=-0.5)}
    yield piece("", swin.WindowAttention, {"windows": h("windows", 2, 3, 16, 12)}, width=12, heads=3, window=(4, 4))
    for shifted in (False, True):
        own = {"width": 12, "heads": 3, "size": (8, 12), "window": 4, "shifted": shifted}
        block = {"map": h("tokens", 2, 8, 12, 12, shift=-0.5)}
        yield piece("shifted" if shifted else "regular", swin.SwinBlock, block, **own)
    yield piece("", swin.MLP, tokens, width=12, hidden=20)
    yield piece("", swin.PatchMerging, tokens, width=12)
    yield piece("", swin.PatchExpanding, tokens, width=12, scale=2, width_out=6)
    stage = {"width": 12, "heads": 3, "size": (8, 8), "window": 4, "depth": 2}
    square = {"encoded": h("map", 2, 8, 8, 12, shift=-0.5), "decoded": h("decoded", 2, 8, 8, 12, shift=-0.5)}
    for residual in ("level", "block"):
        yield piece(residual, reconstructor.Stage, {"map": square["encoded"]}, residual=residual, **stage)
    for gates in ("channel", "spatial"):
        yield piece(gates, reconstructor.GatedSkip, square, width=12, gates=gates)
    picture = {"images": h("images", 1, 3, 64, 128)}
    own = {"size": (64, 128), "width": 12, "window": 4, "aspp_width": 24, "residual": "level", "skips": "final_sum",
           "skip_levels": 4, "gates": "channel"}  # fmt: skip
    yield piece("srdad", reconstructor.SwinUNet, picture, "deep", **own)
    yield piece("inline", reconstructor.SwinUNet, picture, "deep", **{**own, "aspp_width": 8, "skips": "inline"})
    yield piece("plain", reconstructor.SwinUNet, picture, "deep", **{**own, **reconstructor.SWIN_UNET})
    for width in (4, 5):
        yield piece(f"{width}", aspp.ASPP, wide, width=16, branch_width=width, rates=(1, 2, 6))
    widths = (2, 4, 6)
    scales = {"tokens": [h(f"tokens {c}", 2, 12, c, shift=-0.5) for c in widths]}
    code = {"heads": 4, "attention": "channel", "scale": "sum", "instance_norm": True, "residual": "official",
            "output": True, "bias": False}  # fmt: skip
    text = {"heads": 2, "attention": "token", "scale": "own", "instance_norm": False, "residual": "eq14",
            "output": False, "bias": False}  # fmt: skip
    for label, form in (("channel", code), ("token-eq14", text)):
        yield piece(label, channel_cross_attention.CrossAttentionLayer, scales, widths=widths, dropout=0.1, **form)
    levels = {"maps": [h(f"map {c}", 2, c, 32 // 2**i, 64 // 2**i, shift=-0.5) for i, c in enumerate(widths)]}
    form = {"size": (32, 64), "widths": widths, "patches": (16, 8, 4), "layers": 2, "add_input": True, "dropout": 0.1}
    yield piece("", channel_cross_attention.CrossFusion, levels, **form, **code)
    pairs = {"pairs": h("pairs", 1, 6, 64, 32)}
    yield piece("", discriminator.ResSE, {"maps": h("map", 2, 32, 6, 10)}, channels=32)
    yield piece("", discriminator.ResSEUNet, pairs, width=4, fusion=None)

    vectors = {"tokens": h("tokens", 2, 7, 12, shift=-0.5)}
    yield piece("", vit.Attention, vectors, width=12, heads=3)
    yield piece("", vit.Block, vectors, width=12, heads=3)
    yield piece("", vit.PatchEmbedding, images, patch=8, width=12)
    for token in ("drop", "add", "none"):
        own = {"size": (32, 48), "patch": 8, "width": 12, "depth": 2, "heads": 3, "class_token": token}
        yield piece(token, vit.VisionTransformer, images, **own)
    readings = {"cosine": {}, "dot": {"addressing": "dot", "threshold": 0.0025}, "sharp": {"temperature": 0.1},
                "shrunk": {"threshold": 0.055}}  # fmt: skip
    form = {"width": 12, "items": 30, "addressing": "cosine", "temperature": 1.0, "threshold": None}
    for label, changes in readings.items():
        yield piece(label, memory.Memory, {"maps": h("map", 2, 12, 3, 5, shift=-0.5)}, **form | changes)
    yield piece("", memory.entropy, {"weights": h("weights", 2, 12, 3, 5)})
    gated = {"maps": h("map", 2, 40, 6, 10, shift=-0.5)}
    yield piece("", coordinate_attention.CoordinateAttention, gated, width=40, reduction=4)
    for kind in ("anovit", "pow2"):
        own = {"width": 24, "size": (32, 64), "kind": kind, "first": 32, "norm": "batch", "last_block": "plain"}
        yield piece(kind, decoder.Decoder, {"maps": h("map", 2, 24, 2, 4, shift=-0.5)}, **own)

    fused = {"maps": [h(f"map {i}", 2, 24, 6, 10, shift=-0.5) for i in range(4)]}
    yield piece("", selective_kernel.SelectiveKernelFusion, fused, width=24, count=4, reduction=8)
    for label, reduction, padding in (("relu", 8, "zeros"), ("min", 2, "reflect")):
        own = {"width_in": 12, "width_out": 16, "reduction": reduction, "padding": padding}
        yield piece(label, m_net.ResidualAttention, maps, convolutions=label == "relu", **own)
    own = {"width_in": 12, "width_out": 16, "reduction": 8, "padding": "zeros"}
    yield piece("", m_net.SelectiveDense, maps, **own)
    for kind in ("full", "min", "conv1x1", "skrdb"):
        own = {"width": 8, "levels": 3, "kind": kind, "level0": True, "padding": "zeros"}
        yield piece(kind, m_net.MNet, {"images": h("images", 2, 3, 32, 64)}, **own)

    steps, labels = given("int64", 950, 3), given("int64", 0, 2)
    x, embedding = h("x", 2, 3, 16, 24, shift=-0.5), h("embedding", 2, 128, shift=-0.5)
    yield piece("", diffusion_unet.step_embedding, {"steps": steps}, width=32)
    inner = {"maps": h("maps", 2, 32, 8, 12, shift=-0.5)}
    for resample in ("none", "down", "up"):
        own = {"channels": 32, "width": 64, "embedding": 128, "resample": resample, "groups": 32}
        yield piece(resample, diffusion_unet.ResidualBlock, {**inner, "embedding": embedding}, **own)
    yield piece("", diffusion_unet.SelfAttention, inner, channels=32, head_width=16, groups=32)
    yield piece("", diffusion_unet.AttentionPool, inner, channels=32, pixels=96, classes=5, head_width=16)
    form = {"width": 32, "multipliers": (1, 2), "blocks": 1, "attention": (2,), "head_width": 32, "groups": 32}
    yield piece("", diffusion_unet.DiffusionUNet, {"x": x, "steps": steps}, "deep", **form)
    yield piece(
        "labels", diffusion_unet.DiffusionUNet, {"x": x, "steps": steps, "labels": labels}, "deep", classes=3, **form
    )
    yield piece("", diffusion_unet.NoisyClassifier, {"x": x, "steps": steps}, "deep", classes=3, size=(16, 24), **form)

    photograph = {"images": h("images", 1, 3, 64, 96)}
    for name in ("resnet18", "resnet50"):
        yield piece(name, resnet.ResNet, photograph, "deep", name=name)
    yield piece("", efficientnet.EfficientNetB4, photograph, "deep")
    yield piece("", mobilenet.MobileNetV2, photograph, "deep")
    yield piece("", mobilenet.EfficientNetLite0, photograph, "deep")
    own = {"channels": 16, "width": 8, "out": 32, "stride": 2, "bottleneck": True}
    yield piece("", resnet.ResNetBlock, wide, **own)
    yield piece("", efficientnet.SqueezeExcite, wide, channels=16, squeezed=4)
    yield piece("", efficientnet.InvertedResidual, wide, channels=16, out=16, expansion=6, side=5, stride=1)
    yield piece("", mobilenet.SameConvolution, wide, channels=16, width=24, side=3, stride=2)
    yield piece("", mobilenet.LinearBottleneck, wide, channels=16, out=24, stride=2)

    layers = {"layers": [h("layer 2", 2, 12, 8, 6), h("layer 3", 2, 20, 4, 3)]}
    for label, width in (("mean", None), ("code", 10)):
        yield piece(label, patchcore_bank.patch_features, layers, side=3, width=width)
    yield piece("", patchcore_bank.nearest, {"queries": h("queries", 30, 32), "bank": h("bank", 40, 32)}, count=4)

    difference = {"difference": h("difference", 2, 5, 8, 12), "mask": h("mask", 2, 1, 32, 48, above=0.7)}
    yield piece("", selection.min_max, {"difference": difference["difference"]}, axes=(0, 2, 3))
    for align in ("mask", "feature"):
        yield piece(align, selection.afs_losses, difference, align=align)
    yield piece("", selection.select, {"losses": h("losses", 40)}, "exact", count=12)
    for resample, width in (("none", 16), ("none", 24), ("up", 16), ("down", 16)):
        own = {"channels": 16, "width": width, "resample": resample, "groups": 4}
        yield piece(f"{resample}-{width}", networks.FeatureResidual, wide, **own)
    yield piece("", networks.FeatureUNet, wide, "deep", channels=16, groups=4)
    yield piece("", networks.ResidualUnit, wide, channels=16, hidden=8, side=3)
    yield piece("", networks.SimpleNetwork, wide, channels=16, depth=2)
    residuals = {"residuals": h("map", 2, 12, 8, 12)}
    for label, normalised in (("", False), ("normalised", True)):
        own = {"channels": 12, "by_max": 3, "by_mean": 4, "normalised": normalised}
        yield piece(label, selection.ResidualSelection, residuals, **own)
    for side in (3, 1):
        own = {"channels": 12, "size": (32, 48), "side": side}
        yield piece(f"{side}", networks.Discriminator, residuals, **own)


def all_cases() -> Iterator[Case]:
    """Lists all cases in an order in which a port can be written."""
    for part in (of_losses, of_metrics, of_images, of_synthesis, of_layers, methods):
        yield from part()
