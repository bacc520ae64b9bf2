"""Plot a run, or look into a model: each plot's title says what to see.

    python visualize.py loss out-quickstart out-mytext
    python visualize.py embeddings out-quickstart --of=tokens
    python visualize.py animate out-quickstart --of=tokens --highlight=aeiou --highlight=0-9
    python visualize.py activations out-quickstart
    python visualize.py attention out-quickstart --text="Return the value"
    python visualize.py heads out-quickstart --text=FILE:book.txt
    python visualize.py next out-quickstart --text="Return the " --temperature=0.5 --temperature=1
    python visualize.py surprisal out-quickstart --text=FILE:book.txt
    python visualize.py logit_lens --init_from=gpt2 --text="Return the value"

Plots are PNG files in the run's folder, or what --to=FILE names (.svg too). --lang=pt writes their
texts in Portuguese. Options: python visualize.py loss --help
"""

import seugpt.cli.interrupt  # noqa: F401, for a quiet Ctrl-C during the imports below

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from seugpt.checkpoint.pretrained import (
    ModelSource,
    build_from_checkpoint,
    initial_state_dict,
    load_pretrained,
    tokenizer_of,
)
from seugpt.cli.command import command, out_of_memory_advice, split_subcommand
from seugpt.cli.config_parser import parse_configs
from seugpt.errors import DataError
from seugpt.generation.sampling import SamplingParams
from seugpt.plots.language import Language
from seugpt.training.snapshots import find_snapshots, load_embeddings


@dataclass(frozen=True)
class OutputFile:
    """Where a plot goes, and its language."""

    to: Annotated[
        str | None, "file to write, .png or .svg; None: one in the run's folder", "path"
    ] = None
    show: Annotated[bool, "open a window as well"] = False
    lang: Annotated[Literal["en", "pt"], "language of the plot: English or Portuguese"] = "en"
    suffixes = (".png", ".svg")

    @property
    def language(self):
        return Language(self.lang)

    def problems(self):
        """What is wrong with the options, one text each."""
        if self.to is None or Path(self.to).suffix.lower() in self.suffixes:
            return []
        return [f"to={self.to} must end in {' or '.join(self.suffixes)}"]

    def __post_init__(self):
        problems = self.problems()
        if problems:
            raise ValueError("\n".join(problems))

    def output_path(self, source, name):
        """`to`, else a file `name` beside the source, or here for a model that is in no folder."""
        if self.to:
            return Path(self.to)
        source = Path(source)
        if source.is_dir():
            return source / name
        return (source.parent if source.is_file() else Path()) / name


@dataclass(frozen=True)
class ModelPlotConfig(OutputFile, ModelSource):
    def path(self, name):
        return self.output_path(self.source, name)


@dataclass(frozen=True)
class LossConfig(OutputFile):
    out_dir: Annotated[tuple[str, ...], "folders of runs; may be repeated", "not empty"] = ("out",)
    x: Annotated[Literal["step", "tokens", "seconds"], "horizontal axis"] = "step"
    xscale: Annotated[Literal["linear", "log"], "scale of the horizontal axis"] = "linear"
    from_step: Annotated[int, "leave out all before this step", ">= 0"] = 0


def plot_loss(config):
    """Loss curves: of one run its training batches and evaluations, of several the evaluations."""
    from seugpt.plots.curves import plot_losses
    from seugpt.plots.run_metrics import read_run

    runs = [read_run(folder) for folder in config.out_dir]
    path = config.output_path(config.out_dir[0], "loss.png")
    axis = (config.x, config.xscale, config.from_step)
    return plot_losses(path, runs, *axis, config.language, config.show)


def plot_activations(config):
    """Activations, gradients and updates of each layer in a run trained with snapshot_interval."""
    from seugpt.plots.curves import plot_layers
    from seugpt.plots.run_metrics import read_run

    path = config.path("activations.png")
    return plot_layers(path, read_run(config.source), config.language, config.show)


@dataclass(frozen=True)
class EmbeddingsConfig(ModelPlotConfig):
    of: Annotated[Literal["tokens", "positions", "similarity"], "similarity is of positions"] = (
        "tokens"
    )
    method: Annotated[
        Literal["pca", "tsne"], "projection to two dimensions; tsne needs scikit-learn"
    ] = "pca"


def plot_embeddings(config):
    """Embeddings of tokens or positions in two dimensions, before and after training."""
    from seugpt.plots.embeddings import choose_tokens, plot_embeddings

    ckpt = load_pretrained(config.source)
    tokens, ids = choose_tokens(tokenizer_of(ckpt))
    model, _ = build_from_checkpoint(ckpt)
    language = config.language
    trained = language("after {step:,} steps", step=ckpt["step"])
    state_dicts = {trained if ckpt["step"] else language("trained"): model.state_dict()}
    before = initial_state_dict(ckpt)
    if before is not None:
        state_dicts = {language("before training"): before, **state_dicts}
    tables = []
    for state_dict in state_dicts.values():
        if config.of == "tokens":
            table = state_dict["wte.weight"][ids]
        else:
            table = learned_positions(state_dict.get("wpe.weight"), config.source)
        tables.append(table.float().numpy())
    path = config.path(f"embeddings-{config.of}.png")
    titles = list(state_dicts)
    return plot_embeddings(
        path, tables, titles, tokens, config.of, config.method, language, config.show
    )


def learned_positions(table, source):
    """Raises DataError if there is no table."""
    if table is None:
        raise DataError(
            f"{source} has position=rope: its positions are rotations, without embeddings to plot"
        )
    return table


