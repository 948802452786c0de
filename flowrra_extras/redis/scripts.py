"""What runs in the server.

Every transition is one atomic script over a whole group of jobs. All keys begin with the prefix in
braces, so that a cluster keeps them in one slot. Below, P is `{flowrra}`:

    P:state           hash: what scripts ask first       P:job:ID        hash: the job, see `job_of`
    P:all             zset seq > id: every job           P:history:ID    list: its earlier attempts, as JSON
    P:ready:QUEUE     zset: PLACE ID, in lexical order   P:children:ID   set: blocked jobs that wait for ID
    P:suspects:QUEUE  zset crashes > PLACE ID            P:parents:ID    set: what the blocked job ID waits for
    P:due             zset due > id: waiting jobs        P:unique        hash key > id, of unfinished jobs
    P:expiring        zset expires > id: not begun       P:running:W     set: what worker W holds
    P:purge           zset purge_at > id: finished jobs  P:cancelling    set: running jobs that are to end
    P:leases          zset end > worker, by Redis's TIME P:workers       hash worker > JSON
    P:minutes         zset of those with activity        P:minute:M      hash worker > what it did in it, JSON
                                                         channels P:jobs, P:results, P:notices
The fields of P:state:
    seq               the order of submission            STATUS QUEUE    how many; `suspect` is pending, apart
    paused QUEUE      it is paused                       alone W         worker W runs a suspect
    claims W          the latest claim of W, which is there while W has a lease

PLACE is the priority (16 hex digits, so biased that the lowest is 0) and the seq (13 digits): a score,
being a double, could not hold both. Moments are text as the caller wrote it: Lua prints 14 digits.

An idle server is slow, its caches being cold: the first use of a command took 10 to 28 us there, each further
one 1 us. So push and claim keep to a handful of commands.

Each script has a header: ARGV, the answer. KEYS[1] is always the prefix with its colon, ARGV[1] always 1 if
this may be a repetition of a call whose answer was lost, else 0: it is left out below. '' stands for "none".
"""

import hashlib
import json

from flowrra import BY_HAND, EXPIRED, HISTORY_LIMIT, KILLED, LEFT, MAX_CRASHES, WORKER_LOST

__all__ = ["CLAIMED_FIELDS", "RESULT_FIELDS", "SCRIPTS", "Script"]

