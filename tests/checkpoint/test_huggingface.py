"""Models from Hugging Face: the same logits as transformers', and every folder that is not sound refused by name."""

import contextlib
import hashlib
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers: these tests need no network
import transformers

import sample
import train
from seugpt.checkpoint import huggingface
from seugpt.checkpoint import pretrained as weights
from seugpt.data.tokenizer import CharTokenizer
from tests.helpers import ROOT, perturb

CHARS = "\n abcdefgh"

GPT2_SIZES = {  # layers, heads, width, vocabulary, context, inner width
    "small": (1, 2, 8, 11, 16, None, "gelu_new"), "odd": (3, 5, 35, 97, 13, 50, "gelu"),
    "one head": (2, 1, 6, 50, 9, 7, "relu2"),
}  # fmt: skip
LLAMA_SIZES = {  # ..., heads of keys and values, attention_bias, mlp_bias
    "small": (1, 2, 8, 11, 16, 12, 2, False, False), "odd, gqa": (3, 6, 36, 97, 13, 50, 2, True, False),
    "mqa": (2, 4, 24, 50, 9, 31, 1, True, True),
}  # fmt: skip


def make_gpt2(
    n_layer, n_head, n_embd, vocab_size, n_positions, n_inner=None, activation="gelu_new", tied=True
):
    config = transformers.GPT2Config(
        n_layer=n_layer, n_head=n_head, n_embd=n_embd, vocab_size=vocab_size, n_positions=n_positions, n_inner=n_inner,
        activation_function=activation, tie_word_embeddings=tied, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return perturb(transformers.GPT2LMHeadModel(config))


def make_llama(
    n_layer,
    n_head,
    n_embd,
    vocab_size,
    n_positions,
    inner,
    n_kv_head,
    bias=False,
    mlp_bias=False,
    tied=True,
):
    config = transformers.LlamaConfig(
        num_hidden_layers=n_layer, num_attention_heads=n_head, hidden_size=n_embd, vocab_size=vocab_size,
        max_position_embeddings=n_positions, intermediate_size=inner, num_key_value_heads=n_kv_head,
        attention_bias=bias, mlp_bias=mlp_bias, tie_word_embeddings=tied, bos_token_id=0, eos_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )  # fmt: skip
    return perturb(transformers.LlamaForCausalLM(config))


@torch.no_grad()
def assert_same_logits(theirs, ours):
    idx = torch.randint(ours.config.vocab_size, (3, ours.config.block_size))
    torch.testing.assert_close(ours.eval()(idx, idx)[0], theirs(idx).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("make, size", [(make_gpt2, s) for s in GPT2_SIZES.values()]
                         + [(make_llama, s) for s in LLAMA_SIZES.values()],
                         ids=[f"gpt2 {n}" for n in GPT2_SIZES] + [f"llama {n}" for n in LLAMA_SIZES])  # fmt: skip
def test_logits_equal_those_of_transformers(tmp_path, make, size, tied):
    theirs = make(*size, tied=tied)
    theirs.save_pretrained(tmp_path)
    ours, report = weights.build(weights.load(str(tmp_path)))
    assert report == [] and ours.config.tie_embeddings is tied
    assert_same_logits(theirs, ours)


@pytest.fixture
def folder(workspace):
    """hf: a Llama of the vocabulary CHARS, with its tokenizer."""
    make_llama(2, 4, 16, len(CHARS), 32, 24, 2).save_pretrained("hf")
    Path("hf/tokenizer.json").write_text(CharTokenizer(CHARS).json(), encoding="utf-8")
    return Path("hf")


def change(path, **values):
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **values}), encoding="utf-8")


def test_shards_are_one_model(tmp_path):
    theirs = make_llama(3, 4, 64, 97, 16, 96, 2)
    theirs.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same_logits(theirs, weights.build(weights.load(str(tmp_path)))[0])


def test_names_without_a_prefix_and_masks_are_the_hubs_gpt2(tmp_path):
    theirs = make_gpt2(2, 2, 8, 11, 16)
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    bare |= {f"h.{i}.attn.bias": torch.ones(1, 1, 16, 16).tril() for i in range(2)}
    save_file(bare, tmp_path / "model.safetensors", {"format": "pt"})
    assert_same_logits(theirs, weights.build(weights.load(str(tmp_path)))[0])


