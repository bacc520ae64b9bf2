"""The figures and pictures of lesson 4: the training loop, line by line.

    python docs/tools/training_loop.py

Prints the figures, writes them to docs/data/lessons/training_loop.txt, and draws schedule.png and
one_line_missing.png in both languages. train.py's Trainer makes every step: a GPT of 5,088
parameters learns the first page of "A cartomante" (Machado de Assis, 1884).
"""

import contextlib
import io
import json
import math
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from model import GPT, ModelConfig  # noqa: E402
from prepare import PrepareConfig, prepare  # noqa: E402
from seugpt.checkpoint import load_checkpoint  # noqa: E402
from seugpt.cli.config_parser import parse_configs  # noqa: E402
from seugpt.data.dataset import Dataset  # noqa: E402
from seugpt.data.shard_preparation import ShardConfig  # noqa: E402
from seugpt.plots.language import Language  # noqa: E402
from seugpt.plots.style import BLACK, BLUE, GREEN, RED, char_label, saved_figure  # noqa: E402
from seugpt.training.logger import RunLogger  # noqa: E402
from seugpt.training.optimizer import make_optimizers  # noqa: E402
from seugpt.training.run_checkpoint import restore_run  # noqa: E402
from train import TrainConfig, Trainer, get_lr  # noqa: E402

DATA = ROOT / "docs" / "data"
FIGURES = DATA / "lessons" / "training_loop.txt"
TEXT = DATA / "cartomante.txt"
TOKENIZER_OF = DATA / "out-gptlab-cpu" / "best.pt"
IMAGES = ROOT / "docs" / "images"

MODEL = ModelConfig(vocab_size=115, block_size=8, n_layer=1, n_head=2, n_embd=16)
CONFIG = TrainConfig(
    device="cpu",
    dtype="float32",
    compile=False,
    threads=1,
    batch_size=4,
    gradient_accumulation_steps=1,
    learning_rate=3e-3,
    warmup_iters=10,
    max_iters=100,
    lr_decay_iters=100,
    min_lr=0.0,
    log_interval=1,
)
LETTER = "a"  # the lesson follows one weight, the first number of this letter's embedding
COOLDOWN_ITERS = 120_000  # a fifth of the steps of config/train_gpt2.py


class LossRecorder(RunLogger):
    """Keeps the loss of each step; prints and writes nothing."""

    def __init__(self, config):
        super().__init__(config, quiet=True)
        self.losses = []

    def step(self, step, loss, **values):
        self.losses.append(loss)


