//! What Redis does in one step. Each script touches one key, except those of tags, whose two keys share a hash tag.

use std::sync::Arc;

use crate::redis::wire::Lua;

/// Key: a slot. Arguments: our token, its life in ms, the mode, and what the slot is expected to hold.
///
/// The slot is ours if it is empty, or of another type, or if it holds what the mode asks for: `same`, exactly these bytes
/// (what could not be decoded); `head`, a lease with this token (of an owner that died); `gone`, a value with this checksum
/// (which is not valid any more); `tail`, the same of one that is stale, and is kept behind our token if it lives for longer
/// than the lease. Otherwise what it holds is returned.
const CLAIM: &str = r"
local have = redis.pcall('GET', KEYS[1])
if type(have) == 'table' then
  if not string.find(have.err or '', 'WRONGTYPE', 1, true) then return have end
  have = false
end
local mode, expected, stale = ARGV[3], ARGV[4], ''
if have then
  if mode == 'same' and have == expected then
  elseif mode == 'head' and string.sub(have, 1, #expected) == expected then
    stale = string.sub(have, #expected + 1)
  elseif (mode == 'tail' or mode == 'gone') and string.sub(have, -#expected) == expected
    and string.sub(have, 5, 5) == '\1' then
    if mode == 'tail' then stale = have end
  else
    return have
  end
end
if stale ~= '' then
  local left = redis.call('PTTL', KEYS[1])
  if left == -1 or left > tonumber(ARGV[2]) then
    redis.call('SET', KEYS[1], ARGV[1] .. stale, 'KEEPTTL')
    return 1
  end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
";

/// Key: a slot. Arguments: our token, the value, its life in ms or `0` for no end. 1 if the lease was still there.
const STORE: &str = r"
if redis.pcall('GETRANGE', KEYS[1], 0, #ARGV[1] - 1) ~= ARGV[1] then return 0 end
if ARGV[3] == '0' then redis.call('SET', KEYS[1], ARGV[2]) else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return 1
";

/// Key: a slot. Argument: our token. Gives the lease back, and with it the value that it was to replace.
const ABANDON: &str = r"
local n = #ARGV[1]
if redis.pcall('GETRANGE', KEYS[1], 0, n - 1) ~= ARGV[1] then return 0 end
if redis.call('STRLEN', KEYS[1]) > n then
  redis.call('SET', KEYS[1], redis.call('GETRANGE', KEYS[1], n, -1), 'KEEPTTL')
else
  redis.call('DEL', KEYS[1])
end
return 1
";

/// Key: a slot. Empties it, and has everybody told of that even if it was empty: what is not in Redis may be in somebody's
/// memory all the same. 1 if there was something.
const REMOVE: &str = r"
if redis.call('DEL', KEYS[1]) == 1 then return 1 end
redis.pcall('SET', KEYS[1], '', 'PX', 1)
redis.call('DEL', KEYS[1])
return 0
";

/// Keys: the sequence, a tag. Arguments: a new epoch, the lives of the two in ms. When the tag was last removed; one that is
/// not there, because it is new or was evicted, counts as removed just now.
const TAG: &str = r"
local now = redis.call('GET', KEYS[1])
if not now then
  now = ARGV[1]
  redis.call('SET', KEYS[1], now, 'PX', ARGV[2])
end
local tag = redis.call('GET', KEYS[2])
if tag and string.match(tag, '^%d+:') == string.match(now, '^%d+:') then
  if redis.call('PTTL', KEYS[2]) < tonumber(ARGV[3]) / 2 then
    redis.call('PEXPIRE', KEYS[2], ARGV[3])
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
  end
  return tag
end
redis.call('SET', KEYS[2], now, 'PX', ARGV[3])
return now
";

/// Keys and arguments as those of `TAG`. Removes the tag: what begins from now on is later than that.
const REMOVE_TAG: &str = r"
local now = redis.call('GET', KEYS[1]) or ARGV[1]
local epoch, count = string.match(now, '^(%d+):(%d+)$')
if not epoch then epoch, count = string.match(ARGV[1], '^(%d+):(%d+)$') end
now = epoch .. ':' .. string.format('%.0f', tonumber(count) + 1)
redis.call('SET', KEYS[1], now, 'PX', ARGV[2])
redis.call('SET', KEYS[2], now, 'PX', ARGV[3])
return now
";

#[derive(Debug)]
pub(crate) struct Scripts {
    pub(crate) claim: Lua,
    pub(crate) store: Lua,
    pub(crate) abandon: Arc<Lua>,
    pub(crate) remove: Lua,
    pub(crate) tag: Lua,
    pub(crate) remove_tag: Lua,
}

impl Scripts {
    pub(crate) fn new() -> Self {
        Self {
            claim: Lua::new(CLAIM),
            store: Lua::new(STORE),
            abandon: Arc::new(Lua::new(ABANDON)),
            remove: Lua::new(REMOVE),
            tag: Lua::new(TAG),
            remove_tag: Lua::new(REMOVE_TAG),
        }
    }
}
