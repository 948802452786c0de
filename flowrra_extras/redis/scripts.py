"""What runs in the server.

Every transition is one atomic script over a whole group of jobs. All keys begin with the prefix in
braces, so that a cluster keeps them in one slot. Below, P is `{flowrra}`:

    P:state           hash: what scripts ask first       P:job:ID        hash: the job, see `job_of`
    P:all             zset seq > id: every job           P:history:ID    list: its earlier attempts, as JSON
    P:by:STATUS       zset seq > id: for `find`, those   P:family:ID     zset seq > id: the jobs of which ID is a
                      neither ready nor running                          parent, finished ones too
    P:by:error        zset seq > id: a superset of those with an error
    P:ready:QUEUE     zset: PLACE ID, in lexical order   P:children:ID   set: blocked jobs that wait for ID
    P:suspects:QUEUE  zset crashes > PLACE ID            P:parents:ID    set: what the blocked job ID waits for
    P:due             zset due > id: waiting jobs        P:unique        hash key > id, of unfinished jobs
    P:expiring        zset expires > id: not begun       P:running:W     set: what worker W holds
    P:purge           zset purge_at > id: finished jobs  P:cancelling    set: running jobs that are to end
    P:leases          zset end > worker, by Redis's TIME P:workers       hash worker > JSON
    P:minutes         zset of those with activity        P:minute:M      hash worker > what it did in it, JSON
    P:totals          hash WHAT TASK > number: what was ever done, WHAT being a place in the rows of that JSON
    P:endings         list of jobs for heartbeats, JSON  channels P:jobs, P:results, P:notices
The fields of P:state:
    seq               the order of submission            STATUS QUEUE    how many; `suspect` is pending, apart
    paused QUEUE      it is paused                       alone W         worker W runs a suspect
    claims W          the latest claim of W, which is there while W has a lease
    length W          of W's lease, in seconds           term W          when W got a lease that it did not have
    graced W          W's lease is a fresh one that another worker gave it
    version           which of these keys there are: VERSION, if absent 1, which had no P:by and P:family

PLACE is the priority (16 hex digits, so biased that the lowest is 0) and the seq (13 digits): a score,
being a double, could not hold both. Moments are text as the caller wrote it: Lua prints 14 digits.

An idle server is slow, its caches being cold: the first use of a command took 10 to 28 us there, each further
one 1 us. So push and claim keep to a handful of commands.

Each script has a header: ARGV, the answer. KEYS[1] is always the prefix with its colon, ARGV[1] always 1 if
this may be a repetition of a call whose answer was lost, else 0: it is left out below. '' stands for "none".
"""

import hashlib
import json

from flowrra import BY_HAND, ENDINGS_KEPT, ENDINGS_TOLD, EXPIRED, HISTORY_LIMIT, KILLED, LEFT, MAX_CRASHES, WORKER_LOST

__all__ = ["CLAIMED_FIELDS", "RESULT_FIELDS", "SCRIPTS", "VERSION", "Script"]

VERSION = 2  # of the keys
MOST_LOOKS = 500  # that a step takes at queues and their priorities

