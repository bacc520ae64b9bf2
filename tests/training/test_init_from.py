"""What a run begins from: nothing, its own checkpoint, the newest one that loads; and only with the data it knows."""

from pathlib import Path

import pytest

import prepare
import train
from seugpt.checkpoint import storage as checkpoint
from tests.helpers import logged_metrics, nested_equal, resume_state


def test_auto_begins_goes_on_and_ends_as_one_run(tiny, run, capsys):
    train.main(run(out_dir="whole", max_iters=20, dropout=0.3))
    for max_iters in (7, 20, 20):
        train.main(run(max_iters=max_iters, dropout=0.3, init_from="auto"))
    assert "has made 20 steps" in capsys.readouterr().out
    assert nested_equal(resume_state("out"), resume_state("whole"))
    assert "init_from = 'scratch'" in Path("out/config.py").read_text(encoding="utf-8")
    assert not Path("out/previous-1").exists()


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None])
def test_auto_goes_on_from_the_newest_that_loads_and_says_so(tiny, run, capsys, damage):
    train.main(run(max_iters=20, out_dir="whole"))
    train.main(run(max_iters=15, keep_checkpoints=3))
    assert [p.name for p in checkpoint.numbered("out")] == [f"step-{n:08d}.pt" for n in (15, 10, 5)]
    latest = Path("out/latest.pt")
    latest.write_bytes(
        latest.read_bytes()[:1000] if damage is None else damage
    )  # and so step-15, the same file
    train.main(run(max_iters=20, init_from="auto", keep_checkpoints=3))
    out = capsys.readouterr().out
    assert (
        "out/latest.pt cannot be read" in out
        and "so the run goes on from out/step-00000010.pt" in out
    )
    assert "resumed from out/step-00000010.pt at step 10" in out
    assert nested_equal(resume_state("out")["model"], resume_state("whole")["model"])


def test_where_nothing_loads_auto_does_not_begin_anew_in_silence(tiny, run, refused):
    train.main(run(keep_checkpoints=1))
    for path in Path("out").glob("*.pt"):
        path.write_bytes(b"damaged")
    before = sorted(path.name for path in Path("out").iterdir())
    message = refused(train.main, *run(init_from="auto"))
    assert "out/latest.pt cannot be read" in message and "--init_from=scratch" in message
    assert sorted(path.name for path in Path("out").iterdir()) == before


def test_a_damaged_checkpoint_names_those_that_load(tiny, run, refused):
    train.main(run(keep_checkpoints=2))
    latest = Path("out/latest.pt")
    whole = latest.read_bytes()
    latest.unlink()
    latest.write_bytes(whole[:500])
    argv = ["--init_from=resume", "--out_dir=out", "--max_iters=20"]
    message = refused(train.main, *argv)
    assert "out/latest.pt cannot be read" in message
    assert "These can be read: out/step-00000010.pt, out/step-00000005.pt, out/best.pt" in message
    Path("out/step-00000005.pt").write_bytes(whole[:500])
    assert "These can be read: out/step-00000010.pt, out/best.pt" in refused(train.main, *argv)


@pytest.mark.parametrize("name, value", [
    ("optimizer", [{"state": {}, "param_groups": 7}]), ("optimizer", []), ("generators", []), ("generators", [{}]),
    ("generators", [{"cpu": "x"}]), ("scaler", {"scale": "x"}), ("best_val_loss", "low"), ("step", "7"), ("step", -1),
    ("model", []), ("train_config", {"dataset": 7, "max_iters": "x"}),
])  # fmt: skip
def test_a_checkpoint_with_nonsense_in_it_is_named(tiny, run, refused, name, value):
    train.main(run(max_iters=2, dtype="float16"))
    content = checkpoint.load("out/latest.pt", checkpoint.TO_RESUME)
    checkpoint.save(
        "out/latest.pt", {k: v for k, v in content.items() if k != "path"} | {name: value}
    )
    assert "out/latest.pt" in refused(
        train.main, "--init_from=resume", "--out_dir=out", "--max_iters=9"
    )


def test_data_that_changed_are_refused_unless_asked_for(tiny, run, refused, capsys):
    train.main(run(max_iters=5))
    before = checkpoint.load("out/best.pt")["val_loss"]
    text = Path("tiny.txt").read_text(encoding="utf-8")
    Path("tiny.txt").write_text(text[3000:] + text[:3000], encoding="utf-8")
    prepare.main(["tiny", "--input=tiny.txt"])
    for argv in (["--init_from=resume", "--out_dir=out", "--max_iters=10"], run(init_from="auto")):
        message = refused(train.main, *argv)
        assert "the tokens in data/tiny are not those that out/latest.pt was trained on" in message
        assert "--new_data=True" in message
    train.main(["--init_from=resume", "--out_dir=out", "--max_iters=10", "--new_data=True"])
    assert "out/best.pt is now out/best-until-5.pt" in capsys.readouterr().out
    assert checkpoint.load("out/best-until-5.pt")["val_loss"] == before
    train.main(
        ["--init_from=resume", "--out_dir=out", "--max_iters=12"]
    )  # it was asked once, and knows them now
    Path("tiny.txt").write_text(text, encoding="utf-8")
    prepare.main(["tiny", "--input=tiny.txt"])
    assert "--new_data=True" in refused(
        train.main, "--init_from=resume", "--out_dir=out", "--max_iters=14"
    )


