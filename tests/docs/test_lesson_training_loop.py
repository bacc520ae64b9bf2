"""The figures of page 4 are what docs/tools/training_loop.py computes and train.py prints."""

import json
import re
import runpy
import shlex

import pytest
import torch

from seugpt.training.logger import RunLogger
from tests.helpers import ROOT, assert_same_figures, code_blocks, train_configs
from train import get_lr


@pytest.fixture(scope="module")
def training_loop():
    """The names in the tool of lesson 4."""
    return runpy.run_path(str(ROOT / "docs" / "tools" / "training_loop.py"))


def test_training_loop_figures_are_the_committed_ones(training_loop):
    """Other processors may round otherwise, in the last digits."""
    committed = training_loop["FIGURES"].read_text(encoding="utf-8")
    with training_loop["open_dataset"]() as dataset:
        computed = training_loop["figures"](dataset, training_loop["missing_line_runs"](dataset))
    assert_same_figures(computed, committed, absolute=1e-9)


@pytest.mark.parametrize("beta2", [0.95, 0.999])
def test_training_loop_adamw_by_hand_is_torchs(training_loop, beta2):
    options = {"lr": 0.3, "betas": (0.8, beta2), "weight_decay": 0.2}
    torch_w = list(training_loop["torch_by_step"](torch.optim.AdamW, -2.0, 20, **options))
    by_hand = training_loop["adamw_by_hand"](-2.0, 20, 0.3, 0.8, beta2, 0.2)
    assert [values[-1] for values in by_hand] == pytest.approx(torch_w, abs=1e-6)


def test_training_loop_shows_lines_of_train_step():
    """The page's short form of train_step is made of its lines."""
    page = ROOT / "docs" / "en" / "04-training-loop.md"
    [excerpt] = [block for language, block in code_blocks(page) if language == "python"]
    source = (ROOT / "train.py").read_text(encoding="utf-8")
    train_step = source[source.index("def train_step") : source.index("def batch")]
    shown = [line.strip() for line in excerpt.splitlines()]
    assert len(shown) == 5
    actual = re.sub(r"\(set_to_none=True\)", "()", train_step)
    assert [line.strip() for line in actual.splitlines() if line.strip() in shown] == shown


def test_training_log_is_what_the_logger_prints(capsys):
    """The command, its log lines and its metrics in training_log.txt belong together."""
    text = (ROOT / "docs" / "data" / "lessons" / "training_log.txt").read_text(encoding="utf-8")
    command, *lines = text.splitlines()
    _, script, preset, *options = shlex.split(command.removeprefix("$ "))
    assert script == "train.py"
    _, config = train_configs([str(ROOT / preset), *options])
    log = RunLogger(config, quiet=True)
    log.quiet = False
    steps = [values for values in map(json.loads, filter_json(lines)) if "loss" in values]
    assert len(steps) == 4
    for values in steps:
        assert values["lr"] == pytest.approx(get_lr(values["step"], config))
        eta_s = (config.max_iters - values["step"] - 1) * values["step_ms"] / 1000
        log.step(**values, mfu=None, eta_s=eta_s)
        assert capsys.readouterr().out.strip() in lines


def filter_json(lines):
    return [line for line in lines if line.startswith("{")]
