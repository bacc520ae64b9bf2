"""What a modern block changes against GPT-2's: the figures and pictures of 09-modern-block.md.

    python docs/tools/modern_block.py

Each function computes one part of the lesson with the functions that train and generate, and
returns lines of text. They are printed and kept in docs/data/lessons/modern_block.txt.
"""

import math
import sys
from itertools import takewhile
from pathlib import Path

import torch
from matplotlib.patches import Rectangle
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from model import (  # noqa: E402
    ACTIVATIONS,
    GPT,
    MLP,
    CausalSelfAttention,
    ModelConfig,
    apply_rotary_emb,
    attention,
    identity,
    make_norm,
    rope_cos_sin,
    swiglu,
)
from seugpt.checkpoint import load_for_inference  # noqa: E402
from seugpt.data.tokenizer import decode  # noqa: E402
from seugpt.generation.decoder import Decoder, generate_tokens  # noqa: E402
from seugpt.generation.kv_cache import KVCache  # noqa: E402
from seugpt.generation.sampling import SamplingParams  # noqa: E402
from seugpt.plots.style import (  # noqa: E402
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    saved_figure,
)

FIGURES = ROOT / "docs" / "data" / "lessons" / "modern_block.txt"
IMAGES = {"en": ROOT / "docs" / "images", "pt": ROOT / "docs" / "images" / "pt"}
RUN = ROOT / "docs" / "data" / "out-gptlab-10000"

QUERY = torch.tensor([1.0, 2.0, 0.0, 1.0, 2.0, 1.0, 1.0, 0.0])  # any two vectors would do
KEY = torch.tensor([2.0, 1.0, 1.0, 0.0, 0.0, 1.0, 2.0, 1.0])
ROPE = ModelConfig(position="rope", n_head=1, n_embd=len(QUERY))
ROUNDING = 1e-12  # differences in float64 below this are rounding errors


# Figures


def rope_figures():
    lines = ["RoPE: the same query and key at different positions"]
    lines.append("positions      distance        q·k")
    lines.append(f"not rotated           -  {QUERY @ KEY:9.6f}")
    for m, n in ((3, 1), (13, 11), (103, 101), (3, 2), (1, 3)):
        product = rotated(QUERY, m) @ rotated(KEY, n)
        lines.append(f"{f'({m}, {n})':<12}{m - n:>11}  {product:9.6f}")
    return lines


def rotated(x, position):
    """A query or a key (hs,) as it is at `position`."""
    cos_sin = rope_cos_sin(torch.tensor([position]), ROPE)
    return apply_rotary_emb(x.view(1, 1, 1, -1), cos_sin).flatten()


def norm_figures():
    lines = ["LayerNorm and RMSNorm of four numbers"]
    lines.append("numbers       LayerNorm                         RMSNorm")
    for numbers in ([1.0, 2.0, 3.0, 6.0], [10.0, 20.0, 30.0, 60.0], [11.0, 12.0, 13.0, 16.0]):
        line = f"{' '.join(f'{x:.0f}' for x in numbers):<12}"
        for name in ("layernorm", "rmsnorm"):
            y = make_norm(ModelConfig(norm=name), 4)(torch.tensor(numbers))
            line += "  " + " ".join(f"{x:7.4f}" for x in y.tolist())
        lines.append(line)
    for name in ("layernorm", "rmsnorm"):
        norm = make_norm(ModelConfig(norm=name, bias=True), 768)
        lines.append(f"parameters at 768 channels, {name}: {num_params(norm):,}")
    return lines


def num_params(module):
    return sum(p.numel() for p in module.parameters())


