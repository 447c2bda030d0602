"""The training loop, and the decision threshold."""

import math
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Subset

from adref.data.examples import Batches, TrainingSet, random_stream
from adref.data.reader import read_image
from adref.method import EarlyStop, Sources, Stage, Trainable
from adref.run import distributed
from adref.run.config import Flags
from adref.run.directory import load, load_checkpoint, load_weights, read_log, save_checkpoint
from adref.run.journal import Journal, truncate_log
from adref.run.scoring import score_image

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
        for plan in method.stages:
            stage = plan.name
            if stage in ended:
                first += ended[stage]
                continue
            stop = plan.early_stop
            own, validation = split_validation(sources._replace(stage=stage), stop, flags.seed)
            data = training_set(method, own, flags.seed)
            validation = TrainingSet(validation, method.corrupt, method.options, own, flags.seed, "validation")
            batches = Batches(method, plan, len(data), flags.seed, max(0, state["step"] - first))
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
                terms = add_gradients(method, loss, batch, batches.images(step), plan, flags)
                optimizer.step()
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
    purpose = "corrupt" if sources.stage == method.stages[0].name else f"corrupt {sources.stage}"
    return TrainingSet(sources.images, method.corrupt, method.options, sources, seed, purpose)


def split_validation(sources: Sources, stop: EarlyStop | None, seed: int) -> tuple[Sources, Subset]:
    """What trains, and the images that an `EarlyStop` watches: at least one where there are two.

    What is returned first knows the images that train alone: `corrupt` must not see what validates.
    """
    count = len(sources.images)
    kept = max(1, math.floor(stop.share * count)) if stop and stop.share and count > 1 else 0
    order = random_stream(seed, "validation").permutation(count).tolist()
    train = sorted(order[kept:])
    fields = {name: getattr(sources, name) for name in ("hashes", "categories")}
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
    method: Trainable, loss: Callable, batch: NamedTuple, images: int, plan: Stage, flags: Flags
) -> dict[str, torch.Tensor]:
    """Adds the gradients of a batch, part by part.

    Args:
        method: whose parameters get them.
        loss: `distributed.parallel(method)`.
        batch: this process's share.
        images: how many the whole batch has.
        plan: the stage.
        flags: of the run.

    Returns:
        the terms of the loss by the names of the log, on the device; the whole batch's are their means over the
        processes.
    """
    values, begin, stage = {}, 0, plan.name
    for part in distributed.parts(images, plan.parts):
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
