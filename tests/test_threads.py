"""The number of CPU threads follows what other programs leave."""

import threading
import time

import numpy as np
import pytest
import torch

from model import GPT, ModelConfig
from seugpt import threads
from seugpt.threads import RETRY_SECONDS, CpuThreads, start_in_own_thread
from seugpt.training.logger import RunLogger
from tests.helpers import wait_until
from train import TrainConfig, Trainer

linux_only = pytest.mark.skipif(threads.sys.platform != "linux", reason="adapts only on Linux")


class Machine:
    """A clock, and the CPU seconds and context switches that a process would have seen by then."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.used = 0.0
        self.switches = 0.0
        self.num_threads = 2
        self.is_busy = False
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(threads, "process_usage", lambda: (self.used, self.switches))
        monkeypatch.setattr(torch, "get_num_threads", lambda: self.num_threads)
        monkeypatch.setattr(torch, "set_num_threads", self.set_num_threads)
        for name in threads.ENVIRONMENT:
            monkeypatch.delenv(name, raising=False)

    def set_num_threads(self, number):
        self.num_threads = number

    def work(self, cpu_threads, seconds, is_busy):
        """`seconds` of ticks, 10 a second, at the rates measured on a machine of two cores."""
        for _ in range(round(10 * seconds)):
            shared = is_busy and self.num_threads == 2
            self.now += 0.1
            self.used += 0.1 * (1.2 if shared else self.num_threads)
            self.switches += 0.1 * (200 if shared else 30)
            cpu_threads.tick()


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


@linux_only
def test_one_thread_while_another_program_is_busy(machine):
    notes = []
    cpu_threads = CpuThreads(notify=notes.append)
    machine.work(cpu_threads, 30, is_busy=False)
    assert (machine.num_threads, notes) == (2, [])
    machine.work(cpu_threads, 2, is_busy=True)
    assert machine.num_threads == 1
    machine.work(cpu_threads, 100, is_busy=True)
    assert notes == ["another program keeps the CPU busy: one thread, until it is free"]
    machine.work(cpu_threads, 200, is_busy=False)
    assert machine.num_threads == 2
    assert notes[1:] == ["the CPU is free again: two threads"]


@linux_only
def test_trials_become_rarer_while_the_machine_stays_busy(machine):
    cpu_threads = CpuThreads(notify=lambda line: None)
    with_two = []
    for tenth in range(6000):
        machine.work(cpu_threads, 0.1, is_busy=True)
        with_two += [tenth] if machine.num_threads == 2 else []
    assert len(with_two) < 0.02 * 6000
    assert with_two[-1] > 3000  # but do not end


@linux_only
def test_a_moment_of_contention_or_of_waiting_changes_nothing(machine):
    cpu_threads = CpuThreads()
    machine.work(cpu_threads, 5, is_busy=False)
    machine.work(cpu_threads, 0.5, is_busy=True)
    machine.work(cpu_threads, 5, is_busy=False)
    machine.now += 60  # somebody types, or a picture is drawn: little CPU, few switches
    machine.work(cpu_threads, 5, is_busy=False)
    assert machine.num_threads == 2


@pytest.mark.parametrize("wanted, name", [(2, None), (None, "OMP_NUM_THREADS")])
def test_a_number_that_was_asked_for_stays(machine, monkeypatch, wanted, name):
    if name:
        monkeypatch.setenv(name, "2")
    cpu_threads = CpuThreads(wanted)
    machine.work(cpu_threads, 2 * RETRY_SECONDS, is_busy=True)
    assert machine.num_threads == 2


@pytest.mark.parametrize("most", [1, 3, 16])
def test_other_numbers_of_cores_are_left_alone(machine, most):
    """Three and four threads do not give the same results bit for bit."""
    machine.num_threads = most
    cpu_threads = CpuThreads()
    machine.work(cpu_threads, 20, is_busy=True)
    assert machine.num_threads == most


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_one_and_two_threads_give_the_same_weights(tmp_path, optimizer):
    """Otherwise a run on a busy machine could not be repeated bit for bit."""
    digests = []
    for number in (1, 2):
        torch.manual_seed(0)
        previous = torch.get_num_threads()
        torch.set_num_threads(number)
        try:
            digests.append(train_a_little(optimizer))
        finally:
            torch.set_num_threads(previous)
    assert digests[0] == digests[1]


def test_a_call_in_its_own_thread_leaves_no_thread():
    before = threading.active_count()
    assert start_in_own_thread(lambda a, b: a - b, 5, 2).result() == 3
    with pytest.raises(ZeroDivisionError):
        start_in_own_thread(lambda: 1 / 0).result()
    wait_until(lambda: threading.active_count() == before)


def train_a_little(optimizer):
    """The weights after 5 steps of a model large enough for several threads, as bytes."""
    config = TrainConfig(
        eval_only=True,
        gradient_accumulation_steps=1,
        log_interval=10**6,
        device="cpu",
        batch_size=8,
        optimizer=optimizer,
    )
    model_config = ModelConfig(
        block_size=64, n_layer=2, n_head=4, n_embd=128, vocab_size=65, dropout=0.1
    )
    trainer = Trainer(GPT(model_config), config, RandomTokens(), RunLogger(config, quiet=True))
    for _ in range(5):
        trainer.train_step()
    return b"".join(p.detach().numpy().tobytes() for p in trainer.raw_model.parameters())


class RandomTokens:
    fingerprint = "random"
    tokenizer = None

    def batch(self, split, index, batch_size, block_size, seed):
        rng = np.random.default_rng(index)
        ids = rng.integers(65, size=(batch_size, block_size + 1))
        return ids[:, :-1], ids[:, 1:]
