"""python -m adref.train [METHOD] [--data ROOT --category NAME --textures DIR --out RUN ...]

Trains a method on normal images, sets its decision threshold on held-out ones, evaluates it and writes the report.
With no argument at all: DRAEM at the preset `tiny` on generated sample pictures.
"""

import argparse
import dataclasses
import itertools
import json
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from adref import options as option_tools
from adref.data import (
    Category,
    Images,
    Record,
    TrainingSet,
    digest,
    find_category,
    list_images,
    random_stream,
    read_image,
    require_sound,
)
from adref.evaluate import evaluate, summary
from adref.method import Deviation, Sources, Trainable
from adref.methods import METHODS, find_method
from adref.options import UserError, option
from adref.run import (
    Progress,
    TrainingError,
    build,
    create,
    find_device,
    guarded,
    load,
    load_checkpoint,
    load_tensors,
    load_weights,
    read_config,
    read_sizes,
    refuse_existing,
    save_checkpoint,
    score_image,
    sha256,
    truncate_log,
    write_json,
)
from adref.sample_data import CATEGORIES, generated_textures, write_sample_data
from adref.sample_data import VERSION as SAMPLE_VERSION

SAMPLE_DATA = Path("runs/sample-data")

DEVIATIONS = (
    Deviation("T1", "Flags.holdout", "substitution", "all normal images train", "a tenth of them sets the threshold",
              "a decision threshold must come from neither training nor test images; --holdout 0 is the papers' way"),
    Deviation("T2", "Flags.textures", "substitution", "DTD, a data set of photographs",
              "generated textures where no folder is named",
              "nothing is downloaded; the command says so, and --textures takes DTD"),
    Deviation("T3", "evaluate --resolution", "ambiguous", "pixel metrics at the network's size, masks resized",
              "maps are brought to each picture's own size",
              "no rule for resizing masks is needed then; 'method' is the other way"),
)  # fmt: skip


@dataclass(frozen=True)
class Flags:
    """What a run is told beside the method's own options."""

    data: str | None = option(None, "folder of the data set; none: generated sample pictures", "adref")
    category: str | None = option(None, "category to train; may be left out where there is only one", "adref")
    textures: str | None = option(None, "folder of texture pictures; none: generated textures", "T2")
    defect_sizes: str | None = option(
        None, "CSV of height,width,weight (python -m adref.synthesize --sizes-from MASKS)", "adref"
    )
    weights: tuple[str, ...] = option((), "published weights to start from, files joined by commas", "adref")
    seed: int = option(0, "seed of all randomness", "adref", (0, 2**63 - 1))
    device: str = option("auto", "auto, cpu, cuda or cuda:N", "adref")
    precision: Literal["fp32", "bf16"] = option("fp32", "bf16: networks under autocast, losses in fp32", "adref")
    holdout: float = option(0.1, "share of the normal training images kept for the threshold", "T1", (0, 0.9))
    false_alarm_rate: float = option(
        0.05, "share of normal images that the threshold may call anomalous", "adref", (1e-6, 1)
    )
    workers: int = option(1, "processes that corrupt images; changes no number", "adref", (0, 256))
    start_method: Literal["fork", "spawn", "forkserver"] = option("fork", "how they start; changes no number", "adref")
    memory_limit: float = option(2.0, "GiB of decoded pictures kept in memory", "adref", (0, math.inf))
    checkpoint_seconds: float = option(60.0, "seconds between checkpoints", "adref", (0, math.inf))
    checkpoint_steps: int = option(0, "steps between checkpoints; 0: by time alone", "adref", (0, math.inf))


# What a resumed run may be given anew. No weight depends on it (on another kind of device: the last bits); the contents
# of data and textures are compared by digest.
FREE_ON_RESUME = ("data", "textures", "defect_sizes", "device", "workers", "start_method", "memory_limit",
                  "checkpoint_seconds", "checkpoint_steps", "false_alarm_rate")  # fmt: skip


# -- the command ------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    return guarded(lambda: run_command(argv))


