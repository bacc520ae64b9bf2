"""What the heads of a model look at, averaged over a text: how far back, repetitions, and so on.

Shapes: B rows, T tokens, L layers, nh heads, K targets.
"""

import torch
import torch.nn.functional as F

from seugpt.plots.internals import CHUNK_ELEMENTS, MAX_TOKENS, MAX_WINDOW, attention_weights
from seugpt.plots.language import ENGLISH

OTHER_TARGETS = ("first token", "last white space", "same token", "what came after it")


def distance_ranges(T):
    """The ranges of distances back that are told apart: 0 to 4 each, 5 to 8, 9 to 16, up to T."""
    ranges = [(d, d) for d in range(5)]
    ranges += [(2**n + 1, 2 ** (n + 1)) for n in range(2, 31)]
    return [(first, min(last, T - 1)) for first, last in ranges if first < T]


def target_names(T, language=ENGLISH):
    """What a head may look at: the names of K targets, first those by distance."""
    names = [language("itself"), language("previous token")][:T]
    for first, last in distance_ranges(T)[2:]:
        phrase = "{first} to {last} back" if first < last else "{last} back"
        names.append(language(phrase, first=first, last=last))
    return [*names, *map(language, OTHER_TARGETS)]


def attention_targets(idx, is_space):
    """Where the K targets of target_names are: bool (B, K, T, T).

    idx and is_space (B, T): the tokens, and whether each begins with white space. Row i marks the
    targets among the tokens up to the i-th.
    """
    T = idx.shape[1]
    position = torch.arange(T)
    back = position[:, None] - position  # (T, T): how far back column j lies from row i
    same = (idx[:, :, None] == idx[:, None, :]) & (back > 0)  # (B, T, T)
    space_positions = torch.where(is_space[:, None] & (back > 0), position, -1)  # (B, T, T)
    last_space = space_positions.amax(dim=-1, keepdim=True)  # (B, T, 1)

    ranges = distance_ranges(T)
    masks = [((first <= back) & (back <= last)).expand_as(same) for first, last in ranges]
    masks.append(((position == 0) & (back > 0)).expand_as(same))
    masks.append((position == last_space) & (back > 0))
    masks.append(same)
    masks.append(F.pad(same, (1, 0))[:, :, :T] & (back >= 0))  # one position later
    return torch.stack(masks, dim=1)


def window_shape(num_tokens, block_size):
    """(B, T) of the windows into which a text is cut; the tokens that fill none are left out."""
    T = min(num_tokens, block_size, MAX_WINDOW)
    return min(num_tokens, MAX_TOKENS) // T, T


def attention_patterns(model, ids, is_space, language=ENGLISH):
    """(K names, shares of each head's attention (L, nh, K), shares of a uniform head (K)).

    ids (T,); is_space (T,): whether a token begins with white space. The text is cut into windows
    of block_size. Shares are averages over the tokens that have the target before them.
    """
    B, T = window_shape(len(ids), model.config.block_size)
    idx = ids[: B * T].view(B, T)
    is_space = is_space[: B * T].view(B, T)
    uniform_weights = torch.ones(T, T).tril() / torch.arange(1, T + 1)[:, None]
    shares = 0
    uniform = 0
    counts = 0
    chunk = max(CHUNK_ELEMENTS // (model.config.n_head * T * T), 1)
    for rows in torch.arange(len(idx)).split(chunk):
        masks = attention_targets(idx[rows], is_space[rows])
        masks_float = masks.float()

        def share_per_head(weights, masks_float=masks_float):
            return torch.einsum("bhij,bkij->hk", weights, masks_float)

        shares += torch.stack(attention_weights(model, idx[rows], share_per_head)).double()
        uniform += torch.einsum("ij,bkij->k", uniform_weights, masks_float).double()
        counts += masks.any(dim=-1).sum((0, 2))
    occurs = counts > 0
    all_names = target_names(T, language)
    names = [name for name, present in zip(all_names, occurs.tolist(), strict=True) if present]
    return names, shares[..., occurs] / counts[occurs], uniform[occurs] / counts[occurs]