def mlp_figures():
    lines = ["MLP: parameters", "channels  activation  hidden  matrices  parameters"]
    for C in (128, 768):
        for name in ("gelu", "relu2", "swiglu"):
            config = ModelConfig(n_embd=C, n_head=1, mlp=name)
            matrices = 3 if name == "swiglu" else 2
            hidden = config.mlp_hidden_size
            params = num_params(MLP(config))
            lines.append(f"{C:>8}  {name:<10}  {hidden:>6,}  {matrices:>8}  {params:>10,}")
    lines += ["", "MLP: activations", "    x    gelu    relu2     silu"]
    for x in (-2.0, -1.0, 0.0, 1.0, 2.0):
        gelu, relu2 = (ACTIVATIONS[name](torch.tensor(x)).item() for name in ("gelu", "relu2"))
        silu = swiglu(torch.tensor([x, 1.0])).item()  # the gate of a value of 1
        lines.append(f"{x:5.0f} {gelu:7.4f}  {relu2:7.4f}  {silu:7.4f}")
    return lines


def gqa_figures():
    """GPT-2's cache and its attention layers with fewer key/value heads."""
    lines = ["GQA: 12 query heads, 12 layers, 1,024 tokens, cache in bfloat16"]
    lines.append("key/value heads  bytes of the cache   MiB  parameters of c_attn, each layer")
    for heads in (12, 4, 1):
        config = ModelConfig(n_kv_head=heads)
        like = torch.empty(0, dtype=torch.bfloat16, device="meta")
        cache = KVCache(config, 1, config.block_size, like)
        size = sum(t.numel() * t.element_size() for t in cache.keys + cache.values)
        params = num_params(CausalSelfAttention(config, 0).c_attn)
        lines.append(f"{heads:>15}  {size:>18,}  {size / 2**20:>4.0f}  {params:>31,}")
    rng = torch.Generator().manual_seed(0)
    q = torch.randn(1, 12, 5, 64, generator=rng)  # (B, nh, T, hs)
    k, v = torch.randn(2, 1, 4, 5, 64, generator=rng)  # (B, nkv, T, hs)
    copied = [x.repeat_interleave(3, dim=1) for x in (k, v)]  # query head h reads key head h // 3
    difference = (attention(q, k, v, None, 0) - attention(q, *copied, None, 0)).abs().max()
    lines.append(f"4 key heads, or 3 copies of each: largest difference {difference:.3f}")
    return lines


def qk_norm_figures():
    rng = torch.Generator().manual_seed(0)
    q = torch.randn(1, 64, generator=rng)
    k = torch.randn(8, 64, generator=rng)
    norm = make_norm(ModelConfig(norm="rmsnorm"), 64)
    lines = ["QK norm: one query, 8 keys, head size 64"]
    lines.append("                            largest score  largest attention weight")
    for name, normalize in (("as they are", identity), ("with QK norm", norm)):
        for scale in (1, 10):
            scores = normalize(scale * q) @ normalize(scale * k).T / 64**0.5  # (1, 8)
            weight = scores.softmax(dim=-1).max()
            label = f"{name}, {scale:>2} times as long"
            lines.append(f"{label:<30}  {scores.abs().max():9.3f}  {weight:24.3f}")
    lines.append(f"no score with QK norm exceeds the square root of 64, {64**0.5:.0f}")
    return lines


def meta_gpt2():
    """GPT-2 124M in shapes without numbers: enough to count what it would compute."""
    with torch.device("meta"):
        return GPT(ModelConfig(vocab_size=50257)).eval()


def multiply_adds(model, n, cached):
    """Multiply-adds of the matrix products that give the logits after token n."""
    idx = torch.zeros(1, n, dtype=torch.long, device="meta")
    decoder = Decoder(model, 1, n)
    if cached and n > 1:
        decoder.prefill(list(idx[:, :-1]))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        if cached:
            decoder.step(idx[:, -1:])
        else:
            model(idx)
    return counter.get_total_flops() // 2  # a multiply-add is two operations


def cache_figures():
    lines = ["KV cache: multiply-adds for the logits after token n, GPT-2 124M"]
    lines.append("    n  without a cache  with the cache  ratio")
    model = meta_gpt2()
    for n in (1, 10, 100, 1000):
        without = multiply_adds(model, n, cached=False)
        cached = multiply_adds(model, n, cached=True)
        lines.append(f"{n:>5,}  {without:>15,}  {cached:>14,}  {without / cached:5.1f}")
    return lines


