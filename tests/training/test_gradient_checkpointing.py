"""Gradient checkpointing: the same numbers to the bit, in less memory."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import train
from seugpt.training.memory_estimate import count_memory
from tests.helpers import logged_values, nested_equal, resume_state


def loss_and_gradients(trainer):
    torch.manual_seed(0)
    losses = [trainer.backward(*trainer.batch(micro_step)) for micro_step in range(2)]
    return losses, [p.grad for p in trainer.raw_model.parameters()]


@pytest.mark.parametrize(
    "fields",
    [
        {"dropout": 0.3},
        {"dropout": 0.3, "dtype": "bfloat16"},
        {"dropout": 0.3, "block_size": 600, "batch_size": 1},  # torch's fused attention
        {"position": "rope", "n_kv_head": 1, "mlp": "swiglu", "dtype": "bfloat16"},
    ],
)
def test_losses_and_gradients_are_bitwise_equal(make_trainer, fields):
    """Each block draws its dropout a second time: the same numbers."""
    kept = loss_and_gradients(make_trainer(**fields))
    recomputed = loss_and_gradients(make_trainer(gradient_checkpointing=True, **fields))
    assert nested_equal(kept, recomputed)


def test_runs_are_bitwise_equal_and_their_checkpoints_interchangeable(tiny, run, resume):
    """Samples and evaluations are the same, too; a run may switch when it resumes."""
    train.main(run(out_dir="kept", dropout=0.3))
    train.main(run(out_dir="recomputed", dropout=0.3, gradient_checkpointing=True, max_iters=5))
    train.main(resume(out_dir="recomputed", max_iters=10, gradient_checkpointing=False))
    assert nested_equal(resume_state("kept"), resume_state("recomputed"))
    for key in ("loss", "val_loss", "grad_norm"):
        assert logged_values("kept", key) == logged_values("recomputed", key)


def test_layer_statistics_are_those_of_the_whole_model(tiny, run):
    options = {"max_iters": 2, "snapshot_interval": 1}
    train.main(run(out_dir="kept", **options))
    train.main(run(out_dir="recomputed", gradient_checkpointing=True, **options))
    for key in ("activation_rms/h.1", "update_ratio/h.0"):
        assert logged_values("kept", key) == logged_values("recomputed", key)


def test_two_ranks_keep_their_losses(tiny, run, two_ranks):
    two_ranks(run(out_dir="kept", dropout=0.3, max_iters=3))
    two_ranks(run(out_dir="recomputed", dropout=0.3, max_iters=3, gradient_checkpointing=True))
    assert logged_values("kept", "loss") == logged_values("recomputed", "loss")


def test_compiled_training_and_evaluation_are_two_graphs_without_a_break(make_trainer):
    trainer = make_trainer(dropout=0.0, gradient_checkpointing=True)
    kept = loss_and_gradients(make_trainer(dropout=0.0))
    counter = CompileCounterWithBackend("aot_eager")
    trainer.raw_model.compile(dynamic=False, fullgraph=True, backend=counter)
    losses, gradients = loss_and_gradients(trainer)
    torch.testing.assert_close(losses, kept[0])
    torch.testing.assert_close(gradients, kept[1])
    trainer.raw_model.eval()
    trainer.mean_loss(trainer.raw_model, "val", eval_iters=2)
    assert counter.frame_count == 2


def test_activations_kept_are_the_inputs_of_the_blocks(make_trainer):
    """Each further block adds its input, and nothing else."""
    activations = []
    for n_layer in (2, 3):
        trainer = make_trainer(n_layer=n_layer, gradient_checkpointing=True)
        sizes = count_memory(
            trainer.raw_model.config, trainer.config, trainer.device, trainer.dtype, 1, rows=4
        )
        activations.append(sizes["activations"])
    assert activations[1] - activations[0] == 4 * 16 * 32 * 4  # rows, T, C, float32
