"""Look at a run, or into a model: each picture's title says what to see.

    python visualize.py loss out-quickstart out-mytext
    python visualize.py embeddings out-quickstart --of=tokens
    python visualize.py animate out-quickstart --of=tokens --highlight=aeiou --highlight=0-9
    python visualize.py activations out-quickstart

Pictures are PNG files in the run's folder, or what --to=FILE names, .svg too. Options: python visualize.py loss --help
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import config
from checkpoint import CheckpointError
from config import ConfigError
from data import DataError
from memory import memory_guard
from model import DeviceError


@dataclass(frozen=True)
class Picture:
    """What all pictures share."""

    out: Annotated[str | None, "the run's folder, a checkpoint, or what else sample.py's init_from takes"] = None
    to: Annotated[str | None, "file to write, .png or .svg; None: one in the run's folder"] = None
    show: Annotated[bool, "open a window as well"] = False

    def problems(self):
        return []

    def __post_init__(self):
        problems = self.problems() + ([] if self.to != "" else ["to= is empty"])
        problems += [] if self.out else ["out is missing: name a run's folder, as in out-quickstart"]
        if problems:
            raise ValueError("\n".join(problems))

    def path(self, name):
        """Where the picture is to be: as `to` says, in the run's folder, or here for a model that is in none."""
        if self.to:
            return Path(self.to)
        first = Path(self.out if isinstance(self.out, str) else self.out[0])
        folder = first if first.is_dir() else first.parent if first.is_file() else Path()
        return folder / name


@dataclass(frozen=True)
class LossPicture(Picture):
    out: Annotated[tuple[str, ...], "folders of runs; may be given several times"] = ()
    x: Annotated[Literal["step", "tokens", "seconds"], "of training, to the right"] = "step"


def loss(options):
    """Loss curves of one or several runs: each logged batch faintly, smoothed, and the evaluations with marks."""
    from pictures.curves import losses, read_run

    runs = [read_run(folder) for folder in options.out]
    return losses(options.path("loss.png"), runs, options.x, options.show)


@dataclass(frozen=True)
class ActivationsPicture(Picture):
    pass


def activations(options):
    """What happened in each layer over a run that was trained with snapshot_interval: sizes, gradients, updates."""
    from pictures.curves import layers, read_run

    return layers(options.path("activations.png"), read_run(options.out), options.show)


COMMANDS = {
    "loss": (loss, LossPicture),
    "activations": (activations, ActivationsPicture),
}


def main(argv=None):
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    with config.command(DataError, CheckpointError, DeviceError):
        if name in ("-h", "--help"):
            return print(__doc__)
        if name not in COMMANDS:
            raise ConfigError(f"{name} is none of {', '.join(COMMANDS)}; see python visualize.py --help")
        draw, options_class = COMMANDS[name]
        (options,) = config.Options(rest, options_class, description=draw.__doc__, positional="out").build()
        with memory_guard("a shorter --text, or a smaller model"):
            print(f"written: {draw(options)}")


if __name__ == "__main__":
    main()
