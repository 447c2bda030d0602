"""The log of a training run, and its progress line."""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean

import torch

from adref.run import distributed
from adref.run.cli import Progress
from adref.run.directory import TrainingError, read_log, save_checkpoint
from adref.run.files import naming, write_atomically


def append_log(run: Path, line: dict) -> None:
    """A line more of metrics.jsonl."""
    with naming(run / "metrics.jsonl"), open(run / "metrics.jsonl", "a") as log:
        log.write(json.dumps(line) + "\n")


def truncate_log(run: Path, step: int) -> None:
    """Drops the lines of steps after `step`, which a resumed run will do again."""
    kept = [json.dumps(line) + "\n" for line in read_log(run) if line["step"] <= step]
    write_atomically(Path(run) / "metrics.jsonl", lambda file: file.write("".join(kept).encode()))


class Journal:
    """metrics.jsonl, and the progress line; a line is written one step late.

    Its loss terms come to the host while the device computes the next step, so that the device never waits for them.
    """

    def __init__(self, run: Path):
        self.run, self.progress, self.totals = run, Progress(), []  # "loss/total" of the lines; the loop clears them
        self.line, self.terms, self.show = {}, None, None

    def hold(self, line: dict, terms: dict[str, torch.Tensor], show: Callable[[dict], str]) -> None:
        """Keeps the line of a step until its loss terms have come; `show` makes it the progress line."""
        host, arrived = torch.stack([term.float() for term in terms.values()]), None
        if host.is_cuda:
            device, host, arrived = host, torch.empty(len(host), pin_memory=True), torch.cuda.Event()
            host.copy_(device, non_blocking=True)
            arrived.record()
        self.line, self.terms, self.show = line, (list(terms), host, arrived), show

    def read(self, *wishes: bool) -> list[tuple[bool, ...]]:
        """Puts the terms into the line that waits, as means over the processes, but statistics that are NaN anywhere.

        Args:
            wishes: what this process would like to do.

        Returns:
            the wishes of all processes, which agree thereby.

        Raises:
            TrainingError: a term is not finite.
        """
        values = {}
        if self.terms:
            names, host, arrived = self.terms
            if arrived:
                arrived.synchronize()
            values = dict(zip(names, host.tolist()))
        found = distributed.gather((values, wishes))
        if self.terms:
            terms = {name: mean(terms[name] for terms, _ in found) for name in values}
            terms = {name: term for name, term in terms.items() if name.startswith("loss/") or not math.isnan(term)}
            self.add(terms)
            self.totals.append(terms["loss/total"])
            self.terms = None
        return [wishes for _, wishes in found]

    def add(self, values: dict[str, float]) -> None:
        """Puts more into the line that waits.

        Raises:
            TrainingError: a value is not finite; the last good checkpoint stays.
        """
        for name, value in values.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"{name} is {value} ({self.line['stage']}, step {self.line['step']}); {self.run} keeps its last "
                    "checkpoint. A lower --learning-rate in a new run is the first thing to try"
                )
        self.line |= values

    def write(self, *wishes: bool, final: bool = False) -> list[tuple[bool, ...]]:
        """`read`, and writes the line, if one waits."""
        found = self.read(*wishes)
        if self.line and distributed.rank() == 0:
            append_log(self.run, self.line)
            self.progress(self.show(self.line), final)
        self.line = {}
        return found

    def checkpoint(self, state: dict) -> None:
        """Writes the line that waits, and saves a checkpoint."""
        self.write()
        distributed.first(partial(save_checkpoint, self.run, state))
