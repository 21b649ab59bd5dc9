"""A Celery application whose broker and results are the stack's Redis."""

import os

from celery import Celery

from stack import credentials

where = credentials["redis"]
url = f"redis://{where['user']}:{where['password']}@{where['host']}:{where['port']}/1"
app = Celery("clients", broker=url, backend=url)
app.conf.update(
    broker_connection_retry_on_startup=True,
    task_default_queue="clients",
    worker_prefetch_multiplier=1,
    # What a worker took and lost its connection with comes back after this time.
    broker_transport_options={"visibility_timeout": int(os.environ.get("VISIBILITY_TIMEOUT", 3600))},
    beat_schedule={"tick": {"task": "celery_app.tick", "schedule": 1.0}},
)


@app.task
def add(a, b):
    return a + b


@app.task
def total(numbers):
    return sum(numbers)


@app.task(bind=True, max_retries=3, default_retry_delay=0.1)
def flaky(self, succeed_at):
    if self.request.retries < succeed_at:
        raise self.retry()
    return self.request.retries


@app.task
def tick():
    """Counts what beat sends."""
    return app.backend.client.incr("clients:ticks")


@app.task(acks_late=True)
def sleep(seconds):
    import time

    time.sleep(seconds)
    return "woke"


@app.task(acks_late=True)
def mark(path, number):
    """Notes in a file that it has run: a record that no failover can lose."""
    f = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(f, f"{number}\n".encode())
    os.close(f)
