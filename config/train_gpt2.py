# GPT-2 124M from scratch on OpenWebText.
# Data: python prepare.py openwebtext, or nanoGPT's files.
# Expect: loss about 2.85 after 4 to 5 days on 8 A100 40GB (nanoGPT's README); not measured here.
#
#   torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2.py
out_dir = "out-gpt2"
dataset = "openwebtext"
tokenizer = "gpt2"  # of files without meta.json, such as nanoGPT's
wandb_project = "owt"
wandb_run_name = "gpt2-124M"

# 5 micro-batches x 8 GPUs x 12 sequences x 1024 tokens = 491,520 tokens a step
gradient_accumulation_steps = 5 * 8
batch_size = 12
block_size = 1024

vocab_size = 50304  # GPT-2's 50,257 rounded up to a multiple of 64, for the GPU's matrix units
n_layer = 12
n_head = 12
n_embd = 768
dropout = 0.0  # as usual in pretraining
bias = False

learning_rate = 6e-4
weight_decay = 0.1  # multiplies matrices by 1 - 6e-4 * 0.1 = 0.99994 at the peak
warmup_iters = 2000
max_iters = 600_000  # 300 billion tokens
lr_decay_iters = 600_000
min_lr = 6e-5

eval_interval = 1000
eval_iters = 200
log_interval = 10
