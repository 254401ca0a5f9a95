-- Walks a part of the index. KEYS: the index. ARGV: + or - for the direction, the lower and the upper bound, how many
-- sagas to find, what to return of each (d: its value; h: its correlation id and updated_at; n: nothing), and what a
-- saga must be like: completed, archived, outbox (1, 0 or nothing), and bounds of moments.
-- Returns 1 at the end of the part, the last member that was looked at, how many sagas were found, members without a
-- saga, and what was found.
local CHUNK, BYTES, SWEPT = 500, 4194304, 500
local index, forward, lower, upper, most, kind = KEYS[1], ARGV[1] == '+', ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]

local function flag_is(record, letter, wanted)
  return wanted == '' or (string.find(record.flags, letter, 1, true) ~= nil) == (wanted == '1')
end

local function between(moment, after, before)
  return (after == '' or moment > after) and (before == '' or moment < before)
end

local function matches(record)
  return flag_is(record, 'C', ARGV[6]) and flag_is(record, 'A', ARGV[7]) and flag_is(record, 'O', ARGV[8])
    and between(record.created, ARGV[9], ARGV[10]) and between(record.updated, ARGV[11], ARGV[12])
    and (ARGV[13] == '' or (record.due ~= '' and not record.completed and record.due < ARGV[13]))
end

if sweep(index, SWEPT) == SWEPT then
  return {2, '', 0, {}, {}}
end
local page
if forward then
  page = call('ZRANGEBYLEX', index, lower, upper, 'LIMIT', 0, CHUNK)
else
  page = call('ZREVRANGEBYLEX', index, upper, lower, 'LIMIT', 0, CHUNK)
end
local last, found, ghosts, rows, bytes, looked = '', 0, {}, {}, 0, 0
for _, member in ipairs(page) do
  if found == most or bytes > BYTES then
    break
  end
  looked, last = looked + 1, member
  local id = string.sub(member, 20)
  local key = base_of(index) .. 's:' .. id
  local record = head_of(key)
  if not record or #without({member}, members(record, id)) > 0 then
    ghosts[#ghosts + 1] = member
  elseif matches(record) then
    found = found + 1
    if kind == 'd' then
      local value = call('GET', key)
      bytes = bytes + #value
      rows[#rows + 1] = id
      rows[#rows + 1] = value
    elseif kind == 'h' then
      rows[#rows + 1] = id
      rows[#rows + 1] = record.correlation
      rows[#rows + 1] = record.updated
    end
  end
end
return {(looked == #page and #page < CHUNK) and 1 or 0, last, found, ghosts, rows}
