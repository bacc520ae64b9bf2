# A small Llama on Python's own documentation, by characters; 0.6M parameters.
# Data: python prepare.py python_docs
# Expect: validation loss 1.37 in half a minute on 2 CPU cores; text that looks like English.
out_dir = "out-quickstart"
dataset = "python_docs"

gradient_accumulation_steps = 1
batch_size = 12
block_size = 128  # context length, in characters

n_layer = 3
n_head = 4
n_embd = 128
bias = False
position = "rope"
norm = "rmsnorm"
mlp = "swiglu"
tie_embeddings = False
embedding_std = 0.3  # docs/SPEED.md has the gain of each choice

optimizer = "muon"
muon_lr = 0.02
learning_rate = 1e-2
max_iters = 600
lr_decay_iters = 600
cooldown_iters = 360
min_lr = 0.0
warmup_iters = 10
weight_decay = 0.0
grad_clip = 0.0

eval_interval = 100
eval_iters = 20
log_interval = 20
