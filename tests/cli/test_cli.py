"""The commands as a person types them: every mistake is one message, exit code 2, and nothing lost."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import train
from tests.helpers import ROOT


def command(*words, cwd=ROOT, **environment):
    """Run `python words...` as a process of its own."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment}
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=cwd,
        env=environment,
        timeout=300,
    )


def copy_of_the_program(folder):
    """What a stranger has who has prepared nothing: the program, its presets and README."""
    for path in [
        *ROOT.glob("*.py"),
        *ROOT.glob("config/*.py"),
        *ROOT.glob("seugpt/**/*.py"),
        ROOT / "README.md",
    ]:
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    return folder


@pytest.fixture
def clone(tmp_path):
    return copy_of_the_program(tmp_path / "clone")


def first_command():
    """README's first command, after the installation."""
    line = next(
        line
        for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
        if "quickstart.py &&" in line
    )
    return [part.split()[1:] for part in line.strip(" `").split(" && ")[1:]]


def test_readmes_first_command_runs(clone):
    prepare, train_words, sample = first_command()
    for words in (
        prepare,
        [*train_words, "--max_iters=30", "--eval_interval=30", "--eval_iters=2"],
        sample,
    ):
        result = command(*words, cwd=clone)
        assert result.returncode == 0, result.stderr
    assert result.stdout.count("---------------") == 10
    assert (clone / "out-quickstart" / "loss.png").exists()


def test_the_lines_of_the_source_documents_run_as_they_stand(clone):
    """Rows E1 to E3 with fewer steps, on a text that stands in for Shakespeare."""
    (clone / "s.txt").write_text(
        "First Citizen:\nBefore we proceed any further, hear me speak.\n\n" * 600, encoding="utf-8"
    )
    assert command("prepare.py", "shakespeare_char", "--input=s.txt", cwd=clone).returncode == 0
    line = (
        "train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1 "
        "--block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 "
        "--dropout=0.0"
    ).split()
    fewer = ["--max_iters=4", "--eval_iters=1"]
    for words in (
        [*line, *fewer],
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *line, *fewer],
        ["sample.py", "--out_dir=out-shakespeare-char", "--num_samples=2", "--max_new_tokens=20"],
    ):
        result = command(*words, cwd=clone)
        assert result.returncode == 0, result.stderr
    assert result.stdout.count("---------------") == 2


@pytest.mark.parametrize("script", ["prepare.py", "train.py", "sample.py"])
def test_help(script):
    result = command(script, "--help")
    assert result.returncode == 0 and "default:" in result.stdout


def test_help_after_a_config_file():
    assert command("train.py", "config/train_gpt2.py", "--help").returncode == 0


def test_prepare_does_not_wait_for_torch():
    """torch takes a second to import; preparing a text has no use for it."""
    code = "import sys, prepare; sys.exit('torch' in sys.modules)"
    assert command("-c", code).returncode == 0


def test_importing_has_no_side_effects(tmp_path):
    """Every file of the program but the presets, which are no modules."""
    files = [*ROOT.glob("*.py"), *ROOT.glob("seugpt/**/*.py")]
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in files
    ]
    assert len(modules) > 40 and "seugpt.cli" in modules
    result = command(
        "-c",
        "; ".join(f"import {module}" for module in modules),
        cwd=tmp_path,
        PYTHONPATH=str(ROOT),
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "") and not any(
        tmp_path.iterdir()
    )


DOM_CASMURRO = """Uma noite destas, vindo da cidade para o Engenho Novo, encontrei no trem da Central um rapaz aqui do
bairro, que eu conheço de vista e de chapéu. — «Não durma», disse ele; e a viagem, ó leitor, não acabou aí.
O meu fim evidente era atar as duas pontas da vida, e restaurar na velhice a adolescência.
"""
THREE = """
prepare.py assis --input=memórias.txt
train.py config/quickstart.py --dataset=assis --out_dir=saída --n_embd=16 --max_iters=1 --eval_iters=1
sample.py --out_dir=saída --num_samples=2 --max_new_tokens=50 --start=não --start=FILE:memórias.txt --stop=ª
"""
IN_TURN = """import importlib, sys
for line in sys.argv[1:]:
    script, *words = line.split()
    importlib.import_module(script[:-3]).main(words)
"""  # in one process: torch takes a second to import


