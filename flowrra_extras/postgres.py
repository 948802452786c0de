"""Jobs in PostgreSQL 13+, for many machines, in the database you already run: `pip install flowrra[postgresql]`.

    app = Flowrra.from_urls("postgresql://user:password@host:5432/database")
    app = Flowrra.from_urls("postgresql:///app?host=/var/run/postgresql&schema=billing")
    app = Flowrra.from_urls("postgresql://one,two/app?target_session_attrs=read-write")  # whichever is the primary

User and password are percent-encoded. Own options: `schema=` (flowrra), where the tables live, made at the first
opening; `pool_size=` (4), connections at most, beside one that listens; `synchronous_commit=` as in postgresql.conf,
for what is acknowledged (the server's own setting unless told otherwise); `statement_cache_size=0` for a pooler in
transaction mode such as pgbouncer: no prepared statements, no session state, no LISTEN, news by a look each second.
The others are libpq's, as asyncpg takes them.

A job is one row, and every move of it a guarded UPDATE. What concurrent callers want goes out as one statement over
arrays. Whoever waits is told by NOTIFY, and looks each second in case a notification was lost.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import inspect
import itertools
import json
import logging
import random
import re
import secrets
import types
import urllib.parse
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import asyncpg

from flowrra import (
    BY_HAND,
    EXPIRED,
    FAILED,
    FINISHED,
    HISTORY_LIMIT,
    KILLED,
    LEFT,
    MAX_CRASHES,
    NO_ARGUMENTS,
    REQUEUABLE,
    RUNNING,
    SUCCESS,
    WORKER_LOST,
    Attempt,
    BackendConfig,
    Broker,
    BrokerConfig,
    BrokerError,
    Clock,
    Config,
    ConfigError,
    FlowrraError,
    Job,
    JobFilter,
    Notices,
    Outcome,
    Progress,
    SerializationError,
    TaskResult,
    TaskStatus,
    WorkerInfo,
    check_queue,
    decode,
    encode,
    encode_arguments,
    encode_value,
    orphaned,
    timed_out,
    unknown_job,
)
from flowrra_extras.batching import Batcher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence

T = TypeVar("T")

__all__ = ["PostgresBroker", "broker_from_url"]

logger = logging.getLogger("flowrra")

_LOOK_EVERY = 1.0  # seconds between looks, should a notification have been lost
_SILENCE = 5.0  # seconds after which a connection that does not answer is given up for a new one
_CHUNK = 2_000  # jobs of one INSERT: while the server takes one chunk in, the next is encoded
_PROMOTED = 10_000  # jobs that have come due and are made ready in one step
_DOUBT = 60.0  # seconds for which a claim whose answer was lost is looked for
_CONTENDED = 0.005  # seconds that a lone push takes when others hold it up
_PAYLOAD = 7_900  # bytes; PostgreSQL refuses a notification of 8,000

# ---------------------------------------------------------------------------
# Schema and statements
#
# `flowrra.` stands for the schema of the URL. Moments are seconds since the
# epoch by the callers' clocks; leases alone are by the server's.
# ---------------------------------------------------------------------------

_DUE_LATER = "('scheduled', 'retrying')"
_NOT_BEGUN = "('scheduled', 'blocked', 'pending')"
_UNFINISHED = "('scheduled', 'blocked', 'pending', 'running', 'retrying')"
_AT_REST = "('scheduled', 'blocked', 'pending', 'retrying')"
_REQUEUABLE = "('failed', 'cancelled')"

_SCHEMA = f"""
CREATE TABLE flowrra.job (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,  -- the order of submission
    id text COLLATE "C" NOT NULL UNIQUE,
    task text COLLATE "C" NOT NULL,
    queue text COLLATE "C" NOT NULL,
    priority bigint NOT NULL,
    status text COLLATE "C" NOT NULL,
    payload text NOT NULL,
    submitted float8 NOT NULL,
    due float8,
    expires float8,
    unique_key text COLLATE "C",
    parents text,
    overrides text,
    attempt integer NOT NULL DEFAULT 0,
    failures integer NOT NULL DEFAULT 0,
    crashes integer NOT NULL DEFAULT 0,
    cancel_requested boolean NOT NULL DEFAULT false,
    has_children boolean NOT NULL DEFAULT false,  -- then its end concerns others
    worker text COLLATE "C",
    started float8,
    finished float8,
    purge_at float8,
    result text,
    error text,
    traceback text,
    progress text,
    history jsonb,
    CHECK (CASE status
        WHEN 'pending' THEN finished IS NULL
        WHEN 'running' THEN finished IS NULL AND attempt > 0 AND worker IS NOT NULL AND started IS NOT NULL
        WHEN 'success' THEN finished IS NOT NULL
        WHEN 'scheduled' THEN finished IS NULL AND due IS NOT NULL
        WHEN 'retrying' THEN finished IS NULL AND due IS NOT NULL AND failures > 0
        WHEN 'blocked' THEN finished IS NULL
        WHEN 'failed' THEN finished IS NOT NULL
        WHEN 'cancelled' THEN finished IS NOT NULL
        ELSE false END)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000);
-- A claim and a settle change what partial indexes ask for, so that neither can be a HOT update: each writes an
-- entry for seq, for id, and for the one other index that the row then belongs to. Waiting jobs stay out of the
-- line by their status, and suspects have a line of their own, as in the schema of the SQLite store.
CREATE INDEX job_ready ON flowrra.job (queue, priority, seq) WHERE status = 'pending' AND crashes = 0;
CREATE INDEX job_suspect ON flowrra.job (queue, crashes, priority, seq) WHERE status = 'pending' AND crashes > 0;
CREATE INDEX job_due ON flowrra.job (due) WHERE status IN {_DUE_LATER};
CREATE INDEX job_expiring ON flowrra.job (expires)
    WHERE expires IS NOT NULL AND attempt = 0 AND status IN {_NOT_BEGUN};
