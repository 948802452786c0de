-- Count the jobs ahead of one that waits for its limit, in steps.
--
-- KEYS: P:
-- ARGV: again, limit key, PLACE ID of that job, the last PLACE ID of the step before ('' at first), the maximum number.
-- Returns: the last PLACE ID of this step ('' at the end), then STATUS QUEUE, a number ..
--
-- include common.lua

local name, answer = ARGV[2], {''}

local function add(status, ids)
    for _, id in ipairs(ids) do
        local queue = call('HGET', p .. 'job:' .. id, F.queue)
        if queue then count(status .. ' ' .. queue, 1) end
    end
end

local waiting, after, ids = p .. 'key-waiting:' .. name, ARGV[4] == '' and '-' or '(' .. ARGV[4], {}
local members = call('ZRANGEBYLEX', waiting, after, '(' .. ARGV[3], 'LIMIT', 0, ARGV[5])
for i, member in ipairs(members) do ids[i] = string.sub(member, 30) end
add('blocked', ids)
if ARGV[4] == '' then
    add('pending', call('SMEMBERS', p .. 'key-pending:' .. name))
    add('running', call('SMEMBERS', p .. 'key-running:' .. name))
end
if #members == tonumber(ARGV[5]) then answer[1] = members[#members] end
return append_counts(answer)
