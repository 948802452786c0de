"""The scripts that run in the server.

Each script is atomic. The frequent moves are scripts: push, claim, settle. For all others, the script `read` returns
jobs, the rules in `flowrra` decide, and the script `apply` writes, if nothing that was read has changed: see `changes`.

Limits are different: each script that moves a job of a limit calls `admit`, which does what the rules `admit`,
`admit_due` and `charge` do. Many callers use one limit key at the same time, so what one of them has read of it would
seldom be unchanged when it writes.

All keys begin with the prefix in braces, so that a cluster keeps them in one slot. Below, P is `{flowrra}`:

    P:state           hash: what scripts read first      P:job:ID        hash: the job, see FIELDS and `job_of`
    P:buckets         zset B > B: buckets with jobs      P:ids:B         hash byte > id: the jobs of a bucket
    P:seqs:INDEX      zset B > the bucket's jobs in it   P:history:ID    list: its earlier attempts, as JSON
    P:steps:ID        hash name > place and step, JSON   P:family:ID     zset seq > id: the jobs of which ID is a
                                                                         parent, finished ones too
    P:ready:QUEUE     zset: PLACE ID, in lexical order   P:suspects:QUEUE  zset crashes > PLACE ID
    P:due             zset due > id: waiting jobs; and   P:unique        hash key > id, of unfinished jobs
                      NUL K: limit keys; NUL : K: all limit keys of a changed limit, from K on
    P:expiring        zset expires > id: not started     P:running:W     set: the running jobs of worker W
    P:purges          zset the first purge_at > seqs     P:cancelling    set: running jobs to be cancelled
    P:leases          zset end > worker, by Redis's TIME P:workers       hash worker > JSON
    P:minutes         zset: minutes with activity        P:minute:M      hash worker > its activity in it, JSON
    P:limits          hash name > text of a Limit        P:limit-numbers hash name > its numbers, see `limit_words`
    P:limit-keys      zset in lexical order: each limit key K that has running, ready or waiting jobs
    P:key-pending:K   set: its ready jobs                P:key-waiting:K zset: PLACE ID, jobs that wait for the limit
    P:key-running:K   set: its running jobs              P:key-paused    set of K
    P:key-tat         zset tat > K, see LimitKey
    P:totals          hash WHAT TASK > total number; WHAT is a place in the rows of that JSON
    P:endings         list of jobs for heartbeats, JSON  channels P:jobs, P:results, P:notices

A bucket is the jobs whose seqs, divided by 256, give B; a byte names one of them. So a job takes 40 bytes in P:ids and
one byte or two in each INDEX (an entry of a sorted set of jobs took 145), which is one of
    by:STATUS         except ready and running jobs      by:error        a superset of those with an error
    task:NAME         NAME as JSON without its quotes    tag:TAG         jobs with a tag
    placed            ready jobs with a `turn`
An entry of an index is B, a colon and the bytes, in any order. An entry of P:purges is seqs of jobs that finished
within a minute; some of them may have been deleted or requeued since.

The fields of P:state:
    seq               the order of submission            STATUS QUEUE    number of jobs; suspects count apart
    paused QUEUE      the queue is paused                alone W         worker W runs a suspect
    claims W          the latest claim of W; exists while W has a lease
    length W          of W's lease, in seconds           term W          when W got its lease for the first time
    graced W          W's lease is a fresh one that another worker gave it
    version           the version of these keys: VERSION, if absent 1, which had fields with long names, P:all and
                      P:purge with an entry for each job, and sets of parents and children instead of `waits`
    place             the last `turn`

PLACE is the priority (16 hex digits, with a bias that makes the lowest 0) and the seq (13 digits). A score, which is a
double, could not contain both. A ready job of a fair queue has a field `turn`, its `place`. In P:ready it is behind the
jobs without one: priority, `g`, turn (13 digits), seq, ID. Times are stored as the caller's text, because Lua prints
14 digits.

The revision of a job is its PLACE, `status`, `attempt` and `rev`, the token of the latest `apply` or pause that wrote
it. Each script changes one of these, and no combination occurs twice.

An idle server is slow, because its caches are cold: the first use of a command took 10 to 28 us, each further use 1 us.
So push and claim use few different commands.

Each script has a header with its ARGV and its answer. KEYS[1] is always the prefix with its colon. ARGV[1] is always 1
if this may be a repetition of a call whose answer was lost, otherwise 0; the headers omit it. '' means "none".
"""

import hashlib
import re

from flowrra import ENDINGS_KEPT, ENDINGS_TAKEN, UPKEEP_STEP

__all__ = ["CLAIMED_FIELDS", "FIELDS", "READ_AT_ONCE", "READ_FIELDS", "RESULT_FIELDS", "SCRIPTS", "VERSION", "Script"]

VERSION = 7  # of the keys
READ_AT_ONCE = 2000  # jobs
MOST_LOOKS = 500  # entries of queues and priorities in one step
RATE_SLACK = 2e-6  # seconds, as in the rules
BUCKET = 256  # seqs, so that a byte names one of them
BUCKETS_READ = 10  # by one command
BUCKETS_AT_ONCE = 100  # in one step
FEW_IDS = 16  # of a bucket that are read one by one
PURGE_SPAN = 60  # seconds
PURGE_SIZE = 500  # bytes
PURGE_LOOKS = 10  # jobs that may be read for each one that is deleted

