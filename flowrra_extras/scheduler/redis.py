"""Schedules in Redis 6.2+ or Valkey, under the prefix of the URL, beside the jobs of a broker or alone.

One script does all, so that each call is atomic. Its keys begin with P, which is `{flowrra}:` unless the URL says so:

    P:schedules         zset seq > id: every schedule    P:schedule:ID       hash: its fields, each as JSON; `mark` is
    P:schedules:keys    hash key > id                                        the key as it is, `held` is there while it
    P:schedules:due     zset next_fire > id: what can                        is taken and not advanced
                        be taken                         P:schedules:leases  zset end > id, by Redis's TIME
    P:schedules:done    zset last_fire > id: nothing left to fire
"""

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flowrra import MAX_LEASE, BackendError, BrokerError, ConfigError, Fired, Schedule
from flowrra_extras.redis.connection import Call, Link, address_from_url
from flowrra_extras.redis.scripts import SCRIPTS, Script
from flowrra_extras.scheduler.store import FIELDS, ScheduleStore, check_changes

__all__ = ["RedisScheduleStore", "store_from_url"]

_CHUNK = 500  # schedules in one answer: the server does nothing else meanwhile

SCRIPTS["schedules"] = Script(
    """
local all, due, leases = p .. 'schedules', p .. 'schedules:due', p .. 'schedules:leases'
local done, ids = p .. 'schedules:done', p .. 'schedules:keys'
local clock, acts = clock(), {}

local function hash(id) return p .. 'schedule:' .. id end

local function row(id)  -- a JSON array; false if there is no such schedule
    local values = call('HMGET', hash(id), SCHEDULE_FIELDS)
    return values[1] and '[' .. table.concat(values, ',') .. ']'
end

local function index(id)  -- as its hash says, now that nobody holds it
    local enabled, following, last = unpack(call('HMGET', hash(id), 'enabled', 'next_fire', 'last_fire'))
    call('HDEL', hash(id), 'held')
    for _, key in ipairs({due, done, leases}) do call('ZREM', key, id) end
    if following ~= 'null' and enabled == 'true' then call('ZADD', due, following, id) end
    if following == 'null' and last ~= 'null' then call('ZADD', done, last, id) end
end

local function free()  -- what leases that have run out held; who held it may still advance it until it is taken again
    for _, id in ipairs(call('ZRANGEBYSCORE', leases, '-inf', clock)) do
        call('ZADD', due, call('HGET', hash(id), 'next_fire'), id)
        call('ZREM', leases, id)
    end
end

local function remove(id)
    local mark = call('HGET', hash(id), 'mark')
    if not mark then return 0 end
    call('HDEL', ids, mark)
    call('DEL', hash(id))
    for _, key in ipairs({all, due, done, leases}) do call('ZREM', key, id) end
    return 1
end

function acts.add(id, mark, ...)  -- FIELD VALUE ..  Answer: the id of what is kept
    local old = call('HGET', ids, mark)
    if old or call('EXISTS', hash(id)) == 1 then return old or id end
    call('HSET', ids, mark, id)
    call('HSET', hash(id), 'mark', mark, ...)
    call('ZADD', all, (call('ZREVRANGE', all, 0, 0, 'WITHSCORES')[2] or 0) + 1, id)
    index(id)
    return id
end

function acts.ids() return call('ZRANGE', all, 0, -1) end

function acts.find(...)  -- Answer: seq, row ..
    local answer = {}
    for _, id in ipairs({...}) do
        local seq = call('ZSCORE', all, id)
        if seq then
            answer[#answer + 1] = seq
            answer[#answer + 1] = row(id)
        end
    end
    return answer
end

-- `marks`: 1 if a new key comes first, else 0.  Answer: 0 if there is no such schedule, -1 if another has that key.
function acts.change(id, marks, ...)
    local fields = {...}
    if call('EXISTS', hash(id)) == 0 then return 0 end
    if marks == '1' then
        local mark = table.remove(fields, 1)
        if (call('HGET', ids, mark) or id) ~= id then return -1 end
        call('HDEL', ids, call('HGET', hash(id), 'mark'))
        call('HSET', ids, mark, id)
        call('HSET', hash(id), 'mark', mark)
    end
    if #fields > 0 then call('HSET', hash(id), unpack(fields)) end
    call('HINCRBY', hash(id), 'turn', 1)
    index(id)
    return 1
end

function acts.remove(id) return again and 1 or remove(id) end

function acts.purge(before)
    local gone = call('ZRANGEBYSCORE', done, '-inf', '(' .. before)
    for _, id in ipairs(gone) do remove(id) end
    return #gone
end

function acts.take(now, lease, limit)  -- Answer: row ..
    local answer = {}
    free()
    for _, id in ipairs(call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, limit)) do
        call('HINCRBY', hash(id), 'turn', 1)
        call('HSET', hash(id), 'held', 1)
        call('ZREM', due, id)
        call('ZADD', leases, clock + lease, id)
        answer[#answer + 1] = row(id)
    end
    return answer
end

function acts.advance(...)  -- ID TURN NEXT_FIRE LAST_FIRE LAST_JOB ..  Answer: for each, 1 if it was written
    local answer, words = {}, {...}
    for at = 1, #words, 5 do
        local id, turn, following, last, job = unpack(words, at, at + 4)
        local is = call('HMGET', hash(id), 'turn', 'held')
        local holds = is[2] and is[1] == turn
        if holds then
            call('HSET', hash(id), 'next_fire', following, 'last_fire', last, 'last_job', job)
            index(id)
        end
        answer[#answer + 1] = holds and 1 or 0
    end
    return answer
end

function acts.next()
    free()
    return call('ZRANGE', due, 0, 0, 'WITHSCORES')[2]
end

return acts[ARGV[2]](unpack(ARGV, 3))
""".replace("SCHEDULE_FIELDS", str(FIELDS)[1:-1])
)