_COMMON = """
local p, again = KEYS[1], ARGV[1] == '1'  -- p with its colon, so that an ACL of ~{flowrra}:* allows it
local call, encode, state = redis.call, cjson.encode, KEYS[1] .. 'state'
local now, bury_at      -- the caller's wall clock, and until when what is ended here is kept
local counts, woken, ended, purges = {}, {}, {}, {}
local at = 1            -- how far ARGV has been read, by `words`

local function words(number)
    at = at + number
    return unpack(ARGV, at - number + 1, at)
end

local function count(name, step)
    counts[name] = (counts[name] or 0) + step
end

local function tally(job, step)
    count((job.status == 'pending' and job.crashes and 'suspect' or job.status) .. ' ' .. job.queue, step)
end

-- The job; false if it is unknown, or was thrown away (maxmemory-policy), which must hold up no other.
local function load(id)
    local key = p .. 'job:' .. id
    local v = call('HMGET', key, 'status', 'queue', 'place', 'attempt', 'worker', 'started', 'crashes', 'unique',
        'expires', 'children', 'cancel')
    return v[1] and {id = id, key = key, status = v[1], queue = v[2], place = v[3], attempt = v[4], worker = v[5],
        started = v[6], crashes = v[7], unique = v[8], expires = v[9], children = v[10], cancel = v[11]}
end

local function move(job, status)
    tally(job, -1)
    job.status = status
    tally(job, 1)
end

-- A command over many items in large pieces, since what unpack() can hold is limited.
local function each(command, key, items)
    for i = 1, #items, 4000 do call(command, key, unpack(items, i, math.min(i + 3999, #items))) end
end

local function make_ready(job)
    move(job, 'pending')
    call('HSET', job.key, 'status', 'pending')
    call('ZADD', p .. (job.crashes and 'suspects:' or 'ready:') .. job.queue, job.crashes or 0, job.place .. job.id)
    if job.crashes then woken[job.queue] = true end
end

local function make_wait(job, status, due)
    move(job, status)
    call('HSET', job.key, 'status', status, 'due', due)
    call('ZADD', p .. 'due', due, job.id)
    woken[job.queue] = true
end

-- Take a job that is not running from where it waits.
local function leave(job)
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

local function is_hopeless(status)
    return status == 'failed' or status == 'cancelled'
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
            if child and parent.status == 'success' then
                call('SREM', p .. 'parents:' .. id, parent.id)
                if call('EXISTS', p .. 'parents:' .. id) == 0 then unblock(child) end
            elseif child then
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

local function add_history(job, worker, started, ended_at, outcome, error, traceback)
    local entry = {job.attempt or 0, encode(worker), started, ended_at, encode(outcome),
        error and encode(error) or 'null', traceback and encode(traceback) or 'null'}
    call('RPUSH', p .. 'history:' .. job.id, '[' .. table.concat(entry, ',') .. ']')
    call('LTRIM', p .. 'history:' .. job.id, -HISTORY_LIMIT, -1)
end

-- Move the latest attempt into the history.
local function archive(job, ended_at, ending, error, traceback)
    if job.started then add_history(job, job.worker, job.started, ended_at, ending, error, traceback) end
    call('HDEL', job.key, 'worker', 'started', 'finished', 'purge_at', 'progress', 'result', 'error', 'traceback',
        'due')
end

-- Let a job that ran wait again, or end it where that is its due.
local function put_back(job, status, due, ending, error, traceback, untouched)
    archive(job, now, ending, error, traceback)
    if job.expires and untouched then
        call('ZADD', p .. 'expiring', job.expires, job.id)
    elseif job.expires then
        call('HDEL', job.key, 'expires')
        job.expires = false
    end
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
        if job then
            if ending == 'crash' then job.crashes = call('HINCRBY', job.key, 'crashes', 1) end
            put_back(job, 'pending', nil, ending, error)
        end
    end
    call('DEL', p .. 'running:' .. worker)
    call('ZREM', p .. 'leases', worker)
    call('HDEL', p .. 'workers', worker)
    call('HDEL', state, 'claims ' .. worker, 'alone ' .. worker)
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
        if is_hopeless(status) then
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

-- Delete a job that waits nowhere.
local function erase(id)
    local key = p .. 'job:' .. id
    local status, queue = unpack(call('HMGET', key, 'status', 'queue'), 1, 2)
    if status then count(status .. ' ' .. queue, -1) end
    call('UNLINK', key, p .. 'history:' .. id)
    call('ZREM', p .. 'purge', id)
    call('ZREM', p .. 'all', id)
end

-- What comes last in every script that writes. Who waits for jobs found the line empty: only the first to
-- enter an empty one need be told of.
local function publish()
    each('ZADD', p .. 'purge', purges)
    for name, step in pairs(counts) do
        local number = step ~= 0 and call('HINCRBY', state, name, step)
        if number == 0 then call('HDEL', state, name) end
        if number == step and string.sub(name, 1, 8) == 'pending ' then woken[string.sub(name, 9)] = true end
    end
    for queue in pairs(woken) do call('PUBLISH', p .. 'jobs', queue) end
    if #ended > 0 then call('PUBLISH', p .. 'results', encode(ended)) end
end
"""

