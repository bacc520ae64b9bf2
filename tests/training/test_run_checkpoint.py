"""What a run saves and restores: resuming is exact, and best.pt only ever improves."""

import shutil
import signal
from pathlib import Path

import pytest
import torch

import train
from seugpt.checkpoint.storage import load_checkpoint, save_checkpoint
from seugpt.files import lock_folder
from seugpt.training import run_checkpoint
from tests.helpers import RUN, logged_metrics, logged_values, nested_equal, resume_state
from train import Trainer


def change_checkpoint(path, **changes):
    """Overwrite values of a saved checkpoint."""
    ckpt = load_checkpoint(path)
    del ckpt["path"], ckpt["mtime_ns"]
    save_checkpoint(path, {**ckpt, **changes})


def training_steps(out_dir="out"):
    return [values["step"] for values in logged_metrics(out_dir) if "loss" in values]


def evaluated_steps(out_dir="out"):
    return [values["step"] for values in logged_metrics(out_dir) if "val_loss" in values]


# Resuming


@pytest.mark.parametrize(
    "dtype, optimizer", [("float32", "adamw"), ("bfloat16", "muon"), ("float16", "muon")]
)
def test_resumed_run_equals_uninterrupted_run_bit_for_bit(tiny, run, resume, dtype, optimizer):
    """Weights, optimizer, scaler and RNG states are equal, with dropout and accumulation.

    nanoGPT's resumed runs train on the same data again (nanoGPT#467).
    """
    options = {"dropout": 0.3, "dtype": dtype, "optimizer": optimizer}
    train.main(run(out_dir="whole", max_iters=20, eval_interval=10, **options))
    train.main(run(out_dir="parts", max_iters=10, eval_interval=10, **options))
    torch.manual_seed(99)
    train.main(resume(out_dir="parts", max_iters=20))
    assert nested_equal(resume_state("whole"), resume_state("parts"))
    assert logged_values("whole", "loss") == logged_values("parts", "loss")
    assert training_steps("parts") == list(range(20))


