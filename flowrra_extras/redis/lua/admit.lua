-- Part of each script that moves jobs of limits. The script notes in `asking` the limit keys of these jobs, then calls
-- `admit`.
--
-- include common.lua

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
            member = with_turn(member, place)
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
        local member = '\0' .. name
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
            is_left = free > number and number >= room and call('EXISTS', p .. 'key-waiting:' .. name) == 1
            if is_left then
                if allowed > number then
                    due = time
                elseif pending < math.min(limit.burst, UPKEEP) then  -- else only a claim makes room
                    due = tat - (limit.burst - 1 - pending) * limit.interval
                end
            end
        end
        if due then set_due(name, due, number > 0 or not taken) else undue[#undue + 1] = '\0' .. name end
        if running + pending == 0 and not is_left then forget_unused(name) end
    end

    read_limits()
    for _, name in ipairs(names) do
        local limit = limits[string.match(name, '^[^:]*')]
        -- A claim leaves the concurrency as it is: the job was counted before. An end leaves the rest as it is.
        local concerns = limit.turn or limit.interval > 0
        if ended then concerns = limit.concurrency < math.huge and call('EXISTS', p .. 'key-waiting:' .. name) == 1 end
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
