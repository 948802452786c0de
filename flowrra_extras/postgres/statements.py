"""All SQL statements; the schema is in `schema.sql`. In both, `flowrra.` stands for the schema of the URL.

Times are seconds since the epoch by the callers' clocks. Only leases use the server's clock.
"""

import functools
from pathlib import Path
from typing import Any

from flowrra import ENDINGS_TAKEN, NO_ARGUMENTS, Job, JobFilter, TaskStatus, awaits_limit, limit_key

UPKEEP = 1_000  # jobs that one step of upkeep makes ready, and the same number that it cancels as expired
UPKEEP_KEYS = 100  # limit keys of which one step of upkeep admits jobs
MOST_KEYS = 1_000  # limit keys of which one transaction admits jobs; the upkeep looks at the others
_KEYS = 200  # limit keys that one transaction locks one by one: the server has 64 locks for each of its connections
_PAYLOAD = 7_900  # bytes; PostgreSQL refuses a notification of 8,000

DUE_LATER = "('scheduled', 'retrying')"
NOT_BEGUN = "('scheduled', 'blocked', 'pending')"
UNFINISHED = "('scheduled', 'blocked', 'pending', 'running', 'retrying')"
RARE = "('scheduled', 'blocked', 'retrying', 'failed', 'cancelled')"  # states that few jobs have
FINISHED = "('success', 'failed', 'cancelled')"
# Of jobs that have a limit: those that hold a place of it, and those that wait for one, as `awaits_limit` has it.
ADMITTED = "limit_key IS NOT NULL AND status IN ('pending', 'running')"
AWAITS = "limit_key IS NOT NULL AND status = 'blocked' AND waits = 0"
PURGE_SECOND = "(least(purge_at, 9e15)::bigint)"  # of an index; a ttl may exceed any bigint

# Entry n takes a store from schema n to n + 1.
MIGRATIONS = tuple(
    Path(__file__).with_name("schema.sql").read_text(encoding="utf-8").format_map(globals()).split("-" * 72)[1:]
)

META = """
CREATE TABLE IF NOT EXISTS flowrra.meta (version integer NOT NULL, store uuid NOT NULL);
INSERT INTO flowrra.meta SELECT 0, gen_random_uuid() WHERE NOT EXISTS (SELECT FROM flowrra.meta)
"""

# In the WHERE of a statement: its commit does not wait for the disk. A power failure may undo it; no job is lost.
LAZY = "set_config('synchronous_commit', 'off', true) = 'off'"

# Plans are made while the tables are empty, and are kept; statistics are often old. So no plan may depend on the
# planner's estimates. Each row is looked up by its key, in a form that allows no other plan:
# - `key = ANY (ARRAY[v.key])`, because a join by `key = v.key` may scan the whole index of the key for each v;
# - `key = ANY (ARRAY(SELECT ...))` instead of `key IN (SELECT ...)`, which is also a join;
# - a state as an expression that no partial index has, if the row is found by its key: otherwise all running jobs may
#   be scanned, because statistics of a quiet minute let the planner expect none;
# - `ORDER BY seq + 0`, if the rows are found by their keys: otherwise all may be scanned in the order of seq;
# - a subquery for a value instead of NOT EXISTS, which is a join; OFFSET 0, which keeps a subquery out of a join.
# All lock rows in the order of seq, or skip locked rows, so that no two wait for each other. After that, a transaction
# locks limit keys, once; and under these locks, rows that others have not locked.
IS_RUNNING = "coalesce(job.status, '') = 'running'"

# In a transaction, before the states of limit keys are read or a limit changes: whoever has moved jobs of a key, and
# comes after, sees what was decided. All hold one lock together, which a limit that changes needs alone, and so does
# who has many keys. The statement after the one with these CTEs reads: it sees what was committed before the locks.
_ALL = "hashtextextended('flowrra.lock', 0)"


def _locking(names: str) -> str:
    """Return the CTE `locked`, which locks the limit keys that a query finds."""
    return f"""names AS MATERIALIZED (SELECT DISTINCT name COLLATE "C" AS name FROM ({names}) AS v (name) ORDER BY 1),
    locked AS MATERIALIZED (
        SELECT CASE WHEN count(*) > {_KEYS} THEN pg_advisory_xact_lock({_ALL})
            WHEN count(*) > 0 THEN pg_advisory_xact_lock_shared({_ALL}) END FROM names
        UNION ALL SELECT pg_advisory_xact_lock(hashtextextended('flowrra.lock ' || name, 0))
        FROM names WHERE (SELECT count(*) FROM names) <= {_KEYS})"""


LOCK_KEYS = f"WITH {_locking('SELECT unnest($1::text[])')} SELECT FROM locked"
LOCK_LIMITS = f"SELECT pg_advisory_xact_lock({_ALL})"

