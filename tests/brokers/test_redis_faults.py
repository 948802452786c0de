"""The network and the server fail under load, clocks differ, workers die: Redis loses and doubles nothing."""

import asyncio
import contextlib
import dataclasses
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from flowrra import BrokerConfig, BrokerError, Config, Flowrra, Job, JobFilter, Outcome, TaskStatus, WorkerInfo
from flowrra_extras.redis import RedisBroker, connection
from flowrra_extras.redis.calls import Claim, Claims
from flowrra_extras.redis.connection import Call, Link, address_from_url
from flowrra_extras.redis.scripts import SCRIPTS
from tests.support.processes import (
    LONG_LEASE,
    PATIENCE,
    SHORT_LEASE,
    Process,
    Site,
    all_finished,
    all_jobs,
    count,
    site_on,
    some_succeeded,
    stand_in,
    statuses,
    until,
)
from tests.support.redis_server import Proxy, Server, clean
from tests.support.services import REDIS_URL, address

pytestmark = pytest.mark.usefixtures("redis_url")


# ---------------------------------------------------------------------------
# Connections that fail
# ---------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def through_a_proxy(timeout: float = 10.0) -> AsyncIterator[tuple[RedisBroker, Proxy]]:
    """A broker with a proxy before its server, and the lease of a worker `w`."""
    with clean(REDIS_URL) as (_, prefix):
        async with Proxy(address(REDIS_URL)[1]) as proxy:
            broker = RedisBroker(f"redis://127.0.0.1:{proxy.port}/0?prefix={prefix}", BrokerConfig(timeout=timeout))
            await broker.open()
            try:
                await broker.heartbeat(WorkerInfo("w", queues={"default": 9}), lease=60, now=0.0)
                await claim(broker)  # the server knows the scripts now
                await broker.settle([Outcome.succeed(Job("unknown", "task"), 1)], now=0.0)
                yield broker, proxy
            finally:
                await broker.close()


async def push(broker: RedisBroker, *task_ids: str) -> list[str]:
    return await broker.push([Job(task_id, "task") for task_id in task_ids], now=0.0)


async def claim(broker: RedisBroker, limit: int = 9) -> list[Job]:
    return await broker.claim("default", limit=limit, worker="w", now=0.0)


def lose_answer_to(proxy: Proxy, script: str) -> None:
    proxy.lose_answer_to = SCRIPTS[script].sha


async def test_a_push_whose_answer_is_lost_is_sent_again() -> None:
    async with through_a_proxy() as (broker, proxy):
        lose_answer_to(proxy, "push")
        assert await push(broker, "a", "b") == ["a", "b"]
        assert [job.id for job in await broker.find(JobFilter())] == ["b", "a"]


async def test_a_heartbeat_whose_answer_is_lost_still_tells_of_the_lapse() -> None:
    """The first copy registers it anew, as a stale one does when a frozen server wakes; the second finds it known."""
    async with through_a_proxy() as (broker, proxy):
        worker = WorkerInfo("late")
        await broker.heartbeat(worker, lease=60, now=0.0)
        await broker.heartbeat(dataclasses.replace(worker), lease=0, now=0.0)  # as who takes it for dead forgets it
        lose_answer_to(proxy, "heartbeat")
        assert (await broker.heartbeat(worker, lease=60, now=0.0)).lapsed
        assert proxy.lose_answer_to is None
        assert not (await broker.heartbeat(worker, lease=60, now=0.0)).lapsed


async def test_a_new_worker_that_found_the_server_away_rescues_nobody() -> None:
    """The others may be alive, and were kept from their heartbeats just as this one was from its first."""
    async with through_a_proxy() as (broker, proxy):
        await broker.heartbeat(WorkerInfo("alive"), lease=0.01, now=0.0)
        await asyncio.sleep(0.02)
        proxy.cut()
        assert await push(broker, "a") == ["a"]
        notices = await broker.heartbeat(WorkerInfo("new"), lease=60, now=0.0)
        assert notices.lost_workers == []
        assert (await broker.heartbeat(WorkerInfo("newer"), lease=60, now=0.0)).lost_workers == []


