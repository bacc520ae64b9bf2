"""Train a GPT.

    python train.py config/quickstart.py
    python train.py config/train_shakespeare_char.py --device=cpu --max_iters=500
    torchrun --standalone --nproc_per_node=4 train.py config/train_gpt2.py

Options: the defaults below, then config files in the order given, then --key=value. The names are
nanoGPT's.
"""

import seugpt.cli.interrupt  # noqa: F401, for a quiet Ctrl-C during the imports below

import math
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from model import (
    ModelConfig,
    compile_model,
    make_autocast,
    pick_compile,
    pick_device,
    pick_dtype,
    uncompile,
)
from seugpt.cli.command import command, out_of_memory_advice
from seugpt.cli.config_parser import ConfigParser
from seugpt.data.dataset import Dataset
from seugpt.data.dataset_dir import dataset_path
from seugpt.data.prefetch import Prefetcher
from seugpt.evaluation.loss import summed_loss
from seugpt.generation.text_stream import sample_text
from seugpt.plots.loss_curve import draw_loss_curve
from seugpt.threads import CpuThreads, ThreadsOption
from seugpt.training.batch_ramp import (
    check_split,
    find_ramp_problem,
    get_accumulation_steps,
    num_micro_batches,
)
from seugpt.training.distributed import DistributedEnv, process_group, skip_grad_sync
from seugpt.training.failures import memory_advice, not_finite_error
from seugpt.training.gradient_checkpointing import checkpoint_blocks
from seugpt.training.init_from import (
    build_model,
    check_batch_memory,
    check_same_data,
    rank_values,
    resolve_config,
    with_original_init_from,
)
from seugpt.training.logger import RunLogger
from seugpt.training.memory import prepare_device, to_device
from seugpt.training.optimizer import make_optimizers
from seugpt.training.report import print_report
from seugpt.training.run_checkpoint import log_source_loss, make_saver, restore_run, save_run
from seugpt.training.sharding import (
    check_sharding,
    compile_blocks,
    full_tensor,
    try_compiling_block,
)
from seugpt.training.signals import SignalHandler
from seugpt.training.snapshots import SnapshotRecorder
from seugpt.training.throughput import Throughput, peak_flops


