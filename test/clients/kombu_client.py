"""kombu without Celery: queues with priorities, what is acknowledged late, and
messages for everybody, as Dify's and other applications' brokers use them."""

import socket
import uuid

from kombu import Connection, Consumer, Exchange, Queue

from stack import credentials

where = credentials["redis"]
url = f"redis://{where['user']}:{where['password']}@{where['host']}:{where['port']}/3"
run = uuid.uuid4().hex[:8]


def drain(connection, seconds=20):
    try:
        connection.drain_events(timeout=seconds)
    except socket.timeout:
        raise AssertionError("a message is missing") from None


with Connection(url, transport_options={"visibility_timeout": 60}) as connection:
    # One queue, kept in order.
    simple = connection.SimpleQueue(f"{run}-simple")
    for i in range(100):
        simple.put({"n": i})
    assert simple.qsize() == 100
    for i in range(100):
        message = simple.get(timeout=20)
        assert message.payload == {"n": i}
        message.ack()

    # What a consumer takes and does not acknowledge comes back.
    simple.put("precious")
    simple.get(timeout=20).requeue()
    message = simple.get(timeout=20)
    assert message.payload == "precious"
    message.ack()
    simple.close()

    # Priorities, and a topic exchange with two bindings.
    topic = Exchange(f"{run}-topic", "topic")
    queues = [Queue(f"{run}-a", topic, "mail.#"), Queue(f"{run}-b", topic, "mail.urgent")]
    got = []
    producer = connection.Producer()
    with connection.channel() as channel, Consumer(channel, queues, callbacks=[lambda body, m: (got.append((m.delivery_info["routing_key"], body)), m.ack())]):
        for key in ("mail.urgent", "mail.slow", "mail.urgent"):
            producer.publish({"key": key}, exchange=topic, routing_key=key, declare=queues, priority=3 if key == "mail.urgent" else 9)
        while len(got) < 5:
            drain(connection)
    assert sorted(k for k, _ in got) == ["mail.slow"] + ["mail.urgent"] * 4, got

# Messages for everybody: one connection for each consumer.
fanout = Exchange(f"{run}-fanout", "fanout", durable=False)
connections = [Connection(url) for _ in range(3)]
received = [[], [], []]
consumers = []
for i, c in enumerate(connections):
    consumer = Consumer(c, [Queue(f"{run}-f{i}", fanout, exclusive=True)], callbacks=[lambda body, m, i=i: (received[i].append(body), m.ack())])
    consumer.consume()
    try:
        c.drain_events(timeout=0.5)  # subscribes
    except socket.timeout:
        pass
    consumers.append(consumer)
with Connection(url) as connection:
    for i in range(10):
        connection.Producer().publish(i, exchange=fanout, declare=[fanout])
for i, c in enumerate(connections):
    while len(received[i]) < 10:
        drain(c)
    assert received[i] == list(range(10))
    c.release()
print("ok")
