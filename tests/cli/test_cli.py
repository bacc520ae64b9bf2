"""Whole commands as people type them, under odd locales, pipes and file names."""

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bench
import evaluate
import export
import prepare
import sample
import train
import visualize
from seugpt.data.dataset_dir import fingerprint
from tests.helpers import ROOT, run_python

COMMANDS = ("train", "sample", "prepare", "evaluate", "visualize", "export", "serve", "bench")
SEPARATOR = "---------------"
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this system")

# Run several command lines in one process: torch takes seconds to import.
RUN_IN_TURN = """import importlib, sys
for line in sys.argv[1:]:
    script, *argv = line.split()
    importlib.import_module(script[:-3]).main(argv)
"""


@pytest.fixture
def clone(tmp_path):
    """A fresh clone: the program and its presets, without data and runs."""
    for pattern in ("*.py", "config/*.py", "seugpt/**/*.py"):
        for path in ROOT.glob(pattern):
            copy = tmp_path / "clone" / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    return tmp_path / "clone"


@pytest.fixture
def presets(workspace):
    """A current folder with config/ in it."""
    shutil.copytree(ROOT / "config", "config")
    return workspace


def run_in_turn(lines):
    """Run command lines one after another in this process."""
    for line in lines:
        script, *argv = line.split()
        importlib.import_module(script.removesuffix(".py")).main(argv)


def test_the_first_command_of_the_readme_runs(clone):
    """The quickstart line runs in a fresh clone (here with fewer steps and shorter samples)."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [line] = [line for line in readme.splitlines() if "quickstart.py &&" in line]
    install, prepare_line, train_line, sample_line = line.split(" && ")
    assert "pip install" in install
    for line in (
        prepare_line,
        f"{train_line} --max_iters=3 --eval_interval=3 --eval_iters=1",
        f"{sample_line} --max_new_tokens=20",
    ):
        python, *words = line.split()
        assert python == "python"
        result = run_python(*words, cwd=clone, PYTHONPATH="")
        assert result.returncode == 0, result.stderr
    assert result.stdout.count(SEPARATOR) == 10
    assert (clone / "out-quickstart" / "loss.png").exists()


# From nanoGPT's README.
NANOGPT_LINE = (
    "train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 "
    "--log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 "
    "--max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
)
FEWER_STEPS = "--max_iters=4 --eval_iters=1"


@pytest.fixture
def shakespeare(presets):
    """data/shakespeare_char, prepared from a text that stands in for Shakespeare's."""
    text = "First Citizen:\nBefore we proceed any further, hear me speak.\n\n" * 600
    Path("s.txt").write_text(text, encoding="utf-8")
    prepare.main(["shakespeare_char", "--input=s.txt"])
    return presets


def test_nanogpts_commands_run_unchanged(shakespeare, capsys):
    run_in_turn([f"{NANOGPT_LINE} {FEWER_STEPS}"])
    capsys.readouterr()
    run_in_turn(["sample.py --out_dir=out-shakespeare-char --num_samples=2 --max_new_tokens=20"])
    assert capsys.readouterr().out.count(SEPARATOR) == 2


@pytest.mark.slow
def test_nanogpts_torchrun_command_runs_unchanged(shakespeare):
    script, *argv = f"{NANOGPT_LINE} {FEWER_STEPS}".split()
    launcher = "-m torch.distributed.run --standalone --nproc_per_node=2".split()
    result = run_python(*launcher, ROOT / script, *argv, cwd=None)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("script", [prepare, train, sample, evaluate, export])
def test_help_shows_the_defaults(capsys, script):
    with pytest.raises(SystemExit) as exit:
        script.main(["--help"])
    assert exit.value.code == 0
    assert "default:" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["--help"], []])
@pytest.mark.parametrize("script", [visualize, bench])
def test_help_shows_the_subcommands(capsys, script, argv):
    with pytest.raises(SystemExit) as exit:
        script.main(argv)
    assert exit.value.code == 0
    help_text = capsys.readouterr().out
    assert all(f"python {script.__name__}.py {name}" in help_text for name in script.COMMANDS)


def test_help_may_follow_a_config_file(presets, capsys):
    with pytest.raises(SystemExit) as exit:
        train.main(["config/train_gpt2.py", "--help"])
    assert exit.value.code == 0
    assert "default:" in capsys.readouterr().out


