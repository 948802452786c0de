-- Delete finished jobs past their retention. Some limit keys lose the jobs that the server has evicted.
--
-- KEYS: P:
-- ARGV: again, before, limit.
-- Returns: the ids of the deleted jobs.
--
-- include common.lua

local ids, seen, looks, limit = {}, {}, 0, tonumber(ARGV[3])

-- Delete the job if its retention has ended. Return the end if that is later.
local function purge(seq)
    looks = looks + 1
    local bucket = integer(math.floor(seq / BUCKET))
    local id = not seen[seq] and call('HGET', p .. 'ids:' .. bucket, seq % BUCKET)
    seen[seq] = true
    if not id then return end
    local status, purge_at = unpack(call('HMGET', p .. 'job:' .. id, F.status, F.purge_at), 1, 2)
    if status and not is_finished(status) then return end
    if status and (#ids == limit or tonumber(purge_at) >= tonumber(ARGV[2])) then return tonumber(purge_at) end
    note(ids_of, seq, false)  -- also if the server has evicted it (maxmemory-policy)
    erase(id)
    ids[#ids + 1] = id
end

while #ids < limit and looks < PURGE_LOOKS * limit do
    local text = call('ZRANGEBYSCORE', p .. 'purges', '-inf', '(' .. ARGV[2], 'LIMIT', 0, 1)[1]
    if not text then break end
    local left, start = {}, math.huge
    for seq in string.gmatch(text, '%d+') do
        local later = purge(tonumber(seq))
        if later then
            left[#left + 1] = seq .. ' '
            start = math.min(start, later)
        end
    end
    call('ZREM', p .. 'purges', text)
    if #left > 0 then call('ZADD', p .. 'purges', 'LT', string.format('%.17g', start), table.concat(left)) end
end
call('ZREMRANGEBYSCORE', p .. 'key-tat', '-inf', '(' .. ARGV[2])  -- from then on the rate allows a full burst anyway
for _, name in ipairs(call('ZRANDMEMBER', p .. 'limit-keys', 50)) do
    for _, index in ipairs({p .. 'key-running:' .. name, p .. 'key-pending:' .. name}) do
        for _, id in ipairs(call('SRANDMEMBER', index, 10)) do
            if call('EXISTS', p .. 'job:' .. id) == 0 then  -- maxmemory-policy
                call('SREM', index, id)
                call('ZADD', p .. 'due', 0, '\0' .. name)
            end
        end
    end
end
publish()
return ids
