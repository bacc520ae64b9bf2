"""TensorBoard and Weights & Biases receive each line of metrics.jsonl; no run depends on them.

wandb needs an account, so a fake with the same rule for steps replaces it. TensorBoard's event
files are read with its own reader.
"""

import logging
import os
import shutil
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest

import train
from seugpt.checkpoint.storage import load_checkpoint
from seugpt.training.logger import RunLogger
from seugpt.training.trackers import TensorBoard, Wandb
from tests.helpers import ROOT, logged_metrics


def logged_scalars(out_dir="out"):
    """{key: [(step, value as float32)]} of metrics.jsonl."""
    scalars = {}
    for values in logged_metrics(out_dir):
        for key, value in values.items():
            if key != "step":
                scalars.setdefault(key, []).append((values["step"], np.float32(value)))
    return scalars


def tensorboard_scalars(out_dir="out"):
    """The same from the event files, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it logs what it purges
    folder = str(Path(out_dir, "tensorboard"))
    reader = EventAccumulator(folder, size_guidance={"scalars": 0}).Reload()
    scalars = {}
    for tag in reader.Tags()["scalars"]:
        events = [(event.step, np.float32(event.value)) for event in reader.Scalars(tag)]
        if events:
            scalars[tag] = events
    return scalars


def age_event_files():
    """Make event files look old: TensorBoard reads them in the order of the time in their names."""
    for path in Path("out/tensorboard").iterdir():
        path.rename(path.with_name(path.name.replace("tfevents.", "tfevents.0")))


class FakeWandbRun:
    """Like a run of wandb, drops values whose step is below the last one."""

    def __init__(self, module, run_id, **settings):
        self.module = module
        self.id = run_id or f"id{len(module.runs)}"
        self.offline = module.offline
        self.settings = settings
        self.metrics = {}
        self.rows = []
        self.step = 0
        self.exit_code = None

    def define_metric(self, name, step_metric=None):
        self.metrics[name] = step_metric

    def log(self, values, step=None):
        self.module.fault("log", values)
        if step is None:
            self.rows.append(dict(values))
        elif step == self.step and self.rows:
            self.rows[-1] |= values
        elif step >= self.step:
            self.rows.append(dict(values))
            self.step = step

    def finish(self, exit_code=0):
        self.exit_code = exit_code
        self.module.fault("finish")


@pytest.fixture
def wandb(monkeypatch):
    """A fake wandb that records its `runs`; replace `fault(call, ...)` to let a call raise."""
    module = types.ModuleType("wandb")
    module.runs = []
    module.num_teardowns = 0
    module.offline = False
    module.fault = lambda *call: None

    def init(project, name, config, id, resume):
        module.fault("init")
        assert resume == ("allow" if id else None)
        module.runs.append(FakeWandbRun(module, id, project=project, name=name, config=config))
        return module.runs[-1]

    def teardown():
        module.num_teardowns += 1

    module.init = init
    module.teardown = teardown
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in ("WANDB_FINISH_TIMEOUT", "WANDB_FINISH_TIMEOUT_RAISES"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return module


def failing(call, error, times=99):
    """A fault for the fake wandb: the first `times` calls of this name raise the error."""
    remaining = [times]

    def fault(name, *arguments):
        if name == call and remaining[0]:
            remaining[0] -= 1
            raise error

    return fault


# What the trackers receive


def test_both_trackers_receive_every_metric(tiny, run, wandb):
    options = {"wandb_project": "p", "wandb_run_name": "n", "snapshot_interval": 3}
    train.main(run(tensorboard=True, wandb_log=True, **options))
    [wandb_run] = wandb.runs
    assert wandb_run.rows == logged_metrics()
    assert wandb_run.metrics == {"step": None, "*": "step"}
    assert wandb_run.settings["project"] == "p"
    assert wandb_run.settings["name"] == "n"
    assert wandb_run.settings["config"]["batch_size"] == 4
    assert wandb_run.exit_code == 0
    assert wandb.num_teardowns == 1
    assert os.environ["WANDB_FINISH_TIMEOUT"] == "60"  # without a network it would never finish

    scalars = tensorboard_scalars()
    assert scalars == logged_scalars()
    keys = {"loss", "lr", "grad_norm", "num_clipped_steps", "step_ms", "tokens_per_s"}
    assert keys | {"val_loss", "grad_norm/h.0"} <= set(scalars)


def test_tensorboard_shows_each_step_once_after_a_crash(tiny, run, resume):
    """Steps after the checkpoint are repeated. Its evaluation is not, but purge_step drops it."""
    train.main(run(tensorboard=True, max_iters=5))
    checkpoint = Path("out/latest.pt").read_bytes()
    age_event_files()
    train.main(resume(max_iters=10, snapshot_interval=2))
    age_event_files()
    newest = max(Path("out/tensorboard").iterdir())
    newest.write_bytes(newest.read_bytes()[:-7])  # a crash may leave half an event
    Path("out/latest.pt").write_bytes(checkpoint)
    train.main(resume(max_iters=12))
    steps = [values["step"] for values in logged_metrics() if "val_loss" in values]
    assert steps == [0, 5, 10, 12]
    assert len(list(Path("out/tensorboard").iterdir())) == 3
    assert tensorboard_scalars() == logged_scalars()


def test_resumed_run_continues_in_wandb_and_loses_nothing(tiny, run, resume, wandb):
    """wandb dropped the repeated steps of a resumed run as long as its own step was used."""
    train.main(run(wandb_log=True, max_iters=2))
    checkpoint = Path("out/latest.pt").read_bytes()
    before = logged_metrics()
    train.main(resume(max_iters=4))
    Path("out/latest.pt").write_bytes(checkpoint)
    train.main(resume(max_iters=5))
    assert [wandb_run.id for wandb_run in wandb.runs] == ["id0"] * 3
    assert wandb.runs[0].rows == before
    assert wandb.runs[0].rows + wandb.runs[2].rows == logged_metrics()


def test_resumed_run_offline_gets_a_new_id(tiny, run, resume, wandb):
    """Offline, wandb does not know the earlier run: two runs with one id would be mixed up."""
    wandb.offline = True
    train.main(run(wandb_log=True, max_iters=1))
    train.main(resume(max_iters=2))
    assert [wandb_run.id for wandb_run in wandb.runs] == ["id0", "id1"]


def test_new_run_moves_the_trackers_files_aside(tiny, run, wandb):
    for _ in range(2):
        train.main(run(tensorboard=True, wandb_log=True, max_iters=1))
    assert [wandb_run.id for wandb_run in wandb.runs] == ["id0", "id1"]
    for folder, run_id in (("out/previous-1", "id0\n"), ("out", "id1\n")):
        assert Path(folder, "wandb_run_id").read_text() == run_id
        assert tensorboard_scalars(folder) == logged_scalars(folder)


def test_event_files_of_a_run_without_a_checkpoint_continue(tiny, run):
    train.main(run(tensorboard=True, max_iters=2))
    for path in Path("out").glob("*.pt"):
        path.unlink()  # as if the run had been killed before its first checkpoint
    age_event_files()
    train.main(run(tensorboard=True, max_iters=1))
    assert not Path("out/previous-1").exists()
    assert tensorboard_scalars() == logged_scalars()


def test_logged_values_are_in_the_event_files_at_once(workspace, monkeypatch):
    """A kill would lose what TensorBoard's writer thread, here a slow one, has not yet written."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    real_write = RecordWriter.write

    def slow_write(self, data):
        time.sleep(0.02)
        real_write(self, data)

    monkeypatch.setattr(RecordWriter, "write", slow_write)
    tracker = TensorBoard(train.TrainConfig(), None)
    tracker.open(Path("out"))
    tracker.log({"step": 3, "loss": 1.5, "lr": 0.25})
    assert tensorboard_scalars() == {"loss": [(3, 1.5)], "lr": [(3, 0.25)]}
    tracker.close()


