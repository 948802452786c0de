"""A module a scenario, each with its SCENARIO. A contestant is imported by its part alone."""