@dataclass(frozen=True)
class AnimateConfig(ModelPlotConfig):
    of: Annotated[Literal["tokens", "positions"], "what moves"] = "tokens"
    method: Annotated[
        Literal["pca", "tsne"], "projection to two dimensions; tsne needs scikit-learn"
    ] = "pca"
    highlight: Annotated[
        tuple[str, ...],
        "characters or positions to colour, as in aeiou, 0-9 or 12-14; may be repeated",
        "not empty",
    ] = ()
    suffixes = (".gif",)

    def problems(self):
        problems = super().problems()
        if self.show:
            problems.append("show=True: an animation is a file; open it in a browser")
        return problems


def plot_animation(config):
    """How embeddings move during a run trained with snapshot_interval, as a GIF."""
    from seugpt.plots.embeddings import (
        animate_embeddings,
        choose_tokens,
        frame_captions,
        highlight_groups,
    )

    snapshots = find_snapshots(config.source)
    if not snapshots:
        raise DataError(
            f"{config.source} has no snapshots. Train with --snapshot_interval=100 first"
        )
    tokens, ids = choose_tokens(tokenizer_of(load_pretrained(config.source)))
    embeddings = [load_embeddings(path) for path in snapshots.values()]
    shapes = {arrays["wte"].shape for arrays in embeddings}
    if len(shapes) > 1 or min(shapes)[0] <= max(ids):
        raise DataError(f"the snapshots in {config.source} are not of its model")
    if config.of == "tokens":
        tables = [arrays["wte"][ids] for arrays in embeddings]
    else:
        tables = [learned_positions(arrays.get("wpe"), config.source) for arrays in embeddings]
        tokens = [str(n).encode() for n in range(len(tables[0]))]
    groups = highlight_groups(config.highlight, tokens, config.of)
    language = config.language
    captions = frame_captions(config.source, list(snapshots), language)
    path = config.path(f"animation-{config.of}.gif")
    return animate_embeddings(
        path, tables, captions, tokens, config.of, groups, config.method, language
    )


@dataclass(frozen=True)
class TextPlotConfig(ModelPlotConfig):
    text: Annotated[str | None, "what the model reads: a text, or FILE:path"] = None

    def problems(self):
        problems = super().problems()
        if self.text in (None, "", "FILE:"):
            problems.append('text= is missing: give --text="Once upon a time", or --text=FILE:path')
        return problems


@dataclass(frozen=True)
class AttentionConfig(TextPlotConfig):
    layer: Annotated[int | None, "show this layer only, counted from 0; None: all"] = None
    head: Annotated[int | None, "show this head only, counted from 0; None: all"] = None


def plot_attention(config):
    """Where each token of a text looks: a map of every head, or with --layer and --head of one."""
    from seugpt.plots.attention import plot_attention_maps

    path = config.path("attention.png")
    where = (config.layer, config.head)
    return plot_attention_maps(
        path, config.source, config.text, *where, config.language, config.show
    )


def plot_heads(config):
    """What each head looks at, averaged over a text, which may be long: --text=FILE:book.txt."""
    from seugpt.plots.attention import plot_attention_patterns

    path = config.path("heads.png")
    return plot_attention_patterns(path, config.source, config.text, config.language, config.show)


@dataclass(frozen=True)
class NextConfig(TextPlotConfig):
    temperature: Annotated[tuple[float, ...], "as in sample.py; may be repeated", ">= 0"] = (
        0.5,
        1.0,
        1.5,
    )
    top_k: Annotated[int | None, "as in sample.py", ">= 0"] = None
    top_p: Annotated[float, "as in sample.py", "> 0", "<= 1"] = 1.0
    bars: Annotated[int, "tokens that get a bar of their own", ">= 1", "<= 100"] = 15
    samples: Annotated[int, "draws of the next token", ">= 1", "<= 1000000"] = 1000

    def problems(self):
        problems = super().problems()
        if not 1 <= len(self.temperature) <= 4:
            problems.append("temperature= may be given 1 to 4 times")
        return problems


def plot_next(config):
    """The next token after a text: probabilities at several temperatures, and how often drawn."""
    from seugpt.plots.predictions import plot_next_token

    params_list = [SamplingParams(t, config.top_k, config.top_p) for t in config.temperature]
    counts = (config.bars, config.samples)
    path = config.path("next.png")
    return plot_next_token(
        path, config.source, config.text, params_list, *counts, config.language, config.show
    )


def plot_surprisal(config):
    """A text in colours: how much each token surprised the model, in bits."""
    from seugpt.plots.predictions import plot_surprisal

    path = config.path("surprisal.png")
    return plot_surprisal(path, config.source, config.text, config.language, config.show)


def plot_logit_lens(config):
    """What each layer would predict next if it were the last: the logit lens."""
    from seugpt.plots.predictions import plot_logit_lens

    path = config.path("logit_lens.png")
    return plot_logit_lens(path, config.source, config.text, config.language, config.show)


COMMANDS = {
    "loss": (plot_loss, LossConfig),
    "embeddings": (plot_embeddings, EmbeddingsConfig),
    "animate": (plot_animation, AnimateConfig),
    "activations": (plot_activations, ModelPlotConfig),
    "attention": (plot_attention, AttentionConfig),
    "heads": (plot_heads, TextPlotConfig),
    "next": (plot_next, NextConfig),
    "surprisal": (plot_surprisal, TextPlotConfig),
    "logit_lens": (plot_logit_lens, TextPlotConfig),
}


def main(argv=None):
    with command():
        name, rest = split_subcommand(argv, COMMANDS, __doc__)
        plot, config_class = COMMANDS[name]
        [config] = parse_configs(rest, config_class, description=plot.__doc__, positional="out_dir")
        with out_of_memory_advice("use a shorter --text, or a smaller model"):
            print(f"written: {plot(config)}")


if __name__ == "__main__":
    main()
