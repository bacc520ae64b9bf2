"""What stands behind the training loop."""
