"""What the worker processes load."""