_COMMON = """
local p, again = KEYS[1], ARGV[1] == '1'  -- p with its colon, so that an ACL of ~{flowrra}:* allows it
local call, encode, state = redis.call, cjson.encode, KEYS[1] .. 'state'
local now, bury_at      -- the caller's wall clock, and until when what is ended here is kept
local counts, woken, ended, endings, purges, successes = {}, {}, {}, {}, {}, {}
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

-- As text: a number goes to Redis by way of its 17 digits, which costs as much as some commands.
local function seq_of(job)
    return string.format('%d', tonumber(string.sub(job.place, 17, 29), 16))
end

-- Ready jobs are found in their queue, running ones by their worker, and each move of a job costs: so that one which
-- comes in, runs and succeeds enters one index only, with others at once.
local function has_index(status)
    return status ~= 'pending' and status ~= 'running'
end

local function enter_index(job)
    if job.status == 'success' then
        successes[#successes + 1] = seq_of(job)
        successes[#successes + 1] = job.id
    elseif has_index(job.status) then
        call('ZADD', p .. 'by:' .. job.status, seq_of(job), job.id)
    end
end

local function note_error(job)
    call('ZADD', p .. 'by:error', seq_of(job), job.id)
end

local function move(job, status)
    tally(job, -1)
    if has_index(job.status) and not job.is_new then call('ZREM', p .. 'by:' .. job.status, job.id) end
    job.status, job.is_new = status, nil
    tally(job, 1)
    enter_index(job)
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
        if status == 'success' then call('ZREM', p .. 'by:error', job.id) end
    end
    move(job, status)
    if status ~= 'success' then note_error(job) end
    call('HSET', job.key, 'status', status, 'finished', now, 'purge_at', purge_at, ...)
    purges[#purges + 1] = purge_at
    purges[#purges + 1] = job.id
    if job.unique then call('HDEL', p .. 'unique', job.unique) end
    if job.cancel then call('SREM', p .. 'cancelling', job.id) end
    ended[#ended + 1] = job.id
end

-- Bring a job to an end that no attempt tells of: a heartbeat will, so that a worker announces it.
local function close(job, status, reason)
    finish(job, status, bury_at, 'error', reason)
    local head = call('HGET', job.key, 'head')
    endings[#endings + 1] = encode({job.id, cjson.decode(head)[1], tonumber(job.attempt or 0), status, reason})
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
        local line = {}
        for _, id in ipairs(children) do line[#line + 1] = load(id) or nil end
        table.sort(line, function(a, b) return string.sub(a.place, 17) < string.sub(b.place, 17) end)
        for _, child in ipairs(line) do
            local id = child.id
            if parent.status == 'success' then
                call('SREM', p .. 'parents:' .. id, parent.id)
                if call('EXISTS', p .. 'parents:' .. id) == 0 then unblock(child) end
            else
                leave(child)
                close(child, 'cancelled', orphaned(parent.id, parent.status))
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
    close(job, status, reason)
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
        if due then call('HSET', job.key, 'due', due) end
        close(job, 'cancelled', BY_HAND)
        tell(job)
    elseif ending == 'crash' and job.crashes >= MAX_CRASHES then
        close(job, 'failed', KILLED)
        tell(job)
    else
        call('HSET', job.key, 'error', error)
        note_error(job)
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
    for _, field in ipairs({'claims ', 'alone ', 'length ', 'term ', 'graced '}) do
        call('HDEL', state, field .. worker)
    end
end

local function clock()
    local time = call('TIME')
    return time[1] + time[2] / 1000000
end

-- Put back what the dead held, and give a fresh lease to those of whom nobody can know: `judge_leases` of the core.
-- `heard`: when the server has last heard from the worker `by`; `lease`: the one that it is about to get, if it is a
-- heartbeat. A claim leaves those in doubt to heartbeats.
local function rescue_lapsed(by, heard, lease)
    local lost, time = {}, clock()
    local lapsed = call('ZRANGEBYSCORE', p .. 'leases', '-inf', time, 'WITHSCORES')
    for i = 1, #lapsed, 2 do
        local worker, ended_at = lapsed[i], tonumber(lapsed[i + 1])
        local length, graced = unpack(call('HMGET', state, 'length ' .. worker, 'graced ' .. worker), 1, 2)
        length = tonumber(length or lease or 0)
        local is_dead = ended_at - length / 2 <= heard and (lease or not graced)
        if worker ~= by and is_dead then
            dissolve(worker, 'crash', WORKER_LOST)
            lost[#lost + 1] = worker
        elseif worker ~= by and lease and not graced then
            call('ZADD', p .. 'leases', string.format('%.6f', time + length), worker)
            call('HSET', state, 'graced ' .. worker, 1)
        end
    end
    return lost
end

local function enter_families(job, parents)
    for _, parent in ipairs(parents) do call('ZADD', p .. 'family:' .. parent, seq_of(job), job.id) end
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
    local status, queue, parents = unpack(call('HMGET', key, 'status', 'queue', 'parents'), 1, 3)
    if status then
        count(status .. ' ' .. queue, -1)
        call('ZREM', p .. 'by:' .. status, id)
        if status ~= 'success' then call('ZREM', p .. 'by:error', id) end
    end
    for _, parent in ipairs(parents and cjson.decode(parents) or {}) do call('ZREM', p .. 'family:' .. parent, id) end
    call('UNLINK', key, p .. 'history:' .. id)
    call('ZREM', p .. 'purge', id)
    call('ZREM', p .. 'all', id)
end

-- What comes last in every script that writes. Who waits for jobs found the line empty: only the first to
-- enter an empty one need be told of.
local function publish()
    each('ZADD', p .. 'purge', purges)
    each('ZADD', p .. 'by:success', successes)
    each('RPUSH', p .. 'endings', endings)
    if #endings > 0 then call('LTRIM', p .. 'endings', -ENDINGS_KEPT, -1) end
    for name, step in pairs(counts) do
        local number = step ~= 0 and call('HINCRBY', state, name, step)
        if number == 0 then call('HDEL', state, name) end
        if number == step and string.sub(name, 1, 8) == 'pending ' then woken[string.sub(name, 9)] = true end
    end
    for queue in pairs(woken) do call('PUBLISH', p .. 'jobs', queue) end
    if #ended > 0 then call('PUBLISH', p .. 'results', encode(ended)) end
end
"""

