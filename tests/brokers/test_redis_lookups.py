"""What looking costs on Redis: nothing looks at all jobs, and each state, error and parent has an index."""

import asyncio
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from flowrra import BrokerError, Job, JobFilter, Outcome, TaskResult, TaskStatus, WorkerInfo
from flowrra_extras.dashboard import job_search
from flowrra_extras.dashboard.job_search import find_jobs
from flowrra_extras.migrate import adopt_jobs, hold_jobs, unhold_jobs
from flowrra_extras.redis import RedisBroker, scripts
from flowrra_extras.redis.calls import Calls
from tests.support.redis_server import Server

STATES = tuple(TaskStatus)
MANY = 20_000
FEW = 300  # commands that a look-up among so many may take


class Watched:
    """A broker on a server of its own, whose commands are counted."""

    def __init__(self, server: Server) -> None:
        self.broker = RedisBroker(server.url)
        self.client = server.client()

    async def __aenter__(self) -> RedisBroker:
        await self.broker.open()
        return self.broker

    async def __aexit__(self, *_: object) -> None:
        await self.broker.close()

    def commands(self) -> int:
        """How many commands the server has carried out, those of scripts included."""
        found: Any = self.client.info("commandstats")
        return sum(int(one["calls"]) for one in found.values())

    async def cost(self, looking: Any) -> tuple[Any, int]:
        """What a look-up gives, and how many commands it takes."""
        before = self.commands()
        found = await looking
        return found, self.commands() - before


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
def watched(server: Server) -> Iterator[Watched]:
    found = Watched(server)
    found.client.flushall()  # it is this module's own
    yield found
    found.client.close()


def in_state(*states: TaskStatus, **more: Any) -> JobFilter:
    return JobFilter(status=frozenset(states), **more)


async def ended(broker: RedisBroker, *endings: str, queue: str = "default", now: float = 1.0) -> None:
    """Let the first ready jobs of a queue run, and end so."""
    await broker.heartbeat(WorkerInfo("w", queues={queue: 9}), lease=600, now=now)
    jobs = await broker.claim(queue, limit=len(endings), worker="w", now=now)
    made = {
        "success": lambda job: Outcome.succeed(job, 1),
        "failed": lambda job: Outcome.fail(job, f"boom of {job.id}"),
        "cancelled": lambda job: Outcome.cancel(job, "no more"),
        "retrying": lambda job: Outcome.retry_at(job, now + 1000.0, "boom, again"),
        "pending": lambda job: Outcome.release(job, "released"),
    }
    outcomes = [made[ending](job) for job, ending in zip(jobs, endings, strict=True)]
    assert all(await broker.settle(outcomes, now=now))


async def many(broker: RedisBroker) -> None:
    """Five jobs that failed and one that did well, long ago; a child; and very many that wait since then."""
    await broker.push([Job(f"old{n}", "old") for n in range(6)], now=0.0)
    await ended(broker, *["failed"] * 5, "success")
    await broker.push([Job("parent", "old", priority=5), Job("child", "old", parents=("parent",))], now=2.0)
    for first in range(0, MANY, 2_000):
        await broker.push([Job(f"n{n}", "new", priority=n % 3) for n in range(first, first + 2_000)], now=3.0)