def greedy_figures():
    """Greedy text from GPT.generate, which has no cache, and through the cache."""
    model, tokenizer, _ = load_for_inference(str(RUN))
    prompt = tokenizer.encode_prompt("A moça ").tolist()
    num_new = 100
    plain = model.generate(torch.tensor([prompt]), num_new, top_k=1)[0, len(prompt) :].tolist()
    decoder = Decoder(model, 1, len(prompt) + num_new)
    greedy = SamplingParams(temperature=0)
    tokens = generate_tokens(decoder, [prompt], num_new, tokenizer.vocab_size, greedy)
    cached = torch.cat(list(tokens)).tolist()
    inside = model.config.block_size - len(prompt)  # new tokens until the context is full
    verdict = "equal" if plain[:inside] == cached[:inside] else "different"
    same = sum(takewhile(bool, map(int.__eq__, plain, cached)))
    return [
        "KV cache: greedy text after 'A moça ', docs/data/out-gptlab-10000, context of 32",
        f"the first {inside} new tokens, which fill the context: {verdict}",
        f"without a cache: {decode(tokenizer, plain[:inside])}",
        f"with the cache:  {decode(tokenizer, cached[:inside])}",
        f"of {num_new} new tokens the first {same} are equal; from there on the windows differ:",
        f"without a cache: {decode(tokenizer, plain[same - 8 : same + 17])}",
        f"with the cache:  {decode(tokenizer, cached[same - 8 : same + 17])}",
    ]


def logit_changes(n_layer, block_size=64):
    """The largest change of a logit if the token d before the newest is another, for each d.

    Decodes token by token through the cache's ring, in float64, with random weights: a batch in
    which row d has another token at distance d, and the last row has none.
    """
    torch.manual_seed(0)
    shape = {"n_layer": n_layer, "n_head": 2, "n_embd": 16, "vocab_size": 65}
    model = GPT(ModelConfig(block_size=block_size, position="rope", **shape)).double().eval()
    for p in model.parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=0.3)  # large, so that no influence drowns in rounding
    num_tokens = n_layer * block_size + 2
    rows = torch.randint(65, (num_tokens,)).repeat(num_tokens + 1, 1)
    distances = torch.arange(num_tokens)
    rows[distances, -1 - distances] += 1
    rows %= 65
    decoder = Decoder(model, len(rows), block_size)
    for idx in rows.T:
        logits = decoder.step(idx[:, None])
    return (logits[:-1, 0] - logits[-1, 0]).abs().amax(dim=-1)


def reach_figures():
    lines = ["Reach: a RoPE model with block_size 64 decodes through its cache"]
    lines.append("layers  tokens that change a logit  the farthest")
    for n_layer in (1, 2, 3, 4):
        reached = (logit_changes(n_layer) > ROUNDING).nonzero()  # their distances
        lines.append(f"{n_layer:>6}  {len(reached):>26}  {reached.max():>4} before the newest")
    return lines


def figures():
    parts = (
        rope_figures,
        norm_figures,
        mlp_figures,
        gqa_figures,
        qk_norm_figures,
        cache_figures,
        greedy_figures,
        reach_figures,
    )
    return "\n\n".join("\n".join(part()) for part in parts) + "\n"


# Pictures, in English and in Portuguese

