"""The weights that a model starts from: a run's, nanoGPT's or Hugging Face's; and what of them another shape keeps."""

import re
from dataclasses import replace
from pathlib import Path

import torch

from model import GPT, ModelConfig
from seugpt.checkpoint import huggingface
from seugpt.checkpoint import storage as checkpoint
from seugpt.cli.values import checked
from seugpt.data.tokenizer import load_tokenizer
from seugpt.errors import CheckpointError

FREE = {"dropout": 0.0, "embedding_std": 0.0}  # what no weight depends on
FIXED = ("vocab_size", "n_layer", "n_head", "n_embd")  # nothing can be taken over into another size


def load(source):
    """The content of checkpoint.load, from a checkpoint, a run's or a Hugging Face folder, or a name at the hub.

    Raises CheckpointError, DataError.
    """
    path = Path(source)
    if not source:
        raise CheckpointError(
            "init_from= is empty; give a checkpoint, a folder or a name such as gpt2"
        )
    if source in huggingface.HUB and not path.exists():
        return huggingface.read(huggingface.download(source), source)
    if (path / "config.json").is_file():
        return huggingface.read(path, source)
    if path.is_file() and path.suffix in (".json", ".safetensors"):
        raise CheckpointError(f"{source} is one file of a model; give its folder: {path.parent}")
    content = checkpoint.load(checkpoint.find(source))
    return {
        **content,
        "model_config": vars(config_of(content)),
    }  # each value in its type, whoever wrote it


def config_of(content):
    """The ModelConfig of a loaded checkpoint. Raises CheckpointError."""
    try:
        config = ModelConfig(**checked(ModelConfig, content["model_config"]))
        if config.vocab_size is None:
            raise ValueError("it has no vocab_size")
        return config
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{content['path']}: its weights and model_config do not fit this program: {error}"
        ) from error


def check_architecture(content, wanted, resume):
    """Raise CheckpointError where the ModelConfig `wanted` asks for what the weights cannot become.

    In the middle of a run nothing may change but what no weight depends on. A new run may have a shorter block_size, a
    longer one with rotary positions, and another norm, MLP, position, bias or number of key and value heads (see
    `adapt`).
    """
    old = config_of(content)
    free = set(FREE) if resume else set(vars(old)) - set(FIXED)
    if wanted.position == "learned" and wanted.block_size > old.block_size:
        free -= {"block_size"}
    conflicts = [
        f"{name}={value} (there {vars(old)[name]})"
        for name, value in vars(wanted).items()
        if name not in free and value not in (vars(old)[name], None)
    ]
    if conflicts:
        raise CheckpointError(
            f"{content['path']} has another architecture: {', '.join(conflicts)}. "
            "Leave that out, or train anew with --init_from=scratch"
        )


def tokenizer_of(content):
    """The tokenizer that the weights were trained with. Raises CheckpointError, DataError."""
    if content["tokenizer"] is None:
        raise CheckpointError(
            f"{content['path']} has no tokenizer.json, without which its tokens mean nothing"
        )
    tokenizer = load_tokenizer(content["tokenizer"], content["path"])
    V = config_of(content).vocab_size
    if tokenizer.vocab_size > V:
        raise CheckpointError(
            f"{content['path']}: its tokenizer has {tokenizer.vocab_size:,} tokens and the model {V:,}: "
            "they do not belong together"
        )
    return tokenizer


def check_tokenizer(content, spec, dataset):
    """Raise CheckpointError where the data set speaks in other tokens than the weights were trained on."""
    if content["tokenizer"] in (spec, None):
        return
    theirs = content["train_config"].get("dataset")
    source = f"data/{theirs}/meta.json" if theirs else content["path"]
    source = "gpt2" if content["tokenizer"] == {"kind": "gpt2"} else source
    advice = (
        f"Prepare the text once more: python prepare.py NEW_NAME --input=FILE --tokenizer={source}"
    )
    if dataset == theirs:
        advice = "It was prepared anew since; prepare it as it was"
    raise CheckpointError(f"data/{dataset} has another vocabulary than {content['path']}. {advice}")


def to_speak(source):
    """What is needed to let the weights of `source` speak, as `load` takes it: (model, tokenizer, about).

    The model is in eval mode, in float32, on the CPU; about: lines that say what was loaded. Raises CheckpointError,
    DataError.
    """
    content = load(source)
    tokenizer = tokenizer_of(content)
    model, _ = build(content, replace(config_of(content), dropout=0.0))
    return model.eval(), tokenizer, [*content.get("notes", []), checkpoint.describe(content)]


def is_plain(tensor):
    """Whether it is an array of floating-point numbers, each of which was in the file.

    Others would be cast without a word; and a view that repeats a number in place of many costs no disk, but memory.
    """
    return (
        isinstance(tensor, torch.Tensor)
        and tensor.dtype in huggingface.DTYPES
        and (tensor.layout, tensor.device.type) == (torch.strided, "cpu")
        and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()
    )


def check_shapes(content, config):
    """Raise CheckpointError where the weights are not those of the config, before a model of its size is built."""
    misfit = f"{content['path']}: the weights and model_config do not fit: "
    if f"h.{config.n_layer - 1}.ln_1.weight" not in content["model"]:
        raise CheckpointError(f"{misfit}there are fewer than n_layer={config.n_layer} layers")
    for name, tensor in content["model"].items():
        if not is_plain(tensor):
            raise CheckpointError(f"{misfit}{name} is no plain array of floating-point numbers")
    for name, shape in huggingface.shapes(config, content["path"]).items():
        found = getattr(content["model"].get(name), "shape", None)
        if found != shape:
            raise CheckpointError(
                f"{misfit}{name} has the shape {found and tuple(found)}, and should have {tuple(shape)}"
            )


