"""Lesson 3: a word of four characters goes through a GPT of one block, tensor by tensor.

    python docs/tools/transformer.py > docs/data/lessons/transformer.txt

Trains 522 parameters on twelve words, computes every tensor from the token ids to the loss in plain
torch, checks each against what model.py computes, and prints them. Also draws the block, to
docs/images/transformer.png and docs/images/pt/transformer.png.

Shapes as in model.py; here T = 4 tokens, C = 6 channels, nh = 2 heads, hs = 3, V = 8.
"""

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from transformer_diagram import draw, portuguese  # noqa: E402

from model import GPT, ModelConfig  # noqa: E402

WORDS = "baba bebe bibi mama meme mimi papa pepe pipi tata tete titi".split()
CHARS = sorted(set("".join(WORDS) + "\n"))  # a token's id is its place in this list
CONFIG = ModelConfig(
    block_size=4, vocab_size=len(CHARS), n_layer=1, n_head=2, n_embd=6, embedding_std=0.3
)
WORD = "bebe"
ROW = 2  # the position that the page follows: the second b, after which comes e
HEAD = 1  # the head that it follows


def inputs_and_targets(words):
    """Two (B, 4): the ids of the words, and those of the characters that follow each one."""
    ids = torch.tensor([[CHARS.index(char) for char in word + "\n"] for word in words])
    return ids[:, :-1], ids[:, 1:]


def one_word(word):
    """The ids (4,) of a word, and its targets (4,)."""
    idx, targets = inputs_and_targets([word])
    return idx[0], targets[0]


def train(words=WORDS, seed=0, steps=400):
    """A GPT that has learned to continue the words, in float32 and in eval mode.

    It learns in float64. Processors round differently, and 400 steps amplify that: in float32 to
    other digits than those printed here, in float64 to differences too small to see.
    """
    idx, targets = inputs_and_targets(words)
    model = GPT(CONFIG).double().eval()  # not in training mode, where forward detaches the logits
    torch.manual_seed(seed)
    model.init_weights()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(steps):
        logits, _ = model(idx, targets)  # the loss that comes with them is in float32
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.float()


# The model by hand


def layer_norm(x, weight):
    """Each row of x (T, C) to mean 0 and variance 1; then each channel times its weight."""
    mean = x.mean(dim=1, keepdim=True)
    variance = (x - mean).square().mean(dim=1, keepdim=True)
    return (x - mean) / (variance + CONFIG.norm_eps).sqrt() * weight


def softmax(scores):
    """The exponential of each score, divided by the sum of its row."""
    exponentials = scores.exp()
    return exponentials / exponentials.sum(dim=-1, keepdim=True)


def gelu(x):
    """The tanh approximation (1606.08415)."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@torch.no_grad()
def by_hand(model, idx, targets):
    """Every tensor between idx (T,) and the loss, where targets (T,) are the tokens that came."""
    w = {name.removesuffix(".weight"): p for name, p in model.named_parameters()}
    s = SimpleNamespace()
    T = len(idx)
    nh = CONFIG.n_head
    hs = CONFIG.head_size

    s.wte = w["wte"][idx]  # (T, C)
    s.wpe = w["wpe"][:T]  # (T, C)
    s.x0 = s.wte + s.wpe

    s.n1 = layer_norm(s.x0, w["h.0.ln_1"])
    s.qkv = s.n1 @ w["h.0.attn.c_attn"].T  # (T, 3 C)
    s.q, s.k, s.v = s.qkv.view(T, 3, nh, hs).permute(1, 2, 0, 3)  # (nh, T, hs) each
    s.scores = s.q @ s.k.mT / math.sqrt(hs)  # (nh, T, T)
    future = torch.ones(T, T).triu(1).bool()  # True above the diagonal
    s.masked = s.scores.masked_fill(future, -math.inf)
    s.weights = softmax(s.masked)
    s.y = s.weights @ s.v  # (nh, T, hs)
    s.heads = torch.cat(list(s.y), dim=1)  # (T, C): side by side
    s.attn = s.heads @ w["h.0.attn.c_proj"].T
    s.x1 = s.x0 + s.attn

    s.n2 = layer_norm(s.x1, w["h.0.ln_2"])
    s.hidden = s.n2 @ w["h.0.mlp.c_fc"].T  # (T, 4 C)
    s.active = gelu(s.hidden)
    s.mlp = s.active @ w["h.0.mlp.c_proj"].T
    s.x2 = s.x1 + s.mlp

    s.final = layer_norm(s.x2, w["ln_f"])
    s.logits = s.final @ w["wte"].T  # (T, V)
    s.probs = softmax(s.logits)
    s.losses = -s.probs[range(T), targets].log()  # (T,)
    s.loss = s.losses.mean()
    return s


# {a tensor of by_hand: the module of the model that receives it (0) or returns it (1)}
PLACES = {
    "x0": ("h.0.ln_1", 0),
    "n1": ("h.0.ln_1", 1),
    "qkv": ("h.0.attn.c_attn", 1),
    "heads": ("h.0.attn.c_proj", 0),
    "attn": ("h.0.attn.c_proj", 1),
    "x1": ("h.0.ln_2", 0),
    "n2": ("h.0.ln_2", 1),
    "hidden": ("h.0.mlp.c_fc", 1),
    "active": ("h.0.mlp.c_proj", 0),
    "mlp": ("h.0.mlp.c_proj", 1),
    "x2": ("ln_f", 0),
    "final": ("ln_f", 1),
    "logits": ("lm_head", 1),
}


@torch.no_grad()
def check(s, model, idx, targets):
    """Raise AssertionError unless the model computes what is in s, to 1e-5."""
    passed = {}  # {module: (its input, its output)}

    def record(module, args, output):
        passed[module] = (args[0], output)

    modules = {model.get_submodule(name) for name, _ in PLACES.values()}
    hooks = [module.register_forward_hook(record) for module in modules]
    _, loss = model(idx[None], targets[None])
    for hook in hooks:
        hook.remove()
    for name, (module, place) in PLACES.items():
        own = passed[model.get_submodule(module)][place][0]  # without B
        torch.testing.assert_close(getattr(s, name), own, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(s.loss, loss, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def forward_without(model, name, idx, targets):
    """The model's (logits, loss) with zeros in place of what one of its modules returns."""
    module = model.get_submodule(name)
    hook = module.register_forward_hook(lambda module, args, output: torch.zeros_like(output))
    logits, loss = model(idx, targets)
    hook.remove()
    return logits, loss


