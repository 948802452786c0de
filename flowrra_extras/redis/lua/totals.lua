-- Read the total activity since the store was created.
--
-- KEYS: P:
-- ARGV: again.
-- Returns: WHAT TASK, a number ..
--
-- include common.lua

return call('HGETALL', p .. 'totals')