_COMMON = """
local p, again = KEYS[1], ARGV[1] == '1'  -- p with its colon, so that an ACL of ~{flowrra}:* allows it
local call, encode, state = redis.call, cjson.encode, KEYS[1] .. 'state'
local counts, woken, ended = {}, {}, {}
local at = 1            -- how far ARGV has been read, by `words`

local function words(number)
    at = at + number
    return unpack(ARGV, at - number + 1, at)
end

local function count(name, step)
    counts[name] = (counts[name] or 0) + step
end

-- Run a command on many items in chunks, because unpack() has a limit.
local function each(command, key, items)
    for i = 1, #items, 4000 do call(command, key, unpack(items, i, math.min(i + 3999, #items))) end
end

-- As text: Lua would pass a number to Redis with 17 digits, which takes as long as a command.
local function integer(number)
    return string.format('%d', number)
end

local function seq_of(place)
    return tonumber(string.sub(place, 17, 29), 16)
end

-- The index of a task. If the name contains `",`, it is a superset of its jobs.
local function task_index(head)
    return 'task:' .. string.match(head, '^%["(.-)",')
end

-- The tags of a job: its head is [task, labels].
local function tags_of(head)
    if not string.find(head or '', '"tags":', 1, true) then return {} end
    local labels = cjson.decode(head)[2]
    return type(labels) == 'table' and labels.tags or {}
end

local entries = {}  -- index > bucket > byte > whether a job enters the index or leaves it
local ids_of = {}   -- bucket > byte > the id of a new job, or false for a deleted one

local function note(buckets, seq, value)
    local bucket = math.floor(seq / BUCKET)
    buckets[bucket] = buckets[bucket] or {}
    buckets[bucket][seq % BUCKET] = value
end

-- A job enters an index (true), or leaves it (false). `publish` writes it, once for all jobs of a bucket.
local function index(name, seq, enters)
    entries[name] = entries[name] or {}
    note(entries[name], seq, enters)
end

local function write_index(name, buckets)
    local key, old, new = p .. 'seqs:' .. name, {}, {}
    for bucket, bytes in pairs(buckets) do
        local score = integer(bucket)
        local before = call('ZRANGEBYSCORE', key, score, score)[1]
        local after, added = before or score .. ':', {}
        for number, enters in pairs(bytes) do
            local byte = string.char(number)
            local place = before and string.find(after, byte, #score + 2, true)
            if enters and not place then
                added[#added + 1] = byte
            elseif place and not enters then
                after = string.sub(after, 1, place - 1) .. string.sub(after, place + 1)
            end
        end
        after = after .. table.concat(added)
        if after ~= before then
            old[#old + 1] = before
            if #after > #score + 1 then
                new[#new + 1] = score
                new[#new + 1] = after
            end
        end
    end
    each('ZREM', key, old)
    each('ZADD', key, new)
end

local function write_ids(bucket, bytes)
    local name, new, gone = integer(bucket), {}, {}
    local key = p .. 'ids:' .. name
    for number, id in pairs(bytes) do
        if id then
            new[#new + 1] = integer(number)
            new[#new + 1] = id
        else
            gone[#gone + 1] = integer(number)
        end
    end
    each('HSET', key, new)
    each('HDEL', key, gone)
    if #new > 0 then call('ZADD', p .. 'buckets', name, name) end
    if #gone > 0 and call('EXISTS', key) == 0 then call('ZREM', p .. 'buckets', name) end
end

-- Note when finished jobs are to be purged: one entry for the jobs of a minute, up to a size. A job that is requeued
-- keeps its entry, which `purge` checks.
local function purge_later(moment, seqs)
    local key = p .. 'purges'
    local from = string.format('%.17g', moment - PURGE_SPAN)
    local text, start = unpack(call('ZREVRANGEBYSCORE', key, moment, from, 'WITHSCORES', 'LIMIT', 0, 1), 1, 2)
    if text and #text < PURGE_SIZE then
        call('ZREM', key, text)
    else
        text, start = '', moment
    end
    local parts, size = {text}, #text
    for i, seq in ipairs(seqs) do
        local part = integer(seq) .. ' '
        parts[#parts + 1], size = part, size + #part
        if size >= PURGE_SIZE or i == #seqs then
            call('ZADD', key, 'LT', start, table.concat(parts))
            parts, size, start = {}, 0, moment
        end
    end
end

local function is_finished(status)
    return status == 'success' or status == 'failed' or status == 'cancelled'
end

local function first(key)
    return call('ZRANGE', p .. key, 0, 0, 'WITHSCORES')[2]
end

local function clock()
    local time = call('TIME')
    return time[1] + time[2] / 1000000
end

-- The input for `judge_leases`: the clock, the lease of the worker that asks, and the leases that have ended.
local function lapsed_leases(by, graced_too)
    local time, found = clock(), {}
    local lapsed = call('ZRANGEBYSCORE', p .. 'leases', '-inf', time, 'WITHSCORES')
    for i = 1, #lapsed, 2 do
        local length, graced = unpack(call('HMGET', state, 'length ' .. lapsed[i], 'graced ' .. lapsed[i]), 1, 2)
        if lapsed[i] ~= by and (graced_too or not graced) then
            found[#found + 1] = {lapsed[i], lapsed[i + 1], length or '', graced or ''}
        end
    end
    local mine, length = call('ZSCORE', p .. 'leases', by), call('HGET', state, 'length ' .. by)
    return found, {string.format('%.6f', time), mine or '', length or '', found}
end

-- Delete a job that is finished or held, and in no queue.
local function erase(id)
    local key = p .. 'job:' .. id
    local status, queue, parents, unique, head, place =
        unpack(call('HMGET', key, F.status, F.queue, F.parents, F.unique, F.head, F.place), 1, 6)
    if status then
        local seq = seq_of(place)
        note(ids_of, seq, false)
        index(task_index(head), seq, false)
        for _, tag in ipairs(tags_of(head)) do index('tag:' .. tag, seq, false) end
        index('by:' .. status, seq, false)
        if status ~= 'success' then index('by:error', seq, false) end
        count(status .. ' ' .. queue, -1)
    end
    for _, parent in ipairs(parents and cjson.decode(parents) or {}) do call('ZREM', p .. 'family:' .. parent, id) end
    if unique and not is_finished(status) then call('HDEL', p .. 'unique', unique) end
    call('UNLINK', key, p .. 'history:' .. id, p .. 'steps:' .. id)
    call('ZREM', p .. 'expiring', id)
end

-- A step of the same name is replaced, and keeps its place.
local function keep_step(id, name, step)
    local key = p .. 'steps:' .. id
    local old = call('HGET', key, name)
    call('HSET', key, name, (old and string.match(old, '^%d+') or call('HLEN', key)) .. ' ' .. step)
end

-- The last call of every script that writes jobs. A worker waits only if its queue was empty, so only the first job
-- in an empty queue is published.
local function publish()
    for name, buckets in pairs(entries) do write_index(name, buckets) end
    for bucket, bytes in pairs(ids_of) do write_ids(bucket, bytes) end
    for name, step in pairs(counts) do
        local number = step ~= 0 and call('HINCRBY', state, name, step)
        if number == 0 then call('HDEL', state, name) end
        if number == step and string.sub(name, 1, 8) == 'pending ' then woken[string.sub(name, 9)] = true end
    end
    for queue in pairs(woken) do call('PUBLISH', p .. 'jobs', queue) end
    if #ended > 0 then call('PUBLISH', p .. 'results', encode(ended)) end
end
"""

# Part of each script that moves jobs of limits. The script notes in `asking` the limit keys of these jobs.
_LIMITS = """
local asking = {}  -- limit keys > true

-- Let waiting jobs of the limit keys in `asking` run, as far as their limits allow, and note when the rate allows more.
-- `most`: the maximum number of jobs. `taken`: limit keys > the ids of their jobs that were claimed. `ended`: jobs
-- have ended, and nothing else has happened.
local function admit(now, most, taken, ended)
    local time, names, limits, any_paused = tonumber(now), {}, {}, call('EXISTS', p .. 'key-paused') == 1
    local ready, undue, unused, share, place = {}, {}, {}, 0, nil

    local function read_limits()
        local wanted = {}
        for name in pairs(asking) do
            names[#names + 1] = name
            local limit = string.match(name, '^[^:]*')
            if not limits[limit] then
                limits[limit] = {}
                wanted[#wanted + 1] = limit
            end
        end
        table.sort(names)
        share = math.max(1, math.floor(most / #names))
        for i = 1, #wanted, 4000 do
            local last = math.min(i + 3999, #wanted)
            for n, numbers in ipairs(call('HMGET', p .. 'limit-numbers', unpack(wanted, i, last))) do
                local limit = limits[wanted[i + n - 1]]
                limit.is_known = numbers and true
                local interval, burst, concurrency, turn = string.match(numbers or '', '(%S+) (%S+) (%S+) (%S+)')
                limit.interval, limit.burst, limit.turn = tonumber(interval) or 0, tonumber(burst), tonumber(turn)
                limit.concurrency = tonumber(concurrency) or math.huge
            end
        end
    end

    -- If a clock was put back, the limit does not wait long.
    local function clamped(tat, limit)
        return math.min(tat, time + (limit.burst + 1) * limit.interval)
    end

    local function tat_of(name, limit)
        local stored = tonumber(call('ZSCORE', p .. 'key-tat', name)) or 0
        local tat = clamped(stored, limit)
        if taken then tat = clamped(math.max(tat, time) + #taken[name] * limit.interval, limit) end
        if tat ~= stored then call('ZADD', p .. 'key-tat', string.format('%.17g', tat), name) end
        return tat
    end

    -- Return the number of jobs that the rate allows, if none is ready.
    local function tokens(limit, tat)
        if not tat then return math.huge end
        local left = limit.burst * limit.interval - math.max(0, tat - time) + RATE_SLACK
        return math.min(limit.burst, UPKEEP, math.floor(left / limit.interval))
    end

    -- Make a job that waits ready, unless the server has evicted it (maxmemory-policy).
    local function let_in(member, turn, ids)
        local id = string.sub(member, 30)
        local key = p .. 'job:' .. id
        local queue, crashes = unpack(call('HMGET', key, F.queue, F.crashes), 1, 2)
        if not queue then return end
        ids[#ids + 1] = id
        index('by:blocked', seq_of(member), false)
        count('blocked ' .. queue, -1)
        count((crashes and 'suspect ' or 'pending ') .. queue, 1)
        if turn and not crashes then
            place = (place or tonumber(call('HGET', state, 'place')) or 0) + 1
            call('HSET', key, F.status, 'pending', F.turn, integer(place))
            index('placed', seq_of(member), true)
            member = string.sub(member, 1, 16) .. 'g' .. string.format('%013x', place) .. string.sub(member, 17)
        else
            call('HSET', key, F.status, 'pending')
        end
        local name = (crashes and 'suspects:' or 'ready:') .. queue
        if crashes then woken[queue] = true end
        local members = ready[name] or {}
        members[#members + 1] = crashes or '0'
        members[#members + 1] = member
        ready[name] = members
    end

    -- Admit up to `room` jobs. Return how many were admitted.
    local function admit_some(name, room, turn)
        local ids, wanted, members = {}, nil, nil
        repeat
            wanted = room - #ids
            members = call('ZPOPMIN', p .. 'key-waiting:' .. name, wanted)
            for i = 1, #members, 2 do let_in(members[i], turn, ids) end
        until #ids == room or #members < 2 * wanted
        each('SADD', p .. 'key-pending:' .. name, ids)
        return #ids
    end

    -- `tells`: whether to wake workers. A claim returns the time to its caller.
    local function set_due(name, due, tells)
        local member = '\\0' .. name
        local before = tonumber(call('ZSCORE', p .. 'due', member))
        if due ~= before then call('ZADD', p .. 'due', string.format('%.17g', due), member) end
        if tells and (not before or due < before) then
            local first = call('ZRANGE', p .. 'key-waiting:' .. name, 0, 0)[1]
            local queue = call('HGET', p .. 'job:' .. string.sub(first, 30), F.queue)
            if queue then woken[queue] = true end
        end
    end

    local function forget_unused(name)
        local keys = {p .. 'key-running:' .. name, p .. 'key-pending:' .. name, p .. 'key-waiting:' .. name}
        if call('EXISTS', unpack(keys)) == 0 then unused[#unused + 1] = name end
    end

    local function fill(name, limit)
        local running, pending = call('SCARD', p .. 'key-running:' .. name), call('SCARD', p .. 'key-pending:' .. name)
        local tat = limit.interval > 0 and tat_of(name, limit)
        local due, number, is_left = nil, 0, nil
        if limit.is_known and not (any_paused and call('SISMEMBER', p .. 'key-paused', name) == 1) then
            local free = math.min(limit.concurrency - running, limit.turn or math.huge) - pending
            local allowed = tokens(limit, tat) - pending
            local room = math.min(free, allowed, most, share)
            if room > 0 then
                number = admit_some(name, room, limit.turn)
                most, pending = most - number, pending + number
            end
            if free > number and number >= room then
                is_left = call('EXISTS', p .. 'key-waiting:' .. name) == 1
            end
            if is_left and free > number then
                if allowed > number then
                    due = time
                elseif pending < math.min(limit.burst, UPKEEP) then  -- else only a claim makes room
                    due = tat - (limit.burst - 1 - pending) * limit.interval
                end
            end
        end
        if due then set_due(name, due, number > 0 or not taken) else undue[#undue + 1] = '\\0' .. name end
        if running + pending == 0 and not is_left then forget_unused(name) end
    end

    read_limits()
    for _, name in ipairs(names) do
        local limit = limits[string.match(name, '^[^:]*')]
        -- A claim leaves the concurrency as it is: the job was counted before. An end leaves the rest as it is.
        local concerns = limit.turn or limit.interval > 0
        if ended then concerns = limit.concurrency < math.huge end
        if concerns or not (taken or ended) then
            fill(name, limit)
        elseif ended then
            forget_unused(name)
        end
    end
    if place then call('HSET', state, 'place', integer(place)) end
    for key, members in pairs(ready) do each('ZADD', p .. key, members) end
    each('ZREM', p .. 'due', undue)
    each('ZREM', p .. 'limit-keys', unused)
    asking = {}
end
"""

