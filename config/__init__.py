"""Options: dataclass fields <- config files <- --key=value.

The fields of a command's dataclasses are one flat set of options: name, type, default, and the help text from
`Annotated[type, "help"]`. Each layer overrides the one before. All problems are reported at once, each with its source.
"""

import argparse
import contextlib
import difflib
import math
import os
import re
import sys
import types
import typing
from dataclasses import fields
from pathlib import Path


class ConfigError(ValueError):
    """A user's mistake in the options: one message, several lines where there are several problems."""


@contextlib.contextmanager
def command(*errors):
    """Around a command's body: ConfigError, `errors` and OSError end in one message and exit code 2, Ctrl-C in 130.

    Output is UTF-8 whatever the locale says: a model of Machado de Assis must be able to speak on any console.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        yield
    except BrokenPipeError:  # the reader of our output has gone, as in `python sample.py | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # as a shell has it for SIGPIPE
    except (ConfigError, OSError, *errors) as error:
        if (
            os.environ.get("LOCAL_RANK", "0") == "0"
        ):  # torchrun's processes make the same mistake: say it once a machine
            where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
            message = f"{error.strerror}{where}" if isinstance(error, OSError) and error.strerror else error
            print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        sys.exit(130)


def option_types(cls):
    """{name: (type, help)} of a dataclass whose fields are annotated with their help."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.name: (hints[f.name].__origin__, hints[f.name].__metadata__[0]) for f in fields(cls)}


def describe(kind):
    """A type in a student's words."""
    names = {int: "an integer", float: "a number", bool: "True or False", str: "a text", types.NoneType: "None"}
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) is tuple:
        return "one or more texts"
    return names.get(kind) or " or ".join(describe(part) for part in typing.get_args(kind))


def to_none(value):
    if value is None or value in ("None", "none"):
        return None
    raise ValueError


