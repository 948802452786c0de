"""Jobs in Redis 6.2+ or Valkey, for many machines: `pip install flowrra[redis]`.

    app = Flowrra.from_urls("redis://user:password@host:6379/0")
    app = Flowrra.from_urls("rediss://host/0?prefix=billing")     # TLS; keys under {billing}:
    app = Flowrra.from_urls("unix:///run/redis.sock?db=1")

Redis keeps on disk what it is told to. For "nothing is lost" configure

    appendonly yes                  # with appendfsync everysec a power cut undoes the last second,
    appendfsync always              # with always nothing that was acknowledged
    maxmemory-policy noeviction     # any other policy throws jobs away when memory is full

Every transition is one atomic script over a whole group of jobs. All keys begin with the prefix in
braces, so that a cluster keeps them in one slot. Below, P is `{flowrra}`:

    P:seq             the order of submission              P:job:ID        hash: the job, see `_job_of`
    P:all             zset seq > id: every job             P:history:ID    list: its earlier attempts, as JSON
    P:ready:QUEUE     zset: PLACE ID, in lexical order     P:children:ID   set: blocked jobs that wait for ID
    P:suspects:QUEUE  zset crashes > PLACE ID              P:parents:ID    set: what the blocked job ID waits for
    P:due             zset due > id: waiting jobs          P:unique        hash key > id, of unfinished jobs
    P:expiring        zset expires > id: not begun         P:running:W     set: what worker W holds
    P:purge           zset purge_at > id: finished jobs    P:cancelling    set: running jobs that are to end
    P:leases          zset end > worker, by Redis's TIME   P:workers       hash worker > JSON
    P:claims          hash worker > number, see `claim`    P:paused        set of queues
    P:counts          hash "STATUS QUEUE" > number         channels P:jobs, P:results, P:notices

PLACE is the priority (16 hex digits, so biased that the lowest is 0) and the seq (13 digits): a score,
being a double, could not hold both. Moments are text as the caller wrote it: Lua prints 14 digits.
"""

from __future__ import annotations

import asyncio
import collections
import functools
import hashlib
import itertools
import json
import logging
import random
import types
import urllib.parse
from typing import TYPE_CHECKING, Any, cast

import redis
import redis.asyncio as redis_asyncio

from flowrra import (
    BY_HAND,
    EXPIRED,
    HISTORY_LIMIT,
    KILLED,
    LEFT,
    MAX_CRASHES,
    NO_ARGUMENTS,
    PENDING,
    RUNNING,
    SUCCESS,
    WORKER_LOST,
    Attempt,
    BackendConfig,
    Broker,
    BrokerConfig,
    BrokerError,
    Clock,
    Config,
    ConfigError,
    Job,
    JobFilter,
    Notices,
    Outcome,
    Progress,
    TaskResult,
    TaskStatus,
    WorkerInfo,
    check_queue,
    decode,
    encode,
    encode_arguments,
    encode_value,
    timed_out,
    unknown_job,
)
from flowrra_extras.batching import Batcher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence

__all__ = ["RedisBroker", "broker_from_url"]

logger = logging.getLogger("flowrra")

_PATIENCE = 5.0  # seconds without an answer after which a connection counts as dead
_LOOK_EVERY = 5.0  # seconds between looks for results, should a message have been lost
_RUN = 1_000  # jobs in one argument of a push
_PAGE = 1_000  # jobs that one call of `find` looks at, so that it never holds the server for long

# ---------------------------------------------------------------------------
# The scripts
#
# Each has a header: ARGV, the answer. KEYS[1] is always the prefix. Arguments
# are few and large, as JSON: packing one costs redis-py more than a job does.
# JSON's false stands for "none", since cjson's null is true in Lua.
# ---------------------------------------------------------------------------

_COMMON = """
local p = KEYS[1]  -- with its colon, so that an ACL of ~{flowrra}:* allows it
local call, decode, encode, format = redis.call, cjson.decode, cjson.encode, string.format
local now, bury_at      -- the caller's wall clock, and until when what is ended here is kept
local counts, fresh, woken, ended = {}, {}, {}, {}

local function tally(status, queue, step)
    local name = status .. ' ' .. queue
    counts[name] = (counts[name] or 0) + step
end

local FIELDS = {'status', 'queue', 'place', 'attempt', 'worker', 'started', 'crashes', 'unique', 'expires',
    'children', 'cancel'}

local function load(id)
    local values = call('HMGET', p .. 'job:' .. id, unpack(FIELDS))
    if not values[1] then return nil end
    local job = {id = id, key = p .. 'job:' .. id}
    for i, name in ipairs(FIELDS) do job[name] = values[i] end
    return job
end

local function move(job, status)
    tally(job.status, job.queue, -1)
    tally(status, job.queue, 1)
    job.status = status
end

-- In large pieces, since what unpack() can hold is limited.
local function add_all(key, entries)
    for i = 1, #entries, 2000 do
        call('ZADD', key, unpack(entries, i, math.min(i + 1999, #entries)))
    end
end

-- Who waits for jobs found the line empty: only the first to enter an empty one need be told of.
local function flush()
    for queue, entries in pairs(fresh) do
        local key = p .. 'ready:' .. queue
        if not woken[queue] and call('ZCARD', key) == 0 then woken[queue] = true end
        add_all(key, entries)
    end
    fresh = {}
end

local function line_up(job)
    if job.crashes then
        call('ZADD', p .. 'suspects:' .. job.queue, job.crashes, job.place .. job.id)
        woken[job.queue] = true
    else
        local entries = fresh[job.queue] or {}
        fresh[job.queue] = entries
        entries[#entries + 1] = 0
        entries[#entries + 1] = job.place .. job.id
    end
end

local function make_ready(job)
    move(job, 'pending')
    call('HSET', job.key, 'status', 'pending')
    line_up(job)
end

local function make_wait(job, status, due)
    move(job, status)
    call('HSET', job.key, 'status', status, 'due', due)
    call('ZADD', p .. 'due', due, job.id)
    woken[job.queue] = true
end

-- Take a job that is not running from where it waits.
local function leave(job)
    flush()
    if job.status == 'pending' then
        call('ZREM', p .. (job.crashes and 'suspects:' or 'ready:') .. job.queue, job.place .. job.id)
    elseif job.status == 'blocked' then
        for _, parent in ipairs(call('SMEMBERS', p .. 'parents:' .. job.id)) do
            call('SREM', p .. 'children:' .. parent, job.id)
        end
        call('DEL', p .. 'parents:' .. job.id)
    else
        call('ZREM', p .. 'due', job.id)
    end
    if job.expires then call('ZREM', p .. 'expiring', job.id) end
end

-- The one place where a job comes to its end. What more there is to keep comes as fields and values.
local function finish(job, status, purge_at, ...)
    if job.status ~= 'running' or job.attempt ~= '1' then
        call('HDEL', job.key, 'result', 'error', 'traceback')  -- of an earlier attempt
    end
    move(job, status)
    call('HSET', job.key, 'status', status, 'finished', now, 'purge_at', purge_at, ...)
    call('ZADD', p .. 'purge', purge_at, job.id)
    if job.unique then call('HDEL', p .. 'unique', job.unique) end
    if job.cancel then call('SREM', p .. 'cancelling', job.id) end
    ended[#ended + 1] = job.id
end

local function unblock(job)
    local due = call('HGET', job.key, 'due')
    if due and tonumber(due) > tonumber(now) then make_wait(job, 'scheduled', due) else make_ready(job) end
end

-- Tell those who wait for a job of its end; a loop, since a long line is too deep for recursion.
local function tell(job)
    local told, i = {job}, 1
    while told[i] do
        local parent = told[i]
        local children = parent.children and call('SMEMBERS', p .. 'children:' .. parent.id) or {}
        for _, id in ipairs(children) do
            local child = load(id)
            if parent.status == 'success' then
                call('SREM', p .. 'parents:' .. id, parent.id)
                if call('EXISTS', p .. 'parents:' .. id) == 0 then unblock(child) end
            else
                leave(child)
                finish(child, 'cancelled', bury_at, 'error', 'its parent ' .. parent.id .. ' ended as ' .. parent.status)
                told[#told + 1] = child
            end
        end
        if parent.children then
            call('DEL', p .. 'children:' .. parent.id)
            call('HDEL', parent.key, 'children')
        end
        i = i + 1
    end
end

-- End a job that is not running.
local function bury(job, status, reason)
    leave(job)
    finish(job, status, bury_at, 'error', reason)
    tell(job)
end

-- Move the latest attempt into the history.
local function archive(job, ended_at, ending, error, traceback)
    if job.started then
        local entry = table.concat({job.attempt, encode(job.worker), job.started, ended_at, encode(ending),
            error and encode(error) or 'null', traceback and encode(traceback) or 'null'}, ',')
        call('RPUSH', p .. 'history:' .. job.id, '[' .. entry .. ']')
        call('LTRIM', p .. 'history:' .. job.id, -HISTORY_LIMIT, -1)
    end
    call('HDEL', job.key, 'worker', 'started', 'finished', 'purge_at', 'progress', 'result', 'error', 'traceback', 'due')
end

-- Let a job that ran wait again, or end it where that is its due.
local function put_back(job, status, due, ending, error, traceback)
    archive(job, now, ending, error, traceback)
    if job.cancel then
        finish(job, 'cancelled', bury_at, 'error', BY_HAND)
        tell(job)
    elseif ending == 'crash' and job.crashes >= MAX_CRASHES then
        finish(job, 'failed', bury_at, 'error', KILLED)
        tell(job)
    else
        call('HSET', job.key, 'error', error)
        if traceback then call('HSET', job.key, 'traceback', traceback) end
        if due then make_wait(job, status, due) else make_ready(job) end
    end
end

-- Put back all that a worker holds which is not there any more.
local function dissolve(worker, ending, error)
    for _, id in ipairs(call('SMEMBERS', p .. 'running:' .. worker)) do
        local job = load(id)
        if ending == 'crash' then job.crashes = call('HINCRBY', job.key, 'crashes', 1) end
        put_back(job, 'pending', nil, ending, error)
    end
    call('DEL', p .. 'running:' .. worker)
    call('ZREM', p .. 'leases', worker)
    call('HDEL', p .. 'workers', worker)
    call('HDEL', p .. 'claims', worker)
end

local function clock()
    local time = call('TIME')
    return time[1] + time[2] / 1000000
end

local function rescue_lapsed(but)
    local lost = {}
    for _, worker in ipairs(call('ZRANGEBYSCORE', p .. 'leases', '-inf', clock())) do
        if worker ~= but then
            dissolve(worker, 'crash', WORKER_LOST)
            lost[#lost + 1] = worker
        end
    end
    return lost
end

local function await_parents(job, parents)
    local waits, parent_status = false, nil
    for _, parent in ipairs(parents) do
        local status = call('HGET', p .. 'job:' .. parent, 'status')
        if status == 'failed' or status == 'cancelled' then
            bury(job, 'cancelled', 'its parent ' .. parent .. ' ended as ' .. status)
            return
        elseif status and status ~= 'success' then  -- else it has succeeded, and may be purged by now
            call('SADD', p .. 'children:' .. parent, job.id)
            call('SADD', p .. 'parents:' .. job.id, parent)
            call('HSET', p .. 'job:' .. parent, 'children', 1)
            waits = true
        end
    end
    if not waits then unblock(job) end
end

local function publish()
    flush()
    for name, step in pairs(counts) do
        if step ~= 0 and call('HINCRBY', p .. 'counts', name, step) == 0 then call('HDEL', p .. 'counts', name) end
    end
    for queue in pairs(woken) do call('PUBLISH', p .. 'jobs', queue) end
    if #ended > 0 then call('PUBLISH', p .. 'results', encode(ended)) end
end
"""

