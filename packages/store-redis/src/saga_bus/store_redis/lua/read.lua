-- Fetches sagas. KEYS: of sagas, or of correlation ids. ARGV: for each key an s or a c.
-- Returns the values, packed; false says that there is none, and an empty text that a correlation id names a saga that
-- is not here.
local values = redis.call('MGET', unpack(KEYS))
local states, places = {}, {}
for place = 1, #KEYS do
  if values[place] and string.byte(ARGV[1], place) == 99 then
    local base = string.match(KEYS[place], '^([^{]*{[^}]*}:)c:')
    states[#states + 1] = base .. 's:' .. values[place]
    places[#places + 1] = place
  end
end
if #states > 0 then
  local found = redis.call('MGET', unpack(states))
  for number, place in ipairs(places) do
    values[place] = found[number] or ''
  end
end
return cmsgpack.pack(values)