CREATE INDEX job_running ON flowrra.job (worker) WHERE status = 'running';
CREATE INDEX job_running_suspect ON flowrra.job (worker) WHERE status = 'running' AND crashes > 0;
CREATE INDEX job_cancelling ON flowrra.job (worker) WHERE status = 'running' AND cancel_requested;
CREATE INDEX job_purge ON flowrra.job (purge_at) WHERE purge_at IS NOT NULL;
CREATE UNIQUE INDEX job_unique ON flowrra.job (unique_key) WHERE unique_key IS NOT NULL AND status IN {_UNFINISHED};
CREATE TABLE flowrra.dependency (  -- unfinished parents that a blocked job waits for, both by seq
    parent bigint NOT NULL,
    child bigint NOT NULL,
    PRIMARY KEY (parent, child)
);
CREATE INDEX dependency_child ON flowrra.dependency (child);
CREATE TABLE flowrra.worker (
    id text COLLATE "C" PRIMARY KEY,
    host text NOT NULL,
    pid integer NOT NULL,
    queues text NOT NULL,
    tasks text NOT NULL,
    started float8 NOT NULL,
    seen float8 NOT NULL,
    running integer NOT NULL,
    version text NOT NULL,
    lease timestamptz NOT NULL  -- by the server's clock; in no index, so that a heartbeat is a HOT update
) WITH (fillfactor = 50);
CREATE TABLE flowrra.paused (queue text COLLATE "C" PRIMARY KEY);
CREATE TABLE flowrra.awaited (  -- jobs whose end somebody waits for, and the channel to tell it on
    id text COLLATE "C" NOT NULL,
    channel text NOT NULL,
    PRIMARY KEY (id, channel)
);
"""

# Entry n takes a store from schema n to n + 1.
_MIGRATIONS = (_SCHEMA,)

_META = """
CREATE SCHEMA IF NOT EXISTS flowrra;
CREATE TABLE IF NOT EXISTS flowrra.meta (version integer NOT NULL, store uuid NOT NULL);
INSERT INTO flowrra.meta SELECT 0, gen_random_uuid() WHERE NOT EXISTS (SELECT FROM flowrra.meta)
"""

# In a statement's WHERE: what it commits need not be on disk at once. A power cut may undo it; no job is lost.
_LAZY = "set_config('synchronous_commit', 'off', true) = 'off'"

# Neighbours that differ in id and arguments alone: 156,000/s at 1,000 a statement, of _INSERT 102,000.
# $1 now, $2 ids, $3 payloads, $4 task, $5 queue, $6 priority, $7 due, $8 expires, $9 overrides
_INSERT_ALIKE = """
    INSERT INTO flowrra.job (id, payload, task, queue, priority, status, submitted, due, expires, overrides)
    SELECT id, payload, $4::text, $5::text, $6::bigint,
        CASE WHEN $7::float8 > $1::float8 THEN 'scheduled' ELSE 'pending' END, $1::float8,
        CASE WHEN $7::float8 > $1::float8 THEN $7::float8 END, $8::float8, $9::text
    FROM unnest($2::text[], $3::text[]) AS v (id, payload) ON CONFLICT DO NOTHING"""
# The same, with $11 said on channel $10: tells in one round trip less (1.0 for 1.25 ms from submit to start), but makes
# all commits that do so wait for one another.
_INSERT_AND_TELL = f"WITH new AS ({_INSERT_ALIKE} RETURNING 1) SELECT (SELECT count(*) FROM new), pg_notify($10, $11)"
# $1 now, then arrays: ids, payloads, tasks, queues, priorities, dues, expires, overrides, unique keys, parents
_INSERT = """
    INSERT INTO flowrra.job (id, payload, task, queue, priority, status, submitted, due, expires, overrides,
        unique_key, parents)
    SELECT id, payload, task, queue, priority,
        CASE WHEN parents IS NOT NULL THEN 'blocked' WHEN due > $1::float8 THEN 'scheduled' ELSE 'pending' END,
        $1::float8, CASE WHEN parents IS NOT NULL OR due > $1::float8 THEN due END, expires, overrides,
        unique_key, parents
    FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::float8[], $8::float8[],
        $9::text[], $10::text[], $11::text[])
        AS v (id, payload, task, queue, priority, due, expires, overrides, unique_key, parents)
    ON CONFLICT DO NOTHING"""
_INSERTED = f"{_INSERT} RETURNING seq, id"
_HOLDERS = f"""
    SELECT unique_key, id FROM flowrra.job WHERE unique_key = ANY ($1::text[]) AND status IN {_UNFINISHED}"""

# The line of a parent and that of its children are held by the row locks of the parents: whoever ends one waits here.
_LOCK_PARENTS = """
    SELECT id, seq, status FROM flowrra.job WHERE id = ANY ($1::text[]) ORDER BY seq FOR NO KEY UPDATE"""
_DEPEND = """
    WITH told AS (UPDATE flowrra.job SET has_children = true WHERE seq = ANY ($1::bigint[]) AND NOT has_children)
    INSERT INTO flowrra.dependency SELECT * FROM unnest($1::bigint[], $2::bigint[]) ON CONFLICT DO NOTHING"""
_LOCK_CHILDREN = """
    SELECT seq FROM flowrra.job WHERE seq IN (SELECT child FROM flowrra.dependency WHERE parent = ANY ($1::bigint[]))
    ORDER BY seq FOR NO KEY UPDATE"""
_FORGET_PARENTS = "DELETE FROM flowrra.dependency WHERE parent = ANY ($1::bigint[])"
_UNBLOCK = """
    UPDATE flowrra.job SET status = CASE WHEN due > $2::float8 THEN 'scheduled' ELSE 'pending' END,
        due = CASE WHEN due > $2::float8 THEN due END
    WHERE seq = ANY ($1::bigint[]) AND status = 'blocked'
        AND NOT EXISTS (SELECT FROM flowrra.dependency WHERE child = seq)"""

# What waits for its turn: $1 seqs, $2 their reasons, $3 status, $4 now, $5 when to purge.
_BURY = f"""
    UPDATE flowrra.job SET status = $3::text, error = v.error, traceback = NULL, finished = $4::float8,
        purge_at = $5::float8
    FROM unnest($1::bigint[], $2::text[]) AS v (seq, error)
    WHERE job.seq = v.seq AND status IN {_AT_REST} RETURNING job.seq, id"""
_CHILDREN = "SELECT parent, child FROM flowrra.dependency WHERE parent = ANY ($1::bigint[]) ORDER BY parent"

_CLAIMED = "seq, id, task, payload, queue, priority, submitted, attempt, failures, crashes, overrides, parents"
# A claim holds its worker's row: whoever rescues that worker's jobs deletes the row first, so waits for the claim and
# then sees all that it took. `FOR KEY SHARE` lets heartbeats pass.
_ME = f"SELECT FROM flowrra.worker WHERE id = $2 AND lease > clock_timestamp() AND {_LAZY} FOR KEY SHARE"
# $1 queue, $2 worker, $3 now, $4 limit, ($5 priority, $6 seq) after which to look, $7 whether there may be something
# to do first, $8 whether there may be suspects. One row at least: what stands in the way, and the job if there is one.
_CLAIM = f"""
    WITH me AS MATERIALIZED ({_ME}),
    state AS MATERIALIZED (
        SELECT EXISTS (SELECT FROM me) AND NOT EXISTS (SELECT FROM flowrra.paused WHERE queue = $1) AS may,
            $7::boolean AND (EXISTS (SELECT FROM flowrra.worker WHERE lease <= clock_timestamp() AND id <> $2)
                OR EXISTS (SELECT FROM flowrra.job WHERE status IN {_DUE_LATER} AND due <= $3)
                OR EXISTS (SELECT FROM flowrra.job WHERE expires IS NOT NULL AND attempt = 0
                    AND status IN {_NOT_BEGUN} AND expires <= $3)) AS upkeep,
            $8::boolean AND (EXISTS (SELECT FROM flowrra.job WHERE status = 'pending' AND crashes > 0 AND queue = $1)
                OR EXISTS (SELECT FROM flowrra.job WHERE status = 'running' AND crashes > 0 AND worker = $2))
                AS suspects),
    started AS (
        UPDATE flowrra.job SET status = 'running', attempt = attempt + 1, worker = $2::text, started = $3::float8
        WHERE seq = ANY (ARRAY(
            SELECT seq FROM flowrra.job WHERE status = 'pending' AND crashes = 0 AND queue = $1
                AND (priority, seq) > ($5::bigint, $6::bigint)
                AND (SELECT may AND NOT upkeep AND NOT suspects FROM state)
            ORDER BY priority, seq LIMIT $4::bigint FOR UPDATE SKIP LOCKED))
        RETURNING {_CLAIMED})
    SELECT may, upkeep, suspects, CASE WHEN seq IS NULL THEN
            (SELECT due FROM flowrra.job WHERE status IN {_DUE_LATER} ORDER BY due LIMIT 1) END AS next_due, started.*
    FROM state LEFT JOIN started ON true"""
# $1 queue, $2 worker, $3 now. One row at least: whether the worker runs something, and whether that is a suspect.
_CLAIM_SUSPECT = f"""
    WITH me AS MATERIALIZED ({_ME}),
    held AS MATERIALIZED (
        SELECT count(*) > 0 AS busy, coalesce(max(crashes), 0) > 0 AS alone
        FROM flowrra.job WHERE status = 'running' AND worker = $2),
    started AS (
        UPDATE flowrra.job SET status = 'running', attempt = attempt + 1, worker = $2::text, started = $3::float8
        WHERE seq = ANY (ARRAY(
            SELECT seq FROM flowrra.job WHERE status = 'pending' AND crashes > 0 AND queue = $1
                AND EXISTS (SELECT FROM me) AND (SELECT NOT busy FROM held)
            ORDER BY crashes, priority, seq LIMIT 1 FOR UPDATE SKIP LOCKED))
        RETURNING {_CLAIMED})
    SELECT busy, alone, started.* FROM held LEFT JOIN started ON true"""
_RESUME = f"""
    SELECT {_CLAIMED} FROM flowrra.job WHERE status = 'running' AND worker = $2 AND queue = $1 AND started = $3"""

_PROMOTE = f"""
    UPDATE flowrra.job SET status = 'pending', due = NULL WHERE seq IN (
        SELECT seq FROM flowrra.job WHERE status IN {_DUE_LATER} AND due <= $1 ORDER BY due LIMIT {_PROMOTED}
        FOR UPDATE SKIP LOCKED)"""
_EXPIRED = f"""
    SELECT seq FROM flowrra.job WHERE expires IS NOT NULL AND attempt = 0 AND status IN {_NOT_BEGUN}
        AND expires <= $1 ORDER BY expires LIMIT {_PROMOTED}"""

# Of a job's latest attempt, into its history: how it ended, why, with which traceback.
_ARCHIVE = f"""history = CASE WHEN started IS NULL THEN history ELSE
        CASE WHEN jsonb_array_length(history) >= {HISTORY_LIMIT} THEN history - 0 ELSE coalesce(history, '[]') END
        || jsonb_build_array(jsonb_build_array(job.attempt, worker, started, %s)) END,
    worker = NULL, started = NULL, finished = NULL, purge_at = NULL, progress = NULL"""

# Each settle writes what needs no second step, and returns what it wrote; the rest is told from the lost by trying
# again with $1 (careful), inside a transaction that goes on to children and cancellations.
# $2 now, then arrays: seqs, attempts, results, when to purge
_SUCCEED = """
    UPDATE flowrra.job SET status = 'success', result = v.result, finished = $2::float8, purge_at = v.purge_at,
        error = NULL, traceback = NULL
    FROM unnest($3::bigint[], $4::integer[], $5::text[], $6::float8[]) AS v (seq, attempt, result, purge_at)
    WHERE job.seq = v.seq AND job.attempt = v.attempt AND status = 'running' AND ($1::boolean OR NOT has_children)
    RETURNING job.seq, id, has_children, job.attempt"""
# $2 now, then arrays: seqs, attempts, statuses, errors, tracebacks, failures to count, when to purge
_END = """
    UPDATE flowrra.job SET status = v.status, finished = $2::float8, purge_at = v.purge_at, error = v.error,
        traceback = v.traceback, failures = failures + v.failed
    FROM unnest($3::bigint[], $4::integer[], $5::text[], $6::text[], $7::text[], $8::integer[], $9::float8[])
        AS v (seq, attempt, status, error, traceback, failed, purge_at)
    WHERE job.seq = v.seq AND job.attempt = v.attempt AND job.status = 'running' AND ($1::boolean OR NOT has_children)
    RETURNING job.seq, id, has_children, job.attempt"""
# $2 now, then arrays: seqs, attempts, statuses, errors, tracebacks, failures to count, dues, endings
_AGAIN = f"""
    UPDATE flowrra.job SET status = v.status, error = v.error, traceback = v.traceback, due = v.due,
        failures = failures + v.failed, {_ARCHIVE % "$2::float8, v.ending, v.error, v.traceback"}
    FROM unnest($3::bigint[], $4::integer[], $5::text[], $6::text[], $7::text[], $8::integer[], $9::float8[],
        $10::text[]) AS v (seq, attempt, status, error, traceback, failed, due, ending)
    WHERE job.seq = v.seq AND job.attempt = v.attempt AND job.status = 'running'
        AND ($1::boolean OR NOT cancel_requested)
    RETURNING job.seq, id, cancel_requested, job.attempt"""
# Whether an attempt was written down by a settle at $1 whose answer was lost: $2 seqs, $3 attempts.
_WRITTEN = """
    SELECT v.seq, v.attempt
    FROM flowrra.job JOIN unnest($2::bigint[], $3::integer[]) AS v (seq, attempt) ON job.seq = v.seq
    WHERE job.attempt = v.attempt AND (finished = $1::float8 OR status <> 'running'
        AND history -> -1 -> 0 = to_jsonb(v.attempt) AND history -> -1 -> 3 = to_jsonb($1::float8))"""

_RENEW = f"""
    UPDATE flowrra.worker SET lease = clock_timestamp() + make_interval(secs => $2::float8), seen = $3::float8,
        running = $4::integer, queues = $5::text, tasks = $6::text
    WHERE id = $1 AND {_LAZY}"""
_REGISTER = """
    INSERT INTO flowrra.worker VALUES ($1, $7, $8, $5, $6, $9, $3, $4, $10,
        clock_timestamp() + make_interval(secs => $2::float8))
    ON CONFLICT (id) DO UPDATE SET lease = excluded.lease, seen = excluded.seen"""
# $1 worker, $2 its queues
_NOTICES = """
    SELECT EXISTS (SELECT FROM flowrra.worker WHERE lease <= clock_timestamp() AND id <> $1) AS lost,
        ARRAY(SELECT id FROM flowrra.job WHERE status = 'running' AND cancel_requested AND worker = $1) AS cancelled,
        ARRAY(SELECT queue FROM flowrra.paused) AS paused,
        EXISTS (SELECT FROM flowrra.job WHERE status = 'pending' AND crashes > 0 AND queue = ANY ($2::text[]))
            AS suspects"""
_LAPSED = "DELETE FROM flowrra.worker WHERE lease <= clock_timestamp() AND id <> $1 RETURNING id"
# $1 workers, $2 now, $3 ending, $4 error, $5 crashes to count
_PUT_BACK = f"""
    UPDATE flowrra.job SET status = 'pending', crashes = crashes + $5::integer, due = NULL, error = $4::text,
        traceback = NULL, {_ARCHIVE % "$2::float8, $3::text, $4::text, NULL"}
    WHERE status = 'running' AND worker = ANY ($1::text[]) RETURNING seq, crashes, cancel_requested"""
_REPORT = f"""
    UPDATE flowrra.job SET progress = v.progress FROM unnest($1::text[], $2::text[]) AS v (id, progress)
    WHERE job.id = v.id AND status = 'running' AND {_LAZY}"""

_ASK_TO_END = "UPDATE flowrra.job SET cancel_requested = true WHERE id = $1 AND status = 'running'"
_LOCK_REQUEUED = f"""
    SELECT seq, parents FROM flowrra.job WHERE id = $1 AND status IN {_REQUEUABLE} FOR NO KEY UPDATE"""
# $1 seq, $2 status
_REQUEUE = f"""
    UPDATE flowrra.job SET status = $2::text, failures = 0, crashes = 0, cancel_requested = false, due = NULL,
        expires = NULL,
        {_ARCHIVE % "finished, CASE status WHEN 'failed' THEN 'failure' ELSE 'cancel' END, error, traceback"},
        error = NULL, traceback = NULL
    WHERE seq = $1 AND NOT EXISTS (SELECT FROM flowrra.job AS other
        WHERE other.unique_key = job.unique_key AND other.unique_key IS NOT NULL AND other.status IN {_UNFINISHED})"""
_PURGE = """
    DELETE FROM flowrra.job WHERE seq IN (
        SELECT seq FROM flowrra.job WHERE purge_at IS NOT NULL AND purge_at < $1
        ORDER BY purge_at LIMIT $2 FOR UPDATE SKIP LOCKED) RETURNING seq"""
_FORGET_AWAITED = f"""
    DELETE FROM flowrra.awaited WHERE NOT EXISTS (
        SELECT FROM flowrra.job WHERE job.id = awaited.id AND status IN {_UNFINISHED})"""
# Arrays: ids, tasks, statuses, submitted, attempts, started, finished, when to purge, errors, tracebacks, results
_RECORD = f"""
    INSERT INTO flowrra.job (id, task, status, submitted, attempt, started, finished, purge_at, error, traceback,
        result, payload, queue, priority)
    SELECT *, '{NO_ARGUMENTS}', '', 0 FROM unnest($1::text[], $2::text[], $3::text[], $4::float8[], $5::integer[],
        $6::float8[], $7::float8[], $8::float8[], $9::text[], $10::text[], $11::text[])
    ON CONFLICT (id) DO UPDATE SET task = excluded.task, status = excluded.status, submitted = excluded.submitted,
        attempt = excluded.attempt, started = excluded.started, finished = excluded.finished,
        purge_at = excluded.purge_at, error = excluded.error, traceback = excluded.traceback,
        result = excluded.result"""

_AWAIT = f"""
    INSERT INTO flowrra.awaited SELECT id, $2::text FROM unnest($1::text[]) AS v (id) WHERE {_LAZY}
    ON CONFLICT DO NOTHING"""
# After the commit: $1 finished ids, and channels with what to say on them, $2 and $3. NOTIFY holds a lock on which all
# commits with a NOTIFY wait, so that it goes in a transaction of its own, which does not wait for the disk.
_TELL = f"""
    WITH told AS (DELETE FROM flowrra.awaited WHERE id = ANY ($1::text[]) AND {_LAZY} RETURNING channel, id),
    news AS (
        SELECT channel, CASE WHEN sum(octet_length(id) + 3) < {_PAYLOAD} THEN json_agg(id)::text ELSE '' END AS payload
        FROM told GROUP BY channel
        UNION ALL SELECT * FROM unnest($2::text[], $3::text[]))
    SELECT pg_notify(channel, payload) FROM news WHERE {_LAZY}"""

_RESULT_COLUMNS = "id, task, status, result, error, traceback, attempt, submitted, started, finished, progress"
_GET = f"SELECT {_RESULT_COLUMNS} FROM flowrra.job WHERE id = ANY ($1::text[])"
_JOB_COLUMNS = (
    "seq, id, task, payload, queue, priority, status, submitted, due, expires, unique_key, parents, overrides, "
    "attempt, failures, crashes, cancel_requested, worker, started, finished, purge_at, result, error, "
    "traceback, progress, history"
)
_PAUSE = "INSERT INTO flowrra.paused VALUES ($1) ON CONFLICT DO NOTHING"
_RESUME_QUEUE = "DELETE FROM flowrra.paused WHERE queue = $1"
_WORKERS = """
    SELECT id, host, pid, queues, tasks, started, seen, running, version FROM flowrra.worker
    WHERE lease > clock_timestamp() ORDER BY started"""


@functools.cache
def _in_schema(text: str, schema: str) -> str:
    return text.replace("flowrra.", f'"{schema}".').replace(
        "SCHEMA IF NOT EXISTS flowrra", f'SCHEMA IF NOT EXISTS "{schema}"'
    )


# ---------------------------------------------------------------------------
# Connections
#
# A few that carry statements, one that listens. What the server cannot do now
# but will be able to (it restarts, fails over, is silent) is tried again on
# another connection, for as long as a call may take.
# ---------------------------------------------------------------------------

_LIBPQ = frozenset(
    ("application_name", "database", "dbname", "gsslib", "host", "krbsrvname", "passfile", "password", "port",
     "sslcert", "sslcrl", "sslkey", "sslmode", "sslnegotiation", "sslpassword", "sslrootcert",
     "ssl_max_protocol_version", "ssl_min_protocol_version", "target_session_attrs", "user")
)  # fmt: skip
_COMMITS = ("on", "off", "local", "remote_write", "remote_apply")
# Plans that are made while a table is empty are kept, and would read all of it when it is full: of what these forbid,
# no statement here has need. And none is worth compiling.
_PLANS = {
    "enable_seqscan": "off", "enable_bitmapscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off",
    "jit": "off", "plan_cache_mode": "force_generic_plan",
}  # fmt: skip
_AWAY = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.TransactionRollbackError,  # deadlocks
    asyncpg.UniqueViolationError,  # of two requeues with one key: the second look tells
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.exceptions.InvalidCachedStatementError,
)
_NOT_AWAY = (
    asyncpg.DataError,
    asyncpg.QueryCanceledError,
    asyncpg.DiskFullError,
    asyncpg.exceptions.ClientConfigurationError,
)


class _AwayError(BrokerError):
    """The server could not be used for as long as a call may take."""


class _Address:
    """Where a database is, as its URL says."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        options = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        where = parts._replace(scheme="postgresql", netloc=parts.netloc.rpartition("@")[2], query="")
        self.name = where.geturl() + (f" ({options['host']})" if "host" in options else "")
        self.schema = options.pop("schema", "flowrra")
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,39}", self.schema) or self.schema.startswith("pg_"):
            raise ConfigError(f"schema must be up to 40 of a-z, 0-9 and _, not {self.schema!r}")
        self.cache = self._number(options, "statement_cache_size", 100, 0)
        self.pool_size = self._number(options, "pool_size", 4, 1)
        commit = options.pop("synchronous_commit", None)
        if commit not in (None, *_COMMITS):
            raise ConfigError(f"synchronous_commit must be one of {', '.join(_COMMITS)}, not {commit!r}")
        for name in options.keys() - _LIBPQ:
            raise ConfigError(f"{self.name} has the unknown option {name!r}; there are pool_size=, schema=, "
                              "statement_cache_size=, synchronous_commit=, and libpq's own")  # fmt: skip
        self._settings = {"application_name": options.pop("application_name", "flowrra")}
        if not self.is_pooled:
            self._settings |= _PLANS | ({} if commit is None else {"synchronous_commit": commit})
        elif commit is not None:
            raise ConfigError(
                "synchronous_commit= is a setting of a session, of which a pooler in transaction mode has none"
            )
        self._url = parts._replace(scheme="postgresql", query=urllib.parse.urlencode(options)).geturl()
        self._check()

    def _number(self, options: dict[str, str], name: str, default: int, least: int) -> int:
        text = options.pop(name, str(default))
        if not text.isdecimal() or int(text) < least:
            raise ConfigError(f"{name} must be a whole number of at least {least}, not {text!r}")
        return int(text)

    def _check(self) -> None:
        """Refuse a port that is none now, and not at the first connection."""
        netloc = urllib.parse.urlsplit(self._url).netloc.rpartition("@")[2]
        for host in netloc.split(","):
            _, colon, port = host.rpartition(":")
            if colon and not host.endswith("]") and not port.isdecimal():
                raise ConfigError(f"{self.name}: {port!r} is not the number of a port")

    @property
    def is_pooled(self) -> bool:
        """Whether there is a pooler in between, so that a session is ours for one transaction only."""
        return self.cache == 0

    async def connect(self) -> asyncpg.Connection[Any]:
        return await asyncpg.connect(
            self._url, timeout=_SILENCE, statement_cache_size=self.cache, server_settings=self._settings
        )


