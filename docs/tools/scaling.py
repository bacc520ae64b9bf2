"""Predict before you train: fit a scaling law to small models, test it on one ten times larger.

    python docs/tools/scaling.py                       print and draw what docs/data/scaling has
    python docs/tools/scaling.py --folder=out-scaling  all of it again, on your machine

In this order: try learning rates (rates.jsonl), train each model of SIZES on each amount of text of
TOKENS (runs.jsonl), fit L(N, D) to their losses, write the loss that it predicts for the LARGE
model (prediction.json), and only then train that model (large.json). A model that has its line is
not trained again, so the tool may be stopped at any time. No prediction is written once large.json
is there. It needs the data set: python prepare.py machado_char
"""

import argparse
import hashlib
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from model import GPT, ModelConfig  # noqa: E402
from seugpt.cli.command import command  # noqa: E402
from seugpt.data.dataset import Dataset  # noqa: E402
from seugpt.data.dataset_dir import dataset_path  # noqa: E402
from seugpt.errors import UserError  # noqa: E402
from seugpt.files import atomic_write  # noqa: E402
from seugpt.plots.language import Language  # noqa: E402
from seugpt.plots.style import BLACK, BLUE, GREEN, GREY, ORANGE, RED, saved_figure  # noqa: E402
from seugpt.training.logger import RunLogger  # noqa: E402
from train import TrainConfig, Trainer  # noqa: E402

FOLDER = ROOT / "docs" / "data" / "scaling"
FIGURES = ROOT / "docs" / "data" / "lessons" / "scaling.txt"
IMAGES = {"en": ROOT / "docs" / "images", "pt": ROOT / "docs" / "images" / "pt"}
DATASET = "machado_char"
BLOCK_SIZE = 128
BATCH_SIZE = 8
SIZES = (  # n_layer, n_head, n_embd: depth grows with width, as in GPT-2's family
    (3, 1, 16),
    (3, 1, 24),
    (4, 2, 32),
    (4, 2, 48),
    (5, 2, 64),
    (5, 3, 96),
    (6, 4, 128),
    (7, 6, 192),
)
LARGE = (10, 16, 512)
TOKENS = (153_600, 512_000, 1_536_000)  # the last is 99% of the training text
MODEL = {  # config/fast_shakespeare_char_cpu.py
    "position": "rope",
    "mlp": "relu2",
    "qk_norm": True,
    "tie_embeddings": False,
    "embedding_std": 0.3,
}
OPTIONS = {  # the same for every size
    "optimizer": "muon",
    "muon_lr": 0.01,
    "learning_rate": 1e-2,
    "min_lr": 0.0,
    "weight_decay": 0.0,
    "grad_clip": 0.0,
}
RATE_SIZES = ((4, 2, 32), (6, 4, 128))  # OPTIONS' muon_lr is the best of these for both
RATE_CHANGES = ({"muon_lr": 0.005}, {}, {"muon_lr": 0.02}, {"seed": 1})


# Training


class OnePass(Dataset):
    """The training text cut into windows, which come in random order, each of them once."""

    def batch(self, split, index, batch_size, block_size, seed):
        """As Dataset.batch. A shorter run sees the first batches of a longer one."""
        ids = self.ids[split]
        num_windows = (len(ids) - 1) // block_size
        order = np.random.default_rng(seed).permutation(num_windows)
        rows = order[index * batch_size : (index + 1) * batch_size]
        if len(rows) < batch_size:
            raise UserError(f"{self.path} has {num_windows:,} windows, too few for one pass")
        windows = ids.windows((rows * block_size).tolist(), block_size + 1)
        return windows[:, :-1].astype(np.int64), windows[:, 1:].astype(np.int64)


def model_config(size, vocab_size):
    n_layer, n_head, n_embd = size
    shape = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd}
    return ModelConfig(vocab_size=vocab_size, block_size=BLOCK_SIZE, **shape, **MODEL)


def train_config(tokens, options):
    """One pass over `tokens` tokens: the schedule ends where they end, as Chinchilla asks for."""
    steps = tokens // (BATCH_SIZE * BLOCK_SIZE)
    return TrainConfig(
        device="cpu",
        batch_size=BATCH_SIZE,
        gradient_accumulation_steps=1,
        max_iters=steps,
        warmup_iters=steps // 30,
        lr_decay_iters=steps,
        cooldown_iters=steps * 3 // 5,
        log_interval=steps,
        eval_iters=0,  # the whole validation split
        **options,
    )