# Take in new jobs.
# ARGV: of each call a header [now, bury_at, runs, [[child, its parents from outside this call ..] ..]],
#   then so many runs of jobs that are alike: [queue, priority, head, due, expires, unique, parents,
#   [id, payload, id, payload ..]].
# Answer: of each call 0 if all jobs are in, the list of ids if some were there already, or the parent
#   that is not known, in which case nothing of the call is in.
_PUSH = """
local function unknown_parent(needs)
    for _, need in ipairs(needs) do
        if call('EXISTS', p .. 'job:' .. need[1]) == 0 then
            for i = 2, #need do
                if call('EXISTS', p .. 'job:' .. need[i]) == 0 then return need[i] end
            end
        end
    end
end

local function take_care(id, key, place, queue, due, expires, unique, parents)
    if due then call('HSET', key, 'due', due) end
    if unique then call('HSET', key, 'unique', unique) end
    if expires then
        call('HSET', key, 'expires', expires)
        call('ZADD', p .. 'expiring', expires, id)
    end
    local job = {id = id, key = key, place = place, queue = queue, expires = expires, unique = unique}
    job.status = 'blocked'
    call('HSET', key, 'status', 'blocked')
    tally('blocked', queue, 1)
    if parents then
        call('HSET', key, 'parents', encode(parents))
        await_parents(job, parents)
    else
        unblock(job)
    end
end

local function take_in(run, ids)
    local queue, priority, head, due, expires, unique, parents, jobs = unpack(run, 1, 8)
    local careful, all, differ = due or expires or unique or parents, {}, false
    local seq = call('INCRBY', p .. 'seq', #jobs / 2) - #jobs / 2
    local entries = fresh[queue] or {}
    fresh[queue] = entries
    for i = 1, #jobs, 2 do
        local id = jobs[i]
        local key = p .. 'job:' .. id
        seq = seq + 1
        local place = priority .. format('%013x', seq)
        local holder = false
        if call('HSETNX', key, 'place', place) == 0 then
            holder = id
        elseif unique and call('HSETNX', p .. 'unique', unique, id) == 0 then
            call('DEL', key)
            holder = call('HGET', p .. 'unique', unique)
        else
            call('HSET', key, 'queue', queue, 'head', head, 'payload', jobs[i + 1], 'submitted', now, 'status', 'pending')
            all[#all + 1] = seq
            all[#all + 1] = id
            if careful then
                take_care(id, key, place, queue, due, expires, unique, parents)
            else
                entries[#entries + 1] = 0
                entries[#entries + 1] = place .. id
            end
        end
        ids[#ids + 1] = holder or id
        differ = differ or (holder and holder ~= id)
    end
    if not careful then tally('pending', queue, #all / 2) end
    add_all(p .. 'all', all)
    return differ
end

local answers, i = {}, 1
while ARGV[i] do
    local header = decode(ARGV[i])
    now, bury_at = header[1], header[2]
    local parent = unknown_parent(header[4])
    if parent then
        answers[#answers + 1] = parent
    else
        local ids, differ = {}, false
        for n = i + 1, i + header[3] do
            if take_in(decode(ARGV[n]), ids) then differ = true end
        end
        answers[#answers + 1] = differ and ids or 0
    end
    i = i + 1 + header[3]
end
publish()
return answers
"""

