# GPT-2 with 16.1M parameters, four fifths of them embeddings, for a text of about 4M tokens.
# Data: python prepare.py gpt2_15m --input=data/train.txt --val_input=data/val.txt --tokenizer=gpt2
# Expect: not measured here. "GPT-2, Treinamento do Zero", which it follows, reports train loss 5.3
# and val loss 9.4 after an epoch of 37.5 minutes.
out_dir = "out-gpt2-15m"
dataset = "gpt2_15m"

gradient_accumulation_steps = 1
batch_size = 32  # if out of memory: 16 with gradient_accumulation_steps = 2, or block_size = 128
block_size = 256

vocab_size = 50304
n_layer = 4
n_head = 4
n_embd = 256
dropout = 0.7  # as there; far more than usual, and part of why its losses are high
bias = True

learning_rate = 3e-4
decay_lr = False
weight_decay = 0.1
beta1 = 0.9
beta2 = 0.95
grad_clip = 1.0
max_iters = 2848  # the epoch there: 23,330,816 tokens

eval_interval = 250
eval_iters = 50
log_interval = 10