# Plain jobs, without parents and key. $1 now, then arrays: ids, payloads, tasks, queues, priorities, dues, expires,
# overrides, limit keys. An array of tasks, queues or priorities may have one value for all jobs, and an empty array
# means NULLs: so statements of 1,000 jobs insert 150,000/s; with all arrays filled 110,000/s. Jobs that have a limit
# wait for it.
INSERT = """
    INSERT INTO flowrra.job (id, payload, task, queue, priority, status, submitted, due, expires, overrides, limit_key)
    SELECT id, payload, coalesce(task, ($4::text[])[1]), coalesce(queue, ($5::text[])[1]),
        coalesce(priority, ($6::bigint[])[1]),
        CASE WHEN due > $1::float8 THEN 'scheduled' WHEN limit_key IS NULL THEN 'pending' ELSE 'blocked' END,
        $1::float8, due, expires, overrides, limit_key
    FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::float8[], $8::float8[],
        $9::text[], $10::text[]) AS v (id, payload, task, queue, priority, due, expires, overrides, limit_key)
    ON CONFLICT DO NOTHING"""
# One such job, and a notification $11 on channel $10, in one round trip (0.24 ms; by INSERT 0.29).
INSERT_ONE = """
    WITH new AS (
        INSERT INTO flowrra.job (submitted, status, id, payload, task, queue, priority, due, expires, overrides)
        VALUES ($1::float8, CASE WHEN $7::float8 > $1::float8 THEN 'scheduled' ELSE 'pending' END, $2, $3, $4, $5, $6,
            $7::float8, $8, $9) ON CONFLICT DO NOTHING)
    SELECT pg_notify($10, $11)"""
# The same, but notified before it is on disk. SYNC then waits for the disk.
INSERT_ONE_EARLY = f"{INSERT_ONE} WHERE {LAZY}"
SYNC = "SELECT pg_logical_emit_message(true, 'flowrra', '')"  # flushes a commit, and so all commits before it, to disk

# Reads for the rules. A row's `xmin`, the transaction that wrote it, is its revision: every write changes it.
JOB_COLUMNS = (
    "seq, id, task, payload, queue, priority, status, submitted, due, expires, unique_key, parents, overrides, "
    "attempt, failures, crashes, cancel_requested, worker, started, finished, purge_at, result, error, "
    "traceback, progress, history::text, waits, steps, place, limit_key"
)
_STEPS = "(SELECT '[' || string_agg(step, ',' ORDER BY number) || ']' FROM flowrra.step WHERE job_seq = job.seq)"
_READ = (  # without what is large, and no rule needs
    f"SELECT {JOB_COLUMNS}, has_children, xmin::text FROM flowrra.job WHERE".replace("payload", "NULL")
    .replace("result", "NULL")
    .replace("steps", "NULL")
)
FIND_JOBS = f"{_READ} id = ANY ($1::text[])"
FIND_CHILDREN = f"""{_READ} seq = ANY (ARRAY(SELECT child FROM flowrra.dependency WHERE parent = ANY ($1::bigint[])))
    AND coalesce(status, '') = 'blocked' ORDER BY seq + 0"""
FIND_HOLDERS = f"{_READ} unique_key = ANY ($1::text[]) AND status IN {UNFINISHED}"
FIND_RUNNING = f"{_READ} status = 'running' AND worker = ANY ($1::text[]) ORDER BY seq + 0"
FIND_WAITERS = f"""{_READ} id = ANY (ARRAY(
    SELECT name FROM flowrra.step WHERE job_seq = ANY (ARRAY(SELECT seq FROM flowrra.job WHERE id = ANY ($1::text[])))))
    ORDER BY seq + 0"""
FIND_EXPIRED = f"""{_READ} expires IS NOT NULL AND status IN {NOT_BEGUN} AND expires <= $1
    ORDER BY expires, seq LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED"""

_CHANGING = """status text, due float8, expires float8, attempt integer, failures integer, crashes integer, worker text,
    started float8, finished float8, purge_at float8, result text, error text, traceback text, progress text,
    history jsonb, cancel_requested boolean, waits integer, place bigint"""
_BORN = """id text, task text, queue text, priority bigint, payload text, submitted float8, unique_key text,
    parents text, overrides text, limit_key text"""
