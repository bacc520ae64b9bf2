# GPT-2 1558M with OpenAI's own weights, read and not trained: its loss over OpenWebText, which it was not trained on.
# Expect: 2.56 and 2.54 over train and val (nanoGPT's README, of its split); not measured here.
# Data: python prepare.py openwebtext --input=FOLDER_OF_TEXT --tokenizer=gpt2, or nanoGPT's train.bin and val.bin
init_from = "gpt2-xl"  # 6.4 GB, fetched once
dataset = "openwebtext"
eval_only = True

# 500 x 8 windows of 1,024 tokens, evenly spaced over each split
eval_iters = 500
batch_size = 8
wandb_log = False