LANGUAGES = ("en", "pt")
NEW = {"fc": BLUE, "ec": BLUE}
KEPT = {"fc": "#c6e2f3", "ec": BLUE}
NOT_NEEDED = {"fc": "white", "ec": GREY, "lw": 0.5}
TEXT = {
    "rope": (
        "RoPE: query and key turn with their positions; q·k depends on the distance alone",
        "RoPE: consulta e chave giram com a posição; q·k só depende da distância",
    ),
    "pair": ("channels {} and {}:\n{}° a token", "canais {} e {}:\n{}° por token"),
    "q": ("query at position {}", "consulta na posição {}"),
    "k": ("key at position {}", "chave na posição {}"),
    "distance": (
        "distance: the query's position minus the key's",
        "distância: a posição da consulta menos a da chave",
    ),
    "cache": (
        "The KV cache: a new token computes one row, not the whole triangle",
        "O KV cache: um token novo calcula uma linha, e não o triângulo inteiro",
    ),
    "without": ("token 8 without a cache", "token 8 sem o cache"),
    "with": ("token 8 with the cache", "token 8 com o cache"),
    "point": (".", ","),
    "new": ("computed now", "calculado agora"),
    "kept": ("read from the cache", "lido do cache"),
    "not_needed": ("not needed", "desnecessário"),
    "kv": ("key, value", "chave, valor"),
    "scores": ("query · key", "consulta · chave"),
    "looks": ("position of the query", "posição da consulta"),
    "looked": ("position of the key", "posição da chave"),
    "n": ("token number", "número do token"),
    "cost": ("GPT-2 124M: billions of multiply-adds", "GPT-2 124M: bilhões de multiply-adds"),
    "curve_without": ("without a cache", "sem o cache"),
    "curve_with": ("with the cache", "com o cache"),
    "mlp": (
        "Activations: GELU and ReLU² bend a channel; in SwiGLU one channel scales another",
        "Ativações: GELU e ReLU² curvam um canal; na SwiGLU, um canal multiplica o outro",
    ),
    "x": ("channel before the activation", "canal antes da ativação"),
    "y": ("channel after it", "canal depois dela"),
    "gate": ("gate", "porta (gate)"),
    "value": ("value {}", "valor {}"),
    "product": ("silu(gate) · value", "silu(porta) · valor"),
}


def texts(language):
    return {name: pair[LANGUAGES.index(language)] for name, pair in TEXT.items()}


def draw_rope(path, text):
    """Above, each pair of channels as an arrow; below, the dot product by distance."""
    half = len(QUERY) // 2
    with saved_figure(path, 9, 6.8) as figure:
        above, below = figure.subfigures(2, 1)
        figure.suptitle(text["rope"], fontsize=13)
        for pair, ax in enumerate(above.subplots(1, half)):
            draw_arrows(ax, [pair, pair + half], text)
            degrees = f"{math.degrees(ROPE.rope_base ** (-pair / half)):.2g}"
            degrees = degrees.replace(".", text["point"])
            ax.set_title(text["pair"].format(pair, pair + half, degrees))
        above.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4)

        ax = below.subplots()
        distances = range(41)
        for position, style, color in ((0, "-", GREY), (10, "o", GREEN), (100, "+", PURPLE)):
            key = rotated(KEY, position)
            products = [(rotated(QUERY, position + d) @ key).item() for d in distances]
            label = text["k"].format(position)
            ax.plot(distances, products, style, color=color, mfc="none", label=label)
        ax.set(xlabel=text["distance"], ylabel="q·k")
        ax.grid(True)
        ax.legend()


def draw_arrows(ax, channels, text):
    """One channel pair of the query and the key, at positions 3 and 1 and 10 further on."""
    for vector, color, name, first in ((QUERY, BLUE, "q", 3), (KEY, ORANGE, "k", 1)):
        for position, style in ((first, "solid"), (first + 10, "dotted")):
            x, y = rotated(vector, position)[channels].tolist()
            line = {"color": color, "ls": style, "lw": 2}
            ax.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "->", "shrinkA": 0, **line})
            ax.plot([], [], label=text[name].format(position), **line)
    ax.axhline(0, color=GREY, lw=0.5)
    ax.axvline(0, color=GREY, lw=0.5)
    ax.set(xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), aspect="equal")
    ax.set_axis_off()


