-- The schema. Each part follows a line of dashes; part n takes a store from schema n to n + 1. `flowrra.` stands for the
-- schema of the URL, and a word in braces for a constant of statements.py. A part that was released is never changed.
------------------------------------------------------------------------
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
------------------------------------------------------------------------
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
------------------------------------------------------------------------
-- length: of the lease, in seconds; NULL: of an older Flowrra. graced: its lease is a fresh one that another worker
-- gave it after an outage. term: since when it has held a lease without a break.
ALTER TABLE flowrra.worker ADD COLUMN length float8, ADD COLUMN graced boolean NOT NULL DEFAULT false,
    ADD COLUMN term bigint GENERATED ALWAYS AS IDENTITY;
------------------------------------------------------------------------
-- `expires` is forgotten when an attempt begins to run, so that a job which was handed back untouched still has it.
UPDATE flowrra.job SET expires = NULL WHERE expires IS NOT NULL AND attempt > 0 AND status IN {UNFINISHED};
DROP INDEX flowrra.job_expiring;
CREATE INDEX job_expiring ON flowrra.job (expires) WHERE expires IS NOT NULL AND status IN {NOT_BEGUN};
------------------------------------------------------------------------
CREATE TABLE flowrra.total (  -- what workers did since there is this table; see totals_of_activity
    task text COLLATE "C" NOT NULL,
    what text COLLATE "C" NOT NULL,
    number float8 NOT NULL,
    PRIMARY KEY (task, what)
) WITH (fillfactor = 50);
------------------------------------------------------------------------
CREATE TABLE flowrra.ending (  -- jobs that have ended without an attempt that tells of it, until a heartbeat does
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job text NOT NULL  -- see the core's ended_job
);
------------------------------------------------------------------------
ALTER TABLE flowrra.job ADD COLUMN waits integer NOT NULL DEFAULT 0;  -- what a blocked job waits for; a hold is one
UPDATE flowrra.job SET waits = (SELECT count(*) FROM flowrra.dependency WHERE child = seq)
    + CASE WHEN worker IS NULL THEN 0 ELSE 1 END WHERE status = 'blocked';
------------------------------------------------------------------------
CREATE TABLE flowrra.step (  -- a row each: in one value for all, a step would cost as much as all before it
    number bigint GENERATED ALWAYS AS IDENTITY,  -- the order in which they ended
    job_seq bigint NOT NULL,
    name text COLLATE "C" NOT NULL,
    step text NOT NULL,
    PRIMARY KEY (job_seq, name)
);
-- `overrides` holds tags and notes, too: see the core's labels_text.
CREATE TABLE flowrra.tag (
    tag text COLLATE "C" NOT NULL,
    job_seq bigint NOT NULL,
    PRIMARY KEY (tag, job_seq)
);
CREATE FUNCTION flowrra.note_tags() RETURNS trigger LANGUAGE plpgsql AS $body$ BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO flowrra.tag SELECT jsonb_array_elements_text(NEW.overrides::jsonb -> 'tags'), NEW.seq;
    ELSE
        DELETE FROM flowrra.tag WHERE job_seq = OLD.seq
            AND tag = ANY (ARRAY(SELECT jsonb_array_elements_text(OLD.overrides::jsonb -> 'tags')));
    END IF;
    RETURN NULL;
END $body$;
CREATE TRIGGER job_tagged AFTER INSERT ON flowrra.job
    FOR EACH ROW WHEN (NEW.overrides IS NOT NULL) EXECUTE FUNCTION flowrra.note_tags();
CREATE TRIGGER job_gone AFTER DELETE ON flowrra.job
    FOR EACH ROW WHEN (OLD.overrides IS NOT NULL) EXECUTE FUNCTION flowrra.note_tags();
------------------------------------------------------------------------
-- limit_key: see the core's limit_key(). place: in a fair queue, the job's place among the ready jobs of its priority.
ALTER TABLE flowrra.job ADD COLUMN limit_key text COLLATE "C", ADD COLUMN place bigint NOT NULL DEFAULT 0;
CREATE SEQUENCE flowrra.place;
DROP INDEX flowrra.job_ready;
CREATE INDEX job_ready ON flowrra.job (queue, priority, place, seq) WHERE status = 'pending' AND crashes = 0;
-- Of jobs that have a limit: what holds its places, and what waits for one.
CREATE INDEX job_admitted ON flowrra.job (limit_key, status) WHERE {ADMITTED};
CREATE INDEX job_awaiting ON flowrra.job (limit_key, priority, seq) WHERE {AWAITS};
CREATE TABLE flowrra.limits (
    name text COLLATE "C" PRIMARY KEY,
    text text NOT NULL,  -- see the core's Limit.text
    is_counted boolean NOT NULL,  -- whether jobs that run take its places
    is_charged boolean NOT NULL  -- whether claims change what it allows: by a rate, or in turns
);
CREATE TABLE flowrra.limit_key (  -- see the core's LimitKey.row
    name text COLLATE "C" PRIMARY KEY,
    tat float8 NOT NULL,
    due float8,
    paused boolean NOT NULL
) WITH (fillfactor = 50);
CREATE INDEX limit_key_due ON flowrra.limit_key (due) WHERE due IS NOT NULL;
CREATE TABLE flowrra.limit_ask (  -- limit keys that the next upkeep is to look at, whatever their rows say
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL
);
------------------------------------------------------------------------
-- By the second: equal whole numbers share an entry of an index, which equal floats do not.
DROP INDEX flowrra.job_purge;
CREATE INDEX job_purge ON flowrra.job ({PURGE_SECOND}) WHERE purge_at IS NOT NULL;
-- Room in each page for the entries that claims add. Without it, the claims of a backlog split each page in two.
ALTER INDEX flowrra.job_id_key SET (fillfactor = 65);
