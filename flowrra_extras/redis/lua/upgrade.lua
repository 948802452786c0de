-- Migrate the jobs of an older version, in steps: zset `all` seq > id has those that are left.
--
-- KEYS: P:
-- ARGV: again, how many to read, FIELDS (JSON).
-- Returns: how many are left (0 at the end, when the new version is written).
--
-- include common.lua

local FIELDS = cjson.decode(ARGV[3])
local page = call('ZRANGE', p .. 'all', 0, ARGV[2] - 1, 'WITHSCORES')

-- A hold counts as one more parent. If several processes do this at once, the first one counts.
local function count_parents(id, key, worker)
    local parents = call('SMEMBERS', p .. 'parents:' .. id)
    call('HSETNX', key, F.waits, #parents + (worker and 1 or 0))
    for _, parent in ipairs(parents) do call('UNLINK', p .. 'children:' .. parent) end
    call('UNLINK', p .. 'parents:' .. id)
end

local function migrate(id, seq)
    local key = p .. 'job:' .. id
    local old, v, short = call('HGETALL', key), {}, {}
    for i = 1, #old, 2 do
        v[old[i]] = old[i + 1]
        if FIELDS[old[i]] then
            short[#short + 1] = FIELDS[old[i]]
            short[#short + 1] = old[i + 1]
        end
    end
    if not v.status then return end
    call('DEL', key)
    call('HSET', key, unpack(short))
    note(ids_of, seq, id)
    index(task_index(v.head), seq, true)
    if v.status ~= 'pending' and v.status ~= 'running' then index('by:' .. v.status, seq, true) end
    if v.error then index('by:error', seq, true) end
    for _, parent in ipairs(v.parents and cjson.decode(v.parents) or {}) do
        call('ZADD', p .. 'family:' .. parent, seq, id)
    end
    if is_finished(v.status) then purge_later(v.purge_at, {seq}) end
    if v.status == 'blocked' then count_parents(id, key, v.worker) end
    if v.failures or v.crashes then call('HDEL', key, F.expires) end  -- removed when an attempt has started
end

for i = 1, #page, 2 do
    migrate(page[i], tonumber(page[i + 1]))
    call('ZREM', p .. 'all', page[i])
end
local left = call('ZCARD', p .. 'all')
if left == 0 then
    call('UNLINK', p .. 'purge')
    call('HSET', state, 'version', VERSION)
end
publish()
return left
