-- Claim ready jobs.
--
-- KEYS: P:
-- ARGV: again, queue, limit, worker, now, the maximum of crashes of a suspect, 1 if upkeep was done, the number of the
--   claim, then those of claims whose answers were lost, to get their jobs. A claim after a later one takes nothing.
-- Returns: when the next waiting job is due ('' if none), then for each job PLACE ID, its CLAIMED_FIELDS, and its
--   steps; or `upkeep`, 1 if jobs have expired, and the answer of `lapsed_leases`; or `lapsed`: it has no lease now.
--
-- include admit.lua

local queue, limit, worker, now, number = ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5], tonumber(ARGV[8])
local answer, taken, running = {''}, {}, p .. 'running:' .. worker
local aside, charged = {}, {}  -- expired jobs, which are left to the rules; limit keys > the ids of jobs taken

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
    if #found == room then call('ZADD', p .. 'due', now, '\0:' .. found[room]) end
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
        elseif string.sub(id, 1, 2) == '\0:' then
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
    limit = limit - #members
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
    local limit, expires = fields[CLAIMED_NUMBER], fields[CLAIMED_NUMBER + 1]
    if has_come(expires) then
        aside[#aside + 1] = score
        aside[#aside + 1] = entry
        return
    end
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
    if alone or limit < 1 then return end
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
end

if has_come(due) then  -- always: workers wait for the first of the remaining jobs
    promote()
    due = first('due')
end
local asked = {'claims ' .. worker, 'paused ' .. queue, 'alone ' .. worker, 'suspect ' .. queue}
local latest, paused, alone, suspects = unpack(call('HMGET', state, unpack(asked)), 1, 4)
local leases_hold = tonumber(first('leases') or 0) > clock()
if not latest or not leases_hold and tonumber(call('ZSCORE', p .. 'leases', worker)) <= clock() then
    publish()
    return {'lapsed'}
end
local expired = has_come(first('expiring'))
if ARGV[7] == '0' and not paused and (expired or not leases_hold) then
    local lapsed, leases = lapsed_leases(worker, false)
    if expired or #lapsed > 0 then
        publish()
        return {'upkeep', expired and 1 or 0, leases}
    end
end
if again or ARGV[9] then hand_out_again() end
if number <= tonumber(latest) then
    answer[1] = now  -- the worker claims again
else
    if not paused then claim(suspects, alone) end
    if #taken > 0 or again or ARGV[9] then call('HSET', state, 'claims ' .. worker, number) end
end
publish()
if answer[1] == '' then answer[1] = due or '' end
return answer
