"""Hugging Face's form of a model, read: a folder with config.json, model.safetensors and tokenizer.json.

Two architectures are known, GPT2LMHeadModel and LlamaForCausalLM (Mistral's without its sliding window is the same).
What config.json asks for and this program does not compute is refused by name. export.py writes the same form.
"""

import re
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from model import GPT
from seugpt.checkpoint.config_json import read_config, read_json
from seugpt.data.download import file_sha256
from seugpt.data.tokenizer import load_tokenizer, read_spec
from seugpt.errors import CheckpointError

HUB = {
    name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
}
DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
)  # of weights that can be read
FILES = ("config.json", "tokenizer.json", "model.safetensors")

LLAMA_NAMES = {
    "wte": ["model.embed_tokens"], "ln_f": ["model.norm"], "lm_head": ["lm_head"],
    "ln_1": ["input_layernorm"], "ln_2": ["post_attention_layernorm"],
    "attn.c_attn": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], "attn.c_proj": ["self_attn.o_proj"],
    "mlp.c_fc": ["mlp.gate_proj", "mlp.up_proj"], "mlp.c_proj": ["mlp.down_proj"],
}  # fmt: skip


def extra(package):
    """An optional package, or CheckpointError with the command that installs it."""
    versions = {"safetensors": "0.8.0", "huggingface_hub": "2.4.0"}
    try:
        return __import__(f"{package}.torch" if package == "safetensors" else package)
    except ImportError:
        command = f"python -m pip install {package}=={versions[package]}"
        raise CheckpointError(
            f"Hugging Face's models need the package {package}: {command}"
        ) from None


def download(name):
    """The folder with the files of one of OpenAI's models, fetched once into huggingface_hub's cache."""
    hub = extra("huggingface_hub")
    try:
        paths = [fetch(hub, HUB[name], file) for file in FILES]
    except Exception as error:  # its own kinds, requests' and the system's
        reason = f"{type(error).__name__}: {error}".partition("\n")[0].partition(". ")[0]
        raise CheckpointError(
            f"cannot fetch {HUB[name]} ({reason}). Connect to the network, or fetch {', '.join(FILES)} elsewhere and "
            "give their folder: --init_from=FOLDER"
        ) from error
    return paths[0].parent


def fetch(hub, repository, file):
    """The path of a file in huggingface_hub's cache. Raises ValueError where something else arrived.

    huggingface_hub tries again, lets a second process wait, and compares sizes. It does not compare the sha256, by
    which it names every large file, and leaves for ever what a process that was killed had fetched of it.
    """
    old = hub.try_to_load_from_cache(repository, file)
    path = Path(hub.hf_hub_download(repository, file))
    if isinstance(old, str):
        return path
    blob = path.resolve()
    for abandoned in blob.parent.glob(f"{blob.name}.*.incomplete"):
        abandoned.unlink(missing_ok=True)
    if len(blob.name) == 64 and (found := file_sha256(blob)) != blob.name:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise ValueError(f"the sha256 of the {file} that arrived is {found}, not {blob.name}")
    return path


def read(folder, source):
    """The content of checkpoint.load from a Hugging Face folder; source: what the user called it. CheckpointError."""
    folder = Path(folder)
    kind, config, without_bias = read_config(folder)
    spec, notes = (
        None,
        [f"{source}: no tokenizer.json, so the data set's own tokens are taken for the model's"],
    )
    if (folder / "tokenizer.json").is_file():
        spec, notes = read_spec(folder / "tokenizer.json"), []
        size = (
            50257
            if spec["kind"] == "gpt2"
            else load_tokenizer(spec, folder / "tokenizer.json").vocab_size
        )
        if not size <= config.vocab_size <= -(-size // 128) * 128:
            raise CheckpointError(
                f"{folder}: config.json says vocab_size={config.vocab_size:,} and tokenizer.json has {size:,} tokens, "
                "which is more than rounding up explains: they belong to different models"
            )
    return {
        "model": read_weights(folder, kind, config, without_bias),
        "model_config": vars(config),
        "train_config": {},
        "tokenizer": spec,
        "step": 0,
        "val_loss": float("nan"),
        "path": source,
        "notes": notes,
    }


def their_names(name, kind):
    """Hugging Face's names of one of our parameters; several are one of ours, one below the other."""
    layer, part, what = re.fullmatch(r"(?:h\.(\d+)\.)?(.+)\.(weight|bias)", name).groups()
    if kind == "gpt2":
        return [name if part == "lm_head" else f"transformer.{name}"]
    prefix = "" if layer is None else f"model.layers.{layer}."
    return [f"{prefix}{theirs}.{what}" for theirs in LLAMA_NAMES[part]]


def is_transposed(name, kind):
    """GPT-2's linear layers are stored as (in, out), where torch has (out, in)."""
    return kind == "gpt2" and name.endswith(".weight") and ".c_" in name


def rows_of(name, shape, config):
    """How many rows of our parameter each of their_names has; Llama keeps apart what is one matmul here."""
    if config.mlp == "swiglu" and ".mlp.c_fc." in name:
        return [config.hidden, config.hidden]
    if config.mlp == "swiglu" and ".attn.c_attn." in name:
        return [
            heads * config.head_size for heads in (config.n_head, config.kv_heads, config.kv_heads)
        ]
    return [shape[0]]


class Undrawn(TorchFunctionMode):
    """Initial values are not drawn: on the meta device torch would load its compiler, for a second, to draw nothing."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, module = kwargs or {}, getattr(function, "__module__", None)
        return kwargs["tensor"] if module == "torch.nn.init" else function(*args, **kwargs)


def shapes(config, source):
    """{name: shape} of the parameters that a model of this config has; a tied one under its first name.

    Raises CheckpointError, which names `source`, for sizes that no model can have.
    """
    try:
        with torch.device("meta"), Undrawn():
            return {name: parameter.shape for name, parameter in GPT(config).named_parameters()}
    except (RuntimeError, TypeError) as error:  # sizes whose product no number of 64 bits holds
        raise CheckpointError(f"{source}: no model can be so large: {error}") from error


def find_tensors(folder):
    """{tensor name: file} of model.safetensors, or of the shards that its index names. Raises CheckpointError."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return dict.fromkeys(open_shard(single).keys(), single)
    if not index.is_file():
        raise CheckpointError(
            f"{folder} has no model.safetensors; other forms, such as pickles, are never read"
        )
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict):
        raise CheckpointError(f"{index} has no weight_map")
    for file in places.values():
        if not isinstance(file, str) or Path(file).name != file or "\\" in file:
            raise CheckpointError(
                f"{index} names the file {file!r}, which is not a plain name in this folder"
            )
        if not is_file(folder / file):
            raise CheckpointError(
                f"{folder / file} is missing; {index.name} names it. Fetch it again"
            )
    return {name: folder / file for name, file in places.items()}