@dataclass(frozen=True)
class TrainConfig:
    """Everything about a run except the architecture; options as in ModelConfig."""

    # files
    out_dir: Annotated[str, "folder for checkpoints, logs and plots", "path"] = "out"
    init_from: Annotated[str, "scratch, resume, auto, gpt2, a path", "path"] = "scratch"
    eval_interval: Annotated[int, "steps between evaluations; each saves latest.pt", ">= 1"] = 2000
    log_interval: Annotated[int, "steps between logged training losses", ">= 1"] = 1
    eval_iters: Annotated[int, "batches per split in an evaluation; 0: whole splits", ">= 0"] = 200
    eval_only: Annotated[bool, "evaluate once, save nothing and stop"] = False
    report: Annotated[bool, "print parameters, FLOPs and memory, and stop"] = False
    report_world_size: Annotated[int | None, "processes that --report counts for", ">= 1"] = None
    always_save_checkpoint: Annotated[bool, "nanoGPT's; no effect: it always is"] = True
    keep_last: Annotated[int, "numbered checkpoints kept besides latest.pt", ">= 0"] = 0
    snapshot_interval: Annotated[int, "steps between snapshots for plots; 0: none", ">= 0"] = 0
    patience: Annotated[int, "evaluations without a new best to stop after; 0: none", ">= 0"] = 0
    allow_data_change: Annotated[bool, "resume although the data set has changed"] = False
    # trackers
    wandb_log: Annotated[bool, "log to Weights & Biases as well"] = False
    wandb_project: Annotated[str, "Weights & Biases project"] = "seugpt"
    wandb_run_name: Annotated[str, "Weights & Biases run name"] = "run"
    tensorboard: Annotated[bool, "write event files to out_dir/tensorboard as well"] = False
    # data
    dataset: Annotated[str, "folder in data/, or an absolute path", "path"] = "openwebtext"
    tokenizer: Annotated[Literal["gpt2"] | None, "of token files without meta.json"] = None
    sampling: Annotated[
        Literal["random", "permutation"], "windows: drawn at random, or each once an epoch"
    ] = "random"
    gradient_accumulation_steps: Annotated[int, "micro-batches a step, all GPUs", ">= 1"] = 40
    batch_size: Annotated[int, "sequences per micro-batch", ">= 1"] = 12
    rampup_start: Annotated[int, "micro-batches of step 0, to be doubled; 0: all", ">= 0"] = 0
    rampup_iters: Annotated[int, "steps until all micro-batches are made", ">= 0"] = 0
    # optimizer
    optimizer: Annotated[Literal["adamw", "muon"], "muon: for the blocks' matrices"] = "adamw"
    learning_rate: Annotated[float, "peak learning rate, reached after the warmup", ">= 0"] = 6e-4
    muon_lr: Annotated[float, "peak learning rate of Muon, on the same schedule", ">= 0"] = 0.02
    max_iters: Annotated[int, "steps to train", ">= 0"] = 600_000
    weight_decay: Annotated[float, "decoupled weight decay of matrices; 0: none", ">= 0"] = 0.1
    beta1: Annotated[float, "first-moment (momentum) decay", ">= 0", "< 1"] = 0.9
    beta2: Annotated[float, "second-moment decay of AdamW", ">= 0", "< 1"] = 0.95
    grad_clip: Annotated[float, "maximum gradient norm; 0 disables clipping", ">= 0"] = 1.0
    # learning rate schedule
    decay_lr: Annotated[bool, "warm up and decay the learning rate; False: constant"] = True
    warmup_iters: Annotated[int, "steps of linear warmup", ">= 0"] = 2000
    lr_decay_iters: Annotated[int, "step of the last decay; usually max_iters", ">= 0"] = 600_000
    cooldown_iters: Annotated[int, "last steps, of linear decay; 0: cosine decay", ">= 0"] = 0
    min_lr: Annotated[float, "final learning rate; usually learning_rate / 10", ">= 0"] = 6e-5
    # system
    backend: Annotated[Literal["auto", "nccl", "gloo", "mpi"], "of several processes"] = "auto"
    dp_shard_size: Annotated[int, "processes that share one copy (FSDP); 1: DDP", ">= 1"] = 1
    dist_timeout_s: Annotated[int, "seconds to wait for other processes", ">= 1", "<= 86400"] = 600
    device: Annotated[str, "auto (cuda, else mps, else cpu), cpu, cuda, cuda:1 or mps"] = "auto"
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], "autocast dtype"] = "auto"
    compile: Annotated[bool | Literal["auto"], "torch.compile; auto: on CUDA"] = "auto"
    gradient_checkpointing: Annotated[bool, "recompute activations to save memory"] = False
    threads: ThreadsOption = None
    seed: Annotated[int, "seed of weights, batches and dropout", ">= 0", "< 2**63"] = 1337

    def __post_init__(self):
        problem = find_ramp_problem(self)
        if problem:
            raise ValueError(problem)

    def compiles(self, device):
        return pick_compile(self.compile, device)

    def tokens_per_step(self, block_size):
        """Those of a step after the batch ramp."""
        return self.gradient_accumulation_steps * self.batch_size * block_size

    def tokens_before(self, step, block_size):
        return num_micro_batches(step, self) * self.batch_size * block_size


def get_lr(step, config):
    """The learning rate of a step. Course: page 4."""
    if not config.decay_lr:
        return config.learning_rate
    # 1) linear warmup; the first step already moves
    if step < config.warmup_iters:
        return config.learning_rate * (step + 1) / (config.warmup_iters + 1)
    # 2) after the decay: the minimum
    if step >= config.lr_decay_iters:
        return config.min_lr
    # 3) in between: constant with a linear cooldown (2405.18392), or a cosine (SGDR, 1608.03983)
    if config.cooldown_iters:
        coeff = min(1, (config.lr_decay_iters - step) / config.cooldown_iters)
    else:
        progress = (step - config.warmup_iters) / (config.lr_decay_iters - config.warmup_iters)
        coeff = 0.5 * (1 + math.cos(math.pi * progress))  # from 1 to 0
    return config.min_lr + coeff * (config.learning_rate - config.min_lr)


