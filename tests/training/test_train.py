"""The training loop: accumulation, learning, evaluation, and the learning rate schedule."""

import math
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import prepare
import train
from seugpt.checkpoint.storage import load_checkpoint
from seugpt.data.dataset import Dataset
from tests.helpers import NoWaiting, nested_equal, resume_state
from train import TrainConfig, Trainer, get_lr

# The loop


def test_accumulated_gradients_equal_those_of_one_large_batch(make_trainer):
    """The optimizer receives the same gradients of 8 windows as 1 x 8 and as 4 x 2."""
    rows = Dataset("data/tiny").batch("train", 0, 8, 16, seed=0)

    def gradients(accumulation_steps, batch_size):
        trainer = make_trainer(
            gradient_accumulation_steps=accumulation_steps, batch_size=batch_size, grad_clip=0.0
        )
        received = []

        def batch(split, index, batch_size, block_size, seed):
            return [array[index * batch_size : (index + 1) * batch_size] for array in rows]

        def optimizer_step():
            received.extend(p.grad.clone() for p in trainer.raw_model.parameters())

        trainer.read_batch = batch
        trainer.optimizers[0].step = optimizer_step
        trainer.train_step()
        return received

    torch.testing.assert_close(gradients(1, 8), gradients(4, 2), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_never_waits_for_the_device(make_trainer, optimizer):
    """Except where it is logged; waiting at each step took a fifth of a small model's time."""
    trainer = make_trainer(optimizer=optimizer, log_interval=100, gradient_accumulation_steps=2)
    trainer.defers_check = True  # as on a GPU
    trainer.state.step = 1
    trainer.unchecked_step = None
    with NoWaiting(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "check_last_step", lambda self: None)  # waits for the step before
        trainer.train_step()
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoWaiting():
        trainer.check_last_step()


def test_a_skipped_step_changes_nothing(make_trainer):
    """With found_inf, which both optimizers read, the gradients may be NaN."""
    trainer = make_trainer(optimizer="muon", weight_decay=0.0)
    trainer.defers_check = True
    before = {name: p.clone() for name, p in trainer.raw_model.named_parameters()}
    trainer.backward(*trainer.batch(0))
    for parameter in trainer.raw_model.parameters():
        parameter.grad.fill_(math.nan)
    trainer.guard_weights(torch.tensor(1.0), trainer.clip_grad_norm(), 0.1)
    trainer.optimizer_step(torch.tensor(math.nan))
    for name, parameter in trainer.raw_model.named_parameters():
        assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("overflowing", ["wte.weight", "h.0.mlp.c_fc.weight"])
def test_an_overflow_of_one_optimizer_stops_the_other_too(make_trainer, overflowing):
    """GradScaler asks each optimizer's gradients alone, and let the other one step."""
    trainer = make_trainer(optimizer="muon")
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = {name: p.clone() for name, p in trainer.raw_model.named_parameters()}
    trainer.backward(*trainer.batch(0))
    trainer.raw_model.get_parameter(overflowing).grad[0] = math.inf
    trainer.optimizer_step(trainer.clip_grad_norm())
    assert all(torch.equal(p, before[name]) for name, p in trainer.raw_model.named_parameters())
    assert trainer.scaler.get_scale() == 2.0
    trainer.raw_model.zero_grad()
    trainer.backward(*trainer.batch(0))
    trainer.optimizer_step(trainer.clip_grad_norm())
    assert not any(torch.equal(p, before[name]) for name, p in trainer.raw_model.named_parameters())


@pytest.mark.parametrize("failures", [[None, "no compiler"], ["no compiler", None]])
def test_a_compilation_that_fails_on_one_rank_is_undone_on_all(make_trainer, capsys, failures):
    trainer = make_trainer()
    trainer.log.quiet = False
    trainer.dist_env = Mock(all_gather=lambda failure: failures, world_size=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "compile_model", lambda model, warmup: model.compile())
        trainer.compile()
    assert trainer.raw_model._compiled_call_impl is None
    assert "the model runs uncompiled: no compiler" in capsys.readouterr().out


def test_training_and_evaluation_are_two_graphs_without_a_break(make_trainer):
    """A model compiled anew for each shape, or in pieces, loses what compiling gains."""
    trainer = make_trainer(dropout=0.1, position="rope")
    counter = CompileCounterWithBackend("aot_eager")
    trainer.raw_model.compile(dynamic=False, fullgraph=True, backend=counter)
    for _ in range(2):
        trainer.backward(*trainer.batch(0))
        trainer.raw_model.eval()
        trainer.mean_loss(trainer.raw_model, "val", eval_iters=2)
        trainer.raw_model.train()
    assert counter.frame_count == 2


def test_logits_beside_a_loss_have_no_gradient_of_their_own(make_trainer):
    """The backward pass filled and read one of zeros, as large as the logits."""
    trainer = make_trainer()
    logits, loss = trainer.raw_model(*trainer.batch(0))
    assert not logits.requires_grad
    assert loss.requires_grad


def write_markov_text(rng, num_states, length):
    """Write markov.txt, a Markov chain over letters. Returns its transition matrix."""
    transition = rng.dirichlet(np.full(num_states, 0.4), size=num_states)
    cumulative = transition.cumsum(axis=1).tolist()
    states = [0]
    for draw in rng.random(length).tolist():
        row = cumulative[states[-1]]
        states.append(min(sum(bound < draw for bound in row), num_states - 1))
    text = "".join(chr(ord("a") + state) for state in states)
    Path("markov.txt").write_text(text, encoding="utf-8")
    return transition


def test_training_reaches_the_entropy_of_a_markov_source(workspace, run):
    """End to end: the validation loss ends at most 2% above the loss of the true source."""
    transition = write_markov_text(np.random.default_rng(7), num_states=8, length=100_000)
    prepare.main(["tiny", "--input=markov.txt"])
    ids = Dataset("data/tiny").ids["val"][:].astype(int)
    source_losses = -np.log(transition[ids[:-1], ids[1:]])
    stationary = np.linalg.matrix_power(transition, 1000)[0]
    entropy_rate = -(stationary[:, None] * transition * np.log(transition)).sum()
    standard_error = source_losses.std() / math.sqrt(len(source_losses))
    assert abs(source_losses.mean() - entropy_rate) < 4 * standard_error

    options = {"n_layer": 1, "batch_size": 16, "gradient_accumulation_steps": 1, "eval_iters": 0}
    options |= {"max_iters": 400, "eval_interval": 400, "log_interval": 100}
    options |= {"warmup_iters": 20, "lr_decay_iters": 400}
    train.main(run(**options))
    loss = load_checkpoint("out/best.pt")["val_loss"]
    assert source_losses.mean() < loss < 1.02 * source_losses.mean()


def test_vocab_size_may_exceed_that_of_the_tokenizer(tiny, run):
    train.main(run(vocab_size=64, max_iters=1))
    assert load_checkpoint("out/latest.pt")["model"]["wte.weight"].shape[0] == 64


def test_eval_only_writes_nothing(trained, run, resume, capsys):
    before = {path: path.stat().st_mtime_ns for path in Path("out").iterdir()}
    train.main(resume(eval_only=True))
    train.main(run(eval_only=True, out_dir="nothing"))
    assert {path: path.stat().st_mtime_ns for path in Path("out").iterdir()} == before
    assert not Path("nothing").exists()
    assert capsys.readouterr().out.count("val loss") == 2


def test_non_finite_loss_stops_the_run_and_keeps_the_checkpoint(trained, resume, refused):
    before = resume_state("out")
    options = {"max_iters": 50, "learning_rate": 1e30, "decay_lr": False, "grad_clip": 0}
    message = refused(train.main, *resume(**options))
    assert "learning_rate=1e+30" in message and "torch.float32" in message
    assert nested_equal(before, resume_state("out"))


# The learning rate


def schedule(**changes):
    config = {"learning_rate": 1.0, "min_lr": 0.1, "warmup_iters": 10, "lr_decay_iters": 110}
    return TrainConfig(**{**config, **changes})


def test_learning_rate_warms_up_decays_along_a_cosine_and_stays_at_the_minimum():
    rates = [get_lr(step, schedule()) for step in range(150)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 11)
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55)
    assert rates[110:] == [0.1] * 40
    assert (np.diff(rates[10:111]) < 0).all()


def test_learning_rate_is_constant_without_decay():
    assert get_lr(5, TrainConfig(decay_lr=False, learning_rate=0.3)) == 0.3


@pytest.mark.parametrize("lr_decay_iters", [0, 5, 10])
def test_decay_that_ends_during_the_warmup_does_not_divide_by_zero(lr_decay_iters):
    config = schedule(lr_decay_iters=lr_decay_iters)
    assert [get_lr(step, config) for step in (9, 10, 11)] == [10 / 11, 0.1, 0.1]


def test_cooldown_is_linear_after_a_constant_learning_rate():
    config = schedule(min_lr=0.2, warmup_iters=5, lr_decay_iters=50, cooldown_iters=20)
    rates = [get_lr(step, config) for step in range(60)]
    assert rates[5:31] == [1.0] * 26
    assert rates[40] == pytest.approx(0.6)
    assert rates[50:] == [0.2] * 10
    np.testing.assert_allclose(np.diff(rates[30:51]), -0.04)


def test_cooldown_longer_than_the_decay_starts_below_the_peak():
    config = schedule(min_lr=0.2, warmup_iters=5, lr_decay_iters=50, cooldown_iters=500)
    assert get_lr(5, config) == pytest.approx(0.2 + 0.8 * 45 / 500)
