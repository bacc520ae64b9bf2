"""The loop: what it learns, what it repeats bit for bit, and what it refuses."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import prepare
import train
from model import GPT, ModelConfig
from seugpt.checkpoint import storage as checkpoint
from seugpt.data.dataset import Dataset
from seugpt.errors import ConfigError
from seugpt.training.distributed import Ranks
from tests.helpers import logged_metrics, nested_equal, resume_state, train_configs
from train import Trainer


@pytest.mark.parametrize(
    "dtype, optimizer", [("float32", "adamw"), ("bfloat16", "muon"), ("float16", "muon")]
)
def test_n_and_n_steps_are_2n_bit_for_bit(tiny, run, dtype, optimizer):
    """Weights, optimizer, scaler, generators, under dropout and accumulation. nanoGPT#467: a resume replayed data."""
    train.main(run(out_dir="whole", max_iters=20, dropout=0.3, dtype=dtype, optimizer=optimizer))
    train.main(run(out_dir="parts", max_iters=10, dropout=0.3, dtype=dtype, optimizer=optimizer))
    torch.manual_seed(99)
    train.main(["--init_from=resume", "--out_dir=parts", "--max_iters=20"])
    assert nested_equal(resume_state("whole"), resume_state("parts"))
    whole, parts = ([m for m in logged_metrics(d) if "loss" in m] for d in ("whole", "parts"))
    assert [m["loss"] for m in whole] == [m["loss"] for m in parts]
    assert [m["step"] for m in parts] == list(range(20))


def test_a_resume_after_a_crash_forgets_what_it_does_again(tiny, run):
    train.main(run(out_dir="whole", max_iters=10, dropout=0.3))
    train.main(run(max_iters=5, dropout=0.3))
    with open("out/metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(
            '{"step": 5, "loss": 1}\n{"step": 6, "val_loss": 1, "train_loss": 1}\n{"step": 7, "lo'
        )  # and then a kill
    train.main(["--init_from=resume", "--out_dir=out", "--max_iters=10"])
    assert nested_equal(resume_state("whole"), resume_state("out"))
    assert [(m["step"], "loss" in m) for m in logged_metrics()] == [
        (m["step"], "loss" in m) for m in logged_metrics("whole")
    ]


def test_a_resume_that_has_nothing_left_to_do_says_so_and_changes_nothing(tiny, run, capsys):
    train.main(run())
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    for more in ([], ["--max_iters=5"]):
        train.main(["--init_from=resume", "--out_dir=out", *more])
        assert "for more: --max_iters=20" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before


def test_a_resume_takes_the_options_given_and_a_scaler_only_where_there_was_one(
    tiny, run, monkeypatch
):
    """torch's load_state_dict brings the old weight_decay and betas back, silently."""
    train.main(run(max_iters=5, dtype="float16"))
    seen = {}
    real_step = Trainer.train_step

    def spy(self):
        seen["groups"] = [(g["weight_decay"], g["betas"]) for g in self.optimizers[0].param_groups]
        real_step(self)

    monkeypatch.setattr(Trainer, "train_step", spy)
    train.main(
        [
            "--init_from=resume",
            "--out_dir=out",
            "--max_iters=6",
            "--weight_decay=0.7",
            "--beta2=0.5",
            "--dtype=float32",
        ]
    )
    assert seen["groups"] == [(0.7, (0.9, 0.5)), (0.0, (0.9, 0.5))]
    train.main(["--init_from=resume", "--out_dir=out", "--max_iters=7", "--dtype=float16"])


def test_config_py_repeats_the_run(tiny, run):
    train.main(run(out_dir="first", dropout=0.2, seed=5))
    train.main(["first/config.py", "--out_dir=second"])
    assert nested_equal(resume_state("first"), resume_state("second"))