def test_half_precision_is_read_exactly(tmp_path):
    make_llama(*LLAMA_SIZES["mqa"]).to(torch.bfloat16).save_pretrained(tmp_path)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert_same_logits(theirs, weights.build(weights.load(str(tmp_path)))[0])


def test_the_old_forms_of_rope_in_config_json(folder):
    change(folder / "config.json", rope_parameters=None, rope_theta=500.0, rope_scaling=None)
    assert weights.config_of(weights.load("hf")).rope_base == 500.0
    change(folder / "config.json", rope_theta=None)
    assert weights.config_of(weights.load("hf")).rope_base == 10_000.0


@pytest.mark.parametrize("make, size, tied", [(make_gpt2, GPT2_SIZES["small"], True),
                                              (make_llama, LLAMA_SIZES["small"], False)])  # fmt: skip
def test_what_config_json_leaves_out_is_transformers_default(tmp_path, make, size, tied):
    make(*size, tied=tied).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    optional = ("tie_word_embeddings", "num_key_value_heads", "hidden_act", "activation_function", "layer_norm_epsilon",
                "rms_norm_eps", "head_dim", "attention_bias", "mlp_bias")  # fmt: skip
    path.write_text(
        json.dumps({key: value for key, value in content.items() if key not in optional}),
        encoding="utf-8",
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert_same_logits(theirs, weights.build(weights.load(str(tmp_path)))[0])


CONFIG_MISTAKES = [
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "rope_parameters=.*yarn"),
    ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling=.*linear"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "factor": 4.0}}, "rope_parameters=.*factor"),
    ({"sliding_window": 4096}, "sliding_window=4096"),
    ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ({"head_dim": 8}, "head_dim=8"),
    ({"pretraining_tp": 2}, "pretraining_tp=2"),
    ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4}"),
    ({"model_type": "bert"}, "model_type='bert' is not supported"),
    ({"model_type": None}, "model_type=None is not supported"),
    ({"hidden_size": None}, "no number for hidden_size"),
    ({"hidden_size": "big"}, "no number for hidden_size"),
    ({"num_key_value_heads": 3}, "n_kv_head=3 must divide n_head=4"),
    ({"vocab_size": 8}, "vocab_size=8 and tokenizer.json has 10 tokens"),
    ({"vocab_size": 1000}, "vocab_size=1,000 and tokenizer.json has 10 tokens"),
    ({"vocab_size": 11}, r"model.embed_tokens.weight is \(10, 16\); config.json makes it \(11, 16\)"),
    ({"num_hidden_layers": 3}, "no tensor model.layers.2.input_layernorm.weight"),
    ({"num_hidden_layers": 1}, "tensors without a place here: model.layers.1"),
    ({"rms_norm_eps": -1}, "norm_eps=-1.0 must be above 0"),
    ({"rms_norm_eps": float("nan")}, "config.json is no JSON: NaN is no number"),
    ({"attention_bias": True}, "no tensor model.layers.0.self_attn.q_proj.bias"),
    ({"tie_word_embeddings": None}, "tie_embeddings=None expects True or False"),
    ({"tie_word_embeddings": "x"}, "tie_embeddings='x' expects True or False"),
    ({"num_attention_heads": 0}, "cannot be used"),
    ({"num_attention_heads": True}, "no number for num_attention_heads"),
    ({"num_hidden_layers": 2**31}, "2,147,483,648 layers; there are"),
    ({"hidden_size": 2**40, "head_dim": None}, "no model can be so large|config.json makes it"),
    ({"rope_parameters": [1]}, "cannot be used"),
    ({"hidden_act": {"a": 1}}, "hidden_act={'a': 1}"),
    ({"model_type": ["llama"]}, "model_type=.'llama'. is not supported"),
    ({"model_type": "mistral"}, "sliding_window='4096, which transformers takes"),
]  # fmt: skip