async def test_what_a_lost_answer_had_claimed_is_handed_out_again() -> None:
    async with through_a_proxy() as (broker, proxy):
        await push(broker, "held")
        (held,) = await claim(broker)
        await push(broker, "a", "b")
        lose_answer_to(proxy, "claim")
        assert [(job.id, job.attempt, job.crashes) for job in await claim(broker)] == [("a", 1, 0), ("b", 1, 0)]
        assert await claim(broker) == []
        assert await broker.settle([Outcome.succeed(held, 1)], now=0.0) == [True]


async def test_it_is_handed_out_to_a_later_claim_where_the_server_was_away_for_long() -> None:
    async with through_a_proxy(timeout=0.6) as (broker, proxy):
        await push(broker, "1", "2")
        proxy.loses_answers = True
        with pytest.raises(BrokerError, match=r"has not answered for 0\.6 s"):
            await claim(broker, limit=2)
        with pytest.raises(BrokerError):
            await claim(broker)
        proxy.loses_answers = False
        assert await broker.counts() == {("default", TaskStatus.RUNNING): 2}
        await push(broker, "3", "4")
        lost = broker._claims.lost.copy()
        for limit, expected in ((1, "12"), (2, "12"), (3, "123"), (9, "124")):  # no more than it may run at once
            broker._claims.lost = lost.copy()
            found = await claim(broker, limit=limit)
            assert [(job.id, job.attempt) for job in found] == [(task_id, 1) for task_id in expected]


async def test_it_is_handed_out_after_a_claim_that_came_when_the_lease_had_ended() -> None:
    async with through_a_proxy(timeout=0.3) as (broker, proxy):
        worker = WorkerInfo("w", queues={"default": 9})
        await push(broker, "a")
        proxy.loses_answers = True
        with pytest.raises(BrokerError):
            await claim(broker)
        proxy.loses_answers = False
        await broker.heartbeat(worker, lease=0.001, now=0.0)
        await asyncio.sleep(0.01)
        assert await claim(broker) == []
        assert not (await broker.heartbeat(worker, lease=60, now=0.0)).lapsed
        assert [(job.id, job.attempt, job.crashes) for job in await claim(broker)] == [("a", 1, 0)]
        assert await claim(broker) == []


async def test_what_a_cancelled_claim_took_is_handed_out_to_a_later_one() -> None:
    async with through_a_proxy() as (broker, _):
        await push(broker, "a")
        claiming = asyncio.create_task(claim(broker))
        await asyncio.sleep(0)
        claiming.cancel()
        await asyncio.wait([claiming])
        assert claiming.cancelled()
        assert [(job.id, job.attempt) for job in await claim(broker)] == [("a", 1)]
        assert await claim(broker) == []


async def test_a_broker_opens_though_the_look_at_the_settings_is_lost() -> None:
    async with through_a_proxy() as (broker, proxy):
        await broker.close()
        proxy.lose_answer_to = b"maxmemory-policy"
        await broker.open()
        assert proxy.lose_answer_to is None
        assert await push(broker, "a") == ["a"]


Step = Callable[[RedisBroker], Awaitable[None]]


async def nothing(broker: RedisBroker) -> None:
    pass


async def pause(broker: RedisBroker) -> None:
    await broker.set_queue("default", paused=True)


async def resume(broker: RedisBroker) -> None:
    await broker.set_queue("default", paused=False)


async def lose_the_lease(broker: RedisBroker) -> None:
    """Another worker takes `w` for dead, which then registers anew."""
    worker = WorkerInfo("w", queues={"default": 9})
    await broker.heartbeat(dataclasses.replace(worker), lease=0, now=0.0)
    await broker.heartbeat(worker, lease=60, now=0.0)