def made_in_locale(folder, **environment):
    """What a text of Machado de Assis becomes, in bytes: the data files, and what a model of it says."""
    (folder / "memórias.txt").write_text(DOM_CASMURRO * 20, encoding="utf-8")
    command = [sys.executable, "-c", IN_TURN, *THREE.strip().splitlines()]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", **environment}
    result = subprocess.run(command, capture_output=True, cwd=folder, env=environment)
    assert result.returncode == 0, result.stderr
    files = {path.name: path.read_bytes() for path in (folder / "data/assis").iterdir()}
    return files, result.stdout.rpartition(b"let it write: ")[2].partition(b"\n")[2]


@pytest.fixture(scope="module")
def in_utf8(tmp_path_factory):
    folder = copy_of_the_program(tmp_path_factory.mktemp("utf8") / "clone")
    return made_in_locale(folder, LC_ALL="C.UTF-8", PYTHONUTF8="1", PYTHONIOENCODING="utf-8")


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
        {"PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252"},  # of a console of Windows
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"},
    ],
    ids=lambda environment: " ".join(f"{name}={value}" for name, value in environment.items()),
)
def test_no_locale_changes_a_byte(clone, in_utf8, environment):
    """The accents on the command line were refused as no UTF-8, and meta.json had the file's name in escapes."""
    files, said = made_in_locale(clone, **environment)
    assert files == in_utf8[0] and said == in_utf8[1]
    assert said.startswith("não".encode()) and "conheço".encode() in said
    assert (
        '"source": "memórias.txt"'.encode() in files["meta.json"]
        and "—".encode() in files["meta.json"]
    )


@pytest.mark.skipif(
    sys.platform in ("win32", "darwin"), reason="file names are always Unicode on this system"
)
def test_file_names_that_are_not_utf8(clone):
    """A folder with an old Latin-1 name ended in UnicodeEncodeError when meta.json or training.log was written."""
    source, out_dir = os.fsdecode(b"ma\xe7\xe3.txt"), os.fsdecode(b"out-\xe3")
    (clone / source).write_text("Não há mais maçã.\n" * 200, encoding="utf-8")
    short = [
        "config/quickstart.py",
        "--dataset=m",
        "--n_embd=16",
        "--max_iters=1",
        "--eval_iters=1",
    ]
    for words in (
        ["prepare.py", "m", f"--input={source}"],
        ["train.py", *short, f"--out_dir={out_dir}"],
        ["train.py", f"{out_dir}/config.py", "--max_iters=2"],
        ["train.py", "--init_from=resume", f"--out_dir={out_dir}", "--max_iters=3"],
        ["sample.py", f"--out_dir={out_dir}", "--num_samples=1", "--max_new_tokens=5"],
    ):
        result = command(*words, cwd=clone)
        assert result.returncode == 0, result.stderr
    assert json.loads((clone / "data/m/meta.json").read_text(encoding="utf-8"))["source"] == source


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this system")
def test_a_reader_that_leaves_early_is_no_error(clone):
    assert command("prepare.py", cwd=clone).returncode == 0
    short = "train.py config/quickstart.py --n_embd=16 --max_iters=1 --eval_iters=1".split()
    assert command(*short, cwd=clone).returncode == 0
    pipe = (
        f'"{sys.executable}" sample.py --out_dir=out-quickstart --max_new_tokens=300 | head -c 10'
    )
    result = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True, cwd=clone)
    assert "Traceback" not in result.stderr and "BrokenPipe" not in result.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this system")
@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-"])
def test_a_closed_stream_is_no_error(clone, closed):
    """sys.stderr is None then, and what was to be written to it ended the run with exit code 1."""
    (clone / "t.txt").write_text("abc\n" * 99, encoding="utf-8")
    short = (
        "config/quickstart.py --dataset=t --n_embd=16 --block_size=8 --max_iters=1 --eval_iters=1"
    )
    for words in (
        "prepare.py t --input=t.txt",
        f"train.py {short}",
        "sample.py --out_dir=out-quickstart --max_new_tokens=5",
    ):
        assert (
            subprocess.run(
                ["bash", "-c", f'"{sys.executable}" {words} {closed}'], cwd=clone
            ).returncode
            == 0
        )
    assert (
        subprocess.run(
            ["bash", "-c", f'"{sys.executable}" prepare.py none {closed}'], cwd=clone
        ).returncode
        == 2
    )


