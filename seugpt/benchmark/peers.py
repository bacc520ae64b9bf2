"""nanoGPT and transformers, as contenders beside seuGPT; neither one's code is in this repository."""

import importlib.util
from pathlib import Path

import torch

from model import IGNORE, pick_dtype
from seugpt.benchmark.contenders import Contender
from seugpt.evaluation.loss import summed_loss
from seugpt.training.optimizer import learning_rate


class Peer(Contender):
    """One that brings a model, a `loss(x, y)`, an autocast and an optimizer; the loop around them is the usual one."""

    def batch(self, micro_step):
        """The same tokens as seuGPT's micro-batch of that number."""
        options = self.options
        index = self.index * options.gradient_accumulation_steps + micro_step
        arrays = self.dataset.batch(
            "train", index, options.batch_size, self.config.block_size, options.seed
        )
        return [torch.from_numpy(array).to(self.device) for array in arrays]

    def step(self):
        """One optimizer step, by the loop that all trainers of this kind share."""
        options = self.options
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.index, options)
        for micro_step in range(options.gradient_accumulation_steps):
            with self.autocast:
                loss = self.loss(*self.batch(micro_step)) / options.gradient_accumulation_steps
            loss.backward()
        if options.grad_clip > 0:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), options.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.index += 1

    def evaluate(self):
        """Mean loss over the whole validation split."""
        self.model.eval()
        batches = self.dataset.evaluation_batches("val", 0, 64, self.config.block_size)
        total = summed_loss(
            lambda x, y: (None, self.loss(x, y)), batches, self.device, self.autocast
        )
        self.model.train()
        return (total[0] / total[1]).item()


class NanoGPT(Peer):
    """nanoGPT's own model and optimizer, from its source at `path`; as its train.py does, float32 on the CPU."""

    def __init__(self, path, model_config, options):
        super().__init__(model_config, options)
        c, cuda = self.config, self.device.type == "cuda"
        spec = importlib.util.spec_from_file_location("nanogpt", Path(path) / "model.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.dtype = torch.bfloat16 if cuda else torch.float32
        self.autocast = torch.autocast(self.device.type, dtype=self.dtype, enabled=cuda)
        torch.manual_seed(options.seed)
        shape = module.GPTConfig(
            c.block_size, c.vocab_size, c.n_layer, c.n_head, c.n_embd, c.dropout, c.bias
        )
        self.model = module.GPT(shape).to(self.device)
        betas = (options.beta1, options.beta2)
        self.optimizer = self.model.configure_optimizers(
            options.weight_decay, options.learning_rate, betas, self.device.type
        )
        self.compiled = self.model
        if options.compiles(self.device):
            self.compiled = torch.compile(self.model)

    def loss(self, x, y):
        return (self.compiled if self.model.training else self.model)(x, y)[1]

    @torch.no_grad()
    def write(self, batch_size, tokens):
        """One sample after the other, as its sample.py draws them."""
        for _ in range(batch_size):
            start = torch.zeros((1, 1), dtype=torch.long, device=self.device)
            self.model.generate(start, tokens, temperature=0.8, top_k=200)


class Transformers(Peer):
    """GPT2LMHeadModel of the same shape, with torch's fused AdamW; float32 on the CPU, as it comes."""

    def __init__(self, model_config, options):
        super().__init__(model_config, options)
        from transformers import GPT2Config, GPT2LMHeadModel

        c = self.config
        drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), c.dropout)
        shape = {
            "vocab_size": c.vocab_size,
            "n_positions": c.block_size,
            "n_embd": c.n_embd,
            "n_layer": c.n_layer,
        }
        torch.manual_seed(options.seed)
        self.model = (
            GPT2LMHeadModel(GPT2Config(**shape, n_head=c.n_head, **drop)).to(self.device).train()
        )
        self.dtype = pick_dtype(options.dtype, self.device)
        self.autocast = torch.autocast(
            self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32
        )
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=options.learning_rate,
            betas=(options.beta1, options.beta2),
            weight_decay=options.weight_decay,
            fused=True,
        )

    def loss(self, x, y):
        logits = self.model(x).logits
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), y.flatten(), ignore_index=IGNORE
        )

    @torch.no_grad()
    def write(self, batch_size, tokens):
        start = torch.zeros((batch_size, 1), dtype=torch.long, device=self.device)
        length = {"max_new_tokens": tokens, "min_new_tokens": tokens, "pad_token_id": 0}
        self.model.generate(
            start, do_sample=True, temperature=0.8, top_k=200, use_cache=True, **length
        )


def in_turn(rounds, processes, method, *arguments):
    """{name: [result of each round]}, the contenders one after the other in each round."""
    results = {name: [] for name in processes}
    for _ in range(rounds):
        for name, process in processes.items():
            results[name].append(process(method, *arguments))
    return results