@pytest.mark.parametrize(
    ("before", "after"), [(nothing, nothing), (pause, resume), (nothing, lose_the_lease)], ids=lambda do: do.__name__
)
async def test_a_claim_that_comes_late_takes_nothing(before: Step, after: Step) -> None:
    """It was sent before a connection was lost, and is carried out when its worker has long claimed anew."""
    async with through_a_proxy() as (broker, _):
        words = Claim(Claims(), "default", 9, "w", 0.0, 2).words
        late, again = Call("claim", *words), Call("claim", *words)
        again.pack("")  # as if it had been sent before
        link = Link(address_from_url(broker.url))
        link.open(timeout=5.0)
        await before(broker)
        await link.send([again])
        await after(broker)
        await push(broker, "a")
        await link.send([late])
        await link.close()
        assert (again.answer, late.answer) == ([""], ["0.0"])  # the worker is to claim again
        assert len(await claim(broker)) == 1


async def test_claims_whose_answers_are_lost_again_and_again_take_no_more_than_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when a slow server answers each one too late."""
    async with through_a_proxy() as (broker, _):
        await push(broker, *map(str, range(9)))
        take = Claim.take
        with monkeypatch.context() as patch:
            patch.setattr(Claim, "take", lambda call, _: take(call, BrokerError("has not answered")))
            for _ in range(3):
                with pytest.raises(BrokerError):
                    await broker.claim("default", limit=2, worker="w", now=0.0)
        jobs = [await broker.claim("default", limit=4, worker="w", now=0.0) for _ in range(2)]
        assert [[job.id for job in some] for some in jobs] == [list("0123"), list("4567")]


async def test_a_settle_whose_answer_is_lost_is_recognised() -> None:
    async with through_a_proxy() as (broker, proxy):
        await push(broker, "good", "bad", "again", "other")
        good, bad, again, other = await claim(broker)
        outcomes = [Outcome.succeed(good, 1), Outcome.fail(bad, "boom"), Outcome.retry_at(again, 9.0, "boom")]
        lose_answer_to(proxy, "settle")
        assert await broker.settle([*outcomes, Outcome.succeed(other, 1)], now=1.0) == [True] * 4
        assert await broker.settle(outcomes, now=3.0) == [False] * 3, "it is recognised once"
        jobs = await broker.find(JobFilter(ids=["good", "bad", "again"]))
        assert {(job.finished, job.failures) for job in jobs} == {(1.0, 0), (1.0, 1), (None, 1)}


async def the_server_knows_how_to_write(broker: RedisBroker) -> None:
    """It has the script by which all that the rules decide is written."""
    await broker.push([Job("first", "task", queue="other")], now=0.0)
    await broker.cancel("first", now=0.0)
    await broker.delete(["first"])


async def test_a_retry_whose_answer_is_lost_is_recognised() -> None:
    async with through_a_proxy() as (broker, proxy):
        await the_server_knows_how_to_write(broker)
        await push(broker, "bad", "again")
        bad, again = await claim(broker)
        lose_answer_to(proxy, "apply")
        outcomes = [Outcome.fail(bad, "boom"), Outcome.retry_at(again, 9.0, "boom")]
        assert await broker.settle(outcomes, now=1.0) == [True] * 2
        assert proxy.lose_answer_to is None
        assert await broker.settle(outcomes, now=3.0) == [False] * 2
        assert {(job.finished, job.failures) for job in await broker.find(JobFilter())} == {(1.0, 1), (None, 1)}


async def test_a_failure_is_recognised_when_the_server_was_away_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    async with through_a_proxy() as (broker, _):
        await push(broker, "a")
        (a,) = await claim(broker)
        join = broker._calls.join

        async def join_and_lose(call: Call, weight: int) -> Any:
            answer = await join(call, weight)
            if call.name == "apply":
                raise BrokerError("has not answered")
            return answer

        with monkeypatch.context() as patch:
            patch.setattr(broker._calls, "join", join_and_lose)
            with pytest.raises(BrokerError, match="has not answered"):
                await broker.settle([Outcome.fail(a, "boom")], now=1.0)
        assert await broker.settle([Outcome.fail(a, "boom")], now=2.0) == [True]
        assert await broker.settle([Outcome.fail(a, "boom")], now=3.0) == [False], "once"
        (job,) = await broker.find(JobFilter())
        assert (job.finished, job.failures) == (1.0, 1)


async def test_a_submit_with_a_key_whose_answer_is_lost_is_one_job() -> None:
    async with through_a_proxy() as (broker, proxy):
        await the_server_knows_how_to_write(broker)
        lose_answer_to(proxy, "apply")
        assert await broker.push([Job("a", "task", unique="key")], now=0.0) == ["a"]
        assert proxy.lose_answer_to is None
        assert [job.id for job in await broker.find(JobFilter())] == ["a"]


async def test_it_is_recognised_when_the_server_was_away_for_long() -> None:
    async with through_a_proxy(timeout=0.6) as (broker, proxy):
        await push(broker, "a")
        (a,) = await claim(broker)
        proxy.loses_answers = True
        with pytest.raises(BrokerError, match="has not answered"):
            await broker.settle([Outcome.succeed(a, 1)], now=1.0)
        proxy.loses_answers = False
        assert await broker.settle([Outcome.succeed(a, 1)], now=2.0) == [True]
        assert await broker.settle([Outcome.succeed(a, 1)], now=3.0) == [False], "once"
        (job,) = await broker.find(JobFilter())
        assert job.finished == 1.0


@pytest.mark.parametrize("is_running", [False, True])
async def test_a_cancel_whose_answer_is_lost_is_true(is_running: bool) -> None:
    async with through_a_proxy() as (broker, proxy):
        await push(broker, "a")
        await claim(broker) if is_running else None
        await the_server_knows_how_to_write(broker)
        lose_answer_to(proxy, "apply")
        assert await broker.cancel("a", now=1.0, by="ann")
        (job,) = await broker.find(JobFilter())
        assert [(note.worker, note.error) for note in job.history] == [("ann", "cancelled")]
        assert await broker.cancel("a", now=1.0) is is_running


async def test_a_requeue_and_a_delete_whose_answers_are_lost_are_true() -> None:
    async with through_a_proxy() as (broker, proxy):
        await push(broker, "a", "b")
        for task_id in ("a", "b"):
            await broker.cancel(task_id, now=0.0)
        lose_answer_to(proxy, "apply")
        assert await broker.requeue(["a", "unknown"], now=1.0, by="ann") == [True, False]
        assert proxy.lose_answer_to is None
        (job,) = await broker.find(JobFilter(ids=["a"]))
        assert [(note.worker, note.error) for note in job.history] == [("ann", "requeued")]
        assert await broker.requeue(["a"], now=1.0) == [False]
        await broker.delete(["unknown"])
        lose_answer_to(proxy, "remove")
        assert await broker.delete(["a", "b"]) == [False, True]
        assert proxy.lose_answer_to is None
        assert await broker.delete(["b"]) == [False]


async def test_a_silent_connection_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither end is told, as when a firewall forgets a connection."""
    monkeypatch.setattr(connection, "PATIENCE", 0.2)
    async with through_a_proxy() as (broker, proxy), asyncio.TaskGroup() as group:
        await push(broker, "a")
        (a,) = await claim(broker)
        waiter = group.create_task(broker.wait_for("a", 20.0))
        await asyncio.sleep(0.05)
        proxy.forget()
        assert await push(broker, "b") == ["b"]
        proxy.forget()
        with contextlib.suppress(BrokerError):
            await broker.settle([Outcome.succeed(a, 7)], now=0.0)
        await broker.settle([Outcome.succeed(a, 7)], now=0.0)
        assert (await waiter).result == 7


