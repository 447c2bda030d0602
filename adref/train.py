"""python -m adref.train [METHOD] [--data ROOT --category NAME --textures DIR --out RUN ...]

Trains a method on normal images, sets its decision threshold on held-out ones, evaluates it and writes the report.
With no argument at all: DRAEM at the preset `tiny` on generated sample pictures.
"""

import dataclasses
import math
import multiprocessing
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Subset

from adref import distributed
from adref import options as option_tools
from adref.config import Flags, new_config, parse_arguments, resumed_config
from adref.data import Category, Record, digest, find_category, list_images, read_image, require_sound
from adref.evaluate import evaluate, summary
from adref.files import sha256, write_json
from adref.journal import Journal, truncate_log
from adref.method import EarlyStop, Method, Sources, Trainable
from adref.options import UserError
from adref.run import (
    begun_here,
    build,
    create,
    explained,
    find_device,
    guarded,
    in_use,
    load,
    load_checkpoint,
    load_tensors,
    load_weights,
    read_log,
    read_sizes,
    save_checkpoint,
    score_image,
)
from adref.sample_data import CATEGORIES, generated_textures
from adref.sample_data import VERSION as SAMPLE_VERSION
from adref.samples import Batches, Images, TrainingSet, random_stream

# -- the command ------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    return guarded(distributed.processes()(lambda: run_command(argv)), shared=True)


def run_command(argv: list[str]) -> int:
    """What `main` does when nothing goes wrong."""
    arguments = parse_arguments(argv, __doc__.split("\n\n", 1)[1])
    if distributed.count() > 1 and arguments.out is None:
        raise UserError(
            "several processes need --out RUN: if one dies, torchrun starts all again, and they go on there"
        )
    restart, out = distributed.is_restart(), arguments.out
    arguments.resume |= distributed.first(lambda: restart and out is not None and begun_here(out))
    if not argv:
        print(f"No argument: DRAEM, preset tiny, on generated sample pictures of a {CATEGORIES[0]}.")
    run, config = distributed.first(lambda: (resumed_config if arguments.resume else new_config)(arguments))
    with explained(run, config["options"]), ExitStack() as locks:
        if arguments.resume:
            distributed.first(lambda: locks.enter_context(in_use(run)))  # now, and not after minutes of reading
        return work(run, config, arguments.resume, locks)


def work(run: Path, config: dict, resume: bool, locks: ExitStack) -> int:
    """Reads what a run needs, makes its directory if it is new, trains, evaluates; returns the exit code."""
    flags = option_tools.replace(Flags(), config["flags"])
    device = distributed.own_device(find_device(flags.device))
    category = find_category(Path(flags.data), config["category"])
    distributed.first(lambda: require_sound(category))
    method = initial_method(config, flags, published=not resume)
    scores_images = isinstance(method, Method)
    training, held_out = split(category, flags if scores_images else dataclasses.replace(flags, holdout=0.0))
    sources, digests = open_sources(method, training, flags)
    digests["data_digest"] = digest(category.train)
    if resume:
        for name, now in digests.items():
            if config[name] != now:
                what = "training images" if name == "data_digest" else name.removesuffix("_digest")
                raise UserError(f"--resume: the {what} are not those that {run} began with")
        distributed.first(lambda: write_json(run / "config.json", config))
    else:
        files = [*flags.weights, *({flags.backbone_weights} - {None, "random"})]
        hashes = {path: sha256(Path(path)) for path in files}
        config |= {"device": str(device), "processes": distributed.count(), **digests, "weights_sha256": hashes}
        distributed.first(lambda: create(run, config, {"model": method.state_dict(), "step": 0}))
        distributed.first(lambda: locks.enter_context(in_use(run)))
    print(f"{category.name}: {len(training)} normal images train, {len(held_out)} set the threshold. Run: {run}")
    if not train(run, method, sources, flags, device):
        print(f"Interrupted and saved. Go on with: python -m adref.train --resume --out {shlex.quote(str(run))}")
        return 130
    calibrate(run, held_out, flags, device)
    name = shlex.quote(str(run))
    if not scores_images:
        print(f"Next: python -m adref.synthesize {name} --n 16 --out {name}/samples")
        return 0
    print(summary(evaluate(run, category, device)))
    if category.test:
        print(f"Report: {(run / 'report.html').resolve()}")
    print(f"Next: python -m adref.predict {name} IMAGE_OR_FOLDER --out {name}/predictions"
          + ("   (or your own pictures: python -m adref.data ROOT)" if config["generated"] else ""))  # fmt: skip
    return 0


