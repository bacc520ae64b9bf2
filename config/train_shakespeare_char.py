# Tiny Shakespeare by characters, nanoGPT's first example; 10.7M parameters.
# Data: python prepare.py shakespeare_char
# Expect: validation loss 1.4697 in 3 minutes on an A100 (nanoGPT's README); not measured here.
out_dir = "out-shakespeare-char"
eval_interval = 250  # often, because the model will overfit
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

learning_rate = 1e-3  # small models tolerate a higher one
max_iters = 5000
lr_decay_iters = 5000
min_lr = 1e-4
beta2 = 0.99  # few tokens a step: average over more steps
warmup_iters = 100
