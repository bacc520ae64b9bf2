"""Generation: from logits to the next token, through the KV cache, to text."""
