"""What is more than the one file: adapters and tools, one module a dependency."""
