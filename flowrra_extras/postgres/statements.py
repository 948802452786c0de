"""The schema, and every statement. `flowrra.` stands for the schema of the URL.

Moments are seconds since the epoch by the callers' clocks; leases alone are by the server's.
"""

from __future__ import annotations

import functools

from flowrra import ENDINGS_TOLD, HISTORY_LIMIT, NO_ARGUMENTS

UPKEEP = 1_000  # jobs that one step of upkeep makes ready, and as many that it cancels as expired
_PAYLOAD = 7_900  # bytes; PostgreSQL refuses a notification of 8,000

DUE_LATER = "('scheduled', 'retrying')"
NOT_BEGUN = "('scheduled', 'blocked', 'pending')"
UNFINISHED = "('scheduled', 'blocked', 'pending', 'running', 'retrying')"
AT_REST = "('scheduled', 'blocked', 'pending', 'retrying')"
RARE = "('scheduled', 'blocked', 'retrying', 'failed', 'cancelled')"  # those that few jobs come to
FINISHED = "('success', 'failed', 'cancelled')"
REQUEUABLE = "('failed', 'cancelled')"

SCHEMA = f"""
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
CREATE INDEX job_due ON flowrra.job (due) WHERE status IN {DUE_LATER};
CREATE INDEX job_expiring ON flowrra.job (expires)
    WHERE expires IS NOT NULL AND attempt = 0 AND status IN {NOT_BEGUN};
CREATE INDEX job_running ON flowrra.job (worker) WHERE status = 'running';
CREATE INDEX job_running_suspect ON flowrra.job (worker) WHERE status = 'running' AND crashes > 0;
CREATE INDEX job_cancelling ON flowrra.job (worker) WHERE status = 'running' AND cancel_requested;
CREATE INDEX job_purge ON flowrra.job (purge_at) WHERE purge_at IS NOT NULL;
CREATE UNIQUE INDEX job_unique ON flowrra.job (unique_key) WHERE unique_key IS NOT NULL AND status IN {UNFINISHED};
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

SCHEMA_2 = f"""
-- An index over all states would cost every move of every job a write.
CREATE INDEX job_rare ON flowrra.job (status, seq) WHERE status IN {RARE};
CREATE INDEX job_child ON flowrra.job (seq) WHERE parents IS NOT NULL;
CREATE TABLE flowrra.activity (  -- what a worker did in a minute, as the core's text
    minute bigint NOT NULL,
    worker text COLLATE "C" NOT NULL,
    counts text NOT NULL,
    PRIMARY KEY (minute, worker)
);
ALTER TABLE flowrra.worker ADD COLUMN memory bigint;
"""

SCHEMA_3 = """
-- length: of the lease, in seconds; NULL: of an older Flowrra. graced: its lease is a fresh one that another worker
-- gave it after an outage. term: since when it has held a lease without a break.
ALTER TABLE flowrra.worker ADD COLUMN length float8, ADD COLUMN graced boolean NOT NULL DEFAULT false,
    ADD COLUMN term bigint GENERATED ALWAYS AS IDENTITY;
