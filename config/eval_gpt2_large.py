# Evaluate OpenAI's GPT-2 774M on OpenWebText, without training it.
# Data: python prepare.py openwebtext, or nanoGPT's files.
# Expect: train loss 2.66, val loss 2.67 (nanoGPT's README, on its own split); not measured here.
init_from = "gpt2-large"  # a download of 3.2 GB, once
dataset = "openwebtext"
tokenizer = "gpt2"  # of files without meta.json, such as nanoGPT's
eval_only = True

# 500 x 8 windows of 1,024 tokens, evenly spaced over each split
eval_iters = 500
batch_size = 8
wandb_log = False