# Hand out ready jobs.
# ARGV: queue, limit, worker, now, bury_at, number, held (JSON: ids, or false).
#   `number` grows when the fate of an earlier claim is unknown: its answer was lost, and it may even be
#   carried out late. What it took is put back (all but `held`), and if it still comes it is refused.
# Answer: when the next waiting job is due ('' if none), then 8 items for each job: PLACE ID, head, payload,
#   submitted, attempt, failures, crashes, parents.
_CLAIM = """
local queue, limit, worker, number, held = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[6]), decode(ARGV[7])
now, bury_at = ARGV[4], ARGV[5]
local answer = {''}

local function may_claim()
    local lease = call('ZSCORE', p .. 'leases', worker)
    if not lease or tonumber(lease) <= clock() then return false end
    if number < tonumber(call('HGET', p .. 'claims', worker) or 0) then return false end
    return call('SISMEMBER', p .. 'paused', queue) == 0
end

local function put_back_all_but(held)
    local known = {}
    for _, id in ipairs(held) do known[id] = true end
    for _, id in ipairs(call('SMEMBERS', p .. 'running:' .. worker)) do
        if not known[id] then
            call('SREM', p .. 'running:' .. worker, id)
            put_back(load(id), 'pending', nil, 'release', 'the answer to its claim was lost')
        end
    end
    call('HSET', p .. 'claims', worker, number)
end

local function promote()
    for _, id in ipairs(call('ZRANGEBYSCORE', p .. 'due', '-inf', now, 'LIMIT', 0, 1000)) do
        local job = load(id)
        call('HDEL', job.key, 'due')
        call('ZREM', p .. 'due', id)
        make_ready(job)
    end
end

local function expire()
    for _, id in ipairs(call('ZRANGEBYSCORE', p .. 'expiring', '-inf', now, 'LIMIT', 0, 1000)) do
        bury(load(id), 'cancelled', EXPIRED)
    end
end

local taken = {}

local function take(member)
    local id = string.sub(member, 30)
    local key = p .. 'job:' .. id
    local values = call('HMGET', key, 'head', 'payload', 'submitted', 'attempt', 'failures', 'crashes', 'parents', 'expires')
    local attempt, expires = (values[4] or 0) + 1, values[8]
    if expires and attempt == 1 then
        if tonumber(expires) <= tonumber(now) then return bury(load(id), 'cancelled', EXPIRED) end
        call('ZREM', p .. 'expiring', id)
    end
    call('HSET', key, 'status', 'running', 'attempt', attempt, 'worker', worker, 'started', now)
    taken[#taken + 1] = id
    local n = #answer
    answer[n + 1], answer[n + 2], answer[n + 3], answer[n + 4] = member, values[1], values[2], values[3]
    answer[n + 5], answer[n + 6], answer[n + 7], answer[n + 8] = attempt, values[5] or 0, values[6] or 0, values[7]
end

-- A suspect for a worker that runs nothing; while it runs one, nothing.
local function choose()
    local running = call('SCARD', p .. 'running:' .. worker)
    if running == 1 then
        local id = call('SRANDMEMBER', p .. 'running:' .. worker)
        if call('HEXISTS', p .. 'job:' .. id, 'crashes') == 1 then return end
    elseif running == 0 then
        local suspect = call('ZPOPMIN', p .. 'suspects:' .. queue)
        if suspect[1] then return take(suspect[1]) end
    end
    repeat
        local members = call('ZPOPMIN', p .. 'ready:' .. queue, limit - #taken)
        for i = 1, #members, 2 do take(members[i]) end
    until #taken >= limit or #members == 0
end

if may_claim() then
    if held then put_back_all_but(held) end
    rescue_lapsed(worker)
    promote()
    flush()
    expire()
    choose()
    if #taken > 0 then
        tally('pending', queue, -#taken)
        tally('running', queue, #taken)
        for i = 1, #taken, 5000 do
            call('SADD', p .. 'running:' .. worker, unpack(taken, i, math.min(i + 4999, #taken)))
        end
    end
    publish()
end
answer[1] = call('ZRANGE', p .. 'due', 0, 0, 'WITHSCORES')[2] or ''
return answer
"""

# Write down what attempts came to.
# ARGV: of each call a list of groups, each [worker, status, now, bury_at, purge_at, again, rest]. The rest
#   of a success: id, attempt, result ..; of another outcome: [id, attempt, error, traceback, due, ending].
#   `again`: it may have been written already, by a call whose answer was lost.
# Answer: of each call a text with a 1 for each outcome that was written, a 0 for each that was not.
_SETTLE = """
local flags

local function check(worker, id, attempt, status, again)
    local job = load(id)
    local mine = job and job.worker == worker and tonumber(job.attempt) == attempt
    local holds = mine and job.status == 'running'
    flags[#flags + 1] = (holds or (again and mine and job.status == status)) and '1' or '0'
    if holds then
        call('SREM', p .. 'running:' .. worker, id)
        return job
    end
end

local function write_other(worker, status, purge_at, again, id, attempt, error, traceback, due, ending)
    local job = check(worker, id, attempt, status, again)
    if not job then return end
    if ending == 'failure' then call('HINCRBY', job.key, 'failures', 1) end
    if status == 'failed' or status == 'cancelled' then
        finish(job, status, purge_at, 'error', error)
        if traceback then call('HSET', job.key, 'traceback', traceback) end
        tell(job)
    else
        put_back(job, status, due, ending, error, traceback)
    end
end

local answers = {}
for i, text in ipairs(ARGV) do
    flags = {}
    for _, group in ipairs(decode(text)) do
        local worker, status, purge_at, again, rest = group[1], group[2], group[5], group[6], group[7]
        now, bury_at = group[3], group[4]
        if status ~= 'success' then
            write_other(worker, status, purge_at, again, unpack(rest, 1, 6))
        else
            for n = 1, #rest, 3 do
                local job = check(worker, rest[n], rest[n + 1], status, again)
                if job then
                    finish(job, status, purge_at, 'result', rest[n + 2])
                    if job.children then tell(job) end
                end
            end
        end
    end
    answers[i] = table.concat(flags)
end
publish()
return answers
"""

# Register a worker or extend its lease; with a lease of 0 it takes its leave.
# ARGV: worker, lease, now, bury_at, info (JSON), queues (JSON).
# Answer: whether it was known, its jobs that are to end, paused queues, whether suspects wait, lost workers.
_HEARTBEAT = """
local worker, lease, info, queues = ARGV[1], tonumber(ARGV[2]), ARGV[5], decode(ARGV[6])
now, bury_at = ARGV[3], ARGV[4]
if lease <= 0 then
    dissolve(worker, 'release', LEFT)
    publish()
    return {1, {}, {}, 0, {}}
end
local lost = rescue_lapsed(worker)
local known = call('ZSCORE', p .. 'leases', worker)
local time = clock()
call('ZADD', p .. 'leases', format('%.6f', time + lease), worker)
call('HSET', p .. 'workers', worker, info)
local suspects = 0
for _, queue in ipairs(queues) do
    if not known or tonumber(known) <= time then woken[queue] = true end  -- it may claim again
    if call('EXISTS', p .. 'suspects:' .. queue) == 1 then suspects = 1 end
end
publish()
return {known and 1 or 0, call('SINTER', p .. 'cancelling', p .. 'running:' .. worker),
    call('SMEMBERS', p .. 'paused'), suspects, lost}
"""

# End a job.  ARGV: id, now, bury_at.  Answer: 1, or 0 if it is finished or unknown.
_CANCEL = """
now, bury_at = ARGV[2], ARGV[3]
local job = load(ARGV[1])
if not job or job.status == 'success' or job.status == 'failed' or job.status == 'cancelled' then return 0 end
if job.status == 'running' then
    call('HSET', job.key, 'cancel', 1)
    call('SADD', p .. 'cancelling', job.id)
    call('PUBLISH', p .. 'notices', job.worker)
else
    bury(job, 'cancelled', BY_HAND)
end
publish()
return 1
"""

# Make failed and cancelled jobs ready again.  ARGV: ids (JSON), now, bury_at.  Answer: a 1 or 0 for each.
_REQUEUE = """
now, bury_at = ARGV[2], ARGV[3]

local function is_hopeless(parents)
    for _, parent in ipairs(parents) do
        local status = call('HGET', p .. 'job:' .. parent, 'status')
        if status == 'failed' or status == 'cancelled' then return true end
    end
end

local function requeue(id)
    local job = load(id)
    if not job or (job.status ~= 'failed' and job.status ~= 'cancelled') then return 0 end
    local finished, error, traceback, parents = unpack(call('HMGET', job.key, 'finished', 'error', 'traceback', 'parents'))
    parents = parents and decode(parents)
    if parents and is_hopeless(parents) then return 0 end
    if job.unique and call('HSETNX', p .. 'unique', job.unique, id) == 0 then return 0 end
    call('ZREM', p .. 'purge', id)
    archive(job, finished, job.status == 'failed' and 'failure' or 'cancel', error, traceback)
    call('HDEL', job.key, 'failures', 'crashes', 'cancel', 'expires')
    job.crashes, job.cancel, job.expires = false, false, false
    if parents then
        move(job, 'blocked')
        call('HSET', job.key, 'status', 'blocked')
        await_parents(job, parents)
    else
        make_ready(job)
    end
    return 1
end

local answer = {}
for i, id in ipairs(decode(ARGV[1])) do answer[i] = requeue(id) end
publish()
return answer
"""

