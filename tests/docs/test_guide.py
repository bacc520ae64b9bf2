"""The code on the pages of docs/guide runs."""

import re

from tests.helpers import ROOT


def test_the_python_page_runs(tiny, capsys):
    """Its blocks run one after another, here with fewer steps and on a smaller data set."""
    page = (ROOT / "docs" / "guide" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    code = "\n".join(blocks)
    for longer, shorter in {
        "data/python_docs": "data/tiny",
        "The value of ": "o menino ",
        "=200": "=10",
        "eval_interval=100": "eval_interval=5",
        'out_dir="out-notebook"': 'out_dir="out-notebook", device="cpu"',
    }.items():
        assert longer in code
        code = code.replace(longer, shorter)
    exec(compile(code, "python.md", "exec"), {"__name__": "page"})
    assert "perplexity of the prompt" in capsys.readouterr().out
    assert (tiny / "out-notebook" / "best.pt").exists()
    assert (tiny / "out-sums" / "best.pt").exists()
