"""The indexes of jobs on Redis: what they find, in stores with many jobs, and how little memory a job takes."""

import contextlib
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeVar

import pytest

from flowrra import BackendConfig, Broker, Job, JobFilter, MemoryBroker, Outcome, TaskStatus, WorkerInfo
from flowrra_extras.redis import RedisBroker, scripts
from tests.support.redis_server import Server

WORKER = WorkerInfo("worker-7d9f8b6c5d-x2x8z-1-b20c63db", queues={"default": 9_999})
FINISHED = (TaskStatus.SUCCESS, TaskStatus.FAILED, TaskStatus.CANCELLED)
BUCKET = scripts.BUCKET
B = TypeVar("B", bound=Broker)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    with server.client() as client:
        client.flushall()  # it is this module's own
        yield client


@contextlib.asynccontextmanager
async def opened(broker: B) -> AsyncIterator[B]:
    await broker.open()
    await broker.heartbeat(WORKER, lease=1e6, now=0.0)
    yield broker
    await broker.close()


def ending(job: Job, how: TaskStatus) -> Outcome:
    if how is TaskStatus.SUCCESS:
        return Outcome.succeed(job, None)
    return Outcome.fail(job, f"boom of {job.id}") if how is TaskStatus.FAILED else Outcome.cancel(job, "no more")


async def run(broker: Broker, now: float, *how: TaskStatus) -> None:
    """Let the first ready jobs run, and end so."""
    jobs = await broker.claim("default", limit=len(how), worker=WORKER.id, now=now)
    assert all(await broker.settle([ending(*pair) for pair in zip(jobs, how, strict=True)], now=now))


async def test_a_finished_job_takes_less_than_500_bytes(server: Server, client: Any) -> None:
    async with opened(RedisBroker(server.url)) as broker:

        async def work(number: int, size: int, now: float) -> None:
            for first in range(0, number, size):
                ids = [f"{random.getrandbits(128):032x}" for _ in range(size)]
                await broker.push([Job(one, "myproject.tasks.noop") for one in ids], now=now + first / 1000)
                await run(broker, now + first / 1000 + 0.0625137, *[TaskStatus.SUCCESS] * size)

        await work(1, 1, 1_795_989_671.0528743)
        for number, size in ((5_000, 5), (25_000, 500)):
            before = client.info("memory")["used_memory"]
            await work(number, size, 1_795_989_672.3003643)
            assert (client.info("memory")["used_memory"] - before) / number < 500


FILTERS = (
    JobFilter(),
    JobFilter(task="a"),
    JobFilter(tag="t"),
    JobFilter(tag="rare"),
    JobFilter(task="a", tag="t"),
    JobFilter(error="boom"),
    *(JobFilter(status=frozenset({one}), task=task) for one in TaskStatus for task in (None, "a", "b")),
    JobFilter(status=frozenset(FINISHED), tag="t"),
    JobFilter(status=frozenset({TaskStatus.FAILED}), task="b", tag="t", error="boom"),
)


class Story:
    """The same random steps on Redis and in memory, with jobs in several buckets."""

    def __init__(self, seed: int, redis: Broker, memory: Broker) -> None:
        self.random = random.Random(seed)  # noqa: S311
        self.both = redis, memory
        self.now = 0.0
        self.pushed = 0

    async def go_on(self) -> None:
        self.now += self.random.choice((0.0, 1.0, 45.0, 90.0))
        await self.random.choice((self.push, self.push, self.run, self.run, self.requeue, self.remove, self.purge))()

    async def push(self) -> None:
        jobs: list[dict[str, Any]] = []
        for _ in range(self.random.choice((1, 30, 300))):
            self.pushed += 1
            tags = self.random.choice(((), ("t",), ("t", "u"), ("rare",) if self.pushed % 50 == 0 else ()))
            due = self.now + 60.0 if self.pushed % 7 == 0 else None
            jobs.append({"id": f"j{self.pushed}", "task": self.random.choice("aab"), "tags": tags, "due": due})
        for broker in self.both:
            await broker.push([Job(**job) for job in jobs], now=self.now)

    async def run(self) -> None:
        how = self.random.choices(FINISHED, (8, 2, 1), k=self.random.choice((1, 20, 400)))
        for broker in self.both:
            jobs = await broker.claim("default", limit=len(how), worker=WORKER.id, now=self.now)
            await broker.settle([ending(*pair) for pair in zip(jobs, how, strict=False)], now=self.now)

    async def some_finished(self) -> list[str]:
        jobs = await self.both[1].find(JobFilter(status=frozenset(FINISHED)), limit=9_999)
        return [job.id for job in self.random.sample(jobs, min(len(jobs), self.random.choice((1, 50))))]

    async def requeue(self) -> None:
        ids = await self.some_finished()
        first, second = [await broker.change(ids, "requeue", now=self.now) for broker in self.both]
        assert first == second

    async def remove(self) -> None:
        ids = await self.some_finished()
        first, second = [set(await broker.remove(ids)) for broker in self.both]
        assert first == second

    async def purge(self) -> None:
        first, second = [sorted(await broker.remove(before=self.now, limit=9_999)) for broker in self.both]
        assert first == second

    async def agree(self) -> None:
        redis, memory = self.both
        for which in FILTERS:
            expected = [job.id for job in await memory.find(which, limit=9_999)]
            found = await redis.find(which, limit=9_999)
            assert [job.id for job in found] == expected, which
            assert [job.id for job in await redis.find(which, limit=9_999, oldest_first=True)] == expected[::-1], which
            assert await redis.counts(which) == await memory.counts(which), which
            if found:
                place = self.random.randrange(len(found))
                page = await redis.find(which, limit=7, after=found[place].seq)
                assert [job.id for job in page] == expected[place + 1 : place + 8], which
                page = await redis.find(which, limit=7, after=found[place].seq, oldest_first=True)
                assert [job.id for job in page] == expected[:place][::-1][:7], which


