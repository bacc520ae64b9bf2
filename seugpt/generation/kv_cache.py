"""The KV cache: with the keys and values of earlier tokens kept, a new token costs O(T), not O(T²).

Shapes: B rows, T tokens, nkv key/value heads, hs head size, L slots.
"""

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
