"""Options as data: one frozen dataclass a method, whose fields are the flags and the JSON of a run.

Every option says what it means, where its default comes from (section, equation, table, code) and, where it departs
from the paper or guesses, what the paper says and why. Order of precedence: defaults < preset < ablation < flags.
"""

import argparse
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
    """argparse, with a mistake as one sentence."""

    def error(self, message: str):
        """Raises UserError in place of printing the usage and leaving."""
        raise UserError(f"{message} (a value that begins with a minus is written --flag=-1,2)")


KINDS = ("silent", "ambiguous", "contradiction", "mistake", "substitution")


def option(
    default,
    help: str,
    source: str,
    limits: tuple[float, float] | None = None,
    kind: str | None = None,
    paper: str | None = None,
    why: str | None = None,
    is_flag: bool = True,
):
    """Makes a dataclass field that knows its meaning, its source and how it departs from the paper.

    Args:
        default: the value that the paper preset uses.
        help: one line for `--help`; says the unit or the range.
        source: where the default comes from, e.g. "equation 3", "table 2", "code"; "adref" for a choice of this code.
        limits: smallest and largest value of a number, or of each number of a tuple; both are allowed.
        kind: one of KINDS, where the default departs from the paper or is a guess; else None.
        paper: with `kind`: what the paper says.
        why: with `kind`: the reason for the default.
        is_flag: False for what the commands fill in.
    """
    if (kind is None) != (paper is None) or (kind is None) != (why is None) or kind not in (None, *KINDS):
        raise ValueError(
            f"expected kind, paper and why together, kind one of {KINDS}; got {kind!r}, {paper!r}, {why!r}"
        )
    metadata = {"help": help, "source": source, "limits": limits, "kind": kind, "paper": paper, "why": why}
    return dataclasses.field(default=default, metadata={**metadata, "is_flag": is_flag})


def choices(field_type) -> tuple | None:
    """Returns the values that a `Literal[...]` annotation allows, None for any other type."""
    return typing.get_args(field_type) if typing.get_origin(field_type) is typing.Literal else None


def flag(name: str) -> str:
    """Turns `learning_rate` into `--learning-rate`."""
    return "--" + name.replace("_", "-")


def hints(options_class) -> dict:
    """Maps field names to types."""
    return typing.get_type_hints(options_class)


def names(options_class, all_fields: bool = False) -> list[str]:
    """Lists the fields that are flags, or all."""
    return [f.name for f in dataclasses.fields(options_class) if all_fields or f.metadata["is_flag"]]


def refuse_unknown(name: str, known) -> None:
    """Raises UserError for an option that does not exist; the near ones are listed, or all."""
    near = difflib.get_close_matches(name.lstrip("-").replace("-", "_"), known, n=3, cutoff=0.5) or sorted(known)
    raise UserError(f"unknown option {name}; known: {', '.join(map(flag, near))}")


def parse(name: str, field_type, text):
    """Turns a flag's text (or a JSON value) into the type that the option's annotation states.

    Raises:
        UserError: the text is no such value; the sentence names the option and what it takes.
    """
    origin, arguments = typing.get_origin(field_type), typing.get_args(field_type)
    if origin in (typing.Union, types.UnionType):  # T | None
        return None if text in (None, "none") else parse(name, arguments[0], text)
    if origin is typing.Literal:
        if text not in arguments:
            raise UserError(f"{flag(name)} takes one of {', '.join(map(str, arguments))}; got {text!r}")
        return text
    if origin is tuple:
        if not isinstance(text, str | tuple | list):
            raise UserError(f"{flag(name)} takes values joined by commas; got {text!r}")
        parts = text.split(",") if isinstance(text, str) else list(text)
        if arguments[-1] is not Ellipsis and len(parts) != len(arguments):
            raise UserError(f"{flag(name)} takes {len(arguments)} values joined by commas; got {text!r}")
        kinds = arguments if arguments[-1] is not Ellipsis else [arguments[0]] * len(parts)
        return tuple(parse(name, kind, part) for kind, part in zip(kinds, parts))
    if field_type is bool:
        if str(text).lower() not in ("true", "false"):
            raise UserError(f"{flag(name)} takes true or false; got {text!r}")
        return str(text).lower() == "true"
    try:
        value = field_type(text)
        if field_type is float and not math.isfinite(value):
            raise ValueError
        return value
    except (TypeError, ValueError, OverflowError):
        word = {int: "a whole number", float: "a number"}.get(field_type, f"a {field_type.__name__}")
        raise UserError(f"{flag(name)} takes {word}; got {text!r}") from None


