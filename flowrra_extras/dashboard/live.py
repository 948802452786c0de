"""Updates for open tabs: each page that is open somewhere is rendered repeatedly, and sent if it has changed.

One rendering serves all tabs with the same view. The hub rests for REST times as long as its last round took, so that
its load is at most a quarter of a core, whatever the number of tabs.
"""

import asyncio
import re
import urllib.parse
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from flowrra import ConfigError, FlowrraError, TaskNotFoundError
from flowrra_extras.dashboard.auth import Access
from flowrra_extras.dashboard.html import REST, VIEWS, Pages, View
from flowrra_extras.dashboard.http import Request, Response, logger

TICK = 0.2  # seconds between two looks: with the rendering, a change is on the screen within 0.3
# How many seconds a stream lasts. Then the browser connects again, and its access is checked again. A server that waits
# for its requests at its end, as uvicorn does, waits no longer than this.
LIFETIME = 5.0
TURN = 0.05  # seconds that the other tabs wait for the rendering of one view
AGAIN = 0.1  # seconds after which the browser comes again
TABS = 1_000
SHARE = 2  # one visitor may use half of the places
_FULL = "Too many tabs show this dashboard. This tab tries again automatically."
# Without an id: a browser that reconnects during the trouble gets it again, and afterwards the text if it has changed.
_TROUBLE = b"event: trouble\ndata:\n\n"
_LINE_END = re.compile(r"\r\n|\r|\n")  # what ends a line of an event: a text must not bring lines of its own


@dataclass(slots=True)
class Channel:
    """A view, its latest event, and the streams that wait for the next one."""

    digest: str = ""
    event: bytes = b""
    has_failed: bool = False
    is_over: bool = False
    waiters: set[asyncio.Event] = field(default_factory=set)
    look: asyncio.Task[None] | None = None
    rests_until: float = 0.0  # on the loop's clock

    def tell(self, digest: str, event: bytes) -> None:
        """Pass the event to all streams. A slow one gets only the latest event."""
        self.digest, self.event = digest, event
        for waiter in self.waiters:
            waiter.set()


class Hub:
    """Sends updates of views to their tabs. It works while there is an open tab."""

    def __init__(self, pages: Pages, *, tick: float = TICK, lifetime: float = LIFETIME) -> None:
        self._pages = pages
        self._tick = tick
        self._lifetime = lifetime
        self._channels: dict[View, Channel] = {}
        self._work: asyncio.Task[None] | None = None
        self._looks: set[asyncio.Task[None]] = set()
        self._places: dict[asyncio.Event, tuple[str, View]] = {}  # by waiter: whose it is, and of what

    @property
    def tabs(self) -> int:
        return sum(len(channel.waiters) for channel in self._channels.values())

    async def answer(self, request: Request, access: Access) -> Response:
        """The stream of events for the view that the request names; 503 if there are too many.

        Raises:
            TaskNotFoundError: the server cannot send a stream.
        """
        if not request.streams:
            raise TaskNotFoundError("this server cannot send events: load the pages instead")
        given = request.parameters
        path, _, query = given.get("view", "/").partition("?")
        view = View(request.root, urllib.parse.unquote(path), query, access.allows("full"))
        if self._is_full(view, access.who):
            return Response(503, _FULL.encode(), {"content-type": "text/plain; charset=utf-8", "retry-after": "5"})
        # A browser that reconnects sends the id of the last event that it received.
        seen = request.headers.get("last-event-id") or given.get("digest", "")
        headers = {"content-type": "text/event-stream", "x-accel-buffering": "no"}
        stream = None if request.method == "HEAD" else self.follow(view, seen, access.who)
        return Response(200, f"retry: {AGAIN * 1000:.0f}\n\n".encode(), headers, stream)

    def _is_full(self, view: View, who: str) -> bool:
        """Whether there is no place for another stream, or none for this visitor."""
        own = [place for holder, place in self._places.values() if holder == who]
        if self.tabs >= TABS or len(own) >= max(1, TABS // SHARE):
            return True
        is_full = view not in self._channels and len(self._channels) >= VIEWS
        return is_full or (view not in own and len(set(own)) >= max(1, VIEWS // SHARE))

    async def follow(self, view: View, seen: str = "", who: str = "") -> AsyncGenerator[bytes, None]:
        """The events of a view, but for the one that was `seen`. Closing it removes it from its channel."""
        # Only here, because a stream whose first piece is never requested is never closed.
        channel = self._channels.setdefault(view, Channel())
        news = asyncio.Event()
        channel.waiters.add(news)
        self._places[news] = who, view
        if channel.event:
            news.set()
        self._begin()
        end = asyncio.get_running_loop().time() + self._lifetime
        try:
            while not channel.is_over and await _set_before(end, news):
                news.clear()
                if channel.digest != seen:
                    seen = channel.digest
                    yield channel.event
        finally:
            channel.waiters.discard(news)
            del self._places[news]
            if not channel.waiters and self._channels.get(view) is channel:
                del self._channels[view]

    async def close(self) -> None:
        self._end_streams()
        ending = {*self._looks, *([self._work] if self._work else [])}
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending)

    def _end_streams(self) -> None:
        for channel in self._channels.values():
            channel.is_over = True
            channel.tell("", b"")  # nothing is sent, but they wake up
        self._channels.clear()

    # The work ----------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._look_on(), name="flowrra-dashboard-live")

    async def _look_on(self) -> None:
        clock = asyncio.get_running_loop().time
        while self._channels:
            began = clock()
            for view, channel in list(self._channels.items()):
                await self._give_turn(view, channel)
            await asyncio.sleep(max(self._tick, REST * (clock() - began)))

    async def _give_turn(self, view: View, channel: Channel) -> None:
        """Look at a view. If it takes long, it continues in the background, so that other views do not wait."""
        clock = asyncio.get_running_loop().time
        if channel.look is not None or clock() < channel.rests_until:
            return
        began = clock()

        def end(look: asyncio.Task[None]) -> None:
            self._looks.discard(look)
            channel.look, took = None, clock() - began
            channel.rests_until = clock() + REST * took if took > TURN else 0.0

        channel.look = asyncio.create_task(self._look(view, channel))
        self._looks.add(channel.look)
        channel.look.add_done_callback(end)
        await asyncio.wait({channel.look}, timeout=TURN)

    async def _look(self, view: View, channel: Channel) -> None:
        """Render the view, and send it if it has changed. A failure is sent once, and the rendering is tried again."""
        try:
            main = await self._pages.main(view)
        except (TaskNotFoundError, ConfigError):
            channel.is_over = True
            channel.tell("gone", b"event: gone\ndata:\n\n")
            self._channels.pop(view, None)
        except Exception as error:
            if not channel.has_failed:
                logger.warning(
                    "no updates for %s: %s", view.path[:200], error, exc_info=not isinstance(error, FlowrraError)
                )
                channel.tell("trouble", _TROUBLE)
            channel.has_failed = True
        else:
            channel.has_failed = False
            if main.digest != channel.digest:
                channel.tell(main.digest, event_of(main.digest, self._pages.filled(main, None)))


async def _set_before(end: float, event: asyncio.Event) -> bool:
    """Wait for the event; False if it does not come before `end`, on the loop's clock."""
    try:
        async with asyncio.timeout_at(end):
            return await event.wait()
    except TimeoutError:
        return False


def event_of(digest: str, text: str) -> bytes:
    lines = "".join(f"data: {line}\n" for line in _LINE_END.split(text))
    return f"id: {digest}\nevent: main\n{lines}\n".encode("utf-8", "replace")
