-- Write what the rules have decided, if nothing that they have read has changed.
--
-- KEYS: P:
-- ARGV: again, a plan (JSON, see `Plan`).
-- Returns: 1, or 0 if something has changed meanwhile.
--
-- include admit.lua

local plan = cjson.decode(ARGV[2])

-- A job that was only read may have been written, if its state is the same: many calls may add children at once.
local function holds()
    for _, guard in ipairs(plan.jobs) do
        local values = call('HMGET', p .. 'job:' .. guard[1], F.place, F.status, F.attempt, F.rev)
        for i = 2, #guard do
            if (values[i - 1] or '') ~= guard[i] then return false end
        end
    end
    for _, id in ipairs(plan.plain) do
        local key = p .. 'job:' .. id
        for _, value in ipairs(call('HMGET', key, F.unique, F.parents, F.children, F.crashes, F.error, F.cancel)) do
            if value then return false end
        end
    end
    for key, id in pairs(plan.holders) do
        if (call('HGET', p .. 'unique', key) or '') ~= id then return false end
    end
    for worker, number in pairs(plan.running) do
        if call('SCARD', p .. 'running:' .. worker) ~= number then return false end
    end
    for worker, score in pairs(plan.leases) do
        if (call('ZSCORE', p .. 'leases', worker) or '') ~= score then return false end
    end
    return true
end

local function is_done()
    for _, id in ipairs(plan.changed) do
        if call('HGET', p .. 'job:' .. id, F.rev) == plan.token then return 1 end
    end
    return 0
end

if not holds() then return again and is_done() or 0 end
for _, write in ipairs(plan.writes) do
    local command, key, items = unpack(write)
    if command == 'ENTER' or command == 'LEAVE' then
        for _, seq in ipairs(items) do index(key, seq, command == 'ENTER') end
    elseif command == 'PURGE' then
        purge_later(key, items)
    else
        each(command, p .. key, items)
    end
end
for _, job in ipairs(plan.new) do note(ids_of, job[1], job[2]) end
for _, step in ipairs(plan.steps) do keep_step(unpack(step)) end
if #plan.endings > 0 then
    each('RPUSH', p .. 'endings', plan.endings)
    call('LTRIM', p .. 'endings', -ENDINGS_KEPT, -1)
end
for _, queue in ipairs(plan.woken) do woken[queue] = true end
for _, worker in ipairs(plan.notices) do call('PUBLISH', p .. 'notices', worker) end
counts, ended = plan.counts, plan.ended
if plan.asking then
    for _, name in ipairs(plan.asking) do
        asking[name] = true
        call('ZADD', p .. 'limit-keys', 0, name)
    end
    admit(plan.now, math.max(UPKEEP, #plan.changed))
end
publish()
return 1
