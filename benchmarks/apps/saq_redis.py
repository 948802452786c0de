"""saq on Redis, from the environment."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from benchmarks import work

queue: Any = import_module("saq").Queue.from_url(os.environ.get("BENCH_URL", "redis://"))


async def noop(ctx: Any, *, n: int) -> int:
    return work.noop(n)


settings = {"queue": queue, "functions": [noop], "concurrency": 50}  # with 100 its own connections run out
