# Fine-tune GPT-2 on Shakespeare at a constant learning rate.
# Data: python prepare.py shakespeare
# Expect: not measured here. The weights of gpt2-xl are 6.4 GB; those of gpt2, the smallest, 0.5 GB.
out_dir = "out-shakespeare"
dataset = "shakespeare"
tokenizer = "gpt2"  # of files without meta.json, such as nanoGPT's
init_from = "gpt2-xl"

eval_interval = 5
eval_iters = 40

# 32 sequences x 1024 tokens = 32,768 tokens a step; the training split has 301,966: 2 epochs
gradient_accumulation_steps = 32
batch_size = 1
max_iters = 20

learning_rate = 3e-5
decay_lr = False
