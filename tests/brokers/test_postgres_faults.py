"""The network and the server fail under load, clocks differ, workers die: PostgreSQL loses and doubles nothing."""

import asyncio
import contextlib
import dataclasses
import itertools
import math
import os
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest

from flowrra import BrokerConfig, BrokerError, Conflict, Flowrra, Job, JobFilter, Outcome, TaskStatus, WorkerInfo
from flowrra_extras.postgres import PostgresBroker, connections, groups
from flowrra_extras.postgres.connections import Link, Session
from flowrra_extras.postgres.statements import RESUME
from flowrra_extras.postgres.store import Store
from tests.brokers.test_redis_faults import (
    AHEAD,
    assert_all_go_on,
    assert_worker_goes_on,
    test_clocks_that_are_minutes_apart_cost_no_lease,
    test_two_workers_one_killed_every_second,
)
from tests.support.postgres_server import Server, clean_schema
from tests.support.processes import (
    LONG_LEASE,
    SHORT_LEASE,
    Site,
    all_finished,
    count,
    site_on,
    some_succeeded,
    stand_in,
    statuses,
)
from tests.support.redis_server import Proxy
from tests.support.services import POSTGRES_URL, address

__all__ = ["test_clocks_that_are_minutes_apart_cost_no_lease", "test_two_workers_one_killed_every_second"]

pytestmark = pytest.mark.usefixtures("postgres_url")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with site_on("postgresql", tmp_path, AHEAD) as site:
        yield site


# ---------------------------------------------------------------------------
# Connections that fail
# ---------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def through_a_proxy(timeout: float = 10.0) -> AsyncIterator[tuple[PostgresBroker, Proxy]]:
    """A broker with a proxy before its server, and the lease of a worker `w`."""
    with clean_schema(POSTGRES_URL) as (_, schema):
        async with Proxy(address(POSTGRES_URL)[1]) as proxy:
            url = f"postgresql://postgres@127.0.0.1:{proxy.port}/test?schema={schema}&sslmode=disable"
            broker = PostgresBroker(url, BrokerConfig(timeout=timeout))
            await broker.open()
            try:
                await broker.heartbeat(WorkerInfo("worker-w", queues={"default": 9}), lease=60, now=0.0)
                yield broker, proxy
            finally:
                await broker.close()


async def push(broker: PostgresBroker, *task_ids: str) -> list[str]:
    return await broker.push([Job(task_id, "task") for task_id in task_ids], now=0.0)


async def claim(broker: PostgresBroker, now: float = 0.0) -> list[Job]:
    return await broker.claim("default", limit=9, worker="worker-w", now=now)


async def test_a_push_whose_answer_is_lost_is_sent_again() -> None:
    async with through_a_proxy() as (broker, proxy):
        for ids in (["alone"], ["a", "b"]):
            proxy.lose_answer_to = ids[0].encode()
            assert await push(broker, *ids) == ids
            assert proxy.lose_answer_to is None
        assert await broker.push([Job("c", "task", unique="key")], now=0.0) == ["c"]
        proxy.lose_answer_to = b"key"
        assert await broker.push([Job("d", "task", unique="key")], now=0.0) == ["c"]
        assert [job.id for job in await broker.find(JobFilter())] == ["c", "b", "a", "alone"]


async def test_a_push_that_others_saw_before_it_was_on_disk_is_not_doubled() -> None:
    async with through_a_proxy() as (broker, proxy):
        proxy.lose_answer_to = b"pg_logical_emit_message"
        assert await push(broker, "early") == ["early"]
        assert proxy.lose_answer_to is None
        assert [job.id for job in await claim(broker)] == ["early"]


