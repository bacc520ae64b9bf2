"""What visualize.py draws."""
