# Tiny Shakespeare by characters, 10.7M parameters: nanoGPT's first example. Data: python prepare.py shakespeare_char
# Expect: validation loss 1.4697 in about 3 minutes on an A100 (nanoGPT's README); not measured here.
out_dir = "out-shakespeare-char"
eval_interval = 250  # often, because it will overfit
eval_iters = 200
log_interval = 10
always_save_checkpoint = False

wandb_project = "shakespeare-char"
wandb_run_name = "mini-gpt"

dataset = "shakespeare_char"
gradient_accumulation_steps = 1
batch_size = 64
block_size = 256

n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2

learning_rate = 1e-3  # a small model bears more
max_iters = 5000
lr_decay_iters = 5000
min_lr = 1e-4
beta2 = 0.99  # few tokens in a step: average over more of them
warmup_iters = 100
