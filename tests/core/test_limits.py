"""Limits as users declare them: by `app.limit`, by `@app.task`, by key, and in fair queues."""

import asyncio
import collections
import dataclasses
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowrra import (
    Broker,
    BrokerConfig,
    Config,
    ConfigError,
    Flowrra,
    Job,
    Limit,
    MemoryBroker,
    SQLiteBroker,
    Task,
    TaskSet,
    TaskStatus,
    job_of_fire,
    limit_key,
)


@dataclasses.dataclass
class Order:
    customer_id: int


@pytest.fixture(params=["memory", "sqlite"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Flowrra:
    return Flowrra(broker=MemoryBroker() if request.param == "memory" else SQLiteBroker(str(tmp_path / "jobs.db")))


async def job_of(app: Flowrra, task_id: str) -> tuple[str | None, str | None]:
    job = await app.get_job(task_id)
    return job.limit, job.key


# At once ------------------------------------------------------------------------------------------


async def test_a_task_runs_so_many_jobs_at_once(app: Flowrra) -> None:
    running: list[int] = []

    @app.task(name="import", concurrency=2)
    async def run(number: int) -> int:
        running.append(number)
        await asyncio.sleep(0.02)
        counted = len(running)
        running.remove(number)
        return counted

    async with app:
        ids = await app.submit_many(run, [(n,) for n in range(8)])
        results = [await app.wait_for_result(task_id, 30) for task_id in ids]
        assert await job_of(app, ids[0]) == ("import", None)
    assert max(result.result for result in results) == 2


async def test_a_key_function_gives_each_customer_a_limit_of_its_own(app: Flowrra) -> None:
    running: collections.Counter[int] = collections.Counter()
    most: collections.Counter[int] = collections.Counter()

    @app.task(concurrency=1, key=lambda order: order.customer_id)
    async def run(number: int, order: Order) -> None:
        running[order.customer_id] += 1
        most[order.customer_id] = max(most[order.customer_id], running[order.customer_id])
        most[0] = max(most[0], running.total())
        await asyncio.sleep(0.02)
        running[order.customer_id] -= 1

    async with app:
        ids = [await app.submit(run, n, Order(1 + n % 3)) for n in range(9)]
        for task_id in ids:
            assert (await app.wait_for_result(task_id, 30)).is_success
        assert await job_of(app, ids[1]) == (run.name, "2")
    assert (most[1], most[2], most[3]) == (1, 1, 1)
    assert most[0] > 1


async def test_a_limit_holds_for_all_its_tasks(app: Flowrra) -> None:
    running = 0
    app.limit("api", concurrency=1)

    async def call() -> int:
        nonlocal running
        running += 1
        await asyncio.sleep(0.01)
        running -= 1
        return running

    first, second = (app.task(name=name, limit="api")(call) for name in ("first", "second"))
    async with app:
        ids = [await app.submit(task) for task in (first, second) * 4]
        assert [(await app.wait_for_result(task_id, 30)).result for task_id in ids] == [0] * 8


async def test_a_rate_lets_so_many_start_in_a_time(app: Flowrra) -> None:
    app.limit("api", rate="20/s", burst=5)

    @app.task(limit="api")
    async def call() -> None: ...

    async with app:
        ids = await app.submit_many(call, [()] * 15)
        for task_id in ids:
            await app.wait_for_result(task_id, 30)
        # As the claims had it: a busy machine runs a job later.
        starts = sorted(job.started or 0.0 for job in await app.jobs())
    assert len(starts) == 15
    assert 0.45 <= starts[-1] - starts[0] < 5.0
    assert len([one for one in starts if one - starts[0] < 0.04]) <= 6


# Keys and options ---------------------------------------------------------------------------------


async def test_options_replace_the_limit_and_the_key(app: Flowrra) -> None:
    app.limit("api", concurrency=5)
    app.limit("other", concurrency=5)

    @app.task(limit="api", key=lambda name: name)
    async def call(name: str) -> None: ...

    async with app.client():
        assert await job_of(app, await app.submit(call, "ada")) == ("api", "ada")
        assert await job_of(app, await app.submit(call.options(key=42), "ada")) == ("api", "42")
        assert await job_of(app, await app.submit(call.options(limit="other"), "ada")) == ("other", "ada")
        by_name: Task[..., None] = call
        assert await job_of(app, await app.submit(by_name, "ada", priority=1, key="k")) == ("api", "k")
        ids = await app.submit_many(call.options(priority=5), [("x",), ("y",)])
        assert [await job_of(app, task_id) for task_id in ids] == [("api", "x"), ("api", "y")]


async def test_a_task_of_any_keywords_keeps_its_own_key_and_limit(app: Flowrra) -> None:
    @app.task
    async def call(**named: Any) -> dict[str, Any]:
        return named

    async with app:
        task_id = await app.submit(call, key="k", limit=10)
        assert (await app.wait_for_result(task_id, 30)).result == {"key": "k", "limit": 10}


async def test_a_job_by_name_may_say_its_limit(app: Flowrra) -> None:
    async with app.client():
        task = app.task_named("another.program").options(limit="smtp", key="k")
        task_id = await app.submit(task, 1)
        assert await job_of(app, task_id) == ("smtp", "k")
        explained = await app.explain(task_id)
    assert explained.startswith("It waits, as the limit smtp is not declared in this store")


KEY_FUNCTIONS: dict[str, tuple[Callable[..., Any], str]] = {
    "raises": (lambda name: name.nothing, "AttributeError: 'str' object has no attribute 'nothing'"),
    "nothing": (lambda name: None, "a key is a text of 1 to 200 characters, or an int, not None"),
    "empty": (lambda name: "", "not ''"),
    "long": (lambda name: "x" * 201, "a key is a text of 1 to 200"),
    "float": (lambda name: 1.5, "not 1.5"),
    "bool": (lambda name: True, "not True"),
    "nul": (lambda name: "a\0b", "a key is a text"),
}


@pytest.mark.parametrize("name", KEY_FUNCTIONS)
async def test_a_key_function_that_gives_no_key_is_said_at_the_submit(app: Flowrra, name: str) -> None:
    function, message = KEY_FUNCTIONS[name]

    @app.task(concurrency=1, key=function)
    async def call(name: str) -> None: ...

    async with app.client():
        with pytest.raises(ConfigError, match=f"the key function of {re.escape(call.name)} gives no key") as caught:
            await app.submit(call, "ada")
        assert message in str(caught.value)
        assert await app.jobs() == []


async def test_a_key_function_takes_some_of_the_arguments_or_all(app: Flowrra) -> None:
    @app.task(concurrency=1, key=lambda right: right)
    async def two(left: str, right: str = "default") -> None: ...

    @app.task(concurrency=1, key=lambda *args, **kwargs: f"{args} {kwargs}")
    async def every(left: str, right: str) -> None: ...

    async with app.client():
        assert (await job_of(app, await app.submit(two, "a")))[1] == "default"
        assert (await job_of(app, await app.submit(two, "a", right="b")))[1] == "b"
        assert (await job_of(app, await app.submit(every, "a", right="b")))[1] == "('a',) {'right': 'b'}"
    with pytest.raises(ConfigError, match=r"takes 'customer'; it may take these arguments: left, right"):
        app.task(name="other", concurrency=1, key=lambda customer: customer)(two.function)


async def test_a_key_needs_a_limit(app: Flowrra) -> None:
    @app.task
    async def call() -> None: ...

    async with app.client():
        with pytest.raises(ConfigError, match=r"has the key 'k' and no limit: .*app\.fair_queue\('default'\)"):
            await app.submit(call.options(key="k"))


# Declarations -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": "api", "concurrency": 1}, "limit='api' has its own numbers"),
        ({"rate": "0/s"}, "a rate is a number of jobs in a time"),
        ({"rate": "100/x"}, "a rate is a number of jobs in a time"),
        ({"concurrency": 0}, "concurrency must be at least 1, not 0"),
        ({"burst": 5}, "burst=5 needs rate="),
        ({"key": "customer"}, "key is a function of the task's arguments, not 'customer'"),
        ({"limit": "a,b"}, "the name of a limit is"),
        ({"name": "a:b", "concurrency": 1}, "the task 'a:b' cannot have numbers of its own, but limit="),
    ],
)
def test_wrong_options_of_a_task_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Flowrra.from_urls().task(**options)(asyncio.sleep)


