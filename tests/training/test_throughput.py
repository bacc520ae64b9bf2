"""Speed as it is logged, on a clock that the test sets."""

import time

import train
from seugpt.training.distributed import DistributedEnv
from seugpt.training.throughput import Throughput


def test_lap_counts_the_steps_since_the_last_lap_without_pauses(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    throughput = Throughput(lambda step: 50 * step, 34, flops_per_token=6, peak=3000.0)
    throughput.restart(step=10)
    now += 2.0
    with throughput.paused():
        now += 30.0
    expected = {"step_ms": 500.0, "tokens_per_s": 100.0, "mfu": 0.2, "eta_s": None}
    assert throughput.lap(14) == expected
    now += 1.0
    assert throughput.lap(15) == {
        "step_ms": 1000.0,
        "tokens_per_s": 50.0,
        "mfu": 0.1,
        "eta_s": 19.0,  # the first lap, which is slow, makes no promise
    }


def test_mfu_is_none_without_a_known_peak():
    throughput = Throughput(lambda step: 50 * step, 10, flops_per_token=6, peak=None)
    assert throughput.lap(1)["mfu"] is None


def test_trainer_measures_mfu_against_the_peak_of_all_ranks(make_trainer, monkeypatch):
    monkeypatch.setattr(train, "peak_flops", lambda device, dtype: 1e9)
    trainer = make_trainer()
    trainer.dist_env = DistributedEnv(rank=0, world_size=2)
    throughput = trainer.make_throughput()
    assert throughput.peak == 2e9
    assert throughput.tokens_before(3) == 3 * 2 * 4 * 16
    assert throughput.max_iters == 10
    assert throughput.flops_per_token == trainer.raw_model.flops_per_token()


def test_the_time_of_a_checkpoint_is_not_a_steps(make_trainer, monkeypatch):
    """The first step of 124M parameters seemed to take ten seconds: two gigabytes were written."""
    now = 0.0

    def clock():
        nonlocal now
        now += 0.001
        return now

    def save_run(trainer):
        nonlocal now
        now += 1000.0

    monkeypatch.setattr(time, "perf_counter", clock)
    monkeypatch.setattr(train, "save_run", save_run)
    trainer = make_trainer(log_interval=1, eval_interval=2, max_iters=4)
    laps = []
    monkeypatch.setattr(trainer.log, "step", lambda *args, **lap: laps.append(lap["step_ms"]))
    trainer.run()
    assert len(laps) == 4
    assert max(laps) < 1000
