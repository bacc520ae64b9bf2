# Evaluate OpenAI's GPT-2 124M on OpenWebText, without training it.
# Data: python prepare.py openwebtext, or nanoGPT's files.
# Expect: train loss 3.11, val loss 3.12 (nanoGPT's README, on its own split); not measured here.
init_from = "gpt2"  # a download of 0.5 GB, once
dataset = "openwebtext"
tokenizer = "gpt2"  # of files without meta.json, such as nanoGPT's
eval_only = True

# 500 x 8 windows of 1,024 tokens, evenly spaced over each split
eval_iters = 500
batch_size = 8
wandb_log = False
