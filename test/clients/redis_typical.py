"""redis-py as applications in general use it: every type, pipelines, scripts,
locks, streams, messages, both protocol versions, threads and asyncio."""

import asyncio
import threading
import uuid

import redis
import redis.asyncio

from stack import credentials, until

where = credentials["redis"]
run = uuid.uuid4().hex[:8]


def options(db, **more):
    return dict(
        host=where["host"], port=where["port"], username=where["user"], password=where["password"], db=db,
        socket_timeout=30, decode_responses=True, **more,
    )


def types(r):
    k = lambda name: f"{run}:{name}"
    # Strings, numbers, lifetimes.
    assert r.set(k("s"), "väl\r\nue", ex=100) and r.get(k("s")) == "väl\r\nue" and 0 < r.ttl(k("s")) <= 100
    assert r.set(k("s"), "2", xx=True, get=True) == "väl\r\nue" and r.set(k("s"), "3", nx=True) is None
    assert r.incrby(k("n"), 5) == 5 and r.incrbyfloat(k("n"), 0.5) == 5.5 and r.getdel(k("n")) == "5.5"
    assert r.append(k("s"), "abc") == 4 and r.getrange(k("s"), 1, 2) == "ab" and r.setbit(k("b"), 7, 1) == 0 and r.bitcount(k("b")) == 1
    # Hashes, lists, sets, sorted sets.
    assert r.hset(k("h"), mapping={"a": 1, "b": 2}) == 2 and r.hgetall(k("h")) == {"a": "1", "b": "2"} and r.hincrby(k("h"), "a", 4) == 5
    assert dict(r.hscan_iter(k("h"))) == {"a": "5", "b": "2"}
    assert r.rpush(k("l"), *range(5)) == 5 and r.lrange(k("l"), 0, -1) == list("01234") and r.lpop(k("l"), 2) == ["0", "1"]
    assert r.lmove(k("l"), k("l"), "LEFT", "RIGHT") == "2" and r.lpos(k("l"), "2") == 2
    assert r.sadd(k("t"), *"abc") == 3 and r.smembers(k("t")) == set("abc") and r.smismember(k("t"), ["a", "z"]) == [1, 0]
    assert r.zadd(k("z"), {"a": 1, "b": 2, "c": 3}) == 3 and r.zrange(k("z"), 0, -1, withscores=True, desc=True)[0][0] == "c"
    assert [m for m, _ in r.zpopmin(k("z"), 2)] == ["a", "b"] and r.zscore(k("z"), "c") == 3.0
    assert r.pfadd(k("p"), *range(100)) == 1 and 95 <= r.pfcount(k("p")) <= 105
    assert r.geoadd(k("g"), (13.361389, 38.115556, "Palermo", 15.087269, 37.502669, "Catania")) == 2
    assert r.geosearch(k("g"), longitude=15, latitude=37, radius=200, unit="km", sort="ASC") == ["Catania", "Palermo"]
    # Streams with a group, a lost consumer and its work taken over.
    ids = [r.xadd(k("x"), {"n": i}) for i in range(5)]
    assert r.xgroup_create(k("x"), "g", "0")
    got = r.xreadgroup("g", "c1", {k("x"): ">"}, count=3)
    assert [i for i, _ in (got[0][1] if isinstance(got, list) else got[k("x")][0])] == ids[:3], got
    assert r.xack(k("x"), "g", ids[0]) == 1 and r.xpending(k("x"), "g")["pending"] == 2
    assert [i for i, _ in r.xautoclaim(k("x"), "g", "c2", 0)[1]] == ids[1:3]
    assert r.xinfo_groups(k("x"))[0]["consumers"] == 2 and r.xtrim(k("x"), maxlen=2, approximate=False) == 3
    # Pipelines, 500 commands in one go, in order.
    with r.pipeline(transaction=False) as pipe:
        for i in range(500):
            pipe.incr(k("pipe"))
        assert pipe.execute() == list(range(1, 501))
    # An error in the middle takes nothing with it.
    with r.pipeline(transaction=False) as pipe:
        pipe.set(k("e"), "x").lpush(k("e"), 1).get(k("e"))
        first, error, last = pipe.execute(raise_on_error=False)
        assert first is True and isinstance(error, redis.ResponseError) and "WRONGTYPE" in str(error) and last == "x"
    # Over many slots.
    many = {f"{run}:many:{i}": str(i) for i in range(1000)}
    assert r.mset(many) and r.mget(list(many)) == list(many.values())
    assert set(r.scan_iter(f"{run}:many:*", count=100)) == set(many) and r.unlink(*many) == 1000
    # Scripts, also when every server has forgotten them.
    add = r.register_script("return redis.call('incrby', KEYS[1], ARGV[1])")
    assert add(keys=[k("lua")], args=[2]) == 2
    r.script_flush()
    assert add(keys=[k("lua")], args=[3]) == 5
    # A lock is for one at a time.
    total = []
    def work():
        for _ in range(5):
            with r.lock(k("lock"), timeout=30, sleep=0.005):
                seen = len(total)
                total.append(seen)
    threads = [threading.Thread(target=work) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert total == list(range(20)), total
    # Optimistic locking by threads: no increment is lost.
    def increment():
        for _ in range(5):
            r.transaction(lambda p: (n := int(p.get(k("cas")) or 0), p.multi(), p.set(k("cas"), n + 1)), k("cas"))
    threads = [threading.Thread(target=increment) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert r.get(k("cas")) == "20"
    for key in r.scan_iter(f"{run}:*"):
        r.delete(key)


for protocol in (2, 3):
    for db in (0, 1):
        types(redis.Redis(**options(db, protocol=protocol)))


async def asynchronous():
    r = redis.asyncio.Redis(**options(2, max_connections=500))
    queue, done = f"{run}:jobs", f"{run}:done"

    async def worker():
        while True:
            _, job = await r.brpop([f"{queue}:high", queue], timeout=20)
            if job == "stop":
                return
            await r.sadd(done, job)

    workers = [asyncio.create_task(worker()) for _ in range(10)]
    await asyncio.gather(*(r.lpush(queue if i % 2 else f"{queue}:high", i) for i in range(200)))
    await r.lpush(queue, *["stop"] * 10)
    await asyncio.gather(*workers)
    assert await r.scard(done) == 200
    async with r.pubsub() as messages:
        await messages.subscribe(f"{run}:news")
        await messages.psubscribe(f"{run}:n*")
        while (await messages.get_message(timeout=20))["type"] != "psubscribe":
            pass
        for i in range(100):
            await r.publish(f"{run}:news", i)
        got = [m async for m in first(messages, 200)]
    assert [m["data"] for m in got if m["type"] == "message"] == [str(i) for i in range(100)]
    assert [m["data"] for m in got if m["type"] == "pmessage"] == [str(i) for i in range(100)]
    await r.delete(done)
    await r.aclose()


async def first(messages, n):
    while n > 0:
        m = await messages.get_message(ignore_subscribe_messages=True, timeout=20)
        assert m is not None, "a message is missing"
        n -= 1
        yield m


asyncio.run(asynchronous())

# What cannot be done is refused with its reason, and the connection goes on.
r = redis.Redis(**options(0))
for command, reason in {
    "CLUSTER NODES": "standalone", "MONITOR": "names of other databases", "CONFIG SET timeout 5": "administration",
    "SINTER a b": "hash tag", "WAIT 1 0": "writes.replicas",
}.items():
    try:
        r.execute_command(*command.split())
        raise AssertionError(f"{command} was accepted")
    except redis.ResponseError as e:
        assert reason in str(e), e
assert r.config_get("databases") == {"databases": "16"} and r.info("server")["redis_mode"] == "standalone"
assert until(10, "ping", r.ping)
print("ok")
