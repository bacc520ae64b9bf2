"""Plots in Portuguese: every text is translated, every translation is used."""

import json
import math
import re
import shlex
import shutil
import string

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

import visualize
from model import ModelConfig
from seugpt.checkpoint.pretrained import load_pretrained, tokenizer_of
from seugpt.checkpoint.storage import save_checkpoint
from seugpt.data.tokenizer import CharTokenizer, bpe_tokenizer
from seugpt.plots.language import PORTUGUESE, Language
from seugpt.plots.style import token_label
from seugpt.training.snapshots import find_snapshots
from tests.helpers import ROOT, perturbed_gpt

pytestmark = pytest.mark.filterwarnings("ignore:Glyph")  # the font lacks OPEN and CLOSE

KEPT_RUN = ROOT / "docs" / "data" / "out-gptlab-cpu"  # with its weights and snapshots
STORY = ROOT / "docs" / "data" / "janela.txt"
BPE = bpe_tokenizer([bytes([n]) for n in range(256)] + [b" o", b" menino", "ção".encode()])
CHARS = CharTokenizer("abcdefghij ")
LOSSES = {  # of the evaluations of runs: (training, validation)
    "parts": [(4.0, 4.0), (2.0, 2.1), (1.8, 2.0), (1.7, 1.95), (1.6, 1.9)],
    "together": [(4.0, 4.0), (2.0, 2.0), (1.9, 1.9)],
    "apart": [(2.0, 2.5), (1.9, 2.4)],
    "overfits": [(4.0, 4.0), (2.0, 2.1), (1.5, 2.3)],
    "diverges": [(4.0, 4.0), (2.0, 2.1), (2.5, 2.3)],
    "unevaluated": [],
}
PLOTS = (  # that show every text between them
    "loss parts",
    "loss together --x=tokens",
    "loss apart --x=seconds",
    "loss overfits",
    "loss diverges",
    "loss parts together",
    "loss parts unevaluated",
    "loss parts --xscale=log --from_step=2",
    "activations parts",
    "embeddings run",
    "embeddings run --of=positions",
    "embeddings run --of=similarity",
    "embeddings bpe",
    "animate run --highlight=aeiou --highlight=0-9",
    "attention run --text=abra --layer=1 --head=3",
    "attention run --text=FILE:story.txt",
    "heads run --text=FILE:story.txt",
    "heads many --text='abcabca bah'",
    'next run --text="A moça" --top_k=5',
    "surprisal run --text=FILE:story.txt",
    "surprisal bpe --text='o menino, a ação' --to=x.svg",
    "logit_lens run --text=FILE:story.txt",
)
# Around translated phrases; private, so that no token has them.
OPEN = "\ue000"
CLOSE = "\ue001"


def write_metrics(folder):
    """metrics.jsonl of a run with the losses that its name stands for, and statistics of layers."""
    folder.mkdir()
    lines = []
    for n in range(0, 500, 10):
        lines.append({"step": n, "loss": 3.0, "step_ms": 10.0, "tokens_per_s": 10_000.0})
    for n, (train_loss, val_loss) in enumerate(LOSSES[folder.name]):
        lines.append({"step": 100 * n, "train_loss": train_loss, "val_loss": val_loss})
    for n in range(3):
        stats = {"step": n}
        for layer in ("embedding", "h.0", "h.1", "ln_f", "lm_head"):
            for quantity in ("weight_norm", "grad_norm", "update_ratio"):
                stats[f"{quantity}/{layer}"] = 0.5 + n
        stats |= {"activation_rms/embedding": 0.25, "activation_rms/h.0": 0.5}
        lines.append(stats)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")


def save_model(folder, tokenizer, **shape):
    """A model that has not been trained by us: there are no weights from before."""
    config = ModelConfig(vocab_size=tokenizer.vocab_size, block_size=16, **shape)
    ckpt = {
        "model": perturbed_gpt(config).state_dict(),
        "model_config": vars(config),
        "train_config": {},
        "tokenizer": tokenizer.spec(),
        "step": 0,
        "val_loss": math.nan,
    }
    folder.mkdir()
    save_checkpoint(folder / "best.pt", ckpt)


