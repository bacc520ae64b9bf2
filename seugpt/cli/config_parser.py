"""Options: dataclass fields <- config files <- --key=value.

The fields of a command's config dataclasses form one flat namespace of options (see values.py).
Later sources override earlier ones. All problems are reported at once, each with its source.
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

from seugpt.cli.values import (
    coerce_fields,
    coerce_option,
    describe_limits,
    describe_type,
    options_of,
)
from seugpt.errors import ConfigError

NEAR_MISSES = {  # what other programs call an option
    "lr": "learning_rate",
    "epochs": "max_iters",
    "num_epochs": "max_iters",
    "steps": "max_iters",
    "max_steps": "max_iters",
    "seq_len": "block_size",
    "context_length": "block_size",
    "max_length": "max_new_tokens",
    "prompt": "start",
    "output_dir": "out_dir",
    "data_dir": "dataset",
    "model": "init_from",
    "resume": "init_from",
}


def parse_configs(argv, *classes, description, positional=None):
    """An instance of each config dataclass from a command line. Raises ConfigError."""
    parser = ConfigParser(*classes, description=description, positional=positional)
    return parser.parse(argv).build()


class ConfigParser:
    """Reads config files and --key=value pairs for the fields of `classes`.

    Positional arguments are config files, or, where `positional` names a field, values of that
    field.
    """

    def __init__(self, *classes, description, positional=None):
        self.classes = classes
        self.options = {name: option for cls in classes for name, option in options_of(cls).items()}
        self.positional = positional
        self.description = description or ""  # python -OO strips docstrings

    def parse(self, argv=None):
        """The Overrides of a command line (None: sys.argv). Prints help and exits on --help."""
        overrides = Overrides(self.classes, self.options)
        argv = sys.argv[1:] if argv is None else argv
        known, unknown = self.argument_parser().parse_known_intermixed_args(argv)
        named = vars(known)
        positionals = named.pop("positionals") or []
        # argparse takes an unknown option with a space in its value for a positional argument.
        unknown += [text for text in positionals if text.startswith("--")]
        for text in unknown:
            name, _, value = text.partition("=")
            if name == "--config" and self.positional is None:
                file = value or "config/quickstart.py"
                overrides.problems.append(f"{text}: a config file is given alone, as in {file}")
            else:
                overrides.add_unknown(name.lstrip("-"), text, "--")
        positionals = [text for text in positionals if not text.startswith("--")]
        if self.positional is None:
            for path in positionals:
                read_config_file(path, overrides)
        else:
            self.set_positionals(positionals, named, overrides)
        for name, texts in named.items():
            if None in texts:  # argparse would stop here and hide all other problems
                problem = f"--{name}: expected one argument, as in --{name}=VALUE"
                overrides.add_problem(name, problem)
            elif self.takes_several(name):
                overrides.set(name, texts, f"--{name}={texts[-1]}")
            else:
                for text in texts:  # the last one counts, but each must be valid
                    overrides.set(name, text, f"--{name}={text}")
        return overrides

    def takes_several(self, name):
        return typing.get_origin(self.options[name].type) is tuple

    def set_positionals(self, texts, named, overrides):
        """Give positional arguments to their field, which may take a single value or several."""
        name = self.positional
        if self.takes_several(name):
            if texts:
                named[name] = texts + named.get(name, [])
            return
        values = texts + named.get(name, [])
        if texts and len(values) > 1:
            overrides.problems.append(f"{' '.join(map(str, values))}: expected one {name}")
        for text in texts:
            overrides.set(name, text, text or "an empty argument")

    def argument_parser(self):
        summary, _, details = self.description.partition("\n\n")
        parser = ArgumentParser(
            description=summary,
            epilog=details,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
            usage=f"%(prog)s [{self.positional or 'CONFIG_FILE ...'}] [--key=value ...]",
        )
        parser.add_argument("positionals", nargs="*", help=argparse.SUPPRESS)
        for option in self.options.values():
            is_flag = option.type is bool  # --interactive is --interactive=True
            parser.add_argument(
                f"--{option.name}",
                action="append",
                nargs="?",
                const="True" if is_flag else None,  # None: the value is missing
                default=argparse.SUPPRESS,
                metavar="[=True]" if is_flag else "",
                help=help_line(option).replace("%", "%%"),
            )
        return parser


def help_line(option):
    limits = describe_limits(option.tags)
    value = describe_type(option.type) + (f", {limits}" if limits else "")
    return f"{option.help} ({value}; default: {option.default!r})"


class ArgumentParser(argparse.ArgumentParser):
    def error(self, message):
        raise ConfigError(
            f"{message[0].upper()}{message[1:]}. See the options: python {self.prog} --help"
        )


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def _format_args(self, action, default_metavar):
        return action.metavar  # without the brackets that argparse puts around an optional value


class Overrides:
    """The values given for options, before defaults.

    `values`: {name: value}; `sources`: {name: the config file or argument that the value is from}.
    """

    def __init__(self, classes, options):
        self.classes = classes
        self.options = options
        self.values = {}
        self.sources = {}
        self.problems = []
        self.invalid = set()  # names of options whose value was rejected

    def set(self, name, value, source):
        """Take a value, or note why it is wrong."""
        try:
            self.values[name] = coerce_option(self.options[name], value)
        except ValueError as error:
            self.add_problem(name, f"{error} [{source}]")
        else:
            self.sources[name] = source
            self.invalid.discard(name)

    def get(self, name):
        """The value given for an option, else its default."""
        return self.values.get(name, self.options[name].default)

    def add_problem(self, name, problem):
        self.problems.append(problem)
        self.invalid.add(name)

    def add_unknown(self, name, source, prefix=""):
        """Note an option that does not exist, with the nearest one that does."""
        matches = [NEAR_MISSES[name]] if NEAR_MISSES.get(name) in self.options else []
        matches = matches or difflib.get_close_matches(name, self.options, n=1, cutoff=0.5)
        suggestion = f"; did you mean {prefix}{matches[0]}?" if matches else ""
        self.problems.append(f"{source}: no such option{suggestion}")

    def build(self, base=None, base_source=""):
        """An instance of each class: defaults <- `base` <- these values.

        `base`: {name: value} as stored in `base_source`. Raises ConfigError listing all problems.
        """
        base = base or {}
        merged = {**base, **self.values}
        sources = {**dict.fromkeys(base, base_source), **self.sources}
        problems = list(self.problems)
        configs = []
        for cls in self.classes:
            names = [field.name for field in fields(cls)]
            given = {name: merged[name] for name in names if name in merged}
            try:
                configs.append(cls(**coerce_fields(cls, given)))
            except ValueError as error:
                for line in str(error).splitlines():
                    if not self.is_consequence(line):
                        problems.append(line + source_suffix(line, sources))
        if len(problems) == 1:
            raise ConfigError(problems[0])
        if problems:
            raise ConfigError("\n  - ".join([f"{len(problems)} problems:", *problems]))
        return configs

    def is_consequence(self, line):
        """Whether a problem names an option whose value was rejected: it is about the default."""
        return not self.invalid.isdisjoint(re.findall(r"(\w+)=", line))


def source_suffix(line, sources):
    """ " [source]" for the values that a problem names, "" where none was given."""
    names = re.findall(r"(\w+)=", line)
    found = dict.fromkeys(str(sources[name]) for name in names if sources.get(name))
    return f" [{', '.join(found)}]" if found else ""


def read_config_file(path, overrides):
    """Run a config file in a namespace of its own and take its variables as options.

    Modules, functions, classes and _names are ignored; any other name must be an option.
    """
    problem = find_file_problem(path)
    if problem:
        overrides.problems.append(problem)
        return
    namespace = {"__file__": path}
    try:
        exec(compile(Path(path).read_text(encoding="utf-8-sig"), path, "exec"), namespace)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a config file can raise anything
        frames = traceback.walk_tb(error.__traceback__)
        lines = [line for frame, line in frames if frame.f_code.co_filename == path]
        where = f" (line {lines[-1]})" if lines else ""  # a SyntaxError names the line itself
        overrides.problems.append(f"{path}: {type(error).__name__}: {error}{where}")
    for name, value in namespace.items():
        if name in overrides.options:
            overrides.set(name, value, path)
        elif not (name.startswith("_") or callable(value) or isinstance(value, types.ModuleType)):
            overrides.add_unknown(name, f"{path}: {name}")


def find_file_problem(path):
    """Why a config file cannot be read, or None."""
    if not path.strip():
        return f"{path!r}: an empty argument is not a config file; is a shell variable unset?"
    if os.path.isdir(path):  # Path.is_dir raises for names that are too long
        return f"{path} is a folder, not a config file; did you mean --out_dir={path}?"
    if not os.path.exists(path):
        matches = difflib.get_close_matches(path, map(str, Path("config").glob("*.py")), 1, 0.75)
        suggestion = f"; did you mean {matches[0]}?" if matches else ""
        return f"{path}: no such config file{suggestion}"
    return None


def to_source(*configs):
    """The text of a config file that sets every option of `configs`."""
    lines = []
    for config in configs:
        for name, option in options_of(type(config)).items():
            lines.append(f"{name} = {getattr(config, name)!r}  # {option.help}")
    return "\n".join(lines) + "\n"
