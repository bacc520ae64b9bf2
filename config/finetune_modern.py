# GPT-2's weights in a Llama's architecture, fine-tuned on Shakespeare. Data: python prepare.py shakespeare
# Expect: not measured here. The run prints GPT-2's own loss and the adapted one: no such step keeps the function, so it
# begins worse, and has to learn again. What must be installed, the first message says.
out_dir = "out-finetune-modern"
dataset = "shakespeare"
init_from = "gpt2"

position = "rope"  # the learned positions are dropped
norm = "rmsnorm"
mlp = "swiglu"  # GPT-2's first 2,048 channels, as gate and as value
n_kv_head = 4  # the mean of each three heads of keys and values
bias = False

# 32 sequences x 1024 tokens = 32,768 tokens in a step; the training split has 301,966
gradient_accumulation_steps = 32
batch_size = 1
max_iters = 500
dropout = 0.1  # it passes over the data 54 times

learning_rate = 3e-4  # more than for fine-tuning alone: there is more to mend
warmup_iters = 50
lr_decay_iters = 500
min_lr = 3e-5

eval_interval = 50
eval_iters = 40
