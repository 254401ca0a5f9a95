-- Takes members out of the index whose saga is gone. KEYS: the index, and the key of each member's saga: Redis sees
-- that none of them is on its way to another node. ARGV: the members. Returns how many were taken out.
local healed = 0
for place, member in ipairs(ARGV) do
  local id = string.sub(member, 20)
  local record = head_of(KEYS[place + 1])
  if not record or not belongs(member, record, id) then
    healed = healed + call('ZREM', KEYS[1], member)
  end
end
return healed
