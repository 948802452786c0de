"""Benchmarks of Flowrra, other queues and the limits of the machine. See README.md."""
