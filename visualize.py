"""Look at a run, or into a model: each picture's title says what to see.

    python visualize.py loss out-quickstart out-mytext
    python visualize.py embeddings out-quickstart --of=tokens
    python visualize.py animate out-quickstart --of=tokens --highlight=aeiou --highlight=0-9
    python visualize.py activations out-quickstart
    python visualize.py attention out-quickstart --text="Return the value"
    python visualize.py heads out-quickstart --text=FILE:book.txt
    python visualize.py next out-quickstart --text="Return the " --temperature=0.5 --temperature=1
    python visualize.py surprise out-quickstart --text=FILE:book.txt
    python visualize.py lens out-quickstart --text="Return the value"

Pictures are PNG files in the run's folder, or what --to=FILE names, .svg too. Options: python visualize.py loss --help
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from seugpt.checkpoint import pretrained as weights
from seugpt.checkpoint import storage as checkpoint
from seugpt.cli.command import command
from seugpt.cli.options import Options
from seugpt.errors import ConfigError, DataError
from seugpt.generation.decoder import Sampling
from seugpt.training import layer_stats as snapshots
from seugpt.training.memory import memory_guard


@dataclass(frozen=True)
class Picture:
    """What all pictures share."""

    out: Annotated[
        str | None, "the run's folder, a checkpoint, or what else sample.py's init_from takes"
    ] = None
    to: Annotated[str | None, "file to write, .png or .svg; None: one in the run's folder"] = None
    show: Annotated[bool, "open a window as well"] = False
    endings = (".png", ".svg")  # of `to`

    def problems(self):
        return []

    def __post_init__(self):
        right = self.to is None or Path(self.to).suffix.lower() in self.endings
        problems = self.problems() + (
            [] if right else [f"to={self.to} must end in {' or '.join(self.endings)}"]
        )
        problems += (
            []
            if self.out and all(self.out)
            else ["out is missing: name a run's folder, as in out-quickstart"]
        )
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
    from seugpt.plots.curves import losses, read_run

    runs = [read_run(folder) for folder in options.out]
    return losses(options.path("loss.png"), runs, options.x, options.show)


def activations(options):
    """What happened in each layer over a run that was trained with snapshot_interval: sizes, gradients, updates."""
    from seugpt.plots.curves import layers, read_run

    return layers(options.path("activations.png"), read_run(options.out), options.show)


@dataclass(frozen=True)
class EmbeddingsPicture(Picture):
    of: Annotated[
        Literal["tokens", "positions", "similarity"], "similarity: of positions to each other"
    ] = "tokens"
    method: Annotated[
        Literal["pca", "tsne"], "how many dimensions become two; tsne needs scikit-learn"
    ] = "pca"


def embeddings(options):
    """Embeddings of tokens or positions in two dimensions, before training and after."""
    from seugpt.plots.embeddings import embeddings, token_rows

    content = weights.load(options.out)
    tokens, rows = token_rows(weights.tokenizer_of(content))
    tables, titles = [content["model"]], [checkpoint.describe(content).rpartition(": ")[2]]
    if (before := weights.untrained(content)) is not None:
        tables, titles = [before, *tables], ["before training", *titles]
    if options.of == "tokens":
        tables = [state["wte.weight"][rows] for state in tables]
    else:
        tables = [learned_positions(state.get("wpe.weight"), options.out) for state in tables]
    tables = [table.float().numpy() for table in tables]
    path = options.path(f"embeddings-{options.of}.png")
    return embeddings(path, tables, titles, tokens, options.of, options.method, options.show)


def learned_positions(table, source):
    """The table, if there is one. Raises DataError."""
    if table is None:
        raise DataError(
            f"{source} has position=rope: its positions are rotations, and no learned vectors to look at"
        )
    return table


@dataclass(frozen=True)
class Animation(Picture):
    of: Annotated[Literal["tokens", "positions"], "what moves"] = "tokens"
    method: Annotated[
        Literal["pca", "tsne"], "how many dimensions become two; tsne needs scikit-learn"
    ] = "pca"
    highlight: Annotated[
        tuple[str, ...],
        "characters or positions in a colour of their own, as in aeiou, 0-9 or 12-14; several times",
    ] = ()
    endings = (".gif",)

    def problems(self):
        return ["show=True: an animation is a file; open it in a browser"] if self.show else []


def animate(options):
    """How embeddings find their places in a run that was trained with snapshot_interval, as a GIF."""
    from seugpt.plots.embeddings import animate, highlighted, token_rows

    found = snapshots.steps_of(options.out)
    if not found:
        raise DataError(
            f"{options.out} has no snapshots. Train with --snapshot_interval=100, and animate again"
        )
    tokens, rows = token_rows(weights.tokenizer_of(weights.load(options.out)))
    states = [snapshots.load_embeddings(path) for path in found.values()]
    if options.of == "tokens":
        tables = [state["wte"][rows] for state in states]
    else:
        tables = [learned_positions(state.get("wpe"), options.out) for state in states]
        tokens = [str(n).encode() for n in range(len(tables[0]))]
    groups = highlighted(options.highlight, tokens, options.of)
    captions = snapshots.captions(options.out, list(found))
    path = options.path(f"animation-{options.of}.gif")
    return animate(path, tables, captions, tokens, options.of, groups, options.method)


@dataclass(frozen=True)
class TextPicture(Picture):
    text: Annotated[str | None, "what the model reads: a text, or FILE:path of a UTF-8 file"] = None

    def problems(self):
        given = self.text not in (None, "", "FILE:")
        return (
            []
            if given
            else ['text= is missing: give --text="Once upon a time", or --text=FILE:path']
        )


@dataclass(frozen=True)
class AttentionPicture(TextPicture):
    layer: Annotated[int | None, "this one alone, from 0; None: all"] = None
    head: Annotated[int | None, "this one alone, from 0; None: all"] = None


def attention(options):
    """Where each token of a text looks: a map for every head, a large one with --layer=2 --head=0."""
    from seugpt.plots.attention import maps

    return maps(
        options.path("attention.png"),
        options.out,
        options.text,
        options.layer,
        options.head,
        options.show,
    )


def heads(options):
    """What each head looks at, in the mean over a text, which may be long: --text=FILE:book.txt."""
    from seugpt.plots.attention import habits

    return habits(options.path("heads.png"), options.out, options.text, options.show)


@dataclass(frozen=True)
class NextPicture(TextPicture):
    temperature: Annotated[tuple[float, ...], "as in sample.py; may be given several times"] = (
        0.5,
        1.0,
        1.5,
    )
    top_k: Annotated[int | None, "as in sample.py"] = None
    top_p: Annotated[float, "as in sample.py"] = 1.0
    bars: Annotated[int, "how many tokens have a bar of their own"] = 15
    samples: Annotated[int, "how often the token is drawn"] = 1000

    def problems(self):
        problems = super().problems()
        problems += [] if 1 <= self.bars <= 100 else [f"bars={self.bars} must be 1 to 100"]
        problems += (
            [] if 1 <= self.samples <= 10**6 else [f"samples={self.samples} must be 1 to 1000000"]
        )
        problems += (
            [] if 1 <= len(self.temperature) <= 4 else ["temperature= may be given 1 to 4 times"]
        )
        try:
            self.samplings()
        except ValueError as error:
            problems.append(str(error))
        return problems

    def samplings(self):
        return [Sampling(temperature, self.top_k, self.top_p) for temperature in self.temperature]


def following(options):
    """The next token after a text: how likely each one is at several temperatures, and how often it is drawn."""
    from seugpt.plots.predictions import following

    given = (options.samplings(), options.bars, options.samples)
    return following(options.path("next.png"), options.out, options.text, *given, options.show)


def surprise(options):
    """A text in colours: how much each token surprised the model, in bits."""
    from seugpt.plots.predictions import surprises

    return surprises(options.path("surprise.png"), options.out, options.text, options.show)


def lens(options):
    """What each layer would say next, were it the last: the logit lens."""
    from seugpt.plots.predictions import lens

    return lens(options.path("lens.png"), options.out, options.text, options.show)


COMMANDS = {
    "embeddings": (embeddings, EmbeddingsPicture),
    "animate": (animate, Animation),
    "loss": (loss, LossPicture),
    "activations": (activations, Picture),
    "attention": (attention, AttentionPicture),
    "heads": (heads, TextPicture),
    "next": (following, NextPicture),
    "surprise": (surprise, TextPicture),
    "lens": (lens, TextPicture),
}


def main(argv=None):
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    with command():
        if name in ("-h", "--help"):
            return print(__doc__)
        if name not in COMMANDS:
            raise ConfigError(
                f"{name} is none of {', '.join(COMMANDS)}; see python visualize.py --help"
            )
        draw, options_class = COMMANDS[name]
        (options,) = Options(
            rest, options_class, description=draw.__doc__, positional="out"
        ).build()
        with memory_guard("a shorter --text, or a smaller model"):
            print(f"written: {draw(options)}")


if __name__ == "__main__":
    main()
