"""PostgreSQL: every statement keeps its plan, whatever the tables held when it was made and whatever statistics say.

Five states of the tables, each with the plan that a session keeps (made in the state that comes first) and with one
that is made anew for the values. The statements are those of the module: a new one without values here fails.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

from flowrra import JobFilter, TaskStatus
from flowrra_extras.postgres import statements as sql
from flowrra_extras.postgres.connections import _PLANS
from tests.support.postgres_server import Connection, clean_schema
from tests.support.services import POSTGRES_URL

pytestmark = pytest.mark.usefixtures("postgres_url")

TABLES = ("job", "dependency", "step", "awaited", "limits", "limit_key", "limit_ask")
STATES = ("virgin", "vacuumed empty", "analyzed full", "only finished", "stale")
# Of the last, behind a pooler, the settings are the server's own.
MODES = ("the kept plan", "a plan for the values", "the server's settings")

FINISHED = """
    INSERT INTO flowrra.job (id, task, queue, priority, status, payload, submitted, attempt, worker, started, finished,
        purge_at, result)
    SELECT 'done' || n, 'task', 'default', 0, 'success', '[[1],{}]', n, 1, 'gone', n, n, n, '7'
    FROM generate_series(1, 20000) AS n"""
UNFINISHED = """
    INSERT INTO flowrra.job (id, task, queue, priority, status, payload, submitted, due, expires, unique_key, parents,
        attempt, failures, crashes, cancel_requested, worker, started, finished, purge_at, limit_key, place)
    SELECT kind || n, 'task', 'default', 0, status, '[[1],{}]', n, n, CASE WHEN status = 'pending' THEN n END,
        CASE WHEN kind = 'pending' THEN 'key' || n END, CASE WHEN status = 'blocked' THEN '["running1"]' END,
        CASE WHEN status IN ('running', 'failed') THEN 1 ELSE 0 END, CASE WHEN status = 'retrying' THEN 1 ELSE 0 END,
        crashes, kind = 'cancelling', CASE WHEN status = 'running' THEN 'w' || n % 10 END,
        CASE WHEN status = 'running' THEN n END, CASE WHEN status IN ('failed', 'cancelled') THEN n END,
        CASE WHEN status IN ('failed', 'cancelled') THEN n END,
        CASE WHEN kind IN ('held', 'admitted', 'started') THEN 'api:' || n % 100 END, 0
    FROM (VALUES ('held', 'blocked', 0), ('admitted', 'pending', 0), ('started', 'running', 0),
        ('pending', 'pending', 0), ('suspect', 'pending', 1), ('running', 'running', 0),
        ('cancelling', 'running', 0), ('scheduled', 'scheduled', 0), ('retrying', 'retrying', 0),
        ('blocked', 'blocked', 0), ('failed', 'failed', 0), ('cancelled', 'cancelled', 0)) AS v (kind, status, crashes),
        generate_series(1, 1000) AS n"""
LIMITS = """
    INSERT INTO flowrra.limits VALUES ('api', '', true, true);
    INSERT INTO flowrra.limits SELECT 'limit' || n, '', true, true FROM generate_series(1, 20000) AS n;
    INSERT INTO flowrra.limit_key SELECT 'api:' || n, n, CASE WHEN n % 2 = 0 THEN n END, false
    FROM generate_series(1, 20000) AS n;
    INSERT INTO flowrra.limit_ask (name) SELECT 'api:' || n FROM generate_series(1, 20000) AS n"""
WAITING = """
    INSERT INTO flowrra.dependency SELECT parent.seq, child.seq FROM flowrra.job AS parent, flowrra.job AS child
    WHERE parent.status = 'running' AND child.status = 'blocked' AND parent.submitted = child.submitted;
    INSERT INTO flowrra.awaited SELECT id, 'channel' FROM flowrra.job WHERE status = 'running';
    INSERT INTO flowrra.step (job_seq, name, step) SELECT seq, 'step ' || n, '[]' FROM flowrra.job,
        generate_series(1, 10) AS n WHERE status = 'running'"""

NAMES = "{api:1,api:2,other:1}"
SEQS, IDS, TEXTS = "{1,2,20500,22100}", "{done1,running1,blocked1,none}", "{a,b,c,d}"
# What the statements take, as PostgreSQL writes it.
VALUES: Mapping[str, Sequence[str | None]] = {
    "ADMIT": (SEQS, "{false,false,true,true}", NAMES, "{1,2,3}", "{1,2,3}", "{false,false,true}", NAMES),
    "ASK": (NAMES,),
    "BEAT": ("w1", "host", "1", "{}", "[]", "1", "1", "1", "0", "1", "60", "{default}", "{}", "{}", "1", "false",
             "false"),
    "CLAIM": ("default", "w1", "9", "100", "0", "0", "0", "true", "true"),
    "CLAIM_CHARGED": ("default", "w1", "9", "100", "0", "0", "0", "true", "true"),
    "CLAIM_SUSPECT": ("default", "w1", "9", "1", "2"),
    "DELETE": (IDS,),
    "DUE_KEYS": ("9", "100"),
    "FIND_ADMITTED": (NAMES,),
    "FIND_CHILDREN": (SEQS,),
    "FIND_EXPIRED": ("9", "1000"),
    "FIND_HOLDERS": ("{key1,key2}",),
    "FIND_JOBS": (IDS,),
    "FIND_RUNNING": ("{w1,w2}",),
    "FIND_WAITERS": ("{running1,running2}",),
    "FORGET_AWAITED": (),
    "GET": (IDS,),
    "INSERT": ("9", "{x}", "{x}", "{x}", "{x}", "{0}", "{1}", "{1}", "{}", "{}"),
    "INSERT_ONE": ("9", "x", "x", "x", "x", "0", None, None, None, "channel", "text"),
    "INSERT_ONE_EARLY": ("9", "x", "x", "x", "x", "0", None, None, None, "channel", "text"),
    "KEEP_STEPS": (SEQS, "{1,1,1,1}", TEXTS, TEXTS),
    "LEAVE": (IDS, "me"),
    "LIMIT_KEYS": (NAMES, "{2,0,0}", "true", "false"),
    "PROMOTE": ("9",),
    "PURGE": ("9", "500"),
    "RECORD": ("{x}", "{x}", "{success}", "{1}", "{1}", "{1}", "{1}", "{1}", "{}", "{}", "{}"),
    "RESUME": ("default", "w1", "{9}"),
    "SET_LIMIT": ("api", "", "true", "true"),
    "STEPS_OF": (SEQS,),
    "SUCCEED": ("9", SEQS, "{1,1,1,1}", TEXTS, "{9,9,9,9}"),
    "SUCCEED_LIMITED": ("9", SEQS, "{1,1,1,1}", TEXTS, "{9,9,9,9}", "4"),
    "WAITING_FOR": (NAMES, "{2,3,4}"),
    "WRITE": (SEQS, TEXTS, '[{"seq": 1}, {"seq": 20500}, {"seq": 22100}]', '[{"id": "x"}]', SEQS, SEQS, SEQS, TEXTS,
              SEQS, TEXTS, TEXTS),
    "WRITTEN": (SEQS, "{1,1,1,1}", TEXTS, TEXTS),
}  # fmt: skip

COUNTING = {"FORGET_KEYS", "LIMIT_USE", "LIMITS"}  # these read all limit keys, or all that waits for them

# What PostgresBroker.find looks for and must not look for among all jobs.
SEARCHES: Mapping[str, JobFilter] = {
    "FIND_ONE": JobFilter(ids=["running1"]),
    "FIND_SOME": JobFilter(ids=["running1", "done7", "none"]),
    "FIND_RUNNING": JobFilter(worker="w1", status=frozenset({TaskStatus.RUNNING})),
}


def statements() -> dict[str, str]:
    """Those of the module that touch jobs, by name."""
    words = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")
    return {
        name: text
        for name, text in vars(sql).items()
        if not name.startswith(("_", "SCHEMA"))
        and isinstance(text, str)
        and text.lstrip().startswith(words)
        and re.search(r"flowrra\.(job|dependency|step|limits|limit_key|limit_ask)\b", text)
        and name not in COUNTING
    }


def questions() -> dict[str, tuple[str, Sequence[Any]]]:
    """What is prepared: texts and values, by name."""
    found: dict[str, tuple[str, Sequence[Any]]] = {name: (text, VALUES[name]) for name, text in statements().items()}
    return found | {name: sql.search(which, limit=1) for name, which in SEARCHES.items()}


def test_every_statement_has_values() -> None:
    assert set(statements()) == set(VALUES)


def test_statements_are_nowhere_else() -> None:
    """Where they would escape this test: all that touches jobs is in `statements`, but for a search's text."""
    for path in Path(sql.__file__).parent.glob("*.py"):
        if path.name != "statements.py":
            assert "flowrra.job" not in path.read_text(), path


