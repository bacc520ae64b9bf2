"""Write a trained model in the form that Hugging Face's transformers loads.

    python export.py --out_dir=out-quickstart --to=hf-quickstart

Depending on its architecture a model becomes a GPT2LMHeadModel, LlamaForCausalLM or
Qwen3ForCausalLM; what none of them can express is refused by name. The logits are the same.
`--init_from=hf-quickstart` loads it again, to sample or to fine-tune.
"""

import seugpt.cli.interrupt  # noqa: F401, for a quiet Ctrl-C during the imports below

import json
import os
import shlex
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch

from seugpt.checkpoint.config_json import (
    CLASSES,
    architecture_of,
    has_attention_bias,
    to_config_json,
)
from seugpt.checkpoint.huggingface import hf_parts, is_transposed
from seugpt.checkpoint.model_card import model_card
from seugpt.checkpoint.pretrained import (
    ModelSource,
    build_from_checkpoint,
    config_of,
    load_pretrained,
    tokenizer_of,
)
from seugpt.checkpoint.shapes import parameter_shapes
from seugpt.cli.command import command
from seugpt.cli.config_parser import parse_configs
from seugpt.data.hub import import_extra
from seugpt.errors import ConfigError, UserError
from seugpt.files import atomic_write, disk_space, lock_folder


@dataclass(frozen=True)
class ExportConfig(ModelSource):
    to: Annotated[str | None, "folder to write", "path"] = None
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], "of the weights; auto: as they came"
    ] = "auto"

    def __post_init__(self):
        if self.to is None:
            raise ValueError("to= is missing: python export.py --out_dir=OUT --to=FOLDER")


def hf_tensors(model_type, model, source):
    """{Hugging Face's name: tensor} of all parameters."""
    tensors = {}
    for name, param in model.named_parameters():
        named = hf_parts(name, param.shape, model_type, model.config)
        parts = param.detach().split([shape[0] for _, shape in named])
        for (hf_name, _), part in zip(named, parts, strict=True):
            if is_transposed(name, model_type):
                part = part.t()
            tensors[hf_name] = part.contiguous()
    # GPT-2 has every bias, Llama all of attention's or none; where we have none, zeros add nothing.
    with_biases = replace(model.config, bias=True, qkv_bias=None)
    for name, shape in parameter_shapes(with_biases, source).items():
        in_attention = ".attn." in name and has_attention_bias(model.config)
        if model_type == "gpt2" or in_attention:
            for hf_name, part_shape in hf_parts(name, shape, model_type, model.config):
                tensors.setdefault(hf_name, torch.zeros(part_shape, dtype=param.dtype))
    return dict(sorted(tensors.items()))


def generation_config(config, tokenizer):
    """generation_config.json: sampling as in sample.py."""
    padding_ids = list(range(tokenizer.vocab_size, config.vocab_size))
    return {
        "do_sample": True,
        "temperature": 0.8,
        "top_k": 200,
        **tokenizer.special.ids(tokenizer),
        "suppress_tokens": padding_ids or None,
    }


def tokenizer_config(config, tokenizer):
    """tokenizer_config.json."""
    special = tokenizer.special
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.block_size,
        "bos_token": special.bos,
        "eos_token": next(iter(special.eos), None),
        "pad_token": special.pad,
        "chat_template": special.chat_template,
    }
    return {key: value for key, value in content.items() if value is not None}


def check_range(model, dtype):
    """Raise ConfigError if a weight would become infinite."""
    limit = torch.finfo(getattr(torch, dtype)).max
    for name, param in model.named_parameters():
        largest = param.abs().max().item()
        if largest > limit:
            raise ConfigError(
                f"dtype={dtype} ends at {limit:,.0f}, and {name} has a weight of {largest:,.0f}; "
                "use --dtype=bfloat16"
            )


def check_target(folder):
    """Raise ConfigError unless `folder` is a new or empty one: nothing is overwritten."""
    is_dangling = folder.is_symlink() and not folder.exists()
    if is_dangling or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise ConfigError(f"to={folder} already exists and is not an empty folder; choose another")


def export(source, folder, dtype="auto"):
    """Write the model and tokenizer of `source` to `folder`.

    Raises CheckpointError, ConfigError, DataError.
    """
    ckpt = load_pretrained(source)
    model_type = architecture_of(config_of(ckpt))
    tokenizer = tokenizer_of(ckpt)
    check_target(folder)
    safetensors = import_extra("safetensors").torch
    tokenizer_json = tokenizer.to_json()
    if dtype == "auto":
        dtype = ckpt.get("dtype", "float32")
    model, _ = build_from_checkpoint(ckpt)
    config = model.config
    check_range(model, dtype)
    target = Path(os.path.realpath(folder))  # which may be given as "." or by a link
    tensors = hf_tensors(model_type, model.to(getattr(torch, dtype)), source)
    config_json = to_config_json(model_type, config, dtype, tokenizer.special.ids(tokenizer))
    texts = {
        "tokenizer.json": tokenizer_json,
        "tokenizer_config.json": to_json(tokenizer_config(config, tokenizer)),
        "generation_config.json": to_json(generation_config(config, tokenizer)),
        "README.md": model_card(ckpt, model, tokenizer, CLASSES[model_type], target.name),
        "config.json": to_json(config_json),
    }

    def write_weights(path):
        safetensors.save_file(tensors, path, {"format": "pt"})

    writers = {"model.safetensors": write_weights}
    writers |= {name: partial(write_text, text) for name, text in texts.items()}
    write_folder(folder, target, writers)
    print(f"{ckpt['path']} is now a {CLASSES[model_type]} in {folder}, in {dtype}")
    print(f"sample from it: python sample.py --init_from={shlex.quote(str(folder))}")


def write_folder(folder, target, writers):
    """Write {file name: function that writes a path} to `target`, whose last file comes last.

    `folder`: what the user called it.
    A new folder appears once it is complete. Raises ConfigError.
    """
    unfinished = target.with_name(f".{target.name}.partial")  # a killed export's, for the next
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"to={folder} cannot be created ({error.strerror}); choose another folder"
        ) from error
    try:
        with lock_folder(unfinished):
            for name, write in writers.items():
                with atomic_write(unfinished / name) as temporary:
                    temporary.touch()  # with the usual mode; safetensors would make it private
                    mode = temporary.stat().st_mode
                    write(temporary)
                    temporary.chmod(mode)
        (unfinished / ".lock").unlink()
        if target.exists():  # and is empty; it may be the current folder
            for name in writers:
                (unfinished / name).rename(target / name)
            unfinished.rmdir()
        else:
            unfinished.rename(target)
    except UserError:
        raise
    except Exception as error:  # OSError, or SafetensorError for the same
        shutil.rmtree(unfinished, ignore_errors=True)
        space = disk_space(error, target.parent)
        raise ConfigError(f"cannot write {folder / name}{space}: {error}") from error


def to_json(content):
    return json.dumps(content, indent=2) + "\n"


def write_text(text, path):
    path.write_text(text, encoding="utf-8")


def main(argv=None):
    with command():
        [config] = parse_configs(argv, ExportConfig, description=__doc__)
        export(config.source, Path(config.to), config.dtype)


if __name__ == "__main__":
    main()
