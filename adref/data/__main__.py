"""Checks a data set before training: `python -m adref.data ROOT`."""

import json
import sys
from collections import Counter

from adref.run.threads import bound_spinning

if __name__ == "__main__":
    bound_spinning()  # before torch is loaded

from adref.data.layouts import LAYOUTS, find_categories, find_category, inspect
from adref.options import Parser
from adref.run.cli import entry_point


@entry_point
def main(argv: list[str]) -> int:
    """Prints categories, counts, sizes, notes and problems of a data set; returns 2 if there are problems."""
    parser = Parser(prog="python -m adref.data", description="Checks a data set; exit code 2: it has problems.")
    parser.add_argument("root", metavar="ROOT", help=f"folder of a data set: {LAYOUTS}")
    parser.add_argument("--category", metavar="NAME", help="check this category only")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    flags, reports = parser.parse_args(argv), []
    chosen = [find_category(flags.root, flags.category)] if flags.category else find_categories(flags.root).values()
    for category in chosen:
        problems, notes, _, sizes = inspect(category)
        report = {"category": category.name, "layout": category.layout, "train": len(category.train),
                  "test": dict(Counter(record.defect for record in category.test)),
                  "masks": sum(record.label and record.mask is not None for record in category.test)}  # fmt: skip
        report |= {key: f"{min(side)}..{max(side)}" for key, side in zip(("heights", "widths"), zip(*sizes))}
        report |= {"notes": notes, "problems": [f"{path}: {reason}" for path, reason in problems]}
        reports.append(report)
        for key, value in report.items() if not flags.json else ():
            for item in value if isinstance(value, list) else [value]:
                print(f"{'' if key == 'category' else '  '}{key}: {item}")
    if flags.json:
        print(json.dumps(reports, indent=2))
    return 2 if any(report["problems"] for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
