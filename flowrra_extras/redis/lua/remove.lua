-- Delete finished jobs, or held ones.
--
-- KEYS: P:
-- ARGV: again, who holds them or '', then ids.
-- Returns: the ids of the deleted jobs; for a repetition, the ids that do not exist.
--
-- include common.lua

local by, gone = ARGV[2], {}
for i = 3, #ARGV do
    local status, worker = unpack(call('HMGET', p .. 'job:' .. ARGV[i], F.status, F.worker), 1, 2)
    local goes = by == '' and is_finished(status) or by ~= '' and status == 'blocked' and worker == by
    if goes then erase(ARGV[i]) end
    if goes or (again and not status) then gone[#gone + 1] = ARGV[i] end
end
ended = gone
publish()
return gone
