"""Adapters and tools that are not part of the single file, one module or package for each dependency."""
