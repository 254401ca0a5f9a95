-- Counts members of the index. KEYS: the index. ARGV: pairs of a lower and an upper bound. -1 asks to be called again.
local SWEPT = 1000
if sweep(KEYS[1], SWEPT) == SWEPT then
  return -1
end
local total = 0
for place = 1, #ARGV, 2 do
  total = total + call('ZLEXCOUNT', KEYS[1], ARGV[place], ARGV[place + 1])
end
return total
