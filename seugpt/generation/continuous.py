"""Generation for requests that come and go: a batch whose rows join and leave at any token.

Shapes: B rows, T tokens, V vocabulary, L slots of the cache.
"""

import torch

from seugpt.generation.decoder import Decoder
from seugpt.generation.kv_cache import KVCache


class ContinuousDecoder:
    """Rows that are decoded together, each from its own beginning to its own end (Orca, OSDI 2022).

    A row joins with all but the last token of its prompt read; the step that all rows share then
    reads that one. What a row is given does not depend on the others, but for rounding. Past
    block_size it goes on as in generate_tokens.
    """

    def __init__(self, model, max_rows):
        """For at most `max_rows` rows of a model in eval mode."""
        self.model = model
        self.config = model.config
        self.max_rows = max_rows
        self.rolls = self.config.position == "rope"
        self.reader = Decoder(model, 1, self.config.block_size)
        self.decoder = Decoder(model, max_rows, 1)
        self.cache = self.decoder.cache
        self.windows = []  # of each row the ids that the model can see
        self.num_cached = []  # how many of these the cache has; the newest waits for the next step

    def __len__(self):
        return len(self.windows)

    @torch.inference_mode()
    def add(self, ids, max_new_tokens):
        """Add a row that continues `ids` by up to max_new_tokens tokens. Returns its number, B."""
        window = list(ids[-self.config.block_size :])
        self.reserve(min(len(window) + max_new_tokens, self.config.block_size))
        row = len(self.windows)
        self.read(row, window[:-1])
        self.windows.append(window)
        self.num_cached.append(len(window) - 1)
        return row

    @torch.inference_mode()
    def remove(self, row):
        """Remove a row; the last one takes its number."""
        last = len(self.windows) - 1
        if row != last:
            self.cache.copy_row(row, self.cache, last, self.num_cached[last])
        for facts in (self.windows, self.num_cached):
            facts[row] = facts[last]
            facts.pop()

    @torch.inference_mode()
    def step(self):
        """Read the newest token of each row. Returns the logits of the next ones, (B, V)."""
        self.num_cached = [len(window) for window in self.windows]
        device = self.model.wte.weight.device
        newest = torch.tensor([[window[-1]] for window in self.windows], device=device)  # (B, 1)
        self.decoder.cache = self.cache.first_rows(len(self.windows))
        return self.decoder.eager_step(newest)[:, -1]

    @torch.inference_mode()
    def append(self, row, token):
        """Let `token` be the newest of a row, for the next step to read."""
        window = self.windows[row]
        window.append(token)
        if len(window) <= self.config.block_size:
            return
        if self.rolls:
            del window[0]
        else:  # learned positions cannot move: the window restarts with its last half
            del window[: -max(self.config.block_size // 2, 1)]
            self.read(row, window[:-1])
        self.num_cached[row] = len(window) - 1

    def read(self, row, ids):
        """Let a row of the cache hold `ids` alone."""
        self.reader.cache.reset(0)
        if ids:
            self.reader.prefill([torch.tensor(ids, device=self.model.wte.weight.device)])
        self.cache.copy_row(row, self.reader.cache, 0, len(ids))

    def reserve(self, length):
        """Let the cache have `length` slots at least; they double, so that few copies are made."""
        if length <= self.cache.length:
            return
        length = min(max(length, 2 * self.cache.length), self.config.block_size)
        cache = KVCache(self.config, self.max_rows, length, like=self.model.ln_f.weight)
        for row in range(len(self.windows)):
            cache.copy_row(row, self.cache, row, self.num_cached[row])
        self.cache = cache
