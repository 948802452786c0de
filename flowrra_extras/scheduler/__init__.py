"""Stored schedules: in a SQLite file, in PostgreSQL, in MySQL or MariaDB.

    app.create_scheduler()                                             # the file .flowrra_schedule.db
    app.create_scheduler("sqlite:////var/lib/app/schedules.db")        # sqlite:// is private and in memory
    app.create_scheduler("postgresql://user:p%40ss@db:5432/app?sslmode=require&search_path=jobs")
    app.create_scheduler("mysql://user:p%40ss@db:3306/app?ssl_ca=/etc/ssl/ca.pem")  # mariadb:// is the same

User and password are percent-encoded. PostgreSQL takes the options application_name, search_path, sslmode,
sslrootcert, sslcert, sslkey and sslcrl; MySQL takes ssl=true and ssl_ca. A driver is imported when its
scheme is used.
"""

import importlib
from collections.abc import Mapping
from typing import cast

from flowrra import Clock, ConfigError, Flowrra
from flowrra_extras.scheduler.database import Database
from flowrra_extras.scheduler.memory import MemoryScheduleStore
from flowrra_extras.scheduler.protocol import ScheduleStore
from flowrra_extras.scheduler.scheduler import Scheduler, StoredOptions, submit_now, unknown_schedule
from flowrra_extras.scheduler.store import SQLScheduleStore

__all__ = [
    "DEFAULT_URL",
    "MemoryScheduleStore",
    "SQLScheduleStore",
    "ScheduleStore",
    "Scheduler",
    "StoredOptions",
    "schedule_store_from_url",
    "scheduler_for",
    "store_from_url",
    "submit_now",
    "unknown_schedule",
]

DEFAULT_URL = "sqlite:///.flowrra_schedule.db"

# Scheme: the module that serves it by `database_from_url`, and what installs its driver.
_SCHEMES: Mapping[str, tuple[str, str]] = {
    "sqlite": ("sqlite", "flowrra[scheduler]"),
    "postgresql": ("postgresql", "flowrra[postgresql]"),
    "postgres": ("postgresql", "flowrra[postgresql]"),
    "mysql": ("mysql", "flowrra[mysql]"),
    "mariadb": ("mysql", "flowrra[mysql]"),
}


def scheduler_for(app: Flowrra, backend: str | ScheduleStore | None) -> Scheduler:
    """What `app.create_scheduler(backend)` makes."""
    store = backend if isinstance(backend, ScheduleStore) else store_from_url(backend, app.clock)
    return Scheduler(app, store)


def store_from_url(url: str | None = None, clock: Clock | None = None, *, timeout: float = 10.0) -> ScheduleStore:
    """The store that a URL stands for (None: DEFAULT_URL), not open yet; a call gives up after `timeout` seconds.

    Raises:
        ConfigError: no such scheme, a URL that the scheme cannot read, or a driver that is not installed.
    """
    if url is not None and (not isinstance(url, str) or not url):
        raise ConfigError(f"a store of schedules is given as a URL such as sqlite:///schedules.db, not {url!r}")
    if url in ("memory://", "memory"):
        return MemoryScheduleStore(clock)
    return SQLScheduleStore(_database(url or DEFAULT_URL), clock, timeout=timeout)


schedule_store_from_url = store_from_url  # as flowrra.py named it


def _database(url: str) -> Database:
    scheme = url.partition(":")[0].lower()
    if scheme not in _SCHEMES or "://" not in url:
        known = ", ".join(f"{name}://" for name in _SCHEMES)
        raise ConfigError(f"schedules are not stored by the scheme {scheme!r}; there are memory://, {known}")
    module, package = _SCHEMES[scheme]
    try:
        driver = importlib.import_module(f"flowrra_extras.scheduler.{module}")
    except ImportError as error:
        without = "; memory:// needs no driver, and forgets" if scheme == "sqlite" else ""
        raise ConfigError(f"{scheme}:// needs a driver ({error}): pip install '{package}'{without}") from error
    return cast("Database", driver.database_from_url(url))
