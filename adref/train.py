"""python -m adref.train [METHOD] [--data ROOT --category NAME --textures DIR --out RUN ...]

Trains a method on normal images, sets its decision threshold on held-out ones, evaluates it and writes the report.
With no argument at all: DRAEM at the preset `tiny` on generated sample pictures.
"""

import shlex
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from adref.run.threads import bound_spinning

if __name__ == "__main__":
    bound_spinning()  # before torch is loaded

from adref.data.layouts import digest, find_category
from adref.data.sample import CATEGORIES
from adref.method import Method
from adref.options import UserError, replace
from adref.run import distributed
from adref.run.cli import entry_point, explain_failures
from adref.run.config import RunSettings, new_run, parse_arguments, resumed_run
from adref.run.directory import Run, create_run, find_device, is_own_restart, lock, open_run, read_config
from adref.run.evaluation import check_test_set, evaluate, summary
from adref.run.files import write_json
from adref.run.loop import calibrate, fit
from adref.run.sources import initial_method, open_sources, read_images, split


@partial(entry_point, processes=True)
def main(argv: list[str]) -> int:
    """Reads the command line, then trains in one process or in those of torchrun."""
    with distributed.process_group(), ExitStack() as locks:
        arguments = parse_arguments(argv, __doc__)
        if distributed.count() > 1 and arguments.out is None:
            raise UserError("several processes need --out RUN: restarted after a failure, they go on there")
        arguments.resume |= arguments.out is not None and is_own_restart(arguments.out)
        if not argv:
            print(f"No argument: DRAEM, preset tiny, on generated sample pictures of a {CATEGORIES[0]}.")
        folder, config = distributed.on_rank_zero(lambda: (resumed_run if arguments.resume else new_run)(arguments))
        with explain_failures(folder, config["options"]):
            if arguments.resume:
                distributed.on_rank_zero(lambda: locks.enter_context(lock(folder)))
            return work(folder, config, arguments.resume, locks)


def work(folder: Path, config: dict, resume: bool, locks: ExitStack) -> int:
    """Reads the data, makes or opens the run, trains, sets the threshold, evaluates; returns the exit code."""
    settings = replace(RunSettings(), config["flags"])
    device, name = find_device(settings.device), shlex.quote(str(folder))
    category = find_category(Path(settings.data), config["category"], trained=resume)
    run = open_run(folder) if resume else None
    method, weights = (run.method, {}) if run else initial_method(config, settings)
    scores_images = isinstance(method, Method)
    training, held_out = split(category, settings) if scores_images else (list(category.train), [])
    images, held_out_images = (read_images(method, records, settings) for records in (training, held_out))
    digests = check_test_set(category, [*images.problems, *held_out_images.problems])
    sources, known = open_sources(method, images, [record.category for record in training], settings)
    files = dict(zip(images.paths + held_out_images.paths, images.digests + held_out_images.digests))
    now = {"data_digest": digest(category.train, files), "sources": known}
    if run:
        for key, value in now.items():
            if run.config[key] != value:
                changed = "training images" if key == "data_digest" else " or ".join(known)
                raise UserError(f"--resume: the {changed} are not those that {folder} began with")
        run.config |= {**config, **now}
        distributed.on_rank_zero(lambda: write_json(folder / "config.json", run.config))
    else:
        config |= {"device": str(device), "processes": distributed.count(), **now, "weights_sha256": weights}
        distributed.on_rank_zero(lambda: create_run(folder, config, method, locks))
        run = Run(folder, read_config(folder), method)
    print(f"{category.name}: {len(training)} normal images train, {len(held_out)} set the threshold. Run: {folder}")
    if not fit(run, sources, settings, device):
        print(f"Interrupted and saved. Go on with: python -m adref.train --resume --out {name}")
        return 130
    calibrate(run, held_out_images, settings)
    if not scores_images:
        print(f"Next: python -m adref.synthesize {name} --n 16 --out {name}/samples")
        return 0
    print(summary(evaluate(run, category, digests), folder))
    print(f"Next: python -m adref.predict {name} IMAGE_OR_FOLDER --out {name}/predictions"
          + ("   (or your own pictures: python -m adref.data ROOT)" if config["generated"] else ""))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