# Take in new jobs.
# ARGV: of each call: now, bury_at, its parents from elsewhere (JSON: [[child, parent, parent ..] ..], or ''),
#   how many runs, then so many runs of jobs that are alike: queue, priority, head, due, expires, unique,
#   parents (JSON or ''), how many jobs, then of each its id and payload.
# Answer: of each call 0 if all jobs are in, the list of ids if some stand for others, or the parent
#   that is not known, in which case nothing of the call is in.
_PUSH = """
local function unknown_parent(needs)
    for _, need in ipairs(needs ~= '' and cjson.decode(needs) or {}) do
        if call('EXISTS', p .. 'job:' .. need[1]) == 0 then
            for i = 2, #need do
                if call('EXISTS', p .. 'job:' .. need[i]) == 0 then return need[i] end
            end
        end
    end
end

local function take_care(job, due, expires, unique, parents)
    tally(job, 1)
    if due then call('HSET', job.key, 'due', due) end
    if unique then call('HSET', job.key, 'unique', unique) end
    if expires then
        call('HSET', job.key, 'expires', expires)
        call('ZADD', p .. 'expiring', expires, job.id)
    end
    if parents then call('HSET', job.key, 'parents', parents) end
    await_parents(job, parents and cjson.decode(parents) or {})
end

local function some(word)
    return word ~= '' and word
end

local function take_in(ids)
    local queue, priority, head, due, expires, unique, parents, number = words(8)
    due, expires, unique, parents = some(due), some(expires), some(unique), some(parents)
    local careful, entries, differ = due or expires or unique or parents, {}, false
    local status = careful and 'blocked' or 'pending'
    local seq = call('HINCRBY', state, 'seq', number) - number
    for i = at + 1, at + 2 * number, 2 do
        local id = ARGV[i]
        seq = seq + 1
        local holder = call('ZADD', p .. 'all', 'NX', seq, id) == 0 and id
        if unique and not holder and call('HSETNX', p .. 'unique', unique, id) == 0 then
            call('ZREM', p .. 'all', id)
            holder = call('HGET', p .. 'unique', unique)
            differ = true
        end
        if not holder then
            local key, place = p .. 'job:' .. id, priority .. string.format('%013x', seq)
            call('HSET', key, 'place', place, 'queue', queue, 'head', head, 'payload', ARGV[i + 1], 'submitted', now,
                'status', status)
            if careful then
                local job = {id = id, key = key, place = place, queue = queue, status = status, expires = expires,
                    unique = unique}
                take_care(job, due, expires, unique, parents)
            else
                entries[#entries + 1] = 0
                entries[#entries + 1] = place .. id
            end
        end
        ids[#ids + 1] = holder or id
    end
    at = at + 2 * number
    count('pending ' .. queue, #entries / 2)
    each('ZADD', p .. 'ready:' .. queue, entries)
    return differ
end

local function skip_run()
    local number = select(8, words(8))
    at = at + 2 * number
end

local answers = {}
while ARGV[at + 1] do
    local needs, runs
    now, bury_at, needs, runs = words(4)
    local ids, differ, parent = {}, false, unknown_parent(needs)
    for _ = 1, runs do
        if parent then skip_run() elseif take_in(ids) then differ = true end
    end
    answers[#answers + 1] = parent or (differ and ids) or 0
end
publish()
return answers
"""

