"""The same random story told to several brokers: after each step their jobs and their answers must be equal.

Unlike the model of `test_state_machine`, this knows nothing of what is right: it sees whatever differs, also in what
the model leaves out, such as errors, histories, moments and arguments.
"""

import dataclasses
import os
import random
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from flowrra import (
    FINISHED,
    Action,
    Attempt,
    Broker,
    FlowrraError,
    Job,
    JobFilter,
    Limit,
    Outcome,
    Progress,
    ResultOf,
    Step,
    TaskStatus,
    WorkerInfo,
    decode_arguments,
)
from flowrra_extras.migrate import adopt_jobs, hold_jobs, unhold_jobs
from flowrra_extras.testing import ManualClock

LEASE = 1_000.0  # far longer than a story takes, as some leases run by the clock of a server
QUEUES = ("a", "b")
WORKERS = ("w1", "w2", "w3")
OPERATIONS = {
    "push": 6, "claim": 7, "settle": 6, "beat": 3, "advance": 3, "crash": 1, "leave": 0.4, "cancel": 1.5, "requeue": 2,
    "hold": 0.7, "let_go": 1, "adopt": 0.5, "delete": 0.8, "purge": 0.4, "pause": 0.5, "report": 1, "look": 2,
    "declare": 0.4, "pause_key": 0.3, "step": 1,
}  # fmt: skip
LIMITS: Sequence[dict[str, Any]] = (
    {"concurrency": 1}, {"concurrency": 2}, {"rate": "1/s"}, {"rate": "2/s", "burst": 3}, {"turn": 2}, {},
    {"concurrency": 1, "rate": "1/s"}, {"concurrency": 3, "turn": 1},
)  # fmt: skip


@dataclasses.dataclass
class Side:
    """A broker, and what it has handed out."""

    broker: Broker
    let_pass: Callable[[float], Any]  # for leases that do not run on the clock of the test
    claimed: list[Job] = dataclasses.field(default_factory=list)
    workers: dict[str, WorkerInfo] = dataclasses.field(default_factory=dict)