def method_name(argv: list[str]) -> str:
    """The method that a command line speaks of: its first word, or the one of the run that it resumes."""
    if argv and not argv[0].startswith("-"):
        return argv[0]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", action="store_true")
    known, _ = parser.parse_known_args(argv)
    return read_config(known.out)["method"] if known.resume and known.out else "draem"


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """The command line, with the flags of its method."""
    name = method_name(argv)
    method = find_method(name)
    parser = option_tools.Parser(
        prog="python -m adref.train", description=__doc__.split("\n\n", 1)[1], allow_abbrev=False
    )
    parser.add_argument("method", nargs="?", help=f"one of: {', '.join(METHODS)} [draem]; must stand first")
    parser.add_argument("--out", metavar="RUN", type=Path, help="run directory [runs/CATEGORY-METHOD]")
    parser.add_argument("--preset", help=f"one of: {', '.join(method.presets)} [paper; tiny for the sample data]")
    parser.add_argument("--ablation", help=f"one of: {', '.join(method.ablations)}")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    option_tools.add_flags(parser, Flags, "run", "run flags")
    option_tools.add_flags(parser, method.Options, "option", f"options of {name} (meaning, default, source)")
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        if not unknown[0].startswith("-"):
            raise UserError(f"unknown argument {unknown[0]!r}; after the method's name only --options follow")
        known = ["out", "preset", "ablation", "resume", *option_tools.hints(Flags), *option_tools.hints(method.Options)]
        option_tools.refuse_unknown(unknown[0].split("=")[0], known)
    return arguments


def run_command(argv: list[str]) -> int:
    """What `main` does when nothing goes wrong."""
    arguments = parse_arguments(argv)
    if not argv:
        print(f"No argument: DRAEM, preset tiny, on generated sample pictures of a {CATEGORIES[0]}.")
    run, config = resumed_config(arguments) if arguments.resume else new_config(arguments)
    flags = option_tools.replace(Flags(), config["flags"])
    device = find_device(flags.device)
    category = find_category(Path(flags.data), config["category"])
    require_sound(category)
    training, held_out = split(category, flags)
    method = initial_method(config, flags, published=not arguments.resume)
    images = Images([r.path for r in training], method.options.size, method.options.resize, flags.memory_limit * 2**30)
    sources, digests = open_sources(method, images, category.name, flags)
    digests["data_digest"] = digest(category.train)
    if arguments.resume:
        for name, now in digests.items():
            if config[name] != now:
                what = "training images" if name == "data_digest" else name.removesuffix("_digest")
                raise UserError(f"--resume: the {what} are not those that {run} began with")
        write_json(run / "config.json", config)
    else:
        hashes = {path: sha256(Path(path)) for path in flags.weights}
        config |= {"device": str(device), **digests, "weights_sha256": hashes}
        create(run, config, {"model": method.state_dict(), "step": 0})
    print(f"{category.name}: {len(training)} normal images train, {len(held_out)} set the threshold. Run: {run}")
    if not train(run, method, images, sources, flags, device):
        print(f"Interrupted and saved. Go on with: python -m adref.train --resume --out {shlex.quote(str(run))}")
        return 130
    calibrate(run, held_out, flags, device)
    print(summary(evaluate(run, category, device)))
    if category.test:
        print(f"Report: {(run / 'report.html').resolve()}")
    name = shlex.quote(str(run))
    print(f"Next: python -m adref.predict {name} IMAGE_OR_FOLDER --out {name}/predictions"
          + ("   (or your own pictures: python -m adref.data ROOT)" if config["generated"] else ""))  # fmt: skip
    return 0


