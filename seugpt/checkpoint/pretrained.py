"""Weights to start from: a run's, nanoGPT's or Hugging Face's.

They are loaded for inference, to be trained further, or into a model of another architecture.
"""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
from torch.overrides import TorchFunctionMode

from model import GPT, ModelConfig
from seugpt.checkpoint import huggingface, nanogpt
from seugpt.checkpoint.adapt import adapt_state_dict
from seugpt.checkpoint.content import FORMAT, INFERENCE_KEYS, check_content
from seugpt.checkpoint.shapes import parameter_shapes
from seugpt.checkpoint.sharded import is_step_folder, load_merged
from seugpt.checkpoint.storage import describe, find_checkpoint, read_file
from seugpt.cli.values import coerce_fields
from seugpt.data import hub
from seugpt.data.tokenizer import load_tokenizer, same_vocabulary
from seugpt.errors import CheckpointError

NON_WEIGHT_FIELDS = {"dropout": 0.0, "embedding_std": 0.0}  # no weight depends on these
# No weight fits other values of these.
SHAPE_FIELDS = ("vocab_size", "n_layer", "n_head", "n_embd", "head_dim")


@dataclass(frozen=True)
class ModelSource:
    """The options of every command that loads a model."""

    init_from: Annotated[
        str,
        "resume: the run in out_dir; or a checkpoint, a run's folder, a Hugging Face folder, "
        "gpt2 to gpt2-xl, org/name[@revision] on the hub",
        "path",
    ] = "resume"
    out_dir: Annotated[str, "folder of a run; best.pt is loaded, else latest.pt", "path"] = "out"

    @property
    def source(self):
        return self.out_dir if self.init_from == "resume" else self.init_from


def load_pretrained(source):
    """A checkpoint's dictionary, as load_checkpoint returns it, from any source of weights.

    `source`: a checkpoint, a run's folder, a Hugging Face folder, or a name on the hub. Raises
    CheckpointError, DataError.
    """
    path = Path(source)
    if source.startswith(("http://", "https://")):
        raise CheckpointError(f"{source}: a model on the Hugging Face hub is written org/name")
    if hub.is_hub_name(source):
        return huggingface.load_folder(hub.download_model(source), source)
    if (path / "config.json").is_file():
        return huggingface.load_folder(path, source)
    if path.is_file() and path.suffix in (".json", ".safetensors"):
        raise CheckpointError(f"{source} is one file of a model; give its folder: {path.parent}")
    path = find_checkpoint(path)
    if is_step_folder(path):
        ckpt = load_merged(path)
    else:
        ckpt = read_file(path)
        if nanogpt.is_nanogpt(ckpt):
            ckpt = {"format": FORMAT, **nanogpt.convert(ckpt, path)}
        check_content(path, ckpt, INFERENCE_KEYS)
    ckpt = {**ckpt, "path": path}
    ckpt["model_config"] = vars(config_of(ckpt))  # each value in its type, whoever wrote it
    return ckpt


def load_for_inference(source):
    """(model, tokenizer, description) of any source of weights, for sampling and inspection.

    The model is in eval mode, in float32, on the CPU. `description`: lines that say what was
    loaded. Raises CheckpointError, DataError.
    """
    ckpt = load_pretrained(source)
    tokenizer = tokenizer_of(ckpt)
    model, _ = build_from_checkpoint(ckpt, replace(config_of(ckpt), dropout=0.0))
    return model.eval(), tokenizer, [*ckpt.get("notes", []), describe(ckpt)]


def config_of(ckpt):
    """The ModelConfig of a checkpoint. Raises CheckpointError."""
    try:
        config = ModelConfig(**coerce_fields(ModelConfig, ckpt["model_config"]))
        if config.vocab_size is None:
            raise ValueError("vocab_size is missing")
        return config
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{ckpt['path']}: its model_config is not valid: {error}") from error


def tokenizer_of(ckpt):
    """The tokenizer that the weights were trained with. Raises CheckpointError, DataError."""
    if ckpt["tokenizer"] is None:
        raise CheckpointError(
            f"{ckpt['path']} has no tokenizer.json, without which token ids mean nothing"
        )
    tokenizer = load_tokenizer(ckpt["tokenizer"], ckpt["path"])
    vocab_size = config_of(ckpt).vocab_size
    if tokenizer.vocab_size > vocab_size:
        raise CheckpointError(
            f"{ckpt['path']}: its tokenizer has {tokenizer.vocab_size:,} tokens "
            f"but the model only {vocab_size:,}: they do not belong together"
        )
    return tokenizer


