-- Read results.
--
-- KEYS: P:
-- ARGV: again, then for each call the number of ids, then the ids.
-- Returns: for each call a list with the values of RESULT_FIELDS, or 0, for each id.
--
-- include common.lua

local answers, at = {}, 2
while ARGV[at] do
    local found = {}
    for i = at + 1, at + ARGV[at] do
        local values = call('HMGET', p .. 'job:' .. ARGV[i], RESULT_FIELDS)
        found[#found + 1] = values[1] and values or 0
    end
    answers[#answers + 1] = found
    at = at + 1 + ARGV[at]
end
return answers