@pytest.mark.parametrize(
    "values, words", CONFIG_MISTAKES, ids=[words for _, words in CONFIG_MISTAKES]
)
def test_what_config_json_asks_for_and_is_not_there_is_refused_by_name(
    folder, refused, values, words
):
    change(folder / "config.json", **values)
    message = refused(sample.main, "--init_from=hf", "--device=cpu")
    assert re.search(words, message), message


def test_the_default_base_of_rope_may_be_left_out(folder):
    change(folder / "config.json", rope_parameters={"rope_type": "default"})
    assert weights.config_of(weights.load("hf")).rope_base == 10_000.0


def test_a_head_that_is_not_the_embedding_is_not_dropped_in_silence(folder, refused):
    tensors = load_file(folder / "model.safetensors")
    tied = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(tied, folder / "model.safetensors")
    weights.load("hf")
    save_file({**tied, "lm_head.weight": tied["lm_head.weight"] + 1}, folder / "model.safetensors")
    assert "lm_head.weight differs from the token embedding" in refused(
        sample.main, "--init_from=hf"
    )


def test_a_bias_that_is_missing_is_not_zero_in_silence(workspace, refused):
    make_gpt2(1, 2, 8, 11, 16).save_pretrained("hf")
    tensors = load_file("hf/model.safetensors")
    del tensors["transformer.ln_f.bias"]
    save_file(tensors, "hf/model.safetensors")
    assert "no tensor transformer.ln_f.bias" in refused(sample.main, "--init_from=hf")


def test_quantized_weights_are_refused(folder, refused):
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {**tensors, "model.norm.weight": tensors["model.norm.weight"].to(torch.int8)},
        folder / "model.safetensors",
    )
    assert "model.norm.weight is torch.int8; quantized" in refused(sample.main, "--init_from=hf")


def test_gpt2s_own_variants_are_refused_by_name(workspace, refused):
    make_gpt2(1, 2, 8, 11, 16).save_pretrained("hf")
    for key, value in {"scale_attn_by_inverse_layer_idx": True, "activation_function": "silu",
                       "add_cross_attention": True, "reorder_and_upcast_attn": True}.items():  # fmt: skip
        before = Path("hf/config.json").read_text(encoding="utf-8")
        change(Path("hf/config.json"), **{key: value})
        assert f"{key}={value!r}" in refused(sample.main, "--init_from=hf")
        Path("hf/config.json").write_text(before, encoding="utf-8")


def damage(folder, how):
    model, config = folder / "model.safetensors", folder / "config.json"
    if how == "truncated":
        model.write_bytes(model.read_bytes()[:-100])
    elif how == "empty":
        model.write_bytes(b"")
    elif how == "text":
        model.write_text("version https://git-lfs.github.com/spec/v1")
    elif how == "missing":
        model.unlink()
    elif how == "pickle":
        model.rename(folder / "pytorch_model.bin")
    elif how == "no json":
        config.write_text("{")
    elif how == "a list":
        config.write_text("[]")
    elif how == "tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    elif how == "extra tensor":
        save_file(
            {**load_file(model), "model.layers.0.self_attn.q_norm.weight": torch.ones(4)}, model
        )
    else:
        model.rename(folder / "model-1.safetensors")
        tensors = load_file(folder / "model-1.safetensors")
        file = {"missing shard": "model-2.safetensors", "outside": "../model-1.safetensors",
                "absolute": "/etc/passwd", "backslash": "..\\model.safetensors", "no map": None}[how]  # fmt: skip
        places = dict.fromkeys(tensors, file)
        index = {"weight_map": places if file else []}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("how, words", [
    ("truncated", "model.safetensors cannot be read as safetensors"), ("empty", "cannot be read as safetensors"),
    ("text", "cannot be read as safetensors"), ("missing", "has no model.safetensors"),
    ("pickle", "has no model.safetensors; other forms, such as pickles, are never read"),
    ("no json", "config.json is no JSON"), ("a list", "config.json holds no JSON object"),
    ("tokenizer", "tokenizer.json"), ("extra tensor", "without a place here: model.layers.0.self_attn.q_norm.weight"),
    ("missing shard", "model-2.safetensors is missing"), ("outside", "'../model-1.safetensors', which is not a plain"),
    ("absolute", "'/etc/passwd', which is not a plain"), ("backslash", "which is not a plain name"),
    ("no map", "has no weight_map"),
])  # fmt: skip
def test_damage_is_one_message(folder, refused, how, words):
    damage(folder, how)
    assert words in refused(sample.main, "--init_from=hf", "--device=cpu")