# Delete finished jobs.  ARGV: before, limit.  Answer: how many.
_PURGE = """
local ids = call('ZRANGEBYSCORE', p .. 'purge', '-inf', '(' .. ARGV[1], 'LIMIT', 0, ARGV[2])
for _, id in ipairs(ids) do
    local key = p .. 'job:' .. id
    tally(call('HGET', key, 'status'), call('HGET', key, 'queue'), -1)
    call('UNLINK', key, p .. 'history:' .. id)
    call('ZREM', p .. 'purge', id)
    call('ZREM', p .. 'all', id)
end
publish()
return #ids
"""

# Keep how far running jobs are.  ARGV: id, progress (JSON) ..  Answer: 0.
_REPORT = """
for i = 1, #ARGV, 2 do
    local key = p .. 'job:' .. ARGV[i]
    if call('HGET', key, 'status') == 'running' then call('HSET', key, 'progress', ARGV[i + 1]) end
end
return 0
"""

# Pause or resume a queue.  ARGV: queue, 1 or 0.  Answer: 0.
_SET_QUEUE = """
call(ARGV[2] == '1' and 'SADD' or 'SREM', p .. 'paused', ARGV[1])
call('PUBLISH', p .. 'jobs', ARGV[1])
call('PUBLISH', p .. 'notices', '')
return 0
"""

# Keep finished results of jobs that ran elsewhere.
# ARGV: of each result its id, its purge_at, and its fields (JSON).  Answer: 0.
_RECORD = """
for i = 1, #ARGV, 3 do
    local id, fields = ARGV[i], decode(ARGV[i + 2])
    local key = p .. 'job:' .. id
    local status, queue, purge_at = unpack(call('HMGET', key, 'status', 'queue', 'purge_at'))
    if not status or purge_at then  -- a job that is alive here is not written over
        if status then tally(status, queue, -1) end
        local seq = call('INCR', p .. 'seq')
        call('DEL', key)
        call('HSET', key, 'place', '8000000000000000' .. format('%013x', seq), 'queue', '', unpack(fields))
        call('HSET', key, 'purge_at', ARGV[i + 1])
        call('ZADD', p .. 'all', seq, id)
        call('ZADD', p .. 'purge', ARGV[i + 1], id)
        tally(call('HGET', key, 'status'), '', 1)
        ended[#ended + 1] = id
    end
end
publish()
return 0
"""

# Look results up.  ARGV: of each call its ids (JSON).
# Answer: of each call a list with the values of _RESULT_FIELDS, or 0, for each id.
_GET = """
local answers = {}
for i, text in ipairs(ARGV) do
    local found = {}
    for n, id in ipairs(decode(text)) do
        local values = call('HMGET', p .. 'job:' .. id, RESULT_FIELDS)
        found[n] = values[1] and values or 0
    end
    answers[i] = found
end
return answers
"""

# Look for jobs, the latest first, in steps.
# ARGV: filter (JSON: ids, statuses, queue, worker, the beginning of the head, the place to be ahead of; false
#   where it does not matter), the seq to begin below, how many to find, how many to look at.
# Answer: the seq to go on below ('' at the end), then of each job its id, its hash and its history.
_FIND = """
local ids, statuses, queue, worker, head, ahead = unpack(decode(ARGV[1]), 1, 6)
local limit, answer = tonumber(ARGV[3]), {''}
local wanted = {}
for _, status in ipairs(statuses or {}) do wanted[status] = true end

local function matches(id)
    local values = call('HMGET', p .. 'job:' .. id, 'status', 'queue', 'worker', 'head', 'place')
    return values[1] and (not statuses or wanted[values[1]]) and (not queue or values[2] == queue)
        and (not worker or values[3] == worker) and (not head or string.sub(values[4], 1, #head) == head)
        and (not ahead or (values[1] == 'pending' and values[5] < ahead))
end

local function add(id)
    local n = #answer
    answer[n + 1], answer[n + 2] = id, call('HGETALL', p .. 'job:' .. id)
    answer[n + 3] = call('LRANGE', p .. 'history:' .. id, 0, -1)
end

local function all_running()
    local found = {}
    for _, name in ipairs(call('HKEYS', p .. 'workers')) do
        for _, id in ipairs(call('SMEMBERS', p .. 'running:' .. name)) do found[#found + 1] = id end
    end
    return found
end

if not ids and #(statuses or {}) == 1 and wanted.running then ids = all_running() end
if ids then
    for _, id in ipairs(ids) do
        if matches(id) then add(id) end
    end
    return answer
end
local page = call('ZREVRANGEBYSCORE', p .. 'all', ARGV[2], '-inf', 'WITHSCORES', 'LIMIT', 0, ARGV[4])
for i = 1, #page, 2 do
    if matches(page[i]) then
        add(page[i])
        limit = limit - 1
    end
    answer[1] = page[i + 1]
    if limit == 0 then break end
end
return answer
"""

# How many ready jobs are ahead of one.  ARGV: queue, its PLACE ID.  Answer: the number.
_AHEAD = """
local ahead = call('ZLEXCOUNT', p .. 'ready:' .. ARGV[1], '-', '(' .. ARGV[2])
for _, member in ipairs(call('ZRANGE', p .. 'suspects:' .. ARGV[1], 0, -1)) do
    if member < ARGV[2] then ahead = ahead + 1 end
end
return ahead
"""

# What there is at all.  Answer: counts, paused queues, the workers whose lease holds (JSON).
_LOOK = """
local workers = {}
for _, worker in ipairs(call('ZRANGEBYSCORE', p .. 'leases', '(' .. clock(), '+inf')) do
    workers[#workers + 1] = call('HGET', p .. 'workers', worker)
end
return {call('HGETALL', p .. 'counts'), call('SMEMBERS', p .. 'paused'), workers}
"""


_RESULT_FIELDS = (
    "head", "status", "result", "error", "traceback", "attempt", "submitted", "started", "finished", "progress",
)  # fmt: skip
_CONSTANTS = {"BY_HAND": BY_HAND, "EXPIRED": EXPIRED, "KILLED": KILLED, "WORKER_LOST": WORKER_LOST, "LEFT": LEFT}
_PREAMBLE = "".join(f"local {name} = {json.dumps(text)}\n" for name, text in _CONSTANTS.items())
_PREAMBLE += f"local MAX_CRASHES, HISTORY_LIMIT = {MAX_CRASHES}, {HISTORY_LIMIT}\n"


class _Script:
    """The text of a script, and the hash by which the server knows it."""

    def __init__(self, text: str) -> None:
        self.text = (_PREAMBLE + _COMMON + text).encode()
        self.sha = hashlib.sha1(self.text).hexdigest().encode()  # noqa: S324 (Redis's name for it, no secret)


_SCRIPTS = {
    "push": _Script(_PUSH),
    "claim": _Script(_CLAIM),
    "settle": _Script(_SETTLE),
    "heartbeat": _Script(_HEARTBEAT),
    "cancel": _Script(_CANCEL),
    "requeue": _Script(_REQUEUE),
    "purge": _Script(_PURGE),
    "report": _Script(_REPORT),
    "set_queue": _Script(_SET_QUEUE),
    "record": _Script(_RECORD),
    "get": _Script(_GET.replace("RESULT_FIELDS", str(_RESULT_FIELDS)[1:-1])),
    "find": _Script(_FIND),
    "ahead": _Script(_AHEAD),
    "look": _Script(_LOOK),
}

# ---------------------------------------------------------------------------
# The wire
#
# One connection for commands, one for what is published. Both come back by
# themselves. Knows scripts by name, and nothing of jobs.
# ---------------------------------------------------------------------------

_TLS_OPTIONS = frozenset(("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"))
_AWAY = (redis.ConnectionError, redis.TimeoutError, OSError)
# What a server says that will soon be able to do it, or of which another one is the master by now.
_PASSING = (
    redis.exceptions.ReadOnlyError,
    redis.exceptions.TryAgainError,
    redis.exceptions.MovedError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.MasterDownError,
)