def test_resume_after_a_crash_repeats_no_logged_step(tiny, run, resume):
    train.main(run(out_dir="whole", dropout=0.3))
    train.main(run(max_iters=5, dropout=0.3))
    with open("out/metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 5, "loss": 1}\n{"step": 6, "val_loss": 1, "train_loss": 1}\n')
        file.write('{"step": 7, "lo')  # killed while writing
    train.main(resume(max_iters=10))
    assert nested_equal(resume_state("whole"), resume_state("out"))
    assert training_steps() == training_steps("whole")
    assert evaluated_steps() == evaluated_steps("whole")


def test_resuming_a_complete_run_changes_nothing(trained, resume, capsys):
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    for argv in (resume(), resume(max_iters=5)):
        train.main(argv)
        assert "--max_iters=60" in capsys.readouterr().out
    after = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    assert after == before


def test_resume_uses_the_hyperparameters_given(trained, resume, monkeypatch):
    """torch's load_state_dict silently restored the old weight_decay and betas."""
    groups = []
    real_step = Trainer.train_step

    def train_step(self):
        for group in self.optimizers[0].param_groups:
            groups.append((group["weight_decay"], group["betas"]))
        real_step(self)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    train.main(resume(max_iters=31, weight_decay=0.7, beta2=0.5))
    assert groups == [(0.7, (0.9, 0.5)), (0.0, (0.9, 0.5))]


def test_resume_may_switch_to_float16_and_back(trained, resume):
    """A float32 run has no scaler state to restore."""
    train.main(resume(max_iters=31, dtype="float16"))
    train.main(resume(max_iters=32, dtype="float32"))
    train.main(resume(max_iters=33, dtype="float16"))
    assert resume_state("out")["step"] == 33


def test_config_py_repeats_the_run(tiny, run):
    train.main(run(out_dir="first", max_iters=4, dropout=0.2, seed=5))
    train.main(["first/config.py", "--out_dir=second"])
    assert nested_equal(resume_state("first"), resume_state("second"))


def test_config_py_of_a_resumed_run_repeats_the_whole_run(tiny, run, resume):
    train.main(run(max_iters=2))
    train.main(resume(max_iters=4))
    assert "init_from = 'scratch'" in Path("out/config.py").read_text(encoding="utf-8")
    train.main(["out/config.py", "--out_dir=again"])
    assert nested_equal(resume_state("out")["model"], resume_state("again")["model"])


def test_given_options_are_checked_together_with_those_of_the_checkpoint(trained, resume):
    """n_embd=32 alone was checked against the default n_head=12, and refused."""
    train.main(resume(n_embd=32, max_iters=31))
    assert resume_state("out")["step"] == 31


def test_renamed_folder_can_be_resumed(trained, resume):
    Path("out").rename("moved")
    train.main(resume(out_dir="moved", max_iters=31))
    assert resume_state("moved")["step"] == 31
    assert not Path("out").exists()


def test_step_is_not_evaluated_twice(tiny, run, resume):
    """A run that is killed before its second evaluation resumes from step 0, already evaluated."""
    train.main(run(max_iters=0))
    train.main(resume(max_iters=3))
    assert evaluated_steps() == [0, 3]


@pytest.fixture
def at_step_7(monkeypatch):
    """at_step_7(function): call it in a run, before its eighth step."""

    def install(function):
        train_step = Trainer.train_step

        def call_and_step(self):
            if self.state.step == 7:
                function()
            train_step(self)

        monkeypatch.setattr(Trainer, "train_step", call_and_step)

    return install


@pytest.mark.parametrize("snapshot_interval", [0, 4])
@pytest.mark.parametrize("action", ["move", "delete"])
def test_run_whose_folder_is_moved_or_deleted_continues_in_a_new_one(
    tiny, run, loss_curve, at_step_7, action, snapshot_interval
):
    """It died unsaved with snapshots; else log, metrics, config and lock were gone."""

    def lose_folder():
        if action == "move":
            Path("out").rename("moved")
        else:
            shutil.rmtree("out")

    at_step_7(lose_folder)
    train.main(run(max_iters=20, snapshot_interval=snapshot_interval))
    assert resume_state("out")["step"] == 20
    best = load_checkpoint("out/best.pt")
    assert best["val_loss"] == min(logged_values("out", "val_loss"))
    assert [line["step"] for line in logged_metrics() if "val_loss" in line] == [15, 20]
    log = Path("out/training.log").read_text(encoding="utf-8")
    assert "was moved or deleted" in log
    assert Path("out/config.py").exists()
    if action == "move":
        assert resume_state("moved")["step"] == 5


def test_second_run_is_refused_in_the_new_folder_too(tiny, run, refused, at_step_7, monkeypatch):
    """It was accepted beside the first, whose lock was of the folder that had gone."""
    at_step_7(lambda: shutil.rmtree("out"))
    messages = []
    evaluate = Trainer.evaluate

    def evaluate_and_start_another(self):
        evaluate(self)
        if self.state.step == 15:
            messages.append(refused(train.main, *run()))

    monkeypatch.setattr(Trainer, "evaluate", evaluate_and_start_another)
    train.main(run(max_iters=20))
    assert "out is in use by process" in messages[0]


def test_run_whose_folder_was_taken_by_another_leaves_it_alone(tiny, run, refused, at_step_7):
    """Its own checkpoint stays where the folder was moved to."""
    locks = []

    def move_and_take():
        Path("out").rename("moved")
        Path("out").mkdir()
        locks.append(lock_folder(Path("out")))

    at_step_7(move_and_take)
    assert "out is in use by process" in refused(train.main, *run())
    locks[0].close()
    assert [path.name for path in Path("out").iterdir()] == [".lock"]
    assert resume_state("moved")["step"] == 5


WRONG_VALUES = [
    ("optimizer", [{"state": {}, "param_groups": 7}]),
    ("optimizer", []),
    ("rng_states", []),
    ("rng_states", [{}]),
    ("rng_states", [{"cpu": "x"}]),
    ("scaler", {"scale": "x"}),
    ("train_state", {}),
    ("train_state", {"best_val_loss": "low", "best_step": 0, "evals_since_best": 0}),
    ("train_state", {"best_val_loss": 1.0, "best_step": None, "evals_since_best": 0}),
    (
        "train_state",
        {"step": 2, "best_val_loss": float("nan"), "best_step": 0, "evals_since_best": 0},
    ),
    ("train_state", {"step": 2, "best_val_loss": 1.0, "best_step": 0, "evals_since_best": "x"}),
    ("eval_signature", "x"),
    ("fingerprint", 7),
    ("step", "7"),
    ("step", -1),
    ("model", []),
    ("train_config", {"dataset": 7, "max_iters": "x"}),
    ("train_config", {"seed": 2**70}),
    ("train_config", {"dataset": ["x"]}),
]


@pytest.fixture(scope="module")
def float16_checkpoint(tiny_once, tmp_path_factory):
    """A folder with data/tiny and a short run in float16, whose checkpoints have a scaler state."""
    folder = tmp_path_factory.mktemp("float16")
    shutil.copytree(tiny_once, folder, dirs_exist_ok=True)
    options = {**RUN, "max_iters": 2, "dtype": "float16"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train.main([f"--{name}={value}" for name, value in options.items()])
    return folder


@pytest.mark.parametrize("key, value", WRONG_VALUES)
def test_wrong_value_in_a_checkpoint_is_one_message(
    float16_checkpoint, workspace, resume, refused, key, value
):
    shutil.copytree(float16_checkpoint, workspace, dirs_exist_ok=True)
    change_checkpoint("out/latest.pt", **{key: value})
    assert "out/latest.pt" in refused(train.main, *resume(max_iters=9))


# best.pt


def test_best_only_improves_and_is_saved_before_latest(tiny, run, monkeypatch):
    """In the other order, a crash between the two would lose the best model."""
    losses = iter([3.0, 2.0, 2.5, 1.9, 4.0])
    saved = []
    real_save = run_checkpoint.save_checkpoint

    def mean_loss(self, model, split):
        return next(losses) if split == "val" else 1.0

    def save(path, ckpt):
        saved.append((path.name, ckpt["step"]))
        real_save(path, ckpt)

    monkeypatch.setattr(Trainer, "mean_loss", mean_loss)
    monkeypatch.setattr(run_checkpoint, "save_checkpoint", save)
    train.main(run(max_iters=8, eval_interval=2))
    assert [step for name, step in saved if name == "best.pt"] == [0, 2, 6]
    assert [step for name, step in saved if name == "latest.pt"] == [0, 2, 4, 6, 8]
    assert saved.index(("best.pt", 6)) < saved.index(("latest.pt", 6))
    assert load_checkpoint("out/best.pt")["val_loss"] == 1.9
    latest = resume_state("out")
    assert latest["val_loss"] == 4.0
    assert latest["train_state"] == {
        "step": 8,
        "best_val_loss": 1.9,
        "best_step": 6,
        "evals_since_best": 1,
    }


def test_run_shorter_than_eval_interval_ends_with_both_checkpoints(tiny, run):
    train.main(run(max_iters=3, eval_interval=100))
    assert resume_state("out")["step"] == 3
    assert Path("out/best.pt").exists()


def test_best_survives_a_crash_between_the_two_saves(trained, resume):
    """best.pt is then newer than latest.pt, and better than the best loss that latest.pt knows."""
    change_checkpoint("out/best.pt", val_loss=0.001)
    train.main(resume(max_iters=31))
    assert load_checkpoint("out/best.pt")["val_loss"] == 0.001


def test_best_loss_is_reset_if_other_tokens_are_evaluated(trained, resume):
    """The best.pt of an easier evaluation would have stayed the best forever.

    The step of the checkpoint is evaluated again, as its loss was of other tokens.
    """
    train.main(resume(max_iters=31, eval_iters=3))
    assert Path("out/best-until-30.pt").exists()
    assert evaluated_steps() == [0, 10, 20, 30, 30, 31]
    assert load_checkpoint("out/best.pt")["step"] in (30, 31)


def test_run_saved_before_its_first_evaluation_resumes_without_a_note(
    tiny, run, resume, monkeypatch, capsys
):
    """The note said that best.pt was missing, though there had been none."""
    loop = Trainer.loop

    def loop_with_signal(self, signals):
        signals.received = signal.SIGTERM
        return loop(self, signals)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Trainer, "loop", loop_with_signal)
        train.main(run())
    assert resume_state("out")["step"] == 0
    capsys.readouterr()
    train.main(resume())
    assert "missing" not in capsys.readouterr().out
    assert evaluated_steps() == [0, 5, 10]


def test_damaged_best_is_moved_aside(trained, resume, capsys):
    Path("out/best.pt").write_bytes(b"damaged")
    train.main(resume(max_iters=31))
    assert "out/best.pt is now out/best-until-30.pt" in capsys.readouterr().out
    assert Path("out/best-until-30.pt").read_bytes() == b"damaged"
    assert load_checkpoint("out/best.pt")["step"] == 31
    assert evaluated_steps() == [0, 10, 20, 30, 31]


def test_missing_best_is_replaced(trained, resume, capsys):
    """The last lines named a missing best.pt, and sample.py loaded the worse latest.pt."""
    Path("out/best.pt").unlink()
    train.main(resume(max_iters=31))
    assert "out/best.pt is missing" in capsys.readouterr().out
    assert load_checkpoint("out/best.pt")["step"] == 31


def test_best_of_another_model_is_moved_aside(trained, run, resume):
    train.main(run(out_dir="other", max_iters=1, n_embd=48))
    Path("other/best.pt").replace("out/best.pt")
    train.main(resume(max_iters=31))
    assert load_checkpoint("out/best-until-30.pt")["model_config"]["n_embd"] == 48
    best = load_checkpoint("out/best.pt")
    assert best["step"] == 31
    assert best["model_config"]["n_embd"] == 32