def to_bool(value):
    texts = {"true": True, "1": True, "false": False, "0": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in texts:
        return texts[value.strip().lower()]
    raise ValueError


def to_number(value, kind):
    """An int or a finite float; 1 is a float, 1e3 an int, True neither."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    if kind is int and not isinstance(value, float):
        with contextlib.suppress(ValueError):
            return int(value)  # digits, however many; 1e3 comes next
    try:
        number = float(value)
    except OverflowError:  # an int of more than 308 digits
        raise ValueError from None
    if not math.isfinite(number) or (kind is int and not number.is_integer()):
        raise ValueError
    return kind(number)


def to_text(value):
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    raise ValueError


def to_texts(value):
    items = [value] if isinstance(value, str) else value
    if isinstance(items, list | tuple):
        return tuple(map(to_text, items))
    raise ValueError


def to_one_of(value, parts):
    for part in parts:
        with contextlib.suppress(ValueError):
            return convert(value, part)
    raise ValueError


def convert(value, kind):
    """value as `kind`: a Python value from a config file, or a text from the command line. Raises ValueError."""
    parts, origin = typing.get_args(kind), typing.get_origin(kind)
    try:
        if origin in (typing.Union, types.UnionType):
            return to_one_of(value, parts)
        if origin is typing.Literal:
            return parts[parts.index(value)]
        if origin is tuple:
            return to_texts(value)
        if kind in (int, float):
            return to_number(value, kind)
        return {types.NoneType: to_none, bool: to_bool, str: to_text}[kind](value)
    except ValueError:
        raise ValueError(f"expects {describe(kind)}") from None


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ConfigError(f"{message[0].upper()}{message[1:]}. See the options: python {self.prog} --help")


class Options:
    """What was given, before defaults: `values` {name: value} and `sources` {name: where it came from}."""

    def __init__(self, argv, *classes, description, positional=None):
        """Read config files and --key=value pairs for the fields of `classes`.

        `positional` names the field that the bare argument fills; without it, bare arguments are config files.
        """
        self.classes, self.values, self.sources, self.problems = classes, {}, {}, []
        self.types = {name: spec for cls in classes for name, spec in option_types(cls).items()}
        parser = self.parser(description, positional)
        known, unknown = parser.parse_known_intermixed_args(sys.argv[1:] if argv is None else argv)
        for text in unknown:
            self.unknown(text.split("=")[0].lstrip("-"), text, "--")
        bare = vars(known).pop("bare") or []
        if positional and len(bare) > 1:
            self.problems.append(f"{' '.join(bare)}: one {positional} is expected")
        for text in bare:
            if text.startswith("--"):  # argparse takes an unknown option with a blank in its value for no option
                self.unknown(text.split("=")[0].lstrip("-"), text, "--")
            elif positional:
                self.set(positional, text, text)
            else:
                self.run_file(text)
        for name, texts in vars(known).items():
            several = typing.get_origin(self.types[name][0]) is tuple  # such an option may be given several times
            self.set(name, texts if several else texts[-1], f"--{name}={texts[-1]}")

    def parser(self, description, positional):
        summary, _, rest = description.partition("\n\n")
        parser = Parser(
            description=summary,
            epilog=rest,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            usage=f"%(prog)s [{positional or 'CONFIG_FILE ...'}] [--key=value ...]",
        )
        parser.add_argument("bare", nargs="*", metavar=positional or "CONFIG_FILE", help=argparse.SUPPRESS)
        for cls in self.classes:
            for field in fields(cls):
                kind, help_text = self.types[field.name]
                shown = f"{help_text} ({describe(kind)}; default: {field.default!r})".replace("%", "%%")
                parser.add_argument(
                    f"--{field.name}", action="append", default=argparse.SUPPRESS, metavar="", help=shown
                )
        return parser

    def set(self, name, value, source):
        kind = self.types[name][0]
        try:
            self.values[name], self.sources[name] = convert(value, kind), source
        except ValueError as error:
            self.problems.append(f"{name}={value!r} {error} [{source}]")

    def unknown(self, name, source, prefix=""):
        match = difflib.get_close_matches(name, self.types, n=1, cutoff=0.5)
        self.problems.append(f"{source}: no such option" + (f"; did you mean {prefix}{match[0]}?" if match else ""))

    def run_file(self, path):
        """Run a config file in a namespace of its own; modules, functions, classes and _names in it are not options."""
        names = {"__file__": path}
        if Path(path).is_dir():
            self.problems.append(f"{path} is a folder and no config file; did you mean --out_dir={path}?")
            return
        try:
            exec(compile(Path(path).read_text(encoding="utf-8-sig"), path, "exec"), names)
        except FileNotFoundError:
            near = difflib.get_close_matches(path, map(str, Path("config").glob("*.py")), 1, 0.75)
            self.problems.append(f"{path}: no such config file" + (f"; did you mean {near[0]}?" if near else ""))
        except (Exception, SystemExit) as error:  # whatever a stranger's Python can raise
            self.problems.append(f"{path}: {type(error).__name__}: {error}")
        for name, value in names.items():
            if name.startswith("_") or callable(value) or isinstance(value, types.ModuleType):
                continue
            if name in self.types:
                self.set(name, value, path)
            else:
                self.unknown(name, f"{path}: {name}")

    def build(self, base=None):
        """An instance of each class from defaults <- base (a dict) <- what was given; ConfigError with all problems."""
        merged = {**(base or {}), **self.values}
        problems, built = list(self.problems), []
        for cls in self.classes:
            try:
                built.append(cls(**{f.name: merged[f.name] for f in fields(cls) if f.name in merged}))
            except ValueError as error:
                problems += [line + self.blame(line) for line in str(error).splitlines()]
        if len(problems) == 1:
            raise ConfigError(problems[0])
        if problems:
            raise ConfigError("\n  - ".join([f"{len(problems)} problems:", *problems]))
        return built

    def blame(self, line):
        """Where the values that a message speaks of came from."""
        named = dict.fromkeys(name for name in re.findall(r"(\w+)=", line) if name in self.sources)
        return f" [{', '.join(self.sources[name] for name in named)}]" if named else ""


def to_source(*configs):
    """The configs as the text of a config file that sets every option."""
    lines = []
    for config in configs:
        for name, (_, help_text) in option_types(type(config)).items():
            lines.append(f"{name} = {getattr(config, name)!r}  # {help_text}")
    return "\n".join(lines) + "\n"