class _Address:
    """Where a server is, as its URL says."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        options = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        self.prefix = "{" + options.pop("prefix", "flowrra") + "}"
        known = {"db"} if parts.scheme == "unix" else _TLS_OPTIONS if parts.scheme == "rediss" else frozenset()
        for name in options.keys() - known:
            raise ConfigError(f"{_without_password(parts)!r} has the unknown option {name!r}; there is prefix=, and "
                              f"{', '.join(sorted(known)) or 'no other'}")  # fmt: skip
        if parts.scheme != "unix" and not parts.path.strip("/").isdecimal() and parts.path.strip("/"):
            raise ConfigError(f"{_without_password(parts)!r}: the path is the number of the database, such as /0")
        if self.prefix == "{}" or set(self.prefix[1:-1]) & set("{}"):
            raise ConfigError(f"prefix must be a text without braces, not {self.prefix[1:-1]!r}")
        plain = parts._replace(query=urllib.parse.urlencode(options)).geturl()
        try:
            pool = redis_asyncio.ConnectionPool.from_url(plain)
        except ValueError as error:
            raise ConfigError(f"{_without_password(parts)!r} cannot be read: {error}") from None
        self.name = _without_password(parts._replace(query=""))
        self._class = pool.connection_class
        self._options = pool.connection_kwargs

    async def connect(self) -> Any:
        """A new connection, ready to be used."""
        options = {**self._options, "protocol": 2, "decode_responses": True, "encoding_errors": "surrogatepass"}
        connection = self._class(**options, socket_timeout=None, socket_connect_timeout=_PATIENCE)
        try:
            await connection.connect()
        except redis.AuthenticationError as error:
            raise BrokerError(f"{self.name} does not accept this user and password: {error}") from None
        return connection

    def follow(self, moved: str) -> None:
        """Go to the node of a cluster that `moved` (MOVED SLOT HOST:PORT) tells of."""
        host, _, port = moved.split()[-1].rpartition(":")
        self._options = {**self._options, "port": int(port), "host": host or self._options.get("host", "localhost")}


def _without_password(parts: urllib.parse.SplitResult) -> str:
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


class _Call:
    """One script to be run. `answer` is what came of it, an exception if it failed."""

    __slots__ = ("answer", "arguments", "is_answered", "is_repeatable", "needs_text", "script")

    def __init__(self, name: str, arguments: Iterable[str], *, is_repeatable: bool = True) -> None:
        self.script = _SCRIPTS[name]
        self.arguments = list(arguments)
        self.is_repeatable = is_repeatable
        self.is_answered = False
        self.needs_text = False  # the server does not know the script (any more)
        self.answer: Any = None

    def take(self, answer: Any) -> None:
        self.answer = answer
        self.is_answered = True

    def pack(self, prefix: bytes) -> bytes:
        """The command as bytes: redis-py's own packing costs three times as much."""
        script = (b"EVAL", self.script.text) if self.needs_text else (b"EVALSHA", self.script.sha)
        words = [*script, b"1", prefix, *[text.encode("utf-8", "surrogatepass") for text in self.arguments]]
        return b"*%d\r\n" % len(words) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


