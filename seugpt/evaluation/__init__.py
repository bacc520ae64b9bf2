"""The exact loss of a text, and zero-shot tasks."""
