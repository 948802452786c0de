"""huey on SQLite, as it comes or tuned, from the environment."""

from __future__ import annotations

import os
from importlib import import_module

from benchmarks import work

filename = os.environ.get("BENCH_DB", "huey.db")
if os.environ.get("BENCH_TUNED"):
    huey = import_module("huey").SqliteHuey(filename=filename, fsync=False, cache_mb=64)
else:
    huey = import_module("huey").SqliteHuey(filename=filename)

noop = huey.task()(work.noop)
stamp = huey.task()(work.stamp)
wall_stamp = huey.task()(work.wall_stamp)