@dataclass
class TrainState:
    """The progress of a run."""

    step: int = 0  # optimizer steps made
    best_val_loss: float = math.inf
    best_step: int = 0
    evals_since_best: int = 0

    def record_evaluation(self, val_loss):
        """Whether this is the best validation loss so far."""
        if val_loss >= self.best_val_loss:
            self.evals_since_best += 1
            return False
        self.best_val_loss = val_loss
        self.best_step = self.step
        self.evals_since_best = 0
        return True

    def reset_best(self):
        self.best_val_loss = math.inf
        self.best_step = self.step
        self.evals_since_best = 0


class Trainer:
    """One run: trains a GPT on a data set, and saves checkpoints to out_dir."""

    def __init__(self, model, config, dataset, log=None, dist_env=None):
        """`dataset`: a Dataset, or an object with the four attributes of it that are used here.

        These are batch(), evaluation_batches(), tokenizer and fingerprint.
        """
        self.config = config
        self.dataset = dataset
        permutes = config.sampling == "permutation"
        self.read_batch = Prefetcher(dataset.permuted_batch if permutes else dataset.batch)
        self.log = log or RunLogger(config)
        self.dist_env = dist_env or DistributedEnv()
        local_rank, local_world_size = self.dist_env.local_rank, self.dist_env.local_world_size
        self.device = pick_device(config.device, local_rank, local_world_size)
        self.dtype = pick_dtype(config.dtype, self.device, training=True)
        if config.gradient_checkpointing:
            checkpoint_blocks(model, preserve_rng_state=model.config.dropout > 0)
        self.raw_model = model  # what is saved and evaluated; self.model is what is trained
        self.model = self.dist_env.distribute(model, self.device, config.dp_shard_size)
        # AdamW, decaying matrices alone; or Muon for the blocks' matrices, AdamW for the rest
        self.optimizers = make_optimizers(model, config, self.device, self.dtype)
        self.autocast = make_autocast(self.device, self.dtype)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.num_clipped_steps = torch.zeros((), dtype=torch.long, device=self.device)
        self.state = TrainState()
        self.val_loss = math.nan
        self.last_eval_step = None
        self.last_save_step = None
        self.unchecked_step = None  # the last step's numbers, until they are known to be finite
        self.defers_check = self.device.type == "cuda" and not self.scaler.is_enabled()
        self.throughput = self.make_throughput()
        self.saver = make_saver(config, self.dist_env)
        self.snapshots = SnapshotRecorder(
            self.raw_model, config.snapshot_interval, self.log, self.throughput, self.autocast
        )
        self.log.info(f"device: {self.device}, {str(self.dtype).removeprefix('torch.')}")
        self.threads = CpuThreads(config.threads, notify=self.log.info)
        if config.compiles(self.device):
            self.compile()
        torch.manual_seed(config.seed + self.dist_env.rank)  # dropout differs between ranks

    def make_throughput(self):
        def tokens_before(step):
            return self.config.tokens_before(step, self.raw_model.config.block_size)

        peak = peak_flops(self.device, self.dtype)  # of one device; None if it is unknown
        if peak is not None:
            peak *= self.dist_env.world_size
        flops_per_token = self.raw_model.flops_per_token()
        return Throughput(tokens_before, self.config.max_iters, flops_per_token, peak)

    def compile(self):
        self.log.info("compiling the model, which takes a minute ...")
        is_sharded = self.config.dp_shard_size > 1
        if is_sharded:
            rows = self.config.batch_size
            failure = try_compiling_block(self.raw_model.config, rows, self.device, self.autocast)
        else:
            failure = compile_model(self.raw_model, self.compile_now)
        failures = list(filter(None, self.dist_env.all_gather(failure)))
        if failures:  # of any rank: the others would wait for it
            uncompile(self.raw_model)
            self.log.info(f"torch.compile failed, so the model runs uncompiled: {failures[0]}")
        elif is_sharded:
            compile_blocks(self.raw_model)

    def compile_now(self):
        """One forward and backward pass, without the other ranks."""
        with skip_grad_sync(self.model):
            self.backward(*self.batch(0))

    def run(self):
        """Train to max_iters. Returns the signal that ended the run early, or 0."""
        with (
            SignalHandler(quiet=self.dist_env.rank > 0) as signals,
            closing(self.log),
            closing(self.saver),
            closing(self.read_batch),
        ):
            signum = self.loop(signals)
            self.saver.finish()
            self.log.end(self.state, signum)
        return signum

    def loop(self, signals):
        """Evaluate and save every eval_interval steps, train in between."""
        config, state = self.config, self.state
        self.throughput.restart(state.step)
        while True:
            signum = self.dist_env.all_reduce_max(signals.received, self.device)
            done = config.eval_only or state.step >= config.max_iters
            if done or (not signum and state.step % config.eval_interval == 0):
                self.check_last_step()
                self.evaluate()
                self.save_checkpoint()
                self.throughput.restart(state.step)
            stopping = done or signum > 0 or self.out_of_patience()
            self.snapshots.save_embeddings(state.step, last=stopping)
            if stopping:
                break
            self.train_step()
        if signum:
            self.check_last_step()
            self.check_weights()
            self.save_checkpoint()
        return signum

    def out_of_patience(self):
        return 0 < self.config.patience <= self.state.evals_since_best

    def train_step(self):
        """One optimizer step over all micro-batches, logged every log_interval steps."""
        step = self.state.step
        lr = get_lr(step, self.config)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]
        loss = self.accumulate_gradients()
        grad_norm = self.clip_grad_norm()
        self.check_last_step()  # by now the device has finished it
        self.guard_weights(loss, grad_norm, lr)
        with self.snapshots.layer_stats(step, self.batch):
            self.optimizer_step(grad_norm)
        self.raw_model.zero_grad(set_to_none=True)
        self.state.step += 1
        self.log.advance()
        self.threads.tick()
        if step % self.config.log_interval == 0:
            self.check_last_step()
            self.log_step(loss.item(), lr, grad_norm.item())

    def split_step(self):
        """This rank's part of the step: (micro-batches, slice of their rows or None for all)."""
        accumulation_steps = get_accumulation_steps(self.state.step, self.config)
        return self.dist_env.split_step(accumulation_steps, self.config.batch_size)

    @property
    def micro_steps(self):
        """This rank's micro-batches in the step."""
        return self.split_step()[0]

    def batch(self, micro_step):
        """This rank's x and y, int64 (rows, T): a pure function of the seed and the step."""
        config = self.config
        _, row_slice = self.split_step()
        index = num_micro_batches(self.state.step, config)  # of all steps before
        if row_slice is None:  # each rank has micro-batches of its own
            index += micro_step * self.dist_env.world_size + self.dist_env.rank
        block_size = self.raw_model.config.block_size
        # windows of the text, and the same windows one token later
        x, y = self.read_batch("train", index, config.batch_size, block_size, config.seed)
        if row_slice is not None:  # the ranks share the rows of this micro-batch
            x, y = x[row_slice], y[row_slice]
        return to_device(x, self.device), to_device(y, self.device)

    def accumulate_gradients(self):
        """Forward and backward over all micro-batches. Returns their mean loss over all ranks."""
        loss = torch.zeros((), device=self.device)
        for micro_step in range(self.micro_steps):
            x, y = self.batch(micro_step)
            is_last = micro_step == self.micro_steps - 1
            with nullcontext() if is_last else skip_grad_sync(self.model):
                loss += self.backward(x, y)
        return self.dist_env.all_reduce_mean(loss)

    def backward(self, x, y):
        """Add a micro-batch's part to the gradients. Returns its part of the mean loss."""
        with self.autocast:
            loss = self.model(x, y)[1]  # a variable for the logits would keep them in memory
            loss = loss / self.micro_steps
        self.scaler.scale(loss).backward()
        return loss.detach()

    def clip_grad_norm(self):
        """Scale the gradients down to a norm of grad_clip. Returns their norm before, a tensor."""
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)  # also without clipping: the norm is logged
        parameters = list(self.raw_model.parameters())
        grad_norm = full_tensor(torch.nn.utils.get_total_norm([p.grad for p in parameters]))
        max_norm = self.config.grad_clip
        if max_norm:
            torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, grad_norm)
            self.num_clipped_steps += grad_norm > max_norm
        return grad_norm

    def guard_weights(self, loss, grad_norm, lr):
        """Keep NaN and infinity out of the weights, and end the run if there are any.

        On a GPU the optimizers skip the step if `found_inf` is 1, and check_last_step reads that
        later: to ask at once would make the GPU wait at every step.
        """
        # In float16 gradients may overflow: GradScaler skips such a step and lowers its scale.
        finite = loss.isfinite() & (grad_norm.isfinite() | self.scaler.is_enabled())
        self.unchecked_step = (self.state.step, finite, loss, grad_norm, lr)
        if not self.defers_check:
            self.check_last_step()
            return
        for optimizer in self.optimizers:
            optimizer.found_inf = 1.0 - finite.float()

    def check_last_step(self):
        """Raise TrainingError, on all ranks, if the last step's numbers were NaN or infinite."""
        if self.unchecked_step is None:
            return
        step, finite, loss, grad_norm, lr = self.unchecked_step
        self.unchecked_step = None
        if not finite:
            values = f"loss {loss:.4g}, gradient norm {grad_norm:.4g}, lr {lr:.2e}"
            raise not_finite_error(values, step, self.dtype, self.config)

    def optimizer_step(self, grad_norm):
        # A float16 overflow in the gradients of one optimizer stops the other as well.
        if not self.scaler.is_enabled() or grad_norm.isfinite():
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
        self.scaler.update()

    def log_step(self, loss, lr, grad_norm):
        """Log the step just made, and the speed since the last logged one.

        Its numbers come from .item(), which waited for the device, so the clock is right.
        """
        self.log.step(
            self.state.step - 1,
            loss=loss,
            lr=lr,
            grad_norm=grad_norm if math.isfinite(grad_norm) else None,  # float16 overflowed
            num_clipped_steps=self.num_clipped_steps.item(),
            **self.throughput.lap(self.state.step),
        )
        self.num_clipped_steps.zero_()

    def evaluate(self):
        """Log the losses of both splits and a sample; nothing if this step has been evaluated."""
        state = self.state
        if state.step == self.last_eval_step:
            return
        self.raw_model.eval()
        losses = {split: self.mean_loss(self.raw_model, split) for split in ("train", "val")}
        self.val_loss = losses["val"]
        if not math.isfinite(self.val_loss):
            values = f"validation loss {self.val_loss}"
            raise not_finite_error(values, state.step, self.dtype, self.config)
        is_best = state.record_evaluation(self.val_loss)
        norm = torch.nn.utils.get_total_norm([p.detach() for p in self.raw_model.parameters()])
        norm = full_tensor(norm).item()
        sample = self.sample()  # on all ranks: each has a part of a sharded model
        if self.dist_env.rank == 0:
            self.log_evaluation(losses, norm, sample, is_best)
        self.last_eval_step = state.step
        self.last_save_step = None  # a checkpoint saved earlier at this step lacks the evaluation
        self.raw_model.train()

    def log_evaluation(self, losses, norm, sample, is_best):
        vocab_size = self.raw_model.config.vocab_size
        self.log.evaluation(self.state.step, losses, norm, sample, vocab_size, is_best)
        self.log.warn_no_improvement(self.state)
        draw_loss_curve(self.log)

    def check_weights(self):
        """Raise TrainingError if the last step broke the weights: nothing has evaluated them."""
        self.raw_model.eval()
        loss = self.mean_loss(self.raw_model, "val", eval_iters=1)
        self.raw_model.train()
        if not math.isfinite(loss):
            values = f"loss {loss} after it"
            raise not_finite_error(values, self.state.step - 1, self.dtype, self.config)

    @torch.no_grad()
    def mean_loss(self, model, split, eval_iters=None):
        """The mean loss over all ranks of a model in eval mode, on the same tokens every time."""
        batches = self.dataset.evaluation_batches(
            split,
            self.config.eval_iters if eval_iters is None else eval_iters,
            self.config.batch_size,
            self.raw_model.config.block_size,
            self.dist_env.rank,
            self.dist_env.world_size,
        )
        total = summed_loss(model, batches, self.device, self.autocast)
        loss_sum, num_targets = self.dist_env.all_reduce_sum(total, self.device)
        return (loss_sum / num_targets).item()

    def sample(self):
        """A short text after the first validation token, drawn from the same seed every time."""
        x, _ = next(iter(self.dataset.evaluation_batches("val", 1, 1, 1)))
        prompt = x[0].tolist()
        with self.autocast:
            return sample_text(self.raw_model, self.dataset.tokenizer, prompt, self.config.seed)

    def save_checkpoint(self):
        """Write latest.pt, and best.pt if it is better; nothing if this step has been saved.

        best.pt has weights, configs and tokenizer; latest.pt also optimizer, RNG and progress. A
        sharded run writes one folder of all that.
        """
        if self.config.eval_only or self.state.step == self.last_save_step:
            return
        if self.dist_env.all_reduce_max(int(self.log.reopen_folder()), self.device):
            self.state.reset_best()  # best.pt went with the folder
            if self.last_eval_step == self.state.step:
                self.state.record_evaluation(self.val_loss)
        save_run(self)
        self.last_save_step = self.state.step