class _Session:
    """A connection while it does one thing. Statements name the schema `flowrra`."""

    def __init__(self, connection: Any, schema: str) -> None:
        self.connection = connection
        self.schema = schema

    async def fetch(self, text: str, *values: Any) -> Sequence[Any]:
        rows: Sequence[Any] = await self.connection.fetch(_in_schema(text, self.schema), *values)
        return rows

    async def change(self, text: str, *values: Any) -> int:
        """How many rows it changed."""
        tag: str = await self.connection.execute(_in_schema(text, self.schema), *values)
        return int(tag.rpartition(" ")[2])

    async def script(self, text: str) -> None:
        """Run several statements without values."""
        await self.connection.execute(_in_schema(text, self.schema))

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        async with self.connection.transaction(isolation="read_committed"):
            yield


class _CallersSession(_Session):
    """A connection of the user's, inside the user's transaction, which a failure of ours leaves as it was."""

    @contextlib.asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        if not self.is_in_transaction():
            raise ConfigError("the connection is in no transaction: begin one, which then decides over the job too")
        await self.fetch("SAVEPOINT flowrra_push")
        try:
            yield
        except BaseException:
            await self.fetch("ROLLBACK TO SAVEPOINT flowrra_push")
            await self.fetch("RELEASE SAVEPOINT flowrra_push")
            raise
        await self.fetch("RELEASE SAVEPOINT flowrra_push")

    def is_in_transaction(self) -> bool:
        return bool(self.connection.is_in_transaction())

    async def store_id(self) -> str | None:
        """What identifies the store that is found through this connection; None if there is none."""
        if not (await self.fetch("SELECT to_regclass('flowrra.meta') IS NOT NULL"))[0][0]:
            return None
        return str((await self.fetch("SELECT store::text FROM flowrra.meta"))[0][0])