class _Link:
    """The connection for commands: a group of calls is one write, and their answers are read in order."""

    def __init__(self, address: _Address, timeout: float) -> None:
        self._address = address
        self._timeout = timeout
        self._prefix = f"{address.prefix}:".encode()
        self._connection: Any = None

    async def send(self, calls: Sequence[_Call]) -> None:
        """See that each call has an answer, within the time that a call may take.

        What was on its way when the connection was lost is sent again if it is repeatable; else its answer
        is a BrokerError. Cancelling drops the connection.
        """
        deadline = asyncio.get_running_loop().time() + self._timeout
        left = list(calls)
        for pause in itertools.chain((0.0, 0.02, 0.05, 0.1, 0.2), itertools.repeat(0.5)):
            try:
                await self._exchange(left, deadline)
            except BrokerError as error:
                self._give_up(left, error)
            except _AWAY as error:
                await self.drop()
                if asyncio.get_running_loop().time() + pause >= deadline:
                    text = f"has not answered for {self._timeout:g} s: {error or 'it is silent'}"
                    self._give_up(left, self._error(text))
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 (no secret)
            left = [call for call in left if not call.is_answered]
            if not left:
                return

    def _give_up(self, calls: Sequence[_Call], error: BrokerError) -> None:
        for call in calls:
            if not call.is_answered:
                call.take(error)

    async def _exchange(self, calls: Sequence[_Call], deadline: float) -> None:
        """Send the calls and read the answers, which may be errors that deserve another try."""
        packed = [call.pack(self._prefix) for call in calls]
        patience = _PATIENCE + sum(map(len, packed)) / 1e6
        is_sent = False
        try:
            async with asyncio.timeout_at(min(deadline, asyncio.get_running_loop().time() + patience)):
                if self._connection is None:
                    self._connection = await self._address.connect()
                is_sent = True
                await self._connection.send_packed_command(packed, check_health=False)
                for call in calls:
                    await self._read(call)
        except _AWAY as error:
            if is_sent:
                unsure = [call for call in calls if not call.is_repeatable]
                self._give_up(unsure, self._error(f"was lost before it answered: {error or 'it is silent'}"))
            raise

    async def _read(self, call: _Call) -> None:
        try:
            call.take(await self._connection.read_response())
        except redis.exceptions.NoScriptError:
            call.needs_text = True
        except redis.ResponseError as error:
            self._judge(call, error)

    def _judge(self, call: _Call, error: redis.ResponseError) -> None:
        """An error that the server answered: for good, or worth another try on another connection."""
        text = str(error)
        if isinstance(error, _PASSING) or "READONLY" in text or text.startswith(("BUSY ", "MOVED ")):
            if isinstance(error, redis.exceptions.MovedError) or text.startswith("MOVED "):
                self._address.follow(text)
            raise redis.ConnectionError(text)
        if isinstance(error, redis.OutOfMemoryError) or "OOM" in text:
            text = f"is out of memory, so that nothing was written: raise maxmemory, or purge ({text})"
        elif isinstance(error, redis.exceptions.NoPermissionError):
            text = f"does not allow this user the scripts, keys and channels of {self._address.prefix} ({text})"
        call.take(self._error(text))

    def _error(self, text: str) -> BrokerError:
        return BrokerError(f"{self._address.name} {text}")

    async def configuration(self) -> dict[str, str]:
        """What the server says of how it keeps jobs; nothing where that is forbidden."""
        try:
            await self._connection.send_command("CONFIG", "GET", "*append*")
            pairs = await self._connection.read_response()
            await self._connection.send_command("CONFIG", "GET", "maxmemory-policy")
            pairs += await self._connection.read_response()
        except redis.ResponseError:
            return {}
        return dict(zip(pairs[::2], pairs[1::2], strict=True))

    async def drop(self) -> None:
        """Close the connection; the next call opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)


class _Ear:
    """The connection for what is published: channels that are wanted are subscribed to, again and again.

    `hear(channel, text)` is called for each message, and with None when a subscription begins: before
    that, anything may have been missed.
    """

    def __init__(self, address: _Address, hear: Callable[[str, str | None], None]) -> None:
        self._address = address
        self._hear = hear
        self._wanted: list[str] = []
        self._connection: Any = None
        self._task: asyncio.Task[None] | None = None

    def want(self, channel: str) -> None:
        """Listen to `channel` from now on."""
        if channel in self._wanted:
            return
        self._wanted.append(channel)
        if self._task is not None:
            self._task.cancel()
        self._task = asyncio.create_task(self._listen())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _listen(self) -> None:
        failures = 0
        while True:
            try:
                await self._follow()
            except (redis.RedisError, OSError) as error:
                failures += 1
                if failures % 20 == 1:
                    logger.warning(
                        "%s: what is published there is not heard (%s); trying again", self._address.name, error
                    )
            await asyncio.sleep(random.uniform(0.1, 0.5))  # noqa: S311 (no secret)

    async def _follow(self) -> None:
        """Listen until the connection is lost. One that is silent is asked whether it is still there."""
        connection = await self._address.connect()
        try:
            channels = [f"{self._address.prefix}:{channel}" for channel in self._wanted]
            await connection.send_command("SUBSCRIBE", *channels, check_health=False)
            silent = False
            while True:
                message = await connection.read_response(timeout=_PATIENCE, disconnect_on_error=False)
                if message is None:
                    if silent:
                        raise redis.ConnectionError("no answer")
                    await connection.send_command("PING", check_health=False)
                silent = message is None
                if message is not None and message[0] in ("message", "subscribe"):
                    channel = message[1].rpartition(":")[2]
                    self._hear(channel, message[2] if message[0] == "message" else None)
        finally:
            await connection.disconnect(nowait=True)


# ---------------------------------------------------------------------------
# The broker
#
# Turns jobs and outcomes into arguments, and answers into jobs and results.
# ---------------------------------------------------------------------------


class _Hands:
    """What the workers of this process hold, so that a claim or a settle whose answer was lost can be mended."""

    def __init__(self) -> None:
        self._held: dict[str, dict[str, int]] = {}  # worker > id > attempt
        self._numbers: dict[str, int] = {}
        self._doubtful: set[str] = set()  # workers that may hold more than they know of
        self._open: set[tuple[str, int]] = set()  # attempts that may be settled already

    def show(self, worker: str) -> tuple[str, str]:
        """The last two arguments of a claim."""
        if worker in self._doubtful:
            self._doubtful.discard(worker)
            self._numbers[worker] = self._numbers.get(worker, 0) + 1
            return str(self._numbers[worker]), _json(self._held.get(worker, {}))
        return str(self._numbers.get(worker, 0)), "false"

    def take(self, worker: str, jobs: Sequence[Job]) -> None:
        held = self._held.setdefault(worker, {})
        for job in jobs:
            held[job.id] = job.attempt

    def doubt(self, worker: str) -> None:
        """A claim of this worker has failed, and may have been carried out."""
        self._doubtful.add(worker)

    def is_open(self, outcome: Outcome) -> bool:
        """Whether this outcome may have been written by a call whose answer was lost."""
        return bool(self._open) and (outcome.job.id, outcome.attempt) in self._open

    def settle(self, outcomes: Sequence[Outcome], *, failed: bool) -> None:
        for outcome in outcomes:
            key = (outcome.job.id, outcome.attempt)
            if failed:
                self._open.add(key)
                continue
            if self._open:
                self._open.discard(key)
            if outcome.job.worker is not None:
                self._held.get(outcome.job.worker, {}).pop(outcome.job.id, None)


class _Operation:
    """What a caller wants of a script. Those of one `merges` script that meet go out as one call."""

    __slots__ = ("answer", "arguments", "is_repeatable", "merges", "name")

    def __init__(self, name: str, *arguments: str, merges: bool = False, is_repeatable: bool = True) -> None:
        self.name = name
        self.arguments: Sequence[str] = arguments
        self.merges = merges
        self.is_repeatable = is_repeatable
        self.answer: Any = None

    def pack(self) -> Sequence[str]:
        """The arguments. Asked for when the call goes out."""
        return self.arguments

    def take(self, answer: Any) -> None:
        """Note the answer, an exception if it failed, before the next group goes out."""
        self.answer = answer


class _Claim(_Operation):
    __slots__ = ("_hands", "_now", "_queue", "_worker")

    def __init__(self, hands: _Hands, queue: str, limit: int, worker: str, now: float, bury_at: float) -> None:
        super().__init__("claim", queue, str(limit), worker, repr(now), repr(bury_at), is_repeatable=False)
        self._hands = hands
        self._queue = queue
        self._worker = worker
        self._now = now

    def pack(self) -> Sequence[str]:
        return (*self.arguments, *self._hands.show(self._worker))

    def take(self, answer: Any) -> None:
        if isinstance(answer, BaseException):
            self._hands.doubt(self._worker)
            self.answer = answer
            return
        due, *rows = answer
        jobs = [_claimed_job(rows, i, self._queue, self._worker, self._now) for i in range(0, len(rows), 8)]
        self._hands.take(self._worker, jobs)
        self.answer = float(due) if due else None, jobs


class _Settle(_Operation):
    __slots__ = ("_hands", "_order", "_outcomes")

    def __init__(self, hands: _Hands, outcomes: Sequence[Outcome], now: float, retention: BackendConfig) -> None:
        text, self._order = _settle_argument(outcomes, now, retention, hands)
        super().__init__("settle", text, merges=True, is_repeatable=False)
        self._hands = hands
        self._outcomes = outcomes

    def take(self, answer: Any) -> None:
        failed = isinstance(answer, BaseException)
        self._hands.settle(self._outcomes, failed=failed)
        if failed:
            self.answer = answer
            return
        written = [False] * len(self._order)
        for index, flag in zip(self._order, answer, strict=True):
            written[index] = flag == "1"
        self.answer = written


class RedisBroker(Broker):
    """Jobs in Redis, for many processes on many machines; `url` as at the top of this module.

    A call waits up to `config.timeout` seconds for a server that is away, restarts or fails over, and then
    raises a BrokerError. That leaves it open whether the call was carried out: `push` again with the same
    ids changes nothing. A connection that is silent for 5 s is given up for a new one.
    """

    keeps_text = True

    def __init__(
        self,
        url: str,
        config: BrokerConfig | None = None,
        retention: BackendConfig | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.url = url
        self.config = config or BrokerConfig()
        self.retention = retention or BackendConfig()
        self._clock = clock or Clock()
        self._address = _Address(url)
        self._hands = _Hands()
        self._batcher: Batcher[_Operation, Any] | None = None

    def twin(self) -> RedisBroker:
        return RedisBroker(self.url, self.config, self.retention, self._clock)

    # Opening and closing -----------------------------------------------------------------------

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._link = _Link(self._address, self.config.timeout)
        self._ear = _Ear(self._address, self._hear)
        self._heard: collections.Counter[str] = collections.Counter()  # messages by channel
        self._claimed_at: dict[str, int] = {}  # queue > what had been heard before its latest claim
        self._next_due: float | None = None
        self._ready_waiters: dict[asyncio.Future[None], str] = {}
        self._result_waiters: dict[str, list[asyncio.Future[None]]] = {}
        self._look_timer: asyncio.TimerHandle | None = None
        self._batcher = Batcher(self._send)
        try:
            await self._check()
        except BaseException:
            await self.close()
            raise

    async def _check(self) -> None:
        """See that the server is there, and warn if it is set up to lose jobs."""
        await self._run(_Operation("look"))
        settings = await self._link.configuration()
        if settings.get("appendonly") == "no":
            logger.warning(
                "%s keeps no append-only file: a restart loses jobs (set appendonly yes)", self._address.name
            )
        policy = settings.get("maxmemory-policy", "noeviction")
        if policy != "noeviction":
            logger.warning(
                "%s throws keys away when its memory is full: set maxmemory-policy noeviction, not %s",
                self._address.name, policy,
            )  # fmt: skip

    async def close(self) -> None:
        batcher, self._batcher = self._batcher, None
        if batcher is None:
            return
        if self._look_timer is not None:
            self._look_timer.cancel()
        await batcher.close()
        await self._ear.close()
        await self._link.drop()
        closed = BrokerError("the broker was closed while this call was waiting")
        for waiter in (*self._ready_waiters, *itertools.chain(*self._result_waiters.values())):
            if not waiter.done():
                waiter.set_exception(closed)
        await asyncio.sleep(0)  # for the transports, which close their sockets in the next turn

    async def _run(self, operation: _Operation, weight: int = 1) -> Any:
        """Have a script run with the next group. Cancelling leaves it open whether it was."""
        if self._batcher is None:
            raise BrokerError(f"the broker on {self._address.name} is not open")
        return await self._batcher.put(operation, weight)

    async def _send(self, operations: list[_Operation]) -> list[Any]:
        """Send a group: what merges as one call, everything in one write."""
        merged: dict[str, list[_Operation]] = {}
        for number, operation in enumerate(operations):
            merged.setdefault(operation.name if operation.merges else str(number), []).append(operation)
        calls = []
        for kin in merged.values():
            arguments = itertools.chain.from_iterable(operation.pack() for operation in kin)
            calls.append(_Call(kin[0].name, arguments, is_repeatable=kin[0].is_repeatable))
        await self._link.send(calls)
        for call, kin in zip(calls, merged.values(), strict=True):
            shared = isinstance(call.answer, BaseException) or not kin[0].merges
            for operation, answer in zip(kin, [call.answer] * len(kin) if shared else call.answer, strict=True):
                operation.take(answer)
        return [operation.answer for operation in operations]

    def _bury_at(self, now: float) -> float:
        return now + self.retention.failed_ttl

    # Jobs --------------------------------------------------------------------------------------

    async def push(self, jobs: Sequence[Job], *, now: float) -> list[str]:
        if not jobs:
            return []
        runs: list[str] = []
        for kind, kin in itertools.groupby(jobs, _kind):
            for part in _parts(list(kin), _RUN):
                runs.append(_run_argument(kind, part))
                if len(part) == _RUN:
                    await asyncio.sleep(0)  # let others have the loop
        header = _json([repr(now), repr(self._bury_at(now)), len(runs), _outside_parents(jobs)])
        ids = await self._run(_Operation("push", header, *runs, merges=True), len(jobs))
        if isinstance(ids, str):
            raise unknown_job(ids)
        return ids or [job.id for job in jobs]

    async def claim(self, queue: str, *, limit: int, worker: str, now: float) -> list[Job]:
        self._claimed_at[queue] = self._heard["jobs"]
        self._next_due, jobs = await self._run(_Claim(self._hands, queue, limit, worker, now, self._bury_at(now)))
        return cast("list[Job]", jobs)

    async def settle(self, outcomes: Sequence[Outcome], *, now: float) -> list[bool]:
        if not outcomes:
            return []
        operation = _Settle(self._hands, outcomes, now, self.retention)
        return cast("list[bool]", await self._run(operation, len(outcomes)))

    async def heartbeat(self, worker: WorkerInfo, *, lease: float, now: float) -> Notices:
        self._claimed_at[""] = self._heard["notices"]
        arguments = (worker.id, repr(lease), repr(now), repr(self._bury_at(now)), _worker_text(worker, now))
        answer = await self._run(_Operation("heartbeat", *arguments, _json(list(worker.queues))))
        known, cancelled, paused, suspects, lost = answer
        lapsed = not known and worker.seen > 0
        worker.seen = now
        return Notices(cancelled, lapsed, frozenset(paused), bool(suspects), lost)

    async def report(self, progress: Mapping[str, Progress]) -> None:
        pairs = ((task_id, _json([p.done, p.total, p.note])) for task_id, p in progress.items())
        await self._run(_Operation("report", *itertools.chain.from_iterable(pairs)))

    async def cancel(self, task_id: str, *, now: float) -> bool:
        return bool(await self._run(_Operation("cancel", task_id, repr(now), repr(self._bury_at(now)))))

    async def requeue(self, task_ids: Sequence[str], *, now: float) -> list[bool]:
        operation = _Operation("requeue", _json(list(task_ids)), repr(now), repr(self._bury_at(now)))
        return [flag == 1 for flag in await self._run(operation)]

    async def purge(self, before: float, limit: int) -> int:
        return int(await self._run(_Operation("purge", repr(before), str(limit))))

    async def set_queue(self, queue: str, *, paused: bool) -> None:
        await self._run(_Operation("set_queue", check_queue(queue), str(int(paused))))

    async def record(self, results: Sequence[TaskResult[Any]]) -> None:
        arguments: list[str] = []
        for result in results:
            purge_at = (result.finished or 0.0) + self.retention.ttl(result.status)
            arguments += (result.task_id, repr(purge_at), _json(_recorded_fields(result)))
        if arguments:
            await self._run(_Operation("record", *arguments))

    # Waiting -----------------------------------------------------------------------------------

    def _hear(self, channel: str, text: str | None) -> None:
        """What was published; None: anything may have been."""
        self._heard[channel] += 1
        if channel == "results":
            waited = list(self._result_waiters) if text is None else json.loads(text)
            for task_id in waited if self._result_waiters else ():
                for waiter in self._result_waiters.pop(task_id, ()):
                    _resolve(waiter)
        else:
            for waiter, wanted in self._ready_waiters.items():
                if wanted == channel:
                    _resolve(waiter)

    async def wait_ready(self, queues: Sequence[str], timeout: float) -> None:
        channel = "jobs" if queues else "notices"
        self._ear.want(channel)
        if any(self._claimed_at.get(queue, -1) != self._heard[channel] for queue in queues or ("",)):
            return
        if queues and self._next_due is not None:
            timeout = min(timeout, self._next_due - self._clock.time())
        waiter = self._loop.create_future()
        self._ready_waiters[waiter] = channel
        timer = self._loop.call_later(max(0.0, timeout), _resolve, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._ready_waiters.pop(waiter, None)

    async def wait_for(self, task_id: str, timeout: float | None) -> TaskResult[Any]:
        waiter = self._expect(task_id)  # before looking, so that no end falls between looking and listening
        try:
            result = await self._known(task_id)
            async with asyncio.timeout(timeout):
                while not result.is_finished:
                    self._ear.want("results")  # if it is new, its beginning makes all who wait look again
                    await waiter
                    waiter = self._expect(task_id)
                    result = await self._known(task_id)
            return result
        except TimeoutError:
            raise timed_out(task_id, timeout) from None
        finally:
            self._expect_no_more(task_id, waiter)

    async def _known(self, task_id: str) -> TaskResult[Any]:
        (result,) = await self.get([task_id])
        if result is None:
            raise unknown_job(task_id)
        return result

    def _expect(self, task_id: str) -> asyncio.Future[None]:
        if self._batcher is not None and self._look_timer is None:
            self._look_timer = self._loop.call_later(_LOOK_EVERY, self._look)
        waiter = self._loop.create_future()
        self._result_waiters.setdefault(task_id, []).append(waiter)
        return waiter

    def _expect_no_more(self, task_id: str, waiter: asyncio.Future[None]) -> None:
        waiters = self._result_waiters.get(task_id, [])
        if waiter in waiters:
            waiters.remove(waiter)
        if not waiters:
            self._result_waiters.pop(task_id, None)

    def _look(self) -> None:
        """Have all who wait look for themselves, as long as somebody does."""
        self._look_timer = None
        self._hear("results", None)

    # Looking -----------------------------------------------------------------------------------

    async def get(self, task_ids: Sequence[str]) -> list[TaskResult[Any] | None]:
        rows = await self._run(_Operation("get", _json(list(task_ids)), merges=True), len(task_ids))
        return [_result_of(task_id, row) if row else None for task_id, row in zip(task_ids, rows, strict=True)]

    async def find(self, which: JobFilter, *, limit: int = 100, after: int | None = None) -> list[Job]:
        found: list[Job] = []
        async for job in self._search(which, after, limit):
            found.append(job)
            if len(found) == limit:
                break
        return found

    async def _search(self, which: JobFilter, after: int | None, limit: int) -> AsyncIterator[Job]:
        """The jobs, the latest first, in steps that each look at a page of them."""
        ahead = None if which.ahead_of is None else _member(which.ahead_of)[:29]
        queue = which.queue if which.ahead_of is None else which.ahead_of.queue
        if which.ahead_of is not None and which.queue not in (None, queue):
            return
        parts: list[Any] = [
            None if which.ids is None else list(dict.fromkeys(which.ids)),
            None if which.status is None else sorted(which.status),
            queue, which.worker, None if which.task is None else f"[{_json(which.task)},", ahead,
        ]  # fmt: skip
        wanted = _json([False if part is None else part for part in parts])
        below = "+inf" if after is None else f"({after}"
        while below != "(":
            operation = _Operation("find", wanted, below, str(limit), str(_PAGE))
            next_seq, *rows = await self._run(operation)
            jobs = [_job_of(*rows[i : i + 3]) for i in range(0, len(rows), 3)]
            for job in sorted(jobs, key=lambda job: -job.seq):
                if after is None or job.seq < after:
                    yield job
            below = f"({next_seq}"

    async def counts(self, which: JobFilter | None = None) -> dict[tuple[str, TaskStatus], int]:
        which = which or JobFilter()
        if which == JobFilter(status=which.status, queue=which.queue):
            (pairs, _, _) = await self._run(_Operation("look"))
            names = (name.partition(" ") for name in pairs[::2])
            counts = {
                (queue, TaskStatus(status)): int(n) for (status, _, queue), n in zip(names, pairs[1::2], strict=True)
            }
            return {
                (queue, status): number for (queue, status), number in counts.items()
                if which.queue in (None, queue) and (which.status is None or status in which.status)
            }  # fmt: skip
        if which == JobFilter(ahead_of=which.ahead_of) and which.ahead_of is not None:
            number = await self._run(_Operation("ahead", which.ahead_of.queue, _member(which.ahead_of)))
            return {(which.ahead_of.queue, PENDING): number} if number else {}
        found: collections.Counter[tuple[str, TaskStatus]] = collections.Counter()
        async for job in self._search(which, None, _PAGE):
            found[job.queue, job.status] += 1
        return dict(found)

    async def workers(self) -> list[WorkerInfo]:
        (_, _, texts) = await self._run(_Operation("look"))
        return sorted((WorkerInfo(*json.loads(text)) for text in texts), key=lambda info: info.started)

    async def paused(self) -> set[str]:
        (_, paused, _) = await self._run(_Operation("look"))
        return set(paused)


# ---------------------------------------------------------------------------
# Arguments and answers
# ---------------------------------------------------------------------------

_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode  # raw: cjson refuses lone surrogates


def _kind(job: Job) -> tuple[Any, ...]:
    """What jobs that can go in together have in common. One that needs care of its own is alone."""
    alone = job.id if job.unique is not None or job.parents else None
    return job.task, job.queue, job.priority, job.due, job.expires, job.overrides, job.unique, job.parents, alone


def _run_argument(kind: tuple[Any, ...], jobs: Sequence[Job]) -> str:
    task, queue, priority, due, expires, overrides, unique, parents, _ = kind
    texts = itertools.chain.from_iterable((job.id, encode_arguments(job)) for job in jobs)
    return _json([
        queue, f"{priority + _LOWEST:016x}", _plain_head(task) if not overrides else _json([task, dict(overrides)]),
        False if due is None else repr(due), False if expires is None else repr(expires),
        False if unique is None else unique, list(dict.fromkeys(parents)) or False, list(texts),
    ])  # fmt: skip


@functools.lru_cache(maxsize=4096)
def _plain_head(task: str) -> str:
    return _json([task, None])


_LOWEST = 2**63  # added to a priority, so that the lowest one is 0


def _member(job: Job) -> str:
    """The job as it stands in its queue: PLACE ID."""
    return f"{job.priority + _LOWEST:016x}{job.seq:013x}{job.id}"


def _outside_parents(jobs: Sequence[Job]) -> list[list[str]]:
    """Of each job with parents that are not among the jobs before it: its id, then those."""
    before: set[str] = set()
    needs = []
    for job in jobs:
        outside = [parent for parent in job.parents if parent not in before]
        if outside:
            needs.append([job.id, *outside])
        before.add(job.id)
    return needs


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _settle_argument(
    outcomes: Sequence[Outcome], now: float, retention: BackendConfig, hands: _Hands
) -> tuple[str, list[int]]:
    """The argument of a settle, and which outcome each flag of the answer is for."""
    successes: dict[tuple[Any, ...], tuple[list[Any], list[int]]] = {}
    others: list[tuple[list[Any], int]] = []
    bury_at = repr(now + retention.failed_ttl)
    for index, outcome in enumerate(outcomes):
        job, again = outcome.job, hands.is_open(outcome)
        if outcome.status is SUCCESS:
            rest, order = successes.setdefault((job.worker, outcome.keep, again), ([], []))
            rest += (job.id, outcome.attempt, encode_value(outcome) if outcome.text is None else outcome.text)
            order.append(index)
        else:
            keep = retention.failed_ttl if outcome.keep is None else outcome.keep
            due = False if outcome.due is None else repr(outcome.due)
            rest = [job.id, outcome.attempt, outcome.error or False, outcome.traceback or False, due, outcome.ending]
            others.append(([job.worker, outcome.status, repr(now), bury_at, repr(now + keep), again, rest], index))
    groups = []
    for (worker, keep, again), (rest, _) in successes.items():
        purge_at = now + (retention.result_ttl if keep is None else keep)
        groups.append([worker, SUCCESS, repr(now), bury_at, repr(purge_at), again, rest])
    order = [index for _, indices in successes.values() for index in indices]
    return _json([*groups, *(group for group, _ in others)]), order + [index for _, index in others]


def _recorded_fields(result: TaskResult[Any]) -> list[str]:
    """A result from elsewhere as the fields of a job."""
    values = {
        "head": _json([result.task, None]), "payload": NO_ARGUMENTS, "status": result.status,
        "submitted": repr(result.submitted), "attempt": str(result.attempts),
        "started": None if result.started is None else repr(result.started),
        "finished": repr(result.finished or 0.0), "error": result.error, "traceback": result.traceback,
        "result": encode(result.result) if result.is_success else None,
    }  # fmt: skip
    return [text for name, value in values.items() if value is not None for text in (name, str(value))]


def _worker_text(worker: WorkerInfo, now: float) -> str:
    values: list[Any] = [worker.id, worker.host, worker.pid, dict(worker.queues), list(worker.tasks), worker.started]
    return _json([*values, now, worker.running, worker.version])


@functools.lru_cache(maxsize=4096)
def _head(text: str) -> tuple[str, Mapping[str, Any] | None]:
    """The name of the task and the overridden options; few differ, so that reading them once is enough."""
    task, overrides = json.loads(text)
    return task, overrides


def _claimed_job(rows: Sequence[Any], at: int, queue: str, worker: str, now: float) -> Job:
    member, head, payload, submitted, attempt, failures, crashes, parents = rows[at : at + 8]
    task, overrides = _head(head)
    job = Job(member[29:], task, (), _NO_KEYWORDS, queue, int(member[:16], 16) - _LOWEST, payload)
    job.overrides = overrides
    job.status = RUNNING
    job.worker = worker
    job.started = now
    job.submitted = float(submitted)
    job.seq = int(member[16:29], 16)
    job.attempt = int(attempt)
    job.failures = int(failures)
    job.crashes = int(crashes)
    if parents is not None:
        job.parents = tuple(json.loads(parents))
    return job


_NO_KEYWORDS: Mapping[str, Any] = types.MappingProxyType({})


def _job_of(task_id: str, pairs: Sequence[str], history: Sequence[str]) -> Job:
    """A job from its hash. Its fields are those of `Job`, but for `head` and `place`."""
    values: dict[str, Any] = dict(zip(pairs[::2], pairs[1::2], strict=True))
    task, overrides = _head(values.pop("head"))
    place = values.pop("place")
    values["cancel_requested"] = "cancel" in values
    for name in ("cancel", "children"):
        values.pop(name, None)
    for name in _FLOATS & values.keys():
        values[name] = float(values[name])
    for name in _COUNTERS & values.keys():
        values[name] = int(values[name])
    if "parents" in values:
        values["parents"] = tuple(json.loads(values["parents"]))
    if "result" in values:
        values["result"] = decode(values["result"])
    if "progress" in values:
        values["progress"] = Progress(*json.loads(values["progress"]))
    values["status"] = TaskStatus(values["status"])
    attempts = tuple(Attempt(*json.loads(entry)) for entry in history)
    priority, seq = int(place[:16], 16) - _LOWEST, int(place[16:], 16)
    return Job(task_id, task, priority=priority, seq=seq, overrides=overrides, history=attempts, **values)


_FLOATS = frozenset(("due", "expires", "submitted", "started", "finished", "purge_at"))
_COUNTERS = frozenset(("attempt", "failures", "crashes"))


def _result_of(task_id: str, row: Sequence[Any]) -> TaskResult[Any]:
    head, status, result, error, traceback, attempt, submitted, started, finished, progress = row
    return TaskResult(
        task_id,
        _head(head)[0],
        TaskStatus(status),
        None if result is None else decode(result),
        error,
        traceback,
        int(attempt or 0),
        float(submitted),
        None if started is None else float(started),
        None if finished is None else float(finished),
        None if progress is None else Progress(*json.loads(progress)),
    )


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def broker_from_url(url: str, config: Config, clock: Clock) -> RedisBroker:
    """The broker that `redis://`, `rediss://` and `unix://` stand for."""
    return RedisBroker(url, config.broker, config.backend, clock)
