"""What happens on the Redis server in one step.

All keys of one transport have the same hash tag, so a script may name keys that it finds in another key.
"""

from __future__ import annotations

__all__ = ["ACK", "BURY", "KEEP", "LATER", "PUBLISH", "REMOVE_IDLE", "RETURN_DUE"]

# A copy into the stream of each endpoint that listens.
# KEYS: the set of the name's endpoints. ARGV: what a stream's key begins with, then the entry's fields and values.
PUBLISH = """
local fields = {}
for i = 2, #ARGV do fields[i - 1] = ARGV[i] end
for _, endpoint in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  redis.call('XADD', ARGV[1] .. endpoint, '*', unpack(fields))
end
"""

# An entry out of the stream. KEYS: the stream. ARGV: the group, the entry's id.
ACK = """
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
"""

# This worker stays the owner of an entry. KEYS: the stream. ARGV: the group, the consumer, the entry's id.
KEEP = """
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'JUSTID')
"""

# An entry out of the stream, to come again when it is due.
# KEYS: the stream, the sorted set of those that wait. ARGV: the group, the entry's id, the delay in milliseconds,
# the number of deliveries so far. An entry that is gone was ended by another worker: nothing to do.
LATER = """
local entry = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])[1]
if not entry then return 0 end
local fields = {'attempt', ARGV[4]}
for i = 1, #entry[2], 2 do
  if entry[2][i] ~= 'attempt' then
    fields[#fields + 1] = entry[2][i]
    fields[#fields + 1] = entry[2][i + 1]
  end
end
local now = redis.call('TIME')
local due = now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[3]
redis.call('ZADD', KEYS[2], due, cmsgpack.pack({ARGV[2], fields}))
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
return 1
"""

# Those that are due back into the stream.
# KEYS: the sorted set, the stream. ARGV: at most how many. Returns the milliseconds until the next one, or -1.
RETURN_DUE = """
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])) do
  redis.call('XADD', KEYS[2], '*', unpack(cmsgpack.unpack(member)[2]))
  redis.call('ZREM', KEYS[1], member)
end
local next = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if not next[2] then return -1 end
return math.max(0, next[2] - now)
"""

# An entry out of the stream, among the dead letters.
# KEYS: the stream, the stream of dead letters. ARGV: the group, the entry's id, the note.
BURY = """
local entry = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])[1]
if not entry then return 0 end
local fields = entry[2]
fields[#fields + 1] = 'dead'
fields[#fields + 1] = ARGV[3]
redis.call('XADD', KEYS[2], '*', unpack(fields))
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
return 1
"""

# Consumers of dead workers, once nothing is pending for them.
# KEYS: the stream. ARGV: the group, after how many milliseconds.
REMOVE_IDLE = """
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local about = {}
  for i = 1, #consumer, 2 do about[consumer[i]] = consumer[i + 1] end
  if about['pending'] == 0 and about['idle'] > tonumber(ARGV[2]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], about['name'])
  end
end
"""