class _PsycopgSession(_CallersSession):
    """The same for psycopg 3.2 and later, whose connections may be plain ones: those block the loop meanwhile."""

    async def fetch(self, text: str, *values: Any) -> Sequence[Any]:
        cursor = await self._execute(text, values)
        rows = cursor.fetchall() if cursor.description else []
        return cast("Sequence[Any]", await rows if inspect.isawaitable(rows) else rows)

    async def change(self, text: str, *values: Any) -> int:
        return int((await self._execute(text, values)).rowcount)

    async def _execute(self, text: str, values: Sequence[Any]) -> Any:
        import psycopg
        from psycopg.rows import tuple_row

        is_async = isinstance(self.connection, psycopg.AsyncConnection)
        kind = psycopg.AsyncRawCursor if is_async else psycopg.RawCursor
        cursor = kind(self.connection, row_factory=tuple_row)
        done = cursor.execute(_in_schema(text, self.schema).encode(), values or None)
        return await done if inspect.isawaitable(done) else done

    def is_in_transaction(self) -> bool:
        """Whether it is in one, or about to begin one."""
        return not self.connection.autocommit or self.connection.info.transaction_status != 0


def _callers_session(connection: Any, schema: str) -> _CallersSession:
    module = type(connection).__module__.partition(".")[0]
    if module == "psycopg":
        return _PsycopgSession(connection, schema)
    if module == "asyncpg":
        return _CallersSession(connection, schema)
    raise ConfigError(f"submit_in() takes a connection of asyncpg or psycopg here, not {type(connection).__name__}")


class _Link:
    """A few connections, made when they are needed and given up when they fail."""

    def __init__(self, address: _Address, timeout: float) -> None:
        self._address = address
        self._timeout = timeout
        self._idle: list[asyncpg.Connection[Any]] = []
        self._gate = asyncio.Semaphore(address.pool_size)

    async def run(self, work: Callable[[_Session], Awaitable[T]], silence: float = _SILENCE) -> T:
        """What `work` gives. It may be called again if a connection was lost, or silent for so many seconds.

        Cancelling leaves it open whether it was done.

        Raises:
            BrokerError: the server was away for as long as a call may take, or refuses this.
            SerializationError: a value that the server cannot keep.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        failure: Exception | None = None
        for pause in itertools.chain((0.0, 0.02, 0.05, 0.1, 0.2), itertools.repeat(0.5)):
            try:
                async with asyncio.timeout_at(min(deadline, loop.time() + silence)):
                    return await self._try(work)
            except _NOT_AWAY as error:
                raise self._explained(error) from error
            except _AWAY as error:
                failure = error if str(error) or failure is None else failure
            except asyncpg.PostgresError as error:
                raise self._explained(error) from error
            if loop.time() + pause >= deadline:
                break
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 (no secret)
        why = str(failure) or "it is silent"
        raise _AwayError(f"{self._address.name} has not answered for {self._timeout:g} s: {why}") from failure

    async def _try(self, work: Callable[[_Session], Awaitable[T]]) -> T:
        async with self._gate:
            connection = self._idle.pop() if self._idle else await self._address.connect()
            try:
                result = await work(_Session(connection, self._address.schema))
            except BaseException as error:
                self._put_back(connection, usable=isinstance(error, Exception) and not isinstance(error, _AWAY))
                raise
            self._put_back(connection, usable=True)
            return result

    def _put_back(self, connection: asyncpg.Connection[Any], *, usable: bool) -> None:
        """A connection whose server has said no, or that is in the middle of something, is of no use to others."""
        if usable and not connection.is_closed() and not connection.is_in_transaction():
            self._idle.append(connection)
        else:
            _drop(connection)

    def _explained(self, error: Exception) -> FlowrraError:
        if isinstance(error, asyncpg.DataError):
            return SerializationError(f"{self._address.name} cannot keep this: {error}")
        if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError):
            return BrokerError(f"{self._address.name} does not accept this user and password: {error}")
        if isinstance(error, asyncpg.DiskFullError):
            return BrokerError(
                f"{self._address.name} has a full disk: nothing of this was written; make room ({error})"
            )
        return BrokerError(f"{self._address.name}: {error}")

    async def close(self) -> None:
        """Say good-bye to the server, within a second."""
        idle, self._idle = self._idle, []
        for connection in idle:
            try:
                await connection.close(timeout=1.0)
            except (TimeoutError, *_AWAY):
                _drop(connection)

    def abandon(self) -> None:
        """Drop the connections of a loop that has ended without closing them."""
        while self._idle:
            _drop(self._idle.pop())


def _drop(connection: asyncpg.Connection[Any]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop was closed
        connection.terminate()


class _Ear:
    """The connection that listens: to channels that are wanted, again and again.

    `hear(channel, text)` is called for each notification, and with None when listening begins: before that,
    anything may have been missed. Behind a pooler there is nothing to be heard.
    """

    def __init__(self, address: _Address, hear: Callable[[str, str | None], None]) -> None:
        self._address = address
        self._hear = hear
        self._wanted: list[str] = []
        self._heeded: set[str] = set()
        self._connection: asyncpg.Connection[Any] | None = None
        self._task: asyncio.Task[None] | None = None
        self._call = asyncio.Event()

    def want(self, channel: str) -> None:
        """Listen to `channel` from now on."""
        if channel in self._wanted or self._address.is_pooled:
            return
        self._wanted.append(channel)
        self._call.set()
        if self._task is None:
            self._task = asyncio.create_task(self._listen())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    def abandon(self) -> None:
        """Drop the connection of a loop that has ended without closing it."""
        if self._connection is not None:
            _drop(self._connection)

    async def _listen(self) -> None:
        for failures in itertools.count(1):
            try:
                await self._follow()
            except (TimeoutError, asyncpg.PostgresError, *_AWAY) as error:
                if failures % 20 == 1:
                    logger.warning("%s: no notifications from there (%s); trying again", self._address.name, error)
            await asyncio.sleep(random.uniform(0.1, 0.5))  # noqa: S311 (no secret)

    async def _follow(self) -> None:
        """Listen until the connection is lost. One that is silent is asked whether it is still there."""
        self._connection = connection = await self._address.connect()
        self._heeded = set()
        connection.add_termination_listener(lambda _: self._call.set())
        try:
            while True:
                self._call.clear()
                for channel in self._wanted:
                    if channel not in self._heeded:
                        await connection.add_listener(channel, self._take)
                        self._heeded.add(channel)
                        self._hear(channel, None)
                try:
                    await asyncio.wait_for(self._call.wait(), _SILENCE)
                except TimeoutError:
                    await connection.fetch("SELECT 1", timeout=_SILENCE)
                if connection.is_closed():
                    raise ConnectionError("the connection was closed")
        finally:
            self._connection = None
            _drop(connection)

    def _take(self, _connection: object, _pid: int, channel: str, payload: object) -> None:
        self._hear(channel, str(payload))


class _Mouth:
    """Tells other processes what was committed: what gathers while one notice is on its way is the next."""

    def __init__(self, link: _Link, token: str) -> None:
        self._link = link
        self._token = token  # tells our own notices from those of others
        self._finished: list[str] = []
        self._news: dict[str, str] = {}  # channel > the queue that has news, "" if several have
        self._task: asyncio.Task[None] | None = None

    def tell(self, finished: Iterable[str], news: Iterable[tuple[str, str]]) -> None:
        """Tell who awaits one of the finished jobs, and who listens to a channel that a queue has news."""
        self._finished += finished
        for channel, queue in news:
            self._news[channel] = queue if self._news.get(channel, queue) == queue else ""
        if self._task is None and (self._finished or self._news):
            self._task = asyncio.create_task(self._send())

    async def _send(self) -> None:
        try:
            while self._finished or self._news:
                finished, self._finished = self._finished, []
                news, self._news = self._news, {}
                payloads = [f"{self._token} {queue}" for queue in news.values()]
                await self._link.run(functools.partial(_tell, finished, list(news), payloads))
        except FlowrraError as error:
            logger.warning("nobody is told of what has changed, but they will look: %s", error)
        finally:
            self._task = None

    async def close(self) -> None:
        """Say what is still to be said."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=1.0)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])


async def _tell(finished: Sequence[str], channels: Sequence[str], payloads: Sequence[str], session: _Session) -> None:
    await session.fetch(_TELL, finished, channels, payloads)


# ---------------------------------------------------------------------------
# The store
#
# What a call does on one connection. Methods that say so want a transaction
# around them. Knows nothing of groups, pools and those who wait.
# ---------------------------------------------------------------------------


