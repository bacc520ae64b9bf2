"""What a run starts from: random weights, its own checkpoint, or another model's weights."""

import zlib
from dataclasses import replace
from pathlib import Path

import torch

from model import GPT
from seugpt.checkpoint.archive import read_seal
from seugpt.checkpoint.content import RESUME_KEYS
from seugpt.checkpoint.pretrained import (
    NON_WEIGHT_FIELDS,
    build_from_checkpoint,
    check_architecture,
    check_tokenizer,
    load_pretrained,
)
from seugpt.checkpoint.shapes import SkipInit
from seugpt.checkpoint.sharded import RUN_FILE, load_merged
from seugpt.checkpoint.storage import load_latest, load_latest_valid
from seugpt.errors import ConfigError, DataError
from seugpt.training.memory import check_memory

FLOAT32_BYTES = 4
BATCH_BYTES = 16  # of a token and its target


def resolve_config(overrides):
    """(ModelConfig, TrainConfig, checkpoint or None) of the options given.

    A resumed run keeps the checkpoint's options unless others are given; fine-tuning keeps its
    architecture. With init_from=auto, the TrainConfig says resume or scratch. Raises ConfigError,
    CheckpointError, DataError.
    """
    init_from = overrides.get("init_from")
    out_dir = overrides.get("out_dir")
    if init_from == "scratch" or overrides.problems:
        model_config, config = overrides.build()
        return model_config, config, None
    ckpt = None
    if init_from == "auto":
        ckpt = load_latest_valid(out_dir)
        init_from = "resume" if ckpt else "scratch"
    elif init_from == "resume":
        ckpt = load_latest(out_dir)
    else:
        ckpt = load_pretrained(init_from)
    resume = init_from == "resume"
    base = {}
    if ckpt:
        base = dict(ckpt["model_config"])
    if resume:
        base = {**ckpt["train_config"], **base, "out_dir": out_dir}
        ckpt["notes"] = [*ckpt.get("notes", []), *keep_architecture(overrides, ckpt)]
    model_config, config = overrides.build(base, base_source=ckpt["path"] if ckpt else "")
    if ckpt:
        check_architecture(ckpt, model_config, resume)
    if resume and config.optimizer != base.get("optimizer"):
        raise ConfigError(
            f"optimizer={config.optimizer}, but {out_dir} was trained with another one, whose "
            "state does not fit. Drop that option, or start a new run from these weights: "
            f"--init_from={out_dir} --out_dir=ANOTHER"
        )
    if resume and "model" not in ckpt and config.dp_shard_size == 1:
        ckpt |= load_merged(ckpt["path"], RESUME_KEYS)
    return model_config, replace(config, init_from=init_from), ckpt


def keep_architecture(overrides, ckpt):
    """Drop what a config file says of the architecture, as nanoGPT does: a run keeps its own.

    Returns a note on what differs. An option given on the command line is left, to be refused.
    """
    dropped = []
    for name, stored in ckpt["model_config"].items():
        from_file = not overrides.sources.get(name, "--").startswith("--")
        if from_file and name not in NON_WEIGHT_FIELDS:
            given = overrides.values.pop(name)
            if given not in (stored, None):
                dropped.append(f"{name}={stored} (not {given})")
    if not dropped:
        return []
    return [f"the run keeps its architecture, whatever the config file says: {', '.join(dropped)}"]


def check_same_data(ckpt, config, dataset):
    """Raise DataError if the data set of a resumed run has changed without being renamed."""
    same_name = ckpt["train_config"].get("dataset") == config.dataset
    if ckpt["fingerprint"] != dataset.fingerprint and same_name and not config.allow_data_change:
        raise DataError(
            f"the tokens in {dataset.path} are not those that {ckpt['path']} was trained on. "
            "Prepare the text as it was, or continue with the new tokens: --allow_data_change=True"
        )


def with_original_init_from(ckpt, config):
    """The TrainConfig of a resumed run to record: its init_from is how the run first started."""
    init_from = ckpt["train_config"].get("init_from", "scratch")
    return replace(config, init_from=init_from, allow_data_change=False)


def check_batch_memory(config, block_size):
    """Raise DeviceError if the token ids of a batch do not fit into the memory."""
    size = BATCH_BYTES * config.batch_size * block_size
    check_memory(size, "the tokens of a batch", "use a smaller --batch_size or --block_size")


def rank_values(model_config, config, resume_ckpt, dataset):
    """{name: value} of what must be the same on all ranks: options, checkpoint and data."""
    values = {**vars(model_config), **vars(config), "data": dataset.fingerprint[:12]}
    for name in ("out_dir", "device"):  # may differ between machines
        del values[name]
    if resume_ckpt:
        path = resume_ckpt["path"]
        values["step"] = resume_ckpt["step"]
        if path.is_dir():
            values[RUN_FILE] = f"{zlib.crc32((path / RUN_FILE).read_bytes()):08x}"
        else:
            values["latest.pt"] = read_seal(path)[-12:].decode("ascii", "replace")
    return values


def with_vocabulary(model_config, tokenizer, dataset):
    """The ModelConfig with the tokenizer's vocab_size, unless it has a larger one.

    Raises ConfigError.
    """
    vocab_size = model_config.vocab_size or tokenizer.vocab_size
    if tokenizer.vocab_size > vocab_size:
        raise ConfigError(
            f"vocab_size={vocab_size} is below the {tokenizer.vocab_size} tokens "
            f"of {Path('data', dataset)}"
        )
    return replace(model_config, vocab_size=vocab_size)


def build_model(model_config, config, ckpt, tokenizer, num_copies=1):
    """(model, adaptation notes): drawn from the seed, or with the checkpoint's weights.

    Those of a sharded checkpoint are still to be read. `num_copies`: the processes on this machine,
    each of which builds the whole model. Raises ConfigError, CheckpointError, DeviceError.
    """
    if ckpt is not None:
        check_tokenizer(ckpt, tokenizer.spec(), config.dataset)
        if "model" not in ckpt:
            with SkipInit():
                return GPT(model_config), []
        return build_from_checkpoint(ckpt, model_config, config.seed)
    model_config = with_vocabulary(model_config, tokenizer, config.dataset)
    weights_size = num_copies * FLOAT32_BYTES * estimate_num_params(model_config)
    advice = "a smaller --n_layer, --n_embd or --mlp_hidden needs less"
    check_memory(weights_size, "the weights", advice)
    torch.manual_seed(config.seed)  # the same weights on every rank
    return GPT(model_config), []


def estimate_num_params(c):
    """The size of a model's matrices, without building it, as too large a one takes all memory."""
    attention = 2 * (c.n_head + c.kv_heads) * c.head_size * c.n_embd
    mlp = (3 if c.mlp == "swiglu" else 2) * c.n_embd * c.mlp_hidden_size
    return c.n_layer * (attention + mlp) + c.vocab_size * c.n_embd