def test_without_a_tokenizer_it_trains_on_the_data_sets_tokens_and_cannot_speak(
    tiny, refused, run, capsys
):
    make_llama(1, 2, 8, 14, 32, 12, 1).save_pretrained("hf")  # 14 characters has data/tiny
    arguments = [a for a in run(init_from="hf", max_iters=1) if not a.startswith("--n_")]
    train.main(arguments)
    assert (
        "hf: no tokenizer.json, so the data set's own tokens are taken" in capsys.readouterr().out
    )
    assert "hf has no tokenizer.json" in refused(sample.main, "--init_from=hf")


@pytest.mark.parametrize(
    "package, source", [("safetensors", "hf"), ("huggingface_hub", "gpt2"), ("tokenizers", "hf")]
)
def test_a_missing_package_is_named_with_its_command(folder, refused, monkeypatch, package, source):
    for name in list(sys.modules):
        if name.split(".")[0] == package:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # import raises ImportError
    if package == "tokenizers":
        change(
            folder / "tokenizer.json", normalizer={"type": "Lowercase"}
        )  # one that only the package can run
    assert f"python -m pip install {package}==" in refused(sample.main, f"--init_from={source}")


def test_the_installed_versions_are_those_that_the_messages_name():
    text = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8")
    sources = [
        (ROOT / name).read_text(encoding="utf-8")
        for name in ("seugpt/checkpoint/huggingface.py", "seugpt/data/tokenizer_json.py")
    ]
    for package in ("safetensors", "huggingface_hub", "tokenizers"):
        version = next(
            line.split("==")[1] for line in text.splitlines() if line.startswith(package + "==")
        )
        assert any(version in source for source in sources), package


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of huggingface.co as a download needs; `plan` has the faults that model.safetensors meets in turn."""

    plan, half_sent, go_on = [], threading.Semaphore(0), threading.Event()

    def do_GET(self):
        self.reply(True)

    def do_HEAD(self):
        self.reply(False)

    def reply(self, with_body):
        prefix = "/openai-community/gpt2/resolve/main/"
        path = Path("served", self.path.removeprefix(prefix))
        body = path.read_bytes() if self.path.startswith(prefix) and path.is_file() else b""
        step = (
            self.plan.pop(0) if with_body and path.suffix == ".safetensors" and self.plan else 200
        )
        self.send_response((step if isinstance(step, int) else 200) if body else 404)
        etag = hashlib.sha256(body).hexdigest()  # as of large files
        for name, value in {
            "Content-Length": len(body),
            "ETag": f'"{etag}"',
            "X-Repo-Commit": "a" * 40,
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        if with_body and not isinstance(step, str):
            self.wfile.write(body if step == 200 else b"")
        elif with_body:
            self.wfile.write(body[:1000] if step != "other" else b"?" * len(body))
            if step == "stall":
                self.half_sent.release()
                self.go_on.wait(60)
                self.wfile.write(body[1000:])

    def handle(self):
        with contextlib.suppress(ConnectionError):  # the client was killed, or has heard enough
            super().handle()

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(workspace):
    """The address of a hub that has a small gpt2."""
    make_gpt2(1, 2, 8, len(CHARS), 16).save_pretrained("served")
    Path("served/tokenizer.json").write_text(CharTokenizer(CHARS).json(), encoding="utf-8")
    Hub.plan, Hub.half_sent, Hub.go_on = [], threading.Semaphore(0), threading.Event()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        Hub.go_on.set()
        server.shutdown()


def start_from_the_hub(endpoint, *words):
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(Path.cwd() / "home"), "HF_HUB_OFFLINE": "0",
                   "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(ROOT)}  # fmt: skip
    return subprocess.Popen([sys.executable, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, encoding="utf-8")  # fmt: skip


def sample_from_the_hub(endpoint):
    words = [
        "--init_from=gpt2",
        "--device=cpu",
        "--num_samples=1",
        "--max_new_tokens=5",
        "--start=abc",
    ]
    process = start_from_the_hub(endpoint, ROOT / "sample.py", *words)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def fetch_from_the_hub(endpoint):
    """The download alone, which is sooner there."""
    code = "from seugpt.checkpoint import huggingface; from seugpt.cli.command import command\nwith command():\n"
    return start_from_the_hub(endpoint, "-c", code + "    huggingface.download('gpt2')")


def held():
    """What huggingface_hub's cache has under the final names: {name: bytes}."""
    return {path.name: path.read_bytes() for path in Path("home").rglob("snapshots/*/*")}


