"""What tools/speed.py times of whole methods: training steps and inference beside the plain path and the machine's
limits, the loader beside the step that it feeds, and evaluation beside inference.

A method is opened as the commands open it: `adref.train` makes a run with no step on a few drawn pictures, and all that
is timed comes from that run.
"""

import contextlib
import dataclasses
import os
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from speed_blocks import Row, count_flop, with_limits
from torch.utils.data import default_collate

from adref import options as option_tools
from adref import train as train_train
from adref.data.layouts import find_category
from adref.data.reader import read_image
from adref.data.sample import generated_textures, write_sample_data
from adref.method import Method, Trainable
from adref.methods import METHODS
from adref.options import Notice
from adref.run import loop as train
from adref.run import scoring as evaluation
from adref.run import sources as train_sources
from adref.run.config import Flags
from adref.run.directory import load, read_config
from adref.run.distributed import parallel
from adref.run.scoring import method_arguments, score_image, to_size

FORMS = {  # label -> precision and memory format; what comes first is the plain eager path
    "plain: fp32, contiguous": ("fp32", torch.contiguous_format),
    "adref: fp32, channels_last": ("fp32", torch.channels_last),
    "bf16 autocast, channels_last (inexact)": ("bf16", torch.channels_last),
}
WORKERS = 2  # that corrupt images


class Opened:
    """A run of a method without a step, made when it is first asked for, and what a training loop has at hand."""

    def __init__(self, name: str, preset: str, device: torch.device, compiled: bool):
        self.name, self.preset, self.device, self.compiled, self.run = name, preset, device, compiled, None

    def open(self) -> None:
        """Makes the run, and reads its pictures."""
        if self.run:
            return
        self.folder = tempfile.TemporaryDirectory()
        root = Path(self.folder.name)
        write_sample_data(root / "data", size=256, train=8, test=4, per_defect=2, categories=("fabric",))
        (root / "textures").mkdir()
        for i, texture in enumerate(generated_textures(10, 256, seed=0)):
            Image.fromarray(texture.transpose(1, 2, 0)).save(root / f"textures/{i}.png")
        with torch.device("meta"):
            method = METHODS[self.name](option_tools.build(METHODS[self.name].Options, METHODS[self.name].presets, {},
                                                           self.preset, None, {}))  # fmt: skip
        argv = [self.name, "--preset", self.preset, "--data", f"{root}/data", "--textures", f"{root}/textures",
                "--epochs", "0", "--device", str(self.device), "--out", f"{root}/run"]  # fmt: skip
        argv += ["--backbone-weights", "random"] if method.backbone_source else []
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), warnings.catch_warnings():
            warnings.simplefilter("ignore", Notice)
            train_train.run_command(argv)
            self.run, config = root / "run", read_config(root / "run")
            self.flags = option_tools.replace(Flags(), config["flags"])
            self.category = find_category(root / "data", "fabric")
            training, _ = train_sources.split(self.category, self.flags)
            self.sources, _ = train_sources.open_sources(self.load(), training, self.flags)

    def load(self, form: torch.memory_format = torch.channels_last) -> Trainable:
        """The method, in evaluation mode, and in a memory format."""
        return load(self.run, str(self.device), Trainable).to(memory_format=form)


def in_forms(opened: Opened, make: Callable[[Trainable, str, torch.memory_format], Callable]) -> dict[str, Row]:
    """A row for each form, and compiled ones where they are asked for, with their floating-point operations."""
    rows = {}
    for label, (precision, form) in FORMS.items():
        run = make(opened.load(form), precision, form)
        rows[label] = Row(run, rows[next(iter(rows))].flop if rows else count_flop(lambda run=run: run(0)), precision)
    if opened.compiled:
        method = opened.load()
        method.loss = torch.compile(method.loss)
        if isinstance(method, Method):
            method.score = torch.compile(method.score)
        rows["torch.compile: fp32, channels_last"] = Row(
            make(method, "fp32", torch.channels_last), rows[next(iter(rows))].flop
        )
    return rows