# Read jobs for the rules.
# ARGV: the number of seqs to reserve, what to find (the name of a Find), then its arguments.
# Answer: the last of those seqs, for each argument the found ids, then for the first READ_AT_ONCE jobs the id and its
#   READ_FIELDS. The limit keeps a call from blocking the server, or its reader, for long.
_READ = """
local kind, found, seen = ARGV[3], {}, {}
local finds = {
    Jobs = function(id) return {id} end,
    Children = function(parent) return call('ZRANGE', p .. 'family:' .. parent, 0, -1) end,
    Holders = function(key) return {call('HGET', p .. 'unique', key) or nil} end,
    Running = function(worker) return call('SMEMBERS', p .. 'running:' .. worker) end,
    EventWaiters = function(event) return call('HKEYS', p .. 'steps:' .. event) end,
}
if kind == 'Expired' then
    found[1] = call('ZRANGEBYSCORE', p .. 'expiring', '-inf', ARGV[4], 'LIMIT', 0, ARGV[5])
else
    for i = 4, #ARGV do found[#found + 1] = finds[kind](ARGV[i]) end
end
local answer = {ARGV[2] ~= '0' and call('HINCRBY', state, 'seq', ARGV[2]) or 0, found}
for _, ids in ipairs(found) do
    for _, id in ipairs(ids) do
        local is_wanted = not seen[id] and #answer < 2 + 2 * READ_AT_ONCE
        local values = is_wanted and call('HMGET', p .. 'job:' .. id, READ_FIELDS)
        seen[id] = true
        if values then
            answer[#answer + 1] = id
            answer[#answer + 1] = values
            -- The server has evicted it (maxmemory-policy). Other jobs must not wait for it.
            if kind == 'Expired' and not values[1] then call('ZREM', p .. 'expiring', id) end
        end
    end
end
return answer
"""

# Write what the rules have decided, if nothing that they have read has changed.  ARGV: a plan (JSON, see `Plan`).
# Answer: 1, or 0 if something has changed meanwhile.
_APPLY = """
local plan = cjson.decode(ARGV[2])

-- A job that was only read may have been written, if its state is the same: many calls may add children at once.
local function holds()
    for _, guard in ipairs(plan.jobs) do
        local values = call('HMGET', p .. 'job:' .. guard[1], F.place, F.status, F.attempt, F.rev)
        for i = 2, #guard do
            if (values[i - 1] or '') ~= guard[i] then return false end
        end
    end
    for _, id in ipairs(plan.plain) do
        local key = p .. 'job:' .. id
        for _, value in ipairs(call('HMGET', key, F.unique, F.parents, F.children, F.crashes, F.error, F.cancel)) do
            if value then return false end
        end
    end
    for key, id in pairs(plan.holders) do
        if (call('HGET', p .. 'unique', key) or '') ~= id then return false end
    end
    for worker, number in pairs(plan.running) do
        if call('SCARD', p .. 'running:' .. worker) ~= number then return false end
    end
    for worker, score in pairs(plan.leases) do
        if (call('ZSCORE', p .. 'leases', worker) or '') ~= score then return false end
    end
    return true
end

local function is_done()
    for _, id in ipairs(plan.changed) do
        if call('HGET', p .. 'job:' .. id, F.rev) == plan.token then return 1 end
    end
    return 0
end

if not holds() then return again and is_done() or 0 end
for _, write in ipairs(plan.writes) do
    local command, key, items = unpack(write)
    if command == 'ENTER' or command == 'LEAVE' then
        for _, seq in ipairs(items) do index(key, seq, command == 'ENTER') end
    elseif command == 'PURGE' then
        purge_later(key, items)
    else
        each(command, p .. key, items)
    end
end
for _, job in ipairs(plan.new) do note(ids_of, job[1], job[2]) end
for _, step in ipairs(plan.steps) do keep_step(unpack(step)) end
if #plan.endings > 0 then
    each('RPUSH', p .. 'endings', plan.endings)
    call('LTRIM', p .. 'endings', -ENDINGS_KEPT, -1)
end
for _, queue in ipairs(plan.woken) do woken[queue] = true end
for _, worker in ipairs(plan.notices) do call('PUBLISH', p .. 'notices', worker) end
counts, ended = plan.counts, plan.ended
if plan.asking then
    for _, name in ipairs(plan.asking) do
        asking[name] = true
        call('ZADD', p .. 'limit-keys', 0, name)
    end
    admit(plan.now, math.max(UPKEEP, #plan.changed))
end
publish()
return 1
"""

# Add new jobs without parents and unique keys. A job whose id exists changes nothing.
# ARGV: for each call: now, the number of runs, then these runs of similar jobs: queue, priority, head, status, due,
#   expires, limit key, the number of jobs, then for each job its id and payload.
# Answer: 0 for each call.
_PUSH = """
local function enter(name, seqs)
    for _, seq in ipairs(seqs) do index(name, seq, true) end
end

local function take_in(now, queue, priority, head, status, due, expires, limit, number)
    local ready, waiting, expiring, seqs = {}, {}, {}, {}
    local seq = call('HINCRBY', state, 'seq', number) - number
    for i = at + 1, at + 2 * number, 2 do
        local id = ARGV[i]
        seq = seq + 1
        local key, place, n = p .. 'job:' .. id, priority .. string.format('%013x', seq), 2 * #seqs
        if call('HSETNX', key, F.place, place) == 1 then
            call('HSET', key, F.queue, queue, F.head, head, F.payload, ARGV[i + 1], F.submitted, now, F.status, status)
            seqs[#seqs + 1] = seq
            note(ids_of, seq, id)
            if due ~= '' then call('HSET', key, F.due, due) end
            if limit ~= '' then call('HSET', key, F.limit, limit) end
            if expires ~= '' then
                call('HSET', key, F.expires, expires)
                expiring[n + 1], expiring[n + 2] = expires, id
            end
            if status == 'scheduled' then
                waiting[n + 1], waiting[n + 2] = due, id
            else
                ready[n + 1], ready[n + 2] = '0', place .. id
            end
        end
    end
    at = at + 2 * number
    count(status .. ' ' .. queue, #seqs)
    if status == 'blocked' and #seqs > 0 then
        each('ZADD', p .. 'key-waiting:' .. limit, ready)
        call('ZADD', p .. 'limit-keys', 0, limit)
        asking[limit] = true
    else
        each('ZADD', p .. 'ready:' .. queue, ready)
    end
    each('ZADD', p .. 'due', waiting)
    enter(task_index(head), seqs)
    for _, tag in ipairs(tags_of(head)) do enter('tag:' .. tag, seqs) end
    if status ~= 'pending' then enter('by:' .. status, seqs) end
    each('ZADD', p .. 'expiring', expiring)
    if #waiting > 0 then woken[queue] = true end
end

local answers = {}
while ARGV[at + 1] do
    local now, runs = words(2)
    for _ = 1, runs do take_in(now, words(8)) end
    answers[#answers + 1] = 0
    if next(asking) then admit(now, math.max(UPKEEP, #ARGV)) end
end
publish()
return answers
"""