def new_config(arguments: argparse.Namespace) -> tuple[Path, dict]:
    """Run directory and configuration of a new run from the command line."""
    flags = option_tools.replace(Flags(), option_tools.flags_given(arguments, "run"))
    if arguments.out:
        refuse_existing(arguments.out)  # now, and not after minutes of reading
    for name in ("data", "textures", "defect_sizes"):
        if getattr(flags, name) == "":
            raise UserError(f"{option_tools.flag(name)} takes a path; got an empty name")
    name, generated = arguments.method or "draem", flags.data is None
    method = find_method(name)
    preset = arguments.preset or ("tiny" if generated else "paper")
    changes = option_tools.flags_given(arguments, "option")
    options = option_tools.build(method.Options, method.presets, method.ablations, preset, arguments.ablation, changes)
    data, category = flags.data, flags.category
    if generated:
        if category not in (None, *CATEGORIES):
            raise UserError(f"--category {category}: the generated sample data has {', '.join(CATEGORIES)}")
        category = category or CATEGORIES[0]
        data = write_sample_data(SAMPLE_DATA)
    category = find_category(Path(data), category).name
    absolute = os.path.abspath  # a run can then be resumed and evaluated from any folder
    flags = dataclasses.replace(
        flags, data=absolute(data), category=category, weights=tuple(map(absolute, flags.weights)),
        textures=absolute(flags.textures) if flags.textures else None,
        defect_sizes=absolute(flags.defect_sizes) if flags.defect_sizes else None,
    )  # fmt: skip
    config = {
        "method": name, "preset": preset, "ablation": arguments.ablation, "changed": changes, "category": category,
        "generated": generated, "options": option_tools.to_json(options), "flags": option_tools.to_json(flags),
    }  # fmt: skip
    return arguments.out or free_name(Path("runs") / f"{category}-{name}"), config


def free_name(path: Path) -> Path:
    """`path`, or the first of path-2, path-3, ... that does not exist."""
    names = (path if i == 1 else path.with_name(f"{path.name}-{i}") for i in itertools.count(1))
    return next(name for name in names if not name.exists())


def resumed_config(arguments: argparse.Namespace) -> tuple[Path, dict]:
    """Run directory and configuration of a run that goes on.

    Raises:
        UserError: no --out, or what the command line gives is not what the run began with.
    """
    if arguments.out is None:
        raise UserError("--resume needs --out RUN, the run directory to go on with")
    config = read_config(arguments.out)
    for name in ("method", "preset", "ablation"):
        if getattr(arguments, name) not in (None, config[name]):
            raise UserError(f"--resume: {name} was {config[name]}, now {getattr(arguments, name)}; start a new run")
    for kind, key, known in (("run", "flags", Flags), ("option", "options", find_method(config["method"]).Options)):
        before = option_tools.replace(known(), config[key])
        given = option_tools.flags_given(arguments, kind)
        now = option_tools.replace(before, given)
        for name in given:
            was, is_now = getattr(before, name), getattr(now, name)
            if was != is_now and not (kind == "run" and name in FREE_ON_RESUME):
                raise UserError(
                    f"--resume: {option_tools.flag(name)} was {was}, now {is_now}; start a new run for that"
                )
        config[key] = option_tools.to_json(now)
    return arguments.out, config


# -- what a run is made of --------------------------------------------------------------------------------------------


def split(category: Category, flags: Flags) -> tuple[list, list]:
    """Training records and held-out ones, both normal; the split is drawn from the seed.

    Raises:
        UserError: nothing is left to train on.
    """
    count = len(category.train)
    kept = 0 if flags.holdout == 0 or count < 2 else min(count - 1, max(1, round(flags.holdout * count)))
    if count == 0:
        raise UserError(f"category {category.name} in {category.root} has no normal training image")
    chosen = set(random_stream(flags.seed, "holdout").permutation(count)[:kept].tolist())
    training = [record for i, record in enumerate(category.train) if i not in chosen]
    return training, [category.train[i] for i in sorted(chosen)]


def initial_method(config: dict, flags: Flags, published: bool) -> Trainable:
    """The method at its first weights: drawn from the seed, or `published` ones where --weights names them."""
    torch.manual_seed(int(random_stream(flags.seed, "weights").integers(2**62)))
    method = build(config)
    if flags.weights and published:
        method.load_weights([load_tensors(path, f"--weights {path} cannot be read") for path in flags.weights])
        for name, tensor in method.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise UserError(f"--weights: {name} is not finite")
    return method