def step(opened: Opened, stage: str) -> dict[str, Row]:
    """A training step of a stage, and what a process needs to corrupt its batch."""
    opened.open()
    method = opened.load()
    own, _ = train.split_validation(opened.sources._replace(stage=stage), method.early_stop(stage), opened.flags.seed)
    data, size = train.training_set(method, own, opened.flags.seed), method.options.batch_size

    def corrupt(i: int) -> list:
        return [data[i, position, position % len(data)] for position in range(size)]

    batch = train.to_device(default_collate(corrupt(0)), opened.device)

    def make(method: Trainable, precision: str, form: torch.memory_format) -> Callable[[int], None]:
        optimizer, flags = method.train().optimizer(stage)[0], dataclasses.replace(opened.flags, precision=precision)
        own = type(batch)(*(x.contiguous(memory_format=form) if x.ndim == 4 else x for x in batch))

        def run(_) -> None:
            optimizer.zero_grad()
            train.add_gradients(method, parallel(method), own, size, stage, flags)
            optimizer.step()
            method.after_step(stage)

        return run

    label, ours = f"corrupt {size} images, one process", "adref: fp32, channels_last"

    def verdict(medians: dict[str, float]) -> str:
        share = medians[label] / WORKERS / medians[ours]
        return f"{WORKERS} workers: {share:.2f} of the step" + (", which is starved" if share > 1 else "")

    rows = with_limits(in_forms(opened, make))
    return rows | {label: Row(lambda i: (corrupt(i), None)[1], note=verdict)}


def inference(opened: Opened) -> dict[str, Row]:
    """Score and map of one image."""
    opened.open()
    image = read_image(opened.category.test[0].path)

    def make(method: Trainable, precision: str, form: torch.memory_format) -> Callable[[int], np.ndarray]:
        @torch.inference_mode()
        def run(_) -> np.ndarray:
            images, streams, looks = arguments(method)
            with torch.autocast(opened.device.type, torch.bfloat16, enabled=precision == "bf16"):
                return method.score(images.contiguous(memory_format=form), streams, looks)[1].float()

        return run

    known = method_arguments(opened.load(), image, 0, 0)

    def arguments(method: Trainable) -> tuple:
        return known if known[1] is None else (known[0], [np.random.default_rng(0)], known[2])  # the same noise

    return with_limits(in_forms(opened, make))


def shares(opened: Opened) -> dict[str, Row]:
    """Parts of an evaluation, all pictures each, beside the whole; what is missing are digests and tables."""
    opened.open()
    run, category, method = opened.run, opened.category, opened.load()
    config, folder = read_config(run), Path(opened.folder.name)
    images = [read_image(record.path) for record in category.test]
    scored = [score_image(method, image, 0, i) for i, image in enumerate(images)]
    scores, small = zip(*scored)
    maps = [to_size(m, image.shape[:2]) for m, image in zip(small, images)]
    masks = [evaluation.native_mask(record, image.shape[:2]) for record, image in zip(category.test, images)]
    metrics = evaluation.evaluate(run, category, opened.device)
    rows = [(evaluation.name_of(r), r.defect, r.label, s) for r, s in zip(category.test, scores)]

    def every(call: Callable[[int], object]) -> Callable[[int], None]:
        return lambda _: [call(i) for i in range(len(images))].clear()  # and returns nothing

    def named(what: str) -> str:
        return f"adref, {what} (a part)"

    curve = evaluation.all_metrics(category.test, scores, maps, masks, 0, "exact")[1]

    parts = {
        "opening the run": lambda _: (load(run, str(opened.device)), None)[1],
        "scores": every(lambda i: score_image(method, images[i], 0, i)),
        "reading": every(lambda i: read_image(category.test[i].path)),
        "maps to native size": every(lambda i: to_size(small[i], images[i].shape[:2])),
        "saving maps": every(lambda i: np.save(folder / "map.npy", maps[i])),
        "reading masks": every(lambda i: evaluation.native_mask(category.test[i], images[i].shape[:2])),
        "all metrics": lambda _: (evaluation.all_metrics(category.test, scores, maps, masks, 0, "exact"), None)[1],
        "report": lambda _: evaluation.report(run, config, metrics, method, category, rows, curve, None, 80),
    }
    whole = {"adref.evaluate": Row(lambda _: evaluation.evaluate(run, category, opened.device).clear())}
    return whole | {named(what): Row(run) for what, run in parts.items()}


def method_groups(preset: str, device: torch.device, compiled: bool) -> dict[str, Callable[[], dict[str, Row]]]:
    """Groups by name, for every method that has the preset and every stage of its training."""
    groups = {}
    for name, kind in METHODS.items():
        if preset not in kind.presets:
            continue
        opened = Opened(name, preset, device, compiled)
        with torch.device("meta"):
            stages = kind(option_tools.build(kind.Options, kind.presets, {}, preset, None, {})).stages
        for stage in stages:
            groups[f"training step, {name}, {stage}"] = partial(step, opened, stage)
        if issubclass(kind, Method):
            groups[f"inference, {name}"] = partial(inference, opened)
            groups[f"evaluation, {name}"] = partial(shares, opened)
    return groups