@pytest.mark.parametrize("seed", range(6))
async def test_every_search_finds_what_memory_finds(server: Server, client: Any, seed: int) -> None:
    kept = BackendConfig(result_ttl=200.0, failed_ttl=500.0, max_results=9_999)
    brokers = RedisBroker(server.url, retention=kept), MemoryBroker(retention=kept)
    async with opened(brokers[0]), opened(brokers[1]):
        story = Story(seed, *brokers)
        for _ in range(4):
            for _ in range(8):
                await story.go_on()
            await story.agree()
        assert story.pushed > BUCKET
        for broker in story.both:
            await broker.claim("default", limit=9_999, worker=WORKER.id, now=1e6)
            running = await broker.find(JobFilter(status=frozenset({TaskStatus.RUNNING})), limit=9_999)
            await broker.settle([ending(job, TaskStatus.FAILED) for job in running], now=1e6)
            await broker.remove(before=1e12, limit=9_999)
        assert {key.decode() for key in client.scan_iter()} == {
            "{flowrra}:state",
            "{flowrra}:workers",
            "{flowrra}:leases",
        }


async def test_a_purge_is_bounded_and_deletes_only_what_is_due(server: Server, client: Any) -> None:
    async with opened(RedisBroker(server.url)) as broker:
        kept = 604_800.0
        await broker.push([Job(f"n{n}", "task") for n in range(100)], now=0.0)
        for n in range(100):
            await run(broker, float(n), TaskStatus.FAILED)
        assert set(await broker.remove(before=kept + 30.0)) == {f"n{n}" for n in range(30)}
        assert await broker.remove(before=kept + 30.0) == []
        assert len(await broker.remove(before=kept + 50.0, limit=7)) == 7
        assert len(await broker.remove(before=kept + 50.0, limit=99)) == 13
        assert await broker.requeue([f"n{n}" for n in range(50, 70)], now=100.0) == [True] * 20
        assert set(await broker.remove(before=kept + 1e3)) == {f"n{n}" for n in range(70, 100)}
        assert await broker.counts() == {("default", TaskStatus.PENDING): 20}
        await run(broker, 200.0, *[TaskStatus.FAILED] * 20)
        assert await broker.remove(before=kept + 200.0) == []
        assert len(await broker.remove(before=kept + 200.1)) == 20
        await broker.push([Job("again", "task")], now=300.0)
        await run(broker, 300.0, TaskStatus.FAILED)
        assert await broker.requeue(["again"], now=301.0) == [True]
        await run(broker, 302.0, TaskStatus.FAILED)
        assert await broker.remove(before=kept + 301.0) == []
        assert await broker.remove(before=kept + 303.0) == ["again"]
        assert not client.exists("{flowrra}:purges")


async def test_a_purge_looks_at_few_jobs_that_were_requeued(server: Server, client: Any) -> None:
    async with opened(RedisBroker(server.url)) as broker:
        number, limit = 3_000, 20
        await broker.push([Job(f"n{n}", "task") for n in range(number)], now=0.0)
        await run(broker, 0.0, *[TaskStatus.FAILED] * number)
        assert all(await broker.requeue([f"n{n}" for n in range(number)], now=0.0))
        await run(broker, 1e6, TaskStatus.FAILED)
        client.config_resetstat()
        assert await broker.remove(before=1e6, limit=limit) == []
        looks = client.info("commandstats")["cmdstat_hmget"]["calls"]
        assert 0 < looks < 2 * scripts.PURGE_LOOKS * limit
        for _ in range(number // (scripts.PURGE_LOOKS * limit)):
            await broker.remove(before=1e6, limit=limit)
        assert len(await broker.remove(before=1e12, limit=limit)) == 1


async def test_a_step_reads_few_buckets(server: Server, client: Any) -> None:
    """If the indexes have few jobs in common, or none."""
    async with opened(RedisBroker(server.url)) as broker:
        number = 3 * scripts.BUCKETS_AT_ONCE
        for n in range(number):  # the first and the last job of each bucket
            for task, seq in (("a", (n + 1) * BUCKET), ("b", (n + 2) * BUCKET - 1)):
                client.hset("{flowrra}:state", "seq", seq - 1)
                await broker.push([Job(f"{task}{n}", task)], now=0.0)
            await run(broker, 0.0, TaskStatus.SUCCESS, TaskStatus.FAILED if n else TaskStatus.SUCCESS)
        which = JobFilter(task="a", status=frozenset({TaskStatus.FAILED}))
        for oldest_first in (True, False):
            client.config_resetstat()
            assert await broker.find(which, oldest_first=oldest_first) == []
            stats = client.info("commandstats")
            assert stats["cmdstat_evalsha"]["calls"] >= 3
            assert "cmdstat_hmget" not in stats
        found = await broker.find(JobFilter(task="b", status=frozenset({TaskStatus.SUCCESS})))
        assert [job.id for job in found] == ["b0"]
        for task in "ab":
            which, ids = JobFilter(task=task), [f"{task}{n}" for n in range(number)]
            assert [job.id for job in await broker.find(which, limit=9_999, oldest_first=True)] == ids
            assert [job.id for job in await broker.find(which, limit=9_999)] == ids[::-1]
        assert await broker.counts(JobFilter(task="a")) == {("default", TaskStatus.SUCCESS): number}
