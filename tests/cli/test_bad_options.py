"""Bad command lines, one row each: every problem is reported at once, and nothing is written."""

import os
import shutil
from pathlib import Path

import pytest

import bench
import export
import prepare
import sample
import train

FILES = {
    "text.txt": "o menino viu a maçã e não comeu; \n" * 60,
    "empty.txt": "",
    "latin.txt": "não".encode("latin-1"),
    "zero.txt": "o\0o",
    "binary.dat": b"\x89PNG\r\n\x1a\n\0\xff",
    "bad.json": "{}",
    "bad.pt": b"no checkpoint",
    "typo.py": "learing_rate = 1e-3\nn_emdb = 64\nn_layer = 3",
    "wrong.py": (
        "n_kv_head = 'two'\nbias = 1\nrope_base = float('nan')\nnorm_eps = 10**400\n"
        "muon_lr = -float('inf')"
    ),
    "syntax.py": "n_layer = = 3",
    "raises.py": "n_layer = 2\n\nn_head = n_layer / 0",
    "exits.py": "import sys\nsys.exit(0)",
    "missing.py": "seed = int(open('seed.txt').read())",
    "latin.py": "out_dir = 'maçã'".encode("latin-1"),
    "utf16.py": "n_layer = 3".encode("utf-16"),
    "null.py": "n_layer = 3\0",
    "import.py": "from nowhere import x",
    "base.py": "raise BaseException",
    "recursion.py": "def f(): return f()\nn_kv_head = f()",
    "function.py": "def n_kv_head(): return 2",
    "module.py": "import time as wandb_project",
    "bytes.py": "wandb_project = b'seugpt'",
    "several.py": "wandb_project = 'a', 'b'",
    "zero.py": "wandb_project = 'a\\0b'",
    "half.py": "wandb_project = 'a\\ud800'",
    "start.py": "start = 'FILE:a\\0b'",
    "run.py": "n_head = 3\nn_embd = 64\nmin_lr = -1\nbatchsize = 8\nvocab_size = 1.5",
}
LONG = "a" * 5000  # longer than a file name can be


