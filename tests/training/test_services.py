"""What TensorBoard and Weights & Biases are told: the lines of metrics.jsonl, and no run depends on their health.

wandb, which needs an account, has a stand-in here, with its rule for steps; TensorBoard is read with its own reader.
"""

import logging
import os
import shutil
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest

import train
from seugpt.checkpoint import storage as checkpoint
from seugpt.training.logger import RunLog
from seugpt.training.metrics import read_metrics
from seugpt.training.trackers import TensorBoard, Wandb
from tests.helpers import ROOT


def metrics(out_dir="out"):
    return read_metrics(Path(out_dir, "metrics.jsonl"))[0]


def series(lines):
    """{key: [(step, value as a float32)]} of the lines of metrics.jsonl."""
    values = {}
    for line in lines:
        for key, value in line.items():
            if key != "step":
                values.setdefault(key, []).append((line["step"], np.float32(value)))
    return values


def events(out_dir="out"):
    """The same, of the event files, as TensorBoard understands them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it notes what it purges
    reader = EventAccumulator(
        str(Path(out_dir, "tensorboard")), size_guidance={"scalars": 0}
    ).Reload()
    told = {tag: reader.Scalars(tag) for tag in reader.Tags()["scalars"]}
    return {
        tag: [(e.step, np.float32(e.value)) for e in scalars]
        for tag, scalars in told.items()
        if scalars
    }


def age():
    """Let an hour pass: files are read in the order of their names, which have the second of their making in front."""
    for path in Path("out/tensorboard").iterdir():
        path.rename(path.with_name(path.name.replace("tfevents.", "tfevents.0")))


class Run:
    """A run of the stand-in. Where a step is given, it must not be below the last one: what is, wandb leaves out."""

    def __init__(self, module, known, **settings):
        self.module, self.id, self.offline = (
            module,
            known or f"id{len(module.runs)}",
            module.offline,
        )
        self.settings, self.metrics, self.rows, self.step, self.exit_code = (
            settings,
            {},
            [],
            0,
            None,
        )

    def define_metric(self, name, step_metric=None):
        self.metrics[name] = step_metric

    def log(self, values, step=None):
        self.module.fault("log", values)
        if step is None:
            self.rows.append(dict(values))
        elif step == self.step and self.rows:
            self.rows[-1] |= values
        elif step >= self.step:
            self.rows, self.step = [*self.rows, dict(values)], step

    def finish(self, exit_code=0):
        self.exit_code = exit_code
        self.module.fault("finish")


@pytest.fixture
def wandb(monkeypatch):
    """The stand-in for wandb: its `runs`, `torn_down`, `offline`, and `fault(call, ...)`, which may raise."""
    module = types.ModuleType("wandb")
    module.runs, module.torn_down, module.offline, module.fault = [], 0, False, lambda *call: None

    def init(project, name, config, id, resume):
        module.fault("init")
        assert resume == ("allow" if id else None)
        module.runs.append(Run(module, id, project=project, name=name, config=config))
        return module.runs[-1]

    def teardown():
        module.torn_down += 1

    module.init, module.teardown = init, teardown
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in ("WANDB_FINISH_TIMEOUT", "WANDB_FINISH_TIMEOUT_RAISES"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return module


def failing(call, error, times=99):
    """A fault: so many of these calls raise the error, and the others do not."""
    left = [times]

    def fault(name, *arguments):
        if name == call and left[0]:
            left[0] -= 1
            raise error

    return fault


def test_tensorboard_gets_the_same_metrics(tiny, run):
    train.main(run(tensorboard=True, snapshot_interval=3))
    told = events()
    assert {
        "loss",
        "lr",
        "grad_norm",
        "clipped",
        "step_ms",
        "tokens_per_s",
        "val_loss",
        "grad_norm/h.0",
    } <= set(told)
    assert told == series(metrics())


def test_wandb_gets_the_same_metrics(tiny, run, wandb):
    train.main(run(wandb_log=True, wandb_project="p", wandb_run_name="n", snapshot_interval=3))
    [told] = wandb.runs
    assert told.rows == metrics() and told.metrics == {"step": None, "*": "step"}
    assert (
        told.settings["project"],
        told.settings["name"],
        told.settings["config"]["batch_size"],
    ) == ("p", "n", 4)
    assert told.exit_code == 0 and wandb.torn_down == 1
    assert os.environ["WANDB_FINISH_TIMEOUT"] == "60"  # without a network, its end would not come


def test_after_a_kill_tensorboard_shows_each_step_once(tiny, run):
    """The steps since the checkpoint are done again; its evaluation is not, and purge_step alone would lose it."""
    train.main(run(tensorboard=True, max_iters=5))
    killed = Path("out/latest.pt").read_bytes()
    age()
    train.main(["--init_from=resume", "--out_dir=out", "--max_iters=10", "--snapshot_interval=2"])
    age()
    newest = max(Path("out/tensorboard").iterdir())
    newest.write_bytes(newest.read_bytes()[:-7])  # a kill may leave half an event
    Path("out/latest.pt").write_bytes(killed)
    train.main(["--init_from=resume", "--out_dir=out", "--max_iters=12"])
    assert [m["step"] for m in metrics() if "val_loss" in m] == [0, 5, 10, 12]
    assert len(list(Path("out/tensorboard").iterdir())) == 3 and events() == series(metrics())


def test_wandb_goes_on_with_the_same_run_and_loses_nothing(tiny, run, wandb):
    """With a step of its own, wandb left out, with a warning, the steps that a resume did again."""
    train.main(run(wandb_log=True, max_iters=5))
    killed, before = Path("out/latest.pt").read_bytes(), metrics()
    train.main(["--init_from=resume", "--out_dir=out", "--max_iters=10"])
    Path("out/latest.pt").write_bytes(killed)
    train.main(["--init_from=resume", "--out_dir=out", "--max_iters=12"])
    assert [r.id for r in wandb.runs] == ["id0"] * 3
    assert wandb.runs[0].rows + wandb.runs[2].rows == metrics() and wandb.runs[0].rows == before


def test_a_run_offline_is_resumed_as_another(tiny, run, wandb):
    """Offline, wandb knows nothing of the run before, and begins to count anew: two runs of one name would be mixed."""
    wandb.offline = True
    train.main(run(wandb_log=True, max_iters=2))
    train.main(["--init_from=resume", "--out_dir=out", "--max_iters=3"])
    assert [r.id for r in wandb.runs] == ["id0", "id1"]


def test_a_new_run_moves_the_services_files_aside(tiny, run, wandb):
    for _ in range(2):
        train.main(run(tensorboard=True, wandb_log=True, max_iters=2))
    assert [r.id for r in wandb.runs] == ["id0", "id1"]
    ids = [Path(folder, "wandb_run_id").read_text() for folder in ("out/previous-1", "out")]
    assert ids == ["id0\n", "id1\n"]
    assert events() == series(metrics()) and events("out/previous-1") == series(
        metrics("out/previous-1")
    )


def test_the_log_of_a_run_without_a_checkpoint_goes_on_in_tensorboard_too(tiny, run):
    train.main(run(tensorboard=True, max_iters=3))
    for path in Path("out").glob("*.pt"):
        path.unlink()  # as where it was killed before its first one
    age()
    train.main(run(tensorboard=True, max_iters=2))
    assert not Path("out/previous-1").exists() and events() == series(metrics())


@pytest.mark.parametrize("service", [Wandb, TensorBoard])
def test_without_the_package_the_install_command_is_given(tiny, run, refused, monkeypatch, service):
    package = service.package.partition("==")[0]
    for name in list(sys.modules):
        if f"{name}.".startswith((f"{package}.", f"torch.utils.{package}.")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    message = refused(train.main, *run(**{service.option: True}))
    install = f"python -m pip install {service.package}"
    assert (
        f"{service.option}=True needs the package {package}: {install}, or --{service.option}=False"
        in message
    )
    assert not Path("out").exists() and install in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_pinned_tensorboard_is_the_one_that_is_tested():
    assert (
        TensorBoard.package in (ROOT / "requirements-dev.txt").read_text(encoding="utf-8").split()
    )


def test_a_folder_of_the_packages_name_is_not_taken_for_it(tiny, run, refused, monkeypatch):
    """wandb makes a folder wandb/ where it runs, which `import wandb` takes for a package without anything in it."""
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    assert "python -m pip install wandb" in refused(train.main, *run(wandb_log=True))


def test_importing_train_imports_no_service():
    code = "import sys, train; print([name for name in ('tensorboard', 'wandb') if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


def test_a_service_that_does_not_start_ends_the_run_before_anything_is_written(
    tiny, run, refused, wandb
):
    train.main(run(max_iters=2))
    before = {path.name: path.stat().st_mtime_ns for path in Path("out").iterdir()}
    wandb.fault = failing("init", RuntimeError("timed out\nwhile retrying: no such host"))
    message = refused(train.main, *run(wandb_log=True))
    reason = "wandb does not start (RuntimeError: timed out while retrying: no such host)"
    assert message.endswith(f": {reason}; try wandb login, or --wandb_log=False\n")
    assert {path.name: path.stat().st_mtime_ns for path in Path("out").iterdir()} == before


def test_a_tensorboard_that_cannot_write_ends_the_run_before_its_first_step(tiny, run, refused):
    train.main(run(max_iters=2))
    Path("out/tensorboard").write_text("in the way")
    message = refused(
        train.main, "--init_from=resume", "--out_dir=out", "--max_iters=3", "--tensorboard"
    )
    assert (
        "TensorBoard does not start (FileExistsError" in message
        and "try --tensorboard=False" in message
    )
    assert checkpoint.load("out/latest.pt")["step"] == 2


def test_losing_wandb_costs_a_line_and_not_the_run(tiny, run, capsys, wandb):
    wandb.fault = failing("log", ConnectionResetError("Connection lost\n"), times=1)
    train.main(run(wandb_log=True, tensorboard=True))
    out, err = capsys.readouterr()
    line = "wandb is lost (ConnectionResetError: Connection lost); the run goes on without it\n"
    assert (
        out.count(line) == 1 == Path("out/training.log").read_text(encoding="utf-8").count(line)
        and err == ""
    )
    assert wandb.runs[0].rows == [] and wandb.runs[0].exit_code == 1 and wandb.torn_down == 1
    assert events() == series(metrics()) and len(series(metrics())["loss"]) == 10


def test_losing_the_event_files_costs_a_line_and_not_the_run(tiny, run, capsys, monkeypatch, wandb):
    """They are written in a thread of TensorBoard's, whose death Python would tell as well, with a traceback."""
    told_by_python = []
    monkeypatch.setattr(threading, "excepthook", told_by_python.append)
    step = RunLog.step

    def lose(self, number, *arguments, **values):
        if number == 4:
            shutil.rmtree("out/tensorboard")
        step(self, number, *arguments, **values)

    monkeypatch.setattr(RunLog, "step", lose)
    train.main(run(tensorboard=True, wandb_log=True))
    out, err = capsys.readouterr()
    assert (
        out.count("TensorBoard is lost (FileNotFoundError: ")
        == 1
        == out.count("the run goes on without it")
    )
    assert err == "" and told_by_python == [] and threading.excepthook == told_by_python.append
    assert wandb.runs[0].rows == metrics() and checkpoint.load("out/latest.pt")["step"] == 10


