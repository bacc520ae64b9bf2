# Evaluate OpenAI's GPT-2 350M on OpenWebText, without training it.
# Data: python prepare.py openwebtext, or nanoGPT's files.
# Expect: train loss 2.85, val loss 2.84 (nanoGPT's README, on its own split); not measured here.
init_from = "gpt2-medium"  # a download of 1.5 GB, once
dataset = "openwebtext"
tokenizer = "gpt2"  # of files without meta.json, such as nanoGPT's
eval_only = True

# 500 x 8 windows of 1,024 tokens, evenly spaced over each split
eval_iters = 500
batch_size = 8
wandb_log = False