def train(model_config, config, ckpt):
    """Train a model and save it to out_dir. All is checked before anything is written."""
    dist_env = DistributedEnv.from_environment()
    device = pick_device(config.device, dist_env.local_rank, dist_env.local_world_size)
    dtype = pick_dtype(config.dtype, device, training=True)  # may raise
    if config.report:
        print_report(model_config, config, dist_env, device)
        return
    check_sharding(config, dtype, dist_env.world_size)  # may raise
    check_split(config, dist_env)  # may raise
    backend = dist_env.pick_backend(config.backend, device)
    dataset = Dataset(dataset_path(config.dataset), config.tokenizer)
    model, adaptation_notes = build_model(
        model_config, config, ckpt, dataset.tokenizer, dist_env.local_world_size
    )
    resume_ckpt = ckpt if config.init_from == "resume" else None
    if resume_ckpt:
        check_same_data(ckpt, config, dataset)
        if ckpt["step"] >= config.max_iters and not config.eval_only:
            if dist_env.rank == 0:
                longer = 2 * ckpt["step"] or 1
                more = f"--max_iters={longer} --lr_decay_iters={longer}"
                print(f"{ckpt['path']} is at step {ckpt['step']}; for more: {more}")
            return
        config = with_original_init_from(ckpt, config)
    check_batch_memory(config, model.config.block_size)
    if dist_env.rank == 0:
        dataset.check(model.config.vocab_size, model.config.block_size)
    prepare_device(device, model.config.dropout)
    with process_group(backend, config.dist_timeout_s) as exit_process:
        dist_env.check_same(rank_values(model_config, config, resume_ckpt, dataset))
        log = RunLogger(config, resume_ckpt, quiet=dist_env.rank > 0)
        with closing(log):
            log.start(model, dataset, dist_env.world_size, ckpt, adaptation_notes)
            trainer = Trainer(model, config, dataset, log, dist_env)
            if resume_ckpt:
                restore_run(trainer, ckpt)  # optimizer, RNG and progress
            if adaptation_notes:
                log_source_loss(trainer, ckpt)
            if ckpt:
                ckpt.clear()  # gigabytes, for a large model
            signum = trainer.run()
        exit_process(128 + signum if signum else 0)  # the shells' convention for signals


def main(argv=None):
    with command(distributed=True):
        parser = ConfigParser(ModelConfig, TrainConfig, description=__doc__)
        model_config, config, ckpt = resolve_config(parser.parse(argv))
        with out_of_memory_advice(memory_advice(config)):
            train(model_config, config, ckpt)


if __name__ == "__main__":
    main()
