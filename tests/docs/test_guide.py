"""The code on the pages of docs/guide runs."""

import re
import shutil
import signal

import pytest

from seugpt.training.signals import SIGNALS
from tests.helpers import ROOT, run_python


def test_the_python_page_runs(tiny, capsys):
    """Its blocks run one after another, here with fewer steps and on a smaller data set."""
    page = (ROOT / "docs" / "guide" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    code = "\n".join(blocks)
    for longer, shorter in {
        "data/python_docs": "data/tiny",
        "The value of ": "o menino ",
        '"The "': '"o "',
        "=200": "=10",
        "eval_interval=100": "eval_interval=5",
        'out_dir="out-notebook"': 'out_dir="out-notebook", device="cpu"',
    }.items():
        assert longer in code
        code = code.replace(longer, shorter)
    handlers = [signal.getsignal(signum) for signum in SIGNALS]
    exec(compile(code, "python.md", "exec"), {"__name__": "page"})
    assert [signal.getsignal(signum) for signum in SIGNALS] == handlers
    assert "perplexity of the prompt" in capsys.readouterr().out
    assert (tiny / "out-notebook" / "best.pt").exists()
    assert (tiny / "out-sums" / "best.pt").exists()
    assert (tiny / "out-thread" / "best.pt").exists()


def test_importing_every_module_has_no_side_effects(tmp_path):
    """No file, no output, no signal handler, no change of torch's settings or random numbers."""
    names = [path.stem for path in ROOT.glob("*.py")]
    modules = sorted((ROOT / "seugpt").rglob("*.py"))
    names += [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules]
    code = f"""
import importlib, os, signal, sys, torch
state = lambda: (
    torch.get_rng_state().tolist(), torch.get_num_threads(), torch.get_default_dtype(),
    torch.get_float32_matmul_precision(), [signal.getsignal(n) for n in (1, 2, 15)],
    sys.excepthook, dict(os.environ), os.listdir(),
)
before = state()
for name in {names}:
    if not name.endswith(("harness", "baselines")):  # need packages that are optional
        importlib.import_module(name)
assert state() == before
"""
    result = run_python("-c", code, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.slow
def test_installed_package_works_from_any_folder(tmp_path):
    """pip install . puts the heart and seugpt on the path, and nothing else."""
    source = tmp_path / "source"  # pip builds in the folder itself
    ignored = shutil.ignore_patterns(".git", "out*", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    target = tmp_path / "site"
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", target, source]
    result = run_python(*pip, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    installed = {path.name for path in target.iterdir() if not path.name.endswith(".dist-info")}
    assert installed - {"__pycache__"} == {
        *(f"{path.name}" for path in ROOT.glob("*.py")),
        "seugpt",
    }
    code = f"""
import sys
sys.path.insert(0, {str(target)!r})
import model, train
assert model.__file__.startswith({str(target)!r})
print(model.GPT(model.ModelConfig(vocab_size=5, n_layer=1, n_embd=8, n_head=1)).num_params())
"""
    result = run_python("-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
