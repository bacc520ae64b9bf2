# Tiny Shakespeare by characters in a Llama's architecture, 9.5M parameters. Data: python prepare.py shakespeare_char
# Expect: a lower loss than with the architecture of GPT-2 (docs/architecture.md says how much); as it is: not measured.
out_dir = "out-modern-char"
eval_interval = 250
eval_iters = 200
log_interval = 10

dataset = "shakespeare_char"
gradient_accumulation_steps = 1
batch_size = 64
block_size = 256

n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2

# Llama's choices; python export.py makes a LlamaForCausalLM of it. qk_norm=True lowers the loss further, but has no
# place there.
position = "rope"
norm = "rmsnorm"
mlp = "swiglu"
n_kv_head = 2  # three heads of queries share one of keys and values
bias = False

learning_rate = 1e-3
max_iters = 5000
lr_decay_iters = 5000
min_lr = 1e-4
beta2 = 0.99
warmup_iters = 100