async def test_nothing_looks_at_all_jobs(watched: Watched) -> None:
    async with watched as broker:
        await many(broker)
        failed = in_state(TaskStatus.FAILED)
        looks: list[tuple[Any, list[str]]] = [
            (broker.find(failed, limit=10), ["old4", "old3", "old2", "old1", "old0"]),
            (broker.find(failed, limit=2, oldest_first=True), ["old0", "old1"]),
            (broker.find(failed, limit=2, after=3), ["old1", "old0"]),
            (broker.find(in_state(TaskStatus.FAILED, TaskStatus.SUCCESS), limit=2), ["old5", "old4"]),
            (broker.find(JobFilter(error="BOOM of old3")), ["old3"]),
            (broker.find(in_state(TaskStatus.FAILED, error="old2")), ["old2"]),
            (broker.find(JobFilter(parent="parent")), ["child"]),
            (broker.find(in_state(TaskStatus.BLOCKED)), ["child"]),
            (broker.find(in_state(TaskStatus.PENDING), limit=3), [f"n{MANY - n}" for n in (1, 2, 3)]),
            (broker.find(in_state(TaskStatus.PENDING, queue="default"), limit=1, oldest_first=True), ["parent"]),
            (broker.find(in_state(TaskStatus.PENDING), limit=2, after=10, oldest_first=True), ["n2", "n3"]),
            (broker.find(in_state(TaskStatus.RUNNING)), []),
            (broker.find(in_state()), []),
            (broker.find(JobFilter(task="old"), limit=3), ["child", "parent", "old5"]),
            (broker.find(in_state(TaskStatus.FAILED, task="old"), limit=1), ["old4"]),
            (broker.find(in_state(TaskStatus.PENDING, task="old")), ["parent"]),
            (broker.find(JobFilter(task="unknown")), []),
            (broker.find(JobFilter(queue="unknown")), []),
            (broker.find(in_state(TaskStatus.SUCCESS, queue="unknown")), []),
            (broker.find(JobFilter(task="old", error="old3")), ["old3"]),
        ]
        for looking, expected in looks:
            jobs, commands = await watched.cost(looking)
            assert ([job.id for job in jobs], commands < FEW) == (expected, True), commands


async def test_counting_looks_at_what_it_counts(watched: Watched) -> None:
    async with watched as broker:
        await many(broker)
        for which, expected in (
            (JobFilter(error="boom"), {("default", TaskStatus.FAILED): 5}),
            (in_state(TaskStatus.FAILED, error="old2"), {("default", TaskStatus.FAILED): 1}),
            (in_state(TaskStatus.SUCCESS, TaskStatus.FAILED, task="old"), {
                ("default", TaskStatus.FAILED): 5, ("default", TaskStatus.SUCCESS): 1}),
            (JobFilter(parent="parent"), {("default", TaskStatus.BLOCKED): 1}),
            (JobFilter(task="old", queue="default"), {
                ("default", TaskStatus.FAILED): 5, ("default", TaskStatus.SUCCESS): 1,
                ("default", TaskStatus.PENDING): 1, ("default", TaskStatus.BLOCKED): 1}),
            (JobFilter(task="unknown"), {}),
        ):  # fmt: skip
            found, commands = await watched.cost(broker.counts(which))
            assert (found, commands < FEW) == (expected, True), commands


async def test_one_step_looks_at_few_jobs(watched: Watched) -> None:
    """So that no other call waits long for it: also where each job has to be looked at, or has its own priority."""
    async with watched as broker:
        await many(broker)
        await broker.push([Job(f"p{n}", "own", priority=n, queue="own") for n in range(3_000)], now=4.0)
        steps, run = [0], broker._calls.run

        async def counted(call: Any) -> Any:
            answer, commands = await watched.cost(run(call))
            steps.append(commands)
            return answer

        broker._calls.run = counted  # type: ignore[method-assign]
        assert [job.id for job in await broker.find(JobFilter(task="old"), limit=1, oldest_first=False)] == ["child"]
        assert len(await broker.find(in_state(TaskStatus.PENDING, queue="own"), limit=3)) == 3
        assert await broker.counts(JobFilter(task="new")) == {("default", TaskStatus.PENDING): MANY}
        assert len(steps) > MANY / 500
        assert max(steps) < 1_500


async def test_a_search_finds_the_few_that_failed_long_ago(watched: Watched) -> None:
    async with watched as broker:
        await many(broker)
        found, commands = await watched.cost(
            find_jobs(broker, job_search.Search(in_state(TaskStatus.FAILED)), limit=50)
        )
        assert [job.id for job in found.jobs] == ["old4", "old3", "old2", "old1", "old0"]
        assert (found.after, found.searched_to) == (None, None)
        assert commands < FEW