class _Store:
    """The jobs, through one connection. `ready` and `finished` say what a caller should tell others."""

    def __init__(self, session: _Session, retention: BackendConfig) -> None:
        self._db = session
        self._retention = retention
        self.ready = False  # jobs may have become ready, other than by a plain push
        self.finished: list[str] = []

    # Taking in ---------------------------------------------------------------------------------

    async def push(self, jobs: Sequence[Job], now: float) -> list[str]:
        """Take in jobs without parents. Repeating it changes nothing."""
        ids = [job.id for job in jobs]
        left = jobs
        while left:
            if await self._insert(left, now) == len(left):
                break
            left = await self._resolve_keys(left, ids, jobs)
        return ids

    async def push_and_tell(self, job: Job, now: float, channel: str, payload: str) -> list[str]:
        """Take in a job that has neither parents nor a key, and notify in the same transaction."""
        await self._db.fetch(_INSERT_AND_TELL, *_alike_values([job], now), channel, payload)
        return [job.id]

    async def _insert(self, jobs: Sequence[Job], now: float) -> int:
        first = jobs[0]
        if all(_are_alike(first, job) for job in jobs):
            return await self._db.change(_INSERT_ALIKE, *_alike_values(jobs, now))
        return await self._db.change(_INSERT, now, *_columns(jobs))

    async def _resolve_keys(self, pushed: Sequence[Job], ids: list[str], jobs: Sequence[Job]) -> list[Job]:
        """Put in the ids of those that have the unique keys; the jobs whose key came free meanwhile."""
        keyed = {job.id: job.unique for job in pushed if job.unique is not None}
        if not keyed:
            return []
        known = {row[0] for row in await self._db.fetch(_GET, list(keyed))}
        holders = dict(await self._db.fetch(_HOLDERS, list(keyed.values())))
        left = []
        for index, job in enumerate(jobs):
            if job.id in keyed and job.id not in known:
                if job.unique in holders:
                    ids[index] = holders[job.unique]
                else:
                    left.append(job)
        return left

    async def push_family(self, jobs: Sequence[Job], now: float) -> list[str]:
        """Take in jobs of which some have parents. In a transaction."""
        seqs = {task_id: seq for seq, task_id in await self._db.fetch(_INSERTED, now, *_columns(jobs))}
        ids = [job.id for job in jobs]
        missing = [job for job in jobs if job.id not in seqs]
        while missing:
            missing = await self._resolve_keys(missing, ids, jobs)
            rows = await self._db.fetch(_INSERTED, now, *_columns(missing)) if missing else ()
            seqs.update({task_id: seq for seq, task_id in rows})
        family = {seqs[job.id]: dict.fromkeys(job.parents) for job in jobs if job.parents and job.id in seqs}
        await self._await_parents(family, now, strict=True)
        return ids

    async def _await_parents(self, family: Mapping[int, Iterable[str]], now: float, *, strict: bool) -> None:
        """Keep jobs blocked, given as seq and parents, until these have succeeded; cancel them if one cannot.

        `strict`: each parent must be known, and older. Otherwise one that has been purged had succeeded.
        """
        wanted = list(dict.fromkeys(itertools.chain.from_iterable(family.values())))
        known = {row[0]: (row[1], row[2]) for row in await self._db.fetch(_LOCK_PARENTS, wanted)}
        doomed: dict[int, str] = {}
        waits: list[tuple[int, int]] = []
        for child, parents in family.items():
            for parent in parents:
                seq, status = known.get(parent, (child, SUCCESS))
                if strict and seq >= child:
                    raise unknown_job(parent)
                if status in REQUEUABLE:
                    doomed.setdefault(child, orphaned(parent, TaskStatus(status)))
                elif status != SUCCESS:
                    waits.append((seq, child))
        waits = [(parent, child) for parent, child in waits if child not in doomed]
        if waits:
            await self._db.change(_DEPEND, [parent for parent, _ in waits], [child for _, child in waits])
        await self._bury(doomed, TaskStatus.CANCELLED, now)
        await self._unblock([child for child in family if child not in doomed], now)

    async def _unblock(self, children: Sequence[int], now: float) -> None:
        if children:
            await self._db.change(_UNBLOCK, children, now)
            self.ready = True

    # Ending ------------------------------------------------------------------------------------

    async def _bury(self, doomed: Mapping[int, str], status: TaskStatus, now: float) -> list[int]:
        """End jobs that are not running, by seq with reasons, and cancel what waits for them. In a transaction.

        A level of children a step, each with a look of its own: a child that comes in waits for its parent's row.
        """
        first: list[int] = []
        purge_at = now + self._retention.failed_ttl
        while doomed:
            rows = await self._db.fetch(_BURY, list(doomed), list(doomed.values()), status, now, purge_at)
            ended = dict(rows)
            first = first or list(ended)
            self.finished += ended.values()
            doomed = await self._children_of(ended, status)
            status = TaskStatus.CANCELLED
        return first

    async def _children_of(self, ended: Mapping[int, str], status: TaskStatus) -> dict[int, str]:
        """Those who wait for jobs that did not succeed, each with its reason."""
        rows = await self._db.fetch(_CHILDREN, list(ended)) if ended else ()
        children = {child: orphaned(ended[parent], status) for parent, child in rows}
        if rows:
            await self._db.change(_FORGET_PARENTS, list(ended))
        return children

    async def settle(self, outcomes: Sequence[Outcome], now: float, *, careful: bool) -> set[tuple[int, int]]:
        """Write down outcomes, at most one of an attempt; the (seq, attempt) of those that were written.

        Unless `careful`, jobs that others wait for and those that are to be cancelled are left for a second
        call. That one is in a transaction.
        """
        written: set[tuple[int, int]] = set()
        for text, kin, columns in self._statements(outcomes, now):
            if not kin:
                continue
            keys = [outcome.job.seq for outcome in kin], [outcome.attempt for outcome in kin]
            rows = await self._db.fetch(text, careful, now, *keys, *columns)
            written.update((row[0], row[3]) for row in rows)
            if text is _AGAIN:
                self.ready = self.ready or bool(rows)
            else:
                self.finished += [row[1] for row in rows]
            flagged = {row[0]: row[1] for row in rows if row[2]}
            if flagged:
                await self._follow_up(text, kin, flagged, now)
        return written

    def _statements(
        self, outcomes: Sequence[Outcome], now: float
    ) -> Iterable[tuple[str, Sequence[Outcome], list[Any]]]:
        """Which statement is for which outcomes, with the columns that follow seq and attempt."""
        good = [outcome for outcome in outcomes if outcome.status is SUCCESS]
        bad = [outcome for outcome in outcomes if outcome.status in REQUEUABLE]
        again = [outcome for outcome in outcomes if outcome.status not in FINISHED]
        yield _SUCCEED, good, [[o.text for o in good], [self._purge_at(o, now) for o in good]]
        yield _END, bad, [*_troubles(bad), [self._purge_at(o, now) for o in bad]]
        yield _AGAIN, again, [*_troubles(again), [o.due for o in again], [o.ending for o in again]]

    def _purge_at(self, outcome: Outcome, now: float) -> float:
        return now + (self._retention.ttl(outcome.status) if outcome.keep is None else outcome.keep)

    async def _follow_up(self, text: str, kin: Sequence[Outcome], flagged: dict[int, str], now: float) -> None:
        """After a careful settle: free or cancel the children, cancel what was to be ended anyway."""
        if text is _AGAIN:
            await self._bury(dict.fromkeys(flagged, BY_HAND), TaskStatus.CANCELLED, now)
        elif text is _SUCCEED:
            children = [row[0] for row in await self._db.fetch(_LOCK_CHILDREN, list(flagged))]
            await self._db.change(_FORGET_PARENTS, list(flagged))
            await self._unblock(children, now)
        else:
            for status in REQUEUABLE:
                ended = {o.job.seq: flagged[o.job.seq] for o in kin if o.job.seq in flagged and o.status is status}
                await self._bury(await self._children_of(ended, status), TaskStatus.CANCELLED, now)

    async def written(self, outcomes: Sequence[Outcome], now: float) -> set[tuple[int, int]]:
        """Those that a settle at `now` has written whose answer was lost."""
        keys = [outcome.job.seq for outcome in outcomes], [outcome.attempt for outcome in outcomes]
        return {(row[0], row[1]) for row in await self._db.fetch(_WRITTEN, now, *keys)}

    # Workers, and by hand ----------------------------------------------------------------------

    async def beat(self, worker: WorkerInfo, lease: float, now: float) -> bool:
        """Extend a worker's lease, or register it. Whether it had to be registered."""
        queues, tasks = json.dumps(dict(worker.queues)), json.dumps(list(worker.tasks))
        values = (worker.id, lease, now, worker.running, queues, tasks)
        if await self._db.change(_RENEW, *values):
            return False
        await self._db.change(_REGISTER, *values, worker.host, worker.pid, worker.started, worker.version)
        return True

    async def notices(self, worker: WorkerInfo, *, lapsed: bool, lost: list[str]) -> tuple[Notices, bool]:
        """What a heartbeat brings back, and whether other workers' leases have run out."""
        (found,) = await self._db.fetch(_NOTICES, worker.id, list(worker.queues))
        notices = Notices(found["cancelled"], lapsed, frozenset(found["paused"]), found["suspects"], lost)
        return notices, found["lost"]

    async def upkeep(self, worker: str, now: float) -> None:
        """What a claim does first: rescue, promote, expire. In a transaction."""
        await self.rescue(worker, now)
        self.ready = await self._db.change(_PROMOTE, now) > 0 or self.ready
        expired = await self._db.fetch(_EXPIRED, now)
        await self._bury({row[0]: EXPIRED for row in expired}, TaskStatus.CANCELLED, now)

    async def rescue(self, but: str, now: float) -> list[str]:
        """Put back the jobs of workers whose lease ran out; those workers. In a transaction."""
        lost = [row[0] for row in await self._db.fetch(_LAPSED, but)]
        if lost:
            await self._put_back(lost, now, "crash", WORKER_LOST, crashes=1)
        return lost

    async def leave(self, worker: str, now: float) -> None:
        """Take a worker off the list and release what it holds. In a transaction."""
        await self._db.change("DELETE FROM flowrra.worker WHERE id = $1", worker)
        await self._put_back([worker], now, "release", LEFT, crashes=0)

    async def _put_back(self, workers: Sequence[str], now: float, ending: str, error: str, *, crashes: int) -> None:
        rows = await self._db.fetch(_PUT_BACK, workers, now, ending, error, crashes)
        await self._bury({seq: BY_HAND for seq, _, cancelled in rows if cancelled}, TaskStatus.CANCELLED, now)
        await self._bury({seq: KILLED for seq, times, _ in rows if times >= MAX_CRASHES}, FAILED, now)
        self.ready = True

    async def cancel(self, task_id: str, now: float) -> tuple[bool, bool]:
        """Whether the job ends, and whether that is up to its worker. In a transaction."""
        found = await self._db.fetch("SELECT seq FROM flowrra.job WHERE id = $1", task_id)
        if await self._bury({row[0]: BY_HAND for row in found}, TaskStatus.CANCELLED, now):
            return True, False
        asked = bool(found) and await self._db.change(_ASK_TO_END, task_id) > 0
        return asked, asked

    async def requeue(self, task_id: str, now: float) -> bool:
        """Make a job ready again. In a transaction."""
        found = await self._db.fetch(_LOCK_REQUEUED, task_id)
        if not found:
            return False
        seq, text = found[0]
        parents: list[str] = json.loads(text) if text else []
        known = [row[2] for row in await self._db.fetch(_LOCK_PARENTS, parents)] if parents else []
        if not REQUEUABLE.isdisjoint(known):
            return False
        if not await self._db.change(_REQUEUE, seq, "blocked" if parents else "pending"):
            return False  # an unfinished job has its unique key now
        if parents:
            await self._await_parents({seq: parents}, now, strict=False)
        self.ready = True
        return True


def _are_alike(one: Job, other: Job) -> bool:
    """Whether they differ in their ids and arguments only, and need no care of their own."""
    return (
        one.task == other.task
        and one.queue == other.queue
        and one.priority == other.priority
        and one.due == other.due
        and one.expires == other.expires
        and one.overrides == other.overrides
        and one.unique is None is other.unique
    )


def _alike_values(jobs: Sequence[Job], now: float) -> list[Any]:
    """Jobs that are alike as the values that _INSERT_ALIKE takes."""
    first = jobs[0]
    ids, payloads = [job.id for job in jobs], [job.payload for job in jobs]
    rest = (first.task, first.queue, first.priority, first.due, first.expires, _text(first.overrides))
    return [now, ids, payloads, *rest]


def _columns(jobs: Sequence[Job]) -> list[list[Any]]:
    """Jobs as the arrays that _INSERT takes."""
    return [
        [job.id for job in jobs],
        [job.payload for job in jobs],
        [job.task for job in jobs],
        [job.queue for job in jobs],
        [job.priority for job in jobs],
        [job.due for job in jobs],
        [job.expires for job in jobs],
        [_text(job.overrides) for job in jobs],
        [job.unique for job in jobs],
        [json.dumps(list(dict.fromkeys(job.parents))) if job.parents else None for job in jobs],
    ]


