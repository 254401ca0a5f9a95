-- What most scripts begin with. A saga's key holds seven fields, each ended by NUL, and then the document.
-- The members of the index are a letter, a moment of 18 digits and a saga id:
--   n running and f finished sagas by created_at, r running and c finished ones by updated_at,
--   d running ones by their timeout, o those with a pending outbox by updated_at;
--   x those that expire: 15 digits of milliseconds, created_at, updated_at, saga id.
-- The last byte that the seven fields reach as a rule, and at the most. Lua looks at every byte of a text that is made.
local USUAL, HEAD = '191', '1199'

local function call(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err then
    error(reply.err, 0)
  end
  return reply
end

local function milliseconds()
  local now = call('TIME')
  return now[1] * 1000 + math.floor(now[2] / 1000)
end

local function digits(number)
  return string.format('%015.0f', number)
end

-- What a text says that begins with the seven fields; nil where it does not.
local function parse(text)
  local version, created, updated, due, expiry, flags, correlation =
    string.match(text, '^(%d+)%z(%d*)%z(%d*)%z(%d*)%z(%d*)%z(%u*)%z([^%z]*)%z')
  return version and {
    version = version, correlation = correlation, created = created, updated = updated, due = due, expiry = expiry,
    flags = flags, completed = string.find(flags, 'C', 1, true) ~= nil,
  }
end

local function known(record)
  return record or error('WRONGTYPE a key of the saga store holds something else', 0)
end

local function head_of(key)
  local head = call('GETRANGE', key, '0', USUAL)
  if head == '' then
    return nil
  end
  return parse(head) or known(parse(call('GETRANGE', key, '0', HEAD)))
end

-- Whether a saga is in the part of the index that a letter begins.
local function is_under(letter, record)
  if letter == 'o' then
    return string.find(record.flags, 'O', 1, true) ~= nil
  end
  return (letter == 'f' or letter == 'c') == record.completed and (letter ~= 'd' or record.due ~= '')
end

local MOMENTS = {n = 'created', f = 'created', r = 'updated', c = 'updated', d = 'due', o = 'updated'}

local function member_of(letter, record, id)
  return letter .. record[MOMENTS[letter]] .. id
end

-- All members of a saga.
local function members(record, id)
  local list = {}
  for letter in string.gmatch('nrdfco', '.') do
    if is_under(letter, record) then
      list[#list + 1] = member_of(letter, record, id)
    end
  end
  if record.expiry ~= '' then
    list[#list + 1] = 'x' .. record.expiry .. record.created .. record.updated .. id
  end
  return list
end

-- Whether a saga has a member.
local function belongs(member, record, id)
  local letter = string.sub(member, 1, 1)
  return is_under(letter, record) and member == member_of(letter, record, id)
end

local function without(list, others)
  local rest = {}
  for _, member in ipairs(list) do
    local found = false
    for _, other in ipairs(others) do
      found = found or member == other
    end
    if not found then
      rest[#rest + 1] = member
    end
  end
  return rest
end

-- What the keys of a saga type begin with.
local function base_of(index)
  return string.sub(index, 1, -2)
end

-- Takes expired sagas out of the index; returns how many.
local function sweep(index, most)
  local expired = call('ZRANGEBYLEX', index, '[x', '(x' .. digits(milliseconds()), 'LIMIT', 0, most)
  local swept = 0
  for _, member in ipairs(expired) do
    local created, updated, id = string.sub(member, 17, 34), string.sub(member, 35, 52), string.sub(member, 53)
    local gone = {member, 'f' .. created .. id, 'c' .. updated .. id, 'o' .. updated .. id}
    local record = head_of(base_of(index) .. 's:' .. id)
    if record then -- the id is in use again
      gone = without(gone, members(record, id))
    end
    if gone[1] == member then
      call('ZREM', index, unpack(gone))
      swept = swept + 1
    end
  end
  return swept
end