@contextlib.contextmanager
def open_dataset():
    """TEXT as prepare.py writes it, in a temporary folder, with the course's vocabulary."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        meta = Path(folder, "meta.json")
        spec = load_checkpoint(TOKENIZER_OF)["tokenizer"]
        meta.write_text(json.dumps({"tokenizer": spec}), encoding="utf-8")
        name = str(Path(folder, "cartomante"))
        with contextlib.redirect_stdout(io.StringIO()):
            prepare(PrepareConfig(name=name, input=str(TEXT), tokenizer=str(meta)), ShardConfig())
        yield Dataset(name)


def make_trainer(dataset, dropout=0.0, **changes):
    """A Trainer with an untrained model, the same one at each call; `changes` to CONFIG."""
    config = replace(CONFIG, **changes)
    torch.manual_seed(config.seed)
    model = GPT(replace(MODEL, dropout=dropout))
    return Trainer(model, config, dataset, LossRecorder(config))


def followed_row(dataset):
    """The row of LETTER in the embedding matrix."""
    return dataset.tokenizer.encode(LETTER).item()


# What a step consists of; each function yields the lines of one section


def batch_lines(dataset):
    tokenizer = dataset.tokenizer
    x, y = make_trainer(dataset).batch(0)
    yield f"{len(x)} rows of {x.shape[1]} tokens; row 0, characters and token ids:"
    yield "position" + "".join(f"{t:5}" for t in range(x.shape[1]))
    for name, ids in (("x", x[0].tolist()), ("y", y[0].tolist())):
        text = tokenizer.decode_bytes(ids).decode()
        yield f"{name:8}" + "".join(f"{char_label(char):>5}" for char in text)
        yield " " * 8 + "".join(f"{i:5}" for i in ids)


def loss_lines(dataset):
    trainer = make_trainer(dataset)
    x, y = trainer.batch(0)
    logits, loss = trainer.raw_model(x, y)
    target = y[0, 0].item()
    char = char_label(dataset.tokenizer.decode_bytes([target]).decode())
    p = logits[0, 0].softmax(dim=-1)[target].item()
    V = MODEL.vocab_size
    yield f"row 0, position 0: probability of {char} {p:.6f}, -ln {-math.log(p):.4f}"
    yield f"loss, the mean over {y.numel()} targets: {loss:.4f}; ln({V}) {math.log(V):.4f}"


def loss_in_float64(model, x, y):
    """The loss of a float64 model in eval mode; GPT.forward would compute it in float32."""
    logits, _ = model(x, y)  # (B, T, V)
    return F.cross_entropy(logits.flatten(0, 1), y.flatten())


def measure_slope(model, x, y, row, h):
    """(L(w + h), L(w - h), the slope between them) of w = wte.weight[row, 0]."""
    weight = model.wte.weight
    w = weight[row, 0].item()
    losses = []
    with torch.no_grad():
        for nudged in (w + h, w - h):
            weight[row, 0] = nudged
            losses.append(loss_in_float64(model, x, y).item())
        weight[row, 0] = w
    return *losses, (losses[0] - losses[1]) / (2 * h)


def gradient_lines(dataset):
    """The derivative of the loss by one weight: measured as a slope, and autograd's."""
    trainer = make_trainer(dataset)
    x, y = trainer.batch(0)
    model = trainer.raw_model.double().eval()
    loss_in_float64(model, x, y).backward()
    row = followed_row(dataset)
    w = model.wte.weight[row, 0]
    grad = model.wte.weight.grad[row, 0].item()
    yield f"w = wte.weight[{row}, 0], the first number of {LETTER}'s embedding: {w:.6f}"
    yield "h            L(w + h)      L(w - h)         slope"
    for h in (0.01, 0.001, 0.0001):
        *losses, slope = measure_slope(model, x, y, row, h)
        yield f"{h:<7}" + "".join(f"{value:14.8f}" for value in (*losses, slope))
    yield f"autograd{grad:41.8f}"
    assert math.isclose(slope, grad, rel_tol=1e-6)


def clipping_lines(dataset):
    vector = torch.nn.Parameter(torch.zeros(2))
    vector.grad = torch.tensor([3.0, 4.0])
    norm = torch.nn.utils.clip_grad_norm_([vector], max_norm=1.0).item()
    x, y = vector.grad.tolist()
    yield f"gradient (3, 4): norm {norm:.1f}; clipped to 1: ({x:.1f}, {y:.1f})"
    trainer = make_trainer(dataset)
    trainer.accumulate_gradients()
    before = trainer.clip_grad_norm().item()
    after = trainer.clip_grad_norm().item()
    yield f"the model's gradient: norm {before:.4f}; clipped to 1: norm {after:.1f}"


def adamw_by_hand(w, steps, lr, beta1, beta2, weight_decay, eps=1e-8):
    """AdamW (1711.05101, algorithm 2) on the loss w². Yields all quantities of each step."""
    m = 0.0
    v = 0.0
    for t in range(1, steps + 1):
        g = 2 * w  # the derivative of w²
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat = m / (1 - beta1**t)
        v_hat = v / (1 - beta2**t)
        ratio = m_hat / (math.sqrt(v_hat) + eps)
        decayed = (1 - lr * weight_decay) * w
        w = decayed - lr * ratio
        yield g, m, v, m_hat, v_hat, ratio, decayed, w


def torch_by_step(optimizer_class, w, steps, **options):
    """The values of w after each step of an optimizer of torch on the loss w²."""
    w = torch.nn.Parameter(torch.tensor(w, dtype=torch.float64))
    optimizer = optimizer_class([w], **options)
    for _ in range(steps):
        optimizer.zero_grad()
        (w**2).backward()
        optimizer.step()
        yield w.item()