async def test_a_heartbeat_whose_answer_is_lost_still_tells_of_the_lapse() -> None:
    """The first copy registered the worker anew; the second finds it known."""
    async with through_a_proxy() as (broker, proxy):
        worker = WorkerInfo("late")
        await broker.heartbeat(worker, lease=60, now=0.0)
        await broker.heartbeat(dataclasses.replace(worker), lease=0, now=0.0)  # as who takes it for dead forgets it
        proxy.lose_answer_to = b"late"
        assert (await broker.heartbeat(worker, lease=60, now=0.0)).lapsed
        assert proxy.lose_answer_to is None
        assert not (await broker.heartbeat(worker, lease=60, now=0.0)).lapsed


async def test_a_repeated_heartbeat_rescues_nobody() -> None:
    """Its first copy may have come late; and the server was silent. What is in doubt gets a fresh lease."""
    async with through_a_proxy() as (broker, proxy):
        for name, lease in (("mine", 60), ("other", 0.05)):
            await broker.heartbeat(WorkerInfo(name), lease=lease, now=0.0)
        await asyncio.sleep(0.1)
        proxy.lose_answer_to = b"newcomer"
        assert (await broker.heartbeat(WorkerInfo("newcomer"), lease=60, now=0.0)).lost_workers == []
        assert proxy.lose_answer_to is None


async def test_what_a_lost_answer_had_claimed_is_found_again() -> None:
    async with through_a_proxy() as (broker, proxy):
        await push(broker, "held")
        (held,) = await claim(broker, 1.0)
        await push(broker, "a", "b")
        proxy.lose_answer_to = b"worker-w"
        found = await claim(broker, 2.0)
        assert proxy.lose_answer_to is None
        assert [(job.id, job.attempt, job.crashes) for job in found] == [("a", 1, 0), ("b", 1, 0)]
        outcomes = [Outcome.succeed(job, 1) for job in (held, *found)]
        assert await broker.settle(outcomes, now=3.0) == [True] * 3
        assert await claim(broker, 4.0) == []


async def test_what_a_lost_answer_had_claimed_is_not_mixed_up_with_jobs_of_a_host_whose_clock_is_ahead() -> None:
    async with through_a_proxy() as (broker, proxy):
        await broker.push([Job("ahead", "task")], now=9.0)
        (ahead,) = await claim(broker, 1.0)
        assert ahead.started == 9.0
        await push(broker, "a")
        proxy.lose_answer_to = b"worker-w"
        assert [job.id for job in await claim(broker, 2.0)] == ["a"]
        assert proxy.lose_answer_to is None


async def test_what_a_claim_took_that_failed_for_good_comes_with_a_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "_DOUBT", 0.1)  # the server is away for longer
    async with through_a_proxy(timeout=0.3) as (broker, proxy):
        await push(broker, "a", "b")
        proxy.lose_answer_to = b"worker-w"
        monkeypatch.setattr(connections.Address, "connect", refuse)
        with pytest.raises(BrokerError, match=r"has not answered for 0.3 s"):
            await claim(broker, 1.0)
        monkeypatch.undo()
        await asyncio.sleep(0.1)
        await push(broker, "c")
        assert [job.id for job in await claim(broker, 2.0)] == ["a", "b"]
        assert [job.id for job in await claim(broker, 3.0)] == ["c"]
        assert await claim(broker, 4.0) == []


async def refuse(_: object) -> None:
    raise ConnectionRefusedError("refused")