def test_another_data_set_by_name_is_a_choice(tiny, run, capsys):
    train.main(run(max_iters=5))
    Path("other.txt").write_text(
        Path("tiny.txt").read_text(encoding="utf-8")[::-1], encoding="utf-8"
    )
    prepare.main(["other", "--input=other.txt"])
    train.main(["--init_from=resume", "--out_dir=out", "--max_iters=10", "--dataset=other"])
    assert "dataset tiny -> other" in capsys.readouterr().out


def test_losses_of_other_tokens_are_not_compared(tiny, run):
    """best.pt of an easy evaluation would have stayed the best for ever."""
    train.main(run(max_iters=5))
    train.main(["--init_from=resume", "--out_dir=out", "--max_iters=10", "--eval_iters=3"])
    assert Path("out/best-until-5.pt").exists() and checkpoint.load("out/best.pt")["step"] == 10


def test_a_damaged_best_does_not_keep_a_run_from_going_on(tiny, run, capsys):
    train.main(run(max_iters=5))
    Path("out/best.pt").write_bytes(b"damaged")
    train.main(["--init_from=resume", "--out_dir=out", "--max_iters=10"])
    assert "out/best.pt is now out/best-until-5.pt" in capsys.readouterr().out
    assert checkpoint.load("out/best.pt")["step"] == 10
    assert [m["step"] for m in logged_metrics() if "val_loss" in m] == [0, 5, 10]


@pytest.mark.parametrize("what", ["missing", "another model's"])
def test_a_best_that_is_not_this_runs_is_sought_anew(tiny, run, capsys, what):
    """The end spoke of a best.pt that was not there, and sample.py took the worse latest.pt."""
    train.main(run(max_iters=10))
    Path("out/best.pt").unlink()
    if what != "missing":
        train.main(run(out_dir="other", max_iters=20, n_embd=48))
        Path("other/best.pt").rename("out/best.pt")
    train.main(["--init_from=resume", "--out_dir=out", "--max_iters=15"])
    out = capsys.readouterr().out
    assert "the best of this run is sought anew. " in out
    assert (
        "there is no out/best.pt any more" if what == "missing" else "it is another model's"
    ) in out
    best = checkpoint.load("out/best.pt")
    assert best["step"] == 15 and best["model_config"]["n_embd"] == 32


def test_a_checkpoint_that_another_run_writes_meanwhile_is_not_lost(
    tiny, run, refused, monkeypatch
):
    """The old job saved its last steps while the new one had read the checkpoint before, and overwrote them."""
    train.main(run(max_iters=5))
    real = train.build_model

    def slow(*arguments):
        monkeypatch.setattr(train, "build_model", real)
        train.main(["--init_from=resume", "--out_dir=out", "--max_iters=8"])
        return real(*arguments)

    monkeypatch.setattr(train, "build_model", slow)
    message = refused(train.main, *run(init_from="auto"))
    assert "another run has written out/latest.pt while this one was starting" in message
    assert resume_state("out")["step"] == 8 and [
        m["step"] for m in logged_metrics() if "loss" in m
    ] == list(range(8))


def test_the_way_on_from_a_folder_without_latest_is_told(tiny, run, refused):
    train.main(run(keep_checkpoints=2))
    Path("out/latest.pt").unlink()
    resume = ("--init_from=resume", "--out_dir=out", "--max_iters=20")
    assert "goes on from out/step-00000010.pt with --init_from=auto" in refused(train.main, *resume)
    for path in Path("out").glob("step-*.pt"):
        path.unlink()
    assert "--init_from=out/best.pt --out_dir=ANOTHER" in refused(train.main, *resume)


def test_a_folder_that_was_moved_away_is_made_again(tiny, run, monkeypatch):
    real = train.Trainer.train_step

    def step(self):
        if self.step == 7:
            Path("out").rename("moved")
        real(self)

    monkeypatch.setattr(train.Trainer, "train_step", step)
    train.main(run())
    assert resume_state("out")["step"] == 10 and resume_state("moved")["step"] == 5


def test_a_checkpoint_of_before_there_were_fingerprints_goes_on(tiny, run):
    train.main(run(max_iters=5))
    content = checkpoint.load("out/latest.pt", checkpoint.TO_RESUME)
    since = {"path", "fingerprint", "evaluated_on", "best_step", "worse"}
    checkpoint.save("out/latest.pt", {k: v for k, v in content.items() if k not in since})
    train.main(["--init_from=resume", "--out_dir=out", "--max_iters=10"])
    assert resume_state("out")["step"] == 10
