# Tiny Shakespeare by characters in a Llama architecture; 9.5M parameters.
# Data: python prepare.py shakespeare_char
# Expect: not measured here. docs/architecture.md has the gain over GPT-2's architecture at a
# smaller size.
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

# Llama's choices, which export.py writes as a LlamaForCausalLM. qk_norm=True would lower the loss
# further, but Llama has no such norm.
position = "rope"
norm = "rmsnorm"
mlp = "swiglu"
n_kv_head = 2  # three query heads share a key/value head
bias = False

learning_rate = 1e-3
max_iters = 5000
lr_decay_iters = 5000
min_lr = 1e-4
beta2 = 0.99
warmup_iters = 100
