"""The loss of a text, exactly, and zero-shot tasks."""
