"""What runs in the server.

Each script is atomic. What many jobs do all day is a script of its own: push, claim, settle. All else is decided
by the rules in `flowrra`, from jobs that `read` gives, and written by `apply` if what was read still holds: see
`changes`. All keys begin with the prefix in braces, so that a cluster keeps them in one slot. Below, P is `{flowrra}`:

    P:state           hash: what scripts ask first       P:job:ID        hash: the job, see `job_of`
    P:all             zset seq > id: every job           P:history:ID    list: its earlier attempts, as JSON
    P:by:STATUS       zset seq > id: for `find`, those   P:family:ID     zset seq > id: the jobs of which ID is a
                      neither ready nor running                          parent, finished ones too
    P:by:error        zset seq > id: a superset of those with an error
    P:ready:QUEUE     zset: PLACE ID, in lexical order   P:suspects:QUEUE  zset crashes > PLACE ID
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
    version           which of these keys there are: VERSION, if absent 1, which had no P:by and P:family; 2 had sets
                      of parents and children in place of the field `waits`

PLACE is the priority (16 hex digits, so biased that the lowest is 0) and the seq (13 digits): a score,
being a double, could not hold both. Moments are text as the caller wrote it: Lua prints 14 digits.

The revision of a job is its PLACE, `status`, `attempt` and `rev`, the token of the latest `apply` that wrote it: each
script changes one of these, and none comes back.

An idle server is slow, its caches being cold: the first use of a command took 10 to 28 us there, each further
one 1 us. So push and claim keep to a handful of commands.

Each script has a header: ARGV, the answer. KEYS[1] is always the prefix with its colon, ARGV[1] always 1 if
this may be a repetition of a call whose answer was lost, else 0: it is left out below. '' stands for "none".
"""

import hashlib

from flowrra import ENDINGS_KEPT, ENDINGS_TAKEN, UPKEEP_STEP

__all__ = ["CLAIMED_FIELDS", "READ_FIELDS", "RESULT_FIELDS", "SCRIPTS", "VERSION", "Script"]

VERSION = 3  # of the keys
MOST_LOOKS = 500  # that a step takes at queues and their priorities

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

-- A command over many items in large pieces, since what unpack() can hold is limited.
local function each(command, key, items)
    for i = 1, #items, 4000 do call(command, key, unpack(items, i, math.min(i + 3999, #items))) end
end

-- As text: a number goes to Redis by way of its 17 digits, which costs as much as some commands.
local function seq_of(place)
    return string.format('%d', tonumber(string.sub(place, 17, 29), 16))
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

-- What `judge_leases` is to decide on: the clock, the lease of the worker that asks, and those that have run out.
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

-- Delete a job that waits nowhere but to be purged, or to be released.
local function erase(id)
    local key = p .. 'job:' .. id
    local status, queue, parents, unique = unpack(call('HMGET', key, 'status', 'queue', 'parents', 'unique'), 1, 4)
    if status then
        count(status .. ' ' .. queue, -1)
        call('ZREM', p .. 'by:' .. status, id)
        if status ~= 'success' then call('ZREM', p .. 'by:error', id) end
    end
    for _, parent in ipairs(parents and cjson.decode(parents) or {}) do call('ZREM', p .. 'family:' .. parent, id) end
    if unique and not is_finished(status) then call('HDEL', p .. 'unique', unique) end
    call('UNLINK', key, p .. 'history:' .. id)
    for _, index in ipairs({'purge', 'expiring', 'all'}) do call('ZREM', p .. index, id) end
end

-- What comes last in every script that writes. Who waits for jobs found the queue empty: only the first to
-- enter an empty one is published.
local function publish()
    for name, step in pairs(counts) do
        local number = step ~= 0 and call('HINCRBY', state, name, step)
        if number == 0 then call('HDEL', state, name) end
        if number == step and string.sub(name, 1, 8) == 'pending ' then woken[string.sub(name, 9)] = true end
    end
    for queue in pairs(woken) do call('PUBLISH', p .. 'jobs', queue) end
    if #ended > 0 then call('PUBLISH', p .. 'results', encode(ended)) end
