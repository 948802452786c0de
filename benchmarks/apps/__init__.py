"""The programs that worker processes load."""