def adamw_lines(dataset):
    """Every number of AdamW's formula on one scalar; torch's optimizer agrees."""
    options = {"lr": 0.1, "betas": (0.9, 0.95), "weight_decay": 0.1}
    reference = torch_by_step(torch.optim.AdamW, 1.5, 4, **options)
    yield "loss w², w = 1.5; lr 0.1, beta1 0.9, beta2 0.95, weight_decay 0.1"
    names = ("g", "m", "v", "m_hat", "v_hat", "ratio", "decayed", "w", "torch's w")
    yield "step" + "".join(f"{name:>10}" for name in names)
    by_hand = adamw_by_hand(1.5, 4, 0.1, 0.9, 0.95, 0.1)
    for t, (values, torch_w) in enumerate(zip(by_hand, reference, strict=True), start=1):
        assert abs(values[-1] - torch_w) < 1e-6
        yield f"{t:4}" + "".join(f"{value:10.6f}" for value in (*values, torch_w))
    _, m, v, *_ = next(adamw_by_hand(1.5, 1, 0.1, 0.9, 0.999, 0.1))
    yield (
        "step 1 with beta2 0.999, without bias correction: "
        f"{m:.4f} / sqrt({v:.4f}) = {m / math.sqrt(v):.4f}"
    )


def weight_decay_lines(dataset):
    """Decay of the weight itself, and decay as a part of the gradient (L2)."""
    yield "w after step                   1         2         3         4"
    for name, optimizer, weight_decay in (
        ("AdamW, weight_decay 0.1", torch.optim.AdamW, 0.1),
        ("Adam, 0.1 w added to g", torch.optim.Adam, 0.1),
        ("Adam, no weight decay", torch.optim.Adam, 0.0),
    ):
        options = {"lr": 0.1, "betas": (0.9, 0.95), "weight_decay": weight_decay}
        values = torch_by_step(optimizer, 1.5, 4, **options)
        yield f"{name:24}" + "".join(f"{value:10.6f}" for value in values)


def gpt2_config(**changes):
    """The TrainConfig of config/train_gpt2.py."""
    path = str(ROOT / "config" / "train_gpt2.py")
    _, config = parse_configs([path], ModelConfig, TrainConfig, description="")
    return replace(config, **changes)


def schedule_lines(dataset):
    cosine = gpt2_config()
    cooldown = gpt2_config(cooldown_iters=COOLDOWN_ITERS)
    yield f"   step   cosine  cooldown_iters={COOLDOWN_ITERS}"
    for step in (0, 999, 1999, 2000, 151_500, 301_000, 480_000, 540_000, 600_000):
        yield f"{step:7,} {get_lr(step, cosine):8.2e} {get_lr(step, cooldown):8.2e}"


def accumulation_lines(dataset):
    """Two micro-batches of 2 rows, and all 4 rows as one batch."""
    row = followed_row(dataset)
    trainer = make_trainer(dataset, batch_size=2, gradient_accumulation_steps=2)
    model = trainer.raw_model

    def line(name, loss):
        return f"{name:15} loss {loss:.6f}, gradient of w {model.wte.weight.grad[row, 0]:9.6f}"

    halves = [trainer.batch(0), trainer.batch(1)]
    for name, (x, y) in zip(("first half", "second half"), halves, strict=True):
        loss = model(x, y)[1]
        loss.backward()
        yield line(name, loss)
        model.zero_grad()
    loss = trainer.accumulate_gradients()
    yield line("accumulated", loss)
    accumulated = [p.grad for p in model.parameters()]
    model.zero_grad()
    x, y = (torch.cat(rows) for rows in zip(*halves, strict=True))  # (4, T)
    loss = model(x, y)[1]
    loss.backward()
    yield line("all four rows", loss)
    for p, grad in zip(model.parameters(), accumulated, strict=True):
        torch.testing.assert_close(p.grad, grad)
    yield f"all {model.num_params():,} gradients agree"


def step_lines(dataset):
    """The first step of train.py on the same weight: all lines together."""
    row = followed_row(dataset)
    trainer = make_trainer(dataset)
    parameters = list(trainer.raw_model.parameters())
    before = [p.detach().clone() for p in parameters]
    trainer.train_step()
    lr = get_lr(0, trainer.config)
    change = [(p - old).detach() for p, old in zip(parameters, before, strict=True)]
    old_w = before[0][row, 0]
    new_w = parameters[0][row, 0]
    yield f"lr {lr:.6f}; w {old_w:.6f} -> {new_w:.6f}, a change of {change[0][row, 0]:.6f}"
    num_moved = sum((abs(d.abs() / lr - 1) < 0.02).sum().item() for d in change)
    num_params = trainer.raw_model.num_params()
    yield f"{num_moved:,} of the {num_params:,} weights moved by lr, to within 2%"


