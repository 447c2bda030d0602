"""Every reading of every method: builds, trains a step, scores, and changes something; presets build."""

import dataclasses
import functools
import types
import typing
import warnings

import numpy as np
import pytest
import torch
from conftest import golden

from adref import options as option_tools
from adref.data.examples import random_stream
from adref.method import Context, Method, Sampler, Sources
from adref.methods import METHODS

CATEGORIES = ("screw", "hazelnut")  # two that have rules of their own

# The smallest options of each method under which its readings can be told apart.
SMALL = {
    "patchcore": {"size": (64, 64), "backbone": "resnet18", "width": 64},
    "draem": {"size": (64, 64), "reconstruction_width": 1, "discriminator_width": 1, "score_window": 5},
    "srdad": {"size": (64, 64), "width": 6, "window": 4, "aspp_width": 4, "autoencoder_width": 1, "unet_width": 1,
              "discriminator_width": 2, "score_window": 5},
    "vit_autoencoder": {"size": (32, 32), "patch": 16, "width": 16, "depth": 1, "heads": 2, "memory_items": 8,
                        "decoder_width": 32},
    "sernet": {"size": (32, 32), "width": 2, "threshold": 0.5165, "msgms_scales": 2, "smooth_side": 5},
    "noise_to_norm": {"size": (32, 32), "width": 4, "levels": 2, "sigmas": (0.5, 1.0)},
    "sdas": {"size": (16, 16), "categories": CATEGORIES, "width": 8, "groups": 4, "multipliers": (1, 2), "blocks": 1,
             "attention_factors": (2,), "head_width": 8, "batch_size": 6, "accumulation": 2, "classifier_width": 8,
             "sampling_steps": 3, "steps": 3},
    "realnet": {"size": (128, 128), "categories": CATEGORIES, "backbone": "resnet18", "widths": (8, 8, 8, 8),
                "groups": 4, "afs_batches": 1, "batch_size": 4, "network": "simple", "score_window": 4,
                "anomaly_sources": ("sdas", "textures", "nsa")},
}  # fmt: skip

# Readings that change nothing here, with the reason; None: every value.
UNCHANGED = {
    **{(name, "resize", None): "images are resized when they are read" for name in SMALL},
    ("realnet", "source_resize", None): "textures are resized when they are read",
    ("srdad", "object_mask", "bright"): "auto finds these objects bright",
    ("srdad", "label", "changed"): "every pixel of these patches changes visibly",
    ("draem", "texture_colours", "image"): "these images have colours",
    ("srdad", "texture_colours", "image"): "patches have the colours of their image",
    ("sdas", "strength_per", None): "the command draws the strengths",
    ("sdas", "file_format", None): "the command writes the files",
    ("srdad", "ablation", "srdad"): "the whole method, a row of its table",
    ("vit_autoencoder", "ablation", "+m+ca"): "the whole method, a row of its table",
    ("vit_autoencoder", "decoder_init", "torch"): "weights are filled with others here",
    ("noise_to_norm", "ablation", "lambda-0.3"): "the default, a row of its table",
    **{("realnet", "ablation", f"strength-{s}"): "the strength is that of the user's images" for s in ("0", 0.1, 0.2)},
}
# Readings that need the widths of the paper or millions of weights: built on the meta device only.
LARGE = {
    *(("realnet", "ablation", name) for name in ("half", "high-resolution")),
    *(
        (method, "backbone", name)
        for method in ("realnet", "patchcore")
        for name in ("wide_resnet50_2", "resnet50", "efficientnet_b4")
    ),
}


