"""metrics.jsonl: reading a damaged file, and what a resumed run keeps of it."""

from pathlib import Path

import pytest

import train
from seugpt.training.metrics import read_metrics, truncate_metrics

DAMAGED = [
    b'{"step": 2, "lo',
    b"\0" * 9,
    b"\xff\xfe",
    b"[1]",
    b'{"loss": 2.0}',
    b'{"step": 1, "loss": "x"}',
    b"[" * 9999,
]


@pytest.mark.parametrize("line", DAMAGED)
def test_damaged_line_is_skipped(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n' + line)
    assert read_metrics(path) == ([{"step": 1, "loss": 2.0}], 1)


def test_missing_file_has_no_lines(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == ([], 0)


def test_truncating_keeps_the_evaluation_at_the_checkpoint_and_drops_the_step_after_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 4, "loss": 2.0}\n'
        '{"step": 5, "train_loss": 2.0, "val_loss": 2.0}\n'
        '{"step": 5, "loss": 2.0}\n'
        '{"step": 6, "train_loss": 2.0, "val_loss": 2.0}\n'
    )
    assert truncate_metrics(path, 5) == 0
    assert [values["step"] for values in read_metrics(path)[0]] == [4, 5]
    assert "val_loss" in read_metrics(path)[0][1]
    assert truncate_metrics(path, None) == 0  # a new run
    assert read_metrics(path) == ([], 0)


def test_resumed_run_reports_damaged_lines_once(trained, resume, capsys):
    """A line without a step, or one that is not UTF-8, once made every resume crash."""
    with open("out/metrics.jsonl", "ab") as file:
        file.write(b"\n".join(DAMAGED))
    for max_iters, expected in ((31, 1), (32, 0)):
        train.main(resume(max_iters=max_iters))
        note = f"7 damaged line(s) of {Path('out/metrics.jsonl')}"
        assert capsys.readouterr().out.count(note) == expected
    metrics, num_damaged = read_metrics(Path("out/metrics.jsonl"))
    assert num_damaged == 0
    assert [values["step"] for values in metrics if "loss" in values] == list(range(32))
