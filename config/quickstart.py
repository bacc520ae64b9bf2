# A character-level GPT of 0.8M parameters on Python's own documentation. Data: python prepare.py python_docs
# Expect: validation loss 1.40 in 1 min 48 s on 2 CPU cores; text that reads like English from afar.
out_dir = "out-quickstart"
dataset = "python_docs"

gradient_accumulation_steps = 1
batch_size = 16
block_size = 64  # characters that the model sees at once

n_layer = 4
n_head = 4
n_embd = 128

learning_rate = 4e-3  # so small a model bears much
max_iters = 2500
lr_decay_iters = 2500
min_lr = 4e-4
beta2 = 0.99
warmup_iters = 100

eval_interval = 250
eval_iters = 20
log_interval = 50