@pytest.fixture(scope="module")
def place(trained_once, tmp_path_factory):
    """data/tiny, a run in trained/, and FILES, in which everything is wrong; read-only."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(trained_once / "data", folder / "data")
    shutil.copytree(trained_once / "out", folder / "trained")
    for name, content in FILES.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "folder.py").mkdir()
    return folder


def all_files(folder):
    """{path: (size, time of the last change)} of all files, {path: None} of all folders."""
    stats = {path: path.stat() for path in folder.rglob("*")}
    return {
        path: (stat.st_size, stat.st_mtime_ns) if path.is_file() else None
        for path, stat in stats.items()
    }


@pytest.fixture
def problems_of(place, monkeypatch, capsys):
    """problems_of(main, argv): the problems that a command prints before it ends with exit code 2.

    Checks that it has written nothing.
    """
    monkeypatch.chdir(place)

    def call(main, argv):
        before = all_files(place)
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            main(argv)
        printed = capsys.readouterr()
        assert exit.value.code == 2, printed
        assert all_files(place) == before
        assert printed.out == ""
        assert "Traceback" not in printed.err
        head, *problems = printed.err.removesuffix("\n").split("\n  - ")
        if not problems:
            return [head]
        assert head.endswith(f" {len(problems)} problems:"), printed.err
        return problems

    return call


def check(problems, expected):
    """Check that each expected problem is reported, and no other.

    An expected problem is a text that the message contains, or a list of such texts.
    """
    assert len(problems) == len(expected), problems
    for words in expected:
        words = [words] if isinstance(words, str) else words
        assert any(all(word in line for word in words) for line in problems), (words, problems)


def invalid(name, value, *words):
    """A refused value: the message names it, says `words`, and names its argument.

    `value`: a text if it has the wrong type, a number if it is outside the limits.
    """
    return [f"{name}={value!r}: ", *words, f"[--{name}={value}]"]


def unknown(argument, *suggestion):
    """An option that does not exist, and the name that the message suggests, if it does."""
    return [f"{argument}: ", "no such option", *(f" {name}?" for name in suggestion)]


# Rows: arguments that follow those of a valid run, then a text or list of texts for each problem.
TRAIN = [
    # names
    (["--learing_rate=1"], unknown("--learing_rate=1", "--learning_rate")),
    (["--n_lay=2"], unknown("--n_lay=2", "--n_layer")),  # abbreviations are not accepted
    (["--n-layer=2"], unknown("--n-layer=2", "--n_layer")),
    (["-n_layer=2"], unknown("-n_layer=2", "--n_layer")),
    (["--wandb_nam=a b"], [*unknown("--wandb_nam=a b"), "--wandb_"]),
    (["--ação=1"], unknown("--ação=1")),
    (["--🦜"], unknown("--🦜")),
    (["--\udce7=1"], unknown("--?=1")),  # a byte that is not UTF-8
    (["--=2"], unknown("--=2")),
    (["-x"], unknown("-x")),
    (["---"], unknown("---")),
    (["--positionals=a.py"], unknown("--positionals=a.py")),  # argparse's name for config files
    (["--temperature=1"], unknown("--temperature=1")),  # an option of sample.py
    (["n_layer=2"], "n_layer=2: no such config file"),
    (["n_layer", "2"], "n_layer: no such config file", "2: no such config file"),
    (["="], "=: no such config file"),
    (["@options"], "@options: no such config file"),
    (["--help=3"], ["'3'", "python", "--help"]),
    # values of a wrong type
    (["--n_layer=two"], invalid("n_layer", "two", "an integer")),
    (["--n_layer=2.5"], invalid("n_layer", "2.5", "an integer")),
    (["--n_layer=0x10"], invalid("n_layer", "0x10", "an integer")),
    (["--n_layer=1,000"], invalid("n_layer", "1,000", "an integer")),
    (["--n_layer=True"], invalid("n_layer", "True", "an integer")),
    (["--n_layer=None"], invalid("n_layer", "None", "an integer")),
    (["--n_kv_head=half"], invalid("n_kv_head", "half", "an integer or None")),
    (["--learning_rate=1,5e-4"], invalid("learning_rate", "1,5e-4", "a number")),
    (["--dropout=10%"], invalid("dropout", "10%", "a number")),
    (["--bias", "yes"], invalid("bias", "yes", "True or False")),
    (["--compile=maybe"], invalid("compile", "maybe", "True or False or auto")),
    (["--dtype=Float32"], invalid("dtype", "Float32", "auto or float32 or bfloat16 or float16")),
    (["--optimizer=sgd"], invalid("optimizer", "sgd", "adamw or muon")),
    (["--n_layer==2"], invalid("n_layer", "=2", "an integer")),
    (["--n_layer=2=3"], invalid("n_layer", "2=3", "an integer")),
    (["--n_layer=２x"], invalid("n_layer", "２x", "an integer")),  # int() takes such a digit
    (["--n_layer=🦜"], invalid("n_layer", "🦜", "an integer")),
    (["--n_layer=\0"], ["n_layer='\\x00': ", "an integer"]),
    (["--n_layer=\udce7"], ["n_layer='\\udce7': ", "an integer", "[--n_layer=?]"]),
    # infinite or too large
    (["--learning_rate=nan"], invalid("learning_rate", "nan", "a number")),
    (["--weight_decay=-inf"], invalid("weight_decay", "-inf", "a number")),
    (["--grad_clip=1e999"], invalid("grad_clip", "1e999", "a number")),
    (["--max_iters=inf"], invalid("max_iters", "inf", "an integer")),
    (["--max_iters=1e999"], invalid("max_iters", "1e999", "an integer")),
    (["--max_iters=1e300"], ["max_iters=1", "2**53", "[--max_iters=1e300]"]),
    ([f"--batch_size={2**53 + 1}"], invalid("batch_size", 2**53 + 1, "2**53")),
    ([f"--seed={2**63}"], invalid("seed", 2**63, "2**63 [")),
    # missing, empty and repeated values
    (["--n_layer"], "--n_layer: expected one argument"),
    (["--n_layer", "--n_hed=2"], "--n_layer: expected one argument", unknown("--n_hed=2")),
    (["--seed", "--dataset"], "--seed: expected", "--dataset: expected"),
    (["--n_layer="], invalid("n_layer", "", "an integer")),
    (["--compile="], invalid("compile", "", "True or False or auto")),
    (["--learning_rate", " "], invalid("learning_rate", " ", "a number")),
    (["--out_dir="], invalid("out_dir", "", "empty")),
    (["--init_from="], invalid("init_from", "", "empty")),
    (["--dataset="], "dataset=''"),
    (["--device="], "device= "),
    ([""], ["'': ", "empty"]),
    (["--n_layer=2", "--n_layer=x"], invalid("n_layer", "x", "an integer")),
    (["--n_layer=x", "--n_layer=2"], invalid("n_layer", "x", "an integer")),
    (["--", "--n_layer=x"], invalid("n_layer", "x", "an integer")),
    # outside the limits; test_values.py has a row for every limit
    (["--n_layer=0"], invalid("n_layer", 0, "at least 1")),
    (["--n_embd", "-32"], invalid("n_embd", -32, "at least 1")),
    (
        ["--learning_rate=-1e-3"],
        ["learning_rate=-0.001: ", "at least 0", "[--learning_rate=-1e-3]"],
    ),
    (["--dropout=1.0"], invalid("dropout", 1.0, "at least 0", "less than 1")),
    # contradictions
    (["--n_embd=33"], ["n_embd=33", "n_head=2", " 32", "[--n_embd=33, --n_head=2]"]),
    (["--n_kv_head=3"], ["n_kv_head=3", "n_head=2", "1, 2", "[--n_kv_head=3, --n_head=2]"]),
    (["--position=rope", "--n_embd=6"], ["position=rope", "n_head=3", "even", "[--position=rope"]),
    (["--block_size=600"], ["val.bin", "600", "block_size=600", "601", "--block_size=599"]),
    (["--vocab_size=5"], ["vocab_size=5", "14 tokens", "data/tiny"]),
    (
        ["--init_from=resume", "--out_dir=trained", "--block_size=17"],
        ["trained/latest.pt", "block_size=17", "16"],
    ),
    (["--init_from=trained", "--block_size=17"], ["trained/best.pt", "block_size=17", "16"]),
    (
        ["--init_from=resume", "--out_dir=trained", "--optimizer=muon"],
        ["optimizer=muon", "--init_from=trained --out_dir=ANOTHER"],
    ),
    (
        ["--init_from=resume", "--out_dir=trained", "--beta1=2.0"],
        invalid("beta1", 2.0, "less than 1"),
    ),
    # what does not exist
    (["--init_from=resume"], "no checkpoint out/latest.pt"),
    (["--init_from=nowhere"], ["no checkpoint nowhere", "python train.py"]),
    (["--init_from=bad.pt"], "bad.pt cannot be read"),
    (["--dataset=other"], ["data/other", "python prepare.py other --input=FILE_OR_FOLDER"]),
    (
        ["--dataset=shakespeare_char"],
        ["python prepare.py shakespeare_char.", "--dataset: tiny"],  # the one that is prepared
    ),
    (["--dataset=data/tiny"], "dataset='data/tiny'"),
    (["--device=gpu"], ["device=gpu ", "cpu, cuda"]),
    (["--device=cuda:99"], ["device=cuda:99", "--device=auto"]),
    (["--out_dir=text.txt"], "out_dir=text.txt cannot be written"),
    ([f"--out_dir={LONG}"], [f"out_dir={LONG} ", "cannot be written ("]),
    (["--out_dir=a\0b"], ["out_dir='a\\x00b': ", "zero byte"]),
    # config files
    (
        ["typo.py"],
        unknown("typo.py: learing_rate", "learning_rate"),
        unknown("typo.py: n_emdb", "n_embd"),
    ),
    (
        ["wrong.py"],
        ["n_kv_head='two': ", "an integer or None", "[wrong.py]"],
        ["bias=1: ", "True or False", "[wrong.py]"],
        ["rope_base=nan: ", "a number", "[wrong.py]"],
        ["norm_eps=1000", "a number", "[wrong.py]"],
        ["muon_lr=-inf: ", "a number", "[wrong.py]"],
    ),
    (["syntax.py"], ["syntax.py: SyntaxError: ", "line 1"]),
    (["raises.py"], "raises.py: ZeroDivisionError: division by zero (line 3)"),
    (["exits.py"], "exits.py: SystemExit: 0 (line 2)"),
    # A regression: missing.py itself was reported as missing.
    (["missing.py"], ["missing.py: FileNotFoundError: ", "'seed.txt' (line 1)"]),
    (["import.py"], "import.py: ModuleNotFoundError: "),
    (["base.py"], "base.py: BaseException: "),
    (["null.py"], "null.py: SyntaxError: "),
    (["latin.py"], "latin.py: UnicodeDecodeError: "),
    (["utf16.py"], "utf16.py: UnicodeDecodeError: "),
    (["recursion.py"], "recursion.py: RecursionError: "),
    # A regression: functions and modules were ignored, and the run used the default.
    (["function.py"], ["n_kv_head=<function n_kv_head at", "[function.py]"]),
    (["module.py"], ["wandb_project=<module 'time'", "[module.py]"]),
    (["bytes.py"], ["wandb_project=b'seugpt': ", "a text", "[bytes.py]"]),
    (["several.py"], ["wandb_project=('a', 'b'): ", "a text", "[several.py]"]),
    (["zero.py"], ["wandb_project='a\\x00b': ", "zero byte", "[zero.py]"]),
    (["half.py"], ["wandb_project='a\\ud800': ", "UTF-8", "[half.py]"]),
    (["folder.py"], ["folder.py is a folder", "--out_dir=folder.py?"]),
    (["nowhere.py"], "nowhere.py: no such config file"),
    (["text.txt/a.py"], "text.txt/a.py: no such config file"),
    (["a\0.py"], "a\0.py: no such config file"),
    (["bad.pt"], "bad.pt: SyntaxError"),
    (
        [LONG, "--n_layer=x"],
        f"{LONG}: no such config file",
        invalid("n_layer", "x", "an integer"),
    ),
    # all kinds of problems at once
    (
        "typo.py|nowhere.py||-x|--n_layer=x|--beta1=1.0|--batch_size=0|--seed|--nhead=1".split("|"),
        unknown("typo.py: learing_rate", "learning_rate"),
        unknown("typo.py: n_emdb", "n_embd"),
        "nowhere.py: no such config file",
        ["'': ", "empty"],
        unknown("-x"),
        "--seed: expected one argument",
        invalid("n_layer", "x", "an integer"),
        invalid("beta1", 1.0, "less than 1"),
        invalid("batch_size", 0, "at least 1"),
        unknown("--nhead=1", "--n_head"),
    ),
]

SAMPLE = [
    (["--temprature=1"], unknown("--temprature=1", "--temperature")),
    (["--top_k=1.5"], invalid("top_k", "1.5", "an integer or None")),
    (
        ["--top_p=1.5", "--min_p=-1.0"],
        invalid("top_p", 1.5, "at most 1"),
        invalid("min_p", -1.0, "at least 0"),
    ),
    (["--temperature=nan"], invalid("temperature", "nan", "a number")),
    (["--start"], "--start: expected one argument"),
    (["--start="], ["start='': ", "empty", "[--start=]"]),
    (["--start=xyz"], ["--start ", "'x' (U+0078), 'y' (U+0079), 'z' (U+007A)"]),
    (["--start=não\0"], ["start='não\\x00': ", "zero byte"]),
    (["--start=\udce7"], ["--start ", "UTF-8", "--start=FILE:path"]),
    (["--start=FILE:"], ["start=FILE:", "no file"]),
    (["--start=FILE:nowhere"], "cannot read nowhere: "),
    (["--start=FILE:folder.py"], "cannot read folder.py: "),
    (["--start=FILE:text.txt/x"], "cannot read text.txt/x: "),
    ([f"--start=FILE:{LONG}"], f"cannot read {LONG}: "),
    (["--start=FILE:empty.txt"], ["empty.txt is empty", "--start"]),
    (["--start=FILE:latin.txt"], "latin.txt is not UTF-8 (offset 1)"),
    (["--start=FILE:binary.dat"], "binary.dat is not UTF-8 (offset 0)"),
    (["--start=FILE:zero.txt"], ["--start", "U+0000"]),
    (["start.py"], ["start=", "zero byte", "[start.py]"]),
    (["--interactive", "--start=a", "--start=b"], ["start= ", "several times"]),
    (["--stop="], ["stop='': ", "empty", "[--stop=]"]),
    (["--stop=\udce7"], ["stop= ", "UTF-8"]),
    (["--interactive", "ja"], invalid("interactive", "ja", "True or False")),
    (["--device=cuda:99"], ["device=cuda:99", "--device=auto"]),
    (["--out_dir="], invalid("out_dir", "", "empty")),
    (["--out_dir=nowhere"], "no checkpoint nowhere"),
    (["--init_from=nowhere"], "no checkpoint nowhere"),
    (["--init_from=bad.json"], "bad.json is one file of a model"),
    (["a text"], "a text: no such config file"),
]

PREPARE = [
    (["new", "--input=text.txt", "--tokenzier=x"], unknown("--tokenzier=x", "--tokenizer")),
    (
        ["new", "--inptu=text.txt"],
        unknown("--inptu=text.txt", "--input"),
        ["name=new ", "python prepare.py new --input=FILE_OR_FOLDER"],
    ),
    (["new", "old", "--input=text.txt"], ["new old: ", "one name"]),
    (["new", "--name=old", "--input=text.txt"], ["new old: ", "one name"]),
    (["", "--input=text.txt"], ["name='': ", "empty"]),
    (["a/../b", "--input=text.txt"], "'a/../b'"),
    (["--input=text.txt"], ["input=text.txt", "python prepare.py NAME --input=text.txt"]),
    (["new", "--input"], "--input: expected one argument"),
    (["new", "--input=a\0b"], ["input='a\\x00b': ", "zero byte"]),
    (["new", "--input="], invalid("input", "", "empty")),
    (["new", "--input=nowhere"], "cannot read nowhere: "),
    (["new", "--input=latin.txt"], "latin.txt is not UTF-8"),
    (
        ["new", "--input=text.txt", "--tokenizer=words"],
        ["tokenizer=words ", "char, gpt2, bpe", "[--tokenizer=words]"],
    ),
    (["new", "--input=text.txt", "--tokenizer=bad.json"], "the tokenizer of bad.json"),
    (
        ["new", "--input=text.txt", "--vocab_size=256", "--val_fraction=nan"],
        invalid("vocab_size", 256, "257"),
        invalid("val_fraction", "nan", "a number"),
    ),
]

EXPORT = [
    ([], ["to= ", "--to=FOLDER"]),
    (["--to"], "--to: expected one argument"),
    (["--to=", "--out_dir="], invalid("to", "", "empty"), invalid("out_dir", "", "empty")),
    (["--to=hf", "--out_dri=trained"], unknown("--out_dri=trained", "--out_dir")),
    (["--to=a\0b"], ["to='a\\x00b': ", "zero byte"]),
    (["--to=hf", "--out_dir=nowhere"], "no checkpoint nowhere"),
    (["--to=hf", "--out_dir=bad.pt"], "bad.pt cannot be read"),
    (["--to=trained", "--out_dir=trained"], ["to=trained ", "already exists"]),
    (["--to=text.txt", "--out_dir=trained"], ["to=text.txt ", "already exists"]),
    # A regression: the message did not name the option.
    (["--to=text.txt/x", "--out_dir=trained"], ["to=text.txt/x ", "("]),
]

BENCH = [
    (["stpe"], ["stpe", "step, time_to_loss, decode, prepare, run, serve, suite"]),
    (["step", "--stpes=3"], unknown("--stpes=3", "--steps")),
    (
        ["step", "--rounds=0", "--n_embd=33", "--n_head=2"],
        invalid("rounds", 0, "at least 1"),
        ["n_embd=33", "n_head=2"],
    ),
    (["step", "--baseline=nowhere"], ["baseline=nowhere ", "transformers", "model.py"]),
    (["time_to_loss", "--target=1"], "--config="),
    (
        ["time_to_loss", "--target=1", "--config=typo.py"],
        unknown("typo.py: learing_rate", "learning_rate"),
        unknown("typo.py: n_emdb", "n_embd"),
    ),
    (
        ["decode", "--rows=many", "--tokens=0"],
        invalid("tokens", 0, "at least 1"),
        ["rows=['many']", "integers"],
    ),
    (["prepare", "--input=nowhere"], "input=nowhere "),
    (["suite", "--smoke=2"], invalid("smoke", "2", "True or False")),
]


def each_row(table):
    """A test for each row, named after the command line."""
    params = [
        pytest.param(argv, expected, id=ascii(" ".join(argv))[1:-1][:50])
        for argv, *expected in table
    ]
    return pytest.mark.parametrize("argv, expected", params)


@each_row(TRAIN)
def test_train_reports_every_problem(problems_of, run, argv, expected):
    check(problems_of(train.main, run() + argv), expected)


@each_row(SAMPLE)
def test_sample_reports_every_problem(problems_of, argv, expected):
    check(problems_of(sample.main, ["--out_dir=trained", "--device=cpu", *argv]), expected)


@each_row(PREPARE)
def test_prepare_reports_every_problem(problems_of, argv, expected):
    check(problems_of(prepare.main, argv), expected)


@each_row(EXPORT)
def test_export_reports_every_problem(problems_of, argv, expected):
    pytest.importorskip("safetensors")
    pytest.importorskip("tokenizers")
    check(problems_of(export.main, argv), expected)


@each_row(BENCH)
def test_bench_reports_every_problem(problems_of, argv, expected):
    check(problems_of(bench.main, argv), expected)


def test_a_problem_that_follows_from_another_is_not_reported(problems_of, run):
    """--n_head=x was followed by a second problem, about the default of n_head."""
    invalid_n_head = invalid("n_head", "x", "an integer")
    check(problems_of(train.main, [*run(), "--n_head=x"]), [invalid_n_head])
    expected = [
        unknown("run.py: batchsize", "batch_size"),
        ["vocab_size=1.5: ", "an integer or None", "[run.py]"],
        ["min_lr=-1.0: ", "at least 0", "[run.py]"],
        invalid_n_head,
        ["n_embd=64 ", "n_head=3"],
    ]
    check(problems_of(train.main, ["run.py", "--n_head=x", "--n_head=3"]), expected)


def test_a_row_without_a_problem_would_fail(problems_of, run, tmp_path):
    """The fixture problems_of notices a command that does not end with an error."""
    argv = run(out_dir=str(tmp_path), eval_only=True, eval_iters=1)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        problems_of(train.main, argv)
    assert os.listdir(tmp_path) == []
    assert not Path("out").exists()
