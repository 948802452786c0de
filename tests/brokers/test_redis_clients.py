"""How a RedisBroker gets to its server: Sentinel, several hosts, credentials that change, clients that users make."""

import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from redis.asyncio.sentinel import Sentinel

from flowrra import BrokerConfig, BrokerError, ConfigError, Flowrra, Job, WorkerInfo
from flowrra_extras.redis import RedisBroker
from tests.support.processes import until
from tests.support.redis_server import Server, free_port

pytestmark = pytest.mark.usefixtures("redis_url")
PATIENT = BrokerConfig(timeout=20.0)


async def one_job(broker: RedisBroker) -> None:
    """A job goes in and comes out, and who waits for it hears of its end."""
    task_id = secrets.token_hex(8)
    await broker.push([Job(task_id, "task", queue=task_id)], now=0.0)
    await broker.heartbeat(WorkerInfo("w", queues={task_id: 9}), lease=10, now=0.0)
    assert [job.id for job in await broker.claim(task_id, limit=9, worker="w", now=0.0)] == [task_id]


async def opened_for_one_job(broker: RedisBroker) -> None:
    await broker.open()
    try:
        await one_job(broker)
    finally:
        await broker.close()


@contextmanager
def sentinel_of(master: Server, folder: Path, *lines: str) -> Iterator[int]:
    """The port of a `redis-server --sentinel` that watches `master` by the name `mymaster`."""
    folder.mkdir()
    port, program = free_port(), shutil.which("redis-server")
    assert program is not None
    config = folder / "sentinel.conf"
    watched = (
        f"port {port}", f"dir {folder}", f"sentinel monitor mymaster 127.0.0.1 {master.port} 1",
        "sentinel down-after-milliseconds mymaster 500", "sentinel failover-timeout mymaster 2000", *lines,
    )  # fmt: skip
    config.write_text("\n".join(watched) + "\n")
    process = subprocess.Popen([program, str(config), "--sentinel"], stdout=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.mark.timeout(90)  # a failover takes some seconds
async def test_sentinel_finds_the_master_and_the_one_after_it(tmp_path: Path) -> None:
    with ExitStack() as stack:
        master = stack.enter_context(Server(tmp_path / "a"))
        replica = stack.enter_context(Server(tmp_path / "b", "--replicaof", "127.0.0.1", str(master.port)))
        port = stack.enter_context(sentinel_of(master, tmp_path / "s"))
        client = stack.enter_context(replica.client())
        await until(lambda: client.info("replication")["master_link_status"] == "up", "the replica")
        with redis.Redis(port=port) as watching:
            await until(lambda: int(watching.sentinel_master("mymaster")["num-slaves"]) == 1, "the sentinel")
        broker = RedisBroker(f"redis+sentinel://127.0.0.1:1,127.0.0.1:{port}/mymaster/0?client_name=jobs", PATIENT)
        await broker.open()
        try:
            await one_job(broker)
            with master.client() as first:
                assert "jobs" in [one["name"] for one in first.client_list()]
            master.kill()
            await one_job(broker)
        finally:
            await broker.close()
        assert client.info("replication")["role"] == "master"


async def test_sentinel_with_passwords_of_its_own(tmp_path: Path) -> None:
    with (
        Server(tmp_path / "a", "--requirepass", "secret") as master,
        sentinel_of(master, tmp_path / "s", "requirepass watch", "sentinel auth-pass mymaster secret") as port,
    ):
        place = f"127.0.0.1:{port}/mymaster/1"
        await opened_for_one_job(RedisBroker(f"redis+sentinel://:secret@{place}?sentinel_password=watch"))
        for url in (f"redis+sentinel://:secret@{place}", f"redis+sentinel://:other@{place}?sentinel_password=watch"):
            with pytest.raises(BrokerError) as caught:
                await opened_for_one_job(RedisBroker(url, BrokerConfig(timeout=2.0)))
            assert "secret" not in str(caught.value)
        with master.client() as client:
            assert list(client.info("keyspace")) == ["db1"]


async def test_of_several_hosts_one_that_writes_is_used(tmp_path: Path) -> None:
    with Server(tmp_path / "a") as first, Server(tmp_path / "b") as second:
        with first.client() as client:
            client.replicaof("127.0.0.1", second.port)
        await opened_for_one_job(RedisBroker(f"redis://127.0.0.1:1,127.0.0.1:{first.port},127.0.0.1:{second.port}/0"))


class Changing(redis.CredentialProvider):
    """Credentials whose password is another one each time that it is asked for."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.given: list[str] = []

    def get_credentials(self) -> tuple[str, str]:
        self.given.append(secrets.token_hex(8))
        with self._server.client() as client:
            client.execute_command(
                "ACL", "SETUSER", "ann", "resetpass", "on", f">{self.given[-1]}", "+@all", "~*", "&*"
            )
        return "ann", self.given[-1]


async def test_a_credential_provider_is_asked_for_each_connection(tmp_path: Path) -> None:
    with Server(tmp_path) as server, server.client() as client:
        provider = Changing(server)
        broker = RedisBroker(client=lambda: redis.asyncio.Redis(port=server.port, credential_provider=provider))
        await broker.open()
        try:
            await one_job(broker)
            client.client_kill_filter(_type="normal", skipme=True)
            await one_job(broker)
            assert len(set(provider.given)) >= 2
            assert {one["user"] for one in client.client_list()} == {"ann", "default"}
        finally:
            await broker.close()


@pytest.mark.parametrize("protocol", [2, 3])
async def test_an_app_on_a_client_of_the_users(tmp_path: Path, protocol: int) -> None:
    def make() -> "redis.asyncio.Redis":
        return redis.asyncio.Redis(port=server.port, db=3, client_name="mine", protocol=protocol, socket_timeout=0.1)

    with Server(tmp_path) as server, server.client() as client:
        app = Flowrra(broker=RedisBroker(client=make, prefix="billing"))

        @app.task
        async def double(number: int) -> int:
            return 2 * number

        async with app:
            assert (await app.wait_for_result(await app.submit(double, 21))).result == 42
            names = [one["name"] for one in client.client_list()]
            assert names.count("mine") >= 2
        assert list(client.info("keyspace")) == ["db3"]


async def test_a_sentinel_of_the_users(tmp_path: Path) -> None:
    with Server(tmp_path / "a") as master, sentinel_of(master, tmp_path / "s") as port:
        sentinels: Any = Sentinel  # which redis-py has not typed
        await opened_for_one_job(RedisBroker(client=lambda: sentinels([("127.0.0.1", port)]).master_for("mymaster")))


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("redis+sentinel://host/0/mymaster", "number of the database"),
        ("redis+sentinel://host", "name of the master"),
        ("redis+sentinel://host/mymaster?ssl_ca_certs=x", "unknown option 'ssl_ca_certs'"),
        ("redis://host/0?sentinel_password=x", "unknown option 'sentinel_password'"),
        ("redis://host/0?protocol=four", "number of the protocol"),
        ("rediss://host/0?ssl_ca_path=/nowhere", "no readable file /nowhere"),
    ],
)
def test_a_url_that_cannot_work_is_refused(url: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Flowrra.from_urls(url)


def test_a_broker_has_a_url_or_a_client() -> None:
    given: list[dict[str, Any]] = [{}, {"url": "redis://", "client": redis.asyncio.Redis}]
    for arguments in given:
        with pytest.raises(ConfigError, match="either a URL"):
            RedisBroker(**arguments)