async def test_many_claims_whose_answers_are_lost_are_looked_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one, each later claim would take longer, until none is done within its time."""
    async with through_a_proxy() as (broker, _):
        claims, fetch, looks = broker._groups.claims, Session.fetch, list[str]()

        async def count_looks(session: Session, text: str, *values: Any) -> Any:
            looks.extend([text] * (text == RESUME))
            return await fetch(session, text, *values)

        await push(broker, "a", "b")
        for moment in range(1, 20):
            claims._doubts[groups.Claim("default", 1, "worker-w", float(moment), 2)] = math.inf
        await broker._run(
            "UPDATE flowrra.job SET status = 'running', attempt = 1, worker = 'worker-w', started = seq + 4"
        )
        monkeypatch.setattr(Session, "fetch", count_looks)
        taken = [[job.id for job in await claim(broker, 30.0 + moment)] for moment in range(3)]
        assert (sorted(taken), len(looks)) == ([[], ["a"], ["b"]], 3)


async def test_a_claim_that_is_carried_out_after_it_was_sent_again_is_found() -> None:
    async with through_a_proxy() as (broker, _):
        claims, first = broker._groups.claims, groups.Claim("default", 9, "worker-w", 10.0, 2)
        claims._doubts[first] = math.inf
        assert await broker._groups.claim(first) == []
        await push(broker, "a")
        await broker._run("UPDATE flowrra.job SET status = 'running', attempt = 1, worker = 'worker-w', started = 10.0")
        assert [job.id for job in await claim(broker, 11.0)] == ["a"]


async def test_a_claim_that_is_sent_again_after_seconds_is_told_apart() -> None:
    """Its first try may be carried out later still, and other queues have been claimed from meanwhile."""
    async with through_a_proxy() as (broker, _):
        claims = broker._groups.claims
        claims._doubts[groups.Claim("default", 9, "worker-w", 10.0, 2)] = math.inf
        claims._latest = 15.0
        await push(broker, "a")
        assert [job.id for job in await claim(broker, 10.0)] == ["a"]
        assert await claim(broker, 16.0) == []


async def test_a_settle_whose_answer_is_lost_is_recognised() -> None:
    async with through_a_proxy() as (broker, proxy):
        await push(broker, "good", "bad", "again", "parent", "lost")
        await broker.push([Job("child", "task", parents=("parent",))], now=0.0)
        good, bad, again, parent, lost = await claim(broker)
        await broker.settle([Outcome.release(lost, "gone")], now=0.5)
        outcomes = [Outcome.succeed(good, "a-result"), Outcome.fail(bad, "boom"), Outcome.retry_at(again, 9.0, "boom")]
        outcomes += [Outcome.succeed(parent, 1), Outcome.succeed(lost, 1)]
        proxy.lose_answer_to = b"a-result"
        assert await broker.settle(outcomes, now=1.0) == [True, True, True, True, False]
        assert proxy.lose_answer_to is None
        assert await broker.settle(outcomes, now=2.0) == [False] * 5
        assert {job.finished for job in await broker.find(JobFilter(ids=["good", "bad"]))} == {1.0}
        assert [job.failures for job in await broker.find(JobFilter(ids=["again"]))] == [1]
        (child,) = await broker.find(JobFilter(ids=["child"]))
        assert child.status is TaskStatus.PENDING


async def test_it_is_recognised_when_the_server_was_away_for_long() -> None:
    async with through_a_proxy(timeout=1.0) as (broker, proxy):
        await push(broker, "good", "again", "other", "late")
        good, again, other, late = await claim(broker)
        await broker.settle([Outcome.succeed(other, 1)], now=0.5)
        await broker.settle([Outcome.release(late, "gone")], now=0.5)
        proxy.loses_answers = True
        for outcome in (Outcome.succeed(good, 1), Outcome.retry_at(again, 9.0, "boom")):
            with pytest.raises(BrokerError, match="has not answered for 1 s"):
                await broker.settle([outcome], now=1.0)
        with pytest.raises(BrokerError):
            await broker.settle([Outcome.succeed(late, 1)], now=1.0)
        proxy.loses_answers = False
        outcomes = [Outcome.succeed(good, 1), Outcome.retry_at(again, 9.0, "boom"), Outcome.succeed(late, 1)]
        assert await broker.settle(outcomes, now=5.0) == [True, True, False]
        assert await broker.settle(outcomes, now=6.0) == [False] * 3, "once"
        first, second = await broker.find(JobFilter(ids=["good", "again"]), oldest_first=True)
        assert (first.finished, second.failures, len(second.history)) == (1.0, 1, 1)


async def test_two_claims_at_one_moment_are_told_apart() -> None:
    """A clock may stand still for 15 ms."""
    async with through_a_proxy() as (broker, proxy):
        await push(broker, "a", "b")
        assert [job.id for job in await broker.claim("default", limit=1, worker="worker-w", now=1.0)] == ["a"]
        proxy.lose_answer_to = b"worker-w"
        assert [job.id for job in await broker.claim("default", limit=1, worker="worker-w", now=1.0)] == ["b"]
        assert proxy.lose_answer_to is None


async def test_what_is_done_by_hand_is_told_as_done_though_the_answer_is_lost() -> None:
    async with through_a_proxy() as (broker, proxy):
        await push(broker, "a", "b")
        (running,) = await broker.claim("default", limit=1, worker="worker-w", now=0.0)
        for task_id in ("b", "a"):
            proxy.lose_answer_to = b"COMMIT"
            assert await broker.cancel(task_id, now=1.0, by="Ada") is True
            assert proxy.lose_answer_to is None
        await broker.settle([Outcome.cancel(running, "by hand")], now=2.0)
        proxy.lose_answer_to = b"COMMIT"
        assert await broker.requeue(["a", "b", "none"], now=3.0, by="Ada") == [True, True, False]
        deeds = [
            [note.error for note in job.history if note.outcome == "note"] for job in await broker.find(JobFilter())
        ]
        assert deeds == [["cancelled", "requeued"]] * 2, "each was done once"
        assert await broker.cancel("b", now=4.0) is True
        proxy.lose_answer_to = b"COMMIT"
        assert await broker.delete(["a", "b"]) == [False, True]


async def test_a_replacement_whose_answer_is_lost_and_that_starts_meanwhile_runs_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with through_a_proxy() as (broker, _):
        run = Link.run

        async def run_again(link: Link, work: Any, *patience: float) -> Any:
            """As if the answer was lost, and the job claimed before the call is sent again."""
            monkeypatch.undo()
            await run(link, work, *patience)
            (claimed,) = await broker.claim("default", limit=9, worker="worker-w", now=2.0)
            assert claimed.payload is not None
            assert "new" in claimed.payload
            return await run(link, work, *patience)

        await broker.push([Job("a", "task", ("old",), unique="key")], now=0.0)
        monkeypatch.setattr(Link, "run", run_again)
        replacement = Job("b", "task", ("new",), unique="key", conflict=Conflict("replace"))
        assert await broker.push([replacement], now=1.0) == ["a"]
        assert [job.id for job in await broker.find(JobFilter())] == ["a"]


async def test_a_call_under_way_ends_when_the_broker_is_closed() -> None:
    async with through_a_proxy() as (broker, proxy):
        proxy.forget()
        calls = [asyncio.create_task(call) for call in (push(broker, "a"), push(broker, "b"))]
        await asyncio.sleep(0.05)
        await broker.close()
        for call in calls:
            with pytest.raises(BrokerError, match="was closed while this call was waiting"):
                await call


async def test_a_silent_connection_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither end is told, as when a firewall forgets a connection."""
    for module in (connections, groups):
        monkeypatch.setattr(module, "SILENCE", 0.2)
    monkeypatch.setattr(connections.Link.run, "__defaults__", (0.2,))
    async with through_a_proxy() as (broker, proxy), asyncio.TaskGroup() as group:
        await push(broker, "a")
        (a,) = await claim(broker)
        waiter = group.create_task(broker.wait_for("a", 20.0))
        await asyncio.sleep(0.05)
        proxy.forget()
        assert await push(broker, "b") == ["b"]
        proxy.forget()
        assert await broker.settle([Outcome.succeed(a, 7)], now=0.0) == [True]
        assert (await waiter).result == 7