def _troubles(outcomes: Sequence[Outcome]) -> list[list[Any]]:
    """Outcomes without success as the arrays that _END and _AGAIN have in common."""
    return [
        [outcome.status for outcome in outcomes],
        [_clean(outcome.error) for outcome in outcomes],
        [_clean(outcome.traceback) for outcome in outcomes],
        [int(outcome.ending == "failure") for outcome in outcomes],
    ]


def _clean(text: str | None) -> str | None:
    """Text that PostgreSQL can hold: a NUL or half a surrogate pair is written out."""
    if text is None or (text.isascii() and "\0" not in text):
        return text
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def _text(value: Mapping[str, Any] | None) -> str | None:
    return json.dumps(value, sort_keys=True) if value else None


# ---------------------------------------------------------------------------
# The broker
# ---------------------------------------------------------------------------


class _Claim(NamedTuple):
    """What a caller of `claim` wants."""

    queue: str
    limit: int
    worker: str
    now: float


class _Claims:
    """Claims, one after the other: what is remembered from one to the next.

    Where a line's first jobs were taken, the index keeps their dead entries until a vacuum, or for as long as
    somebody's transaction is old. Each claim from the beginning walks over all of them: 1,000,000 cost 5 ms, 50 us a
    job. So a claim that got all it asked for leaves a mark behind the last job, and the next ones go on from there;
    every 50 ms, or less often if it takes long, one begins at the beginning and also looks at what has come due. What
    this handle puts before a mark takes it away; of what others put there, the next look tells.
    """

    def __init__(self, retention: BackendConfig, publish: Callable[[_Store], None]) -> None:
        self._retention = retention
        self._publish = publish
        self._marks: dict[str, tuple[int, int, float, float]] = {}  # queue > priority, seq, from and until when
        self._doubts: list[tuple[float, _Claim]] = []  # claims whose answer was lost, and until when to ask
        self.next_due: float | None = None

    def forget(self, queue: str | None = None, priority: int | None = None) -> None:
        """Jobs of this priority have become ready; None: some jobs have."""
        if queue is None:
            self._marks.clear()
        elif queue in self._marks and (priority is None or priority < self._marks[queue][0]):
            del self._marks[queue]

    async def serve(self, wanted: Sequence[_Claim], tries: list[int], session: _Session) -> list[list[Job]]:
        """What each caller gets. `tries` counts: an earlier try may have been carried out, its answer lost."""
        tries[0] += 1
        found = []
        for claim in wanted:
            # The start tells what a try has taken from what other ones have: each has its own.
            claim = claim._replace(now=claim.now + (tries[0] - 1) * 1e-5)
            jobs = await self._resume(session, claim) if self._doubts else []
            if not jobs:
                doubt = (asyncio.get_running_loop().time() + _DOUBT, claim)
                self._doubts.append(doubt)
                jobs = await self._claim(session, claim)
                self._doubts.remove(doubt)
            found.append(jobs)
        return found

    async def _resume(self, session: _Session, claim: _Claim) -> list[Job]:
        """What a claim has taken that never got to know of it."""
        moment = asyncio.get_running_loop().time()
        self._doubts = [(until, doubt) for until, doubt in self._doubts if until > moment]
        for entry in [
            entry for entry in self._doubts if entry[1].worker == claim.worker and entry[1].queue == claim.queue
        ]:
            rows = await session.fetch(_RESUME, claim.queue, claim.worker, entry[1].now)
            if rows:
                self._doubts.remove(entry)
                return [_job_of_claim(row, entry[1]) for row in rows]
        return []

    async def _claim(self, session: _Session, claim: _Claim) -> list[Job]:
        mark = self._marks.pop(claim.queue, None)
        if mark is not None and mark[2] <= claim.now < mark[3]:
            rows = await self._look(session, claim, mark[:2])
            jobs = _jobs_of_claim(rows, claim)
            if len(jobs) == claim.limit:
                self._marks[claim.queue] = (jobs[-1].priority, jobs[-1].seq, *mark[2:])
            if jobs:
                return jobs
        began = asyncio.get_running_loop().time()
        rows = await self._look(session, claim, upkeep=True, suspects=True)
        if rows[0]["may"] and rows[0]["upkeep"]:
            store = _Store(session, self._retention)
            async with session.transaction():
                await store.upkeep(claim.worker, claim.now)
            self._publish(store)
            rows = await self._look(session, claim, suspects=True)
        if rows[0]["may"] and rows[0]["suspects"]:
            return await self._claim_carefully(session, claim)
        self.next_due = rows[0]["next_due"] if rows[0]["may"] else None
        jobs = _jobs_of_claim(rows, claim)
        if len(jobs) == claim.limit:
            cost = asyncio.get_running_loop().time() - began
            until = claim.now + max(0.05, 20 * cost)
            self._marks[claim.queue] = (jobs[-1].priority, jobs[-1].seq, claim.now, until)
        return jobs

    async def _claim_carefully(self, session: _Session, claim: _Claim) -> list[Job]:
        """Claim while there are suspects: one alone for an idle worker, else only jobs without crashes."""
        rows = await session.fetch(_CLAIM_SUSPECT, claim.queue, claim.worker, claim.now)
        jobs = _jobs_of_claim(rows, claim)
        if jobs or rows[0]["alone"]:
            return jobs
        return _jobs_of_claim(await self._look(session, claim), claim)

    async def _look(
        self,
        session: _Session,
        claim: _Claim,
        mark: tuple[int, int] = (-(2**63), 0),
        *,
        upkeep: bool = False,
        suspects: bool = False,
    ) -> Sequence[Any]:
        queue, limit, worker, now = claim
        return await session.fetch(_CLAIM, queue, worker, now, limit, *mark, upkeep, suspects)


