"""prepare.py --shard_tokens: its options, and what they stand for.

Which files there are, which documents they have, and who writes which shards stands in sources.py,
shard_writer.py, shard_plan.py and shard_workers.py.
"""

from dataclasses import dataclass
from typing import Annotated

from seugpt.cli.values import decode_argument
from seugpt.data.corpora import CORPORA
from seugpt.data.dataset_dir import PLAN
from seugpt.data.shard_plan import Plan, make_units
from seugpt.data.shard_workers import available_cores, write_shards
from seugpt.data.sources import hub_sources, local_sources
from seugpt.errors import ConfigError, DataError

DEFAULT_SHARD_TOKENS = 100_000_000


@dataclass(frozen=True)
class ShardConfig:
    shard_tokens: Annotated[
        int | None,
        "write documents as .npy shards of this many tokens; "
        "None: train.bin and val.bin, or 100,000,000 for a corpus of the hub",
        ">= 1",
    ] = None
    workers: Annotated[int | None, "processes that write shards; None: one a core", ">= 1"] = None
    node: Annotated[int, "number of this machine among those that write shards", ">= 0"] = 0
    nodes: Annotated[int, "machines that write shards, each of its own source files", ">= 1"] = 1

    def __post_init__(self):
        if self.node >= self.nodes:
            raise ValueError(f"node={self.node} must be less than nodes={self.nodes}")


def hub_files(config):
    """The files on the hub of a built-in corpus; None for any other text."""
    corpus = CORPORA.get(config.name) if config.input is None else None
    return corpus and corpus.hub


def check_shard_options(config, shard_config, needs_text):
    """Whether shards are to be written. Raises ConfigError listing the options that do not fit.

    `config`: a PrepareConfig; `needs_text`: whether its tokenizer is made from the text.
    """
    hub = hub_files(config)
    if shard_config.shard_tokens is None and hub is None:
        if shard_config != ShardConfig():
            raise ConfigError("workers, node and nodes are for shards: add --shard_tokens=1e8")
        return False
    problems = []
    if hub is None and (config.input is None or config.val_input is None):
        problems.append(
            "shards need --input=FOLDER and, as validation text, some of its files or others: "
            f"input={config.input}, val_input={config.val_input}"
        )
    if hub is not None and config.val_input is not None:
        problems.append(f"val_input={config.val_input}: {config.name} has validation files already")
    if needs_text:
        problems.append(
            f"tokenizer={config.tokenizer}: shards need one that exists: --tokenizer=gpt2, or one "
            "trained on a part of the text, as in --tokenizer=data/PART/meta.json"
        )
    if config.val_fraction != type(config).val_fraction:
        problems.append(f"val_fraction={config.val_fraction} is not for shards; use --val_input")
    if problems:
        raise ConfigError(". ".join(problems))
    return True


def check_no_shards(folder):
    """Raise DataError if the folder of a data set has shards, among which no train.bin belongs."""
    if (folder / PLAN).exists():
        raise DataError(f"{folder} is for shards. Choose another name, or delete the folder")


def prepare_shards(folder, config, shard_config, tokenizer):
    """Write the shards of a data set, or what is missing of them after an interruption.

    Raises DataError.
    """
    hub = hub_files(config)
    if hub:
        origin = f"{hub.repository}@{hub.revision}"
        sources = hub_sources(hub)
    else:
        origin = None
        sources = local_sources(config.input, config.val_input)
    field = config.field or "text"
    plan = Plan(
        units=make_units(sources, field),
        field=field,
        keep_crlf=config.keep_crlf,
        shard_tokens=shard_config.shard_tokens or DEFAULT_SHARD_TOKENS,
        tokenizer_spec=tokenizer.spec(),
        origin=origin,
    )
    source = origin or decode_argument(config.input)
    write_shards(
        folder,
        plan,
        tokenizer,
        source,
        num_workers=shard_config.workers or available_cores(),
        node=shard_config.node,
        num_nodes=shard_config.nodes,
    )
