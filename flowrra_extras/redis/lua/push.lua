-- Add new jobs without parents and unique keys. A job whose id exists changes nothing.
--
-- KEYS: P:
-- ARGV: again, then for each call: now, the number of runs, then these runs of similar jobs: queue, priority, head, status,
--   due, expires, limit key, the number of jobs, then for each job its id and payload.
-- Returns: 0 for each call.
--
-- include admit.lua

local function enter(name, seqs)
    for _, seq in ipairs(seqs) do index(name, seq, true) end
end

local function take_in(now, queue, priority, head, status, due, expires, limit, number)
    local ready, waiting, expiring, seqs = {}, {}, {}, {}
    local seq = call('HINCRBY', state, 'seq', number) - number
    for i = at + 1, at + 2 * number, 2 do
        local id = ARGV[i]
        seq = seq + 1
        local key, place, n = p .. 'job:' .. id, priority .. string.format('%013x', seq), 2 * #seqs
        if call('HSETNX', key, F.place, place) == 1 then
            call('HSET', key, F.queue, queue, F.head, head, F.payload, ARGV[i + 1], F.submitted, now, F.status, status)
            seqs[#seqs + 1] = seq
            note(ids_of, seq, id)
            if due ~= '' then call('HSET', key, F.due, due) end
            if limit ~= '' then call('HSET', key, F.limit, limit) end
            if expires ~= '' then
                call('HSET', key, F.expires, expires)
                expiring[n + 1], expiring[n + 2] = expires, id
            end
            if status == 'scheduled' then
                waiting[n + 1], waiting[n + 2] = due, id
            else
                ready[n + 1], ready[n + 2] = '0', place .. id
            end
        end
    end
    at = at + 2 * number
    count(status .. ' ' .. queue, #seqs)
    if status == 'blocked' and #seqs > 0 then
        each('ZADD', p .. 'key-waiting:' .. limit, ready)
        call('ZADD', p .. 'limit-keys', 0, limit)
        asking[limit] = true
    else
        each('ZADD', p .. 'ready:' .. queue, ready)
    end
    each('ZADD', p .. 'due', waiting)
    enter(task_index(head), seqs)
    for _, tag in ipairs(tags_of(head)) do enter('tag:' .. tag, seqs) end
    if status ~= 'pending' then enter('by:' .. status, seqs) end
    each('ZADD', p .. 'expiring', expiring)
    if #waiting > 0 then woken[queue] = true end
end

local answers = {}
while ARGV[at + 1] do
    local now, runs = words(2)
    for _ = 1, runs do take_in(now, words(8)) end
    answers[#answers + 1] = 0
    if next(asking) then admit(now, math.max(UPKEEP, #ARGV)) end
end
publish()
return answers
