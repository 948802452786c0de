"""Redis as broker: the contract, the model, and what is particular to it."""

import asyncio
import contextlib
import itertools
import secrets
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from flowrra import (
    Activity,
    Broker,
    BrokerConfig,
    BrokerError,
    ConfigError,
    Flowrra,
    Job,
    JobFilter,
    Outcome,
    Step,
    TaskNotFoundError,
    TaskStatus,
    WorkerInfo,
)
from flowrra_extras.contracts import BrokerContract
from flowrra_extras.redis import RedisBroker
from flowrra_extras.testing import ManualClock
from tests.brokers.test_state_machine import BrokerMachine
from tests.support.processes import until
from tests.support.redis_server import Server, age_leases, clean, free_port, keys, new_prefix
from tests.support.services import REDIS_URL

pytestmark = pytest.mark.usefixtures("redis_url")


class TestRedis(BrokerContract):
    @pytest.fixture(autouse=True)
    def use_prefix(self) -> Iterator[None]:
        with clean(REDIS_URL) as (self.client, self.prefix):
            yield

    async def make_broker(self, clock: ManualClock) -> Broker:
        """Some tests ask for several, each on an empty store."""
        for key in self.client.scan_iter(f"{{{self.prefix}}}:*", count=1000):
            self.client.unlink(key)
        return RedisBroker(f"{REDIS_URL}?prefix={self.prefix}", clock=clock)

    async def let_pass(self, broker: Broker, clock: ManualClock, seconds: float) -> None:
        clock.advance(seconds)
        age_leases(self.client, self.prefix, seconds)


class RedisMachine(BrokerMachine):
    @staticmethod
    def make_broker(folder: Path, clock: ManualClock) -> Broker:
        return RedisBroker(f"{REDIS_URL}?prefix={new_prefix()}", clock=clock)

    def __init__(self) -> None:
        super().__init__()
        assert isinstance(self.broker, RedisBroker)
        self.prefix = self.broker.url.partition("prefix=")[2]
        self.client = redis.Redis.from_url(REDIS_URL)

    def let_pass(self, seconds: float) -> None:
        super().let_pass(seconds)
        age_leases(self.client, self.prefix, seconds)

    def teardown(self) -> None:
        super().teardown()
        for key in self.client.scan_iter(f"{{{self.prefix}}}:*", count=1000):
            self.client.unlink(key)
        self.client.close()


@pytest.mark.timeout(600)  # a failure is made small first, which takes its time
def test_the_broker_agrees_with_the_model() -> None:
    chosen = settings(
        max_examples=80, stateful_step_count=30, suppress_health_check=[HealthCheck.too_slow], deadline=None
    )
    run_state_machine_as_test(RedisMachine, settings=chosen)


async def test_a_push_elsewhere_wakes_who_wants_jobs() -> None:
    with clean(REDIS_URL) as (_, prefix):
        here, elsewhere = (RedisBroker(f"{REDIS_URL}?prefix={prefix}") for _ in range(2))
        await here.open()
        await elsewhere.open()
        try:
            async with asyncio.timeout(20):
                await here.heartbeat(WorkerInfo("w"), lease=10.0, now=1.0)
                ready = asyncio.ensure_future(here.wait([("queue", "default")], 60.0))
                while (await asyncio.wait([ready], timeout=0.2))[0]:  # it may end early: then there is nothing
                    assert await here.claim("default", limit=1, worker="w", now=1.0) == []
                    ready = asyncio.ensure_future(here.wait([("queue", "default")], 60.0))
                await elsewhere.push([Job("a", "task")], now=1.0)
                await ready
        finally:
            await here.close()
            await elsewhere.close()


