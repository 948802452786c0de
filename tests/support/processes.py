"""Real processes for the tests: workers and scripts on one store, in a folder of their own.

A `Site` is that folder. It holds `app.py`, which begins with PRELUDE, the store `jobs.db` unless
the jobs are to be elsewhere, a log for each process, and the file `runs`, to which every run of a task
adds a line. Nothing here sleeps a fixed time: tests wait on conditions, each with a deadline.
"""

import asyncio
import contextlib
import inspect
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import flowrra
from flowrra import FINISHED, Flowrra, Job, Task, TaskStatus
from tests.support.postgres_server import clean_schema
from tests.support.redis_server import clean
from tests.support.services import POSTGRES_URL, REDIS_URL, require

ROOT = Path(flowrra.__file__).parent

PRELUDE = """
import asyncio, os, signal, sys, time
from pathlib import Path
import flowrra
from flowrra import Config, Flowrra, current_job

HERE = Path(__file__).parent
config = Config.from_env()
config.broker.url = "URL"
app = Flowrra(config)


def note(name, text):
    file = os.open(HERE / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{text}\\n".encode())
    os.close(file)


@app.task
async def nap(seconds):
    note("runs", current_job().id)
    await asyncio.sleep(seconds)
    return os.getpid()
"""


# Seconds that no wait takes, on a busy machine neither: less than the 30 s of a drain, or of waiting for a server.
PATIENCE = 25.0


