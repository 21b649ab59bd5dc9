"""redis-py as Dify uses it: one client on database 0, one on database 1."""

import threading
import uuid

import redis

from stack import credentials, until

where = credentials["redis"]


def client(db):
    return redis.Redis(
        host=where["host"], port=where["port"], username=where["user"], password=where["password"], db=db, socket_timeout=15
    )


app, broker = client(0), client(1)
run = uuid.uuid4().hex[:8]

# Keys of one request land on many slots.
keys = [f"{run}:{i}" for i in range(50)]
assert app.mset({k: i for i, k in enumerate(keys)}) is True
assert app.mget(keys) == [str(i).encode() for i in range(50)]
assert app.exists(*keys) == 50
assert broker.exists(*keys) == 0, "databases are not separated"
assert sorted(app.scan_iter(f"{run}:*", count=10)) == sorted(k.encode() for k in keys)
assert app.delete(*keys) == 50

# What Dify keeps in Redis: flags with a lifetime, locks, throttles.
app.setex(f"generate_task_belong:{run}", 1800, "end-user-1")
assert 0 < app.ttl(f"generate_task_belong:{run}") <= 1800
with app.lock(f"vector_indexing_lock_{run}", timeout=20):
    assert app.set(f"vector_indexing_lock_{run}", "other", nx=True) is None
assert app.exists(f"vector_indexing_lock_{run}") == 0
with app.pipeline() as pipe:
    pipe.zadd(f"login:{run}", {"a": 1, "b": 2}).zremrangebyscore(f"login:{run}", 0, 1).zcard(f"login:{run}")
    assert pipe.execute() == [2, 1, 1]

# Database 1 keeps transactions, scripts and blocking pops over several keys.
with broker.pipeline() as pipe:
    pipe.watch(f"{run}:unacked")
    pipe.multi()
    pipe.hset(f"{run}:unacked", "tag", "body").zadd(f"{run}:unacked_index", {"tag": 1})
    assert pipe.execute() == [1, 1]
script = broker.register_script("return redis.call('hget', KEYS[1], ARGV[1])")
assert script(keys=[f"{run}:unacked"], args=["tag"]) == b"body"

got = []
waiter = threading.Thread(target=lambda: got.append(client(1).brpop([f"{run}:q1", f"{run}:q2"], timeout=10)))
waiter.start()
broker.lpush(f"{run}:q2", "task")
waiter.join(15)
assert got == [(f"{run}:q2".encode(), b"task")], got

# Messages reach a subscriber on another connection.
messages = app.pubsub()
messages.psubscribe(f"{run}/*")
until(10, "subscription", lambda: (messages.get_message(timeout=0.1) or {}).get("type") == "psubscribe")
assert client(1).publish(f"{run}/stop", "now") >= 0
message = until(10, "message", lambda: messages.get_message(ignore_subscribe_messages=True, timeout=0.1))
assert message["data"] == b"now"
messages.close()

assert app.info()["redis_version"]
broker.delete(f"{run}:unacked", f"{run}:unacked_index")
app.delete(f"generate_task_belong:{run}", f"login:{run}")
print("ok")