# Claim ready jobs.
# ARGV: queue, limit, worker, now, the maximum of crashes of a suspect, 1 if upkeep was done, the number of the claim,
#   then the numbers of earlier claims whose answers were lost: their jobs are returned again. A claim that arrives
#   after a later one takes nothing.
# Answer: when the next waiting job is due ('' if none), then for each job PLACE ID, its CLAIMED_FIELDS, and its steps;
#   or `upkeep`, 1 if jobs have expired, and the answer of `lapsed_leases`.
_CLAIM = """
local queue, limit, worker, now, number = ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5], tonumber(ARGV[8])
local answer, taken, running = {''}, {}, p .. 'running:' .. worker
local aside = {}  -- expired jobs, which are left to the rules
local charged = {}  -- limit keys > the ids of their jobs that were taken
local may_be_repeated = again or ARGV[9]

local function has_come(moment)
    return moment and tonumber(moment) <= tonumber(now)
end

-- All limit keys of a limit that was declared, from `first` on, in steps.
local function ask(member, room)
    local first = string.sub(member, 3)
    local found = call('ZRANGEBYLEX', p .. 'limit-keys', '[' .. first, '(' .. string.match(first, '^[^:]*') .. ';',
        'LIMIT', 0, room)
    for _, name in ipairs(found) do asking[name] = true end
    call('ZREM', p .. 'due', member)
    if #found == room then call('ZADD', p .. 'due', now, '\\0:' .. found[room]) end
    return room - #found
end

local function promote()
    local room = UPKEEP
    for _, id in ipairs(call('ZRANGEBYSCORE', p .. 'due', '-inf', now, 'LIMIT', 0, UPKEEP)) do
        local key = p .. 'job:' .. id
        local status, name, place, crashes, limit =
            unpack(call('HMGET', key, F.status, F.queue, F.place, F.crashes, F.limit), 1, 5)
        if status then
            call('ZREM', p .. 'due', id)
            index('by:' .. status, seq_of(place), false)
            count(status .. ' ' .. name, -1)
            if limit then
                count('blocked ' .. name, 1)
                call('HSET', key, F.status, 'blocked')
                index('by:blocked', seq_of(place), true)
                call('ZADD', p .. 'key-waiting:' .. limit, 0, place .. id)
                call('ZADD', p .. 'limit-keys', 0, limit)
                asking[limit] = true
            else
                count((crashes and 'suspect ' or 'pending ') .. name, 1)
                call('HSET', key, F.status, 'pending')
                call('ZADD', p .. (crashes and 'suspects:' or 'ready:') .. name, crashes or 0, place .. id)
                if crashes then woken[name] = true end
            end
        elseif string.sub(id, 1, 2) == '\\0:' then
            room = room > 1 and ask(id, room) or 0
        elseif string.byte(id) == 0 then
            asking[string.sub(id, 2)] = true
        else
            call('ZREM', p .. 'due', id)  -- the server has evicted it (maxmemory-policy); others must not wait for it
        end
    end
    if next(asking) then admit(now, UPKEEP) end
end

local function hand_out(member, fields)
    local n = #answer
    answer[n + 1] = member
    for i = 1, CLAIMED_NUMBER do answer[n + 1 + i] = fields[i] end
    answer[n + 2 + CLAIMED_NUMBER] = fields[1] ~= '1' and call('HVALS', p .. 'steps:' .. string.sub(member, 30)) or {}
end

local function hand_out_again()
    local lost, members = {}, {}
    for i = 8, #ARGV do lost[ARGV[i]] = true end
    for _, id in ipairs(call('SMEMBERS', running)) do
        local number, place = unpack(call('HMGET', p .. 'job:' .. id, F.claim, F.place), 1, 2)
        if lost[number] then members[#members + 1] = place .. id end
    end
    table.sort(members)
    for _, member in ipairs(members) do
        hand_out(member, call('HMGET', p .. 'job:' .. string.sub(member, 30), CLAIMED_FIELDS))
    end
end

local function take(entry, kind, score)
    local member, has_turn = entry, string.byte(entry, 17) == 103  -- g
    if has_turn then member = string.sub(entry, 1, 16) .. string.sub(entry, 31) end
    local id = string.sub(member, 30)
    local key = p .. 'job:' .. id
    local fields = call('HMGET', key, CLAIMED_FIELDS, F.expires)
    if not fields[2] then return count(kind .. queue, -1) end  -- the server has evicted it
    local expires = fields[CLAIMED_NUMBER + 1]
    if has_come(expires) then
        aside[#aside + 1] = score
        aside[#aside + 1] = entry
        return
    end
    local limit = fields[CLAIMED_NUMBER]
    if limit then
        asking[limit], charged[limit] = true, charged[limit] or {}
        table.insert(charged[limit], id)
    end
    if has_turn then
        call('HDEL', key, F.turn)
        index('placed', seq_of(member), false)
    end
    fields[1] = fields[1] and string.format('%d', fields[1] + 1) or '1'
    if expires then call('ZREM', p .. 'expiring', id) end
    local started = tonumber(fields[4]) > tonumber(now) and fields[4] or now  -- as in the rules
    call('HSET', key, F.status, 'running', F.attempt, fields[1], F.worker, worker, F.started, started,
        F.claim, ARGV[8])
    taken[#taken + 1] = id
    hand_out(member, fields)
end

-- Take a suspect if the worker runs nothing, otherwise ready jobs. While it runs a suspect, take nothing.
local function choose(suspects, alone)
    if alone then return end
    if (suspects or 0) + (counts['suspect ' .. queue] or 0) > 0 and call('SCARD', running) == 0 then
        local key = p .. 'suspects:' .. queue
        for crashes = tonumber(ARGV[6]), 1, -1 do
            local suspect = call('ZRANGEBYSCORE', key, crashes, crashes, 'LIMIT', 0, 1)[1]
            if suspect then
                call('ZREM', key, suspect)
                take(suspect, 'suspect ', crashes)
                each('ZADD', key, aside)
                if taken[1] then call('HSET', state, 'alone ' .. worker, taken[1]) end
                return 'suspect '
            end
        end
    end
    local wanted, members
    repeat
        wanted = limit - #taken
        members = call('ZPOPMIN', p .. 'ready:' .. queue, wanted)
        for i = 1, #members, 2 do take(members[i], 'pending ', '0') end
    until #taken >= limit or #members < 2 * wanted or #aside >= 2 * UPKEEP
    each('ZADD', p .. 'ready:' .. queue, aside)
    if #aside >= 2 * UPKEEP then answer[1] = now end  -- the next claim continues
    return 'pending '
end

local due = first('due')

local function claim(suspects, alone)
    local kind = choose(suspects, alone)
    if #taken > 0 then
        count(kind .. queue, -#taken)
        count('running ' .. queue, #taken)
        each('SADD', running, taken)
    end
    for limit, ids in pairs(charged) do
        local ready, running = p .. 'key-pending:' .. limit, p .. 'key-running:' .. limit
        if #ids == 1 then
            call('SMOVE', ready, running, ids[1])
        else
            each('SREM', ready, ids)
            each('SADD', running, ids)
        end
    end
    if next(charged) then
        admit(now, UPKEEP, charged)
        due = first('due')
    end
    if #taken > 0 or may_be_repeated then call('HSET', state, 'claims ' .. worker, number) end
end

if has_come(due) then  -- always: workers wait for the first of the remaining jobs
    promote()
    due = first('due')
end
local asked = {'claims ' .. worker, 'paused ' .. queue, 'alone ' .. worker, 'suspect ' .. queue}
local latest, paused, alone, suspects = unpack(call('HMGET', state, unpack(asked)), 1, 4)
local leases_hold = tonumber(first('leases') or 0) > clock()
if latest and (leases_hold or tonumber(call('ZSCORE', p .. 'leases', worker)) > clock()) then
    local expired = has_come(first('expiring'))
    if ARGV[7] == '0' and not paused and (expired or not leases_hold) then
        local lapsed, leases = lapsed_leases(worker, false)
        if expired or #lapsed > 0 then
            publish()
            return {'upkeep', expired and 1 or 0, leases}
        end
    end
    if may_be_repeated then hand_out_again() end
    if number > tonumber(latest) and not paused then claim(suspects, alone) end
end
publish()
if answer[1] == '' then answer[1] = due or '' end
return answer
"""

