-- Store limits, or pause or resume limit keys.
--
-- KEYS: P:
-- ARGV: again; limit, pause or resume; now; a token; then for each limit its name, text and numbers, or the limit keys.
-- Returns: for each limit key 1, or 0 if nothing has changed.
--
-- include admit.lua

local action, now, token = ARGV[2], ARGV[3], ARGV[4]
local changed = {}

-- The upkeep goes through the limit keys, in steps.
local function declare(name, text, numbers)
    call('HSET', p .. 'limits', name, text)
    call('HSET', p .. 'limit-numbers', name, numbers)
    local first = '[' .. name .. ':'
    if #call('ZRANGEBYLEX', p .. 'limit-keys', first, '(' .. name .. ';', 'LIMIT', 0, 1) > 0 then
        call('ZADD', p .. 'due', now, '\0:' .. name .. ':')
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
                entry = with_turn(entry, turn)
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