# For scripts that take in jobs in other ways than a push.
_INDEX = """
local function index(job)
    local error, parents = unpack(call('HMGET', p .. 'job:' .. job.id, 'error', 'parents'), 1, 2)
    enter_index(job)
    if error then note_error(job) end
    enter_families(job, parents and cjson.decode(parents) or {})
end
"""

# Take in new jobs.
# ARGV: of each call: now, bury_at, the jobs that come before their parents are known to be there (JSON: of each
#   its id, its unique key or '', its parents that do not come before it; '' if there are none with such parents),
#   how many runs, then so many runs of jobs that are alike: queue, priority, head, due, expires, unique,
#   parents (JSON or ''), how many jobs, then of each its id and payload.
# Answer: of each call 0 if all jobs are in, the list of ids if some stand for others, or the parent
#   that is not known, in which case nothing of the call is in.
_PUSH = """
-- Of a job that is taken in. One whose id or key is there already needs no parents.
local function unknown_parent(needs)
    local new, keys = {}, {}
    for _, need in ipairs(needs ~= '' and cjson.decode(needs) or {}) do
        local id, unique = need[1], need[2]
        local has_key = unique ~= '' and (keys[unique] or call('HEXISTS', p .. 'unique', unique) == 1)
        if not new[id] and not has_key and call('EXISTS', p .. 'job:' .. id) == 0 then
            for i = 3, #need do
                if call('EXISTS', p .. 'job:' .. need[i]) == 0 then return need[i] end
            end
            new[id], keys[unique] = true, true
        end
    end
end

local stand_ins = {}  -- of a job of this call whose unique key was taken, the job that has it

local function stood_in(parents)
    local list = cjson.decode(parents)
    for i, parent in ipairs(list) do list[i] = stand_ins[parent] or parent end
    return list
end

local function take_care(job, due, expires, unique, parents)
    tally(job, 1)
    if due then call('HSET', job.key, 'due', due) end
    if unique then call('HSET', job.key, 'unique', unique) end
    if expires then
        call('HSET', job.key, 'expires', expires)
        call('ZADD', p .. 'expiring', expires, job.id)
    end
    if parents and next(stand_ins) then parents = encode(stood_in(parents)) end
    local awaited = parents and cjson.decode(parents) or {}
    if parents then
        call('HSET', job.key, 'parents', parents)
        enter_families(job, awaited)
    end
    await_parents(job, awaited)
    if job.is_new then enter_index(job) end
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
        local holder = call('ZADD', p .. 'all', 'NX', string.format('%d', seq), id) == 0 and id
        if unique and not holder and call('HSETNX', p .. 'unique', unique, id) == 0 then
            call('ZREM', p .. 'all', id)
            holder = call('HGET', p .. 'unique', unique)
            differ = true
        end
        if unique or next(stand_ins) then stand_ins[id] = holder or nil end
        if not holder then
            local key, place = p .. 'job:' .. id, priority .. string.format('%013x', seq)
            call('HSET', key, 'place', place, 'queue', queue, 'head', head, 'payload', ARGV[i + 1], 'submitted', now,
                'status', status)
            if careful then
                local job = {id = id, key = key, place = place, queue = queue, status = status, expires = expires,
                    unique = unique, is_new = true}
                take_care(job, due, expires, unique, parents)
            else
                entries[#entries + 1] = '0'
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
    stand_ins = {}
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
# ARGV: queue, limit, worker, now, bury_at, the most crashes of a suspect, number of the claim, then the numbers of
#   earlier ones whose answers were lost: what those took is handed out again. One that is carried out late, after a
#   later one, takes nothing.
# Answer: when the next waiting job is due ('' if none), then of each job PLACE ID and its CLAIMED_FIELDS.
_CLAIM = """
local queue, limit, worker, number = ARGV[2], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[8])
now, bury_at = ARGV[5], ARGV[6]
local answer, taken, running = {''}, {}, p .. 'running:' .. worker
local may_be_repeated = again or ARGV[9]

