-- Read the activity of workers.
--
-- KEYS: P:
-- ARGV: again, the first minute, how many minutes to read.
-- Returns: the last minute that was read ('' at the end), then the activity of each worker in each minute (JSON).
--
-- include common.lua

local answer = {''}
for _, minute in ipairs(call('ZRANGEBYSCORE', p .. 'minutes', ARGV[2], '+inf', 'LIMIT', 0, ARGV[3])) do
    answer[1] = minute
    for _, text in ipairs(call('HVALS', p .. 'minute:' .. minute)) do answer[#answer + 1] = text end
end
return answer