def check_architecture(ckpt, target_config, resume):
    """Raise CheckpointError if `target_config` asks for something that the weights cannot become.

    A resumed run may change only what no weight depends on. A new run may have a shorter block_size
    (with RoPE also a longer one) and another norm, MLP, position, bias or number of key/value heads
    (see adapt.py).
    """
    source_config = config_of(ckpt)
    allowed = set(NON_WEIGHT_FIELDS) if resume else set(vars(source_config)) - set(SHAPE_FIELDS)
    if target_config.position == "learned" and target_config.block_size > source_config.block_size:
        allowed -= {"block_size"}
    conflicts = []
    for name, value in vars(target_config).items():
        stored = getattr(source_config, name)
        if name not in allowed and value not in (stored, None):
            conflicts.append(f"{name}={value} (stored: {stored})")
    if conflicts:
        raise CheckpointError(
            f"{ckpt['path']} has another architecture: {', '.join(conflicts)}. "
            "Drop these options, or train from scratch with --init_from=scratch"
        )


def check_tokenizer(ckpt, spec, dataset):
    """Raise CheckpointError if a data set has another tokenizer than the weights."""
    if ckpt["tokenizer"] is None or same_vocabulary(ckpt["tokenizer"], spec):
        return
    trained_on = ckpt["train_config"].get("dataset")
    source = Path("data", trained_on, "meta.json") if trained_on else ckpt["path"]
    if ckpt["tokenizer"].get("kind") == "gpt2":
        source = "gpt2"
    advice = (
        "Prepare the text with its tokenizer: python "
        f"prepare.py NEW_NAME --input=FILE --tokenizer={source}"
    )
    if dataset == trained_on:
        advice = "It has been prepared again since; prepare it as it was"
    folder = Path("data", dataset)
    raise CheckpointError(f"{folder} has another vocabulary than {ckpt['path']}. {advice}")


def build_from_checkpoint(ckpt, target_config=None, seed=0):
    """(model, adaptation notes): a GPT with the loaded weights.

    `target_config` None: the checkpoint's own. The notes say line by line what became of the
    weights, and are empty if the architecture is the same. New parameters are drawn from `seed`.
    Raises CheckpointError.
    """
    source_config = config_of(ckpt)
    target_config = replace(target_config or source_config, vocab_size=source_config.vocab_size)
    check_weights(ckpt, source_config)
    adapts = needs_adaptation(source_config, target_config)
    with torch.random.fork_rng(devices=[]):  # leaves the caller's generator as it is
        torch.manual_seed(seed)
        with nullcontext() if adapts else SkipInit():
            model = GPT(target_config)
    try:
        actions = adapt_state_dict(model, ckpt["model"], source_config)
    except (TypeError, AttributeError, RuntimeError, IndexError) as error:
        raise mismatch_error(ckpt, error) from error
    if adapts:
        return model, [f"{action}: {', '.join(names)}" for action, names in actions.items()]
    if "dropped" in actions:
        raise mismatch_error(ckpt, f"no place for {', '.join(actions['dropped'])}")
    return model, []


class SkipInit(TorchFunctionMode):
    """A context in which torch.nn.init draws no weights, as all of them will be loaded.

    For GPT-2's 124M that took longer than all the rest of loading (docs/SPEED.md).
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def needs_adaptation(source_config, target_config):
    """Whether two configs compute different functions of the weights; block_size does not count."""
    ignored = {**NON_WEIGHT_FIELDS, "block_size": 1}
    return replace(target_config, **ignored) != replace(source_config, **ignored)


def mismatch_error(ckpt, problem):
    return CheckpointError(f"{ckpt['path']}: the weights do not fit model_config: {problem}")


def check_weights(ckpt, config):
    """Raise CheckpointError unless the weights fit `config`; builds no model of that size."""
    weights = ckpt["model"]
    if f"h.{config.n_layer - 1}.ln_1.weight" not in weights:
        raise mismatch_error(ckpt, f"the file has fewer layers than n_layer={config.n_layer}")
    for name, tensor in weights.items():
        if not is_plain_tensor(tensor):
            raise mismatch_error(ckpt, f"{name} is not a plain array of floating-point numbers")
    for name, shape in parameter_shapes(config, ckpt["path"]).items():
        found = getattr(weights.get(name), "shape", None)
        if found != shape:
            found = found and tuple(found)
            raise mismatch_error(ckpt, f"{name} has shape {found}, expected {tuple(shape)}")
    for name, tensor in weights.items():
        if not is_finite(tensor):
            raise CheckpointError(f"{ckpt['path']} has weights that are NaN or infinite: {name}")


def is_finite(tensor):
    """tensor.isfinite().all(), in a fraction of its time: NaN is the minimum of what has any."""
    return tensor.numel() == 0 or all(map(torch.isfinite, tensor.aminmax()))


def is_plain_tensor(tensor):
    """Whether it is a dense floating-point array with every number stored in the file.

    Other dtypes would be cast silently; a view that repeats one number would take no space on the
    disk and all of the memory.
    """
    return (
        isinstance(tensor, torch.Tensor)
        and tensor.dtype in huggingface.DTYPES
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()
    )


def initial_state_dict(ckpt):
    """The weights that a run from scratch started from, drawn again from its seed; else None."""
    train_config = ckpt["train_config"]
    if train_config.get("init_from") != "scratch" or type(train_config.get("seed")) is not int:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(train_config["seed"])
        return GPT(config_of(ckpt)).state_dict()