def validation_lines(dataset):
    """What page 11's run on a twentieth of the text logged."""
    lines = (DATA / "out-small" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    evaluations = [line for line in map(json.loads, lines) if "val_loss" in line]
    best = min(evaluations, key=lambda line: line["val_loss"])
    yield "step   training  validation"
    for line in (evaluations[0], best, evaluations[-1]):
        yield f"{line['step']:<6,} {line['train_loss']:8.4f} {line['val_loss']:11.4f}"


# What a checkpoint needs, and what the loop does without a line


def forget_nothing(trainer):
    pass


def forget_optimizer(trainer):
    trainer.optimizers = make_optimizers(
        trainer.raw_model, trainer.config, trainer.device, trainer.dtype
    )


def forget_rng_states(trainer):
    torch.manual_seed(0)


def forget_step(trainer):
    trainer.state.step = 0


def resume(dataset, options, forget):
    """The losses of 5 steps from latest.pt on, of which `forget` undoes a part."""
    trainer = make_trainer(dataset, **options)
    ckpt = load_checkpoint(Path(options["out_dir"], "latest.pt"))
    trainer.raw_model.load_state_dict(ckpt["model"])
    restore_run(trainer, ckpt)
    forget(trainer)
    for _ in range(5):
        trainer.train_step()
    return trainer.log.losses


def resume_lines(dataset):
    """10 steps with dropout; then the last 5 again, from the checkpoint between them."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"out_dir": folder, "dropout": 0.1}
        trainer = make_trainer(dataset, **options)
        for _ in range(5):
            trainer.train_step()
        trainer.save_checkpoint()
        for _ in range(5):
            trainer.train_step()
        runs = {
            "uninterrupted": trainer.log.losses[5:],
            "all of latest.pt": resume(dataset, options, forget_nothing),
            "without optimizer": resume(dataset, options, forget_optimizer),
            "without rng_states": resume(dataset, options, forget_rng_states),
            "without step": resume(dataset, options, forget_step),
        }
    assert runs["all of latest.pt"] == runs["uninterrupted"]  # bit for bit
    yield "loss at step          5       6       7       8       9"
    for name, losses in runs.items():
        yield f"{name:18}" + "".join(f"{loss:8.4f}" for loss in losses)


def leave_out_zero_grad(trainer):
    trainer.raw_model.zero_grad = lambda set_to_none: None


def leave_out_adamw(trainer):
    groups = [{"params": list(trainer.raw_model.parameters()), "lr_scale": 1.0}]
    trainer.optimizers = [torch.optim.SGD(groups, lr=trainer.config.learning_rate)]


def leave_out_shift(trainer):
    batch = trainer.batch

    def unshifted(micro_step):
        x, _ = batch(micro_step)
        return x, x

    trainer.batch = unshifted


def losses_without(dataset, leave_out, steps=100):
    """(loss of each step, validation loss) of a run whose loop `leave_out` has changed."""
    trainer = make_trainer(dataset, batch_size=16, max_iters=steps, lr_decay_iters=steps)
    leave_out(trainer)
    for _ in range(steps):
        trainer.train_step()
    val_loss = trainer.mean_loss(trainer.raw_model.eval(), "val", eval_iters=0)
    return trainer.log.losses, val_loss


def missing_line_runs(dataset):
    return {
        "the whole loop": losses_without(dataset, forget_nothing),
        "without zero_grad": losses_without(dataset, leave_out_zero_grad),
        "SGD for AdamW": losses_without(dataset, leave_out_adamw),
        "without the shift": losses_without(dataset, leave_out_shift),
    }


def missing_line_lines(runs):
    steps = (0, 20, 40, 60, 80, 99)
    yield "training loss at step" + "".join(f"{step:8}" for step in steps) + "  validation"
    for name, (losses, val_loss) in runs.items():
        yield f"{name:21}" + "".join(f"{losses[s]:8.4f}" for s in steps) + f"{val_loss:12.4f}"


SECTIONS = {
    "batch": batch_lines,
    "forward and loss": loss_lines,
    "backward": gradient_lines,
    "clipping": clipping_lines,
    "AdamW on one scalar": adamw_lines,
    "weight decay": weight_decay_lines,
    "learning rate of config/train_gpt2.py": schedule_lines,
    "gradient accumulation": accumulation_lines,
    "one step": step_lines,
    "validation, in docs/data/out-small": validation_lines,
    "resuming": resume_lines,
}


def figures(dataset, runs):
    """The text of FIGURES."""
    lines = []
    for title, section in SECTIONS.items():
        lines += [f"# {title}", *section(dataset), ""]
    lines += ["# one line missing", *missing_line_lines(runs)]
    return "\n".join(lines) + "\n"


# Pictures

WORDS = {
    "en": {
        "schedule": "Up in 2,000 steps, down in the other 598,000",
        "start": "the first 4,000 steps",
        "whole": "the whole run",
        "step": "step",
        "lr": "learning rate",
        "warmup": "warmup",
        "cosine": "cosine decay",
        "cooldown": "constant, then\na linear cooldown",
        "missing": "A loss that looks fine can hide a missing line",
        "loss": "training loss (nats per character)",
        "the whole loop": "the whole loop",
        "without zero_grad": "without zero_grad",
        "SGD for AdamW": "SGD in place of AdamW",
        "without the shift": "targets not shifted",
        "validation": "validation loss {}",
    },
    "pt": {
        "schedule": "Sobe em 2.000 passos, desce nos outros 598.000",
        "start": "os primeiros 4.000 passos",
        "whole": "o treino inteiro",
        "step": "passo",
        "lr": "taxa de aprendizado",
        "warmup": "warmup",
        "cosine": "decaimento em cosseno",
        "cooldown": "constante, depois\ncooldown linear",
        "missing": "Uma perda que parece boa pode esconder uma linha que falta",
        "loss": "perda de treino (nats por caractere)",
        "the whole loop": "o loop inteiro",
        "without zero_grad": "sem zero_grad",
        "SGD for AdamW": "SGD no lugar do AdamW",
        "without the shift": "alvos não deslocados",
        "validation": "perda de validação {}",
    },
}


def draw_schedule(path, language):
    words = WORDS[language]
    cosine = gpt2_config()
    cooldown = gpt2_config(cooldown_iters=COOLDOWN_ITERS)
    with saved_figure(path, 8.0, 3.6) as figure:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1, 2])
        for axes, steps in ((left, range(0, 4001, 10)), (right, range(0, 600_001, 500))):
            axes.plot(steps, [get_lr(s, cosine) for s in steps], color=BLUE, lw=2)
            axes.plot(steps, [get_lr(s, cooldown) for s in steps], "--", color=RED, lw=2)
            axes.set_xlabel(words["step"])
            axes.yaxis.set_major_formatter(lambda lr, _: f"{lr * 1e4:.0f}e-4" if lr else "0")
            axes.xaxis.set_major_formatter(lambda s, _: Language(language).number(f"{s:,.0f}"))
            axes.grid(alpha=0.3)
        figure.suptitle(words["schedule"])
        left.set(title=words["start"], ylabel=words["lr"], xticks=[0, 2000, 4000], ylim=(0, 6.6e-4))
        left.text(1400, 3e-4, words["warmup"], color=BLACK)
        right.set(title=words["whole"], xticks=[0, 200_000, 400_000, 600_000])
        right.text(60_000, 3e-4, words["cosine"], color=BLUE)
        right.text(310_000, 4.9e-4, words["cooldown"], color=RED)


def draw_missing_line(path, language, runs):
    words = WORDS[language]
    styles = (("-", BLACK), (":", RED), ("--", BLUE), ("-.", GREEN))
    with saved_figure(path, 8.0, 4.0) as figure:
        axes = figure.subplots()
        for (name, (losses, val_loss)), (style, color) in zip(runs.items(), styles, strict=True):
            val = words["validation"].format(Language(language).number(f"{val_loss:,.2f}"))
            label = f"{words[name]}\n({val})"
            axes.plot(losses, style, color=color, lw=2, label=label)
        axes.set(title=words["missing"], xlabel=words["step"], ylabel=words["loss"], ylim=(0, 5))
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right center", frameon=False)


def main():
    with open_dataset() as dataset:
        runs = missing_line_runs(dataset)
        text = figures(dataset, runs)
    sys.stdout.reconfigure(encoding="utf-8")
    print(text, end="")
    FIGURES.parent.mkdir(exist_ok=True)
    FIGURES.write_text(text, encoding="utf-8")
    for language, folder in (("en", IMAGES), ("pt", IMAGES / "pt")):
        folder.mkdir(exist_ok=True)
        draw_schedule(folder / "schedule.png", language)
        draw_missing_line(folder / "one_line_missing.png", language, runs)


if __name__ == "__main__":
    main()