# Settle successes.
# ARGV: for each call: now, the number of runs of similar successes, then for each run: worker, purge_at, whether they
#   may be written already, their number, then for each its id, seq (13 digits), attempt, result. If the job was deleted
#   and another one has its id now, seq differs.
# Answer: for each call a text with a 1 for each success that was written, a 0 for each that was not, and a 2 for each
#   that is left to the rules: the job has children, has crashed, or is to be cancelled.
_SETTLE = """
local flags = ''

local function settle(now, worker, purged, doubtful, number)
    local settled, seqs, freed = {}, {}, {}  -- freed: limit keys > the ids of their jobs
    for i = at + 1, at + 4 * number, 4 do
        local id, seq, attempt, result = unpack(ARGV, i, i + 3)
        local key, flag = p .. 'job:' .. id, '0'
        local v = call('HMGET', key, F.status, F.queue, F.place, F.attempt, F.worker, F.unique, F.crashes, F.children,
            F.cancel, F.limit)
        if v[3] and string.sub(v[3], 17) == seq and v[4] == attempt then
            if v[1] == 'running' and v[5] == worker then
                flag = (v[7] or v[8] or v[9]) and '2' or '1'
            elseif v[1] == 'success' and (again or doubtful == '1') then
                flag = '1'
                v[1] = false
            end
        end
        if flag == '1' and v[1] then
            settled[#settled + 1] = id
            count('running ' .. v[2], -1)
            count('success ' .. v[2], 1)
            if attempt ~= '1' then  -- remove the error of an earlier attempt
                call('HDEL', key, F.error, F.traceback)
                index('by:error', seq_of(v[3]), false)
            end
            call('HSET', key, F.status, 'success', F.finished, now, F.purge_at, purged, F.result, result)
            if v[6] then call('HDEL', p .. 'unique', v[6]) end
            if v[10] then
                freed[v[10]] = freed[v[10]] or {}
                table.insert(freed[v[10]], id)
            end
            seqs[#settled] = seq_of(v[3])
            index('by:success', seqs[#settled], true)
            ended[#ended + 1] = id
        end
        flags = flags .. flag
    end
    at = at + 4 * number
    each('SREM', p .. 'running:' .. worker, settled)
    if #seqs > 0 then purge_later(purged, seqs) end
    for limit, ids in pairs(freed) do
        asking[limit] = true
        each('SREM', p .. 'key-running:' .. limit, ids)
    end
end

local answers = {}
while ARGV[at + 1] do
    local now, runs = words(2)
    flags = ''
    for _ = 1, runs do settle(now, words(4)) end
    answers[#answers + 1] = flags
    if next(asking) then admit(now, UPKEEP, nil, true) end
end
publish()
return answers
"""

# Store steps.
# ARGV: for each call: the number of steps, then for each the id, seq (13 digits) and attempt of its job, its name, and
#   the step (JSON).
# Answer: for each call a text with a 1 for each step whose attempt holds its job, a 0 for each other one.
_KEEP_STEPS = """
local answers = {}
while ARGV[at + 1] do
    local flags = ''
    for _ = 1, words(1) do
        local id, seq, attempt, name, step = words(5)
        local v = call('HMGET', p .. 'job:' .. id, F.status, F.attempt, F.place)
        local holds = v[1] == 'running' and v[2] == attempt and string.sub(v[3], 17) == seq
        if holds then keep_step(id, name, step) end
        flags = flags .. (holds and '1' or '0')
    end
    answers[#answers + 1] = flags
end
return answers
"""

# Register a worker or extend its lease. With a lease of 0, only its activity is stored.
# ARGV: worker, lease, 1 if lapsed leases have been judged, info (JSON), queues (JSON), the oldest minute to keep, then
#   for each minute whose activity has changed: its start, and the activity (JSON).
# Answer: the term of the lease, its jobs that are to be cancelled, paused queues, the fewest crashes of a waiting
#   suspect (0: none waits), jobs that ended without an attempt; or the answer of `lapsed_leases`, and nothing was done.
_HEARTBEAT = """
local worker, lease, info, queues = ARGV[2], tonumber(ARGV[3]), ARGV[5], cjson.decode(ARGV[6])

-- Add the numbers of the rows to the changes, or subtract them: texts of `activity_texts`; WHAT is `number.bucket`.
local function add_rows(changes, text, sign)
    for _, row in ipairs(text and cjson.decode(text) or {}) do
        for i = 3, #row do
            local parts = type(row[i]) == 'table' and row[i] or {[''] = row[i]}
            for bucket, number in pairs(parts) do
                local name = (i - 1) .. (bucket ~= '' and '.' .. bucket or '') .. ' ' .. row[2]
                changes[name] = (changes[name] or 0) + sign * number
            end
        end
    end
end

-- The totals grow by the difference to the replaced row, so a row that is reported twice counts once.
local function keep_activity()
    local changes = {}
    for i = 8, #ARGV, 2 do
        local minute = p .. 'minute:' .. ARGV[i]
        if tonumber(ARGV[i]) >= tonumber(ARGV[7]) then  -- purged minutes cannot be compared
            add_rows(changes, call('HGET', minute, worker), -1)
            add_rows(changes, ARGV[i + 1], 1)
            call('ZADD', p .. 'minutes', ARGV[i], ARGV[i])
            call('HSET', minute, worker, ARGV[i + 1])
        end
    end
    for name, number in pairs(changes) do
        if number ~= 0 then call('HINCRBYFLOAT', p .. 'totals', name, string.format('%.17g', number)) end
    end
    for _, minute in ipairs(call('ZRANGEBYSCORE', p .. 'minutes', '-inf', '(' .. ARGV[7])) do
        call('UNLINK', p .. 'minute:' .. minute)
        call('ZREM', p .. 'minutes', minute)
    end
end

if lease > 0 and ARGV[4] == '0' then
    local lapsed, leases = lapsed_leases(worker, true)
    if #lapsed > 0 then return leases end
end
keep_activity()
if lease <= 0 then return {'', {}, {}, 0, {}} end
local time, known = clock(), tonumber(call('ZSCORE', p .. 'leases', worker))
local term = call('HGET', state, 'term ' .. worker)
if not known or not term then term = string.format('%.6f', time) end
call('ZADD', p .. 'leases', string.format('%.6f', time + lease), worker)
call('HSET', state, 'length ' .. worker, ARGV[3], 'term ' .. worker, term)
call('HDEL', state, 'graced ' .. worker)
call('HSET', p .. 'workers', worker, info)
call('HSETNX', state, 'claims ' .. worker, 0)
local to_end, paused, suspects = {}, {}, 0
for _, id in ipairs(call('SMEMBERS', p .. 'cancelling')) do
    if call('SISMEMBER', p .. 'running:' .. worker, id) == 1 then to_end[#to_end + 1] = id end
end
for _, queue in ipairs(queues) do
    if not known or known <= time then woken[queue] = true end  -- the worker may claim again
    if call('HEXISTS', state, 'paused ' .. queue) == 1 then paused[#paused + 1] = queue
    else
        local fewest = tonumber(call('ZRANGE', p .. 'suspects:' .. queue, 0, 0, 'WITHSCORES')[2] or 0)
        if fewest > 0 and (suspects == 0 or fewest < suspects) then suspects = fewest end
    end
end
publish()
return {term, to_end, paused, suspects, call('LPOP', p .. 'endings', ENDINGS_TAKEN) or {}}
"""

# Delete finished jobs, or held ones.  ARGV: who holds them or '', then ids.
# Answer: the ids of the deleted jobs; for a repetition, the ids that do not exist.
_REMOVE = """
local by, gone = ARGV[2], {}
for i = 3, #ARGV do
    local status, worker = unpack(call('HMGET', p .. 'job:' .. ARGV[i], F.status, F.worker), 1, 2)
    local is_held = by ~= '' and status == 'blocked' and worker == by
    if is_held or (by == '' and is_finished(status)) then
        erase(ARGV[i])
        gone[#gone + 1] = ARGV[i]
    elseif again and not status then
        gone[#gone + 1] = ARGV[i]
    end
end
ended = gone
publish()
return gone
"""