class Story:
    """So many steps drawn by `seed`, on all sides at once."""

    def __init__(self, seed: int, sides: Sequence[Side], clock: ManualClock, *, has_limits: bool) -> None:
        self.rng = random.Random(seed)  # noqa: S311 (no secret: a story can be told again)
        self.sides = sides
        self.clock = clock
        self.seed = seed
        self.ids: list[str] = []
        self.told: list[str] = []  # what has been done
        self.has_limits = has_limits

    @property
    def now(self) -> float:
        return self.clock.time()

    async def tell(self, steps: int) -> None:
        for name in WORKERS:
            await self.beat(name)
        for step in range(steps):
            (name,) = self.rng.choices(list(OPERATIONS), list(OPERATIONS.values()))
            self.told.append(f"{step}: {name}")
            await getattr(self, name)()
            await self.compare()

    async def all(self, what: str, call: Callable[[Side], Awaitable[Any]]) -> Any:
        """The answer, or the error, that all sides give."""
        answers: list[Any] = []
        for side in self.sides:
            try:
                answers.append(plain(await call(side)))
            except FlowrraError as error:
                answers.append((type(error).__name__, str(error)))
        self.told[-1:] = [f"{self.told[-1]} {what} -> {answers[0]!r}"] if self.told else []
        self.equal(answers)
        return answers[0]

    def equal(self, values: Sequence[Any]) -> None:
        for side, value in zip(self.sides, values, strict=True):
            if value != values[0]:
                raise AssertionError(
                    f"story {self.seed}: {type(side.broker).__name__} has\n  {value!r}\nand "
                    f"{type(self.sides[0].broker).__name__}\n  {values[0]!r}\nafter\n"
                    + "\n".join(self.told[-int(os.environ.get("FLOWRRA_TOLD", "12")) :])
                )

    async def compare(self) -> None:
        states = [[seen(job) for job in await side.broker.find(JobFilter(), limit=1_000)] for side in self.sides]
        for jobs in zip(*states, strict=False):
            self.equal(jobs)
        self.equal(list(map(len, states)))

    # What happens ------------------------------------------------------------------------------

    def some(self, most: int = 3) -> list[str]:
        recent = self.ids[-20:]
        chosen = self.rng.sample(recent, min(len(recent), self.rng.randint(1, most)))
        return [*chosen, "no"] if not chosen or self.rng.random() < 0.5 else chosen

    def specs(self, number: int) -> list[dict[str, Any]]:
        rng = self.rng
        made: list[dict[str, Any]] = []
        known = list(self.ids)
        for _ in range(number):
            task_id = known.pop(rng.randrange(len(known))) if known and rng.random() < 0.08 else f"j{len(self.ids)}"
            older = [*self.ids[-10:], *(("nobody", task_id) if rng.random() < 0.04 else ())]
            parents = rng.sample(older, min(len(older), rng.choice((0, 0, 0, 1, 2, 3))))
            if task_id not in self.ids:
                self.ids.append(task_id)
            # Of several with a key, one that ends at once would leave it free for the next; not so on PostgreSQL.
            keys = (None, None, None, "k1", "k2") if number == 1 or not parents else (None,)
            made.append(
                {
                    "id": task_id, "task": rng.choice(("t", "u")), "queue": rng.choice(QUEUES),
                    "priority": rng.choice((0, 0, -1, 7)), "parents": tuple(parents),
                    "args": rng.choice(((), (1, "é"), ([1, {"x": (2,)}],), tuple(map(ResultOf, parents)))),
                    "kwargs": rng.choice(({}, {"k": None}, {"k": {1}})),
                    "unique": rng.choice(keys),
                    "due": rng.choice((None, None, None, self.now + 3, self.now, self.now - 5)),
                    "expires": rng.choice((None, None, None, None, self.now + 4)),
                    "overrides": rng.choice((None, None, {"timeout": 2.5})),
                }
            )  # fmt: skip
            if self.has_limits and rng.random() < 0.5:
                made[-1] |= {"limit": rng.choice(("one", "two")), "key": rng.choice((None, "k", "ключ"))}
        return made

    async def push(self) -> None:
        specs = self.specs(self.rng.choice((1, 1, 2, 4)))
        await self.all(repr(specs), lambda side: side.broker.push([Job(**dict(s)) for s in specs], now=self.now))

    async def claim(self) -> None:
        queue, limit, worker = self.rng.choice(QUEUES), self.rng.choice((1, 2, 5)), self.rng.choice(WORKERS)

        async def claim(side: Side) -> list[Any]:
            jobs = await side.broker.claim(queue, limit=limit, worker=worker, now=self.now)
            side.claimed += map(dataclasses.replace, jobs)  # a later attempt may change an object that is shared
            return [
                (j.id, j.attempt, j.failures, j.crashes, j.priority, j.due, arguments(j), j.parents, plain(j.steps))
                for j in jobs
            ]

        await self.all(f"{queue} {limit} {worker}", claim)

    async def settle(self) -> None:
        claimed = len(self.sides[0].claimed)
        if not claimed:
            return
        picks = [claimed - 1 - min(int(self.rng.expovariate(0.3)), claimed - 1) for _ in range(self.rng.randint(1, 5))]
        plans = [(pick, self.rng.choice("SSSFRrPLC")) for pick in picks]

        def settle(side: Side) -> Awaitable[list[bool]]:
            return side.broker.settle([self.outcome(side.claimed[pick], kind) for pick, kind in plans], now=self.now)

        await self.all(repr([(self.sides[0].claimed[pick].id, kind) for pick, kind in plans]), settle)
        await self.upkeep()

    def outcome(self, job: Job, kind: str) -> Outcome:
        match kind:
            case "S":
                return Outcome.succeed(job, (job.id, [1]), keep=job.attempt * 20.0)
            case "F":
                return Outcome.fail(job, "E: bäd", "line 1")
            case "R" | "r":
                return Outcome.retry_at(job, self.now + (2 if kind == "R" else -1), "E: again", "line 2")
            case "P" | "L":
                return Outcome.release(job, "why", None if kind == "P" else self.now + 1)
        return Outcome.cancel(job, "asked to")

    async def beat(self, worker: str = "", lease: float = LEASE) -> None:
        name = worker or self.rng.choice(WORKERS)

        async def beat(side: Side) -> Any:
            info = side.workers.setdefault(name, WorkerInfo(name, "host", os.getpid(), dict.fromkeys(QUEUES, 9)))
            notices = await side.broker.heartbeat(info, lease=lease, now=self.now)
            lists = sorted(notices.cancelled), sorted(notices.paused), sorted(notices.lost_workers)
            return notices.lapsed, notices.suspects, *lists

        await self.all(name, beat)

    async def advance(self, seconds: float = 0.0) -> None:
        """Time passes, and whoever claims next puts in order what that has changed."""
        seconds = seconds or self.rng.choice((0.5, 1.0, 2.0, 4.0))
        self.clock.advance(seconds)
        for side in self.sides:
            side.let_pass(seconds)
        await self.upkeep()

    async def upkeep(self) -> None:
        await self.beat("upkeep")
        for side in self.sides:
            await side.broker.claim("upkeep", limit=1, worker="upkeep", now=self.now)

    async def crash(self) -> None:
        """One worker falls silent, as the others see after a while."""
        silent = self.rng.choice(WORKERS)
        for _ in range(3):
            for name in (*WORKERS, "upkeep"):
                if name != silent:
                    await self.beat(name)
            await self.advance(0.6 * LEASE)

    async def leave(self) -> None:
        await self.beat(lease=0.0)

    async def cancel(self) -> None:
        task_id, by = self.some()[0], self.rng.choice((None, "Ada"))
        await self.all(task_id, lambda side: side.broker.cancel(task_id, now=self.now, by=by))

    async def requeue(self) -> None:
        ids, by = self.some(), self.rng.choice((None, "Бо"))
        await self.all(repr(ids), lambda side: side.broker.requeue(ids, now=self.now, by=by))

    async def hold(self) -> None:
        ids = self.some()
        await self.all(repr(ids), lambda side: hold_jobs(side.broker, ids, by="a move", now=self.now))

    async def let_go(self) -> None:
        jobs = await self.sides[0].broker.find(JobFilter(), limit=1_000)
        held = [job.id for job in jobs if job.status is TaskStatus.BLOCKED and job.worker]
        awaited = {parent for job in jobs if job.status not in FINISHED for parent in job.parents}
        gone = self.rng.random() < 0.3
        ids = [task_id for task_id in dict.fromkeys((*held, *self.some(1))) if not (gone and task_id in awaited)]
        await self.all(
            f"{ids} {gone}", lambda side: unhold_jobs(side.broker, ids, by="a move", gone=gone, now=self.now)
        )

    async def adopt(self) -> None:
        past = (Attempt(1, "w9", 5.0, 6.0, "crash", "x"),)
        specs = [{**spec, "submitted": 4.0} for spec in self.specs(self.rng.randint(1, 2))]
        if self.rng.random() < 0.5:
            steps = (Step("two", '"é"', 5.0, 5.5), Step("one", "1", 5.5, 6.0))
            crashes = self.rng.choice((0, 1, 2))
            specs[0] |= {"attempt": 1, "crashes": crashes, "history": past, "error": "x", "steps": steps}
        for spec in specs:
            spec["parents"] = tuple(parent for parent in spec["parents"] if parent != spec["id"])
        await self.all(
            repr(specs),
            lambda side: adopt_jobs(side.broker, [Job(**dict(s)) for s in specs], by="a move", now=self.now),
        )

    async def delete(self) -> None:
        ids = self.some()
        await self.all(repr(ids), lambda side: side.broker.delete(ids))

    async def purge(self) -> None:
        before = self.now + self.rng.choice((0.0, 30.0, 1e6))
        await self.all("", lambda side: side.broker.purge(before, 100))

    async def pause(self) -> None:
        queue, paused = self.rng.choice(QUEUES), self.rng.random() < 0.3
        await self.all(f"{queue} {paused}", lambda side: side.broker.set_queue(queue, paused=paused))
        await self.all("", lambda side: side.broker.paused())

    async def declare(self) -> None:
        limit = Limit(name=self.rng.choice(("one", "two")), **self.rng.choice(LIMITS))
        if self.has_limits:
            await self.all(str(limit), lambda side: side.broker.set_limit(limit, now=self.now))
            await self.upkeep()

    async def pause_key(self) -> None:
        names = self.rng.sample(("one:k", "two:k", "one:", "two:ключ"), 2)
        action: Action = self.rng.choice(("pause", "resume", "resume"))
        if self.has_limits:
            await self.all(f"{names} {action}", lambda side: side.broker.change(names, action, now=self.now))
            await self.all("", lambda side: side.broker.limits())
            await self.all("", lambda side: side.broker.limit_states(names))

    async def report(self) -> None:
        progress = Progress(self.rng.randint(1, 9), 9.0, "ä")
        running = min(len(side.claimed[-4:]) for side in self.sides)

        async def tell(side: Side) -> list[bool]:
            jobs = side.claimed[-running:]
            return await side.broker.settle([Outcome.report(j, j.attempt, progress) for j in jobs], now=self.now)

        if running:
            await self.all(str(running), tell)

    async def step(self) -> None:
        names = self.rng.sample(("one", "two", "drei", "четыре"), 2)
        picks = [self.rng.randint(1, 4) for _ in names]
        steps = [Step(name, f'"{self.now}"', self.now - 1, self.now) for name in names]

        async def finish(side: Side) -> list[bool]:
            chosen = [(side.claimed[-pick], step) for pick, step in zip(picks, steps, strict=True)]
            return await side.broker.settle([Outcome.done(j, j.attempt, step) for j, step in chosen], now=self.now)

        if len(self.sides[0].claimed) >= max(picks):
            await self.all(f"{names} {picks}", finish)

    async def look(self) -> None:
        rng = self.rng
        which: dict[str, Any] = {
            "ids": rng.choice((None, None, self.some(6))), "task": rng.choice((None, "t")),
            "queue": rng.choice((None, *QUEUES)), "worker": rng.choice((None, None, None, *WORKERS, "a move")),
            "status": rng.choice((None, frozenset(rng.sample(list(TaskStatus), rng.randint(0, 4))))),
            "error": rng.choice((None, None, "e: ", "why", "E: a")),
            "parent": rng.choice((None, None, None, *self.some(1))),
        }  # fmt: skip
        limit, oldest_first, ids = rng.choice((2, 50)), rng.random() < 0.5, self.some(6)

        async def find(side: Side) -> list[str]:
            jobs = await side.broker.find(JobFilter(**which), limit=limit, oldest_first=oldest_first)
            if jobs:
                after = jobs[0].seq
                jobs += await side.broker.find(JobFilter(**which), limit=2, after=after, oldest_first=oldest_first)
            return [job.id for job in jobs]

        await self.all(repr(which), find)
        await self.all(repr(which), lambda side: side.broker.counts(JobFilter(**which)))
        await self.all("", lambda side: side.broker.counts())

        async def get(side: Side) -> list[Any]:
            results = [plain(result) for result in await side.broker.get(ids)]
            return [result and {**result, "error": re.sub("its parent .*", "its parent", str(result["error"]))}
                    for result in results]  # fmt: skip

        await self.all(repr(ids), get)


def seen(job: Job) -> dict[str, Any]:
    """A job without what a store may choose: its `seq`, and where its arguments are kept."""
    values = {f.name: plain(getattr(job, f.name)) for f in dataclasses.fields(job) if f.compare}
    for name in ("seq", "payload", "args", "kwargs"):
        del values[name]
    if len(job.parents) > 1 and job.status is TaskStatus.CANCELLED and (job.error or "").startswith("its parent "):
        values["error"] = "its parent"  # which of them ended first is told of one call only
    return {**values, "arguments": arguments(job)}


def arguments(job: Job) -> str:
    args, kwargs = decode_arguments(job)
    return repr((list(args), dict(kwargs)))


def plain(value: Any) -> Any:
    """An answer as it can be compared; what a claim begins differs by microseconds on PostgreSQL."""
    if isinstance(value, float):
        return round(value, 3)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value
