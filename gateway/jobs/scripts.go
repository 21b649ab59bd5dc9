package jobs

// The scripts below are the only writers of a job's record. Each is atomic, is
// safe to send twice (a client may repeat what it got no answer to), and uses
// Redis's clock, so that the clocks of gateways do not matter. All keys of a job
// and of its queue share one hash tag, hence one slot, one master and one order
// of replication.
//
// ARGV[1] is always the job's id.
const scriptHead = `
local job,events,queued,running,dead,hooks,hooksdead,index,live,idem,sizes=unpack(KEYS)
local id=ARGV[1]
local t=redis.call('TIME')
local now=t[1]*1000+math.floor(t[2]/1000)
local function get(f) return redis.call('HGET',job,f) end
local function leave()
  local app=get('app')
  if redis.call('HINCRBY',live,app,-1)<=0 then redis.call('HDEL',live,app) end
end
local function drop()
  local size=redis.call('HGET',sizes,id)
  if size then
    redis.call('HDEL',sizes,id)
    redis.call('HINCRBY',live,'#bytes',-size)
  end
end
local function finish(state,keep)
  redis.call('HSET',job,'state',state,'finished',now)
  redis.call('ZREM',queued,id)
  redis.call('ZREM',running,id)
  redis.call('PEXPIRE',job,keep)
  redis.call('PEXPIRE',events,keep)
  if state=='failed' and not (get('reason')=='rejected' and get('status')=='401') then
    redis.call('ZADD',dead,now,id)
  else
    redis.call('HDEL',job,'req')
    drop()
  end
  if get('hook') then
    redis.call('HSET',job,'hookstate','pending','hooktries',0)
    redis.call('ZADD',hooks,now,id)
  end
end
local function fail(code,message,status,reason,keep)
  redis.call('HSET',job,'code',code,'error',message,'status',status,'reason',reason)
  leave()
  finish('failed',keep)
end
local function again(due)
  local gen=redis.call('HINCRBY',job,'gen',1)
  redis.call('HSET',job,'state','queued','token','')
  redis.call('ZREM',running,id)
  redis.call('ZADD',queued,due,id)
  return gen
end
`

// acceptScript puts a new job on record.
// 2 app, 3 maxQueued, 4 maxPerApp, 5 how long the idempotency key holds (ms, 0:
// none given), 6 prefix of job keys, 7 maxBytes, 8 size, 9... fields and values.
const acceptScript = scriptHead + `
if redis.call('EXISTS',job)==1 then return {'ok',id} end
local hold=tonumber(ARGV[5])
if hold>0 then
  local old=redis.call('GET',idem)
  if old and redis.call('EXISTS',ARGV[6]..old)==1 then
    redis.call('PEXPIRE',idem,hold)
    return {'same',old}
  end
end
if redis.call('ZCARD',queued)>=tonumber(ARGV[3]) then return {'full'} end
if tonumber(redis.call('HGET',live,'#bytes') or '0')+ARGV[8]>tonumber(ARGV[7]) then return {'full'} end
if tonumber(redis.call('HGET',live,ARGV[2]) or '0')>=tonumber(ARGV[4]) then return {'app'} end
redis.call('HSET',job,'state','queued','gen',1,'token','','app',ARGV[2],'created',now,'since',now,'runs',0,'lost',0,'refused',0,unpack(ARGV,9))
redis.call('ZADD',queued,now,id)
redis.call('ZADD',index,now,id)
redis.call('HINCRBY',live,ARGV[2],1)
redis.call('HSET',sizes,id,ARGV[8])
redis.call('HINCRBY',live,'#bytes',ARGV[8])
if hold>0 then redis.call('SET',idem,id,'PX',hold) end
return {'ok',id}
`

// withdrawScript takes back a job that nobody has begun.
const withdrawScript = scriptHead + `
if get('state')=='queued' and get('runs')=='0' then
  leave()
  drop()
  redis.call('ZREM',queued,id)
  redis.call('ZREM',index,id)
  redis.call('DEL',job)
  if redis.call('GET',idem)==id then redis.call('DEL',idem) end
end
return {'ok'}
`

