"""Train a GPT.

    python train.py config/quickstart.py
    python train.py config/train_shakespeare_char.py --device=cpu --max_iters=500
    torchrun --standalone --nproc_per_node=4 train.py config/train_gpt2.py

Options come from the defaults below, then config files in the order given, then --key=value. Names are nanoGPT's.
"""

import gc
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch

from model import ModelConfig, compile_model, pick_device, pick_dtype
from seugpt.benchmark.hardware import peak_flops
from seugpt.checkpoint import pretrained as weights
from seugpt.checkpoint import storage as checkpoint
from seugpt.cli.command import command
from seugpt.cli.options import Options
from seugpt.data.dataset import Dataset, dataset_path
from seugpt.errors import CheckpointError
from seugpt.evaluation.loss import summed_loss
from seugpt.generation.decoder import short_sample
from seugpt.training.distributed import Ranks, connected
from seugpt.training.init_from import build_model, check_data, resolve
from seugpt.training.layer_stats import Look, save_embeddings
from seugpt.training.logger import RunLog
from seugpt.training.memory import keep_freed_memory, memory_advice, memory_guard
from seugpt.training.metrics import parsed_lines
from seugpt.training.optimizer import learning_rate, make_optimizers, restore_optimizers
from seugpt.training.report import measure, print_report
from seugpt.training.signals import Stop, not_finite


@dataclass(frozen=True)
class TrainConfig:
    """Everything about a run but the architecture. Raises ValueError, one line for each field that is out of range."""

    out_dir: Annotated[str, "folder for checkpoints, logs and the loss curve"] = "out"
    eval_interval: Annotated[int, "steps between evaluations; each one saves latest.pt"] = 2000
    log_interval: Annotated[int, "steps between logged training losses"] = 1
    eval_iters: Annotated[
        int, "batches in an evaluation, evenly spaced over a split; 0: both splits whole"
    ] = 200
    eval_only: Annotated[bool, "evaluate once, save nothing and stop"] = False
    report: Annotated[bool, "count parameters, FLOPs and memory of the run, and stop"] = False
    measure: Annotated[bool, "the same, and how fast the steps are"] = False
    always_save_checkpoint: Annotated[
        bool, "nanoGPT's; no effect: latest.pt is always saved, best.pt if better"
    ] = True
    keep_checkpoints: Annotated[
        int, "of how many evaluations latest.pt is kept as step-00001000.pt; 0: none"
    ] = 0
    snapshot_interval: Annotated[int, "steps between looks inside, for visualize.py; 0: none"] = 0
    patience: Annotated[int, "end after so many evaluations without a better one; 0: never"] = 0
    init_from: Annotated[
        str, "scratch, resume, auto (resume if it can), or weights: a path, gpt2, ..."
    ] = "scratch"
    new_data: Annotated[bool, "resume although the tokens of the data set have changed"] = False
    wandb_log: Annotated[bool, "log to Weights & Biases as well"] = False
    wandb_project: Annotated[str, "its project"] = "seugpt"
    wandb_run_name: Annotated[str, "its name for this run"] = "run"
    tensorboard: Annotated[
        bool, "write event files for TensorBoard as well, into out_dir/tensorboard"
    ] = False
    dataset: Annotated[str, "folder in data/, written by prepare.py"] = "openwebtext"
    gradient_accumulation_steps: Annotated[
        int, "micro-batches in a step, over all GPUs together"
    ] = 40
    batch_size: Annotated[int, "sequences in a micro-batch"] = 12
    optimizer: Annotated[
        Literal["adamw", "muon"], "muon: for the blocks' matrices, adamw for the rest"
    ] = "adamw"
    learning_rate: Annotated[float, "the peak, reached after the warmup"] = 6e-4
    muon_lr: Annotated[float, "Muon's peak; it rises and falls with learning_rate"] = 0.02
    max_iters: Annotated[int, "steps to train"] = 600_000
    weight_decay: Annotated[float, "matrices are multiplied by 1 - lr * this at each step"] = 0.1
    beta1: Annotated[float, "memory of the gradient"] = 0.9
    beta2: Annotated[float, "AdamW's memory of its square; 0.99 where a step has few tokens"] = 0.95
    grad_clip: Annotated[float, "longest gradient that passes unshortened; 0: no limit"] = 1.0
    decay_lr: Annotated[bool, "warm up and decay the learning rate; False: constant"] = True
    warmup_iters: Annotated[int, "steps of linear warmup"] = 2000
    lr_decay_iters: Annotated[int, "step at which the decay reaches min_lr; usually max_iters"] = (
        600_000
    )
    cooldown_iters: Annotated[
        int, "decay in a line over so many last steps, constant before; 0: a cosine"
    ] = 0
    min_lr: Annotated[float, "learning rate at the end; usually a tenth of the peak"] = 6e-5
    backend: Annotated[
        Literal["auto", "nccl", "gloo", "mpi"], "of DDP; auto: nccl on CUDA, gloo elsewhere"
    ] = "auto"
    device: Annotated[str, "auto: cuda, else mps, else cpu; or one of them, or cuda:1"] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], "number format of the matrix products"
    ] = "auto"
    compile: Annotated[bool | Literal["auto"], "torch.compile; auto: on CUDA"] = "auto"
    seed: Annotated[int, "of the weights, the batches and the dropout"] = 1337

    def __post_init__(self):
        counts = (
            "eval_iters",
            "max_iters",
            "warmup_iters",
            "lr_decay_iters",
            "cooldown_iters",
            "seed",
            "patience",
        )
        rates = (
            "learning_rate",
            "muon_lr",
            "min_lr",
            "weight_decay",
            "grad_clip",
            "beta1",
            "beta2",
        )
        lowest = dict.fromkeys((*counts, "keep_checkpoints", "snapshot_interval", *rates), 0)
        lowest |= dict.fromkeys(
            ("eval_interval", "log_interval", "gradient_accumulation_steps", "batch_size"), 1
        )
        problems = [
            f"{k}={vars(self)[k]} must be at least {low}"
            for k, low in lowest.items()
            if vars(self)[k] < low
        ]
        problems += [
            f"{k}={vars(self)[k]} must be below 1" for k in ("beta1", "beta2") if vars(self)[k] >= 1
        ]
        problems += [f"seed={self.seed} must be below 2**63"] if self.seed >= 2**63 else []
        problems += [] if self.out_dir else ["out_dir= is empty"]
        if problems:
            raise ValueError("\n".join(problems))

    def compiles(self, device):
        return self.compile is True or (self.compile == "auto" and device.type == "cuda")

    def tokens_per_step(self, block_size):
        return self.gradient_accumulation_steps * self.batch_size * block_size


