-- The usual writes of a caller that is alone: a new saga that runs, and an update of a running one whose flags and
-- timeout stay. They come before the library, because making that takes longer than they do. Of one item, ARGV[1] is
-- nothing, and the fields are plain: from ARGV[5] on the operation, the id, the expected version, the new version,
-- created_at, updated_at, due_at, flags, correlation id. Whatever is unusual is left to what follows.
if ARGV[1] == '' and not string.find(ARGV[12], '[CO]') then
  local index, state, id, moved = KEYS[1], KEYS[2], ARGV[6], ARGV[10]
  local function save(correlation, created, due, flags)
    return redis.pcall('SET', state, ARGV[8] .. '\0' .. correlation .. '\0' .. created .. '\0' .. moved .. '\0' ..
      due .. '\0\0' .. flags .. '\0' .. ARGV[4])
  end
  if ARGV[5] == 'update' then
    local version, correlation, created, updated, due, expiry, flags = string.match(
      redis.call('GETRANGE', state, 0, 255), '^(%d+)%z([^%z]*)%z(%d*)%z(%d*)%z(%d*)%z(%d*)%z(%u*)%z')
    if version == ARGV[7] and created == ARGV[9] and due == ARGV[11] and flags == ARGV[12] and expiry == '' then
      local fresh, stale = 'r' .. moved .. id, 'r' .. updated .. id
      if fresh ~= stale then
        if redis.acl_check_cmd and not redis.acl_check_cmd('ZREM', index, stale) then -- from Redis 7 on
          return redis.error_reply('NOPERM ZREM') -- nothing else could undo what is added now
        end
        redis.call('ZADD', index, '0', fresh)
        redis.call('ZREM', index, stale)
      end
      local reply = save(correlation, created, due, flags)
      if not reply.err then
        return 1
      end
      if fresh ~= stale then
        redis.pcall('ZADD', index, '0', stale)
        redis.pcall('ZREM', index, fresh)
      end
      return reply
    end
  elseif ARGV[5] == 'insert' and ARGV[11] == '' and redis.call('ZSCORE', index, 'v' .. ARGV[3])
    and redis.call('EXISTS', state, KEYS[3]) == 0 then
    local created, running = 'n' .. ARGV[9] .. id, 'r' .. moved .. id
    redis.call('ZADD', index, '0', created, '0', running)
    local reply = redis.pcall('SET', KEYS[3], id)
    if not reply.err then
      reply = save(ARGV[13], ARGV[9], '', ARGV[12])
      if not reply.err then
        return 1
      end
      redis.pcall('DEL', KEYS[3])
    end
    redis.pcall('ZREM', index, created, running)
    return reply
  end
end
