"""Write a trained model in the form that Hugging Face's transformers loads.

    python export.py --out_dir=out-quickstart --to=hf-quickstart

Depending on its architecture a model becomes a GPT2LMHeadModel or a LlamaForCausalLM; what neither
can express is refused by name. The logits are the same. `--init_from=hf-quickstart` loads it again,
to sample or to fine-tune.
"""

import seugpt.cli.interrupt  # noqa: F401, for a quiet Ctrl-C during the imports below

import json
import shlex
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch

from seugpt.checkpoint.config_json import CLASSES, architecture_of, to_config_json
from seugpt.checkpoint.huggingface import hf_names, import_extra, is_transposed, row_counts
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
from seugpt.errors import ConfigError, UserError
from seugpt.files import atomic_write, disk_space, lock_folder


@dataclass(frozen=True)
class ExportConfig(ModelSource):
    to: Annotated[str | None, "folder to write", "path"] = None

    def __post_init__(self):
        if self.to is None:
            raise ValueError("to= is missing: python export.py --out_dir=OUT --to=FOLDER")


def hf_tensors(kind, model, source):
    """{Hugging Face's name: tensor} of all parameters."""
    tensors = {}
    for name, param in model.named_parameters():
        parts = param.detach().split(row_counts(name, param.shape, model.config))
        for hf_name, part in zip(hf_names(name, kind), parts, strict=True):
            if is_transposed(name, kind):
                part = part.t()
            tensors[hf_name] = part.contiguous()
    if kind == "gpt2":  # always has biases; where the model has none, zeros add nothing
        with_biases = replace(model.config, bias=True)
        for name, shape in parameter_shapes(with_biases, source).items():
            tensors.setdefault(hf_names(name, kind)[0], torch.zeros(shape))
    return dict(sorted(tensors.items()))


def end_of_text_id(tokenizer):
    """The id of the document separator, or None if it is no token of its own."""
    separator = tokenizer.document_separator
    return tokenizer.encode(separator).tolist()[0] if separator.strip() else None


def generation_config(config, tokenizer):
    """generation_config.json: sampling as in sample.py."""
    end = end_of_text_id(tokenizer)
    padding_ids = list(range(tokenizer.vocab_size, config.vocab_size))
    return {
        "do_sample": True,
        "temperature": 0.8,
        "top_k": 200,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "suppress_tokens": padding_ids or None,
    }


def tokenizer_config(config, tokenizer):
    """tokenizer_config.json."""
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.block_size,
    }
    if end_of_text_id(tokenizer) is not None:
        content["eos_token"] = tokenizer.document_separator
    return content


def check_target(folder):
    """Raise ConfigError unless `folder` is a new or empty one: nothing is overwritten."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"to={folder} already exists and is not an empty folder; choose another")


def export(source, folder):
    """Write the model and tokenizer of `source` to `folder`.

    Raises CheckpointError, ConfigError, DataError.
    """
    ckpt = load_pretrained(source)
    kind = architecture_of(config_of(ckpt))
    tokenizer = tokenizer_of(ckpt)
    check_target(folder)
    safetensors = import_extra("safetensors").torch
    tokenizer_json = tokenizer.to_json()
    model, _ = build_from_checkpoint(ckpt)
    config = model.config
    tensors = hf_tensors(kind, model, source)
    writers = {
        "model.safetensors": lambda path: safetensors.save_file(tensors, path, {"format": "pt"}),
        "tokenizer.json": lambda path: path.write_text(tokenizer_json, encoding="utf-8"),
        "tokenizer_config.json": lambda path: write_json(path, tokenizer_config(config, tokenizer)),
        "generation_config.json": lambda path: write_json(
            path, generation_config(config, tokenizer)
        ),
        "config.json": lambda path: write_json(
            path, to_config_json(kind, config, end_of_text_id(tokenizer))
        ),
    }
    write_folder(folder, writers)
    print(f"{ckpt['path']} is now a {CLASSES[kind]} in {folder}")
    print(f"sample from it: python sample.py --init_from={shlex.quote(str(folder))}")


def write_folder(folder, writers):
    """Write {file name: function that writes a path} to a folder, which appears once complete.

    Raises ConfigError.
    """
    partial = folder.with_name(f".{folder.name}.partial")  # a killed export leaves it to the next
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"to={folder} cannot be created ({error.strerror}); choose another folder"
        ) from error
    try:
        with lock_folder(partial):
            for name, write in writers.items():
                with atomic_write(partial / name) as temporary:
                    temporary.touch()  # with the usual mode; safetensors would make it private
                    mode = temporary.stat().st_mode
                    write(temporary)
                    temporary.chmod(mode)
        (partial / ".lock").unlink()
        if folder.exists():  # and is empty
            folder.rmdir()
        partial.rename(folder)
    except UserError:
        raise
    except Exception as error:  # OSError, or SafetensorError for the same
        shutil.rmtree(partial, ignore_errors=True)
        space = disk_space(error, folder.parent)
        raise ConfigError(f"cannot write {folder / name}{space}: {error}") from error


def write_json(path, content):
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(argv=None):
    with command():
        [config] = parse_configs(argv, ExportConfig, description=__doc__)
        export(config.source, Path(config.to))


if __name__ == "__main__":
    main()
