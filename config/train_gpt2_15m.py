# A GPT-2 of 16.1M parameters, four fifths of them embedding, from a text of about 4M tokens.
# Expect: the document it follows reports train 5.3, validation 9.4 after 37.5 minutes an epoch; not measured here.
#
#   python prepare.py gpt2_15m --input=data/train.txt --val_input=data/val.txt --tokenizer=gpt2
out_dir = "out-gpt2-15m"
dataset = "gpt2_15m"

gradient_accumulation_steps = 1
batch_size = (
    32  # out of memory: 16 or 8 with twice or four times the accumulation, or block_size = 128
)
block_size = 256

vocab_size = 50304
n_layer = 4
n_head = 4
n_embd = 256
dropout = 0.7  # the document's; far more than usual, and part of why its losses are high
bias = True

learning_rate = 3e-4
decay_lr = False
weight_decay = 0.1
beta1 = 0.9
beta2 = 0.95
grad_clip = 1.0
max_iters = 2848  # the document's epoch: 23,330,816 tokens

eval_interval = 250
eval_iters = 50
log_interval = 10
