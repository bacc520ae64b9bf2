"""nanoGPT's ckpt.pt, converted to the form of our checkpoints."""

from pathlib import Path

from seugpt.data.corpora import CORPORA
from seugpt.data.tokenizer import read_spec
from seugpt.errors import CheckpointError, DataError

GPT2_VOCAB_SIZES = (50257, 50304)  # the second is padded


def is_nanogpt(ckpt):
    return isinstance(ckpt, dict) and "model_args" in ckpt and "model" in ckpt


def convert(ckpt, path):
    """A nanoGPT checkpoint as one of ours. Raises CheckpointError."""
    try:
        return convert_content(ckpt, path)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a complete nanoGPT checkpoint: {type(error).__name__} {error}"
        ) from error


def convert_content(ckpt, path):
    state = {}
    for name, tensor in ckpt["model"].items():
        name = name.removeprefix("_orig_mod.").removeprefix("transformer.")
        if not name.endswith(".attn.bias"):  # the causal mask
            state[name] = tensor
    model_config = {**ckpt["model_args"], "mlp": "gelu_exact"}
    dataset = str(ckpt.get("config", {}).get("dataset"))
    tokenizer, note = find_tokenizer(path, dataset, model_config["vocab_size"])
    return {
        "model": state,
        "model_config": model_config,
        "train_config": {"dataset": dataset},
        "tokenizer": tokenizer,
        "step": ckpt.get("iter_num", 0),
        "val_loss": float(ckpt.get("best_val_loss", "nan")),
        "notes": [f"{path} is a nanoGPT checkpoint; {note}"],
    }


def find_tokenizer(path, dataset, vocab_size):
    """(spec, note) of the tokenizer, which the checkpoint does not name. Raises DataError."""
    meta = Path("data", dataset, "meta.json")
    if meta.is_file():
        spec = read_spec(meta)
        if spec["kind"] == "char" and len(spec["chars"]) != vocab_size:
            raise DataError(
                f"{path} has {vocab_size} characters but {meta} has "
                f"{len(spec['chars'])}: prepare the text that it was trained on"
            )
        return spec, f"its tokenizer is taken from {meta}"
    if vocab_size in GPT2_VOCAB_SIZES:
        return {"kind": "gpt2"}, f"its tokenizer is assumed to be GPT-2's, as there is no {meta}"
    arguments = dataset if dataset in CORPORA else f"{dataset} --input=FILE --tokenizer=char"
    raise DataError(
        f"{path} is a nanoGPT checkpoint, which has no tokenizer for its {vocab_size} tokens, and "
        f"there is no {meta}. Prepare its training text: python prepare.py {arguments}"
    )