def keep_two_snapshots(folder):
    for path in list(find_snapshots(folder).values())[1:-1]:
        path.unlink()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """({plot: its texts in Portuguese, with OPEN and CLOSE around what is translated}, phrases)."""
    folder = tmp_path_factory.mktemp("portuguese")
    for name in LOSSES:
        write_metrics(folder / name)
    shutil.copytree(KEPT_RUN, folder / "run")
    keep_two_snapshots(folder / "run")
    save_model(folder / "bpe", BPE, n_layer=1, n_head=1, n_embd=8)
    save_model(folder / "many", CHARS, n_layer=2, n_head=24, n_embd=48)
    shutil.copy(STORY, folder / "story.txt")
    texts = {}
    phrases = set()
    translate = Language.__call__
    save = Figure.savefig

    def record_phrase(language, phrase, **values):
        phrases.add(phrase)
        return OPEN + translate(language, phrase, **values) + CLOSE

    def record_texts(figure, *args, **kwargs):
        save(figure, *args, **kwargs)
        texts.setdefault(plot, []).extend(text.get_text() for text in figure.findobj(Text))

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(Language, "__call__", record_phrase)
        patch.setattr(Figure, "savefig", record_texts)
        for plot in PLOTS:
            visualize.main([*shlex.split(plot), "--lang=pt"])
    return texts, phrases


def data_texts():
    """The labels of all tokens, which no plot translates."""
    tokenizers = [BPE, CHARS, tokenizer_of(load_pretrained(str(KEPT_RUN)))]
    tokens = [each.decode_bytes([i]) for each in tokenizers for i in range(each.vocab_size)]
    labels = [token_label(token) for token in tokens]
    return {"aeiou", "0-9", *labels, *(label.strip("␣") for label in labels)}


def test_every_text_is_translated(drawn):
    """What no phrase covers must be a token, a number, or a quoted text."""
    data = data_texts()
    for plot, texts in drawn[0].items():
        for text in texts:
            rest = text
            while (shorter := re.sub(f"{OPEN}[^{OPEN}{CLOSE}]*{CLOSE}", "", rest)) != rest:
                rest = shorter
            rest = re.sub("“.*”", "", rest).strip()
            assert rest in data or re.fullmatch(r"[-−\d.,%/ ]*|\d+e-\d+", rest), (plot, text)


def test_every_translation_is_used(drawn):
    assert drawn[1] == set(PORTUGUESE)


def test_numbers_on_plots_have_decimal_commas(drawn):
    for plot, texts in drawn[0].items():
        for text in texts:
            if text not in (".", ","):
                assert not re.search(r"\d\.(?!\d{3}(?!\d))", text), (plot, text)


def placeholders(phrase):
    return sorted(field[1:] for field in string.Formatter().parse(phrase) if field[1])


@pytest.mark.parametrize("phrase", PORTUGUESE)
def test_translations_have_the_same_placeholders(phrase):
    assert placeholders(PORTUGUESE[phrase]) == placeholders(phrase)


def test_numbers_are_written_as_the_language_does():
    english = Language()
    portuguese = Language("pt")
    assert english("step {step:>7,}", step=5000) == "step   5,000"
    assert portuguese("step {step:>7,}", step=5000) == "passo   5.000"
    assert portuguese("lowest at step {step:,.0f}: {loss:.4f}", step=1800, loss=1.96194) == (
        "a menor, no passo 1.800: 1,9619"
    )
    assert portuguese("{name}: training", name="out-0.1,x") == "out-0.1,x: treino"
    assert portuguese.number("1,234.5") == "1.234,5"
    assert english.number("1,234.5") == "1,234.5"


def test_a_text_without_translation_is_an_error():
    with pytest.raises(KeyError):
        Language("pt")("no such phrase")
