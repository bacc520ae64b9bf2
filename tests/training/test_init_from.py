"""What a run starts from: scratch, its newest valid checkpoint, or the weights of another model."""

from pathlib import Path

import pytest

import prepare
import train
from seugpt.checkpoint.storage import RESUME_KEYS, load_checkpoint, step_checkpoints
from tests.helpers import logged_metrics, nested_equal, resume_state

# init_from=auto


def test_auto_starts_and_resumes_as_one_run(tiny, run, capsys):
    train.main(run(out_dir="whole", dropout=0.3))
    for max_iters in (4, 10, 10):
        train.main(run(max_iters=max_iters, dropout=0.3, init_from="auto"))
    assert "--max_iters=20" in capsys.readouterr().out
    assert nested_equal(resume_state("out"), resume_state("whole"))
    assert "init_from = 'scratch'" in Path("out/config.py").read_text(encoding="utf-8")
    assert not Path("out/previous-1").exists()


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None], ids=["empty", "text", "cut"])
def test_auto_resumes_from_the_newest_valid_checkpoint(tiny, run, capsys, damage):
    train.main(run(out_dir="whole", max_iters=4, eval_interval=4))
    train.main(run(max_iters=3, eval_interval=1, keep_last=3))
    assert [path.name for path in step_checkpoints("out")] == [
        f"step-{step:08d}.pt" for step in (3, 2, 1)
    ]
    latest = Path("out/latest.pt")  # and so step-00000003.pt, which is the same file
    latest.write_bytes(latest.read_bytes()[:1000] if damage is None else damage)
    train.main(run(max_iters=4, init_from="auto", keep_last=3))
    out = capsys.readouterr().out
    assert "out/latest.pt cannot be read" in out
    assert "resumed from out/step-00000002.pt at step 2" in out
    assert nested_equal(resume_state("out")["model"], resume_state("whole")["model"])


def test_auto_does_not_start_over_if_no_checkpoint_is_valid(trained, run, refused):
    for path in Path("out").glob("*.pt"):
        path.write_bytes(b"damaged")
    before = sorted(path.name for path in Path("out").iterdir())
    message = refused(train.main, *run(init_from="auto"))
    assert "out/latest.pt cannot be read" in message and "--init_from=scratch" in message
    assert sorted(path.name for path in Path("out").iterdir()) == before


# init_from=resume


@pytest.fixture
def two_step_run(tiny, run):
    """out/ with latest.pt, best.pt, step-00000002.pt and step-00000001.pt."""
    train.main(run(max_iters=2, eval_interval=1, keep_last=2))


def test_message_on_a_damaged_checkpoint_lists_the_others(two_step_run, resume, refused):
    latest = Path("out/latest.pt")
    whole = latest.read_bytes()
    latest.unlink()  # or step-00000002.pt, the same file, would be damaged too
    latest.write_bytes(whole[:500])
    message = refused(train.main, *resume(max_iters=20))
    assert "out/latest.pt cannot be read" in message
    assert "step-00000002.pt, step-00000001.pt, best.pt" in message


def test_message_on_a_missing_latest_has_the_option_that_continues(two_step_run, resume, refused):
    Path("out/latest.pt").unlink()
    message = refused(train.main, *resume(max_iters=20))
    assert "out/step-00000002.pt" in message and "--init_from=auto" in message
    for path in step_checkpoints("out"):
        path.unlink()
    message = refused(train.main, *resume(max_iters=20))
    assert "--init_from=out/best.pt --out_dir=ANOTHER" in message


def test_resumed_run_keeps_its_architecture_whatever_the_config_file_says(trained, resume, capsys):
    """As in nanoGPT, whose users resume with the config file that they have edited since."""
    before = load_checkpoint("out/latest.pt")["model_config"]
    text = "n_layer = 7\nn_embd = 31\nposition = 'rope'\nlearning_rate = 1e-4\ndropout = 0.5\n"
    Path("edited.py").write_text(text, encoding="utf-8")
    train.main(["edited.py", *resume(max_iters=31)])
    after = load_checkpoint("out/latest.pt")
    assert after["model_config"] == {**before, "dropout": 0.5}
    assert after["train_config"]["learning_rate"] == 1e-4
    out = capsys.readouterr().out
    for name in ("n_layer", "n_embd"):
        assert f"{name}={before[name]} (not " in out
    assert out.count("the run keeps its architecture") == 1