# Delete finished jobs past their retention. Some limit keys lose the jobs that the server has evicted.
# ARGV: before, limit.  Answer: the ids of the deleted jobs.
_PURGE = """
local ids, seen, looks, limit = {}, {}, 0, tonumber(ARGV[3])

-- Delete the job if its retention has ended. Return the end if that is later.
local function purge(seq)
    looks = looks + 1
    local bucket = integer(math.floor(seq / BUCKET))
    local id = not seen[seq] and call('HGET', p .. 'ids:' .. bucket, seq % BUCKET)
    seen[seq] = true
    if not id then return end
    local status, purge_at = unpack(call('HMGET', p .. 'job:' .. id, F.status, F.purge_at), 1, 2)
    if status and not is_finished(status) then return end
    if status and (#ids == limit or tonumber(purge_at) >= tonumber(ARGV[2])) then return tonumber(purge_at) end
    note(ids_of, seq, false)  -- also if the server has evicted it (maxmemory-policy)
    erase(id)
    ids[#ids + 1] = id
end

while #ids < limit and looks < PURGE_LOOKS * limit do
    local text = call('ZRANGEBYSCORE', p .. 'purges', '-inf', '(' .. ARGV[2], 'LIMIT', 0, 1)[1]
    if not text then break end
    local left, start = {}, math.huge
    for seq in string.gmatch(text, '%d+') do
        local later = purge(tonumber(seq))
        if later then
            left[#left + 1] = seq .. ' '
            start = math.min(start, later)
        end
    end
    call('ZREM', p .. 'purges', text)
    if #left > 0 then call('ZADD', p .. 'purges', 'LT', string.format('%.17g', start), table.concat(left)) end
end
call('ZREMRANGEBYSCORE', p .. 'key-tat', '-inf', '(' .. ARGV[2])  -- from then on the rate allows a full burst anyway
for _, name in ipairs(call('ZRANDMEMBER', p .. 'limit-keys', 50)) do
    for _, index in ipairs({p .. 'key-running:' .. name, p .. 'key-pending:' .. name}) do
        for _, id in ipairs(call('SRANDMEMBER', index, 10)) do
            if call('EXISTS', p .. 'job:' .. id) == 0 then  -- maxmemory-policy
                call('SREM', index, id)
                call('ZADD', p .. 'due', 0, '\\0' .. name)
            end
        end
    end
end
publish()
return ids
"""

# Pause or resume a queue.  ARGV: queue, 1 or 0.  Answer: 0.
_SET_QUEUE = """
if ARGV[3] == '1' then
    call('HSET', state, 'paused ' .. ARGV[2], 1)
else
    call('HDEL', state, 'paused ' .. ARGV[2])
end
call('PUBLISH', p .. 'jobs', ARGV[2])
call('PUBLISH', p .. 'notices', '')
return 0
"""

# Store limits, or pause or resume limit keys.
# ARGV: limit, pause or resume; now; a token; then for each limit its name, text and numbers, or the limit keys.
# Answer: for each limit key 1, or 0 if nothing has changed.
_LIMIT = """
local action, now, token = ARGV[2], ARGV[3], ARGV[4]
local changed = {}

-- The upkeep goes through the limit keys, in steps.
local function declare(name, text, numbers)
    call('HSET', p .. 'limits', name, text)
    call('HSET', p .. 'limit-numbers', name, numbers)
    local first = '[' .. name .. ':'
    if #call('ZRANGEBYLEX', p .. 'limit-keys', first, '(' .. name .. ';', 'LIMIT', 0, 1) > 0 then
        call('ZADD', p .. 'due', now, '\\0:' .. name .. ':')
        call('PUBLISH', p .. 'jobs', '')  -- to all queues
    end
end

local function withdraw(name)
    for _, id in ipairs(call('SMEMBERS', p .. 'key-pending:' .. name)) do
        local key = p .. 'job:' .. id
        local queue, place, crashes, turn = unpack(call('HMGET', key, F.queue, F.place, F.crashes, F.turn), 1, 4)
        if queue then
            local entry = place .. id
            if turn then
                entry = string.sub(place, 1, 16) .. 'g' .. string.format('%013x', turn) .. string.sub(place, 17) .. id
                index('placed', seq_of(place), false)
                call('HDEL', key, F.turn)
            end
            call('ZREM', p .. (crashes and 'suspects:' or 'ready:') .. queue, entry)
            count((crashes and 'suspect ' or 'pending ') .. queue, -1)
            count('blocked ' .. queue, 1)
            call('HSET', key, F.status, 'blocked', F.rev, token)
            index('by:blocked', seq_of(place), true)
            call('ZADD', p .. 'key-waiting:' .. name, 0, place .. id)
        end
    end
    call('DEL', p .. 'key-pending:' .. name)
end

at = 4
while ARGV[at + 1] do
    if action == 'limit' then
        declare(words(3))
    else
        local name = words(1)
        local number = call(action == 'pause' and 'SADD' or 'SREM', p .. 'key-paused', name)
        if action == 'pause' then withdraw(name) end
        changed[#changed + 1] = again and 1 or number
        asking[name] = true
    end
end
if next(asking) then admit(now, UPKEEP) end
publish()
return changed
"""

# Read the states of limit keys.  ARGV: limit keys.
# Answer: for each the text of its limit, the numbers of running, ready and waiting jobs, tat, due, 1 if it is paused.
_LIMIT_STATES = """
local answer = {}
for i = 2, #ARGV do
    local name = ARGV[i]
    answer[i - 1] = {
        call('HGET', p .. 'limits', string.match(name, '^[^:]*')),
        call('SCARD', p .. 'key-running:' .. name), call('SCARD', p .. 'key-pending:' .. name),
        call('ZCARD', p .. 'key-waiting:' .. name), call('ZSCORE', p .. 'key-tat', name),
        call('ZSCORE', p .. 'due', '\\0' .. name), call('SISMEMBER', p .. 'key-paused', name),
    }
end
return answer
"""

# Read the limit keys that have jobs, in steps.  ARGV: the last one of the step before ('' at first), how many.
# Answer: in the first step the texts of all limits and the paused limit keys; then these limit keys.
_LIMIT_KEYS = """
local first = ARGV[2] == ''
local texts = first and call('HVALS', p .. 'limits') or {}
local keys = call('ZRANGEBYLEX', p .. 'limit-keys', first and '-' or '(' .. ARGV[2], '+', 'LIMIT', 0, ARGV[3])
return {texts, first and call('SMEMBERS', p .. 'key-paused') or {}, keys}
"""

# Count the jobs ahead of one that waits for its limit, in steps.
# ARGV: limit key, PLACE ID of that job, the last PLACE ID of the step before ('' at first), the maximum number.
# Answer: the last PLACE ID of this step ('' at the end), then STATUS QUEUE, a number ..
_BEFORE = """
local name, answer = ARGV[2], {''}

local function add(status, ids)
    for _, id in ipairs(ids) do
        local queue = call('HGET', p .. 'job:' .. id, F.queue)
        if queue then count(status .. ' ' .. queue, 1) end
    end
end

local waiting, after, ids = p .. 'key-waiting:' .. name, ARGV[4] == '' and '-' or '(' .. ARGV[4], {}
local members = call('ZRANGEBYLEX', waiting, after, '(' .. ARGV[3], 'LIMIT', 0, ARGV[5])
for i, member in ipairs(members) do ids[i] = string.sub(member, 30) end
add('blocked', ids)
if ARGV[4] == '' then
    add('pending', call('SMEMBERS', p .. 'key-pending:' .. name))
    add('running', call('SMEMBERS', p .. 'key-running:' .. name))
end
if #members == tonumber(ARGV[5]) then answer[1] = members[#members] end
for kind, number in pairs(counts) do
    answer[#answer + 1] = kind
    answer[#answer + 1] = number
end
return answer
"""

# Read results.  ARGV: for each call the number of ids, then the ids.
# Answer: for each call a list with the values of RESULT_FIELDS, or 0, for each id.
_GET = """
local answers, at = {}, 2
while ARGV[at] do
    local found = {}
    for i = at + 1, at + ARGV[at] do
        local values = call('HMGET', p .. 'job:' .. ARGV[i], RESULT_FIELDS)
        found[#found + 1] = values[1] and values or 0
    end
    answers[#answers + 1] = found
    at = at + 1 + ARGV[at]
end
return answers
"""

