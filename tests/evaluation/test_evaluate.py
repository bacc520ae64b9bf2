"""The loss of a text against a loop over its tokens; what it is per byte and per character; and what is refused."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate
import prepare
import train
from evaluate import EvaluateConfig
from model import ModelConfig
from seugpt.cli.options import Options
from seugpt.data.tokenizer import CharTokenizer, load_tokenizer, read_spec
from seugpt.evaluation.loss import windows
from tests.helpers import (
    BLOCK_SIZE,
    EVAL_ARCHITECTURES,
    EVAL_TEXT,
    ROOT,
    gpt2_or_skip,
    llama2_like,
    save_perturbed_gpt,
)


def printed(capsys, *argv):
    capsys.readouterr()
    evaluate.main(["--out_dir=out", "--device=cpu", *argv])
    out, err = capsys.readouterr()
    assert err == ""  # no bar where stderr is no terminal
    return out


def figures(capsys, *argv):
    """What evaluate.py prints, as numbers."""
    out = printed(capsys, *argv)
    tokens, size, characters = re.search(
        r"([\d,]+) tokens scored, of ([\d,]+) bytes and ([\d,]+) char", out
    ).groups()
    found = {"tokens": tokens, "bytes": size, "characters": characters}
    found["context"] = re.search(r"([\d.]+) on average", out)[1]
    found |= re.findall(
        r"^(loss|perplexity|bits per byte|bits per character) +(\S+)", out, re.MULTILINE
    )
    return {name: float(value.replace(",", "")) for name, value in found.items()}


def by_loop(model, ids, stride):
    """(nats of each token but the first, how many before it the model saw), one after the other, in NumPy's float64."""
    losses, contexts = [], []
    for place in range(1, len(ids)):
        start = (
            max(math.ceil((place - BLOCK_SIZE) / stride), 0) * stride
        )  # of the first window that reaches so far
        with torch.no_grad():
            logits = model(torch.tensor([ids[start:place]]))[0][0, -1].double().numpy()
        losses.append(
            np.log(np.exp(logits - logits.max()).sum()) - (logits - logits.max())[ids[place]]
        )
        contexts.append(place - start)
    return np.array(losses), contexts


@pytest.mark.parametrize("name", EVAL_ARCHITECTURES)
def test_every_figure_is_that_of_a_loop_over_the_tokens(eval_spec, capsys, name):
    model, tokenizer = (
        save_perturbed_gpt(eval_spec, padding=3, **EVAL_ARCHITECTURES[name]),
        load_tokenizer(eval_spec),
    )
    ids = tokenizer.encode(EVAL_TEXT).tolist()
    first = tokenizer.decode_bytes(ids[:1]).decode()  # it is read and not scored
    size, characters = len(EVAL_TEXT.encode()) - len(first.encode()), len(EVAL_TEXT) - len(first)
    for stride in (0, 1, 5, BLOCK_SIZE):
        losses, contexts = by_loop(model, ids, stride or BLOCK_SIZE)
        assert min(contexts[BLOCK_SIZE:]) >= BLOCK_SIZE - (stride or BLOCK_SIZE) + 1
        found, nats = figures(capsys, f"--stride={stride}", "--batch_size=3"), losses.sum()
        assert (found["tokens"], found["bytes"], found["characters"]) == (
            len(ids) - 1,
            size,
            characters,
        )
        assert found["context"] == pytest.approx(np.mean(contexts), abs=0.051)
        assert found["loss"] == pytest.approx(nats / len(losses), abs=6e-5)
        assert found["perplexity"] == pytest.approx(np.exp(nats / len(losses)), rel=1e-4)
        assert found["bits per byte"] == pytest.approx(nats / np.log(2) / size, abs=6e-5)
        assert found["bits per character"] == pytest.approx(nats / np.log(2) / characters, abs=6e-5)


def test_one_token_a_window_sees_a_full_window_and_is_said(eval_spec, capsys):
    save_perturbed_gpt(eval_spec)
    out = printed(capsys, "--stride=1")
    assert (
        f"each from 1 to {BLOCK_SIZE} tokens before it" in out
        and f"at least {BLOCK_SIZE} beyond the first window" in out
    )
    assert "at least" not in printed(capsys)
    Path("short.txt").write_text("maçã", encoding="utf-8")
    assert "at least" not in printed(capsys, "--stride=1", "--input=short.txt")


