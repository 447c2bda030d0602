"""python -m adref.train [METHOD] [--data ROOT --category NAME --textures DIR --out RUN ...]

Trains a method on normal images, sets its decision threshold on held-out ones, evaluates it and writes the report.
With no argument at all: DRAEM at the preset `tiny` on generated sample pictures.
"""

import dataclasses
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path

from adref import options as option_tools
from adref.data.layouts import digest, find_category, require_sound
from adref.data.sample import CATEGORIES
from adref.method import Method
from adref.options import UserError
from adref.run import distributed
from adref.run.cli import explained, guarded
from adref.run.config import Flags, new_config, parse_arguments, resumed_config
from adref.run.directory import begun_here, create, find_device, in_use
from adref.run.files import sha256, write_json
from adref.run.loop import calibrate, train
from adref.run.scoring import evaluate, summary
from adref.run.sources import initial_method, open_sources, split

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


if __name__ == "__main__":
    sys.exit(main())
