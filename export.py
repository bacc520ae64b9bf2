"""Write a trained model in the form that Hugging Face's transformers loads.

    python export.py --out_dir=out-quickstart --to=hf-quickstart

By its architecture a model becomes a GPT2LMHeadModel or a LlamaForCausalLM; what neither can express is refused by
name. The logits are the same. `--init_from=hf-quickstart` reads it back, to sample from it or to train on.
"""

import contextlib
import json
import shlex
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch

from seugpt.checkpoint import pretrained as weights
from seugpt.checkpoint import storage as checkpoint
from seugpt.checkpoint.config_json import CLASSES, architecture, config_json
from seugpt.checkpoint.huggingface import extra, is_transposed, rows_of, shapes, their_names
from seugpt.cli.command import command
from seugpt.cli.options import Options
from seugpt.errors import ConfigError
from seugpt.files import replacing

WRITTEN = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


@dataclass(frozen=True)
class ExportConfig:
    to: Annotated[str | None, "folder to write"] = None
    out_dir: Annotated[
        str, "what to export: a run's folder, a checkpoint, or anything that init_from takes"
    ] = "out"

    def __post_init__(self):
        problems = (
            []
            if self.to
            else ["to= names no folder to write: python export.py --out_dir=OUT --to=FOLDER"]
        )
        problems += [] if self.out_dir else ["out_dir= is empty"]
        if problems:
            raise ValueError("\n".join(problems))


def tensors(kind, model, source):
    """{Hugging Face's name: tensor} of all parameters."""
    result = {}
    for name, parameter in model.named_parameters():
        parts = parameter.detach().split(rows_of(name, parameter.shape, model.config))
        for theirs, part in zip(their_names(name, kind), parts, strict=True):
            result[theirs] = (part.t() if is_transposed(name, kind) else part).contiguous()
    if kind == "gpt2":  # always has biases; where there are none here, zeros add nothing
        for name, shape in shapes(replace(model.config, bias=True), source).items():
            result.setdefault(their_names(name, kind)[0], torch.zeros(shape))
    return dict(sorted(result.items()))


def export(source, folder):
    """Write the model and tokenizer of `source` to `folder`. Raises CheckpointError, ConfigError, DataError."""
    content = weights.load(source)
    kind = architecture(weights.config_of(content))
    tokenizer = weights.tokenizer_of(content)
    # Nothing is overwritten; and beside a best.pt nobody could tell which of the two --init_from means.
    there = [name for name in (*WRITTEN, *checkpoint.NAMES) if (folder / name).exists()]
    if there:
        raise ConfigError(f"to={folder} already has {', '.join(there)}; choose another folder")
    safetensors, text = extra("safetensors").torch, tokenizer.json()
    model, _ = weights.build(content)
    c, N = model.config, tokenizer.vocab_size
    mark = (
        tokenizer.separator
    )  # between documents; two line ends where the tokenizer has no token for it
    end = tokenizer.encode(mark).tolist()[0] if mark.strip() else None
    drawing = {
        "do_sample": True,
        "temperature": 0.8,
        "top_k": 200,
        "bos_token_id": end,
        "eos_token_id": end,
    }
    drawing |= {
        "pad_token_id": end,
        "suppress_tokens": list(range(N, c.vocab_size)) or None,
    }  # the padding's ids
    reading = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    reading |= {"model_max_length": c.block_size} | ({} if end is None else {"eos_token": mark})
    files = {
        "model.safetensors": lambda path: safetensors.save_file(
            tensors(kind, model, source), path, {"format": "pt"}
        ),
        "tokenizer.json": lambda path: path.write_text(text, encoding="utf-8"),
        "tokenizer_config.json": lambda path: write_json(path, reading),
        "generation_config.json": lambda path: write_json(path, drawing),
        "config.json": lambda path: write_json(
            path, config_json(kind, c, end)
        ),  # last: without it, nothing is there
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"to={folder} cannot be made ({error.strerror}); choose another folder"
        ) from error
    try:
        for name, write in files.items():
            with replacing(folder / name) as temporary:
                temporary.touch()  # with the mode of this user's files; safetensors would let nobody else read
                mode = temporary.stat().st_mode
                write(temporary)
                temporary.chmod(mode)
    except Exception as error:  # OSError, or SafetensorError for the same
        with contextlib.suppress(OSError):
            folder.rmdir()  # if nothing is in it
        free = shutil.disk_usage(folder.parent).free
        raise ConfigError(
            f"cannot write {folder / name} ({free:,} bytes are free there): {error}"
        ) from error
    print(f"{content['path']} is now a {CLASSES[kind]} in {folder}")
    print(f"let it write: python sample.py --init_from={shlex.quote(str(folder))}")


def write_json(path, content):
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(argv=None):
    with command():
        (options,) = Options(argv, ExportConfig, description=__doc__).build()
        export(options.out_dir, Path(options.to))


if __name__ == "__main__":
    main()
