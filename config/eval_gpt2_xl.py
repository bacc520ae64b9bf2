# Evaluate OpenAI's GPT-2 1558M on OpenWebText, without training it.
# Data: python prepare.py openwebtext, or nanoGPT's files.
# Expect: train loss 2.56, val loss 2.54 (nanoGPT's README, on its own split); not measured here.
init_from = "gpt2-xl"  # a download of 6.4 GB, once
dataset = "openwebtext"
tokenizer = "gpt2"  # of files without meta.json, such as nanoGPT's
eval_only = True

# 500 x 8 windows of 1,024 tokens, evenly spaced over each split
eval_iters = 500
batch_size = 8
wandb_log = False