# ---------------------------------------------------------------------------
# The URL
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("redis://host/0?timeout=3", "unknown option 'timeout'"),
        ("redis://host/0?ssl_cert_reqs=none", "unknown option 'ssl_cert_reqs'"),
        ("redis://host/jobs", "number of the database"),
        ("redis://host/0?prefix=", "without braces"),
        ("redis://host/0?prefix={a}", "without braces"),
        ("redis://user:secret@host/jobs", "'redis://host/jobs'"),
        ("redis://host:port/0", "must be a number from 1 to 65535"),
        ("rediss://host/0?ssl_ca_certs=/nowhere", "cannot be read"),
        ("rediss://host/0?ssl_cert_reqs=maybe", "none or required"),
        ("rediss://host/0?ssl_check_hostname=maybe", "true or false"),
    ],
)
def test_a_url_that_cannot_work_is_refused(url: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        Flowrra.from_urls(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["redis://", "redis://host", "rediss://host:1/2?ssl_cert_reqs=none", "unix:///s?db=3"])
def test_urls_that_can_work(url: str) -> None:
    assert isinstance(Flowrra.from_urls(url).broker, RedisBroker)


@contextlib.asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[RedisBroker]:
    broker = RedisBroker(url, BrokerConfig(**options))
    await broker.open()
    try:
        yield broker
    finally:
        await broker.close()


async def ready_ids(broker: Broker, *jobs: Job) -> list[str]:
    await broker.push(jobs, now=0.0)
    await broker.heartbeat(WorkerInfo("w", queues={"default": 9}), lease=10, now=0.0)
    return [job.id for job in await broker.claim("default", limit=5_000, worker="w", now=0.0)]


async def one_job(url: str) -> None:
    """A job goes in and comes out."""
    task_id = secrets.token_hex(8)
    async with opened(url) as broker:
        assert await ready_ids(broker, Job(task_id, "task")) == [task_id]


async def test_user_password_database_and_socket(tmp_path: Path) -> None:
    with Server(tmp_path, "--requirepass", "p@ss/word:%") as server, server.client() as client:
        client.execute_command("ACL", "SETUSER", "ann@work", "on", ">s:cr@t", "+@all", "~{billing}:*", "&{billing}:*")
        await one_job(f"redis://:p%40ss%2Fword%3A%25@127.0.0.1:{server.port}/3")
        await one_job(f"redis://ann%40work:s%3Acr%40t@127.0.0.1:{server.port}/1?prefix=billing")
        await one_job(f"unix://:p%40ss%2Fword%3A%25@{server.socket}?db=2")
        with pytest.raises(BrokerError, match=rf"redis://127.0.0.1:{server.port}/0 does not accept") as caught:
            await one_job(f"redis://ann%40work:wrong@127.0.0.1:{server.port}/0")
        assert "wrong@" not in str(caught.value)
        with pytest.raises(BrokerError, match="refuses the connection: DB index is out of range"):
            await one_job(f"redis://:p%40ss%2Fword%3A%25@127.0.0.1:{server.port}/99")
        with pytest.raises(BrokerError, match="does not accept this user and password: Authentication required"):
            await one_job(server.url)
        with pytest.raises(BrokerError, match=r"does not allow this user .* of \{elsewhere\}"):
            await one_job(f"redis://ann%40work:s%3Acr%40t@127.0.0.1:{server.port}/1?prefix=elsewhere")
        used = client.info("keyspace")
    assert sorted(used) == ["db1", "db2", "db3"]


def make_certificate(folder: Path, *names: str) -> list[str]:
    """A certificate that signs itself, for hosts of these names, and its key."""
    files = [str(folder / f"{names[0]}.crt"), str(folder / f"{names[0]}.key")]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-out", files[0]]
    about = ["-keyout", files[1], "-subj", f"/CN={names[0]}", "-addext", f"subjectAltName={','.join(names[1:])}"]
    subprocess.run([*command, *about], check=True, capture_output=True)
    return files


async def test_tls(tmp_path: Path) -> None:
    crt, key = make_certificate(tmp_path, "server", "DNS:localhost")
    client_crt, client_key = make_certificate(tmp_path, "client", "DNS:client")
    port = free_port()
    options = ("--tls-port", str(port), "--tls-cert-file", crt, "--tls-key-file", key, "--tls-ca-cert-file", client_crt)
    here, client = f"rediss://localhost:{port}/0", f"ssl_certfile={client_crt}&ssl_keyfile={client_key}"
    with Server(tmp_path, *options) as server:
        await one_job(f"{here}?ssl_ca_certs={crt}&{client}")
        await one_job(f"{here}?ssl_cert_reqs=none&{client}")
        by_number = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={crt}&{client}"
        await one_job(f"{by_number}&ssl_check_hostname=false")
        for stranger in (by_number, f"{here}?{client}"):
            with pytest.raises(BrokerError, match="has a certificate that is not trusted"):
                await one_job(stranger)
        async with opened(f"{here}?ssl_ca_certs={crt}&{client}") as broker, asyncio.TaskGroup() as group:
            (large,) = await broker.push([Job("large", "task", args=("x" * 1_000_000,))], now=0.0)
            waiter = group.create_task(broker.wait_for(large, 20.0))
            (job,) = await broker.claim("default", limit=9, worker="w", now=0.0)
            await broker.settle([Outcome.succeed(job, "y" * 1_000_000)], now=0.0)
            assert len((await waiter).result) == 1_000_000
        with server.client() as plain:
            plain.config_set("tls-auth-clients", "no")
        await one_job(f"{here}?ssl_ca_certs={crt}")


async def test_databases_and_prefixes_are_apart(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        urls = [server.url, server.url[:-1] + "1", f"{server.url}?prefix=other"]
        async with contextlib.AsyncExitStack() as stack:
            brokers = [await stack.enter_async_context(opened(url)) for url in urls]
            group = await stack.enter_async_context(asyncio.TaskGroup())
            waiters = []
            for broker in brokers:
                await broker.push([Job("same", "task", unique="key")], now=0.0)
                waiters.append(group.create_task(broker.wait_for("same", 20.0)))
            for number, broker in enumerate(brokers):
                await broker.heartbeat(WorkerInfo("w", queues={"default": 9}), lease=10, now=0.0)
                (job,) = await broker.claim("default", limit=9, worker="w", now=0.0)
                await broker.settle([Outcome.succeed(job, number)], now=1.0)
            assert [(await waiter).result for waiter in waiters] == [0, 1, 2]


# ---------------------------------------------------------------------------
# Order, size, memory
# ---------------------------------------------------------------------------


@pytest.fixture
def url() -> Iterator[str]:
    """A URL with a prefix of its own."""
    with clean(REDIS_URL) as (_, prefix):
        yield f"{REDIS_URL}?prefix={prefix}"


async def test_priorities_of_64_bits_are_exact(url: str) -> None:
    priorities = [2**63 - 1, 2**63 - 2, 2**53 + 1, 2**53, 1, 0, -1, -(2**53) - 1, -(2**63) + 1, -(2**63)]
    jobs = [Job(f"{priority} {n}", "task", priority=priority) for priority in priorities for n in range(3)]
    expected = [f"{priority} {n}" for priority in sorted(priorities) for n in range(3)]
    async with opened(url) as broker:
        assert await ready_ids(broker, *jobs) == expected


async def test_a_push_of_many_runs_is_one_push(url: str) -> None:
    async with opened(url) as broker:
        await broker.push([Job("old", "task", unique="key")], now=0.0)
        jobs = [Job(f"j{n}", "task", args=(n,), priority=n // 2_500) for n in range(5_000)]
        jobs[3_000].unique = "key"
        ids = await broker.push(jobs, now=1.0)
        assert ids == [job.id if job.unique is None else "old" for job in jobs]
        assert await broker.counts() == {("default", TaskStatus.PENDING): 5_000}
        jobs = [*(Job(f"k{n}", "task") for n in range(2_000)), Job("child", "task", parents=("nobody",))]
        with pytest.raises(TaskNotFoundError):
            await broker.push(jobs, now=1.0)
        assert await broker.counts() == {("default", TaskStatus.PENDING): 5_000}


async def test_a_push_that_would_hold_the_server_for_long_is_refused(url: str) -> None:
    async with opened(url) as broker:
        with pytest.raises(BrokerError, match="at most 500,000 jobs go into Redis at once, not 500,001"):
            await broker.push([Job("a", "task")] * 500_001, now=0.0)
        assert await broker.counts() == {}


async def test_a_broker_that_is_not_open_says_so(url: str) -> None:
    broker = RedisBroker(url)
    for _ in range(2):
        with pytest.raises(BrokerError, match="is not open"):
            await broker.push([Job("a", "task")], now=0.0)
        with pytest.raises(BrokerError, match="is not open"):
            await broker.counts()
        with pytest.raises(BrokerError, match="is not open"):
            await broker.wait([("queue", "default")], 0.01)
        await broker.open()
        await broker.close()
    assert len(asyncio.all_tasks()) == 1, "nobody listens"


async def test_old_activity_leaves_nothing_behind(url: str) -> None:
    prefix, info = url.partition("prefix=")[2], WorkerInfo("w")
    async with opened(url) as broker:
        for minute in range(0, 2 * 86_400, 7_200):
            info.activity = [Activity(minute, "task", 1)]
            await broker.heartbeat(info, lease=60, now=float(minute))
        assert len(await broker.activity(0.0)) == 86_400 / 7_200 + 1
        info.activity = ()
        await broker.heartbeat(info, lease=0, now=3 * 86_400.0)
    with redis.Redis.from_url(REDIS_URL) as client:
        assert keys(client, prefix) == {"state", "totals"}


async def test_what_is_purged_leaves_nothing_behind(url: str) -> None:
    prefix = url.partition("prefix=")[2]
    with redis.Redis.from_url(REDIS_URL) as client:
        async with opened(url) as broker:
            info = WorkerInfo("w", queues={"default": 9})
            await broker.heartbeat(info, lease=60, now=0.0)
            kinds: list[dict[str, Any]] = [{}, {"unique": "k"}, {"expires": 50.0}, {"due": 1.0}, {"parents": ("j0",)}]
            await broker.push([Job(f"j{n}", "task", **kind) for n, kind in enumerate(kinds)], now=0.0)
            await broker.push([Job("dies", "task", priority=1)], now=0.0)
            first = await broker.claim("default", limit=9, worker="w", now=2.0)
            assert len(first) == 5
            done = [Outcome.done(job, 1, Step("charge", "1", 1.0, 2.0)) for job in first]
            assert await broker.settle(done, now=2.0) == [True] * 5
            await broker.settle([Outcome.retry_at(first[0], 2.0, "boom", "line")], now=2.0)
            await broker.cancel("j3", now=2.0)
            again = await broker.claim("default", limit=9, worker="w", now=3.0)
            await broker.settle([Outcome.succeed(job, job.id) for job in (*first[1:4], *again)], now=4.0)
            (child,) = await broker.claim("default", limit=9, worker="w", now=5.0)
            await broker.settle([Outcome.fail(child, "boom")], now=6.0)
            await broker.settle([Outcome.cancel(job, "why") for job in first], now=6.0)
            assert {status.is_finished for _, status in await broker.counts()} == {True}
            assert await broker.purge(1e9, 4) == 4
            assert await broker.purge(1e9, 4) == 2
            await broker.heartbeat(info, lease=0, now=7.0)
            assert await broker.counts() == {}
        assert keys(client, prefix) == {"state"}
        assert set(client.hkeys(f"{{{prefix}}}:state")) == {b"seq", b"version"}


async def test_no_child_misses_the_end_of_its_parent(url: str) -> None:
    """Many are submitted, held, released and requeued while their parents end."""
    async with opened(url) as one, opened(url) as other:
        await one.heartbeat(WorkerInfo("w", queues={"default": 9}), lease=60, now=0.0)
        for round_ in range(20):
            parents = [f"p{round_}-{n}" for n in range(3)]
            await one.push([Job(name, "task", priority=-1) for name in parents], now=0.0)
            jobs = await one.claim("default", limit=3, worker="w", now=0.0)
            endings = [Outcome.succeed(jobs[0], 1), Outcome.succeed(jobs[1], 2), Outcome.fail(jobs[2], "boom")]

            async def submit(n: int, *names: str, number: int = round_) -> None:
                child = f"c{number}-{n}"
                broker = (one, other)[n % 2]
                await broker.push([Job(child, "task", parents=names, queue="children")], now=0.0)
                if n % 3 == 0 and await broker.change([child], "hold", now=0.0, by="m") == [True]:
                    assert await other.change([child], "unhold", now=0.0, by="m") == [True]
                await one.requeue([child], now=0.0)

            groups = [parents[:1], parents[:2], parents[1:]]
            await asyncio.gather(
                *(submit(n, *groups[n % 3]) for n in range(12)),
                *(broker.settle([ending], now=1.0) for broker, ending in zip((one, other, one), endings, strict=True)),
            )
            (requeued,) = await one.requeue(parents[2:], now=2.0)
            assert requeued
            (again,) = await one.claim("default", limit=3, worker="w", now=2.0)
            await asyncio.gather(
                one.settle([Outcome.succeed(again, 3)], now=3.0),
                *(other.requeue([f"c{round_}-{n}"], now=3.0) for n in range(12)),
            )
            assert ("children", TaskStatus.BLOCKED) not in await one.counts()
            counted = await one.counts(JobFilter(queue="children"))
            assert sum(counted.values()) == 12 * (round_ + 1)
            found = [job.status for job in await one.find(JobFilter(queue="children"), limit=1_000)]
            assert {status: found.count(status) for status in found} == {key[1]: n for key, n in counted.items()}


# ---------------------------------------------------------------------------
# The server: scripts, settings, restarts, memory
# ---------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


async def test_scripts_survive_a_flush(server: Server) -> None:
    async with opened(server.url) as broker:
        await broker.push([Job("a", "task")], now=0.0)
        with server.client() as client:
            client.script_flush()
        assert await asyncio.gather(*(broker.push([Job(f"b{n}", "task")], now=0.0) for n in range(3)))
        assert len(await broker.find(JobFilter())) == 4
        assert await broker.delete(["unknown"]) == [False], "that the script was not known is no lost answer"


async def test_a_restart_is_waited_for_and_loses_nothing(server: Server) -> None:
    async with opened(server.url) as broker, asyncio.TaskGroup() as group:
        await broker.heartbeat(WorkerInfo("w"), lease=3600, now=0.0)
        (waits,) = await broker.push([Job("waits", "task")], now=0.0)
        waiter = group.create_task(broker.wait_for(waits, 20.0))
        await asyncio.sleep(0)
        server.kill()
        pushes = [group.create_task(broker.push([Job(f"j{n}", "task")], now=0.0)) for n in range(20)]
        done, _ = await asyncio.wait([waiter, *pushes], timeout=0.2)
        assert not done
        await asyncio.to_thread(server.start)
        assert [await push for push in pushes] == [[f"j{n}"] for n in range(20)]
        jobs = await broker.claim("default", limit=99, worker="w", now=0.0)
        assert sorted(job.id for job in jobs) == sorted(["waits", *(f"j{n}" for n in range(20))])
        assert await broker.settle([Outcome.succeed(job, job.id) for job in jobs], now=1.0) == [True] * 21
        assert (await waiter).result == "waits"


async def test_a_server_that_stays_away_is_an_error_that_names_it(server: Server) -> None:
    async with opened(server.url, timeout=0.3) as broker:
        server.kill()
        started = asyncio.get_running_loop().time()
        with pytest.raises(BrokerError, match=rf"redis://127\.0\.0\.1:{server.port}/0 has not answered for 0\.3 s: .+"):
            await broker.push([Job("a", "task")], now=0.0)
        assert asyncio.get_running_loop().time() - started < 5.0
        await asyncio.to_thread(server.start)
        assert await broker.push([Job("a", "task")], now=0.0) == ["a"]
    server.kill()
    with pytest.raises(BrokerError, match="has not answered"):
        async with opened(server.url, timeout=0.1):
            pass


async def test_a_replica_is_waited_out(server: Server, tmp_path: Path) -> None:
    """As after a failover: the connection is to what is no master any more, and then to one again."""
    async with opened(server.url, timeout=10.0) as broker:
        with server.client() as client:
            client.replicaof("127.0.0.1", str(free_port()))
            push = asyncio.create_task(broker.push([Job("a", "task")], now=0.0))
            done, _ = await asyncio.wait([push], timeout=0.2)
            assert not done
            client.replicaof("NO", "ONE")
            assert await push == ["a"]


async def test_a_full_memory_writes_nothing_and_says_so(server: Server) -> None:
    async with opened(server.url) as broker:
        with server.client() as client:
            client.config_set("maxmemory", 1)
            with pytest.raises(BrokerError, match="is out of memory, so that nothing was written: raise maxmemory"):
                await broker.push([Job("a", "task")], now=0.0)
            client.config_set("maxmemory", 0)
        assert await broker.find(JobFilter()) == []
        assert await broker.push([Job("a", "task")], now=0.0) == ["a"]


async def test_a_server_that_is_short_of_room_or_replicas_is_waited_for(server: Server) -> None:
    for setting, value, usual in (("maxclients", 1, 100), ("min-replicas-to-write", 1, 0)):
        with server.client() as client:
            client.config_set(setting, value)
            ready = asyncio.create_task(one_job(server.url))
            done, _ = await asyncio.wait([ready], timeout=0.2)
            assert not done
            client.config_set(setting, usual)
            await ready


LOST: dict[str, dict[str, Any]] = {
    "ready": {},
    "suspect": {},
    "due": {"due": 5.0},
    "expired": {"expires": 5.0},
    "child": {"parents": ("parent",)},
    "running": {},
    "finished": {},
}


@pytest.mark.parametrize("kind", LOST)
async def test_a_job_that_the_server_throws_away_holds_up_no_other(url: str, kind: str) -> None:
    """As it does when memory is full, unless its policy is noeviction."""
    prefix = f"{{{url.partition('prefix=')[2]}}}"
    info = WorkerInfo("w", queues={"default": 9})
    with redis.Redis.from_url(REDIS_URL) as client:
        async with opened(url) as broker:
            for worker in (info, WorkerInfo("dead")):
                await broker.heartbeat(worker, lease=60, now=0.0)
            await broker.push([Job("parent", "task")], now=0.0)
            (parent,) = await broker.claim("default", limit=1, worker="w", now=0.0)
            await broker.push([Job("lost", "task", **LOST[kind])], now=0.0)
            if kind == "finished":
                await broker.cancel("lost", now=0.0)
            if kind in ("running", "suspect"):
                await broker.claim("default", limit=1, worker="dead", now=0.0)
            if kind == "suspect":
                client.zadd(f"{prefix}:leases", {"dead": 0})
                assert (await broker.heartbeat(info, lease=60, now=0.0)).lost_workers == ["dead"]
            client.unlink(f"{prefix}:job:lost")
            client.zadd(f"{prefix}:leases", {"dead": 0})
            await broker.heartbeat(info, lease=60, now=0.0)
            await broker.push([Job("other", "task")], now=0.0)
            assert await broker.settle([Outcome.succeed(parent, 1)], now=1.0) == [True]
            claims = [await broker.claim("default", limit=2, worker="w", now=9.0) for _ in range(2)]
            assert [job.id for job in itertools.chain(*claims)] == ["other"]
            await broker.heartbeat(info, lease=0, now=9.0)
            assert [job.id for job in await broker.find(JobFilter())] == ["other", "parent"]
            assert await broker.purge(1e12, 9) == 1 + (kind == "finished")
            assert (await broker.counts())["default", TaskStatus.PENDING] == 1


async def test_a_user_who_may_not_publish_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with Server(tmp_path) as server, server.client() as client:
        client.execute_command("ACL", "SETUSER", "ann", "on", ">pw", "+@all", "~{flowrra}:*", "resetchannels")
        with pytest.raises(BrokerError, match=r"its ACL needs \+publish &\{flowrra\}:\* \("):
            await one_job(f"redis://ann:pw@127.0.0.1:{server.port}/0")
        assert client.dbsize() == 0
        client.execute_command("ACL", "SETUSER", "ann", "&{flowrra}:*", "-hset")
        with pytest.raises(BrokerError, match="does not allow this user the scripts, keys and channels"):
            await one_job(f"redis://ann:pw@127.0.0.1:{server.port}/0")


async def test_settings_that_lose_jobs_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    careless = ("--appendonly", "no", "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    with Server(tmp_path / "careless", *careless) as server:
        await one_job(server.url)
    assert "a restart loses jobs" in caplog.text
    assert "set maxmemory-policy noeviction, not allkeys-lru" in caplog.text
    caplog.clear()
    with Server(tmp_path / "careful", "--appendonly", "yes") as server:
        await one_job(server.url)
        with server.client() as client:
            client.config_set("appendonly", "no")
            client.execute_command("ACL", "SETUSER", "default", "-config")
        await one_job(server.url)
    assert not [record for record in caplog.records if record.name == "flowrra"]


async def test_a_cluster_sends_us_to_the_right_node(tmp_path: Path) -> None:
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
    with Server(tmp_path / "a", *options) as one, Server(tmp_path / "b", *options) as other:
        with one.client() as client, other.client() as owner:
            owner.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", other.port)
            await until(lambda: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"), "the cluster")
        async with opened(one.url) as broker:
            assert await ready_ids(broker, Job("a", "task")) == ["a"]
            with other.client() as owner:
                assert "ready:default" not in keys(owner, "flowrra")
                assert "running:w" in keys(owner, "flowrra")
            other.kill()
            with one.client() as client:
                client.execute_command("CLUSTER", "DELSLOTSRANGE", 0, 16383)
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            assert await ready_ids(broker, Job("b", "task")) == ["b"], "asked anew at the address of the URL"


async def test_a_cluster_without_slots_is_named_at_once(tmp_path: Path) -> None:
    with Server(tmp_path / "a", "--cluster-enabled", "yes") as server:
        async with asyncio.timeout(20):
            with pytest.raises(BrokerError, match="no node has this hash slot: assign it, redis-cli --cluster fix"):
                await RedisBroker(server.url).open()