def test_the_batch_and_where_the_pieces_end_change_nothing(eval_spec, capsys, monkeypatch):
    """Batches of one to more than there are; tokens in pieces of three, and a text that is cut after ten letters."""
    save_perturbed_gpt(eval_spec)
    whole = figures(capsys, "--stride=7", "--batch_size=1")
    for batch_size in (4, 1000):
        assert figures(capsys, "--stride=7", f"--batch_size={batch_size}") == pytest.approx(
            whole, rel=1e-5, abs=1.1e-4
        )
    monkeypatch.setattr("seugpt.data.shards.PIECE", 3)
    assert figures(capsys, "--stride=7", "--batch_size=1") == whole
    for length in ("PIECE", "LONGEST"):
        monkeypatch.setattr(f"seugpt.data.text.{length}", 10)
    found = figures(capsys, "--stride=7", "--batch_size=1", "--input=val.txt")
    if eval_spec["kind"] == "char":  # of others, a word that is cut in two becomes other tokens
        assert found == whole
    assert found["bytes"] == pytest.approx(whole["bytes"], abs=2)


@pytest.mark.parametrize("stride", [1, 4, 16])
def test_windows_score_each_token_once_with_enough_before_it(stride):
    for length in (0, 1, 2, 3, 15, 16, 17, 18, 33, 40):
        ids = np.arange(length)
        cuts = sorted(np.random.default_rng(length).integers(0, length + 1, size=5))
        scored = []
        for number, (window, first) in enumerate(windows(np.split(ids, cuts), BLOCK_SIZE, stride)):
            assert len(window) <= BLOCK_SIZE + 1 and (np.diff(window) == 1).all()
            targets = window[first + 1 :].tolist()
            assert 0 < len(targets) <= (stride if number else BLOCK_SIZE)
            assert not number or all(target - window[0] > BLOCK_SIZE - stride for target in targets)
            scored += targets
        assert scored == list(range(1, length))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_the_loss_that_train_has_of_the_whole_split(tiny, run, capsys, dtype):
    train.main(run(dtype=dtype))
    losses = []
    for split, name in (("val", "validation"), ("train", "train")):
        capsys.readouterr()
        train.main(run(dtype=dtype, init_from="out/best.pt", eval_only=True, eval_iters=0))
        theirs = float(
            re.search(rf"^step 0: .*{name} loss ([\d.]+)", capsys.readouterr().out, re.MULTILINE)[1]
        )
        ours = figures(capsys, f"--dtype={dtype}", f"--split={split}", "--batch_size=4")["loss"]
        assert ours == pytest.approx(theirs, abs=1.1e-4)
        losses += [ours, figures(capsys, f"--split={split}", "--batch_size=4")["loss"]]
    assert (losses[::2] == losses[1::2]) == (dtype == "float32")  # bfloat16 is not passed over


def test_an_input_is_what_the_same_text_is_as_a_data_set(eval_spec, capsys):
    save_perturbed_gpt(eval_spec)
    split = figures(capsys)
    assert figures(capsys, "--input=val.txt") == split
    Path("folder").mkdir()
    half = EVAL_TEXT.index("comeu")
    Path("folder/a.txt").write_text(EVAL_TEXT[:half], encoding="utf-8")
    Path("folder/b.txt").write_text(EVAL_TEXT[half:], encoding="utf-8")
    separator = load_tokenizer(eval_spec).separator
    found = figures(capsys, "--input=folder")
    assert found["characters"] == split["characters"] + len(separator)


def test_a_large_input_is_encoded_and_read_in_pieces(workspace, capsys, monkeypatch):
    Path("big.txt").write_text("o menino " * 40_000, encoding="utf-8")
    save_perturbed_gpt({"kind": "char", "chars": " eimno"}, n_layer=1, n_embd=4)
    lengths, encode = [], CharTokenizer.encode
    monkeypatch.setattr(
        CharTokenizer, "encode", lambda self, text: lengths.append(len(text)) or encode(self, text)
    )
    assert figures(capsys, "--input=big.txt", "--batch_size=999")["tokens"] == 359_999
    assert sum(lengths) == 360_000 and max(lengths) <= 100_000


