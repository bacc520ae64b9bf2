"""Speed, measured beside other trainers."""