_changing = ", ".join(part.split()[0] for part in _CHANGING.split(","))
_born = ", ".join(part.split()[0] for part in _BORN.split(","))
# Write a unit of the rules, if nothing that it read has changed: $1 the seqs in order, $2 their revisions. $3 jobs to
# change and $4 new jobs, as JSON. Dependencies: $5 parents and $6 children, by seq or, negative, by their place among
# the new jobs. $7 the jobs that have ended, and $8 what heartbeats report of them. Steps: $9 jobs, in the same way, $10
# names and $11 the steps.
# The rows are locked first, so that in a transaction another try reads the current rows.
WRITE = f"""
    WITH held AS MATERIALIZED (
        SELECT xmin::text AS revision FROM flowrra.job WHERE seq = ANY ($1::bigint[]) ORDER BY seq + 0
        FOR NO KEY UPDATE),
    same AS MATERIALIZED (SELECT ARRAY(SELECT revision FROM held) = $2::text[] AS is_so),
    changed AS (
        UPDATE flowrra.job SET ({_changing}, has_children, payload, limit_key) = (v.{_changing.replace(", ", ", v.")},
            job.has_children OR v.has_children, coalesce(v.payload, job.payload),
            CASE WHEN v.payload IS NULL THEN job.limit_key ELSE v.limit_key END)
        FROM json_to_recordset($3::json)
            AS v (seq bigint, has_children boolean, payload text, limit_key text, {_CHANGING})
        WHERE job.seq = ANY (ARRAY[v.seq]) AND (SELECT is_so FROM same)),
    new AS (
        INSERT INTO flowrra.job ({_born}, {_changing}, has_children) SELECT {_born}, {_changing}, has_children
        FROM json_to_recordset($4::json) AS v (has_children boolean, {_BORN}, {_CHANGING})
        WHERE (SELECT is_so FROM same) RETURNING seq),
    placed AS MATERIALIZED (SELECT ARRAY(SELECT seq FROM new ORDER BY seq) AS seqs),
    waiting AS (
        INSERT INTO flowrra.dependency
        SELECT CASE WHEN parent < 0 THEN seqs[-parent] ELSE parent END,
            CASE WHEN child < 0 THEN seqs[-child] ELSE child END
        FROM placed, unnest($5::bigint[], $6::bigint[]) AS v (parent, child)
        WHERE (SELECT is_so FROM same) ON CONFLICT DO NOTHING),
    stepped AS (
        INSERT INTO flowrra.step (job_seq, name, step)
        SELECT CASE WHEN job < 0 THEN seqs[-job] ELSE job END, name, step
        FROM placed, unnest($9::bigint[], $10::text[], $11::text[]) AS v (job, name, step)
        WHERE (SELECT is_so FROM same) ON CONFLICT (job_seq, name) DO UPDATE SET step = excluded.step),
    forgotten AS (DELETE FROM flowrra.dependency WHERE parent = ANY ($7::bigint[]) AND (SELECT is_so FROM same)),
    noted AS (INSERT INTO flowrra.ending (job) SELECT v.* FROM unnest($8::text[]) AS v WHERE (SELECT is_so FROM same))
    SELECT is_so FROM same"""

CLAIMED = (
    "seq, id, task, payload, queue, priority, submitted, due, attempt - 1, failures, crashes, overrides, parents, "
    "NULL, limit_key"
)
# Of claimed jobs. Not in the statement of the claim, which may not see what an attempt before has just stored.
STEPS_OF = f"SELECT seq, {_STEPS} FROM flowrra.job WHERE seq = ANY ($1::bigint[])"
# For another worker than `mine`, the row of the worker that asks: whether its lease has ended, and whether it is dead,
# because it had already missed a heartbeat at the last heartbeat of `mine`. See `judge_leases` of the core. If the
# length of a lease is unknown, half of the other one's length counts.
LAPSED = "other.lease <= clock_timestamp() AND other.id <> mine.id"
LATE = "mine.lease - make_interval(secs => coalesce(mine.length, 0) / 4) <= clock_timestamp()"
MISSED = """other.lease - make_interval(secs => coalesce(other.length, mine.length, 0) / 2)
        <= mine.lease - make_interval(secs => coalesce(mine.length, 0))"""
# The workers whose jobs a claim of $2 rescues. Heartbeats decide on doubtful workers.
LOST = f"""
    SELECT other.id FROM flowrra.worker AS other, flowrra.worker AS mine
    WHERE mine.id = $2 AND NOT {LATE} AND {LAPSED} AND {MISSED} AND NOT other.graced"""
LOST_TO = LOST.replace("$2", "$1")
# A claim locks its worker's row. A rescue of that worker's jobs first deletes the row, so it waits for the claim and
# then sees all its jobs. `FOR KEY SHARE` does not block heartbeats.
ME = f"SELECT FROM flowrra.worker WHERE id = $2 AND lease > clock_timestamp() AND {LAZY} FOR KEY SHARE"


