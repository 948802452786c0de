"""Flowrra in memory with CPU-bound jobs; the child processes load this module too."""

from __future__ import annotations

from benchmarks import work
from flowrra import Config, ExecutorConfig, Flowrra

app = Flowrra(Config(executor=ExecutorConfig(cpu_workers=2)))


@app.task(cpu_bound=True)
def burn(milliseconds: float) -> int:
    return work.burn(milliseconds)
