"""Lesson 13: the fit, the prediction that was committed, the page's figures, a tiny run."""

import json
import re
import runpy
import shutil

import numpy as np
import pytest

from seugpt.errors import UserError
from tests.helpers import ROOT

COMMITTED = ROOT / "docs" / "data" / "scaling"
TINY = {
    "SIZES": ((1, 1, 8), (1, 1, 12), (1, 2, 16)),
    "LARGE": (1, 2, 32),
    "TOKENS": (256, 512, 1024),
    "RATE_SIZES": ((1, 1, 8),),
    "DATASET": "tiny",
    "BATCH_SIZE": 4,
    "BLOCK_SIZE": 16,
}
NUM_TINY = 4 + 9  # models that try a rate, and models that are fitted


def load_tool(**changes):
    """The names in docs/tools/scaling.py, with other constants."""
    tool = runpy.run_path(str(ROOT / "docs" / "tools" / "scaling.py"))
    tool["main"].__globals__.update(changes)
    return tool


@pytest.fixture(scope="module")
def scaling():
    return load_tool()


def committed(name):
    return json.loads((COMMITTED / name).read_text(encoding="utf-8"))


# The fit


@pytest.fixture
def grid(scaling):
    """N and D, float arrays (24,): eight sizes, three amounts of text."""
    sizes = np.geomspace(1e4, 3e6, 8)
    tokens = np.array(scaling["TOKENS"], float)
    return np.repeat(sizes, 3), np.tile(tokens, 8)


@pytest.mark.parametrize(
    "constants", [(1.0, 20, 0.35, 300, 0.5), (0.4, 5, 0.2, 30, 0.3), (1.3, 406, 0.6, 4000, 0.7)]
)
def test_the_fit_finds_the_constants_of_a_known_law(scaling, grid, constants):
    law = scaling["Law"](*constants)
    found = scaling["fit_law"](*grid, law(*grid))
    assert list(vars(found).values()) == pytest.approx(constants, rel=1e-6)


def test_the_fit_is_the_least_of_squares(scaling, grid):
    """With noise no law nearby fits better: the errors of log loss, not of the loss, count."""
    noise = 0.02 * np.random.default_rng(0).standard_normal(len(grid[0]))
    loss = scaling["Law"](1.0, 20, 0.35, 300, 0.5)(*grid) * np.exp(noise)
    found = vars(scaling["fit_law"](*grid, loss))

    def error(constants):
        return np.sum(np.log(scaling["Law"](**constants)(*grid) / loss) ** 2)

    for name, value in found.items():
        for factor in (0.9999, 1.0001):
            assert error(found) < error(found | {name: value * factor})


def test_log_law_has_the_right_derivatives(scaling, grid):
    theta = np.log([1.0, 20, np.exp(0.35), 300, np.exp(0.5)])
    log_N, log_D = np.log(grid)
    _, derivatives = scaling["log_law"](theta, log_N, log_D)
    for i in range(5):
        nudge = 1e-6 * (np.arange(5) == i)
        higher, lower = (scaling["log_law"](theta + n, log_N, log_D)[0] for n in (nudge, -nudge))
        assert derivatives[:, i] == pytest.approx((higher - lower) / 2e-6, rel=1e-6)


# What is committed

predicted = pytest.mark.skipif(
    not (COMMITTED / "prediction.json").exists(), reason="page 13's models are not all trained yet"
)


@predicted
def test_the_committed_prediction_follows_from_the_committed_runs(scaling):
    runs = scaling["read_lines"](COMMITTED / "runs.jsonl")
    prediction = committed("prediction.json")
    assert scaling["write_prediction"](COMMITTED, runs) == prediction  # its checksum is theirs
    again = scaling["predict"](runs, prediction["parameters"], prediction["tokens"])
    for name, value in again.items():
        close = pytest.approx(value, rel=1e-4)
        assert prediction[name] == close, name


@predicted
def test_the_committed_runs_are_those_that_the_tool_makes(scaling):
    """Eight sizes from 10K to 3M parameters on each amount of text, and one ten times larger."""
    for jobs, name in (("rate_jobs", "rates.jsonl"), ("small_jobs", "runs.jsonl")):
        lines = scaling["read_lines"](COMMITTED / name)
        jobs = scaling[jobs]()
        assert len(lines) == len(jobs)
        assert all(any(scaling["is_result"](line, job) for line in lines) for job in jobs)
    sizes = {run["parameters"] for run in lines}
    assert len(sizes) == 8
    large, prediction = committed("large.json"), committed("prediction.json")
    assert min(sizes) < 15_000 < 3_000_000 < max(sizes) < large["parameters"] / 10
    job = (scaling["LARGE"], scaling["TOKENS"][-1], scaling["OPTIONS"])
    assert scaling["is_result"](large, job)
    for name in ("parameters", "tokens"):
        assert large[name] == prediction[name]