class _Waits:
    """Who waits here for jobs, news and results, what has been heard of them, and what others are told."""

    def __init__(self, address: _Address, link: _Link, clock: Clock) -> None:
        self._link = link
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._is_pooled = address.is_pooled
        token = secrets.token_hex(8)
        self._token = token
        self._jobs, self._news, self._results = (f"{address.schema}_{kind}" for kind in ("jobs", "notices", token))
        self._mouth = _Mouth(link, token)
        self.ear = _Ear(address, self._hear)
        self._heard: collections.Counter[str | None] = collections.Counter()  # by queue; "" for news, None for all
        self._seen: dict[str, int] = {}  # what had been heard before the latest claim or heartbeat
        self._ready: dict[asyncio.Future[None], Sequence[str]] = {}
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        self._announced: set[str] = set()
        self._announces: Batcher[str, None] = Batcher(self._announce_group)
        self._look_timer: asyncio.TimerHandle | None = None

    async def close(self) -> None:
        if self._look_timer is not None:
            self._look_timer.cancel()
        await self._announces.close()
        await self._mouth.close()
        await self.ear.close()
        closed = BrokerError("the broker was closed while this call was waiting")
        for waiter in (*self._ready, *itertools.chain(*self._waiting.values())):
            if not waiter.done():
                waiter.set_exception(closed)

    # News --------------------------------------------------------------------------------------

    def tell(self, *, ready: Iterable[str | None] = (), news: bool = False, finished: Sequence[str] = ()) -> None:
        """Let everybody know, here and elsewhere, of queues with news (None: any), and of jobs that have ended."""
        queues = list(ready)
        self.tell_here(queues)
        if news:
            self._wake("")
        self._resolve(finished)
        told = [(self._jobs, queue or "") for queue in queues] + ([(self._news, "")] if news else [])
        self._mouth.tell(finished, told)

    def tell_here(self, queues: Iterable[str | None]) -> None:
        """Let only those know who wait here."""
        for queue in queues:
            self._wake(queue)

    def notice(self, queue: str) -> tuple[str, str]:
        """Channel and payload that tell of jobs in a queue."""
        return self._jobs, f"{self._token} {queue}"

    def _hear(self, channel: str, payload: str | None) -> None:
        """What was notified; None: anything may have been."""
        if channel == self._results:
            self._resolve(json.loads(payload) if payload else list(self._waiting))
            return
        token, _, queue = (payload or "").partition(" ")
        if token != self._token:
            self._wake("" if channel == self._news else queue or None)

    def _wake(self, queue: str | None) -> None:
        self._heard[queue] += 1
        for waiter, queues in self._ready.items():
            if (queue in queues if queue else not queues) or (queue is None and queues):
                _resolve(waiter)

    def _resolve(self, ids: Iterable[str]) -> None:
        for task_id in ids if self._waiting else ():
            self._announced.discard(task_id)
            for waiter in self._waiting.pop(task_id, ()):
                _resolve(waiter)

    # Jobs and news -----------------------------------------------------------------------------

    def look(self, queue: str) -> None:
        """Somebody looks now for jobs of the queue, or for news ("")."""
        self._seen[queue] = self._count(queue)

    def _count(self, queue: str) -> int:
        return self._heard[queue] + (self._heard[None] if queue else 0)

    async def wait_ready(self, queues: Sequence[str], timeout: float, next_due: float | None) -> None:
        self.ear.want(self._jobs if queues else self._news)
        if any(self._seen.get(queue, -1) != self._count(queue) for queue in queues or ("",)):
            return
        if queues:
            timeout = min(timeout, _LOOK_EVERY)
            if next_due is not None:
                timeout = min(timeout, next_due - self._clock.time())
        waiter = self._loop.create_future()
        self._ready[waiter] = queues
        timer = self._loop.call_later(max(0.0, timeout), _resolve, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._ready.pop(waiter, None)

    # Results -----------------------------------------------------------------------------------

    def expect(self, task_id: str) -> asyncio.Future[None]:
        """What is done when the job has ended, or may have."""
        if self._look_timer is None:
            self._look_timer = self._loop.call_later(_LOOK_EVERY, self._look_again)
        waiter = self._loop.create_future()
        self._waiting.setdefault(task_id, []).append(waiter)
        return waiter

    def expect_no_more(self, task_id: str, waiter: asyncio.Future[None]) -> None:
        waiters = self._waiting.get(task_id, [])
        if waiter in waiters:
            waiters.remove(waiter)
        if not waiters:
            self._waiting.pop(task_id, None)
            self._announced.discard(task_id)

    async def announce(self, task_id: str) -> bool:
        """Have whoever ends the job tell this process. True if that is new: then it may have ended before."""
        if self._is_pooled or task_id in self._announced:
            return False
        self.ear.want(self._results)
        await self._announces.put(task_id)
        self._announced.add(task_id)
        return True

    async def _announce_group(self, ids: list[str]) -> list[None]:
        await self._link.run(lambda session: session.fetch(_AWAIT, ids, self._results))
        return [None] * len(ids)

    def _look_again(self) -> None:
        """Have all who wait look for themselves, as long as somebody does."""
        self._look_timer = None
        for waiter in list(itertools.chain(*self._waiting.values())):
            _resolve(waiter)


class _Groups:
    """What concurrent callers want, as one statement: jobs to push, claims, outcomes to settle, results to get."""

    def __init__(self, address: _Address, link: _Link, retention: BackendConfig, clock: Clock) -> None:
        self._link = link
        self._retention = retention
        self._loop = asyncio.get_running_loop()
        self._alone_again = 0.0  # after a push that had to wait for others: none notifies by itself before then
        self.waits = _Waits(address, link, clock)
        self.claims = _Claims(retention, self.publish)
        self.pushes = self._batcher(self._push_group)
        self.settles = self._batcher(self._settle_group)
        self.gets = self._batcher(self._get_group)
        self.claiming: Batcher[_Claim, list[Job]] = Batcher(self._claim_group)

    def _batcher(self, send: Callable[[list[Any]], Awaitable[list[Any]]]) -> Batcher[Any, Any]:
        return Batcher(functools.partial(_apart, send))

    async def close(self) -> None:
        for batcher in (self.pushes, self.settles, self.claiming, self.gets):
            await batcher.close()
        await self.waits.close()

    def publish(self, store: _Store) -> None:
        """Tell of what has changed, after its commit."""
        if store.ready:
            self.claims.forget()
        if store.ready or store.finished:
            self.waits.tell(ready=[None] if store.ready else [], finished=store.finished)

    async def transact(self, work: Callable[[_Store], Awaitable[T]]) -> T:
        """Run `work` inside a transaction, and tell of what it has changed."""
        return await self._link.run(functools.partial(self._transact_on, work))

    async def _transact_on(self, work: Callable[[_Store], Awaitable[T]], session: _Session) -> T:
        store = _Store(session, self._retention)
        async with session.transaction():
            result = await work(store)
        self.publish(store)
        return result

    async def beat(self, worker: WorkerInfo, lease: float, now: float) -> Notices:
        """A heartbeat. It does not wait long for a silent connection: the lease would run out meanwhile."""
        beat = functools.partial(self._beat_on, worker, lease, now)
        return await self._link.run(beat, min(_SILENCE, max(0.5, lease / 3)))

    async def _beat_on(self, worker: WorkerInfo, lease: float, now: float, session: _Session) -> Notices:
        store = _Store(session, self._retention)
        lapsed = await store.beat(worker, lease, now) and worker.seen > 0
        notices, some_are_lost = await store.notices(worker, lapsed=lapsed, lost=[])
        if some_are_lost:
            async with session.transaction():
                lost = await store.rescue(worker.id, now)
            self.publish(store)
            notices, _ = await store.notices(worker, lapsed=lapsed, lost=lost)
        return notices

    async def _push_group(self, items: list[tuple[Sequence[Job], float]]) -> list[Any]:
        """What has no parents goes in together; a family alone."""
        families = [any(job.parents for job in jobs) for jobs, _ in items]
        plain = [item for item, is_family in zip(items, families, strict=True) if not is_family]
        answers = iter(await self._push_plain(plain) if plain else ())
        return [
            await _caught(self._push_family(*item)) if is_family else next(answers)
            for item, is_family in zip(items, families, strict=True)
        ]

    async def _push_family(self, jobs: Sequence[Job], now: float) -> list[str]:
        ids = await self.transact(lambda store: store.push_family(jobs, now))
        self.claims.forget()
        self.waits.tell(ready={job.queue for job in jobs})
        return ids

    async def _push_plain(self, items: Sequence[tuple[Sequence[Job], float]]) -> list[list[str]]:
        jobs = list(itertools.chain.from_iterable(item[0] for item in items))
        now = items[0][1]
        queues = {job.queue for job in jobs}
        began = self._loop.time()
        if len(jobs) == 1 and jobs[0].unique is None and began >= self._alone_again:
            found = await self._link.run(functools.partial(self._push_alone, jobs[0], now))
            self.waits.tell_here(queues)
            if self._loop.time() - began > _CONTENDED:
                self._alone_again = self._loop.time() + 0.1
        else:
            whole = any(len(item[0]) > 1 and any(job.unique is not None for job in item[0]) for item in items)
            work = self._push_chunks if whole or len(jobs) > _CHUNK else self._push_once
            found = await self._link.run(functools.partial(work, jobs, now), _SILENCE + len(jobs) / 1000)
            self.waits.tell(ready=queues)
        for queue, priority in {(job.queue, job.priority) for job in jobs}:
            self.claims.forget(queue, priority)
        ids = iter(found)
        return [list(itertools.islice(ids, len(item[0]))) for item in items]

    async def _push_alone(self, job: Job, now: float, session: _Session) -> list[str]:
        return await _Store(session, self._retention).push_and_tell(job, now, *self.waits.notice(job.queue))

    async def _push_once(self, jobs: Sequence[Job], now: float, session: _Session) -> list[str]:
        return await _Store(session, self._retention).push(jobs, now)

    async def _push_chunks(self, jobs: Sequence[Job], now: float, session: _Session) -> list[str]:
        """In one transaction: while the server takes one chunk in, the next is encoded."""
        store = _Store(session, self._retention)
        sent: asyncio.Task[list[str]] | None = None
        ids: list[str] = []
        async with session.transaction():
            try:
                for start in range(0, len(jobs), _CHUNK):
                    chunk = jobs[start : start + _CHUNK]
                    _encode(chunk)
                    ids += await sent if sent is not None else ()
                    sent = asyncio.create_task(store.push(chunk, now))
                    await asyncio.sleep(0)  # sent it is, before the next is encoded
                ids += await sent if sent is not None else ()
            except BaseException:
                if sent is not None:
                    await asyncio.wait([sent])
                raise
        return ids

    async def _claim_group(self, wanted: list[_Claim]) -> list[list[Job]]:
        return await self._link.run(functools.partial(self.claims.serve, wanted, [0]))

    async def _settle_group(self, items: list[tuple[Sequence[Outcome], float]]) -> list[list[bool]]:
        outcomes = {
            (outcome.job.seq, outcome.attempt): outcome for item in reversed(items) for outcome in reversed(item[0])
        }
        written = await self._link.run(functools.partial(self._settle, list(outcomes.values()), items[0][1], [0]))
        return [[self._is_written(outcome, outcomes, written) for outcome in item[0]] for item in items]

    def _is_written(self, outcome: Outcome, chosen: Mapping[Any, Outcome], written: set[tuple[int, int]]) -> bool:
        """Of two outcomes of one attempt the first counts."""
        key = (outcome.job.seq, outcome.attempt)
        return chosen[key] is outcome and key in written

    async def _settle(
        self, outcomes: Sequence[Outcome], now: float, tries: list[int], session: _Session
    ) -> set[tuple[int, int]]:
        tries[0] += 1
        store = _Store(session, self._retention)
        written = await store.settle(outcomes, now, careful=False)
        left = [outcome for outcome in outcomes if (outcome.job.seq, outcome.attempt) not in written]
        if left and tries[0] > 1:
            written |= await store.written(left, now)
            left = [outcome for outcome in left if (outcome.job.seq, outcome.attempt) not in written]
        if left:
            async with session.transaction():
                written |= await store.settle(left, now, careful=True)
        self.publish(store)
        return written

    async def _get_group(self, items: list[Sequence[str]]) -> list[list[TaskResult[Any] | None]]:
        wanted = list(set(itertools.chain.from_iterable(items)))
        rows = await self._link.run(lambda session: session.fetch(_GET, wanted))
        found = {row[0]: row for row in rows}
        return [[_result_of_row(found[i]) if i in found else None for i in ids] for ids in items]


async def _apart(send: Callable[[list[Any]], Awaitable[list[Any]]], items: list[Any]) -> list[Any]:
    """Send a group; where it is refused for one item, each goes alone, so that only that one fails."""
    try:
        return await send(items)
    except _AwayError:
        raise
    except Exception:
        if len(items) == 1:
            raise
    return [await _caught(_first(send, item)) for item in items]


async def _first(send: Callable[[list[Any]], Awaitable[list[Any]]], item: Any) -> Any:
    (answer,) = await send([item])
    return answer


async def _caught(call: Awaitable[T]) -> T | Exception:
    try:
        return await call
    except Exception as error:
        return error


def _encode(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.payload = encode_arguments(job)


class PostgresBroker(Broker):
    """Jobs in PostgreSQL, for many processes on many machines; `url` as at the top of this module.

    A call waits up to `config.timeout` seconds for a server that is away, restarts or fails over, and then
    raises a BrokerError. That leaves it open whether the call was carried out: `push` again with the same
    ids changes nothing. A connection that is silent for 5 s is given up for a new one.
    """

    keeps_text = True

    def __init__(
        self,
        url: str,
        config: BrokerConfig | None = None,
        retention: BackendConfig | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.url = url
        self.config = config or BrokerConfig()
        self.retention = retention or BackendConfig()
        self._clock = clock or Clock()
        self._address = _Address(url)
        self._link: _Link | None = None
        self._groups: _Groups

    def twin(self) -> PostgresBroker:
        return PostgresBroker(self.url, self.config, self.retention, self._clock)

    # Opening and closing -----------------------------------------------------------------------

    async def open(self) -> None:
        if self._link is not None:
            self._link.abandon()
            self._groups.waits.ear.abandon()
            self._link = None
        link = _Link(self._address, self.config.timeout)
        try:
            self._store_id = await link.run(_migrate, self.config.timeout)
        except BaseException:
            await link.close()
            raise
        self._groups = _Groups(self._address, link, self.retention, self._clock)
        self._link = link

    async def close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await self._groups.close()
            await link.close()
            await asyncio.sleep(0)  # for the transports, which close their sockets in the next turn

    def _opened(self) -> _Groups:
        if self._link is None:
            raise BrokerError(f"the broker on {self._address.name} is not open")
        return self._groups

    async def _run(self, text: str, *values: Any, patience: float = _SILENCE) -> Sequence[Any]:
        """Have one statement run, and return its rows."""
        self._opened()
        return await cast("_Link", self._link).run(lambda session: session.fetch(text, *values), patience)

    # Jobs --------------------------------------------------------------------------------------

    async def push(self, jobs: Sequence[Job], *, now: float) -> list[str]:
        groups = self._opened()
        if not jobs:
            return []
        if len(jobs) <= _CHUNK:
            _encode(jobs)
        return cast("list[str]", await groups.pushes.put((jobs, now), len(jobs)))

    async def push_in(self, connection: Any, jobs: Sequence[Job], *, now: float) -> list[str]:
        self._opened()
        _encode(jobs)
        session = _callers_session(connection, self._address.schema)
        async with session.savepoint():
            if await session.store_id() != self._store_id:
                where = self._address.name
                raise ConfigError(f"the connection is to another database than {where}, where the jobs are")
            store = _Store(session, self.retention)
            push = store.push_family if any(job.parents for job in jobs) else store.push
            ids = await push(jobs, now)
            channels = [f"{self._address.schema}_jobs"]
            await session.fetch(_TELL.replace(_LAZY, "true"), store.finished, channels, [" "])
        return ids

    async def claim(self, queue: str, *, limit: int, worker: str, now: float) -> list[Job]:
        groups = self._opened()
        groups.waits.look(queue)
        return await groups.claiming.put(_Claim(queue, limit, worker, now))

    async def settle(self, outcomes: Sequence[Outcome], *, now: float) -> list[bool]:
        groups = self._opened()
        if not outcomes:
            return []
        for outcome in outcomes:
            if outcome.status is SUCCESS and outcome.text is None:
                outcome.text = encode_value(outcome)
        return cast("list[bool]", await groups.settles.put((outcomes, now), len(outcomes)))

    async def cancel(self, task_id: str, *, now: float) -> bool:
        groups = self._opened()
        ends, is_running = await groups.transact(lambda store: store.cancel(task_id, now))
        if is_running:
            groups.waits.tell(news=True)
        return ends

    async def requeue(self, task_ids: Sequence[str], *, now: float) -> list[bool]:
        groups = self._opened()
        return [await groups.transact(lambda store, i=task_id: store.requeue(i, now)) for task_id in task_ids]  # type: ignore[misc]

    async def purge(self, before: float, limit: int) -> int:
        await self._run(_FORGET_AWAITED, patience=self.config.timeout)
        return len(await self._run(_PURGE, before, limit, patience=self.config.timeout))

    async def record(self, results: Sequence[TaskResult[Any]]) -> None:
        latest = {result.task_id: result for result in results}
        if latest:
            await self._run(_RECORD, *_recorded_columns(list(latest.values()), self.retention))
            self._groups.waits.tell(finished=list(latest))

    # Workers -----------------------------------------------------------------------------------

    async def heartbeat(self, worker: WorkerInfo, *, lease: float, now: float) -> Notices:
        groups = self._opened()
        groups.waits.look("")
        if lease <= 0:
            await groups.transact(lambda store: store.leave(worker.id, now))
            return Notices()
        notices = await groups.beat(worker, lease, now)
        worker.seen = now
        return notices

    async def report(self, progress: Mapping[str, Progress]) -> None:
        texts = [json.dumps([p.done, p.total, p.note]) for p in progress.values()]
        await self._run(_REPORT, list(progress), texts)

    async def set_queue(self, queue: str, *, paused: bool) -> None:
        await self._run(_PAUSE if paused else _RESUME_QUEUE, check_queue(queue))
        self._groups.waits.tell(ready=[queue], news=True)

    async def workers(self) -> list[WorkerInfo]:
        return [_worker_of_row(*row) for row in await self._run(_WORKERS)]

    async def paused(self) -> set[str]:
        return {row[0] for row in await self._run("SELECT queue FROM flowrra.paused")}

    # Waiting and looking -----------------------------------------------------------------------

    async def wait_ready(self, queues: Sequence[str], timeout: float) -> None:
        groups = self._opened()
        await groups.waits.wait_ready(queues, timeout, groups.claims.next_due)

    async def wait_for(self, task_id: str, timeout: float | None) -> TaskResult[Any]:
        waits = self._opened().waits
        waiter = waits.expect(task_id)
        try:
            result = await self._known(task_id)
            async with asyncio.timeout(timeout):
                while not result.is_finished:
                    if not await waits.announce(task_id):
                        await waiter
                        waiter = waits.expect(task_id)
                    result = await self._known(task_id)
            return result
        except TimeoutError:
            raise timed_out(task_id, timeout) from None
        finally:
            waits.expect_no_more(task_id, waiter)

    async def _known(self, task_id: str) -> TaskResult[Any]:
        (result,) = await self.get([task_id])
        if result is None:
            raise unknown_job(task_id)
        return result

    async def get(self, task_ids: Sequence[str]) -> list[TaskResult[Any] | None]:
        groups = self._opened()
        return cast("list[TaskResult[Any] | None]", await groups.gets.put(task_ids, len(task_ids)))

    async def find(self, which: JobFilter, *, limit: int = 100, after: int | None = None) -> list[Job]:
        where, values = _where(which, after)
        query = f"SELECT {_JOB_COLUMNS} FROM flowrra.job WHERE {where} ORDER BY seq DESC LIMIT {int(limit)}"
        return [_job_of_row(row) for row in await self._run(query, *values, patience=self.config.timeout)]

    async def counts(self, which: JobFilter | None = None) -> dict[tuple[str, TaskStatus], int]:
        where, values = _where(which or JobFilter())
        query = f"SELECT queue, status, count(*) FROM flowrra.job WHERE {where} GROUP BY queue, status"
        rows = await self._run(query, *values, patience=self.config.timeout)
        return {(queue, TaskStatus(status)): count for queue, status, count in rows}


async def _migrate(session: _Session) -> str:
    """Bring the schema up to date; what identifies the store. Of two at once, the second waits and finds it done."""
    if session.connection.get_server_version().major < 13:
        raise ConfigError(
            f"PostgreSQL {session.connection.get_server_version().major} is too old: 13 or later is needed"
        )
    async with session.transaction():
        if (await session.fetch("SELECT to_regclass('flowrra.meta') IS NULL"))[0][0]:
            await session.fetch("SELECT pg_advisory_xact_lock(hashtext($1))", f"flowrra {session.schema}")
            await session.script(_META)
        version, store = (await session.fetch("SELECT version, store::text FROM flowrra.meta"))[0]
        if version < len(_MIGRATIONS):
            (version, store), *_ = await session.fetch("SELECT version, store::text FROM flowrra.meta FOR UPDATE")
        if version > len(_MIGRATIONS):
            raise BrokerError(
                f"schema {session.schema} has version {version}, newer than the {len(_MIGRATIONS)} "
                "of this flowrra: upgrade it"
            )
        for script in _MIGRATIONS[version:]:
            await session.script(script)
        if version < len(_MIGRATIONS):
            await session.change("UPDATE flowrra.meta SET version = $1", len(_MIGRATIONS))
    return str(store)


# ---------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------


def _where(which: JobFilter, after: int | None = None) -> tuple[str, list[Any]]:
    """A filter as the text of a WHERE clause and its values."""
    terms: list[str] = []
    values: list[Any] = []
    status = None if which.status is None else [str(status) for status in which.status]
    for term, value in (
        ("id = ANY (${}::text[])", None if which.ids is None else list(which.ids)),
        ("status = ANY (${}::text[])", status),
        ("task = ${}", which.task),
        ("queue = ${}", which.queue),
        ("worker = ${}", which.worker),
        ("seq < ${}", after),
    ):
        if value is not None:
            values.append(value)
            terms.append(term.format(len(values)))
    if which.ahead_of is not None:
        job, n = which.ahead_of, len(values)
        values += [job.queue, job.priority, job.seq]
        terms.append(
            f"status = 'pending' AND queue = ${n + 1} AND (priority, seq) < (${n + 2}::bigint, ${n + 3}::bigint)"
        )
    return " AND ".join(terms) or "true", values


def _jobs_of_claim(rows: Sequence[Any], claim: _Claim) -> list[Job]:
    """The jobs that a claim has taken, in order: an UPDATE returns them in any."""
    jobs = [_job_of_claim(row, claim) for row in rows if row["seq"] is not None]
    jobs.sort(key=lambda job: (job.priority, job.seq))
    return jobs


def _job_of_claim(row: Any, claim: _Claim) -> Job:
    seq, task_id, task, payload, queue, priority, submitted, attempt, failures, crashes, overrides, parents = row[-12:]
    job = Job(task_id, task, (), _NO_KEYWORDS, queue, priority, payload)
    job.status = RUNNING
    job.worker = claim.worker
    job.started = claim.now
    job.submitted = submitted
    job.seq = seq
    job.attempt = attempt
    job.failures = failures
    job.crashes = crashes
    if overrides is not None:
        job.overrides = json.loads(overrides)
    if parents is not None:
        job.parents = tuple(json.loads(parents))
    return job


_NO_KEYWORDS: Mapping[str, Any] = types.MappingProxyType({})


def _job_of_row(row: Any) -> Job:
    values = dict(row)
    values["unique"] = values.pop("unique_key")
    values["status"] = TaskStatus(values["status"])
    values["parents"] = tuple(_parsed(values["parents"], ()))
    values["overrides"] = _parsed(values["overrides"], None)
    values["history"] = tuple(Attempt(*entry) for entry in _parsed(values["history"], ()))
    values["progress"] = _progress_of(values["progress"])
    values["result"] = _stored_result(values["result"])
    return Job(**values)


def _result_of_row(row: Any) -> TaskResult[Any]:
    task_id, task, status, result, error, traceback, attempt, submitted, started, finished, progress = row
    return TaskResult(
        task_id,
        task,
        TaskStatus(status),
        _stored_result(result),
        error,
        traceback,
        attempt,
        submitted,
        started,
        finished,
        _progress_of(progress),
    )


def _worker_of_row(
    worker: str, host: str, pid: int, queues: str, tasks: str, started: float, seen: float, running: int, version: str
) -> WorkerInfo:
    return WorkerInfo(worker, host, pid, json.loads(queues), json.loads(tasks), started, seen, running, version)


def _recorded_columns(results: Sequence[TaskResult[Any]], retention: BackendConfig) -> list[list[Any]]:
    """Results from elsewhere as the arrays that _RECORD takes."""
    return [
        [r.task_id for r in results],
        [r.task for r in results],
        [r.status for r in results],
        [r.submitted for r in results],
        [r.attempts for r in results],
        [r.started for r in results],
        [r.finished or 0.0 for r in results],
        [(r.finished or 0.0) + retention.ttl(r.status) for r in results],
        [_clean(r.error) for r in results],
        [_clean(r.traceback) for r in results],
        [encode(r.result) if r.is_success else None for r in results],
    ]


def _parsed(text: str | None, default: Any) -> Any:
    return default if text is None else json.loads(text)


def _stored_result(text: str | None) -> Any:
    return None if text is None or text == "null" else decode(text)


def _progress_of(text: str | None) -> Progress | None:
    return None if text is None else Progress(*json.loads(text))


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def broker_from_url(url: str, config: Config, clock: Clock) -> PostgresBroker:
    """The broker that `postgresql://` and `postgres://` stand for."""
    return PostgresBroker(url, config.broker, config.backend, clock)