def refused(capsys, argv):
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        train.main(argv)
    assert exit.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 or "problems:\n" in message
    return message.replace("\\", "/")  # paths on Windows


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"dataset": "nothing"}, r"no data set in data/nothing .* python prepare.py nothing --input=FILE_OR_FOLDER"),
        ({"dataset": "shakespeare_char"}, r"python prepare.py shakespeare_char. Prepared so far, for --dataset: tiny$"),
        ({"dataset": "../tiny"}, r"dataset='../tiny' must be one plain name"),
        ({"block_size": 600}, r"val.bin has 600 tokens; block_size=600 needs at least 601. Use --block_size=599"),
        ({"n_embd": 33}, r"n_embd=33 must be divisible by n_head=2.* \[--n_embd=33, --n_head=2\]"),
        ({"n_layers": 3}, r"--n_layers=3: no such option; did you mean --n_layer\?"),
        ({"max_iters": "many"}, r"max_iters='many' expects an integer"),
        ({"batch_size": 1.5}, r"batch_size='1.5' expects an integer"),
        ({"dropout": 2}, r"dropout=2.0 must be at least 0 and below 1"),
        ({"learning_rate": "nan"}, r"learning_rate='nan' expects a number"),
        ({"learning_rate": -1}, r"learning_rate=-1.0 must be at least 0"),
        ({"beta1": 1}, r"beta1=1.0 must be below 1"),
        ({"compile": "maybe"}, r"compile='maybe' expects True or False or auto"),
        ({"dtype": "int8"}, r"dtype='int8' expects auto or float32 or bfloat16 or float16"),
        ({"device": "cuda:9"}, r"device=cuda:9 is not there"),
        ({"device": "gpu"}, r"device=gpu"),
        ({"vocab_size": 5}, r"vocab_size=5 is below the 14 tokens of data/tiny"),
        ({"out_dir": "tiny.txt"}, r"out_dir=tiny.txt cannot be written"),
        ({"out_dir": ""}, r"out_dir= is empty"),
        ({"init_from": "resume"}, r"no checkpoint out/latest.pt. A run writes it: python train.py CONFIG"),
        ({"init_from": "nowhere"}, r"no checkpoint nowhere. A run"),
        ({"init_from": "tiny.txt"}, r"tiny.txt cannot be read as a checkpoint"),
        ({"eval_interval": 0}, r"eval_interval=0 must be at least 1"),
    ],
)  # fmt: skip
def test_a_mistake_in_training_is_one_message(tiny, run, capsys, changes, words):
    message = refused(capsys, run(**changes))
    assert re.search(words, message.strip()), message
    assert not Path("out").exists()


def test_ids_beyond_the_vocabulary_are_named_with_the_file(tiny, run, capsys):
    ids = np.fromfile("data/tiny/val.bin", dtype="<u2")
    ids[7] = 60_000
    ids.tofile("data/tiny/val.bin")
    meta = Path(
        "data/tiny/meta.json"
    )  # as written before there were fingerprints, which notice any change
    meta.write_text(
        re.sub(r'"fingerprint": "\w+"', '"fingerprint": null', meta.read_text("utf-8")), "utf-8"
    )
    assert "val.bin holds the token id 60000; the vocabulary ends at 13" in refused(capsys, run())


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"n_layer": 3}, r"out/latest.pt has another architecture: n_layer=3 \(there 2\)"),
        ({"block_size": 8}, r"block_size=8 \(there 16\)"),
        ({"bias": True, "n_head": 4}, r"n_head=4 \(there 2\), bias=True \(there False\)"),
    ],
)
def test_a_resume_with_another_architecture_is_refused_and_loses_nothing(
    tiny, run, capsys, changes, words
):
    train.main(run(max_iters=2))
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert re.search(words, refused(capsys, run(init_from="resume", max_iters=5, **changes)))
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before
    assert re.search(
        r"block_size=17 \(there 16\)",
        refused(capsys, run(init_from="out", out_dir="new", block_size=17)),
    )


def test_fine_tuning_on_another_vocabulary_is_refused_with_the_way(tiny, run, capsys):
    import prepare

    train.main(run(max_iters=1))
    Path("other.txt").write_text("XYZ" * 300, encoding="utf-8")
    prepare.main(["other", "--input=other.txt"])
    message = refused(capsys, run(init_from="out", dataset="other", out_dir="new"))
    assert "python prepare.py NEW_NAME --input=FILE --tokenizer=data/tiny/meta.json" in message
    shutil.copytree("data/other", "data/tiny", dirs_exist_ok=True)
    assert "It was prepared anew since" in refused(capsys, run(init_from="resume"))