def open_sources(method: Trainable, images: Images, category: str, flags: Flags) -> tuple[Sources, dict]:
    """What the method's `corrupt` draws from, and the digests of textures and sizes, None where it needs none.

    Raises:
        UserError: the method needs something that no flag names, or what a flag names cannot be read.
    """
    size, limit = method.options.size, flags.memory_limit * 2**30
    textures = sizes = textures_digest = sizes_digest = None
    if "textures" in method.needs and flags.textures is None:  # T2
        print("No --textures FOLDER: using 300 generated textures (the paper uses photographs of textures, DTD).")
        textures = torch.from_numpy(generated_textures(300, max(size), seed=0))[:, :, : size[0], : size[1]]
        textures_digest = f"generated, version {SAMPLE_VERSION}"
    elif "textures" in method.needs:
        paths = list_images(Path(flags.textures))
        textures_digest = digest([Record(path, 0, "texture", None) for path in paths])
        textures = Images(paths, size, method.options.resize, limit)
    if "sizes" in method.needs:
        if flags.defect_sizes is None:
            raise UserError("this method needs --defect-sizes FILE (height,width,weight); see --patch-size")
        sizes, sizes_digest = read_sizes(flags.defect_sizes), sha256(Path(flags.defect_sizes))
    found = method.survey(images, category, method.options)
    digests = {"textures_digest": textures_digest, "sizes_digest": sizes_digest}
    return Sources(textures, images, sizes, found), digests


# -- the loop ---------------------------------------------------------------------------------------------------------


