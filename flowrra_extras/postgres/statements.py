"""The schema, and every statement. `flowrra.` stands for the schema of the URL.

Moments are seconds since the epoch by the callers' clocks; leases alone are by the server's.
"""

from __future__ import annotations

import functools

from flowrra import ENDINGS_TAKEN, NO_ARGUMENTS

UPKEEP = 1_000  # jobs that one step of upkeep makes ready, and as many that it cancels as expired
_PAYLOAD = 7_900  # bytes; PostgreSQL refuses a notification of 8,000

DUE_LATER = "('scheduled', 'retrying')"
NOT_BEGUN = "('scheduled', 'blocked', 'pending')"
UNFINISHED = "('scheduled', 'blocked', 'pending', 'running', 'retrying')"
RARE = "('scheduled', 'blocked', 'retrying', 'failed', 'cancelled')"  # those that few jobs come to
FINISHED = "('success', 'failed', 'cancelled')"

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

SCHEMA_WAITS = """
ALTER TABLE flowrra.job ADD COLUMN waits integer NOT NULL DEFAULT 0;  -- what a blocked job waits for; a hold is one
UPDATE flowrra.job SET waits = (SELECT count(*) FROM flowrra.dependency WHERE child = seq)
    + CASE WHEN worker IS NULL THEN 0 ELSE 1 END WHERE status = 'blocked';
"""

# Entry n takes a store from schema n to n + 1.
MIGRATIONS = (SCHEMA, SCHEMA_2, SCHEMA_3, SCHEMA_4, SCHEMA_TOTALS, SCHEMA_ENDINGS, SCHEMA_WAITS)

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

# Plain jobs: they have neither parents nor a key. $1 now, then arrays: ids, payloads, tasks, queues, priorities, dues,
# expires, overrides. Of tasks, queues and priorities one may stand for all, and an empty array for NULLs: then 1,000
# jobs a statement go in at 150,000/s, with all arrays filled at 110,000.
INSERT = """
    INSERT INTO flowrra.job (id, payload, task, queue, priority, status, submitted, due, expires, overrides)
    SELECT id, payload, coalesce(task, ($4::text[])[1]), coalesce(queue, ($5::text[])[1]),
        coalesce(priority, ($6::bigint[])[1]), CASE WHEN due > $1::float8 THEN 'scheduled' ELSE 'pending' END,
        $1::float8, due, expires, overrides
    FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::float8[], $8::float8[],
        $9::text[]) AS v (id, payload, task, queue, priority, due, expires, overrides)
    ON CONFLICT DO NOTHING"""
# One such job, and $11 said on channel $10, in one round trip (0.24 ms; by INSERT 0.29).
INSERT_ONE = """
    WITH new AS (
        INSERT INTO flowrra.job (submitted, status, id, payload, task, queue, priority, due, expires, overrides)
        VALUES ($1::float8, CASE WHEN $7::float8 > $1::float8 THEN 'scheduled' ELSE 'pending' END, $2, $3, $4, $5, $6,
            $7::float8, $8, $9) ON CONFLICT DO NOTHING)
    SELECT pg_notify($10, $11)"""
# The same, said before it is on disk, which SYNC then waits for.
INSERT_ONE_EARLY = f"{INSERT_ONE} WHERE {LAZY}"
SYNC = "SELECT pg_logical_emit_message(true, 'flowrra', '')"  # a commit, and so all before it, goes to disk

# What the rules ask for. A row's `xmin`, the transaction that wrote it, is its revision: every write changes it.
JOB_COLUMNS = (
    "seq, id, task, payload, queue, priority, status, submitted, due, expires, unique_key, parents, overrides, "
    "attempt, failures, crashes, cancel_requested, worker, started, finished, purge_at, result, error, "
    "traceback, progress, history::text, waits"
)
_READ = f"SELECT {JOB_COLUMNS}, has_children, xmin::text FROM flowrra.job WHERE".replace("payload", "NULL").replace(
    "result", "NULL"
)  # both are large, and no rule reads them
FIND_JOBS = f"{_READ} id = ANY ($1::text[])"
FIND_CHILDREN = f"""{_READ} seq = ANY (ARRAY(SELECT child FROM flowrra.dependency WHERE parent = ANY ($1::bigint[])))
    AND coalesce(status, '') = 'blocked' ORDER BY seq + 0"""