async def test_who_waits_hears_again_after_a_cut() -> None:
    async with through_a_proxy() as (broker, proxy):
        for number in range(3):
            task_id = f"j{number}"
            async with asyncio.TaskGroup() as group:
                await push(broker, task_id)
                waiter = group.create_task(broker.wait_for(task_id, 20.0))
                (job,) = await claim(broker)
                ready = group.create_task(broker.wait([("queue", "default")], 20.0))
                await asyncio.sleep(0.05)
                proxy.cut()
                with contextlib.suppress(BrokerError):
                    await broker.settle([Outcome.succeed(job, number)], now=0.0)
                await broker.settle([Outcome.succeed(job, number)], now=0.0)
                assert (await waiter).result == number
                await ready


async def test_no_connection_is_left_behind(tmp_path: Path) -> None:
    with Server(tmp_path) as server, server.client() as client:
        before = len(client.client_list())
        for _ in range(3):
            broker = RedisBroker(server.url)
            await broker.open()
            await asyncio.gather(*(push(broker, f"j{n}") for n in range(50)))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.02):
                    await broker.wait_for("j1", None)
            await broker.wait([("queue", "default")], 0.01)
            for _ in range(5):
                client.client_kill_filter(_type="normal", skipme=True)
                client.client_kill_filter(_type="pubsub", skipme=True)
                await asyncio.gather(*(push(broker, f"k{n}") for n in range(20)))
            assert len(client.client_list()) - before <= 2, "one for commands, one for news"
            await broker.close()
            await until(lambda: len(client.client_list()) == before, "the end of its connections")


