# A Llama of GPT-2's size, 114M parameters; all but the architecture is as in train_gpt2.py.
# Data: .npy shards in data/fineweb_edu (README, Data prepared elsewhere)
# Expect: not measured here.
#
#   torchrun --standalone --nproc_per_node=8 train.py config/train_modern_gpt2_size.py
out_dir = "out-modern-gpt2"
dataset = "fineweb_edu"
tokenizer = "gpt2"  # of files without meta.json, such as nanoGPT's
wandb_project = "fineweb"
wandb_run_name = "modern-124M"

# 5 micro-batches x 8 GPUs x 12 sequences x 1024 tokens = 491,520 tokens a step
gradient_accumulation_steps = 5 * 8
batch_size = 12
block_size = 1024

vocab_size = 50304
n_layer = 12
n_head = 12
n_embd = 768
dropout = 0.0

position = "rope"
norm = "rmsnorm"
mlp = "swiglu"  # 2,048 channels: as many parameters as 3,072 with GELU
n_kv_head = 4  # a third of GPT-2's KV cache
bias = False

learning_rate = 6e-4
weight_decay = 0.1
warmup_iters = 2000
max_iters = 600_000
lr_decay_iters = 600_000
min_lr = 6e-5

eval_interval = 1000
eval_iters = 200
log_interval = 10