# -- what a run is made of --------------------------------------------------------------------------------------------


def split(category: Category, flags: Flags) -> tuple[list, list]:
    """Training records and held-out ones, both normal; the split of each category is drawn from the seed.

    Raises:
        UserError: nothing is left to train on.
    """
    if not category.train:
        raise UserError(f"category {category.name} in {category.root} has no normal training image")
    names, chosen = sorted({record.category for record in category.train}), set()
    for name in names:
        own = [i for i, record in enumerate(category.train) if record.category == name]
        kept = 0 if flags.holdout == 0 or len(own) < 2 else min(len(own) - 1, max(1, round(flags.holdout * len(own))))
        rng = random_stream(flags.seed, "holdout" if len(names) == 1 else f"holdout {name}")
        chosen |= {own[i] for i in rng.permutation(len(own))[:kept]}
    training = [record for i, record in enumerate(category.train) if i not in chosen]
    return training, [category.train[i] for i in sorted(chosen)]


def initial_method(config: dict, flags: Flags, published: bool) -> Trainable:
    """The method at its first weights: drawn from the seed, or `published` ones where flags name them.

    Raises:
        UserError: files that do not fit, or no flag for a feature extractor.
    """
    torch.manual_seed(int(random_stream(flags.seed, "weights").integers(2**62)))
    method, backbone = build(config), flags.backbone_weights
    if backbone is None and method.backbone_source:
        raise UserError(f"--backbone-weights FILE is missing: {method.backbone_source}; random is for tests")
    if backbone and not method.backbone_source:
        raise UserError(f"--backbone-weights: {config['method']} has no frozen feature extractor")
    if backbone not in (None, "random") and published:
        state = load_tensors(backbone, f"--backbone-weights {backbone} cannot be read")
        try:
            method.load_backbone(state)
        except UserError as error:
            raise UserError(f"--backbone-weights {backbone}: {error}") from None
    if flags.weights and published:
        method.load_weights([load_tensors(path, f"--weights {path} cannot be read") for path in flags.weights])
        for name, tensor in method.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise UserError(f"--weights: {name} is not finite")
    return method


def open_sources(method: Trainable, training: list[Record], flags: Flags) -> tuple[Sources, dict]:
    """What the method trains on and draws from, and the digests of what flags name, None where it needs none.

    Raises:
        UserError: the method needs something that no flag names, or what a flag names cannot be read.
    """
    o, limit = method.options, flags.memory_limit * 2**30
    size, paths, categories = o.size, [record.path for record in training], [record.category for record in training]
    foreign = getattr(o, "source_resize", o.resize)  # for pictures from elsewhere
    look = partial(method.look, options=o) if type(method).look is not Trainable.look else None
    images = Images(paths, size, o.resize, limit, look)
    looks = images.looks if look else None
    textures = sizes = anomalies = textures_digest = sizes_digest = anomalies_digest = None
    if "textures" in method.needs and flags.textures is None:  # T2
        print("No --textures FOLDER: using 300 generated textures (DRAEM's paper: photographs of textures, DTD).")
        textures = torch.from_numpy(generated_textures(300, max(size), seed=0))[:, :, : size[0], : size[1]]
        textures_digest = f"generated, version {SAMPLE_VERSION}"
    elif "textures" in method.needs:
        files = list_images(Path(flags.textures))
        textures_digest = digest([Record(path, 0, "texture", None) for path in files])
        textures = Images(files, size, foreign, limit)
    if "sizes" in method.needs:
        if flags.defect_sizes is None:
            raise UserError("this method needs --defect-sizes FILE (height,width,weight); see --patch-size")
        sizes, sizes_digest = read_sizes(flags.defect_sizes), sha256(Path(flags.defect_sizes))
    if "anomalies" in method.needs:
        if flags.anomaly_images is None:
            raise UserError("this method needs --anomaly-images FOLDER (python -m adref.synthesize RUN of sdas), or "
                            "other --anomaly-sources")  # fmt: skip
        files = list_anomalies(Path(flags.anomaly_images), sorted(set(categories)))
        anomalies_digest = digest([Record(path, 1, name, None) for name in files for path in files[name]])
        anomalies = {name: Images(found, size, foreign, limit / len(files)) for name, found in files.items()}
    found = {
        name: method.survey(Subset(images, [i for i, own in enumerate(categories) if own == name]), name, o)
        for name in dict.fromkeys(categories)
    }
    found = found if method.many_categories else found[categories[0]]
    digests = {"textures_digest": textures_digest, "sizes_digest": sizes_digest, "anomalies_digest": anomalies_digest}
    return Sources(textures, images, looks, list(map(str, paths)), categories, anomalies, sizes, found), digests


