# GPT-2 774M with OpenAI's own weights, read and not trained: its loss over OpenWebText, which it was not trained on.
# Expect: 2.66 and 2.67 over train and val (nanoGPT's README, of its split); not measured here.
# Data: python prepare.py openwebtext --input=FOLDER_OF_TEXT --tokenizer=gpt2, or nanoGPT's train.bin and val.bin
init_from = "gpt2-large"  # 3.2 GB, fetched once
dataset = "openwebtext"
eval_only = True

# 500 x 8 windows of 1,024 tokens, evenly spaced over each split
eval_iters = 500
batch_size = 8
wandb_log = False
