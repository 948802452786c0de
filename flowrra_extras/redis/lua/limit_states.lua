-- Read the states of limit keys.
--
-- KEYS: P:
-- ARGV: again, limit keys.
-- Returns: for each the text of its limit, the numbers of running, ready and waiting jobs, tat, due, 1 if it is paused.
--
-- include common.lua

local answer = {}
for i = 2, #ARGV do
    local name = ARGV[i]
    answer[i - 1] = {
        call('HGET', p .. 'limits', string.match(name, '^[^:]*')),
        call('SCARD', p .. 'key-running:' .. name), call('SCARD', p .. 'key-pending:' .. name),
        call('ZCARD', p .. 'key-waiting:' .. name), call('ZSCORE', p .. 'key-tat', name),
        call('ZSCORE', p .. 'due', '\0' .. name), call('SISMEMBER', p .. 'key-paused', name),
    }
end
return answer