# Find jobs in steps. Each step reads jobs from the smallest index that contains all matches.
# ARGV: filter (JSON, without conditions that are not set), how many to find (0: count them), how many to read, 1 for
#   the oldest first, the lowest seq and the highest.
# Answer: the seq of the last job that was read ('' at the end), then for each match its id, hash, history and steps;
#   for a count, the number for each STATUS QUEUE.
_FIND = """
local which, limit, page, oldest = cjson.decode(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5] == '1'
local low, high = tonumber(ARGV[6]), tonumber(ARGV[7])
local answer, wanted, fields, tests = {''}, {}, {F.status, F.queue}, {}
for _, status in ipairs(which.status or {}) do wanted[status] = true end
local only = #(which.status or {}) == 1 and which.status[1]

local function test(asked, field, passes)
    if asked then
        fields[#fields + 1] = field
        tests[#tests + 1] = passes
    end
end

local function is_in(item, list)
    for _, one in ipairs(list or {}) do
        if one == item then return true end
    end
end

test(which.worker, F.worker, function(worker) return worker == which.worker end)
test(which.head, F.head, function(head) return string.sub(head or '', 1, #which.head) == which.head end)
local place  -- of the job that is looked at
test(which.ahead, F.place, function(value)
    place = value
    return true
end)
test(which.ahead, F.turn, function(turn)
    if turn then place = string.sub(place, 1, 16) .. 'g' .. string.format('%013x', turn) .. string.sub(place, 17) end
    return place < which.ahead
end)
test(which.limit, F.limit, function(limit) return limit == which.limit end)
test(which.error, F.error, function(error) return string.find(string.lower(error or ''), which.error, 1, true) end)
test(which.parent, F.parents, function(parents) return is_in(which.parent, parents and cjson.decode(parents)) end)
test(which.tag, F.head, function(head) return is_in(which.tag, tags_of(head)) end)

-- Return STATUS QUEUE if the job matches.
local function matched(id)
    local values = call('HMGET', p .. 'job:' .. id, unpack(fields))
    local status, queue = values[1], values[2]
    if not status or (which.status and not wanted[status]) or (which.queue and queue ~= which.queue) then return end
    for i, passes in ipairs(tests) do
        if not passes(values[i + 2]) then return end
    end
    return status .. ' ' .. queue
end

local function add(id, kind)
    if limit == 0 then return count(kind, 1) end
    answer[#answer + 1] = id
    answer[#answer + 1] = call('HGETALL', p .. 'job:' .. id)
    answer[#answer + 1] = call('LRANGE', p .. 'history:' .. id, 0, -1)
    answer[#answer + 1] = call('HVALS', p .. 'steps:' .. id)
end

local function in_range(key, from, to, number)
    if oldest then return call('ZRANGEBYSCORE', key, from, to, 'WITHSCORES', 'LIMIT', 0, number) end
    return call('ZREVRANGEBYSCORE', key, to, from, 'WITHSCORES', 'LIMIT', 0, number)
end

-- Return bytes in ascending order. To sort many of the 256 costs more than to look for each.
local function sorted(bytes)
    if #bytes <= FEW_IDS then
        table.sort(bytes)
        return bytes
    end
    local present, ordered = {}, {}
    for _, byte in ipairs(bytes) do present[byte] = true end
    for byte = 0, BUCKET - 1 do
        if present[byte] then ordered[#ordered + 1] = byte end
    end
    return ordered
end

-- Return the bytes of an entry of the first index that are in the others too.
local function bytes_in(bucket, entry, names)
    local left = {string.byte(entry, #bucket + 2, -1)}
    for i = 2, #names do
        local other, both = call('ZRANGEBYSCORE', p .. 'seqs:' .. names[i], bucket, bucket)[1], {}
        for _, byte in ipairs(other and left or {}) do
            if string.find(other, string.char(byte), #bucket + 2, true) then both[#both + 1] = byte end
        end
        left = both
    end
    return sorted(left)
end

-- Return the bytes of the jobs of a bucket that are in all of these indexes, and byte > id.
local function read_bucket(bucket, entry, names)
    local key, ids = p .. 'ids:' .. bucket, {}
    local bytes = names[1] and bytes_in(bucket, entry, names)
    if bytes and #bytes <= FEW_IDS then
        local found = #bytes > 0 and call('HMGET', key, unpack(bytes))
        for i, byte in ipairs(bytes) do ids[byte] = found[i] end
        return bytes, ids
    end
    local all, present = call('HGETALL', key), {}
    for i = 1, #all, 2 do
        present[#present + 1] = tonumber(all[i])
        ids[present[#present]] = all[i + 1]
    end
    return bytes or sorted(present), ids
end

-- Visit the jobs that are in all of these indexes, of which the first is the smallest; without one, all jobs. Return
-- the last seq that was visited, unless these were all.  `visit(id, seq)`: whether to stop.
local function visit_indexed(names, most, visit)
    local key = p .. (names[1] and 'seqs:' .. names[1] or 'buckets')
    local from, to = integer(math.floor(low / BUCKET)), integer(math.floor(high / BUCKET))

    local function visit_bucket(bucket, entry)
        local bytes, ids = read_bucket(bucket, entry, names)
        for i = 1, #bytes do
            local byte = bytes[oldest and i or #bytes + 1 - i]
            local seq = bucket * BUCKET + byte
            if ids[byte] and seq >= low and seq <= high and visit(ids[byte], seq) then return seq end
        end
    end

    for looks = BUCKETS_READ, most, BUCKETS_READ do
        local found = in_range(key, from, to, BUCKETS_READ)
        for i = 2, #found, 2 do
            local last = visit_bucket(found[i], found[i - 1])
            if last then return last end
        end
        if #found < 2 * BUCKETS_READ then return end
        local last = found[#found]
        if oldest then from = '(' .. last else to = '(' .. last end
        if looks + BUCKETS_READ > most then return last * BUCKET + (oldest and BUCKET - 1 or 0) end
    end
end

-- Visit a page of jobs that were found as PLACE ID in any order.
local function visit_in_order(members, visit)
    local seqs, ids = {}, {}
    for _, member in ipairs(members) do
        local seq = tonumber(string.sub(member, 17, 29), 16)
        if seq >= low and seq <= high then
            seqs[#seqs + 1] = seq
            ids[seq] = string.sub(member, 30)
        end
    end
    table.sort(seqs, function(a, b) if oldest then return a < b else return a > b end end)
    for i = 1, math.min(#seqs, page) do
        if visit(ids[seqs[i]], seqs[i]) then return seqs[i] end
    end
    return #seqs > page and seqs[page]
end

local function running()
    local found = {}
    for _, worker in ipairs(which.worker and {which.worker} or call('HKEYS', p .. 'workers')) do
        for _, id in ipairs(call('SMEMBERS', p .. 'running:' .. worker)) do
            local place = call('HGET', p .. 'job:' .. id, F.place)
            if place then found[#found + 1] = place .. id end
        end
    end
    return found
end

local function queues()
    if which.queue then return {which.queue} end
    local found, names = {}, {}
    for _, name in ipairs(call('HKEYS', state)) do
        local queue = string.match(name, '^pending (.*)') or string.match(name, '^suspect (.*)')
        if queue and not found[queue] then
            found[queue] = true
            names[#names + 1] = queue
        end
    end
    return names
end

-- A queue is sorted by priority first: read a page for each priority. Return nothing if there are too many. Jobs with a
-- turn have a separate index.
local function ready()
    local found, looks = {}, 0
    local from, to = string.format('%013x', low), string.format('%013x', high) .. '\\255'
    for _, queue in ipairs(queues()) do
        local key, begin = p .. 'ready:' .. queue, '-'
        local first = call('ZRANGEBYLEX', key, begin, '+', 'LIMIT', 0, 1)[1]
        while first do
            looks = looks + 1
            if looks > MOST_LOOKS then return end
            local priority = string.sub(first, 1, 16)
            local least, most, command = '[' .. priority .. from, '[' .. priority .. to, 'ZRANGEBYLEX'
            if not oldest then least, most, command = most, least, 'ZREVRANGEBYLEX' end
            for _, member in ipairs(call(command, key, least, most, 'LIMIT', 0, page)) do found[#found + 1] = member end
            first = call('ZRANGEBYLEX', key, '(' .. priority .. 'h', '+', 'LIMIT', 0, 1)[1]
        end
        for _, member in ipairs(call('ZRANGE', p .. 'suspects:' .. queue, 0, -1)) do found[#found + 1] = member end
    end
    local before = #found
    visit_indexed({'placed'}, math.huge, function(id, seq)
        found[#found + 1] = string.rep('0', 16) .. string.format('%013x', seq) .. id
        return #found - before == page
    end)
    return found
end

local function number_of(status)
    local number = 0
    for _, queue in ipairs(queues()) do
        number = number + (call('HGET', state, status .. ' ' .. queue) or 0)
        if status == 'pending' then number = number + (call('HGET', state, 'suspect ' .. queue) or 0) end
    end
    return number
end

-- Return the indexes that contain all matches, the smallest one first, and its size: an estimate.
local function indexes()
    local names, buckets = {}, {}
    if which.tag then names[#names + 1] = 'tag:' .. which.tag end
    if which.head then names[#names + 1] = task_index(which.head) end
    if which.error then names[#names + 1] = 'by:error' end
    if only and only ~= 'pending' and only ~= 'running' then names[#names + 1] = 'by:' .. only end
    if not names[1] then return names, math.huge end
    for _, name in ipairs(names) do buckets[name] = call('ZCARD', p .. 'seqs:' .. name) end
    table.sort(names, function(a, b) return buckets[a] < buckets[b] end)
    local some = call('ZRANDMEMBER', p .. 'seqs:' .. names[1], BUCKETS_READ)
    local jobs = 0
    for _, text in ipairs(some) do jobs = jobs + #text - string.find(text, ':', 1, true) end
    return names, jobs * buckets[names[1]] / math.max(1, #some)
end

-- Return the last seq that was visited, unless these were all.
local function visit_candidates(visit)
    if only and which.queue and number_of(only) == 0 then return end
    if only == 'running' then return visit_in_order(running(), visit) end
    local names, size = indexes()
    local family = which.parent and p .. 'family:' .. which.parent
    if family and call('ZCARD', family) <= size then
        local found = in_range(family, ARGV[6], ARGV[7], page)
        for i = 1, #found, 2 do
            if visit(found[i], found[i + 1]) then return found[i + 1] end
        end
        return #found == 2 * page and found[#found]
    end
    local members = only == 'pending' and number_of(only) < size and ready()
    if members then return visit_in_order(members, visit) end
    return visit_indexed(names, BUCKETS_AT_ONCE, visit)
end

if which.ids then
    for _, id in ipairs(which.ids) do
        local kind = matched(id)
        if kind then add(id, kind) end
    end
else
    local left, looks = limit > 0 and limit or math.huge, 0
    local last = visit_candidates(function(id)
        local kind = matched(id)
        looks = looks + 1
        if kind then
            add(id, kind)
            left = left - 1
        end
        return looks == page or left == 0
    end)
    if last then answer[1] = integer(last) end
end
for kind, number in pairs(counts) do
    answer[#answer + 1] = kind
    answer[#answer + 1] = number
end
return answer
"""

