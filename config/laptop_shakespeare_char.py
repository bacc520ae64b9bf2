# Tiny Shakespeare by characters on a laptop's CPU, to the loss of nanoGPT's 10.7M; 4.0M parameters.
# Data: python prepare.py shakespeare_char
# Expect: validation loss 1.46 to 1.47 (whole split) after 6 minutes of training on 2 CPU cores,
# with each of three seeds (docs/SPEED.md).
out_dir = "out-laptop-shakespeare-char"
dataset = "shakespeare_char"

gradient_accumulation_steps = 1
batch_size = 24
block_size = 256

n_layer = 5
n_head = 4
n_embd = 256
dropout = 0.1
bias = False
position = "rope"
mlp = "swiglu"
qk_norm = True
tie_embeddings = False
embedding_std = 0.3  # docs/SPEED.md has the gain of each choice

optimizer = "muon"
muon_lr = 0.02
learning_rate = 5e-3
max_iters = 850
lr_decay_iters = 850
cooldown_iters = 510
min_lr = 0.0
warmup_iters = 20
weight_decay = 0.1
grad_clip = 0.0

eval_interval = 250
eval_iters = 20
log_interval = 10
