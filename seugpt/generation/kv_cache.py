"""The KV cache: with the keys and values of earlier tokens kept, a new token costs O(T), not O(T²).

Shapes: B rows, T tokens, nkv key/value heads, hs head size, L slots.
"""

import copy

import torch


class KVCache:
    """Preallocated keys and values (B, nkv, L, hs) of each layer, used as a ring buffer.

    Token n lies in slot n % L, so that past L tokens each one sees the last L. Shorter rows of a
    batch are padded on the left. GPT.forward calls advance() once, then update() in each layer, and
    attends with `mask`. Course: page 9.
    """

    def __init__(self, config, batch_size, length, like):
        """For `length` tokens, on the device and in the dtype of the tensor `like`."""
        shape = (batch_size, config.kv_heads, length, config.head_size)
        self.length = length
        self.keys = [like.new_zeros(shape) for _ in range(config.n_layer)]
        self.values = [like.new_zeros(shape) for _ in range(config.n_layer)]
        # 0 where a slot has a token; -inf where it has padding or nothing yet.
        self.slot_mask = like.new_empty((batch_size, 1, 1, length))
        # Tensors, not integers, so that a captured CUDA graph can update them.
        self.num_tokens = torch.zeros(1, dtype=torch.long, device=like.device)
        self.padding = torch.zeros((batch_size, 1), dtype=torch.long, device=like.device)
        self.reset(0)

    def reset(self, padding):
        """Forget all tokens. Rows will begin with `padding` padding tokens, (B, 1) or a number."""
        self.slot_mask.fill_(-torch.inf)
        self.num_tokens.zero_()
        self.padding[:] = padding

    def first_rows(self, B):
        """The cache of the first B rows alone: it shares this one's tensors."""
        rows = copy.copy(self)
        rows.keys = [keys[:B] for keys in self.keys]
        rows.values = [values[:B] for values in self.values]
        rows.slot_mask = self.slot_mask[:B]
        rows.padding = self.padding[:B]
        return rows

    def copy_row(self, row, source, source_row, T):
        """Let `row` be a row of another cache, or of this one, with the last T tokens that it read.

        The row's next token is the one that all rows of this cache read next.
        """
        back = torch.arange(-T, 0, device=self.num_tokens.device)  # (T,)
        source_slots = (source.num_tokens + back) % source.length
        slots = (self.num_tokens + back) % self.length
        for ours, theirs in ((self.keys, source.keys), (self.values, source.values)):
            for target, origin in zip(ours, theirs, strict=True):
                target[row, :, slots] = origin[source_row, :, source_slots]
        self.slot_mask[row] = -torch.inf
        self.slot_mask[row, :, :, slots] = 0
        position = source.num_tokens - source.padding[source_row]
        self.padding[row] = self.num_tokens - position

    def advance(self, T):
        """Reserve slots for T tokens (prefill, or T=1 to decode). Returns their positions, (B, T).

        `mask` is then 0 for what they see and -inf for the rest: all slots, (B, 1, 1, L), for T=1;
        in a prefill each other, (B, 1, T, T).
        """
        numbers = self.num_tokens
        if T > 1:
            numbers = numbers + torch.arange(T, device=numbers.device)  # (T,)
        positions = numbers - self.padding  # (B, T), negative for padding
        self.slot_idx = numbers % self.length  # (T,)
        if T == 1:
            self.mask = self.slot_mask.index_fill_(3, self.slot_idx, 0)
        else:
            self.mask = self.prefill_mask(positions)
            self.slot_mask[..., :T] = self.mask[:, :, -1:]
            positions = positions.clamp(min=0)
        self.num_tokens += T
        return positions

    def prefill_mask(self, positions):
        """The causal mask (B, 1, T, T) of tokens at `positions` (B, T); no token sees padding."""
        # Padding counts as later than every token.
        order = positions.where(positions >= 0, self.length)
        future_mask = order[:, None, None, :] > order[:, None, :, None]  # (B, 1, T, T)
        return self.slot_mask.new_zeros(future_mask.shape).masked_fill_(future_mask, -torch.inf)

    def update(self, layer_idx, k, v):
        """Store k and v (B, nkv, T, hs). Returns the keys and values that `mask` refers to."""
        keys = self.keys[layer_idx]
        values = self.values[layer_idx]
        keys.index_copy_(2, self.slot_idx, k.type_as(keys))
        values.index_copy_(2, self.slot_idx, v.type_as(values))
        return (keys, values) if k.shape[2] == 1 else (k, v)
