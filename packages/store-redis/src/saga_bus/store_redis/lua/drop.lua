-- Deletes some sagas of a type, and the index when it is empty. KEYS: the index. Returns how many members are left.
local BATCH = 200
local index = KEYS[1]
for _, member in ipairs(call('ZRANGE', index, 0, BATCH - 1)) do
  local letter = string.sub(member, 1, 1)
  if letter ~= 'v' then
    local id = string.sub(member, letter == 'x' and 53 or 20)
    local state = base_of(index) .. 's:' .. id
    local record = head_of(state)
    if record then
      call('DEL', state, base_of(index) .. 'c:' .. record.correlation)
    end
  end
  call('ZREM', index, member)
end
return call('ZCARD', index)
