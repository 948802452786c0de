"""Starting, stopping, clients, plain code through app.sync, and stores of the user's own."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from flowrra import (
    Backend,
    BackendConfig,
    BackendError,
    BrokerConfig,
    BrokerError,
    Config,
    ConfigError,
    ExecutorNotRunningError,
    Flowrra,
    FlowrraError,
    TaskNotFoundError,
    TaskResult,
    TaskStatus,
)
from tests.support.apps import eventually, flowrra_threads, make_app, within

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["memory", "file"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Flowrra:
    url = {"memory": "memory://", "file": f"sqlite:///{tmp_path}/jobs.db"}[request.param]
    return with_double(make_app(url))


def with_double(app: Flowrra) -> Flowrra:
    @app.task(name="double")
    async def double(number: int) -> int:
        return number * 2

    return app


async def doubled(app: Flowrra, number: int) -> Any:
    task_id = await app.submit(app.registry["double"], number)
    return (await app.wait_for_result(task_id, timeout=20.0)).result


# ---------------------------------------------------------------------------
# Starting and stopping
# ---------------------------------------------------------------------------


async def test_is_running_between_start_and_stop(app: Flowrra) -> None:
    assert not app.is_running
    await app.start()
    assert app.is_running is True
    assert app.worker is not None
    assert [worker.id for worker in await app.broker.workers()] == [app.worker.id]
    await app.stop()
    assert not app.is_running


async def test_a_second_start_changes_nothing(app: Flowrra) -> None:
    await asyncio.gather(app.start(), app.start())
    worker = app.worker
    await app.start()
    assert app.worker is worker
    assert len(await app.broker.workers()) == 1
    await app.stop()


async def test_stop_may_be_called_twice_and_at_once(app: Flowrra) -> None:
    await app.start()
    await within(asyncio.gather(app.stop(), app.stop(wait=False), app.stop(timeout=1)))
    await app.stop()
    assert not app.is_running


async def test_stop_without_a_start_does_nothing(app: Flowrra) -> None:
    await app.stop()
    assert not app.is_running


async def test_stop_waits_for_running_jobs(app: Flowrra) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    @app.task(name="slow")
    async def slow() -> str:
        begun.set()
        await go.wait()
        return "done"

    await app.start()
    task_id = await app.submit(slow)
    await begun.wait()
    stopping = asyncio.create_task(app.stop())
    await asyncio.sleep(0)
    assert not stopping.done()
    go.set()
    await within(stopping)
    async with app.client():
        result = await app.get_result(task_id)
    assert result is not None
    assert (result.status, result.result) == (TaskStatus.SUCCESS, "done")


async def test_stop_without_waiting_hands_running_jobs_back(app: Flowrra) -> None:
    begun = asyncio.Event()

    @app.task(name="slow")
    async def slow() -> None:
        begun.set()
        await asyncio.Event().wait()

    await app.start()
    task_id = await app.submit(slow)
    await begun.wait()
    await within(app.stop(wait=False))
    async with app.client():
        job = await app.get_job(task_id)
    assert (job.status, job.attempt, job.failures, job.crashes) == (TaskStatus.PENDING, 1, 0, 0)
    assert [(attempt.outcome, attempt.error) for attempt in job.attempts] == [("release", "the worker stopped")]


async def test_after_a_stop_submit_says_what_to_do(app: Flowrra) -> None:
    async with app:
        pass
    for call in (app.submit(app.registry["double"], 1), app.get_result("x"), app.wait_for_result("x"), app.jobs()):
        with pytest.raises(ExecutorNotRunningError, match=r"has been stopped: start\(\) it again, or use .*client\(\)"):
            await call


async def test_a_stopped_app_can_be_started_again(app: Flowrra) -> None:
    async with app:
        assert await doubled(app, 1) == 2
    async with app:
        assert await doubled(app, 2) == 4


def test_an_app_can_be_started_on_one_loop_after_the_other(app: Flowrra) -> None:
    async def once(number: int) -> Any:
        async with app:
            return await doubled(app, number)

    assert [asyncio.run(once(number)) for number in range(3)] == [0, 2, 4]


async def test_waiting_for_a_result_while_the_app_closes_ends_with_an_error(app: Flowrra) -> None:
    async with app.client():
        task_id = await app.submit(app.registry["double"], 1)
        waiting = asyncio.create_task(app.wait_for_result(task_id))
        await eventually(lambda: is_waiting(app))
    with pytest.raises(FlowrraError, match=r"closed while this call was waiting|is not open"):
        await within(waiting)


def is_waiting(app: Flowrra) -> bool:
    broker: Any = app.broker
    return bool(broker.hub.waiting("job"))


async def test_nothing_is_left_after_a_stop(app: Flowrra) -> None:
    before = asyncio.all_tasks()

    @app.task(name="plain")
    def plain() -> None:
        """Runs in a thread."""

    async with app:
        await doubled(app, 1)
        await app.wait_for_result(await app.submit(plain), timeout=20.0)
        assert flowrra_threads()
    await eventually(lambda: not flowrra_threads())
    await eventually(lambda: asyncio.all_tasks() == before)


async def test_the_registry_maps_names_to_tasks(app: Flowrra) -> None:
    assert list(app.registry) == ["double"]
    assert app.registry["double"].name == "double"
    assert "triple" not in app.registry


@pytest.mark.parametrize("queue", [None, "another"])
async def test_a_task_registered_after_the_start_is_served(app: Flowrra, queue: str | None) -> None:
    async with app:

        @app.task(name="late", queue=queue)
        async def late() -> str:
            return "served"

        result = await app.wait_for_result(await app.submit(late), timeout=20.0)
        assert result.result == "served"
        assert app.worker is not None
        assert (queue or "default") in app.worker.queues


# ---------------------------------------------------------------------------
# Clients
# ---------------------------------------------------------------------------


async def test_a_client_runs_no_worker(app: Flowrra) -> None:
    async with app.client() as same:
        assert same is app
        assert not app.is_running
        assert await app.broker.workers() == []


async def test_a_client_inside_a_running_app_leaves_it_open(app: Flowrra) -> None:
    async with app:
        async with app.client():
            assert await doubled(app, 1) == 2
        assert await doubled(app, 2) == 4


async def test_clients_may_overlap(app: Flowrra) -> None:
    inner_left = asyncio.Event()

    async def inner() -> None:
        async with app.client():
            await app.submit(app.registry["double"], 1)
        inner_left.set()

    async with app.client():
        await asyncio.gather(inner(), inner())
        await inner_left.wait()
        await app.submit(app.registry["double"], 2)
        assert len(await app.jobs()) == 3


async def test_another_process_submits_and_this_one_runs(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    url = f"sqlite:///{tmp_path}/shop.db"
    code = """
        import asyncio, shop
        async def main():
            async with shop.app.client() as app:
                print(await app.submit(shop.double, 21))
        asyncio.run(main())
    """
    app = with_double(make_app(url))
    async with app:
        task_id = await asyncio.to_thread(run_python, dedent(code), tmp_path)
        assert (await app.wait_for_result(task_id, timeout=20.0)).result == 42


SHOP = """
from flowrra import Flowrra
app = Flowrra.from_urls("sqlite:///shop.db")
@app.task(name="double")
async def double(number: int) -> int:
    return number * 2
