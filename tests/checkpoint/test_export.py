"""Exported models: transformers computes the same logits, and we load the same weights again."""

import json
import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers

import export
import prepare
import sample
import train
from seugpt.checkpoint.config_json import CLASSES
from seugpt.checkpoint.pretrained import load_for_inference, load_pretrained
from seugpt.checkpoint.storage import load_checkpoint, save_checkpoint
from seugpt.data.tokenizer import CharTokenizer, load_tokenizer, read_spec, train_bpe
from tests.external_tokenizers import llama2_like
from tests.helpers import (
    LLAMA,
    gpt2_or_skip,
    load_with_transformers,
    logged_values,
    save_perturbed_gpt,
)

TEXT = "O menino viu a maçã — e não comeu.\n\n\tSíssifo disse: 'não!' 12345  fim\n" * 20
ARCHITECTURES = {
    "gpt2": {"bias": True},
    "gpt2 untied, relu2": {"bias": True, "tie_embeddings": False, "mlp": "relu2"},
    "gpt2 without biases": {"mlp": "gelu_exact", "mlp_hidden": 50},
    "llama": {**LLAMA, "n_kv_head": 2},
    "llama, longer contexts": {**LLAMA, "n_kv_head": 2, "rope_scaling": (2.0,)},
    "llama without qkv_bias": {**LLAMA, "bias": True, "qkv_bias": False},
    "qwen3": {**LLAMA, "n_kv_head": 2, "qk_norm": True, "head_dim": 10},
    "llama untied, biases": {**LLAMA, "bias": True, "tie_embeddings": False, "mlp_hidden": 50},
}
EXPORTS = [
    *(("char", name) for name in ARCHITECTURES),
    ("bpe", "gpt2"),
    ("bpe", "llama"),
    ("gpt2", "gpt2"),
]
CHARS = {"kind": "char", "chars": "abc"}


def make_spec(kind):
    """The spec of a tokenizer that can encode TEXT."""
    if kind == "gpt2":
        return gpt2_or_skip().spec()
    if kind == "bpe":
        return train_bpe([TEXT], vocab_size=300).spec()
    return CharTokenizer("".join(sorted(set(TEXT)))).spec()


@pytest.fixture(scope="module", params=EXPORTS, ids=lambda export: f"{export[1]}, {export[0]}")
def exported_once(request, tmp_path_factory):
    """(a folder with a model in out/ and its export in hf/, tokenizer spec, architecture)."""
    kind, name = request.param
    spec = make_spec(kind)
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_perturbed_gpt(spec, block_size=64, **ARCHITECTURES[name])
        export.main(["--out_dir=out", "--to=hf"])
    return folder, spec, name


@pytest.fixture
def exported(exported_once, workspace):
    """(tokenizer spec, architecture) of the model in out/ and its export in hf/."""
    folder, spec, name = exported_once
    shutil.copytree(folder, workspace, dirs_exist_ok=True)
    return spec, name


