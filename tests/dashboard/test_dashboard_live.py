"""The hub: who looks gets the news, one rendering serves all, and whoever leaves leaves nothing behind."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import cast

import pytest

from flowrra import BrokerError, ConfigError, TaskNotFoundError
from flowrra_extras.dashboard import live
from flowrra_extras.dashboard.auth import Access
from flowrra_extras.dashboard.html import REST, Main, Pages, View
from flowrra_extras.dashboard.http import Request
from flowrra_extras.dashboard.live import Hub, event_of
from tests.support.processes import until

JOBS = View("", "/jobs")
ACCESS = Access("full", "ada", "token")


class Board:
    """Pages with a text that a test changes. `renderings` counts them by view."""

    def __init__(self) -> None:
        self.text = "first"
        self.error: Exception | None = None
        self.seconds = 0.0
        self.renderings: list[View] = []

    async def main(self, view: View) -> Main:
        self.renderings.append(view)
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return Main("", self.text, self.text)

    def filled(self, main: Main, access: None) -> str:
        return main.text


@contextlib.asynccontextmanager
async def opened(board: Board, *, tick: float = 0.001, lifetime: float = 60.0) -> AsyncIterator[Hub]:
    hub = Hub(cast("Pages", board), tick=tick, lifetime=lifetime)
    try:
        yield hub
    finally:
        await hub.close()


async def test_what_changes_is_sent() -> None:
    board = Board()
    async with opened(board) as hub:
        events = hub.follow(JOBS)
        assert await anext(events) == event_of("first", "first")
        board.text = "second"
        assert await anext(events) == event_of("second", "second")


async def test_what_a_page_shows_already_is_not_sent() -> None:
    board = Board()
    async with opened(board) as hub:
        news = asyncio.ensure_future(anext(hub.follow(JOBS, "first")))
        await until(lambda: len(board.renderings) > 3, "some looks")
        assert not news.done()
        board.text = "second"
        assert await news == event_of("second", "second")


async def test_one_rendering_serves_all_tabs() -> None:
    board = Board()
    async with opened(board, tick=60.0) as hub:
        tabs = [hub.follow(JOBS) for _ in range(50)]
        assert await asyncio.gather(*map(anext, tabs)) == [event_of("first", "first")] * 50
        late = hub.follow(JOBS)
        assert await anext(late) == event_of("first", "first")
        assert board.renderings == [JOBS]


class Uneven(Board):
    """Pages of which one takes for ever."""

    async def main(self, view: View) -> Main:
        if view.path == "/slow":
            self.renderings.append(view)
            await asyncio.Event().wait()
        return await super().main(view)


async def test_a_page_that_takes_long_delays_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "TURN", 0.001)
    board, slow = Uneven(), View("", "/slow")
    async with opened(board) as hub:
        waits = asyncio.ensure_future(anext(hub.follow(slow)))
        events = hub.follow(JOBS)
        for number in range(5):
            board.text = f"change {number}"
            assert await anext(events) == event_of(board.text, board.text)
        assert board.renderings.count(slow) == 1
        await hub.close()
        waits.cancel()
    assert len(asyncio.all_tasks()) == 1


async def test_who_is_slow_gets_the_latest_only() -> None:
    board = Board()
    async with opened(board) as hub:
        events = hub.follow(JOBS)
        await anext(events)
        for number in range(5):
            board.text = f"change {number}"
            seen = len(board.renderings)
            await until(lambda seen=seen: len(board.renderings) > seen + 1, "the next look")  # type: ignore[misc]
        assert await anext(events) == event_of("change 4", "change 4")


async def test_nothing_is_left_of_a_tab_that_closes() -> None:
    board = Board()
    async with opened(board) as hub:
        first, second = hub.follow(JOBS), hub.follow(View("", "/tasks"))
        await asyncio.gather(anext(first), anext(second))
        assert hub.tabs == 2
        await first.aclose()
        assert hub.tabs == 1
        await second.aclose()
        assert hub.tabs == 0
        await until(lambda: hub._work is None or hub._work.done(), "the end of the work: nobody looks")


async def test_nothing_is_left_of_a_tab_that_was_cancelled() -> None:
    async with opened(Board()) as hub:

        async def look_on() -> None:
            async for _ in hub.follow(JOBS):
                pass

        tab = asyncio.create_task(look_on())
        await until(lambda: hub.tabs == 1, "the tab")
        tab.cancel()
        await asyncio.wait({tab})
        assert hub.tabs == 0


async def test_a_stream_of_which_nothing_is_taken_was_never_there() -> None:
    async with opened(Board()) as hub:
        response = await hub.answer(Request("GET", "/events", query="view=/jobs", streams=True), ACCESS)
        assert response.stream is not None
        assert hub.tabs == 0


async def test_a_stream_ends_after_its_time() -> None:
    async with opened(Board(), lifetime=0.05) as hub:
        assert [event async for event in hub.follow(JOBS)] == [event_of("first", "first")]
        assert hub.tabs == 0


async def test_streams_end_with_the_hub() -> None:
    async with opened(Board()) as hub:
        events = hub.follow(JOBS)
        await anext(events)
        rest = asyncio.create_task(anext(events, None))
    await rest
    assert hub.tabs == 0


@pytest.mark.parametrize("error", [TaskNotFoundError("no such job"), ConfigError("no such cursor")])
async def test_what_is_gone_is_said_to_be_gone(error: Exception) -> None:
    board = Board()
    async with opened(board) as hub:
        events = hub.follow(JOBS)
        await anext(events)
        board.error = error
        assert await anext(events) == b"event: gone\ndata:\n\n"
        with pytest.raises(StopAsyncIteration):
            await anext(events)


@pytest.mark.parametrize("error", [BrokerError("the store is away"), RuntimeError("a fault")])
async def test_a_view_that_fails_is_told_and_logged_once_and_tried_again(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    board = Board()
    board.error = error
    async with opened(board) as hub:
        events = hub.follow(JOBS, "first")
        assert await anext(events) == b"event: trouble\ndata:\n\n"
        news = asyncio.ensure_future(anext(events))
        await until(lambda: len(board.renderings) > 3, "some looks")
        assert not news.done()
        board.error = None
        assert await news == event_of("first", "first")  # it is as before: that the store is back is news
        assert [record.getMessage() for record in caplog.records] == [f"no updates for /jobs: {error}"]


async def test_the_load_is_bounded() -> None:
    board = Board()
    board.seconds = 0.02
    async with opened(board) as hub:
        events = hub.follow(JOBS)
        begin = asyncio.get_running_loop().time()
        for number in range(4):
            board.text = str(number)
            await anext(events)
        # The fourth look comes after three rests, each three times as long as a look.
        assert asyncio.get_running_loop().time() - begin >= 3 * (1 + REST) * board.seconds


async def test_too_many_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "VIEWS", 1)
    monkeypatch.setattr(live, "TABS", 2)
    async with opened(Board()) as hub:
        events = hub.follow(View("", "/jobs", "", can_act=True))
        await anext(events)

        async def status(view: str) -> int:
            request = Request("GET", "/events", query=f"view={view}", streams=True)
            return (await hub.answer(request, ACCESS)).status

        assert await status("/jobs") == 200
        assert await status("/tasks") == 503
        more = hub.follow(View("", "/jobs", "", can_act=True))
        await anext(more)
        assert await status("/jobs") == 503


async def test_a_browser_that_comes_again_is_not_told_twice() -> None:
    board = Board()
    async with opened(board) as hub:
        request = Request("GET", "/events", query="view=/jobs", headers={"last-event-id": "first"}, streams=True)
        response = await hub.answer(request, ACCESS)
        assert response.stream is not None
        news = asyncio.ensure_future(anext(response.stream))
        await until(lambda: len(board.renderings) > 2, "some looks")
        assert not news.done()
        board.text = "second"
        assert b"second" in await news


async def test_a_server_that_cannot_stream_says_so() -> None:
    async with opened(Board()) as hub:
        with pytest.raises(TaskNotFoundError):
            await hub.answer(Request("GET", "/events"), ACCESS)


def test_a_text_brings_no_lines_of_its_own() -> None:
    event = event_of("1", "one\r\nevent: evil\rid: 2\ntwo\x0bthree\u2028four")
    assert event.decode() == (
        "id: 1\nevent: main\ndata: one\ndata: event: evil\ndata: id: 2\ndata: two\x0bthree\u2028four\n\n"
    )
