"""Options as data: one frozen dataclass a method, whose fields are the flags and the JSON of a run.

Every option says what it means, where its default comes from (section, equation, table, code) and, where it departs
from the paper or guesses, what the paper says and why. Order of precedence: defaults < preset < ablation < flags.
"""

import argparse
import contextlib
import dataclasses
import difflib
import math
import types
import typing


class UserError(ValueError):
    """A user's mistake: one sentence, shown without a traceback, exit code 2."""


class Notice(UserWarning):
    """A warning that is not an error, shown in one line."""


class Parser(argparse.ArgumentParser):
    """argparse, with a mistake as one sentence; a description is a docstring without its first paragraph."""

    def __init__(self, *, description: str | None = None, **words):  # None under python -OO
        super().__init__(description=description and description.split("\n\n", 1)[-1], **words)

    def parse_known_args(self, args=None, namespace=None):
        """Parses as argparse does; UserError for an empty word, which would name the current folder."""
        if not all(word and word[-1] != "=" for word in args or ()):
            raise UserError(f"an empty name among the arguments: {' '.join(map(repr, args))}")
        return super().parse_known_args(args, namespace)

    def error(self, message: str):
        """Raises UserError in place of printing the usage and leaving."""
        raise UserError(f"{message} (a value that begins with a minus is written --flag=-1,2)")


KINDS = ("silent", "ambiguous", "contradiction", "mistake", "substitution")


def option(default, help: str, source: str, limits: tuple[float, float] | None = None, kind: str | None = None,
           paper: str | None = None, why: str | None = None, is_flag: bool = True):  # fmt: skip
    """Makes a dataclass field that knows its meaning, its source and how it departs from the paper.

    Args:
        default, source: the value of the paper preset; "equation 3", "table 2", "code", "adref" (this code's choice).
        help: one line for `--help`, with the unit or the range.
        limits: smallest and largest value, both allowed, of a number or of each number of a tuple.
        kind, paper, why: where the default departs from the paper or is a guess: one of KINDS, its words, the reason.
        is_flag: False for what the commands fill in.
    """
    if (kind is None) != (paper is None) or (kind is None) != (why is None) or kind not in (None, *KINDS):
        raise ValueError(f"expected kind of {KINDS}, paper and why together; got {kind!r}, {paper!r}, {why!r}")
    given = dict(help=help, source=source, limits=limits, kind=kind, paper=paper, why=why, is_flag=is_flag)
    return dataclasses.field(default=default, metadata=given)


def flag(name: str) -> str:
    """Turns `learning_rate` into `--learning-rate`."""
    return "--" + name.replace("_", "-")


def names(options_class, all_fields: bool = False) -> list[str]:
    """Lists the fields that are flags, or all."""
    return [f.name for f in dataclasses.fields(options_class) if all_fields or f.metadata["is_flag"]]


def refuse_unknown(name: str, known) -> None:
    """Raises UserError for an option that does not exist; it lists the near ones, or all."""
    near = difflib.get_close_matches(name.lstrip("-").replace("-", "_"), known, n=3, cutoff=0.5) or sorted(known)
    raise UserError(f"unknown option {name}; known: {', '.join(map(flag, near))}")


