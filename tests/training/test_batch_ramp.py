"""The batch ramp: a pure function of the step, whatever the number of processes."""

import re

import pytest

import train
from seugpt.errors import ConfigError
from seugpt.training.batch_ramp import check_split, num_micro_batches
from seugpt.training.distributed import DistributedEnv
from tests.helpers import logged_metrics, logged_values, nested_equal, resume_state, train_configs
from train import TrainConfig, get_accumulation_steps

RAMP = {"gradient_accumulation_steps": 8, "rampup_start": 2, "rampup_iters": 4}


def ramp(total, start, iters):
    return TrainConfig(gradient_accumulation_steps=total, rampup_start=start, rampup_iters=iters)


def test_accumulation_doubles_in_equal_parts_until_rampup_iters():
    config = ramp(total=16, start=2, iters=9)
    by_step = [get_accumulation_steps(step, config) for step in range(12)]
    assert by_step == [2, 2, 2, 4, 4, 4, 8, 8, 8, 16, 16, 16]


@pytest.mark.parametrize(
    "total, start, iters",
    [(40, 0, 0), (40, 5, 10), (64, 1, 100), (64, 1, 2), (8, 4, 1), (6, 6, 3), (96, 3, 7)],
)
def test_micro_batches_are_the_sum_of_all_steps_before(total, start, iters):
    config = ramp(total, start, iters)
    count = 0
    for step in range(120):
        assert num_micro_batches(step, config) == count, step
        count += get_accumulation_steps(step, config)
    assert get_accumulation_steps(iters, config) == total
    assert get_accumulation_steps(0, config) == (start or total)


@pytest.mark.parametrize("start, world_sizes", [(4, (1, 2, 4)), (1, (1, 2))])
def test_ranks_together_draw_the_batches_of_one_process(make_trainer, start, world_sizes):
    """Each window is drawn once, also while two ranks share the rows of a single micro-batch."""
    trainer = make_trainer(gradient_accumulation_steps=8, rampup_start=start, rampup_iters=3)
    num_windows = 4 * num_micro_batches(5, trainer.config)
    expected = [
        tuple(row)
        for index in range(num_windows // 4)
        for row in trainer.dataset.batch("train", index, 4, 16, trainer.config.seed)[0].tolist()
    ]

    def rows(world_size):
        found = []
        for step in range(5):
            trainer.state.step = step
            of_step = []
            for rank in range(world_size):
                trainer.dist_env = DistributedEnv(rank, world_size)
                for micro_step in range(trainer.micro_steps):
                    x, _ = trainer.batch(micro_step)
                    of_step += map(tuple, x.tolist())
            found.append(sorted(of_step))
        return found

    one, *others = [rows(world_size) for world_size in world_sizes]
    assert all(other == one for other in others)
    assert sorted(row for of_step in one for row in of_step) == sorted(expected)


def test_without_a_ramp_the_batches_are_those_of_older_runs(make_trainer):
    """index = (step * accumulation + micro_step) * world_size + rank, so that they resume."""
    trainer = make_trainer(gradient_accumulation_steps=6)
    indices = []
    trainer.read_batch = lambda split, index, *_: indices.append(index) or 1 / 0
    trainer.dist_env = DistributedEnv(rank=1, world_size=3)
    trainer.state.step = 7
    for micro_step in range(2):
        with pytest.raises(ZeroDivisionError):
            trainer.batch(micro_step)
    assert indices == [(7 * 2 + 0) * 3 + 1, (7 * 2 + 1) * 3 + 1]


def test_run_resumed_within_the_ramp_equals_an_uninterrupted_one(tiny, run, resume):
    train.main(run(out_dir="whole", dropout=0.2, max_iters=6, eval_interval=3, **RAMP))
    train.main(run(out_dir="parts", dropout=0.2, max_iters=3, eval_interval=3, **RAMP))
    train.main(resume(out_dir="parts", max_iters=6))
    assert nested_equal(resume_state("whole"), resume_state("parts"))
    assert logged_values("whole", "loss") == logged_values("parts", "loss")


def test_two_ranks_on_a_ramp_equal_one_process(tiny, run, two_ranks):
    """At first they share the rows of one micro-batch, then the micro-batches."""
    options = {**RAMP, "rampup_start": 1, "max_iters": 5, "eval_interval": 5}
    train.main(run(out_dir="one", **options))
    two_ranks(run(out_dir="two", **options))
    for key in ("loss", "val_loss", "grad_norm"):
        assert logged_values("two", key) == pytest.approx(logged_values("one", key), rel=1e-4)


def test_log_and_report_count_the_tokens_of_the_ramp(tiny, run, capsys):
    argv = run(max_iters=6, eval_interval=6, **RAMP)
    train.main(argv)
    out = capsys.readouterr().out
    assert "batch ramp: 2 micro-batches per step, doubled at steps 2, 4" in out
    assert "8 micro-batches x 4 sequences x 16 tokens = 512" in out
    steps = [line for line in logged_metrics() if "loss" in line]
    tokens = [line["tokens_per_s"] * line["step_ms"] / 1000 for line in steps]
    assert tokens == pytest.approx([128, 128, 256, 256, 512, 512])
    train.main([*argv, "--report"])
    out = capsys.readouterr().out
    assert re.search("^the first step +128 .*doubled at steps 2, 4$", out, re.M)
    assert re.search("^a step +512 ", out, re.M)
    assert re.search(f"^the run +{sum([128, 128, 256, 256, 512, 512]):,} ", out, re.M)


@pytest.mark.parametrize(
    "options, named",
    [
        (["--rampup_start=4"], "rampup_iters=0"),
        (["--rampup_iters=4"], "rampup_start=0"),
        (["--rampup_start=3", "--rampup_iters=9"], "--rampup_start=5 (of 5, 10, 20, 40)"),
        (["--rampup_start=80", "--rampup_iters=9"], "--rampup_start=5 (of 5, 10, 20, 40)"),
    ],
)
def test_options_that_contradict_each_other_are_one_message(options, named):
    with pytest.raises(ConfigError) as error:
        train_configs(options)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("start, world_size, proposed", [(5, 2, 10), (10, 4, 20), (5, 8, 40)])
def test_stages_that_cannot_be_divided_are_refused_with_a_start_that_can(
    start, world_size, proposed
):
    dist_env = DistributedEnv(0, world_size)
    with pytest.raises(ConfigError) as error:
        check_split(ramp(40, start, 100), dist_env)
    assert f"rampup_start={start}:" in str(error.value)
    assert str(error.value).endswith(f"use --rampup_start={proposed}")
    check_split(ramp(40, proposed, 100), dist_env)


def test_ranks_that_cannot_divide_a_stage_do_not_start(tiny, run, two_ranks):
    options = {"gradient_accumulation_steps": 12, "rampup_start": 3, "rampup_iters": 4}
    for output in two_ranks(run(**options), code=2):
        assert output.count("\n") == 1
        assert "--rampup_start=6" in output