def test_a_line_is_in_the_event_files_when_the_run_goes_on(workspace, monkeypatch):
    """TensorBoard's thread may take its time, and a kill would take what it had not yet written."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    write = RecordWriter.write
    monkeypatch.setattr(
        RecordWriter, "write", lambda self, data: (time.sleep(0.02), write(self, data))
    )
    service = TensorBoard(train.TrainConfig(), None)
    service.open(Path("out"))
    service.log({"step": 3, "loss": 1.5, "lr": 0.25})
    assert events() == {"loss": [(3, 1.5)], "lr": [(3, 0.25)]}
    service.close()


def test_a_fault_of_another_thread_is_still_told(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    service = TensorBoard(train.TrainConfig(), None)
    service.open(tmp_path)
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    service.close()
    assert [type(args.exc_value) for args in told] == [ZeroDivisionError]


@pytest.mark.parametrize("fault", ["finish", "close"])
def test_a_service_that_fails_at_the_end_costs_a_line(tiny, run, capsys, monkeypatch, wandb, fault):
    wandb.fault = failing(fault, TimeoutError("Timed out finishing run."))
    if fault == "close":
        from torch.utils.tensorboard import SummaryWriter

        monkeypatch.setattr(SummaryWriter, "close", lambda self: wandb.fault("close"))
    train.main(run(tensorboard=True, wandb_log=True))
    name = {"finish": "wandb", "close": "TensorBoard"}[fault]
    line = f"{name} is lost at the end (TimeoutError: Timed out finishing run.): it may lack the last lines\n"
    out, err = capsys.readouterr()
    assert out.endswith(line) and out.count("lost") == 1 and err == "" and wandb.torn_down == 1
    assert Path("out/training.log").read_text(encoding="utf-8").endswith(line)


def test_wandb_learns_that_a_run_has_failed(tiny, run, refused, wandb):
    argv = run(
        wandb_log=True,
        learning_rate=1e30,
        decay_lr=False,
        grad_clip=0,
        warmup_iters=0,
        max_iters=50,
    )
    assert "stopped in step" in refused(train.main, *argv)
    assert wandb.runs[0].exit_code == 1


def test_an_evaluation_alone_tells_nobody(tiny, run, wandb):
    train.main(run(tensorboard=True, wandb_log=True, eval_only=True))
    assert wandb.runs == [] and not Path("out").exists()


def test_only_the_first_process_tells(tiny, wandb):
    log = RunLog(train.TrainConfig(wandb_log=True, tensorboard=True), silent=True)
    log.metrics(step=0, loss=1.0)
    log.close()
    assert wandb.runs == [] and not Path("out").exists()