# Hand out ready jobs.
# ARGV: queue, limit, worker, now, bury_at, number of the claim, then the numbers of earlier ones whose answers
#   were lost: what those took is handed out again. One that is carried out late, after a later one, takes nothing.
# Answer: when the next waiting job is due ('' if none), then of each job PLACE ID and its CLAIMED_FIELDS.
_CLAIM = """
local queue, limit, worker, number = ARGV[2], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[7])
now, bury_at = ARGV[5], ARGV[6]
local answer, taken, running = {''}, {}, p .. 'running:' .. worker
local may_be_repeated = again or ARGV[8]

local function first(key)
    return call('ZRANGE', p .. key, 0, 0, 'WITHSCORES')[2]
end

local function has_come(moment)
    return moment and tonumber(moment) <= tonumber(now)
end

local function promote()
    for _, id in ipairs(call('ZRANGEBYSCORE', p .. 'due', '-inf', now, 'LIMIT', 0, 1000)) do
        call('ZREM', p .. 'due', id)
        local job = load(id)
        if job then make_ready(job) end
    end
end

local function expire()
    for _, id in ipairs(call('ZRANGEBYSCORE', p .. 'expiring', '-inf', now, 'LIMIT', 0, 1000)) do
        call('ZREM', p .. 'expiring', id)
        local job = load(id)
        if job then bury(job, 'cancelled', EXPIRED) end
    end
    if has_come(first('expiring')) then woken[queue] = true end  -- there is more than a step of it
end

local function holds_lease()
    local time = clock()
    if tonumber(first('leases')) > time then return true end
    if tonumber(call('ZSCORE', p .. 'leases', worker)) <= time then return false end
    rescue_lapsed(worker)
    return true
end

local function hand_out(member, fields)
    local n = #answer
    answer[n + 1] = member
    for i = 1, CLAIMED_NUMBER do answer[n + 1 + i] = fields[i] end
end

local function hand_out_again()
    local lost, members = {}, {}
    for i = 7, #ARGV do lost[ARGV[i]] = true end
    for _, id in ipairs(call('SMEMBERS', running)) do
        local number, place = unpack(call('HMGET', p .. 'job:' .. id, 'claim', 'place'), 1, 2)
        if lost[number] then members[#members + 1] = place .. id end
    end
    table.sort(members)
    for _, member in ipairs(members) do
        hand_out(member, call('HMGET', p .. 'job:' .. string.sub(member, 30), CLAIMED_FIELDS))
    end
end

local function take(member, kind)
    local id = string.sub(member, 30)
    local key = p .. 'job:' .. id
    local fields = call('HMGET', key, CLAIMED_FIELDS, 'expires')
    if not fields[2] then return count(kind .. queue, -1) end  -- it was thrown away
    local expires = fields[CLAIMED_NUMBER + 1]
    fields[1] = (fields[1] or 0) + 1
    if expires and not fields[6] and not fields[7] then  -- no failures, no crashes
        if has_come(expires) then return bury(load(id), 'cancelled', EXPIRED) end
        call('ZREM', p .. 'expiring', id)
    end
    call('HSET', key, 'status', 'running', 'attempt', fields[1], 'worker', worker, 'started', now,
        'claim', number)
    taken[#taken + 1] = id
    hand_out(member, fields)
end

-- The kind of jobs that were taken: a suspect for a worker that runs nothing, and while it runs one, nothing.
local function choose(suspects, alone)
    if alone then return end
    if (suspects or 0) + (counts['suspect ' .. queue] or 0) > 0 and call('SCARD', running) == 0 then
        local suspect = call('ZPOPMIN', p .. 'suspects:' .. queue)[1]
        take(suspect, 'suspect ')
        if taken[1] then call('HSET', state, 'alone ' .. worker, taken[1]) end
        return 'suspect '
    end
    local wanted, members
    repeat
        wanted = limit - #taken
        members = call('ZPOPMIN', p .. 'ready:' .. queue, wanted)
        for i = 1, #members, 2 do take(members[i], 'pending ') end
    until #taken >= limit or #members < 2 * wanted or #ended >= 1000
    if #ended >= 1000 then woken[queue] = true end  -- that have expired; others shall have the server first
    return 'pending '
end

local function claim(suspects, alone)
    if has_come(first('expiring')) then expire() end
    local kind = choose(suspects, alone)
    if #taken > 0 then
        count(kind .. queue, -#taken)
        count('running ' .. queue, #taken)
        each('SADD', running, taken)
    end
    if #taken > 0 or may_be_repeated then call('HSET', state, 'claims ' .. worker, number) end
end

local due = first('due')
if has_come(due) then  -- in any case: who waits, waits for the first of those that are left
    promote()
    due = first('due')
end
local asked = {'claims ' .. worker, 'paused ' .. queue, 'alone ' .. worker, 'suspect ' .. queue}
local latest, paused, alone, suspects = unpack(call('HMGET', state, unpack(asked)), 1, 4)
if latest and holds_lease() then
    if may_be_repeated then hand_out_again() end
    if number > tonumber(latest) and not paused then claim(suspects, alone) end
end
publish()
answer[1] = due or ''
return answer
"""

