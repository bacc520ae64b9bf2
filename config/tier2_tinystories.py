# Tier 2 of "Seu GPT": TinyStories (huggingface.co/datasets/roneneldan/TinyStories) in BPE tokens;
# 17.5M parameters.
# Data: python prepare.py tinystories --tokenizer=bpe --vocab_size=8192 \
#           --input=TinyStoriesV2-GPT4-train.txt --val_input=TinyStoriesV2-GPT4-valid.txt
# Expect: stories of 3 to 5 coherent sentences after 1 to 2 hours on an RTX 3090 ("Seu GPT"); not
# measured here.
out_dir = "out-tinystories"
dataset = "tinystories"

gradient_accumulation_steps = 1
batch_size = 64
block_size = 512

n_layer = 8
n_head = 6
n_embd = 384
dropout = 0.0

learning_rate = 1e-3
max_iters = 20_000  # 655 million tokens
lr_decay_iters = 20_000
min_lr = 1e-4
beta2 = 0.99
warmup_iters = 500

eval_interval = 1000
eval_iters = 50
log_interval = 10