def test_config_py_of_a_resumed_run_repeats_the_whole(tiny, run):
    train.main(run(max_iters=5))
    train.main(["--init_from=resume", "--out_dir=out", "--max_iters=10"])
    assert "init_from = 'scratch'" in Path("out/config.py").read_text(encoding="utf-8")
    train.main(["out/config.py", "--out_dir=again"])
    assert nested_equal(resume_state("out")["model"], resume_state("again")["model"])


def test_accumulation_equals_one_large_batch(tiny, run):
    """Same 8 windows in a step, as 1 x 8 and as 4 x 2, with a data set that gives rows by number."""
    gradients = []
    for accumulation, batch_size in ((1, 8), (4, 2)):
        model_config, options = train_configs(
            run(gradient_accumulation_steps=accumulation, batch_size=batch_size, grad_clip=0.0)
        )
        dataset = Dataset("data/tiny")
        rows = dataset.batch("train", 0, 8, 16, seed=0)
        dataset.batch = lambda split, index, size, T, seed, rows=rows: [
            a[index * size : (index + 1) * size] for a in rows
        ]
        torch.manual_seed(0)
        model = GPT(
            ModelConfig(**{**vars(model_config), "vocab_size": dataset.tokenizer.vocab_size})
        )
        trainer = Trainer(
            model, options, dataset, Ranks(), torch.device("cpu"), torch.float32, SilentLog()
        )
        trainer.optimizers[0].step = lambda model=model: gradients.append(
            [p.grad.clone() for p in model.parameters()]
        )
        trainer.restart_clock()
        trainer.train_step()
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-7)


class SilentLog:
    def say(self, text):
        pass

    def tick(self):
        pass

    def step(self, *values, **named):
        pass


def test_it_learns_a_markov_source_to_its_entropy(workspace, run):
    """End to end truth: the validation loss comes within 2% of the true source's own score, and not below it."""
    dice, K, length = np.random.default_rng(7), 8, 100_000
    transition = dice.dirichlet(np.full(K, 0.4), size=K)
    states, draws = [0], dice.random(length)
    cumulative = transition.cumsum(1)
    for draw in draws:
        states.append(min(int(np.searchsorted(cumulative[states[-1]], draw)), K - 1))
    Path("markov.txt").write_text("".join(chr(ord("a") + s) for s in states), encoding="utf-8")
    prepare.main(["tiny", "--input=markov.txt"])

    ids = Dataset("data/tiny").ids["val"][:].astype(int)
    scores = -np.log(transition[ids[:-1], ids[1:]])
    stationary = np.linalg.matrix_power(transition, 1000)[0]
    entropy_rate = -(stationary[:, None] * transition * np.log(transition)).sum()
    assert abs(scores.mean() - entropy_rate) < 4 * scores.std() / math.sqrt(len(scores))

    train.main(run(n_layer=1, n_embd=32, batch_size=16, gradient_accumulation_steps=1, max_iters=400, eval_iters=0,
                   lr_decay_iters=400, warmup_iters=20, eval_interval=400, log_interval=100))  # fmt: skip
    loss = checkpoint.load("out/best.pt")["val_loss"]
    assert scores.mean() < loss < 1.02 * scores.mean()


def test_a_resume_knows_the_checkpoints_options_before_it_judges_those_given(tiny, run):
    """n_embd=32 alone was once held against the default n_head=12, and refused."""
    train.main(run(max_iters=2))
    train.main(["--init_from=resume", "--out_dir=out", "--n_embd=32", "--max_iters=3"])
    assert resume_state("out")["step"] == 3


def test_a_folder_that_was_renamed_goes_on_under_its_new_name(tiny, run):
    train.main(run(max_iters=2))
    Path("out").rename("moved")
    train.main(["--init_from=resume", "--out_dir=moved", "--max_iters=3"])
    assert resume_state("moved")["step"] == 3 and not Path("out").exists()