@torch.no_grad()
def test_transformers_gives_the_same_tokens_logits_and_greedy_text(exported, capsys):
    """The text comes from its pipeline on one side, from sample.py on the other."""
    _, name = exported
    theirs, their_tokenizer = load_with_transformers("hf")
    assert type(theirs).__name__ == CLASSES[re.match(r"\w+", name)[0]]
    # GPT-2's own id would exceed a small vocabulary.
    assert theirs.config.eos_token_id in (None, their_tokenizer.eos_token_id)

    ours, tokenizer, _ = load_for_inference("out")
    ids = tokenizer.encode(TEXT).tolist()
    assert their_tokenizer(TEXT)["input_ids"] == ids
    assert their_tokenizer.decode(ids) == TEXT
    idx = torch.tensor(ids[: 64 * (len(ids) // 64)]).view(-1, 64)
    torch.testing.assert_close(theirs(idx).logits, ours(idx, idx)[0], atol=1e-4, rtol=0)

    pipeline = transformers.pipeline("text-generation", model="hf", device="cpu")
    [generated] = pipeline("O menino", max_new_tokens=30, do_sample=False)
    options = ["--device=cpu", "--temperature=0", "--num_samples=1", "--max_new_tokens=30"]
    capsys.readouterr()
    sample.main([*options, "--start=O menino"])
    assert capsys.readouterr().out.startswith(f"{generated['generated_text']}\n---")


def test_exporting_an_exported_model_writes_the_same_files(exported):
    """Its weights are those of the original checkpoint, bit for bit."""
    spec, _ = exported
    export.main(["--init_from=hf", "--to=second"])
    first = load_pretrained("hf")
    second = load_pretrained("second")
    assert first["tokenizer"] == second["tokenizer"] == spec
    assert first["model_config"] == second["model_config"]
    assert first["model"].keys() == second["model"].keys()
    for file in set(Path("hf").iterdir()) - {Path("hf/README.md")}:
        assert file.read_bytes() == Path("second", file.name).read_bytes(), file.name
    for name, tensor in load_checkpoint("out/best.pt")["model"].items():
        assert torch.equal(first["model"][name], tensor), name
        assert torch.equal(second["model"][name], tensor), name


def test_exported_files_have_the_usual_permissions(workspace):
    """safetensors made its file readable only by its owner."""
    save_perturbed_gpt(CHARS)
    export.main(["--out_dir=out", "--to=hf"])
    assert len({path.stat().st_mode for path in Path("hf").iterdir()}) == 1


def test_hugging_face_tokenizer_is_exported_unchanged(workspace):
    """With its end-of-text token, and the begin-of-text token in front of a prompt."""
    text = llama2_like().to_str()
    save_perturbed_gpt({"kind": "huggingface", "json": text}, block_size=64)
    export.main(["--out_dir=out", "--to=hf"])
    theirs, their_tokenizer = load_with_transformers("hf")
    assert Path("hf/tokenizer.json").read_text(encoding="utf-8") == text
    assert their_tokenizer.eos_token == "</s>"
    assert theirs.config.eos_token_id == their_tokenizer.eos_token_id == 2
    ids = load_tokenizer(read_spec("hf")).encode_prompt("o menino").tolist()
    assert their_tokenizer("o menino")["input_ids"] == ids


SPECIAL = {
    "tokenizer_config.json": {
        "bos_token": {"content": "<s>", "lstrip": False},
        "eos_token": "</s>",
        "pad_token": "<unk>",
        "chat_template": "{% for message in messages %}[{{ message.content }}]{% endfor %}",
    },
    "generation_config.json": {"eos_token_id": [2, 3]},
}


def test_special_tokens_and_chat_template_are_those_of_the_source(workspace):
    """Begin and end of a text, padding, and a second token that ends a reply, as Llama 3 has."""
    text = llama2_like().to_str()
    save_perturbed_gpt({"kind": "huggingface", "json": text}, block_size=64)
    export.main(["--out_dir=out", "--to=first"])
    for file, content in SPECIAL.items():
        Path("first", file).write_text(json.dumps(content), encoding="utf-8")
    export.main(["--init_from=first", "--to=second"])
    theirs, tokenizer = load_with_transformers("second")
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<s>",
        "</s>",
        "<unk>",
    )
    assert tokenizer.apply_chat_template([{"content": "a"}], tokenize=False) == "[a]"
    generation = theirs.generation_config
    ids = (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id)
    assert ids == (1, [2, 3], 0)
    config = json.loads(Path("second/config.json").read_text(encoding="utf-8"))
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == ids


def test_fine_tuned_model_keeps_the_special_tokens(workspace, monkeypatch):
    """They travel with the tokenizer, through data/NAME/meta.json and the checkpoint."""
    text = llama2_like().to_str()
    save_perturbed_gpt({"kind": "huggingface", "json": text}, block_size=16)
    export.main(["--out_dir=out", "--to=hf"])
    for file, content in SPECIAL.items():
        Path("hf", file).write_text(json.dumps(content), encoding="utf-8")
    Path("text.txt").write_text("o menino viu a casa\n" * 200, encoding="utf-8")
    prepare.main(["mine", "--input=text.txt", "--tokenizer=hf"])
    options = ["--dataset=mine", "--init_from=hf", "--max_iters=1", "--eval_iters=1"]
    train.main([*options, "--batch_size=2", "--device=cpu", "--compile=False", "--out_dir=tuned"])
    export.main(["--out_dir=tuned", "--to=second"])
    first, second = (load_tokenizer(read_spec(folder)).special for folder in ("hf", "second"))
    assert second == first
    assert first.eos[0] == "</s>"
    assert first.chat_template


def test_dtype_of_the_weights_is_that_of_the_source_or_as_asked(workspace):
    save_perturbed_gpt(CHARS)
    sizes = {}
    for target, options in {
        "plain": ["--out_dir=out"],
        "half": ["--out_dir=out", "--dtype=bfloat16"],
        "again": ["--init_from=half"],
        "wide": ["--init_from=half", "--dtype=float32"],
    }.items():
        export.main([*options, f"--to={target}"])
        tensors = safetensors.torch.load_file(f"{target}/model.safetensors")
        [sizes[target]] = {str(tensor.dtype) for tensor in tensors.values()}
        config = json.loads(Path(target, "config.json").read_text(encoding="utf-8"))
        assert f"torch.{config['dtype']}" == sizes[target]
    assert sizes == {
        "plain": "torch.float32",
        "half": "torch.bfloat16",
        "again": "torch.bfloat16",
        "wide": "torch.float32",
    }


@pytest.mark.parametrize("kind", ["bpe", "gpt2"])
def test_special_tokens_of_a_gpt2_tokenizer_are_kept(workspace, kind):
    """Its vocabulary is ours, but its chat template and padding were lost."""
    save_perturbed_gpt(make_spec(kind), block_size=64)
    export.main(["--out_dir=out", "--to=first"])
    path = Path("first/tokenizer_config.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    template = "{{ messages[0].content }}"
    content |= {"pad_token": "<|endoftext|>", "chat_template": template}
    path.write_text(json.dumps(content), encoding="utf-8")
    export.main(["--init_from=first", "--to=second"])
    _, tokenizer = load_with_transformers("second")
    assert tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.chat_template == template
    assert load_pretrained("second")["tokenizer"]["kind"] == kind


def test_weight_beyond_float16_is_refused(workspace, refused):
    model = save_perturbed_gpt(CHARS)
    ckpt = torch.load("out/best.pt", weights_only=True)
    with torch.no_grad():
        model.ln_f.weight[0] = 1e5
    save_checkpoint("out/best.pt", {**ckpt, "model": model.state_dict()})
    message = refused(export.main, "--out_dir=out", "--to=hf", "--dtype=float16")
    assert "dtype=float16 ends at 65,504, and ln_f.weight has a weight of 100,000" in message
    export.main(["--out_dir=out", "--to=hf", "--dtype=bfloat16"])


@pytest.mark.parametrize("file", ["tokenizer_config.json", "generation_config.json"])
def test_damaged_file_of_special_tokens_is_named(workspace, refused, file):
    """A stray comma silently took the chat template and the end of a text away."""
    save_perturbed_gpt({"kind": "huggingface", "json": llama2_like().to_str()}, block_size=64)
    export.main(["--out_dir=out", "--to=hf"])
    Path("hf", file).write_text('{"eos_token": "</s>",}', encoding="utf-8")
    assert f"cannot read {Path('hf', file)}" in refused(sample.main, "--init_from=hf")


def test_export_into_the_current_folder_and_a_link(workspace, monkeypatch):
    save_perturbed_gpt(CHARS)
    Path("empty").mkdir()
    Path("link").symlink_to("empty")
    export.main(["--out_dir=out", "--to=link"])
    Path("here").mkdir()
    monkeypatch.chdir("here")
    export.main(["--out_dir=../out", "--to=."])
    assert {path.name for path in Path().iterdir()} == {p.name for p in Path("../empty").iterdir()}
    assert Path("README.md").read_text(encoding="utf-8").count("# here\n") == 1


def test_model_card_says_how_the_model_was_trained(trained):
    ckpt = load_checkpoint("out/best.pt")
    export.main(["--out_dir=out", "--to=hf"])
    text = Path("hf/README.md").read_text(encoding="utf-8")
    assert text.startswith("---\nlibrary_name: transformers\n")
    assert "| Data | tiny |" in text
    assert f"{ckpt['val_loss']:.4f} nats per token" in text
    assert f"{ckpt['step']:,} steps; learning_rate=" in text
    assert "python sample.py --init_from=hf" in text
    export.main(["--init_from=hf", "--to=second"])
    assert "| Weights | from hf;" in Path("second/README.md").read_text(encoding="utf-8")


def test_exported_model_can_be_fine_tuned(trained, run):
    """At step 0 its validation loss is that of the checkpoint."""
    best = load_checkpoint("out/best.pt")["val_loss"]
    export.main(["--out_dir=out", "--to=hf"])
    options = run(out_dir="tuned", init_from="hf", max_iters=1)
    train.main([each for each in options if not each.startswith("--n_")])
    assert logged_values("tuned", "val_loss")[0] == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_transformers_never_generates_padding_tokens(workspace, kind):
    """Even if the model prefers rows of the vocabulary that belong to no token."""
    spec = make_spec(kind)
    V = load_tokenizer(spec).vocab_size
    model = save_perturbed_gpt(spec, block_size=64, padding=5, tie_embeddings=False)
    ckpt = torch.load("out/best.pt", weights_only=True)
    with torch.no_grad():  # so that padding often has the largest logit
        model.lm_head.weight[V:] = 10 * model.lm_head.weight[V - 1]
    save_checkpoint("out/best.pt", {**ckpt, "model": model.state_dict()})
    export.main(["--out_dir=out", "--to=hf"])
    theirs, _ = load_with_transformers("hf")
    for seed in range(5):
        torch.manual_seed(seed)
        assert theirs.generate(torch.tensor([[1, 2]]), max_new_tokens=20).max() < V


@pytest.mark.parametrize(
    "architecture, closest",
    [
        ({"position": "rope"}, "GPT2LMHeadModel, has no position=rope"),
        ({"n_kv_head": 1}, "GPT2LMHeadModel, has no n_kv_head=1"),
        ({"head_dim": 5}, "GPT2LMHeadModel, has no head_dim=5"),
        ({**LLAMA, "bias": True, "qk_norm": True}, "Qwen3ForCausalLM, has no bias=True"),
        ({**LLAMA, "logit_softcap": 30.0}, "LlamaForCausalLM, has no logit_softcap=30.0"),
        (
            {"qk_norm": True, "logit_softcap": 30.0},
            "GPT2LMHeadModel, has no qk_norm=True, logit_softcap=30.0",
        ),
    ],
)
def test_architecture_that_transformers_lacks_is_refused_by_name(
    workspace, refused, architecture, closest
):
    """The message lists what the closest class lacks."""
    save_perturbed_gpt(CHARS, **architecture)
    assert refused(export.main, "--out_dir=out", "--to=hf").strip().endswith(closest)
    assert not Path("hf").exists()


def test_full_disk_is_one_message_and_leaves_no_files(workspace, refused, monkeypatch):
    """SafetensorError is no OSError, so there was a traceback, and an empty folder."""
    save_perturbed_gpt(CHARS)

    def fail_with_full_disk(*args):
        raise safetensors.SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fail_with_full_disk)
    message = refused(export.main, "--out_dir=out", "--to=hf")
    assert str(Path("hf/model.safetensors")) in message
    assert "No space left" in message
    assert list(Path().glob("*hf*")) == []


@pytest.mark.parametrize("target_exists", [False, True])
def test_an_export_that_was_killed_can_be_repeated(workspace, monkeypatch, target_exists):
    """It refused the folder that it had itself left, half full."""
    save_perturbed_gpt(CHARS)
    if target_exists:
        Path("hf").mkdir()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", lambda self, target: (_ for _ in ()).throw(KeyboardInterrupt))
        export.export("out", Path("hf"))
    assert list(Path().glob(".hf.partial/*"))
    assert not Path("hf").exists() or not any(Path("hf").iterdir())
    export.main(["--out_dir=out", "--to=hf"])
    assert {path.name for path in Path("hf").iterdir()} >= {"config.json", "model.safetensors"}
    assert list(Path().glob(".hf*")) == []


def test_bad_target_is_refused_and_nothing_is_overwritten(workspace, refused):
    """A missing target, a folder with a model, a run's folder, a file; or no checkpoint at all."""
    assert "to= is missing" in refused(export.main, "--out_dir=out")
    assert "no checkpoint out" in refused(export.main, "--out_dir=out", "--to=hf")
    save_perturbed_gpt(CHARS)
    Path("taken").mkdir()
    Path("taken/config.json").write_text("mine")
    message = refused(export.main, "--out_dir=out", "--to=taken")
    assert "to=taken already exists" in message
    assert [path.name for path in Path("taken").iterdir()] == ["config.json"]
    assert "to=out already exists" in refused(export.main, "--out_dir=out", "--to=out")
    Path("file").write_text("mine")
    assert "file" in refused(export.main, "--out_dir=out", "--to=file")
    assert Path("file").read_text() == "mine"