# Write down what attempts came to.
# ARGV: of each call: now, bury_at, how many runs of outcomes that are alike, then of each run: worker, status,
#   purge_at, whether they may be written already, how many, then of each outcome its id, attempt, result; or,
#   where that is no success, id, attempt, error, traceback, due, ending, 1 if the task had begun to run.
#   An attempt is its number and the job's seq: the id may belong to another job by now, submitted when it was deleted.
# Answer: of each call a text with a 1 for each outcome that was written, a 0 for each that was not.
_SETTLE = """
local flags

local function check(worker, id, attempt, status, doubtful)
    local job = load(id)
    local same = job and (job.attempt or 0) .. ' ' .. string.sub(job.place, 17) == attempt
    local holds = same and job.status == 'running' and job.worker == worker
    flags[#flags + 1] = (holds or (same and doubtful and job.status == status)) and '1' or '0'
    return holds and job
end

local function write_other(job, status, purge_at, error, traceback, due, ending, begun)
    traceback, due = traceback ~= '' and traceback, due ~= '' and due
    if ending == 'failure' then call('HINCRBY', job.key, 'failures', 1) end
    if is_hopeless(status) then
        finish(job, status, purge_at, 'error', error)
        if traceback then call('HSET', job.key, 'traceback', traceback) end
        tell(job)
    else
        put_back(job, status, due, ending, error, traceback, begun == '0')
    end
end

local function settle(worker, status, purge_at, doubtful, number)
    local settled, is_success = {}, status == 'success'
    local size = is_success and 3 or 7
    for i = at + 1, at + size * number, size do
        local id = ARGV[i]
        local job = check(worker, id, ARGV[i + 1], status, again or doubtful == '1')
        if job then
            settled[#settled + 1] = id
            if job.crashes then call('HDEL', state, 'alone ' .. worker) end
            if is_success then
                finish(job, status, purge_at, 'result', ARGV[i + 2])
                if job.children then tell(job) end
            else
                write_other(job, status, purge_at, unpack(ARGV, i + 2, i + 6))
            end
        end
    end
    at = at + size * number
    each('SREM', p .. 'running:' .. worker, settled)
end

local answers = {}
while ARGV[at + 1] do
    local runs
    now, bury_at, runs = words(3)
    flags = {}
    for _ = 1, runs do settle(words(5)) end
    answers[#answers + 1] = table.concat(flags)
end
publish()
return answers
"""

# Register a worker or extend its lease; with a lease of 0 it takes its leave.
# ARGV: worker, lease, now, bury_at, info (JSON), queues (JSON), the oldest minute to keep, then of each minute of
#   activity that has changed: its beginning, what was done (JSON).
# Answer: whether it was known, its jobs that are to end, paused queues, whether suspects wait, lost workers.
_HEARTBEAT = """
local worker, lease, info, queues = ARGV[2], tonumber(ARGV[3]), ARGV[6], cjson.decode(ARGV[7])
now, bury_at = ARGV[4], ARGV[5]

local function keep_activity()
    for i = 9, #ARGV, 2 do
        call('ZADD', p .. 'minutes', ARGV[i], ARGV[i])
        call('HSET', p .. 'minute:' .. ARGV[i], worker, ARGV[i + 1])
    end
    for _, minute in ipairs(call('ZRANGEBYSCORE', p .. 'minutes', '-inf', '(' .. ARGV[8])) do
        call('UNLINK', p .. 'minute:' .. minute)
        call('ZREM', p .. 'minutes', minute)
    end
end

keep_activity()
if lease <= 0 then
    dissolve(worker, 'release', LEFT)
    publish()
    return {1, {}, {}, 0, {}}
end
local lost = rescue_lapsed(worker)
local known = call('ZSCORE', p .. 'leases', worker)
local time = clock()
call('ZADD', p .. 'leases', string.format('%.6f', time + lease), worker)
call('HSET', p .. 'workers', worker, info)
call('HSETNX', state, 'claims ' .. worker, 0)
local to_end, paused, suspects = {}, {}, 0
for _, id in ipairs(call('SMEMBERS', p .. 'cancelling')) do
    if call('SISMEMBER', p .. 'running:' .. worker, id) == 1 then to_end[#to_end + 1] = id end
end
for _, queue in ipairs(queues) do
    if not known or tonumber(known) <= time then woken[queue] = true end  -- it may claim again
    if call('HEXISTS', state, 'paused ' .. queue) == 1 then paused[#paused + 1] = queue
    elseif call('EXISTS', p .. 'suspects:' .. queue) == 1 then suspects = 1 end
end
publish()
return {known and 1 or 0, to_end, paused, suspects, lost}
"""

# End a job.  ARGV: id, now, bury_at, who does it or ''.  Answer: 1, or 0 if it is finished or unknown.
_CANCEL = """
now, bury_at = ARGV[3], ARGV[4]
local job = load(ARGV[2])
if not job then return 0 end
if again and (job.cancel == now or call('HGET', job.key, 'finished') == now) then return 1 end
if job.status == 'success' or is_hopeless(job.status) then return 0 end
if ARGV[5] ~= '' then add_history(job, ARGV[5], now, now, 'note', 'cancelled') end
if job.status == 'running' then
    call('HSET', job.key, 'cancel', now)
    call('SADD', p .. 'cancelling', job.id)
    call('PUBLISH', p .. 'notices', job.worker)
else
    bury(job, 'cancelled', BY_HAND)
end
publish()
return 1
"""

