"""What the embeddings of page 2's model have learned about letters (page 5).

    python docs/tools/letters.py

data/machado_char must be prepared. If out-gptlab-untied has been trained as page 5 says, its two
matrices are compared as well.

Shapes: V tokens, C channels, n rows.
"""

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from seugpt.checkpoint import load_for_inference  # noqa: E402
from seugpt.data.dataset import Dataset  # noqa: E402
from seugpt.plots.embeddings import principal_components  # noqa: E402
from seugpt.training.snapshots import find_snapshots, load_embeddings  # noqa: E402

RUN = ROOT / "docs" / "data" / "out-gptlab-cpu"
UNTIED = ROOT / "out-gptlab-untied"
MIN_COUNT = 500  # rarer tokens say little about what follows them
LETTERS = "aeiousrMA7"


def nearest(table, chars, char, num=4):
    """The tokens whose rows (V, n) lie nearest to a token's."""
    distances = np.linalg.norm(table - table[chars.index(char)], axis=1)
    order = [i for i in distances.argsort() if chars[i] != char]
    return " ".join(repr(chars[i])[1:-1] for i in order[:num])


def project(table, directions, centre):
    return (table - centre) @ directions


def similarity(rows):
    """Cosine similarity of rows (n, C) after their mean is subtracted: the n (n - 1) / 2 pairs."""
    rows = rows - rows.mean(axis=0)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows @ rows.T)[np.triu_indices(len(rows), 1)]


def rank_correlation(a, b):
    """Spearman's: the correlation of the ranks."""
    return np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1]


def print_variance(name, table):
    variances = np.linalg.svd(table - table.mean(axis=0), compute_uv=False) ** 2
    shares = variances / variances.sum()
    print(f"{name:28} {shares[0]:.0%} + {shares[1]:.0%}, together {shares[:2].sum():.0%}")


def print_neighbours(table, chars):
    plane = project(table, principal_components(table), table.mean(axis=0))
    print("\nnearest tokens   in all 64 dimensions   in the PCA picture")
    for char in LETTERS:
        print(f"{char:17}{nearest(table, chars, char):23}{nearest(plane, chars, char)}")


def print_moves(tables, chars):
    """How far groups of tokens move; how alike their moves are; and where they go first."""
    first, second, last = tables[0], tables[1], tables[-1]
    directions = principal_components(last)
    centre = last.mean(axis=0)
    print("\n          distance moved   cosine of two moves   first component at 0, 100, 5,000")
    for name, group in {"vowels": "aeiou", "digits": "0123456789", "rare": "$Õ§+*"}.items():
        rows = [chars.index(char) for char in group]
        moves = last[rows] - first[rows]
        distance = np.linalg.norm(moves, axis=1).mean()
        units = moves / np.linalg.norm(moves, axis=1, keepdims=True)
        alike = (units @ units.T)[np.triu_indices(len(rows), 1)].mean()
        points = [project(table[rows], directions, centre) for table in (first, second, last)]
        places = "".join(f"{point[:, 0].mean():8.2f}" for point in points)
        print(f"{name:9}{distance:15.2f}{alike:22.2f}   {places}")


def bigram_counts(ids, V):
    """How often each token follows each: (V, V), the first index is the earlier one."""
    counts = np.zeros((V, V))
    np.add.at(counts, (ids[:-1], ids[1:]), 1)
    return counts


def print_correlations(matrices, counts):
    """Of how alike two vectors are, with how alike what follows and what precedes the tokens is."""
    common = np.flatnonzero(counts.sum(axis=1) >= MIN_COUNT)
    print(f"\nrank correlation over the pairs of {len(common)} tokens")
    print("matrix                       with what follows   with what precedes")
    rows = counts[common]
    columns = counts.T[common]
    follows = similarity(rows / rows.sum(axis=1, keepdims=True))
    precedes = similarity(columns / columns.sum(axis=1, keepdims=True))
    for name, table in matrices.items():
        alike = similarity(table[common])
        after, before = (rank_correlation(alike, each) for each in (follows, precedes))
        print(f"{name:28}{after:18.2f}{before:21.2f}")


def matrices_of(run):
    model, tokenizer, _ = load_for_inference(str(run))
    return tokenizer.chars, model.wte.weight.detach().numpy(), model.lm_head.weight.detach().numpy()


def main():
    chars, tied, _ = matrices_of(RUN)
    snapshots = [load_embeddings(path) for path in find_snapshots(RUN).values()]
    for of, name in (("wte", "tokens"), ("wpe", "positions")):
        print_variance(f"{name} before training", snapshots[0][of])
        print_variance(f"{name} after 5,000 steps", snapshots[-1][of])
    print_neighbours(tied, chars)
    print_moves([arrays["wte"] for arrays in snapshots], chars)
    matrices = {"tied": tied}
    if UNTIED.exists():
        _, wte, lm_head = matrices_of(UNTIED)
        matrices |= {"untied, input (wte)": wte, "untied, output (lm_head)": lm_head}
        for name, table in list(matrices.items())[1:]:
            print(f"nearest to m in {name}: {nearest(table, chars, 'm')}")
    dataset = Dataset(ROOT / "data" / "machado_char")
    ids = np.array(dataset.ids["train"][: dataset.tokens["train"]], dtype=np.int64)
    print_correlations(matrices, bigram_counts(ids, len(chars)))


if __name__ == "__main__":
    main()