def is_file(path):
    """Whether there is such a file; there is none of a name that the system cannot have."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with a zero byte in it
        return False


def open_shard(path):
    try:
        return extra("safetensors").safe_open(path, framework="pt")
    except CheckpointError:
        raise
    except Exception as error:  # SafetensorError, and the system's own
        raise CheckpointError(
            f"{path} cannot be read as safetensors: {error}. Fetch or write it again"
        ) from error


def read_weights(folder, kind, config, without_bias):
    """Our state dictionary, in float32, from theirs. Raises CheckpointError that names tensor, file or shape."""
    places = find_tensors(folder)
    if (
        kind == "gpt2" and "wte.weight" in places
    ):  # the hub's gpt2 is a bare GPT2Model, whose names lack the prefix
        places = {f"transformer.{name}": file for name, file in places.items()}
    if config.n_layer > len(places):
        raise CheckpointError(
            f"{folder}: config.json says {config.n_layer:,} layers; there are {len(places):,} tensors"
        )
    shards = {file: open_shard(file) for file in dict.fromkeys(places.values())}
    no_weights = (
        ".attn.bias",
        ".attn.masked_bias",
        "rotary_emb.inv_freq",
    )  # causal masks and frequencies
    unread = {name for name in places if not name.endswith(no_weights)}
    state = {}
    for name, shape in shapes(config, folder).items():
        parts = []
        for theirs, rows in zip(their_names(name, kind), rows_of(name, shape, config), strict=True):
            wanted = (rows, *shape[1:])
            if theirs in places:
                part = take(shards[places[theirs]], theirs, places[theirs])
                part = part.t() if is_transposed(name, kind) and part.dim() == 2 else part
            elif name.endswith("bias") and any(half in name for half in without_bias):
                part = torch.zeros(wanted)  # zeros add nothing
            else:
                raise CheckpointError(
                    f"{folder} has no tensor {theirs}, which config.json asks for"
                )
            if part.shape != wanted:
                raise CheckpointError(
                    f"{folder}: {theirs} is {tuple(part.shape)}; config.json makes it {wanted}"
                )
            parts.append(part)
            unread.discard(theirs)
        state[name] = torch.cat(parts).contiguous()
    if config.tie_embeddings:
        for name in unread & {"lm_head.weight", "transformer.lm_head.weight"}:
            if not torch.equal(take(shards[places[name]], name, places[name]), state["wte.weight"]):
                raise CheckpointError(
                    f"{folder}: {name} differs from the token embedding, which config.json says it is tied to"
                )
            unread = unread - {name}
        state["lm_head.weight"] = state["wte.weight"]
    if unread:
        raise CheckpointError(
            f"{folder} has tensors without a place here: {', '.join(sorted(unread)[:5])}"
        )
    return state


def take(shard, name, path):
    try:
        bare = name if name in shard.keys() else name.removeprefix("transformer.")  # noqa: SIM118, no dictionary
        tensor = shard.get_tensor(bare)
    except Exception as error:
        raise CheckpointError(f"{path}: the tensor {name} cannot be read: {error}") from error
    if tensor.dtype not in DTYPES:
        raise CheckpointError(
            f"{path}: the tensor {name} is {tensor.dtype}; quantized weights cannot be read"
        )
    return tensor.float()
