package limit

import "github.com/redis/go-redis/v9"

// admitScript decides about one request under all limits of one tenant, and
// charges it to all of them or to none. The state of a budget is the string
// "tat scale": the time, in microseconds of Redis's clock, until which the
// budget is spent (GCRA's theoretical arrival time), and the period of a
// million units that it was written with. A budget that is full has no key.
//
// KEYS are the budgets; ARGV has four whole numbers for each, in microseconds
// but the first:
//
//	scale      period of a million units now; state of another scale is converted
//	tolerance  how far ahead of the clock the budget may be spent for one more
//	           to be admitted; -1 asks for no decision
//	cost       what the request is charged if all admit
//	carry      what is charged in any case, or given back
//
// It returns {how far ahead the budget is spent, how long until one is admitted
// (0: now)} for each.
var admitScript = redis.NewScript(`
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local n = #KEYS
local tat, wait, held, refused = {}, {}, {}, false
for i = 1, n do
  local a = (i - 1) * 4
  local scale, tolerance, cost, carry = ARGV[a + 1], tonumber(ARGV[a + 2]), tonumber(ARGV[a + 3]), tonumber(ARGV[a + 4])
  local at = now
  local v = redis.call('GET', KEYS[i])
  if v then
    held[i] = true
    local was, by = string.match(v, '^(%d+) (%d+)$')
    if was then
      at = tonumber(was)
      if by ~= scale then at = now + math.floor((at - now) * tonumber(scale) / tonumber(by)) end
      -- No more can be spent at once than a budget, here and again by gateways
      -- that were alone: what is beyond is another clock, or a larger burst.
      local most = now + 2 * (tolerance + cost)
      if cost > 0 and at > most then at = most end
    end
  end
  if at < now then at = now end
  at = at + carry
  if at > now + 31622400000000 then at = now + 31622400000000 end
  wait[i] = 0
  if tolerance >= 0 and at - now > tolerance then
    wait[i] = at - now - tolerance
    refused = true
  end
  tat[i] = at
end
local out = {}
for i = 1, n do
  local a = (i - 1) * 4
  local at, carry = tat[i], tonumber(ARGV[a + 4])
  local cost = 0
  if not refused then cost = tonumber(ARGV[a + 3]) end
  at = at + cost
  if cost ~= 0 or carry ~= 0 then
    if at > now then
      redis.call('SET', KEYS[i], string.format('%.0f %s', at, ARGV[a + 1]), 'PX', string.format('%.0f', math.ceil((at - now) / 1000) + 1000))
    elseif held[i] then
      redis.call('DEL', KEYS[i])
    end
  end
  out[i * 2 - 1] = at - now
  out[i * 2] = wait[i]
end
return out
`)

// exchangeScript tells the other gateways the demand that one tenant has here
// and returns theirs, as text, in requests per second. What a gateway said five
// seconds ago does not count any more.
//
// KEYS[1] is a hash of gateway to "demand time", ARGV the gateway and its demand.
var exchangeScript = redis.NewScript(`
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ' ' .. string.format('%.0f', now))
redis.call('PEXPIRE', KEYS[1], 30000)
local all, others = redis.call('HGETALL', KEYS[1]), 0
for i = 1, #all, 2 do
  if all[i] ~= ARGV[1] then
    local d, at = string.match(all[i + 1], '^([%d.]+) (%d+)$')
    if d and now - tonumber(at) < 5000 then
      others = others + tonumber(d)
    else
      redis.call('HDEL', KEYS[1], all[i])
    end
  end
end
return string.format('%.6f', others)
`)

// aliveScript counts the gateways that have called within the last five
// seconds; ARGV[2] = "0" takes the caller off the list.
var aliveScript = redis.NewScript(`
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
if ARGV[2] == '0' then
  redis.call('ZREM', KEYS[1], ARGV[1])
else
  redis.call('ZADD', KEYS[1], now, ARGV[1])
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 5000)
redis.call('PEXPIRE', KEYS[1], 30000)
return redis.call('ZCARD', KEYS[1])
`)

// probeScript tells whether a slot can be written to.
var probeScript = redis.NewScript(`return redis.call('SET', KEYS[1], '1', 'PX', 1000)`)

const (
	aliveKey = keyPrefix + "{gateways}:alive"
	// demandSuffix makes the key of a budget's demand out of the budget's.
	demandSuffix = ":demand"
)