class Trainer:
    """One run: its parts, and its methods in the order in which the loop calls them."""

    def __init__(self, model, options, dataset, ranks, device, dtype, log):
        self.options, self.dataset, self.ranks, self.log = options, dataset, ranks, log
        self.device, self.dtype = device, dtype
        self.bare = model.to(device)  # what is saved and evaluated; self.model may be wrapped
        self.micro_steps, self.rows = ranks.share(
            options.gradient_accumulation_steps, options.batch_size
        )
        self.optimizers = make_optimizers(model, options, device, dtype)
        self.autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.peak_flops = (peak_flops(device, dtype) or 0) * ranks.world_size  # 0: not known
        self.step, self.saved_at, self.evaluated_at, self.look = 0, None, None, None
        self.best_val_loss, self.best_step, self.worse = (
            math.inf,
            0,
            0,
        )  # worse: evaluations since the best one
        self.clipped = torch.zeros(
            (), dtype=torch.long, device=device
        )  # steps since the last logged one
        self.model = ranks.replicate(self.bare, device)
        log.say(f"device {device}, {str(dtype).removeprefix('torch.')}")
        if options.compiles(device):
            log.say("compiling the model, which takes a minute ...")
            failure = compile_model(self.bare, lambda: self.backward(*self.batch(0)))
            if failure:
                log.say(f"torch.compile failed, so the model runs uncompiled: {failure}")
        torch.manual_seed(options.seed + ranks.rank)  # dropout differs between ranks

    def run(self):
        """Train to max_iters, evaluate and save every eval_interval steps. Returns the signal that ended it, or 0."""
        options, stop = self.options, 0
        self.restart_clock()
        with Stop(silent=self.ranks.rank > 0) as signals:
            while True:
                last = options.eval_only or self.step >= options.max_iters
                due = last or self.step % options.eval_interval == 0
                if due and self.step != self.evaluated_at and (last or not stop):
                    self.evaluate_and_save()
                last = last or stop or 0 < options.patience <= self.worse
                self.look_inside(last)
                if last:
                    break
                self.train_step()
                stop = self.ranks.largest(signals.signal, self.device)
            if stop and self.step != self.saved_at:
                self.save()
        self.log.done(self.step, self.best_val_loss, self.best_step, stop)
        return stop

    def restart_clock(self):
        """Speed is measured from here on."""
        self.clock_start, self.clock_step = time.perf_counter(), self.step

    def batch(self, micro_step):
        """This rank's x and y, int64 (rows, T), on the device: a function of the seed and the step's number alone."""
        options = self.options
        index = self.step * self.micro_steps + micro_step
        if self.rows is None:  # each rank has micro-batches of its own
            index = index * self.ranks.world_size + self.ranks.rank
        pair = self.dataset.batch(
            "train", index, options.batch_size, self.bare.config.block_size, options.seed
        )
        return [self.to_device(array if self.rows is None else array[self.rows]) for array in pair]

    def to_device(self, array):
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":  # from pinned memory the copy runs beside the computation
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def backward(self, x, y):
        """Add one micro-batch's part to the gradients. Returns its part of the mean loss."""
        with self.autocast:
            loss = self.model(x, y)[1] / self.micro_steps
        self.scaler.scale(loss).backward()
        return loss.detach()

    def train_step(self):
        """One optimizer step over all micro-batches, and every log_interval steps its line in the log."""
        lr = learning_rate(self.step, self.options)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = lr * group["lr_scale"]
        loss = torch.zeros((), device=self.device)  # mean over the micro-batches of all ranks
        for micro_step in range(self.micro_steps):
            # Gradients travel between ranks once per step, with the last micro-batch.
            silent = self.ranks.world_size > 1 and micro_step < self.micro_steps - 1
            with self.model.no_sync() if silent else nullcontext():
                loss += self.backward(*self.batch(micro_step))
        loss, grad_norm = self.ranks.mean(loss), self.clip()
        self.demand_finite(loss, grad_norm, lr)
        self.update()
        self.step += 1
        self.log.tick()
        if (self.step - 1) % self.options.log_interval == 0:
            self.log_step(loss.item(), lr, grad_norm)

    def clip(self):
        """Shorten the gradients to grad_clip. Returns the length that they had, a tensor."""
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        grad_norm = torch.nn.utils.get_total_norm([p.grad for p in self.bare.parameters()])
        if limit := self.options.grad_clip:
            torch.nn.utils.clip_grads_with_norm_(self.bare.parameters(), limit, grad_norm)
            self.clipped += grad_norm > limit
        return grad_norm

    def update(self):
        """Let the optimizers take the gradients."""
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        if self.look:
            self.log.metrics(step=self.step, **self.look.changes())
            self.look = None
        self.bare.zero_grad(set_to_none=True)

    def demand_finite(self, loss, grad_norm, lr):
        """Raise TrainingError before the weights take what is no number, on all ranks, as they have the same values."""
        # In float16 gradients may overflow: GradScaler leaves such a step out, and scales the next ones less.
        if not (loss.isfinite() & (grad_norm.isfinite() | self.scaler.is_enabled())):
            found = f"loss {loss:.4g}, length of the gradient {grad_norm:.4g}, lr {lr:.2e}"
            raise not_finite(found, self.step, self.dtype, self.options)

    def log_step(self, loss, lr, grad_norm):
        """Log the step just made, and the speed since the last line without evaluations."""
        seconds, steps = time.perf_counter() - self.clock_start, self.step - self.clock_step
        tokens_per_s = self.options.tokens_per_step(self.bare.config.block_size) * steps / seconds
        mfu = (
            tokens_per_s * self.bare.flops_per_token() / self.peak_flops
            if self.peak_flops
            else None
        )
        norm = grad_norm.item()
        values = {"loss": loss, "lr": lr, "clipped": self.clipped.item()}
        values["grad_norm"] = norm if math.isfinite(norm) else None  # None: float16 overflowed
        self.log.step(self.step - 1, 1000 * seconds / steps, tokens_per_s, mfu, **values)
        self.clipped.zero_()
        self.restart_clock()

    def evaluate_and_save(self):
        self.bare.eval()
        losses = self.evaluate(self.bare)
        if not math.isfinite(losses["val"]):
            raise not_finite(
                f"validation loss {losses['val']}", self.step, self.dtype, self.options
            )
        best = losses["val"] < self.best_val_loss
        if best:
            self.best_val_loss, self.best_step = losses["val"], self.step
        self.worse, self.evaluated_at = 0 if best else self.worse + 1, self.step
        if self.ranks.rank == 0:
            norm = torch.nn.utils.get_total_norm(
                [p.detach() for p in self.bare.parameters()]
            ).item()
            self.log.evaluation(
                self.step, losses, norm, self.sample(), self.bare.config.vocab_size, best
            )
            self.draw_losses()
            self.log.no_better(self.worse, self.best_val_loss, self.best_step)
        if (
            not self.options.eval_only
        ):  # after the log: what a resume finds logged beyond its checkpoint, it drops
            self.save(losses["val"], best)
        self.bare.train()
        self.restart_clock()

    def draw_losses(self):
        """loss.png anew."""
        folder = self.log.folder
        if not folder:
            return
        try:
            from seugpt.plots import curves  # here, as matplotlib takes half a second

            run = curves.to_run(folder.name, parsed_lines(folder / "metrics.jsonl"))
            curves.losses(folder / "loss.png", [run])
            gc.collect()  # figures refer to themselves in circles, and would pile up for thousands of steps
        except (
            Exception
        ) as error:  # MPLBACKEND, a font, TeX, a picture that Windows locks: no reason to stop
            reason = str(error).partition("\n")[0]
            self.log.say(f"loss.png could not be drawn ({type(error).__name__}: {reason})")

    @torch.no_grad()
    def evaluate(self, model, splits=("train", "val")):
        """{split: loss} of a model in eval mode: means over the same tokens each time and over all ranks."""
        shape, part = (
            (self.options.batch_size, self.bare.config.block_size),
            (self.ranks.rank, self.ranks.world_size),
        )
        losses = {}
        for split in splits:
            batches = self.dataset.evaluation_batches(split, self.options.eval_iters, *shape, *part)
            total = self.ranks.sum(
                summed_loss(model, batches, self.device, self.autocast), self.device
            )
            losses[split] = (total[0] / total[1]).item()
        return losses

    def evaluate_original(self, content):
        """Say the loss of weights as they were before they were adapted to another architecture."""
        if weights.config_of(content).block_size < self.bare.config.block_size:
            self.log.say(
                "the weights as they were cannot read so long a context: no loss of before"
            )
            return
        original = weights.build(content)[0].to(self.device).eval()
        loss = self.evaluate(original, ("val",))["val"]
        self.log.say(
            f"validation loss of the weights as they were: {loss:.4f}; adapted and untrained, at step 0"
        )

    def sample(self):
        """A short text that the model writes now, from the first validation token on; always with the same dice."""
        with self.autocast:
            prompt = self.dataset.ids["val"][:1].tolist()
            return short_sample(self.bare, self.dataset.tokenizer, prompt, self.options.seed)

    def look_inside(self, last):
        """Every snapshot_interval steps keep the embeddings, and prepare to see what a step does to each layer."""
        due = self.log.folder and self.options.snapshot_interval
        if not due or (self.step % due and not last):
            return
        began = time.perf_counter()
        save_embeddings(self.log.folder, self.step, self.bare)
        if not last:
            with self.autocast, torch.compiler.set_stance("force_eager"):
                self.look = Look(self.bare, self.batch(0)[0])
        self.clock_start += time.perf_counter() - began  # off the clock, as evaluations are

    def save(self, val_loss=math.nan, best=False):
        """best.pt if it is better, then latest.pt; in the other order a crash between would lose the best model.

        A val_loss of NaN says that the step was not evaluated: a signal ended the run there.
        """
        generators = self.ranks.gather(checkpoint.generator_states(self.device))
        self.saved_at, folder = self.step, Path(self.options.out_dir)
        if self.ranks.rank > 0:
            return
        content = {
            "model": self.bare.state_dict(),
            "model_config": vars(self.bare.config),
            "train_config": vars(self.options),
            "tokenizer": self.dataset.tokenizer.spec(),
            "step": self.step,
            "val_loss": val_loss,
        }
        if best:
            checkpoint.save(folder / "best.pt", content)
        content["optimizer"] = [optimizer.state_dict() for optimizer in self.optimizers]
        content |= {
            "scaler": self.scaler.state_dict(),
            "generators": generators,
            "best_val_loss": self.best_val_loss,
        }
        content |= {
            "best_step": self.best_step,
            "worse": self.worse,
            "evaluated_on": self.evaluated_on(),
        }
        content["fingerprint"] = self.dataset.fingerprint
        checkpoint.save(folder / "latest.pt", content)
        if self.options.keep_checkpoints and not math.isnan(val_loss):
            checkpoint.keep(folder / "latest.pt", self.step, self.options.keep_checkpoints)

    def evaluated_on(self):
        """What must be the same for two validation losses to be of the same tokens."""
        windows = self.options.eval_iters * self.options.batch_size
        return [self.dataset.fingerprint, windows, self.bare.config.block_size]

    def restore(self, content):
        """Go on where latest.pt was written. Raises CheckpointError."""
        try:
            restore_optimizers(self.optimizers, content["optimizer"], content["step"])
            if content["scaler"]:  # empty where the run was not in float16
                self.scaler.load_state_dict(content["scaler"])
            generators = content["generators"]
            checkpoint.set_generator_states(
                generators[self.ranks.rank % len(generators)], self.device
            )
        except (
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            IndexError,
            ZeroDivisionError,
            RuntimeError,
        ) as error:
            raise CheckpointError(
                f"{content['path']} is damaged inside: {type(error).__name__} {error}"
            ) from error
        self.step = self.saved_at = content["step"]
        self.evaluated_at = (
            None if math.isnan(content["val_loss"]) or self.options.eval_only else self.step
        )
        best = (math.inf, 0, 0)
        if (
            self.ranks.rank == 0 and not self.options.eval_only
        ):  # it may move best.pt aside, before the others look
            *best, note = checkpoint.best_so_far(content, self.options.out_dir, self.evaluated_on())
            if note:
                self.log.say(note)
        self.best_val_loss, self.best_step, self.worse = self.ranks.from_first(best)
        if len(generators) != self.ranks.world_size:
            self.log.say(
                f"{len(generators)} process(es) wrote it: the data goes on as it was, but dropout does not"
            )


