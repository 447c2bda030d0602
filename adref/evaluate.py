"""python -m adref.evaluate RUN [--data ROOT] [--resolution native|method] [--gt-mode nearest|draem]

Scores the test images of a run's category, writes RUN/evaluation (metrics.json, scores.csv, maps) and RUN/report.html.
"""

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

from adref.data.layouts import find_category, require_sound
from adref.ops import metrics as metric
from adref.options import UserError
from adref.run import distributed, tiles
from adref.run.cli import guarded
from adref.run.directory import find_device, in_use, read_config
from adref.run.scoring import evaluate, summary


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m adref.evaluate", description=__doc__.split("\n\n", 1)[1])
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory of python -m adref.train")
    parser.add_argument("--data", type=Path, help="the data set, if it is no longer where the run was trained")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    parser.add_argument(
        "--resolution", choices=("native", "method"), default="native",
        help="pixels that the pixel metrics count: the files' own, or the method's size [native]",
    )  # fmt: skip
    parser.add_argument(
        "--gt-mode", choices=("nearest", "draem"), default="nearest",
        help="masks at --resolution method: nearest neighbour, or bilinear and only pixels of value 1, as DRAEM's code "
        "has it [nearest]",
    )  # fmt: skip
    parser.add_argument(
        "--convention", choices=sorted(metric.CONVENTIONS),
        help="another reading of AUPRO at the limit 0.3, reported beside the exact one [that of the method's paper]",
    )  # fmt: skip
    tiles.add_flags(parser)
    arguments = parser.parse_args(argv)
    return guarded(distributed.processes()(lambda: run_command(arguments)), shared=True)


def run_command(arguments: argparse.Namespace) -> int:
    """What `main` does when nothing goes wrong."""
    if arguments.gt_mode == "draem" and arguments.resolution != "method":
        raise UserError("--gt-mode draem needs --resolution method: it is a rule for resized masks")
    device, config = distributed.own_device(find_device(arguments.device)), read_config(arguments.run)
    root = arguments.data or Path(config["flags"]["data"])
    if not root.exists():
        raise UserError(f"the data set {root} is not there; --data takes where it is now")
    category = find_category(root, config["category"])
    distributed.first(lambda: require_sound(category))
    with ExitStack() as locks:
        distributed.first(lambda: locks.enter_context(in_use(arguments.run)))
        more = arguments.resolution, arguments.gt_mode, arguments.convention
        metrics = evaluate(arguments.run, category, device, *more, cut=tiles.cut_of(arguments))
    print(summary(metrics))
    if category.test:
        print(f"Report: {(arguments.run / 'report.html').resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
