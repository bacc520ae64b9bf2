"""What a model does with a text: where its heads look, what each layer would say, how much each token surprises it.

The model's own modules compute it, while hooks listen to what goes into them; afterwards the hooks are gone.

Shapes: B rows, T tokens, C channels, L layers, nh heads, V vocabulary, N tokens of the tokenizer (V has padding then).
"""

import math

import torch
import torch.nn.functional as F

from model import soft_cap
from seugpt.checkpoint import pretrained as weights
from seugpt.data.text import given_text
from seugpt.data.tokenizer import prompt_ids
from seugpt.evaluation.loss import windows
from seugpt.generation.decoder import distribution, next_token
from seugpt.training.layer_stats import listening, streams

LONGEST = 1024  # tokens of a window in which heads are watched: T x T weights of every head must have room
MOST = 2**14  # tokens of a text that heads are watched over: their habits show long before
OTHERS = (
    "the first token",
    "the last white space",
    "the same token",
    "what came after it",
)  # than a distance back
ROWS = 256  # of logits at a time: V may be a hundred thousand


def read(source, text):
    """(model, tokenizer, ids): the model that `source` names, and the text, or FILE:path, as a tensor of ids (T,).

    Raises CheckpointError, DataError.
    """
    model, tokenizer, _ = weights.to_speak(source)
    return (
        model,
        tokenizer,
        torch.tensor(prompt_ids(tokenizer, given_text(text, "text"), "text").tolist()),
    )


@torch.no_grad()
def attention(model, idx, summary=lambda weights: weights):
    """What `summary` makes of each layer's weights (B, nh, T, T), in a list; without it, the weights themselves.

    idx (B, T). A row of weights says how a token's attention is shared among itself and the tokens before: the sum is
    1. With a summary there is never more than one layer's in memory.
    """
    found = []

    def hear(attn, inputs):
        x, turn, _ = inputs
        q, k, _ = attn.qkv(x, turn)
        k = k.repeat_interleave(
            q.shape[1] // k.shape[1], dim=1
        )  # (B, nh, T, hs): GQA's heads share keys
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(later, -torch.inf)
        found.append(summary(scores.softmax(dim=-1)))

    with listening([block.attn for block in model.h], hear):
        model(idx)
    return found


def read_out(model, x):
    """What the model would say if this were the end: the logits (..., V) of a residual stream (..., C)."""
    return soft_cap(model.lm_head(model.ln_f(x)), model.config.logit_softcap)


@torch.no_grad()
def lens(model, N, ids):
    """The logit lens: the likeliest next token after each layer and its probability, (L + 1, T) each.

    Of ids (T,), at most block_size. The first row is of the embedding, the last one what the model says.
    Source: nostalgebraist, "interpreting GPT: the logit lens" (2020).
    """
    looks = [
        read_out(model, x[0])[:, :N].softmax(dim=-1).max(dim=-1) for x in streams(model, ids[None])
    ]
    return torch.stack([look.values for look in looks]), torch.stack(
        [look.indices for look in looks]
    )


