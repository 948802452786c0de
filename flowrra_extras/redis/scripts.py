"""What runs in the server.

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

Each script has a header: ARGV, the answer. KEYS[1] is always the prefix with its colon. Arguments are few
and large, as JSON: packing one costs redis-py more than a job does. JSON's false stands for "none",
since cjson's null is true in Lua.
"""

import hashlib
import json

from flowrra import BY_HAND, EXPIRED, HISTORY_LIMIT, KILLED, LEFT, MAX_CRASHES, WORKER_LOST

__all__ = ["RESULT_FIELDS", "SCRIPTS", "Script"]

_COMMON = """
local p = KEYS[1]  -- with its colon, so that an ACL of ~{flowrra}:* allows it
local call, decode, encode, format = redis.call, cjson.decode, cjson.encode, string.format
local now, bury_at      -- the caller's wall clock, and until when what is ended here is kept
local counts, fresh, woken, ended, purges = {}, {}, {}, {}, {}

local function tally(status, queue, step)
    local name = status .. ' ' .. queue
    counts[name] = (counts[name] or 0) + step
end

local function load(id)
    local key = p .. 'job:' .. id
    local v = call('HMGET', key, 'status', 'queue', 'place', 'attempt', 'worker', 'started', 'crashes', 'unique',
        'expires', 'children', 'cancel')
    if not v[1] then return nil end
    return {id = id, key = key, status = v[1], queue = v[2], place = v[3], attempt = v[4], worker = v[5],
        started = v[6], crashes = v[7], unique = v[8], expires = v[9], children = v[10], cancel = v[11]}
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
    purges[#purges + 1] = purge_at
    purges[#purges + 1] = job.id
    if job.unique then call('HDEL', p .. 'unique', job.unique) end
    if job.cancel then call('SREM', p .. 'cancelling', job.id) end
    ended[#ended + 1] = job.id
end

local function unblock(job)
    local due = call('HGET', job.key, 'due')
    if due and tonumber(due) > tonumber(now) then make_wait(job, 'scheduled', due) else make_ready(job) end
end

local function orphaned(parent, status)
    return 'its parent ' .. parent .. ' ended as ' .. status
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
                finish(child, 'cancelled', bury_at, 'error', orphaned(parent.id, parent.status))
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
    call('HDEL', job.key, 'worker', 'started', 'finished', 'purge_at', 'progress', 'result', 'error', 'traceback',
        'due')
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
    local waits = false
    for _, parent in ipairs(parents) do
        local status = call('HGET', p .. 'job:' .. parent, 'status')
        if status == 'failed' or status == 'cancelled' then
            bury(job, 'cancelled', orphaned(parent, status))
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

-- What comes last in every script that writes.
local function publish()
    flush()
    add_all(p .. 'purge', purges)
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
            call('HSET', key, 'queue', queue, 'head', head, 'payload', jobs[i + 1], 'submitted', now,
                'status', 'pending')
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
# ARGV: queue, limit, worker, now, bury_at, number, held (JSON: attempts by id, or false).
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
    for _, id in ipairs(call('SMEMBERS', p .. 'running:' .. worker)) do
        local job = load(id)
        if held[id] ~= tonumber(job.attempt) then
            call('SREM', p .. 'running:' .. worker, id)
            put_back(job, 'pending', nil, 'release', 'the answer to its claim was lost')
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
    local values = call('HMGET', key, 'head', 'payload', 'submitted', 'attempt', 'failures', 'crashes', 'parents',
        'expires')
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
local flags, settled

local function check(worker, id, attempt, status, again)
    local job = load(id)
    local mine = job and job.worker == worker and tonumber(job.attempt) == attempt
    local holds = mine and job.status == 'running'
    flags[#flags + 1] = (holds or (again and mine and job.status == status)) and '1' or '0'
    if holds then
        settled[#settled + 1] = id
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
        now, bury_at, settled = group[3], group[4], {}
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
        for n = 1, #settled, 5000 do
            call('SREM', p .. 'running:' .. worker, unpack(settled, n, math.min(n + 4999, #settled)))
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
    local kept = call('HMGET', job.key, 'finished', 'error', 'traceback', 'parents')
    local finished, error, traceback, parents = kept[1], kept[2], kept[3], kept[4] and decode(kept[4])
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
# Answer: of each call a list with the values of RESULT_FIELDS, or 0, for each id.
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


RESULT_FIELDS = (
    "head", "status", "result", "error", "traceback", "attempt", "submitted", "started", "finished", "progress",
)  # fmt: skip
_CONSTANTS = {"BY_HAND": BY_HAND, "EXPIRED": EXPIRED, "KILLED": KILLED, "WORKER_LOST": WORKER_LOST, "LEFT": LEFT}
_PREAMBLE = "".join(f"local {name} = {json.dumps(text)}\n" for name, text in _CONSTANTS.items())
_PREAMBLE += f"local MAX_CRASHES, HISTORY_LIMIT = {MAX_CRASHES}, {HISTORY_LIMIT}\n"


class Script:
    """The text of a script, and the hash by which the server knows it."""

    def __init__(self, text: str) -> None:
        self.text = (_PREAMBLE + _COMMON + text).encode()
        self.sha = hashlib.sha1(self.text).hexdigest().encode()  # noqa: S324 (Redis's name for it, no secret)


SCRIPTS = {
    "push": Script(_PUSH),
    "claim": Script(_CLAIM),
    "settle": Script(_SETTLE),
    "heartbeat": Script(_HEARTBEAT),
    "cancel": Script(_CANCEL),
    "requeue": Script(_REQUEUE),
    "purge": Script(_PURGE),
    "report": Script(_REPORT),
    "set_queue": Script(_SET_QUEUE),
    "record": Script(_RECORD),
    "get": Script(_GET.replace("RESULT_FIELDS", str(RESULT_FIELDS)[1:-1])),
    "find": Script(_FIND),
    "ahead": Script(_AHEAD),
    "look": Script(_LOOK),
}
