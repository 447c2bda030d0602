"""The training loop, early stopping, and the decision threshold."""

import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import mean
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, default_collate

from adref.data.examples import Images, TrainingSet, random_stream, stage_examples
from adref.method import EarlyStop, Sources, Stage, Trainable
from adref.run import distributed
from adref.run.cli import STOPS, Progress, TrainingError, require_open_files, signal_handler
from adref.run.config import RunSettings
from adref.run.directory import Run, load_state, read_log
from adref.run.scoring import score_resized

LEAST_SIGN, SETTLED_STEPS = -0.1, 100  # see `finish_stage`: settled channels have -0.4 to -0.8, early ones any sign


@contextmanager
def catch_interrupts(run: Run) -> Iterator[list[int]]:
    """Collects Ctrl-C and SIGTERM in a list and goes on; a second Ctrl-C raises, but never in a save."""
    caught: list[int] = []

    def handle(number: int, frame) -> None:
        caught.append(number)
        if caught.count(signal.SIGINT) > 1 and number == signal.SIGINT and not run.saving:
            raise KeyboardInterrupt

    with signal_handler(handle):
        yield caught


def fit(run: Run, sources: Sources, settings: RunSettings, device: torch.device) -> bool:
    """Trains from the checkpoint to the end; returns False if it was interrupted, after saving."""
    distributed.on_rank_zero(run.truncate_log)
    run.method.to(device, memory_format=torch.channels_last)
    if settings.compile:
        compile_networks(run.method)
    with repeatable(device), catch_interrupts(run) as interrupts:
        for stage in run.method.stages:
            if stage.name not in run.state.finished_stages:
                fit_stage(run, stage, sources._replace(stage=stage.name), settings, device, interrupts)
            if any(distributed.gather(bool(interrupts))):
                return False
            distributed.on_rank_zero(partial(finish_stage, run, stage.name))
    return True


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Keeps CUDA to algorithms that give the same bits again; elsewhere it changes nothing.

    torch has none for two operations, and only warns: mirrored borders, whose gradient sums two terms at most (see
    `losses.local_mean`), and the cross-entropy of pixels, whose logged value may differ in its last bit.
    """
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first matrix product
    torch.backends.cudnn.deterministic, cuda = True, torch.backends.cuda
    fused = [name for name in ("flash", "mem_efficient", "cudnn") if getattr(cuda, f"{name}_sdp_enabled", bool)()]

    def switch(on: bool) -> None:
        torch.use_deterministic_algorithms(on, warn_only=True)
        for name in fused:  # where it only warns, torch's fused attention sums in any order
            getattr(cuda, f"enable_{name}_sdp")(not on)

    switch(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a help to find mistakes, which takes time
    try:
        yield
    finally:
        switch(False)


def compile_networks(method: Trainable) -> None:
    """Compiles each network at its first call; a list of networks is never called itself."""
    for child in method.children():
        for network in child.children() if isinstance(child, nn.ModuleList | nn.ModuleDict) else (child,):
            network.compile()


def fit_stage(run: Run, stage: Stage, sources: Sources, settings: RunSettings, device: torch.device,
              interrupts: list) -> None:  # fmt: skip
    """Trains one stage from the checkpoint on, until its end or an interrupt; then saves."""
    method, state, seed, rule = run.method, run.state, settings.seed, stage.early_stop
    sources, validation = split_validation(method, sources, rule, seed)
    data, order = stage_examples(method, stage, sources, seed)
    before = sum(state.finished_stages.values())
    step = state.step - before
    if step == 0:
        method.prepare(sources, stage.name, partial(random_stream, seed))
    optimizer, rates = method.optimizer(stage.name)
    if state.optimizer:
        optimizer.load_state_dict(state.optimizer)
        rates.load_state_dict(state.schedule)
    loss = distributed.parallel_loss(method)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16")
    method.train()
    totals = [line["loss/total"] for line in read_log(run.folder)] if rule else []
    keys = (distributed.shard(part, True) for s in range(step + 1, order.last_step + 1) for part in order.parts(s))
    batches, progress = load_batches(data, keys, settings, device), Progress(order.last_step, step)
    saved = clock = time.monotonic()
    stop = interrupted = False
    while step < order.last_step and not stop:
        step += 1
        line = {"stage": stage.name, "epoch": (step - 1) // order.per_epoch, "step": before + step}
        key = (step, distributed.rank()) if distributed.rank() else (step,)
        torch.manual_seed(int(random_stream(seed, f"step {stage.name}", *key).integers(2**62)))  # dropout
        optimizer.zero_grad()
        terms, waited = add_gradients(method, loss, order.parts(step), batches, stage.name, autocast)
        terms, interrupted = average_over_ranks(terms, bool(interrupts))
        line |= {"lr": optimizer.param_groups[0]["lr"], **terms}
        require_finite(run, line)
        optimizer.step()
        if step % order.period == 0:
            rates.step()
        now = time.monotonic()
        line |= {"seconds": round(now - clock, 4), "data_seconds": round(waited, 4)}
        clock = now
        totals.append(terms["loss/total"])
        if rule and (step % order.per_epoch == 0 or step == order.last_step):
            name = "validation/total" if len(validation) else "epoch/total"
            epoch = totals[-order.per_epoch :]
            line[name] = validate(method, validation, stage.name, autocast) if len(validation) else mean(epoch)
            require_finite(run, line)
            stop = update_best(run, rule, line, line[name])
        state.step = before + step
        shown = ", ".join(f"{name[5:]} {value:.4f}" for name, value in terms.items() if name.startswith("loss/"))
        progress(step, f"{stage.name}, epoch {line['epoch'] + 1}: {shown}", final=stop)
        due = settings.checkpoint_steps and step % settings.checkpoint_steps == 0
        due = due or interrupted or now - saved > settings.checkpoint_seconds
        if due:
            saved, state.optimizer, state.schedule = now, optimizer.state_dict(), rates.state_dict()
        if distributed.rank() == 0:
            run.log(line)
            if due:
                run.save()
        if interrupted and step < order.last_step and not stop:
            return
    state.step, state.optimizer, state.schedule = before + step, None, None
    state.finished_stages[stage.name] = step
    if state.best:
        load_state(method, state.best["model"], run.folder / "checkpoint.pt")
        state.selected_steps[stage.name], state.best = state.best["step"], None
    distributed.on_rank_zero(run.save)


def finish_stage(run: Run, stage: str) -> None:
    """Hands means of a stage's last steps to the method; TrainingError for a channel that is its own negative."""
    lines = [line for line in read_log(run.folder) if line["stage"] == stage]
    last = lines[-sum(line["epoch"] == 0 for line in lines) :]  # an epoch's; the last one may have begun just now
    names = sorted({name for line in last for name in line if "/" in name})
    means = {name: mean(line[name] for line in last if name in line) for name in names}
    for name in names:
        if name.startswith("sign/") and means[name] < LEAST_SIGN and len(lines) >= SETTLED_STEPS:
            text = f"{run.folder}: the reconstructed {name[5:]} channel is its negative ({name} is {means[name]:.2f})"
            raise TrainingError(f"{text}; try another --seed, or --output sigmoid where there is one, in a new run")
    run.method.finish(stage, means)


