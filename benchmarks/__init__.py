"""How fast Flowrra is, beside its peers and the limits of the machine. See README.md."""
