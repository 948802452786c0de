-- Register a worker or extend its lease. With a lease of 0, only its activity is stored.
--
-- KEYS: P:
-- ARGV: again, worker, lease, 1 if lapsed leases have been judged, info (JSON), queues (JSON), a number above those of
--   its claims, the oldest minute to keep, then for each with new activity: its start, and the activity (JSON).
-- Returns: the term of the lease, its jobs that are to be cancelled, paused queues, the fewest crashes of a waiting
--   suspect (0: none waits), jobs that ended without an attempt; or the answer of `lapsed_leases`, and nothing was
--   done.
--
-- include common.lua

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
    for i = 9, #ARGV, 2 do
        local minute = p .. 'minute:' .. ARGV[i]
        if tonumber(ARGV[i]) >= tonumber(ARGV[8]) then  -- purged minutes cannot be compared
            add_rows(changes, call('HGET', minute, worker), -1)
            add_rows(changes, ARGV[i + 1], 1)
            call('ZADD', p .. 'minutes', ARGV[i], ARGV[i])
            call('HSET', minute, worker, ARGV[i + 1])
        end
    end
    for name, number in pairs(changes) do
        if number ~= 0 then call('HINCRBYFLOAT', p .. 'totals', name, string.format('%.17g', number)) end
    end
    for _, minute in ipairs(call('ZRANGEBYSCORE', p .. 'minutes', '-inf', '(' .. ARGV[8])) do
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
call('HSETNX', state, 'claims ' .. worker, ARGV[7])  -- those from before the lease take nothing
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
