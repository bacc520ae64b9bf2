"""Checkpoints: the only file that touches *.pt.

latest.pt holds everything that a run needs to go on; best.pt what a model needs to speak: weights, configs, tokenizer.
Both are dictionaries of tensors and plain values, read with weights_only=True, so that loading never runs code.
"""

import shutil
from pathlib import Path

import torch

from data import replacing
from model import GPT, ModelConfig

FORMAT = 1
TO_SPEAK = {"format", "model", "model_config", "train_config", "tokenizer", "step", "val_loss"}  # in best.pt
TO_RESUME = TO_SPEAK | {"optimizer", "scaler", "generators", "best_val_loss"}  # in latest.pt

PRETRAINED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, is not there, or is not one of ours."""


def save(path, content):
    """Write a dictionary so that `path` is at every moment either the old checkpoint or the new one, whole.

    Raises CheckpointError; the old file is then untouched.
    """
    try:
        with replacing(path) as temporary:
            torch.save({"format": FORMAT, **content}, temporary)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        free = shutil.disk_usage(Path(path).parent).free
        raise CheckpointError(
            f"cannot write {path} ({free:,} bytes are free there): {error}. What was there before is untouched"
        ) from error


def load(path, needed=TO_SPEAK):
    """One checkpoint's dictionary, with its path under "path", the tensors on the CPU. Raises CheckpointError."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint {path}. A run writes it: python train.py CONFIG --out_dir={path.parent}"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zip and pickle each raise their own kinds for a damaged file
        raise CheckpointError(f"{path} cannot be read as a checkpoint ({type(error).__name__})") from error
    missing = needed - set(content) if isinstance(content, dict) else needed
    if missing:
        what = (
            "holds weights alone, and cannot be resumed" if missing <= TO_RESUME - TO_SPEAK else "is not one of seuGPT"
        )
        raise CheckpointError(f"{path} {what}: it has no {', '.join(sorted(missing))}")
    if content["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {content['format']}; this program reads format {FORMAT}")
    return {**content, "path": path}


def check_architecture(content, model_config, resume):
    """Raise CheckpointError where model_config asks for what the weights are not.

    Dropout may change; block_size may become smaller, but not in the middle of a run.
    """
    theirs = content["model_config"]
    free = {"dropout"} if resume or model_config.block_size > theirs["block_size"] else {"dropout", "block_size"}
    conflicts = [
        f"{name}={getattr(model_config, name)} (there {value})"
        for name, value in theirs.items()
        if name not in free and getattr(model_config, name, value) != value
    ]
    if conflicts:
        raise CheckpointError(
            f"{content['path']} has another architecture: {', '.join(conflicts)}. "
            "Leave that out, or train anew with --init_from=scratch"
        )


def check_tokenizer(content, spec, dataset):
    """Raise CheckpointError where the data set speaks in other tokens than the weights were trained on."""
    if content["tokenizer"] == spec:
        return
    theirs = content["train_config"]["dataset"]
    same = "gpt2" if content["tokenizer"] == {"kind": "gpt2"} else f"data/{theirs}/meta.json"
    advice = f"Prepare the text once more: python prepare.py NEW_NAME --input=FILE --tokenizer={same}"
    if dataset == theirs:
        advice = "It was prepared anew since; prepare it as it was"
    raise CheckpointError(f"data/{dataset} has another vocabulary than {content['path']}. {advice}")


def find(path):
    """`path` itself when it is a file; in a folder best.pt, else latest.pt. Raises CheckpointError."""
    path = Path(path)
    if str(path) in PRETRAINED and not path.exists():
        raise CheckpointError(
            f"init_from={path}: OpenAI's weights cannot be loaded yet. "
            "Start from a checkpoint of your own, as in --init_from=out-quickstart, or from --init_from=scratch"
        )
    candidates = [path] if path.is_file() else [path / "best.pt", path / "latest.pt"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    folder = path.parent if path.suffix == ".pt" else path
    raise CheckpointError(f"there is no checkpoint {path}. A run writes one: python train.py CONFIG --out_dir={folder}")


def build_model(content, **changes):
    """The GPT that a loaded checkpoint describes; `changes` are new values for dropout and a smaller block_size."""
    try:
        config = ModelConfig(**content["model_config"])
        block_size = changes.pop("block_size", config.block_size)
        model = GPT(ModelConfig(**{**vars(config), **changes}))
        model.load_state_dict(content.pop("model"))  # from here on the weights live in the model alone
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"the checkpoint's weights and model_config do not fit this program: {error}") from error
    return model if block_size == config.block_size else model.crop_block_size(block_size)


def generator_states(device):
    """The states of torch's global random generators, from which dropout draws."""
    states = {"cpu": torch.get_rng_state()}
    if device.type in ("cuda", "mps"):
        states[device.type] = getattr(torch, device.type).get_rng_state()
    return states


def set_generator_states(states, device):
    """The reverse of generator_states; a device that the states were not taken on keeps its own."""
    torch.set_rng_state(states["cpu"])
    if device.type in ("cuda", "mps") and device.type in states:
        getattr(torch, device.type).set_rng_state(states[device.type])
