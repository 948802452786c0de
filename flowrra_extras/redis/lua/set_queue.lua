-- Pause or resume a queue.
--
-- KEYS: P:
-- ARGV: again, queue, 1 or 0.
-- Returns: 0.
--
-- include common.lua

if ARGV[3] == '1' then
    call('HSET', state, 'paused ' .. ARGV[2], 1)
else
    call('HDEL', state, 'paused ' .. ARGV[2])
end
call('PUBLISH', p .. 'jobs', ARGV[2])
call('PUBLISH', p .. 'notices', '')
return 0
