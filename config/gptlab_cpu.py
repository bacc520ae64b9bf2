# GPTLab's laptop model on short stories by Machado de Assis, by characters; 0.2M parameters.
# Data: python prepare.py machado_char
# Expect: validation loss 1.806 in 1 min 17 s on 2 CPU cores; 1.678 in 2 min 31 s with
# --max_iters=10000.
out_dir = "out-gptlab-cpu"
dataset = "machado_char"

gradient_accumulation_steps = 1
batch_size = 32
block_size = 32

n_layer = 4
n_head = 4
n_embd = 64
dropout = 0.0

# torch's defaults for AdamW, at a constant learning rate
learning_rate = 3e-4
decay_lr = False
weight_decay = 0.01
beta2 = 0.999
grad_clip = 0.0
max_iters = 5000

eval_interval = 500
eval_iters = 200
log_interval = 100