def test_another_architecture_on_the_command_line_is_refused(trained, resume, refused):
    """Whoever types an option expects it to count."""
    message = refused(train.main, *resume(max_iters=31), "--n_layer=7")
    assert "n_layer=7 (stored: " in message


def test_resume_refuses_another_optimizer(trained, resume, refused):
    message = refused(train.main, *resume(max_iters=31, optimizer="muon"))
    assert "optimizer=muon" in message and "--init_from=out" in message


def test_checkpoint_written_while_a_run_starts_is_not_lost(tiny, run, resume, refused, monkeypatch):
    """An old job saved its last steps after the new job had read latest.pt, and lost them."""
    train.main(run(max_iters=5))
    build_model = train.build_model

    def slow_build_model(*arguments):
        monkeypatch.setattr(train, "build_model", build_model)
        train.main(resume(max_iters=8))
        return build_model(*arguments)

    monkeypatch.setattr(train, "build_model", slow_build_model)
    message = refused(train.main, *run(init_from="auto"))
    assert "out/latest.pt" in message and "same command" in message
    assert resume_state("out")["step"] == 8
    steps = [values["step"] for values in logged_metrics() if "loss" in values]
    assert steps == list(range(8))


# The data


def test_changed_data_is_refused_unless_allowed(trained, run, resume, refused, capsys):
    best = load_checkpoint("out/best.pt")["val_loss"]
    text = Path("tiny.txt").read_text(encoding="utf-8")
    Path("tiny.txt").write_text(text[3000:] + text[:3000], encoding="utf-8")
    prepare.main(["tiny", "--input=tiny.txt"])
    for argv in (resume(max_iters=31), run(max_iters=31, init_from="auto")):
        message = refused(train.main, *argv)
        assert "data/tiny" in message and "out/latest.pt" in message
        assert "--allow_data_change=True" in message
    train.main(resume(max_iters=31, allow_data_change=True))
    assert "out/best.pt is now out/best-until-30.pt" in capsys.readouterr().out
    assert load_checkpoint("out/best-until-30.pt")["val_loss"] == best
    train.main(resume(max_iters=32))  # the new data has become the run's data
    Path("tiny.txt").write_text(text, encoding="utf-8")
    prepare.main(["tiny", "--input=tiny.txt"])
    assert "--allow_data_change=True" in refused(train.main, *resume(max_iters=33))


def test_another_dataset_by_name_needs_no_permission(trained, resume, capsys):
    text = Path("tiny.txt").read_text(encoding="utf-8")
    Path("other.txt").write_text(text[::-1], encoding="utf-8")
    prepare.main(["other", "--input=other.txt"])
    train.main(resume(max_iters=31, dataset="other"))
    assert "dataset tiny -> other" in capsys.readouterr().out


# Other weights


def test_fine_tuning_loads_only_the_weights(trained, run, capsys):
    source = load_checkpoint("out/best.pt")
    argv = run(out_dir="tuned", max_iters=0, dropout=0.1, block_size=8, init_from="out")
    capsys.readouterr()
    train.main([word for word in argv if not word.startswith("--n_")])
    assert f"weights from out/best.pt: step {source['step']}" in capsys.readouterr().out
    tuned = load_checkpoint("tuned/latest.pt", RESUME_KEYS)
    assert tuned["step"] == 0
    assert tuned["model_config"]["block_size"] == 8
    assert tuned["model_config"]["dropout"] == 0.1
    source["model"]["wpe.weight"] = source["model"]["wpe.weight"][:8]
    assert nested_equal(tuned["model"], source["model"])
    assert tuned["val_loss"] < 2.5  # not an untrained model's


def test_fine_tuning_into_the_same_folder_keeps_the_earlier_run(trained, run):
    before = resume_state("out")
    train.main(run(init_from="out", max_iters=1))
    assert nested_equal(before, resume_state("out/previous-1"))
    train.main(run(max_iters=1))
    assert Path("out/previous-2/best.pt").exists()
    assert nested_equal(before, resume_state("out/previous-1"))