def parse(name: str, kind, text):
    """Turns a flag's text, or a JSON value, into the type of the option; UserError says what it takes."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)

    if origin in (typing.Union, types.UnionType):  # T | None
        return None if text in (None, "none") else parse(name, parts[0], text)
    if origin is typing.Literal:
        takes = f"one of {', '.join(map(str, parts))}"
        if text in parts:
            return text
    elif origin is tuple:
        takes = "values joined by commas"
        if isinstance(text, str | tuple | list):
            values = text.split(",") if isinstance(text, str) else text
            kinds = parts[:1] * len(values) if parts[-1] is Ellipsis else parts
            if len(values) == len(kinds):
                return tuple(parse(name, *pair) for pair in zip(kinds, values))
            takes = f"{len(kinds)} {takes}"
    elif kind is bool:
        takes = "true or false"
        if str(text).lower() in ("true", "false"):
            return str(text).lower() == "true"
    else:
        takes = {int: "a whole number", float: "a number"}.get(kind, f"a {kind.__name__}")
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            value = kind(text)
            if kind is not float or math.isfinite(value):
                return value
    raise UserError(f"{flag(name)} takes {takes}; got {text!r}")


def replace(options, changes: dict):
    """Copies `options` with some fields changed, each value parsed; UserError for an unknown name or a wrong value."""
    kinds, fields, values = typing.get_type_hints(type(options)), {f.name: f for f in dataclasses.fields(options)}, {}
    for name, text in changes.items():
        if name not in fields:
            refuse_unknown(flag(name), fields)
        value = values[name] = parse(name, kinds[name], text)
        if limits := fields[name].metadata["limits"]:
            low, high = limits
            if not all(n is None or low <= n <= high for n in (value if isinstance(value, tuple) else (value,))):
                bounds = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
                raise UserError(f"{flag(name)} takes {bounds}; got {text if isinstance(text, str) else value}")
    return dataclasses.replace(options, **values)


def require_ascending(options, *pairs: str) -> None:
    """Raises UserError for a pair of numbers, named by its field, whose first is the larger."""
    for name in pairs:
        low, high = getattr(options, name)
        if low > high:
            raise UserError(f"{flag(name)} takes two numbers in ascending order; got {low},{high}")


def build(options_class, presets: dict, ablations: dict, preset: str, ablation: str | None, flags: dict):
    """Builds options from defaults < preset < ablation < flags; UserError lists the known presets or ablations."""
    changes = {}
    for kind, name, table in (("preset", preset, presets), ("ablation", ablation, ablations)):
        if name is not None and name not in table:
            raise UserError(f"unknown --{kind} {name}; known: {', '.join(table) or 'none'}")
        changes |= table.get(name, {})
    if "epochs" in flags:  # a length in epochs replaces a preset's in steps
        changes.pop("steps", None)
    return replace(options_class(), {**changes, **flags})


def add_flags(parser: argparse.ArgumentParser, options_class, kind: str, title: str, only: tuple | None = None) -> None:
    """Adds `--flag VALUE` for the fields `only`, None: all that are flags, described in `--help` under a title.

    `kind` keeps the values of this class apart in the parsed arguments; `flags_given` takes the same word.
    """
    kinds, group = typing.get_type_hints(options_class), parser.add_argument_group(title)
    wanted = names(options_class) if only is None else only
    for field in (field for field in dataclasses.fields(options_class) if field.name in wanted):
        origin, parts, data = typing.get_origin(kinds[field.name]), typing.get_args(kinds[field.name]), field.metadata
        text = data["help"] + (f" ({'|'.join(map(str, parts))})" if origin is typing.Literal else "")
        shown = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        text += f" [{shown}; {data['source']}]"
        text += f" {data['kind']}, the paper: {data['paper']}" if data["kind"] else ""
        words = {"dest": f"{kind} {field.name}", "metavar": "VALUE", "nargs": "+" if origin is tuple else None}
        group.add_argument(flag(field.name), help=text.replace("%", "%%"), **words)


def add_variants(parser: argparse.ArgumentParser, presets: dict, ablations: dict) -> None:
    """Adds --preset and --ablation."""
    parser.add_argument("--preset", help=f"one of: {', '.join(presets)} [paper; tiny for the sample data]")
    parser.add_argument("--ablation", help=f"one of: {', '.join(ablations) or 'none'}".replace("%", "%%"))


def parse_known(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Parses a command line; UserError lists the options that are near to an unknown one."""
    arguments, unknown = parser.parse_known_args(argv)
    if unknown and not unknown[0].startswith("-"):
        raise UserError(f"unknown argument {unknown[0]!r}; only --options follow the first one")
    if unknown:
        known = [s[2:].replace("-", "_") for action in parser._actions for s in action.option_strings if s[:2] == "--"]
        refuse_unknown(unknown[0].split("=")[0], known)
    return arguments


def flags_given(arguments: argparse.Namespace, kind: str) -> dict[str, str]:
    """Returns the values of the command line that `add_flags` named by `kind`, still text."""
    found = {key: value for key, value in vars(arguments).items() if key.startswith(f"{kind} ") and value is not None}
    return {key[len(kind) + 1 :]: ",".join(v) if isinstance(v, list) else v for key, v in found.items()}


def to_json(options) -> dict:
    """Returns a flat dictionary of plain values; `replace(Options(), to_json(o)) == o`."""
    return {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
