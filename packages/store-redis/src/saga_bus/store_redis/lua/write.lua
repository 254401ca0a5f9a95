-- Does whatever the usual writes have left over.
local ttl, layout = ARGV[2], ARGV[3]
local undo

local function unpacked(at)
  local item, index, state, pointer = {}, nil, nil, nil
  at, item.operation, index, state, pointer, item.id, item.expected, item.usual, item.updated, item.head,
    item.correlation = cmsgpack.unpack_limit(ARGV[1], 10, at)
  item.index, item.state, item.pointer = KEYS[index], KEYS[state], KEYS[pointer]
  return item, at
end

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
  local record = parse(item.head .. correlation .. '\0')
  if record.completed and ttl ~= '' then
    record.expiry = digits(milliseconds() + tonumber(ttl))
  end
  return record
end

local function save(key, record, document)
  local value = record.version .. '\0' .. record.created .. '\0' .. record.updated .. '\0' .. record.due .. '\0' ..
    record.expiry .. '\0' .. record.flags .. '\0' .. record.correlation .. '\0' .. document
  if record.expiry ~= '' then
    call('SET', key, value, 'PXAT', plain(record.expiry))
  else
    call('SET', key, value)
  end
end

-- The key of a saga's correlation id. A caller that did not name it gets nil when the key is not here: it may be on
-- its way to another node of a Cluster, where only Redis itself can tell, of keys that are named.
local function pointer_of(item, record)
  if item.pointer then
    return item.pointer, call('EXISTS', item.pointer) == 1
  end
  local pointer = base_of(item.index) .. 'c:' .. record.correlation
  if call('EXISTS', pointer) == 1 then
    return pointer, true
  end
  return nil
end

local operations = {}

function operations.insert(item, document)
  local index, state, pointer, id = item.index, item.state, item.pointer, item.id
  if not call('ZSCORE', index, layout) then
    return {'unregistered'}
  end
  if call('EXISTS', state) == 1 then
    return {'saga_id'}
  end
  local holder = call('GET', pointer)
  if holder then -- a saga that Redis evicted leaves its pointer behind
    local held = head_of(base_of(index) .. 's:' .. holder)
    if held and held.correlation == item.correlation then
      return {'correlation_id'}
    end
  end
  local record = new_record(item, item.correlation)
  add(index, members(record, id))
  write({'DEL', pointer}, 'SET', pointer, id)
  expire(pointer, record.expiry, '')
  save(state, record, document)
  return true
end

function operations.update(item, document)
  local index, state, id = item.index, item.state, item.id
  local before = head_of(state)
  if not before then
    return {'absent'}
  elseif before.version ~= item.expected then
    return {'version', before.version}
  end
  local record = new_record(item, before.correlation)
  local old, new = members(before, id), members(record, id)
  local pointer, there
  if before.expiry ~= '' or record.expiry ~= '' then
    pointer, there = pointer_of(item, before)
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
  local index, state, id = item.index, item.state, item.id
  local pointer, there = pointer_of(item, record)
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
  local record = head_of(item.state)
  if not record then
    return {'absent'}
  elseif item.expected ~= '' and record.version ~= item.expected then
    return {'version', record.version}
  end
  return take_away(item, record)
end

-- A completed saga that was not touched since it was chosen.
function operations.purge(item)
  local record = head_of(item.state)
  if not record or not record.completed or record.updated ~= item.updated then
    return {'changed'}
  end
  return take_away(item, record)
end

local failure, written, swept = nil, done > 0, {}
next_item = 0
for place = 1, #ARGV - 3 do
  local item
  item, next_item = unpacked(next_item)
  if not outcomes[place] then
    undo = {}
    local fine, outcome = pcall(operations[item.operation], item, ARGV[place + 3])
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
    swept[item.index] = true
  end
end
if failure and not written then
  return redis.error_reply(failure)
end
if ttl ~= '' then
  for index in pairs(swept) do
    pcall(sweep, index, 20)
  end
end
return cmsgpack.pack(outcomes)
