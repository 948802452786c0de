-- What all scripts use: the words below. A line `-- include NAME.lua` stands for the text of that file.
--
-- Each script has a header with its KEYS, its ARGV and what it returns. KEYS[1] is always P: below, the prefix with its
-- colon. ARGV[1] is always `again`: 1 if this may be a repetition of a call whose answer was lost, otherwise 0. ''
-- means "none". In the text of a script, F.NAME stands for the short name of a field of a job, and words in capitals
-- for numbers and lists of fields: see `scripts.py`.
--
-- All keys begin with the prefix in braces, so that a cluster keeps them in one slot. Below, P is `{flowrra}`:
--
--     P:state           hash: what scripts read first      P:job:ID        hash: the job, see FIELDS and `job_of`
--     P:buckets         zset B > B: buckets with jobs      P:ids:B         hash byte > id: the jobs of a bucket
--     P:seqs:INDEX      zset B > the bucket's jobs in it   P:history:ID    list: its earlier attempts, as JSON
--     P:steps:ID        hash name > place and step, JSON   P:family:ID     zset seq > id: the jobs of which ID is a
--                                                                          parent, finished ones too
--     P:ready:QUEUE     zset: PLACE ID, in lexical order   P:suspects:QUEUE  zset crashes > PLACE ID
--     P:due             zset due > id: waiting jobs; and   P:unique        hash key > id, of unfinished jobs
--                       NUL K: limit keys; NUL : K: all limit keys of a changed limit, from K on
--     P:expiring        zset expires > id: not started     P:running:W     set: the running jobs of worker W
--     P:purges          zset the first purge_at > seqs     P:cancelling    set: running jobs to be cancelled
--     P:leases          zset end > worker, by Redis's TIME P:workers       hash worker > JSON
--     P:minutes         zset: minutes with activity        P:minute:M      hash worker > its activity in it, JSON
--     P:limits          hash name > text of a Limit        P:limit-numbers hash name > its numbers, see `limit_words`
--     P:limit-keys      zset in lexical order: each limit key K that has running, ready or waiting jobs
--     P:key-pending:K   set: its ready jobs                P:key-waiting:K zset: PLACE ID, jobs that wait for the limit
--     P:key-running:K   set: its running jobs              P:key-paused    set of K
--     P:key-tat         zset tat > K, see LimitKey
--     P:totals          hash WHAT TASK > total number; WHAT is a place in the rows of that JSON
--     P:endings         list of jobs for heartbeats, JSON  channels P:jobs, P:results, P:notices
--
-- A bucket is the jobs whose seqs, divided by 256, give B; a byte names one of them. So a job takes 40 bytes in P:ids
-- and one byte or two in each INDEX (an entry of a sorted set of jobs took 145), which is one of
--     by:STATUS         except ready and running jobs      by:error        a superset of those with an error
--     task:NAME         NAME as JSON without its quotes    tag:TAG         jobs with a tag
--     placed            ready jobs with a `turn`
-- An entry of an index is B, a colon and the bytes, in any order. An entry of P:purges is seqs of jobs that finished
-- within a minute; some of them may have been deleted or requeued since.
--
-- The fields of P:state:
--     seq               the order of submission            STATUS QUEUE    number of jobs; suspects count apart
--     paused QUEUE      the queue is paused                alone W         worker W runs a suspect
--     claims W          the latest claim of W; exists while W has a lease
--     length W          of W's lease, in seconds           term W          when W got its lease for the first time
--     graced W          W's lease is a fresh one that another worker gave it
--     version           the version of these keys: VERSION, if absent 1, which had fields with long names, P:all and
--                       P:purge with an entry for each job, and sets of parents and children instead of `waits`
--     place             the last `turn`
--
-- PLACE is the priority (16 hex digits, with a bias that makes the lowest 0) and the seq (13 digits). A score, which is
-- a double, could not contain both. A ready job of a fair queue has a field `turn`, its `place`. In P:ready it is
-- behind the jobs without one: priority, `g`, turn (13 digits), seq, ID. Times are stored as the caller's text, because
-- Lua prints 14 digits.
--
-- The revision of a job is its PLACE, `status`, `attempt` and `rev`, the token of the latest `apply` or pause that
-- wrote it. Each script changes one of these, and no combination occurs twice.
--
-- An idle server is slow, because its caches are cold: the first use of a command took 10 to 28 us, each further use 1
-- us. So push and claim use few different commands.

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

-- Append STATUS QUEUE and the number of each count to an answer.
local function append_counts(answer)
    for kind, number in pairs(counts) do
        answer[#answer + 1] = kind
        answer[#answer + 1] = number
    end
    return answer
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

-- The place in P:ready of a job with a turn. `place`: its PLACE, with or without its id.
local function with_turn(place, turn)
    return string.sub(place, 1, 16) .. 'g' .. string.format('%013x', turn) .. string.sub(place, 17)
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

-- The input for `judge_leases`: the clock, the own lease, those that have ended, and if it is late, all that may be.
local function lapsed_leases(by, graced_too)
    local time, found = clock(), {}
    local mine, length = call('ZSCORE', p .. 'leases', by), call('HGET', state, 'length ' .. by)
    local is_late = graced_too and mine and length and mine - length / 4 <= time
    local lapsed = call('ZRANGEBYSCORE', p .. 'leases', '-inf', is_late and time + length / 2 or time, 'WITHSCORES')
    for i = 1, #lapsed, 2 do
        local length, graced = unpack(call('HMGET', state, 'length ' .. lapsed[i], 'graced ' .. lapsed[i]), 1, 2)
        if lapsed[i] ~= by and (graced_too or not graced) then
            found[#found + 1] = {lapsed[i], lapsed[i + 1], length or '', graced or ''}
        end
    end
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
