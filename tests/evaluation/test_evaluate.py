"""evaluate.py: its numbers against a loop over the tokens, the texts it reads, what it refuses."""

import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate
import export
import prepare
import train
from evaluate import EvaluateConfig
from model import ModelConfig
from seugpt.cli.config_parser import ConfigParser
from seugpt.data.tokenizer import CharTokenizer, load_tokenizer, read_spec
from seugpt.evaluation.loss import sliding_windows
from tests.external_tokenizers import llama2_like
from tests.helpers import (
    BLOCK_SIZE,
    EVAL_ARCHITECTURES,
    EVAL_TEXT,
    ROOT,
    gpt2_or_skip,
    save_perturbed_gpt,
)

SMALL_CHUNK = 10  # characters or bytes
char_and_bpe = pytest.mark.parametrize("eval_spec", ["char", "bpe"], indirect=True)
char_only = pytest.mark.parametrize("eval_spec", ["char"], indirect=True)


def printed(capsys, *argv):
    capsys.readouterr()
    evaluate.main(["--out_dir=out", "--device=cpu", *argv])
    out, err = capsys.readouterr()
    assert err == ""  # no progress bar where stderr is not a terminal
    return out


def results(capsys, *argv):
    """The numbers that evaluate.py prints, {name: number}."""
    out = printed(capsys, *argv)
    counts = re.search(r"([\d,]+) tokens scored, ([\d,]+) bytes, ([\d,]+) characters", out)
    found = dict(zip(("tokens", "bytes", "characters"), counts.groups(), strict=True))
    found["context"] = re.search(r"([\d.]+) on average", out)[1]
    names = "loss|perplexity|bits per byte|bits per character"
    found |= re.findall(rf"^({names}) +(\S+)", out, re.MULTILINE)
    return {name: float(value.replace(",", "")) for name, value in found.items()}


# The numbers


@torch.no_grad()
def loss_of_each_token(model, ids, stride):
    """(nats, context lengths) of all tokens but the first, from one forward pass for each."""
    nats = []
    contexts = []
    for position in range(1, len(ids)):
        # The start of the first window that reaches this token.
        start = max(math.ceil((position - BLOCK_SIZE) / stride), 0) * stride
        logits = model(torch.tensor([ids[start:position]]))[0][0, -1].double().numpy()
        logits -= logits.max()
        nats.append(np.log(np.exp(logits).sum()) - logits[ids[position]])
        contexts.append(position - start)
    return np.array(nats), contexts


@pytest.mark.parametrize(
    "eval_spec, name",
    [("char", "gpt2"), ("char", "llama"), ("char", "other"), ("bpe", "gpt2"), ("gpt2", "llama")],
    indirect=["eval_spec"],
)
def test_all_numbers_equal_those_of_a_loop_over_the_tokens(eval_spec, capsys, name):
    model = save_perturbed_gpt(eval_spec, padding=3, **EVAL_ARCHITECTURES[name])
    tokenizer = load_tokenizer(eval_spec)
    ids = tokenizer.encode(EVAL_TEXT).tolist()
    first = tokenizer.decode_bytes(ids[:1]).decode()  # the first token is not scored
    num_bytes = len(EVAL_TEXT.encode()) - len(first.encode())
    num_chars = len(EVAL_TEXT) - len(first)
    strides = (5, BLOCK_SIZE)
    if eval_spec["kind"] != "gpt2":  # 50,257 logits per token would take seconds
        strides = (1, *strides)
    for stride in strides:
        nats, contexts = loss_of_each_token(model, ids, stride)
        assert min(contexts[BLOCK_SIZE:]) >= BLOCK_SIZE - stride + 1
        found = results(capsys, f"--stride={stride}", "--batch_size=3")
        assert found["tokens"] == len(ids) - 1
        assert found["bytes"] == num_bytes
        assert found["characters"] == num_chars
        assert found["context"] == pytest.approx(np.mean(contexts), abs=0.051)
        bits = nats.sum() / np.log(2)
        assert found["loss"] == pytest.approx(nats.mean(), abs=6e-5)
        assert found["perplexity"] == pytest.approx(np.exp(nats.mean()), rel=1e-4)
        assert found["bits per byte"] == pytest.approx(bits / num_bytes, abs=6e-5)
        assert found["bits per character"] == pytest.approx(bits / num_chars, abs=6e-5)
    assert results(capsys, "--stride=0", "--batch_size=3") == found  # as stride=block_size


