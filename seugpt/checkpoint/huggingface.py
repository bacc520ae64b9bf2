"""Models in Hugging Face's form: a folder with config.json, model.safetensors and tokenizer.json.

See config_json.py for what is supported. export.py writes the same form.
"""

import re
from pathlib import Path

import torch

from seugpt.checkpoint.config_json import read_config
from seugpt.checkpoint.shapes import parameter_shapes
from seugpt.data.hub import import_extra, no_safetensors, read_weight_map
from seugpt.data.tokenizer import load_tokenizer, read_spec
from seugpt.errors import CheckpointError

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # that can be read
MAX_PADDING = 0.1  # of a vocabulary: rows that no token uses
VOCAB_MULTIPLE = 128  # a small vocabulary may be padded up to a multiple of this
NON_WEIGHTS = (".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")  # masks, frequencies

LLAMA_NAMES = {
    "wte": ["model.embed_tokens"],
    "ln_f": ["model.norm"],
    "lm_head": ["lm_head"],
    "ln_1": ["input_layernorm"],
    "ln_2": ["post_attention_layernorm"],
    "attn.c_attn": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attn.c_proj": ["self_attn.o_proj"],
    "mlp.c_fc": ["mlp.gate_proj", "mlp.up_proj"],
    "mlp.c_proj": ["mlp.down_proj"],
    "attn.q_norm": ["self_attn.q_norm"],
    "attn.k_norm": ["self_attn.k_norm"],
}


def load_folder(folder, source):
    """A Hugging Face folder as load_checkpoint returns a checkpoint.

    `source`: what the user called it. Raises CheckpointError, DataError.
    """
    folder = Path(folder)
    model_type, config, missing_biases, notes = read_config(folder)
    spec = None
    if (folder / "tokenizer.json").is_file():
        spec = read_spec(folder / "tokenizer.json")
        check_vocabulary(folder, spec, config.vocab_size)
    else:
        notes.append(
            f"{source} has no tokenizer.json: the data set's tokenizer is taken for the model's"
        )
    state_dict, dtype = read_state_dict(folder, model_type, config, missing_biases)
    return {
        "model": state_dict,
        "dtype": dtype,
        "model_config": vars(config),
        "train_config": {},
        "tokenizer": spec,
        "step": 0,
        "val_loss": float("nan"),
        "path": source,
        "notes": notes,
    }


