-- Find jobs in steps. Each step reads jobs from the smallest index that contains all matches.
--
-- KEYS: P:
-- ARGV: again, filter (JSON, without conditions that are not set), how many to find (0: count them), how many to read,
--   1 for the oldest first, the lowest seq and the highest.
-- Returns: the seq of the last job that was read ('' at the end), then for each match its id, hash, history and steps;
--   for a count, the number for each STATUS QUEUE.
--
-- include common.lua

local which, limit, page, oldest = cjson.decode(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5] == '1'
local low, high = tonumber(ARGV[6]), tonumber(ARGV[7])
local answer, wanted, fields, tests = {''}, {}, {F.status, F.queue}, {}
for _, status in ipairs(which.status or {}) do wanted[status] = true end
local only = #(which.status or {}) == 1 and which.status[1]

local function test(asked, field, passes)
    if asked then
        fields[#fields + 1] = field
        tests[#tests + 1] = passes
    end
end

local function is_in(item, list)
    for _, one in ipairs(list or {}) do
        if one == item then return true end
    end
end

test(which.worker, F.worker, function(worker) return worker == which.worker end)
test(which.head, F.head, function(head) return string.sub(head or '', 1, #which.head) == which.head end)
local place  -- of the job that is looked at
test(which.ahead, F.place, function(value)
    place = value
    return true
end)
test(which.ahead, F.turn, function(turn)
    return (turn and with_turn(place, turn) or place) < which.ahead
end)
test(which.limit, F.limit, function(limit) return limit == which.limit end)
test(which.error, F.error, function(error) return string.find(string.lower(error or ''), which.error, 1, true) end)
test(which.parent, F.parents, function(parents) return is_in(which.parent, parents and cjson.decode(parents)) end)
test(which.tag, F.head, function(head) return is_in(which.tag, tags_of(head)) end)

-- Return STATUS QUEUE if the job matches.
local function matched(id)
    local values = call('HMGET', p .. 'job:' .. id, unpack(fields))
    local status, queue = values[1], values[2]
    if not status or (which.status and not wanted[status]) or (which.queue and queue ~= which.queue) then return end
    for i, passes in ipairs(tests) do
        if not passes(values[i + 2]) then return end
    end
    return status .. ' ' .. queue
end

local function add(id, kind)
    if limit == 0 then return count(kind, 1) end
    answer[#answer + 1] = id
    answer[#answer + 1] = call('HGETALL', p .. 'job:' .. id)
    answer[#answer + 1] = call('LRANGE', p .. 'history:' .. id, 0, -1)
    answer[#answer + 1] = call('HVALS', p .. 'steps:' .. id)
end

local function in_range(key, from, to, number)
    if oldest then return call('ZRANGEBYSCORE', key, from, to, 'WITHSCORES', 'LIMIT', 0, number) end
    return call('ZREVRANGEBYSCORE', key, to, from, 'WITHSCORES', 'LIMIT', 0, number)
end

-- Return bytes in ascending order. To sort many of the 256 costs more than to look for each.
local function sorted(bytes)
    if #bytes <= FEW_IDS then
        table.sort(bytes)
        return bytes
    end
    local present, ordered = {}, {}
    for _, byte in ipairs(bytes) do present[byte] = true end
    for byte = 0, BUCKET - 1 do
        if present[byte] then ordered[#ordered + 1] = byte end
    end
    return ordered
end

-- Return the bytes of an entry of the first index that are in the others too.
local function bytes_in(bucket, entry, names)
    local left = {string.byte(entry, #bucket + 2, -1)}
    for i = 2, #names do
        local other, both = call('ZRANGEBYSCORE', p .. 'seqs:' .. names[i], bucket, bucket)[1], {}
        for _, byte in ipairs(other and left or {}) do
            if string.find(other, string.char(byte), #bucket + 2, true) then both[#both + 1] = byte end
        end
        left = both
    end
    return sorted(left)
end

-- Return the bytes of the jobs of a bucket that are in all of these indexes, and byte > id.
local function read_bucket(bucket, entry, names)
    local key, ids = p .. 'ids:' .. bucket, {}
    local bytes = names[1] and bytes_in(bucket, entry, names)
    if bytes and #bytes <= FEW_IDS then
        local found = #bytes > 0 and call('HMGET', key, unpack(bytes))
        for i, byte in ipairs(bytes) do ids[byte] = found[i] end
        return bytes, ids
    end
    local all, present = call('HGETALL', key), {}
    for i = 1, #all, 2 do
        present[#present + 1] = tonumber(all[i])
        ids[present[#present]] = all[i + 1]
    end
    return bytes or sorted(present), ids
end

-- Visit the jobs that are in all of these indexes, of which the first is the smallest; without one, all jobs. Return
-- the last seq that was visited, unless these were all.  `visit(id, seq)`: whether to stop.
local function visit_indexed(names, most, visit)
    local key = p .. (names[1] and 'seqs:' .. names[1] or 'buckets')
    local from, to = integer(math.floor(low / BUCKET)), integer(math.floor(high / BUCKET))

    local function visit_bucket(bucket, entry)
        local bytes, ids = read_bucket(bucket, entry, names)
        for i = 1, #bytes do
            local byte = bytes[oldest and i or #bytes + 1 - i]
            local seq = bucket * BUCKET + byte
            if ids[byte] and seq >= low and seq <= high and visit(ids[byte], seq) then return seq end
        end
    end

    for looks = BUCKETS_READ, most, BUCKETS_READ do
        local found = in_range(key, from, to, BUCKETS_READ)
        for i = 2, #found, 2 do
            local last = visit_bucket(found[i], found[i - 1])
            if last then return last end
        end
        if #found < 2 * BUCKETS_READ then return end
        local last = found[#found]
        if oldest then from = '(' .. last else to = '(' .. last end
        if looks + BUCKETS_READ > most then return last * BUCKET + (oldest and BUCKET - 1 or 0) end
    end
end

-- Visit a page of jobs that were found as PLACE ID in any order.
local function visit_in_order(members, visit)
    local seqs, ids = {}, {}
    for _, member in ipairs(members) do
        local seq = seq_of(member)
        if seq >= low and seq <= high then
            seqs[#seqs + 1] = seq
            ids[seq] = string.sub(member, 30)
        end
    end
    table.sort(seqs, function(a, b) if oldest then return a < b else return a > b end end)
    for i = 1, math.min(#seqs, page) do
        if visit(ids[seqs[i]], seqs[i]) then return seqs[i] end
    end
    return #seqs > page and seqs[page]
end

local function running()
    local found = {}
    for _, worker in ipairs(which.worker and {which.worker} or call('HKEYS', p .. 'workers')) do
        for _, id in ipairs(call('SMEMBERS', p .. 'running:' .. worker)) do
            local place = call('HGET', p .. 'job:' .. id, F.place)
            if place then found[#found + 1] = place .. id end
        end
    end
    return found
end

local function queues()
    if which.queue then return {which.queue} end
    local found, names = {}, {}
    for _, name in ipairs(call('HKEYS', state)) do
        local queue = string.match(name, '^pending (.*)') or string.match(name, '^suspect (.*)')
        if queue and not found[queue] then
            found[queue] = true
            names[#names + 1] = queue
        end
    end
    return names
end

-- A queue is sorted by priority first: read a page for each priority. Return nothing if there are too many. Jobs with a
-- turn have a separate index.
local function ready()
    local found, looks = {}, 0
    local from, to = string.format('%013x', low), string.format('%013x', high) .. '\255'
    for _, queue in ipairs(queues()) do
        local key, begin = p .. 'ready:' .. queue, '-'
        local first = call('ZRANGEBYLEX', key, begin, '+', 'LIMIT', 0, 1)[1]
        while first do
            looks = looks + 1
            if looks > MOST_LOOKS then return end
            local priority = string.sub(first, 1, 16)
            local least, most, command = '[' .. priority .. from, '[' .. priority .. to, 'ZRANGEBYLEX'
            if not oldest then least, most, command = most, least, 'ZREVRANGEBYLEX' end
            for _, member in ipairs(call(command, key, least, most, 'LIMIT', 0, page)) do found[#found + 1] = member end
            first = call('ZRANGEBYLEX', key, '(' .. priority .. 'h', '+', 'LIMIT', 0, 1)[1]
        end
        for _, member in ipairs(call('ZRANGE', p .. 'suspects:' .. queue, 0, -1)) do found[#found + 1] = member end
    end
    local before = #found
    visit_indexed({'placed'}, math.huge, function(id, seq)
        found[#found + 1] = string.rep('0', 16) .. string.format('%013x', seq) .. id
        return #found - before == page
    end)
    return found
end

local function number_of(status)
    local number = 0
    for _, queue in ipairs(queues()) do
        number = number + (call('HGET', state, status .. ' ' .. queue) or 0)
        if status == 'pending' then number = number + (call('HGET', state, 'suspect ' .. queue) or 0) end
    end
    return number
end

-- Return the indexes that contain all matches, the smallest one first, and its size: an estimate.
local function indexes()
    local names, buckets = {}, {}
    if which.tag then names[#names + 1] = 'tag:' .. which.tag end
    if which.head then names[#names + 1] = task_index(which.head) end
    if which.error then names[#names + 1] = 'by:error' end
    if only and only ~= 'pending' and only ~= 'running' then names[#names + 1] = 'by:' .. only end
    if not names[1] then return names, math.huge end
    for _, name in ipairs(names) do buckets[name] = call('ZCARD', p .. 'seqs:' .. name) end
    table.sort(names, function(a, b) return buckets[a] < buckets[b] end)
    local some = call('ZRANDMEMBER', p .. 'seqs:' .. names[1], BUCKETS_READ)
    local jobs = 0
    for _, text in ipairs(some) do jobs = jobs + #text - string.find(text, ':', 1, true) end
    return names, jobs * buckets[names[1]] / math.max(1, #some)
end

-- Return the last seq that was visited, unless these were all.
local function visit_candidates(visit)
    if only and which.queue and number_of(only) == 0 then return end
    if only == 'running' then return visit_in_order(running(), visit) end
    local names, size = indexes()
    local family = which.parent and p .. 'family:' .. which.parent
    if family and call('ZCARD', family) <= size then
        local found = in_range(family, ARGV[6], ARGV[7], page)
        for i = 1, #found, 2 do
            if visit(found[i], found[i + 1]) then return found[i + 1] end
        end
        return #found == 2 * page and found[#found]
    end
    local members = only == 'pending' and number_of(only) < size and ready()
    if members then return visit_in_order(members, visit) end
    return visit_indexed(names, BUCKETS_AT_ONCE, visit)
end

if which.ids then
    for _, id in ipairs(which.ids) do
        local kind = matched(id)
        if kind then add(id, kind) end
    end
else
    local left, looks = limit > 0 and limit or math.huge, 0
    local last = visit_candidates(function(id)
        local kind = matched(id)
        looks = looks + 1
        if kind then
            add(id, kind)
            left = left - 1
        end
        return looks == page or left == 0
    end)
    if last then answer[1] = integer(last) end
end
return append_counts(answer)