# $1 queue, $2 worker, $3 now, $4 limit, ($5 priority, $6 place, $7 seq) after which to look, $8 whether to check for
# upkeep, $9 whether to check for suspects. If limits must be charged, which needs a transaction, nothing is claimed. At
# least one row: the results of the checks, the names of the limits to charge, and a job if there is one.
# Expired jobs are filtered later: a condition here would read a million expired jobs to find one that is not.
def _claim(*, charges: bool) -> str:
    """Return a claim. One that charges is for a transaction, and locks the limit keys of the jobs that are charged."""
    may_start = "true" if charges else "(SELECT cardinality(charged) = 0 FROM charged)"
    to_charge = (
        "SELECT limit_key FROM started WHERE split_part(limit_key, ':', 1) = ANY ((SELECT * FROM charged)::text[])"
    )
    locked = f", {_locking(to_charge)}" if charges else ""
    texts = "SELECT text FROM flowrra.limits WHERE name = ANY ((SELECT * FROM charged)::text[])"
    of_charged = f"ARRAY({texts}) AS texts, (SELECT count(*) FROM locked),"
    return f"""
    WITH me AS MATERIALIZED ({ME}),
    state AS MATERIALIZED (
        SELECT EXISTS (SELECT FROM me) AND NOT EXISTS (SELECT FROM flowrra.paused WHERE queue = $1) AS may,
            $8::boolean AND (EXISTS ({LOST})
                OR EXISTS (SELECT FROM flowrra.job WHERE status IN {DUE_LATER} AND due <= $3)
                OR (SELECT due <= $3 FROM flowrra.limit_key WHERE due IS NOT NULL ORDER BY due LIMIT 1) IS TRUE
                OR (SELECT seq FROM flowrra.limit_ask ORDER BY seq LIMIT 1) IS NOT NULL
                OR EXISTS (SELECT FROM flowrra.job WHERE expires IS NOT NULL
                    AND status IN {NOT_BEGUN} AND expires <= $3)) AS upkeep,
            $9::boolean AND (EXISTS (SELECT FROM flowrra.job WHERE status = 'pending' AND crashes > 0 AND queue = $1)
                OR EXISTS (SELECT FROM flowrra.job WHERE status = 'running' AND crashes > 0 AND worker = $2))
                AS suspects),
    line AS MATERIALIZED (
        SELECT seq, expires IS NOT NULL AND expires <= $3 AS has_expired, limit_key
        FROM flowrra.job WHERE status = 'pending' AND crashes = 0 AND queue = $1
            AND (priority, place, seq) > ($5::bigint, $6::bigint, $7::bigint)
            AND (SELECT may AND NOT upkeep AND NOT suspects FROM state)
        ORDER BY priority, place, seq LIMIT $4::bigint FOR UPDATE SKIP LOCKED),
    charged AS MATERIALIZED (
        SELECT ARRAY(SELECT name FROM flowrra.limits WHERE is_charged AND name = ANY (ARRAY(
            SELECT DISTINCT split_part(limit_key, ':', 1) FROM line WHERE limit_key IS NOT NULL))) AS charged),
    started AS (
        UPDATE flowrra.job SET status = 'running', attempt = attempt + 1, worker = $2::text, started = $3::float8
        WHERE seq = ANY (ARRAY(SELECT seq FROM line WHERE NOT has_expired)) AND {may_start}
        RETURNING place, {CLAIMED}){locked}
    SELECT may, upkeep, suspects, (SELECT charged FROM charged) AS charged,
        {of_charged if charges else ""} CASE WHEN seq IS NULL THEN least(
            (SELECT due FROM flowrra.job WHERE status IN {DUE_LATER} ORDER BY due LIMIT 1),
            (SELECT due FROM flowrra.limit_key WHERE due IS NOT NULL ORDER BY due LIMIT 1)) END AS next_due, started.*
    FROM state LEFT JOIN started ON true"""


