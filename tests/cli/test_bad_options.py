"""Bad command lines, one row each: all that is wrong with a line is told at once, and nothing is written."""

import os
from pathlib import Path

import pytest

import bench
import export
import prepare
import sample
import train
from tests.helpers import RUN

FILES = {
    "text.txt": "o menino viu a maçã e não comeu; \n"
    * 60,  # 2,040 characters, of which the last 204 validate
    "empty.txt": "",
    "latin.txt": "não".encode("latin-1"),
    "bad.json": "{}",
    "bad.pt": b"no checkpoint",
    "typo.py": "learing_rate = 1e-3\nn_emdb = 64\nn_layer = 3",
    "wrong.py": "n_kv_head = 'two'\nbias = 1\nrope_base = float('nan')\nnorm_eps = 10**400\nmuon_lr = -float('inf')",
    "syntax.py": "n_layer = = 3",
    "raises.py": "n_layer = 2\n\nn_head = n_layer / 0",
    "exits.py": "import sys\nsys.exit(0)",
    "missing.py": "seed = int(open('seed.txt').read())",
    "latin.py": "out_dir = 'maçã'".encode("latin-1"),
    "utf16.py": "n_layer = 3".encode("utf-16"),
    "recursion.py": "def f(): return f()\nn_kv_head = f()",
    "function.py": "def n_kv_head(): return 2",
    "bytes.py": "wandb_project = b'seugpt'",
    "several.py": "wandb_project = 'a', 'b'",
    "zero.py": "wandb_project = 'a\\0b'",
    "half.py": "wandb_project = 'a\\ud800'",
    "start.py": "start = 'FILE:a\\0b'",
    "run.py": "n_head = 3\nn_embd = 64\nmin_lr = -1\nbatchsize = 8\nvocab_size = 1.5",
}
LONG = "a" * 5000  # no file system has so long a name


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A data set, a trained model, and files in which everything is wrong; no test here may change any of it."""
    folder = tmp_path_factory.mktemp("place")
    for name, content in FILES.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "folder.py").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare.main(["small", "--input=text.txt"])
        train.main(options(out_dir="trained", max_iters=1))
    return folder


def options(**changes):
    return [f"--{name}={value}" for name, value in {**RUN, "dataset": "small", **changes}.items()]


def everything(folder):
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def complaint(main, argv, place, monkeypatch, capsys):
    """What a command says to stderr before it ends with exit code 2, having written nothing."""
    monkeypatch.chdir(place)
    before = everything(place)
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        main(argv)
    said = capsys.readouterr()
    assert exit.value.code == 2, said
    assert everything(place) == before
    assert said.out == "" and "Traceback" not in said.err
    return said.err


def check(message, problems):
    """Each of the problems is told, and no other."""
    for problem in problems:
        assert problem in message, message
    listed = message.count("\n  - ")
    assert listed == (len(problems) if len(problems) > 1 else 0), message


def wants(name, value, kind):
    return f"{name}={value!r} expects {kind} [--{name}={value}]"


def least(name, value, limit, source=None):
    return f"{name}={value} must be at least {limit} [--{name}={source or value}]"


# A command line after the options of a good run, and a piece of the message for each problem of it.
TRAIN = [
    # names
    (["--learing_rate=1"], "--learing_rate=1: no such option; did you mean --learning_rate?"),
    (["--n_lay=2"], "--n_lay=2: no such option; did you mean --n_layer?"),  # no abbreviations
    (["--n-layer=2"], "--n-layer=2: no such option; did you mean --n_layer?"),
    (["-n_layer=2"], "-n_layer=2: no such option; did you mean --n_layer?"),
    (["--wandb_nam=a b"], "--wandb_nam=a b: no such option; did you mean --wandb_"),
    (["--ação=1"], "--ação=1: no such option"),
    (["--🦜"], "--🦜: no such option"),
    (["--\udce7=1"], "--?=1: no such option"),  # a byte that is no UTF-8
    (["--=2"], "--=2: no such option"),
    (["-x"], "-x: no such option"),
    (["---"], "---: no such option"),
    (["--bare=a.py"], "--bare=a.py: no such option"),  # the name that the parser gives to config files
    (["--temperature=1"], "--temperature=1: no such option"),  # sample.py's
    (["n_layer=2"], "n_layer=2: no such config file"),
    (["n_layer", "2"], "n_layer: no such config file", "2: no such config file"),
    (["="], "=: no such config file"),
    (["@options"], "@options: no such config file"),
    (["--help=3"], "ignored explicit argument '3'. See the options: python"),
    # values of a wrong type
    (["--n_layer=two"], wants("n_layer", "two", "an integer")),
    (["--n_layer=2.5"], wants("n_layer", "2.5", "an integer")),
    (["--n_layer=0x10"], wants("n_layer", "0x10", "an integer")),
    (["--n_layer=1,000"], wants("n_layer", "1,000", "an integer")),
    (["--n_layer=True"], wants("n_layer", "True", "an integer")),
    (["--n_layer=None"], wants("n_layer", "None", "an integer")),
    (["--n_kv_head=half"], wants("n_kv_head", "half", "an integer or None")),
    (["--learning_rate=1,5e-4"], wants("learning_rate", "1,5e-4", "a number")),
    (["--dropout=10%"], wants("dropout", "10%", "a number")),
    (["--bias=yes"], wants("bias", "yes", "True or False")),
    (["--bias", "yes"], wants("bias", "yes", "True or False")),
    (["--decay_lr=2"], wants("decay_lr", "2", "True or False")),
    (["--compile=maybe"], wants("compile", "maybe", "True or False or auto")),
    (["--dtype=Float32"], wants("dtype", "Float32", "auto or float32 or bfloat16 or float16")),
    (["--optimizer=sgd"], wants("optimizer", "sgd", "adamw or muon")),
    (["--mlp=silu"], wants("mlp", "silu", "gelu or gelu_exact or swiglu or relu2")),
    (["--n_layer==2"], wants("n_layer", "=2", "an integer")),
    (["--n_layer=2=3"], wants("n_layer", "2=3", "an integer")),
    (["--n_layer=２x"], wants("n_layer", "２x", "an integer")),  # such a digit alone is one for Python, too
    (["--n_layer=🦜"], wants("n_layer", "🦜", "an integer")),
    (["--n_layer=\0"], "n_layer='\\x00' expects an integer"),
    (["--n_layer=\udce7"], "n_layer='\\udce7' expects an integer [--n_layer=?]"),
    # numbers that are none, or too large
    (["--learning_rate=nan"], wants("learning_rate", "nan", "a number")),
    (["--weight_decay=-inf"], wants("weight_decay", "-inf", "a number")),
    (["--grad_clip=1e999"], wants("grad_clip", "1e999", "a number")),
    (["--max_iters=inf"], wants("max_iters", "inf", "an integer")),
    (["--max_iters=1e999"], wants("max_iters", "1e999", "an integer")),
    (["--max_iters=1e300"], "max_iters='1e300' must lie between -2**53 and 2**53 [--max_iters=1e300]"),
    ([f"--batch_size={2**53 + 1}"], "batch_size='9007199254740993' must lie between -2**53 and 2**53"),
    ([f"--seed={2**63}"], "seed=9223372036854775808 must be below 2**63 [--seed=9223372036854775808]"),
    # missing and empty values, duplicates
    (["--n_layer"], "--n_layer: expected one argument, as in --n_layer=VALUE"),
    (["--n_layer", "--n_hed=2"], "--n_layer: expected one argument", "--n_hed=2: no such option; did you mean --n_"),
    (["--seed", "--dataset"], "--seed: expected one argument", "--dataset: expected one argument"),
    (["--n_layer="], wants("n_layer", "", "an integer")),
    (["--compile="], wants("compile", "", "True or False or auto")),
    (["--learning_rate", " "], wants("learning_rate", " ", "a number")),
    (["--out_dir="], "out_dir= is empty [--out_dir=]"),
    (["--init_from="], "init_from= is empty; give a checkpoint"),
    (["--dataset="], "dataset='' must be one plain name"),
    (["--device="], "device= is unknown"),
    ([""], "'': an empty argument, and no config file"),
    (["--n_layer=2", "--n_layer=x"], wants("n_layer", "x", "an integer")),
    (["--n_layer=x", "--n_layer=2"], wants("n_layer", "x", "an integer")),
    (["--", "--n_layer=x"], wants("n_layer", "x", "an integer")),
    # numbers out of their range
    (["--n_layer=0"], least("n_layer", 0, 1)),
    (["--n_embd", "-32"], least("n_embd", -32, 1)),
    (["--vocab_size=0"], least("vocab_size", 0, 1)),
    (["--learning_rate=-1e-3"], least("learning_rate", -0.001, 0, "-1e-3")),
    (["--beta2=1"], "beta2=1.0 must be below 1 [--beta2=1]"),
    (["--dropout=1"], "dropout=1.0 must be at least 0 and below 1 [--dropout=1]"),
    (["--rope_base=0"], "rope_base=0.0 must be above 0 [--rope_base=0]"),
    (["--eval_interval=0"], least("eval_interval", 0, 1)),
    (["--warmup_iters=-1"], least("warmup_iters", -1, 0)),
    (["--seed=-1"], least("seed", -1, 0)),
    # contradictions
    (["--n_embd=33"], "n_embd=33 must be divisible by n_head=2; the nearest is 32 or 34 [--n_embd=33, "),
    (["--n_kv_head=3"], "n_kv_head=3 must divide n_head=2: 1, 2 [--n_kv_head=3, --n_head=2]"),
    (["--position=rope", "--n_embd=6"], "n_embd/n_head=3 must be even [--position=rope, --n_head=2]"),
    (["--block_size=204"], "val.bin has 204 tokens; block_size=204 needs at least 205. Use --block_size=203"),
    (["--vocab_size=5"], "vocab_size=5 is below the 14 tokens of data/small"),
    (["--init_from=resume", "--out_dir=trained", "--block_size=17"], "another architecture: block_size=17 (there 16)"),
    (["--init_from=trained", "--block_size=17"], "another architecture: block_size=17 (there 16)"),
    (["--init_from=resume", "--out_dir=trained", "--optimizer=muon"], "but trained was begun with the other"),
    (["--init_from=resume", "--out_dir=trained", "--beta1=2"], "beta1=2.0 must be below 1 [--beta1=2]"),
    # what is not there
    (["--init_from=resume"], "no checkpoint out/latest.pt"),
    (["--init_from=bad.pt"], "bad.pt cannot be read as a checkpoint"),
    (["--dataset=other"], "no data set in data/other"),
    (["--dataset=data/small"], "dataset='data/small' must be one plain name"),
    (["--device=cuda:99"], "device=cuda:99 is not there"),
    (["--out_dir=text.txt"], "out_dir=text.txt cannot be written"),
    ([f"--out_dir={LONG}"], "cannot be written ("),
    (["--out_dir=a\0b"], r"out_dir='a\x00b' holds a zero byte"),
    # config files
    (["typo.py"], "typo.py: learing_rate: no such option; did you mean learning_rate?",
     "typo.py: n_emdb: no such option; did you mean n_embd?"),
    (["wrong.py"], "n_kv_head='two' expects an integer or None [wrong.py]", "bias=1 expects True or False [wrong.py]",
     "rope_base=nan expects a number [wrong.py]", "norm_eps=1000", "muon_lr=-inf expects a number [wrong.py]"),
    (["syntax.py"], "syntax.py: SyntaxError: invalid syntax (syntax.py, line 1)"),
    (["raises.py"], "raises.py: ZeroDivisionError: division by zero (line 3)"),
    (["exits.py"], "exits.py: SystemExit: 0 (line 2)"),
    (["missing.py"], "missing.py: FileNotFoundError: [Errno 2] No such file or directory: 'seed.txt' (line 1)"),
    (["latin.py"], "latin.py: UnicodeDecodeError: 'utf-8' codec"),
    (["utf16.py"], "utf16.py: UnicodeDecodeError: 'utf-8' codec"),
    (["recursion.py"], "recursion.py: RecursionError: maximum recursion depth exceeded"),
    (["function.py"], "n_kv_head=<function n_kv_head at"),
    (["bytes.py"], "wandb_project=b'seugpt' expects a text [bytes.py]"),
    (["several.py"], "wandb_project=('a', 'b') expects a text [several.py]"),
    (["zero.py"], r"wandb_project='a\x00b' holds a zero byte, which no file's name may have [zero.py]"),
    (["half.py"], r"wandb_project='a\ud800' 'utf-8' codec can't encode"),
    (["folder.py"], "folder.py is a folder and no config file"),
    (["nowhere.py"], "nowhere.py: no such config file"),
    (["text.txt/a.py"], "text.txt/a.py: no such config file"),
    (["a\0.py"], "a\0.py: no such config file"),
    (["bad.pt"], "bad.pt: SyntaxError"),
    ([LONG, "--n_layer=x"], "a: no such config file", wants("n_layer", "x", "an integer")),
    # everything at once, from everywhere
    (["typo.py", "nowhere.py", "", "-x", "--n_layer=x", "--beta1=1", "--batch_size=0", "--seed", "--nhead=1"],
     "typo.py: learing_rate: no", "typo.py: n_emdb: no", "nowhere.py: no", "'': an empty", "-x: no", "--seed: expected",
     "n_layer='x' expects", "beta1=1.0 must be", "batch_size=0 must be", "--nhead=1: no such option; did you mean"),
]  # fmt: skip

SAMPLE = [
    (["--temprature=1"], "--temprature=1: no such option; did you mean --temperature?"),
    (["--top_k=-1"], least("top_k", -1, 0)),
    (["--top_k=1.5"], wants("top_k", "1.5", "an integer or None")),
    (["--top_p=0"], "top_p=0.0 must be above 0 and at most 1 [--top_p=0]"),
    (["--top_p=1.5", "--min_p=-1"], "top_p=1.5 must be above 0 and at most 1 [", "min_p=-1.0 must be at least 0 and"),
    (["--temperature=nan"], wants("temperature", "nan", "a number")),
    (["--num_samples=0", "--max_new_tokens=0"], least("num_samples", 0, 1), least("max_new_tokens", 0, 1)),
    (["--num_samples=1e9"], "num_samples=1000000000 must be at most 1000000"),
    ([f"--seed={2**63}"], "seed=9223372036854775808 must lie between -2**63 and 2**63"),
    (["--start"], "--start: expected one argument"),
    (["--start="], "start= is empty"),
    (["--start=xyz"], "'x' (U+0078), 'y' (U+0079), 'z' (U+007A)"),
    (["--start=não\0"], "'\\x00' (U+0000)"),
    (["--start=\udce7"], "the start is not UTF-8"),
    (["--start=FILE:"], "start=FILE: names no file"),
    (["--start=FILE:folder.py"], "cannot read folder.py: "),
    (["--start=FILE:empty.txt"], "empty.txt is empty"),
    (["--start=FILE:latin.txt"], "latin.txt is not UTF-8 (offset 1)"),
    ([f"--start=FILE:{LONG}"], "cannot read aaa"),
    (["start.py"], "cannot read a\0b: embedded null"),
    (["--stop="], "stop= is empty"),
    (["--interactive", "ja"], wants("interactive", "ja", "True or False")),
    (["--out_dir="], "out_dir= is empty [--out_dir=]"),
    (["--init_from="], "init_from= is empty [--init_from=]"),
    (["--init_from=nowhere"], "there is no checkpoint nowhere"),
    (["--init_from=bad.json"], "bad.json is one file of a model"),
    (["a text"], "a text: no such config file"),
]  # fmt: skip

PREPARE = [
    (["new", "--input=text.txt", "--tokenzier=char"], "--tokenzier=char: no such option; did you mean --tokenizer?"),
    (["new", "--inptu=text.txt"], "--inptu=text.txt: no such option", "name=new is not built in"),
    (["new", "old", "--input=text.txt"], "new old: one name is expected"),
    (["new", "--name=old", "--input=text.txt"], "new old: one name is expected"),
    (["", "--input=text.txt"], "name= is empty"),
    (["a/b", "--input=text.txt"], "'a/b' must be one plain name"),
    (["--input=text.txt"], "a text of your own needs a name"),
    (["new", "--input"], "--input: expected one argument"),
    (["new", "--input=a\0b"], r"input='a\x00b' holds a zero byte"),
    (["new", "--input="], "input= is empty"),
    (["new", "--input=nowhere"], "cannot read nowhere"),
    (["new", "--input=latin.txt"], "latin.txt is not UTF-8"),
    (["new", "--input=text.txt", "--tokenizer=words"], "tokenizer=words is not char, gpt2, bpe or the path"),
    (["new", "--input=text.txt", "--tokenizer=bad.json"], "cannot take the tokenizer of bad.json"),
    (["new", "--input=text.txt", "--vocab_size=256", "--val_fraction=1"], "vocab_size=256 must be at least 257",
     "val_fraction=1.0 must be above 0 and below 1"),
    (["new", "--input=text.txt", "--val_fraction=nan"], wants("val_fraction", "nan", "a number")),
]  # fmt: skip

EXPORT = [
    ([], "to= names no folder to write"),
    (["--to"], "--to: expected one argument"),
    (["--to=", "--out_dir="], "to= names no folder to write", "out_dir= is empty"),
    (
        ["--to=hf", "--out_dri=trained"],
        "--out_dri=trained: no such option; did you mean --out_dir?",
    ),
    (["--to=a\0b"], r"to='a\x00b' holds a zero byte"),
    (["--to=hf", "--out_dir=nowhere"], "there is no checkpoint nowhere"),
    (["--to=hf", "--out_dir=bad.pt"], "bad.pt cannot be read as a checkpoint"),
    (["--to=trained", "--out_dir=trained"], "to=trained already has best.pt, latest.pt"),
]

BENCH = [
    (["stpe"], "stpe is none of step, race, decode, prepare, run, suite"),
    (["step", "--stpes=3"], "--stpes=3: no such option; did you mean --steps?"),
    (["step", "--rounds=0", "--n_embd=33", "--n_head=2"], least("rounds", 0, 1), "n_embd=33 must be divisible by"),
    (["step", "--peer=nowhere"], "peer=nowhere is neither transformers nor a folder with nanoGPT's model.py"),
    (["race", "--target=1"], "a race needs --config=FILE"),
    (["race", "--target=1", "--config=typo.py"], "typo.py: learing_rate: no such", "typo.py: n_emdb: no such"),
    (["decode", "--rows=many", "--tokens=0"], least("tokens", 0, 1), "rows=many must be an integer of at least 1"),
    (["prepare", "--input=nowhere"], "input=nowhere is no file"),
    (["suite", "--smoke=2"], wants("smoke", "2", "True or False")),
]  # fmt: skip


def rows(table):
    """A test for each row, named after its command line."""
    named = [
        pytest.param(argv, problems, id=ascii(" ".join(argv))[1:-1][:50])
        for argv, *problems in table
    ]
    return pytest.mark.parametrize("argv, problems", named)


@rows(TRAIN)
def test_train(argv, problems, place, monkeypatch, capsys):
    check(complaint(train.main, options() + argv, place, monkeypatch, capsys), problems)


@rows(SAMPLE)
def test_sample(argv, problems, place, monkeypatch, capsys):
    given = ["--out_dir=trained", "--device=cpu", *argv]
    check(complaint(sample.main, given, place, monkeypatch, capsys), problems)


@rows(PREPARE)
def test_prepare(argv, problems, place, monkeypatch, capsys):
    check(complaint(prepare.main, argv, place, monkeypatch, capsys), problems)


@rows(EXPORT)
def test_export(argv, problems, place, monkeypatch, capsys):
    pytest.importorskip("safetensors")
    check(complaint(export.main, argv, place, monkeypatch, capsys), problems)


@rows(BENCH)
def test_bench(argv, problems, place, monkeypatch, capsys):
    check(complaint(bench.main, argv, place, monkeypatch, capsys), problems)


def test_export_names_the_option_whose_folder_cannot_be_made(place, monkeypatch, capsys):
    """It said only that a file exists."""
    pytest.importorskip("tokenizers")
    message = complaint(
        export.main, ["--out_dir=trained", "--to=text.txt"], place, monkeypatch, capsys
    )
    check(message, ["to=text.txt cannot be made ("])


def test_what_follows_from_another_problem_is_not_told(place, monkeypatch, capsys):
    """n_head=x was followed by a second problem, which spoke of the default that nobody had asked for."""
    message = complaint(train.main, [*options(), "--n_head=x"], place, monkeypatch, capsys)
    check(message, [wants("n_head", "x", "an integer")])
    corrected = complaint(
        train.main, ["run.py", "--n_head=x", "--n_head=3"], place, monkeypatch, capsys
    )
    check(corrected, [
        "run.py: batchsize: no such option; did you mean batch_size?",
        "vocab_size=1.5 expects an integer or None [run.py]",
        wants("n_head", "x", "an integer"),
        "n_embd=64 must be divisible by n_head=3",
        "min_lr=-1.0 must be at least 0 [run.py]",
    ])  # fmt: skip


def test_a_row_that_trains_would_be_noticed(place, tmp_path, monkeypatch, capsys):
    """The table's own check: a good command line does not pass for a bad one."""
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        complaint(
            train.main, options(out_dir=str(tmp_path), eval_only=True), place, monkeypatch, capsys
        )
    assert os.listdir(tmp_path) == [] and not Path("out").exists()