def draw_kv_cache(path, text):
    """What token 8 computes, without and with the cache, and the multiply-adds of token n."""
    with saved_figure(path, 10, 4.6) as figure:
        figure.suptitle(text["cache"], fontsize=13)
        axes = figure.subplots(1, 3, width_ratios=(1, 1, 1.1))
        draw_work(axes[0], text, text["without"], cached=False)
        draw_work(axes[1], text, text["with"], cached=True)
        patches = [Rectangle((0, 0), 1, 1, **style) for style in (NEW, KEPT, NOT_NEEDED)]
        names = [text["new"], text["kept"], text["not_needed"]]
        figure.legend(patches, names, loc="outside lower center", ncols=3)

        model = meta_gpt2()
        numbers = [2**power for power in range(11)]
        for cached, name, color in ((False, "curve_without", ORANGE), (True, "curve_with", BLUE)):
            billions = [multiply_adds(model, n, cached) / 1e9 for n in numbers]
            axes[2].loglog(numbers, billions, "o-", color=color, label=text[name])
        axes[2].set(xlabel=text["n"], title=text["cost"])
        axes[2].set_xticks([1, 10, 100, 1000], [1, 10, 100, 1000])
        axes[2].set_yticks([0.1, 1, 10, 100], [f"0{text['point']}1", 1, 10, 100])
        axes[2].grid(True)
        axes[2].legend()


def draw_work(ax, text, title, cached, n=8):
    """A row of keys and values above a triangle of scores; blue is computed for token n."""
    for j in range(n):
        is_new = j == n - 1 or not cached
        ax.add_patch(Rectangle((j, -2), 0.9, 0.9, **(NEW if is_new else KEPT)))
        for i in range(j, n):
            is_new = i == n - 1 or not cached
            ax.add_patch(Rectangle((j, i), 0.9, 0.9, **(NEW if is_new else NOT_NEEDED)))
    ax.text(n / 2, -2.2, text["kv"], ha="center")
    ax.text(n / 2 + 0.5, 0.8, text["scores"], ha="left")
    ticks = [i + 0.45 for i in range(n)]
    ax.set_xticks(ticks, range(1, n + 1))
    ax.set_yticks(ticks, range(1, n + 1))
    ax.set(xlim=(-0.2, n), ylim=(n, -3), aspect="equal", title=title)
    ax.set(xlabel=text["looked"], ylabel=text["looks"])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def draw_activations(path, text):
    x = torch.linspace(-3, 3, 121)
    with saved_figure(path, 9, 4) as figure:
        figure.suptitle(text["mlp"], fontsize=13)
        left, right = figure.subplots(1, 2)
        for name, label, color in (("gelu", "GELU", BLUE), ("relu2", "ReLU²", ORANGE)):
            left.plot(x, ACTIVATIONS[name](x), color=color, lw=2, label=label)
        left.set(xlabel=text["x"], ylabel=text["y"], ylim=(-1, 4))
        for value, color in ((2.0, PURPLE), (1.0, GREEN), (0.0, GREY), (-1.0, BLACK)):
            gated = swiglu(torch.stack([x, torch.full_like(x, value)], dim=-1))  # (121, 1)
            label = text["value"].format(f"{value:.0f}").replace("-", "−")
            right.plot(x, gated[:, 0], color=color, lw=2, label=label)
        right.set(xlabel=text["gate"], ylabel=text["product"], ylim=(-3.5, 6.5))
        for ax in (left, right):
            ax.grid(True)
            ax.legend()


PICTURES = {"rope.png": draw_rope, "kv_cache.png": draw_kv_cache, "mlp.png": draw_activations}


def main():
    text = figures()
    FIGURES.parent.mkdir(exist_ok=True)
    FIGURES.write_text(text, encoding="utf-8")
    print(text, end="")
    for language, folder in IMAGES.items():
        folder.mkdir(exist_ok=True)
        for name, draw in PICTURES.items():
            draw(folder / name, texts(language))


if __name__ == "__main__":
    main()