end
"""

# Read jobs for the rules.
# ARGV: how many seqs to reserve, what to find (the name of a Find), then its words.
# Answer: the last of those seqs, of each word the ids that were found, then of each job its id and its READ_FIELDS.
_READ = """
local kind, found, seen = ARGV[3], {}, {}
local finds = {
    Jobs = function(id) return {id} end,
    Children = function(parent) return call('ZRANGE', p .. 'family:' .. parent, 0, -1) end,
    Holders = function(key) return {call('HGET', p .. 'unique', key) or nil} end,
    Running = function(worker) return call('SMEMBERS', p .. 'running:' .. worker) end,
}
if kind == 'Expired' then
    found[1] = call('ZRANGEBYSCORE', p .. 'expiring', '-inf', ARGV[4], 'LIMIT', 0, ARGV[5])
else
    for i = 4, #ARGV do found[#found + 1] = finds[kind](ARGV[i]) end
end
local answer = {ARGV[2] ~= '0' and call('HINCRBY', state, 'seq', ARGV[2]) or 0, found}
for _, ids in ipairs(found) do
    for _, id in ipairs(ids) do
        local values = not seen[id] and call('HMGET', p .. 'job:' .. id, READ_FIELDS)
        seen[id] = true
        if values then
            answer[#answer + 1] = id
            answer[#answer + 1] = values
            -- It was thrown away (maxmemory-policy), which must hold up no other.
            if kind == 'Expired' and not values[1] then call('ZREM', p .. 'expiring', id) end
        end
    end
end
return answer
"""

# Write what the rules have decided, if what they have read still holds.  ARGV: a plan (JSON, see `Plan`).
# Answer: 1, or 0 if something has changed meanwhile.
_APPLY = """
local plan = cjson.decode(ARGV[2])

-- A job that is only read may be written, as long as it keeps its state: many may get children at once.
local function holds()
    for _, guard in ipairs(plan.jobs) do
        local values = call('HMGET', p .. 'job:' .. guard[1], 'place', 'status', 'attempt', 'rev')
        for i = 2, #guard do
            if (values[i - 1] or '') ~= guard[i] then return false end
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
        if call('HGET', p .. 'job:' .. id, 'rev') == plan.token then return 1 end
    end
    return 0
end

if not holds() then return again and is_done() or 0 end
for _, write in ipairs(plan.writes) do each(write[1], p .. write[2], write[3]) end
if #plan.endings > 0 then
    each('RPUSH', p .. 'endings', plan.endings)
    call('LTRIM', p .. 'endings', -ENDINGS_KEPT, -1)
end
for _, queue in ipairs(plan.woken) do woken[queue] = true end
for _, worker in ipairs(plan.notices) do call('PUBLISH', p .. 'notices', worker) end
counts, ended = plan.counts, plan.ended
publish()
return 1
"""

# Take in new jobs without parents and unique keys; one whose id is there changes nothing.
# ARGV: of each call: now, how many runs, then so many runs of jobs that are alike: queue, priority, head, status, due,
#   expires, how many jobs, then of each its id and payload.
# Answer: 0 for each call.
_PUSH = """
local function take_in(now, queue, priority, head, status, due, expires, number)
    local entries, waiting, expiring, indexed, taken = {}, {}, {}, {}, 0
    local seq = call('HINCRBY', state, 'seq', number) - number
    for i = at + 1, at + 2 * number, 2 do
        local id = ARGV[i]
        seq = seq + 1
        local text = string.format('%d', seq)
        if call('ZADD', p .. 'all', 'NX', text, id) == 1 then
            local key, place, n = p .. 'job:' .. id, priority .. string.format('%013x', seq), 2 * taken
            call('HSET', key, 'place', place, 'queue', queue, 'head', head, 'payload', ARGV[i + 1], 'submitted', now,
                'status', status)
            taken = taken + 1
            if due ~= '' then call('HSET', key, 'due', due) end
            if expires ~= '' then
                call('HSET', key, 'expires', expires)
                expiring[n + 1], expiring[n + 2] = expires, id
            end
            if status == 'pending' then
                entries[n + 1], entries[n + 2] = '0', place .. id
            else
                waiting[n + 1], waiting[n + 2] = due, id
                indexed[n + 1], indexed[n + 2] = text, id
            end
        end
    end
    at = at + 2 * number
    count(status .. ' ' .. queue, taken)
    each('ZADD', p .. 'ready:' .. queue, entries)
    each('ZADD', p .. 'due', waiting)
    each('ZADD', p .. 'by:scheduled', indexed)
    each('ZADD', p .. 'expiring', expiring)
    if #waiting > 0 then woken[queue] = true end
end

local answers = {}
while ARGV[at + 1] do
    local now, runs = words(2)
    for _ = 1, runs do take_in(now, words(7)) end
    answers[#answers + 1] = 0
end
publish()
return answers
"""

# Hand out ready jobs.
# ARGV: queue, limit, worker, now, the most crashes of a suspect, 1 if upkeep has been done, number of the claim, then
#   the numbers of earlier ones whose answers were lost: what those took is handed out again. One that is carried out
#   late, after a later one, takes nothing.
# Answer: when the next waiting job is due ('' if none), then of each job PLACE ID and its CLAIMED_FIELDS; or `upkeep`,
#   1 if jobs have expired, and what `lapsed_leases` gives.
_CLAIM = """
local queue, limit, worker, now, number = ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5], tonumber(ARGV[8])
local answer, taken, running = {''}, {}, p .. 'running:' .. worker
local aside = {}  -- what has expired, and is left to the rules
local may_be_repeated = again or ARGV[9]

local function has_come(moment)
    return moment and tonumber(moment) <= tonumber(now)
end

local function promote()
    for _, id in ipairs(call('ZRANGEBYSCORE', p .. 'due', '-inf', now, 'LIMIT', 0, UPKEEP)) do
        local key = p .. 'job:' .. id
        local status, name, place, crashes = unpack(call('HMGET', key, 'status', 'queue', 'place', 'crashes'), 1, 4)
        call('ZREM', p .. 'due', id)
        if status then  -- or it was thrown away (maxmemory-policy), which must hold up no other
            call('ZREM', p .. 'by:' .. status, id)
            count(status .. ' ' .. name, -1)
            count((crashes and 'suspect ' or 'pending ') .. name, 1)
            call('HSET', key, 'status', 'pending')
            call('ZADD', p .. (crashes and 'suspects:' or 'ready:') .. name, crashes or 0, place .. id)
            if crashes then woken[name] = true end
        end
    end
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

local function take(member, kind, score)
    local id = string.sub(member, 30)
    local key = p .. 'job:' .. id
    local fields = call('HMGET', key, CLAIMED_FIELDS, 'expires')
    if not fields[2] then return count(kind .. queue, -1) end  -- it was thrown away
    local expires = fields[CLAIMED_NUMBER + 1]
    if has_come(expires) then
        aside[#aside + 1] = score
        aside[#aside + 1] = member
        return
    end
    fields[1] = fields[1] and string.format('%d', fields[1] + 1) or '1'
    if expires then call('ZREM', p .. 'expiring', id) end
    call('HSET', key, 'status', 'running', 'attempt', fields[1], 'worker', worker, 'started', now,
        'claim', ARGV[8])
    taken[#taken + 1] = id
    hand_out(member, fields)
end

-- The kind of jobs that were taken: a suspect for a worker that runs nothing, and while it runs one, nothing.
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
    if #aside >= 2 * UPKEEP then answer[1] = now end  -- the next claim goes on
    return 'pending '
end

local function claim(suspects, alone)
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

# Write down successes.
# ARGV: of each call: now, how many runs of successes that are alike, then of each run: worker, purge_at, whether they
#   may be written already, how many, then of each its id, seq (13 digits), attempt, result. The id may belong to
#   another job by now, submitted when the first one was deleted: seq tells.
# Answer: of each call a text with a 1 for each that was written, a 0 for each that was not, and a 2 for one that is
#   left to the rules: it has children, has crashed, or is to be cancelled.
_SETTLE = """
local purges, successes, flags = {}, {}, ''

local function settle(now, worker, purge_at, doubtful, number)
    local settled = {}
    for i = at + 1, at + 4 * number, 4 do
        local id, seq, attempt, result = unpack(ARGV, i, i + 3)
        local key, flag = p .. 'job:' .. id, '0'
        local v = call('HMGET', key, 'status', 'queue', 'place', 'attempt', 'worker', 'unique', 'crashes', 'children',
            'cancel')
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
            if attempt ~= '1' then  -- of an earlier attempt
                call('HDEL', key, 'error', 'traceback')
                call('ZREM', p .. 'by:error', id)
            end
            call('HSET', key, 'status', 'success', 'finished', now, 'purge_at', purge_at, 'result', result)
            if v[6] then call('HDEL', p .. 'unique', v[6]) end
            local n = #purges
            purges[n + 1], purges[n + 2] = purge_at, id
            successes[n + 1], successes[n + 2] = seq_of(v[3]), id
            ended[#ended + 1] = id
        end
        flags = flags .. flag
    end
    at = at + 4 * number
    each('SREM', p .. 'running:' .. worker, settled)
end

local answers = {}
while ARGV[at + 1] do
    local now, runs = words(2)
    flags = ''
    for _ = 1, runs do settle(now, words(4)) end
    answers[#answers + 1] = flags
end
each('ZADD', p .. 'purge', purges)
each('ZADD', p .. 'by:success', successes)
publish()
return answers
"""

# Register a worker or extend its lease; with a lease of 0 only its activity is kept.
# ARGV: worker, lease, 1 if lapsed leases have been judged, info (JSON), queues (JSON), the oldest minute to keep, then
#   of each minute of activity that has changed: its beginning, what was done (JSON).
# Answer: the term of the lease, its jobs that are to end, paused queues, the fewest crashes of a suspect that waits
#   (0: none does), ended jobs that no attempt tells of; or what `lapsed_leases` gives, and nothing was done.
_HEARTBEAT = """
local worker, lease, info, queues = ARGV[2], tonumber(ARGV[3]), ARGV[5], cjson.decode(ARGV[6])

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
    for i = 8, #ARGV, 2 do
        local minute = p .. 'minute:' .. ARGV[i]
        if tonumber(ARGV[i]) >= tonumber(ARGV[7]) then  -- what was forgotten is not known to be counted
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
    if not known or known <= time then woken[queue] = true end  -- it may claim again
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
# Answer: the ids of those that went; of a repetition, of those that are not there.
_REMOVE = """
local by, gone = ARGV[2], {}
for i = 3, #ARGV do
    local status, worker = unpack(call('HMGET', p .. 'job:' .. ARGV[i], 'status', 'worker'), 1, 2)
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

# Delete finished jobs past their retention.  ARGV: before, limit.  Answer: their ids.
_PURGE = """
local ids = call('ZRANGEBYSCORE', p .. 'purge', '-inf', '(' .. ARGV[2], 'LIMIT', 0, ARGV[3])
for _, id in ipairs(ids) do erase(id) end
publish()
return ids
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
    if which.error and (not only or only == 'pending') then return indexed('by:error') end
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

# Bring the jobs of an older version up to date, in steps.  ARGV: the lowest seq, how many to look at.
# Answer: the seq of the last one ('' at the end, when the store has its version).
_UPGRADE = """
local page = call('ZRANGEBYSCORE', p .. 'all', ARGV[2], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[3])

local function index(id, seq, status, error, parents)
    if status ~= 'pending' and status ~= 'running' then call('ZADD', p .. 'by:' .. status, seq, id) end
    if error then call('ZADD', p .. 'by:error', seq, id) end
    for _, parent in ipairs(parents and cjson.decode(parents) or {}) do
        call('ZADD', p .. 'family:' .. parent, seq, id)
    end
end

-- A hold is one more thing to wait for. Of several who do this at once the first counts.
local function count_parents(id, key, worker)
    local parents = call('SMEMBERS', p .. 'parents:' .. id)
    call('HSETNX', key, 'waits', #parents + (worker and 1 or 0))
    for _, parent in ipairs(parents) do call('UNLINK', p .. 'children:' .. parent) end
    call('UNLINK', p .. 'parents:' .. id)
end

for i = 1, #page, 2 do
    local id, key = page[i], p .. 'job:' .. page[i]
    local v = call('HMGET', key, 'status', 'error', 'parents', 'worker', 'failures', 'crashes')
    if v[1] then
        index(id, page[i + 1], v[1], v[2], v[3])
        if v[1] == 'blocked' then count_parents(id, key, v[4]) end
        if v[5] or v[6] then call('HDEL', key, 'expires') end  -- it is forgotten once an attempt has begun to run
    end
end
if #page > 0 then return page[#page] end
call('HSET', state, 'version', VERSION)
return ''
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

# What workers did since the store was made.  Answer: WHAT TASK, a number ..
_TOTALS = "return call('HGETALL', p .. 'totals')"

RESULT_FIELDS = (
    "head", "status", "result", "error", "traceback", "attempt", "submitted", "started", "finished", "progress",
)  # fmt: skip
CLAIMED_FIELDS = ("attempt", "head", "payload", "submitted", "due", "failures", "crashes", "parents")
READ_FIELDS = (
    "place", "status", "attempt", "rev", "queue", "head", "submitted", "due", "expires", "unique", "parents",
    "failures", "crashes", "worker", "started", "finished", "purge_at", "error", "traceback", "cancel", "waits",
    "children",
)  # fmt: skip
_PREAMBLE = f"local VERSION, MOST_LOOKS, UPKEEP = {VERSION}, {MOST_LOOKS}, {UPKEEP_STEP}\n"
_PREAMBLE += f"local ENDINGS_KEPT, ENDINGS_TAKEN = {ENDINGS_KEPT}, {ENDINGS_TAKEN}\n"
_FIELDS = {"CLAIMED": CLAIMED_FIELDS, "READ": READ_FIELDS, "RESULT": RESULT_FIELDS}
_LISTS = {name: str(fields)[1:-1] for name, fields in _FIELDS.items()}


class Script:
    """The text of a script, and the hash by which the server knows it."""

    def __init__(self, text: str) -> None:
        for name, fields in _LISTS.items():
            text = text.replace(f"{name}_FIELDS", fields)
        text = text.replace("CLAIMED_NUMBER", str(len(CLAIMED_FIELDS)))
        self.text = (_PREAMBLE + _COMMON + text).encode()
        self.sha = hashlib.sha1(self.text).hexdigest().encode()  # noqa: S324 (Redis's name for it, no secret)


SCRIPTS = {
    "read": Script(_READ),
    "apply": Script(_APPLY),
    "push": Script(_PUSH),
    "claim": Script(_CLAIM),
    "settle": Script(_SETTLE),
    "heartbeat": Script(_HEARTBEAT),
    "remove": Script(_REMOVE),
    "purge": Script(_PURGE),
    "report": Script(_REPORT),
    "set_queue": Script(_SET_QUEUE),
    "get": Script(_GET),
    "find": Script(_FIND),
    "upgrade": Script(_UPGRADE),
    "ahead": Script(_AHEAD),
    "look": Script(_LOOK),
    "activity": Script(_ACTIVITY),
    "totals": Script(_TOTALS),
}