# Make failed and cancelled jobs ready again.  ARGV: now, who does it or '', then ids.  Answer: a 1 or 0 for each.
_REQUEUE = """
now = ARGV[2]

local function has_hope(parents)
    for _, parent in ipairs(parents) do
        if is_hopeless(call('HGET', p .. 'job:' .. parent, 'status')) then return false end
    end
    return true
end

local function requeue(id)
    local job = load(id)
    if not job then return 0 end
    local kept = call('HMGET', job.key, 'finished', 'error', 'traceback', 'parents', 'requeued')
    local finished, error, traceback, parents, requeued = unpack(kept, 1, 5)
    if again and requeued == now then return 1 end
    parents = parents and cjson.decode(parents) or {}
    if not is_hopeless(job.status) or not has_hope(parents) then return 0 end
    if job.unique and call('HSETNX', p .. 'unique', job.unique, id) == 0 then return 0 end
    call('ZREM', p .. 'purge', id)
    archive(job, finished, job.status == 'failed' and 'failure' or 'cancel', error, traceback)
    if ARGV[3] ~= '' then add_history(job, ARGV[3], now, now, 'note', 'requeued') end
    call('HDEL', job.key, 'failures', 'crashes', 'cancel', 'expires')
    job.crashes, job.cancel, job.expires = false, false, false
    move(job, 'blocked')
    call('HSET', job.key, 'status', 'blocked', 'requeued', now)
    await_parents(job, parents)
    return 1
end

local answer = {}
for i = 4, #ARGV do answer[#answer + 1] = requeue(ARGV[i]) end
publish()
return answer
"""

# Delete finished jobs past their retention.  ARGV: before, limit.  Answer: how many.
_PURGE = """
local ids = call('ZRANGEBYSCORE', p .. 'purge', '-inf', '(' .. ARGV[2], 'LIMIT', 0, ARGV[3])
for _, id in ipairs(ids) do erase(id) end
publish()
return #ids
"""

# Delete finished jobs.  ARGV: ids.  Answer: for each whether it was there; of a repetition, whether it is not.
_DELETE = """
local answer = {}
for i = 2, #ARGV do
    local status = call('HGET', p .. 'job:' .. ARGV[i], 'status')
    local is_finished = status == 'success' or is_hopeless(status)
    if is_finished then erase(ARGV[i]) end
    answer[#answer + 1] = (is_finished or (again and not status)) and 1 or 0
end
publish()
return answer
"""

# Keep how far running jobs are.  ARGV: id, progress (JSON) ..  Answer: 0.
_REPORT = """
for i = 2, #ARGV, 2 do
    local key = p .. 'job:' .. ARGV[i]
    if call('HGET', key, 'status') == 'running' then call('HSET', key, 'progress', ARGV[i + 1]) end
end
return 0
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

# Keep waiting jobs from running, for a move to another store.  ARGV: by, then ids.  Answer: a 1 or 0 for each.
_HOLD = """
local by, answer = ARGV[2], {}

local function hold(id)
    local job = load(id)
    if not job or job.status == 'running' or job.status == 'success' or is_hopeless(job.status) then return 0 end
    if job.worker then return job.worker == by and 1 or 0 end
    leave(job)
    if job.expires then call('ZADD', p .. 'expiring', job.expires, id) end
    move(job, 'blocked')
    call('HSET', job.key, 'status', 'blocked', 'worker', by)
    return 1
end

for i = 3, #ARGV do answer[#answer + 1] = hold(ARGV[i]) end
publish()
return answer
"""

# Take in jobs of another store, held.
# ARGV: by, then of each job: id, priority, queue, unique, when it expires, its fields (JSON), its history (JSON).
# Answer: a 1 for each that is there now, a 0 for one whose unique key another has.
_ADOPT = """
local answer = {}