class Batches:
    """The batches of one stage from a step on, each a list of (epoch, position in the epoch, image index)."""

    def __init__(self, method: Trainable, stage: str, count: int, seed: int, first_step: int):
        self.method, self.stage, self.count, self.seed, self.first_step = (
            method,
            stage,
            count,
            seed,
            first_step,
        )
        self.size = method.options.batch_size
        self.per_epoch = math.ceil(count / self.size)  # the last, smaller batch is kept
        self.period = self.per_epoch if method.length_unit == "epochs" else 1  # steps a unit of length
        self.last_step = method.epochs(stage) * self.period

    def __len__(self) -> int:
        return max(0, self.last_step - self.first_step)

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for epoch in range(self.first_step // self.per_epoch, math.ceil(self.last_step / self.per_epoch)):
            order = self.method.order(self.count, random_stream(self.seed, f"order {self.stage}", epoch))
            keys = [(epoch, position, int(index)) for position, index in enumerate(order)]
            skip = self.first_step % self.per_epoch if epoch == self.first_step // self.per_epoch else 0
            for step in range(skip, min(self.per_epoch, self.last_step - epoch * self.per_epoch)):
                yield keys[step * self.size : (step + 1) * self.size]


class Interrupt:
    """Ctrl-C and SIGTERM raise a flag that the loop reads between two steps; a second Ctrl-C stops at once."""

    def __enter__(self) -> "Interrupt":
        self.raised = False
        self.before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _handle(self, number, frame) -> None:
        if self.raised:
            raise KeyboardInterrupt
        self.raised = True

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def ignore_interrupts(worker: int) -> None:
    """Data workers leave Ctrl-C to the process that started them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def train(run: Path, method: Trainable, images, sources: Sources, flags: Flags, device: torch.device) -> bool:
    """Trains from the run's checkpoint to the end; True when it got there, False when it was interrupted.

    Raises:
        TrainingError: a loss term or a weight is not finite; the last good checkpoint stays.
    """
    torch.backends.cudnn.deterministic = True  # no number may depend on which kernel was the fastest today
    state = load_checkpoint(run)
    truncate_log(run, state["step"])
    load_weights(run, method, state)
    method.to(device, memory_format=torch.channels_last).train()
    data = TrainingSet(images, type(method).corrupt, method.options, sources, flags.seed)
    progress, first = Progress(), 0  # first: the steps of the stages before
    with open(run / "metrics.jsonl", "a") as log, Interrupt() as interrupt:
        for stage in method.stages:
            batches = Batches(method, stage, len(images), flags.seed, max(0, state["step"] - first))
            optimizer, schedule = method.optimizer(stage)
            if 0 < batches.first_step < batches.last_step:
                optimizer.load_state_dict(state["optimizer"])
                schedule.load_state_dict(state["schedule"])
            began = saved = before = time.monotonic()
            for step, batch in enumerate(load_batches(data, batches, flags, device), start=batches.first_step + 1):
                waited = time.monotonic() - before
                batch = type(batch)(*(to_device(field, device) for field in batch))
                torch.manual_seed(int(random_stream(flags.seed, f"step {stage}", step).integers(2**62)))  # dropout
                with torch.autocast(device.type, torch.bfloat16, enabled=flags.precision == "bf16"):
                    terms = method.loss(batch, stage)
                values = {f"loss/{name}": term.item() for name, term in terms.items()}
                refuse_non_finite(values, f"{stage}, step {first + step}", run)
                optimizer.zero_grad()
                terms["total"].backward()
                optimizer.step()
                rate = optimizer.param_groups[0]["lr"]
                if step % batches.period == 0:
                    schedule.step()
                epoch, now = (step - 1) // batches.per_epoch, time.monotonic()
                line = {"stage": stage, "epoch": epoch, "step": first + step, "lr": rate, **values}
                line |= {"seconds": round(now - before, 4), "data_seconds": round(waited, 4)}
                log.write(json.dumps(line) + "\n")
                log.flush()
                progress(progress_line(line, batches, step, now - began), final=step == batches.last_step)
                by_steps = flags.checkpoint_steps and step % flags.checkpoint_steps == 0
                if by_steps or now - saved > flags.checkpoint_seconds or interrupt.raised:
                    os.fsync(log.fileno())
                    state = {"model": method.state_dict(), "step": first + step}
                    state |= {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
                    save_checkpoint(run, state)
                    saved = time.monotonic()
                if interrupt.raised:
                    return False
                before = time.monotonic()
            first += batches.last_step
    if "calibration" not in state:
        save_checkpoint(run, {"model": method.state_dict(), "step": first})  # the end needs no optimiser
    return True


def load_batches(data: TrainingSet, batches: Batches, flags: Flags, device: torch.device) -> Iterable:
    """Batches in their order from the data workers; nothing where no step is left."""
    return torch.utils.data.DataLoader(
        data,
        batch_sampler=batches,
        num_workers=flags.workers,
        worker_init_fn=ignore_interrupts,
        multiprocessing_context=flags.start_method if flags.workers else None,
        pin_memory=device.type == "cuda",
    )


def refuse_non_finite(values: dict[str, float], where: str, run: Path) -> None:
    """Raises TrainingError that names the first loss term which is not finite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise TrainingError(
                f"{name} is {value} ({where}); {run} keeps its last checkpoint. "
                "A lower --learning-rate in a new run is the first thing to try"
            )


def progress_line(line: dict, batches: Batches, step: int, seconds: float) -> str:
    """Stage, epoch, step, loss terms, images a second, time left."""
    done = step - batches.first_step
    left = int(seconds / done * (batches.last_step - step))
    terms = " ".join(f"{name[5:]} {value:.4f}" for name, value in line.items() if name.startswith("loss/"))
    epochs = math.ceil(batches.last_step / batches.per_epoch)
    return (
        f"{line['stage']} epoch {line['epoch'] + 1}/{epochs} step {step}/{batches.last_step}  {terms}  "
        f"{done * batches.size / seconds:.1f} images/s  {left // 60}:{left % 60:02d} left"
    )


def to_device(field: Tensor, device: torch.device) -> Tensor:
    """A field of a batch on the device; pictures in the memory format of the weights."""
    form = torch.channels_last if field.ndim == 4 else torch.preserve_format
    return field.to(device, non_blocking=True, memory_format=form)


# -- after training ---------------------------------------------------------------------------------------------------


def calibrate(run: Path, held_out: list, flags: Flags, device: torch.device) -> None:
    """Stores the decision threshold: a quantile of the scores of held-out normal images.

    An image is anomalous when its score is at least the threshold, which is the next number above a held-out score:
    the k-th of n in ascending order, k = ceil((1 - rate)(n + 1)) keeps the expected false-alarm rate at or
    below `rate` if new normal images are like these (split conformal prediction; Vovk et al., 2005). Where k > n, the
    largest score is taken: n images can promise no rate below 1 / (n + 1).
    """
    state, calibration = load_checkpoint(run), None
    if held_out:
        method = load(run, device)
        scores = sorted(score_image(method, read_image(r.path), flags.seed, i)[0] for i, r in enumerate(held_out))
        count = len(scores)
        rank = max(1, min(count, math.ceil((1 - flags.false_alarm_rate) * (count + 1) - 1e-9)))
        threshold = float(np.nextafter(np.float32(scores[rank - 1]), np.float32(np.inf)))  # scores are float32
        calibration = {"threshold": threshold, "images": count, "false_alarm_rate": flags.false_alarm_rate}
    save_checkpoint(run, {**state, "calibration": calibration})


if __name__ == "__main__":
    sys.exit(main())
