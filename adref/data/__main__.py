"""Checks a data set before training: `python -m adref.data ROOT`."""

import argparse
import json
import sys
from collections import Counter

from adref.data.layouts import LAYOUTS, find_categories, find_category, inspect
from adref.options import UserError


def main(arguments: list[str] | None = None) -> int:
    """Prints categories, counts, sizes, notes and problems of a data set; the exit code is 2 if there are problems."""
    parser = argparse.ArgumentParser(prog="python -m adref.data", description=main.__doc__)
    parser.add_argument("root", metavar="ROOT", help=f"folder of a data set: {LAYOUTS}")
    parser.add_argument("--category", metavar="NAME", help="check this category only")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    flags = parser.parse_args(arguments)
    sys.stdout.reconfigure(errors="backslashreplace")  # the terminal may lack characters of a file name
    try:
        chosen = [find_category(flags.root, flags.category)] if flags.category else find_categories(flags.root).values()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    reports = []
    for category in chosen:
        problems, notes, sizes = inspect(category)
        report = {"category": category.name, "layout": category.layout, "train": len(category.train),
                  "test": dict(Counter(record.defect for record in category.test)),
                  "masks": sum(record.label and record.mask is not None for record in category.test)}  # fmt: skip
        report |= {key: f"{min(side)}..{max(side)}" for key, side in zip(("heights", "widths"), zip(*sizes))}
        report |= {"notes": notes, "problems": [f"{path}: {reason}" for path, reason in problems]}
        reports.append(report)
        for key, value in report.items() if not flags.json else ():
            for item in value if isinstance(value, list) else [value]:
                print(f"{'' if key == 'category' else '  '}{key}: {item}", flush=True)
    if flags.json:
        print(json.dumps(reports, indent=2))
    return 2 if any(report["problems"] for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
