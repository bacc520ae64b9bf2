"""The language of a plot: its texts, and how it writes numbers.

A plot asks for each of its texts by the English phrase, and gives what goes into its placeholders:

    language = Language("pt")
    language("step {step:,.0f}", step=5000)  # passo 5.000

PORTUGUESE has the translation of each phrase, as a whole: word order and gender differ.
"""

import string
from numbers import Real

SWAPPED_SEPARATORS = str.maketrans(",.", ".,")
PORTUGUESE = {
    # Loss curves
    "step": "passo",
    "training tokens": "tokens de treino",
    "seconds of training, without evaluations": "segundos de treino, sem as avaliações",
    "{label} (logarithmic scale)": "{label} (escala logarítmica)",
    "loss (nats per token)": "perda (nats por token)",
    "training batches, smoothed": "batches de treino, suavizados",
    "training": "treino",
    "validation": "validação",
    "{name}: training batches, smoothed": "{name}: batches de treino, suavizados",
    "{name}: training": "{name}: treino",
    "{name}: validation": "{name}: validação",
    "lowest at step {step:,.0f}: {loss:.4f}": "a menor, no passo {step:,.0f}: {loss:.4f}",
    "Training and validation loss stay together: at the end they are {gap:.2f} apart": (
        "As perdas de treino e de validação andam juntas: no fim, a distância é {gap:.2f}"
    ),
    "Training and validation loss part before step {step:,.0f}:\n"
    "at the end they are {gap:.2f} apart": (
        "As perdas de treino e de validação se separam antes do passo {step:,.0f}:\n"
        "no fim, a distância é {gap:.2f}"
    ),
    "At the end training and validation loss are {gap:.2f} apart": (
        "No fim, a distância entre as perdas de treino e de validação é {gap:.2f}"
    ),
    "{name} overfits: after step {step:,.0f} its validation loss rises by {rise:.2f}\n"
    "while its training loss goes on falling, by {fall:.2f}": (
        "{name} em overfitting: depois do passo {step:,.0f}, a perda de validação\n"
        "sobe {rise:.2f}, enquanto a de treino cai mais {fall:.2f}"
    ),
    "{name}: after step {step:,.0f} validation loss rises by {rise:.2f},\n"
    "and training loss with it": (
        "{name}: depois do passo {step:,.0f}, a perda de validação sobe {rise:.2f},\n"
        "e a de treino sobe também"
    ),
    "The lowest validation loss is that of {name}: {loss:.4f} at step {step:,.0f}": (
        "A menor perda de validação é a de {name}: {loss:.4f}, no passo {step:,.0f}"
    ),
    "Each doubling of the steps lowers the validation loss:\n"
    "by {first:.2f} from step {a:,.0f} to {b:,.0f}, by {last:.2f} from {c:,.0f} to {d:,.0f}": (
        "Cada vez que os passos dobram, a perda de validação cai:\n"
        "{first:.2f} do passo {a:,.0f} ao {b:,.0f}, {last:.2f} do {c:,.0f} ao {d:,.0f}"
    ),
    # Layers of a run
    "Each layer over the run: where one line leaves the others, look closer": (
        "Cada camada ao longo do treino: onde uma linha se separa das outras, olhe melhor"
    ),
    "Size of the residual stream": "Tamanho do fluxo residual",
    "root mean square": "raiz da média dos quadrados",
    "Size of the weights": "Tamanho dos pesos",
    "norm": "norma",
    "Size of the gradient": "Tamanho do gradiente",
    "How far a step moves the weights": "Quanto um passo move os pesos",
    "norm of the update / of the weights": "norma da atualização / dos pesos",
    "block {n}": "bloco {n}",
    "final norm": "normalização final",
    "output matrix": "matriz de saída",
    # Embeddings
    "before training": "antes do treino",
    "after {step:,} steps": "depois de {step:,} passos",
    "trained": "treinado",
    "Tokens that are used alike end up near each other": (
        "Tokens usados do mesmo jeito acabam perto uns dos outros"
    ),
    "Neighbouring positions end up near each other, along a curve": (
        "Posições vizinhas acabam perto umas das outras, ao longo de uma curva"
    ),
    "Positions near each other become similar: the light band along the diagonal": (
        "Posições próximas ficam parecidas: é a faixa clara ao longo da diagonal"
    ),
    "first principal component ({share:.0%} of the variance)": (
        "primeira componente principal ({share:.0%} da variância)"
    ),
    "second principal component ({share:.0%} of the variance)": (
        "segunda componente principal ({share:.0%} da variância)"
    ),
    "first principal component, of the last step": "primeira componente principal, do último passo",
    "second principal component, of the last step": "segunda componente principal, do último passo",
    "position": "posição",
    "cosine similarity": "similaridade de cosseno",
    "step {step:>7,}": "passo {step:>7,}",
    "last evaluation: {loss:.3f} (step {step:,})": "última avaliação: {loss:.3f} (passo {step:,})",
    "vowels": "vogais",
    "consonants": "consoantes",
    "capitals": "maiúsculas",
    "digits": "algarismos",
    "punctuation": "pontuação",
    "white space": "espaço em branco",
    "starts of words": "começos de palavra",
    "insides of words": "meios de palavra",
    "other letters": "outras letras",
    # Attention
    "layer {n}": "camada {n}",
    "head {m}": "cabeça {m}",
    "layer {n}, head {m}": "camada {n}, cabeça {m}",
    "Layer {n}, head {m}: where each token (row) looks, at itself (diagonal) or back": (
        "Camada {n}, cabeça {m}: para onde olha cada token (linha), para si (diagonal) ou para trás"
    ),
    "Where each token (row) looks, at itself (diagonal) or back (left of it)": (
        "Para onde olha cada token (linha): para si (diagonal) ou para trás (à esquerda dela)"
    ),
    ", the first {shown:,} of {total:,} tokens": ", os primeiros {shown:,} de {total:,} tokens",
    "key: the token attended to": "chave: o token que é olhado",
    "query: the token that attends": "consulta: o token que olha",
    "key: the token attended to, by position": "chave: o token que é olhado, pela posição",
    "query: the token that attends, by position": "consulta: o token que olha, pela posição",
    "share of attention": "fração da atenção",
    "Red: what a head looks at more than the last row, which looks everywhere equally": (
        "Vermelho: para onde uma cabeça olha mais que a última linha, que olha para tudo por igual"
    ),
    "Shares of a head's attention, averaged over {count:,} tokens. "
    "Each average covers only\nthe tokens that have such a token before them, "
    "so the distances of a row add up to more than 100%.": (
        "Frações da atenção de cada cabeça, em média sobre {count:,} tokens. Cada média cobre só\n"
        "os tokens que têm um desses antes deles; por isso, "
        "as distâncias de uma linha somam mais de 100%."
    ),
    "heads 0 to {last} of each layer": "cabeças 0 a {last} de cada camada",
    "uniform": "uniforme",
    "ratio to the last row": "razão em relação à última linha",
    "itself": "o próprio token",
    "previous token": "token anterior",
    "{last} back": "{last} atrás",
    "{first} to {last} back": "{first} a {last} atrás",
    "first token": "primeiro token",
    "last white space": "último espaço em branco",
    "same token": "o mesmo token",
    "what came after it": "o que veio depois dele",
    # Predictions
    "The next token after {prompt}\n"
    "as the model predicts it (bars), and as drawn {count:,} times (dots)": (
        "O próximo token depois de {prompt}:\n"
        "como o modelo o prevê (barras) e como saiu em {count:,} sorteios (pontos)"
    ),
    "temperature {value:g}": "temperatura {value:g}",
    "probability": "probabilidade",
    "next token": "próximo token",
    "{count:,} others": "{count:,} outros",
    " {share:.1%}, drawn {drawn:.1%}": " {share:.1%}, sorteados {drawn:.1%}",
    "greedy choice": "escolha gulosa",
    "probability when sampling": "probabilidade no sorteio",
    "before top_k and top_p": "antes de top_k e top_p",
    "share of the draws": "fração dos sorteios",
    "The logit lens: the next token that each layer would predict; "
    "the last row is the output.\nFramed: correct": (
        "A logit lens: o próximo token que cada camada preveria; "
        "a última linha é a saída.\nCom moldura: acertos"
    ),
    "embedding": "embedding",
    "predicted after": "previsto depois de",
    "token that is read": "token lido",
    "token that really comes next": "token que de fato vem depois",
    "probability of the prediction": "probabilidade da previsão",
    "How much each token surprised the model: the darker, the less it was expected\n"
    "{per_token:.2f} bits per token, {per_char:.2f} per character": (
        "O quanto cada token surpreendeu o modelo: quanto mais escuro, menos esperado\n"
        "{per_token:.2f} bits por token, {per_char:.2f} por caractere"
    ),
    "surprisal in bits; a uniform guess among {count:,} tokens would be {bits:.1f}": (
        "surpresa em bits; um chute uniforme entre {count:,} tokens daria {bits:.1f}"
    ),
}


class Language(string.Formatter):
    """`code`: en or pt."""

    def __init__(self, code="en"):
        self.code = code

    def __call__(self, phrase, **values):
        """The phrase in this language, with `values` in its {placeholders}."""
        if self.code == "pt":
            phrase = PORTUGUESE[phrase]
        return self.vformat(phrase, (), values)

    def format_field(self, value, format_spec):
        text = super().format_field(value, format_spec)
        return self.number(text) if isinstance(value, Real) else text

    def number(self, text):
        """A number as Python writes it, 1,234.5, in this language: in Portuguese 1.234,5."""
        return text.translate(SWAPPED_SEPARATORS) if self.code == "pt" else text


ENGLISH = Language()