@pytest.mark.parametrize("number", [1, 6_000])
async def test_a_transaction_on_a_silent_connection_is_given_up(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (connections, groups):
        monkeypatch.setattr(module, "SILENCE", 0.2)
    store_push, tries = Store.push, itertools.count()

    async def push_in_silence(store: Store, jobs: Sequence[Job], now: float) -> list[str]:
        if next(tries) == 0:
            proxy.forget()
        return await store_push(store, jobs, now)

    monkeypatch.setattr(Store, "push", push_in_silence)
    async with through_a_proxy() as (broker, proxy), asyncio.timeout(20):
        jobs = [Job(f"j{n}", "task", unique=f"j{n}") for n in range(number)]
        jobs += [Job("child", "task", parents=("j0",))] if number == 1 else []
        assert await broker.push(jobs, now=0.0) == [job.id for job in jobs]
        assert next(tries) > 1


async def test_who_waits_hears_again_after_a_cut() -> None:
    async with through_a_proxy() as (broker, proxy):
        for number in range(3):
            task_id = f"j{number}"
            async with asyncio.TaskGroup() as group:
                await push(broker, task_id)
                waiter = group.create_task(broker.wait_for(task_id, 20.0))
                (job,) = await claim(broker, float(number))
                ready = group.create_task(broker.wait([("queue", "default")], 20.0))
                await asyncio.sleep(0.05)
                proxy.cut()
                assert await broker.settle([Outcome.succeed(job, number)], now=0.0) == [True]
                assert (await waiter).result == number
                await ready


# ---------------------------------------------------------------------------
# Servers that go away
# ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@contextlib.contextmanager
def own_site(folder: Path, server: Server, **env: str) -> Iterator[Site]:
    """A site on a server of its own, on an empty schema."""
    with clean_schema(server.url) as (connection, schema):
        connection.close()
        with Site(folder, url=f"{server.url}?schema={schema}", env={**LONG_LEASE, **env}) as site:
            yield site


def end_sessions(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'flowrra'")


async def test_sessions_ended_at_random_double_nothing(tmp_path: Path, server: Server) -> None:
    """Every run ends once and is settled once, though requests and answers are lost all the time."""
    with own_site(tmp_path, server) as site:
        async with site.client() as app:
            worker = await site.worker("--concurrency", "20")
            nap = stand_in(app, "app.nap")
            for _ in range(20):
                submits = asyncio.gather(*(app.submit(nap, 0.01) for _ in range(20)))
                await asyncio.sleep(0.05)
                await asyncio.to_thread(end_sessions, server.url)
                await submits
            jobs = await all_finished(app)
            assert not worker.is_over
            await assert_worker_goes_on(app, worker)
    assert statuses(jobs) == {TaskStatus.SUCCESS: 400}
    assert [job for job in jobs if site.runs()[job.id] != 1] == [], worker.log
    assert "its lease was lost" not in worker.log


async def restart(server: Server, pause: float) -> None:
    await asyncio.to_thread(server.kill)
    await asyncio.sleep(pause)  # how long it is away
    await asyncio.to_thread(server.start)


async def test_a_server_that_is_killed_under_load_loses_nothing(tmp_path: Path, server: Server) -> None:
    with own_site(tmp_path, server) as site:
        async with site.client() as app:
            nap = stand_in(app, "app.nap")
            worker = await site.worker("--concurrency", "5")
            await app.submit_many(nap, [(0.02,)] * 300)
            for _ in range(2):
                await some_succeeded(app, await count(app, TaskStatus.SUCCESS) + 50)
                submits = asyncio.gather(*(app.submit(nap, 0.0) for _ in range(20)))
                await restart(server, 0.3)
                await submits
            jobs = await all_finished(app)
            await assert_worker_goes_on(app, worker)
    assert statuses(jobs) == {TaskStatus.SUCCESS: 340}
    assert {job.failures for job in jobs} == {0}


async def test_what_was_pushed_is_on_disk(server: Server) -> None:
    """A server that loses what it had in memory has the job, though others saw it before it was on disk."""
    with clean_schema(server.url) as (connection, schema):
        connection.close()
        broker = PostgresBroker(f"{server.url}?schema={schema}")
        await broker.open()
        for number in range(3):
            await asyncio.sleep(0.02)  # a pause, after which a push is told of early
            await push(broker, f"j{number}")
            await restart(server, 0.0)
        assert [job.id for job in await broker.find(JobFilter())] == ["j2", "j1", "j0"]
        await broker.close()


async def test_a_stall_longer_than_the_lease_ends_no_worker(tmp_path: Path, server: Server) -> None:
    """All server processes stand still for two leases: what ran is settled or refused, and all is done."""
    with own_site(tmp_path, server, **SHORT_LEASE, FLOWRRA_BROKER_TIMEOUT="0.5") as site:
        async with site.client() as app:
            workers = [await site.worker("--concurrency", "5") for _ in range(2)]
            await app.submit_many(stand_in(app, "app.nap"), [(0.02,)] * 200)
            await some_succeeded(app, 30)
            stopped = server.processes()
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            try:
                await workers[0].says("has not answered for 0.5 s")
                await asyncio.sleep(2.0)  # two leases
            finally:
                for pid in stopped:
                    os.kill(pid, signal.SIGCONT)
            jobs = await all_finished(app)
            await assert_all_go_on(app, workers)
    assert statuses(jobs) == {TaskStatus.SUCCESS: 200}


async def test_a_standby_is_waited_out(server: Server) -> None:
    """As after a failover: the connection is to what cannot be written any more, and then to what can."""
    with clean_schema(server.url) as (_, schema):
        broker = PostgresBroker(f"{server.url}?schema={schema}")
        await broker.open()
        await asyncio.to_thread(server.read_only, True)
        try:
            push_in_time = asyncio.create_task(push(broker, "a"))
            done, _ = await asyncio.wait([push_in_time], timeout=0.4)
            assert not done
        finally:
            await asyncio.to_thread(server.read_only, False)
        assert await push_in_time == ["a"]
        await broker.close()


async def test_a_cancellation_waits_for_what_happens_to_its_job(server: Server) -> None:
    """It ran, and is on its way back to those that wait."""
    with clean_schema(server.url) as (_, schema), psycopg.connect(server.url) as other:
        broker = PostgresBroker(f"{server.url}?schema={schema}")
        await broker.open()
        await broker.heartbeat(WorkerInfo("worker-w"), lease=60, now=0.0)
        await push(broker, "a")
        await claim(broker)
        retry = "UPDATE {}.job SET status = 'retrying', failures = 1, due = 99, worker = NULL, started = NULL"
        other.execute(retry.format(schema).encode())
        cancelling = asyncio.create_task(broker.cancel("a", now=1.0))
        await asyncio.sleep(0.2)
        assert not cancelling.done()
        other.commit()
        assert await cancelling
        assert await broker.counts() == {("default", TaskStatus.CANCELLED): 1}
        await broker.close()


async def test_what_a_pooler_says_of_its_server_is_waited_out(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = iter(["query_wait_timeout", "server conn crashed?"])
    connect = connections.Address.connect

    async def refuse_twice(address: connections.Address) -> Any:
        for text in refusals:
            raise asyncpg.ProtocolViolationError(text)
        return await connect(address)

    monkeypatch.setattr(connections.Address, "connect", refuse_twice)
    with clean_schema(server.url) as (_, schema):
        broker = PostgresBroker(f"{server.url}?schema={schema}")
        await broker.open()
        await broker.close()


async def test_a_submit_says_within_its_time_that_the_server_is_away(server: Server) -> None:
    with clean_schema(server.url) as (connection, schema):
        connection.close()
        url = server.url.replace("postgres@", "postgres:secret@") + f"?schema={schema}"
        broker = PostgresBroker(url, BrokerConfig(timeout=0.3))
        app = Flowrra(broker=broker)
        nap = stand_in(app, "app.nap")
        async with app.client():
            await asyncio.to_thread(server.kill)
            try:
                with pytest.raises(BrokerError, match=rf"127.0.0.1:{server.port}/postgres has not answered") as caught:
                    await app.submit(nap, 0)
                assert "secret" not in str(caught.value)
            finally:
                await asyncio.to_thread(server.start)
            await app.submit(nap, 0)
