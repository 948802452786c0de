"""Stores of schedules when the server goes away, processes are killed, and many of them take at once."""

import asyncio
import contextlib
import json
import os
import urllib.parse
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flowrra import BackendError, Fired
from flowrra_extras.contracts.schedules import schedule
from flowrra_extras.scheduler import ScheduleStore, store_from_url
from tests.support.processes import Site
from tests.support.proxy import Proxy, proxy_to
from tests.support.services import in_mysql

NOW = 1_700_000_000.0
SQL_SERVERS = ["postgres_schema", "mysql_database"]
SERVERS = [*SQL_SERVERS, "redis_prefix"]


@pytest.fixture(params=SERVERS)
def server_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(request.param)
    return url


@pytest.fixture(params=["sqlite", *SERVERS])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/schedules.db"
    found: str = request.getfixturevalue(request.param)
    return found


@contextlib.asynccontextmanager
async def opened(url: str, timeout: float = 10.0) -> AsyncIterator[ScheduleStore]:
    store = store_from_url(url, timeout=timeout)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def through(proxy: Proxy, url: str) -> str:
    """The URL with the proxy's port."""
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=f"{parts.username or ''}@127.0.0.1:{proxy.port}").geturl()


# ---------------------------------------------------------------------------
# A server that goes away
# ---------------------------------------------------------------------------


async def test_a_server_that_was_cut_off_is_found_again(server_url: str) -> None:
    async with proxy_to(server_url) as proxy, opened(through(proxy, server_url), timeout=1.0) as store:
        await store.add(schedule("a", next_fire=NOW))
        for _ in range(2):
            await proxy.cut()
            for _ in range(3):
                with pytest.raises(BackendError, match=f"127.0.0.1:{proxy.port}"):
                    await store.next_fire()
            await proxy.start()
            assert await store.next_fire() == NOW


async def test_a_connection_that_was_lost_meanwhile_is_made_anew(server_url: str) -> None:
    """The server was restarted while nobody asked it anything."""
    async with proxy_to(server_url) as proxy, opened(through(proxy, server_url)) as store:
        await store.add(schedule("a", next_fire=NOW))
        await proxy.cut()
        await proxy.start()
        (taken,) = await store.take(now=NOW, lease=60, limit=1)
        assert taken.turn == 1
        assert proxy.accepted >= 2


async def test_a_server_that_says_nothing_is_not_waited_for(server_url: str) -> None:
    async with proxy_to(server_url) as proxy, opened(through(proxy, server_url), timeout=1.0) as store:
        await store.add(schedule("a", next_fire=NOW))
        proxy.silence()
        for _ in range(2):  # on the connection that there is, and on a new one
            with pytest.raises(BackendError, match=f"127.0.0.1:{proxy.port}.*(no answer in time|not answered)"):
                await store.take(now=NOW, lease=60, limit=1)
        proxy.speak()
        assert [one.id for one in await store.find()] == ["a"]


async def test_a_server_that_is_cut_off_in_a_transaction_undoes_it(server_url: str) -> None:
    async with (
        proxy_to(server_url) as proxy,
        opened(server_url) as other,
        opened(through(proxy, server_url), timeout=1.0) as store,  # for which a call looks for the server again
    ):
        await other.add(schedule("a", next_fire=NOW))
        for pause in (0.0, 0.0005, 0.001, 0.002, 0.004):
            taking = asyncio.ensure_future(store.take(now=NOW, lease=60, limit=1))
            await asyncio.sleep(pause)
            await proxy.cut()
            await asyncio.wait([taking])
            if taking.exception() is None:
                await other.change("a", {})  # it had come through: give it back
            assert await other.change("a", {"description": f"{pause}"})  # would wait for a lock that is held
            await proxy.start()
        assert [one.id for one in await store.take(now=NOW, lease=60, limit=1)] == ["a"]


async def test_what_is_said_to_be_removed_is_gone(server_url: str) -> None:
    """The connection ends before the server has received the call. Redis is then asked again by the same call."""
    async with proxy_to(server_url) as proxy, opened(through(proxy, server_url)) as store:
        await store.add(schedule("a", next_fire=NOW))
        proxy.silence()
        removing = asyncio.ensure_future(store.remove("a"))
        await proxy.holds.wait()
        await proxy.cut()
        await proxy.start()
        proxy.speak()
        await asyncio.wait([removing])
        if removing.exception() is not None:
            assert await store.remove("a")
        assert await store.find() == []


async def test_a_store_may_be_opened_before_its_server_is_there(server_url: str) -> None:
    async with proxy_to(server_url) as proxy:
        store = store_from_url(through(proxy, server_url), timeout=2.0)
        await proxy.cut()
        with pytest.raises(BackendError, match=str(proxy.port)):
            await store.open()
        await proxy.start()
        await store.open()
        assert await store.find() == []
        await store.close()


async def test_a_store_that_is_not_open_says_so(url: str) -> None:
    store = store_from_url(url)
    with pytest.raises(BackendError, match="not open"):
        await store.find()
    await store.close()
    await store.open()
    await store.close()
    with pytest.raises(BackendError, match="not open"):
        await store.find()
    async with opened(url) as again:
        assert await again.find() == []


