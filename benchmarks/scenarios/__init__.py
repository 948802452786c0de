"""One module for each scenario, with its SCENARIO. Only the part of a contestant imports it."""
