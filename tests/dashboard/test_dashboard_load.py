"""What keeps the dashboard light on a big store: figures that are shared, searches that end in time."""

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from flowrra import Broker, Flowrra, Job, JobFilter
from flowrra_extras.dashboard import job_search, jobs, store
from flowrra_extras.dashboard.job_search import Search, find_jobs
from flowrra_extras.dashboard.store import Fresh
from tests.support.dashboards import dashboard, shop

# Figures that are shared ------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """No search is due again by itself, however slow the machine is."""
    monkeypatch.setattr(store, "LEAST_REST", 600.0)


class Slow:
    """Something that takes as long to find as the test wants."""

    def __init__(self) -> None:
        self.looks = 0
        self.may_end = asyncio.Event()

    async def __call__(self) -> int:
        self.looks += 1
        number = self.looks
        await self.may_end.wait()
        return number


async def test_many_who_ask_cause_one_search() -> None:
    find = Slow()
    figure = Fresh(find)
    asked = [asyncio.create_task(figure.get()) for _ in range(50)]
    await asyncio.sleep(0)
    find.may_end.set()
    assert await asyncio.gather(*asked) == [1] * 50


async def test_an_older_value_is_shown_while_a_newer_one_is_sought(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PATIENCE", 0.001)
    find = Slow()
    figure = Fresh(find)
    find.may_end.set()
    assert await figure.get() == 1
    find.may_end.clear()
    figure.forget()
    assert await figure.get() == 1
    assert await figure.get() == 1
    assert find.looks == 2
    find.may_end.set()
    await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))
    assert await figure.get() == 2


async def test_a_value_that_is_too_old_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "REST", -2.0)  # however long the first search takes here
    find = Slow()
    figure = Fresh(find, rest=0.0)
    find.may_end.set()
    assert await figure.recent(600.0) == 1
    find.may_end.clear()
    assert await figure.recent(600.0) == 1  # a newer one is being sought
    late = asyncio.create_task(figure.recent(-1.0))
    await asyncio.sleep(0)
    assert not late.done()
    find.may_end.set()
    assert await late == 2


async def test_a_search_that_fails_is_told_to_who_wants_a_recent_value() -> None:
    answers: list[Any] = [7, OSError("away"), 8]

    async def find() -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return int(answer)

    figure = Fresh(find, rest=0.0)
    assert await figure.recent(600.0) == 7
    figure.forget()
    with pytest.raises(OSError, match="away"):
        await figure.recent(600.0)
    figure.forget()
    assert await figure.recent(600.0) == 8


async def test_a_search_rests_before_the_next_one() -> None:
    find = Slow()
    figure = Fresh(find)
    find.may_end.set()
    await figure.get()
    for _ in range(20):
        await figure.get()
    assert find.looks == 1


async def test_a_glance_does_not_wait_for_what_takes_long() -> None:
    find = Slow()
    figure = Fresh(find)
    assert await figure.glance() is None
    find.may_end.set()
    assert await figure.get() == 1
    assert await figure.glance() == 1


async def test_a_search_that_fails_is_told_if_there_is_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    answers: list[Any] = [OSError("away"), 7, *[OSError("away again")] * 5]

    async def find() -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return int(answer)

    figure = Fresh(find)
    with pytest.raises(OSError, match="away"):
        await figure.get()
    assert await figure.get() == 7
    figure.forget()
    for _ in range(5):
        assert await figure.get() == 7
    assert answers == []
    assert caplog.text.count("older figures: away again") == 1


async def test_closing_ends_the_search() -> None:
    find = Slow()
    figure = Fresh(find)
    assert await figure.glance() is None
    await figure.close()
    assert len(asyncio.all_tasks()) == 1


# Searches that end in time ----------------------------------------------------------------------


async def filled(app: Flowrra, number: int) -> list[str]:
    return list(await app.submit_many(app.registry["shop.greet"], ((f"guest {n}",) for n in range(number))))


def named(name: str) -> Search:
    return Search(tests=[lambda job: job.args == (name,) or name in (job.payload or "")])


async def test_a_search_without_time_says_how_far_it_came_and_goes_on(tmp_path: Path) -> None:
    app = shop(f"sqlite:///{tmp_path / 'jobs.db'}")
    async with app.client():
        ids = await filled(app, 1_000)
        wanted, after, goes, found = named("guest 3"), None, 0, []
        while True:
            part = await find_jobs(app.broker, wanted, limit=10, after=after, seconds=0.0, patience=0.0)
            found += [job.id for job in part.jobs]
            goes += 1
            if part.after is None:
                break
            assert part.searched_to is not None or len(part.jobs) == 10
            assert after is None or part.after < after
            after = part.after
        assert goes > 2
        assert len(found) == 111  # guest 3, 30 to 39, 300 to 399
        assert found[-1] == ids[3]


