-- Fetches sagas. KEYS: of sagas, or of correlation ids. ARGV: for each key an s or a c.
-- Returns the lengths, a newline, and then the values; -1 says that there is none, and -2 that a correlation id names
-- a saga that is not here.
local values = redis.call('MGET', unpack(KEYS))
local states, places = {}, {}
for place = 1, #KEYS do
  if values[place] and string.byte(ARGV[1], place) == 99 then
    local base = string.match(KEYS[place], '^([^{]*{[^}]*}:)c:')
    states[#states + 1] = base .. 's:' .. values[place]
    places[#places + 1] = place
  end
end
local missing = {}
if #states > 0 then
  local found = redis.call('MGET', unpack(states))
  for number, place in ipairs(places) do
    values[place] = found[number]
    missing[place] = not found[number]
  end
end
local lengths, parts = {}, {}
for place = 1, #KEYS do
  if values[place] then
    lengths[place] = #values[place]
    parts[#parts + 1] = values[place]
  else
    lengths[place] = missing[place] and -2 or -1
  end
end
return table.concat(lengths, ' ') .. '\n' .. table.concat(parts)