def train(model_config, options, content):
    """From options to a trained model in out_dir. What can be wrong is looked at before anything is written."""
    ranks = Ranks.from_environment()
    ranks.share(options.gradient_accumulation_steps, options.batch_size)
    device = pick_device(options.device, ranks.local_rank, ranks.local_world_size)
    backend = ranks.backend(options.backend, device)
    dtype = pick_dtype(options.dtype, device, training=True)
    if options.report or options.measure:
        print_report(model_config, options, ranks, device, dtype)
        if not options.measure:
            return
        options = replace(options, eval_only=True)  # so that nothing is written
    dataset = Dataset(dataset_path(options.dataset))
    model, report = build_model(model_config, options, content, dataset.tokenizer)
    resume = options.init_from == "resume"
    made = content["step"] if resume else None
    if resume and made >= options.max_iters and not options.eval_only:
        if ranks.rank == 0:
            print(f"{content['path']} has made {made} steps; for more: --max_iters={2 * made or 1}")
        return
    if resume:  # what is written from here on says how the run began
        check_data(content, options, dataset)
        options = replace(
            options, init_from=content["train_config"].get("init_from", "scratch"), new_data=False
        )
    if ranks.rank == 0:
        dataset.check(model.config.vocab_size, model.config.block_size)
    log = RunLog(options, content if resume else None, silent=ranks.rank > 0)
    try:
        log.start(model, dataset, ranks.world_size, content, report)
        keep_freed_memory()
        if device.type == "cuda":
            torch.cuda.set_device(device)
            torch.set_float32_matmul_precision("high")  # TF32 for float32 products
        with connected(backend) as leave:
            ranks.demand_same(step=made, data=dataset.fingerprint[:12])
            trainer = Trainer(model, options, dataset, ranks, device, dtype, log)
            if resume:
                trainer.restore(content)
            if report and not options.measure:
                trainer.evaluate_original(content)
            (content or {}).clear()  # gigabytes, for a large model
            stop = measure(trainer) if options.measure else trainer.run()
            log.close()
            leave(128 + stop if stop else 0)  # a shell's code for a signal
    finally:
        log.close()


def main(argv=None):
    with command():
        model_config, options, content = resolve(
            Options(argv, ModelConfig, TrainConfig, description=__doc__)
        )
        with memory_guard(memory_advice(options.batch_size, options.gradient_accumulation_steps)):
            train(model_config, options, content)


if __name__ == "__main__":
    main()
