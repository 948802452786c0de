-- Read the overview.
--
-- KEYS: P:
-- ARGV: again.
-- Returns: the state, the workers with a valid lease (JSON).
--
-- include common.lua

local workers = {}
for _, worker in ipairs(call('ZRANGEBYSCORE', p .. 'leases', '(' .. clock(), '+inf')) do
    workers[#workers + 1] = call('HGET', p .. 'workers', worker)
end
return {call('HGETALL', state), workers}