local function adopt(id, priority, queue, unique, expires, fields, history)
    local key = p .. 'job:' .. id
    if call('EXISTS', key) == 1 then return 1 end
    if unique ~= '' and call('HSETNX', p .. 'unique', unique, id) == 0 then return 0 end
    local seq = call('HINCRBY', state, 'seq', 1)
    call('HSET', key, 'place', priority .. string.format('%013x', seq), 'queue', queue, 'status', 'blocked',
        'worker', ARGV[2], unpack(cjson.decode(fields)))
    call('ZADD', p .. 'all', seq, id)
    if expires ~= '' then call('ZADD', p .. 'expiring', expires, id) end
    each('RPUSH', p .. 'history:' .. id, cjson.decode(history))
    count('blocked ' .. queue, 1)
    return 1
end

for i = 3, #ARGV, 7 do answer[#answer + 1] = adopt(unpack(ARGV, i, i + 6)) end
publish()
return answer
"""

# End a hold.  ARGV: by, 1 if the jobs are to go for good, now, bury_at, then ids.  Answer: a 1 or 0 for each.
_LET_GO = """
local by, gone, answer = ARGV[2], ARGV[3] == '1', {}
now, bury_at = ARGV[4], ARGV[5]

local function let_go(id)
    local job = load(id)
    if not job or job.status ~= 'blocked' or job.worker ~= by then return 0 end
    if gone then
        if job.unique then call('HDEL', p .. 'unique', job.unique) end
        call('ZREM', p .. 'expiring', id)
        erase(id)
        ended[#ended + 1] = id
    else
        local kept = call('HMGET', job.key, 'parents', 'due')
        call('HDEL', job.key, 'worker')
        await_parents(job, kept[1] and cjson.decode(kept[1]) or {}, kept[2])
    end
    return 1
end

for i = 6, #ARGV do answer[#answer + 1] = let_go(ARGV[i]) end
publish()
return answer
"""

# Keep finished results of jobs that ran elsewhere.
# ARGV: of each result its id, its purge_at, and its fields (JSON).  Answer: 0.
_RECORD = """
for i = 2, #ARGV, 3 do
    local id, fields = ARGV[i], cjson.decode(ARGV[i + 2])
    local key = p .. 'job:' .. id
    local status, queue = unpack(call('HMGET', key, 'status', 'queue'), 1, 2)
    if not status or queue == '' then  -- a job of this store, which is in a queue, is not written over
        if status then erase(id) end
        local seq = call('HINCRBY', state, 'seq', 1)
        call('HSET', key, 'place', '8000000000000000' .. string.format('%013x', seq), 'queue', '', unpack(fields))
        call('HSET', key, 'purge_at', ARGV[i + 1])
        call('ZADD', p .. 'all', seq, id)
        call('ZADD', p .. 'purge', ARGV[i + 1], id)
        count(call('HGET', key, 'status') .. ' ', 1)
        ended[#ended + 1] = id
    end
end
publish()
return 0
"""

# Look results up.  ARGV: of each call how many ids, then those.
# Answer: of each call a list with the values of RESULT_FIELDS, or 0, for each id.
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

# Look for jobs in steps.
# ARGV: filter (JSON: what does not matter is not there), how many to find, how many to look at, 1 for the oldest
#   first, the lowest seq and the highest, each as ZRANGEBYSCORE takes it.
# Answer: the seq of the last one looked at ('' at the end), then of each job its id, its hash and its history.
_FIND = """
local which, limit, answer = cjson.decode(ARGV[2]), tonumber(ARGV[3]), {''}
local wanted, ids = {}, which.ids
for _, status in ipairs(which.status or {}) do wanted[status] = true end

local function is_in(wanted, list)
    for _, item in ipairs(list and cjson.decode(list) or {}) do
        if item == wanted then return true end
    end
end

local function matches(id)
    local status, queue, worker, head, place, error, parents = unpack(call('HMGET', p .. 'job:' .. id,
        'status', 'queue', 'worker', 'head', 'place', 'error', 'parents'), 1, 7)
    return status and (not which.status or wanted[status]) and (not which.queue or queue == which.queue)
        and (not which.worker or worker == which.worker)
        and (not which.head or string.sub(head, 1, #which.head) == which.head)
        and (not which.ahead or (status == 'pending' and place < which.ahead))
        and (not which.error or string.find(string.lower(error or ''), which.error, 1, true))
        and (not which.parent or is_in(which.parent, parents))
end

local function add(id)
    answer[#answer + 1] = id
    answer[#answer + 1] = call('HGETALL', p .. 'job:' .. id)
    answer[#answer + 1] = call('LRANGE', p .. 'history:' .. id, 0, -1)
end

local function all_running()
    local found = {}
    for _, name in ipairs(call('HKEYS', p .. 'workers')) do
        for _, id in ipairs(call('SMEMBERS', p .. 'running:' .. name)) do found[#found + 1] = id end
    end
    return found
end

if not ids and #(which.status or {}) == 1 and wanted.running then ids = all_running() end
if ids then
    for _, id in ipairs(ids) do
        if matches(id) then add(id) end
    end
    return answer
end
local page
if ARGV[5] == '1' then
    page = call('ZRANGEBYSCORE', p .. 'all', ARGV[6], ARGV[7], 'WITHSCORES', 'LIMIT', 0, ARGV[4])
else
    page = call('ZREVRANGEBYSCORE', p .. 'all', ARGV[7], ARGV[6], 'WITHSCORES', 'LIMIT', 0, ARGV[4])
end
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
local ahead = call('ZLEXCOUNT', p .. 'ready:' .. ARGV[2], '-', '(' .. ARGV[3])
for _, member in ipairs(call('ZRANGE', p .. 'suspects:' .. ARGV[2], 0, -1)) do
    if member < ARGV[3] then ahead = ahead + 1 end
end
return ahead
"""

# What there is at all.  Answer: the state, the workers whose lease holds (JSON).
_LOOK = """
local workers = {}
for _, worker in ipairs(call('ZRANGEBYSCORE', p .. 'leases', '(' .. clock(), '+inf')) do
    workers[#workers + 1] = call('HGET', p .. 'workers', worker)
end
return {call('HGETALL', state), workers}
"""

# What workers did.  ARGV: the first minute, how many to look at.
# Answer: the last minute looked at ('' at the end), then what each worker did in each (JSON).
_ACTIVITY = """
local answer = {''}
for _, minute in ipairs(call('ZRANGEBYSCORE', p .. 'minutes', ARGV[2], '+inf', 'LIMIT', 0, ARGV[3])) do
    answer[1] = minute
    for _, text in ipairs(call('HVALS', p .. 'minute:' .. minute)) do answer[#answer + 1] = text end
end
return answer
"""


RESULT_FIELDS = (
    "head", "status", "result", "error", "traceback", "attempt", "submitted", "started", "finished", "progress",
)  # fmt: skip
CLAIMED_FIELDS = ("attempt", "head", "payload", "submitted", "due", "failures", "crashes", "parents")
_CONSTANTS = {"BY_HAND": BY_HAND, "EXPIRED": EXPIRED, "KILLED": KILLED, "WORKER_LOST": WORKER_LOST, "LEFT": LEFT}
_PREAMBLE = "".join(f"local {name} = {json.dumps(text)}\n" for name, text in _CONSTANTS.items())
_PREAMBLE += f"local MAX_CRASHES, HISTORY_LIMIT = {MAX_CRASHES}, {HISTORY_LIMIT}\n"
_LISTS = {name: str(fields)[1:-1] for name, fields in (("CLAIMED", CLAIMED_FIELDS), ("RESULT", RESULT_FIELDS))}


class Script:
    """The text of a script, and the hash by which the server knows it."""

    def __init__(self, text: str) -> None:
        for name, fields in _LISTS.items():
            text = text.replace(f"{name}_FIELDS", fields)
        text = text.replace("CLAIMED_NUMBER", str(len(CLAIMED_FIELDS)))
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
    "delete": Script(_DELETE),
    "report": Script(_REPORT),
    "set_queue": Script(_SET_QUEUE),
    "hold": Script(_HOLD),
    "adopt": Script(_ADOPT),
    "let_go": Script(_LET_GO),
    "record": Script(_RECORD),
    "get": Script(_GET),
    "find": Script(_FIND),
    "ahead": Script(_AHEAD),
    "look": Script(_LOOK),
    "activity": Script(_ACTIVITY),
}
