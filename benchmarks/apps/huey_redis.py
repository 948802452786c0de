"""huey on Redis, as it comes, from the environment."""

from __future__ import annotations

import os
from importlib import import_module

from benchmarks import work

huey = import_module("huey").RedisHuey(url=os.environ.get("BENCH_URL", "redis://"))

noop = huey.task()(work.noop)
stamp = huey.task()(work.stamp)