def test_wrong_declarations_are_refused() -> None:
    app = Flowrra.from_urls()
    app.limit("smtp", rate="100/m")
    app.limit("smtp", rate="100/m")
    wrong: list[tuple[Callable[[], None], str]] = [
        (lambda: app.limit("smtp", rate="50/m"), "the limit 'smtp' is declared twice, as 100/m and as 50/m"),
        (lambda: app.limit("other"), "the limit 'other' limits nothing"),
        (lambda: app.limit("queue x", concurrency=1), "has the name of the limit of a fair queue"),
        (lambda: app.fair_queue("a:b"), "a queue's name"),
        (lambda: app.fair_queue("a", turn=0), "turn must be at least 1"),
    ]
    for call, message in wrong:
        with pytest.raises(ConfigError, match=re.escape(message)):
            call()


async def test_an_undeclared_limit_is_refused_with_the_nearest(app: Flowrra) -> None:
    app.limit("smtp", concurrency=1)

    @app.task(limit="smtps")
    async def send() -> None: ...

    async with app.client():
        with pytest.raises(ConfigError, match=r"no limit 'smtps' is declared here .*did you mean 'smtp'"):
            await app.submit(send)


async def test_a_task_set_brings_its_limits(app: Flowrra) -> None:
    tasks = TaskSet("mail")
    tasks.limit("smtp", concurrency=1)
    tasks.fair_queue("imports")

    @tasks.task(limit="smtp")
    async def send() -> None: ...

    @tasks.task(concurrency=3)
    async def other() -> None: ...

    app.include(tasks)
    assert {name: str(limit) for name, limit in app.limits.items()} == {
        "smtp": "1 at a time",
        "queue imports": "10 in turn",
        other.name: "3 at a time",
    }
    async with app:
        assert (await app.wait_for_result(await app.submit(send), 30)).is_success
        assert [use.limit.name for use in await app.broker.limits()] == sorted(app.limits)


