"""The README.md of an exported model: what it is, what it was trained on, and how to use it."""

import math

from seugpt.cli.values import to_repr

CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- seugpt
---

# {name}

A {architecture} of {num_params:,} parameters, written by seuGPT's export.py.

{facts}

It continues a text{chat}. What it says is what its data says: check it before you rely on it.

```python
from transformers import pipeline

generate = pipeline("text-generation", model="{name}")
print(generate("Text to continue", max_new_tokens=100)[0]["generated_text"])
```

With seuGPT: `python sample.py --init_from={name}`; to fine-tune it:
`python train.py --init_from={name} --dataset=NAME`.
"""
TRAINING_OPTIONS = (
    "learning_rate",
    "optimizer",
    "batch_size",
    "gradient_accumulation_steps",
    "weight_decay",
    "dropout",
    "seed",
)


def model_card(ckpt, model, tokenizer, architecture, name):
    """The text of README.md.

    `ckpt`: the model's checkpoint; `architecture`: its class in transformers; `name`: its folder.
    """
    config = model.config
    facts = {
        "Layers, query heads, key/value heads": f"{config.n_layer}, {config.n_head}, "
        f"{config.kv_heads}",
        "Width": f"{config.n_embd:,}",
        "Context": f"{config.block_size:,} tokens",
        "Vocabulary": f"{tokenizer.vocab_size:,} tokens ({tokenizer.spec()['kind']})",
        **describe_training(ckpt),
    }
    table = [f"| {label} | {value} |" for label, value in facts.items()]
    chat = tokenizer.special.chat_template
    return CARD.format(
        name=name,
        architecture=architecture,
        num_params=model.num_params(),
        facts="\n".join(["| | |", "|---|---|", *table]),
        chat=", and has a chat template" if chat else "; it was not taught to follow instructions",
    )


def describe_training(ckpt):
    """{label: text} of how the weights came about, as far as the checkpoint knows."""
    train_config = ckpt["train_config"]
    if not train_config:
        return {"Weights": f"from {ckpt['path']}; how they were trained is not in its files"}
    loss = ckpt["val_loss"]
    facts = {}
    if "dataset" in train_config:
        facts["Data"] = to_repr(train_config["dataset"]).strip("'\"")
    if math.isfinite(loss):
        facts["Validation loss"] = (
            f"{loss:.4f} nats per token (perplexity {math.exp(min(loss, 700)):,.2f}), on the "
            "validation split of the same data"
        )
    if train_config.get("init_from", "scratch") != "scratch":
        facts["Trained from"] = to_repr(train_config["init_from"]).strip("'\"")
    options = [key for key in TRAINING_OPTIONS if key in train_config]
    values = {**train_config, "dropout": ckpt["model_config"].get("dropout")}
    described = ", ".join(f"{key}={to_repr(values[key])}" for key in options)
    facts["Training"] = f"{ckpt['step']:,} steps; {described}"
    return facts