async def until(
    condition: Callable[[], bool | Awaitable[bool]], what: str, *, within: float = PATIENCE, pause: float = 0.02
) -> None:
    """Look each `pause` whether `condition` holds; fail if it does not within so many seconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    while True:
        holds = condition()
        if await holds if inspect.isawaitable(holds) else holds:
            return
        assert loop.time() < deadline, f"not within {within:g} s: {what}"
        await asyncio.sleep(pause)


class Process:
    """A process of a site. What it writes to stderr is its log."""

    def __init__(self, popen: subprocess.Popen[bytes], log: Path) -> None:
        self.popen = popen
        self._log = log

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def is_over(self) -> bool:
        return self.popen.poll() is not None

    def send(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    async def line(self) -> bytes:
        """The next line that it prints; empty if it ends without one."""
        assert self.popen.stdout is not None
        return await asyncio.to_thread(self.popen.stdout.readline)

    async def says(self, text: str, *, times: int = 1, within: float = PATIENCE) -> None:
        """Wait until the log holds `text` so often."""
        await until(lambda: self.log.count(text) >= times or self.is_over, f"{text!r} in the log", within=within)
        assert self.log.count(text) >= times, f"no {text!r} in the log of a process that ended:\n{self.log}"

    async def ends(self, *, within: float = PATIENCE) -> int:
        """Wait for its end; the exit status, or minus the number of the signal that ended it."""
        await until(lambda: self.is_over, f"the end of process {self.pid}", within=within)
        return self.popen.wait()

    async def kill(self) -> None:
        """`kill -9`, and wait until it is gone."""
        self.send(signal.SIGKILL)
        await self.ends()


class Site:
    """A folder with an app, its store, and the processes started there, which end with it."""

    def __init__(
        self,
        folder: Path,
        app: str = "",
        *,
        store: Path | None = None,
        url: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.store = store or folder / "jobs.db"
        self.url = url or f"sqlite:///{self.store}"
        self._env = env or {}
        self._processes: list[Process] = []
        self.write("app.py", PRELUDE.replace("URL", self.url) + app)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            if not process.is_over:
                process.send(signal.SIGKILL)
            with process.popen:  # closes its pipes and waits for it
                pass

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def lines(self, name: str) -> list[str]:
        """What tasks have noted under this name."""
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def runs(self) -> Counter[str]:
        """How often each job has begun to run."""
        return Counter(self.lines("runs"))

    # Processes ---------------------------------------------------------------------------------

    def start(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        program: Sequence[str] = (sys.executable,),
        stdin: int | None = None,
    ) -> Process:
        """Start Python with these arguments in the folder; what it prints can be read from its pipe."""
        log = self.folder / f"{len(self._processes)}.log"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        environment.update({**self._env, **(env or {})})
        with log.open("wb") as stderr:
            popen = subprocess.Popen(
                [*program, *arguments],
                cwd=self.folder,
                env=environment,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        process = Process(popen, log)
        self._processes.append(process)
        return process

    def begin_worker(self, *options: str, env: Mapping[str, str] | None = None) -> Process:
        """Start `python -m flowrra worker app:app` and do not wait for it."""
        return self.start("-m", "flowrra", "worker", "app:app", *options, env=env)

    async def worker(self, *options: str, env: Mapping[str, str] | None = None) -> Process:
        """Start a worker and wait until it is ready."""
        process = self.begin_worker(*options, env=env)
        await process.says("worker ready")
        return process

    def script(self, text: str, *, env: Mapping[str, str] | None = None) -> Process:
        """Start a program beside the app."""
        path = self.write(f"script{len(self._processes)}.py", text)
        return self.start(str(path), env=env)

    # The store ---------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Flowrra]:
        """A look into the store from the process of the tests; stand-ins make it a producer."""
        app = Flowrra.from_urls(self.url)
        async with app.client():
            yield app


SHORT_LEASE = {"FLOWRRA_EXECUTOR_LEASE": "1.0", "FLOWRRA_EXECUTOR_HEARTBEAT": "0.3"}
# Where no worker dies: as many heartbeats, but a lease that a busy machine does not let run out.
LONG_LEASE = {"FLOWRRA_EXECUTOR_LEASE": "25.0", "FLOWRRA_EXECUTOR_HEARTBEAT": "0.3"}


@contextlib.contextmanager
def site_on(broker: str, folder: Path, app: str = "") -> Iterator[Site]:
    """A site whose jobs are in a SQLite file or on a server, where a worker is dead when its lease has run out."""
    with contextlib.ExitStack() as stack:
        url = None
        if broker == "redis":
            _, prefix = stack.enter_context(clean(require(REDIS_URL)))
            url = f"{REDIS_URL}?prefix={prefix}"
        if broker == "postgresql":
            _, schema = stack.enter_context(clean_schema(require(POSTGRES_URL)))
            url = f"{POSTGRES_URL}?schema={schema}"
        yield stack.enter_context(Site(folder, app, url=url, env=SHORT_LEASE if url else None))


def stand_in(app: Flowrra, name: str, **options: Any) -> Task[..., Any]:
    """A task that is submitted here and runs in a worker, where the real one has that name."""

    async def run(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a stand-in is not run")

    known = app.registry.get(name)
    return app.task(name=name, **options)(run) if known is None else known


async def all_jobs(app: Flowrra) -> list[Job]:
    """Every job, the first submitted first."""
    return (await app.jobs(limit=100_000))[::-1]


async def count(app: Flowrra, *statuses: TaskStatus) -> int:
    """How many jobs are in one of these states."""
    counts = await app.broker.counts()
    return sum(number for (_, status), number in counts.items() if status in statuses)


async def all_finished(app: Flowrra, *, within: float = PATIENCE) -> list[Job]:
    """Wait until no job is unfinished, and return them."""

    async def nothing_is_left() -> bool:
        return await count(app, *(frozenset(TaskStatus) - FINISHED)) == 0

    # To count hundreds of jobs more often takes the CPU that the workers need.
    await until(nothing_is_left, "the end of all jobs", within=within, pause=0.1)
    return await all_jobs(app)


async def some_succeeded(app: Flowrra, number: int, *, within: float = PATIENCE) -> None:
    """Wait until so many jobs have succeeded."""

    async def enough() -> bool:
        return await count(app, TaskStatus.SUCCESS) >= number

    await until(enough, f"{number} successes", within=within)


async def some_running(app: Flowrra, number: int, *, within: float = PATIENCE) -> None:
    """Wait until so many jobs are running."""

    async def enough() -> bool:
        return await count(app, TaskStatus.RUNNING) >= number

    await until(enough, f"{number} running jobs", within=within)


def statuses(jobs: Sequence[Job]) -> Counter[TaskStatus]:
    return Counter(job.status for job in jobs)