@functools.cache
def images(count: int, size: tuple[int, int], seed: int) -> torch.Tensor:
    """Bright boxes with specks on dark noise, uint8 (count, 3, H, W)."""
    rng = np.random.default_rng(seed)
    made = rng.integers(0, 90, (count, 3, *size))
    for image in made:
        top, left = (int(rng.integers(side // 8, side // 4)) for side in size)
        image[:, top : -size[0] // 5, left : -size[1] // 5] += 120
        image += (rng.random(size) < 0.05) * 45
    return torch.from_numpy(made.astype(np.uint8))


def hashes(method, pictures: torch.Tensor) -> list | None:
    """The hash of each image, or None of methods without."""
    found = [method.image_hash(image.permute(1, 2, 0).numpy(), method.options) for image in pictures]
    return None if found[0] is None else found


def outcome(name: str, changes: dict) -> dict[str, typing.Any]:
    """Everything that a reading may change, after one step of each stage and the scores of two images."""
    o = option_tools.replace(METHODS[name].Options(), {**SMALL[name], **changes})
    torch.manual_seed(0)
    method = golden.fill(METHODS[name](o))
    count = 4 if name == "realnet" else 8  # its images are large
    stream, train, categories = functools.partial(random_stream, 0), images(count, o.size, 1), list(CATEGORIES * 4)
    found = {c: method.statistics(train[i::2], c, o) for i, c in enumerate(CATEGORIES)}
    textures, sizes = images(3, o.size, 2), np.array([[20.0, 30, 1], [40, 25, 2]])
    sources = Sources(train, hashes(method, train), categories[:count], textures, dict.fromkeys(CATEGORIES, textures),
                      sizes, found if hasattr(o, "categories") else found[CATEGORIES[0]])  # fmt: skip
    seen = {"stages": method.stages, "needs": method.needs}
    for stage in method.stages:
        here = sources._replace(stage=stage.name)
        method.prepare(here, stage.name, stream)
        examples = [method.corrupt(image.float() / 255, stream("train", i), o, here._replace(index=i))
                    for i, image in enumerate(train)]  # fmt: skip
        batch = type(examples[0])(*map(torch.stack, zip(*examples)))
        optimizer, schedule = method.train().optimizer(stage.name)
        torch.manual_seed(0)
        for part in range(stage.parts):
            terms = method.loss(type(batch)(*(field[part :: stage.parts] for field in batch)), stage.name)
            (terms["total"] / stage.parts).backward()
            method.after_backward(stage.name, part == stage.parts - 1)
            seen |= {f"{stage.name}/{part}/{term}": value.item() for term, value in terms.items()}
            assert torch.isfinite(terms["total"])
        optimizer.step()
        rates = seen[f"{stage.name}/rates"] = []
        for _ in range(stage.length):
            rates.append(schedule.get_last_lr())
            schedule.step()
        seen[f"{stage.name}/batch"] = [field.numpy().tobytes() for field in batch]
        settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        seen[f"{stage.name}/optimizer"] = repr(settings)
    state, test, rngs = method.eval().state_dict(), images(2, o.size, 3), [stream("test", i) for i in range(2)]
    with torch.no_grad():
        if isinstance(method, Sampler):
            outputs = [method.sample_images([0, 1], rngs, [0.1, 0.2])]
        else:
            outputs = method.score(test.float() / 255, Context(rngs, hashes(method, test)))
    assert all(torch.isfinite(tensor.float()).all() for tensor in (*state.values(), *outputs))
    seen["weights"] = {key: tensor.numpy().tobytes() for key, tensor in state.items()}
    return seen | {"outputs": [output.numpy().tobytes() for output in outputs]}


default = functools.cache(lambda name: outcome(name, {}))


def build(name: str, preset: str | None, changes: dict) -> bool:
    """Builds a method on the meta device; whether it has weights."""
    method = METHODS[name]
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        o = option_tools.build(method.Options, method.presets, method.ablations, preset, None, changes)
        return any(p.numel() for p in method(o).parameters())


def choices(kind) -> tuple:
    """The values that a `Literal[...]` annotation allows; none for any other type."""
    return typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()


def alternatives(name: str, field: dataclasses.Field, kind) -> list:
    """The other values of an option: of a choice each, of a switch its opposite, none or a number."""
    now = SMALL[name].get(field.name, field.default)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        inner, low = typing.get_args(kind)[0], int((field.metadata["limits"] or (0, 0))[0])
        number = 2 * max(low, 1) if inner is int else 0.5
        return [None] if now is not None else list(choices(inner) or (number,))
    if kind is bool:
        return [not now]
    return [value for value in choices(kind) if value != now]


def readings() -> list[tuple[str, str, typing.Any]]:
    """(method, option, value) of every option, and (method, "ablation", its name) of those that change several."""
    found = []
    for name, method in METHODS.items():
        kinds = typing.get_type_hints(method.Options)
        for field in dataclasses.fields(method.Options):
            if field.metadata["is_flag"]:
                found += [(name, field.name, value) for value in alternatives(name, field, kinds[field.name])]
        found += [(name, "ablation", ablation) for ablation, changes in method.ablations.items()
                  if len(changes) != 1 or (name, *next(iter(changes.items()))) not in found]  # fmt: skip
    return found


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("reading", readings(), ids=lambda r: "-".join(map(str, r)))
def test_reading_runs_and_changes_something(reading):
    name, option, value = reading
    changes = METHODS[name].ablations[value] if option == "ablation" else {option: value}
    if reading in LARGE:
        assert build(name, None, changes if option == "ablation" else {**SMALL[name], **changes})
    else:
        same = UNCHANGED.get(reading, UNCHANGED.get((name, option, None)))
        assert (outcome(name, changes) == default(name)) == bool(same), same


@pytest.mark.parametrize(("name", "preset"), [(n, p) for n, m in METHODS.items() for p in m.presets])
def test_presets_build(name, preset):
    assert build(name, preset, {})


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if "epochs" in option_tools.names(m.Options)])
def test_a_length_in_steps_has_the_rates_of_its_epochs(name):
    """At each share of the length; here an epoch has seven steps. Presets tiny and small count steps."""
    kind, found = METHODS[name], []
    for more, length in (({}, (40, "epochs")), ({"steps": "280"}, (280, "steps"))):
        o = option_tools.build(kind.Options, kind.presets, {}, "tiny", None, {"epochs": "40", **more})
        with torch.device("meta"):
            method = kind(o)
        assert {stage[1:3] for stage in method.stages} == {length}
        for stage in method.stages:
            optimizer, schedule = method.optimizer(stage.name)
            found.append([])
            for _ in range(length[0]):
                found[-1] += schedule.get_last_lr()
                optimizer.step()
                schedule.step()
    half = len(found) // 2
    assert [rates[::7] for rates in found[half:]] == [pytest.approx(rates) for rates in found[:half]]
    assert all(row["steps"] for preset, row in kind.presets.items() if preset in ("tiny", "small"))


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if issubclass(method, Method)])
def test_options_that_may_change_after_training_make_no_weight(name):
    method, kinds = METHODS[name], typing.get_type_hints(METHODS[name].Options)
    for field in dataclasses.fields(method.Options):
        for value in alternatives(name, field, kinds[field.name]) if field.name in method.changeable else ():
            with torch.device("meta"):
                own, other = (method(option_tools.replace(method.Options(), {**SMALL[name], **changes})).state_dict()
                              for changes in ({}, {field.name: value}))  # fmt: skip
            assert {k: t.shape for k, t in own.items()} == {k: t.shape for k, t in other.items()}, field.name
    assert set(method.changeable) <= set(option_tools.names(method.Options))


def test_exceptions_exist():
    """No entry outlives its reading."""
    known = {key for reading in readings() for key in (reading, (*reading[:2], None))}
    assert set(UNCHANGED) | LARGE <= known