def build(content, wanted=None, seed=0):
    """(model, report): a GPT of the ModelConfig `wanted` (None: the content's own) with the loaded weights.

    report says what became of them, in lines, and is empty where each was taken over as it is. What is new is drawn
    from the seed. Raises CheckpointError.
    """
    old = config_of(content)
    wanted = old if wanted is None else replace(wanted, vocab_size=old.vocab_size)
    check_shapes(content, old)
    with torch.random.fork_rng(devices=[]):  # whoever calls keeps the dice that they have
        torch.manual_seed(seed)
        model = GPT(wanted)
    try:
        broken = [name for name, tensor in content["model"].items() if not tensor.isfinite().all()]
        if broken:
            raise CheckpointError(
                f"{content['path']} has weights that are no numbers (NaN or infinite): {broken[0]}"
            )
        fates = adapt(model, content["model"], old)
    except (TypeError, AttributeError, RuntimeError, IndexError) as error:
        raise CheckpointError(
            f"{content['path']}: the weights and model_config do not fit: {error}"
        ) from error
    if replace(wanted, **FREE, block_size=1) != replace(old, **FREE, block_size=1):
        return model, [f"{fate}: {', '.join(names)}" for fate, names in fates.items()]
    if "dropped" in fates:
        raise CheckpointError(
            f"{content['path']}: the weights and model_config do not fit: {', '.join(fates['dropped'])}"
        )
    return model, []


def untrained(content):
    """The weights that a run began with, drawn anew from its seed; None where it began from others or is not ours."""
    options = content["train_config"]
    if options.get("init_from") != "scratch" or type(options.get("seed")) is not int:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options["seed"])
        return GPT(config_of(content)).state_dict()


@torch.no_grad()
def adapt(model, state, old):
    """Copy into the model what fits of `state`, weights of the architecture `old`.

    Returns {what was done: [names]}, where h.* stands for all blocks.
    """
    fates, parameters = (
        {},
        dict(model.named_parameters()),
    )  # which names a tied matrix once, as wte.weight
    for name, fresh in parameters.items():
        fate = fit(name, state[name], fresh, old, model.config) if name in state else "new"
        fates.setdefault(fate, set()).add(of_all_blocks(name))
    for name in (
        state.keys() - parameters.keys() - ({"lm_head.weight"} if old.tie_embeddings else set())
    ):
        fates.setdefault("dropped", set()).add(of_all_blocks(name))
    return {fate: sorted(names) for fate, names in fates.items()}


def of_all_blocks(name):
    return re.sub(r"h\.\d+\.", "h.*.", name)


def fit(name, tensor, fresh, old, new):
    """Write into `fresh` what it can take of one parameter of both architectures. Returns what was done, in words."""
    if ".attn.c_attn." in name and old.kv_heads != new.kv_heads:
        fresh.copy_(pool_heads(tensor, old, new))
        how = (
            "pooled"
            if old.kv_heads % new.kv_heads == 0
            else "mixed"
            if new.kv_heads % old.kv_heads
            else "repeated"
        )
        return f"heads of keys and values {how} from {old.kv_heads} to {new.kv_heads}"
    gated = old.mlp == "swiglu", new.mlp == "swiglu"
    if (
        ".mlp." in name
        and not name.endswith("c_proj.bias")
        and (old.hidden != new.hidden or gated[0] != gated[1])
    ):
        return fit_mlp(name, tensor, fresh, old, new, gated)
    if name == "wpe.weight" and new.block_size < old.block_size:
        fresh.copy_(tensor[: new.block_size])
        return f"cut to {new.block_size} positions"
    fresh.copy_(tensor)
    return "copied"


def fit_mlp(name, tensor, fresh, old, new, gated):
    """The first channels of another MLP. A new gate and its value both begin as what was there: silu(x) * x.

    That began and ended lower than a new value beside the old gate, in a small model.
    """
    n = min(old.hidden, new.hidden)
    kept = f"{n} of {old.hidden} channels kept" + (
        f", {new.hidden - n} new" if new.hidden > n else ""
    )
    if name.endswith("c_proj.weight"):
        fresh[:, :n] = tensor[:, :n]
        return kept
    for part in range(1 + gated[1]):
        source = part * old.hidden if gated[0] else 0
        fresh[part * new.hidden : part * new.hidden + n] = tensor[source : source + n]
    return kept + {
        (False, True): ", as gate and as value",
        (True, False): " of the gate, no value",
    }.get(gated, "")


def pool_heads(tensor, old, new):
    """c_attn's rows with another number of key and value heads: each new one is the mean of those it replaces (GQA)."""
    q, k, v = tensor.split(
        [heads * old.head_size for heads in (old.n_head, old.kv_heads, old.kv_heads)]
    )
    pooled = []
    for part in (k, v):
        heads = part.view(old.kv_heads, old.head_size, -1).repeat_interleave(
            old.n_head // old.kv_heads, dim=0
        )
        pooled.append(heads.view(new.kv_heads, -1, *heads.shape[1:]).mean(dim=1).flatten(0, 1))
    return torch.cat((q, *(part.view(-1, *tensor.shape[1:]) for part in pooled)))