def test_best_is_not_made_worse_after_a_crash_between_the_two_saves(tiny, run):
    train.main(run(max_iters=5))
    better = checkpoint.load("out/best.pt")
    checkpoint.save(
        "out/best.pt", {**{k: v for k, v in better.items() if k != "path"}, "val_loss": 0.001}
    )
    train.main(["--init_from=resume", "--out_dir=out", "--max_iters=10"])
    assert checkpoint.load("out/best.pt")["val_loss"] == 0.001


def test_a_run_killed_at_its_first_steps_is_not_evaluated_twice_at_0(tiny, run):
    train.main(run(max_iters=0))
    train.main(["--init_from=resume", "--out_dir=out", "--max_iters=3"])
    assert [m["step"] for m in logged_metrics() if "val_loss" in m] == [0, 3]


@pytest.mark.parametrize(
    "error", [MemoryError("full"), torch.OutOfMemoryError("CUDA out of memory.\nTried")]
)
def test_out_of_memory_is_answered_with_a_smaller_batch(tiny, run, monkeypatch, capsys, error):
    def raise_it(self, x, y):
        raise error

    monkeypatch.setattr(Trainer, "backward", raise_it)
    with pytest.raises(SystemExit) as exit:
        train.main(run())
    assert exit.value.code == 2
    message = capsys.readouterr().err
    assert (
        "out of memory" in message and "--batch_size=2 --gradient_accumulation_steps=4" in message
    )


def test_a_model_beyond_the_memory_is_one_message(tiny, run, capsys):
    with pytest.raises(SystemExit) as exit:
        train.main(run(n_embd=10_000_000))
    assert exit.value.code == 2 and "out of memory" in capsys.readouterr().err


def test_a_model_larger_than_the_machine_is_refused_before_it_is_built(
    tiny, run, refused, monkeypatch
):
    """Where the system promises more memory than it has, it would end the process without a word."""
    monkeypatch.setattr(
        os, "sysconf", lambda name: 10, raising=False
    )  # a machine of 10 pages of 10 bytes
    monkeypatch.setattr("seugpt.training.init_from.GPT", None)
    assert "this machine has 100; a smaller --n_layer" in refused(train.main, *run())


def test_fine_tuning_takes_weights_alone_and_says_so(tiny, run, capsys):
    train.main(run(max_iters=20))
    trained = checkpoint.load("out/best.pt")
    arguments = [
        a
        for a in run(out_dir="tuned", max_iters=0, dropout=0.1)
        if not a.startswith(("--n_", "--block"))
    ]
    capsys.readouterr()
    train.main([*arguments, "--init_from=out", "--block_size=8"])
    assert (
        f"weights from out/best.pt: step {trained['step']}, validation loss"
        in capsys.readouterr().out
    )
    tuned = checkpoint.load("tuned/latest.pt", checkpoint.TO_RESUME)
    assert (
        tuned["step"] == 0
        and tuned["model_config"]["block_size"] == 8
        and tuned["model_config"]["dropout"] == 0.1
    )
    trained["model"]["wpe.weight"] = trained["model"]["wpe.weight"][:8]
    assert nested_equal(tuned["model"], trained["model"])
    assert tuned["val_loss"] < 2.5  # not the untrained model's


def test_fine_tuning_into_the_same_folder_keeps_the_first_run(tiny, run):
    train.main(run())
    before = resume_state("out")
    train.main(run(init_from="out", max_iters=2))
    assert nested_equal(before, resume_state("out/previous-1"))
    train.main(run(max_iters=2))
    assert Path("out/previous-2/best.pt").exists() and nested_equal(
        before, resume_state("out/previous-1")
    )


