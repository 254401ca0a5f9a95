-- Runs a group of writes, each whole or not at all, and packs their outcomes.
-- KEYS: the keys of all items. ARGV: the items (operation, places of its keys, and fields; packed), how long completed sagas live (milliseconds or nothing), the layout,
-- and the document of each item.
-- An outcome is true, or a list of what is in the way.
local ttl, layout = ARGV[2], ARGV[3]
local undo

local function write(inverse, ...)
  call(...)
  undo[#undo + 1] = inverse
end

local function scored(list)
  local arguments = {}
  for _, member in ipairs(list) do
    arguments[#arguments + 1] = '0'
    arguments[#arguments + 1] = member
  end
  return arguments
end

local function add(index, list)
  if #list > 0 then
    write({'ZREM', index, unpack(list)}, 'ZADD', index, unpack(scored(list)))
  end
end

local function remove(index, list)
  if #list > 0 then
    write({'ZADD', index, unpack(scored(list))}, 'ZREM', index, unpack(list))
  end
end

-- A number of 15 digits as Redis takes it.
local function plain(expiry)
  return string.format('%.0f', tonumber(expiry))
end

local function expire(pointer, expiry, before)
  local inverse = before == '' and {'PERSIST', pointer} or {'PEXPIREAT', pointer, plain(before)}
  if expiry ~= '' then
    write(inverse, 'PEXPIREAT', pointer, plain(expiry))
  elseif before ~= '' then
    write(inverse, 'PERSIST', pointer)
  end
end

local function new_record(item, correlation)
  local record = {
    version = item[7], created = item[8], updated = item[9], due = item[10], flags = item[11],
    correlation = correlation, expiry = '', completed = string.find(item[11], 'C', 1, true) ~= nil,
  }
  if record.completed and ttl ~= '' then
    record.expiry = digits(milliseconds() + tonumber(ttl))
  end
  return record
end

local function save(key, record, document)
  local value = record.version .. '\0' .. record.correlation .. '\0' .. record.created .. '\0' .. record.updated ..
    '\0' .. record.due .. '\0' .. record.expiry .. '\0' .. record.flags .. '\0' .. document
  if record.expiry ~= '' then
    call('SET', key, value, 'PXAT', plain(record.expiry))
  else
    call('SET', key, value)
  end
end

-- The key of a saga's correlation id. A caller that did not name it gets nil when the key is not here: it may be on
-- its way to another node of a Cluster, where only Redis itself can tell, of keys that are named.
local function pointer_of(item, index, record)
  if item[4] > 0 then
    return KEYS[item[4]], call('EXISTS', KEYS[item[4]]) == 1
  end
  local pointer = base_of(index) .. 'c:' .. record.correlation
  if call('EXISTS', pointer) == 1 then
    return pointer, true
  end
  return nil
end

local operations = {}

function operations.insert(item, document)
  local index, state, pointer, id = KEYS[item[2]], KEYS[item[3]], KEYS[item[4]], item[5]
  if not call('ZSCORE', index, 'v' .. layout) then
    return {'unregistered'}
  end
  if call('EXISTS', state) == 1 then
    return {'saga_id'}
  end
  local holder = call('GET', pointer)
  if holder then -- a saga that Redis evicted leaves its pointer behind
    local held = head_of(base_of(index) .. 's:' .. holder)
    if held and held.correlation == item[12] then
      return {'correlation_id'}
    end
  end
  local record = new_record(item, item[12])
  add(index, members(record, id))
  write({'DEL', pointer}, 'SET', pointer, id)
  expire(pointer, record.expiry, '')
  save(state, record, document)
  return true
end

function operations.update(item, document)
  local index, state, id = KEYS[item[2]], KEYS[item[3]], item[5]
  local before = head_of(state)
  if not before then
    return {'absent'}
  elseif before.version ~= item[6] then
    return {'version', before.version}
  end
  local record = new_record(item, before.correlation)
  local old, new = members(before, id), members(record, id)
  local pointer, there
  if before.expiry ~= '' or record.expiry ~= '' then
    pointer, there = pointer_of(item, index, before)
    if not pointer then
      return {'pointer', before.correlation}
    end
  end
  if redis.acl_check_cmd and not redis.acl_check_cmd('ZREM', index, '') then -- from Redis 7 on
    error('NOPERM ZREM', 0) -- nothing else could undo what is added now
  end
  add(index, without(new, old))
  remove(index, without(old, new))
  if pointer then
    if not there then
      write({'DEL', pointer}, 'SET', pointer, id)
    end
    expire(pointer, record.expiry, before.expiry)
  end
  save(state, record, document)
  return true
end

local function take_away(item, record)
  local index, state, id = KEYS[item[2]], KEYS[item[3]], item[5]
  local pointer, there = pointer_of(item, index, record)
  if not pointer then
    return {'pointer', record.correlation}
  end
  remove(index, members(record, id))
  if there and call('GET', pointer) == id then
    call('DEL', state, pointer)
  else
    call('DEL', state)
  end
  return true
end

function operations.delete(item)
  local record = head_of(KEYS[item[3]])
  if not record then
    return {'absent'}
  elseif item[6] ~= '' and record.version ~= item[6] then
    return {'version', record.version}
  end
  return take_away(item, record)
end

-- A completed saga that was not touched since it was chosen.
function operations.purge(item)
  local record = head_of(KEYS[item[3]])
  if not record or not record.completed or record.updated ~= item[9] then
    return {'changed'}
  end
  return take_away(item, record)
end

local outcomes, failure, written = {}, nil, false
local items, swept = nil, {}
if ARGV[1] == '' then -- one item, with plain fields
  items = {{ARGV[5], 1, 2, KEYS[3] and 3 or 0, unpack(ARGV, 6, 13)}}
else
  items = cmsgpack.unpack(ARGV[1])
end
for place, item in ipairs(items) do
  undo = {}
  local fine, outcome = pcall(operations[item[1]], item, ARGV[place + 3])
  if fine then
    outcomes[place] = outcome
    written = written or outcome == true
  else
    for step = #undo, 1, -1 do
      redis.pcall(unpack(undo[step]))
    end
    outcome = tostring(outcome)
    failure = failure or outcome
    outcomes[place] = {'error', outcome}
  end
end
if failure and not written then
  return redis.error_reply(failure)
end
if ttl ~= '' then
  for _, item in ipairs(items) do
    local index = KEYS[item[2]]
    if not swept[index] then
      swept[index] = true
      pcall(sweep, index, 20)
    end
  end
end
return cmsgpack.pack(outcomes)
