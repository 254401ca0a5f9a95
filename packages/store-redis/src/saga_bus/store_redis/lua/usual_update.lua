-- The usual update, alone: a running saga without an outbox goes on, and its flags and its timeout stay. It comes before the library,
-- because making that takes longer than this. ARGV from the fifth on: the id, the expected version, the new version,
-- created_at, updated_at, due_at, flags. Whatever is unusual is left to what follows.
if ARGV[5] then
  local id, moved, head = ARGV[5], ARGV[9], redis.call('GETRANGE', KEYS[2], 0, 1199)
  local version, correlation, created, updated, due, expiry, flags =
    string.match(head, '^(%d+)%z([^%z]*)%z(%d*)%z(%d*)%z(%d*)%z(%d*)%z(%u*)%z')
  if version == ARGV[6] and created == ARGV[8] and due == ARGV[10] and flags == ARGV[11] and expiry == ''
    and not string.find(flags, '[CO]') then
    local fresh, stale = 'r' .. moved .. id, 'r' .. updated .. id
    if fresh ~= stale then
      if redis.acl_check_cmd and not redis.acl_check_cmd('ZREM', KEYS[1], stale) then -- from Redis 7 on
        return redis.error_reply('NOPERM ZREM') -- nothing else could undo what is added now
      end
      redis.call('ZADD', KEYS[1], '0', fresh)
      redis.call('ZREM', KEYS[1], stale)
    end
    local reply = redis.pcall('SET', KEYS[2], ARGV[7] .. '\0' .. correlation .. '\0' .. created .. '\0' .. moved ..
      '\0' .. due .. '\0\0' .. flags .. '\0' .. ARGV[4])
    if reply.err then
      if fresh ~= stale then
        redis.pcall('ZADD', KEYS[1], '0', stale)
        redis.pcall('ZREM', KEYS[1], fresh)
      end
      return reply
    end
    return 1
  end
end
