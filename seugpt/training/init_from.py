"""What a run begins from: nothing, the checkpoint of its own folder, or the weights of another model."""

from dataclasses import replace
from pathlib import Path

import torch

from model import GPT
from seugpt.checkpoint import pretrained as weights
from seugpt.checkpoint import storage as checkpoint
from seugpt.errors import ConfigError, DataError
from seugpt.training.memory import demand_room


def resolve(given):
    """(ModelConfig, TrainConfig, checkpoint or None) of the options given. Raises ConfigError, CheckpointError.

    Resuming, the checkpoint's options stand where nothing else was given; fine-tuning, its architecture alone. Where
    init_from=auto was given, the TrainConfig says resume or scratch.
    """
    init_from, out_dir = given.get("init_from"), given.get("out_dir")
    if init_from == "scratch" or given.problems:
        return *given.build(), None
    if init_from == "auto":
        content = checkpoint.newest(out_dir)
        init_from = "resume" if content else "scratch"
    elif init_from == "resume":
        content = checkpoint.load(Path(out_dir) / "latest.pt", checkpoint.TO_RESUME)
    else:
        content = weights.load(init_from)
    resume, base = init_from == "resume", content["model_config"] if content else {}
    if resume:
        base = {**content["train_config"], **base, "out_dir": out_dir}
    model_config, options = given.build(base, content["path"] if content else "")
    options = replace(options, init_from=init_from)
    if content:
        weights.check_architecture(content, model_config, resume)
    if resume and options.optimizer != base.get("optimizer", "adamw"):
        raise ConfigError(
            f"optimizer={options.optimizer}, but {out_dir} was begun with the other, whose memory it cannot take over. "
            f"Leave it out, or begin a new run with these weights: --init_from={out_dir} --out_dir=ANOTHER"
        )
    return model_config, options, content


def check_data(content, options, dataset):
    """Raise DataError where a run would go on, unaware, with other tokens than it was trained on so far."""
    known = content.get("fingerprint", dataset.fingerprint)  # checkpoints of before had none
    same_name = content["train_config"].get("dataset") == options.dataset
    if known != dataset.fingerprint and same_name and not options.new_data:
        raise DataError(
            f"the tokens in {dataset.path} are not those that {content['path']} was trained on. Prepare the text as it "
            "was, or go on with the new tokens: --new_data=True"
        )


def with_vocabulary(model_config, tokenizer, dataset):
    """The ModelConfig with a row for each token of the data set, where it names no number. Raises ConfigError."""
    V = model_config.vocab_size or tokenizer.vocab_size
    if tokenizer.vocab_size > V:
        raise ConfigError(
            f"vocab_size={V} is below the {tokenizer.vocab_size} tokens of data/{dataset}"
        )
    return replace(model_config, vocab_size=V)


def build_model(model_config, options, content, tokenizer):
    """The model, drawn from the seed or with the checkpoint's weights, and a report of what was done to fit them.

    Raises ConfigError, CheckpointError, DeviceError.
    """
    if content is not None:
        weights.check_tokenizer(content, tokenizer.spec(), options.dataset)
        return weights.build(content, model_config, options.seed)
    model_config = with_vocabulary(model_config, tokenizer, options.dataset)
    demand_room(
        4 * parameters_of(model_config), "a smaller --n_layer, --n_embd or --mlp_hidden needs less"
    )
    torch.manual_seed(options.seed)  # the same weights on every rank
    return GPT(model_config), []


def parameters_of(c):
    """About how many a model of this shape has, its matrices; to build one with too many takes all the memory."""
    attention = (c.n_head + 2 * c.kv_heads) * c.head_size * c.n_embd + c.n_embd**2
    mlp = (3 if c.mlp == "swiglu" else 2) * c.n_embd * c.hidden
    return c.n_layer * (attention + mlp) + c.vocab_size * c.n_embd
