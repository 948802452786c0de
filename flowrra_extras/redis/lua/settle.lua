-- Settle successes.
--
-- KEYS: P:
-- ARGV: again, then for each call: now, the number of runs of similar successes, then for each run: worker, purge_at,
--   whether they may be written already, their number, then for each its id, seq (13 digits), attempt, result. If the
--   job was deleted and another one has its id now, seq differs.
-- Returns: for each call a text with a 1 for each success that was written, a 0 for each that was not, and a 2 for each
--   that is left to the rules: the job has children, has crashed, or is to be cancelled.
--
-- include admit.lua

local flags = ''

local function settle(now, worker, purged, doubtful, number)
    local settled, seqs, freed = {}, {}, {}  -- freed: limit keys > the ids of their jobs
    for i = at + 1, at + 4 * number, 4 do
        local id, seq, attempt, result = unpack(ARGV, i, i + 3)
        local key, flag = p .. 'job:' .. id, '0'
        local v = call('HMGET', key, F.status, F.queue, F.place, F.attempt, F.worker, F.unique, F.crashes, F.children,
            F.cancel, F.limit)
        if v[3] and string.sub(v[3], 17) == seq and v[4] == attempt then
            if v[1] == 'running' and v[5] == worker then
                flag = (v[7] or v[8] or v[9]) and '2' or '1'
            elseif v[1] == 'success' and (again or doubtful == '1') then
                flag = '1'
                v[1] = false
            end
        end
        if flag == '1' and v[1] then
            settled[#settled + 1] = id
            count('running ' .. v[2], -1)
            count('success ' .. v[2], 1)
            if attempt ~= '1' then  -- remove the error of an earlier attempt
                call('HDEL', key, F.error, F.traceback)
                index('by:error', seq_of(v[3]), false)
            end
            call('HSET', key, F.status, 'success', F.finished, now, F.purge_at, purged, F.result, result)
            if v[6] then call('HDEL', p .. 'unique', v[6]) end
            if v[10] then
                freed[v[10]] = freed[v[10]] or {}
                table.insert(freed[v[10]], id)
            end
            seqs[#settled] = seq_of(v[3])
            index('by:success', seqs[#settled], true)
            ended[#ended + 1] = id
        end
        flags = flags .. flag
    end
    at = at + 4 * number
    each('SREM', p .. 'running:' .. worker, settled)
    if #seqs > 0 then purge_later(purged, seqs) end
    for limit, ids in pairs(freed) do
        asking[limit] = true
        each('SREM', p .. 'key-running:' .. limit, ids)
    end
end

local answers = {}
while ARGV[at + 1] do
    local now, runs = words(2)
    flags = ''
    for _ = 1, runs do settle(now, words(4)) end
    answers[#answers + 1] = flags
    if next(asking) then admit(now, UPKEEP, nil, true) end
end
publish()
return answers