class RedisScheduleStore(ScheduleStore):
    """Schedules in Redis, for many processes on many machines. `url` is as for the broker.

    If the server is unreachable, restarts or fails over, a call waits up to `timeout` seconds, then raises a
    BackendError. It sends an interrupted call again; this changes nothing if the call had been carried out.
    """

    def __init__(self, url: str, *, timeout: float = 10.0) -> None:
        self._address = address_from_url(url)
        self._timeout = timeout
        self._link: Link | None = None
        self._pid = 0
        self._inherited: Link | None = None

    async def open(self) -> None:
        if self._pid == os.getpid():
            with contextlib.suppress(RuntimeError):  # of a loop that has ended
                await self.close()
        else:  # the parent of a fork goes on to use its link: neither used nor collected
            self._inherited = self._link
        self._link, self._pid = Link(self._address), os.getpid()
        self._link.open(self._timeout)
        await self.next_fire()

    async def close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    async def _run(self, act: str, *words: str) -> Any:
        """Return the answer of the script."""
        link, call = self._link, Call("schedules", act, *words)
        if link is not None:
            await link.send([call])
        if link is None or (link is not self._link and isinstance(call.answer, BrokerError)):
            raise BackendError(f"the store of schedules in {self._address.name} is not open")
        if isinstance(call.answer, BrokerError):
            raise call.answer
        return call.answer

    async def add(self, schedule: Schedule) -> str:
        fields = {name: getattr(schedule, name) for name in FIELDS}
        return str(await self._run("add", schedule.id, schedule.key, *_words(fields)))

    async def find(self, ids: Sequence[str] | None = None) -> list[Schedule]:
        wanted = list(dict.fromkeys(await self._run("ids") if ids is None else ids))
        found: list[tuple[float, Schedule]] = []
        for start in range(0, len(wanted), _CHUNK):
            answer = await self._run("find", *wanted[start : start + _CHUNK])
            found += zip(map(float, answer[::2]), map(_schedule, answer[1::2]), strict=True)
        return [schedule for _, schedule in sorted(found, key=lambda one: one[0])]

    async def change(self, schedule_id: str, changes: Mapping[str, Any]) -> bool:
        check_changes(changes)
        mark = ("1", changes["key"]) if "key" in changes else ("0",)
        answer = await self._run("change", schedule_id, *mark, *_words(changes))
        if answer == -1:
            raise ConfigError(f"schedule {schedule_id} cannot become the same as another schedule: {changes['key']!r}")
        return bool(answer)

    async def remove(self, schedule_id: str) -> bool:
        return bool(await self._run("remove", schedule_id))

    async def purge(self, before: float) -> int:
        return int(await self._run("purge", repr(before)))

    async def take(self, *, now: float, lease: float, limit: int) -> list[Schedule]:
        if not 0 < lease <= MAX_LEASE:
            raise ConfigError(f"a lease must be more than 0 and at most {MAX_LEASE:g} s, not {lease!r}")
        return list(map(_schedule, await self._run("take", repr(now), repr(lease), str(limit))))

    async def advance(self, fired: Sequence[Fired]) -> list[bool]:
        words = [word for one in fired for word in (one.schedule_id, *map(json.dumps, one[1:]))]
        return [bool(written) for written in await self._run("advance", *words)] if fired else []

    async def next_fire(self) -> float | None:
        first = await self._run("next")
        return None if first is None else float(first)


def _words(fields: Mapping[str, Any]) -> Iterable[str]:
    """Return fields and their values as stored in the hash."""
    for name, value in fields.items():
        yield from (name, json.dumps(dict(value) if name == "options" else value, allow_nan=False))


def _schedule(row: str) -> Schedule:
    return Schedule(**dict(zip(FIELDS, json.loads(row), strict=True)))


def store_from_url(url: str, *, timeout: float) -> ScheduleStore:
    """Return the store for `redis://`, `rediss://`, `redis+sentinel://` and `unix://`."""
    return RedisScheduleStore(url, timeout=timeout)
