-- Do all that a store of schedules does.
--
-- What it keeps:
--
--     P:schedules         zset seq > id: every schedule    P:schedule:ID       hash: its fields, each as JSON; `mark` is
--     P:schedules:keys    hash key > id                                        the key as it is, `held` is there while
--     P:schedules:due     zset next_fire > id: what can                        it is taken and not advanced
--                         be taken                         P:schedules:leases  zset end > id, by Redis's TIME
--     P:schedules:done    zset last_fire > id: nothing left to fire
--
-- KEYS: P:
-- ARGV: again, the name of one of `acts`, then its arguments.
-- Returns: what the act returns.
--
-- include common.lua

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

function acts.remove(id) return math.max(remove(id), again and 1 or 0) end

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