// claimScript begins a run. 2 generation of the delivery, 3 token of the run,
// 4 owner, 5 lease (ms), 6 maxAge (ms), 7 how long a failed job is kept (ms).
const claimScript = scriptHead + `
local state=get('state')
if not state then return {'gone'} end
if state=='running' and get('token')==ARGV[3] then return {'ok',redis.call('HGETALL',job)} end
if state~='queued' or get('gen')~=ARGV[2] then return {'stale'} end
if now-tonumber(get('since'))>tonumber(ARGV[6]) then
  fail(get('code') or 'job_expired',get('error') or 'The job waited longer than the gateway allows. It was not carried out.',503,'expired',ARGV[7])
  return {'expired'}
end
redis.call('HSETNX',job,'started',now)
redis.call('HSET',job,'state','running','token',ARGV[3],'owner',ARGV[4])
redis.call('HINCRBY',job,'runs',1)
redis.call('ZREM',queued,id)
redis.call('ZADD',running,now+ARGV[5],id)
return {'ok',redis.call('HGETALL',job)}
`

// progressScript renews the lease of a run and adds events. 2 token, 3 lease
// (ms), 4 most events kept, 5 number of the run, 6 number of the first event,
// 7... events. The second answer is "1" when the job is to be canceled. "lost" means
// that somebody else has the job, "late" that it was given up meanwhile.
const progressScript = scriptHead + `
if get('token')~=ARGV[2] then return {'lost'} end
if get('state')~='running' then return {'late'} end
redis.call('ZADD',running,now+ARGV[3],id)
for i=7,#ARGV do
  redis.pcall('XADD',events,'MAXLEN','~',ARGV[4],ARGV[5]..'-'..(ARGV[6]+i-7),'d',ARGV[i])
end
return {'ok',get('cancel') or '0'}
`

// finishScript ends a job. 2 token, 3 state, 4 status, 5 code, 6 message,
// 7 reason, 8 sealed result, 9 how long it is kept (ms). A run that had been
// taken for lost may still bring its result, as long as nobody has run the job
// again.
const finishScript = scriptHead + `
local state=get('state')
if not state or get('token')~=ARGV[2] then return {'lost'} end
if state~='running' then
  if state~='failed' or get('reason')~='lost' or ARGV[3]=='failed' then return {'ok'} end
  redis.call('ZREM',dead,id)
else
  leave()
end
redis.call('HSET',job,'status',ARGV[4],'code',ARGV[5],'error',ARGV[6],'reason',ARGV[7])
if ARGV[8]~='' then redis.call('HSET',job,'result',ARGV[8]) end
finish(ARGV[3],ARGV[9])
return {'ok'}
`

// requeueScript ends a run that carried nothing out. 2 token, 3 pause (ms),
// 4 code, 5 message (both may be empty), 6 "1" when it counts as a refusal.
const requeueScript = scriptHead + `
if get('state')~='running' or get('token')~=ARGV[2] then return {'lost'} end
if ARGV[4]~='' then redis.call('HSET',job,'code',ARGV[4],'error',ARGV[5]) end
if ARGV[6]=='1' then redis.call('HINCRBY',job,'refused',1) end
return {'ok',again(now+ARGV[3])}
`

// loseScript decides about a job whose run was lost. 2 token, or "" for whoever's
// lease has run out; 3 maxRuns, 4 code, 5 message, 6 status, 7 how long a failed
// job is kept (ms), 8 how long a canceled one is.
const loseScript = scriptHead + `
if get('state')~='running' then return {'no'} end
if ARGV[2]=='' then
  local lease=redis.call('ZSCORE',running,id)
  if lease and tonumber(lease)>now then return {'no'} end
elseif get('token')~=ARGV[2] then
  return {'no'}
end
local lost=redis.call('HINCRBY',job,'lost',1)
if get('cancel')=='1' then
  leave()
  finish('canceled',ARGV[8])
  return {'canceled'}
end
if get('repeat')=='1' and lost<tonumber(ARGV[3]) then return {'again',again(now)} end
fail(ARGV[4],ARGV[5],ARGV[6],'lost',ARGV[7])
return {'failed'}
`

// cancelScript cancels a job. 2 how long it is kept (ms).
const cancelScript = scriptHead + `
local state=get('state')
if not state then return {'gone'} end
if state=='queued' then
  leave()
  finish('canceled',ARGV[2])
elseif state=='running' then
  redis.call('HSET',job,'cancel','1')
end
return {'ok'}
`