@pytest.mark.parametrize("stride", [1, 4, 16])
def test_windows_score_each_token_once_with_enough_context(stride):
    for length in (0, 1, 2, 3, 15, 16, 17, 18, 33, 40):
        boundaries = sorted(np.random.default_rng(length).integers(0, length + 1, size=5))
        chunks = np.split(np.arange(length), boundaries)
        scored = []
        for number, (ids, first) in enumerate(sliding_windows(chunks, BLOCK_SIZE, stride)):
            assert len(ids) <= BLOCK_SIZE + 1
            assert (np.diff(ids) == 1).all()
            targets = ids[first + 1 :].tolist()
            assert 0 < len(targets) <= (stride if number else BLOCK_SIZE)
            if number:
                assert all(target - ids[0] > BLOCK_SIZE - stride for target in targets)
            scored += targets
        assert scored == list(range(1, length))


@char_only
def test_the_context_length_is_printed(eval_spec, capsys):
    save_perturbed_gpt(eval_spec)
    out = printed(capsys, "--stride=1")
    assert f"1 to {BLOCK_SIZE} tokens" in out
    assert f"at least {BLOCK_SIZE}" in out
    assert "at least" not in printed(capsys)
    Path("short.txt").write_text("maçã", encoding="utf-8")
    assert "at least" not in printed(capsys, "--stride=1", "--input=short.txt")