async def test_a_page_ends_behind_its_last_job(tmp_path: Path) -> None:
    app = shop(f"sqlite:///{tmp_path / 'jobs.db'}")
    async with app.client():
        ids = await filled(app, 300)
        first = await find_jobs(app.broker, named("guest"), limit=250, seconds=60.0)
        rest = await find_jobs(app.broker, named("guest"), limit=250, after=first.after, seconds=60.0)
        assert [job.id for job in (*first.jobs, *rest.jobs)] == ids[::-1]
        assert (rest.after, rest.searched_to) == (None, None)


class Sparse(Broker):
    """A store of many jobs, a second between each two, in whose numbers there are gaps. It notes how it is asked."""

    def __init__(self, jobs: int) -> None:
        self.looks: list[JobFilter] = []
        self._jobs = [Job(str(n), "shop.greet", seq=n * 1_000 + 1, submitted=float(n)) for n in range(jobs)]

    async def find(
        self, which: JobFilter, *, limit: int = 100, after: int | None = None, oldest_first: bool = False
    ) -> list[Job]:
        self.looks.append(which)
        found = [job for job in self._jobs if which.matches(job) and (after is None or job.seq < after)]
        return found[::-1][:limit]


async def ids_of(found: Callable[[], Awaitable[job_search.Found]]) -> list[str]:
    return [job.id for job in (await found()).jobs]


class Late(Sparse):
    """A store whose every look takes so long."""

    seconds = 0.01

    async def find(
        self, which: JobFilter, *, limit: int = 100, after: int | None = None, oldest_first: bool = False
    ) -> list[Job]:
        await asyncio.sleep(self.seconds)
        return await super().find(which, limit=limit, after=after, oldest_first=oldest_first)


async def test_a_search_goes_on_until_it_has_found_something() -> None:
    """An empty page with a place to go on from is taken for "none"."""
    store = Late(3)
    store._jobs[0].seq, store._jobs[1].seq, store._jobs[2].seq = 1, 2, 100_000
    wanted = Search(tests=[lambda job: job.id in ("0", "1")])
    first = await find_jobs(store, wanted, limit=1, seconds=0.0, patience=60.0)
    assert [job.id for job in first.jobs] == ["1"]
    assert await ids_of(lambda: find_jobs(store, wanted, limit=5, after=first.after, seconds=0.0)) == ["0"]
    given_up = await find_jobs(store, wanted, limit=1, seconds=0.0, patience=0.0)
    assert (given_up.jobs, given_up.after is None, given_up.searched_to) == ([], False, 1.0)


async def test_the_api_says_whether_a_search_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    app = shop()
    async with app.client(), dashboard(app) as client:
        await filled(app, 600)
        path = "/api/jobs?search=args.name:nobody"
        page = (await client.get(path)).json()
        assert (page["jobs"], page["complete"], page["after"]) == ([], True, None)
        monkeypatch.setattr(jobs, "API_PATIENCE", 0.0)
        monkeypatch.setattr(job_search, "SECONDS", 0.0)
        page = (await client.get("/api/jobs?search=args.name:nobody")).json()
        assert (page["jobs"], page["complete"]) == ([], False)
        assert page["after"] is not None


@pytest.mark.parametrize("wanted", [Search(after=1_000.0, before=1_003.0), Search(after=1_000.0, until=1_002.0)])
async def test_moments_are_found_by_halving(wanted: Search) -> None:
    store = Sparse(5_000)
    assert await ids_of(lambda: find_jobs(store, wanted, limit=50, seconds=60.0)) == ["1002", "1001", "1000"]
    assert len(store.looks) < 40


async def test_gaps_are_passed_in_few_looks() -> None:
    store = Sparse(3)
    store._jobs[-1].seq = 10**12
    assert await ids_of(lambda: find_jobs(store, Search(), limit=50, seconds=60.0)) == ["2", "1", "0"]
    assert len(store.looks) < 25


async def test_a_search_with_problems_finds_nothing() -> None:
    store = Sparse(3)
    assert await find_jobs(store, Search(problems=["'odd' is not a state"]), limit=5) == job_search.Found([])


async def test_a_count_says_how_old_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    app = shop()
    async with app.client(), dashboard(app) as client:
        await filled(app, 60)
        assert "<b>60</b> in total\n" in (await client.get("/jobs")).text
        monkeypatch.setattr(jobs, "STALE", dt.timedelta(seconds=-1))
        assert "<b>60</b> in total, counted <time" in (await client.get("/jobs")).text
