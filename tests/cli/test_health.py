"""What a worker tells probes: that its loop turns, that it claims jobs, and the metrics."""

import asyncio
import re
import signal
import socket
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from flowrra import ConfigError, Flowrra
from flowrra_extras.commands import health
from tests.support import redis_server
from tests.support.processes import SHORT_LEASE, Process, Site, stand_in, until


async def ask(process: Process, path: str, *, number: int = 1) -> tuple[int, str]:
    """The status and the text of an answer of the process that has said where it answers."""
    port = re.findall(r"answered on http://127\.0\.0\.1:(\d+)/live", process.log)[number - 1]
    return await asyncio.to_thread(fetch, f"http://127.0.0.1:{port}{path}")


def fetch(url: str, method: str = "GET") -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method)) as answer:  # noqa: S310 (our own)
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def test_a_worker_says_that_it_lives_and_claims(tmp_path: Path) -> None:
    with Site(tmp_path) as site:
        worker = await site.worker("--health", "0")
        async with site.client() as app:
            await app.wait_for_result(await app.submit(stand_in(app, "app.nap"), 0), timeout=20)
            assert await ask(worker, "/live") == (200, "the event loop runs\n")
            assert await ask(worker, "/ready") == (200, "the worker claims jobs\n")
            status, text = await ask(worker, "/metrics")
            assert status == 200
            assert 'flowrra_jobs{queue="default",state="success"} 1' in text.splitlines()
            assert (await ask(worker, "/"))[0] == 404
            await app.submit(stand_in(app, "app.nap"), 60)
            await until(lambda: len(site.lines("runs")) == 2, "the job runs")
            worker.send(signal.SIGTERM)
            await worker.says("stopping")
            assert await ask(worker, "/ready") == (503, "the worker is draining\n")
            assert (await ask(worker, "/live"))[0] == 200
            worker.send(signal.SIGTERM)
            assert await worker.ends() == 0


async def test_a_store_that_is_away_makes_no_worker_dead(tmp_path: Path) -> None:
    with redis_server.Server(tmp_path / "redis") as server, Site(tmp_path, url=server.url, env=SHORT_LEASE) as site:
        worker = await site.worker("--health", "0")
        server.kill()

        async def ready() -> int:
            return (await ask(worker, "/ready"))[0]

        async def is_cut_off() -> bool:
            return await ready() == 503

        async def is_back() -> bool:
            return await ready() == 200

        await until(is_cut_off, "the lease runs out")
        assert "the store is unreachable" in (await ask(worker, "/ready"))[1]
        assert (await ask(worker, "/live"))[0] == 200
        server.start()
        await until(is_back, "the lease is renewed")


def test_a_blocked_loop_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "BLOCKED", 0.5)
    app = Flowrra.from_urls()
    begun, released = threading.Event(), threading.Event()

    @app.task
    async def block() -> None:
        await asyncio.sleep(0.1)  # so that its submission has returned
        begun.set()
        released.wait(20)

    probes = health.Probes(app)
    assert probes.live()[:2] == (200, "the worker is starting or stopping\n")
    assert probes.ready()[:2] == (503, "the worker has not started yet, or has stopped\n")
    assert probes.metrics()[0] == 503
    app.sync.run(app.start())
    try:
        job = app.sync.submit(block)
        assert begun.wait(20)
        assert probes.live()[:2] == (503, "the event loop has been blocked for 0.5 s\n")
        released.set()
        app.sync.wait_for_result(job, 10)
        assert probes.live()[0] == 200
    finally:
        app.sync.run(app.stop())
        app.sync.close()
    assert probes.metrics()[0] == 503


async def test_each_process_of_a_supervisor_has_a_port(tmp_path: Path) -> None:
    port = redis_server.free_port(2)
    with Site(tmp_path) as site:
        worker = site.begin_worker("--health", str(port), "--processes", "2")
        await worker.says("worker ready", times=2)
        found = sorted(map(int, re.findall(r"answered on http://127\.0\.0\.1:(\d+)/", worker.log)))
        assert found == [port, port + 1]
        assert [await ask(worker, "/ready", number=number) for number in (1, 2)] == [
            (200, "the worker claims jobs\n")
        ] * 2


async def test_a_port_that_is_taken_is_said_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, Site(tmp_path) as site:
        worker = site.begin_worker("--health", str(taken.getsockname()[1]))
        assert await worker.ends() == 2
        assert "--health cannot listen on 127.0.0.1, port" in worker.log


def test_the_head_of_an_answer_and_a_client_that_says_nothing() -> None:
    server = health.serve(Flowrra.from_urls(), "127.0.0.1:0")
    try:
        host, port = server.server_address[:2]
        with socket.create_connection((str(host), port)):  # it holds up nobody
            assert fetch(f"http://127.0.0.1:{port}/live", "HEAD") == (200, "")
    finally:
        server.shutdown()
        server.server_close()


def test_an_address_is_a_port_or_a_host_with_one() -> None:
    assert health.address_of("8081") == ("127.0.0.1", 8081)
    assert health.address_of("0.0.0.0:8081") == ("0.0.0.0", 8081)  # noqa: S104 (only read)
    assert health.address_of("[::]:80") == ("::", 80)
    for wrong in ("", "http", "8081/live", "host:", "70000", "-1"):
        with pytest.raises(ConfigError, match=r"--health takes a port or HOST:PORT"):
            health.address_of(wrong)