@char_and_bpe
def test_batch_size_and_chunk_size_change_nothing(eval_spec, capsys, monkeypatch):
    save_perturbed_gpt(eval_spec)
    expected = results(capsys, "--stride=7", "--batch_size=1")
    for batch_size in (4, 1000):
        found = results(capsys, "--stride=7", f"--batch_size={batch_size}")
        assert found == pytest.approx(expected, rel=1e-5, abs=1.1e-4)
    monkeypatch.setattr("seugpt.data.shards.CHUNK_TOKENS", 3)
    assert results(capsys, "--stride=7", "--batch_size=1") == expected
    monkeypatch.setattr("seugpt.data.text.CHUNK_BYTES", SMALL_CHUNK)
    monkeypatch.setattr("seugpt.data.text.CHUNK_CHARS", SMALL_CHUNK)
    found = results(capsys, "--stride=7", "--batch_size=1", "--input=val.txt")
    if eval_spec["kind"] == "char":  # BPE encodes a word that is cut in two differently
        assert found == expected
    assert found["bytes"] == pytest.approx(expected["bytes"], abs=2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_loss_equals_the_one_train_logs_for_whole_splits(trained, run, capsys, dtype):
    capsys.readouterr()
    train.main(run(dtype=dtype, init_from="out/best.pt", eval_only=True, eval_iters=0))
    logged = dict(re.findall(r"(train|val) loss ([\d.]+)", capsys.readouterr().out))
    losses = []
    float32_losses = []
    for split in ("train", "val"):
        options = [f"--split={split}", "--batch_size=4"]
        losses.append(results(capsys, *options, f"--dtype={dtype}")["loss"])
        assert losses[-1] == pytest.approx(float(logged[split]), abs=1.1e-4)
        float32_losses.append(results(capsys, *options)["loss"])
    assert (losses == float32_losses) == (dtype == "float32")  # --dtype has an effect


# The text


@char_and_bpe
def test_a_file_and_the_data_set_made_from_it_give_the_same_numbers(eval_spec, capsys):
    save_perturbed_gpt(eval_spec)
    expected = results(capsys)
    assert results(capsys, "--input=val.txt") == expected
    Path("folder").mkdir()
    half = EVAL_TEXT.index("comeu")
    Path("folder/a.txt").write_text(EVAL_TEXT[:half], encoding="utf-8")
    Path("folder/b.txt").write_text(EVAL_TEXT[half:], encoding="utf-8")
    separator = load_tokenizer(eval_spec).document_separator
    found = results(capsys, "--input=folder")
    assert found["characters"] == expected["characters"] + len(separator)


def test_a_large_file_is_read_and_encoded_in_chunks(workspace, capsys, monkeypatch):
    Path("big.txt").write_text("o menino " * 25_000, encoding="utf-8")
    save_perturbed_gpt({"kind": "char", "chars": " eimno"}, n_layer=1, n_embd=4)
    lengths = []
    encode = CharTokenizer.encode

    def recorded_encode(self, text):
        lengths.append(len(text))
        return encode(self, text)

    monkeypatch.setattr(CharTokenizer, "encode", recorded_encode)
    found = results(capsys, "--input=big.txt", "--batch_size=999")
    assert found["tokens"] == 224_999
    assert sum(lengths) == 225_000
    assert max(lengths) <= 100_000


def test_external_tokens_may_begin_and_end_inside_a_character(workspace, capsys):
    """A character counts in the token in which it begins."""
    tokenizer = gpt2_or_skip()
    ids = tokenizer.encode("🦜 não, 🦜").tolist()
    tokens = [tokenizer.decode_bytes([i]) for i in ids]
    assert "🦜".encode() not in (tokens[0], tokens[-1])  # an emoji is several tokens
    Path("data/nano").mkdir(parents=True)
    for split in ("train", "val"):
        np.array(ids[1:-1] * 5, dtype=np.uint16).tofile(f"data/nano/{split}.bin")
    save_perturbed_gpt({"kind": "gpt2"}, dataset="nano")
    found = results(capsys)
    scored = (tokens[1:-1] * 5)[1:]
    first_bytes = [byte for byte in b"".join(scored) if not 0x80 <= byte <= 0xBF]  # of characters
    assert found["tokens"] == len(scored)
    assert found["bytes"] == len(b"".join(scored))
    assert found["characters"] == len(first_bytes)
    assert re.search("note: data/nano has GPT-2 tokens in nanoGPT layout", printed(capsys))


def test_a_tokenizer_that_loses_characters_is_noted(workspace, capsys):
    """<unk> stands for every unknown character, so the numbers per byte are not exact."""
    tokenizer = llama2_like()
    vocab = tokenizer.get_vocab()
    tokenizer.model = type(tokenizer.model)(vocab, [], unk_token="<unk>", byte_fallback=False)
    Path("folder").mkdir()
    tokenizer.save("folder/tokenizer.json")
    save_perturbed_gpt(read_spec("folder/tokenizer.json"))
    Path("val.txt").write_text("o menino viu XYZ", encoding="utf-8")
    assert "note: val.txt has 16 characters" in printed(capsys, "--input=val.txt")
    Path("val.txt").write_text("o menino viu", encoding="utf-8")
    assert "note" not in printed(capsys, "--input=val.txt")


@char_only
def test_a_number_of_bytes_that_differs_from_meta_json_is_noted(eval_spec, capsys):
    save_perturbed_gpt(eval_spec)
    assert "note" not in printed(capsys)
    path = Path("data/text/meta.json")
    size = len(EVAL_TEXT.encode())
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(f'"bytes": {size}', f'"bytes": {size + 1}'), encoding="utf-8")
    assert re.search(rf"note: .*val has {size + 1} bytes, .* {size}:", printed(capsys))


def test_a_hugging_face_folder_needs_dataset_or_input(trained, capsys, refused):
    export.main(["--out_dir=out", "--to=hf"])
    message = refused(evaluate.main, "--init_from=hf")
    assert "--dataset=NAME or --input=FILE" in message
    expected = results(capsys)
    assert results(capsys, "--init_from=hf", "--dataset=tiny") == expected
    # Without a tokenizer of its own, the model is taken to use the data set's, as in train.py.
    Path("hf/tokenizer.json").unlink()
    assert results(capsys, "--init_from=hf", "--dataset=tiny") == expected
    message = refused(evaluate.main, "--init_from=hf", "--input=tiny.txt")
    assert "no tokenizer.json" in message


# The presets of train.py