async def test_a_limit_that_is_declared_late_holds_too(app: Flowrra) -> None:
    async with app:

        @app.task(concurrency=1)
        async def late() -> str:
            return "done"

        assert (await app.wait_for_result(await app.submit(late), 30)).result == "done"
        assert [use.limit.concurrency for use in await app.broker.limits()] == [1]


async def test_the_newest_declaration_wins_and_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def new_app(rate: str) -> Flowrra:
        app = Flowrra.from_urls(f"sqlite:///{tmp_path / 'jobs.db'}")
        app.limit("smtp", rate=rate)
        return app

    caplog.set_level(logging.WARNING, "flowrra")
    async with new_app("100/m"), new_app("50/m") as second:
        (text,) = [record.getMessage() for record in caplog.records]
        assert re.fullmatch(r"the limit smtp was 100/m, as \S+:\d+ has declared it; from now on it is 50/m", text)
        (use,) = await second.broker.limits()
        assert str(use.limit) == "50/m"
    caplog.clear()
    async with new_app("50/m"):
        assert caplog.records == []


async def test_jobs_without_the_limit_of_their_task_are_said_once(
    app: Flowrra, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"call on {type(app.broker).__name__}"  # as it is said once in a process

    @app.task(name=name, concurrency=1)
    async def call() -> None: ...

    async with app:
        ids = [await app.submit(app.task_named(name)) for _ in range(2)]  # with its limit
        others = await app.broker.push([Job("a", name), Job("b", name)], now=app.now())
        for task_id in [*ids, *others]:
            assert (await app.wait_for_result(task_id, 30)).is_success
    said = [record for record in caplog.records if f"come without its limit {name!r}" in record.getMessage()]
    assert len(said) == 1


class NoLimits(Broker):
    """A broker of somebody who does not know limits."""

    async def push(self, jobs: Any, *, now: float, by: str | None = None) -> list[str]:
        raise AssertionError("it would ignore the limit")


async def test_a_broker_without_limits_is_refused_and_never_ignores_them() -> None:
    app = Flowrra(broker=NoLimits())
    app.limit("smtp", concurrency=1)

    @app.task(limit="smtp")
    async def send() -> None: ...

    with pytest.raises(ConfigError, match="NoLimits has no limits, so the limit 'smtp' would not hold"):
        await app.submit(send)
    with pytest.raises(ConfigError, match="NoLimits has no limits, so the limit 'smtp' would not hold"):
        await app.start()
    await app.stop()


# Fair queues --------------------------------------------------------------------------------------


async def test_a_fair_queue_serves_its_keys_in_turns(app: Flowrra) -> None:
    app.fair_queue("imports", turn=2)
    order: list[str] = []

    @app.task(queue="imports", key=lambda tenant: tenant)
    async def run(tenant: str) -> None:
        order.append(tenant)

    app.config.executor.queues = {"imports": 1}
    async with app.client():
        for tenant in ["big"] * 30 + ["small"] * 3:
            task_id = await app.submit(run, tenant)
        assert await job_of(app, task_id) == ("queue imports", "small")
        async with app:
            assert (await app.wait_for_result(task_id, 30)).is_success
            await asyncio.sleep(0)
    assert "small" in order[:6]


async def test_jobs_of_a_fair_queue_without_a_key_share_a_turn(app: Flowrra) -> None:
    app.fair_queue("imports", turn=1)

    @app.task(queue="imports")
    async def run() -> None: ...

    async with app:
        ids = await app.submit_many(run, [()] * 5)
        assert [(await app.wait_for_result(task_id, 30)).is_success for task_id in ids] == [True] * 5
        assert await job_of(app, ids[0]) == ("queue imports", None)


# Why a job does not run ---------------------------------------------------------------------------


async def test_explain_says_what_a_job_waits_for(app: Flowrra) -> None:
    app.limit("smtp", rate="1/m")
    app.fair_queue("fair", turn=1)
    started = asyncio.Event()

    @app.task(name="import", concurrency=1, key=lambda customer: customer)
    async def run(customer: str) -> None:
        started.set()
        await asyncio.sleep(60)

    @app.task(limit="smtp")
    async def send() -> None: ...

    @app.task(queue="fair", key=lambda n: n)
    async def fair(n: int) -> None: ...

    @app.task(name="idle", queue="nobody", concurrency=1)
    async def idle() -> None: ...

    app.config.executor.queues = {"default": 5}
    async with app:
        imports = [await app.submit(run, "customer:42") for _ in range(3)]
        sends = [await app.submit(send) for _ in range(3)]
        await app.wait_for_result(sends[0], 30)
        await started.wait()
        text = await app.explain(imports[2])
        assert text == "It is behind 2 job(s) of key customer:42 of the limit import (1 at a time)."
        text = await app.explain(sends[1])
        assert re.fullmatch(r"It waits for the limit smtp \(1/m\), which allows the next in [56][0-9] s\.", text)
        assert (await app.explain(sends[2])).endswith(" s; 1 job(s) are ahead of it.")
        await app.broker.change([limit_key(await app.get_job(imports[2]))], "pause", now=app.now())
        assert await app.explain(imports[2]) == "It waits, as the key customer:42 of the limit import is paused."
        fair_ids = [await app.submit(fair, 7) for _ in range(2)]
        text = await app.explain(fair_ids[1])
        assert text.startswith("It waits for a turn in its fair queue, behind 1 job(s) of key 7, of which none runs")
        idles = [await app.submit(idle) for _ in range(2)]
        assert (await app.explain(idles[1])).endswith(f"(1 at a time), of which none runs: explain {idles[0]}.")
        await app.stop(wait=False)


async def test_a_schedule_and_a_plain_call_get_limits_too(app: Flowrra) -> None:
    @app.every(3600, args=("k",))
    @app.task(concurrency=1, key=lambda name: name)
    async def run(name: str) -> None: ...

    (schedule,) = app.schedules.values()
    job = job_of_fire(schedule, run, 0, app.broker.retention)
    assert (job.limit, job.key) == (run.name, "k")


async def test_a_cpu_bound_task_may_have_a_limit(tmp_path: Path) -> None:
    from tests.support import cpu_work

    app = Flowrra(Config(broker=BrokerConfig(url=f"sqlite:///{tmp_path / 'jobs.db'}")))
    task = app.task(cpu_bound=True, concurrency=1, key=lambda *args, **kwargs: "k")(cpu_work.pid)
    async with app:
        ids = [await app.submit(task) for _ in range(2)]
        assert [(await app.wait_for_result(task_id, 60)).is_success for task_id in ids] == [True, True]
        assert (await app.get_job(ids[0])).status is TaskStatus.SUCCESS


def test_limits_are_equal_whoever_declared_them() -> None:
    assert Limit(name="a", concurrency=1, by="x", declared=1.0) == Limit(name="a", concurrency=1)