"""

# `expires` is forgotten when an attempt begins to run, so that a job which was handed back untouched still has it.
SCHEMA_4 = f"""
UPDATE flowrra.job SET expires = NULL WHERE expires IS NOT NULL AND attempt > 0 AND status IN {UNFINISHED};
DROP INDEX flowrra.job_expiring;
CREATE INDEX job_expiring ON flowrra.job (expires) WHERE expires IS NOT NULL AND status IN {NOT_BEGUN};
"""

SCHEMA_TOTALS = """
CREATE TABLE flowrra.total (  -- what workers did since there is this table; see totals_of_activity
    task text COLLATE "C" NOT NULL,
    what text COLLATE "C" NOT NULL,
    number float8 NOT NULL,
    PRIMARY KEY (task, what)
) WITH (fillfactor = 50);
"""

SCHEMA_ENDINGS = """
CREATE TABLE flowrra.ending (  -- jobs that have ended without an attempt that tells of it, until a heartbeat does
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job text NOT NULL  -- see the core's ended_job
);
"""

# Entry n takes a store from schema n to n + 1.
MIGRATIONS = (SCHEMA, SCHEMA_2, SCHEMA_3, SCHEMA_4, SCHEMA_TOTALS, SCHEMA_ENDINGS)

NAMESPACE = "CREATE SCHEMA flowrra"
META = """
CREATE TABLE IF NOT EXISTS flowrra.meta (version integer NOT NULL, store uuid NOT NULL);
INSERT INTO flowrra.meta SELECT 0, gen_random_uuid() WHERE NOT EXISTS (SELECT FROM flowrra.meta)
"""

# In a statement's WHERE: what it commits need not be on disk at once. A power cut may undo it; no job is lost.
LAZY = "set_config('synchronous_commit', 'off', true) = 'off'"

# Plans are made while the tables are empty, and kept; statistics are of another hour. So no statement leaves its plan
# to what the planner believes of the jobs. Each row is looked up by its key, in words that allow nothing else:
# - `key = ANY (ARRAY[v.key])` where a join by `key = v.key` may be made by walking all of the key's index for each v;
# - `key = ANY (ARRAY(SELECT ...))` in place of `key IN (SELECT ...)`, which is a join too;
# - a state as an expression that no partial index has, where the row is known by its key: otherwise all that
#   run may be walked, and after a quiet minute's statistics the planner takes those for none;
# - `ORDER BY seq + 0` where the rows are known by their keys: otherwise all may be walked in the order of seq;
# - a subquery for a value in place of NOT EXISTS, which is a join; OFFSET 0, which a join does not look into.
# All take their row locks in the order of seq, or skip what is locked, so that no two wait for each other.
IS_RUNNING = "coalesce(job.status, '') = 'running'"
IS_AT_REST = f"coalesce(job.status, '') IN {AT_REST}"

# $1 now, then arrays: ids, payloads, tasks, queues, priorities, dues, expires, overrides, unique keys, parents.
# Of tasks, queues and priorities one may stand for all, and an empty array for NULLs: then 1,000 jobs a statement
# go in at 150,000/s, with all arrays filled at 110,000.
INSERT = """
    INSERT INTO flowrra.job (id, payload, task, queue, priority, status, submitted, due, expires, overrides,
        unique_key, parents)
    SELECT id, payload, coalesce(task, ($4::text[])[1]), coalesce(queue, ($5::text[])[1]),
        coalesce(priority, ($6::bigint[])[1]),
        CASE WHEN parents IS NOT NULL THEN 'blocked' WHEN due > $1::float8 THEN 'scheduled' ELSE 'pending' END,
        $1::float8, due, expires, overrides, unique_key, parents
    FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::float8[], $8::float8[],
        $9::text[], $10::text[], $11::text[])
        AS v (id, payload, task, queue, priority, due, expires, overrides, unique_key, parents)
    ON CONFLICT DO NOTHING RETURNING id, seq"""
# A job that has neither parents nor a key, and $11 said on channel $10, in one round trip (0.24 ms; by INSERT 0.29).
INSERT_LONE = """
    WITH new AS (
        INSERT INTO flowrra.job (submitted, status, id, payload, task, queue, priority, due, expires, overrides)
        VALUES ($1::float8, CASE WHEN $7::float8 > $1::float8 THEN 'scheduled' ELSE 'pending' END, $2, $3, $4, $5, $6,
            $7::float8, $8, $9) ON CONFLICT DO NOTHING)
    SELECT pg_notify($10, $11)"""
# The same, said before it is on disk, which SYNC then waits for.
INSERT_LONE_EARLY = f"{INSERT_LONE} WHERE {LAZY}"
SYNC = "SELECT pg_logical_emit_message(true, 'flowrra', '')"  # a commit, and so all before it, goes to disk
SET_PARENTS = "UPDATE flowrra.job SET parents = $2 WHERE seq = $1"
# Jobs with one of the ids $1, and unfinished ones with one of the keys $2.
KNOWN = f"""
    SELECT id, NULL AS unique_key FROM flowrra.job WHERE id = ANY ($1::text[]) UNION ALL
    SELECT id, unique_key FROM flowrra.job WHERE unique_key = ANY ($2::text[]) AND status IN {UNFINISHED}"""

# The line of a parent and that of its children are held by the row locks of the parents: whoever ends one waits here.
LOCK_PARENTS = """
    SELECT id, seq, status FROM flowrra.job WHERE id = ANY ($1::text[]) ORDER BY seq + 0
    FOR NO KEY UPDATE"""
DEPEND = """
    WITH told AS (UPDATE flowrra.job SET has_children = true WHERE seq = ANY ($1::bigint[]) AND NOT has_children)
    INSERT INTO flowrra.dependency SELECT * FROM unnest($1::bigint[], $2::bigint[]) ON CONFLICT DO NOTHING"""
LOCK_CHILDREN = """
    SELECT seq FROM flowrra.job
    WHERE seq = ANY (ARRAY(SELECT child FROM flowrra.dependency WHERE parent = ANY ($1::bigint[])))
    ORDER BY seq + 0 FOR NO KEY UPDATE"""
FORGET_PARENTS = "DELETE FROM flowrra.dependency WHERE parent = ANY ($1::bigint[])"
UNBLOCK = """
    UPDATE flowrra.job SET status = CASE WHEN due > $2::float8 THEN 'scheduled' ELSE 'pending' END
    WHERE seq = ANY ($1::bigint[]) AND coalesce(status, '') = 'blocked' AND worker IS NULL
        AND (SELECT child FROM flowrra.dependency WHERE child = seq LIMIT 1) IS NULL"""

# What waits for its turn: $1 seqs, $2 their reasons, $3 status, $4 now, $5 when to purge.
BURY = f"""
    WITH ended AS (
        UPDATE flowrra.job SET status = $3::text, error = v.error, traceback = NULL, finished = $4::float8,
            purge_at = $5::float8
        FROM unnest($1::bigint[], $2::text[]) AS v (seq, error)
        WHERE job.seq = ANY (ARRAY[v.seq]) AND {IS_AT_REST} RETURNING job.seq, id, task, attempt, status, job.error),
    noted AS (
        INSERT INTO flowrra.ending (job) SELECT json_build_array(id, task, attempt, status, error)::text FROM ended)
    SELECT seq, id FROM ended"""
# Who waits for the jobs $1, and for those in turn: each with a parent.
DESCENDANTS = """
    WITH RECURSIVE line AS (
        SELECT parent, child FROM flowrra.dependency WHERE parent = ANY ($1::bigint[])
        UNION SELECT further.* FROM line CROSS JOIN LATERAL (
            SELECT parent, child FROM flowrra.dependency WHERE parent = line.child OFFSET 0) AS further)
    SELECT child, parent, id FROM line JOIN flowrra.job ON seq = ANY (ARRAY[parent]) ORDER BY child"""

CLAIMED = "seq, id, task, payload, queue, priority, submitted, due, attempt - 1, failures, crashes, overrides, parents"
# Of a worker beside `mine`, the row of the one that asks: whether its lease has run out, and whether it is dead, since
# it had missed a heartbeat when that one was last heard from. As `judge_leases` of the core has it. Where a length is
# not known, half of that of the other counts.
LAPSED = "other.lease <= clock_timestamp() AND other.id <> mine.id"
MISSED = """other.lease - make_interval(secs => coalesce(other.length, mine.length, 0) / 2)
        <= mine.lease - make_interval(secs => coalesce(mine.length, 0))"""
# Whom a claim of $2 rescues: it leaves those in doubt to heartbeats.
LOST = f"""
    SELECT other.id FROM flowrra.worker AS other, flowrra.worker AS mine
    WHERE mine.id = $2 AND mine.lease > clock_timestamp() AND {LAPSED} AND {MISSED} AND NOT other.graced"""
LOST_TO = LOST.replace("$2", "$1")
# A claim holds its worker's row: whoever rescues that worker's jobs deletes the row first, so waits for the claim and
# then sees all that it took. `FOR KEY SHARE` lets heartbeats pass.
ME = f"SELECT FROM flowrra.worker WHERE id = $2 AND lease > clock_timestamp() AND {LAZY} FOR KEY SHARE"
# $1 queue, $2 worker, $3 now, $4 limit, ($5 priority, $6 seq) after which to look, $7 whether there may be something
# to do first, $8 whether there may be suspects. One row at least: what stands in the way, and the job if there is one.
# What has expired is passed over: a condition on it would walk past a million expired jobs for one that is not.
CLAIM = f"""
    WITH me AS MATERIALIZED ({ME}),
    state AS MATERIALIZED (
        SELECT EXISTS (SELECT FROM me) AND NOT EXISTS (SELECT FROM flowrra.paused WHERE queue = $1) AS may,
            $7::boolean AND (EXISTS ({LOST})
                OR EXISTS (SELECT FROM flowrra.job WHERE status IN {DUE_LATER} AND due <= $3)
                OR EXISTS (SELECT FROM flowrra.job WHERE expires IS NOT NULL
                    AND status IN {NOT_BEGUN} AND expires <= $3)) AS upkeep,
            $8::boolean AND (EXISTS (SELECT FROM flowrra.job WHERE status = 'pending' AND crashes > 0 AND queue = $1)
                OR EXISTS (SELECT FROM flowrra.job WHERE status = 'running' AND crashes > 0 AND worker = $2))
                AS suspects),
    line AS MATERIALIZED (
        SELECT seq, expires IS NOT NULL AND expires <= $3 AS has_expired
        FROM flowrra.job WHERE status = 'pending' AND crashes = 0 AND queue = $1
            AND (priority, seq) > ($5::bigint, $6::bigint)
            AND (SELECT may AND NOT upkeep AND NOT suspects FROM state)
        ORDER BY priority, seq LIMIT $4::bigint FOR UPDATE SKIP LOCKED),
    started AS (
        UPDATE flowrra.job SET status = 'running', attempt = attempt + 1, worker = $2::text, started = $3::float8
        WHERE seq = ANY (ARRAY(SELECT seq FROM line WHERE NOT has_expired))
        RETURNING {CLAIMED})
    SELECT may, upkeep, suspects, CASE WHEN seq IS NULL THEN
            (SELECT due FROM flowrra.job WHERE status IN {DUE_LATER} ORDER BY due LIMIT 1) END AS next_due, started.*
    FROM state LEFT JOIN started ON true"""
# $1 queue, $2 worker, $3 now, $4 crashes, $5 the most of them. One row at least: whether the worker runs something, and
# whether that is a suspect.
CLAIM_SUSPECT = f"""
    WITH me AS MATERIALIZED ({ME}),
    held AS MATERIALIZED (
        SELECT count(*) > 0 AS busy, coalesce(max(crashes), 0) > 0 AS alone
        FROM flowrra.job WHERE status = 'running' AND worker = $2),
    started AS (
        UPDATE flowrra.job SET status = 'running', attempt = attempt + 1, worker = $2::text, started = $3::float8
        WHERE seq = ANY (ARRAY(
            SELECT seq FROM flowrra.job
            WHERE status = 'pending' AND crashes > 0 AND crashes = $4::integer AND $4::integer <= $5::integer
                AND queue = $1 AND EXISTS (SELECT FROM me) AND (SELECT NOT busy FROM held)
            ORDER BY priority, seq LIMIT 1 FOR UPDATE SKIP LOCKED))
        RETURNING {CLAIMED})
    SELECT busy, alone, started.* FROM held LEFT JOIN started ON true"""
RESUME = f"""
    SELECT {CLAIMED} FROM flowrra.job WHERE status = 'running' AND worker = $2 AND queue = $1 AND started = $3"""

PROMOTE = f"""
    UPDATE flowrra.job SET status = 'pending' WHERE seq = ANY (ARRAY(
        SELECT seq FROM flowrra.job WHERE status IN {DUE_LATER} AND due <= $1 ORDER BY due LIMIT {UPKEEP}
        FOR UPDATE SKIP LOCKED)) RETURNING 1"""
EXPIRED = f"""
    SELECT seq FROM flowrra.job WHERE expires IS NOT NULL AND status IN {NOT_BEGUN}
        AND expires <= $1 ORDER BY expires, seq LIMIT {UPKEEP} FOR NO KEY UPDATE SKIP LOCKED"""

# Of a job's latest attempt, into its history: how it ended, why, with which traceback.
_ROOM = f"CASE WHEN jsonb_array_length(history) >= {HISTORY_LIMIT} THEN history - 0 ELSE coalesce(history, '[]') END"
ARCHIVE = f"""history = CASE WHEN started IS NULL THEN history ELSE {_ROOM}
        || jsonb_build_array(jsonb_build_array(job.attempt, worker, started, %s)) END,
    worker = NULL, started = NULL, finished = NULL, purge_at = NULL, progress = NULL"""
# $1 ids, $2 who, $3 now, $4 what they did
NOTE = f"""
    UPDATE flowrra.job SET history = {_ROOM}
        || jsonb_build_array(jsonb_build_array(attempt, $2::text, $3::float8, $3::float8, 'note', $4::text))
    WHERE id = ANY ($1::text[])"""

# Each settle writes what needs no second step, and returns what it wrote; the rest is told from the lost by trying
# again with $1 (careful), inside a transaction that goes on to children and cancellations.
# $2 now, then arrays: seqs, attempts, statuses, failures to count, errors, tracebacks, results, when to purge
FINISH = f"""
    UPDATE flowrra.job SET status = v.status, failures = failures + v.failed, error = v.error, traceback = v.traceback,
        result = v.result, finished = $2::float8, purge_at = v.purge_at
    FROM unnest($3::bigint[], $4::integer[], $5::text[], $6::integer[], $7::text[], $8::text[], $9::text[],
        $10::float8[]) AS v (seq, attempt, status, failed, error, traceback, result, purge_at)
    WHERE job.seq = ANY (ARRAY[v.seq]) AND job.attempt IS NOT DISTINCT FROM v.attempt AND {IS_RUNNING}
        AND ($1::boolean OR NOT has_children)
    RETURNING job.seq, id, has_children, job.attempt"""
# $2 now, then arrays: seqs, attempts, statuses, failures to count, errors, tracebacks, dues, endings, whether begun
AGAIN = f"""
    UPDATE flowrra.job SET status = v.status, failures = failures + v.failed, error = v.error, traceback = v.traceback,
        crashes = greatest(0, crashes - v.failed), due = v.due,
        expires = CASE WHEN NOT v.begun THEN job.expires END,
        {ARCHIVE % "$2::float8, v.ending, v.error, v.traceback"}
    FROM unnest($3::bigint[], $4::integer[], $5::text[], $6::integer[], $7::text[], $8::text[], $9::float8[],
        $10::text[], $11::boolean[]) AS v (seq, attempt, status, failed, error, traceback, due, ending, begun)
    WHERE job.seq = ANY (ARRAY[v.seq]) AND job.attempt IS NOT DISTINCT FROM v.attempt AND {IS_RUNNING}
        AND ($1::boolean OR NOT cancel_requested)
    RETURNING job.seq, id, cancel_requested, job.attempt"""
# Which attempts were written down by a settle whose answer was lost. Arrays: seqs, attempts, statuses, endings.
WRITTEN = """
    SELECT v.seq, v.attempt
    FROM flowrra.job JOIN unnest($1::bigint[], $2::integer[], $3::text[], $4::text[])
        AS v (seq, attempt, status, ending) ON job.seq = ANY (ARRAY[v.seq])
    WHERE job.attempt IS NOT DISTINCT FROM v.attempt AND (finished IS NOT NULL AND job.status = v.status
        OR EXISTS (SELECT FROM jsonb_array_elements(history) AS entry
            WHERE entry -> 0 = to_jsonb(v.attempt) AND entry ->> 4 = v.ending))"""

WORKER_COLUMNS = "id, host, pid, queues, tasks, started, seen, running, version, memory"
# A heartbeat: $1 to $10 are WORKER_COLUMNS, $11 seconds of lease, $12 its queues, $13 minutes and $14 what it did in
# them, $15 from which minute on that is kept, $16 whether it is a new worker that found the server as it should be, $17
# whether it may be a repetition. What it brings back, and the other workers that are dead. Those of whom nobody can
# know get a fresh lease here, in the same statement: a repetition finds this worker on time. All that it reads is as
# it was before.
BEAT = f"""
    WITH mine AS MATERIALIZED (SELECT id, lease, length FROM flowrra.worker WHERE id = $1),
    lapsed AS MATERIALIZED (
        SELECT other.id, other.graced, CASE WHEN $17::boolean THEN false
            WHEN mine.id IS NULL THEN $16::boolean ELSE mine.lease > clock_timestamp() AND {MISSED} END AS dead
        FROM flowrra.worker AS other LEFT JOIN mine ON true WHERE other.lease <= clock_timestamp() AND other.id <> $1),
    fresh AS (
        UPDATE flowrra.worker SET lease = clock_timestamp() + make_interval(secs => coalesce(length, $11::float8)),
            graced = true
        WHERE id = ANY (ARRAY(SELECT id FROM flowrra.worker WHERE lease <= clock_timestamp() AND NOT graced
            AND id = ANY (ARRAY(SELECT id FROM lapsed WHERE NOT dead)) FOR NO KEY UPDATE SKIP LOCKED))),
    renewed AS (
        UPDATE flowrra.worker SET lease = clock_timestamp() + make_interval(secs => $11::float8), queues = $4,
            tasks = $5, seen = $7, running = $8, memory = $10, length = $11, graced = false
        WHERE id = $1 AND {LAZY} RETURNING term),
    registered AS (
        INSERT INTO flowrra.worker ({WORKER_COLUMNS}, lease, length)
        SELECT $1::text, $2::text, $3::integer, $4::text, $5::text, $6::float8, $7::float8, $8::integer, $9::text,
            $10::bigint, clock_timestamp() + make_interval(secs => $11::float8), $11::float8
        WHERE NOT EXISTS (SELECT FROM renewed) ON CONFLICT DO NOTHING RETURNING term),
    told AS (
        INSERT INTO flowrra.activity
        SELECT minute, $1, counts FROM unnest($13::bigint[], $14::text[]) AS v (minute, counts)
        ON CONFLICT (minute, worker) DO UPDATE SET counts = excluded.counts),
    counted AS (  -- by what rows say more than those that they replace: told twice, they count once
        INSERT INTO flowrra.total AS known
        SELECT line ->> 1, place - 1 || CASE bucket WHEN '' THEN '' ELSE '.' || bucket END, sum(sign * number::float8)
        FROM (SELECT 1 AS sign, minute, counts FROM unnest($13::bigint[], $14::text[]) AS v (minute, counts)
            UNION ALL SELECT -1, minute, counts FROM flowrra.activity WHERE minute = ANY ($13::bigint[]) AND worker = $1
            ) AS texts,
            jsonb_array_elements(counts::jsonb) AS line, jsonb_array_elements(line) WITH ORDINALITY AS v (part, place),
            jsonb_each_text(CASE jsonb_typeof(part) WHEN 'object' THEN part ELSE jsonb_build_object('', part) END)
                AS one (bucket, number)
        WHERE place > 2 AND minute >= $15::bigint  -- what was forgotten is not known to be counted
        GROUP BY 1, 2 HAVING sum(sign * number::float8) <> 0
        ORDER BY 1, 2  -- as all do, so that no two wait for each other
        ON CONFLICT (task, what) DO UPDATE SET number = known.number + excluded.number),
    forgotten AS (DELETE FROM flowrra.activity WHERE minute < $15::bigint AND cardinality($13::bigint[]) > 0),
    endings AS (
        DELETE FROM flowrra.ending WHERE $11::float8 > 0 AND seq = ANY (ARRAY(
            SELECT seq FROM flowrra.ending ORDER BY seq LIMIT {ENDINGS_TOLD} FOR UPDATE SKIP LOCKED))
        RETURNING seq, job)
    SELECT coalesce((SELECT term FROM renewed), (SELECT term FROM registered))::text AS term,
        ARRAY(SELECT job FROM endings ORDER BY seq) AS endings,
        ARRAY(SELECT id FROM lapsed WHERE dead) AS lost,
        ARRAY(SELECT id FROM flowrra.job WHERE status = 'running' AND cancel_requested AND worker = $1) AS cancelled,
        ARRAY(SELECT queue FROM flowrra.paused) AS paused,
        (SELECT coalesce(min(few.crashes), 0) FROM unnest($12::text[]) AS served (queue), LATERAL (
                SELECT crashes FROM flowrra.job WHERE status = 'pending' AND crashes > 0 AND queue = served.queue
                ORDER BY crashes LIMIT 1) AS few
            WHERE served.queue NOT IN (SELECT queue FROM flowrra.paused)) AS suspects"""
# Of the workers $1, those whose lease has still not been renewed.
RESCUE = "DELETE FROM flowrra.worker WHERE id = ANY ($1::text[]) AND lease <= clock_timestamp() RETURNING id"
# $1 workers, $2 now, $3 ending, $4 error, $5 crashes to count
PUT_BACK = f"""
    UPDATE flowrra.job SET status = 'pending', crashes = crashes + $5::integer, due = NULL, expires = NULL,
        error = $4::text, traceback = NULL, {ARCHIVE % "$2::float8, $3::text, $4::text, NULL"}
    WHERE seq = ANY (ARRAY(
        SELECT seq FROM flowrra.job WHERE status = 'running' AND worker = ANY ($1::text[])
        ORDER BY seq + 0 FOR NO KEY UPDATE))
    RETURNING seq, crashes, cancel_requested"""
# $1 ids, $2 attempts, $3 what is reported of them
REPORT = f"""
    UPDATE flowrra.job SET progress = v.progress
    FROM (SELECT (SELECT seq FROM flowrra.job WHERE job.id = w.id) AS seq, w.attempt, w.progress
        FROM unnest($1::text[], $2::integer[], $3::text[]) AS w (id, attempt, progress) WHERE {LAZY} ORDER BY 1) AS v
    WHERE job.seq = ANY (ARRAY[v.seq]) AND job.attempt IS NOT DISTINCT FROM v.attempt AND {IS_RUNNING}"""

LOCK = "SELECT seq FROM flowrra.job WHERE id = $1 FOR NO KEY UPDATE"
ASK_TO_END = f"UPDATE flowrra.job SET cancel_requested = true WHERE id = $1 AND {IS_RUNNING} RETURNING 1"
LOCK_REQUEUED = f"""
    SELECT seq, parents FROM flowrra.job WHERE id = $1 AND coalesce(status, '') IN {REQUEUABLE}
    FOR NO KEY UPDATE"""
# $1 seq, $2 status
REQUEUE = f"""
    UPDATE flowrra.job SET status = $2::text, failures = 0, crashes = 0, cancel_requested = false, due = NULL,
        expires = NULL,
        {ARCHIVE % "finished, CASE status WHEN 'failed' THEN 'failure' ELSE 'cancel' END, error, traceback"},
        error = NULL, traceback = NULL
    WHERE seq = $1 AND (SELECT seq FROM flowrra.job AS other
        WHERE other.unique_key = job.unique_key AND other.unique_key IS NOT NULL AND other.status IN {UNFINISHED}
        LIMIT 1) IS NULL
    RETURNING 1"""
DELETE = f"""
    DELETE FROM flowrra.job WHERE seq = ANY (ARRAY(
        SELECT seq FROM flowrra.job WHERE id = ANY ($1::text[]) AND status IN {FINISHED} ORDER BY seq + 0 FOR UPDATE))
    RETURNING id"""
PURGE = """
    DELETE FROM flowrra.job WHERE seq = ANY (ARRAY(
        SELECT seq FROM flowrra.job WHERE purge_at IS NOT NULL AND purge_at < $1
        ORDER BY purge_at LIMIT $2 FOR UPDATE SKIP LOCKED)) RETURNING id"""
FORGET_AWAITED = f"""
    DELETE FROM flowrra.awaited
    WHERE (SELECT status IN {UNFINISHED} FROM flowrra.job WHERE job.id = awaited.id) IS NOT TRUE"""
# Arrays: ids, tasks, statuses, submitted, attempts, started, finished, when to purge, errors, tracebacks, results
RECORD = f"""
    INSERT INTO flowrra.job (id, task, status, submitted, attempt, started, finished, purge_at, error, traceback,
        result, payload, queue, priority)
    SELECT *, '{NO_ARGUMENTS}', '', 0 FROM unnest($1::text[], $2::text[], $3::text[], $4::float8[], $5::integer[],
        $6::float8[], $7::float8[], $8::float8[], $9::text[], $10::text[], $11::text[])
    ON CONFLICT (id) DO UPDATE SET task = excluded.task, status = excluded.status, submitted = excluded.submitted,
        attempt = excluded.attempt, started = excluded.started, finished = excluded.finished,
        purge_at = excluded.purge_at, error = excluded.error, traceback = excluded.traceback,
        result = excluded.result
    WHERE job.queue = ''"""  # else it is a job of this store

# A move to another store. $1 ids, $2 by whom they are held
HOLD = f"""
    UPDATE flowrra.job SET status = 'blocked', worker = $2::text WHERE seq = ANY (ARRAY(
        SELECT seq FROM flowrra.job WHERE id = ANY ($1::text[]) AND {IS_AT_REST}
            AND coalesce(worker, $2) = $2 ORDER BY seq + 0 FOR NO KEY UPDATE))
    RETURNING seq, id"""
FORGET_CHILDREN = "DELETE FROM flowrra.dependency WHERE child = ANY ($1::bigint[])"
# $1 by whom they are held, then arrays, in the order of the columns
ADOPT = """
    INSERT INTO flowrra.job (status, worker, id, payload, task, queue, priority, due, expires, overrides, unique_key,
        parents, submitted, attempt, failures, crashes, error, traceback, history)
    SELECT 'blocked', $1::text, v.* FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[],
        $7::float8[], $8::float8[], $9::text[], $10::text[], $11::text[], $12::float8[], $13::integer[],
        $14::integer[], $15::integer[], $16::text[], $17::text[], $18::jsonb[]) AS v
    ON CONFLICT DO NOTHING"""
_HELD = """
        SELECT seq FROM flowrra.job WHERE id = ANY ($1::text[]) AND coalesce(status, '') = 'blocked' AND worker = $2
        ORDER BY seq + 0 FOR UPDATE"""
LET_GO = f"""
    UPDATE flowrra.job SET worker = NULL WHERE seq = ANY (ARRAY({_HELD})) RETURNING seq, id, parents"""
LEAVE = f"DELETE FROM flowrra.job WHERE seq = ANY (ARRAY({_HELD})) RETURNING seq, id"

AWAIT = f"""
    INSERT INTO flowrra.awaited SELECT id, $2::text FROM unnest($1::text[]) AS v (id) WHERE {LAZY}
    ON CONFLICT DO NOTHING"""
# After the commit: $1 finished ids, and channels with what to say on them, $2 and $3. NOTIFY holds a lock on which all
# commits with a NOTIFY wait, so that it goes in a transaction of its own, which does not wait for the disk.
TELL = f"""
    WITH told AS (DELETE FROM flowrra.awaited WHERE id = ANY ($1::text[]) AND {LAZY} RETURNING channel, id),
    news AS (
        SELECT channel, CASE WHEN sum(octet_length(id) + 3) < {_PAYLOAD} THEN json_agg(id)::text ELSE '' END AS payload
        FROM told GROUP BY channel
        UNION ALL SELECT * FROM unnest($2::text[], $3::text[]))
    SELECT pg_notify(channel, payload) FROM news WHERE {LAZY}"""

# Whether the transaction $1, whose answer was lost, was committed. One that this server does not know of was not.
FATE = "SELECT CASE WHEN pg_current_xact_id() > $1::text::xid8 THEN pg_xact_status($1::text::xid8) END"

RESULT_COLUMNS = "id, task, status, result, error, traceback, attempt, submitted, started, finished, progress"
GET = f"SELECT {RESULT_COLUMNS} FROM flowrra.job WHERE id = ANY ($1::text[])"
JOB_COLUMNS = (
    "seq, id, task, payload, queue, priority, status, submitted, due, expires, unique_key, parents, overrides, "
    "attempt, failures, crashes, cancel_requested, worker, started, finished, purge_at, result, error, "
    "traceback, progress, history"
)
# Counting is the one thing that reads all jobs: 300,000 take 40 ms, by an index 110 ms.
READ_ALL = "SELECT set_config('enable_seqscan', 'on', true)"
PAUSE = "INSERT INTO flowrra.paused VALUES ($1) ON CONFLICT DO NOTHING"
RESUME_QUEUE = "DELETE FROM flowrra.paused WHERE queue = $1"
WORKERS = f"SELECT {WORKER_COLUMNS} FROM flowrra.worker WHERE lease > clock_timestamp() ORDER BY started"


@functools.lru_cache(maxsize=1_000)  # searches differ in their text
def in_schema(text: str, schema: str) -> str:
    return text.replace("flowrra.", f'"{schema}".').replace(NAMESPACE, f'CREATE SCHEMA "{schema}"')