# Migrate the jobs of an older version, in steps: zset `all` seq > id has those that are left.
# ARGV: how many to read, FIELDS (JSON).
# Answer: how many are left (0 at the end, when the new version is written).
_UPGRADE = """
local FIELDS = cjson.decode(ARGV[3])
local page = call('ZRANGE', p .. 'all', 0, ARGV[2] - 1, 'WITHSCORES')

-- A hold counts as one more parent. If several processes do this at once, the first one counts.
local function count_parents(id, key, worker)
    local parents = call('SMEMBERS', p .. 'parents:' .. id)
    call('HSETNX', key, F.waits, #parents + (worker and 1 or 0))
    for _, parent in ipairs(parents) do call('UNLINK', p .. 'children:' .. parent) end
    call('UNLINK', p .. 'parents:' .. id)
end

local function migrate(id, seq)
    local key = p .. 'job:' .. id
    local old, v, short = call('HGETALL', key), {}, {}
    for i = 1, #old, 2 do
        v[old[i]] = old[i + 1]
        if FIELDS[old[i]] then
            short[#short + 1] = FIELDS[old[i]]
            short[#short + 1] = old[i + 1]
        end
    end
    if not v.status then return end
    call('DEL', key)
    call('HSET', key, unpack(short))
    note(ids_of, seq, id)
    index(task_index(v.head), seq, true)
    if v.status ~= 'pending' and v.status ~= 'running' then index('by:' .. v.status, seq, true) end
    if v.error then index('by:error', seq, true) end
    for _, parent in ipairs(v.parents and cjson.decode(v.parents) or {}) do
        call('ZADD', p .. 'family:' .. parent, seq, id)
    end
    if is_finished(v.status) then purge_later(v.purge_at, {seq}) end
    if v.status == 'blocked' then count_parents(id, key, v.worker) end
    if v.failures or v.crashes then call('HDEL', key, F.expires) end  -- removed when an attempt has started
end

for i = 1, #page, 2 do
    migrate(page[i], tonumber(page[i + 1]))
    call('ZREM', p .. 'all', page[i])
end
local left = call('ZCARD', p .. 'all')
if left == 0 then
    call('UNLINK', p .. 'purge')
    call('HSET', state, 'version', VERSION)
end
publish()
return left
"""

# Count the ready jobs ahead of a job.  ARGV: queue, its PLACE ID.  Answer: the number.
_AHEAD = """
local ahead = call('ZLEXCOUNT', p .. 'ready:' .. ARGV[2], '-', '(' .. ARGV[3])
for _, member in ipairs(call('ZRANGE', p .. 'suspects:' .. ARGV[2], 0, -1)) do
    if member < ARGV[3] then ahead = ahead + 1 end
end
return ahead
"""

# Read the overview.  Answer: the state, the workers with a valid lease (JSON).
_LOOK = """
local workers = {}
for _, worker in ipairs(call('ZRANGEBYSCORE', p .. 'leases', '(' .. clock(), '+inf')) do
    workers[#workers + 1] = call('HGET', p .. 'workers', worker)
end
return {call('HGETALL', state), workers}
"""

# Read the activity of workers.  ARGV: the first minute, how many minutes to read.
# Answer: the last minute that was read ('' at the end), then the activity of each worker in each minute (JSON).
_ACTIVITY = """
local answer = {''}
for _, minute in ipairs(call('ZRANGEBYSCORE', p .. 'minutes', ARGV[2], '+inf', 'LIMIT', 0, ARGV[3])) do
    answer[1] = minute
    for _, text in ipairs(call('HVALS', p .. 'minute:' .. minute)) do answer[#answer + 1] = text end
end
return answer
"""

# Read the total activity since the store was created.  Answer: WHAT TASK, a number ..
_TOTALS = "return call('HGETALL', p .. 'totals')"

# Each field of a job's hash as it is stored: the names would take a fifth of its memory. Scripts write `F.status`.
FIELDS = {
    "attempt": "a", "cancel": "c", "children": "k", "claim": "n", "crashes": "C", "due": "d", "error": "e",
    "expires": "x", "failures": "F", "finished": "f", "head": "h", "limit": "l", "parents": "P", "payload": "y",
    "place": "p", "progress": "o", "purge_at": "g", "queue": "q", "result": "r", "rev": "v", "started": "S",
    "status": "s", "submitted": "b", "traceback": "t", "turn": "T", "unique": "u", "waits": "W", "worker": "w",
}  # fmt: skip
RESULT_FIELDS = (
    "head", "status", "result", "error", "traceback", "attempt", "submitted", "started", "finished", "progress",
)  # fmt: skip
CLAIMED_FIELDS = ("attempt", "head", "payload", "submitted", "due", "failures", "crashes", "parents", "limit")
READ_FIELDS = (
    "place", "status", "attempt", "rev", "queue", "head", "submitted", "due", "expires", "unique", "parents",
    "failures", "crashes", "worker", "started", "finished", "purge_at", "error", "traceback", "cancel", "waits",
    "children", "limit", "turn",
)  # fmt: skip
_PREAMBLE = f"local VERSION, MOST_LOOKS, READ_AT_ONCE = {VERSION}, {MOST_LOOKS}, {READ_AT_ONCE}\n"
_PREAMBLE += f"local UPKEEP, ENDINGS_KEPT, ENDINGS_TAKEN = {UPKEEP_STEP}, {ENDINGS_KEPT}, {ENDINGS_TAKEN}\n"
_PREAMBLE += f"local RATE_SLACK, BUCKET, FEW_IDS = {RATE_SLACK}, {BUCKET}, {FEW_IDS}\n"
_PREAMBLE += f"local BUCKETS_READ, BUCKETS_AT_ONCE = {BUCKETS_READ}, {BUCKETS_AT_ONCE}\n"
_PREAMBLE += f"local PURGE_SPAN, PURGE_SIZE, PURGE_LOOKS = {PURGE_SPAN}, {PURGE_SIZE}, {PURGE_LOOKS}\n"
_LISTS = {"CLAIMED": CLAIMED_FIELDS, "READ": READ_FIELDS, "RESULT": RESULT_FIELDS}


class Script:
    """The text of a script, and the hash by which the server knows it."""

    def __init__(self, text: str) -> None:
        for name, fields in _LISTS.items():
            text = text.replace(f"{name}_FIELDS", ", ".join(f"F.{field}" for field in fields))
        text = text.replace("CLAIMED_NUMBER", str(len(CLAIMED_FIELDS)))
        text = re.sub(r"\bF\.(\w+)", lambda found: f"'{FIELDS[found[1]]}'", _COMMON + text)
        self.text = (_PREAMBLE + text).encode()
        self.sha = hashlib.sha1(self.text).hexdigest().encode()  # noqa: S324 (Redis's name for it, no secret)


SCRIPTS = {
    "read": Script(_READ),
    "apply": Script(_LIMITS + _APPLY),
    "push": Script(_LIMITS + _PUSH),
    "claim": Script(_LIMITS + _CLAIM),
    "keep_steps": Script(_KEEP_STEPS),
    "settle": Script(_LIMITS + _SETTLE),
    "heartbeat": Script(_HEARTBEAT),
    "remove": Script(_REMOVE),
    "purge": Script(_PURGE),
    "set_queue": Script(_SET_QUEUE),
    "limit": Script(_LIMITS + _LIMIT),
    "limit_states": Script(_LIMIT_STATES),
    "limit_keys": Script(_LIMIT_KEYS),
    "before": Script(_BEFORE),
    "get": Script(_GET),
    "find": Script(_FIND),
    "upgrade": Script(_UPGRADE),
    "ahead": Script(_AHEAD),
    "look": Script(_LOOK),
    "activity": Script(_ACTIVITY),
    "totals": Script(_TOTALS),
}