# What is printed


def char(token_id):
    return CHARS[token_id].replace("\n", "\\n")


def line(label, *rows):
    return f"{label:<10}" + "   ".join("".join(f"{x + 0.0:8.3f}" for x in row) for row in rows)


def table(title, *matrices):
    """Matrices (T, n) side by side, each row with its position and its character."""
    yield title
    for t, rows in enumerate(zip(*(matrix.tolist() for matrix in matrices), strict=True)):
        yield line(f"{t} {WORD[t]}", *rows)
    yield ""


def dot(name_a, a, name_b, b):
    """A dot product, product by product."""
    yield line(name_a, a.tolist())
    yield line(name_b, b.tolist())
    yield f"{line('products', (a * b).tolist())}   sum {a @ b:.3f}"


def token_lines(idx, targets):
    vocabulary = range(len(CHARS))
    yield f"{'token':<10}" + "".join(f"{char(i):>4}" for i in vocabulary)
    yield f"{'id':<10}" + "".join(f"{i:>4}" for i in vocabulary)
    yield ""
    yield f"{'text':<10}" + "".join(f"{char(i):>4}" for i in idx)
    yield f"{'idx':<10}" + "".join(f"{i:>4}" for i in idx)
    yield f"{'targets':<10}" + "".join(f"{i:>4}" for i in targets)
    yield ""


def embedding_lines(model, s):
    yield "x0 = wte[idx] + wpe[positions]"
    yield line(f"wte[{CHARS.index(WORD[ROW])}]", s.wte[ROW].tolist())
    yield line(f"wpe[{ROW}]", s.wpe[ROW].tolist())
    yield line(f"x0[{ROW}]", s.x0[ROW].tolist())
    yield ""
    yield from table("x0 (4, 6)", s.x0)
    x = s.x0[ROW]
    mean = x.mean()
    variance = x.var(correction=0)
    weight = model.h[0].ln_1.weight
    yield f"x0[{ROW}]: mean {mean:.3f}, variance {variance:.3f}; ln_1.weight[0] {weight[0]:.3f}"
    yield (
        f"n1[{ROW}, 0] = ({x[0]:.3f} - {mean:.3f}) / sqrt({variance:.3f}) * {weight[0]:.3f}"
        f" = {s.n1[ROW, 0]:.3f}"
    )
    yield ""
    yield from table("n1 = ln_1(x0) (4, 6)", s.n1)


def attention_lines(s):
    h = HEAD
    yield from table(f"q, k, v of head {h}, (4, 3) each", s.q[h], s.k[h], s.v[h])
    yield from dot(f"q[{ROW}]", s.q[h, ROW], f"k[{ROW - 1}]", s.k[h, ROW - 1])
    yield f"{s.q[h, ROW] @ s.k[h, ROW - 1]:.3f} / sqrt(3) = {s.scores[h, ROW, ROW - 1]:.3f}"
    yield ""
    yield from table(f"scores of head {h}, unmasked (4, 4)", s.scores[h])
    yield from table(f"scores of head {h}, masked (4, 4)", s.masked[h])
    exponentials = s.masked[h, ROW].exp()
    yield f"row {ROW}, head {h}"
    yield line("score", s.masked[h, ROW].tolist())
    yield f"{line('exp', exponentials.tolist())}   sum {exponentials.sum():.3f}"
    yield line("exp / sum", s.weights[h, ROW].tolist())
    yield ""
    yield from table("weights of head 0 and of head 1, (4, 4) each", *s.weights)
    yield f"y[{ROW}] of head {h}"
    for t in range(ROW + 1):
        yield f"{line(f'v[{t}]', s.v[h, t].tolist())}   times {s.weights[h, ROW, t]:.3f}"
    yield line("sum", s.y[h, ROW].tolist())
    yield ""
    yield from table("y of head 0 and of head 1, (4, 3) each", *s.y)
    yield from table("attn = heads @ c_proj.T, and x1 = x0 + attn, (4, 6) each", s.attn, s.x1)