def test_a_name_at_the_hub_is_fetched_once(hub):
    first = sample_from_the_hub(hub)
    assert first.returncode == 0 and first.stdout.startswith("abc"), first.stderr
    again = sample_from_the_hub("http://127.0.0.1:9")  # nobody listens there
    assert again.returncode == 0 and again.stdout == first.stdout, again.stderr


def test_a_hub_that_cannot_be_reached_is_one_message(workspace):
    result = sample_from_the_hub("http://127.0.0.1:9")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert (
        last.startswith("sample.py: cannot fetch openai-community/gpt2 (")
        and "--init_from=FOLDER" in last
    )


def test_a_hub_that_stumbles_is_asked_again(hub):
    Hub.plan = [500, "short"]
    process = fetch_from_the_hub(hub)
    assert process.communicate(timeout=100) and process.returncode == 0
    assert Hub.plan == [] and held() == {path.name: path.read_bytes() for path in Path("served").iterdir()
                                         if path.name in huggingface.FILES}  # fmt: skip


def test_a_file_that_the_hub_lacks_is_one_message(hub):
    Path("served/model.safetensors").unlink()
    process = fetch_from_the_hub(hub)
    last = process.communicate(timeout=100)[1].strip().splitlines()[-1]
    assert (
        process.returncode == 2
        and "--init_from=FOLDER" in last
        and "model.safetensors" not in held()
    )


def test_what_is_not_what_the_hub_has_is_refused_and_fetched_anew(hub):
    """huggingface_hub compares the size alone: the weights were wrong, and would have been for ever."""
    Hub.plan = ["other"]
    process = fetch_from_the_hub(hub)
    last = process.communicate(timeout=100)[1].strip().splitlines()[-1]
    assert process.returncode == 2 and "the sha256 of the model.safetensors that arrived is" in last
    assert "model.safetensors" not in held()
    assert fetch_from_the_hub(hub).wait(100) == 0
    assert held()["model.safetensors"] == Path("served/model.safetensors").read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to send to a process")
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_who_is_stopped_while_fetching_can_begin_again(hub, number):
    Hub.plan = ["stall"]
    process = fetch_from_the_hub(hub)
    assert Hub.half_sent.acquire(timeout=100)
    process.send_signal(getattr(signal, number))
    message = process.communicate(timeout=100)[1]
    assert "Traceback" not in message and "model.safetensors" not in held()
    assert process.returncode == (130 if number == "SIGINT" else -getattr(signal, number))
    assert fetch_from_the_hub(hub).wait(100) == 0
    assert held()["model.safetensors"] == Path("served/model.safetensors").read_bytes()
    assert not list(Path("home").rglob("*.incomplete"))


def test_of_two_who_fetch_one_waits_for_the_other(hub):
    Hub.plan = ["stall"]
    processes = [fetch_from_the_hub(hub) for _ in range(2)]
    assert Hub.half_sent.acquire(timeout=100)
    Hub.go_on.set()
    assert [process.wait(100) for process in processes] == [0, 0]
    assert held()["model.safetensors"] == Path("served/model.safetensors").read_bytes()


def test_the_names_of_the_four_models():
    assert list(huggingface.HUB) == ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]
