# Tiny Shakespeare by characters on a laptop, in seconds; 0.4M parameters.
# Data: python prepare.py shakespeare_char
# Expect: validation loss 1.83 (20 batches) after 4 s of training, 10 s in all, on 2 CPU cores.
out_dir = "out-fast-shakespeare-char-cpu"
dataset = "shakespeare_char"

gradient_accumulation_steps = 1
batch_size = 12
block_size = 64

n_layer = 2
n_head = 4
n_embd = 128
dropout = 0.0
bias = False
position = "rope"
mlp = "relu2"
qk_norm = True
tie_embeddings = False
embedding_std = 0.3  # docs/SPEED.md has the gain of each choice

optimizer = "muon"
muon_lr = 0.02
learning_rate = 1e-2
max_iters = 300
lr_decay_iters = 300
cooldown_iters = 180
min_lr = 0.0
warmup_iters = 10
weight_decay = 0.0
grad_clip = 0.0

eval_interval = 120
eval_iters = 20
log_interval = 20
