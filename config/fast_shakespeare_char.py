# Tiny Shakespeare by characters on a GPU, trained as fast as we can; 10.7M parameters.
# Data: python prepare.py shakespeare_char
# Expect: validation loss 1.47; its time on a GPU is not measured.
out_dir = "out-fast-shakespeare-char"
dataset = "shakespeare_char"

gradient_accumulation_steps = 1
batch_size = 64
block_size = 256

n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.1
bias = False
position = "rope"
mlp = "relu2"
qk_norm = True
tie_embeddings = False
embedding_std = 0.3  # docs/SPEED.md has the gain of each choice

optimizer = "muon"
muon_lr = 0.02
learning_rate = 5e-3
max_iters = 400
lr_decay_iters = 400
cooldown_iters = 240
min_lr = 0.0
warmup_iters = 10
weight_decay = 0.0
grad_clip = 0.0

eval_interval = 200
eval_iters = 20
log_interval = 10