# ---------------------------------------------------------------------------
# Workers under fire
# ---------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with site_on("redis", tmp_path, AHEAD) as site:
        yield site


AHEAD = """
class WrongClock(flowrra.Clock):
    def time(self):
        return time.time() + float(os.environ["AHEAD"])


if "AHEAD" in os.environ:
    app = Flowrra(config, clock=WrongClock())
    app.task(name="app.nap")(nap.function)
"""


async def test_two_workers_one_killed_every_second(site: Site) -> None:
    async with site.client() as app:
        await app.submit_many(stand_in(app, "app.nap"), [(0.02,)] * 500)
        workers = [await site.worker("--concurrency", "2") for _ in range(2)]
        for number in range(3):
            await asyncio.sleep(1.0)  # the second in the promise
            await workers[number % 2].kill()
            workers[number % 2] = await site.worker("--concurrency", "2")
        jobs = await all_finished(app, within=30.0)
    assert statuses(jobs) == {TaskStatus.SUCCESS: 500}
    assert {job.failures for job in jobs} == {0}
    doubled = sum(runs - 1 for runs in site.runs().values())
    assert doubled <= sum(job.crashes for job in jobs) <= 3 * 4, "only what was running can run twice"


async def test_clocks_that_are_minutes_apart_cost_no_lease(site: Site) -> None:
    async with site.client() as app:
        nap = stand_in(app, "app.nap")
        ahead = [{**LONG_LEASE, "AHEAD": seconds} for seconds in ("-300", "0", "420")]
        workers = [await site.worker("--concurrency", "5", env=env) for env in ahead]
        await app.submit_many(nap, [(0.05,)] * 600)
        jobs = await all_finished(app)
    assert statuses(jobs) == {TaskStatus.SUCCESS: 600}
    assert {job.attempt for job in jobs} == {1}
    assert set(site.runs().values()) == {1}
    assert len({job.worker for job in jobs}) == 3
    assert all("lease" not in worker.log for worker in workers)


# ---------------------------------------------------------------------------
# Servers that go away
# ---------------------------------------------------------------------------


