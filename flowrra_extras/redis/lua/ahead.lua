-- Count the ready jobs ahead of a job.
--
-- KEYS: P:
-- ARGV: again, queue, its PLACE ID.
-- Returns: the number.
--
-- include common.lua

local ahead = call('ZLEXCOUNT', p .. 'ready:' .. ARGV[2], '-', '(' .. ARGV[3])
for _, member in ipairs(call('ZRANGE', p .. 'suspects:' .. ARGV[2], 0, -1)) do
    if member < ARGV[3] then ahead = ahead + 1 end
end
return ahead
