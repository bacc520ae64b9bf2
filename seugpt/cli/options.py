"""Options: dataclass fields <- config files <- --key=value.

The fields of a command's dataclasses are one flat set of options: name, type, default, and the help text from
`Annotated[type, "help"]`. Each layer overrides the one before. All problems are reported at once, each with its source.
"""

import argparse
import difflib
import os
import re
import sys
import traceback
import types
import typing
from dataclasses import fields
from pathlib import Path

from seugpt.cli.values import checked, convert, describe, option_types, to_repr
from seugpt.errors import ConfigError

# In these, ~ is the user's folder.
PATHS = ("out_dir", "out", "init_from", "input", "val_input", "to", "results", "peer")
LARGEST = (
    2**53
)  # of integers: sizes near 2**63 overflow in torch and NumPy; a seed is no size, and may be larger


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ConfigError(
            f"{message[0].upper()}{message[1:]}. See the options: python {self.prog} --help"
        )


class Help(argparse.RawDescriptionHelpFormatter):
    def _format_args(self, action, default_metavar):
        return (
            action.metavar
        )  # without argparse's brackets: it takes every value for one that may be left out


class Options:
    """What was given, before defaults: `values` {name: value} and `sources` {name: where it came from}."""

    def __init__(self, argv, *classes, description, positional=None):
        """Read config files and --key=value pairs for the fields of `classes`.

        `positional` names the field that bare arguments fill, one or, where it is a tuple, several; without it, bare
        arguments are config files.
        """
        self.classes, self.values, self.sources, self.problems, self.wrong = (
            classes,
            {},
            {},
            [],
            set(),
        )
        self.types = {name: spec for cls in classes for name, spec in option_types(cls).items()}
        parser = self.parser(description, positional)
        known, unknown = parser.parse_known_intermixed_args(sys.argv[1:] if argv is None else argv)
        for text in unknown:
            self.unknown(text.split("=")[0].lstrip("-"), text, "--")
        bare = vars(known).pop("bare") or []
        several = positional and typing.get_origin(self.types[positional][0]) is tuple
        if positional and not several and len(named := bare + vars(known).get(positional, [])) > 1:
            self.problems.append(f"{' '.join(map(str, named))}: one {positional} is expected")
        for text in bare:
            if text.startswith(
                "--"
            ):  # argparse takes an unknown option with a blank in its value for no option
                self.unknown(text.split("=")[0].lstrip("-"), text, "--")
            elif several:
                vars(known).setdefault(positional, []).append(text)
            elif positional:
                self.set(positional, text, text or "''")
            else:
                self.run_file(text)
        for name, texts in vars(known).items():
            if (
                None in texts
            ):  # argparse itself would stop at the first of these, and hide all other problems
                self.problems.append(f"--{name}: expected one argument, as in --{name}=VALUE")
                self.wrong.add(name)
            elif (
                typing.get_origin(self.types[name][0]) is tuple
            ):  # such an option may be given several times
                self.set(name, texts, f"--{name}={texts[-1]}")
            else:
                for text in texts:  # the last one counts, but all must be right
                    self.set(name, text, f"--{name}={text}")

    def parser(self, description, positional):
        summary, _, rest = (description or "").partition("\n\n")  # python -OO has no docstrings
        parser = Parser(
            description=summary,
            epilog=rest,
            formatter_class=Help,
            allow_abbrev=False,
            usage=f"%(prog)s [{positional or 'CONFIG_FILE ...'}] [--key=value ...]",
        )
        parser.add_argument(
            "bare", nargs="*", metavar=positional or "CONFIG_FILE", help=argparse.SUPPRESS
        )
        for cls in self.classes:
            for field in fields(cls):
                kind, help_text = self.types[field.name]
                shown = f"{help_text} ({describe(kind)}; default: {field.default!r})".replace(
                    "%", "%%"
                )
                shape = {
                    "nargs": "?",
                    "const": None,
                    "metavar": "",
                }  # None: where the value is missing
                if kind is bool:  # --interactive is --interactive=True
                    shape |= {"const": "True", "metavar": "[=True]"}
                parser.add_argument(
                    f"--{field.name}",
                    action="append",
                    default=argparse.SUPPRESS,
                    help=shown,
                    **shape,
                )
        return parser

    def set(self, name, value, source):
        try:
            result = convert(value, self.types[name][0])
            if isinstance(result, str):
                if "\0" in result:
                    raise ValueError("holds a zero byte, which no file's name may have")
                result = os.path.expanduser(result) if name in PATHS else result
                result.encode(
                    "utf-8", "surrogateescape"
                )  # ValueError: halves of characters, which no name may have
            if isinstance(result, int) and abs(result) > LARGEST and name != "seed":
                raise ValueError("must lie between -2**53 and 2**53")
            self.values[name], self.sources[name] = result, source
            self.wrong.discard(name)
        except ValueError as error:
            self.problems.append(f"{name}={to_repr(value)} {error} [{source}]")
            self.wrong.add(name)

    def unknown(self, name, source, prefix=""):
        match = difflib.get_close_matches(name, self.types, n=1, cutoff=0.5)
        self.problems.append(
            f"{source}: no such option" + (f"; did you mean {prefix}{match[0]}?" if match else "")
        )

    def run_file(self, path):
        """Run a config file in a namespace of its own; modules, functions, classes and _names need be no options."""
        names = {"__file__": path}
        if not path.strip():
            self.problems.append(
                f"{path!r}: an empty argument, and no config file; is a variable of the shell unset?"
            )
            return
        if os.path.isdir(path):  # False where Path.is_dir raises, as for too long a name
            self.problems.append(
                f"{path} is a folder and no config file; did you mean --out_dir={path}?"
            )
            return
        if not os.path.exists(path):
            near = difflib.get_close_matches(path, map(str, Path("config").glob("*.py")), 1, 0.75)
            self.problems.append(
                f"{path}: no such config file" + (f"; did you mean {near[0]}?" if near else "")
            )
            return
        try:
            exec(compile(Path(path).read_text(encoding="utf-8-sig"), path, "exec"), names)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever a stranger's Python can raise
            lines = [
                line
                for frame, line in traceback.walk_tb(error.__traceback__)
                if frame.f_code.co_filename == path
            ]
            where = f" (line {lines[-1]})" if lines else ""  # a SyntaxError says it by itself
            self.problems.append(f"{path}: {type(error).__name__}: {error}{where}")
        for name, value in names.items():
            if name in self.types:
                self.set(name, value, path)
            elif not (
                name.startswith("_") or callable(value) or isinstance(value, types.ModuleType)
            ):
                self.unknown(name, f"{path}: {name}")

    def get(self, name):
        """What was given for an option, else its default."""
        defaults = {field.name: field.default for cls in self.classes for field in fields(cls)}
        return self.values.get(name, defaults[name])

    def build(self, base=None, origin=""):
        """An instance of each class from defaults <- base (a dict, of `origin`) <- what was given.

        Raises ConfigError with all problems.
        """
        merged = {**(base or {}), **self.values}
        sources = {**dict.fromkeys(base or (), origin), **self.sources}
        problems, built = list(self.problems), []
        for cls in self.classes:
            try:
                built.append(
                    cls(
                        **checked(
                            cls, {f.name: merged[f.name] for f in fields(cls) if f.name in merged}
                        )
                    )
                )
            except ValueError as error:
                lines = [line for line in str(error).splitlines() if not self.follows(line)]
                problems += [line + blame(line, sources) for line in lines]
        if len(problems) == 1:
            raise ConfigError(problems[0])
        if problems:
            raise ConfigError("\n  - ".join([f"{len(problems)} problems:", *problems]))
        return built

    def follows(self, line):
        """Whether a message speaks of an option that was wrong already, where the default stands now."""
        return not self.wrong.isdisjoint(re.findall(r"(\w+)=", line))


def blame(line, sources):
    """Where the values that a message speaks of came from."""
    named = dict.fromkeys(
        sources[name] for name in re.findall(r"(\w+)=", line) if sources.get(name)
    )
    return f" [{', '.join(map(str, named))}]" if named else ""


def to_source(*configs):
    """The configs as the text of a config file that sets every option."""
    lines = []
    for config in configs:
        for name, (_, help_text) in option_types(type(config)).items():
            lines.append(f"{name} = {getattr(config, name)!r}  # {help_text}")
    return "\n".join(lines) + "\n"