@pytest.mark.parametrize("name", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"])
def test_the_eval_presets_have_nanogpts_values(name):
    parser = ConfigParser(ModelConfig, train.TrainConfig, description="Test.")
    preset = ROOT / "config" / f"eval_{name.replace('-', '_')}.py"
    assert parser.parse([str(preset)]).values == {
        "init_from": name,
        "dataset": "openwebtext",
        "tokenizer": "gpt2",
        "eval_only": True,
        "eval_iters": 500,
        "batch_size": 8,
        "wandb_log": False,
    }


def test_an_eval_preset_evaluates_and_saves_nothing(trained, capsys):
    preset = str(ROOT / "config/eval_gpt2.py")
    options = ["--init_from=out", "--dataset=tiny", "--out_dir=new", "--device=cpu"]
    train.main([preset, *options])
    assert "val loss" in capsys.readouterr().out
    assert not Path("new").exists()


# Mistakes


@pytest.fixture(scope="module")
def mistakes_once(tiny_once, tmp_path_factory):
    """A folder with a model of data/tiny in out/, and with files that cannot be evaluated."""
    folder = tmp_path_factory.mktemp("mistakes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shutil.copytree(tiny_once / "data", "data")
        save_perturbed_gpt(read_spec("data/tiny/meta.json"), dataset="tiny")
        Path("other.txt").write_text("abc" * 100, encoding="utf-8")
        prepare.main(["other", "--input=other.txt"])
        Path("cut").mkdir()
        Path("cut/best.pt").write_bytes(Path("out/best.pt").read_bytes()[:1000])
        Path("latin.txt").write_bytes("não".encode("latin1"))
        Path("empty.txt").touch()
        Path("one.txt").write_text("o", encoding="utf-8")
        Path("unknown.txt").write_text("o menx🦜", encoding="utf-8")
        Path("no-files").mkdir()
    return folder


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--out_dir=nowhere"], "no checkpoint nowhere"),
        (["--out_dir=cut"], r"cut.best\.pt"),
        (["--dataset=none"], "python prepare.py none"),
        (["--dataset=other"], r"data/other .*vocabulary .*out.best\.pt"),
        (["--dataset=../x"], r"dataset='\.\./x'"),
        (["--input=none.txt"], r"none\.txt"),
        (["--input=latin.txt"], r"latin\.txt .*0xe3 .* 1"),
        (["--input=empty.txt"], r"empty\.txt is too short"),
        (["--input=one.txt"], r"one\.txt is too short"),
        (["--input=no-files"], "no-files"),
        (["--input=unknown.txt"], r"character 6: 'x' \(U\+0078\), '🦜' \(U\+1F99C\)"),
        (["--input=other.txt", "--dataset=tiny"], "dataset=tiny and input=other.txt"),
        (["--tasks=a", "--stride=2"], "tasks=a and stride=2"),
        (["--limit=3"], "limit=3 .*--tasks="),
        (["--num_fewshot=0"], "num_fewshot=0 .*--tasks="),
        (["--stride=17"], "stride=17 .*block_size=16"),
        (["--device=cuda:7"], "device=cuda:7"),
        (["--datset=x"], r"did you mean --dataset\?"),
    ],
)
def test_a_mistake_ends_in_one_message(mistakes_once, monkeypatch, refused, argv, words):
    monkeypatch.chdir(mistakes_once)
    message = refused(evaluate.main, "--device=cpu", *argv)
    assert re.search(words, message), message


def test_a_split_of_one_token_and_an_id_beyond_the_vocabulary_are_refused(workspace, refused):
    gpt2_or_skip()
    Path("data/nano").mkdir(parents=True)
    for split, ids in (("train", [5, 50257]), ("val", [5])):
        np.array(ids, dtype=np.uint16).tofile(f"data/nano/{split}.bin")
    save_perturbed_gpt({"kind": "gpt2"}, dataset="nano", padding=47)
    assert "data/nano, val is too short" in refused(evaluate.main, "--device=cpu")
    message = refused(evaluate.main, "--device=cpu", "--split=train")
    assert "train.bin" in message
    assert "50257" in message


def test_a_damaged_data_set_name_in_a_checkpoint_ends_in_one_message(workspace, refused):
    save_perturbed_gpt({"kind": "char", "chars": "abc"}, dataset=7)
    assert "--dataset=NAME" in refused(evaluate.main)


def test_task_options_can_be_combined():
    EvaluateConfig(tasks="a", limit=1, num_fewshot=0)
