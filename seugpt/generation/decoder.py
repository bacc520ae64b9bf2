"""Generation: from token to token, through the KV cache.

Shapes: B rows, T tokens, V vocabulary.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from seugpt.errors import one_line
from seugpt.generation.kv_cache import KVCache
from seugpt.generation.sampling import apply_penalties, sample_token


def inline_modules(module):
    """The forward method of a shallow copy of `module` that calls its submodules directly.

    nn.Module searches three dictionaries for a submodule and checks for hooks before each call, in
    Python, 130 times in a step of four layers (docs/SPEED.md). The weights are the same tensors.
    Hooks, as those that gather a sharded model, are not called.
    """
    if isinstance(module, nn.ModuleList):
        return [inline_modules(child) for child in module]
    copied = copy.copy(module)
    children = {name: inline_modules(child) for name, child in module.named_children()}
    vars(copied).update({**module._parameters, **module._buffers, **children})
    return copied.forward


def has_hooks(model):
    return any(module._forward_pre_hooks for module in model.modules())


class Decoder:
    """A model with the KV cache of a batch.

    `prefill` reads the prompts, `step` one more token of each row.
    """

    def __init__(self, model, batch_size, length, compile=False):
        """For contexts of up to `length` tokens (at most block_size), of a model in eval mode.

        compile=True captures the step as a CUDA graph, or compiles it elsewhere. If that fails,
        `failure` says why in one line, and the step runs as it is.
        """
        self.model = model
        self.batch_size = batch_size
        length = min(length, model.config.block_size)
        weight = model.ln_f.weight
        like = torch.empty(0, dtype=weight.dtype, device=weight.device)  # no shard, as it may be
        self.cache = KVCache(model.config, batch_size, length, like)
        if has_hooks(model):
            self.forward = model
            self.no_grad = torch.no_grad  # what is first gathered in inference mode cannot train
        else:
            self.forward = inline_modules(model)
            self.no_grad = torch.inference_mode
        self.step = self.eager_step
        self.failure = None
        if compile:
            self.compile_step()

    def prefill(self, rows):
        """Clear the cache and read `rows`, B tensors of ids (T,), padded on the left if shorter.

        Returns the logits after the last token of each row, (B, 1, V).
        """
        longest = max(map(len, rows))
        padding = [longest - len(row) for row in rows]
        self.cache.reset(torch.tensor(padding)[:, None])
        idx = torch.stack([F.pad(row, (n, 0)) for row, n in zip(rows, padding, strict=True)])
        return self.eager_step(idx)

    def eager_step(self, idx):
        """idx (B, 1), the next token of each row -> logits (B, 1, V)."""
        with self.no_grad():
            return self.forward(idx, cache=self.cache)[0]

    def compile_step(self):
        on_cuda = self.model.wte.weight.is_cuda
        try:
            self.step = self.captured_step() if on_cuda else self.compiled_step()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # torch, Triton and the C compiler each raise their own types
            self.failure = one_line(error)

    def example_input(self):
        device = self.model.wte.weight.device
        return torch.zeros((self.batch_size, 1), dtype=torch.long, device=device)

    def captured_step(self):
        """The step as one CUDA graph: its hundreds of kernels start with a single call."""
        with torch.cuda.device(self.model.wte.weight.device):  # where the graph is recorded
            return self.capture()

    def capture(self):
        idx = self.example_input()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # what happens only once, as choosing kernels, must not be captured
                self.cache.reset(0)
                self.eager_step(idx)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self.eager_step(idx)

        def step(next_ids):
            idx.copy_(next_ids)
            graph.replay()
            return logits

        return step

    def compiled_step(self):
        step = torch.compile(lambda idx: self.model(idx, cache=self.cache)[0], dynamic=False)
        # Not in inference_mode like the eager step: compiling there is an internal error of torch
        # 2.13.
        with torch.no_grad():
            step(self.example_input())
        return step


@torch.no_grad()
def generate_tokens(decoder, prompts, max_new_tokens, vocab_size, params, rng=None):
    """Continue prompts, sequences of ids; yields the next token of each row, (B,).

    It yields max_new_tokens times. Prompts may differ in length; each row is what it would be
    alone. A token attends to at most block_size ones. Past that, with RoPE the window rolls: each
    token attends to the last block_size ones. A learned position cannot move with its token, so
    there the window restarts with the last block_size / 2 tokens of the row. Ids of vocab_size and
    above are padding and never drawn. `rng`: a torch.Generator on the model's device.
    """
    config = decoder.model.config
    device = decoder.model.wte.weight.device
    prompts = [torch.tensor(list(map(int, ids)), device=device) for ids in prompts]
    window = Window(config, prompts)
    logits = decoder.prefill(window.rows)
    if params.needs_counts:
        reply_counts = torch.zeros((len(prompts), vocab_size), device=device)
        prompt_counts = [ids.bincount(minlength=vocab_size)[:vocab_size] for ids in prompts]
        prompt_counts = torch.stack(prompt_counts)
    for count in range(max_new_tokens):
        next_logits = logits[:, -1, :vocab_size].float()  # (B, V)
        if params.needs_counts:
            next_logits = apply_penalties(next_logits, params, prompt_counts, reply_counts)
        next_ids = sample_token(next_logits, params, rng)  # (B, 1)
        if params.needs_counts:
            ones = torch.ones_like(next_ids, dtype=reply_counts.dtype)
            reply_counts.scatter_add_(1, next_ids, ones)
        yield next_ids[:, 0]
        if count == max_new_tokens - 1:
            return
        if window.append(next_ids):
            logits = decoder.step(next_ids)
        else:
            logits = decoder.prefill(window.rows)


class Window:
    """The tokens of each row that learned positions let the model see; with RoPE all it has."""

    def __init__(self, config, prompts):
        self.block_size = config.block_size
        self.rolls = config.position == "rope"
        self.set_rows([ids[-self.block_size :] for ids in prompts])

    def set_rows(self, rows):
        self.rows = rows
        self.new_ids = []  # of each step since
        self.longest = max(map(len, rows))

    def append(self, next_ids):
        """Add a token (B, 1) to each row. Returns False if the cut rows must be read again."""
        if self.rolls:
            return True
        self.new_ids.append(next_ids)
        if self.longest + len(self.new_ids) <= self.block_size:
            return True
        half = max(self.block_size // 2, 1)
        new_ids = torch.cat(self.new_ids, dim=1)  # (B, steps)
        rows = [torch.cat((row, new)) for row, new in zip(self.rows, new_ids, strict=True)]
        self.set_rows([row if len(row) <= self.block_size else row[-half:] for row in rows])
        return False
