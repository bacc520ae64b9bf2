"""Small random models of transformers, and comparison with ours."""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

from seugpt.checkpoint.pretrained import build_from_checkpoint, load_pretrained
from tests.helpers import perturb

CHARS = "\n abcdefgh"
GPT2 = {"n_layer": 1, "n_head": 2, "n_embd": 8, "vocab_size": 11, "n_positions": 16}
LLAMA = {
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "hidden_size": 8,
    "intermediate_size": 12,
    "vocab_size": 11,
    "max_position_embeddings": 16,
}


def make_gpt2(tied=True, **changes):
    shape = {**GPT2, **changes}
    config = transformers.GPT2Config(
        **shape, tie_word_embeddings=tied, bos_token_id=0, eos_token_id=0
    )
    return perturb(transformers.GPT2LMHeadModel(config))


def make_llama(tied=True, **changes):
    config = transformers.LlamaConfig(
        **{**LLAMA, **changes},
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )
    return perturb(transformers.LlamaForCausalLM(config))


@torch.no_grad()
def check_logits(theirs, folder):
    """Load a folder and compare its logits with those of `theirs`. Returns our model."""
    ours, notes = build_from_checkpoint(load_pretrained(str(folder)))
    assert notes == []
    idx = torch.randint(ours.config.vocab_size, (3, ours.config.block_size))
    torch.testing.assert_close(ours.eval()(idx, idx)[0], theirs(idx).logits, atol=1e-4, rtol=0)
    return ours


def edit_json(path, **values):
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **values}), encoding="utf-8")


def edit_tensors(folder, **changes):
    path = Path(folder, "model.safetensors")
    save_file({**load_file(path), **changes}, path)
