-- Store steps.
--
-- KEYS: P:
-- ARGV: again, then for each call: the number of steps, then for each the id, seq (13 digits) and attempt of its job, its
--   name, and the step (JSON).
-- Returns: for each call a text with a 1 for each step whose attempt holds its job, a 0 for each other one.
--
-- include common.lua

local answers = {}
while ARGV[at + 1] do
    local flags = ''
    for _ = 1, words(1) do
        local id, seq, attempt, name, step = words(5)
        local v = call('HMGET', p .. 'job:' .. id, F.status, F.attempt, F.place)
        local holds = v[1] == 'running' and v[2] == attempt and string.sub(v[3], 17) == seq
        if holds then keep_step(id, name, step) end
        flags = flags .. (holds and '1' or '0')
    end
    answers[#answers + 1] = flags
end
return answers