def replace(options, changes: dict):
    """Copies `options` with some fields changed, each value parsed.

    Raises:
        UserError: a name that is no field, a value of the wrong type, or what the class itself refuses.
    """
    types_of, fields = hints(type(options)), {f.name: f for f in dataclasses.fields(options)}
    values = {}
    for name, text in changes.items():
        if name not in fields:
            refuse_unknown(flag(name), fields)
        values[name] = parse(name, types_of[name], text)
        numbers = values[name] if isinstance(values[name], tuple) else (values[name],)
        low, high = fields[name].metadata["limits"] or (-math.inf, math.inf)
        if fields[name].metadata["limits"] and not all(n is None or low <= n <= high for n in numbers):
            bounds = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
            raise UserError(f"{flag(name)} takes {bounds}; got {text if isinstance(text, str) else values[name]}")
    return dataclasses.replace(options, **values)


def require_ascending(options, *pairs: str) -> None:
    """Raises UserError for a pair of numbers, named by its field, whose first is the larger."""
    for name in pairs:
        low, high = getattr(options, name)
        if low > high:
            raise UserError(f"{flag(name)} takes two numbers in ascending order; got {low},{high}")


def build(options_class, presets: dict, ablations: dict, preset: str, ablation: str | None, flags: dict):
    """Builds options from defaults < preset < ablation < flags.

    Raises:
        UserError: an unknown preset or ablation (the known ones are listed), or what `replace` refuses.
    """
    changes = {}
    for kind, name, table in (("preset", preset, presets), ("ablation", ablation, ablations)):
        if name is None:
            continue
        if name not in table:
            raise UserError(f"unknown --{kind} {name}; known: {', '.join(table) or 'none'}")
        changes.update(table[name])
    return replace(options_class(), {**changes, **flags})


def add_flags(
    parser: argparse.ArgumentParser, options_class, kind: str, title: str, names: tuple[str, ...] | None = None
) -> None:
    """Adds `--flag VALUE` for each field, with meaning, choices, default and source in `--help`.

    Args:
        parser: the command's.
        options_class: dataclass of `option` fields.
        kind: prefix that keeps this class's values apart in the parsed arguments; `flags_given` takes the same.
        title: heading in `--help`.
        names: the fields that become flags; None: all.
    """
    types_of, group = hints(options_class), parser.add_argument_group(title)
    for field in dataclasses.fields(options_class):
        if not field.metadata["is_flag"] or (names is not None and field.name not in names):
            continue
        known = choices(types_of[field.name])
        text = field.metadata["help"] + (f" ({'|'.join(map(str, known))})" if known else "")
        shown = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        text = f"{text} [{shown}; {field.metadata['source']}]"
        if field.metadata["kind"]:
            text += f" {field.metadata['kind']}, the paper: {field.metadata['paper']}"
        text = text.replace("%", "%%")
        many = {"nargs": "+"} if typing.get_origin(types_of[field.name]) is tuple else {}
        group.add_argument(flag(field.name), dest=f"{kind} {field.name}", metavar="VALUE", help=text, **many)


def add_variants(parser: argparse.ArgumentParser, presets: dict, ablations: dict) -> None:
    """Adds --preset and --ablation."""
    parser.add_argument("--preset", help=f"one of: {', '.join(presets)} [paper; tiny for the sample data]")
    parser.add_argument("--ablation", help=f"one of: {', '.join(ablations) or 'none'}")


def parse_known(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Parses a command line.

    Raises:
        UserError: an unknown argument; the near ones are listed.
    """
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        if not unknown[0].startswith("-"):
            raise UserError(f"unknown argument {unknown[0]!r}; after the method's name only --options follow")
        known = [action.option_strings[0][2:].replace("-", "_") for action in parser._actions if action.option_strings]
        refuse_unknown(unknown[0].split("=")[0], known)
    return arguments


def flags_given(arguments: argparse.Namespace, kind: str) -> dict:
    """Returns the values of the command line, still text."""
    pairs = ((k.partition(" "), v) for k, v in vars(arguments).items() if v is not None)
    found = {name: value for (prefix, _, name), value in pairs if prefix == kind and name}
    return {name: ",".join(value) if isinstance(value, list) else value for name, value in found.items()}


def to_json(options) -> dict:
    """A flat dictionary of plain values; `replace(Options(), to_json(o)) == o`."""
    return {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
