"""nanoGPT's checkpoints, in the form of ours."""

from seugpt.data.corpora import CORPORA
from seugpt.data.dataset import dataset_path
from seugpt.data.tokenizer import read_spec
from seugpt.errors import DataError


def convert(content, path):
    """nanoGPT's ckpt.pt in the form of ours, with a note on how its tokens were found out. Raises DataError."""
    state = {name.removeprefix("_orig_mod."): tensor for name, tensor in content["model"].items()}
    state = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    config = {**content["model_args"], "mlp": "gelu_exact"}
    dataset = str(content.get("config", {}).get("dataset"))
    meta = dataset_path(dataset) / "meta.json"
    if meta.is_file():
        tokenizer, note = read_spec(meta), f"its tokens are those of {meta}"
        if tokenizer["kind"] == "char" and len(tokenizer["chars"]) != config["vocab_size"]:
            raise DataError(
                f"{path} has {config['vocab_size']} characters and {meta} {len(tokenizer['chars'])}: prepare the text "
                "that it was trained on"
            )
    elif config["vocab_size"] in (50257, 50304):
        tokenizer, note = (
            {"kind": "gpt2"},
            f"its tokens are taken for GPT-2's, as there is no {meta}",
        )
    else:
        raise DataError(
            f"{path} is nanoGPT's, which does not say what its {config['vocab_size']} tokens are, and there is no "
            f"{meta}. Prepare the text that it was trained on: python prepare.py {dataset}"
            + ("" if dataset in CORPORA else " --input=FILE --tokenizer=char")
        )
    return {
        "model": {
            name: tensor for name, tensor in state.items() if not name.endswith(".attn.bias")
        },  # its causal mask
        "model_config": config,
        "train_config": {"dataset": dataset},
        "tokenizer": tokenizer,
        "step": content.get("iter_num", 0),
        "val_loss": float(content.get("best_val_loss", "nan")),
        "notes": [f"{path} is nanoGPT's; {note}"],
    }