@contextlib.contextmanager
def own_site(folder: Path, **env: str) -> Iterator[tuple[Site, Server]]:
    """A site on a Redis of its own, which keeps what it acknowledges on disk."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(folder / "redis", "--appendonly", "yes", "--appendfsync", "always"))
        yield stack.enter_context(Site(folder, url=server.url, env={**LONG_LEASE, **env})), server


async def test_connections_killed_at_random_double_nothing(tmp_path: Path) -> None:
    """Every run ends once and is settled once, though requests and answers are lost all the time."""
    with own_site(tmp_path) as (site, server), server.client() as client:
        async with site.client() as app:
            worker = await site.worker("--concurrency", "20")
            nap = stand_in(app, "app.nap")
            for _ in range(20):
                submits = asyncio.gather(*(app.submit(nap, 0.01) for _ in range(20)))
                await asyncio.sleep(0.05)
                client.client_kill_filter(_type="normal", skipme=True)
                client.client_kill_filter(_type="pubsub", skipme=True)
                await submits
            jobs = await all_finished(app)
            assert not worker.is_over
    assert statuses(jobs) == {TaskStatus.SUCCESS: 400}
    assert [job for job in jobs if site.runs()[job.id] != 1] == [], worker.log
    assert "its lease was lost" not in worker.log


async def restart(server: Server, pause: float) -> None:
    server.kill()
    await asyncio.sleep(pause)  # how long it is away
    await asyncio.to_thread(server.start)


async def assert_worker_goes_on(app: Flowrra, worker: Process) -> None:
    """It has not gone silent: a job that comes now is run by it."""
    result = await app.wait_for_result(await app.submit(stand_in(app, "app.nap"), 0.0), timeout=20)
    assert result.result == worker.pid


async def assert_all_go_on(app: Flowrra, workers: Sequence[Process]) -> None:
    """None has gone silent: each runs some of the jobs that come now."""
    silent = {worker.pid for worker in workers}
    async with asyncio.timeout(PATIENCE):
        while silent:
            for task_id in await app.submit_many(stand_in(app, "app.nap"), [(0.05,)] * 10):
                silent.discard((await app.wait_for_result(task_id)).result)


async def test_a_server_that_is_killed_under_load_loses_nothing(tmp_path: Path) -> None:
    with own_site(tmp_path) as (site, server):
        async with site.client() as app:
            nap = stand_in(app, "app.nap")
            worker = await site.worker("--concurrency", "5")
            for _ in range(2):
                await app.submit_many(nap, [(0.02,)] * 150)
                await some_succeeded(app, await count(app, TaskStatus.SUCCESS) + 50)
                submits = asyncio.gather(*(app.submit(nap, 0.0) for _ in range(20)))
                await restart(server, 0.3)
                await submits
            jobs = await all_finished(app)
            await assert_worker_goes_on(app, worker)
    assert statuses(jobs) == {TaskStatus.SUCCESS: 340}
    assert {job.failures for job in jobs} == {0}


async def test_a_stall_longer_than_the_lease_ends_no_worker(tmp_path: Path) -> None:
    """The server stands still for two leases: what ran meanwhile is settled or refused, and all is done."""
    with own_site(tmp_path, **SHORT_LEASE, FLOWRRA_BROKER_TIMEOUT="0.5") as (site, server):
        async with site.client() as app:
            workers = [await site.worker("--concurrency", "5") for _ in range(2)]
            await app.submit_many(stand_in(app, "app.nap"), [(0.02,)] * 200)
            await some_succeeded(app, 30)
            server.send(signal.SIGSTOP)
            await workers[0].says("has not answered for 0.5 s")
            await asyncio.sleep(2.0)  # two leases
            server.send(signal.SIGCONT)
            jobs = await all_finished(app)
            await assert_all_go_on(app, workers)
    assert statuses(jobs) == {TaskStatus.SUCCESS: 200}
    assert "for 0.5 s:  " not in workers[0].log  # each error says why


async def test_a_submit_says_within_its_time_that_the_server_is_away(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        app = Flowrra(Config(broker=BrokerConfig(url=f"redis://:secret@127.0.0.1:{server.port}/0", timeout=0.2)))
        with server.client() as client:
            client.config_set("requirepass", "secret")
        nap = stand_in(app, "app.nap")
        async with app.client():
            server.kill()
            with pytest.raises(BrokerError, match=f"redis://127.0.0.1:{server.port}/0 has not answered") as caught:
                await app.submit(nap, 0)
            assert "secret" not in str(caught.value)
            await asyncio.to_thread(server.start)
            with pytest.raises(BrokerError, match="does not accept this user and password"):
                await app.submit(nap, 0)
            with server.client() as client:
                client.config_set("requirepass", "secret")
            await app.submit(nap, 0)
            assert len(await all_jobs(app)) == 1
