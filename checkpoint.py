"""Checkpoints: the only file that touches *.pt.

latest.pt holds everything that a run needs to go on; best.pt what a model needs to speak: weights, configs, tokenizer.
Both are dictionaries of tensors and plain values, read with weights_only=True, so that loading never runs code.
"""

import math
import shutil
from pathlib import Path

import torch

from data import replacing
from data.corpora import CORPORA
from data.dataset import ROOT
from data.tokenizer import read_spec

FORMAT = 1
TO_SPEAK = {"format", "model", "model_config", "train_config", "tokenizer", "step", "val_loss"}  # in best.pt
NAMES = ("best.pt", "latest.pt", "ckpt.pt")  # in a run's folder; the last one is nanoGPT's
TO_RESUME = TO_SPEAK | {"optimizer", "scaler", "generators", "best_val_loss"}  # in latest.pt


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
        advice = f"A run writes it: python train.py CONFIG --out_dir={path.parent}"
        if (nanogpt := path.parent / "ckpt.pt").is_file():
            advice = f"nanoGPT's {nanogpt} cannot be resumed, but its weights be trained on: --init_from={nanogpt}"
        raise CheckpointError(f"there is no checkpoint {path}. {advice}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zip and pickle each raise their own kinds for a damaged file
        raise CheckpointError(f"{path} cannot be read as a checkpoint ({type(error).__name__})") from error
    if isinstance(content, dict) and "model_args" in content and "model" in content and needed == TO_SPEAK:
        try:
            content = {"format": FORMAT, **from_nanogpt(content, path)}
        except CheckpointError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"{path} is not quite nanoGPT's: {type(error).__name__} {error}") from error
    missing = needed - set(content) if isinstance(content, dict) else needed
    if missing:
        what = (
            "holds weights alone, and cannot be resumed" if missing <= TO_RESUME - TO_SPEAK else "is not one of seuGPT"
        )
        raise CheckpointError(f"{path} {what}: it has no {', '.join(sorted(missing))}")
    if content["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {content['format']}; this program reads format {FORMAT}")
    types = {"model": dict, "model_config": dict, "train_config": dict, "step": int, "val_loss": float}
    wrong = [name for name, kind in types.items() if not isinstance(content[name], kind)]
    if wrong:
        raise CheckpointError(f"{path} is damaged: the types of {', '.join(wrong)} are not what a run writes")
    return {**content, "path": path}


def describe(content):
    """A loaded checkpoint in one line."""
    known = [f"step {content['step']:,}"] if content["step"] else []
    known += [] if math.isnan(content["val_loss"]) else [f"validation loss {content['val_loss']:.4f}"]
    return ": ".join([str(content["path"]), ", ".join(known)]) if known else str(content["path"])


def from_nanogpt(content, path):
    """nanoGPT's ckpt.pt in the form of ours, with a note on how its tokens were found out. Raises CheckpointError."""
    state = {name.removeprefix("_orig_mod."): tensor for name, tensor in content["model"].items()}
    state = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    config = {**content["model_args"], "mlp": "gelu_exact"}
    dataset = str(content.get("config", {}).get("dataset"))
    meta = ROOT / dataset / "meta.json"
    if meta.is_file():
        tokenizer, note = read_spec(meta), f"its tokens are those of {meta}"
        if tokenizer["kind"] == "char" and len(tokenizer["chars"]) != config["vocab_size"]:
            raise CheckpointError(
                f"{path} has {config['vocab_size']} characters and {meta} {len(tokenizer['chars'])}: prepare the text "
                "that it was trained on"
            )
    elif config["vocab_size"] in (50257, 50304):
        tokenizer, note = {"kind": "gpt2"}, f"its tokens are taken for GPT-2's, as there is no {meta}"
    else:
        raise CheckpointError(
            f"{path} is nanoGPT's, which does not say what its {config['vocab_size']} tokens are, and there is no "
            f"{meta}. Prepare the text that it was trained on: python prepare.py {dataset}"
            + ("" if dataset in CORPORA else " --input=FILE --tokenizer=char")
        )
    return {
        "model": {name: tensor for name, tensor in state.items() if not name.endswith(".attn.bias")},  # its causal mask
        "model_config": config,
        "train_config": {"dataset": dataset},
        "tokenizer": tokenizer,
        "step": content.get("iter_num", 0),
        "val_loss": float(content.get("best_val_loss", "nan")),
        "notes": [f"{path} is nanoGPT's; {note}"],
    }


def find(path):
    """`path` itself when it is a file; in a folder best.pt, else latest.pt, else nanoGPT's ckpt.pt; CheckpointError."""
    path = Path(path)
    for candidate in [path] if path.is_file() else [path / name for name in NAMES]:
        if candidate.is_file():
            return candidate
    if path.is_dir():
        raise CheckpointError(
            f"the folder {path} has no {', '.join(NAMES)} and no config.json of Hugging Face's. "
            f"A run writes a checkpoint: python train.py CONFIG --out_dir={path}"
        )
    folder = path.parent if path.suffix == ".pt" else path
    raise CheckpointError(f"there is no checkpoint {path}. A run writes one: python train.py CONFIG --out_dir={folder}")


def restore_optimizers(optimizers, states):
    """Load their memory, and leave the hyperparameters as they are now: load_state_dict brings both back."""
    states = [states] if isinstance(states, dict) else states  # of a run before Muon was there
    for optimizer, state in zip(optimizers, states, strict=True):
        now = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        optimizer.load_state_dict(state)
        for group, options in zip(optimizer.param_groups, now, strict=True):
            group.update(options)


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