def check_vocabulary(folder, spec, vocab_size):
    """Raise CheckpointError unless the tokenizer fits the vocabulary, which may be padded."""
    if spec["kind"] == "gpt2":  # known without a download
        num_tokens = 50257
    else:
        num_tokens = load_tokenizer(spec, folder / "tokenizer.json").vocab_size
    padded = -(-num_tokens // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    largest = max(padded, int((1 + MAX_PADDING) * num_tokens))
    if not num_tokens <= vocab_size <= largest:
        raise CheckpointError(
            f"{folder}: config.json has vocab_size={vocab_size:,} but tokenizer.json "
            f"{num_tokens:,} tokens, more than padding explains: they belong to different models"
        )


def hf_names(name, model_type):
    """Hugging Face's names for one of our parameters, which may stack several of theirs."""
    layer, module, suffix = re.fullmatch(r"(?:h\.(\d+)\.)?(.+)\.(weight|bias)", name).groups()
    if model_type == "gpt2":
        return [name if module == "lm_head" else f"transformer.{name}"]
    prefix = "" if layer is None else f"model.layers.{layer}."
    return [f"{prefix}{hf_module}.{suffix}" for hf_module in LLAMA_NAMES[module]]


def is_transposed(name, model_type):
    """GPT-2's linear layers are stored as (in, out), torch's as (out, in)."""
    return model_type == "gpt2" and name.endswith(".weight") and ".c_" in name


def row_counts(name, shape, config):
    """How many rows of our parameter each of its hf_names has: Llama's are not stacked."""
    if config.mlp == "swiglu" and ".mlp.c_fc." in name:
        return [config.mlp_hidden_size, config.mlp_hidden_size]
    if config.mlp == "swiglu" and ".attn.c_attn." in name:
        return [n * config.head_size for n in (config.n_head, config.kv_heads, config.kv_heads)]
    return [shape[0]]


def hf_parts(name, shape, model_type, config):
    """[(Hugging Face's name, its shape)] of the parts of one of our parameters."""
    rows = row_counts(name, shape, config)
    names = hf_names(name, model_type)
    return [(hf_name, (n, *shape[1:])) for hf_name, n in zip(names, rows, strict=True)]


def find_tensors(folder):
    """{tensor name: file} of model.safetensors, or of the shards in its index.

    Raises CheckpointError.
    """
    single = folder / "model.safetensors"
    index = folder / "model.safetensors.index.json"
    if single.is_file():
        return dict.fromkeys(open_safetensors(single).keys(), single)
    if not index.is_file():
        raise CheckpointError(no_safetensors(folder, folder))
    weight_map = read_weight_map(index)
    for file in weight_map.values():
        if not isinstance(file, str) or Path(file).name != file or "\\" in file:
            raise CheckpointError(
                f"{index} names the file {file!r}, which is not a file name in this folder"
            )
        if not is_file(folder / file):
            raise CheckpointError(
                f"{folder / file} is missing but in {index.name}. Download it again"
            )
    return {name: folder / file for name, file in weight_map.items()}


def is_file(path):
    """Whether there is such a file; False for names that the system cannot have."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with a zero byte
        return False


def open_safetensors(path):
    safetensors = import_extra("safetensors")
    try:
        return safetensors.safe_open(path, framework="pt")
    except Exception as error:  # SafetensorError, and the system's own
        raise CheckpointError(
            f"{path} cannot be read as safetensors: {error}. Download or write it again"
        ) from error


def read_state_dict(folder, model_type, config, missing_biases):
    """(our state dict, in float32, the dtype that all tensors have, else "float32").

    Raises CheckpointError naming tensor, file or shape.
    """
    file_of = find_tensors(folder)
    if model_type == "gpt2" and "wte.weight" in file_of:  # a GPT2Model, whose names lack the prefix
        file_of = {f"transformer.{name}": file for name, file in file_of.items()}
    if config.n_layer > len(file_of):
        raise CheckpointError(
            f"{folder}: config.json has {config.n_layer:,} "
            f"layers but there are {len(file_of):,} tensors"
        )
    opened = {file: open_safetensors(file) for file in dict.fromkeys(file_of.values())}
    tensors = TensorReader(folder, file_of, opened)
    state_dict = {}
    for name, shape in parameter_shapes(config, folder).items():
        in_module = any(module in name for module in missing_biases)
        may_be_missing = in_module and name.endswith("bias")
        parts = []
        for hf_name, expected in hf_parts(name, shape, model_type, config):
            if may_be_missing and hf_name not in tensors:
                parts.append(torch.zeros(expected))  # zeros add nothing
            else:
                parts.append(tensors.read(hf_name, expected, is_transposed(name, model_type)))
        state_dict[name] = torch.cat(parts).contiguous()
    if config.tie_embeddings:
        tensors.check_tied("lm_head.weight", state_dict["wte.weight"])
        tensors.check_tied("transformer.lm_head.weight", state_dict["wte.weight"])
        state_dict["lm_head.weight"] = state_dict["wte.weight"]
    tensors.check_all_read()
    dtype = tensors.dtypes.pop() if len(tensors.dtypes) == 1 else torch.float32
    return state_dict, str(dtype).removeprefix("torch.")


class TensorReader:
    """The tensors of a Hugging Face folder; it remembers which have not been read."""

    def __init__(self, folder, file_of, opened):
        self.folder = folder
        self.file_of = file_of
        self.opened = opened
        self.dtypes = set()  # of those that have been read
        self.unread = {name for name in file_of if not name.endswith(NON_WEIGHTS)}

    def __contains__(self, name):
        return name in self.file_of

    def read(self, name, shape, transposed=False):
        """A tensor as float32 (rows, ...).

        Raises CheckpointError unless it is there with this shape.
        """
        if name not in self:
            raise CheckpointError(f"{self.folder} has no tensor {name}, which config.json asks for")
        tensor = self.read_unchecked(name)
        if transposed and tensor.dim() == 2:
            tensor = tensor.t()
        if tensor.shape != shape:
            raise CheckpointError(
                f"{self.folder}: {name} has shape {tuple(tensor.shape)}; "
                f"config.json implies {shape}"
            )
        self.unread.discard(name)
        return tensor

    def read_unchecked(self, name):
        file = self.file_of[name]
        opened = self.opened[file]
        try:
            stored_name = name if name in opened.keys() else name.removeprefix("transformer.")  # noqa: SIM118
            tensor = opened.get_tensor(stored_name)
        except Exception as error:
            raise CheckpointError(f"{file}: the tensor {name} cannot be read: {error}") from error
        if tensor.dtype not in DTYPES:
            raise CheckpointError(
                f"{file}: the tensor {name} is {tensor.dtype}; quantized weights are not supported"
            )
        self.dtypes.add(tensor.dtype)
        return tensor.float()

    def check_tied(self, name, embedding):
        """Raise CheckpointError if a tensor that should be the token embedding is another."""
        if name not in self.unread:
            return
        if not torch.equal(self.read_unchecked(name), embedding):
            raise CheckpointError(
                f"{self.folder}: {name} differs from the "
                "token embedding, to which config.json ties it"
            )
        self.unread.discard(name)

    def check_all_read(self):
        if self.unread:
            names = ", ".join(sorted(self.unread)[:5])
            raise CheckpointError(
                f"{self.folder} has tensors that this architecture lacks: {names}"
            )