async def everything(broker: RedisBroker) -> None:
    """A job in each state, by each way into a store and out of it."""
    names = ["good", "bad", "gone", "again", "late", "parent", "child", "lone", "crash", "back"]
    jobs = {name: Job(name, "task", priority=n) for n, name in enumerate(names)}
    jobs["late"].due, jobs["child"].parents = 900.0, ("parent",)
    await broker.push(list(jobs.values()), now=0.0)
    await ended(broker, "success", "failed", "cancelled", "retrying")
    await broker.cancel("lone", now=2.0)
    await ended(broker, "pending")  # the parent: it is given back, with an error
    result: TaskResult[int] = TaskResult("other", "task", TaskStatus.SUCCESS, 1, submitted=1.0, finished=2.0)
    await broker.record([result])
    adopted = Job("adopted", "task", parents=("parent",), error="of before")
    assert await adopt_jobs(broker, [adopted], by="m", now=3.0) == [True]
    assert await hold_jobs(broker, ["back"], by="m", now=3.0) == [True]
    await broker.push([Job("dying", "task", queue="q"), Job("runs", "task", queue="q")], now=3.0)
    await broker.heartbeat(WorkerInfo("x", queues={"q": 9}), lease=600, now=3.0)
    assert len(await broker.claim("q", limit=2, worker="x", now=3.0)) == 2


async def by_scan(broker: RedisBroker, which: JobFilter) -> list[str]:
    """The same as `find`, by looking at all jobs."""
    return [job.id for job in await broker.find(JobFilter()) if which.matches(job)]


async def agree(broker: RedisBroker) -> None:
    """Each index gives what a look at all jobs gives."""
    filters = [JobFilter(task="task"), JobFilter(task="task", queue="q"), JobFilter(queue="q"), JobFilter(queue="none")]
    filters += [in_state(one, task="task", error=error) for one in STATES for error in (None, "boom")]
    filters += [JobFilter(error="o"), JobFilter(parent="parent"), JobFilter(error="boom", queue="default")]
    filters += [in_state(*pair) for pair in itertools.combinations_with_replacement(STATES, 2)]
    filters += [in_state(one, error="o") for one in STATES] + [in_state(one, worker="x") for one in STATES]
    for which in filters:
        found = [job.id for job in await broker.find(which)]
        assert found == await by_scan(broker, which), which
        assert sum((await broker.counts(which)).values()) == len(found), which
        assert [job.id for job in await broker.find(which, oldest_first=True)] == found[::-1], which


async def test_every_index_says_what_there_is(watched: Watched) -> None:
    async with watched as broker:
        await everything(broker)
        await agree(broker)
        assert await broker.requeue(["bad", "gone", "lone"], now=4.0) == [True] * 3
        assert await unhold_jobs(broker, ["back"], by="m", gone=False, now=4.0) == [True]
        assert await unhold_jobs(broker, ["adopted"], by="m", gone=True, now=4.0) == [True]
        await broker.heartbeat(WorkerInfo("x"), lease=0, now=4.0)
        await agree(broker)
        await ended(broker, *["success"] * 3, now=5.0)
        await agree(broker)
        await ended(broker, "failed", "failed", queue="q", now=6.0)
        await broker.purge(1e9, 5)
        await agree(broker)


async def test_what_is_deleted_leaves_the_indexes(watched: Watched) -> None:
    async with watched as broker:
        await everything(broker)
        assert await unhold_jobs(broker, ["back", "adopted"], by="m", gone=True, now=4.0) == [True, True]
        for job in await broker.find(JobFilter()):
            await broker.cancel(job.id, now=5.0)
        await broker.settle([Outcome.cancel(job, "no") for job in await broker.find(JobFilter(worker="x"))], now=6.0)
        await broker.purge(1e9, 100)
        assert await broker.find(JobFilter()) == []
        left = {key.decode().removeprefix("{flowrra}:") for key in watched.client.scan_iter()}
        assert {name for name in left if name.startswith(("seqs:", "family:", "ids:", "buckets", "job:"))} == set()