def mlp_lines(s):
    yield line("c_fc", s.hidden[ROW, :6].tolist()) + "   0 to 5 of 24"
    yield line("gelu", s.active[ROW, :6].tolist())
    yield line(f"x1[{ROW}]", s.x1[ROW].tolist())
    yield line(f"mlp[{ROW}]", s.mlp[ROW].tolist())
    yield line(f"x2[{ROW}]", s.x2[ROW].tolist())
    yield ""


def prediction_lines(model, s, targets):
    came = targets[ROW].item()
    wte = model.wte.weight.detach()
    header = "".join(f"{char(i):>8}" for i in range(len(CHARS)))
    yield from table(f"logits (4, 8)\n{'':<10}{header}", s.logits)
    yield from dot(f"final[{ROW}]", s.final[ROW], f"wte[{came}]", wte[came])
    yield ""
    yield from table(f"probabilities (4, 8)\n{'':<10}{header}", s.probs)
    for t, (i, loss) in enumerate(zip(targets.tolist(), s.losses.tolist(), strict=True)):
        yield f"{t} {WORD[t]}   next {char(i):>2}   -ln({s.probs[t, i]:.4f}) = {loss:.4f}"
    yield f"mean {s.loss:.4f}"
    yield ""


def worth_lines(model):
    idx, targets = inputs_and_targets(WORDS)
    _, loss = model(idx, targets)
    yield f"loss over the {len(WORDS)} words: {loss:.4f}"
    for name in ("wpe", "h.0.mlp", "h.0.attn"):
        logits, loss = forward_without(model, name, idx, targets)
        yield f"without {name}: {loss:.4f}"
    row = WORDS.index(WORD)  # of the last logits, those without attention
    came = softmax(logits[row])[range(len(WORD)), targets[row]]
    yield line(f"without h.0.attn: probabilities of what comes in {WORD}", came.tolist())
    yield f"ln(3) = {math.log(3):.4f}, ln(3) / 4 = {math.log(3) / 4:.4f}"
    yield ""


def size_lines():
    with torch.device("meta"):  # shapes without numbers
        models = [GPT(CONFIG), GPT(ModelConfig(vocab_size=50257))]
    for name in ("n_layer", "n_head", "n_embd", "head_size", "mlp_hidden_size", "block_size"):
        small, large = (getattr(model.config, name) for model in models)
        yield f"{name:<16} {small:>6} {large:>12,}"
    small, large = (model.config.vocab_size for model in models)
    yield f"{'vocab_size':<16} {small:>6} {large:>12,}"
    small, large = (model.num_params() for model in models)
    yield f"{'parameters':<16} {small:>6} {large:>12,}"
    yield ""


def exercise_lines(model, s):
    """What the solutions quote."""
    exponentials = s.masked[HEAD, 1].exp()
    yield f"row 1, head {HEAD}"
    yield f"{line('exp', exponentials.tolist())}   sum {exponentials.sum():.3f}"
    yield line("exp / sum", s.weights[HEAD, 1].tolist())
    yield line("y[1]", s.y[HEAD, 1].tolist())
    yield ""
    changed = by_hand(model, *one_word("bebi"))
    largest = (changed.logits - s.logits).abs().amax(dim=1)
    yield line("bebi: largest change of a logit, rows 0 to 3", largest.tolist())
    idx, targets = one_word(WORD)
    unseen = by_hand(train([word for word in WORDS if word != WORD]), idx, targets)
    came = unseen.probs[range(len(WORD)), targets]
    yield line(f"trained without {WORD}: probabilities of what comes in it", came.tolist())


def report(model):
    """The lines of docs/data/lessons/transformer.txt."""
    idx, targets = one_word(WORD)
    s = by_hand(model, idx, targets)
    check(s, model, idx, targets)
    yield f"{len(PLACES)} tensors and the loss agree with those of model.py to 1e-5"
    yield ""
    yield from token_lines(idx.tolist(), targets.tolist())
    yield from embedding_lines(model, s)
    yield from attention_lines(s)
    yield from mlp_lines(s)
    yield from prediction_lines(model, s, targets)
    yield from worth_lines(model)
    yield from size_lines()
    yield from exercise_lines(model, s)


def main():
    torch.set_num_threads(1)
    model = train()
    print("\n".join(report(model)))
    weights = by_hand(model, *one_word(WORD)).weights[HEAD]
    images = ROOT / "docs" / "images"
    draw(images / "transformer.png", WORD, weights)
    draw(images / "pt" / "transformer.png", WORD, weights, portuguese)


if __name__ == "__main__":
    main()
