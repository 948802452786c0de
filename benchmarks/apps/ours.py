"""Flowrra, as a user would set it up: one URL, from the environment."""

from __future__ import annotations

import os

from flowrra import BrokerConfig, Config, ExecutorConfig, Flowrra

from benchmarks import work

url = os.environ.get("BENCH_URL")
io_workers = int(os.environ.get("BENCH_IO_WORKERS", "100"))

app = Flowrra(
    Config(
        broker=BrokerConfig(url=url) if url else None,
        executor=ExecutorConfig(io_workers=io_workers, cpu_workers=2),
    )
)


@app.task
async def noop(n: int) -> int:
    return work.noop(n)


@app.task
async def stamp() -> int:
    return work.stamp()


@app.task
async def wall_stamp() -> float:
    return work.wall_stamp()
