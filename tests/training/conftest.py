"""Fixtures: command lines that resume, Trainers, and runs in separate processes."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import train
from model import GPT
from seugpt.data.dataset import Dataset
from seugpt.training.logger import RunLogger
from tests.helpers import ROOT, SHARDED, train_configs
from train import Trainer


@pytest.fixture
def loss_curve():
    """A test that requests this draws loss.png at each evaluation, as every run does."""


@pytest.fixture(autouse=True)
def no_loss_curve(request, monkeypatch):
    """All other tests skip it: drawing takes three quarters of a run of ten steps."""
    if "loss_curve" not in request.fixturenames:
        monkeypatch.setattr(train, "draw_loss_curve", lambda log: None)


@pytest.fixture
def resume():
    """resume(max_iters=20, ...): the command line that continues the run in out/."""

    def argv(**options):
        options = {"init_from": "resume", "out_dir": "out", **options}
        return [f"--{name}={value}" for name, value in options.items()]

    return argv


@pytest.fixture
def make_trainer(tiny, run):
    """make_trainer(batch_size=8, ...): a Trainer on data/tiny that prints and writes nothing."""

    def make(**changes):
        model_config, config = train_configs(run(**changes))
        dataset = Dataset("data/tiny")
        vocab_size = model_config.vocab_size or dataset.tokenizer.vocab_size
        torch.manual_seed(0)
        model = GPT(replace(model_config, vocab_size=vocab_size))
        return Trainer(model, config, dataset, RunLogger(config, quiet=True))

    return make


class ForkedRun:
    """A run of train.py in a process forked by the ForkServer; it writes to the file `output`."""

    def __init__(self, server, argv, output, stderr, setup, environment):
        self.server = server
        self.output = Path(output)
        if not self.output.is_fifo():  # opening a pipe would wait for its reader
            self.output.write_bytes(b"")  # readable before the run has written anything
        self.returncode = None
        self.pid = server.ask(
            argv=argv,
            folder=os.getcwd(),
            output=output,
            stderr=stderr,
            setup=setup,
            environment=environment,
        )

    def poll(self):
        if self.returncode is None:
            self.returncode = self.server.ask(poll=self.pid)
        return self.returncode

    def send_signal(self, signum):
        if self.poll() is None:
            os.kill(self.pid, signum)

    def wait(self, timeout=120):
        """Wait for the end of the run. Returns its exit code, negative if a signal killed it."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.send_signal(9)
                raise TimeoutError(self.output.read_text(encoding="utf-8"))
            time.sleep(0.01)
        return self.returncode


class ForkServer:
    """Runs fork_server.py, which imports torch once and forks a process for each run."""

    def __init__(self):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fork_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env=environment,
        )
        self.runs = []
        self.modules = json.loads(self.process.stdout.readline())  # what `import train` imports

    def ask(self, **job):
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, argv, output="output", stderr=None, setup="", **environment):
        self.runs.append(ForkedRun(self, list(argv), output, stderr, setup, environment))
        return self.runs[-1]

    def kill_runs(self):
        for forked_run in self.runs:
            forked_run.send_signal(9)
            forked_run.wait()
        self.runs.clear()

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture(scope="session")
def fork_server():
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture
def start_run(fork_server, workspace):
    """start_run(argv, output="output", setup="", **environment): a ForkedRun of train.py.

    Runs that are still alive at the end of the test are killed.
    """
    yield fork_server.start
    fork_server.kill_runs()


def start_as_torchrun(start_run, argv, world_size, setup=""):
    """Start ranks as torchrun would; they write to output-0, output-1, ... Returns ForkedRuns.

    In argv, {rank} stands for the rank.
    """
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    ranks = []
    for rank in map(str, range(world_size)):
        rank_argv = [word.replace("{rank}", rank) for word in argv]
        environment |= {"RANK": rank, "LOCAL_RANK": rank}
        ranks.append(start_run(rank_argv, f"output-{rank}", setup=setup, **environment))
    ranks[0].store = store  # it must live as long as they do
    return ranks


@pytest.fixture
def start_ranks(start_run):
    """start_ranks(argv, world_size, setup=""): ForkedRuns, as of start_as_torchrun."""
    return partial(start_as_torchrun, start_run)


@pytest.fixture
def run_ranks(start_ranks):
    """run_ranks(argv, world_size, code=0, setup=""): the outputs of ranks that end with `code`."""

    def call(argv, world_size, code=0, setup=""):
        ranks = start_ranks(argv, world_size, setup)
        codes = [process.wait() for process in ranks]
        outputs = [process.output.read_text(encoding="utf-8") for process in ranks]
        assert codes == [code] * world_size, "\n".join(outputs)
        return outputs

    return call


@pytest.fixture
def two_ranks(run_ranks):
    """two_ranks(argv, code=0): run two ranks as torchrun would, and return their outputs.

    Both must end with the exit code `code`. In argv, {rank} stands for the rank.
    """
    return lambda argv, code=0: run_ranks(argv, 2, code)


@pytest.fixture(scope="session")
def sharded_once(fork_server, tiny_once, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    shutil.copytree(tiny_once, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        argv = [f"--{name}={value}" for name, value in SHARDED.items()]
        ranks = start_as_torchrun(fork_server.start, argv, world_size=2)
        assert [process.wait() for process in ranks] == [0, 0], Path("output-0").read_text()
    return folder


@pytest.fixture
def sharded(sharded_once, workspace):
    """The folder of `tiny` with a finished sharded run in out/: steps 0, 5 and 10, by two ranks."""
    shutil.copytree(sharded_once, workspace, dirs_exist_ok=True)
    return workspace
