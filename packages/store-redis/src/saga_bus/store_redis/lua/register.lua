-- Notes a saga type. KEYS: the schema. ARGV: the layout's version, the type's field. Returns the version found.
local found = redis.call('HGET', KEYS[1], 'layout')
if found == ARGV[1] then
  redis.call('HSET', KEYS[1], ARGV[2], '')
end
return found or ''