FIND_HOLDERS = f"{_READ} unique_key = ANY ($1::text[]) AND status IN {UNFINISHED}"
FIND_RUNNING = f"{_READ} status = 'running' AND worker = ANY ($1::text[]) ORDER BY seq + 0"
FIND_EXPIRED = f"""{_READ} expires IS NOT NULL AND status IN {NOT_BEGUN} AND expires <= $1
    ORDER BY expires, seq LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED"""

_CHANGING = """status text, due float8, expires float8, attempt integer, failures integer, crashes integer, worker text,
    started float8, finished float8, purge_at float8, result text, error text, traceback text, progress text,
    history jsonb, cancel_requested boolean, waits integer"""
_BORN = """id text, task text, queue text, priority bigint, payload text, submitted float8, unique_key text,
    parents text, overrides text"""
_changing = ", ".join(part.split()[0] for part in _CHANGING.split(","))
_born = ", ".join(part.split()[0] for part in _BORN.split(","))
# What has become of a unit of the rules, if all that it read is as it was: $1 seqs in order, and $2 the revisions of
# that. $3 jobs to change and $4 new ones, as JSON; who waits for whom, $5 parents and $6 children by seq, or by the
# place among the new ones, negative; $7 what has ended, and $8 what heartbeats are to tell of it.
# The locks come first, so that in a transaction another try finds what this one read as it is now.
WRITE = f"""
    WITH held AS MATERIALIZED (
        SELECT xmin::text AS revision FROM flowrra.job WHERE seq = ANY ($1::bigint[]) ORDER BY seq + 0
        FOR NO KEY UPDATE),
    same AS MATERIALIZED (SELECT ARRAY(SELECT revision FROM held) = $2::text[] AS is_so),
    changed AS (
        UPDATE flowrra.job SET ({_changing}, has_children) = (v.{_changing.replace(", ", ", v.")},
            job.has_children OR v.has_children)
        FROM json_to_recordset($3::json) AS v (seq bigint, has_children boolean, {_CHANGING})
        WHERE job.seq = ANY (ARRAY[v.seq]) AND (SELECT is_so FROM same)),
    new AS (
        INSERT INTO flowrra.job ({_born}, {_changing}, has_children) SELECT {_born}, {_changing}, has_children
        FROM json_to_recordset($4::json) AS v (has_children boolean, {_BORN}, {_CHANGING})
        WHERE (SELECT is_so FROM same) RETURNING seq),
    waiting AS (
        INSERT INTO flowrra.dependency
        SELECT CASE WHEN parent < 0 THEN seqs[-parent] ELSE parent END,
            CASE WHEN child < 0 THEN seqs[-child] ELSE child END
        FROM (SELECT ARRAY(SELECT seq FROM new ORDER BY seq) AS seqs OFFSET 0) AS placed,
            unnest($5::bigint[], $6::bigint[]) AS v (parent, child)
        WHERE (SELECT is_so FROM same) ON CONFLICT DO NOTHING),
    forgotten AS (DELETE FROM flowrra.dependency WHERE parent = ANY ($7::bigint[]) AND (SELECT is_so FROM same)),
    noted AS (INSERT INTO flowrra.ending (job) SELECT v.* FROM unnest($8::text[]) AS v WHERE (SELECT is_so FROM same))
    SELECT is_so FROM same"""

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
# Successes of jobs that nobody waits for. $1 now, then arrays: seqs, attempts, results, when to purge
SUCCEED = f"""
    UPDATE flowrra.job SET status = 'success', result = v.result, error = NULL, traceback = NULL,
        finished = $1::float8, purge_at = v.purge_at
    FROM unnest($2::bigint[], $3::integer[], $4::text[], $5::float8[]) AS v (seq, attempt, result, purge_at)
    WHERE job.seq = ANY (ARRAY[v.seq]) AND job.attempt IS NOT DISTINCT FROM v.attempt AND {IS_RUNNING}
        AND NOT has_children
    RETURNING job.seq, job.attempt, id"""
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
    reported AS (
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
            SELECT seq FROM flowrra.ending ORDER BY seq LIMIT {ENDINGS_TAKEN} FOR UPDATE SKIP LOCKED))
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
# $1 ids, $2 attempts, $3 what is reported of them
REPORT = f"""
    UPDATE flowrra.job SET progress = v.progress
    FROM (SELECT (SELECT seq FROM flowrra.job WHERE job.id = w.id) AS seq, w.attempt, w.progress
        FROM unnest($1::text[], $2::integer[], $3::text[]) AS w (id, attempt, progress) WHERE {LAZY} ORDER BY 1) AS v
    WHERE job.seq = ANY (ARRAY[v.seq]) AND job.attempt IS NOT DISTINCT FROM v.attempt AND {IS_RUNNING}"""

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