def test_best_gets_only_better_and_latest_is_always_there(tiny, run, monkeypatch):
    losses = iter([3.0, 2.0, 2.5, 1.9, 4.0])
    monkeypatch.setattr(
        Trainer, "evaluate", lambda self, model: {"train": 1.0, "val": next(losses)}
    )
    seen = []
    real_save = checkpoint.save
    monkeypatch.setattr(
        checkpoint,
        "save",
        lambda path, content: (seen.append((path.name, content["step"])), real_save(path, content)),
    )
    train.main(run(max_iters=20))
    assert [step for name, step in seen if name == "best.pt"] == [0, 5, 15]
    assert [step for name, step in seen if name == "latest.pt"] == [0, 5, 10, 15, 20]
    assert seen.index(("best.pt", 15)) < seen.index(
        ("latest.pt", 15)
    )  # a crash between the two loses no best model
    assert checkpoint.load("out/best.pt")["val_loss"] == 1.9
    assert resume_state("out")["best_val_loss"] == 1.9 and resume_state("out")["val_loss"] == 4.0


def test_a_run_shorter_than_eval_interval_ends_with_both(tiny, run):
    train.main(run(max_iters=3, eval_interval=100))
    assert resume_state("out")["step"] == 3 and Path("out/best.pt").exists()


def test_eval_only_writes_nothing(tiny, run, capsys):
    train.main(run())
    before = {path: path.stat().st_mtime_ns for path in Path("out").iterdir()}
    train.main(["--init_from=resume", "--out_dir=out", "--eval_only=True"])
    train.main(run(eval_only=True, out_dir="nothing"))
    assert {path: path.stat().st_mtime_ns for path in Path("out").iterdir()} == before
    assert not Path("nothing").exists()
    assert capsys.readouterr().out.count("validation loss") >= 2


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tiny, run, capsys):
    train.main(run(max_iters=5))
    before = resume_state("out")
    with pytest.raises(SystemExit) as exit:
        train.main(["--init_from=resume", "--out_dir=out", "--max_iters=50", "--learning_rate=1e30", "--decay_lr=False",
                    "--grad_clip=0"])  # fmt: skip
    message = capsys.readouterr().err
    assert exit.value.code == 2 and "learning_rate=1e+30" in message and "torch.float32" in message
    assert nested_equal(before, resume_state("out"))


def test_vocabulary_padding_is_allowed_and_never_spoken(tiny, run):
    train.main(run(vocab_size=64, max_iters=2))
    assert checkpoint.load("out/latest.pt")["model"]["wte.weight"].shape[0] == 64


def test_the_ranks_share_a_step_evenly():
    assert Ranks().share(40, 12) == (40, None)
    assert Ranks(1, 4).share(40, 12) == (10, None)
    assert Ranks(1, 3).share(1, 12) == (1, slice(1, None, 3))
    for (accumulation, batch_size), words in {
        (
            3,
            12,
        ): "gradient_accumulation_steps=3 cannot be divided among 2 .*=2 or --gradient_accumulation_steps=4",
        (1, 7): "batch_size=7 cannot be divided among 2 .*--batch_size=6 or --batch_size=8",
    }.items():
        with pytest.raises(ConfigError, match=words):
            Ranks(0, 2).share(accumulation, batch_size)


@pytest.mark.parametrize("accumulation", [4, 1])
def test_all_ranks_together_see_what_one_sees(tiny, run, accumulation):
    def rows(world_size):
        seen = []
        for rank in range(world_size):
            model_config, options = train_configs(run(gradient_accumulation_steps=accumulation))
            trainer = Trainer.__new__(Trainer)
            trainer.options, trainer.dataset, trainer.ranks = (
                options,
                Dataset("data/tiny"),
                Ranks(rank, world_size),
            )
            trainer.bare = torch.nn.Module()
            trainer.bare.config, trainer.device = model_config, torch.device("cpu")
            trainer.micro_steps, trainer.rows = trainer.ranks.share(
                accumulation, options.batch_size
            )
            for trainer.step in range(3):
                for micro_step in range(trainer.micro_steps):
                    seen += [(trainer.step, *row) for row in trainer.batch(micro_step)[0].tolist()]
        return sorted(seen)

    assert rows(1) == rows(2) == rows(4) and len(rows(1)) == 3 * 4 * accumulation
