"""nanoGPT and transformers as contenders. Neither one's code is in this repository."""

import importlib.util
import sys
import time
from pathlib import Path

import torch

from model import IGNORE_INDEX, make_autocast, pick_dtype
from seugpt.benchmark.contenders import Contender, synchronize
from seugpt.evaluation.loss import summed_loss
from seugpt.training.memory import to_device

EVAL_BATCH_SIZE = 64
MODULE_NAME = "nanogpt_model_of_baseline"  # unlike any of our modules


class Baseline(Contender):
    """A contender with `loss(x, y)`, an autocast and an optimizer, in the usual training loop."""

    def __init__(self, get_lr, model_config, config):
        """`get_lr(step, config)`: the learning rate schedule."""
        super().__init__(model_config, config)
        self.get_lr = get_lr

    def warm_up(self):
        """Compile now, off the clock, as our trainer does; weights and generator stay as they are.

        torch.compile works at the first call, which would be a measured one.
        """
        if self.config.compiles(self.device):
            start = time.perf_counter()
            with self.autocast:
                self.loss(*self.batch(0)).backward()
            self.model.zero_grad(set_to_none=True)
            synchronize(self.device)
            self.compile_seconds = time.perf_counter() - start
            torch.manual_seed(self.config.seed)

    def full_context(self, rows):
        shape = (rows, self.model_config.block_size)
        return torch.zeros(shape, dtype=torch.long, device=self.device)

    def batch(self, micro_step):
        """The same tokens as seuGPT's micro-batch of this number."""
        config = self.config
        index = self.step_index * config.gradient_accumulation_steps + micro_step
        block_size = self.model_config.block_size
        arrays = self.dataset.batch("train", index, config.batch_size, block_size, config.seed)
        return [to_device(array, self.device) for array in arrays]

    def step(self):
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = self.get_lr(self.step_index, config)
        for micro_step in range(config.gradient_accumulation_steps):
            x, y = self.batch(micro_step)
            with self.autocast:
                loss = self.loss(x, y) / config.gradient_accumulation_steps
            loss.backward()
        if config.grad_clip > 0:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step_index += 1

    def evaluate(self):
        self.model.eval()
        batches = self.dataset.evaluation_batches(
            "val", 0, EVAL_BATCH_SIZE, self.model_config.block_size
        )
        total = summed_loss(
            lambda x, y: (None, self.loss(x, y)), batches, self.device, self.autocast
        )
        self.model.train()
        return (total[0] / total[1]).item()


class NanoGPT(Baseline):
    """nanoGPT's model and optimizer, from its source at `path`; on a CPU in float32, as there."""

    def __init__(self, path, get_lr, model_config, config):
        super().__init__(get_lr, model_config, config)
        c = self.model_config
        on_cuda = self.device.type == "cuda"
        spec = importlib.util.spec_from_file_location(MODULE_NAME, Path(path) / "model.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[MODULE_NAME] = module  # where torch.compile looks for its functions
        spec.loader.exec_module(module)
        self.dtype = torch.bfloat16 if on_cuda else torch.float32
        self.autocast = make_autocast(self.device, self.dtype)
        torch.manual_seed(config.seed)
        shape = module.GPTConfig(
            c.block_size, c.vocab_size, c.n_layer, c.n_head, c.n_embd, c.dropout, c.bias
        )
        self.model = module.GPT(shape).to(self.device)
        betas = (config.beta1, config.beta2)
        self.optimizer = self.model.configure_optimizers(
            config.weight_decay, config.learning_rate, betas, self.device.type
        )
        self.compiled = self.model
        if config.compiles(self.device):
            self.compiled = torch.compile(self.model)
        self.warm_up()

    def loss(self, x, y):
        model = self.compiled if self.model.training else self.model
        return model(x, y)[1]

    @torch.no_grad()
    def generate(self, rows, tokens):
        """One sample after the other, like its sample.py."""
        for _ in range(rows):
            start = torch.zeros((1, 1), dtype=torch.long, device=self.device)
            with self.autocast:
                self.model.generate(start, tokens, temperature=0.8, top_k=200)

    @torch.no_grad()
    def prefill(self, rows):
        with self.autocast:
            self.model(self.full_context(rows))


class Transformers(Baseline):
    """GPT2LMHeadModel of the same shape, with torch's fused AdamW; on a CPU in its float32."""

    def __init__(self, get_lr, model_config, config):
        super().__init__(get_lr, model_config, config)
        from transformers import GPT2Config, GPT2LMHeadModel

        c = self.model_config
        hf_config = GPT2Config(
            vocab_size=c.vocab_size,
            n_positions=c.block_size,
            n_embd=c.n_embd,
            n_layer=c.n_layer,
            n_head=c.n_head,
            resid_pdrop=c.dropout,
            embd_pdrop=c.dropout,
            attn_pdrop=c.dropout,
        )
        torch.manual_seed(config.seed)
        self.model = GPT2LMHeadModel(hf_config).to(self.device).train()
        self.dtype = pick_dtype(config.dtype, self.device)
        self.autocast = make_autocast(self.device, self.dtype)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
            fused=True,
        )

    def loss(self, x, y):
        logits = self.model(x).logits.flatten(0, 1).float()
        return torch.nn.functional.cross_entropy(logits, y.flatten(), ignore_index=IGNORE_INDEX)

    @torch.no_grad()
    def generate(self, rows, tokens):
        start = torch.zeros((rows, 1), dtype=torch.long, device=self.device)
        self.model.generate(
            start,
            do_sample=True,
            temperature=0.8,
            top_k=200,
            use_cache=True,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            pad_token_id=0,
        )

    @torch.no_grad()
    def prefill(self, rows):
        self.model(self.full_context(rows), use_cache=True, logits_to_keep=1)

    def convert(self, dtype):
        """Generate with weights of this dtype from here on."""
        self.model.to(getattr(torch, dtype))