# Jobs $1 that are held by $2.
LEAVE = """
    WITH gone AS (
        DELETE FROM flowrra.job WHERE seq = ANY (ARRAY(
            SELECT seq FROM flowrra.job WHERE id = ANY ($1::text[]) AND coalesce(status, '') = 'blocked' AND worker = $2
            ORDER BY seq + 0 FOR UPDATE))
        RETURNING seq, id),
    forgotten AS (DELETE FROM flowrra.dependency WHERE child = ANY (ARRAY(SELECT seq FROM gone)))
    SELECT id FROM gone"""

AWAIT = f"""
    INSERT INTO flowrra.awaited SELECT id, $2::text FROM unnest($1::text[]) AS v (id) WHERE {LAZY}
    ON CONFLICT DO NOTHING"""
# After the commit: $1 finished ids, and channels with what to say on them, $2 and $3. NOTIFY holds a lock on which all
# commits with a NOTIFY wait, so that it goes in a transaction of its own, which does not wait for the disk.
NOTIFY = f"""
    WITH ended AS (DELETE FROM flowrra.awaited WHERE id = ANY ($1::text[]) AND {LAZY} RETURNING channel, id),
    notices AS (
        SELECT channel, CASE WHEN sum(octet_length(id) + 3) < {_PAYLOAD} THEN json_agg(id)::text ELSE '' END AS payload
        FROM ended GROUP BY channel
        UNION ALL SELECT * FROM unnest($2::text[], $3::text[]))
    SELECT pg_notify(channel, payload) FROM notices WHERE {LAZY}"""

# Whether the transaction $1, whose answer was lost, was committed. One that this server does not know of was not.
FATE = "SELECT CASE WHEN pg_current_xact_id() > $1::text::xid8 THEN pg_xact_status($1::text::xid8) END"

RESULT_COLUMNS = "id, task, status, result, error, traceback, attempt, submitted, started, finished, progress"
GET = f"SELECT {RESULT_COLUMNS} FROM flowrra.job WHERE id = ANY ($1::text[])"
# Counting is the one thing that reads all jobs: 300,000 take 40 ms, by an index 110 ms.
READ_ALL = "SELECT set_config('enable_seqscan', 'on', true)"
PAUSE = "INSERT INTO flowrra.paused VALUES ($1) ON CONFLICT DO NOTHING"
RESUME_QUEUE = "DELETE FROM flowrra.paused WHERE queue = $1"
WORKERS = f"SELECT {WORKER_COLUMNS} FROM flowrra.worker WHERE lease > clock_timestamp() ORDER BY started"


@functools.lru_cache(maxsize=1_000)  # searches differ in their text
def in_schema(text: str, schema: str) -> str:
    return text.replace("flowrra.", f'"{schema}".').replace(NAMESPACE, f'CREATE SCHEMA "{schema}"')