def train_one(size, tokens, dataset, options):
    """Train a GPT, evaluate it, and return what runs.jsonl keeps of it."""
    config = train_config(tokens, options)
    torch.manual_seed(config.seed)
    model = GPT(model_config(size, dataset.tokenizer.vocab_size))
    start = time.process_time()
    trainer = Trainer(model, config, dataset, RunLogger(config, quiet=True))
    for _ in range(config.max_iters):
        trainer.train_step()
    seconds = time.process_time() - start
    model.eval()
    return {
        "size": size,
        "parameters": model.num_params(),
        "tokens": config.max_iters * config.tokens_per_step(BLOCK_SIZE),
        "loss": round(trainer.mean_loss(model, "val"), 5),
        "cpu_seconds": round(seconds, 1),
        "options": options,
        "dtype": str(trainer.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "commit": git_commit(),
    }


def git_commit():
    words = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


# The law


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^a + B / D^b, in nats per token (Chinchilla, 2203.15556, equation 2)."""

    E: float
    A: float
    a: float
    B: float
    b: float

    def terms(self, N, D):
        """What is left however large model and text are, what the size costs, what the text."""
        return self.E, self.A / N**self.a, self.B / D**self.b

    def __call__(self, N, D):
        return sum(self.terms(N, D))


def fit_law(N, D, loss):
    """The Law with the least squared error of log loss; N, D and loss are arrays (n,).

    As in Chinchilla, the unknowns are the logarithms of E, A and B, which keeps them positive, and
    the search starts from several places, since it may end in a valley that is not the lowest.
    """
    N, D, loss = (np.asarray(values, dtype=float) for values in (N, D, loss))
    fits = []
    for E, a, b in product((0.3, 0.6, 0.9), (0.2, 0.5, 1.0), (0.2, 0.5, 1.0)):
        E = E * loss.min()
        rest = (loss.max() - E) / 2  # shared by the smallest model and the shortest text
        log_A = np.log(rest) + a * np.log(N.min())
        log_B = np.log(rest) + b * np.log(D.min())
        start = np.array([np.log(E), log_A, a, log_B, b])
        fits.append(least_squares(start, np.log(N), np.log(D), np.log(loss)))
    theta, _ = min(fits, key=lambda fit: fit[1])
    log_E, log_A, a, log_B, b = theta.tolist()
    return Law(np.exp(log_E).item(), np.exp(log_A).item(), a, np.exp(log_B).item(), b)


def log_law(theta, log_N, log_D):
    """log L (n,) and its derivatives (n, 5) with respect to theta = (log E, log A, a, log B, b)."""
    log_E, log_A, a, log_B, b = theta
    log_terms = np.stack([log_E + 0 * log_N, log_A - a * log_N, log_B - b * log_D])  # (3, n)
    log_L = np.logaddexp.reduce(log_terms)
    E, A, B = np.exp(log_terms - log_L)  # the three terms as fractions of L
    return log_L, np.stack([E, A, -A * log_N, B, -B * log_D], axis=1)


def least_squares(theta, log_N, log_D, log_loss, max_steps=500):
    """Levenberg and Marquardt's method: Gauss-Newton steps, damped wherever they overshoot.

    Returns theta and its sum of squared errors.
    """
    damping = 1e-2
    log_L, J = log_law(theta, log_N, log_D)
    cost = np.sum((log_loss - log_L) ** 2)
    for _ in range(max_steps):
        JTJ = J.T @ J
        step = np.linalg.solve(
            JTJ + damping * np.diag(JTJ.diagonal() + 1e-12), J.T @ (log_loss - log_L)
        )
        new_log_L, new_J = log_law(theta + step, log_N, log_D)
        new_cost = np.sum((log_loss - new_log_L) ** 2)
        if new_cost > cost or not np.isfinite(new_cost):
            damping *= 4
            if damping > 1e12:
                break
            continue
        converged = cost - new_cost <= 1e-14 * cost
        theta, log_L, J, cost = theta + step, new_log_L, new_J, new_cost
        damping = max(damping / 4, 1e-12)
        if converged:
            break
    return theta, cost


def columns(runs):
    """N, D and loss, float arrays (n,)."""
    return np.array([(run["parameters"], run["tokens"], run["loss"]) for run in runs], float).T


def rms_error(law, runs):
    """The root mean square of the errors of log loss: about the typical error as a fraction."""
    N, D, loss = columns(runs)
    return np.sqrt(np.mean(np.log(law(N, D) / loss) ** 2)).item()


def predict(runs, N, D):
    """What prediction.json says, from the runs alone.

    "range": the lowest and highest prediction of fits that leave one size of model out.
    """
    law = fit_law(*columns(runs))
    sizes = sorted({run["parameters"] for run in runs})
    others = [[run for run in runs if run["parameters"] != size] for size in sizes]
    predictions = [fit_law(*columns(kept))(N, D) for kept in others]
    return {
        "parameters": N,
        "tokens": D,
        "loss": round(law(N, D), 5),
        "range": [round(min(predictions), 5), round(max(predictions), 5)],
        "rms_error": round(rms_error(law, runs), 6),
        "law": {name: float(f"{value:.6g}") for name, value in asdict(law).items()},
    }


# The experiment, in order


def rate_jobs():
    return [
        (size, TOKENS[1], OPTIONS | changes) for size, changes in product(RATE_SIZES, RATE_CHANGES)
    ]


def small_jobs():
    return [(size, tokens, OPTIONS) for tokens, size in product(TOKENS, SIZES)]


def train_missing(path, jobs, max_models):
    """Train the jobs that have no line in `path`, at most max_models of them, and add theirs.

    Returns all lines, and how many more models may be trained: -n if n are missing now.
    """
    lines = read_lines(path)
    missing = [job for job in jobs if not any(is_result(line, job) for line in lines)]
    now = missing[: max(max_models, 0)]
    dataset = open_dataset() if now else None
    for size, tokens, options in now:
        line = train_one(size, tokens, dataset, options)
        announce(line)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        lines.append(line)
    return lines, max_models - len(missing)


def read_lines(path):
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def is_result(line, job):
    size, tokens, options = job
    return (line["size"], line["tokens"], line["options"]) == (list(size), tokens, options)


def open_dataset():
    return OnePass(dataset_path(DATASET))


def announce(run):
    N, D, loss, seconds = (run[key] for key in ("parameters", "tokens", "loss", "cpu_seconds"))
    print(f"{N:,} parameters, {D:,} tokens: loss {loss:.4f}, {seconds:.0f} CPU s", flush=True)


def write_prediction(folder, runs):
    """Write prediction.json, unless the answer is known. Returns its content. Raises UserError."""
    path = folder / "prediction.json"
    checksum = hashlib.sha256(json.dumps(runs).encode()).hexdigest()
    if path.exists():
        prediction = read_json(path)
        if prediction["runs_sha256"] != checksum:
            raise UserError(f"{folder / 'runs.jsonl'} is not what {path} was written from")
        return prediction
    if (folder / "large.json").exists():
        raise UserError(
            f"{folder / 'large.json'} is there: what is written now would be no prediction. "
            "Begin again in another folder: --folder=out-scaling"
        )
    N = GPT(model_config(LARGE, open_dataset().tokenizer.vocab_size)).num_params()
    prediction = predict(runs, N, TOKENS[-1])
    prediction |= {"runs_sha256": checksum, "commit": git_commit()}
    write_json(path, prediction)
    print(f"wrote {path}: loss {prediction['loss']:.4f}", flush=True)
    return prediction


def train_large(folder):
    run = train_one(LARGE, TOKENS[-1], open_dataset(), OPTIONS)
    announce(run)
    write_json(folder / "large.json", run)


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path, content):
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


# What the page quotes


def report(rates, runs, prediction, large):
    """The figures of the lesson, as text."""
    law = Law(**prediction["law"])
    N, D = prediction["parameters"], prediction["tokens"]
    lines = [*table_of_rates(rates), "", *table_of_runs(runs, law), ""]
    lines.append(f"E {law.E:.3f}, A {law.A:.3f}, a {law.a:.3f}, B {law.B:.1f}, b {law.b:.3f}")
    lines.append(f"error of the fit (root mean square): {prediction['rms_error']:.2%}")
    lines += ["", *table_of_terms(runs, law, N), ""]
    low, high = prediction["range"]
    lines.append(f"{N:,} parameters, {D:,} tokens")
    lines.append(f"predicted  {prediction['loss']:.4f}   ({low:.4f} to {high:.4f}, see below)")
    if large:
        miss = large["loss"] - prediction["loss"]
        lines.append(f"reached    {large['loss']:.4f}   in {large['cpu_seconds']:,.0f} CPU seconds")
        lines.append(f"miss      {miss:+.4f}   {miss / prediction['loss']:+.2%}")
    return "\n".join(lines) + "\n"


def table_of_rates(rates):
    yield f"losses after {TOKENS[1]:,} tokens"
    for line in rates:
        options = line["options"]
        seed = options.get("seed", TrainConfig.seed)
        yield (
            f"{line['parameters']:>10,} parameters  muon_lr {options['muon_lr']:<5}  "
            f"seed {seed:<4}  {line['loss']:.4f}"
        )


def table_of_runs(runs, law):
    """Loss, in brackets the fit's, of each size (rows) and amount of text (columns)."""
    header = "parameters  L  C  " + "".join(f"{tokens:>9,} tokens  " for tokens in TOKENS)
    yield header + "CPU seconds"
    for size in SIZES:
        row = [run for run in runs if tuple(run["size"]) == size]
        N = row[0]["parameters"]
        cells = "".join(f"{r['loss']:.4f} ({law(N, r['tokens']):.4f})  " for r in row)
        seconds = sum(run["cpu_seconds"] for run in row)
        yield f"{N:>10,}  {size[0]}  {size[2]:>3}  {cells}{seconds:>11.0f}"
    total = sum(run["cpu_seconds"] for run in runs)
    yield f"all of them: {total:,.0f} CPU seconds"


def table_of_terms(runs, law, N_large):
    """The three terms of the law, of the smallest, the largest and the LARGE model."""
    sizes = [run["parameters"] for run in runs]
    yield "parameters       E  A/N^a  B/D^b    loss"
    for N in (min(sizes), max(sizes), N_large):
        E, size_term, text_term = law.terms(N, TOKENS[-1])
        loss = law(N, TOKENS[-1])
        yield f"{N:>10,}  {E:.3f}  {size_term:.3f}  {text_term:.3f}  {loss:.4f}"


WORDS = {
    "en": {
        "title": "The law, fitted up to {fitted}, predicts {predicted} at {large}",
        "miss": "the model reached {reached}",
        "parameters": "parameters, N",
        "loss": "validation loss (nats per character)",
        "tokens": "{tokens} tokens",
        "predicted": "predicted",
        "reached": "reached",
        "terms": "What is left to gain",
        "E": "E: not learnable",
        "size_term": "A/Nᵃ: size",
        "text_term": "B/Dᵇ: text",
        "thousand": "K",
        "million": "M",
    },
    "pt": {
        "title": "A lei, ajustada até {fitted}, prevê {predicted} para {large}",
        "miss": "o modelo chegou a {reached}",
        "parameters": "parâmetros, N",
        "loss": "perda de validação (nats por caractere)",
        "tokens": "{tokens} tokens",
        "predicted": "prevista",
        "reached": "alcançada",
        "terms": "O que resta a ganhar",
        "E": "E: fora de alcance",
        "size_term": "A/Nᵃ: tamanho",
        "text_term": "B/Dᵇ: texto",
        "thousand": " mil",
        "million": " mi",
    },
}


def short(count, language):
    """13,104 as 13K, 3,139,008 as 3.1M."""
    if count < 999_500:
        return f"{count / 1000:.0f}{WORDS[language]['thousand']}"
    digits = 1 if count < 9_950_000 else 0
    return Language(language).number(f"{count / 1e6:,.{digits}f}") + WORDS[language]["million"]


def draw(path, language, runs, prediction, large):
    words = WORDS[language]
    law = Law(**prediction["law"])
    N_large = prediction["parameters"]
    N_fitted = max(run["parameters"] for run in runs)
    with saved_figure(path, 9, 4.6) as figure:
        left, right = figure.subplots(1, 2, width_ratios=[2.2, 1])
        N = np.geomspace(min(run["parameters"] for run in runs), 1.3 * N_large, 200)
        inside = N_fitted >= N
        for tokens, color, marker in zip(TOKENS, (ORANGE, GREEN, BLUE), "s^o", strict=True):
            points = [run for run in runs if run["tokens"] == tokens]
            label = words["tokens"].format(tokens=Language(language).number(f"{tokens:,.0f}"))
            left.plot(N[inside], law(N[inside], tokens), color=color)
            left.plot(N[~inside], law(N[~inside], tokens), "--", color=color)
            sizes = [run["parameters"] for run in points]
            left.plot(sizes, [run["loss"] for run in points], marker, color=color, label=label)
        predicted = prediction["loss"]
        left.plot(N_large, predicted, "o", ms=13, mfc="none", mec=BLACK, label=words["predicted"])
        if large:
            left.plot(N_large, large["loss"], "*", ms=13, color=RED, label=words["reached"])
        draw_terms(right, language, law, (min(r["parameters"] for r in runs), N_fitted, N_large))
        left.set(xscale="log", xlabel=words["parameters"], ylabel=words["loss"])
        left.xaxis.set_major_formatter(lambda count, _: short(count, language))
        left.yaxis.set_major_formatter(lambda loss, _: Language(language).number(f"{loss:,.1f}"))
        left.grid(alpha=0.3)
        left.legend(frameon=False)
        title = words["title"].format(
            fitted=short(N_fitted, language),
            predicted=Language(language).number(f"{predicted:,.3f}"),
            large=short(N_large, language),
        )
        if large:
            reached = Language(language).number(f"{large['loss']:,.3f}")
            title += "; " + words["miss"].format(reached=reached)
        figure.suptitle(title)


def draw_terms(axes, language, law, sizes):
    """A stacked bar of the law's three terms for each size, on all of the text."""
    words = WORDS[language]
    bottom = np.zeros(len(sizes))
    terms = np.array([law.terms(N, TOKENS[-1]) for N in sizes]).T  # (3, sizes)
    names = ("E", "text_term", "size_term")
    for heights, name, color in zip(terms[[0, 2, 1]], names, (GREY, BLUE, ORANGE), strict=True):
        axes.bar(range(len(sizes)), heights, bottom=bottom, color=color, label=words[name])
        bottom += heights
    axes.set_xticks(range(len(sizes)), [short(N, language) for N in sizes])
    axes.yaxis.set_major_formatter(lambda loss, _: Language(language).number(f"{loss:,.1f}"))
    axes.set(title=words["terms"], xlabel=words["parameters"], ylim=(0, 1.35 * bottom.max()))
    axes.legend(frameon=False, reverse=True)


def publish(folder, rates, runs, prediction):
    """Print the figures; write and draw them, for the page if they are those of the page."""
    path = folder / "large.json"
    large = read_json(path) if path.exists() else None
    text = report(rates, runs, prediction, large)
    print(text, end="")
    of_page = folder.resolve() == FOLDER
    figures = FIGURES if of_page else folder / FIGURES.name
    figures.write_text(text, encoding="utf-8")
    for language, images in IMAGES.items():
        images = images if of_page else folder / language
        images.mkdir(exist_ok=True)
        draw(images / "scaling.png", language, runs, prediction, large)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="for all results")
    parser.add_argument("--max_models", type=int, default=100, help="to train before stopping")
    args = parser.parse_args(argv)
    with command():
        folder = args.folder
        folder.mkdir(parents=True, exist_ok=True)
        rates, left = train_missing(folder / "rates.jsonl", rate_jobs(), args.max_models)
        runs, left = train_missing(folder / "runs.jsonl", small_jobs(), left)
        if left < 0:
            print(f"{-left} models are still missing; the same command continues")
            return
        prediction = write_prediction(folder, runs)
        if left and not (folder / "large.json").exists():
            train_large(folder)
        publish(folder, rates, runs, prediction)


if __name__ == "__main__":
    main()