@torch.no_grad()
def surprise(model, ids):
    """-log2 of the probability that the model gave each of ids (T,), in bits (T,); NaN for the first one.

    Where the text is longer than block_size, it is read in windows that overlap by a half, so that each token has at
    least half a block_size of text before it.
    """
    size, bits = model.config.block_size, [torch.tensor([math.nan])]
    for window, first in windows([ids.numpy()], size, stride=max(size // 2, 1)):
        window = torch.from_numpy(window)
        x = streams(model, window[None, :-1])[-1][
            0, first:
        ]  # (those whose next token is scored, C)
        for rows, following in zip(x.split(ROWS), window[first + 1 :].split(ROWS), strict=True):
            bits.append(
                F.cross_entropy(read_out(model, rows), following, reduction="none") / math.log(2)
            )
    return torch.cat(bits)


@torch.no_grad()
def last_logits(model, N, ids):
    """The logits (N,) of the token after ids, of which the model sees the last block_size, as in generation."""
    return model(ids[None, -model.config.block_size :])[0][0, -1, :N]


def probabilities(logits, sampling):
    """What next_token draws with from logits (N,): (N,), 0 for what it leaves out."""
    shares, ids = distribution(logits[None], sampling)
    shares = shares[0] / shares.sum()
    return shares if ids is None else torch.zeros_like(logits).scatter(0, ids[0], shares)


def draws(logits, sampling, count, generator):
    """How often each token comes up in so many draws from logits (N,): (N,)."""
    N, counts = len(logits), torch.zeros(len(logits))
    at_once = max(2**22 // N, 1)
    for done in range(0, count, at_once):
        drawn = next_token(logits.expand(min(at_once, count - done), N), sampling, generator)
        counts += drawn[:, 0].bincount(minlength=N)
    return counts


def distances(T):
    """The ranges of distances back that are told apart: 0, 1, 2, 3, 4, then 5 to 8, 9 to 16 and so on, below T."""
    ranges = [(d, d) for d in range(5)] + [(2**n + 1, 2 ** (n + 1)) for n in range(2, 31)]
    return [(first, min(last, T - 1)) for first, last in ranges if first < T]


def goals(idx, blank):
    """What a head may look at: the names of K things, and where they are, bool (B, K, T, T).

    idx and blank (B, T): the tokens, and whether each begins with white space. Row i says which of the tokens up to
    the i-th are meant.
    """
    T, place = idx.shape[1], torch.arange(idx.shape[1])
    back = place[:, None] - place  # (T, T)
    same = (idx[:, :, None] == idx[:, None, :]) & (back > 0)  # (B, T, T)
    last_blank = torch.where(blank[:, None] & (back > 0), place, -1).amax(
        dim=-1, keepdim=True
    )  # (B, T, 1)
    names = ["itself", "the one before", "2 back", "3 back", "4 back"][:T]
    names += [
        f"{first} to {last} back" if first < last else f"{first} back"
        for first, last in distances(T)[5:]
    ]
    masks = [((first <= back) & (back <= last)).expand_as(same) for first, last in distances(T)]
    masks.append(((place == 0) & (back > 0)).expand_as(same))
    masks.append((place == last_blank) & (back > 0))
    masks.append(same)
    masks.append(F.pad(same, (1, 0))[:, :, :T] & (back >= 0))  # one place on
    return [*names, *OTHERS], torch.stack(masks, dim=1)


def habits(model, ids, blank):
    """What each head looks at, in the mean over a text: (K names, shares of its attention (L, nh, K), even (K)).

    even: the shares that a head would have which looks at all tokens alike. ids (T,); blank (T,): whether a token
    begins with white space. The text is cut into windows of block_size, and a mean is over the tokens that have what is
    meant before them.
    """
    T = min(len(ids), model.config.block_size, LONGEST)
    idx, blank = (
        part[: min(len(part), MOST) // T * T].view(-1, T) for part in (ids, blank)
    )  # windows
    alike = torch.ones(T, T).tril() / torch.arange(1, T + 1)[:, None]
    shares, even, counts = 0, 0, 0
    for rows in torch.arange(len(idx)).split(max(2**22 // (model.config.n_head * T * T), 1)):
        names, masks = goals(idx[rows], blank[rows])
        weighed = masks.float()
        found = attention(
            model, idx[rows], lambda w, weighed=weighed: torch.einsum("bhij,bkij->hk", w, weighed)
        )
        shares += torch.stack(found).double()
        even += torch.einsum("ij,bkij->k", alike, weighed).double()
        counts += masks.any(dim=-1).sum((0, 2))
    seen = counts > 0
    names = [name for name, there in zip(names, seen.tolist(), strict=True) if there]
    return names, shares[..., seen] / counts[seen], even[seen] / counts[seen]
