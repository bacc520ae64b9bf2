# GPTLab's small-GPU model on short stories by Machado de Assis, by characters; 10.7M parameters.
# Data: python prepare.py machado_char
# Expect: loss 1.44 after about 30 minutes on a GPU of 4 GB (GPTLab's README); not measured here.
out_dir = "out-gptlab-gpu"
dataset = "machado_char"

gradient_accumulation_steps = 1
batch_size = 32
block_size = 64

n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2

# torch's defaults for AdamW, at a constant learning rate
learning_rate = 3e-4
decay_lr = False
weight_decay = 0.01
beta2 = 0.999
grad_clip = 0.0
max_iters = 5000

eval_interval = 250
eval_iters = 200
log_interval = 10
