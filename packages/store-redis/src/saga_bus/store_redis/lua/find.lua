-- Walks a part of the index. KEYS: the index. ARGV: + or - for the direction, the lower and the upper bound, how many
-- sagas to find, what to return of each (d: its value; h: its correlation id and updated_at; n: nothing), and what a
-- saga must be like: completed, archived, outbox (1, 0 or nothing), and bounds of moments.
-- Returns 1 at the end of the part (2 asks to be called again), the last member that was looked at, how many sagas were
-- found, members without a saga, and what was found, packed: a client reads one text faster than many, and Lua packs
-- them faster than it joins them.
local CHUNK, BYTES, SWEPT = 500, 4194304, 500
local index, forward, lower, upper, most, kind = KEYS[1], ARGV[1] == '+', ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local takes_all = table.concat(ARGV, '', 6) == ''

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
  return {2, '', 0, {}, cmsgpack.pack({})}
end
local wanted = takes_all and most or CHUNK
local page
if forward then
  page = call('ZRANGEBYLEX', index, lower, upper, 'LIMIT', 0, wanted)
else
  page = call('ZREVRANGEBYLEX', index, upper, lower, 'LIMIT', 0, wanted)
end
local last, found, ghosts, rows, bytes, looked = '', 0, {}, {}, 0, 0

local function give(text)
  rows[#rows + 1], bytes = text, bytes + #text
end

for _, member in ipairs(page) do
  if found == most or bytes > BYTES then
    break
  end
  looked, last = looked + 1, member
  local id = string.sub(member, 20)
  local key = base_of(index) .. 's:' .. id
  local value = takes_all and kind == 'd' and call('GET', key) -- one look instead of two
  local record
  if value then
    record = known(parse(value))
  else
    record = head_of(key)
  end
  if not record or not belongs(member, record, id) then
    ghosts[#ghosts + 1] = member
  elseif takes_all or matches(record) then
    found = found + 1
    if kind == 'd' then
      give(id)
      give(value or call('GET', key))
    elseif kind == 'h' then
      give(id)
      give(record.correlation)
      give(record.updated)
    end
  end
end
local state = (looked == #page and #page < wanted) and 1 or 0
return {state, last, found, ghosts, cmsgpack.pack(rows)}