def add_gradients(method: Trainable, loss: Callable, parts: list[list], batches: Iterator, stage: str,
                  autocast: torch.autocast) -> tuple[dict[str, Tensor], float]:  # fmt: skip
    """Adds up the gradients of a step's micro-batches: `parts`, their keys on all ranks; `batches`, this rank's shares.

    Returns the loss terms by their names in the log, to be averaged over the ranks; the seconds of waiting for data.
    """
    values, images, waited = {}, sum(map(len, parts)), 0.0
    for number, part in enumerate(parts, start=1):
        began = time.monotonic()
        batch = next(batches)
        waited += time.monotonic() - began
        divided = 1 < distributed.count() <= len(part)
        weight = len(part) / images * (len(batch[0]) * distributed.count() / len(part) if divided else 1)
        with autocast:
            terms = loss(batch, stage)
        for name, term in terms.items():
            name = name if "/" in name else f"loss/{name}"
            values[name] = values.get(name, 0.0) + weight * term.detach()
        (weight * terms["total"] if weight != 1 else terms["total"]).backward()
        method.after_backward(stage, last=number == len(parts))
    return values, waited


def average_over_ranks(terms: dict[str, Tensor], interrupted: bool) -> tuple[dict[str, float], bool]:
    """Averages loss terms over the ranks, without statistics that are NaN on any; tells whether any is interrupted."""
    values = torch.stack([term.float() for term in terms.values()]).tolist()
    found = distributed.gather((values, interrupted))
    means = {name: mean(column) for name, column in zip(terms, zip(*(values for values, _ in found)))}
    means = {name: value for name, value in means.items() if name.startswith("loss/") or not math.isnan(value)}
    return means, any(flag for _, flag in found)


def require_finite(run: Run, line: dict) -> None:
    """Raises TrainingError for a loss term of a line of the log that is not finite."""
    for name, value in line.items():
        if "/" in name and not math.isfinite(value):
            where = f"{name} is {value} ({line['stage']}, step {line['step']}); {run.folder} keeps its last checkpoint"
            raise TrainingError(f"{where}. A lower --learning-rate in a new run is the first thing to try")