"""


def run_python(code: str, folder: Path, *options: str) -> str:
    """What the code prints, with warnings as errors; it must neither complain nor fail."""
    command = [sys.executable, "-W", "error", *options, "-c", f"import sys; sys.path[:0] = [{str(ROOT)!r}]\n{code}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=40)
    assert (done.stderr, done.returncode) == ("", 0), done.stderr
    return done.stdout.strip()


def test_two_loops_may_submit_without_a_client(tmp_path: Path) -> None:
    """A script that calls asyncio.run() for each submit, as a first program might."""
    (tmp_path / "shop.py").write_text(SHOP)
    code = """
        import asyncio, shop
        for number in range(3):
            asyncio.run(shop.app.submit(shop.double, number))
        print(len(asyncio.run(shop.app.jobs())))
    """
    assert run_python(dedent(code), tmp_path) == "3"


def test_a_loop_after_the_other_may_wait_for_results(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    code = """
        import asyncio, shop
        task_id = asyncio.run(shop.app.submit(shop.double, 3))
        for _ in range(2):
            try:
                asyncio.run(shop.app.wait_for_result(task_id, timeout=0.1))
            except TimeoutError as error:
                print(type(error).__name__)
    """
    assert run_python(dedent(code), tmp_path).split() == ["TaskTimeoutError", "TaskTimeoutError"]


def test_a_loop_that_ends_without_a_stop_leaves_no_thread(tmp_path: Path) -> None:
    app = with_double(make_app(f"sqlite:///{tmp_path}/jobs.db"))
    for _ in range(3):  # more rows than one take the writer thread
        asyncio.run(app.submit_many(app.registry["double"], [(1,), (2,)]))
        assert not flowrra_threads()
    assert len(app.sync.jobs()) == 6
    app.sync.close()
    assert not flowrra_threads()


# ---------------------------------------------------------------------------
# Plain code
# ---------------------------------------------------------------------------


def test_plain_code_can_run_any_coroutine_on_the_apps_loop(app: Flowrra) -> None:
    left = threading.Event()

    async def stay() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    async def look() -> list[Any]:
        await app.connect()
        staying.append(asyncio.create_task(stay()))
        return await app.broker.workers()

    staying: list[asyncio.Task[None]] = []
    assert app.sync.run(look()) == []
    assert not left.is_set()
    app.sync.close()
    assert left.is_set()  # what is left on the loop is cancelled with it
    assert not flowrra_threads()


def test_plain_code_submits_looks_and_changes(tmp_path: Path) -> None:
    app = with_double(make_app(f"sqlite:///{tmp_path}/jobs.db"))
    double = app.registry["double"]
    task_id = app.sync.submit(double, 1, priority=3)
    more = app.sync.submit_many(double, [(2,), (3,)])
    result = app.sync.get_result(task_id)
    assert result is not None
    assert result.status is TaskStatus.PENDING
    assert [job.id for job in app.sync.jobs(queue="default")] == [more[1], more[0], task_id]
    assert app.sync.explain(task_id) == "It is ready, but no live worker serves the queue default (0 alive)."
    assert app.sync.cancel(task_id)
    assert app.sync.requeue(task_id)
    app.sync.close()
    assert not flowrra_threads()


def test_plain_code_waits_for_a_worker_elsewhere(tmp_path: Path) -> None:
    """The worker belongs to another app object, as it would to another process."""
    url = f"sqlite:///{tmp_path}/jobs.db"
    app, other = with_double(make_app(url)), with_double(make_app(url))
    ready, over = threading.Event(), threading.Event()

    async def work() -> None:
        async with other:
            ready.set()
            await asyncio.to_thread(over.wait, 30)

    thread = threading.Thread(target=asyncio.run, args=[work()])
    thread.start()
    try:
        assert ready.wait(20)
        task_id = app.sync.submit(app.registry["double"], 4)
        assert app.sync.wait_for_result(task_id, timeout=20.0).result == 8
    finally:
        over.set()
        thread.join()
        app.sync.close()


async def test_a_thread_of_a_running_app_uses_its_loop(app: Flowrra) -> None:
    def view() -> Any:
        task_id = app.sync.submit(app.registry["double"], 5)
        return app.sync.wait_for_result(task_id, timeout=20.0).result

    async with app:
        assert await asyncio.to_thread(view) == 10
        assert not [thread for thread in flowrra_threads() if thread.name == "flowrra-sync"]


async def test_threads_may_use_it_at_once(app: Flowrra) -> None:
    def view(number: int) -> str:
        return app.sync.submit(app.registry["double"], number)

    ids = await asyncio.gather(*(asyncio.to_thread(view, number) for number in range(8)))
    assert len(set(ids)) == 8
    await asyncio.to_thread(app.sync.close)


def test_after_plain_code_the_app_can_be_started(tmp_path: Path) -> None:
    app = with_double(make_app(f"sqlite:///{tmp_path}/jobs.db"))
    task_id = app.sync.submit(app.registry["double"], 6)

    async def main() -> Any:
        async with app:
            return (await app.wait_for_result(task_id, timeout=20.0)).result

    assert asyncio.run(main()) == 12
    assert not [thread for thread in flowrra_threads() if thread.name == "flowrra-sync"]


def test_a_close_in_another_thread_ends_a_call_with_an_error_of_ours(tmp_path: Path) -> None:
    app = with_double(make_app(f"sqlite:///{tmp_path}/jobs.db"))
    under_way = threading.Event()

    async def stay() -> None:
        await app.connect()
        under_way.set()
        await asyncio.Event().wait()

    def close() -> None:
        under_way.wait(20)
        app.sync.close()

    thread = threading.Thread(target=close)
    thread.start()
    with pytest.raises(ExecutorNotRunningError, match="closed during this call"):
        app.sync.run(stay())
    thread.join()
    assert app.sync.jobs() == []  # it opens again
    app.sync.close()


def test_a_call_that_exits_leaves_the_next_one_its_loop(tmp_path: Path) -> None:
    app = with_double(make_app(f"sqlite:///{tmp_path}/jobs.db"))

    async def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit, match="3"):
        app.sync.run(leave())
    assert app.sync.jobs() == []
    app.sync.close()
    assert not flowrra_threads()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_after_calls_that_could_not_open_the_store(tmp_path: Path) -> None:
    """The thread of these calls is not in the child, which would wait for it for ever."""
    (tmp_path / "shop.py").write_text(SHOP.replace("shop.db", "later/shop.db"))
    code = """
        import os, signal, flowrra, shop
        try:
            shop.app.sync.jobs()
        except flowrra.BrokerError:
            os.mkdir("later")
        child = os.fork()
        if child:
            os.waitpid(child, 0)
        else:
            signal.alarm(10)
            print(shop.app.sync.jobs())
        """
    assert run_python(dedent(code), tmp_path) == "[]"


async def test_on_a_loop_it_is_refused(app: Flowrra) -> None:
    with pytest.raises(FlowrraError, match=r"would block the event loop .* await the call on the app itself"):
        app.sync.submit(app.registry["double"], 1)


def test_a_script_that_uses_it_ends_by_itself(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    assert run_python("import shop; print(len(shop.app.sync.submit(shop.double, 1)) > 10)", tmp_path) == "True"


async def test_an_app_belongs_to_one_loop_at_a_time(app: Flowrra) -> None:
    def elsewhere() -> None:
        asyncio.run(app.start())

    async with app:
        with pytest.raises(ConfigError, match=r"open on another event loop, in another thread: use app\.sync there"):
            await asyncio.to_thread(elsewhere)


# ---------------------------------------------------------------------------
# Backends
# ---------------------------------------------------------------------------


class OwnBackend(Backend):
    """What a user may write: two methods."""

    def __init__(self) -> None:
        self.kept: dict[str, TaskResult[Any]] = {}

    async def record(self, results: Sequence[TaskResult[Any]]) -> None:
        self.kept.update((result.task_id, result) for result in results)

    async def get(self, task_ids: Sequence[str]) -> list[TaskResult[Any] | None]:
        return [self.kept.get(task_id) for task_id in task_ids]


async def test_a_backend_of_the_users_own(tmp_path: Path) -> None:
    backend = OwnBackend()
    app = with_double(Flowrra(Config(broker=BrokerConfig(url=f"sqlite:///{tmp_path}/jobs.db")), backend=backend))
    async with app:
        task_id = await app.submit(app.registry["double"], 2)
        assert (await app.wait_for_result(task_id, timeout=20.0)).result == 4
        await eventually(lambda: task_id in backend.kept)
        waited = await within(backend.wait_for(task_id, timeout=20.0))
        assert (waited.result, waited.status, waited.attempts) == (4, TaskStatus.SUCCESS, 1)
        backend.kept["older"] = waited
        assert await app.get_result("older") is waited


async def test_a_backend_that_cannot_be_opened_leaves_no_broker_open(tmp_path: Path) -> None:
    class Away(OwnBackend):
        async def open(self) -> None:
            raise BackendError("the store of results is away")

    app = Flowrra(Config(broker=BrokerConfig(url=f"sqlite:///{tmp_path}/jobs.db")), backend=Away())
    with pytest.raises(BackendError, match="is away"):
        await app.start()
    with pytest.raises(BrokerError, match="is not open"):
        await app.broker.get(["x"])


async def test_the_default_wait_of_a_backend_looks_until_it_is_there() -> None:
    backend = OwnBackend()
    result = TaskResult[Any]("t", "double", TaskStatus.SUCCESS, 1)
    waiting = asyncio.create_task(backend.wait_for("t", timeout=20.0))
    await asyncio.sleep(0)
    await backend.record([result])
    assert await within(waiting) is result
    with pytest.raises(TimeoutError, match=r"job other has not finished within 0\.02 s"):
        await backend.wait_for("other", timeout=0.02)


async def test_a_backend_by_its_url(tmp_path: Path) -> None:
    config = Config(backend=BackendConfig(url=f"sqlite:///{tmp_path}/results.db"))
    async with with_double(Flowrra(config)) as app:
        task_id = await app.submit(app.registry["double"], 2)
        assert (await app.wait_for_result(task_id, timeout=20.0)).result == 4

        async def is_kept() -> bool:
            assert app.backend is not None
            (kept,) = await app.backend.get([task_id])
            return kept is not None and kept.result == 4

        await eventually(is_kept)
    async with Flowrra(config) as later:
        result = await later.get_result(task_id)
    assert result is not None
    assert result.result == 4


async def test_a_result_outlives_its_job_in_a_separate_backend(tmp_path: Path) -> None:
    config = Config(backend=BackendConfig(url=f"sqlite:///{tmp_path}/results.db"))
    async with with_double(Flowrra(config)) as app:
        ids = [await app.submit(app.registry["double"], number) for number in (2, 3)]
        for task_id in ids:
            await app.wait_for_result(task_id, timeout=20.0)
        await eventually(lambda: kept_in(app.backend, ids))
        await app.broker.delete(ids[:1])
        for timeout in (None, 0.0, 5.0):
            assert (await app.wait_for_result(ids[0], timeout)).result == 4
        found = await app.get_result(ids[0])
        assert found is not None
        assert found.result == 4
        assert await app.delete(ids[1])  # in both
        assert await app.get_result(ids[1]) is None
        for unknown in (ids[1], "another"):
            with pytest.raises(TaskNotFoundError, match=f"no job '{unknown}' is known here"):
                await app.wait_for_result(unknown, timeout=5.0)


async def kept_in(backend: Backend | None, ids: Sequence[str]) -> bool:
    return backend is not None and None not in await backend.get(ids)


async def test_a_backend_that_fails_loses_no_result(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(OwnBackend):
        async def record(self, results: Sequence[TaskResult[Any]]) -> None:
            raise ConnectionError("no route")

    async with with_double(Flowrra(backend=Broken())) as app:
        assert await doubled(app, 2) == 4
        await eventually(lambda: "did not take 1 results: ConnectionError: no route" in caplog.text)
