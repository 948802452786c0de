"""dramatiq on Redis with results kept, from the environment."""

from __future__ import annotations

import os
from importlib import import_module

from benchmarks import work

dramatiq = import_module("dramatiq")
url = os.environ.get("BENCH_URL", "redis://")
broker = import_module("dramatiq.brokers.redis").RedisBroker(url=url)
results = import_module("dramatiq.results")
backend = import_module("dramatiq.results.backends").RedisBackend(url=url)
broker.add_middleware(results.Results(backend=backend))
dramatiq.set_broker(broker)

noop = dramatiq.actor(work.noop, store_results=True)
