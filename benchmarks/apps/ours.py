"""Flowrra, as a user would set it up: one URL, from the environment."""

from __future__ import annotations

import os

from benchmarks import work
from flowrra import BrokerConfig, Config, ExecutorConfig, Flowrra

url = os.environ.get("BENCH_URL", "memory://")
io_workers = int(os.environ.get("BENCH_IO_WORKERS", "100"))
app = Flowrra(Config(broker=BrokerConfig(url=url), executor=ExecutorConfig(io_workers=io_workers, cpu_workers=2)))


@app.task
async def noop(n: int) -> int:
    return work.noop(n)


@app.task
async def stamp() -> int:
    return work.stamp()


@app.task
async def wall_stamp() -> float:
    return work.wall_stamp()
