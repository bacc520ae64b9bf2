# Fine-tune GPT-2's weights, adapted to a Llama architecture, on Shakespeare.
# Data: python prepare.py shakespeare
# Expect: not measured here. The run prints GPT-2's loss and that of the adapted model, which is
# worse: adaptation always changes the outputs.
out_dir = "out-finetune-modern"
dataset = "shakespeare"
tokenizer = "gpt2"  # of files without meta.json, such as nanoGPT's
init_from = "gpt2"

position = "rope"  # the learned positions are dropped
norm = "rmsnorm"
mlp = "swiglu"  # GPT-2's first 2,048 channels, as gate and as value
n_kv_head = 4  # each is the mean of three key/value heads
bias = False

# 32 sequences x 1024 tokens = 32,768 tokens a step; the training split has 301,966
gradient_accumulation_steps = 32
batch_size = 1
max_iters = 500
dropout = 0.1  # 54 epochs

learning_rate = 3e-4  # more than to fine-tune GPT-2 itself: adaptation has undone a lot
warmup_iters = 50
lr_decay_iters = 500
min_lr = 3e-5

eval_interval = 50
eval_iters = 40
