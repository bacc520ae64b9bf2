"""From logits to the next token, from token to token through the cache, from tokens to text."""
