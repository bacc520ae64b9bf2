# Tier 1 of "Seu GPT": Tiny Shakespeare by characters on a laptop; 1.0M parameters.
# Data: python prepare.py shakespeare_char
# Expect: validation loss 1.579 in 3 min 6 s on 2 CPU cores; recognizable words.
out_dir = "out-tier1"
dataset = "shakespeare_char"

gradient_accumulation_steps = 1
batch_size = 16
block_size = 64

n_layer = 5
n_head = 4
n_embd = 128
dropout = 0.0

learning_rate = 2e-3
max_iters = 5000
lr_decay_iters = 5000
min_lr = 2e-4
beta2 = 0.99
warmup_iters = 100

eval_interval = 500
eval_iters = 200
log_interval = 100