def test_prepare_does_not_import_torch():
    """Importing torch takes a second, and preparing a text does not need it."""
    code = "import sys, prepare; sys.exit('torch' in sys.modules)"
    assert run_python("-c", code).returncode == 0


def test_importing_has_no_side_effects(tmp_path):
    """Importing any module of the program prints nothing and writes nothing."""
    files = [*ROOT.glob("*.py"), *ROOT.glob("seugpt/**/*.py")]
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in files
    ]
    assert len(modules) > 40
    assert "seugpt.cli" in modules
    code = "; ".join(f"import {module}" for module in modules)
    result = run_python("-c", code, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert not any(tmp_path.iterdir())


DOM_CASMURRO = """
Uma noite destas, vindo da cidade para o Engenho Novo, encontrei no trem da Central um rapaz aqui do
bairro, que eu conheço de vista e de chapéu. — «Não durma», disse ele; e a viagem, ó leitor, não
acabou aí. O meu fim evidente era atar as duas pontas da vida, e restaurar na velhice a
adolescência.
"""
ACCENTED_LINES = [
    "prepare.py assis --input=memórias.txt",
    "train.py config/quickstart.py --dataset=assis --out_dir=saída --n_embd=16 --n_layer=1 "
    "--max_iters=1 --eval_iters=1",
    "sample.py --out_dir=saída --num_samples=2 --max_new_tokens=50 --start=não "
    "--start=FILE:memórias.txt --stop=ª",
]


def run_in_locale(folder, **environment):
    """(files of the data set, printed sample), as bytes, of ACCENTED_LINES in an environment."""
    shutil.copytree(ROOT / "config", folder / "config")
    (folder / "memórias.txt").write_text(DOM_CASMURRO * 20, encoding="utf-8")
    command = [sys.executable, "-c", RUN_IN_TURN, *ACCENTED_LINES]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    result = subprocess.run(command, capture_output=True, cwd=folder, env=environment)
    assert result.returncode == 0, result.stderr
    dataset = folder / "data" / "assis"
    files = {name: (dataset / name).read_bytes() for name in prepare.FILES}
    return files, result.stdout.partition("não".encode())[2]


@pytest.fixture(scope="module")
def output_in_utf8(tmp_path_factory):
    utf8 = {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8"}
    return run_in_locale(tmp_path_factory.mktemp("utf8"), **utf8)


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
        {"PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252"},  # a console on Windows
        pytest.param({"LC_ALL": "C"}, marks=pytest.mark.slow),
        pytest.param(
            {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda environment: " ".join(f"{name}={value}" for name, value in environment.items()),
)
def test_no_locale_changes_a_byte(tmp_path, output_in_utf8, environment):
    """In an ASCII locale, accents in options were refused, and meta.json escaped them."""
    files, printed = run_in_locale(tmp_path, **environment)
    assert files == output_in_utf8[0]
    assert printed == output_in_utf8[1]
    assert "conheço".encode() in printed
    assert '"source": "memórias.txt"'.encode() in files["meta.json"]
    assert "—".encode() in files["meta.json"]


@pytest.mark.skipif(
    sys.platform in ("win32", "darwin"), reason="file names are always Unicode on this system"
)
def test_file_names_need_not_be_utf8(presets):
    """A name in Latin-1 ended in UnicodeEncodeError in meta.json or training.log."""
    source = os.fsdecode(b"ma\xe7\xe3.txt")
    out_dir = os.fsdecode(b"out-\xe3")
    Path(source).write_text("Não há mais maçã.\n" * 200, encoding="utf-8")
    short = "--dataset=m --n_embd=16 --n_layer=1 --max_iters=1 --eval_iters=1 --device=cpu"
    lines = [
        f"prepare.py m --input={source}",
        f"train.py config/quickstart.py {short} --out_dir={out_dir}",
        f"train.py {out_dir}/config.py --max_iters=2",
        f"train.py --init_from=resume --out_dir={out_dir} --max_iters=3",
        f"sample.py --out_dir={out_dir} --num_samples=1 --max_new_tokens=5 --device=cpu",
    ]
    run_in_turn(lines)
    meta = json.loads(Path("data/m/meta.json").read_text(encoding="utf-8"))
    assert meta["source"] == source


def run_bash(line):
    """Run a command line in bash, with $PYTHON and the program on Python's path."""
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, encoding="utf-8", env=environment
    )


@needs_bash
def test_a_reader_that_leaves_early_is_not_an_error(trained):
    code = "import sample; sample.main(['--max_new_tokens=300', '--device=cpu'])"
    result = run_bash(f'"$PYTHON" -c "{code}" | head -c 10; exit ${{PIPESTATUS[0]}}')
    assert result.returncode == 141
    assert "Traceback" not in result.stderr
    assert "BrokenPipe" not in result.stderr


@needs_bash
@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-"])
def test_a_closed_stream_is_not_an_error(trained, closed):
    """sys.stderr is None then, and printing to it ended the run with exit code 1."""
    Path("run_in_turn.py").write_text(RUN_IN_TURN, encoding="utf-8")
    lines = [
        "prepare.py t --input=tiny.txt",
        "train.py --init_from=resume --max_iters=31 --eval_iters=1",
        "sample.py --max_new_tokens=5 --num_samples=1 --device=cpu",
    ]
    quoted = " ".join(f"'{line}'" for line in lines)
    assert run_bash(f'"$PYTHON" run_in_turn.py {quoted} {closed}').returncode == 0
    assert Path("data/t/meta.json").exists()
    assert '"step": 30' in Path("out/metrics.jsonl").read_text(encoding="utf-8")
    assert run_bash(f'"$PYTHON" run_in_turn.py "prepare.py none" {closed}').returncode == 2


def test_an_id_outside_the_vocabulary_is_reported_with_its_file(tiny, run, refused):
    """The fingerprint in meta.json is renewed, or it would already reveal the change."""
    ids = np.fromfile("data/tiny/val.bin", dtype="<u2")
    ids[7] = 60_000
    ids.tofile("data/tiny/val.bin")
    meta = json.loads(Path("data/tiny/meta.json").read_text(encoding="utf-8"))
    meta["splits"]["val"]["fingerprint"] = fingerprint("data/tiny/val.bin")
    Path("data/tiny/meta.json").write_text(json.dumps(meta), encoding="utf-8")
    message = refused(train.main, *run())
    assert str(Path("data/tiny/val.bin")) in message
    assert "60000" in message
    assert " 13" in message


def out_files():
    return {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}


def test_resuming_with_another_architecture_is_refused_and_loses_nothing(trained, run, refused):
    before = out_files()
    for changes in ({"n_layer": 3}, {"block_size": 8}, {"bias": True, "n_head": 4}):
        argv = run(init_from="resume", max_iters=50, **changes)
        message = refused(train.main, *argv).replace("\\", "/")
        assert "out/latest.pt" in message
        for name, value in changes.items():
            assert f"{name}={value}" in message
    assert out_files() == before
    message = refused(train.main, *run(init_from="out", out_dir="new", block_size=17))
    assert re.search(r"block_size=17 \(.*16\)", message)


def test_fine_tuning_on_another_vocabulary_is_refused_with_the_next_command(trained, run, refused):
    Path("other.txt").write_text("XYZ" * 300, encoding="utf-8")
    prepare.main(["other", "--input=other.txt"])
    message = refused(train.main, *run(init_from="out", dataset="other", out_dir="new"))
    assert "python prepare.py NEW_NAME --input=FILE --tokenizer=data/tiny/meta.json" in message
    shutil.copytree("data/other", "data/tiny", dirs_exist_ok=True)
    message = refused(train.main, *run(init_from="resume", max_iters=50))
    assert "data/tiny" in message
    assert "NEW_NAME" not in message


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C in another way")
@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_during_the_imports_is_quiet(workspace, monkeypatch, command):
    """In its first seconds every command answered with a traceback from inside torch."""
    for module in ("numpy", "torch", "tqdm"):
        # In pieces: a signal just before a sleep begins does not interrupt it.
        sleep = "for _ in range(600):\n    time.sleep(0.1)\n"
        code = f"import time\nprint('importing', flush=True)\n{sleep}"
        Path(f"{module}.py").write_text(code)
    path = os.pathsep.join([str(workspace), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / f"{command}.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=environment,
    )
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert printed.strip() == "Interrupted."
    assert process.returncode == -signal.SIGINT