local function first(key)
    return call('ZRANGE', p .. key, 0, 0, 'WITHSCORES')[2]
end

local function has_come(moment)
    return moment and tonumber(moment) <= tonumber(now)
end

local function promote()
    for _, id in ipairs(call('ZRANGEBYSCORE', p .. 'due', '-inf', now, 'LIMIT', 0, UPKEEP)) do
        call('ZREM', p .. 'due', id)
        local job = load(id)
        if job then make_ready(job) end
    end
end

local function expire()
    local expired = {}
    for _, id in ipairs(call('ZRANGEBYSCORE', p .. 'expiring', '-inf', now, 'LIMIT', 0, UPKEEP)) do
        call('ZREM', p .. 'expiring', id)
        expired[#expired + 1] = load(id) or nil
    end
    for _, job in ipairs(expired) do leave(job) end  -- or it would end with a parent that has expired too
    for _, job in ipairs(expired) do bury(job, 'cancelled', EXPIRED) end
    if has_come(first('expiring')) then woken[queue] = true end  -- there is more than a step of it
end

local function holds_lease()
    local time = clock()
    if tonumber(first('leases')) > time then return true end
    local ends = tonumber(call('ZSCORE', p .. 'leases', worker))
    if ends <= time then return false end
    rescue_lapsed(worker, ends - (call('HGET', state, 'length ' .. worker) or 0))
    return true
end

local function hand_out(member, fields)
    local n = #answer
    answer[n + 1] = member
    for i = 1, CLAIMED_NUMBER do answer[n + 1 + i] = fields[i] end
end

local function hand_out_again()
    local lost, members = {}, {}
    for i = 8, #ARGV do lost[ARGV[i]] = true end
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
    fields[1] = fields[1] and string.format('%d', fields[1] + 1) or '1'
    if expires and not fields[6] and not fields[7] then  -- no failures, no crashes
        if has_come(expires) then return bury(load(id), 'cancelled', EXPIRED) end
        call('ZREM', p .. 'expiring', id)
    end
    call('HSET', key, 'status', 'running', 'attempt', fields[1], 'worker', worker, 'started', now,
        'claim', ARGV[8])
    taken[#taken + 1] = id
    hand_out(member, fields)
end

-- The kind of jobs that were taken: a suspect for a worker that runs nothing, and while it runs one, nothing.
local function choose(suspects, alone)
    if alone then return end
    if (suspects or 0) + (counts['suspect ' .. queue] or 0) > 0 and call('SCARD', running) == 0 then
        local line = p .. 'suspects:' .. queue
        for crashes = tonumber(ARGV[7]), 1, -1 do
            local suspect = call('ZRANGEBYSCORE', line, crashes, crashes, 'LIMIT', 0, 1)[1]
            if suspect then
                call('ZREM', line, suspect)
                take(suspect, 'suspect ')
                if taken[1] then call('HSET', state, 'alone ' .. worker, taken[1]) end
                return 'suspect '
            end
        end
    end
    local wanted, members
    local expired = -limit
    repeat
        wanted = limit - #taken
        members = call('ZPOPMIN', p .. 'ready:' .. queue, wanted)
        for i = 1, #members, 2 do take(members[i], 'pending ') end
        expired = expired + #members / 2
    until #taken >= limit or #members < 2 * wanted or expired >= UPKEEP
    if expired >= UPKEEP then answer[1] = now end  -- the next claim goes on
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
if answer[1] == '' then answer[1] = due or '' end
return answer
"""

# Write down what attempts came to.
# ARGV: of each call: now, bury_at, how many runs of outcomes that are alike, then of each run: worker, status,
#   purge_at, whether they may be written already, how many, then of each outcome its id, seq (13 digits), attempt,
#   result; or, where that is no success, id, seq, attempt, error, traceback, due, ending, 1 if the task had begun to
#   run. The id may belong to another job by now, submitted when the first one was deleted: seq tells.
# Answer: of each call a text with a 1 for each outcome that was written, a 0 for each that was not.
_SETTLE = """
local flags

local function check(worker, id, seq, attempt, status, doubtful)
    local job = load(id)
    local same = job and job.attempt == attempt and string.sub(job.place, 17) == seq
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
        if job.crashes and ending == 'failure' then  -- it has survived a run beside nobody
            job.crashes = call('HINCRBY', job.key, 'crashes', -1)
            if job.crashes < 1 then
                call('HDEL', job.key, 'crashes')
                job.crashes = false
            end
        end
        put_back(job, status, due, ending, error, traceback, begun == '0')
    end
end

local function settle(worker, status, purge_at, doubtful, number)
    local settled, is_success = {}, status == 'success'
    local size = is_success and 4 or 8
    for i = at + 1, at + size * number, size do
        local id = ARGV[i]
        local job = check(worker, id, ARGV[i + 1], ARGV[i + 2], status, again or doubtful == '1')
        if job then
            settled[#settled + 1] = id
            if job.crashes then call('HDEL', state, 'alone ' .. worker) end
            if is_success then
                finish(job, status, purge_at, 'result', ARGV[i + 3])
                if job.children then tell(job) end
            else
                write_other(job, status, purge_at, unpack(ARGV, i + 3, i + 7))
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
# ARGV: worker, lease, now, bury_at, info (JSON), queues (JSON), 1 if it is a new worker that found the server as it
#   should be, the oldest minute to keep, then of each minute of activity that has changed: its beginning, what was
#   done (JSON).
# Answer: the term of the lease, its jobs that are to end, paused queues, the fewest crashes of a suspect that waits
#   (0: none does), lost workers, ended jobs that no attempt tells of.
_HEARTBEAT = """
local worker, lease, info, queues = ARGV[2], tonumber(ARGV[3]), ARGV[6], cjson.decode(ARGV[7])
now, bury_at = ARGV[4], ARGV[5]

-- Add what the rows say to the changes, or take it off: texts of `activity_texts`, WHAT being `number.bucket`.
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

-- The totals grow by what a row says more than the one that it replaces: told twice, it counts once.
local function keep_activity()
    local changes = {}
    for i = 10, #ARGV, 2 do
        local minute = p .. 'minute:' .. ARGV[i]
        if tonumber(ARGV[i]) >= tonumber(ARGV[9]) then  -- what was forgotten is not known to be counted
            add_rows(changes, call('HGET', minute, worker), -1)
            add_rows(changes, ARGV[i + 1], 1)
            call('ZADD', p .. 'minutes', ARGV[i], ARGV[i])
            call('HSET', minute, worker, ARGV[i + 1])
        end
    end
    for name, number in pairs(changes) do
        if number ~= 0 then call('HINCRBYFLOAT', p .. 'totals', name, string.format('%.17g', number)) end
    end
    for _, minute in ipairs(call('ZRANGEBYSCORE', p .. 'minutes', '-inf', '(' .. ARGV[9])) do
        call('UNLINK', p .. 'minute:' .. minute)
        call('ZREM', p .. 'minutes', minute)
    end
end

keep_activity()
if lease <= 0 then
    dissolve(worker, 'release', LEFT)
    publish()
    return {'', {}, {}, 0, {}, {}}
end
local time, known = clock(), tonumber(call('ZSCORE', p .. 'leases', worker))
local length, term = unpack(call('HMGET', state, 'length ' .. worker, 'term ' .. worker), 1, 2)
local heard = -math.huge  -- also of a repetition: the server has kept silent, or its answer was lost
if not again and known and known > time then heard = known - (length or lease) end
if not again and not known and ARGV[8] == '1' then heard = math.huge end
local lost = rescue_lapsed(worker, heard, lease)
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
    if not known or known <= time then woken[queue] = true end  -- it may claim again
    if call('HEXISTS', state, 'paused ' .. queue) == 1 then paused[#paused + 1] = queue
    else
        local fewest = tonumber(call('ZRANGE', p .. 'suspects:' .. queue, 0, 0, 'WITHSCORES')[2] or 0)
        if fewest > 0 and (suspects == 0 or fewest < suspects) then suspects = fewest end
    end
end
publish()
return {term, to_end, paused, suspects, lost, call('LPOP', p .. 'endings', ENDINGS_TOLD) or {}}
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

# Delete finished jobs past their retention.  ARGV: before, limit.  Answer: their ids.
_PURGE = """
local ids = call('ZRANGEBYSCORE', p .. 'purge', '-inf', '(' .. ARGV[2], 'LIMIT', 0, ARGV[3])
for _, id in ipairs(ids) do erase(id) end
publish()
return ids
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

# Keep how far running jobs are.  ARGV: id, attempt, progress (JSON) ..  Answer: 0.
_REPORT = """
for i = 2, #ARGV, 3 do
    local key = p .. 'job:' .. ARGV[i]
    local status, attempt = unpack(call('HMGET', key, 'status', 'attempt'), 1, 2)
    if status == 'running' and attempt == ARGV[i + 1] then call('HSET', key, 'progress', ARGV[i + 2]) end
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
_ADOPT = (
    _INDEX
    + """
local answer = {}
local function adopt(id, priority, queue, unique, expires, fields, history)
    local key = p .. 'job:' .. id
    if call('EXISTS', key) == 1 then return 1 end
    if unique ~= '' and call('HSETNX', p .. 'unique', unique, id) == 0 then return 0 end
    local seq = call('HINCRBY', state, 'seq', 1)
    local job = {id = id, status = 'blocked', place = priority .. string.format('%013x', seq)}
    call('HSET', key, 'place', job.place, 'queue', queue, 'status', 'blocked', 'worker', ARGV[2],
        unpack(cjson.decode(fields)))
    index(job)
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
)

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
_RECORD = (
    _INDEX
    + """
for i = 2, #ARGV, 3 do
    local id, fields = ARGV[i], cjson.decode(ARGV[i + 2])
    local key = p .. 'job:' .. id
    local status, queue = unpack(call('HMGET', key, 'status', 'queue'), 1, 2)
    if not status or queue == '' then  -- a job of this store, which is in a queue, is not written over
        if status then erase(id) end
        local seq = call('HINCRBY', state, 'seq', 1)
        local place = '8000000000000000' .. string.format('%013x', seq)
        call('HSET', key, 'place', place, 'queue', '', unpack(fields))
        index({id = id, status = call('HGET', key, 'status'), place = place})
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
)

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

# Look for jobs in steps. The jobs looked at come from the smallest index that has all that are wanted.
# ARGV: filter (JSON: what does not matter is not there), how many to find (0: count them), how many to look at, 1 for
#   the oldest first, the lowest seq and the highest.
# Answer: the seq of the last one looked at ('' at the end), then of each job its id, its hash and its history; of a
#   count, of each STATUS QUEUE how many.
_FIND = """
local which, limit, page, oldest = cjson.decode(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5] == '1'
local low, high = ARGV[6], ARGV[7]
local answer, wanted, fields, tests = {''}, {}, {'status', 'queue'}, {}
for _, status in ipairs(which.status or {}) do wanted[status] = true end
local only = #(which.status or {}) == 1 and which.status[1]

local function test(asked, field, passes)
    if asked then
        fields[#fields + 1] = field
        tests[#tests + 1] = passes
    end
end

local function is_in(item, list)
    for _, one in ipairs(list and cjson.decode(list) or {}) do
        if one == item then return true end
    end
end

test(which.worker, 'worker', function(worker) return worker == which.worker end)
test(which.head, 'head', function(head) return string.sub(head or '', 1, #which.head) == which.head end)
test(which.ahead, 'place', function(place) return place < which.ahead end)
test(which.error, 'error', function(error) return string.find(string.lower(error or ''), which.error, 1, true) end)
test(which.parent, 'parents', function(parents) return is_in(which.parent, parents) end)

-- STATUS QUEUE of a job that is wanted.
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
end

-- A page of an index: ids and seqs in turn.
local function indexed(name)
    if oldest then return call('ZRANGEBYSCORE', p .. name, low, high, 'WITHSCORES', 'LIMIT', 0, page) end
    return call('ZREVRANGEBYSCORE', p .. name, high, low, 'WITHSCORES', 'LIMIT', 0, page)
end

-- The same of jobs that were found as PLACE ID in any order.
local function in_order(members)
    local seqs, ids, flat = {}, {}, {}
    for _, member in ipairs(members) do
        local seq = tonumber(string.sub(member, 17, 29), 16)
        if seq >= tonumber(low) and seq <= tonumber(high) then
            seqs[#seqs + 1] = seq
            ids[seq] = string.sub(member, 30)
        end
    end
    table.sort(seqs, function(a, b) if oldest then return a < b else return a > b end end)
    for i = 1, math.min(#seqs, page) do
        flat[2 * i - 1], flat[2 * i] = ids[seqs[i]], string.format('%.0f', seqs[i])
    end
    return flat
end

local function running()
    local found = {}
    for _, worker in ipairs(which.worker and {which.worker} or call('HKEYS', p .. 'workers')) do
        for _, id in ipairs(call('SMEMBERS', p .. 'running:' .. worker)) do
            local place = call('HGET', p .. 'job:' .. id, 'place')
            if place then found[#found + 1] = place .. id end
        end
    end
    return in_order(found)
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

-- A queue has its jobs by priority first: a page of each. Nothing if they have too many priorities.
local function ready()
    local found, looks = {}, 0
    local from, to = string.format('%013x', low), string.format('%013x', high) .. '\255'
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
            first = call('ZRANGEBYLEX', key, '(' .. priority .. 'g', '+', 'LIMIT', 0, 1)[1]
        end
        for _, member in ipairs(call('ZRANGE', p .. 'suspects:' .. queue, 0, -1)) do found[#found + 1] = member end
    end
    return in_order(found)
end

local function candidates()
    if which.parent then return indexed('family:' .. which.parent) end
    if only == 'running' then return running() end
    if which.error and (not only or not has_index(only)) then return indexed('by:error') end
    if only == 'pending' then return ready() or indexed('all') end
    return indexed(only and 'by:' .. only or 'all')
end

if which.ids then
    for _, id in ipairs(which.ids) do
        local kind = matched(id)
        if kind then add(id, kind) end
    end
else
    local found, left = candidates(), limit > 0 and limit or math.huge
    if #found == 2 * page then answer[1] = found[#found] end
    for i = 1, #found, 2 do
        local kind = matched(found[i])
        if kind then
            add(found[i], kind)
            left = left - 1
        end
        if left == 0 then
            answer[1] = found[i + 1]
            break
        end
    end
end
for kind, number in pairs(counts) do
    answer[#answer + 1] = kind
    answer[#answer + 1] = number
end
return answer
"""

# Enter the jobs of a store of version 1 in the indexes, in steps.  ARGV: the lowest seq, how many to look at.
# Answer: the seq of the last one ('' at the end, when the store has its version).
_INDEX_ALL = (
    _INDEX
    + """
local page = call('ZRANGEBYSCORE', p .. 'all', ARGV[2], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[3])
for i = 1, #page, 2 do
    local job = load(page[i])
    if job then index(job) end
end
each('ZADD', p .. 'by:success', successes)
if #page > 0 then return page[#page] end
call('HSET', state, 'version', VERSION)
return ''
"""
)

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

# What workers did since the store was made.  Answer: WHAT TASK, a number ..
_TOTALS = "return call('HGETALL', p .. 'totals')"

RESULT_FIELDS = (
    "head", "status", "result", "error", "traceback", "attempt", "submitted", "started", "finished", "progress",
)  # fmt: skip
CLAIMED_FIELDS = ("attempt", "head", "payload", "submitted", "due", "failures", "crashes", "parents")
_CONSTANTS = {"BY_HAND": BY_HAND, "EXPIRED": EXPIRED, "KILLED": KILLED, "WORKER_LOST": WORKER_LOST, "LEFT": LEFT}
_PREAMBLE = "".join(f"local {name} = {json.dumps(text)}\n" for name, text in _CONSTANTS.items())
_UPKEEP = 1_000  # jobs that one claim makes ready, and about as many that it cancels as expired
_PREAMBLE += f"local MAX_CRASHES, HISTORY_LIMIT, UPKEEP = {MAX_CRASHES}, {HISTORY_LIMIT}, {_UPKEEP}\n"
_PREAMBLE += f"local VERSION, MOST_LOOKS = {VERSION}, {MOST_LOOKS}\n"
_PREAMBLE += f"local ENDINGS_KEPT, ENDINGS_TOLD = {ENDINGS_KEPT}, {ENDINGS_TOLD}\n"
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
    "index_all": Script(_INDEX_ALL),
    "ahead": Script(_AHEAD),
    "look": Script(_LOOK),
    "activity": Script(_ACTIVITY),
    "totals": Script(_TOTALS),
}