def test_tokens_from_elsewhere_that_are_cut_inside_a_character(workspace, capsys):
    """nanoGPT's .bin knows no bytes; its split may begin and end within a character, which counts where it begins."""
    tokenizer = gpt2_or_skip()
    ids = tokenizer.encode("🦜 não, 🦜").tolist()
    parts = [tokenizer.decode_bytes([i]) for i in ids]
    assert parts[0] != "🦜".encode() and parts[-1] != "🦜".encode()  # an emoji is several tokens
    Path("data/nano").mkdir(parents=True)
    for split in ("train", "val"):
        np.array(ids[1:-1] * 5, dtype=np.uint16).tofile(f"data/nano/{split}.bin")
    save_perturbed_gpt({"kind": "gpt2"}, dataset="nano")
    found, scored = figures(capsys), (parts[1:-1] * 5)[1:]
    assert found["tokens"] == len(scored) and found["bytes"] == len(b"".join(scored))
    assert found["characters"] == sum(byte < 0x80 or byte > 0xBF for byte in b"".join(scored))
    assert "note: data/nano has no meta.json" in printed(capsys)


def test_a_tokenizer_that_loses_text_is_noted(workspace, capsys):
    """Its token for what it does not know stands for all such characters, and their bytes are gone."""
    tokenizer = llama2_like()
    tokenizer.model = type(tokenizer.model)(
        tokenizer.get_vocab(), [], unk_token="<unk>", byte_fallback=False
    )
    Path("folder").mkdir()
    tokenizer.save("folder/tokenizer.json")
    Path("val.txt").write_text("o menino viu XYZ", encoding="utf-8")
    eval_spec = read_spec("folder/tokenizer.json")
    save_perturbed_gpt(eval_spec)
    assert "note: val.txt has 16 characters, and its tokens stand for" in printed(
        capsys, "--input=val.txt"
    )
    Path("val.txt").write_text("o menino viu", encoding="utf-8")
    assert "note" not in printed(capsys, "--input=val.txt")


def test_what_meta_json_says_of_the_bytes_is_compared(eval_spec, capsys):
    save_perturbed_gpt(eval_spec)
    assert "note" not in printed(capsys)
    path, size = Path("data/text/meta.json"), len(EVAL_TEXT.encode())
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(f'"bytes": {size}', f'"bytes": {size + 1}'), encoding="utf-8")
    assert (
        f"note: data/text, val has {size + 1} bytes, and its tokens stand for {size}:"
        in printed(capsys)
    )


def test_a_folder_from_hugging_face_needs_a_text_and_says_so(tiny, run, capsys, refused):
    import export

    train.main(run())
    export.main(["--out_dir=out", "--to=hf"])
    message = refused(evaluate.main, "--out_dir=hf")
    assert (
        "hf does not say what text it was trained on; name one: --dataset=NAME or --input=FILE"
        in message
    )
    assert figures(capsys) == figures(capsys, "--out_dir=hf", "--dataset=tiny")
    Path(
        "hf/tokenizer.json"
    ).unlink()  # then the data set's tokens are taken for the model's, as in train.py
    assert figures(capsys) == figures(capsys, "--out_dir=hf", "--dataset=tiny")
    assert "no tokenizer.json" in refused(evaluate.main, "--out_dir=hf", "--input=tiny.txt")