CLAIM, CLAIM_CHARGED = _claim(charges=False), _claim(charges=True)
# $1 queue, $2 worker, $3 now, $4 crashes, $5 the maximum of crashes. At least one row: whether the worker is running a
# job, and whether that job is a suspect.
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
        RETURNING place, {CLAIMED})
    SELECT busy, alone, started.* FROM held LEFT JOIN started ON true"""
RESUME = f"""
    SELECT started AS began, place, {CLAIMED} FROM flowrra.job
    WHERE status = 'running' AND worker = $2 AND queue = $1 AND started = ANY ($3::float8[])"""

# Jobs of a limit begin to wait for it.
PROMOTE = f"""
    UPDATE flowrra.job SET status = CASE WHEN limit_key IS NULL THEN 'pending' ELSE 'blocked' END, place = 0
    WHERE seq = ANY (ARRAY(
        SELECT seq FROM flowrra.job WHERE status IN {DUE_LATER} AND due <= $1 ORDER BY due LIMIT {UPKEEP}
        FOR UPDATE SKIP LOCKED)) RETURNING limit_key"""
# Successes of jobs without children and limits. $1 now, then arrays: seqs, attempts, results, when to purge.
SUCCEED = f"""
    UPDATE flowrra.job SET status = 'success', result = v.result, error = NULL, traceback = NULL,
        finished = $1::float8, purge_at = v.purge_at
    FROM unnest($2::bigint[], $3::integer[], $4::text[], $5::float8[]) AS v (seq, attempt, result, purge_at)
    WHERE job.seq = ANY (ARRAY[v.seq]) AND job.attempt IS NOT DISTINCT FROM v.attempt AND {IS_RUNNING}
        AND NOT has_children AND limit_key IS NULL
    RETURNING job.seq, job.attempt, id, limit_key"""
# The same of jobs with limits, in a transaction that then admits others. If $6 were written, all that the transaction
# has, it locks their limit keys.
SUCCEED_LIMITED = f"""
    WITH ended AS ({SUCCEED.replace("limit_key IS NULL", "limit_key IS NOT NULL")}),
    {_locking("SELECT limit_key FROM ended WHERE (SELECT count(*) FROM ended) = $6::integer")}
    SELECT *, (SELECT count(*) FROM locked) > 0 AS has_locked FROM ended"""
# Store steps, if their attempts still hold the jobs. Arrays: seqs in order, attempts, names, steps. The lock lets no
# attempt end before its steps are stored.
KEEP_STEPS = f"""
    WITH held AS MATERIALIZED (
        SELECT v.* FROM unnest($1::bigint[], $2::integer[], $3::text[], $4::text[]) AS v (seq, attempt, name, step),
            flowrra.job
        WHERE job.seq = ANY (ARRAY[v.seq]) AND job.attempt IS NOT DISTINCT FROM v.attempt AND {IS_RUNNING}
        FOR SHARE OF job),
    stored AS (
        INSERT INTO flowrra.step (job_seq, name, step) SELECT seq, name, step FROM held
        ON CONFLICT (job_seq, name) DO UPDATE SET step = excluded.step)
    SELECT seq, attempt FROM held"""
# The attempts that a settle has written whose answer was lost. Arrays: seqs, attempts, statuses, endings.
WRITTEN = """
    SELECT v.seq, v.attempt
    FROM flowrra.job JOIN unnest($1::bigint[], $2::integer[], $3::text[], $4::text[])
        AS v (seq, attempt, status, ending) ON job.seq = ANY (ARRAY[v.seq])
    WHERE job.attempt IS NOT DISTINCT FROM v.attempt AND (finished IS NOT NULL AND job.status = v.status
        OR EXISTS (SELECT FROM jsonb_array_elements(history) AS entry
            WHERE entry -> 0 = to_jsonb(v.attempt) AND entry ->> 4 = v.ending))"""

# Limits ----------------------------------------------------------------------------------------

# Limit keys $1 as LimitKey has them. Of some, $2 jobs have moved and nothing else has happened: up to this number of
# waiting jobs are found as by WAITING_FOR, each in a row. $3: these have ended, so keys are left out for which no job
# waits or whose limit counts none. $4: whether to count the jobs that hold places if none waits.
LIMIT_KEYS = f"""
    SELECT v.name, known.text, held.running, held.pending, there.number, kept.tat, kept.due, kept.paused,
        job.id, job.queue, job.priority, job.seq
    FROM unnest($1::text[], $2::integer[]) AS v (name, most)
        CROSS JOIN LATERAL (
            SELECT count(*) AS number FROM (
                SELECT FROM flowrra.job WHERE limit_key = v.name AND {AWAITS}
                LIMIT greatest(v.most, 1)) AS one) AS there
        LEFT JOIN LATERAL (
            SELECT text, is_counted FROM flowrra.limits
            WHERE name = split_part(v.name, ':', 1) AND (v.most = 0 OR there.number > 0) OFFSET 0) AS known ON true
        CROSS JOIN LATERAL (
            SELECT v.most = 0 OR NOT $3::boolean OR coalesce(known.is_counted, false) AS is_so OFFSET 0) AS wanted
        LEFT JOIN LATERAL (
            SELECT tat, due, paused FROM flowrra.limit_key
            WHERE name = v.name AND wanted.is_so OFFSET 0) AS kept ON true
        CROSS JOIN LATERAL (
            SELECT count(*) FILTER (WHERE status = 'running') AS running,
                count(*) FILTER (WHERE status = 'pending') AS pending
            FROM flowrra.job WHERE limit_key = v.name AND {ADMITTED} AND wanted.is_so
                AND (there.number > 0 OR $4::boolean)
                AND status <= CASE WHEN known.is_counted OR $4::boolean THEN 'running' ELSE 'pending' END) AS held
        LEFT JOIN LATERAL (
            SELECT id, queue, priority, seq FROM flowrra.job
            WHERE limit_key = v.name AND {AWAITS} AND wanted.is_so
            ORDER BY priority, seq LIMIT v.most FOR NO KEY UPDATE SKIP LOCKED) AS job ON true
    WHERE wanted.is_so"""
# The first jobs that wait for limit keys $1, up to $2 of each, without those that others have locked; and the number of
# them with those, to know whether there are any.
WAITING_FOR = f"""
    SELECT v.name, them.number, job.id, job.queue, job.priority, job.seq
    FROM unnest($1::text[], $2::integer[]) AS v (name, most), LATERAL (
            SELECT count(*) AS number FROM (
                SELECT FROM flowrra.job WHERE limit_key = v.name AND {AWAITS} LIMIT v.most) AS one) AS them
        LEFT JOIN LATERAL (
            SELECT id, queue, priority, seq FROM flowrra.job WHERE limit_key = v.name AND {AWAITS}
            ORDER BY priority, seq LIMIT v.most FOR NO KEY UPDATE SKIP LOCKED) AS job ON true"""
FIND_ADMITTED = f"""{_READ} limit_key = ANY ($1::text[]) AND {ADMITTED} AND status < 'running'
    FOR NO KEY UPDATE SKIP LOCKED"""
# Up to $2 limit keys that are due at $1, and as many of those that are to be looked at.
DUE_KEYS = """
    WITH asked AS (
        DELETE FROM flowrra.limit_ask WHERE seq = ANY (ARRAY(
            SELECT seq FROM flowrra.limit_ask ORDER BY seq LIMIT $2 FOR UPDATE SKIP LOCKED))
        RETURNING name)
    SELECT name FROM asked UNION
    (SELECT name FROM flowrra.limit_key WHERE due IS NOT NULL AND due <= $1 ORDER BY due LIMIT $2)"""
# Under the locks of their keys: jobs $1 that WAITING_FOR has found become ready, at the next places if $2. Rows of
# limit keys, by name, tat, due, and whether they are paused; those of $7 are gone. Places are taken first: a plan may
# read all jobs, and the arrays once for each of them.
ADMIT = """
    WITH placed AS MATERIALIZED (
        SELECT seq, CASE WHEN takes_turns THEN nextval('flowrra.place') ELSE 0 END AS place
        FROM unnest($1::bigint[], $2::boolean[]) AS v (seq, takes_turns)),
    admitted AS (
        UPDATE flowrra.job SET status = 'pending', place = v.place FROM placed AS v
        WHERE job.seq = ANY (ARRAY[v.seq]) AND coalesce(job.status, '') = 'blocked'),
    kept AS (
        INSERT INTO flowrra.limit_key SELECT * FROM unnest($3::text[], $4::float8[], $5::float8[], $6::boolean[])
        ON CONFLICT (name) DO UPDATE SET tat = excluded.tat, due = excluded.due, paused = excluded.paused)
    DELETE FROM flowrra.limit_key WHERE name = ANY ($7::text[])"""
ASK = "INSERT INTO flowrra.limit_ask (name) SELECT unnest($1::text[])"
# Limit $1 is $2 from now on, with its flags; all keys of it for which jobs wait are looked at, found by one step of
# the index for each, however many wait for it.
SET_LIMIT = f"""
    WITH RECURSIVE kept AS (
        INSERT INTO flowrra.limits VALUES ($1, $2, $3, $4) ON CONFLICT (name) DO UPDATE
        SET text = excluded.text, is_counted = excluded.is_counted, is_charged = excluded.is_charged),
    waiting (name) AS (
        (SELECT limit_key FROM flowrra.job
            WHERE {AWAITS} AND limit_key >= $1::text || ':' AND limit_key < $1::text || ';' ORDER BY limit_key LIMIT 1)
        UNION ALL SELECT (SELECT limit_key FROM flowrra.job
            WHERE {AWAITS} AND limit_key > waiting.name AND limit_key < $1::text || ';' ORDER BY limit_key LIMIT 1)
        FROM waiting WHERE name IS NOT NULL)
    INSERT INTO flowrra.limit_ask (name) SELECT name FROM waiting WHERE name IS NOT NULL"""
LIMITS = "SELECT text FROM flowrra.limits"
# What `uses_of` takes: this counts all that waits for limits.
LIMIT_USE = f"""
    SELECT limit_key, count(*) FILTER (WHERE status = 'running'), count(*) FILTER (WHERE status = 'pending'), 0, false
    FROM flowrra.job WHERE {ADMITTED} GROUP BY 1
    UNION ALL SELECT limit_key, 0, 0, count(*), false FROM flowrra.job WHERE {AWAITS} GROUP BY 1
    UNION ALL SELECT name, 0, 0, 0, true FROM flowrra.limit_key WHERE paused"""
FORGET_KEYS = """
    DELETE FROM flowrra.limit_key WHERE name = ANY (ARRAY(
        SELECT name FROM flowrra.limit_key WHERE tat < $1 AND due IS NULL AND NOT paused FOR UPDATE SKIP LOCKED))"""

# Workers, and by hand --------------------------------------------------------------------------

WORKER_COLUMNS = "id, host, pid, queues, tasks, started, seen, running, version, memory"
# A heartbeat: $1 to $10 are WORKER_COLUMNS, $11 seconds of lease, $12 its queues, $13 minutes and $14 the activity in
# them, $15 the oldest minute to keep, $16 whether it is a new worker that had no trouble to reach the server, $17
# whether it may be a repetition. It returns the notices, and the other workers that are dead. Doubtful workers get a
# fresh lease in the same statement, because a repeated heartbeat would find this worker on time. All reads see the
# state before it. `unnest(ARRAY())` is planned as 10 rows, not 100: above some cost, a server with jit on compiles it.
BEAT = f"""
    WITH mine AS MATERIALIZED (SELECT id, lease, length FROM flowrra.worker WHERE id = $1),
    lapsed AS MATERIALIZED (
        SELECT other.id, other.graced, CASE WHEN $17::boolean THEN false
            WHEN mine.id IS NULL THEN $16::boolean ELSE NOT {LATE} AND {MISSED} END AS dead
        FROM flowrra.worker AS other LEFT JOIN mine ON true WHERE other.id <> $1 AND other.lease <= clock_timestamp()
            + make_interval(secs => CASE WHEN {LATE} THEN coalesce(other.length, 0) / 2 ELSE 0 END)),
    fresh AS (
        UPDATE flowrra.worker SET lease = clock_timestamp() + make_interval(secs => coalesce(length, $11::float8)),
            graced = true
        WHERE id = ANY (ARRAY(SELECT id FROM flowrra.worker WHERE NOT graced
            AND lease <= clock_timestamp() + make_interval(secs => coalesce(length, 0) / 2)
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
            ) AS texts, unnest(ARRAY(SELECT jsonb_array_elements(counts::jsonb))) AS line,
            jsonb_array_elements(line) WITH ORDINALITY AS v (part, place),
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
# Those of the workers $1 whose lease has still not been renewed.
RESCUE = "DELETE FROM flowrra.worker WHERE id = ANY ($1::text[]) AND lease <= clock_timestamp() RETURNING id"

_WITHOUT_STEPS = """,
    forgotten_steps AS (DELETE FROM flowrra.step WHERE job_seq = ANY (ARRAY(SELECT seq FROM gone)))
    SELECT id FROM gone"""
DELETE = f"""
    WITH gone AS (
        DELETE FROM flowrra.job WHERE seq = ANY (ARRAY(
            SELECT seq FROM flowrra.job WHERE id = ANY ($1::text[]) AND status IN {FINISHED}
            ORDER BY seq + 0 FOR UPDATE))
        RETURNING seq, id){_WITHOUT_STEPS}"""
PURGE = f"""
    WITH gone AS (
        DELETE FROM flowrra.job WHERE seq = ANY (ARRAY(
            SELECT seq FROM flowrra.job
            WHERE purge_at < $1 AND {PURGE_SECOND} <= {PURGE_SECOND.replace("purge_at", "$1")}
            ORDER BY {PURGE_SECOND} LIMIT $2 FOR UPDATE SKIP LOCKED))
        RETURNING seq, id){_WITHOUT_STEPS}"""
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
    WHERE job.queue = ''"""  # otherwise it is a job of this store

# Jobs $1 that are held by $2.
LEAVE = f"""
    WITH gone AS (
        DELETE FROM flowrra.job WHERE seq = ANY (ARRAY(
            SELECT seq FROM flowrra.job WHERE id = ANY ($1::text[]) AND coalesce(status, '') = 'blocked' AND worker = $2
            ORDER BY seq + 0 FOR UPDATE))
        RETURNING seq, id),
    forgotten AS (DELETE FROM flowrra.dependency WHERE child = ANY (ARRAY(SELECT seq FROM gone))){_WITHOUT_STEPS}"""

AWAIT = f"""
    INSERT INTO flowrra.awaited SELECT id, $2::text FROM unnest($1::text[]) AS v (id) WHERE {LAZY}
    ON CONFLICT DO NOTHING"""
# After the commit: $1 finished ids, $2 channels and $3 their payloads. NOTIFY holds a lock for which all commits with a
# NOTIFY wait, so it runs in a separate transaction, which does not wait for the disk.
NOTIFY = f"""
    WITH ended AS (DELETE FROM flowrra.awaited WHERE id = ANY ($1::text[]) AND {LAZY} RETURNING channel, id),
    notices AS (
        SELECT channel, CASE WHEN sum(octet_length(id) + 3) < {_PAYLOAD} THEN json_agg(id)::text ELSE '' END AS payload
        FROM ended GROUP BY channel
        UNION ALL SELECT * FROM unnest($2::text[], $3::text[]))
    SELECT pg_notify(channel, payload) FROM notices WHERE {LAZY}"""

# Whether the transaction $1, whose answer was lost, was committed. A transaction that the server does not know was not.
FATE = "SELECT CASE WHEN pg_current_xact_id() > $1::text::xid8 THEN pg_xact_status($1::text::xid8) END"

RESULT_COLUMNS = "id, task, status, result, error, traceback, attempt, submitted, started, finished, progress"
GET = f"SELECT {RESULT_COLUMNS} FROM flowrra.job WHERE id = ANY ($1::text[])"
# Only counting reads all jobs: 300,000 take 40 ms, by an index 110 ms.
READ_ALL = "SELECT set_config('enable_seqscan', 'on', true)"
PAUSE = "INSERT INTO flowrra.paused VALUES ($1) ON CONFLICT DO NOTHING"
RESUME_QUEUE = "DELETE FROM flowrra.paused WHERE queue = $1"
WORKERS = f"SELECT {WORKER_COLUMNS} FROM flowrra.worker WHERE lease > clock_timestamp() ORDER BY started"


@functools.lru_cache(maxsize=1_000)  # the texts of searches differ
def in_schema(text: str, schema: str) -> str:
    return text.replace("flowrra.", f'"{schema}".')


# Searches as text ------------------------------------------------------------------------------


def where_clause(which: JobFilter) -> tuple[str, list[Any]]:
    """Return a filter as the text of a WHERE clause and its values."""
    # With the locale C, a database knows the lower case of A to Z only. So ICU is used for other letters.
    fold = "" if (which.error or "").isascii() else ' COLLATE "und-x-icu"'
    terms: list[str] = []
    values: list[Any] = []
    for term, value in (
        ("id = ANY (${}::text[])", None if which.ids is None else list(which.ids)),
        ("task = ${}", which.task),
        ("queue = ${}", which.queue),
        ("worker = ${}", which.worker),
        (f"strpos(lower(error{fold}), lower(${{}}{fold})) > 0", clean(which.error)),
        ("parents IS NOT NULL AND parents::jsonb ? ${}", which.parent),
        ("tag = ${}", clean(which.tag)),
        ("seq >= ${}", which.from_seq),
    ):
        if value is not None:
            values.append(value)
            terms.append(term.format(len(values)))
    if which.status is not None:  # in the text, so that partial indexes match; a single one with "=", for their order
        states = sorted(which.status)
        terms.append(
            f"status = '{states[0]}'" if len(states) == 1 else f"status = ANY ('{{{','.join(states)}}}'::text[])"
        )
    if which.ahead_of is not None:
        term, more = _ahead_of(which.ahead_of, len(values))
        terms.append(term)
        values += more
    return " AND ".join(terms) or "true", values


def _ahead_of(job: Job, n: int) -> tuple[str, list[Any]]:
    """What is ahead of a job, as a condition whose values follow n others."""
    if not awaits_limit(job):
        place = f"(priority, place, seq) < (${n + 2}::bigint, ${n + 3}::bigint, ${n + 4}::bigint)"
        return f"status = 'pending' AND queue = ${n + 1} AND {place}", [job.queue, job.priority, job.place, job.seq]
    mine = f"SELECT seq FROM flowrra.job WHERE limit_key = ${n + 1} AND"  # no index has both kinds of what is ahead
    before = f"(priority, seq) < (${n + 2}::bigint, ${n + 3}::bigint)"
    term = f"seq = ANY (ARRAY({mine} {ADMITTED}) || ARRAY({mine} {AWAITS} AND {before}))"
    return term, [limit_key(job), job.priority, job.seq]


def search(
    which: JobFilter, *, limit: int, after: int | None = None, oldest_first: bool = False
) -> tuple[str, list[Any]]:
    """Return the query for jobs in order, and its values."""
    where, values = where_clause(which)
    order, behind = ("ASC", ">") if oldest_first else ("DESC", "<")
    is_narrow = which.ids is not None or (which.worker is not None and which.status == frozenset({TaskStatus.RUNNING}))
    place = "seq" if which.tag is None else "job_seq"
    key = f"{place} + 0" if is_narrow else place  # prevents a plan that scans all jobs in the order of seq
    if after is not None:
        where, values = f"{where} AND {place} {behind} ${len(values) + 1}", [*values, after]
    source = _source(which)
    columns = JOB_COLUMNS.replace("steps", _STEPS)
    return f"SELECT {columns} FROM {source} WHERE {where} ORDER BY {key} {order} LIMIT {int(limit)}", values


def _source(which: JobFilter) -> str:
    """Return the tables of a search. Jobs with a tag are found by its index, in order."""
    if which.tag is None:
        return "flowrra.job"
    return "flowrra.tag JOIN flowrra.job ON seq = job_seq"


def counting(which: JobFilter) -> tuple[str, list[Any]]:
    """Return the query for numbers of jobs by queue and state, and its values."""
    where, values = where_clause(which)
    return f"SELECT queue, status, count(*) FROM {_source(which)} WHERE {where} GROUP BY queue, status", values


def clean(text: str | None) -> str | None:
    """Return text that PostgreSQL can store: a NUL or half of a surrogate pair is escaped."""
    if text is None or (text.isascii() and "\0" not in text):
        return text
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
