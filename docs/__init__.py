"""The documentation: pages, and what draws and builds them."""
