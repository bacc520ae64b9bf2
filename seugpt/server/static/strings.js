// Every text of the page, in English and in Brazilian Portuguese.

// By the code of an error: the server's messages are in English.
export const ERRORS_IN_PORTUGUESE = {
  unknown_characters:
    "O texto tem um caractere que o modelo nunca viu no treino: um acento, por exemplo, se ele leu só inglês.",
  empty_text: "O texto está vazio; escreva alguma coisa.",
  one_token: "O texto tem um só token, e o primeiro nunca é previsto; escreva mais.",
  text_too_long: "O texto é maior do que este servidor aceita.",
  reply_too_long: "O tamanho pedido é maior do que este servidor permite.",
  overloaded: "O servidor está ocupado; tente de novo daqui a pouco.",
};

export const STRINGS = {
  tabs: ["Sections", "Seções"],
  write: ["Write", "Escrever"],
  inside: ["Look inside", "Por dentro"],
  train: ["Train", "Treino"],
  compare: ["Compare", "Comparar"],
  model: ["Model", "Modelo"],
  untrained: ["untrained", "não treinado"],
  otherLanguage: ["Português", "English"],
  modelFacts: [
    "{parameters} parameters · {layers} layers × {heads} heads · reads {block} tokens at a time",
    "{parameters} parâmetros · {layers} camadas × {heads} cabeças · lê {block} tokens por vez",
  ],
  modelStep: [" · step {step}", " · passo {step}"],
  modelLoss: [" · validation loss {loss}", " · perda de validação {loss}"],
  key: ["This server asks for its key", "Este servidor pede a sua chave"],
  send: ["Send", "Enviar"],
  noAnswer: [
    "The server does not answer. Is it still running?",
    "O servidor não responde. Ele ainda está rodando?",
  ],

  // Write
  prompt: ["Prompt", "Prompt"],
  promptHelp: [
    "The model goes on from here, one token at a time.",
    "O modelo continua daqui, um token por vez.",
  ],
  firstPrompt: ["The ", "Era uma vez "],
  start: ["Write", "Escrever"],
  more: ["Go on", "Continuar"],
  stop: ["Stop", "Parar"],
  copy: ["Copy", "Copiar"],
  modelText: ["Text of the model, token by token", "Texto do modelo, token por token"],
  emptyText: ["The text appears here.", "O texto aparece aqui."],
  writing: ["Writing …", "Escrevendo …"],
  copied: ["Copied.", "Copiado."],
  notCopied: [
    "The browser does not allow copying; select the text instead.",
    "O navegador não deixa copiar; selecione o texto.",
  ],
  doneLength: ["{count} tokens.", "{count} tokens."],
  doneStop: [
    "{count} tokens; the model ended the text.",
    "{count} tokens; o modelo terminou o texto.",
  ],
  stopped: ["Stopped after {count} tokens.", "Parado depois de {count} tokens."],
  likeliest: ["Likeliest here", "Mais prováveis aqui"],
  likeliestEmpty: [
    "Point at a token, or use the arrow keys in the text: what else could have come?",
    "Aponte para um token, ou use as setas no texto: o que mais poderia vir?",
  ],
  likeliestHelp: [
    "Click one, and the text goes on from there. A click on a token holds it; Esc lets it go.",
    "Clique em um, e o texto continua dali. Um clique num token o fixa; Esc o solta.",
  ],
  goOnWith: [": go on with this one", ": continuar com este"],
  tokenLabel: ["{label}, {percent}", "{label}, {percent}"],
  probability: ["Probability", "Probabilidade"],
  settings: ["Settings", "Ajustes"],
  temperature: ["Temperature", "Temperatura"],
  temperatureHelp: [
    "Lower: safer. Higher: wilder. 0: always the likeliest.",
    "Menor: mais seguro. Maior: mais ousado. 0: sempre o mais provável.",
  ],
  top_k: ["Top-k", "Top-k"],
  top_kHelp: [
    "Choose among the k likeliest tokens only. 0: all.",
    "Escolhe só entre os k tokens mais prováveis. 0: todos.",
  ],
  top_p: ["Top-p", "Top-p"],
  top_pHelp: [
    "Only the likeliest that together reach this share.",
    "Só os mais prováveis que juntos chegam a esta parte.",
  ],
  min_p: ["Min-p", "Min-p"],
  min_pHelp: [
    "Drop tokens below this fraction of the likeliest.",
    "Descarta tokens abaixo desta fração do mais provável.",
  ],
  penalties: ["Penalties", "Penalidades"],
  repetition_penalty: ["Repetition", "Repetição"],
  repetition_penaltyHelp: [
    "Above 1: whatever was already there gets less likely.",
    "Acima de 1: o que já apareceu fica menos provável.",
  ],
  presence_penalty: ["Presence", "Presença"],
  presence_penaltyHelp: [
    "Lowers every token that the text already has, once.",
    "Reduz, uma vez, cada token que o texto já tem.",
  ],
  frequency_penalty: ["Frequency", "Frequência"],
  frequency_penaltyHelp: [
    "Lowers a token again each time it has occurred.",
    "Reduz um token a cada vez que ele apareceu.",
  ],
  max_tokens: ["Length", "Tamanho"],
  max_tokensHelp: ["How many tokens to write.", "Quantos tokens escrever."],
  seed: ["Seed", "Semente"],
  seedHelp: [
    "The dice: the same number throws the same text.",
    "O sorteio: o mesmo número dá o mesmo texto.",
  ],

  // Look inside
  text: ["Text", "Texto"],
  textHelp: ["What the model reads.", "O que o modelo lê."],
  firstText: ["The value of the variable", "Era uma vez um menino"],
  views: ["View", "Vista"],
  tokens: ["Tokens", "Tokens"],
  tokensHelp: [
    "The pieces the model reads, each with its number. A bracket joins tokens that make one character together.",
    "Os pedaços que o modelo lê, cada um com seu número. Um colchete junta os tokens que só juntos formam um caractere.",
  ],
  tokenCounts: [
    "{tokens} tokens · {characters} characters · {bytes} bytes",
    "{tokens} tokens · {characters} caracteres · {bytes} bytes",
  ],
  attention: ["Attention", "Atenção"],
  attentionHelp: [
    "Point at a token. To its left, in blue: where it looks. To its right, framed: how much each later token looks back at it.",
    "Aponte para um token. À esquerda, em azul: para onde ele olha. À direita, com moldura: quanto cada token posterior olha para ele.",
  ],
  attentionText: ["Tokens of the text", "Tokens do texto"],
  layer: ["Layer", "Camada"],
  layerHelp: [
    "Layers work one after another, from 0.",
    "As camadas trabalham uma após a outra, a partir de 0.",
  ],
  heads: ["Head", "Cabeça"],
  headsHelp: [
    "One map per head: a row for each token, stronger where it looks.",
    "Um mapa por cabeça: uma linha por token, mais forte para onde ele olha.",
  ],
  headNumber: ["head {n}", "cabeça {n}"],
  next: ["Next token", "Próximo token"],
  nextHelp: [
    "What may follow the text. Move the temperature: the pale bars are what top-k, top-p and min-p cut off.",
    "O que pode seguir o texto. Mexa na temperatura: as barras claras são o que top-k, top-p e min-p cortaram.",
  ],
  others: ["{count} others: {percent}", "{count} outros: {percent}"],
  lens: ["Logit lens", "Logit lens"],
  lensHelp: [
    "The next token each layer would predict if it were the last; the stronger the colour, the surer. Framed: correct.",
    "O próximo token que cada camada preveria se fosse a última; quanto mais forte a cor, mais certa. Com moldura: correto.",
  ],
  read: ["read", "lido"],
  embedding: ["embedding", "embedding"],
  layerNumber: ["layer {n}", "camada {n}"],
  surprisal: ["Surprisal", "Surpresa"],
  surprisalHelp: [
    "How much each token surprised the model: the stronger the colour, the less it was expected.",
    "Quanto cada token surpreendeu o modelo: quanto mais forte a cor, menos esperado.",
  ],
  surprisalMeans: [
    "{token} bits per token, {char} per character; a blind guess would cost {uniform}.",
    "{token} bits por token, {char} por caractere; um palpite cego custaria {uniform}.",
  ],
  surprisalOf: [
    "“{label}”: {bits} bits, a probability of {percent}",
    "“{label}”: {bits} bits, uma probabilidade de {percent}",
  ],
  notPredicted: [
    "“{label}”: the first token is never predicted",
    "“{label}”: o primeiro token nunca é previsto",
  ],
  shown: ["The first {shown} of {total} tokens.", "Os primeiros {shown} de {total} tokens."],

  // Train
  runs: ["Runs in this folder", "Treinos nesta pasta"],
  runsHelp: [
    "Choose one, or two to lay them over each other.",
    "Escolha um, ou dois para sobrepor.",
  ],
  noRuns: [
    "No run here yet. Start one: python train.py config/quickstart.py",
    "Ainda não há treinos aqui. Comece um: python train.py config/quickstart.py",
  ],
  runFacts: ["{steps} steps · best {loss}", "{steps} passos · melhor {loss}"],
  runSteps: ["{steps} steps", "{steps} passos"],
  curveOf: ["Loss of {names} over the steps", "Perda de {names} ao longo dos passos"],
  lossAxis: ["loss (nats per token)", "perda (nats por token)"],
  stepAxis: ["step", "passo"],
  batches: ["training batches, smoothed", "batches de treino, suavizados"],
  training: ["training", "treino"],
  validation: ["validation", "validação"],
  evaluation: ["Evaluation", "Avaliação"],
  evaluationHelp: [
    "Move along the run: what could the model write by then?",
    "Percorra o treino: o que o modelo já sabia escrever?",
  ],
  atStep: ["step {step}", "passo {step}"],
  sampleAt: [
    "{name}, step {step}: training {train}, validation {val}",
    "{name}, passo {step}: treino {train}, validação {val}",
  ],

  // Compare
  compareHelp: [
    "Both models get the same prompt and the same dice.",
    "Os dois modelos recebem o mesmo prompt e o mesmo sorteio.",
  ],
  left: ["Left", "Esquerda"],
  right: ["Right", "Direita"],
  readoutEmpty: [
    "Point at a token to see its probability.",
    "Aponte para um token para ver a probabilidade.",
  ],
  readout: [
    "“{label}” had {percent}. Likeliest: {top}",
    "“{label}” tinha {percent}. Mais prováveis: {top}",
  ],
};