async def test_messages_hold_no_password(server_url: str) -> None:
    parts = urllib.parse.urlsplit(server_url)
    wrong = parts._replace(netloc=f"nobody%40home:top%2Fsecret@{parts.hostname}:{parts.port}").geturl()
    with pytest.raises(BackendError, match=str(parts.hostname)) as caught:
        await store_from_url(wrong).open()
    if parts.scheme != "redis":
        assert "nobody@home" in str(caught.value)  # as the server heard it
    assert "secret" not in f"{caught.value!r} {caught.value.__cause__!r}"


async def test_a_password_is_decoded(mysql_database: str) -> None:
    parts = urllib.parse.urlsplit(mysql_database)
    user = parts.path[1:30]
    create = f"CREATE USER '{user}'@'%%' IDENTIFIED BY 'p@ss:w/rd%%?#'"
    await in_mysql(mysql_database, create, f"GRANT ALL ON {parts.path[1:]}.* TO '{user}'@'%%'")
    try:
        netloc = f"{user}:{urllib.parse.quote('p@ss:w/rd%?#', safe='')}@{parts.hostname}:{parts.port}"
        async with opened(parts._replace(scheme="mariadb", netloc=netloc).geturl()) as store:
            assert await store.find() == []
    finally:
        await in_mysql(mysql_database, f"DROP USER '{user}'@'%%'")


async def test_a_call_that_waits_while_the_store_is_closed_is_told(server_url: str) -> None:
    store = store_from_url(server_url)
    await store.open()
    calls = [asyncio.ensure_future(store.next_fire()) for _ in range(5)]
    await asyncio.sleep(0)
    await store.close()
    for answer in await asyncio.gather(*calls, return_exceptions=True):
        assert answer is None or (isinstance(answer, BackendError) and "not open" in str(answer))
    with pytest.raises(BackendError, match="not open"):
        await store.find()


# ---------------------------------------------------------------------------
# Many processes
# ---------------------------------------------------------------------------

FIRING = """
import asyncio, json, sys
from flowrra import Fired
from flowrra_extras.scheduler import store_from_url

NOW = 1_700_000_000.0

async def main(url, steps):
    store = store_from_url(url)
    await store.open()
    print(flush=True)
    sys.stdin.read()
    while await store.next_fire() is not None:
        for one in await store.take(now=NOW, lease=60.0, limit=3):
            print(json.dumps([one.id, one.turn, one.next_fire]))
            following = one.next_fire + 1 if one.next_fire + 1 < steps else None
            assert await store.advance([Fired(one.id, one.turn, following, one.next_fire, None)]) == [True]
    await store.close()

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


async def test_processes_that_take_at_once_fire_each_turn_once(url: str, tmp_path: Path) -> None:
    """They open it at once too: nobody has made the schema before them."""
    schedules, steps = [f"s{number}" for number in range(8)], 6
    with Site(tmp_path) as site:
        program = site.write("firing.py", FIRING)
        pipes = [os.pipe() for _ in range(3)]
        firing = [site.start(str(program), url, str(steps), stdin=ear) for ear, _ in pipes]
        for ear, _ in pipes:
            os.close(ear)
        for process in firing:
            await process.line()  # it is open
        async with opened(url) as store:
            for one in schedules:
                await store.add(schedule(one, next_fire=0.0))
        for _, mouth in pipes:
            os.close(mouth)  # go
        printed = [(await asyncio.to_thread(process.popen.communicate))[0] for process in firing]
        assert [await process.ends() for process in firing] == [0, 0, 0], [process.log for process in firing]
    fires = [tuple(json.loads(line)) for text in printed for line in text.splitlines()]
    expected = Counter((one, step + 1, float(step)) for one in schedules for step in range(steps))
    assert Counter(fires) == expected


# A script of Redis has no moment before its commit.
HALTING = """
import asyncio, sys
from flowrra_extras.scheduler import store_from_url

async def main(url, where):
    store = store_from_url(url)
    await store.open()
    if where == "before the commit":
        link = type(store._link)
        execute = link.execute

        async def halting(self, statement, values=()):
            if statement == "COMMIT":
                print(flush=True)
                await asyncio.sleep(60)
            return await execute(self, statement, values)

        link.execute = halting
    assert len(await store.take(now=1_700_000_000.0, lease=1.0, limit=1)) == 1
    print(flush=True)
    await asyncio.sleep(60)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("where", ["before the commit", "after the commit"])
async def test_what_a_killed_process_has_taken_comes_free(url: str, where: str, tmp_path: Path) -> None:
    if url.startswith("redis") and where == "before the commit":
        return
    with Site(tmp_path) as site:
        async with opened(url) as store:
            await store.add(schedule("a", next_fire=NOW))
            process = site.start(str(site.write("halting.py", HALTING)), url, where)
            assert await process.line(), process.log
            if where == "after the commit":
                assert await store.take(now=NOW, lease=60, limit=1) == []
            await process.kill()
            loop = asyncio.get_running_loop()
            deadline = loop.time() + 10  # the server has to notice that its client has gone
            while not (taken := await store.take(now=NOW, lease=60, limit=1)):
                assert loop.time() < deadline
                await asyncio.sleep(0.02)
            assert [(one.id, one.turn) for one in taken] == [("a", 1 if where == "before the commit" else 2)]
            assert await store.advance([Fired("a", taken[0].turn, None, NOW, "job")]) == [True]