def begin_worker(worker: int) -> None:
    """Leaves Ctrl-C and SIGTERM to the process that started a data worker, with which it ends, even by SIGKILL."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def load_batches(data: TrainingSet, keys: Iterable, settings: RunSettings, device: torch.device) -> Iterator:
    """Starts the data workers, which make batches from lists of keys; returns an iterator of batches on the device."""
    require_open_files(settings.workers)
    loader = DataLoader(
        data, batch_sampler=keys, num_workers=settings.workers, worker_init_fn=begin_worker,
        multiprocessing_context=settings.start_method if settings.workers else None, pin_memory=device.type == "cuda",
    )  # fmt: skip
    others = multiprocessing.active_children()
    batches = iter(loader)  # now: it draws from torch's generator, which each step seeds for dropout

    def checked() -> Iterator:
        try:
            for batch in batches:
                yield to_device(batch, device)
        except Exception as error:
            # A traceback would keep the workers alive, which ignore SIGTERM, and Python would wait for them at its end.
            error.__context__, error.__cause__ = None, None
            error = error.with_traceback(None)
            for worker in {*multiprocessing.active_children()} - {*others}:
                worker.kill()
            raise error

    return checked()


def to_device(batch: NamedTuple, device: torch.device) -> NamedTuple:
    """Moves a batch to the device, images in the memory format of the weights."""
    forms = (torch.channels_last if field.ndim == 4 else torch.preserve_format for field in batch)
    return type(batch)(*(x.to(device, non_blocking=True, memory_format=form) for x, form in zip(batch, forms)))


def split_validation(method: Trainable, sources: Sources, rule: EarlyStop | None,
                     seed: int) -> tuple[Sources, TrainingSet]:  # fmt: skip
    """Splits a stage's images into those that train, in the sources returned, and those that validate (`EarlyStop`)."""
    count = len(sources.images)
    kept = max(1, math.floor(rule.share * count)) if rule and rule.share and count > 1 else 0
    order = random_stream(seed, "validation").permutation(count).tolist()
    train, held_out = sorted(order[kept:]), Subset(sources.images, sorted(order[:kept]))
    known = {name: [field[i] for i in train] for name in ("hashes", "categories") if (field := getattr(sources, name))}
    sources = sources._replace(images=Subset(sources.images, train), **known)
    return sources, TrainingSet(method.corrupt, method.options, sources, seed, "validation", held_out)


@torch.no_grad()
def validate(method: Trainable, data: TrainingSet, stage: str, autocast: torch.autocast) -> float:
    """Computes the mean loss over validation images; `corrupt` draws the same for each of them every time."""
    method.eval()
    total, size, indices = 0.0, method.options.batch_size, distributed.shard(range(len(data)))
    for begin in range(0, len(indices), size):
        examples = [data[0, i, i] for i in indices[begin : begin + size]]
        batch = to_device(default_collate(examples), next(method.parameters()).device)
        with autocast:
            total += method.loss(batch, stage)["total"].item() * len(examples)
    method.train()
    return sum(distributed.gather(total)) / len(data)


def update_best(run: Run, rule: EarlyStop, line: dict, loss: float) -> bool:
    """Keeps the weights of the least loss so far in the run's state; returns whether the stage is over."""
    best = run.state.best
    if best is None or loss < best["loss"]:
        weights = {name: tensor.cpu().clone() for name, tensor in run.method.state_dict().items()}
        best = run.state.best = {"loss": loss, "epoch": line["epoch"], "step": line["step"], "model": weights}
    return rule.patience is not None and line["epoch"] - best["epoch"] >= rule.patience


def calibrate(run: Run, held_out: Images, settings: RunSettings) -> None:
    """Stores the decision threshold, a quantile of the scores of held-out normal images, and marks the run finished.

    An image is anomalous when its score is at least the threshold, which is the next number above a held-out score:
    the k-th of n in ascending order, k = ceil((1 - rate)(n + 1)) keeps the expected false-alarm rate at or below `rate`
    if new normal images are like these (split conformal prediction; Vovk et al., 2005). Where k > n, the largest score
    is taken: n images can promise no rate below 1 / (n + 1).
    """
    run.method.eval()
    found, state, count, rate = [], run.state, len(held_out), settings.false_alarm_rate
    for i in distributed.shard(range(count)):
        found.append(score_resized(run.method, held_out[i], held_out.hashes[i], settings.seed, i)[0])
    scores = sorted(score for part in distributed.gather(found) for score in part)
    state.finished, state.calibration = True, None
    if scores:
        k = max(1, min(count, math.ceil((1 - rate) * (count + 1) - 1e-9)))
        threshold = float(np.nextafter(np.float32(scores[k - 1]), np.float32(np.inf)))  # scores are float32
        state.calibration = {"threshold": threshold, "images": count, "false_alarm_rate": rate}
    distributed.on_rank_zero(run.save)