@pytest.mark.parametrize("name", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"])
def test_the_presets_evaluate_and_train_nothing(tiny, run, capsys, name):
    preset = ROOT / "config" / f"eval_{name.replace('-', '_')}.py"
    given = Options([str(preset)], ModelConfig, train.TrainConfig, description="Test.")
    assert given.values == {
        "init_from": name, "dataset": "openwebtext", "eval_only": True, "eval_iters": 500, "batch_size": 8,
        "wandb_log": False,
    }  # fmt: skip
    if name == "gpt2":
        train.main(run())
        capsys.readouterr()
        train.main(
            [str(preset), "--init_from=out", "--dataset=tiny", "--out_dir=new", "--device=cpu"]
        )
        assert "validation loss" in capsys.readouterr().out and not Path("new").exists()


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--out_dir=nowhere"], "there is no checkpoint nowhere"),
        (["--out_dir="], "out_dir= is empty"),
        (["--out_dir=cut"], "cannot be read as a checkpoint"),
        (["--dataset="], "dataset= is empty"),
        (["--dataset=none"], "there is no data set in data/none"),
        (["--dataset=other"], "data/other has another vocabulary than out"),
        (["--dataset=../x"], "must be one plain name"),
        (["--split=test"], "split='test' expects val or train"),
        (["--input=none.txt"], "cannot read none.txt"),
        (["--input=latin.txt"], "latin.txt is not UTF-8 (byte 0xe3 at offset 1)"),
        (["--input=empty.txt"], "empty.txt is too short: two tokens at least"),
        (["--input=one.txt"], "one.txt is too short: two tokens at least"),
        (["--input=vazia"], "the folder vazia has no files"),
        (
            ["--input=unknown.txt"],
            "first at character 6: 'x' (U+0078), '🦜' (U+1F99C). A model of bpe",
        ),
        (["--input=tiny.txt", "--dataset=tiny"], "dataset=tiny and input=tiny.txt: one only"),
        (["--tasks=a", "--stride=2"], "tasks=a and stride=2: one only"),
        (["--limit=3"], "limit=3 is for tasks; name some with --tasks="),
        (["--num_fewshot=0"], "num_fewshot=0 is for tasks"),
        (["--tasks=a", "--limit=0"], "limit=0 must be at least 1"),
        (["--stride=17"], "stride=17 is above block_size=16"),
        (["--stride=-1"], "stride=-1 must be at least 0"),
        (["--batch_size=0"], "batch_size=0 must be at least 1"),
        (["--batch_size=1.5"], "batch_size='1.5' expects an integer"),
        (["--dtype=int8"], "dtype='int8' expects"),
        (["--device=cuda:7"], "device=cuda:7"),
        (["--datset=x"], "did you mean --dataset?"),
    ],
)
def test_mistakes_are_one_message(tiny, refused, argv, words):
    save_perturbed_gpt(read_spec("data/tiny/meta.json"), dataset="tiny")
    Path("other.txt").write_text("abc" * 100, encoding="utf-8")
    prepare.main(["other", "--input=other.txt"])
    Path("cut").mkdir()
    Path("cut/best.pt").write_bytes(Path("out/best.pt").read_bytes()[:1000])
    Path("latin.txt").write_bytes("não".encode("latin1"))
    Path("empty.txt").touch()
    Path("one.txt").write_text("o", encoding="utf-8")
    Path("unknown.txt").write_text("o menx🦜", encoding="utf-8")
    Path("vazia").mkdir()
    assert words in refused(evaluate.main, *argv)


def test_a_split_of_one_token_and_ids_beyond_the_vocabulary(workspace, refused):
    gpt2_or_skip()
    Path("data/nano").mkdir(parents=True)
    for split, ids in (("train", [5, 50257]), ("val", [5])):
        np.array(ids, dtype=np.uint16).tofile(f"data/nano/{split}.bin")
    save_perturbed_gpt({"kind": "gpt2"}, dataset="nano", padding=47)
    assert "data/nano, val is too short: two tokens at least" in refused(
        evaluate.main, "--device=cpu"
    )
    message = refused(evaluate.main, "--device=cpu", "--split=train")
    assert "train.bin holds the token id 50257; the vocabulary ends at 50256" in message


def test_a_damaged_name_of_the_data_set_is_one_message(workspace, refused):
    save_perturbed_gpt({"kind": "char", "chars": "abc"}, dataset=["x"])
    assert "does not say what text it was trained on" in refused(evaluate.main)


def test_the_options_that_go_together():
    assert EvaluateConfig(tasks="a", limit=1, num_fewshot=0).stride == 0