// redeliverScript gives a waiting job a new delivery. 2 generation of the one
// that is missing.
const redeliverScript = scriptHead + `
if get('state')~='queued' or get('gen')~=ARGV[2] then return {'no'} end
return {'again',again(now)}
`

// replayScript queues a dead job again.
const replayScript = scriptHead + `
if get('state')~='failed' or redis.call('HEXISTS',job,'req')==0 then return {'no'} end
redis.call('ZREM',dead,id)
redis.call('ZREM',hooks,id)
redis.call('ZREM',hooksdead,id)
redis.call('HDEL',job,'code','error','reason','status','result','finished','cancel','hookstate','hookerr')
redis.call('HSET',job,'since',now,'lost',0,'refused',0)
redis.call('PERSIST',job)
redis.call('PERSIST',events)
redis.call('HINCRBY',live,get('app'),1)
return {'again',again(now)}
`

// purgeScript forgets a dead job.
const purgeScript = scriptHead + `
redis.call('ZREM',dead,id)
if get('state')~='failed' then return {'no'} end
drop()
redis.call('ZREM',index,id)
redis.call('ZREM',hooks,id)
redis.call('ZREM',hooksdead,id)
redis.call('DEL',job,events)
return {'ok'}
`

// hookTakeScript takes the call that is due for a job. 2 how long the taker may
// need (ms).
const hookTakeScript = scriptHead + `
local due=redis.call('ZSCORE',hooks,id)
if not due or tonumber(due)>now then return {'no'} end
if redis.call('EXISTS',job)==0 then redis.call('ZREM',hooks,id) return {'no'} end
redis.call('ZADD',hooks,now+ARGV[2],id)
return {'ok',redis.call('HGETALL',job)}
`

// hookEndScript notes the outcome of a call. 2 "delivered", "again" or "dead",
// 3 error, 4 pause (ms).
const hookEndScript = scriptHead + `
if redis.call('EXISTS',job)==0 then redis.call('ZREM',hooks,id) return {'ok'} end
redis.call('HINCRBY',job,'hooktries',1)
redis.call('HSET',job,'hookerr',ARGV[3])
if ARGV[2]=='again' then
  redis.call('ZADD',hooks,now+ARGV[4],id)
else
  redis.call('ZREM',hooks,id)
  redis.call('HSET',job,'hookstate',ARGV[2])
  if ARGV[2]=='dead' then redis.call('ZADD',hooksdead,now,id) end
end
return {'ok'}
`

// hookReplayScript makes the call for a job again.
const hookReplayScript = scriptHead + `
if get('hookstate')~='dead' then return {'no'} end
redis.call('ZREM',hooksdead,id)
redis.call('HSET',job,'hookstate','pending','hooktries',0)
redis.call('ZADD',hooks,now,id)
return {'ok'}
`

// sweepScript lists what a queue needs looking after. ARGV: 1 unused, 2 how long
// a waiting job may be due before its delivery is looked for (ms), 3 how many of
// each. It answers: jobs whose lease has run out; waiting ones to be looked for;
// calls that are due; entries of records that may have gone; then the numbers of
// waiting, running, dead, calls waiting, dead calls, and the milliseconds since the
// oldest waiting job was due.
const sweepScript = scriptHead + `
local n=ARGV[3]
local function due(key,upto) return redis.call('ZRANGEBYSCORE',key,'-inf',upto,'LIMIT',0,n) end
local oldest=redis.call('ZRANGE',queued,0,0,'WITHSCORES')
local age=0
if oldest[2] then age=math.max(0,now-tonumber(oldest[2])) end
return {due(running,now),due(queued,now-ARGV[2]),due(hooks,now),
  redis.call('ZRANGE',index,0,n-1),redis.call('ZRANGE',dead,0,n-1),
  redis.call('ZCARD',queued),redis.call('ZCARD',running),redis.call('ZCARD',dead),
  redis.call('ZCARD',hooks),redis.call('ZCARD',hooksdead),age}
`

// forgetScript drops the entries of a record that has expired.
const forgetScript = scriptHead + `
if redis.call('EXISTS',job)==0 then
  drop()
  redis.call('ZREM',index,id)
  redis.call('ZREM',dead,id)
  redis.call('ZREM',queued,id)
  redis.call('ZREM',running,id)
  redis.call('ZREM',hooks,id)
  redis.call('ZREM',hooksdead,id)
end
return {'ok'}
`