@predicted
def test_what_the_tool_prints_is_committed(scaling):
    rates, runs = (scaling["read_lines"](COMMITTED / f"{n}.jsonl") for n in ("rates", "runs"))
    text = scaling["report"](rates, runs, committed("prediction.json"), committed("large.json"))
    assert scaling["FIGURES"].read_text(encoding="utf-8") == text


@predicted
@pytest.mark.parametrize("language", ["en", "pt-BR"])
def test_the_figures_on_the_page_are_the_committed_ones(scaling, language):
    """Each number with a decimal mark in a block that says where it was measured."""
    figures = scaling["FIGURES"].read_text(encoding="utf-8").replace(",", "")
    text = (ROOT / "docs" / language / "13-scaling-laws.md").read_text(encoding="utf-8")
    marker = "<!-- measured: docs/data/lessons/scaling.txt -->\n"
    blocks = [part.split("\n\n")[0] for part in text.split(marker)[1:]]
    assert len(blocks) > 3
    for block in blocks:
        if language == "pt-BR" and not block.startswith("```"):
            block = block.translate(str.maketrans(",.", ".,"))
        for number in re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", re.sub(r"`[^`]+`", "", block)):
            assert number.replace(",", "") in figures, number


# A run with tiny sizes


def test_it_trains_predicts_and_only_then_trains_the_large_model(tiny, capsys):
    scaling = load_tool(**TINY)
    out = tiny / "out"

    def run(max_models):
        scaling["main"]([f"--folder={out}", f"--max_models={max_models}"])
        return capsys.readouterr().out

    assert f"{NUM_TINY - 6} models are still missing" in run(6)
    runs = scaling["read_lines"](out / "runs.jsonl")
    assert len(runs) == 2
    assert "predicted" in run(NUM_TINY - 6)
    assert scaling["read_lines"](out / "runs.jsonl")[:2] == runs  # not trained again
    prediction = (out / "prediction.json").read_text(encoding="utf-8")
    assert not (out / "large.json").exists()
    assert "reached" in run(1)
    large = json.loads((out / "large.json").read_text(encoding="utf-8"))
    assert large["loss"] < 3.7  # of 32 characters, ln 32 = 3.47 at chance
    assert (out / "prediction.json").read_text(encoding="utf-8") == prediction
    assert {path.name for path in out.rglob("*.png")} == {"scaling.png"}
    assert run(5) == run(0)  # nothing is left to train


@predicted
def test_no_prediction_is_written_once_the_answer_is_known(tmp_path, scaling, refused):
    shutil.copy(COMMITTED / "runs.jsonl", tmp_path)
    shutil.copy(COMMITTED / "rates.jsonl", tmp_path)
    shutil.copy(COMMITTED / "large.json", tmp_path)
    assert "large.json" in refused(scaling["main"], f"--folder={tmp_path}")
    assert not (tmp_path / "prediction.json").exists()


@predicted
def test_a_prediction_does_not_survive_other_runs(tmp_path, scaling, refused):
    """A fit to runs that were repeated later would not be what the large model was told."""
    for path in COMMITTED.iterdir():
        shutil.copy(path, tmp_path)
    lines = scaling["read_lines"](tmp_path / "runs.jsonl")
    lines[0]["loss"] += 0.1
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "runs.jsonl").write_text(text, encoding="utf-8")
    assert "runs.jsonl" in refused(scaling["main"], f"--folder={tmp_path}")


def test_one_pass_shows_each_window_once(workspace):
    """Training text 0, 1, 2, ...: a window tells where it stood."""
    scaling = load_tool()
    dataset = object.__new__(scaling["OnePass"])
    dataset.ids = {"train": CountingIds()}
    dataset.path = workspace
    batches = [dataset.batch("train", index, 4, 16, seed=0) for index in range(3)]
    starts = np.concatenate([x[:, 0] for x, _ in batches])
    assert sorted(starts) == list(range(0, 12 * 16, 16))
    assert starts.tolist() != sorted(starts)
    for x, y in batches:
        assert (x == x[:, :1] + np.arange(16)).all()
        assert (y == x + 1).all()
    with pytest.raises(UserError, match="too few for one pass"):
        dataset.batch("train", 3, 4, 16, seed=0)


class CountingIds:
    """A TokenArray of the numbers 0, 1, 2, ..., with 12 windows of 16 tokens and one more."""

    def __len__(self):
        return 12 * 16 + 1

    def windows(self, starts, length):
        return np.array(starts)[:, None] + np.arange(length)