class Desk:
    """A schema, and a session that has prepared every statement."""

    def __init__(self, connection: Connection, schema: str) -> None:
        self.connection = connection
        self.schema = schema
        self.leading: dict[str, str] = {}
        self.kept: dict[str, dict[str, Any]] = {}  # the plans as they were when the statements were prepared
        self.mode = ""
        self.filled: set[str] = set()

    def run(self, text: str) -> Any:
        return self.connection.execute(sql.in_schema(text, self.schema).encode())

    def create(self) -> None:
        for script in (f"CREATE SCHEMA {self.schema}", *sql.MIGRATIONS):
            self.run(script)
        for table in TABLES:
            self.run(f"ALTER TABLE flowrra.{table} SET (autovacuum_enabled = off)")
        self.leading = dict(
            self.run(
                "SELECT indexrelid::regclass::text, attname FROM pg_index JOIN pg_attribute ON attrelid = indexrelid "
                "AND attnum = 1 WHERE indrelid::regclass::text ~ 'job|dependency|step|limit'"
            ).fetchall()
        )

    def fill_up(self) -> None:
        self.run(UNFINISHED)
        self.run(WAITING)
        self.run(LIMITS)
        self.filled = {"job", "dependency", "step", "limits", "limit_key", "limit_ask"}

    def prepare(self) -> None:
        for name, value in _PLANS.items():
            self.run(f"SET {name} = {value}")
        for name, (text, values) in questions().items():
            self.run(f"PREPARE {name} AS {text}")
            self.kept[name] = self._explain(name, values)

    def use(self, mode: str) -> None:
        """Have `plan` tell what this mode makes of statements."""
        self.mode = mode
        for name, value in (_PLANS | {"plan_cache_mode": "force_custom_plan"}).items():
            self.run(f"RESET {name}" if mode == "the server's settings" else f"SET {name} = {value}")
        self.run("DISCARD PLANS")  # a statement without values has one plan only

    def plan(self, name: str) -> dict[str, Any]:
        # A session may forget what it keeps: others who create and drop tables have it plan anew.
        return self.kept[name] if self.mode == "the kept plan" else self._explain(name, questions()[name][1])

    def _explain(self, name: str, values: Sequence[Any]) -> dict[str, Any]:
        words = ["NULL" if value is None else f"'{_literal(value)}'" for value in values]
        query = f"EXPLAIN (FORMAT JSON) EXECUTE {name}" + (f" ({', '.join(words)})" if words else "")
        (row,) = self.connection.execute(query.encode()).fetchall()
        plan: dict[str, Any] = row[0][0]["Plan"]
        return plan


