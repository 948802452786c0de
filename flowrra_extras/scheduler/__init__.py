"""Stored schedules: in a SQLite file, in PostgreSQL, in MySQL or MariaDB, in Redis.

    app.create_scheduler()                                             # the file .flowrra_schedule.db
    app.create_scheduler("sqlite:////var/lib/app/schedules.db")        # sqlite:// is private and in memory
    app.create_scheduler("postgresql://user:p%40ss@db:5432/app?sslmode=require&search_path=jobs")
    app.create_scheduler("mysql://user:p%40ss@db:3306/app?ssl_ca=/etc/ssl/ca.pem")  # mariadb:// is the same
    app.create_scheduler("redis://user:p%40ss@db:6379/0?prefix=billing")

User and password are percent-encoded. A URL of PostgreSQL or Redis is read as for the broker on the same server;
MySQL takes ssl=true and ssl_ca. A driver is imported when its scheme is used.
"""

from collections.abc import Mapping

from flowrra import Clock, ConfigError, Flowrra, import_extra
from flowrra_extras.scheduler.scheduler import (
    ScheduleDefinition,
    Scheduler,
    StoredOptions,
    SyncReport,
    submit_now,
    unknown_schedule,
)
from flowrra_extras.scheduler.sql import Database, SQLScheduleStore
from flowrra_extras.scheduler.store import MemoryScheduleStore, ScheduleStore

__all__ = [
    "DEFAULT_URL",
    "MemoryScheduleStore",
    "SQLScheduleStore",
    "ScheduleDefinition",
    "ScheduleStore",
    "Scheduler",
    "StoredOptions",
    "SyncReport",
    "schedule_store_from_url",
    "scheduler_for",
    "store_from_url",
    "submit_now",
    "unknown_schedule",
]

DEFAULT_URL = "sqlite:///.flowrra_schedule.db"

# Scheme: the function that serves it, and what installs its driver.
_SCHEMES: Mapping[str, tuple[str, str]] = {
    "sqlite": ("sql.sqlite_database", "flowrra[scheduler]"),
    "postgresql": ("postgresql.database_from_url", "flowrra[postgresql]"),
    "postgres": ("postgresql.database_from_url", "flowrra[postgresql]"),
    "mysql": ("mysql.database_from_url", "flowrra[mysql]"),
    "mariadb": ("mysql.database_from_url", "flowrra[mysql]"),
    "redis": ("redis.store_from_url", "flowrra[redis]"),
    "rediss": ("redis.store_from_url", "flowrra[redis]"),
    "unix": ("redis.store_from_url", "flowrra[redis]"),
}


def scheduler_for(app: Flowrra, backend: str | ScheduleStore | None) -> Scheduler:
    """Make what `app.create_scheduler(backend)` returns."""
    store = backend if isinstance(backend, ScheduleStore) else store_from_url(backend, app.clock)
    return Scheduler(app, store)


def store_from_url(url: str | None = None, clock: Clock | None = None, *, timeout: float = 10.0) -> ScheduleStore:
    """Return the store of schedules for a URL. It is not open yet.

    Args:
        url: the address of the store; None: DEFAULT_URL, a file in the working directory.
        clock: the clock of a store in memory.
        timeout: seconds after which a call of the store fails.

    Raises:
        ConfigError: the scheme is unknown, the URL is not valid, or a driver is not installed.
    """
    if url is not None and (not isinstance(url, str) or not url):
        raise ConfigError(f"a store of schedules needs a URL such as sqlite:///schedules.db, not {url!r}")
    url = url or DEFAULT_URL
    if url in ("memory://", "memory"):
        return MemoryScheduleStore(clock)
    scheme = url.partition("://")[0].lower()
    kind = scheme.partition("+")[0]  # redis+sentinel
    if kind not in _SCHEMES or "://" not in url:
        known = ", ".join(f"{name}://" for name in _SCHEMES)
        raise ConfigError(
            f"no store of schedules has the scheme {url.partition(':')[0]!r}; there are memory://, {known}"
        )
    target, package = _SCHEMES[kind]
    module, _, function = target.partition(".")
    make = import_extra(f"flowrra_extras.scheduler.{module}", function, f"{scheme}:// needs a driver", package)
    made: Database | ScheduleStore = make(url, timeout=timeout) if module == "redis" else make(url)
    return made if isinstance(made, ScheduleStore) else SQLScheduleStore(made, clock, timeout=timeout)


schedule_store_from_url = store_from_url  # as flowrra.py named it