def list_anomalies(folder: Path, categories: list[str]) -> dict[str, list[Path]]:
    """The anomalous pictures for each category: those in its own folder, or all where no category has one.

    Raises:
        UserError: no pictures, folders of some categories alone, or a folder that was drawn for others.
    """
    own = [name for name in categories if (folder / name).is_dir()]
    drawn = (folder / "settings.json").exists() and not (folder / "all").is_dir()  # by synthesize, with categories
    if own != categories and (own or drawn):
        missing = next(name for name in categories if name not in own)
        raise UserError(f"--anomaly-images {folder} has folders of other categories, but none of {missing}")
    try:
        found = {name: list_images(folder / name if own else folder) for name in categories}
    except UserError as error:
        raise UserError(f"--anomaly-images: {error}") from None
    for name, files in found.items():
        print(f"{name}: anomalies from {len(files)} pictures in {folder / name if own else folder}")
    return found


# -- the loop ---------------------------------------------------------------------------------------------------------


class Interrupt:
    """Ctrl-C and SIGTERM raise a flag that the loop reads between two steps; a second Ctrl-C stops at once."""

    def __enter__(self) -> "Interrupt":
        self.raised = False
        self.before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _handle(self, number, frame) -> None:
        if self.raised and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.raised = True

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def ignore_interrupts(worker: int) -> None:
    """Data workers leave Ctrl-C and a scheduler's SIGTERM to the process that started them, and end with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def train(run: Path, method: Trainable, sources: Sources, flags: Flags, device: torch.device) -> bool:
    """Trains from the run's checkpoint to the end; True when it got there, False when it was interrupted.

    Raises:
        TrainingError: a loss term or a weight is not finite; the last good checkpoint stays.
    """
    torch.backends.cudnn.deterministic = True  # no number may depend on which kernel was the fastest today
    state = load_checkpoint(run)
    distributed.first(lambda: truncate_log(run, state["step"]))
    load_weights(run, method, state)
    method.to(device, memory_format=torch.channels_last)
    for network in method.children() if flags.compile else ():
        network.compile()
    ended, chosen, best = state.get("ended", {}), state.get("chosen", {}), state.get("best")
    first = 0  # the steps of the stages before
    journal = Journal(run)
    with Interrupt() as interrupt:
        for stage in method.stages:
            if stage in ended:
                first += ended[stage]
                continue
            stop = method.early_stop(stage)
            own, validation = split_validation(sources._replace(stage=stage), stop, flags.seed)
            data = training_set(method, own, flags.seed)
            validation = TrainingSet(validation, method.corrupt, method.options, own, flags.seed, "validation")
            batches = Batches(method, stage, len(data), flags.seed, max(0, state["step"] - first))
            step = min(batches.first_step, batches.last_step)
            if step == 0:
                method.prepare(own, stage, partial(random_stream, flags.seed))
            optimizer, schedule = method.optimizer(stage)
            if 0 < step < batches.last_step:
                optimizer.load_state_dict(state["optimizer"])
                schedule.load_state_dict(state["schedule"])
            loss = distributed.parallel(method)
            method.train()
            begun = first + step - step % batches.per_epoch  # an epoch in whose middle the run goes on
            journal.totals = [line["loss/total"] for line in read_log(run) if line["step"] > begun] if stop else []
            began = saved = before = time.monotonic()
            for step, batch in enumerate(load_batches(data, batches, flags, device), start=step + 1):  # noqa: B020
                waited = time.monotonic() - before
                batch = to_device(batch, device)
                key = (step, distributed.rank()) if distributed.rank() else (step,)
                torch.manual_seed(int(random_stream(flags.seed, f"step {stage}", *key).integers(2**62)))  # dropout
                optimizer.zero_grad()
                terms = add_gradients(method, loss, batch, batches.images(step), stage, flags)
                optimizer.step()
                method.after_step(stage)
                rate = optimizer.param_groups[0]["lr"]
                if step % batches.period == 0:
                    schedule.step()
                by_steps = flags.checkpoint_steps and step % flags.checkpoint_steps == 0
                due = by_steps or time.monotonic() - saved > flags.checkpoint_seconds
                wishes = journal.write(bool(due), interrupt.raised)
                due, interrupted = wishes[0][0], any(asked for _, asked in wishes)
                now, epoch, over = time.monotonic(), (step - 1) // batches.per_epoch, False
                line = {"stage": stage, "epoch": epoch, "step": first + step, "lr": rate}
                line |= {"seconds": round(now - before, 4), "data_seconds": round(waited, 4)}
                journal.hold(line, terms, partial(progress_line, batches=batches, step=step, seconds=now - began))
                if stop and step % batches.per_epoch == 0:
                    journal.read()
                    held = len(validation) > 0
                    watched = validate(method, validation, stage, flags, device) if held else mean(journal.totals)
                    journal.add({"validation/total" if held else "epoch/total": watched})
                    if best is None or watched < best["loss"]:
                        weights = {name: tensor.cpu().clone() for name, tensor in method.state_dict().items()}
                        best = {"loss": watched, "epoch": epoch, "step": first + step, "model": weights}
                    over = stop.patience is not None and epoch - best["epoch"] >= stop.patience
                if step % batches.per_epoch == 0:
                    journal.totals.clear()
                if over or step == batches.last_step:
                    journal.write(final=True)
                if over:
                    break
                if due or interrupted:
                    state = {"model": method.state_dict(), "step": first + step, "ended": ended, "chosen": chosen}
                    state |= {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(), "best": best}
                    journal.checkpoint(state)
                    saved = time.monotonic()
                if interrupted:
                    return False
                before = time.monotonic()
            first, ended = first + step, {**ended, stage: step}
            if best:
                load_weights(run, method, best)
                chosen, best = {**chosen, stage: best["step"]}, None
            if any(distributed.gather(interrupt.raised)):  # in the step that ended the stage early
                break
        if "calibration" not in state:  # the end of a stage needs no optimiser
            journal.checkpoint({"model": method.state_dict(), "step": first, "ended": ended, "chosen": chosen})
    return not any(distributed.gather(interrupt.raised))


def training_set(method: Trainable, sources: Sources, seed: int) -> TrainingSet:
    """What the stage in `sources` trains on; each stage draws from streams of its own."""
    purpose = "corrupt" if sources.stage == method.stages[0] else f"corrupt {sources.stage}"
    return TrainingSet(sources.images, method.corrupt, method.options, sources, seed, purpose)


def split_validation(sources: Sources, stop: EarlyStop | None, seed: int) -> tuple[Sources, Subset]:
    """What trains, and the images that an `EarlyStop` watches: at least one where there are two.

    What is returned first knows the images that train alone: `corrupt` must not see what validates.
    """
    count = len(sources.images)
    kept = max(1, math.floor(stop.share * count)) if stop and stop.share and count > 1 else 0
    order = random_stream(seed, "validation").permutation(count).tolist()
    train = sorted(order[kept:])
    fields = {name: getattr(sources, name) for name in ("looks", "paths", "categories")}
    known = {name: [field[i] for i in train] for name, field in fields.items() if field}
    own = sources._replace(images=Subset(sources.images, train), **known)
    return own, Subset(sources.images, sorted(order[:kept]))


@torch.no_grad()
def validate(method: Trainable, data: TrainingSet, stage: str, flags: Flags, device: torch.device) -> float:
    """The mean loss over images that do not train; `corrupt` draws the same for each of them every time."""
    method.eval()
    total, size = 0.0, method.options.batch_size
    own = distributed.every(range(len(data)))
    for begin in range(0, len(own), size):
        examples = [data[0, i, i] for i in own[begin : begin + size]]
        batch = to_device(torch.utils.data.default_collate(examples), device)
        with torch.autocast(device.type, torch.bfloat16, enabled=flags.precision == "bf16"):
            total += method.loss(batch, stage)["total"].item() * len(examples)
    method.train()
    return sum(distributed.gather(total)) / len(data)


def load_batches(data: TrainingSet, batches: Batches, flags: Flags, device: torch.device) -> Iterator:
    """Batches in their order from the data workers; nothing where no step is left."""
    loader = torch.utils.data.DataLoader(
        data,
        batch_sampler=batches,
        num_workers=flags.workers,
        worker_init_fn=ignore_interrupts,
        multiprocessing_context=flags.start_method if flags.workers else None,
        pin_memory=device.type == "cuda",
    )
    others = multiprocessing.active_children()
    try:
        yield from loader
    except Exception as error:
        # Tracebacks would keep the workers, which do not heed SIGTERM, and Python would wait for them when it ends.
        error.__context__, error.__cause__ = None, None
        error = error.with_traceback(None)
        for worker in {*multiprocessing.active_children()} - {*others}:  # whom the loader has not stopped by now
            worker.kill()
        raise error


def add_gradients(
    method: Trainable, loss: Callable, batch: NamedTuple, images: int, stage: str, flags: Flags
) -> dict[str, torch.Tensor]:
    """Adds the gradients of a batch, part by part.

    Args:
        method: whose parameters get them.
        loss: `distributed.parallel(method)`.
        batch: this process's share.
        images: how many the whole batch has.
        stage: of training.
        flags: of the run.

    Returns:
        the terms of the loss by the names of the log, on the device; the whole batch's are their means over the
        processes.
    """
    values, begin = {}, 0
    for part in distributed.parts(images, method.micro_batches(stage)):
        length = part.stop - part.start
        divided = 1 < distributed.count() <= length
        end = begin + len(distributed.share(range(length)))
        piece = type(batch)(*(field[begin:end] for field in batch))
        weight = length / images * ((end - begin) * distributed.count() / length if divided else 1)
        with torch.autocast(piece[0].device.type, torch.bfloat16, enabled=flags.precision == "bf16"):
            terms = loss(piece, stage, divided)
        for name, term in terms.items():
            key = name if "/" in name else f"loss/{name}"
            values[key] = values.get(key, 0.0) + weight * term.detach()
        (weight * terms["total"] if weight != 1 else terms["total"]).backward()
        method.after_backward(stage, last=part.stop == images)
        begin = end
    return values


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


def to_device(batch: NamedTuple, device: torch.device) -> NamedTuple:
    """A batch on the device; pictures in the memory format of the weights."""
    forms = (torch.channels_last if field.ndim == 4 else torch.preserve_format for field in batch)
    return type(batch)(*(x.to(device, non_blocking=True, memory_format=form) for x, form in zip(batch, forms)))


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
        method, own = load(run, device), distributed.every(range(len(held_out)))
        found = [score_image(method, read_image(held_out[i].path), flags.seed, i)[0] for i in own]
        scores = sorted(score for part in distributed.gather(found) for score in part)
        count = len(scores)
        rank = max(1, min(count, math.ceil((1 - flags.false_alarm_rate) * (count + 1) - 1e-9)))
        threshold = float(np.nextafter(np.float32(scores[rank - 1]), np.float32(np.inf)))  # scores are float32
        calibration = {"threshold": threshold, "images": count, "false_alarm_rate": flags.false_alarm_rate}
    distributed.first(partial(save_checkpoint, run, {**state, "calibration": calibration}))


if __name__ == "__main__":
    sys.exit(main())
