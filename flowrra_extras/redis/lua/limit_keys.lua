-- Read the limit keys that have jobs, in steps.
--
-- KEYS: P:
-- ARGV: again, the last one of the step before ('' at first), how many.
-- Returns: in the first step the texts of all limits and the paused limit keys; then these limit keys.
--
-- include common.lua

local first = ARGV[2] == ''
local texts = first and call('HVALS', p .. 'limits') or {}
local keys = call('ZRANGEBYLEX', p .. 'limit-keys', first and '-' or '(' .. ARGV[2], '+', 'LIMIT', 0, ARGV[3])
return {texts, first and call('SMEMBERS', p .. 'key-paused') or {}, keys}