def make_old(client: Any) -> None:
    """Store the jobs as version 0.2.0 did: with long names, an entry for each job, and sets instead of `waits`."""
    names = {short.encode(): name for name, short in scripts.FIELDS.items()}
    for key in client.keys("{flowrra}:job:*"):
        job_id = key.decode().removeprefix("{flowrra}:job:")
        job = {names[short]: value for short, value in client.hgetall(key).items() if names[short] != "rev"}
        client.zadd("{flowrra}:all", {job_id: int(job["place"][16:], 16)})
        if "purge_at" in job:
            client.zadd("{flowrra}:purge", {job_id: float(job["purge_at"])})
        if job.pop("waits", None) and "parents" in job:
            for parent in json.loads(job["parents"]):
                client.sadd(f"{{flowrra}}:parents:{job_id}", parent)
                client.sadd(f"{{flowrra}}:children:{parent}", job_id)
        client.delete(key)
        client.hset(key, mapping=job)
    for pattern in ("seqs:*", "ids:*", "family:*", "buckets", "purges"):
        for key in client.keys(f"{{flowrra}}:{pattern}"):
            client.delete(key)
    client.hdel("{flowrra}:state", "version")


async def test_a_store_of_the_first_version_gets_its_indexes(watched: Watched) -> None:
    async with watched as broker:
        client: Any = watched.client
        await everything(broker)
        before = {job.id: job for job in await broker.find(JobFilter())}
        await broker.close()
        make_old(client)
        await broker.open()
        after = {job.id: job for job in await broker.find(JobFilter())}
        assert {key: repr(job) for key, job in after.items()} == {key: repr(job) for key, job in before.items()}
        await agree(broker)
        assert client.hget("{flowrra}:state", "version") == str(scripts.VERSION).encode()
        finished = {job.id for job in after.values() if job.status.is_finished}
        assert set(await broker.remove(before=1e9)) == finished
        assert not client.exists("{flowrra}:all", "{flowrra}:purge")
        await agree(broker)


async def test_a_store_of_the_first_version_knows_what_its_jobs_wait_for(watched: Watched) -> None:
    """It had a set of the parents of each blocked job, and of the children of each parent."""
    async with watched as broker:
        client: Any = watched.client
        await broker.push([Job("p", "task"), Job("q", "task")], now=0.0)
        await broker.push([Job("both", "task", parents=("p", "q")), Job("held", "task")], now=0.0)
        assert await hold_jobs(broker, ["held"], by="m", now=0.0) == [True]
        await broker.close()
        make_old(client)
        assert client.smembers("{flowrra}:parents:both") == {b"p", b"q"}
        other = RedisBroker(broker.url)
        await asyncio.gather(broker.open(), other.open())
        await other.close()
        assert [key for pattern in ("parents:*", "children:*") for key in client.keys(f"{{flowrra}}:{pattern}")] == []
        await ended(broker, "success")
        assert await broker.counts(in_state(TaskStatus.BLOCKED)) == {("default", TaskStatus.BLOCKED): 2}
        await ended(broker, "success", now=2.0)
        assert await unhold_jobs(broker, ["held"], by="m", gone=False, now=2.0) == [True]
        await ended(broker, "success", "success", now=3.0)
        assert await broker.counts() == {("default", TaskStatus.SUCCESS): 4}


async def test_a_large_store_of_the_first_version_is_migrated_in_steps(watched: Watched) -> None:
    async with watched as broker:
        await broker.push([Job(f"n{n}", "task") for n in range(1_000)], now=0.0)
        await broker.close()
        make_old(watched.client)
        steps, run = [0], Calls.run

        async def counted(calls: Calls, call: Any) -> Any:
            answer, commands = await watched.cost(run(calls, call))
            steps.append(commands)
            return answer

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Calls, "run", counted)
            await broker.open()
        assert (len(steps) > 4, max(steps) < 1_500) == (True, True)
        assert len(await broker.find(JobFilter(task="task"), limit=2_000)) == 1_000


async def test_a_newer_store_is_refused(watched: Watched) -> None:
    async with watched as broker:
        await broker.close()
        watched.client.hset("{flowrra}:state", "version", "99")
        with pytest.raises(
            BrokerError, match=rf"keys of version 99 .* newer than the {scripts.VERSION} of this flowrra"
        ):
            await broker.open()
