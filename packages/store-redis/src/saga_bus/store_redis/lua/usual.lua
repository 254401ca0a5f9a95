-- Runs a group of writes, each whole or not at all.
-- KEYS: the keys of all items. ARGV: the items, how long completed sagas live (milliseconds or nothing), the mark of the
-- layout, and the document of each item. Returns the number of items where all are done, else their outcomes, packed:
-- true, or a list of what is in the way.
-- An item is packed as ten values: the operation, the places of the keys of its index, its saga and its correlation id
-- (0 where that is not known), its saga id, the expected version, what makes it usual, updated_at, the head of its new
-- record (what stands before the correlation id), and its correlation id.
--
-- The usual writes come before the library, because making that takes longer than they do: a new saga that runs, with
-- its created_at, and an update of a running one whose flags and timeout stay, with a pattern of its present record.
-- Neither leaves anything behind where it is not done, and what is unusual or goes wrong is left to what follows.
-- Redis makes a text of each number that it is given, and Lua looks at every byte of a text that is made: so numbers
-- are texts here, and documents are put together once.
local outcomes, done, next_item = {}, 0, 0

local function usual_update(index, state, id, pattern, updated, head, document)
  local before = redis.pcall('GETRANGE', state, '0', '159')
  if type(before) ~= 'string' then
    return false
  end
  local last, correlation = string.match(before, pattern)
  if not last then
    return false
  end
  local fresh, stale = 'r' .. updated .. id, 'r' .. last .. id
  if fresh ~= stale then
    if redis.acl_check_cmd and not redis.acl_check_cmd('ZREM', index, stale) then -- from Redis 7 on
      return false -- nothing else could undo what is added now
    end
    local added = redis.pcall('ZADD', index, '0', fresh)
    if type(added) == 'table' then
      return false
    end
    redis.pcall('ZREM', index, stale)
  end
  if redis.pcall('SET', state, head .. correlation .. document).ok then
    return true
  end
  if fresh ~= stale then
    redis.pcall('ZADD', index, '0', stale)
    redis.pcall('ZREM', index, fresh)
  end
  return false
end

local function usual_insert(index, state, pointer, id, created, updated, head, correlation, document)
  if type(redis.pcall('ZSCORE', index, ARGV[3])) ~= 'string' or redis.pcall('EXISTS', state, pointer) ~= 0 then
    return false
  end
  local newest, running = 'n' .. created .. id, 'r' .. updated .. id
  if type(redis.pcall('ZADD', index, '0', newest, '0', running)) == 'table' then
    return false
  end
  if redis.pcall('SET', pointer, id).ok then
    if redis.pcall('SET', state, head .. correlation .. '\0' .. document).ok then
      return true
    end
    redis.pcall('DEL', pointer)
  end
  redis.pcall('ZREM', index, newest, running)
  return false
end

for place = 1, #ARGV - 3 do
  local operation, index, state, pointer, id, _, usual, updated, head, correlation
  next_item, operation, index, state, pointer, id, _, usual, updated, head, correlation =
    cmsgpack.unpack_limit(ARGV[1], 10, next_item)
  if usual ~= '' then
    local document = ARGV[place + 3]
    if operation == 'update' then
      outcomes[place] = usual_update(KEYS[index], KEYS[state], id, usual, updated, head, document)
    else
      outcomes[place] = usual_insert(KEYS[index], KEYS[state], KEYS[pointer], id, usual, updated, head, correlation,
        document)
    end
    if outcomes[place] then
      done = done + 1
    end
  end
end
if done == #ARGV - 3 then
  return done
end
