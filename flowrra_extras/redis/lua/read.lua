-- Read jobs for the rules.
--
-- KEYS: P:
-- ARGV: again, the number of seqs to reserve, what to find (the name of a Find), then its arguments.
-- Returns: the last of those seqs, for each argument the found ids, then for the first READ_AT_ONCE jobs the id and its
--   READ_FIELDS. The limit keeps a call from blocking the server, or its reader, for long.
--
-- include common.lua

local kind, found, seen = ARGV[3], {}, {}
local finds = {
    Jobs = function(id) return {id} end,
    Children = function(parent) return call('ZRANGE', p .. 'family:' .. parent, 0, -1) end,
    Holders = function(key) return {call('HGET', p .. 'unique', key) or nil} end,
    Running = function(worker) return call('SMEMBERS', p .. 'running:' .. worker) end,
    EventWaiters = function(event) return call('HKEYS', p .. 'steps:' .. event) end,
}
if kind == 'Expired' then
    found[1] = call('ZRANGEBYSCORE', p .. 'expiring', '-inf', ARGV[4], 'LIMIT', 0, ARGV[5])
else
    for i = 4, #ARGV do found[#found + 1] = finds[kind](ARGV[i]) end
end
local answer = {ARGV[2] ~= '0' and call('HINCRBY', state, 'seq', ARGV[2]) or 0, found}
for _, ids in ipairs(found) do
    for _, id in ipairs(ids) do
        local is_wanted = not seen[id] and #answer < 2 + 2 * READ_AT_ONCE
        local values = is_wanted and call('HMGET', p .. 'job:' .. id, READ_FIELDS)
        seen[id] = true
        if values then
            answer[#answer + 1] = id
            answer[#answer + 1] = values
            -- The server has evicted it (maxmemory-policy). Other jobs must not wait for it.
            if kind == 'Expired' and not values[1] then call('ZREM', p .. 'expiring', id) end
        end
    end
end
return answer