def test_eval_only_starts_no_tracker(tiny, run, wandb):
    train.main(run(tensorboard=True, wandb_log=True, eval_only=True))
    assert wandb.runs == []
    assert not Path("out").exists()


def test_only_the_first_rank_starts_trackers(workspace, wandb):
    log = RunLogger(train.TrainConfig(wandb_log=True, tensorboard=True), quiet=True)
    log.metrics(step=0, loss=1.0)
    log.close()
    assert wandb.runs == []
    assert not Path("out").exists()


# Optional packages


@pytest.mark.parametrize("tracker", [Wandb, TensorBoard])
def test_missing_package_is_named_with_its_install_command(
    tiny, run, refused, monkeypatch, tracker
):
    package = tracker.package.partition("==")[0]
    for name in list(sys.modules):
        if f"{name}.".startswith((f"{package}.", f"torch.utils.{package}.")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    message = refused(train.main, *run(**{tracker.option: True}))
    install = f"python -m pip install {tracker.package}"
    assert f"{tracker.option}=True" in message
    assert install in message and f"--{tracker.option}=False" in message
    assert not Path("out").exists()
    assert install in (ROOT / "docs" / "guide" / "training.md").read_text(encoding="utf-8")


def test_requirements_pin_the_advised_tensorboard():
    requirements = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8").split()
    assert TensorBoard.package in requirements


def test_folder_named_wandb_is_not_imported(tiny, run, refused, monkeypatch):
    """wandb leaves a folder wandb/ behind, which `import wandb` takes for an empty package."""
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    assert "python -m pip install wandb" in refused(train.main, *run(wandb_log=True))


def test_importing_train_imports_no_tracker(fork_server):
    assert "torch" in fork_server.modules
    assert not {"tensorboard", "wandb"} & set(fork_server.modules)


# Failures


def test_tracker_that_does_not_start_ends_the_run_before_anything_is_written(
    trained, run, refused, wandb
):
    before = {path.name: path.stat().st_mtime_ns for path in Path("out").iterdir()}
    wandb.fault = failing("init", RuntimeError("timed out\nwhile retrying: no such host"))
    message = refused(train.main, *run(wandb_log=True))
    assert "RuntimeError: timed out while retrying: no such host" in message
    assert "wandb login" in message and "--wandb_log=False" in message
    assert {path.name: path.stat().st_mtime_ns for path in Path("out").iterdir()} == before


def test_unwritable_event_files_end_the_run_before_its_first_step(trained, resume, refused):
    Path("out/tensorboard").write_text("in the way")
    message = refused(train.main, *resume(max_iters=31, tensorboard=True))
    assert "FileExistsError" in message and "--tensorboard=False" in message
    assert load_checkpoint("out/latest.pt")["step"] == 30


def test_run_that_loses_wandb_continues_after_one_line(tiny, run, capsys, wandb):
    wandb.fault = failing("log", ConnectionResetError("Connection lost\n"), times=1)
    train.main(run(wandb_log=True, tensorboard=True, max_iters=3))
    out, err = capsys.readouterr()
    line = "wandb disconnected (ConnectionResetError: Connection lost)"
    assert out.count(line) == 1
    assert Path("out/training.log").read_text(encoding="utf-8").count(line) == 1
    assert err == ""
    assert wandb.runs[0].rows == []
    assert wandb.runs[0].exit_code == 1
    assert wandb.num_teardowns == 1
    assert tensorboard_scalars() == logged_scalars()
    assert len(logged_scalars()["loss"]) == 3


def test_run_that_loses_its_event_files_continues_after_one_line(
    tiny, run, capsys, monkeypatch, wandb
):
    """TensorBoard's writer thread ends in an error, which its next call raises again."""
    monkeypatch.setattr(threading, "excepthook", lambda args: None)  # it would print a traceback
    real_step = RunLogger.step

    def step(self, step, **values):
        if step == 4:
            shutil.rmtree("out/tensorboard")
        real_step(self, step, **values)

    monkeypatch.setattr(RunLogger, "step", step)
    train.main(run(tensorboard=True, wandb_log=True))
    out, err = capsys.readouterr()
    assert out.count("TensorBoard disconnected (FileNotFoundError: ") == 1
    assert out.count("disconnected") == 1
    assert err == ""
    assert wandb.runs[0].rows == logged_metrics()
    assert load_checkpoint("out/latest.pt")["step"] == 10


@pytest.mark.parametrize("call", ["finish", "close"])
def test_tracker_that_fails_at_the_end_costs_one_line(tiny, run, capsys, monkeypatch, wandb, call):
    wandb.fault = failing(call, TimeoutError("Timed out finishing run."))
    if call == "close":
        from torch.utils.tensorboard import SummaryWriter

        monkeypatch.setattr(SummaryWriter, "close", lambda self: wandb.fault("close"))
    train.main(run(tensorboard=True, wandb_log=True, max_iters=1))
    name = {"finish": "wandb", "close": "TensorBoard"}[call]
    out, err = capsys.readouterr()
    last_line = out.splitlines()[-1]
    assert name in last_line and "(TimeoutError: Timed out" in last_line
    assert out.count("disconnected") == 1
    assert err == ""
    assert wandb.num_teardowns == 1
    log = Path("out/training.log").read_text(encoding="utf-8")
    assert log.splitlines()[-1] == last_line


def test_wandb_is_told_that_a_run_failed(tiny, run, refused, wandb):
    options = {"learning_rate": 1e30, "decay_lr": False, "grad_clip": 0, "max_iters": 50}
    assert "stopped in step" in refused(train.main, *run(wandb_log=True, **options))
    assert wandb.runs[0].exit_code == 1