def _literal(value: Any) -> str:
    text = "{" + ",".join(map(str, value)) + "}" if isinstance(value, list) else str(value)
    return text.replace("'", "''")


def bring_about(state: str, desk: Desk) -> None:
    """Have the statements prepared and the tables filled, in this state's order."""
    desk.create()
    if state == "vacuumed empty":
        for table in TABLES:
            desk.run(f"VACUUM ANALYZE flowrra.{table}")
    if state in ("virgin", "vacuumed empty"):
        desk.prepare()
    desk.run(FINISHED)
    desk.filled = {"job"}
    if state == "analyzed full":
        desk.fill_up()
    if state not in ("virgin", "vacuumed empty"):
        for table in TABLES:
            desk.run(f"ANALYZE flowrra.{table}")
        desk.prepare()
    if state not in ("analyzed full", "only finished"):
        desk.fill_up()


@pytest.fixture(scope="module", params=STATES)
def desk(request: pytest.FixtureRequest) -> Iterator[Desk]:
    with clean_schema(POSTGRES_URL) as (_, schema), psycopg.connect(POSTGRES_URL, autocommit=True) as connection:
        desk = Desk(connection, schema)
        bring_about(request.param, desk)
        yield desk


@pytest.mark.parametrize("mode", MODES)
def test_no_statement_walks_the_jobs(desk: Desk, mode: str) -> None:
    desk.use(mode)
    found = {name: faults(desk, desk.plan(name)) for name in questions()}
    assert {name: faults for name, faults in found.items() if faults} == {}


def test_no_statement_is_worth_compiling(desk: Desk) -> None:
    """Behind a pooler jit is on. To compile a heartbeat takes a hundred times as long as to run it, each time."""
    desk.use("the server's settings")
    (limit,) = desk.run("SELECT boot_val::float8 FROM pg_settings WHERE name = 'jit_above_cost'").fetchone()
    costs = {name: desk.plan(name)["Total Cost"] for name in questions()}
    assert {name: cost for name, cost in costs.items() if cost >= limit} == {}


def tables(plan: Mapping[str, Any]) -> set[str]:
    """The tables that a plan and its parts read."""
    own = {plan["Relation Name"]} if "Relation Name" in plan else set()
    return own.union(*map(tables, plan.get("Plans", ())))


def faults(desk: Desk, plan: Mapping[str, Any], *, under_limit: bool = False) -> list[str]:
    """What in a plan takes longer the more jobs there are."""
    found = []
    kind, table, filters = plan["Node Type"], plan.get("Relation Name"), plan.get("Filter")
    if kind == "Nested Loop" and "Join Filter" in plan and tables(plan) != {"worker"}:  # compares all with all
        found.append(f"{kind} with {plan['Join Filter']}")
    if table in desk.filled and kind == "Seq Scan":
        found.append(f"{kind} of {table}: {filters}")
    if "Index Name" in plan and (leading := desk.leading.get(f"{desk.schema}.{plan['Index Name']}")):
        is_narrow = re.search(rf"\b{leading}\b", plan.get("Index Cond", ""), re.IGNORECASE)  # LEAST(purge_at, ...)
        is_first = under_limit and filters is None and kind != "Bitmap Index Scan"
        if not is_narrow and not is_first:
            found.append(f"{kind} of all {plan['Index Name']}: {plan.get('Index Cond')} {filters}")
    under_limit = kind == "Limit" or (under_limit and kind in ("LockRows", "Result", "Subquery Scan"))
    for part in plan.get("Plans", ()):
        found += faults(desk, part, under_limit=under_limit)
    return found
