"""python -m adref.evaluate RUN [--data ROOT] [--resolution native|method] [--gt-mode nearest|draem] [options of map]

Scores the test images of a run's category, writes RUN/evaluation (metrics.json, scores.csv, maps) and RUN/report.html.
Options that make map and score, but no weight, may be changed after training, with RUN in the first place; `RUN --help`
lists those of its method.
"""

import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from adref.run.threads import bound_spinning

if __name__ == "__main__":
    bound_spinning()  # before torch is loaded

from adref.data.layouts import find_category
from adref.method import Method
from adref.methods import find_method
from adref.ops.metrics import CONVENTIONS
from adref.options import Parser, UserError, add_flags, flags_given, parse_known
from adref.run import distributed, tiles
from adref.run.cli import entry_point
from adref.run.directory import find_device, lock, open_run, read_config
from adref.run.evaluation import Rules, check_test_set, evaluate, summary


@partial(entry_point, processes=True)
def main(argv: list[str]) -> int:
    """Evaluates in one process or in those of torchrun."""
    parser = Parser(prog="python -m adref.evaluate", description=__doc__)
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="run directory of python -m adref.train")
    add("--data", type=Path, help="the data set, if it is no longer where the run was trained")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    add("--resolution", choices=("native", "method"), default="native", help="pixels that pixel metrics count: those "
        "of each image (maps resized) or of the network's input [native]")  # fmt: skip
    add("--gt-mode", choices=("nearest", "draem"), default="nearest", help="with --resolution method: how masks are "
        "resized, draem drops all their boundary pixels [nearest]")  # fmt: skip
    add("--convention", choices=sorted(CONVENTIONS), help="AUPRO in another paper's reading, reported beside the exact "
        "one [that of the method]")  # fmt: skip
    tiles.add_flags(parser)
    if argv and not argv[0].startswith("-") and issubclass(kind := find_method(read_config(argv[0])["method"]), Method):
        add_flags(parser, kind.Options, "options", "options of map and score (else those of the run)", kind.changeable)
    arguments = parse_known(parser, argv)
    if arguments.gt_mode == "draem" and arguments.resolution != "method":
        raise UserError("--gt-mode draem needs --resolution method: it is a rule for resized masks")
    with distributed.process_group(), ExitStack() as locks:
        run = open_run(arguments.run, find_device(arguments.device), Method, flags_given(arguments, "options"))
        distributed.on_rank_zero(lambda: locks.enter_context(lock(run.folder)))
        root = arguments.data or Path(run.config["flags"]["data"])
        if not root.exists():
            raise UserError(f"the data set {root} is not there; --data takes where it is now")
        category = find_category(root, run.config["category"], trained=True)
        digests = check_test_set(category)
        tiling = tiles.tiling_of(arguments, run.method)
        rules = Rules(arguments.resolution, arguments.gt_mode, arguments.convention, tiling)
        print(summary(evaluate(run, category, digests, rules), run.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
